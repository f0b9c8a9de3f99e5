"""Catch-up, event by event, in the situations that occur (`docs/protocol.md`, 3.3 and 4).

Layer: tests.

Every batch is written out; the laws in `test_laws` hold for all of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.core.catch_up import events_since, new_start, newest_messages, resumed
from tenuto.core.document import mark_documented
from tenuto.core.events import (
    ChannelAttached,
    CommandReply,
    CommandSent,
    Event,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    StoredEvent,
    encode_json,
)
from tenuto.core.limits import Limits
from tenuto.core.model import Command
from tenuto.core.ops import Entry, Update
from tenuto.core.state import TAIL_ENTRIES, ChannelState, apply_entry
from tenuto.hub.batches import EncodedBatch
from tests.core.harness import ADMIN, BOB, LogHarness, data_part, text_part, tool_part
from tests.core.worlds import Shelf

LIMITS = Limits()


@pytest.fixture
def harness() -> LogHarness:
    return LogHarness()


def catch_up_events(harness: LogHarness, since: int) -> list[StoredEvent]:
    events = events_since(harness.state, since, limit=200)
    assert events is not None
    return events


def from_store(harness: LogHarness) -> LogHarness:
    """Return a harness of another process, which read the channel from a store: coarse marks, no tail."""
    shelf, other = Shelf(), LogHarness()
    for entry in harness.log:
        shelf.add(entry)
    for one in (*harness.state.messages.values(), *harness.state.commands.values()):
        shelf.put_document_of(one)
    old = harness.state
    other.state = ChannelState("c", old.epoch, old.serial)
    other.state.newest = old.newest
    other.state.insert(shelf.restore_all())
    other.state.complete_since, other.state.history_from, other.state.has_older = 0, 1, False
    other.draft = type(other.draft)(other.state)
    return other


# -- text ------------------------------------------------------------------------------------------------------


def test_subscriber_at_the_end_gets_no_catch_up(harness: LogHarness) -> None:
    harness.stream("m", "a")
    assert catch_up_events(harness, 1) == []


def test_appends_since_the_cursor_are_one_event(harness: LogHarness) -> None:
    harness.stream("m", "")
    for text in ("one ", "two ", "thrée ", "four"):
        harness.append("m", text)
    assert catch_up_events(harness, 2) == [MessageAppend(serial=5, id="m", part=0, at=4, text="two thrée four")]
    assert catch_up_events(harness, 4) == [MessageAppend(serial=5, id="m", part=0, at=14, text="four")]


def test_two_parts_that_stream_are_one_event_each_in_order_of_their_last_pieces(harness: LogHarness) -> None:
    harness.stream("m", parts=[text_part(), tool_part()])
    for part, text in ((0, "a"), (1, "1"), (0, "b"), (1, "2"), (0, "c")):
        harness.append("m", text, part=part)
    assert catch_up_events(harness, 1) == [
        MessageAppend(serial=5, id="m", part=1, at=0, text="12"),
        MessageAppend(serial=6, id="m", part=0, at=0, text="abc"),
    ]
    assert catch_up_events(harness, 3) == [
        MessageAppend(serial=5, id="m", part=1, at=1, text="2"),
        MessageAppend(serial=6, id="m", part=0, at=1, text="bc"),
    ]


def test_two_messages_that_stream_are_one_event_each(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.stream("n", "")
    for one, text in (("m", "a"), ("n", "1"), ("n", "2"), ("m", "b")):
        harness.append(one, text)
    assert catch_up_events(harness, 2) == [
        MessageAppend(serial=5, id="n", part=0, at=0, text="12"),
        MessageAppend(serial=6, id="m", part=0, at=0, text="ab"),
    ]


def test_repeated_text_is_caught_up_once(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.append("m", "abc", at=0)
    harness.append("m", "abc", at=0)
    harness.append("m", "bcde", at=1)
    assert catch_up_events(harness, 1) == [MessageAppend(serial=3, id="m", part=0, at=0, text="abcde")]


# -- parts -----------------------------------------------------------------------------------------------------


def test_a_part_opened_by_the_first_append_comes_as_a_part_and_then_as_text(harness: LogHarness) -> None:
    harness.stream("m")
    harness.now_ms = 2_000
    for text in ("a", "b", "c"):
        harness.append("m", text)
    opened = MessagePart(serial=2, id="m", index=0, updated_at=2_000, part=text_part("a"))
    assert catch_up_events(harness, 1) == [opened, MessageAppend(serial=4, id="m", part=0, at=1, text="bc")]
    assert catch_up_events(harness, 2) == [MessageAppend(serial=4, id="m", part=0, at=1, text="bc")]


def test_a_part_replaced_twenty_times_is_one_event(harness: LogHarness) -> None:
    harness.stream("m", parts=[data_part(0)])
    for number in range(1, 21):
        harness.now_ms = 1_000 * number
        harness.part("m", 0, data_part(number))
    assert catch_up_events(harness, 1) == [
        MessagePart(serial=21, id="m", index=0, updated_at=20_000, part=data_part(20))
    ]


def test_opened_and_replaced_part_is_opened_in_order(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.part("m", 1, data_part(1))
    harness.part("m", 2, data_part("other"))
    harness.part("m", 1, data_part(2))
    harness.now_ms = 3_000
    harness.part("m", 1, data_part(3))
    assert catch_up_events(harness, 1) == [
        MessagePart(serial=2, id="m", index=1, updated_at=1_000, part=data_part(1)),
        MessagePart(serial=3, id="m", index=2, updated_at=1_000, part=data_part("other")),
        MessagePart(serial=5, id="m", index=1, updated_at=3_000, part=data_part(3)),
    ]
    assert catch_up_events(harness, 2) == [
        MessagePart(serial=3, id="m", index=2, updated_at=1_000, part=data_part("other")),
        MessagePart(serial=5, id="m", index=1, updated_at=3_000, part=data_part(3)),
    ]


def test_replaced_part_supersedes_its_earlier_text(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.append("m", "gone")
    harness.part("m", 0, text_part("new"))
    harness.append("m", " and more")
    assert catch_up_events(harness, 1) == [
        MessagePart(serial=3, id="m", index=0, updated_at=1_000, part=text_part("new")),
        MessageAppend(serial=4, id="m", part=0, at=3, text=" and more"),
    ]


# -- whole messages --------------------------------------------------------------------------------------------


def test_a_message_created_since_is_whole_as_it_is_now(harness: LogHarness) -> None:
    harness.stream("m", "a", meta={"x": 1})
    harness.append("m", "b")
    harness.part("m", 1, data_part())
    harness.finish("m", "cancelled", reason="stop")
    assert catch_up_events(harness, 0) == [MessageCreate(serial=4, message=harness.message("m"))]
    assert harness.message("m").version == 4


def test_an_edited_message_is_whole_with_its_version_as_serial(harness: LogHarness) -> None:
    harness.create("m", text="a")
    harness.create("n", text="b")
    harness.update("m", text="A")
    harness.update("n", meta={"x": 1})
    harness.update("m", text="AA")
    assert catch_up_events(harness, 2) == [
        MessageUpdate(serial=4, message=harness.message("n")),
        MessageUpdate(serial=5, message=harness.message("m")),
    ]


def test_edited_message_is_one_event(harness: LogHarness) -> None:
    harness.stream("m", "a")
    harness.append("m", "b")
    harness.update("m", meta={"x": 1}, generation=1)
    harness.append("m", "c")
    harness.part("m", 1, data_part())
    harness.finish("m")
    assert catch_up_events(harness, 1) == [MessageUpdate(serial=6, message=harness.message("m"))]
    assert [type(event) for event in catch_up_events(harness, 3)] == [MessageAppend, MessagePart, MessageFinish]


def test_a_deleted_message_is_a_delete_only(harness: LogHarness) -> None:
    harness.stream("m", "a")
    harness.stream("n", "b")
    harness.append("m", "x")
    harness.update("m", meta={"x": 1}, generation=1)
    harness.finish("m")
    harness.delete("m")
    for since in range(6):
        events = [event for event in catch_up_events(harness, since) if not isinstance(event, MessageCreate)]
        assert events == [MessageDelete(serial=6, id="m")]


# -- ends ------------------------------------------------------------------------------------------------------


def test_a_finish_comes_after_the_text_with_the_whole_meta(harness: LogHarness) -> None:
    harness.stream("m", "", meta={"x": 1, "y": 2})
    harness.append("m", "text")
    harness.now_ms = 5_000
    harness.finish("m", "failed", reason="r", meta={"y": None, "z": 3})
    finish = MessageFinish(serial=3, id="m", status="failed", reason="r", meta={"x": 1, "z": 3}, updated_at=5_000)
    assert catch_up_events(harness, 1) == [MessageAppend(serial=2, id="m", part=0, at=0, text="text"), finish]
    assert catch_up_events(harness, 2) == [finish]


def test_text_is_split_at_a_finish_and_a_takeover(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.append("m", "be")
    harness.append("m", "fore")
    harness.interrupt("m")
    harness.take_over("m")
    harness.append("m", " af", generation=2, caller=BOB)
    harness.append("m", "ter", generation=2, caller=BOB)
    interrupted = MessageFinish(serial=4, id="m", status="interrupted", updated_at=1_000)
    after = [
        MessageTakeover(serial=5, id="m"),
        MessageAppend(serial=7, id="m", part=0, at=6, text=" after"),
    ]
    assert catch_up_events(harness, 1) == [
        MessageAppend(serial=3, id="m", part=0, at=0, text="before"),
        interrupted,
        *after,
    ]
    assert catch_up_events(harness, 3) == [interrupted, *after]
    assert catch_up_events(harness, 4) == after
    assert catch_up_events(harness, 6) == [MessageAppend(serial=7, id="m", part=0, at=9, text="ter")]


def test_catch_up_has_the_last_of_several_ends(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.append("m", "1")
    harness.interrupt("m")
    harness.take_over("m")
    harness.append("m", "2", generation=2, caller=BOB)
    harness.finish("m", generation=2, caller=BOB)
    assert catch_up_events(harness, 1) == [
        MessageAppend(serial=2, id="m", part=0, at=0, text="1"),
        MessageAppend(serial=5, id="m", part=0, at=1, text="2"),
        MessageFinish(serial=6, id="m", status="complete", updated_at=1_000),
    ]


def test_takeover_of_a_streaming_message_is_one_event(harness: LogHarness) -> None:
    harness.stream("m", "a")
    harness.take_over("m", caller=ADMIN)
    harness.append("m", "b", generation=2, caller=ADMIN)
    assert catch_up_events(harness, 1) == [
        MessageTakeover(serial=2, id="m"),
        MessageAppend(serial=3, id="m", part=0, at=1, text="b"),
    ]


# -- beyond the tail, and too much -----------------------------------------------------------------------------


def test_cursor_older_than_the_tail_gets_a_reshaped_message_whole(harness: LogHarness) -> None:
    harness.stream("m", parts=[data_part(0), text_part()])
    harness.stream("n", "")
    for number in range(TAIL_ENTRIES + 1):
        harness.part("m", 0, data_part(number))
    harness.append("n", "text")
    text = MessageAppend(serial=1_004, id="n", part=0, at=0, text="text")
    assert catch_up_events(harness, 2) == [MessageUpdate(serial=1_003, message=harness.message("m")), text]
    last = MessagePart(serial=1_003, id="m", index=0, updated_at=1_000, part=data_part(1_000))
    assert catch_up_events(harness, 3) == [last, text]


def test_the_tail_is_bounded_in_bytes_too(harness: LogHarness) -> None:
    harness.stream("m", "")
    for _ in range(5):
        harness.part("m", 0, data_part("x" * 400_000))
    assert [type(event) for event in catch_up_events(harness, 1)] == [MessageUpdate]
    assert [type(event) for event in catch_up_events(harness, 4)] == [MessagePart]


def test_restored_text_is_one_append_and_a_reshaped_message_is_whole(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.stream("n", "")
    for _ in range(100):
        harness.append("m", "0123456789")
    harness.part("n", 0, text_part("new"))
    other = from_store(harness)
    assert catch_up_events(other, 102) == [MessageUpdate(serial=103, message=harness.message("n"))]
    (append,) = [event for event in catch_up_events(other, 52) if isinstance(event, MessageAppend)]
    assert append == MessageAppend(serial=102, id="m", part=0, at=260, text=("0123456789" * 100)[260:])


def test_entry_of_a_message_outside_memory_marks_the_state_incomplete(harness: LogHarness) -> None:
    harness.create("m", text="a")
    harness.create("n", text="b")
    harness.state.trim(0)
    apply_entry(harness.state, Entry(3, Update(id="m", parts=None, meta={"x": 1}, at_ms=1)))
    assert (harness.state.serial, harness.state.complete_since) == (3, 3)
    assert catch_up_events(harness, 3) == []
    with pytest.raises(AssertionError):
        catch_up_events(harness, 2)


def test_more_changed_messages_than_the_limit_yield_no_catch_up(harness: LogHarness) -> None:
    for number in range(5):
        harness.create(f"m{number}", text="x")
    assert events_since(harness.state, 1, limit=3) is None
    assert len(events_since(harness.state, 2, limit=3) or ()) == 3
    assert events_since(harness.state, 5, limit=0) == []


# -- commands --------------------------------------------------------------------------------------------------


def test_command_and_reply_are_in_serial_order(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.command("c", "steer", target="m", data={"x": 1}, caller=BOB)
    harness.append("m", "a")
    harness.reply("c", data="yes")
    harness.append("m", "b")
    sent = CommandSent(
        serial=2,
        command=Command(id="c", name="steer", target="m", data={"x": 1}, from_="bob", expires_at=301_000),
    )
    reply = CommandReply(serial=4, id="c", ok=True, data="yes", from_="ann")
    assert catch_up_events(harness, 1) == [sent, reply, MessageAppend(serial=5, id="m", part=0, at=0, text="ab")]
    assert catch_up_events(harness, 2) == [reply, MessageAppend(serial=5, id="m", part=0, at=0, text="ab")]
    assert catch_up_events(harness, 4) == [MessageAppend(serial=5, id="m", part=0, at=1, text="b")]


def test_carried_out_cancel_comes_with_the_finish_it_caused(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.cancel("c", "m")
    harness.settle("c")
    assert catch_up_events(harness, 2) == [
        MessageFinish(serial=3, id="m", status="cancelled", updated_at=1_000),
        CommandReply(serial=4, id="c", ok=True),
    ]


def test_late_reply_to_an_old_command_precedes_a_newer_pending_command(harness: LogHarness) -> None:
    for name in ("c1", "c2", "c3"):
        harness.command(name, "approve")
    harness.reply("c1")
    assert [type(event) for event in catch_up_events(harness, 3)] == [CommandReply]
    assert [event.serial for event in catch_up_events(harness, 1)] == [2, 3, 4]


def test_more_commands_than_the_limit_yield_no_catch_up(harness: LogHarness) -> None:
    for number in range(3):
        harness.command(f"c{number}", "approve")
    assert events_since(harness.state, 0, limit=2) is None
    assert len(events_since(harness.state, 1, limit=2) or ()) == 2


@pytest.mark.parametrize("is_new", [True, False])
def test_attach_lists_pending_commands_oldest_first(harness: LogHarness, is_new: bool) -> None:
    for name in ("c1", "c2", "c3"):
        harness.command(name, "approve")
    harness.create("m", text="x")
    harness.reply("c2")
    attached = new_start(harness.state, [], False)[0] if is_new else resumed(harness.state)
    assert [command.id for command in attached.commands] == ["c1", "c3"]


def test_attach_without_pending_commands_omits_the_field(harness: LogHarness) -> None:
    harness.command("c", "approve")
    harness.reply("c")
    assert b"commands" not in encode_json(resumed(harness.state))


def test_restored_commands_are_caught_up_as_before(harness: LogHarness) -> None:
    for name in ("c1", "c2"):
        harness.command(name, "approve")
    harness.create("m", text="x")
    harness.reply("c1", ok=False, error={"code": "no"}, caller=BOB)
    other = from_store(harness)
    for since in range(5):
        assert catch_up_events(other, since) == catch_up_events(harness, since)
    assert resumed(other.state) == resumed(harness.state)


def test_reply_to_a_command_outside_memory_marks_the_state_incomplete(harness: LogHarness) -> None:
    harness.command("c", "approve")
    harness.reply("c")
    state = ChannelState("c", "e1", 1)
    apply_entry(state, harness.log[1])
    assert (state.serial, state.complete_since) == (2, 2)


def test_command_that_leaves_memory_marks_the_state_incomplete(harness: LogHarness) -> None:
    harness.command("c", "approve")
    harness.create("m", text="x")
    harness.reply("c")
    harness.create("n", text="x")
    harness.state.trim(0)
    assert (list(harness.state.commands), harness.state.complete_since) == ([], 4)
    with pytest.raises(AssertionError):
        catch_up_events(harness, 2)


# -- new starts ------------------------------------------------------------------------------------------------


def begin(harness: LogHarness, history: int, limits: Limits = LIMITS) -> tuple[list[str], bool | None, int | None]:
    """Return the ids of a new start in their order, and its `more` and `before`."""
    page = newest_messages(harness.state, history, limits)
    assert page is not None
    attached, updates = new_start(harness.state, *page)
    assert (attached.resumed, attached.serial, attached.epoch) == (False, harness.state.serial, harness.state.epoch)
    for update in updates:
        assert update == MessageUpdate(serial=update.message.version, message=harness.message(update.message.id))
    return [update.message.id for update in updates], attached.more, attached.before


def conversation(harness: LogHarness) -> None:
    """Build m1 … m6 at serials 1 … 6: m2 streams, m4 is deleted at 7, m1 edited at 8."""
    harness.create("m1", text="1")
    harness.stream("m2", "2")
    for number in (3, 4, 5, 6):
        harness.create(f"m{number}", text=f"{number}")
    harness.delete("m4")
    harness.update("m1", text="one")


def test_a_new_start_shows_the_newest_messages_and_every_streaming_one(harness: LogHarness) -> None:
    conversation(harness)
    assert begin(harness, 2) == (["m2", "m5", "m6"], True, 5)
    assert begin(harness, 3) == (["m2", "m3", "m5", "m6"], True, 3)
    assert begin(harness, 4) == (["m2", "m3", "m5", "m6"], True, 2)
    assert begin(harness, 5) == (["m2", "m3", "m5", "m6", "m1"], False, 1)
    assert begin(harness, 200) == (["m2", "m3", "m5", "m6", "m1"], False, 1)


def test_without_history_a_new_start_shows_only_what_streams(harness: LogHarness) -> None:
    conversation(harness)
    assert begin(harness, 0) == (["m2"], True, 9)


def test_new_start_of_an_empty_channel_has_no_messages(harness: LogHarness) -> None:
    page = newest_messages(harness.state, 50, LIMITS)
    assert page == ([], False)
    attached = ChannelAttached(channel="c", epoch="-", serial=0, resumed=False, more=False, before=1)
    assert new_start(harness.state, *page) == (attached, [])


def test_new_start_omits_deleted_messages(harness: LogHarness) -> None:
    harness.create("m", text="x")
    harness.delete("m")
    assert begin(harness, 50) == ([], False, 3)


def test_a_new_start_is_bounded_in_bytes_of_finished_messages_but_shows_the_newest(harness: LogHarness) -> None:
    limits = Limits(history_bytes=1_000)
    for number in range(5):
        harness.create(f"m{number}", text="x" * 400)
    assert begin(harness, 50, limits) == (["m3", "m4"], True, 4)
    harness.create("big", text="x" * 5_000)
    assert begin(harness, 50, limits) == (["big"], True, 6)
    harness.stream("stream", "x" * 5_000)
    assert begin(harness, 50, limits) == (["stream"], True, 7)
    harness.create("small", text="x")
    assert begin(harness, 50, limits) == (["stream", "small"], True, 7)


def part_of(harness: LogHarness, *, history_from: int, is_history_cut: bool = False) -> LogHarness:
    """Return `harness` as if only messages created since `history_from`, and streaming ones, were in memory."""
    state = harness.state
    state.history_from, state.has_older, state.is_history_cut = history_from, True, is_history_cut
    return harness


def test_page_outside_memory_requires_a_store_read(harness: LogHarness) -> None:
    for number in range(6):
        harness.create(f"m{number}", text="x")
    del harness.state.messages["m0"], harness.state.messages["m1"]
    part_of(harness, history_from=3)
    assert newest_messages(harness.state, 5, LIMITS) is None
    assert begin(harness, 4) == (["m2", "m3", "m4", "m5"], True, 3)


@pytest.mark.parametrize("history", [0, 1, 2, 4])
def test_page_is_whole_despite_an_older_message_in_memory(harness: LogHarness, history: int) -> None:
    harness.stream("old", "streams since long ago")
    for number in range(6):
        harness.create(f"m{number}", text="x")
    del harness.state.messages["m0"], harness.state.messages["m1"]
    part_of(harness, history_from=4)
    newest = [f"m{number}" for number in range(6 - history, 6)]
    assert begin(harness, history) == (["old", *newest], True, 8 - history)
    assert newest_messages(harness.state, 5, LIMITS) is None


def test_page_cut_at_its_byte_limit_is_whole(harness: LogHarness) -> None:
    harness.stream("old", "streams since long ago")
    for number in range(4):
        harness.create(f"m{number}", text="x")
    del harness.state.messages["m0"], harness.state.messages["m1"]
    part_of(harness, history_from=4, is_history_cut=True)
    assert begin(harness, 50) == (["old", "m2", "m3"], True, 4)
    harness.delete("m2")
    harness.delete("m3")
    assert newest_messages(harness.state, 50, LIMITS) is None


# -- bytes -----------------------------------------------------------------------------------------------------

ANSWERS = {
    "prose": "The answer is in the documents, word by word. ",
    "quotes and lines": 'She said: "no"\n\tand left.\r\n',
    "emoji": "👩\u200d🚀🇫🇷 ",
    "cjk": "持久的实时传输，",
    "control": "a\x01b\x02 ",
}
MISSING = 1_200  # bytes of JSON text


def answer(text: str, *, tokens: int) -> tuple[LogHarness, str, int]:
    """Build an 8 KB answer in mid-stream from pieces of one size; returns the missing text and the serial before it."""
    harness = LogHarness()
    harness.create("u", text="question")
    harness.stream("m", reply_to="u", meta={"model": "none", "seed": 7})
    whole = (text * 8_000)[: len((text * 8_000).encode()[:8_000].decode(errors="ignore"))]
    for start in range(0, len(whole), tokens):
        harness.append("m", whole[start : start + tokens])
    for index, entry in enumerate(harness.log[2:], 2):
        seen = whole[: (index - 1) * tokens]
        if json_bytes(whole[len(seen) :]) <= MISSING:
            return harness, whole[len(seen) :], entry.serial
    raise AssertionError("the answer is too short")


def json_bytes(text: str) -> int:
    return len(encode_json(text)) - 2


def resume(harness: LogHarness, since: int) -> EncodedBatch:
    events: list[Any] = [resumed(harness.state), *catch_up_events(harness, since)]
    return EncodedBatch("c", str(harness.state.cursor), events)


@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_a_resume_costs_the_missing_text_and_400_bytes(text: str, tokens: int) -> None:
    harness, missing, since = answer(text, tokens=tokens)
    batch = resume(harness, since)
    (append,) = [event for event in batch.events if isinstance(event, MessageAppend)]
    assert append.text == missing
    assert json_bytes(missing) > MISSING - 300
    assert len(batch.sse) <= json_bytes(missing) + 400
    assert sum(map(len, (frame.encode() for frame in batch.frames))) <= json_bytes(missing) + 400


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_after_a_restart_a_resume_costs_the_missing_text_and_700_bytes(text: str, tokens: int, ends: bool) -> None:
    harness, missing, since = answer(text, tokens=tokens)
    if ends:
        harness.finish("m", meta={"tokens": 1_000})
    batch = resume(from_store(harness), since)
    (append,) = [event for event in batch.events if isinstance(event, MessageAppend)]
    assert append.text.endswith(missing)
    assert len(batch.sse) <= json_bytes(missing) + 700


def test_documents_written_on_the_way_keep_their_marks() -> None:
    harness, missing, since = answer(ANSWERS["prose"], tokens=4)
    again, shelf = LogHarness(), Shelf()
    for number, entry in enumerate(harness.log):
        shelf.add(entry)
        from_log(again, harness, number)
        if number % 17 == 0 and "m" in again.state.messages:
            shelf.put_document_of(again.known("m"))
    state = ChannelState("c", "e1", harness.state.serial)
    state.insert([shelf.restore("m")])
    state.complete_since = 0
    again.state = state
    (append,) = [event for event in catch_up_events(again, since) if isinstance(event, MessageAppend)]
    assert append.text.endswith(missing)
    assert json_bytes(append.text) <= json_bytes(missing) + 256


def from_log(harness: LogHarness, source: LogHarness, number: int) -> None:
    """Apply one entry of another harness's log to `harness`."""
    apply_entry(harness.state, source.log[number])


