"""The built browser client: the hub serves it to Chromium as it serves the sources, and Node.js runs it.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tenuto.agents.turn import Turn
from tenuto.transports import app as transport
from tests.browser.test_client import page_app, page_at
from tests.processes import PATIENCE_S
from tests.transports.conftest import new_hub, serving

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built package, in a folder where Node.js finds it."""
    package = tmp_path_factory.mktemp("built") / "node_modules" / "tenuto"
    subprocess.run([ROOT / "scripts" / "build_web", package], check=True)
    return package


async def test_page_gets_the_minified_client_from_the_hub(
    browser: Browser, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "WEB", package)
    hub = new_hub()
    async with serving(hub, page_app((HERE / "package_page.html").read_text(), hub)) as served:
        window = await page_at(browser, served.port)
        loaded: list[str] = []
        window.on("response", lambda response: loaded.append(response.url.rpartition("/")[2]))
        await window.reload()
        await window.wait_for_function("() => text.textContent.endsWith('Hello 👋: 7')")
        scripts = {name for name in loaded if name.endswith(".js")}
        assert {"client.js", "view.js"} < scripts
        assert len(scripts) <= 6, scripts  # two entries, the code that they and other modules share, the fallback
        await window.goto("about:blank")


async def test_node_program_sends_and_receives_messages_and_ends_after_close(package: Path) -> None:
    folder = package.parents[1]
    (folder / "program.mjs").write_text((HERE / "package_program.mjs").read_text())
    hub = new_hub()

    @hub.agent("chat:*", name="bot")
    async def answer(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hi there")

    async with serving(hub) as served:
        address = f"http://127.0.0.1:{served.port}"
        node = await asyncio.create_subprocess_exec(
            "node", "program.mjs", address, cwd=folder, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await node.communicate()
        finally:
            if node.returncode is None:
                node.kill()
                await node.wait()
        assert (node.returncode, out.decode(), err.decode()) == (0, "ann: Hello, bot: Hi there\n", "")
