"""The chunks of a turn for each order of events: what a page builds equals the loaded messages."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core.deltas import MessageProgress
from holdfast.core.model import Command, Message
from holdfast.interop.ai_sdk_parts import Release, ui_messages
from holdfast.interop.ai_sdk_stream import UIStream
from holdfast.routes import (
    InAnswer,
    MessageFinished,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    TextAdded,
    TurnChanged,
    TurnDelta,
    TurnStatus,
)
from tests.interop.folded_page import FoldedPage

TEXT = {"type": "text", "text": "One."}
SOURCE = {"type": "source", "url": "https://example.com/"}
RELEASE = Release(browser_tools=frozenset({"place"}))
APPROVED = {"id": "q1", "approved": True, "reason": "why not"}


def call(id: str, state: str, *, name: str = "weather", **fields: Any) -> Any:
    done = {"output": 7} if state == "done" else {}
    return {"type": "tool", "call": id, "name": name, "input": '{"x": 1}', "state": state, **done, **fields}


def answer(parts: list[Any], status: Any = "streaming") -> Message:
    return Message(
        id="a", role="assistant", status=status, parts=parts, created=2, version=2, created_at=0, updated_at=0
    )


def moments(events: list[tuple[int, Any]]) -> list[tuple[list[Any], TurnDelta]]:
    """Return for each event the parts before it, and its delta. An event is the value of a part, or more text."""
    parts: list[Any] = []
    found: list[tuple[list[Any], TurnDelta]] = []
    for index, value in events:
        before = [dict(part) for part in parts]
        delta: Any
        if isinstance(value, str):
            kind, name = (parts[index]["type"], "text" if parts[index]["type"] == "text" else "input")
            delta = TextAdded(index, kind, len(parts[index][name]), value)
            parts[index] = {**parts[index], name: parts[index][name] + value}
        elif index == len(parts):
            delta = PartOpened(index, value)
            parts.append(value)
        else:
            delta = PartReplaced(index, value, 0)
            parts[index] = value
        found.append((before, InAnswer("a", delta)))
    return [*found, ([dict(part) for part in parts], InAnswer("a", MessageFinished("complete", None, {})))]


def page_from(start: int, events: list[tuple[int, Any]]) -> FoldedPage:
    """Return the page that begins to follow the turn before the event `start`, and follows it to its end."""
    page, stream, steps = FoldedPage(), UIStream("u", RELEASE), moments(events)
    begun = MessageProgress("a").begin(answer(steps[start][0]))
    page.take(stream.frame([InAnswer("a", delta) for delta in begun]))
    for _, delta in steps[start:]:
        page.take(stream.frame([delta]))
    page.take(stream.frame([TurnChanged("over")]))
    assert page.ending == "finish"
    assert not page.posts_again()
    return page


def loaded(parts: list[Any], release: Release = RELEASE) -> Any:
    turn = TurnStatus(message=None, state="over", answers=[answer(parts, "complete")], questions=[], cursor="")
    return ui_messages([turn], release)[0]["parts"]


TEXT_AROUND_A_CALL = [(0, TEXT), (1, call("c1", "called")), (1, call("c1", "done")), (0, " Two."), (2, SOURCE)]
PARALLEL_CALLS = [
    *((index, call(f"c{index}", "called")) for index in range(3)),
    *((index, call(f"c{index}", "done")) for index in (1, 0, 2)),
    (3, TEXT),
    (4, call("c4", "called")),
    (4, call("c4", "done")),
]


@pytest.mark.parametrize("events", [TEXT_AROUND_A_CALL, PARALLEL_CALLS], ids=["text around a call", "parallel calls"])
def test_page_that_follows_a_turn_from_any_moment_equals_the_loaded_messages(events: list[tuple[int, Any]]) -> None:
    parts = moments(events)[-1][0]
    for start in range(len(events) + 1):
        assert (start, page_from(start, events).parts) == (start, loaded(parts))


@pytest.mark.parametrize("between", [TEXT, SOURCE, call("c2", "called", name="place")], ids=["text", "source", "call"])
def test_input_of_a_call_that_arrives_after_the_result_of_another_one_makes_no_second_part(between: Any) -> None:
    begun = {**call("c1", "input"), "input": ""}
    events = [(0, call("c0", "called")), (1, begun), (0, call("c0", "done")), (2, between), (1, '{"x": 1}')]
    for start in range(7):
        page = page_from(start, [*events, (1, call("c1", "called")), (1, call("c1", "done"))])
        calls = [one["state"] for one in page.parts if one.get("toolCallId") in ("c0", "c1")]
        assert (start, calls) == (start, ["output-available"] * 2)


def test_call_that_is_approved_after_a_part_of_another_type_is_in_the_last_step() -> None:
    page, stream = FoldedPage(), UIStream("u", RELEASE)
    calls = (0, call("c0", "called")), (1, call("c1", "called")), (0, call("c0", "done")), (2, SOURCE)
    for index, part in calls:
        page.take(stream.frame([InAnswer("a", PartReplaced(index, part, 0))]))
    asked = Command(id="q1", name="approve", target="a", data={"call": "c1"}, expires_at=0)
    page.take(stream.frame([QuestionAsked(asked)]))
    assert (page.ending, page.posts_again()) == ("finish", False)
    page.parts[1]["state"] = "approval-responded"
    assert page.posts_again()


@pytest.mark.parametrize("state", ["called", "done", "denied"])
def test_page_that_resumes_after_the_reply_to_an_approval_shows_the_reply(state: str) -> None:
    reply = APPROVED if state != "denied" else {**APPROVED, "approved": False}
    events = [(0, call("c1", state, approval=reply)), (1, TEXT)]
    for start in range(3):
        page = page_from(start, events)
        assert page.parts[1]["approval"] == reply
        assert page.parts == loaded([part for _, part in events])
    assert loaded([events[0][1]], Release(version=5))[1].get("approval") is None


def test_reply_that_a_page_repeats_while_another_question_is_open_ends_with_an_error() -> None:
    page = FoldedPage()

    def respond(state: str, *questions: str, is_late: bool = False) -> None:
        parts = [call("c1", state, name="place"), call("c2", "called")]
        begun = [InAnswer("a", one) for one in MessageProgress("a").begin(answer(parts))]
        asked = [Command(id=id, name="approve", data={"call": id}, expires_at=0) for id in questions]
        known = {"id": "a", "parts": page.parts} if page.parts else None
        page.take(UIStream("u", RELEASE, known, is_late=is_late).frame([*begun, *map(QuestionAsked, asked)]))

    respond("called", "c1", "c2")
    page.parts[1].update(state="output-available", output=7)
    assert page.posts_again()
    respond("done", "c2")
    assert (page.ending, page.posts_again()) == ("finish", True)
    respond("done", "c2", is_late=True)
    assert page.ending == "error"  # after which the page does not post by itself


def test_page_with_pieces_of_a_text_behind_another_text_gets_none_again() -> None:
    shown = [{**TEXT, "text": text} for text in ("One.", "Other.", " Two.")]
    stream = UIStream("u", RELEASE, {"id": "a", "parts": shown})
    parts = [{**TEXT, "text": "One. Two. Three."}, {**TEXT, "text": "Other."}]
    page = FoldedPage()
    page.take(stream.frame([InAnswer("a", delta) for delta in MessageProgress("a").begin(answer(parts))]))
    assert [part["text"] for part in page.parts if part["type"] == "text"] == [" Three."]
