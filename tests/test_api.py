"""The public API as a file: a change of it needs a line in the changelog (docs/stability.md).

Layer: tests.

`python -m tests.test_api` writes the file anew, as each release does: it has the API of the last release.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import griffe

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "api.txt"
PUBLIC = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "public.py")))


def api() -> list[str]:
    """Return a line for each public name, with its signature or its type."""
    lines: list[str] = []
    for one in PUBLIC.names():
        path = f"{one.module}.{one.name}"
        lines.append(_line(path, one.found))
        lines += [_line(f"{path}.{key}", member) for key, member in one.members.items()]
    return lines


def _line(path: str, found: griffe.Object | None) -> str:
    if isinstance(found, griffe.Class):
        return f"{path}({', '.join(map(str, found.bases))})"
    labels = found.labels - {"class-attribute", "instance-attribute", "module-attribute"} if found else ()
    kind = "".join(f" [{one}]" for one in sorted(labels))  # such as ` [async]`
    if isinstance(found, griffe.Function):
        return f"{found.signature(return_type=True, name=path)}{kind}"
    if isinstance(found, griffe.Attribute):
        is_default = found.labels & {"class-attribute", "module-attribute"} and found.name != "__version__"
        value = f" = {found.value}" if is_default and found.value is not None else ""
        return f"{path}: {PUBLIC.type_of(found)}{value}{kind}"
    return path


def changed(before: list[str], after: list[str]) -> set[str]:
    """Return the names whose lines differ, such as `Hub.create`."""
    return {re.split(r"[(:]", line, maxsplit=1)[0].split(".", 1)[1] for line in {*before} ^ {*after}}


def unnamed(names: set[str], changelog: str) -> list[str]:
    """Return the names that the part of the changelog for the next release does not have in backticks."""
    part = changelog.partition("## [Unreleased]")[2].partition("\n## [")[0]
    known = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", part))))
    return sorted(name for name in names if not known & _spellings(name))


def _spellings(name: str) -> set[str]:
    """Return the spellings that name a change: `Hub.create` for `Hub.create`, and a class for any of its members."""
    parts = [part for part in name.split(".") if part != "__init__"]
    named = next((at for at, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)  # no module alone
    return {".".join(parts[start:end]) for start in range(named + 1) for end in range(named + 1, len(parts) + 1)}


def test_a_change_of_the_api_has_a_line_in_the_changelog() -> None:
    changelog, names = (ROOT / "CHANGELOG.md").read_text(), changed(SNAPSHOT.read_text().splitlines(), api())
    if "\n## [0.1.0]" not in changelog:
        assert names == set(), "nothing is released yet: write the file anew, python -m tests.test_api"
    remedy = "name them in backticks under Unreleased in CHANGELOG.md"
    assert unnamed(names, changelog) == [], f"the public API changed: {remedy}"


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(api()) + "\n")
