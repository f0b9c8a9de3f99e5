"""Deltas, folded again, give the message: for batches cut anywhere, and for a reader that resumes anywhere.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.core.catch_up import events_since
from tenuto.core.deltas import (
    Delta,
    InAnswer,
    MessageContinued,
    MessageDeleted,
    MessageFinished,
    MessageOpened,
    MessageProgress,
    MessageReplaced,
    PartFinished,
    PartOpened,
    PartReplaced,
    Sent,
    TextAdded,
    TurnProgress,
)
from tenuto.core.events import ChannelAttached, MessageAppend, MessageCreate, MessageTakeover, ServerEvent
from tenuto.core.model import APPENDABLE, Message
from tenuto.core.state import ClaimState
from tests.core.worlds import IDS, Asked, World, batches

MANY = 10**6  # more changed messages than a world has


def fold(message: Message | None, deltas: Sequence[Delta]) -> Message | None:
    """Return `message` with `deltas` applied; None for a deleted one. Checks that no delta contradicts the message."""
    for delta in deltas:
        match delta:
            case MessageOpened(message=opened):
                message = replace(opened, parts=[])
            case MessageReplaced(message=whole):
                message = replace(whole, parts=list(whole.parts))
            case MessageDeleted():
                message = None
            case _:
                assert message is not None
                message = fold_one(message, delta)
    return message


def fold_one(message: Message, delta: Delta) -> Message:
    parts = list(message.parts)
    match delta:
        case PartOpened(index=index, part=part):
            assert index == len(parts)
            parts.append(part)
        case TextAdded(index=index, kind=kind, at=at, text=text):
            key = APPENDABLE[kind]
            assert text
            assert (parts[index]["type"], len(parts[index][key])) == (kind, at)
            parts[index] = {**parts[index], key: parts[index][key] + text}
        case PartReplaced(index=index, part=part):
            parts[index] = part
        case PartFinished(index=index):
            assert parts[index]["type"] in APPENDABLE
        case MessageFinished(status=status, reason=reason, meta=meta):
            return replace(message, parts=parts, status=status, reason=reason, meta=meta)
        case MessageContinued():
            return replace(message, status="streaming", reason=None)
    return replace(message, parts=parts)


def shown(message: Message | None) -> object:
    """Return the fields of `message` that deltas carry; the times and versions of a message are not among them."""
    return replace(message, version=0, updated_at=0) if message is not None else None


def is_continued(before: Message, after: Message) -> bool:
    """Return whether `after` only adds to the texts of `before`, as a reader that resumes by lengths has to assume.

    A superseded attempt is no such addition, but the reader knows how many there are.
    """
    attempts = [sum(part["type"] == "attempt" for part in message.parts) for message in (before, after)]
    if before.parts and attempts[0] < attempts[1]:
        return before.meta == after.meta
    if len(after.parts) < len(before.parts) or before.meta != after.meta:
        return False
    for old, new in zip(before.parts, after.parts, strict=False):
        if old["type"] != new["type"]:  # a reader that resumes by lengths alone could not notice the new type
            return False
        if old["type"] in ("text", "reasoning") and not new["text"].startswith(old["text"]):
            return False
    return True


@given(batches, st.data())
def test_deltas_folded_give_the_message(world_batches: list[list[Asked]], data: st.DataObject) -> None:
    world = World()
    readers: dict[str, tuple[MessageProgress, Message | None, int]] = {}  # progress, folded message, serial
    for batch in world_batches:
        world.commit(batch)
        for message_id in IDS:
            if not data.draw(st.booleans()):
                continue  # this reader takes this batch together with the next ones
            state = world.state.messages.get(message_id)
            now = state.message() if state is not None and not state.deleted else None
            if message_id not in readers:
                if now is None:
                    continue
                progress, message, deltas = MessageProgress(message_id), None, []
                deltas = progress.begin(now)
            else:
                progress, message, since = readers[message_id]
                if message is not None and now is not None and is_continued(message, now) and data.draw(st.booleans()):
                    sent = progress.sent()
                    progress = MessageProgress(message_id, sent._replace(lengths=tuple(sent.lengths)))
                    deltas = progress.begin(now)  # the reader lost its connection and resumes
                else:
                    events = events_since(world.state, since, limit=MANY)
                    assert events is not None
                    deltas = progress.receive(events)
            message = fold(message, deltas)
            assert not progress.is_broken
            assert shown(message) == shown(now)
            assert progress.status == ("deleted" if now is None else now.status if now.status != "streaming" else None)
            readers[message_id] = (progress, message, world.state.serial)


STREAMING = Message(
    id="m", role="assistant", status="streaming", created=1, version=1, created_at=0, updated_at=0, parts=[]
)


def streaming(*parts: dict[str, object]) -> Message:
    return replace(STREAMING, parts=list(parts))


def test_tool_input_is_added_to_and_sent_whole_on_resume() -> None:
    tool = {"type": "tool", "call": "c", "name": "f", "input": "{"}
    progress = MessageProgress("m")
    progress.begin(streaming(tool))
    whole = MessageAppend(serial=2, id="m", part=0, at=0, text="{}")
    assert progress.receive([whole]) == [TextAdded(0, "tool", 1, "}")]
    assert progress.sent() == Sent([0], False)
    again = MessageProgress("m", progress.sent())
    assert again.begin(streaming({**tool, "input": "{}"})) == [PartReplaced(0, {**tool, "input": "{}"}, 0)]


@pytest.mark.parametrize(
    "event",
    [
        MessageAppend(serial=9, id="m", part=0, at=3, text="d"),
        ChannelAttached(channel="c", epoch="e", serial=3, resumed=False),
    ],
    ids=["append beyond the sent text", "feed that did not resume"],
)
def test_event_that_does_not_continue_what_was_sent_breaks_the_progress(event: ServerEvent) -> None:
    progress = MessageProgress("m")
    progress.begin(streaming({"type": "text", "text": "ab"}))
    assert progress.receive([event]) == []
    assert progress.is_broken


def test_a_reader_of_a_finished_message_learns_that_it_continues() -> None:
    progress = MessageProgress("m", Sent([2], True))
    assert progress.begin(streaming({"type": "text", "text": "abc"})) == [
        TextAdded(0, "text", 2, "c"),
        MessageContinued(),
    ]
    assert progress.receive([MessageTakeover(serial=9, id="other")]) == []


def test_a_removed_part_keeps_its_length() -> None:
    progress = MessageProgress("m", Sent([3, 2]))
    assert progress.begin(streaming({"type": "text", "text": "new text"})) == [
        MessageReplaced(streaming({"type": "text", "text": "new text"}), (3, 2))
    ]
    assert progress.sent().lengths == [8, 2]


def test_answers_of_a_turn_come_in_the_order_of_their_creation_and_not_of_their_last_changes() -> None:
    known: Any = {"role": "assistant", "status": "streaming", "reply_to": "u", "created_at": 0, "updated_at": 0}
    first, second = (Message(id=id, created=created, version=9, **known) for id, created in (("a", 2), ("b", 3)))
    events = [MessageCreate(serial=8, message=second), MessageCreate(serial=9, message=first)]
    deltas = (progress := TurnProgress("u")).receive(events, None)
    assert [one.message_id for one in deltas if isinstance(one, InAnswer)] == ["a", "b"]
    for round_from in (1, 10):  # a reader that is slow has them yet when a `regenerate` comes
        question: Any = SimpleNamespace(claim=ClaimState("taken", round_from=round_from))
        assert (progress.receive((), question), progress.is_broken) == ([], round_from == 10)
