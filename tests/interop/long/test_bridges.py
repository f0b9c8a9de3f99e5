"""The bridges of `docs/bridges.md` with the real packages: what runs again when a try fails or the process dies.

Layer: tests.

Each scene is `python -m tests.interop.long.test_bridges SCENE FOLDER`, run again until it ends by itself: it loads an
example, breaks it once, and prints the answer. The file `calls` outlives the process; `scripts/test_interop` has the
packages.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples" / "bridges"
DIED = 9
CALLS = Path("calls")
TEMPORAL_PORT = 17_233


def played(scene: str, folder: Path, module: str = __name__) -> dict[str, Any]:
    """Run a scene until a process ends by itself; return its report, with the number of processes."""
    for number in range(1, 4):
        command = [sys.executable, "-m", module, scene, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            report = {**json.loads(done.stdout.splitlines()[-1]), "processes": number}
            print(scene, report)
            return report
        assert done.returncode == DIED, done.stderr
    raise AssertionError("the process died more than twice")


def test_pydantic_ai_runs_again_after_a_crash_and_a_break_and_its_tools_do_not(tmp_path: Path) -> None:
    report = played("pydantic_ai", tmp_path)
    assert report["answers"] == [["complete", "It is 4 degrees in Oslo. ", 2]]
    assert (report["calls"], report["processes"]) == (["look_up"], 2)


@pytest.mark.parametrize("scene", ["dbos_retry", "dbos_crash", "dbos_end"])
def test_dbos_repeats_a_step_and_the_answer_has_its_text_once(tmp_path: Path, scene: str) -> None:
    report = played(scene, tmp_path)
    is_repeated = scene != "dbos_end"
    regenerated = [["complete", "Hello world ", 0]] * (scene == "dbos_retry")
    assert report["answers"] == [*regenerated, ["complete", "Hello world ", int(is_repeated)]]
    assert report["stream"] == [*(["Hello "] if is_repeated else []), "Hello ", "world "]
    assert report["processes"] == (1 if scene == "dbos_retry" else 2)


@pytest.mark.parametrize("scene", ["temporal_retry", "temporal_crash", "temporal_end"])
def test_temporal_repeats_an_activity_and_the_answer_has_its_text_once(
    tmp_path: Path, temporal_server: None, scene: str
) -> None:
    report = played(scene, tmp_path)
    is_repeated = scene != "temporal_end"
    assert report["answers"] == [["complete", "Hello world ", int(is_repeated)]]
    assert report["calls"] == (["model", "model"] if is_repeated else ["model"])
    assert report["processes"] == (1 if scene == "temporal_retry" else 2)


@pytest.fixture
def temporal_server() -> Iterator[None]:
    """Run Temporal's development server; its program is that of `TENUTO_TEMPORAL`."""
    program = os.environ.get("TENUTO_TEMPORAL")
    if program is None:
        pytest.skip("set TENUTO_TEMPORAL to the program of Temporal's CLI")
    command = [program, "server", "start-dev", "--headless", "--log-level", "error", "--port", str(TEMPORAL_PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any(line.startswith("Server:") for line in server.stdout)  # it listens
            yield
        finally:
            server.kill()


@pytest.mark.parametrize(("behind", "superseded"), [("search", 0), ("remember", 1)])
def test_langgraph_does_a_nodes_work_once_as_a_step_and_writes_its_answer(
    tmp_path: Path, behind: str, superseded: int
) -> None:
    report = played(f"langgraph_{behind}", tmp_path)
    assert report["answers"] == [["complete", "I found 3 pages about it.", superseded]]
    assert (report["calls"], report["processes"]) == (["look_up", "note"], 2)


def test_langgraph_runs_a_task_again_that_had_just_returned(tmp_path: Path) -> None:
    report = played("langgraph_task", tmp_path)
    assert (report["calls"], report["processes"]) == (["look_up", "look_up"], 2)


def test_programs_of_the_page_are_those_of_the_examples() -> None:
    programs = "".join(path.read_text() for path in EXAMPLES.glob("*.py"))
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (EXAMPLES.parents[1] / "docs" / "bridges.md").read_text(), re.M | re.S
    )
    assert blocks
    assert [block for block in blocks if block not in programs] == []


# -- the scenes, in processes of their own ---------------------------------------------------------------------------


def note(call: str) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"{call}\n")


def calls() -> list[str]:
    return CALLS.read_text().split() if CALLS.exists() else []


def counted(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any) -> Any:
        note(function.__name__)
        return await function(*arguments)

    return call


def is_first(what: str) -> bool:
    """Return True once in all processes of the scene."""
    with suppress(FileExistsError):
        Path(what).touch(exist_ok=False)
        return True
    return False


async def answers_of(program: Any, *, rounds: int = 1) -> list[tuple[str, str, int]]:
    """Ask a question, unless an earlier process has, and wait for complete answers, each but the first regenerated.

    Return status, text and number of superseded attempts of each answer.
    """
    hub = program.hub
    await hub.start()
    if is_first("asked"):
        await hub.create("chat:1", text="it", author="ann", id="q1")
    async with asyncio.timeout(60.0), aclosing(hub.subscribe("chat:1", history=10).batches()) as batches:
        async for _ in batches:
            page = await hub.history("chat:1")
            answers = [
                (one.status, one.text, sum(part["type"] == "attempt" for part in one.parts))
                for one in page.messages
                if one.reply_to == "q1"
            ]
            if (count := sum(status == "complete" for status, _, _ in answers)) == rounds:
                break
            if count and is_first("regenerated"):
                await hub.command("chat:1", "regenerate", target="q1")
    await hub.close()
    return answers


