"""Tables, entries, notes, holds and notices of another version of Tenuto, on one PostgreSQL store."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tenuto import Hub
from tenuto.core.errors import StoreUnusable
from tenuto.core.events import Signal
from tenuto.stores.base import Hold, Notice
from tenuto.stores.postgres.schema import VERSION
from tenuto.stores.postgres.store import PostgresStore
from tests.hub.watching import Watcher
from tests.postgres import Postgres, needs_postgres
from tests.stores.contract import MINUTE_MS, Chat, create, texts
from tests.stores.two import opened, until_it_listens

pytestmark = needs_postgres


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
