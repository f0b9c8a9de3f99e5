"""Who we are to a server that checks: real tokens, and a real hub that believes those of its secret for a while.

Layer: tests.

"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast import Hub, Turn
from holdfast.client import Client
from holdfast.core.errors import Forbidden, HoldfastError, NotWriter, Unauthenticated
from holdfast.hub.tokens import jwt_verifier
from tests.client.wire import Wire, becomes, client_of

SECRET = "a secret of at least thirty-two bytes, as it should be"
WRITER = {"*": ["subscribe", "history", "publish", "append", "presence"]}


def token(sub: str, lasts_s: float, grants: dict[str, list[str]] | None = None, *, secret: str = SECRET) -> str:
    claims = {"sub": sub, "exp": time.time() + lasts_s, "aud": "chat", "holdfast": grants or WRITER}
    body = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{body}.{_encoded(hmac.digest(secret.encode(), body.encode(), hashlib.sha256))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    verifier = jwt_verifier(secret=SECRET, audience="chat", leeway_s=0.0)
    hub = Hub("memory://", authenticate=verifier, hooks_signals=False)
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
async def wire(hub: Hub) -> AsyncIterator[Wire]:
    wire = Wire(hub)
    yield wire
    await wire.end()


async def test_a_token_says_who_writes(wire: Wire) -> None:
    async with client_of(wire, token=token("ada", 60)) as ada, client_of(wire, token=token("bob", 60)) as bob:
        message = await ada.message("c").open()
        assert (await ada.read("c", message.id))[0].author == "ada"
        with pytest.raises(NotWriter):
            await bob.finish("c", message.id)
        with pytest.raises(Forbidden):
            await bob.command("c", "approve")


@pytest.mark.parametrize(
    "bad", [token("ada", -5), token("ada", 60, secret="x" * 40), "no-token"], ids=["expired", "forged", "no-token"]
)
async def test_a_token_that_is_no_good_is_told(wire: Wire, bad: str) -> None:
    async with client_of(wire, token=bad) as client:
        with pytest.raises(Unauthenticated):
            await client.create("c", text="x")
        with pytest.raises(Unauthenticated):
            await client.read("c", "x")


async def test_a_client_without_a_token_is_told_that_it_needs_one(wire: Wire) -> None:
    async with asyncio.timeout(10), client_of(wire) as client:
        with pytest.raises(Unauthenticated, match="this client has none"):
            await client.create("c", text="x")


@pytest.mark.parametrize("bad", [token("bot", -5), "no-token", None], ids=["expired", "no-token", "None"])
async def test_an_agent_whose_token_is_no_good_ends(wire: Wire, bad: str | None) -> None:
    client = client_of(wire, token=bad)

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        raise AssertionError

    async with asyncio.timeout(10):
        with pytest.raises(Unauthenticated):
            await client.run()


async def test_an_agent_whose_token_ends_ends(hub: Hub, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(wire, token=token("bot", 60, {"*": ["subscribe", "append", "agent"]}))
    begun = asyncio.Event()

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        running = asyncio.ensure_future(client.run())
        await becomes(lambda: hub.scheduler.workers.has_agent("chat:1"))
        await hub.create("chat:1", text="?")
        await begun.wait()
        later_ms = hub.clock.now_ms() + 60_000
        monkeypatch.setattr(hub.clock, "now_ms", lambda: later_ms)
        with pytest.raises(Unauthenticated):
            await client.history("chat:1")  # the next frame finds the token over
        with pytest.raises(Unauthenticated, match="token_provider"):
            await running


async def test_a_live_connection_gets_new_tokens_and_a_message_goes_on(hub: Hub, wire: Wire) -> None:
    given = 0

    async def provider() -> str:
        nonlocal given
        given += 1
        return token("ada", 60, {"c": WRITER["*"]} if given == 1 else WRITER)

    def ahead() -> float:
        """To this clock a token lasts a second and a half; the server's leaves time to be held up in."""
        return time.time() + 58.5

    async with asyncio.timeout(10), client_of(wire, token_provider=provider, now=ahead) as client:
        async with client.message("c") as message:
            while given < 3:
                await message.append("on ")
                await message.flush()
                await asyncio.sleep(0.01)  # the pace of a model: this lasts as long as two tokens
        stored, _ = await hub.read("c", message.id)
        assert stored.text == message.text
        await client.create("not-by-the-first", text="token")
    assert wire.dials == 1


async def test_an_identity_that_ends_on_a_live_connection_is_renewed_by_another(hub: Hub, wire: Wire) -> None:
    """What a server does whose tokens do not say when they end, as far as a client can read."""
    tokens = iter([token("ada", 0.3), token("ada", 60)])

    async def provider() -> str:
        return next(tokens)

    client = client_of(wire, token_provider=provider, now=lambda: 0.0)
    async with asyncio.timeout(10), client:
        async with client.message("c") as message:
            while wire.dials < 2:
                await message.append("on ")
                await asyncio.sleep(0.01)  # as above
        stored, _ = await hub.read("c", message.id)
        assert stored.text == message.text


async def test_an_identity_that_ends_for_good_is_told_to_everybody(wire: Wire) -> None:
    async with asyncio.timeout(10), client_of(wire, token=token("ada", 0.3)) as client:
        view = client.channel("c")
        with pytest.raises(Unauthenticated):
            async for _ in view:
                pass
        await _raises(client)


async def _raises(client: Client, *_: Any) -> None:
    with pytest.raises(HoldfastError) as caught:
        await client.create("c", text="x")
    assert caught.value.code == "unauthenticated"
