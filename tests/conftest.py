"""Fixtures and settings of all tests.

Layer: tests, which mirror the package. Tests await an event; they never sleep until it has probably happened.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser, expect

from proof.chaos.engines import MEMORY
from tests.browser.tab import chromium
from tests.postgres import Postgres, running_postgres
from tests.processes import Server, serving
from tests.sources.provider import Provider

# Modules and SDKs that the tests import are never garbage: to look for some there took 40% of the time of collection.
gc.disable()  # until pytest_collection_finish

# before the first import, so that pytest shows the values of a failed assertion in the contract of stores
pytest.register_assert_rewrite("tests.stores.contract")

# No deadlines, because machines differ in speed. The same commit has the same examples, so that a failure belongs to a
# change. `HYPOTHESIS_PROFILE=long` tries others in each run, and scripts/test_releases has `few`.
CHECKS = [HealthCheck.too_slow]
settings.register_profile("default", deadline=None, suppress_health_check=CHECKS, derandomize=True, max_examples=40)
settings.register_profile("long", parent=settings.get_profile("default"), derandomize=False, max_examples=5_000)
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# `make test` has one server, signal, transport and way of sending; `make test-long` has the others, and slow cases.
IS_LONG = os.environ.get("TENUTO_SERVERS") == "long"
in_long = pytest.mark.in_long


def rest_in_long(cases: Sequence[Any], first: int = 1) -> list[Any]:
    """Return the parameters `cases`, of which `make test` has the first ones, and `make test-long` the others."""
    rest = [one if isinstance(one, tuple) else (one,) for one in cases[first:]]
    given = [one if hasattr(one, "marks") else pytest.param(*one) for one in rest]
    return [*cases[:first], *(one._replace(marks=[*one.marks, in_long]) for one in given)]


# No test trusts an authority of the system: to load those takes a client 20 to 50 ms, and this one less than 1 ms.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))

# A sync of a file takes 1 to 7 ms on a disk, and the tests of the stores wait for some 10,000. A process that is killed
# leaves a file in memory as it was, and the loss of power is played with copies of files.
if MEMORY is not None and "TMPDIR" not in os.environ and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# A script that starts the tests in the background lets them ignore SIGINT, and each process that they start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Patience costs nothing in a test that passes, and a machine of CI may be three times slower than another.
expect.set_options(timeout=30_000)

AGAIN_S = 30.0


@pytest.hookimpl
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let pytest-rerunfailures send at once.

    A worker of `pytest -n` sends it two small messages for each test. The kernel would keep the second one back until
    it has an acknowledgement of the first one, for 40 ms.
    """
    connection = getattr(getattr(session.config, "failures_db", None), "sock", None)
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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


@pytest.hookimpl
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make test-long` runs. Let the tests that use the browser run on its event loop."""
    if left_out := [one for one in items if one.get_closest_marker("in_long") and not IS_LONG]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [one for one in items if one not in left_out]
    for item in items:
        if not isinstance(item, pytest.Function) or "browser" not in item.fixturenames:
            continue
        if {"browser", "page"} & {*inspect.signature(item.function).parameters}:
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest.hookimpl
def pytest_collection_finish() -> None:
    """Exclude the modules and the list of tests from garbage collection."""
    gc.freeze()
    gc.enable()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests of a module: their windows have profiles of their own."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """Return a channel for this test on a demo that several tests use."""
    return f"demo:{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Server]:
    with serving("demo", tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One demo for the tests of a module that do not kill it: each has a conversation of its own."""
    with serving("demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of PostgreSQL, whose data need not survive the machine."""
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    await provider.start()
    yield provider
    await provider.stop()
