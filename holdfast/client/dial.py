"""The WebSocket itself: opening one, and saying in our own words how it ended.

You are in `client`; the one module that knows the `websockets` library. Whatever else can carry text frames may take
its place (`Client(dial=…)`), such as a connection in memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from holdfast.core.errors import LocalError

SUBPROTOCOL = "holdfast.v1"
CLOSE_S = 1.0  # for the peer to agree to a close; nothing hangs on it

# The library logs each header at the level DEBUG, and one of ours is a token.
_silent = logging.Logger("holdfast.client.websocket")
_silent.disabled = True


class Closed(Exception):
    """The connection has ended; `code` is None where nobody said why."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Refusal(Exception):
    """The server, or something before it, answered the upgrade with another status; `problem` is empty if not ours."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after_s: float) -> None:
        super().__init__(f"{status} {problem.get('code', '')}")
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class Socket(Protocol):
    """A connection that carries text frames."""

    async def send(self, text: str) -> None:
        """Hand a frame over; waits while the peer takes none. Raises Closed."""

    async def receive(self) -> str:
        """The next frame. Raises Closed."""

    async def close(self) -> None:
        """End it, whatever it is doing."""


Dial = Callable[[str, dict[str, str]], Awaitable[Socket]]


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
    """Opens WebSockets that take frames of at most `frame_bytes`. Raises LocalError where the library is missing."""
    try:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.typing import Subprotocol
    except ImportError:
        raise LocalError("this needs websockets: pip install 'holdfast[client]'") from None

    async def dial(url: str, headers: dict[str, str]) -> Socket:
        try:
            connection = await connect(
                url,
                additional_headers=headers,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=frame_bytes,
                open_timeout=None,  # the caller's
                ping_interval=None,  # the protocol has pings of its own
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
    """The problem object that `body` is; empty for anything else."""
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) and isinstance(problem.get("code"), str) else {}


def retry_after_s(value: str) -> float:
    """What a `Retry-After` header asks for; dates count as nothing."""
    return min(float(value), 300.0) if value.isascii() and value.isdigit() and len(value) < 10 else 0.0


def _closed(error: Any) -> Closed:
    if error.rcvd is not None:
        return Closed(error.rcvd.code, error.rcvd.reason)
    # What we ended ourselves, because a frame was larger than we take, will be as large next time.
    return Closed(1009 if error.sent is not None and error.sent.code == 1009 else None)
