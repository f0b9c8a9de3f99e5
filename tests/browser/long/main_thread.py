"""The CPU time of a page's main thread, which other processes of the machine do not change.

Layer: tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Browser, CDPSession, Page

_CATEGORIES = ["toplevel", "blink.user_timing", "__metadata"]


@dataclass(frozen=True)
class Spent:
    """CPU time of the main thread since the page was made, in milliseconds."""

    script_ms: float
    layout_ms: float  # with the calculation of styles

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.script_ms - other.script_ms, self.layout_ms - other.layout_ms)

    @property
    def drawing_ms(self) -> float:
        return self.script_ms + self.layout_ms


class MainThread:
    """The main thread of a page, which does no other work while a test reads its times."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session

    @classmethod
    async def of(cls, page: Page) -> MainThread:
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        return cls(session)

    async def spent(self) -> Spent:
        found = await self._session.send("Performance.getMetrics")
        seconds = {one["name"]: one["value"] for one in found["metrics"]}
        return Spent(
            seconds["ScriptDuration"] * 1_000, (seconds["LayoutDuration"] + seconds["RecalcStyleDuration"]) * 1_000
        )


async def start_tasks(browser: Browser, page: Page) -> None:
    """Record the tasks of the page until `stop_tasks`."""
    await browser.start_tracing(page=page, categories=_CATEGORIES)


async def stop_tasks(browser: Browser, mark: str = "") -> list[float]:
    """Return the CPU times in ms of the recorded tasks that began after the page's last performance mark `mark`."""
    _, later_ms = await stop_tasks_at(browser, mark)
    return later_ms


async def stop_tasks_at(browser: Browser, mark: str = "") -> tuple[float, list[float]]:
    """Return the CPU time in ms of the task that set the page's last mark `mark`, and those of the tasks after it."""
    events: list[dict[str, Any]] = json.loads(await browser.stop_tracing())["traceEvents"]
    mains = {
        (one["pid"], one["tid"])
        for one in events
        if one["name"] == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    since_us = max(one["ts"] for one in events if one["name"] == mark) if mark else 0
    tasks = [
        one for one in events if one["name"].endswith("RunTask") and "tdur" in one and (one["pid"], one["tid"]) in mains
    ]
    marking = [one["tdur"] / 1_000 for one in tasks if one["ts"] < since_us < one["ts"] + one["dur"]]
    return max(marking, default=0.0), [one["tdur"] / 1_000 for one in tasks if one["ts"] >= since_us]
