"""Documents: a message as a store keeps it, and the way back (`docs/decisions/0001`).

Layer: tests.

`Shelf` (in `worlds`) keeps documents as a store does: the newest head, all segments since the
last fresh document, and the entries since.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core import text as text_module
from tenuto.core.document import (
    KEPT_MS,
    MessageHead,
    Segment,
    Stored,
    document,
    mark_documented,
    restore,
    restore_command,
    restored,
    used_up_head,
)
from tenuto.core.draft import Draft
from tenuto.core.errors import AlreadyAnswered, Deleted, Fenced, IdConflict
from tenuto.core.events import encode_json
from tenuto.core.message_state import ClaimState, CommandState, MessageState
from tenuto.core.ops import decode_op, encode_op
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.core.state import ChannelState, apply_entry
from tenuto.core.text import MARK_BYTES, Text
from tests.core.harness import AGENT, BOB, PERSON, LogHarness, data_part, served_log, text_part, tool_part
from tests.core.worlds import (
    COMMANDS,
    IDS,
    Asked,
    Shelf,
    World,
    batches,
    everything_of_command,
    is_command,
)
from tests.core.worlds import everything as everything_in
from tests.core.worlds import everything_of_message as everything

REMOTE = Caller(id="agent", is_server=True)  # the hub, which acts for a worker in another process


def stored(message: MessageState) -> Stored:
    """Return the message's document, through bytes and back, without earlier segments."""
    message.documented = 0
    kept = document(message)
    segments = msgspec.msgpack.decode(msgspec.msgpack.encode(kept.segments), type=list[Segment])
    return Stored(id=kept.id, head=kept.head, segments=segments, entries=[])


def full() -> LogHarness:
    """Build a message with a part of each type."""
    harness = LogHarness()
    harness.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    harness.append("m", "more", part=0)
    harness.append("m", '"q"}', part=1)
    harness.now_ms = 2_000
    harness.part("m", 2, {"type": "file", "url": "u"}, request="r1")
    harness.interrupt("m")
    harness.take_over("m", request="r2")
    harness.append("m", "end", generation=2, caller=BOB)
    harness.finish("m", "failed", reason="no", meta={"c": 2}, generation=2, request="r3", caller=BOB)
    return harness


def test_a_document_holds_all_of_a_message() -> None:
    harness = full()
    back = restore(stored(harness.known("m")))
    assert everything(back) == everything(harness.known("m"))
    assert back.documented == back.version
    assert back.undocumented_bytes == 0


def test_document_has_the_fields_that_a_store_indexes() -> None:
    harness = LogHarness()
    harness.create("first", text="x")
    harness.stream("m", "hello")
    kept = document(harness.known("m"))
    assert (kept.id, kept.created, kept.version, kept.is_open, kept.is_deleted) == ("m", 2, 2, True, False)
    assert kept.size_bytes == harness.known("m").size_bytes
    harness.finish("m")
    assert not document(harness.known("m")).is_open


def test_decisions_are_the_same_on_a_restored_message() -> None:
    harness = full()
    harness.state.insert([restore(stored(harness.known("m")))])
    assert harness.take_over("m", request="r2").generation == 2
    assert harness.part("m", 2, data_part(), request="r1").ops == ()
    again = harness.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    assert again.ops == ()


@pytest.mark.parametrize("part", [text_part(), tool_part(), {"type": "reasoning", "text": ""}, data_part("x" * 50)])
def test_restored_message_has_its_earlier_size(part: dict[str, Any]) -> None:
    harness = LogHarness()
    harness.stream("m", parts=[part])
    if part["type"] != "data":
        harness.append("m", 'é "quoted"\n', part=0)
    assert restore(stored(harness.known("m"))).size_bytes == harness.known("m").size_bytes


def test_a_document_after_the_first_brings_only_the_text_since_then() -> None:
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "a" * 1_000)
    shelf.put_document_of(harness.known("m"))
    harness.append("m", "b" * 10)
    harness.append("m", "c" * 10)
    kept = document(harness.known("m"))
    assert not kept.fresh
    assert [(one.part, one.at, one.text) for one in kept.segments] == [(0, 1_000, "b" * 10 + "c" * 10)]
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(harness.known("m"))


