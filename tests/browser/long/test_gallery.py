"""All states of the chat element: axe finds nothing serious, and narrow windows and large text cut nothing off.

Layer: tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser.gallery import open_gallery
from tests.browser.tab import script
from tests.processes import Server

FINDINGS = script("looks", "findings")
AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize(
    ("state", "themes"), [("", ["light", "dark"]), ("", ["dark", "light"]), ("state=offline", ["light"])]
)
async def test_axe_finds_nothing_serious(browser: Browser, address: str, state: str, themes: list[str]) -> None:
    page = await open_gallery(browser, address, f"{state}&theme={themes[0]}", bypass_csp=True)
    chats = page.locator("tenuto-chat:not([theme=blue])")
    await chats.evaluate_all("(all, names) => all.forEach((one, n) => (one.theme = names[n % names.length]))", themes)
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


@pytest.mark.parametrize("width", [320, 1200])
async def test_nothing_is_cut_off(browser: Browser, address: str, width: int) -> None:
    page = await open_gallery(browser, address, viewport={"width": width, "height": 800})
    chats = page.locator("tenuto-chat")
    for is_large in (False, True):
        await chats.evaluate_all("(all, on) => all.forEach((one) => one.classList.toggle('large', on))", is_large)
        cut = await page.evaluate(script("looks", "cut"))
        assert cut == [], (is_large, cut)


# Both pages of the demo ----------------------------------------------------------------------------------------------


_HEADINGS = "axe.run(document, { runOnly: ['heading-order'] }).then(({ violations }) => violations.length)"
_WIDE = "document.documentElement.scrollWidth > innerWidth"


async def open_at(browser: Browser, shared: Server, path: str, width: int, theme: Any) -> Page:
    """Open a page of the demo: the main page with the beginning of an answer, "One tag" with its code."""
    context = await browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=theme, reduced_motion="reduce", bypass_csp=True
    )
    page = await context.new_page()
    await page.goto(f"http://127.0.0.1:{shared.port}{path}")
    if path == "/one-tag":
        await page.click("tenuto-chat .launcher")
    else:
        await page.click("#ask button")
        await page.locator("tenuto-chat .assistant ol").wait_for()
        await page.click(".stop")
        await page.locator('.assistant[data-status="cancelled"]').wait_for()
    return page


@pytest.mark.parametrize("path", ["/", "/one-tag"])
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_serious_and_the_page_fits(
    browser: Browser, shared: Server, path: str, theme: str
) -> None:
    for width in (1440, 360):
        page = await open_at(browser, shared, path, width, theme)
        await page.evaluate(AXE.read_text())
        assert await page.evaluate(FINDINGS) == [], width
        assert await page.evaluate(_HEADINGS) == 0, width
        assert not await page.evaluate(_WIDE), width
        await page.evaluate("document.documentElement.dir = 'rtl'")
        assert not await page.evaluate(_WIDE), width
        assert await page.evaluate(FINDINGS) == [], width
