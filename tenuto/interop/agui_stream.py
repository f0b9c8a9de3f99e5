"""A turn as the events of AG-UI.

Layer: interop.

One run of the client is one turn. A text, a reasoning and the result of a tool are messages of their own in the client.
A repeated run gets the parts of the turn that the messages of its request lack. Clients refuse an end of a run while a
message or a call is open, and content of one that is not open. `docs/interop.md` has the mapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenuto import Message
from tenuto.interop.attempts import GONE, REPLACED, End, ShownDeltas, end_of, shown_answers
from tenuto.interop.sent_text import SentText
from tenuto.routes import (
    InAnswer,
    MessageContinued,
    MessageDeleted,
    MessageFinished,
    MessageOpened,
    MessageReplaced,
    PartFinished,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    QuestionReplied,
    TextAdded,
    TurnChanged,
    TurnDelta,
    TurnStatus,
)

Json = dict[str, Any]
Place = tuple[str, int, str]  # the id of an answer, the index of a part, and the type of the part

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


@dataclass(frozen=True)
class Shown:
    """The parts of a turn that a client shows, as its request has them."""

    texts: dict[str, str] = field(default_factory=dict)  # texts and reasonings by the ids of their messages
    inputs: dict[str, str] = field(default_factory=dict)  # inputs of tool calls, by the ids of the calls
    results: frozenset[str] = frozenset()  # ids of the calls with a result


class AGUIStream:
    """The events of one turn, for a run of a client that shows `shown` of it."""

    heartbeat = b":\n\n"

    def __init__(self, thread: str, run: str, shown: Shown) -> None:
        self.headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        self.is_over = False
        self._run = {"threadId": thread, "runId": run}
        self._shown = shown
        self._events: list[Json] = [{"type": "RUN_STARTED", **self._run}]
        self._open: dict[Place, str] = {}  # ids of the texts and calls that the client waits for
        self._sent: dict[Place, SentText | None] = {}  # what the client has of a text or input; None: another one
        self._shown_deltas = ShownDeltas()
        self._values: dict[Place, Json] = {}  # last values of other parts
        self._calls: dict[Place, Json] = {}  # the start events of the calls
        self._results = set(shown.results)
        self._first_texts: dict[str, int] = {}  # for each answer the index of the text that has the answer's id
        self._parents: dict[str, str] = {}  # for each answer the message in the client that its next call belongs to
        self._questions: dict[str, Json] = {}
        self._meta: Json = {}
        self._end: End | None = None  # of the last answer

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        for delta in self._shown_deltas.of(deltas):
            if self._end in GONE:
                break
            match delta:
                case InAnswer(message_id, inner):
                    self._answer(message_id, inner)
                case QuestionAsked(command):
                    self._questions[command.id] = question = {"name": command.name, "data": command.data}
                    self._custom("tenuto.question", command.id, {"id": command.id, **question, "open": True})
                case QuestionReplied(id, ok, data):
                    reply = {"id": id, **self._questions.pop(id, {}), "open": False, "ok": ok, "reply": data}
                    self._custom("tenuto.question", id, reply)
                case TurnChanged(state):
                    self._end = end_of(delta, self._end)
                    if state in ("over", "none"):
                        self._finish(state)
        if self._end in GONE and not self.is_over:
            self._finish("over")
        body = b"".join([b"data: %b\n\n" % _encode(one) for one in self._events])
        self._events.clear()
        return body

    def messages(self, answers: Sequence[Message]) -> list[Json]:
        """Return the messages that a client builds from the events of `answers`."""
        for answer in shown_answers(answers):
            for index, part in enumerate(answer.parts):
                self._part(answer.id, index, part)
        return _folded(self._events)

    def _put(self, type: str, **fields: Any) -> None:
        self._events.append({"type": type, **fields})

    def _custom(self, name: str, id: str, value: Any) -> None:
        self._put("CUSTOM", name=name, value=value, metadata={"id": id})

    def _answer(self, message_id: str, delta: object) -> None:
        match delta:
            case TextAdded(index, kind, _, text):
                self._grow((message_id, index, kind), text)
            case MessageOpened(message):
                self._shown_deltas.open(message_id)
                self._meta = {**self._meta, **message.meta}
            case PartOpened(index, part) | PartReplaced(index, part):
                self._part(message_id, index, part)
            case MessageReplaced(message):
                self._meta = {**self._meta, **message.meta}
                for index, part in enumerate(message.parts):
                    self._part(message_id, index, part)
            case PartFinished(index):
                for place in [one for one in self._open if one[:2] == (message_id, index)]:
                    self._close(place)
            case MessageFinished(status, reason, meta):
                self._end, self._meta = (status, reason), {**self._meta, **meta}
            case MessageContinued():
                self._end = None
            case MessageDeleted():
                self._end = self._shown_deltas.delete(message_id, self._end)

    def _part(self, message_id: str, index: int, part: Json) -> None:
        place = (message_id, index, part["type"])
        if place not in self._sent and place not in self._values:
            for other in [one for one in self._open if one[0] == message_id and one[2] != "tool"]:
                self._close(other)
        match part["type"]:
            case "text" | "reasoning":
                self._text(place, part["text"])
            case "tool":
                self._tool(place, part)
            case "data":
                self._value(place, part, part["name"], part.get("data"))
            case kind:
                self._value(place, part, f"tenuto.{kind}", {name: part[name] for name in part if name != "type"})

    def _text(self, place: Place, text: str) -> None:
        if place not in self._sent:
            if place[2] == "text":
                self._first_texts.setdefault(place[0], place[1])
            id = self._id(place)
            self._sent[place] = sent = _shared(self._shown.texts.get(id, ""), text)
            self._end = REPLACED if sent is None else self._end
            self._parents.pop(place[0], None)
            if place[2] == "text":
                self._parents[place[0]] = id
        self._grow_to(place, text)

    def _tool(self, place: Place, part: Json) -> None:
        call, text, state = part["call"], part.get("input", ""), part.get("state")
        is_over = "output" in part or state in ("done", "error", "denied")
        shown = self._shown.inputs.get(call)
        if place not in self._sent:
            self._sent[place] = _shared(shown or "", text)
            parent = self._parents.setdefault(place[0], f"{place[0]}.{place[1]}")
            self._calls[place] = {"toolCallId": call, "toolCallName": part["name"], "parentMessageId": parent}
            if shown is None or (call not in self._results and not is_over):
                self._start(place)
        self._grow_to(place, text)
        if state == "called" or is_over:
            self._close(place)
        if is_over and call not in self._results:
            self._results.add(call)
            failed = {"metadata": {"state": state}} if state in ("error", "denied") else {}
            id = f"{place[0]}.{place[1]}.result"
            self._put("TOOL_CALL_RESULT", messageId=id, toolCallId=call, content=_content(part), role="tool", **failed)

    def _value(self, place: Place, part: Json, name: str, value: Any) -> None:
        self._parents.pop(place[0], None)
        if self._values.get(place) != part:
            self._values[place] = part
            self._custom(name, f"{place[0]}.{place[1]}", value)

    def _id(self, place: Place) -> str:
        """Return the id in the client of a text, a reasoning or a call."""
        if place[2] == "tool":
            return str(self._calls[place]["toolCallId"])
        is_first = place[2] == "text" and self._first_texts[place[0]] == place[1]
        return place[0] if is_first else f"{place[0]}.{place[1]}"

    def _grow_to(self, place: Place, text: str) -> None:
        sent = self._sent[place]
        if sent is not None and not sent.begins(text):
            self._end = REPLACED
        elif sent is not None:
            self._grow(place, text[sent.length :])

    def _grow(self, place: Place, text: str) -> None:
        sent = self._sent[place]
        if not text or sent is None:
            return
        if place not in self._open:
            self._start(place)
        _, content, _, name = _EVENTS[place[2]]
        self._put(content, **{name: self._open[place], "delta": text})
        sent.add(text)

    def _start(self, place: Place) -> None:
        self._open[place] = id = self._id(place)
        for type in _EVENTS[place[2]][0]:
            role = {"role": _ROLES[type]} if type in _ROLES else {}
            self._put(type, **self._calls.get(place, {"messageId": id, **role}))

    def _close(self, place: Place) -> None:
        if place in self._open:
            id = self._open.pop(place)
            for type in _EVENTS[place[2]][2]:
                self._put(type, **{_EVENTS[place[2]][3]: id})

    def _finish(self, state: str) -> None:
        for place in list(self._open):
            self._close(place)
        status, reason = self._end or ("complete" if state == "over" else "failed", None)
        if status == "complete":
            self._put("RUN_FINISHED", **self._run, **({"result": self._meta} if self._meta else {}))
        else:
            message = reason or ("no agent serves this thread" if state == "none" else status)
            self._put("RUN_ERROR", message=message, code=status)
        self.is_over = True


def _shared(shown: str, text: str) -> SentText | None:
    """Return the beginning of `text` that the client shows; None if it shows another text."""
    return SentText(shown) if text.startswith(shown) else None


def _content(part: Json) -> str:
    """Return the result of a call as text."""
    output = part.get("output", part.get("state"))
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the messages of a client that has run `turns`, without the answers of turns that wait or run."""
    messages: list[Json] = []
    for turn in turns:
        if turn.message is not None:
            messages.append({"id": turn.message.id, "role": "user", "content": _question_content(turn.message.parts)})
        if turn.state == "over":
            messages += AGUIStream("", "", Shown()).messages(turn.answers)
    return messages


