"""The turn of a user message as a state machine, and the rules of the built-in commands.

Layer: core. The turn scheduler (`tenuto.hub.turns.scheduler`) drives the turns of its hub and sets their timers. Two
tables are printed in the documents, and tests compare both: `TRANSITIONS` is the drawing in `docs/architecture.md`,
`BUILT_IN_COMMANDS` the table in `docs/protocol.md`. Safe to change: a row, together with its document. Ids of answers
name their attempt, and alternative answers are branches: both are read here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Literal, NamedTuple, TypeVar

from tenuto.core.model import STEP_NAME, Json, Message
from tenuto.core.names import base32
from tenuto.core.state import ClaimState, MessageState

CANCEL_S = 2.0  # time in which the worker or writer can carry out a `cancel` before the server does
# Limit of attempts at one message that died (crash, lost lease); then the turn fails. An attempt that its process hands
# over when it drains does not count. Neither does one that a living node gives up before its handler has begun, which
# the node confirms by its next claim.
ATTEMPTS = 5
MOST_SPARED = 100  # attempts of one round that may be handed over without counting
MOST_UNHEARD = 1_000  # messages that the end of a turn may name
ROUND = 128  # numbers reserved for one round of attempts: from 1, then from 129 after a `regenerate`, and so on

WhenBusy = Literal["queue", "interrupt", "parallel"]

W = TypeVar("W")  # the type of a worker; the state machine only passes workers on

# -- turns -----------------------------------------------------------------------------------------------------


class Phase(Enum):
    """The phase of an open turn, as one hub knows it."""

    NEW = "the hub has not observed the message yet"
    WAITING = "no worker has the turn"
    CLAIMING = "the committer has a claim of this hub"
    DELAYED = "the claim failed, and is sent again in a second"
    RUNNING = "the claim of an attempt is stored"
    HELD = "the turn of another message has taken this message in"
    ENDING = "the turn is over, and its handler still runs"
    OVER = "the turn is done or cancelled, or its message is gone"


class TurnEvent(Enum):
    """The cause of a transition."""

    PENDING = "the log shows no attempt, or one whose process is gone"
    CLAIM = "the hub sends a claim"
    TAKEN = "an attempt is stored"
    TAKEN_IN = "the claim of another turn is stored"
    REFUSED = "the log holds another claim, or the outcome is unknown"
    FAILED = "the store failed"
    DUE = "the delay is over"
    LOST = "the worker, or the attempt that holds the message, is gone, or does not know that it holds it"
    STOPPED = "the end of the turn is stored, or its channel was deleted, while its handler runs"
    ENDED = "the end of the turn is stored"


TRANSITIONS: dict[Phase, dict[TurnEvent, Phase]] = {
    Phase.NEW: {TurnEvent.PENDING: Phase.WAITING, TurnEvent.TAKEN: Phase.RUNNING, TurnEvent.TAKEN_IN: Phase.HELD},
    Phase.WAITING: {
        TurnEvent.CLAIM: Phase.CLAIMING,
        TurnEvent.TAKEN: Phase.RUNNING,  # another hub has the turn, or a claim whose outcome was unknown was stored
        TurnEvent.TAKEN_IN: Phase.HELD,
        TurnEvent.ENDED: Phase.OVER,
    },
    Phase.CLAIMING: {
        TurnEvent.TAKEN: Phase.RUNNING,
        TurnEvent.TAKEN_IN: Phase.HELD,
        TurnEvent.REFUSED: Phase.WAITING,
        TurnEvent.FAILED: Phase.DELAYED,
        TurnEvent.ENDED: Phase.OVER,  # the last attempt was lost, and the hub ended the turn
    },
    Phase.DELAYED: {TurnEvent.DUE: Phase.WAITING},
    Phase.RUNNING: {TurnEvent.LOST: Phase.WAITING, TurnEvent.STOPPED: Phase.ENDING, TurnEvent.ENDED: Phase.OVER},
    Phase.HELD: {TurnEvent.LOST: Phase.WAITING, TurnEvent.ENDED: Phase.OVER},
    Phase.ENDING: {
        TurnEvent.PENDING: Phase.WAITING,  # the channel was deleted, and the message was created again
        TurnEvent.ENDED: Phase.OVER,
    },
    Phase.OVER: {},
}


def attempt_of(generation: int) -> int:
    """Return the number of an attempt in its round: 1 for the first, more after crashes."""
    return generation % ROUND


def next_round(generation: int) -> int:
    """Return the generation that precedes the first attempt of the round after that of `generation`."""
    return (generation // ROUND + 1) * ROUND


class Left(NamedTuple, Generic[W]):
    """A turn's last transition: the phase and attempt that it left, and the worker that no longer has it."""

    phase: Phase
    attempt: int
    worker: W | None


