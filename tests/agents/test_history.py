"""A conversation as models take it: which messages, and in each the order of what was said and called."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast.agents.history import as_turns
from holdfast.agents.turn import Turn
from holdfast.core.model import Message, Part
from tests.agents.test_turns import new_hub, until_over
from tests.virtual import virtually


@virtually
async def test_an_earlier_question_stands_with_its_answer_though_that_came_later() -> None:
    hub = new_hub()
    seen: list[Any] = []

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        seen.append([(one["role"], one["content"]) for one in await turn.history()])
        async with turn.reply() as message:
            await asyncio.sleep(1)
            await message.append(f"re {turn.text}")

    await hub.create("chat:1", text="one")
    await hub.create("chat:1", text="two")  # while the first is being answered
    await until_over(hub, 2)
    assert seen == [[("user", "one")], [("user", "one"), ("assistant", "re one"), ("user", "two")]]
    await hub.close()


def text(value: str) -> Part:
    return {"type": "text", "text": value}


def call(name: str, output: Any = "done", **fields: Any) -> Part:
    return {"type": "tool", "call": name, "name": f"do_{name}", "input": '{"x": 1}', "output": output, **fields}


def message(role: Any, *parts: Part) -> Message:
    return Message(
        id="m", role=role, status="complete", parts=list(parts), created=1, version=1, created_at=1, updated_at=1
    )


UNANSWERED: Part = {"type": "tool", "call": "z", "name": "do_z", "input": "{}", "state": "called"}
ASKED = message("user", text("Why?"))
# Two rounds of calls, the first of them of two calls at once, with line ends around them as models write them.
WORKED = message(
    "assistant",
    {"type": "reasoning", "text": "hm"},
    text("Let me "),
    text("look. "),
    call("a"),
    text("\n"),
    call("b", {"n": 2}),
    text("And again. "),
    UNANSWERED,
    call("c"),
    text("It is so."),
)


def test_openai_has_what_was_said_before_a_call_with_it_and_what_came_after_it_after_its_result() -> None:
    def asked(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": f"do_{name}", "arguments": '{"x": 1}'}}

    assert as_turns([ASKED, WORKED], "openai") == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Let me look. ", "tool_calls": [asked("a"), asked("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
        {"role": "tool", "tool_call_id": "b", "content": '{"n": 2}'},
        {"role": "assistant", "content": "And again. ", "tool_calls": [asked("c")]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
        {"role": "assistant", "content": "It is so."},
    ]


def test_responses_has_each_thing_in_its_place() -> None:
    def done(name: str, output: str = "done") -> list[dict[str, Any]]:
        return [
            {"type": "function_call", "call_id": name, "name": f"do_{name}", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": name, "output": output},
        ]

    assert as_turns([ASKED, WORKED], "responses") == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Let me look. "},
        *done("a"),
        *done("b", '{"n": 2}'),
        {"role": "assistant", "content": "And again. "},
        *done("c"),
        {"role": "assistant", "content": "It is so."},
    ]


def test_anthropic_has_the_results_of_a_round_in_the_turn_after_it() -> None:
    def used(name: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": name, "name": f"do_{name}", "input": {"x": 1}}

    def result(name: str, output: str = "done") -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": name, "content": output}

    assert as_turns([ASKED, WORKED, message("user", text("Sure?"))], "anthropic") == [
        {"role": "user", "content": [text("Why?")]},
        {"role": "assistant", "content": [text("Let me look. "), used("a"), used("b")]},
        {"role": "user", "content": [result("a"), result("b", '{"n": 2}')]},
        {"role": "assistant", "content": [text("And again. "), used("c")]},
        {"role": "user", "content": [result("c")]},
        {"role": "assistant", "content": [text("It is so.")]},
        {"role": "user", "content": [text("Sure?")]},
    ]


@pytest.mark.parametrize("shape", ["openai", "responses", "anthropic"])
def test_a_line_end_before_a_call_is_no_text(shape: Any) -> None:
    turns = as_turns([ASKED, message("assistant", text("\n\n"), call("a"))], shape)
    assert "\\n" not in str(turns)


def test_a_person_who_called_something_said_the_text_themselves() -> None:
    turns = as_turns([message("user", text("Look: "), call("a"))], "openai")
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "Look: "),
        ("assistant", None),
        ("tool", "done"),
    ]


@pytest.mark.parametrize("shape", ["openai", "responses", "anthropic"])
def test_results_alone_carry_no_text(shape: Any) -> None:
    turns = as_turns([ASKED, message("tool", text("raw"), call("a"))], shape)
    assert "raw" not in str(turns)
    assert "done" in str(turns)
