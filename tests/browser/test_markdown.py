"""The Markdown of the chat element in Chromium: pieces, long blocks, half-open ends, and hostile text.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.browser.test_client import page_at
from tests.transports.conftest import new_hub, serving

ROOT = Path(__file__).parents[2]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; require-trusted-types-for 'script'"
)
_PAGE = "<!doctype html><div id=root></div><script type=module src=/tests/browser/markdown_page.js></script>"
_HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "[a](javascript:window.hit=1) [b](data:text/html,x) [c](vbscript:x) [d](/relative) <javascript:window.hit=1>",
    "![i](https://leak.example/?q=1) ![j](javascript:1)",
    "[__proto__]: https://p.example/\n\n[__proto__] [constructor] [toString][]",
    "> " * 2_000 + "deep",
    "- " * 2_000 + "deep",
    "*a_" * 7_000,
    "|" + " a |" * 200 + "\n|" + "-|" * 200 + "\n" + ("|" + " b |" * 200 + "\n") * 40,
    "`" * 5_000 + "x",
    "[" * 5_000,
    "https://a.example](https://b.example) [https://a.example](https://b.example)",
]

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page with the functions of `markdown_page.js`, under the policy that the chat element is made for."""

    async def document(request: object) -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"content-security-policy": POLICY})

    hub = new_hub()
    files = StaticFiles(directory=ROOT / "tests")
    app = Starlette(routes=[Route("/", document), Mount("/tests", files), Mount("/holdfast", hub)])
    async with serving(hub, app) as served:
        page = await page_at(browser, served.port)
        await page.wait_for_function("() => window.tests !== undefined")
        yield page
        await page.goto("about:blank")


async def test_nodes_do_not_depend_on_the_pieces(page: Page) -> None:
    assert await page.evaluate("tests.random(0, 60)") == []


async def test_long_blocks_lose_no_row_and_do_not_depend_on_the_pieces(page: Page) -> None:
    for name in await page.evaluate("tests.names"):
        assert await page.evaluate("name => tests.long(name, 20_000, 97)", name) == [], name
        assert await page.evaluate("name => tests.long(name, 4_600, 1, 4_300)", name) == [], name


async def test_little_visible_text_vanishes_again(page: Page) -> None:
    documents = ("README.md", "docs/protocol.md", "docs/security.md", "docs/architecture.md")
    counts = [await page.evaluate("tests.vanishing", (ROOT / name).read_text()[2_000:4_000]) for name in documents]
    vanishing, steps = (sum(column) for column in zip(*counts, strict=True))
    assert vanishing <= steps * 0.07, f"{vanishing} of {steps}"


async def test_hostile_text_runs_and_fetches_nothing(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.evaluate(
        """() => {
          window.violations = []
          document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective))
        }"""
    )
    for text in _HOSTILE:
        found = await page.evaluate(
            """text => {
              const root = document.getElementById("root")
              root.replaceChildren()
              const node = document.createElement("div")
              root.append(node)
              return import("/holdfast/web/markdown.js").then(({ GrowingMarkdown }) => {
                const markdown = new GrowingMarkdown(node)
                const cuts = text.length < 200 ? text.length : 7
                for (let n = 1; n <= cuts; n++) markdown.update(text.slice(0, Math.ceil((text.length * n) / cuts)))
                markdown.update(text, true)
                const names = [...node.querySelectorAll("*")].map((one) => one.localName)
                const links = [...node.querySelectorAll("a")].map((one) => one.protocol)
                return [names, links]
              })
            }""",
            text,
        )
        names, links = found
        assert not {"script", "img", "iframe", "object", "style", "form"} & set(names), text[:80]
        assert set(links) <= {"http:", "https:", "mailto:"}, text[:80]
    assert await page.evaluate("[window.hit, violations, Object.prototype.href]") == [None, [], None]
    assert requests == [one for one in requests if one.endswith(".js")]


async def test_link_whose_text_is_another_address_names_its_host(page: Page) -> None:
    addresses = (
        "https://bank.example](https://evil.example/x",
        "bank.example](https://bank.example/",
        "words](https://c.example",
    )
    text = " ".join(f"[{one})" for one in addresses)
    html = await page.evaluate("text => tests.grown(text)", text)
    assert html.count('<span class="host"> (evil.example)</span>') == 1
    assert html.count('class="host"') == 1
    assert html.count('rel="noopener noreferrer nofollow"') == 3


async def test_task_lists_headings_and_tables_are_elements(page: Page) -> None:
    html = await page.evaluate("text => tests.grown(text)", "# One\n\n- [x] a\n- [ ] b\n\n|a|b|\n|-|:-:|\n|1|2|")
    assert html.startswith('<div class="chunk"><h3 dir="auto">One</h3><ul><li dir="auto"><input type="checkbox"')
    assert html.count("<li") == 2
    assert html.count('checked=""') == 1
    assert '<td dir="auto" style="text-align: center;">2</td>' in html
