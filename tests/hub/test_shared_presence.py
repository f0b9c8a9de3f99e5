"""Members and signals of several hubs on one store.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tenuto.core.errors import TooMany
from tenuto.core.limits import Limits
from tenuto.core.model import Member
from tenuto.hub import HubCore
from tenuto.hub.nodes import WAITING_NOTICES
from tenuto.hub.people.presence import FOLLOW_S, HOLD_BYTES, MEMBERS, MERGE_S, READS
from tenuto.hub.people.presence_state import MAX_CONNECTIONS
from tenuto.stores.base import Hold, Notice, Renewal
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.test_shared_turns import answer
from tests.hub.watching import Watcher
from tests.transports.conftest import asking
from tests.virtual import virtually

SOON_S = 3 * MERGE_S  # time in which a notice shows a change at another node


class Notifying(Shared):
    """A shared store that counts its calls."""

    notified = 0
    late = ""  # the node that gets the results of its renewals late
    renewals = 0

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []  # the prefixes of the reads of holds

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        self.renewals += 1
        renewal = await super().hold(node, term_ms, values)
        if node == self.late:
            await asyncio.sleep(0.8)
        return renewal

    async def holds(self, prefix: str) -> dict[str, tuple[str, Hold]]:
        self.reads.append(prefix)
        return await super().holds(prefix)

    async def notify(self, notices: Sequence[Notice]) -> None:
        self.notified += len(notices)
        await super().notify(notices)


@asynccontextmanager
async def pair(store: Shared) -> AsyncIterator[tuple[HubCore, HubCore, Watcher]]:
    """Run two hubs that know each other; the second has a viewer of the channel `c`."""
    here, there = new_hub(store, 1), new_hub(store, 2)
    await here.start()
    viewer = Watcher(there, "c")
    await viewer.take()
    await asyncio.sleep(2.5)
    yield here, there, viewer
    await viewer.leave()


def enter(hub: HubCore, member: str, data: dict[str, Any] | None = None) -> None:
    hub.runtime.presence.enter("c", member, "tab", data)


async def members(hub: HubCore) -> list[Member]:
    return (await hub.members("c")).members


async def shown(hub: HubCore) -> list[str]:
    return [one.id for one in await members(hub)]


@virtually
async def test_lease_that_is_withdrawn_at_another_node_ends_unless_it_was_renewed_since() -> None:
    async with pair(store := Notifying()) as (here, there, _):
        here.runtime.presence.lease("c", "ann", None, 3_600)
        await asyncio.sleep(SOON_S)
        there.runtime.presence.withdraw("c", "ann")
        here.runtime.presence.withdraw("c", "unknown")
        await asyncio.sleep(SOON_S)
        assert (await shown(here), await shown(there)) == ([], [])
        store.late = there.runtime.node
        await asyncio.sleep(4)
        here.runtime.presence.lease("c", "ann", None, 3_600)
        await asyncio.sleep(SOON_S)
        there.runtime.presence.withdraw("c", "ann")
        await asyncio.sleep(SOON_S)
        assert await shown(here) == []
        here.runtime.presence.lease("c", "ann", None, 3_600)
        here.runtime.presence._withdrawn("c", "ann", there.runtime.nodes.now_ms - 1_000)  # a late notice
        assert await shown(here) == ["ann"]


@virtually
async def test_many_changed_channels_are_read_at_once_and_agents_need_no_read() -> None:
    async with pair(store := Notifying()) as (here, there, _):
        names = [f"c:{number}" for number in range(3 * READS)]
        for name in names:
            await there.members(name)
            here.runtime.presence.enter(name, "ann", "tab", None)
        store.reads.clear()
        await asyncio.sleep(SOON_S)
        assert store.reads.count(MEMBERS) == 2  # at `here` for its first members, and at `there` for the change
        assert len(store.reads) < 6
        assert [(await there.members(name)).count for name in names] == [1] * len(names)
        await asyncio.sleep(FOLLOW_S)
        store.reads.clear()
        newcomer = new_hub(store, 3)
        newcomer.agent("c:*", name="bot")(answer)
        await newcomer.start()
        await asyncio.sleep(2 * FOLLOW_S)
        newcomer.agent("*", name="more")(answer)
        await asyncio.sleep(2 * FOLLOW_S)
        assert not [prefix for prefix in store.reads if prefix.startswith(MEMBERS)]
        assert [(await there.members(name)).count for name in names] == [3] * len(names)
        await newcomer.close()


@virtually
async def test_lease_is_renewed_once_a_second_without_changes_and_each_second_for_a_crowd() -> None:
    async with pair(store := Notifying()) as (here, _there, _):
        await asyncio.sleep(10)  # the recoveries of the start are over
        store.renewals = 0
        await asyncio.sleep(10)
        assert store.renewals <= 2 * 10 + 2
        for number in range(100):
            enter(here, f"{number}")
        await asyncio.sleep(2)
        store.renewals = 0
        for number in range(100):
            enter(here, f"later-{number}")
            await asyncio.sleep(0.1)
        assert store.renewals <= 3 * 10 + 4


@virtually
async def test_hold_of_a_channel_has_a_bound_and_all_people_are_counted() -> None:
    async with pair(store := Notifying()) as (here, there, _):
        for number in range(3_000):
            enter(here, f"member-with-a-long-name-{number:05}", {"x": "y" * 3_000})
        enter(there, "member-with-a-long-name-00000")
        await asyncio.sleep(2 + SOON_S)
        holds = await store.holds(MEMBERS)
        assert 0.4 * HOLD_BYTES < max(len(hold.value) for _, hold in holds.values()) < HOLD_BYTES + 1_000
        for hub in (here, there):
            present = await hub.members("c")
            assert (present.count, len(present.members)) == (3_000, 100)
        assert (await members(there))[1].data == {"x": "y" * 3_000}
        assert store.notified < 10


@virtually
async def test_limits_of_members_and_of_their_connections_count_all_nodes() -> None:
    store = Notifying()
    here, there, late = (new_hub(store, number, limits=Limits(members=3)) for number in (1, 2, 3))
    for hub in (here, there, late):
        await hub.start()
    await asyncio.sleep(1.5)
    enter(here, "ann")
    enter(here, "bob")
    await asyncio.sleep(SOON_S)
    enter(there, "cem")  # the first member at a node without a viewer: that node reads the others now
    await asyncio.sleep(SOON_S)
    with pytest.raises(TooMany, match="channel has 3 members"):
        enter(there, "dan")
    async with asking(late) as http:
        response = await http.put("/v1/channels/c/presence/eve?client=eve", json={})
        assert (response.status_code, response.json()["limit"]) == (429, 3)
    for number in range(MAX_CONNECTIONS - 1):
        here.runtime.presence.enter("c", "ann", number, None)
    await asyncio.sleep(SOON_S)
    with pytest.raises(TooMany, match="'ann' has 100 connections"):
        enter(there, "ann")


@virtually
async def test_flood_of_signals_waits_in_bounded_memory() -> None:
    async with pair(store := Notifying()) as (here, _, _viewer):
        before = store.notified
        for number in range(WAITING_NOTICES + 500):
            await here.signal("c", "typing", number)
        await asyncio.sleep(SOON_S)
        assert store.notified - before == WAITING_NOTICES


@pytest.mark.parametrize(
    "change",
    [lambda hub, data: enter(hub, "ann", data), lambda hub, data: hub.runtime.scheduler.set_state("c", "ann", data)],
    ids=["person", "agent"],
)
@virtually
async def test_a_member_sets_its_data_again_after_those_of_another_node(
    change: Callable[[HubCore, dict[str, Any]], None],
) -> None:
    async with pair(Notifying()) as (here, there, _):
        for hub in (here, there):
            enter(hub, "ann", {"state": "listens"})
        await asyncio.sleep(SOON_S)
        for hub, state in ((here, "writes"), (there, "writes"), (there, "listens"), (here, "writes")):
            change(hub, {"state": state})
            await asyncio.sleep(SOON_S)
        assert [one.data for hub in (here, there) for one in await members(hub)] == [{"state": "writes"}] * 2
