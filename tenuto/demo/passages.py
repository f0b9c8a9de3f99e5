"""Passages: a search for the paragraphs of this documentation that fit a question.

Layer: demo.

Only `documents()` does I/O. It reads the Markdown files: the copy that the installed package has under
`tenuto/demo/text`, or else the files of the checkout. Ranking and cutting may change freely; a running answer detects
the change by its text, and reports it (see `agent`).

Ranking is BM25 over passages with their headings: an old and simple method. The same files and the same question give
the same passages in the same order, on every machine.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenuto.core.errors import LocalError

__all__ = ["LONGEST_PASSAGE", "Library", "Passage", "cut_into_passages", "documents", "library", "same_terms", "terms"]

LONGEST_PASSAGE = 900  # in code points: some 200 tokens, which take four seconds of an answer

# The usual constants of BM25: how little each repetition of a word adds, and the penalty for a long passage.
_SATURATION, _LENGTH_PENALTY = 1.2, 0.75
_HEADING_WEIGHT = 2  # a word of the nearest heading describes a passage better than one word of many in its text
_SYNONYM_WEIGHT = 0.5

# Words of questions that do not help to find a passage.
_QUESTION_WORDS = (
    "a about after all an and any are as at be been but by can could did do does explain for "
    "from get got had happen happened happens has have how i if in into is it its made make "
    "many may me mean means much my no not of on one or our press should so some tell than "
    "that the their them then there these they this to us use used using was we were what "
    "when where which while who why will with without work works would you your"
)
_STOP_WORDS = frozenset(_QUESTION_WORDS.split())
_SYNONYMS = (
    ("refresh", "reload", "f5"),
    ("crash", "die", "dead", "kill", "interrupt"),
    ("lose", "lost", "missing"),
    ("stop", "cancel"),
    ("tab", "window", "device"),
    ("user", "viewer", "reader", "client"),
    ("database", "sqlite", "store"),
    ("quick", "fast", "latency"),
    ("agent", "writer", "producer"),
    ("install", "setup"),
)


@dataclass(frozen=True)
class Passage:
    """A paragraph, list, table or code block, with its file and its headings."""

    source: str  # the path of the file in the repository, e.g. `docs/protocol.md`
    headings: tuple[str, ...]  # from the outermost to the nearest
    text: str  # Markdown, at most LONGEST_PASSAGE


class Library:
    """The passages of a set of documents, with an index for search."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        """Index `documents`, which maps a file name to its Markdown in the order of reading."""
        self.passages: tuple[Passage, ...] = tuple(
            itertools.chain.from_iterable(cut_into_passages(name, text) for name, text in documents.items())
        )
        self._counts = [_weighted_terms(passage) for passage in self.passages]
        self._lengths = [counts.total() for counts in self._counts]
        self._typical_length = sum(self._lengths) / max(1, len(self._lengths))
        self._holders = Counter(itertools.chain.from_iterable(self._counts))

    def search(self, question: str) -> list[Passage]:
        """Return the passages that share words with `question`, best first. Equal ones keep their order."""
        wanted = _wanted_terms(question)
        scores = [self._score(index, wanted) for index in range(len(self.passages))]
        ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        return [self.passages[index] for index in ranked if scores[index] > 0]

    def _score(self, index: int, wanted: Mapping[str, float]) -> float:
        counts = self._counts[index]
        length = self._lengths[index] / self._typical_length if self._typical_length else 1.0
        damping = _SATURATION * (1 - _LENGTH_PENALTY + _LENGTH_PENALTY * length)
        score = 0.0
        for term, weight in wanted.items():
            if count := counts.get(term, 0):
                score += weight * self._rarity(term) * count * (_SATURATION + 1) / (count + damping)
        return score

    def _rarity(self, term: str) -> float:
        holders = self._holders[term]
        return math.log(1 + (len(self.passages) - holders + 0.5) / (holders + 0.5))


@functools.cache
def library() -> Library:
    """Return the passages of the project's documentation. Raises LocalError if this installation has none."""
    # Leave out the printed figures of the benchmarks: a thousand lines that match every question and answer none.
    return Library({name: _FIGURES.sub("", text) for name, text in documents().items()})


@functools.cache
def documents() -> dict[str, str]:
    """Return the project's documentation by file name, read once. Raises LocalError if this installation has none."""
    package = Path(__file__).parent
    for root in (package / "text", package.parent.parent):
        # A stray README.md beside an installed package is not this project's: only a tree with `docs` counts.
        if (root / "docs").is_dir():
            return _read_documents(root)
    raise LocalError(
        f"the demo needs the documentation, and {package / 'text'} has no folder docs: "
        "install tenuto again, or run it from a clone"
    )


_FIGURES = re.compile(r"<!-- figures: begin -->.*?<!-- figures: end -->", re.DOTALL)


def _read_documents(root: Path) -> dict[str, str]:
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files if file.is_file()}


# Cutting ----------------------------------------------------------------------------------------------------


def cut_into_passages(source: str, markdown: str) -> list[Passage]:
    """Return the passages of `markdown` in order, with their headings. A block that ends in a colon takes the next."""
    passages: list[Passage] = []
    for headings, blocks in itertools.groupby(_blocks(markdown), key=lambda block: block[0]):
        texts = _join_related([_unwrapped(text) for _, text in blocks])
        pieces = itertools.chain.from_iterable(map(_cut_to_size, texts))
        passages.extend(Passage(source, headings, piece) for piece in pieces)
    return passages


_HEADING = re.compile(r"(#{1,6})\s+(.*?)[\s#]*")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")


