"""Hundreds of seeds, each a small world in which everything goes wrong.

Layer: tests.

A seed that fails prints its story and how to run it again; `make sim SEEDS=10000` runs more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from simulation import World
from simulation.__main__ import main
from simulation.world import Plan
from tests.simulation.mutants import deliver_before_the_commit
from tests.simulation.story import story

BLOCK = 40
BLOCKS = 5  # some 13 seeds a second on one core of a slow machine


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_happens_what_must_hold_holds(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        report = World(seed).run()
        assert report.violation is None, story(report)


# Of these it was once said that the hub was wrong, and it was not.
FALSE_ALARMS = (
    702305,  # a power cut left a turn that somebody had; nobody waited for its end
    703199,  # an agent's line broke while it asked, and it asked again on another
    70223,  # the server signalled that nobody listens, which is no whisper
)


# Of these it was right, and the hub was mended.
FOUND = (
    60031,  # the stream of one answer said its end, and it had been taken over in the same batch
    820092,
    900466,  # a command whose id was used again in the channel's next log
)


@pytest.mark.parametrize("seed", [*FALSE_ALARMS, *FOUND])
def test_what_was_found_once_is_found_no_more(seed: int) -> None:
    plan = Plan.drawn(seed)
    plan.hooks, plan.asks_by_socket, plan.is_hasty = [], False, False  # came later: without them it does what it did
    report = World(seed, plan).run()
    assert report.violation is None, story(report, is_as_drawn=False)


# Of hooks, which are in these worlds: the hub was mended.
FOUND_OF_HOOKS = (
    1100653,  # one began while the hub closed, and would have kept it from its end for as long as it failed
)


@pytest.mark.parametrize("seed", FOUND_OF_HOOKS)
def test_what_hooks_did_once_they_do_no_more(seed: int) -> None:
    plan = Plan.drawn(seed)
    plan.is_hasty = False
    report = World(seed, plan).run()
    assert report.violation is None, story(report, is_as_drawn=False)


@pytest.mark.parametrize("seed", [58, 147])
def test_a_hook_of_a_running_hub_is_told_what_a_channel_begins_with(seed: int) -> None:
    plan = Plan.drawn(seed)
    plan.is_hasty = False
    plan.hooks = [replace(hook, late_chance=1.0) for hook in plan.hooks]  # while a request is looked at that begins it
    plan.fault_model.latency_s, plan.fault_model.store_s = (0.0002, 0.3), (0.01, 0.2)
    report = World(seed, plan).run()
    assert report.violation is None, story(report, is_as_drawn=False)


DIGESTS = """
import sys
from simulation import World
print([World(seed).run().digest for seed in range(int(sys.argv[1]))])
"""


def digests(seeds: int, hash_seed: str) -> str:
    """What happened in the first seeds, as another process sees it."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-c", DIGESTS, str(seeds)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_a_seed_does_the_same_in_every_process() -> None:
    assert digests(30, "1") == digests(30, "2")


@pytest.mark.filterwarnings("ignore")
def test_a_seed_that_fails_fails_again_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver_before_the_commit(monkeypatch)
    first, second = World(0).run(), World(0).run()
    assert first.violation is not None
    assert (str(first.violation), first.digest) == (str(second.violation), second.digest)


def test_no_seed_is_idle() -> None:
    reports = [World(seed).run() for seed in range(20)]
    assert min(report.events for report in reports) > 20
    assert sum(report.events for report in reports) > 2_000


def test_the_command_says_how_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "2", "--start", "5"]) == 0
    assert "2 seeds from 5: 0 failed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_command_tells_the_story_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver_before_the_commit(monkeypatch)
    assert main(["--seeds", "5", "--failures", "1"]) == 1
    told = capsys.readouterr().out
    assert "VIOLATION" in told
    assert "again: python -m simulation --start 0 --seeds 1" in told
    assert "1 seeds from 0: 1 failed [0]" in told
