"""A store that is slow, fails, leaves the outcome of a change unknown, loses power, and fails over.

Layer: simulation.

`SimStore` outlives the processes, as a disk or a database server does. A hub reaches it through a `StoreClient`, which
is a `Store` as any other. The store passes each write to `StoredLogs` before it responds. An exclusive store is
embedded: it carries out one call after another, and calls that wait when its process dies may be lost. A shared store
is a server: it carries out each call that it received, in any order. It fails over to an earlier state, with another
life. Calls in transit fail then, and as with PostgreSQL, a client is refused until it opens the store again.

The real `MemoryStore` keeps the data. After each write its documents are restored and compared with the log.

Notices between the hubs of a shared store are lost, doubled, late and out of order.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.log import EpochLog, StoredLogs, describe
from proof.oracle.promises import READ_S, TROUBLE_S, NodeLeases, Promises
from proof.simulation.clock import NOWHERE, START_MS, Process, Trace, VirtualLoop
from proof.simulation.faults import FaultModel
from tenuto.core.document import restore, restore_command
from tenuto.core.errors import StoreUnavailable
from tenuto.core.names import COMMAND_MARK
from tenuto.core.ops import Delete
from tenuto.core.state import CommandState
from tenuto.stores.base import (
    NOTHING,
    OVER_MS,
    Committed,
    CommitUnknown,
    Conflict,
    Head,
    Hold,
    Notice,
    Renewal,
    StoreReplaced,
    Write,
)
from tenuto.stores.memory import MemoryStore

if TYPE_CHECKING:
    from proof.simulation.hooks import Hooks


OnNotice = Callable[[Notice | None], None]


class SharedMemoryStore(MemoryStore):
    """A `SharedStore` in memory. `now_ms` is its clock, by which leases and holds end: Unix time in ms."""

    is_exclusive = False

    def __init__(self, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        super().__init__()
        self._clock_ms = now_ms
        self._listeners: list[OnNotice] = []
        self.lose_holds()

    def lose_holds(self) -> None:
        """Lose all leases and holds, as a server does that starts again."""
        self._ended = 0  # number of leases that have ended
        self._nodes: dict[str, tuple[int, str]] = {}  # for each node the end of its lease in ms, and its name
        self._over: dict[str, int] = {}  # nodes that have ended their leases, each with the time to forget it
        self._held: dict[str, tuple[str, Hold]] = {}  # the holds by name, with their nodes

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send notices to all hubs that share the store (`Notices.notify`)."""
        for notice in notices:
            for on_notice in self._listeners:
                on_notice(notice)

    def listen(self, on_notice: OnNotice) -> None:
        """Call `on_notice` with each notice (`Notices.listen`), also after `close`."""
        self._listeners.append(on_notice)
        on_notice(None)

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """Renew the lease of `node`, and put or drop holds (`SharedStore.hold`)."""
        now_ms = self._clock_ms()
        self._drop_ended(now_ms)
        if node in self._over:
            return Renewal(now_ms, frozenset(self._nodes), "", self._ended)
        _, lease = self._nodes.get(node, (0, secrets.token_hex(4)))
        self._nodes[node] = (now_ms + term_ms, lease)
        if not term_ms:
            self._over[node] = now_ms + OVER_MS
        for name, value in values.items():
            if value is not None:
                self._held[name] = (node, value)
            elif name in self._held and self._held[name][0] == node:
                del self._held[name]
        self._drop_ended(now_ms)
        return Renewal(now_ms, frozenset(self._nodes), lease, self._ended)

    async def holds(self, prefix: str) -> dict[str, tuple[str, Hold]]:
        """Return the holds under names that begin with `prefix` (`SharedStore.holds`)."""
        self._drop_ended(self._clock_ms())
        return {name: held for name, held in sorted(self._held.items()) if name.startswith(prefix)}

    def _drop_ended(self, now_ms: int) -> None:
        before = len(self._nodes)
        self._nodes = {node: lease for node, lease in self._nodes.items() if lease[0] > now_ms}
        self._ended += before - len(self._nodes)
        self._over = {node: until_ms for node, until_ms in self._over.items() if until_ms > now_ms}
        self._held = {
            name: (node, value)
            for name, (node, value) in self._held.items()
            if (node in self._nodes if value.until_ms is None else value.until_ms > now_ms)
        }


