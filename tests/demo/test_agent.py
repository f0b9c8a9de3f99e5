"""The text of the demo's answers: determined in advance, long enough, and continued from every offset.

Layer: tests.
"""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.demo.agent import (
    LONGEST_S,
    MOST_STEERING,
    SHORTEST_S,
    DeleteDecision,
    Settled,
    Steering,
    Step,
    asks_to_delete,
    continue_at,
    is_as_begun,
    plan,
    quotable,
    script,
)
from tenuto.demo.answers import ready_answers
from tenuto.demo.passages import Library

WORDS = "A lease ends unless its writer renews it. Then the message becomes interrupted, and every viewer sees it."
GUIDE = Library({"docs/guide.md": "# Guide\n\n" + "\n\n".join(f"## Lease {n}\n\n{WORDS * 4}" for n in range(40))})
# The slowest text: every token is one to three code points.
EMOJI = Library({"docs/sea.md": "# 🌊\n\n" + "\n\n".join(["🧜🏽‍♀️付着器é" * 80] * 20)})
SHORT = Library({"README.md": "# Short\n\nA single line."})
EMPTY = Library({})

seeds = st.integers(0, 2**32)
libraries = st.sampled_from([GUIDE, EMOJI, SHORT, EMPTY])
questions = st.one_of(st.sampled_from(["How does a lease end?", "付着器", "zebra"]), st.text(max_size=100))


def text_of(steps: list[Step]) -> str:
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
        "import json; from tenuto.demo.agent import script; from tenuto.demo.passages import Library;"
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
def test_stored_text_and_the_rest_make_the_whole_answer_at_every_offset(
    data: st.DataObject, seed: int, source: Library
) -> None:
    steps = script("How does a lease end?", seed, source)
    whole = text_of(steps)
    offset = data.draw(st.integers(0, len(whole)))
    rest = continue_at(steps, offset)
    assert whole[:offset] + text_of(rest) == whole
    assert rest == steps[len(steps) - len(rest) :] or rest[1:] == steps[len(steps) - len(rest) + 1 :]


@given(st.data(), seeds)
@settings(max_examples=50, deadline=None)
def test_continuing_twice_equals_continuing_once(data: st.DataObject, seed: int) -> None:
    steps = script("How does a lease end?", seed, SHORT)
    first = data.draw(st.integers(0, 400))
    second = data.draw(st.integers(0, 400))
    assert continue_at(continue_at(steps, first), second) == continue_at(steps, first + second)


def test_a_fully_stored_answer_has_no_steps_left() -> None:
    steps = script("lease", 1, GUIDE)
    assert continue_at(steps, len(text_of(steps))) == []
    assert continue_at(steps, len(text_of(steps)) + 1) == []


def test_an_answer_quotes_the_documents_with_their_names() -> None:
    text = text_of(script("How does a lease end?", 3, GUIDE))
    assert "`docs/guide.md`" in text
    assert WORDS in text


def test_an_answer_states_that_the_documents_lack_the_words() -> None:
    assert "The documentation does not contain those words" in text_of(script("zebra", 3, GUIDE))
    assert "The documentation does not contain those words" not in text_of(script("lease", 3, GUIDE))


def test_another_seed_has_another_pace() -> None:
    first, second = script("lease", 1, GUIDE), script("lease", 2, GUIDE)
    assert [step.delay_s for step in first] != [step.delay_s for step in second]


