"""The load client: thousands of viewers in one thread, cheap enough not to distort the measurement.

Run as a child (`bench.proc.Child`) on a core of its own. Sockets, epoll, capture and comparison are the same code for
every system; only the session that parses the bytes differs (`bench.peers.viewers`).

During a capture each read costs one epoll entry, one `recv` and a time stamp. Bytes are parsed and checked afterwards,
by the sessions and the checker of `wirecheck`, each with the time at which it was read. So latency is that of a client
on this machine, and includes the time until this thread reaches a socket. Outside a capture, bytes are parsed on
arrival.
"""

import gc
import hashlib
import heapq
import http.client
import itertools
import json
import os
import random
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast
from urllib.parse import quote

from bench import tokens
from bench.peers.viewers import KINDS, TextChecker
from bench.proc import BenchError
from bench.reader import LoadResponse, LoadSseSession, LoadWsSession
from proof.wirecheck import Checker, Json, Session, SseSession

_HOST = "127.0.0.1"
_READ_BYTES = 32 * 1024
_WAVE = 100  # connections opened before their first batches are waited for
_QUIET_S = 0.4  # if no bytes arrive for this long, many times the flush window, all have arrived
_POLL_S = 0.05  # between two checks whether all viewers are back
_STDIN = 0


class Load:
    """Carries out the requests of a benchmark; each public method is one."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._is_capturing = False
        self._captured_s = 0.0
        self._cpu_s = 0.0
        self._ended = 0
        self._recorded: set[str] | None = None  # channels with a recorded viewer, while more may connect
        # stalled viewers, with the number of bytes that each had received when it stopped reading
        self._stalled: list[tuple[Connection, int]] = []
        self._is_stalling = False
        self._batches = 0
        self._bytes = 0
        self.last_read_s = 0.0
        self._latencies: array[float] = array("d")

    # Requests

    def connect(
        self,
        *,
        kind: str,
        port: int,
        channels: list[str],
        timeout_s: float,
        prefix: str = "",
        piece: int = tokens.WIDTH,
    ) -> Json:
        """Attach one viewer to each of `channels` (which may repeat) and wait for all first batches.

        The hub is mounted below the path `prefix`. A token begins at each multiple of `piece` in the text
        (`Producers.produce`).
        """
        started_s = time.monotonic()
        for start in range(0, len(channels), _WAVE):
            wave = [
                self.dial(Viewer(kind, channel, Latencies(self._latencies, piece)), port, prefix)
                for channel in channels[start : start + _WAVE]
            ]
            self.until_attached(wave, started_s + timeout_s)
        return {"connections": len(self._connections), "seconds": time.monotonic() - started_s}

    def record(self) -> Json:
        """Record all bytes for the first viewer of each channel that connects from now on, for `recording`."""
        self._recorded = set()
        return {}

    def capture(self) -> Json:
        """Start a capture: only read from now on, and parse later."""
        gc.collect()
        gc.freeze()
        gc.disable()
        del self._latencies[:]  # the viewers hold on to the array
        self._batches = sum(connection.checker.batches for connection in self._connections.values())
        self._bytes = sum(connection.checker.payload_bytes for connection in self._connections.values())
        self._is_capturing, self._recorded = True, None
        self._captured_s, self._cpu_s = time.monotonic(), time.process_time()
        return {}

    def read_for(self, *, seconds: float) -> Json:
        """Continue reading for a while. Return how many connections the server has ended."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.turn(left_s)
        return {"ended": self._ended}

    def drain(self, *, timeout_s: float, last: str | None = None) -> Json:
        """Read until no more bytes arrive, and end the capture.

        With `last`, the last bytes of every viewer must contain it, unless a connection has ended; the comparison finds
        a viewer that does not get it in time. Without it, a pause is the only sign of the end.
        """
        if not self._is_capturing:  # outside a capture, the time counts from here
            self._captured_s, self._cpu_s = time.monotonic(), time.process_time()
        until_s = time.monotonic() + timeout_s
        self.last_read_s = time.monotonic()
        while (now_s := time.monotonic()) - self.last_read_s < _QUIET_S or not self._have_all_got(last):
            if now_s > until_s:
                if now_s - self.last_read_s < _QUIET_S:
                    raise BenchError(f"the server was still sending after {timeout_s} s")
                break
            self.turn(_QUIET_S / 4)
        self._is_capturing = False
        wall_s = self.last_read_s - self._captured_s
        return {"seconds": wall_s, "cpu_s": time.process_time() - self._cpu_s, "ended": self._ended}

    def stall(self, *, count: int) -> Json:
        """Stop reading at the `count` viewers that connected last; their tokens have no latency from now on."""
        self._is_stalling = True
        for connection in list(self._connections.values())[-count:] if count else []:
            self._epoll.unregister(connection.socket)
            connection.viewer.latencies.stop()
            self._stalled.append((connection, connection.checker.payload_bytes))
        return {}

    def read_on(self) -> Json:
        """Read again at the stalled viewers, with a capture; call `drain` next."""
        self._is_stalling, self._is_capturing = False, True
        for connection, _ in self._stalled:
            self._epoll.register(connection.socket, select.EPOLLIN)
        return {}

    def decode(self, *, skip_s: float = 0.0, windows: Sequence[tuple[float, float]] = ()) -> Json:
        """Parse and check the captured bytes. Tokens of the first `skip_s` of the capture have no latency.

        With `windows` (pairs of times, CLOCK_MONOTONIC), return the latency of the tokens appended in each, too.
        """
        arrivals = array("d")
        for connection in self._connections.values():
            connection.viewer.latencies.from_s = self._captured_s + skip_s
            connection.viewer.latencies.arrivals = arrivals if windows else None
            connection.decode()
        gc.enable()
        violations = Counter(
            violation.kind for connection in self._connections.values() for violation in connection.checker.violations
        )
        appended = list(zip(arrivals, self._latencies, strict=True)) if windows else []
        during = [
            sorted(ms for at_s, ms in appended if first_s <= at_s - ms / 1000 < over_s) for first_s, over_s in windows
        ]
        latencies = sorted(self._latencies)
        return {
            "deliveries": sum(c.checker.batches for c in self._connections.values()) - self._batches,
            "bytes": sum(c.checker.payload_bytes for c in self._connections.values()) - self._bytes,
            "violations": dict(violations),
            "first_violation": self._first_violation(),
            "stalled_bytes": [connection.checker.payload_bytes - before for connection, before in self._stalled],
            "tokens": len(latencies),
            "latency_ms": _percentiles(latencies),
            "windows_ms": [_percentiles(each) for each in during],
        }

    def compare(self, *, sent: dict[str, Json], port: int | None, prefix: str = "") -> Json:
        """Compare the text of each viewer with the sent one and, with `port`, with the server's stored message."""
        stored = _stored(port, prefix, sent) if port is not None else {}
        wrong: dict[str, list[str]] = {}  # for each channel the reasons
        for channel, message in stored.items():
            if _digest(_text(message)) != sent[channel]["sha256"]:
                wrong.setdefault(channel, []).append("the stored text differs from the appended text")
        for connection in self._connections.values():
            channel = connection.checker.channel
            text = connection.checker.text(sent[channel]["id"])
            if _digest(text) != sent[channel]["sha256"]:
                of = sent[channel]["length"]
                wrong.setdefault(channel, []).append(f"{len(text)} of {of} characters are shown, or other text")
            elif stored and (differences := connection.checker.differences(stored[channel])):
                wrong.setdefault(channel, []).extend(differences)
        return {"compared": len(self._connections), "wrong": len(wrong), "example": next(iter(wrong.items()), None)}

    def recording(self) -> Json:
        """Return the bytes of the recorded viewers: those before the capture, then each batch with its time since then.

        Bytes are returned as latin-1, because frames are not UTF-8.
        """
        kind, recordings = "", {}
        for connection in self._connections.values():
            if connection.history is None:
                continue
            kind = connection.viewer.kind
            split = _split_events if kind == "sse" else _split_frames
            response = LoadResponse()
            before = rest = b""
            batches: list[tuple[float, str]] = []
            arrivals = iter(connection.history)
            for now_s, data in zip(arrivals, arrivals, strict=True):
                if now_s < self._captured_s:
                    before += response.receive(data)
                else:
                    whole, rest = split(rest + response.receive(data))
                    batches += [(now_s - self._captured_s, batch.decode("latin-1")) for batch in whole]
            recordings[connection.checker.channel] = {"before": before.decode("latin-1"), "batches": batches}
        return {"kind": kind, "channels": recordings}

    def come_back(self, *, ports: list[int], within_s: float, timeout_s: float, prefix: str = "") -> Json:
        """Reconnect every viewer with its cursor after all connections were cut, until all are live.

        A viewer waits up to `within_s` before each try, as a client with jitter does. The tries go to the `ports` in
        turn, as behind a proxy. Return the times
        (CLOCK_MONOTONIC) at which the first batch of each was complete, in order, the number of new starts instead of
        resumes, and the CPU time of this process.
        """
        started_s, cpu_s = time.monotonic(), time.process_time()
        until_s, in_turn = started_s + timeout_s, itertools.cycle(ports)
        uncut = list(self._connections.values())
        due: list[tuple[float, int, Viewer]] = []  # a heap; the number makes each entry unique
        back: list[Connection] = []
        while uncut or due or any(connection.attached_s is None for connection in back):
            now_s = time.monotonic()
            if now_s > until_s:
                live = sum(connection.attached_s is not None for connection in back)
                raise BenchError(f"{live} viewers are live after {timeout_s} s: {self._first_violation()}")
            for connection in uncut:
                if connection.session.is_over:
                    self.hang_up(connection)
                    heapq.heappush(due, (now_s + random.uniform(0, within_s), id(connection), connection.viewer))
            uncut = [connection for connection in uncut if not connection.session.is_over]
            while due and due[0][0] <= now_s:
                _, number, viewer = heapq.heappop(due)
                try:
                    back.append(self.dial(viewer, next(in_turn), prefix))
                except ConnectionRefusedError:
                    heapq.heappush(due, (now_s + random.uniform(0, within_s), number, viewer))
                self.turn(0)  # connected viewers do not wait for those that still dial
            self.turn(min(_POLL_S, max(0.0, due[0][0] - now_s)) if due else _POLL_S)
        self._ended = 0
        return {
            "attached_s": sorted(connection.attached_s or 0.0 for connection in back),
            "new_starts": sum(connection.checker.new_starts - 1 for connection in back),
            "cpu_s": time.process_time() - cpu_s,
            "seconds": time.monotonic() - started_s,
        }

    def close(self) -> Json:
        """Close all connections and reset the state: a run may end within a capture."""
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._stalled.clear()
        self._is_capturing = self._is_stalling = False
        self._recorded = None
        self._ended = 0
        gc.unfreeze()
        gc.enable()
        return {}

    # For callers that drive single viewers

    def dial(self, viewer: "Viewer", port: int, prefix: str = "") -> "Connection":
        """Connect a viewer, from its cursor if it has one, and request its channel. Raises OSError."""
        session = viewer.new_session(f"{_HOST}:{port}", prefix)
        sock = socket.create_connection((_HOST, port), timeout=10)
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = Connection(sock, session, viewer)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        if self._recorded is not None and viewer.checker.channel not in self._recorded:
            self._recorded.add(viewer.checker.channel)
            connection.history = []
        connection.send()
        return connection

    def until_attached(self, connections: Iterable["Connection"], until_s: float) -> None:
        """Wait for the first batch of each connection. Raises `BenchError`."""
        while waiting := sum(not connection.session.has_attached for connection in connections):
            if time.monotonic() > until_s:
                raise BenchError(f"{waiting} viewers not attached: {self._first_violation()}")
            if self._ended:
                raise BenchError(f"the server ended a connection: {self._first_violation()}")
            self.turn(0.1)

    def hang_up(self, connection: "Connection") -> None:
        """Close a connection, whether or not the server has closed it."""
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        connection.session.receive_end()

    # Helpers

    def _have_all_got(self, last: str | None) -> bool:
        if last is None or self._ended:
            return True
        marker = last.encode()
        waived = {id(connection) for connection, _ in self._stalled} if self._is_stalling else set()
        return all(each.has_got(marker) for each in self._connections.values() if id(each) not in waived)

    def turn(self, timeout_s: float) -> bool:
        """Read once from every readable socket. Return whether standard input is readable."""
        has_request = False
        for fd, _ in self._epoll.poll(timeout_s, 4096):
            connection = self._connections.get(fd)
            if connection is None:
                has_request = has_request or fd == _STDIN
                continue
            try:
                data = connection.socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            now_s = time.monotonic()
            self.last_read_s = now_s
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
        return has_request

    def run(self) -> None:
        """Carry out requests from standard input until it ends."""
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
                    reply = getattr(self, request.pop("do"))(**request)
                except (BenchError, OSError, http.client.HTTPException) as error:
                    reply = {"error": f"{type(error).__name__}: {error}"}
                sys.stdout.write(json.dumps(reply) + "\n")
                sys.stdout.flush()

    def _first_violation(self) -> str | None:
        for connection in self._connections.values():
            for violation in connection.checker.violations:
                return f"{violation.kind}: {violation.detail}"
            if isinstance(connection.session, SseSession) and connection.session.body:
                return f"{connection.session.response.status}: {connection.session.body[:300]!r}"
        return None


