"""Hubs with different settings in one PostgreSQL database, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tenuto import Hub, Limits
from tenuto.core.errors import TooLarge
from tests.hub.watching import Watcher
from tests.postgres import Postgres, needs_postgres, running_postgres

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server


def hub_on(server: Postgres, schema: str, **options: Any) -> Hub:
    return Hub(f"{server.url}?schema={schema}", hooks_signals=False, drain_s=0.0, **options)


async def test_deployments_in_two_schemas_of_one_database_do_not_see_one_another(server: Postgres) -> None:
    first, second = hub_on(server, "one"), hub_on(server, "two")

    @second.agent("chat:*")
    async def answer(turn: Any) -> None:
        raise AssertionError("an agent of another deployment received a turn")

    for hub in (second, first):
        await hub.start()
    watcher = Watcher(second, "chat:1")
    await watcher.take()
    for hub, text in ((first, "of the first"), (second, "of the second")):
        await hub.create("chat:1", id="m", role="assistant", text=text)
        await hub.runtime.nodes.put()
        assert hub.runtime.nodes.renewal is not None
        assert hub.runtime.nodes.renewal.nodes == {hub.node}
    assert not first.runtime.scheduler.workers.serves("chat:1")
    await first.create("chat:1", id="question", role="user", text="?")
    await second.create("chat:1", id="last", role="assistant", text=".")
    shown = await watcher.until(lambda view: any(one.id == "last" for one in view.messages()))
    assert [one.text for one in shown] == ["of the second", "."]
    await first.delete_channel("chat:1")
    assert [one.id for one in (await second.history("chat:1")).messages] == ["last", "m"]
    await watcher.leave()
    await first.close()
    await second.close()


async def test_nodes_with_different_limits_each_decide_by_their_own_and_show_what_the_other_stored(
    server: Postgres,
) -> None:
    large, small = hub_on(server, "limits"), hub_on(server, "limits", limits=Limits(message_bytes=1_000))
    text = "x" * 5_000
    watcher = Watcher(small, "c")
    await watcher.take()
    async with large.message("c", id="m1") as message:
        await message.append(text)
        await message.flush()
        await watcher.until(lambda view: [one.text for one in view.messages()] == [text])
    with pytest.raises(TooLarge, match="the limit is 1000"):
        await small.create("c", id="m2", text=text)
    await small.create("c", id="m2", text="fits")
    await watcher.until(lambda view: [one.status for one in view.messages()] == ["complete", "complete"])
    assert [one.text for one in (await small.history("c")).messages] == ["fits", text]
    await watcher.leave()
    await large.close()
    await small.close()
