"""What the hub asks of a store; its comments are promises.

You are in `stores`: where logs are kept. A store does one thing atomically: take entries of a channel if the channel
still stands at the serial and epoch that the caller saw. The rules of the protocol are in `core`, not here.
`holdfast.testing.StoreContract` is the full meaning of this page; every store passes it.

Entries are kept until the next document of their message, and no longer: what a store gives back for a message is
always its last document plus the entries after it. An entry whose message gets a document in the same write need
not be kept at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from holdfast.core.document import Document, Stored
from holdfast.core.errors import StoreUnavailable
from holdfast.core.ops import Entry


class Head(NamedTuple):
    """Where a channel stands; `("-", 0, 0)` when it is empty."""

    epoch: str
    serial: int
    floor: int = 0  # cursors below it are of a history no longer kept


NOTHING = Head("-", 0, 0)


class Write(Struct, frozen=True, kw_only=True, gc=False):
    """Entries and documents of one channel, to be stored together or not at all.

    `entries` carry the serials `expected + 1`, `expected + 2` … An empty channel (`expected` 0) is born with
    `epoch`; otherwise `epoch` must be the one it has. A write without entries only brings documents.
    Every message's first entry comes with a document.
    """

    channel: str
    epoch: str
    expected: int
    entries: Sequence[Entry] = ()
    documents: Sequence[Document] = ()


class Committed(NamedTuple):
    """The write is stored, as durably as the store is set."""

    serial: int


class Conflict(NamedTuple):
    """Nothing of the write is stored: the channel stands at `head`."""

    head: Head


class Changes(NamedTuple):
    """The messages that changed after a serial; None when there are more than the caller asked for."""

    head: Head
    newest: str | None  # id of the message created last, deleted or not
    messages: list[Stored] | None


class StoredPage(NamedTuple):
    """Messages, newest first by `created`, deleted ones left out; `more`: there are older ones."""

    head: Head
    messages: list[Stored]
    more: bool


class Moved(NamedTuple):
    """Heads of the channels that moved since a token; `channels` is None when the store cannot tell (all may have)."""

    token: str
    channels: Mapping[str, Head] | None


class CommitUnknown(StoreUnavailable):
    """It is not known whether the writes were stored. Read the channels anew before deciding again."""


class Store(Protocol):
    """Keeps logs. One instance belongs to one event loop, between `open` and `close`.

    Any method may raise StoreUnavailable: nothing was changed, later it may work, and then it does without
    being reopened. `commit` may also raise CommitUnknown.
    """

    name: str  # "memory", "sqlite": for logs and statistics
    is_exclusive: bool  # no other process can have it open: in-process writers of others are dead

    async def open(self) -> None:
        """Make ready. Raises StoreInUse, StoreUnusable or StoreUnavailable, saying what to do."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything. A second call does nothing."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store all writes that do not conflict, atomically together; one answer per write, in order.

        When this returns, what is Committed is durable and every later read sees it. At most one write per channel.
        """

    async def head(self, channel: str) -> Head:
        """Where `channel` stands now."""

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        """The messages and commands of `channel` whose last entry is above serial `after`, deleted ones too."""

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        """Those of the messages and commands `ids` that exist, deleted ones too, and what a deleted channel used up."""

    async def page(self, channel: str, *, before: int | None, limit: int, limit_bytes: int) -> StoredPage:
        """Up to `limit` messages (no commands) created before serial `before`, of `limit_bytes` but at least one.

        Bytes are counted as the documents say; entries since then come on top.
        """

    async def open_channels(self) -> list[str]:
        """The channels that have open messages or commands."""

    async def open_documents(self, channel: str) -> list[Stored]:
        """The messages and commands of `channel` whose document is open: they stream, or wait for somebody."""

    async def moved(self, token: str | None) -> Moved:
        """What moved since `token` was given out; with None, or a token of another life, None or all there is."""

    async def delete_channel(self, channel: str, *, used_up: Sequence[str], until_ms: int) -> Head:
        """Empty `channel`, epoch and all; returns the head it had. Its text is gone from disk within a minute.

        Until `until_ms`, `messages` still knows the ids `used_up`, as deleted.
        """

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        """Names of channels that are not empty, in order, `after` one of them; at most `limit`."""

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """What the hub noted under names that begin with `prefix`."""

    async def note(self, values: Mapping[str, bytes | None]) -> None:
        """Keep small values for the hub, as durably as entries, all or none; None forgets one."""

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """Housekeeping, called every few seconds: give back space, write back what waits.

        Returns (channel, message id) of messages that should get a document because the entries they pin
        are almost a minute old, outweigh 64 MiB, share rows with deleted text, or delete the message.
        """

    def stats(self) -> dict[str, int]:
        """Counters: `commits`, `row_bytes` (of all rows handed to the database) and what else is worth knowing."""
