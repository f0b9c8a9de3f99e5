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

# Examples of the specification that are not shown as it says. The list may only become shorter.
DIFFERENT_EXAMPLES: dict[int, str] = {}
# Answers that are not shown as GitHub shows them.
DIFFERENT_ANSWERS = {
    "bare addresses": "an address without marks is text",
    "html": "HTML is text",
}

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


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
    assert len(examples) == 553
    found = await page.evaluate("examples => tests.different(examples)", examples)
    numbers = {examples[index]["number"]: texts for index, *texts in found}
    assert numbers.keys() == DIFFERENT_EXAMPLES.keys(), numbers
    assert len(examples) - len(numbers) >= 540


async def test_stored_answers_are_shown_as_an_independent_parser_shows_them(page: Page, reference: Any) -> None:
    answers = reference["answers"]
    assert len(answers) == 50
    found = await page.evaluate("answers => tests.different(answers)", answers)
    names = {answers[index]["name"]: texts for index, *texts in found}
    assert names.keys() == DIFFERENT_ANSWERS.keys(), names


async def test_nodes_of_all_texts_do_not_depend_on_the_pieces(page: Page, reference: Any) -> None:
    for one in [*reference["examples"], *reference["answers"]]:
        assert await page.evaluate("text => tests.dependence('', text)", one["markdown"]) == []
    assert await page.evaluate("tests.random(1_000, 300)") == []
    assert await page.evaluate("tests.randomFormulas(1_000, 300)") == []


async def test_blocks_of_200_kilobytes_do_not_depend_on_the_pieces(page: Page) -> None:
    for name in await page.evaluate("tests.names"):
        assert await page.evaluate("name => tests.long(name, 200_000, 1_009)", name) == [], name
        assert await page.evaluate("name => tests.long(name, 20_000, 13)", name) == [], name


async def test_little_visible_text_of_the_answers_vanishes_again(page: Page, reference: Any) -> None:
    counts = [await page.evaluate("tests.vanishing", one["markdown"]) for one in reference["answers"]]
    vanishing, steps = (sum(column) for column in zip(*counts, strict=True))
    assert vanishing <= steps * 0.07, f"{vanishing} of {steps}"
