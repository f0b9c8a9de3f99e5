"""`python -m proof.fuzz [TARGETS] --seconds 60 --seed 1`: look for inputs that reveal a bug.

Layer: fuzz.

Exits with 1 after a finding. Each finding is shrunk, printed, and kept in the corpus as a regression test. The seconds
are for new inputs of all targets together; the corpus runs before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

from proof.fuzz.engine import Report, Target, fuzz, save
from proof.fuzz.frames import Frames
from proof.fuzz.requests import Requests
from proof.fuzz.wire import RawHttp, RawSocket

TARGETS: dict[str, Callable[[], Target]] = {one.name: one for one in (Requests, Frames, RawHttp, RawSocket)}
REPLAY = "test_corpus_input_finds_no_bug"


def main(arguments: list[str] | None = None) -> int:
    """Run the targets that the arguments name. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m proof.fuzz",
        description="Look for inputs that break something.",
        epilog="Ends with 1 if it found any.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGETS", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of new inputs, for all targets together (60)")
    parser.add_argument(
        "--runs", type=int, help="new inputs of each target, instead of a time; 0: the known ones alone"
    )
    parser.add_argument("--seed", type=int, help="what is drawn; by default another one each time")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    names = chosen.targets or list(TARGETS)
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 1_000_000
    _write_line(f"seed {seed}")
    reports = []
    for name in names:
        target = TARGETS[name]()
        try:
            report = fuzz(
                target,
                seed=seed,
                runs=chosen.runs,
                seconds=None if chosen.runs is not None else chosen.seconds / len(names),
                report_line=_write_line,
            )
        finally:
            target.close()
        reports.append(report)
        print_report(report, seed=seed)
    return 1 if any(report.found for report in reports) else 0


def print_report(report: Report, *, seed: int) -> None:
    """Print the result of a target's run. Save each finding as a file."""
    for found in report.found:
        path = save(found.target, found.given, prefix="found")
        _write_line(f"--- {found.text[:2_000]}\n{json.dumps(found.given)[:4_000]}\nkept as {path}")
        _write_line(f"again: pytest 'tests/fuzz/test_fuzz.py::{REPLAY}[{found.target}-{path.stem}]'")
    if report.found:
        # The seed alone does not repeat the finding: the corpus now contains it, so the same seed draws other inputs.
        _write_line(f"found with seed {seed}; all known inputs again: python -m proof.fuzz {report.target} --runs 0")
    _write_line(
        f"{report.target}: {report.known} known inputs and {report.runs - report.known} new ones in "
        f"{report.spent_s:.1f} s, {len(report.found)} found something"
    )


def _write_line(text: str) -> None:
    print(text.encode(errors="backslashreplace").decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
