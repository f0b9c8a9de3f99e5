"""Hubs in virtual time, for the tests of this folder and of the transports.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

from tenuto.app import Hub
from tests.virtual import closed_later, virtual_clock


def new_hub(store: Any = "memory://", number: int = 1, **options: Any) -> Hub:
    """Return a hub that follows the time of a virtual loop, and closes with its test; its `number` is of its ids."""
    quiet = {"hooks_signals": False, "drain_s": 0.0, "clock": virtual_clock(number)}
    return closed_later(Hub(store, **{**quiet, **options}))