def test_a_hydration_costs_the_text_and_500_bytes() -> None:
    harness, _, _ = answer(ANSWERS["quotes and lines"], tokens=4)
    page = newest_messages(harness.state, 1, LIMITS)
    assert page is not None
    attached, updates = new_start(harness.state, *page)
    batch = EncodedBatch("c", str(harness.state.cursor), [attached, *updates])
    assert len(batch.sse) <= 1.05 * json_bytes(harness.text("m")) + 500


def test_only_the_last_event_of_a_batch_has_an_id(harness: LogHarness) -> None:
    harness.stream("m", parts=[text_part(), text_part()])
    harness.append("m", "a", part=0)
    harness.append("m", "b\n\r\u2028", part=1)
    batch = resume(harness, 1)
    assert batch.sse.decode() == (
        "event: channel.attached\n"
        'data: {"type":"channel.attached","channel":"c","epoch":"e1","serial":3,"resumed":true}\n\n'
        "event: message.append\n"
        'data: {"type":"message.append","serial":2,"id":"m","part":0,"at":0,"text":"a"}\n\n'
        "event: message.append\n"
        'data: {"type":"message.append","serial":3,"id":"m","part":1,"at":0,"text":"b\\n\\r\u2028"}\n'
        "id: e1:3\n\n"
    )


def test_every_event_names_its_type_first() -> None:
    assert all(encode_json(event).startswith(b'{"type":"') for event in one_of_each())


def one_of_each() -> list[Event]:
    harness = LogHarness()
    harness.stream("m", "")
    return [resumed(harness.state), *catch_up_events(harness, 0)]


def test_marking_a_document_does_not_change_the_catch_up(harness: LogHarness) -> None:
    harness.stream("m", "")
    harness.append("m", "a")
    before = catch_up_events(harness, 1)
    mark_documented(harness.known("m"), 2)
    assert catch_up_events(harness, 1) == before
