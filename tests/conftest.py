"""Fixtures and settings of all tests.

Layer: tests, which mirror the package. Tests await an event; they never sleep until it has probably happened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser, async_playwright, expect

from tests.processes import Server, serving

# before the first import, so that pytest shows the values of a failed assertion in the contract of stores
pytest.register_assert_rewrite("tests.stores.contract")

# No deadlines, because machines differ in speed. The same commit has the same examples, so that a failure belongs to a
# change. `HYPOTHESIS_PROFILE=long` tries more examples, other ones in each run; `few` tries only some.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("long", parent=settings.get_profile("default"), derandomize=False, max_examples=5_000)
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# `make test-long` repeats some tests with each server, signal, transport and sender; `make test` has one of each.
IS_LONG = os.environ.get("TENUTO_SERVERS") == "long"
in_long = pytest.mark.skipif(not IS_LONG, reason="`make test-long` runs it")

# A script that starts the tests in the background lets them ignore SIGINT, and each process that they start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Patience costs nothing in a test that passes, and a machine of CI may be three times slower than another.
expect.set_options(timeout=30_000)

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


AGAIN_S = 30.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that takes longer than the limit, with its fixtures.

    The exception is raised again and again, because an event loop drops one that reaches it inside of a callback, and a
    fixture may hang as well as its test. (pytest-timeout raises it once, and its other method leaves processes behind.)
    """
    limit_s = float(item.config.getini("faulthandler_timeout"))

    def fail(*_: object) -> NoReturn:
        pytest.fail(f"test takes longer than {limit_s:g} s (faulthandler_timeout)")

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, limit_s + 1.0, AGAIN_S)  # pytest has printed all stacks by then
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium")
    assert path is not None, "no Chromium: install Debian's package chromium, or set TENUTO_CHROMIUM to one's path"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        await browser.close()


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """Return a channel for this test on a demo that several tests use."""
    return f"demo:{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Server]:
    with serving("demo", tmp_path) as server:
        yield server
