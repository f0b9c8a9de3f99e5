"""Hooks of several hubs on one store: one of them calls a hook, for the entries of all.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from tenuto.app import Hub
from tenuto.core.errors import StoreUnavailable
from tenuto.hub.hooks import SHARE_S, HookEvent
from tenuto.hub.nodes.nodes import TERM_MS
from tenuto.stores.base import Head, Hold, Renewal
from tests.hub.test_recovery import Shared
from tests.hub.test_shared_turns import new_hub, say
from tests.virtual import virtually

SEEN_S = SHARE_S + 0.5  # time in which a hook receives the entry of another node
TAKEN_S = SEEN_S + TERM_MS / 1000  # time in which another node takes the hook of one that died


def listen(*hubs: Hub) -> list[tuple[int, str]]:
    """Register a hook in each hub; return the list of calls, each with the place of its hub."""
    calls: list[tuple[int, str]] = []
    for place, hub in enumerate(hubs):

        @hub.on("message.create", "*", name="billing")
        async def bill(event: HookEvent, place: int = place) -> None:
            calls.append((place, event.id))

    return calls


async def started(*hubs: Hub) -> None:
    """Start `hubs` one after the other."""
    for hub in hubs:
        await hub.start()
        await asyncio.sleep(0.1)


@virtually
async def test_one_node_calls_a_hook_for_the_entries_of_all_and_another_continues_when_it_ends() -> None:
    store = Shared()
    first, second, third = (new_hub(store, number) for number in range(3))
    calls = listen(first, second)
    await started(first, second, third)
    for number, hub in enumerate((first, second, third)):
        await say(hub, f"c{number}", f"q{number}")
    await asyncio.sleep(SEEN_S)
    assert sorted(calls) == [(0, "q0"), (0, "q1"), (0, "q2")]
    await first.close()
    await say(third, "c0", "q3")
    await say(third, "new", "q4")
    await asyncio.sleep(SEEN_S)
    assert sorted(calls[3:]) == [(1, "q3"), (1, "q4")]
    await second.close()
    await third.close()


@virtually
async def test_damaged_note_of_the_node_that_calls_a_hook_is_that_of_an_ended_node() -> None:
    store = Shared()
    await store.note({"hook-node/billing/*": b"\xff 1"})
    hubs = [new_hub(store, number) for number in range(2)]
    calls = listen(*hubs)
    await started(*hubs)
    await asyncio.sleep(TAKEN_S)
    await say(hubs[0], "c", "q0")
    await asyncio.sleep(SEEN_S)
    assert [question for _, question in calls] == ["q0"]
    for hub in hubs:
        await hub.close()


@virtually
async def test_hook_with_another_pattern_at_each_node_is_called_for_the_channels_of_both() -> None:
    store = Shared()
    hubs = [new_hub(store, number) for number in range(3)]
    calls: list[tuple[int, str]] = []
    for place, (hub, pattern) in enumerate(zip(hubs, ("chat:*", "room:*", "room:*"), strict=True)):

        @hub.on("message.create", pattern, name="billing")
        async def bill(event: HookEvent, place: int = place) -> None:
            calls.append((place, event.id))

    await started(*hubs)
    await say(hubs[0], "room:1", "q0")
    await say(hubs[1], "chat:1", "q1")
    await asyncio.sleep(SEEN_S)
    assert sorted(calls) == [(0, "q1"), (1, "q0")]
    await hubs[1].close()
    await say(hubs[0], "room:1", "q2")
    await asyncio.sleep(SEEN_S)
    assert calls[2:] == [(2, "q2")]
    await hubs[0].close()
    await hubs[2].close()


@virtually
async def test_hook_of_a_node_without_a_lease_is_called_by_another_one_from_then_on() -> None:
    store = Shared()
    first, second = new_hub(store, 0), new_hub(store, 1)
    calls = listen(first, second)
    await started(first, second)
    await say(first, "c", "q0")
    await asyncio.sleep(SEEN_S)
    store.refused = first.runtime.node
    await asyncio.sleep(TAKEN_S)
    await say(second, "c", "q1")
    await asyncio.sleep(SEEN_S)
    store.refused = ""
    await asyncio.sleep(TAKEN_S)
    await say(second, "c", "q2")
    await asyncio.sleep(SEEN_S)
    assert calls == [(0, "q0"), (1, "q1"), (1, "q2")]
    await first.close()
    await second.close()


@virtually
async def test_hook_that_fails_at_a_node_is_called_by_the_one_that_takes_over() -> None:
    store = Shared()
    first, second = new_hub(store, 0), new_hub(store, 1)
    failures: list[float] = []

    @first.on("message.create", "*", name="billing")
    async def fail(event: HookEvent) -> None:
        failures.append(asyncio.get_running_loop().time())
        raise ConnectionError("the accounts are away")

    calls = listen(second)
    await started(first, second)
    await say(second, "c", "q")
    await asyncio.sleep(SEEN_S)
    assert failures
    store.refused = first.runtime.node
    await asyncio.sleep(TAKEN_S)
    assert calls == [(0, "q")]
    failures.clear()
    await asyncio.sleep(300.0)
    assert not failures
    await first.close()
    await second.close()


@virtually
async def test_node_whose_lease_expires_during_a_call_begins_no_further_call_and_sets_no_position_back() -> None:
    store = Shared()
    first, second = new_hub(store, 0), new_hub(store, 1)
    gate = asyncio.Event()
    calls: list[tuple[int, str]] = []

    @first.on("message.create", "*", name="billing")
    async def wait(event: HookEvent) -> None:
        calls.append((0, event.id))
        await gate.wait()

    @second.on("message.create", "*", name="billing")
    async def bill(event: HookEvent) -> None:
        calls.append((1, event.id))

    await started(first, second)
    await asyncio.gather(say(second, "c", "q0"), say(second, "c", "q1"))
    await asyncio.sleep(SEEN_S)
    store.refused = first.runtime.node
    await asyncio.sleep(TAKEN_S)
    kept = await store.notes("hook/billing/")
    store.refused = ""
    gate.set()
    await asyncio.sleep(2 * SEEN_S)
    assert calls == [(0, "q0"), (1, "q0"), (1, "q1")]
    assert await store.notes("hook/billing/") == kept
    await first.close()
    await second.close()


def listen_slowly(calls: list[str], *hubs: Hub) -> None:
    """Register a hook in each hub; `calls` receives the begin and the end of each call, with the place of its hub."""
    for place, hub in enumerate(hubs):

        @hub.on("message.create", "*", name="billing")
        async def bill(event: HookEvent, place: int = place) -> None:
            calls.append(f"{place} begins {event.id}")
            try:
                await asyncio.sleep(2.0)
            finally:
                calls.append(f"{place} ends {event.id}")


@virtually
async def test_node_that_drains_ends_its_call_before_another_one_calls_the_hook() -> None:
    store = Shared()
    first, second = new_hub(store, 0), new_hub(store, 1)
    calls: list[str] = []
    listen_slowly(calls, first, second)
    await started(first, second)
    await asyncio.sleep(SHARE_S - 0.5)  # the second one looks directly after the drain
    await say(first, "c", "q")
    await first.drain()  # its server may close it much later
    await asyncio.sleep(SEEN_S + 2.0)
    assert calls == ["0 begins q", "0 ends q", "1 begins q", "1 ends q"]
    await first.close()
    await second.close()


class _LateRenewals(Shared):
    """A store in which the renewals of the first node are carried out late, from its second one on."""

    def __init__(self) -> None:
        super().__init__()
        self.late_node = ""

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        if node == self.late_node:
            await asyncio.sleep(0.5)
        self.late_node = self.late_node or node
        return await super().hold(node, term_ms, values)


@virtually
async def test_two_nodes_that_start_at_the_same_moment_do_not_call_a_hook_at_the_same_time() -> None:
    first, second = (new_hub(store, number) for store in [_LateRenewals()] for number in range(2))
    calls: list[str] = []
    listen_slowly(calls, first, second)
    starting = asyncio.create_task(first.start())
    await asyncio.sleep(0.01)
    await second.start()
    await say(second, "c", "q")
    await asyncio.sleep(SEEN_S + 2.0)
    assert len(calls) == 2, calls
    await starting
    await first.close()
    await second.close()


class _HeldNotes(Shared):
    """A store in which the next change of the node that has a hook waits for `gate`, if `is_held`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.reached, self.gate = False, asyncio.Event(), asyncio.Event()

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        if self.is_held and any(name.startswith("hook-node/") for name in values):
            self.is_held = False
            self.reached.set()
            await self.gate.wait()
        return await super().note(values, expected=expected)


