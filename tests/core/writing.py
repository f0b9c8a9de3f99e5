"""Random content for a message writer, and the message that it must become.

Layer: tests.

The laws of `core.outgoing` and of the client's writer use both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tenuto.core.model import Message

PIECES = ["", "the ", "🙂", "e\u0301", "中文", "\n", "\ud83d", "\ude00", "x" * 300]

Action = tuple[str, Any]
# a method of a writer (`append`, `part` or `update`), its arguments without an owner, and the part that it opens or
# replaces; `begin`, `end` and `fail` are about an attempt
Call = tuple[str, tuple[Any, ...], "Made | None"]

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


# two tasks, and a third one without an attempt, write at once
lanes = st.tuples(st.just("lane"), st.integers(0, 2))


@dataclass(eq=False)
class Made:
    """A part, whole, halves of pairs included."""

    kind: str
    content: Any
    owner: int | None  # the attempt that it belongs to; FAILED: the next part supersedes it
    is_reserved: bool = False  # it has only half a character so far, and no other content
    is_closed: bool = False  # an attempt around which it stands has failed since
    index: Any = None  # as the writer has returned it


FAILED = -1


class Expected:
    """The message that accepted content makes, kept in the simplest way."""

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        self.parts: list[Made] = []
        self.meta: dict[str, Any] = meta or {}
        self.lane = 0  # the task that writes
        self._tries: dict[int, int] = {}  # the attempt of each task that is in one
        self._others: dict[tuple[int | None, str], Made] = {}  # parts that are not text, by their owners and types
        self._numbers = 0

    @property
    def owner(self) -> int | None:
        """Return the attempt of the task that writes."""
        return self._tries.get(self.lane)

    @property
    def has_failed(self) -> bool:
        """Return whether the next part supersedes others."""
        return any(one.owner == FAILED for one in self.parts)

    def accept(self, action: Action) -> list[Call]:
        """Note the content of `action`, and return the calls that write it."""
        kind, value = action
        match kind:
            case "lane":
                self.lane = value
                return []
            case "begin":
                calls = self._end()
                self._numbers += 1
                self._tries[self.lane] = self._numbers
                return [*calls, ("begin", (), None)]
            case "fail":
                if self.owner is None:
                    return []
                self._fail(self._tries.pop(self.lane))
                return [("fail", (), None)]
            case "append":
                if value:
                    text = self._text()
                    half = self._take_half() if text is None else ""
                    self._grow(text or self._open("text", ""), half + value)
                return [("append", (value, None), None)]
            case "think":
                known = self._others.get((self.owner, "reasoning"))
                part = known or self._open("reasoning", "")
                opening: list[Call] = [("part", ({"type": "reasoning", "text": ""}, None), part)] if not known else []
                self._grow(part, value)
                return [*opening, ("append", (value, part), None)]
            case "rewrite":
                if (text := self._text()) is None:
                    return []
                text.content, text.is_reserved = value, False
                self._close()
                return [("part", ({"type": "text", "text": value}, self.parts.index(text)), text)]
            case "bar":
                known = self._others.get((self.owner, "data"))
                part = known or self._open("data", None)
                part.content = value
                self._close()
                return [("part", ({"type": "data", "name": "bar", "data": value}, known), part)]
            case _:
                self.meta = {k: v for k, v in {**self.meta, **value}.items() if v is not None}
                return [("update", (value,), None)]

    def _text(self) -> Made | None:
        """Return the part that text without an index goes to."""
        texts = [one for one in self.parts if one.kind == "text" and one.owner == self.owner and not one.is_closed]
        return texts[-1] if texts else None

    def _take_half(self) -> str:
        """Return half a character at the end of the last text, whose other half opens a text part."""
        self._end_half()
        texts = [one for one in self.parts if one.kind == "text" and one.owner == self.owner]
        if not texts or not texts[-1].content.endswith("\ud83d"):
            return ""
        texts[-1].content = texts[-1].content[:-1]
        return "\ud83d"

    def _open(self, kind: str, empty: Any) -> Made:
        self._end_half()
        self.supersede()
        made = Made(kind, empty, self.owner, is_reserved=kind == "text")
        if kind != "text":
            self._others[self.owner, kind] = made
        self.parts.append(made)
        if kind != "text":
            self._close()
        return made

    def _close(self) -> None:
        """Let text stand behind the last part, because a part was written whole."""
        for one in self.parts[:-1]:
            one.is_closed = True

    def _grow(self, part: Made, text: str) -> None:
        part.content += text
        part.is_reserved = part.is_reserved and part.content == "\ud83d"

    def _end_half(self) -> None:
        """Replace half a character that was to open a text part, because another part opens after it."""
        if self.parts and self.parts[-1].is_reserved:
            self.parts[-1].content, self.parts[-1].is_reserved = "\ufffd", False

    def _end(self) -> list[Call]:
        """End the attempt of this task, if it is in one."""
        if self.owner is None:
            return []
        number = self._tries.pop(self.lane)
        for one in self.parts:
            one.owner = None if one.owner == number else one.owner
        return [("end", (), None)]

    def _fail(self, number: int) -> None:
        for one in self.parts:
            one.is_closed = one.is_closed or one.owner is None
            if one.owner == number:
                one.owner = FAILED
                if one.kind in ("text", "reasoning"):
                    one.content = one.content.removesuffix("\ud83d")
        if self.parts and self.parts[-1].is_reserved and self.parts[-1].owner == FAILED:
            self.parts.pop()

    def supersede(self) -> None:
        """Put the parts of failed attempts into one part, as the next part does, and the end of the message."""
        taken = [one for one in self.parts if one.owner == FAILED]
        if not taken:
            return
        since = self.parts.index(taken[0])
        before, after = self.parts[:since], [one for one in self.parts[since:] if one not in taken]
        before += [one for one in after if one.kind == "attempt"]
        beside = [one for one in after if one.kind != "attempt"]
        self.parts = [*before, Made("attempt", [[one.kind, one.content] for one in taken], 0), *beside]

    def check(self, message: Message, status: str = "complete", *, may_lose: bool = False) -> None:
        """Assert that `message` is the accepted content; a server that lost its log may lack superseded parts."""
        if status == "complete":
            self.supersede()
        assert len(message.parts) == len(self.parts)
        for part, one in zip(message.parts, self.parts, strict=True):
            # a new server is not sent what is superseded: an empty text stands in its place
            is_lost = one.kind == "attempt" and may_lose and part == {"type": "text", "text": ""}
            # one that was restored has superseded what stood beside, too; it is written again behind
            may_differ = one.kind == "attempt" and may_lose and part["type"] == "attempt"
            assert is_lost or may_differ or _shown(part) == [one.kind, _whole(one.content)]
        counted = "".join(_whole(one.content) for one in self.parts if one.kind == "text")
        assert (message.text, message.meta) == (counted, self.meta)
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
