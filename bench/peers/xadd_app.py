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
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse

from bench.proc import reply, serve_requests
from bench.tokens import Appenders

_READ_COUNT = 1_000  # limit of entries of one XREAD
_BLOCK_MS = 15_000  # longest wait of one XREAD, after which a comment is sent as heartbeat
_VIEWERS = 2_000  # limit of connections that may wait at the same time
_TEXT, _DONE = b"t", b"done"


class Streams(Appenders):
    """Conversations as Redis streams: a token is an entry, and its id is the event's."""

    def __init__(self, socket_path: str, pool: int) -> None:
        super().__init__()
        # By name, because redis-py is fetched for the benchmark alone and type checkers do not see it: hence Any.
        client: Any = importlib.import_module("redis.asyncio")
        self._redis: Any = client.Redis(connection_pool=_pool(client, socket_path, pool))
        self._following: Any = client.Redis(connection_pool=_pool(client, socket_path, _VIEWERS))

    async def store(self, channel: str, texts: list[str]) -> None:
        """Store a token, or several by one pipeline; then Redis has them as durably as it is configured."""
        if len(texts) == 1:
            await self._redis.xadd(channel, {_TEXT: texts[0]})
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            for text in texts:
                pipeline.xadd(channel, {_TEXT: text})
            await pipeline.execute()

    async def finish_one(self, channel: str) -> str:
        await self._redis.xadd(channel, {_DONE: b"1"})
        return "m"

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
            {"begin": streams.begin, "append": streams.append, "grow": streams.grow, "finish": streams.finish}
        )
        server.should_exit = server.force_exit = True
        await running


if __name__ == "__main__":
    importlib.import_module("uvloop").run(_main(sys.argv[1], int(sys.argv[2])))
