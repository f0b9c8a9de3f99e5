"""Use the built apps in Chromium: those of `examples/` are served from another origin than their hub.

Layer: scripts. `test_npm` runs it: smoke_npm.py FOLDER SERVER_PORT PAGE_PORT.

Two processes on one PostgreSQL store serve these apps. Each page asks at one of them, and is reloaded at the other one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from playwright.async_api import Browser, Page, expect
from starlette.staticfiles import StaticFiles

from tenuto import Hub, visitors
from tests.browser.tab import chromium, picture
from tests.examples.nodes import Node
from tests.examples.programs import FOLDER, served_app
from tests.postgres import running_postgres
from tests.proxy import FaultProxy

START_S = 60
END = "may stop it."

Move = Callable[[], Awaitable[None]]  # moves all pages to the other process of the server


@asynccontextmanager
async def process(port: int, folder: Path, *command: str | Path) -> AsyncIterator[None]:
    """Run a server until the block ends; the block begins when it accepts connections."""
    running = await asyncio.create_subprocess_exec(*command, cwd=folder)
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    (await asyncio.open_connection("localhost", port))[1].close()
                    break
                except OSError:
                    assert running.returncode is None, f"{command} ended with {running.returncode}"
                    await asyncio.sleep(0.1)  # between two tries to connect to a process that is starting
        yield
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


async def open_page(browser: Browser, url: str) -> tuple[Page, list[str]]:
    page, errors = await (await browser.new_context()).new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(url)
    return page, errors


async def check_react(browser: Browser, url: str, move: Move) -> None:
    """Ask a question, reload during the answer, and stop the next answer from a second window."""
    page, errors = await open_page(browser, url)
    await expect(page.get_by_role("status")).to_have_text("live")
    await page.fill("input[name=text]", "Why?")
    await page.press("input[name=text]", "Enter")
    answer = page.locator("article.assistant").first
    await expect(answer).to_contain_text("Reload the page")
    await picture(page, "react")
    await move()
    await page.reload()
    await expect(answer).to_contain_text(END)
    assert (await page.locator("article.user").all_inner_texts()) == ["Why?"]
    other, more = await open_page(browser, f"{url}/?me=bob")
    await page.fill("input[name=text]", "And then? " * 500)  # the answer repeats it, which takes minutes
    await page.press("input[name=text]", "Enter")
    await expect(other.get_by_role("button", name="Stop")).to_be_visible()
    await move()  # the answer goes on in the process that both pages leave
    await other.get_by_role("button", name="Stop").click()
    for one in (page, other):
        await expect(one.locator("article[data-status=cancelled]")).to_have_count(1)
    assert errors + more == []


async def check_next(browser: Browser, url: str, move: Move) -> None:
    """Send a message and reload; the page that the server renders has no connection."""
    page, errors = await open_page(browser, url)
    await expect(page.get_by_role("status")).to_have_text("live")
    await page.fill("input[name=text]", "Next?")
    await page.press("input[name=text]", "Enter")
    await expect(page.locator("p", has_text="You asked: “Next?”")).to_contain_text("stored")
    await picture(page, "next")
    await move()
    await page.reload()
    await expect(page.locator("p", has_text="You asked: “Next?”")).to_contain_text(END)
    assert errors == []


async def check_assistant_ui(browser: Browser, url: str, move: Move) -> None:
    """Ask a question, request a second answer, stop it, edit the question, and select the first version."""
    page, errors = await open_page(browser, url)
    await page.fill("[aria-label=Message]", "Why? " * 100)  # the answer repeats it, so it can be stopped for seconds
    await page.press("[aria-label=Message]", "Enter")
    answer = page.locator(".assistant")
    await expect(answer).to_contain_text(END)
    await page.click("text=Again")
    await page.click("text=Stop")
    await expect(answer.locator(".branches")).to_contain_text("2/2")
    await page.click("text=Edit")
    await page.fill("[aria-label=Edit]", "Why not?")
    await page.click("text=Save")
    await expect(answer).to_contain_text("You asked: “Why not?”")
    await expect(answer).to_contain_text(END)
    await move()
    await page.reload()
    await expect(page.locator(".user .branches")).to_contain_text("2/2")
    await picture(page, "assistant_ui")
    await page.locator(".user [aria-label=Previous]").click()
    await expect(answer).to_contain_text("You asked: “Why? Why?")
    assert errors == []


async def check_frameworks(browser: Browser, built: Path) -> None:
    """Send a message from the component for Vue and one from that for Svelte; both show both."""
    app = FastAPI()
    Hub("memory://").install(app, "/tenuto")
    app.mount("/", StaticFiles(directory=built, html=True))
    async with served_app(app) as address:
        page, errors = await open_page(browser, address)
        for name in ("vue", "svelte"):
            await page.fill(f"#{name} input", f"From {name}")
            await page.click(f"#{name} button")
            await expect(page.locator("p", has_text=f"From {name}")).to_have_count(2)
        for name in ("vue", "svelte"):
            await expect(page.locator(f"#{name} p")).to_have_text(["From vue", "From svelte"])
        assert errors == []
        await page.goto("about:blank")


async def check_widgets(browser: Browser, built: Path) -> None:
    """Open the chat element of React, Vue and Svelte; each is the chat of this visitor and shows its new title."""
    app = FastAPI()
    hub = Hub("memory://", authenticate=visitors())
    hub.install(app, "/tenuto")
    app.mount("/", StaticFiles(directory=built, html=True))
    async with served_app(app) as address:
        page, errors = await open_page(browser, f"{address}/widgets.html")
        for name in ("react", "vue", "svelte"):
            chat = page.locator(f"#{name} tenuto-chat")
            await expect(chat.get_by_role("button", name="Open chat")).to_be_visible()
            await chat.evaluate("(chat) => chat.show()")
            await expect(chat.get_by_role("heading")).to_have_text("Ask me")
            await chat.locator("textarea").fill(f"From {name}")
            await chat.locator("textarea").press("Enter")
            await expect(chat.locator("article")).to_contain_text([f"From {name}"])
            await chat.evaluate("(chat) => chat.hide()")
        await page.evaluate("show('Ask us')")
        for name in ("react", "vue", "svelte"):
            chat = page.locator(f"#{name} tenuto-chat")
            await chat.evaluate("(chat) => (chat.open = true)")
            await expect(chat.get_by_role("heading")).to_have_text("Ask us")
            await expect(chat.locator("article")).to_contain_text(["From react", "From vue", "From svelte"])
            await chat.evaluate("(chat) => chat.hide()")
        assert errors == []
        await page.goto("about:blank")


@asynccontextmanager
async def two_nodes(example: str, url: str, folder: Path) -> AsyncIterator[list[Node]]:
    """Run two processes of `example` on the store `url`; its address is the one line that differs."""
    copy = folder / f"{example}.py"
    copy.parent.mkdir(parents=True)
    text = (FOLDER / f"{example}.py").read_text()
    copy.write_text(text.replace("sqlite:///react-example.db", url))
    assert url in copy.read_text()
    command = ["uvicorn", "--app-dir", str(copy.parent), f"{copy.stem}:app"]
    nodes = [Node(command, folder / f"{number}.log") for number in range(2)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.callback(node.clean_up)
            node.start()
        for node in nodes:
            await asyncio.to_thread(node.until, node.is_listening, patience_s=START_S)
        yield nodes


async def main(folder: Path, server_port: int, page_port: int) -> None:
    """Raise AssertionError if a built app does not work."""
    expect.set_options(timeout=30_000)
    origin = f"http://localhost:{page_port}"
    os.environ["PAGE_ORIGIN"] = origin
    with running_postgres(fsync="off", full_page_writes="off") as store:
        async with (
            two_nodes("react/server", store.url, folder / "nodes") as nodes,
            FaultProxy("127.0.0.1", nodes[0].port) as proxy,
            chromium(f"--host-resolver-rules=MAP localhost:{server_port} 127.0.0.1:{proxy.port}") as browser,
        ):

            async def move() -> None:
                (other,) = {node.port for node in nodes} - {proxy.upstream[1]}
                proxy.upstream = ("127.0.0.1", other)
                await proxy.cut()

            options = ("--host", "localhost", "--port", str(page_port))
            for app, check in (("react", check_react), ("assistant_ui", check_assistant_ui)):
                vite = folder / app / "node_modules" / ".bin" / "vite"
                async with process(page_port, folder / app, vite, "preview", "--strictPort", *options):
                    await check(browser, origin, move)
            following = folder / "next" / "node_modules" / ".bin" / "next"
            async with process(page_port, folder / "next", following, "start", "--hostname", "localhost", *options[2:]):
                await check_next(browser, origin, move)
            await check_frameworks(browser, folder / "frameworks" / "dist")
            await check_widgets(browser, folder / "frameworks" / "dist")
    print("the package works with Vite, Next.js, assistant-ui, Vue and Svelte")


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
