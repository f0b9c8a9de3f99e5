"""The page and the server of `docs/ai-sdk.md`, as they stand: `useChat` in Chromium."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as AppRoute

from tenuto import Hub, Turn
from tenuto.interop import AISDK
from tests.examples.test_pages import opened
from tests.interop.pages import IS_STRICT, MAJOR, PACKAGE, ROOT
from tests.interop.scene import lose, names_of
from tests.transports.conftest import new_hub, serving

PAGE = (ROOT / "docs" / "ai-sdk.md").read_text()
ENTRY = Path(__file__).with_name("entry.jsx").read_text()
TOOLS = Path(__file__).with_name("tools.jsx").read_text()
HTML = '<!doctype html><div id="root"></div><script type="module" src="/main.js"></script>'


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The page of the document, built."""
    if IS_STRICT:
        pytest.skip("the server of the document has not the setting of early releases")
    return build(tmp_path_factory.mktemp("page"), block=0)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The page `TOOLS`, built."""
    return built(tmp_path_factory.mktemp("tools"), TOOLS)


def build(folder: Path, *, block: int) -> bytes:
    """Return a page of the document as one script."""
    return built(folder, re.findall(r"```jsx\n(.*?)```", PAGE, re.DOTALL)[block])


def built(folder: Path, page: str) -> bytes:
    """Return a component `Chat` as one script."""
    assert (PACKAGE.parent / "@ai-sdk" / "react").is_dir(), "scripts/test_interop installs React, and runs this test"
    (folder / "Chat.jsx").write_text(page)
    (folder / "main.jsx").write_text(ENTRY)
    (folder / "node_modules").symlink_to(PACKAGE.parent)
    options = ["--bundle", "--format=esm", "--jsx=automatic", '--define:process.env.NODE_ENV="production"']
    options.append(f"--define:IS_STRICT={str(IS_STRICT).lower()}")
    esbuild = ROOT / "node_modules" / ".bin" / "esbuild"
    subprocess.run([esbuild, "main.jsx", "--outfile=main.js", "--log-level=error", *options], cwd=folder, check=True)
    return (folder / "main.js").read_bytes()


def program(
    hub: Hub, script: bytes, *, document: str = PAGE, html: str = HTML, path: str = "/main.js", has_agent: bool = True
) -> Any:
    """Return the app of the program in a document, with `hub` in place of its own, and with a page and its script."""
    source = re.findall(r"```python\n(.*?)```", document, re.DOTALL)[0]
    app = names_of(source if has_agent else source.partition("@hub.agent")[0], hub)["app"]

    async def page(_: object) -> Response:
        return HTMLResponse(html)

    async def main(_: object) -> Response:
        return Response(script, media_type="text/javascript")

    app.router.routes += [AppRoute("/", page), AppRoute(path, main)]
    return app


def waiting_for(gate: asyncio.Event, *losing: asyncio.Event) -> Any:
    """Return an agent whose answer waits in its middle for `gate`, and does not end. Attempts before it fail."""

    async def waits(turn: Turn) -> None:
        async with turn.reply() as message:
            for one in losing:
                await lose(message, one, {"type": "text", "text": "Lost"})
            await message.append("Hello ")
            await gate.wait()
            await message.append("to you")
            await asyncio.Event().wait()

    return waits


async def ask(page: Page, text: str) -> None:
    await page.fill("input[name=text]", text)
    await page.get_by_role("button", name="Send").click()


async def test_program_of_the_page_answers_and_keeps_the_answer(browser: Browser, script: bytes) -> None:
    hub = new_hub()
    async with serving(hub, program(hub, script)) as served, opened(browser, f"http://127.0.0.1:{served.port}") as page:
        await ask(page, "hi")
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi"])
        await ask(page, "ho")
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi", "ho", "You said: ho"])
        await page.route("**/api/chat", lambda route: route.abort(), times=1)
        await ask(page, "lost")
        await expect(page.get_by_role("button")).to_have_text(["The answer broke off. Load it again", "Send"])
        await page.get_by_role("button", name="Load it again").click()
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi", "ho", "You said: ho"])


async def test_reloaded_page_resumes_and_the_stop_button_stops_both_tabs(browser: Browser, script: bytes) -> None:
    hub, gate, losing = new_hub(), asyncio.Event(), asyncio.Event()
    hub.agent("chat:*")(waiting_for(gate, losing))
    async with serving(hub, program(hub, script, has_agent=False)) as served:
        context = await browser.new_context()
        one, other = await context.new_page(), await context.new_page()
        errors: list[str] = []
        context.on("weberror", lambda error: errors.append(str(error.error)))
        await one.goto(f"http://127.0.0.1:{served.port}/")
        await one.fill("input[name=text]", "hi")
        await one.get_by_role("button", name="Send").dblclick()
        await expect(one.locator("p")).to_have_text(["hi", "Lost"])
        losing.set()
        for _ in range(4):
            await expect(one.locator("p")).to_have_text(["hi", "Hello "])
            await one.reload()
        await other.goto(f"http://127.0.0.1:{served.port}/")
        gate.set()
        for page in (one, other):
            await expect(page.locator("p")).to_have_text(["hi", "Hello to you"])
        await other.get_by_role("button", name="Stop").click()
        for page in (one, other):
            await expect(page.get_by_role("button", name="Send")).to_be_visible()
            await expect(page.locator("p")).to_have_text(["hi", "Hello to you"])
        (answer,) = [found for found in (await hub.history("chat:1")).messages if found.role == "assistant"]
        assert (answer.text, answer.status) == ("Hello to you", "cancelled")
        assert errors == []


def program_with_tools(hub: Hub, script: bytes) -> Any:
    """Return the app with the page `TOOLS`, for its release of the AI SDK."""
    app = program(hub, script, has_agent=False)
    app.router.routes = [one for one in app.router.routes if not one.path.startswith("/api/chat")]
    AISDK(hub, channel="chat:{id}", version=MAJOR, strict=IS_STRICT, browser_tools=["place"]).install(app, "/api/chat")
    return app


async def test_tool_of_the_page_approval_regenerate_and_edit_and_a_server_that_drains(
    browser: Browser, tools: bytes
) -> None:
    hub, texts, histories = new_hub(), list[str](), list[Any]()

    @hub.agent("chat:*")
    async def asks(turn: Turn) -> None:
        if len(texts) == 3:
            histories.append([one["content"] for one in await turn.history() if one["role"] == "user"])
            async with turn.reply() as message:
                await message.append("Begun")
                await asyncio.Event().wait()
        async with turn.reply() as message:
            part = {"type": "tool", "call": f"c{len(texts)}", "name": "place", "input": "{}"}
            texts.append(turn.text)
            index = await message.part({**part, "state": "called"})
            place = (await turn.ask("where", {"call": part["call"]})).data
            await message.part({**part, "state": "done", "output": place}, index=index)
            part = {**part, "call": f"{part['call']}.look", "name": "look"}
            index = await message.part({**part, "state": "called"})
            is_ok = MAJOR < 6 or (await turn.ask("approve", {"call": part["call"]})).ok
            await message.part({**part, "state": "done", "output": is_ok}, index=index)
            await message.part({"type": "text", "text": f"{len(texts)}: {turn.text} from {place}"})

    async with (
        serving(hub, program_with_tools(hub, tools)) as served,
        opened(browser, f"http://127.0.0.1:{served.port}") as page,
    ):
        for number, (button, text) in enumerate([("Send", "hi"), ("Again", "hi"), ("Edit", "ho")], start=1):
            await page.get_by_role("button", name=button).click()
            if MAJOR >= 6:
                if number == 2:
                    await expect(page.get_by_role("button", name="Yes")).to_be_visible()
                    await page.reload()
                await page.get_by_role("button", name="Yes").click()
            for _ in range(2):
                await expect(page.locator("p")).to_have_text([text, f"{number}: {text} from Ulm"])
                await expect(page.locator("i")).to_have_text("output-available output-available")
                await expect(page.locator("output")).to_have_text("ready")
                await page.reload()
        assert texts == ["hi", "hi", "ho"]
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("p").last).to_have_text("Begun")
        assert histories == [["ho", "hi"]]
        await hub.drain()
        await expect(page.locator("output")).to_have_text("error")
