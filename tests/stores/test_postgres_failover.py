"""A PostgreSQL server that goes on from an earlier state begins new epochs, so no epoch names two texts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest

from proof.chaos.engines import MEMORY
from tenuto.core.errors import StoreUnavailable, TenutoError
from tenuto.core.events import kept_serial
from tenuto.stores import open_url
from tenuto.stores.base import Committed, Conflict, Head, StoreReplaced, head_of
from tenuto.stores.postgres.store import PostgresStore
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.stores.contract import Chat, append, create, texts
from tests.stores.two import opened, opened_at

pytestmark = needs_postgres

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres(fsync="off") as server:
        yield server


def replace(server: Postgres, schema: str) -> None:
    """Restore a backup of the store as it is, and break all connections."""
    server.dump(schema)
    server.restore(schema)
    server.disconnect("datname = 'app'")


async def reopened(store: PostgresStore) -> Head:
    """Open a replaced store again; returns the head of the channel `c`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await head_of(store, "c")
            except StoreReplaced:
                break
            except StoreUnavailable:  # the connection that broke
                pass
    with pytest.raises(StoreReplaced, match="promoted or restored, so the last writes may be lost; the hub"):
        await store.commit([Chat(store).write(create("m9"))])
    await store.close()
    await store.open()
    return await head_of(store, "c")


async def test_channels_of_a_replaced_store_have_new_epochs_that_name_the_former_ones(server: Postgres) -> None:
    async with opened(server, "replaced") as first, opened(server, "replaced") as second:
        chat, idle = Chat(first), Chat(first, "d")
        await chat.do_each(create("m1", streaming=True), append("m1", "a"))
        await idle.do_each(create("m1"))
        before, notices = chat.head, first.notices_name

        replace(server, "replaced")
        after = await reopened(first)
        assert after == await reopened(second)
        assert first.notices_name == second.notices_name != notices
        assert (after.serial, kept_serial(before.epoch, after.epoch)) == (2, 2)
        assert (await first.changes("c", after=0, limit=9)).head == after
        assert (await first.entries("c", after=0, limit_bytes=999)).head == after
        assert await chat.do(append("m1", "lost")) == Conflict(after)
        assert await idle.do(append("m1", "lost")) != Committed(2)

        chat.state.epoch = after.epoch
        chat.store = second
        await chat.do_each(append("m1", "b"), append("m1", "c"))
        assert await head_of(first, "c") == Head(after.epoch, 4)
        assert await texts(first, "c", "m1") == ["abc"]

        replace(server, "replaced")
        last = await reopened(first)
        assert kept_serial(after.epoch, last.epoch) == 4
        assert kept_serial(before.epoch, last.epoch) == -1


async def test_url_that_names_a_standby_first_finds_the_server_that_accepts_writes() -> None:
    with running_postgres(fsync="off") as primary, TemporaryDirectory(prefix="tenuto-postgres-", dir=MEMORY) as name:
        standby = Postgres(Path(name))
        standby.follow(primary, primary.port, fsync="off")
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
        try:
            for options in ("", "?target_session_attrs=primary"):
                async with opened_at(f"postgresql://app@{hosts}/app{options}") as store:
                    assert store._db is not None
                    assert await store._db.fetchval("SELECT inet_server_port()") == primary.port
            for value in ("read-write", "any"):
                with pytest.raises(TenutoError, match=r"accepts (no )?writes; .*name the primary"):
                    await open_url(f"{standby.url}?target_session_attrs={value}").open()

            await store.open()
            chat = Chat(store)
            assert await chat.do(create("m1")) == Committed(1)
            before = chat.head
            primary.stop()  # which sends its last commits to the standby
            standby.promote()
            after = await reopened(store)
            assert kept_serial(before.epoch, after.epoch) == 1
            await store.close()
            primary.start(fsync="off")
        finally:
            standby.stop("immediate")


async def test_host_that_does_not_respond_takes_only_its_share_of_the_time(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, shares = asyncpg.connect, list[tuple[bool, float]]()

    async def connect_soon(dsn: str, *, timeout: float, **options: Any) -> Any:
        """Connect, and do not wait for the silent host as long as it may take."""
        is_silent = f":{silent_port}" in dsn
        shares.append((is_silent, timeout))
        return await connect(dsn, timeout=0.05 if is_silent else timeout, **options)

    monkeypatch.setattr(asyncpg, "connect", connect_soon)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_port = silent.getsockname()[1]
        hosts = f"127.0.0.1:{silent_port},127.0.0.1:{server.port}"
        async with opened_at(f"postgresql://app@{hosts}/app?schema=shares") as store:
            assert [is_silent for is_silent, _ in shares] == [True, False]
            assert 3.0 < shares[0][1] <= 5.0  # half of the ten seconds, less what a busy machine has used
            assert shares[1][1] > 5.5
            await store.heads(["c"])
            assert [is_silent for is_silent, _ in shares[2:]] == [False]  # further connections do not wait for it


async def test_copy_of_a_database_in_the_place_of_the_original_begins_new_epochs(server: Postgres) -> None:
    """A copy by TEMPLATE has the cluster, the timeline and the tables of the original, and may have the same bus."""
    url = f"postgresql://app@127.0.0.1:{server.port}/chat"

    def rename(name: str, to: str) -> None:
        server.sql(f"ALTER DATABASE {name} RENAME TO {to}", database="postgres")

    async def epoch_and_name_of_notices() -> tuple[str, str]:
        async with opened_at(url) as store:
            return (await head_of(store, "c")).epoch, store.notices_name

    server.sql("CREATE DATABASE chat")
    async with opened_at(url) as store:
        await Chat(store).do(create("m1", "a"))
    server.sql("CREATE DATABASE copied TEMPLATE chat")
    original = await epoch_and_name_of_notices()
    rename("chat", "former")
    rename("copied", "chat")
    copied = await epoch_and_name_of_notices()
    assert copied[0] != original[0]
    assert copied[1] != original[1]
    assert await epoch_and_name_of_notices() == copied
    rename("chat", "copied")
    rename("former", "chat")
    assert await epoch_and_name_of_notices() == original
