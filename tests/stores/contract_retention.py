"""The contract of stores for retention: `Store.facts`, `Store.prune`, `Store.wipe` and times; holds, exports, imports.

Layer: testing.

A store's own test file is `StoreContract`, this class, and one fixture for both.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from tenuto.core.errors import IdConflict
from tenuto.core.requests import Caller, CreateMessage, SendCommand
from tenuto.hub import HubCore
from tenuto.hub.clock import Clock
from tenuto.hub.keep.forgetting import Forgetting, direct
from tenuto.stores.base import NOTHING, Committed, Conflict, Head, Store, head_of
from tests.stores.contract import Chat, append, approve, create, delete, edit, refuse, texts


class RetentionContract:
    """The promises of every store about the removal of messages."""

    pytestmark = pytest.mark.asyncio

    async def test_facts_are_in_the_order_of_the_last_documents(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "a"), create("m2", "b"), create("m3", streaming=True), create("m4", "d"))
        await chat.do(approve("!open", "m2"), approve("!done", "m1"))
        await chat.do(edit("m1", "new"), delete("m4"), refuse("!done"), documents=["m1", "m4", "!done"])
        head, facts = await store.facts("c", after=0, limit=10)
        assert head == chat.head
        sizes = {one.id: one.size_bytes for one in chat.state.messages.values()}
        assert [(one.id, one.version, one.is_counted, one.is_busy) for one in facts] == [
            ("m2", 2, True, True),
            ("m3", 3, True, True),
            ("!open", 5, False, True),
            ("m1", 7, True, False),
            ("m4", 8, False, False),
            ("!done", 9, False, False),
        ]
        assert [one.size_bytes for one in facts if one.is_counted] == [sizes["m2"], sizes["m3"], sizes["m1"]]
        assert {one.at_ms for one in facts} == {1_000}
        assert await store.facts("c", after=3, limit=2) == (head, facts[2:4])
        assert await store.facts("never", after=0, limit=2) == (NOTHING, [])

    async def test_pruned_messages_are_gone_and_raise_the_floor(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "a"), create("m2", "b"), create("m3", "c"))
        (before,) = await store.summaries(["c"], after=None, limit=1)
        head, gone = await store.prune("c", epoch="e1", versions={"m3": 3, "m1": 1, "m2": 7})
        assert (head, sorted(gone)) == (Head("e1", 3, 3), ["m1", "m3"])
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

    async def test_a_write_from_before_a_prune_conflicts(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "a"), create("m2", streaming=True))
        await chat.do(documents=["m2"])
        head, _ = await store.prune("c", epoch="e1", versions={"m1": 1})
        assert await chat.do(edit("m1", "late")) == Conflict(head)
        assert await chat.do(append("m2", "late")) == Conflict(head)
        chat.state.floor = head.floor
        assert await chat.do(append("m2", "x")) == Committed(3)
        assert await texts(store, "c", "m2") == ["x"]

    async def test_an_emptied_channel_keeps_its_serial_and_takes_a_pruned_id_again(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "old"), create("m2", "b"))
        assert (await store.prune("c", epoch="e1", versions={"m1": 1, "m2": 2})).head == Head("e1", 2, 2)
        await store.close()
        await store.open()
        later = Chat(store)
        later.state.epoch, later.state.serial, later.state.floor = "e1", 2, 2
        assert await later.do(create("m1", "new")) == Committed(3)
        assert await texts(store, "c", "m1") == ["new"]

    async def test_busy_or_changed_messages_are_not_pruned(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True), create("m2", "b"), create("m3", "c"), create("m4", "d"))
        await chat.do(approve("!c", "m2"), edit("m4", "later"))
        await chat.do(edit("m3", "new"), documents=["m3"])
        facts = (await store.facts("c", after=0, limit=9)).facts
        assert [one.id for one in facts if one.is_busy] == ["m1", "m2", "m4", "!c"]
        versions = {"m1": 1, "m2": 2, "m3": 3, "m4": 4, "!c": 5, "none": 1}
        assert await store.prune("c", epoch="e1", versions=versions) == (chat.head, [])
        assert await store.prune("c", epoch="e2", versions={"m3": chat.state.serial}) == (chat.head, [])
        assert await store.prune("never", epoch="e1", versions={"m3": 1}) == (NOTHING, [])
        assert await texts(store, "c", "m1", "m2", "m3", "m4") == ["", "b", "new", "later"]

    async def test_channel_has_the_earliest_and_the_latest_time_of_its_documents(self, store: Store) -> None:
        assert await store.newest_ms() == 0
        for name, times in (("a", (700, 500, 600)), ("b", (300, 200, 400))):
            chat = Chat(store, name)
            write = chat.write(*(create(f"m{number}", "x") for number in range(3)))
            documents = [replace(one, at_ms=at_ms) for one, at_ms in zip(write.documents, times, strict=True)]
            await store.commit([replace(write, documents=documents)])
        a, b = await store.summaries(["*"], after=None, limit=3)
        assert (a.created_ms, a.updated_ms) == (500, 700)
        assert (b.created_ms, b.updated_ms) == (200, 400)
        assert await store.newest_ms() == 700
        await store.delete_channel("a", expected=await head_of(store, "a"), used_up=(), until_ms=0)
        assert await store.newest_ms() == 400

    async def test_wipe_ends_after_text_was_removed(self, store: Store) -> None:
        chat = Chat(store)
        await chat.do_each(create("m1", "a"), create("m2", "b"))
        await store.prune("c", epoch="e1", versions={"m1": 1})
        assert any([await store.wipe() is not False for _ in range(100)])

    async def test_a_person_is_forgotten(self, store: Store) -> None:
        ann, bob = Caller(id="ann"), Caller(id="bob")
        hub = HubCore(store, hooks_signals=False)
        for channel, other in (("own", Caller(id="agent")), ("shared", bob)):
            await hub.ask(channel, "m1", CreateMessage(text="a", role="user"), ann)
            await hub.ask(channel, "m2", CreateMessage(text="b", role="user" if other is bob else "assistant"), other)
            await hub.ask(channel, "!c", SendCommand(name="note", target="m2", data=1), ann)
            await hub.ask(channel, "s", CreateMessage(status="streaming", role="assistant"), ann)
        await hub.close()
        await store.open()
        for counts in ((5, 2, 1), (0, 0, 0)):
            done = await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=True)
            assert (done.messages, done.commands, done.channels) == counts
        assert await store.channels(after=None, limit=3) == ["shared"]
        assert [one.id for one in (await store.facts("shared", after=0, limit=9)).facts] == ["m2"]
        assert await texts(store, "shared", "m2") == ["b"]

    async def test_an_import_of_an_export_gives_the_same_export(self, store: Store, tmp_path: Path) -> None:
        hub, file = HubCore(store, hooks_signals=False), tmp_path / "chat.jsonl"
        question = await hub.create("chat:1", text="Why?\u2028\x01", author="ann")
        async with hub.message("chat:1", reply_to=question.id) as answer:
            await answer.part({"type": "reasoning", "text": "hm"})
            await answer.append("x" * 1_000_000)
        await hub.create("chat:1", text="Why not?", parent=question.id)  # a branch
        await hub.command("chat:1", "note", target=answer.id, data={"yes": True}, by="ann")
        before = (await hub.info("chat:1")).epoch
        data = b"".join([line async for line in hub.archive.export("chat:1")])
        await asyncio.to_thread(file.write_bytes, data)
        with pytest.raises(IdConflict):
            await hub.archive.import_file(file)
        await hub.delete_channel("chat:1")
        done = await hub.archive.import_file(file)
        assert (done.messages, done.commands) == (3, 1)
        assert b"".join([line async for line in hub.archive.export("chat:1")]) == data
        assert (await hub.info("chat:1")).epoch != before
        assert await store.open_channels() == []  # no turn waits
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
