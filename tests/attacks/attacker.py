"""The attacking process: raw sockets that break every rule, bounded in time.

Layer: tests.

`python -m tests.attacks.attacker NAME OPTIONS` runs one attack on a port of this machine. It prints `under way` and two
times once the attack is under way: that time, and the time of its end at the latest. At its end it prints a report as
JSON. The options are a JSON object with `port`, `seconds` and those of the attack.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from proof.wirecheck import encode_frame

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
Report = dict[str, Any]
LEAST_HELD_S = 6.0  # a crowd holds its connections for this time, even if a busy machine took long to open them
REFUSED_S = 0.01  # pause behind a refusal by rate, whose flood is not what an attack within the rates measures


def connect(port: int, address: str = "127.0.0.1", timeout_s: float = 5.0) -> socket.socket:
    """Return a connection from `address`, which is a loopback address."""
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.settimeout(timeout_s)
    one.bind((address, 0))
    one.connect(("127.0.0.1", port))
    return one


def begun(until_s: float) -> None:
    """Report that the attack is under way until `until_s`, by the clock that all processes of the machine share."""
    print("under way", time.monotonic(), until_s, flush=True)


def at_the_same_time(act: Callable[[], None], times: int, until_s: float) -> None:
    """Begin the attack: call `act` in as many threads, and wait for all of them."""
    threads = [threading.Thread(target=act) for _ in range(times)]
    begun(until_s)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def pour(one: socket.socket, piece: bytes, until_s: float, already: int = 0) -> int:
    """Send `piece` again and again until `until_s`, or until the server ends it; return the number of bytes.

    After `already` bytes of an earlier call it goes on in the middle of `piece`, where that call ended.
    """
    sent = 0
    one.settimeout(0.2)
    view = memoryview(piece)
    at = already % len(piece)
    while time.monotonic() < until_s:
        try:
            count = one.send(view[at:])
        except TimeoutError:
            continue
        except OSError:
            break
        sent += count
        at = (at + count) % len(piece)
    return sent


def read_all(one: socket.socket, timeout_s: float = 3.0) -> bytes:
    """Read until the end of the connection, or until it is silent; for ten times as long at most."""
    received = bytearray()
    one.settimeout(timeout_s)
    until_s = time.monotonic() + 10 * timeout_s
    with contextlib.suppress(OSError):
        while time.monotonic() < until_s and (data := one.recv(1 << 20)):
            received += data
    return bytes(received)


def again(attempt: Callable[[float], tuple[int, bytes]], seconds: float, at_once: int = 1) -> Report:
    """Call `attempt` for one connection after another during `seconds`, for `at_once` connections at any time.

    `attempt` returns the bytes sent and received.
    """
    until_s = time.monotonic() + seconds
    sent, connections, first = 0, 0, b""

    def run() -> None:
        nonlocal sent, connections, first
        while time.monotonic() < until_s:
            count, received = attempt(until_s)
            sent += count
            connections += 1
            first = first or received

    at_the_same_time(run, at_once, until_s)
    return {"sent": sent, "connections": connections, "first": first[:600].decode("latin-1")}


def endless_head(
    port: int, seconds: float, begin: str, piece: str, at_once: int = 1, is_answered: bool = False
) -> Report:
    """Send a request that does not end, perhaps once its response is there, on `at_once` connections at any time."""

    def attempt(until_s: float) -> tuple[int, bytes]:
        with connect(port) as one:
            with contextlib.suppress(OSError):
                one.sendall(begin.encode())
            first = one.recv(65536) if is_answered else b""
            sent = pour(one, piece.encode() * (65536 // len(piece)), until_s)
            return sent, first or read_all(one, 0.5)

    return again(attempt, seconds, at_once)


def pipelined(
    port: int,
    seconds: float,
    total: int,
    path: str = "/healthz",
    bearer: str = "",
    at_once: int = 1,
    reads: bool = False,
    first: str = "",
) -> Report:
    """Send many requests on one connection, or on `at_once` of them, each after `first`, a whole request, if given.

    Without `reads` no response is read.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{bearer and f'Authorization: Bearer {bearer}'}\r\n".encode()
    request = request if request.endswith(b"\r\n\r\n") else request + b"\r\n"

    def attempt(until_s: float) -> tuple[int, bytes]:
        with connect(port) as one:
            if first:
                assert exchange(one, first.encode())[0] == 200
            requests, sent, received = request * 2_000, 0, b""
            while time.monotonic() < until_s and sent < total * len(request):
                sent += pour(one, requests, min(until_s, time.monotonic() + (0.05 if reads else 0.5)), sent)
                if reads:
                    one.setblocking(False)
                    with contextlib.suppress(OSError):
                        received = (received + one.recv(1 << 20))[-4096:]  # a response may come in two pieces
            return sent, received

    report = again(attempt, seconds, at_once)
    return {**report, "requests": report["sent"] // len(request)}


def crowd(
    port: int,
    seconds: float,
    total: int,
    addresses: int = 1,
    begin: str = "",
    filler: int = 0,
    end: str = "",
    again_s: float = 0.0,
    begun_at: int = 0,
    socket_frames: str = "",
    first_address: int = 2,
) -> Report:
    """Open many connections and hold them, each with `begin`, `filler` more bytes and `end`, or as a WebSocket.

    `{n}` stands for a number from 0 to 249, another one in each connection. With `again_s` all connections repeat
    their bytes after each `again_s` seconds. With `begun_at` the attack counts as begun after that number of
    connections, and continues to connect. `socket_frames` are the bytes after the handshake, in hexadecimal. The
    connections come from `addresses` loopback addresses. The report has the number of connections that are open at the
    end, the time that it took to open them, and the time at which the server ended the last one.
    """
    began_s = time.monotonic()
    head = begin.encode() + b"x" * filler + end.encode()
    waiting = selectors.DefaultSelector()
    open_now, opened, refused = 0, 0, 0
    opening_s = 0.0
    until_s = began_s + seconds
    last_end_s = due_s = 0.0

    def look(timeout_s: float) -> None:
        nonlocal open_now, last_end_s
        for key, _ in waiting.select(timeout_s):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            try:
                data = one.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if key.data["handshake"] and data.startswith(b"HTTP/1.1 101") and socket_frames:
                key.data["handshake"] = False
                with contextlib.suppress(OSError):
                    one.send(bytes.fromhex(socket_frames))
            if not data:
                waiting.unregister(one)
                one.close()
                open_now -= 1
                last_end_s = time.monotonic() - began_s

    while (time.monotonic() < until_s and (opened < total or open_now)) or opened < (begun_at or total):
        for _ in range(20 if opened < total else 0):
            address = f"127.0.{first_address}.{1 + opened % addresses}"
            try:
                one = connect(port, address)
                one.sendall(head.replace(b"{n}", b"%d" % (opened % 250)))
            except OSError:
                refused += 1
            else:
                one.setblocking(False)
                waiting.register(one, selectors.EVENT_READ, {"handshake": bool(socket_frames)})
                open_now += 1
            opened += 1
            if opened == (begun_at or total):
                opening_s = time.monotonic() - began_s
                until_s = max(until_s, time.monotonic() + LEAST_HELD_S)
                begun(until_s)
        look(0.0 if opened < total else 0.2)
        if again_s and opened >= total and time.monotonic() > due_s:
            due_s = time.monotonic() + again_s
            for key in list(waiting.get_map().values()):
                with contextlib.suppress(OSError):
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.send(head)
    return {
        "opened": opened,
        "refused": refused,
        "left": open_now,
        "opening_s": round(opening_s, 1),
        "last_end_s": round(last_end_s, 1),
    }


HANDSHAKE = (
    "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def frames(
    port: int,
    seconds: float,
    first: str,
    piece: str,
    bearer: str = "",
    reads: bool = False,
    times: int = 1_000,
    at_once: int = 1,
) -> Report:
    """Send frames on one socket after another: `first`, then `piece` again and again, both in hexadecimal.

    With `at_once` it attacks by so many sockets at any time.
    With `reads` the responses are read. The report has the last close code.
    """
    authorization = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
    flood = bytes.fromhex(piece) * times

    def attempt(until_s: float) -> tuple[int, bytes]:
        with connect(port) as one:
            received = bytearray()
            try:
                one.sendall(f"{HANDSHAKE}{authorization}\r\n".encode())
                one.recv(4096)
                one.sendall(bytes.fromhex(first))
            except OSError:
                return 0, b""
            sent = 0
            while time.monotonic() < until_s:
                before = sent
                sent += pour(one, flood, min(until_s, time.monotonic() + 0.1), sent)
                one.setblocking(False)
                try:
                    # Without `reads` only a look ahead: the bytes stay unread.
                    data = one.recv(1 << 20, 0 if reads else socket.MSG_PEEK)
                except BlockingIOError:
                    continue
                except OSError:
                    break
                received[:] = data[-4096:] or received
                if not data or (sent == before and b"\x88" in data[-200:]):
                    break
            return sent, bytes(received) + read_all(one, 0.3)[-4096:]

    codes: dict[str, int] = {}

    def noted(until_s: float) -> tuple[int, bytes]:
        sent, received = attempt(until_s)
        at = max(received.rfind(b"\x88" + bytes((size,))) for size in range(2, 126))
        if at >= 0:
            code = str(int.from_bytes(received[at + 2 : at + 4]))
            codes[code] = codes.get(code, 0) + 1
        return sent, b""

    return {**again(noted, seconds, at_once), "codes": codes}


def exchange(one: socket.socket, request: bytes) -> tuple[int, int]:
    """Send a request and read its response; return the status and the length of the body."""
    one.sendall(request)
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += _some(one)
    length = re.search(rb"content-length: (\d+)", received[:end])
    assert length, received[:end]
    left = int(length[1]) - (len(received) - end - 4)
    while left > 0:
        left -= len(_some(one))
    return int(received[9:12]), int(length[1])


def _some(one: socket.socket) -> bytes:
    data = one.recv(1 << 18)
    if not data:
        raise OSError("the server closed the connection")
    return data


def within_rates(
    port: int,
    seconds: float,
    bearer: str,
    path: str,
    method: str = "GET",
    text_bytes: int = 0,
    connections: int = 2,
    viewers: int = 0,
    viewer: str = "",
    watched: str = "",
) -> Report:
    """Send one valid request after another on each connection, after a refusal `REFUSED_S` later, for `seconds`.

    A body has a text of `text_bytes` bytes, another one each time. As many viewers, with the token `viewer`, follow the
    channel `watched`. The report has the responses by status, and the bytes of the accepted ones and of the viewers.
    """
    until_s = time.monotonic() + seconds
    statuses: dict[str, int] = {}
    counts = {"bytes": 0, "watched": 0}
    lock = threading.Lock()
    numbers = itertools.count()

    def request() -> bytes:
        body = b""
        if method != "GET":
            body = b'{"text":"%b"}' % f"{next(numbers):<{text_bytes}}".encode()
        return (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def send() -> None:
        with connect(port) as one:
            while time.monotonic() < until_s:
                status, size = exchange(one, request())
                with lock:
                    statuses[str(status)] = statuses.get(str(status), 0) + 1
                    counts["bytes"] += size if status < 300 else 0
                if status == 429:
                    time.sleep(REFUSED_S)

    def watch() -> None:
        with connect(port) as one:
            head = f"GET /v1/channels/{watched}/events?history=0 HTTP/1.1\r\nHost: localhost\r\n"
            one.sendall(f"{head}Authorization: Bearer {viewer}\r\n\r\n".encode())
            assert _some(one).startswith(b"HTTP/1.1 200"), "a viewer was refused"
            attached.wait()
            one.settimeout(0.2)
            while time.monotonic() < until_s + 0.5:
                with contextlib.suppress(TimeoutError):
                    data = _some(one)
                    with lock:
                        counts["watched"] += len(data)

    attached = threading.Barrier(viewers + 1)
    threads = [threading.Thread(target=watch) for _ in range(viewers)]
    for thread in threads:
        thread.start()
    attached.wait(10)
    at_the_same_time(send, connections, until_s)
    for thread in threads:
        thread.join()
    return {"statuses": statuses, **counts}


def aborted_bodies(port: int, seconds: float, bearer: str, path: str, size: int, connections: int = 8) -> Report:
    """Send bodies without their last byte, and abort each. The report has the bytes of those that were not refused."""
    until_s = time.monotonic() + seconds
    counts = {"refused": 0, "bytes": 0}
    lock = threading.Lock()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size + 1}\r\n\r\n{'x' * size}"
    ).encode()

    def send() -> None:
        while time.monotonic() < until_s:
            with connect(port) as one:
                one.sendall(request)
                one.settimeout(0.2)  # the server refuses at once, and sends nothing to a body that it reads
                try:
                    is_refused = bool(one.recv(4096))
                except TimeoutError:
                    is_refused = False
                with lock:
                    counts["refused"] += is_refused
                    counts["bytes"] += 0 if is_refused else size
            if is_refused:
                time.sleep(0.1)  # the attack is one of bytes, and not of requests that are refused

    at_the_same_time(send, connections, until_s)
    return counts


def introductions(port: int, seconds: float, bearer: str, at_once: int) -> Report:
    """Open one socket after another, and send the token in the first frame. The report has the first refusal."""
    auth = encode_frame(1, json.dumps({"type": "auth", "ref": 1, "token": bearer}).encode(), mask=b"mask")

    def attempt(until_s: float) -> tuple[int, bytes]:
        with connect(port) as one, contextlib.suppress(OSError):
            one.sendall(f"{HANDSHAKE}\r\n".encode())
            assert one.recv(4096).startswith(b"HTTP/1.1 101 ")
            one.sendall(auth)
            received = b""
            while time.monotonic() < until_s and b'"error"' not in received:
                received += _some(one)
            return len(auth), received
        return 0, b""

    return again(attempt, seconds, at_once)


ATTACKS: dict[str, Callable[..., Report]] = {
    "endless_head": endless_head,
    "pipelined": pipelined,
    "crowd": crowd,
    "frames": frames,
    "within_rates": within_rates,
    "aborted_bodies": aborted_bodies,
    "introductions": introductions,
}

if __name__ == "__main__":
    print(json.dumps(ATTACKS[sys.argv[1]](**json.loads(sys.argv[2]))))
