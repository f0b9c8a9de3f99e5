"""Tabs of one identity share a connection, in Chromium: seven tabs, and leaders that end in each way.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tenuto.app import Hub
from tests.browser.tab import ARGUMENTS, TIMEOUT_MS, chromium_path, script
from tests.browser.test_cache import stored
from tests.browser.test_client import app_with, follow, token, until_shown, verified
from tests.conftest import rest_in_long
from tests.transports.conftest import PATIENCE_S

TAKEOVER_S = 2.0
LATE = 4  # a takeover has this number of steps, each of which a busy machine may delay as long as the tabs' timers


def token_for(sub: str, channel: str) -> str:
    """Return a token for one channel only."""
    return token(sub=sub, channels=[channel])


async def window_of(browser: Browser) -> BrowserContext:
    context = await browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    return context


@asynccontextmanager
async def served_window(browser: Browser) -> AsyncIterator[tuple[Hub, int, BrowserContext]]:
    """Serve a hub; yield it, its port, and a profile of the browser."""
    hub = verified()
    async with app_with(hub) as port:
        yield hub, port, await window_of(browser)


async def open_tab(context: BrowserContext, port: int, *, channel: str = "chat:1", **options: Any) -> Page:
    tab = await context.new_page()
    await tab.goto(f"http://localhost:{port}/")
    await follow(tab, channel, **{"token": token(), **options})
    await tab.wait_for_function("() => window.channel.state === 'live'")
    return tab


async def transport(tab: Page) -> str:
    found: str = await tab.evaluate("window.client.status.transport")
    return found


async def test_seven_tabs_over_one_stream_are_live(browser: Browser) -> None:
    async with served_window(browser) as (hub, port, context):  # HTTP/1.1: Chromium opens at most six connections
        async with hub.message("chat:1", id="a") as message:
            await message.append("one ")
            tabs = [await open_tab(context, port, transport="sse") for _ in range(7)]
            await message.append("two")
            for tab in tabs:
                await until_shown(tab, "one two")
        assert sorted([await transport(tab) for tab in tabs]) == ["sse"] + ["tab"] * 6
        # A follower sends through the leader, and all tabs show the message once.
        await tabs[-1].evaluate("window.channel.send('thanks')")
        for tab in tabs:
            await until_shown(tab, "one two|thanks")


async def until_removed(tab: Page, text: str) -> None:
    """Wait until the browser keeps `text` no more: a tab that writes its view as a sign-out comes deletes it then."""
    async with asyncio.timeout(PATIENCE_S):
        while text in await stored(tab):
            pass


@pytest.mark.parametrize("end", ["closed", "crashed"])
async def test_another_tab_leads_within_two_seconds_and_no_text_is_lost_or_doubled(browser: Browser, end: str) -> None:
    async with served_window(browser) as (hub, port, context), hub.message("chat:1", id="a") as message:
        await message.append("one ")
        leader, *others = [await open_tab(context, port) for _ in range(3)]
        assert [await transport(tab) for tab in (leader, *others)] == ["websocket", "tab", "tab"]
        await message.append("two ")
        for tab in others:
            await until_shown(tab, "one two ")
            assert await tab.evaluate("document.visibilityState") == "visible"  # so that its timers run on time
            await tab.evaluate(script("follow", "noteDelays"))
        crashing: set[asyncio.Task[Any]] = set()
        session = await context.new_cdp_session(leader)
        if end == "closed":
            await leader.close()
        else:  # a task, because the crash sends no response
            crashing.add(asyncio.create_task(session.send("Page.crash")))
        begun_s = time.time()  # the clock of the pages, too, so that the delays of this process do not count
        await message.append("three ")
        leads = [
            asyncio.create_task(tab.wait_for_function("() => window.client.status.transport !== 'tab'"))
            for tab in others
        ]
        done, _ = await asyncio.wait(leads, return_when=asyncio.FIRST_COMPLETED)
        await message.append("four")
        for tab in others:
            await until_shown(tab, "one two three four")
        [took_s] = [at / 1000 - begun_s for tab in others if (at := await tab.evaluate("window.ledAt")) is not None]
        late_s = max([await tab.evaluate("window.lateMs") for tab in others]) / 1000
        assert took_s < TAKEOVER_S + LATE * late_s, (took_s, late_s)
        assert len(done) == 1
        assert sorted([await transport(tab) for tab in others]) == ["tab", "websocket"]
        for task in crashing | set(leads):
            task.cancel()


async def test_two_people_on_one_browser_see_nothing_of_each_other(browser: Browser) -> None:
    async with served_window(browser) as (_, port, context):
        await context.add_init_script(f"({script('follow', 'listen')})()")
        ada = [await open_tab(context, port, channel="chat:ada", token=token_for("ada", "chat:ada")) for _ in range(2)]
        bob = [await open_tab(context, port, channel="chat:bob", token=token_for("bob", "chat:bob")) for _ in range(2)]
        await ada[1].evaluate("window.channel.send('canary of ada')")
        await bob[1].evaluate("window.channel.send('canary of bob')")
        for mine, own, other in ((ada, "ada", "bob"), (bob, "bob", "ada")):
            for tab in mine:
                await until_shown(tab, f"canary of {own}")
            assert [await transport(tab) for tab in mine] == ["websocket", "tab"]
            received = [await tab.evaluate("window.received.join()") for tab in mine]
            assert f"canary of {own}" in "".join(received)
            assert not any(f"canary of {other}" in text or f"chat:{other}" in text for text in received)
        await bob[0].evaluate("window.client.signOut()")
        await bob[1].wait_for_function("() => window.client.status.state === 'closed'")  # the other tab is notified
        await until_removed(bob[0], "canary of bob")
        assert [await tab.evaluate("window.client.status.state") for tab in ada] == ["live", "live"]


async def test_tab_with_rights_that_the_leader_lacks_connects_alone(browser: Browser) -> None:
    async with served_window(browser) as (_, port, context):
        first = await open_tab(context, port, channel="chat:1", token=token_for("ada", "chat:1"))
        second = await open_tab(context, port, channel="chat:2", token=token_for("ada", "chat:2"))
        assert [await transport(tab) for tab in (first, second)] == ["websocket", "websocket"]


_DENY = "throw new DOMException('denied', 'SecurityError')"


_MISSING = [
    f"LockManager.prototype.request = async () => {{ {_DENY} }}",
    "delete window.BroadcastChannel",
    "delete Navigator.prototype.locks",
    f"window.BroadcastChannel = class {{ constructor() {{ {_DENY} }} }}",
]


@pytest.mark.parametrize("missing", rest_in_long(_MISSING))
async def test_browser_that_lacks_or_refuses_locks_or_channels_connects_each_tab_alone(
    browser: Browser, missing: str
) -> None:
    async with served_window(browser) as (_, port, context):
        await context.add_init_script(missing)
        tabs = [await open_tab(context, port) for _ in range(2)]
        assert [await transport(tab) for tab in tabs] == ["websocket", "websocket"]
        await tabs[0].evaluate("window.channel.send('canary of ada')")
        await tabs[0].evaluate("window.client.signOut()")
        await until_removed(tabs[0], "canary of ada")


async def test_member_is_present_while_any_of_its_tabs_is(browser: Browser) -> None:
    hub = verified()
    count = "count => window.channel.getSnapshot().presence.count === count"
    async with app_with(hub) as port:
        context, other = await window_of(browser), await window_of(browser)
        leader, follower = [await open_tab(context, port, token=token_for("ada", "chat:1")) for _ in range(2)]
        watcher = await open_tab(other, port, token=token_for("bob", "chat:1"))
        await leader.evaluate("window.channel.enter({ name: 'Ada' })")
        await follower.evaluate("window.channel.enter({ name: 'Ada' })")
        await watcher.wait_for_function(count, arg=1)
        await leader.evaluate("window.channel.leave()")
        await watcher.evaluate("window.channel.enter()")
        await watcher.wait_for_function(count, arg=2)
        await follower.close()
        await watcher.wait_for_function(count, arg=1)


@asynccontextmanager
async def caching_window() -> AsyncIterator[BrowserContext]:
    """A window of a Chromium with its back/forward cache, which Playwright switches off by default."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(), args=list(ARGUMENTS), ignore_default_args=["--disable-back-forward-cache"]
        )
        yield await window_of(browser)
        await browser.close()


async def test_page_that_returns_from_the_back_forward_cache_is_closed_after_a_sign_out() -> None:
    for _ in range(3):  # the browser may discard a page of the cache: on a busy machine one in a hundred
        async with caching_window() as context, app_with(verified()) as port:
            first, second = [await open_tab(context, port, identity="ada") for _ in range(2)]
            event = "new Promise((resolve) => addEventListener('pageshow', resolve))"
            await first.evaluate(f"void (window.returned = {event})")
            await first.goto(first.url + "?elsewhere")  # the other tabs do not wait for it to write its view
            await second.evaluate("client.signOut()")
            third = await open_tab(context, port, identity="ada")  # the person signs in again
            await first.go_back(wait_until="commit")  # the page loads nothing when it returns
            if not await first.evaluate("window.returned?.then(({ persisted }) => persisted)"):
                continue
            await first.wait_for_function("() => client.state === 'closed'")
            await third.evaluate("channel.send('again')")
            await until_shown(third, "again")
            assert await third.evaluate("client.state") == "live"
            return
    raise AssertionError("the browser has discarded the page three times")
