"""`holdfast tail`: a channel in the terminal.

You are at the top, beside `cli`. It keeps a `core.view.View` like any other viewer and prints what is new in it, so
a connection that breaks costs nothing and doubles nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import TextIO
from urllib.parse import urlsplit, urlunsplit

from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.events import Batch, known_events
from holdfast.core.model import Message
from holdfast.core.names import check_channel
from holdfast.core.view import View, ViewGap

BACKOFF_S, BACKOFF_MAX_S = 0.25, 15.0
SILENCE_S = 14.0  # a server pings every five seconds


class Refused(HoldfastError):
    """The server said no, and coming back will not change that."""


class Printer:
    """Prints what is new in a view since it was last asked."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._printed: dict[str, str] = {}
        self._status: dict[str, str] = {}
        self._current: str | None = None

    def show(self, view: View) -> None:
        """Print the difference."""
        for message in view.messages():
            text, before = message.text, self._printed.get(message.id)
            if before is None or not text.startswith(before):
                self._head(message, "" if before is None else " (edited)")
                before = ""
            elif text != before and self._current != message.id:
                self._head(message, " (goes on)")
            self._write(text[len(before) :])
            self._printed[message.id] = text
            self._end(message)

    def _head(self, message: Message, note: str) -> None:
        if self._current is not None:
            self._write("\n\n")
        who = message.role if message.author is None else f"{message.role} {message.author}"
        self._write(f"── {who}{note}\n")
        self._current = message.id

    def _end(self, message: Message) -> None:
        before = self._status.get(message.id)
        self._status[message.id] = message.status
        if before == "streaming" and message.status not in ("streaming", "complete"):
            self._write(f"\n[{message.status}{': ' + message.reason if message.reason else ''}]")


def follow(
    url: str,
    channel: str,
    *,
    since: str | None,
    history: int,
    out: TextIO,
    notices: TextIO,
) -> None:
    """Print `channel` to `out` as it happens, until interrupted. Raises Refused, LocalError."""
    check_channel(channel)
    view, printer = View(), Printer(out.write)
    view.cursor = since
    failures = 0
    while True:
        try:
            for batch in _batches(url, channel, view.cursor, history):
                failures = 0
                view.receive(batch)
                if batch.cursor is not None or view.cursor is not None:
                    printer.show(view)
                    out.flush()
        except (OSError, EOFError, ViewGap, ValueError):
            view.cut()
        if failures == 0:
            print(f"(no answer from {url}, trying again)", file=notices, flush=True)
        failures += 1
        time.sleep(random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures, 10))))


def _batches(url: str, channel: str, since: str | None, history: int):  # type: ignore[no-untyped-def]
    """The batches of one connection. Ends with OSError or EOFError."""
    try:
        from websockets.exceptions import ConnectionClosed, InvalidStatus
        from websockets.sync.client import connect
    except ImportError:
        raise LocalError("this needs websockets: pip install 'holdfast[serve]'") from None

    try:
        with connect(_socket_url(url), subprotocols=["holdfast.v1"], max_size=None, compression=None) as socket:  # type: ignore[list-item]
            socket.send(
                json.dumps({"type": "attach", "ref": 1, "channel": channel, "since": since, "history": history})
            )
            while True:
                frame = json.loads(socket.recv(timeout=SILENCE_S))
                if frame["type"] == "events":
                    yield Batch(events=known_events(frame["events"]), cursor=frame.get("cursor"))
                elif frame["type"] == "error":
                    raise Refused(f"{frame.get('code')}: {frame.get('detail', '')}")
    except InvalidStatus as error:
        if error.response.status_code in (401, 403):
            raise Refused(f"the server refused: {error.response.body!r}") from None
        raise EOFError from None
    except ConnectionClosed as error:
        if error.rcvd is not None and error.rcvd.code >= 4300:
            raise Refused(f"the server closed: {error.rcvd.code} {error.rcvd.reason}") from None
        raise EOFError from None


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/v1/ws", "", ""))
