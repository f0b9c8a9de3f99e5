"""Hooks of several hubs on one store: one of them calls a hook, for the entries of all.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio

from tenuto.app import Hub
from tenuto.hub.hooks import SHARE_S, HookEvent
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.test_shared_turns import say
from tests.virtual import virtually

SEEN_S = SHARE_S + 0.5  # time in which a hook receives the entry of another node


async def started(*hubs: Hub) -> None:
    """Start `hubs` one after the other."""
    for hub in hubs:
        await hub.start()
        await asyncio.sleep(0.1)


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
