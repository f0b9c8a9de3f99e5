"""OpenAI's client for Node.js, and the AI SDK's provider of OpenAI, against `OpenAI`.

`scripts/test_interop` installs them, and runs these tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from tenuto import Turn
from tenuto.interop import OpenAI
from tests.interop.scene import fails, refusing
from tests.interop.test_options import pays, stub_at
from tests.transports.conftest import new_hub, serving

FOLDER = Path(__file__).parents[1]
PACKAGE = Path(os.environ.get("TENUTO_OPENAI", "no package"))
PROVIDER = Path(os.environ.get("TENUTO_AI_SDK_OPENAI", "no package")) / "dist" / "index.js"
LINE_BYTES = 16 * 1024 * 1024
PATIENCE_S = 180.0


def node(entry: Path) -> str:
    """Return the path of Node.js, which needs the npm package."""
    found = os.environ.get("TENUTO_NODE") or shutil.which("node")
    assert found, "no Node.js: install Debian's package nodejs"
    assert entry.exists(), "scripts/test_interop installs the npm packages, and runs this test"
    return found


@asynccontextmanager
async def program(script: str, port: int, entry: Path = PACKAGE / "index.mjs", *more: str) -> AsyncIterator[Process]:
    """Run a script with the npm package, for the server at `port`."""
    command = node(entry), FOLDER / script, entry, f"http://127.0.0.1:{port}/v1", *more
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, limit=LINE_BYTES, **pipes)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


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
    async with serving(hub, refusing(app)) as served:
        for number, source in enumerate(sources):
            script = tmp_path / f"program{number}.mjs"
            script.write_text(source.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}"))
            async with program(str(script), served.port) as process:
                assert (await process.communicate())[0] == b"You said: Hello\n"


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


async def test_approval_of_generate_text_needs_no_previous_response_and_the_next_turn_has_its_call() -> None:
    async with stub_at() as stub:

        async def answer(turn: Turn) -> None:
            stub.received.append({"openai": await turn.history("openai")})
            await pays(turn, "Wait. ")

        stub.answer = answer  # type: ignore[method-assign]
        async with program("openai_ai_sdk.mjs", stub.served.port, PROVIDER, "approved") as process:
            seen = json.loads((await process.communicate())[0])
    assert seen == [
        ["Wait. ", "tool-call", "tool-approval-request"],
        ["tool-call", "tool-result", "Done: pay."],
        ["Done: again."],
    ]
    told = [(one["role"], one["content"]) for one in stub.received[1]["openai"]]
    called = [("assistant", "Wait. "), ("tool", "true")]
    assert told == [("user", "pay"), *called, ("assistant", "Done: pay."), ("user", "again")]


async def test_failure_of_stream_text_is_reported_once() -> None:
    async with stub_at() as stub:
        stub.answer = fails  # type: ignore[method-assign]
        async with program("openai_ai_sdk.mjs", stub.served.port, PROVIDER, "failed") as process:
            errors = json.loads((await process.communicate())[0])
    assert [one.partition(",")[0] for one in errors] == ["RuntimeError in scene.py"]
