"""Hooks: functions of the app that receive stored entries, `@hub.on("message.finish", "chat:*", name="billing")`.

Layer: hub.

A hook is called at least once for each entry, in order per channel, after the commit, and it never delays the log. Each
hook has a position in each channel, kept in the store, and reads on from there like a viewer that is behind. So a hook
that was down receives a message's latest state, and a hook that fails is retried while everything else continues. A new
hook begins at each channel's head at its first registration: the wall clock, which may be wrong, decides nothing. A hub
stores the registration before it serves, and never again; of several hubs one stores it.

On a store that several hubs share, the node that registered a hook first calls it, also for the entries of other nodes.
Each node that has registered it keeps a hold, which ends with the lease of the node; then the next one continues. Two
nodes may call a hook at the same time for some seconds. Then calls are repeated, and no entry is missed, because a
position is stored after the call and read when a node takes over.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, TypeVar, get_args

from msgspec import Struct

from holdfast.core.catch_up import reply_to
from holdfast.core.cursor import NO_EPOCH, kept_serial
from holdfast.core.document import restored
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.message_state import CommandState, MessageState
from holdfast.core.model import Command, Json, Message
from holdfast.core.names import check_id
from holdfast.core.state import ChannelState
from holdfast.hub.channel import Channel
from holdfast.hub.loading import in_time
from holdfast.hub.nodes import NodeLease
from holdfast.hub.patterns import check_pattern, matches
from holdfast.hub.store_errors import logs_errors
from holdfast.stores.base import Store, head_of

logger = logging.getLogger("holdfast.hooks")

T = TypeVar("T")

HookKind = Literal["message.create", "message.update", "message.finish", "message.delete", "command", "command.reply"]
KINDS = get_args(HookKind)
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
TIMEOUT_S = 60.0  # longest time that one call may take
EVERYTHING = 2**53  # limit of messages in a hook's catch-up: none, since a hook must receive all of them
SCAN_PAGE = 500  # channels that one step of the scan after a start reads
SHARE_S = 3.0  # time between two looks at a store that several hubs share, for entries and for other nodes
REST = 10  # a node rests that many times as long as its last scan took, because a store may have many channels
MAX_RUNNING = 100  # channels for which one hook may run at the same time


class HookEvent(Struct, frozen=True, kw_only=True):
    """The argument of a hook. `message` and `command` are as they are now, not as they were at `serial`."""

    type: str
    channel: str
    serial: int  # serial of the entry; a hook recognises a repeated call by channel, epoch and serial
    epoch: str
    id: str  # id of the message or command
    message: Message | None = None  # None if the message was deleted
    command: Command | None = None
    reply: Json = None  # reply to the command: `{ok, data, error, from}`


HookHandler = Callable[[HookEvent], Awaitable[None]]
Start = Callable[[Coroutine[Any, Any, None]], None]  # a function that starts a background task


class Hook:
    """One registered function. Its name identifies its stored position: keep the name when the code moves."""

    def __init__(self, name: str, kinds: tuple[str, ...], pattern: str, handler: HookHandler) -> None:
        check_id(name, "a hook's name")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise LocalError(
                f"hook kinds must be among {', '.join(KINDS)}, got {', '.join(map(str, unknown)) or 'none'}"
            )
        if inspect.isroutine(handler) and not inspect.iscoroutinefunction(handler):
            # Refused at registration: otherwise each call would fail later and be retried for ever, with only a log
            # line.
            raise LocalError(f"hook {name!r} must be an async function; define it with `async def`")
        self.name = name
        self.kinds = frozenset(kinds)
        self.pattern = check_pattern(pattern)
        self.handler = handler


async def register(store: Store, hook: Hook, early: Mapping[str, tuple[str, int]]) -> None:
    """Store that `hook` exists, if it is new, and that it begins at the present head of each channel.

    `early` has the heads of channels that may have moved since the app registered the hook. Raises StoreUnavailable.
    """
    registered = f"hook-registered/{hook.name}"
    if registered in await in_time(store.notes(registered), store.name):
        return
    known = await _positions(store, hook)  # of a registration that was cut off
    is_new = {registered: None}  # another hub may have registered it meanwhile, and stored entries for it
    after: str | None = None
    while page := await in_time(store.channels(after=after, limit=SCAN_PAGE), store.name):
        fresh = [one for one in page if matches(hook.pattern, one) and one not in known]
        heads = zip(fresh, await in_time(store.heads(fresh), store.name), strict=True)
        found = {_note_name(hook, one): _encoded(*early.get(one, (head.epoch, head.serial))) for one, head in heads}
        if not await in_time(store.note(found, expected=is_new), store.name):
            return
        after = page[-1]
    await in_time(store.note({registered: b"1"}, expected=is_new), store.name)


async def _positions(store: Store, hook: Hook) -> dict[str, tuple[str, int]]:
    """Return for each channel the epoch and serial up to which `hook` was called."""
    prefix = _note_name(hook, "")
    notes = await in_time(store.notes(prefix), store.name)
    return {name.removeprefix(prefix): _position(value) for name, value in notes.items()}


def _note_name(hook: Hook, channel: str) -> str:
    """Return the name of the note with the position of `hook` in `channel`."""
    return f"hook/{hook.name}/{channel}"


class HookRunner:
    """Calls one hook for the entries of each channel in order of their serials, and stores the last serial."""

    def __init__(
        self, store: Store, nodes: NodeLease, start_background: Start, hook: Hook, live: Mapping[str, ChannelState]
    ) -> None:
        """Run `hook`; `live` maps names to the channels in memory."""
        self._store = store
        self._nodes = nodes
        self._since_ms = nodes.now_ms
        self._is_standby = False  # another node calls the hook
        self._start_background = start_background
        self._hook = hook
        # for each channel: the epoch and serial up to which the hook was called
        self._positions: dict[str, tuple[str, int]] = {}
        self._is_ready = False
        # Until the positions are known: the heads of channels as they were loaded, or before they moved. A new hook
        # begins there, because the head has moved on when the hook reads such a channel.
        self._early = {name: (head.epoch, head.serial) for name, head in live.items()}
        self._running: set[str] = set()
        self._again: set[str] = set()  # channels that moved while the hook was being called
        self._room = asyncio.Semaphore(MAX_RUNNING)

    async def run(self) -> None:
        """Register the hook, then call it; on a shared store whenever it is the turn of this node."""
        await self._until_stored(lambda: register(self._store, self._hook, self._early))
        await (self._start() if self._store.is_exclusive else self._share())

    async def _start(self) -> None:
        """Read the positions, then scan for entries that the hook has not received."""
        await self._until_stored(self._recall)
        self._is_ready = True
        early, self._early = self._early, {}
        for channel in early:
            self.moved(channel)
        await self._until_stored(self._scan)

    @property
    def hold(self) -> tuple[str, bytes]:
        """Return the name and the value of the hold that shows other nodes since when this one has the hook."""
        return self._hold_of(self._nodes.node), str(self._since_ms).encode()

    def _hold_of(self, node: str) -> str:
        return f"hook/{self._hook.name}/{self._hook.pattern}/{node}"  # another pattern needs a node of its own

    async def _share(self) -> None:
        """Call the hook whenever it is the turn of this node, until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begun_s = loop.time()
            with logs_errors(f"hook {self._hook.name!r} did not see the entries of other processes"):
                await self._take_turn()
            await asyncio.sleep(min(max(SHARE_S, REST * (loop.time() - begun_s)), LAST_RETRY_S))

    async def _take_turn(self) -> None:
        """Begin, go on or stop, as the holds of all nodes say. Raises StoreUnavailable."""
        if not await self._has_turn():
            self._is_ready, self._is_standby, self._early = False, True, {}
        elif self._is_ready:
            await self._scan()
        else:
            self._is_standby = False
            await self._start()

    async def _has_turn(self) -> bool:
        """Return whether, of all living nodes, this one registered the hook first. Raises StoreUnavailable."""
        if not (self._is_ready or self._is_standby):
            await self._nodes.renew()  # puts the hold
        held = await in_time(self._store.holds(self._hold_of("")), self._store.name)
        nodes = [
            (int(hold.value), node)
            for name, (node, hold) in held.items()
            if name == self._hold_of(node) and hold.value.isdigit()  # else it is of another version of the hub
        ]
        # a store that has started again has no holds until the nodes renew their leases
        return min(nodes)[1] == self._nodes.node if nodes else self._is_ready

    async def _until_stored(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `step`, which is repeated as long as the store fails."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                return await step()
            except HoldfastError as error:
                logger.error(
                    "hook %r cannot begin yet (%s); it is tried again in %.0f s", self._hook.name, error, wait_s
                )
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LAST_RETRY_S)

    async def _recall(self) -> None:
        """Read the positions. Raises StoreUnavailable."""
        self._positions = await _positions(self._store, self._hook)

    async def _scan(self) -> None:
        """Find channels that moved or were deleted while the hook did not run."""
        store = self._store
        after: str | None = None
        gone = set(self._positions)
        while page := await store.channels(after=after, limit=SCAN_PAGE):
            gone.difference_update(page)
            wanted = [channel for channel in page if matches(self._hook.pattern, channel)]
            for channel, head in zip(wanted, await store.heads(wanted), strict=True):
                if self._positions.get(channel) != (head.epoch, head.serial):
                    self.moved(channel)
            after = page[-1]
        for channel in gone:
            self.moved(channel)

    def changed(self, channel: Channel) -> None:
        """Note that `channel` was loaded or may have moved, and call the hook for new entries."""
        if self._is_ready:
            self.moved(channel.name)
        elif not self._is_standby and channel.name not in self._early:
            self._early[channel.name] = (channel.state.epoch, channel.state.serial)

    def moved(self, channel: str) -> None:
        """Call the hook for new entries of the channel with this name."""
        if not matches(self._hook.pattern, channel):
            return
        if channel in self._running:
            self._again.add(channel)
            return
        self._running.add(channel)
        self._start_background(self._follow(channel))

    async def _follow(self, channel: str) -> None:
        """Call the hook for the entries of `channel` until it has caught up."""
        wait_s = FIRST_RETRY_S
        try:
            while True:
                self._again.discard(channel)
                try:
                    async with self._room:
                        await self._deliver(channel)
                except Exception as error:
                    self._log(channel, error, wait_s)
                    await asyncio.sleep(wait_s)
                    if self._is_standby:
                        return
                    wait_s = min(2 * wait_s, LAST_RETRY_S)
                    continue
                wait_s = FIRST_RETRY_S
                if channel not in self._again:
                    return
        finally:
            self._running.discard(channel)

    def _log(self, channel: str, error: Exception, wait_s: float) -> None:
        """Log a failure with its traceback, but only the first of several in a row."""
        trace = error if wait_s == FIRST_RETRY_S else None
        kind = type(error).__name__
        message = "hook %r failed for %s (%s); it is tried again in %.0f s"
        logger.error(message, self._hook.name, channel, kind, wait_s, exc_info=trace)

    async def _deliver(self, channel: str) -> None:
        store = self._store
        epoch, serial = self._positions.get(channel, ("", 0))
        head = await head_of(store, channel)
        if (head.epoch, head.serial) == (epoch, serial):
            return
        if head.epoch == NO_EPOCH:
            await self._forget(channel)
            return
        serial = max(0, min(serial, kept_serial(epoch, head.epoch)))  # 0 in an epoch of another history
        changes = await store.changes(channel, after=serial, limit=EVERYTHING)
        head = changes.head
        events = [
            event
            for one in restored(changes.messages or ())
            for event in self._events(channel, head.epoch, one, serial)
            if event.type in self._hook.kinds
        ]
        for event in sorted(events, key=lambda event: event.serial):
            async with asyncio.timeout(TIMEOUT_S):
                await self._hook.handler(event)
            await self._note(channel, head.epoch, event.serial)
        await self._note(channel, head.epoch, head.serial)

    def _events(self, channel: str, epoch: str, one: MessageState | CommandState, since: int) -> list[HookEvent]:
        """Return the hook's events for a message or command after serial `since`."""
        if isinstance(one, CommandState):
            return _of_command(channel, epoch, one, since)
        happened: list[tuple[str, int]] = []
        if one.deleted:
            happened.append(("message.delete", one.version))
        else:
            happened.append(("message.create", one.created))
            if one.edited > one.created:
                happened.append(("message.update", one.edited))
            if one.finished and one.status != "streaming":
                happened.append(("message.finish", one.finished))
        message = None if one.deleted else one.message()
        return [
            HookEvent(type=kind, channel=channel, serial=serial, epoch=epoch, id=one.id, message=message)
            for kind, serial in happened
            if serial > since
        ]

    async def _note(self, channel: str, epoch: str, serial: int) -> None:
        if self._positions.get(channel) == (epoch, serial):
            return
        await self._store.note({_note_name(self._hook, channel): _encoded(epoch, serial)})
        self._positions[channel] = (epoch, serial)

    async def _forget(self, channel: str) -> None:
        """Drop the position of a deleted channel, so that the hook receives the next epoch from its beginning."""
        if channel in self._positions:
            await self._store.note({_note_name(self._hook, channel): None})
            del self._positions[channel]


