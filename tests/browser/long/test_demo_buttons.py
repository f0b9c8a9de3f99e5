"""Each button of the demo at four moments, with the written answers and with a model: the promise holds and it ticks.

Layer: tests. `tests/demo/test_page.py` has the story that a visitor sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from tests.browser.tab import TIMEOUT_MS
from tests.demo.test_page import answer_of, until_length, visiting
from tests.processes import Process, Server

BUTTONS = ("reload", "window", "kill", "crash", "offline")
MOMENTS = ("before the first word", "in text", "in code", "after the end")
PLAIN = {
    "reload": "lost on your reload",
    "kill": "server died",
    "crash": "agent died",
    "offline": "network was",
}
_IS_AT = {
    "before the first word": "({ answer }) => answer === undefined || answer.text === ''",
    "in text": "({ answer }) => answer?.text.length >= 80",
    "in code": "({ answer }) => answer?.text.split('```').length === 2 && answer.text.split('```')[1].length >= 40",
    "after the end": "({ answer }) => answer?.status === 'complete'",
}
THINKING_S = 1.5
TOKEN_S = 0.02
TEXT = (
    "A model writes this answer, token by token, and each pane shows it as it comes. "
    + "The words go on for a while, so that a person can break them. " * 3
    + "\n\n```python\n"
    + "".join(f"print({n}, 'a line of code')\n" for n in range(24))
    + "```\n\nThat was the code, and this is the end of the answer."
)


class SlowModel:
    """A server of Chat Completions that writes as slowly as a model: `calls` counts the answers that it has begun."""

    def __init__(self) -> None:
        self.calls = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a client that disconnects ends the answer."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            self.calls += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            await asyncio.sleep(THINKING_S)  # a model thinks
            for at in range(0, len(TEXT), 4):
                writer.write(_event({"role": "assistant", "content": TEXT[at : at + 4]}, None))
                await writer.drain()
                await asyncio.sleep(TOKEN_S)
            writer.write(_event({}, "stop") + b"data: [DONE]\n\n")
            await writer.drain()
        writer.close()


def _event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@asynccontextmanager
async def slow_model() -> AsyncIterator[SlowModel]:
    """Run the server on a free port of loopback until the block ends."""
    model = SlowModel()
    server = await asyncio.start_server(model.answer, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield model
    finally:
        server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[SlowModel]:
    async with slow_model() as model:
        yield model


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["written", "model"])
async def demo_of(
    request: pytest.FixtureRequest, model: SlowModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, Server]]:
    """Return the kind of the answers, and a demo with them. It gets more time to start, for the SDK of the model."""
    keys = {"OPENAI_API_KEY": "sk-none", "OPENAI_BASE_URL": model.url, "OPENAI_MODEL": "slow"}
    server = Server("demo", tmp_path_factory.mktemp("demo"))
    with mock.patch.dict(os.environ, keys if request.param == "model" else {}):
        Process.start(server)
    try:
        server.until(lambda: server.get(f"{server.hub}/healthz")[0] == 200, patience_s=120)
        server.until(
            lambda: len(server.get(f"{server.hub}/v1/channels/demo:1/presence")[1]["members"]) == 2, patience_s=120
        )
        yield request.param, server
    finally:
        server.clean_up()


async def until(page: Page, moment: str) -> None:
    await page.wait_for_function(f"() => ({_IS_AT[moment]})(({answer_of})())")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("button", BUTTONS)
async def test_a_button_ticks(browser: Browser, demo_of: tuple[str, Server], button: str, moment: str) -> None:
    kind, server = demo_of
    async with visiting(browser) as context:
        page = await context.new_page()
        held: asyncio.Queue[Route] = asyncio.Queue()
        await page.route("**/demo/info", held.put, times=1)
        await page.goto(f"http://127.0.0.1:{server.port}/")
        await expect(page.locator("#ask :enabled")).to_have_count(0)  # it would be sent by the browser, and be lost
        await (await held.get()).continue_()
        await page.fill("#text", "What is a cursor?")
        await page.click("#ask button")
        await expect(page.locator(f"#do-{button}")).to_be_enabled()
        if moment == "after the end" and kind == "written":
            await until(page, "in text")
            await page.get_by_role("button", name="Steer this answer").click()
            await page.fill("textarea", "shorter")
            await page.press("textarea", "Enter")
        await until(page, moment)
        before = await page.evaluate(f"({answer_of})().answer")
        await page.click(f"#do-{button}")
        case = f"{button}, {moment}, {kind}"
        tile = page.locator(f"#do-{button}")
        await expect(tile, case).to_have_attribute("data-state", "ok", timeout=TIMEOUT_MS)
        is_over = moment == "after the end"
        if button in PLAIN and (not is_over or button == "reload"):
            await expect(page.locator(".loss"), case).to_contain_text(PLAIN[button])
        else:
            await expect(page.locator(".loss"), case).to_have_count(0)
        if not is_over:
            await until_length(page, len(before["text"]) + 1 if before else 1)
        after = await page.evaluate(f"({answer_of})().answer")
        if kind == "written" or button != "crash":
            assert after["text"].startswith(before["text"] if before else ""), case
        # an attempt without a word leaves nothing, so it is not counted
        calls = 2 if (kind, button) == ("model", "crash") and moment in ("in text", "in code") else 1
        await expect(page.locator("#tenuto-counts"), case).to_have_text(
            re.compile(rf"\d breaks? ?0 characters lost ?{calls} model calls?")
        )
