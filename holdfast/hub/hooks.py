"""Hooks: the app's functions that hear of what was stored, `@hub.on("message.finish", "chat:*", name="billing")`.

Layer: hub.

At least once, in order per channel, after it was stored, and never in its way: each hook has a
position in each channel, noted in the store, and reads on from there like a viewer that is late. So a hook that was
away hears of a message's last state, and one that fails tries again while everything else goes on. A new one begins
where each channel stands when it is first registered: what is older is told by no clock, which may be wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from msgspec import Struct

from holdfast.core.catch_up import reply_to
from holdfast.core.cursor import NO_EPOCH
from holdfast.core.document import restored
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.model import Command, Json, Message
from holdfast.core.names import check_id
from holdfast.core.state import ChannelState, CommandState, MessageState
from holdfast.hub.patterns import check_pattern, matches

if TYPE_CHECKING:
    from holdfast.hub.channel import Channel
    from holdfast.hub.hub import HubCore

logger = logging.getLogger("holdfast.hooks")

HookKind = Literal["message.create", "message.update", "message.finish", "message.delete", "command", "command.reply"]
KINDS = get_args(HookKind)
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
TIMEOUT_S = 60.0  # of one call
EVERYTHING = 2**53  # messages of one channel that a hook catches up with: a bound would leave it behind for good
SCAN_PAGE = 500  # channels that are looked at in one step after a start
MAX_RUNNING = 100  # channels that one hook is called for at the same time


class HookEvent(Struct, frozen=True, kw_only=True):
    """What a hook is told. `message` and `command` are as they are by now, not as they were at `serial`."""

    type: str
    channel: str
    serial: int  # of the entry; with the channel and its epoch it tells a repeat
    epoch: str
    id: str  # of the message or command
    message: Message | None = None  # None when it was deleted
    command: Command | None = None
    reply: Json = None  # of a command: `{ok, data, error, from}`


HookHandler = Callable[[HookEvent], Awaitable[None]]


class Hook:
    """One registered function. Its name is that of its position: keep it when the code moves."""

    def __init__(self, name: str, kinds: tuple[str, ...], pattern: str, handler: HookHandler) -> None:
        check_id(name, "a hook's name")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise LocalError(f"a hook hears of {', '.join(KINDS)}; not of {', '.join(map(str, unknown)) or 'nothing'}")
        if inspect.isroutine(handler) and not inspect.iscoroutinefunction(handler):
            # Refused here, since it would be called before anybody could see what it is, and then again and again.
            raise LocalError(f"a hook is an async function; {name!r} is none")
        self.name = name
        self.kinds = frozenset(kinds)
        self.pattern = check_pattern(pattern)
        self.handler = handler


class HookRunner:
    """Calls one hook, channel by channel."""

    def __init__(self, hub: HubCore, hook: Hook, live: Mapping[str, ChannelState]) -> None:
        """`live`: the channels in memory."""
        self._hub = hub
        self._hook = hook
        self._positions: dict[str, tuple[str, int]] = {}  # epoch and serial, by channel
        self._is_ready = False
        # Channels as they stood before they moved, or at the latest when they came into memory: until the positions
        # are known. A new hook begins there, and not where such a channel stands when its turn comes.
        self._early = {name: (head.epoch, head.serial) for name, head in live.items()}
        self._running: set[str] = set()
        self._again: set[str] = set()  # moved while they were being told
        self._room = asyncio.Semaphore(MAX_RUNNING)

    async def start(self) -> None:
        """Read the positions, then look for what was stored and never told."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                is_new = await self._recall()
                break
            except HoldfastError as error:
                logger.error(
                    "hook %r cannot begin yet (%s); it is tried again in %.0f s", self._hook.name, error, wait_s
                )
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LAST_RETRY_S)
        self._is_ready = True
        early, self._early = self._early, {}
        for channel in early:
            self.moved(channel)
        if not is_new:
            await self._scan()

    async def _recall(self) -> bool:
        """Read the positions. True if the hook is new: it begins where each channel stands."""
        store, name = self._hub.store, self._hook.name
        notes = await store.notes(f"hook/{name}/")
        self._positions = {key.removeprefix(f"hook/{name}/"): _position(value) for key, value in notes.items()}
        registered = f"hook-registered/{name}"
        if registered in await store.notes(registered):
            return False
        after: str | None = None
        while page := await store.channels(after=after, limit=SCAN_PAGE):
            fresh = [one for one in page if matches(self._hook.pattern, one) and one not in self._positions]
            found: dict[str, tuple[str, int]] = {}
            for channel in fresh:
                head = await store.head(channel)
                found[channel] = self._early.get(channel, (head.epoch, head.serial))  # as it is after that
            await store.note({f"hook/{name}/{channel}": _noted(*at) for channel, at in found.items()})
            self._positions |= found
            after = page[-1]
        await store.note({registered: b"1"})
        return True

    async def _scan(self) -> None:
        """Look for channels that moved, or were deleted, while the hook was away."""
        store = self._hub.store
        after: str | None = None
        gone = set(self._positions)
        while page := await store.channels(after=after, limit=SCAN_PAGE):
            gone.difference_update(page)
            for channel in page:
                if matches(self._hook.pattern, channel):
                    head = await store.head(channel)
                    if self._positions.get(channel) != (head.epoch, head.serial):
                        self.moved(channel)
            after = page[-1]
        for channel in gone:
            self.moved(channel)

    def changed(self, channel: Channel) -> None:
        """`channel` has something new, perhaps, or has come into memory: so it was seen before anything is new."""
        if self._is_ready:
            self.moved(channel.name)
        elif channel.name not in self._early:
            self._early[channel.name] = (channel.state.epoch, channel.state.serial)

    def moved(self, channel: str) -> None:
        """The same, by its name."""
        if not matches(self._hook.pattern, channel):
            return
        if channel in self._running:
            self._again.add(channel)
            return
        self._running.add(channel)
        self._hub.start_background(self._follow(channel))

    async def _follow(self, channel: str) -> None:
        """Tell what `channel` has, until there is no more."""
        wait_s = FIRST_RETRY_S
        try:
            while True:
                self._again.discard(channel)
                try:
                    async with self._room:
                        await self._tell(channel)
                except Exception as error:
                    self._log(channel, error, wait_s)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, LAST_RETRY_S)
                    continue
                wait_s = FIRST_RETRY_S
                if channel not in self._again:
                    return
        finally:
            self._running.discard(channel)

    def _log(self, channel: str, error: Exception, wait_s: float) -> None:
        """The traceback once, however long it goes on."""
        trace = error if wait_s == FIRST_RETRY_S else None
        kind = type(error).__name__
        told = "hook %r failed for %s (%s); it is tried again in %.0f s"
        logger.error(told, self._hook.name, channel, kind, wait_s, exc_info=trace)

    async def _tell(self, channel: str) -> None:
        store = self._hub.store
        epoch, serial = self._positions.get(channel, ("", 0))
        head = await store.head(channel)
        if (head.epoch, head.serial) == (epoch, serial):
            return
        if head.epoch == NO_EPOCH:
            await self._forget(channel)
            return
        if head.epoch != epoch:
            serial = 0  # another life of the channel
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
        """What happened to a message or command after serial `since`."""
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
        await self._hub.store.note({f"hook/{self._hook.name}/{channel}": _noted(epoch, serial)})
        self._positions[channel] = (epoch, serial)

    async def _forget(self, channel: str) -> None:
        """The channel was deleted: its next life is told from its beginning, with a position or without."""
        if channel in self._positions:
            await self._hub.store.note({f"hook/{self._hook.name}/{channel}": None})
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


