"""The page and the server of `docs/ai-sdk.md`, as they stand: `useChat` in Chromium."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as AppRoute

from tenuto import Hub, Turn
from tenuto.interop import AISDK
from tests.browser.tab import chromium
from tests.interop.long.restarts import served as running
from tests.interop.pages import IS_STRICT, MAJOR, PACKAGE, ROOT
from tests.proxy import FaultProxy
from tests.transports.conftest import new_hub, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses

PAGE = (ROOT / "docs" / "ai-sdk.md").read_text()
HTML = '<!doctype html><div id="root"></div><script type="module" src="/main.js"></script>'
ENTRY = """
import { createRoot } from "react-dom/client"
import { Chat } from "./Chat.jsx"
const id = new URLSearchParams(location.search).get("chat") ?? "1"
const initial = await (await fetch(`/api/chat/${id}/messages`)).json()
createRoot(document.getElementById("root")).render(<Chat id={id} initial={initial} />)
"""

TOOLS = """
import { useChat } from "@ai-sdk/react"
import * as ai from "ai"
const doubled = (...request) => (void fetch(...request), fetch(...request))
const isDoubled = location.search === "?chat=doubled"
let last
const named = { prepareReconnectToStreamRequest: ({ id }) => ({ api: `/api/chat/${id}/stream?last=${last}` }) }
const transport = new ai.DefaultChatTransport({
  api: "/api/chat", fetch: isDoubled ? doubled : undefined, ...(IS_STRICT ? named : {}),
})
const rules = [ai.lastAssistantMessageIsCompleteWithToolCalls, ai.lastAssistantMessageIsCompleteWithApprovalResponses]
export function Chat({ id, initial }) {
  last = initial.at(-1)?.id
  window.statuses ??= []
  const chat = useChat({
    id, transport, messages: initial, resume: true,
    sendAutomaticallyWhen: (options) => rules.some((rule) => rule?.(options)),
    onToolCall: ({ toolCall: { toolName, toolCallId } }) => {
      const output = { tool: toolName, toolCallId, output: "Ulm" }
      if (toolName === "place") void (chat.addToolOutput ?? chat.addToolResult)(output)
    },
  })
  window.statuses.push(chat.status)
  const parts = chat.messages.flatMap(({ parts }) => parts)
  const asked = parts.find(({ state }) => state === "approval-requested")?.approval
  const first = chat.messages[0]
  return (
    <main>
      {chat.messages.map(({ id, parts }) => <p key={id}>{parts.map(({ text }) => text ?? "").join("")}</p>)}
      <output>{chat.status}</output>
      <i>{parts.filter(({ toolCallId }) => toolCallId).map(({ state }) => state).join(" ")}</i>
      <button onClick={() => chat.sendMessage({ text: "hi" })}>Send</button>
      <button onClick={() => chat.regenerate()}>Again</button>
      <button onClick={() => chat.sendMessage({ text: "ho", messageId: first.id })}>Edit</button>
      <button onClick={() => chat.stop()}>Leave</button>
      {asked && <button onClick={() => chat.addToolApprovalResponse({ id: asked.id, approved: true })}>Yes</button>}
      {asked && <button onClick={() => chat.addToolApprovalResponse({ id: asked.id, approved: false })}>No</button>}
    </main>
  )
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


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


def program(hub: Hub, script: bytes, *, has_agent: bool = True) -> Any:
    """Return the app of the program in the document, with `hub` in place of its own, and with the page."""
    source = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    source = source if has_agent else source.partition("@hub.agent")[0]
    names: dict[str, Any] = {"hub": hub}
    exec(source.replace('app, hub = FastAPI(), Hub("sqlite:///chat.db")', "app = FastAPI()"), names)

    async def page(_: object) -> Response:
        return HTMLResponse(HTML)

    async def main(_: object) -> Response:
        return Response(script, media_type="text/javascript")

    names["app"].router.routes += [AppRoute("/", page), AppRoute("/main.js", main)]
    return names["app"]


async def ask(page: Page, text: str) -> None:
    await page.fill("input[name=text]", text)
    await page.get_by_role("button", name="Send").click()


async def test_program_of_the_page_answers_and_keeps_the_answer(browser: Browser, script: bytes) -> None:
    hub = new_hub()
    async with serving(hub, program(hub, script)) as served:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"http://127.0.0.1:{served.port}/")
        await ask(page, "hi")
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi"])
        await ask(page, "ho")
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi", "ho", "You said: ho"])
        await page.reload()
        await expect(page.locator("p")).to_have_text(["hi", "You said: hi", "ho", "You said: ho"])


