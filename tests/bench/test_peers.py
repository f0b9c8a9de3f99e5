"""A benchmark beside peers runs on the real systems, and its rows show a failed measurement."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import appends, beside
from bench.common import Row
from bench.peers.xadd import REDIS_CLIENT, cache

PATIENCE_S = 40.0
APPENDS = appends.Sizes(producers=4, rounds=1, seconds=0.2, warm_s=0.05, pages=1, page_tokens=40)
has_nginx = bool(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"))
has_redis = bool(shutil.which("redis-server"))
needs_nchan = pytest.mark.skipif(not has_nginx, reason="Debian's nginx and libnginx-mod-nchan are not installed")
needs_redis_client = pytest.mark.skipif(
    not (has_redis and [*cache().glob(f"*{'_'.join(REDIS_CLIENT)}")]),
    reason="`python -m bench appends` has not run here",
)


TINY = beside.Sizes(shapes=(beside.Shape(2, 2, 100),), rounds=1, seconds=0.2)


def _figures(measured: Iterable[Row]) -> list[str]:
    rows = list(measured)
    assert [row.note for row in rows if row.has_failed] == []
    return [f"{row.what}: {row.measured}" for row in rows]


@needs_redis_client
def test_appends_are_measured_on_the_real_systems() -> None:
    with TemporaryDirectory(dir=cache()) as folder:  # on a disk: bytes that are written to memory are not counted
        figures = _figures(appends.measure(Path(folder), APPENDS))
        assert [figure for figure in figures if "reload at 40 tokens" in figure and "XADD" in figure]
        assert list(Path(folder).iterdir()) == []


@needs_nchan
def test_nchan_and_tenuto_are_measured_by_the_same_rows(tmp_path: Path) -> None:
    figures = "\n".join(_figures(beside.measure(tmp_path, TINY, beside.SYSTEMS)))
    assert figures.count("CPU per delivered token, against nchan, memory") == 2  # SSE and WebSocket
