"""The documents match the code: their programs run, their links resolve, and every setting is documented.

Layer: tests.

`tests/examples` tests the behaviour of the examples and pages.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import tenuto
from tenuto import Hub, Limits, MessageWriter
from tenuto.cli import main
from tenuto.core import errors
from tests.examples.programs import client_of, follow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
RECORDS = sorted(path for path in (ROOT / "docs" / "decisions").glob("*.md") if path.name != "README.md")

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_UNITS = {"MiB": 1024 * 1024, "KiB": 1024}
BEFORE, AFTER, ENDPOINT, PASTED, AGENT = _BLOCK.findall(README)


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


def test_the_readmes_program_runs_when_pasted(tmp_path: Path) -> None:
    (tmp_path / "pasted.py").write_text(PASTED)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "pasted.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    types = [line.split('"')[3] for line in ran.stdout.splitlines()]
    assert types[:2] == ["channel.attached", "message.update"]
    assert types[-1] == "message.finish"
    assert set(types[2:-1]) == {"message.append"}


def test_the_readmes_endpoint_answers_every_viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = run_program(ENDPOINT)
    with client_of(program["app"]) as client:
        question_id = client.post("/chats/1", params={"question": "Why?"}).json()["id"]
        view = follow(client, "chat:1", lambda messages: [one.status for one in messages] == ["complete", "complete"])
        question, answer = view.messages()
        assert (question.id, question.text) == (question_id, "Why?")
        assert (answer.reply_to, answer.text) == (question_id, "You asked: Why? This is a long answer. ")


def test_the_readmes_agent_is_present_as_listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "not used")
    with client_of(run_program(AGENT)["app"]) as client:
        members = client.get("/tenuto/v1/channels/chat:1/presence").json()["members"]
        assert [(one["id"], one["data"]) for one in members] == [("assistant", {"state": "listening"})]


def run_program(source: str) -> dict[str, Any]:
    """Run a program of the README without its waits between tokens, and return its names."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(source.replace("asyncio.sleep(0.1)", "asyncio.sleep(0)"), "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("source", _BLOCK.findall(PYTHON))
def test_a_program_of_the_python_page_compiles(source: str) -> None:
    compile(source, "python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# Completeness -----------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, click.Command]]:
    assert isinstance(main, click.Group)
    return sorted(main.commands.items())


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_option_of_a_command_is_documented(name: str, command: click.Command) -> None:
    arguments = [param.name.upper() for param in command.params if isinstance(param, click.Argument) and param.name]
    documented = rows(section(PYTHON, f"### `{' '.join(['tenuto', name, *arguments])}`"))
    options = {param.opts[0]: param for param in command.params if isinstance(param, click.Option)}
    assert {shown.split()[0] for shown in documented} == set(options)
    for shown, default in documented.items():
        option = options[shown.split()[0]]
        if isinstance(option.default, str | int | float) and option.show_default:
            assert default == f"`{option.default}`"


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


def test_every_logger_is_documented() -> None:
    sources = [path.read_text() for path in (ROOT / "tenuto").rglob("*.py")]
    used = {name for source in sources for name in re.findall(r'getLogger\("(tenuto\.\w+)"\)', source)}
    (sentence,) = re.findall(r"^Log messages go to the loggers (.*?)\.$", PYTHON, re.MULTILINE | re.DOTALL)
    assert set(re.findall("`(.+?)`", sentence)) == used


def test_every_public_name_is_documented() -> None:
    assert [name for name in tenuto.__all__ if f"`{name}`" not in PYTHON] == []


def test_every_error_is_documented() -> None:
    known = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.TenutoError)]
    table = section(PYTHON, "## Errors")
    assert [one.__name__ for one in known if f"`{one.__name__}`" not in table or f"`{one.code}`" not in table] == []
    on_the_wire = [one.code for one in known if one is not errors.LocalError]
    assert [code for code in on_the_wire if f"`{code}`" not in section(PROTOCOL, "## 9. Errors")] == []


