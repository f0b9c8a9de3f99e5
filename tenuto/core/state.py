"""The state of a channel, of its messages and their turns, and of its commands: the fold of the entries.

Layer: core.

`apply_entry` is total: the log is fact, so it never refuses and never raises. It changes the
state in place and costs no more than the change itself. `decide` accepts or refuses requests; `catch_up` reads
this state to compute a viewer's missed events; `document` turns a message into the form that stores keep.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.events import NO_EPOCH
from tenuto.core.model import APPENDABLE, OPTIONS, STEP_NAME, Json, Message, Part
from tenuto.core.model import Command as SentCommand
from tenuto.core.names import command_id
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
from tenuto.core.text import FIRST_BYTES, PartState, Text

KEPT_REQUESTS = 16  # remembered per message, to recognise one with an id that is repeated (`docs/protocol.md`, 8.2)


DAMAGED = "damaged"  # reason of a message that a store can no longer read; a command has it as its error's code


class ClaimState(NamedTuple):
    """The state of a message's turn: waiting for an agent, taken by one, or over."""

    state: str  # pending, taken, done or cancelled
    generation: int = 0  # number of the last attempt; 0 before the first
    by: str | None = None
    node: str | None = None
    lease_ms: int = 0
    within: str | None = None  # id of the message whose turn has taken this message in; its attempt ends both turns
    within_generation: int = 0  # the attempt that has taken this message in; if it is lost, this message waits again
    round_from: int = 0  # serial of the `regenerate` that began this round of attempts; 0 for the first round
    # number of times that the node has claimed this attempt again before a handler began it, or, on a shared store,
    # that its remote worker has renewed its lease
    confirmed: int = 0
    spared: int = 0  # number of attempts of this round that were handed over, and do not count

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "taken")


_OF_CREATE = ("id", "role", "author", "status", "meta", "parent", "reply_to", "digest", "writer")
CLAIMED = tuple(name for name in ClaimState._fields if name != "round_from")  # the fields that a `Claim` has, too


@dataclass(slots=True, eq=False, kw_only=True)
class MessageState:
    """The state of one message: the fold of its entries."""

    id: str
    role: str
    author: str | None
    status: str
    reason: str | None = None
    meta: dict[str, Json]
    parent: str | None
    reply_to: str | None
    created: int
    version: int  # serial of the last visible change
    last: int  # serial of the last entry of any kind
    created_at: int
    updated_at: int
    # time of the last claim or takeover since the message was loaded; neither head nor clients have it
    moved_at: int = 0
    # time of the last sign of life of the remote writer, or of the agent that has the turn; 0: unknown
    alive_at: int
    digest: bytes
    writer: WriterIdentity | None
    generation: int = 1
    claim: ClaimState | None
    deleted: bool = False
    edited: int  # serial of the last create or update operation
    # serial of the last create, update or part; a viewer older than it needs more than the missing text
    shaped: int
    finished: int = 0  # serial of the last finish operation
    finished_as: tuple[str, str | None] = ("", None)  # status and reason of the last finish
    taken_over: int = 0  # serial of the last takeover
    # recent requests: id, serial, generation
    requests: deque[tuple[str, int, int]] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    parts: list[PartState] = field(default_factory=list)
    size_bytes: int = 0  # size of the text and of all fields, in bytes of UTF-8
    documented: int = 0  # version of the message that the store's document contains
    undocumented_bytes: int = 0  # size of the text and fields that arrived after that document was stored

    @classmethod
    def begun(cls, op: Create, serial: int) -> MessageState:
        """Return the state after the entry that created the message."""
        fields: dict[str, Any] = {name: getattr(op, name) for name in _OF_CREATE}
        fields |= dict.fromkeys(("created_at", "updated_at", "alive_at"), op.at_ms)
        fields |= dict.fromkeys(("created", "version", "last", "edited", "shaped"), serial)
        message = cls(**fields, claim=ClaimState("pending") if op.is_pending else None)
        set_parts(message, op.parts, serial)
        message.undocumented_bytes = message.size_bytes
        return message

    def fork(self) -> MessageState:
        """Return a copy; changes to it leave this message as it is. Copies the head, not the text."""
        copy = MessageState.__new__(MessageState)
        for name in MessageState.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.parts = [part.fork() for part in self.parts]
        copy.requests = self.requests.copy()
        return copy

    @property
    def is_streaming(self) -> bool:
        return self.status == "streaming" and not self.deleted

    @property
    def is_open(self) -> bool:
        """Return whether the message streams, or its turn is waiting or taken."""
        return not self.deleted and (self.status == "streaming" or (self.claim is not None and self.claim.is_open))

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a message that the store cannot read (`document.damaged_head`)."""
        return self.reason == DAMAGED and self.status == "failed" and not self.created_at and not self.deleted

    @property
    def is_pending(self) -> bool:
        """Return whether the message waits for an agent to take its turn."""
        return self.claim is not None and self.claim.state == "pending" and not self.deleted

    @property
    def is_taken(self) -> bool:
        """Return whether an attempt has the message's own turn."""
        claim = self.claim
        return claim is not None and claim.state == "taken" and claim.within is None and not self.deleted

    def message(self) -> Message:
        """Return the message in the form that clients see."""
        return Message(
            id=self.id,
            role=self.role,
            author=self.author,
            status=self.status,
            reason=self.reason,
            parts=[part.value() for part in self.parts],
            meta=self.meta,
            parent=self.parent,
            reply_to=self.reply_to,
            created=self.created,
            version=self.version,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )

    def cost_bytes(self) -> int:
        """Return an estimate of the memory that this message uses."""
        texts = sum(part.text.cost_bytes() for part in self.parts if isinstance(part.text, Text))
        firsts = FIRST_BYTES * sum(part.first is not None for part in self.parts)
        return 1_000 + self.size_bytes + texts + firsts


