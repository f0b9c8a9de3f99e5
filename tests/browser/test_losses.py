"""Tabs of one identity and their cache lose and double no text: reloads, a cut network, a restart, sleep, lost rights.

Layer: tests.

All pages are on one origin, that of the hub or of a proxy before it, so they share a connection and the storage.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count, pairwise
from pathlib import Path

from playwright.async_api import Browser, Page

from tenuto.app import Hub
from tests.browser.test_client import app_with, follow, token, verified
from tests.browser.test_tabs import open_tab, transport, window_of
from tests.proxy import FaultProxy

_IS_SENT = "() => channel.getSnapshot().messages.every(({ local }) => !local)"


async def check_shown(tabs: list[Page], stored: str) -> None:
    """Wait until each tab shows `stored`; assert that it has shown prefixes of it alone, each message once."""
    for tab in tabs:
        await tab.wait_for_function("stored => text('a') === stored", arg=stored)
        snapshots = await tab.evaluate("snapshots.map(({ of }) => of)")
        shown = [dict(one).get("a", "") for one in snapshots]
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown)), shown
        assert all(len(dict(one)) == len(one) for one in snapshots)


@asynccontextmanager
async def writing(hub: Hub) -> AsyncIterator[None]:
    """Append words to message `a` until the end of the block."""
    is_over = asyncio.Event()

    async def write() -> None:
        async with hub.message("chat:1", id="a") as message:
            for number in count():
                if is_over.is_set():
                    return
                await message.append(f"word {number} ")
                await asyncio.sleep(0.005)  # the pace of a model

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        is_over.set()
        await task


async def test_tabs_that_are_reloaded_at_random_moments_lose_and_double_nothing(browser: Browser) -> None:
    hub, chosen = verified(), random.Random(12)
    sent = [f"sent-{number}" for number in range(9)]
    async with app_with(hub) as port:
        context = await window_of(browser)
        async with writing(hub):
            tabs = [await open_tab(context, port, transport="poll") for _ in range(3)]
            for number, text in enumerate(sent):
                tab = tabs[number] if number < 3 else chosen.choice(tabs)  # each at least once, the leader first
                length = len(await tab.evaluate("text('a')")) + chosen.randrange(1, 300)
                await tab.wait_for_function("length => client.id && text('a').length >= length", arg=length)
                if number % 2:
                    await tab.evaluate("client.suspend()")  # so that only the storage of the browser has the message
                async with tab.expect_navigation():
                    await tab.evaluate(
                        "text => { void channel.send({ id: text, text }).catch(() => {}); location.reload() }", text
                    )
                await follow(tab, token=token(), transport="poll")
            for tab in tabs:
                await tab.wait_for_function(_IS_SENT)
        await check_shown(tabs, (await hub.read("chat:1", "a"))[0].text)
        texts = [one.text for one in (await hub.history("chat:1")).messages if one.id != "a"]
        assert sorted(texts) == sent
        for tab in tabs:
            await tab.wait_for_function("count => channel.getSnapshot().all.length === count", arg=1 + len(sent))
        assert sorted([await transport(tab) for tab in tabs]) == ["poll", "tab", "tab"]


async def test_tabs_lose_nothing_over_ten_seconds_offline_and_a_restart_of_the_server(
    browser: Browser, tmp_path: Path
) -> None:
    def new() -> Hub:
        return verified(url=f"sqlite:///{tmp_path}/test.db")

    async with FaultProxy("127.0.0.1", 0) as proxy:
        context = await window_of(browser)
        await context.clock.install()  # time passes, and the test can move it
        hub = new()
        async with app_with(hub) as port:
            proxy.upstream = ("127.0.0.1", port)
            tabs = [await open_tab(context, proxy.port, transport="sse") for _ in range(3)]
            async with hub.message("chat:1", id="a") as message:
                await message.append("before ")
                for tab in tabs:
                    await tab.wait_for_function("() => text('a') === 'before '")
                proxy.refuse()
                await proxy.cut()
                for tab in tabs:
                    await tab.wait_for_function("() => channel.state === 'reconnecting'")
                await tabs[1].evaluate("void channel.send({ id: 'q', text: 'offline' })")
                await message.append("meanwhile ")
                for _ in range(10):
                    await context.clock.fast_forward(1_000)
                assert [await tab.evaluate("channel.state") for tab in tabs] == ["reconnecting"] * 3
                proxy.accept()
                await context.clock.fast_forward(15_000)  # the longest back-off
                for tab in tabs:
                    await tab.wait_for_function("() => text('a') === 'before meanwhile '")
                    await tab.wait_for_function(_IS_SENT)
            proxy.refuse()  # a request that comes later would start the closed hub again
            await proxy.cut()
        for tab in tabs:
            await tab.wait_for_function("() => channel.state === 'reconnecting'")
        hub = new()
        async with app_with(hub) as port:
            proxy.upstream = ("127.0.0.1", port)
            proxy.accept()
            await hub.create("chat:1", id="b", text="after the restart")
            await context.clock.fast_forward(15_000)
            for tab in tabs:
                await tab.wait_for_function("() => text('b') === 'after the restart'")
            await check_shown(tabs, "before meanwhile ")
            texts = [one.text for one in (await hub.history("chat:1")).messages]
            assert sorted(texts) == ["after the restart", "before meanwhile ", "offline"]
            await context.close()
