"""Documents: the form in which a store keeps a message, and the way back into memory.

Layer: core.

A document is a head (all fields but growing text) and segments of text, each with sparse marks
(serial, length). A new document of a message rewrites the head and adds only the text since the last
one, so its cost is that of the change; after an edit it is `fresh` and replaces all segments. Head fields are stored by
position: add at the end, with a default. A long field of a part, such as a photo, is in a segment, too: each claim of a
turn rewrites the head of its question.

The data of a command and of its reply is a segment, not part of the head, so that a store can remove it and keep the
rest: an id stays used up, and a repeated command is recognised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import StoreUnusable
from tenuto.core.model import OPTIONS, Json, Part
from tenuto.core.names import COMMAND_MARK, is_id
from tenuto.core.ops import Append, Command, Create, Entry, Reply, WriterIdentity
from tenuto.core.state import (
    DAMAGED,
    ClaimState,
    CommandState,
    MessageState,
    apply_op,
    apply_to_command,
    part_bytes,
    utf8_len,
)
from tenuto.core.text import MARK_BYTES, PartState, Text, TextFork

T = TypeVar("T")

LONG_FIELD = 4_096  # length in code points from which a field of a part is kept in a segment
FIELDS = -1  # `at` of such a segment


class Segment(Struct, frozen=True, array_like=True):
    """A stretch of a part's text. `marks` alternate serial and length, each as the difference to the mark before."""

    part: int
    at: int  # offset of the segment in the part's text; FIELDS: `text` is a long field of the part
    text: str
    marks: list[int]  # of a field: its position among those of the part


class PartHead(Struct, frozen=True, array_like=True):
    """The stored fields of a part, without its growing text. A long one is None here."""

    fields: Part
    opened: int
    changed: int


class MessageHead(Struct, frozen=True, array_like=True, kw_only=True):
    """The stored fields of a message, without its growing text."""

    role: str
    author: str | None
    status: str
    reason: str | None
    meta: dict[str, Json]
    parent: str | None
    reply_to: str | None
    created: int
    version: int
    created_at: int
    updated_at: int
    digest: bytes
    writer: WriterIdentity | None
    generation: int
    deleted: bool
    edited: int
    shaped: int
    finished: int
    finished_as: tuple[str, str | None]
    taken_over: int
    requests: list[tuple[str, int, int]]
    parts: list[PartHead]
    last: int
    claim: ClaimState | None
    alive_at: int  # of an open message


class CommandHead(Struct, frozen=True, array_like=True, kw_only=True):
    """A command, with its reply if it has one, both without their data."""

    command: Command
    created: int
    reply: Reply | None
    reply_serial: int


class Document(Struct, frozen=True, kw_only=True):
    """A document on its way to a store. The store keeps `head` as opaque bytes and indexes the other fields."""

    id: str
    # serial that places the message in the history of its channel; 0 for a command, and for a message that keeps a
    # value (`options`), which are not part of the history
    created: int
    version: int  # the document contains all changes of the message up to this serial
    is_open: bool  # True while a message streams or waits for an agent, and while a command waits for its reply
    is_deleted: bool
    size_bytes: int
    head: bytes
    fresh: bool  # True: these segments replace all stored ones; False: they are added to them
    segments: list[Segment]
    # id of a message: if it is deleted and this document is no longer open, the store removes the segments
    target: str | None = None
    until_ms: int | None = None  # time in ms since 1970 at which the store removes this document's segments in any case
    at_ms: int = 0  # time of the last change, apart from text, in ms since 1970


class Stored(Struct, frozen=True, kw_only=True):
    """A document as a store returns it: with all its segments in order, and the entries stored after it."""

    id: str
    head: bytes
    segments: list[Segment]
    entries: list[Entry]


# How long after a command's expiry a store keeps the command's data, unless its target is deleted earlier. Webhooks and
# viewers that were away for longer receive the command without its data.
KEPT_MS = 7 * 24 * 3_600_000

