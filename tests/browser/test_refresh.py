"""A page in a real browser loses no text through the faults of a network.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from playwright.async_api import Browser

from proof.chaos.producer import Orders
from proof.oracle.plans import Script
from tests.browser.tab import Tab, units
from tests.conftest import in_long
from tests.processes import Process, Server, text_of
from tests.proxy import FaultProxy

TOKENS = 400
PER_SECOND = 120


@contextmanager
def producing(server: Server, folder: Path, seed: int, per_second: int = PER_SECOND) -> Iterator[Process]:
    """Run a producer of one message on `demo:test` in a process of its own."""
    name = "m"
    orders = Orders(server.port, name, "demo:test", seed, TOKENS, per_second, prefix=server.hub, last=0)
    with Process(["-m", "proof.chaos.producer", json.dumps(asdict(orders))], folder / f"{name}.log") as producer:
        yield producer


def planned(seed: int) -> str:
    """Return the text of message `m-0`."""
    return "".join(Script(seed, "m-0", steps=TOKENS).texts("m"))


async def check_end(server: Server, producer: Process, tabs: list[Tab], expected: str) -> None:
    """Assert that all pages show the stored text, and that it equals the sent text."""
    assert await asyncio.to_thread(producer.wait) == 0, producer.output
    for tab in tabs:
        await tab.until_status("m-0", "complete")
        assert await tab.text("m-0") == expected
        assert tab.errors == []
    assert text_of(server.message("demo:test", "m-0")) == expected


@in_long
@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
async def test_a_network_that_cuts_stalls_and_throttles_loses_no_text(
    demo: Server, browser: Browser, tmp_path: Path, transport: str
) -> None:
    chosen = random.Random(11)
    async with FaultProxy("127.0.0.1", demo.port) as proxy:
        with producing(demo, tmp_path, 2) as producer:
            tab = await Tab.open(browser, proxy.port, "demo:test", transport)
            shown = await tab.until_length("m-0", 1)
            for fault in ("cut", "throttle", "stall", "cut", "refuse", "cut"):
                if fault == "cut":
                    await proxy.cut()
                elif fault == "throttle":
                    proxy.throttle(20_000)
                elif fault == "stall":
                    proxy.stall()
                    await asyncio.sleep(0.5)  # the duration of the fault
                    proxy.resume()
                else:
                    proxy.refuse()
                    await proxy.cut()
                    await asyncio.sleep(0.3)  # the duration of the fault
                    proxy.accept()
                wanted = min(units(shown) + chosen.randrange(20, 100), 1_200)
                later = await tab.until_length("m-0", wanted)
                assert later.startswith(shown)
                shown = later
            proxy.throttle(None)
            await check_end(demo, producer, [tab], planned(2))
