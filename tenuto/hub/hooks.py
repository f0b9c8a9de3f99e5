"""Hooks: functions of the app that receive stored entries, `@hub.on("message.finish", "chat:*", name="billing")`.

Layer: hub.

A hook is called at least once for each entry, in order per channel, after the commit, and it never delays the log. Each
hook has a position in each channel, kept in the store, and reads on from there like a viewer that is behind. So a hook
that was down receives a message's latest state, and a hook that fails is retried while everything else continues. A new
hook begins at each channel's head at its first registration: the wall clock, which may be wrong, decides nothing. A hub
stores the registration before it serves, and never again; of several hubs one stores it.

On a store that several hubs share, one node calls a hook, also for the entries of other nodes. A note names it. Another
node that has registered the hook takes the note over when the lease of that one has ended, and a node that drains gives
it back after its last call. A node begins a call only while its lease surely runs. So two nodes call a hook at the same
time only if one is suspended, or loses its store, during a call; that call may be repeated. No entry is missed, because
a position is stored after the call and read when a node takes over.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from msgspec import Struct

from tenuto.core.catch_up import reply_to
from tenuto.core.document import restored
from tenuto.core.errors import LocalError, StoreUnusable, TenutoError
from tenuto.core.events import NO_EPOCH, Cursor, kept_serial, parse_cursor
from tenuto.core.model import OPTIONS, Command, Json, Message
from tenuto.core.names import check_id, check_pattern, command_id, matches
from tenuto.core.state import CommandState, MessageState
from tenuto.hub.channel import Channel
from tenuto.hub.committer import in_time
from tenuto.hub.nodes import NodeLease
from tenuto.hub.tasks import logs_errors
from tenuto.stores.base import Store, head_of
from tenuto.watchdog import timed

logger = logging.getLogger("tenuto.hooks")

HookKind = Literal["message.create", "message.update", "message.finish", "message.delete", "command", "command.reply"]
KINDS = get_args(HookKind)
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
TIMEOUT_S = 60.0  # longest time that one call may take
EVERYTHING = 2**53  # limit of messages in a hook's catch-up: none, since a hook must receive all of them
SCAN_PAGE = 500  # channels that one step of the scan after a start reads
SHARE_S = 3.0  # time between two looks at a store that several hubs share, for entries and for other nodes
STOP_S = 2.0  # time in which the running calls of a node that drains must end, and other nodes learn of it
REST = 10  # a node rests that many times as long as its last scan took, because a store may have many channels
DAMAGED = ("", -1)  # stands for a position that cannot be read
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


class Hook:
    """One registered function. Its name identifies its stored position: keep the name when the code moves."""

    def __init__(self, name: str, kinds: tuple[str, ...], pattern: str, handler: HookHandler) -> None:
        check_id(name, "a hook's name")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise LocalError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(map(str, unknown)) or 'none'}")
        if inspect.isroutine(handler) and not inspect.iscoroutinefunction(handler):
            # Refused here: otherwise each call would fail later and be retried for ever, with only a log line.
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
        found = {_note_name(hook, one): str(Cursor(*early.get(one, head[:2]))).encode() for one, head in heads}
        if not await in_time(store.note(found, expected=is_new), store.name):
            return  # another hub has registered it
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


@dataclass(eq=False)
class HookRunner:
    """Calls one hook for the entries of each channel in order of their serials, and stores the last serial."""

    _store: Store
    _nodes: NodeLease
    _start_background: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]]
    _hook: Hook
    # Until the positions are known: the heads of channels as they were loaded, or before they moved. A new hook begins
    # there, because the head has moved on when the hook reads such a channel.
    _early: dict[str, tuple[str, int]]

    def __post_init__(self) -> None:
        # the note with the node that calls the hook; one with another pattern is another hook
        self._term_note = f"hook-node/{self._hook.name}/{self._hook.pattern}"
        self._is_standby = False  # another node calls the hook
        self._term = 0  # number of times that this node had no longer surely the hook
        self._kept_s = 0.0  # loop time at which the store last said that this node has the hook
        self._scan_due_s = 0.0  # loop time from which the next `_scan` is due, on a shared store
        self._tasks: set[asyncio.Task[Any]] = set()  # the tasks of this hook that run
        # for each channel: the epoch and serial up to which the hook was called
        self._positions: dict[str, tuple[str, int]] = {}
        self._is_ready = False  # True: this node has the hook, and has read the positions
        self._running: dict[str, bool] = {}  # channels whose `_follow` runs; True: moved during a call
        self._room = asyncio.Semaphore(MAX_RUNNING)  # a place for each `_deliver` that runs

    def begin(self) -> None:
        """Register the hook and call it, until the hub ends or `stop`."""
        self._begin(self._run())

    def _begin(self, job: Coroutine[Any, Any, None]) -> None:
        task = self._start_background(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Register the hook, then call it; on a shared store in each term of this node."""
        await self._until_stored(lambda: register(self._store, self._hook, self._early))
        if self._store.is_exclusive:
            await self._until_stored(self._recall)
            await self._until_stored(self._scan)
            return
        while True:
            with logs_errors(f"hook {self._hook.name!r} sees the entries of other processes later"):
                await self._take_term()
            await asyncio.sleep(SHARE_S)

    async def _take_term(self) -> None:
        """Begin, go on or stop, as the note about the hook says. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        if not self._nodes.is_kept_since(loop.time()):
            await self._nodes.renew()
        if not (self._is_ready and self._nodes.is_kept_since(self._kept_s)):
            self._end_term()  # another node may have had the hook since
        asked_s = loop.time()
        if not await self._has_term():
            self._end_term()
            self._is_standby, self._early = True, {}
            return
        self._is_standby, self._kept_s = False, asked_s
        if not self._is_ready:
            await self._recall()
        if asked_s >= self._scan_due_s:
            await self._scan()
            self._scan_due_s = loop.time() + min(REST * (loop.time() - asked_s), LAST_RETRY_S)

    def _end_term(self) -> None:
        """Begin no further calls, until the positions were read again."""
        self._is_ready = False
        self._term += 1

    async def _has_term(self) -> bool:
        """Return whether this node has the hook; take it if no living node has it. Raises StoreUnavailable."""
        store, name, own = self._store, self._term_note, self._own_term
        found = (await in_time(store.notes(name), store.name)).get(name)
        node = found.decode(errors="replace").partition(" ")[0] if found is not None else ""
        if found is not None and node != self._nodes.node:
            if self._nodes.is_gone(node):
                await self._nodes.renew()  # it may have begun, or have run again after a pause, since the last renewal
            if not self._nodes.is_gone(node):
                return False
        # each term has a note of its own, so a node that is about to take the hook over from an earlier one fails
        return found == own or await in_time(store.note({name: own}, expected={name: found}), store.name)

    @property
    def _own_term(self) -> bytes:
        return f"{self._nodes.node} {self._term}".encode()

    def _may_call(self, term: int) -> bool:
        """Return whether this node surely still has the hook, as it has had since it began its term number `term`."""
        return self._is_ready and self._term == term and self._nodes.is_kept_since(self._kept_s)

    async def stop(self) -> None:
        """Cancel the running calls, and let another node have the hook at once."""
        had_term, own = self._is_ready, self._own_term
        self._end_term()
        for task in self._tasks:
            task.cancel()
        # if the hook is not given back, the other nodes see soon that the lease of this node has ended
        with logs_errors(f"hook {self._hook.name!r} was not given back; others get it when the lease ends"):
            async with asyncio.timeout(STOP_S):
                if self._tasks:
                    await asyncio.wait(self._tasks)
                if had_term:
                    await self._store.note({self._term_note: None}, expected={self._term_note: own})

    async def _until_stored(self, step: Callable[[], Awaitable[None]]) -> None:
        """Carry out `step`, which is repeated as long as the store fails."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                await step()
                return
            except TenutoError as error:
                logger.error("hook %r is tried again in %.0f s, as it cannot begin: %s", self._hook.name, wait_s, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LAST_RETRY_S)

    async def _recall(self) -> None:
        """Read the positions, and begin with the channels that moved before. Raises StoreUnavailable."""
        self._positions = await _positions(self._store, self._hook)
        self._is_ready = True
        self._scan_due_s = 0.0
        early, self._early = self._early, {}
        for channel in early:
            self.moved(channel)

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
        is_running = channel in self._running
        self._running[channel] = is_running
        if not is_running:
            self._begin(self._follow(channel))

    async def _follow(self, channel: str) -> None:
        """Call the hook for the entries of `channel` until it has caught up."""
        wait_s = FIRST_RETRY_S
        try:
            while True:
                self._running[channel] = False
                try:
                    async with self._room:
                        await self._deliver(channel, self._term)
                except (Exception, asyncio.CancelledError) as error:
                    is_cancelled = isinstance(error, asyncio.CancelledError)
                    if is_cancelled and (task := asyncio.current_task()) and task.cancelling():
                        raise  # otherwise the function has awaited another task, which was cancelled
                    self._log(channel, error, wait_s)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, LAST_RETRY_S)
                    continue
                wait_s = FIRST_RETRY_S
                if not self._running[channel]:
                    return
        finally:
            del self._running[channel]

    def _log(self, channel: str, error: BaseException, wait_s: float) -> None:
        """Log a failure; the first of several in a row with its traceback, unless the store is damaged."""
        is_damage = isinstance(error, StoreUnusable)
        trace = error if wait_s == FIRST_RETRY_S and not is_damage else None
        kind = error if is_damage else type(error).__name__
        message = "hook %r failed for %s (%s); it is tried again in %.0f s"
        logger.error(message, self._hook.name, channel, kind, wait_s, exc_info=trace)

    async def _deliver(self, channel: str, term: int) -> None:
        """Call the function for each new entry, and store the position after each call. Raises as the function does."""
        if not self._may_call(term):
            return
        store = self._store
        epoch, serial = self._positions.get(channel, ("", 0))
        head = await head_of(store, channel)
        if (head.epoch, head.serial) == (epoch, serial):
            return
        if head.epoch == NO_EPOCH:  # the channel is empty
            await self._note(channel, None, term)
            return
        if (epoch, serial) == DAMAGED:
            epoch, serial = await self._position_put_right(channel)
        serial = max(0, min(serial, kept_serial(epoch, head.epoch)))  # 0 in an epoch of another history
        changes = await store.changes(channel, after=serial, limit=EVERYTHING)
        if changes.head.epoch != head.epoch:  # the channel was deleted meanwhile: `serial` is none of the next epoch
            self._running[channel] = True
            return
        head = changes.head
        events = [
            HookEvent(type=kind, channel=channel, serial=at, epoch=head.epoch, **fields)
            for one in restored(changes.messages or ())
            for kind, at, fields in _happened(one)
            if at > serial and kind in self._hook.kinds
        ]
        for event in sorted(events, key=lambda event: event.serial):
            if not self._may_call(term):
                return
            async with asyncio.timeout(TIMEOUT_S):
                await timed(f'hook "{self._hook.name}"', self._hook.handler(event), logger)
            await self._note(channel, (head.epoch, event.serial), term)
        await self._note(channel, (head.epoch, head.serial), term)

    async def _position_put_right(self, channel: str) -> tuple[str, int]:
        """Read a damaged position again, and return it. Raises StoreUnusable if it still is, StoreUnavailable."""
        name = _note_name(self._hook, channel)
        value = (await in_time(self._store.notes(name), self._store.name)).get(name)
        position = _position(value) if value is not None else ("", 0)
        if position == DAMAGED:
            raise StoreUnusable(
                f"note {name!r} with the hook's position is damaged; restore a backup, or delete the note: the hook is "
                "then called again for all of the channel"
            )
        return position

    async def _note(self, channel: str, position: tuple[str, int] | None, term: int) -> None:
        """Store the position in `channel`, unless another node may have the hook.

        None: the channel was deleted, and the hook receives its next epoch from the beginning.
        """
        positions = self._positions  # replaced when another term of this node begins
        if not self._may_call(term) or positions.get(channel) == position:
            return
        await self._store.note({_note_name(self._hook, channel): str(Cursor(*position)).encode() if position else None})
        if position is not None:
            positions[channel] = position
        else:
            positions.pop(channel, None)


def _happened(one: MessageState | CommandState) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield kind, serial and fields of the events of a message or command; none of a step, or of options."""
    if isinstance(one, CommandState):
        if one.is_step:
            return
        fields: dict[str, Any] = {"id": command_id(one.id), "command": one.command()}
        yield "command", one.created, fields
        if (reply := reply_to(one)) is not None:
            shown = {"ok": reply.ok, "data": reply.data, "error": reply.error, "from": reply.from_}
            yield "command.reply", reply.serial, {**fields, "reply": shown}
    elif one.role == OPTIONS:
        return
    elif one.deleted:
        yield "message.delete", one.version, {"id": one.id}
    else:
        fields = {"id": one.id, "message": one.message()}
        yield "message.create", one.created, fields
        if one.edited > one.created:
            yield "message.update", one.edited, fields
        if one.finished and one.status != "streaming":
            yield "message.finish", one.finished, fields


def _position(value: bytes) -> tuple[str, int]:
    """Return the position in a note, which has the form of a cursor; DAMAGED if it has another one."""
    found = parse_cursor(value.decode(errors="replace"))
    return (found.epoch, found.serial) if found is not None and not found.extra else DAMAGED
