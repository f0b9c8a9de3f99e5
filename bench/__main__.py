"""The budgets, measured: `python -m bench [NAMES] [--quick]`, or `make bench`.

All in one run, on one machine, and where it can be as a ratio, so that the machine matters little. The server
under test has one core and the load client another. A benchmark that cannot measure, or whose viewers were shown
a wrong byte, fails the run; a budget that is not met is printed as such and fails it only with `--strict`, since a
noisy machine can do that too.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import client, conversations, fanout, memory, resume
from bench.common import Options, Row, Void
from bench.proc import CLIENT_CORE, SERVER_CORE, BenchError

BENCHMARKS: dict[str, Callable[[Options], list[Row]]] = {
    "client": client.run,
    "fanout": fanout.run,
    "conversations": conversations.run,  # and what it wrote: storage
    "memory": memory.run,
    "resume": resume.run,  # and hydration
}


def main() -> int:
    arguments = _arguments()
    started_s = time.monotonic()
    print(f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        print(f"cores {SERVER_CORE} and {CLIENT_CORE} are not both ours: server and client disturb each other\n")
    options = Options(is_quick=arguments.quick, directory=arguments.dir)
    rows: list[Row] = []
    for name in arguments.names or BENCHMARKS:
        try:
            rows += BENCHMARKS[name](options)
        except Void as error:
            rows.append(Row(name, "VOID", note=str(error), has_failed=True))
        except (BenchError, OSError, TimeoutError) as error:
            rows.append(Row(name, "not measured", note=f"{type(error).__name__}: {error}", has_failed=True))
    _print_table(rows)
    missed = sum(row.is_met is False for row in rows)
    failures = sum(row.has_failed for row in rows)
    print(f"\n{missed} over budget, {failures} not measured or void, {time.monotonic() - started_s:.0f} s")
    return 1 if failures or (arguments.strict and missed) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs and fewer viewers: a look, not a measurement"
    )
    parser.add_argument("--strict", action="store_true", help="fail when a budget is not met")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where databases are made")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}")
    return arguments


def _print_table(rows: list[Row]) -> None:
    verdicts = {True: "met", False: "OVER", None: ""}
    cells = [(row.what, row.measured, row.limit, verdicts[row.is_met]) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)] if cells else []
    for row, line in zip(rows, cells, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for note in row.note.splitlines():
            print(f"      {note}")


if __name__ == "__main__":
    sys.exit(main())
