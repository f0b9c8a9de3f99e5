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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import InvalidRequest
from tenuto.interop.fold import DELETED, REPLACED, Answer, End, Json, Part, SentText, TurnFold, has_result, text_of
from tenuto.routes import (
    InAnswer,
    MessageReplaced,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    QuestionReplied,
    TextAdded,
    TurnDelta,
    is_id,
)

Place = tuple[int, int]  # number of an answer, and index of a part

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
    text: SentText = field(default_factory=SentText)


class AGUIStream:
    """The events of the turn of `question`, for a run of a client that shows `shown` of it, after a position."""

    heartbeat = b":\n\n"

    def __init__(
        self, thread: str, run: str, question: str, shown: Shown | None = None, after: TurnPosition | None = None
    ) -> None:
        self.headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        self.is_over = False
        self._run = {"threadId": thread, "runId": run}
        self._shown = shown or Shown()
        self._at = TurnPosition(question)  # of the walk
        self._after = self._last = after or self._at  # of the events that the reader has
        self._turn = TurnFold()
        self._events: list[tuple[str, Json]] = []
        self._next: Place = 0, 0
        self._parts: dict[Place, _Begun] = {}
        self._values: dict[Place, Json] = {}  # last values of other parts
        self._growing: tuple[str, int, _Begun, str, str] | None = None  # the open part at the end of the walk
        self._calls = self._customs = 0
        self._parents: dict[str, str] = {}  # for each answer the message in the client that its next call belongs to
        self._questions: dict[str, Json] = {}
        self._token = secrets.token_hex(4)
        self._end: End | None = None  # the stream ends at once, whatever the turn does

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        events = self.receive(deltas)
        return b"".join([b"id: %b\ndata: %b\n\n" % (id.encode(), _encode(event)) for id, event in events])

    def receive(self, deltas: Sequence[TurnDelta]) -> list[tuple[str, Json]]:
        """Return the events for `deltas`, each with its id."""
        if len(deltas) == 1 and (event := self._appended(deltas[0])) is not None:
            return [event]
        is_first = not self._at.units
        if is_first:
            self._advance(1)
            self._put("RUN_STARTED", **self._run)
        changed = {place for delta in deltas for place in self._fold(delta)}
        for a, index in sorted(changed):
            answer = self._turn.answers[a]
            self._end = REPLACED if answer.is_rewritten and not self._is_muted((a, index)) else self._end
            self._again((a, index), answer.parts[index])
        self._walk()
        if changed:
            for a, index in self._parts:
                answer = self._turn.answers[a]
                self._result(self._parts[a, index], answer.parts[index], f"{answer.id}.{index}")
        for delta in deltas:
            match delta:
                case QuestionAsked(command):
                    self._questions[command.id] = question = {"name": command.name, "data": command.data}
                    self._custom("tenuto.question", command.id, {"id": command.id, **question, "open": True})
                case QuestionReplied(id, ok, data):
                    reply = {"id": id, **self._questions.pop(id, {}), "open": False, "ok": ok, "reply": data}
                    self._custom("tenuto.question", id, reply)
        ahead = self._after.units - self._at.units
        if is_first and ahead > 0 and not (self._turn.is_over and ahead == 1 and self._after.sum == self._at.sum):
            self._end = LOST  # it is not the last event either, which may come again
        if not self.is_over and (self._turn.is_over or self._end or (self._turn.answers and not self._left())):
            self._finish()
        events, self._events = self._events, []
        self._growing = None
        sent = self._parts.get(self._next)
        if sent is not None and sent.is_open and not self.is_over and self._at.units >= self._after.units:
            (a, index), answers = self._next, self._turn.answers
            _, content, _, name = _EVENTS[answers[a].parts[index].value["type"]]
            self._growing = answers[a].id, index, sent, content, name
        return events

    def _appended(self, delta: TurnDelta) -> tuple[str, Json] | None:
        """Return the event for text at the end of the part where the walk is. Hot path: `receive` without the rest."""
        if self._growing is None or type(delta) is not InAnswer or type(inner := delta.delta) is not TextAdded:
            return None
        answer, index, sent, content, name = self._growing
        if delta.message_id != answer or inner.index != index:
            return None
        at, text = self._at, inner.text
        sent.text.add(text)
        at = TurnPosition(at.question, at.units + len(text), at.results, crc32(text.encode(), at.sum))
        self._at = self._last = at
        return at.text(), {"type": content, name: sent.id, "delta": text}

    def _fold(self, delta: TurnDelta) -> Iterable[Place]:
        """Apply a delta, and return the parts that may have other values."""
        self._turn.receive(delta)
        if type(delta) is not InAnswer:
            return ()
        answers, inner = self._turn.answers, delta.delta
        a = next(a for a in reversed(range(len(answers))) if answers[a].id == delta.message_id)
        if type(inner) is TextAdded and (a, inner.index) < self._next and not self._is_muted((a, inner.index)):
            self._end = REPLACED  # an earlier part has grown
        if type(inner) is PartOpened or type(inner) is PartReplaced:
            return ((a, inner.index),)
        return [(a, index) for index in range(len(inner.message.parts))] if type(inner) is MessageReplaced else ()

    def _is_muted(self, place: Place) -> bool:
        return place in self._parts and self._parts[place].is_muted

    # -- the walk over the parts ---------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Send all parts as far as they are known."""
        replaced = self._turn.replaced()
        while self._next[0] < len(self._turn.answers) and self._end is None:
            a, index = self._next
            answer = self._turn.answers[a]
            if index >= len(answer.parts):
                if a + 1 == len(self._turn.answers):
                    return
                self._next = a + 1, 0
                continue
            part, is_muted = answer.parts[index], answer.id in replaced and self._at.units >= self._after.units
            if part.value["type"] not in _EVENTS:
                self._parents.pop(answer.id, None)
                if not is_muted:
                    self._value(self._next, part.value)
            else:
                sent = self._parts.get(self._next) or self._begin(answer.id, part, is_muted=is_muted)
                self._grow(part, sent)
                if not self._has_ended(self._next) or self._end is not None:
                    return
                for type in _EVENTS[part.value["type"]][2]:
                    self._advance(1)
                    if sent.is_open:
                        self._put(type, **{_id_field(part): sent.id})
                if self._at.units >= self._after.units:  # else after the walk, so that the position does not fall
                    self._result(sent, part, f"{answer.id}.{index}")
            self._next = a, index + 1

    def _has_ended(self, place: Place) -> bool:
        """Return whether a part gets no more text, so that the next one may be sent."""
        a, index = place
        answer = self._turn.answers[a]
        if self._turn.is_over or a + 1 < len(self._turn.answers):
            return True
        value, later = answer.parts[index].value, answer.parts[index + 1 :]
        if value["type"] == "tool":
            is_whole = value.get("state") == "called" or has_result(value)
            return is_whole or any(one.value["type"] != "tool" for one in later)
        return bool(later)

    def _begin(self, answer: str, part: Part, *, is_muted: bool) -> _Begun:
        value, name, call = part.value, f"{answer}.{self._next[1]}", -1
        if value["type"] == "tool":
            id, call = value["call"], self._calls
            self._calls += 1
            parent = self._parents.setdefault(answer, name)
            start = {"toolCallId": id, "toolCallName": value["name"], "parentMessageId": parent}
            known = self._shown.inputs.get(id)
            if id in self._shown.results or self._after.results >> call & 1:
                self._at = replace(self._at, results=self._at.results | 1 << call)
        else:
            is_first = all(one.id != answer for one in self._parts.values())
            id = answer if value["type"] == "text" and is_first else name
            start, known = {"messageId": id}, self._shown.texts.get(id)
            self._parents.pop(answer, None)
            if value["type"] == "text":
                self._parents[answer] = id
        if known is not None and not part.text().startswith(known):
            self._end = REPLACED
        self._at = replace(self._at, sum=crc32(name.encode(), self._at.sum))
        self._advance(len(_EVENTS[value["type"]][0]))
        threshold = self._at.units + len(known or "")
        sent = self._parts[self._next] = _Begun(id, start, known or "", threshold, self._at.sum, is_muted, call)
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
        """Send the text that has come since, without the beginning that the reader has. The text is not kept."""
        text = "".join(part.texts)
        if not text:
            return
        part.texts, part.sent = [], 0
        if text_of(part.value):
            part.value = {**part.value, "input" if part.value["type"] == "tool" else "text": ""}
        missing = text[max(0, self._after.units - self._at.units, len(sent.known) - sent.text.length) :]
        sent.text.add(text)
        if missing and self._end is None and not sent.is_open:
            self._open(part, sent)
        self._advance(len(text), text)
        if missing and self._end is None and not sent.is_muted:
            self._put(_EVENTS[part.value["type"]][1], **{_id_field(part): sent.id, "delta": missing})

    def _again(self, place: Place, part: Part) -> None:
        """Take note of the new value of a part."""
        sent = self._parts.get(place)
        if sent is not None and not sent.is_muted:
            text = part.text()
            if not (sent.text.is_all_of(text) if place < self._next else sent.text.begins(text)):
                self._end = REPLACED
            part.texts, part.sent = [text[sent.text.length :]], 0
        elif place in self._values:
            self._value(place, part.value)

    def _result(self, sent: _Begun, part: Part, name: str) -> None:
        """Send the result of a call, if it is there and the reader lacks it."""
        if sent.call < 0 or sent.is_muted or self._at.results >> sent.call & 1 or not has_result(part.value):
            return
        self._at = replace(self._at, results=self._at.results | 1 << sent.call)
        failed: Json = {}
        if (state := part.value.get("state")) in ("error", "denied"):
            failed = {"metadata": {"state": state, "tanstack": {"state": "output-error"}}}
        fields = {"messageId": f"{name}.result", "toolCallId": sent.id, "content": _content(part.value)}
        self._emit("TOOL_CALL_RESULT", **fields, role="tool", **failed)

    def _value(self, place: Place, value: Json) -> None:
        if self._values.get(place) != value:
            self._values[place], kind = value, value["type"]
            fields = value.get("data") if kind == "data" else {name: value[name] for name in value if name != "type"}
            id = f"{self._turn.answers[place[0]].id}.{place[1]}"
            self._custom(value["name"] if kind == "data" else f"tenuto.{kind}", id, fields)

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

    def _left(self) -> list[Answer]:
        """Return the answers that count at the end."""
        replaced = self._turn.replaced()
        return [one for one in self._turn.answers if one.status != "deleted" and one.id not in replaced]

    def _finish(self) -> None:
        left = self._left()
        if (self._turn.is_deleted or self._turn.answers) and not left:
            self._end = DELETED
        default = "failed" if self._turn.state == "none" else "cancelled" if self._turn.is_cancelled else "complete"
        status, reason = self._end or ((left[-1].status, left[-1].reason) if left else (default, None))
        meta: Json = {}
        for answer in left:
            meta |= answer.meta
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
