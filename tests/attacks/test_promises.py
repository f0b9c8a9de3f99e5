"""Each section of `docs/security.md` has promises in `tests/promises.md`, and each row names a test that runs.

Layer: tests.
"""

from __future__ import annotations

import re
from pathlib import Path

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
    path, name = ROOT / named[1], re.escape(named[2])
    source = path.read_text() if path.is_file() else ""
    found = re.search(rf"^ *(async )?def {name}\(|\btest\(\"{name}\".*", source, re.MULTILINE)
    if found is None:
        return f"{named[1]} has no {named[2]}"
    decorators = source[: found.start()].rpartition("\n\n")[2]
    is_skipped = re.search(r"mark\.(skip|xfail)\b", decorators) or re.search(r"\b(skip|todo)\b", found[0])
    return f"{named[2]} never runs" if is_skipped else None


def test_each_section_has_promises_whose_tests_exist() -> None:
    assert set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE)) <= SECTIONS.keys()
    rows = {title: promises(section) for title, section in SECTIONS.items()}
    assert [title for title, found in rows.items() if len(found) < 3] == []
    assert [wrong for found in rows.values() for row in found if (wrong := problem(row[-1])) is not None] == []
