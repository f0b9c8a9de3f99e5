"""The PostgreSQL store keeps every promise, on a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast import Hub
from holdfast.core.errors import HoldfastError, StoreInUse, StoreUnavailable, StoreUnusable
from holdfast.stores import open_url
from holdfast.stores.base import Committed, CommitUnknown, Store, head_of
from holdfast.stores.postgres import PostgresStore
from holdfast.testing import RetentionContract, StoreContract
from holdfast.testing.contract import MINUTE_MS, Chat, append, check_fold, create, finish, texts
from tests.postgres import Postgres, needs_postgres, running_postgres

pytestmark = needs_postgres

_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"test_{next(_numbers)}"


@pytest.fixture
async def store(server: Postgres, schema: str) -> AsyncIterator[PostgresStore]:
    async with opened(server, schema) as store:
        yield store


@asynccontextmanager
async def opened(server: Postgres, schema: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(server.url, schema=schema, lock_wait_s=0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class TestPostgresStore(StoreContract, RetentionContract):
    sends_notices = False

    # Fewer examples than for other stores, because each act is a round trip.
    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.data())
    async def test_a_store_returns_the_fold_of_all_entries(self, store: Store, data: st.DataObject) -> None:
        await check_fold(store, data)


async def test_long_tails_move_to_rows_of_their_own_and_leave_with_their_documents(
    server: Postgres, schema: str, store: PostgresStore
) -> None:
    chat = Chat(store)
    await chat.do(create("m1", streaming=True), create("m2", streaming=True))
    for number in range(20):
        await chat.do(append("m1", f"{number:02d} " * 50), append("m2", "."))
    rows = int(server.sql(f"SELECT count(*) FROM {schema}.tails"))
    assert rows == 3
    await chat.do(documents=["m1"])
    assert int(server.sql(f"SELECT count(*) FROM {schema}.tails")) == rows  # m2 still needs them
    await chat.do(documents=["m2"])
    assert server.sql(f"SELECT count(*) FROM {schema}.tails") == "0"
    assert server.sql(f"SELECT has_tail, length(tail) FROM {schema}.channels") == "f|0"
    assert [len(text) for text in await texts(store, "c", "m1", "m2")] == [3_000, 20]


async def test_appends_update_their_row_in_place(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True))
        for _ in range(200):
            await chat.do(append("m1", "two tokens "))
    # A session publishes its statistics at its end at the latest.
    counts = f"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = '{schema}'"
    async with asyncio.timeout(20):
        while (found := await asyncio.to_thread(server.sql, f"{counts} AND relname = 'channels'")) < "200":
            pass
    updated, in_place = map(int, found.split("|"))
    assert updated == 200
    assert in_place > 0.9 * updated


# -- one process at a time ---------------------------------------------------------------------------------------


async def test_a_second_store_on_a_schema_is_refused_and_told_by_whom(server: Postgres, schema: str) -> None:
    async with opened(server, schema):
        with pytest.raises(
            StoreInUse, match=rf"schema '{schema}' is in use by holdfast on .*, process \d+: one process"
        ):
            async with opened(server, schema):
                pass
        async with opened(server, f"{schema}_b") as other:
            assert await Chat(other).do(create("m1", "a")) == Committed(1)
    async with opened(server, schema) as again:
        assert await Chat(again).do(create("m1", "a")) == Committed(1)


async def test_a_store_opens_once_the_process_before_it_has_ended(server: Postgres, schema: str) -> None:
    first = PostgresStore(server.url, schema=schema)
    await first.open()
    second = PostgresStore(server.url, schema=schema, lock_wait_s=20)
    opening = asyncio.create_task(second.open())
    async with asyncio.timeout(20):
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while await asyncio.to_thread(server.sql, waiting) == "0":
            pass
    await first.close()
    await opening
    await second.close()


async def test_a_store_whose_place_was_taken_meanwhile_refuses_all_writes(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", "a", streaming=True))
        _end_sessions(server)
        async with opened(server, schema) as other:
            await Chat(other, "d").do(create("m1", "b"))
            with pytest.raises(StoreInUse, match="is in use by holdfast"):
                await chat.do(append("m1", "!"))
        with pytest.raises(StoreInUse, match=r"another process opened the store .* restart this process"):
            await chat.do(append("m1", "!"))


# -- a server that ends, restarts or hangs -----------------------------------------------------------------------


def _end_sessions(server: Postgres) -> None:
    """End the connections with which stores write, as an administrator or a restart does."""
    holder = "SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted"
    server.sql(f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE pid IN ({holder})")


async def test_a_lost_connection_loses_no_text_and_is_replaced(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store)
        await store.tidy(0)
        await chat.do(create("m1", streaming=True), create("m2", streaming=True))
        await chat.do(append("m1", "a"), append("m2", "x"))
        _end_sessions(server)
        with pytest.raises(StoreUnavailable):
            await chat.do(append("m1", "lost"))
        assert await chat.do(append("m1", "b")) == Committed(5)
        await chat.do(finish("m1"), documents=["m1"])
        assert await texts(store, "c", "m1", "m2") == ["ab", "x"]
        assert await store.tidy(MINUTE_MS) == [("c", "m2")]


async def test_entries_of_a_commit_that_was_silent_are_kept(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later document of another message does not drop the entries of a commit whose confirmation was lost."""
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", "a", streaming=True), create("m2", streaming=True))
        await chat.do(append("m1", "b"))
        write = chat.write(append("m2", "silent"))
        with monkeypatch.context() as patch:

            async def lose(self: asyncpg.Connection[asyncpg.Record], *args: object, **options: object) -> None:
                await fetch(self, *args, **options)  # type: ignore[arg-type]
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

            fetch = asyncpg.Connection.fetch
            patch.setattr(asyncpg.Connection, "fetch", lose)
            with pytest.raises(CommitUnknown):
                await store.commit([write])
        chat.take(write)
        assert await chat.do(finish("m1"), documents=["m1"]) == Committed(5)
        assert await texts(store, "c", "m1", "m2") == ["ab", "silent"]
        await store.tidy(0)
        assert await store.tidy(MINUTE_MS) == [("c", "m2")]


