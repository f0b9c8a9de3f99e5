"""The page and the server of AG-UI in `docs/agui.md`, as they stand, in Chromium."""

from __future__ import annotations

import asyncio
import re
import subprocess
from functools import partial

import pytest
from playwright.async_api import expect

from tests.browser.tab import chromium
from tests.interop.long import test_react as react
from tests.interop.long.test_agui_client import PACKAGE
from tests.interop.pages import ROOT
from tests.transports.conftest import new_hub, serving

PAGE = (ROOT / "docs" / "agui.md").read_text()


def block(language: str) -> str:
    """Return the first program of the section in `language`."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The page of the document, built."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.js").write_text(block("js"))
    (folder / "node_modules").symlink_to(PACKAGE.parents[1])
    esbuild = ROOT / "node_modules" / ".bin" / "esbuild"
    build = ["--bundle", "--format=esm", "--log-level=error", "--outfile=built.js"]
    subprocess.run([esbuild, "page.js", *build], cwd=folder, check=True)
    return (folder / "built.js").read_bytes()


program = partial(react.program, document=PAGE, html=f"<!doctype html>{block('html')}", path="/page.js")


async def test_page_of_the_document_answers_and_a_reloaded_page_and_another_tab_join_the_turn(script: bytes) -> None:
    hub, gate = new_hub(), asyncio.Event()
    async with serving(hub, program(hub, script)) as served, chromium() as browser:
        page = await browser.new_page()
        await page.route("**/messages", lambda _: None)  # its response never comes
        await page.goto(f"http://127.0.0.1:{served.port}/")
        await expect(page.locator("form")).to_be_hidden()
        await page.unroute("**/messages")
        await page.reload()
        await page.fill("input", "hi")
        await page.route("**/api/agent", lambda route: route.fulfill(status=503), times=1)  # as a server that ends
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("li")).to_have_text(["hi", "You said: hi"])

    hub = new_hub()
    hub.agent("chat:*")(react.waiting_for(gate))
    async with serving(hub, program(hub, script, has_agent=False)) as served, chromium() as browser:
        one, other = await browser.new_page(), await browser.new_page()
        await one.goto(f"http://127.0.0.1:{served.port}/")
        await one.fill("input", "hi")
        await one.get_by_role("button", name="Send").click()
        await expect(one.locator("li")).to_have_text(["hi", "Hello "])
        await one.locator("input").press("Enter")  # the question, once more: one run at a time
        await one.reload()
        await other.goto(f"http://127.0.0.1:{served.port}/")
        for shown in ("Hello ", "Hello to you"):
            for page in (one, other):
                await expect(page.locator("li")).to_have_text(["hi", shown])
            gate.set()
        await other.get_by_role("button", name="Stop").click()
        await expect(other.get_by_role("button", name="Send")).to_be_enabled()
        (answer,) = [found for found in (await hub.history("chat:1")).messages if found.role == "assistant"]
        assert answer.status == "cancelled"
        await one.reload()
        await expect(one.locator("li")).to_have_text(["hi", "Hello to you"])
