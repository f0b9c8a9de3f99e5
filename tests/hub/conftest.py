"""A hub on SQLite, for every test of this folder; other folders have hubs in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tenuto.hub import HubCore


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[HubCore]:
    hub = HubCore(f"sqlite:///{tmp_path}/hub.db", hooks_signals=False, drain_s=0.2)
    yield hub
    await hub.close()
