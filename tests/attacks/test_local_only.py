"""A hub without a verifier serves its own machine and user only; every other peer is refused, and told why.

Layer: tests.

Real servers (`tenuto serve`), a real nginx, and real processes of other accounts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pwd import getpwuid

import pytest

from tests.accounts import NOBODY, ask_as, needs_accounts, request_of
from tests.attacks.scene import bystander
from tests.nginx import needs_nginx, nginx
from tests.processes import PATIENCE_S, Server, serving
from tests.proxy import FaultProxy

UPGRADE = {"Upgrade": "websocket", "Sec_WebSocket_Key": "x3JJHMbDL1EzLkh9GBhXDw==", "Sec_WebSocket_Version": "13"}

# The attempts of a stranger: to read, to follow, to write, to delete, and to open a socket.
TRIES = {
    "page": request_of("GET", "/v1/channels/c/messages"),
    "events": request_of("GET", "/v1/channels/c/events"),
    "poll": request_of("GET", "/v1/channels/c/poll"),
    "message": request_of("POST", "/v1/channels/c/messages", b'{"id": "stranger", "text": "hello"}'),
    "delete": request_of("DELETE", "/v1/channels/c"),
    "ticket": request_of("POST", "/v1/tickets", b'{"channel": "c"}'),
    "metrics": request_of("GET", "/metrics"),
    "socket": request_of("GET", "/v1/ws", **UPGRADE).replace(b"Connection: close", b"Connection: Upgrade"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub without a verifier, with one message in the channel `c`."""
    with serving("serve", tmp_path_factory.mktemp("hub")) as server:
        assert server.post("/v1/channels/c/messages", {"id": "own", "text": "secret"})[0] == 201
        yield server


@pytest.fixture(autouse=True)
def check_channel(server: Server) -> Iterator[None]:
    """No stranger has changed the channel, the owner is still served, and viewers have missed no text."""
    with bystander(server.port):
        yield
    status, page = server.get("/v1/channels/c/messages")
    assert status == 200
    assert [message["id"] for message in page["messages"]] == ["own"]


def send(port: int, data: bytes, *, host: str = "127.0.0.1") -> bytes:
    """Send bytes from this process's account; return all bytes until the server closes."""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as peer:
        peer.sendall(data)
        return b"".join(iter(partial(peer.recv, 65536), b""))


