"""The size of the whole: lines, modules, words of docs and the calls of three walks, each with a budget that shrinks.

Layer: tests.

`python -m tests.test_budgets` prints the figures. No single module, class or function has a limit: an idea may be as
large as it is. After a change that makes a figure smaller, lower its budget; raising one needs a reason that a stranger
accepts.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.walks import take

ROOT = Path(__file__).parents[1]
KERNEL = ("core", "stores", "hub", "transports", "agents", "")  # "": the modules beside the folders
NOT_KERNEL = ("stores/postgres", "stores/redis", "hub/keep", "testing.py")
WALKS = {"append": "an append to a WebSocket", "attach": "an attach with catch-up", "turn": "a turn with one token"}

# the most that each figure may be
BUDGETS = {
    "lines of tenuto/": 52_260,
    "lines of its kernel": 31_440,
    "modules of tenuto/": 151,
    "files in a folder of tenuto/": 20,
    "lines of interop/": 3_958,
    "lines of tests/": 58_000,
    "lines of proof/ and bench/": 20_000,
    "words of docs without decisions": 50_000,
    "words of decisions": 11_976,
    "words of the changelog": 1_500,
    "words of the README": 1_000,
    "terms of the glossary": 55,
    # walks differ a little from run to run, so these have room for some 12 % more
    "calls of an append to a WebSocket": 80,
    "modules of an append": 16,
    "calls of an attach with catch-up": 110,
    "modules of an attach": 20,
    "calls of a turn with one token": 1_200,
    "modules of a turn": 45,
    "entries of a turn without steps": 6,  # question, claim, beginning, text and end of the answer, end of the turn
    "calls of the steps of such a turn": 3,  # it makes their object, and begins and ends the time that it may take
}


def figures() -> dict[str, int]:
    """Return the figure of each budget."""
    package = ROOT / "tenuto"
    modules = {path.relative_to(package).as_posix(): _lines(path) for path in package.rglob("*.py")}
    folders = [Path(name).parent for name in modules]
    kernel = [
        lines
        for name, lines in modules.items()
        if (name.split("/")[0] if "/" in name else "") in KERNEL and not name.startswith(NOT_KERNEL)
    ]
    docs = [*(ROOT / "docs").glob("*.md")]
    return {
        "lines of tenuto/": sum(modules.values()),
        "lines of its kernel": sum(kernel),
        "modules of tenuto/": len(modules),
        "files in a folder of tenuto/": max(folders.count(one) for one in folders),
        "lines of interop/": sum(lines for name, lines in modules.items() if name.startswith("interop/")),
        "lines of tests/": sum(_lines(path) for path in (ROOT / "tests").rglob("*.py")),
        "lines of proof/ and bench/": sum(
            _lines(path) for one in ("proof", "bench") for path in (ROOT / one).rglob("*.py")
        ),
        "words of docs without decisions": sum(map(_words, docs)),
        "words of decisions": sum(map(_words, (ROOT / "docs" / "decisions").glob("*.md"))),
        "words of the changelog": _words(ROOT / "CHANGELOG.md"),
        "words of the README": _words(ROOT / "README.md"),
        "terms of the glossary": (ROOT / "docs" / "glossary.md").read_text().count("\n| ") - 1,
        **_figures_of_walks(),
    }


def _figures_of_walks() -> dict[str, int]:
    """Return the calls and modules of each walk; the calls differ a little from run to run."""
    with tempfile.TemporaryDirectory() as folder:
        walks = asyncio.run(take(Path(folder)))
    figures = {}
    for name, title in WALKS.items():
        figures[f"calls of {title}"], figures[f"modules of {' '.join(title.split()[:2])}"] = walks[name].figures()
    figures["entries of a turn without steps"] = walks["turn"].entries
    figures["calls of the steps of such a turn"] = sum(path == "agents/steps.py" for path, _ in walks["turn"].calls)
    return figures


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _words(path: Path) -> int:
    return len(path.read_text().split())


def test_no_figure_exceeds_its_budget() -> None:
    found = figures()
    assert found.keys() == BUDGETS.keys()
    assert {name: size for name, size in found.items() if size > BUDGETS[name]} == {}


if __name__ == "__main__":
    for name, size in figures().items():
        print(f"{name:<34}{size:>8,} of {BUDGETS[name]:>8,}")
