"""Shutdown of a process with agents: it receives a signal, and its running answers get time to complete.

Layer: client.

The hub has its own hook (`hub.drain`), because a server shuts down in another order: there the server receives the
signal and ends; here `run` ends first, and then the signal is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger("tenuto.client")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Handles signals while the block runs: calls `first` at the first one, `again` at the second, and ignores others.

    At the end of the block a received signal is passed on to the previous handler: the process ends as it would have
    without this class, but later.
    """

    def __init__(self, *, first: Callable[[], object], again: Callable[[], object]) -> None:
        self._first = first
        self._again = again
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received: int | None = None

    def __enter__(self) -> Self:
        # Python allows handlers to be set in this thread only
        if threading.current_thread() is threading.main_thread():
            self._loop = asyncio.get_running_loop()
            for number in SIGNALS:
                before = signal.getsignal(number)
                # None means that the handler was not set by Python; an ignored signal stays ignored. Neither can be
                # called.
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._hit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        self._loop = None
        if self._received is not None:
            self._pass_on(self._received)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        if self._loop is None:  # the block has ended, but a handler that was set later still calls this one
            self._pass_on(number)
        elif self._received is None:
            self._received = number
            self._loop.call_soon_threadsafe(self._first)
        else:
            self._remove()
            self._loop.call_soon_threadsafe(self._again)

    def _remove(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._hit:  # otherwise a handler that was set later will call this one
                signal.signal(number, before)

    def _pass_on(self, number: int) -> None:
        before = self._before[number]
        if callable(before):
            before(number, None)
        else:
            signal.raise_signal(number)
