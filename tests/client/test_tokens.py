"""The credentials of a client, with real tokens and a real hub that verifies them.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import jwt
import pytest

from tenuto import Hub, Turn
from tenuto.core.errors import Unauthenticated
from tenuto.hub.access.tokens import jwt_verifier
from tests.client.wire import Wire, becomes, client_of

SECRET = "a secret of at least thirty-two bytes, as it should be"
WRITER = {"*": ["subscribe", "history", "publish", "append", "presence"]}


def token(sub: str, lasts_s: float, grants: dict[str, list[str]] = WRITER) -> str:
    return jwt.encode({"sub": sub, "exp": time.time() + lasts_s, "aud": "chat", "tenuto": grants}, SECRET)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    verifier = jwt_verifier(secret=SECRET, audience="chat", leeway_s=0.0)
    hub = Hub("memory://", authenticate=verifier, hooks_signals=False)
    await hub.start()
    yield hub
    await hub.close()


async def test_agent_with_an_expired_token_ends(hub: Hub, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(wire, token=token("bot", 60, {"*": ["subscribe", "append", "agent"]}))
    begun = asyncio.Event()

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(60):
        running = asyncio.ensure_future(client.run())
        await becomes(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
        await hub.create("chat:1", text="?")
        await begun.wait()
        later_ms = hub.clock.now_ms() + 60_000
        monkeypatch.setattr(hub.clock, "now_ms", lambda: later_ms)
        with pytest.raises(Unauthenticated):
            await client.history("chat:1")  # the next frame finds that the token has expired
        with pytest.raises(Unauthenticated, match="token_provider"):
            await running


async def test_live_connection_gets_new_tokens_and_a_message_continues(hub: Hub, wire: Wire) -> None:
    given = 0

    async def provider() -> str:
        nonlocal given
        given += 1
        return token("ada", 60, {"c": WRITER["*"]} if given == 1 else WRITER)

    def ahead() -> float:
        """Return a time at which a token has 1.5 s left, while it lasts a minute by the server's clock."""
        return time.time() + 58.5

    async with asyncio.timeout(60), client_of(wire, token_provider=provider, now=ahead) as client:
        async with client.message("c") as message:
            while given < 3:
                await message.append("on ")
                await message.flush()
                await asyncio.sleep(0.01)  # the pace of a model: this lasts as long as two tokens
        stored, _ = await hub.read("c", message.id)
        assert stored.text == message.text
        await client.create("not-by-the-first", text="token")
    assert wire.dials == 1
