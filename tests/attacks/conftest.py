"""The scene of each attack. These tests need Linux: they read the server's memory from `/proc`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.attacks.scene import Scene, TooSlow, bystander, scene, writer_token


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the attacks out on other systems. Repeat one whose times are too long, and nothing else, at most twice."""
    for item in items:
        if "attacks" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=2, only_rerun=[TooSlow.__name__]))
            if not sys.platform.startswith("linux"):
                item.add_marker(pytest.mark.skip(reason="memory is read from /proc"))


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Scene]:
    """A server to attack."""
    async with scene(tmp_path) as one:
        yield one


@pytest.fixture
def watched_server(attacked: Scene) -> Iterator[Scene]:
    """A server to attack without `run`, beside a client that writes and its strict viewers."""
    with bystander(attacked.port, writer_token()):
        yield attacked
