"""The fold: computes the state of a channel from its entries.

Layer: core.

`apply_entry` is total: the log is fact, so it never refuses and never raises. It changes the
state in place and costs no more than the change itself. `decide` accepts or refuses requests; `catch_up` reads
this state to compute a viewer's missed events; `document` turns a message into the form that stores keep.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import assert_never

from msgspec.structs import replace

from tenuto.core.events import NO_EPOCH
from tenuto.core.message_state import (
    CLAIMED,
    ClaimState,
    CommandState,
    MessageState,
    part_bytes,
    set_parts,
    utf8_len,
)
from tenuto.core.model import OPTIONS
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
)
from tenuto.core.text import PartState

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
        # True: `messages` and `commands` hold all ids that the store has, except those of ended steps
        self.is_whole = False
        self.history_from = serial + 1  # `messages` holds every message that was created at or after this serial
        self.has_older = serial > 0  # the store may have messages that are older than `history_from`
        # True: older messages were not loaded because the page had reached its limit in bytes
        self.is_history_cut = False
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
            self.has_older, self.is_history_cut = True, False


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
    if type(op) is Create:
        if op.role != OPTIONS:
            state.newest = op.id
        state.note_claim(changed)
    elif type(op) is Claim or type(op) is Delete:
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
    """Change `message` by `op`, which must be new to it."""
    if message.deleted:
        return
    if isinstance(op, Append):  # checked first, since nearly all operations are appends
        _append(message, op, serial)
        return
    if serial > message.last:
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
    message.version = max(message.version, serial)
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
    if serial > message.last:  # in a draft, text that joins an earlier append has the serial of that
        message.last = serial
        message.alive_at = op.at_ms
    if serial > message.version:
        message.version = serial
    known = message.parts[op.part].text if op.part < len(message.parts) else None
    if known is None or op.at > known.length:
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
    elif op.index == len(message.parts):
        message.size_bytes += size
        message.parts.append(PartState(op.part, serial, serial))
    message.shaped = serial