class Viewer:
    """A viewer that follows a channel, over any number of connections, from cursor to cursor."""

    def __init__(self, kind: str, channel: str, latencies: "Latencies") -> None:
        self.kind = kind
        self.latencies = latencies
        # both have all attributes that are used here
        text = TextChecker(channel, latencies.into) if kind in KINDS else None
        self.checker = cast("Checker", text) if text is not None else Checker(channel)
        self._text = text

    @property
    def text(self) -> str:
        """Return all text that it shows."""
        return (
            self._text.whole if self._text is not None else "".join(one.text for one in self.checker.messages.values())
        )

    def new_session(self, host: str, prefix: str) -> Session:
        """Return the session for the next connection."""
        if self._text is not None:
            return KINDS[self.kind](self._text, host=host, resume=self._text.position)
        since, observe = self.checker.cursor, self.latencies.observe
        if self.kind == "sse":
            return LoadSseSession(self.checker, since=since, host=host, prefix=prefix, observe=observe)
        session = LoadWsSession(host=host, prefix=prefix, observe=observe)
        session.attach(self.checker, since=since)
        return session


class Connection:
    """One connection of a viewer. `arrivals` holds the captured data: time, bytes, time, bytes …"""

    def __init__(self, sock: socket.socket, session: Session, viewer: Viewer) -> None:
        self.socket = sock
        self.session = session
        self.viewer = viewer
        self.checker = viewer.checker
        self.arrivals: list[Any] = []
        self.history: list[Any] | None = None  # all arrivals since the connection was opened, if it is recorded
        self.attached_s: float | None = None  # when its first batch was complete; unknown during a capture

    def take(self, data: bytes, now_s: float) -> None:
        """Parse and check the bytes at once, and send the session's replies."""
        if self.history is not None:
            self.history += (now_s, data)
        self.session.receive(data, now_s=now_s)
        if self.attached_s is None and self.session.has_attached:
            self.attached_s = now_s
        self.send()

    def send(self) -> None:
        if data := self.session.bytes_to_send():
            sent = self.socket.send(data)
            assert sent == len(data), "a request larger than an empty socket buffer"

    def has_got(self, marker: bytes) -> bool:
        """Return whether the bytes captured last contain `marker`, which two reads may have split."""
        return marker in b"".join(self.arrivals[1::2][-2:])

    def decode(self) -> None:
        """Parse and check the captured bytes."""
        arrivals, self.arrivals = iter(self.arrivals), []
        for now_s, data in zip(arrivals, arrivals, strict=True):
            if self.history is not None:
                self.history += (now_s, data)
            self.session.receive(data, now_s=now_s)


