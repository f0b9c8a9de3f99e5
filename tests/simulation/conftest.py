"""You are in `tests`."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Worlds make and leave much: what other tests have made is not looked at again for each of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
