"""Each section of `docs/security.md` has promises in `tests/promises.md`, and each row names a test that runs.

Layer: tests.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
PROMISES = (ROOT / "tests" / "promises.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PROMISES, re.MULTILINE | re.DOTALL))
NAMED = re.compile(r"`(tests/[\w/.]+)::([^`]+)`")


def promises(section: str) -> list[list[str]]:
    """Return the cells of each row of the section's tables whose last column is called `test`."""
    found: list[list[str]] = []
    is_of_promises = False
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if not line.startswith("|"):
            is_of_promises = False
        elif cells[:1] == ["promise"] and cells[-1:] == ["test"]:
            is_of_promises = True
        elif is_of_promises and cells:
            found.append(cells)
    return found


def problem(test: str) -> str | None:
    """Return why a cell does not name one test that runs, or None."""
    named = NAMED.fullmatch(test)
    if named is None:
        return f"{test!r} is not `path::name`"
    path, name = named.groups()
    if not (ROOT / path).is_file():
        return f"{path} does not exist"
    source = (ROOT / path).read_text()
    found = (problem_of_script if path.endswith(".js") else problem_of_module)(source, name)
    return None if found is None else f"{path} {found}"


def problem_of_script(source: str, name: str) -> str | None:
    """Return why a file of tests in JavaScript does not run the test `name`, or None."""
    found = re.search(rf"^ *(?:await )?(?:t\.)?test\(\"{re.escape(name)}\"(.*)", source, re.MULTILINE)
    if found is None:
        return f"has no {name}"
    return f"never runs {name}" if re.search(r"\b(skip|todo)\b", found[1]) else None


def problem_of_module(source: str, name: str) -> str | None:
    """Return why a module of tests does not run the test `name`, or None.

    pytest collects functions of the module, and methods of its classes whose names begin with `Test`. The tests of each
    store inherit those of a class whose name ends with `Contract`.
    """
    body = parsed(source).body
    classes = [one for one in body if isinstance(one, ast.ClassDef) and re.match("Test|.*Contract$", one.name)]
    statements = [one for part in (body, *(one.body for one in classes)) for one in part]
    tests = [one for one in statements if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == name]
    if not (tests and name.startswith("test_")):
        return f"has no {name}"
    assigned = {ast.unparse(one.targets[0]): one.value for one in body if isinstance(one, ast.Assign)}
    marks = [mark for one in (*tests, *classes) for mark in one.decorator_list]
    marks += [assigned[mark] for mark in ("pytestmark", *map(ast.unparse, marks)) if mark in assigned]
    steps = [step for one in tests for step in one.body if not is_text(step)]
    says = "\n".join(map(ast.unparse, (*marks, *steps[:1])))
    is_skipped = re.search(r"mark\.(skip|xfail)\b|mark\.skipif\((True|1)\b|^pytest\.(skip|xfail)\(", says, re.MULTILINE)
    return f"never runs {name}" if is_skipped or not steps else None


@cache
def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a module, which many rows name."""
    return ast.parse(source)


def is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def test_each_section_has_promises_whose_tests_exist() -> None:
    assert set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE)) <= SECTIONS.keys()
    rows = {title: promises(section) for title, section in SECTIONS.items()}
    assert [title for title, found in rows.items() if len(found) < 3] == []
    assert [wrong for found in rows.values() for row in found if (wrong := problem(row[-1])) is not None] == []


TEST = "def test_a():\n    assert True\n"
INNER = TEST.replace("    ", "        ")


@pytest.mark.parametrize(
    ("source", "is_problem"),
    [
        (TEST, False),
        (f"class TestOf:\n    async {INNER}", False),
        (f"@pytest.mark.skipif(not IS_LONG, reason='')\n{TEST}", False),
        (f"class Other:\n    {INNER}", True),
        (f"@pytest.mark.skip(reason='')\n{TEST}", True),
        ("def test_a():\n    'Text.'\n    pytest.skip('')\n    assert True\n", True),
    ],
)
def test_test_that_never_runs_is_a_problem(source: str, is_problem: bool) -> None:
    assert (problem_of_module(source, "test_a") is not None) == is_problem
    assert problem("`tests/attacks/test_promises.py::test_none`") is not None