async def test_reloaded_page_resumes_and_the_stop_button_stops_both_tabs(browser: Browser, script: bytes) -> None:
    hub = new_hub()
    gate = asyncio.Event()

    @hub.agent("chat:*")
    async def waits(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello ")
            await gate.wait()
            await message.append("to you")
            await asyncio.Event().wait()

    async with serving(hub, program(hub, script, has_agent=False)) as served:
        context = await browser.new_context()
        one, other = await context.new_page(), await context.new_page()
        errors: list[str] = []
        for page in (one, other):
            page.on("pageerror", lambda error: errors.append(str(error)))
        await one.goto(f"http://127.0.0.1:{served.port}/")
        await one.fill("input[name=text]", "hi")
        await one.get_by_role("button", name="Send").dblclick()
        await expect(one.locator("p")).to_have_text(["hi", "Hello "])
        for _ in range(3):
            await one.reload()
            await expect(one.locator("p")).to_have_text(["hi", "Hello "])
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

    async with serving(hub, program_with_tools(hub, tools)) as served:
        page = await (await browser.new_context()).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"http://127.0.0.1:{served.port}/")
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
        assert errors == []


async def test_page_that_reloads_at_drawn_moments_and_leaves_shows_the_whole_answer(
    browser: Browser, tools: bytes
) -> None:
    """Words come before and during each reload, and the end during the last one; the seed draws how many."""
    hub, words, seeded = new_hub(), asyncio.Queue[str](), random.Random(16)
    turns: list[Turn] = []

    @hub.agent("chat:*")
    async def says(turn: Turn) -> None:
        turns.append(turn)
        word = await words.get()
        async with turn.reply() as message:
            while word:
                await message.append(word)
                word = await words.get()

    def say(most: int) -> str:
        said = "".join(f"{letter} " for letter in seeded.choices("abcdef", k=seeded.randint(0, most)))
        for word in said.split():
            words.put_nowait(f"{word} ")
        return said

    async with serving(hub, program_with_tools(hub, tools)) as served:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"http://127.0.0.1:{served.port}/")
        await page.get_by_role("button", name="Send").click()
        await served.until(lambda: turns)
        text = ""
        for number in range(12):
            text += say(2) if number > 2 else ""  # the first reloads come before the first word
            reloading = asyncio.ensure_future(page.reload())
            text += say(3) if number > 2 else ""
            if number == 11:
                words.put_nowait("")
            await reloading
            if number % 2:  # half of the reloads interrupt the loading of the page
                await expect(page.locator("p").first).to_have_text("hi")
                if text:
                    await expect(page.locator("p").nth(1)).to_have_text(text)
            if number == 7:
                await page.get_by_role("button", name="Leave").click()
                # early releases go on reading a stream that they have resumed
                await expect(page.locator("output")).to_have_text("streaming" if IS_STRICT else "ready")
        await expect(page.locator("p")).to_have_text(["hi", text])
        await expect(page.locator("output")).to_have_text("ready")
        (answer,) = [found for found in (await hub.history("chat:1")).messages if found.role == "assistant"]
        assert (answer.text, answer.status, len(turns)) == (text, "complete", 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_page_of_a_server_that_ends_has_an_error_and_after_the_restart_the_whole_answer(
    browser: Browser, tools: bytes, number: signal.Signals, tmp_path: Path, unused_tcp_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}/"
    page = await (await browser.new_context()).new_page()

    async def fulfill(route: Route) -> None:
        is_script = route.request.url.endswith("main.js")
        await route.fulfill(
            body=tools if is_script else HTML, content_type="text/javascript" if is_script else "text/html"
        )

    for url in (address, f"{address}main.js"):
        await page.route(url, fulfill)
    async with running(tmp_path, unused_tcp_port) as server:
        await page.goto(address)
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("p")).to_have_text(["hi", "Hello "])
        await page.evaluate("statuses.length = 0")
        server.send_signal(number)
        await expect(page.locator("output")).to_have_text("error")
        await expect(page.locator("p")).to_have_text(["hi", "Hello "])
        assert set(await page.evaluate("statuses")) <= {"streaming", "error"}
        await server.wait()
    async with running(tmp_path, unused_tcp_port):
        await page.reload()
        await expect(page.locator("p")).to_have_text(["hi", "Hello "])
        (tmp_path / "go").touch()
        await expect(page.locator("p")).to_have_text(["hi", "Hello to hi"])
        await expect(page.locator("output")).to_have_text("ready")
        await page.reload()
        await expect(page.locator("p")).to_have_text(["hi", "Hello to hi"])


