"""What both message writers have in common, and blocking calls for threads: an event loop in its own thread.

Layer: portal, directly above `core`. `Hub.sync`, `SyncClient` and the message writers use it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Literal, ParamSpec, Self, TypeVar

from tenuto.core.decide import STREAMED_BYTES
from tenuto.core.errors import LocalError, TenutoError, failures_in
from tenuto.core.model import Json, Message, Part
from tenuto.core.outgoing import Ended, Outgoing, Owner, end_for, live

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
        self._lock = threading.Lock()  # held while `loop` and `_thread` change

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
        with self._lock:  # another call of `start` has a loop and a thread of its own
            loop, thread, self.loop, self._thread = self.loop, self._thread, None, None
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(close(), loop).result(timeout_s)
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(timeout_s)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout_s)
            loop.close()


def run_on(
    loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T], *, remedy: str, timeout_s: float | None = None
) -> T:
    """Run `call` on `loop` and block until it ends. If this thread is interrupted meanwhile, the call is cancelled.

    Raises LocalError, with `remedy` in its text, when called in the thread that runs `loop`, and NoResponse after
    `timeout_s`.
    """
    with suppress(RuntimeError):  # of a thread that runs no loop
        if asyncio.get_running_loop() is loop:
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


def ended_as(
    error: BaseException, cancelled_as: tuple[str, str | None], reason_of: Callable[[BaseException], str | None]
) -> tuple[str, str | None]:
    """Return the status and reason of a message whose block `error` ended; `cancelled_as` are those if it is cancelled.

    A message that is left for another attempt is `interrupted`, whatever the cancelled block has raised.
    """
    if cancelled_as[0] == "interrupted" or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return cancelled_as
    failure = failures_in(error)[0]
    status, reason = end_for(failure)
    return status, reason or reason_of(failure)


def retrieve_exception(ending: asyncio.Future[Any]) -> None:
    """Mark the exception of `ending` as retrieved, so that asyncio does not log it if its waiter gave up."""
    if not ending.cancelled():
        ending.exception()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that waits for the handler, which writes the output with `message.part({...}, index=call.part)`."""

    call: str
    name: str
    input: str
    part: int  # index of the tool part in the message

    @property
    def arguments(self) -> Json:
        """Return the input, decoded from JSON; an empty input is an empty object.

        Raises ValueError if it is invalid.
        """
        return json.loads(self.input) if self.input.strip() else {}


@dataclass(frozen=True, slots=True)
class Piped:
    """The summary of a stream. `tool_calls` are the calls that wait for their output."""

    text: str
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)
    model: str | None = None


Piping = Coroutine[Any, Any, Piped]
OnBreak = Literal["restart", "continue", "prefix", "fail"]

_W = TypeVar("_W", bound="Writer")
_Method = Callable[Concatenate[_W, P], Coroutine[Any, Any, T]]


