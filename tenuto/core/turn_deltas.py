"""Deltas of a turn: the progress of all answers to one user message, for any wire format.

Layer: core.

A `TurnProgress` follows one turn for one reader, as `MessageProgress` (`deltas`) follows one message. It begins with
the turn as it is, takes the channel's events and the state of the turn, and yields the new deltas. `tenuto.routes`
makes a response of them. The types here are public (`docs/python.md`); new kinds of deltas are welcome, and formats
leave out the kinds that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal

from msgspec import Struct

from tenuto.core.deltas import Delta, MessageProgress, Sent
from tenuto.core.events import (
    ChannelAttached,
    CommandReply,
    CommandSent,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageUpdate,
    ServerEvent,
)
from tenuto.core.message_state import ClaimState, MessageState
from tenuto.core.model import Command, Json, Message
from tenuto.core.turns import CANCEL, REGENERATE, STEER

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


class InAnswer(Struct, frozen=True):
    """A delta of one answer of the turn (`tenuto.core.deltas`)."""

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
        self._questions: set[str] = set()
        self._is_deleted = False
        self._had_answers = False  # answers that were deleted before the reader came
        self.is_broken = False  # True if events are missing, so that the reader has to begin again
        self._claim: ClaimState | None = None  # the claim of the turn as of the last batch
        self.state: TurnState = "none"

    @property
    def is_over(self) -> bool:
        """Return whether no delta follows any more."""
        return self.state == "over"

    def begin(self, status: TurnStatus) -> list[TurnDelta]:
        """Return the deltas that bring the reader to `status`."""
        deltas: list[TurnDelta] = []
        for answer in status.answers:
            deltas += self._begin_answer(answer)
        for command in status.questions:
            deltas += self._ask(command)
        self.state, self._had_answers = status.state, status.is_deleted
        return [*deltas, TurnChanged(status.state, status.is_cancelled, status.is_deleted)]

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
        deltas: list[TurnDelta] = []
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
                    self._is_deleted = True
                case ChannelAttached():
                    self.is_broken = self.is_broken or not event.resumed
                case _:
                    for message_id, progress in self._answers.items():
                        deltas += [InAnswer(message_id, delta) for delta in progress.receive([event])]
                        self.is_broken = self.is_broken or progress.is_broken
        return deltas + self._settle(claim)

    def _begin_answer(self, message: Message) -> list[TurnDelta]:
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
        # a message that has left memory has no open turn
        was_open = claim is None and self.state in ("waiting", "running") and "streaming" not in statuses
        if was_open or (self._is_deleted and state != "running"):
            state = "over"
        if state == self.state:
            return []
        self.state = state
        has_answers = bool(statuses) or self._had_answers
        is_deleted = has_answers and all(one == "deleted" for one in statuses)
        is_cancelled = self._is_deleted or (claim is not None and claim.state == "cancelled")
        return [TurnChanged(state, is_cancelled, is_deleted)]
