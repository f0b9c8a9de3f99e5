"""The report of a failed scenario, and the files and processes that it leaves. `make test-long` runs each scenario.

Layer: tests.

A failure reports its seed, the broken rule, the last events, and the folder with the files of the run.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from proof.chaos.processes import Child, Failure
from proof.chaos.scenarios import SCENARIOS, run
from proof.chaos.world import Scale, World

LONG = (Path(__file__).parents[2] / "scripts" / "test_long").read_text()


async def test_failure_reports_its_seed_and_keeps_the_file_and_the_logs() -> None:
    world = World("kill", 7, Scale.small(1))
    with pytest.raises(Failure) as failed:
        async with world:
            world.note("something happened")
            world.store.write_bytes(b"the file")
            await world.until(lambda: False, "a fact that never comes", timeout_s=0.01)
    account = failed.value.account
    assert "chaos kill, seed 7: waited 0 s for a fact that never comes" in account
    assert "something happened" in account
    assert f"kept in {world.folder}" in account
    assert (world.folder / "account.txt").read_text() == account
    assert world.store.read_bytes() == b"the file"
    shutil.rmtree(world.folder)


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
    assert "chaos.db" in names_in(kept)
    shutil.rmtree(kept)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_long_tests_run_each_scenario() -> None:
    (step,) = re.findall(r"'real processes under faults'.*?chaos --rounds", LONG, re.DOTALL)
    assert {name for name in SCENARIOS if re.search(rf"\b{name}\b", step)} == SCENARIOS.keys()
