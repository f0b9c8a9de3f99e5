"""Tabs of one identity and their cache lose and double no text: reloads, a cut network, a restart, sleep, lost rights.

Layer: tests.

All pages are on one origin, that of the hub or of a proxy before it, so they share a connection and the storage.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.async_api import Browser, BrowserContext, Page, WebSocketRoute

from tenuto.app import Hub
from tests.browser.tab import transports
from tests.browser.test_client import SECRET, app_with, token, verified
from tests.browser.test_tabs import transport, window_of
from tests.conftest import IS_LONG
from tests.proxy import FaultProxy
from tests.transports.conftest import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses

# The page keeps each text of message `a` that it has shown, and whether any snapshot had a message twice.
_FOLLOW = """async ([options]) => {
  const { connect } = await import("/tenuto/web/client.js")
  window.client = connect({ url: "/tenuto", ...options })
  window.channel = client.channel("chat:1")
  window.text = (id) => channel.getSnapshot().messages.find((one) => one.id === id)?.text ?? ""
  window.shown = []
  window.hasDoubled = false
  channel.subscribe(() => {
    const { messages } = channel.getSnapshot()
    if (text("a") !== shown.at(-1)) shown.push(text("a"))
    if (new Set(messages.map(({ id }) => id)).size !== messages.length) window.hasDoubled = true
  })
}"""
_IS_SENT = "() => channel.getSnapshot().messages.every(({ local }) => !local)"


async def follow(tab: Page, **options: Any) -> Page:
    await tab.evaluate(_FOLLOW, [{"token": token(), **options}])
    return tab


async def open_tab(context: BrowserContext, port: int, **options: Any) -> Page:
    tab = await context.new_page()
    await tab.goto(f"http://localhost:{port}/")
    await follow(tab, **options)
    await tab.wait_for_function("() => channel.state === 'live'")
    return tab


async def check_shown(tabs: list[Page], stored: str) -> None:
    """Wait until each tab shows `stored`; assert that it has shown prefixes of it alone, each message once."""
    for tab in tabs:
        await tab.wait_for_function("stored => text('a') === stored", arg=stored)
        shown = await tab.evaluate("shown")
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown)), shown
        assert not await tab.evaluate("hasDoubled")


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


@pytest.mark.parametrize("name", transports("poll"))
async def test_tabs_that_are_reloaded_at_random_moments_lose_and_double_nothing(browser: Browser, name: str) -> None:
    hub, chosen = verified(), random.Random(12)
    sent = [f"sent-{number}" for number in range(9)]
    async with app_with(hub) as port:
        context = await window_of(browser)
        async with writing(hub):
            tabs = [await open_tab(context, port, transport=name) for _ in range(3)]
            for number, text in enumerate(sent):
                tab = tabs[number] if number < 3 else chosen.choice(tabs)  # each at least once, the leader first
                length = len(await tab.evaluate("text('a')")) + chosen.randrange(1, 300)
                await tab.wait_for_function("length => text('a').length >= length", arg=length)
                if number % 2:
                    await tab.evaluate("client.suspend()")  # so that only the storage of the browser has the message
                async with tab.expect_navigation():
                    await tab.evaluate(
                        "text => { void channel.send({ id: text, text }).catch(() => {}); location.reload() }", text
                    )
                await follow(tab, transport=name)
            for tab in tabs:
                await tab.wait_for_function(_IS_SENT)
        await check_shown(tabs, (await hub.read("chat:1", "a"))[0].text)
        texts = [one.text for one in (await hub.history("chat:1")).messages if one.id != "a"]
        assert sorted(texts) == sent
        for tab in tabs:
            await tab.wait_for_function("count => channel.getSnapshot().all.length === count", arg=1 + len(sent))
        assert sorted([await transport(tab) for tab in tabs]) == sorted([name, "tab", "tab"])


@pytest.mark.parametrize("name", transports("sse"))
async def test_tabs_lose_nothing_over_ten_seconds_offline_and_a_restart_of_the_server(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    def new() -> Hub:
        return verified(url=f"sqlite:///{tmp_path}/test.db")

    async with FaultProxy("127.0.0.1", 0) as proxy:
        context = await window_of(browser)
        await context.clock.install()  # time passes, and the test can move it
        hub = new()
        async with app_with(hub) as port:
            proxy.upstream = ("127.0.0.1", port)
            tabs = [await open_tab(context, proxy.port, transport=name) for _ in range(3)]
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


async def test_page_that_sleeps_while_its_network_vanishes_connects_again_when_it_wakes(browser: Browser) -> None:
    hub = verified()
    async with app_with(hub) as port, FaultProxy("127.0.0.1", port) as proxy:
        context = await window_of(browser)
        await context.clock.install()
        tab = await open_tab(context, proxy.port)
        async with hub.message("chat:1", id="a") as message:
            await message.append("before ")
            await tab.wait_for_function("() => text('a') === 'before '")
            proxy.black_hole()  # neither side is notified
            await message.append("and after")
            await context.clock.fast_forward(3_600_000)  # an hour in which no timer of the page ran
            await tab.evaluate("dispatchEvent(new Event('visibilitychange'))")
            await tab.wait_for_function("() => channel.state === 'reconnecting'")
            proxy.resume()
            await context.clock.fast_forward(15_000)  # the longest back-off
            await check_shown([tab], "before and after")
        await context.close()


@pytest.mark.parametrize("name", transports("websocket"))
async def test_right_that_is_withdrawn_closes_the_channel_in_each_tab_and_keeps_what_it_shows(
    browser: Browser, name: str
) -> None:
    hub = verified()
    lost = jwt.encode(
        {"sub": "ada", "aud": "chat", "exp": time.time() + 600, "tenuto": {"other": ["subscribe"]}}, SECRET, "HS256"
    )
    async with app_with(hub) as port:
        context = await window_of(browser)
        tabs = [await open_tab(context, port, transport=name) for _ in range(2)]
        await hub.create("chat:1", id="a", text="kept")
        await check_shown(tabs, "kept")
        for tab in tabs:
            # The app's next token grants less.
            await tab.evaluate("lost => { client.token.source = () => lost; client.token.renew('expired') }", lost)
        await tabs[0].evaluate("client.suspend(), client.resume()")  # a new connection, and the other tab leads
        for tab in tabs:
            await tab.wait_for_function("() => channel.state === 'closed'")
            assert await tab.evaluate("channel.getSnapshot().error.code") == "forbidden"
            assert await tab.evaluate("text('a')") == "kept"
            assert await tab.evaluate("channel.getSnapshot().status.error.code") == "forbidden"


# Wrong frames of a server or a proxy, between a real hub and a real page.
_FRAMES = {
    "no JSON": "{not json",
    "an unknown frame": '{"type": "weather", "channel": "chat:1"}',
    "an unknown event": '{"type": "events", "channel": "chat:1", "events": [{"type": "message.sing", "id": "a"}]}',
    "an append beyond a gap": '{"type": "events", "channel": "chat:1", "cursor": "x:9", "events": [{"type":'
    ' "message.append", "id": "a", "serial": 999, "part": 0, "at": 500, "text": "lost"}]}',
    "null": "null",
    "a message of a newer protocol": '{"type": "events", "channel": "chat:1", "events": [{"type": "message.create",'
    ' "serial": 99, "mood": 1, "message": {"id": "n", "role": "robot", "status": "dreaming", "created": 99,'
    ' "version": 99, "parts": [{"type": "hologram"}], "mood": 1}}]}',
}


@pytest.mark.parametrize("frame", _FRAMES if IS_LONG else ["an append beyond a gap", "a message of a newer protocol"])
async def test_frame_that_is_damaged_or_unknown_leaves_the_view_true(browser: Browser, frame: str) -> None:
    hub = verified()
    is_repeated = frame in ("no JSON", "null", "an append beyond a gap")
    async with app_with(hub) as port:
        context = await window_of(browser)
        sockets: list[WebSocketRoute] = []

        def connect(socket: WebSocketRoute) -> None:
            sockets.append(socket)
            socket.connect_to_server()

        await context.route_web_socket("**/v1/ws*", connect)
        tabs = [await open_tab(context, port) for _ in range(2)]
        async with hub.message("chat:1", id="a") as message:
            await message.append("one ")
            await check_shown(tabs, "one ")
            sockets[-1].send(_FRAMES[frame])
            if is_repeated:  # first, because text of the server could overtake the frame of the test
                async with asyncio.timeout(PATIENCE_S):
                    while len(sockets) == 1:  # noqa: ASYNC110 - no event is set for it
                        await asyncio.sleep(0.005)
            await message.append("two ")
            await check_shown(tabs, "one two ")
            await message.append("three")
            await check_shown(tabs, "one two three")
        assert (len(sockets) > 1) == is_repeated


@pytest.mark.parametrize("years", [-20, 20] if IS_LONG else [20])
async def test_wrong_clock_of_the_device_changes_nothing(browser: Browser, years: int) -> None:
    hub = verified()
    async with app_with(hub) as port:
        context = await window_of(browser)
        await context.add_init_script(f"""
          const now = Date.now
          window.moved = {years} * 31_557_600_000
          Date.now = () => now() + window.moved
          window.calls = []
        """)
        tabs = []
        for _ in range(2):
            tab = await context.new_page()
            await tab.goto(f"http://localhost:{port}/")
            await tab.evaluate(f"token => ({_FOLLOW})([{{ token: (why) => (calls.push(why), token) }}])", token())
            await tab.wait_for_function("() => channel.state === 'live'")
            tabs.append(tab)
        async with hub.message("chat:1", id="a") as message:
            await message.append("one ")
            await check_shown(tabs, "one ")
            for tab in tabs:
                await tab.evaluate("window.moved = 0")  # the device corrects its clock
            await message.append("two ")
            await check_shown(tabs, "one two ")
            assert await tabs[0].evaluate("calls") == ["start"]  # the callback was not called to renew the token
            await tabs[0].close()
            await tabs[1].wait_for_function("() => client.status.transport === 'websocket'")
            await message.append("three")
            await check_shown(tabs[1:], "one two three")


@pytest.mark.parametrize("is_shown", [True, False])
async def test_message_that_one_tab_discards_is_sent_by_no_tab(browser: Browser, is_shown: bool) -> None:
    """Another tab has the message from the storage, or the leader has taken it over and waits for the hub."""
    hub = verified(allowed_origins=["*"])
    own = {"identity": "ada"} if is_shown else {}
    async with app_with(hub) as port, FaultProxy("127.0.0.1", port) as proxy:
        url = f"http://localhost:{proxy.port}/tenuto"  # only the connection can be cut, not the pages
        context = await window_of(browser)
        await context.clock.install()
        tabs = [await open_tab(context, port, url=url, **own) for _ in range(2)]
        leader, follower = tabs
        assert await transport(follower) == "tab"
        proxy.black_hole()
        code = "void (window.sent = channel.send({ id: 'q', text: 'secret' }).catch((error) => error.code))"
        await follower.evaluate(code)
        await leader.wait_for_function(
            "() => [...client.requests.pending.values()].some(({ frame }) => frame.id === 'q')"
        )
        if is_shown:
            tabs.append(await context.new_page())
            await tabs[-1].goto(f"http://localhost:{port}/")
            await follow(tabs[-1], url=url, **own)
            await tabs[-1].wait_for_function("() => text('q') === 'secret'")
        await follower.evaluate("channel.discard('q')")
        assert await follower.evaluate("sent") == "discarded"
        await leader.wait_for_function("() => client.requests.pending.size === 0")
        for tab in tabs:
            await tab.wait_for_function("() => text('q') === ''")
        proxy.resume()
        await proxy.cut()
        await follower.evaluate("void channel.send({ id: 'p', text: 'sent' })")
        await context.clock.fast_forward(15_000)  # the longest back-off
        for number, tab in enumerate(tabs):
            await tab.wait_for_function("() => text('p') === 'sent'")
            await tab.wait_for_function(_IS_SENT)
            if number:
                await tab.reload()
                await follow(tab, url=url, **own)
                await tab.wait_for_function("() => text('p') === 'sent'")
                assert await tab.evaluate("text('q')") == ""
        assert [one.text for one in (await hub.history("chat:1")).messages] == ["sent"]
        await context.close()
