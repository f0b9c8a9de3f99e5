"""Blocking calls for threads: an event loop in its own thread, and the blocking version of both message writers.

Layer: portal, directly above `core`. `Hub.sync`, `SyncClient` and the message writers use it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from tenuto.core.errors import LocalError
from tenuto.core.model import Json, Part
from tenuto.core.outgoing import Outgoing, Owner, end_for, live

T = TypeVar("T")


P = ParamSpec("P")


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Return the blocking version of `method`, for a class with the object behind it as `_target`, and with `_run`."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **fields: P.kwargs) -> T:
        result: T = self._run(getattr(self._target, method.__name__)(*args, **fields))
        return result

    return call


class NoResponse(Exception):
    """A call did not end in time, and was cancelled."""


class Portal:
    """An event loop in a daemon thread, from `start` to `stop`. It may start again."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._name = name  # name of the thread
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> asyncio.AbstractEventLoop:
        """Return the loop; the first call starts it."""
        with self._lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self.loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self.loop

    def stop(self, close: Callable[[], Coroutine[Any, Any, None]], timeout_s: float) -> None:
        """Run `close` on the loop, then end the loop and its thread. Each step takes at most `timeout_s`."""
        with self._lock:
            loop, self.loop = self.loop, None
        if loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(close(), loop).result(timeout_s)
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(timeout_s)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(timeout_s)
            loop.close()


def run_on(
    loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T], *, remedy: str, timeout_s: float | None = None
) -> T:
    """Run `call` on `loop` and block until it ends. If this thread is interrupted meanwhile, the call is cancelled.

    Raises LocalError, with `remedy` in its text, when called in the thread that runs `loop`, and NoResponse after
    `timeout_s`.
    """
    if loop is _running_loop():
        call.close()
        raise LocalError(f"a blocking call would stop the event loop that runs in this thread; {remedy}")
    future = asyncio.run_coroutine_threadsafe(call, loop)
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.cancel():
            raise NoResponse from None
        raise  # the call itself raised it
    except BaseException:
        future.cancel()
        raise


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def ended_as(
    error: BaseException, cancelled_as: tuple[str, str | None], reason_of: Callable[[BaseException], str | None]
) -> tuple[str, str | None]:
    """Return the status and reason of a message whose block `error` ended; `cancelled_as` are those if it is cancelled.

    A message that is left for another attempt is `interrupted`, whatever the cancelled block has raised.
    """
    if cancelled_as[0] == "interrupted" or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return cancelled_as
    status, reason = end_for(error)
    return status, reason or reason_of(error)


def retrieve_exception(ending: asyncio.Future[Any]) -> None:
    """Mark the exception of `ending` as retrieved, so that asyncio does not log it if its waiter gave up."""
    if not ending.cancelled():
        ending.exception()


