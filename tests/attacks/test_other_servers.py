"""Attacks on a hub under other servers than `tenuto serve`, without a proxy: their own bounds (`docs/deployment.md`).

These tests run in the long form alone (`make attack`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from proof.wirecheck import encode_frame
from tests.attacks.attacker import HANDSHAKE
from tests.attacks.mounted import mounted_scene
from tests.attacks.scene import IS_LONG, MIB, run
from tests.attacks.test_connections import GRACE_S, HALF, good_clients
from tests.attacks.test_http import HEAD

pytestmark = pytest.mark.skipif(not IS_LONG, reason="set TENUTO_ATTACKS=long, as `make attack` does")

STATUS = {"uvicorn-h11": 400, "granian": 431, "hypercorn": 431}


@pytest.mark.parametrize("server", STATUS)
@pytest.mark.parametrize(("begin", "piece"), [(HEAD, "X-Long: y\r\n"), ("GET /", "y")], ids=["header lines", "a path"])
async def test_server_refuses_an_endless_head(tmp_path: Path, server: str, begin: str, piece: str) -> None:
    async with mounted_scene(tmp_path, server, is_behind_nginx=False) as one:
        outcome = await run(one, "endless_head", begin=begin, piece=piece)
    assert outcome.report["first"].startswith(f"HTTP/1.1 {STATUS[server]} "), outcome
    assert outcome.growth_bytes < 16 * MIB


@pytest.mark.parametrize("server", STATUS)
async def test_server_reads_one_request_of_a_connection_at_a_time(tmp_path: Path, server: str) -> None:
    async with mounted_scene(tmp_path, server, is_behind_nginx=False) as one:
        outcome = await run(one, "pipelined", total=600_000)
    assert outcome.growth_bytes < 16 * MIB


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
@pytest.mark.parametrize(("begin", "filler"), [("", 0), (HALF, 10)], ids=["nothing", "half a head"])
async def test_server_ends_silent_connections(tmp_path: Path, server: str, begin: str, filler: int) -> None:
    async with mounted_scene(tmp_path, server, is_behind_nginx=False) as one:
        outcome = await run(
            one, "crowd", total=1_100, begin=begin, filler=filler, seconds=20, beside=lambda: good_clients(one)
        )
    assert outcome.beside == 20
    assert outcome.report["left"] == 0, outcome
    assert outcome.report["last_end_s"] < 10 + 2 * GRACE_S, outcome
    assert outcome.growth_bytes < 64 * MIB


# An unfinished frame of nearly as many bytes as uvicorn accepts with the options of the docs.
UNFINISHED = encode_frame(1, b"x" * 30_000, mask=b"\0\0\0\0", length=1_100_000).hex()


@pytest.mark.parametrize(
    ("server", "most_s"), [("uvicorn-sockets", 15), ("granian", 5), ("hypercorn", 5)], ids=lambda value: str(value)
)
async def test_socket_with_an_unfinished_first_frame_ends(tmp_path: Path, server: str, most_s: int) -> None:
    async with mounted_scene(tmp_path, server, is_behind_nginx=False) as one:
        options = {"begin": f"{HANDSHAKE}\r\n", "socket_frames": UNFINISHED, "seconds": most_s + 2 * GRACE_S}
        outcome = await run(one, "crowd", total=96, beside=lambda: good_clients(one), **options)
    assert outcome.beside == 20
    assert outcome.report["left"] == 0, outcome
    assert outcome.growth_bytes < 128 * MIB
