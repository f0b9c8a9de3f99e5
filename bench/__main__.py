"""Measure the budgets: `python -m bench [NAMES] [--quick]`, or `make bench`. The method: `docs/benchmarks.md`.

All benchmarks run in one go on one machine, where possible as a ratio, so that the machine matters little. The server
under test has one core and the load client another. A benchmark fails the run if it cannot measure, or if a viewer
received a wrong byte. A budget that is not met is printed only, because a noisy machine can cause it too.
"""

import argparse
import functools
import importlib
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from bench import report
from bench.common import Options, Row, attempt
from bench.proc import CLIENT_CORE, SERVER_CORE

# each is a module of this package with the function `run(options)`; `resume` measures hydration, too
NAMES = (
    "client", "fanout", "conversations", "highest", "memory", "resume", "storm", "slow", "turns", "steps", "burst",
    "photos", "ai_sdk", "appends", "postgres", "beside", "soak",
)  # fmt: skip
_BROKEN_OFF = 130  # the exit code that shells report for a program ended by Ctrl-C


def main() -> int:
    arguments = _arguments()
    options = Options(is_quick=arguments.quick, directory=arguments.dir, soak_s=arguments.soak_s)
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        print(f"cores {SERVER_CORE} and {CLIENT_CORE} are not both available: server and client would share one")
        return 1
    usual = [name for name in NAMES if not (options.is_quick and name == "soak")]
    names = list(dict.fromkeys(arguments.names)) or usual
    scope = _scope(names, options)
    if arguments.markdown is not None and scope:
        _print_progress(f"{arguments.markdown.name} will contain only this run; {'; '.join(scope)}")
    _end_cleanly_on_signals()
    rows: list[Row] = []
    started_s, facts = time.monotonic(), [*report.machine(options.directory), *scope]
    try:
        _run(names, options, rows)
    except KeyboardInterrupt:
        print("\n".join([*report.text(rows), "", "interrupted"]))
        return _BROKEN_OFF
    lines = [*facts, "", *report.text(rows), "", report.summary(rows, time.monotonic() - started_s)]
    print("\n".join(lines))
    if arguments.markdown is not None:
        command = shlex.join(["python", "-m", "bench", *arguments.names, *["--quick"] * options.is_quick])
        command += f" --soak-s {options.soak_s:g}" if "soak" in names else ""
        report.write(arguments.markdown, command=command, facts=facts, rows=rows)
    return 1 if any(row.has_failed for row in rows) else 0


def _scope(names: list[str], options: Options) -> list[str]:
    """Return the limits of a partial run, for the reader of its report."""
    limits = []
    if options.is_quick:
        limits.append("a quick check with shorter runs and fewer viewers, not a measurement")
    if others := [name for name in NAMES if name not in names]:
        limits.append(f"not in this run, so without figures: {', '.join(others)}")
    return limits


def _run(names: list[str], options: Options, rows: list[Row]) -> None:
    """Add the rows of all benchmarks to `rows`."""
    for name in names:
        started_s = time.monotonic()
        for row in attempt(name, functools.partial(importlib.import_module(f"bench.{name}").run, options)):
            rows.append(row)
            if row.has_failed:
                _print_progress(f"{row.what.strip()}: {row.measured}: {row.note}")
        _print_progress(f"{name}: {time.monotonic() - started_s:.0f} s")


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
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where databases are made")
    parser.add_argument("--soak-s", type=float, default=600.0, help="how long the soak lasts (600)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this page as well")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}")
    if not (arguments.dir.is_dir() and os.access(arguments.dir, os.W_OK)):
        parser.error(f"{arguments.dir} is not a writable directory")
    if arguments.markdown is not None:
        try:
            report.check_page(arguments.markdown)  # before the measurements, not after them
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
