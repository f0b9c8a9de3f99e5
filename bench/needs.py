"""The requirements of a run, checked before its first row: a missing peer is reported at once, not after minutes.

A benchmark that needs more than the server has `PEERS`, without which it cannot run, or `PARTS`, without which only a
part cannot: tries, each in a folder of its own, that raise `BenchError` or OSError. The row of what cannot be measured
has the reason. Both fail the run, except if a program is not installed that the run can do without (`NotInstalled`).
"""

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import Options
from bench.proc import BenchError, NotInstalled

__all__ = ["NAMES", "Problem", "Tries", "estimate_s", "problems"]

Tries = Mapping[str, Callable[[Path], None]]

# each is a module of this package with the function `run(options)`; about how many seconds it takes, and a quick one
_SECONDS = {
    "client": (20, 8),
    "fanout": (530, 105),
    "conversations": (48, 8),
    "highest": (270, 50),
    "memory": (65, 5),
    "resume": (3, 3),  # measures hydration, too
    "storm": (75, 25),
    "slow": (230, 30),
    "turns": (20, 4),
    "burst": (50, 10),
    "ai_sdk": (55, 10),
    "appends": (230, 55),
    "postgres": (300, 80),
    "beside": (250, 60),
    "soak": (60, 60),  # and the time of `--soak-s`
}
NAMES = tuple(_SECONDS)
_PACKAGES = ("uvicorn", "httptools", "websockets", "starlette")
_DISK_MB = 2_000  # free space where databases are made; each benchmark removes its own
_MB = 1_000_000


@dataclass(frozen=True)
class Problem:
    """The reason why a benchmark, or a part of it, cannot be measured here."""

    benchmark: str
    what: str
    is_partial: bool = False
    fails_run: bool = True

    def __str__(self) -> str:
        return f"{self.benchmark}{', in part' if self.is_partial else ''}: not measured: {self.what}"


def estimate_s(name: str, options: Options) -> float:
    """Return about how long a benchmark takes on the machine of `docs/benchmarks.md`."""
    return _SECONDS[name][options.is_quick] + (options.soak_s if name == "soak" else 0.0)


def problems(names: Sequence[str], options: Options) -> Iterator[Problem]:
    """Yield all missing requirements of these benchmarks, those that are quick to check first."""
    missing = [f"the Python package {name} is missing" for name in _PACKAGES if not importlib.util.find_spec(name)]
    free_mb = shutil.disk_usage(options.directory).free // _MB
    if free_mb < _DISK_MB:
        missing.append(f"needs {_DISK_MB:,} MB in {options.directory}, and {free_mb:,} are free: see --dir")
    yield from (Problem(name, what) for name in names for what in missing)
    for name in [] if missing else names:
        module = importlib.import_module(f"bench.{name}")
        for attribute, is_partial in (("PEERS", False), ("PARTS", True)):
            tries: Tries = getattr(module, attribute, {})
            for peer, try_it in tries.items():
                if (failure := _failure(try_it, options.directory)) is not None:
                    what, fails_run = " ".join(str(failure).split()), not isinstance(failure, NotInstalled)
                    yield Problem(name, f"{peer}: {what}", is_partial, fails_run)


def _failure(try_it: Callable[[Path], None], directory: Path) -> Exception | None:
    """Return the error of a failed try."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        try:
            try_it(Path(folder))
        except (BenchError, OSError) as error:
            return error
    return None
