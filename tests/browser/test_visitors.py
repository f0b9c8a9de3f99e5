"""The chat element without `channel` in Chromium, on a hub with `visitors()`: each browser has chats of its own.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Frame, Locator, Page, async_playwright, expect

from tenuto import Hub, visitors
from tests.browser.tab import ARGUMENTS, TIMEOUT_MS, chromium_path, script
from tests.browser.test_client import page_app
from tests.browser.test_markdown import POLICY, WITH_ELEMENT
from tests.transports.conftest import listening, new_hub, serving

TAG = "<tenuto-chat></tenuto-chat>"


class Site:
    """A page with the widget in two lines, and the hub behind it, whose agent answers when the test says so."""

    def __init__(self, browser: Browser, hub: Hub) -> None:
        self.browser = browser
        self.hub = hub
        self.address = ""
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def visitor(self, address: str = "", **options: Any) -> Page:
        """Open the page in a browser of its own."""
        context = await self.browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        page = await context.new_page()
        await page.goto(address or self.address)
        return page


@asynccontextmanager
async def site(browser: Browser, tag: str = TAG, hub: Hub | None = None, **limits: Any) -> AsyncIterator[Site]:
    here = Site(browser, hub or new_hub(authenticate=visitors(**limits)))

    @here.hub.agent("chat:*", name="Guide")
    async def guide(turn: Any) -> None:
        async with turn.reply() as message:
            await message.append(f"You asked: {turn.message.text}")
            await message.flush()
            await here.goes_on.wait()
            await message.append(" The end.")

    async with serving(here.hub, page_app(WITH_ELEMENT + tag, here.hub, policy=POLICY)) as served:
        here.address = f"http://localhost:{served.port}/"
        yield here
        here.goes_on.set()


async def ask(page: Page | Frame, text: str) -> None:
    await page.fill("textarea", text)
    await page.press("textarea", "Enter")


def messages(page: Page | Frame) -> Locator:
    return page.locator("article .body")


async def test_two_browsers_see_two_chats_and_each_keeps_its_own(browser: Browser) -> None:
    async with site(browser) as here:
        ann, bob = await here.visitor(), await here.visitor()
        for page, name in ((ann, "Ann"), (bob, "Bob")):
            await ask(page, f"from {name}")
            await expect(messages(page)).to_have_text([f"from {name}", f"You asked: from {name} The end."])
        for page, name in ((ann, "Ann"), (bob, "Bob")):
            await page.reload()
            await expect(messages(page)).to_have_text([f"from {name}", f"You asked: from {name} The end."])
        second_tab = await ann.context.new_page()
        await second_tab.goto(here.address)
        await expect(messages(second_tab).first).to_have_text("from Ann")
        await ann.get_by_role("button", name="New chat").click()
        await ask(ann, "anew")
        await expect(messages(ann)).to_have_count(2)
        await second_tab.reload()  # it goes on with its chat, although there is a newer one
        await expect(messages(second_tab).first).to_have_text("from Ann")


async def test_new_chat_is_empty_and_the_earlier_one_can_be_opened(browser: Browser) -> None:
    async with site(browser) as here:
        page = await here.visitor()
        await expect(page.get_by_text("Online")).to_be_visible()
        assert await page.get_by_role("button", name="New chat").is_disabled()
        await ask(page, "The first question")
        await expect(messages(page)).to_have_count(2)
        await page.get_by_role("button", name="New chat").click()
        await expect(page.get_by_text("Ask something.")).to_be_visible()
        assert await page.evaluate("document.activeElement.shadowRoot.activeElement.localName") == "textarea"
        await page.reload()  # the tab keeps the new chat, which the hub does not know yet
        await expect(page.get_by_text("Ask something.")).to_be_visible()
        await ask(page, "The second question")
        await expect(messages(page)).to_have_count(2)
        await page.get_by_label("Earlier chats").select_option(label="The first question")
        await expect(messages(page).first).to_have_text("The first question")
        await expect(page.get_by_label("Earlier chats").locator("option")).to_have_text(
            ["The second question", "The first question"]
        )
        other = await page.context.new_page()
        await other.goto(here.address)
        await expect(messages(other).first).to_have_text("The second question")


async def test_a_page_of_another_origin_keeps_a_token(browser: Browser) -> None:
    hub = new_hub(authenticate=visitors(), allowed_origins=["*"])
    async with site(browser, hub=hub) as here:
        address = here.address.replace("localhost", "127.0.0.1")
        tag = f"<script type=module src={address}tenuto/web/chat.js></script>{TAG}"
        async with listening(page_app(f"<!doctype html><title>Blog</title>{tag}")) as port:
            page = await here.visitor(f"http://localhost:{port}/")
            await ask(page, "from a blog")
            await expect(messages(page)).to_have_count(2)
            await page.reload()
            await expect(messages(page).first).to_have_text("from a blog")
            await page.evaluate("for (const key in localStorage) if (/visitor/.test(key)) localStorage[key] = 'bad'")
            await page.reload()
            await expect(page.get_by_text("Online")).to_be_visible()
            assert await messages(page).count() == 0
            await page.goto("about:blank")


async def test_a_page_in_a_frame_of_another_site_keeps_a_token(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "Default").mkdir()  # a profile that keeps storage for frames, but no `Lax` cookie
    (tmp_path / "Default/Preferences").write_text('{"profile": {"cookie_controls_mode": 0}}')
    async with (
        async_playwright() as playwright,
        site(browser) as here,
        listening(page_app(f"<iframe src={here.address}>")) as port,
    ):
        kind, path = playwright.chromium, chromium_path()
        profile = await kind.launch_persistent_context(tmp_path, executable_path=path, args=list(ARGUMENTS))
        page = profile.pages[0]
        await page.goto(f"http://127.0.0.1:{port}/")
        await ask(page.frames[1], "from a frame")
        await expect(messages(page.frames[1])).to_have_count(2)
        await page.reload()
        await expect(messages(page.frames[1]).first).to_have_text("from a frame")
        await page.goto(here.address)  # this browser gives both pages the same storage
        await expect(page.get_by_text("Online")).to_be_visible()
        assert await messages(page).count() == 0


async def test_a_hub_without_visitors_is_named_to_the_developer_only(browser: Browser) -> None:
    async with site(browser, hub=new_hub()) as here:
        page = await here.visitor("about:blank")
        async with page.expect_console_message(lambda one: one.type == "error" and "visitors()" in one.text) as named:
            await page.goto(here.address)
        assert "attribute channel" in (await named.value).text
        async with page.expect_console_message(lambda one: "not as a Tenuto server" in one.text):
            await page.evaluate("document.querySelector('tenuto-chat').url = '/wrong'")  # a server that is no hub
        await page.get_by_text("This chat does not work here. Please inform the owner of this page.").wait_for()


async def test_questions_beyond_the_limit_wait_in_view_and_are_sent_by_themselves(browser: Browser) -> None:
    async with site(browser, questions_per_minute=20) as here:
        page = await here.visitor()
        await expect(page.get_by_text("Online")).to_be_visible()
        await page.evaluate(script("chat_page", "askAtOnce"), 23)  # "q1", "q2" …, without a wait between them
        waiting = page.locator("article.user[data-status=sending]")
        await expect(waiting.get_by_text("Waiting")).to_be_visible()
        words = [f"You can ask again in {left}." for left in ("3 seconds", "2 seconds", "1 second")]
        assert await page.locator("[part=status]").inner_text() in words  # at once, not after the first attempts
        await page.fill("textarea", "a draft")
        assert await page.get_by_role("button", name="Send").is_disabled()
        await page.press("textarea", "Enter")
        await expect(page.locator("article.user .body")).to_have_text([f"q{n}" for n in range(1, 24)])
        await expect(waiting).to_have_count(0, timeout=TIMEOUT_MS)
        assert await page.input_value("textarea") == "a draft"
        (cookie,) = [one for one in await page.context.cookies() if one["httpOnly"]]
        stored = (await here.hub.history(f"chat:{cookie['value'].partition('.')[0]}", limit=100)).messages
        assert [one.text for one in reversed(stored) if one.role == "user"] == [f"q{n}" for n in range(1, 24)]


async def test_a_closed_launcher_shows_after_a_reload_that_an_answer_runs_or_has_ended(browser: Browser) -> None:
    async with site(browser, "<tenuto-chat launcher></tenuto-chat>") as here:
        page = await here.visitor()
        loaded: list[str] = []
        page.on("request", lambda request: loaded.append(request.url))
        here.goes_on.clear()
        await page.locator(".launcher").click()
        await ask(page, "What is it?")
        await expect(page.get_by_text("You asked")).to_be_visible()
        assert await page.evaluate(script("chat_page", "styled")) == [[20, 20, 56, 56], "start none normal normal"]
        await page.set_viewport_size({"width": 640, "height": 360})
        await expect(page.locator("[part=title]")).to_be_in_viewport(ratio=1)
        await page.reload()
        await expect(page.get_by_text("You asked")).to_be_visible()  # open, as it was
        await page.locator(".launcher").click()
        await page.reload()
        here.goes_on.set()
        await expect(page.locator(".badge")).to_have_text("1")
        await page.reload()
        await expect(page.locator(".badge")).to_have_text("1")
        assert await page.locator("textarea").is_hidden()
        await page.locator(".launcher").click()
        await expect(page.get_by_text("The end.")).to_be_visible()
        await page.locator(".launcher").click()
        loaded.clear()
        await page.reload()
        await page.locator(".launcher").wait_for()
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert not [url for url in loaded if "client.js" in url or "/v1/" in url]
        await page.emulate_media(media="print")
        await expect(page.locator(".launcher")).to_be_hidden()
