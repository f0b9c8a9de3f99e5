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

from tenuto import Hub
from tenuto.cli import store_commands
from tenuto.core.errors import StoreUnavailable
from tenuto.core.events import ChannelAttached
from tenuto.hub.keep import exports
from tenuto.stores import open_url
from tenuto.stores.base import NOTHING, Committed, CommitUnknown, Conflict, Notice, Store, Write, head_of
from tenuto.stores.postgres.server import PostgresServer
from tenuto.stores.postgres.store import READERS, PostgresNotices, PostgresStore
from tests.hub.watching import Watcher
from tests.postgres import Postgres, needs_postgres
from tests.proxy import FaultProxy
from tests.stores.contract import MINUTE_MS, Chat, append, create, texts
from tests.stores.two import Two, TwoContract, opened, until_it_listens

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
    server: Postgres, schema: str, store: PostgresStore, chat: Chat
) -> None:
    await chat.do(create("m1", streaming=True), create("m2", streaming=True))
    for number in range(20):
        await chat.do(append("m1", f"{number:02d} " * 50), append("m2", "."))
    assert (rows := int(server.sql(f"SELECT count(*) FROM {schema}.tails"))) == 6
    await chat.do(documents=["m1"])
    assert int(server.sql(f"SELECT count(*) FROM {schema}.tails")) == rows  # m2 still needs them
    await chat.do(documents=["m2"])
    assert server.sql(f"SELECT count(*) FROM {schema}.tails") == "0"
    assert server.sql(f"SELECT has_tail, length(tail) FROM {schema}.channels") == "f|0"
    assert [len(text) for text in await texts(store, "c", "m1", "m2")] == [3_000, 20]


async def test_the_wal_of_an_append_does_not_contain_the_earlier_entries_of_its_row(
    server: Postgres, schema: str, chat: Chat
) -> None:
    await chat.do(create("m1", streaming=True))
    position, written = "SELECT pg_current_wal_insert_lsn() - '0/0'", []
    for _ in range(51):  # the server's own work, such as autovacuum, may write WAL during some of them
        written.append(int(server.sql(position)))
        await chat.do(append("m1", "token"))
    assert sorted(map(int.__sub__, written[1:], written))[25] < 350  # bytes of an append


# -- several instances ---------------------------------------------------------------------------------------------


async def test_a_locked_channel_conflicts_and_a_deleted_one_cannot_begin_meanwhile(
    server: Postgres, schema: str, store: PostgresStore
) -> None:
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


@pytest.mark.parametrize("is_crash", [False, True])
async def test_entries_of_a_node_that_has_ended_get_documents_from_another(
    server: Postgres, schema: str, is_crash: bool
) -> None:
    async with opened(server, schema) as second:
        await second.hold("n2", MINUTE_MS, {})
        await second.tidy(0)
        async with opened(server, schema) as first:
            await first.hold("n1", MINUTE_MS, {})
            chat = Chat(first)
            await chat.do(create("m1", streaming=True))
            await chat.do(append("m1", "a"))
            if is_crash:  # of the server, too
                server.sql(f"TRUNCATE {schema}.leases, {schema}.nodes, {schema}.holds")
            else:
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


async def test_call_that_waits_behind_another_notice_and_is_given_up_leaves_the_connection(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema) as store:
        await until_it_listens(store)
        notices = store._notices
        assert notices is not None
        db = notices._db
        async with notices._busy:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await store.notify([Notice("moved", "c", b"")])
        assert db is not None
        assert not db.is_closed()


