"""A store that fails during a stream of any adapter: the stream is cut, and never ends as complete."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI

from tenuto.core.errors import StoreUnavailable
from tenuto.interop.adapter import hashed
from tenuto.stores.base import Changes
from tenuto.stores.memory import MemoryStore
from tests.interop.test_expiry import STREAMS, WAITING, begun, check_cut, install_adapters, is_broken_off
from tests.transports.conftest import new_hub, serving


class FailingStore(MemoryStore):
    """A store that cannot read changes while `is_down`."""

    is_down = False

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        if self.is_down:
            raise StoreUnavailable("the disk is gone")
        return await super().changes(channel, after=after, limit=limit)


async def test_streams_are_cut_when_the_store_fails_in_mid_answer(caplog: pytest.LogCaptureFixture) -> None:
    store, app = FailingStore(), FastAPI()
    hub = new_hub(store)
    install_adapters(hub, app)
    async with serving(hub, app) as served, AsyncExitStack() as stack:
        await hub.create("chat:1", text="Earlier.", role="assistant")
        # it is woken before the streams, which then lack a message that has left memory
        feed = await hub.attach("chat:1", None, wake=lambda: hub.channel("chat:1").trim(0) if store.is_down else None)
        stack.callback(feed.close)
        # the others begin a channel of their own
        streams = await begun(stack, served, (*STREAMS[:3], STREAMS[4]))
        store.is_down = True
        await hub.create("chat:1", text="Beside.", role="assistant")
        await check_cut(streams)
        assert "the disk is gone" in caplog.text


@pytest.mark.parametrize(("method", "path", "body"), WAITING)
async def test_waiting_request_gets_an_error_when_the_store_fails(method: str, path: str, body: Any) -> None:
    store, app, channel = FailingStore(), FastAPI(), "chat:" + hashed("anonymous", "key")
    hub = new_hub(store)
    install_adapters(hub, app)
    async with serving(hub, app) as served:
        await hub.create(channel, text="Earlier.", role="assistant")
        live = hub.channel(channel)
        feed = await hub.attach(channel, None, wake=lambda: live.trim(0) if store.is_down else None)
        headers = {"idempotency-key": "key"}  # so that the channel is known
        waiting = asyncio.ensure_future(served.http.request(method, path, json=body, headers=headers))
        await served.until(lambda: len(live.feeds) == 2)
        store.is_down = True
        await hub.create(channel, text="Beside.", role="assistant")
        assert is_broken_off(await waiting)
        feed.close()
