"""Deltas: the progress of one message or one turn, as plain data that any wire format can be made of.

Layer: core.

A `MessageProgress` follows one message for one reader, a `TurnProgress` all answers of a turn. It knows how much of
each part the reader was sent, takes the message as it is and then the channel's events, and yields the deltas that
bring the reader up to date. A framer (`transports.streams`) turns deltas into the bytes of its format. Folding the
deltas again gives the message (`tests/core/test_deltas.py`). New kinds of deltas are welcome: framers leave out the
kinds that they do not know.

The progress holds lengths and no text, so a reader costs the same for every length of the message. It therefore cannot
tell a text that grew from a text that was replaced, nor a part from one of another type: a whole message that arrives
later is always `MessageReplaced`. One with more superseded attempts than before takes text back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.events import (
    ChannelAttached,
    CommandReply,
    CommandSent,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    ServerEvent,
)
from tenuto.core.model import APPENDABLE, ATTEMPT, Command, Json, Message, Part
from tenuto.core.state import ClaimState, MessageState
from tenuto.core.turns import CANCEL, REGENERATE, STEER

# Types of parts whose text grows by `TextAdded`. The input of a tool is sent again as a whole to a reader that resumes.
COUNTED = frozenset(("text", "reasoning"))
ALL_SENT = 2**53  # stands for the length of a part that the reader already has completely


class Sent(NamedTuple):
    """A reader's position in one message: the code points sent of each part, and whether the end was sent."""

    lengths: Sequence[int] = ()
    is_finished: bool = False
    attempts: int = 0  # number of superseded attempts among the parts; -1: the message may lack text that was sent


class MessageOpened(Struct, frozen=True):
    """The first delta for this reader: the message without its parts, which follow."""

    message: Message


class PartOpened(Struct, frozen=True):
    """A new part for the reader.

    `sent` is the number of code points that it has of a removed part with the same index.
    """

    index: int
    part: Part
    sent: int = 0


class TextAdded(Struct, frozen=True):
    """More text for a part of type `kind`; the reader has `at` code points of it."""

    index: int
    kind: str
    at: int
    text: str


class PartReplaced(Struct, frozen=True):
    """A new value of a part; the reader had `sent` code points of the old one."""

    index: int
    part: Part
    sent: int


class PartFinished(Struct, frozen=True):
    """The message has ended, so no more text comes for this part."""

    index: int


class MessageReplaced(Struct, frozen=True):
    """The whole message, which replaces all that was sent; `sent` has the code points sent of each earlier part."""

    message: Message
    sent: Sequence[int]
    is_superseded: bool = False  # True: text that was sent counts no longer, so the reader begins anew; `sent` is empty


class MessageFinished(Struct, frozen=True):
    """The end of the message, with its final status and meta, and its time in ms."""

    status: str
    reason: str | None
    meta: dict[str, Json]
    updated_at: int = 0


class MessageContinued(Struct, frozen=True):
    """A message that had ended streams again, because another writer has taken it over."""


class MessageDeleted(Struct, frozen=True):
    """The message was deleted."""


Delta = (
    MessageOpened
    | PartOpened
    | TextAdded
    | PartReplaced
    | PartFinished
    | MessageReplaced
    | MessageFinished
    | MessageContinued
    | MessageDeleted
)