def check_refused(response: bytes, reason: str) -> None:
    """Assert that `response` is the refusal of a hub without a verifier, for this reason."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"403", response
    problem = json.loads(body)
    assert problem["code"] == "no_verifier"
    assert reason in problem["detail"]
    assert "authenticate=" in problem["detail"]
    assert b"secret" not in response


@needs_nginx
@pytest.mark.parametrize("user", ["nobody", "root"])
def test_stranger_behind_nginx_s_default_proxy_pass_is_refused(server: Server, tmp_path: Path, user: str) -> None:
    with nginx(tmp_path, server.port, f"proxy_pass http://127.0.0.1:{server.port};", user=user) as port:
        for data in TRIES.values():
            check_refused(send(port, data), "HTTP/1.0 comes from a proxy such as nginx")


@needs_nginx
@needs_accounts
def test_proxy_with_an_account_of_its_own_is_refused_whatever_it_sends(server: Server, tmp_path: Path) -> None:
    silent = (
        f"proxy_pass http://127.0.0.1:{server.port}; proxy_http_version 1.1; proxy_set_header Host localhost;"
        'proxy_set_header Connection "";'
    )
    with nginx(tmp_path, server.port, silent) as port:
        for data in TRIES.values():
            check_refused(send(port, data), "does not belong to the user that runs this server")


@needs_accounts
def test_other_account_of_this_machine_is_refused(server: Server) -> None:
    for name in TRIES:
        for ending in ("read", "half"):
            response = ask_as(NOBODY, server.port, TRIES[name], ending=ending)
            check_refused(response, "does not belong to the user that runs this server")
            assert not any(word in response for word in (b"nobody", b"root", b"%d" % NOBODY)), response
    own, foreign = f"{getpwuid(os.geteuid()).pw_name} ({os.geteuid()})", f"nobody ({NOBODY})"
    assert f"belongs to the user {foreign}, expected {own}" in server.output  # for the operator alone


# Headers that common proxies add: nginx, Apache, Caddy, HAProxy, Varnish, Envoy, IIS, and services in front of servers.
OF_PROXIES = """
Akamai-Origin-Hop CDN-Loop CF-Connecting-IP CF-Ray CloudFront-Viewer-Address Fastly-Client-IP Fly-Client-IP Forwarded
Tailscale-User-Login True-Client-IP Via X-Amz-Cf-Id X-ARR-SSL X-Azure-ClientIP X-Client-IP X-Cluster-Client-IP
X-Envoy-External-Address X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Forwarded-Server
X-Original-URL X-Real-IP X-Scheme X-Varnish X-Vercel-Forwarded-For
"""


def test_every_header_of_a_proxy_is_refused(server: Server) -> None:
    for header in OF_PROXIES.split():
        data = TRIES["page"].replace(b"\r\n\r\n", f"\r\n{header}: 1\r\n\r\n".encode(), 1)
        check_refused(send(server.port, data), header.lower())


# Peers that must stay welcome


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_own_account_is_served(server: Server, host: str) -> None:
    assert b"secret" in send(server.port, TRIES["page"], host=host)


async def test_forwarded_port_is_served(server: Server) -> None:
    """SSH and editors forward a port with a process of the user, byte for byte."""
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        assert b"secret" in await asyncio.to_thread(send, proxy.port, TRIES["page"])


# A server with an account of its own

_SERVE_AS = """
import os, sys
import tenuto.server.serving, tenuto.cli.main, tenuto.app, uvicorn, uvicorn.protocols.http.httptools_impl
import uvicorn.protocols.websockets.websockets_sansio_impl, uvicorn.lifespan.on, encodings.idna, tenuto.stores.memory
user = int(sys.argv.pop(1))
os.setgroups([]), os.setgid(user), os.setuid(user)
tenuto.cli.main.main()
"""


@needs_accounts
def test_server_with_an_account_serves_that_account_and_root_alone(tmp_path: Path) -> None:
    account, other = 1, NOBODY
    with Server("serve", tmp_path, "--store", "memory://", by=("-c", _SERVE_AS, str(account))) as server:
        assert server.post("/v1/channels/c/messages", {"id": "own", "text": "secret"})[0] == 201
        assert b"secret" in ask_as(account, server.port, TRIES["page"])
        with bystander(server.port):
            for ending in ("read", "half"):
                for data in TRIES.values():
                    check_refused(
                        ask_as(other, server.port, data, ending=ending),
                        "does not belong to the user that runs this server",
                    )
            for ending in ("close", "reset"):
                for _ in range(10):
                    ask_as(other, server.port, TRIES["message"], ending=ending)
                    ask_as(other, server.port, TRIES["delete"], ending=ending)
        _, page = server.get("/v1/channels/c/messages")
        assert [message["id"] for message in page["messages"]] == ["own"]


# A hub that accepts everyone


def test_hub_for_everyone_on_loopback_refuses_rebound_names(tmp_path: Path) -> None:
    options = ("--allow-everyone", "--public-origin", "https://chat.example:8443")  # nginx: `$host` has no port
    with serving("serve", tmp_path, *options) as server, bystander(server.port):
        for host, status in ((b"localhost", b"200"), (b"chat.example", b"200"), (b"rebound.example", b"403")):
            response = send(server.port, TRIES["page"].replace(b"Host: localhost", b"Host: " + host))
            assert response.split(b" ", 2)[1] == status
        assert b"--public-origin" in response
