"""`python -m simulation --seeds 1000 --start 0`: run many seeds; show the story of each that fails.

Layer: simulation.

Ends with 1 if a seed failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import sys
import time
import types
from typing import cast

from simulation.world import Report, World

SHOWN_LINES = 120
LAST_RESORT_S = 300.0  # for a seed; one takes a tenth of a second


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds that the arguments name; returns how the process should end."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (1000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many (5)")
    parser.add_argument("--lines", type=int, default=SHOWN_LINES, help=f"of the story of a failure ({SHOWN_LINES})")
    chosen = parser.parse_args(arguments)
    gc.freeze()
    begun_s = time.monotonic()
    failed: list[int] = []
    seeds = events = 0
    virtual_s = 0.0
    for seed in range(chosen.start, chosen.start + chosen.seeds):
        if len(failed) >= chosen.failures or time.monotonic() - begun_s > chosen.seconds:
            break
        if arguments is None:  # this process is ours alone
            faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True)
        report = run_named(seed)
        seeds, events, virtual_s = seeds + 1, events + report.events, virtual_s + report.virtual_s
        if report.violation is not None:
            failed.append(seed)
            show(report, chosen.lines)
    spent_s = time.monotonic() - begun_s
    print(
        f"{seeds} seeds from {chosen.start}: {len(failed)} failed{f' {failed}' if failed else ''}; {events} events, "
        f"{virtual_s:.0f} virtual seconds in {spent_s:.1f} s ({seeds / max(spent_s, 1e-9):.1f} seeds/s)"
    )
    return 1 if failed else 0


def run_named(seed: int) -> Report:
    """Run a seed, by a function that bears its number: of what hangs in C there is no more than Python's own trace."""
    named = f"seed_{seed}"
    return cast("Report", types.FunctionType(_run.__code__.replace(co_name=named), globals(), named)(seed))


def _run(seed: int) -> Report:
    return World(seed).run()


def show(report: Report, lines: int) -> None:
    """Tell the story of a run that failed."""
    print(f"--- seed {report.seed} (digest {report.digest}) ---")
    for line in report.lines[-lines:]:
        print(line)
    print(f"seed {report.seed}: {report.violation}")
    print(f"again: python -m simulation --start {report.seed} --seeds 1\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