class MessageProgress:
    """The progress of one reader in one message. Call `begin` once, then `receive` for each batch; it does no I/O."""

    __slots__ = ("_attempts", "_id", "_inputs", "_kinds", "_lengths", "_was_finished", "is_broken", "status")

    def __init__(self, message_id: str, sent: Sent | None = None) -> None:
        self._id = message_id
        sent = sent or Sent()
        self._lengths = list(sent.lengths)  # the length of a removed part stays
        self._kinds: list[str] = []  # types of the parts that the message has now
        self._inputs: dict[int, int] = {}  # for each tool part the length of its input
        self._attempts = sent.attempts  # number of superseded attempts among the parts
        self._was_finished = sent.is_finished
        self.status: str | None = None  # final status of the message, or `deleted`; None while it streams
        self.is_broken = False  # True if events are missing, so that the reader has to begin again

    def sent(self) -> Sent:
        """Return the reader's position after the deltas that were returned last."""
        return Sent(self._lengths, self.status is not None, self._attempts)

    def begin(self, message: Message) -> list[Delta]:
        """Return the deltas that bring the reader to `message`."""
        sent_parts, attempts = len(self._lengths), _attempts_in(message)
        deltas: list[Delta] = []
        if not sent_parts and self._attempts >= 0:
            deltas.append(MessageOpened(replace(message, parts=[])))
            self._attempts = attempts
            is_whole = attempts > 0  # as to a reader that was there when an attempt was superseded
        else:  # fewer parts than the reader was sent, or other ones: parts were removed or lost meanwhile
            is_whole = sent_parts > len(message.parts) or attempts != self._attempts
        if is_whole:
            deltas.append(self._replace(message))
        else:
            for index, part in enumerate(message.parts):
                deltas += self._continue(index, part) if index < sent_parts else self._put(index, part)
        return deltas + self._change_status(message, was_finished=self._was_finished)

    def receive(self, events: Sequence[ServerEvent]) -> list[Delta]:
        """Return the deltas of a batch of the channel's events; events of other messages have none."""
        deltas: list[Delta] = []
        for event in events:
            match event:
                case MessageAppend() if event.id == self._id:
                    deltas += self.append(event)
                case MessagePart() if event.id == self._id:
                    deltas += self._put(event.index, event.part)
                case MessageCreate() | MessageUpdate() if event.message.id == self._id:
                    was_finished = self.status is not None
                    deltas.append(self._replace(event.message))
                    deltas += self._change_status(event.message, was_finished=was_finished)
                case MessageFinish() if event.id == self._id:
                    deltas += self._finish(event)
                case MessageTakeover() if event.id == self._id:
                    self.status = None
                    deltas.append(MessageContinued())
                case MessageDelete() if event.id == self._id:
                    self.status = "deleted"
                    deltas.append(MessageDeleted())
                case ChannelAttached():
                    self.is_broken = self.is_broken or not event.resumed
        return deltas

    def append(self, event: MessageAppend) -> list[Delta]:
        """Return the delta of an append to this message, if it has one. Hot path: `receive` without the other kinds."""
        index, at = event.part, event.at
        kind = self._kinds[index] if index < len(self._kinds) else ""
        if kind not in APPENDABLE:  # an unknown part, or one without growing text
            return []
        lengths = self._lengths if kind in COUNTED else self._inputs
        known = lengths[index]
        if at > known:  # text before it is missing
            self.is_broken = True
            return []
        text = event.text[known - at :]
        if not text:
            return []
        lengths[index] = known + len(text)
        return [TextAdded(index, kind, known, text)]

    def _put(self, index: int, part: Part) -> list[Delta]:
        kind = PartOpened if index >= len(self._kinds) else PartReplaced
        return [kind(index, part, self._mark_sent(index, part))]

    def _continue(self, index: int, part: Part) -> list[Delta]:
        """Return the delta with the rest of a part, for a reader that resumes and has the part's beginning."""
        kind, sent = part["type"], self._mark_sent(index, part)
        if kind in COUNTED and (sent == ALL_SENT or sent <= len(part["text"])):
            rest = part["text"][sent:]
            return [TextAdded(index, kind, sent, rest)] if rest else []
        return [PartReplaced(index, part, sent)]

    def _replace(self, message: Message) -> MessageReplaced:
        """Record `message` as sent in place of all before; a further superseded attempt takes back the sent text."""
        attempts, before = _attempts_in(message), self._attempts
        if attempts > before:
            self._lengths = []  # the text that the reader has is superseded
        sent, self._attempts = tuple(self._lengths), attempts
        del self._kinds[len(message.parts) :]
        for index, part in enumerate(message.parts):
            self._mark_sent(index, part)
        return MessageReplaced(message, sent, is_superseded=attempts > before)

    def _mark_sent(self, index: int, part: Part) -> int:
        """Record that the reader has the whole `part`. Return the code points that it had of an earlier one."""
        kind = part["type"]
        self._kinds += [""] * (index + 1 - len(self._kinds))
        self._lengths += [0] * (index + 1 - len(self._lengths))
        self._kinds[index] = kind
        before, self._lengths[index] = self._lengths[index], len(part["text"]) if kind in COUNTED else 0
        if kind == "tool":
            self._inputs[index] = len(part.get("input", ""))
        return before

    def _change_status(self, message: Message, *, was_finished: bool) -> list[Delta]:
        if message.status != "streaming":
            return self._finish(message)
        self.status = None
        return [MessageContinued()] if was_finished else []

    def _finish(self, end: Message | MessageFinish) -> list[Delta]:
        self.status = end.status
        finished = [PartFinished(index) for index, kind in enumerate(self._kinds) if kind in APPENDABLE]
        return [*finished, MessageFinished(end.status, end.reason, end.meta, end.updated_at)]


