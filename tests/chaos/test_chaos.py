"""A failed scenario leaves its files and no process. `make test-long` runs each scenario.

Layer: tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proof.chaos.processes import Child, Failure, free_port
from proof.chaos.scenarios import SCENARIOS, run
from proof.chaos.world import Scale, World

LONG = (Path(__file__).parents[2] / "scripts" / "test_long").read_text()


async def test_failed_run_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Child] = []
    spawn = Child.spawn

    async def note_and_spawn(self: Child) -> None:
        children.append(self)
        await spawn(self)

    async def broken(world: World) -> None:
        raise Failure("on purpose")

    monkeypatch.setattr(Child, "spawn", note_and_spawn)
    monkeypatch.setattr(World, "check_stored", broken)
    with pytest.raises(Failure, match="on purpose") as failed:
        await run("kill", 1, Scale.small(1))
    assert len(children) > 3
    assert not any(child.is_running for child in children)
    kept = Path(failed.value.account.partition("-- kept in ")[2].split("\n")[0])
    assert (kept / "chaos.db").exists()
    shutil.rmtree(kept)


def test_long_tests_run_each_scenario() -> None:
    (step,) = re.findall(r"'real processes under faults'.*?chaos --rounds", LONG, re.DOTALL)
    assert {name for name in SCENARIOS if re.search(rf"\b{name}\b", step)} == SCENARIOS.keys()


def test_port_of_a_process_is_given_to_no_other_one() -> None:
    code = f"from proof.chaos import processes as p; p._ports = iter([{free_port()}]); p.free_port()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "no port is free" in other.stderr
