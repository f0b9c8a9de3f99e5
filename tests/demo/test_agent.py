"""The agent: an answer is settled before it begins, takes its time, and can be gone on with from anywhere."""

import asyncio
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.demo.agent import LONGEST_S, SHORTEST_S, Step, answer, continue_at, fingerprint, plain, script
from holdfast.demo.passages import Library

WORDS = "A lease ends unless its writer renews it. Then the message becomes interrupted, and everybody sees it."
GUIDE = Library({"docs/guide.md": "# Guide\n\n" + "\n\n".join(f"## Lease {n}\n\n{WORDS * 4}" for n in range(40))})
# The slowest text there is: every token is one to three code points.
EMOJI = Library({"docs/sea.md": "# 🌊\n\n" + "\n\n".join(["🧜🏽‍♀️付着器é" * 80] * 20)})
SHORT = Library({"README.md": "# Short\n\nA single line."})
EMPTY = Library({})

seeds = st.integers(0, 2**32)
libraries = st.sampled_from([GUIDE, EMOJI, SHORT, EMPTY])
questions = st.one_of(st.sampled_from(["How does a lease end?", "付着器", "zebra"]), st.text(max_size=100))


class Notebook:
    """A writer that keeps what it is given."""

    def __init__(self, stored: str = "") -> None:
        self.text = stored

    @property
    def length(self) -> int:
        return len(self.text)

    async def append(self, text: str) -> None:
        self.text += text


class Clock:
    """A sleep that takes no time, and adds up."""

    def __init__(self) -> None:
        self.now_s = 0.0

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


def said(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


def duration_s(steps: list[Step]) -> float:
    return sum(step.delay_s for step in steps)


@given(questions, seeds, libraries)
@settings(max_examples=60, deadline=None)
def test_an_answer_takes_long_enough_and_not_too_long(question: str, seed: int, source: Library) -> None:
    assert SHORTEST_S - 0.001 <= duration_s(script(question, seed, source)) <= LONGEST_S


@given(questions, seeds, libraries)
@settings(max_examples=60, deadline=None)
def test_an_answer_depends_on_question_and_seed_only(question: str, seed: int, source: Library) -> None:
    assert script(question, seed, source) == script(question, seed, source)


def test_another_process_makes_the_same_script() -> None:
    program = (
        "import json; from holdfast.demo.agent import script; from holdfast.demo.passages import Library;"
        f"print(json.dumps(script('lease, writer, message?', 7, Library({{'a.md': {WORDS!r}}}))))"
    )
    other = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program],
        env={"PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
        timeout=30,
    )
    here = script("lease, writer, message?", 7, Library({"a.md": WORDS}))
    assert [Step(*step) for step in json.loads(other.stdout)] == here


@given(questions, seeds, libraries)
@settings(max_examples=60, deadline=None)
def test_tokens_are_as_long_as_those_of_a_model(question: str, seed: int, source: Library) -> None:
    assert all(1 <= len(step.text) <= 12 for step in script(question, seed, source))


@given(st.data(), seeds, libraries)
@settings(max_examples=100, deadline=None)
def test_from_every_cut_the_rest_makes_the_whole(data: st.DataObject, seed: int, source: Library) -> None:
    steps = script("How does a lease end?", seed, source)
    whole = said(steps)
    cut = data.draw(st.integers(0, len(whole)))
    rest = continue_at(steps, cut)
    assert whole[:cut] + said(rest) == whole
    assert rest == steps[len(steps) - len(rest) :] or rest[1:] == steps[len(steps) - len(rest) + 1 :]


@given(st.data(), seeds)
@settings(max_examples=50, deadline=None)
def test_going_on_twice_is_going_on_once(data: st.DataObject, seed: int) -> None:
    steps = script("How does a lease end?", seed, SHORT)
    first = data.draw(st.integers(0, 400))
    second = data.draw(st.integers(0, 400))
    assert continue_at(continue_at(steps, first), second) == continue_at(steps, first + second)


def test_nothing_is_left_of_an_answer_that_is_all_stored() -> None:
    steps = script("lease", 1, GUIDE)
    assert continue_at(steps, len(said(steps))) == []
    assert continue_at(steps, len(said(steps)) + 1) == []


def test_it_says_first_that_it_is_not_a_model() -> None:
    for source in (GUIDE, SHORT, EMPTY):
        assert said(script("lease", 1, source)).startswith("I am not a model.")


def test_what_it_says_stands_in_the_documents() -> None:
    text = said(script("How does a lease end?", 3, GUIDE))
    assert "(docs/guide.md)" in text
    assert WORDS in text


def test_it_says_so_when_it_finds_nothing() -> None:
    assert "Those words stand nowhere in it" in said(script("zebra", 3, GUIDE))
    assert "Those words stand nowhere in it" not in said(script("lease", 3, GUIDE))


def test_another_seed_has_another_pace() -> None:
    first, second = script("lease", 1, GUIDE), script("lease", 2, GUIDE)
    assert [step.delay_s for step in first] != [step.delay_s for step in second]


def test_the_pace_is_that_of_a_model_with_pauses() -> None:
    delays_s = sorted(step.delay_s for step in script("How does a lease end?", 1, GUIDE))
    assert 0.018 <= delays_s[len(delays_s) // 2] <= 0.022
    assert 0.3 <= delays_s[-1] <= 1.6


async def test_an_answer_writes_its_script_at_its_pace() -> None:
    writer, clock = Notebook(), Clock()
    await answer(writer, "lease", 5, sleep=clock.sleep, source=GUIDE)
    assert writer.text == said(script("lease", 5, GUIDE))
    assert clock.now_s == pytest.approx(duration_s(script("lease", 5, GUIDE)))


@pytest.mark.parametrize("stored", [0, 1, 17, 500, 2_000])
async def test_another_process_goes_on_where_the_first_one_died(stored: int) -> None:
    steps = script("lease", 5, GUIDE)
    writer = Notebook(said(steps)[:stored])
    await answer(writer, "lease", 5, begun_as=fingerprint(steps), sleep=Clock().sleep, source=GUIDE)
    assert writer.text == said(steps)


async def test_it_does_not_go_on_with_a_text_that_changed_meanwhile() -> None:
    begun = script("lease", 5, GUIDE)
    writer = Notebook(said(begun)[:100])
    await answer(writer, "lease", 5, begun_as=fingerprint(begun), sleep=Clock().sleep, source=SHORT)
    assert writer.text.startswith(said(begun)[:100] + "\n\nI stop here:")


async def test_a_cancelled_answer_stops_at_once() -> None:
    writer, is_under_way = Notebook(), asyncio.Event()

    async def sleep(delay_s: float) -> None:
        if writer.length > 50:
            is_under_way.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(answer(writer, "lease", 5, sleep=sleep, source=GUIDE))
    await is_under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said(script("lease", 5, GUIDE)).startswith(writer.text)


def test_markdown_is_said_as_one_would_read_it_aloud() -> None:
    table = "| killed | what is stored |\n|---|---|\n| in 9 | `all` of **it** |"
    assert plain(table) == "killed · what is stored\nin 9 · all of it"
    assert plain("See [the protocol](protocol.md).\n\n```sh\nmake demo\n```") == "See the protocol.\n\nmake demo"
