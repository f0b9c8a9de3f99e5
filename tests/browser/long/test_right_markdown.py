"""The Markdown of the chat element beside other parsers, and long blocks in all pieces.

Layer: tests.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.test_markdown import markdown_page

FOLDER = Path(__file__).parent
PAGES = FOLDER / "pages.md"  # 2,000 characters each of four pages as they were; they do not change
VANISHING = 0.05  # share of steps of one character that show text which a later step removes; it may only fall

# Of the 562 examples without HTML, those that are not shown as the specification says. It may only become shorter.
DIFFERENT_EXAMPLES = {
    24: "the name of a language is shown as it is written, with its escapes",
    25: "rare names of characters stay names",
    34: "the name of a language is shown as it is written, with names of characters",
}
# Those with a bare address that is text in the specification, and a link in GitHub's extension of it.
LINKED_EXAMPLES = {602, 608, 611}
# The two of the 50 answers that are not shown as GitHub shows them, as they are shown: docs/decisions/0102.
DIFFERENT_ANSWERS = {
    "bare addresses": [
        "<p>",
        *("The manual is at ", "<a https://docs.example/manual>", "https://docs.example/manual", "</a>"),
        " and on www.example.com. Write to help@docs.example.",
        "</p>",
    ],
    "html": [
        *("<p>", "Press <kbd>Ctrl</kbd>+<kbd>C</kbd>, then", "</p>"),
        *("<p>", "<details> <summary>More</summary>", "</p>"),
        *("<p>", "Hidden ", "<em>", "text", "</em>", ".", "</p>"),
        *("<p>", "</details>", "</p>"),
        *("<p>", "Done.<br>", "</p>"),
    ],
}


@pytest.fixture(scope="module")
def reference() -> Any:
    run = subprocess.run(["node", FOLDER / "reference.mjs"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with markdown_page(browser, policy="script-src 'self'") as page:
        yield page


async def test_examples_of_the_specification_are_shown_as_it_says(page: Page, reference: Any) -> None:
    examples = [one for one in reference["examples"] if not one["hasHtml"]]
    assert len(examples) == 562
    found = await page.evaluate("examples => tests.different(examples)", examples)
    numbers = {examples[index]["number"]: texts for index, *texts in found}
    assert numbers.keys() == DIFFERENT_EXAMPLES.keys() | LINKED_EXAMPLES, numbers
    assert len(examples) - len(numbers) >= 540


async def test_stored_answers_are_shown_as_an_independent_parser_shows_them(page: Page, reference: Any) -> None:
    answers = reference["answers"]
    assert len(answers) == 50
    found = await page.evaluate("answers => tests.different(answers)", answers)
    assert {answers[index]["name"]: shown.split("\n") for index, shown, _ in found} == DIFFERENT_ANSWERS


async def test_nodes_of_all_texts_do_not_depend_on_the_pieces(page: Page, reference: Any) -> None:
    for one in [*reference["examples"], *reference["answers"]]:
        assert await page.evaluate("text => tests.dependence('', text)", one["markdown"]) == []
    assert await page.evaluate("tests.random(1_000, 100)") == []
    assert await page.evaluate("tests.randomFormulas(1_000, 100)") == []


async def test_blocks_of_200_kilobytes_do_not_depend_on_the_pieces(page: Page) -> None:
    for name in await page.evaluate("tests.names"):
        assert await page.evaluate("name => tests.long(name, 200_000, 1_009)", name) == [], name
        assert await page.evaluate("name => tests.long(name, 20_000, 37)", name) == [], name
        assert await page.evaluate("name => tests.long(name, 4_600, 1, 4_300)", name) == [], name
    for name in ("a fence", "a tight list", "a table", "a paragraph"):  # smaller pieces: docs/decisions/0041
        assert await page.evaluate("name => tests.longInRandom(name, 200_000, 200)", name) == [], name


async def test_little_visible_text_vanishes_again(page: Page, reference: Any) -> None:
    pages = [one.partition("\n")[2][:2_000] for one in PAGES.read_text().split("%% ")[1:]]
    texts = [one["markdown"] for one in reference["answers"]] + pages
    counts = [await page.evaluate("tests.vanishing", text) for text in texts]
    vanishing, steps = (sum(column) for column in zip(*counts, strict=True))
    print(f"{vanishing} of {steps} steps: {vanishing / steps:.1%}")
    assert vanishing <= steps * VANISHING
