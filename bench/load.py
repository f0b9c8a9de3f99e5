"""The load client: thousands of raw viewers in one thread, cheap enough not to be what is measured.

Run as a child (`bench.proc.Child`) on a core of its own. While a run is being captured each read costs one epoll
entry, one `recv` and a time stamp; bytes are parsed and checked afterwards, by the same sessions and checkers the
tests use, each with the time at which it was read. So latency is what a client on this machine sees, and includes
the time our own thread took to come round to a socket.
"""

import gc
import hashlib
import http.client
import json
import os
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from bench import tokens
from bench.proc import BenchError
from holdfast.testing.rawviewer import Checker, Json, Response, Session, SseSession, WsSession

_HOST = "127.0.0.1"
_READ_BYTES = 32 * 1024
_WAVE = 100  # connections opened before their first batches are waited for
_QUIET_S = 0.4  # nothing for this long: all has come; many times the flush window
_STDIN = 0


class Connection:
    """One viewer. `arrivals` holds what was captured: time, bytes, time, bytes …"""

    def __init__(self, sock: socket.socket, session: Session, checker: Checker) -> None:
        self.socket = sock
        self.session = session
        self.checker = checker
        self.arrivals: list[Any] = []
        self.history: list[Any] | None = None  # all arrivals since it was opened, of the one that is recorded

    def take(self, data: bytes, now_s: float) -> None:
        """Parse and check at once, and answer what has to be answered."""
        if self.history is not None:
            self.history += (now_s, data)
        self.session.receive(data, now_s=now_s)
        self.send()

    def send(self) -> None:
        if data := self.session.bytes_to_send():
            sent = self.socket.send(data)
            assert sent == len(data), "a request larger than an empty socket buffer"

    def decode(self) -> None:
        """Parse and check what was captured."""
        arrivals, self.arrivals = iter(self.arrivals), []
        for now_s, data in zip(arrivals, arrivals, strict=True):
            if self.history is not None:
                self.history += (now_s, data)
            self.session.receive(data, now_s=now_s)


class Latencies:
    """Notes, for one viewer, how old each token was when it came for the first time."""

    def __init__(self, into: "array[float]") -> None:
        self._into = into
        self._known: dict[str, int] = {}

    def observe(self, channel: str, event: Json, at_s: float) -> None:
        if event["type"] == "message.append":
            self._text(event["id"], event["at"], event["text"], at_s)
        elif event["type"] == "message.part":
            self._text(event["id"], 0, event["part"].get("text", ""), at_s)
        elif event["type"] in ("message.create", "message.update"):
            # Its text was not told as an append, but these tokens have arrived all the same.
            message = event["message"]
            self._text(message["id"], 0, "".join(part.get("text", "") for part in message.get("parts", [])), at_s)

    def _text(self, id: str, at: int, text: str, at_s: float) -> None:
        known = self._known.get(id, 0)
        self._into.extend(tokens.latencies_ms(text, at, known, at_s))
        self._known[id] = max(known, at + len(text))


