"""One fold of a turn's deltas: its answers with their parts and texts, its questions and its state.

Layer: interop.

Each adapter is a format over a `TurnFold`, which has the turn as it is after the deltas that it received. A part hands
out its new text once (`Part.take`), and knows whether the text that was handed out has been replaced since, or counts
no longer. The parts of a superseded attempt leave their answer; parts that come after it are other parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any
from zlib import crc32

import msgspec
from msgspec.structs import replace

from tenuto import Message
from tenuto.routes import (
    ATTEMPT,
    InAnswer,
    MessageContinued,
    MessageDeleted,
    MessageFinished,
    MessageOpened,
    MessageReplaced,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    QuestionReplied,
    TextAdded,
    TurnChanged,
    TurnDelta,
    TurnState,
    app_meta,
    newest_branch,
)

encode = msgspec.json.Encoder().encode
Json = dict[str, Any]
Place = tuple[int, int]  # the number of an answer in its turn, and the index of a part
End = tuple[str, str | None]  # status and reason
LEVELS = 60  # of nested values in an input; parts may have 64, and `json.dumps` ends at about 1,000
_TEXT_FIELDS = {"text": "text", "reasoning": "text", "tool": "input"}


class SentText:
    """The length and the checksum of a text that was sent; the text itself is not kept."""

    __slots__ = ("_sum", "length")

    def __init__(self, text: str = "") -> None:
        """Begin with `text`, which the client has."""
        self.length = len(text)  # code points
        self._sum = crc32(text.encode())

    def add(self, text: str) -> None:
        """Note that `text` was sent after the rest."""
        self.length += len(text)
        self._sum = crc32(text.encode(), self._sum)

    def begins(self, text: str) -> bool:
        """Return whether `text` begins with the text that was sent."""
        return len(text) >= self.length and crc32(text[: self.length].encode()) == self._sum


@dataclass(eq=False, slots=True)
class Part:
    """A part of an answer. Its text is that of a text or a reasoning, or the input of a tool."""

    answer: Answer
    place: Place
    value: Json  # as it was stored last; without its text once that was taken
    new: list[str]  # the text that was not taken, in pieces
    kept: list[str] | None  # the text that was taken; None if the fold keeps none
    attempt: int = 0  # number of superseded attempts before it in its answer
    sent: SentText = field(default_factory=SentText)  # the text that was taken
    is_replaced: bool = False  # the stored text did not begin with the text that was taken
    is_taken: bool = False  # a reader may have it
    is_put: bool = True  # a value was stored since the text was taken last; False: no more than text was added

    @property
    def name(self) -> str:
        """Return an id of the part, the same for each reader."""
        return f"{self.answer.id}.{self.place[1]}{f'.{self.attempt}' if self.attempt else ''}"

    @property
    def is_superseded(self) -> bool:
        """Return whether the part belongs to an attempt that counts no longer."""
        parts, index = self.answer.parts, self.place[1]
        return self.answer.is_replaced or index >= len(parts) or parts[index] is not self

    def take(self) -> str:
        """Return the text that was not taken yet, and take it."""
        text, self.new, self.is_put, self.is_taken = "".join(self.new), [], False, True
        self.sent.add(text)
        if self.kept is not None:
            self.kept.append(text)
        elif text_of(self.value):
            self.value = {**self.value, _TEXT_FIELDS[self.value["type"]]: ""}  # a long text is in memory once
        return text

    def text(self) -> str:
        """Return the whole text, if the fold keeps it or none of it was taken."""
        if self.kept is not None:
            self.kept = ["".join(self.kept)]
        return "".join([*(self.kept or ()), *self.new])

    def restart(self) -> None:
        """Let `take` return the text from its beginning. A value was put just now, which has the taken text."""
        self.sent, self.new = SentText(), [text_of(self.value)[: self.sent.length], *self.new]

    def put(self, value: Json) -> None:
        """Store a new value. If its text does not begin with the taken text, the part `is_replaced`: no text is new."""
        self.value, self.is_put, text = value, True, text_of(value)
        if self.sent.begins(text):
            self.new = [text[self.sent.length :]] if len(text) > self.sent.length else []
        else:
            self.is_replaced, self.new, self.sent = True, [], SentText(text)
            self.kept = self.kept if self.kept is None else [text]


@dataclass(eq=False, slots=True)
class Answer:
    """One answer of the turn."""

    id: str  # of the message
    head: Message  # as it was opened, without parts
    parts: list[Part] = field(default_factory=list)
    status: str = "streaming"
    reason: str | None = None
    meta: Json = field(default_factory=dict)
    ended_at: int = 0  # time of its last end, in ms
    is_replaced: bool = False  # the next attempt could not take it over, and has another answer in its place
    is_rewritten: bool = False  # a part that grows was removed, or got another type after a reader had it

    def attempts_in(self, count: int) -> int:
        """Return the number of superseded attempts among the first `count` parts."""
        return sum(one.value["type"] == ATTEMPT for one in self.parts[:count])


def text_of(part: Json) -> str:
    """Return the text of a part that grows; empty for other parts."""
    field = _TEXT_FIELDS.get(part["type"])
    return str(part.get(field, "")) if field else ""


def call_of(data: object) -> str:
    """Return the id of the call that a question with `data` is about, or no text."""
    call = data.get("call") if isinstance(data, dict) else None
    return call if isinstance(call, str) else ""


def earlier_parts(parts: list[Json]) -> list[tuple[int, list[Json]]]:
    """Return for each superseded attempt, oldest first, its first index and the message's parts as it left them.

    Of an attempt whose contents were dropped no part is left.
    """
    found: list[tuple[int, list[Json]]] = []
    while places := [index for index, one in enumerate(parts) if one["type"] == ATTEMPT]:  # undo the last one
        attempt, after, parts = parts[places[-1]], parts[places[-1] + 1 :], parts[: places[-1]]
        stood_at = attempt.get("indexes") or [len(parts) + number for number in range(len(attempt["parts"]))]
        found.append((stood_at[0] if stood_at else len(parts), parts))  # which get those of the attempt below
        beside = zip(attempt.get("beside", ()), after, strict=False)  # the parts that stay, which stand behind it now
        for index, one in sorted([*zip(stood_at, attempt["parts"], strict=False), *beside], key=itemgetter(0)):
            parts.insert(index, one)
    return found[::-1]


class TurnFold:
    """The turn as it is. With `keeps_text` its parts keep the text that was taken."""

    def __init__(self, *, keeps_text: bool = False) -> None:
        self.answers: list[Answer] = []  # in order, also deleted ones
        self.state: TurnState = "waiting"
        self.is_cancelled = self.is_deleted = False
        self.questions: dict[str, QuestionAsked] = {}  # of the agent, by id; also those with a reply
        self.open: list[str] = []  # ids of the questions without a reply
        self._replies: dict[str, QuestionReplied] = {}
        self.place: Place = (0, 0)  # of the part that `walk` yields next
        self._keeps_text = keeps_text
        self._by_id: dict[str, Answer] = {}  # the answers

    @property
    def is_over(self) -> bool:
        """Return whether no answer changes any more."""
        return self.state in ("over", "none")

    @property
    def is_rewritten(self) -> bool:
        """Return whether an answer that counts has lost a part that a reader may have (`Answer.is_rewritten`)."""
        return any(one.is_rewritten for one in self.counted())

    def attempts(self, before: int | None = None) -> int:
        """Return the number of superseded attempts, in all or in the first `before` answers. Each took back text."""
        return sum(one.attempts_in(len(one.parts)) + one.is_replaced for one in self.answers[:before])

    def counted(self) -> list[Answer]:
        """Return the answers that count: those that were neither deleted nor replaced by a later attempt."""
        return [one for one in self.answers if one.status != "deleted" and not one.is_replaced]

    @property
    def is_gone(self) -> bool:
        """Return whether the turn had answers, and each was deleted."""
        return bool(self.answers) and not self.counted()

    def end(self) -> End:
        """Return the end of a turn that is over."""
        if left := self.counted():
            return left[-1].status, left[-1].reason
        if self.is_deleted or self.answers:
            return "deleted", "the answer was deleted"
        if self.state == "none":
            return "failed", "no agent serves this chat"
        return "cancelled" if self.is_cancelled else "complete", None

    def meta(self) -> Json:
        """Return the `meta` of all answers that count, without Tenuto's own."""
        return {name: value for one in self.counted() for name, value in app_meta(one.meta).items()}

    def question(self, id: str) -> Json:
        """Return a question, and its reply, for a client that has no form of its own for it."""
        command, reply = self.questions[id].command, self._replies.get(id)
        value: Json = {"name": command.name, "data": command.data, "open": reply is None}
        return value if reply is None else {**value, "ok": reply.ok, "reply": reply.data}

    def walk(self, *, is_last: bool = False) -> Iterator[Part]:
        """Yield the part at the place of the walk, and each time that another is asked for, the one after it.

        Parts that count no longer are left out. The walk ends at an answer that streams, unless this walk `is_last`.
        """
        while self.place[0] < len(self.answers):
            a, index = self.place
            if index < len(self.answers[a].parts):
                part = self.answers[a].parts[index]
                if part.value["type"] != ATTEMPT and not part.answer.is_replaced:
                    yield part
                self.place = a, index + 1
            elif a + 1 < len(self.answers) and (is_last or self._is_answer_over(self.answers[a])):
                self.place = a + 1, 0
            else:
                return

    def _is_answer_over(self, answer: Answer) -> bool:
        """Return whether an answer gets no more content, unless it is continued."""
        return self.is_over or answer.is_replaced or answer.status != "streaming"

    def has_ended(self, part: Part, *, is_whole: bool) -> bool:
        """Return whether a part gets no more text, so that a walk goes on to the next one.

        A call ends when it `is_whole` or a text or reasoning follows; these when one or a call follows, but no source.
        """
        is_passed = part.place[0] + 1 < len(self.answers) and self._is_answer_over(part.answer)
        if self.is_over or part.is_superseded or is_passed:
            return True
        is_call, later = part.value["type"] == "tool", part.answer.parts[part.place[1] + 1 :]
        ends = _TEXT_FIELDS.keys() - ({"tool"} if is_call else ())
        return (is_call and is_whole) or any(one.value["type"] in ends for one in later)

    def sole_text(self, deltas: Sequence[TurnDelta]) -> tuple[Part, str] | None:
        """Return the part and its new text if `deltas` only add text to one part. Hot path: nearly all deltas do.

        The fold has not received it then. A caller that has taken all text before sends it, and adds it to `Part.sent`.
        """
        if len(deltas) != 1 or type(only := deltas[0]) is not InAnswer or type(added := only.delta) is not TextAdded:
            return None
        answer = self._by_id.get(only.message_id)
        return (answer.parts[added.index], added.text) if answer and added.index < len(answer.parts) else None

    def receive_all(self, deltas: Sequence[TurnDelta]) -> tuple[list[Part], list[str]]:
        """Apply `deltas`, and return the parts, in order, and the ids of the questions that they have changed."""
        parts = dict.fromkeys(part for delta in deltas for part in self.receive(delta))
        asked = [one.command.id for one in deltas if isinstance(one, QuestionAsked)]
        replied = [one.id for one in deltas if isinstance(one, QuestionReplied)]
        return sorted(parts, key=lambda one: one.place), list(dict.fromkeys([*asked, *replied]))

    def receive(self, delta: TurnDelta) -> list[Part]:
        """Apply a delta of the turn, and return the parts that it has changed."""
        match delta:
            case InAnswer(message_id, MessageOpened(message)):
                self._by_id[message_id] = Answer(message_id, message, meta=message.meta)
                self.answers.append(self._by_id[message_id])
                self._note_replaced()
            case InAnswer(message_id, inner):
                return self._fold_answer(self._by_id[message_id], inner)
            case QuestionAsked(command):
                self.questions[command.id] = delta
                self.open.append(command.id)
            case QuestionReplied(id):
                self._replies[id], self.open = delta, [one for one in self.open if one != id]
            case TurnChanged(state, is_cancelled, is_deleted):
                self.state, self.is_cancelled, self.is_deleted = state, is_cancelled, is_deleted
        return []

    def _note_replaced(self) -> None:
        """Note which answers a later attempt has replaced, as histories leave them out."""
        if all(one.status != "interrupted" for one in self.answers):
            return  # a later attempt replaces only these
        left = [one for one in self.answers if one.status != "deleted"]
        # with their statuses and parts, because an empty failure replaces no other answer
        heads = [replace(one.head, status=one.status, parts=[part.value for part in one.parts]) for one in left]
        shown = {one.id for one in newest_branch(heads)}
        for one in left:
            one.is_replaced = one.is_replaced or one.id not in shown

    def _fold_answer(self, answer: Answer, delta: object) -> list[Part]:  # the parts that it has changed
        match delta:
            case TextAdded(index, _, _, text) if index < len(answer.parts):
                part = answer.parts[index]
                part.new.append(text)
                return [part]
            case PartOpened(index, value) | PartReplaced(index, value):
                return [self._put(answer, index, value)]
            case MessageReplaced(message):
                answer.meta = message.meta
                changed = [self._put(answer, index, value, is_whole=True) for index, value in enumerate(message.parts)]
                gone = answer.parts[len(message.parts) :]
                answer.is_rewritten = answer.is_rewritten or any(one.value["type"] in _TEXT_FIELDS for one in gone)
                return changed
            case MessageFinished(status, reason, meta, at_ms):
                answer.status, answer.reason, answer.meta = status, reason, {**answer.meta, **meta}
                answer.ended_at = at_ms
                self._note_replaced()
            case MessageContinued():
                answer.status = "streaming"
            case MessageDeleted():
                answer.status = "deleted"
        return []

    def _put(self, answer: Answer, index: int, value: Json, *, is_whole: bool = False) -> Part:
        """Take a part. If all of the message comes (`is_whole`), it may stand behind further attempts.

        Then the known parts from there on count no longer.
        """
        number, known = self.answers.index(answer), answer.parts[index] if index < len(answer.parts) else None
        attempt, is_attempt = answer.attempts_in(index), value["type"] == ATTEMPT
        if is_whole and known is not None and (known.attempt, known.value["type"] == ATTEMPT) != (attempt, is_attempt):
            del answer.parts[index:]
            known = None
            if self.place[0] == number:  # the walk goes back to the parts in their place
                self.place = min(self.place, (number, index))
        value = {"type": ATTEMPT} if is_attempt else value  # a stream does not keep what counts no longer
        if known is not None:
            is_same = known.value["type"] == value["type"]
            answer.is_rewritten = answer.is_rewritten or (known.is_taken and not is_same)
            if is_same or not self._keeps_text:  # else a part keeps the type that was sent
                known.put(value)
            return known
        text, index = text_of(value), min(index, len(answer.parts))
        part = Part(answer, (number, index), value, [text] if text else [], [] if self._keeps_text else None, attempt)
        answer.parts[index : index + 1] = [part]
        return part


