"""The shape of the house: who may import whom, and what the core never does (`docs/architecture.md`).

Layer: tests.

These read the source and run nothing of it. A new folder has to be given its place here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.core import errors

PACKAGE = Path(__file__).parents[1] / "holdfast"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted((PACKAGE / "core").glob("*.py"))

# Lower ones know nothing of higher ones. What stands in one row knows nothing of the others in it.
STOREYS = (
    ("_version",),
    ("core",),
    ("portal",),
    ("stores",),
    ("hub",),
    ("transports", "agents"),
    ("client",),
    ("response",),
    ("app",),
    ("__init__",),
    ("demo", "connections", "tail"),
    ("bounded_http",),
    ("bounded_websocket",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
STOREY = {name: height for height, row in enumerate(STOREYS) for name in row}
# Ships beside the product, for other people's tests: it may use all of it, and nothing of it uses this.
BESIDE = ("testing",)

# What of the standard library and of others the core may use: nothing in it waits, opens, asks the time or draws.
CORE_MAY_USE = {
    "__future__",
    "array",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "hashlib",
    "msgspec",
    "msgspec.structs",
    "re",
    "typing",
}
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
REACHING = ("open", "input", "print", "exec", "eval", "__import__", "breakpoint")

# What a client of another process needs: it must not need a server.
CLIENT_SIDE = ("core.view", "core.events", "core.cursor", "core.errors", "core.names", "core.requests", "core.text")


def name_of(path: Path) -> str:
    """A module as it is imported, without `holdfast.`; the package itself is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


def imports(path: Path) -> Iterator[str]:
    """What a module imports, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that they can be read"
            yield node.module or ""
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")
            )


def is_module(name: str) -> bool:
    """Is it a module of ours?"""
    place = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("holdfast.") and (place.with_suffix(".py").exists() or place.is_dir())


def ours(path: Path) -> list[str]:
    """What a module imports of the package, without `holdfast.`; the package itself is `__init__`."""
    found = [name for name in imports(path) if name == "holdfast" or name.startswith("holdfast.")]
    return [name.removeprefix("holdfast.") if name != "holdfast" else "__init__" for name in found]


def top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = top(name_of(path))
    for name in ours(path):
        there = top(name)
        assert there in STOREY or there in BESIDE, f"{name} has no place in the house"
        if here in BESIDE or there == here:
            continue
        assert there not in BESIDE, f"{name_of(path)} imports {name}: the product does not use what is for tests"
        assert STOREY[there] < STOREY[here], f"{name_of(path)} imports {name}, which is not below it"


CLIENT = sorted((PACKAGE / "client").glob("*.py"))


@pytest.mark.parametrize("path", CLIENT, ids=name_of)
def test_client_imports_no_part_of_a_server(path: Path) -> None:
    """`agents` is loaded by clients with handlers only (`test_package`)."""
    assert {top(name) for name in ours(path)} <= {"core", "portal", "agents", "client"}


def test_every_folder_has_its_place() -> None:
    assert {top(name_of(path)) for path in MODULES} == {*STOREY, *BESIDE}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_uses_nothing_that_could_wait(path: Path) -> None:
    others = {name for name in imports(path) if top(name) != "holdfast"}
    assert others <= CORE_MAY_USE


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_never_waits_and_reaches_for_nothing(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not [node.lineno for node in nodes if isinstance(node, WAITING)]
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not set(called) & set(REACHING)
    assert not [node.lineno for node in nodes if isinstance(node, ast.Global)]


def test_a_client_needs_nothing_but_the_core() -> None:
    needed: set[str] = set()
    open_ends = list(CLIENT_SIDE)
    while open_ends:
        name = open_ends.pop()
        if name not in needed:
            needed.add(name)
            open_ends += ours(PACKAGE.joinpath(*name.split(".")).with_suffix(".py"))
    assert {top(name) for name in needed} == {"core"}
    assert needed.isdisjoint({"core.decide", "core.draft", "core.catch_up", "core.document", "core.state"})


EXPLAINED = [path for path in MODULES if path.name != "_version.py"]  # one line, which the build reads


@pytest.mark.parametrize("path", EXPLAINED, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring[0].isupper() or docstring[0] == "`", "a docstring begins as a sentence does"


def error_classes(base: type[errors.HoldfastError] = errors.HoldfastError) -> Iterator[type[errors.HoldfastError]]:
    """All errors of `core.errors`."""
    yield base
    for one in base.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from error_classes(one)


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [one.code for one in error_classes()]
    assert len(codes) > 30
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(one) for one in error_classes())


@pytest.mark.parametrize("error", list(error_classes()), ids=lambda one: one.__name__)
def test_every_error_says_what_it_is_and_whether_to_come_back(error: type[errors.HoldfastError]) -> None:
    assert error.__doc__
    assert error.title[0].isupper()
    assert 400 <= error.status < 600
    if error.retry:
        assert error.status in (429, 503)
    problem = error("detail", length=3).problem()
    assert problem == {
        "type": f"urn:holdfast:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": "detail",
        "code": error.code,
        "length": 3,
    }
