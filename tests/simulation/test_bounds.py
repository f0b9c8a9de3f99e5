"""The bounds accept a correct hub, and find each container that grows.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from proof.oracle import Violation
from proof.simulation.bounds import SPARE, Bounds
from proof.simulation.hooks import is_expected
from tenuto.app import Hub


@pytest.fixture
async def hub() -> Any:
    hub = Hub("memory://", hooks_signals=False)
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
def bounds(hub: Hub) -> Bounds:
    return Bounds(hub, "A1", lambda: 0.0, lambda: 0.0)


def check_all(bounds: Bounds) -> None:
    """Run all checks: some run only after several steps."""
    for _ in range(20):
        bounds.stepped()


async def test_container_without_a_bound_of_its_own_is_bounded(hub: Hub, bounds: Bounds) -> None:
    hub.__dict__["_new_cache"] = dict.fromkeys(range(SPARE))
    check_all(bounds)
    hub.__dict__["_new_cache"][SPARE] = None
    with pytest.raises(Violation, match=rf"{SPARE + 1} things are in Hub._new_cache, {SPARE} at most"):
        check_all(bounds)


def test_logged_error_of_a_hook_is_expected_only_if_the_simulator_causes_it() -> None:
    assert is_expected(("h", "c", "OnPurpose", 1.0))
    assert not is_expected(("h", "c", "KeyError", 1.0))
