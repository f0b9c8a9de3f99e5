"""The running hub: channels in memory, the committer, and all timers.

Layer: hub.

`HubCore` is the hub without its transports; `holdfast.Hub` adds the ASGI side. It starts by itself on first use, on the
running event loop, and starts again on another loop after that one ended. One TaskGroup owns every task.
Public names without an underscore are the Python API and are documented in `docs/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import cached_property
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from holdfast.core.cursor import Cursor
from holdfast.core.document import restore, restore_command
from holdfast.core.errors import (
    Busy,
    Deleted,
    Draining,
    Fenced,
    Finished,
    HoldfastError,
    IdConflict,
    LocalError,
    NotFound,
    StoreUnavailable,
)
from holdfast.core.events import Page, Presence
from holdfast.core.limits import Limits
from holdfast.core.model import Command, Json, Message, Part, plain
from holdfast.core.names import COMMAND_MARK, check_channel, check_id, check_key, command_key
from holdfast.core.ops import Writer
from holdfast.core.requests import (
    SERVER,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    ReplyCommand,
    Request,
    SendCommand,
    TakeOver,
    UpdateMessage,
)
from holdfast.core.state import MessageState
from holdfast.hub.channel import Channel
from holdfast.hub.clock import Clock
from holdfast.hub.committer import Committer
from holdfast.hub.deadlines import Deadlines
from holdfast.hub.development import exception_reason
from holdfast.hub.drain import SignalHook
from holdfast.hub.feed import Feed
from holdfast.hub.hooks import Hook, HookHandler, HookKind, Hooks
from holdfast.hub.identity import Authenticate
from holdfast.hub.leases import LeaseMonitor
from holdfast.hub.origins import check_allowed_origins, check_public_origin
from holdfast.hub.pace import Pace
from holdfast.hub.patterns import check_pattern, matches
from holdfast.hub.pending import DocumentDue, Item, Waiting
from holdfast.hub.presence import PresenceTracker
from holdfast.hub.rates import ClientLimits, Rates
from holdfast.hub.results import Done, Result, result_later
from holdfast.hub.settings import check_job, check_settings, check_store
from holdfast.hub.store_owner import close_store, interactive_namespace, open_store
from holdfast.hub.subscription import Subscription
from holdfast.hub.sync import SyncHub
from holdfast.hub.tickets import Tickets
from holdfast.hub.ticks import Ticks
from holdfast.hub.turns import TurnScheduler
from holdfast.hub.workers import WorkerPool
from holdfast.hub.writer import MessageWriter
from holdfast.hub.wsgi import warn_of_runserver
from holdfast.stores.base import Store

logger = logging.getLogger("holdfast.hub")

TIDY_S = 5.0  # between two rounds of housekeeping
USED_UP_MS = 24 * 3600 * 1000  # how long ids of messages that streamed in a deleted channel stay used up
LEFT_S = 1.0  # before checking that the end of an abandoned message is stored, and between two tries
SHUTDOWN_S = 2.0  # for cancelled tasks to clean up

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]


class ChannelInfo(Struct, frozen=True, kw_only=True):
    """The head of a channel."""

    channel: str
    epoch: str
    serial: int
    cursor: str


class _Runtime:
    """The parts of a hub that live on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ready: asyncio.Future[None] = loop.create_future()
        self.stop = asyncio.Event()
        self.is_over = False
        self.channels: dict[str, Channel] = {}
        self.ticks = Ticks()
        self.pace = Pace(self.ticks)
        self.writers: dict[tuple[str, str], MessageWriter] = {}
        self.background: set[asyncio.Task[Any]] = set()  # tasks that are cancelled at the end
        self.jobs: set[asyncio.Task[Any]] = set()  # tasks of the app, given time when the hub drains
        self.quieter = asyncio.Event()  # set when a job or a writer ends
        self.tasks: asyncio.TaskGroup | None = None
        self.committer: Committer | None = None
        self.deadlines = Deadlines(loop)
        self.leases: LeaseMonitor | None = None
        self.scheduler: TurnScheduler | None = None
        self.presence: PresenceTracker | None = None
        self.draining: asyncio.Task[None] | None = None
        self.main: asyncio.Task[None] | None = None

    def job_ended(self, job: asyncio.Task[Any]) -> None:
        """Forget a job of the app, which has ended."""
        self.jobs.discard(job)
        self.quieter.set()


