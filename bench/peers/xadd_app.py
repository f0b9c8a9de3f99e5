"""The usual design, written as good teams write it: an SSE endpoint over a Redis stream, one XADD per token.

FastAPI under uvicorn with httptools and uvloop; redis-py's asyncio client with hiredis over a socket file. One pool of
connections is for commands and another for viewers, each of which holds one while it waits in XREAD BLOCK. A viewer
that reconnects sends Last-Event-ID and receives all entries after it; a new one receives all. The result of one XREAD
is written as one piece. A stream is not trimmed and does not expire in a run.

Run as a child: `python -m bench.peers.xadd_app SOCKET_PATH POOL`. It is not our server: it imports no module of
tenuto.
"""

import asyncio
import importlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse

from bench.proc import reply, serve_requests
from bench.tokens import Sent, appended, summary

_READ_COUNT = 1_000  # limit of entries of one XREAD
_BLOCK_MS = 15_000  # longest wait of one XREAD, after which a comment is sent as heartbeat
_VIEWERS = 2_000  # limit of connections that may wait at the same time
_TEXT, _DONE = b"t", b"done"


class Streams:
    """Conversations as Redis streams: a token is an entry, and its id is the event's."""

    def __init__(self, socket_path: str, pool: int) -> None:
        # By name, because redis-py is fetched for the benchmark alone and type checkers do not see it: hence Any.
        client: Any = importlib.import_module("redis.asyncio")
        self._redis: Any = client.Redis(connection_pool=_pool(client, socket_path, pool))
        self._following: Any = client.Redis(connection_pool=_pool(client, socket_path, _VIEWERS))

    async def append(self, channel: str, text: str) -> None:
        """Store one token; when this returns, Redis has it as durably as it is configured."""
        await self._redis.xadd(channel, {_TEXT: text})

    async def append_all(self, channel: str, texts: list[str]) -> None:
        """Store several tokens by one pipeline."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for text in texts:
                pipeline.xadd(channel, {_TEXT: text})
            await pipeline.execute()

    async def finish(self, channel: str) -> None:
        await self._redis.xadd(channel, {_DONE: b"1"})

    async def follow(self, channel: str, after: str) -> AsyncIterator[bytes]:
        """Yield all tokens after the entry `after`, as server-sent events, to the end of the answer."""
        last: bytes | str = after
        yield b"retry: 1000\n\n"
        while True:
            found = await self._following.xread({channel: last}, count=_READ_COUNT, block=_BLOCK_MS)
            if not found:
                yield b": waiting\n\n"
                continue
            entries = found[0][1]
            yield b"".join(
                b"id: %b\nevent: done\ndata: {}\n\n" % id
                if _DONE in fields
                else b"id: %b\ndata: %b\n\n" % (id, json.dumps(fields[_TEXT].decode(), ensure_ascii=False).encode())
                for id, fields in entries
            )
            last, fields = entries[-1]
            if _DONE in fields:
                return


def _pool(client: Any, socket_path: str, size: int) -> Any:
    # Not the blocking pool: with fewer connections than producers it starves most of them (a hundred for 500 left some
    # with one append in two seconds), and was no faster.
    return client.ConnectionPool(
        max_connections=size, connection_class=client.UnixDomainSocketConnection, path=socket_path
    )


class Appenders:
    """Agents in the server's own process. Each awaits the storage of its appends."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._sent: dict[str, Sent] = {}

    async def begin(self, *, channels: list[str]) -> dict[str, Any]:
        self._sent = {channel: Sent(n) for n, channel in enumerate(channels)}
        return {}

    async def append(self, *, seconds: float, at_once: int) -> dict[str, Any]:
        """Grow all streams for `seconds`: each gets `at_once` tokens and then waits until they are stored."""
        for each in self._sent.values():
            del each.waits_s[:]
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for channel, sent in self._sent.items():
                group.create_task(self._one(channel, sent, started_s + seconds, at_once))
        return appended(self._sent.values(), time.monotonic() - started_s)

    async def grow(self, *, channel: str, count: int) -> dict[str, Any]:
        """Grow the stream of `channel` by `count` tokens, stored one by one."""
        sent = self._sent.setdefault(channel, Sent(len(self._sent)))
        for _ in range(count):
            await self._streams.append(channel, sent.next())
        return {"text": sent.text, "id": "m"}

    async def finish(self) -> dict[str, Any]:
        for channel in self._sent:
            await self._streams.finish(channel)
        messages = {channel: summary(sent.text, "m") for channel, sent in self._sent.items()}
        self._sent = {}
        return {"messages": messages}

    async def _one(self, channel: str, sent: Sent, until_s: float, at_once: int) -> None:
        begun_s = time.monotonic()
        while begun_s < until_s:
            if at_once == 1:
                await self._streams.append(channel, sent.next())
            else:
                await self._streams.append_all(channel, [sent.next() for _ in range(at_once)])
            now_s = time.monotonic()
            sent.waits_s.append(now_s - begun_s)
            begun_s = now_s


def _application(streams: Streams) -> FastAPI:
    app = FastAPI()

    @app.get("/channels/{channel}/events")
    async def events(channel: str, last_event_id: str = Header("0-0")) -> StreamingResponse:
        headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            streams.follow(channel, last_event_id), media_type="text/event-stream", headers=headers
        )

    return app


async def _main(socket_path: str, pool: int) -> None:
    streams = Streams(socket_path, pool)
    appenders = Appenders(streams)
    # Kept alive for longer than a run: a connection that ends is a violation there.
    config = uvicorn.Config(
        _application(streams),
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=300,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        reply(port=listener.getsockname()[1], loop=type(asyncio.get_running_loop()).__module__)
        await serve_requests(
            {"begin": appenders.begin, "append": appenders.append, "grow": appenders.grow, "finish": appenders.finish}
        )
        server.should_exit = server.force_exit = True
        await running


if __name__ == "__main__":
    importlib.import_module("uvloop").run(_main(sys.argv[1], int(sys.argv[2])))