def test_document_after_a_mere_finish_has_no_text() -> None:
    harness = LogHarness()
    harness.stream("m", "text")
    mark_documented(harness.known("m"), document(harness.known("m")).version)
    harness.finish("m")
    kept = document(harness.known("m"))
    assert (kept.fresh, kept.segments) == (False, [])


@pytest.mark.parametrize("edit", ["part", "replace", "update", "meta"])
def test_a_document_after_an_edit_is_fresh(edit: str) -> None:
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "old text")
    shelf.put_document_of(harness.known("m"))
    harness.append("m", ", older than the edit")
    match edit:
        case "part":
            harness.part("m", 1, text_part("opened"))
        case "replace":
            harness.part("m", 0, text_part("replaced"))
        case "update":
            harness.update("m", text="updated", generation=1)
        case _:
            harness.update("m", meta={"x": 1}, generation=1)
    harness.append("m", " and more")
    kept = document(harness.known("m"))
    assert kept.fresh
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(harness.known("m"))
    mark_documented(harness.known("m"), kept.version)
    harness.append("m", "!")
    assert not document(harness.known("m")).fresh


def test_document_of_a_deleted_message_drops_its_text() -> None:
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "secret", meta={"a": "secret"})
    shelf.put_document_of(harness.known("m"))
    harness.delete("m")
    shelf.put_document_of(harness.known("m"))
    head, segments, _ = shelf.documents["m"]
    assert b"secret" not in head
    assert segments == []
    assert shelf.restore("m").deleted


def test_entries_after_the_document_are_applied() -> None:
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "a")
    shelf.put_document_of(harness.known("m"))
    harness.append("m", "b")
    harness.part("m", 0, text_part("c"))
    harness.append("m", "d")
    harness.finish("m", "failed", reason="r")
    for entry in harness.log:
        shelf.add(entry)
    back = shelf.restore("m")
    assert everything(back) == everything(harness.known("m"))
    assert back.documented == 1
    assert back.undocumented_bytes == harness.known("m").undocumented_bytes


def test_entries_that_the_document_covers_change_nothing() -> None:
    harness = full()
    kept = document(harness.known("m"))
    back = restore(Stored(id="m", head=kept.head, segments=kept.segments, entries=harness.log))
    assert everything(back) == everything(harness.known("m"))


def test_segments_that_overlap_are_one_text() -> None:
    harness = LogHarness()
    harness.stream("m", "")
    harness.append("m", "abc")
    early = document(harness.known("m"))
    harness.append("m", "def")
    late = document(harness.known("m"))  # `mark_documented` was not called for the early one
    back = restore(Stored(id="m", head=late.head, segments=early.segments + late.segments, entries=[]))
    assert everything(back) == everything(harness.known("m"))


def test_thinned_marks_make_overlaps_and_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_MARKS", 20)
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "")
    shelf.put_document_of(harness.known("m"))
    for number in range(200):
        harness.append("m", f"{number} ")
        if number % 7 == 0:
            shelf.put_document_of(harness.known("m"))
            for _ in range(20):
                harness.append("m", ".")
    shelf.put_document_of(harness.known("m"))
    assert everything(shelf.restore("m")) == everything(harness.known("m"))


@pytest.mark.parametrize(("piece", "bytes_each"), [("x", 1), ("é", 2), ("\n", 2), ("\x01", 6), ("tok🙂 ", 8)])
def test_stored_marks_stand_about_every_256_bytes_of_json(piece: str, bytes_each: int) -> None:
    harness = LogHarness()
    harness.stream("m", "")
    for _ in range(2_000):
        harness.append("m", piece)
    back = restore(stored(harness.known("m")))
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
    harness = LogHarness()
    harness.stream("m", "")
    for _ in range(10):
        harness.append("m", "x")
    text = restore(stored(harness.known("m"))).parts[0].text
    assert text is not None
    assert (text.length_at(11), text.length_at(10)) == (10, 0)


