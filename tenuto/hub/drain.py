"""The signal hook that lets a server shut down while streams are open.

Layer: hub.

ASGI servers wait for open responses at shutdown and at `--reload`, and do not notify the app before (measured on
uvicorn and granian), so a single open tab would hang them. The hook is chained to the previous handler: it disconnects
viewers at once, gives running answers time to finish, then calls the server's own handler. A second signal does not
wait.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

logger = logging.getLogger("tenuto.hub")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHook:
    """Runs `drain` on the loop at the first signal, then the previous handlers."""

    def __init__(self, drain: Callable[[], Awaitable[None]]) -> None:
        self._drain = drain
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_hit = False

    def install(self) -> None:
        """Hook the signals; again if another component has replaced the handlers since. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        self._is_hit = False
        for number in SIGNALS:
            before = signal.getsignal(number)
            # None stands for a handler that is not written in Python. Neither it nor SIG_IGN can be called from ours;
            # ignored signals stay ignored.
            if before is None or before in (signal.SIG_IGN, self._hit):
                continue
            self._before[number] = before
            signal.signal(number, self._hit)

    def remove(self) -> None:
        """Restore the previous handlers, unless another component has hooked the signals since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._before.items():
            if signal.getsignal(number) == self._hit:
                signal.signal(number, before)
        self._before.clear()

    def _hit(self, number: int, frame: FrameType | None) -> None:
        loop = self._loop
        if self._is_hit or loop is None or loop.is_closed() or not loop.is_running():
            self._pass_on(number, frame)
            return
        self._is_hit = True
        loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        self._task = asyncio.get_running_loop().create_task(self._drain_then_pass_on(number))

    async def _drain_then_pass_on(self, number: int) -> None:
        try:
            await self._drain()
        except Exception:
            logger.exception("draining failed")
        self._pass_on(number, None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number, signal.SIG_DFL)
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
