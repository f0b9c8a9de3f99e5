"""An open-loop publisher over HTTP, for servers without producers in their own process.

One POST per token.

Run as a child, on the load client's core, so its time does not count as server time. This is to the peer's advantage,
because our producers run inside our server. A few connections are kept alive, and a channel always uses the same one,
so its order is kept. A request is sent when it is due, whether or not the one before has a response (pipelining). Every
response must be a 2xx, and all must arrive, or the run is void.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from typing import Any
from urllib.parse import quote

from bench.proc import BenchError, reply
from bench.tokens import summary, token

_HOST = "127.0.0.1"
# with only 16 connections, requests that waited for Redis delayed one another: 110 ms instead of a few
_CONNECTIONS = 256
_RESPONSES_S = 15.0  # longest wait for missing responses at the end
_STATUS = b"HTTP/1.1 "


class _Lane:
    """One connection: its bytes that wait for room in the socket, and the number of missing responses."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((_HOST, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.waiting = bytearray()
        self.missing = 0
        self._rest = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self.waiting[: self.socket.send(self.waiting)]

    def read(self) -> None:
        """Count responses. Raises `BenchError` at a status other than 2xx."""
        if not (data := self.socket.recv(1 << 16)):
            raise BenchError("the server closed a publisher's connection")
        # Neither headers nor bodies of the responses contain these words, so searching for them is sufficient.
        pieces = (self._rest + data).split(_STATUS)
        is_split = len(pieces) > 1 and not pieces[-1]  # the status of the last one has not arrived
        self._rest = _STATUS if is_split else pieces[-1][-len(_STATUS) :]
        for piece in pieces[1 : -1 if is_split else None]:
            if piece[:1] != b"2":
                raise BenchError(f"a publish was refused: {piece[:200]!r}")
            self.missing -= 1


def publish(*, port: int, path: str, channels: list[str], count: int, tokens_per_s: float) -> dict[str, Any]:
    """Publish `count` tokens to each of `channels`, each at its time; `path` may contain `{channel}`.

    A channel always has the same connection. Reply when all are acknowledged, with the sent tokens by channel.
    """
    lanes = [_Lane(port) for _ in range(min(_CONNECTIONS, len(channels)))]
    head = f"HTTP/1.1\r\nHost: {_HOST}:{port}\r\nContent-Type: text/plain\r\nContent-Length: "
    heads = [f"POST {path.format(channel=quote(channel))} {head}" for channel in channels]
    sent: list[list[str]] = [[] for _ in channels]
    period_s = 1 / tokens_per_s / len(channels)  # the channels are spread over one token's time
    started_s, total, due = time.monotonic(), count * len(channels), 0
    ends_s = started_s + total * period_s + _RESPONSES_S
    with contextlib.ExitStack() as stack:
        for lane in lanes:
            stack.callback(lane.socket.close)
        while due < total or any(lane.missing for lane in lanes):
            now_s = time.monotonic()
            if now_s > ends_s:
                raise BenchError(f"{sum(lane.missing for lane in lanes)} of {total} publishes got no response")
            while due < total and now_s >= started_s + due * period_s:
                channel, text = due % len(channels), token()
                due += 1
                sent[channel].append(text)
                lane = lanes[channel % len(lanes)]  # even if it is late: one token, one message
                lane.waiting += f"{heads[channel]}{len(text)}\r\n\r\n{text}".encode()
                lane.missing += 1
            for lane in lanes:
                if lane.waiting:
                    lane.write()
            # Wait by `select`, because the timeouts of epoll are whole milliseconds: rounded down, they would make a
            # busy loop on the load client's core.
            wait_s = started_s + due * period_s - time.monotonic() if due < total else 0.1
            for lane in select.select(lanes, (), (), min(max(0.0, wait_s), 0.1))[0]:
                lane.read()
    texts = {channel: summary("".join(each), "m") for channel, each in zip(channels, sent, strict=True)}
    return {"messages": texts}


def main() -> None:
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            assert request.pop("do") == "publish"
            try:
                reply(**publish(**request))
            except (BenchError, OSError) as error:
                reply(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
