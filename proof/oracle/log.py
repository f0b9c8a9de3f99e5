"""The log: all that a store has taken, folded a second time in the plainest way.

Layer: oracle.

The store of a simulation passes every write to `StoredLogs`, and no other component does: an entry that is not here is
not stored. The fold shares no code with `core.state`, and keeps each message as it was at each serial. `EpochLog`
raises Violation for an entry that the rules of the protocol forbid.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import assert_never

from msgspec.structs import replace

from proof.oracle import Violation
from tenuto.core import model
from tenuto.core.events import NO_EPOCH
from tenuto.core.model import APPENDABLE, Message, Part
from tenuto.core.names import COMMAND_MARK, command_id, command_key
from tenuto.core.ops import (
    Append,
    Claim,
    Command,
    Create,
    Delete,
    Entry,
    Finish,
    Lease,
    Op,
    Reply,
    SetPart,
    Takeover,
    Update,
    WriterIdentity,
)
from tenuto.stores.base import Head, Write

GIVEN_BACK_MS = 1  # length of the lease of a turn that its agent gives back

Version = tuple[int, Message | None]  # a message as it was from this serial on; None: it was deleted
EventOp = Create | Append | SetPart | Update | Finish | Takeover | Delete
MessageOp = EventOp | Claim | Lease


class EpochLog:
    """One epoch of a channel's log.

    A stamp counts the writes of the store (`StoredLogs.stamp`). It dates an entry, and the moment of a response.
    """

    def __init__(self, channel: str, epoch: str, begun: int) -> None:
        self.channel = channel
        self.epoch = epoch
        self.begun = begun  # the stamp at which the epoch began
        self.ended: int | None = None
        self.before: tuple[EpochLog, int] | None = None  # the epoch that it continues after a failover, up to a serial
        self.serial = 0
        self.stamps: list[int] = []  # the stamp of each serial
        self.changed: list[str] = []  # the id of the message or command that each serial changed
        self.ops: list[Op] = []  # the entry of each serial
        self.versions: dict[str, list[Version]] = {}
        self.takeovers: dict[str, list[int]] = {}  # serials, by message
        self.requests: dict[tuple[str, str], int] = {}  # by message and request id, the serial of its entry
        # for each message its writers, each with the serial from which it writes
        self.writers: dict[str, list[tuple[int, WriterIdentity | None]]] = {}
        # for each message the changes of its turn: serial, state and generation
        self.turns: dict[str, list[tuple[int, str, int]]] = {}
        self.spared: dict[str, int] = {}  # for each message the attempts of its round that were handed over
        self.claims: dict[tuple[str, int], Claim] = {}  # the claim of each message and generation
        self.commands: dict[str, tuple[int, Command]] = {}  # for each command its serial and its entry
        self.replies: dict[str, tuple[int, Reply]] = {}
        self.replaced: set[str] = set()  # messages that had text replaced
        self.last_event = 0  # the serial of the last entry that is an event
        self.sent = 0  # the highest serial that any client has received

    def at(self, message_id: str, serial: int) -> Message | None:
        """Return the message as it was at `serial`, or None if it did not exist or was deleted."""
        versions = self.versions.get(message_id, [])
        place = bisect_right(versions, serial, key=_serial)
        return versions[place - 1][1] if place else None

    def now(self, message_id: str) -> Message | None:
        """Return the message as it is."""
        versions = self.versions.get(message_id)
        return versions[-1][1] if versions else None

    def is_deleted(self, message_id: str) -> bool:
        """Return whether the message existed and is deleted."""
        return message_id in self.versions and self.versions[message_id][-1][1] is None

    def messages(self, serial: int) -> Iterator[Message]:
        """Yield all messages as they were at `serial`."""
        for message_id in self.versions:
            message = self.at(message_id, serial)
            if message is not None:
                yield message

    def pending(self, serial: int) -> dict[str, model.Command]:
        """Return the commands that waited for a reply at `serial`, as clients see them."""
        return {
            command_id(key): client_command(command)
            for key, (sent, command) in self.commands.items()
            if sent <= serial and command.name != STEP and (key not in self.replies or self.replies[key][0] > serial)
        }

    def is_command_stored(self, known: model.Command, reply: Reply | None) -> bool:
        """Return whether the store may hold this command and reply.

        Once there is a reply, their data may have left. It must have left if the target is deleted.
        """
        key = command_key(known.id)
        command = self.commands[key][1]
        stored = self.replies[key][1] if key in self.replies else None
        if stored is None:
            # the data of a step leaves with its target, also without a reply
            is_bare = command.name == STEP and self.is_deleted(command.target or "")
            return (known, reply) == (replace(client_command(command), data=None if is_bare else command.data), None)
        bare = (replace(client_command(command), data=None), _without_data(stored))
        if command.target is not None and self.is_deleted(command.target):
            return (known, reply) == bare
        return (known, reply) in (bare, (client_command(command), stored))

    def note_sent(self, serial: int) -> None:
        """Note that a client has received entry `serial`: later reads may not return an older state."""
        self.sent = max(self.sent, serial)

    def changed_between(self, after: int, until: int) -> int:
        """Return how many messages and commands have entries after serial `after`, up to `until`."""
        return len(set(self.changed[after:until]))

    def is_stored(self, serial: int, stamp: int) -> bool:
        """Return whether entry `serial` was stored at `stamp`."""
        return serial <= self.serial and (serial == 0 or self.stamps[serial - 1] <= stamp)

    def texts(self, message_id: str, part: int) -> Iterator[str]:
        """Yield every text that the part ever had, newest first."""
        for _, message in reversed(self.versions.get(message_id, [])):
            if message is not None and part < len(message.parts):
                yield text_of(message.parts[part])

    def states(self, message_id: str) -> Iterator[Message]:
        """Yield the message as it was after each of its entries, newest first."""
        for _, message in reversed(self.versions.get(message_id, [])):
            if message is not None:
                yield message

    def apply(self, entry: Entry, stamp: int) -> None:
        """Add a stored entry. Raises Violation if the rules forbid it."""
        op = entry.op
        if entry.serial != self.serial + 1:
            raise Violation(f"serial {entry.serial} of {self.channel} was stored after {self.serial}")
        if isinstance(op, Command | Reply):
            self._apply_to_command(op, entry.serial)
        else:
            self._apply_to_message(op, entry.serial)
        self.serial = entry.serial
        if not isinstance(op, Claim | Lease) and not op.id.startswith(STEPS):
            self.last_event = entry.serial
        self.stamps.append(stamp)
        self.changed.append(op.id)
        self.ops.append(op)

    def _apply_to_command(self, op: Command | Reply, serial: int) -> None:
        known = self.commands if isinstance(op, Command) else self.replies
        if op.id in known or (isinstance(op, Reply) and op.id not in self.commands):
            raise Violation(f"{self.channel}: {describe(op)} was stored as {serial}: a second one, or of no command")
        if isinstance(op, Command):
            self.commands[op.id] = serial, op
        else:
            self.replies[op.id] = serial, op

    def _apply_to_message(self, op: MessageOp, serial: int) -> None:
        if isinstance(op, Create) and op.id in self.versions:
            raise Violation(f"{self.channel}: message {op.id} was created twice")
        message = self.now(op.id)
        if message is None and not isinstance(op, Create):
            raise Violation(f"{self.channel}: {describe(op)} was stored, but there is no such message")
        self._check(message, op)
        if isinstance(op, Claim):
            self.turns.setdefault(op.id, []).append((serial, op.state, op.generation))
            self.spared[op.id] = op.spared
            if op.state == "taken":
                self.claims[op.id, op.generation] = op
        elif isinstance(op, Lease):
            writer = self.writers[op.id][-1][1]
            self.writers[op.id].append((serial, replace(writer, lease_ms=op.lease_ms) if writer is not None else None))
        else:
            self.versions.setdefault(op.id, []).append((serial, _fold(message, op, serial)))
        if isinstance(op, Create | Takeover):
            self.writers.setdefault(op.id, []).append((serial, op.writer))
        if isinstance(op, Create) and op.is_pending:
            self.turns[op.id] = [(serial, "pending", 0)]
        if isinstance(op, Takeover):
            self.takeovers.setdefault(op.id, []).append(serial)
        elif isinstance(op, Update) and message is not None and _supersedes(message, op):
            pass  # the text counts no longer, and a reader of the message's stream begins anew
        elif isinstance(op, Update) or (isinstance(op, SetPart) and message and op.index < len(message.parts)):
            self.replaced.add(op.id)

    def copy(self, epoch: str, serial: int, stamp: int) -> EpochLog:
        """Return the epoch that continues this log from `serial`."""
        log = EpochLog(self.channel, epoch, stamp)
        log.serial = serial
        log.stamps = [stamp] * serial
        log.changed = self.changed[:serial]
        log.ops = self.ops[:serial]
        for message_id, versions in self.versions.items():
            kept = versions[: bisect_right(versions, serial, key=_serial)]
            if kept:
                log.versions[message_id] = kept
                log.writers[message_id] = [one for one in self.writers[message_id] if one[0] <= serial]
                log.takeovers[message_id] = [one for one in self.takeovers.get(message_id, []) if one <= serial]
                if message_id in self.turns:
                    log.turns[message_id] = [one for one in self.turns[message_id] if one[0] <= serial]
        log.commands = {key: one for key, one in self.commands.items() if one[0] <= serial}
        log.replies = {key: one for key, one in self.replies.items() if one[0] <= serial}
        log.spared = {op.id: op.spared for op in log.ops if isinstance(op, Claim)}
        log.claims = {(op.id, op.generation): op for op in log.ops if isinstance(op, Claim) and op.state == "taken"}
        log.replaced = set(self.replaced)
        log.last_event = min(self.last_event, serial)
        return log

    def _check(self, message: Message | None, op: MessageOp) -> None:
        wrong = self._wrong_mark(op)
        request = getattr(op, "request", None)
        if request is not None:
            if (op.id, request) in self.requests:
                wrong = f"request {request} was carried out twice"
            self.requests[op.id, request] = self.serial + 1
        if isinstance(op, Append | SetPart | Finish) and message is not None and message.status != "streaming":
            wrong = f"the message is {message.status}"
        elif isinstance(op, Append) and message is not None:
            parts = message.parts
            if op.part >= len(parts) or op.at != len(text_of(parts[op.part])) or not op.text:
                wrong = f"its part has {len(text_of(parts[op.part])) if op.part < len(parts) else None}"
        elif isinstance(op, SetPart) and message is not None and op.index > len(message.parts):
            wrong = f"the message has {len(message.parts)} parts"
        elif isinstance(op, Update) and message is not None and _supersedes(message, op):
            wrong = _wrong_attempt(message.parts, op.parts or [])
        elif isinstance(op, Takeover):
            generation = 1 + len(self.takeovers.get(op.id, []))
            if op.generation != generation + 1:
                wrong = f"the message is in generation {generation}"
        elif isinstance(op, Claim):
            wrong = self._wrong_claim(op)
        elif isinstance(op, Lease) and message is not None and message.status != "streaming":
            wrong = f"the message is {message.status}"
        if wrong is not None:
            raise Violation(f"{self.channel}: {describe(op)} was stored as {self.serial + 1}, but {wrong}")

    def _wrong_mark(self, op: MessageOp) -> str | None:
        """Return what is wrong with the generation that text or an end carries, or None."""
        generation = 1 + len(self.takeovers.get(op.id, []))
        if isinstance(op, Append) and not op.text.isascii():
            return _wrong_marks(op.text, op.at, generation)
        if isinstance(op, SetPart) and not text_of(op.part).isascii():
            return _wrong_marks(text_of(op.part), 0, generation)
        if isinstance(op, Finish) and op.request is not None and GENERATION in op.request:
            written = int(op.request.rpartition(GENERATION)[2])
            return f"its generation {written} is fenced off by {generation}" if written != generation else None
        return None

    def _wrong_claim(self, op: Claim) -> str | None:
        if op.state == "pending":
            return self._wrong_hand_over(op) if op.spared else self._wrong_restart(op)
        if op.id not in self.turns:
            return "the message waits for no agent"
        _, state, generation = self.turns[op.id][-1]
        if state not in ("pending", "taken") or (op.state == "done" and state != "taken"):
            return f"its turn is {state}"
        if op.confirmed:
            known = self.claims.get((op.id, op.generation))
            if state != "taken" or known is None:
                return "its turn is not taken"
            # a node confirms its claim, whose outcome it did not learn, perhaps for another of its agents
            by = op.by if op.node is not None else known.by
            lease_ms = GIVEN_BACK_MS if op.lease_ms == GIVEN_BACK_MS and op.node is None else known.lease_ms
            is_right = op == replace(known, by=by, lease_ms=lease_ms, confirmed=1 + known.confirmed, at_ms=op.at_ms)
            return None if is_right and op.generation == generation else f"it confirms {known}"
        is_same_round = op.state == "taken" and op.generation // ROUND == generation // ROUND
        known = self.claims.get((op.id, generation))
        is_lost = state == "taken" and op.within is not None and known is not None and known.within == op.within
        due = self.spared.get(op.id, 0) + is_lost if is_same_round else 0  # what was handed over counts already
        if op.spared != due:
            return f"{due} attempts do not count, not {op.spared}"
        is_given_up = op.state == "done" and op.generation == generation + 1  # fences off its last attempt
        is_next = op.generation == (generation + 1 if op.state == "taken" else generation) or is_given_up
        # The first attempt of a later round: a handler of a deleted message with this id may still end a lower one.
        is_of_new_round = op.state == "taken" and op.generation > generation and op.generation % ROUND == 1
        return None if is_next or is_of_new_round else f"its turn is in attempt {generation}"

    def _wrong_hand_over(self, op: Claim) -> str | None:
        """Return why an attempt may not be handed over, or None: it must have the turn, and each is counted."""
        _, state, generation = self.turns.get(op.id, [(0, "cancelled", 0)])[-1]
        if (state, generation) != ("taken", op.generation):
            return f"its turn is {state} in attempt {generation}"
        spared = self.spared.get(op.id, 0)
        return None if op.spared == spared + 1 else f"{spared} attempts were handed over before"

    def _wrong_restart(self, op: Claim) -> str | None:
        """Return why a message may not wait again, or None: its turn must be over, and a new round begins."""
        _, state, generation = self.turns.get(op.id, [(0, "cancelled", 0)])[-1]
        if state in ("pending", "taken"):
            return f"its turn is {state}"
        if op.generation % ROUND or not 0 < op.generation - generation <= ROUND:
            return f"the attempt before was {generation}"
        answered = [one for one in self.messages(self.serial) if one.reply_to == op.id and one.status == "streaming"]
        return f"{answered[0].id} answers it" if answered else None


class StoredLogs:
    """The logs of all channels, of the present epoch and of earlier ones."""

    def __init__(self) -> None:
        self.stamp = 0  # counts the writes of the store
        self._logs: dict[str, list[EpochLog]] = {}
        self._used_up: set[tuple[str, str]] = set()  # ids of messages that streamed when their channel was deleted

    @property
    def channels(self) -> list[str]:
        return list(self._logs)

    def head(self, channel: str) -> EpochLog:
        """Return the present epoch of the channel; an epoch without entries if the channel is empty."""
        logs = self._logs.get(channel)
        return logs[-1] if logs and logs[-1].ended is None else EpochLog(channel, NO_EPOCH, 0)

    def epoch(self, channel: str, epoch: str) -> EpochLog | None:
        """Return this epoch of the channel, if it ever existed."""
        if epoch == NO_EPOCH:
            return EpochLog(channel, NO_EPOCH, 0)
        return next((log for log in self._logs.get(channel, []) if log.epoch == epoch), None)

    def between(self, channel: str, since: int, until: int) -> list[EpochLog]:
        """Return the epochs of the channel that existed at a stamp from `since` to `until`, newest first."""
        return [
            log
            for log in reversed(self._logs.get(channel, []))
            if log.begun <= until and (log.ended is None or log.ended >= since)
        ]

    def has_changed_epoch(self, channel: str, since: int) -> bool:
        """Return whether the channel ended an epoch, or began another one, after stamp `since`."""
        return any(
            (log.ended is not None and log.ended > since) or (log.begun > since and place > 0)
            for place, log in enumerate(self._logs.get(channel, []))
        )

    def has_lost(self, channel: str, message_id: str, since: int) -> bool:
        """Return whether the channel lost entries of the message, or its epoch, after stamp `since`."""
        logs = self._logs.get(channel, [])
        kept = {log.before[0].epoch: log.before[1] for log in logs if log.before is not None}
        return any(
            log.ended is not None and log.ended > since and message_id in log.changed[kept[log.epoch] :]
            if log.epoch in kept
            else log.ended is not None and log.ended > since
            for log in logs
        )

    def is_used_up(self, channel: str, message_id: str) -> bool:
        """Return whether a deletion of the channel has used up the id."""
        return (channel, message_id) in self._used_up

    def apply(self, write: Write) -> None:
        """Add a write that the store has carried out. Raises Violation if the store had to refuse it."""
        self.stamp += 1
        log = self.head(write.channel)
        if log.serial != write.expected or (log.serial and log.epoch != write.epoch):
            raise Violation(f"{write.channel} stands at {log.epoch}:{log.serial}, a write for {write.expected} went in")
        if write.entries and not log.serial:
            if self.epoch(write.channel, write.epoch) is not None:
                raise Violation(f"{write.channel} begins the epoch {write.epoch} a second time")
            log = EpochLog(write.channel, write.epoch, self.stamp)
            self._logs.setdefault(write.channel, []).append(log)
        for entry in write.entries:
            if isinstance(entry.op, Create) and self.is_used_up(write.channel, entry.op.id):
                raise Violation(f"{write.channel}: the used up id {entry.op.id} was created again")
            log.apply(entry, self.stamp)

    def delete_channel(self, channel: str, used_up: Iterable[str]) -> None:
        """End the epoch of a channel that the store has emptied. Raises Violation if ids were not used up."""
        self.stamp += 1
        log = self.head(channel)
        streaming = {message.id for message in log.messages(log.serial) if message.status == "streaming"}
        missing = streaming - set(used_up)
        if missing:
            raise Violation(f"{channel} was deleted, but the ids that streamed were not used up: {sorted(missing)}")
        self._used_up |= {(channel, message_id) for message_id in used_up}
        if log.serial:
            log.ended = self.stamp

    def lose_power(self, channel: str, kept: Head, epoch: str, *, is_failover: bool = False) -> None:
        """End the epoch of the channel; `epoch` continues it from the head `kept`."""
        self.stamp += 1
        before, last = self.epoch(channel, kept.epoch), self.head(channel)
        last.ended = self.stamp
        if kept.serial and before is not None:
            if last.ops[: kept.serial] == before.ops[: kept.serial]:
                before = last  # otherwise the channel was deleted since
            log = before.copy(epoch, kept.serial, self.stamp)
            log.before = (before, kept.serial) if is_failover else None
            self._logs[channel].append(log)

    def set_used_up(self, ids: Iterable[tuple[str, str]]) -> None:
        """Replace the ids that cannot be used again by those that the store still knows after a power cut."""
        self._used_up = set(ids)


STEP = "turn.step"  # the name of commands that no client gets
STEPS = f"{COMMAND_MARK}{STEP}~"  # the beginning of their ids
ROUND = 128  # the numbers of attempts begin anew after each multiple of this
MARKS = 0xE000  # characters of private use: each encodes the generation of its writer and its offset
GENERATION = "-g"  # precedes the number of a generation in the id of a request


def marks(generation: int, at: int, count: int) -> str:
    """Return text of `count` characters for offset `at`, which only generation `generation` may write."""
    return "".join(chr(MARKS + (generation % 24) * 256 + place % 256) for place in range(at, at + count))


def _wrong_marks(text: str, at: int, generation: int) -> str | None:
    for place, character in enumerate(text, at):
        written, number = divmod(ord(character) - MARKS, 256)
        if not 0 <= written < 24:
            continue
        if written != generation % 24:
            return f"generation {generation} writes, and this is text of generation {written}"
        if number != place % 256:
            return f"the character for {number} stands at {place}"
    return None


def _serial(version: Version) -> int:
    return version[0]


def _supersedes(message: Message, op: Update) -> bool:
    """Return whether the update makes another attempt of parts of the message."""
    return len(_attempts(op.parts or [])) > len(_attempts(message.parts))


def _attempts(parts: list[Part]) -> list[Part]:
    return [part for part in parts if part["type"] == "attempt"]


def _wrong_attempt(before: list[Part], after: list[Part]) -> str | None:
    """Return the fault in the parts `after` a new attempt: it must hold parts of `before`, and the rest stays."""
    place = after.index(_attempts(after)[len(_attempts(before))])
    taken, beside = after[place]["parts"], after[place].get("beside", [])
    stays = after[place + 1 : place + 1 + len(beside)] == [before[index] for index in beside]
    for since in range(len(before)):
        rest = [
            part
            for index, part in enumerate(before)
            if index >= since and index not in beside and part["type"] != "attempt"
        ]
        if (rest, [*before[:since], *_attempts(before[since:])]) == (taken, after[:place]) and taken and stays:
            return None
    return f"the parts before were {before}"


def counted_texts(message: Message, kind: str) -> list[str]:
    """Return the texts of the parts of this type, without those of superseded attempts."""
    return [text_of(part) for part in message.parts if part["type"] == kind]


def text_of(part: Part) -> str:
    """Return the growing text of a part, or an empty string if the part has none."""
    key = APPENDABLE.get(part["type"])
    text: str = part.get(key, "") if key is not None else ""
    return text


def client_command(op: Command) -> model.Command:
    """Return a command as clients see it."""
    return model.Command(
        id=command_id(op.id), name=op.name, target=op.target, data=op.data, from_=op.by, expires_at=op.expires_ms
    )


def _without_data(reply: Reply) -> Reply:
    """Return the reply as a store keeps it after its data has left: of its error only the code remains."""
    error = {"code": reply.error["code"]} if isinstance(reply.error, dict) and "code" in reply.error else None
    return replace(reply, data=None, error=error)


def _fold(message: Message | None, op: EventOp, serial: int) -> Message | None:
    if isinstance(op, Create):
        return Message(
            id=op.id,
            role=op.role,
            author=op.author,
            status=op.status,
            parts=op.parts,
            meta=op.meta,
            parent=op.parent,
            reply_to=op.reply_to,
            created=serial,
            version=serial,
            created_at=op.at_ms,
            updated_at=op.at_ms,
        )
    assert message is not None
    message = replace(message, version=serial)
    match op:
        case Append():
            parts = list(message.parts)
            part = parts[op.part]
            key = APPENDABLE[part["type"]]
            parts[op.part] = {**part, key: part[key] + op.text}
            return replace(message, parts=parts)
        case SetPart():
            parts = list(message.parts)
            parts[op.index : op.index + 1] = [op.part]
            return replace(message, parts=parts, updated_at=op.at_ms)
        case Update():
            parts = message.parts if op.parts is None else op.parts
            return replace(message, parts=parts, meta=op.meta, updated_at=op.at_ms)
        case Finish():
            return replace(message, status=op.status, reason=op.reason, meta=op.meta, updated_at=op.at_ms)
        case Takeover():
            return replace(message, status="streaming", reason=None)
        case Delete():
            return None
        case _:
            assert_never(op)


def describe(op: Op) -> str:
    """Return the operation in a few words."""
    shown = ("part", "at", "index", "status", "state", "generation", "confirmed", "name", "target", "ok", "lease_ms")
    fields = [f"{name}={value}" for name in shown if not isinstance(value := getattr(op, name, None), dict | None)]
    return f"{type(op).__name__.lower()}({' '.join([op.id, *fields])})"