class AsyncWriter(Protocol):
    """The methods that `MessageWriter` and `RemoteWriter` have in common."""

    channel: str

    @property
    def id(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def meta(self) -> dict[str, Json]: ...

    def append(self, text: str, *, part: int | None = None) -> Coroutine[Any, Any, None]: ...

    async def part(self, part: Part, *, index: int | None = None) -> int: ...

    async def update(self, *, meta: dict[str, Json]) -> None: ...

    def attempt(self) -> Attempt: ...

    async def flush(self) -> None: ...

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Try:
    """A block for one try. What begins in it, also in tasks of its own, finds it in `current_try`."""

    waits = 0  # number of questions and sleeps of a turn that are open in it
    outgoing: Outgoing | None = None  # the message that it writes, with what owns its parts
    owner: Owner | None = None
    failed = False
    outer: Try | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether the block, or one around it, has raised."""
        return self.failed or (self.outer is not None and self.outer.has_failed)

    def wait(self, change: int) -> None:
        """Count a question or sleep that begins (1) or ends (-1), also in the blocks around this one."""
        self.waits += change
        if self.outer is not None:
            self.outer.wait(change)

    def __enter__(self) -> None:
        outer = one = current_try.get()
        while one is not None:
            if one is self:
                raise LocalError("this attempt is open already; begin another one inside of it")
            one = one.outer
        self.outer, self.failed = outer, False
        current_try.set(self)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        current_try.set(self.outer)
        self.failed = isinstance(error, Exception | asyncio.CancelledError)


current_try: ContextVar[Try | None] = ContextVar("tenuto_try", default=None)


def owner_in(outgoing: Outgoing) -> Owner | None:
    """Return the owner of parts of the message that are opened here: the innermost attempt to write it, or None.

    Raises LocalError in a task that has outlived such an attempt, if that has failed.
    """
    one, owner = current_try.get(), None
    while one is not None:
        if one.outgoing is outgoing:
            if one.failed:
                raise LocalError(
                    f"this task began in an attempt at message {outgoing.id!r} that has failed, so it writes no more; "
                    "wait for the task in the block of the attempt, or begin it before"
                )
            owner = owner or live(one.owner)
        one = one.outer
    return owner


class Attempt:
    """One try to write something: if its block raises, the next part supersedes those that it opened."""

    def __init__(self, outgoing: Outgoing, is_stopped: Callable[[], bool]) -> None:
        self._outgoing = outgoing
        self._is_stopped = is_stopped  # then a cancellation is no failure
        self._owner = Owner()
        self.inside = Try()  # the block in which the attempt is written

    def supersede(self) -> None:
        """Let the next part supersede those that the block has opened so far."""
        self._outgoing.fail_attempt(self._owner)

    def take_left(self) -> dict[int, Part]:
        """Return what an earlier writer left to be continued (`Outgoing.take_left`)."""
        return self._outgoing.take_left(self._owner)

    def count(self, before: int | None = None) -> int:
        """Return the number of parts of the message that count (`Outgoing.count`)."""
        return self._outgoing.count(before)

    def reopen_left(self, after: int, until: int | None) -> dict[int, Part]:
        """Return what an earlier writer left of a response (`Outgoing.reopen_left`)."""
        return self._outgoing.reopen_left(after, until, self._owner)

    async def __aenter__(self) -> Self:
        self._owner = self._outgoing.begin_attempt(owner_in(self._outgoing))
        self.inside.outgoing, self.inside.owner = self._outgoing, self._owner
        self.inside.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside.__exit__(kind, error, trace)
        if isinstance(error, Exception) or (isinstance(error, asyncio.CancelledError) and not self._is_stopped()):
            self.supersede()
        self._outgoing.end_attempt(self._owner)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def writing(run: Run, open_writer: Callable[[], Coroutine[Any, Any, AsyncWriter]]) -> Iterator[SyncWriter]:
    """Return the blocking version of the writer that `open_writer` opens. The end of the block ends its message."""
    writer = run(open_writer())
    try:
        yield SyncWriter(run, writer)
    except BaseException as error:
        # Exceptions such as Ctrl-C, which end a thread, correspond to the cancellation of a task, so they cancel the
        # message.
        cause = error if isinstance(error, Exception) else asyncio.CancelledError()
        run(writer.__aexit__(type(cause), cause, error.__traceback__))
        raise
    run(writer.__aexit__(None, None, None))


class SyncWriter:
    """The blocking version of `MessageWriter` and `RemoteWriter`."""

    def __init__(self, run: Run, writer: AsyncWriter) -> None:
        self._run = run
        self._target = writer
        self.channel = writer.channel
        self.id = writer.id

    @property
    def length(self) -> int:
        """Return the number of accepted code points of the text part that `append` goes to; 0 without one."""
        return self._target.length

    @property
    def meta(self) -> dict[str, Json]:
        """Return the message's meta after all accepted updates."""
        return self._target.meta

    append = blocking(AsyncWriter.append)
    part = blocking(AsyncWriter.part)
    update = blocking(AsyncWriter.update)
    flush = blocking(AsyncWriter.flush)
    finish = blocking(AsyncWriter.finish)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Write an attempt, as the writer's `attempt` does: `with message.attempt(): …`."""
        attempt = self._target.attempt()
        self._run(attempt.__aenter__())
        try:
            with attempt.inside:  # `__aenter__` ran in another task
                yield
        except BaseException as error:
            self._run(attempt.__aexit__(type(error), error, error.__traceback__))
            raise
        self._run(attempt.__aexit__(None, None, None))
