"""The diver: a second agent, in a process of its own, that is there to crash.

Layer: demo.

The guide lives in the server's process; the diver works over the network, as an agent on another
machine would. It serves one channel with the guide's own handler, and a message that says `/crash` kills it in
mid-answer, for real. The server then says that its answer was interrupted, and the guide goes on with it. Otherwise the
diver leaves when it is done; it ends with the process that started it.

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
SLOTS = 1_000  # far more than the guide has: messages go to the agent with the most room
MOST_DIVERS = 4  # at once, in different channels
IDLE_S = 60.0  # until it leaves where nobody asks it anything …
LINGER_S = 5.0  # … and after it has answered
START_S = 30.0
CRASH_AT = 60  # code points into its answer

_CRASH = re.compile(r"(^|\s)/crash\b")


class Divers:
    """Starts divers, at most one in a channel."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, url: str, channel: str) -> int:
        """Have a diver in `channel`, who reaches the hub at `url`; returns its process id. Raises TooMany, Busy."""
        diver = self._running.get(channel)
        if diver is None or diver.returncode is not None:
            if len(self._running) >= MOST_DIVERS:
                raise TooMany(f"there are {MOST_DIVERS} divers already", limit=MOST_DIVERS)
            # It holds the other end of its standard input, and ends when that does: also when we are killed.
            diver = self._running[channel] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "holdfast.demo.diver", url, channel, stdin=asyncio.subprocess.PIPE
            )
            self._hub.start_background(self._keep(channel, diver))
        try:
            async with asyncio.timeout(START_S):
                await self._until_listening(channel)
        except TimeoutError:
            raise Busy("the diver did not come; ask again") from None
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
    """Serve `channel` until there is nothing more to do."""
    client = Client(url, client_id=NAME)
    working = _Working()

    @client.agent(channel, name=NAME, when_busy="parallel", on_crash="continue", slots=SLOTS)
    async def diver(turn: Turn) -> None:
        with working:
            await Guide(client, None, partial(_sleep, turn), says={"pid": os.getpid()}).answer(turn)

    await _first_of(client.run(), working.until_idle(), _until_input_ends())


async def _sleep(turn: Turn, delay_s: float) -> None:
    """Wait; and die, when it is time to."""
    await asyncio.sleep(delay_s)
    is_to_crash = turn.attempt == 1 and _CRASH.search(turn.text) is not None
    if is_to_crash and turn.replies and turn.replies[-1].length >= CRASH_AT:
        await turn.replies[-1].flush()
        os.kill(os.getpid(), signal.SIGKILL)


class _Working:
    """How many turns run."""

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
        """Return when nothing came, or nothing more."""
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
    """Whoever started us holds the other end: without them there is nobody to answer, and nothing to put in order."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    os._exit(0)


async def _first_of(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until one returns; the others are cancelled. Raises what it raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us, too: the server ends, and we with it
    asyncio.run(_dive(*sys.argv[1:3]))
