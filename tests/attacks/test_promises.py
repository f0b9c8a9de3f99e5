"""Each promise about unknown peers in `docs/security.md` names a test that exists, and each attack is a promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_, _, _REST = (ROOT / "docs" / "security.md").read_text().partition("<!-- unknown peers: begin -->")
ROWS = [line for line in _REST.partition("<!-- unknown peers: end -->")[0].splitlines() if line.startswith("| ")][1:]
NAMED = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in ROWS]


def names_in(path: Path) -> set[str]:
    """Return the names of the tests in a module."""
    functions = [
        one for one in ast.parse(path.read_text()).body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {one.name for one in functions if one.name.startswith("test_")}


def test_each_promise_names_a_test_that_exists() -> None:
    assert len(ROWS) > 10
    for row, named in zip(ROWS, NAMED, strict=True):
        assert named, row
        for file, name in named:
            assert name in names_in(ROOT / file), row


def test_each_attack_belongs_to_a_promise() -> None:
    named = {name for row in NAMED for _, name in row}
    attacks = [Path(__file__).parent / f"test_{name}.py" for name in ("http", "connections", "sockets")]
    assert {name for path in attacks for name in names_in(path)} == named
