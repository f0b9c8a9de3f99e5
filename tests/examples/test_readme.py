"""The README's programs with their pages, pasted into Chromium: a reload at any moment loses nothing and asks nothing.

Layer: tests.

The programs run as they are. Only the wait between two words of their model is in the hands of the test.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.async_api import Browser, Dialog, Page, Route, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.examples.programs import ROOT, blocks, served_app
from tests.examples.test_pages import PATIENCE_MS, opened

PAGES = blocks("README.md", "html")
PROGRAMS = dict(zip(("endpoint", "widget", "own"), zip(blocks("README.md"), PAGES, strict=True), strict=True))
WORDS = 22 + 100  # of an answer to a question of 20 words
# words that the page has: at once, before the first word, in mid-text, near the end, after the end
MOMENTS = -1, 0, 50, WORDS - 1, WORDS
# the field of the question, and the text of the newest answer
FIELDS = {"endpoint": "#question", "widget": "textarea", "own": "#question"}
SHOWN = {
    "endpoint": "() => answer.textContent",
    "widget": """() => [...document.querySelector("tenuto-chat").shadowRoot.querySelectorAll("article .markdown p")]
        .map((one) => one.innerText).filter((one) => one.startsWith("You asked:")).at(-1) ?? "" """,
    "own": """() => document.querySelector("#messages").textContent.split("\\n\\n")
        .filter((one) => one.startsWith("You asked:")).at(-1) ?? "" """,
}


class Model:
    """The model of a program: it gives as many words as the test allows, and counts its calls."""

    def __init__(self, program: dict[str, Any]) -> None:
        self.calls = 0
        self._left = 0
        self._moved = asyncio.Condition()
        given = program["model"]

        async def called(question: str) -> AsyncIterator[str]:
            async with self._moved:
                self.calls += 1
                self._moved.notify_all()
            async for word in given(question):
                yield word

        program["model"] = called
        program["asyncio"] = SimpleNamespace(sleep=self._sleep)

    async def _sleep(self, _: float) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._left > 0)
            self._left -= 1

    async def until_called(self, calls: int) -> None:
        """Wait until the model was called `calls` times."""
        async with asyncio.timeout(PATIENCE_MS / 1000), self._moved:
            await self._moved.wait_for(lambda: self.calls >= calls)

    async def allow(self, words: int) -> None:
        """Give `words` more words."""
        async with self._moved:
            self._left += words
            self._moved.notify_all()


def below(app: ASGIApp) -> ASGIApp:
    """Return `app` below the path `/base`, which is taken away as by a proxy."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = scope["path"].removeprefix("/base")
            assert path != scope["path"], f"the page needs {path}, which is not below its own address"
            scope = {**scope, "path": path}
        await app(scope, receive, send)

    return served


@asynccontextmanager
async def pasted(name: str, browser: Browser, folder: Path) -> AsyncIterator[tuple[Page, dict[str, Any], Model]]:
    """Serve a program of the README, which finds its page in `folder`, and open it in a browser of its own."""
    source, page = PROGRAMS[name]
    (folder / "index.html").write_text(page)
    program: dict[str, Any] = {"__name__": "main"}
    exec(compile(source, "README.md", "exec"), program)
    model = Model(program)
    async with served_app(below(program["app"])) as address, opened(browser, f"{address}/base/") as window:
        yield window, program, model


async def until_shown(name: str, page: Page, text: str) -> None:
    """Wait until the page shows `text` as its newest answer."""
    await page.wait_for_function(f"(text) => ({SHOWN[name]})().split(/\\s+/).join(' ').trim() === text", arg=text)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_reload_at_any_moment_shows_the_whole_answer_of_one_call(
    name: str, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with pasted(name, browser, tmp_path) as (page, program, model):
        await page.wait_for_load_state("networkidle")
        async with await browser.new_page(viewport={"width": 375, "height": 667}, is_mobile=True) as phone:
            await phone.goto(page.url)
            assert await phone.evaluate("[innerWidth, document.compatMode]") == [375, "CSS1Compat"]
        await page.fill(FIELDS[name], "  ")
        await page.press(FIELDS[name], "Enter")  # a blank is no question
        for count, words in enumerate(MOMENTS, 1):
            question = f"Why {'& how ' * 9}{count}?"
            whole = f"You asked: {question} {'This is a long answer. ' * 20}".strip()
            await page.fill(FIELDS[name], question)
            await page.press(FIELDS[name], "Enter")
            seen = " ".join(whole.split()[: max(0, words)])
            if words >= 0:
                await model.until_called(count)
                await model.allow(words)
                await expect(page.locator(FIELDS[name])).to_have_value("")  # because the server has the question
                if seen:
                    await until_shown(name, page, seen)
            await page.reload()
            other = await page.context.new_page()
            await other.goto(page.url)
            if seen:
                for window in (page, other):
                    await until_shown(name, window, seen)
            await model.allow(WORDS - max(0, words))
            for window in (page, other):
                await until_shown(name, window, whole)
            await other.close()
            (cookie,) = [one for one in await page.context.cookies() if one["httpOnly"]]
            messages = (await program["hub"].history(f"chat:{cookie['value'].split('.')[0]}")).messages
            assert model.calls == count, words
            assert [one.text.strip() for one in messages[:2]] == [whole, question], words
            assert [one.role for one in messages] == ["assistant", "user"] * count, words


@pytest.mark.parametrize("name", ["endpoint", "own"])
async def test_a_question_that_the_server_refuses_stays_in_its_field_and_so_does_one_that_is_typed_meanwhile(
    name: str, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = asyncio.Queue[Route]()
    async with pasted(name, browser, tmp_path) as (page, _, model):
        await page.wait_for_load_state("networkidle")
        await page.route(re.compile(r"\?question=Why"), held.put)
        await page.fill(FIELDS[name], "Why?")
        await page.press(FIELDS[name], "Enter")
        async with page.expect_response(re.compile("question=Why")):
            await (await held.get()).fulfill(status=429)
        assert await page.input_value(FIELDS[name]) == "Why?"
        await page.press(FIELDS[name], "Enter")
        await page.fill(FIELDS[name], "And how?")
        await (await held.get()).continue_()
        await model.until_called(1)
        await model.allow(2)
        await until_shown(name, page, "You asked:")
        assert await page.input_value(FIELDS[name]) == "And how?"


async def test_a_question_that_reaches_no_server_stays_in_its_field_and_the_page_says_so(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with pasted("own", browser, tmp_path) as (page, _, _):
        shown = asyncio.Queue[str]()

        async def dismiss(dialog: Dialog) -> None:
            shown.put_nowait(dialog.message)
            await dialog.dismiss()

        page.on("dialog", dismiss)
        await page.context.set_offline(True)
        await page.fill(FIELDS["own"], "Why?")
        await page.press(FIELDS["own"], "Enter")
        async with asyncio.timeout(PATIENCE_MS / 1000):
            assert await shown.get() == "Not sent. Try again."
        assert await page.input_value(FIELDS["own"]) == "Why?"


def test_no_page_lets_the_browser_look_for_an_icon_that_the_app_does_not_have() -> None:
    starter = (ROOT / "tenuto" / "cli" / "starter" / "index.html.txt").read_text()
    for page in (*PAGES, starter):
        assert '<link rel="icon" href="data:,"' in page
