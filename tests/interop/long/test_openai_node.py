"""OpenAI's client for Node.js, and the AI SDK's provider of OpenAI, against `OpenAI`.

`scripts/test_interop` installs them, and runs these tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from tenuto import Turn
from tenuto.interop import OpenAI
from tests.interop.test_cuts import units
from tests.interop.test_openai import ANSWER, channel_of, scene_of
from tests.interop.test_options import stub_at
from tests.transports.conftest import new_hub, serving

FOLDER = Path(__file__).parents[1]
PACKAGE = Path(os.environ.get("TENUTO_OPENAI", "no package"))
PROVIDER = Path(os.environ.get("TENUTO_AI_SDK_OPENAI", "no package")) / "dist" / "index.js"
LINE_BYTES = 16 * 1024 * 1024
PATIENCE_S = 180.0


def node(entry: Path = PACKAGE) -> str:
    """Return the path of Node.js, which needs the npm package."""
    found = os.environ.get("TENUTO_NODE") or shutil.which("node")
    assert found, "no Node.js: install Debian's package nodejs"
    assert entry.exists(), "scripts/test_interop installs the npm packages, and runs this test"
    return found


@asynccontextmanager
async def program(script: str, port: int, entry: Path = PACKAGE / "index.mjs") -> AsyncIterator[Process]:
    """Run a script with the npm package, for the server at `port`."""
    address = f"http://127.0.0.1:{port}/v1"
    command = node(entry), FOLDER / script, entry, address
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, limit=LINE_BYTES, **pipes)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_client_for_node_resumes_at_each_number() -> None:
    async with scene_of() as scene:
        scene.gate.set()
        async with program("openai_client.mjs", scene.served.port) as process:
            seen = json.loads((await process.communicate())[0])
    assert (seen["whole"], seen["chat"], seen["missing"]) == (ANSWER, ANSWER, 404)
    every = units(seen["streams"][0])
    assert [number for number, _, _ in every] == list(range(len(every)))
    assert [units(one) for one in seen["streams"]] == [every[after:] for after in range(len(every))]


async def test_programs_of_the_document_have_the_answer(tmp_path: Path) -> None:
    page = (FOLDER.parents[1] / "docs" / "openai.md").read_text()
    sources = [one for one in re.findall(r"```js\n(.*?)```", page, re.DOTALL) if 'from "openai"' in one]
    assert len(sources) == 2  # responses, and chat completions
    hub, app = new_hub(), FastAPI()
    OpenAI(hub).install(app, "/v1")

    @hub.agent("chat:*")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(f"You said: {turn.text}")

    (tmp_path / "node_modules").symlink_to(PACKAGE.parent)
    async with serving(hub, app) as served:
        for number, source in enumerate(sources):
            script = tmp_path / f"program{number}.mjs"
            script.write_text(source.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}"))
            assert await output_of(script) == b"You said: Hello\n"


async def output_of(script: Path) -> bytes:
    """Run a program of Node.js, and return its output."""
    process = await asyncio.create_subprocess_exec(node(), script, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return (await process.communicate())[0]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_chat_completion_for_node_that_is_cut_is_read_on_as_a_response() -> None:
    async with scene_of() as scene, program("openai_cut.mjs", scene.served.port) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"cut\n"
        assert scene.turns[0].replies[0].length == len("Hello ")
        scene.gate.set()
        seen = json.loads(await process.stdout.readline())
        assert (seen["content"], seen["text"], len(scene.turns)) == ("Hello ", ANSWER, 1)


class Calls:
    """Calls of the client's `responses`, several at a time, each with its events, value and error."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input: StreamWriter = process.stdin
        self._output: StreamReader = process.stdout
        self._calls: dict[str, dict[str, Any]] = {}

    def begin(self, name: str, call: str, *args: Any) -> None:
        self._calls[name] = {"events": []}
        self._input.write(json.dumps({"name": name, "call": call, "args": args}).encode() + b"\n")

    async def until(self, name: str, event_type: str = "") -> Any:
        """Return the call when it has an event of this type, or has ended."""
        call = self._calls[name]
        while "error" not in call and event_type not in [one["type"] for one in call["events"]]:
            line = json.loads(await self._output.readline())
            about = self._calls[line.pop("name")]
            if "event" in line:
                about["events"].append(line["event"])
            else:
                about.update(line)
        return call


