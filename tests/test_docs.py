"""The documents match the code: their links resolve, and every setting is documented.

Layer: tests.

`tests/examples` tests the README's programs, and the behaviour of the examples and pages.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import runpy
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from fastapi import FastAPI

import tenuto
from tenuto import Hub, Limits, MessageWriter
from tenuto.cli.main import main
from tenuto.client import Client, SyncClient, SyncWriter
from tenuto.core import errors
from tenuto.hub.access.tokens import jwt_verifier
from tenuto.hub.keep.archive import Archive
from tests.examples.programs import blocks, client_of

ROOT = Path(__file__).parents[1]
PYTHON = (ROOT / "docs" / "python.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE = [*(ROOT / "tenuto").rglob("*.py"), *(ROOT / "proof").rglob("*.py"), *(ROOT / "tenuto" / "web").rglob("*.js")]
RECORDS = sorted(path for path in (ROOT / "docs" / "decisions").glob("*.md") if path.name != "README.md")

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_UNITS = {"MiB": 1024 * 1024, "KiB": 1024}


def section(text: str, heading: str) -> str:
    """Return the text under `heading`, up to the next heading of the same level."""
    level = heading.split()[0]
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"there is no {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, str]:
    """Return the rows of the tables in `text`: the name in the first column, and the second column."""
    cells = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    return {row[1].split("`")[1]: row[2].strip() for row in cells}


# Programs ---------------------------------------------------------------------------------------------------------


async def test_the_documented_client_gets_its_token_from_the_documented_route() -> None:
    (block,) = (one for one in blocks("docs/sign-in.md") if "/tenuto-token" in one)
    app, secret = FastAPI(), "s" * 32
    known = {"app": app, "SECRET": secret, "current_user": lambda: "ann"}
    exec(block, known)
    accepts = jwt_verifier(secret=secret, audience="chat")
    for page in ("docs/browser.md", "tenuto/web/README.md"):
        fetched = re.search(r'fetch\("(.+?)", \{ method: "(.+?)" \}\)\n  if \(!response\.ok', (ROOT / page).read_text())
        assert fetched is not None, page
        response = client_of(app).request(fetched[2], fetched[1])
        identity = await accepts({"headers": [(b"authorization", b"Bearer " + response.content)]})
        assert (identity and identity.client_id) == "ann", (page, response.text)


# Completeness -----------------------------------------------------------------------------------------------------


def test_every_option_of_a_command_is_documented_with_its_default() -> None:
    assert isinstance(main, click.Group)
    common = rows(section(PYTHON, "### Options of operators"))
    for name, command in main.commands.items():
        arguments = [one.name.upper() for one in command.params if isinstance(one, click.Argument) and one.name]
        options = {one.opts[0]: one for one in command.params if isinstance(one, click.Option)}
        documented = rows(section(PYTHON, f"### `{' '.join(['tenuto', name, *arguments])}`"))
        own = {shown.split()[0] for shown in documented}
        documented |= {shown: default for shown, default in common.items() if shown in options.keys() - own}
        assert {shown.split()[0] for shown in documented} == set(options), name
        for shown, default in documented.items():
            option = options[shown.split()[0]]
            if isinstance(option.default, str | int | float) and option.show_default:
                assert default == f"`{option.default}`", (name, shown)


def test_every_limit_is_documented_with_its_default() -> None:
    documented = rows(section(PYTHON, "## Limits"))
    assert {name: number(shown) for name, shown in documented.items()} == dataclasses.asdict(Limits())


def number(shown: str) -> float:
    """Return `1,000` or `4 MiB` as a number."""
    digits, _, unit = shown.partition(" ")
    return int(digits.replace(",", "")) * _UNITS.get(unit, 1)


def test_every_argument_of_the_hub_is_documented_with_its_default() -> None:
    documented = rows(section(PYTHON, "## Settings").partition("### Stores")[0])
    parameters = dict(inspect.signature(Hub).parameters)
    assert set(documented) == set(parameters)
    for name in ("store", "authenticate", "allowed_origins", "flush_ms", "drain_s", "hooks_signals"):
        assert ast.literal_eval(documented[name].strip("`")) == parameters[name].default


def test_every_argument_of_the_client_is_documented_with_its_default() -> None:
    documented = rows(CLIENT.partition("## Writing")[0])
    parameters = dict(inspect.signature(Client).parameters)
    assert list(documented) == [name for name in parameters if name != "url"]
    for name in ("token", "token_provider", "client_id", "timeout_s"):
        assert ast.literal_eval(documented[name].strip("`")) == parameters[name].default


def test_every_public_name_is_documented() -> None:
    assert [name for name in tenuto.__all__ if f"`{name}`" not in PYTHON] == []


def test_every_error_is_documented() -> None:
    known = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.TenutoError)]
    table = section(PYTHON, "## Errors")
    assert [one.__name__ for one in known if f"`{one.__name__}`" not in table or f"`{one.code}`" not in table] == []


_SIGNATURE = re.compile(r"^(?:\||###) `(?:await )?hub\.(archive\.)?(\w+)\(([^`]*)\)`", re.MULTILINE)
_WRITER_SIGNATURE = re.compile(r"^\| `(?:await )?(\w+)\(([^`]*)\)`", re.MULTILINE)
_CLIENT_SIGNATURE = re.compile(r"`(?:await )?client\.(\w+)\(([^`]*?)\)`")
SIGNATURES: list[tuple[type, str, str]] = [
    *((Archive if of else Hub, *found) for of, *found in _SIGNATURE.findall(PYTHON)),
    *((MessageWriter, *found) for found in _WRITER_SIGNATURE.findall(section(PYTHON, "## Writing"))),
    *((Client, *found) for found in _CLIENT_SIGNATURE.findall(CLIENT) if found[0] not in ("start", "close")),
]


def test_documented_signatures_are_those_of_the_methods() -> None:
    assert len(SIGNATURES) > 50
    of_client = {method for owner, method, _ in SIGNATURES if owner is Client}
    assert of_client == public(Client) - {"start", "close", "is_connected", "error"}
    assert [
        f"{method}({documented})" for owner, method, documented in SIGNATURES if not fits(owner, method, documented)
    ] == []


def fits(owner: type, method: str, documented: str) -> bool:
    """Return whether a method takes the arguments that a page shows, with their defaults."""
    signature = inspect.signature(getattr(owner, method))
    taken = list(signature.parameters)[1:]
    shown = [part.strip().partition("=") for part in documented.split(",") if part.strip() not in ("*", "")]
    names = [name for name, _, _ in shown]
    for name, _, default in shown:
        if default not in ("", "…") and ast.literal_eval(default) != signature.parameters[name].default:
            return False
    before = [] if owner is Client else documented.partition("*")[0].split(",")
    positional = [part for part in before if part.strip()]
    try:
        signature.bind_partial(owner, *positional)  # raises for an argument that a call must name
    except TypeError:
        return False
    # A call without keyword arguments, such as `start_task(coroutine)`, may name its argument for readers.
    return names == taken if "*" in documented or owner is Client else len(names) == len(taken)


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_blocking_client_has_the_same_calls() -> None:
    # without those that need the caller's own loop, and the start and end of the client
    alone = {"channel", "work", "agent", "run", "take_waiting", "is_connected", "drain"}
    assert public(Client) - public(SyncClient) == alone
    assert public(SyncWriter) >= {"append", "part", "update", "flush", "finish", "length", "meta"}


# Links and names --------------------------------------------------------------------------------------------------


_LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_every_link_resolves() -> None:
    broken = []
    for page in PAGES:
        for link in _LINK.findall(_FENCED.sub("", page.read_text())):
            target, _, anchor = link.partition("#")
            found = (page.parent / target).resolve() if target else page
            if "://" not in link and (not found.exists() or (anchor and anchor not in anchors(found))):
                broken.append(f"{page.relative_to(ROOT)} links to {link}")
    assert broken == []


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


_PATH = re.compile(r"`((?:core|stores|hub|transports|web|demo)/[\w/.]+|tests/[\w/.]+)`")


def test_every_documented_file_and_make_target_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing = []
    for page in PAGES:
        text = page.read_text()
        named = _PATH.findall(text) if page.name != "protocol.md" else []
        missing += [path for path in named if not ((ROOT / path).exists() or (ROOT / "tenuto" / path).exists())]
        made = re.findall(r"`make ([a-z]+)`|^make ([a-z]+)$", text, re.MULTILINE)
        missing += [f"make {one or other}" for one, other in made if (one or other) not in targets]
    assert missing == []


def test_every_test_that_a_script_runs_exists() -> None:
    named = {
        one
        for script in (ROOT / "scripts").glob("test_*")
        for one in re.findall(r"(?<=[ (])tests/[\w/{},.*]+", script.read_text())
    }
    assert len(named) > 30
    done = subprocess.run(["bash", "-c", f"ls -d {' '.join(named)}"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_each_test_of_a_client_that_the_documents_name_exists() -> None:
    page = section((ROOT / "docs" / "interop.md").read_text(), "## Tested clients")
    named = re.findall(r"`([\w/]+)::(\w+)`", page + (ROOT / "tests" / "interop" / "clients.md").read_text())
    assert len(named) > 80
    rows = [line.strip("| ").split("|") for line in page.splitlines() if line.startswith("| ") and "::" in line]
    cells = [cell.strip() for _, *tests in rows for cell in tests]
    assert all(re.fullmatch(r"|`[\w/]+::\w+`(, `[\w/]+::\w+`)*", cell) for cell in cells)
    for file, name in named:
        folder, _, file = file.rpartition("/")
        (path,) = (ROOT / "tests" / (folder or "interop")).rglob(f"test_{file}.py")
        found = re.findall(rf"^(?:async )?def test_{name}\w*\(", path.read_text(), re.MULTILINE)
        assert len(found) == 1, (file, name, found)


def test_the_map_of_the_architecture_names_each_folder_and_only_modules_that_exist() -> None:
    text = section((ROOT / "docs" / "architecture.md").read_text(), "## Where to find things")
    package = ROOT / "tenuto"
    folders = {path.parent.name for path in package.rglob("*.py")} - {"tenuto"}
    assert [name for name in sorted(folders) if f"{name}/" not in text] == []
    missing = [name for name in re.findall(r"\b\w+\.py\b", text) if not (package / name).exists()]
    assert missing == []


def script_of_the_site(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return what `scripts/docs.py` defines, which finds the modules beside it only as a program."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "docs.py")))


def test_the_index_lists_each_page_and_the_site_has_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    site = script_of_the_site(monkeypatch)
    listed = [page for pages in site.navigation().values() for page in pages]
    assert sorted([*listed, "index.md"]) == sorted(
        [*(site.page_name(path) for path in (ROOT / "docs").glob("*.md")), "decisions/index.md", *site.REFERENCE]
    )
    page = ROOT / "docs" / "architecture.md"
    assert "](decisions/index.md)" in site.linked(page, "")
    assert "](https://code.example/blob/main/CHANGELOG.md)" in site.linked(
        ROOT / "docs" / "processes.md", "https://code.example"
    )


def test_the_reference_has_what_users_may_call_and_each_type_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    page = script_of_the_site(monkeypatch).REFERENCE["reference-python.md"]()
    entries = {*re.findall(r"^#+ `(.+)`$", page, re.MULTILINE)}
    assert {"MessageWriter.pipe", "MessageWriter.attempt", "Archive.channels", "AskReply", "Piped", "pipe"} <= entries
    assert [one for one in ("reopen_left", "class RemoteWriter", "class ClaimedTurn") if one in page] == []
    code = re.sub("#.*", "", " ".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)))
    package = "\n".join(path.read_text() for path in (ROOT / "tenuto").rglob("*.py"))
    defined = {*re.findall(r"^(?:class )?([A-Z]\w*[a-z]\w*)(?=[(:]| =)", package, re.MULTILINE)}
    named = {*re.findall(r"(?<![.\w])[A-Z]\w*[a-z]\w*", code)} - {"Request"}  # starlette's
    assert sorted((named & defined) - {one.split(".")[-1] for one in entries}) == []


def test_each_question_of_the_index_is_answered_on_a_page_whose_title_it_is() -> None:
    asked = re.findall(r"^- \[… (.+?)\]\((.+?)\)$", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE)
    assert len(asked) > 10
    titles = {page: (ROOT / "docs" / page).read_text().partition("\n")[0] for _, page in asked if "#" not in page}
    assert {page: f"# How do I {question}" for question, page in asked} == titles


# Terms and decisions ---------------------------------------------------------------------------------------------


def glossary() -> list[list[str]]:
    """Return the rows of the glossary's table of terms: term, definition, where it is specified, names in code."""
    lines = [line for line in GLOSSARY.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_glossary_defines_each_term_once_with_its_place_and_its_names_in_code() -> None:
    names = [row[0] for row in glossary()]
    assert len(names) > 20
    assert names == sorted(set(names))
    words = {word for path in CODE for word in re.findall(r"\w+", path.read_text())}
    missing = []
    for term, _, specified, code in glossary():
        named = re.findall(r"`([^`]+)`", code)
        names_of_code = [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
        missing += [name for name in names_of_code if not {*re.findall(r"\w+", name)} <= words]
        if not named or not _LINK.search(specified):  # the test of links checks the target
            missing.append(term)
    assert missing == []


def test_the_index_lists_each_decision() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    for path in RECORDS:
        title = path.read_text().splitlines()[0].removeprefix(f"# {path.name[:4]}: ")
        assert f"[{path.name[:4]}]({path.name}) | {title} |" in index
    assert re.findall(r"^\| \[(\d{4})\]\(", index, re.MULTILINE) == [path.name[:4] for path in RECORDS]