@virtually
async def test_node_that_has_its_lease_again_keeps_the_hook_that_another_one_is_about_to_take() -> None:
    store = _HeldNotes()
    first, second = new_hub(store, 0), new_hub(store, 1)
    calls = listen(first, second)
    await started(first, second)
    await asyncio.sleep(SEEN_S)
    store.refused, store.is_held = first.runtime.node, True
    async with asyncio.timeout(TAKEN_S + 1.0):
        await store.reached.wait()
    store.refused = ""
    await asyncio.sleep(SEEN_S)
    store.gate.set()
    await asyncio.sleep(0.1)
    await say(first, "c", "q")
    await asyncio.sleep(SEEN_S)
    assert calls == [(0, "q")]
    await first.close()
    await second.close()


class _HeldReads(Shared):
    """A store in which the next read of the node that has a hook waits for `gate`, if `is_held`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.reached, self.gate = False, asyncio.Event(), asyncio.Event()

    async def notes(self, prefix: str) -> dict[str, bytes]:
        if self.is_held and prefix.startswith("hook-node/"):
            self.is_held = False
            self.reached.set()
            await self.gate.wait()
        return await super().notes(prefix)


@virtually
async def test_node_that_has_just_started_keeps_the_hook_that_a_drained_one_has_given_back() -> None:
    store = _HeldReads()
    first, second, third = (new_hub(store, number) for number in range(3))
    calls: list[str] = []
    listen_slowly(calls, first, second, third)
    await started(first, second)
    await asyncio.sleep(TAKEN_S)
    await first.close()
    store.is_held = True
    await store.reached.wait()
    await third.start()  # the last renewal of the second one does not show it yet
    await say(third, "c", "q")
    store.gate.set()
    await asyncio.sleep(SEEN_S + 2.0)
    assert calls == ["2 begins q", "2 ends q"]
    await second.close()
    await third.close()


@virtually
async def test_node_that_has_just_got_its_lease_again_keeps_its_hook() -> None:
    store = _HeldReads()
    first, second = new_hub(store, 0), new_hub(store, 1)
    calls: list[str] = []
    listen_slowly(calls, first, second)
    await started(first, second)
    await asyncio.sleep(SEEN_S)
    (runner,) = first.runtime.hooks._runners
    store.refused = first.runtime.node
    while not second.runtime.nodes.is_gone(first.runtime.node):  # noqa: ASYNC110 - virtual
        await asyncio.sleep(0.1)
    store.is_held = True
    await store.reached.wait()
    store.refused = ""
    await runner._take_turn()  # it looks at the note before the next renewal of the second one
    await say(first, "c", "q")
    store.gate.set()
    await asyncio.sleep(SEEN_S + 2.0)
    assert calls == ["0 begins q", "0 ends q"]
    await first.close()
    await second.close()


@virtually
async def test_registration_between_the_callbacks_of_a_start_and_its_end_takes_effect() -> None:
    store = Shared()
    store.renewal_s = 0.1
    hub = new_hub(store, 0)
    calls: list[list[tuple[int, str]]] = []
    starts: list[int] = []

    def register() -> None:
        assert not started_up.done()
        calls.append(listen(hub))
        hub.on_start(lambda: starts.append(1))

    hub.on_start(lambda: asyncio.get_running_loop().call_soon(register))
    started_up = asyncio.create_task(hub.start())
    await started_up
    await asyncio.sleep(SEEN_S)
    await say(hub, "c", "q0")
    await asyncio.sleep(SEEN_S)
    assert (calls, starts) == ([[(0, "q0")]], [1])
    await hub.close()


class _Held(Shared):
    """A store in which the next read of the head of channel "c" waits for `gate`, if `is_held`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.reached, self.gate = False, asyncio.Event(), asyncio.Event()

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        if self.is_held and list(channels) == ["c"]:
            self.is_held = False
            self.reached.set()
            await self.gate.wait()
        return await super().heads(channels)


