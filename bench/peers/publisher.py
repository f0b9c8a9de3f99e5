"""An open-loop publisher over HTTP, for servers that have no producers in their own process.

One POST per token or, with a window, one for all tokens that a channel got in it.

Run as a child, on the load client's core, so that its time is nobody's server time: to the peer's advantage, since
our producers run inside our server. A few connections are kept alive and a channel always uses the same one, so its
order is kept; a request goes out when its time has come, whether or not the one before was answered (pipelining).
Every answer must be a 2xx, and all of them must come, or the run is void.
"""

import json
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any
from urllib.parse import quote

from bench.control import answer
from bench.peers.summary import summary
from bench.proc import BenchError
from bench.tokens import token

_HOST = "127.0.0.1"
_CONNECTIONS = 64  # with 16, publishes that wait for Redis waited for one another: 110 ms instead of a few
_ANSWERS_S = 15.0  # for what is still unanswered at the end
_STATUS = b"HTTP/1.1 "


class _Lane:
    """One connection: bytes that wait for room in its socket, and how many answers have come."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((_HOST, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.waiting = bytearray()
        self.answered = 0
        self._rest = b""

    def write(self) -> None:
        try:
            sent = self.socket.send(self.waiting)
        except BlockingIOError:
            return
        del self.waiting[:sent]

    def read(self) -> None:
        """Count answers. Raises `BenchError` at one that is not a yes."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise BenchError("the server closed a publisher's connection")
        data = self._rest + data
        # Neither headers nor bodies of the answers hold these words, so finding them is parsing enough.
        position = -1
        while (found := data.find(_STATUS, position + 1)) >= 0 and found + len(_STATUS) < len(data):
            if data[found + len(_STATUS)] != ord("2"):
                raise BenchError(f"a publish was refused: {data[found : found + 200]!r}")
            self.answered += 1
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
    window_ms: int = 0,
    tells_text: bool = False,
) -> dict[str, Any]:
    """Publish `count` tokens to each of `channels`, each at its time; `path` holds `{channel}`.

    With `window_ms`, what a channel got is published so long after the first of it, as one message. Answers when all
    have been acknowledged, with what was sent by channel; with `tells_text` also the texts.
    """
    lanes = [_Lane(port) for _ in range(min(_CONNECTIONS, len(channels)))]
    epoll = select.epoll()
    by_fd = {lane.socket.fileno(): lane for lane in lanes}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    heads = [
        f"POST {path.format(channel=quote(channel))} HTTP/1.1\r\nHost: {_HOST}:{port}\r\n"
        "Content-Type: text/plain\r\nContent-Length: ".encode()
        for channel in channels
    ]
    sent: list[list[str]] = [[] for _ in channels]
    lags: list[float] = []
    gathered: list[list[str]] = [[] for _ in channels]
    closing: deque[tuple[float, int]] = deque()  # when the window of a channel ends; all are as long, so in order
    total, due, published = count * len(channels), 0, 0
    period_s = 1 / tokens_per_s / len(channels)  # all channels, spread over one token's time
    started_s = time.monotonic()
    try:
        while due < total or closing:
            now_s = time.monotonic()
            while due < total and (late_s := now_s - started_s - due * period_s) >= 0:
                n = due % len(channels)
                text = token()
                sent[n].append(text)
                lags.append(late_s)
                if not gathered[n]:
                    closing.append((now_s + window_ms / 1000, n))
                gathered[n].append(text)
                due += 1
            while closing and closing[0][0] <= now_s:
                n = closing.popleft()[1]
                body = "".join(gathered[n])
                gathered[n].clear()
                lanes[n % len(lanes)].waiting += heads[n] + f"{len(body)}\r\n\r\n{body}".encode()
                published += 1
            next_s = [closing[0][0]] if closing else []
            if due < total:
                next_s.append(started_s + due * period_s)
            _turn(epoll, by_fd, max(0.0, min(next_s) - time.monotonic()) if next_s else 0.0)
        until_s = time.monotonic() + _ANSWERS_S
        while (answered := sum(lane.answered for lane in lanes)) < published:
            if time.monotonic() > until_s:
                raise BenchError(f"{published - answered} of {published} publishes were not answered")
            _turn(epoll, by_fd, 0.1)
    finally:
        for lane in lanes:
            lane.socket.close()
        epoll.close()
    lags.sort()
    texts = ["".join(pieces) for pieces in sent]
    return {
        "messages": {channel: summary(text, "m") for channel, text in zip(channels, texts, strict=True)},
        "texts": dict(zip(channels, texts, strict=True)) if tells_text else {},
        "lag_ms": [lags[int(len(lags) * share)] * 1000 for share in (0.5, 0.99)],
        "seconds": time.monotonic() - started_s,
    }


def _turn(epoll: select.epoll, by_fd: dict[int, _Lane], timeout_s: float) -> None:
    for lane in by_fd.values():
        if lane.waiting:
            lane.write()
    # Below a millisecond epoll would wait a whole one; asking again at once is what open loop means.
    for fd, _ in epoll.poll(0 if timeout_s < 0.0005 else min(timeout_s, 0.1)):
        by_fd[fd].read()


def main() -> None:
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            assert request.pop("do") == "publish"
            try:
                answer(**publish(**request))
            except (BenchError, OSError) as error:
                answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
