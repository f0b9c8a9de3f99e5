"""The ready answers: each has the form that the page shows off, and its code runs.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from contextlib import redirect_stdout
from typing import Any

import httpx2
import pytest

from tenuto import Hub
from tenuto.demo.answers import ReadyAnswer, ready_answer, ready_answers
from tenuto.demo.passages import documents

CODE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\|(?:-+\|)+$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\((https://[^\s]+)\)")


def name_of(one: ReadyAnswer) -> str:
    return one.question


def python_of(one: ReadyAnswer) -> list[str]:
    return [text for language, text in CODE.findall(one.text) if language == "python"]


def by_word(word: str) -> ReadyAnswer:
    return next(one for one in ready_answers() if word in one.question)


def text_in(stream: str) -> str:
    """Return the text of the events of a stream, however it was cut."""
    return "".join(map(json.loads, re.findall(r"^event: answer\ndata: (.*)$", stream, re.MULTILINE)))


def run(source: str) -> dict[str, Any]:
    """Run a block of code as a program, and return its names."""
    names: dict[str, Any] = {"__name__": "answer"}
    exec(compile(source, "answer.py", "exec"), names)
    return names


def test_there_are_eight_answers_to_eight_questions() -> None:
    assert len({one.question for one in ready_answers()}) == 8
    assert "F5" in ready_answers()[0].question


@pytest.mark.parametrize("one", ready_answers(), ids=name_of)
def test_an_answer_has_some_two_hundred_words_with_a_table_code_and_a_link(one: ReadyAnswer) -> None:
    assert 150 <= len(one.text.split()) <= 250
    assert len(TABLE.findall(one.text)) >= 1
    assert len(CODE.findall(one.text)) >= 1
    assert len(LINK.findall(one.text)) >= 1
    assert one.question.endswith("?")
    assert "[[" not in one.text
    assert "not measured" not in one.text  # each row that an answer names is in docs/benchmarks.md


def test_figures_are_those_of_the_benchmarks() -> None:
    page = documents()["docs/benchmarks.md"]
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in page.splitlines() if " | " in line
    }
    row = rows["memory per idle viewer of 5,000, SSE, all on one channel"]
    figure = row.partition(" (")[0].strip("*")
    assert re.fullmatch(r"[\d.,]+ KB", figure)
    assert f"| memory of an idle viewer, SSE | {figure} |" in by_word("cost").text


@pytest.mark.parametrize("one", ready_answers(), ids=name_of)
async def test_the_code_of_an_answer_runs(one: ReadyAnswer) -> None:
    for source in python_of(one):
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
    async with asyncio.timeout(20):
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
    assert ready_answer(question) == by_word(word).text


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
def test_other_questions_have_no_ready_answer(question: str) -> None:
    assert ready_answer(question) is None