class Notices:
    """The channel of notices of one store."""

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, draw: Random) -> None:
        self._loop = loop
        self._fault_model = fault_model
        self._draw = draw
        self._listeners: dict[Process, OnNotice] = {}

    def listen(self, process: Process, on_notice: OnNotice) -> None:
        """Deliver notices to `process` from now on."""
        self._listeners[process] = on_notice
        self._deliver(process, None)

    def send(self, sender: Process, notices: Sequence[Notice]) -> None:
        """Deliver `notices` to the other processes, some of them not at all or twice."""
        for notice in notices:
            for process in self._listeners:
                if process is not sender and self._draw.random() >= self._fault_model.notice_loss:
                    for _ in range(1 + (self._draw.random() < self._fault_model.notice_repeat)):
                        self._deliver(process, notice)

    def interrupt(self) -> None:
        """Let every process know that it may have missed notices, as after the restart of a server."""
        for process in self._listeners:
            self._deliver(process, None)

    def _deliver(self, process: Process, notice: Notice | None) -> None:
        if process.is_alive:
            delay_s = self._draw.uniform(*self._fault_model.notice_s)
            call = partial(self._listeners[process], notice)
            self._loop.call_at(self._loop.time() + delay_s, call, context=process.context.copy())


T = TypeVar("T")
Done = tuple[str, tuple[Any, ...], dict[str, Any]]  # a call that changed data, to be repeated after a power cut


