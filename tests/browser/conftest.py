"""One Chromium for the tests of a module: each test opens windows in profiles of their own.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.tab import chromium


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def close_windows(browser: Browser) -> AsyncIterator[None]:
    """Close the windows of each test before the next one."""
    yield
    for context in list(browser.contexts):
        await context.close()
