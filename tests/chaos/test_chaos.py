"""The report of a failed scenario, and the files and processes that it leaves. `make test-long` runs each scenario.

Layer: tests.

A failure reports its seed, the broken rule, the last events, and the folder with the files of the run.
"""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from proof.chaos.__main__ import main
from proof.chaos.processes import END_S, Child, Failure
from proof.chaos.proxies import Proxies
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


@pytest.mark.parametrize("size", [[], ["--small"]], ids=["long", "small"])
def test_command_in_a_failure_repeats_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, size: list[str]
) -> None:
    played: list[tuple[str, int, Scale]] = []

    async def play(name: str, seed: int, scale: Scale, **_: Any) -> None:
        played.append((name, seed, scale))
        async with World(name, seed, scale):
            raise Failure("on purpose")

    monkeypatch.setattr("proof.chaos.__main__.run", play)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["kill", "--seed", "7", "--rounds", "3", *size]) == 1
    again = re.search(r"-- again: python -m proof.chaos (.*)", capsys.readouterr().out)
    assert again is not None
    assert main(again[1].split()) == 1
    assert played == [("kill", 7, Scale.small(3) if size else Scale(3))] * 2


async def test_proxy_carries_bytes_while_the_loop_of_the_run_is_busy(tmp_path: Path) -> None:
    proxies = Proxies(tmp_path, print)
    await proxies.spawn()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            proxy = await proxies.add(server.getsockname()[1])
            server.settimeout(END_S)
            with socket.create_connection(("127.0.0.1", proxy.port), END_S) as client, server.accept()[0] as accepted:
                accepted.settimeout(END_S)
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"  # the loop has not run since the proxy was opened
                await proxy.do("cut")
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
    finally:
        await proxies.clean_up()


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
