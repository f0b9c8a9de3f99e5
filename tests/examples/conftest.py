"""What the tests of the examples share: a folder for an example's store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.programs import load


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads an example by name."""
    monkeypatch.chdir(tmp_path)
    return load
