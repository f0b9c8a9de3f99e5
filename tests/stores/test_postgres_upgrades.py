"""Nodes of two releases on one PostgreSQL store, whose tables the newer one has changed."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count

import asyncpg
import msgspec
import pytest

from tenuto import Hub
from tenuto.core.errors import Draining, StoreUnavailable, StoreUnusable, TenutoError
from tenuto.core.events import Signal
from tenuto.stores import open_url
from tenuto.stores.base import Committed, Hold, Notice, Store, StoreReplaced
from tenuto.stores.postgres import schema as postgres_schema
from tenuto.stores.postgres.schema import MIGRATIONS, Migration
from tenuto.stores.postgres.store import PostgresStore
from tenuto.testing.contract import MINUTE_MS, Chat, append, approve, create, delete, finish, refuse, texts
from tests.hub.watching import Watcher
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.postgres import Postgres, needs_postgres
from tests.stores.two import Two, TwoContract, opened

pytestmark = needs_postgres

NOW = len(MIGRATIONS)
TABLES = (
    *("store", "channels", "times", "tails", "documents", "texts", "used_up", "lives", "notes"),
    *("leases", "nodes", "holds"),
)
ADD_COLUMN = "ALTER TABLE {{schema}}.{0} ADD COLUMN next_{0} text NOT NULL DEFAULT 'next';"
ADDITIVE = "".join(ADD_COLUMN.format(table) for table in TABLES) + "CREATE TABLE {schema}.next (id int PRIMARY KEY);"

_numbers = count(1)


@contextmanager
def next_release(*statements: str, oldest: int = 1) -> Iterator[None]:
    """Let stores that are opened meanwhile be of a release with further steps, one for each of `statements`."""
    with pytest.MonkeyPatch.context() as patch:
        steps = [Migration(oldest, one) for one in statements or [ADDITIVE]]
        patch.setattr(postgres_schema, "MIGRATIONS", (*MIGRATIONS, *steps))
        yield


async def upgrade(server: Postgres, schema: str, *statements: str, oldest: int = 1) -> None:
    """Start a store of the next release, and close it."""
    with next_release(*statements, oldest=oldest):
        async with opened(server, schema):
            pass


def version(server: Postgres, schema: str) -> str:
    return server.sql(f"SELECT version, oldest FROM {schema}.store")


class TestTablesOfTheNextRelease(TwoContract):
    """The code of this release keeps all promises on tables that the next one has changed."""

    @pytest.fixture
    async def store(self, server: Postgres, schema: str) -> AsyncIterator[Store]:
        async with opened(server, schema) as first:
            await upgrade(server, schema)
            async with opened(server, schema) as second:
                yield Two(first, second)


async def use_each_table(store: PostgresStore, channel: str) -> None:
    """Carry out each call of a store, so that each of its statements is prepared, or used again."""
    chat = Chat(store, channel)
    assert isinstance(await chat.do(create("m1", streaming=True), approve("!c1", "m1"), create("m2", "b")), Committed)
    for _ in range(3):
        assert isinstance(await chat.do(append("m1", "word " * 100)), Committed)
    assert await texts(store, channel, "m1", "m2") == ["word " * 300, "b"]
    assert (await store.changes(channel, after=1, limit=9)).messages
    assert (await store.entries(channel, after=chat.state.serial - 1, limit_bytes=9_999)).entries
    assert len((await store.page(channel, before=None, limit=9, limit_bytes=9_999)).messages) == 2
    assert channel in await store.open_channels()
    assert await store.open_documents(channel)
    assert await chat.do(refuse("!c1"), finish("m1"), documents=["m1", "!c1"])
    assert await chat.do(delete("m2"), documents=["m2"])
    assert channel in await store.channels(after=None, limit=99)
    assert await store.summaries([channel], after=None, limit=9)
    assert await store.newest_ms() is not None
    facts = (await store.facts(channel, after=0, limit=9)).facts
    assert await store.commands(channel, after=None, limit=9) == ["!c1"]
    assert (await store.prune(channel, epoch=chat.state.epoch, versions={one.id: one.version for one in facts})).ids
    assert await store.note({channel: b"1"}, expected={channel: None})
    assert await store.notes(channel) == {channel: b"1"}
    await store.hold(channel, MINUTE_MS, {"a": Hold(b"1"), "b": None})
    assert "a" in await store.holds("")
    await store.tidy(0)
    (head,) = await store.heads([channel])
    await store.delete_channel(channel, expected=head, used_up=["m9"], until_ms=MINUTE_MS)
    assert (await store.messages(channel, ["m9"]))[1]
    await store.hold(channel, 0, {})


async def test_prepared_statements_of_a_running_node_work_on_tables_with_further_columns(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema) as store:
        await use_each_table(store, "before")
        await upgrade(server, schema)
        await use_each_table(store, "after")
    assert version(server, schema) == f"{NOW + 1}|1"


async def test_running_node_under_load_loses_no_append_while_each_table_gets_a_column(
    server: Postgres, schema: str
) -> None:
    hub = Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0)
    await hub.start()
    is_over = asyncio.Event()
    sent: dict[str, list[str]] = {}

    async def write(channel: str) -> None:
        while not is_over.is_set():
            sent[channel] = []
            async with hub.message(channel, id=f"m{next(_numbers)}") as message:
                while len(sent[channel]) < 50 and not is_over.is_set():
                    word = f"{len(sent[channel])} "
                    await message.append(word)
                    await message.flush()
                    sent[channel].append(word)

    async def read() -> None:
        while not is_over.is_set():
            await hub.history("c0", limit=5)
            await hub.archive.channels()

    watcher = Watcher(hub, "c0")
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(write(f"c{number}"))
        group.create_task(read())
        steps: list[str] = []
        for table in TABLES:
            await watcher.take()  # text goes on
            steps.append(ADD_COLUMN.format(table))
            await upgrade(server, schema, *steps)
        await watcher.take()
        is_over.set()
    assert version(server, schema) == f"{NOW + len(TABLES)}|1"
    for channel, words in sent.items():
        assert (await hub.history(channel, limit=1)).messages[0].text == "".join(words)
    await watcher.until(lambda view: view.messages()[-1].text == "".join(sent["c0"]))
    await watcher.leave()
    await hub.close()


async def test_start_on_tables_of_a_newer_release_that_admit_this_one_says_so_in_one_line(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    await upgrade(server, schema)
    with caplog.at_level(logging.INFO, "tenuto.stores"):
        async with opened(server, schema) as store:
            assert await Chat(store).do(create("m1", "a")) == Committed(1)
    line = f"schema '{schema}' has tables of version {NOW + 1}, which this Tenuto of {NOW} may use"
    assert [one.getMessage() for one in caplog.records].count(line) == 1
    assert version(server, schema) == f"{NOW + 1}|1"


async def test_start_on_tables_that_need_newer_code_is_refused_with_both_versions_and_the_remedy(
    server: Postgres, schema: str
) -> None:
    await upgrade(server, schema, oldest=NOW + 1)
    with pytest.raises(StoreUnusable) as caught:
        await PostgresStore(server.url, schema=schema).open()
    assert str(caught.value) == (
        f"schema '{schema}' has tables of version {NOW + 1}, which code of version {NOW + 1} or newer may use, "
        f"and this Tenuto has {NOW}; upgrade Tenuto, or name another schema with ?schema= in the store URL"
    )


async def test_running_node_stores_nothing_in_tables_that_need_newer_code(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store)
        assert await chat.do(create("m1", streaming=True)) == Committed(1)
        (head,) = await store.heads(["c"])
        await upgrade(server, schema, oldest=NOW + 1)
        assert not isinstance(await chat.do(append("m1", "a")), Committed)
        for change in (
            store.note({"a": b"1"}),
            store.prune("c", epoch=head.epoch, versions={"m1": 1}),
            store.delete_channel("c", expected=head, used_up=[], until_ms=MINUTE_MS),
            store.tidy(0),
            store.hold("n1", MINUTE_MS, {}),
        ):
            # on which a hub opens the store again, and is refused
            with pytest.raises(StoreReplaced, match="or a newer Tenuto has changed its tables"):
                await change
            store._life._is_over = False  # each call finds it by itself
    with next_release(oldest=NOW + 1):
        async with opened(server, schema) as store:
            assert await texts(store, "c", "m1") == [""]
            assert await store.notes("a") == {}


async def test_running_hub_whose_code_is_too_old_sends_its_viewers_away_and_names_the_remedy(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.hub.lifecycle.RESTART_S", 0.05)
    hub = Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0)
    await hub.create("c", id="m1", text="kept")
    viewer = Watcher(hub, "c")
    await viewer.take()
    await upgrade(server, schema, oldest=NOW + 1)
    with pytest.raises(Draining):
        await viewer.take()
    with pytest.raises(TenutoError):
        await hub.create("c", id="m2", text="never stored")
    async with asyncio.timeout(60):
        while "code of version" not in caplog.text:
            await asyncio.to_thread(server.sql, "SELECT 1")
    await hub.close()
    with next_release(oldest=NOW + 1):
        async with opened(server, schema) as store:
            assert list((await store.messages("c", ["m1", "m2"]))[1]) == ["m1"]


async def test_of_several_starts_at_once_one_migrates(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server, schema) as old:
        with caplog.at_level(logging.INFO, "tenuto.stores"), next_release():
            stores = [PostgresStore(server.url, schema=schema) for _ in range(6)]
            await asyncio.gather(*(store.open() for store in stores))
        line = f"schema '{schema}' has tables of version {NOW + 1} now; it had {NOW}"
        assert [one.getMessage() for one in caplog.records].count(line) == 1
        assert {store.notices_name for store in stores} == {old.notices_name}
        for store in stores:
            await store.close()


async def test_migration_that_is_broken_off_leaves_the_earlier_version_whole(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        await Chat(store).do(create("m1", "kept"))
    columns = f"SELECT string_agg(attname, ',') FROM pg_attribute WHERE attrelid = '{schema}.channels'::regclass"
    before = server.sql(columns)
    with pytest.raises(StoreUnavailable):
        await upgrade(server, schema, ADDITIVE, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert version(server, schema) == f"{NOW}|1"
    assert server.sql(columns) == before
    assert server.sql(f"SELECT to_regclass('{schema}.next') IS NULL") == "t"
    async with opened(server, schema) as store:
        assert await texts(store, "c", "m1") == ["kept"]
    await upgrade(server, schema)
    assert version(server, schema) == f"{NOW + 1}|1"


async def test_migration_waits_for_a_long_transaction_while_nodes_go_on_to_commit(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres_schema, "MIGRATION_PAUSE_S", 0.05)
    monkeypatch.setattr(postgres_schema, "MIGRATION_WAITS_MS", (20, 20))
    reader = await asyncpg.connect(server.url)
    async with opened(server, schema) as store:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True))
        async with reader.transaction():
            await reader.fetchval(f"SELECT count(*) FROM {schema}.channels")  # as a dump does
            refused = asyncio.create_task(upgrade(server, schema))
            while not refused.done():
                assert isinstance(await chat.do(append("m1", "a")), Committed)
            with pytest.raises(StoreUnavailable, match=r"another transaction keeps one of them locked; wait for its"):
                await refused
            assert version(server, schema) == f"{NOW}|1"
            monkeypatch.setattr(postgres_schema, "MIGRATION_WAITS_MS", (20,) * 100)
            waiting = asyncio.create_task(upgrade(server, schema))
            caplog.clear()
            with caplog.at_level(logging.INFO, "tenuto.stores"):
                while "keeps a table" not in caplog.text:
                    assert isinstance(await chat.do(append("m1", "a")), Committed)
        await waiting
        assert version(server, schema) == f"{NOW + 1}|1"
        assert isinstance(await chat.do(append("m1", "a")), Committed)
    await reader.close()


@needs_pgbouncer
async def test_migration_behind_a_pooler_waits_for_a_transaction_and_goes_on(
    server: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres_schema, "MIGRATION_PAUSE_S", 0.05)
    monkeypatch.setattr(postgres_schema, "MIGRATION_WAITS_MS", (20,) * 100)
    reader = await asyncpg.connect(server.url)
    with pgbouncer(server) as port:
        stores = [open_url(f"postgresql://app@127.0.0.1:{port}/app?schema={schema}&prepare=0") for _ in range(2)]
        await stores[0].open()
        chat = Chat(stores[0])
        await chat.do(create("m1", streaming=True))
        async with reader.transaction():
            await reader.fetchval(f"SELECT count(*) FROM {schema}.channels")
            with caplog.at_level(logging.INFO, "tenuto.stores"), next_release():
                migrating = asyncio.create_task(stores[1].open())
                while "keeps a table" not in caplog.text:
                    assert isinstance(await chat.do(append("m1", "a")), Committed)
        with next_release():
            await migrating
        assert version(server, schema) == f"{NOW + 1}|1"
        assert isinstance(await chat.do(append("m1", "a")), Committed)
        for store in stores:
            await store.close()
    await reader.close()


async def test_tables_of_the_first_build_get_the_columns_of_later_ones_beside_a_process_that_runs(
    server: Postgres, schema: str
) -> None:
    async with opened(server, schema) as store:
        await Chat(store).do(create("m1", "kept"))
    server.sql(
        f"ALTER TABLE {schema}.channels DROP COLUMN floor, DROP COLUMN life;"
        f"ALTER TABLE {schema}.store DROP COLUMN oldest, DROP COLUMN notices, DROP COLUMN history, DROP COLUMN life;"
        f"DROP TABLE {schema}.leases, {schema}.nodes, {schema}.holds;"
        f"UPDATE {schema}.store SET version = 1"
    )
    async with opened(server, schema) as store:
        async with opened(server, schema):
            pass
        assert await texts(store, "c", "m1") == ["kept"]
        assert (await store.hold("n1", MINUTE_MS, {})).nodes == {"n1"}
        (head,) = await store.heads(["c"])
        assert (head.serial, head.floor) == (1, 0)


async def test_samples_of_texts_leave_the_statistics_of_the_planner_and_no_table_is_written_anew(
    server: Postgres, schema: str
) -> None:
    columns = {"channels": "tail", "tails": "body", "documents": "head", "texts": "body", "notes": "value"}
    tables = ",".join(f"'{schema}.{table}'::regclass" for table in columns)
    files = f"SELECT string_agg(relfilenode::text, ',' ORDER BY relname) FROM pg_class WHERE oid IN ({tables})"
    kinds = f"SELECT attstorage, attstattarget FROM pg_attribute WHERE attrelid = '{schema}.channels'::regclass"
    samples = f"SELECT count(*) FROM pg_stats AS s WHERE schemaname = '{schema}' AND s::text ~ '{b'SECRET'.hex()}'"
    async with opened(server, schema) as store:
        for table, column in columns.items():  # as builds of version 1 made them
            server.sql(f"ALTER TABLE {schema}.{table} ALTER COLUMN {column} SET STATISTICS -1")
        server.sql(f"UPDATE {schema}.store SET version = 1")
        for number in range(3):
            chat = Chat(store, f"c{number}")
            await chat.do(create("m1", "SECRET", streaming=True))
            await chat.do(append("m1", "SECRET" * 9), documents=["m1"])
        server.sql(f"ANALYZE {schema}.documents, {schema}.texts")
        assert server.sql(samples) != "0"
        before = server.sql(files)
        async with opened(server, schema):
            assert version(server, schema) == f"{NOW}|1"
        assert server.sql(samples) == "0"
        assert server.sql(files) == before
        assert server.sql(f"{kinds} AND attname = 'tail'") == "m|0"
        assert isinstance(await chat.do(append("m1", "more")), Committed)


# -- entries, holds and notices of a newer release -----------------------------------------------------------------


def store_unknown_entry(server: Postgres, schema: str, channel: str) -> None:
    """Store an entry of a kind that this release does not know, as a mistake of a newer one would."""
    where = f"FROM {schema}.channels WHERE name = '{channel}'"
    serial = int(server.sql(f"SELECT serial {where}")) + 1
    body = msgspec.msgpack.encode([[serial, [99, "m1", "of the next release"]]])
    found = (len(body).to_bytes(4) + body).hex()
    server.sql(
        f"UPDATE {schema}.channels SET serial = {serial}, has_tail = true, tail = '\\x{found}' || tail"
        f" WHERE name = '{channel}'"
    )


async def test_channel_with_an_unknown_entry_sends_its_viewers_away_and_no_other_channel(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0)
    for channel in ("c", "d"):
        await hub.create(channel, id="m1", text="known")
    before = server.sql(f"SELECT serial, has_tail, tail FROM {schema}.channels WHERE name = 'c'").split("|")
    viewers = [Watcher(hub, "c"), Watcher(hub, "d")]
    for viewer in viewers:
        await viewer.take()
    store_unknown_entry(server, schema, "c")
    unknown = "holds an entry that this Tenuto cannot read .*a newer Tenuto wrote it; upgrade Tenuto"
    with pytest.raises(StoreUnusable, match=unknown):
        await viewers[0].take()
    with pytest.raises(StoreUnusable, match=unknown):
        await Watcher(hub, "c").take()
    with pytest.raises(StoreUnusable, match=unknown):
        await hub.create("c", id="m2", text="after an entry that this node does not know")
    await hub.create("d", id="m2", text="goes on")
    await viewers[1].until(lambda view: len(view.messages()) == 2)
    assert caplog.text.count("channel 'c' cannot be read, so its viewers are detached") == 1
    assert "Traceback" not in caplog.text
    server.sql(
        f"UPDATE {schema}.channels SET serial = {before[0]}, has_tail = '{before[1]}', tail = '{before[2]}'"
        " WHERE name = 'c'"
    )
    async with asyncio.timeout(60):
        while hub.runtime.channels["c"].batches.unreadable is not None:
            await hub.history("d")
    await hub.create("c", id="m3", text="again")
    await viewers[1].leave()
    await hub.close()


async def test_housekeeping_leaves_out_a_channel_with_an_unknown_entry(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server, schema) as store:
        for channel in ("a", "b"):
            chat = Chat(store, channel)
            await chat.do(create("m1", streaming=True))
            await chat.do(append("m1", "text"))
    store_unknown_entry(server, schema, "a")
    async with opened(server, schema) as store:
        assert await store.tidy(0) == []
        assert await store.tidy(MINUTE_MS) == [("b", "m1")]
    assert caplog.text.count("channel 'a' is left out of the housekeeping: the log holds an entry that this") == 1


async def test_notice_of_an_unknown_kind_and_unknown_fields_lose_no_other_notice(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        received: asyncio.Queue[Notice | None] = asyncio.Queue()
        store.listen(received.put_nowait)
        db = await asyncpg.connect(server.url)
        async with asyncio.timeout(60):
            assert await received.get() is None  # it listens
            notices = [["later", "c", b"?"], ["moved", "c", b"1", "a field of the next release"]]
            payload = base64.b64encode(msgspec.msgpack.encode(notices)).decode()
            await db.execute("SELECT pg_notify($1, $2)", store.notices_name, payload)
            assert await received.get() == Notice("later", "c", b"?")
            assert await received.get() == Notice("moved", "c", b"1")
        await db.close()


async def test_hub_reads_notes_holds_and_notices_of_a_newer_release_as_far_as_it_knows_them(
    server: Postgres, schema: str
) -> None:
    """Nodes add fields at the end, and other notes, holds and notices."""
    encode, further = msgspec.msgpack.encode, {"of": "the next release"}
    async with opened(server, schema) as newer:
        await newer.note({"served/x": msgspec.json.encode({"at_ms": 1}), "later/x": b"\xff"})
        hub = Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0)
        await hub.start()
        hub.runtime.scheduler.workers.tidy()
        is_listening = asyncio.Event()
        newer.listen(lambda _: is_listening.set())
        await is_listening.wait()
        member = ["agent", 1, 1, {"state": "thinking"}, further]
        holds = {
            "turns/newer": msgspec.json.encode({"patterns": ["c"], "waiting": ["c"], "later": further}),
            "here/newer": encode([1, ["c"], [], 0, further]),
            "members/c/newer": encode([[["ann", member]], 0, further]),
            "later/newer": b"\xff",
        }
        await newer.hold("newer", MINUTE_MS, {name: Hold(value) for name, value in holds.items()})
        viewer = Watcher(hub, "c")
        while "ann" not in (members := {one.id: one for one in viewer.view.members()}):
            await viewer.take()
        assert members["ann"].data == {"state": "thinking"}
        await newer.notify(
            [
                Notice("later", "c", b"?"),
                Notice("here", "c", encode(["newer", "", 0, further])),
                Notice("signal", "c", encode(["newer", 1, "typing", {"is": 1}, "ann", 0, further])),
            ]
        )
        while not any(isinstance(event, Signal) and event.name == "typing" for event in viewer.events):
            await viewer.take()
        async with asyncio.timeout(60):
            while not hub.runtime.scheduler.workers.is_served_elsewhere("c"):
                await hub.history("c")
        await viewer.leave()
        await hub.close()
