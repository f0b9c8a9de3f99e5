"""The report of a run: its events, and the rule that was broken.

Layer: chaos.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LATE_S = 0.5  # longest wait of an event loop without a line in the report


class Failure(Exception):
    """A rule is broken. `account` describes the run."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.account = detail


class Story:
    """The events of a run, each with its time. `write_line` receives each line, too."""

    def __init__(self, write_line: Callable[[str], None] | None) -> None:
        self.lines: list[str] = []
        self._write_line = write_line
        self.begun_s = time.monotonic()

    def add(self, what: str) -> None:
        self.lines.append(f"{time.monotonic() - self.begun_s:8.3f} {what}")
        if self._write_line is not None:
            self._write_line(self.lines[-1])


async def say_when_late(say: Callable[[str], None]) -> None:
    """Say how late the event loop is, each time that its machine or its work delays it by more than `LATE_S`."""
    while True:
        due_s = time.monotonic() + LATE_S
        await asyncio.sleep(LATE_S)  # the measure
        if (late_s := time.monotonic() - due_s) > LATE_S:
            say(f"the event loop of this process was {late_s:.1f} s late")


def short(value: object) -> str:
    """Return the value as text, without its middle if it is long."""
    shown = repr(value)
    return shown if len(shown) <= 400 else f"{shown[:250]} … {shown[-100:]}"
