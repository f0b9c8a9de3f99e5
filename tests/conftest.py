"""Fixtures and settings of all tests.

Layer: tests, which mirror the package. Tests await an event; they never sleep until it has probably happened.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser, async_playwright

from tests.processes import Server, serving

# No deadlines, because machines differ in speed. The same commit has the same examples, so that a failure belongs to a
# change. `HYPOTHESIS_PROFILE=long` tries more examples, other ones in each run; `few` tries only some.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("long", parent=settings.get_profile("default"), derandomize=False, max_examples=5_000)
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium")
    assert path is not None, "no Chromium: install Debian's package chromium, or set TENUTO_CHROMIUM to one's path"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        await browser.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Server]:
    with serving("demo", tmp_path) as server:
        yield server
