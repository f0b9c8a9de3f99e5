"""The ready answers: questions about Tenuto that many visitors ask, each with an answer written by hand.

Layer: demo.

Each file in the folder `answers` is one: the question as its title, then the answer. `[[row]]` stands for the figure of
that row in `docs/benchmarks.md`, so that an answer and the documentation have the same figures. Wording may change
freely; a running answer detects the change by its fingerprint.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from tenuto.demo.passages import documents, same_terms

__all__ = ["ReadyAnswer", "ready_answer", "ready_answers"]

_CLOSE_ENOUGH = 0.5  # share of the words of two questions that must be in both, so that they count as the same question


class ReadyAnswer(NamedTuple):
    """A question, and its answer in Markdown."""

    question: str
    text: str


@functools.cache
def ready_answers() -> tuple[ReadyAnswer, ...]:
    """Return the ready answers in their order, read once."""
    figures = _figures(documents()["docs/benchmarks.md"])
    files = sorted((Path(__file__).parent / "answers").glob("*.md"))
    return tuple(_read(file.read_text(encoding="utf-8"), figures) for file in files)


def ready_answer(question: str) -> str | None:
    """Return the answer whose question has the same words as `question`, or nearly; None if there is none."""
    wanted = same_terms(question)
    scores = [(_likeness(wanted, same_terms(one.question)), one.text) for one in ready_answers()]
    score, text = max(scores, key=lambda scored: scored[0], default=(0.0, ""))
    return text if score >= _CLOSE_ENOUGH else None


def _likeness(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0


def _read(markdown: str, figures: dict[str, str]) -> ReadyAnswer:
    title, _, text = markdown.partition("\n")
    return ReadyAnswer(
        title.removeprefix("# "), _FIGURE.sub(lambda found: figures.get(found[1], _NO_FIGURE), text.strip() + "\n")
    )


_FIGURE = re.compile(r"\[\[(.+?)\]\]")
_NO_FIGURE = "not measured"
_ROW = re.compile(r"^\| (.+?) \| (.+?) \|", re.MULTILINE)
_SPREAD = re.compile(r" \([^()]*\)")


def _figures(benchmarks: str) -> dict[str, str]:
    """Return for each row of the page, by its name, the figure that answers quote: the median, without the spread."""
    return {name: _SPREAD.sub("", value).strip("* ") for name, value in _ROW.findall(benchmarks)}
