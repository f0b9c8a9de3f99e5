"""Exports: the lines of a channel's messages and commands, read from the store page by page.

Layer: hub. `core.records` defines the lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from tenuto.core.document import restore, restore_command
from tenuto.core.errors import Busy, Damaged, NotFound
from tenuto.core.limits import MIB
from tenuto.core.model import ASKED
from tenuto.core.records import FORMAT, End, Header, MessageRecord, Record, command_record, encode_line, message_record
from tenuto.core.requests import references
from tenuto.hub.keep.importing import is_importing
from tenuto.stores.base import Head, Store, head_of

PAGE = 200  # messages or commands in one read
PAGE_BYTES = 2 * MIB
COUNTS = 3  # counts of the messages before they count as missing: one may be deleted during a count


async def export_lines(store: Store, channel: str) -> AsyncGenerator[bytes]:
    """Yield the lines of `channel`, each with its line end. Messages that are created meanwhile are left out.

    Memory holds one page at a time. Raises NotFound for an empty channel, Busy if the channel is deleted meanwhile or
    has a part of an import, StoreUnavailable, and Damaged in place of the last line if messages are missing.
    """
    # An import may begin or end beside the read of the head.
    is_part = await is_importing(store, channel)
    head = await head_of(store, channel)
    if is_part or await is_importing(store, channel):
        raise Busy(f"channel {channel!r} has a part of an import that has not ended; export it after its end")
    if not head.serial:
        raise NotFound(f"channel {channel!r} has no messages; check its name with tenuto channels")
    digest = hashlib.sha256()
    counts = {"message": 0, "command": 0}
    damaged = kept = 0
    line = encode_line(Header(format=FORMAT, channel=channel))
    digest.update(line)
    yield line
    async for record in _records(store, channel, head):
        counts[str(record.__struct_config__.tag)] += 1
        damaged += record.is_damaged
        kept += isinstance(record, MessageRecord) and record.role == ASKED
        line = encode_line(record)
        digest.update(line)
        yield line
    await _check_count(store, channel, head, counts["message"] - kept)
    yield encode_line(
        End(messages=counts["message"], commands=counts["command"], sha256=digest.hexdigest(), damaged=damaged)
    )


async def _records(store: Store, channel: str, head: Head) -> AsyncIterator[Record]:
    after, more = 0, True
    kept: set[str] = set()  # ids of the values beside the `meta` of messages (`asked`) that were exported
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
                if (value := restore(one)).role == ASKED and not value.deleted:
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
        serial = max([serial + 1, *(restore(one).created for one in page.messages)])
    return found


def _check_same(now: Head, head: Head, channel: str) -> None:
    if now.epoch != head.epoch:
        raise Busy(f"channel {channel!r} was deleted while it was exported; export it again if it has messages")
