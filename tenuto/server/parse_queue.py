"""The queue of connections that have sent more than the server parses at once.

Layer: serving, below `bounded_http` and `bounded_websocket`.

Each of those protocols parses in slices and sets the rest of its input aside. Connections with such a rest go on one
after another, a few in each iteration of the event loop. They share one limit of time in an iteration, but for sockets
that are not authenticated, whose input has a limit in bytes. So a hundred floods delay the other connections no longer
than one flood. A request needs about seven iterations (measured).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

PARSE_S = 0.001  # time to parse large input, in one iteration of the loop
HTTP_S = 0.0005  # the part of it for HTTP, whose peers may be unknown
MOST_AT_ONCE = 4  # connections that go on in one iteration: to begin a request takes longer than to parse it


class ParseQueue:
    """The connections whose input was set aside, in the order in which they go on."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._end_s = 0.0  # when the time to parse ends, in the loop's time; 0 until a connection has requested it
        self._is_called = False

    def end_s(self) -> float:
        """Return until when, in the time of the running loop, input may be parsed in this iteration."""
        if not self._end_s:
            loop = asyncio.get_running_loop()
            self._end_s = loop.time() + PARSE_S
            self._call_soon(loop)
        return self._end_s

    def add(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in one of the next iterations."""
        self._waiting.append(go_on)
        self._call_soon(asyncio.get_running_loop())

    def _call_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin an iteration: let the connections go on that have waited for longest."""
        self._is_called = False
        self._end_s = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._waiting), MOST_AT_ONCE)):
            self._waiting.popleft()()
            if self._end_s and loop.time() > self._end_s:
                break
        if self._waiting:
            self._call_soon(loop)
