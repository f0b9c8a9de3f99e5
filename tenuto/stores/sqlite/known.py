"""The known backups of an SQLite store: those that the store notes, and those that Tenuto makes beside the file.

Layer: stores.

A backup that another program has copied or moved is not known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tenuto.stores.sqlite.backup import partial_of

BACKUP_NOTE = "backup:"  # prefix of the notes about backups; the path follows, percent-encoded
MAX_NOTED = 1_000  # backups that exist; the store forgets the oldest beyond it
# files beside the store: from before a restore, and journals that were not the store's own
_BESIDE = (".before-restore-", ".restored", "-wal.foreign-")
_JOURNALS = ("-journal", "-wal", "-shm")


class KnownBackup(NamedTuple):
    """A backup, and when it was begun, in ms since 1970."""

    path: Path
    made_ms: int


def noted(target: Path, made_ms: int, notes: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """Return the changes of the notes about backups after that of `target`: backups that are gone leave them.

    It reads folders, perhaps on another machine, so call it in a thread.
    """
    known = [one for one in _decoded(notes) if not _is_gone(one.path)]
    kept = {_name(one.path) for one in known[-MAX_NOTED + 1 :]}
    changes: dict[str, bytes | None] = {name: None for name in notes if name not in kept}
    return {**changes, _name(Path(os.path.realpath(target))): str(made_ms).encode()}


def known_backups(store: Path, notes: Mapping[str, bytes]) -> list[KnownBackup]:
    """Return the backups of the file `store` that exist, or cannot be reached now, oldest first."""
    place = Path(os.path.realpath(store))
    found = {one.path: one for one in _decoded(notes) if _may_exist(one.path)}
    with os.scandir(place.parent) as entries:
        for entry in entries:
            is_beside = any(entry.name.startswith(f"{place.name}{middle}") for middle in _BESIDE)
            if is_beside and not entry.name.endswith((*_JOURNALS, ".lock")) and entry.is_file():
                path = Path(entry.path)
                found.setdefault(path, KnownBackup(path, entry.stat().st_mtime_ns // 1_000_000))
    return sorted(found.values(), key=lambda one: (one.made_ms, one.path))


def journals_of(path: Path) -> list[Path]:
    """Return the journals beside a database file that exist."""
    return [one for end in _JOURNALS[:2] if (one := Path(f"{path}{end}")).is_file()]


def _is_gone(path: Path) -> bool:
    """Return whether a file was removed, and is not being made.

    An empty or unreachable folder may be that of a disk that is not mounted.
    """
    try:
        # Test the partial file first: a finishing backup renames it to `path` between the two tests.
        return not partial_of(path).exists() and not path.exists() and any(path.parent.iterdir())
    except OSError:
        return False


def _may_exist(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its folder cannot be read
        return True


def _name(path: Path) -> str:
    return BACKUP_NOTE + quote(os.fsencode(path))


def _decoded(notes: Mapping[str, bytes]) -> list[KnownBackup]:
    """Return the noted backups, oldest first. A note that is no number counts as the oldest."""
    found = [
        KnownBackup(
            Path(os.fsdecode(unquote_to_bytes(name.removeprefix(BACKUP_NOTE)))), int(value) if value.isdigit() else 0
        )
        for name, value in notes.items()
    ]
    return sorted(found, key=lambda one: one.made_ms)
