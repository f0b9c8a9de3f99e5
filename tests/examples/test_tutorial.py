"""The tutorial as written: its programs and pages in Chromium, its kills, its nginx and its test.

Layer: tests.

`pip` is left out, since the packages are installed, and the port is a free one. The model of step 4 is an agent of
another hub, which the SDK of OpenAI takes for its server.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.async_api import Browser, Page, expect

from tenuto import Hub, Turn, allow_everyone
from tenuto.interop import OpenAI
from tests.conftest import in_long
from tests.examples.nodes import Node
from tests.examples.programs import blocks, served_app
from tests.examples.test_pages import opened
from tests.nginx import needs_nginx, nginx

PAGE = "docs/tutorial.md"
RUN = ".venv/bin/uvicorn main:app"
ENDPOINT, AGENT, MODEL, VISITORS, TEST = blocks(PAGE)
WATCHED, CHAT, OWN_CHAT = blocks(PAGE, "html")
INSTALL, TESTED = blocks(PAGE, "sh")
(PROXY,) = blocks(PAGE, "nginx")
WITH_MODEL = re.sub(r"async def model.*?(?=\n\n\n)", lambda _: MODEL.strip(), AGENT, flags=re.DOTALL)
IMPORT, HUB = VISITORS.strip().split("\n\n")
PRIVATE = re.sub("^from tenuto import.*$", IMPORT, re.sub("^hub = .*$", HUB, WITH_MODEL, flags=re.M), flags=re.M)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The server of the third command, in a folder of its own; a test starts it."""
    assert INSTALL.splitlines()[2] == RUN
    monkeypatch.chdir(tmp_path)
    server = Node(["uvicorn", "--app-dir", str(tmp_path), "main:app"], tmp_path / "server.log")
    yield server
    server.clean_up()


def write(program: str, page: str) -> None:
    Path("main.py").write_text(program)
    Path("index.html").write_text(page)


async def start(server: Node, program: str, page: str) -> None:
    write(program, page)
    server.start()
    await asyncio.to_thread(server.until, server.is_listening)


async def kill(server: Node, number: int = signal.SIGKILL) -> None:
    """End the process that the output names, as the reader does."""
    assert f"Started server process [{server.running.pid}]" in server.output
    await asyncio.to_thread(server.end, number)


async def watched(page: Page, question: str, length: int) -> str:
    """Return the text of the page of step 1, once it is longer than `length`."""
    await page.wait_for_function(f"() => answer.textContent.length > {length}")
    text = await page.evaluate("answer.textContent")
    assert text.startswith(f"You asked: {question} This is a long answer.")
    return str(text)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=in_long)])
async def test_steps_1_and_2_an_answer_survives_a_reload_a_second_browser_and_a_kill(
    server: Node, browser: Browser, number: int
) -> None:
    await start(server, ENDPOINT, WATCHED)
    async with opened(browser, server.url) as page, opened(browser, server.url) as second:
        await page.fill("#question", "Why?")
        await page.click("button")
        await expect(page.locator("#question")).to_have_value("")
        before = await watched(page, "Why?", 40)
        await page.reload()
        await watched(page, "Why?", len(before))
        await second.reload()
        await watched(second, "Why?", len(before))
        statuses = list[int]()
        page.on("response", lambda response: statuses.append(response.status))
        await kill(server, number)
        assert set(statuses) <= {200}  # while it drains
        seen = await page.evaluate("answer.textContent")
        await start(server, ENDPOINT, WATCHED)
        for reloads in (0, 1):
            if reloads:
                await page.reload()
            await expect(page.locator("#answer")).to_have_text(re.compile(rf"{re.escape(seen)}.*\[interrupted\]$"))


async def test_step_3_a_question_whose_server_was_killed_is_answered_by_the_next_one(
    server: Node, browser: Browser
) -> None:
    await start(server, AGENT, CHAT)
    async with opened(browser, server.url) as page:
        await page.fill("textarea", "Why?")
        await page.press("textarea", "Enter")
        answers = page.locator("article", has_text="You asked: Why?")
        await expect(answers).to_contain_text("long answer")
        await kill(server)
        await start(server, AGENT.replace("sleep(0.1)", "sleep(0.01)"), CHAT)
        await expect(answers).to_contain_text("This is a long answer. " * 20)
        await expect(page.locator("article")).to_have_count(2)  # the question and one answer


@needs_nginx
async def test_steps_4_to_6_a_model_answers_each_visitor_in_a_private_chat_behind_nginx(
    server: Node, browser: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upstream = FastAPI()
    hub = Hub("memory://", authenticate=allow_everyone)
    hub.install(upstream, "/tenuto")
    OpenAI(hub).install(upstream, "/v1")

    @hub.agent("*", name="gpt-5-mini")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(f"A model was asked: {turn.text}")

    location = re.search(r"location / \{(.*?)\n    \}", PROXY, re.DOTALL)
    assert location is not None
    assert PROXY.count("http://127.0.0.1:8000") == 1
    directives = location[1].replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    async with served_app(upstream) as address:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        page_html = re.sub("^<tenuto-chat.*$", OWN_CHAT.strip(), CHAT, flags=re.M)
        await start(server, PRIVATE, page_html)
        with nginx(tmp_path, server.port, directives) as port:
            proxied = f"http://127.0.0.1:{port}"
            async with opened(browser, proxied) as page, opened(browser, server.url) as private:
                await page.fill("textarea", "Why?")
                await page.press("textarea", "Enter")
                await expect(page.locator("article")).to_have_count(2)
                await expect(page.locator("article").last).to_contain_text("A model was asked: Why?")
                await expect(private.locator("textarea")).to_be_enabled()
                await expect(private.locator("article")).to_have_count(0)


def test_step_7_the_test_of_the_tutorial_passes(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PRIVATE)
    (tmp_path / "test_main.py").write_text(TEST)
    assert TESTED.split()[:1] == [".venv/bin/python"]
    done = subprocess.run(
        [sys.executable, *TESTED.split()[1:]],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": "any"},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
