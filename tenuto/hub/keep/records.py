"""Records: the lines of an export file, and their way into operations and documents.

Layer: hub. It waits for nothing.

A file has one JSON object in each line: a header, the messages in the order of their creation, the commands in the
order of their ids, and an end with counts and a checksum of all lines before it. It holds no serials: an import gives
new ones. The file of a channel is the same, byte for byte, before and after it went through an import.

Safe to change: wording, and new kinds of lines together with a new `FORMAT`. Not safe: the order or the meaning of
fields, because files of format 1 must be readable for ever.
"""

from __future__ import annotations

import dataclasses

import msgspec
from msgspec import Struct

from tenuto.core.decide_commands import LONGEST_S, STEP_S
from tenuto.core.document import KEPT_MS, Document, document
from tenuto.core.errors import InvalidRequest, TooLarge, shown
from tenuto.core.limits import MIB, Limits
from tenuto.core.model import ATTEMPT, OPTIONS, ROLES, STATUSES, STEP_NAME, Approval, Json, Part, check_json, check_part
from tenuto.core.names import check_id, command_id, command_key
from tenuto.core.ops import Command, Create, Entry, Finish, Op, Reply
from tenuto.core.state import DAMAGED, CommandState, MessageState, apply_to_command, change, part_bytes

FORMAT = 1
HEADER_BYTES = 4096  # limit of the first line, and of the last one
LEAD_MS = 24 * 3_600_000  # a time in a file may be ahead of the present by this much, and no more
# digest of an imported record: it equals that of no request, so a later create with its id is a conflict
IMPORTED = b""
ESCAPED = 6  # a byte of text takes at most this many bytes in JSON (\u0001)


class Header(Struct, frozen=True, kw_only=True, tag_field="type", tag="tenuto.export"):
    """The first line."""

    format: int
    channel: str


class MessageRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag="message"):
    """A message; its times are in ms since 1970."""

    id: str
    role: str
    author: str | None = None
    status: str
    reason: str | None = None
    parts: list[Part] = []
    meta: dict[str, Json] = {}
    parent: str | None = None
    reply_to: str | None = None
    created_at: int
    updated_at: int

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a message that the store could not read."""
        return self.reason == DAMAGED and self.status == "failed" and not self.created_at


class ReplyRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The reply to a command."""

    ok: bool
    data: Json = None
    error: Json = None
    by: str | None = None


class CommandRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag="command"):
    """A command with its reply; its times are in ms since 1970."""

    id: str
    name: str
    target: str | None = None
    data: Json = None
    by: str | None = None
    created_at: int
    expires_at: int
    reply: ReplyRecord

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a command that the store could not read."""
        return self.name == DAMAGED and not self.created_at


class End(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag="end"):
    """The last line: counts, and the SHA-256 of all bytes before this line."""

    messages: int
    commands: int
    sha256: str
    damaged: int = 0  # how many of these messages and commands stand for those that the store could not read


Record = MessageRecord | CommandRecord

# The reply with which a command without a reply is exported, as the server gives it when a command expires.
_EXPIRED = ReplyRecord(ok=False, error={"code": "expired", "detail": "no reply arrived in time"})

_decode_header = msgspec.json.Decoder(Header).decode
_line_decoder: msgspec.json.Decoder[Record | End] = msgspec.json.Decoder(MessageRecord | CommandRecord | End)


def encode_line(line: Header | Record | End) -> bytes:
    """Return `line` as JSON, with its line end."""
    return msgspec.json.encode(line) + b"\n"


def message_record(message: MessageState) -> MessageRecord:
    """Return the line of `message`. A message that streams is exported as interrupted."""
    fields = msgspec.structs.asdict(message.message())
    del fields["created"], fields["version"]
    if message.status == "streaming":
        fields["status"] = "interrupted"
    return MessageRecord(**fields)


def command_record(command: CommandState) -> CommandRecord:
    """Return the line of `command`. A command without a reply is exported as expired."""
    sent, reply = command.sent, command.reply
    return CommandRecord(
        id=command_id(sent.id),
        name=sent.name,
        target=sent.target,
        data=sent.data,
        by=sent.by,
        created_at=sent.at_ms,
        expires_at=sent.expires_ms,
        reply=_EXPIRED if reply is None else ReplyRecord(ok=reply.ok, data=reply.data, error=reply.error, by=reply.by),
    )


def line_bytes(limits: Limits) -> int:
    """Return the limit of a line in bytes: that of the largest message, as JSON."""
    return ESCAPED * (limits.message_bytes + limits.meta_bytes) + MIB


def decode_header(line: bytes) -> Header:
    """Return the header in the first line. Raises InvalidRequest, also for a newer format."""
    try:
        header = _decode_header(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InvalidRequest("the line is not the header of a Tenuto export; name a file of tenuto export") from None
    if header.format != FORMAT:
        raise InvalidRequest(
            f"the file has format {header.format}, this version reads format {FORMAT}; import it with a newer Tenuto"
        )
    return header


def decode_line(line: bytes) -> Record | End:
    """Return the record in a line. Raises InvalidRequest."""
    try:
        return _line_decoder.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the line is not a message, a command or an end ({str(error)[:200]}); export the channel again"
        ) from None


def damaged_in(last_line: bytes) -> int:
    """Return the number of damaged messages and commands that the last line of an export names."""
    end = decode_line(last_line)
    assert isinstance(end, End)
    return end.damaged


def check_record(record: Record, limits: Limits, now_ms: int) -> Record:
    """Return `record` in its stored form. Raises InvalidRequest, InvalidName, InvalidText or TooLarge."""
    for at_ms in (record.created_at, record.updated_at if isinstance(record, MessageRecord) else record.created_at):
        if not 0 <= at_ms <= now_ms + LEAD_MS:
            raise InvalidRequest(
                f"{shown(record.id)} has the time {at_ms}, but times must be ms since 1970, and at most a day ahead of "
                f"the present ({now_ms}); correct the clock, or export the channel again"
            )
    if isinstance(record, CommandRecord):
        return _checked_command(record, limits)
    check_id(record.id, "the id of a message")
    if record.role not in (*ROLES, OPTIONS):
        raise InvalidRequest(f"role must be one of {', '.join(ROLES)}, got {shown(record.role)}")
    if record.status == "streaming" or record.status not in STATUSES:
        raise InvalidRequest(
            f"status must be 'complete', 'cancelled', 'interrupted' or 'failed', got {shown(record.status)}"
        )
    for name, value in (("parent", record.parent), ("reply_to", record.reply_to)):
        if value is not None:
            check_id(value, name)
    _check_small(limits, author=record.author, reason=record.reason)
    check_json(record.meta, limits.meta_bytes, "meta", depth=limits.depth)
    return msgspec.structs.replace(record, parts=_checked_parts(record.parts, limits))


def _checked_parts(parts: list[Part], limits: Limits) -> list[Part]:
    if len(parts) > limits.parts:
        raise TooLarge(
            f"the message has {len(parts)} parts, the limit is {limits.parts} (Limits.parts); import it in a hub with "
            "a higher limit",
            limit=limits.parts,
        )
    as_json = dataclasses.replace(limits, message_bytes=ESCAPED * limits.message_bytes)
    checked = [_checked_part(part, as_json) for part in parts]
    size = sum(part_bytes(part) for part in checked)
    if size > limits.message_bytes:
        raise TooLarge(
            f"the message has {size} bytes, the limit is {limits.message_bytes} (Limits.message_bytes); import it in a "
            "hub with a higher limit",
            limit=limits.message_bytes,
        )
    return checked


def _checked_part(part: Part, limits: Limits) -> Part:
    """Check a part and return it, also with what no request may set: the reply about a tool call, or an attempt."""
    if _is_attempt(part):
        return _checked_attempt(part, limits)
    checked = check_part(part, limits)
    if checked["type"] != "tool" or "approval" not in part:
        return checked
    try:
        approval = msgspec.convert(part["approval"], Approval)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"field approval of the call {shown(checked['call'])} is malformed: {error}") from None
    check_id(approval.id, "the id of an approval")
    return {**checked, "approval": msgspec.to_builtins(approval)}


def _checked_attempt(part: Part, limits: Limits) -> Part:
    parts, characters = part.get("parts"), part.get("characters")
    if not isinstance(parts, list) or not isinstance(characters, int) or characters < 0:
        raise InvalidRequest(
            f"an attempt must have a list of parts and a number of characters, got {shown(part)}; export the channel "
            "again"
        )
    # an attempt holds no other one, which `check_part` refuses
    inner = [check_part(one, limits) if _is_attempt(one) else _checked_part(one, limits) for one in parts]
    return {"type": ATTEMPT, "parts": inner, "characters": characters}


def _is_attempt(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == ATTEMPT


def _checked_command(record: CommandRecord, limits: Limits) -> CommandRecord:
    check_id(record.id, "the id of a command")
    check_id(record.name, "a command's name")
    if record.target is not None:
        check_id(record.target, "target")
    is_step = record.name == STEP_NAME
    longest_s = STEP_S if is_step else LONGEST_S
    if not record.created_at <= record.expires_at <= record.created_at + longest_s * 1000:
        raise InvalidRequest(
            f"command {record.id!r} expires at {record.expires_at}, but that must be at most {longest_s} s after its "
            f"creation at {record.created_at}; export the channel again"
        )
    reply = record.reply
    check_json(reply.data, limits.step_bytes if is_step else limits.data_bytes, "reply", depth=limits.depth)
    _check_small(limits, data=record.data, by=record.by, error=reply.error, replier=reply.by)
    return record


def _check_small(limits: Limits, **values: Json) -> None:
    for name, value in values.items():
        check_json(value, limits.data_bytes, name, depth=limits.depth)


def imported(record: Record, serial: int, now_ms: int) -> tuple[list[Entry], Document]:
    """Return the entries and the document of a checked record, whose first entry is at `serial`.

    The store keeps the data of an old command as if the command expired now.
    """
    ops = _message_ops(record) if isinstance(record, MessageRecord) else _command_ops(record)
    entries = [Entry(serial + index, op) for index, op in enumerate(ops)]
    first = ops[0]
    thing: MessageState | CommandState
    if isinstance(first, Create):
        thing = MessageState.begun(first, serial)
        for entry in entries[1:]:
            change(thing, entry.op, entry.serial)
    else:
        assert isinstance(first, Command)
        thing = CommandState(sent=first, created=serial)
        for entry in entries[1:]:
            apply_to_command(thing, entry.op, entry.serial)
    stored = document(thing)
    if stored.until_ms is not None:
        stored = msgspec.structs.replace(stored, until_ms=max(stored.until_ms, now_ms + KEPT_MS))
    return entries, stored


def _message_ops(record: MessageRecord) -> list[Op]:
    is_whole = record.status == "complete" and record.reason is None and record.updated_at == record.created_at
    create = Create(
        id=record.id,
        role=record.role,
        author=record.author,
        status="complete" if is_whole else "streaming",
        parts=record.parts,
        meta=record.meta,
        parent=record.parent,
        reply_to=record.reply_to,
        at_ms=record.created_at,
        digest=IMPORTED,
    )
    if is_whole:
        return [create]
    end = Finish(id=record.id, status=record.status, reason=record.reason, meta=record.meta, at_ms=record.updated_at)
    return [create, end]


def _command_ops(record: CommandRecord) -> list[Op]:
    key = command_key(record.id)
    command = Command(
        id=key,
        name=record.name,
        target=record.target,
        data=record.data,
        by=record.by,
        at_ms=record.created_at,
        expires_ms=record.expires_at,
        digest=IMPORTED,
    )
    reply = record.reply
    return [command, Reply(id=key, ok=reply.ok, data=reply.data, error=reply.error, by=reply.by)]
