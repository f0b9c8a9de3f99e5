"""Exports and imports: a channel as a file of lines, read from the store page by page, and back.

Layer: hub.

A file has one JSON object in each line: a header, the messages in the order of their creation, the commands in the
order of their ids, and an end with counts and a checksum of all lines before it. It holds no serials: an import gives
new ones. The file of a channel is the same, byte for byte, before and after it went through an import. Safe to change:
wording, and new kinds of lines together with a new `FORMAT`. Not safe: the order or the meaning of fields, because
files of format 1 must be readable for ever.

An import puts the messages of a file into an empty channel, all of them or none. The whole file is checked first, and
read a second time while its records are written, so memory holds one batch. Each batch is an ordinary commit. A note in
the store names the running import: it is written before each commit, and removed after the last one. If the process
dies in between, the next import empties the channel, or a hub: at its start, or on a shared store once the note has
stayed the same for `STOPPED_S`. Messages that were written after such a part stay. Each import changes only its own
note, so of two processes that import into one channel, one that has lost the note fails.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from msgspec import Struct

from tenuto.core.decide import LONGEST_S, STEP_S, check_meta
from tenuto.core.document import KEPT_MS, Document, decoded, document, restore, restore_command, restored
from tenuto.core.errors import (
    Busy,
    Damaged,
    IdConflict,
    InvalidRequest,
    LocalError,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
    TenutoError,
    TooLarge,
    shown,
)
from tenuto.core.limits import MIB, Limits
from tenuto.core.model import ATTEMPT, OPTIONS, ROLES, STATUSES, STEP_NAME, Approval, Json, Part, check_json, check_part
from tenuto.core.names import check_channel, check_id, command_id, command_key
from tenuto.core.ops import Claim, Command, Create, Entry, Finish, Op, Reply
from tenuto.core.requests import references
from tenuto.core.state import DAMAGED, CommandState, MessageState, apply_to_command, change, part_bytes
from tenuto.hub.clock import Clock
from tenuto.hub.tasks import logs_errors
from tenuto.stores.base import Committed, Conflict, Head, Store, Write, head_of

logger = logging.getLogger("tenuto.hub")

PAGE = 200  # messages or commands in one read of an export
PAGE_BYTES = 2 * MIB
COUNTS = 3  # counts of the messages before they count as missing: one may be deleted during a count
STOPPED_S = 600.0  # an import that has stored no batch for this long is undone on a shared store: its process is gone
NOTE = "import:"  # prefix of the notes about running imports; the channel follows
BATCH = 200  # records in one commit of an import
BATCH_BYTES = 1 * MIB
FORMAT = 1
HEADER_BYTES = 4096  # limit of the first line, and of the last one
LEAD_MS = 24 * 3_600_000  # a time in a file may be ahead of the present by this much, and no more
# digest of an imported record: it equals that of no request, so a later create with its id is a conflict
IMPORTED = b""
ESCAPED = 6  # a byte of text takes at most this many bytes in JSON (\u0001)


# -- exports -------------------------------------------------------------------------------------------------------


async def export_lines(store: Store, channel: str) -> AsyncGenerator[bytes]:
    """Yield the lines of `channel`, each with its line end. Messages that are created meanwhile are left out.

    Memory holds one page at a time. Raises NotFound for an empty channel, Busy if the channel is deleted meanwhile or
    has a part of an import, StoreUnavailable, and Damaged in place of the last line if messages are missing.
    """
    # An import may begin or end beside the read of the head.
    is_part = await is_importing(store, channel)
    head = await head_of(store, channel)
    if is_part or await is_importing(store, channel):
        raise Busy(f"channel {channel!r} has a part of an import that has not ended; wait for its end, or repeat it")
    if not head.serial:
        raise NotFound(f"channel {channel!r} has no messages; check its name with tenuto channels")
    digest = hashlib.sha256()
    counts = {"message": 0, "command": 0}
    damaged = options = 0
    line = encode_line(Header(format=FORMAT, channel=channel))
    digest.update(line)
    yield line
    async for record in _records(store, channel, head):
        counts[str(record.__struct_config__.tag)] += 1
        damaged += record.is_damaged
        options += isinstance(record, MessageRecord) and record.role == OPTIONS  # the store does not count them
        line = encode_line(record)
        digest.update(line)
        yield line
    await _check_count(store, channel, head, counts["message"] - options)
    yield encode_line(
        End(messages=counts["message"], commands=counts["command"], sha256=digest.hexdigest(), damaged=damaged)
    )


async def _records(store: Store, channel: str, head: Head) -> AsyncIterator[Record]:
    """Yield the messages up to `head`, each behind options that it names first, then the commands. Raises Damaged."""
    after, more = 0, True
    kept: set[str] = set()  # ids of the values beside the `meta` of messages (`options`) that were exported
    while more:
        page = await store.page(channel, before=head.serial + 1, after=after, limit=PAGE, limit_bytes=PAGE_BYTES)
        _check_same(page.head, head, channel)
        for stored in page.messages:
            message = restore(stored)
            if message.created <= after:
                raise Damaged(
                    f"message {message.id!r} of channel {channel!r} is damaged: its place in the history is lost, so "
                    "the rest cannot be exported; restore a backup"
                )
            after = message.created
            ids = sorted(set(references(message.meta).values()) - kept)
            kept.update(ids)
            for one in (await store.messages(channel, ids))[1].values() if ids else ():
                if (value := restore(one)).role == OPTIONS and not value.deleted:
                    yield message_record(value)
            yield message_record(message)
        more = page.more
    last: str | None = None
    while ids := await store.commands(channel, after=last, limit=PAGE):
        now, found = await store.messages(channel, ids)
        _check_same(now, head, channel)
        for key in ids:
            if key not in found:  # retention has removed it meanwhile
                continue
            command = restore_command(found[key])
            if command.created <= head.serial:
                yield command_record(command)
        last = ids[-1]


async def _check_count(store: Store, channel: str, head: Head, read: int) -> None:
    """Raise Damaged if the store counts more messages than were `read` of the history up to `head`.

    Messages that came meanwhile do not count. Deleted ones may have been read before, so at least the others must have
    been.
    """
    for _ in range(COUNTS):
        summaries = await store.summaries([channel], after=None, limit=1)
        known = sum(one.messages for one in summaries) - await _count_after(store, channel, head.serial)
        if known <= read:
            return
    raise Damaged(
        f"channel {channel!r} has {known} messages, but {read} of them can be read; run `tenuto verify`: if it names "
        "the count of the channel and none of its messages, the count is damaged, and `tenuto compact` counts anew; "
        "else restore a backup"
    )


async def _count_after(store: Store, channel: str, serial: int) -> int:
    """Return how many messages were created after `serial`."""
    found, more = 0, True
    while more:
        page = await store.page(channel, before=None, after=serial, limit=PAGE, limit_bytes=PAGE_BYTES)
        found, more = found + len(page.messages), page.more
        serial = max([serial + 1, *(restore(one).created for one in page.messages)])  # rises also if all are damaged
    return found


def _check_same(now: Head, head: Head, channel: str) -> None:
    """Raise Busy if the channel has another epoch than at `head`."""
    if now.epoch != head.epoch:
        raise Busy(f"channel {channel!r} was deleted while it was exported; export it again if it has messages")


# -- imports -------------------------------------------------------------------------------------------------------


class Imported(Struct, frozen=True, kw_only=True):
    """The result of an import: the channel, and how many messages and commands it has now."""

    channel: str
    messages: int
    commands: int


class _Running(Struct, frozen=True, array_like=True):
    """The note about a running import: the last serial and the id of its record, before and after the next commit."""

    before: tuple[int, str] = (0, "")
    after: tuple[int, str] = (0, "")
    run: str = ""  # a random id of the import; empty: its part is being removed
    epoch: str = ""  # that its first commit gives the channel


class _Line(NamedTuple):
    number: int  # of the line in the file
    size: int  # of the line in bytes
    record: Record


class ExportFile:
    """A file of records that is read line by line. A line is at most as long as the largest message."""

    def __init__(self, path: Path, limits: Limits, now_ms: int, *, damaged: bool = False) -> None:
        self.path = path
        self.may_be_damaged = damaged  # True: damaged records are accepted
        self.channel = ""  # the name in the header
        self.end: End | None = None  # the last line, once it was read
        self.attempts: dict[str, int] = {}  # the last attempt at each message with steps, as far as the file was read
        self.limits = limits
        self._now_ms = now_ms
        self._digest = hashlib.sha256()
        self._number = 0  # that of the last line that was read

    def lines(self) -> Iterator[_Line]:
        """Yield the checked records, and check the end. Raises a TenutoError that names the line, LocalError."""
        messages = commands = damaged = 0
        with self._open() as file:
            try:
                header = self._next(file, HEADER_BYTES)
                self.channel = check_channel(decode_header(header).channel)
                self._digest.update(header)
                limit = ESCAPED * (self.limits.message_bytes + self.limits.meta_bytes) + MIB  # the largest message
                while not isinstance(record := decode_line(data := self._next(file, limit)), End):
                    self._digest.update(data)
                    yield _Line(self._number, len(data), check_record(record, self.limits, self._now_ms))
                    if isinstance(record, CommandRecord) and record.target and (attempt := _attempt(record)):
                        self.attempts[record.target] = max(attempt, self.attempts.get(record.target, 0))
                    messages += isinstance(record, MessageRecord)
                    commands += not isinstance(record, MessageRecord)
                    damaged += record.is_damaged
                self._check_end(record, messages, commands, damaged)
                if file.read(1):
                    self._number += 1
                    raise InvalidRequest("line is after the end of the export; remove it, or export the channel again")
            except TenutoError as error:
                raise at_line(error, self._number, self.path) from None
        self.end = record

    def _open(self) -> BinaryIO:
        """Open the file. Raises LocalError, also for a pipe or a device."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe does not wait for a writer
        except OSError as error:
            raise LocalError(f"file {self.path} cannot be read: {error.strerror}; check its name") from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise LocalError(f"file {self.path} must be a regular file, as it is read twice; save the export first")
        return os.fdopen(file, "rb")

    def _next(self, file: BinaryIO, limit: int) -> bytes:
        """Return the next line, at most `limit` bytes of it. Raises TooLarge, InvalidRequest."""
        self._number += 1
        data = file.readline(limit + 1)
        if len(data) > limit:
            raise TooLarge(
                f"the line is longer than {limit} bytes; name a file of tenuto export, or import it in a hub with a "
                "higher Limits.message_bytes",
                limit=limit,
            )
        if not data.endswith(b"\n"):
            raise InvalidRequest(
                "the file was cut here: the last line of an export is missing; copy it or export the channel again"
            )
        return data

    def _check_end(self, end: End, messages: int, commands: int, damaged: int) -> None:
        """Raise InvalidRequest unless `end` names these counts, and the checksum of the lines before it."""
        if (end.messages, end.commands, end.damaged) != (messages, commands, damaged):
            raise InvalidRequest(
                f"the file has {messages} messages and {commands} commands, {damaged} of them damaged; its end names "
                f"{end.messages}, {end.commands} and {end.damaged}; export the channel again"
            )
        if damaged and not self.may_be_damaged:
            raise InvalidRequest(
                f"the file has {damaged} damaged messages or commands, whose content is lost; export the channel from "
                "an earlier backup, or import the file as it is with --damaged"
            )
        if end.sha256 != self._digest.hexdigest():
            raise InvalidRequest(
                "the checksum is not that of the lines before it: the file was changed; copy it or export it again"
            )


