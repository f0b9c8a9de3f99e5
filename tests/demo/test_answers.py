"""The written answers: each has the form that the page shows off, its code runs, and every offset has its rest.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.demo.guide import (
    ASKS_TO_DELETE,
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


def run(source: str) -> dict[str, Any]:
    """Run a block of code as a program, and return its names."""
    names: dict[str, Any] = {"__name__": "answer"}
    exec(compile(source, "answer.py", "exec"), names)
    return names


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


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What happens when I press F5?", "F5"),
        ("what happens when i refresh", "F5"),
        ("What happens when the server is killed?", "killed"),
        ("What happens when the agent is killed?", "agent"),
        ("How does a lease end?", None),
        ("付着器", None),
        ("", None),
    ],
)
def test_a_question_in_other_words_gets_its_answer_and_another_one_the_list_of_all(
    question: str, word: str | None
) -> None:
    assert written_answer(question) == (by_word(word).text if word else None)
    assert word or all(one.question in whole(question, Settled()) for one in written_answers())


# The pace and the rest -----------------------------------------------------------------------------------------


WHOLE = [whole(question, Settled()) for question in (*(one.question for one in written_answers()), "zebra")]


@given(st.one_of(st.sampled_from(WHOLE), st.text(max_size=300)), st.integers(0, 2_000))
def test_stored_text_and_the_tokens_of_the_rest_make_the_whole_answer_at_every_offset(text: str, offset: int) -> None:
    tokens = [token for token, _ in paced(text, offset, random.Random(1))]
    assert text[:offset] + "".join(tokens) == text
    assert all(len(token) <= 12 for token in tokens)


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


@pytest.mark.parametrize(
    ("question", "needs_approval"),
    [("Delete everything", True), (" please delete this", True), ("How do I delete?", False), ("deleted?", False)],
)
def test_a_request_to_delete_needs_approval(question: str, needs_approval: bool) -> None:
    assert bool(ASKS_TO_DELETE.match(question)) is needs_approval