class HubCore:
    """Durable channels: create, append, watch. `store` is a URL or an unopened store.

    `flush_ms` is the default flush window of viewers, `drain_s` how long running answers may go on when the
    process receives a signal to end; `hooks_signals=False` installs no signal handlers (then call `drain` yourself).
    Pages of `allowed_origins` may send requests; `public_origin` is the address of this server's own pages behind TLS.
    `ticket_keys` sign tickets, so that tickets outlive the process; the verifier may provide keys, too. `debug` names
    exceptions in the reasons of failed messages; by default a hub without a verifier does so, without their text.
    """

    writer_class: type[MessageWriter] = MessageWriter  # `holdfast.agents` has one with more methods

    def __init__(
        self,
        store: str | Store = "sqlite:///holdfast.db",
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
    ) -> None:
        check_settings(
            authenticate=authenticate,
            limits=limits,
            client_limits=client_limits,
            flush_ms=flush_ms,
            drain_s=drain_s,
            debug=debug,
        )
        warn_of_runserver()
        self.store: Store = check_store(store)
        self.authenticate = authenticate
        self.allowed_origins = check_allowed_origins(allowed_origins)
        self.public_origin = check_public_origin(public_origin)
        self.limits = limits or Limits()
        self.flush_ms = flush_ms
        self.drain_s = drain_s
        self.debug = debug
        self.clock = clock or Clock()
        self.rates = Rates(client_limits)
        self.tickets = Tickets(ticket_keys or getattr(authenticate, "ticket_keys", ()), now_ms=self.clock.now_ms)
        self.node = ""  # names this run of the hub in writers' leases; new at each start
        self.is_draining = False
        self.requires_own_host = False  # with a verifier too; `serve --allow-everyone` sets it on loopback
        self.drive_by_hand = False  # streaming responses may drive `send` themselves; `serve` sets it
        self._on_start: list[Callable[[], None]] = []
        self._hooks = Hooks(self)
        self._adopters: list[tuple[str, Adopter]] = []
        self._on_drain: dict[Callable[[], None], None] = {}
        self._runtime: _Runtime | None = None
        self._hook = SignalHook(self.drain) if hooks_signals else None
        self._made_in = interactive_namespace()

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and serve; called on first use. Raises StoreInUse, StoreUnusable, StoreUnavailable."""
        loop = asyncio.get_running_loop()
        while (runtime := self._runtime) is not None and runtime.loop is not loop:
            if not await self.sync.release_loop(runtime.loop) and runtime.loop.is_running():
                raise LocalError("hub runs on the event loop of another thread; use hub.sync, or create another hub")
            await close_store(self)  # if its event loop ended without `close`
            if self._runtime is runtime:
                self._runtime = None
        if runtime is None or runtime.is_over:
            runtime = self._runtime = _Runtime(loop)
            self.node = self.clock.new_id()
            self.is_draining = False
            runtime.main = loop.create_task(self._run(runtime), name="holdfast-hub")
        await asyncio.shield(runtime.ready)

    async def drain(self) -> None:
        """Shut down gracefully: disconnect viewers, give running answers `drain_s` seconds, then cancel the rest.

        Messages that are cancelled so stay `streaming` in the store; the next start adopts or interrupts them.
        """
        runtime = self._runtime
        if runtime is None or runtime.is_over:
            return
        if not runtime.ready.done():
            await asyncio.wait([runtime.ready])  # a start in progress must complete before it can be ended
        if runtime.ready.exception() is not None:
            return
        if runtime.draining is None:
            runtime.draining = asyncio.get_running_loop().create_task(self._drain(runtime))
        await asyncio.shield(runtime.draining)

    async def close(self) -> None:
        """Drain, store all accepted requests, and close the store. A second call has no effect."""
        runtime = self._runtime
        if runtime is None or runtime.is_over or runtime.loop is not asyncio.get_running_loop():
            return
        await self.drain()
        runtime.stop.set()
        if runtime.main is not None:
            await asyncio.wait([runtime.main])

    @property
    def is_running(self) -> bool:
        """Return whether the hub has started and not ended."""
        runtime = self._runtime
        return runtime is not None and not runtime.is_over and runtime.scheduler is not None

    @property
    def has_recovered(self) -> bool:
        """Return whether the hub serves. Then a registration takes effect at once, else at the next start."""
        runtime = self._runtime
        return runtime is not None and not runtime.is_over and runtime.ready.done() and not runtime.stop.is_set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop on which the hub runs, or None."""
        runtime = self._runtime
        return runtime.loop if runtime is not None and not runtime.is_over and runtime.loop.is_running() else None

    def is_out_of_reach(self) -> bool:
        """Return whether a later cell of a notebook may take the store: no name leads to this hub, and it is idle."""
        runtime, names = self._runtime, self._made_in
        if runtime is None or names is None or any(value is self for value in list(names.values())):
            return False
        is_watched = any(channel.feeds for channel in runtime.channels.values())
        return not (is_watched or runtime.jobs or runtime.writers)

    def hook_signals(self) -> None:
        """Drain at SIGTERM and SIGINT, then call the previous handlers.

        The hub calls this at its start; a server that installs its own handlers later must call it again.
        """
        if self._hook is not None:
            self._hook.install()

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when draining begins. Return a function that removes it."""
        self._on_drain[callback] = None
        return lambda: self._on_drain.pop(callback, None)

    def on_start(self, callback: Callable[[], None]) -> None:
        """Call `callback` at each start, after recovery and before anyone is served; now, if the hub serves."""
        self._on_start.append(callback)
        if self.has_recovered:
            callback()

    def start_task(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `job` as a task of the hub: it outlives the request that started it; a drain gives it time to finish."""
        check_job(job)
        task = self._spawn(job)
        runtime = self._live()
        runtime.jobs.add(task)
        task.add_done_callback(runtime.job_ended)
        return task

    def start_background(self, job: Coroutine[Any, Any, Any]) -> None:
        """Run `job` until the hub ends, which cancels it without waiting for its end."""
        task = self._spawn(job)
        runtime = self._live()
        runtime.background.add(task)
        task.add_done_callback(runtime.background.discard)

    def on(
        self, kinds: HookKind | tuple[HookKind, ...], pattern: str, *, name: str
    ) -> Callable[[HookHandler], HookHandler]:
        """Call a function for entries stored in channels that match `pattern`: `@hub.on("message.finish", "chat:*")`.

        The hub calls it at least once for each entry, in order per channel, with retries, also for entries stored while
        the hub was down, but not for entries older than the hook. `name` names the stored position; each hook needs its
        own.
        """

        def register(handler: HookHandler) -> HookHandler:
            self._hooks.add(Hook(name, (kinds,) if isinstance(kinds, str) else tuple(kinds), pattern, handler))
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
        return self.writer_class(self, check_channel(channel), self._id(id), create=create, author=author)

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
        answer = await self.ask(channel, self._id(id), request, self.caller(author))
        return _present(answer)

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
        return _present(await self.ask(channel, message_id, request, self.caller(None)))

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
        known = await self._message(channel, message_id)
        request = FinishMessage(
            status=status,  # type: ignore[arg-type]
            reason=reason,
            meta=meta or {},
            generation=known.generation,
        )
        await self.ask(channel, message_id, request, self.caller(None))

    async def take_over(self, channel: str, message_id: str, *, author: str | None = None) -> MessageWriter:
        """Return a writer that continues an interrupted message; the previous writer is fenced.

        Enter it like a writer of `message`. Raises StillStreaming, Finished, NotFound, Deleted.
        """
        known = await self._message(channel, message_id)
        request = TakeOver(generation=known.generation, request=self.new_id())
        try:
            answer = await self.ask(channel, message_id, request, self.caller(author))
        except (StoreUnavailable, asyncio.CancelledError):
            # The takeover may have been stored, and the message would have no writer. The state does not show it yet.
            self.start_background(self._end_left(channel, message_id, known.generation + 1))
            raise
        writer = self.writer_class(self, check_channel(channel), message_id, create=None, author=author)
        generation = answer.generation or known.generation + 1
        try:
            message, _ = await self.read(channel, message_id)
        except BaseException:
            self._left(channel, message_id, generation)
            raise
        writer.take_up(message, generation)
        return writer

    async def delete(self, channel: str, message_id: str) -> None:
        """Delete a message. Its text leaves the store within a minute; its id cannot be used again."""
        await self.ask(channel, message_id, DeleteMessage(), self.caller(None))

    async def delete_channel(self, channel: str) -> None:
        """Empty a channel. Its viewers get a new start, and its next message begins a new epoch."""
        await self.start()
        await self.channel(check_channel(channel)).delete(self.clock.now_ms() + USED_UP_MS)

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
        key = command_key(self._id(id))
        request = SendCommand(name=name, target=target, data=data, expires_s=expires_s)
        await self.start()
        answer = await self._ask(check_channel(channel), key, request, self.caller(by))
        assert answer.command is not None
        return answer.command

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
        await self.start()
        request = ReplyCommand(ok=ok, data=data, error=error)
        await self._ask(check_channel(channel), key, request, self.caller(by))

    async def signal(self, channel: str, name: str, data: Json = None, *, by: str | None = None) -> None:
        """Send a signal to the current subscribers of `channel`; it is never stored. Raises TooLarge."""
        await self.start()
        self.presence.signal(check_channel(channel), name, data, by)

    async def members(self, channel: str) -> Presence:
        """Return the members of `channel`, at most 100, and the count of all."""
        await self.start()
        return self.presence.present(check_channel(channel))

    # -- reading -----------------------------------------------------------------------------------------------

    async def history(self, channel: str, *, before: int | None = None, limit: int = 50) -> Page:
        """Return the newest messages created before serial `before`, newest first; at most `limit` (200) or 2 MiB."""
        return await self.page(channel, before=before, limit=limit)

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Return a message, and the cursor from which to follow it. Raises NotFound, Deleted."""
        known = await self._message(channel, message_id)
        return _own(known.message()), str(self.channel(channel).state.cursor)

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> Subscription:
        """Return the live events of a channel: `async for event in hub.subscribe("chat:1")`.

        Without `since` (a cursor) it begins with the newest `history` messages; resume later from its `.cursor`.
        """
        return Subscription(self, check_channel(channel), since, history, flush_ms)

    @cached_property
    def sync(self) -> SyncHub:
        """Return the blocking twin of these calls, for threads."""
        return SyncHub(self)

    # -- for transports ----------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """Return a new id; ids sort by time."""
        return self.clock.new_id()

    async def ask(self, channel: str, message_id: str, request: Request, caller: Caller) -> Result:
        """Submit `request` and return its result, which is durable. Raises the refusal."""
        await self.start()
        return await self._ask(check_channel(channel), check_key(message_id), request, caller)

    def submit(self, channel: str, message_id: str, request: Request, caller: Caller, done: Done) -> None:
        """Submit `request` and call `done` with the result or the error. The hub must have started.

        Requests of one channel are decided in the order they were submitted. Raises Busy, InvalidName.
        """
        key = check_key(message_id)
        self.queue(Waiting(check_channel(channel), key, request, caller, done))

    @property
    def presence(self) -> PresenceTracker:
        """Return the presence tracker. The hub must have started."""
        people = self._live().presence
        assert people is not None
        return people

    @property
    def scheduler(self) -> TurnScheduler:
        """Return the turn scheduler. The hub must have started."""
        scheduler = self._live().scheduler
        assert scheduler is not None
        return scheduler

    @property
    def leases(self) -> LeaseMonitor:
        """Return the lease monitor. The hub must have started."""
        leases = self._live().leases
        assert leases is not None
        return leases

    def queue(self, item: Item) -> None:
        """Queue `item` for the next commit. Raises Busy."""
        committer = self._live().committer
        assert committer is not None
        committer.submit(item)

    def call_in_time(self, channel: Channel, callback: Callable[[], None]) -> bool:
        """Schedule `callback` for when text that only viewers of `channel` wait for is due. False if that is now."""
        return self._runtime is not None and self._runtime.pace.call_in_time(channel, callback)

    async def take_waiting(self, channel: str, message_id: str, by: str, *, turn: str | None = None) -> bool:
        """Take a waiting user message into a running turn of agent `by`, so that it gets no turn of its own.

        The message is over when that turn is; if the turn is lost, for example with its process, the message waits
        again. `turn` is the message of the turn; with it the call is safe to repeat, without it the newest turn counts.
        Return False if another turn has the message, if it does not wait, or if there is no such turn.
        """
        try:
            known = await self._message(channel, message_id)
        except NotFound:
            return False
        host = self.scheduler.turn_of(channel, by, turn)
        if known.claim is None or known.deleted or host is None:
            return False
        claim = known.claim
        within, attempt, holder = host
        if claim.state != "pending":
            return turn is not None and self.scheduler.is_held(channel, message_id, within, attempt)
        writer = Writer(by=by, node=self.node) if holder.node is not None else None
        caller = Caller(id=by, writer=writer, is_server=True)
        request = ClaimTurn(
            generation=claim.generation, lease_s=holder.lease_ms / 1000, within=within, within_generation=attempt
        )
        try:
            with self.scheduler.taking(channel, message_id, within, attempt):
                await self.ask(channel, message_id, request, caller)
        except (Fenced, Finished, Deleted, NotFound):
            return False
        return True

    async def attach(
        self,
        channel: str,
        since: Cursor | None,
        *,
        history: int | None = None,
        flush_ms: int | None = None,
        wake: Callable[[], None],
        has_passing: bool = False,
    ) -> Feed:
        """Return a feed that resumes after `since`, or makes a new start. Raises Draining, StoreUnavailable.

        With `has_passing` it also takes presence and signals.
        """
        await self.start()
        if self.is_draining:
            raise Draining("hub is shutting down; retry with the cursor")
        live = await self._fresh(channel)
        wanted = self.limits.default_history if history is None else min(history, self.limits.history)
        window_ms = self.flush_ms if flush_ms is None else flush_ms
        return Feed(live, since, history=wanted, flush_ms=window_ms, wake=wake, has_passing=has_passing)

    async def page(self, channel: str, *, before: int | None, limit: int) -> Page:
        """Return a page as `history` does."""
        await self.start()
        limits = self.limits
        page = await self.store.page(
            check_channel(channel),
            before=before,
            limit=max(1, min(limit, limits.history)),
            limit_bytes=limits.history_bytes,
        )
        messages = [restore(stored).message() for stored in page.messages]
        return Page(messages=messages, more=page.more, cursor=str(Cursor(page.head.epoch, page.head.serial)))

    async def info(self, channel: str) -> ChannelInfo:
        """Return the head of `channel`."""
        await self.start()
        head = await self.store.head(check_channel(channel))
        cursor = str(Cursor(head.epoch, head.serial))
        return ChannelInfo(channel=channel, epoch=head.epoch, serial=head.serial, cursor=cursor)

    def channel(self, name: str) -> Channel:
        """Return the live channel `name`, which may not be loaded."""
        runtime = self._live()
        now_s = runtime.loop.time()
        channel = runtime.channels.get(name)
        if channel is None:
            channel = runtime.channels[name] = Channel(
                name, self.store, self.limits, runtime.ticks, now_s=now_s, observe=self._changed
            )
            if runtime.scheduler is not None:
                runtime.scheduler.workers.loaded(channel)
        channel.used_s = now_s
        return channel

    def stats(self) -> dict[str, int]:
        """Return the counters of the hub, and those of its store with the prefix `store_`."""
        runtime = self._runtime
        counts = {f"store_{name}": value for name, value in self.store.stats().items()}
        if runtime is not None and runtime.committer is not None:
            counts |= {
                "channels": len(runtime.channels),
                "feeds": sum(len(channel.feeds) for channel in runtime.channels.values()),
                "writers": len(runtime.writers),
                "commits": runtime.committer.commits,
                "entries": runtime.committer.entries,
                "waiting": runtime.committer.waiting,
                "deadlines": len(runtime.deadlines),
                "members": sum(len(channel.presence_state) for channel in runtime.channels.values()),
            }
            if runtime.scheduler is not None:
                counts |= runtime.scheduler.stats()
        return counts

    def free_memory(self) -> None:
        """Drop idle channels from memory and trim live ones to their bound; the hub does so every few seconds."""
        runtime, limits = self._live(), self.limits
        committer = runtime.committer
        now_s = runtime.loop.time()
        total = 0
        for name, channel in sorted(runtime.channels.items(), key=lambda item: -item[1].used_s):
            is_idle = channel.is_idle and not (committer is not None and committer.is_parked(channel))
            if is_idle and (now_s - channel.used_s > limits.channel_idle_s or total > limits.memory_bytes):
                runtime.channels.pop(name).close()
                continue
            channel.batches.forget()
            cost = channel.state.cost_bytes()
            if cost > limits.channel_bytes:
                channel.trim(limits.channel_bytes)
            total += min(cost, limits.channel_bytes)

    # -- for writers -------------------------------------------------------------------------------------------

    def register_writer(self, writer: MessageWriter) -> None:
        """Register `writer`. Raises IdConflict if another one in this process writes the same message."""
        writers = self._live().writers
        if writers.setdefault((writer.channel, writer.id), writer) is not writer:
            raise IdConflict(f"message {writer.id!r} has a writer in this process already; use another id")

    def reason_of(self, error: BaseException) -> str | None:
        """Return the reason of a message that `error` ended: the exception's name in development, else None."""
        is_development = self.authenticate is None if self.debug is None else self.debug
        return exception_reason(error, has_text=bool(self.debug)) if is_development else None

    def unregister_writer(self, writer: MessageWriter) -> None:
        """Forget `writer`, which has ended."""
        if self._runtime is not None:
            self._runtime.writers.pop((writer.channel, writer.id), None)
            self._runtime.quieter.set()
            self._left(writer.channel, writer.id, writer.generation)

    def _left(self, channel: str, message_id: str, generation: int) -> None:
        """Note that the message has no writer here any more, and check later that its end is stored."""
        if self.is_draining or not self.is_running:
            return
        live = self._live().channels.get(channel)
        known = live.state.message(message_id) if live is not None else None
        if known is None or self._is_left(known, channel, generation):
            with contextlib.suppress(RuntimeError):  # the hub is ending: its next start recovers the message
                self.start_background(self._end_left(channel, message_id, generation))

    def _is_left(self, message: MessageState, channel: str, generation: int) -> bool:
        """Return whether the message still streams although its writer in this process has gone."""
        is_ours = message.writer is not None and message.writer.node == self.node
        is_written = (channel, message.id) in self._live().writers
        return message.is_streaming and is_ours and message.generation == generation and not is_written

    async def _end_left(self, channel: str, message_id: str, generation: int) -> None:
        """Retry until the abandoned message is stored as interrupted; no other component will finish it."""
        end = FinishMessage(status="interrupted", reason="writer_gone", generation=generation)
        while True:
            await asyncio.sleep(LEFT_S)
            try:
                if self._is_left(await self._message(channel, message_id), channel, generation):
                    await self.ask(channel, message_id, end, SERVER)
                return
            except HoldfastError as error:
                if not error.retry or isinstance(error, Draining):
                    return

    def caller(self, author: str | None) -> Caller:
        """Return a caller in this process."""
        return Caller(id=author, writer=Writer(by=author, node=self.node), is_app=True)

    # -- inside ------------------------------------------------------------------------------------------------

    def _live(self) -> _Runtime:
        runtime = self._runtime
        if runtime is not None and runtime.is_over and self.is_draining:
            raise Draining("hub is closed; start it again, or reconnect to another one")
        if runtime is None or runtime.is_over:
            raise LocalError("hub is not running; await hub.start() first")
        if runtime.committer is None:  # a socket may outlive a hub that was closed and is starting again
            raise Busy("hub is starting; retry")
        return runtime

    def _spawn(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task in the hub's group; an exception in it is logged, and ends no other task."""
        guarded = _guarded(job)
        try:
            tasks = self._live().tasks
            assert tasks is not None
            task = tasks.create_task(guarded)
        except BaseException:  # the hub has ended, or is ending: leave no coroutine without an awaiter
            guarded.close()
            job.close()
            raise
        task.add_done_callback(lambda _: job.close())  # nor one of a task that is cancelled before it starts
        return task

    def _id(self, message_id: str | None) -> str:
        return check_id(message_id) if message_id is not None else self.new_id()

    async def _ask(self, channel: str, message_id: str, request: Request, caller: Caller) -> Result:
        answered, done = result_later()
        self.queue(Waiting(channel, message_id, request, caller, done))
        return await answered

    async def _message(self, channel: str, message_id: str) -> MessageState:
        await self.start()
        live = await self._fresh(channel)
        await live.load_messages([check_id(message_id)])
        known = live.state.message(message_id)
        if known is None:
            raise NotFound(f"message {message_id!r} does not exist")
        if known.deleted:
            raise Deleted(f"message {message_id!r} was deleted")
        return known

    async def _fresh(self, channel: str) -> Channel:
        """Return the channel, loaded; on a shared store, up to the store's head. Raises StoreUnavailable."""
        live = self.channel(check_channel(channel))
        await live.load()
        if live.is_stale or not self.store.is_exclusive:
            await live.refresh()
        return live

    async def _run(self, runtime: _Runtime) -> None:
        """Run the hub on this event loop until it ends."""
        try:
            await open_store(self)
            async with asyncio.TaskGroup() as tasks:
                runtime.tasks = tasks
                self._staff(runtime)
                assert runtime.committer is not None
                assert runtime.scheduler is not None
                await runtime.scheduler.workers.recall()
                workers = [tasks.create_task(runtime.committer.run())]
                await self._recover()
                for callback in self._on_start:
                    callback()
                self._hooks.start()
                workers.append(tasks.create_task(self._tidy(runtime)))
                self.hook_signals()
                runtime.ready.set_result(None)
                await runtime.stop.wait()
                self._hooks.stop()
                for task in [*workers, *runtime.jobs, *runtime.background]:
                    task.cancel()
        except BaseException as error:
            if runtime.ready.done():
                if not isinstance(error, Exception):
                    raise
                logger.error("a mistake has ended this life of the hub", exc_info=error)
                if not self.is_draining:
                    self.is_draining = True
                    self._send_away(runtime)
                return
            cause = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            runtime.ready.set_exception(cause)
            if not isinstance(cause, HoldfastError):
                raise
        finally:
            runtime.is_over = True
            runtime.deadlines.close()
            if self._hook is not None:
                self._hook.remove()
            await close_store(self)

    def _staff(self, runtime: _Runtime) -> None:
        """Create the services of the hub (committer, lease monitor, turn scheduler, presence, hooks)."""
        loop, deadlines = runtime.loop, runtime.deadlines
        runtime.leases = LeaseMonitor(loop, self.clock, deadlines, self.submit)
        runtime.presence = PresenceTracker(loop, deadlines, self.limits, self.channel)
        workers = WorkerPool(
            loop,
            self.clock,
            deadlines,
            store=self.store,
            live=lambda: list(runtime.channels.values()),
            spawn=self._spawn,
        )
        runtime.scheduler = TurnScheduler(
            loop,
            self.clock,
            deadlines,
            workers,
            node=self.node,
            is_exclusive=self.store.is_exclusive,
            submit=self.submit,
            find=runtime.channels.get,
        )
        leases = runtime.leases
        runtime.committer = Committer(
            self.store,
            self.limits,
            self.clock,
            runtime.channels,
            self.channel,
            self._spawn,
            runtime.pace,
            is_served=workers.serves,
            accepted=lambda channel, key: leases.renew(channel.name, key),
        )

    def _changed(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """Notify the services of entries other than appends in `channel`."""
        runtime = self._runtime
        if runtime is not None and runtime.leases is not None and runtime.scheduler is not None:
            runtime.leases.inspect(channel, keys)
            runtime.scheduler.inspect(channel, keys)
            self._hooks.changed(channel)

    async def _recover(self) -> None:
        """Recover the open messages and commands of the previous run, before the hub serves.

        Messages whose writers died with their process are adopted or interrupted; remote writers get one full lease;
        commands and turns continue to wait.
        """
        if not self.store.is_exclusive:
            return
        for channel in await self.store.open_channels():  # one at a time: together they may be more than memory holds
            for stored in await self.store.open_documents(channel):
                if stored.id.startswith(COMMAND_MARK):
                    self.leases.inspect_command(channel, stored.id, restore_command(stored))
                else:
                    await self._recover_message(channel, restore(stored))

    async def _recover_message(self, channel: str, message: MessageState) -> None:
        self.leases.inspect_writer(channel, message.id, message)
        self.scheduler.inspect_message(channel, message.id, message)
        writer = message.writer
        if not message.is_streaming or writer is None or writer.node in (None, self.node):
            return
        adopter = next((one for pattern, one in self._adopters if matches(pattern, channel)), None)
        server = Caller(id=writer.by, writer=Writer(by=writer.by, node=self.node), is_server=True)
        if adopter is None:
            end = FinishMessage(status="interrupted", generation=message.generation)
            with contextlib.suppress(Finished, Fenced, Deleted, NotFound):  # an overdue `cancel` has ended it
                await self._ask(channel, message.id, end, server)
            return
        # With a request id: if the outcome of a commit is unknown, the repeat is recognised, not fenced by the first.
        succeed = TakeOver(generation=message.generation, request=self.new_id())
        try:
            answer = await self._ask(channel, message.id, succeed, server)
        except (Finished, Fenced, Deleted, NotFound):
            return
        successor = self.writer_class(self, channel, message.id, create=None, author=writer.by)
        successor.take_up(message.message(), answer.generation or message.generation + 1)
        self.start_task(_go_on(adopter, successor))

    async def _tidy(self, runtime: _Runtime) -> None:
        """Run the housekeeping of store and memory every few seconds, and follow other hubs on a shared store."""
        token: str | None = None
        while True:
            await asyncio.sleep(TIDY_S)
            self.free_memory()
            self.scheduler.workers.tidy()
            try:
                for channel, message_id in await self.store.tidy(self.clock.now_ms()):
                    self.queue(DocumentDue(channel, message_id))
                moved = await self.store.moved(token)
                for name, channel_state in list(runtime.channels.items()):
                    head = None if moved.channels is None else moved.channels.get(name)
                    state = channel_state.state
                    # Not "above": the head of a channel that another hub deleted has gone back to zero.
                    if moved.channels is None or (head is not None and head[:2] != (state.epoch, state.serial)):
                        await channel_state.refresh()
                token = moved.token
            except HoldfastError as error:
                logger.warning("housekeeping will try again: %s", error)
            except Exception:  # for example a third-party store: housekeeping errors must not affect running messages
                logger.exception("housekeeping failed, and will try again")

    def _send_away(self, runtime: _Runtime) -> None:
        """Disconnect all viewers; they reconnect to the next run of the hub, or to another one."""
        for callback in list(self._on_drain):
            callback()
        for channel in runtime.channels.values():
            for feed in channel.feeds:
                feed.wake()

    async def _drain(self, runtime: _Runtime) -> None:
        self.is_draining = True
        self.scheduler.close()
        self._send_away(runtime)
        try:
            async with asyncio.timeout(self.drain_s):
                while runtime.jobs or runtime.writers:
                    runtime.quieter.clear()
                    await runtime.quieter.wait()
        except TimeoutError:
            logger.info("%d answers are left unfinished", len(runtime.writers))
        jobs = [job for job in runtime.jobs if not job.done()]
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs, timeout=SHUTDOWN_S)
        for writer in list(runtime.writers.values()):  # of the app's own tasks: store their text so far
            try:
                async with asyncio.timeout(SHUTDOWN_S):
                    await writer.flush()
            except (HoldfastError, TimeoutError) as error:
                logger.warning("the last text of message %r was not stored: %r", writer.id, error)


async def _go_on(adopter: Adopter, writer: MessageWriter) -> None:
    with contextlib.suppress(Finished, Fenced, Deleted):  # a client stopped it
        async with writer:
            await adopter(writer)


async def _guarded(job: Coroutine[Any, Any, Any]) -> Any:
    """Run `job` and log its exceptions: the outer edge of a task that no other one awaits."""
    try:
        return await job
    except HoldfastError as error:
        logger.warning("a task of the hub ended: %s (%s)", error, error.code)
    except Exception:
        logger.exception("a task of the hub failed")


def _present(answer: Result) -> Message:
    if answer.message is None:
        raise Deleted("message was deleted meanwhile")
    return _own(answer.message)


def _own(message: Message) -> Message:
    """Return a copy of `message` for the app, which may change it without changing the state."""
    return replace(message, meta=plain(message.meta), parts=[plain(part) for part in message.parts])
