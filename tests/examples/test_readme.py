"""The README's endpoint before and after, in Chromium: one page, which does not change, works with both.

Layer: tests.

`tests/test_docs.py` tests the README's other programs.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import HTMLResponse
from playwright.async_api import Browser, Page, expect

from tests.examples.programs import served_app
from tests.examples.test_pages import opened

README = (Path(__file__).parents[2] / "README.md").read_text()
BEFORE, AFTER = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[:2]
PAGE, CONVERSATION = re.findall(
    r"^```html\n(.*?)^```$", README.split("before and after")[-1], re.MULTILINE | re.DOTALL
)[:2]
WORDS = "You asked: Why & how? This is a long answer. "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def shown(source: str, browser: Browser, pace_s: float = 0.01) -> AsyncIterator[tuple[Page, dict[str, Any]]]:
    """Serve a program of the README with its pages, and yield the open page and the program's names."""
    program: dict[str, Any] = {"__name__": "readme"}
    exec(compile(source.replace("asyncio.sleep(0.1)", f"asyncio.sleep({pace_s})"), "README.md", "exec"), program)
    for path, html in (("/", PAGE), ("/conversation", CONVERSATION)):
        program["app"].add_api_route(path, lambda html=html: HTMLResponse(f"<!doctype html><body>{html}</body>"))
    async with served_app(program["app"]) as address, opened(browser, address) as page:
        yield page, program


async def ask(page: Page) -> None:
    await page.fill("#question", "Why & how?")
    await page.press("#question", "Enter")


@pytest.mark.parametrize("source", [BEFORE, AFTER], ids=["before", "after"])
async def test_the_page_shows_the_whole_answer_of_either_endpoint(source: str, browser: Browser) -> None:
    async with shown(source, browser) as (page, _):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/chat?" in request.url else None)
        for count in (1, 2):
            await ask(page)
            await page.wait_for_function("whole => answer.textContent === whole", arg=WORDS)
            await page.wait_for_load_state("networkidle")
            assert (len(asked), await page.text_content("#answer")) == (count, WORDS)


async def test_a_reload_does_not_stop_the_answer_after_the_change(browser: Browser) -> None:
    async with shown(AFTER, browser, pace_s=0.1) as (page, program):
        await ask(page)
        await expect(page.locator("#answer")).to_contain_text("asked:")
        await page.goto("/conversation")
        await expect(page.locator("body")).to_contain_text("a long answer.")
        question, answer = (await program["hub"].history("chat:1")).messages[::-1]
        assert (question.role, question.text) == ("user", "Why & how?")
        assert (answer.status, answer.text, answer.reply_to) == ("complete", WORDS, question.id)
