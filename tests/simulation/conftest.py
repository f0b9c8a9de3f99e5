"""Fixtures for the tests of the simulation.

Layer: tests.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Exclude the objects of earlier tests from garbage collection: each world makes and drops many objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
