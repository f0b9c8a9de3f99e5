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
# a method of a writer (`append`, `part` or `update`) and its arguments; `begin` and `fail` are about an attempt
Call = tuple[str, tuple[Any, ...]]

appends = st.tuples(st.just("append"), st.sampled_from(PIECES))
thoughts = st.tuples(st.just("think"), st.sampled_from(PIECES[1:6]))
rewrites = st.tuples(st.just("rewrite"), st.sampled_from(["", "new ", "中文"]))
bars = st.tuples(st.just("bar"), st.integers(0, 9))
keys = st.sampled_from(["a", "b", "kept"])
metas = st.tuples(st.just("meta"), st.dictionaries(keys, st.none() | st.integers(0, 3), min_size=1))
tries = st.tuples(st.sampled_from(["begin", "fail"]), st.none())
contents = st.one_of(appends, appends, appends, thoughts, rewrites, bars, bars, metas, tries)

# scripts that consist of attempts
tried = st.sampled_from(
    [
        *([("begin", None), ("fail", None)] * 2),
        *([("append", piece) for piece in ("the ", "中文", "\ud83d", "\ude00")]),
        *(("think", "中文"), ("bar", 1), ("bar", 2), ("rewrite", "new "), ("meta", {"a": 1})),
    ]
)


class Expected:
    """The message that accepted content makes, kept in the simplest way: each part whole, halves of pairs included."""

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        self.parts: list[list[Any]] = []  # type and content
        self.meta: dict[str, Any] = meta or {}
        self.failed: int | None = None  # the index from which the next content supersedes all parts
        self._indexes: dict[str, int] = {}
        self._since: int | None = None  # the index at which the attempt began

    def accept(self, action: Action) -> list[Call]:
        """Note the content of `action`, and return the calls that write it."""
        kind, value = action
        match kind:
            case "begin":
                self._end_half()
                self._since = len(self.parts) if self.failed is None else self.failed
                self._indexes.pop("text", None)
                return [("begin", (self._since,))]
            case "fail":
                if self._since is None:
                    return []
                since, self._since = self._since, None
                self._fail(since)
                return [("fail", (since,))]
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
            self._end_half()
            self.supersede()
            self._indexes[kind] = len(self.parts)
            self.parts.append([kind, empty])
        return self.parts[self._indexes[kind]]

    def _end_half(self) -> None:
        """Replace half a character that was to open the text part, because another part opens after it."""
        if self.parts and self.parts[-1] == ["text", "\ud83d"]:
            self.parts[-1][1] = "\ufffd"

    def _fail(self, since: int) -> None:
        self._indexes = {kind: index for kind, index in self._indexes.items() if kind != "text" and index < since}
        if self.parts and self.parts[-1] == ["text", "\ud83d"]:
            self.parts.pop()
        for part in self.parts[since:]:
            if part[0] in ("text", "reasoning"):
                part[1] = part[1].removesuffix("\ud83d")
        if any(kind != "attempt" for kind, _ in self.parts[since:]):
            self.failed = since if self.failed is None else min(since, self.failed)

    def supersede(self) -> None:
        """Put the parts of the failed attempt into one part, as the next content does, and the end of the message."""
        if self.failed is None:
            return
        taken = self.parts[self.failed :]
        kept = [part for part in taken if part[0] == "attempt"]
        attempt = [part for part in taken if part[0] != "attempt"]
        self.parts[self.failed :] = [*kept, ["attempt", attempt]]
        self.failed = None

    def check(self, message: Message, status: str = "complete", *, may_lose: bool = False) -> None:
        """Assert that `message` is the accepted content; a server that lost its log may lack superseded parts."""
        if status == "complete":
            self.supersede()
        assert len(message.parts) == len(self.parts)
        for part, (kind, content) in zip(message.parts, self.parts, strict=True):
            # a new server is not sent what is superseded: an empty text stands in its place
            is_lost = kind == "attempt" and may_lose and part == {"type": "text", "text": ""}
            assert is_lost or _shown(part) == [kind, _whole(content)]
        counted = "".join(_whole(content) for kind, content in self.parts if kind == "text")
        assert message.text == counted
        assert message.meta == self.meta
        assert message.status == status


def _shown(part: dict[str, Any]) -> list[Any]:
    if part["type"] != "attempt":
        return [part["type"], part.get("text", part.get("data"))]
    assert part["characters"] == sum(len(one["text"]) for one in part["parts"] if one["type"] == "text")
    return ["attempt", [_shown(one) for one in part["parts"]]]


def _whole(content: Any) -> Any:
    """Return text with its pairs joined and its lone halves replaced."""
    if isinstance(content, list):
        return [[kind, _whole(inner)] for kind, inner in content]
    if not isinstance(content, str):
        return content
    return content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
