"""What a PostgreSQL store cannot read: damaged entries, and tables, entries, notes and notices of a newer Tenuto.

All other channels go on.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tenuto import Hub
from tenuto.core.errors import StoreUnusable
from tenuto.core.events import Signal
from tenuto.stores.base import Committed, Hold, Notice
from tenuto.stores.postgres import store as postgres
from tenuto.stores.postgres.schema import VERSION
from tenuto.stores.postgres.store import PostgresStore
from tests.hub.watching import Watcher
from tests.postgres import Postgres, needs_postgres
from tests.stores.contract import MINUTE_MS, Chat, append, create, texts
from tests.stores.two import opened, until_it_listens

pytestmark = needs_postgres


async def growing(store: PostgresStore, *channels: str) -> list[Chat]:
    """Begin `channels`, each with the message `m1`, which has an entry after its document."""
    chats = [Chat(store, channel) for channel in channels]
    for chat in chats:
        await chat.do(create("m1", "be", streaming=True))
        await chat.do(append("m1", "gun"))
    return chats


def damage(server: Postgres, schema: str, *channels: str) -> None:
    for channel in channels:
        server.sql(f"UPDATE {schema}.channels SET tail = '\\x00000001c1' WHERE has_tail AND name = '{channel}'")


async def test_housekeeping_reaches_each_channel_although_many_cannot_be_read(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "RELOADED", 2)
    async with opened(server, schema) as store:
        await growing(store, "a", "b", "c", "d")
    tail = server.sql(f"SELECT tail FROM {schema}.channels WHERE name = 'c'")
    damage(server, schema, "a", "b", "c")
    async with opened(server, schema) as store:
        for now_ms in (0, 1, 2):
            assert await store.tidy(now_ms) == []
        assert await store.tidy(MINUTE_MS) == [("d", "m1")]
        assert caplog.text.count("is left out of the housekeeping") == 3
        server.sql(f"UPDATE {schema}.channels SET tail = '{tail}' WHERE name = 'c'")
        for now_ms in range(4):
            await store.tidy(MINUTE_MS + now_ms)
        assert sorted(await store.tidy(2 * MINUTE_MS)) == [("c", "m1"), ("d", "m1")]
        assert caplog.text.count("is left out of the housekeeping") == 3
        await store.delete_channel("a", expected=(await store.heads(["a"]))[0], used_up=[], until_ms=0)
        for now_ms in range(4):
            await store.tidy(2 * MINUTE_MS + now_ms)
        assert list(store._left_out) == ["b"]


async def test_channel_that_cannot_be_read_fails_no_other_write_of_its_commit(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chats = await growing(store, "a", "b", "c")
    damage(server, schema, "b")
    async with opened(server, schema) as store:
        writes = [chat.write(append("m1", " here"), documents=["m1"]) for chat in chats]
        assert await store.commit(writes) == [Committed(3)] * 3
        for channel in ("a", "c"):
            assert await texts(store, channel, "m1") == ["begun here"]
        with pytest.raises(StoreUnusable, match="restore a backup"):
            await texts(store, "b", "m1")
        for chat, write in zip(chats, writes, strict=True):
            chat.store = store
            chat.take(write)
            assert await chat.do(append("m1", ", later")) == Committed(4)
        assert await store.tidy(MINUTE_MS) == []
        assert len(await store.tidy(2 * MINUTE_MS)) >= 2  # of the others


async def test_message_whose_stored_text_cannot_be_read_is_named(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        chat = Chat(store, "a")
        assert await store.commit([chat.write(create("m1", "text"), documents=["m1"])]) == [Committed(1)]
    server.sql(f"UPDATE {schema}.texts SET body = '\\xc1'")
    async with opened(server, schema) as store:
        with pytest.raises(StoreUnusable, match="message 'm1' is damaged"):
            await texts(store, "a", "m1")


# -- a newer Tenuto ---------------------------------------------------------------------------------------------------


async def test_tables_of_another_version_are_refused_and_stay_as_they_are(server: Postgres, schema: str) -> None:
    async with opened(server, schema) as store:
        await Chat(store).do(create("m1", "kept"))
    server.sql(f"UPDATE {schema}.store SET version = {VERSION + 1}")
    with pytest.raises(StoreUnusable, match=rf"version {VERSION + 1}, and this one knows {VERSION}; use that"):
        await PostgresStore(server.url, schema=schema).open()
    server.sql(f"UPDATE {schema}.store SET version = {VERSION}")
    async with opened(server, schema) as store:
        assert await texts(store, "c", "m1") == ["kept"]


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
        for store in (newer, hub.runtime.store):
            await until_it_listens(store)
        member = ["agent", 1, 1, {"state": "thinking"}, further]
        holds = {
            "turns/newer": encode({"patterns": ["c"], "waiting": ["c"], "later": further}),
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
