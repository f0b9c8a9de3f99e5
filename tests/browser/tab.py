"""One browser tab on the demo page.

Layer: tests.

Chromium's offline switch does not cut open streams, so tests inject faults at TCP (`FaultProxy`) or end the server.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, WebSocket, async_playwright

TIMEOUT_MS = 30_000


ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The text from which the chat element draws a message: Markdown is tested elsewhere.
_TEXT = """id => {
  const chat = document.querySelector("tenuto-chat")
  const channel = chat?.client?.channel(chat.getAttribute("channel"))
  return channel?.getSnapshot().messages.find(message => message.id === id)?.text ?? null
}"""


def script(file: str, function: str) -> str:
    """Return a function of a script beside the tests, to evaluate in a page."""
    source = (Path(__file__).parent / f"{file}.js").read_text()
    return f"(...given) => {{\n{source}\nreturn {function}(...given)\n}}"


def chromium_path() -> str:
    """Return the path of Chromium."""
    path = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium")
    assert path is not None, (
        "the browser tests need Chromium and found none: "
        "install the package chromium, or set TENUTO_CHROMIUM to its path"
    )
    return path


@asynccontextmanager
async def chromium(*more: str) -> AsyncIterator[Browser]:
    """Run a Chromium, perhaps with more arguments, for several tests, which open windows in profiles of their own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=[*ARGUMENTS, *more])
        yield browser
        await browser.close()


async def picture(page: Page, name: str) -> None:
    """Take the picture of an example for the index of the examples, where the variable TENUTO_PICTURES asks for it."""
    if os.environ.get("TENUTO_PICTURES"):
        await page.set_viewport_size({"width": 720, "height": 320})
        await page.screenshot(path=Path(__file__).parents[2] / "examples" / "pictures" / f"{name}.png")


class Tab:
    """A tab that follows one channel."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.events: list[dict[str, Any]] = []  # all events of all WebSockets
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._listen)

    @classmethod
    async def open(cls, browser: Browser, port: int, channel: str, transport: str = "ws", name: str = "") -> Tab:
        """Open a tab, in a profile of its own, for the person `name` (by default a new one)."""
        context = await browser.new_context()
        context.set_default_timeout(TIMEOUT_MS)
        transport = {"ws": "websocket"}.get(transport, transport)
        query = f"channel={channel}&transport={transport}" + (f"&as={name}" if name else "")
        tab = cls(await context.new_page(), f"http://127.0.0.1:{port}/?{query}")
        await tab.page.goto(tab.url)
        return tab

    async def reload(self) -> None:
        """Press F5."""
        await self.page.reload()

    async def send(self, text: str) -> None:
        """Type a message and send it."""
        await self.page.fill("textarea", text)
        await self.page.press("textarea", "Enter")

    async def text(self, message_id: str) -> str | None:
        """Return the text of a message in the page; None if the page does not have the message."""
        found: str | None = await self.page.evaluate(_TEXT, message_id)
        return found

    async def until_length(self, message_id: str, length: int) -> str:
        """Wait until the message shows at least `length` UTF-16 units, and return its text."""
        await self.page.wait_for_function(
            f"([id, length]) => (({_TEXT})(id) ?? '').length >= length", arg=[message_id, length]
        )
        text = await self.text(message_id)
        assert text is not None
        return text

    async def until_status(self, message_id: str, status: str) -> None:
        """Wait until the message has this status."""
        await self.page.wait_for_selector(f'[data-message-id="{message_id}"][data-status="{status}"]')

    def _listen(self, socket: WebSocket) -> None:
        def receive(frame: str | bytes) -> None:
            message = json.loads(frame)
            if message.get("type") == "events":
                self.events.extend(message["events"])

        socket.on("framereceived", receive)


def units(text: str) -> int:
    """Return the length of `text` in JavaScript."""
    return len(text.encode("utf-16-le")) // 2
