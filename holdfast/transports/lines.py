"""A response of JSON lines that are read from the store as fast as the peer takes them.

Layer: transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from holdfast.transports.sender import SEND_TIMEOUT_S


class LinesResponse(StreamingResponse):
    """Sends `first` and then the lines `rest`; for HEAD only the headers. A peer that stops reading is disconnected."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes], *, headers: dict[str, str], is_head: bool) -> None:
        lines = _lines(first, rest, is_head=is_head)
        super().__init__(lines, headers=headers, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        await super().__call__(scope, receive, send_in_time)


async def _lines(first: bytes, rest: AsyncGenerator[bytes], *, is_head: bool) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        if is_head:
            return
        yield first
        async for line in rest:
            yield line
