"""The proxies of a run, in a process of their own.

    python -m proof.chaos.proxies

Layer: chaos.

The event loop of a run serves hundreds of viewers. On a busy machine it is one or two seconds late, and proxies on it
would delay each statement of a node and each append of an agent as much: nodes lost their leases and writers gave up,
although PostgreSQL responded. The process reads a line for each call, and prints one for its result.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from proof.chaos.processes import Child, say_when_late
from proof.chaos.producer import say
from tests.proxy import FaultProxy

CALL_S = 20.0  # longest time of a call, on a busy machine


class Proxies(Child):
    """The process with the proxies."""

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        """Make the process, which writes to its log in `folder`. `note` gets a line for the report of the run."""
        super().__init__(
            "proxies", ["-m", "proof.chaos.proxies"], folder / "proxies.log", report=self._take, takes_input=True
        )
        self._note = note
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[int]] = {}

    async def add(self, port: int) -> Proxy:
        """Return a new proxy in front of `port`."""
        number = next(self._numbers)
        return Proxy(self, number, await self.call(number, "open", port))

    async def call(self, proxy: int, name: str, *arguments: object) -> int:
        """Return the port of the proxy when the call has taken effect. Raises TimeoutError."""
        number = next(self._numbers)
        call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._calls[number] = call
        self.send_line(json.dumps([number, proxy, name, arguments]))
        try:
            async with asyncio.timeout(CALL_S):
                return await call
        finally:
            del self._calls[number]

    def _take(self, report: dict[str, Any]) -> None:
        if report["say"] == "late":
            self._note(f"proxies: {report['detail']}")
        elif (call := self._calls.get(report["call"])) is not None and not call.done():
            call.set_result(report["port"])


class Proxy:
    """A `FaultProxy` in that process."""

    def __init__(self, process: Proxies, number: int, port: int) -> None:
        self._process = process
        self._number = number
        self.port = port

    async def do(self, name: str, *arguments: object) -> None:
        """Call the method `name` of the `FaultProxy`; "point_to" sets its port. Return when it has taken effect."""
        await self._process.call(self._number, name, *arguments)


async def serve() -> None:
    """Carry out the calls of the input, until its end."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    proxies: dict[int, FaultProxy] = {}
    async with AsyncExitStack() as stack:
        watching = asyncio.create_task(say_when_late(lambda what: say("late", detail=what)))
        stack.callback(watching.cancel)
        while line := await lines.readline():
            number, proxy, name, arguments = json.loads(line)
            if name == "open":
                proxies[proxy] = await stack.enter_async_context(FaultProxy("127.0.0.1", *arguments))
            else:
                await _carry_out(proxies[proxy], name, arguments)
            say("done", call=number, port=proxies[proxy].port)


async def _carry_out(proxy: FaultProxy, name: str, arguments: list[Any]) -> None:
    if name == "point_to":
        proxy.upstream = ("127.0.0.1", *arguments)
    elif inspect.isawaitable(done := getattr(proxy, name)(*arguments)):
        await done


if __name__ == "__main__":
    asyncio.run(serve())
