"""Attacks on a hub under uvicorn, behind nginx with the settings of `docs/deployment.md`: the bounds of nginx.

nginx reads on from a peer that it has refused. So the attacker and nginx take all processors that are there, and the
time of the bystander's requests is that of the machine: it is printed, and not checked.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proof.chaos.processes import free_port
from tests.attacks.attacker import HANDSHAKE
from tests.attacks.mounted import mounted_scene
from tests.attacks.scene import MIB, Scene, run
from tests.attacks.test_connections import good_clients
from tests.attacks.test_http import HEAD
from tests.nginx import needs_nginx, nginx_of_the_docs

pytestmark = needs_nginx


@pytest.fixture
async def behind_nginx(tmp_path: Path) -> AsyncIterator[Scene]:
    async with mounted_scene(tmp_path, "uvicorn-httptools", is_behind_nginx=True) as one:
        yield one


@pytest.mark.parametrize(
    ("begin", "piece", "status"), [(HEAD, "X-Long: y\r\n", 400), ("GET /", "y", 414)], ids=["header lines", "a path"]
)
async def test_nginx_refuses_an_endless_head(behind_nginx: Scene, begin: str, piece: str, status: int) -> None:
    outcome = await run(behind_nginx, "endless_head", begin=begin, piece=piece)
    assert outcome.growth_bytes <= 4 * MIB
    assert outcome.report["first"].startswith(f"HTTP/1.1 {status} "), outcome


async def test_nginx_bounds_the_sockets_of_one_address(behind_nginx: Scene) -> None:
    options = {"total": 1_500, "begin": f"{HANDSHAKE}\r\n", "seconds": 4}
    outcome = await run(behind_nginx, "crowd", beside=lambda: good_clients(behind_nginx), **options)
    assert outcome.growth_bytes <= 64 * MIB
    assert outcome.beside == 20
    assert outcome.descriptors < 96 + 40, outcome  # the files of the good clients, and of connections that begin or end


# Two nginx in a row, before a process that never responds ------------------------------------------------------------


PATIENCE_S = 20.0
LIMIT = 96  # `limit_conn` of the page


def test_limit_of_one_address_is_the_outer_proxys_and_strangers_do_not_reach_the_inner_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * LIMIT))
        process.settimeout(PATIENCE_S)
        outer = stack.enter_context(nginx_of_the_docs(tmp_path, process.getsockname()[1], is_two=True))
        ports = re.findall(r"listen 127\.0\.0\.1:(\d+)", (tmp_path / "nginx.conf").read_text())
        (inner,) = {*map(int, ports)} - {outer}

        def ask(address: str, port: int) -> socket.socket:
            one = socket.create_connection(("127.0.0.1", port), PATIENCE_S, (address, 0))
            stack.enter_context(one).sendall(b"GET /chat/ HTTP/1.1\r\nHost: chat.example\r\n\r\n")
            return one

        def passed() -> bytes:
            """Return the head of the next request that reaches the process."""
            one = stack.enter_context(process.accept()[0])
            one.settimeout(PATIENCE_S)
            head = b""
            while b"\r\n\r\n" not in head:
                head += one.recv(4096)
            return head

        for _ in range(LIMIT):
            ask("127.0.0.1", outer)
        assert {b"X-Forwarded-For: 127.0.0.1, 127.0.0.1" in passed() for _ in range(LIMIT)} == {True}
        assert ask("127.0.0.1", outer).recv(4096).startswith(b"HTTP/1.1 503 ")
        ask("127.0.0.2", outer)
        assert b"X-Forwarded-For: 127.0.0.2, 127.0.0.1" in passed()
        assert ask("127.0.0.2", inner).recv(4096).startswith(b"HTTP/1.1 403 ")


def test_process_that_was_away_gets_the_next_request(tmp_path: Path) -> None:
    port = free_port()
    with nginx_of_the_docs(tmp_path, port, free_port()) as proxy, ExitStack() as stack:
        first, second = [stack.enter_context(socket.create_connection(("127.0.0.1", proxy))) for _ in range(2)]
        first.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert first.recv(4096).startswith(b"HTTP/1.1 502 ")
        process = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        process.settimeout(PATIENCE_S)
        second.sendall(b"GET / HTTP/1.0\r\n\r\n")
        stack.enter_context(process.accept()[0])
