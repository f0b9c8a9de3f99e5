"""A turn as the events of AG-UI, each with a position, so that a reader may continue at each character.

Layer: interop.

One run of the client is one turn. A text, a reasoning and the result of a tool are messages of their own in the client.
A repeated run gets the parts of the turn that the messages of its request lack; one with a position gets the events
after it. Parts come in the order of their index, and one ends when the next begins; results of tools come when they are
there. Clients refuse an end of a run while a message or a call is open, and content of one that is not open.
`docs/interop.md` has the mapping, and the form of the positions.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import InvalidRequest
from tenuto.interop.fold import DELETED, REPLACED, End, EventStream, Json, Part, has_result, question_value
from tenuto.routes import InAnswer, QuestionAsked, QuestionReplied, TextAdded, TurnDelta, is_id

_encode = msgspec.json.Encoder().encode
# for each type of part that grows: the events before, for and after its text, and the field with its id
_EVENTS = {
    "text": (["TEXT_MESSAGE_START"], "TEXT_MESSAGE_CONTENT", ["TEXT_MESSAGE_END"], "messageId"),
    "reasoning": (
        ["REASONING_START", "REASONING_MESSAGE_START"],
        "REASONING_MESSAGE_CONTENT",
        ["REASONING_MESSAGE_END", "REASONING_END"],
        "messageId",
    ),
    "tool": (["TOOL_CALL_START"], "TOOL_CALL_ARGS", ["TOOL_CALL_END"], "toolCallId"),
}
_ROLES = {"TEXT_MESSAGE_START": "assistant", "REASONING_MESSAGE_START": "reasoning"}
_CURSOR = re.compile(r"([0-9]{1,16})/([0-9a-f]{1,1024})/([0-9a-f]{8})/([0-9a-z]{0,24})/(.{1,64})\Z", re.ASCII)
LOST: End = ("invalid_cursor", "the events of this run have no such position; load the messages again")


class TurnPosition(Struct, frozen=True):
    """A position in the events of a turn, which are the same for each reader. As text it is the id of an event."""

    question: str  # id of the message that the turn answers
    units: int = 0  # events of the structure, and code points of texts
    results: int = 0  # bit n is set: the result of the n-th call was sent
    sum: int = 0  # checksum of the texts up to here, and of the answers' ids

    def __str__(self) -> str:
        return self.text()

    def text(self, unique: str = "") -> str:
        """Return the id of an event. `unique` tells apart events that do not move the position."""
        return f"{self.units}/{self.results:x}/{self.sum:08x}/{unique}/{self.question}"


def position_of(text: str | None) -> TurnPosition | None:
    """Return the position that a client sends; None if it has none (also `-1`). Raises InvalidRequest."""
    if text is None or text in ("", "-1"):
        return None
    found = _CURSOR.match(text)
    if found is None or not is_id(found[5]):
        raise InvalidRequest(f"Last-Event-ID and cursor must be the id of an event of this run, got {text!r:.80}")
    return TurnPosition(found[5], int(found[1]), int(found[2], 16), int(found[3], 16))


@dataclass(frozen=True)
class Shown:
    """The parts of a turn that a client shows, as its request has them."""

    texts: dict[str, str] = field(default_factory=dict)  # texts and reasonings by the ids of their messages
    inputs: dict[str, str] = field(default_factory=dict)  # inputs of tool calls, by the ids of the calls
    results: frozenset[str] = frozenset()  # ids of the calls with a result


@dataclass
class _Begun:
    """A part whose events have begun."""

    id: str  # of the message or call in the client
    start: Json  # fields of the first events
    known: str  # the beginning that the client shows; the first events are due when the text is longer
    threshold: int  # units of the last of the first events
    sum: int  # checksum before the text
    is_muted: bool  # it belongs to an attempt that was replaced before this reader came
    call: int = -1  # number of a call in the turn
    is_open: bool = False  # the reader has the first events


class AGUIStream(EventStream):
    """The events of the turn of `question`, for a run of a client that shows `shown` of it, after a position."""

    def __init__(
        self, thread: str, run: str, question: str, shown: Shown | None = None, after: TurnPosition | None = None
    ) -> None:
        super().__init__()
        self._run = {"threadId": thread, "runId": run}
        self._shown = shown or Shown()
        self._at = TurnPosition(question)  # of the walk
        self._after = self._last = after or self._at  # of the events that the reader has
        self._events: list[tuple[str, Json]] = []
        self._parts: dict[Part, _Begun] = {}
        self._values: dict[Part, Json] = {}  # last values of other parts
        self._growing: Part | None = None  # the open part at the end of the walk
        self._calls = self._customs = 0
        self._parents: dict[str, str] = {}  # for each answer the message in the client that its next call belongs to
        self._token = secrets.token_hex(4)
        self._end: End | None = None  # the stream ends at once, whatever the turn does

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        events = self.receive(deltas)
        return b"".join([b"id: %b\ndata: %b\n\n" % (id.encode(), _encode(event)) for id, event in events])

    def receive(self, deltas: Sequence[TurnDelta]) -> list[tuple[str, Json]]:
        """Return the events for `deltas`, each with its id."""
        if (found := self._turn.sole_text(deltas)) is not None and found[0] is self._growing:
            return [self._appended(*found)]
        is_first = not self._at.units
        if is_first:
            self._advance(1)
            self._put("RUN_STARTED", **self._run)
        changed: dict[Part, bool] = {}  # and whether text was added to it
        for delta in deltas:
            is_text = type(delta) is InAnswer and type(delta.delta) is TextAdded
            changed |= {part: is_text or changed.get(part, False) for part in self._turn.receive(delta)}
        places = sorted(changed, key=lambda one: one.place)
        for part in places:
            self._check(part, has_grown=changed[part])
            if part in self._values:
                self._value(part)
        self._walk()
        for part in places:
            if part in self._parts:
                self._result(part)
        for delta in deltas:
            match delta:
                case QuestionAsked(command):
                    self._question(command.id)
                case QuestionReplied(id):
                    self._question(id, delta)
        ahead = self._after.units - self._at.units
        if is_first and ahead > 0 and not (self._turn.is_over and ahead == 1 and self._after.sum == self._at.sum):
            self._end = LOST  # it is not the last event either, which may come again
        if not self.is_over and (self._turn.is_over or self._end or self._turn.is_gone(self._turn.replaced())):
            self._finish()
        events, self._events = self._events, []
        last = next(self._turn.walk(), None)
        is_growing = last is not None and last in self._parts and self._parts[last].is_open
        self._growing = last if is_growing and not self.is_over and self._at.units >= self._after.units else None
        return events

    def _appended(self, part: Part, text: str) -> tuple[str, Json]:
        """Return the event for text at the end of the part where the walk is. Hot path: `receive` without the rest."""
        part.sent.add(text)
        at = self._at
        at = TurnPosition(at.question, at.units + len(text), at.results, crc32(text.encode(), at.sum))
        self._at = self._last = at
        _, content, _, name = _EVENTS[part.value["type"]]
        return at.text(), {"type": content, name: self._parts[part].id, "delta": text}

    # -- the walk over the parts ---------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Send all parts as far as they are known."""
        replaced = self._turn.replaced()
        for part in self._turn.walk():
            if self._end is not None:
                return
            is_muted = part.answer.id in replaced and self._at.units >= self._after.units
            if part.value["type"] not in _EVENTS:
                self._parents.pop(part.answer.id, None)
                if not is_muted:
                    self._value(part)
                continue
            sent = self._parts.get(part) or self._begin(part, is_muted=is_muted)
            self._grow(part, sent)
            if not self._has_ended(part) or self._end is not None:
                return
            for type in _EVENTS[part.value["type"]][2]:
                self._advance(1)
                if sent.is_open:
                    self._put(type, **{_id_field(part): sent.id})
            if self._at.units >= self._after.units:  # else after the walk, so that the position does not fall
                self._result(part)

    def _has_ended(self, part: Part) -> bool:
        """Return whether a part gets no more text, so that the next one may be sent."""
        if self._turn.is_past(part):
            return True
        later = self._turn.later(part)
        if part.value["type"] != "tool":
            return bool(later)
        is_whole = part.value.get("state") == "called" or has_result(part.value)
        return is_whole or any(one.value["type"] != "tool" for one in later)

    def _begin(self, part: Part, *, is_muted: bool) -> _Begun:
        value, answer, call = part.value, part.answer.id, -1
        if value["type"] == "tool":
            id, call = value["call"], self._calls
            self._calls += 1
            parent = self._parents.setdefault(answer, part.name)
            start = {"toolCallId": id, "toolCallName": value["name"], "parentMessageId": parent}
            known = self._shown.inputs.get(id)
            if id in self._shown.results or self._after.results >> call & 1:
                self._at = replace(self._at, results=self._at.results | 1 << call)
        else:
            is_first = all(one.id != answer for one in self._parts.values())
            id = answer if value["type"] == "text" and is_first else part.name
            start, known = {"messageId": id}, self._shown.texts.get(id)
            self._parents.pop(answer, None)
            if value["type"] == "text":
                self._parents[answer] = id
        if known is not None and not part.text().startswith(known):
            self._end = REPLACED
        self._at = replace(self._at, sum=crc32(part.name.encode(), self._at.sum))
        self._advance(len(_EVENTS[value["type"]][0]))
        threshold = self._at.units + len(known or "")
        sent = self._parts[part] = _Begun(id, start, known or "", threshold, self._at.sum, is_muted, call)
        sent.is_open = not is_muted and self._after.units >= threshold
        if known is None:
            self._open(part, sent)
        return sent

    def _open(self, part: Part, sent: _Begun) -> None:
        """Send the first events of a part, at the positions before its first character that is due."""
        if sent.is_muted:
            return
        at, sent.is_open = self._at, True
        types = _EVENTS[part.value["type"]][0]
        for back, type in zip(reversed(range(len(types))), types, strict=True):
            known = sent.known[: max(0, len(sent.known) - back)]
            self._at = replace(at, units=sent.threshold - back, sum=crc32(known.encode(), sent.sum))
            role = {"role": _ROLES[type]} if type in _ROLES else {}
            self._put(type, **sent.start, **role)
        self._at = at

    def _grow(self, part: Part, sent: _Begun) -> None:
        """Send the text that has come since, without the beginning that the reader has."""
        has = max(self._after.units - self._at.units, len(sent.known) - part.sent.length, 0)
        text = part.take()
        missing = text[has:]
        if missing and self._end is None and not sent.is_open:
            self._open(part, sent)
        self._advance(len(text), text)
        if missing and self._end is None and not sent.is_muted:
            self._put(_EVENTS[part.value["type"]][1], **{_id_field(part): sent.id, "delta": missing})

    def _check(self, part: Part, *, has_grown: bool) -> None:
        """End the stream if it cannot show what a part is now: text that was sent is gone, or text came too late."""
        is_late = part.place < self._turn.place and bool(part.new) and (has_grown or part in self._parts)
        is_muted = any(sent.is_muted for one, sent in self._parts.items() if one.answer is part.answer)
        if (part.is_replaced or part.answer.is_rewritten or is_late) and not is_muted:
            self._end = REPLACED

    def _result(self, part: Part) -> None:
        """Send the result of a call, if it is there and the reader lacks it."""
        sent = self._parts[part]
        if sent.call < 0 or sent.is_muted or self._at.results >> sent.call & 1 or not has_result(part.value):
            return
        self._at = replace(self._at, results=self._at.results | 1 << sent.call)
        failed: Json = {}
        if (state := part.value.get("state")) in ("error", "denied"):
            failed = {"metadata": {"state": state, "tanstack": {"state": "output-error"}}}
        fields = {"messageId": f"{part.name}.result", "toolCallId": sent.id, "content": _content(part.value)}
        self._emit("TOOL_CALL_RESULT", **fields, role="tool", **failed)

    def _value(self, part: Part) -> None:
        value = part.value
        if self._values.get(part) != value:
            self._values[part], kind = value, value["type"]
            fields = value.get("data") if kind == "data" else {name: value[name] for name in value if name != "type"}
            self._custom(value["name"] if kind == "data" else f"tenuto.{kind}", part.name, fields)

    def _question(self, id: str, reply: QuestionReplied | None = None) -> None:
        self._custom("tenuto.question", id, {"id": id, **question_value(self._turn.questions[id], reply)})

    # -- the events and their positions --------------------------------------------------------------------------

    def _advance(self, units: int, text: str = "") -> None:
        """Move the walk on, and compare the checksum with that of the reader's position."""
        has = self._after.units - self._at.units
        if 0 < has <= units and crc32(text[:has].encode(), self._at.sum) != self._after.sum:
            self._end = LOST
        self._at = replace(self._at, units=self._at.units + units, sum=crc32(text.encode(), self._at.sum))

    def _put(self, type: str, **fields: Any) -> None:
        """Send an event, unless it is before the reader's position."""
        if self._at.units > self._after.units:
            self._emit(type, **fields)

    def _emit(self, type: str, **fields: Any) -> None:
        self._last = self._at
        self._events.append((str(self._at), {"type": type, **fields}))

    def _custom(self, name: str, id: str, value: Any) -> None:
        """Send a value. It does not move the position, so each run sends it again."""
        self._customs += 1
        event = {"type": "CUSTOM", "name": name, "value": value, "metadata": {"id": id}}
        self._events.append((self._last.text(f"{self._token}{self._customs}"), event))

    def _finish(self) -> None:
        replaced = self._turn.replaced()
        ended = self._turn.end(replaced)
        status, reason = (ended if ended is DELETED else self._end) or ended
        meta = self._turn.meta(replaced)
        self._at = replace(self._at, units=max(self._at.units + 1, self._after.units + 1))
        if status == "complete":
            self._put("RUN_FINISHED", **self._run, **({"result": meta} if meta else {}))
        else:
            message = reason or ("no agent serves this thread" if self._turn.state == "none" else status)
            self._put("RUN_ERROR", message=message, code=status)
        self.is_over = True


def _id_field(part: Part) -> str:
    return _EVENTS[part.value["type"]][3]


def _content(part: Json) -> str:
    """Return the result of a call as text."""
    output = part.get("output", part.get("state"))
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
