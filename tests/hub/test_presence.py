"""Presence: connections, grace periods and leases of members, and the events that viewers receive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.errors import Forbidden, TooLarge, TooMany
from tenuto.core.events import Batch, PresenceEnter, PresenceLeave, PresenceSync, PresenceUpdate, Signal
from tenuto.core.limits import Limits
from tenuto.core.view import View
from tenuto.hub.people.presence_state import GRACE_S, OWN_MEMBERS, PresenceState
from tests.hub.hubs import new_hub
from tests.hub.watching import Watcher
from tests.virtual import virtually


@virtually
async def test_viewer_receives_the_entry_change_and_departure_of_members() -> None:
    hub = new_hub()
    await hub.start()
    watcher = Watcher(hub, "c")
    await watcher.take()
    received: list[Any] = []
    for connection, data in (("tab", {"name": "Ann"}), ("tab", {"name": "Ann", "mood": "typing"}), ("phone", None)):
        hub.runtime.presence.enter("c", "ann", connection, data)
        received += (await watcher.take()).events
    assert [type(one) for one in received] == [PresenceEnter, PresenceUpdate, PresenceUpdate]
    assert (received[2].member.connections, received[2].member.data["mood"]) == (2, "typing")
    hub.runtime.presence.leave("c", "ann", "tab")
    hub.runtime.presence.leave("c", "ann", "phone")
    left_s = asyncio.get_running_loop().time()
    received = [*(await watcher.take()).events, *(await watcher.take()).events]
    assert [type(one) for one in received] == [PresenceUpdate, PresenceLeave]
    assert GRACE_S <= asyncio.get_running_loop().time() - left_s <= GRACE_S + 1
    assert watcher.view.members() == []
    assert watcher.view.cursor == "-:0"  # presence events do not move the cursor
    await watcher.leave()


@virtually
async def test_presence_leases_of_a_client_are_limited_until_they_end() -> None:
    hub = new_hub(limits=Limits(socket_channels=3))
    await hub.start()
    for number in range(3):
        hub.runtime.presence.lease(f"c{number}", "eve" if number else "eve~phone", None, 30)
    for channel, member in (("c3", "eve"), ("c0", "eve"), ("c0", "eve~tab")):
        with pytest.raises(TooMany) as caught:
            hub.runtime.presence.lease(channel, member, None, 30)
        assert caught.value.details == {"limit": 3}
    await asyncio.sleep(20)
    hub.runtime.presence.lease("c1", "eve", None, 30)  # a renewal needs no further lease
    hub.runtime.presence.lease("c3", "ann", None, 30)
    hub.runtime.presence.end_lease("c2", "eve")
    hub.runtime.presence.lease("c4", "eve", None, 30)
    await asyncio.sleep(11)  # the lease of c0 has expired
    assert (await hub.members("c0")).count == 0
    hub.runtime.presence.lease("c5", "eve", None, 30)
    with pytest.raises(TooMany):
        hub.runtime.presence.lease("c6", "eve", None, 30)
    await asyncio.sleep(200)
    assert hub.stats()["members"] == hub.stats()["channels"] == 0
    assert not hub.runtime.presence._leases


@virtually
async def test_a_new_start_of_a_feed_shows_members_and_signals_once() -> None:
    hub = new_hub(limits=Limits(catch_up_messages=3))
    await hub.start()
    presence = hub.runtime.presence
    presence.enter("c", "ann", "tab", {})
    presence.enter("c", "bea", "tab", {})
    watcher = Watcher(hub, "c")
    await watcher.take()
    presence.leave("c", "ann", "tab")
    await asyncio.sleep(GRACE_S + 1)
    await hub.signal("c", "note", 1)
    for number in range(5):  # more changes than a resume may hold
        await hub.create("c", id=f"m{number}", text="x")
    await watcher.until(lambda view: len(view.messages()) == 5)
    presence.enter("c", "ann", "tab", {})
    await asyncio.sleep(1)
    await watcher.take()
    assert [member.id for member in watcher.view.members()] == ["bea", "ann"]
    assert (watcher.view.count, [type(one) for one in watcher.events].count(Signal)) == (2, 1)
    await watcher.leave()


@virtually
async def test_presence_data_members_and_connections_are_limited() -> None:
    hub = new_hub(limits=Limits(members=2))
    await hub.start()
    with pytest.raises(TooLarge):
        hub.runtime.presence.enter("c", "ann", 1, {"x": "y" * 5000})
    with pytest.raises(TooLarge):
        await hub.signal("c", "typing", "y" * 5000)
    hub.runtime.presence.enter("c", "ann", 1, None)
    hub.runtime.presence.enter("c", "bob", 1, None)
    with pytest.raises(TooMany):
        hub.runtime.presence.enter("c", "cem", 1, None)
    for number in range(99):
        hub.runtime.presence.enter("c", "ann", f"tab{number}", None)
    with pytest.raises(TooMany):
        hub.runtime.presence.enter("c", "ann", "one more", None)
    hub.channel("c").presence_state.enter("bot", "agent", "worker", {"state": "listening"})
    assert (await hub.members("c")).members[0].id == "bot"  # agents and users have separate limits
    hub.runtime.presence.leave("c", "bob", 1, is_final=True)
    hub.runtime.presence.enter("c", "cem", 1, None)


@virtually
async def test_client_is_at_most_a_hundred_members_of_a_channel() -> None:
    hub = new_hub()
    await hub.start()
    for number in range(OWN_MEMBERS):
        hub.runtime.presence.enter("c", f"eve~{number}", "tab", None)
    for one in ("eve", "eve~one-more"):
        with pytest.raises(TooMany) as caught:
            hub.runtime.presence.enter("c", one, "tab", None)
        assert caught.value.details == {"limit": OWN_MEMBERS}
    # a member that is present already may open another connection
    hub.runtime.presence.enter("c", "eve~7", "another tab", None)
    hub.runtime.presence.enter("c", "ann", "tab", None)
    hub.runtime.presence.enter("d", "eve", "tab", None)
    hub.runtime.presence.leave("c", "eve~3", "tab", is_final=True)
    hub.runtime.presence.enter("c", "eve", "tab", None)
    assert (await hub.members("c")).count == OWN_MEMBERS + 1


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdA"), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 9)),
        min_size=20,
        max_size=80,
    ),
    st.sampled_from((1, None)),
    st.integers(1, 3),
)
def test_events_since_any_position_also_delayed_ones_of_a_crowd_bring_every_view_up_to_date(
    steps: list[tuple[str, bool, bool, int, int]], named: int | None, kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenuto.hub.people.presence_state.KEPT_LEFT", kept)
        patch.setattr("tenuto.hub.people.presence_state.CROWD_MEMBERS", 1)
        due, received = list[Callable[[], None]](), list[int]()
        presence_state = PresenceState(Limits(), lambda: received.append(presence_state.position))
        patch.setattr("asyncio.get_running_loop", lambda: SimpleNamespace(call_later=lambda _, one: due.append(one)))

        def is_crowded() -> bool:
            """The channel counts as crowded while all members are still named, so that views can be compared."""
            return named is not None and (len(presence_state) > named or presence_state._moves > 2)

        patch.setattr(presence_state, "_is_crowded", is_crowded)
        views = [(0, View()), (0, View()), (0, View())]

        def look(place: int) -> None:
            position, view = views[place]
            if position != presence_state.position:  # without a change no feed is woken
                events = presence_state.since(position)
                known = {one.id for one in view.members()}
                assert all(one.member.id not in known for one in events if isinstance(one, PresenceEnter))
                assert all(one.member.id in known for one in events if isinstance(one, PresenceUpdate))
                assert all(one.id in known for one in events if isinstance(one, PresenceLeave))
                view.receive(Batch(events=[*events], cursor=None))
                views[place] = (presence_state.position, view)
            if not due:
                members = {one.id for one in presence_state.presence().members}
                assert {one.id for one in view.members()} == members
                assert view.count == len(members)
                assert presence_state._changes.keys() <= members | {one for *_, one in presence_state._left}
                assert len(presence_state._left) <= kept  # else memory grows, as above

        for member_id, is_coming, is_over, looking, beginning in steps:
            if is_coming:
                presence_state.enter(member_id, "agent" if member_id == "A" else "user", 0)
            elif presence_state.disconnect(member_id, 0):
                presence_state.remove(member_id)
            if is_over and due:
                due.pop()()
            if looking < len(views):
                look(looking)
            if beginning < len(views):  # a new viewer receives all members, also those with delayed events
                now, view = presence_state.presence(), View()
                view.receive(Batch(events=[PresenceSync(members=now.members, count=now.count)], cursor=None))
                views[beginning] = (presence_state.position, view)
            assert len(due) <= 1
        while due:
            due.pop()()
        assert received == sorted(received)
        for place in range(len(views)):
            look(place)


def test_user_with_the_id_of_an_agent_neither_replaces_nor_keeps_it() -> None:
    presence_state = PresenceState(Limits(), lambda: None)
    presence_state.enter("assistant", "user", "tab", {"state": "I am the agent"})
    presence_state.enter("assistant", "agent", "worker", {"state": "listening"})
    assert presence_state.presence().members[0].data == {"state": "listening"}
    with pytest.raises(Forbidden):
        presence_state.enter("assistant", "user", "tab", {"state": "answering"})
    assert presence_state.presence().members[0].data == {"state": "listening"}
    assert presence_state.disconnect("assistant", "worker")  # its last connection: the user's connection does not count
    presence_state.remove("assistant")
    assert len(presence_state) == 0
