"""The requirements of a run, checked before its first row: a missing peer is reported at once, not after minutes.

Each benchmark returns its requirements from `needs(options)`. If a whole benchmark cannot run, its row has the reason.
If only a part cannot, the rest is measured, and the row of that part has the reason. Both fail the run, except if a
program is not installed that the run can do without (`NotInstalled`).
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
from bench.proc import BenchError, NotInstalled, check_file_limit, disk_write_bytes

__all__ = ["SERVER", "Needs", "Problem", "estimate_s", "problems"]

SERVER = ("uvicorn", "httptools", "websockets")
"""Python packages of the server under test."""
_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The requirements of one benchmark."""

    seconds: float
    """About how long it takes on the machine of `docs/benchmarks.md`."""
    files: int
    """The largest number of open files of one process."""
    disk_mb: int
    """Free space where databases are made; each benchmark removes its own."""
    packages: tuple[str, ...] = SERVER
    """Python packages without which no part can be measured."""
    parts: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """The requirements of a part: tried in an own folder. They raise `BenchError` or OSError if they fail."""
    peers: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Like `parts`, but without them no part can be measured."""
    says_what_reaches_the_disk: bool = False


@dataclass(frozen=True)
class Problem:
    """The reason why a benchmark, or a part of it, cannot be measured here."""

    benchmark: str
    what: str
    is_partial: bool = False
    fails_run: bool = True

    def __str__(self) -> str:
        return f"{self.benchmark}{', in part' if self.is_partial else ''}: not measured: {self.what}"


def estimate_s(name: str, options: Options) -> float | None:
    """Return about how long a benchmark takes; None if its requirements cannot even be read."""
    try:
        return _needs(name, options).seconds
    except ImportError:
        return None


def problems(names: Sequence[str], options: Options) -> Iterator[Problem]:
    """Yield all missing requirements of these benchmarks, those that are quick to check first."""
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
                if (failure := _failure(try_it, options.directory)) is not None:
                    what, fails_run = " ".join(str(failure).split()), not isinstance(failure, NotInstalled)
                    yield Problem(name, f"{peer}: {what}", is_partial, fails_run)


def _needs(name: str, options: Options) -> Needs:
    found: Needs = importlib.import_module(f"bench.{name}").needs(options)
    return found


def _here(name: str, needs: Needs, directory: Path) -> Iterator[Problem]:
    """Yield the requirements that this machine or this installation does not meet."""
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


def _failure(try_it: Callable[[Path], None], directory: Path) -> Exception | None:
    """Return the error of a failed try."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        try:
            try_it(Path(folder))
        except (BenchError, OSError) as error:
            return error
    return None