@virtually
async def test_new_hook_receives_an_entry_that_a_node_stores_directly_after_its_start() -> None:
    store = Shared()
    older, first, second = (new_hub(store, number) for number in range(3))
    await older.start()
    await say(older, "c", "before")
    store.notes_s = 0.05
    calls = listen(first, second)
    await asyncio.gather(first.start(), second.start())
    await say(second, "c", "q0")
    await asyncio.sleep(SEEN_S)
    assert [id for _, id in calls] == ["q0"]
    for hub in (older, first, second):
        await hub.close()


@virtually
async def test_node_that_registers_a_new_hook_later_than_another_skips_no_entry_of_that_one() -> None:
    store = _Held()
    older, first, second = (new_hub(store, number) for number in range(3))
    await older.start()
    await say(older, "c", "before")

    @first.on("message.create", "*", name="billing")
    async def fail(event: HookEvent) -> None:
        raise ConnectionError("the accounts are away")

    calls = listen(second)
    store.is_held = True
    starting = asyncio.create_task(second.start())
    await store.reached.wait()
    await first.start()
    await say(first, "c", "q0")
    store.gate.set()
    await starting
    await first.close()
    await asyncio.sleep(SEEN_S)
    assert calls == [(0, "q0")]
    await older.close()
    await second.close()


@virtually
async def test_registration_of_a_new_hook_is_stored_before_the_node_serves() -> None:
    store = Shared()
    hub = new_hub(store, 0)
    store.notes_s = 0.05
    listen(hub)
    await hub.start()
    assert await store.notes("hook-registered/") == {"hook-registered/billing": b"1"}
    await hub.close()


class ChannelsAway(Shared):
    """A store that does not list its channels while `is_away`."""

    is_away = False

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        if self.is_away:
            raise StoreUnavailable("the store is away")
        return await super().channels(after=after, limit=limit)


@virtually
async def test_hook_begins_soon_after_an_outage_that_began_while_its_node_looked_for_missed_entries() -> None:
    store = ChannelsAway()
    first, second = new_hub(store, 0), new_hub(store, 1)
    calls = listen(first)
    await started(first, second)
    store.is_away = True
    for outage_s in (0.0, 70.0):  # its lease expires twice
        await asyncio.sleep(outage_s)
        store.refused = first.runtime.node
        await asyncio.sleep(TERM_MS / 1000 + 1.0)
        store.refused = ""
    store.is_away = False
    await asyncio.sleep(2.0)
    await say(second, "c", "q")
    await asyncio.sleep(SEEN_S)
    assert calls == [(0, "q")]
    await first.close()
    await second.close()
