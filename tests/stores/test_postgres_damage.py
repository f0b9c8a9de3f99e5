"""Channels of a PostgreSQL store whose entries cannot be read. All other channels go on."""

from __future__ import annotations

import pytest

from tenuto.core.errors import StoreUnusable
from tenuto.stores.base import Committed
from tenuto.stores.postgres import store as postgres
from tenuto.stores.postgres.store import PostgresStore
from tests.postgres import Postgres, needs_postgres
from tests.stores.contract import MINUTE_MS, Chat, append, create, texts
from tests.stores.two import opened

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
