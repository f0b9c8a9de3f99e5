"""One fold of a turn's deltas: its answers with their parts and texts, its open questions and its state.

Layer: interop.

A `TurnFold` has the turn as it is after the deltas that it received. Parts keep the pieces in which their text arrived,
so that a wire format sends each piece once. `SentText` knows what a reader has of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from msgspec.structs import replace

from tenuto import Message
from tenuto.routes import (
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
    TurnStatus,
    newest_branch,
)

End = tuple[str, str | None]  # status and reason
# The text of a client is gone, and a stream can take no text back: it ends at once.
REPLACED: End = ("replaced", "the answer was replaced by another text; load the messages again")
DELETED: End = ("deleted", "the answer was deleted")
GONE = (REPLACED, DELETED)


def shown_answers(answers: Sequence[Message]) -> list[Message]:
    """Return the answers of a turn without interrupted attempts that another attempt has replaced."""
    return newest_branch(answers) if any(one.status == "interrupted" for one in answers) else list(answers)


class ShownDeltas:
    """Leaves out the attempts that were replaced when a stream began, except that each was opened: the page has its id.

    An attempt that is replaced later stays, because the page has its text.
    """

    def __init__(self) -> None:
        self.is_first = True  # the deltas are the turn as it is, whose calls may have their replies already
        self._replaced: set[str] | None = None
        self._left: set[str] = set()  # shown answers that were not deleted

    def open(self, id: str) -> None:
        """Take note of an answer."""
        if id not in (self._replaced or ()):
            self._left.add(id)

    def delete(self, id: str, end: End | None) -> End | None:
        """Return the end of the turn after the deletion of an answer: `end` if another answer is left."""
        self._left.discard(id)
        return end if self._left else DELETED

    def of(self, deltas: Sequence[TurnDelta]) -> Sequence[TurnDelta]:
        """Return the deltas that the client shows."""
        self.is_first = self._replaced is None
        if self._replaced is None:
            opened = [one.delta.message for one in deltas if type(one) is InAnswer and type(one.delta) is MessageOpened]
            self._replaced = {one.id for one in opened} - {one.id for one in shown_answers(opened)}
        if not self._replaced:
            return deltas
        return [
            one
            for one in deltas
            if type(one) is not InAnswer or type(one.delta) is MessageOpened or one.message_id not in self._replaced
        ]


def end_of(change: TurnChanged, last: End | None) -> End | None:
    """Return the end of a turn after `change`, whose last answer ended as `last`; None if no answer has ended."""
    if change.state == "over" and change.is_deleted:
        return DELETED
    return ("cancelled", None) if last is None and change.is_cancelled else last


class SentText:
    """The length and the checksum of a text that was sent; the text itself is not kept."""

    __slots__ = ("_sum", "length")

    def __init__(self, text: str = "") -> None:
        """Begin with `text`, which the client has."""
        self.length = 0  # code points
        self._sum = 0
        self.add(text)

    def add(self, text: str) -> None:
        """Note that `text` was sent after the rest."""
        self.length += len(text)
        self._sum = crc32(text.encode(), self._sum)

    def begins(self, text: str) -> bool:
        """Return whether `text` begins with the text that was sent."""
        return len(text) >= self.length and crc32(text[: self.length].encode()) == self._sum

    def is_all_of(self, text: str) -> bool:
        """Return whether `text` is the text that was sent."""
        return len(text) == self.length and self.begins(text)


Json = dict[str, Any]


@dataclass
class Part:
    """A part of an answer, with its text in the pieces in which it arrived."""

    value: Json
    texts: list[str] = field(default_factory=list)
    length: int = 0  # code points of `texts`
    sent: int = 0  # number of `texts` that the walk has sent

    def text(self) -> str:
        """Return the text of a text or a reasoning, or the input of a tool."""
        if len(self.texts) > 1:
            self.texts[: self.sent] = ["".join(self.texts[: self.sent])] if self.sent else []
            self.sent = min(self.sent, 1)
        return "".join(self.texts)

    def add(self, text: str) -> None:
        """Add text at the end."""
        self.texts.append(text)
        self.length += len(text)

    def replace(self, value: Json) -> None:
        """Take a new value. Text already sent cannot be withdrawn if the new value does not begin with it."""
        before, after = self.text(), text_of(value)
        self.value, self.length = value, len(after)
        sent_chars = len("".join(self.texts[: self.sent]))
        if after.startswith(before):
            self.texts = [before[:sent_chars], after[sent_chars:]]
            self.sent = 1
        else:
            self.texts, self.sent = [after], 1 if sent_chars else 0


@dataclass
class Answer:
    """One answer of the turn."""

    head: Message  # as it was opened, without parts
    parts: list[Part] = field(default_factory=list)
    status: str = "streaming"
    reason: str | None = None
    meta: Json = field(default_factory=dict)
    is_rewritten: bool = False  # a part was removed, or has another type now

    @property
    def id(self) -> str:
        """Return the id of the message."""
        return self.head.id

    def message(self) -> Message:
        """Return the answer with its present status and parts."""
        return replace(self.head, status=self.status, parts=[part.value for part in self.parts])


def text_of(part: Json) -> str:
    """Return the text of a part that grows; empty for other parts."""
    return str(part.get("input" if part["type"] == "tool" else "text", ""))


def part_of(value: Json) -> Part:
    """Return a part of which no text was sent."""
    text = text_of(value)
    return Part(value, [text] if text else [], len(text))


def has_result(part: Json) -> bool:
    """Return whether a tool part has its result."""
    return "output" in part or part.get("state") in ("done", "error", "denied")


class TurnFold:
    """The turn as it is."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []  # in order, also deleted ones
        self.state: TurnState = "waiting"
        self.is_cancelled = self.is_deleted = False
        self.questions: dict[str, tuple[str, Any]] = {}  # open questions of the agent, by id: name and data
        self._by_id: dict[str, Answer] = {}

    @property
    def is_over(self) -> bool:
        """Return whether no answer changes any more."""
        return self.state in ("over", "none")

    def replaced(self) -> set[str]:
        """Return the ids of the answers that a later attempt has replaced (`attempts`)."""
        if all(one.status != "interrupted" for one in self.answers):
            return set()
        left = [one.message() for one in self.answers if one.status != "deleted"]
        return {one.id for one in left} - {one.id for one in shown_answers(left)}

    def receive(self, delta: TurnDelta) -> None:
        """Apply a delta of the turn."""
        match delta:
            case InAnswer(message_id, inner):
                if type(inner) is MessageOpened:
                    self._by_id[message_id] = Answer(inner.message, meta=inner.message.meta)
                    self.answers.append(self._by_id[message_id])
                self._fold_answer(self._by_id[message_id], inner)
            case QuestionAsked(command):
                self.questions[command.id] = command.name, command.data
            case QuestionReplied(id):
                self.questions.pop(id, None)
            case TurnChanged(state, is_cancelled, is_deleted):
                self.state, self.is_cancelled, self.is_deleted = state, is_cancelled, is_deleted

    def _fold_answer(self, answer: Answer, delta: object) -> None:
        match delta:
            case TextAdded(index, _, _, text):
                if index < len(answer.parts):
                    answer.parts[index].add(text)
            case PartOpened(index, value) | PartReplaced(index, value):
                self._put_part(answer, index, value)
            case MessageReplaced(message):
                answer.meta = message.meta
                answer.is_rewritten = answer.is_rewritten or len(message.parts) < len(answer.parts)
                for index, value in enumerate(message.parts):
                    self._put_part(answer, index, value)
            case MessageFinished(status, reason, meta):
                answer.status, answer.reason, answer.meta = status, reason, {**answer.meta, **meta}
            case MessageContinued():
                answer.status = "streaming"
            case MessageDeleted():
                answer.status = "deleted"

    def _put_part(self, answer: Answer, index: int, value: Json) -> None:
        if index < len(answer.parts):
            if answer.parts[index].value["type"] == value["type"]:
                answer.parts[index].replace(value)
            else:
                answer.is_rewritten = True
        else:
            answer.parts.append(part_of(value))


def deltas_of(status: TurnStatus) -> list[TurnDelta]:
    """Return the deltas that bring a fold to a turn as it is in `status`."""
    deltas: list[TurnDelta] = []
    for answer in status.answers:
        deltas.append(InAnswer(answer.id, MessageOpened(replace(answer, parts=[]))))
        deltas += [InAnswer(answer.id, PartOpened(index, part)) for index, part in enumerate(answer.parts)]
        if answer.status != "streaming":
            deltas.append(InAnswer(answer.id, MessageFinished(answer.status, answer.reason, answer.meta)))
    deltas += [QuestionAsked(command) for command in status.questions]
    return [*deltas, TurnChanged(status.state, status.is_cancelled, status.is_deleted)]
