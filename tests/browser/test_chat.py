"""The chat element in Chromium: a real hub with an agent, under a strict policy.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from holdfast import Hub
from tests.browser.test_client import page_at
from tests.browser.test_markdown import POLICY
from tests.transports.conftest import new_hub, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser

_INLINE = '<holdfast-chat channel="chat:1" heading="Ask the docs"></holdfast-chat>'
_FLOATING = '<holdfast-chat channel="chat:1" heading="Ask the docs" launcher></holdfast-chat>'


class Scene:
    """A page with the element, and the hub behind it. The agent's answer grows when the test says so."""

    def __init__(self, page: Page, hub: Hub, pieces: asyncio.Queue[str | None]) -> None:
        self.page = page
        self.hub = hub
        self.pieces = pieces
        self.violations: list[str] = []

    async def ask(self, text: str) -> None:
        await self.page.fill("textarea", text)
        await self.page.press("textarea", "Enter")

    async def until(self, text: str) -> None:
        await self.page.get_by_text(text).first.wait_for()


@asynccontextmanager
async def scene(browser: Browser, tag: str = _INLINE) -> AsyncIterator[Scene]:
    hub = new_hub()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    @hub.agent("chat:*", name="Guide")
    async def guide(turn: Any) -> None:
        async with turn.reply() as message:
            while (piece := await pieces.get()) is not None:
                if piece == "ask":
                    reply = await turn.ask("approve", {"question": "Delete 3 files?", "arguments": "drafts/*"})
                    piece = "Deleted." if reply.ok else "Kept."
                await message.append(piece)

    async def document(request: object) -> HTMLResponse:
        page = f"<!doctype html><title>Chat</title><script type=module src=/holdfast/web/chat.js></script>{tag}"
        return HTMLResponse(page, headers={"content-security-policy": POLICY})

    app = Starlette(routes=[Route("/", document), Mount("/holdfast", hub)])
    async with serving(hub, app) as served:
        page = await page_at(browser, served.port)
        here = Scene(page, hub, pieces)
        page.on("console", lambda message: here.violations.append(message.text) if "Policy" in message.text else None)
        yield here
        assert here.violations == []
        pieces.put_nowait(None)
        await page.goto("about:blank")


async def test_an_answer_grows_survives_a_reload_and_is_formatted(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("What is a cursor?")
        for piece in ("It is **a po", "sition** in `chat:1`.\n\n```py\nx = 1\n"):
            here.pieces.put_nowait(piece)
        await here.until("a position")
        await here.page.reload()
        await here.until("a position")
        here.pieces.put_nowait("```\n\nThe end")
        here.pieces.put_nowait(None)
        await here.until("The end")
        assert await here.page.locator(".assistant strong").all_inner_texts() == ["a position"]
        assert await here.page.locator(".assistant pre code").all_inner_texts() == ["x = 1"]
        assert await here.page.locator("article").count() == 2


async def test_escape_stops_the_answer_and_the_buttons_change(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Count")
        here.pieces.put_nowait("one ")
        await here.until("one")
        await here.page.locator(".stop").wait_for()
        await here.page.press("textarea", "Escape")
        await here.until("Stopped")
        await here.page.locator(".stop").wait_for(state="hidden")


async def test_steering_sends_the_text_to_the_running_answer(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Count")
        here.pieces.put_nowait("one ")
        await here.until("one")
        await here.page.get_by_text("Steer this answer").click()
        await here.ask("In French")
        await here.page.wait_for_function(
            "() => document.querySelector('holdfast-chat').shadowRoot.querySelector('textarea').value === ''"
        )
        assert await here.page.locator(".user").count() == 1


async def test_an_approval_is_a_card_with_two_buttons_and_then_its_reply(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Delete the drafts")
        here.pieces.put_nowait("ask")
        await here.until("Delete 3 files?")
        await here.page.locator(".approval").get_by_text("Don’t allow").click()
        here.pieces.put_nowait(None)
        await here.until("Kept.")
        assert await here.page.locator(".approval button").count() == 0


async def test_enter_of_an_input_method_does_not_send_and_a_draft_survives_a_reload(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.page.locator("textarea").focus()
        session = await here.page.context.new_cdp_session(here.page)
        await session.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
        await here.page.press("textarea", "Enter")
        await session.send("Input.insertText", {"text": "日本"})
        await here.page.press("textarea", "Shift+Enter")
        await here.page.keyboard.type("two")
        assert await here.page.locator("article").count() == 0
        written = await here.page.input_value("textarea")
        assert "日本" in written
        await here.page.reload()
        assert await here.page.input_value("textarea") == written


async def test_the_launcher_loads_the_panel_when_it_opens_and_gets_the_focus_back(browser: Browser) -> None:
    async with scene(browser, _FLOATING) as here:
        loaded: list[str] = []
        here.page.on("request", lambda request: loaded.append(request.url))
        await here.page.reload()
        await here.page.locator(".launcher").wait_for()
        assert not [url for url in loaded if "client.js" in url or "markdown" in url]
        await here.page.locator(".launcher").click()
        await here.page.locator("textarea").wait_for()
        assert await here.page.evaluate("document.activeElement.shadowRoot.activeElement.localName") == "textarea"
        await here.page.keyboard.press("Escape")
        await here.page.locator("textarea").wait_for(state="hidden")
        focused = "document.activeElement.shadowRoot.activeElement.className"
        assert await here.page.evaluate(focused) == "launcher"


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<holdfast-chat></holdfast-chat>", "needs the attribute channel"),
        ('<holdfast-chat channel="chat:1" theme="blue"></holdfast-chat>', 'auto, light, dark, got "blue"'),
        ('<holdfast-chat channel="chat:1" images="all"></holdfast-chat>', 'same-origin or absent, got "all"'),
        ('<holdfast-chat channel="chat:1" url="http://[bad"></holdfast-chat>', 'got "http://[bad"'),
    ],
)
async def test_a_mistake_in_the_attributes_is_shown_in_place_of_the_chat(
    browser: Browser, tag: str, words: str
) -> None:
    async with scene(browser, tag) as here:
        await here.until(words)
        assert await here.page.locator("textarea").count() == 0


async def test_an_edited_question_is_a_branch_with_its_number(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("First version")
        here.pieces.put_nowait("One.")
        here.pieces.put_nowait(None)
        await here.until("One.")
        await here.page.locator(".user").hover()
        await here.page.locator(".user").get_by_text("Edit", exact=True).click()
        await here.page.fill(".editor", "Second version")
        await here.page.get_by_text("Save", exact=True).click()
        await here.until("Second version")
        await here.until("2/2")
        here.pieces.put_nowait("Two.")
        here.pieces.put_nowait(None)
        await here.until("Two.")
        await here.page.locator(".user").get_by_label("Previous version").click()
        await here.until("First version")
        await here.until("One.")