@dataclass(slots=True, eq=False)
class TurnMachine(Generic[W]):
    """The open turn of one message. Its methods move it along `TRANSITIONS`, and are the only ones to do so.

    The log decides: call `observe` with each change of the message. While a claim of this hub is under way or delayed,
    and while a handler runs on after the end, the turn stays as it is. It follows the log afterwards (`resolve`,
    `due`, `handler_ended`).
    """

    message_id: str
    phase: Phase = Phase.NEW
    created: int = 0  # serial of the entry that created the message
    alive_at: int = 0  # `MessageState.alive_at`: time of the last claim or renewal
    attempt: int = 0  # number of the running or last attempt; 0 before the first
    confirmed: int = 0  # `ClaimState.confirmed` of that attempt
    begun: int = 0  # number of the last attempt that a handler of this hub has begun
    claim: ClaimState | None = None  # the state of the turn in the log; None if the message no longer exists
    worker: W | None = None  # the worker that carries out the attempt; None if this hub does not know it
    handler: W | None = None  # the worker whose handler of some attempt still runs
    suspect: W | None = None  # the worker that lost the turn: its connection may be dead
    is_interrupted: bool = False  # True: a newer message has cancelled this turn
    # the turn and attempt that may have taken this message in without knowing it (the result of the request was lost)
    unheard: tuple[str, int] | None = None
    _is_orphan: bool = False  # `is_orphan` of the last call of `observe`
    _requests: int = 0  # number of claims without an outcome yet

    @property
    def is_taken(self) -> bool:
        """Return whether an attempt has the turn: one of its own, or one of the turn that has taken it in."""
        return self.phase in (Phase.RUNNING, Phase.HELD)

    @property
    def is_broken(self) -> bool:
        """Return whether the connection to the worker that runs the attempt is broken."""
        return self.handler is not None and self.worker is None

    @property
    def host(self) -> tuple[str, int] | None:
        """Return the id of the message whose turn has taken this one in, and the number of that turn's attempt.

        In the phase ENDING it has taken the message in for a later round, while the handler of an earlier one runs.
        """
        claim = self.claim
        if self.phase not in (Phase.HELD, Phase.ENDING) or claim is None or claim.within is None or not claim.is_open:
            return None
        return claim.within, claim.within_generation

    @property
    def is_unchanged(self) -> bool:
        """Return whether the log shows an open turn, and no later attempt or confirmation than the known one."""
        claim, known = self.claim, (self.attempt, self.confirmed)
        return claim is not None and claim.is_open and (claim.generation, claim.confirmed) == known

    def is_run_by(self, name: str) -> bool:
        """Return whether the agent `name`, in a process of its own, has the running attempt."""
        claim = self.claim
        return self.phase is Phase.RUNNING and claim is not None and (claim.by, claim.node) == (name, None)

    def is_unbegun_by(self, node: str) -> bool:
        """Return whether `node`, that of this hub, has the last attempt in the log, and no handler has begun it.

        The claim was stored too late, its result was lost, or the worker had gone by then.
        """
        claim = self.claim
        if claim is None or (claim.state, claim.node, claim.within) != ("taken", node, None):
            return False
        return claim.generation == self.attempt != self.begun

    def is_used_up(self, node: str) -> bool:
        """Return whether the message has no attempt left. An attempt without a handler at `node`, this one, is left."""
        return self.tries >= ATTEMPTS and not self.is_unbegun_by(node)

    @property
    def tries(self) -> int:
        """Return how many attempts of this round count, with the last one: all but those that were handed over."""
        return attempt_of(self.attempt) - (self.claim.spared if self.claim is not None else 0)

    def observe(self, message: MessageState | None, *, is_orphan: bool) -> Left[W] | None:
        """Record the state of the turn in the log, and follow the log unless a claim is under way.

        `is_orphan`: only the process that stored this claim can carry it out, and it is this process or one that is
        gone. Unless the turn runs here, it waits again. Like `resolve`, `due` and `lose`, return the phase that the
        turn has left, or None if it has not moved.
        """
        left = self._position()
        self.claim = None if message is None or message.deleted else message.claim
        if message is not None:
            self.created, self.alive_at = message.created, message.alive_at
        self._is_orphan = is_orphan
        self._follow()
        return self._moved(left)

    def send_claim(self) -> None:
        """Note that a claim was sent. `resolve` must be called with its outcome."""
        if self.phase is Phase.DELAYED:
            self._move(TurnEvent.DUE)
        if self.phase is Phase.WAITING:
            self._move(TurnEvent.CLAIM)
        self._requests += 1

    def resolve(self, event: TurnEvent, attempt: int | None = None) -> Left[W] | None:
        """Note the outcome of a claim: `TAKEN` with its attempt, `TAKEN_IN`, `REFUSED`, `FAILED` or `ENDED`."""
        self._requests -= 1
        is_stored = event not in (TurnEvent.REFUSED, TurnEvent.FAILED)
        if self.phase is not Phase.CLAIMING or (self._requests and not is_stored):
            return None  # this ends only CLAIMING, and not while another claim of this hub may yet be stored
        left = self._position()
        if event is TurnEvent.TAKEN_IN:
            # the turn that had taken this one in has ended meanwhile
            if self.claim is None or self.claim.within is None or not self.claim.is_open:
                event = TurnEvent.REFUSED
            else:
                attempt = self.claim.generation
        self._move(event)
        if attempt is not None:
            self.attempt = attempt
        self._follow()
        return self._moved(left)

    def due(self) -> Left[W] | None:
        """Note that the delay after a failed claim has passed, and follow the log again. Return as `observe` does."""
        if self.phase is not Phase.DELAYED:
            return None
        left = self._position()
        self._move(TurnEvent.DUE)
        self._follow()
        return self._moved(left)

    def begin(self, worker: W) -> None:
        """Note that `worker` has the attempt and runs its handler, until `handler_ended` or `lose` is called."""
        self.worker = self.handler = worker
        self.begun = self.attempt

    def handler_ended(self) -> Left[W] | None:
        """Note that the handler of an attempt has ended.

        If its message was created again meanwhile, the turn now waits.
        """
        self.handler = None
        if self.phase is not Phase.ENDING:
            return None
        left = self._position()
        is_open = self.claim is not None and self.claim.is_open
        self._move(TurnEvent.PENDING if is_open else TurnEvent.ENDED)
        self.attempt, self.confirmed, self.begun, self.suspect, self.is_interrupted = 0, 0, 0, None, False
        self._follow()
        return self._moved(left)

    def lose(self) -> Left[W] | None:
        """Let the turn wait again, because its worker is gone, or the attempt that has taken the message in."""
        left = self._position()
        self._lose()
        self.handler = None
        return self._moved(left)

    def _lose(self) -> None:
        self._move(TurnEvent.LOST)
        self.suspect = self.worker or self.suspect
        self.worker = None

    def _follow(self) -> None:
        """Make the transition that the log shows."""
        claim = self.claim
        if self.phase in (Phase.CLAIMING, Phase.DELAYED, Phase.ENDING, Phase.OVER):
            return
        if claim is None or not claim.is_open:
            is_at_work = self.handler is not None and self.phase is Phase.RUNNING
            self._move(TurnEvent.STOPPED if is_at_work else TurnEvent.ENDED)
            self.worker = None
            return
        if self.is_taken:
            if claim.state == "taken" and claim.generation == self.attempt:
                self.confirmed = claim.confirmed
                return
            self._lose()
        known, self.attempt, self.confirmed = (self.attempt, self.confirmed), claim.generation, claim.confirmed
        # an attempt that this hub knows was lost here
        if claim.state == "taken" and known != (claim.generation, claim.confirmed) and not self._is_orphan:
            self._move(TurnEvent.TAKEN if claim.within is None else TurnEvent.TAKEN_IN)
        elif self.phase is Phase.NEW:
            self._move(TurnEvent.PENDING)

    def _move(self, event: TurnEvent) -> None:
        self.phase = TRANSITIONS[self.phase][event]

    def _position(self) -> Left[W]:
        """Return the phase, attempt and worker of now, for `_moved` after a transition."""
        return Left(self.phase, self.attempt, self.worker)

    def _moved(self, left: Left[W]) -> Left[W] | None:
        """Return the position `left` if the turn is in another phase or attempt now, else None."""
        return None if (left.phase, left.attempt) == (self.phase, self.attempt) else left


