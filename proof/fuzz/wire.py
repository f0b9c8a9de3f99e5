"""The targets `raw-http` and `raw-socket`: bytes at a real `tenuto serve`, below the level of client libraries.

Layer: fuzz.

An input of `raw-http` is `{pieces}`, the bytes of a connection, and may have the most `responses` that it gets. One of
`raw-socket` is `{headers, frames}`, where a frame has a value for each field (`fin`, `rsv`, `op`, `mask`, `length`,
`payload`, `times`) or is `raw`. The server is a process of its own. It may close the connection and may refuse; it must
not fail, log an error, hang, keep the descriptor or spend seconds, and it must keep working. Its code cannot be traced
from here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from wsproto.events import BytesMessage, CloseConnection, TextMessage

from proof.fuzz import mutate
from proof.fuzz.engine import Finding
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.requests import HEADER_LINES, PARTS, PATHS, QUERIES, RAW
from proof.fuzz.world import PRECIOUS, PRECIOUS_TEXT, as_dict, as_list, as_number, as_text, check_code
from proof.wirecheck import Frames, WireError, encode_frame
from tests.processes import Server

QUIET_S = 0.03  # if no bytes arrive for this long, the server has sent everything, because it sends no signal for that
END_S = 8.0
# While a request waits behind another, uvicorn does not read, and so does not notice that the peer leaves. A poll then
# lasts as long as requested, and a stream until its second heartbeat.
LET_GO_S = 75.0
PROBED_EVERY = 25
SERVER_CPU_S = 2.0
MAX_BYTES = 3_000_000
MAX_FRAMES = 30  # limit of frames of one input
SPARE_FILES = 40
SPARE_RSS_KIB = 300_000
# Of a request that the server cannot read; the protocol names these below its table of errors.
UNREADABLE = {408: "invalid_request", 426: "invalid_request", 414: "too_large", 431: "too_large"}
INTERNAL_ERROR = 1011  # a close code; the parser rejects those that may not be sent, and a server may echo others
TICKS = os.sysconf("SC_CLK_TCK")
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Running:
    """The server, started with the first input."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._running: Server | None = None
        self._log_read = 0
        self._inputs = 0
        self._files = 0
        self._rss_kib = 0

    def connect(self) -> socket.socket:
        """Return a new connection to the server."""
        if self._running is None:
            self._start()
        connection = socket.create_connection(("127.0.0.1", self._server.port), timeout=END_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    @property
    def _server(self) -> Server:
        assert self._running is not None
        return self._running

    def check(self) -> None:
        """Check that the server lives and has logged no error; probe it now and then, and after each problem."""
        assert self._folder is not None
        if self._server.running.poll() is not None:
            output = self._server.output[-2_000:]
            self.close()
            raise Finding(f"died: {output}")
        with open(Path(self._folder.name) / "server.log", "rb") as log:
            log.seek(self._log_read)
            new = log.read()
        self._log_read += len(new)
        if (error := complaint(new)) is not None:
            raise Finding(f"logged {error}")
        self._inputs += 1
        if self._inputs % PROBED_EVERY == 0:
            self._probe()

    def cpu_s(self) -> float:
        """Return the processor time of the server."""
        fields = Path(f"/proc/{self._server.running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def close(self) -> None:
        """Stop the server."""
        if self._running is not None:
            self._running.clean_up()
        if self._folder is not None:
            self._folder.cleanup()
        self._running = self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tenuto-fuzz-")
        self._running = Server("serve", Path(self._folder.name))
        self._server.start()
        path = f"/v1/channels/{PRECIOUS}/messages"
        assert self._server.post(path, {"id": "p", "text": PRECIOUS_TEXT})[0] == 201
        self._files, self._rss_kib, self._log_read, self._inputs = self._count_files(), self._memory_kib(), 0, 0

    def _probe(self) -> None:
        """Check that it serves, stored messages remain, and the process has not grown. Raises Finding."""
        if self._server.get("/readyz")[0] != 200:
            raise Finding("health: the server is not ready")
        if self._server.message(PRECIOUS, "p")["parts"] != [{"type": "text", "text": PRECIOUS_TEXT}]:
            raise Finding("lost: the messages stored before")
        deadline_s = time.monotonic() + LET_GO_S
        while self._count_files() > self._files + SPARE_FILES or b"tenuto_feeds 0\n" not in self._metrics():
            if time.monotonic() > deadline_s:
                raise Finding(f"leak: {self._count_files()} open files, {self._files} at first; {self._metrics()!r}")
            time.sleep(0.02)  # a server does not signal that it has released a connection
        if self._memory_kib() > self._rss_kib + SPARE_RSS_KIB:
            raise Finding(f"memory: {self._memory_kib()} KiB, {self._rss_kib} at first")

    def _metrics(self) -> bytes:
        return str(self._server.get("/metrics")[1]).encode()

    def _count_files(self) -> int:
        return len(os.listdir(f"/proc/{self._server.running.pid}/fd"))

    def _memory_kib(self) -> int:
        status = Path(f"/proc/{self._server.running.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def complaint(log: bytes) -> str | None:
    """Return the error in a server's log, or None; its first word is the name of the last error."""
    if not re.search(rb"Traceback|ERROR|CRITICAL|Exception|never retrieved", log):
        return None
    lines = log.decode(errors="replace").strip().splitlines()
    last = next(
        (line for line in reversed(lines) if re.match(r"\w+(\.\w+)*(Error|Exception|Closed\w*)\b", line)), lines[-1]
    )
    return f"{last.partition(':')[0]}: {lines[0]} … {lines[-12:]}"


class _Wire:
    """The common part of both targets."""

    cpu_s = 10.0  # processor time of this process; the server's own time is checked separately

    def __init__(self) -> None:
        self._running = Running()

    def close(self) -> None:
        """Stop the server."""
        self._running.close()

    def _exchange(self, pieces: list[bytes], *, head: bytes = b"", last: bytes = b"") -> bytes:
        """Send `head` and wait for the response, send `pieces`, send `last` once the socket is quiet, and read to the
        end.

        Raises Finding.
        """
        connection = self._running.connect()
        before_s = self._running.cpu_s()
        received = bytearray()
        with connection:
            is_over = bool(head) and not _send(connection, head, received)
            deadline_s = time.monotonic() + END_S
            while head and not is_over and b"\r\n\r\n" not in received and time.monotonic() < deadline_s:
                is_over = _read(connection, received, QUIET_S, until=b"\r\n\r\n")
            for piece in pieces:
                is_over = not _send(connection, piece, received) or is_over
            if not is_over:
                is_over = _read(connection, received, QUIET_S)
            if not is_over and last:
                _send(connection, last, received)
                is_over = _read(connection, received, QUIET_S)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            if not is_over and not _read(connection, received, END_S):
                raise Finding(f"hangs: the server keeps a closed connection; it got {bytes(received[-200:])!r}")
        self._running.check()
        spent_s = self._running.cpu_s() - before_s
        if spent_s > SERVER_CPU_S:
            raise Finding(f"slow: {spent_s:.1f} s of the server's processor time")
        return bytes(received)


def _send(connection: socket.socket, data: bytes, received: bytearray) -> bool:
    """Send the data while reading, as peers do. Return False if the connection is over."""
    view = memoryview(data)
    connection.setblocking(False)
    deadline_s = time.monotonic() + END_S
    try:
        while view:
            try:
                view = view[connection.send(view) :]
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    return True  # the server does not read further, which is allowed
                if _read(connection, received, 0.01):
                    return False
                connection.setblocking(False)
    except OSError:
        return False
    return True


def _read(connection: socket.socket, received: bytearray, quiet_s: float, *, until: bytes = b"") -> bool:
    """Read until the socket is quiet for so long or `until` arrives. Return True at the end of the connection."""
    connection.settimeout(quiet_s)
    try:
        while len(received) < MAX_BYTES:
            data = connection.recv(65_536)
            if not data:
                return True
            received += data
            if until and until in received:
                return False
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


class RawHttp(_Wire):
    """Bytes in place of a request."""

    name = "raw-http"

    def seeds(self) -> list[Json]:
        """Return correct requests, and the classic faulty ones."""
        get = "GET /v1/channels/c HTTP/1.1\r\nHost: localhost\r\n\r\n"
        post = "POST /v1/channels/c/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        body = '{"text": "x"}'
        found = [
            get,
            get * 20,
            f"{post}Content-Length: {len(body)}\r\n\r\n{body}{get}",
            f"{post}Content-Length: {len(body)}\r\nContent-Length: 1\r\n\r\n{body}{get}",
            f"{post}Content-Length: 999\r\n\r\n{body}",
            f"{post}Content-Length: -1\r\n\r\n{body}",
            f"{post}Content-Length: 99999999999999999999\r\n\r\n{body}",
            f"{post}Transfer-Encoding: chunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n{get}",
            f"{post}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nd\r\n{body}\r\n0\r\n\r\n{get}",
            f"{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{body}",
            f"{post}Transfer-Encoding: chunked\r\n\r\nd;{'x' * 5_000}\r\n{body}\r\n0\r\nX: y\r\n\r\n",
            f"{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            f"{post}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n{body}",
            "GET / HTTP/1.0\r\n\r\n",
            "GET /v1/channels/c/events HTTP/1.0\r\nHost: localhost\r\n\r\n",
            "GET /v1/channels/c/poll?wait_s=60 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
            "GET /healthz HTTP/1.1\nHost: localhost\n\n",
            f"GET /{'x' * 70_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\nY: " + "y" * 90_000 + "\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\n" + "X: y\r\n" * 3_000 + "\r\n",
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "GET /web/client.js HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-0,1-1,-1\r\n\r\n",
            'GET /web/client.js HTTP/1.1\r\nHost: localhost\r\nIf-Modified-Since: , 0\r\nIf-None-Match: "\r\n\r\n',
            "GET /web/%00/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "HEAD /web/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ]
        found += [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in PATHS]
        # A body that looks like a request is none, and so has no response.
        inside = len(get)
        hidden = [
            f"{post}Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: {inside}\r\n\r\n{get}",
            f"{post}Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
            f"{inside:x}\r\n{get}\r\n0\r\n\r\n",
            f"{post}Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: {inside}\r\n\r\n{get}",
            f"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {inside}\r\n\r\n{get}",
        ]
        return [{"pieces": [one]} for one in found] + [{"pieces": [one], "responses": 1} for one in hidden]

    def generate(self, draw: Random) -> Json:
        """Return a request made of good and bad pieces."""
        method = draw.choice(("GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW", "g\x00t", ""))
        path = draw.choice((*PATHS, "/web/client.js", "/web/../cli.py", "/v1/ws", "/metrics"))
        lines = [f"{method} {path}?{draw.choice(QUERIES)} HTTP/1.1", *draw.choices(_LINES, k=draw.randint(0, 6))]
        if draw.random() < 0.8:
            lines.insert(1, "Host: localhost")
        end = draw.choice(("\r\n", "\r\n", "\r\n", "\n", "\r"))
        return {"pieces": [end.join(lines) + end * 2 + draw.choice((*RAW, json.dumps({"parts": PARTS})))]}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a few bytes, a line, or the end of a piece."""
        whole = "".join(one for one in as_list(as_dict(old).get("pieces")) if isinstance(one, str))[:200_000]
        theirs = "".join(one for one in as_list(as_dict(other).get("pieces")) if isinstance(one, str))[:200_000]
        match draw.randrange(4):
            case 0:
                whole += theirs
            case 1:
                lines = whole.split("\r\n")
                lines.insert(draw.randint(0, len(lines)), draw.choice((*_LINES, draw.choice(theirs.split("\r\n")))))
                whole = "\r\n".join(lines)
            case _:
                whole = mutate.text(draw, whole, _LINES) + whole[mutate.MAX_TEXT :]
        cut = draw.randint(0, len(whole)) if draw.random() < 0.3 else len(whole)
        return {"pieces": [piece for piece in (whole[:cut], whole[cut:]) if piece]}

    def run(self, given: Json) -> None:
        """Send the pieces and check the responses. Raises Finding."""
        received = self._exchange([to_bytes(one) for one in as_list(as_dict(given).get("pieces"))[:20]])
        check_responses(received)
        most = as_number(as_dict(given).get("responses"), 1_000, 1_000)
        if len(re.findall(rb"(?:^|(?<=[\n}]))HTTP/1\.1 ", received)) > most:
            raise Finding(f"smuggled: a body was parsed as a request: {received!r}")


_LINES = [f"{name}: {value}" for name, value in HEADER_LINES] + [
    "Content-Length: 13", "Content-Length: 0", "Content-Length: +5", "Content-Length: 0x10", "Connection: close",
    "Connection: keep-alive, upgrade", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Range: bytes=5-2",
    "Range: bytes=" + "0-," * 3_000, "If-Range: x", "If-Modified-Since: Mon, 99 Foo 20000 99:99:99 GMT", "X : y",
    "no colon", "\x00: \x00", ": empty", "Host", "Host: a\rb", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Key: x", "Upgrade: websocket", "Sec-WebSocket-Protocol: \x7f, tenuto.v1", "d", "0", "ffffffffff",
]  # fmt: skip


def check_responses(received: bytes) -> None:
    """Check that no response reports an internal error, and each refusal is a problem, or the HTTP server's own text.

    Raises Finding.
    """
    for found in re.finditer(rb"(?:^|(?<=[\n}]))HTTP/1\.1 (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n", received):
        status, headers = int(found[1]), found[2].lower()
        body = received[found.end() : found.end() + 600]
        if status >= 500 and status != 503:
            raise Finding(f"internal: {status} {body!r}")
        if status < 400:
            continue
        if b"content-type: application/problem+json" not in headers:
            if body and b"upgrade" not in body.lower() and b"websocket" not in body.lower():
                raise Finding(f"no problem: {status} {found[2]!r} {body!r}")
        elif body.startswith(b"{"):
            code = re.search(rb'"code":"(\w+)"', body)
            known = code[1].decode() if code else None
            if UNREADABLE.get(status) != known or known is None:
                check_code(status, known, f"{body!r}")


class RawSocket(_Wire):
    """Bytes in place of WebSocket frames."""

    name = "raw-socket"

    def seeds(self) -> list[Json]:
        """Return correct frames, and each violation of RFC 6455."""
        attach = '{"type":"attach","ref":1,"channel":"c"}'
        text = {"op": 1, "payload": attach}
        found: list[list[Json]] = [
            [text],
            [{"op": 1, "fin": 0, "payload": attach[:9]}, {"op": 0, "payload": attach[9:]}],
            [{"op": 1, "fin": 0, "payload": attach[:9]}, {"op": 9, "payload": "x"}, {"op": 0, "payload": attach[9:]}],
            [{"op": 1, "fin": 0, "payload": "a"}, {"op": 1, "payload": "b"}],
            [{"op": 0, "payload": "a"}],
            [{"op": 1, "fin": 0, "payload": ""}, {"op": 0, "fin": 0, "payload": "", "times": 500}, text],
            [{"op": 2, "payload": "x"}],
            [{"op": 1, "payload": "\xff\xfe"}],
            [{"op": 1, "fin": 0, "payload": "\xf0\x9f"}, {"op": 0, "payload": "\x98\x80"}],
            [{"op": 1, "payload": "\xed\xa0\x80"}],
            *([{"op": op, "payload": "x"}] for op in (3, 4, 7, 11, 15)),
            *([{"op": 1, "rsv": rsv, "payload": attach}] for rsv in (1, 2, 4, 7)),
            [{"op": 1, "mask": None, "payload": attach}],
            [{"op": 9, "payload": "x" * 126}],
            [{"op": 9, "fin": 0, "payload": "x"}],
            [{"op": 9, "payload": "x", "times": 2_000}, text],
            [{"op": 10, "payload": "", "times": 500}, text],
            [{"op": 8, "payload": ""}],
            [{"op": 8, "payload": "\x03"}],
            *([{"op": 8, "payload": struct.pack("!H", code).decode("latin-1")}]
              for code in (0, 999, 1000, 1004, 1005, 1006, 1012, 1015, 2999, 3000, 4999, 5000, 65535)),
            [{"op": 8, "payload": "\x03\xe8\xff"}],
            [{"op": 8, "payload": "\x03\xe8"}, text],
            [{"op": 1, "length": 2**63, "payload": "x"}],
            [{"op": 1, "length": 2**62, "payload": "x"}],
            [{"op": 1, "length": 2**31, "payload": "x"}],
            [{"op": 1, "length": 5, "wide": 8, "payload": "[1,2]"}],
            [{"op": 1, "payload": '{"ref":1,"x":"' + "x" * 1_048_600 + '"}'}],
            [{"op": 1, "payload": '{"ref":1,"x":"' + "x" * 1_200_000 + '"}'}],
            [{"op": 1, "payload": '{"type":"detach","ref":"\\ud800","channel":"c"}'}, text],
            [{"op": 1, "payload": '{"type":"create","ref":1,"channel":"c","parts":[{"type":[]}]}'}, text],
            [{"op": 1, "payload": '{"type":"history","ref":1,"channel":"c"}', "times": 1_500}],
            [{"raw": "GET / HTTP/1.1\r\n\r\n"}],
        ]  # fmt: skip
        return [{"headers": [], "frames": frames} for frames in found]

    def generate(self, draw: Random) -> Json:
        """Return mostly correct frames."""
        return {"headers": [], "frames": [self._frame(draw) for _ in range(draw.randint(1, 5))]}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a field of a frame, a frame, or the handshake."""
        bounds = (0.2, 0.35, 0.0)
        new, number = mutate.steps(draw, as_dict(old), other, self._frame, bounds, key="frames", max_steps=MAX_FRAMES)
        if number is not None and number < 0.4:
            new["headers"] = draw.choices(HEADER_LINES, k=2)
        elif number is not None:
            frame = draw.choice(new["frames"])
            match draw.randrange(6):
                case 0:
                    frame["payload"] = mutate.text(draw, as_text(frame.get("payload"), "")[:3_000], RAW)
                case 1:
                    frame["op"] = draw.randrange(16)
                case 2:
                    frame["fin"] = draw.randrange(2)
                case 3:
                    frame["rsv"] = draw.randrange(8)
                case 4:
                    frame["length"] = draw.choice((0, 1, 125, 126, 127, 65_535, 65_536, 2**20, 2**31, 2**63))
                case _:
                    frame["times"] = draw.choice((2, 30, 300))
        return new

    def _frame(self, draw: Random) -> dict[str, Json]:
        kinds = ("attach", "detach", "create", "append", "history", "pong", "presence", "signal", "work", "command")
        frame = {"type": draw.choice(kinds), "ref": draw.randrange(99), "channel": "c", "id": "m1", "text": "é"}
        op = draw.choice((1, 1, 1, 1, 2, 8, 9, 10, draw.randrange(16)))
        return {"op": op, "fin": int(draw.random() < 0.85), "payload": json.dumps(frame) if op == 1 else "xy"}

    def run(self, given: Json) -> None:
        """Send the frames and check the replies. Raises Finding."""
        known = as_dict(given)
        lines = [
            f"{line[0]}: {line[1]}"
            for line in as_list(known.get("headers"))
            if isinstance(line, list) and len(line) == 2
        ]
        head = "\r\n".join(
            [
                "GET /v1/ws HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket",
                "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", *lines, "", "",
            ]
        )  # fmt: skip
        frames = [data for frame in as_list(known.get("frames"))[:MAX_FRAMES] for data in frame_bytes(as_dict(frame))]
        close = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
        received = self._exchange(frames, head=to_bytes(head), last=close)
        response, _, rest = received.partition(b"\r\n\r\n")
        if response.startswith(b"HTTP/1.1 101"):
            check_frames(rest)
        else:
            check_responses(received)


def frame_bytes(frame: dict[str, Any]) -> list[bytes]:
    """Return the bytes of a described frame, whether RFC 6455 allows it or not."""
    if "raw" in frame:
        return [to_bytes(frame["raw"])]
    payload = to_bytes(as_text(frame.get("payload"), ""))
    encoded = encode_frame(
        int(as_number(frame.get("op"), 1, 15)),
        payload,
        mask=b"\x11\x22\x33\x44" if frame.get("mask", True) is not None else b"",
        is_final=bool(frame.get("fin", 1)),
        reserved_bits=int(as_number(frame.get("rsv"), 0, 7)),
        length=int(as_number(frame.get("length"), len(payload), 2**63)),
        is_64_bit=frame.get("wide") == 8,
    )
    times = int(as_number(frame.get("times"), 1, 3_000))
    return [encoded * max(1, min(times, 4_000_000 // max(1, len(payload))))]


def check_frames(received: bytes) -> None:
    """Check that the server's frames follow RFC 6455 and report no internal error. Raises Finding."""
    try:
        events = Frames().receive(received)
    except WireError as error:
        raise Finding(f"frames: {error}") from error
    for event in events:
        if isinstance(event, CloseConnection):
            if event.code == INTERNAL_ERROR:
                raise Finding(f"close code: {event.code} {event.reason!r}")
        elif isinstance(event, TextMessage):
            frame = json.loads(event.data)
            if frame["type"] == "error":
                check_code(frame["status"], frame["code"], "a frame")
            elif frame["type"] == "bye" and frame["reason"] == "internal":
                raise Finding(f"internal: {frame}")
        elif isinstance(event, BytesMessage):
            raise Finding("frames: a binary frame")