def _question_content(parts: Sequence[Json]) -> str | list[Json]:
    """Return the content of the user's message in the client."""
    if all(one["type"] == "text" for one in parts):
        return "\n".join(one["text"] for one in parts)
    content: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": text}:
                content.append({"type": "text", "text": text})
            case {"type": "file", "url": str(url)}:
                media_type = str(part.get("mediaType", ""))
                kind = media_type.partition("/")[0]
                source = {
                    "type": "url",
                    "value": url,
                    **({"mimeType": media_type} if media_type[-2:] not in ("", "/*") else {}),
                }
                content.append({"type": kind if kind in ("image", "audio", "video") else "document", "source": source})
    return content


def _folded(events: Iterable[Json]) -> list[Json]:
    """Return the messages that a client builds from `events`."""
    messages: dict[str, Json] = {}
    calls: dict[str, Json] = {}
    for event in events:
        match event:
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": id, "role": role}:
                messages.setdefault(id, {"id": id, "role": role})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": id, "delta": text}:
                messages[id]["content"] = messages[id].get("content", "") + text
            case {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": parent}:
                calls[id] = {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
                owner = messages.setdefault(parent, {"id": parent, "role": "assistant"})
                owner.setdefault("toolCalls", []).append(calls[id])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": text}:
                calls[id]["function"]["arguments"] += text
            case {"type": "TOOL_CALL_RESULT", "messageId": id}:
                names = ("toolCallId", "role", "content", "metadata")
                messages[id] = {"id": id, **{name: event[name] for name in names if name in event}}
    return list(messages.values())