class ChannelTurns(dict[str, TurnMachine[W]]):
    """The open turns of one channel by their messages, in the order in which they were taken, the latest last."""

    def put(self, turn: TurnMachine[W]) -> None:
        """Add `turn`, or move it to the end."""
        self.pop(turn.message_id, None)
        self[turn.message_id] = turn

    @property
    def is_busy(self) -> bool:
        """Return whether a turn runs or is being claimed."""
        return any(turn.is_taken or turn.phase is Phase.CLAIMING for turn in self.values())

    def waiting(self) -> list[TurnMachine[W]]:
        """Return the waiting turns whose earlier attempts have no running handler, oldest message first."""
        waiting = [turn for turn in self.values() if turn.phase is Phase.WAITING and turn.handler is None]
        return sorted(waiting, key=lambda turn: (turn.created, turn.attempt))

    def lost(self) -> tuple[tuple[str, int, int], ...]:
        """Return the lost attempts that the log may show as running: each with its message and its confirmations."""
        return tuple(
            (turn.message_id, turn.attempt, turn.confirmed)
            for turn in self.values()
            if turn.claim is not None
            and turn.claim.state == "taken"
            and turn.claim.within is None
            and not turn.is_taken
        )

    def to_interrupt(self, newest: TurnMachine[W]) -> list[TurnMachine[W]]:
        """Return the turns that the author of message `newest` interrupts by sending it."""
        older = [turn for turn in self.values() if turn.phase is Phase.RUNNING] + self.waiting()
        return [turn for turn in older if turn is not newest and not turn.is_interrupted]

    def held_by(self, message_id: str) -> list[TurnMachine[W]]:
        """Return the turns of the messages that the turn of `message_id` has taken in."""
        return [turn for turn in self.values() if turn.host is not None and turn.host[0] == message_id]

    def is_lost(self, held: TurnMachine[W]) -> bool:
        """Return whether the attempt that has taken a message in does not run, or does not know that it has it."""
        assert held.host is not None
        message_id, attempt = held.host
        host = self.get(message_id)
        return host is None or not host.is_taken or host.attempt != attempt or held.unheard == held.host

    def newest_of(self, name: str, message_id: str | None) -> TurnMachine[W] | None:
        """Return the latest running turn of agent `name`; with `message_id`, only the turn of that message."""
        for turn in reversed(self.values()):
            is_own = turn.phase is Phase.RUNNING and turn.claim is not None and turn.claim.by == name
            if is_own and message_id in (None, turn.message_id):
                return turn
        return None