def test_the_pace_is_that_of_a_model_with_pauses() -> None:
    delays_s = sorted(step.delay_s for step in script("How does a lease end?", 1, GUIDE))
    assert 0.018 <= delays_s[len(delays_s) // 2] <= 0.022
    assert 0.3 <= delays_s[-1] <= 1.6


def test_a_quotation_has_no_relative_link_and_no_open_code() -> None:
    assert quotable("See [the protocol](protocol.md) and ![a picture](a.svg).") == "See the protocol and a picture."
    block = "```sh\nmake demo\n```"
    assert quotable(block) == block
    assert quotable("```sh\nmake demo") == block
    assert quotable("make demo\n```") == "```\nmake demo\n```"


def test_a_ready_answer_is_at_the_pace_of_the_guide_and_ends_with_its_own_text() -> None:
    one = ready_answers()[0]
    steps = script(one.question, 1)
    assert text_of(steps) == one.text
    assert SHORTEST_S - 0.001 <= duration_s(steps) <= LONGEST_S


def test_steering_ends_an_open_block_of_code() -> None:
    one = ready_answers()[0]
    within = one.text.index("```html") + 40
    settled = Settled.of("q1", one.question).with_steering([Steering(at=within, text="shorter", by="Ada")])
    assert f"{one.text[:within]}\n```\n\nAda says: shorter\n\n" in text_of(plan(one.question, settled))


# Steering and decisions ----------------------------------------------------------------------------------------


def test_settled_values_follow_from_the_question_alone_and_survive_as_meta() -> None:
    settled = Settled.of("q1", "lease", GUIDE)
    assert settled == Settled.of("q1", "lease", GUIDE)
    assert settled != Settled.of("q2", "lease", GUIDE)
    whole = replace(
        settled, steering=[Steering(at=3, text="shorter", by="Ada")], decision=DeleteDecision(ok=False, by="Bob")
    )
    for one in (settled, whole):
        assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(one))), Settled) == one


def test_an_answer_with_another_beginning_is_detected() -> None:
    settled = Settled.of("q1", "lease", GUIDE)
    assert is_as_begun("lease", settled, GUIDE)
    assert not is_as_begun("lease", settled, SHORT)
    assert not is_as_begun("zebra", settled, GUIDE)


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from(["shorter", "lease", "zebra", "…"])), max_size=4))
@settings(max_examples=20, deadline=None)
def test_steering_keeps_the_text_before_its_offset(texts: list[tuple[int, str]]) -> None:
    settled = Settled.of("q1", "How does a lease end?", GUIDE)
    for at, text in texts:
        before = text_of(plan("How does a lease end?", settled, GUIDE))
        at = min(at, len(before))
        settled = settled.with_steering([Steering(at=at, text=text, by="Ada")])
        after = text_of(plan("How does a lease end?", settled, GUIDE))
        assert after.startswith(f"{before[:at]}\n\nAda says: {text}\n\n")
        assert after.endswith("🧜🏽‍♀️)")


def test_steering_for_a_short_answer_ends_it() -> None:
    settled = Settled.of("q1", "lease", GUIDE).with_steering([Steering(at=20, text="Be brief!", by="Ada")])
    steps = continue_at(plan("lease", settled, GUIDE), 20)
    assert duration_s(steps) < 5
    longer = Settled.of("q1", "lease", GUIDE).with_steering([Steering(at=20, text="And the writer?", by="Ada")])
    assert duration_s(continue_at(plan("lease", longer, GUIDE), 20)) > 10


def test_steering_beyond_the_limit_is_ignored() -> None:
    settled = Settled.of("q1", "lease", GUIDE).with_steering(Steering(at=n, text="more", by="Ada") for n in range(100))
    assert len(settled.steering) == MOST_STEERING


@pytest.mark.parametrize(
    ("question", "needs_approval"),
    [("Delete everything", True), (" please delete this", True), ("How do I delete?", False), ("deleted?", False)],
)
def test_a_request_to_delete_needs_approval(question: str, needs_approval: bool) -> None:
    assert asks_to_delete(question) is needs_approval


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        (DeleteDecision(ok=True, by="Bob", to_delete=["a", "b"]), "Bob said yes. 2 messages deleted, in every window."),
        (DeleteDecision(ok=True, by="Bob", to_delete=["a"]), "Bob said yes. 1 message deleted, in every window."),
        (DeleteDecision(ok=True), "There was no message."),
        (DeleteDecision(ok=False, by="Bob"), "Bob said no, so all messages stay."),
        (DeleteDecision(ok=False), "No reply came in time, so all messages stay."),
    ],
)
def test_an_answer_reports_the_decision(decision: DeleteDecision, outcome: str) -> None:
    settled = Settled.of("q1", "Delete this", GUIDE)
    before = text_of(plan("Delete this", settled, GUIDE))
    assert text_of(plan("Delete this", replace(settled, decision=decision), GUIDE)) == before + outcome
