"""The supervisor: real processes that are killed. The answer goes on word for word, and no process is left over.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenuto.demo.guide import AGENTS, written_answers
from tenuto.demo.supervisor import READY, ChildTask, _Supervisor, is_of_interest
from tenuto.server.serving import address_of, listen
from tenuto.transports.origin import SocketOwner, objection
from tests.processes import PATIENCE_S, Process, Server, text_of

CHANNEL = "demo:test"


def has_ended(pid: int) -> bool:
    """Wait until a process has ended, also one that is not a child of this process."""
    with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid)) as handle:
        return bool(select.select([handle], [], [], PATIENCE_S)[0])
    return True


def follow(demo: Server, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait like a viewer until the answer in CHANNEL `is_wanted`, through restarts of the server, and return it."""
    found: list[dict[str, Any]] = []

    def is_found() -> bool:
        _, page = demo.get(f"{demo.hub}/v1/channels/{CHANNEL}/messages")
        found[:] = [one for one in page["messages"] if one["role"] == "assistant" and is_wanted(one)]
        return bool(found)

    demo.until(is_found)
    return found[0]


def longer_than(length: int) -> Callable[[dict[str, Any]], bool]:
    return lambda message: bool(message.get("parts")) and len(text_of(message)) > length


def test_all_processes_end_with_a_killed_supervisor_and_the_next_start_continues_the_answer(demo: Server) -> None:
    question = {"id": "q1", "text": written_answers()[0].question}
    assert demo.post(f"{demo.hub}/v1/channels/{CHANNEL}/messages", question)[0] == 201
    begun = follow(demo, longer_than(30))
    end(demo, signal.SIGKILL)
    demo.start()
    later = follow(demo, longer_than(len(text_of(begun)) + 30))
    assert text_of(later).startswith(text_of(begun))
    end(demo, signal.SIGINT)
    assert "Traceback" not in demo.output


def end(demo: Server, number: signal.Signals) -> None:
    """End the supervisor with a signal, and assert that no child is left."""
    own = demo.running.pid
    children = [int(one) for one in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    assert demo.get("/demo/info")[1]["pid"] in children
    assert len(children) == 1 + len(AGENTS)
    status = demo.end(number)
    assert all(has_ended(pid) for pid in children)
    assert status == (0 if number is signal.SIGINT else -number)


def test_the_server_reads_its_task_also_if_a_name_of_an_agent_arrives_with_it(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listening:
        store, number = f"sqlite:///{tmp_path}/demo.db", listening.fileno()
        task = ChildTask(address=address_of(listening), store=store, guest_key=None, descriptor=number)
        lines = msgspec.json.encode(task) + f"\n{AGENTS[0]}\n".encode()
        command = [sys.executable, "-m", "tenuto.demo.supervisor"]
        ended = subprocess.run(command, input=lines, stdout=subprocess.PIPE, pass_fds=[number], timeout=PATIENCE_S)
    assert (ended.returncode, ended.stdout.startswith(READY)) == (0, True)


async def test_children_are_begun_again_and_only_the_first_server_makes_an_invitation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, echoed = list[ChildTask](), list[str]()
    supervisor = _Supervisor(ChildTask(address="", store="", guest_key=None), lambda link: None, echoed.append)

    async def begin(task: ChildTask) -> asyncio.subprocess.Process:
        begun.append(task)
        if len(begun) == 1:
            raise OSError("too many processes")
        if len(begun) in (2, 4):
            supervisor._ending.set()
        return await asyncio.create_subprocess_exec("echo", READY, stdin=PIPE, stdout=PIPE)

    monkeypatch.setattr("tenuto.demo.supervisor._begin", begin)
    monkeypatch.setattr("tenuto.demo.supervisor.PAUSE_S", 0.0)
    await supervisor._keep_agent(AGENTS[1])
    assert echoed == [f"Agent {AGENTS[1]} could not be started, and is tried again: too many processes"]
    supervisor._ending.clear()
    await supervisor._keep_server()
    assert [(one.agent, one.is_first) for one in begun[1:]] == [(AGENTS[1], False), ("", True), ("", False)]


async def test_agent_that_ends_without_a_server_is_named_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    echoed, has_ended = list[str](), asyncio.Event()
    supervisor = _Supervisor(ChildTask(address="", store="", guest_key=None), lambda link: None, echoed.append)

    async def begin(task: ChildTask) -> asyncio.subprocess.Process:
        command = ["true"] if task.agent else ["head", "-n", "1"]  # the server prints the first line that it gets
        child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        await (child if task.agent else has_ended).wait()
        (has_ended if task.agent else supervisor._ending).set()
        return child

    monkeypatch.setattr("tenuto.demo.supervisor._begin", begin)
    monkeypatch.setattr("tenuto.demo.supervisor.PAUSE_S", 0.0)
    supervisor._server = await asyncio.create_subprocess_exec("true")
    await supervisor._server.wait()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(supervisor._keep_server(), supervisor._keep_agent(AGENTS[0]))
    assert echoed == [AGENTS[0]]


def test_a_server_that_cannot_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    with Process(["-m", "tenuto", "demo", "--port", "0", "--store", "nonsense://"], tmp_path / "log") as process:
        assert process.wait() == 1
        assert "nonsense" in process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize(("owner", "is_shown"), [(None, False), (SocketOwner(uid=12345, inode=1), True)])
def test_connections_that_were_given_up_are_not_in_the_terminal(owner: SocketOwner | None, is_shown: bool) -> None:
    reason = objection(owner, 0)
    assert reason is not None
    line = logging.LogRecord("tenuto.transports", logging.WARNING, "", 0, "refused: %s", (reason,), None)
    assert is_of_interest(line) is is_shown


# Other machines --------------------------------------------------------------------------------------------------


def test_without_the_option_for_the_network_other_addresses_are_refused(tmp_path: Path) -> None:
    with Process(["-m", "tenuto", "demo", "--host", "192.0.2.1"], tmp_path / "log") as process:
        assert process.wait() == 1
        assert "192.0.2.1 is not a loopback address" in process.output
