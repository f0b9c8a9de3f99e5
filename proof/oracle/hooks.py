"""Hooks: the calls of one hook, over all runs of its hub.

Layer: oracle.

`HookOracle` compares each call with the log and with the position that the store keeps for the hook: at least once, in
order per channel, stored entries only, and at the end every entry that was due since the first registration. After a
failover the calls for the entries that are left need no repetition. Of several hubs on one store, one calls the hook,
also while hubs join and leave. Two may only after a fault of a node or of the store, for `FAULT_S`: then each calls in
order, and calls may be repeated. A call that began by then may run on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.log import STEPS, EpochLog, StoredLogs, client_command
from proof.oracle.promises import Process
from tenuto.core.names import COMMAND_MARK, command_id, command_key, matches
from tenuto.core.ops import Command, Create, Delete, Finish, Op, Reply, Update
from tenuto.hub.hooks import HookEvent

Position = tuple[str, int]  # epoch and serial
Call = tuple[str, str, int, str]  # epoch, kind, serial and id

OPS: dict[str, type[Op]] = {
    "message.create": Create,
    "message.update": Update,
    "message.finish": Finish,
    "message.delete": Delete,
    "command": Command,
    "command.reply": Reply,
}


# Time after a fault in which two nodes may have a hook: the lease of one ends after 4 s, is missed in a renewal after
# 1 s, and the other looks after 3 s; and 2 s to spare
FAULT_S = 10.0


class Hook(Protocol):
    """The kinds of entries and the channels that a hook is registered for."""

    @property
    def name(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def pattern(self) -> str: ...


class HookOracle:
    """The calls of one hook. Each `check_call` is followed by `note_done` if the call succeeds, and by `end_call`."""

    def __init__(
        self,
        hook: Hook,
        stored: StoredLogs,
        *,
        is_shared: bool = False,
        now_s: Callable[[], float] = float,
        was_healthy: Callable[[float], bool] | None = None,
    ) -> None:
        """Judge the calls of `hook`; with `is_shared` on a store that several hubs may have.

        `was_healthy` returns whether no fault has befallen a node or the store since a time of the clock `now_s`. None:
        there is one hub.
        """
        self.calls = 0
        self._now_s = now_s
        self._was_healthy = was_healthy
        self._has_nodes = was_healthy is not None
        self._is_shared = is_shared
        self._hook = hook
        self._stored = stored
        self._done: dict[str, set[Call]] = {}  # for each channel the calls that succeeded
        # for each channel the position of the last call; of several nodes, for each process
        self._last: dict[tuple[str, Process | None], Position] = {}
        self._kept: dict[str, Position] = {}  # for each channel the position that the store keeps
        self._kept_s: dict[str, float] = {}  # since when
        self._unclear: set[str] = set()  # channels whose hub does not know whether that position is kept
        # for each channel the position of the last call at any node, and when it began
        self._latest: dict[str, tuple[Position, float]] = {}
        self._running: dict[tuple[str, Process | None], tuple[Process, float]] = {}  # each with the begin of its call
        self._repeated: set[str] = set()  # channels in which two nodes had the hook, so that its position went back
        # the heads of the channels when this run registered the hook; None: it does so before it stores entries
        self._at_start: dict[str, Position] | None = None
        # the heads of the channels when a run registered the hook for the first time
        self._since: dict[str, Position] | None = None

    def note_run(self) -> None:
        """Note that a run of the hub begins that has the hook from its start."""
        self._at_start = None

    def note_registered(self) -> None:
        """Note that a run of the hub registers the hook after its start."""
        self._at_start = self._heads()

    def _heads(self) -> dict[str, Position]:
        return {channel: _head(self._stored.head(channel)) for channel in self._stored.channels}

    def check_call(self, event: HookEvent, process: Process) -> None:
        """Check a call that begins. Raises Violation."""
        self.calls += 1
        channel, at = event.channel, (event.epoch, event.serial)
        where = (channel, process if self._has_nodes else None)
        other, _ = self._running.get(where, (None, 0.0))
        if other is not None and other.is_alive:
            raise self._violation(event, "while the call before still runs")
        if self._has_nodes:
            self._check_other_nodes(event, process)
        self._running[where] = process, self._now_s()
        if not matches(self._hook.pattern, channel) or event.type not in self._hook.kinds:
            raise self._violation(event, "which it is not registered for")
        kept, last = self._known(channel), self._last.get(where)
        if not self._has_nodes and kept is not None and kept[0] == at[0] and kept[1] >= at[1]:
            raise self._violation(event, f"though its position is {kept[1]}")
        if last is not None and last[0] == at[0] and last[1] > at[1] and channel not in self._repeated:
            raise self._violation(event, f"after {last[1]}")
        if last is not None and last[0] != at[0] and self._begun(channel, last[0]) > self._begun(channel, at[0]):
            raise self._violation(event, f"after the later epoch {last[0]}")
        self._last[where] = at
        self._check_event(event)

    def _check_other_nodes(self, event: HookEvent, process: Process) -> None:
        """Check that no other node has the hook, and that this one goes on where the last one stopped."""
        channel, at = event.channel, (event.epoch, event.serial)
        for (where, _), (other, begun_s) in self._running.items():
            is_other = where == channel and other is not process and other.is_alive
            if is_other and self._is_settled_since(begun_s):
                raise self._violation(event, f"by {process.name}, while {other.name} calls it since {begun_s:.3f}")
        before, begun_s = self._latest.get(channel, (("", 0), 0.0))
        if before[0] == at[0] and before[1] > at[1] and self._is_settled_since(begun_s):
            raise self._violation(event, f"by {process.name}, after {before[1]}")
        kept = self._known(channel)
        if kept is not None and kept[0] == at[0] and kept[1] >= at[1] and self._is_kept_settled(channel):
            raise self._violation(event, f"by {process.name}, though its position is {kept[1]}")
        self._latest[channel] = at, self._now_s()

    def _known(self, channel: str) -> Position | None:
        """Return the position that the store keeps, if the hub must know it: otherwise it repeats the last call."""
        return self._kept.get(channel) if channel not in self._unclear else None

    def _is_kept_settled(self, channel: str) -> bool:
        return self._is_settled_since(self._kept_s.get(channel, 0.0))

    def _is_settled_since(self, since_s: float) -> bool:
        """Return whether one node alone could have the hook at `since_s`, and since then."""
        return self._was_healthy is not None and self._was_healthy(since_s - FAULT_S)

    def note_done(self, event: HookEvent) -> None:
        """Note that the call has succeeded."""
        done = self._done.setdefault(event.channel, set())
        done.add((event.epoch, event.type, event.serial, event.id))

    def end_call(self, channel: str, process: Process | None = None) -> None:
        """Note that the call in `process` has ended, successfully or not."""
        self._running.pop((channel, process if self._has_nodes else None), None)

    def note_kept(self, values: Mapping[str, bytes | None]) -> None:
        """Take notes that the store keeps from now on. Raises Violation if a position goes back."""
        for name, value in values.items():
            if name == f"hook-registered/{self._hook.name}":
                # on a shared store entries of other runs may come between
                self._since = self._heads() if self._is_shared or self._at_start is None else self._at_start
            channel = name.removeprefix(f"hook/{self._hook.name}/")
            if channel == name:
                continue
            self._unclear.discard(channel)
            is_settled = self._is_kept_settled(channel)
            self._kept_s[channel] = self._now_s()
            before, after = self._kept.pop(channel, None), _position(value)
            if after is not None:
                self._kept[channel] = after
            is_back = before is not None and after is not None and before[0] == after[0] and before[1] > after[1]
            if is_back and self._has_nodes and not is_settled:
                self._repeated.add(channel)  # by a node that was away; the one that has the hook next repeats calls
            elif is_back and self._since is not None:  # until then, hubs that register it at once may each note a head
                raise Violation(f"{self._hook.name} on {channel}: its position goes back from {before} to {after}")

    def note_unclear(self, names: Iterable[str]) -> None:
        """Note that a hub does not know whether the store keeps its last notes `names`."""
        prefix = f"hook/{self._hook.name}/"
        self._unclear.update(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def lose_power(self, notes: Mapping[str, bytes]) -> None:
        """Replace the kept notes by `notes`, which a power cut has left."""
        self._kept.clear()
        prefix = f"hook/{self._hook.name}/"
        for name, value in notes.items():
            if name.startswith(prefix) and (position := _position(value)) is not None:
                self._kept[name.removeprefix(prefix)] = position
        if f"hook-registered/{self._hook.name}" not in notes:
            self._since = None

    def missing(self, channels: Iterable[str]) -> list[str]:
        """Return the calls that are due and never succeeded."""
        if self._since is None:
            return [f"{self._hook.name} is not registered"]
        late: list[str] = []
        for channel in channels:
            if not matches(self._hook.pattern, channel):
                continue
            log = self._stored.head(channel)
            for call in _due(log):
                if call[1] in self._hook.kinds and not self._is_settled(log, call, self._since.get(channel, ("", 0))):
                    late.append(f"{self._hook.name} {channel} {call[2]} {call[1]} {call[3]}")
        return late

    def _is_settled(self, head: EpochLog, call: Call, since: Position) -> bool:
        """Return whether the call succeeded or came before `since`, in this epoch or in one before a failover."""
        log: EpochLog | None = head
        _, kind, serial, id = call
        while log is not None:
            if (log.epoch, kind, serial, id) in self._done.get(head.channel, ()):
                return True
            if log.epoch == since[0] and serial <= since[1]:
                return True
            log = log.before[0] if log.before is not None and serial <= log.before[1] else None
        return False

    def _violation(self, event: HookEvent, why: str) -> Violation:
        return Violation(
            f"{self._hook.name} is called for {event.channel} {event.epoch}:{event.serial} {event.type}, {why}"
        )

    def _begun(self, channel: str, epoch: str) -> int:
        log = self._stored.epoch(channel, epoch)
        return log.begun if log is not None else 0

    def _check_event(self, event: HookEvent) -> None:
        """Check that the entry was stored, and that the message is as it was at that entry or later."""
        log, stamp = self._stored.epoch(event.channel, event.epoch), self._stored.stamp
        if log is None or not event.serial or not log.is_stored(event.serial, stamp):
            raise self._violation(event, "before that entry was stored")
        op = log.ops[event.serial - 1]
        is_of_command = isinstance(op, Command | Reply)
        if not isinstance(op, OPS[event.type]) or op.id != (command_key(event.id) if is_of_command else event.id):
            raise self._violation(event, f"and stored is {op}")
        if is_of_command:
            self._check_command(event, log)
            return
        message = event.message
        if message is None:
            if event.type != "message.delete":
                raise self._violation(event, "without the message")
        elif message.version < event.serial or not log.is_stored(message.version, stamp):
            raise self._violation(event, f"with a version that was not stored: {message}")
        elif message != log.at(event.id, message.version):
            raise self._violation(event, f"with {message}, stored is {log.at(event.id, message.version)}")

    def _check_command(self, event: HookEvent, log: EpochLog) -> None:
        """Check the command and reply of an event. Their data may have left the store since."""
        key = command_key(event.id)
        command = client_command(log.commands[key][1])
        bare = replace(command, data=None)
        if event.command != command and not (key in log.replies and event.command == bare):
            raise self._violation(event, f"with {event.command}, stored is {log.commands[key]}")
        if event.type == "command.reply":
            op = log.replies[key][1]
            code = op.error.get("code") if isinstance(op.error, dict) else None
            known = {"ok": op.ok, "data": op.data, "error": op.error, "from": op.by}
            if event.reply not in (known, known | {"data": None, "error": {"code": code} if code else None}):
                raise self._violation(event, f"with {event.reply}, stored is {op}")


def _due(log: EpochLog) -> Iterator[Call]:
    """Yield the calls that a hook must get of an epoch, if it reads the epoch only now."""
    last: dict[tuple[str, type[Op]], int] = {}  # for each id and kind of entry the last serial
    for serial, op in enumerate(log.ops, 1):
        last[op.id, type(op)] = serial
    for (key, kind), serial in last.items():
        if key.startswith(STEPS):
            continue
        if key.startswith(COMMAND_MARK):
            yield log.epoch, "command" if kind is Command else "command.reply", serial, command_id(key)
        elif log.is_deleted(key):
            if kind is Delete:
                yield log.epoch, "message.delete", serial, key
        elif kind is Create or kind is Update:
            yield log.epoch, "message.create" if kind is Create else "message.update", serial, key
        elif kind is Finish:
            message = log.now(key)
            if message is not None and message.status != "streaming":
                yield log.epoch, "message.finish", serial, key


def _head(log: EpochLog) -> Position:
    return log.epoch, log.serial


def _position(value: bytes | None) -> Position | None:
    """Return a position from the form in which the store keeps it."""
    if value is None:
        return None
    epoch, _, serial = value.decode().rpartition(":")
    return epoch, int(serial)
