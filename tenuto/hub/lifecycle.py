"""The lifecycle of a hub: start, housekeeping, drain at a signal, close, and start again.

Layer: hub.

A hub starts by itself on first use, on the running event loop, and starts again on another loop after that one ended.
Each run opens the store, builds a `Runtime`, recovers the messages and commands that the previous run left open, and
serves until it is closed. A `Lifecycle` has at most one run at a time.

ASGI servers wait for open responses at shutdown and at `--reload`, and do not notify the app before (measured on
uvicorn and granian), so a single open tab would hang them. `SignalHook` is chained to the previous handler: it
disconnects viewers at once, gives running answers time to finish, then calls the server's own handler. A second signal
does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tenuto.core.errors import Busy, Draining, LocalError, StoreUnavailable, TenutoError, failures_in
from tenuto.core.limits import Limits
from tenuto.core.names import check_channel, check_key
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, Request
from tenuto.development import failure_reason
from tenuto.hub.access.identity import Authenticate
from tenuto.hub.access.rates import Questions, Rates
from tenuto.hub.access.tickets import Keyed
from tenuto.hub.checks import check_not_wsgi
from tenuto.hub.clock import Clock
from tenuto.hub.hooks import Hook, register
from tenuto.hub.keep.exports import undo_imports
from tenuto.hub.keep.policies import Capacity
from tenuto.hub.nodes import TERM_MS, IsMine, every_channel
from tenuto.hub.pending import DocumentDue, Result
from tenuto.hub.runtime import Runtime
from tenuto.hub.tasks import logs_errors
from tenuto.hub.turns.scheduler import SharedTurns
from tenuto.portal import Writer
from tenuto.stores.base import Bus, Store

logger = logging.getLogger("tenuto.hub")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHook:
    """Runs `drain` on the loop at the first signal, then the previous handlers."""

    _loop: asyncio.AbstractEventLoop  # that of the last `install`
    _task: asyncio.Task[None]  # the drain; kept, since the loop holds tasks only weakly

    def __init__(self, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._drain = drain
        self._is_hit = False  # True: a signal has begun the drain since the last `install`

    def install(self) -> None:
        """Hook the signals; again if another component has replaced the handlers since. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        self._is_hit = False
        for number in SIGNALS:
            before = signal.getsignal(number)
            # None stands for a handler that is not written in Python. Neither it nor SIG_IGN can be called from ours;
            # ignored signals stay ignored. `pass_on` restores SIG_DFL.
            if before not in (None, signal.SIG_IGN) and all(one.hook is not self for one in _chain(number)):
                signal.signal(number, _Handler(self, before))

    def remove(self) -> None:
        """Restore the previous handlers, unless another component has hooked the signals since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            chain = _chain(number)
            for at, one in enumerate(chain):
                if one.hook is self and at:  # another hub has hooked the signals later
                    chain[at - 1].before = one.before
                elif one.hook is self:
                    signal.signal(number, one.before)

    def hit(self, number: int, frame: FrameType | None, handler: _Handler) -> None:
        """Begin to drain and pass the signal on later, or pass it on at once if it is not the first one."""
        if self._is_hit or not self._loop.is_running():
            handler.pass_on(number, frame)
        else:
            self._is_hit = True
            self._loop.call_soon_threadsafe(self._begin, number, handler)

    def _begin(self, number: int, handler: _Handler) -> None:
        self._task = asyncio.get_running_loop().create_task(self._drain())
        # also if the end of the program cancels this task: the signal must still reach the previous handler
        self._task.add_done_callback(lambda _: handler.pass_on(number, None))


@dataclass(eq=False)
class _Handler:
    """A handler of a hub. A server that replaced it may restore it at its end, when the hub has a later one."""

    hook: SignalHook
    before: Any

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.hook.hit(number, frame, self)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self.before):
            self.before(number, frame)
        elif self.before == signal.SIG_DFL:  # only the system can carry it out: let the signal come again
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _chain(number: int) -> list[_Handler]:
    """Return the handlers of the hubs that pass the signal on to one another, beginning with the one that gets it."""
    chain, handler = list[_Handler](), signal.getsignal(number)
    while isinstance(handler, _Handler):
        chain.append(handler)
        handler = handler.before
    return chain


TIDY_S = 5.0  # time between two rounds of housekeeping


async def keep_house(hub: Lifecycle, runtime: Runtime) -> None:
    """Run the housekeeping every few seconds, until this task is cancelled."""
    while True:
        await asyncio.sleep(TIDY_S)
        free_memory(runtime)
        hub.rates.forget_new()
        if hub.questions is not None:
            hub.questions.forget_full()
        runtime.scheduler.workers.tidy()
        with logs_errors("housekeeping failed, and will try again"):
            # let the store compact itself, and write the documents that let it release old entries
            for channel, message_id in await runtime.store.tidy(runtime.clock.now_ms()):
                runtime.committer.submit(DocumentDue(channel, (message_id,)))
            runtime.capacity.watch()


def free_memory(runtime: Runtime) -> None:
    """Drop idle channels from memory, and trim live channels to their limit."""
    channels, limits = runtime.channels, runtime.limits
    now_s = runtime.loop.time()
    total = 0
    for name, channel in sorted(channels.items(), key=lambda item: -item[1].used_s):  # those used last come first
        is_idle = channel.is_idle and not runtime.committer.is_parked(channel)
        if is_idle and (now_s - channel.used_s > limits.channel_idle_s or total > limits.memory_bytes):
            runtime.forget(name)
            continue
        channel.batches.forget()
        cost = channel.state.cost_bytes()
        if cost > limits.channel_bytes:
            channel.trim(limits.channel_bytes)
        total += min(cost, limits.channel_bytes)


CUT_OFF_S = TERM_MS / 1000  # without a response for this long the hub is cut off
STEP_S = 0.5  # time between two looks at the last response
LATE_S = 2 * STEP_S  # a longer step counts as this long: the process was suspended, and the store may respond
RESPONSE_S = 1.0  # time for a response after the hub has drained; servers cancel requests later, with a traceback


class Viewing:
    """Says whether viewers may attach and stay: not while the hub drains, nor while it is cut off from its store.

    On a store that several hubs share, the hub may be cut off from the store while its viewers still reach it. They
    would see no new text, though other hubs could show it. So after a term of a lease without any response of the
    store, the hub disconnects its viewers and refuses others. They connect to another hub, through the proxy. As soon
    as the store responds, the hub serves viewers again. An exclusive store has no other hub, so a slow disk disconnects
    no viewer.
    """

    def __init__(self, store_name: str) -> None:
        """Begin with a hub that serves viewers."""
        self.is_draining = False  # True from the beginning of a drain until the next run begins
        self.has_drained = False  # True from the end of a drain until then
        self.is_cut_off = False
        self.on_cut_off: list[Callable[[], None]] = []  # called when the hub is cut off
        self._store_name = store_name
        self._reads: dict[asyncio.Timeout, None] = {}  # the reads that end when the hub is cut off, oldest first
        self._responses: dict[asyncio.Timeout, None] = {}  # the requests whose responses have not begun, oldest first

    @property
    def is_over(self) -> bool:
        """Return whether viewers must leave."""
        return self.is_draining or self.is_cut_off

    def check(self, *, has_ended: bool = False) -> None:
        """Raise Draining or StoreUnavailable if viewers must leave; `has_ended`: the run of the hub is over."""
        if self.is_draining or self.is_cut_off or has_ended:
            raise self._refusal(has_ended=has_ended)

    def reading(self) -> AbstractAsyncContextManager[None]:
        """Run a block that reads the store for a viewer. Raises StoreUnavailable when the hub is cut off.

        Raises Draining if the hub drains by then: the read may last longer than the server's shutdown.
        """
        if self.is_cut_off:
            raise self._refusal()
        return _ended_by(self._reads, asyncio.timeout(None), self._refusal)

    @asynccontextmanager
    async def responding(self) -> AsyncIterator[Callable[[], None]]:
        """Run a block that sends a response; the block calls the function that it gets when the response begins.

        Raises Draining if it has not begun `RESPONSE_S` after the drain, because the store does not respond.
        """
        limit = asyncio.timeout(RESPONSE_S if self.has_drained else None)

        def begin() -> None:
            self._responses.pop(limit, None)
            if not limit.expired():
                limit.reschedule(None)

        detail = f"store {self._store_name!r} has not responded to the request; send it again, with the same ids"
        async with _ended_by(self._responses, limit, lambda: Draining(f"this server shuts down, and {detail}")):
            yield begin

    def end_drain(self) -> None:
        """Note that the hub has drained, and limit the time of all requests without a response."""
        self.has_drained = True
        _end_in(RESPONSE_S, self._responses)

    def drain(self) -> None:
        """Note that the hub drains, and end the reads for viewers."""
        self.is_draining = True
        _end_in(0.0, self._reads)

    async def watch(self, runtime: Runtime) -> None:
        """Disconnect the viewers whenever the store has not responded for a term, until this task is cancelled."""
        loop = asyncio.get_running_loop()
        last_s, silent_s = runtime.responded_s(), 0.0
        try:
            while True:
                before_s = loop.time()
                await asyncio.sleep(STEP_S)
                if runtime.responded_s() != last_s:
                    last_s, silent_s = runtime.responded_s(), 0.0
                    if self.is_cut_off:
                        self.is_cut_off = False
                        logger.warning("store %r responds, so the hub serves viewers again", self._store_name)
                    continue
                silent_s += min(loop.time() - before_s, LATE_S)
                if silent_s >= CUT_OFF_S and not self.is_cut_off:
                    self.is_cut_off = True
                    silent = "store %r has not responded for %g s, so the hub disconnects its viewers"
                    logger.warning(silent, self._store_name, CUT_OFF_S)
                    _end_in(0.0, self._reads)
                    for callback in self.on_cut_off:
                        callback()
                    runtime.wake_feeds()  # they end
        finally:
            self.is_cut_off = False

    def _refusal(self, *, has_ended: bool = False) -> TenutoError:
        if self.is_draining or has_ended:
            return Draining("hub is shutting down; retry with the cursor")
        return StoreUnavailable(  # also if the store responds again by now
            f"store {self._store_name!r} has not responded to this server for {CUT_OFF_S:g} s; connect to another "
            "server, or try again later"
        )


@asynccontextmanager
async def _ended_by(
    limits: dict[asyncio.Timeout, None], limit: asyncio.Timeout, refusal: Callable[[], TenutoError]
) -> AsyncIterator[None]:
    """Run a block within `limit`, which is one of `limits` meanwhile. Raises `refusal()` when that time is over."""
    try:
        async with limit:
            limits[limit] = None
            try:
                yield
            finally:
                limits.pop(limit, None)
    except TimeoutError:
        if limit.expired():
            raise refusal() from None
        raise  # the block itself raised it


def _end_in(seconds: float, limits: Iterable[asyncio.Timeout]) -> None:
    """End the blocks of `limits` in `seconds` from now."""
    at_s = asyncio.get_running_loop().time() + seconds
    for limit in tuple(limits):
        if not limit.expired():
            limit.reschedule(at_s)


RESTART_S = 1.0  # time between two attempts to begin again after the store was replaced
SHUTDOWN_S = 2.0  # time that cancelled tasks have to clean up; loops of the hub are then cancelled again


class Run:
    """One run of the hub on one event loop, from its start to its end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, serve: Callable[[Run], Coroutine[Any, Any, None]], last: Run | None
    ) -> None:
        self.loop = loop
        self.takes_over = last is not None and last.loop is not loop  # perhaps the last run has not closed the store
        # of the workers (`WorkerPool.patterns`): at first those of the last run
        self.known_patterns: Mapping[str, int] = {} if last is None or self.takes_over else last.known_patterns
        self.ready: asyncio.Future[None] = loop.create_future()  # done when the hub serves or its start has failed
        self.stop = asyncio.Event()  # set when the run is to end
        self.has_begun = False  # whether the callbacks of the start were called and all hooks begin
        self.is_over = False
        self.draining: asyncio.Task[None] | None = None  # the drain, once it has begun
        self.main: asyncio.Task[None] = loop.create_task(serve(self), name="tenuto-hub")


