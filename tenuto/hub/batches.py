"""Batches of events in the forms that transports send, and the cache that shares them among feeds.

Layer: hub.

The events behind one cursor are the same for all feeds of a channel, so a batch is made and encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenuto.core.errors import StoreUnusable
from tenuto.core.events import MessageAppend, MessageCreate, MessagePart, MessageUpdate, ServerEvent, encode_json
from tenuto.core.message_state import part_bytes

FRAME_BYTES = 256 * 1024  # size of a WebSocket frame at most, unless a single event is larger
# Limit per channel for the text of batches that are kept for other feeds at the same cursor. A batch exists in up to
# three forms.
MAX_CACHED_BATCHES = 64
MAX_CACHED_BYTES = 2 * 1024 * 1024


class Behind(Exception):
    """Raised by `Feed.take`, because the feed's cursor is older than the events in memory.

    Call `await feed.catch_up()`, then `take` again.
    """


class EncodedBatch:
    """The events of one batch, in the forms that transports send. Each form is made once, on first use."""

    __slots__ = ("_body", "_frames", "_raw", "_sse", "channel", "cursor", "events")

    def __init__(self, channel: str, cursor: str, events: Sequence[ServerEvent]) -> None:
        """Wrap `events`; `cursor` is empty for ephemeral events."""
        self.channel = channel
        self.cursor = cursor
        self.events = events
        self._raw: list[bytes] | None = None
        self._sse: bytes | None = None
        self._body: dict[str, Any] | None = None
        self._frames: tuple[bytes, ...] | None = None

    @property
    def text_bytes(self) -> int:
        """Return an estimate of the bytes of text in the batch, without encoding it."""
        size = 0
        for event in self.events:
            if isinstance(event, MessageAppend):
                size += len(event.text)
            elif isinstance(event, MessagePart):
                size += part_bytes(event.part)
            elif isinstance(event, MessageCreate | MessageUpdate):
                size += sum(map(part_bytes, event.message.parts))
        return size

    @property
    def encoded_bytes(self) -> int:
        """Return how many bytes the events take as JSON."""
        return sum(map(len, self.raw))

    @property
    def raw(self) -> list[bytes]:
        """Return each event as JSON."""
        if self._raw is None:
            self._raw = [encode_json(event) for event in self.events]
        return self._raw

    @property
    def sse(self) -> bytes:
        """Return the batch as Server-Sent Events; only the last one carries the cursor as its id."""
        if self._sse is None and len(self.events) == 1 and self.cursor:  # hot path, with the same bytes as below
            event = self.events[0]
            kind = _APPEND if type(event) is MessageAppend else _type_of(event)
            self._sse = b"event: %b\ndata: %b\nid: %b\n\n" % (kind, self.raw[0], self.cursor.encode())
        if self._sse is None:
            pieces: list[bytes] = []
            for event, data in zip(self.events, self.raw, strict=True):
                pieces += (b"event: ", _type_of(event), b"\ndata: ", data, b"\n\n")
            if self.cursor:
                pieces[-1] = b"\nid: " + self.cursor.encode() + b"\n\n"
            self._sse = b"".join(pieces)
        return self._sse

    @property
    def body(self) -> dict[str, Any]:
        """Return the ASGI message that sends `sse`; it is shared, so callers must not change it."""
        if self._body is None:
            self._body = {"type": "http.response.body", "body": self.sse, "more_body": True}
        return self._body

    @property
    def frames(self) -> tuple[bytes, ...]:
        """Return the batch as texts of WebSocket frames; only the last one carries the cursor."""
        if self._frames is None:
            raw = self.raw
            opening = b'{"type":"events","channel":%b,' % encode_json(self.channel)
            cursor = b'"cursor":"%b",' % self.cursor.encode() if self.cursor else b""
            *first, last = raw if len(raw) == 1 else _groups(raw)  # hot path: one event
            self._frames = (
                *(b'%b"events":[%b]}' % (opening, group) for group in first),
                b'%b%b"events":[%b]}' % (opening, cursor, last),
            )
        return self._frames

    def frames_with(self, extra: str) -> tuple[bytes, ...]:
        """Return `frames` with `extra` in the cursor, made for one viewer and therefore not kept."""
        cursor = b'"cursor":"%b' % self.cursor.encode()
        *first, last = self.frames
        # the replacement is unambiguous, since only the channel's name stands before the cursor in the frame
        return (*first, last.replace(cursor, b"%b:%b" % (cursor, extra.encode()), 1))


def _type_of(event: ServerEvent) -> bytes:
    return str(event.__struct_config__.tag).encode()


def _groups(raw: Sequence[bytes]) -> list[bytes]:
    """Return the events, joined by commas, in groups of at most one frame where possible; an event is never split."""
    groups: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for data in raw:
        if group and size + len(data) > FRAME_BYTES:
            groups.append(b",".join(group))
            group, size = [], 0
        group.append(data)
        size += len(data)
    groups.append(b",".join(group))
    return groups


_APPEND = str(MessageAppend.__struct_config__.tag).encode()


class BatchCache:
    """The batches of one channel that are kept for other feeds at the same cursor, within a limit of memory."""

    __slots__ = ("appended", "ephemeral", "first", "live", "text_bytes", "unreadable")

    def __init__(self) -> None:
        # batches by the serial that they follow; dropped as soon as the channel's serial moves
        self.live: dict[int, EncodedBatch] = {}
        # the epoch and the event of the last commit, if it was a single append
        self.appended: tuple[str, MessageAppend] | None = None
        # batches that begin with `channel.attached`, by kind of attach, and serial or length of history
        self.first: dict[tuple[str, int], EncodedBatch] = {}
        # ephemeral batches, by the position in the presence state that they follow
        self.ephemeral: dict[int, EncodedBatch] = {}
        self.text_bytes = 0  # total size of the text in `live` and `first`
        # why no further batch can be made: the store cannot return the entries after the state in memory
        self.unreadable: StoreUnusable | None = None

    def keep_live(self, since: int, batch: EncodedBatch) -> EncodedBatch:
        """Keep and return the batch that follows serial `since`."""
        self._make_room(batch)
        self.live[since] = batch
        return batch

    def keep_first(self, key: tuple[str, int], batch: EncodedBatch) -> EncodedBatch:
        """Keep and return a batch that begins with `channel.attached`."""
        self._make_room(batch)
        self.first[key] = batch
        return batch

    def keep_ephemeral(self, position: int, batch: EncodedBatch) -> EncodedBatch:
        """Keep the ephemeral batch that follows `position`, if there is room for it, and return it."""
        if len(self.ephemeral) < MAX_CACHED_BATCHES:
            self.ephemeral[position] = batch
        return batch

    def forget(self) -> None:
        """Drop the batches of stored events."""
        self.live.clear()
        self.first.clear()
        self.appended = None
        self.text_bytes = 0

    def forget_presence(self) -> None:
        """Drop the ephemeral batches (presence and signals)."""
        self.first.clear()
        self.ephemeral.clear()

    def _make_room(self, batch: EncodedBatch) -> None:
        """Count the size of `batch`. Beyond the limit drop all others, because each feed may have another cursor."""
        size = batch.text_bytes
        is_full = len(self.live) + len(self.first) >= MAX_CACHED_BATCHES
        if is_full or self.text_bytes + size > MAX_CACHED_BYTES:
            self.forget()
        self.text_bytes += size