async def test_a_commit_on_a_server_that_hangs_is_of_unknown_fate(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.stores.postgres.TIMEOUT_S", 0.3)
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", "a", streaming=True))
        blocker = await asyncpg.connect(server.url)
        async with blocker.transaction():
            await blocker.execute(f"LOCK TABLE {schema}.channels IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(CommitUnknown, match=r"did not respond within 0\.3 s"):
                await chat.do(append("m1", "b"))
            with pytest.raises(StoreUnavailable, match="did not respond"):
                await head_of(store, "c")
        await blocker.close()
        monkeypatch.setattr("holdfast.stores.postgres.TIMEOUT_S", 20.0)
        # The server may have carried the statement out after the store gave up; the caller reads before it goes on.
        (text,) = await texts(store, "c", "m1")
        assert text in ("a", "ab")
        chat.state.serial = (await head_of(store, "c")).serial
        assert chat.state.serial == len(text)
        assert await chat.do(create("m2", "x")) == Committed(len(text) + 1)


async def test_an_answer_continues_over_a_crash_of_the_server() -> None:
    with running_postgres() as server:
        hub = Hub(server.url, hooks_signals=False)
        async with hub.message("chat:1", id="a") as message:
            await message.append("before ")
            await message.flush()
            server.stop("immediate")
            await message.append("while it is down ")
            server.start()
            await message.append("after")
        await hub.close()
        again = Hub(server.url, hooks_signals=False)
        (stored,) = (await again.history("chat:1")).messages
        assert (stored.text, stored.status) == ("before while it is down after", "complete")
        await again.close()


# -- servers and roles that cannot work --------------------------------------------------------------------------


async def _refusal(url: str) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await open_url(url).open()
    return caught.value


async def test_a_server_that_is_not_there_is_named(server: Postgres) -> None:
    error = await _refusal(f"postgresql://app:secret@127.0.0.1:{server.port + 1}/app")
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


async def test_tables_of_another_program_or_version_are_refused(server: Postgres, schema: str) -> None:
    server.sql(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.users (id int)")
    with pytest.raises(StoreUnusable, match=r"holds tables of another program; name another one with \?schema="):
        raise await _refusal(f"{server.url}?schema={schema}")
    async with opened(server, f"{schema}_b"):
        server.sql(f"UPDATE {schema}_b.store SET version = 99")
    with pytest.raises(StoreUnusable, match="has version 99, this Holdfast knows 1; upgrade Holdfast"):
        raise await _refusal(f"{server.url}?schema={schema}_b")


async def test_an_administrators_limits_do_not_end_statements_or_weaken_commits(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.sql("ALTER DATABASE app SET synchronous_commit = off; ALTER DATABASE app SET statement_timeout = '1ms'")
    try:
        with caplog.at_level(logging.INFO, "holdfast.store"):
            async with opened(server, schema) as store:
                assert await Chat(store).do(create("m1", "a")) == Committed(1)
    finally:
        server.sql("ALTER DATABASE app RESET ALL")
    assert "synchronous_commit on, synchronous standbys none" in caplog.text
    assert "runs with fsync off: a power cut can destroy the whole database; set fsync to on" in caplog.text


async def test_a_store_may_leave_the_disk_to_the_server(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "holdfast.store"):
        store = open_url(f"{server.url}?schema={schema}&durability=async")
        await store.open()
        await store.close()
    assert "synchronous_commit off" in caplog.text