async def test_page_whose_connection_is_cut_has_an_error_and_after_a_reload_the_whole_answer(
    browser: Browser, tools: bytes
) -> None:
    hub, gate, turns = new_hub(), asyncio.Event(), list[Turn]()

    @hub.agent("chat:*")
    async def waits(turn: Turn) -> None:
        turns.append(turn)
        async with turn.reply() as message:
            await message.append("Hello ")
            await gate.wait()
            await message.append("to you")

    async with serving(hub, program_with_tools(hub, tools)) as served, FaultProxy(served.host, served.port) as proxy:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"http://127.0.0.1:{proxy.port}/")
        await page.get_by_role("button", name="Send").click()
        for _ in range(2):  # the response to the question, and the one of a page that resumes
            await expect(page.locator("p")).to_have_text(["hi", "Hello "])
            await expect(page.locator("output")).to_have_text("streaming")
            await page.evaluate("statuses.length = 0")
            await proxy.cut()
            await expect(page.locator("output")).to_have_text("error")
            await expect(page.locator("p")).to_have_text(["hi", "Hello "])
            assert set(await page.evaluate("statuses")) <= {"streaming", "error"}
            await page.reload()
        await expect(page.locator("p")).to_have_text(["hi", "Hello "])
        gate.set()
        for _ in range(2):
            await expect(page.locator("p")).to_have_text(["hi", "Hello to you"])
            await expect(page.locator("output")).to_have_text("ready")
            await page.reload()
        assert len(turns) == 1


@pytest.mark.skipif(MAJOR < 6, reason="pages of version 5 know no approvals")
async def test_approval_is_denied_for_all_tabs_and_the_reply_of_a_late_tab_changes_nothing(
    browser: Browser, tools: bytes
) -> None:
    hub, replies = new_hub(), list[bool]()

    @hub.agent("chat:*")
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.part({"type": "tool", "call": "c", "name": "look", "input": "{}", "state": "called"})
            replies.append((await turn.ask("approve", {"call": "c"})).ok)
            await message.part({"type": "text", "text": "Approved." if replies[-1] else "Denied."})

    async with serving(hub, program_with_tools(hub, tools)) as served:
        context = await browser.new_context()
        one, other = await context.new_page(), await context.new_page()
        await one.goto(f"http://127.0.0.1:{served.port}/")
        await one.get_by_role("button", name="Send").click()
        await expect(one.get_by_role("button", name="Yes")).to_be_visible()
        await other.goto(f"http://127.0.0.1:{served.port}/")
        await other.get_by_role("button", name="No").click()
        await expect(other.locator("p")).to_have_text(["hi", "Denied."])
        await one.get_by_role("button", name="Yes").click()
        for page in (one, other):
            await expect(page.locator("p")).to_have_text(["hi", "Denied."])
            await expect(page.locator("i")).to_have_text("output-denied")
            await expect(page.locator("output")).to_have_text("ready")
        assert replies == [False]


async def test_failed_silent_and_double_answers_a_doubled_request_and_seven_tabs(
    browser: Browser, tools: bytes
) -> None:
    hub, gate, asked = new_hub(), asyncio.Event(), list[str]()

    @hub.agent("chat:*")
    async def answers(turn: Turn) -> None:
        asked.append(turn.channel)
        if turn.channel == "chat:silent":
            return
        async with turn.reply() as message:
            await message.append("One.")
            if turn.channel == "chat:failed":
                raise RuntimeError("secret")
            if turn.channel == "chat:tabs":
                await gate.wait()
                await message.append(" Two.")
        if turn.channel == "chat:double":
            async with turn.reply() as message:
                await message.append(" Two.")

    async with serving(hub, program_with_tools(hub, tools)) as served:
        context = await browser.new_context()
        tabs = [await context.new_page() for _ in range(7)]
        first, *others, seventh = tabs
        posts: list[str] = []
        first.on("request", lambda request: request.method == "POST" and posts.append(first.url.partition("=")[2]))
        for chat, text, status in (
            ("failed", "One.", "error"),
            ("silent", "", "ready"),
            ("double", "One. Two.", "ready"),
            ("doubled", "One.", "ready"),
        ):
            await first.goto(f"http://127.0.0.1:{served.port}/?chat={chat}")
            await first.get_by_role("button", name="Send").click()
            await expect(first.locator("p")).to_have_text(["hi", text])
            await expect(first.locator("output")).to_have_text(status)
            assert "secret" not in await first.content()
        address = f"http://127.0.0.1:{served.port}/?chat=tabs"
        await first.goto(address)
        await first.get_by_role("button", name="Send").click()
        await expect(first.locator("p")).to_have_text(["hi", "One."])
        for tab in others:
            await tab.goto(address)
            await expect(tab.locator("p")).to_have_text(["hi", "One."])
        # the streams of six tabs are all connections that Chromium opens to one host
        opening = asyncio.ensure_future(seventh.goto(address))
        gate.set()
        await opening
        for tab in tabs:
            await expect(tab.locator("p")).to_have_text(["hi", "One. Two."])
            await expect(tab.locator("output")).to_have_text("ready")
        assert sorted(asked) == ["chat:double", "chat:doubled", "chat:failed", "chat:silent", "chat:tabs"]
        assert posts == ["failed", "silent", "double", "doubled", "doubled", "tabs"]
        stored = [found.text for found in (await hub.history("chat:tabs")).messages]
        assert stored == ["One. Two.", "hi"]
