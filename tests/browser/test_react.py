"""The React example of the documentation runs in Chromium, built by a bundler from the page's own code block.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser
from starlette.responses import Response
from starlette.routing import Route

from tenuto import Identity
from tests.browser.test_client import page_app, page_at
from tests.transports.conftest import Served, new_hub, serving

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "react"
WEB = ROOT / "tenuto" / "web"
DOCUMENTED = (ROOT / "docs" / "browser.md").read_text().split("```jsx\n")[1].split("```")[0]


def bundle(folder: Path, page: str) -> str:
    """Return the page with React and the client, as esbuild bundles them for a browser."""
    (folder / "page.jsx").write_text(page)
    (folder / "main.jsx").write_text((PAGES / "main.jsx").read_text())
    program = ROOT / "node_modules" / ".bin" / "esbuild"
    aliases = [f"--alias:tenuto={WEB}/client.js", f"--alias:tenuto/react={WEB}/react.js"]
    packages = [f"--alias:{name}={ROOT}/node_modules/{name}" for name in ("react", "react-dom")]
    options = ["--bundle", "--format=esm", "--jsx=automatic", "--log-level=error", *aliases, *packages]
    command = [str(program), f"{folder}/main.jsx", f"--outfile={folder}/bundle.js", *options]
    subprocess.run(command, check=True, timeout=60)
    return (folder / "bundle.js").read_text()


@asynccontextmanager
async def serving_page(folder: Path, page: str, **options: Any) -> AsyncIterator[Served]:
    """Serve the page with React and the client, and a hub."""
    script, hub = await asyncio.to_thread(bundle, folder, page), new_hub(**options)
    code = Response(script, media_type="text/javascript")
    html = "<!doctype html><div id=root></div><script type=module src=/bundle.js></script>"
    async with serving(hub, page_app(html, hub, Route("/bundle.js", code))) as served:
        yield served


async def test_documented_chat_has_ten_lines_and_runs_in_strict_mode(browser: Browser, tmp_path: Path) -> None:
    assert len(DOCUMENTED.splitlines()) == 10
    async with serving_page(tmp_path, DOCUMENTED) as served:
        hub, window = served.hub, await page_at(browser, served.port)
        await window.fill("input[name=text]", "Hello")
        await window.evaluate("for (let n = 0; n < 2; n++) document.querySelector('form').requestSubmit()")
        await window.wait_for_selector("text=Hello")
        await served.until(lambda: hub.stats()["feeds"] == 1)
        history = await hub.history("chat:1")
        assert [one.text for one in history.messages] == ["Hello"]
        await hub.create("chat:1", role="assistant", text="Hi there")
        await window.wait_for_selector("text=Hi there")
        await window.goto("about:blank")


async def test_component_of_one_message_renders_only_for_its_own_changes(browser: Browser, tmp_path: Path) -> None:
    async with serving_page(tmp_path, (PAGES / "renders.jsx").read_text()) as served:
        await served.hub.create("chat:1", id="first", text="one")
        async with served.hub.message("chat:1", id="second") as message:
            await message.append("two")
            window = await page_at(browser, served.port)
            await window.wait_for_function("() => document.getElementById('second')?.textContent === 'two'")
            await window.wait_for_function("() => document.getElementById('status').textContent === 'live'")
            before = await window.evaluate("({ ...window.renders })")
            for number in range(5):
                await message.append(f" {number}")
                shown = "two" + "".join(f" {one}" for one in range(number + 1))
                await window.wait_for_function("t => document.getElementById('second').textContent === t", arg=shown)
        after = await window.evaluate("window.renders")
        assert after["first"] == before["first"]
        assert after["second"] > before["second"]
        await window.goto("about:blank")


async def test_hook_closes_the_channel_that_it_has_opened_and_not_that_of_the_app(
    browser: Browser, tmp_path: Path
) -> None:
    async with serving_page(tmp_path, (PAGES / "mounted.jsx").read_text()) as served:
        for name in ("named", "own", "kept"):
            await served.hub.create(f"chat:{name}", text=name)
        window = await page_at(browser, served.port)
        await window.clock.install()
        await window.reload()
        for _ in range(2):
            for name in ("named", "own", "kept"):
                await window.wait_for_function("id => document.getElementById(id)?.textContent === id", arg=name)
            await window.clock.fast_forward(5_000)
            assert await window.evaluate("[...client.channels.keys()].sort().join()") == "chat:kept,chat:named,chat:own"
            await window.evaluate("show(false)")
            await window.wait_for_selector("#own", state="detached")
            await window.clock.fast_forward(1_000)
            assert await window.evaluate("[...client.channels.keys()]") == ["chat:own"]
            assert await window.evaluate("client.channel('chat:own').state") == "live"
            await window.evaluate("show(true)")
        await window.goto("about:blank")


async def test_hooks_show_why_a_channel_is_closed(browser: Browser, tmp_path: Path) -> None:
    async def authenticate(scope: object) -> Identity:
        return Identity(grants={"chat:1": frozenset({"subscribe", "history"})})

    async with serving_page(tmp_path, (PAGES / "closed.jsx").read_text(), authenticate=authenticate) as served:
        await served.hub.create("chat:1", text="Hello")
        window = await page_at(browser, served.port)
        await window.wait_for_selector("#first:text-is('live Hello')")
        await window.wait_for_selector("#refused:text-is('closed forbidden')")
        await window.evaluate("client.signOut()")
        await window.wait_for_selector("#first:text-is('closed Hello')")
