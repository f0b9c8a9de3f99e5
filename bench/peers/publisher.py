"""An open-loop publisher over HTTP, for servers without producers in their own process.

One POST per token.

Run as a child, on the load client's core, so its time does not count as server time. This is to the peer's advantage,
because our producers run inside our server. A few connections are kept alive, and a channel always uses the same one,
so its order is kept. A request is sent when it is due, whether or not the one before has a response (pipelining). Every
response must be a 2xx, and all must arrive, or the run is void.
"""

import json
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from bench.proc import BenchError, reply
from bench.tokens import Lateness, summary, token

_HOST = "127.0.0.1"
# with only 16 connections, requests that waited for Redis delayed one another: 110 ms instead of a few
_CONNECTIONS = 256
_RESPONSES_S = 15.0  # longest wait for missing responses at the end
_STATUS = b"HTTP/1.1 "


class _Lane:
    """One connection: its bytes that wait for room in the socket, and the number of received responses."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((_HOST, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.waiting = bytearray()
        self.response_count = 0
        self._rest = b""

    def write(self) -> None:
        try:
            sent = self.socket.send(self.waiting)
        except BlockingIOError:
            return
        del self.waiting[:sent]

    def read(self) -> None:
        """Count responses. Raises `BenchError` at a status other than 2xx."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise BenchError("the server closed a publisher's connection")
        data = self._rest + data
        # Neither headers nor bodies of the responses contain these words, so searching for them is sufficient.
        position = -1
        while (found := data.find(_STATUS, position + 1)) >= 0 and found + len(_STATUS) < len(data):
            if data[found + len(_STATUS)] != ord("2"):
                raise BenchError(f"a publish was refused: {data[found : found + 200]!r}")
            self.response_count += 1
            position = found
        kept = len(_STATUS)
        self._rest = data[max(position + 1, len(data) - kept) :][-kept:]


def publish(
    *,
    port: int,
    path: str,
    channels: list[str],
    count: int,
    tokens_per_s: float,
) -> dict[str, Any]:
    """Publish `count` tokens to each of `channels`, each at its time; `path` may contain `{channel}`.

    Reply when all are acknowledged, with the sent tokens by channel.
    """
    started_s = time.monotonic()
    lanes = _Lanes(port, [path.format(channel=quote(channel)) for channel in channels])
    try:
        texts, lateness = _send(lanes, len(channels), count, tokens_per_s)
        lanes.await_responses()
    finally:
        lanes.close()
    return {
        "messages": {channel: summary(text, "m") for channel, text in zip(channels, texts, strict=True)},
        "lag_ms": lateness.percentiles_ms(),
        "seconds": time.monotonic() - started_s,
    }


class _Lanes:
    """All connections. A channel, which is a number here, always has the same one."""

    def __init__(self, port: int, paths: Sequence[str]) -> None:
        """Publish to `paths`, one for each channel."""
        self._lanes = [_Lane(port) for _ in range(min(_CONNECTIONS, len(paths)))]
        self._by_socket = {lane.socket: lane for lane in self._lanes}
        self._published = 0
        head = f"HTTP/1.1\r\nHost: {_HOST}:{port}\r\nContent-Type: text/plain\r\nContent-Length: "
        self._heads = [f"POST {path} {head}" for path in paths]

    def publish(self, channel: int, text: str) -> None:
        lane = self._lanes[channel % len(self._lanes)]
        lane.waiting += f"{self._heads[channel]}{len(text)}\r\n\r\n{text}".encode()
        self._published += 1

    def turn(self, timeout_s: float) -> None:
        """Write pending bytes and read responses for so long."""
        for lane in self._lanes:
            if lane.waiting:
                lane.write()
        # Wait by `select`, because the timeouts of epoll are whole milliseconds: rounded down, they would make a busy
        # loop on the load client's core.
        for sock in select.select(self._by_socket, (), (), min(timeout_s, 0.1))[0]:
            self._by_socket[sock].read()

    def await_responses(self) -> None:
        until_s = time.monotonic() + _RESPONSES_S
        while (response_count := sum(lane.response_count for lane in self._lanes)) < self._published:
            if time.monotonic() > until_s:
                raise BenchError(f"{self._published - response_count} of {self._published} publishes got no response")
            self.turn(0.1)

    def close(self) -> None:
        for lane in self._lanes:
            lane.socket.close()


def _send(lanes: _Lanes, channels: int, count: int, tokens_per_s: float) -> tuple[list[str], Lateness]:
    """Publish all tokens when they are due. Return the texts, and how late the tokens were."""
    sent: list[list[str]] = [[] for _ in range(channels)]
    lateness = Lateness()
    total, due = count * channels, 0
    period_s = 1 / tokens_per_s / channels  # the channels are spread over one token's time
    started_s = time.monotonic()
    while due < total:
        now_s = time.monotonic()
        while due < total and (late_s := now_s - started_s - due * period_s) >= 0:
            channel, text = due % channels, token()
            due += 1
            sent[channel].append(text)
            lateness.made(channel, late_s)
            lanes.publish(channel, text)  # even if it is late: one token, one message
        lanes.turn(max(0.0, started_s + due * period_s - time.monotonic()))
    return ["".join(texts) for texts in sent], lateness


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