def test_document_of_a_draft_equals_that_after_the_commit() -> None:
    harness = LogHarness(batches=True)
    harness.stream("m", parts=[text_part("a"), tool_part("{")])
    harness.append("m", "b")
    harness.commit()
    shelf = Shelf()
    shelf.put_document_of(harness.known("m"))
    harness.append("m", "c")
    harness.append("m", "1", part=1)
    harness.append("m", "d")
    harness.part("m", 2, text_part())
    harness.append("m", "e", part=0)
    harness.append("m", "f")
    draft = harness.draft.message("m")
    assert draft is not None
    kept = document(draft)
    harness.commit()
    assert (kept.version, kept.size_bytes) == (harness.known("m").version, harness.known("m").size_bytes)
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(harness.known("m"))


@given(batches, st.data())
def test_documents_from_drafts_restore_what_was_stored(world_batches: list[list[Asked]], data: st.DataObject) -> None:
    """Do as the committer: decide a batch, make documents from its draft, store both, apply."""
    world, shelf = World(), Shelf()
    for batch in world_batches:
        world.now_ms += 1
        draft = Draft(world.state)
        for one in batch:
            world.decide(draft, one)
        wanted = {**draft.reshaped, **dict.fromkeys(data.draw(st.sets(st.sampled_from(IDS + COMMANDS))))}
        forks = [draft.thing(key) for key in wanted]
        documents = [document(fork) for fork in forks if fork is not None]
        for entry in draft.entries():
            apply_entry(world.state, entry)
            shelf.add(entry)
        for kept in documents:
            shelf.put(kept)
            if not is_command(kept.id):
                mark_documented(world.state.messages[kept.id], kept.version)
        back = ChannelState("c")
        back.insert(shelf.restore_all())
        assert everything_in(back) == everything_in(world.state)


# -- turns and commands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "taken", "taken again", "done", "cancelled"])
def test_a_document_holds_the_turn_of_a_message(state: str) -> None:
    harness = served_log("q")
    if state != "pending":
        harness.claim("q", caller=REMOTE, lease_s=15)
    match state:
        case "taken again":
            harness.claim("q", 1, caller=AGENT)
        case "done" | "cancelled":
            harness.end("q", 1, state, caller=REMOTE)
    kept = stored(harness.known("q"))
    back = restore(kept)
    assert everything(back) == everything(harness.known("q"))
    assert document(harness.known("q")).is_open == (state not in ("done", "cancelled"))
    assert (back.documented, back.last) == (harness.state.serial, harness.state.serial)


def test_a_document_after_a_claim_covers_it() -> None:
    harness, shelf = served_log("q"), Shelf()
    for entry in harness.log:
        shelf.add(entry)
    shelf.put_document_of(harness.known("q"))
    harness.claim("q")
    harness.end("q")
    for entry in harness.log[1:]:
        shelf.add(entry)
    assert [entry.serial for entry in shelf.stored("q").entries] == [2, 3]
    assert everything(shelf.restore("q")) == everything(harness.known("q"))
    kept = document(harness.known("q"))
    assert (kept.version, kept.created, kept.fresh, kept.segments) == (3, 1, False, [])
    shelf.put(kept)
    assert shelf.stored("q").entries == []
    assert everything(shelf.restore("q")) == everything(harness.known("q"))


def test_a_claim_or_lease_that_the_document_covers_changes_nothing() -> None:
    harness = served_log("q")
    harness.claim("q", caller=REMOTE, lease_s=15)
    harness.claim("q", 1, caller=AGENT)
    back = restore(Stored(id="q", head=document(harness.known("q")).head, segments=[], entries=harness.log))
    assert back.claim == harness.known("q").claim
    harness.stream("m", "text", lease_s=15)
    harness.renew("m", 60)
    kept = document(harness.known("m"))
    harness.renew("m", 30)
    back = restore(Stored(id="m", head=kept.head, segments=kept.segments, entries=harness.log[3:]))
    assert everything(back) == everything(harness.known("m"))


