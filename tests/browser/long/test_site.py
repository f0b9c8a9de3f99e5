"""The built site of the documentation, below a path: each link works, and axe finds no serious fault.

Layer: tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tests.browser.long.test_gallery import AXE, FINDINGS
from tests.transports.conftest import listening

ROOT = Path(__file__).parents[3]
_LINKS = """async () => {
  const links = [...document.querySelectorAll("a[href], link[href], script[src]")].map((one) => one.href || one.src)
  const others = new Set(links.map((one) => one.split("#")[0]).filter((one) => one !== location.href))
  const own = [...others].filter((one) => one.startsWith(location.origin))
  const statuses = await Promise.all(own.map(async (one) => [one, (await fetch(one)).status]))
  return [own.length, statuses.filter(([, status]) => status !== 200)]
}"""


def build(folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TENUTO_SITE": address, "TENUTO_REPOSITORY": ""}
    command = [sys.executable, ROOT / "scripts" / "docs.py", folder]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    done = build(folder, "https://example.org/docs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(site: Path) -> AsyncIterator[str]:
    """The address of the site, from a server that responds with `404.html` to a request for an unknown page."""
    async with listening(Starlette(routes=[Mount("/docs", StaticFiles(directory=site, html=True))])) as port:
        yield f"http://127.0.0.1:{port}/docs"


@pytest.mark.parametrize("name", ["index.html", "decisions/lost.html"])
async def test_each_link_of_a_page_and_of_the_page_for_lost_ones_works(browser: Browser, root: str, name: str) -> None:
    page = await browser.new_page()
    failed: list[str] = []
    page.on("response", lambda one: failed.append(one.url) if one.status != 200 else None)
    await page.goto(f"{root}/{name}")
    count, broken = await page.evaluate(_LINKS)
    assert broken == []
    assert count > 40
    assert failed == [f"{root}/{name}"] * ("lost" in name)  # its own status is 404, and all that it loads is there
    await page.locator(".md-nav__link", has_text="Reference: Python").click()
    await page.wait_for_url(f"{root}/reference-python.html")


@pytest.mark.parametrize(
    "name", ["light index", "dark index", "dark lost", "light reference-python", "dark reference-browser"]
)
async def test_axe_finds_nothing_serious(browser: Browser, root: str, name: str) -> None:
    theme, name = name.split()
    width = 1400 if theme == "light" else 390
    page = await browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)  # type: ignore[arg-type]
    await page.goto(f"{root}/{name}.html")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


def test_the_map_of_the_site_has_each_page_below_its_address(site: Path) -> None:
    listed = re.findall(r"<loc>https://example.org/docs/(.+)</loc>", (site / "sitemap.xml").read_text())
    assert sorted(listed) == sorted(str(one.relative_to(site)) for one in site.rglob("*.html") if one.stem != "404")


def test_the_references_have_signatures_and_what_the_code_says_about_them(site: Path) -> None:
    python, browser = ((site / f"reference-{name}.md").read_text() for name in ("python", "browser"))
    entry = "#### `Hub.delete`\n\n```python\nasync def delete(channel: str, message_id: str) -> None\n```\n\nDelete a "
    assert entry in python
    assert "#### `Channel.select`\n\n```ts\nselect(id: string): void;\n```\n\nShow a message, " in browser
    assert "internal" not in browser
    entries = {*re.findall(r"^#+ `(.+)`$", browser, re.MULTILINE)}
    assert {"Channel", "Strings", "TenutoChat"} <= entries
    assert entries & {"Use", "Base", "Flags", "Settable", "STRINGS"} == set()
    assert {"reference-python.md", "reference-browser.md"} <= {
        *re.findall(r"\((.+?)\)", (site / "llms.txt").read_text())
    }


def test_without_an_address_there_is_no_map_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path / "docs", "")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "docs" / "site" / "404.html").exists()
    assert not (tmp_path / "docs" / "site" / "sitemap.xml").exists()
    assert "got 'example.org'" in build(tmp_path / "none", "example.org").stderr
