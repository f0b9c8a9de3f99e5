"""The PostgreSQL store keeps every promise, on a real server."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from proof.chaos.processes import free_port
from tenuto import Hub, Retention
from tenuto.cli import store_commands
from tenuto.cli.main import main
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.core.events import ChannelAttached
from tenuto.hub.clock import Clock, StoreClock
from tenuto.hub.keep import exports, retention
from tenuto.stores import open_url
from tenuto.stores.base import (
    NOTHING,
    Committed,
    CommitUnknown,
    Conflict,
    Hold,
    Notice,
    Store,
    Write,
    head_of,
)
from tenuto.stores.postgres.schema import renew
from tenuto.stores.postgres.server import PostgresServer
from tenuto.stores.postgres.store import READERS, PostgresStore, payloads_of
from tests.hub.watching import Watcher
from tests.postgres import Postgres, needs_postgres
from tests.proxy import FaultProxy
from tests.stores.contract import MINUTE_MS, Chat, append, create, texts
from tests.stores.two import Two, TwoContract, opened

pytestmark = needs_postgres

PATIENCE_S = 60.0


@pytest.fixture
async def store(server: Postgres, schema: str) -> AsyncIterator[PostgresStore]:
    async with opened(server, schema) as store:
        yield store


class TestPostgresStore(TwoContract):
    @pytest.fixture
    async def store(self, server: Postgres, schema: str) -> AsyncIterator[Store]:
        async with opened(server, schema) as first, opened(server, schema) as second:
            yield Two(first, second)


async def test_long_tails_move_to_rows_of_their_own_and_leave_with_their_documents(
    server: Postgres, schema: str, store: PostgresStore
) -> None:
    chat = Chat(store)
    await chat.do(create("m1", streaming=True), create("m2", streaming=True))
    for number in range(20):
        await chat.do(append("m1", f"{number:02d} " * 50), append("m2", "."))
    rows = int(server.sql(f"SELECT count(*) FROM {schema}.tails"))
    assert rows == 6
    await chat.do(documents=["m1"])
    assert int(server.sql(f"SELECT count(*) FROM {schema}.tails")) == rows  # m2 still needs them
    await chat.do(documents=["m2"])
    assert server.sql(f"SELECT count(*) FROM {schema}.tails") == "0"
    assert server.sql(f"SELECT has_tail, length(tail) FROM {schema}.channels") == "f|0"
    assert [len(text) for text in await texts(store, "c", "m1", "m2")] == [3_000, 20]


async def test_the_wal_of_an_append_does_not_contain_the_earlier_entries_of_its_row(
    server: Postgres, schema: str, store: PostgresStore
) -> None:
    chat = Chat(store)
    await chat.do(create("m1", streaming=True))
    before = int(server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))
    for _ in range(50):
        await chat.do(append("m1", "token"))
    assert (int(server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'")) - before) / 50 < 350  # bytes


async def test_appends_update_their_row_in_place(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True))
        for _ in range(200):
            await chat.do(append("m1", "two tokens "))
    # A session publishes its statistics about every second, and at its end.
    counts = f"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = '{schema}'"
    updated = in_place = 0
    async with asyncio.timeout(60):
        while updated < 200:
            found = await asyncio.to_thread(server.sql, f"{counts} AND relname = 'channels'")
            updated, in_place = map(int, found.split("|"))
    assert updated == 200
    assert in_place > 0.9 * updated


# -- several instances ---------------------------------------------------------------------------------------------


async def test_a_locked_channel_conflicts_and_a_deleted_one_cannot_begin_meanwhile(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema) as store:
        chat, other = Chat(store), Chat(store, "d")
        await chat.do(create("m1", streaming=True))
        blocker = await asyncpg.connect(server.url)
        async with blocker.transaction():
            await blocker.execute(f"SELECT FROM {schema}.channels FOR UPDATE")
            await blocker.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{schema}.d")
            held = await store.commit([chat.write(append("m1", "a")), other.write(create("m1", "a"))])
            assert held == [Conflict(chat.head), Conflict(NOTHING)]
        await blocker.close()
        assert await chat.do(append("m1", "a")) == Committed(2)
        assert await other.do(create("m1", "a")) == Committed(1)


async def test_instances_that_write_to_the_same_channels_do_not_deadlock(server: Postgres, schema: str) -> None:
    channels = [f"c{number}" for number in range(5)]

    async def write(store: PostgresStore, names: list[str]) -> int:
        chats, stored = [Chat(store, name, f"e{id(store)}") for name in names], 0
        for number in range(20):
            message = f"m{id(store)}-{number}"
            writes = []
            for chat, head in zip(chats, await store.heads(names), strict=True):
                chat.state.serial = head.serial
                chat.state.epoch = head.epoch
                writes.append(chat.write(create(message, "a")))
            stored += sum(isinstance(result, Committed) for result in await store.commit(writes))
        return stored

    async with opened(server, schema) as first, opened(server, schema) as second:
        stored = await asyncio.gather(write(first, channels), write(second, channels[::-1]))
        assert sum(head.serial for head in await first.heads(channels)) == sum(stored)
    assert "deadlock" not in (server.folder / "log").read_text()


async def test_entries_of_a_node_that_has_ended_get_documents_from_another(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as second:
        await second.tidy(0)
        await second.hold("n2", MINUTE_MS, {})
        async with opened(server, schema) as first:
            await first.hold("n1", MINUTE_MS, {})
            chat = Chat(first)
            await chat.do(create("m1", streaming=True))
            await chat.do(append("m1", "a"))
            await first.hold("n1", 0, {})
        await second.hold("n2", MINUTE_MS, {})
        assert await second.tidy(0) == []
        assert await second.tidy(MINUTE_MS) == [("c", "m1")]


async def test_broken_connection_for_notices_is_opened_again_and_reports_it(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as first, opened(server, schema) as second:
        received: asyncio.Queue[Notice | None] = asyncio.Queue()
        first.listen(lambda notice: None)
        second.listen(received.put_nowait)
        async with asyncio.timeout(60):
            assert await received.get() is None
            _end_sessions(server)
            assert await received.get() is None
            sent = Notice("moved", "c", b"1")
            while received.empty():  # the first instance may not be connected again yet
                await first.notify([sent])
                await asyncio.sleep(0)
            assert await received.get() == sent


async def test_notice_in_the_moment_of_the_end_of_its_connection_arrives(server: Postgres, schema: str) -> None:
    """The driver calls a listener in the next iteration of the event loop, when the session may have ended."""
    async with opened(server, schema) as store:
        received: asyncio.Queue[Notice | None] = asyncio.Queue()
        store.listen(received.put_nowait)
        async with asyncio.timeout(60):
            assert await received.get() is None
            assert store._notices is not None
            db = store._notices._db
            assert db is not None
            sent = Notice("moved", "c", b"1")
            db._process_notification(db.get_server_pid() + 1, store.notices_name, next(payloads_of([sent])))
            db.terminate()
            assert await received.get() == sent


async def test_notices_that_never_arrive_are_reported_with_the_remedy(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler in transaction mode gives LISTEN to a session of the server that it then takes away."""

    async def ignore(self: object, *arguments: object) -> None:
        pass

    monkeypatch.setattr(asyncpg.Connection, "add_listener", ignore)
    monkeypatch.setattr("tenuto.stores.postgres.store.CHECK_TIMEOUT_S", 0.1)
    async with opened(server, schema) as store:
        store.listen(lambda notice: None)
        async with asyncio.timeout(60):
            while "a pooler in transaction mode" not in caplog.text:
                await head_of(store, "c")


