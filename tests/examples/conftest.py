"""Fixtures for the tests of the examples: a folder for the store of each example.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.programs import load


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Load an example by name."""
    monkeypatch.chdir(tmp_path)
    return load
