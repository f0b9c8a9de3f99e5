"""A page that is loaded, and one that resumes, within a streaming answer: the bytes that it receives, and how soon.

One viewer at a time, on a system without other work. The clock runs from before the connection is opened until the
bytes arrive that complete the text. A browser's work is not included: bytes are kept with their arrival time, and
parsed after the last of them.
"""

import socket
import time
from collections.abc import Callable
from typing import NamedTuple, cast

from bench.common import Void
from bench.peers.load import OURS
from bench.peers.system import System
from bench.peers.viewers import TextChecker, open_session
from bench.proc import BenchError
from bench.reader import LoadSseSession, LoadWsSession
from proof.wirecheck import Checker, Session

__all__ = ["Loaded", "Page", "follow", "load"]

_HOST = "127.0.0.1"
_QUIET_S = 0.15  # after this time without bytes, check whether the text is complete
_PATIENCE_S = 5.0  # longest wait for a server that has not sent all of the text
_TIMEOUT_S = 20.0
_READ_BYTES = 256 * 1024


class Loaded(NamedTuple):
    seconds: float
    bytes: int  # size of bodies and payloads, without framing
    wire_bytes: int  # number of bytes read from the socket, with heads and the framing of chunks and frames


class Page:
    """One viewer of one channel, over all its connections: each continues where the one before ended."""

    def __init__(self, system: System, kind: str, channel: str) -> None:
        self.kind = kind
        self._port = system.port
        self._checker: Checker | TextChecker = Checker(channel) if kind in OURS else TextChecker(channel)
        self._session: Session | None = None
        self._socket: socket.socket | None = None
        self.wire_bytes = 0

    @property
    def text(self) -> str:
        if isinstance(self._checker, TextChecker):
            return self._checker.whole
        return "".join(message.text for message in self._checker.messages.values())

    @property
    def payload_bytes(self) -> int:
        return self._checker.payload_bytes

    def connect(self) -> None:
        """Open a connection and send the request; call `read` next."""
        host = f"{_HOST}:{self._port}"
        self._socket = socket.create_connection((_HOST, self._port), timeout=_TIMEOUT_S)
        self._session = self._new_session(host)
        self._socket.sendall(self._session.bytes_to_send())

    def attach(self) -> None:
        """Read until the server has confirmed the subscription."""
        until_s = time.monotonic() + _TIMEOUT_S
        session, sock = self._open()
        while not session.has_attached:
            if time.monotonic() > until_s:
                raise BenchError(f"no answer to a viewer of {self.kind} within {_TIMEOUT_S:.0f} s")
            sock.settimeout(_TIMEOUT_S)
            self.take(sock.recv(_READ_BYTES), time.monotonic())

    def read(self) -> list[tuple[float, bytes]]:
        """Read until no more bytes arrive. Return them with their times."""
        until_s = time.monotonic() + _TIMEOUT_S
        _, sock = self._open()
        arrivals: list[tuple[float, bytes]] = []
        while time.monotonic() < until_s:
            sock.settimeout(_QUIET_S)
            try:
                data = sock.recv(_READ_BYTES)
            except TimeoutError:
                return arrivals
            if not data:
                raise Void(f"the server ended the connection of a viewer of {self.kind}")
            arrivals.append((time.monotonic(), data))
        raise BenchError(f"the server was still sending to a viewer of {self.kind} after {_TIMEOUT_S:.0f} s")

    def take(self, data: bytes, now_s: float) -> None:
        """Parse and check bytes, and send the session's replies."""
        session, sock = self._open()
        if not data:
            raise BenchError(f"the server ended the connection of a viewer of {self.kind}")
        self.wire_bytes += len(data)
        session.receive(data, now_s=now_s)
        if reply := session.bytes_to_send():
            sock.sendall(reply)

    def leave(self) -> None:
        """Close the connection. Raises `Void` if it delivered something wrong."""
        session, sock = self._open()
        sock.close()
        session.receive_end()
        self._session = self._socket = None
        if self._checker.violations:
            first = self._checker.violations[0]
            raise Void(f"a viewer of {self.kind} received invalid data: {first.kind}: {first.detail}")

    def _open(self) -> tuple[Session, socket.socket]:
        assert self._session is not None
        assert self._socket is not None
        return self._session, self._socket

    def _new_session(self, host: str) -> Session:
        if isinstance(self._checker, TextChecker):
            # It has all methods of a session that are used here.
            session = open_session(self.kind, self._checker, host=host, resume=self._checker.position)
            return cast("Session", session)
        since = self._checker.cursor
        if OURS[self.kind] == "sse":
            return LoadSseSession(self._checker, since=since, host=host)
        socket_session = LoadWsSession(host=host)
        socket_session.attach(self._checker, since=since)
        return socket_session


def load(page: Page, text: str) -> Loaded:
    """Open the page, wait until it holds `text`, and leave. Raises `Void` unless it ends with exactly that text."""
    before, wire_before, started_s = page.payload_bytes, page.wire_bytes, time.monotonic()
    found: Loaded | None = None

    def look(now_s: float) -> None:
        nonlocal found
        if found is None and page.text == text:
            found = Loaded(now_s - started_s, page.payload_bytes - before, page.wire_bytes - wire_before)

    page.connect()
    page.attach()  # replies are sent at once
    look(time.monotonic())
    _read_all(page, text, look)
    assert found is not None, "all of it was read"
    return found


def follow(pages: list[Page], grow: Callable[[], str]) -> str:
    """Attach the pages to an answer before it begins, let it grow, and leave when they have all of it."""
    for page in pages:
        page.connect()
        page.attach()
    text = grow()
    for page in pages:
        _read_all(page, text, lambda _: None)
    return text


def _read_all(page: Page, text: str, look: Callable[[float], None]) -> None:
    """Read until the page holds `text` and no more bytes arrive, and leave. Call `look` after each read."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        for now_s, data in page.read():
            page.take(data, now_s)
            look(now_s)
        if page.text == text or time.monotonic() > until_s:
            break
    page.leave()
    if page.text != text:
        raise Void(f"a viewer of {page.kind} shows {len(page.text)} of {len(text)} characters, or other text")
