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
    "tenuto.app": ("Visitors.of",),
}
# members for other modules of Tenuto, which no page documents
INTERNAL = {
    "Hub": "allowed_origins ask attach authenticate caller channel clock debug drain_s drive_by_hand flush_ms "
    "hook_signals is_running limits loop node on_start path public_origin questions rates reason_of requires_own_host "
    "retainer runtime start_background submit take_waiting tickets viewing writer_class",
    "MessageWriter": "__init__ asks attempt cancelled_as check decided ids is_beginning made_by take_up turn_attempt "
    "unstored_bytes",
    "RemoteWriter": "check on_attach on_retry rested_s spare_id",
    "Subscription": "__init__",
    "Turn": "__init__ attached begun open_questions take_unused targets",
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
    labels = found.labels - {"class-attribute", "instance-attribute", "module-attribute"}
    kind = "".join(f" [{one}]" for one in sorted(labels))  # such as ` [async]`
    if isinstance(found, griffe.Function):
        yield f"{found.signature(return_type=True, name=path)}{kind}"
    elif isinstance(found, griffe.Attribute):
        is_default = found.labels & {"class-attribute", "module-attribute"} and found.name != "__version__"
        value = f" = {found.value}" if is_default and found.value is not None else ""
        yield f"{path}: {found.annotation}{value}{kind}"
    elif isinstance(found, griffe.Class):
        yield f"{path}({', '.join(map(str, found.bases))})"
        for name, member in sorted(found.all_members.items()):
            is_public = name == "__init__" or not name.startswith("_")
            is_own = name in found.members or "tenuto.core.errors." not in path  # an error has those of its base
            if is_public and is_own and name not in INTERNAL.get(found.name, "").split():
                yield from _lines(f"{path}.{name}", member)


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
