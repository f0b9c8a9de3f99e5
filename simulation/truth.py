"""The truth: what the store took, folded a second time, naively.

Layer: simulation.

The store model tells this of every write it carried out, and nothing else does; so what is
not in here is not stored. The fold is written as plainly as it can be and shares nothing with `core.state`, and it
remembers every message as it was at every serial. An entry that the rules would never have let through is a violation
the moment it is stored.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import assert_never

from msgspec.structs import replace

from holdfast.core import model
from holdfast.core.cursor import NO_EPOCH
from holdfast.core.model import APPENDABLE, Message, Part
from holdfast.core.names import command_id
from holdfast.core.ops import (
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
    Writer,
)
from holdfast.stores.base import Head, Write
from simulation.trace import Violation

Version = tuple[int, Message | None]  # from this serial on; None: deleted
SeenOp = Create | Append | SetPart | Update | Finish | Takeover | Delete
MessageOp = SeenOp | Claim | Lease


class Life:
    """One epoch of a channel's log."""

    def __init__(self, channel: str, epoch: str, born: int) -> None:
        self.channel = channel
        self.epoch = epoch
        self.born = born  # stamps: see `Truth.stamp`
        self.died: int | None = None
        self.serial = 0
        self.stamps: list[int] = []  # when each serial was stored
        self.changed: list[str] = []  # the message or command that each serial is about, whether it is seen or not
        self.ops: list[Op] = []  # of each serial
        self.versions: dict[str, list[Version]] = {}
        self.takeovers: dict[str, list[int]] = {}  # their serials, by message
        self.requests: dict[tuple[str, str], int] = {}  # by message and request id, the serial of what was carried out
        self.writers: dict[str, list[tuple[int, Writer | None]]] = {}  # by message: from which serial on, who
        self.turns: dict[str, list[tuple[int, str, int]]] = {}  # by message: from which serial on, state and generation
        self.claims: dict[tuple[str, int], Claim] = {}  # by which an attempt of a message was taken
        self.commands: dict[str, tuple[int, Command]] = {}  # with their serials, …
        self.replies: dict[str, tuple[int, Reply]] = {}  # … as their answers
        self.replaced: set[str] = set()  # messages of which text was replaced
        self.seen = 0  # serial of the last entry that is an event
        self.told = 0  # the highest serial that anybody outside was told of

    def at(self, message_id: str, serial: int) -> Message | None:
        """The message as it was at `serial`; None: not there yet, or deleted."""
        versions = self.versions.get(message_id, [])
        place = bisect_right(versions, serial, key=_serial)
        return versions[place - 1][1] if place else None

    def now(self, message_id: str) -> Message | None:
        """The message as it is."""
        versions = self.versions.get(message_id)
        return versions[-1][1] if versions else None

    def is_deleted(self, message_id: str) -> bool:
        """Was there such a message, and is it gone?"""
        return message_id in self.versions and self.versions[message_id][-1][1] is None

    def messages(self, serial: int) -> Iterator[Message]:
        """All messages as they were at `serial`."""
        for message_id in self.versions:
            message = self.at(message_id, serial)
            if message is not None:
                yield message

    def pending(self, serial: int) -> dict[str, model.Command]:
        """The commands that waited for an answer at `serial`, as clients see them."""
        return {
            command_id(key): seen(command)
            for key, (sent, command) in self.commands.items()
            if sent <= serial and (key not in self.replies or self.replies[key][0] > serial)
        }

    def tell(self, serial: int) -> None:
        """Somebody was told of entry `serial`: from now on nobody may be told less."""
        self.told = max(self.told, serial)

    def changed_between(self, after: int, until: int) -> int:
        """How many messages and commands have entries after serial `after` and not after `until`."""
        return len(set(self.changed[after:until]))

    def is_stored(self, serial: int, stamp: int) -> bool:
        """Was entry `serial` stored at `stamp`?"""
        return serial <= self.serial and (serial == 0 or self.stamps[serial - 1] <= stamp)

    def texts(self, message_id: str, part: int) -> Iterator[str]:
        """Every text that the part ever had, newest first."""
        for _, message in reversed(self.versions.get(message_id, [])):
            if message is not None and part < len(message.parts):
                yield text_of(message.parts[part])

    def apply(self, entry: Entry, stamp: int) -> None:
        """Take in what was stored. Raises Violation where the rules forbid it."""
        op = entry.op
        if entry.serial != self.serial + 1:
            raise Violation(f"serial {entry.serial} of {self.channel} was stored after {self.serial}")
        if isinstance(op, Command | Reply):
            self._take_about_command(op, entry.serial)
        else:
            self._take_about_message(op, entry.serial)
        self.serial = entry.serial
        if not isinstance(op, Claim | Lease):
            self.seen = entry.serial
        self.stamps.append(stamp)
        self.changed.append(op.id)
        self.ops.append(op)

    def _take_about_command(self, op: Command | Reply, serial: int) -> None:
        known = self.commands if isinstance(op, Command) else self.replies
        if op.id in known or (isinstance(op, Reply) and op.id not in self.commands):
            raise Violation(f"{self.channel}: {shown(op)} was stored as {serial}: a second one, or of no command")
        if isinstance(op, Command):
            self.commands[op.id] = serial, op
        else:
            self.replies[op.id] = serial, op

    def _take_about_message(self, op: MessageOp, serial: int) -> None:
        if isinstance(op, Create) and op.id in self.versions:
            raise Violation(f"{self.channel}: message {op.id} was created twice")
        message = self.now(op.id)
        if message is None and not isinstance(op, Create):
            raise Violation(f"{self.channel}: {shown(op)} was stored, but there is no such message")
        self._check(message, op)
        if isinstance(op, Claim):
            self.turns[op.id].append((serial, op.state, op.generation))
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
        elif isinstance(op, Update) or (isinstance(op, SetPart) and message and op.index < len(message.parts)):
            self.replaced.add(op.id)

    def copy(self, epoch: str, serial: int, stamp: int) -> Life:
        """The life that begins where this one stood at `serial`."""
        life = Life(self.channel, epoch, stamp)
        life.serial = serial
        life.stamps = [stamp] * serial
        life.changed = self.changed[:serial]
        life.ops = self.ops[:serial]
        for message_id, versions in self.versions.items():
            kept = versions[: bisect_right(versions, serial, key=_serial)]
            if kept:
                life.versions[message_id] = kept
                life.writers[message_id] = [one for one in self.writers[message_id] if one[0] <= serial]
                life.takeovers[message_id] = [one for one in self.takeovers.get(message_id, []) if one <= serial]
                if message_id in self.turns:
                    life.turns[message_id] = [one for one in self.turns[message_id] if one[0] <= serial]
        life.commands = {key: one for key, one in self.commands.items() if one[0] <= serial}
        life.replies = {key: one for key, one in self.replies.items() if one[0] <= serial}
        life.claims = dict(self.claims)  # those that were lost are taken again before anybody asks for them
        life.replaced = set(self.replaced)
        life.seen = min(self.seen, serial)
        return life

    def _check(self, message: Message | None, op: MessageOp) -> None:
        wrong = self._wrong_with_hand(op)
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
        elif isinstance(op, Takeover):
            generation = 1 + len(self.takeovers.get(op.id, []))
            if op.generation != generation + 1:
                wrong = f"the message is in generation {generation}"
        elif isinstance(op, Claim):
            wrong = self._wrong_with_claim(op)
        elif isinstance(op, Lease) and message is not None and message.status != "streaming":
            wrong = f"the message is {message.status}"
        if wrong is not None:
            raise Violation(f"{self.channel}: {shown(op)} was stored as {self.serial + 1}, but {wrong}")

    def _wrong_with_hand(self, op: MessageOp) -> str | None:
        """Text and ends that say which generation they are of are of the one that writes now."""
        generation = 1 + len(self.takeovers.get(op.id, []))
        if isinstance(op, Append) and not op.text.isascii():
            return _wrong_mark(op.text, op.at, generation)
        if isinstance(op, SetPart) and not text_of(op.part).isascii():
            return _wrong_mark(text_of(op.part), 0, generation)
        if isinstance(op, Finish) and op.request is not None and GENERATION in op.request:
            written = int(op.request.rpartition(GENERATION)[2])
            return f"its generation {written} is fenced off by {generation}" if written != generation else None
        return None

    def _wrong_with_claim(self, op: Claim) -> str | None:
        if op.id not in self.turns:
            return "the message waits for no agent"
        _, state, generation = self.turns[op.id][-1]
        if state not in ("pending", "taken") or (op.state == "done" and state != "taken"):
            return f"its turn is {state}"
        expected = generation + 1 if op.state == "taken" else generation
        return f"its turn is in attempt {generation}" if op.generation != expected else None


