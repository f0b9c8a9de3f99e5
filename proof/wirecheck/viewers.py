"""Viewers: sessions on real sockets, for asyncio.

Layer: wirecheck.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from proof.wirecheck.checker import Checker, Json, shorten
from proof.wirecheck.sessions import Session, SseSession, WsSession

PATIENCE_S = 60.0  # a machine with other work may delay a process by many seconds


class Received(NamedTuple):
    """One event as a viewer received it."""

    event: Json
    at_s: float  # CLOCK_MONOTONIC, when its bytes were read


class _Viewer:
    """A session on a real socket. A task reads the socket until the context ends.

    `since` begins in mid-history without a view. To continue with an existing view, pass its `checker`, whose cursor is
    then used. `query` and `headers` are added to the request unchanged. The viewer buffers no bytes: if it is stalled,
    the kernel's receive buffer fills, and the server's writes block. `receive_buffer_bytes` sets the size of that
    buffer.
    """

    def __init__(
        self,
        host: str,
        port: int,
        channel: str,
        *,
        since: str | None = None,
        checker: Checker | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        prefix: str = "",
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._since = since
        self.checker = checker if checker is not None else Checker(channel)
        self._query = query
        self._headers = headers
        self._prefix = prefix
        self.events: list[Received] = []  # the events of all its connections
        self.connections = 0
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None
        self._session: Session | None = None
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._received = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()

    def _new_session(self) -> Session:
        raise NotImplementedError

    def _cursor(self) -> str | None:
        """Return the cursor to resume from: `since` for the first connection; None after a hole, for a new start."""
        return self._since if self.connections == 0 and self.checker.cursor is None else self.checker.cursor

    @property
    def is_over(self) -> bool:
        """Return whether the client or the server has ended the connection."""
        return self._reader is None or self._reader.done()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def until(self, predicate: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until `predicate()` holds; evaluate it after each read. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    self._check_reader()
                    self._received.clear()
                    await self._received.wait()
        except TimeoutError as error:
            seen = {id: (len(message.text), message.status) for id, message in self.checker.messages.items()}
            raise TimeoutError(
                f"after {timeout_s} s: {self.checker.events} events, cursor {self.checker.cursor}, "
                f"is_over {self.is_over}, shown {shorten(seen)}, violations {self.checker.violations}"
            ) from error

    async def until_attached(self, timeout_s: float = PATIENCE_S) -> None:
        await self.until(lambda: self.checker.has_attached, timeout_s)

    def stall(self) -> None:
        """Stop reading until `resume`."""
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    async def flush(self) -> None:
        """Send the bytes that the session has queued; needed only after a request to the session."""
        async with self._sending:
            if self._socket is not None and self._session is not None:
                data = self._session.bytes_to_send()
                await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def close(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset` reset it. The view stays."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._socket is not None:
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()
            self._socket = None
            self.checker.end()
        self._check_reader()

    async def reconnect(self, *, reset: bool = False) -> None:
        """Close, then attach again from the view's cursor, as a client does after a lost connection."""
        await self.close(reset=reset)
        await self._connect()

    async def _connect(self) -> None:
        self._session = self._new_session()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setblocking(False)
        if self._receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, (self.host, self.port))
        except BaseException:
            await self.close()
            raise
        self.connections += 1
        self._reader = asyncio.get_running_loop().create_task(self._read(self._socket, self._session))

    async def _read(self, sock: socket.socket, session: Session) -> None:
        try:
            while not session.is_over:
                await self.flush()
                await _readable(sock)
                if not self._may_read.is_set():
                    await self._may_read.wait()
                    continue
                data = sock.recv(64 * 1024)
                if not data:
                    break
                session.receive(data, now_s=time.monotonic())
                self._received.set()
            await self.flush()  # the close frame in response to the server's
        except OSError:
            pass  # a lost connection ends the session like a close
        finally:
            session.receive_end()
            self._received.set()

    def _check_reader(self) -> None:
        """Raise the exception of the reading task, if it failed: a bug in this module, not in the server."""
        if self._reader is not None and self._reader.done() and not self._reader.cancelled():
            self._reader.result()

    def _note(self, channel: str, event: Json, at_s: float) -> None:
        self.events.append(Received(event, at_s))


async def _readable(sock: socket.socket) -> None:
    """Wait until the socket is readable, without reading: the viewer may be stalled meanwhile."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


class SseViewer(_Viewer):
    """A viewer on `GET /v1/channels/{channel}/events`; `session` belongs to the current connection."""

    session: SseSession

    def __init__(self, host: str, port: int, channel: str, *, uses_last_event_id: bool = False, **more: Any) -> None:
        super().__init__(host, port, channel, **more)
        self._uses_last_event_id = uses_last_event_id

    def _new_session(self) -> SseSession:
        cursor = self._cursor()
        # An EventSource reconnects to its first URL and sends its cursor in a header.
        is_header = self._uses_last_event_id and self.connections > 0
        self.session = SseSession(
            self.checker,
            since=self._since if is_header else cursor,
            last_event_id=cursor if is_header else None,
            query=self._query,
            headers=self._headers,
            host=f"{self.host}:{self.port}",
            prefix=self._prefix,
            observe=self._note,
        )
        return self.session


class WsViewer(_Viewer):
    """A viewer on `GET /v1/ws`, attached to one channel; `attach_fields` go into the `attach` frame."""

    session: WsSession

    def __init__(self, host: str, port: int, channel: str, *, attach_fields: Json | None = None, **more: Any) -> None:
        super().__init__(host, port, channel, **more)
        self._attach_fields = attach_fields or {}

    def _new_session(self) -> WsSession:
        self.session = WsSession(
            host=f"{self.host}:{self.port}",
            prefix=self._prefix,
            query=self._query,
            headers=self._headers,
            observe=self._note,
        )
        self.session.attach(self.checker, since=self._cursor(), **self._attach_fields)
        return self.session
