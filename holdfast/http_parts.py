"""Parts of the HTTP protocol of `holdfast serve`: its flow control, and responses with which a connection ends.

Layer: serving, below `bounded_http` and `bounded_websocket`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from holdfast.core.errors import HoldfastError, TooLarge
from holdfast.transports.problem import problem_headers


class ReadingProtocol(Protocol):
    """The protocol object of a connection."""

    def may_read(self) -> bool:
        """Return whether the connection should read more input now."""


class Flow(FlowControl):
    """uvicorn's flow control. This one also stops reading, for example while a request waits behind the running one."""

    def __init__(self, transport: asyncio.Transport, protocol: ReadingProtocol) -> None:
        super().__init__(transport)
        self.protocol: ReadingProtocol | None = protocol  # None once the connection is lost

    def resume_reading(self) -> None:
        if self.read_paused and self.protocol is not None and self.protocol.may_read():
            super().resume_reading()


def too_large(what: str, limit: int, unit: str) -> TooLarge:
    """Return the error for input that exceeds a limit."""
    return TooLarge(f"{what} exceeds the limit of {limit} {unit}; send fewer", limit=limit)


def refusal(error: HoldfastError, status: int) -> bytes:
    """Return a complete HTTP response with `error`, for a connection that ends with it."""
    body = msgspec.json.encode({**error.problem(), "status": status})
    lines = "".join(f"{name}: {value}\r\n" for name, value in refusal_headers(error).items())
    return STATUS_LINE[status] + lines.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def refusal_headers(error: HoldfastError) -> dict[str, str]:
    """Return the headers of a response with `error`, but for its length, on a connection that ends with it."""
    return {**problem_headers(error), "connection": "close"}