class Truth:
    """All that is stored, of all channels, now and before."""

    def __init__(self, *, is_exclusive: bool) -> None:
        self.stamp = 0  # counts what the store carried out
        self._is_exclusive = is_exclusive
        self._lives: dict[str, list[Life]] = {}
        self._graves: set[tuple[str, str]] = set()  # ids used up by channels that were deleted

    @property
    def channels(self) -> list[str]:
        return list(self._lives)

    def head(self, channel: str) -> Life:
        """The channel's present life; one without entries if it is empty."""
        lives = self._lives.get(channel)
        return lives[-1] if lives and lives[-1].died is None else Life(channel, NO_EPOCH, 0)

    def life(self, channel: str, epoch: str) -> Life | None:
        """The life `epoch` of the channel, if there ever was one."""
        if epoch == NO_EPOCH:
            return Life(channel, NO_EPOCH, 0)
        return next((life for life in self._lives.get(channel, []) if life.epoch == epoch), None)

    def lives_between(self, channel: str, since: int, until: int) -> list[Life]:
        """The lives that the channel had at any moment from stamp `since` to `until`, newest first."""
        return [
            life
            for life in reversed(self._lives.get(channel, []))
            if life.born <= until and (life.died is None or life.died >= since)
        ]

    def was_disturbed(self, channel: str, since: int) -> bool:
        """Did the channel begin a new life after stamp `since`, or end one?"""
        return any(
            (life.died is not None and life.died > since) or (life.born > since and place > 0)
            for place, life in enumerate(self._lives.get(channel, []))
        )

    def is_grave(self, channel: str, message_id: str) -> bool:
        """Is the id used up by a channel that was deleted?"""
        return (channel, message_id) in self._graves

    def applied(self, write: Write) -> None:
        """The store took `write`."""
        self.stamp += 1
        life = self.head(write.channel)
        if life.serial != write.expected or (life.serial and life.epoch != write.epoch):
            raise Violation(
                f"{write.channel} stands at {life.epoch}:{life.serial}, a write for {write.expected} went in"
            )
        if write.entries and not life.serial:
            if self.life(write.channel, write.epoch) is not None:
                raise Violation(f"{write.channel} is born again with the epoch {write.epoch} that it had before")
            life = Life(write.channel, write.epoch, self.stamp)
            self._lives.setdefault(write.channel, []).append(life)
        for entry in write.entries:
            if isinstance(entry.op, Create) and self.is_grave(write.channel, entry.op.id):
                raise Violation(f"{write.channel}: the used up id {entry.op.id} was created again")
            life.apply(entry, self.stamp)

    def channel_deleted(self, channel: str, used_up: Iterable[str]) -> None:
        """The store emptied `channel`."""
        self.stamp += 1
        life = self.head(channel)
        streaming = {message.id for message in life.messages(life.serial) if message.status == "streaming"}
        missing = streaming - set(used_up)
        # Where several hubs write, one may begin a message between the moment another looked and the deletion.
        if missing and self._is_exclusive:
            raise Violation(f"{channel} was deleted, but the ids that streamed were not used up: {sorted(missing)}")
        self._graves |= {(channel, message_id) for message_id in used_up}
        if life.serial:
            life.died = self.stamp

    def power_was_lost(self, channel: str, kept: Head, epoch: str) -> None:
        """Only what the channel held at `kept` is left of it, and goes on as `epoch`."""
        self.stamp += 1
        before = self.life(channel, kept.epoch)
        life = self.head(channel)
        life.died = self.stamp
        if kept.serial and before is not None:
            self._lives[channel].append(before.copy(epoch, kept.serial, self.stamp))

    def graves_are(self, graves: Iterable[tuple[str, str]]) -> None:
        """After a power cut: only these ids are used up."""
        self._graves = set(graves)