def needs_await(call: str) -> Callable[[_Method[_W, P, T]], _Method[_W, P, T]]:
    """Return a decorator for an async method of a writer, whose block then fails if a `call` was not awaited."""

    def decorate(method: _Method[_W, P, T]) -> _Method[_W, P, T]:
        @wraps(method)
        def begin(self: _W, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
            return self.keep(call, method(self, *args, **kwargs))

        return begin

    return decorate


class Writer(ABC):
    """Writes one streaming message, in this process or over the network; used by one task at a time."""

    made_by: ClassVar[str]  # the object whose method `message` returns this writer

    def __init__(self, channel: str, outgoing: Outgoing) -> None:
        self.channel = channel
        self.is_begun = False  # True: the beginning of the message is stored
        self.is_left = False  # True: the hub drains, and a block that was cut has left the message open
        self.is_answer = False  # True: a turn has begun it, whose later attempts find what it keeps of its streams
        self.is_continued = False  # True: they also find the attempts in which the process died
        # status and reason of the message if its task is cancelled
        self.cancelled_as: tuple[str, str | None] = ("cancelled", None)
        # returns another id if the id of the message is taken; None: the writer raises the error
        self.spare_id: Callable[[], str] | None = None
        # called around the wait after a failed try of `pipe`: with True, then with False
        self.on_retry: Callable[[bool], None] = lambda waits: None
        # called with True when the model's response goes on without its reader, and with False when no reader has it
        self.on_attach: Callable[[bool], None] = lambda is_attached: None
        # returns the time until which the turn has waited, or one of its steps ran
        self.rested_s: Callable[[], float] = lambda: 0.0
        # returns whether a cancellation is that of the turn, not the handler's own
        self.is_stopped: Callable[[], bool] = lambda: False
        # returns the key of the turn's step that runs here; an empty text if none does
        self.open_step: Callable[[], str] = lambda: ""
        # of the streams that it has piped: they show which of two open answers the output of a tool belongs to
        self.tool_calls: list[ToolCall] = []
        self._outgoing = outgoing
        self._appends = 0  # number of calls of `append` that were not awaited
        self._kept: list[tuple[str, Coroutine[Any, Any, Any]]] = []  # other calls, some of which have not begun

    @abstractmethod
    async def open(self) -> Self:
        """Store the beginning of the message, as entering the block does."""

    @abstractmethod
    async def flush(self) -> None:
        """Wait until all accepted content is stored. Raises as `append`."""

    @abstractmethod
    async def _accepted(self) -> None:
        """Send the requests that can be sent, and wait while the writer is too far ahead of the store."""

    @abstractmethod
    async def _stored_whole(self) -> None:
        """Send the end of the message, and wait until it is stored."""

    async def __aenter__(self) -> Self:
        self._begun_as = self.cancelled_as
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self.is_stopped() and self.cancelled_as not in (self._begun_as, ("interrupted", None)):
            error = asyncio.CancelledError()  # the handler has caught it
        misuse = self._not_awaited() if error is None else None
        try:
            await self._end(error, misuse)
        finally:
            if not self.is_left:  # else the end of its turn ends it, if that comes before the next start
                self._outgoing.close()
            await self._finish_after_refusal()
            self._close()
        if misuse is not None:
            raise misuse
        if kind is None:
            self._outgoing.raise_error()

    @abstractmethod
    async def _end(self, error: BaseException | None, misuse: LocalError | None) -> None:
        """End the message whole, or as the block's error or its misuse says."""

    @abstractmethod
    async def _finish_after_refusal(self) -> None:
        """If a request was refused while the message streams, finish the message as failed, with the text so far."""

    @abstractmethod
    def _close(self) -> None:
        """Note that this has ended."""

    def append(self, text: str, *, part: int | None = None) -> Coroutine[Any, Any, None]:
        """Add `text` to the message's last part, or to part `part`; behind a part that is no text it opens a text part.

        Returns when the text is accepted: at once, unless the writer is ahead of the store by more than
        `Limits.writer_bytes`. Raises the refusal of an earlier append: Finished (a client stopped the message), Fenced,
        Deleted, TooLarge; LocalError after the end. While nothing can be stored it raises StoreUnavailable after ten
        seconds, over the network Unreachable after the client's `timeout_s`; accepted content is kept and sent later.
        Half a surrogate pair at the end of `text` is held back and joined to the next piece. The block fails if a call
        was not awaited: its text would be missing.
        """
        self._appends += 1
        return self._append(text, part)

    async def _append(self, text: str, part: int | None) -> None:
        self._appends -= 1  # this call is awaited
        self._outgoing.accept_text(text, part, owner_in(self._outgoing))
        await self._accepted()

    @needs_await("part(part)")
    async def part(self, part: Part, *, index: int | None = None) -> int:
        """Open a part (without `index`) or replace one. Return its index. It is accepted as `append` is."""
        position = self._outgoing.accept_part(part, index, owner_in(self._outgoing))
        await self._accepted()
        return position

    def pipe(
        self,
        stream: object,
        *,
        source: str | None = None,
        text_field: str | None = None,
        retries: int | None = None,
        retry_s: float | None = None,
        stall_s: float | None = None,
        on_break: OnBreak = "restart",
        attach: object = None,
    ) -> Piping:
        """Write a model's stream into this message, as `tenuto.sources.pipe` does. The block fails without an await."""

        async def piping() -> Piped:
            # the package is in a layer above, and imported on use: clients that only watch need no sources
            piped: Piped = await import_module("tenuto.sources").pipe(
                self,
                stream,
                source=source,
                text_field=text_field,
                retries=retries,
                retry_s=retry_s,
                stall_s=stall_s,
                on_break=on_break,
                attach=attach,
            )
            self.tool_calls += piped.tool_calls
            return piped

        return self.keep("pipe(stream)", piping())

    @needs_await("update(meta=meta)")
    async def update(self, *, meta: dict[str, Json]) -> None:
        """Merge `meta` into the message's meta; None removes a key. It is accepted as `append` is."""
        self._outgoing.accept_update(meta)
        await self._accepted()

    def attempt(self) -> Attempt:
        """Return a block for one try: `async with message.attempt(): …`. It writes into parts of its own.

        If the block raises, the next part supersedes those that it opened: they become one part of type `attempt`,
        which counts no longer, and until then they stay in view. Parts of other tasks stay. If the message ends as
        `failed` or `cancelled` first, all stay. Raises LocalError at the beginning unless the message is open; so does
        what a task of a failed block writes later.
        """
        return Attempt(self, is_listed=self.is_continued)

    async def check(self) -> None:
        """Store all, and learn whether a client has stopped the message meanwhile. Raises as `append`."""
        self._outgoing.accept_check()
        await self._accepted()
        await self.flush()

    @needs_await("finish()")
    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None:
        """End the message (`complete`, `cancelled` or `failed`) and wait until it is stored whole."""
        must_be_whole = status == "complete" and not self._outgoing.is_over
        if must_be_whole and (misuse := self._not_awaited()) is not None:
            raise misuse
        self._outgoing.accept_end(status, reason=reason, meta=meta)
        await self._stored_whole()

    @property
    def id(self) -> str:
        """Return the id of the message."""
        return self._outgoing.id

    @property
    def generation(self) -> int:
        """Return the number of this writer among the writers of the message."""
        return self._outgoing.generation

    @property
    def error(self) -> TenutoError | None:
        """Return the refusal of a request, which the next call raises."""
        return self._outgoing.error

    @property
    def meta(self) -> dict[str, Json]:
        """Return the message's meta after all accepted updates."""
        return self._outgoing.meta

    @property
    def is_over(self) -> bool:
        """Return whether the end of the message was accepted or a request was refused."""
        return self._outgoing.is_over

    @property
    def length(self) -> int:
        """Return the accepted code points of the message's text; that of superseded attempts does not count."""
        return self._outgoing.length

    def begin_again(self, meta: dict[str, Json], *, supersedes: bool, steps: Container[Json] = ()) -> None:
        """Continue a message that was taken over, as `Outgoing.begin_again` says; a writer stores `meta` once open."""
        self._outgoing.begin_again(meta, supersedes=supersedes, steps=steps)

    def begin_ended(self, message: Message) -> None:
        """Be the writer of `message`, which is complete: what is written has no effect (`Ended`)."""
        self._outgoing = Ended(message, self._outgoing.limits)
        self.is_begun = True

    @property
    def had_ended(self) -> bool:
        """Return whether the message was complete before this writer began."""
        return isinstance(self._outgoing, Ended)

    def close_text(self) -> None:
        """Let further text stand behind the last part (`Outgoing.close_text`)."""
        self._outgoing.close_text()

    if not TYPE_CHECKING:  # hidden from type checkers, which report missing methods by themselves

        def __enter__(self):
            call = f"{self.made_by}.message"
            raise LocalError(
                f"{call} needs `async with {call}(...) as message`; without async use "
                "`with hub.sync.message(...) as message`, or SyncClient"
            )

        def __exit__(self, *error):
            raise AssertionError("the block was never entered")

    def keep(self, call: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return `coroutine`, whose `call` is reported at the end of the block if it was not awaited."""
        self._kept.append((call, coroutine))
        if len(self._kept).bit_count() == 1:  # at a power of two: many calls at once would each look at all others
            self._kept = [one for one in self._kept if _is_new(one[1])]
        return coroutine

    def _not_awaited(self) -> LocalError | None:
        """Return an error if a call that writes had no effect, because it was not awaited."""
        call, missing = "append(text)", self._appends
        if missing <= 0:
            # one that is closed is not missing: its task was cancelled before it began
            calls = [call for call, coroutine in self._kept if _is_new(coroutine)]
            if not calls:
                return None
            call, missing = calls[0], calls.count(calls[0])
        self._appends, self._kept = 0, []
        times = "once" if missing == 1 else f"{missing} times"
        name = call.partition("(")[0]
        effect = "its text is missing" if name in ("append", "pipe") else "it had no effect"
        return LocalError(
            f"the {name} to message {self.id!r} was called {times} without await, so {effect}; "
            f"write `await message.{call}`"
        )


def _is_new(coroutine: Any) -> bool:
    """Return whether the coroutine has neither begun nor been closed."""
    return coroutine.cr_frame is not None and not coroutine.cr_running and not coroutine.cr_suspended


class Try:
    """A block for one try. What begins in it, also in tasks of its own, finds it in `current_try`."""

    waits = 0  # number of questions and sleeps of a turn that are open in it
    outgoing: Outgoing | None = None  # the message that it writes, with what owns its parts
    owner: Owner | None = None
    failed = False  # True: the block has raised
    outer: Try | None = None  # the block around this one

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


def has_failed(writer: Writer) -> bool:
    """Return whether parts of failed attempts stay in view until the next part opens."""
    return writer._outgoing.has_failed()


def record_bytes(writer: Writer) -> int:
    """Return how large the records of streams that have ended may be, so that the rest of `STREAMED` has room.

    It is 0 behind parts that are left: a later attempt could not tell whether they count.
    """
    return 0 if writer._outgoing.has_left() else STREAMED_BYTES * 3 // 4


class Attempt:
    """One try to write something: if its block raises, the next part supersedes those that it opened.

    With `outgoing` and `owner`, `pipe` takes up what an earlier writer left.
    """

    def __init__(self, writer: Writer, *, is_listed: bool = False) -> None:
        self.outgoing = writer._outgoing
        self._writer = writer
        self._is_listed = is_listed  # an attempt of the next process supersedes its parts, unless it has ended
        self.owner = Owner()
        self.inside = Try()  # the block in which the attempt is written

    def supersede(self) -> None:
        """Let the next part supersede those that the block has opened so far."""
        self.outgoing.fail_attempt(self.owner)

    async def __aenter__(self) -> Self:
        self.owner = self.outgoing.begin_attempt(owner_in(self.outgoing), is_listed=self._is_listed)
        self.inside.outgoing, self.inside.owner = self.outgoing, self.owner
        self.inside.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside.__exit__(kind, error, trace)
        if isinstance(error, Exception) or (
            isinstance(error, asyncio.CancelledError) and not self._writer.is_stopped()
        ):
            self.supersede()  # a turn that was stopped leaves what it wrote in view
        self.outgoing.end_attempt(self.owner, is_cut=error is not None)
        if error is None and self._is_listed:
            await self._writer._accepted()  # sends that the attempt is over


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def writing(run: Run, open_writer: Callable[[], Coroutine[Any, Any, Writer]]) -> Iterator[SyncWriter]:
    """Return the blocking version of the writer that `open_writer` opens. The end of the block ends its message."""
    writer = run(open_writer())
    try:
        yield SyncWriter(run, writer)
    except BaseException as error:
        # An exception such as Ctrl-C, which ends a thread, is as the cancellation of a task: it cancels the message.
        cause = error if isinstance(error, Exception) else asyncio.CancelledError()
        run(writer.__aexit__(type(cause), cause, error.__traceback__))
        raise
    run(writer.__aexit__(None, None, None))


class SyncWriter:
    """The blocking version of `MessageWriter` and `RemoteWriter`."""

    def __init__(self, run: Run, writer: Writer) -> None:
        self._run = run
        self._target = writer
        self.channel = writer.channel
        self.id = writer.id

    @property
    def length(self) -> int:
        """Return the accepted code points of the message's text; that of superseded attempts does not count."""
        return self._target.length

    @property
    def meta(self) -> dict[str, Json]:
        """Return the message's meta after all accepted updates."""
        return self._target.meta

    append = blocking(Writer.append)
    part = blocking(Writer.part)
    update = blocking(Writer.update)
    flush = blocking(Writer.flush)
    finish = blocking(Writer.finish)

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
