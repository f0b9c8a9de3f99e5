"""The gallery of the chat element's states, from a file server.

Layer: tests.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, TimeoutError
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.browser.tab import TIMEOUT_MS
from tests.transports.conftest import listening

WEB = Path(__file__).parents[2] / "tenuto" / "web"
_DEFINED = (WEB / "gallery" / "gallery_states.js").read_text().split("\nconst states = ")[1]
STATES = re.findall(r'^  "?([\w-]+)"?: \{', _DEFINED, re.MULTILINE)


@asynccontextmanager
async def gallery_server() -> AsyncIterator[str]:
    """Serve the gallery. Gives its address."""
    async with listening(Starlette(routes=[Mount("/", StaticFiles(directory=WEB))])) as port:
        yield f"http://localhost:{port}/gallery/gallery.html"


async def open_gallery(browser: Browser, address: str, query: str = "", **options: Any) -> Page:
    """Return a window that shows the state of the query, or all states.

    It fails if a state is not reached, or violates the policy of the page.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    page, violations = await context.new_page(), list[str]()
    page.on("console", lambda message: violations.append(message.text) if "Policy" in message.text else None)
    await page.goto(f"{address}?{query}")
    try:
        await page.wait_for_selector("body[data-ready]")
    except TimeoutError as error:
        error.add_note(f"not reached: {await page.locator('figure:not([data-ready]) figcaption').all_inner_texts()}")
        raise
    assert violations == []
    return page
