"""The server under test, with in-process producers that work on request.

Run as a child: `python -m bench.server STORE_URL [--port N] [--under serve|granian] [--idle-s N] [--bus URL]`. Under
`serve` it runs on uvicorn as `tenuto serve` does; under granian it is mounted in a Starlette app, as in an
application. With `--mute` it sends no notices, as if all were lost. Requests arrive on standard input, so only viewers
use its port.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, Self

from bench.proc import BenchError, reply, serve_requests
from bench.tokens import WIDTH, Appenders, known_token, summary, token
from tenuto import Hub, Limits, MessageWriter
from tenuto.hub.lifecycle import free_memory
from tenuto.server import serving
from tenuto.stores.base import Notice

_HOST = "127.0.0.1"
_MOUNTED_AT = "/tenuto"
_START_S = 10.0
_POLL_S = 0.01
_AT_ONCE = 100  # limit of concurrent messages during a fill
REQUESTS = ("produce", "begin", "append", "grow", "finish", "stream", "fill", "check", "stats", "held", "blocks")
_CONNECTIONS = 20_000  # granian serves at most as many connections at once as its backlog


class Unsent:
    """Stands for a message and drops its text, so that a run has only the producers' own work."""

    id = ""

    async def append(self, text: str) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Written(Protocol):
    """The target of a producer's text."""

    def append(self, text: str, /) -> Awaitable[None]: ...


