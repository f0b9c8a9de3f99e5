"""Attacks by HTTP: heads that do not end, and requests whose responses are not read."""

from __future__ import annotations

import pytest

from tests.attacks.attacker import GET, connect, exchange
from tests.attacks.scene import MIB, Scene, run

HEAD = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("begin", "piece", "status", "limit"),
    [
        (HEAD, "X-Long: y\r\n", 431, 100),
        (HEAD + "X-Long: ", "y", 431, 65536),
        (HEAD + "X", "x", 431, 65536),
        ("GET /", "y", 414, 65536),
        ("GET /?", "y", 414, 65536),
    ],
    ids=["header lines", "a header", "a name", "a path", "a query"],
)
async def test_endless_head_is_refused(attacked: Scene, begin: str, piece: str, status: int, limit: int) -> None:
    outcome = await run(attacked, "endless_head", begin=begin, piece=piece)
    outcome.check(4 * MIB)
    assert outcome.report["first"].startswith(f"HTTP/1.1 {status} "), outcome
    assert f'"code":"too_large","limit":{limit}' in outcome.report["first"]
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


async def test_requests_behind_a_running_one_are_not_read(attacked: Scene) -> None:
    outcome = await run(attacked, "pipelined", total=600_000)
    outcome.check(4 * MIB)
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


async def test_request_behind_a_refused_body_gets_a_response(attacked: Scene) -> None:
    """The server throws away the body of a request that it refused, which counts for no other head."""
    body = b"x" * 500_000
    head = b"POST /v1/channels/c/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(attacked.port) as one, connect(attacked.port) as other:
        assert exchange(one, head + body)[0] == 401
        for piece in (GET[:20], GET[20:]):
            one.sendall(piece)
            assert exchange(other, GET + b"\r\n")[0] == 200  # meanwhile the server has read the piece
        assert exchange(one, b"\r\n")[0] == 200
