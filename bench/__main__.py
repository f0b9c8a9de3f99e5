"""The budgets, measured: `python -m bench [NAMES] [--quick]`, or `make bench`. The method: `docs/benchmarks.md`.

All in one run, on one machine, and where it can be as a ratio, so that the machine matters little. The server
under test has one core and the load client another. A benchmark that cannot measure, or whose viewers were shown
a wrong byte, fails the run; a budget that is not met is printed as such and fails it only with `--strict`, since a
noisy machine can do that too.
"""

import argparse
import importlib
import importlib.util
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import report
from bench.common import Options, Row, Void
from bench.proc import CLIENT_CORE, SERVER_CORE, BenchError

# Each is a module of this package with a function `run(options)`, and is imported when its turn comes: those that
# measure others need what those need.
NAMES = (
    "client",
    "fanout",
    "conversations",  # and what it wrote: storage
    "highest",
    "memory",
    "resume",  # and hydration
    "storm",
    "slow",
    "turns",
    "appends",
    "beside",
    "soak",
)
BENCHMARKS = tuple(name for name in NAMES if importlib.util.find_spec(f"bench.{name}") is not None)
_LONG = ("soak",)  # not part of a quick look unless it is named


def main() -> int:
    arguments = _arguments()
    options = Options(is_quick=arguments.quick, directory=arguments.dir, soak_s=arguments.soak_s)
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        print(f"cores {SERVER_CORE} and {CLIENT_CORE} are not both ours: server and client would disturb each other")
        return 1
    machine = report.Machine(options.directory)
    rows: list[Row] = []
    for name in arguments.names or [name for name in BENCHMARKS if not (options.is_quick and name in _LONG)]:
        started_s = time.monotonic()
        rows += measure(name, importlib.import_module(f"bench.{name}").run, options)
        print(f"{name}: {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)
    facts = machine.facts()
    lines = [*facts, "", *report.text(rows), "", report.summary(rows, machine.seconds)]
    print("\n".join(lines))
    if arguments.markdown is not None:
        command = shlex.join(["python", "-m", "bench", *_shown(sys.argv[1:])])
        report.write(arguments.markdown, command=command, facts=facts, rows=rows, output=lines)
    missed = any(row.is_met is False for row in rows)
    return 1 if any(row.has_failed for row in rows) or (arguments.strict and missed) else 0


def measure(name: str, run: Callable[[Options], Iterable[Row]], options: Options) -> list[Row]:
    """The rows of a benchmark; the last one says why there are no more, if it failed."""
    rows: list[Row] = []
    try:
        for row in run(options):
            rows.append(row)  # one by one: what was measured before a failure stays
    except Void as error:
        rows.append(_failed(name, "VOID", error))
    except (BenchError, OSError, TimeoutError) as error:
        rows.append(_failed(name, "not measured", error))
    except Exception as error:  # the outer edge: what the others measured is not lost
        rows.append(_failed(name, "not measured", error))
        traceback.print_exc()
    return rows


def _failed(name: str, verdict: str, error: Exception) -> Row:
    said = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return Row(name, verdict, note=said, has_failed=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs and fewer viewers, and no soak: a look, not a measurement"
    )
    parser.add_argument("--strict", action="store_true", help="fail when a budget is not met")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where databases are made")
    parser.add_argument("--soak-s", type=float, default=600.0, help="how long the soak lasts, in seconds")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write table and output into this page as well")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}")
    if arguments.markdown is not None:
        try:
            report.check_page(arguments.markdown)  # now, not when all has been measured
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return arguments


def _shown(arguments: list[str]) -> list[str]:
    """The arguments, without where things are on this machine."""
    shown = list(arguments)
    for name in ("--dir", "--markdown"):
        if name in shown:
            at = shown.index(name)
            del shown[at : at + 2]
    return [one for one in shown if not one.startswith(("--dir=", "--markdown="))]


if __name__ == "__main__":
    sys.exit(main())
