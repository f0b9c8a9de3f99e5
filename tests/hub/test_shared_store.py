"""Several hubs on one store: each hub takes the entries of the others into account.

Layer: tests.

The simulator found each of these defects. The store is the one in memory, declared as shared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import Deleted, TooMany
from tenuto.core.limits import Limits
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, ClaimTurn, CreateMessage, SendCommand
from tenuto.hub import HubCore
from tenuto.stores.base import CommitUnknown, head_of
from tests.stores.contract import Chat, Step, create

ANN = Caller(id="ann")


@pytest.fixture
async def store() -> SharedMemoryStore:
    return SharedMemoryStore()


@pytest.fixture
async def here(store: SharedMemoryStore) -> AsyncIterator[HubCore]:
    hub = HubCore(store, hooks_signals=False, drain_s=0.1, limits=Limits(catch_up_messages=3))
    yield hub
    await hub.close()


async def test_limit_of_open_commands_counts_those_of_all_nodes(here: HubCore, store: SharedMemoryStore) -> None:
    there = HubCore(store, hooks_signals=False, drain_s=0.1)
    for number in range(24):
        await (here, there)[number % 2].ask("c", command_key(f"c{number}"), SendCommand(name="poke"), ANN)
    await here.ask("c", command_key("last"), SendCommand(name="poke"), ANN)
    with pytest.raises(TooMany, match="25 commands of this sender"):
        await there.ask("c", command_key("more"), SendCommand(name="poke"), ANN)
    await there.close()


async def test_new_channel_needs_no_read_to_know_that_an_id_is_free(
    here: HubCore, store: SharedMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "messages", None)
    assert (await here.ask("c", "m1", CreateMessage(), ANN)).created


async def test_channel_that_was_empty_here_knows_the_ids_that_another_hub_has_used_up(
    here: HubCore, store: SharedMemoryStore
) -> None:
    await here.start()
    await here.channel("c").load()
    await Chat(store).do(create("m1", streaming=True))
    await store.delete_channel("c", expected=await head_of(store, "c"), used_up=["m1"], until_ms=2**50)
    await Chat(store, lives=2**50).do(create("m2"))
    with pytest.raises(Deleted):
        await here.ask("c", "m1", CreateMessage(status="streaming"), ANN)


async def test_deletion_uses_up_the_ids_of_messages_that_another_hub_streams_meanwhile(
    here: HubCore, store: SharedMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, delete = Chat(store), store.delete_channel
    await here.start()
    await here.channel("c").load()
    await chat.do(create("m1", streaming=True))

    async def raced(*about: Any, **how: Any) -> Any:
        monkeypatch.undo()
        await chat.do(create("m2", streaming=True))
        return await delete(*about, **how)

    monkeypatch.setattr(store, "delete_channel", raced)
    await here.delete_channel("c")
    for id in ("m1", "m2"):
        with pytest.raises(Deleted):
            await here.ask("c", id, CreateMessage(status="streaming"), ANN)


@pytest.mark.parametrize(
    ("asked", "other", "serial"),
    [
        (("m", CreateMessage()), create("m2"), 3),
        ((command_key("c"), SendCommand(name="poke")), create("m2"), 3),
        (("m1", ClaimTurn(generation=0)), None, None),  # two hubs can make equal claims
    ],
)
async def test_entry_of_another_hub_is_not_taken_for_one_whose_commit_was_lost(
    here: HubCore, store: SharedMemoryStore, monkeypatch: pytest.MonkeyPatch, asked: Step, other: Any, serial: Any
) -> None:
    chat, commit = Chat(store, is_served=True), store.commit
    await chat.do(create("m1"))
    await here.start()
    await here.channel("c").load()

    async def lost(writes: Any) -> Any:
        monkeypatch.undo()
        await (chat.do(other) if other is not None else commit(writes))
        raise CommitUnknown("the connection broke before the request came")

    monkeypatch.setattr(store, "commit", lost)
    (result,) = await asyncio.gather(here.ask("c", *asked, replace(ANN, is_server=True)), return_exceptions=True)
    assert getattr(result, "serial", None) == serial
