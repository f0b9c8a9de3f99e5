"""`python -m proof.chaos [NAMES] --rounds N --seed S`: real faults; no acknowledged or shown text is lost.

Layer: chaos.

The exit status is 1 if a scenario failed; the output then describes the failure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time

from proof.chaos.processes import Failure
from proof.chaos.scenarios import ROUNDS, SCENARIOS, run
from proof.chaos.world import Scale


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m proof.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scenarios out of {', '.join(SCENARIOS)} (all)")
    parser.add_argument("--rounds", type=int, default=None, help=f"rounds of each scenario ({ROUNDS})")
    parser.add_argument("--seed", type=int, default=None, help="determines faults and texts (a random one)")
    parser.add_argument("--small", action="store_true", help="shorter faults and messages, as in the tests")
    parser.add_argument("--story", action="store_true", help="print events as they happen")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - SCENARIOS.keys():
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}; expected {', '.join(SCENARIOS)}")
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    failed = []
    for name in chosen.names or SCENARIOS:
        rounds = ROUNDS[name] if chosen.rounds is None else chosen.rounds
        print(f"{name}, seed {seed}, {rounds} rounds: {SCENARIOS[name].__doc__}", flush=True)
        begun_s = time.monotonic()
        try:
            scale = Scale.small(rounds) if chosen.small else Scale(rounds)
            figures = asyncio.run(run(name, seed, scale, write_line=print if chosen.story else None))
        except Failure as failure:
            failed.append(name)
            print(f"{failure.account}\n")
        else:
            listed = ", ".join(f"{value} {what}" for what, value in figures.items())
            print(f"  passed in {time.monotonic() - begun_s:.0f} s: {listed}")
    print(f"seed {seed}: {len(failed)} failed{f': {failed}' if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    # Also at the limit of a script, and in the background, a run ends its processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