def _blocks(markdown: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each run of lines between blank lines with its headings; a fenced block is one run with its blank lines."""
    headings: list[tuple[int, str]] = []
    lines: list[str] = []
    fence: str | None = None

    def block() -> Iterator[tuple[tuple[str, ...], str]]:
        text = "\n".join(lines).strip("\n")
        lines.clear()
        if text.strip():
            yield tuple(title for _, title in headings), text

    for line in markdown.splitlines():
        mark = _FENCE.match(line)
        if fence is None and mark:
            yield from block()
            fence = mark[1]
            lines.append(line)
        elif fence is not None:
            lines.append(line)
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = None
                yield from block()
        elif heading := _HEADING.fullmatch(line):
            yield from block()
            level = len(heading[1])
            headings = [above for above in headings if above[0] < level] + [(level, heading[2])]
        elif line.strip():
            lines.append(line)
        else:
            yield from block()
    yield from block()


_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_OWN_LINE = re.compile(r"[-*+] |\d+[.)] |[|>#]")  # Markdown that begins a new line even in wrapped text
_HARD_BREAK = ("  ", "\\")


def _unwrapped(text: str) -> str:
    """Return `text` with joined lines and described pictures: easier to read on a page that shows raw Markdown."""
    if _FENCE.match(text) or text.startswith("    "):
        return text
    lines: list[str] = []
    for line in _IMAGE.sub(r"(Picture: \1)", text).split("\n"):
        if lines and not _OWN_LINE.match(line.lstrip()) and not lines[-1].endswith(_HARD_BREAK):
            lines[-1] += " " + line.lstrip()
        else:
            lines.append(line)
    return "\n".join(lines)


_TERSE = 80  # in code points; a shorter block means little without the next one


def _join_related(texts: Sequence[str]) -> list[str]:
    """Return `texts` with each block joined to the previous one if that announces it or is too short to stand alone."""
    joined: list[str] = []
    for text in texts:
        before = joined[-1] if joined else ""
        is_announced = before.endswith(":") or len(before) <= _TERSE
        if before and is_announced and len(before) + len(text) + 2 <= LONGEST_PASSAGE:
            joined[-1] += "\n\n" + text
        else:
            joined.append(text)
    return joined


_ITEM = re.compile(r"([-*+]|\d+[.)]) ")
_TABLE_RULE = re.compile(r"\|?[\s:|-]*-[\s:|-]*")
_TALKATIVE = 160  # in code points; a longer list item is a passage of its own


def _cut_to_size(text: str) -> Iterator[str]:
    """Yield `text` in pieces of at most LONGEST_PASSAGE: lists split at items, tables at rows, under their head."""
    lines = text.split("\n")
    is_table = len(lines) > 2 and "|" in lines[1] and _TABLE_RULE.fullmatch(lines[1]) is not None
    head = "\n".join(lines[:2]) + "\n" if is_table else ""
    if len(head) > LONGEST_PASSAGE // 2:
        head = ""
    room = LONGEST_PASSAGE - len(head)
    piece = ""
    for line in _short_lines(lines[2:] if head else lines, room):
        is_full = len(piece) + 1 + len(line) > room
        if piece and (is_full or (len(piece) >= _TALKATIVE and _ITEM.match(line))):
            yield head + piece
            piece = ""
        piece = f"{piece}\n{line}" if piece else line
    if piece.strip():
        yield head + piece


def _short_lines(lines: Iterable[str], longest: int) -> Iterator[str]:
    """Yield `lines`; split a line longer than `longest` after a sentence, or else anywhere."""
    for line in lines:
        rest = line
        while len(rest) > longest:
            end = max(rest.rfind(mark, 0, longest) for mark in (". ", "; ")) + 1 or longest
            yield rest[:end]
            rest = rest[end:].lstrip()
        yield rest


# Terms ------------------------------------------------------------------------------------------------------

# A word, or one character of a script that puts no spaces between its words.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]|[^\W_\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]+")


def terms(text: str) -> list[str]:
    """Return the words of `text` in the form for comparison: case-folded stems without stop words."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [_stem(word) for word in words if word not in _STOP_WORDS]


def same_terms(text: str) -> frozenset[str]:
    """Return the terms of `text`, with one term for all synonyms: a set for the comparison of two questions."""
    return frozenset(min(_SYNONYM_STEMS.get(term, (term,))) for term in terms(text))


def _stem(word: str) -> str:
    """Return a simple stem of `word`: `stores`, `stored` and `storing` have the same."""
    if len(word) < 4 or not word.isascii() or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word.removesuffix(ending)
            return stem[:-1] if stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem
    return word


def _weighted_terms(passage: Passage) -> Counter[str]:
    counts = Counter(terms(passage.text))
    counts.update(itertools.chain.from_iterable(map(terms, passage.headings)))
    for term in terms(passage.headings[-1]) if passage.headings else ():
        counts[term] += _HEADING_WEIGHT - 1
    return counts


def _stemmed(groups: Iterable[Iterable[str]]) -> dict[str, frozenset[str]]:
    stems = [frozenset(map(_stem, group)) for group in groups]
    return {stem: group for group in stems for stem in group}


_SYNONYM_STEMS = _stemmed(_SYNONYMS)


def _wanted_terms(question: str) -> dict[str, float]:
    """Return the terms of a search with weights, in a fixed order, so that floats add up to the same everywhere."""
    wanted = dict.fromkeys(terms(question), 1.0)
    for term in list(wanted):
        for synonym in sorted(_SYNONYM_STEMS.get(term, frozenset())):
            wanted.setdefault(synonym, _SYNONYM_WEIGHT)
    return wanted