class SimStore:
    """The data of all channels, and the faults of the store."""

    def __init__(
        self,
        loop: VirtualLoop,
        fault_model: FaultModel,
        stored: StoredLogs,
        trace: Trace,
        *,
        is_exclusive: bool,
        seed: int = 0,
    ) -> None:
        self.loop = loop
        self.fault_model = fault_model
        self.is_exclusive = is_exclusive
        self.down_until_s = 0.0
        self.free_at_s = 0.0  # an exclusive store carries out one call after another
        self.busy_until_s = 0.0  # by then all calls so far are carried out and have their responses
        self.memory = SharedMemoryStore(now_ms=lambda: START_MS + int(self.loop.time() * 1000))
        self.promises: Promises | None = None
        self.notices = Notices(loop, fault_model, Random(f"{seed}/notices of the store"))
        self.nodes = NodeLeases(loop.time, stored)
        self._node_of: dict[str, str] = {}  # for each process the node of its hub
        self.silence = Random(f"{seed}/silence of the store")
        self.hooks: Hooks | None = None
        self._stored = stored
        self.trace = trace
        self._done: list[Done] = []
        self._synced = 0  # how many of them survive a power cut, if the store acknowledges them before it has synced
        self._epochs = 0
        self.life = 0  # counts the failovers

    def connect(self, process: Process, draw: Random) -> StoreClient:
        """Return the store's client in one process."""
        return StoreClient(self, process, draw)

    def commit(self, who: str, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Carry out `writes` now."""
        results = _now(self.memory.commit(writes))
        written: list[Write] = []
        is_healthy = self.promises is not None and self.promises.was_healthy(self.loop.time() - READ_S)
        for write, result in zip(writes, results, strict=True):
            if isinstance(result, Conflict):
                self.trace.add(f"store {who} {write.channel} expected {write.expected}: conflict at {result.head}")
                continue
            entries = " ".join(describe(entry.op) for entry in write.entries)
            documents = " ".join(document.id for document in write.documents)
            self.trace.add(
                f"store {who} {write.channel} {write.epoch}:{write.expected} + {len(write.entries)} {entries}"
                + (f" documents {documents}" if documents else "")
            )
            if not self.is_exclusive:
                self.nodes.check_write(self._node_of.get(who), write, is_healthy=is_healthy)
            self._stored.apply(write)
            if self.promises is not None:
                self.promises.apply(write)
            written.append(write)
            deleted = {entry.op.id for entry in write.entries if isinstance(entry.op, Delete)}
            commands = self._stored.head(write.channel).commands if deleted else {}
            ids = [*(entry.op.id for entry in write.entries), *(document.id for document in write.documents)]
            ids += [key for key, (_, op) in commands.items() if op.target in deleted]
            self.audit(write.channel, list(dict.fromkeys(ids)))
        if written:
            self._done.append(("commit", (written,), {}))
        return results

    def delete_channel(
        self, who: str, channel: str, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """Empty the channel now."""
        fields: dict[str, Any] = {"expected": expected, "used_up": used_up, "until_ms": until_ms}
        result = _now(self.memory.delete_channel(channel, **fields))
        if isinstance(result, Conflict):
            self.trace.add(f"store {who} {channel} not deleted, expected {expected}: conflict at {result.head}")
            return result
        self.trace.add(f"store {who} {channel} deleted, used up: {' '.join(used_up)}")
        self._stored.delete_channel(channel, used_up)
        if self.promises is not None:
            self.promises.forget([channel])
        self._done.append(("delete_channel", (channel,), fields))
        return result

    def hold(self, who: str, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """Renew the lease of a node now."""
        renewal = _now(self.memory.hold(node, term_ms, values))
        self._node_of[who] = node
        self.nodes.hold(node, term_ms if renewal.lease else 0)  # a late renewal begins no lease anew
        return renewal

    def restart(self) -> None:
        """Lose all holds, as the restart of a server does."""
        self.memory.lose_holds()
        self.nodes.note_stop()
        self.notices.interrupt()

    def note(self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None) -> bool:
        """Keep notes now, if those named in `expected` have these values."""
        if not _now(self.memory.note(values, expected=expected)):
            return False
        self._done.append(("note", (values,), {}))
        if self.hooks is not None:
            self.hooks.note_kept(values)
        return True

    def audit(self, channel: str, ids: list[str] | None = None) -> None:
        """Compare the stored messages with the log: all of them, or the messages `ids`. Raises Violation."""
        log = self._stored.head(channel)
        wanted = [*log.versions, *log.commands] if ids is None else ids
        head, found = _now(self.memory.messages(channel, wanted))
        if head.serial != log.serial or (log.serial and head.epoch != log.epoch):
            raise Violation(f"{channel} is at {head} in the store and at {log.epoch}:{log.serial} in the log")
        for message_id in wanted:
            if message_id.startswith(COMMAND_MARK):
                self._audit_command(log, restore_command(found[message_id]))
                continue
            message = restore(found[message_id])
            expected = log.now(message_id)
            if (None if message.deleted else message.message()) != expected:
                raise Violation(f"{channel}: stored is {message.message()}, the log has {expected}")

    def _audit_command(self, log: EpochLog, command: CommandState) -> None:
        if not log.is_command_stored(command.command(), command.reply):
            sent, replied = log.commands[command.id], log.replies.get(command.id)
            raise Violation(
                f"{log.channel}: stored is {command.command()} {command.reply}, the log has {sent} {replied}"
            )

    def sync(self) -> None:
        """Make all acknowledged writes durable."""
        self._synced = len(self._done)

    def power_cut(self) -> None:
        """Lose all writes since the last `sync`; each remaining channel begins a new epoch."""
        self.trace.add(f"power is lost, and with it {len(self._done) - self._synced} of {len(self._done)} changes")
        self._lose(self._synced, is_failover=False)

    def fail_over(self, lost: int) -> None:
        """Go on without the last `lost` changes, as a promoted standby does that was behind: a new life begins."""
        lost = min(lost, len(self._done))
        self.trace.add(f"the store fails over, and loses {lost} of {len(self._done)} changes")
        self.life += 1
        self._lose(len(self._done) - lost, is_failover=True)
        self.nodes.note_stop()
        self.notices.interrupt()

    def _lose(self, kept: int, *, is_failover: bool) -> None:
        """Go on from the first `kept` changes, without holds; each remaining channel begins a new epoch."""
        del self._done[kept:]
        heads = self._heads(self._done)
        new_epoch = self._following_epoch if is_failover else self._new_epoch
        epochs = {channel: new_epoch(head) for channel, head in heads.items() if head.serial}
        emptied = {
            arguments[0]: place for place, (name, arguments, _) in enumerate(self._done) if name == "delete_channel"
        }
        self.memory = SharedMemoryStore(now_ms=lambda: START_MS + int(self.loop.time() * 1000))
        for place, done in enumerate(self._done):
            present = {channel: epoch for channel, epoch in epochs.items() if place > emptied.get(channel, -1)}
            self._repeat(*done, present)
        self._synced = len(self._done)
        for channel in self._stored.channels:
            kept_head, epoch = heads.get(channel, NOTHING), epochs.get(channel, "")
            self._stored.lose_power(channel, kept_head, epoch, is_failover=is_failover)
        if self.promises is not None:
            self.promises.lose_power(self._stored.channels)
        if self.hooks is not None:
            self.hooks.lose_power(_now(self.memory.notes("hook")))
        self._stored.set_used_up(
            (arguments[0], one) for name, arguments, fields in self._done for one in fields.get("used_up", ())
        )
        for channel in self._stored.channels:
            self.audit(channel)

    def _repeat(self, name: str, arguments: tuple[Any, ...], fields: dict[str, Any], epochs: dict[str, str]) -> None:
        """Carry out a call again: with the present head of its channel, and in its epoch of `epochs` if it has one.

        The head may differ from that of the first time: its epoch may be a new one, and its `lives` may be higher,
        because `tidy`, which forgets them, is not repeated.
        """
        if name == "commit":
            for write in arguments[0]:
                (head,) = _now(self.memory.heads([write.channel]))
                epoch = epochs.get(write.channel) or (head.epoch if head.serial else write.epoch)
                _now(self.memory.commit([replace(write, lives=head.lives, epoch=epoch)]))
            return
        if name == "delete_channel":
            (head,) = _now(self.memory.heads(arguments))
            fields = fields | {"expected": head}
        _now(getattr(self.memory, name)(*arguments, **fields))

    def _heads(self, done: list[Done]) -> dict[str, Head]:
        """Return the heads after `done`, each in the epoch of its last entry."""
        heads: dict[str, Head] = {}
        for name, arguments, _ in done:
            if name == "commit":
                for write in arguments[0]:
                    if write.entries:
                        heads[write.channel] = Head(write.epoch, write.expected + len(write.entries))
            elif name == "delete_channel":
                heads[arguments[0]] = NOTHING
        return heads

    def _new_epoch(self, head: Head) -> str:
        self._epochs += 1
        return f"cut{self._epochs}"

    def _following_epoch(self, head: Head) -> str:
        """Return the epoch that follows that of `head` in this life, named as in the PostgreSQL store."""
        name = hashlib.sha256(f"{head.epoch}{self.life}".encode()).hexdigest()[:8]
        return f"{name}_{head.epoch.partition('_')[0]}_{head.serial}"


P = ParamSpec("P")


def _passed_on(
    method: Callable[Concatenate[SharedMemoryStore, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[StoreClient, P], Coroutine[Any, Any, T]]:
    """Return the same method of a client, which the store carries out as any call."""

    def call(self: StoreClient, /, *args: P.args, **fields: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._call(lambda: _now(getattr(self._store.memory, method.__name__)(*args, **fields)))

    return call


class StoreClient:
    """The connection of one process to the store: a `Store`."""

    name = "simulated"

    heads = _passed_on(MemoryStore.heads)
    changes = _passed_on(MemoryStore.changes)
    entries = _passed_on(MemoryStore.entries)
    messages = _passed_on(MemoryStore.messages)
    page = _passed_on(MemoryStore.page)
    channels = _passed_on(MemoryStore.channels)
    summaries = _passed_on(MemoryStore.summaries)
    newest_ms = _passed_on(MemoryStore.newest_ms)
    facts = _passed_on(MemoryStore.facts)
    prune = _passed_on(MemoryStore.prune)
    commands = _passed_on(MemoryStore.commands)
    notes = _passed_on(MemoryStore.notes)
    holds = _passed_on(SharedMemoryStore.holds)
    open_documents = _passed_on(MemoryStore.open_documents)
    tidy = _passed_on(MemoryStore.tidy)
    wipe = _passed_on(MemoryStore.wipe)

    def __init__(self, store: SimStore, process: Process, draw: Random) -> None:
        self.is_exclusive = store.is_exclusive
        self.is_severed = False  # the run is over, and all calls fail
        self._life = 0  # the store's life when it was opened
        self._restored: asyncio.Event | None = None  # set when the connection to the store works again
        self._store = store
        self._process = process
        self._trace = store.trace
        self._draw = draw
        self.on_recovery: Callable[[], None] | None = None  # called once, when the recovery of its hub begins
        self._waiting: dict[int, Callable[[], None]] = {}  # calls that the store has received and not carried out
        self._sent = 0

    async def open(self) -> None:
        """`Store.open`."""
        self._life = self._store.life
        await self._call(lambda: None)

    async def close(self) -> None:
        """`Store.close`."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """`Store.commit`."""
        return await self._call(
            lambda: self._store.commit(self._process.name, writes), late=CommitUnknown, is_commit=True
        )

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        """`Store.note`."""
        try:
            return await self._call(lambda: self._store.note(values, expected=expected), late=CommitUnknown)
        except CommitUnknown:
            if self._store.hooks is not None:
                self._store.hooks.note_unclear(values)
            raise

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """`SharedStore.hold`."""
        name = self._process.name
        return await self._call(lambda: self._store.hold(name, node, term_ms, values), late=StoreUnavailable)

    async def open_channels(self) -> list[str]:
        """`Store.open_channels`, the first call of a recovery."""
        if self.on_recovery is not None:
            call, self.on_recovery = self.on_recovery, None
            call()
        return await self._call(lambda: _now(self._store.memory.open_channels()))

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """`Store.delete_channel`."""
        name = self._process.name
        return await self._call(
            lambda: self._store.delete_channel(name, channel, expected, used_up, until_ms), late=CommitUnknown
        )

    async def notify(self, notices: Sequence[Notice]) -> None:
        """`Notices.notify`."""
        await self._call(lambda: self._store.notices.send(self._process, notices))

    def listen(self, on_notice: Callable[[Notice | None], None]) -> None:
        """`Notices.listen`."""
        self._store.notices.listen(self._process, on_notice)

    def stats(self) -> dict[str, int]:
        """`Store.stats`."""
        return self._store.memory.stats()

    def cut(self) -> None:
        """Lose the bytes of all later calls, without a signal to the hub, until `restore`."""
        self._restored = asyncio.Event()

    def restore(self) -> None:
        """Pass calls on again; those that wait fail."""
        if self._restored is not None:
            self._restored.set()
            self._restored = None

    def process_died(self) -> None:
        """Let an embedded store die with its process: it carries out the first of the waiting calls, perhaps none."""
        if not self._store.is_exclusive:
            return
        waiting = list(self._waiting.values())
        self._store.free_at_s = self._store.loop.time()
        for carry_out in waiting[: self._draw.randrange(len(waiting) + 1)]:
            self._trace.guarded(carry_out)
        self._waiting.clear()

    async def _call(
        self, action: Callable[[], T], *, late: type[StoreUnavailable] | None = None, is_commit: bool = False
    ) -> T:
        """Let the store carry out `action`. `late` is the error of a change whose outcome is unknown."""
        store, fault_model, draw, loop = self._store, self._store.fault_model, self._draw, self._store.loop
        if self.is_severed:
            raise StoreUnavailable("the run is over")
        if self._restored is not None:
            await self._restored.wait()
            raise StoreUnavailable("the connection to the store was cut")
        delay_s = draw.uniform(*fault_model.store_s)
        if draw.random() < fault_model.slow_chance:
            delay_s = draw.uniform(1.0, 40.0 if is_commit else 5.0)
        begins_s = loop.time()
        if store.is_exclusive:
            begins_s = max(store.free_at_s, begins_s)
            store.free_at_s = begins_s + delay_s
        is_down = loop.time() < store.down_until_s or draw.random() < fault_model.down_chance
        doubt, chance = (draw, fault_model.unknown_chance) if is_commit else (store.silence, fault_model.silent_chance)
        is_unknown = late is not None and not is_down and doubt.random() < chance
        is_lost = is_down or (is_unknown and doubt.random() < 0.5)
        ends_s = begins_s + delay_s
        store.busy_until_s = max(store.busy_until_s, ends_s)
        if store.promises is not None and (is_down or is_unknown or ends_s - loop.time() > TROUBLE_S):
            store.promises.note_trouble(ends_s + TROUBLE_S)
        response: asyncio.Future[T] = loop.create_future()
        result: list[T] = []
        self._sent += 1
        number, is_replaced, life = self._sent, self._life != store.life, store.life

        def carry_out() -> None:
            """Carry the call out, at some moment before the response."""
            is_carried_out = not (is_lost or is_replaced or life != store.life)
            if self._waiting.pop(number, None) is not None and is_carried_out:
                result.append(action())

        def respond() -> None:
            if response.done() or not self._process.is_alive:
                return
            if result and not is_unknown:
                response.set_result(result[0])
                return
            if is_down:
                response.set_exception(StoreUnavailable("the store is down"))
            elif is_replaced:
                response.set_exception(StoreReplaced("the store has failed over"))
            elif is_unknown or life != store.life:
                response.set_exception((late or StoreUnavailable)("the connection to the store was lost"))
            else:
                return
            response.exception()  # marked as retrieved: the process may be killed before its task runs

        self._waiting[number] = carry_out
        loop.call_at(begins_s + delay_s * draw.random(), self._trace.guarded, carry_out, context=NOWHERE)
        loop.call_at(begins_s + delay_s, respond, context=NOWHERE)
        return await response


def _now(call: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that does not wait, as those of the memory store."""
    try:
        call.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the memory store waited")
