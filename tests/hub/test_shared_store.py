"""Several hubs on one store: each hub takes the entries of the others into account.

Layer: tests.

The simulator found each of these defects. The store is the one in memory, declared as shared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import Deleted, TooMany
from tenuto.core.limits import Limits
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, CreateMessage, SendCommand
from tenuto.hub import HubCore
from tenuto.stores.base import Conflict, Head, Write, head_of
from tests.stores.contract import Chat, append, create

ANN = Caller(id="ann")


class Shared(SharedMemoryStore):
    """A store in memory that several hubs may have open."""

    crossing: Write | None = None  # stored between the reads of a deletion and the deletion

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        if self.crossing is not None:
            write, self.crossing = self.crossing, None
            await self.commit([write])
        return await super().delete_channel(channel, expected=expected, used_up=used_up, until_ms=until_ms)


@pytest.fixture
async def store() -> Shared:
    return Shared()


@pytest.fixture
async def here(store: Shared) -> AsyncIterator[HubCore]:
    hub = HubCore(store, hooks_signals=False, drain_s=0.1, limits=Limits(catch_up_messages=3))
    yield hub
    await hub.close()


async def test_limit_of_open_commands_counts_those_of_all_nodes(here: HubCore, store: Shared) -> None:
    there = HubCore(store, hooks_signals=False, drain_s=0.1)
    for number in range(24):
        await (here, there)[number % 2].ask("c", command_key(f"c{number}"), SendCommand(name="poke"), ANN)
    await here.ask("c", command_key("last"), SendCommand(name="poke"), ANN)
    with pytest.raises(TooMany, match="25 commands of this sender"):
        await there.ask("c", command_key("more"), SendCommand(name="poke"), ANN)
    await there.close()


async def test_message_that_another_hub_begins_during_the_deletion_of_its_channel_is_used_up(
    here: HubCore, store: Shared
) -> None:
    chat = Chat(store)
    await chat.do(create("m1", streaming=True))
    await here.start()
    await here.channel("c").load()
    store.crossing = chat.write(append("m1", "x"), create("m2", streaming=True))
    await here.delete_channel("c")
    for used_up in ("m1", "m2"):
        with pytest.raises(Deleted):
            await here.ask("c", used_up, CreateMessage(status="streaming"), ANN)


async def test_new_channel_needs_no_read_to_know_that_an_id_is_free(
    here: HubCore, store: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "messages", None)
    assert (await here.ask("c", "m1", CreateMessage(), ANN)).created


async def test_channel_that_was_empty_here_knows_the_ids_that_another_hub_has_used_up(
    here: HubCore, store: Shared
) -> None:
    await here.start()
    await here.channel("c").load()
    await Chat(store).do(create("m1", streaming=True))
    await store.delete_channel("c", expected=await head_of(store, "c"), used_up=["m1"], until_ms=2**50)
    await Chat(store, lives=2**50).do(create("m2"))
    with pytest.raises(Deleted):
        await here.ask("c", "m1", CreateMessage(status="streaming"), ANN)
