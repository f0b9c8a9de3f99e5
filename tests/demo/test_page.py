"""The demo's pages in a real browser, on the real server: both panes, the buttons, people, and invitations.

Layer: tests. `tests/browser` covers the client and the chat element.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser.tab import TIMEOUT_MS, script
from tests.conftest import in_long
from tests.processes import Server, serving

pytestmark = in_long  # the waits of its stories, with the pace of a model

LAN = "127.0.0.2"  # stands for an address in a network; no test listens on a real one
answer_of = script("../demo/demo_page", "answerOf")

expect.set_options(timeout=TIMEOUT_MS)


@asynccontextmanager
async def visiting(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """Open a browser profile. A script error, or a violation of the policy, in one of its pages fails the test."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
    yield context
    await context.close()
    assert errors == []


async def open_page(context: BrowserContext, server: Server, channel: str = "", path: str = "/") -> Page:
    page = await context.new_page()
    query = f"?channel={channel}" if channel else ""
    await page.goto(f"http://{server.host}:{server.port}{path}{query}")
    await expect(page.locator("#tenuto")).to_have_attribute("data-state", "live")
    return page


async def ask(page: Page, length: int = 80) -> str:
    """Ask the suggested question; return the answer's text once it has `length` characters."""
    await page.click("#ask button")
    return await until_length(page, length)


async def until_length(page: Page, length: int) -> str:
    await page.wait_for_function(f"length => ({answer_of})().answer?.text.length >= length", arg=length)
    return str((await page.evaluate(f"({answer_of})()"))["answer"]["text"])


def tile(page: Page, name: str) -> Any:
    return expect(page.locator(f"#do-{name}"))


async def counts(page: Page, pane: str) -> list[int]:
    """Return the line under a pane: breaks, lost characters, calls of the model."""
    return [int(text.replace(",", "")) for text in await page.locator(f"#{pane}-counts b").all_inner_texts()]


async def test_a_reload_loses_the_plain_stream_and_costs_tenuto_nothing(browser: Browser, shared: Server) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared)
        assert await page.input_value("#text") == "What happens when I press F5?"
        await expect(page.locator("textarea")).to_be_hidden()  # nothing competes with the question above
        before = await ask(page)
        await page.wait_for_function("() => document.querySelector('#plain .answer').innerText.length > 60")
        await expect(page.locator(".assistant .markdown")).to_contain_text(re.compile(r"[\s\S]{50}"))  # it is drawn
        plain = await page.inner_text("#plain .answer")
        assert plain[:50] == (await page.inner_text(".assistant .markdown"))[:50]
        await page.click("#do-reload")
        await tile(page, "reload").to_have_attribute("data-state", "ok")
        await tile(page, "reload").to_contain_text(re.compile(r"[\d,]+ characters in 1 event, \d+ ms"))
        await expect(page.locator(".loss")).to_contain_text(re.compile(r"\d+ characters lost on your reload"))
        await expect(page.locator(".hairline")).to_contain_text("You reloaded here.")
        after = await until_length(page, len(before) + 40)
        assert after.startswith(before)
        breaks, lost, calls = await counts(page, "plain")
        assert (breaks, calls) == (1, 1)
        assert lost >= 60
        assert await counts(page, "tenuto") == [1, 0, 1]

        await page.click("#again")
        await page.wait_for_function("() => document.querySelector('#plain .answer').innerText.length > 20")
        assert [*(await counts(page, "plain"))[::2], *await counts(page, "tenuto")] == [1, 2, 1, 0, 1]


