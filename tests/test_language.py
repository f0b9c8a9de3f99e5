"""The language of comments, docstrings, error texts and documents, measured and bounded.

Layer: tests.

The rules are those of a technical writer: name the component that acts, use the field's standard term, and give every
relative clause a noun. A machine cannot judge prose, but it can count two habits that made ours hard to read:
indefinite pronouns ("whoever comes late"), and relative clauses without a noun before them (as in "what is stored").
`python -m tests.test_language [PATH ...]` prints the figures of each folder and the lines that count most.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tenuto.core import errors

ROOT = Path(__file__).parent.parent
FOLDERS = (
    *("tenuto", "proof"),
    *("bench", "examples", "scripts", "tests", "docs", ".ci"),
)
SCRIPTS = (ROOT / "scripts", ROOT / ".ci")  # folders in which files without a suffix count, too
WEB = (".js", ".mjs", ".ts", ".tsx")
TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
MAX_PRONOUNS = 1.5  # per 1,000 words; websockets, starlette, h11, anyio and trio have 0.0 to 1.1
MAX_HEADLESS = 1.0  # per 1,000 words; the same packages have 0 to 0.5

PRONOUNS = re.compile(r"\b(?:whoever|whatever|nobody|nothing|somebody|anybody|everybody|whom)\b", re.IGNORECASE)
_BEFORE = (
    r"(?:of|for|to|by|with|from|and|or|but|than|as|in|on|at|about|after|before"
    r"|is|are|was|only|all|not|also|so|where)"
)
_VERBS = (
    r"accept|add|apply|carry|check|collect|compare|compute|count|delete|deliver|do|draw|drop|expect|find|follow|forget"
    r"|gather|get|give|has|have|hold|ignore|keep|list|load|make|move|need|note|pass|print|put|read|receive|record|remove"
    r"|repeat|replace|return|run|see|send|show|skip|store|take|test|use|write|yield"
)
HEADLESS = re.compile(
    # "what is stored", "who comes late" at the start of a sentence or clause, or behind a preposition or conjunction
    r"(?:(?:^|[.;:,(]\s+|[-–—]\s+)|\b" + _BEFORE + r"\s+)(?:[Ww]ho|[Ww]hat)\s+(?!if\b|about\b|to\b)[a-z`]+(?![^.]*\?)"
    # "return what is stored", "draws what changed": the clause is the object of a verb
    r"|\b(?:" + _VERBS + r")(?:s|es|ed|ing)?\s+what\s+[a-z`]+"
    # "a part that is none", "the answer was no HTTP", but not "there is no"
    r"|\b(?:is|are|was|were)\s+none\b"
    r"|(?<!there )(?<!There )\b(?:is|are|was|were)\s+no\s+(?!longer\b|more\b|less\b|fewer\b|later\b|\w*er\b)[a-z]+",
    re.MULTILINE,
)
# Words of a private dialect, also in the plural. Each has a standard term in docs/glossary.md. The other words of its
# left column (such as `room`, `said` or `blob`) have a standard meaning somewhere in the code, too.
_SINGULAR = {
    *("asker", "desk", "door", "ear", "packet", "passport", "pen", "roster", "seat", "seq", "sink", "topic", "ttl"),
    *("warden", "weather", "wheel"),
}
PRIVATE_WORDS = {"owed", "planted", "throttling"} | _SINGULAR | {f"{word}s" for word in _SINGULAR}
# The glossary replaces these words by send, receive, notify and request. Tests and examples have people and models that
# say a text, so the rule holds for names of the package and of the programs that test it.
SPOKEN_WORDS = {"tell", "tells", "telling", "told", "hear", "heard", "said"}
SPEECHLESS = ("tenuto", "proof", "bench", "scripts")
# Where a private word has its standard meaning: Python's wheels, the wheel of a mouse, and a tool in examples of SDKs.
WHEELS = (
    *("proof/oracle/__init__.py", "scripts", "proof/wirecheck/__init__.py"),
    *("tests/demo/test_page.py", "tenuto/web/demo/visitor.js"),
)
STANDARD_IN = {"wheel": WHEELS, "weather": ("tests/sources", "tests/interop")}
STANDARD_IN_PROSE = {"weather", "seq", "packet"}  # Socket.IO has packets
_LOGGED = {"debug", "info", "warning", "error", "exception", "critical"}
_ERRORS = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
_JS_COMMENT = re.compile(r"(?:^\s*(?://|/?\*+)|\s//\s)(.*)")
_JS_STRING = re.compile(r'"([^"]*)"|`([^`]*)`|(?<!\w)\'([^\']*)\'')


class Line(NamedTuple):
    """One line of prose, and where it stands."""

    path: Path
    number: int
    text: str


def folder_of(path: Path) -> str:
    """Return the folder that `path` counts for: two levels deep in the package and in the tests."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[: 2 if parts[0] in ("tenuto", "tests") and len(parts) > 2 else 1])


