"""The contract of stores: the full meaning of `tenuto.stores.base`.

Layer: testing.

A store's own test file is this class and one fixture:

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self):
            store = MyStore()
            await store.open()
            yield store
            await store.close()

Each test checks one promise. A `Chat` makes the messages, documents and entries with the real core.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.decide import decide
from tenuto.core.document import (
    KEPT_MS,
    Document,
    document,
    mark_documented,
    restore,
    restore_command,
    restored,
    used_up_head,
)
from tenuto.core.draft import Draft
from tenuto.core.errors import IdConflict, TenutoError
from tenuto.core.limits import Limits
from tenuto.core.model import ChannelSummary, Json
from tenuto.core.ops import Command, Create, Entry, WriterIdentity, encode_op
from tenuto.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    Request,
    SendCommand,
    SettleCommand,
    TakeOver,
    UpdateMessage,
)
from tenuto.core.state import ChannelState, CommandState, MessageState, apply_entry, part_bytes
from tenuto.core.text import Text
from tenuto.hub import HubCore
from tenuto.stores.base import (
    NOTHING,
    Committed,
    Conflict,
    Head,
    Hold,
    Notice,
    SharedStore,
    Store,
    Tail,
    Write,
    head_of,
)
from tests.core.worlds import current, parts, weighted
from tests.core.worlds import everything_of_command as known_command
from tests.core.worlds import everything_of_message as known
from tests.core.worlds import texts as drawn_texts

LIMITS = Limits()
SERVER = Caller(id="server", writer=WriterIdentity(by="server", node="n1"), is_server=True)
MINUTE_MS = 60_000
PATIENCE_S = 20.0
LAW = settings(
    max_examples=settings().max_examples // 2,  # each example is many calls of a real store
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # allowed, because each example uses a channel of its own
        HealthCheck.differing_executors,  # allowed, because each store's test class runs this test once
        HealthCheck.too_slow,
    ],
)
PAGE = 1_000_000  # page size in bytes: more than the messages of a test have

Step = tuple[str, Request]


def create(message_id: str, text: str | None = None, *, streaming: bool = False, **meta: Json) -> Step:
    """Return the id and request that create a message, for `Chat`. `text` defaults to none while streaming."""
    status = "streaming" if streaming else "complete"
    return message_id, CreateMessage(text=text, status=status, meta=meta)  # type: ignore[arg-type]


def append(message_id: str, text: str, *, part: int | None = None) -> Step:
    """Return the id and request that append text, for `Chat`."""
    return message_id, AppendText(text=text, part=part)


def put_part(message_id: str, index: int, part: dict[str, Json]) -> Step:
    """Return the id and request that open or replace a part, for `Chat`."""
    return message_id, PutPart(index=index, part=part)


def edit(message_id: str, text: str) -> Step:
    """Return the id and request that replace the text, for `Chat`."""
    return message_id, UpdateMessage(text=text)


def finish(message_id: str) -> Step:
    """Return the id and request that finish a streaming message, for `Chat`."""
    return message_id, FinishMessage()


def delete(message_id: str) -> Step:
    """Return the id and request that delete the message, for `Chat`."""
    return message_id, DeleteMessage()


class Chat:
    """A channel as a hub keeps it: its state, and the writes that it passes to the store."""

    def __init__(
        self, store: Store, channel: str = "c", epoch: str = "e1", *, is_served: bool = False, lives: int = 0
    ) -> None:
        self.store = store
        self.epoch = epoch
        self.is_served = is_served  # True: agents work on this channel
        self.state = ChannelState(channel)
        self.state.lives = lives
        self.entries: list[Entry] = []  # all entries of the channel since it was empty
        self.documents: dict[str, Document] = {}  # the last one of each message and command

    @property
    def channel(self) -> str:
        return self.state.channel

    @property
    def head(self) -> Head:
        return Head(self.state.epoch, self.state.serial, self.state.floor, self.state.lives)

    def write(self, *steps: Step, documents: Iterable[str] = ()) -> Write:
        """Return the write for `steps`, each an id and a request.

        New messages and `documents` get a document. A refused step adds no entry.
        """
        draft = Draft(self.state)
        for message_id, request in steps:
            try:
                request = current(draft.message(message_id), request)
                decision = decide(draft, message_id, request, is_served=self.is_served, **_DECIDING)
            except TenutoError:
                continue
            for op in decision.ops:
                draft.add(op)
        entries = draft.entries()
        wanted = {entry.op.id for entry in entries if type(entry.op) in (Create, Command)} | set(documents)
        things = [draft.thing(key) for key in sorted(wanted)]
        return Write(
            channel=self.channel,
            epoch=self.state.epoch if self.state.serial else self.epoch,
            expected=self.state.serial,
            entries=entries,
            documents=[document(thing) for thing in things if thing is not None],
            lives=self.state.lives,
            floor=self.state.floor,
        )

    async def do(self, *steps: Step, documents: Iterable[str] = ()) -> Committed | Conflict:
        """Store `steps`, each an id and a request, in one commit, and apply them if they were stored."""
        write = self.write(*steps, documents=documents)
        (outcome,) = await self.store.commit([write])
        if isinstance(outcome, Committed):
            self.take(write)
        return outcome

    async def do_each(self, *steps: Step) -> None:
        """Store each of `steps` in a separate commit."""
        for step in steps:
            assert isinstance(await self.do(step), Committed)

    def take(self, write: Write) -> None:
        """Apply a stored write to the channel's state."""
        self.entries = [*(self.entries if write.expected else []), *write.entries]
        for entry in write.entries:
            self.state.epoch, self.state.lives = write.epoch, 0
            apply_entry(self.state, entry)
        for one in write.documents:
            self.documents[one.id] = one
            if one.id in self.state.messages:
                mark_documented(self.state.messages[one.id], one.version)

    async def write_documents(self, due: Iterable[tuple[str, str]]) -> None:
        """Write the documents that `tidy` requests, if they belong to this channel."""
        await self.do(documents=[message_id for channel, message_id in due if channel == self.channel])


_DECIDING: dict[str, Json] = {"caller": SERVER, "now_ms": 1_000, "limits": LIMITS}