MARKS = 0xE000  # characters of private use, each of which says by whom it was written, and where
GENERATION = "-g"  # before the number of a generation, in the id of a request


def marks(generation: int, at: int, count: int) -> str:
    """Text of `count` characters for the place `at`, which only generation `generation` may write."""
    return "".join(chr(MARKS + (generation % 24) * 256 + place % 256) for place in range(at, at + count))


def _wrong_mark(text: str, at: int, generation: int) -> str | None:
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


def text_of(part: Part) -> str:
    """The text of a part that grows; empty where it has none."""
    key = APPENDABLE.get(part["type"])
    text: str = part.get(key, "") if key is not None else ""
    return text


def seen(op: Command) -> model.Command:
    """A command as clients see it."""
    return model.Command(
        id=command_id(op.id), name=op.name, target=op.target, data=op.data, from_=op.by, expires_at=op.expires_ms
    )


def _fold(message: Message | None, op: SeenOp, serial: int) -> Message | None:
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


def shown(op: Op) -> str:
    """An operation in a few words."""
    match op:
        case Create():
            return f"create({op.id} {op.status})"
        case Append():
            return f"append({op.id}.{op.part} {op.at}+{len(op.text)})"
        case SetPart():
            return f"part({op.id}.{op.index} {op.part['type']})"
        case Update():
            return f"update({op.id}{'' if op.parts is None else ' parts'})"
        case Finish():
            return f"finish({op.id} {op.status})"
        case Takeover():
            return f"takeover({op.id} g{op.generation})"
        case Delete():
            return f"delete({op.id})"
        case Claim():
            return f"claim({op.id} {op.state} g{op.generation})"
        case Lease():
            return f"lease({op.id} {op.lease_ms})"
        case Command():
            return f"command({op.id} {op.name} {op.target})"
        case Reply():
            return f"reply({op.id} {op.ok})"
        case _:
            assert_never(op)
