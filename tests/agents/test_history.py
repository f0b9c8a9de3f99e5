"""The conversation as models take it: the choice of messages, and the order of texts and calls in each."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any, get_args
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from tenuto.agents import history
from tenuto.agents.history import Shape, as_turns, path_to
from tenuto.agents.turn import Turn
from tenuto.core.model import Message, Part
from tenuto.core.turns import reply_id, reply_ids
from tests.agents.test_turns import new_hub
from tests.core.harness import ANN, SERVER, LogHarness
from tests.virtual import virtually


def text(value: str) -> Part:
    return {"type": "text", "text": value}


def call(name: str, output: Any = "done", **fields: Any) -> Part:
    return {"type": "tool", "call": name, "name": f"do_{name}", "input": '{"x": 1}', "output": output} | fields


def message(role: Any, *parts: Part) -> Message:
    return Message(
        id="m", role=role, status="complete", parts=list(parts), created=1, version=1, created_at=1, updated_at=1
    )


UNANSWERED: Part = {"type": "tool", "call": "z", "name": "do_z", "input": "{}", "state": "called"}
ASKED = message("user", text("Why?"))
# Two rounds of calls, the first of them of two calls at once, with line ends around them as models write them.
WORKED = message(
    "assistant",
    *({"type": "reasoning", "text": "hm"}, text("Let me "), text("look. "), call("a"), text("\n"), call("b", {"n": 2})),
    *(text("And again. "), UNANSWERED, call("c"), text("It is so.")),
)


def of_openai(name: str) -> dict[str, Any]:
    """Return the call `name` as Chat Completions take it."""
    return {"id": name, "type": "function", "function": {"name": f"do_{name}", "arguments": '{"x": 1}'}}


def of_responses(name: str) -> dict[str, Any]:
    """Return the call `name` as Responses take it."""
    return {"type": "function_call", "call_id": name, "name": f"do_{name}", "arguments": '{"x": 1}'}


def output_of_responses(name: str, output: str = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": output}


def of_anthropic(name: str) -> dict[str, Any]:
    """Return the call `name` as Messages take it."""
    return {"type": "tool_use", "id": name, "name": f"do_{name}", "input": {"x": 1}}


def output_of_anthropic(name: str, output: str = "done") -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": output}


def sent_later(name: str, output: Any) -> Part:
    """Return the part of a message by which a client sends the result of the call `name`."""
    return {"type": "data", "name": "function_call_output", "data": {"call_id": name, "output": output}}


def test_openai_puts_text_before_a_call_with_it_and_later_text_after_its_result() -> None:
    assert as_turns([ASKED, WORKED], "openai") == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Let me look. ", "tool_calls": [of_openai("a"), of_openai("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
        {"role": "tool", "tool_call_id": "b", "content": '{"n": 2}'},
        {"role": "assistant", "content": "And again. ", "tool_calls": [of_openai("c")]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
        {"role": "assistant", "content": "It is so."},
    ]


def test_responses_has_the_results_of_a_round_behind_its_calls() -> None:
    result = output_of_responses
    assert as_turns([ASKED, WORKED], "responses") == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Let me look. "},
        *(of_responses("a"), of_responses("b"), result("a"), result("b", '{"n": 2}')),
        {"role": "assistant", "content": "And again. "},
        *(of_responses("c"), result("c")),
        {"role": "assistant", "content": "It is so."},
    ]


def test_mark_of_a_cached_prompt_without_a_text_or_of_another_form_marks_nothing() -> None:
    mark: Part = {"type": "data", "name": "prompt_cache_breakpoint", "data": {"mode": "explicit"}}
    other = mark | {"data": {"mode": "none", "x": 1}}
    for parts in ((text("Why?"), call("a"), mark), (mark, text("Why?")), (text("Why?"), other)):
        first, *_ = as_turns([message("user", *parts)], "responses")
        assert first["content"] in ("Why?", [{"type": "input_text", "text": "Why?"}])
    assert as_turns([message("user", text("\n"), mark, call("a"))], "responses")[0]["type"] == "function_call"


def test_anthropic_puts_the_results_of_a_round_into_the_next_turn() -> None:
    used, result = of_anthropic, output_of_anthropic
    assert as_turns([ASKED, WORKED, message("user", text("Sure?"))], "anthropic") == [
        {"role": "user", "content": [text("Why?")]},
        {"role": "assistant", "content": [text("Let me look. "), used("a"), used("b")]},
        {"role": "user", "content": [result("a"), result("b", '{"n": 2}')]},
        {"role": "assistant", "content": [text("And again. "), used("c")]},
        {"role": "user", "content": [result("c")]},
        {"role": "assistant", "content": [text("It is so.")]},
        {"role": "user", "content": [text("Sure?")]},
    ]


def test_calls_before_the_first_question_reach_anthropic_behind_a_blank_one() -> None:
    blank, greeting = {"role": "user", "content": [text("[blank message]")]}, message("assistant", text("Hi. Why?"))
    assert as_turns([greeting], "anthropic") == [blank, {"role": "assistant", "content": [text("Hi. Why?")]}]
    for first in (message("assistant", call("a")), message("tool", call("a"))):
        asked, used, answered = as_turns([first, ASKED], "anthropic")
        assert (asked, [block["type"] for block in used["content"]]) == (blank, ["tool_use"])
        assert [block["type"] for block in answered["content"]] == ["tool_result", "text"]
    assert as_turns([], "anthropic") == []


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '{"a":' * 50_000, '"x"'])
def test_arguments_other_than_an_object_are_empty_for_anthropic(arguments: str) -> None:
    turns = as_turns([ASKED, message("assistant", call("a", input=arguments))], "anthropic")
    assert turns[1]["content"] == [{"type": "tool_use", "id": "a", "name": "do_a", "input": {}}]


@pytest.mark.parametrize("shape", ["openai", "responses", "anthropic"])
def test_text_of_a_tool_message_is_left_out(shape: Any) -> None:
    turns = as_turns([ASKED, message("tool", text("raw"), call("a"))], shape)
    assert "raw" not in str(turns)
    assert "done" in str(turns)


TURN = reply_id("Q2b", 2)
ANSWERED = [("Q1", None, None), ("A1", "Q1", "Q1")]


def branched(answer: str) -> list[tuple[str, str | None, str | None]]:
    """Return two questions after A1, each with its answer; Q3 follows `answer`, which is the first one's."""
    first = [("Q2b", "A1", None), (answer, "Q2b", "Q2b")]
    return [*ANSWERED, *first, ("Q2a", "A1", None), ("A2a", "Q2a", "Q2a"), ("Q3", answer, None)]


