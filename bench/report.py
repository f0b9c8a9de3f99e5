"""The report of a run: the machine, the table, and both written into a page, so that no figure is typed by hand."""

import datetime
import importlib.metadata
import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench.common import Row
from tenuto import __version__

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_VERDICTS = {True: "met", False: "OVER", None: ""}
_SYNCS = 50
_PACKAGES = ("uvicorn", "httptools", "websockets", "granian", "msgspec")


def machine(directory: Path) -> list[str]:
    """Return the facts of this machine, whose databases are in `directory`, one per line."""
    return [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Tenuto {__version__}{_commit()}",
        f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores, "
        f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.0f} GiB",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}",
        ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        f"a synced write of 4 KiB takes {_sync_ms(directory):.2f} ms (median of {_SYNCS}); this is the disk "
        "that SQLite FULL waits for",
    ]


def text(rows: list[Row]) -> list[str]:
    """Return the table in lines; each row is followed by its note."""
    cells = [(row.what, row.measured, row.limit, _VERDICTS[row.is_met]) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)] if cells else []
    lines = []
    for row, line in zip(rows, cells, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        lines += [f"      {note}" for note in row.note.splitlines()]
    return lines


def summary(rows: list[Row], seconds: float) -> str:
    """Return the last line of the report."""
    missed = sum(row.is_met is False for row in rows)
    failures = sum(row.has_failed for row in rows)
    return f"{missed} over budget, {failures} not measured or void, {seconds:.0f} s"


def check_page(page: Path) -> None:
    """Raise ValueError unless `page` has one place for figures, and OSError if it cannot be read."""
    parts = _read(page)
    if parts.count(BEGIN) != 1 or parts.count(END) != 1 or parts.index(BEGIN) > parts.index(END):
        raise ValueError(f"{page.name} must have one line {BEGIN} and after it one line {END}")


def write(page: Path, *, command: str, facts: list[str], rows: list[Row]) -> None:
    """Put the table of a run between the marks of `page`, in place of the run before it; every other byte stays.

    The page never holds figures of two runs: rows that are not in this run are removed, and `facts` says so.
    """
    check_page(page)
    before, _, rest = _read(page).partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [
        BEGIN,
        f"`{command}`:",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "| what | measured | budget |",
        "|---|---|---|",
        *map(_markdown_row, rows),
        END,
    ]
    page.write_bytes((before + "\n".join(lines) + after).encode())


def _read(page: Path) -> str:
    return page.read_bytes().decode()  # keep the line ends


def _markdown_row(row: Row) -> str:
    what = f"– {row.what.strip()}" if row.what.startswith(" ") else row.what
    measured = f"**{row.measured}**" if row.has_failed or row.is_met is False else row.measured
    if row.has_failed:
        measured += f": {row.note.partition(chr(10))[0]}"
    budget = ", ".join(part for part in (row.limit, _VERDICTS[row.is_met]) if part)
    cells = [_cell(text) for text in (what, measured, budget)]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Return `text` on one line, without the marks of figures and with escaped separators."""
    return text.replace(BEGIN, "(begin)").replace(END, "(end)").replace("|", "\\|").replace("\n", " ")


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "an unknown processor"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    """Return the commit, if there is one, and whether the files differ from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "tenuto", "bench")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" at {commit}{' with uncommitted changes' if changes else ''}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _sync_ms(directory: Path) -> float:
    """Return the time to write one page to the disk of the databases."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            file.flush()
            before_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - before_s)
    return statistics.median(times) * 1000