_SIGNATURE = re.compile(r"`(?:await )?hub\.(\w+)\(([^`]*)\)`")
_WRITER_SIGNATURE = re.compile(r"^\| `(?:await )?(\w+)\(([^`]*)\)`", re.MULTILINE)
SIGNATURES = [(Hub, *found) for found in _SIGNATURE.findall(PYTHON)] + [
    (MessageWriter, *found) for found in _WRITER_SIGNATURE.findall(section(PYTHON, "## Writing"))
]


@pytest.mark.parametrize(("owner", "method", "documented"), SIGNATURES)
def test_a_documented_signature_is_that_of_the_method(owner: type, method: str, documented: str) -> None:
    taken = list(inspect.signature(getattr(owner, method)).parameters)[1:]
    names = [part.partition("=")[0].strip() for part in documented.split(",") if part.strip() not in ("*", "")]
    # A call without keyword arguments, such as `start_task(coroutine)`, may name its argument for readers.
    assert len(names) == len(taken)
    if "*" in documented:
        assert names == taken


def test_the_main_methods_are_documented() -> None:
    documented = {method for owner, method, _ in SIGNATURES if owner is Hub}
    assert documented >= {"message", "create", "update", "finish", "delete", "read", "history", "subscribe"}
    assert documented >= {"start", "start_task", "drain", "close", "delete_channel"}


# Links and names --------------------------------------------------------------------------------------------------


def shown_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=shown_path)
def test_every_link_resolves(page: Path) -> None:
    prose = _FENCED.sub("", page.read_text())
    for link in _LINK.findall(prose):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{shown_path(page)} links to {link}"
        if anchor:
            assert anchor in anchors(found), f"{shown_path(page)} links to {link}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=shown_path)
def test_every_documented_make_target_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = re.findall(r"`make ([a-z]+)`|^make ([a-z]+)$", page.read_text(), re.MULTILINE)
    assert [one or other for one, other in code if (one or other) not in targets] == []


