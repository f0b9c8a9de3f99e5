"""A search for words in all files of an SQLite store: the database, its journals and its known backups.

Layer: stores.

The bytes of each file are searched, so words in free space are found, too. The text of each message is searched as
well, because the file keeps long texts in several pieces. Letter case counts.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tenuto.core.document import DAMAGE, Stored, restored
from tenuto.core.errors import LocalError, StoreUnusable, shown
from tenuto.core.message_state import CommandState, MessageState
from tenuto.core.ops import Entry
from tenuto.core.records import command_record, encode_line, message_record
from tenuto.stores.sqlite.channels import Channels
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.known import BACKUP_NOTE, journals_of, known_backups
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.reader import reading_store

MAX_FILE_BYTES = 1024 * 1024
MAX_WORDS = 1_000
MAX_WORD_BYTES = 1_000
LEAST_WORD_BYTES = 3  # shorter words occur by chance in any large file
MAX_PLACES = 20  # places of one word in one file that are named
_CHUNK = 1024 * 1024


@dataclass
class Unread:
    """The numbers of the messages and of the rows of the log of which only the bytes were searched."""

    messages: int = 0
    rows: int = 0


class Word(NamedTuple):
    """A word, and its line in the file of words."""

    line: int
    text: bytes


def read_words(file: Path) -> list[Word]:
    """Return the words of a file, one in each line that is not empty. Raises LocalError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LocalError(f"--absent {file} cannot be read: {error.strerror}; check its name") from None
    words = [Word(number, line.strip()) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(data) > MAX_FILE_BYTES or not 0 < len(words) <= MAX_WORDS:
        raise LocalError(
            f"--absent {file} must have 1-{MAX_WORDS:,} words, one in each line, and at most {MAX_FILE_BYTES:,} bytes; "
            f"it has {len(words):,} words"
        )
    wrong = next((one for one in words if not LEAST_WORD_BYTES <= len(one.text) <= MAX_WORD_BYTES), None)
    if wrong is not None:
        raise LocalError(
            f"line {wrong.line} of {file} must be a word of {LEAST_WORD_BYTES}-{MAX_WORD_BYTES:,} bytes, "
            f"got {shown(wrong.text.decode(errors='replace'))}"
        )
    return words


def places_of(store: Path, words: list[Word], counts: Counter[Word]) -> Iterator[str]:
    """Yield a line for each place of a word in the files of `store`; it names the word by its line.

    `counts` gets the number of places of each word that is found. Raises LocalError and StoreUnusable.
    """
    with reading_store(store) as db:
        notes = dict(
            db.execute(
                "SELECT name, value FROM notes WHERE substr(name, 1, ?) = ?", (len(BACKUP_NOTE), BACKUP_NOTE)
            ).fetchall()
        )
    place = Path(os.path.realpath(store))
    for file in (place, *(one.path for one in known_backups(place, notes))):
        for part in (file, *journals_of(file)):
            yield from _bounded(part, _in_bytes(part, words), counts)
        try:
            with reading_store(file) as db:
                unread = Unread()
                yield from _bounded(file, _in_messages(db, words, unread), counts)
            if unread.messages or unread.rows:
                yield (
                    f"{file}: {unread.messages} messages and {unread.rows} rows of the log are damaged, or of an "
                    "older version of Tenuto, so only their bytes were searched"
                )
        except (StoreUnusable, LocalError) as error:
            yield f"{file}: its messages cannot be read, so only its bytes were searched: {error}"


def _bounded(file: Path, found: Iterator[tuple[Word, str]], counts: Counter[Word]) -> Iterator[str]:
    """Name the first places of each word in `file`, and add all to `counts`."""
    in_file: Counter[Word] = Counter()
    for word, where in found:
        in_file[word] += 1
        if in_file[word] <= MAX_PLACES:
            yield f"{file}: the word of line {word.line} is {where}"
    counts.update(in_file)
    for word, count in in_file.items():
        if count > MAX_PLACES:
            yield f"{file}: the word of line {word.line} is in {count - MAX_PLACES:,} further places"


def _in_bytes(file: Path, words: list[Word]) -> Iterator[tuple[Word, str]]:
    overlap = max(len(one.text) for one in words) - 1
    kept, start = b"", 0  # the end of the chunk before, and the offset of the bytes that are searched
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                data = kept + chunk
                for word in words:
                    # a hit that ends within the kept bytes was found in the chunk before
                    at = data.find(word.text, max(0, len(kept) - len(word.text) + 1))
                    while at >= 0:
                        yield word, f"at byte {start + at:,}"
                        at = data.find(word.text, at + 1)
                kept = data[-overlap:] if overlap else b""
                start += len(data) - len(kept)
    except FileNotFoundError:  # a journal that ended meanwhile
        return
    except OSError as error:
        raise LocalError(f"file {file} cannot be read: {error.strerror}; run the command as its owner") from None


def _in_messages(db: sqlite3.Connection, words: list[Word], unread: Unread) -> Iterator[tuple[Word, str]]:
    documents = Documents(db)
    names = dict(db.execute("SELECT id, name FROM channels WHERE name IS NOT NULL"))
    logged = _logged(db, documents, unread)
    for key, number, message_id in db.execute("SELECT id, channel, message FROM documents").fetchall():
        text = logged.get(key) or _text_in(documents, key, message_id, [])
        if text is None:
            unread.messages += documents.by_key(key) is not None  # otherwise the server has removed it meanwhile
            continue
        for word in words:
            if word.text in text:
                yield word, f"in message {message_id!r} of channel {names.get(number)!r}"


def _logged(db: sqlite3.Connection, documents: Documents, unread: Unread) -> dict[int, bytes]:
    """Return the texts of the messages with entries in the log, by key. An entry may hold a part of a word."""
    log, texts = CommitLog(), {}
    db.execute("BEGIN")
    try:
        log.load(db, Channels(db, documents).tracked)
        entries, _ = log.entries(db, list(log.pinned))
        for key, tracked in log.pinned.items():
            text = _text_in(documents, key, tracked.id, entries.get(key, []))
            if text is not None:
                texts[key] = text
        unread.rows = len(log.damaged)
    except (StoreUnusable, sqlite3.DatabaseError):
        (unread.rows,) = db.execute("SELECT count(*) FROM log").fetchone()
    finally:
        db.execute("ROLLBACK")
    return texts


def _text_in(documents: Documents, key: int, message_id: str, entries: list[Entry]) -> bytes | None:
    """Return the texts of a message; None if it cannot be read."""
    try:
        head, segments = documents.read(key, message_id)
        (thing,) = restored([Stored(id=message_id, head=head, segments=segments, entries=entries)])
    except (StoreUnusable, sqlite3.DatabaseError, *DAMAGE):
        return None
    return _text_of(thing)


def _text_of(thing: MessageState | CommandState) -> bytes:
    """Return the texts of a message, and all its fields as JSON."""
    if isinstance(thing, CommandState):
        return encode_line(command_record(thing))
    return thing.message().text.encode() + b"\n" + encode_line(message_record(thing))
