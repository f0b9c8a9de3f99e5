"""Responses of JSON lines: as fast as the peer takes them, and with signs of life while the server works.

Layer: transports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tenuto.core.errors import Draining, TenutoError
from tenuto.hub.viewing import Viewing
from tenuto.transports.codec import for_peers, unexpected
from tenuto.transports.sender import SEND_TIMEOUT_S, abort_if_unread, break_off

logger = logging.getLogger("tenuto.transports")

SIGN_S = 5.0  # time between two signs of life; proxies end a response that is silent for a minute
_SIGN = b"{}\n"


class LinesResponse(StreamingResponse):
    """Sends `first` and then the lines `rest`; for HEAD only the headers. A peer that stops reading is disconnected.

    An error of `rest` is the last line, of type `error`. A response that has not ended soon after the drain is cut.
    """

    def __init__(
        self,
        viewing: Viewing,
        first: bytes,
        rest: AsyncGenerator[bytes],
        *,
        headers: dict[str, str],
    ) -> None:
        self._viewing = viewing
        self._first = first
        self._rest = rest
        super().__init__(rest, headers=headers, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        self.body_iterator = self._lines(scope)
        try:
            async with aclosing(self._rest), self._viewing.responding():
                await super().__call__(scope, receive, send_in_time)
        except Draining:
            break_off(receive)
            abort_if_unread(receive, is_draining=True)

    async def _lines(self, scope: Scope) -> AsyncGenerator[bytes]:
        if scope["method"] == "HEAD":
            return
        yield self._first
        try:
            async for line in self._rest:
                yield line
        except Exception as error:
            if not isinstance(error, TenutoError):
                logger.exception("an HTTP request failed")
                error = unexpected()
            yield _line({"type": "error", "error": for_peers(error, scope).problem()})


async def with_signs(values: AsyncGenerator[object]) -> AsyncGenerator[bytes]:
    """Yield `values` as lines of JSON, and an empty object when none has come for five seconds."""
    step = asyncio.ensure_future(_next(values))
    try:
        while True:
            done, _ = await asyncio.wait({step}, timeout=SIGN_S)
            if not done:
                yield _SIGN
                continue
            line = step.result()
            if line is None:
                return
            yield line
            step = asyncio.ensure_future(_next(values))
    finally:
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        await values.aclose()


async def _next(values: AsyncGenerator[object]) -> bytes | None:
    async for value in values:
        return _line(value)
    return None


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"
