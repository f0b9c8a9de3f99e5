"""The diver: a second agent in a process of its own, which exists to crash.

Layer: demo.

The guide runs in the server's process; the diver works over the network, like an agent on another machine. It serves
one channel with the guide's own handler. A message that contains `/crash` kills its process in the middle of the
answer. The server then marks the answer as interrupted, and the guide continues it. Otherwise the diver leaves when it
is idle; it ends with the process that started it.

`python -m holdfast.demo.diver URL CHANNEL` is the process, `Divers` starts it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from holdfast.agents.turn import Turn
from holdfast.app import Hub
from holdfast.client import Client
from holdfast.core.errors import Busy, TooMany
from holdfast.demo.guide import Guide

__all__ = ["NAME", "Divers"]

NAME = "diver"
SLOTS = 1_000  # far more than the guide has: the scheduler prefers the agent with the most free slots
MOST_DIVERS = 4  # at once, in different channels
IDLE_S = 60.0  # the diver leaves after this time without a message …
LINGER_S = 5.0  # … and after its last answer
START_S = 30.0
CRASH_AT = 60  # code points into its answer

_CRASH = re.compile(r"(^|\s)/crash\b")


class Divers:
    """Starts divers, at most one in a channel."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, url: str, channel: str) -> int:
        """Start a diver in `channel` that connects to `url`, or find the running one; return its process id.

        Raises TooMany, Busy.
        """
        diver = self._running.get(channel)
        if diver is None or diver.returncode is not None:
            if len(self._running) >= MOST_DIVERS:
                raise TooMany(
                    f"at most {MOST_DIVERS} divers may run, and {len(self._running)} do; wait until one leaves",
                    limit=MOST_DIVERS,
                )
            # We hold the other end of its standard input. It ends when that closes, also when we are killed.
            diver = self._running[channel] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "holdfast.demo.diver", url, channel, stdin=asyncio.subprocess.PIPE
            )
            self._hub.start_background(self._keep(channel, diver))
        try:
            async with asyncio.timeout(START_S):
                await self._until_listening(channel)
        except TimeoutError:
            raise Busy(f"the diver did not start within {START_S:g} s; send the request again") from None
        return diver.pid

    async def _keep(self, channel: str, diver: asyncio.subprocess.Process) -> None:
        try:
            await diver.wait()
        finally:
            if diver.returncode is None:
                with suppress(ProcessLookupError):
                    diver.kill()
            if self._running.get(channel) is diver:
                del self._running[channel]

    async def _until_listening(self, channel: str) -> None:
        async for _ in self._hub.subscribe(channel, history=0).batches():
            if any(member.id == NAME for member in (await self._hub.members(channel)).members):
                return


# The process


async def _dive(url: str, channel: str) -> None:
    """Serve `channel` until the diver is idle."""
    client = Client(url, client_id=NAME)
    working = _Working()

    @client.agent(channel, name=NAME, when_busy="parallel", on_crash="continue", slots=SLOTS)
    async def diver(turn: Turn) -> None:
        with working:
            await Guide(client, None, partial(_sleep, turn), details={"pid": os.getpid()}).answer(turn)

    await _first_of(client.run(), working.until_idle(), _until_input_ends())


async def _sleep(turn: Turn, delay_s: float) -> None:
    """Wait `delay_s`, and kill this process at offset CRASH_AT of a turn that contains `/crash`."""
    await asyncio.sleep(delay_s)
    is_to_crash = turn.attempt == 1 and _CRASH.search(turn.text) is not None
    if is_to_crash and turn.replies and turn.replies[-1].length >= CRASH_AT:
        await turn.replies[-1].flush()
        os.kill(os.getpid(), signal.SIGKILL)


class _Working:
    """Counts the running turns."""

    def __init__(self) -> None:
        self._turns = 0
        self._changed = asyncio.Event()

    def __enter__(self) -> None:
        self._turns += 1
        self._changed.set()

    def __exit__(self, *_: object) -> None:
        self._turns -= 1
        self._changed.set()

    async def until_idle(self) -> None:
        """Return when no turn has started for IDLE_S, or for LINGER_S after the last one."""
        patience_s = IDLE_S
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._turns else patience_s):
                    await self._changed.wait()
            except TimeoutError:
                return
            patience_s = LINGER_S


async def _until_input_ends() -> None:
    """End this process when its parent closes standard input: without a server there is no work and no cleanup."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    os._exit(0)


async def _first_of(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until one returns, and cancel the others. Raises the exception of that job."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches this process too: the server ends, and this process with it
    asyncio.run(_dive(*sys.argv[1:3]))
