"""Catch-up, event by event, in the situations that occur (`docs/protocol.md`, 3.3 and 4).

Layer: tests.

Every batch is written out; the laws in `test_laws` hold for all of them.
"""

from __future__ import annotations

import pytest

from tenuto.core.catch_up import events_since, new_start, newest_messages
from tenuto.core.events import MessageAppend, MessagePart, MessageUpdate, StoredEvent
from tenuto.core.limits import Limits
from tenuto.core.ops import Entry, Update
from tenuto.core.state import ChannelState, apply_entry
from tests.core.harness import LogHarness, data_part

LIMITS = Limits()


def catch_up_events(harness: LogHarness, since: int) -> list[StoredEvent]:
    events = events_since(harness.state, since, limit=200)
    assert events is not None
    return events


# -- parts that were replaced, and too much --------------------------------------------------------------------


def test_a_part_that_was_replaced_comes_as_it_was_opened_and_as_it_is(harness: LogHarness) -> None:
    harness.stream("m")
    harness.part("m", 0, {"type": "text", "text": "first"})
    harness.append("m", " more", part=0)
    for value in ("second", "third"):
        harness.part("m", 0, {"type": "text", "text": value})
    harness.append("m", " now", part=0)
    opened, changed, added = catch_up_events(harness, 1)
    assert isinstance(opened, MessagePart)
    assert isinstance(changed, MessagePart)
    assert isinstance(added, MessageAppend)
    assert (opened.serial, opened.part["text"]) == (2, "first")
    assert (changed.serial, changed.part["text"]) == (5, "third")
    assert (added.serial, added.at, added.text) == (6, 5, " now")


@pytest.mark.parametrize(("size", "events"), [(100, [MessagePart, MessagePart]), (100_000, [MessageUpdate])])
def test_a_large_first_value_is_not_kept(harness: LogHarness, size: int, events: list[type]) -> None:
    harness.stream("m")
    for value in ("x" * size, ""):
        harness.part("m", 0, data_part(value))
    assert [type(event) for event in catch_up_events(harness, 1)] == events
    assert [type(event) for event in catch_up_events(harness, 2)] == [MessagePart]
    assert harness.state.cost_bytes() < 10_000
    assert (harness.state.cost_bytes() > 2_000) is (size == 100)


def test_entry_of_a_message_outside_memory_marks_the_state_incomplete(harness: LogHarness) -> None:
    harness.create("m", text="a")
    harness.create("n", text="b")
    harness.state.trim(0)
    apply_entry(harness.state, Entry(3, Update(id="m", parts=None, meta={"x": 1}, at_ms=1)))
    assert (harness.state.serial, harness.state.complete_since) == (3, 3)
    assert catch_up_events(harness, 3) == []
    with pytest.raises(AssertionError):
        catch_up_events(harness, 2)


def test_more_changed_messages_or_commands_than_the_limit_yield_no_catch_up(harness: LogHarness) -> None:
    for number in range(5):
        harness.create(f"m{number}", text="x")
    assert events_since(harness.state, 1, limit=3) is None
    assert len(events_since(harness.state, 2, limit=3) or ()) == 3
    assert events_since(harness.state, 5, limit=0) == []
    for number in range(3):
        harness.command(f"c{number}", "approve")
    assert events_since(harness.state, 5, limit=2) is None
    assert len(events_since(harness.state, 6, limit=2) or ()) == 2


# -- commands --------------------------------------------------------------------------------------------------


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