# Two answers to one question begin no branch, and neither does a question sent while an answer streams.
STRAIGHT = [*ANSWERED, ("A1b", "Q1", "Q1"), ("Q2", "A1b", None), ("Q3", "Q2", None), ("A2", "Q2", "Q2")]
STRAIGHT += [("Q4", "A2", None), ("Q5", "Q4", None)]
# Q2 was sent before the answer to Q1 began, and Q3 after that.
LATE = [("Q1", None, None), ("Q2", "Q1", None), ("A1", "Q1", "Q1"), ("Q3", "A1", None), ("A2", "Q2", "Q2")]


@pytest.mark.parametrize(
    ("messages", "deleted", "of", "path"),
    [
        ([ANSWERED[0], ("Q1b", "Q1", "Q1"), ("Q2", "Q1b", None)], None, "Q1b", ["Q1"]),
        ([ANSWERED[0], ("Q1b", "Q1", "Q1"), ("Q2", "Q1b", None)], None, "Q2", ["Q1", "Q1b"]),
        (branched(TURN), TURN, "Q3", ["Q1", "A1", "Q2b"]),
        (branched("A2b"), "A2b", "Q3", []),
        (STRAIGHT, "Q4", "Q5", ["Q1", "A1b", "Q2", "A2", "Q3"]),
        (STRAIGHT, None, "Q2", ["Q1", "A1b"]),
        ([*LATE, ("Q4", "A1", None)], None, "Q4", ["Q1", "A1"]),
        ([*LATE, ("A1b", "Q1", "Q1"), ("Q4", "A1b", None)], None, "Q4", ["Q1", "A1b"]),
        ([*LATE[:2], ("Q1b", None, None), LATE[2], ("Q4", "A1", None)], None, "Q4", ["Q1", "A1", "Q2"]),
    ],
    ids=[
        "a user message in reply to a question",
        "a question after it",
        "past a deleted answer of a turn",
        "not from a deleted message into another branch",
        "past a deleted message where nothing branches",
        "without an own answer and what came later",
        "not past it in a branch that names it",
        "not past another answer to an older question",
        "not into an edit that was sent before the answer came",
    ],
)
def test_history_is_the_path_to_a_question(
    messages: list[tuple[str, str | None, str | None]], deleted: str | None, of: str, path: list[str]
) -> None:
    """A message has its id, its parent and the message that it replies to."""
    log = LogHarness()
    for id, parent, reply_to in messages:
        role = "user" if id.startswith("Q") and id != TURN else "assistant"
        log.create(id, role=role, text=id, parent=parent, reply_to=reply_to)
    others = [log.message(id) for id, *_ in messages if id != deleted]
    assert [one.id for one in path_to(log.message(of), others)] == path


