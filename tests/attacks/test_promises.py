"""Each section of `docs/security.md` has a table of its promises, and each row names a test that exists.

Layer: tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMED = re.compile(r"`((?:tests|holdfast/testing)/[\w/.]+)::([^`]+)`")


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
    """Return why a cell does not name one test, or None."""
    named = NAMED.fullmatch(test)
    if named is None:
        return f"{test!r} is not `path::name`"
    path, name = named.groups()
    if not (ROOT / path).is_file():
        return f"{path} does not exist"
    source = (ROOT / path).read_text()
    if path.endswith(".js"):
        is_found = re.search(rf"^ *(?:await )?(?:t\.)?test\(\"{re.escape(name)}\"", source, re.MULTILINE) is not None
    else:
        is_found = re.search(rf"^ *(?:async )?def {re.escape(name)}\(", source, re.MULTILINE) is not None
    return None if is_found else f"{path} has no {name}"


@pytest.mark.parametrize("title", SECTIONS)
def test_section_has_promises_whose_tests_exist(title: str) -> None:
    rows = promises(SECTIONS[title])
    assert len(rows) >= 3, f"the section {title!r} has no table of promises"
    assert [found for row in rows if (found := problem(row[-1])) is not None] == []


def test_page_has_its_sections() -> None:
    assert len(SECTIONS) >= 16


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ("Only text.\n", 0),
        ("| option | |\n|---|---|\n| `--a` | a |\n", 0),
        ("| promise | test |\n|---|---|\n| a | |\n| b | `tests/a.py::b` |\n", 2),
    ],
)
def test_rows_of_promises_are_found(section: str, count: int) -> None:
    assert len(promises(section)) == count


@pytest.mark.parametrize("test", ["", "|", "`tests/attacks/test_promises.py`", "`tests/none.py::test_a`"])
def test_cell_without_a_test_is_a_problem(test: str) -> None:
    assert problem(test) is not None


def test_renamed_test_is_a_problem() -> None:
    assert problem("`tests/attacks/test_promises.py::test_none`") is not None
    assert problem("`tests/attacks/test_promises.py::test_renamed_test_is_a_problem`") is None
