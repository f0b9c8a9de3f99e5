"""The presence of a member in a channel: `async with client.presence("chat:1", {"name": "Ada"})`.

Layer: client.

A member belongs to a socket, so the client enters again on each new one. The server's grace period hides the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Self

from tenuto.client.connection import Unreachable
from tenuto.client.link import Link, Outcome
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.model import Json, check_json, plain

logger = logging.getLogger("tenuto.client")


class Presence:
    """A member that is present while the `async with` block runs."""

    def __init__(self, link: Link, channel: str, data: dict[str, Json], member: str | None) -> None:
        self.channel = channel
        self.error: TenutoError | None = None  # the reason if the member is no longer present; `update` raises it
        self._link = link
        self._member = member
        self._data = self._checked(data)
        self._is_here = False
        self._failures = 0
        self._again: asyncio.TimerHandle | None = None

    async def enter(self) -> Self:
        """Enter the channel. Raises the server's refusal; Unreachable."""
        if not self._is_here:
            await self._link.request("presence", self._frame())
            self._is_here = True
            self._link.add_listener(self, since=self._link.sockets)
        return self

    async def update(self, data: dict[str, Json]) -> None:
        """Replace the member's data."""
        if not self._is_here:
            raise LocalError(f"the member has not entered channel {self.channel!r}; use `async with`")
        if self.error is not None:
            raise self.error
        self._data = self._checked(data)
        await self._link.request("presence", self._frame())

    async def leave(self) -> None:
        """Leave the channel."""
        if not self._is_here:
            return
        self._is_here = False
        self._link.remove_listener(self)
        self.broken()
        # withdraw presence only on an open connection, since members leave with their socket
        if self._link.is_live and self.error is None:
            with contextlib.suppress(Unreachable):
                await self._link.request("presence", {**self._frame(), "leave": True}, is_repeatable=False)

    async def __aenter__(self) -> Self:
        return await self.enter()

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    # Calls of the link

    def opened(self) -> None:
        self._link.begin("presence", self._frame(), self._on_result, is_repeatable=False)

    def broken(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def stopped(self, error: TenutoError) -> None:
        self.error = error

    # Internal

    def _on_result(self, result: Outcome) -> None:
        if not isinstance(result, TenutoError):
            self._failures = 0
        elif isinstance(result, Unreachable):
            pass  # `opened` will enter the channel again
        elif result.retry and self._is_here:
            self._failures += 1
            delay_s = self._link.timing.retry(self._failures, self._link.random)
            self._again = asyncio.get_running_loop().call_later(delay_s, self.opened)
        else:
            self.error = result
            logger.warning("the member is no longer present in %s: %s", self.channel, result.code)

    def _frame(self) -> dict[str, Any]:
        member = {} if self._member is None else {"member": self._member}
        return {"channel": self.channel, **member, "data": self._data}

    def _checked(self, data: dict[str, Json]) -> dict[str, Json]:
        limits = self._link.limits
        check_json(data, limits.data_bytes, "a member's data", depth=limits.depth)
        return plain(data)
