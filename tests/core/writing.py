"""Random content for a message writer, and the message that it must become.

Layer: tests.

The laws of `core.outgoing` and of the client's writer use both.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tenuto.core.model import Message

PIECES = ["", "the ", "🙂", "e\u0301", "中文", "\n", "\ud83d", "\ude00", "x" * 300]

Action = tuple[str, Any]
Call = tuple[str, tuple[Any, ...]]  # a method of a writer (`append`, `part` or `update`) and its arguments

appends = st.tuples(st.just("append"), st.sampled_from(PIECES))
thoughts = st.tuples(st.just("think"), st.sampled_from(PIECES[1:6]))
rewrites = st.tuples(st.just("rewrite"), st.sampled_from(["", "new ", "中文"]))
bars = st.tuples(st.just("bar"), st.integers(0, 9))
keys = st.sampled_from(["a", "b", "kept"])
metas = st.tuples(st.just("meta"), st.dictionaries(keys, st.none() | st.integers(0, 3), min_size=1))
contents = st.one_of(appends, appends, appends, thoughts, rewrites, bars, bars, metas)


class Expected:
    """The message that accepted content makes, kept in the simplest way: each part whole, halves of pairs included."""

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        self.parts: list[list[Any]] = []  # type and content
        self.meta: dict[str, Any] = meta or {}
        self._indexes: dict[str, int] = {}

    def accept(self, action: Action) -> list[Call]:
        """Note the content of `action`, and return the calls that write it."""
        kind, value = action
        match kind:
            case "append":
                if value:
                    self._part("text", "")[1] += value
                return [("append", (value, None))]
            case "think":
                is_new = "reasoning" not in self._indexes
                self._part("reasoning", "")[1] += value
                opening: list[Call] = [("part", ({"type": "reasoning", "text": ""}, None))] if is_new else []
                return [*opening, ("append", (value, self._indexes["reasoning"]))]
            case "rewrite":
                if "text" not in self._indexes:
                    return []
                self._part("text", "")[1] = value
                return [("part", ({"type": "text", "text": value}, self._indexes["text"]))]
            case "bar":
                index = self._indexes.get("data")
                self._part("data", None)[1] = value
                return [("part", ({"type": "data", "name": "bar", "data": value}, index))]
            case _:
                self.meta = {k: v for k, v in {**self.meta, **value}.items() if v is not None}
                return [("update", (value,))]

    def _part(self, kind: str, empty: Any) -> list[Any]:
        """Return the part of type `kind`; if there is none, add one as the last part."""
        if kind not in self._indexes:
            # Half a character that was to open the text part becomes a replacement when another part opens after it.
            if self.parts and self.parts[-1] == ["text", "\ud83d"]:
                self.parts[-1][1] = "\ufffd"
            self._indexes[kind] = len(self.parts)
            self.parts.append([kind, empty])
        return self.parts[self._indexes[kind]]

    def check(self, message: Message, status: str = "complete") -> None:
        """Assert that `message` is the accepted content."""
        found = [[part["type"], part.get("text", part.get("data"))] for part in message.parts]
        assert found == [[kind, _whole(content)] for kind, content in self.parts]
        assert message.meta == self.meta
        assert message.status == status


def _whole(content: Any) -> Any:
    """Return text with its pairs joined and its lone halves replaced."""
    if not isinstance(content, str):
        return content
    return content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
