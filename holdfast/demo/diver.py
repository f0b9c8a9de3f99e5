"""The diver: a second agent, in a process of its own, that is there to crash.

You are in `demo`. The guide lives in the server's process; the diver works over the network, as an agent on another
machine would. It serves one channel, and a message that says `/crash` kills it in mid-answer, for real. The server
then says that its answer was interrupted, and the guide goes on with it. Otherwise the diver leaves when it is done;
it ends with the process that started it.

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
from typing import Any

import msgspec

from holdfast.agents.turn import reply_id
from holdfast.app import Hub
from holdfast.client import ClaimedTurn, Client, RemoteWriter
from holdfast.core.errors import Busy, Fenced, Finished, NotFound, StillStreaming, TooMany
from holdfast.demo.agent import Settled, continue_at, plan
from holdfast.demo.guide import LONGEST_QUESTION

__all__ = ["NAME", "SLOTS", "Divers"]

NAME = "diver"
SLOTS = 100  # more than the guide has: messages go to the agent with the most room
MOST_DIVERS = 4  # at once, in different channels
LEASE_S = 5.0  # of an answer; when its socket breaks, 3 s are left
IDLE_S = 60.0  # until it leaves where nobody asks it anything …
LINGER_S = 5.0  # … and after it has answered
START_S = 30.0
POLL_S = 0.5
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
    async with Client(url, client_id=NAME) as client:
        diver = _Diver(client)
        work = client.work(channel, on_turn=diver.answer, slots=SLOTS, when_busy="parallel", name=NAME)
        await _first_of(work, diver.until_idle(), _until_input_ends())


class _Diver:
    """Answers, and dies when it is told to."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._working = 0
        self._changed = asyncio.Event()

    async def answer(self, turn: ClaimedTurn) -> None:
        """Answer one message."""
        self._working += 1
        self._changed.set()
        turn.tell({"state": "answering", "message": turn.message.id, "pid": os.getpid()})
        question = turn.message.text[:LONGEST_QUESTION]
        settled = Settled.of(turn.message.id, question)
        must_crash = turn.generation == 1 and _CRASH.search(question) is not None
        try:
            async with await self._reply(turn, settled) as message:
                for text, delay_s in continue_at(plan(question, settled), message.length):
                    await asyncio.sleep(delay_s)
                    await message.append(text)
                    if must_crash and message.length >= CRASH_AT:
                        await message.flush()
                        os.kill(os.getpid(), signal.SIGKILL)
        except (Finished, Fenced):
            pass  # somebody stopped it
        finally:
            self._working -= 1
            self._changed.set()

    async def until_idle(self) -> None:
        """Return when nothing came, or nothing more."""
        patience_s = IDLE_S
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._working else patience_s):
                    await self._changed.wait()
            except TimeoutError:
                return
            patience_s = LINGER_S

    async def _reply(self, turn: ClaimedTurn, settled: Settled) -> RemoteWriter:
        """The answer: a new one, or that of an attempt before this one."""
        for generation in range(turn.generation - 1, 0, -1):
            begun = self._client.take_over(turn.channel, reply_id(turn.message.id, generation), lease_s=LEASE_S)
            with suppress(NotFound):
                return await _once_interrupted(begun)
        return self._client.message(
            turn.channel,
            id=reply_id(turn.message.id, turn.generation),
            reply_to=turn.message.id,
            meta=msgspec.to_builtins(settled),
            lease_s=LEASE_S,
        )


async def _once_interrupted(begun: RemoteWriter) -> RemoteWriter:
    """`begun`, taken over as soon as the writer before it is known to be gone."""
    while True:
        try:
            return await begun.open()
        except StillStreaming:
            await asyncio.sleep(POLL_S)


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
