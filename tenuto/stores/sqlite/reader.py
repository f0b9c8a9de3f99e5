"""Reads an SQLite store beside the process that serves it, if any.

Layer: stores.

The connection cannot write. Reads are short, so they do not keep the server from emptying its WAL for long.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tenuto.core.document import DAMAGE
from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.core.retention import Due, Policies, Policy, Sweep
from tenuto.stores.sqlite.channels import Channels
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.file import APPLICATION_ID, SCHEMA, check_tables, wrong_schema
from tenuto.stores.sqlite.restored import has_foreign_wal, reading
from tenuto.stores.sqlite.sums import check_above, damaged, is_damage

PAGE = 500  # channels in one read
FACTS = 200  # messages in one read


@contextlib.contextmanager
def reading_store(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the store file for reading. A foreign `-wal` is not read.

    Raises LocalError if the file does not exist, StoreUnusable if it cannot be read.
    """
    if not path.is_file():
        raise LocalError(f"store file {path} does not exist; name the store with --store")
    try:
        with reading(path, is_immutable=has_foreign_wal(path)) as db:
            check_header(db, path, kind="store file")
            check_tables(db, f"store file {path}")
            yield db
    except sqlite3.DatabaseError as error:
        raise StoreUnusable(f"store file {path} cannot be read: {error}; restore a backup") from error
    except DAMAGE as error:
        raise damaged(path, error) from error


def check(db: sqlite3.Connection, path: Path, *, kind: str = "backup", remedy: str = "use an earlier one") -> None:
    """Raise StoreUnusable for a database that Tenuto cannot open, or whose structure is damaged.

    The error calls the database a `kind`, and names the `remedy` for damage.
    """
    try:
        check_header(db, path, kind=kind)
        check_tables(db, f"{kind} {path}", remedy=remedy)
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise StoreUnusable(f"{kind} {path} cannot be read: {error}; {remedy}") from error
    except DAMAGE as error:
        raise StoreUnusable(
            f"{kind} {path} cannot be read: the file is damaged ({type(error).__name__}); {remedy}"
        ) from error
    if found != "ok":
        raise StoreUnusable(f"{kind} {path} is damaged ({' '.join(found.split())}); {remedy}")


def check_header(db: sqlite3.Connection, path: Path, *, kind: str = "backup") -> None:
    """Raise StoreUnusable for a database of another program, or of another schema."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        advice = "name the file that `tenuto backup` wrote" if kind == "backup" else "name the store with --store"
        raise StoreUnusable(f"{kind} {path} is a database of another program (application id {application}); {advice}")
    if schema != SCHEMA:
        raise StoreUnusable(wrong_schema(f"{kind} {path}", schema))


def list_channels(path: Path, prefix: str) -> Iterator[ChannelSummary]:
    """Yield the channels whose names begin with `prefix`, in order. Raises LocalError, StoreUnusable."""
    with reading_store(path) as db:
        channels = Channels(db, Documents(db))
        importing = {
            name for (name,) in db.execute("SELECT substr(name, 8) FROM notes WHERE substr(name, 1, 7) = 'import:'")
        }
        after = None
        while page := channels.summaries([f"{prefix}*"], after, PAGE):
            for one in page:
                if one.channel not in importing:
                    yield one
            after = page[-1].channel


def due_channels(path: Path, policies: Policies, now_ms: int) -> Iterator[Due]:
    """Yield the channels of which retention would remove something at `now_ms`, in order; it changes nothing.

    Raises LocalError, StoreUnusable.
    """
    for summary in list_channels(path, ""):
        policy = policies.find(summary.channel)
        if policy is None or not Sweep(policy, summary, now_ms).is_needed:
            continue
        try:
            due = _due_in(path, policy, summary, now_ms)
        except StoreUnusable as error:
            due = Due(summary.channel, 0, 0, False, str(error))
        if due.messages or due.is_gone or due.damage is not None:
            yield due


def _due_in(path: Path, policy: Policy, summary: ChannelSummary, now_ms: int) -> Due:
    """Return what would go of one channel. Raises StoreUnusable if it is damaged."""
    with reading_store(path) as db:
        documents = Documents(db)
        channel = Channels(db, documents).find(summary.channel, at=0)
        if channel is None:
            return Due(summary.channel, 0, 0, False)
        sweep = Sweep(policy, summary, now_ms, is_busy=bool(documents.open(channel.id)))
        messages = size_bytes = 0
        while sweep.is_needed and not sweep.is_over:
            facts = [fact for _, fact in documents.facts(channel.id, sweep.after, FACTS)]
            check_above([one.version for one in facts], sweep.after)
            due = [one for one in sweep.take(facts, is_last=len(facts) < FACTS) if one.is_counted]
            messages, size_bytes = messages + len(due), size_bytes + sum(one.size_bytes for one in due)
    return Due(summary.channel, messages, size_bytes, sweep.is_emptied)
