"""One chunk, or one WebSocket frame, for all viewers, straight to the socket, under our own `serve`.

Layer: transports.

With a thousand viewers of one channel the server's `send` frames the same bytes a thousand
times, each in a coroutine of its own: 1.1 of 9.2 µs a delivery by SSE, 2 of 20 by WebSocket (measured). So where the
server is uvicorn with httptools or websockets, and nobody stands between it and us, a batch is framed once and every
viewer's transport gets the same bytes object. What this needs to know of uvicorn stands here and nowhere else; whenever
anything is not as expected, the batch goes through `send` as everywhere. `tests/transports/test_chunks.py` says whether
the installed uvicorn is as expected.
"""

from __future__ import annotations

import sys
from typing import Any

from starlette.types import Send

from holdfast.hub.feed import EncodedBatch

# Larger ones are few, and keeping the last of them alive would cost more than framing them again.
MAX_BYTES = 64 * 1024
OPEN = 1  # of the states of a WebSocket, as `websockets` counts them


class Chunks:
    """The chunk of the batch that was asked for last: viewers of a channel come for the same one in a row."""

    __slots__ = ("_batch", "_chunk")

    def __init__(self) -> None:
        self._batch: EncodedBatch | None = None
        self._chunk = b""

    def of(self, batch: EncodedBatch) -> bytes | None:
        """The batch as a chunk of HTTP/1.1, or None when it is too large to be worth it."""
        if batch is not self._batch:
            body = batch.sse
            if len(body) > MAX_BYTES:
                return None
            self._batch = batch
            self._chunk = b"%x\r\n%b\r\n" % (len(body), body)
        return self._chunk


def cycle_of(send: Send) -> Any:
    """uvicorn's response cycle, if `send` is its own and no middleware's; else None."""
    module = sys.modules.get("uvicorn.protocols.http.httptools_impl")
    cycle: Any = getattr(send, "__self__", None)
    # `Any`: uvicorn need not be installed, and these attributes are no interface of its.
    kind: Any = getattr(module, "RequestResponseCycle", None)
    if kind is None or type(cycle) is not kind:
        return None
    expected = ("transport", "flow", "disconnected", "chunked_encoding", "response_complete")
    return cycle if all(hasattr(cycle, name) for name in expected) and hasattr(cycle.flow, "write_paused") else None


def can_write(cycle: Any) -> bool:
    """Would `send` hand a chunk to the transport right away, as it is?"""
    return bool(
        cycle.chunked_encoding
        and not cycle.flow.write_paused
        and not cycle.disconnected
        and not cycle.response_complete
    )


class Frames:
    """As `Chunks`: the WebSocket frame of the text that was asked for last."""

    __slots__ = ("_frame", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._frame = b"\x81\x00"

    def of(self, text: str) -> bytes | None:
        """`text` as one unmasked frame, or None when it is too large to be worth it."""
        if text is not self._text:
            if len(text) > MAX_BYTES:
                return None
            data = text.encode()
            size = len(data)
            if size < 126:
                head = bytes((0x81, size))
            elif size < 1 << 16:
                head = b"\x81\x7e" + size.to_bytes(2)
            else:
                head = b"\x81\x7f" + size.to_bytes(8)
            self._text, self._frame = text, head + data
        return self._frame


def socket_of(send: Send) -> Any:
    """uvicorn's WebSocket protocol, if `send` is its own and no middleware's; else None."""
    module = sys.modules.get("uvicorn.protocols.websockets.websockets_sansio_impl")
    protocol: Any = getattr(send, "__self__", None)
    kind: Any = getattr(module, "WebSocketsSansIOProtocol", None)
    if kind is None or type(protocol) is not kind:
        return None
    expected = ("transport", "writable", "disconnected", "handshake_complete", "close_sent", "initial_response", "conn")
    conn = getattr(protocol, "conn", None)
    of_conn = ("state", "extensions")
    is_known = all(hasattr(protocol, name) for name in expected) and all(hasattr(conn, name) for name in of_conn)
    return protocol if is_known and not protocol.conn.extensions else None


def can_frame(protocol: Any) -> bool:
    """Would `send` hand a text frame to the transport right away, as it is?"""
    return bool(
        protocol.handshake_complete
        and protocol.writable.is_set()
        and not protocol.disconnected
        and not protocol.close_sent
        and protocol.initial_response is None
        and protocol.conn.state == OPEN
    )
