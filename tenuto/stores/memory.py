"""The memory store: keeps the promises of `Store` in plain dicts, for the life of the process.

Layer: stores.

For tests, and for channels that need not survive. It keeps its content between `close` and `open`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenuto.core.document import Document, Segment, Stored, changed_ms, used_up_head
from tenuto.core.model import ChannelSummary
from tenuto.core.names import COMMAND_MARK, matches
from tenuto.core.ops import Append, Delete, Entry
from tenuto.stores.base import (
    NOTHING,
    OLD_MS,
    Changes,
    Committed,
    Conflict,
    Fact,
    Facts,
    Head,
    StoredPage,
    Tail,
    Write,
    next_lives,
    tail_of,
)

MAX_ENTRY_BYTES = 64 * 1024 * 1024


class _Message:
    """A stored message: its last document with all segments, and the entries after the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.segments: list[Segment] = list(document.segments)
        self.entries: list[Entry] = []
        self.since_ms: int | None = None  # time of the first entry in `entries`, by the clock of `tidy`

    @property
    def last(self) -> int:
        return self.entries[-1].serial if self.entries else self.document.version

    @property
    def is_deleted(self) -> bool:
        return self.document.is_deleted or any(type(entry.op) is Delete for entry in self.entries)

    def stored(self) -> Stored:
        return Stored(
            id=self.document.id, head=self.document.head, segments=list(self.segments), entries=list(self.entries)
        )

    def take_document(self, document: Document) -> None:
        if document.version < self.document.version:
            return  # a later one is stored
        self.document = document
        if document.fresh:
            self.segments.clear()
        self.segments += document.segments
        self.entries = [entry for entry in self.entries if entry.serial > document.version]
        if not self.entries:
            self.since_ms = None


class _Channel:
    def __init__(self, epoch: str, *, lives: int = 0) -> None:
        self.epoch = epoch
        self.lives = lives  # of an empty channel
        self.serial = self.floor = 0
        self.created_ms = self.updated_ms = 0
        self.messages: dict[str, _Message] = {}

    @property
    def head(self) -> Head:
        return Head(self.epoch, self.serial, self.floor, self.lives)

    def summary(self, name: str) -> ChannelSummary:
        documents = [message.document for message in self.messages.values()]
        sizes = [one.size_bytes for one in documents if one.created and not one.is_deleted]
        return ChannelSummary(
            channel=name,
            created_ms=self.created_ms,
            updated_ms=self.updated_ms,
            messages=len(sizes),
            size_bytes=sum(sizes),
        )

    def note_time(self, documents: Sequence[Document]) -> None:
        times = [one.at_ms for one in documents]
        if not times:
            return
        self.updated_ms = max([self.updated_ms, *times])
        self.created_ms = min([self.created_ms, *times] if self.serial else times)  # serial 0: they are the first ones

    def drop_data_of_deleted(self, documents: Sequence[Document]) -> None:
        """Remove the segments of documents whose target is deleted, as far as the write of `documents` causes this."""
        deleted = {document.id for document in documents if document.is_deleted}
        targets = [self.messages[one.target] for one in documents if one.target in self.messages]
        deleted |= {one.document.id for one in targets if one.document.is_deleted}
        for message in self.messages.values() if deleted else ():
            if message.document.target in deleted and not message.document.is_open:
                message.segments.clear()

    def facts(self) -> list[Fact]:
        """Return the facts about all messages and commands, in the order of their last changes."""
        targets = {one.document.target for one in self.messages.values() if one.document.is_open}
        documents = sorted((one.document for one in self.messages.values()), key=lambda one: one.version)
        return [
            Fact(
                id=one.id,
                version=one.version,
                is_counted=bool(one.created) and not one.is_deleted,
                size_bytes=one.size_bytes,
                at_ms=changed_ms(one.id, one.head),
                is_busy=one.is_open or one.id in targets or bool(self.messages[one.id].entries),
            )
            for one in documents
        ]

    def by_creation(self, *, newest_first: bool) -> list[_Message]:
        return sorted(self.messages.values(), key=lambda message: message.document.created, reverse=newest_first)


