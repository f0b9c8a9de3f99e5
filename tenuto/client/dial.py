"""Opens WebSockets, and defines the exceptions for their end.

Layer: client. Only this module knows the `websockets` library. Any other carrier of text frames may replace it
(`Client(dial=…)`), such as a connection in memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from tenuto.core.errors import LocalError

SUBPROTOCOL = "tenuto.v1"
CLOSE_S = 1.0  # time in which the peer can confirm a close; the client does not need the confirmation

# At the level DEBUG the library logs all headers, one of which contains the token.
_silent = logging.Logger("tenuto.client.websocket")
_silent.disabled = True


class Closed(Exception):
    """The connection has ended; `code` is None if it ended without a close frame."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Refusal(Exception):
    """The server or a proxy refused the upgrade; `problem` is empty if the response is not a Tenuto server's."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after_s: float) -> None:
        super().__init__(f"{status} {problem.get('code', '')}")
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class FrameSocket(Protocol):
    """A connection that carries text frames."""

    async def send(self, text: str) -> None:
        """Send a frame; waits while the peer accepts none. Raises Closed."""

    async def receive(self) -> str:
        """Return the next frame. Raises Closed."""

    async def close(self) -> None:
        """End the connection, also while another task reads or writes."""


Dial = Callable[[str, dict[str, str]], Awaitable[FrameSocket]]


class _WebSocket:
    def __init__(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        self._connection = connection
        self._ended = ConnectionClosed

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except self._ended as error:
            raise _closed(error) from None

    async def receive(self) -> str:
        try:
            frame = await self._connection.recv()
        except self._ended as error:
            raise _closed(error) from None
        if not isinstance(frame, str):
            raise Closed(reason="the server sent a binary frame")
        return frame

    async def close(self) -> None:
        await self._connection.close()


def websocket_dial(*, frame_bytes: int) -> Dial:
    """Return a function that opens WebSockets, for frames of at most `frame_bytes`.

    Raises LocalError without the library.
    """
    try:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.typing import Subprotocol
    except ImportError:
        raise LocalError(
            "Client needs the package websockets; install Tenuto with [client], as its README shows"
        ) from None

    async def dial(url: str, headers: dict[str, str]) -> FrameSocket:
        try:
            connection = await connect(
                url,
                additional_headers=headers,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=frame_bytes,
                open_timeout=None,  # no timeout here, because the caller has one
                ping_interval=None,  # no pings here, because the protocol has its own
                close_timeout=CLOSE_S,
                logger=_silent,
            )
        except InvalidStatus as error:
            response = error.response
            body, after = response.body or b"", response.headers.get("Retry-After", "")
            raise Refusal(response.status_code, problem_in(bytes(body)), retry_after_s(after)) from None
        except (InvalidHandshake, EOFError) as error:
            raise OSError(str(error)) from None
        return _WebSocket(connection)

    return dial


def problem_in(body: bytes) -> dict[str, Any]:
    """Return the problem object in `body`; empty if `body` holds no such object."""
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) and isinstance(problem.get("code"), str) else {}


def retry_after_s(value: str) -> float:
    """Return the seconds in a `Retry-After` header; 0 if the header holds a date."""
    return min(float(value), 300.0) if value.isascii() and value.isdigit() and len(value) < 10 else 0.0


def _closed(error: Any) -> Closed:
    if error.rcvd is not None:
        return Closed(error.rcvd.code, error.rcvd.reason)
    # The client closed the connection because a frame was too large; the frame would be as large next time.
    return Closed(1009 if error.sent is not None and error.sent.code == 1009 else None)
