"""The engine of the SQLite store, without threads: commits, reads, housekeeping.

Layer: stores. This code runs on the store's thread; other threads may call `stats` only.

The state in memory (channels, the log's pins) mirrors the file and changes only after a commit. So a failed
transaction needs no repair.

A damaged message is returned as a failed one without text (`damaged_head`), so that all other messages of its channel
stay readable. One whose id has changed is left out, because no read finds it under that id. A channel whose row is
damaged cannot be read at all.

`Space` measures the file and its free space.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from tenuto.core.document import DAMAGE, Stored, damaged_head, used_up_head
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores.base import Changes, Committed, Conflict, Facts, Head, StoredPage, Tail, Write, tail_of
from tenuto.stores.sqlite.channels import ChannelRow, Channels, Plan, begin_epochs
from tenuto.stores.sqlite.documents import Documents, Found
from tenuto.stores.sqlite.file import FREE, SET_ASIDE, SqliteFile
from tenuto.stores.sqlite.log import CommitLog, LogEntry, Tracked
from tenuto.stores.sqlite.slots import SLOT_BYTES, is_damage, opened, room_for, sealed

logger = logging.getLogger("tenuto.stores")


MEASURED_BYTES = 256 * 1024  # the file is measured again after writes of so many bytes
WORTH_BYTES = 16 * 1024 * 1024  # free space below this is not reported in the log


class Space:
    """Measures the file, and logs once when more than half of it is free."""

    def __init__(self, file: SqliteFile, documents: Documents) -> None:
        self._file = file
        self._documents = documents
        self._rollbacks = -1  # the first call of `count_free` counts
        self.bytes = self.free_bytes = 0  # as `measure` last found them
        self.measured_at = 0  # `Documents.row_bytes` at that time
        self._is_reported = False  # True: the file was mostly free at the last `measure`

    def count_free(self) -> None:
        """Count the free slots again after a rollback, which spoils the count. A damaged list of them is set aside."""
        if self._rollbacks != (rollbacks := self._file.rollbacks):
            try:
                self._documents.count_free()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._begin_free()
            self._rollbacks = rollbacks

    def measure(self, log: CommitLog) -> None:
        """Measure the file, with its WAL. Free are its unused pages, and the slots without text in them."""
        self.measured_at = self._documents.row_bytes
        self.count_free()
        self.bytes, free_bytes = space_in(self._file.db, self._documents)
        self.free_bytes = free_bytes + log.slot_bytes - log.live_bytes
        is_mostly_free = self.free_bytes * 2 > self.bytes and self.free_bytes >= WORTH_BYTES
        if is_mostly_free and not self._is_reported:
            logger.warning(
                "store file %s has %d bytes, of which %d are free; new messages use them, and `tenuto compact` gives "
                "them back while the server is stopped",
                *(self._file.path, self.bytes, self.free_bytes),
            )
        self._is_reported = is_mostly_free

    def _begin_free(self) -> None:
        """Begin a new table of free slots. The damaged one gets another name, because SQLite cannot remove it."""
        with self._file.transaction() as db:
            (number,) = db.execute(
                "SELECT count(*) FROM sqlite_master WHERE name GLOB ?", (f"{SET_ASIDE}*",)
            ).fetchone()
            db.execute(f"ALTER TABLE free RENAME TO {SET_ASIDE}{number}")
            db.execute(FREE)
        self._documents.free_bytes = 0
        logger.error(
            "store file %s: its list of free slots is damaged, and a new one begins; no message is affected. Until "
            "`tenuto compact` has made the file anew, backups of it fail, because they are checked",
            self._file.path,
        )


def space_in(db: sqlite3.Connection, documents: Documents) -> tuple[int, int]:
    """Return the size of a file in bytes, and how many are free apart from those in its log."""
    pages, page_bytes, unused = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size", "freelist_count")
    )
    return pages * page_bytes, unused * page_bytes + documents.free_bytes


class WholeMessages:
    """Reads messages, and notes the damage that it finds."""

    def __init__(self, path: Path, channels: Channels) -> None:
        self.messages: set[int] = set()  # keys of the damaged messages that were found
        self.renamed: set[int] = set()  # those of them that have another id than the index of ids
        self.damaged: set[str] = set()  # names of the channels that cannot be read, each logged once
        self._path = path
        self._channels = channels
        self._documents = channels.documents

    def read(self, db: sqlite3.Connection, log: CommitLog, channel: int, wanted: Mapping[int, str]) -> list[Stored]:
        """Return the stored form of a channel's documents, given by key and id, each with its entries, in order.

        Documents that are added to `renamed` are left out.
        """
        entries, damaged = log.entries(db, wanted)
        stored = []
        for key, message_id in wanted.items():
            try:
                if key in damaged:
                    raise StoreUnusable(f"message {message_id!r} is damaged ({damaged[key]}); restore a backup")
                head, segments = self._documents.read(key, message_id, channel)
            except (StoreUnusable, sqlite3.DatabaseError) as error:
                if not is_damage(error):
                    raise
                stored += self._damaged(log, channel, key, message_id, error)
            else:
                stored.append(Stored(id=message_id, head=head, segments=segments, entries=entries.get(key, [])))
        return stored

    def _damaged(self, log: CommitLog, channel: int, key: int, message_id: str, error: Exception) -> list[Stored]:
        """Return the stand-in for a damaged message; none if its id has changed."""
        if key not in self.messages:
            self.messages.add(key)
            logger.error("store file %s: message %r cannot be read: %s", self._path, message_id, error)
        with suppress(sqlite3.DatabaseError):  # the index is damaged, too
            found = self._documents.find(channel, message_id)
            if found is None or found.key != key:
                self.renamed.add(key)
                return []
        created, version = self._documents.place(key)
        tracked = log.pinned.get(key)
        version = max(version, created, tracked.last if tracked is not None else 0)
        return [Stored(id=message_id, head=damaged_head(message_id, created, version), segments=[], entries=[])]

    def is_damaged(self, tracked: Tracked) -> bool:
        """Return whether a message is known to be damaged, or its channel: it gets no document."""
        return tracked.key in self.messages or tracked.channel in self.damaged

    def channel(self, name: str) -> ChannelRow | None:
        """Return a channel that exists, as `Channels.find` does; None if it is damaged."""
        try:
            if (channel := self._channels.find(name)) is not None:
                return channel
            reason = "its row is not in the index"
        except StoreUnusable as error:
            reason = str(error)
        if name not in self.damaged:
            self.damaged.add(name)
            logger.error("store file %s: channel %r cannot be read: %s", self._path, name, reason)
        return None

    def load_log(self, file: SqliteFile) -> tuple[CommitLog, int]:
        """Return the log, and the highest key in its rows. Go on without its damaged rows.

        Such a row may hold the last entries of any open message, so all of them are damaged. A serial may be lost with
        it, so all channels begin new epochs.
        """
        log = CommitLog()
        try:
            highest = log.load(file.db, self._channels.tracked)
            if not log.damaged:
                return log, highest
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            logger.error("store file %s: %s", self._path, error)
        rows = _log_rows(file.db)  # outside of the transaction: SQLite refuses writes after a damaged page was read
        with file.transaction() as db:
            lost = _keep_whole(db, rows)
            log = CommitLog()
            highest = log.load(db, self._channels.tracked)
            if lost:
                logger.error(
                    "store file %s: %d rows of the log are damaged; the messages that were open when the last process "
                    "ended are damaged too, and all channels begin new epochs; restore a backup",
                    self._path,
                    lost,
                )
                self._documents.mark_damaged(log.pinned)
                begin_epochs(db)
        return log, highest


def _log_rows(db: sqlite3.Connection) -> list[tuple[int, bytes | None]]:
    """Return number and body of each row of the log, without a body for one that cannot be read."""
    rows: list[tuple[int, bytes | None]] = []
    (count,) = db.execute("SELECT count(*) FROM log").fetchone()
    while len(rows) < count:
        try:
            rows.extend(db.execute("SELECT id, CAST(body AS BLOB) FROM log ORDER BY id LIMIT ?, -1", (len(rows),)))
            break
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            rows.append((0, None))  # go on behind the row that cannot be read
    return rows


def _keep_whole(db: sqlite3.Connection, rows: list[tuple[int, bytes | None]]) -> int:
    """Write the whole rows of the log anew, in the transaction of the caller. Return how many are lost.

    The checksum of a row covers its number, so a row whose number has changed is whole under one that is missing.
    """
    missing = sorted(set(range(1, len(rows) + 1)).difference(slot for slot, _ in rows))[:MOST_MISSING]
    whole: dict[int, bytes] = {}
    for slot, row in rows:
        # whole under its number, or under a missing one, or under its number with one bit put right
        for number, mends in ((slot, False), *((one, False) for one in missing), (slot, True)):
            if (data := opened((number,), row, mends=mends)) is not None:
                whole[number] = data
                break
    db.execute("DELETE FROM log")  # all rows at once: neither their numbers nor their lengths matter to it
    anew = [
        (slot, sealed((slot,), data, room_for(SLOT_BYTES + len(data))))
        for slot, data in enumerate(filter(None, whole.values()), 1)
    ]
    db.executemany("INSERT INTO log VALUES (?, ?)", anew)
    return max([len(rows), *whole]) - len(whole)  # a number above their count shows that rows are missing


MOST_MISSING = 8  # numbers of the log under which a row is looked for if its own is wrong
IDLE_LOG_BYTES = 1024 * 1024  # space that the log keeps for the next entries when none of its rows is needed
# Beyond about this many pages (4 MiB) the WAL is moved into the file. A higher limit did not help (at four times that,
# disk bytes within 3 %), and a start has to read the whole WAL.
CHECKPOINT_PAGES = 1_024
COMMIT_PAGES = 3  # estimated WAL pages of a commit, in addition to those for its bytes
DOCUMENT_PAGES = 8
IDLE_S = 1.0  # after this time without work the WAL is emptied, which removes deleted text from it
FAILURES = (sqlite3.Error, StoreUnavailable, StoreUnusable, *DAMAGE)  # those of housekeeping
RETRY_S = 5.0  # wait before the next try after housekeeping failed
# Housekeeping between two commits goes in steps of a few milliseconds at most.
STEP_SLOTS = 128
STEP_DOCUMENTS = 16
TIDY_S = 0.1


class Engine:
    """The work of the SQLite store. `Store` describes most methods. All but `stats` run on its thread."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    # -- opening and closing ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file and read its state. Raises StoreInUse, StoreUnusable or StoreUnavailable."""
        self._file.open(self._load)

    def _load(self) -> None:
        db = self._file.db
        self._stats = {"commits": 0, "row_bytes": 0, "documents": 0, "checkpoints": 0}
        self._wal_pages = 0  # estimated pages in the WAL since the last checkpoint
        self._is_wal_full = False  # True: they were more than `CHECKPOINT_PAGES` after the last call
        self._is_wal_empty = True  # False: this process has written to the WAL since it was last emptied
        self._retry_at_s = 0.0  # monotonic time before which `spare` does no step
        self.channels = Channels(db)
        self._documents = self.channels.documents
        self._whole = WholeMessages(self._file.path, self.channels)
        try:
            self._log, highest = self._whole.load_log(self._file)
        except StoreUnusable as error:
            raise StoreUnusable(f"store file {self._file.path} cannot be used: {error}") from error
        self._documents.skip_keys(highest)
        for tracked in self._log.pinned.values():
            channel = self._whole.channel(tracked.channel)
            if channel is None:
                continue
            channel.tracked[tracked.id] = tracked
            channel.serial = max(channel.serial, tracked.last)
        # Deleted channels whose documents are still to be removed, and those of them for which a caller waits.
        self._deleted = [number for (number,) in db.execute("SELECT id FROM channels WHERE name IS NULL")]
        self._awaited: set[int] = set()
        self._sweep_limit = STEP_DOCUMENTS  # of the next step; after damage, one that fails concerns one document
        self._kept: list[str] = []  # for each document of the first of them that damage keeps, the reason
        self._is_wipe_due = True  # True: text may have been deleted just before the last process ended
        self._is_wiping = False  # True: deleted text may still be in rows of the log, or in the WAL
        self._keeps_deleted = False  # True: damage keeps the documents of a deleted channel in the file
        self._space = Space(self._file, self._documents)
        self._space.measure(self._log)

    def close(self) -> None:
        """Finish pending housekeeping for at most a second, and close the file cleanly."""
        with suppress(*FAILURES):
            self._go_on(1.0)
        self._file.close()

    # -- commits -----------------------------------------------------------------------------------------------

    def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        assert len({write.channel for write in writes}) == len(writes)
        results: list[Committed | Conflict] = []
        plans: list[Plan] = []
        entries: list[LogEntry] = []
        heads: list[tuple[ChannelRow, int]] = []  # the channels of these writes, with their new serials
        known = self.channels.by_name
        for write in writes:
            channel = known.get(write.channel) or self.channels.find(write.channel)
            new = write.entries
            if channel is None:
                fits = write.fits(self.channels.head(write.channel))
            else:
                fits = (
                    write.expected == channel.serial and write.epoch == channel.epoch and write.floor == channel.floor
                )
                if fits and len(new) == 1 and not write.documents:  # hot path: nearly all writes are a single append
                    tracked = channel.tracked.get(new[0].op.id)
                    if tracked is not None:
                        entries.append((tracked, new[0].serial, new[0].op))
                        heads.append((channel, new[0].serial))
                        results.append(Committed(new[0].serial))
                        continue
            if not fits:
                results.append(Conflict(self.channels.head(write.channel)))
                continue
            serial = write.expected + len(write.entries)
            results.append(Committed(serial))
            if channel is None:
                if not write.entries:  # documents of an empty channel are left out
                    continue
                channel = self.channels.new(write.channel, write.epoch)
            if write.entries or write.documents:
                plans.append(self._plan(write, channel, entries))
                heads.append((channel, serial))
        if plans or entries:
            self._store(plans, entries, heads)
        return results

    def _plan(self, write: Write, channel: ChannelRow, entries: list[LogEntry]) -> Plan:
        """Return which documents of `write` are stored: those that are not older than the stored ones.

        The entries of `write` that none of them contains are added to `entries`.
        """
        plan = Plan(channel)
        for document in write.documents:
            tracked = self._tracked(channel, document.id, document.created)
            if tracked is None:
                tracked = Tracked(channel.name, self._documents.new_key(), document.id, 0)
                plan.new[document.id] = tracked
            if document.version >= tracked.version:
                plan.documents.append((tracked, document))
        covered = {document.id: document.version for _, document in plan.documents}
        for entry in write.entries:
            op = entry.op
            if entry.serial > covered.get(op.id, 0):
                tracked = self._tracked(channel, op.id) or plan.new.get(op.id)
                if tracked is None:
                    raise ValueError(f"the write to channel {channel.name!r} has no document for new message {op.id!r}")
                entries.append((tracked, entry.serial, op))
        return plan

    def _tracked(self, channel: ChannelRow, message_id: str, created: int = 0) -> Tracked | None:
        """Return the state of a message in the log (`Tracked`); None if the message has no document."""
        tracked = channel.tracked.get(message_id)
        if tracked is None:
            found = self._documents.find(channel.id, message_id, created if created <= channel.serial else 0)
            if found is not None:
                tracked = channel.tracked[message_id] = Tracked(channel.name, found.key, found.id, found.version)
        return tracked

    def _store(self, plans: list[Plan], entries: list[LogEntry], heads: list[tuple[ChannelRow, int]]) -> None:
        """Store `plans` and `entries` in one transaction, then change the state in memory; `heads` as in `commit`."""
        rows = self._log.rows(entries)
        with self._file.transaction() as db:
            for plan in plans:
                self._write_plan(plan)
            slots, log_bytes = self._log.write(db, rows)
        self._log.written(rows, slots)
        for plan in plans:
            self._note_plan(plan)
        for channel, serial in heads:
            channel.serial = serial
        self._documents.row_bytes += log_bytes
        # last: if it fails, the state in memory is that of the file
        self._count_written(documents=sum(len(plan.documents) for plan in plans))

    def _write_plan(self, plan: Plan) -> None:
        """Write the rows outside the log."""
        channel = plan.channel
        if channel.name not in self.channels.by_name:  # it begins with this commit
            self.channels.add(channel)
        messages = size_bytes = 0
        for tracked, document in plan.documents:
            is_new = document.id in plan.new
            more, more_bytes = self._documents.write(channel.id, tracked.key, document, is_new=is_new)
            messages, size_bytes = messages + more, size_bytes + more_bytes
        if plan.documents:
            times = [document.at_ms for _, document in plan.documents]
            self.channels.count(channel, messages, size_bytes, min(times), max(times))

    def _note_plan(self, plan: Plan) -> None:
        """Change the state in memory after the commit of a plan: its documents free slots of the log."""
        channel = plan.channel
        self.channels.use(channel)
        channel.tracked.update(plan.new)
        for tracked, document in plan.documents:
            tracked.version = document.version
            self._log.release(tracked, document.version)
            self._is_wipe_due |= document.is_deleted
            if not document.is_open and not tracked.slots:
                channel.tracked.pop(document.id, None)

    def _count_written(self, *, documents: int = 0) -> None:
        row_bytes = self._documents.row_bytes - self._stats["row_bytes"]
        self._stats["commits"] += 1
        self._stats["documents"] += documents
        self._stats["row_bytes"] += row_bytes
        if self._documents.row_bytes - self._space.measured_at >= MEASURED_BYTES:
            with suppress(sqlite3.Error):  # the commit is stored; `tidy` measures again
                self._space.measure(self._log)
        self._count_pages(COMMIT_PAGES + row_bytes // 4096 + DOCUMENT_PAGES * documents)

    def delete_channel(self, name: str, *, expected: Head, used_up: Sequence[str], until_ms: int) -> Head | Conflict:
        channel, head = self.channels.find(name), self.channels.head(name)
        if head != expected:
            return Conflict(head)
        if channel is None and not used_up:
            return head
        with self._file.transaction():
            self.channels.bury(name, used_up, until_ms)
        self.channels.by_name.pop(name, None)
        if channel is not None:
            for tracked in channel.tracked.values():
                self._log.release(tracked, channel.serial)
            self._deleted.append(channel.id)
            self._is_wipe_due = True
        self._count_written()
        return self.channels.head(name)

    def note(self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None) -> bool:
        """Keep or delete notes of the hub; return False if one is not as `expected` (`Store.note`)."""
        gone = [(name,) for name, value in values.items() if value is None]
        kept = [(name, value) for name, value in values.items() if value is not None]
        if any(self.notes(name).get(name) != value for name, value in (expected or {}).items()):
            return False
        with self._file.transaction() as db:
            db.executemany("DELETE FROM notes WHERE name = ?", gone)
            db.executemany("REPLACE INTO notes VALUES (?, ?)", kept)
        self._documents.row_bytes += sum(len(name) + len(value) for name, value in kept)
        self._count_written()
        return True

    # -- reads -------------------------------------------------------------------------------------------------

    def heads(self, names: Sequence[str]) -> list[Head]:
        return [self.channels.head(name) for name in names]

    def changes(self, name: str, *, after: int, limit: int) -> Changes:
        channel = self.channels.get(name)
        changed = self._documents.changed(channel.id, after, limit + 1)
        changed |= {tracked.key: tracked.id for tracked in channel.tracked.values() if tracked.last > after}
        messages = self._stored(channel, changed) if len(changed) <= limit else None
        return Changes(channel.head, self._documents.newest(channel.id), messages)

    def entries(self, name: str, *, after: int, limit_bytes: int) -> Tail:
        channel = self.channels.get(name)
        keys = [tracked.key for tracked in channel.tracked.values() if tracked.last > after]
        found, _ = self._log.entries(self._file.db, keys)
        entries = [entry for of_message in found.values() for entry in of_message]
        return tail_of(channel.head, entries, after=after, limit_bytes=limit_bytes)

    def messages(self, name: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        channel = self.channels.get(name)
        found = [one for message_id in ids if (one := self._documents.find(channel.id, message_id)) is not None]
        known = {stored.id: stored for stored in self._stored(channel, {one.key: one.id for one in found})}
        for message_id in ids:
            if message_id not in known and self._documents.is_used_up(name, message_id):
                known[message_id] = Stored(id=message_id, head=used_up_head(message_id), segments=[], entries=[])
        return channel.head, known

    def page(
        self, name: str, *, before: int | None, after: int | None = None, limit: int, limit_bytes: int
    ) -> StoredPage:
        channel = self.channels.get(name)
        while True:
            page, more = self._page(channel, before, after, limit, limit_bytes)
            messages = self._stored(channel, page)
            if len(messages) == len(page):  # otherwise one is found renamed now, and another takes its place
                return StoredPage(channel.head, messages, more)

    def _page(
        self, channel: ChannelRow, before: int | None, after: int | None, limit: int, limit_bytes: int
    ) -> tuple[dict[int, str], bool]:
        """Return keys and ids of the messages of a page, and whether there are more."""
        page: dict[int, str] = {}
        size_bytes = 0
        # rows are read on demand; a statement that is left open would keep the WAL from being emptied
        with closing(self._documents.by_creation(channel.id, before, after)) as rows:
            for row in rows:
                found = Found(*row)
                tracked = self._log.pinned.get(found.key)
                if (tracked is not None and tracked.is_deleted) or found.key in self._whole.renamed:
                    continue
                size_bytes += found.size_bytes
                if len(page) == limit or (size_bytes > limit_bytes and page):
                    return page, True
                page[found.key] = found.id
        return page, False

    def open_channels(self) -> list[str]:
        names = self._documents.open_channels()
        return [name for name in names if self._whole.channel(name) is not None]

    def open_documents(self, name: str) -> list[Stored]:
        channel = self.channels.get(name)
        return self._stored(channel, self._documents.open(channel.id))

    def notes(self, prefix: str) -> dict[str, bytes]:
        rows = self._file.db.execute(
            "SELECT name, value FROM notes WHERE substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix)
        )
        return dict(rows.fetchall())

    def _stored(self, channel: ChannelRow, documents: dict[int, str]) -> list[Stored]:
        """Return the stored form of documents, given by key and id, each with its entries, in the same order."""
        return self._whole.read(self._file.db, self._log, channel.id, documents)

    # -- removal of data whose time is over, one by one, each call in one transaction ----------------------------

    def facts(self, name: str, *, after: int, limit: int) -> Facts:
        channel = self.channels.get(name)
        facts = self._documents.facts(channel.id, after, limit)
        pinned = {message_id for message_id, tracked in channel.tracked.items() if tracked.slots}
        return Facts(channel.head, [one._replace(is_busy=one.is_busy or one.id in pinned) for one in facts])

    def prune(self, name: str, *, epoch: str, versions: Mapping[str, int]) -> list[str]:
        channel = self.channels.get(name)
        if channel.epoch != epoch:
            return []
        pinned = {message_id for message_id, tracked in channel.tracked.items() if tracked.slots}
        gone = []
        for message_id, version in versions.items():
            found = self._documents.fact(channel.id, message_id)
            if found is not None and found[1].version == version and not found[1].is_busy and message_id not in pinned:
                gone.append(found)
        if gone:
            floor = max(channel.floor, *(fact.version for _, fact in gone))
            counted = [fact.size_bytes for _, fact in gone if fact.is_counted]
            with self._file.transaction():
                self._documents.remove_keys([key for key, _ in gone])
                self.channels.prune(channel, floor, len(counted), sum(counted))
            channel.floor = floor
            for _, fact in gone:
                channel.tracked.pop(fact.id, None)
            self._count_written(documents=len(gone))
            self._is_wipe_due = True
        return [fact.id for _, fact in gone]

    def _sweep(self) -> None:
        """Remove some documents of a deleted channel, or its row when no document is left.

        Those that damage keeps stay, each alone, until the next start tries it again.
        """
        channel, limit = self._deleted[0], self._sweep_limit
        self._sweep_limit = min(2 * limit, STEP_DOCUMENTS)
        keys: list[int] = []
        try:
            with self._file.transaction() as db:
                some = "SELECT id FROM documents WHERE channel = ? LIMIT ? OFFSET ?"  # those that stay come first
                keys = [key for (key,) in db.execute(some, (channel, limit, len(self._kept))).fetchall()]
                removed = self._documents.remove_keys(keys)
                if not keys and not self._kept:
                    db.execute("DELETE FROM channels WHERE id = ?", (channel,))
            reason = "their keys do not find their rows, which stay without their text"
            self._kept += [reason] * (len(keys) - removed)
        except (sqlite3.DatabaseError, StoreUnusable, *DAMAGE) as error:
            if not is_damage(error):
                raise
            self._sweep_limit = 1
            if len(keys) < 2:
                self._kept.append(f"{error}; their text may stay, too")
                self._keeps_deleted = True
        if not keys:
            if self._kept:
                what = "store file %s: %d documents of a deleted channel cannot be removed: %s; restore a backup"
                logger.error(what, self._file.path, len(self._kept), self._kept[0])
            self._deleted.pop(0)
            self._kept = []
        self._count_pages(limit * DOCUMENT_PAGES)

    def _drop_outdated(self, now_ms: int) -> None:
        """Remove used-up ids and the data of up to `STEP_DOCUMENTS` commands whose time is over."""
        commands = self._documents.outdated(now_ms, STEP_DOCUMENTS)
        over = self._file.db.execute("SELECT 1 FROM graves WHERE until_ms <= ? LIMIT 1", (now_ms,)).fetchone()
        if commands or over is not None:
            with self._file.transaction() as db:
                db.execute("DELETE FROM graves WHERE until_ms <= ?", (now_ms,))
                self._documents.drop_data(commands)
            self._count_pages(COMMIT_PAGES + len(commands) * DOCUMENT_PAGES)

    # -- housekeeping ------------------------------------------------------------------------------------------

    def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """Do a round of housekeeping (`Store.tidy`)."""
        self._space.count_free()  # first, because the rest fails if the list of free slots is damaged
        due = list(self._log.due(now_ms))
        try:
            self._drop_outdated(now_ms)
        except FAILURES as error:  # such as damage, which puts off no other work
            logger.warning("store file %s: outdated data stays; run `tenuto verify`: %r", self._file.path, error)
        try:
            self._go_on(TIDY_S)
        except FAILURES as error:
            self._put_off(error)
        self._space.measure(self._log)
        return [(one.channel, one.id) for one in due if not self._whole.is_damaged(one)]

    def wipe(self, *, goes_on: bool = False) -> bool | None:
        """Go on with the removal of deleted text (`Store.wipe`)."""
        self._go_on(TIDY_S)
        if not goes_on:
            self._log.await_wipe()
            self._awaited = set(self._deleted)
        awaited = self._log.awaited  # rows with deleted text; those of damaged messages stay
        kept = {slot for one in self._log.pinned.values() if self._whole.is_damaged(one) for slot in one.slots}
        is_over = self._awaited.isdisjoint(self._deleted) and awaited <= kept
        if not is_over or (self._is_wiping and not self._is_wal_empty):  # the WAL may have the text, too
            return False
        return None if self._keeps_deleted or awaited else True

    def _go_on(self, limit_s: float) -> None:
        """Go on with the pending housekeeping for `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        if self._is_wipe_due:
            self._is_wipe_due, self._is_wiping = False, True
            self._log.start_wipe()
        while self._step() and time.monotonic() < deadline_s:
            pass
        if self._is_wiping:  # the WAL has deleted text, too; also before the end, which more deletions may put off
            self._checkpoint("TRUNCATE")

    def spare(self, is_idle: bool) -> float | None:
        """Do a step of housekeeping, as after each call.

        Return the seconds until the next step; None: none is needed.
        """
        if not hasattr(self._file, "db"):  # it is not open
            return None
        self.channels.bound()
        wait_s, has_stepped = max(self._retry_at_s - time.monotonic(), 0.0), False
        try:
            has_stepped = not wait_s and self._step()
        except FAILURES as error:
            wait_s = self._put_off(error)
        is_idle &= not has_stepped
        # also after a step or an error: neither many steps nor one that damage ends each time may let the WAL grow
        # A full WAL is moved after the next call: commits that waited for a large one do not wait for this, too.
        was_full, self._is_wal_full = self._is_wal_full, self._wal_pages >= CHECKPOINT_PAGES
        if (was_full and self._is_wal_full) or (is_idle and not self._is_wal_empty):
            try:
                self._checkpoint("TRUNCATE" if is_idle else "PASSIVE")
            except FAILURES as error:
                return self._put_off(error)
        if has_stepped:
            return 0.0
        if self._is_wal_empty:
            return wait_s or None
        return min(wait_s, IDLE_S) or IDLE_S

    def _put_off(self, error: Exception) -> float:
        """Log that housekeeping failed, and return the seconds until the next try."""
        logger.warning("housekeeping of store file %s failed, next try in %.0f s: %s", self._file.path, RETRY_S, error)
        self._retry_at_s = time.monotonic() + RETRY_S
        return RETRY_S

    def _step(self) -> bool:
        """Do one step of the pending housekeeping; returns False if none is pending."""
        log = self._log
        if self._deleted and self._deleted[0] in self._awaited:  # first, as a caller waits for its end
            self._sweep()
        elif not log.live_rows and log.slot_bytes > IDLE_LOG_BYTES:
            with self._file.transaction() as db:
                # delete all rows at once: this moves no row to another page, and zeroes their pages
                db.execute("DELETE FROM log")
            self._log = CommitLog(log.now_ms)
            self._count_pages(log.slot_bytes // 4096)
        elif self._is_wiping and log.to_wipe:
            with self._file.transaction() as db:
                slots = log.wipe(db, STEP_SLOTS)
            log.wiped(slots)
            self._count_pages(STEP_SLOTS)
        elif self._deleted:  # last, because clients may delete more again and again
            self._sweep()
        else:
            return False
        return True

    def _checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> None:
        """Move the WAL into the file. With TRUNCATE it is then empty, unless a reader blocks that."""
        # reset them even if a reader blocked the checkpoint, so that the next try is not immediate
        self._wal_pages, self._is_wal_full = 0, False
        self._is_wal_empty = self._file.checkpoint(mode) and mode == "TRUNCATE"
        self._stats["checkpoints"] += 1
        if self._is_wal_empty and self._log.is_wiped and not self._deleted:
            self._is_wiping = False

    def _count_pages(self, pages: int) -> None:
        self._wal_pages += pages
        self._is_wal_empty = False

    def stats(self) -> dict[str, int]:
        """Return counters (`Store.stats`). May be called from any thread, since it only reads numbers."""
        log = self._log
        return {
            **self._stats,
            "channels": len(self.channels.by_name),
            "log_rows": log.live_rows,
            "log_bytes": log.live_bytes,
            "log_slots": log.slots,
            "log_slot_bytes": log.slot_bytes,
            "pinned": len(log.pinned),
            "damaged": len(self._whole.messages),
            "file_bytes": self._space.bytes,
            "free_bytes": self._space.free_bytes,
        }