class MemoryStore:
    """A store in memory. Its data lives as long as the instance. `Store` describes its methods."""

    name = "memory"
    is_exclusive = True

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        # for ids of deleted channels (channel, message id): the time in ms until which they cannot be used
        self._used_up: dict[tuple[str, str], int] = {}
        self._lives: dict[str, int] = {}  # `Head.lives` of deleted channels
        self._now_ms: int | None = None  # time of the last call of `tidy`
        self._commits = 0
        self._notes: dict[str, bytes] = {}

    async def open(self) -> None:
        """Open the store (`Store.open`)."""

    async def close(self) -> None:
        """Close the store (`Store.close`). The content stays."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        results = [self._commit(write) for write in writes]
        self._commits += any(isinstance(result, Committed) for result in results)
        return results

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        return [self._find(channel).head for channel in channels]

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        known = self._find(channel)
        changed = [message.stored() for message in known.messages.values() if message.last > after]
        newest = next((one.document.id for one in known.by_creation(newest_first=True) if one.document.created), None)
        return Changes(known.head, newest, changed if len(changed) <= limit else None)

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        known = self._find(channel)
        found = [entry for message in known.messages.values() if message.last > after for entry in message.entries]
        return tail_of(known.head, found, after=after, limit_bytes=limit_bytes)

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        known = self._find(channel)
        found = {}
        for message_id in ids:
            if message_id in known.messages:
                found[message_id] = known.messages[message_id].stored()
            elif (channel, message_id) in self._used_up:
                found[message_id] = Stored(id=message_id, head=used_up_head(message_id), segments=[], entries=[])
        return known.head, found

    async def page(
        self, channel: str, *, before: int | None, after: int | None = None, limit: int, limit_bytes: int
    ) -> StoredPage:
        known = self._find(channel)
        page: list[Stored] = []
        size_bytes = 0
        for message in known.by_creation(newest_first=after is None):
            created = message.document.created  # serial of the message's create; 0 for a command
            is_here = created > (after or 0) and (before is None or created < before)
            if not created or message.is_deleted or not is_here:
                continue
            size_bytes += message.document.size_bytes
            if len(page) == limit or (size_bytes > limit_bytes and page):
                return StoredPage(known.head, page, more=True)
            page.append(message.stored())
        return StoredPage(known.head, page, more=False)

    async def open_channels(self) -> list[str]:
        return [
            name
            for name, known in self._channels.items()
            if any(message.document.is_open for message in known.messages.values())
        ]

    async def open_documents(self, channel: str) -> list[Stored]:
        messages = self._find(channel).messages.values()
        return [message.stored() for message in messages if message.document.is_open]

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        head = self._find(channel).head
        if head != expected:
            return Conflict(head)
        if head.serial or used_up:
            self._lives[channel] = next_lives(self._lives.get(channel, 0), until_ms)
            self._used_up |= {(channel, message_id): until_ms for message_id in used_up}
            self._channels.pop(channel, None)
        return self._find(channel).head

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        return sorted(name for name in self._channels if after is None or name > after)[:limit]

    async def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        wanted = [
            name
            for name in sorted(self._channels)
            if (after is None or name > after) and any(matches(one, name) for one in within)
        ]
        return [self._channels[name].summary(name) for name in wanted[:limit]]

    async def newest_ms(self) -> int:
        return max((known.updated_ms for known in self._channels.values()), default=0)

    async def facts(self, channel: str, *, after: int, limit: int) -> Facts:
        known = self._find(channel)
        return Facts(known.head, [one for one in known.facts() if one.version > after][:limit])

    async def prune(self, channel: str, *, epoch: str, versions: Mapping[str, int]) -> list[str]:
        known = self._find(channel)
        if known.epoch != epoch:
            return []
        gone = [one for one in known.facts() if versions.get(one.id) == one.version and not one.is_busy]
        for one in gone:
            del known.messages[one.id]
            known.floor = max(known.floor, one.version)
        return [one.id for one in gone]

    async def commands(self, channel: str, *, after: str | None, limit: int) -> list[str]:
        ids = [one for one in self._find(channel).messages if one.startswith(COMMAND_MARK)]
        return sorted(one for one in ids if after is None or one > after)[:limit]

    async def notes(self, prefix: str) -> dict[str, bytes]:
        return {name: value for name, value in self._notes.items() if name.startswith(prefix)}

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        if any(self._notes.get(name) != value for name, value in (expected or {}).items()):
            return False
        for name, value in values.items():
            self._notes.pop(name, None)
            if value is not None:
                self._notes[name] = value
        return True

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        self._now_ms = now_ms
        self._used_up = {key: until_ms for key, until_ms in self._used_up.items() if until_ms > now_ms}
        self._lives = {channel: lives for channel, lives in self._lives.items() if lives > now_ms}  # see `next_lives`
        for known in self._channels.values():
            for message in known.messages.values():
                until_ms = message.document.until_ms
                if until_ms is not None and until_ms <= now_ms and not message.document.is_open:
                    message.segments.clear()
        waiting = [
            (channel, message)
            for channel, known in self._channels.items()
            for message in known.messages.values()
            if message.entries
        ]
        texts = [entry.op.text for _, message in waiting for entry in message.entries if type(entry.op) is Append]
        is_heavy = sum(map(len, texts)) > MAX_ENTRY_BYTES
        due = []
        for channel, message in waiting:
            if message.since_ms is None:
                message.since_ms = now_ms
            if is_heavy or message.is_deleted or now_ms - message.since_ms >= OLD_MS:
                due.append((channel, message.document.id))
        return due

    async def wipe(self, *, goes_on: bool = False) -> bool:
        """Return True: no file holds deleted text (`Store.wipe`)."""
        return True

    def stats(self) -> dict[str, int]:
        return {"commits": self._commits, "row_bytes": 0, "channels": len(self._channels)}

    def _find(self, channel: str) -> _Channel:
        """Return the channel; an empty one that is kept nowhere if it has no entries."""
        return self._channels.get(channel) or _Channel(NOTHING.epoch, lives=self._lives.get(channel, 0))

    def _commit(self, write: Write) -> Committed | Conflict:
        channel = self._find(write.channel)
        if not write.fits(channel.head):
            return Conflict(channel.head)
        if not write.expected:
            if not write.entries:
                return Committed(0)  # documents of an empty channel are left out
            channel = self._channels[write.channel] = _Channel(write.epoch)
        for document in write.documents:
            known = channel.messages.get(document.id)
            if known is None:
                channel.messages[document.id] = _Message(document)
            else:
                known.take_document(document)
        channel.note_time(write.documents)
        channel.drop_data_of_deleted(write.documents)
        for entry in write.entries:
            message = channel.messages[entry.op.id]
            if entry.serial > message.document.version:
                if not message.entries:
                    message.since_ms = self._now_ms
                message.entries.append(entry)
        channel.serial += len(write.entries)
        return Committed(channel.serial)