class Producers(Appenders):
    """Agents in the server's own process, one per conversation."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self._open: dict[str, MessageWriter] = {}  # the messages of `begin`, by channel
        self._failure: Exception | None = None  # the error of a task that no request awaits
        hub.adopt("bench:*")(self._go_on)

    async def produce(
        self,
        *,
        channels: list[str],
        count: int,
        tokens_per_s: float,
        piece: int = WIDTH,
        is_dated_when_due: bool = False,
        is_alone: bool = False,
    ) -> dict[str, Any]:
        """Stream one message of `count` tokens into each channel; reply when all are stored.

        Each token begins a piece of text of `piece` characters. It carries its append time, or its due time: with the
        latter, a late producer counts as latency for its viewers. With `is_alone` no text goes to the
        hub: the CPU time is then that of the producers.
        """
        started_s = time.monotonic()

        async def one(channel: str, first_s: float) -> dict[str, Any]:
            sent: list[str] = []
            filler = "." * (piece - WIDTH)

            async def append(message: Written, n: int, due_s: float) -> None:
                sent.append(token(due_s if is_dated_when_due else None) + filler)
                await message.append(sent[-1])

            unsent = Unsent() if is_alone else None
            async with unsent or self._hub.message(channel, role="assistant", author="bench") as message:
                await self.on_schedule(message, range(count), first_s, tokens_per_s, append)
            return summary("".join(sent), message.id)

        async with asyncio.TaskGroup() as group:
            # Spread over one token's time: real conversations are not synchronised.
            tasks = [
                group.create_task(one(channel, started_s + n / len(channels) / tokens_per_s))
                for n, channel in enumerate(channels)
            ]
        messages = {channel: task.result() for channel, task in zip(channels, tasks, strict=True)}
        return {"messages": messages, "seconds": time.monotonic() - started_s}

    async def begin_one(self, channel: str) -> None:
        self._open[channel] = self._hub.message(channel, role="assistant", author="bench")
        await self._open[channel].open()

    async def store(self, channel: str, texts: list[str]) -> None:
        for text in texts:
            await self._open[channel].append(text)
        await self._open[channel].flush()

    async def finish_one(self, channel: str) -> str:
        writer = self._open.pop(channel)
        await writer.finish()
        return writer.id

    async def stream(self, *, channel: str, id: str, seed: int, count: int, tokens_per_s: float) -> dict[str, Any]:
        """Begin the message with the text of `seed`, and reply when it is stored. A restarted process continues it."""
        meta = {"seed": seed, "count": count, "tokens_per_s": tokens_per_s}
        message = self._hub.message(channel, id=id, role="assistant", author="bench", meta=meta)
        await message.open()

        async def write() -> None:
            async with message:
                await self._go_on(message)

        self._hub.start_task(write())
        return {}

    async def fill(self, *, count: int, characters: int) -> dict[str, Any]:
        """Store `count` finished conversations of `characters` characters, each in a channel of its own.

        Their channels leave memory at once: the memory of ten thousand channels, once freed, would hide a leak.
        """
        text, runtime = "." * characters, self._hub.runtime
        limits = runtime.limits
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            await asyncio.gather(*(self._hub.create(f"bench:old-{n}", text=text) for n in numbers))
            runtime.limits = dataclasses.replace(limits, channel_idle_s=0)
            free_memory(runtime)
            runtime.limits = limits
        return {}

    async def check(self) -> dict[str, Any]:
        """Raise the error of a producer that has failed."""
        if self._failure is not None:
            raise self._failure
        return {}

    async def stats(self) -> dict[str, Any]:
        """Return the hub's counters."""
        return dict(self._hub.stats())

    async def blocks(self) -> dict[str, Any]:
        """Return the number of Python's allocated memory blocks, which does not depend on fragmentation."""
        gc.collect()
        return {"blocks": sys.getallocatedblocks()}

    async def held(self) -> dict[str, Any]:
        """Return the resources held for viewers and conversations; they must be released with them."""
        stats = self._hub.stats()
        return {name: stats[name] for name in ("channels", "feeds", "writers", "waiting")} | {
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
        }

    async def _go_on(self, message: MessageWriter) -> None:
        """Write the rest of the message. For one of a killed process, `meta` describes the rest."""
        if "seed" not in message.meta:
            return
        seed, count, tokens_per_s = (int(str(message.meta[name])) for name in ("seed", "count", "tokens_per_s"))
        numbers = range(message.length // WIDTH, count)
        with self._noting_failure():
            await self.on_schedule(message, numbers, time.monotonic(), tokens_per_s, _known(seed))
            await message.flush()

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failure = error
            raise

    async def on_schedule(
        self, message: Written, numbers: range, first_s: float, per_s: float, append: "Append"
    ) -> None:
        """Append one answer on a fixed schedule. A late producer does not send less."""
        for index, n in enumerate(numbers):
            due_s = first_s + index / per_s
            # Without a wait, this loop would block the others.
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await append(message, n, due_s)


Append = Callable[[Written, int, float], Awaitable[None]]
"""Append the token with this number, which was due at this time."""


def _known(seed: int) -> Append:
    async def append(message: Written, n: int, _: float) -> None:
        await message.append(known_token(seed, n))

    return append


@contextlib.asynccontextmanager
async def start_server(hub: Hub, port: int = 0) -> AsyncIterator[int]:
    """Serve `hub` on a loopback port (0: a free one), and yield the port. Raises OSError if it is taken.

    Socket options, collector settings and HTTP implementation are those of `tenuto serve`.
    """
    hub.drive_by_hand = True
    async with start_app(hub, port) as found:
        yield found


@contextlib.asynccontextmanager
async def start_app(app: Any, port: int = 0) -> AsyncIterator[int]:
    """Serve an app as `start_server` serves a hub."""
    listening = serving.listen(_HOST, port)
    server = serving.server(app)
    running = await serving.start(server, listening)
    if not server.started:
        raise BenchError("the server could not start")
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await running


@contextlib.asynccontextmanager
async def start_granian(hub: Hub, port: int = 0) -> AsyncIterator[int]:
    """Like `start_server`, but mounted under granian with its default settings, except for the number of connections.

    It runs on this process's event loop, so that producers can be in the process; its worker is the usual one.
    """
    from granian.constants import Interfaces
    from granian.server.embed import Server
    from starlette.applications import Starlette

    app = Starlette()
    hub.install(app, _MOUNTED_AT)
    with serving.listen(_HOST, port) as probe:  # granian panics if a port is taken, and does not accept a socket
        port = probe.getsockname()[1]
    server = Server(
        app, _HOST, port, interface=Interfaces.ASGI, backlog=_CONNECTIONS, backpressure=_CONNECTIONS, log_enabled=False
    )
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(_START_S):
            while not await _is_listening(port):
                if running.done():
                    raise BenchError("granian could not start")
                await asyncio.sleep(_POLL_S)  # granian does not signal that it has started
        yield port
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await running


async def _is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(_HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _lose(notices: Sequence[Notice]) -> None:
    """Lose all notices."""


async def _main(arguments: argparse.Namespace) -> None:
    hub = Hub(arguments.store, limits=Limits(channel_idle_s=arguments.idle_s), bus=arguments.bus)
    if arguments.mute:
        hub.store.notify = _lose  # type: ignore[attr-defined]
    producers = Producers(hub)
    is_mounted = arguments.under == "granian"
    async with contextlib.AsyncExitStack() as stack:
        try:
            start = start_granian if is_mounted else start_server
            port = await stack.enter_async_context(start(hub, arguments.port))
        except (BenchError, ImportError, OSError) as error:
            reply(error=f"{type(error).__name__}: {error}")
            return
        reply(port=port, prefix=_MOUNTED_AT if is_mounted else "")
        await serve_requests({name: getattr(producers, name) for name in REQUESTS})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--under", choices=("serve", "granian"), default="serve")
    parser.add_argument("--idle-s", type=float, default=Limits().channel_idle_s)
    parser.add_argument("--bus")
    parser.add_argument("--mute", action="store_true")
    asyncio.run(_main(parser.parse_args()))
