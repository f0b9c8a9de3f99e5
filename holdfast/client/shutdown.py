"""Leaving: the signals that ask a process of agents to end, which then does so without breaking its answers off.

Layer: client.

The hub has a hook of its own (`hub.drain`), since servers end in another order: there the signal
is passed on to the server, which then ends; here `run` ends first, and then passes it on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger("holdfast.client")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Hears of them while the block runs: of one with `first`, of a second with `again`, and of no third.

    When the block is over, what was heard is passed on to the handler that was there before: so the process ends as it
    would have without us, only later.
    """

    def __init__(self, *, first: Callable[[], object], again: Callable[[], object]) -> None:
        self._first = first
        self._again = again
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python has signals nowhere else
            self._loop = asyncio.get_running_loop()
            for number in SIGNALS:
                before = signal.getsignal(number)
                # None: a handler that Python does not know; an ignored one stays so. Neither can be chained to.
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._hit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        self._loop = None
        if self._heard is not None:
            self._pass_on(self._heard)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        if self._loop is None:  # we are gone, and somebody who hooked on after us passes it on
            self._pass_on(number)
        elif self._heard is None:
            self._heard = number
            self._loop.call_soon_threadsafe(self._first)
        else:
            self._remove()
            self._loop.call_soon_threadsafe(self._again)

    def _remove(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._hit:  # else somebody hooked on after us
                signal.signal(number, before)

    def _pass_on(self, number: int) -> None:
        before = self._before[number]
        if callable(before):
            before(number, None)
        else:
            signal.raise_signal(number)
