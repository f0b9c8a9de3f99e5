"""Deleted text leaves the tables of PostgreSQL, and the files of the database as far as docs/python.md says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tenuto.core.requests import ReplyCommand, SendCommand
from tenuto.stores.postgres.store import PostgresStore
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.stores.contract import Chat, append, create, delete, emptied, finish, put_part, texts
from tests.stores.test_sqlite_deleting import tidy_for_a_minute
from tests.stores.two import opened

pytestmark = needs_postgres

SECRET = b"SECRET"
HEX = SECRET.hex()
# Each table of the schema, with the table beside it that holds its long values.
RELATIONS = """
SELECT one::regclass FROM pg_class, unnest(ARRAY[oid, reltoastrelid]) AS one
WHERE relnamespace = 'chats'::regnamespace AND relkind = 'r' AND one <> 0
"""
TUPLES = f"""
SELECT count(*) FROM generate_series(0, pg_relation_size('{{table}}') / 8192 - 1) AS page,
  heap_page_items(get_raw_page('{{table}}', page::int)) AS item WHERE position('\\x{HEX}'::bytea IN item.t_data) > 0
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres(fsync="off", full_page_writes="off", autovacuum="off") as server:
        server.sql("CREATE EXTENSION pageinspect")
        yield server


@pytest.fixture
async def store(server: Postgres) -> AsyncIterator[PostgresStore]:
    async with opened(server, "chats") as store:
        yield store


def in_rows(server: Postgres) -> set[str]:
    """Return the tables of the schema with a row that contains the secret, and the planner's statistics of them."""
    tables = server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'chats'").split()
    found = {
        table
        for table in tables
        if server.sql(f"SELECT count(*) FROM chats.{table} AS t WHERE t::text ~ '{HEX}|{SECRET.decode()}'") != "0"
    }
    statistics = f"SELECT count(*) FROM pg_stats AS s WHERE schemaname = 'chats' AND s::text ~ '{HEX}'"
    return found if server.sql(statistics) == "0" else {*found, "pg_stats"}


def in_tuples(server: Postgres) -> set[str]:
    """Return the relations with a tuple, live or dead, that contains the secret."""
    relations = server.sql(RELATIONS).split()
    return {table for table in relations if server.sql(TUPLES.format(table=table)) != "0"}


def in_files(server: Postgres) -> set[str]:
    """Return the files of the database that contain the secret. Its tables are written to them first."""
    server.sql("CHECKPOINT")
    folder = server.folder / "data" / "base" / server.sql("SELECT oid FROM pg_database WHERE datname = 'app'")
    return {file.name for file in folder.iterdir() if SECRET in file.read_bytes()}


async def test_deleted_text_leaves_the_rows_with_vacuum_and_the_files_with_vacuum_full(
    server: Postgres, store: PostgresStore
) -> None:
    chat, gone = Chat(store), Chat(store, "gone")
    for one in (chat, gone):
        await one.do(create("m1", "SECRET ", streaming=True, title="SECRET"), create("m2", "stays", streaming=True))
        await one.do(create("m3", "SECRET", streaming=True), ("!c", SendCommand(name="x", target="m1", data="SECRET")))
        await one.do(("!c", ReplyCommand(data="SECRET")), documents=["!c"])
        for _ in range(20):
            await one.do(append("m1", "SECRET " * 9), append("m2", "."), append("m3", "SECRET"))
        part = {"type": "tool", "call": "c", "name": "n", "output": "SECRET" * 900}
        await one.do(put_part("m1", 1, part), documents=["m1"])
        await one.do(append("m2", "."), append("m3", "SECRET"))
    await chat.do(finish("m3"), documents=["m3"])
    finished = chat.state.serial
    server.sql("ANALYZE")
    assert in_rows(server) == {"channels", "tails", "documents", "texts"}

    await chat.do(delete("m1"), documents=["m1"])
    await emptied(store, "gone")
    for table in ("tails", "documents", "texts", "times"):
        rows = f"SELECT count(*) FROM chats.{table} WHERE channel NOT IN (SELECT id FROM chats.channels)"
        assert server.sql(rows) == "0"
    await tidy_for_a_minute(store, chat)
    assert await store.prune("c", epoch="e1", versions={"m3": finished}) == ["m3"]
    assert in_rows(server) == set()
    assert in_tuples(server) != set()
    server.sql("VACUUM")
    assert in_tuples(server) == set()
    assert in_files(server) != set()  # as docs/python.md says: PostgreSQL does not overwrite a free place
    server.sql("VACUUM FULL")
    assert in_files(server) == set()
    assert await texts(store, "c", "m2") == ["stays" + "." * 21]