async def emptied(store: Store, channel: str, *, used_up: Sequence[str] = (), until_ms: int = 0) -> Head:
    """Empty `channel` as it is now, and return its new head."""
    head = await store.delete_channel(
        channel, expected=await head_of(store, channel), used_up=used_up, until_ms=until_ms
    )
    assert isinstance(head, Head)
    return head


async def messages_of(store: Store, channel: str, *ids: str) -> list[MessageState]:
    """Return the messages `ids`, read from the store."""
    _, stored = await store.messages(channel, ids)
    return [restore(stored[message_id]) for message_id in ids if message_id in stored]


async def texts(store: Store, channel: str, *ids: str) -> list[str]:
    """Return the texts of the messages `ids`, read from the store."""
    return [message.message().text for message in await messages_of(store, channel, *ids)]


def approve(key: str, target: str | None) -> Step:
    return key, SendCommand(name="approve", target=target, data=1)


def refuse(key: str) -> Step:
    return key, ReplyCommand(ok=False, data=2, error={"code": "no", "detail": "why"}, request="r")


async def data_of(store: Store, *keys: str) -> list[tuple[Json, Json]]:
    """Return the data of the commands `keys` and of their replies, read from the store."""
    _, stored = await store.messages("c", keys)
    commands = [restore_command(stored[key]) for key in keys]
    return [(one.sent.data, one.reply.data if one.reply is not None else None) for one in commands]


