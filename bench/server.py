"""The server under test, as `holdfast serve` runs it, with in-process producers that work on request.

Run as a child: `python -m bench.server STORE_URL`. Requests come over standard input, so that nothing but viewers
touches its port.
"""

import asyncio
import contextlib
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from bench.control import answer, serve_requests
from bench.tokens import token
from holdfast import Hub, serving


class Producers:
    """Agents in the server's own process, one per conversation."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> dict[str, Any]:
        """Stream one message of `count` tokens into each channel; answers when all are stored."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            # Spread over one token's time: real conversations have no common beat.
            tasks = [
                group.create_task(
                    self._one(channel, count, 1 / tokens_per_s, started_s + n / len(channels) / tokens_per_s)
                )
                for n, channel in enumerate(channels)
            ]
        results = [task.result() for task in tasks]
        lags = sorted(lag for _, lags in results for lag in lags)
        return {
            "messages": {channel: message for channel, (message, _) in zip(channels, results, strict=True)},
            "lag_ms": [lags[int(len(lags) * share)] * 1000 for share in (0.5, 0.99)],
            "seconds": time.monotonic() - started_s,
        }

    async def stats(self) -> dict[str, Any]:
        return dict(self._hub.stats())

    async def _one(
        self, channel: str, count: int, period_s: float, first_s: float
    ) -> tuple[dict[str, Any], list[float]]:
        """One answer on a fixed schedule: who falls behind does not send less, and how far behind is told."""
        sent: list[str] = []
        lags: list[float] = []
        async with self._hub.message(channel, role="assistant", author="bench") as message:
            for n in range(count):
                due_s = first_s + n * period_s
                # Without a wait this loop would not let others in.
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                lags.append(time.monotonic() - due_s)
                text = token()
                sent.append(text)
                await message.append(text)
        text = "".join(sent)
        return {"id": message.id, "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}, lags


@contextlib.asynccontextmanager
async def start_server(hub: Hub) -> AsyncIterator[int]:
    """Serve `hub` on a free loopback port, which is yielded.

    As `holdfast serve` does it: socket options, collector settings and HTTP implementation are its own.
    """
    hub.drive_by_hand = True
    listening = serving.listen("127.0.0.1", 0)
    server = serving.server(hub)
    running = await serving.start(server, listening)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await running


async def _main(store: str) -> None:
    hub = Hub(store)
    producers = Producers(hub)
    async with start_server(hub) as port:
        answer(port=port)
        await serve_requests({"produce": producers.produce, "stats": producers.stats})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