def _attempts_in(message: Message) -> int:
    return sum(part["type"] == ATTEMPT for part in message.parts)


_FOR_AGENTS = frozenset((CANCEL.name, STEER.name, REGENERATE.name))  # all other commands are questions to people
# `none`: no agent serves the channel, and the app has not begun an answer
TurnState = Literal["none", "waiting", "running", "over"]


class TurnStatus(Struct, frozen=True, kw_only=True):
    """A turn as it is: its user message, its answers in order, and the questions of the agent without a reply.

    Of a question that was answered again (`regenerate`) the answers are those of the last round. A turn that is being
    cancelled has no questions: a reply to them would have no effect.
    """

    # None for an answer to no message, or to one that does not exist: in `Access.conversation` and `Access.open_turns`
    message: Message | None
    state: TurnState
    answers: list[Message]
    questions: list[Command]
    cursor: str
    is_cancelled: bool = False  # the turn is over because it was cancelled, perhaps before its first answer
    is_deleted: bool = False  # the turn had answers, and each one was deleted
    round: str = ""  # the epoch, a colon, and the number of times that the message was answered again (`regenerate`)


class InAnswer(Struct, frozen=True):
    """A delta of one answer of the turn."""

    message_id: str
    delta: Delta


class QuestionAsked(Struct, frozen=True):
    """The agent asks the people something (`Turn.ask`)."""

    command: Command


class QuestionReplied(Struct, frozen=True):
    """The one reply to a question, by a person, or by the server when it expired."""

    id: str
    ok: bool
    data: Json
    error: Json


class TurnChanged(Struct, frozen=True):
    """The new state of the turn. After `over` no delta follows."""

    state: TurnState
    is_cancelled: bool = False
    is_deleted: bool = False
    round: str = ""  # that of the `TurnStatus` with which a reader begins; the reader gets no other one


TurnDelta = InAnswer | QuestionAsked | QuestionReplied | TurnChanged


def is_question(command: Command, message_ids: Set[str]) -> bool:
    """Return whether `command` is a question of the turn that has the messages `message_ids`."""
    return command.target in message_ids and command.name not in _FOR_AGENTS


def turn_state(claim: ClaimState | None, answers: Sequence[str]) -> TurnState:
    """Return the state of a turn with this claim, whose answers have the statuses `answers`."""
    if "streaming" in answers:
        return "running"
    if claim is not None and claim.is_open:
        return "waiting" if claim.state == "pending" else "running"
    return "over" if claim is not None or answers else "none"


def is_answer_of(message: Message | MessageState, message_id: str, claim: ClaimState | None) -> bool:
    """Return whether `message` is an answer of the last round of the turn of `message_id`."""
    round_from = claim.round_from if claim is not None else 0
    return message.reply_to == message_id and message.role != "user" and message.created > round_from


