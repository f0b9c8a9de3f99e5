"""Waits of one connection that take little memory while they are idle.

Layer: serving, below `bounded_websocket`, which gives them to uvicorn.

`asyncio.Queue` and `asyncio.Event` hold four and one deques of 760 bytes each, although a socket that only views rarely
waits in any of them. These two have the same methods, as far as uvicorn calls them.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Gate:
    """An `asyncio.Event` whose waiters are kept only while it is closed."""

    __slots__ = ("_is_open", "_waiters")

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Return whether `wait` returns at once."""
        return self._is_open

    def set(self) -> None:
        """Let all waiters go on."""
        self._is_open = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let later callers of `wait` wait for the next `set`."""
        self._is_open = False

    async def wait(self) -> bool:
        """Wait until the gate is open; return True."""
        if not self._is_open:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters += (waiter,)
            try:
                await waiter
            finally:
                self._waiters = tuple(other for other in self._waiters if other is not waiter)
        return True


class Inbox(Generic[T]):
    """An `asyncio.Queue` without a limit: its owner stops reading from the peer after each message."""

    __slots__ = ("_has_message", "_messages")

    def __init__(self) -> None:
        self._messages: list[T] = []
        self._has_message = Gate(is_open=False)

    def empty(self) -> bool:
        """Return whether `get` would wait."""
        return not self._messages

    def put_nowait(self, message: T) -> None:
        """Add `message`."""
        self._messages.append(message)
        self._has_message.set()

    async def get(self) -> T:
        """Remove and return the oldest message; wait for one if there is none."""
        while not self._messages:
            self._has_message.clear()
            await self._has_message.wait()
        return self._messages.pop(0)
