"""Hostile Markdown and HTML in the chat element, cut at every position, under the policy that it is made for.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.long.main_thread import start_tasks, stop_tasks
from tests.browser.test_markdown import HOSTILE, markdown_page

MAX_TASK_MS = 100.0  # of CPU time
LENGTH = 200_000
STEPS = 40

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses


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


async def test_no_shape_of_text_takes_long(browser: Browser, page: Page) -> None:
    longest_ms = {}
    for name in await page.evaluate("Object.keys(tests.shapes(1_000))"):
        length = await page.evaluate(f"tests.stage(tests.shapes({LENGTH})[{name!r}]).then(tests.stagedTarget)")
        size = length // STEPS + 1
        await start_tasks(browser, page)
        for start in range(0, length, size):
            await page.evaluate(f"tests.steps({start}, {start + size}, {size})")
        longest_ms[name] = round(max(await stop_tasks(browser)))
    print(longest_ms)
    assert {name: took_ms for name, took_ms in longest_ms.items() if took_ms > MAX_TASK_MS} == {}
