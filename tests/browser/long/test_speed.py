"""The cost of an answer that grows, in CPU time of the page's main thread.

Layer: tests.

Each answer has 200 KB and comes in pieces of 100 characters, one for each frame, in a message of the panel's style whose
end stays in view. A step is everything that the main thread does for one piece, so no task is longer than its step.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from holdfast.core.limits import Limits
from tests.browser.long.main_thread import MainThread, Spent
from tests.browser.test_markdown import POLICY, markdown_page
from tests.transports.conftest import new_hub, serving

LENGTH = 200_000
PIECE = 100
MAX_STEP_MS = 50.0
MEAN_MS = 2.0
LAST_TO_SECOND = 1.3  # script time of the last quarter by that of the second
MESSAGES = 1_000
FIRST_PAINT_MS = 300.0
ANSWERS = Path(__file__).parent / "answers.md"

_DRAWN = "() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))"
# The page notes when messages have been painted for the first time.
_MARK = """
const look = () => {
  const root = document.querySelector("holdfast-chat")?.shadowRoot
  if (root?.querySelector("article")) setTimeout(() => performance.mark("shown"))
  else requestAnimationFrame(look)
}
requestAnimationFrame(look)
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with markdown_page(browser) as page:
        yield page


def mixed() -> str:
    """Return an answer with everything that the stored answers have."""
    answers = ANSWERS.read_text().split("%% ")[1:]
    once = "\n\n".join(one.partition("\n")[2] for one in answers)
    return (once * (LENGTH // len(once) + 1))[:LENGTH]


async def steps_of(page: Page, text: str) -> list[Spent]:
    """Let `text` grow in the page. Return the cost of each step."""
    thread = await MainThread.of(page)
    await page.evaluate("text => tests.stage(text)", text)
    before = await thread.spent()
    steps = []
    for end in range(PIECE, len(text) + PIECE, PIECE):
        await page.evaluate("end => tests.step(end)", end)
        now = await thread.spent()
        steps.append(now - before)
        before = now
    assert await page.evaluate("tests.stagedLength()") > len(text) / 2
    return steps


@pytest.mark.parametrize("name", ["a mixed answer", "a fence", "a tight list", "a table", "a paragraph"])
async def test_cost_of_a_step_is_small_and_does_not_grow(page: Page, name: str) -> None:
    text = mixed() if name == "a mixed answer" else await page.evaluate(f"tests.longBlock({name!r}, {LENGTH})")
    steps = await steps_of(page, text)
    size = len(steps) // 4
    quarters = [sum(one.script_ms for one in steps[n * size : (n + 1) * size]) for n in range(4)]
    mean_ms = statistics.mean(one.drawing_ms for one in steps)
    longest_ms = max(one.thread_ms for one in steps)
    print(f"{name}: {mean_ms:.2f} ms a step, longest {longest_ms:.0f} ms, quarters {[round(one) for one in quarters]} ms")
    assert longest_ms <= MAX_STEP_MS
    assert mean_ms <= MEAN_MS
    assert quarters[3] <= quarters[1] * LAST_TO_SECOND


async def test_thousand_messages_are_shown_soon_and_in_short_tasks(browser: Browser) -> None:
    limits = Limits(history=MESSAGES, default_history=MESSAGES, history_bytes=16 * 1024 * 1024)
    hub = new_hub(limits=limits)
    text = ANSWERS.read_text().split("%% ")[1].partition("\n")[2] * 3
    app = Starlette(routes=[Route("/", chat), Mount("/holdfast", hub)])
    async with serving(hub, app) as served:
        for n in range(MESSAGES):
            await hub.create("chat:1", text=f"{n} {text}", role=("user", "assistant")[n % 2])
        page = await (await browser.new_context()).new_page()
        await page.add_init_script(_MARK)
        await browser.start_tracing(page=page, categories=["toplevel", "blink.user_timing"])
        await page.goto(f"http://localhost:{served.port}/")
        await page.wait_for_function(
            f"() => document.querySelector('holdfast-chat').shadowRoot.querySelectorAll('article').length === {MESSAGES}"
        )
        await page.evaluate(_DRAWN)
        tasks = Tasks(json.loads(await browser.stop_tracing()))
        await page.goto("about:blank")
    print(f"first paint after {tasks.until_shown_ms:.0f} ms, then the longest task took {tasks.longest_ms:.0f} ms")
    assert tasks.until_shown_ms <= FIRST_PAINT_MS
    assert tasks.longest_ms <= MAX_STEP_MS


class Tasks:
    """The tasks of the page's main thread, from a trace: their CPU time until messages are shown, and the longest later one."""

    def __init__(self, trace: Any) -> None:
        events = trace["traceEvents"]
        [shown] = [one for one in events if one["name"] == "shown" and one["ph"] in "IRn"]
        main = (shown["pid"], shown["tid"])
        tasks = [one for one in events if one["name"].endswith("RunTask") and (one["pid"], one["tid"]) == main]
        self.until_shown_ms = sum(one["tdur"] for one in tasks if one["ts"] < shown["ts"]) / 1_000
        self.longest_ms = max((one["tdur"] for one in tasks if one["ts"] > shown["ts"]), default=0.0) / 1_000


async def chat(request: object) -> HTMLResponse:
    tag = '<holdfast-chat channel="chat:1"></holdfast-chat>'
    page = f"<!doctype html><title>Chat</title><script type=module src=/holdfast/web/chat.js></script>{tag}"
    return HTMLResponse(page, headers={"content-security-policy": POLICY})
