"""Hostile Markdown and HTML in the chat element, cut at every position, under the policy that it is made for.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.test_markdown import HOSTILE, markdown_page

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with markdown_page(browser) as page:
        yield page


async def test_hostile_text_cut_at_every_position_runs_and_fetches_nothing(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for text in HOSTILE:
        assert await page.evaluate("text => tests.forbiddenAtEachCut(text)", text) == [], text
    together = "\n\n".join(HOSTILE)
    assert await page.evaluate("text => tests.forbidden(text, 400)", together) == []
    assert await page.evaluate("[window.hit, tests.violations, Object.prototype.href]") == [None, [], None]
    assert requests == [one for one in requests if one.endswith("/web/vendor/highlight.js")]
