"""Frames a batch once for all viewers and writes it straight to their transports, under our own `serve`.

Layer: transports.

With a thousand viewers of one channel the server's `send` frames the same bytes a thousand times, each in a coroutine
of its own: 1.1 of 9.2 µs a delivery by SSE, 2 of 20 by WebSocket (measured). So if the server is uvicorn with httptools
or websockets, and no middleware stands between it and us, a batch is framed once, and every viewer's transport gets the
same bytes object. All knowledge of uvicorn's internals is in this module; if uvicorn differs from it, the batch goes
through `send` as everywhere. `tests/transports/test_chunks.py` shows whether the installed uvicorn is as expected.
"""

from __future__ import annotations

import sys
from typing import Any

from starlette.types import Receive, Send

from tenuto.core.events import encode_json
from tenuto.hub.batches import EncodedBatch

# Limit of a batch to cache. Larger batches are rare, and to keep the last one would cost more than framing it again.
MAX_BYTES = 64 * 1024
OPEN = 1  # the state of an open WebSocket in the package `websockets`


class Chunks:
    """Caches the HTTP chunk of the last batch, since the viewers of a channel take the same batch in a row."""

    __slots__ = ("_batch", "_chunk")

    def __init__(self) -> None:
        self._batch: EncodedBatch | None = None
        self._chunk = b""

    def of(self, batch: EncodedBatch) -> bytes | None:
        """Return the batch as an HTTP/1.1 chunk; None if it is too large to cache."""
        if batch is not self._batch:
            body = batch.sse
            if len(body) > MAX_BYTES:
                return None
            self._batch = batch
            self._chunk = b"%x\r\n%b\r\n" % (len(body), body)
        return self._chunk


def cycle_of(send: Send) -> Any:
    """Return uvicorn's response cycle if `send` is its method and not a middleware's; else None."""
    module = sys.modules.get("uvicorn.protocols.http.httptools_impl")
    cycle: Any = getattr(send, "__self__", None)
    # `Any`, because uvicorn need not be installed, and these attributes are not part of its interface.
    kind: Any = getattr(module, "RequestResponseCycle", None)
    if kind is None or type(cycle) is not kind:
        return None
    expected = ("transport", "flow", "disconnected", "chunked_encoding", "response_complete")
    return cycle if all(hasattr(cycle, name) for name in expected) and hasattr(cycle.flow, "write_paused") else None


def can_write(cycle: Any) -> bool:
    """Return whether `send` would pass a chunk to the transport immediately and unchanged."""
    return bool(
        cycle.chunked_encoding
        and not cycle.flow.write_paused
        and not cycle.disconnected
        and not cycle.response_complete
    )


def break_off(receive: Receive) -> None:
    """Close the connection of an incomplete response, as uvicorn does, but without its log line at level ERROR.

    Only the end of the connection shows a viewer that its stream is not complete. `receive` is used to find the
    connection, because less middleware wraps it than `send`. If a middleware wraps it, or on another server, the server
    closes the connection itself.
    """
    cycle: Any = getattr(receive, "__self__", None)
    if not type(cycle).__module__.startswith("uvicorn.protocols.http."):
        return
    expected = ("transport", "disconnected", "response_started", "response_complete")
    if all(hasattr(cycle, name) for name in expected) and cycle.response_started and not cycle.response_complete:
        cycle.disconnected = True
        cycle.transport.close()


def end_refusal(receive: Receive) -> None:
    """Note on uvicorn's WebSocket protocol that a refused handshake has its response.

    uvicorn itself does not note that, so it would log an error for each socket that is refused with a response.
    """
    protocol: Any = getattr(receive, "__self__", None)
    if not type(protocol).__module__.startswith("uvicorn.protocols.websockets."):
        return
    expected = ("handshake_complete", "initial_response", "close_sent")
    if all(hasattr(protocol, name) for name in expected) and protocol.initial_response and protocol.close_sent:
        protocol.handshake_complete = True


class Frames:
    """Caches the WebSocket frame of the last text, and of the last batch, as `Chunks` does for batches."""

    __slots__ = ("_batch", "_frame", "_sole", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._frame = b"\x81\x00"
        self._batch: EncodedBatch | None = None
        self._sole = b""

    def of(self, text: str) -> bytes | None:
        """Return `text` as one unmasked frame; None if it is too large to cache."""
        if text is not self._text:
            if len(text) > MAX_BYTES:
                return None
            self._text, self._frame = text, _framed(text.encode())
        return self._frame

    def of_sole(self, batch: EncodedBatch) -> bytes | None:
        """Return a stored batch of one event as one frame, the bytes of `of` for it; None if it is too large to cache.

        Hot path: it does not make the text of the frame.
        """
        if batch is not self._batch:
            (event,) = batch.raw
            if len(event) > MAX_BYTES:
                return None
            opening = b'{"type":"events","channel":%b,' % encode_json(batch.channel)
            data = b'%b"cursor":"%b","events":[%b]}' % (opening, batch.cursor.encode(), event)
            self._batch, self._sole = batch, _framed(data)
        return self._sole


def _framed(data: bytes) -> bytes:
    """Return `data` as one unmasked text frame."""
    size = len(data)
    if size < 126:
        return bytes((0x81, size)) + data
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2) + data
    return b"\x81\x7f" + size.to_bytes(8) + data


def socket_of(send: Send) -> Any:
    """Return uvicorn's WebSocket protocol if `send` is its method and not a middleware's; else None."""
    module = sys.modules.get("uvicorn.protocols.websockets.websockets_sansio_impl")
    protocol: Any = getattr(send, "__self__", None)
    kind: Any = getattr(module, "WebSocketsSansIOProtocol", None)
    if kind is None or not isinstance(protocol, kind) or type(protocol).send is not kind.send:
        return None
    expected = ("transport", "writable", "disconnected", "handshake_complete", "close_sent", "initial_response", "conn")
    conn = getattr(protocol, "conn", None)
    of_conn = ("state", "extensions")
    is_known = all(hasattr(protocol, name) for name in expected) and all(hasattr(conn, name) for name in of_conn)
    return protocol if is_known and not protocol.conn.extensions else None


def can_frame(protocol: Any) -> bool:
    """Return whether `send` would pass a text frame to the transport immediately and unchanged."""
    return bool(
        protocol.handshake_complete
        and protocol.writable.is_set()
        and not protocol.disconnected
        and not protocol.close_sent
        and protocol.initial_response is None
        and protocol.conn.state == OPEN
    )
