"""Message streams: the text and the end that a reader receives on the stream of one message.

Layer: oracle.

The stream sends the text of the message and its end. Text after the last event id comes again on the next connection,
so the oracle drops it when a connection ends.
"""

from __future__ import annotations

import json

from proof.oracle.log import StoredLogs, counted_texts
from proof.oracle.violation import Violation
from proof.wirecheck import SseEvent
from tenuto.core.events import parse_cursor

KINDS = (("answer", "text"), ("thinking", "reasoning"))  # events of the stream, and the parts that they carry
AWAY_STATUS = (429, 503)  # the server asks the client to try again


class MessageStreamOracle:
    """The received text of one message, over all connections of its reader."""

    def __init__(self, name: str, stored: StoredLogs, channel: str, message_id: str) -> None:
        self.message_id = message_id
        self.cursor: str | None = None
        self.is_over = False
        self._name = name
        self._stored = stored
        self._log = stored.head(channel)
        self._begun = stored.stamp
        self._received = {"answer": "", "thinking": ""}
        self._certain = dict(self._received)  # the text that had been received at the last event id
        self._is_known = False  # whether a client had received the message before this request

    def begin(self) -> None:
        """Begin a connection."""
        self._is_known = self._log.at(self.message_id, self._log.sent) is not None

    def cut(self) -> None:
        """End the connection."""
        self._received = dict(self._certain)

    @property
    def is_open(self) -> bool:
        """Return whether the message still streams, so that the stream has no end yet."""
        message = self._log.now(self.message_id)
        return message is not None and message.status == "streaming"

    def refuse(self, status: int) -> None:
        """Take a response without a stream. Raises Violation if the server had to send a stream."""
        if status in AWAY_STATUS:
            return
        is_gone = self._stored.has_changed_epoch(self._log.channel, self._begun)
        is_gone = is_gone or (status == 404 and not self._is_known)  # the hub may not know a stored message yet
        if not is_gone and (status not in (404, 410) or not self._log.is_deleted(self.message_id)):
            raise Violation(f"{self._name} got status {status} instead of the end of {self.message_id}")
        self.is_over = True

    def receive(self, event: SseEvent, stamp: int) -> None:
        """Take one event that was sent at `stamp`. Raises Violation."""
        if event.event in self._received:
            self._received[event.event] += json.loads(event.data)
        elif event.event == "reset":  # an attempt was superseded
            self._received = json.loads(event.data)
        if event.id is None:
            return
        self.cursor = event.id
        if not self.cursor.startswith(f"{self._log.epoch}:"):
            self.is_over = True  # the stream began again in another epoch
            return
        self.is_over = event.event == "done"
        self._certain = dict(self._received)
        for kind, part_type in KINDS:
            self._check_text(kind, part_type)
        if self.is_over:
            self._check_done(json.loads(event.data)["status"], stamp)

    def _check_text(self, kind: str, part_type: str) -> None:
        received = self._received[kind]
        message = self._log.now(self.message_id)
        if message is None or self.message_id in self._log.replaced:
            return
        texts = counted_texts(message, part_type)
        # the reader may be at an earlier version, whose text is superseded now
        known = [counted_texts(one, part_type) for one in self._log.states(self.message_id)]
        if len(texts) == 1 and not any(received == "" or one[0].startswith(received) for one in known if len(one) == 1):
            raise Violation(f"{self._name} received of {self.message_id}\n  {received!r}, stored is\n  {texts[0]!r}")

    def _check_done(self, status: str, stamp: int) -> None:
        """Check at the end that the stream has sent the whole message as it was at its cursor."""
        log, cursor = self._log, parse_cursor(self.cursor)
        if cursor is None or not log.is_stored(cursor.serial, stamp):
            raise Violation(f"{self._name} received the end {self.cursor} before it was stored")
        message = log.at(self.message_id, cursor.serial)
        known = "deleted" if message is None else message.status
        if status != known or status == "streaming":
            raise Violation(f"{self._name} received the status {status} of {self.message_id}, stored is {known}")
        if message is None or self.message_id in log.replaced:
            return
        for kind, part_type in KINDS:
            texts = counted_texts(message, part_type)
            received = self._received[kind]  # the text of several parts, in the order in which they grew
            if len(received) != sum(map(len, texts)) or (len(texts) == 1 and received != texts[0]):
                raise Violation(
                    f"{self._name} received the end of {self.message_id} and of its {kind} {received!r}, "
                    f"stored is {texts}"
                )
