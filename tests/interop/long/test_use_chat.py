"""The example `examples/use_chat`, built by its own command: its page in Chromium, its server here and on two nodes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.tab import chromium, picture
from tests.examples.programs import load, served_app
from tests.interop.long.test_react import ask

expect.set_options(timeout=30_000)


async def test_page_of_the_example_resumes_in_mid_answer_and_stops_for_both_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the folder of the server's store
    folder = os.environ.get("TENUTO_USE_CHAT")
    assert folder is not None, "TENUTO_USE_CHAT names the built example; scripts/test_interop builds it"
    program, gates = load(f"{folder}/server"), [asyncio.Event(), asyncio.Event()]

    async def model(question: str) -> AsyncIterator[str]:
        yield f"{question} Begun, "
        await gates.pop(0).wait()
        yield "ended."

    first = gates[0]
    program.model = model  # type: ignore[attr-defined]
    async with served_app(program.app) as address, chromium() as browser:
        errors: list[str] = []

        async def opened() -> Page:
            page = await browser.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(address)
            return page

        one = await opened()
        await ask(one, "Why?")
        await expect(one.locator("article")).to_have_text(["Why?", "Why? Begun,"])
        await one.reload()
        await expect(one.locator("article")).to_have_text(["Why?", "Why? Begun,"])
        first.set()
        await expect(one.locator("article")).to_have_text(["Why?", "Why? Begun, ended."])
        await expect(one.get_by_role("status")).to_have_text("ready")

        await ask(one, "And?")
        await expect(one.locator("article").last).to_have_text("And? Begun,")
        await picture(one, "use_chat")
        other = await opened()
        await other.get_by_role("button", name="Stop").click()
        for page in (one, other):
            await expect(page.get_by_role("status")).to_have_text("ready")
            await expect(page.locator("article")).to_have_text(["Why?", "Why? Begun, ended.", "And?", "And? Begun,"])
        stored = (await program.hub.history("chat:1")).messages
        answers = [(each.text, each.status) for each in stored if each.role == "assistant"]
        assert answers == [("And? Begun, ", "cancelled"), ("Why? Begun, ended.", "complete")]
        await one.set_viewport_size({"width": 375, "height": 240})
        await expect(one.locator("article").last).to_be_in_viewport()
        assert errors == []