# -- a server that ends, restarts or hangs -----------------------------------------------------------------------


def _end_sessions(server: Postgres) -> None:
    """End all connections of stores, as an administrator or a restart does."""
    server.disconnect("application_name LIKE 'tenuto on %'")


@pytest.mark.parametrize("steps", range(8))
async def test_call_in_each_moment_of_the_end_of_a_connection_is_unavailable(
    server: Postgres, schema: str, steps: int
) -> None:
    """The error of the server arrives first, then the end of the connection. In between the driver takes no call."""
    async with opened(server, schema) as store:
        is_listening = asyncio.Event()
        store.listen(lambda _: is_listening.set())
        async with asyncio.timeout(60):
            await is_listening.wait()
        chat = Chat(store)
        await chat.do(create("m1", "a"))
        await head_of(store, "c")
        for call in (
            lambda: store.notify([Notice("moved", "c", b"1")]),
            lambda: chat.do(create("m2", "b")),
            lambda: head_of(store, "c"),
        ):
            _end_sessions(server)  # meanwhile the event loop stands still
            for _ in range(steps):
                await asyncio.sleep(0)
            with suppress(StoreUnavailable):
                await call()
        assert await head_of(store, "c")


async def test_cancelled_read_of_a_lost_connection_is_cancelled(server: Postgres, store: PostgresStore) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with store._pooled():
            await asyncio.to_thread(_end_sessions, server)
            raise asyncio.CancelledError