# -- commands --------------------------------------------------------------------------------------------------


class Replier(Enum):
    """The clients that may reply to a command, beside the app. A reply also needs the capability `command`."""

    WORKER = "the client at work on the target, a caller with `admin`"
    NONE = "no client"
    READER = "any caller that may read the channel, the sender, the client at work on the target"
    HOLDER = "the attempt that has the turn of the target, which alone sends it"


class ServerAction(Enum):
    """The server's action on a command that no client has replied to."""

    STOP = "ends the answers and the turn as `cancelled`, and replies `ok: true`"
    RESTART = "makes the message wait for a turn again, and replies `ok: true`"
    EXPIRE = 'replies `ok: false` with `error: {code: "expired"}`'
    NONE = "does nothing"


class CommandRules(NamedTuple):
    """The rules of one command name."""

    name: str
    needs_target: bool
    replier: Replier
    action: ServerAction
    after_s: float | None  # the server acts this long after the command was sent; None: when the command expires

    @property
    def stops(self) -> bool:
        """Return whether the command stops its target: an answer, or all answers to a message and its turn."""
        return self.action is ServerAction.STOP

    @property
    def restarts(self) -> bool:
        """Return whether the target waits for an agent again, from the commit that stores the command on."""
        return self.action is ServerAction.RESTART


CANCEL = CommandRules("cancel", True, Replier.WORKER, ServerAction.STOP, CANCEL_S)
STEER = CommandRules("steer", False, Replier.WORKER, ServerAction.EXPIRE, None)
REGENERATE = CommandRules("regenerate", True, Replier.NONE, ServerAction.RESTART, 0.0)
APPROVE = CommandRules("approve", False, Replier.READER, ServerAction.EXPIRE, None)
STEP = CommandRules(STEP_NAME, True, Replier.HOLDER, ServerAction.NONE, None)
INTERRUPTED = {"reason": "interrupted"}  # data of the `cancel` with which a newer message ends a turn
BUILT_IN_COMMANDS = {rules.name: rules for rules in (CANCEL, STEER, REGENERATE, APPROVE, STEP)}


def rules_of(name: str) -> CommandRules:
    """Return the rules of the command `name`. Commands that an app defines have the rules of `approve`."""
    return BUILT_IN_COMMANDS.get(name) or APPROVE._replace(name=name)


STEP_MARK = f"{STEP_NAME}~"  # the ids of steps, and no others, begin so: a client cannot take one that it computes
QUESTION_MARK = "turn.ask~"  # the ids of questions of turns begin so, for the same reason
WITHDRAWN: dict[str, Json] = {"code": "withdrawn", "detail": "the agent no longer waits for the reply"}
UNREAD: dict[str, Json] = {"code": "withdrawn", "detail": "the answer has ended, and its writer has not read this"}
ID_DIGITS = 18


