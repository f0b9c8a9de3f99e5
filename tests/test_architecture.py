"""The architecture: the direction of imports, and the limits of the core (`docs/architecture.md`).

Layer: tests.

These tests read the source without running it. A new folder needs an entry in `LAYERS`.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from tenuto import routes
from tests.transports.test_protocol import classes

PACKAGE = Path(__file__).parents[1] / "tenuto"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted((PACKAGE / "core").glob("*.py"))

# From the lowest layer to the highest. A folder imports from lower layers only, and not from others in its own row.
LAYERS = (
    ("_version",),
    ("core",),
    ("portal", "development", "watchdog"),
    ("stores", "sources"),
    ("hub",),
    ("transports",),
    ("agents",),
    ("client",),
    ("response", "routes"),
    ("app",),
    ("__init__",),
    ("interop",),
    ("server",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LAYER_NUMBER = {name: number for number, row in enumerate(LAYERS) for name in row}
# For the tests of applications: it may import the whole product, and the product does not import it.
FOR_TESTS = ("testing",)

# Modules outside Tenuto that the core may import: none of them waits, opens a file, reads a clock or draws numbers.
ALLOWED_IN_CORE = {
    "__future__",
    "array",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "msgspec",
    "msgspec.structs",
    "re",
    "typing",
}
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
IO_CALLS = ("open", "input", "print", "exec", "eval", "__import__", "breakpoint")


def name_of(path: Path) -> str:
    """Return the name of a module without `tenuto.`; the package itself is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


@cache
def imports(path: Path) -> list[str]:
    """Return the names that a module imports, also inside functions and for types alone."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            module = node.module or ""
            found.extend([module, *filter(is_own_module, (f"{module}.{alias.name}" for alias in node.names))])
    return found


@cache
def is_own_module(name: str) -> bool:
    """Return whether `name` is a module of Tenuto."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("tenuto.") and (place.with_suffix(".py").exists() or place.is_dir())


def own_imports(path: Path) -> list[str]:
    """Return the imports of a module from the package, without `tenuto.`; the package itself is `__init__`."""
    found = [name for name in imports(path) if name == "tenuto" or name.startswith("tenuto.")]
    return [name.removeprefix("tenuto.") if name != "tenuto" else "__init__" for name in found]


def top(name: str) -> str:
    return name.split(".")[0]


def test_imports_point_one_way() -> None:
    for path in MODULES:
        here = top(name_of(path))
        for name in own_imports(path):
            there = top(name)
            assert there in LAYER_NUMBER or there in FOR_TESTS, f"{name} has no layer: add it to LAYERS"
            if here in FOR_TESTS or there == here:
                continue
            assert there not in FOR_TESTS, f"{name_of(path)} imports {name}, which is for tests"
            assert LAYER_NUMBER[there] < LAYER_NUMBER[here], (
                f"{name_of(path)} imports {name}, which is not in a lower layer"
            )


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {name_of(path): path for path in MODULES}  # the `__init__` of a folder, too
    graph = {name: {found for found in own_imports(path) if found in modules} for name, path in modules.items()}
    # These two name each other's types. Neither imports the other when it runs.
    for one, other in (("client.agents", "client.client"), ("client.client", "client.agents")):
        TopologicalSorter({**graph, one: graph[one] - {other}}).prepare()  # raises an error that names a circle


def test_core_imports_no_module_that_waits_or_performs_io() -> None:
    assert {name for path in CORE for name in imports(path) if top(name) != "tenuto"} <= ALLOWED_IN_CORE


def test_core_never_waits_and_performs_no_io() -> None:
    for path in CORE:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [node.lineno for node in nodes if isinstance(node, (*WAITING, ast.Global))], path
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not called & set(IO_CALLS), path


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [one.code for one in classes()]
    assert len(codes) > 30
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(one) for one in classes())


def test_every_error_has_a_title_and_a_status_that_fits_its_retry() -> None:
    for error in classes():
        assert error.__doc__
        assert error.title[0].isupper()
        assert error.status in ((429, 503) if error.retry else range(400, 600))
        assert error("detail", length=3).problem() == {
            "type": f"urn:tenuto:error:{error.code}",
            "title": error.title,
            "status": error.status,
            "detail": "detail",
            "code": error.code,
            "length": 3,
        }


ADAPTERS = sorted((PACKAGE / "interop").glob("*.py"))
PUBLIC = {"__init__", "routes", "core.errors"}  # for adapters: documented in `docs/python.md`


def test_adapters_use_public_names_only() -> None:
    used = {path: set(own_imports(path)) - PUBLIC for path in ADAPTERS}
    assert {name_of(path): names for path, names in used.items() if any(top(name) != "interop" for name in names)} == {}
    trees = {path: list(ast.walk(ast.parse(path.read_text()))) for path in ADAPTERS}
    for path, nodes in trees.items():
        named = [one for one in nodes if isinstance(one, ast.ImportFrom) and one.module == "tenuto.routes"]
        assert {alias.name for one in named for alias in one.names} <= set(routes.__all__), path
        private = [
            one for one in nodes if isinstance(one, ast.Attribute) and re.match("_(?!replace$|_init__$)", one.attr)
        ]
        assert all(isinstance(one.value, ast.Name) and one.value.id == "self" for one in private), path


def test_what_could_be_a_package_of_its_own_uses_public_names_only() -> None:
    folders = ("sources", "server", "stores/postgres", "stores/redis", "cli")
    for path in (one for folder in folders for one in sorted((PACKAGE / folder).glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tenuto."):
                assert not [alias.name for alias in node.names if re.match("_(?!_)", alias.name)], path
            if isinstance(node, ast.Attribute) and re.match("_(?!replace$|_)", node.attr):
                assert ast.unparse(node.value) in ("self", "super()", "cls", "sys"), f"{path}, line {node.lineno}"