async def test_another_window_sees_the_same_text_and_may_steer_and_stop_it_and_was_never_sent_the_plain_stream(
    browser: Browser, shared: Server
) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared)
        await ask(page)
        async with context.expect_page() as opened:
            await page.click("#do-window")
        other = await opened.value
        await tile(page, "window").to_have_attribute("data-state", "ok")
        name = await other.locator("#people li").first.get_attribute("title")
        await tile(page, "window").to_contain_text(f"{name} sees the same text")
        await expect(page.locator("#people li")).to_have_count(2)
        await expect(other.locator(".loss")).to_contain_text("This window was never sent the stream.")
        await other.fill("textarea", "Hm")
        await expect(page.locator(".status")).to_have_text(re.compile(".+ is typing…"))
        await other.get_by_role("button", name="Steer this answer").click()
        await other.fill("textarea", "And what is an epoch?")
        await other.press("textarea", "Enter")
        await expect(page.locator(".assistant")).to_contain_text("says: And what is an epoch?")
        assert await page.locator(".user").count() == 1
        await other.click(".stop")
        await expect(page.locator(".assistant .state")).to_have_text("Stopped")


async def test_a_name_is_text(browser: Browser, shared: Server, channel: str) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, f"{channel}&as=%3Cimg src=x onerror=alert(1)%3E 付")
        other = await open_page(context, shared, channel)
        name = other.locator("#people li").last
        await expect(name).to_have_attribute("title", "<img src=x onerror=alert(1)> 付")
        assert await page.locator("#people img").count() + await other.locator("#people img").count() == 0


async def test_a_guest_comes_with_a_link_that_works_once(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving("demo", tmp_path_factory.mktemp("lan"), "--lan", host=LAN) as server:
        server.until(lambda: "#join=" in server.output)
        owner_link = re.findall(r"http://\S+#join=[\w-]+", server.output)[0]
        async with visiting(browser) as owners, visiting(browser) as guests, visiting(browser) as strangers:
            owner, guest, stranger = [await context.new_page() for context in (owners, guests, strangers)]
            await owner.goto(owner_link)
            await expect(owner.locator("#tenuto")).to_have_attribute("data-state", "live")
            assert "join" not in owner.url
            before = await ask(owner)
            await owner.click("#open-invite")
            await expect(owner.locator("#qr path")).to_have_attribute("d", re.compile(r"^(M\d+ \d+h1v1h-1z)+$"))
            link = await owner.input_value("#invite-link")
            await guest.goto(link)
            assert (await until_length(guest, len(before))).startswith(before)
            assert "join" not in guest.url
            await tile(owner, "window").to_have_attribute("data-state", "ok")
            await expect(owner.locator("#invite-link")).not_to_have_value(link)
            await stranger.goto(link)
            await expect(stranger.locator("#refused")).to_contain_text("This invitation was used")
            await guest.click("#do-kill")  # the next server knows both of them
            await tile(guest, "kill").to_have_attribute("data-state", "ok")
            await guest.reload()
            await until_length(guest, len(before))
            await tile(guest, "reload").to_have_attribute("data-state", "ok")
            for page in (guest, stranger):
                await page.goto(f"http://{server.host}:{server.port}/one-tag")
                await page.click("tenuto-chat .launcher")
            await expect(guest.get_by_text("Ask something.")).to_be_visible()
            await expect(stranger.get_by_text("You are signed out.")).to_be_visible()
            await expect(stranger.locator("textarea")).to_have_count(0)


async def test_the_page_one_tag_is_a_post_with_the_tag_that_it_shows(browser: Browser, shared: Server) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        response = await page.goto(f"http://127.0.0.1:{shared.port}/one-tag")
        assert response is not None
        source = await response.text()
        for line in (await page.inner_text("#code")).split("\n"):
            assert f"\n    {line}\n" in source
        await page.click("tenuto-chat .launcher")
        await page.fill("textarea", "What is a cursor?")
        await page.press("textarea", "Enter")
        await expect(page.locator("tenuto-chat .assistant")).to_contain_text("A cursor says")
        await page.reload()
        await expect(page.locator("tenuto-chat .assistant")).to_contain_text("A cursor says")
        async with visiting(browser) as others:
            other = await others.new_page()
            await other.goto(page.url)
            await other.click("tenuto-chat .launcher")
            await expect(other.get_by_text("Ask something.")).to_be_visible()  # a chat of its own
        await page.click(".stop")
