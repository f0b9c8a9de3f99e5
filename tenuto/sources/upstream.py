"""Reads a stream event by event, async or blocking, and closes it, if needed before its end.

Layer: sources.

Blocking iterators run in a thread of their own, one item ahead at most. A stream that is no longer needed is closed at
once, and an SDK gets little time for that: the provider must see the end within a second. A blocking one ends with the
read in which its thread is.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from tenuto.core.errors import LocalError

logger = logging.getLogger("tenuto.agents")

CLOSE_S = 0.5  # time limit for each step of closing a stream early

_END = object()


class Upstream:
    """The argument of `pipe`: a stream, an awaitable that returns one, or a context manager around one."""

    def __init__(self, given: object) -> None:
        self.stream = given
        self._exit: Callable[..., Awaitable[object]] | None = None  # of the SDK's context manager that was entered
        self._iterator: AsyncIterator[object] | None = None

    async def open(self) -> None:
        """Await the stream and enter its context manager as needed. Raises LocalError, and the SDK's errors."""
        if inspect.isawaitable(self.stream):
            self.stream = await self.stream
        iterate = getattr(type(self.stream), "__iter__", None)
        is_model = getattr(iterate, "__module__", None) == "pydantic.main"  # it yields its fields
        if (isinstance(self.stream, Mapping) or is_model) and not hasattr(self.stream, "__aiter__"):
            what = type(self.stream).__name__
            raise LocalError(f"stream must be an iterator, got a whole {what}; ask the model with stream=True")
        if hasattr(self.stream, "__aiter__") or hasattr(self.stream, "__iter__"):
            return
        manager: Any = self.stream
        if hasattr(manager, "__aenter__"):
            self.stream, self._exit = await manager.__aenter__(), manager.__aexit__
        elif hasattr(manager, "__enter__"):
            self.stream = await asyncio.to_thread(manager.__enter__)
            self._exit = partial(asyncio.to_thread, manager.__exit__)

    def events(self, events: object) -> AsyncIterator[object]:
        """Return `events`, which is the stream or was made from it, as an async iterator."""
        if hasattr(events, "__aiter__"):
            self._iterator = aiter(events)
        elif hasattr(events, "__iter__"):
            self._iterator = Threaded(events)
        else:
            what = type(events).__name__
            if hasattr(events, "body_iterator"):
                what += "; pass the generator that the response wraps"
            elif inspect.isroutine(events):
                what += f"; call it: pipe({events.__name__}())"
            raise LocalError(f"stream must be an iterator, an awaitable or a context manager of one, got {what}")
        return self._iterator

    async def finish(self) -> None:
        """Close a stream that has ended by itself. Raises the SDK's errors."""
        if self._exit is not None:
            leave, self._exit = self._exit, None
            await leave(None, None, None)
        await self.close(None, None)

    async def close(self, error: BaseException | None, stop: Callable[[object], Awaitable[None]] | None) -> None:
        """Close the stream and its context manager at once, after `stop`, even if the caller is cancelled again.

        This runs in the task that opened the stream: the SDKs' managers hold scopes that belong to a task.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        if stop is not None:
            await _quietly(stop(self.stream))
        for thing in (self._iterator, self.stream):
            close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
            if callable(close) and not inspect.isgenerator(thing):  # a generator is closed by its own thread
                await _quietly(called(close))
        if self._exit is not None:
            leave, self._exit = self._exit, None
            how = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
            await _quietly(leave(*how))
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError


class Threaded:
    """Turns a blocking iterator into an async one.

    Its thread produces one item while the previous one is being written.
    """

    def __init__(self, items: Any) -> None:  # `Any`: an iterable of any items
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Queue[tuple[object, BaseException | None]] = asyncio.Queue()  # items; `_room` limits them
        self._room = threading.Semaphore(1)
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> Threaded:
        return self

    async def __anext__(self) -> object:
        if self._thread is None:
            context = contextvars.copy_context()
            # A daemon thread: a provider that never responds must not prevent the process from ending.
            self._thread = threading.Thread(target=context.run, args=(self._run,), name="tenuto-pipe", daemon=True)
            self._thread.start()
        item, error = await self._made.get()
        self._room.release()
        if error is not None:
            raise error
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Stop the thread, which closes the iterator after the item that it reads."""
        self._is_closed = True
        self._room.release()

    def _run(self) -> None:
        iterator: Iterator[object] | None = None
        error: BaseException | None = None
        try:
            iterator = iter(self._items)
            while True:
                self._room.acquire()
                if self._is_closed:
                    break
                self._put(next(iterator), None)
        except StopIteration:
            pass
        except BaseException as met:
            error = met
        finally:
            # Closed in this thread, because another thread cannot close a generator while it runs.
            for thing in (iterator, self._items):
                close = getattr(thing, "close", None)
                if callable(close):
                    with suppress(Exception):
                        close()
            self._put(_END, error)

    def _put(self, item: object, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the event loop is closed, so no task reads the items any more
            self._loop.call_soon_threadsafe(self._made.put_nowait, (item, error))


async def called(function: Callable[[], object]) -> object:
    """Return the result of `function`, which is called in a thread unless it is async, because it may block."""
    if inspect.iscoroutinefunction(function) or inspect.isbuiltin(function):  # built in: an `aclose`
        result = function()
    else:
        result = await asyncio.to_thread(function)
    return await result if inspect.isawaitable(result) else result


async def _quietly(closing: Awaitable[object]) -> None:
    """Await `closing` for a short time, and ignore its errors, which do not change how the stream ended."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await closing
    except (Exception, asyncio.CancelledError) as error:
        logger.debug("a stream did not close well: %r", type(error))