async def pydantic_ai(program: Any) -> dict[str, Any]:
    model, program.look_up = program.model, counted(program.look_up)

    async def dies(messages: Any, info: Any) -> Any:
        async for piece in model(messages, info):
            yield piece
            if isinstance(piece, str) and is_first("died"):
                await asyncio.sleep(0.2)  # some text is stored
                os._exit(DIED)
            if isinstance(piece, str) and is_first("broken"):
                await asyncio.sleep(0.2)
                raise ConnectionError("the model broke")

    with program.agent.override(model=program.FunctionModel(stream_function=dies)):
        return {"answers": await answers_of(program), "calls": calls()}


def break_model(program: Any, dies: str | None, said: Callable[[str], Awaitable[None]]) -> None:
    """Let the model break once, or the process die in it or when the workflow has ended, and the answer not yet."""

    async def model(question: str) -> Any:
        for word in ("Hello ", "world "):
            await said(word)
            yield word
            if dies != "end" and is_first("broken"):
                await asyncio.sleep(0.2)  # the text is stored
                os._exit(DIED) if dies == "model" else None
                raise ConnectionError("the model broke")

    end = program.MessageWriter.__aexit__

    async def ended(*arguments: Any) -> Any:
        os._exit(DIED) if dies == "end" and is_first("died") else None
        return await end(*arguments)

    program.model, program.MessageWriter.__aexit__ = model, ended


async def dbos(program: Any, *, dies: str | None) -> dict[str, Any]:
    """Write each token into the message and into a stream of DBOS."""
    break_model(program, dies, partial(program.DBOS.write_stream_async, "tokens"))
    async with program.running(program.app):
        answers = await answers_of(program, rounds=2 if dies is None else 1)
        first, *_ = await program.DBOS.list_workflows_async()
        tokens = [one async for one in program.DBOS.read_stream_async(first.workflow_id, "tokens")]
        return {"answers": answers, "stream": tokens}


async def langgraph(program: Any, *, behind: str) -> dict[str, Any]:
    """Let the process die just after a step."""
    program.look_up, program.note = counted(program.look_up), counted(program.note)
    step = program.Turn.step

    async def dies(turn: Any, name: str, *arguments: Any) -> Any:
        result = await step(turn, name, *arguments)
        os._exit(DIED) if name == behind and is_first("died") else None
        return result

    program.Turn.step = dies
    return {"answers": await answers_of(program), "calls": calls()}


async def langgraph_task(program: Any) -> dict[str, Any]:
    """Let the process die just after a task of LangGraph's own, with its safest setting."""
    functions = import_module("langgraph.func")
    look_up = functions.task(counted(program.look_up))

    async def answer(question: str) -> str:
        found = await look_up(question)
        os._exit(DIED) if is_first("died") else None
        return str(found)

    async with program.AsyncSqliteSaver.from_conn_string("tasks.db") as checkpoints:
        runnable, thread = functions.entrypoint(checkpointer=checkpoints)(answer), {"configurable": {"thread_id": "q1"}}
        given = "it" if await checkpoints.aget(thread) is None else None  # a run that was killed may have none
        return {"answers": await runnable.ainvoke(given, thread, durability="sync"), "calls": calls()}


async def temporal(program: Any, *, dies: str | None) -> dict[str, Any]:
    """Break the model, or let the process die in it or before the answer ends."""
    program.SERVER = f"127.0.0.1:{TEMPORAL_PORT}"

    async def said(word: str) -> None:
        note("model") if word == "Hello " else None

    break_model(program, dies, said)
    async with program.running(program.app):
        return {"answers": await answers_of(program), "calls": calls()}


SCENES: dict[str, tuple[str, Callable[[Any], Awaitable[dict[str, Any]]]]] = {
    "pydantic_ai": ("pydantic_ai_steps", pydantic_ai),
    "dbos_retry": ("dbos_answer", partial(dbos, dies=None)),
    "dbos_crash": ("dbos_answer", partial(dbos, dies="model")),
    "dbos_end": ("dbos_answer", partial(dbos, dies="end")),
    "temporal_retry": ("temporal_answer", partial(temporal, dies=None)),
    "temporal_crash": ("temporal_answer", partial(temporal, dies="model")),
    "temporal_end": ("temporal_answer", partial(temporal, dies="end")),
    "langgraph_search": ("langgraph_steps", partial(langgraph, behind="search")),
    "langgraph_task": ("langgraph_steps", langgraph_task),
    "langgraph_remember": ("langgraph_steps", partial(langgraph, behind="remember")),
}

if __name__ == "__main__":
    example, play = SCENES[sys.argv[1]]
    os.chdir(sys.argv[2])
    sys.path.insert(0, str(EXAMPLES))
    print(json.dumps(asyncio.run(play(import_module(example)))), flush=True)
    os._exit(0)  # threads of Temporal's SDK disturb the interpreter at its end
