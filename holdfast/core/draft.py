"""A draft: the running batch on top of the durable state, and the joining of what it will store.

Layer: core.

Requests of a batch are decided one after another; each must see what the ones before it did,
while the state that viewers read stays as durable as it is. A draft forks only messages that are looked at again
after they changed, so a batch of one append forks nothing. Dropping a draft undoes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from holdfast.core.ops import Append, Claim, Command, Create, Entry, Lease, Op, Reply, SetPart
from holdfast.core.state import ChannelState, CommandState, MessageState, apply_to_command, change


class Draft:
    """What a channel will be when the batch is stored."""

    def __init__(self, base: ChannelState) -> None:
        self.base = base
        self.newest = base.newest
        self.ops: list[Op] = []
        self.reshaped: dict[str, None] = {}  # messages and commands that more than grew: their documents are due
        self.grown: dict[str, int] = {}  # code points appended, by message
        self._texts: dict[int, list[str]] = {}  # the pieces of joined appends, by place in `ops`
        self._forks: dict[str, MessageState] = {}
        self._commands: dict[str, CommandState] = {}
        self._pending: dict[str, None] = {}  # messages of this batch that were created so
        self._unapplied: dict[str, list[tuple[int, Op]]] = {}
        self._joinable: dict[str, dict[int, int]] = {}  # message id → part → place in `ops` of its open append

    @property
    def is_empty(self) -> bool:
        """Has nothing been stored in this life of the channel, nor will be by the batch so far?"""
        return not (self.base.serial or self.ops)

    def message(self, message_id: str) -> MessageState | None:
        """The message as it will be after the batch so far."""
        unapplied = self._unapplied.pop(message_id, None)
        message = self._forks.get(message_id)
        if unapplied is None:
            return message or self.base.message(message_id)
        if message is None and (known := self.base.message(message_id)) is not None:
            message = known.fork()
        for serial, op in unapplied:
            if message is None:
                assert isinstance(op, Create)
                message = MessageState(op, serial)
            else:
                change(message, op, serial)
        assert message is not None
        self._forks[message_id] = message
        return message

    def command(self, key: str) -> CommandState | None:
        """The command as it will be after the batch so far."""
        return self._commands.get(key) or self.base.command(key)

    def streaming(self) -> Iterator[MessageState]:
        """The messages that will stream after the batch so far."""
        # A message of this batch that was looked at is a fork, and not among the unapplied any more.
        for message_id in {**self.base.messages, **self._forks, **self._unapplied}:
            message = self.message(message_id)
            if message is not None and message.is_streaming:
                yield message

    def open_commands(self) -> list[CommandState]:
        """The commands that will wait for an answer after the batch so far."""
        known = {**self.base.commands, **self._commands}
        return [one for one in known.values() if one.is_open]

    def pending(self) -> list[MessageState]:
        """The messages that will wait for an agent after the batch so far."""
        found = map(self.message, {**self.base.pending, **self._pending})
        return [one for one in found if one is not None and one.is_pending]

    def add(self, op: Op) -> int:
        """Take `op` into the batch; returns the serial that will hold it. Neighbouring appends become one."""
        if type(op) is Append:
            self.grown[op.id] = self.grown.get(op.id, 0) + len(op.text)
        elif isinstance(op, Command | Reply):
            return self._add_about_command(op)
        place = self._place(op)
        serial = self.base.serial + place + 1
        self._unapplied.setdefault(op.id, []).append((serial, op))
        if type(op) is Create:
            self.newest = op.id
            if op.is_pending:
                self._pending[op.id] = None
        return serial

    def thing(self, key: str) -> MessageState | CommandState | None:
        """The message or command as it will be after the batch so far."""
        return self.command(key) or self.message(key)

    def entries(self) -> list[Entry]:
        """The batch as it will be stored."""
        for place, pieces in self._texts.items():
            self.ops[place] = replace(self.ops[place], text="".join(pieces))
        self._texts.clear()
        return [Entry(serial, op) for serial, op in enumerate(self.ops, self.base.serial + 1)]

    def _add_about_command(self, op: Command | Reply) -> int:
        self.ops.append(op)
        serial = self.base.serial + len(self.ops)
        known = self.command(op.id)
        changed = apply_to_command(known.fork() if known is not None else None, op, serial)
        if changed is not None:
            self._commands[op.id] = changed
        self.reshaped[op.id] = None
        return serial

    def _place(self, op: Op) -> int:
        joinable = self._joinable.setdefault(op.id, {})
        if type(op) is Append:
            known = joinable.get(op.part)
            if known is not None:
                earlier = self.ops[known]
                assert type(earlier) is Append
                self._texts.setdefault(known, [earlier.text]).append(op.text)
                return known
            joinable[op.part] = len(self.ops)
        elif type(op) is SetPart:
            joinable.pop(op.index, None)  # text never crosses another operation of the same part
        elif type(op) is Claim or type(op) is Lease:
            self.reshaped[op.id] = None
        else:
            joinable.clear()  # nor an update, finish, takeover or delete of the message
            self.reshaped[op.id] = None
        self.ops.append(op)
        return len(self.ops) - 1
