"""Helpers of this folder: pipe a stream, check the result, and check that the provider saw an early end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from tenuto import Hub
from tenuto.core.errors import NotFound
from tenuto.core.model import Message
from tenuto.sources import Piped, UpstreamEnded, UpstreamError, pipe
from tests.sources.provider import Provider
from tests.sources.wires import TEXT

PATIENCE_S = 60.0
SEEN_WITHIN_S = 1.0  # time within which a provider must see that a stream was stopped


async def one_by_one(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def pipe_all(hub: Hub, stream: object, *, source: str | None = None) -> tuple[Message, Piped]:
    """Return the stored message, and the result of `pipe`."""
    async with asyncio.timeout(PATIENCE_S):
        async with hub.message("chat:1") as message:
            piped = await pipe(message, stream, source=source)
        stored, _ = await hub.read("chat:1", message.id)
    return stored, piped


async def broken(hub: Hub, stream: object, error: type[Exception], **options: Any) -> tuple[Message, Any]:
    """Return the stored message, and the error of this type that `pipe` raised."""
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(error) as raised:
            async with hub.message("chat:1") as message:
                await pipe(message, stream, **options)
        stored, _ = await hub.read("chat:1", message.id)
    assert stored.status not in ("complete", "streaming")
    return stored, raised.value


async def ended(hub: Hub, stream: object) -> str:
    """Return the text of the message after a crash upstream."""
    stored, _ = await broken(hub, stream, UpstreamEnded)
    assert (stored.status, stored.reason) == ("interrupted", "upstream_ended")
    return stored.text


async def failed(hub: Hub, stream: object) -> tuple[str, str]:
    """Return the text of the message after an error upstream, and the public words for it."""
    stored, error = await broken(hub, stream, UpstreamError)
    assert (stored.status, stored.reason) == ("failed", "upstream_error")
    return stored.text, error.detail


async def tried_again(hub: Hub, provider: Provider, make: Callable[[], object], *scripts: list[Any]) -> None:
    """Fail unless a stream that ends before its first event is followed by another one, which says the text."""
    asked = len(provider.requests)
    provider.will_say([], *scripts)
    async with hub.message("chat:1") as message:
        piped = await message.pipe(make, retry_s=0, retries=1)
    assert (piped.text, len(provider.requests) - asked) == (TEXT, 2)


async def left(hub: Hub, provider: Provider, stream: object) -> Message:
    """Cancel a pipe whose provider has gone quiet. Fails unless the provider sees that within a second."""
    message = hub.message("chat:1")

    async def answer() -> None:
        async with message:
            await pipe(message, stream)

    task = asyncio.create_task(answer())
    async with asyncio.timeout(PATIENCE_S):
        await provider.is_held.wait()
        await has_text(hub, message.id)
        task.cancel()
        async with asyncio.timeout(SEEN_WITHIN_S):
            await provider.is_left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        stored, _ = await hub.read("chat:1", message.id)
    assert stored.status == "cancelled"
    return stored


async def has_text(hub: Hub, message_id: str) -> None:
    """Wait until some text of the message is stored."""
    async with aclosing(hub.subscribe("chat:1", history=10).batches()) as batches:
        async for _ in batches:
            with suppress(NotFound):
                stored, _ = await hub.read("chat:1", message_id)
                if stored.text:
                    return
