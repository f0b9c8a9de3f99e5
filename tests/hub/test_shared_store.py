"""Several hubs on one store: what another hub wrote is seen by whoever asks here.

Layer: tests.

The simulator found each of these; the store is the one in memory, said to be shared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from holdfast.core.document import Stored
from holdfast.core.errors import Deleted, Finished, NotFound
from holdfast.core.events import ChannelAttached
from holdfast.core.limits import Limits
from holdfast.core.requests import AppendText, Caller, CreateMessage, FinishMessage
from holdfast.hub import HubCore
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Write
from holdfast.stores.memory import MemoryStore
from holdfast.testing.contract import Chat, create
from tests.hub.watching import Watcher

ANN = Caller(id="ann")


class Shared(MemoryStore):
    """A store in memory that several hubs may have open."""

    is_exclusive = False

    def __init__(self) -> None:
        super().__init__()
        self.is_silent = False  # the next commit is stored, and nobody is told
        self.passing: Write | None = None  # a life that comes and goes while somebody looks at what streams

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        answers = await super().commit(writes)
        if self.is_silent:
            self.is_silent = False
            raise CommitUnknown("stored, but who knows")
        return answers

    async def open_documents(self, channel: str) -> list[Stored]:
        if self.passing is None:
            return await super().open_documents(channel)
        await self.commit([self.passing])
        found = await super().open_documents(channel)
        await self.delete_channel(self.passing.channel, used_up=[], until_ms=0)
        return found


@pytest.fixture
async def store() -> Shared:
    return Shared()


@pytest.fixture
async def here(store: Shared) -> AsyncIterator[HubCore]:
    hub = HubCore(store, hooks_signals=False, drain_s=0.1, limits=Limits(catch_up_messages=3))
    yield hub
    await hub.close()


@pytest.fixture
async def there(store: Shared) -> AsyncIterator[HubCore]:
    hub = HubCore(store, hooks_signals=False, drain_s=0.1)
    yield hub
    await hub.close()


async def test_a_cursor_that_another_hub_gave_is_resumed(here: HubCore, there: HubCore) -> None:
    await here.create("c", id="m1", text="known here")
    viewer = Watcher(there, "c")
    await viewer.take()
    await there.create("c", id="m2", text="not yet known here")
    await viewer.take()
    back = Watcher(here, "c", since=viewer.cursor)
    attached = (await back.take()).events[0]
    assert isinstance(attached, ChannelAttached)
    assert (attached.resumed, back.cursor) == (True, viewer.cursor)


async def test_what_another_hub_wrote_is_read(here: HubCore, there: HubCore) -> None:
    await here.create("c", id="m", text="old")
    await there.update("c", "m", text="new")
    assert (await here.read("c", "m"))[0].text == "new"


async def test_a_no_rests_on_what_another_hub_wrote(here: HubCore, there: HubCore) -> None:
    await here.ask("c", "m", CreateMessage(status="streaming", text="one"), ANN)
    await there.ask("c", "m", AppendText(text=" two", at=3), ANN)
    answer = await here.ask("c", "m", AppendText(text=" three", at=7), ANN)
    assert answer.length == 13
    await there.ask("c", "m", FinishMessage(), ANN)
    with pytest.raises(Finished):
        await here.ask("c", "m", AppendText(text="!", at=13), ANN)


async def test_an_id_that_was_not_there_is_asked_for_again(here: HubCore, there: HubCore) -> None:
    await here.create("c", id="m1", text="x")
    with pytest.raises(NotFound):
        await here.update("c", "m2", text="y")
    await there.create("c", id="m2", text="x")
    assert (await here.update("c", "m2", text="y")).text == "y"


async def test_ids_that_stream_on_another_hub_are_used_up_with_their_channel(here: HubCore, there: HubCore) -> None:
    await here.create("c", id="m1", text="x")
    await there.ask("c", "m2", CreateMessage(status="streaming"), ANN)
    await here.delete_channel("c")
    with pytest.raises(Deleted):
        await there.ask("c", "m2", AppendText(text="late"), ANN)


async def test_text_before_a_part_that_replaces_it_is_not_refused_after_an_unclear_commit(
    here: HubCore, store: Shared
) -> None:
    async with here.message("c", id="m") as message:
        await message.append("one")
        await message.flush()
        store.is_silent = True
        await message.append(" two")
        await message.part({"type": "text", "text": "instead"}, index=0)
        await message.append(" of it")
        await message.flush()
    assert (await here.read("c", "m"))[0].text == "instead of it"


async def test_what_streamed_between_two_looks_at_an_empty_channel_is_not_there(here: HubCore, store: Shared) -> None:
    store.passing = Chat(store).write(create("m", streaming=True))
    await here.start()
    await here.channel("c").load()
    assert here.channel("c").state.messages == {}
