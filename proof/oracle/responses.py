"""Responses: each is compared with the log as it was when the response was sent.

Layer: oracle.

`stamp` dates the response, `since` its request (`StoredLogs.stamp`). A `check_*` function raises Violation.

A `MessageStreamOracle` judges the text and the end of one message's stream. Text after the last event id comes again on
the next connection, so the oracle drops it when a connection ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from proof.oracle import Violation
from proof.oracle.log import EpochLog, StoredLogs, counted_texts, text_of
from proof.wirecheck import SseEvent
from tenuto.core.events import parse_cursor
from tenuto.core.model import Message


def check_message(stored: StoredLogs, channel: str, message: Message, stamp: int) -> EpochLog:
    """Check that `message`, from a response of the time `stamp`, was stored by then; return the log of its epoch."""
    for log in stored.between(channel, 0, stamp):
        if log.is_stored(message.version, stamp) and log.at(message.id, message.version) == message:
            return log
    raise Violation(f"{channel}: a response holds this message, which was never stored: {message}")


def check_cursor(stored: StoredLogs, channel: str, messages: Iterable[Message], text: str, stamp: int) -> None:
    """Check that the cursor of a response was stored, and that `messages` are as they were at it."""
    cursor = parse_cursor(text)
    log = stored.epoch(channel, cursor.epoch) if cursor is not None else None
    if cursor is None or log is None or not log.is_stored(cursor.serial, stamp):
        raise Violation(f"{channel}: a response holds the cursor {text}, before that entry was stored")
    for message in messages:
        if message.version > cursor.serial or log.at(message.id, cursor.serial) != message:
            raise Violation(f"{channel}: a client that resumes from {text} misses or repeats a part of {message}")


def check_fresh(log: EpochLog, message: Message, sent: int) -> None:
    """Check that a message is at least as new as at serial `sent`, which a client had received before the request."""
    known = log.at(message.id, sent)
    if known is not None and known.version > message.version:
        raise Violation(f"{log.channel}: {message.id} was read as of {message.version}, {known.version} was known")


def check_deleted(stored: StoredLogs, channel: str, message_id: str, *, since: int, stamp: int) -> None:
    """Check that a message was deleted, alone or with its channel, when a response said so."""
    for log in stored.between(channel, since, stamp):
        serial, message = log.versions.get(message_id, [(0, None)])[-1]
        if message is None and serial and log.is_stored(serial, stamp):
            return
    if not stored.has_changed_epoch(channel, since) and not stored.is_used_up(channel, message_id):
        raise Violation(f"{channel}: the deletion of {message_id} was acknowledged before it was stored")


def check_text(
    stored: StoredLogs,
    channel: str,
    message_id: str,
    part: int,
    at: int | None,
    text: str,
    serial: int,
    *,
    since: int,
    stamp: int,
) -> None:
    """Check that text was stored when it was acknowledged with `serial`; without `at`, at any offset of its part."""
    for log in stored.between(channel, since, stamp):
        message = log.at(message_id, serial) if log.is_stored(serial, stamp) else None
        if message is not None and part < len(message.parts):
            known = text_of(message.parts[part])
            if known.startswith(text, at) if at is not None else text in known:
                log.note_sent(serial)
                return
    raise Violation(f"{channel}: {text!r} at {at} of {message_id}.{part} was acknowledged as {serial}, not stored")


def check_serial(
    stored: StoredLogs,
    channel: str,
    message_id: str,
    serial: int,
    *,
    since: int,
    stamp: int,
    request: str | None = None,
) -> None:
    """Check that entry `serial` was stored when it was acknowledged; all repeats of `request` have one serial."""
    for log in stored.between(channel, since, stamp):
        if serial and log.is_stored(serial, stamp) and log.changed[serial - 1] == message_id:
            first = log.requests.get((message_id, request), serial) if request is not None else serial
            if first != serial and not stored.has_changed_epoch(channel, since):
                raise Violation(f"{channel}: {request} of {message_id} got serial {serial}, it is stored as {first}")
            log.note_sent(serial)
            return
    raise Violation(f"{channel}: {serial} of {message_id} was acknowledged before it was stored")


def is_correct_refusal(
    stored: StoredLogs, channel: str, message_id: str, code: str, generation: int, *, since: int, stamp: int
) -> bool:
    """Return whether the log justified a refusal with `code` at some moment between request and response."""
    if code == "deleted" and stored.is_used_up(channel, message_id):
        return True
    for log in stored.between(channel, since, stamp):
        for serial, message in log.versions.get(message_id, []):
            if not log.is_stored(serial, stamp):
                break
            match code:
                case "deleted":
                    is_so = message is None
                case "finished":
                    is_so = message is not None and message.status != "streaming"
                case "streaming":
                    is_so = message is not None and message.status == "streaming"
                case "fenced":
                    is_so = len(log.takeovers.get(message_id, [])) + 1 != generation
                case _:
                    is_so = False
            if is_so:
                return True
    return False


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
        elif event.event == "reset":  # an attempt was superseded, or the store was replaced
            self._received = json.loads(event.data)
        if event.id is None:
            return
        self.cursor = event.id
        if not self.cursor.startswith(f"{self._log.epoch}:"):
            self.is_over = True  # the stream began again in another epoch
            if event.event in self._received and any(self._certain.values()):
                raise Violation(f"{self._name} received {self.message_id} anew, and no reset before")
            return
        self.is_over = event.event == "done"
        self._certain = dict(self._received)
        for kind, part_type in KINDS:
            self._check_text(kind, part_type)
        if self.is_over:
            self._check_done(json.loads(event.data)["status"], stamp)

    def _check_text(self, kind: str, part_type: str) -> None:
        received, message = self._received[kind], self._log.now(self.message_id)
        if message is None or self.message_id in self._log.replaced:
            return
        texts = counted_texts(message, part_type)
        # the reader may be at an earlier version; of several texts the length is compared: they come as they grew
        known = [counted_texts(one, part_type) for one in self._log.states(self.message_id)]
        fits = [len(one) > 1 and len(received) <= sum(map(len, one)) for one in known]
        if len(texts) == 1 and not any(fits) and not any("".join(one).startswith(received) for one in known):
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
            # the text of several parts, in the order in which they grew
            texts, received = counted_texts(message, part_type), self._received[kind]
            if len(received) != sum(map(len, texts)) or (len(texts) == 1 and received != texts[0]):
                raise Violation(
                    f"{self._name} received the end of {self.message_id} and of its {kind} {received!r}, "
                    f"stored is {texts}"
                )