class Latencies:
    """Notes, for one viewer, the age of each token at its first arrival."""

    def __init__(self, into: "array[float]", piece: int) -> None:
        self.into = into
        self._piece = piece
        self._known: dict[str, int] = {}
        self.from_s = 0.0
        """Tokens that arrive before this time (CLOCK_MONOTONIC) are not noted."""
        self.arrivals: array[float] | None = None
        """Where the arrival of each noted token is noted, too."""

    def stop(self) -> None:
        """Stop noting: this viewer is late on purpose."""
        self.into = array("d")

    def observe(self, channel: str, event: Json, at_s: float) -> None:
        if event["type"] == "message.append":
            self._text(event["id"], event["at"], event["text"], at_s)
        elif event["type"] == "message.part":
            self._text(event["id"], 0, event["part"].get("text", ""), at_s)
        elif event["type"] in ("message.create", "message.update"):
            # Its text did not arrive as an append, but these tokens have arrived all the same.
            message = event["message"]
            self._text(message["id"], 0, "".join(part.get("text", "") for part in message.get("parts", [])), at_s)

    def _text(self, id: str, at: int, text: str, at_s: float) -> None:
        known = self._known.get(id, 0)
        if at_s >= self.from_s:
            found = tokens.latencies_ms(text, at, known, at_s, self._piece)
            self.into.extend(found)
            if self.arrivals is not None:
                self.arrivals.extend([at_s] * len(found))
        self._known[id] = max(known, at + len(text))


