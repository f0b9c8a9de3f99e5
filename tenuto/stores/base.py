"""The interface between the hub and a store; its docstrings are promises.

Layer: stores.

A store does one thing atomically: it appends entries to a channel if the channel is still at the serial and epoch
that the caller saw. The rules of the protocol are in `core`, not here.
`tests/stores/contract.py` is the full meaning of this page; every store passes it.

A store keeps entries until the next document of their message, and no longer: it returns a message as its last
document plus the entries after it. It need not keep an entry whose message gets a document in the same write.

A document with a `target`, once it is not open, has segments only while the message `target` has a document that is not
deleted. So the data of a command leaves the store in the transaction that stores the deletion of its target, or in that
of its reply if the target is deleted already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from tenuto.core.document import Document, Stored
from tenuto.core.errors import StoreUnavailable
from tenuto.core.model import ChannelSummary
from tenuto.core.ops import Entry, encode_op

# Age of an entry from which `tidy` asks for a document: a minute, less the time between two calls of it. By then, rows
# that share deleted text must be free.
OLD_MS = 45_000


class Head(NamedTuple):
    """The epoch and last serial of a channel; `("-", 0, 0, lives)` when it is empty."""

    epoch: str
    serial: int
    floor: int = 0  # cursors below this serial belong to a history that is no longer kept
    # Of an empty channel: a number that grows with each deletion; 0 if it was never deleted, or if its used-up ids are
    # free again. With entries it is 0, since the epoch names the life of the channel.
    lives: int = 0


NOTHING = Head("-", 0)  # a channel that never existed


class Write(Struct, frozen=True, kw_only=True, gc=False):
    """Entries and documents of one channel that a store must keep together or not at all.

    `entries` carry the serials `expected + 1`, `expected + 2` … An empty channel (`expected` 0) begins with
    `epoch`, if its head has these `lives`; otherwise `epoch` and `floor` must equal the channel's. A write without
    entries brings documents only. The first entry of each message comes with a document. A message has one at most.
    """

    channel: str
    epoch: str
    expected: int
    entries: Sequence[Entry] = ()
    documents: Sequence[Document] = ()
    lives: int = 0
    floor: int = 0

    def fits(self, head: Head) -> bool:
        """Return whether the write may be stored in a channel at `head`."""
        if not self.expected:
            return not head.serial and self.lives == head.lives
        return (self.epoch, self.expected, self.floor) == (head.epoch, head.serial, head.floor)


class Committed(NamedTuple):
    """The write is stored, as durably as the store is configured."""

    serial: int


class Conflict(NamedTuple):
    """The write or deletion was refused as a whole, because the channel is at `head`."""

    head: Head


class Changes(NamedTuple):
    """The messages that changed after a serial; `messages` is None if there are more than the caller's limit."""

    head: Head
    newest: str | None  # id of the message that was created last, even if it is deleted
    messages: list[Stored] | None


class Tail(NamedTuple):
    """The entries after a serial, in order; None if they are not all stored one by one, or exceed the limit."""

    head: Head
    entries: Sequence[Entry] | None


class StoredPage(NamedTuple):
    """Messages without deleted ones, in the order of `created`. `more`: the page has not all that were asked for."""

    head: Head
    messages: list[Stored]
    more: bool


class Fact(NamedTuple):
    """What retention knows of one message or command."""

    id: str
    version: int  # serial of its last change
    is_counted: bool  # True: a message that is not deleted
    size_bytes: int
    at_ms: int | None  # time of its end or of its last edit; None if its document is damaged
    is_busy: bool  # it streams, waits, is the target of an open command, or has entries that no document contains


class Facts(NamedTuple):
    """Facts about the messages and commands of a channel, in the order of their last changes."""

    head: Head
    facts: list[Fact]


class Hold(Struct, frozen=True):
    """A small value of one node. It ends at `until_ms` by the store's clock; with None, with the node's lease."""

    value: bytes
    until_ms: int | None = None


class Renewal(NamedTuple):
    """The leases of all nodes after one was renewed.

    If `lease` differs from the last renewal, the store may have lost the holds of the node: put them again.
    """

    now_ms: int  # the store's clock: ms since 1970
    nodes: frozenset[str]  # the nodes whose leases run
    lease: str  # names the lease of the node that renewed it
    ended: int = 0  # leases that ended since the store was made; one that ends between two renewals counts, too


