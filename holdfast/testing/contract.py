"""What every store promises: the full meaning of `holdfast.stores.base`.

You are in `testing`. A store's own test file is this class and one fixture:

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self):
            store = MyStore()
            await store.open()
            yield store
            await store.close()

Each test is one promise. Messages, documents and entries are made by the real core, through `Chat`.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from holdfast.core.decide import decide
from holdfast.core.document import document, grave, mark_documented, restore
from holdfast.core.draft import Draft
from holdfast.core.errors import HoldfastError
from holdfast.core.limits import Limits
from holdfast.core.model import Json
from holdfast.core.ops import Append, Writer
from holdfast.core.requests import (
    AppendText,
    Asker,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    PutPart,
    Request,
    TakeOver,
    UpdateMessage,
)
from holdfast.core.state import ChannelState, MessageState, apply_entry
from holdfast.core.text import Text
from holdfast.stores.base import NOTHING, Committed, Conflict, Head, Store, Write

LIMITS = Limits()
SERVER = Asker(id="server", writer=Writer(by="server", node="n1"), is_server=True)
MINUTE_MS = 60_000
PAGE = 1_000_000  # bytes: more than a test's messages have

Step = tuple[str, Request]


def create(message_id: str, text: str | None = None, *, streaming: bool = False, **meta: Json) -> Step:
    """A new message; streaming ones have no text yet unless it is given."""
    status = "streaming" if streaming else "complete"
    return message_id, CreateMessage(text=text, status=status, meta=meta)  # type: ignore[arg-type]


def append(message_id: str, text: str, *, part: int | None = None) -> Step:
    """More text."""
    return message_id, AppendText(text=text, part=part)


def put_part(message_id: str, index: int, part: dict[str, Json]) -> Step:
    """A part opened or replaced."""
    return message_id, PutPart(index=index, part=part)


def edit(message_id: str, text: str) -> Step:
    """Other text."""
    return message_id, UpdateMessage(text=text)


def finish(message_id: str) -> Step:
    """The end of a streaming message."""
    return message_id, FinishMessage()


def delete(message_id: str) -> Step:
    """The message goes."""
    return message_id, DeleteMessage()


class Chat:
    """A channel as a hub keeps it: what it knows, and what it hands to the store."""

    def __init__(self, store: Store, channel: str = "c", epoch: str = "e1") -> None:
        self.store = store
        self.epoch = epoch
        self.state = ChannelState(channel)

    @property
    def channel(self) -> str:
        return self.state.channel

    @property
    def head(self) -> Head:
        return Head(self.state.epoch, self.state.serial)

    def write(self, *steps: Step, documents: Iterable[str] = ()) -> tuple[Write, ChannelState]:
        """The write for `steps`, and what the channel is after it; new messages and `documents` get a document.

        What is refused leaves no trace.
        """
        draft = Draft(self.state)
        for message_id, request in steps:
            try:
                decision = decide(draft, message_id, _in_generation(draft, message_id, request), **_DECIDING)
            except HoldfastError:
                continue
            for op in decision.ops:
                draft.add(op)
        entries = draft.entries()
        after = copy.deepcopy(self.state)
        for entry in entries:
            apply_entry(after, entry)
        if after.serial:
            after.epoch = self.state.epoch if self.state.serial else self.epoch
        new = [message_id for message_id in after.messages if message_id not in self.state.messages]
        wanted = {*new, *(message_id for message_id in documents if message_id in after.messages)}
        write = Write(
            channel=self.channel,
            epoch=after.epoch,
            expected=self.state.serial,
            entries=entries,
            documents=[document(after.messages[message_id]) for message_id in sorted(wanted)],
        )
        return write, after

    async def do(self, *steps: Step, documents: Iterable[str] = ()) -> Committed | Conflict:
        """Store `steps` in one commit, and take them in if it was stored."""
        write, after = self.write(*steps, documents=documents)
        (answer,) = await self.store.commit([write])
        if isinstance(answer, Committed):
            self.take(write, after)
        return answer

    async def do_each(self, *steps: Step) -> None:
        """Store each of `steps` in a commit of its own."""
        for step in steps:
            assert isinstance(await self.do(step), Committed)

    def take(self, write: Write, after: ChannelState) -> None:
        """`write` is stored: the channel is now as it is `after` it."""
        self.state = after
        for one in write.documents:
            mark_documented(after.messages[one.id], one.version)

    async def write_documents(self, due: Iterable[tuple[str, str]]) -> None:
        """Write the documents that `tidy` asks for, those of this channel."""
        await self.do(documents=[message_id for channel, message_id in due if channel == self.channel])


_DECIDING: dict[str, Json] = {"asker": SERVER, "now_ms": 1_000, "limits": LIMITS}


def _in_generation(draft: Draft, message_id: str, request: Request) -> Request:
    """`request` with the generation that its message has by now."""
    message = draft.message(message_id)
    if message is None or not hasattr(request, "generation") or isinstance(request, TakeOver):
        return request
    changed = copy.copy(request)
    return type(changed)(**{**{name: getattr(changed, name) for name in changed.__struct_fields__}, "generation": message.generation})
