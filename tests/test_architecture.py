"""The architecture: the direction of imports, and the limits of the core (`docs/architecture.md`).

Layer: tests.

These tests read the source without running it. A new folder needs an entry in `LAYERS`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tenuto import routes
from tenuto.core import errors

PACKAGE = Path(__file__).parents[1] / "tenuto"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted((PACKAGE / "core").glob("*.py"))

# From the lowest layer to the highest. A folder imports from lower layers only, and not from others in its own row.
LAYERS = (
    ("_version",),
    ("core",),
    ("portal", "development", "watchdog"),
    ("stores",),
    ("hub",),
    ("transports", "agents"),
    ("client",),
    ("response", "routes", "visiting"),
    ("app",),
    ("__init__",),
    ("interop",),
    ("http_parts", "lean_waits", "parse_queue", "tail", "control_client", "server_requests"),
    ("connections",),
    ("bounded_http",),
    ("bounded_websocket",),
    ("serving",),
    ("demo", "workers"),
    ("archiving",),
    ("store_commands",),
    ("cli",),
    ("__main__",),
)
LAYER_NUMBER = {name: number for number, row in enumerate(LAYERS) for name in row}
# Folders for the tests of applications: they may import the whole product, and the product imports none of them.
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

# Modules of the core that a client needs. They must not import a part of a server.
CLIENT_SIDE = ("core.view", "core.events", "core.cursor", "core.errors", "core.names", "core.requests", "core.text")


def name_of(path: Path) -> str:
    """Return the name of a module without `tenuto.`; the package itself is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


class Class(NamedTuple):
    """A class of a module: its bases as they are written, and the names that it defines itself (`attributes_of`)."""

    name: str
    bases: list[str]
    methods: set[str]
    attributes: set[str]
    size: tuple[int, int]


class Outline(NamedTuple):
    """The imports of a module, the home of each name that it imports from the package, and its classes."""

    imports: list[str]
    homes: dict[str, tuple[str, str]]
    classes: list[Class]


@cache
def outline_of(path: Path) -> Outline:
    """Return the outline of a module; the tests share it, because most of their time is that of parsing."""
    outline = Outline([], {}, [])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outline.imports.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            module = node.module or ""
            full = [f"{module}.{alias.name}" for alias in node.names]
            outline.imports.extend([module, *filter(is_own_module, full)])
            if module.startswith("tenuto."):
                home = module.removeprefix("tenuto.")
                outline.homes.update({alias.asname or alias.name: (home, alias.name) for alias in node.names})
        elif isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).partition("[")[0] for base in node.bases]
            outline.classes.append(Class(node.name, bases, methods_of(node), attributes_of(node), size_of(node)))
    return outline


def imports(path: Path) -> list[str]:
    """Return the names that a module imports, also inside functions and for types alone."""
    return outline_of(path).imports


def classes_in(path: Path) -> list[Class]:
    return outline_of(path).classes


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = top(name_of(path))
    for name in own_imports(path):
        there = top(name)
        assert there in LAYER_NUMBER or there in FOR_TESTS, f"{name} has no layer: add it to LAYERS"
        if here in FOR_TESTS or there == here:
            continue
        assert there not in FOR_TESTS, f"{name_of(path)} imports {name}: the product must not import a folder for tests"
        assert LAYER_NUMBER[there] < LAYER_NUMBER[here], (
            f"{name_of(path)} imports {name}, which is not in a lower layer"
        )


# Two modules that name each other's types. Neither imports the other when it runs.
TYPE_CIRCLES = {
    frozenset({"transports.attachments", "transports.session"}),
    frozenset({"client.agents", "client.client"}),
}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {name_of(path): path for path in MODULES}  # the `__init__` of a folder, too
    graph = {name: {found for found in own_imports(path) if found in modules} for name, path in modules.items()}
    reached = {name: reachable(name, graph) for name in graph}
    circles = {
        frozenset(one for one in reached[name] if name in reached[one]) for name in graph if name in reached[name]
    }
    assert circles == TYPE_CIRCLES


def reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that `name` imports, directly or by way of others."""
    found: set[str] = set()
    ahead = list(graph[name])
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += graph[one]
    return found


MAX_METHODS, MAX_ATTRIBUTES = 40, 21
MAX_METHODS_WITH_INHERITED = 50
# The suite for stores has one method for each promise.
WIDE = {"StoreContract": 90, "Hub": 51}


def test_a_class_has_at_most_40_methods_and_21_attributes() -> None:
    sizes = {(name_of(path), one.name): one.size for path in MODULES for one in classes_in(path)}
    too_wide = {
        where: (methods, attributes)
        for where, (methods, attributes) in sizes.items()
        if methods > WIDE.get(where[1], MAX_METHODS) or attributes > MAX_ATTRIBUTES
    }
    assert too_wide == {}


# The programs that test the product. A class of theirs that holds state has the same limits.
TOOLS = [
    path
    for folder in ("oracle", "simulation", "chaos", "fuzz", "wirecheck", "bench")
    for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
]


def test_a_class_of_the_test_tools_has_at_most_40_methods_and_21_attributes() -> None:
    sizes = {(str(path.relative_to(PACKAGE.parent)), one.name): one.size for path in TOOLS for one in classes_in(path)}
    assert len(sizes) > 150
    assert {where: size for where, size in sizes.items() if size[0] > MAX_METHODS or size[1] > MAX_ATTRIBUTES} == {}


# Pairs of classes with one name: the client's is the remote form of the hub's, the stores have the same component,
# a value and the operation that stores it, and a context and the event that begins it.
SAME_NAME = {"Feed", "Subscription", "Tracked", "Command", "Presence"}


def test_no_other_two_classes_have_the_same_name() -> None:
    names = Counter(one.name for path in MODULES for one in classes_in(path))
    assert {name: count for name, count in names.items() if count > 1} == dict.fromkeys(SAME_NAME, 2)


SCRIPTS = sorted((PACKAGE / "web").glob("*.js"))
# The members of a class stand two spaces from the left. A field is declared there, or a method assigns it.
SCRIPT_CLASS = re.compile(r"^(?:export )?class (\w+).*?\{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
SCRIPT_METHOD = re.compile(r"^  (?:/\*\*.*\*/ )?(?:(?:static|async|get|set) )*(#?\w+)\(.*\) \{$", re.MULTILINE)
SCRIPT_FIELD = re.compile(r"^  (?:/\*\*.*\*/ )?(?:static )?(#?\w+)(?: = .*| //.*)?$", re.MULTILINE)
SCRIPT_ASSIGNMENT = re.compile(r"\bthis\.(#?\w+) (?:\?\?)?= ")


def test_a_class_of_the_browser_client_has_at_most_40_methods_and_21_fields() -> None:
    sizes = {(path.name, name): size for path in SCRIPTS for name, size in script_classes(path.read_text()).items()}
    assert sizes["outbox.js", "Outbox"] > (10, 4)
    assert len(sizes) == sum(
        len(re.findall(r"^(?! *\*).*\bclass [A-Z]", path.read_text(), re.MULTILINE)) for path in SCRIPTS
    )
    too_wide = {
        where: (methods, fields)
        for where, (methods, fields) in sizes.items()
        if methods > MAX_METHODS or fields > MAX_ATTRIBUTES
    }
    assert too_wide == {}


def script_classes(text: str) -> dict[str, tuple[int, int]]:
    """Return the number of methods and of fields of each class in a JavaScript module."""
    found = {}
    for name, body in SCRIPT_CLASS.findall(text):
        methods = set(SCRIPT_METHOD.findall(body))
        fields = {*SCRIPT_FIELD.findall(body), *SCRIPT_ASSIGNMENT.findall(body)} - methods
        found[name] = len(methods), len(fields)
    return found


def test_a_class_has_at_most_50_methods_with_those_that_it_inherits_in_the_package() -> None:
    """A base class divides an object into layers, so a whole object may have some more methods than one class."""
    classes = {(name_of(path), one.name): one for path in MODULES for one in classes_in(path)}
    homes = {name_of(path): outline_of(path).homes for path in MODULES}
    methods = {where: set().union(*(one.methods for one in with_bases(where, classes, homes))) for where in classes}
    inherited = [where for where, names in methods.items() if len(names) > len(classes[where].methods)]
    assert len(inherited) > 20
    too_wide = {
        where: len(names)
        for where, names in methods.items()
        if len(names) > WIDE.get(where[1], MAX_METHODS_WITH_INHERITED)
    }
    assert too_wide == {}


def test_a_class_has_at_most_21_attributes_with_those_that_it_inherits_in_the_package() -> None:
    """Two classes have more, for the reasons of decision 0090."""
    classes = {(name_of(path), one.name): one for path in MODULES for one in classes_in(path)}
    homes = {name_of(path): outline_of(path).homes for path in MODULES}
    attributes = {
        where: len(set().union(*(one.attributes for one in with_bases(where, classes, homes)))) for where in classes
    }
    assert attributes["client.writer", "RemoteWriter"] > len(classes["client.writer", "RemoteWriter"].attributes) > 0
    wide = {where: count for where, count in attributes.items() if count > MAX_ATTRIBUTES}
    assert wide == {("app", "Hub"): 22, ("core.outgoing_remote", "RemoteOutgoing"): 22}


# The suite for stores is one class for all promises.
MAX_LINES = 500
LONG = {"core.decide": 540, "testing.contract": 1300, "hub.hub": 520, "transports.session": 510, "routes": 540}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONG.get(name_of(path), MAX_LINES)


def test_a_module_of_the_browser_client_has_at_most_500_lines() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in sorted((PACKAGE / "web").rglob("*.js"))
        if "vendor" not in path.parts
    }
    assert len(lengths) > 50
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


Place = tuple[str, str]  # a module and a name in it


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Return the attributes that the class declares or sets on `self`; none for a record (see `size_of`)."""
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    setters = [one.name for one in methods if fields_set_in(one)]
    if not setters or (setters == ["__init__"] and "__slots__" in ast.dump(node)):
        return set()
    fields = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    return fields | fields_set_in(node)