class Notice(Struct, frozen=True, array_like=True):
    """A hint of one node for the others about a channel, or with an empty `channel` about the node itself.

    The hub gives `body` its form.
    """

    kind: str  # "moved", "here" or "signal"; a hub ignores the other kinds of a newer release
    channel: str
    body: bytes


class CommitUnknown(StoreUnavailable):
    """The store does not know whether it stored the writes. Read the channels again before the next decision."""


class StoreReplaced(StoreUnavailable):
    """The server goes on from an earlier state of the store, so stored writes may be lost, or its tables have changed.

    Open the store again.
    """


OVER_MS = 60_000  # a renewal that failed may arrive as late as that; so long an ended lease stays ended


class Store(Protocol):
    """A place that keeps logs. One instance belongs to one event loop, between `open` and `close`.

    Any method may raise StoreUnavailable: the call changed no data, a later call may work, and the store need not be
    reopened for that. `commit` may also raise CommitUnknown.
    """

    name: str  # "memory", "sqlite" or "postgresql"; for logs and statistics
    is_exclusive: bool  # True: no other process can have the store open, so writers in other processes are dead

    async def open(self) -> None:
        """Prepare the store for use. Raises StoreInUse, StoreUnusable or StoreUnavailable, with the remedy."""

    async def close(self) -> None:
        """Finish running work and release all resources. A second call does nothing."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store all writes that do not conflict, in one transaction; returns one result per write, in order.

        When this returns, each Committed write is durable and every later read sees it. There may be one write per
        channel.
        """

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        """Return the current heads of `channels`, in order."""

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        """Return the messages and commands of `channel` whose last entry is above serial `after`, also deleted ones."""

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        """Return all entries of `channel` after serial `after`, if their operations take at most `limit_bytes`.

        They are None if one of them is no longer stored, because a document contains it, or if the channel is before
        `after`. Then `changes` returns the changed messages whole.
        """

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        """Return the messages and commands `ids` that exist, also deleted ones and ids used up by a deleted channel."""

    async def page(
        self, channel: str, *, before: int | None, after: int | None = None, limit: int, limit_bytes: int
    ) -> StoredPage:
        """Return up to `limit` messages (no commands) created before serial `before`, at most `limit_bytes`.

        The newest come first; with `after`, those created after that serial, the oldest first. At least one message is
        returned if one exists. Sizes are those of the documents; later entries are not counted.
        """

    async def open_channels(self) -> list[str]:
        """Return the channels that have open messages or commands."""

    async def open_documents(self, channel: str) -> list[Stored]:
        """Return the messages and commands of `channel` with an open document: they stream, or wait for an agent."""

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """Empty `channel` and forget its epoch, if it is at `expected`; returns the head that it then has.

        Its text leaves the disk within a minute. Until `until_ms`, `messages` still returns the ids `used_up`, as
        deleted, and the head keeps its `lives`. The deletion of an empty channel without `used_up` changes nothing.
        """

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        """Return the names of at most `limit` channels that are not empty, in order, beginning after name `after`."""

    async def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        """Return at most `limit` channels that are not empty, in order of their names, beginning after name `after`.

        `within` lists names, and prefixes that end in `*`; none begins with another one's prefix. The counts are those
        of the stored documents. Of the `Document.at_ms` of all writes, `created_ms` is the lowest and `updated_ms` the
        highest.
        """

    async def newest_ms(self) -> int:
        """Return the highest `updated_ms` of all channels that are not empty; 0 if all are empty."""

    async def facts(self, channel: str, *, after: int, limit: int) -> Facts:
        """Return facts about at most `limit` messages and commands whose document has a version above `after`.

        They are in the order of these versions; deleted ones are included.
        """

    async def prune(self, channel: str, *, epoch: str, versions: Mapping[str, int]) -> list[str]:
        """Remove the messages and commands `versions`, with their text, in one transaction. Return the ids that went.

        Those stay whose document has another version by now, or that are busy (`Fact.is_busy`). None goes if the
        channel has another epoch. The `floor` rises to the highest version that went; the serial stays. Text leaves the
        disk within a minute.
        """

    async def commands(self, channel: str, *, after: str | None, limit: int) -> list[str]:
        """Return the ids of at most `limit` commands of `channel`, in order, beginning after the id `after`."""

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the hub's notes under names that begin with `prefix`."""

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        """Keep small values for the hub, as durably as entries, all or none; None deletes a note.

        Return False, and keep none of them, if a note named in `expected` has another value (None: it exists).
        """

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """Do housekeeping: free space and finish pending deletions. The hub calls this every few seconds.

        Removes the segments of documents that are not open and whose `until_ms` has passed, some in each call. Returns
        (channel, message id) of messages that should get a new document, because their entries since the last one are
        almost a minute old, take more than 64 MiB in all, share rows with deleted text, or delete the message.
        """

    async def wipe(self, *, goes_on: bool = False) -> bool | None:
        """Go on with the removal of deleted text from the disk; call again, with `goes_on`, while this returns False.

        True: no file of the store holds text that was deleted or pruned before the last call without `goes_on`.
        None: the store cannot know, or damage keeps such text.
        """

    def stats(self) -> dict[str, int]:
        """Return counters: `commits`, `row_bytes` (size of all rows handed to the database), and the store's own."""


