"""The cache of views in Chromium: a reload begins with the last view, and no other person sees it.

Layer: tests.
"""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Browser, Page

from tests.browser.tab import script
from tests.browser.test_client import app_with, follow, opened, page_at, token, verified
from tests.conftest import in_long, rest_in_long

SECRET_TEXT = "canary of ada"

_STORED = script("follow", "stored")
# As when the page enters the back/forward cache and returns: the views are written at its end.
_HIDE = "dispatchEvent(new Event('pagehide')); dispatchEvent(new Event('pageshow'))"
_IS_LIVE = "() => window.channel?.state === 'live'"


async def until_stored(window: Page, text: str) -> None:
    """Let the page write its views as at its end, and wait until the browser has `text`."""
    await window.evaluate(_HIDE)
    await window.wait_for_function(f"async text => (await ({_STORED})()).includes(text)", arg=text)


async def stored(window: Page) -> str:
    """Return all that the browser keeps for the page."""
    found: str = await window.evaluate(_STORED)
    return found


async def test_reload_begins_with_the_cached_view_and_fetches_only_the_difference(browser: Browser) -> None:
    hub, text = verified(), "word " * 20_000
    async with opened(browser, hub) as (_, window):
        async with hub.message("chat:1", id="a") as message:
            await message.append(text)
            await follow(window, token=token())
            await window.wait_for_function("length => window.snapshots?.at(-1)?.text.length === length", arg=len(text))
            await window.wait_for_function(_IS_LIVE)
            first_length = await window.evaluate("window.channel.stats.characters")
            await until_stored(window, text)
            await window.reload()
            await message.append("and more")
            await follow(window, token=token())
            await window.wait_for_function(_IS_LIVE)
            first, *_, last = await window.evaluate("window.snapshots")
        assert (first["text"], first["isFromCache"], first["state"]) == (text, True, "connecting")
        assert (last["text"], last["isFromCache"], last["state"]) == (text + "and more", False, "live")
        caught_up = await window.evaluate("window.channel.getSnapshot().lastCatchUp")
        assert caught_up["points"] == len("and more")
        assert await window.evaluate("window.channel.stats.characters") < first_length / 50


async def test_view_of_one_person_is_neither_shown_to_nor_kept_with_the_next(browser: Browser) -> None:
    async with opened(browser) as (_, window):
        await follow(window, token=token())
        await window.evaluate(f"window.channel.send('{SECRET_TEXT}')")
        await window.wait_for_function("text => window.snapshots.at(-1)?.text === text", arg=SECRET_TEXT)
        await window.wait_for_function(_IS_LIVE)
        await until_stored(window, SECRET_TEXT)
        await window.reload()
        await follow(window, token=token(sub="bob"))
        await window.wait_for_function(_IS_LIVE)
        # Bob may read the channel, so the server shows him the message, but no frame before that did.
        first = (await window.evaluate("window.snapshots"))[0]
        assert not first["isFromCache"]
        assert not any(one["isFromCache"] for one in await window.evaluate("window.snapshots"))
        await until_stored(window, '"bob"')
        await window.evaluate("window.client.signOut()")
        kept = await stored(window)
        assert '"bob"' not in kept
        assert SECRET_TEXT in kept
        await window.reload()
        await follow(window, token=token())
        await window.wait_for_function(_IS_LIVE)
        assert (await window.evaluate("window.snapshots"))[0]["isFromCache"]
        await window.evaluate("window.client.signOut()")
        assert SECRET_TEXT not in await stored(window)


async def test_identity_that_the_server_does_not_confirm_loses_its_views_at_once(browser: Browser) -> None:
    async with opened(browser) as (hub, window):
        await follow(window, token=token(), identity="ada")
        await window.wait_for_function(_IS_LIVE)
        async with hub.message("chat:1", id="a") as message:
            await message.append(SECRET_TEXT)
            await window.wait_for_function("text => window.snapshots.at(-1)?.text === text", arg=SECRET_TEXT)
            await until_stored(window, SECRET_TEXT)
        await window.reload()
        await hub.delete("chat:1", "a")
        await follow(window, token=token(sub="bob"), identity="ada")
        await window.wait_for_function(_IS_LIVE)
        shown = await window.evaluate("window.snapshots")
        assert [shown[0]["text"], shown[-1]["text"]] == [SECRET_TEXT, ""]
        assert SECRET_TEXT not in await stored(window)
        assert len(await window.evaluate("window.warnings")) == 1


@pytest.mark.parametrize("fault", rest_in_long(["full", "newer version", "damaged", "denied", "silent"]))
async def test_storage_that_fails_costs_the_cache_and_one_warning(browser: Browser, fault: str) -> None:
    async with opened(browser) as (_, window):
        if fault == "damaged":
            await follow(window, token=token())
            await window.wait_for_function(_IS_LIVE)
            await until_stored(window, "ada")
            await window.reload()
        await window.evaluate(script("follow", "breakStorage"), fault)
        await follow(window, token=token())
        await window.wait_for_function(_IS_LIVE)
        sent = await window.evaluate("window.channel.send('hello')")
        # The reply to the request may arrive before the event, which alone changes the view that is kept.
        await window.wait_for_function("id => window.channel.view.knows(id)", arg=sent["id"])
        await window.evaluate(_HIDE)
        await window.wait_for_function("() => window.warnings.length")
        # The view is kept in memory: the channel begins with it when it is opened again.
        again = await window.evaluate(
            "() => { window.channel.close(); return window.client.channel('chat:1').getSnapshot() }"
        )
        assert [one["text"] for one in again["messages"]] == ["hello"]
        await window.evaluate(_HIDE)
        warnings = await window.evaluate("window.warnings")
        assert len(warnings) == 1
        assert "cache" in warnings[0]


@in_long  # some twelve mebibytes
async def test_five_mebibytes_are_kept_of_larger_views(browser: Browser) -> None:
    hub = verified()
    async with app_with(hub) as port:
        for number in range(8):
            await hub.create(f"chat:more{number}", id="a", text="x" * 1_000_000)
        window = await page_at(browser, port)
        await follow(window, token=token())
        for number in range(8):
            await window.evaluate(f"""() => new Promise((resolve) => {{
              const channel = window.client.channel("chat:more{number}")
              channel.subscribe(() => channel.state === "live" && resolve())
            }})""")
            await window.evaluate(_HIDE)
        await window.wait_for_function(f"async () => (await ({_STORED})()).includes('chat:more7')")
        kept = json.loads(await stored(window))[0][1::2]
        assert 4 * 1_048_576 < sum(map(len, kept)) <= 5 * 1_048_576
