"""Chromium, and what tests evaluate in its pages.

Layer: tests.

Chromium's offline switch does not cut open streams, so tests inject faults at TCP (`FaultProxy`) or end the server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

TIMEOUT_MS = 30_000


ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def script(file: str, function: str) -> str:
    """Return a function of a script beside the tests, to evaluate in a page."""
    source = (Path(__file__).parent / f"{file}.js").read_text()
    return f"(...given) => {{\n{source}\nreturn {function}(...given)\n}}"


def chromium_path() -> str:
    """Return the path of Chromium."""
    path = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium")
    assert path is not None, (
        "the browser tests need Chromium and found none: "
        "install the package chromium, or set TENUTO_CHROMIUM to its path"
    )
    return path


@asynccontextmanager
async def chromium(*more: str) -> AsyncIterator[Browser]:
    """Run a Chromium, perhaps with more arguments, for several tests, which open windows in profiles of their own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=[*ARGUMENTS, *more])
        yield browser
        await browser.close()


async def picture(page: Page, name: str) -> None:
    """Take the picture of an example for the index of the examples, where the variable TENUTO_PICTURES asks for it."""
    if os.environ.get("TENUTO_PICTURES"):
        await page.set_viewport_size({"width": 720, "height": 320})
        await page.screenshot(path=Path(__file__).parents[2] / "examples" / "pictures" / f"{name}.png")