def test_document_after_a_claim_does_not_repeat_text() -> None:
    harness, shelf = LogHarness(), Shelf()
    harness.stream("m", "one")
    shelf.put_document_of(harness.known("m"))
    harness.append("m", " two")
    harness.renew("m", 60)
    shelf.put_document_of(harness.known("m"))
    harness.append("m", " three")
    kept = document(harness.known("m"))
    assert [segment.text for segment in kept.segments] == [" three"]
    shelf.put(kept)
    assert everything(shelf.restore("m")) == everything(harness.known("m"))


def test_decisions_about_a_turn_are_the_same_on_a_restored_message() -> None:
    harness = served_log("q")
    harness.claim("q", caller=AGENT)
    harness.state.insert([restore(stored(harness.known("q")))])
    assert harness.claim("q", caller=AGENT).ops == ()
    with pytest.raises(Fenced):
        harness.claim("q", caller=REMOTE)
    harness.end("q")
    harness.state.insert([restore(stored(harness.known("q")))])
    assert harness.end("q").ops == ()


def commanded(command_id: str, *, has_reply: bool) -> LogHarness:
    harness = LogHarness()
    harness.stream("m")
    harness.command(command_id, "steer", target="m", data={"to": [1, None]}, expires_s=60, caller=PERSON)
    if has_reply:
        harness.reply(command_id, ok=False, data={"x": "é"}, error={"code": "no"}, request="r")
    return harness


@pytest.mark.parametrize("has_reply", [False, True])
def test_a_document_holds_all_of_a_command(has_reply: bool) -> None:
    harness = commanded("c", has_reply=has_reply)
    kept = document(harness.known_command("c"))
    (back,) = restored([Stored(id=kept.id, head=kept.head, segments=kept.segments, entries=[])])
    assert isinstance(back, CommandState)
    assert everything_of_command(back) == everything_of_command(harness.known_command("c"))
    assert (kept.id, kept.created, kept.version) == ("!c", 0, 3 if has_reply else 2)
    assert (kept.is_open, kept.is_deleted, len(kept.segments)) == (not has_reply, False, 1)
    assert (kept.target, kept.until_ms) == ("m", 61_000 + KEPT_MS)
    assert b"to" not in kept.head


def test_only_a_reply_after_the_document_is_applied() -> None:
    harness = commanded("c", has_reply=False)
    kept = document(harness.known_command("c"))
    harness.reply("c", data=1)
    for one in (kept, document(harness.known_command("c"))):
        back = restore_command(Stored(id="!c", head=one.head, segments=one.segments, entries=harness.log[1:]))
        assert everything_of_command(back) == everything_of_command(harness.known_command("c"))


def test_decisions_about_a_command_are_the_same_when_it_was_restored() -> None:
    harness = commanded("c", has_reply=True)
    harness.state.commands.clear()
    kept = document(commanded("c", has_reply=True).known_command("c"))
    harness.state.insert([restore_command(Stored(id=kept.id, head=kept.head, segments=[], entries=[]))])
    assert harness.command("c", "steer", target="m", data={"to": [1, None]}, caller=PERSON).ops == ()
    assert harness.reply("c", request="r").serial == 3
    with pytest.raises(AlreadyAnswered):
        harness.reply("c")
    with pytest.raises(IdConflict):
        harness.command("c", "steer", target="m")


def test_command_whose_data_has_left_keeps_its_outcome() -> None:
    kept = document(commanded("c", has_reply=True).known_command("c"))
    back = restore_command(Stored(id="!c", head=kept.head, segments=[], entries=[]))
    assert back.reply is not None
    assert (back.data, back.reply.data, back.reply.error, back.reply.ok) == (None, None, {"code": "no"}, False)


def test_messages_and_commands_are_restored_as_their_kind() -> None:
    harness = commanded("m", has_reply=False)  # the command has the same id as the message
    documents = [document(harness.known("m")), document(harness.known_command("m"))]
    back = restored(Stored(id=one.id, head=one.head, segments=one.segments, entries=[]) for one in documents)
    assert [type(one) for one in back] == [MessageState, CommandState]