class StoreContract:
    """The promises of every store. Subclass it and supply the `store` fixture: an open, empty store."""

    pytestmark = pytest.mark.asyncio

    # -- commits ------------------------------------------------------------------------------------------------

    async def test_an_unknown_channel_is_empty(self, store: Store) -> None:
        assert await head_of(store, "c") == await emptied(store, "c") == NOTHING
        assert await store.changes("c", after=0, limit=10) == (NOTHING, None, [])
        assert await store.messages("c", ["m1"]) == (NOTHING, {})
        assert await store.page("c", before=None, limit=10, limit_bytes=PAGE) == (NOTHING, [], False)
        assert await store.open_documents("c") == []
        assert await store.facts("c", after=0, limit=2) == (NOTHING, [])
        assert await store.commands("c", after=None, limit=10) == []

    async def test_of_two_writes_at_one_serial_exactly_one_wins(self, store: Store) -> None:
        first, second = Chat(store), Chat(store, epoch="e2")
        outcomes = await asyncio.gather(first.do(create("a", "A")), second.do(create("b", "B")))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Committed", "Conflict"]
        _, stored = await store.messages("c", ["a", "b"])
        assert len(stored) == 1

    async def test_a_write_of_another_serial_or_epoch_conflicts(self, store: Store) -> None:
        chat = Chat(store)
        chat.state.epoch, chat.state.serial = "e1", 5
        assert await chat.do(create("m1", "one")) == Conflict(NOTHING)
        chat = Chat(store)
        await chat.do(create("m1", "one"))
        chat.state.epoch = "e2"
        assert await chat.do(create("m2", "two")) == Conflict(Head("e1", 1))

    async def test_a_conflict_of_one_channel_does_not_touch_the_others(self, store: Store) -> None:
        taken, late, free = Chat(store, "a"), Chat(store, "a"), Chat(store, "b")
        await taken.do(create("m1", "one"))
        writes = [late.write(create("m2", "two")), free.write(create("m3", "three"))]
        assert await store.commit(writes) == [Conflict(Head("e1", 1)), Committed(1)]
        assert await texts(store, "a", "m1", "m2") == ["one"]
        assert await texts(store, "b", "m3") == ["three"]

    async def test_an_empty_commit_changes_no_channel(self, store: Store) -> None:
        assert await store.commit([]) == []
        assert await store.commit([Write(channel="c", epoch="e1", expected=0)]) == [Committed(0)]
        assert await head_of(store, "c") == NOTHING

    async def test_call_that_is_cancelled_while_it_waits_leaves_a_running_commit_alone(self, store: Store) -> None:
        chat = Chat(store)
        for number in range(8):
            committing = asyncio.create_task(chat.do(create(f"m{number}", "a")))
            waiting = asyncio.create_task(store.note({"n": b"1"}))
            await asyncio.sleep(0)  # both have begun
            waiting.cancel()
            assert await committing == Committed(number + 1)

    # -- documents and entries ----------------------------------------------------------------------------------

    async def test_a_document_may_end_in_the_middle_of_a_commit(self, store: Store) -> None:
        chat, other = Chat(store), Chat(store)
        first = chat.write(create("m1", "a", streaming=True))
        await store.commit([first])
        chat.take(first)
        other.take(first)
        both = chat.write(append("m1", "b"), put_part("m1", 1, {"type": "text", "text": "c"}))
        assert await store.commit([both]) == [Committed(3)]
        other.take(replace(both, entries=both.entries[:1]))
        assert await store.commit([replace(other.write(documents=["m1"]), expected=3)]) == [Committed(3)]
        _, stored = await store.messages("c", ["m1"])
        assert [entry.serial for entry in stored["m1"].entries] == [3]
        assert await texts(store, "c", "m1") == ["abc"]
        assert await head_of(store, "c") == Head("e1", 3)

    async def test_marks_are_read_back_with_their_segments(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", streaming=True))
        for number in range(40):
            await chat.do(append("m1", f"{number:03d} " * 20), documents=["m1"] if number % 16 == 15 else ())
        (message,) = await messages_of(store, "c", "m1")
        text, true = message.parts[0].text, chat.state.messages["m1"].parts[0].text
        assert isinstance(text, Text)
        assert isinstance(true, Text)
        lengths = [text.length_at(serial) for serial in range(42)]
        assert all(0 <= true.length_at(serial) - length < 600 for serial, length in enumerate(lengths))

    async def test_text_larger_than_a_page_is_read_back(self, store: Store, chat: Chat) -> None:
        large = "".join(f"{number} é🙂 " for number in range(30_000))
        await chat.do(create("m1", large, streaming=True))
        await chat.do(append("m1", large[:90_000]))
        await chat.do(put_part("m1", 1, {"type": "data", "name": "big", "data": large[:200_000]}))
        await chat.do(append("m1", "end", part=0))
        assert known((await messages_of(store, "c", "m1"))[0]) == known(chat.state.messages["m1"])
        await chat.do(documents=["m1"])
        assert known((await messages_of(store, "c", "m1"))[0]) == known(chat.state.messages["m1"])

    # -- queries ------------------------------------------------------------------------------------------------

    async def test_changes_beyond_the_limit_are_not_listed(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", streaming=True), create("m2", streaming=True), create("m3", "c"))
        await chat.do(append("m1", "a"), append("m2", "b"))
        assert (await store.changes("c", after=0, limit=2)).messages is None
        assert (await store.changes("c", after=3, limit=1)).messages is None
        assert len((await store.changes("c", after=0, limit=3)).messages or ()) == 3
        assert (await store.changes("c", after=5, limit=0)).messages == []

    async def test_a_page_ends_at_its_limits_and_announces_more(self, store: Store, chat: Chat) -> None:
        await chat.do(*(create(f"m{number}", "x" * 100) for number in range(1, 6)))
        assert await page_of(store, limit=5) == (["m5", "m4", "m3", "m2", "m1"], False)
        assert await page_of(store, limit=10, limit_bytes=250) == (["m5", "m4"], True)
        assert await page_of(store, limit=10, limit_bytes=10) == (["m5"], True)  # at least one message
        assert await page_of(store, before=4, limit=2) == (["m3", "m2"], True)
        assert await page_of(store, before=2, limit=2) == (["m1"], False)
        assert [await page_of(store, before=before, limit=2) for before in (0, 1)] == [([], False)] * 2

    async def test_a_page_after_a_serial_is_oldest_first(self, store: Store, chat: Chat) -> None:
        await chat.do(*(create(f"m{number}", "x" * 100) for number in range(1, 7)))
        await chat.do(delete("m3"))
        assert await page_of(store, after=0, limit=2) == (["m1", "m2"], True)
        assert await page_of(store, after=2, limit=3) == (["m4", "m5", "m6"], False)
        assert await page_of(store, after=1, before=5, limit=10) == (["m2", "m4"], False)
        assert await page_of(store, after=0, limit=10, limit_bytes=250) == (["m1", "m2"], True)
        assert [await page_of(store, after=after, limit=2) for after in (6, 7, 2**70)] == [([], False)] * 3

    # -- notes ---------------------------------------------------------------------------------------------------

    async def test_the_prefix_of_a_note_is_matched_literally(self, store: Store) -> None:
        names = ["a%b", "a_b", "aXb", "A%b", "a*b", "a[x]", "ä", "a"]
        await store.note(dict.fromkeys(names, b"x"))
        assert sorted(await store.notes("")) == sorted(names)
        for prefix in ("a%", "a_", "A", "a*", "a[", "ä"):
            assert sorted(await store.notes(prefix)) == sorted(one for one in names if one.startswith(prefix))

    async def test_notes_are_stored_atomically_and_deleting_an_unknown_one_is_allowed(self, store: Store) -> None:
        await store.note({})
        await store.note({"gone": None, "n007": b"old"})
        await store.note({f"n{number:03d}": bytes([number]) * 1_000 for number in range(200)})
        assert len(await store.notes("n")) == 200
        assert (await store.notes("n007")) == {"n007": b"\x07" * 1_000}
        await store.note({f"n{number:03d}": None for number in range(1, 200)})
        await store.close()
        await store.open()
        assert await store.notes("") == {"n000": b"\x00" * 1_000}

    async def test_notes_belong_to_no_channel(self, store: Store) -> None:
        await Chat(store).do(create("m1", "a"))
        await store.note({"c": b"x"})
        await emptied(store, "c")
        assert await store.notes("c") == {"c": b"x"}

    # -- channels ------------------------------------------------------------------------------------------------

    async def test_channels_are_listed_in_order_page_by_page(self, store: Store) -> None:
        for name in ("b", "a", "c:2", "c:1", "B"):
            await Chat(store, name).do(create("m1", "x"))
        await Chat(store, "gone").do(create("m1", "x"))
        await emptied(store, "gone")
        names = ["B", "a", "b", "c:1", "c:2"]
        assert await store.channels(after=None, limit=10) == names
        assert await store.channels(after=None, limit=2) == names[:2]
        assert await store.channels(after="a", limit=2) == names[2:4]
        assert await store.channels(after="aa", limit=10) == names[2:]
        assert await store.channels(after="z", limit=10) == []

    async def test_summaries_are_listed_by_name_and_prefix(self, store: Store) -> None:
        for name in ("b", "a:2", "a:1", "a", "ab:1"):
            await Chat(store, name).do(create("m1", "x"))
        await Chat(store, "a:0").do(create("m1", "x"))
        await emptied(store, "a:0")

        async def listed(*within: str, after: str | None = None, limit: int = 10) -> list[str]:
            return [one.channel for one in await store.summaries(within, after=after, limit=limit)]

        assert await listed("*") == ["a", "a:1", "a:2", "ab:1", "b"]
        assert await listed("b", "a:*") == ["a:1", "a:2", "b"]
        assert await listed("b", "a:*", after="a:1") == ["a:2", "b"]
        assert await listed("b", "a:*", limit=2) == ["a:1", "a:2"]
        assert await listed("a", "other") == ["a"]
        assert await listed() == []

    async def test_summaries_have_the_times_and_counts_of_documents(self, store: Store, chat: Chat) -> None:

        async def do_at(at_ms: int, *steps: Step, documents: Iterable[str] = ()) -> ChannelSummary:
            write = chat.write(*steps, documents=documents)
            dated = replace(write, documents=[replace(one, at_ms=at_ms) for one in write.documents])
            await store.commit([dated])
            chat.take(write)
            (summary,) = await store.summaries(["c"], after=None, limit=10)
            assert summary.channel == "c"
            return summary

        assert await store.newest_ms() == 0
        first = await do_at(500, create("m1", "one"), create("m2", streaming=True))
        assert (first.created_ms, first.updated_ms, first.messages) == (500, 500, 2)
        assert await do_at(600, append("m2", "two")) == first
        grown = await do_at(700, finish("m2"), documents=["m2"])
        assert (grown.created_ms, grown.updated_ms, grown.messages) == (500, 700, 2)
        assert grown.size_bytes == first.size_bytes + part_bytes({"type": "text", "text": "two"})
        assert await do_at(650, ("!c1", SendCommand(name="approve", target="m1"))) == grown
        edited = await do_at(800, edit("m1", "longer"), documents=["m1"])
        assert edited.size_bytes == grown.size_bytes + len("longer") - len("one")
        await do_at(800, delete("m1"), documents=["m1"])
        gone = await do_at(900, delete("m2"), documents=["m2"])
        assert (gone.updated_ms, gone.messages, gone.size_bytes) == (900, 0, 0)
        await store.close()
        await store.open()
        older = await do_at(100, create("m3", "x"))
        assert (older.created_ms, older.updated_ms, older.messages) == (100, 900, 1)
        assert await store.newest_ms() == 900
        await emptied(store, "c")
        assert await store.newest_ms() == 0

    # -- commands ------------------------------------------------------------------------------------------------

    async def test_commands_do_not_count_on_a_page(self, store: Store, chat: Chat) -> None:
        for number in range(4):
            await chat.do(create(f"m{number}", "x" * 100), (f"!c{number}", SendCommand(name="x", data="y" * 500)))
        assert await page_of(store, limit=2, limit_bytes=1_000) == (["m3", "m2"], True)
        assert await page_of(store, before=5, limit=2, limit_bytes=1_000) == (["m1", "m0"], False)

    async def test_data_of_commands_with_a_reply_leaves_with_their_target(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", "a"), create("m2", "b"))
        await chat.do(*[approve(name, target) for name, target in (("!c1", "m1"), ("!c2", "m1"), ("!c3", "m2"))])
        await chat.do(refuse("!c1"), refuse("!c3"), documents=["!c1", "!c3"])
        assert await data_of(store, "!c1", "!c2", "!c3") == [(1, 2), (1, None), (1, 2)]
        await chat.do(delete("m1"), documents=["m1"])
        assert await data_of(store, "!c1", "!c2", "!c3") == [(None, None), (1, None), (1, 2)]
        await chat.do(refuse("!c2"), documents=["!c2"])  # the command's target is deleted already
        assert await data_of(store, "!c1", "!c2", "!c3") == [(None, None), (None, None), (1, 2)]
        _, found = await store.messages("c", ["!c1"])
        command, known = restore_command(found["!c1"]), chat.state.commands["!c1"]
        assert (command.sent, command.reply_serial) == (replace(known.sent, data=None), known.reply_serial)
        assert command.reply is not None
        assert (command.reply.ok, command.reply.request, command.reply.error) == (False, "r", {"code": "no"})

    @pytest.mark.parametrize("is_delete_first", [False, True])
    async def test_data_of_a_command_leaves_with_a_target_deleted_in_the_same_write(
        self, store: Store, chat: Chat, is_delete_first: bool
    ) -> None:
        await chat.do(create("m1", "a"), approve("!c1", "m1"))
        write = chat.write(delete("m1"), refuse("!c1"), documents=["m1", "!c1"])
        write = replace(write, documents=sorted(write.documents, key=lambda one: one.is_deleted is not is_delete_first))
        assert await store.commit([write]) == [Committed(4)]
        assert await data_of(store, "!c1") == [(None, None)]

    async def test_data_stays_if_the_deletion_was_refused_or_in_another_channel(self, store: Store) -> None:
        chat, other = Chat(store), Chat(store, "other")
        for one in (chat, other):
            await one.do(create("m1", "a"), approve("!c1", "m1"))
            await one.do(refuse("!c1"), documents=["!c1"])
        await other.do(delete("m1"), documents=["m1"])
        late = chat.write(delete("m1"), documents=["m1"])
        await chat.do(create("m2", "b"))
        assert await store.commit([late]) == [Conflict(chat.head)]
        assert await data_of(store, "!c1") == [(1, 2)]

    async def test_tidy_removes_the_data_of_commands_with_a_reply_a_week_after_their_expiry(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do(create("m1", "a"), approve("!c1", None), approve("!c2", "m1"), approve("!c3", None))
        await chat.do(refuse("!c1"), refuse("!c2"), documents=["!c1", "!c2"])
        over_ms = 1_000 + 300_000 + KEPT_MS  # the command was sent at 1 s and expires after 300 s
        await store.tidy(over_ms - 1)
        assert await data_of(store, "!c1", "!c2", "!c3") == [(1, 2), (1, 2), (1, None)]
        await store.tidy(over_ms)
        assert await data_of(store, "!c1", "!c2", "!c3") == [(None, None), (None, None), (1, None)]
        await chat.do(refuse("!c3"), documents=["!c3"])
        await store.tidy(over_ms + 5_000)
        assert await data_of(store, "!c3") == [(None, None)]

    # -- entries ------------------------------------------------------------------------------------------------

    async def test_entries_are_none_beyond_the_limit_the_head_or_the_last_document(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True))
        for text in ("a" * 600, "b" * 600, "c" * 600):
            await chat.do(append("m1", text))
        whole = await store.entries("c", after=1, limit_bytes=1_900)
        assert whole == (chat.head, chat.entries[1:])
        await store.close()
        await store.open()
        assert await store.entries("c", after=1, limit_bytes=1_900) == whole
        for after, limit_bytes in ((1, 1_800), (3, 599), (5, PAGE)):
            assert await store.entries("c", after=after, limit_bytes=limit_bytes) == Tail(chat.head, None)
        await chat.do(documents=["m1"])
        assert (await store.entries("c", after=1, limit_bytes=PAGE)).entries in (None, chat.entries[1:])
        assert await store.entries("c", after=4, limit_bytes=PAGE) == (chat.head, [])
        await chat.do_each(*[append("m1", "d")] * 100)
        size = sum(len(encode_op(entry.op)) for entry in chat.entries[4:])
        assert await store.entries("c", after=4, limit_bytes=size) == (chat.head, chat.entries[4:])
        assert await store.entries("c", after=4, limit_bytes=size - 1) == Tail(chat.head, None)
        gone = await emptied(store, "c")
        assert await store.entries("c", after=4, limit_bytes=PAGE) == Tail(gone, None)
        assert await store.entries("c", after=0, limit_bytes=PAGE) == (gone, [])
        assert await store.entries("never", after=0, limit_bytes=PAGE) == (NOTHING, [])

    # -- deleting -----------------------------------------------------------------------------------------------

    async def test_a_deleted_channel_does_not_look_like_one_that_never_existed(self, store: Store) -> None:
        never = Chat(store)
        until_ms, lives = 10 * MINUTE_MS, [0]
        for life in range(1, 3):
            await Chat(store, epoch=f"e{life}", lives=lives[-1]).do(create("m1", "a"))
            assert await head_of(store, "c") == Head(f"e{life}", 1)
            gone = await emptied(store, "c", until_ms=until_ms)
            lives.append(gone.lives)
            await store.close()
            await store.open()
            assert await head_of(store, "c") == gone
            assert await never.do(create("m1", "late")) == Conflict(gone)
        assert lives[0] < lives[1] < lives[2]
        await store.tidy(until_ms - 1)
        assert await head_of(store, "c") == gone
        late = Chat(store, epoch="e3", lives=lives[-1])  # has read a life that will be forgotten
        await store.tidy(lives[-1])
        assert await head_of(store, "c") == NOTHING
        assert await late.do(create("m1", "late")) == Conflict(NOTHING)
        assert (await emptied(store, "c", used_up=["m9"], until_ms=until_ms + MINUTE_MS)).lives > lives[-1]

    async def test_a_channel_that_has_moved_is_not_deleted(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", "a"))
        seen = chat.head
        await chat.do(create("m2", "b", streaming=True))
        for expected in (seen, NOTHING, Head("e2", 2)):
            result = await store.delete_channel("c", expected=expected, used_up=["m1"], until_ms=10 * MINUTE_MS)
            assert result == Conflict(chat.head)
        assert await texts(store, "c", "m1", "m2") == ["a", "b"]
        assert await store.delete_channel("d", expected=seen, used_up=["m1"], until_ms=1) == Conflict(NOTHING)
        assert await store.messages("d", ["m1"]) == (NOTHING, {})

    async def test_heads_are_in_the_order_of_the_channels(self, store: Store) -> None:
        await Chat(store, "a").do(create("m1", "x"))
        await Chat(store, "b", "e2").do(create("m1", "x"), create("m2", "y"))
        gone = await emptied(store, "gone", used_up=["m1"], until_ms=MINUTE_MS)
        a, b = Head("e1", 1), Head("e2", 2)
        assert await store.heads(["b", "gone", "a", "never", "b"]) == [b, gone, a, NOTHING, b]
        assert await store.heads([]) == []

    async def test_ids_that_a_deleted_channel_used_up_are_known_as_deleted(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", "a", streaming=True), create("m2", "b"))
        gone = await emptied(store, "c", used_up=["m1"], until_ms=10 * MINUTE_MS)
        await store.close()
        await store.open()
        head, stored = await store.messages("c", ["m1", "m2"])
        assert head == gone
        assert list(stored) == ["m1"]
        assert stored["m1"].head == used_up_head("m1")
        assert restore(stored["m1"]).deleted
        assert await store.messages("d", ["m1"]) == (NOTHING, {})
        await store.tidy(10 * MINUTE_MS - 1)
        assert list((await store.messages("c", ["m1"]))[1]) == ["m1"]
        await store.tidy(10 * MINUTE_MS)
        assert await store.messages("c", ["m1"]) == (NOTHING, {})

    # -- housekeeping -------------------------------------------------------------------------------------------

    async def test_tidy_requests_documents_of_messages_whose_entries_are_a_minute_old(self, store: Store) -> None:
        chat = Chat(store)
        await store.tidy(0)
        await chat.do(create("m1", streaming=True), create("m2", streaming=True), create("m3", "c"))
        await chat.do(("!c1", SendCommand(name="x")))
        await chat.do(append("m1", "a"), ("!c1", ReplyCommand()))
        assert await store.tidy(10_000) == []
        due = await store.tidy(MINUTE_MS)
        assert sorted(due) == [("c", "!c1"), ("c", "m1")]
        await chat.write_documents(due)
        assert await store.tidy(2 * MINUTE_MS) == []

    async def test_a_document_restarts_the_age_of_entries(self, store: Store, chat: Chat) -> None:
        await store.tidy(0)
        await chat.do(create("m1", streaming=True))
        await chat.do(append("m1", "a"))
        await store.tidy(40_000)
        await chat.do(documents=["m1"])
        await chat.do(append("m1", "b"))
        assert await store.tidy(MINUTE_MS) == []
        assert await store.tidy(40_000 + MINUTE_MS) == [("c", "m1")]

    async def test_tidy_requests_the_document_of_a_deleted_message(self, store: Store, chat: Chat) -> None:
        await chat.do_each(create("m1", "a"), delete("m1"))
        assert await store.tidy(0) == [("c", "m1")]

    async def test_stats_count_commits_and_the_bytes_of_rows(self, store: Store, chat: Chat) -> None:
        before = store.stats()["commits"]
        await chat.do_each(create("m1", streaming=True), append("m1", "a"), append("m1", "b"))
        assert store.stats()["commits"] == before + 3
        assert store.stats()["row_bytes"] >= 0

    # -- retention, forgetting, exports ------------------------------------------------------------------------------

    async def test_pruned_messages_are_gone_and_raise_the_floor(self, store: Store, chat: Chat) -> None:
        await chat.do_each(create("m1", "a"), create("m2", "b"), create("m3", "c"))
        (before,) = await store.summaries(["c"], after=None, limit=1)
        head = Head("e1", 3, 3)
        assert sorted(await store.prune("c", epoch="e1", versions={"m3": 3, "m1": 1, "m2": 7})) == ["m1", "m3"]
        assert await head_of(store, "c") == head
        await store.close()
        await store.open()
        assert await head_of(store, "c") == head
        assert [one.id for one in (await store.facts("c", after=0, limit=10)).facts] == ["m2"]
        assert await store.messages("c", ["m1", "m3"]) == (head, {})
        changes = await store.changes("c", after=0, limit=10)
        assert (changes.head, changes.newest, len(changes.messages or ())) == (head, "m2", 1)
        (after,) = await store.summaries(["c"], after=None, limit=1)
        assert (after.messages, after.created_ms, after.updated_ms) == (1, before.created_ms, before.updated_ms)
        assert after.size_bytes == chat.state.messages["m2"].size_bytes

    async def test_a_write_from_before_a_prune_conflicts(self, store: Store, chat: Chat) -> None:
        await chat.do_each(create("m1", "a"), create("m2", streaming=True))
        await chat.do(documents=["m2"])
        assert await store.prune("c", epoch="e1", versions={"m1": 1}) == ["m1"]
        head = await head_of(store, "c")
        assert await chat.do(edit("m1", "late")) == Conflict(head)
        assert await chat.do(append("m2", "late")) == Conflict(head)
        chat.state.floor = head.floor
        assert await chat.do(append("m2", "x")) == Committed(3)
        assert await texts(store, "c", "m2") == ["x"]

    async def test_an_emptied_channel_keeps_its_serial_and_takes_a_pruned_id_again(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "old"), create("m2", "b"))
        await store.prune("c", epoch="e1", versions={"m1": 1, "m2": 2})
        assert await head_of(store, "c") == Head("e1", 2, 2)
        await store.close()
        await store.open()
        later = Chat(store)
        later.state.epoch, later.state.serial, later.state.floor = "e1", 2, 2
        assert await later.do(create("m1", "new")) == Committed(3)
        assert await texts(store, "c", "m1") == ["new"]

    async def test_busy_or_changed_messages_are_not_pruned(self, store: Store, chat: Chat) -> None:
        await chat.do(create("m1", streaming=True), create("m2", "b"), create("m3", "c"), create("m4", "d"))
        await chat.do(approve("!c", "m2"), edit("m4", "later"))
        await chat.do(edit("m3", "new"), documents=["m3"])
        facts = (await store.facts("c", after=0, limit=9)).facts
        assert [one.id for one in facts if one.is_busy] == ["m1", "m2", "m4", "!c"]
        versions = {"m1": 1, "m2": 2, "m3": 3, "m4": 4, "!c": 5, "none": 1}
        assert await store.prune("c", epoch="e1", versions=versions) == []
        assert await store.prune("c", epoch="e2", versions={"m3": chat.state.serial}) == []
        assert await store.prune("never", epoch="e1", versions={"m3": 1}) == []
        assert await head_of(store, "c") == chat.head
        assert await texts(store, "c", "m1", "m2", "m3", "m4") == ["", "b", "new", "later"]

    async def test_an_import_of_an_export_gives_the_same_export(self, store: Store, tmp_path: Path) -> None:
        hub, file = HubCore(store, hooks_signals=False), tmp_path / "chat.jsonl"
        question = await hub.create("chat:1", text="Why?\u2028\x01", author="ann")
        async with hub.message("chat:1", reply_to=question.id) as answer:
            await answer.part({"type": "tool", "call": "c1", "name": "pay", "input": "{}"})
            await answer.append("x" * 1_000_000)
        gone = await hub.create("chat:1", text="deleted words")
        await hub.delete("chat:1", gone.id)
        branch = await hub.create("chat:1", text="Why not?", parent=gone.id)
        await hub.update("chat:1", branch.id, text="Why not, then?")
        asked = await hub.command("chat:1", "approve", target=answer.id, data={"call": "c1"}, by="ann")
        await hub.reply("chat:1", asked.id, ok=False, data={"reason": "too much"}, by="bob")
        await hub.command("chat:1", "note", data="unanswered")
        async with hub.message("chat:1", id="open") as streaming:
            await streaming.append("streams still")
            await streaming.flush()
            data = b"".join([line async for line in hub.archive.export("chat:1")])
        await asyncio.to_thread(file.write_bytes, data)
        assert b"deleted words" not in data
        before = await hub.info("chat:1")
        with pytest.raises(IdConflict):
            await hub.archive.import_file(file)
        assert await hub.info("chat:1") == before
        await hub.delete_channel("chat:1")
        done = await hub.archive.import_file(file)
        assert (done.messages, done.commands) == (4, 2)
        assert b"".join([line async for line in hub.archive.export("chat:1")]) == data
        assert (await hub.read("chat:1", "open"))[0].status == "interrupted"
        assert (await hub.info("chat:1")).epoch != before.epoch
        assert await store.open_channels() == []  # no message streams, and no turn waits
        with pytest.raises(IdConflict):  # a request is no repeat of the one that created the message elsewhere
            await hub.create("chat:1", id=question.id, text="Why?\u2028\x01", author="ann")
        await hub.close()

    async def test_notes_are_kept_only_if_others_have_the_expected_values(self, store: Store) -> None:
        assert await store.note({"a": b"1"}, expected={"a": None})
        assert not await store.note({"a": b"2", "b": b"2"}, expected={"a": None})
        assert not await store.note({"a": b"2"}, expected={"a": b"1", "b": b"1"})
        assert await store.notes("") == {"a": b"1"}
        assert await store.note({"a": None, "b": b"2"}, expected={"a": b"1", "b": None})
        assert not await store.note({"b": None}, expected={"b": b"1"})
        tried = await asyncio.gather(*(store.note({"a": bytes([n])}, expected={"a": None}) for n in range(8)))
        assert sorted(tried) == [False] * 7 + [True]
        assert await store.notes("") == {"a": bytes([tried.index(True)]), "b": b"2"}

    # -- the law ------------------------------------------------------------------------------------------------

    @LAW
    @given(st.data())
    async def test_a_store_returns_the_fold_of_all_entries(self, store: Store, data: st.DataObject) -> None:
        await check_fold(store, data)


class SharedStoreContract:
    """The further promises of a store that several processes share.

    Override the fixture `other`: a second instance on the same store. A store that sends no notices sets
    `sends_notices` to False.
    """

    pytestmark = pytest.mark.asyncio
    sends_notices = True

    async def test_holds_of_all_nodes_are_found_by_prefix(self, store: SharedStore) -> None:
        first = await store.hold("n1", MINUTE_MS, {"x/a": Hold(b"1"), "y": Hold(b"2")})
        second = await store.hold("n2", MINUTE_MS, {"x/b": Hold(b"3", first.now_ms + MINUTE_MS), "x/a": None})
        assert second.now_ms >= first.now_ms > 1_700_000_000_000  # ms since 1970
        assert (set(first.nodes), set(second.nodes)) == ({"n1"}, {"n1", "n2"})
        expected = {"x/a": ("n1", Hold(b"1")), "x/b": ("n2", Hold(b"3", first.now_ms + MINUTE_MS))}
        assert await store.holds("x/") == expected
        again = await store.hold("n2", MINUTE_MS, {"y": Hold(b"4"), "x/b": None})
        assert again.lease == second.lease
        assert await store.holds("") == {"x/a": ("n1", Hold(b"1")), "y": ("n2", Hold(b"4"))}

    async def test_holds_end_with_the_lease_of_their_node_or_at_their_time(self, store: SharedStore) -> None:
        first = await store.hold("n1", MINUTE_MS, {"with-node": Hold(b"1")})
        later_ms = first.now_ms + MINUTE_MS
        await store.hold("n1", MINUTE_MS, {"later": Hold(b"2", later_ms), "over": Hold(b"3", first.now_ms)})
        assert set(await store.holds("")) == {"with-node", "later"}
        assert (await store.hold("n1", 0, {})).nodes == set()
        assert await store.holds("") == {"later": ("n1", Hold(b"2", later_ms))}

    async def test_lease_that_its_node_has_ended_is_not_revived_by_a_late_renewal(self, store: SharedStore) -> None:
        await store.hold("n1", MINUTE_MS, {})
        await store.hold("n1", 0, {})
        assert (await store.hold("n1", MINUTE_MS, {"late": Hold(b"1")})).nodes == set()
        assert await store.holds("") == {}

    async def test_renewal_shows_that_a_lease_has_begun_and_ended_since_the_last_one(self, store: SharedStore) -> None:
        before = await store.hold("n1", MINUTE_MS, {})
        assert (await store.hold("n1", MINUTE_MS, {})).ended == before.ended
        await store.hold("n2", MINUTE_MS, {})
        await store.hold("n2", 0, {})
        after = await store.hold("n1", MINUTE_MS, {})
        assert (after.nodes, after.lease) == (before.nodes, before.lease)
        assert after.ended != before.ended

    @pytest.fixture
    async def other(self, store: SharedStore) -> SharedStore:
        return store

    async def test_notices_reach_the_instances_that_listen(self, store: SharedStore, other: SharedStore) -> None:
        if not self.sends_notices:
            store.listen(lambda notice: pytest.fail(f"a store without notices sent {notice}"))
            await store.notify([Notice("moved", "c", b"")])
            return
        first: asyncio.Queue[Notice | None] = asyncio.Queue()
        second: asyncio.Queue[Notice | None] = asyncio.Queue()
        store.listen(first.put_nowait)
        other.listen(second.put_nowait)
        small = [Notice("moved", f"c{number}", bytes([number])) for number in range(100)]
        large = [Notice("here", "é" * 100, b"\xff\x00" * 2_100), Notice("signal", "c", b"x" * 4_200)]
        async with asyncio.timeout(PATIENCE_S):
            assert (await first.get(), await second.get()) == (None, None)  # both listen
            await store.notify([])
            await store.notify([*small, *large])
            assert [await second.get() for _ in range(102)] == [*small, *large]
            await other.notify(small)
            while await first.get() != small[-1]:
                pass


async def check_fold(store: Store, data: st.DataObject) -> None:
    """Do what `data` draws in a new channel, and check that `store` returns the fold of all entries."""
    channel = f"law-{next(_numbers)}"
    chat = Chat(store, channel, is_served=True)
    await chat.do(create("m1", "a", streaming=True), create("m2", streaming=True))
    for act in data.draw(_acts):
        await _do(chat, act)
    await _check(chat)


_numbers = itertools.count(1)
_ids = st.sampled_from(["m1", "m1", "m2", "m2", "m3", "m4"])
_append = st.builds(AppendText, text=drawn_texts, part=st.sampled_from((None, None, 0, 1)))
_append_much = st.builds(AppendText, text=st.integers(200, 6_000).map(lambda count: "x" * count))
_create = st.builds(CreateMessage, status=st.sampled_from(("streaming", "streaming", "complete")), text=drawn_texts)
_put_part = st.builds(PutPart, index=st.integers(0, 2), part=parts)
_finish = st.builds(
    FinishMessage, status=st.sampled_from(("complete", "interrupted")), request=st.sampled_from((None, "r"))
)
_update = st.builds(UpdateMessage, text=st.one_of(st.none(), drawn_texts), meta=st.just({"x": 1}))


_requests: st.SearchStrategy[Request] = weighted(
    (8, _append),
    (2, _append_much),
    (5, _create),
    (3, _put_part),
    (2, _finish),
    (1, st.builds(TakeOver)),
    (1, _update),
    (1, st.builds(DeleteMessage)),
    (1, st.builds(ClaimTurn, generation=st.just(0))),
    (1, st.builds(EndTurn, generation=st.just(1))),
    (1, st.builds(RenewLease, lease_s=st.sampled_from((15.0, 30.0)))),
)
_about_commands: st.SearchStrategy[Request] = weighted(
    (2, st.builds(SendCommand, name=st.sampled_from(("steer", "cancel")), target=_ids, data=drawn_texts)),
    (1, st.builds(ReplyCommand, data=drawn_texts)),
    (1, st.builds(SettleCommand, is_expired=st.booleans())),
)
_command_ids = st.sampled_from(["!m1", "!m2", "!c3"])  # two have the name of a message
_steps = weighted((5, st.tuples(_ids, _requests)), (1, st.tuples(_command_ids, _about_commands)))


class _Commit(Struct, frozen=True):
    steps: list[Step]
    documents: list[str]
    is_late: bool  # True: another writer sends the same write too late


class _Tidy(Struct, frozen=True):
    now_ms: int
    is_obeyed: bool


_Act = _Commit | _Tidy | Literal["reopen", "check", "empty"]

_commits = st.builds(
    _Commit,
    st.lists(_steps, min_size=1, max_size=6),
    st.one_of(st.just([]), st.lists(st.one_of(_ids, _command_ids), max_size=3)),
    st.sampled_from((False, False, False, True)),
)
_acts: st.SearchStrategy[list[_Act]] = st.lists(
    weighted(
        (16, _commits),
        (2, st.builds(_Tidy, st.integers(0, 5).map(lambda minutes: minutes * MINUTE_MS), st.booleans())),
        (1, st.just("reopen")),
        (1, st.just("check")),
        (1, st.just("empty")),
    ),
    min_size=10,
    max_size=40,
)


async def _do(chat: Chat, act: _Act) -> None:
    match act:
        case _Commit():
            late = chat.write(*act.steps)
            assert isinstance(await chat.do(*act.steps, documents=act.documents), Committed)
            if act.is_late and chat.state.serial > late.expected:
                assert await chat.store.commit([late]) == [Conflict(chat.head)]
        case _Tidy():
            due = await chat.store.tidy(act.now_ms)
            if chat.state.lives <= act.now_ms:
                chat.state.lives = 0
            if act.is_obeyed:
                await chat.write_documents(due)
        case "reopen":
            await chat.store.close()
            await chat.store.close()  # a second close does nothing
            await chat.store.open()
        case "empty":
            head = await emptied(chat.store, chat.channel)
            chat.documents.clear()
            chat.state, chat.epoch = ChannelState(chat.channel), f"{chat.epoch}x"[-20:]
            chat.state.lives = head.lives
        case "check":
            await _check(chat)


async def page_of(
    store: Store, *, before: int | None = None, after: int | None = None, limit: int, limit_bytes: int = PAGE
) -> tuple[list[str], bool]:
    """Return the ids of a page of the channel `c`, and whether there are more messages."""
    page = await store.page("c", before=before, after=after, limit=limit, limit_bytes=limit_bytes)
    return [stored.id for stored in page.messages], page.more


async def _check(chat: Chat) -> None:
    """Check that the store returns the fold of all entries."""
    store, state = chat.store, chat.state
    head = chat.head
    changes = await store.changes(chat.channel, after=0, limit=100)
    assert (changes.head, changes.newest) == (head, state.newest)
    assert changes.messages is not None
    read = {one.id: one for one in restored(changes.messages)}
    assert sorted(read) == sorted([*state.messages, *state.commands])
    for message_id, message in state.messages.items():
        same = read[message_id]
        assert isinstance(same, MessageState)
        assert known(same) == known(message)
        _check_marks(same, message, state.serial)
    for key, command in state.commands.items():
        one = read[key]
        assert isinstance(one, CommandState)
        _check_command(one, command, state.messages.get(command.sent.target or ""))
    await _check_entries(chat)
    await _check_lists(chat)
    page = await store.page(chat.channel, before=None, limit=100, limit_bytes=PAGE)
    alive = sorted((one for one in state.messages.values() if not one.deleted), key=lambda one: -one.created)
    assert [stored.id for stored in page.messages] == [one.id for one in alive]


async def _check_entries(chat: Chat) -> None:
    """Check that the entries after a serial, applied to the state at that serial, equal the state of today."""
    serial = chat.state.serial
    for after in sorted({max(0, serial - back) for back in (1, 3, 8)}):
        head, entries = await chat.store.entries(chat.channel, after=after, limit_bytes=PAGE)
        assert head == chat.head
        if entries is None:
            continue
        state = ChannelState(chat.channel, chat.state.epoch)
        for entry in (*chat.entries[:after], *entries):
            apply_entry(state, entry)
        assert (state.serial, list(state.messages)) == (serial, list(chat.state.messages))
        for message_id, message in chat.state.messages.items():
            assert known(state.messages[message_id]) == known(message)
        for key, command in chat.state.commands.items():
            assert known_command(state.commands[key]) == known_command(command)


async def _check_lists(chat: Chat) -> None:
    """Check the messages and commands by id, those that changed after a serial, the open ones, and their facts."""
    store, documents = chat.store, sorted(chat.documents.values(), key=lambda one: one.version)
    last = {one.id: one.last for one in chat.state.messages.values()}
    last |= {one.id: one.version for one in chat.state.commands.values()}
    head, stored = await store.messages(chat.channel, [*last, "nobody"])
    assert (head, sorted(stored)) == (chat.head, sorted(last))
    for one in documents:
        later = [entry.serial for entry in chat.entries if entry.op.id == one.id and entry.serial > one.version]
        assert [entry.serial for entry in stored[one.id].entries] == later  # those that the document does not contain
        assert not (one.is_deleted and stored[one.id].segments)  # no text of a deleted message is kept
    found = restored(await store.open_documents(chat.channel))
    assert {one.id for one in found} == {one.id for one in documents if one.is_open}
    for thing in found:
        if isinstance(thing, MessageState):
            assert known(thing) == known(chat.state.messages[thing.id])
        else:
            assert known_command(thing) == known_command(chat.state.commands[thing.id])
    assert (chat.channel in await store.open_channels()) == bool(found)
    targets = {one.target for one in documents if one.is_open}
    is_busy = {one.id: one.is_open or one.id in targets or last[one.id] > one.version for one in documents}
    for after, limit in ((0, 100), (chat.state.serial // 2, 2), (max(0, chat.state.serial - 1), 100)):
        changes = await store.changes(chat.channel, after=after, limit=100)
        assert {one.id for one in changes.messages or ()} == {key for key in last if last[key] > after}
        head, facts = await store.facts(chat.channel, after=after, limit=limit)
        shown = [(one.id, one.version, one.is_counted, one.size_bytes, one.at_ms) for one in facts]
        expected = [
            (one.id, one.version, one.created > 0 and not one.is_deleted, one.size_bytes, one.at_ms)
            for one in documents
            if one.version > after
        ]
        assert (head, shown) == (chat.head, expected[:limit])
        assert all(one.is_busy or not is_busy[one.id] for one in facts)  # a store may find more of them busy
    commands = sorted(chat.state.commands)
    for name in (None, *commands[:1]):
        expected_ids = [one for one in commands if name is None or one > name][:2]
        assert await store.commands(chat.channel, after=name, limit=2) == expected_ids


def _check_command(read: CommandState, true: CommandState, target: MessageState | None) -> None:
    """Check a command from the store. Data may be missing if it has a reply and its target is deleted."""
    has_left = true.reply is not None and target is not None and target.deleted and read.sent.data != true.sent.data
    facts, truth = known_command(read), known_command(true)
    if has_left:
        assert read.sent.data is None
        facts["reply"] = truth["reply"] = None
        truth["sent"] = replace(true.sent, data=None)
    assert facts == truth


def _check_marks(read: MessageState, true: MessageState, serial: int) -> None:
    """Check that no mark claims text that its viewers may not have. Marks may be fewer than before."""
    for part, truth in zip(read.parts, true.parts, strict=True):
        if isinstance(part.text, Text) and isinstance(truth.text, Text):
            for seen in range(serial + 1):
                assert part.text.length_at(seen) <= truth.text.length_at(seen)
            assert part.text.length_at(serial) == truth.text.length
