"""Sinks: one connection's way out, one message at a time, never a queue.

Layer: transports.

An owner (an event stream, a socket) writes a message when the sender is not busy, and is told
when it is free again. What could not be sent meanwhile is not kept here: the owner takes what it is owed when it is
told, joined. There are two ways of sending, and owners cannot tell them apart:

- `TaskSender`, for anybody's app: an ordinary task awaits `send`, since middleware may need a current task.
- `DirectSender`, under our own `serve`: the coroutine `send(message)` is driven by hand, and only when it blocks does a
  task finish it. That saves 2 µs a delivery and a task a viewer (measured on the prototype).

Safe to change: how a sender waits. Not safe: calling `send` while another call of it is blocked.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

from starlette.types import Message, Receive, Send

from holdfast.hub.feed import EncodedBatch
from holdfast.transports.chunks import Chunks, Frames, can_frame, can_write, cycle_of, socket_of

# A peer that takes nothing for so long will not come back to this connection. Browsers freeze hidden pages for
# minutes, and a frozen page costs us no more than its socket.
SEND_TIMEOUT_S = 300.0
# What is written last before the end (a farewell) gets so long; the server waits meanwhile. granian sends no close
# while it waits for a frame, so there it is what every socket's end takes.
LAST_WORDS_S = 0.5


class Owner(Protocol):
    """Whoever writes to a sender."""

    def freed(self) -> None:
        """A write that had blocked is through, or, on a `TaskSender`, any write."""

    def received(self, message: Message) -> bool:
        """Something came from the peer; False when there is nothing more to expect."""

    async def until_room(self) -> None:
        """Wait until more may be received."""


class Sender:
    """What both ways of sending have in common. The ASGI call waits in `carry` until either side has ended."""

    __slots__ = ("_cycle", "_owner", "_send", "error", "is_busy", "is_over")

    def __init__(self, send: Send, owner: Owner) -> None:
        self._send = send
        self._owner = owner
        self._cycle = cycle_of(send)
        self.is_busy = False  # then nothing may be written
        self.is_over = False  # then nothing will be written any more
        self.error: BaseException | None = None  # what the server, or middleware, raised at a write

    def write(self, message: Message) -> None:
        """Send `message`; the sender must be neither busy nor over, and may be busy afterwards."""
        raise NotImplementedError

    def write_batch(self, batch: EncodedBatch, chunks: Chunks) -> None:
        """Send a batch as Server-Sent Events, as `write` would."""
        self.write(batch.body)

    def write_frame(self, text: str, frames: Frames) -> None:
        """Send a WebSocket frame, as `write` would."""
        self.write({"type": "websocket.send", "text": text})

    def end(self, last: Message | None = None, *, patience_s: float = LAST_WORDS_S) -> None:
        """Let `carry` return once `last` is sent, or what is being sent; at the latest in about `patience_s` seconds.

        With `last` the sender must not be busy. A second call does nothing.
        """
        raise NotImplementedError

    async def carry(self, receive: Receive) -> None:
        """Hold the connection until the peer has left or `end` was called. Raises what sending raised."""
        raise NotImplementedError

    def _is_lost(self) -> bool:
        """Is the connection gone, without a word? uvicorn tells only the request that it has read last, so a stream
        with another request behind it would stay for ever."""
        return self._cycle is not None and bool(self._cycle.transport.is_closing())

    def _fail(self, error: Exception) -> None:
        """Sending failed. An OSError is how servers say that the peer has left; anything else is raised by `carry`.

        uvicorn says it otherwise where it closed a socket by itself, because the peer broke the protocol.
        """
        is_closed = isinstance(error, RuntimeError) and "after sending 'websocket.close'" in str(error)
        if not (is_closed or isinstance(error, OSError | TimeoutError)):
            self.error = error

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class TaskSender(Sender):
    """Sends from the ASGI call itself; a second task watches for what the peer sends."""

    __slots__ = ("_message", "_news", "_patience", "_patience_s")

    def __init__(self, send: Send, owner: Owner) -> None:
        super().__init__(send, owner)
        self._message: Message | None = None
        self._news: asyncio.Future[None] | None = None
        self._patience: asyncio.Timeout | None = None  # of the write that goes on now
        self._patience_s = SEND_TIMEOUT_S

    def write(self, message: Message) -> None:
        assert not self.is_busy
        if self._is_lost():
            self.end()
            return
        self.is_busy = True
        self._message = message
        self._tell()

    def end(self, last: Message | None = None, *, patience_s: float = LAST_WORDS_S) -> None:
        if self.is_over:
            return
        if last is not None:
            self.write(last)
        self.is_over = True
        self._patience_s = patience_s
        self._tell()
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + patience_s)

    async def carry(self, receive: Receive) -> None:
        watching = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            await self._send_all()
        finally:
            self.is_over = True
            watching.cancel()
            await asyncio.wait([watching])
        self._check()

    async def _send_all(self) -> None:
        while True:
            message = self._message
            if message is None:
                if self.is_over:
                    return
                self._news = asyncio.get_running_loop().create_future()
                await self._news
                continue
            self._message = None
            if not await self._is_sent(message):
                return
            self.is_busy = False
            if not self.is_over:
                self._owner.freed()

    async def _is_sent(self, message: Message) -> bool:
        """Send `message`; False if the connection is over."""
        try:
            async with asyncio.timeout(self._patience_s) as self._patience:
                await self._send(message)
        except Exception as error:
            self._fail(error)
            return False
        finally:
            self._patience = None
        return True

    async def _watch(self, receive: Receive) -> None:
        owner = self._owner
        try:
            while owner.received(await receive()):
                await owner.until_room()
        except Exception as error:
            self._fail(error)
        self.end()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class DirectSender(Sender):
    """Drives `send` by hand; the ASGI call itself watches for what the peer sends."""

    __slots__ = ("_call", "_finishing", "_is_cut", "_socket")

    def __init__(self, send: Send, owner: Owner) -> None:
        super().__init__(send, owner)
        self._send: Callable[[Message], Coroutine[Any, None, None]] = send  # type: ignore[assignment]  # uvicorn's is
        self._call: asyncio.Task[Any] | None = None  # the ASGI call, while it waits in `carry`
        self._finishing: asyncio.Task[None] | None = None
        self._is_cut = False  # `carry` returns, whatever is still blocked
        self._socket = socket_of(send)

    def write(self, message: Message) -> None:
        assert not self.is_busy
        if self._is_lost():
            self._cut()
            return
        sending = self._send(message)
        try:
            blocked = sending.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._fail(error)
            self._cut()
            return
        self.is_busy = True
        self._finishing = asyncio.get_running_loop().create_task(self._finish(sending, blocked))

    def write_batch(self, batch: EncodedBatch, chunks: Chunks) -> None:
        cycle = self._cycle
        chunk = chunks.of(batch) if cycle is not None and can_write(cycle) else None
        if chunk is None:
            self.write(batch.body)
        else:
            cycle.transport.write(chunk)

    def write_frame(self, text: str, frames: Frames) -> None:
        socket = self._socket
        frame = frames.of(text) if socket is not None and can_frame(socket) else None
        if frame is None:
            self.write({"type": "websocket.send", "text": text})
        else:
            socket.transport.write(frame)

    def end(self, last: Message | None = None, *, patience_s: float = LAST_WORDS_S) -> None:
        if self.is_over:
            return
        if last is not None:
            self.write(last)
        self.is_over = True
        if self.is_busy and last is not None:
            asyncio.get_running_loop().call_later(patience_s, self._cut)
        else:
            self._cut()

    async def carry(self, receive: Receive) -> None:
        call = self._call = asyncio.current_task()
        assert call is not None
        owner = self._owner
        try:
            while not self._is_cut and owner.received(await receive()):
                await owner.until_room()
        except asyncio.CancelledError:
            # Ours, if `_cut` asked for it and nobody else did: the same way out as that of asyncio.timeout.
            if not self._is_cut or call.uncancel():
                raise
        finally:
            self.is_over = True
            self._call = None
            if self._finishing is not None:
                self._finishing.cancel()
                await asyncio.wait([self._finishing])
        self._check()

    def _cut(self) -> None:
        self.is_over = True
        if not self._is_cut:
            self._is_cut = True
            if self._call is not None:
                self._call.cancel()

    async def _finish(self, sending: Coroutine[Any, None, None], blocked: Any) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await _go_on(sending, blocked)
        except Exception as error:
            self._fail(error)
            self._cut()
            return
        finally:
            self._finishing = None
        self.is_busy = False
        if self.is_over:
            self._cut()
        else:
            self._owner.freed()


@types.coroutine
def _go_on(sending: Coroutine[Any, None, None], blocked: Any) -> Generator[Any, Any, None]:
    """Await the rest of a coroutine that was driven by hand until it yielded `blocked`.

    `yield from` would begin by resuming it, but the future it waits for has to reach the task first.
    """
    while True:
        try:
            value = yield blocked
        except BaseException as error:
            try:
                blocked = sending.throw(error)
            except StopIteration:
                return
        else:
            try:
                blocked = sending.send(value)
            except StopIteration:
                return