def methods_of(node: ast.ClassDef) -> set[str]:
    """Return the names of the methods that the class itself defines."""
    return {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def with_bases(where: Place, classes: dict[Place, Class], homes: dict[str, dict[str, Place]]) -> Iterator[Class]:
    """Yield the class at `where`, and its bases in the package."""
    yield classes[where]
    for base in classes[where].bases:
        home = home_of((where[0], base), classes, homes)
        if home is not None:
            yield from with_bases(home, classes, homes)


def home_of(where: Place, classes: dict[Place, Class], homes: dict[str, dict[str, Place]]) -> Place | None:
    """Return the module that defines the class of this name, and its name there; None for a class of other packages."""
    while where not in classes:
        imported = homes.get(where[0], {}).get(where[1])
        if imported is None:
            return None
        where = imported
    return where


def size_of(node: ast.ClassDef) -> tuple[int, int]:
    """Return the number of methods, and of attributes that the class declares or sets on `self`.

    The fields of a record do not count: a Struct, a dataclass or a class with `__slots__` that describes one object and
    has no method that sets a field.
    """
    return sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body), len(attributes_of(node))


def fields_set_in(node: ast.AST) -> set[str]:
    stores = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
    return {one.attr for one in stores if isinstance(one.value, ast.Name) and one.value.id == "self"}


CLIENT = sorted((PACKAGE / "client").glob("*.py"))


@pytest.mark.parametrize("path", CLIENT, ids=name_of)
def test_client_imports_no_part_of_a_server(path: Path) -> None:
    """Only clients with handlers load `agents` (`test_package`)."""
    assert {top(name) for name in own_imports(path)} <= {"core", "portal", "development", "agents", "client"}


def test_every_folder_has_a_layer() -> None:
    assert {top(name_of(path)) for path in MODULES} == {*LAYER_NUMBER, *FOR_TESTS}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_imports_no_module_that_waits_or_performs_io(path: Path) -> None:
    foreign = {name for name in imports(path) if top(name) != "tenuto"}
    assert foreign <= ALLOWED_IN_CORE


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_never_waits_and_performs_no_io(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not [node.lineno for node in nodes if isinstance(node, WAITING)]
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not set(called) & set(IO_CALLS)
    assert not [node.lineno for node in nodes if isinstance(node, ast.Global)]


def test_client_modules_of_the_core_import_the_core_alone() -> None:
    needed: set[str] = set()
    pending = list(CLIENT_SIDE)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += own_imports(PACKAGE.joinpath(*name.split(".")).with_suffix(".py"))
    assert {top(name) for name in needed} == {"core"}
    assert needed.isdisjoint(
        {"core.decide", "core.draft", "core.catch_up", "core.document", "core.message_state", "core.state"}
    )


DOCUMENTED = [path for path in MODULES if path.name != "_version.py"]  # its only line is read by the build


@pytest.mark.parametrize("path", DOCUMENTED, ids=name_of)
def test_every_module_has_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring[0].isupper() or docstring[0] == "`", "a docstring must begin like a sentence"


def test_a_connection_to_a_database_is_closed_by_its_block() -> None:
    """`with` alone ends the transaction and leaves the connection open."""
    for path in [*MODULES, *Path("tests").rglob("*.py"), *Path("bench").rglob("*.py")]:
        assert "with sqlite3" + ".connect(" not in path.read_text(), path


def error_classes(base: type[errors.TenutoError] = errors.TenutoError) -> Iterator[type[errors.TenutoError]]:
    """Yield each error class of `core.errors`."""
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
def test_every_error_has_a_title_and_a_status_that_fits_its_retry(error: type[errors.TenutoError]) -> None:
    assert error.__doc__
    assert error.title[0].isupper()
    assert 400 <= error.status < 600
    if error.retry:
        assert error.status in (429, 503)
    problem = error("detail", length=3).problem()
    assert problem == {
        "type": f"urn:tenuto:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": "detail",
        "code": error.code,
        "length": 3,
    }


ADAPTERS = sorted((PACKAGE / "interop").glob("*.py"))
PUBLIC = {"__init__", "routes", "core.errors"}  # for adapters: documented in `docs/python.md`


@pytest.mark.parametrize("path", ADAPTERS, ids=name_of)
def test_an_adapter_uses_public_names_only_and_has_at_most_400_lines(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert {name for name in own_imports(path) if top(name) != "interop"} <= PUBLIC
    named = [one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and one.module == "tenuto.routes"]
    assert {alias.name for one in named for alias in one.names} <= set(routes.__all__)
    foreign = [one for one in ast.walk(tree) if isinstance(one, ast.Attribute) and one.attr.startswith("_")]
    assert all(isinstance(one.value, ast.Name) and one.value.id == "self" for one in foreign)
    assert len(path.read_text().splitlines()) <= 400