class TurnProgress:
    """The progress of one reader in one turn. Call `begin` once, then `receive` for each batch; it does no I/O.

    `sent` is the reader's position in each answer that it has, by the answers' ids.
    """

    def __init__(self, message_id: str, sent: Mapping[str, Sent] | None = None) -> None:
        self._id = message_id
        self._sent = dict(sent or {})
        self._answers: dict[str, MessageProgress] = {}
        self._questions: set[str] = set()  # ids of the agent's commands without a reply
        self._is_question_deleted = False  # True: the user message was deleted
        self._had_answers = False  # True: the turn had answers, which were deleted before the reader came
        self._newest = 0  # serial of the last answer that began
        self.is_broken = False  # True if events are missing, so that the reader has to begin again
        self._claim: ClaimState | None = None  # the claim of the turn as of the last batch
        self.state: TurnState = "none"

    @property
    def is_over(self) -> bool:
        """Return whether no delta follows any more."""
        return self.state == "over"

    def begin(self, status: TurnStatus) -> list[TurnDelta]:
        """Return the deltas that bring the reader to `status`."""
        deltas = [one for answer in status.answers for one in self._begin_answer(answer)]
        deltas += [one for command in status.questions for one in self._ask(command)]
        self.state, self._had_answers = status.state, status.is_deleted
        return [*deltas, TurnChanged(status.state, status.is_cancelled, status.is_deleted, status.round)]

    def receive(self, events: Sequence[ServerEvent], message: MessageState | None) -> list[TurnDelta]:
        """Return the deltas of a batch of the channel's events.

        `message` is the user message as of the end of the batch; None if it is not in memory, because it has no open
        turn.
        """
        claim = message.claim if message is not None else None
        if len(events) == 1 and type(event := events[0]) is MessageAppend and claim is self._claim:
            # hot path: nearly all events are text, which does not change the state of the turn
            answer = self._answers.get(event.id)
            if answer is None:
                return []
            added = answer.append(event)
            self.is_broken = self.is_broken or answer.is_broken
            return [InAnswer(event.id, added[0])] if added else []
        self._claim = claim
        # a `regenerate`: the answers of this reader, who is slow, count no longer
        self.is_broken = self.is_broken or (claim is not None and 0 < self._newest < claim.round_from)
        deltas: list[TurnDelta] = []
        created = sorted((one for one in events if isinstance(one, MessageCreate)), key=lambda one: one.message.created)
        if len(created) > 1:  # they come in the order of their last changes
            events = [*created, *(one for one in events if not isinstance(one, MessageCreate))]
        # commands last: an answer that was created in this batch may have changed since it asked
        for event in sorted(events, key=lambda one: isinstance(one, CommandSent | CommandReply)):
            match event:
                case MessageCreate(message=one) | MessageUpdate(message=one) if one.id not in self._answers:
                    if is_answer_of(one, self._id, claim):
                        deltas += self._begin_answer(one)
                case CommandSent(command=command):
                    deltas += self._ask(command)
                case CommandReply(id=command_id) if command_id in self._questions:
                    self._questions.discard(command_id)
                    deltas.append(QuestionReplied(command_id, event.ok, event.data, event.error))
                case MessageDelete(id=message_id) if message_id == self._id:
                    self._is_question_deleted = True
                case ChannelAttached():
                    self.is_broken = self.is_broken or not event.resumed
                case _:
                    for message_id, progress in self._answers.items():
                        deltas += [InAnswer(message_id, delta) for delta in progress.receive([event])]
                        self.is_broken = self.is_broken or progress.is_broken
        return deltas + self._settle(claim)

    def _begin_answer(self, message: Message) -> list[TurnDelta]:
        self._newest = message.created
        progress = self._answers[message.id] = MessageProgress(message.id, self._sent.pop(message.id, None))
        return [InAnswer(message.id, delta) for delta in progress.begin(message)]

    def _ask(self, command: Command) -> list[TurnDelta]:
        if not is_question(command, {self._id, *self._answers}):
            return []
        self._questions.add(command.id)
        return [QuestionAsked(command)]

    def _settle(self, claim: ClaimState | None) -> list[TurnDelta]:
        """Return the delta of the turn's new state, if it has changed."""
        statuses = [progress.status or "streaming" for progress in self._answers.values()]
        state = turn_state(claim, statuses)
        # the turn ended, because only a message without an open one leaves memory
        has_left = claim is None and self.state in ("waiting", "running") and "streaming" not in statuses
        if has_left or (self._is_question_deleted and state != "running"):
            state = "over"
        if state == self.state:
            return []
        self.state = state
        has_answers = bool(statuses) or self._had_answers
        is_deleted = has_answers and all(one == "deleted" for one in statuses)
        is_cancelled = self._is_question_deleted or (claim is not None and claim.state == "cancelled")
        return [TurnChanged(state, is_cancelled, is_deleted)]


def deltas_of(status: TurnStatus) -> list[TurnDelta]:
    """Return the deltas that bring a new reader to `status`."""
    return TurnProgress(status.message.id if status.message is not None else "").begin(status)
