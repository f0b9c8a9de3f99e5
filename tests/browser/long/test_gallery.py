"""All states of the chat element: axe finds nothing serious, and narrow windows and large text cut nothing off.

Layer: tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.browser.gallery import STATES, open_gallery
from tests.browser.tab import script

FINDINGS = script("looks", "findings")
_CUT = script("looks", "cut")
AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", STATES)
async def test_axe_finds_nothing_serious(browser: Browser, address: str, name: str, theme: str) -> None:
    page = await open_gallery(browser, address, f"state={name}&theme={theme}", bypass_csp=True)
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


async def test_axe_finds_nothing_serious_where_both_themes_are_on_one_page(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, bypass_csp=True)
    await page.evaluate("""() => document.querySelectorAll("tenuto-chat:not([theme=blue])").forEach((chat, n) => {
      chat.setAttribute("theme", n % 2 ? "dark" : "light")
    })""")
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


@pytest.mark.parametrize("width", [320, 1200])
async def test_nothing_is_cut_off(browser: Browser, address: str, width: int) -> None:
    page = await open_gallery(browser, address, viewport={"width": width, "height": 800})
    cut = await page.evaluate(_CUT)
    assert cut == [], cut
    await page.evaluate("document.querySelectorAll('tenuto-chat').forEach((chat) => chat.classList.add('large'))")
    cut = await page.evaluate(_CUT)
    assert cut == [], cut


async def test_no_state_violates_the_policy(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
    await page.reload()
    await page.wait_for_selector("body[data-ready]")
    assert errors == []
    assert await page.locator("tenuto-chat").count() == len(STATES)
