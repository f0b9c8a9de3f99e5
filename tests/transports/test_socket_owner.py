"""The account of a local peer, from the kernel: a closed socket proves no account."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from proof.chaos.processes import free_port
from tenuto.core.errors import Busy, NoVerifier
from tenuto.server import serving
from tenuto.transports import origin
from tenuto.transports.codec import refusals
from tenuto.transports.origin import Pair, SocketOwner, check_peer, foreign_owner, objection, owner_of, pair_of
from tests.transports.conftest import new_hub

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems tell no owner")

HERE = "127.0.0.1"
MAPPED = "::ffff:127.0.0.1"
NOBODY = 65534


@contextmanager
def connected(family: int = socket.AF_INET, host: str = HERE, to: str | None = None) -> Iterator[tuple[Any, Any]]:
    """A connection over loopback: the peer's socket and the server's."""
    with socket.socket(family) as listening, socket.socket(socket.AF_INET6 if to else family) as peer:
        listening.bind((host, 0))
        listening.listen(1)
        if to is None:
            peer.bind((host, free_port()))  # which the system gives to no other peer meanwhile
        peer.connect((to or host, listening.getsockname()[1]))
        server, _ = listening.accept()
        with server:
            yield peer, server


def pair(server: socket.socket) -> Pair:
    """Return the ends of a connection as an ASGI server tells them."""
    found = pair_of({"client": server.getpeername()[:2], "server": server.getsockname()[:2]})
    assert found is not None
    return found


WAYS = [(socket.AF_INET, HERE, None), (socket.AF_INET6, "::1", None), (socket.AF_INET, HERE, MAPPED)]


@pytest.mark.parametrize(("family", "host", "to"), WAYS, ids=["IPv4", "IPv6", "IPv4 from a socket of IPv6"])
def test_owner_is_the_account_of_the_peer(family: int, host: str, to: str | None) -> None:
    with connected(family, host, to) as (peer, server):
        assert owner_of(pair(server)) == SocketOwner(os.geteuid(), os.fstat(peer.fileno()).st_ino)


def test_socket_that_listens_on_the_port_of_a_closed_peer_is_not_taken_for_it() -> None:
    with connected() as (peer, server):
        ends = pair(server)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HERE, ends.port))
            listening.listen(1)
            assert owner_of(ends) is None


@pytest.mark.parametrize(
    ("owner", "uid", "is_refused"),
    [
        (SocketOwner(1000, 7), 1000, False),
        (SocketOwner(1000, 0), 1000, False),  # newer kernels keep the owner of a closed socket
        (SocketOwner(0, 7), 1000, False),  # root may do anything
        (SocketOwner(0, 0), 1000, True),  # older kernels report root for a closed socket
        (SocketOwner(0, 0), 0, True),
        (SocketOwner(0, 7), 0, False),
        (SocketOwner(33, 7), 1000, True),
        (SocketOwner(33, 7), 0, True),
        (SocketOwner(33, 0), 1000, True),
        (None, 1000, True),
    ],
)
def test_only_the_server_s_account_and_root_pass(owner: SocketOwner | None, uid: int, is_refused: bool) -> None:
    assert (objection(owner, uid) is not None) is is_refused


def test_only_the_log_names_the_accounts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(refusals, "_logged_at_s", OrderedDict())
    monkeypatch.setattr(origin, "objection", lambda owner, uid: objection(SocketOwner(NOBODY, 7), 4_242))
    hub = new_hub()
    with connected() as (_, server), pytest.raises(NoVerifier) as refused:
        headers = [(b"host", b"localhost")]
        check_peer(hub, {"client": server.getpeername(), "server": server.getsockname(), "headers": headers})
    assert "4242" in caplog.text
    assert str(NOBODY) in caplog.text
    assert not any(word in refused.value.detail for word in ("4242", "nobody", str(NOBODY)))
    assert "Hub(authenticate=visitors())" in refused.value.detail


@pytest.mark.parametrize(
    "scope",
    [
        {"client": None, "server": (HERE, 8000)},
        {"client": (HERE, 5), "server": None},
        {"client": (HERE, 5), "server": ("localhost", None)},
        {"client": ("testclient", 5), "server": (HERE, 8000)},
        {"client": ("::1", 5), "server": (HERE, 8000)},
    ],
)
def test_server_that_gives_no_addresses_leaves_it_to_the_other_rules(scope: dict[str, Any]) -> None:
    assert pair_of(scope) is None
    assert foreign_owner(scope) is None


@pytest.mark.parametrize(("client", "server"), [(HERE, "0.0.0.0"), (MAPPED, "::"), (MAPPED, MAPPED)])
def test_addresses_are_understood_in_every_form(client: str, server: str) -> None:
    found = pair_of({"client": (client, 5), "server": (server, 8000)})
    assert found is not None
    assert (str(found.address), str(found.remote)) == (HERE, HERE)


def test_without_netlink_the_other_rules_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    origin._knows_owners.cache_clear()
    monkeypatch.setattr(origin, "_SOCK_DIAG", 31)  # a netlink family that does not exist
    with connected() as (peer, server):
        scope = {"client": server.getpeername(), "server": server.getsockname()}
        peer.close()
        assert foreign_owner(scope) is None
    assert not origin._knows_owners()
    origin._knows_owners.cache_clear()


def test_shortage_of_descriptors_lets_no_stranger_in(monkeypatch: pytest.MonkeyPatch) -> None:
    origin._knows_owners.cache_clear()
    with connected() as (_, server):
        scope = {"client": server.getpeername(), "server": server.getsockname()}
        real = socket.socket

        def short(*arguments: Any, **options: Any) -> Any:
            if arguments[:1] != (socket.AF_NETLINK,):
                return real(*arguments, **options)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(socket, "socket", short)
        with pytest.raises(Busy, match="Too many open files"):
            foreign_owner(scope)
        monkeypatch.setattr(socket, "socket", real)
        assert foreign_owner(scope) is None  # the shortage is not remembered


async def test_a_connection_of_serve_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up, real = list[Any](), origin._objection_to_peer

    def counted(scope: Any) -> str | None:
        looked_up.append(scope["client"])
        return real(scope)

    monkeypatch.setattr(origin, "_objection_to_peer", counted)
    monkeypatch.setattr(serving, "settle_collector", lambda: None)  # which is for a process of its own
    hub = new_hub()
    running, listening = serving.server(hub), serving.listen(HERE, 0)
    task = await serving.start(running, listening)
    try:
        async with httpx2.AsyncClient(base_url=serving.address_of(listening), trust_env=False, timeout=60) as http:
            for _ in range(5):
                assert (await http.get("/v1/channels/c")).status_code == 200
            assert len(looked_up) == 1
            assert (await http.get("/v1/channels/c", headers={"Via": "1.1 proxy"})).status_code == 403
    finally:
        running.should_exit = True
        await task