class EventStream:
    """Server-Sent Events for one reader of a turn (`TurnFormat`). Each adapter's format is a class below this one."""

    heartbeat = b":\n\n"
    # The text of a client is gone, and a stream can take no text back: it ends at once.
    REPLACED: End = ("replaced", "the answer was replaced by another text; load the messages again")
    RESTARTED: End = ("replaced", "the answer begins anew; resume the stream, or load the messages again")

    def __init__(self, *, keeps_text: bool = False) -> None:
        self.headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        self.is_over = False  # the stream is complete, although the turn may go on
        self.ended: End | None = None  # the stream ends at once, whatever the turn does
        self._turn = TurnFold(keeps_text=keeps_text)
        self._events: list[Any] = []  # events of the format that were not taken yet

    def _taken(self) -> list[Any]:
        events, self._events = self._events, []
        return events


def parsed(text: str) -> tuple[Any, bool]:
    """Return the value of a tool's input, and whether the input is JSON. Other input is the text itself.

    Input that no response can carry, such as half a surrogate pair, is no JSON either.
    """
    with suppress(ValueError, RecursionError):
        value = msgspec.json.decode(text)
        if _levels(value) <= LEVELS:
            return value, True
    return text or {}, not text  # a call without arguments may have no input: as JSON, an empty object


def _levels(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)
