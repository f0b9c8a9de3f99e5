"""The npm package `ai`, run in Node.js: its streams come over HTTP, as from an app's chat route."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest

from tenuto import Hub
from tenuto.sources import ai_sdk
from tests.sources.piping import ended, failed, pipe_all

ROOT = Path(__file__).parents[2]
APP = Path(__file__).with_name("ai_sdk_app.mjs")
VERSION = "7.0.173"


class App:
    """The process of the app: its address, and its output."""

    def __init__(self, url: str, says: IO[str]) -> None:
        self.url = url
        self.says = says

    async def lines(self, case: str) -> AsyncIterator[str]:
        """Return the lines of the response of a case, without their ends."""
        async with (
            httpx2.AsyncClient(trust_env=False) as client,
            client.stream("GET", f"{self.url}/{case}") as response,
        ):
            assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
            async for line in response.aiter_lines():
                yield line


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    node = shutil.which("node")
    assert node is not None, "no Node.js: install Debian's package nodejs"
    assert (ROOT / "node_modules" / "ai").is_dir(), "the packages of package.json are not there: npm install"
    process = subprocess.Popen(
        [node, APP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"AI_SDK_LOG_WARNINGS": "false"}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield App(f"http://127.0.0.1:{int(process.stdout.readline())}", process.stdout)
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()


def test_package_has_the_documented_version() -> None:
    installed = json.loads((ROOT / "node_modules" / "ai" / "package.json").read_text())
    asked = json.loads((ROOT / "package.json").read_text())
    assert installed["version"] == asked["devDependencies"]["ai"] == VERSION
    assert f"| `ai` (npm) | {VERSION} |" in (ROOT / "docs" / "sources.md").read_text()


def test_every_chunk_type_of_the_package_is_documented() -> None:
    schema = (ROOT / "node_modules/ai/src/ui-message-stream/ui-message-chunks.ts").read_text()
    known = set(re.findall(r"^ {8}type: z\.literal\('([a-z-]+)'\)", schema, re.MULTILINE))
    assert len(known) > 20
    assert ai_sdk.__doc__ is not None
    assert known - set(re.findall(r"`([a-z-]+)`", ai_sdk.__doc__)) == set()


ANSWER: list[dict[str, Any]] = [
    {"type": "reasoning", "text": "Let me think."},
    {"type": "text", "text": "Looking. "},
    {
        "type": "tool",
        "call": "c1",
        "name": "weather",
        "input": '{"city": "Oslo"}',
        "output": {"city": "Oslo", "rain": True},
        "state": "done",
    },
    {"type": "source", "url": "https://example.org/", "title": "Oslo"},
    {"type": "source", "title": "Notes", "filename": "n.txt", "media_type": "text/plain"},
    {"type": "text", "text": "It rains 🌧 in Oslo."},
    {"type": "file", "media_type": "image/png", "url": "data:image/png;base64,AAAA"},
]


@pytest.mark.parametrize("source", ["ai-sdk", None])
async def test_two_steps_with_a_tool_become_parts_in_order(hub: Hub, app: App, source: str | None) -> None:
    stored, piped = await pipe_all(hub, app.lines("answer"), source=source)
    assert (stored.status, stored.parts) == ("complete", ANSWER)
    counts = {"input": 22, "output": 14, "total": 36, "cached": 6, "cache_write": 4, "reasoning": 4}
    usage = {f"{name}_tokens": count for name, count in counts.items()}
    assert stored.meta == {"model": "mock-1", "finish_reason": "stop", "usage": usage}
    assert piped.tool_calls == []


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_bytes_may_be_cut_anywhere(hub: Hub, app: App, size: int) -> None:
    wire = "".join([f"{line}\n" async for line in app.lines("answer")])
    whole = f": ping\n{wire}".replace('{"type":', '{"x": "æ😀} [DONE]", "type":').encode()
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    stored, _ = await pipe_all(hub, pieces, source="ai-sdk")
    assert (stored.status, stored.parts) == ("complete", ANSWER)


async def test_failed_denied_and_waiting_calls_have_their_states(hub: Hub, app: App) -> None:
    stored, piped = await pipe_all(hub, app.lines("tools"))
    broken, invalid, slow, asks, browser = stored.parts
    assert (broken["state"], broken["output"]) == ("error", "Error: no such city")
    assert (invalid["state"], invalid["input"]) == ("error", '{"city": 5}')
    assert "a city is text" in invalid["output"]
    assert (slow["state"], slow["output"]) == ("done", "all of it")
    assert [(part["state"], "output" in part) for part in (asks, browser)] == [("called", False)] * 2
    called = [(call.name, call.arguments) for call in piped.tool_calls]
    assert called == [("asks", {"city": "Bonn"}), ("browser", {"city": "Bern"})]
    assert piped.finish_reason == "tool_calls"


async def test_a_preliminary_output_is_not_the_end_of_its_call(hub: Hub, app: App) -> None:
    stored, piped = await pipe_all(hub, app.lines("preliminary"))
    assert [(part["state"], part["output"]) for part in stored.parts] == [("called", "so far"), ("error", "denied")]
    assert [call.call for call in piped.tool_calls] == ["c1"]


async def test_restarted_step_withdraws_its_parts(hub: Hub, app: App) -> None:
    """The texts of the step reuse the ids of the withdrawn ones."""
    stored, piped = await pipe_all(hub, app.lines("reset"))
    assert (stored.status, stored.text, piped.text) == ("complete", "Kept. Again.", "Kept. Again.")
    texts = [{"type": "text", "text": text} for text in ("Kept. ", "", "", "Again.")]
    assert (stored.parts, piped.tool_calls) == (texts, [])


async def test_an_error_in_mid_stream_fails(hub: Hub, app: App) -> None:
    text, words = await failed(hub, app.lines("error"))
    assert (text, words) == ("Half.", "the model's provider reported an error; the log has its message")


@pytest.mark.parametrize("case", ["unfinished", "abort", "cut"])
async def test_an_end_without_a_finish_was_a_crash(hub: Hub, app: App, case: str) -> None:
    assert await ended(hub, app.lines(case)) == "Half."


async def test_a_model_that_breaks_off_inside_the_sdk_ends_with_the_sdks_own_word(hub: Hub, app: App) -> None:
    """It sends a finish all the same, so it looks like a normal end; `docs/sources.md` documents this."""
    stored, piped = await pipe_all(hub, app.lines("quiet"))
    assert (stored.status, stored.text, piped.finish_reason, piped.usage) == ("complete", "Half.", "other", {})
