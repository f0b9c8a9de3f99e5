"""Hubs with different settings in one PostgreSQL database, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tenuto import Hub
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
