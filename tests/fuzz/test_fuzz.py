"""A short run of each target finds no bug in the product, and finds each mutant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from proof.fuzz import mutate
from proof.fuzz.__main__ import TARGETS, main
from proof.fuzz.engine import CORPUS, Finding, Target, check, fuzz, read_corpus, shrink, written
from proof.fuzz.wire import complaint
from tenuto.core.errors import MethodNotAllowed
from tenuto.transports import session, sse

SEED = 1
RUNS = {
    "requests": 200,
    "frames": 200,
    "raw-http": 50,
    "raw-socket": 25,
}

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


def never_detaches(self: Any) -> None:
    pass


MUTANTS: list[tuple[str, object, str, object, str]] = [
    ("requests", MethodNotAllowed, "code", "not_this_way", "undocumented"),
    ("frames", session.Session, "_detach", detaches_without_a_reply, "replies"),
    ("requests", sse.EventStream, "close", never_detaches, "leak"),
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


class Picky:
    """A target whose only rule forbids the word "bad"."""

    name = "picky"
    cpu_s = 1.0

    def seeds(self) -> list[Any]:
        return []

    def generate(self, draw: Random) -> Any:
        return [{"a": list(range(20)), "b": "x" * 30}, {"c": ["bad word"] * 3, "d": {"e": 1}}]

    def change(self, draw: Random, old: Any, other: Any) -> Any:
        return mutate.value(draw, old, ["bad"])

    def run(self, given: Any) -> None:
        if "bad" in written(given):
            raise Finding("bad: the input holds this word")

    def close(self) -> None:
        pass


def test_finding_is_shrunk_to_the_smallest_input() -> None:
    given = Picky().generate(Random(1))
    assert written(shrink(Picky(), given, "bad")).strip() in ('"bad"', '[\n "bad"\n]')


def test_time_limit_counts_from_the_first_new_input() -> None:
    class Known(Picky):
        def seeds(self) -> list[Any]:
            return ["one", "two", "three"]

    report = fuzz(Known(), seed=SEED, seconds=0.0)
    assert (report.known, report.runs) == (3, 3)
    assert fuzz(Known(), seed=SEED, seconds=0.01).runs > 3


def test_printed_command_repeats_the_finding_from_the_corpus_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(TARGETS, "picky", Picky)
    monkeypatch.setattr("proof.fuzz.engine.CORPUS", tmp_path)
    assert main(["picky", "--runs", "3", "--seed", "1"]) == 1
    printed = capsys.readouterr().out
    [kept] = (tmp_path / "picky").iterdir()
    assert json.loads(kept.read_text()) in ("bad", ["bad"])
    name = test_corpus_input_finds_no_bug.__name__
    assert printed.startswith("seed 1\n")
    assert f"again: pytest 'tests/fuzz/test_fuzz.py::{name}[picky-{kept.stem}]'" in printed
    again = re.search(r"again: python -m proof.fuzz (.*)", printed)
    assert again is not None
    assert main(again[1].split()) == 1
    assert "picky: bad: the input holds this word" in capsys.readouterr().out
    assert [*(tmp_path / "picky").iterdir()] == [kept]
    kept.unlink()
    assert main(again[1].split()) == 0


def test_known_input_that_costs_too_much_is_a_finding() -> None:
    class Slow(Picky):
        cpu_s = 0.0

        def seeds(self) -> list[Any]:
            return [[]]

        def run(self, given: Any) -> None:
            sum(range(100_000))

    [found] = fuzz(Slow(), seed=SEED, runs=0).found
    assert found.text.startswith("slow")


# The log of a server


def test_error_in_a_servers_log_is_a_finding() -> None:
    found = complaint(b"INFO:     connection open\nTraceback (most recent call last):\n  File\nKeyError: 'ours'\n")
    assert found is not None
    assert found.startswith("KeyError")
