"""The bus on Redis carries notices, keeps stores apart, and names each mistake, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proof.chaos.processes import free_port
from tenuto import Hub
from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.stores import open_bus
from tenuto.stores.base import Bus, Notice
from tests.certificates import make_certificate
from tests.proxy import FaultProxy
from tests.redis_server import RedisServer, needs_redis, needs_valkey, running_redis

pytestmark = needs_redis

PATIENCE_S = 60.0


@pytest.fixture(scope="module", params=["redis-server", pytest.param("valkey-server", marks=needs_valkey)])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(program=request.param) as server:
        server.ask("ACL", "SETUSER", "app", "on", ">secret", "&tenuto:*", "+publish", "+subscribe", "+unsubscribe")
        server.ask("ACL", "SETUSER", "other", "on", ">secret", "&another:*", "+publish", "+subscribe", "+unsubscribe")
        yield server


class Listener:
    """An open bus, with the notices that it has received."""

    def __init__(self, bus: Bus, *channels: str) -> None:
        self.bus = bus
        self.notices: asyncio.Queue[Notice | None] = asyncio.Queue()
        for channel in channels:
            bus.follow(channel)
        bus.listen(self.notices.put_nowait)

    async def next(self) -> Notice | None:
        async with asyncio.timeout(PATIENCE_S):
            return await self.notices.get()

    async def until_its_link_is_lost(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.bus.stats()["bus_losses"]:  # noqa: ASYNC110 - it counts without a signal
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(url: str, *channels: str, name: str = "store") -> AsyncIterator[Listener]:
    """Give a bus that carries the notices of `channels`."""
    bus = open_bus(url)
    await bus.open(name)
    try:
        listener = Listener(bus, *channels)
        assert await listener.next() is None
        yield listener
    finally:
        await bus.close()


async def test_notices_of_followed_channels_reach_the_other_nodes(server: RedisServer) -> None:
    url = server.url.replace("//", "//app:secret@")
    async with listening(url, "a") as first, listening(url, "a", "b") as second:
        sent = [Notice("moved", "a", b"1"), Notice("signal", "a", b"2"), Notice("here", "", b"3")]
        await first.bus.notify([*sent, Notice("moved", "c", b"")])
        assert [await second.next() for _ in sent] == sent
        second.bus.unfollow("b")
        second.bus.follow("c")
        assert await second.next() == Notice("moved", "c", b"")  # from now on
        last = Notice("moved", "c", b"4")
        await first.bus.notify([Notice("moved", "b", b""), Notice("moved", "a", b"x" * 70_000), last])
        assert await second.next() == last
        await second.bus.notify([Notice("moved", "a", b"5")])
        assert await first.next() == Notice("moved", "a", b"5")  # its own did not come before
        assert first.bus.stats() == {
            "bus_connected": 1,
            "bus_channels": 1,
            "bus_sent": 6,
            "bus_received": 1,
            "bus_dropped": 1,
            "bus_losses": 0,
        }


async def test_stores_and_prefixes_on_one_server_do_not_see_one_another(server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(listening(server.url, "a"))
        store = await stack.enter_async_context(listening(server.url, "a", name="another"))
        staging = await stack.enter_async_context(listening(f"{server.url}?prefix=staging", "a"))
        node = await stack.enter_async_context(listening(server.url, "a"))
        for number, other in enumerate((store, staging, node)):
            await other.bus.notify([Notice("signal", "a", b"%d" % number)])
        assert await here.next() == Notice("signal", "a", b"2")


async def test_close_ends_at_each_moment_of_a_failure() -> None:
    async def close(bus: Bus, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await bus.close()

    with running_redis() as dying:
        async with AsyncExitStack() as stack:
            buses = [(await stack.enter_async_context(listening(dying.url))).bus for _ in range(10)]
            dying.kill()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(close(bus, turns) for turns, bus in enumerate(buses)))


async def test_many_new_channels_share_the_readings_of_heads(server: RedisServer) -> None:
    async with listening(server.url) as one:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(3):
            for other in range(10):
                one.bus.follow(f"{number}-{other}")
            assert await one.next() is None
        assert loop.time() - began_s > 0.3  # two pauses of 0.2 s lie between


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_server_that_accepts_and_does_not_answer_is_noticed(
    server: RedisServer, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        listening(f"redis://127.0.0.1:{proxy.port}", "a") as first,
        listening(server.url, "a") as second,
    ):
        with monkeypatch.context() as patch:
            patch.setattr("tenuto.stores.redis.bus.RESPONSE_TIMEOUT_S", 0.5)
            proxy.stall(direction)  # type: ignore[arg-type]
            await first.bus.notify([Notice("moved", "a", b"lost")])
        proxy.resume()
        assert await first.next() is None  # from another link
        await second.bus.notify([Notice("moved", "a", b"1")])
        assert await first.next() == Notice("moved", "a", b"1")


async def test_server_that_becomes_a_replica_is_left(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.stores.redis.bus.CHECK_S", 0.05)
    with running_redis() as former:
        async with listening(former.url) as one:
            former.ask("REPLICAOF", "127.0.0.1", str(server.port))
            await one.until_its_link_is_lost()


async def test_a_bus_that_is_away_delays_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.stores.redis.bus.CONNECT_TIMEOUT_S", 0.2)
    late = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await late.wait()
        writer.close()

    silent = await asyncio.start_server(wait, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    bus = open_bus(f"redis://127.0.0.1:{port}")
    async with silent:
        async with asyncio.timeout(PATIENCE_S):
            await bus.open("store")
            await bus.notify([Notice("moved", "a", b"")])
            await bus.close()
        late.set()
    assert bus.stats()["bus_dropped"] == 1


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("app:wrong@", "refused the user .*; check user and password in the bus URL"),
        ("other:secret@", r"refused a command .*needs: ACL SETUSER name &tenuto:\* \+publish \+subscribe"),
    ],
)
async def test_refused_users_get_the_remedy(server: RedisServer, user: str, expected: str) -> None:
    with pytest.raises(StoreUnusable, match=expected) as refused:
        await open_bus(server.url.replace("//", f"//{user}")).open("store")
    assert user.rstrip("@") not in str(refused.value)


async def test_servers_that_carry_no_notices_are_refused(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    web = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = web.sockets[0].getsockname()[1]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(web)
        replica = stack.enter_context(running_redis("--replicaof", "127.0.0.1", str(server.port)))
        sentinel = stack.enter_context(running_redis("--sentinel"))
        closed = stack.enter_context(running_redis("--requirepass", "geheim"))
        place = f"127.0.0.1:{sentinel.port}"
        for url, expected in (
            (f"redis://127.0.0.1:{port}", "is no Redis or Valkey server"),
            (replica.url, "is a replica, .*; name the primary"),
            (closed.url, "refused the user .*; check user and password"),
            (sentinel.url, "is a Sentinel; write redis"),
            (f"redis+sentinel://{place}/none", "/none' has no server of this name; check the name"),
            (f"redis+sentinel://127.0.0.1:{server.port}/main", "is no Sentinel; write redis://"),
        ):
            with pytest.raises(StoreUnusable, match=expected):
                await open_bus(url).open("store")
        sentinel.ask("SENTINEL", "MONITOR", "old", "127.0.0.1", str(replica.port), "1")
        bus = open_bus(f"redis+sentinel://{place}/old")  # a server that was the primary: it is tried again
        await bus.open("store")
        await bus.close()
        assert "its Sentinel names a replica" in caplog.text


async def test_bus_follows_its_server_over_a_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.stores.redis.bus.RETRY_S", (0.1, 0.5))
    with (
        running_redis("--repl-diskless-sync-delay", "0") as primary,
        running_redis("--replicaof", "127.0.0.1", str(primary.port)) as replica,
        running_redis("--sentinel") as sentinel,
    ):
        replica.until(lambda: "master_link_status:up" in replica.ask("INFO", "replication"))
        sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", str(primary.port), "1")
        sentinel.until(lambda: "master-link-status\r\n$2\r\nok" in sentinel.ask("SENTINEL", "REPLICAS", "main"))
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with listening(url, "a") as first, listening(url, "a") as second:
            primary.kill()
            sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", "200")
            assert [await first.next(), await second.next()] == [None, None]  # notices may have been missed
            assert "role:master" in replica.ask("INFO", "replication")
            await first.bus.notify([Notice("moved", "a", b"1")])
            assert await second.next() == Notice("moved", "a", b"1")
            assert first.bus.stats()["bus_losses"] == 1


async def test_nodes_of_a_cluster_pass_notices_on() -> None:
    # By default a node takes the port 10,000 above its own for the other nodes, which a connection may have.
    among = str(free_port()), str(free_port())
    options = [("--cluster-enabled", "yes", "--cluster-port", port) for port in among]
    with running_redis(*options[0]) as one, running_redis(*options[1]) as two:
        one.ask("CLUSTER", "ADDSLOTSRANGE", "0", "8000")
        two.ask("CLUSTER", "ADDSLOTSRANGE", "8001", "16383")
        one.ask("CLUSTER", "MEET", "127.0.0.1", str(two.port), among[1])
        async with listening(one.url, "a") as first, listening(two.url, "a") as second:
            notice = Notice("moved", "a", b"1")
            async with asyncio.timeout(PATIENCE_S):
                while second.notices.empty():  # until the nodes have met
                    await first.bus.notify([notice])
            assert await second.next() == notice


def tls(certificate: Path, port: int, authority: Path) -> list[str]:
    """Return the options of a server with TLS at `port`, whose peers `authority` must have signed."""
    key, peers = certificate.with_name("key.pem"), ["--tls-ca-cert-file", str(authority)]
    return ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), *peers, "--tls-port", str(port)]


async def test_tls_needs_the_certificate_of_the_host_and_of_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = make_certificate(tmp_path)
    own, other = (make_certificate(folder) for folder in (tmp_path / "own", tmp_path / "other") if not folder.mkdir())
    port = free_port()
    with running_redis(*tls(certificate, port, own)) as server:
        server.ask("ACL", "SETUSER", "app", "on", ">secret", "&tenuto:*", "+publish", "+subscribe", "+unsubscribe")
        url = f"rediss://app:secret@localhost:{port}?ssl_ca_certs={certificate}"
        files = f"&ssl_certfile={own}&ssl_keyfile={own.with_name('key.pem')}"
        async with listening(url + files, "a") as first, listening(url + files, "a") as second:
            await first.bus.notify([Notice("moved", "a", b"1")])
            assert await second.next() == Notice("moved", "a", b"1")
        for wrong in (
            "",
            f"&ssl_certfile={other}&ssl_keyfile={other.with_name('key.pem')}",
            f"&ssl_certfile={own}&ssl_keyfile={other.with_name('key.pem')}",
        ):
            bus = open_bus(url + wrong)
            caplog.clear()
            try:
                await bus.open("store")
                await bus.close()
                said = caplog.text  # in TLS 1.3 a refusal comes after the handshake, and a reset may overtake it
            except StoreUnusable as error:
                said = str(error)
            assert "ssl_certfile and ssl_keyfile in the bus URL" in said
            assert "secret" not in said
        for unknown in (f"rediss://localhost:{port}", f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"):
            with pytest.raises(StoreUnusable, match=r"failed the TLS handshake .*certificate verify failed"):
                await open_bus(unknown).open("store")


async def test_sentinels_with_tls_name_a_server_with_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, host="IP:127.0.0.1")
    place, at = free_port(), free_port()
    options = ["--tls-auth-clients", "no", "--tls-replication", "yes"]
    with (
        running_redis(*tls(certificate, place, certificate), *options) as server,
        running_redis("--sentinel", *tls(certificate, at, certificate), *options) as sentinel,
    ):
        server.ask("ACL", "SETUSER", "app", "on", ">secret", "&tenuto:*", "+publish", "+subscribe", "+unsubscribe")
        sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", str(place), "1")
        url = f"rediss+sentinel://app:secret@127.0.0.1:1,127.0.0.1:{at}/main?ssl_ca_certs={certificate}"  # one is away
        async with listening(url, "a") as first, listening(url, "a") as second:
            await first.bus.notify([Notice("moved", "a", b"1")])
            assert await second.next() == Notice("moved", "a", b"1")
        with pytest.raises(StoreUnusable, match=r"failed the TLS handshake .*certificate verify failed"):
            await open_bus(url.partition("?")[0]).open("store")


@pytest.mark.parametrize("path", ["/nonexistent.pem", "/", "%00", ""])
async def test_a_file_that_cannot_be_read_is_refused(path: str) -> None:
    with pytest.raises(StoreUnusable, match=r"which cannot be read .*; check ssl_ca_certs in the bus URL"):
        await open_bus(f"rediss://127.0.0.1:1?ssl_ca_certs={path}").open("store")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://user:geheim@db", "bus URL must be redis://host:6379, .* got 'http://db'"),
        ("redis://db:port", "bus URL must be"),
        ("redis://:geheim@one,two", "bus URL must be"),
        ("redis://db\n", "bus URL must be"),
        ("redis://db?geheim", "bus URL must be"),
        ("redis+sentinel://db", "bus URL must be"),
        ("redis://user:1?geheim=x@db", "bus URL must be redis://.* got 'redis://db'"),
        ("redis+sentinel://user:1/geheim@db/name", "bus URL must be redis://.* got 'redis.sentinel://db/name'"),
        ("redis://db/chat", "has a path"),
        ("redis://db?password=geheim", "unknown option 'password'; a bus has prefix"),
        ("redis://db?ssl_ca_certs=a", "unknown option 'ssl_ca_certs'; a bus has prefix, and with rediss://"),
        ("redis://db?prefix=a*", "prefix of a bus must be 1-64 characters of .*, got 'a*'"),
    ],
)
def test_url_without_a_bus_is_refused_with_the_remedy(url: str, expected: str) -> None:
    with pytest.raises(LocalError, match=expected.replace("*'", r"\*'")) as refused:
        open_bus(url)
    assert "geheim" not in str(refused.value)


def test_a_bus_needs_a_store_that_processes_share() -> None:
    with pytest.raises(LocalError, match="a bus needs a store that processes share, and a memory store serves one"):
        Hub("memory://", bus="redis://127.0.0.1")
    assert repr(open_bus("redis://user:geheim@db").server) == "BusServer('redis://db')"  # type: ignore[attr-defined]
    with pytest.raises(LocalError, match="bus must be a URL such as 'redis://host:6379', or None, got 6379"):
        Hub("memory://", bus=6379)  # type: ignore[arg-type]
