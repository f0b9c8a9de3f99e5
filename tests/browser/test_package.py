"""The built browser client in Chromium: the hub serves it as it serves the sources.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from holdfast.transports import app as transport
from tests.browser.test_client import page_at
from tests.transports.conftest import new_hub, serving

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser

_PAGE = """<!doctype html><p id="text"></p>
<script type="module">
  import { connect } from "/holdfast/web/client.js"
  import { countPoints } from "/holdfast/web/view.js"
  const channel = connect({ url: "/holdfast" }).channel("chat:1")
  channel.subscribe(() => {
    text.textContent = channel.getSnapshot().messages.map(({ text }) => `${text}: ${countPoints(text)}`).join()
  })
  await channel.send("Hello 👋")
</script>"""


async def page(request: object) -> HTMLResponse:
    return HTMLResponse(_PAGE)


async def test_page_gets_the_minified_client_from_the_hub(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = await asyncio.create_subprocess_exec(ROOT / "scripts" / "build_web", tmp_path)
    assert await build.wait() == 0
    monkeypatch.setattr(transport, "WEB", tmp_path)
    hub = new_hub()
    async with serving(hub, Starlette(routes=[Route("/", page), Mount("/holdfast", hub)])) as served:
        window = await page_at(browser, served.port)
        loaded: list[str] = []
        window.on("response", lambda response: loaded.append(response.url.rpartition("/")[2]))
        await window.reload()
        await window.wait_for_function("() => text.textContent.endsWith('Hello 👋: 7')")
        scripts = [name for name in loaded if name.endswith(".js")]
        assert {"client.js", "view.js"} < set(scripts)
        assert len(scripts) <= 4, scripts  # two entries and the code that they share
        await window.goto("about:blank")