def at_line(error: TenutoError, number: int, path: Path) -> TenutoError:
    """Return `error` as one about a line of a file."""
    return type(error)(f"line {number} of {path}: {error.detail}", **{**error.details, "line": number})


async def check_file(path: Path, limits: Limits, now_ms: int, *, damaged: bool = False) -> ExportFile:
    """Read and check a whole file, and return it. With `damaged`, damaged messages may be in it.

    Raises a TenutoError that names the line, LocalError.
    """
    file = ExportFile(path, limits, now_ms, damaged=damaged)

    def read() -> None:
        for _ in file.lines():
            pass

    await asyncio.to_thread(read)
    return file


@dataclass(eq=False)
class Import:
    """The records of a checked file on their way into an empty channel, and the note about that.

    No other import may change the note meanwhile, and no other code may write to the channel.
    """

    _store: Store
    _channel: str
    _checked: ExportFile
    _clock: Clock
    _check_space: Callable[[], None] = lambda: None  # called before each commit; raises StoreFull

    def __post_init__(self) -> None:
        self._run = self._clock.new_id()
        self._epoch = self._clock.new_epoch()  # of the channel, if this import fills it
        self._running = _Running()  # of the last note that this import stored
        self._note: bytes | None = None  # as this import stored it

    async def run(self) -> Imported:
        """Write the records into the channel, or write none.

        Raises IdConflict if the channel is not empty or an id cannot be used, StoreUnavailable, and the errors of
        `check_file` if the file was changed since.
        """
        store, channel, checked = self._store, self._channel, self._checked
        await undo_import(store, channel)
        try:
            await self._put(_Running(run=self._run, epoch=self._epoch))
            head = await head_of(store, channel)
            if head.serial:
                raise IdConflict(
                    f"channel {channel!r} is not empty; import into another one with --channel, or delete this one "
                    "first"
                )
            file = ExportFile(checked.path, checked.limits, self._clock.now_ms(), damaged=checked.may_be_damaged)
            await self._write(file, head)
            if file.end != checked.end:
                raise InvalidRequest(f"file {file.path} was changed while it was imported; import it again")
            await self._put(None)
        except BaseException:
            try:
                if await self._has_note():
                    await undo_import(store, channel)
                else:  # the import that took the note did not find a part that was committed later
                    await _remove_part(store, channel, self._running, epoch=self._epoch)
            except TenutoError as error:
                logger.warning(
                    "a part of an import may be in channel %s until a hub, an import or a deletion removes it: %s",
                    *(channel, error),
                )
            raise
        assert file.end is not None
        return Imported(channel=channel, messages=file.end.messages, commands=file.end.commands)

    async def _put(self, running: _Running | None) -> None:
        """Replace the note; None removes it. Raises IdConflict if another import has put or taken it."""
        name, note = NOTE + self._channel, msgspec.msgpack.encode(running) if running is not None else None
        if not await self._store.note({name: note}, expected={name: self._note}):
            raise IdConflict(
                f"another import into channel {self._channel!r} runs; import into another one with --channel, "
                "or try again when it has ended"
            )
        self._note, self._running = note, running or self._running

    async def _has_note(self) -> bool:
        """Return whether the stored note is that of this import. Raises StoreUnavailable."""
        note = (await self._store.notes(NOTE + self._channel)).get(NOTE + self._channel, b"")
        running = decoded(note, _Running)
        return running is not None and running.run == self._run

    async def _write(self, file: ExportFile, head: Head) -> None:
        """Write the records of `file` into the channel, whose empty head is `head`, each batch after its note."""
        lines, channel = file.lines(), self._channel
        serial, lives, before = 0, head.lives, (0, "")
        while batch := await asyncio.to_thread(_batch, lines):
            self._check_space()
            await _check_new(self._store, channel, batch, file.path)
            entries: list[Entry] = []
            documents: list[Document] = []
            for line in batch:
                attempt = self._checked.attempts.get(line.record.id, 0)
                added, document = imported(line.record, serial + len(entries) + 1, self._clock.now_ms(), attempt)
                entries += added
                documents.append(document)
            after = (serial + len(entries), documents[-1].id)
            await self._put(_Running(before, after, self._run, self._epoch))
            write = Write(
                channel=channel, epoch=self._epoch, expected=serial, entries=entries, documents=documents, lives=lives
            )
            (result,) = await self._store.commit([write])
            if not isinstance(result, Committed):
                raise IdConflict(
                    f"channel {channel!r} was written while it was imported, and may have a part of the file; import "
                    "into another one with --channel"
                )
            serial, lives, before = result.serial, 0, after  # a channel with entries has no `lives`