async def test_notices_that_do_not_arrive_are_reported_with_the_remedy_at_once_after_others_have_arrived(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler in transaction mode gives LISTEN to a session of the server that it then takes away."""

    async def ignore(self: object, *arguments: object) -> None:
        pass

    for name, value in (("RETRY_S", (0.01, 9.0)), ("CHECK_S", 0.2), ("CHECK_TIMEOUT_S", 0.1)):
        monkeypatch.setattr(f"tenuto.stores.postgres.store.{name}", value)
    async with opened(server, schema) as store, asyncio.timeout(60):
        with monkeypatch.context() as broken:
            broken.setattr(asyncpg.Connection, "add_listener", ignore)
            store.listen(lambda notice: None)
            while "tries again in 0.04 s" not in caplog.text:
                await head_of(store, "c")
        notices = store._notices
        assert notices is not None
        while not notices._is_delivered.is_set():
            await head_of(store, "c")
        caplog.clear()
        monkeypatch.setattr(PostgresNotices, "_send", ignore)
        while "tries again in" not in caplog.text:
            await head_of(store, "c")
        assert "tries again in 0.01 s: PostgreSQL does not deliver a notice" in caplog.text
        assert "a pooler in transaction mode" in caplog.text


# -- a server that ends, restarts or hangs -----------------------------------------------------------------------


def _end_sessions(server: Postgres) -> None:
    """End all connections of stores, as an administrator or a restart does."""
    server.disconnect("application_name LIKE 'tenuto on %'")


async def test_call_in_each_moment_of_a_connections_end_is_unavailable(server: Postgres, store: PostgresStore) -> None:
    """The error of the server arrives first, then the end of the connection. In between the driver takes no call."""
    await until_it_listens(store)
    chat = Chat(store)
    await chat.do(create("m1", "a"))
    for steps in range(8):
        assert await head_of(store, "c")
        for call in (
            lambda: store.notify([Notice("moved", "c", b"1")]),
            lambda: chat.do(create(f"m{chat.state.serial + 1}", "b")),
            lambda: head_of(store, "c"),
        ):
            _end_sessions(server)  # meanwhile the event loop stands still
            for _ in range(steps):
                await asyncio.sleep(0)
            with suppress(StoreUnavailable):
                await call()
    assert await head_of(store, "c")


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
        for _ in range(2):  # it may do so between this reading and the commit
            chat.state.serial = (await head_of(store, "c")).serial
            result = await chat.do(create("m2", "x"))
            if isinstance(result, Committed):
                break
        text, _ = await texts(store, "c", "m1", "m2")
        assert text in ("a", "ab")
        assert result == Committed(len(text) + 1)


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
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        store = PostgresStore(f"postgresql://app@127.0.0.1:{proxy.port}/app", schema=schema)
        await store.open()
        lease = (await store.hold("n1", MINUTE_MS, {})).lease
        proxy.stall()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.hold("n1", MINUTE_MS, {})
        proxy.resume()
        async with asyncio.timeout(PATIENCE_S):
            assert (await store.hold("n1", MINUTE_MS, {})).lease == lease
        proxy.stall()
        monkeypatch.setattr(PostgresServer, "timeout_s", 0.1)
        await store.close()


async def test_instances_that_open_an_empty_schema_at_the_same_moment_make_its_tables_once(
    server: Postgres, schema: str
) -> None:
    async with AsyncExitStack() as stack:
        stores = await asyncio.gather(*(stack.enter_async_context(opened(server, schema)) for _ in range(8)))
        assert len({store.notices_name for store in stores}) == 1
        chat = Chat(stores[0])
        await chat.do(create("m1", "a"))
        assert await texts(stores[7], "c", "m1") == ["a"]


async def test_a_setting_that_is_reloaded_does_not_weaken_the_commits_of_an_open_store(
    server: Postgres, store: PostgresStore
) -> None:
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


def hub_on(server: Postgres, schema: str, **options: Any) -> Hub:
    return Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0, **options)


async def test_viewers_of_a_restored_database_begin_anew(server: Postgres, schema: str) -> None:
    (statement,) = re.findall(r'^psql chat -c "(.*)"$', PAGE, re.MULTILINE)
    hub = hub_on(server, schema)
    await hub.create("c", id="m1", text="kept")
    await asyncio.to_thread(server.dump, schema)
    await hub.create("c", id="m2", text="lost")
    watcher = Watcher(hub, "c")
    await watcher.until(lambda view: len(view.messages()) == 2)
    await watcher.leave()
    await hub.close()
    named = f"SELECT string_agg(schemaname || '.' || tablename, ',') FROM pg_tables WHERE schemaname = '{schema}'"
    server.sql(f"TRUNCATE {server.sql(named)}")
    await asyncio.to_thread(server.restore, schema, "--data-only")  # the store cannot notice it
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
