"""The public API as a file: a change of it needs a line in the changelog (docs/stability.md).

Layer: tests.

`python -m tests.test_api` writes the file anew, as each release does: it has the API of the last release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "api.txt"
PUBLIC = ("tenuto", "tenuto.client", "tenuto.interop", "tenuto.routes", "tenuto.testing")  # all that `__all__` names
# public names of modules with others
NAMED = {
    "tenuto.core.errors": None,  # all classes of errors
    "tenuto.core.view": ("View",),
    "tenuto.hub.access.tokens": ("jwt_verifier",),
}
# members for other modules of Tenuto, which no page documents
INTERNAL = {
    "Hub": "allowed_origins ask attach authenticate caller channel clock debug drain_s drive_by_hand flush_ms "
    "hook_signals is_running limits loop node on_start path public_origin questions rates reason_of requires_own_host "
    "retainer runtime start_background submit take_waiting tickets viewing writer_class",
    "MessageWriter": "__init__ asks attempt cancelled_as decided ids is_beginning made_by take_up turn_attempt "
    "unstored_bytes",
    "Subscription": "__init__",
    "Turn": "__init__ begun open_questions take_unused targets",
}


def api() -> list[str]:
    """Return a line for each public name, with its signature or its type."""
    package = griffe.load("tenuto", search_paths=[ROOT], resolve_aliases=True)
    lines: list[str] = []
    for module in (*PUBLIC, *NAMED):
        found = package if module == "tenuto" else package[module.removeprefix("tenuto.")]
        names = found.exports if module in PUBLIC else NAMED[module] or [one for one in found.classes if one[0] != "_"]
        for name in sorted(map(str, names or ())):
            lines += _lines(f"{module}.{name}", found[name])
    return lines


def _lines(path: str, found: griffe.Object | griffe.Alias) -> Iterator[str]:
    if isinstance(found, griffe.Alias):
        try:
            found = found.final_target
        except griffe.AliasResolutionError:  # a constant that is assigned with others, which griffe does not read
            yield path
            return
    if isinstance(found, griffe.Function):
        yield f"{path}{_signature(found)}"
    elif isinstance(found, griffe.Attribute):
        yield f"{path}: {found.annotation}"
    elif isinstance(found, griffe.Class):
        yield f"{path}({', '.join(map(str, found.bases))})"
        for name, member in sorted(found.all_members.items()):
            is_public = name == "__init__" or not name.startswith("_")
            is_own = name in found.members or not path.startswith(
                "tenuto.core.errors."
            )  # an error has those of its base
            if is_public and is_own and name not in INTERNAL.get(found.name, "").split():
                yield from _lines(f"{path}.{name}", member)


def _signature(found: griffe.Function) -> str:
    parts, is_named = [], False
    for one in found.parameters:
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(one.kind.value if one.kind else "", "")
        if one.kind is griffe.ParameterKind.keyword_only and not is_named:
            parts.append("*")
        is_named = is_named or stars == "*" or one.kind is griffe.ParameterKind.keyword_only
        annotation = f": {one.annotation}" if one.annotation is not None else ""
        default = f" = {one.default}" if one.default is not None and not stars else ""
        parts.append(f"{stars}{one.name}{annotation}{default}")
    return f"({', '.join(parts)}) -> {found.returns}"


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
    parts = name.split(".")
    public = [part for part in parts if part != "__init__"]
    return {".".join(public[start:end]) for start in range(len(public)) for end in range(start + 1, len(public) + 1)}


def documented(name: str) -> bool:
    """Return whether a page has the last part of a name, such as `create`, in code."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    return re.search(rf"`[^`\n]*\b{name.rpartition('.')[2]}\b[^`\n]*`", pages) is not None


def test_a_change_of_the_api_has_a_line_in_the_changelog() -> None:
    before = SNAPSHOT.read_text().splitlines()
    known = changed([], before)
    names = {name for name in changed(before, api()) if name in known or documented(name)}
    changelog = (ROOT / "CHANGELOG.md").read_text()
    missing = unnamed(names, changelog)
    remedy = "name them in backticks under Unreleased in CHANGELOG.md"
    if "\n## [0.1.0]" not in changelog:
        remedy = "nothing is released yet: write the file anew, python -m tests.test_api"
    assert missing == [], f"the public API changed: {remedy}"


def test_each_change_of_a_line_is_a_change_of_its_name() -> None:
    before = ["tenuto.Hub(HubCore)", "tenuto.Hub.create(self, channel: str) -> Message", "tenuto.Limits.parts: int"]
    after = [
        "tenuto.Hub(HubCore)",
        "tenuto.Hub.create(self, channel: str, *, id: str) -> Message",
        "tenuto.new() -> None",
    ]
    names = changed(before, after)
    assert names == {"Hub.create", "Limits.parts", "new"}
    assert unnamed(names, "## [Unreleased]\n- `hub.create` and `Limits.parts`\n## [0.1.0]\n- `new`") == [
        "Hub.create",
        "new",
    ]
    assert unnamed(names, "## [Unreleased]\n- `Hub.create(id=)`, `Limits`, `new`\n") == []


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(api()) + "\n")