def _of_command(channel: str, epoch: str, command: CommandState, since: int) -> list[HookEvent]:
    events = []
    shown = command.command()
    if command.created > since:
        events.append(
            HookEvent(type="command", channel=channel, serial=command.created, epoch=epoch, id=shown.id, command=shown)
        )
    reply = reply_to(command)
    if reply is not None and reply.serial > since:
        events.append(
            HookEvent(
                type="command.reply",
                channel=channel,
                serial=reply.serial,
                epoch=epoch,
                id=shown.id,
                command=shown,
                reply={"ok": reply.ok, "data": reply.data, "error": reply.error, "from": reply.from_},
            )
        )
    return events


def _encoded(epoch: str, serial: int) -> bytes:
    return f"{epoch}:{serial}".encode()


def _position(value: bytes) -> tuple[str, int]:
    epoch, _, serial = value.decode().rpartition(":")
    return epoch, int(serial)


class Hooks:
    """All hooks of one run of a hub, each with its runner."""

    def __init__(self, store: Store, nodes: NodeLease, start_background: Start) -> None:
        self._store = store
        self._nodes = nodes
        nodes.holds.sources.append(lambda: dict(runner.hold for runner in self._runners))
        self._start_background = start_background
        self._runners: list[HookRunner] = []

    def begin(self, hook: Hook, channels: Mapping[str, Channel]) -> None:
        """Call `hook` from now on; `channels` maps names to the channels in memory."""
        # The runner is notified of a channel that is being loaded when its head is known.
        known = {name: one.state for name, one in channels.items() if one.is_loaded}
        runner = HookRunner(self._store, self._nodes, self._start_background, hook, known)
        self._runners.append(runner)
        self._start_background(runner.run())

    def stop(self) -> None:
        """Stop, because the hub ends.

        Hooks receive pending entries after the restart; a call that began now could not be cancelled.
        """
        self._runners.clear()

    def changed(self, channel: Channel) -> None:
        """Notify the hooks of entries other than appends in `channel`."""
        for runner in self._runners:
            runner.changed(channel)
