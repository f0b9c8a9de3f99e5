"""The Markdown of the chat element in Chromium: links, code, formulas, and half-open ends.

Layer: tests. `long` has all texts in all pieces, and hostile text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from playwright.async_api import Browser, Page
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.browser.test_client import page_app, page_at
from tests.conftest import in_long
from tests.transports.conftest import new_hub, serving

ROOT = Path(__file__).parents[2]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; require-trusted-types-for 'script'"
)
WITH_ELEMENT = "<!doctype html><title>Chat</title><script type=module src=/tenuto/web/chat.js></script>"
_PAGE = "<!doctype html><div id=root></div><script type=module src=/tests/browser/markdown_page.js></script>"


@asynccontextmanager
async def markdown_page(browser: Browser, policy: str = POLICY) -> AsyncIterator[Page]:
    """Open a page with the functions of `markdown_page.js`."""

    hub, files = new_hub(), Mount("/tests", StaticFiles(directory=ROOT / "tests"))
    async with serving(hub, page_app(_PAGE, hub, files, policy=policy)) as served:
        page = await page_at(browser, served.port)
        await page.wait_for_function("() => window.tests !== undefined")
        yield page
        await page.goto("about:blank")


async def test_link_whose_text_is_another_address_names_its_host(page: Page) -> None:
    addresses = (
        "https://bank.example](https://evil.example/x",
        "bank.example](https://bank.example/",
        "words](https://c.example",
    )
    for mark in ("", "!"):  # an image is a link with its description
        text = " ".join(f"{mark}[{one})" for one in addresses)
        html = await page.evaluate("text => tests.grown(text)", text)
        assert html.count('<span class="host"> (evil.example)</span>') == 1
        assert html.count('class="host"') == 1
        assert html.count('rel="noopener noreferrer nofollow"') == 3


async def test_bare_address_is_a_link_as_github_says(page: Page) -> None:
    addresses = (  # examples 622 to 629 of its specification, with a scheme, and more; text follows "|"
        "http://commonmark.org",
        "https://commonmark.org/help| for more information.",
        "https://commonmark.org/a.b|.",
        "https://google.com/search?q=Markup+(business)",
        "https://google.com/search?q=Markup+(business)|))",
        "https://google.com/search?q=(business))+ok",
        "https://google.com/search?q=commonmark&hl=en",
        "https://google.com/search?q=commonmark|&hl;",
        "https://commonmark.org/he|<lp",
        "HTTPS://a.example/b_c*d|~\"'*_:!?,",
        "http://localhost:8000/x|].",
        "https://a.example/über|“",
    )
    for address in addresses:
        for before in ("", "see (", "**", "- _", "| a |\n|---|\n| "):
            for step in (1, 5, 1_000):
                found = await page.evaluate(
                    "([a, step]) => tests.links(a, step)", [before + address.replace("|", ""), step]
                )
                assert found == [address.partition("|")[0]], (before, step)


async def test_no_link_begins_in_code_in_another_link_in_html_or_with_another_scheme(page: Page) -> None:
    texts = (
        "`https://a.example/` and `` https://a.example``",
        "```\nhttps://a.example/\n```",
        "    https://a.example/",
        '<img src="https://a.example/">',
        "xhttps://a.example/ javascript://a.example/ ftp://a.example/ www.a.example a@b.example",
        "https:///a https:// https://[::1]/ https://bank.example@evil.example/ https://user:pass@evil.example/",
    )
    for text in texts:
        assert "<a " not in await page.evaluate("text => tests.grown(text, () => 1)", text), text
    for text in ("[https://a.example/b](https://c.example/)", "![https://a.example/b](https://c.example/)"):
        html = await page.evaluate("text => tests.grown(text, () => 1)", f"text {text}.")
        assert html.count("<a ") == html.count('href="https://c.example/"') == 1, html


async def test_bare_address_becomes_a_link_once_it_is_complete_and_stays_one(page: Page) -> None:
    texts = {
        "See https://a.example/b.html?c=_d_ and **https://b.example/_e** or more": 2,
        "- https://a.example\n- **https://b.example**, c\n": 2,
        "| a | b |\n|--|--|\n| https://a.example | b |\n| https://b.example/c": 1,
        "| https://a.example | b |\n|--|--|\n| c": 1,
        "- https://a.example\n- https://a.example\n": 2,
        "| a | b |\n|--|--|\n| https://a.example | https://a.example | c": 2,
        "https://a.example\n\nsee https://a.example ": 2,
        "- https://a.example\n  ```\n  https://a.example\n  ```\n": 1,
        "https://a.example," * 20: 14,  # the others are so near to the end that they may still grow
    }
    for text, count in texts.items():
        seen = await page.evaluate("text => tests.linksOfSteps(text)", text)
        assert all(after[: len(before)] == before for before, after in pairwise(seen)), seen
        assert len(seen[-1]) == count


async def test_a_list_a_quote_and_a_table_begin_at_the_side_of_their_text(page: Page) -> None:
    """The room for the mark, the line and the first column are there, whatever the direction of the page is."""
    for direction in ("ltr", "rtl"):
        await page.evaluate("direction => { document.documentElement.dir = direction }", direction)
        for word, side in (("one", "left"), ("أول", "right")):
            lists = f"- {word}\n\n> {word}\n\n1. {word}\n\n2. {word}\n\n> - {word}\n>\n> - {word}\n"
            text = f"{lists}\n| {word} | b |\n|--|--|\n| c | d |\n"
            await page.evaluate("async text => { await tests.stage(text); await tests.steps(0, 1, text.length) }", text)
            assert await page.evaluate("tests.sides()") == [side] * 8, (direction, word)
    await page.evaluate("document.documentElement.dir = ''")


async def test_text_that_is_nested_too_deep_is_shown_and_the_blocks_behind_it_are_blocks(page: Page) -> None:
    end = (
        '<h3 dir="auto">After</h3><ul><li dir="auto">'
        '<input type="checkbox" disabled="" aria-label="Task" checked=""> end</li></ul></div></div>'
    )
    for mark in ("> ", "- "):
        html = await page.evaluate("text => tests.grown(text)", mark * 40 + "deep *text*\n\n# After\n\n- [x] end")
        assert "deep *text*" in html
        assert html.endswith(end)


@in_long
async def test_tables_of_30_columns_and_quotes_of_16_kilobytes_are_formatted_and_larger_ones_are_text(
    page: Page,
) -> None:
    for columns in (30, 31):
        for edge in ("|", "", "> |"):
            rows = "\n".join(f"{edge}{'|'.join([cell] * columns)}{edge[-1:]}" for cell in ("a", "-", "one"))
            for step in (1, 1_000):
                html = await page.evaluate("([text, step]) => tests.grown(text, () => step)", [rows, step])
                assert html.count("<td") == (columns if columns == 30 else 0), (edge, columns, step)
                assert html.count("one") == columns
    for length in (16_384, 16_385):
        text = "**bold** " * 1_820 + "x" * (length - 9 * 1_820)
        for step in (4_001, length + 2):
            html = await page.evaluate("([text, step]) => tests.grown(text, () => step)", [f"> {text}", step])
            assert html.count("<strong>") == (1_820 if length == 16_384 else 0), (length, step)
            assert html.count("bold") == 1_820


async def test_highlighter_is_fetched_for_finished_code_in_a_known_language_only(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    documents = {
        "unknown": "```brainfuck\nx = 1\n```\n\nend",
        "no language": "```\nx = 1\n```\n\nend",
        "long": f"```py\n{'x = 1' * 5_000}\n```\n\nend",
        "wide": f"```py\n{'y' * 1_001}\n```\n\nend",
    }
    for name, text in documents.items():
        await page.evaluate("text => tests.grow(text)", text)
        assert requests == [], name
    await page.evaluate("tests.stage('```py\\nx = 1\\n'.padEnd(400, 'z = 2\\n') + '```\\n\\nend')")
    await page.evaluate("tests.steps(0, 300, 100)")
    assert requests == [], "open"
    async with page.expect_request("**/vendor/highlight.js"):
        await page.evaluate("tests.steps(300, 500, 100)")


async def test_finished_code_gets_colours_and_code_that_is_too_long_or_unknown_does_not(page: Page) -> None:
    line = 'def add(a: int) -> str:  # note\n    return "x" + str(1)\n'
    documents = {
        "known": f"```py\n{line}```\n",
        "alias": f"~~~Python3 title=x\n{line}~~~\nend",
        "nested": "- a\n\n  ```js\n  let a = 1\n  ```\n- b\n\nend",
        "open": f"```py\n{line}",
        "unknown": f"```brainfuck\n{line}```\n",
        "long": f"```py\n{line * 400}```\n",
        "wide": "```py\nx = '" + "y" * 1_000 + "'\n```\n",
    }
    kinds = {name: await page.evaluate("text => tests.coloured(text)", text) for name, text in documents.items()}
    assert set(kinds["known"]) >= {"t-kwd", "t-str", "t-cmnt", "t-num"}
    assert kinds["alias"] == kinds["open"] == kinds["known"]
    assert "t-kwd" in kinds["nested"]
    assert kinds["unknown"] == kinds["long"] == kinds["wide"] == []


async def test_definition_at_the_end_keeps_the_nodes_of_all_blocks_and_their_colours(page: Page) -> None:
    text = "# One\n\nSee [docs] and *more*.\n\n```js\nlet a = 1\n```\n\n- item\n\n" + "A paragraph.\n\n" * 60
    found = await page.evaluate("text => tests.define(text, '[docs]: https://a.example/b')", f"{text}The end.\n\n")
    assert found["before"] >= 63
    assert found == {"before": found["before"], "kept": found["before"], "links": 1, "isColoured": True, "isSame": True}


async def test_formulas_are_those_of_the_app_and_prices_stay_text(page: Page) -> None:
    formulas = {
        "a $x_1$ b": [["x_1", False]],
        "a \\(x *y* z\\) b": [["x *y* z", False]],
        "a $$x$$ b": [["x", True]],
        "$$\na\n- b\n= c\n$$\n\nend": [["a\n- b\n= c", True]],
        "text\n\\[ a \\]\nmore": [["a", True]],
        "- item\n\n  $$\n  a\n  $$\n- next": [["a", True]],
        "$5 and $6": [],
        "$5-$6, US$5 or 6$, $ x$, $x $, \\$x$": [],
        "`$x$` and `\\(y\\)`": [],
        "```\n$$\nx\n$$\n```": [],
        "$$\nnot ended\n\nend": [],
        "$$ a $$ and \\[x\\] text": [["a", True]],
    }
    for text, expected in formulas.items():
        for step in (1, 3, 1_000):
            html, seen = await page.evaluate("([text, step]) => tests.formulas(text, step)", [text, step])
            assert seen == expected, (text, html)
        plain = await page.evaluate("text => tests.grown(text)", text)
        assert 'class="math"' not in plain
    assert await page.evaluate("tests.randomFormulas(0, 5)") == []


async def test_formula_that_the_app_does_not_draw_is_shown_as_it_is_written(page: Page) -> None:
    for result in ("null", "(() => { throw new Error('no') })()"):
        html = await page.evaluate(f"text => tests.grown(text, undefined, {{ renderMath: () => {result} }})", "a $x$ b")
        assert '<span class="math">$x$</span>' in html