def _stored(port: int, prefix: str, sent: dict[str, Json]) -> dict[str, Json]:
    """Return the stored messages, by channel, as the server reports them."""
    stored = {}
    connection = http.client.HTTPConnection(_HOST, port, timeout=10)
    for channel, message in sent.items():
        path = f"{prefix}/v1/channels/{quote(channel, safe='')}/messages/{quote(message['id'], safe='')}"
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read())
        if response.status != 200:
            raise BenchError(f"GET of a message in {channel} got the status {response.status}: {body}")
        stored[channel] = body["message"]
    connection.close()
    return stored


def _percentiles(latencies: Sequence[float]) -> list[float]:
    """Return p50, p99 and p99.9 of the sorted latencies; nothing without any."""
    return [latencies[int(len(latencies) * share)] for share in (0.5, 0.99, 0.999)] if latencies else []


def _text(message: Json) -> str:
    return "".join(part.get("text", "") for part in message.get("parts", []))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _split_events(payload: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole batches at the beginning of `payload`, and the rest. The last event of a batch has an id."""
    batches, start, end = [], 0, 0
    while (found := payload.find(b"\n\n", end)) >= 0:
        event, end = payload[end:found], found + 2
        if event.startswith(b"id:") or b"\nid:" in event:
            batches.append(payload[start:end])
            start = end
    return batches, payload[start:]


def _split_frames(payload: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames at the beginning of `payload`, and the rest. A server's frames are not masked."""
    frames, start = [], 0
    while len(payload) >= start + 2:
        length, head = payload[start + 1], 2
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(payload[start + 2 : start + head])
        end = start + head + length
        if len(payload) < end:
            break
        frames.append(payload[start:end])
        start = end
    return frames, payload[start:]


if __name__ == "__main__":
    Load().run()
