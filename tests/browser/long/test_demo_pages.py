"""Both pages of the demo: axe finds nothing serious, headings are in order, and no page is wider than its window.

Layer: tests. `tests/demo/test_page.py` uses the pages.
"""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser.long.test_gallery import AXE, FINDINGS
from tests.processes import Server

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
