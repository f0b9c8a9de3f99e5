"""Documents: a message as a store keeps it, and the way back (`docs/decisions/0001`).

You are in `tests`. `Shelf` (in `worlds`) keeps documents as a store does: the newest head, all segments since the
last fresh document, and the entries since.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import text as text_module
from holdfast.core.document import Segment, Stored, document, grave, mark_documented, restore
from holdfast.core.draft import Draft
from holdfast.core.errors import Deleted
from holdfast.core.events import encode_json
from holdfast.core.state import ChannelState, MessageState, apply_entry
from holdfast.core.text import MARK_BYTES, Text
from tests.core.desk import BOB, Desk, data_part, text_part, tool_part
from tests.core.worlds import COMMANDS, IDS, Asked, Shelf, World, batches, everything_of_command
from tests.core.worlds import everything_of_message as everything


def stored(message: MessageState) -> Stored:
    """The message's document, through bytes and back, with nothing before it."""
    message.documented = 0
    kept = document(message)
    segments = msgspec.msgpack.decode(msgspec.msgpack.encode(kept.segments), type=list[Segment])
    return Stored(id=kept.id, head=kept.head, segments=segments, entries=[])


def full() -> Desk:
    """A message with one of everything."""
    desk = Desk()
    desk.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    desk.append("m", "more", part=0)
    desk.append("m", '"q"}', part=1)
    desk.now_ms = 2_000
    desk.part("m", 2, {"type": "file", "url": "u"}, request="r1")
    desk.interrupt("m")
    desk.take_over("m", request="r2")
    desk.append("m", "end", generation=2, asker=BOB)
    desk.finish("m", "failed", reason="no", meta={"c": 2}, generation=2, request="r3", asker=BOB)
    return desk


def test_a_document_holds_all_of_a_message() -> None:
    desk = full()
    back = restore(stored(desk.known("m")))
    assert everything(back) == everything(desk.known("m"))
    assert back.documented == back.version
    assert back.undocumented_bytes == 0


def test_a_document_says_what_a_store_looks_for() -> None:
    desk = Desk()
    desk.create("first", text="x")
    desk.stream("m", "hello")
    kept = document(desk.known("m"))
    assert (kept.id, kept.created, kept.version, kept.is_open, kept.is_deleted) == ("m", 2, 2, True, False)
    assert kept.size_bytes == desk.known("m").size_bytes
    desk.finish("m")
    assert not document(desk.known("m")).is_open


def test_decisions_are_the_same_on_a_restored_message() -> None:
    desk = full()
    desk.state.insert([restore(stored(desk.known("m")))])
    assert desk.take_over("m", request="r2").generation == 2
    assert desk.part("m", 2, data_part(), request="r1").ops == ()
    again = desk.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    assert again.ops == ()


@pytest.mark.parametrize("part", [text_part(), tool_part(), {"type": "reasoning", "text": ""}, data_part("x" * 50)])
def test_a_restored_message_weighs_what_it_weighed(part: dict[str, Any]) -> None:
    desk = Desk()
    desk.stream("m", parts=[part])
    if part["type"] != "data":
        desk.append("m", 'é "quoted"\n', part=0)
    assert restore(stored(desk.known("m"))).size_bytes == desk.known("m").size_bytes


def test_a_document_after_the_first_brings_only_the_text_since_then() -> None:
    desk, shelf = Desk(), Shelf()
    desk.stream("m", "a" * 1_000)
    shelf.put_document_of(desk.known("m"))
    desk.append("m", "b" * 10)
    desk.append("m", "c" * 10)
    kept = document(desk.known("m"))
    assert not kept.fresh
    assert [(one.part, one.at, one.text) for one in kept.segments] == [(0, 1_000, "b" * 10 + "c" * 10)]
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(desk.known("m"))


def test_a_document_of_what_only_ended_brings_no_text() -> None:
    desk = Desk()
    desk.stream("m", "text")
    mark_documented(desk.known("m"), document(desk.known("m")).version)
    desk.finish("m")
    kept = document(desk.known("m"))
    assert (kept.fresh, kept.segments) == (False, [])


@pytest.mark.parametrize("edit", ["part", "replace", "update", "meta"])
def test_a_document_after_an_edit_is_fresh(edit: str) -> None:
    desk, shelf = Desk(), Shelf()
    desk.stream("m", "old text")
    shelf.put_document_of(desk.known("m"))
    desk.append("m", ", older than the edit")
    match edit:
        case "part":
            desk.part("m", 1, text_part("opened"))
        case "replace":
            desk.part("m", 0, text_part("replaced"))
        case "update":
            desk.update("m", text="updated", generation=1)
        case _:
            desk.update("m", meta={"x": 1}, generation=1)
    desk.append("m", " and more")
    kept = document(desk.known("m"))
    assert kept.fresh
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(desk.known("m"))
    mark_documented(desk.known("m"), kept.version)
    desk.append("m", "!")
    assert not document(desk.known("m")).fresh


def test_the_document_of_a_deleted_message_lets_go_of_its_text() -> None:
    desk, shelf = Desk(), Shelf()
    desk.stream("m", "secret", meta={"a": "secret"})
    shelf.put_document_of(desk.known("m"))
    desk.delete("m")
    shelf.put_document_of(desk.known("m"))
    head, segments, _ = shelf.documents["m"]
    assert b"secret" not in head
    assert segments == []
    assert shelf.restore("m").deleted


