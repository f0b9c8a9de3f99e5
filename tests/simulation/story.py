"""What is told of a seed that fails.

Layer: tests.

"""

from __future__ import annotations

from simulation import Report

SHOWN_LINES = 100


def story(report: Report, *, is_as_drawn: bool = True) -> str:
    """The end of what happened, what was wrong, and how to see it again; no command plays a plan that was changed."""
    lines = "\n".join(report.lines[-SHOWN_LINES:])
    again = f"python -m simulation --start {report.seed} --seeds 1" if is_as_drawn else "this test alone does it"
    return f"{lines}\nseed {report.seed}: {report.violation}\nagain: {again}"
