"""Measure the budgets: `python -m bench [NAMES] [--quick]`, or `make bench`. The method: `docs/benchmarks.md`.

All benchmarks run in one go on one machine, where possible as a ratio, so that the machine matters little. The server
under test has one core and the load client another. A benchmark fails
the run if it cannot measure, or if a viewer received a wrong byte. A budget that is not met is printed, and fails the
run only with `--strict`, because a noisy machine can cause it too.

Requirements are checked before the first row: a missing peer is reported at once, not after minutes. A benchmark that
needs more than the server has `PEERS`, without which it cannot run, or `PARTS`, without which only a part cannot:
tries, each in a folder of its own, that raise `BenchError` or OSError. The row of what cannot be measured has the
reason. Both fail the run, except if a program is not installed that the run can do without (`NotInstalled`).
"""

import argparse
import functools
import importlib
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench import report
from bench.common import Options, Row, attempt
from bench.proc import CLIENT_CORE, SERVER_CORE, BenchError, NotInstalled

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
    "steps": (30, 4),
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


_SHORTEST_SOAK_S = 10.0  # a shorter soak has too few samples for a slope
_BROKEN_OFF = 130  # the exit code that shells report for a program ended by Ctrl-C


def main() -> int:
    arguments = _arguments()
    options = Options(is_quick=arguments.quick, directory=arguments.dir, soak_s=arguments.soak_s)
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        print(f"cores {SERVER_CORE} and {CLIENT_CORE} are not both available: server and client would share one")
        return 1
    names = list(dict.fromkeys(arguments.names)) or _usual(options)
    scope = _scope(names, options)
    if arguments.markdown is not None and scope:
        _print_progress(f"{arguments.markdown.name} will contain only this run; {'; '.join(scope)}")
    _end_cleanly_on_signals()
    rows: list[Row] = []
    try:
        missing = _look_ahead(names, options)
        if arguments.check:
            return 1 if any(problem.fails_run for problem in missing) else 0
        machine = report.Machine(options.directory)
        took_s = _run(names, missing, options, rows)
    except KeyboardInterrupt:
        print("\n".join([*report.text(rows), "", "interrupted"]))
        return _BROKEN_OFF
    facts = [*machine.facts(), *scope]
    lines = [*facts, "", *report.text(rows), "", took_s, report.summary(rows, machine.seconds)]
    print("\n".join(lines))
    if arguments.markdown is not None:
        command = shlex.join(["python", "-m", "bench", *_without_paths(sys.argv[1:])])
        report.write(arguments.markdown, command=command, facts=facts, rows=rows)
    missed = any(row.is_met is False for row in rows)
    return 1 if any(row.has_failed for row in rows) or (arguments.strict and missed) else 0


def _usual(options: Options) -> list[str]:
    return [name for name in NAMES if not (options.is_quick and name == "soak")]  # unless it is named


def _scope(names: list[str], options: Options) -> list[str]:
    """Return the limits of a partial run, for the reader of its report."""
    limits = []
    if options.is_quick:
        limits.append("a quick check with shorter runs and fewer viewers, not a measurement")
    if others := [name for name in NAMES if name not in names]:
        limits.append(f"not in this run, so without figures: {', '.join(others)}")
    return limits


def _look_ahead(names: list[str], options: Options) -> list[Problem]:
    """Print the expected duration and the missing requirements."""
    estimates = {name: estimate_s(name, options) for name in names}
    each = ", ".join(f"{name} {seconds:.0f}" for name, seconds in estimates.items())
    _print_progress(f"about {sum(estimates.values()) / 60:.0f} minutes; in seconds: {each}")
    missing = []
    for problem in problems(names, options):
        _print_progress(str(problem))
        missing.append(problem)
    if any(problem.fails_run for problem in missing):
        _print_progress("the rest can be measured; the run will fail at the end")
    return missing


def _run(names: list[str], missing: list[Problem], options: Options, rows: list[Row]) -> str:
    """Add the rows of all benchmarks to `rows`. Return the duration of each."""
    took_s: dict[str, float] = {}
    for name in names:
        started_s = time.monotonic()
        if whole := [problem for problem in missing if problem.benchmark == name and not problem.is_partial]:
            reasons, has_failed = "\n".join(problem.what for problem in whole), any(one.fails_run for one in whole)
            rows.append(Row(name, "not measured", note=reasons, has_failed=has_failed))
        else:
            for row in attempt(name, functools.partial(importlib.import_module(f"bench.{name}").run, options)):
                rows.append(row)
                if row.has_failed:
                    _print_progress(f"{row.what.strip()}: {row.measured}: {row.note}")
        took_s[name] = time.monotonic() - started_s
        _print_progress(f"{name}: {took_s[name]:.0f} s")
    return "seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in took_s.items())


def _end_cleanly_on_signals() -> None:
    """Make a signal end the run with its processes and files, once: during the removal, further signals are ignored."""
    signals = [one for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]

    def end(_: int, __: FrameType | None) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in signals:
        signal.signal(one, end)


def _print_progress(what: str) -> None:
    """Print progress; the report itself is printed at the end."""
    print(what, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs, fewer viewers and no soak: a check, not a measurement"
    )
    parser.add_argument("--check", action="store_true", help="print missing requirements and durations, and exit")
    parser.add_argument("--strict", action="store_true", help="fail when a budget is not met")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where databases are made")
    parser.add_argument("--soak-s", type=float, default=600.0, help="how long the soak lasts (600)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this page as well")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}")
    if not (arguments.dir.is_dir() and os.access(arguments.dir, os.W_OK)):
        parser.error(f"{arguments.dir} is not a writable directory")
    if not arguments.soak_s >= _SHORTEST_SOAK_S:
        parser.error(f"a soak takes {_SHORTEST_SOAK_S:g} s at least")
    if arguments.markdown is not None:
        try:
            report.check_page(arguments.markdown)  # before the measurements, not after them
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return arguments


def _without_paths(arguments: list[str]) -> list[str]:
    """Return the arguments without paths of this machine."""
    shown = list(arguments)
    for name in ("--dir", "--markdown"):
        if name in shown:
            at = shown.index(name)
            del shown[at : at + 2]
    return [one for one in shown if not one.startswith(("--dir=", "--markdown="))]


if __name__ == "__main__":
    sys.exit(main())
