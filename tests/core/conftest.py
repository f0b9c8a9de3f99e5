"""Channels for the tests of this folder.

Layer: tests.
"""

from __future__ import annotations

import pytest

from tests.core.harness import LogHarness, served_log


@pytest.fixture
def harness() -> LogHarness:
    """Return a harness in which every request is a batch of its own."""
    return LogHarness()


@pytest.fixture
def served() -> LogHarness:
    """Return a channel with agents and a user message whose turn waits."""
    return served_log("q")
