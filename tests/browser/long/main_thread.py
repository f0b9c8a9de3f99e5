"""The CPU time of a page's main thread, which other processes of the machine do not change.

Layer: tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from playwright.async_api import CDPSession, Page


@dataclass(frozen=True)
class Spent:
    """CPU time of the main thread since the page was made, in milliseconds."""

    thread_ms: float
    script_ms: float
    layout_ms: float  # with the calculation of styles

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.thread_ms - other.thread_ms,
            self.script_ms - other.script_ms,
            self.layout_ms - other.layout_ms,
        )

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
            seconds["ThreadTime"] * 1_000,
            seconds["ScriptDuration"] * 1_000,
            (seconds["LayoutDuration"] + seconds["RecalcStyleDuration"]) * 1_000,
        )
