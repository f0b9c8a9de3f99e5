"""`python -m proof.simulation --seeds 1000 --start 0`: run many seeds, and report each that fails.

Layer: simulation.

The exit status is 1 if a seed failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import sys
import time
import types
from typing import cast

from proof.simulation.world import Report, World

SHOWN_LINES = 120
LAST_RESORT_S = 1_500.0  # longest time of one seed, which takes a second, and minutes beside busy processes


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m proof.simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1_000, help="number of seeds (1000)")
    parser.add_argument("--start", type=int, default=0, help="first seed (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--failures", type=int, default=5, help="stop after this number of failures (5)")
    parser.add_argument("--lines", type=int, default=SHOWN_LINES, help=f"lines of each report ({SHOWN_LINES})")
    chosen = parser.parse_args(arguments)
    gc.freeze()
    begun_s = time.monotonic()
    failed: list[int] = []
    seeds = events = 0
    virtual_s = 0.0
    for seed in range(chosen.start, chosen.start + chosen.seeds):
        if len(failed) >= chosen.failures or time.monotonic() - begun_s > chosen.seconds:
            break
        if arguments is None:  # only as a program: the exit would end a test that calls this function, too
            faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True)
        report = run_named(seed)
        seeds, events, virtual_s = seeds + 1, events + report.events, virtual_s + report.virtual_s
        if report.violation is not None:
            failed.append(seed)
            print(f"--- seed {report.seed} (digest {report.digest}) ---\n{report.describe(chosen.lines)}\n", flush=True)
    spent_s = time.monotonic() - begun_s
    print(
        f"{seeds} seeds from {chosen.start}: {len(failed)} failed{f' {failed}' if failed else ''}; {events} events, "
        f"{virtual_s:.0f} virtual seconds in {spent_s:.1f} s ({seeds / max(spent_s, 1e-9):.1f} seeds/s)"
    )
    return 1 if failed else 0


def run_named(seed: int) -> Report:
    """Run a seed by a function that bears its number: a hang in C leaves only Python's own trace."""
    named = f"seed_{seed}"
    return cast("Report", types.FunctionType(_run.__code__.replace(co_name=named), globals(), named)(seed))


def _run(seed: int) -> Report:
    return World(seed).run()


if __name__ == "__main__":
    sys.exit(main())
