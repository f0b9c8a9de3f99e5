"""Responses: each is compared with the log as it was when the response was sent.

Layer: oracle.

`stamp` dates the response, `since` its request (`StoredLogs.stamp`). A `check_*` function raises Violation.
"""

from __future__ import annotations

from collections.abc import Iterable

from proof.oracle.log import EpochLog, StoredLogs, text_of
from proof.oracle.violation import Violation
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