def test_commands_of_a_draft_equal_those_after_the_commit() -> None:
    harness = LogHarness(batches=True)
    harness.stream("m", "")
    harness.command("c1", "steer", target="m")
    harness.commit()
    harness.command("c2", "cancel", target="m")
    harness.command("c3", "approve")
    harness.append("m", "a")
    harness.reply("c1")
    harness.reply("c3", data="yes")
    harness.append("m", "b")
    harness.settle("c2")
    assert list(harness.draft.reshaped) == ["!c2", "!c3", "!c1", "m"]
    documents = [document(one) for key in harness.draft.reshaped if (one := harness.draft.thing(key)) is not None]
    assert harness.known_command("c1").is_open  # readers see no change before the commit
    entries = harness.commit()
    assert [(entry.serial, entry.op.id) for entry in entries] == [
        (3, "!c2"),
        (4, "!c3"),
        (5, "m"),
        (6, "!c1"),
        (7, "!c3"),
        (8, "m"),
        (9, "!c2"),
    ]
    for kept in documents:
        (back,) = restored([Stored(id=kept.id, head=kept.head, segments=kept.segments, entries=[])])
        if isinstance(back, CommandState):
            assert everything_of_command(back) == everything_of_command(harness.state.commands[kept.id])
        else:
            assert everything(back) == everything(harness.known("m"))
    assert (harness.text("m"), harness.message("m").status) == ("ab", "cancelled")


def test_document_of_an_open_message_has_the_time_of_the_last_sign_of_life() -> None:
    log = LogHarness()
    log.stream("m", "a")
    log.now_ms = 5_000
    log.append("m", "b")
    assert restore(stored(log.known("m"))).alive_at == 5_000
    log.now_ms = 6_000
    log.finish("m")
    assert restore(stored(log.known("m"))).alive_at == 0


def test_time_of_a_claim_stays_when_its_message_is_edited() -> None:
    log = served_log()
    log.create("m", text="hi", caller=PERSON)
    log.now_ms = 5_000
    log.claim("m", lease_s=15.0)
    log.now_ms = 6_000
    log.update("m", text="hello", caller=PERSON)
    assert restore(stored(log.known("m"))).alive_at == 5_000


class OldClaim(NamedTuple):
    """The state of a turn as a build without confirmations reads it."""

    state: str
    generation: int
    by: str | None
    node: str | None
    lease_ms: int
    within: str | None
    within_generation: int
    round_from: int


class OldHead(MessageHead, frozen=True, array_like=True, kw_only=True):
    """The head as that build reads it."""

    claim: OldClaim | None = None  # type: ignore[assignment]


def test_head_of_a_confirmed_claim_is_read_by_a_build_without_confirmations() -> None:
    log = LogHarness()
    log.is_served = True
    log.create("q")
    log.claim("q", caller=AGENT)
    log.ask("q", ClaimTurn(generation=1, confirms=True), AGENT)
    kept = stored(log.known("q"))
    old = msgspec.msgpack.decode(kept.head, type=OldHead).claim
    assert old == ("taken", 1, "agent", "here", 0, None, 0, 0)
    assert restore(kept).claim == ClaimState("taken", 1, "agent", "here", confirmed=1)


def test_old_create_without_agent_fields_is_read() -> None:
    harness = LogHarness()
    harness.create("q", text="question")
    fields = msgspec.msgpack.decode(encode_op(harness.log[0].op))
    assert fields.pop() is False
    op = decode_op(msgspec.msgpack.encode(fields))
    assert op == harness.log[0].op


def test_used_up_id_is_a_deleted_message() -> None:
    harness = LogHarness()
    harness.state.insert([restore(Stored(id="m", head=used_up_head("m"), segments=[], entries=[]))])
    assert harness.known("m").deleted
    with pytest.raises(Deleted):
        harness.create("m", text="again")
    with pytest.raises(Deleted):
        harness.append("m", "x")
    assert list(harness.state.changed_since(0)) == []


def test_fold_continues_after_the_document() -> None:
    harness = full()
    cut = ChannelState("c", "e1", 3)
    first = LogHarness()
    first.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    first.append("m", "more", part=0)
    first.append("m", '"q"}', part=1)
    cut.insert([restore(stored(first.known("m")))])
    for entry in harness.log:
        apply_entry(cut, entry)
    assert everything(cut.messages["m"]) == everything(harness.known("m"))
