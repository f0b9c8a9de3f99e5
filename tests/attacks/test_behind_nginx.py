"""Attacks on a hub under uvicorn, behind nginx with the settings of `docs/deployment.md`: the bounds of nginx.

nginx reads on from a peer that it has refused. So the attacker and nginx take all processors that are there, and the
time of the bystander's requests is that of the machine: it is printed, and not checked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attacks.attacker import HANDSHAKE
from tests.attacks.mounted import mounted_scene
from tests.attacks.scene import MIB, Scene, run
from tests.attacks.test_connections import good_clients
from tests.attacks.test_http import HEAD
from tests.nginx import needs_nginx

pytestmark = needs_nginx


@pytest.fixture
async def behind_nginx(tmp_path: Path) -> AsyncIterator[Scene]:
    async with mounted_scene(tmp_path, "uvicorn-httptools", is_behind_nginx=True) as one:
        yield one


@pytest.mark.parametrize(
    ("begin", "piece", "status"),
    [(HEAD, "X-Long: y\r\n", 400), (HEAD + "X-Long: ", "y", 400), ("GET /", "y", 414)],
    ids=["header lines", "a header", "a path"],
)
async def test_nginx_refuses_an_endless_head(behind_nginx: Scene, begin: str, piece: str, status: int) -> None:
    outcome = await run(behind_nginx, "endless_head", begin=begin, piece=piece)
    assert outcome.growth_bytes <= 4 * MIB
    assert outcome.report["first"].startswith(f"HTTP/1.1 {status} "), outcome


async def test_nginx_bounds_the_sockets_of_one_address(behind_nginx: Scene) -> None:
    outcome = await run(
        behind_nginx,
        "crowd",
        total=1_500,
        begin=f"{HANDSHAKE}\r\n",
        seconds=4,
        beside=lambda: good_clients(behind_nginx),
    )
    assert outcome.growth_bytes <= 64 * MIB
    assert outcome.beside == 20
    assert outcome.descriptors < 96 + 40, outcome  # the files of the good clients, and of connections that begin or end
