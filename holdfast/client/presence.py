"""Being seen on a channel, over any number of connections: `async with client.presence("chat:1", {"name": "Ada"})`.

Layer: client.

Members belong to sockets, so each new socket is told again; the server's grace hides the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Self

from holdfast.client.link import Link, Result
from holdfast.client.problems import Unreachable
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.model import Json, check_json, plain

logger = logging.getLogger("holdfast.client")


class Presence:
    """A member that is here for as long as the block lasts."""

    def __init__(self, link: Link, channel: str, data: dict[str, Json], member: str | None) -> None:
        self.channel = channel
        self.error: HoldfastError | None = None  # why one who was here is not any more; `update` raises it
        self._link = link
        self._member = member
        self._data = self._checked(data)
        self._is_here = False
        self._failures = 0
        self._again: asyncio.TimerHandle | None = None

    async def enter(self) -> Self:
        """Be seen from now on. Raises what the server refused; Unreachable."""
        if not self._is_here:
            await self._link.request("presence", self._frame())
            self._is_here = True
            self._link.stand(self, since=self._link.sockets)
        return self

    async def update(self, data: dict[str, Json]) -> None:
        """Be seen with other data."""
        if not self._is_here:
            raise LocalError(f"nobody has entered {self.channel} here")
        if self.error is not None:
            raise self.error
        self._data = self._checked(data)
        await self._link.request("presence", self._frame())

    async def leave(self) -> None:
        """Be seen no more."""
        if not self._is_here:
            return
        self._is_here = False
        self._link.step_down(self)
        self.broken()
        if self._link.is_live and self.error is None:  # a socket that is gone has left
            with contextlib.suppress(Unreachable):
                await self._link.request("presence", {**self._frame(), "leave": True}, is_repeatable=False)

    async def __aenter__(self) -> Self:
        return await self.enter()

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    # For the link

    def opened(self) -> None:
        self._link.begin("presence", self._frame(), self._answered, is_repeatable=False)

    def broken(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def stopped(self, error: HoldfastError) -> None:
        self.error = error

    # Inside

    def _answered(self, answer: Result) -> None:
        if not isinstance(answer, HoldfastError):
            self._failures = 0
        elif isinstance(answer, Unreachable):
            pass  # `opened` comes again
        elif answer.retry and self._is_here:
            self._failures += 1
            delay_s = self._link.timing.retry(self._failures, self._link.random)
            self._again = asyncio.get_running_loop().call_later(delay_s, self.opened)
        else:
            self.error = answer
            logger.warning("not present on %s any more: %s", self.channel, answer.code)

    def _frame(self) -> dict[str, Any]:
        member = {} if self._member is None else {"member": self._member}
        return {"channel": self.channel, **member, "data": self._data}

    def _checked(self, data: dict[str, Json]) -> dict[str, Json]:
        limits = self._link.limits
        check_json(data, limits.data_bytes, "a member's data", depth=limits.depth)
        return plain(data)
