"""The book of connections, without sockets: the connection that it evicts, and the address that a peer counts for."""

from __future__ import annotations

import asyncio
import select
import socket
from collections import Counter

import pytest

from tenuto import Limits, allow_everyone
from tenuto.client import Client
from tenuto.core.errors import LocalError
from tenuto.core.limits import MIB
from tenuto.hub import tasks
from tenuto.hub.access.hosts import address_group
from tenuto.server import connections, serving
from tenuto.server.serving import listen
from tests.examples.programs import served_app
from tests.transports.conftest import PATIENCE_S, new_hub
from tests.virtual import virtually


class Peer(asyncio.Transport):
    """The owner of a connection, and its transport, which notes that the book has ended it."""

    def __init__(self, book: connections.Connections, address: str) -> None:
        self.is_evicted = False
        self.transport: asyncio.Transport = self
        connection = book.opened(address, self)
        assert connection is not None
        self.connection: connections.Connection = connection

    def expire(self) -> None:
        self.connection.close()

    def abort(self) -> None:
        self.is_evicted = True
        self.connection.close()


def waiting(book: connections.Connections, *addresses: str) -> list[Peer]:
    """Return waiting connections of `addresses`, the oldest first."""
    peers = [Peer(book, address) for address in addresses]
    for peer in peers:
        peer.connection.wait(10, may_burst=True)
    return peers


async def test_clients_that_reconnect_in_one_moment_are_not_ended_for_their_number() -> None:
    book = connections.Connections(max_open=5_000)
    viewers = waiting(book, *["192.0.2.2"] * connections.MAX_BURST)
    assert not any(peer.is_evicted for peer in viewers)
    waiting(book, "192.0.2.2")
    assert [peer.is_evicted for peer in viewers[:2]] == [True, False]


@virtually
async def test_end_of_a_burst_bounds_each_address() -> None:
    book = connections.Connections(max_open=5_000)
    peers = waiting(book, *["192.0.2.2"] * 120)  # fewer than may wait in total
    await asyncio.sleep(connections.CHANCE_S + 2 * connections.SWEEP_S)
    assert [peer.is_evicted for peer in peers] == [True] * 24 + [False] * 96


async def test_listening_socket_keeps_room_for_a_thousand_viewers_while_a_server_starts() -> None:
    listening = listen("127.0.0.1", 0)
    listening.setblocking(False)
    server = await asyncio.start_server(lambda reader, writer: None, sock=listening, backlog=1, start_serving=False)
    await server.start_serving()  # asyncio calls `listen` with its own backlog
    clients = [socket.socket() for _ in range(200)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(listening.getsockname())  # the loop of this test accepts none of them meanwhile
    waiting = set(clients)
    while ready := select.select([], waiting, [], PATIENCE_S)[1]:  # a busy kernel does not answer all at once
        waiting -= set(ready)
        if not waiting:
            break
    for client in clients:
        client.close()
    server.close()
    assert not waiting


async def test_iteration_of_the_loop_accepts_no_more_connections_of_a_storm_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a request waits for the whole storm: an iteration with 32 new connections takes 2.5 ms (measured)."""
    iteration, accepted, done = 0, Counter[int](), asyncio.Event()
    opened = connections.Connections.opened

    def noting(
        self: connections.Connections, peer: str, owner: connections.ConnectionOwner
    ) -> connections.Connection | None:
        accepted[iteration] += 1
        return opened(self, peer, owner)

    def count_iterations() -> None:
        nonlocal iteration
        iteration += 1
        counting[0] = loop.call_soon(count_iterations)
        if accepted.total() == len(clients):
            done.set()

    monkeypatch.setattr(connections.Connections, "opened", noting)
    monkeypatch.setattr(serving._ShortageFilter, "shortages", tasks.LineLimit())
    loop, clients = asyncio.get_running_loop(), [socket.socket() for _ in range(200)]
    async with served_app(new_hub(authenticate=allow_everyone)) as address, asyncio.timeout(60):
        counting = [loop.call_soon(count_iterations)]
        for client in clients:  # the kernel answers, without an iteration of this loop
            client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        await done.wait()
        counting[0].cancel()
        for client in clients:
            client.close()
            loop.call_exception_handler({"message": "socket.accept() out of system resource"})  # as without files
    loop.call_exception_handler({"message": "Task ended without completing"})
    assert (caplog.text.count("out of system"), caplog.text.count("without completing")) == (1, 1)
    assert max(accepted.values()) <= serving.ACCEPTED_AT_ONCE


async def test_frame_may_have_the_size_that_the_hub_allows() -> None:
    limits = Limits(request_bytes=3 * MIB)
    hub = new_hub(authenticate=allow_everyone, limits=limits)
    async with served_app(hub) as address, Client(address, limits=limits) as client:
        assert len((await client.create("c", text="x" * 2 * MIB)).text) == 2 * MIB


@pytest.mark.parametrize(
    ("limit", "most", "later"), [("MAX_WAITING", 3, "192.0.2.3"), ("MAX_WAITING_OF_ADDRESS", 2, "192.0.2.2")]
)
async def test_full_book_evicts_the_oldest_connection_of_the_fullest_address(
    limit: str, most: int, later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, limit, most)
    book = connections.Connections(max_open=1_000)
    one, first, second = waiting(book, "192.0.2.1", "192.0.2.2", "192.0.2.2")
    for peer in (one, first, second):
        peer.connection.since_s -= 5
    waiting(book, later)
    assert [peer.is_evicted for peer in (one, first, second)] == [False, True, False]


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_ipv6_addresses_are_counted_by_network(address: str, group: str) -> None:
    assert address_group(address) == group


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, 10.1.1.1"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["203.0.113.7, nonsense"], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
)
def test_last_address_that_no_trusted_proxy_added_is_the_client(forwarded: list[str], client: str) -> None:
    proxies = connections.TrustedProxies(["127.0.0.1", "10.0.0.0/8"])
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert proxies.client_of("127.0.0.1", [(b"host", b"localhost"), *headers]) == client


@pytest.mark.parametrize(
    ("named", "scheme", "found"),
    [
        (["https"], "http", "https"),
        (["http, https"], "ws", "wss"),
        (["https", "http"], "https", "http"),
        ([], "http", "http"),
    ],
)
def test_trusted_proxy_names_the_scheme(named: list[str], scheme: str, found: str) -> None:
    headers = [(b"x-forwarded-proto", value.encode()) for value in named]
    assert connections.TrustedProxies(["127.0.0.1"]).scheme_of(headers, scheme) == found


def test_proxy_that_is_not_an_address_is_refused() -> None:
    with pytest.raises(LocalError, match=r"--trust-proxy must be an address or a network .*, got .proxy.local."):
        connections.TrustedProxies(["proxy.local"])


async def test_idle_connection_of_a_known_peer_ends_only_for_want_of_descriptors() -> None:
    book = connections.Connections(max_open=3)
    first, second, third = (Peer(book, "192.0.2.1") for _ in range(3))
    for peer in (first, second, third):
        peer.connection.count_as_idle()
    first.connection.proceed()  # a request of the first peer runs
    third.connection.wait(10, may_burst=True)
    waiting(book, "192.0.2.2")
    assert [peer.is_evicted for peer in (first, second, third)] == [False, False, True]
    assert book.opened("192.0.2.3", first) is not None
    assert [peer.is_evicted for peer in (first, second)] == [False, False]  # the book ended the waiting one first
    assert book.opened("192.0.2.4", first) is not None
    assert second.is_evicted
    assert book.opened("192.0.2.5", first) is None
    assert book.open == 3
