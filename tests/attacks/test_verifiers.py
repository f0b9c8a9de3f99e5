"""Attacks by requests and handshakes for which the verifier of an application takes long.

Layer: tests.

A verifier may query a database, or wait for the keys of an issuer. Meanwhile the peer is unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attacks.attacker import HANDSHAKE
from tests.attacks.mounted import mounted_scene
from tests.attacks.scene import WARMING_SOCKETS, Scene, introduces_itself
from tests.attacks.test_connections import LARGE, WAITING, run_bounded_crowd

REQUEST = "GET /v1/channels/c HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer slow\r\n"
BODY = REQUEST.replace("GET /v1/channels/c", "POST /v1/channels/c/messages") + "Content-Length: 60000\r\n\r\n"
SOCKET = f"{HANDSHAKE}Authorization: Bearer slow\r\n"


@pytest.fixture
async def attacked_app(tmp_path: Path) -> AsyncIterator[Scene]:
    """`tenuto serve --app`, with a verifier that takes nine seconds for the token `slow`."""
    async with mounted_scene(tmp_path, "tenuto", is_behind_nginx=False) as one:
        for number in range(WARMING_SOCKETS):
            assert await introduces_itself(one, f"early-{number}")
        yield one
        assert "Traceback" not in one.server.output, one.server.output[-3_000:]


@pytest.mark.parametrize(
    ("begin", "filler", "end", "addresses", "most"),
    [
        (REQUEST, 0, "\r\n", 20, WAITING),
        (f"{REQUEST}X-Long: ", 60_000, "\r\n\r\n", 20, LARGE),
        (BODY, 60_000, "", 20, LARGE),
        (f"{SOCKET}X-Long: ", 8_000, f"\r\nX-Long: {'x' * 8_000}\r\n\r\n", 20, LARGE),
    ],
    ids=["requests", "large heads", "bodies", "large handshakes"],
)
async def test_unknown_peers_are_bounded_while_the_verifier_runs(
    attacked_app: Scene, begin: str, filler: int, end: str, addresses: int, most: int
) -> None:
    options = {"total": 1_500, "addresses": addresses, "begin": begin, "filler": filler, "end": end, "seconds": 8}
    await run_bounded_crowd(attacked_app, most=most, burst=WAITING, **options)
