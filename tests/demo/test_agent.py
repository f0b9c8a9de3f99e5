"""What agents say: settled before it is said, long enough, and to be gone on with from anywhere."""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from holdfast.demo.agent import (
    LONGEST_S,
    MOST_SAID,
    SHORTEST_S,
    Decision,
    Said,
    Settled,
    Step,
    asks_to_delete,
    continue_at,
    is_as_begun,
    plain,
    plan,
    script,
)
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


def test_markdown_is_said_as_one_would_read_it_aloud() -> None:
    table = "| killed | what is stored |\n|---|---|\n| in 9 | `all` of **it** |"
    assert plain(table) == "killed · what is stored\nin 9 · all of it"
    assert plain("See [the protocol](protocol.md).\n\n```sh\nmake demo\n```") == "See the protocol.\n\nmake demo"


# What becomes settled while it is said ------------------------------------------------------------------------


def test_what_is_settled_follows_from_the_question_alone_and_survives_as_meta() -> None:
    settled = Settled.of("q1", "lease", GUIDE)
    assert settled == Settled.of("q1", "lease", GUIDE)
    assert settled != Settled.of("q2", "lease", GUIDE)
    whole = replace(settled, said=[Said(at=3, text="shorter", by="Ada")], decision=Decision(ok=False, by="Bob"))
    for one in (settled, whole):
        assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(one))), Settled) == one


def test_an_answer_that_would_begin_otherwise_today_is_known() -> None:
    settled = Settled.of("q1", "lease", GUIDE)
    assert is_as_begun("lease", settled, GUIDE)
    assert not is_as_begun("lease", settled, SHORT)
    assert not is_as_begun("zebra", settled, GUIDE)


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from(["shorter", "lease", "zebra", "…"])), max_size=4))
@settings(max_examples=20, deadline=None)
def test_what_people_say_changes_nothing_that_was_said_before(heard: list[tuple[int, str]]) -> None:
    settled = Settled.of("q1", "How does a lease end?", GUIDE)
    for at, text in heard:
        before = said(plan("How does a lease end?", settled, GUIDE))
        at = min(at, len(before))
        settled = settled.hear([Said(at=at, text=text, by="Ada")])
        after = said(plan("How does a lease end?", settled, GUIDE))
        assert after.startswith(f"{before[:at]}\n\nAda says: {text}\n\n")
        assert after.endswith("🧜🏽‍♀️)")


def test_whoever_wants_it_short_gets_the_end() -> None:
    settled = Settled.of("q1", "lease", GUIDE).hear([Said(at=20, text="Be brief!", by="Ada")])
    steps = continue_at(plan("lease", settled, GUIDE), 20)
    assert duration_s(steps) < 5
    longer = Settled.of("q1", "lease", GUIDE).hear([Said(at=20, text="And the writer?", by="Ada")])
    assert duration_s(continue_at(plan("lease", longer, GUIDE), 20)) > 10


def test_too_much_is_not_heard() -> None:
    settled = Settled.of("q1", "lease", GUIDE).hear(Said(at=n, text="more", by="Ada") for n in range(100))
    assert len(settled.said) == MOST_SAID


@pytest.mark.parametrize(
    ("question", "is_asked_first"),
    [("Delete everything", True), (" please delete this", True), ("How do I delete?", False), ("deleted?", False)],
)
def test_deleting_is_asked_first(question: str, is_asked_first: bool) -> None:
    assert asks_to_delete(question) is is_asked_first


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        (Decision(ok=True, by="Bob", gone=["a", "b"]), "Bob said yes. 2 messages deleted, in every window."),
        (Decision(ok=True, by="Bob", gone=["a"]), "Bob said yes. 1 message deleted, in every window."),
        (Decision(ok=True), "Nothing was there."),
        (Decision(ok=False, by="Bob"), "Bob said no, so everything stays as it is."),
        (Decision(ok=False), "Nobody answered in time, so everything stays as it is."),
    ],
)
def test_what_became_of_it_is_said(decision: Decision, outcome: str) -> None:
    asked = Settled.of("q1", "Delete this", GUIDE)
    before = said(plan("Delete this", asked, GUIDE))
    assert said(plan("Delete this", replace(asked, decision=decision), GUIDE)) == before + outcome