@cache
def prose_of(path: Path) -> list[Line]:
    """Return the comments, docstrings, errors and log texts of a file of code, or the text of a document."""
    text = path.read_text()
    if path.suffix == ".md":
        return list(_document(path, text))
    if path.suffix in WEB or text.startswith("#!/usr/bin/env node"):
        return list(_javascript(path, text))
    if path.suffix == ".html":
        return [Line(path, n, re.sub(r"<[^>]*>", " ", line)) for n, line in enumerate(text.splitlines(), 1)]
    return list(_shell(path, text) if path.suffix != ".py" else _python(path, text))


@cache
def tokens_of(path: Path) -> list[tuple[int, int, str]]:
    """Return the type, line and text of each comment and name of a Python file."""
    found = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [(one.type, one.start[0], one.string) for one in found if one.type in (tokenize.COMMENT, tokenize.NAME)]


def _document(path: Path, text: str) -> Iterator[Line]:
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            is_code = not is_code
        elif not is_code:
            yield Line(path, number, re.sub(r"`[^`]*`", "`code`", line))


def _javascript(path: Path, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if comment := _JS_COMMENT.search(line):
            yield Line(path, number, comment[1].strip())
        for string in _JS_STRING.findall(_JS_COMMENT.sub("", line)):
            text = re.sub(r"\$\{[^}]*\}", "X", "".join(string))
            if text.count(" ") > 1:
                yield Line(path, number, text)


def _shell(path: Path, text: str) -> Iterator[Line]:
    """Yield the comments of a script, a Makefile or a TOML file: each begins with `#`, also behind code."""
    for number, line in enumerate(text.splitlines(), 1):
        if comment := re.search(r"(?:^|\s)#+!?\s+(.*)", line):
            yield Line(path, number, comment[1])


def _python(path: Path, text: str) -> Iterator[Line]:
    for kind, number, string in tokens_of(path):
        if kind == tokenize.COMMENT:
            yield Line(path, number, string.lstrip("#: "))
    parts: set[ast.Constant] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for offset, line in enumerate((ast.get_docstring(node, clean=False) or "").splitlines()):
                yield Line(path, node.body[0].lineno + offset, line.strip())
        elif isinstance(node, ast.Raise | ast.Call):
            parts |= {part for text in _texts(node) for part in ast.walk(text) if isinstance(part, ast.Constant)}
    for part in parts:
        if isinstance(part.value, str) and " " in part.value:
            yield Line(path, part.lineno, part.value)


def _texts(node: ast.Raise | ast.Call) -> list[ast.expr]:
    """Return the expressions of a raised exception, of an error that is made or returned, or of a line for the log."""
    if isinstance(node, ast.Raise):
        return [node.exc] if node.exc is not None else []
    return node.args if _has_text(node) else []


def _has_text(call: ast.Call) -> bool:
    """Return whether `call` makes an error or writes to the log."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in _LOGGED:
        return isinstance(call.func.value, ast.Name) and "log" in call.func.value.id.lower()
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _ERRORS or name.endswith("Error")


def files(*folders: str) -> list[Path]:
    """Return the files whose prose counts: code, scripts, pages and documents, without vendored code and decisions."""
    found = [
        path
        for folder in folders or FOLDERS
        for path in ([ROOT / folder] if (ROOT / folder).is_file() else sorted((ROOT / folder).rglob("*")))
        if (path.suffix in (".py", ".md", ".html", *WEB) or (path.parent in SCRIPTS and path.is_file()))
        and not {"node_modules", "decisions", "vendor", "__pycache__"} & set(path.parts)
        and path != Path(__file__)  # it quotes the habits
        and path != ROOT / "tests" / "browser" / "long" / "answers.md"  # answers of models
    ]
    return found if folders else [*found, *(ROOT / name for name in TEXTS)]


class Figures:
    """The counts of one folder: its words, and the lines with each habit."""

    def __init__(self) -> None:
        self.words = 0
        self.pronouns: list[Line] = []
        self.headless: list[Line] = []

    def add(self, line: Line) -> None:
        self.words += len(re.findall(r"[A-Za-z']+", line.text))
        self.pronouns += [line] * len(PRONOUNS.findall(line.text))
        self.headless += [line] * len(HEADLESS.findall(line.text))

    def rate(self, lines: list[Line]) -> float:
        """Return how many of `lines` there are per 1,000 words."""
        return 1000 * len(lines) / max(self.words, 1)


def figures(paths: list[Path]) -> dict[str, Figures]:
    """Return the figures of each folder that `paths` lie in."""
    found: dict[str, Figures] = defaultdict(Figures)
    for path in paths:
        for line in prose_of(path):
            found[folder_of(path)].add(line)
    return found


def shown(lines: list[Line], most: int = 15) -> str:
    """Return the first `most` lines as text, each with its file and number."""
    return "\n".join(f"{one.path.relative_to(ROOT)}:{one.number}: {one.text[:140]}" for one in lines[:most])


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each name in a Python file, or each name and word in the code of a JavaScript file, with its line."""
    if path.suffix in WEB:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for name in re.findall(r"[A-Za-z_$][\w$]*", _JS_COMMENT.sub("", line)):
                yield number, name
        return
    yield from ((number, string) for kind, number, string in tokens_of(path) if kind == tokenize.NAME)


@cache
def private_words_of(name: str) -> set[str]:
    """Return the private words of an identifier: `_read_seats` and `ReadSeats` hold `read` and `seats`."""
    return PRIVATE_WORDS & words_of(name)


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@cache
def all_figures() -> dict[str, Figures]:
    return figures(files())


CHECKED = sorted({folder_of(path) for path in files()})


@pytest.mark.parametrize("folder", CHECKED)
def test_indefinite_pronouns_are_rare(folder: str) -> None:
    found = all_figures()[folder]
    assert found.rate(found.pronouns) <= MAX_PRONOUNS, shown(found.pronouns)


@pytest.mark.parametrize("folder", CHECKED)
def test_relative_clauses_have_a_noun(folder: str) -> None:
    found = all_figures()[folder]
    assert found.rate(found.headless) <= MAX_HEADLESS, shown(found.headless)


def is_standard(word: str, path: Path) -> bool:
    """Return whether the private word `word` has its standard meaning in the file at `path`."""
    return any(path.is_relative_to(ROOT / place) for place in STANDARD_IN.get(word.lower().removesuffix("s"), ()))


def test_identifiers_hold_no_private_words() -> None:
    used = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in files()
        if path.suffix in (".py", *WEB)
        for number, name in identifiers(path)
        for word in private_words_of(name)
        if not is_standard(word, path)
    ]
    assert not used, "\n".join(used[:20])


