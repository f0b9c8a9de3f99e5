"""The written answers: each has the form that the page shows off, its code runs, and every offset has its rest.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto import Hub
from tenuto.demo.guide import (
    ASKS_TO_DELETE,
    FASTEST_S,
    LONGEST_S,
    THINKING_S,
    Deletion,
    Settled,
    Steering,
    WrittenAnswer,
    paced,
    whole,
    written_answer,
    written_answers,
)

CODE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_of(one: WrittenAnswer) -> list[str]:
    return [text for language, text in CODE.findall(one.text) if language == "python"]


def by_word(word: str) -> WrittenAnswer:
    return next(one for one in written_answers() if word in one.question)


def text_in(stream: str) -> str:
    """Return the text of the events of a stream, however it was cut."""
    return "".join(map(json.loads, re.findall(r"^event: answer\ndata: (.*)$", stream, re.MULTILINE)))


def run(source: str) -> dict[str, Any]:
    """Run a block of code as a program, and return its names."""
    names: dict[str, Any] = {"__name__": "answer"}
    exec(compile(source, "answer.py", "exec"), names)
    return names


def test_there_are_nine_answers_to_nine_questions() -> None:
    assert len({one.question for one in written_answers()}) == 9
    assert "F5" in written_answers()[0].question


def test_figures_are_those_of_the_benchmarks() -> None:
    page = Path("docs/benchmarks.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|", page, re.MULTILINE))
    sources = "".join(file.read_text() for file in Path("tenuto/demo/answers").glob("*.md"))
    quoted = re.findall(r"\[\[(.+?): ([^:\]]+)\]\]", sources)
    assert len(quoted) >= 10
    for row, figure in quoted:
        assert re.sub(r" \([^()]*\)", "", rows[row]).strip("* ") == figure, row
    assert "| memory of an idle viewer, SSE | 1" in by_word("cost").text


async def test_the_code_of_each_answer_runs() -> None:
    sources = [source for one in written_answers() for source in python_of(one)]
    assert sources
    for source in sources:
        if "asyncio.run(" in source:
            await asyncio.to_thread(run, source)
        else:
            run(source)


async def test_the_answer_about_cursors_resumes_with_exactly_the_missed_message() -> None:
    (source,) = python_of(by_word("cursor"))
    output = io.StringIO()
    with redirect_stdout(output):
        await asyncio.to_thread(run, source)
    assert output.getvalue() == "Written while you were away\n"


async def test_the_endpoint_of_the_answer_about_fastapi_joins_a_repeat() -> None:
    (source,) = python_of(by_word("FastAPI"))
    app = run(source)["app"]
    transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 50_000))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        query = {"question": "Why", "reply_id": "r1"}
        first, again = [(await http.get("/chat", params=query)).text for _ in range(2)]
    assert text_in(first) == text_in(again) == "You asked: Why "


@pytest.mark.parametrize(("word", "channel"), [("killed", "chat:1"), ("steer", "chat:1")])
async def test_the_agents_of_the_answers_answer(word: str, channel: str) -> None:
    (source,) = python_of(by_word(word))
    hub: Hub = run(source)["hub"]
    await hub.create(channel, id="q1", text="?")
    async with asyncio.timeout(60):
        async for _ in hub.subscribe(channel):
            answers = [one for one in (await hub.history(channel)).messages if one.reply_to == "q1"]
            if answers and answers[0].status == "complete":
                break
    assert answers[0].text.split()
    await hub.close()


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What happens when I press F5?", "F5"),
        ("what happens when i press f5", "F5"),
        ("What happens when I refresh?", "F5"),
        ("What is a cursor?", "cursor"),
        ("What happens when the server is killed?", "killed"),
        ("What happens when the agent is killed?", "agent"),
        ("How much does it cost?", "cost"),
        ("How do I stop an answer?", "stop"),
    ],
)
def test_a_question_in_other_words_gets_its_answer(question: str, word: str) -> None:
    assert written_answer(question) == by_word(word).text


@pytest.mark.parametrize(
    "question",
    [
        "",
        "…",
        "zebra",
        "What is a lease?",
        "How does a lease end?",
        "And what is an epoch?",
        "付着器",
        "Delete everything",
    ],
)
def test_other_questions_get_the_list_of_the_nine(question: str) -> None:
    assert written_answer(question) is None
    text = whole(question, Settled())
    assert text.startswith("I know nine answers; here they are:") or question.startswith("Delete")
    assert all(one.question in text for one in written_answers()) or question.startswith("Delete")


@pytest.mark.parametrize("question", ["hello", "Hi!", "Hey there", "good morning", "Hello, who are you?"])
def test_a_greeting_gets_a_friendly_sentence(question: str) -> None:
    assert whole(question, Settled()).startswith("Hello, and welcome!") == ("who" not in question)


# The pace and the rest -----------------------------------------------------------------------------------------


def text_of(text: str, start: int) -> str:
    return "".join(token for token, _ in paced(text, start, random.Random(1)))


@given(st.integers(0, 2_000), st.sampled_from([one.question for one in written_answers()] + ["hello", "zebra"]))
def test_stored_text_and_the_rest_make_the_whole_answer_at_every_offset(offset: int, question: str) -> None:
    text = whole(question, Settled())
    assert text[:offset] + text_of(text, offset) == text


@given(st.text(max_size=300))
def test_any_text_is_cut_into_tokens_of_a_model_and_none_is_lost(text: str) -> None:
    steps = list(paced(text, 0, random.Random(1)))
    assert "".join(token for token, _ in steps) == text
    assert all(len(token) <= 12 for token, _ in steps)


def test_each_answer_lasts_long_enough_to_be_broken() -> None:
    for one in written_answers():
        steps = list(paced(one.text, 0, random.Random(1)))
        assert steps[0] == ("", THINKING_S)
        assert 0.6 * LONGEST_S < sum(delay_s for _, delay_s in steps) < 1.6 * LONGEST_S, one.question
        assert steps[1][1] >= FASTEST_S / 2


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from(["shorter", "cursor?", "zebra", "…"])), max_size=4))
def test_steering_keeps_the_text_before_its_offset(texts: list[tuple[int, str]]) -> None:
    question, settled = written_answers()[2].question, Settled()
    for at, text in texts:
        before = whole(question, settled)
        at = min(at, len(before))
        settled = replace(settled, steering=[*settled.steering, Steering(at=at, text=text, by="Ada")])
        after = whole(question, settled)
        assert after.startswith(before[:at])
        assert f"\n\nAda says: {text}\n\n" in after[at:]


def test_steering_ends_an_open_block_of_code() -> None:
    one = written_answers()[0]
    within = one.text.index("```html") + 40
    settled = Settled(steering=[Steering(at=within, text="shorter", by="Ada")])
    assert f"{one.text[:within]}\n```\n\nAda says: shorter\n\nThat was all" in whole(one.question, settled)


def test_settled_values_survive_as_meta() -> None:
    settled = Settled(steering=[Steering(at=3, text="shorter", by="Ada")], decision=Deletion(ok=False, by="Bob"))
    for one in (Settled(), settled):
        assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(one))), Settled) == one


@pytest.mark.parametrize(
    ("question", "needs_approval"),
    [("Delete everything", True), (" please delete this", True), ("How do I delete?", False), ("deleted?", False)],
)
def test_a_request_to_delete_needs_approval(question: str, needs_approval: bool) -> None:
    assert bool(ASKS_TO_DELETE.match(question)) is needs_approval


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        (Deletion(ok=True, by="Bob", count=2), "Bob said yes. 2 messages deleted, in every window."),
        (Deletion(ok=True, by="Bob", count=1), "Bob said yes. 1 message deleted, in every window."),
        (Deletion(ok=True), "There was no message."),
        (Deletion(ok=False, by="Bob"), "Bob said no, so all messages stay."),
        (Deletion(ok=False), "No reply came in time, so all messages stay."),
    ],
)
def test_an_answer_reports_the_decision(decision: Deletion, outcome: str) -> None:
    before = whole("Delete this", Settled())
    assert whole("Delete this", Settled(decision=decision)) == before + outcome
