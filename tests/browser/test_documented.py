"""The pages of the documentation that need no build run in Chromium, from their own code blocks.

Layer: tests.

`scripts/test_npm` builds and runs the components for Vue and Svelte.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from playwright.async_api import Browser, expect

from tests.browser.test_client import page_app, page_at
from tests.interop.scene import lose
from tests.transports.conftest import new_hub, serving

DOCS = Path(__file__).parents[2] / "docs"


def block(page: str, heading: str) -> str:
    """Return the first HTML block under a heading of a documentation page."""
    section = (DOCS / page).read_text().split(f"# {heading}\n")[1]
    return str(re.findall(r"```html\n(.*?)```", section, re.DOTALL)[0])


async def test_first_page_of_the_reference_sends_and_shows_a_message(browser: Browser) -> None:
    hub = new_hub()
    async with serving(hub, page_app(block("browser.md", "The browser client"), hub)) as served:
        window = await page_at(browser, served.port)
        await expect(window.locator("body")).to_contain_text(": Hello")
        await expect(window.locator("body")).to_contain_text("(live)")
        await window.goto("about:blank")


async def test_plain_page_changes_only_the_element_of_the_changed_message(browser: Browser) -> None:
    hub = new_hub()
    async with serving(hub, page_app(block("frameworks.md", "Plain JavaScript"), hub)) as served:
        window = await page_at(browser, served.port)
        await window.fill("input", "Why?")
        await window.dblclick("button")
        await expect(window.locator("p")).to_have_text(["Why?"])
        async with hub.message("chat:1") as message:  # from its first text on the question is stored
            for text, shown, mark in (("Because", "Because", "= true"), (" it is.", "Because it is.", "")):
                await message.append(text)
                await expect(window.locator("p")).to_have_text(["Why?", shown])
                assert await window.evaluate(f"document.querySelector('p').firstChild.isKept {mark}")
        await window.goto("about:blank")


async def test_page_with_an_eventsource_shows_one_answer_to_its_end(browser: Browser) -> None:
    hub, gate = new_hub(), asyncio.Event()
    gate.set()
    async with serving(hub, page_app(block("frameworks.md", "Without the client"), hub)) as served:
        async with hub.message("chat:1", id="a1") as message:
            await lose(message, gate, {"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "Lost"})
            window = await page_at(browser, served.port, "/?id=a1")
            await expect(window.locator("pre")).to_have_text(["Hm", "Lost"])
            for text, shown in (("One, ", "One,"), ("two, ", "One, two,")):
                await message.append(text)
                await expect(window.locator("pre")).to_have_text(["", shown])
            await message.append("three.")
        await expect(window.locator("pre, #state")).to_have_text(["", "One, two, three.", "complete"])