async def test_driver_logs_no_traceback_while_the_server_is_away(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        store = PostgresStore(f"postgresql://app@127.0.0.1:{proxy.port}/app", schema=schema)
        await store.open()
        assert await head_of(store, "c") == NOTHING
        proxy.refuse()
        await proxy.cut()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await head_of(store, "c")
        await store.close()
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_commit_on_a_server_that_hangs_is_of_unknown_fate(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server, schema):
        pass  # the tables are made without the short limit
    monkeypatch.setattr(PostgresServer, "timeout_s", 2.0)
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", "a", streaming=True))
        blocker = await asyncpg.connect(server.url)
        async with blocker.transaction():
            await blocker.execute(f"LOCK TABLE {schema}.channels IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(CommitUnknown, match=r"did not respond within 2 s to a statement"):
                await chat.do(append("m1", "b"))
            with pytest.raises(StoreUnavailable, match="did not respond"):
                await head_of(store, "c")
        await blocker.close()
        monkeypatch.setattr(PostgresServer, "timeout_s", 20.0)
        # The server may have carried the statement out after the store gave up; the caller reads before it goes on.
        (text,) = await texts(store, "c", "m1")
        assert text in ("a", "ab")
        chat.state.serial = (await head_of(store, "c")).serial
        assert chat.state.serial == len(text)
        assert await chat.do(create("m2", "x")) == Committed(len(text) + 1)


class Proxy:
    """A TCP proxy in front of a server. Its open connections can stop to pass data on, as when the network fails."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._silent: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def fall_silent(self) -> None:
        self._silent.update(self._writers)

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, there_writer]
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if writer not in self._silent:
                    writer.write(data)
        writer.close()


async def test_renewal_does_not_wait_for_reads(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresServer, "timeout_s", 2 * PATIENCE_S)
    async with AsyncExitStack() as reads:
        for _ in range(READERS):
            await reads.enter_async_context(store._reading())
        waiting = asyncio.create_task(store.notes(""))
        async with asyncio.timeout(PATIENCE_S):
            await store.hold("node", 4_000, {})
        assert not waiting.done()
    assert await waiting == {}


async def test_renewal_over_a_silent_connection_ends_with_the_time_of_its_caller(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresServer, "timeout_s", 2 * PATIENCE_S)
    proxy = Proxy(server.port)
    url = f"postgresql://app@127.0.0.1:{await proxy.start()}/app"
    store = PostgresStore(url, schema=schema)
    await store.open()
    lease = (await store.hold("n1", MINUTE_MS, {})).lease
    proxy.fall_silent()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.hold("n1", MINUTE_MS, {})
        assert (await store.hold("n1", MINUTE_MS, {})).lease == lease
    monkeypatch.setattr(PostgresServer, "timeout_s", 0.1)  # the connection for writes is silent, too
    await store.close()
    await proxy.close()


async def test_instances_that_open_an_empty_schema_at_the_same_moment_make_its_tables_once(
    server: Postgres, schema: str
) -> None:
    stores = [PostgresStore(server.url, schema=schema) for _ in range(8)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        assert len({store.notices_name for store in stores}) == 1
        chat = Chat(stores[0])
        await chat.do(create("m1", "a"))
        assert await texts(stores[7], "c", "m1") == ["a"]
    finally:
        for store in stores:
            await store.close()


class Counted:
    """A connection that counts its calls."""

    def __init__(self, db: asyncpg.Connection[asyncpg.Record]) -> None:
        self._db = db
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._db, name)


async def test_renewal_of_one_node_delays_those_of_others_by_few_round_trips(server: Postgres, schema: str) -> None:
    """Each call waits for the event loop of its node, while the row of the leases is locked."""
    async with opened(server, schema) as store:
        await store.hold("n2", MINUTE_MS, {"c": Hold(b"3")})
        db = await asyncpg.connect(server.url)
        for values in ({}, {"a": Hold(b"1"), "b": Hold(b"2")}, {"a": None, "b": Hold(b"4")}):
            counted = Counted(db)
            async with db.transaction():
                await renew(counted, schema, "n1", MINUTE_MS, values)  # type: ignore[arg-type]
            assert counted.calls == 3
        await db.close()
        assert {name: (node, hold.value) for name, (node, hold) in (await store.holds("")).items()} == {
            "b": ("n1", b"4"),
            "c": ("n2", b"3"),
        }


async def test_name_of_notices_is_a_secret_of_the_schema(server: Postgres, schema: str) -> None:
    names = []
    for name in (schema, schema, f"{schema}_b"):
        async with opened(server, name):
            names.append(server.sql(f"SELECT notices FROM {name}.store"))
    assert names[0] == names[1] != names[2]


# -- servers and roles that cannot work --------------------------------------------------------------------------


async def _refusal(url: str) -> TenutoError:
    with pytest.raises(TenutoError) as caught:
        await open_url(url).open()
    return caught.value


async def test_a_server_that_is_not_there_is_named(server: Postgres) -> None:
    error = await _refusal(f"postgresql://app:secret@127.0.0.1:{free_port()}/app")
    assert isinstance(error, StoreUnavailable)
    assert str(error).startswith("PostgreSQL at 'postgresql://127.0.0.1:")
    assert "check its host and port" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("role", "database", "expected"),
    [
        ("stranger", "app", 'role "stranger" does not exist.*; check role, password and sslmode'),
        ("app", "other", 'database "other" does not exist.*; create it first'),
        ("reader", "app", "read-only for role 'reader'; set default_transaction_read_only to off"),
        ("poor", "app", 'GRANT CREATE ON DATABASE "app" TO "poor"; or: CREATE SCHEMA none_yet AUTHORIZATION "poor"'),
    ],
)
async def test_a_role_that_cannot_work_is_refused_with_the_remedy(
    server: Postgres, role: str, database: str, expected: str
) -> None:
    for statement in ("CREATE ROLE reader LOGIN", "CREATE ROLE poor LOGIN"):
        name = statement.split()[2]
        if server.sql(f"SELECT count(*) FROM pg_roles WHERE rolname = '{name}'") == "0":
            server.sql(statement)
    server.sql("ALTER ROLE reader SET default_transaction_read_only = on")
    url = f"postgresql://{role}@127.0.0.1:{server.port}/{database}?schema=none_yet"
    error = await _refusal(url)
    assert isinstance(error, StoreUnusable)
    with pytest.raises(StoreUnusable, match=expected):
        raise error


async def test_a_role_without_rights_in_a_schema_of_another_role_gets_the_grants_it_needs(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema):
        pass
    server.sql("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    url = f"postgresql://guest@127.0.0.1:{server.port}/app?schema={schema}"
    in_schema = f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "guest"'
    on_tables = f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "guest"'
    error = await _refusal(url)
    assert isinstance(error, StoreUnusable)
    assert str(error).endswith(f"as the owner of the schema run: {in_schema}; {on_tables}")
    server.sql(f"{in_schema}; {on_tables}")
    store = open_url(url)
    await store.open()
    assert await Chat(store).do(create("m1", "a")) == Committed(1)
    server.sql(f"REVOKE INSERT ON ALL TABLES IN SCHEMA {schema} FROM guest")
    with pytest.raises(StoreUnavailable, match=re.escape(on_tables)):
        await store.note({"a": b"1"})
    await store.close()


async def test_tables_of_another_program_are_refused(server: Postgres, schema: str) -> None:
    server.sql(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.users (id int)")
    with pytest.raises(StoreUnusable, match=r"holds tables of another program; name another one with \?schema="):
        raise await _refusal(f"{server.url}?schema={schema}")
    for number, statement in enumerate(
        (
            "CREATE TABLE {0}.store (id int); CREATE TABLE {0}.channels (id int)",
            "CREATE TABLE {0}.store AS SELECT 'a' AS version; CREATE TABLE {0}.channels (id int)",
            "CREATE TABLE {0}.store AS SELECT 1 AS version; CREATE TABLE {0}.channels (id int)",
            "CREATE VIEW {0}.channels AS SELECT 1 AS id",
        )
    ):
        name = f"{schema}_{number}"
        server.sql(f"CREATE SCHEMA {name};" + statement.format(name))
        error = await _refusal(f"{server.url}?schema={name}")
        assert isinstance(error, StoreUnusable)
        assert f"schema '{name}' holds tables of another program; name another one" in str(error)
        found = f"SELECT string_agg(column_name, ',') FROM information_schema.columns WHERE table_schema = '{name}'"
        assert set(server.sql(found).split(",")) <= {"id", "version"}  # they are as they were


@pytest.mark.parametrize("name", ["user", "default", "pg_chat"])
async def test_schema_with_a_name_that_postgresql_reserves_is_refused(server: Postgres, name: str) -> None:
    error = await _refusal(f"{server.url}?schema={name}")
    assert isinstance(error, StoreUnusable)
    assert f"schema '{name}' has a name that PostgreSQL reserves; name another one with ?schema=" in str(error)


async def test_an_administrators_limits_do_not_end_statements_or_weaken_commits(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.sql("ALTER DATABASE app SET synchronous_commit = off; ALTER DATABASE app SET statement_timeout = '1ms'")
    try:
        with caplog.at_level(logging.INFO, "tenuto.stores"):
            async with opened(server, schema) as store:
                assert await Chat(store).do(create("m1", "a")) == Committed(1)
    finally:
        server.sql("ALTER DATABASE app RESET ALL")
    assert "synchronous_commit on, synchronous standbys none" in caplog.text
    assert "runs with fsync off: a power cut can destroy the whole database; set fsync to on" in caplog.text


async def test_a_setting_that_is_reloaded_does_not_weaken_the_commits_of_an_open_store(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema) as store:
        server.sql("ALTER SYSTEM SET synchronous_commit = off")
        try:
            server.sql("SELECT pg_reload_conf()")
            async with asyncio.timeout(60):
                while await asyncio.to_thread(server.sql, "SHOW synchronous_commit") != "off":
                    pass
            assert await store._writer() is store._db
            assert await (await store._writer()).fetchval("SHOW synchronous_commit") == "on"
        finally:
            server.sql("ALTER SYSTEM RESET synchronous_commit")
            server.sql("SELECT pg_reload_conf()")


async def test_a_store_may_leave_the_disk_to_the_server(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tenuto.stores"):
        store = open_url(f"{server.url}?schema={schema}&durability=async")
        await store.open()
        await store.close()
    assert "synchronous_commit off" in caplog.text


# The hub on a database ---------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "keeping.md").read_text()


class AheadClock(Clock):
    """A clock that can be set ahead, and that hubs read in place of the server's."""

    ahead_ms = 0

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        patch.setattr(StoreClock, "now_ms", self.now_ms)

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def hub_on(server: Postgres, schema: str, **options: Any) -> Hub:
    return Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0, **options)


async def test_the_records_of_channels_are_kept_as_in_other_stores(
    server: Postgres, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)
    clock = AheadClock(monkeypatch)
    hub = hub_on(server, schema, retention={"log:*": Retention(idle="10m")})
    for author in ("ann", "bob"):
        await hub.create("chat:1", text=f"by {author}", author=author)
    assert [one.channel for one in (await hub.archive.channels(prefix="chat:")).channels] == ["chat:1"]
    done = await hub.archive.forget("ann")
    assert (done.messages, done.is_clean) == (1, None)
    assert [one.author for one in (await hub.history("chat:1")).messages] == ["bob"]

    lines = [line async for line in hub.archive.export("chat:1")]
    file = tmp_path / "chat.jsonl"
    await asyncio.to_thread(file.write_bytes, b"".join(lines))
    await hub.archive.import_file(file, channel="chat:2")
    copied = [line async for line in hub.archive.export("chat:2")]
    assert copied[1:-1] == lines[1:-1]

    await hub.create("log:1", text="old")
    clock.ahead_ms = 11 * MINUTE_MS
    await hub.retainer._round(hub.runtime)
    assert [one.channel for one in (await hub.archive.channels()).channels] == ["chat:1", "chat:2"]
    await hub.close()


async def test_commands_list_the_channels_of_a_database_and_what_retention_would_remove(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = AheadClock(monkeypatch)
    clock.ahead_ms = -11 * MINUTE_MS
    hub = hub_on(server, schema)
    for channel in ("chat:1", "log:1", "log:2"):
        await hub.create(channel, text="old")
    await hub.command("log:2", "approve")  # it waits for its reply
    clock.ahead_ms = 0
    await hub.create("log:1", text="new")

    async def run(*words: str) -> list[list[str]]:
        url = f"{server.url}?schema={schema}"
        done = await asyncio.to_thread(CliRunner().invoke, main, [*words, "--store", url])
        assert done.exit_code == 0, done.output
        return [line.split() for line in done.output.splitlines()]

    listed = await run("channels", "log:")
    assert [(one[0], *one[4:]) for one in listed[1:]] == [("2", "log:1"), ("1", "log:2")]
    due = await run("retention", "--dry-run", "--keep", "*=10m")
    whole = ("(the", "whole", "channel)")
    assert [(one[0], *one[2:]) for one in due[:-1]] == [("1", "chat:1", *whole), ("1", "log:1"), ("1", "log:2")]
    assert due[-1][0] == "3"
    assert len((await hub.archive.channels()).channels) == 3
    await hub.close()


@pytest.mark.parametrize("restored", ["tables", "rows"])
async def test_viewers_of_a_restored_database_begin_anew(server: Postgres, schema: str, restored: str) -> None:
    (statement,) = re.findall(r'^psql chat -c "(.*)"$', PAGE, re.MULTILINE)
    hub = hub_on(server, schema)
    await hub.create("c", id="m1", text="kept")
    await asyncio.to_thread(server.dump, schema)
    await hub.create("c", id="m2", text="lost")
    watcher = Watcher(hub, "c")
    await watcher.until(lambda view: len(view.messages()) == 2)
    await watcher.leave()
    await hub.close()
    if restored == "tables":
        await asyncio.to_thread(server.restore, schema)
    else:
        named = f"SELECT string_agg(schemaname || '.' || tablename, ',') FROM pg_tables WHERE schemaname = '{schema}'"
        server.sql(f"TRUNCATE {server.sql(named)}")
        await asyncio.to_thread(server.restore, schema, "--data-only")
        # the store cannot notice it
        server.sql(statement.replace("tenuto.", f"{schema}."))

    hub = hub_on(server, schema)
    await hub.create("c", id="m3", text="new")
    again = Watcher(hub, "c", since=watcher.cursor)
    again.view = watcher.view
    await again.until(lambda view: view.cursor == hub.channel("c").state.cursor)
    assert [one.resumed for one in again.events if isinstance(one, ChannelAttached)] == [False]
    assert [one.text for one in again.view.messages()] == ["kept", "new"]
    await again.leave()
    await hub.close()


async def test_command_on_a_store_leaves_the_running_import_of_another_process(
    server: Postgres, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_on(server, schema)
    for number in range(2):
        await hub.create("c", text=f"{number}")
    file = tmp_path / "c.jsonl"
    await asyncio.to_thread(file.write_bytes, b"".join([line async for line in hub.archive.export("c")]))

    monkeypatch.setattr(exports, "BATCH", 1)
    commit = hub.store.commit

    async def commit_beside_a_command(writes: Sequence[Write]) -> list[Committed | Conflict]:
        async with store_commands.opened(f"{server.url}?schema={schema}"):
            return await commit(writes)

    monkeypatch.setattr(hub.store, "commit", commit_beside_a_command)
    assert (await hub.archive.import_file(file, channel="copy")).messages == 2
    await hub.close()
