"""Keys of tickets on a shared store: a ticket of one node opens a stream at another.

Layer: tests. Time is virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tenuto.core.errors import Unauthenticated
from tenuto.hub import HubCore
from tenuto.hub.identity import Identity
from tenuto.hub.ticket_keys import FOLLOW_S, MAX_KEYS, NOTE
from tenuto.stores.memory import MemoryStore
from tests.hub.test_recovery import Shared, new_hub
from tests.virtual import virtually

ADA = Identity(client_id="ada", capabilities=frozenset({"subscribe"}))


class Slow(Shared):
    """A store in which a note takes a moment, so that two hubs keep their keys at once."""

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        await asyncio.sleep(0.01)
        return await super().note(values, expected=expected)


def accepts(reader: HubCore, issuer: HubCore) -> bool:
    """Return whether `reader` accepts a new ticket of `issuer`."""
    try:
        return reader.tickets.read(issuer.tickets.issue(ADA, "c"), "c", None).client_id == "ada"
    except Unauthenticated:
        return False


@virtually
async def test_ticket_of_one_node_is_accepted_by_another_and_by_the_next_start() -> None:
    store = Shared()
    here, there, later = (new_hub(store, number) for number in (1, 2, 3))
    assert not accepts(there, here)
    await here.start()
    await there.start()
    assert accepts(there, here)
    assert accepts(here, there)
    await here.close()
    await there.close()
    await later.start()
    assert accepts(later, here)
    assert len(await store.notes(NOTE)) == 1
    await later.close()


@virtually
async def test_nodes_that_start_at_the_same_moment_know_each_others_keys_soon() -> None:
    store = Slow()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await asyncio.gather(here.start(), there.start())
    await asyncio.sleep(FOLLOW_S + 1)
    assert len(await store.notes(NOTE)) == 2
    assert accepts(there, here)
    assert accepts(here, there)
    await store.note({f"{NOTE}{number}": b"k" * 32 for number in range(100)} | {f"{NOTE}short": b"k"})
    await asyncio.sleep(FOLLOW_S + 1)
    assert repr(here.tickets) == f"Tickets({MAX_KEYS} keys, 0 open)"
    await here.close()
    await there.close()


@pytest.mark.parametrize("is_exclusive", [True, False])
@virtually
async def test_store_gets_no_key_of_one_process_and_none_that_the_app_has_given(is_exclusive: bool) -> None:
    store: MemoryStore = MemoryStore() if is_exclusive else Shared()
    hub = HubCore(store, hooks_signals=False, drain_s=0, ticket_keys=() if is_exclusive else [b"k" * 32])
    await hub.start()
    await asyncio.sleep(FOLLOW_S + 1)
    assert await store.notes(NOTE) == {}
    await hub.close()
