"""A short run of each target finds no bug in the product, and finds each mutant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from proof.fuzz.__main__ import TARGETS
from proof.fuzz.engine import CORPUS, Target, check, fuzz, read_corpus, written
from proof.fuzz.wire import complaint
from tenuto.core.errors import MethodNotAllowed
from tenuto.transports import session, sse

SEED = 1
RUNS = {"requests": 200, "frames": 200, "raw-http": 50, "raw-socket": 25}

KEPT = [(target, name) for target in TARGETS for name, _ in read_corpus(target)]


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    """Yield one target of each kind, so that all tests share one server."""
    made = {name: make() for name, make in TARGETS.items()}
    yield made
    for target in made.values():
        target.close()


@pytest.mark.parametrize(("target", "name"), KEPT)
def test_corpus_input_finds_no_bug(targets: dict[str, Target], target: str, name: str) -> None:
    given = dict(read_corpus(target))[name]
    assert check(targets[target], given) is None


@pytest.mark.parametrize("target", TARGETS)
def test_new_inputs_find_no_bug(targets: dict[str, Target], target: str) -> None:
    report = fuzz(targets[target], seed=SEED, runs=RUNS[target], max_findings=1)
    assert [(found.text, written(found.given)) for found in report.found] == []


def test_each_folder_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= TARGETS.keys()


# Mutants


def detaches_without_a_reply(self: Any, frame: Any) -> None:
    self._attachments.leave(frame.channel)


MUTANTS: list[tuple[str, object, str, object, str]] = [
    ("requests", MethodNotAllowed, "code", "not_this_way", "undocumented"),
    ("frames", session.Session, "_detach", detaches_without_a_reply, "replies"),
    ("requests", sse.EventStream, "close", lambda self: None, "leak"),
]


@pytest.mark.parametrize(("target", "place", "name", "mistake", "kind"), MUTANTS, ids=[one[2] for one in MUTANTS])
def test_mutant_is_found(
    monkeypatch: pytest.MonkeyPatch, target: str, place: object, name: str, mistake: object, kind: str
) -> None:
    monkeypatch.setattr(place, name, mistake)
    with closing(TARGETS[target]()) as made:
        report = fuzz(made, seed=SEED, runs=300, max_findings=1)
    assert report.found
    assert report.found[0].text.startswith(kind)
    assert len(report.found[0].given.get("steps", [])) <= 3


# The log of a server


def test_error_in_a_servers_log_is_a_finding() -> None:
    found = complaint(b"INFO:     connection open\nTraceback (most recent call last):\n  File\nKeyError: 'ours'\n")
    assert found is not None
    assert found.startswith("KeyError")
