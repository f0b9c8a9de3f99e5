"""A hub on a store in memory, and on SQLite, for every test of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tenuto.hub import HubCore


@pytest.fixture(params=["memory", "sqlite"])
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HubCore]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/hub.db"
    hub = HubCore(url, hooks_signals=False, drain_s=0.2)
    yield hub
    await hub.close()