def _batch(lines: Iterator[_Line]) -> list[_Line]:
    """Return the next records, for one commit; none at the end of the file."""
    batch: list[_Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += line.size
        if len(batch) == BATCH or size >= BATCH_BYTES:
            break
    return batch


async def _check_new(store: Store, channel: str, batch: list[_Line], path: Path) -> None:
    """Raise IdConflict if two lines have the same id, or if the id was used up by a channel of this name."""
    keys = [one.id if isinstance(one, MessageRecord) else command_key(one.id) for _, _, one in batch]
    _, taken = await store.messages(channel, keys)
    seen = set(taken)
    for line, key in zip(batch, keys, strict=True):
        if key in seen:
            error = IdConflict(
                f"id {line.record.id!r} is that of an earlier line, or of a message in a deleted channel {channel!r}; "
                "export the channel again, or import into another one with --channel"
            )
            raise at_line(error, line.number, path)
        seen.add(key)


async def is_importing(store: Store, channel: str) -> bool:
    """Return whether an import into `channel` runs, or has not ended. Raises StoreUnavailable."""
    return NOTE + channel in await store.notes(NOTE + channel)


async def undo_import(store: Store, channel: str, note: bytes | None = None) -> None:
    """Empty `channel` if an import into it has not ended. `note`: the note about it, if the caller has read it.

    Raises StoreUnavailable, StoreUnusable.
    """
    name = NOTE + channel
    if note is None and (note := (await store.notes(name)).get(name)) is None:
        return
    head = await head_of(store, channel)  # before the note is taken: an import that follows has another epoch
    running = decoded(note, _Running)
    if running is None:
        if head.serial:
            raise StoreUnusable(
                f"note {shown(name)} is damaged, so the messages of its channel may be a part of an export; delete the "
                "channel and import the file again, or restore a backup"
            )
        running = _Running()  # an empty channel has no part
    taken = msgspec.msgpack.encode(_Running(running.before, running.after, epoch=running.epoch))
    if not await store.note({name: taken}, expected={name: note}):  # so an import that still runs cannot end
        raise StoreUnavailable(f"unfinished import into channel {channel!r} was changed by another process; try again")
    await _remove_part(store, channel, running, epoch=head.epoch)
    await store.note({name: None}, expected={name: taken})


async def mend_import(store: Store, channel: str, note: bytes | None = None) -> None:
    """Empty `channel` like `undo_import`, or log that its note is damaged and leave it. Raises StoreUnavailable."""
    try:
        await undo_import(store, channel, note)
    except StoreUnusable as error:
        logger.error("an import that has not ended was not undone: %s", error)


async def undo_imports(store: Store) -> None:
    """Empty all channels whose import has not ended, except damaged ones. No import may run.

    Raises StoreUnavailable.
    """
    for name, note in (await store.notes(NOTE)).items():  # a damaged one must not keep other channels from service
        await mend_import(store, name.removeprefix(NOTE), note)


async def undo_stopped(store: Store) -> None:
    """Empty the channels of a shared store whose import has stored no note for `STOPPED_S`, until this is cancelled."""
    before: dict[str, bytes] = {}
    while True:
        await asyncio.sleep(STOPPED_S)
        with logs_errors("notes about imports were not read; the hub tries again"):
            before, last = await store.notes(NOTE), before
            for name, note in before.items():
                if last.get(name) == note:
                    with logs_errors("an import that has stopped was not undone; the hub looks again"):
                        await mend_import(store, name.removeprefix(NOTE), note)


async def _remove_part(store: Store, channel: str, running: _Running, *, epoch: str) -> None:
    """Empty the channel, if its last entry is that of the import in `running`, in its epoch or `epoch`.

    A channel gets another epoch with its first commit, which may land late, and from a restored backup.
    Raises StoreUnavailable.
    """
    head = await head_of(store, channel)
    if not head.serial or head.epoch not in (epoch, running.epoch):
        return
    # The epoch does not show whether the last entry is that of the import: a restored backup has another one.
    last = (await store.changes(channel, after=head.serial - 1, limit=1)).messages or []
    digests = ((one.id, one.sent.digest if isinstance(one, CommandState) else one.digest) for one in restored(last))
    ends = [(head.serial, id) for id, digest in digests if digest == IMPORTED]
    if not any(end in (running.before, running.after) for end in ends):
        if running.after[0]:  # else the import was refused before its first commit, so there is no part
            logger.warning("channel %s was written after a part of an import, so its messages stay", channel)
        return
    result = await store.delete_channel(channel, expected=head, used_up=(), until_ms=0)
    if isinstance(result, Conflict):
        raise StoreUnavailable(f"channel {channel!r} is written while its unfinished import is removed; try again")
    logger.warning("channel %s had a part of an import that has not ended; it is empty again", channel)


# -- lines ---------------------------------------------------------------------------------------------------------


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
    check_meta(record.meta, limits)
    return msgspec.structs.replace(record, parts=_checked_parts(record.parts, limits))


def _checked_parts(parts: list[Part], limits: Limits) -> list[Part]:
    if len(parts) > limits.parts:
        raise TooLarge(
            f"the message has {len(parts)} parts, the limit is {limits.parts} (Limits.parts); import it in a hub with "
            "a higher limit",
            limit=limits.parts,
        )
    as_json = replace(limits, message_bytes=ESCAPED * limits.message_bytes)  # `check_part` measures JSON
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


def _attempt(record: CommandRecord) -> int:
    """Return the attempt that has begun a step; 0 if the command is none."""
    attempt = record.data.get("attempt") if isinstance(record.data, dict) and record.name == STEP_NAME else None
    return attempt if type(attempt) is int and 0 < attempt < 2**50 else 0  # those of a request are below 2**53


def _check_small(limits: Limits, **values: Json) -> None:
    for name, value in values.items():
        check_json(value, limits.data_bytes, name, depth=limits.depth)


def imported(record: Record, serial: int, now_ms: int, attempt: int) -> tuple[list[Entry], Document]:
    """Return the entries and the document of a checked record, whose first entry is at `serial`.

    The store keeps the data of an old command as if the command expired now. `attempt` is the last one at a message, so
    that the ids of a later round are not those of its steps and questions; 0: it had no step.
    """
    ops = _message_ops(record) if isinstance(record, MessageRecord) else _command_ops(record)
    if attempt and isinstance(record, MessageRecord) and record.role == "user":
        ops.append(Claim(id=record.id, state="done", generation=attempt, at_ms=record.updated_at))
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
    """Return the create of a message, and its end, unless the message was complete from the beginning."""
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
