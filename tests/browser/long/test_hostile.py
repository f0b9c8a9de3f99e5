"""Hostile Markdown and HTML in the chat element, cut at every position, under the policy that it is made for.

Layer: tests.
"""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import Browser, Page

from tests.browser.long.main_thread import start_tasks, stop_tasks

HOSTILE = json.loads((Path(__file__).parents[1] / "hostile.json").read_text())
MAX_TASK_MS = 100.0  # of CPU time
# Colours for 20 KB of code take one task, which cannot be sliced: 101 ms on a processor of 2.1 GHz.
COLOURS_MS = 150.0
LENGTH = 200_000
STEPS = 40


async def test_hostile_text_cut_at_every_position_runs_and_fetches_nothing(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for text in HOSTILE:
        assert await page.evaluate("text => tests.forbiddenAtEachCut(text)", text) == [], text
    together = "\n\n".join(HOSTILE)
    assert await page.evaluate("text => tests.forbidden(text, 400)", together) == []
    assert await page.evaluate("[window.hit, tests.violations, Object.prototype.href]") == [None, [], None]
    assert requests == [one for one in requests if one.endswith("/web/vendor/highlight.js")]


async def test_no_shape_of_text_takes_long(browser: Browser, page: Page) -> None:
    longest_ms: dict[str, int] = {}
    names = await page.evaluate("Object.keys(tests.shapes(1_000))")
    for _ in range(4):  # another process may lengthen a task, but hardly the same one each time
        for name in names:
            length = await page.evaluate(f"tests.stage(tests.shapes({LENGTH})[{name!r}]).then(tests.stagedTarget)")
            size = length // STEPS + 1
            await start_tasks(browser, page)
            await page.evaluate(f"tests.steps(0, {length}, {size})")
            if name == "a full fence":  # the only code that gets colours, after the last piece
                await page.evaluate("tests.coloured('')")
            longest_ms[name] = round(max(await stop_tasks(browser)))
        limits_ms = {name: COLOURS_MS if name == "a full fence" else MAX_TASK_MS for name in longest_ms}
        names = [name for name, took_ms in longest_ms.items() if took_ms > limits_ms[name]]
    print(longest_ms)
    assert {name: longest_ms[name] for name in names} == {}
