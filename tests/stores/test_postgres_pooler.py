"""The PostgreSQL store behind a real PgBouncer in transaction mode: each transaction may have another session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import asyncpg
import pytest

from tenuto import Hub
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores import open_url
from tenuto.stores.base import Committed, CommitUnknown, Store
from tests.conftest import in_long
from tests.hub.watching import Watcher
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.stores.contract import Chat, append, create
from tests.stores.test_postgres_failover import reopened
from tests.stores.two import Two, TwoContract, opened_at

pytestmark = [needs_postgres, needs_pgbouncer]

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def pooler(server: Postgres) -> Iterator[int]:
    with pgbouncer(server) as port:
        yield port


@pytest.fixture
def url(pooler: int, schema: str) -> str:
    return f"postgresql://app@127.0.0.1:{pooler}/app?schema={schema}&prepare=0"


@in_long
class TestPooledPostgresStore(TwoContract):
    sends_notices = False

    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[Store]:
        async with opened_at(url) as first, opened_at(url) as second:
            yield Two(first, second)


async def test_viewers_behind_a_pooler_see_the_text_of_another_node_by_reads_and_the_log_says_so(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (Hub(url, hooks_signals=False, drain_s=0.0) for _ in range(2))
    with caplog.at_level(logging.INFO, "tenuto.stores"):
        await here.start()
    assert "prepare=0, so notices of other nodes do not arrive: their text is up to a second late" in caplog.text
    assert "synchronous_commit on, synchronous standbys none" in caplog.text
    watcher = Watcher(here, "chat:1")
    await watcher.take()
    async with there.message("chat:1", id="m") as message:
        await message.append("from the other node")
        await message.flush()
        await watcher.until(lambda view: [one.text for one in view.messages()] == ["from the other node"])
    await watcher.until(lambda view: [one.status for one in view.messages()] == ["complete"])
    await watcher.leave()
    await here.close()
    await there.close()


async def test_transactions_behind_a_pooler_have_the_settings_of_the_store_and_leave_none_behind(
    server: Postgres, url: str
) -> None:
    names = ("synchronous_commit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    limits = {"synchronous_commit": "off", "statement_timeout": "20s", "lock_timeout": "20s"}
    server.sql("; ".join(f"ALTER DATABASE app SET {name} = '{value}'" for name, value in limits.items()))
    server.disconnect("datname = 'app'", database="postgres")  # the sessions of the pooler
    try:
        async with opened_at(url) as store:
            assert await Chat(store).do(create("m1", "a")) == Committed(1)
            async with store._transaction() as writer:
                assert tuple(await writer._db.fetchrow(shown) or ()) == ("on", "0", "0", "3s")
            async with store._reading() as reader:
                assert tuple(await reader._db.fetchrow(shown) or ()) == ("on", "0", "0", "3s")
        left = await asyncpg.connect(url.partition("?")[0], statement_cache_size=0)
        async with left.transaction():
            assert tuple(await left.fetchrow(shown) or ()) == ("off", "20s", "20s", "0")
        await left.close()
    finally:
        server.sql("ALTER DATABASE app RESET ALL", database="postgres")
        server.disconnect("datname = 'app'", database="postgres")


async def test_a_pooler_that_is_not_named_in_the_url_is_refused_with_the_remedy(server: Postgres, pooler: int) -> None:
    remedy = "write prepare=0 in the store URL, or name the server itself"
    with pytest.raises(StoreUnusable, match=f"a pooler is between .*; {remedy}.*unsupported startup parameter"):
        await open_url(f"postgresql://app@127.0.0.1:{pooler}/app").open()
    ignored = "statement_timeout, lock_timeout, idle_in_transaction_session_timeout, default_transaction_isolation"
    with (
        pgbouncer(server, more=f"ignore_startup_parameters = {ignored}") as port,
        pytest.raises(StoreUnusable, match=f"a pooler is between .*; {remedy}"),
    ):
        await open_url(f"postgresql://app@127.0.0.1:{port}/app").open()


async def test_commit_whose_connection_a_pooler_refuses_is_known_not_to_be_stored(server: Postgres) -> None:
    """With an unknown outcome, the hub would read the channel and try again at once."""
    with pgbouncer(server, more="max_client_conn = 2") as port:
        async with opened_at(f"postgresql://app@127.0.0.1:{port}/app?prepare=0&schema=refused") as store:
            chat = Chat(store)
            assert await chat.do(create("m1", "a")) == Committed(1)
            store._drop_connection()
            others = []
            with pytest.raises(asyncpg.ProtocolViolationError):
                while True:
                    others.append(await asyncpg.connect(f"postgresql://app@127.0.0.1:{port}/app"))
            with pytest.raises(StoreUnavailable, match="max_client_conn") as caught:
                await chat.do(create("m2", "b"))
            assert not isinstance(caught.value, CommitUnknown)
            for other in others:
                await other.close()
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with suppress(StoreUnavailable):  # until the pooler has noticed the end of the others
                        assert await chat.do(create("m2", "b")) == Committed(2)
                        break


async def test_a_pooler_that_goes_on_to_a_promoted_standby_changes_the_epochs() -> None:
    """The connections to the pooler stay, so the store must look at the server in each transaction."""
    with running_postgres(fsync="off") as server, pgbouncer(server) as port:
        async with opened_at(f"postgresql://app@127.0.0.1:{port}/app?prepare=0") as store:
            chat = Chat(store)
            await chat.do_each(create("m1", streaming=True), append("m1", "kept"))
            await asyncio.to_thread(server.back_up)
            await chat.do(append("m1", "lost"))
            epoch = chat.head.epoch
            await asyncio.to_thread(server.fail_over, fsync="off")
            head = await reopened(store)
            assert head.serial == 2
            assert head.epoch != epoch
