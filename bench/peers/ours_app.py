"""Tenuto beside the peers: the server of `bench.server`, with producers that wait for durability.

Run as a child: `python -m bench.peers.ours_app STORE_URL`.
"""

import asyncio
import contextlib
import sys
import time
from typing import Any

from bench.control import reply, serve_requests
from bench.peers.summary import Sent, appended, summary
from bench.server import Producers, start_server
from tenuto import Hub, MessageWriter


class Appenders:
    """Agents in the server's own process. Each awaits the storage of its appends."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open = contextlib.AsyncExitStack()
        self._writers: dict[str, MessageWriter] = {}  # the open writers, by channel
        self._sent: dict[str, Sent] = {}

    async def begin(self, *, channels: list[str]) -> dict[str, Any]:
        """Open a streaming message in each of `channels`."""
        for channel in channels:
            writer = self._hub.message(channel, role="assistant", author="bench")
            self._writers[channel] = await self._open.enter_async_context(writer)
            self._sent[channel] = Sent(len(self._sent))
        return {}

    async def append(self, *, seconds: float, at_once: int) -> dict[str, Any]:
        """Grow all open messages for `seconds`: each gets `at_once` tokens and then waits until they are stored."""
        for each in self._sent.values():
            del each.waits_s[:]
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for channel, writer in self._writers.items():
                group.create_task(_grow(writer, self._sent[channel], started_s + seconds, at_once))
        return appended(self._sent.values(), time.monotonic() - started_s)

    async def grow(self, *, channel: str, count: int) -> dict[str, Any]:
        """Grow the open message of `channel` by `count` tokens, stored one by one."""
        if channel not in self._writers:
            await self.begin(channels=[channel])
        writer, sent = self._writers[channel], self._sent[channel]
        for _ in range(count):
            await writer.append(sent.next())
            await writer.flush()
        return {"text": sent.text, "id": writer.id}

    async def finish(self) -> dict[str, Any]:
        """End all open messages. Return them as they were sent."""
        ids = {channel: writer.id for channel, writer in self._writers.items()}
        await self._open.aclose()
        messages = {channel: summary(self._sent[channel].text, id) for channel, id in ids.items()}
        self._open, self._writers, self._sent = contextlib.AsyncExitStack(), {}, {}
        return {"messages": messages}


async def _grow(writer: MessageWriter, sent: Sent, until_s: float, at_once: int) -> None:
    begun_s = time.monotonic()
    while begun_s < until_s:
        for _ in range(at_once):
            await writer.append(sent.next())
        await writer.flush()
        now_s = time.monotonic()
        sent.waits_s.append(now_s - begun_s)
        begun_s = now_s


async def _main(store: str) -> None:
    hub = Hub(store)
    appenders, producers = Appenders(hub), Producers(hub)
    async with start_server(hub) as port:
        reply(port=port)
        await serve_requests(
            {
                "produce": producers.produce,
                "begin": appenders.begin,
                "append": appenders.append,
                "grow": appenders.grow,
                "finish": appenders.finish,
            }
        )


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