def step_id(channel: str, message_id: str, generation: int, name: str) -> str:
    """Return the id of the step `name` of a turn. All attempts of one round compute the same id."""
    return STEP_MARK + _computed_id(channel, message_id, generation // ROUND, name)


def question_id(channel: str, message_id: str, generation: int, name: str) -> str:
    """Return the id of a question of a turn. All attempts of one round compute the same id for the same `name`."""
    return QUESTION_MARK + _computed_id(channel, message_id, generation // ROUND, f"?{name}")


def _computed_id(*names: object) -> str:
    name = "\n".join(map(str, names)).encode("utf-8", "surrogatepass")
    hashed = int.from_bytes(hashlib.blake2b(name, digest_size=12).digest(), "big")
    return base32(hashed >> 6, ID_DIGITS)  # 90 of the 96 bits


ANSWERS = 8  # number of answers of one attempt to search for; more are rare


def reply_id(message_id: str, attempt: int, number: int = 0) -> str:
    """Return the id of an attempt's answer.

    Every process computes the same id, so that no message is answered twice.
    """
    return _computed_id(message_id, attempt, number)


def reply_ids(message_id: str, generation: int = ATTEMPTS) -> Iterator[str]:
    """Yield the ids of the answers of the attempts of one round, up to `generation`."""
    for attempt in range(generation - attempt_of(generation) + 1, generation + 1):
        for number in range(ANSWERS):
            yield reply_id(message_id, attempt, number)


def earlier_attempt(message_id: str, answer_id: str, generation: int) -> int | None:
    """Return the attempt before `generation`, of the last two rounds, that gives its answers the id `answer_id`.

    So an answer of an agent that names no attempt is known as late. Of the round before only the first attempts are
    tried: five, and some more that drains have handed on.
    """
    for earlier in range(generation - 1, max(0, generation - 2 * ROUND), -1):
        attempt = attempt_of(earlier)  # 0: no attempt has this generation
        is_likely = 0 < attempt <= 2 * ATTEMPTS or (attempt and earlier // ROUND == generation // ROUND)
        if is_likely and any(answer_id == reply_id(message_id, earlier, number) for number in range(ANSWERS)):
            return earlier
    return None


def newest_branch(messages: Iterable[Message], selected: Container[str] = ()) -> list[Message]:
    """Return the messages of the branch with the latest message, or with those whose ids are `selected`, oldest first.

    A message whose parent is not among `messages` is part of each branch.
    """
    ordered = sorted(messages, key=lambda one: one.created)
    groups: dict[tuple[str, str | None], list[Message]] = {}
    for message in ordered:
        if (group := _group_of(message)) is not None:
            groups.setdefault(group, []).append(message)
    newest = _newest_after(ordered)
    # messages after an interrupted answer do not select it: the next attempt takes its place
    newest |= {one.id: one.created for one in ordered if one.status == "interrupted"}
    unselected: set[str] = set()
    for alternatives in groups.values():
        followed = [one for one in alternatives if one.id in selected and one.status != "interrupted"]
        shown = max(followed or alternatives, key=lambda one: newest[one.id])
        unselected.update(one.id for one in alternatives if one is not shown)
    branch: list[Message] = []
    ends: set[str] = set()  # ids of messages whose followers belong to another branch
    for message in ordered:
        is_off = message.parent in ends
        if not is_off and message.id not in unselected:
            branch.append(message)
        elif is_off or message.status != "interrupted":  # messages after an interrupted answer stay
            ends.add(message.id)
    return branch


def versions_of(message: Message, messages: Iterable[Message]) -> list[Message]:
    """Return the versions of a question, itself among them, oldest first."""
    versions = [one for one in messages if one.id != message.id and _group_of(one) == _group_of(message)]
    return sorted([message, *versions], key=lambda one: one.created)


def _group_of(message: Message) -> tuple[str, str | None] | None:
    """Return the same value for messages that are alternatives of each other; None for a message that has none."""
    is_question = message.role == "user" and message.reply_to is None
    is_empty_failure = message.status == "failed" and not message.parts
    is_answer = message.role == "assistant" and message.parent is not None and not is_empty_failure
    return (message.role, message.parent) if is_question or is_answer else None


def _newest_after(ordered: Sequence[Message]) -> dict[str | None, int]:
    """Return for each id the serial of the newest message that follows it, or is it."""
    newest: dict[str | None, int] = {}
    for message in reversed(ordered):
        serial = max(message.created, newest.get(message.id, 0))
        newest[message.id] = serial
        newest[message.parent] = max(serial, newest.get(message.parent, 0))
    return newest
