"""The windows of a test, and two pages that several modules use.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.gallery import gallery_server
from tests.browser.test_markdown import markdown_page


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def close_windows(browser: Browser) -> AsyncIterator[None]:
    """Close the windows of each test before the next one."""
    yield
    for context in list(browser.contexts):
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page with the functions of `markdown_page.js`, under the policy that the chat element is made for."""
    async with markdown_page(browser) as page:
        yield page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[str]:
    """The address of the gallery."""
    async with gallery_server() as address:
        yield address