def set_parts(message: MessageState, parts: list[Part], serial: int) -> None:
    message.parts = [PartState(part, serial, serial) for part in parts]
    message.size_bytes = sum(part_bytes(part) for part in parts)


class CommandState(Struct, eq=False, kw_only=True):
    """The state of one command: the fold of its entries."""

    sent: Command
    created: int
    reply: Reply | None = None
    reply_serial: int = 0  # serial of the reply; 0 while there is none
    stored_bytes: int = 0  # size of the data that was read from the store: a step's result may be large

    @property
    def id(self) -> str:
        """Return the id, with its prefix `!`."""
        return self.sent.id

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a command that the store cannot read (`document.damaged_head`)."""
        return self.sent.name == DAMAGED and not self.sent.at_ms

    @property
    def version(self) -> int:
        """Return the serial of the command's last entry."""
        return self.reply_serial or self.created

    @property
    def updated_at(self) -> int:
        """Return the time of the command or of its reply, in ms since 1970."""
        return max(self.sent.at_ms, self.reply.at_ms) if self.reply is not None else self.sent.at_ms

    @property
    def is_step(self) -> bool:
        """Return whether this keeps a step of a turn, which no viewer gets."""
        return self.sent.name == STEP_NAME

    @property
    def is_open(self) -> bool:
        """Return whether the command still waits for its reply; a step waits for none, since its turn is open."""
        return self.reply is None and not self.is_step

    def command(self) -> SentCommand:
        """Return the command in the form that clients see."""
        sent = self.sent
        return SentCommand(
            id=command_id(sent.id),
            name=sent.name,
            target=sent.target,
            data=sent.data,
            from_=sent.by,
            expires_at=sent.expires_ms,
        )