class Load:
    """What the requests of the benchmark are carried out by; each public method is one."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._is_capturing = False
        self._captured_s = 0.0
        self._cpu_s = 0.0
        self._ended = 0
        self._is_next_recorded = False
        self._batches = 0
        self._bytes = 0
        self._last_read_s = 0.0
        self._latencies: array[float] = array("d")

    # Requests

    def connect(self, *, kind: str, port: int, channels: list[str], timeout_s: float) -> Json:
        """Attach one viewer to each of `channels` (which may repeat) and wait for all first batches."""
        started_s = time.monotonic()
        for start in range(0, len(channels), _WAVE):
            wave = [self._open(kind, port, channel) for channel in channels[start : start + _WAVE]]
            while not all(connection.session.has_attached for connection in wave):
                if time.monotonic() - started_s > timeout_s:
                    waiting = sum(not connection.session.has_attached for connection in wave)
                    raise BenchError(f"{waiting} of {len(wave)} viewers not attached: {self._first_violation()}")
                if self._ended:
                    raise BenchError(f"the server ended a connection: {self._first_violation()}")
                self.turn(0.1)
        return {"connections": len(self._connections), "seconds": time.monotonic() - started_s}

    def record(self) -> Json:
        """Keep all that the next viewer to connect gets, for `recording`."""
        self._is_next_recorded = True
        return {}

    def capture(self) -> Json:
        """From now on only read; parse later."""
        gc.collect()
        gc.freeze()
        gc.disable()
        del self._latencies[:]  # the viewers hold on to the array
        self._batches = sum(connection.checker.batches for connection in self._connections.values())
        self._bytes = sum(connection.checker.payload_bytes for connection in self._connections.values())
        self._is_capturing = True
        self._captured_s, self._cpu_s = time.monotonic(), time.process_time()
        return {}

    def drain(self, *, timeout_s: float) -> Json:
        """Read until nothing more comes, and end the capture."""
        until_s = time.monotonic() + timeout_s
        self._last_read_s = time.monotonic()
        while time.monotonic() - self._last_read_s < _QUIET_S:
            if time.monotonic() > until_s:
                raise BenchError(f"the server was still sending after {timeout_s} s")
            self.turn(_QUIET_S / 4)
        self._is_capturing = False
        wall_s = self._last_read_s - self._captured_s
        return {"seconds": wall_s, "cpu_s": time.process_time() - self._cpu_s, "ended": self._ended}

    def decode(self) -> Json:
        """Parse and check all that was captured."""
        for connection in self._connections.values():
            connection.decode()
        gc.enable()
        violations = Counter(
            violation.kind for connection in self._connections.values() for violation in connection.checker.violations
        )
        latencies = sorted(self._latencies)
        return {
            "deliveries": sum(c.checker.batches for c in self._connections.values()) - self._batches,
            "bytes": sum(c.checker.payload_bytes for c in self._connections.values()) - self._bytes,
            "violations": dict(violations),
            "first_violation": self._first_violation(),
            "tokens": len(latencies),
            "latency_ms": [latencies[int(len(latencies) * share)] for share in (0.5, 0.99, 0.999)] if latencies else [],
        }

    def compare(self, *, sent: dict[str, Json], port: int | None) -> Json:
        """Hold what each viewer shows against what was sent and, with `port`, what the server says it stored."""
        stored = _stored(port, sent) if port is not None else {}
        wrong: dict[str, list[str]] = {}  # by channel
        for channel, message in stored.items():
            if _digest(_text(message)) != sent[channel]["sha256"]:
                wrong.setdefault(channel, []).append("what is stored is not what was appended")
        for connection in self._connections.values():
            channel = connection.checker.channel
            text = connection.checker.text(sent[channel]["id"])
            if _digest(text) != sent[channel]["sha256"]:
                of = sent[channel]["length"]
                wrong.setdefault(channel, []).append(f"{len(text)} of {of} characters are shown, or other ones")
            elif stored and (differences := connection.checker.differences(stored[channel])):
                wrong.setdefault(channel, []).extend(differences)
        return {"compared": len(self._connections), "wrong": len(wrong), "example": next(iter(wrong.items()), None)}

    def recording(self) -> Json:
        """What the recorded viewer got: all that came before the capture, then each batch with its time since."""
        (history,) = [c.history for c in self._connections.values() if c.history is not None]
        response = Response()
        before = rest = b""
        batches: list[tuple[float, str]] = []
        arrivals = iter(history)
        for now_s, data in zip(arrivals, arrivals, strict=True):
            if now_s < self._captured_s:
                before += response.receive(data)
            else:
                whole, rest = _split(rest + response.receive(data))
                batches += [(now_s - self._captured_s, batch.decode()) for batch in whole]
        return {"before": before.decode(), "batches": batches}

    def close(self) -> Json:
        """Close all connections and forget them."""
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._ended = 0
        gc.unfreeze()
        return {}

    # Inside

    def turn(self, timeout_s: float) -> bool:
        """Read once whatever is readable; true when our standard input is."""
        is_asked = False
        for fd, _ in self._epoll.poll(timeout_s, 4096):
            connection = self._connections.get(fd)
            if connection is None:
                is_asked = is_asked or fd == _STDIN
                continue
            try:
                data = connection.socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            now_s = time.monotonic()
            self._last_read_s = now_s
            if not data:
                self._ended += 1
                self._epoll.unregister(fd)
                if not self._is_capturing:
                    connection.session.receive_end()
            elif self._is_capturing:
                connection.arrivals.append(now_s)
                connection.arrivals.append(data)
            else:
                connection.take(data, now_s)
        return is_asked

    def run(self) -> None:
        """Carry out requests from standard input until it ends."""
        requests: dict[str, Callable[..., Json]] = {
            "connect": self.connect,
            "record": self.record,
            "capture": self.capture,
            "drain": self.drain,
            "decode": self.decode,
            "compare": self.compare,
            "recording": self.recording,
            "close": self.close,
        }
        self._epoll.register(_STDIN, select.EPOLLIN)
        rest = b""
        while True:
            if not self.turn(10.0):
                continue
            data = os.read(_STDIN, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                try:
                    answer = requests[request.pop("do")](**request)
                except (BenchError, OSError, http.client.HTTPException) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()

    def _open(self, kind: str, port: int, channel: str) -> Connection:
        checker = Checker(channel)
        observe = Latencies(self._latencies).observe
        session: Session
        if kind == "sse":
            session = SseSession(checker, host=f"{_HOST}:{port}", observe=observe)
        else:
            session = WsSession(host=f"{_HOST}:{port}", observe=observe)
            session.attach(checker)
        sock = socket.create_connection((_HOST, port), timeout=10)
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = Connection(sock, session, checker)
        if self._is_next_recorded:
            connection.history, self._is_next_recorded = [], False
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        connection.send()
        return connection

    def _first_violation(self) -> str | None:
        for connection in self._connections.values():
            for violation in connection.checker.violations:
                return f"{violation.kind}: {violation.detail}"
            if isinstance(connection.session, SseSession) and connection.session.body:
                return f"{connection.session.response.status}: {connection.session.body[:300]!r}"
        return None


def _stored(port: int, sent: dict[str, Json]) -> dict[str, Json]:
    """The messages, by channel, as the server says they are."""
    stored = {}
    connection = http.client.HTTPConnection(_HOST, port, timeout=10)
    for channel, message in sent.items():
        connection.request("GET", f"/v1/channels/{quote(channel, safe='')}/messages/{quote(message['id'], safe='')}")
        response = connection.getresponse()
        body = json.loads(response.read())
        if response.status != 200:
            raise BenchError(f"GET of a message in {channel} was answered with {response.status}: {body}")
        stored[channel] = body["message"]
    connection.close()
    return stored


def _text(message: Json) -> str:
    return "".join(part.get("text", "") for part in message.get("parts", []))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _split(payload: bytes) -> tuple[list[bytes], bytes]:
    """The whole batches at the beginning of `payload`, and the rest: a batch ends with an event that has an id."""
    batches, start, end = [], 0, 0
    while (found := payload.find(b"\n\n", end)) >= 0:
        event, end = payload[end:found], found + 2
        if event.startswith(b"id:") or b"\nid:" in event:
            batches.append(payload[start:end])
            start = end
    return batches, payload[start:]


if __name__ == "__main__":
    Load().run()
