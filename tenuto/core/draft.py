"""A decision, and the draft that it is made on: the running batch on top of the durable state.

Layer: core.

Requests of a batch are decided one after another. Each must see the effect of the earlier ones, while viewers read only
the durable state. A draft joins the appends that the batch will store. It copies (forks) a message only if it is read
again after it changed, so a batch of one append copies none. Dropping a draft undoes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.model import OPTIONS
from tenuto.core.ops import Append, Claim, Command, Create, Entry, Lease, Op, Reply, SetPart
from tenuto.core.state import ChannelState, ClaimState, CommandState, MessageState, apply_to_command, change


class Decision(Struct, frozen=True, kw_only=True):
    """The operations to store for a request, and the fields of its result other than the serial."""

    ops: tuple[Op, ...] = ()
    result_op: int = -1  # index in `ops`; the result of the request carries the serial of this operation
    serial: int = 0  # only of a repeat: serial of the earlier entry, which the result carries
    generation: int | None = None
    part: int | None = None
    length: int | None = None
    lengths: list[int] | None = None


class Draft:
    """The state that a channel will have when the batch is stored; `base`, the durable state, stays as it is."""

    def __init__(self, base: ChannelState) -> None:
        self.base = base
        self.newest = base.newest
        self.ops: list[Op] = []
        # ids of messages and commands with other changes than appends and parts, which need a new document
        self.reshaped: dict[str, None] = {}
        self.appended: dict[str, int] = {}  # for each message the number of code points appended
        self._texts: dict[int, list[str]] = {}  # for each joined append, by its index in `ops`: the texts to join
        self._forks: dict[str, MessageState] = {}  # copies of messages, and new ones, with their changes
        self._commands: dict[str, CommandState] = {}  # new commands, and copies of those that have changed
        self._turns: dict[str, None] = {}  # ids of messages whose turns this batch may begin, claim or end
        self._unapplied: dict[str, list[tuple[int, Op]]] = {}  # for each message the changes that no fork has yet
        # message id → part → index in `ops` of the append that the next text of this part can join
        self._joinable: dict[str, dict[int, int]] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether the channel's log is empty and the batch so far adds no entry."""
        return not (self.base.serial or self.ops)

    def message(self, message_id: str) -> MessageState | None:
        """Return the message as it will be after the batch so far."""
        unapplied = self._unapplied.pop(message_id, None)
        message = self._forks.get(message_id)
        if unapplied is None:
            return message or self.base.messages.get(message_id)
        if message is None and (known := self.base.messages.get(message_id)) is not None:
            message = known.fork()
        for serial, op in unapplied:
            if message is None:
                assert isinstance(op, Create)
                message = MessageState.begun(op, serial)
            else:
                change(message, op, serial)
        assert message is not None
        self._forks[message_id] = message
        return message

    def command(self, key: str) -> CommandState | None:
        """Return the command as it will be after the batch so far."""
        return self._commands.get(key) or self.base.commands.get(key)

    def messages(self) -> Iterator[MessageState]:
        """Return the messages in memory as they will be after the batch so far."""
        # A copy of the ids, because `message` changes `_unapplied`.
        found = map(self.message, {**self.base.messages, **self._forks, **self._unapplied})
        return (one for one in found if one is not None)

    def streaming(self) -> Iterator[MessageState]:
        """Yield the messages that will stream after the batch so far."""
        return (message for message in self.messages() if message.is_streaming)

    def running(self) -> Iterator[MessageState]:
        """Yield the user messages whose own turns an attempt will have after the batch so far."""
        return (one for one in self._with_turns() if one.is_taken)

    def held_by(self, message_id: str) -> Iterator[tuple[MessageState, ClaimState]]:
        """Yield the messages that the turn of `message_id` has taken in, after the batch so far, with their claims."""
        for one in self._with_turns():
            if one.claim is not None and (one.claim.state, one.claim.within) == ("taken", message_id):
                yield one, one.claim

    def pending(self) -> list[MessageState]:
        """Return the messages that will wait for an agent after the batch so far."""
        return [one for one in self._with_turns() if one.is_pending]

    def _with_turns(self) -> Iterator[MessageState]:
        found = map(self.message, {**self.base.turns, **self._turns})
        return (one for one in found if one is not None and not one.deleted)

    def open_commands(self) -> list[CommandState]:
        """Return the commands that will wait for a reply after the batch so far."""
        known = {**self.base.commands, **self._commands}
        return [one for one in known.values() if one.is_open]

    def add(self, op: Op) -> int:
        """Add `op` to the batch; returns the serial of its entry. Neighbouring appends become one."""
        if isinstance(op, Command | Reply):
            return self._add_about_command(op)
        index = len(self.ops)
        joinable = self._joinable.setdefault(op.id, {})
        if type(op) is Append:
            self.appended[op.id] = self.appended.get(op.id, 0) + len(op.text)
            index = joinable.setdefault(op.part, index)
        elif type(op) is SetPart:
            joinable.pop(op.index, None)  # text must not move across another operation of the same part
        else:
            self.reshaped[op.id] = None
            if type(op) is not Claim and type(op) is not Lease:
                joinable.clear()  # nor across an update, finish, takeover or delete of the message
        if index == len(self.ops):
            self.ops.append(op)
        else:
            earlier = self.ops[index]
            assert type(earlier) is Append
            assert type(op) is Append
            self._texts.setdefault(index, [earlier.text]).append(op.text)
        serial = self.base.serial + index + 1
        self._unapplied.setdefault(op.id, []).append((serial, op))
        if type(op) is Create and op.role != OPTIONS:
            self.newest = op.id
        if type(op) is Create or type(op) is Claim:
            self._turns[op.id] = None
        return serial

    def thing(self, key: str) -> MessageState | CommandState | None:
        """Return the message or command as it will be after the batch so far."""
        return self.command(key) or self.message(key)

    def entries(self) -> list[Entry]:
        """Return the entries to store for the batch."""
        for index, pieces in self._texts.items():
            self.ops[index] = replace(self.ops[index], text="".join(pieces))
        self._texts.clear()
        return [Entry(serial, op) for serial, op in enumerate(self.ops, self.base.serial + 1)]

    def _add_about_command(self, op: Command | Reply) -> int:
        self.ops.append(op)
        serial = self.base.serial + len(self.ops)
        known = self.command(op.id)
        changed = apply_to_command(replace(known) if known is not None else None, op, serial)  # changes a copy
        if changed is not None:
            self._commands[op.id] = changed
        self.reshaped[op.id] = None
        return serial
