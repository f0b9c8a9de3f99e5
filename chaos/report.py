"""The report of a run: its events, and the rule that was broken.

Layer: chaos.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Failure", "Story", "short"]


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
        self._begun_s = time.monotonic()

    def add(self, what: str) -> None:
        self.lines.append(f"{time.monotonic() - self._begun_s:8.3f} {what}")
        if self._write_line is not None:
            self._write_line(self.lines[-1])


def short(value: object) -> str:
    """Return the value as text, without its middle if it is long."""
    shown = repr(value)
    return shown if len(shown) <= 400 else f"{shown[:250]} … {shown[-100:]}"
