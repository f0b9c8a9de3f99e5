"""What a run needs, looked at before its first row: a peer that is missing is told at once, not after twenty minutes.

Each benchmark says in `needs(options)` what it needs. What stops a whole benchmark is its row then; where only a part
of it cannot be measured, the rest is, and the row of that part says so when its turn comes. Either fails the run.
"""

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import Options
from bench.proc import BenchError, check_file_limit, disk_write_bytes

__all__ = ["SERVER", "Needs", "Problem", "estimate_s", "problems"]

SERVER = ("uvicorn", "httptools", "websockets")
"""Python packages of the server under test."""
_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one benchmark needs."""

    seconds: float
    """About how long it takes on the machine of `docs/benchmarks.md`."""
    files: int
    """Open files that a process may have to have."""
    disk_mb: int
    """Free space where databases are made; each benchmark removes its own."""
    packages: tuple[str, ...] = SERVER
    """Python packages without which nothing of it can be measured."""
    parts: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """What only a part of it needs: tried in a folder of its own, and raises `BenchError` or OSError when it fails."""
    peers: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """As `parts`, and without it nothing can be measured."""
    says_what_reaches_the_disk: bool = False


@dataclass(frozen=True)
class Problem:
    """Why a benchmark cannot be measured here, or a part of it."""

    benchmark: str
    what: str
    is_partial: bool = False

    def __str__(self) -> str:
        return f"{self.benchmark}{', in part' if self.is_partial else ''}: not measured: {self.what}"


def estimate_s(name: str, options: Options) -> float | None:
    """About how long a benchmark takes; None where it cannot even be asked."""
    try:
        return _needs(name, options).seconds
    except ImportError:
        return None


def problems(names: Sequence[str], options: Options) -> Iterator[Problem]:
    """All that is missing for these benchmarks; what takes no time to see comes first."""
    needed: dict[str, Needs] = {}
    for name in names:
        try:
            needed[name] = _needs(name, options)
        except ImportError as error:
            yield Problem(name, str(error))
            continue
        yield from _here(name, needed[name], options.directory)
    for name, needs in needed.items():
        for peers, is_partial in ((needs.peers, False), (needs.parts, True)):
            for peer, try_it in peers.items():
                if said := _failure(try_it, options.directory):
                    yield Problem(name, f"{peer}: {said}", is_partial)


def _needs(name: str, options: Options) -> Needs:
    found: Needs = importlib.import_module(f"bench.{name}").needs(options)
    return found


def _here(name: str, needs: Needs, directory: Path) -> Iterator[Problem]:
    """What this machine and this installation do not have."""
    try:
        check_file_limit(needs.files)
    except BenchError as error:
        yield Problem(name, str(error))
    free_mb = shutil.disk_usage(directory).free // _MB
    if free_mb < needs.disk_mb:
        yield Problem(name, f"needs {needs.disk_mb:,} MB in {directory}, and {free_mb:,} are free: see --dir")
    for package in needs.packages:
        if importlib.util.find_spec(package) is None:
            yield Problem(name, f"the Python package {package} is missing")
    if needs.says_what_reaches_the_disk and not _reaches_a_disk(directory):
        yield Problem(name, f"{directory} is not on a disk: see --dir", is_partial=True)


def _reaches_a_disk(directory: Path) -> bool:
    before = disk_write_bytes(os.getpid())
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        os.fdatasync(file.fileno())
    return disk_write_bytes(os.getpid()) > before


def _failure(try_it: Callable[[Path], None], directory: Path) -> str:
    """What it says when it fails, on one line."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        try:
            try_it(Path(folder))
        except (BenchError, OSError) as error:
            return " ".join(str(error).split())
    return ""