def _noted(epoch: str, serial: int) -> bytes:
    return f"{epoch}:{serial}".encode()


def _position(value: bytes) -> tuple[str, int]:
    epoch, _, serial = value.decode().rpartition(":")
    return epoch, int(serial)


class Hooks:
    """All hooks of a hub."""

    def __init__(self, hub: HubCore) -> None:
        self._hub = hub
        self._hooks: dict[str, Hook] = {}
        self._runners: list[HookRunner] = []

    def add(self, hook: Hook) -> None:
        """Register `hook`. Raises LocalError where its name is taken: two would share a position."""
        if hook.name in self._hooks:
            raise LocalError(f"there is a hook {hook.name!r} already; give each a name of its own")
        self._hooks[hook.name] = hook
        if self._hub.has_recovered:
            self._begin(hook)

    def start(self) -> None:
        """The hub has started."""
        self._runners.clear()
        for hook in self._hooks.values():
            self._begin(hook)

    def stop(self) -> None:
        """The hub ends: what it still reads is told in its next life. A call that began now nobody would cancel."""
        self._runners.clear()

    def changed(self, channel: Channel) -> None:
        """More than text came in `channel`."""
        for runner in self._runners:
            runner.changed(channel)

    def _begin(self, hook: Hook) -> None:
        live = self._hub._live().channels
        # One that is only being loaded tells where it stands when it is.
        known = {name: one.state for name, one in live.items() if one.is_loaded}
        runner = HookRunner(self._hub, hook, known)
        self._runners.append(runner)
        self._hub.start_background(runner.start())
