"""The page of `docs/ai-sdk.md` with assistant-ui over the AI SDK, as it stands, in Chromium."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import expect

from tenuto import Turn
from tests.browser.tab import chromium
from tests.examples.test_pages import opened
from tests.interop.long.test_react import build, program
from tests.transports.conftest import new_hub, serving


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the script that is built from the page in `docs/ai-sdk.md`."""
    return build(tmp_path_factory.mktemp("page"), block=1)


async def test_page_sends_resumes_after_a_reload_and_goes_on(script: bytes) -> None:
    hub, gate = new_hub(), asyncio.Event()

    @hub.agent("chat:*")
    async def waits(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello ")
            await gate.wait()
            await message.append(f"to {turn.text}")

    async with (
        serving(hub, program(hub, script, has_agent=False)) as served,
        chromium() as browser,
        opened(browser, f"http://127.0.0.1:{served.port}") as page,
    ):
        message = page.get_by_label("Message")
        await message.fill("you")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("p")).to_contain_text(["you", "Hello"])
        await page.reload()
        await expect(page.locator("p")).to_contain_text(["you", "Hello"])
        gate.set()
        await expect(page.locator("p")).to_contain_text(["you", "Hello to you"])
        await message.fill("me")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("p")).to_contain_text(["you", "Hello to you", "me", "Hello to me"])
        await expect(page.locator("p p")).to_have_count(0)
