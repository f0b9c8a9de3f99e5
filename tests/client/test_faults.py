"""A real server and a real network, and the faults of both while a message is written.

Layer: tests.

No text may be lost or doubled: the stored text, and the text of a viewer, is the appended text.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from proof.oracle.plans import NASTY, ORDINARY
from tenuto.client import ChannelView, Client, RemoteWriter, Timing
from tests.processes import Server, serving, text_of
from tests.proxy import FaultProxy

PATIENCE_S = 180.0  # for a whole test, whose server starts several times
TOKENS = 400
# Short waits where a test would only sit through them; the rest as it is.
TIMING = Timing(backoff_s=0.05, backoff_cap_s=0.2, silence_s=7.0, response_s=1.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving("serve", tmp_path) as server:
        yield server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def through(proxy: FaultProxy, timing: Timing = TIMING) -> Client:
    return Client(f"http://127.0.0.1:{proxy.port}", timing=timing, random=Random(3))


def tokens_of(seed: int) -> list[str]:
    """Return the tokens of a message: words, and text that breaks naive code."""
    return Random(seed).choices(ORDINARY * 6 + NASTY, k=TOKENS)


async def write(message: RemoteWriter, tokens: list[str]) -> None:
    """Append slowly enough for many faults in between."""
    for token in tokens:
        await message.append(token)
        await asyncio.sleep(0)


async def shows(view: ChannelView, text: str) -> None:
    """Wait until the view shows the expected message."""
    async for _ in view:
        messages = view.messages
        if messages and messages[-1].status == "complete" and messages[-1].text == text:
            return


async def test_text_survives_a_server_that_is_killed_repeatedly(server: Server, proxy: FaultProxy) -> None:
    tokens = tokens_of(3)
    async with asyncio.timeout(PATIENCE_S), through(proxy) as writing, through(proxy) as watching:
        view = watching.channel("chat:1")
        async with writing.message("chat:1") as message:
            for start in range(0, TOKENS, 100):
                await write(message, tokens[start : start + 50])
                if start:
                    await asyncio.to_thread(server.end, signal.SIGKILL)
                await write(message, tokens[start + 50 : start + 100])
                if start:
                    await asyncio.to_thread(server.start)
        text = "".join(tokens)
        assert text_of(server.message("chat:1", message.id)) == text
        await shows(view, text)
        assert view.gaps == 0