def utf8_len(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# the field of a part that may be long, by type: it is counted without being encoded
_LONG = {**APPENDABLE, "file": "url"}


def part_bytes(part: Part) -> int:
    """Return the size of a part: its long text, plus its other fields as JSON.

    The size does not depend on how the text came, so removing a part subtracts exactly the bytes that it added.
    """
    key = _LONG.get(part["type"], "")
    if not isinstance(text := part.get(key, ""), str):  # a file of another form
        return len(msgspec.json.encode(part))
    size = len(msgspec.json.encode({name: value for name, value in part.items() if name != key}))
    return size + (len(text) if text.isascii() else utf8_len(text))


KEPT_COMMANDS = 1_000  # commands that stay in memory although they have a reply
COMMAND_COST = 1_500  # estimated bytes that a command uses in memory; its data is bounded


class ChannelState:
    """The state of one channel in memory: its streaming and recently changed messages, ordered by last change."""

    def __init__(self, channel: str, epoch: str = NO_EPOCH, serial: int = 0, floor: int = 0) -> None:
        self.channel = channel
        self.epoch = epoch
        self.serial = serial
        self.floor = floor  # cursors below this serial belong to a history that is no longer kept
        self.lives = 0  # of an empty channel: the number of its life, which each deletion raises (`Head.lives`)
        self.newest: str | None = None  # id of the message that was created last, even if it is deleted
        self.complete_since = serial  # `messages` holds every message that changed after this serial
        self.is_whole = False  # True: `messages` and `commands` hold all ids in the store, except those of ended steps
        self.history_from = serial + 1  # `messages` holds every message that was created at or after this serial
        self.is_history_cut = False  # True: older messages were not loaded, as the page had reached its limit in bytes
        self.messages: OrderedDict[str, MessageState] = OrderedDict()  # in order of their last change
        self.turns: dict[str, None] = {}  # ids of the messages that wait for an agent, or that an attempt has
        # commands in order of their last change; all commands without a reply are here
        self.commands: OrderedDict[str, CommandState] = OrderedDict()

    @property
    def cursor(self) -> str:
        """Return the cursor of the last entry."""
        return f"{self.epoch}:{self.serial}"

    def knows(self, key: str) -> bool:
        """Return whether the message or command is in memory."""
        return key in self.messages or key in self.commands

    def insert(self, found: Iterable[MessageState | CommandState]) -> None:
        """Add messages and commands that were read from the store, in the order of last change."""
        messages, commands = dict(self.messages), dict(self.commands)
        for one in found:
            if isinstance(one, CommandState):
                commands[one.id] = one
            else:
                messages[one.id] = one
                self.note_claim(one)
        self.messages = OrderedDict(sorted(messages.items(), key=lambda item: item[1].version))
        self.commands = OrderedDict(sorted(commands.items(), key=lambda item: item[1].version))

    def note_claim(self, message: MessageState) -> None:
        """Update the index of open turns for `message`."""
        if message.claim is not None and message.claim.is_open and not message.deleted:
            self.turns[message.id] = None
        else:
            self.turns.pop(message.id, None)

    def pending_commands(self) -> list[CommandState]:
        """Return the commands that wait for a reply, oldest first."""
        return sorted((one for one in self.commands.values() if one.is_open), key=lambda one: one.created)

    def cost_bytes(self) -> int:
        """Return an estimate of the memory that this channel uses."""
        commands = sum(COMMAND_COST + command.stored_bytes for command in self.commands.values())
        return sum(message.cost_bytes() for message in self.messages.values()) + commands

    def trim(self, keep_bytes: int) -> None:
        """Drop commands with a reply, then finished messages, those unchanged for longest first, until the rest uses
        about `keep_bytes`. Of the commands at most `KEPT_COMMANDS` stay.
        """
        cost = self.cost_bytes()
        for command in list(self.commands.values()):
            if cost <= keep_bytes and len(self.commands) <= KEPT_COMMANDS:
                break
            if not command.is_open:
                cost -= COMMAND_COST + command.stored_bytes
                del self.commands[command.id]
                self.complete_since, self.is_whole = max(self.complete_since, command.version), False
        for message in list(self.messages.values()):
            if cost <= keep_bytes:
                return
            if message.is_open:
                continue
            cost -= message.cost_bytes()
            del self.messages[message.id]
            self.complete_since, self.is_whole = max(self.complete_since, message.version), False
            self.history_from = max(self.history_from, message.created + 1)
            self.is_history_cut = False


def apply_entry(state: ChannelState, entry: Entry) -> None:
    """Apply `entry` to `state`. Never raises: the log is already fact. An entry at or below its serial is ignored."""
    serial, op = entry.serial, entry.op
    if serial <= state.serial:
        return
    state.serial = serial
    if type(op) is Append:  # checked first, since nearly all entries are appends
        message = state.messages.get(op.id)
        if message is None:  # viewers with an older cursor need the store
            state.complete_since = serial
        else:
            if serial > message.last and not message.deleted:
                _append(message, op, serial)
            state.messages.move_to_end(op.id)
        return
    if type(op) is Command or type(op) is Reply:
        command = apply_to_command(state.commands.get(op.id), op, serial)
        if command is None:
            state.complete_since = serial
        elif command.is_step and command.reply is not None:
            state.commands.pop(op.id, None)  # no viewer gets it, and only a later attempt reads it, from the store
        else:
            state.commands[op.id] = command
            state.commands.move_to_end(op.id)
        return
    known = state.messages.get(op.id)
    changed = apply_op(known, op, serial)
    if changed is None:  # the message is not in memory
        state.complete_since = serial
        return
    if known is None:
        state.messages[op.id] = changed
    elif type(op) is not Claim and type(op) is not Lease:  # viewers get no event for these
        state.messages.move_to_end(op.id)
    if type(op) is Create and op.role != OPTIONS:
        state.newest = op.id
    if type(op) in (Create, Claim, Delete):
        state.note_claim(changed)


def apply_op(message: MessageState | None, op: Op, serial: int) -> MessageState | None:
    """Apply `op` to `message` and return it; a new message for a create; None if there is no message to change."""
    if message is None:
        return MessageState.begun(op, serial) if isinstance(op, Create) else None
    if serial > message.last:
        change(message, op, serial)
    return message


def apply_to_command(command: CommandState | None, op: Op, serial: int) -> CommandState | None:
    """Apply `op` to a command as `apply_op` does to a message. The first reply counts."""
    if command is None:
        return CommandState(sent=op, created=serial) if isinstance(op, Command) else None
    if isinstance(op, Reply) and command.reply is None:
        command.reply, command.reply_serial = op, serial
    return command


def change(message: MessageState, op: Op, serial: int) -> None:
    """Change `message` by `op`, which must be new to it, and later than its other entries unless it is an append."""
    if message.deleted:
        return
    if isinstance(op, Append):  # checked first, since nearly all operations are appends
        _append(message, op, serial)
        return
    message.last = serial
    if isinstance(op, Claim):
        before = message.claim.round_from if message.claim is not None else 0
        is_restart = op.state == "pending" and not op.spared  # otherwise the last attempt was handed over
        round_from = serial if is_restart else before
        message.claim = ClaimState(**{name: getattr(op, name) for name in CLAIMED}, round_from=round_from)
        message.moved_at = max(message.moved_at, op.at_ms)
        message.alive_at = op.at_ms
        return
    if isinstance(op, Lease):
        message.alive_at = op.at_ms
        if message.writer is not None:
            message.writer = replace(message.writer, lease_ms=op.lease_ms)
        return
    message.version = serial
    match op:
        case SetPart():
            _set_part(message, op, serial)
        case Update():
            message.meta, message.updated_at = op.meta, op.at_ms
            message.edited = message.shaped = serial
            if op.parts is not None:
                set_parts(message, op.parts, serial)
                message.undocumented_bytes += message.size_bytes
        case Finish():
            message.status, message.reason, message.meta, message.updated_at = op.status, op.reason, op.meta, op.at_ms
            message.finished, message.finished_as = serial, (op.status, op.reason)
        case Takeover():
            message.status, message.reason = "streaming", None
            message.generation, message.writer, message.taken_over = op.generation, op.writer, serial
            message.moved_at = max(message.moved_at, op.at_ms)
        case Delete():
            message.deleted = True
            if message.claim is not None and message.claim.is_open:
                message.claim = message.claim._replace(state="cancelled")
            message.parts, message.meta, message.size_bytes = [], {}, 0
            message.updated_at = max(message.updated_at, op.at_ms)
        case Create() | Command() | Reply():
            # `decide` prevents these: a log holds no second create of an id, and no command with the id of a message
            pass
        case _:
            assert_never(op)
    if isinstance(op, SetPart | Update | Finish | Takeover) and op.request is not None:
        message.requests.append((op.request, serial, message.generation))
    if message.status == "streaming":
        message.alive_at = op.at_ms


def _append(message: MessageState, op: Append, serial: int) -> None:
    """Add the end of the text that the part lacks; text that does not fit changes no part."""
    if serial > message.last:  # in a draft, text that joins an earlier append has the serial of that
        message.last = serial
        message.alive_at = op.at_ms
    if serial > message.version:
        message.version = serial
    known = message.parts[op.part].text if op.part < len(message.parts) else None
    if known is None or op.at > known.length:  # `decide` prevents both
        return
    text = op.text if op.at == known.length else op.text[known.length - op.at :]
    known.append(text, serial)
    size = len(text) if text.isascii() else utf8_len(text)
    message.size_bytes += size
    message.undocumented_bytes += size


def _set_part(message: MessageState, op: SetPart, serial: int) -> None:
    size = part_bytes(op.part)
    message.undocumented_bytes += size
    message.updated_at = op.at_ms
    if op.index < len(message.parts):
        old = message.parts[op.index]
        message.size_bytes += size - part_bytes(old.value())
        message.parts[op.index] = old.replaced(op.part, serial)
    elif op.index == len(message.parts):  # `decide` refuses a higher index
        message.size_bytes += size
        message.parts.append(PartState(op.part, serial, serial))
    message.shaped = serial
