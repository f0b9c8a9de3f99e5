"""The buttons of the demo at each moment: the promise holds and it ticks.

Layer: tests. `tests/demo/test_page.py` has the story that a visitor sees.
"""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.browser.tab import TIMEOUT_MS
from tests.demo.test_page import answer_of, until_length, visiting
from tests.processes import Server

# The death of the server at each moment, and each other button at one.
CASES = [
    *(("kill", moment) for moment in ("before the first word", "in code", "after the end")),
    *[("reload", "after the end"), ("window", "in code")],
    *[("crash", "before the first word"), ("crash", "in text"), ("offline", "after the end"), ("offline", "in text")],
]
PLAIN = {
    "reload": "lost on your reload",
    "kill": "server died",
    "crash": "agent died",
    "offline": "the network was gone",
}
# the texts of the tiles after a trial in the answer
TILES = {
    "kill": r"kill -9 \d+ · back after \d+\.\d s",
    "crash": r"guide\S* went on after [\d,]+ characters, \d+\.\d s",
    "offline": r"[\d,]+ characters? followed in \d+ events?, \d+ ms",
    "window": r"\S+ sees the same text",
}
_IS_AT = {
    "before the first word": "({ answer }) => answer === undefined || answer.text === ''",
    "in text": "({ answer }) => answer?.text.length >= 80",
    "in code": "({ answer }) => answer?.text.split('```').length === 2 && answer.text.split('```')[1].length >= 40",
    "after the end": "({ answer }) => answer?.status === 'complete'",
}


async def until(page: Page, moment: str) -> None:
    await page.wait_for_function(f"() => ({_IS_AT[moment]})(({answer_of})())")


@pytest.mark.parametrize(("button", "moment"), CASES)
async def test_a_button_ticks(browser: Browser, shared: Server, button: str, moment: str) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        held: asyncio.Queue[Route] = asyncio.Queue()
        await page.route("**/demo/info", held.put, times=1)
        await page.goto(f"http://127.0.0.1:{shared.port}/")
        await expect(page.locator("#ask :enabled")).to_have_count(0)  # it would be sent by the browser, and be lost
        await (await held.get()).continue_()
        await page.fill("#text", "What is a cursor?")
        await page.click("#ask button")
        await expect(page.locator(f"#do-{button}")).to_be_enabled()
        if moment == "after the end":
            await until(page, "in text")
            await page.get_by_role("button", name="Steer this answer").click()
            await page.fill("textarea", "shorter")
            await page.press("textarea", "Enter")
        await until(page, moment)
        before = await page.evaluate(f"({answer_of})().answer")
        await page.click(f"#do-{button}")
        case = f"{button}, {moment}"
        tile = page.locator(f"#do-{button}")
        await expect(tile, case).to_have_attribute("data-state", "ok", timeout=TIMEOUT_MS)
        is_over = moment == "after the end"
        if button in PLAIN and (not is_over or button == "reload"):
            await expect(page.locator(".loss"), case).to_contain_text(PLAIN[button])
        else:
            await expect(page.locator(".loss"), case).to_have_count(0)
        if moment.startswith("in "):
            await expect(tile, case).to_contain_text(re.compile(TILES[button]))
        if button == "kill":
            assert re.search(r"^Server restarted after \d+\.\d s\.$", shared.output, re.MULTILINE)
            assert "no connection" not in shared.output  # the line about the restart is enough
        if not is_over:
            await until_length(page, len(before["text"]) + 1 if before else 1)
        after = await page.evaluate(f"({answer_of})().answer")
        assert after["text"].startswith(before["text"] if before else ""), case
        await expect(page.locator("#tenuto-counts"), case).to_have_text(
            re.compile(r"\d breaks? ?0 characters lost ?1 model call")
        )
