"""Programs of the documents, and the shapes of a history, pass `mypy --strict` with the real packages of the SDKs.

Layer: tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.examples.test_documented import typed_blocks

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(AGENT,) = (one for one in BLOCKS if "hub.agent" in one)

SHAPES = """
from anthropic import AsyncAnthropic
from tenuto import Hub, MessageWriter, Turn
from openai import AsyncOpenAI

hub = Hub("memory://")
openai, anthropic = AsyncOpenAI(), AsyncAnthropic()


@hub.agent("chat:*")
async def assistant(turn: Turn) -> None:
    async with turn.reply() as message:
        messages = await turn.history("openai")
        await message.pipe(await openai.chat.completions.create(model="m", messages=messages, stream=True))
        await message.pipe(
            await openai.chat.completions.create(model="m", messages=await turn.history(), stream=True)
        )
        items = await turn.history("responses")
        await message.pipe(await openai.responses.create(model="m", input=items, stream=True))
        turns = await turn.history("anthropic")
        await message.pipe(await anthropic.messages.create(model="m", max_tokens=9, messages=turns, stream=True))
        async with anthropic.messages.stream(model="m", max_tokens=9, messages=turns) as stream:
            await message.pipe(stream)
        async with message.attempt():
            piped = await message.pipe(
                lambda: openai.responses.create(model="m", input=items, stream=True), retries=3, stall_s=60
            )
        await turn.run_tools(piped, {"search": str})


@hub.adopt("chat:*")
async def go_on(message: MessageWriter) -> None:
    await message.pipe("more")
    async with hub.message("chat:1") as other:
        await other.pipe("more")
"""


# What a program has whose functions stand for an app's own code, and a block of a page, in a function of its own.
UNTYPED = "# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls"


def test_programs_of_the_documents_and_the_shapes_of_a_history_have_types_that_the_sdks_accept(tmp_path: Path) -> None:
    modules = {"readme_agent": AGENT, **typed_blocks()}
    sources = {"shapes": SHAPES, **{name: f"{UNTYPED}\n{source}" for name, source in modules.items()}}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    command: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache"]
    command += sorted(tmp_path.glob("*.py"))
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
