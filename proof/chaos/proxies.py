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
import random
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from proof.chaos.processes import Child
from proof.chaos.producer import say
from proof.chaos.report import say_when_late
from tests.proxy import Direction, FaultProxy

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
    elif name == "cut_after":
        direction, *counts = arguments
        proxy.cut_after(*counts, direction=direction)
    elif inspect.isawaitable(done := getattr(proxy, name)(*arguments)):
        await done


FAULTS = ("cut", "close", "cut_after", "stall", "throttle", "black_hole", "refuse")
LONGEST_S = 1.0  # longest fault; a black hole lasts up to three times as long


class FaultModel:
    """Faults for one proxy until `end`, with pauses of up to `calm_s` between them."""

    def __init__(self, proxy: Proxy, seed: str, *, calm_s: float) -> None:
        self._proxy = proxy
        self._random = random.Random(seed)
        self._calm_s = calm_s
        self.counts = dict.fromkeys(FAULTS, 0)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """End all faults. Swallowed bytes stay lost; delayed bytes continue."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._proxy.do("cut_after", "down")
        await self._proxy.do("throttle", None)
        await self._proxy.do("resume")
        await self._proxy.do("accept")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.0, self._calm_s))
            await self._strike(self._random.choice(FAULTS))

    async def _strike(self, fault: str) -> None:
        """Begin and end one fault."""
        proxy, chosen = self._proxy, self._random
        self.counts[fault] += 1
        way: Direction = chosen.choice(("up", "down", "both"))
        lasts_s = chosen.uniform(0.05, LONGEST_S)
        if fault in ("cut", "close"):
            await proxy.do(fault)
        elif fault == "cut_after":
            await proxy.do(fault, way, *(chosen.randrange(1, 2_000) for _ in range(3)))
            await asyncio.sleep(lasts_s)
            await proxy.do(fault, way)
        elif fault == "stall":
            await proxy.do(fault, way)
            await asyncio.sleep(lasts_s)
            await proxy.do("resume", way)
        elif fault == "throttle":
            await proxy.do(fault, chosen.randrange(2_000, 40_000), way)
            await asyncio.sleep(lasts_s)
            await proxy.do(fault, None, way)
        elif fault == "black_hole":
            await proxy.do(fault)
            await asyncio.sleep(3 * lasts_s)
            await proxy.do("resume")
        else:
            await proxy.do(fault)
            await proxy.do("cut")
            await asyncio.sleep(lasts_s)
            await proxy.do("accept")


if __name__ == "__main__":
    asyncio.run(serve())