class Notices(Protocol):
    """The way of notices between the nodes of a store: the store itself, or a bus."""

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send `notices` to all instances that listen, as far as it goes: they may get lost, or arrive twice or late.

        A call delays no commit.
        """

    def listen(self, on_notice: Callable[[Notice | None], None]) -> None:
        """Call `on_notice`, which must not raise, with each notice from now on, until the instance is closed.

        None means that notices may have been missed: at first, once the instance listens, and for example after a
        connection was broken. The notices of this instance may be among them.
        """


class SharedStore(Store, Notices, Protocol):
    """A store that is not exclusive: several hubs, each of which is a node, may have it open."""

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """Renew the lease of `node` for `term_ms`, and put holds under their names; None drops one of this node.

        A hold replaces that of another node. The holds without `until_ms` end with the lease; a node that returns after
        that has another `lease`. Term 0 ends the lease at once and for good: a call of this node that the store
        carries out later, within `OVER_MS`, has no effect. A call that failed may be carried out as late as that, too.
        Holds need not survive a restart of the store.
        """

    async def holds(self, prefix: str) -> Mapping[str, tuple[str, Hold]]:
        """Return the holds that have not ended, under names that begin with `prefix`, each with its node."""


class Bus(Notices, Protocol):
    """A server beside a shared store that carries the notices. A node gets those of the channels that it follows.

    One instance belongs to one event loop, between `open` and `close`. While the server is away, notices are lost.
    `open` waits for it for five seconds at most, and each other call for two.
    """

    name: str  # "redis"; for logs

    async def open(self, name: str) -> None:
        """Begin to carry the notices of the store `name`, apart from those of other stores.

        Raises StoreUnusable, with the remedy, if the settings are wrong. A server that is away is no error.
        """

    async def close(self) -> None:
        """Release all resources, and forget the listeners and the followed channels. A second call does nothing."""

    def follow(self, channel: str) -> None:
        """Carry the notices of `channel` to this node, soon. The listeners get a notice of it once that is so."""

    def unfollow(self, channel: str) -> None:
        """Carry the notices of `channel` to this node no more."""

    def stats(self) -> dict[str, int]:
        """Return counters, whose names begin with `bus_`."""


def unreadable(path: str) -> str | None:
    """Return why the file at `path` cannot be read; None if it can."""
    try:
        with open(path, "rb"):
            return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


async def head_of(store: Store, channel: str) -> Head:
    """Return the current head of one channel. Raises StoreUnavailable."""
    (head,) = await store.heads([channel])
    return head


def tail_of(head: Head, found: Iterable[Entry], *, after: int, limit_bytes: int) -> Tail:
    """Return the entries after serial `after`, of those that a store has `found` in any order (`Store.entries`)."""
    entries = sorted((entry for entry in found if entry.serial > after), key=lambda entry: entry.serial)
    if [entry.serial for entry in entries] != list(range(after + 1, head.serial + 1)) or head.serial < after:
        return Tail(head, None)
    is_small = sum(len(encode_op(entry.op)) for entry in entries) <= limit_bytes
    return Tail(head, entries if is_small else None)


def next_lives(lives: int, until_ms: int) -> int:
    """Return the `lives` of a channel that is emptied until `until_ms`, when it had `lives` before.

    A store forgets the number once the clock has passed it. It is at least `until_ms`, so a later deletion does not
    repeat it.
    """
    return max(lives + 1, until_ms)