# Exceptions of decoding that mean a store returned damaged data. ValueError stands for text that is not UTF-8.
DAMAGE = (msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

_encode_head = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(MessageHead).decode
_decode_command = msgspec.msgpack.Decoder(CommandHead).decode


def decoded(value: bytes, kind: type[T]) -> T | None:
    """Return the value that the hub has kept or sent; None if it is damaged, or another version has made it."""
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except DAMAGE:
        return None


def document(message: MessageState | CommandState) -> Document:
    """Return the document to store for `message` as it is now. Once it is stored, call `mark_documented`."""
    if isinstance(message, CommandState):
        return _command_document(message)
    # All segments are replaced if more than text has changed since, and if deleted text must leave the store.
    fresh = message.deleted or message.documented < message.shaped or not message.documented
    since = 0 if fresh else message.documented
    segments: list[Segment] = []
    for index, part in enumerate(message.parts):
        if fresh:
            segments += [Segment(index, FIELDS, part.fields[name], [at]) for name, at in _long_fields(part).items()]
        if part.text is not None:
            start = part.text.length_at(since)
            if start < part.text.length:
                segments.append(_segment(index, part.text, start, part.changed))
    return Document(
        id=message.id,
        created=message.created if message.role != OPTIONS else 0,  # 0: not part of the history
        version=message.last,
        is_open=message.is_open,
        is_deleted=message.deleted,
        size_bytes=message.size_bytes,
        head=_encode_head(_head(message)),
        fresh=fresh,
        segments=segments,
        at_ms=max(message.updated_at, message.moved_at),  # a claim or takeover is a change, too
    )


def _command_document(command: CommandState) -> Document:
    sent, reply = command.sent, command.reply
    head = _encode_head(
        CommandHead(
            command=replace(sent, data=None),
            created=command.created,
            reply=replace(reply, data=None, error=_only_code(reply.error)) if reply is not None else None,
            reply_serial=command.reply_serial,
        )
    )
    data = [sent.data, *([reply.data, reply.error] if reply is not None else [])]
    text = msgspec.json.encode(data).decode() if any(one is not None for one in data) else ""
    return Document(
        id=command.id,
        created=0,  # not part of the history
        version=command.version,
        is_open=command.is_open,
        is_deleted=False,
        size_bytes=len(head) + utf8_len(text),
        head=head,
        fresh=True,
        segments=[Segment(part=0, at=0, text=text, marks=[])] if text else [],
        target=sent.target,
        until_ms=sent.expires_ms + KEPT_MS,
        at_ms=command.updated_at,
    )


def changed_ms(document_id: str, head: bytes) -> int | None:
    """Return when the message or command of a stored document changed last, in ms since 1970; None if it is damaged."""
    try:
        if document_id.startswith(COMMAND_MARK):
            return _command_in(_decode_command(head)).updated_at
        return _decode_head(head).updated_at
    except DAMAGE:
        return None


def _only_code(error: Json) -> Json:
    """Return a reply's error with its code alone, which stays in the store when the rest is removed; None: no code."""
    code = error.get("code") if isinstance(error, dict) else None
    return {"code": code} if isinstance(code, str) and is_id(code) else None


def mark_documented(message: MessageState, version: int) -> None:
    """Note that the store holds a document of `message` at `version`."""
    message.documented = version
    message.undocumented_bytes = 0


def restore(stored: Stored) -> MessageState:
    """Return the message in `stored`. Raises StoreUnusable if it is damaged."""
    try:
        head = _decode_head(stored.head)
        same = {name: getattr(head, name) for name in _SAME}
        message = MessageState(id=stored.id, alive_at=head.alive_at, **same)
        message.requests.extend(head.requests)
        message.parts = [PartState(part.fields, part.opened, part.changed) for part in head.parts]
        for segment in stored.segments:
            part = message.parts[segment.part] if 0 <= segment.part < len(message.parts) else None
            if part is not None and segment.at == FIELDS:
                part.fields[[*part.fields][segment.marks[0]]] = segment.text  # the mark is the field's position
                continue
            if part is None or not isinstance(part.text, Text) or not _joins(part.text, segment):
                raise ValueError(f"text at offset {segment.at} of part {segment.part} does not fit there")
            message.size_bytes += utf8_len(_extend(part.text, segment))
        message.size_bytes += sum(part_bytes(part.fields) for part in message.parts)
        mark_documented(message, head.last)
        for entry in stored.entries:
            if type(entry.op) is Append and not _follows(message, entry.op, entry.serial):
                raise ValueError(f"entry {entry.serial} does not begin at the end of its part")
            apply_op(message, entry.op, entry.serial)
    except DAMAGE as error:
        raise StoreUnusable(f"message {stored.id!r} is damaged ({str(error)[:200]}); restore a backup") from error
    return message


def restore_command(stored: Stored) -> CommandState:
    """Return the command in `stored`. Raises StoreUnusable if it is damaged."""
    try:
        command = _command_in(_decode_command(stored.head))
        for segment in stored.segments:
            sent_data, *of_reply = msgspec.json.decode(segment.text, type=list[Json])
            command.sent = replace(command.sent, data=sent_data)
            command.stored_bytes += len(segment.text)
            if command.reply is not None:
                data, error = of_reply
                command.reply = replace(command.reply, data=data, error=error)
        for entry in stored.entries:
            apply_to_command(command, entry.op, entry.serial)
    except DAMAGE as damage:
        raise StoreUnusable(f"command {stored.id!r} is damaged ({str(damage)[:200]}); restore a backup") from damage
    return command


def _follows(message: MessageState, op: Append, serial: int) -> bool:
    """Return whether the append `op` fits to the end of its part, or is in the document already."""
    part = message.parts[op.part] if 0 <= op.part < len(message.parts) else None
    return serial <= message.last or (part is not None and part.text is not None and op.at == part.text.length)


def _joins(text: Text, segment: Segment) -> bool:
    """Return whether a segment begins within `text`, agrees with the overlap, and has marks for all of its own text."""
    if not 0 <= segment.at <= text.length or sum(segment.marks[1::2]) != len(segment.text):
        return False
    overlap = text.length - segment.at
    return not overlap or text.slice(segment.at, segment.at + len(segment.text)) == segment.text[:overlap]


def _command_in(head: CommandHead) -> CommandState:
    return CommandState(sent=head.command, created=head.created, reply=head.reply, reply_serial=head.reply_serial)


def used_up_head(message_id: str) -> bytes:
    """Return the head of a message that was deleted with its channel: only its id is known, and stays used up."""
    message = _empty_message(message_id)
    message.deleted = True
    return _encode_head(_head(message))


def _empty_message(message_id: str) -> MessageState:
    return MessageState.begun(Create(id=message_id, role="assistant", status="interrupted", at_ms=0), 0)


def damaged_head(message_id: str, created: int, version: int) -> bytes:
    """Return the head of a damaged message, which has failed and has no text, or of a damaged command."""
    if message_id.startswith(COMMAND_MARK):
        command = Command(id=message_id, name=DAMAGED, at_ms=0, expires_ms=0, digest=b"")
        reply = Reply(id=message_id, ok=False, error={"code": DAMAGED})
        return _encode_head(CommandHead(command=command, created=version, reply=reply, reply_serial=version))
    message = _empty_message(message_id)
    message.status, message.reason = "failed", DAMAGED
    message.created, message.version, message.last = created, version, version
    message.edited = message.shaped = message.finished = version  # so a viewer gets the message whole
    message.finished_as = ("failed", DAMAGED)
    return _encode_head(_head(message))


def _segment(index: int, text: Text | TextFork, start: int, changed: int) -> Segment:
    """Return the text from `start` on, with a mark about every `MARK_BYTES`, and that of `changed`, which set the part.

    A viewer that was cut off behind the event of the part may continue at another hub, which must begin appends there.
    """
    marks: list[int] = []
    serial_before, length_before = 0, start
    found = list(text.marks_after(start))
    for serial, length in found:
        # the last one stays, because the marks must cover all text (`_joins`)
        if serial in (changed, found[-1][0]) or _is_far(text, length_before, length):
            marks += (serial - serial_before, length - length_before)
            serial_before, length_before = serial, length
    return Segment(part=index, at=start, text=text.slice(start), marks=marks)


def _is_far(text: Text | TextFork, start: int, end: int) -> bool:
    """Return whether the text between two offsets takes at least `MARK_BYTES` in JSON, without its quotes."""
    characters = end - start
    if characters >= MARK_BYTES or characters * 6 < MARK_BYTES:  # mostly so: a character takes 1 to 6 bytes (\u1234)
        return characters >= MARK_BYTES
    return len(msgspec.json.encode(text.slice(start, end))) - 2 >= MARK_BYTES


def _extend(text: Text, segment: Segment) -> str:
    """Add the end of a segment's text that `text` lacks, with its marks, and return that end."""
    new = segment.text[max(0, text.length - segment.at) :]
    serial, length = 0, segment.at
    before = text.length
    steps = iter(segment.marks)
    for serial_step, length_step in zip(steps, steps, strict=True):
        serial, length = serial + serial_step, length + length_step
        if length > text.length:
            text.append(new[text.length - before : length - before], serial)
    return new


# fields of a head that are attributes of the message with the same names
_SAME = tuple(name for name in MessageHead.__struct_fields__ if name not in ("requests", "parts", "alive_at"))


def _head(message: MessageState) -> MessageHead:
    return MessageHead(
        **{name: getattr(message, name) for name in _SAME},
        requests=list(message.requests),
        parts=[
            PartHead({**part.fields, **dict.fromkeys(_long_fields(part))}, part.opened, part.changed)
            for part in message.parts
        ],
        alive_at=message.alive_at if message.is_open else 0,
    )


def _long_fields(part: PartState) -> dict[str, int]:
    fields = enumerate(part.fields.items())
    return {name: at for at, (name, value) in fields if type(value) is str and len(value) >= LONG_FIELD}


def restored(stored: Iterable[Stored]) -> list[MessageState | CommandState]:
    """Return all documents in `stored` as messages and commands."""
    return [restore_command(one) if one.id.startswith(COMMAND_MARK) else restore(one) for one in stored]
