"""The hub without its transports: the Python API, and the calls that transports and agents use.

Layer: hub.

`HubCore` is a facade; `tenuto.Hub` adds agents and the ASGI side, and `SyncHub` has blocking calls. `lifecycle` starts
and ends a run of the hub, whose services (`runtime`) do the work. Names without an underscore are the public API.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tenuto.core.document import restore
from tenuto.core.errors import LocalError, shown
from tenuto.core.events import Batch, Cursor, Page, Presence, ServerEvent, parse_cursor
from tenuto.core.limits import Limits
from tenuto.core.model import Command, Json, Message, Part
from tenuto.core.names import check_channel, check_id, check_pattern, command_key
from tenuto.core.requests import CreateMessage, DeleteMessage, FinishMessage, ReplyCommand, SendCommand, UpdateMessage
from tenuto.hub.access.hosts import check_allowed_origins, check_public_origin
from tenuto.hub.access.identity import Authenticate
from tenuto.hub.access.rates import ClientLimits, Questions, Rates, current_route
from tenuto.hub.access.tickets import Tickets
from tenuto.hub.access.visitors import VisitorVerifier
from tenuto.hub.channel import Channel, Feed, take, until_settled
from tenuto.hub.checks import check_bus, check_settings, check_store, is_named, names_of_cell, warn_of_wsgi
from tenuto.hub.clock import Clock, StoreClock
from tenuto.hub.hooks import Hook, HookHandler, HookKind
from tenuto.hub.keep.archive import Archive
from tenuto.hub.keep.policies import Capacity
from tenuto.hub.keep.retention import GONE_MS, Retainer, Rules
from tenuto.hub.lifecycle import Lifecycle, SignalHook
from tenuto.hub.pending import ChannelInfo, message_of, own_copy
from tenuto.hub.turns.status import take_waiting
from tenuto.hub.writer import Adopter, MessageWriter, Recovery, continue_after
from tenuto.portal import NoResponse, Portal, SyncWriter, blocking, run_on, writing
from tenuto.stores.base import Bus, CommitUnknown, Store, head_of
from tenuto.stores.sqlite.store import SqliteStore


class HubCore(Lifecycle):
    """Durable channels: create, append, watch. `store` is a URL or an unopened store.

    `flush_ms` is the default flush window of viewers, `drain_s` how long running answers may go on when the
    process receives a signal to end; `hooks_signals=False` installs no signal handlers (then call `drain` yourself).
    Pages of `allowed_origins` may send requests; `public_origin` is the address of this server's own pages behind TLS.
    `ticket_keys` sign tickets, so that tickets outlive the process; the verifier may provide keys, too. `debug` names
    exceptions in the reasons of failed messages; by default a hub without a verifier does so, without their text.
    """

    def __init__(
        self,
        store: str | Store = "sqlite:///tenuto.db",
        *,
        authenticate: Authenticate | None = None,
        allowed_origins: tuple[str, ...] | list[str] = (),
        public_origin: str | None = None,
        limits: Limits | None = None,
        flush_ms: int = 40,
        drain_s: float = 5.0,
        clock: Clock | None = None,
        hooks_signals: bool = True,
        client_limits: ClientLimits | None = None,
        ticket_keys: Sequence[bytes] = (),
        debug: bool | None = None,
        retention: Rules | None = None,
        max_bytes: str | int | None = None,
        bus: str | Bus | None = None,
    ) -> None:
        check_settings(
            authenticate=authenticate,
            limits=limits,
            client_limits=client_limits,
            flush_ms=flush_ms,
            drain_s=drain_s,
            debug=debug,
        )
        warn_of_wsgi()
        super().__init__(check_store(store))
        self.authenticate = authenticate
        self.allowed_origins = check_allowed_origins(allowed_origins)
        self.public_origin = check_public_origin(public_origin)
        self.limits = limits or Limits()
        self.flush_ms = flush_ms
        self.drain_s = drain_s
        self.debug = debug
        self.clock = clock or Clock()
        if not self.store.is_exclusive:
            self.clock = StoreClock(self.clock)
        guests = authenticate if isinstance(authenticate, VisitorVerifier) else None
        self.questions = Questions(guests.limits) if guests is not None else None
        address_factor = guests.limits.address_factor if guests is not None else 0
        self.rates = Rates(client_limits or ClientLimits(), address_factor=address_factor)
        if guests is not None:
            guests.serve(self)
        self.tickets = Tickets(ticket_keys or getattr(authenticate, "ticket_keys", ()), now_ms=self.clock.now_ms)
        self.requires_own_host = False  # check `Host` even with a verifier; `serve --allow-everyone` sets this
        self.drive_by_hand = False  # streaming responses may call `send` by themselves; `serve` sets this
        self.sync = SyncHub(self)  # blocking versions of the main calls, for threads
        self._bus = check_bus(bus, self.store)
        self._capacity = Capacity(max_bytes, self.store)
        self._keyed = [self.tickets, *([guests] if guests is not None else [])]
        self._signals = SignalHook(self.drain_at_signal) if hooks_signals else None
        self._is_named = partial(is_named, names_of_cell(), self, self.sync)
        self._release_loop = self.sync.release_loop
        self._adopters: list[tuple[str, Adopter]] = []  # with patterns of channels
        self._recover = Recovery(self, self._adopters).run
        self.archive = Archive(self)  # lists, exports and imports
        keep_days = guests.keep_days if guests is not None else None
        self.retainer = Retainer(retention, self, visitors_days=keep_days)
        self.on_start(self._open_control)

    # -- lifecycle ---------------------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Return whether the hub is shutting down or has shut down."""
        return self.viewing.is_draining

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when draining begins. Return a function that removes it."""
        self._drain_callbacks[callback] = None
        return lambda: self._drain_callbacks.pop(callback, None)

    def start_task(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `job` as a task of the hub, which may outlive its request; a drain gives it time to finish."""
        if not isinstance(job, Coroutine):
            raise LocalError(f"start_task takes a coroutine, the result of an `async def` function, got {shown(job)}")
        return self.runtime.tasks.start_job(job)

    def start_background(self, job: Coroutine[Any, Any, Any]) -> None:
        """Run `job` until the hub ends, which cancels it without waiting for its end."""
        self.runtime.tasks.start_background(job)

    def on(
        self, kinds: HookKind | tuple[HookKind, ...], pattern: str, *, name: str
    ) -> Callable[[HookHandler], HookHandler]:
        """Call a function for entries stored in channels that match `pattern`: `@hub.on("message.finish", "chat:*")`.

        The hub calls it at least once for each entry, in order per channel, with retries, also for entries stored while
        the hub was down, but not for entries older than the hook. `name` names the stored position; each hook needs its
        own.
        """

        def register(handler: HookHandler) -> HookHandler:
            hook = Hook(name, (kinds,) if isinstance(kinds, str) else tuple(kinds), pattern, handler)
            if self._hooks.setdefault(name, hook) is not hook:
                raise LocalError(f"hook name {name!r} is taken already; give each hook its own name")
            if self.has_recovered:
                self.runtime.begin_hook(hook)
            return handler

        return register

    def adopt(self, pattern: str) -> Callable[[Adopter], Adopter]:
        """Register a function that continues messages whose writer died with its process, on matching channels.

        The function gets a `MessageWriter` at the end of the stored text (`length`, `meta`); the message is complete
        when it returns. Messages without such a function become `interrupted`. Both happen before the hub serves.
        """

        def register(adopter: Adopter) -> Adopter:
            self._adopters.append((check_pattern(pattern), adopter))
            return adopter

        return register

    async def backup(self, path: str | os.PathLike[str], *, mb_per_s: float = 50) -> None:
        """Write a backup of the store into the new file `path` while the hub serves, at most `mb_per_s` MB in a second.

        It is one file with mode 0600. The name `path` appears when it is whole and checked. A start from it begins new
        epochs.
        """
        await self.start()
        if not isinstance(self.store, SqliteStore):
            raise LocalError(f"a {self.store.name} store has no backup; use a store in a file, sqlite:///chat.db")
        await self.store.backup(Path(path), mb_per_s=mb_per_s)

    def _open_control(self) -> None:
        """Serve on the control socket from now on; `tenuto.Hub` does, because a hub without transports cannot."""

    # -- writing -----------------------------------------------------------------------------------------------

    def message(
        self,
        channel: str,
        *,
        id: str | None = None,
        role: str = "assistant",
        author: str | None = None,
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        reply_to: str | None = None,
    ) -> MessageWriter:
        """Return a writer of a new message: `async with hub.message("chat:1") as m: await m.append("…")`.

        The end of the block completes the message; an exception makes it `failed`, cancellation `cancelled`, each with
        the text so far. Entering raises IdConflict if the message exists already.
        """
        create = CreateMessage(
            role=role,  # type: ignore[arg-type]  # checked with the request
            parts=parts,
            status="streaming",
            meta=meta or {},
            parent=parent,
            reply_to=reply_to,
        )
        message_id = self.clock.id_or_new(id)
        return MessageWriter(self, check_channel(channel), message_id, create=create, author=author)

    async def create(
        self,
        channel: str,
        *,
        text: str | None = None,
        id: str | None = None,
        role: str = "user",
        author: str | None = None,
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        reply_to: str | None = None,
        starts_turn: bool = True,
    ) -> Message:
        """Store a whole message and return it. With your own `id` the call is safe to repeat. Raises IdConflict."""
        request = CreateMessage(
            role=role,  # type: ignore[arg-type]
            text=text,
            parts=parts,
            meta=meta or {},
            parent=parent,
            reply_to=reply_to,
        )
        message_id = self.clock.id_or_new(id)
        # a user message that starts no turn waits for no agent, such as one of an imported conversation
        caller = replace(self.caller(author), brings_answer=not starts_turn)
        return message_of(await self.ask(channel, message_id, request, caller), message_id)

    async def update(
        self,
        channel: str,
        message_id: str,
        *,
        text: str | None = None,
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        if_version: int | None = None,
    ) -> Message:
        """Change a finished message and return it. `meta` is merged; None removes a key. Raises VersionConflict, …"""
        request = UpdateMessage(text=text, parts=parts, meta=meta or {}, if_version=if_version)
        return message_of(await self.ask(channel, message_id, request, self.caller(None)), message_id)

    async def finish(
        self,
        channel: str,
        message_id: str,
        *,
        status: str = "complete",
        reason: str | None = None,
        meta: dict[str, Json] | None = None,
    ) -> None:
        """End a streaming message of any writer: the writer's next append is refused with Finished."""
        await self.start()
        known = await self.runtime.message(channel, message_id)
        request = FinishMessage(status=status, reason=reason, meta=meta or {}, generation=known.generation)  # type: ignore[arg-type]
        await self.ask(channel, message_id, request, self.caller(None))

    async def take_over(self, channel: str, message_id: str, *, author: str | None = None) -> MessageWriter:
        """Return a writer that continues an interrupted message; the previous writer is fenced.

        Enter it like a writer of `message`. Raises StillStreaming, Finished, NotFound, Deleted.
        """
        await self.start()
        known = await self.runtime.message(channel, message_id)
        return await continue_after(self, channel, known, self.caller(author))

    async def delete(self, channel: str, message_id: str) -> None:
        """Delete a message. Its text leaves the store within a minute; its id cannot be used again."""
        await self.ask(channel, message_id, DeleteMessage(), self.caller(None))

    async def delete_channel(self, channel: str) -> None:
        """Empty a channel. Its viewers get a new start, and its next message begins a new epoch."""
        await self.start()
        await self.channel(channel).delete(self.clock.now_ms() + GONE_MS)

    async def command(
        self,
        channel: str,
        name: str,
        *,
        target: str | None = None,
        data: Json = None,
        id: str | None = None,
        by: str | None = None,
        expires_s: float = 300.0,
    ) -> Command:
        """Send a command: `cancel`, `steer`, `approve`, or a name of your own. It is stored, and all devices see it.

        `target` is an answer, or the message it answers. Raises NotFound, Finished (no running answer), TooMany, …
        """
        key = command_key(self.clock.id_or_new(id))
        request = SendCommand(name=name, target=target, data=data, expires_s=expires_s)
        sent = await self.ask(channel, key, request, self.caller(by))
        assert sent.command is not None
        return sent.command

    async def reply(
        self,
        channel: str,
        command_id: str,
        *,
        ok: bool = True,
        data: Json = None,
        error: Json = None,
        by: str | None = None,
    ) -> None:
        """Reply to a command. Raises AlreadyAnswered if it has a reply, NotFound."""
        key = command_key(check_id(command_id))
        request = ReplyCommand(ok=ok, data=data, error=error)
        await self.ask(channel, key, request, self.caller(by))

    async def signal(self, channel: str, name: str, data: Json = None, *, by: str | None = None) -> None:
        """Send a signal to the current subscribers of `channel`; it is never stored. Raises TooLarge."""
        await self.start()
        self.runtime.presence.signal(check_channel(channel), name, data, by)

    async def members(self, channel: str) -> Presence:
        """Return the members of `channel`, at most 100, and the count of all."""
        await self.start()
        return await self.runtime.presence.present(check_channel(channel))

    # -- reading -----------------------------------------------------------------------------------------------

    async def history(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> Page:
        """Return the newest messages created before serial `before`, newest first; at most `limit` (200) or 2 MiB.

        With `after`, return the oldest ones created after that serial, oldest first.
        """
        await self.start()
        await until_settled(self.runtime.channels.get(channel))  # the store may have a part of an import
        page = await self.store.page(
            check_channel(channel),
            before=before,
            after=after,
            limit=max(1, min(limit, self.limits.history)),
            limit_bytes=self.limits.history_bytes,
        )
        messages = [restore(stored).message() for stored in page.messages]
        return Page(messages=messages, more=page.more, cursor=str(Cursor(page.head.epoch, page.head.serial)))

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Return a message, and the cursor from which to follow it. Raises NotFound, Deleted."""
        await self.start()
        live, known = await self.runtime.found(channel, message_id)
        return own_copy(known.message()), live.state.cursor

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> Subscription:
        """Return the live events of a channel: `async for event in hub.subscribe("chat:1")`.

        Without `since` (a cursor) it begins with the newest `history` messages; resume later from its `.cursor`.
        """
        return Subscription(self, check_channel(channel), since, history, flush_ms)

    # -- for transports ----------------------------------------------------------------------------------------

    async def take_waiting(self, channel: str, message_id: str, by: str, *, turn: str | None = None) -> bool:
        """Take a waiting user message into a running turn of agent `by`, so that it gets no turn of its own.

        The message is over when that turn is; if the turn is lost, for example with its process, the message waits
        again. `turn` is the message of the turn; with it the call is safe to repeat, without it the newest turn counts.
        Return False if another turn has the message, if it does not wait, or if there is no such turn.
        """
        await self.start()
        return await take_waiting(self.runtime, channel, message_id, by, turn)

    async def attach(
        self,
        channel: str,
        since: Cursor | None,
        *,
        history: int | None = None,
        flush_ms: int | None = None,
        wake: Callable[[], None],
        has_ephemeral: bool = False,
        is_prepared: bool = False,
    ) -> Feed:
        """Return a feed that resumes after the cursor `since`, or begins with a new start.

        With `has_ephemeral` it also takes presence and signals. With `is_prepared` the messages of its first batch are
        in memory. Raises Draining, StoreUnavailable, StoreUnusable.
        """
        viewing = self.viewing
        await self.start()
        node = self.node  # names this run of the hub
        viewing.check()
        async with viewing.reading():
            live = await self.runtime.fresh(channel, with_members=has_ephemeral)
            viewing.check(has_ended=self.node != node)  # the hub may have been started anew meanwhile
            wanted = self.limits.default_history if history is None else min(history, self.limits.history)
            window_ms = self.flush_ms if flush_ms is None else flush_ms
            feed = Feed(live, since, history=wanted, flush_ms=window_ms, wake=wake, has_ephemeral=has_ephemeral)
            if is_prepared:
                await feed.prepare()
        return feed

    async def info(self, channel: str) -> ChannelInfo:
        """Return the head of `channel`."""
        await self.start()
        epoch, serial, *_ = await head_of(self.store, check_channel(channel))
        return ChannelInfo(channel=channel, epoch=epoch, serial=serial, cursor=str(Cursor(epoch, serial)))

    def channel(self, name: str) -> Channel:
        """Return the live channel `name`; it may not be loaded yet."""
        return self.runtime.channel(check_channel(name))

    def stats(self) -> dict[str, int]:
        """Return the counters of the hub, and those of its store with the prefix `store_`."""
        counts = {f"store_{name}": value for name, value in self.store.stats().items()}
        counts |= self._capacity.stats()
        return counts | self.runtime.stats() | self.retainer.stats() if self.is_running else counts


@dataclass(eq=False)
class Subscription:
    """The events of a channel, from a cursor on. It raises Draining when the hub shuts down."""

    _hub: HubCore
    channel: str
    # cursor of the last complete batch that was yielded; a later subscription resumes from it
    cursor: str | None
    _history: int | None
    _flush_ms: int | None
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)  # set when there may be events to take

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        async for batch in self.batches():
            for event in batch.events:
                yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the events in batches, each with its cursor, in the form that `core.view.View` accepts."""
        feed = await self._hub.attach(
            self.channel,
            parse_cursor(self.cursor),
            history=self._history,
            flush_ms=self._flush_ms,
            wake=self._woken.set,
            has_ephemeral=True,
        )
        node = self._hub.node  # names the run of the hub that the feed belongs to
        try:
            while True:
                self._woken.clear()
                self._hub.viewing.check(has_ended=self._hub.node != node)
                batch = await take(feed, self._hub.viewing.reading)
                if batch is not None:
                    yield Batch(events=list(batch.events), cursor=batch.cursor or None)
                    self.cursor = batch.cursor or self.cursor
                    feed.done()
                await self._woken.wait()
        finally:
            feed.close()


T = TypeVar("T")
TIMEOUT_S = 60.0  # longest time of one call; calls on a failing store give up long before


class SyncHub:
    """Blocking versions of the hub's main calls, made by `Hub.sync`. Threads other than the hub's own may use them.

    They are for code without an event loop: Celery tasks, Django views, scripts. Calls run on the hub's loop if it has
    one, else on a separate loop in a daemon thread.
    """

    def __init__(self, hub: HubCore) -> None:
        self._target = hub
        self._portal = Portal("tenuto-sync")  # the thread that runs the hub if the app has no event loop
        self._left: asyncio.AbstractEventLoop | None = None  # the event loop of this object that was closed last
        self._has_left = threading.Event()  # set when the hub was closed there

    create = blocking(HubCore.create)
    update = blocking(HubCore.update)
    finish = blocking(HubCore.finish)
    delete = blocking(HubCore.delete)
    command = blocking(HubCore.command)
    read = blocking(HubCore.read)
    history = blocking(HubCore.history)

    def message(self, channel: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer, as `Hub.message` does: `with hub.sync.message("chat:1") as m: m.append("…")`."""
        return writing(self._run, lambda: self._open(channel, fields))

    def close(self) -> None:
        """Close the hub if it runs on this object's own loop."""
        self._portal.stop(self._target.close, TIMEOUT_S)

    async def release_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Close the hub if `loop` is this object's loop, so that the hub can run on another loop. Called by the hub."""
        if loop is self._left:  # also while the portal still has it: the first call closes the hub
            return await asyncio.to_thread(self._has_left.wait, TIMEOUT_S)
        if loop is self._portal.loop:
            self._left, self._has_left = loop, threading.Event()
            await asyncio.to_thread(self._leave, self._has_left)
        return loop is self._left

    def _leave(self, has_left: threading.Event) -> None:
        try:
            self.close()  # it goes on if the call that waits for it is cancelled
        finally:
            has_left.set()

    async def _open(self, channel: str, fields: dict[str, Any]) -> MessageWriter:
        return await self._target.message(channel, **fields).open()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        # `current_route` puts this thread's route into its context: the loop runs `call` in a copy, whose additions
        # `stream_response` does not see. Not in the main thread, whose context all tasks inherit.
        if threading.current_thread() is not threading.main_thread():
            current_route()
        loop = self._target.loop or self._portal.start()
        try:
            return run_on(loop, call, remedy="await the methods of the hub itself there", timeout_s=TIMEOUT_S)
        except NoResponse:
            raise CommitUnknown(f"hub did not respond within {TIMEOUT_S:.0f} s; it may still do it") from None