def test_names_of_the_package_and_its_programs_hold_no_spoken_words() -> None:
    used = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in files(*SPEECHLESS)
        if path.suffix in (".py", *WEB)
        for number, name in identifiers(path)
        if SPOKEN_WORDS & words_of(name)
    ]
    assert not used, "\n".join(used[:20])


def test_prose_holds_no_private_words() -> None:
    word = re.compile(rf"\b(?:{'|'.join(sorted(PRIVATE_WORDS - STANDARD_IN_PROSE))})\b", re.IGNORECASE)
    own = (Path(__file__), ROOT / "docs" / "glossary.md")
    used = [
        line
        for path in files()
        if path not in own
        for line in prose_of(path)
        if not all(is_standard(found, path) for found in word.findall(line.text))
    ]
    assert not used, shown(used)


def test_file_names_hold_no_private_words() -> None:
    unwanted = PRIVATE_WORDS | SPOKEN_WORDS | {"nobody", "somebody", "what", "whoever"}
    unwanted -= {"wheel"}  # Python's
    paths = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    assert [str(path) for path in paths if unwanted & words_of(path.stem) and "node_modules" not in path.parts] == []


def main(paths: list[str]) -> None:
    """Print the figures of each folder, or of the files given, with the lines that count."""
    for folder, found in sorted(figures(files(*paths)).items()):
        rates = f"{found.rate(found.pronouns):6.1f} pronouns {found.rate(found.headless):6.1f} headless"
        print(f"{folder:24} {found.words:7} words {rates} per 1,000")
        if paths:
            print(shown([*found.pronouns, *found.headless], 400))


if __name__ == "__main__":
    main(sys.argv[1:])