_PATH = re.compile(r"`((?:core|stores|hub|transports|testing|web|demo)/[\w/.]+|tests/[\w/.]+)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "protocol.md"], ids=shown_path)
def test_every_documented_file_exists(page: Path) -> None:
    found = _PATH.findall(page.read_text())
    missing = [path for path in found if not (ROOT / path).exists() and not (ROOT / "tenuto" / path).exists()]
    assert missing == []


def test_the_map_of_the_architecture_names_each_module_of_the_package() -> None:
    text = section((ROOT / "docs" / "architecture.md").read_text(), "## Where to find things")
    folders = {part.split("/")[0]: part for part in re.split(r"^  (?=\w)", text, flags=re.MULTILINE)}
    package = ROOT / "tenuto"
    found = [path for pattern in ("*.py", "*/*.py", "*/*.js") for path in package.glob(pattern) if path.stem[0] != "_"]
    assert len(found) > 200
    inside = [path for path in found if path.parent != package]
    missing = [path for path in inside if not re.search(rf"\b{path.stem}\b", folders[path.parent.name])]
    missing += [path for path in found if path.parent == package and path.name not in text]
    assert [str(path.relative_to(package)) for path in missing] == []


# Terms ------------------------------------------------------------------------------------------------------------

TERMS = """
    access control, adopter, answer, attach, attempt, backpressure, batch, book, branch, caller, capability,
    catch-up, channel, claim, command, committer, connection slot, credentials, cursor, detach, document, draft,
    drain, dump, entry, ephemeral event, epoch, event, export, fault model, feed, fence, floor, flush window, fold,
    follower, generation, head, heartbeat, held turn, hold, hub, in flight, item, leader, lease, lease monitor,
    life, mark, member, message, mutant, new start, node, nonce, note, offset, operation, oracle, outbox, park,
    part, position, presence, reconnect, recorder, reply, result, resume, retention, round, seal, segment, sender,
    serial, shut down, signal, slot, store, subscriber, tail, ticket, token, turn, turn scheduler, verifier, viewer,
    visitor, worker, writer
"""
TERMS_TABLE, _, REPLACED_TABLE = GLOSSARY.partition("## Words that these terms replace")
REPLACED = sorted(set(re.findall(r"`([a-z]+)`", REPLACED_TABLE)) - {"leave"})  # a member leaves; a process shuts down
PROSE_PAGES = [
    page for page in PAGES if page.parent.name != "decisions" and page.name not in ("glossary.md", "benchmarks.md")
]
SOURCES = [
    path
    for folder in ("tenuto", "oracle", "simulation", "chaos", "wirecheck", "tests")
    for path in (ROOT / folder).rglob("*.py")
]


def glossary() -> list[list[str]]:
    """Return the rows of the glossary's table of terms: term, definition, where it is specified, names in code."""
    lines = [line for line in TERMS_TABLE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_glossary_defines_each_term_once_in_alphabetical_order() -> None:
    names = [row[0] for row in glossary()]
    assert names == sorted(names)
    defined = [term for name in names for term in name.split(", ")]
    assert sorted(defined) == sorted(term.strip() for term in TERMS.split(","))


@pytest.mark.parametrize("row", glossary(), ids=lambda row: row[0])
def test_a_term_of_the_glossary_has_a_specification_and_names_in_code(row: list[str]) -> None:
    _, definition, specified, names = row
    assert definition.endswith(".")
    assert _LINK.search(specified)  # the test of links checks the target
    assert names
    for name in re.findall(r"`([^`]+)`", names):
        assert is_in_code(name), name


def is_in_code(name: str) -> bool:
    """Return whether `name` is a module of the repository, or whether its last word is a word of the code."""
    if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() or (ROOT / f"{name.replace('.', '/')}.py").exists():
        return True
    word = re.compile(rf"\b{re.escape(name.rpartition('.')[2])}\b")
    return any(word.search(path.read_text()) for path in SOURCES)


def test_the_protocol_defines_terms_of_the_glossary_only() -> None:
    defined = re.findall(r"^\| \*\*([\w -]+)\*\* \|", section(PROTOCOL, "## 1. Terms"), re.MULTILINE)
    assert len(defined) == 7
    assert set(defined) <= {row[0] for row in glossary()}


@pytest.mark.parametrize("page", PROSE_PAGES, ids=shown_path)
def test_a_page_uses_no_word_that_a_term_replaces(page: Path) -> None:
    text = re.sub(r"<!-- permissions: begin -->.*<!-- permissions: end -->", "", page.read_text(), flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`", "", _FENCED.sub("", text)).lower()
    assert len(REPLACED) > 20
    assert [word for word in REPLACED if re.search(rf"\b{word}\b", prose)] == []


# Decisions --------------------------------------------------------------------------------------------------------


def test_decisions_have_a_number_of_their_own_and_are_listed() -> None:
    assert all(re.match(r"\d{4}-", path.name) for path in RECORDS)
    assert len({path.name[:4] for path in RECORDS}) == len(RECORDS)
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    for path in RECORDS:
        title = path.read_text().splitlines()[0].removeprefix(f"# {path.name[:4]}: ")
        assert f"[{path.name[:4]}]({path.name}) | {title} |" in index
    listed = re.findall(r"^\| \[(\d{4})\]\(", index, re.MULTILINE)
    assert listed == [path.name[:4] for path in RECORDS]
    replaced = {path.name[:4] for path in RECORDS if "- Status: superseded" in path.read_text()}
    assert set(re.findall(r"^\| \[(\d{4})\]\(.*\| superseded \|$", index, re.MULTILINE)) == replaced


@pytest.mark.parametrize("record", RECORDS, ids=shown_path)
def test_a_decision_has_its_form_on_one_page(record: Path) -> None:
    lines = record.read_text().splitlines()
    assert re.fullmatch(r"- Date: \d{4}-\d\d-\d\d", lines[2])
    assert re.fullmatch(r"- Status: (accepted|superseded by \[\d{4}\]\(.*\))", lines[3])
    assert lines[5].startswith("In short: ")
    assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Consequences"]
    assert len(lines) <= 60
