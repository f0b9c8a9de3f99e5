"""Keys of tickets on a shared store: a ticket of one node opens a stream at another.

Layer: tests. Time is virtual.
"""

from __future__ import annotations

import asyncio

import pytest

from tenuto import visitors
from tenuto.core.errors import Unauthenticated
from tenuto.core.visitor_ids import new_visitor_id
from tenuto.hub import HubCore
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.tickets import Tickets
from tenuto.stores.memory import MemoryStore
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.virtual import virtually

NOTE = Tickets.key_note
ADA = Identity(client_id="ada", capabilities=frozenset({"subscribe"}))


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


@pytest.mark.parametrize("is_exclusive", [True, False])
@virtually
async def test_store_gets_no_key_of_one_process_and_none_that_the_app_has_given(is_exclusive: bool) -> None:
    store: MemoryStore = MemoryStore() if is_exclusive else Shared()
    await new_hub(store, ticket_keys=() if is_exclusive else [b"k" * 32]).start()
    assert await store.notes(NOTE) == {}


@pytest.mark.parametrize("is_exclusive", [True, False])
@virtually
async def test_visitor_is_known_after_a_restart_and_at_each_other_node(is_exclusive: bool) -> None:
    store, guests = MemoryStore() if is_exclusive else Shared(), [visitors() for _ in range(3)]
    hubs = [new_hub(store, number, authenticate=one) for number, one in enumerate(guests)]
    await asyncio.gather(*(hub.start() for hub in hubs[: 1 if is_exclusive else 2]))
    for hub, one in zip(hubs, guests, strict=True):
        await hub.start()
        token = guests[0].token_of(new_visitor_id(bytes(13)))
        assert one.identity_by_token(token) is not None
        if is_exclusive or hub is not hubs[0]:
            await hub.close()
