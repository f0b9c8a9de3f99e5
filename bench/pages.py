"""A page that is loaded, and one that resumes, within a streaming answer: the bytes that it receives, and how soon.

One viewer at a time, on a system without other work. The clock runs from before the connection is opened until the
bytes arrive that complete the text. A browser's work is not included: bytes are kept with their arrival time, and
parsed after the last of them.
"""

import functools
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from bench.common import NAMES, Row, Void, failed
from bench.peers.ours import Ours
from bench.peers.system import on_core
from bench.peers.viewers import KINDS, TextChecker, open_session
from bench.peers.xadd import Xadd
from bench.proc import CLIENT_CORE, BenchError
from bench.reader import LoadSseSession, LoadWsSession
from proof.wirecheck import Checker, Session

__all__ = ["Loaded", "Page", "follow", "load", "page_rows"]

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

    def __init__(self, port: int, kind: str, channel: str) -> None:
        self.kind = kind
        self._port = port
        self._checker: Checker | TextChecker = TextChecker(channel) if kind in KINDS else Checker(channel)
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

    def attach(self) -> None:
        """Open a connection, and read until the server has confirmed the subscription."""
        self._socket = socket.create_connection((_HOST, self._port), timeout=_TIMEOUT_S)
        self._session = self._new_session(f"{_HOST}:{self._port}")
        self._socket.sendall(self._session.bytes_to_send())
        until_s = time.monotonic() + _TIMEOUT_S
        while not self._session.has_attached:
            if time.monotonic() > until_s:
                raise BenchError(f"no answer to a viewer of {self.kind} within {_TIMEOUT_S:.0f} s")
            self._take(self._socket.recv(_READ_BYTES), time.monotonic())

    def read_all(self, text: str, look: Callable[[float], None] = lambda _: None) -> None:
        """Read until the page holds `text` and no more bytes arrive, and leave. Call `look` after each read."""
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            for now_s, data in self._read():
                self._take(data, now_s)
                look(now_s)
            if self.text == text or time.monotonic() > until_s:
                break
        self._leave()
        if self.text != text:
            raise Void(f"a viewer of {self.kind} shows {len(self.text)} of {len(text)} characters, or other text")

    def _read(self) -> list[tuple[float, bytes]]:
        """Read until no more bytes arrive. Return them with their times."""
        assert self._socket is not None
        until_s = time.monotonic() + _TIMEOUT_S
        arrivals: list[tuple[float, bytes]] = []
        self._socket.settimeout(_QUIET_S)
        while time.monotonic() < until_s:
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                return arrivals
            if not data:
                raise Void(f"the server ended the connection of a viewer of {self.kind}")
            arrivals.append((time.monotonic(), data))
        raise BenchError(f"the server was still sending to a viewer of {self.kind} after {_TIMEOUT_S:.0f} s")

    def _take(self, data: bytes, now_s: float) -> None:
        """Parse and check bytes, and send the session's replies."""
        assert self._session is not None
        assert self._socket is not None
        if not data:
            raise BenchError(f"the server ended the connection of a viewer of {self.kind}")
        self.wire_bytes += len(data)
        self._session.receive(data, now_s=now_s)
        if reply := self._session.bytes_to_send():
            self._socket.sendall(reply)

    def _leave(self) -> None:
        """Close the connection. Raises `Void` if it delivered something wrong."""
        assert self._session is not None
        assert self._socket is not None
        self._socket.close()
        self._session.receive_end()
        if self._checker.violations:
            first = self._checker.violations[0]
            raise Void(f"a viewer of {self.kind} received invalid data: {first.kind}: {first.detail}")

    def _new_session(self, host: str) -> Session:
        if isinstance(self._checker, TextChecker):
            # It has all methods of a session that are used here.
            session = open_session(self.kind, self._checker, host=host, resume=self._checker.position)
            return cast("Session", session)
        since = self._checker.cursor
        if self.kind == "sse":
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

    page.attach()
    look(time.monotonic())
    page.read_all(text, look)
    assert found is not None, "all of it was read"
    return found


def follow(pages: list[Page], grow: Callable[[], str]) -> str:
    """Attach the pages to an answer before it begins, let it grow, and leave when they have all of it."""
    for page in pages:
        page.attach()
    text = grow()
    for page in pages:
        page.read_all(text)
    return text


@dataclass
class _Visits:
    """One kind of viewer of one system."""

    system: Ours | Xadd
    kind: str
    channel: str
    text: str = ""
    loads: list[Loaded] = field(default_factory=list)
    resumes: list[Loaded] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)  # pages that followed from the beginning, and will resume
    failed: Row | None = None  # after an error there are no figures, and no further requests

    def attempt(self, do: Callable[[], None]) -> None:
        """Call `do`, unless an earlier step has failed. After an error other systems are still measured."""
        if self.failed is not None:
            return
        try:
            do()
        except (BenchError, OSError) as error:
            self.failed = failed(f"reload and resume: {self}", error)

    def begin(self, *, tokens: int, missed: int, pages: int) -> None:
        """Grow the answer, with pages that follow it until `missed` tokens before its end."""
        self.pages = [Page(self.system.port, self.kind, self.channel) for _ in range(pages)]
        follow(self.pages, lambda: self.system.grow(self.channel, tokens - missed))
        self.text = self.system.grow(self.channel, missed)

    def visit(self, n: int) -> None:
        """Resume one page, and load a new one."""
        self.resumes.append(load(self.pages[n], self.text))
        self.loads.append(load(Page(self.system.port, self.kind, self.channel), self.text))

    def __str__(self) -> str:
        return f"{self.system.name}, {NAMES.get(self.kind, 'SSE')}"


def page_rows(systems: Sequence[Ours | Xadd], *, tokens: int, rounds: int) -> list[Row]:
    """Return the rows. An answer grows to `tokens`; the pages that resume have missed the last quarter."""
    missed = tokens // 4
    all_visits = [_Visits(system, kind, f"bench:page-{kind}") for system in systems for kind in system.kinds]
    with on_core(CLIENT_CORE):
        for visits in all_visits:
            visits.attempt(functools.partial(visits.begin, tokens=tokens, missed=missed, pages=rounds))
        for n in range(rounds):
            for visits in all_visits:
                visits.attempt(functools.partial(visits.visit, n))
    whole = [visits for visits in all_visits if visits.failed is None]
    size = {id(visits): len(visits.text.encode()) for visits in whole}
    return [
        *(_row(f"reload at {tokens:,} tokens, in mid-stream: {one}", one.loads, size[id(one)]) for one in whole),
        *(
            _row(f"resume after {missed:,} missed tokens: {one}", one.resumes, size[id(one)] * missed // tokens)
            for one in whole
        ),
        *(visits.failed for visits in all_visits if visits.failed is not None),
    ]


def _row(what: str, loads: list[Loaded], text_bytes: int) -> Row:
    times = [each.seconds * 1000 for each in loads]
    sizes = [each.bytes for each in loads]
    return Row(
        what,
        f"{statistics.median(sizes):,.0f} B, {statistics.median(times):.1f} ms",
        note=f"{statistics.median(sizes) / text_bytes:.2f} × the text of {text_bytes:,} B; with all framing "
        f"{statistics.median(each.wire_bytes for each in loads):,.0f} B; "
        f"{min(times):.1f}–{max(times):.1f} ms in {len(loads)} loads",
        raw=tuple(
            f"{each.bytes:,} B ({each.wire_bytes:,} with framing), {each.seconds * 1000:.2f} ms" for each in loads
        ),
    )
