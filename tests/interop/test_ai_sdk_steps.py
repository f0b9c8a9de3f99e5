"""The chunks of a turn for each order of events: the messages that a page builds equal the loaded ones."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from starlette.responses import JSONResponse

from tenuto.core.deltas import MessageContinued, MessageProgress, TurnProgress
from tenuto.core.model import Command, Message
from tenuto.interop.adapter import output_part
from tenuto.interop.agui import AGUIStream
from tenuto.interop.ai_sdk import PageParts, Release, UIStream, ui_messages
from tenuto.interop.fold import TurnFold
from tenuto.routes import (
    InAnswer,
    MessageDeleted,
    MessageFinished,
    MessageOpened,
    MessageReplaced,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    TextAdded,
    TurnChanged,
    TurnDelta,
    TurnStatus,
)

TEXT = {"type": "text", "text": "One."}
SOURCE = {"type": "source", "url": "https://example.com/"}
RELEASE = Release(version=7, browser_tools=frozenset({"place"}))
APPROVED = {"id": "q1", "approved": True, "reason": "why not"}


class FoldedPage:
    """A page of the AI SDK as a fold of chunks. `take` raises AssertionError for a chunk at which the client fails."""

    def __init__(self, parts: list[Any] | None = None) -> None:
        self.parts: list[Any] = parts or []
        self.calls: list[str] = []  # calls that the page was asked to run
        self.ending = ""  # type of the last chunk
        self.metadata: Any = None  # that of the last chunk
        self._texts: dict[str, Any] = {}
        self._inputs: dict[str, str] = {}

    def take(self, body: bytes) -> None:
        """Add the chunks of a response."""
        for frame in body.decode().split("\n\n"):
            if frame.startswith("data: {"):
                chunk = json.loads(frame.removeprefix("data: "))
                self.ending, self.metadata = chunk["type"], chunk.get("messageMetadata")
                self._take(chunk)

    def posts_again(self) -> bool:
        """Return whether both rules of `sendAutomaticallyWhen` send the message again."""
        step = self._step()
        own = [one for one in step if not one.get("providerExecuted")]
        outputs = {"output-available", "output-error"}
        replied = any(one["state"] == "approval-responded" for one in step)
        return (bool(own) and all(one["state"] in outputs for one in own)) or (
            replied and all(one["state"] in {*outputs, "output-denied", "approval-responded"} for one in step)
        )

    def _step(self) -> list[Any]:
        starts = [index for index, part in enumerate(self.parts) if part["type"] == "step-start"]
        return [part for part in self.parts[starts[-1] if starts else 0 :] if "toolCallId" in part]

    def _call(self, id: str) -> Any:
        return next(part for part in reversed(self.parts) if part.get("toolCallId") == id)

    def _take(self, chunk: Any) -> None:
        match chunk:
            case {"type": "start-step"}:
                self.parts.append({"type": "step-start"})
            case {"type": "reset-step"}:
                while self.parts[-1]["type"] != "step-start":
                    self.parts.pop()
                self._texts.clear()
            case {"type": "finish-step"}:
                self._texts.clear()
            case {"type": "text-start", "id": id}:
                self._texts[id] = {"type": "text", "text": "", "state": "streaming"}
                self.parts.append(self._texts[id])
            case {"type": "text-delta", "id": id, "delta": delta}:
                self._texts[id]["text"] += delta
            case {"type": "text-end", "id": id}:
                self._texts.pop(id)["state"] = "done"
            case {"type": "tool-input-start", "toolCallId": id, "toolName": name}:
                assert not [one for one in self.parts if one.get("toolCallId") == id], f"the call {id} begins again"
                self._inputs[id] = ""
                part = {"type": f"tool-{name}", "toolCallId": id, "state": "input-streaming"}
                self.parts.append(part | {"providerExecuted": True} if "providerExecuted" in chunk else part)
            case {"type": "tool-input-delta", "toolCallId": id, "inputTextDelta": delta}:
                self._inputs[id] += delta
                if self._inputs[id]:
                    assert self._call(id) in self._step(), f"the page makes another part of the input of {id}"
                    with suppress(ValueError, RecursionError):  # the page waits for the rest
                        self._call(id)["input"] = json.loads(self._inputs[id])
            case {"type": "tool-input-available", "toolCallId": id, "input": value}:
                assert self._call(id) in self._step(), f"the page makes another part of the call {id}"
                self._call(id).update(state="input-available", input=value)
                if "providerExecuted" not in chunk:
                    self.calls.append(id)
            case {"type": "tool-approval-request", "toolCallId": id, "approvalId": approval}:
                assert self._call(id).get("approval") != {"id": approval}, f"the approval {approval} is requested again"
                self._call(id).update(state="approval-requested", approval={"id": approval})
            case {"type": "tool-approval-response", "approvalId": approval}:
                (part,) = (one for one in self.parts if one.get("approval", {}).get("id") == approval)
                reply = {name: chunk[name] for name in ("approved", "reason") if name in chunk}
                part.update(state="approval-responded", approval={"id": approval, **reply})
            case {"type": "tool-output-available", "toolCallId": id, "output": output}:
                self._call(id).update(state="output-available", output=output)
            case {"type": "tool-output-denied", "toolCallId": id}:
                self._call(id).update(state="output-denied")
            case {"type": "source-url" | "file" | "data-status" | "data-question"}:
                self.parts.append(chunk)
            case _:
                assert chunk["type"] in ("start", "finish", "abort", "error"), chunk


def call(id: str, state: str, *, name: str = "weather", **fields: Any) -> Any:
    done = {"output": 7} if state == "done" else {}
    return {"type": "tool", "call": id, "name": name, "input": '{"x": 1}', "state": state, **done, **fields}


def answer(parts: list[Any], status: Any = "streaming") -> Message:
    return Message(
        id="a", role="assistant", status=status, parts=parts, created=2, version=2, created_at=0, updated_at=0
    )


def begun(parts: list[Any], status: Any = "streaming") -> list[TurnDelta]:
    """Return the deltas for a reader who comes when the answer has these parts."""
    return [InAnswer("a", delta) for delta in MessageProgress("a").begin(answer(parts, status))]


def opened(parts: list[Any], release: Release = RELEASE) -> tuple[FoldedPage, UIStream]:
    """Return a page that shows these parts of a running answer, and its stream."""
    page, stream = FoldedPage(), UIStream("u", release)
    page.take(stream.frame(begun(parts)))
    return page, stream


def asked(id: str, call: str) -> QuestionAsked:
    return QuestionAsked(Command(id=id, name="approve", target="a", data={"call": call}, expires_at=0))


def moments(events: list[tuple[int, Any]]) -> list[tuple[list[Any], TurnDelta]]:
    """Return for each event the parts before it, and its delta. An event is the value of a part, or more text."""
    parts, found = list[Any](), list[tuple[list[Any], TurnDelta]]()
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
    return [*found, ([dict(part) for part in parts], InAnswer("a", MessageFinished("complete", None, {"model": "m"})))]


def page_from(start: int, events: list[tuple[int, Any]], size: int = 1, release: Release = RELEASE) -> FoldedPage:
    """Return the page that follows the turn from before the event `start` to its end, `size` events at once."""
    steps = moments(events)
    page, stream = opened(steps[start][0], release)
    for at in range(start, len(steps), size):
        page.take(stream.frame([delta for _, delta in steps[at : at + size]]))
    page.take(stream.frame([TurnChanged("over")]))
    assert (page.ending, page.metadata) == ("finish", {"model": "m"})
    assert not page.posts_again()
    return page


def loaded(parts: list[Any], release: Release = RELEASE) -> Any:
    turn = TurnStatus(message=None, state="over", answers=[answer(parts, "complete")], questions=[], cursor="")
    return ui_messages([turn], release)[0]["parts"]


FOLLOWED: dict[str, list[tuple[int, Any]]] = {
    "text around a call": [*((0, TEXT), (1, call("c1", "called")), (1, call("c1", "done")), (0, " Two."), (2, SOURCE))],
    "parallel calls": [
        *((index, call(f"c{index}", "called")) for index in range(3)),
        *((index, call(f"c{index}", "done")) for index in (1, 0, 2)),
        *((3, TEXT), (4, call("c4", "called")), (4, call("c4", "done"))),
    ],
    "call without a result": [(0, call("c0", "called")), (1, call("c1", "done")), (2, TEXT)],
    "approved call that runs": [(0, call("c1", "called", approval=APPROVED)), (1, TEXT)],
    "approved call": [(0, call("c1", "done", approval=APPROVED)), (1, TEXT)],
    "denied call": [(0, call("c1", "denied", approval={**APPROVED, "approved": False})), (1, TEXT)],
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_page_that_follows_a_turn_from_any_moment_equals_the_loaded_messages(name: str) -> None:
    events = FOLLOWED[name]
    parts = moments(events)[-1][0]
    for start in range(len(events) + 1):
        for size in (1, 2, 3, len(events)):
            assert (start, size, page_from(start, events, size).parts) == (start, size, loaded(parts))


OWN, A, B, C = (call(id, "called", name="place" if id == "o" else "weather") for id in "oabc")
DONE = {"state": "done", "output": 7}


@pytest.mark.parametrize(
    ("steps", "events"),
    [
        ("|oac|b|", [*enumerate([OWN, A, C]), (0, OWN | DONE), (1, A | DONE), (3, B), (2, C | DONE), (3, B | DONE)]),
        ("|abt|o|", [*enumerate([A, B]), (1, B | DONE), (2, TEXT), (0, A | DONE), (3, OWN | DONE)]),
        ("|a|b|", [(0, A | DONE | {"approval": APPROVED}), (1, B | DONE)]),
    ],
)
def test_step_ends_behind_the_result_of_a_page_or_of_an_approved_call_and_before_a_call_of_the_page(
    steps: str, events: list[tuple[int, Any]]
) -> None:
    for version in (6, 7):
        page = page_from(0, events, release=Release(version, browser_tools=RELEASE.browser_tools))
        shown = ["|" if one["type"] == "step-start" else one.get("toolCallId", "t") for one in page.parts]
        assert "".join(shown) == steps


@pytest.mark.parametrize("end", ["done", "called"])
def test_batch_with_the_end_of_the_answer_makes_no_second_part_of_a_call(end: str) -> None:
    begun = [(index, {**call(f"c{index}", "input"), "input": ""}) for index in range(2)]
    events = [*begun, (1, call("c1", "done")), (2, TEXT), (0, call("c0", end)), (3, call("c3", "done"))]
    for start, size in ((start, size) for start in range(len(events) + 1) for size in (1, 2, 3, 9)):
        states = [one["state"] for one in page_from(start, events, size).parts if one.get("toolCallId") in ("c0", "c1")]
        shown = "output-available" if end == "done" else "input-available"
        assert (start, size, states) == (start, size, [shown, "output-available"])


def test_response_ends_with_a_question_in_the_batch_of_the_end_of_the_answer() -> None:
    page, stream = FoldedPage(), UIStream("u", RELEASE)
    calls = [call(f"c{index}", "called") for index in range(2)]
    page.take(stream.frame([*begun(calls), InAnswer("a", MessageFinished("failed", None, {})), asked("q", "c1")]))
    assert (stream.is_over, page.ending) == (True, "finish")


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_answer_after_a_call_whose_input_was_cut_off_is_in_a_step_of_its_own(status: Any) -> None:
    cut, place = {**call("c1", "input", name="place"), "input": ""}, call("c2", "called", name="place")
    page, stream = opened([cut])
    page.take(stream.frame([InAnswer("a", MessageFinished(status, None, {}))]))
    begins = MessageOpened(msgspec.structs.replace(answer([]), id="b")), PartOpened(0, place)
    page.take(stream.frame([*(InAnswer("b", delta) for delta in begins), asked("q", "c2")]))
    assert (page.ending, page.posts_again()) == ("finish", False)
    page.parts[-1].update(state="output-available", output=7)
    assert page.posts_again()
    answers = [answer([cut], status), msgspec.structs.replace(answer([place], "complete"), id="b")]
    turn = TurnStatus(message=None, state="over", answers=answers, questions=[], cursor="")
    types = [one["type"] for one in ui_messages([turn], RELEASE)[0]["parts"]]
    assert types == [one["type"] for one in page.parts] == ["step-start", "tool-place"] * 2


@pytest.mark.parametrize("release", [RELEASE, Release()], ids=["version 7", "default"])
def test_response_ends_with_a_question_only_when_no_other_call_of_the_step_runs(release: Release) -> None:
    page, stream = opened([], release)
    for index, state in ((0, "called"), (1, "called"), (1, "done"), (2, "called")):
        page.take(stream.frame([InAnswer("a", PartReplaced(index, call(f"c{index}", state), 0))]))
    page.take(stream.frame([asked("q1", "c2")]))
    assert not stream.is_over  # the page would never send the reply: c0 has no output
    page.take(stream.frame([InAnswer("a", PartReplaced(0, call("c0", "done"), 0))]))
    assert (stream.is_over, page.ending, page.posts_again()) == (True, "finish", False)
    page.parts[3]["state"] = "approval-responded"
    assert page.posts_again()


@pytest.mark.parametrize("name", ["weather", "place"])
@pytest.mark.parametrize("known", ['{"x"', '{"x": 1}'], ids=["beginning", "whole"])
def test_question_about_a_call_comes_with_the_whole_input(known: str, name: str) -> None:
    whole = '{"x": 1}'
    for size in (1, 2, 3, 4):
        page, stream = opened([])
        beginning = {**call("c1", "input", name=name), "input": known[:2]}
        begins = PartOpened(0, beginning), MessageFinished("interrupted", None, {}), MessageContinued()
        batches: list[TurnDelta] = [InAnswer("a", delta) for delta in begins]
        batches += [InAnswer("a", TextAdded(0, "tool", 2, known[2:])), asked("q", "c1")]
        batches.append(InAnswer("a", TextAdded(0, "tool", len(known), whole[len(known) :])))
        for at in range(0, len(batches), size):
            page.take(stream.frame(batches[at : at + size]))
        if not stream.is_over:
            page.take(stream.frame([InAnswer("a", PartReplaced(0, call("c1", "called", name=name), 0))]))
        assert (stream.is_over, page.ending, page.parts[1]["input"]) == (True, "finish", {"x": 1})
        assert (page.parts[1]["state"], page.calls) == ("approval-requested", ["c1"] if name == "place" else [])


def test_question_about_a_call_without_arguments_reaches_the_page() -> None:
    page = FoldedPage()
    page.take(UIStream("u", RELEASE).frame([*begun([{**call("c1", "input"), "input": ""}]), asked("q", "c1")]))
    assert (page.ending, page.parts[1]["state"], page.parts[1]["input"]) == ("finish", "approval-requested", {})


@pytest.mark.parametrize("state", ["called", "done", "denied"])
def test_page_of_version_6_resumes_after_an_approval_on_a_server_with_the_default(state: str) -> None:
    body = UIStream("u").frame(begun([call("c1", state, approval={"id": "q1", "approved": state != "denied"})]))
    assert b"tool-input-start" in body
    assert b"tool-approval-response" not in body  # 6.0.326 refuses the chunk


def test_loaded_call_has_the_reply_to_its_approval_but_for_version_5() -> None:
    parts = [call("c1", "done", approval=APPROVED)]
    assert loaded(parts)[1]["approval"] == APPROVED
    assert loaded(parts, Release(version=5))[1].get("approval") is None


def test_loaded_call_has_the_result_that_another_client_has_sent_after_its_turn() -> None:
    calls = [call(f"c{index}", "called", name="place") for index in range(3)]
    results = [output_part("c0", "Ulm"), output_part("c1", "lost", error="lost")]
    question = msgspec.structs.replace(answer(results, "complete"), id="v", role="user")
    asked = TurnStatus(message=None, state="over", answers=[answer(calls, "complete")], questions=[], cursor="")
    shown = ui_messages([asked, msgspec.structs.replace(asked, message=question, answers=[])], RELEASE)[0]["parts"][1:]
    states = [(one["state"], one.get("output", one.get("errorText"))) for one in shown]
    assert states == [("output-available", "Ulm"), ("output-error", "lost"), ("input-available", None)]


def test_reply_that_a_page_repeats_while_another_question_is_open_ends_with_an_error() -> None:
    page = FoldedPage()

    def respond(state: str, *questions: str, is_late: bool = False) -> None:
        parts = [call("c1", state, name="place"), call("c2", "called")]
        stream = UIStream("u", RELEASE, {"id": "a", "parts": page.parts} if page.parts else None, is_late=is_late)
        page.take(stream.frame([*begun(parts), *(asked(id, id) for id in questions)]))

    respond("called", "c1", "c2")
    page.parts[1].update(state="output-available", output=7)
    assert page.posts_again()
    respond("done", "c2")
    assert (page.ending, page.posts_again()) == ("finish", True)
    respond("done", "c2", is_late=True)
    assert page.ending == "error"  # after which the page does not post by itself


@pytest.mark.parametrize(("approved", "ending"), [(None, "error"), (True, "finish"), (False, "error")])
def test_reply_to_an_approval_that_has_no_effect_ends_with_an_error_unless_it_is_a_repeat(
    approved: bool | None, ending: str
) -> None:
    stored = {"approval": {"id": "q1", "approved": approved}} if approved is not None else {}  # else it had expired
    reply = {"id": "q1", "approved": True}
    part = {"type": "tool-weather", "toolCallId": "c1", "state": "approval-responded", "approval": reply}
    page = FoldedPage([{"type": "step-start"}, dict(part)])
    stream = UIStream("u", RELEASE, {"id": "a", "parts": [part]}, is_late=True)
    page.take(stream.frame([*begun([call("c1", "called", **stored)], "complete"), TurnChanged("over")]))
    assert page.ending == ending


def test_page_that_loads_after_the_reply_to_its_call_does_not_run_the_call_again() -> None:
    place = call("c1", "called", name="place")
    page, stream = opened([place])
    for delta in (PartReplaced(0, {**place, "note": "seen"}, 8), PartReplaced(0, call("c1", "done", name="place"), 8)):
        page.take(stream.frame([InAnswer("a", delta)]))
    page.take(stream.frame((InAnswer("a", MessageFinished("complete", None, {})), TurnChanged("over"))))
    assert (page.calls, page.ending, page.posts_again()) == ([], "finish", False)
    assert page.parts == loaded([call("c1", "done", name="place")])


def test_attempt_that_was_replaced_stays_so_when_the_next_one_fails_without_text() -> None:
    turn = TurnFold()
    for number, parts, status in ((1, [TEXT], "interrupted"), (2, [], "failed")):
        begins = MessageOpened(msgspec.structs.replace(answer([]), id=f"a{number}", parent="u", created=number))
        for delta in (begins, *(PartOpened(0, one) for one in parts), MessageFinished(status, None, {})):
            turn.receive(InAnswer(f"a{number}", delta))
    assert [one.id for one in turn.counted()] == ["a2"]


@pytest.mark.parametrize(
    "change",
    [
        [MessageDeleted()],
        [MessageReplaced(answer([{"type": "text", "text": "another"}]), (4,))],
        [MessageContinued(), TextAdded(0, "text", 4, " More."), MessageFinished("failed", None, {})],
    ],
    ids=["deleted", "edited", "continued"],
)
def test_change_of_an_attempt_that_was_replaced_changes_no_stream(change: list[Any]) -> None:
    for stream, end in ((UIStream("u", RELEASE), b'"finish"'), (AGUIStream("1", "r", "u"), b"RUN_FINISHED")):
        begins: list[TurnDelta] = []
        for created, (id, status) in enumerate((("a", "interrupted"), ("b", "streaming"))):
            head = msgspec.structs.replace(answer([]), id=id, parent="u", created=created)
            deltas = [MessageOpened(head), PartOpened(0, TEXT), MessageFinished(status, None, {})]
            begins += [InAnswer(id, one) for one in deltas[: 3 if id == "a" else 2]]
        assert stream.frame(begins).count(b'"delta":') == 1  # of the second attempt
        assert stream.frame([InAnswer("a", one) for one in change]) == b""
        ends = TextAdded(0, "text", 4, " Two."), MessageFinished("complete", None, {})
        rest = stream.frame([*(InAnswer("b", one) for one in ends), TurnChanged("over")])
        assert (rest.count(b'"delta":" Two."'), rest.count(end)) == (1, 1)


def test_page_that_continues_over_a_text_that_was_replaced_gets_an_error_and_no_mixture() -> None:
    page = FoldedPage([{"type": "step-start"}, {"type": "text", "text": "Hello ", "state": "done"}])
    shown = {"id": "a", "role": "assistant", "parts": [dict(one) for one in page.parts]}
    replaced = [TEXT, call("c1", "done", approval=APPROVED)]
    stream = UIStream("u", RELEASE, shown)
    page.take(stream.frame([*begun(replaced, "complete"), TurnChanged("over")]))
    assert (page.ending, page.parts, stream.is_over) == ("error", shown["parts"], True)


def test_page_that_loads_or_joins_after_the_new_attempt_began_shows_it_alone_under_the_same_id() -> None:
    first, second = (
        msgspec.structs.replace(answer(parts, status), id=id, reply_to="u", parent="u", created=at)
        for at, id, parts, status in ((0, "a", [TEXT], "interrupted"), (1, "b", [TEXT, SOURCE], "complete"))
    )
    question = msgspec.structs.replace(first, id="u", role="user", status="complete", reply_to=None, parent=None)
    status = TurnStatus(message=question, state="over", answers=[first, second], questions=[], cursor="")
    _, message = ui_messages([status], RELEASE)
    page, stream = FoldedPage(), UIStream("u", RELEASE)
    body = stream.frame(TurnProgress("u").begin(status))
    page.take(body)
    assert message["id"] == "a"
    assert b'"messageId":"a"' in body
    assert page.parts == message["parts"]
    assert [one.get("text") for one in page.parts] == [None, "One.", None]
    parts = [dict(one) for one in page.parts]
    for earlier, ending in (([], "finish"), ([{**page.parts[1], "text": "One"}], "error")):
        shown = {"id": "a", "role": "assistant", "parts": [*earlier, *parts]}
        page.take(UIStream("u", RELEASE, shown).frame(TurnProgress("u").begin(status)))
        assert page.ending == ending  # a page that shows the first attempt as well has to load
    assert [one for one in page.parts if one["type"] == "text"] == parts[1:2]


@pytest.mark.parametrize("are_written_first", [True, False], ids=["after the parts", "with the parts"])
def test_page_that_loads_before_the_question_about_its_call_runs_the_call_once(are_written_first: bool) -> None:
    page, stream = FoldedPage(), UIStream("u", RELEASE)
    parts = [call(f"c{index}", "called", name="place") for index in range(2)]
    for deltas in [begun(parts), [asked("q", "c0")]] if are_written_first else [[*begun(parts), asked("q", "c0")]]:
        page.take(stream.frame(deltas))
    assert (page.calls, page.ending) == (["c0", "c1"], "finish")  # it sends no output of one call alone
    assert [one["input"] for one in page.parts[1:]] == [{"x": 1}] * 2


@pytest.mark.parametrize(
    "text",
    ['{"x": "\\ud800"}', "NaN", *("[" * levels + "]" * levels for levels in (61, 500, 960, 970, 100_000))],
    ids=["surrogate", "NaN", "61 levels", "500", "960", "970", "100,000"],
)
def test_input_that_no_response_can_carry_is_shown_as_text(text: str) -> None:
    page, part = FoldedPage(), {**call("c1", "called"), "input": text}
    beginning = begun([{**part, "state": "input", "input": ""}])
    page.take(UIStream("u", RELEASE).frame([*beginning, InAnswer("a", PartReplaced(0, part, 0))]))
    assert page.parts[1]["input"] == text
    assert json.loads(JSONResponse(loaded([part])).body)[1]["input"] == text


class CountedText(str):
    """A text that counts the code points with which it was compared."""

    compared = 0

    def startswith(self, piece: Any, start: Any = 0, end: Any = None) -> bool:
        self.compared += len(piece)
        return super().startswith(piece, start)


def test_page_with_texts_that_alternate_goes_on_after_an_approval() -> None:
    texts = [{"type": "text", "text": one} for one in ("One.", "More", " Two.", "One. Two.", "End.")]
    page = FoldedPage([{"type": "step-start"}, *texts[:3]])  # the first text went on after the second had begun
    shown = {"id": "a", "role": "assistant", "parts": [dict(one) for one in page.parts]}
    whole = begun([texts[3], texts[1], texts[4]], "complete")
    page.take(UIStream("u", RELEASE, shown).frame([*whole, TurnChanged("over")]))
    assert page.ending == "finish"
    assert [one["text"] for one in page.parts if "text" in one] == ["One.", "More", " Two.", "End."]


def test_each_piece_of_a_crafted_page_is_compared_once() -> None:
    stored = CountedText("a" * 300_000)
    pieces = [{"type": "text", "text": "a"}] * 30_000 + [{"type": "text", "text": "a" * 40_000 + "b"}] * 15
    parts = PageParts({"id": "a", "parts": pieces})
    assert parts.take_length("text", stored) == 30_000
    assert stored.compared == 30_000 + 15 * 40_001
    assert parts.untaken() == (True, False)


@pytest.mark.parametrize("parts", [[TEXT], [TEXT, call("c1", "done")], []], ids=["removed", "another type", "all"])
def test_part_that_is_removed_or_gets_another_type_ends_the_stream_with_an_error(parts: list[Any]) -> None:
    for stream in (UIStream("u", RELEASE), AGUIStream("1", "r", "u")):
        stream.frame(begun([TEXT, TEXT]))
        end = stream.frame([InAnswer("a", MessageReplaced(answer(parts), ()))])
        assert (b"load the messages again" in end, stream.is_over) == (True, True)


def test_run_that_cannot_go_on_sends_no_text_as_a_value_of_another_part() -> None:
    stream, data = AGUIStream("1", "r", "u"), {"type": "data", "name": "status", "data": "searching"}
    stream.frame(begun([data]))
    ((_, event),) = stream.receive([InAnswer("a", PartReplaced(0, TEXT, 0))])
    assert (event["type"], event["code"]) == ("RUN_ERROR", "replaced")


@pytest.mark.parametrize("release", [RELEASE, Release()], ids=["version 7", "default"])
@pytest.mark.parametrize("part", [SOURCE, TEXT, call("c1", "input", input="")], ids=["source", "text", "call"])
def test_placeholder_that_becomes_another_part_is_followed_by_it(part: Any, release: Release) -> None:
    before = begun([call("c0", "done"), {"type": "data", "name": "status", "data": "searching"}])
    becomes, shown = InAnswer("a", PartReplaced(1, part, 0)), loaded([part], release)[1]["type"]
    for batches in ([before, [becomes]], [[*before, becomes]]):
        page, stream, agui = FoldedPage(), UIStream("u", release), AGUIStream("1", "r", "u")
        for batch in batches:
            page.take(stream.frame(batch))
        assert (page.parts[-1]["type"], stream.is_over) == (shown, False)
        for batch in batches:
            agui.frame(batch)
        # a placeholder that was sent has no place in the run for events of a text or a call
        assert agui.is_over == (len(batches) > 1 and part is not SOURCE)


@pytest.mark.parametrize("kind", ["text", "tool"])
def test_part_that_no_reader_has_may_become_another_one(kind: str) -> None:
    opened = PartOpened(0, TEXT if kind == "text" else call("c1", "input"))
    for stream in (UIStream("u", RELEASE), AGUIStream("1", "r", "u")):
        batch = MessageOpened(answer([])), opened, PartReplaced(0, SOURCE, 0)
        assert b"example.com" in stream.frame([InAnswer("a", one) for one in batch])
        assert not stream.is_over


@pytest.mark.parametrize("version", [6, 7])
def test_attempt_that_is_superseded_leaves_the_page_with_what_counts(version: int) -> None:
    release = Release(version=version)
    first, lost, last = TEXT, {"type": "text", "text": "Lost"}, {"type": "text", "text": "Two."}
    page, stream = opened([first, lost], release)
    attempt = {"type": "attempt", "parts": [lost], "characters": 4}
    more = TextAdded(0, "text", 4, " More."), TextAdded(2, "text", 4, " Th")  # at once with the attempt
    deltas = MessageReplaced(answer([first, attempt, last]), (), is_superseded=True), *more
    page.take(stream.frame([InAnswer("a", delta) for delta in deltas]))
    if version < 7:  # the page resumes, and builds the message anew
        assert (page.ending, stream.is_over) == ("error", True)
        assert "Two." not in str(page.parts)
        page, stream = opened([{**first, "text": "One. More."}, attempt, {**last, "text": "Two. Th"}], release)
    page.take(stream.frame([InAnswer("a", TextAdded(2, "text", 7, "ree."))]))
    page.take(stream.frame([InAnswer("a", MessageFinished("complete", None, {})), TurnChanged("over")]))
    assert [one.get("text") for one in page.parts] == [None, "One. More.", "Two. Three."]


def test_question_that_is_open_before_the_next_attempt_calls_its_tool_becomes_the_approval_of_the_call() -> None:
    page, stream = opened([{"type": "attempt", "parts": [call("c1", "called")], "characters": 0}])
    page.take(stream.frame([asked("q1", "c1")]) + stream.frame([InAnswer("a", PartOpened(1, call("c1", "called")))]))
    assert (stream.is_over, page.parts[-1]["approval"]) == (True, {"id": "q1"})
