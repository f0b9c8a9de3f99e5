"""Viewers of the load client: a viewer, its current connection, and the age of its tokens."""

import socket
from array import array
from typing import Any

from bench import tokens
from bench.reader import LoadSseSession, LoadWsSession
from proof.wirecheck import Checker, Json, Session

__all__ = ["Connection", "Latencies", "Viewer"]


class Viewer:
    """A viewer that follows a channel, over any number of connections, from cursor to cursor."""

    def __init__(self, kind: str, channel: str, latencies: "Latencies | None" = None) -> None:
        self.kind = kind
        self.checker = Checker(channel)
        self.latencies = latencies  # None: its tokens have no time stamp

    def new_session(self, host: str, prefix: str) -> Session:
        """Return the session for the next connection."""
        since = self.checker.cursor
        observe = self.latencies.observe if self.latencies is not None else None
        if self.kind == "sse":
            return LoadSseSession(self.checker, since=since, host=host, prefix=prefix, observe=observe)
        session = LoadWsSession(host=host, prefix=prefix, observe=observe)
        session.attach(self.checker, since=since)
        return session


class Connection:
    """One connection of a viewer. `arrivals` holds the captured data: time, bytes, time, bytes …"""

    def __init__(self, sock: socket.socket, session: Session, checker: Checker, viewer: Viewer | None = None) -> None:
        self.socket = sock
        self.session = session
        self.checker = checker
        self.viewer = viewer  # none for a session that is driven from outside; it cannot reconnect by itself
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
        self._into = into
        self._piece = piece
        self._known: dict[str, int] = {}
        self.from_s = 0.0
        """Tokens that arrive before this time (CLOCK_MONOTONIC) are not noted."""
        self.arrivals: array[float] | None = None
        """Where the arrival of each noted token is noted, too."""

    def stop(self) -> None:
        """Stop noting: this viewer is late on purpose."""
        self._into = array("d")

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
            self._into.extend(found)
            if self.arrivals is not None:
                self.arrivals.extend([at_s] * len(found))
        self._known[id] = max(known, at + len(text))