def test_entries_after_the_document_are_applied() -> None:
    desk, shelf = Desk(), Shelf()
    desk.stream("m", "a")
    shelf.put_document_of(desk.known("m"))
    desk.append("m", "b")
    desk.part("m", 0, text_part("c"))
    desk.append("m", "d")
    desk.finish("m", "failed", reason="r")
    for entry in desk.log:
        shelf.add(entry)
    back = shelf.restore("m")
    assert everything(back) == everything(desk.known("m"))
    assert back.documented == 1
    assert back.undocumented_bytes == desk.known("m").undocumented_bytes


def test_entries_that_the_document_covers_change_nothing() -> None:
    desk = full()
    kept = document(desk.known("m"))
    back = restore(Stored(id="m", head=kept.head, segments=kept.segments, entries=desk.log))
    assert everything(back) == everything(desk.known("m"))


def test_segments_that_overlap_are_one_text() -> None:
    desk = Desk()
    desk.stream("m", "")
    desk.append("m", "abc")
    early = document(desk.known("m"))
    desk.append("m", "def")
    late = document(desk.known("m"))  # nobody noted that the early one is stored
    back = restore(Stored(id="m", head=late.head, segments=early.segments + late.segments, entries=[]))
    assert everything(back) == everything(desk.known("m"))


def test_thinned_marks_make_overlaps_and_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_MARKS", 20)
    desk, shelf = Desk(), Shelf()
    desk.stream("m", "")
    shelf.put_document_of(desk.known("m"))
    for number in range(200):
        desk.append("m", f"{number} ")
        if number % 7 == 0:
            shelf.put_document_of(desk.known("m"))
            for _ in range(20):
                desk.append("m", ".")
    shelf.put_document_of(desk.known("m"))
    assert everything(shelf.restore("m")) == everything(desk.known("m"))


@pytest.mark.parametrize(("piece", "bytes_each"), [("x", 1), ("é", 2), ("\n", 2), ("\x01", 6), ("tok🙂 ", 8)])
def test_stored_marks_stand_about_every_256_bytes_of_json(piece: str, bytes_each: int) -> None:
    desk = Desk()
    desk.stream("m", "")
    for _ in range(2_000):
        desk.append("m", piece)
    back = restore(stored(desk.known("m")))
    text = back.parts[0].text
    assert isinstance(text, Text)
    whole = str(text)
    lengths = [0, *(length for _, length in text.marks_after(0))]
    gaps = [len(encode_json(whole[a:b])) - 2 for a, b in pairwise(lengths)]
    assert all(MARK_BYTES <= gap < MARK_BYTES + bytes_each for gap in gaps[:-1])
    assert lengths[-1] == len(whole)
    for serial in range(1, 2_002):
        missing = whole[text.length_at(serial) : (serial - 1) * len(piece)]
        assert len(encode_json(missing)) - 2 < MARK_BYTES


def test_a_restored_text_ends_with_an_exact_mark() -> None:
    desk = Desk()
    desk.stream("m", "")
    for _ in range(10):
        desk.append("m", "x")
    text = restore(stored(desk.known("m"))).parts[0].text
    assert text is not None
    assert (text.length_at(11), text.length_at(10)) == (10, 0)


def test_a_document_from_a_draft_is_what_the_commit_makes_of_it() -> None:
    desk = Desk(batches=True)
    desk.stream("m", parts=[text_part("a"), tool_part("{")])
    desk.append("m", "b")
    desk.commit()
    shelf = Shelf()
    shelf.put_document_of(desk.known("m"))
    desk.append("m", "c")
    desk.append("m", "1", part=1)
    desk.append("m", "d")
    desk.part("m", 2, text_part())
    desk.append("m", "e", part=0)
    desk.append("m", "f")
    draft = desk.draft.message("m")
    assert draft is not None
    kept = document(draft)
    desk.commit()
    assert (kept.version, kept.size_bytes) == (desk.known("m").version, desk.known("m").size_bytes)
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(desk.known("m"))


@given(batches, st.data())
def test_documents_from_drafts_restore_what_was_stored(world_batches: list[list[Asked]], data: st.DataObject) -> None:
    """As the committer does it: decide a batch, make documents from its draft, store both, apply."""
    world, shelf = World(), Shelf()
    for batch in world_batches:
        world.now_ms += 1
        draft = Draft(world.state)
        for one in batch:
            world.decide(draft, one)
        wanted = {**draft.reshaped, **dict.fromkeys(data.draw(st.sets(st.sampled_from(IDS))))}
        forks = [draft.message(message_id) for message_id in wanted]
        documents = [document(fork) for fork in forks if fork is not None]
        for entry in draft.entries():
            apply_entry(world.state, entry)
            shelf.add(entry)
        for kept in documents:
            shelf.put(kept)
            mark_documented(world.state.messages[kept.id], kept.version)
        for message in world.state.messages.values():
            assert everything(shelf.restore(message.id)) == everything(message)


def test_a_grave_is_a_deleted_message() -> None:
    desk = Desk()
    desk.state.insert([restore(Stored(id="m", head=grave("m"), segments=[], entries=[]))])
    assert desk.known("m").deleted
    with pytest.raises(Deleted):
        desk.create("m", text="again")
    with pytest.raises(Deleted):
        desk.append("m", "x")
    assert list(desk.state.changed_since(0)) == []


def test_a_fold_goes_on_where_the_document_ended() -> None:
    desk = full()
    cut = ChannelState("c", "e1", 3)
    first = Desk()
    first.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    first.append("m", "more", part=0)
    first.append("m", '"q"}', part=1)
    cut.insert([restore(stored(first.known("m")))])
    for entry in desk.log:
        apply_entry(cut, entry)
    assert everything(cut.messages["m"]) == everything(desk.known("m"))