async def test_client_for_node_sees_a_cancel_of_another_one_and_raises_for_a_failure() -> None:
    async def fails(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("One.")
            raise RuntimeError("secret")

    async with scene_of() as scene, program("openai_calls.mjs", scene.served.port) as process:
        calls, response_id = Calls(process), await scene.begin()
        calls.begin("joined", "retrieve", response_id, {"stream": True})
        await scene.served.until(lambda: scene.hub.channel(channel_of(response_id)).feeds)
        calls.begin("cancel", "cancel", response_id)
        cancelled, joined = (await calls.until("cancel"))["value"], await calls.until("joined")
        assert (cancelled["status"], cancelled["output"][-1]["content"][0]["text"]) == ("cancelled", "Hello ")
        last = joined["events"][-1]
        assert (last["type"], last["response"]["output"]) == ("response.incomplete", cancelled["output"])
        assert joined["error"] is None

        scene.script = fails  # type: ignore[method-assign]
        calls.begin("stream", "create", {"model": "bot", "input": "you", "stream": True})
        calls.begin("whole", "create", {"model": "bot", "input": "you"})
        stream, whole = await calls.until("stream"), await calls.until("whole")
        assert (stream["error"]["code"], stream["events"][-1]["type"]) == ("server_error", "response.failed")
        assert (whole["value"]["status"], whole["value"]["output_text"]) == ("failed", "One.")
        assert "secret" not in json.dumps([stream, whole])


async def test_client_for_node_continues_on_another_server_of_the_same_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hub.db"
    async with scene_of(url) as scene, program("openai_calls.mjs", scene.served.port) as process:
        calls = Calls(process)
        calls.begin("cut", "create", {"model": "bot", "input": "you", "stream": True})
        await calls.until("cut", "response.output_text.delta")
        await scene.hub.drain()
        cut = await calls.until("cut")
        assert (cut["error"]["status"], cut["events"][-1]["type"]) == (None, "response.output_text.delta")
    async with scene_of(url) as scene, program("openai_calls.mjs", scene.served.port) as process:
        calls = Calls(process)
        scene.gate.set()
        about = {"stream": True, "starting_after": cut["events"][-1]["sequence_number"]}
        calls.begin("rest", "retrieve", cut["events"][0]["response"]["id"], about)
        rest = await calls.until("rest")
    every = units([*cut["events"], *rest["events"]])
    assert [number for number, _, _ in every] == list(range(len(every)))
    assert "".join(letter for _, kind, letter in every if kind == "response.output_text.delta") == ANSWER


async def test_ai_sdk_reads_the_type_and_code_of_a_failed_response() -> None:
    async def fails(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("One.")
            raise RuntimeError("secret")

    async with scene_of() as scene, program("openai_ai_sdk_fails.mjs", scene.served.port, PROVIDER) as process:
        scene.script = fails  # type: ignore[method-assign]
        seen = json.loads((await process.communicate())[0])
    named = {"type": "server_error", "code": "server_error", "message": seen["message"], "param": None}
    assert (seen["name"], seen["error"]) == (
        "AI_APICallError",
        named,
    )  # else AI_APICallError of "Invalid JSON response"
    assert (seen["text"], seen["errors"][-1]["name"], seen["errors"][-1]["data"]["error"]) == (
        "One.",
        "AI_StreamProviderError",
        named,
    )
    assert "secret" not in json.dumps(seen)


async def test_two_turns_of_generate_text_have_the_stored_items_with_and_without_a_tool() -> None:
    async with stub_at() as stub, program("openai_ai_sdk.mjs", stub.served.port, PROVIDER) as process:
        seen = json.loads((await process.communicate())[0])
    once = "It is 7 degrees in Ulm."
    assert seen["plain"] == {
        "texts": ["It is one.", "It is two."],
        "sent": [["system", "user"], ["system", "user", "item_reference", "user"]],
    }
    call = ["function_call", "function_call_output"]
    first = ["user", *call]
    assert seen["tools"] == {
        "texts": [once, once],
        "sent": [["user"], first, [*first, "item_reference", "user"], [*first, "item_reference", "user", *call]],
    }
    turns = [[(one["role"], one["content"]) for one in got["openai"]] for got in stub.received]
    begun = [("system", "Be kind."), ("user", "one")]
    assert turns[:2] == [begun, [*begun, ("assistant", "It is one."), ("user", "two")]]
    joined = [("assistant", None), ("tool", "7 degrees in Ulm")]  # the call, and its result
    asked = [("user", "one"), *joined, ("assistant", once), ("user", "two")]
    assert turns[2:] == [asked[:1], asked[:3], asked, [*asked, *joined]]