@pytest.mark.parametrize(
    ("messages", "taken"),
    [
        ([("b1", "Q1", None), ("b2", "b1", None), ("b3", "", None)], []),
        ([("b1", "Q1", None), ("c1", "Q2", None), ("c2", "", None)], ["c1", "c2"]),
        ([("note", "", None), ("c1", "", None), ("b1", None, None)], ["c1"]),
        ([("A1", "Q1", "Q1"), ("c1", "", None), ("c2", "", None)], ["c1", "c2"]),
    ],
    ids=["another branch", "beside another branch", "past a note", "past an answer that came late"],
)
@virtually
async def test_turn_takes_in_the_messages_that_follow_its_own(
    messages: list[tuple[str, str | None, str | None]], taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message has its id, its parent (empty: the newest message) and the message that it replies to."""
    hub, got = new_hub(), list[str]()
    read = Mock(side_effect=history.parents_in)  # anybody may send many messages with unknown parents
    monkeypatch.setattr("tenuto.agents.turn.parents_in", read)
    begun, arrived = asyncio.Event(), asyncio.Event()

    @hub.agent("x:*")
    async def bot(turn: Turn) -> None:
        begun.set()
        await arrived.wait()
        if turn.message.id == "Q2":
            got.extend(one.text for one in await turn.steered())
            assert await turn.steered() == []

    await hub.create("x:1", id="Q1", text="Q1", starts_turn=False)
    await hub.create("x:1", id="Q2", text="Q2")
    await begun.wait()
    for id, parent, reply_to in messages:
        role: Any = "assistant" if id in ("A1", "note") else "user"
        await hub.create("x:1", id=id, role=role, text=id, parent=UNSET if parent == "" else parent, reply_to=reply_to)
    arrived.set()
    await asyncio.sleep(60)
    assert got == taken
    assert read.call_count <= 1


def test_path_beside_messages_with_unknown_parents_hashes_each_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(message_id: str) -> Iterator[str]:
        hashed.append(message_id)
        return reply_ids(message_id)

    monkeypatch.setattr(history, "reply_ids", counted)
    older: list[Message] = []
    for number in range(40):
        for id, parent in ((f"own-{number}", f"own-{number - 1}"), (f"other-{number}", "unknown")):
            older.append(replace(ASKED, id=id, parent=parent, created=len(older) + 1))
    last = replace(ASKED, id="last", parent="own-39", created=len(older) + 1)
    assert [one.id for one in path_to(last, older)] == [f"own-{number}" for number in range(40)]
    assert len(hashed) == len({*hashed}) <= len(older)


def test_path_past_many_deleted_answers_looks_for_branches_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [replace(ASKED, id=f"q{at}", parent=f"deleted-{at}", created=at) for at in range(200)]
    looked = Mock(side_effect=history.has_branches)
    monkeypatch.setattr(history, "has_branches", looked)
    assert len(path_to(told[-1], told)) == 199
    assert looked.call_count < 10


@given(st.lists(st.tuples(st.sampled_from(("user", "assistant")), st.integers(-2, 9)), max_size=12))
def test_missing_parent_is_the_message_before_it_until_the_conversation_branches(told: list[tuple[str, int]]) -> None:
    messages = [
        replace(message(role), id=str(at), parent=str(parent) if parent < at else f"deleted-{at}", created=at)
        for at, (role, parent) in enumerate(told)
    ]
    for at, (one, parent) in enumerate(zip(messages, history._parents(messages), strict=True)):
        known = next((before for before in messages[:at] if before.id == one.parent), None)
        assert parent is (known or (messages[at - 1] if at and not history.has_branches(messages[: at + 1]) else None))


ACTIONS = ("ask", "ask", "answer", "answer", "go on", "crash", "end", "end", "note", "commit")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=24))
def test_path_without_edits_has_all_earlier_questions_and_answers_that_ended(steps: list[tuple[str, int]]) -> None:
    log = LogHarness(batches=True)
    begun: dict[str, list[str]] = {}  # ids of the answers to each question
    others: list[str] = []  # of the questions and the notes
    for number, (action, of) in enumerate(steps):
        id, question = str(number), next(iter([*begun][of:]), "")
        answers = begun.get(question, [])
        last = log.draft.message(answers[-1]) if answers else None
        is_open = last is not None and last.is_streaming
        if action in ("ask", "note"):
            log.create(id, role="user" if action == "ask" else "assistant", text=id)
            others.append(id)
            if action == "ask":
                begun[id] = []
        elif action == "answer" and question and (last is None or last.status == "interrupted"):
            log.stream(id, id, reply_to=question, parent=answers[-2] if answers[1:] else question)
            answers[max(0, len(answers) - (last is not None)) :] = [id]  # the next attempt takes the place
        elif action == "go on" and last is not None and last.status == "complete":
            log.stream(id, id, reply_to=question, parent=last.id)
            answers.append(id)
        elif action in ("crash", "end") and is_open:
            status = "interrupted" if action == "crash" else "complete"
            log.finish(answers[-1], status, generation=1, caller=SERVER if action == "crash" else ANN)
        elif action == "commit":
            log.commit()
    log.commit()
    messages = [one.message() for one in log.state.messages.values()]
    ended = {one.id for one in messages if one.status == "complete"}
    for at, question in enumerate(others):
        if question not in begun:
            continue
        path = [one.id for one in path_to(log.message(question), messages)]
        answers = [id for one in others[:at] for id in begun.get(one, ()) if id in ended]
        assert not {*others[:at], *answers} - {*path}
        assert [id for id in path if id in others] == others[:at]
        assert len(path) == len({*path})
        for one in others[:at]:  # the answers follow their question, in order
            kept = [id for id in begun.get(one, ()) if id in path]
            assert path[path.index(one) + 1 :][: len(kept)] == kept


PNG = "data:image/png;base64,iVBORw0KGgo="


def file(url: str, **fields: Any) -> Part:
    return {"type": "file", "url": url, **fields}


def test_calls_alone_belong_to_the_answer_before_and_each_answer_of_an_agent_stays_its_own() -> None:
    first, calls = message("assistant", text("One.")), message("assistant", call("a"))
    second = message("assistant", call("b"), text("Two."))
    assert [one.get("content") for one in as_turns([ASKED, first, second], "text")] == ["Why?", "One.", "Two."]
    rounds = as_turns([ASKED, *[replace(calls, reply_to="q")] * 2], "openai")
    assert [len(one.get("tool_calls", ())) for one in rounds] == [0, 1, 0, 1, 0]
    joined = message("assistant", text("One."), call("a"))
    assert as_turns([ASKED, first, calls], "openai") == as_turns([ASKED, joined], "openai")


def test_result_that_the_client_sends_later_is_joined_to_its_call_in_each_shape() -> None:
    open_call: Part = {**UNANSWERED, "call": "c1", "name": "do_c1", "input": '{"x": 1}'}
    result = sent_later("c1", {"c": 7})
    told = [message("user", text("go")), message("assistant", open_call), message("user", result, text("so?"))]
    assert as_turns(told, "openai") == [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [of_openai("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"c": 7}'},
        {"role": "user", "content": "so?"},
    ]
    assert as_turns(told, "responses")[1:3] == [of_responses("c1"), output_of_responses("c1", '{"c": 7}')]
    assert as_turns(told, "anthropic")[1:] == [
        {"role": "assistant", "content": [of_anthropic("c1")]},
        {"role": "user", "content": [output_of_anthropic("c1", '{"c": 7}'), text("so?")]},
    ]
    assert as_turns(told, "text")[1:] == [{"role": "user", "content": '[result of do_c1({"x": 1}): {"c": 7}]\nso?'}]
    # the call is no longer among the messages
    late = as_turns([told[0], told[2]], "openai")
    assert late[1] == {"role": "user", "content": '[result of call c1: {"c": 7}]\nso?'}


def test_call_that_has_ended_without_an_output_has_a_result_in_each_shape() -> None:
    told = [ASKED, message("assistant", *({**UNANSWERED, "call": one, "state": one} for one in ("done", "denied")))]
    for shape, field in (("openai", "content"), ("responses", "output")):
        assert [one[field] for one in as_turns(told, shape)[-2:]] == ["null", "denied"]
    assert [one["content"] for one in as_turns(told, "anthropic")[-1]["content"]] == ["null", "denied"]
    told.append(message("user", sent_later("done", "late")))
    assert [one["content"] for one in as_turns(told, "openai") if one["role"] == "tool"] == ["late", "denied"]


def test_result_after_another_answer_ends_the_history_with_its_call() -> None:
    between = [message("user", text("Meanwhile?")), message("assistant", text("Yes."))]
    told = [ASKED, message("assistant", text("I look."), UNANSWERED), *between, message("user", sent_later("z", "7"))]
    roles = ["user", "assistant", "user", "assistant", "assistant", "tool"]
    assert [one["role"] for one in as_turns(told, "openai")] == roles
    *_, answer, end = as_turns(told, "anthropic")
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use"]
    assert end["content"] == [output_of_anthropic("z", "7")]
    assert as_turns(told, "responses")[-1]["type"] == "function_call_output"


def test_result_of_an_id_that_repeats_is_at_the_latest_earlier_call_without_one() -> None:
    first, second, third = (message("user", sent_later("c", output)) for output in "123")
    asked: Part = {"type": "tool", "call": "c", "name": "do", "input": "{}", "state": "called"}
    turns = as_turns([ASKED, message("assistant", asked), first, message("assistant", asked), second, third], "openai")
    assert [one["content"] for one in turns if one["role"] == "tool"] == ["1", "2"]
    assert turns[-1] == {"role": "user", "content": "[result of do({}): 3]"}


@pytest.mark.parametrize("between", [[], [text("Again.")]], ids=["one round", "two rounds"])
def test_calls_of_one_answer_with_the_same_id_get_two_in_each_shape(between: list[Part]) -> None:
    told = [ASKED, message("assistant", call("c", "1"), *between, call("c", "2"), call("c_", "3"))]
    pairs = [("c", "1"), ("c_", "2"), ("c__", "3")]
    turns = as_turns(told, "openai")
    assert [call["id"] for one in turns for call in one.get("tool_calls", ())] == ["c", "c_", "c__"]
    assert [(one["tool_call_id"], one["content"]) for one in turns if one["role"] == "tool"] == pairs
    assert [(one["call_id"], one["output"]) for one in as_turns(told, "responses") if "output" in one] == pairs
    blocks = [block for one in as_turns(told, "anthropic") for block in one["content"]]
    assert [block["id"] for block in blocks if block["type"] == "tool_use"] == ["c", "c_", "c__"]
    assert [(one["tool_use_id"], one["content"]) for one in blocks if one["type"] == "tool_result"] == pairs


def test_file_of_an_answer_and_plain_text_are_shown_as_the_apis_take_them() -> None:
    drawn = [message("user", text("draw")), message("assistant", text("Here: "), file(PNG, filename="cat.png"))]
    assert as_turns(drawn, "openai")[1] == {"role": "assistant", "content": "Here: [image: cat.png]"}
    source = {"type": "text", "media_type": "text/plain", "data": "a b"}
    for url in ("data:,a%20b", "data:text/csv,a%20b", "data:application/json,a%20b"):
        (notes,) = as_turns([message("user", text("sum up"), file(url, filename="n.txt"))], "anthropic")
        assert notes["content"][1] == {"type": "document", "source": source, "title": "n.txt"}
    (spoken,) = as_turns([message("user", file("data:audio/mpeg;base64,AAA="))], "openai")
    assert spoken["content"] == [{"type": "input_audio", "input_audio": {"data": "AAA=", "format": "mp3"}}]
    assert as_turns([message("user", file(PNG, mediaType="image/*"))], "text")[0]["content"] == "[image: image/png]"


@pytest.mark.parametrize("shape", ["text", "openai", "responses", "anthropic"])
@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("http://[x", "image/png"),
        *((url, "text/plain") for url in ("http://\u2100/a", "data:text/plain;base64,\u00e9")),
        *((url, "application/pdf") for url in ("//[x", "data:application/pdf;base64,", "")),
    ],
)
def test_file_with_a_malformed_address_is_a_placeholder(shape: Any, url: str, media_type: str) -> None:
    kind = "image" if media_type == "image/png" else "file"
    for named, shown in (({}, media_type), ({"filename": "a.b"}, "a.b")):
        (turn,) = as_turns([message("user", text("see"), file(url, mediaType=media_type, **named))], shape)
        assert f"[{kind}: {shown}]" in str(turn["content"])
        assert url == "" or url not in str(turn["content"])


def test_name_of_a_file_of_unknown_type_tells_no_type_of_packed_bytes_or_of_an_image_that_openai_refuses() -> None:
    for name in ("a.csv.xz", "a.pdf.xz", "a.heic", "a.svg", "//[a.pdf"):
        shown = file("data:application/octet-stream;base64,JVBERi0=", filename=name)
        (turn,) = as_turns([message("user", shown)], "anthropic")
        assert (turn["content"] == [text(f"[file: {name}]")]) == (name != "//[a.pdf")


def test_shown_step_with_any_name_has_one_that_the_apis_accept() -> None:
    told = [message("user", text("Why?")), message("assistant", {**call("c"), "name": "page:1 of the web"})]
    shown = [str(as_turns(told, shape)) for shape in get_args(Shape) if shape != "text"]
    assert all("page_1_of_the_web" in one and "page:1" not in one for one in shown)


def test_id_of_a_call_that_openai_has_made_too_long_for_its_other_api_is_a_hash_there() -> None:
    kimi = "functions.do_" + 40 * "x" + ":3"  # Kimi K2 reads its ids
    told = [ASKED, message("assistant", *map(call, ("ws_" + 50 * "7", "short", kimi)))]
    _, answer, *results = as_turns(told, "openai")
    hashed, *kept = [one["tool_call_id"] for one in results]
    assert [one["id"] for one in answer["tool_calls"]] == [hashed, *kept]
    assert (len(hashed), kept) == (32, ["short", kimi])


def test_ids_images_and_blank_texts_that_anthropic_refuses_have_others_in_their_place() -> None:
    svg, photo = "data:image/svg+xml;base64,PHN2Zy8+", PNG.replace("png", "jpg")
    files = [file(svg, filename="a.svg"), file(photo), file("https://e.x/b", mediaType="image/*")]
    told = [message("user", *files), message("assistant", call("f:w"), call("f_w")), message("user", text(" \n"))]
    asked, used, results = as_turns(told, "anthropic")
    assert [block.get("source", block.get("text")) for block in asked["content"]] == [
        "[image: a.svg]",
        {"type": "base64", "media_type": "image/jpeg", "data": PNG.partition(",")[2]},
        {"type": "url", "url": "https://e.x/b"},
    ]
    ids = [block["id"] for block in used["content"]]
    assert [bool(re.fullmatch("[a-zA-Z0-9_-]+", id)) for id in ids] == [True, True]
    assert ids[0] != ids[1] == "f_w"
    assert [block.get("tool_use_id") for block in results["content"]] == [*ids, None]
    assert results["content"][-1] == {"type": "text", "text": "[blank message]"}
    assert as_turns([message("user", text(""))], "anthropic") == [{"role": "user", "content": results["content"][-1:]}]
    shown: Part = {"type": "data", "name": "ui", "data": 1}
    for parts in ((sent_later("z", "7"), shown), (call("y"),), (text(""), call("y"))):  # they need no blank one
        turns = as_turns([ASKED, message("assistant", UNANSWERED), message("user", *parts)], "anthropic")
        assert "[blank message]" not in str(turns)


def test_memory_for_a_path_grows_with_the_number_of_messages_alone() -> None:
    told = [replace(message("user"), id=str(at), parent=str(at - 1), created=at) for at in range(2_001)]
    peaks: list[int] = []
    for count in (500, 2_000):
        tracemalloc.start()
        assert len(path_to(told[count], told[:count])) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]