async def _store_rest(message_id: str, writer: Writer) -> None:
    """Store the text that `writer` has accepted; log an error, also if that takes longer than `SHUTDOWN_S`."""
    with logs_errors(f"the last text of message {message_id!r} was not stored, and is lost", is_limited=False):
        async with asyncio.timeout(SHUTDOWN_S):
            await writer.flush()


_owners: dict[str, Lifecycle] = {}  # the lifecycles by the paths of the files that their hubs have open


def _path_of(store: Store) -> str | None:
    path = getattr(store, "path", None)
    return os.path.realpath(path) if isinstance(path, Path) else None


class Lifecycle:
    """The part of a hub that starts, drains and closes it. It closes a finished hub that still has this one's file."""

    # what the hub sets
    limits: Limits
    clock: Clock
    authenticate: Authenticate | None
    debug: bool | None
    drain_s: float
    rates: Rates
    questions: Questions | None  # counts those of visitors, if there are any
    _bus: Bus | None
    _capacity: Capacity
    _keyed: Sequence[Keyed]  # they share their keys by the store
    _signals: SignalHook | None  # None: the hub handles no signals
    _recover: Callable[[Runtime, IsMine], Awaitable[None]]  # handles the messages that ended nodes left open
    _release_loop: Callable[[asyncio.AbstractEventLoop], Awaitable[bool]]  # ends the run if the loop is `hub.sync`'s
    _is_named: Callable[[], bool]  # whether a name in the app's code leads to the hub, as far as that is known

    def __init__(self, store: Store) -> None:
        self.store = store
        self.node = ""  # random name of this run, by which leases name the hub; new at each start
        self.viewing = Viewing(store.name)  # whether viewers may attach and stay
        self._drain_callbacks: dict[Callable[[], None], None] = {}  # called by `_send_away`
        self._hooks: dict[str, Hook] = {}  # hooks by name
        self._start_callbacks: list[Callable[[], object]] = []  # called at each start
        self._run: Run | None = None  # the current run, or the last one
        self._beginning = threading.Lock()  # held while a run begins: callers may be in several threads
        self._restarting: asyncio.Task[None] | None = None  # begins a run after the store was replaced
        self._runtime: Runtime | None = None  # the services of the current run, once its store is open

    async def ask(self, channel: str, message_id: str, request: Request, caller: Caller) -> Result:
        """Submit `request` and return its result, which is durable. Raises the refusal."""
        await self.start()
        return await self.runtime.ask(check_channel(channel), check_key(message_id), request, caller)

    def caller(self, author: str | None) -> Caller:
        """Return the caller for requests of code in this process."""
        if not isinstance(author, str | None):
            raise LocalError(f"the author or sender must be a text, got {author!r:.80}")
        author = author and str.__str__(author)  # no store encodes a subclass
        return Caller(id=author, writer=WriterIdentity(by=author, node=self.node), is_app=True)

    def reason_of(self, error: BaseException) -> str | None:
        """Return the reason for a message that `error` ended: in development the exception's name, else None."""
        return failure_reason(error, debug=self.debug, is_development=self.authenticate is None)

    @property
    def runtime(self) -> Runtime:
        """Return the services of the running hub.

        Raises Busy while the store opens, Draining after the end, LocalError before the first start.
        """
        if self._runtime is not None:
            return self._runtime
        if self._run is not None and not self._run.is_over:
            raise Busy("hub is starting; retry")  # a socket may outlive a hub that was closed and is starting again
        if self._run is not None and self.viewing.is_draining:
            raise Draining("hub is closed; start it again, or reconnect to another one")
        raise LocalError("hub is not running; await hub.start() first")

    @property
    def is_running(self) -> bool:
        """Return whether the services run: the hub has started, perhaps not recovered yet, and has not ended."""
        return self._runtime is not None

    @property
    def has_recovered(self) -> bool:
        """Return whether a registration takes effect at once, because its moment in the start of the hub is over."""
        run = self._run
        return run is not None and not run.is_over and run.has_begun and not run.stop.is_set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop on which the hub runs or begins again, or None."""
        run = self._run
        if run is None or (run.is_over and self._restarting is None) or not run.loop.is_running():
            return None
        return run.loop

    def on_start(self, callback: Callable[[], object]) -> None:
        """Call `callback` at each start, after recovery and before any request is served; at once if the hub serves."""
        self._start_callbacks.append(callback)
        if self.has_recovered:
            callback()

    async def start(self) -> None:
        """Open the store and serve, as happens on first use. Raises StoreInUse, StoreUnusable, StoreUnavailable."""
        loop = asyncio.get_running_loop()
        while (run := self._run) is None or run.loop is not loop or run.is_over:
            if run is not None and run.loop is loop:
                await asyncio.wait([run.main])  # which may still close the store
            elif (
                run is not None
                and (not run.main.done() or self._restarting is not None)
                and not await self._release_loop(run.loop)
                and run.loop.is_running()
            ):
                raise LocalError("hub runs on the event loop of another thread; use hub.sync, or create another hub")
            self._begin_run(loop, run)
        await asyncio.shield(run.ready)

    def _begin_run(self, loop: asyncio.AbstractEventLoop, last: Run | None) -> None:
        """Begin a run after `last`, unless another call has begun one. End `last` if it is on another loop."""
        check_not_wsgi(is_exclusive=self.store.is_exclusive)
        with self._beginning:
            if self._run is not last:
                return
            self.node = self.clock.new_id()
            self.viewing.is_draining = self.viewing.has_drained = False
            self._runtime = None
            if last is not None and last.loop is not loop:
                ends = [last.stop.set if last.ready.done() else last.main.cancel]  # a start sees `stop` at its end
                if self._restarting is not None:
                    ends.append(self._restarting.cancel)
                    self._restarting = None
                for end in ends:
                    with suppress(RuntimeError):  # that loop is closed; otherwise it may run again
                        last.loop.call_soon_threadsafe(end)
            self._run = Run(loop, self._serve, last)

    async def drain(self) -> None:
        """Shut down gracefully: disconnect viewers, give running answers `drain_s` seconds, then cancel the rest.

        Messages whose work was cancelled stay `streaming` in the store; the next start adopts or interrupts them. That
        start follows only after `close`. Until then a hub alone with its store ends no leases of remote writers.
        """
        run = self._run
        if run is None or run.is_over:
            return
        # a start in progress must complete before the run can be ended; one that hangs is cancelled
        await asyncio.wait([run.ready], timeout=self.drain_s + SHUTDOWN_S)
        if not (run.ready.done() or run.main.cancelling()):
            self.viewing.drain()  # so that the messages of adopters stay open for the next start
            run.main.cancel()
        if run.is_over or not run.ready.done() or run.ready.exception() is not None:
            return
        if run.draining is None:
            drain_s = self.drain_s if self._restarting is None else 0.0  # a replaced store takes no more text
            run.draining = asyncio.get_running_loop().create_task(self._drain(self.runtime, drain_s))
        await asyncio.shield(run.draining)

    async def drain_at_signal(self) -> None:
        """Drain. If the program ends meanwhile, and cancels all tasks, wait until the run has closed its store."""
        try:
            with logs_errors("draining failed, so the next start recovers what runs"):
                await self.drain()
        except asyncio.CancelledError:
            if self._run is not None:
                await asyncio.wait([self._run.main], timeout=SHUTDOWN_S)
            raise

    async def close(self) -> None:
        """Drain, store all accepted requests, and close the store. A second call has no effect."""
        run = self._run
        if run is None or run.loop is not asyncio.get_running_loop():
            return
        restarting, self._restarting = self._restarting, None
        if restarting is not None:
            restarting.cancel()
            await asyncio.wait([restarting])
            run = self._run  # it may have begun another one
        if run is None or run.main.done() or run.loop is not asyncio.get_running_loop():
            return
        if not run.is_over:  # a start that has failed is over, and still closes the store
            await self.drain()
            run.stop.set()
        await asyncio.wait([run.main])

    def hook_signals(self) -> None:
        """Drain at SIGTERM and SIGINT, then call the previous handlers.

        The hub calls this at its start; a server that installs its own handlers later must call it again.
        """
        if self._signals is not None:
            self._signals.install()

    def _begin_again(self, run: Run) -> None:
        """End `run` and begin another one: its memory may hold entries that the store has lost."""
        if self._run is run and self._restarting is None and run.draining is None:
            logger.warning("the store was replaced, so this run of the hub ends, and another one begins")
            self._restarting = asyncio.get_running_loop().create_task(self._restart(run))

    async def _restart(self, run: Run) -> None:
        try:
            if self._run is run:  # otherwise another event loop has the hub
                await self.drain()
            run.stop.set()
            await asyncio.wait([run.main])
            while True:
                try:
                    await self.start()
                    break
                except Exception as error:
                    logger.warning("the hub did not start again; it tries again: %r", error)
                    await asyncio.sleep(RESTART_S)
        finally:
            if self._restarting is asyncio.current_task():  # else the call that has cancelled this one ends the run
                run.stop.set()
                self._restarting = None

    async def _serve(self, run: Run) -> None:
        """Run the hub on this event loop until `run.stop` is set."""
        runtime: Runtime | None = None
        try:
            if run.takes_over:
                await self._close_store()
            await self._open_store()
            if self._bus is not None:
                await self._bus.open(getattr(self.store, "notices_name", ""))
            if self._run is not run:
                raise asyncio.CancelledError  # another event loop has the hub since
            async with asyncio.TaskGroup() as group:
                runtime = self._runtime = Runtime(
                    self.store, self.limits, self.clock, self.node, group, self._capacity, self._bus, self.questions
                )
                await self._serve_open(run, runtime, group)
        except BaseException as error:
            if run.ready.done():
                if not isinstance(error, Exception):
                    raise
                logger.error("a bug has ended this run of the hub; restart the process, and report it", exc_info=error)
                if self._run is run and not self.viewing.is_draining and runtime is not None:
                    self._send_away(runtime)
                return
            cause = failures_in(error)[0]
            cancelled = Draining("the start of the hub was cancelled; start it again")  # as when another loop has it
            run.ready.set_exception(cause if isinstance(cause, Exception) else cancelled)
            run.ready.exception()  # marked as retrieved: each caller may have been cancelled
            if not isinstance(cause, TenutoError):
                raise
        finally:
            run.is_over = True
            if runtime is not None:
                runtime.deadlines.close()
            if self._run is run:  # otherwise the store is that of another run, which has taken it over
                self._runtime = None
                if self._signals is not None:
                    self._signals.remove()
                try:
                    if self._bus is not None:
                        await self._bus.close()
                finally:
                    await self._close_store()

    async def _serve_open(self, run: Run, runtime: Runtime, group: asyncio.TaskGroup) -> None:
        """Recover and serve, after the store was opened and the services were built."""
        recover = partial(self._recover, runtime)
        runtime.nodes.replaced = partial(self._begin_again, run)
        await runtime.nodes.renew()  # before this node writes
        workers: list[asyncio.Task[None]] = []
        shared_turns = SharedTurns(
            runtime.shared_store, runtime.nodes, runtime.scheduler, runtime.channels, runtime.fresh, runtime.follower
        )
        if (members := runtime.presence.shared) is not None:  # the store is shared
            (self._bus or runtime.shared_store).listen(runtime.follower.receive)
            keeping = runtime.nodes.keep(recover, runtime.tasks.start_background)
            workers += map(
                group.create_task, (runtime.follower.notifier.run(), keeping, members.publish(), members.follow())
            )
            await shared_turns.read()  # before a message is refused an agent of another node
        for one in self._keyed:
            await one.share_key(self.store)
        await runtime.scheduler.workers.recall(run.known_patterns)
        run.known_patterns = runtime.scheduler.workers.patterns
        committing = group.create_task(runtime.committer.run())
        for hook in list(self._hooks.values()):
            await register(self.store, hook, {})  # before this node stores entries
        if self.store.is_exclusive:
            await undo_imports(self.store)
            await recover(every_channel)
        for callback in self._start_callbacks:
            callback()
        for hook in self._hooks.values():
            runtime.begin_hook(hook)
        run.has_begun = True
        workers += map(group.create_task, (keep_house(self, runtime), runtime.follower.run()))
        if not self.store.is_exclusive:
            # a callback may have blocked the event loop for longer than the lease; `keep` repeats a renewal that fails
            with suppress(StoreUnavailable):
                await shared_turns.begin()
            workers += map(group.create_task, (shared_turns.run(), self.viewing.watch(runtime)))
        self.hook_signals()
        run.ready.set_result(None)
        await run.stop.wait()
        runtime.hooks.clear()  # they get pending entries later: a call that began now could not be cancelled
        runtime.follower.stop()
        committing.cancel()  # once: it still stores the accepted requests
        runtime.tasks.cancel()
        while workers:
            for task in workers:
                task.cancel()
            # a driver that fails at the moment of a cancellation may raise its error in place of it (Python 3.11)
            workers = list((await asyncio.wait(workers, timeout=SHUTDOWN_S))[1])

    async def _drain(self, runtime: Runtime, drain_s: float) -> None:
        """Drain as `drain` says. It raises no error of the store or the app, and each of its waits has a bound."""
        runtime.scheduler.close()
        runtime.nodes.is_leaving = True
        self._send_away(runtime)
        tasks, writers = runtime.tasks, runtime.writers
        try:
            async with asyncio.timeout(drain_s):
                while tasks.jobs or writers:
                    tasks.quieter.clear()
                    await tasks.quieter.wait()
        except TimeoutError:
            logger.info("%d answers are left unfinished", len(writers))
        jobs = [job for job in tasks.jobs if not job.done()]
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs, timeout=SHUTDOWN_S)
        endings: list[Coroutine[Any, Any, None]] = []  # all at once, so that the wait has one bound
        if self._restarting is None:  # a store that was replaced takes no text of this run
            # of writers in tasks of the app
            endings += [_store_rest(message_id, writer) for (_, message_id), writer in writers.items()]
        if not self.store.is_exclusive:  # other nodes may have the hooks, before the lease of this one ends
            hooks, runtime.hooks = runtime.hooks, []
            endings += [hook.stop() for hook in hooks]
        await asyncio.gather(*endings)
        await runtime.nodes.end()
        if self._restarting is None:
            self.viewing.end_drain()
        tasks.drained.set()

    def _send_away(self, runtime: Runtime) -> None:
        """Disconnect all viewers; they reconnect to the next run of the hub, or to another hub."""
        self.viewing.drain()
        for callback in list(self._drain_callbacks):
            with logs_errors("a callback of `on_drain` failed"):
                callback()
        runtime.wake_feeds()

    async def _open_store(self) -> None:
        """Open the store, after closing a finished hub on the same file. Raises as `Store.open`."""
        path = _path_of(self.store)
        before = _owners.get(path) if path is not None else None
        if before is not None and before.store is not self.store:
            await before._close_if_finished()
        await self.store.open()
        if path is not None:
            _owners[path] = self

    async def _close_store(self) -> None:
        await self.store.close()
        path = _path_of(self.store)
        if path is not None and (known := _owners.get(path)) is not None and known.store is self.store:
            del _owners[path]

    async def _close_if_finished(self) -> None:
        """Close the store if the event loop of this hub is closed, or if a later cell of a notebook may take it."""
        loop = self._run.loop if self._run is not None else None
        if loop is not None and loop.is_closed():
            logger.info("a hub whose event loop is closed had the store open; it is closed for another hub")
            await self._close_store()
        elif loop is not None and self._is_out_of_reach():
            if loop is asyncio.get_running_loop():
                await self.close()
            elif not await self._release_loop(loop):
                return
            logger.info("a hub of an earlier cell had the store open; it was closed for another hub")

    def _is_out_of_reach(self) -> bool:
        """Return whether a later cell of a notebook may take the store: no name leads to this hub, and it is idle."""
        runtime = self._runtime
        if runtime is None or self._is_named():  # without a runtime it is starting or ending, so not idle
            return False
        is_watched = any(channel.watchers for channel in list(runtime.channels.values()))  # another thread may ask
        return not (is_watched or runtime.tasks.jobs or runtime.writers)
