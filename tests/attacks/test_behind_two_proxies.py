"""The bounds of two nginx in a row, with the settings of `docs/deployment.md`, before a process that never responds."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.nginx import needs_nginx, nginx_of_the_docs

pytestmark = needs_nginx
PATIENCE_S = 20.0
LIMIT = 96  # `limit_conn` of the page


def test_limit_of_one_address_is_that_of_the_outer_proxy_and_strangers_do_not_reach_the_inner_one(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * LIMIT))
        process.settimeout(PATIENCE_S)
        outer = stack.enter_context(nginx_of_the_docs(tmp_path, process.getsockname()[1], is_two=True))
        ports = map(int, re.findall(r"listen 127\.0\.0\.1:(\d+)", (tmp_path / "nginx.conf").read_text()))
        (inner,) = set(ports) - {outer}

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
