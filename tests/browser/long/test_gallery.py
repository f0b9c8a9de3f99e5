"""All states of the chat element: axe finds nothing serious, and narrow windows and large text cut nothing off.

Layer: tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.browser.gallery import STATES, open_gallery

AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"
FINDINGS = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] })
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical")
  return serious.flatMap(({ id, nodes }) => nodes.map((node) => `${id} ${node.target}: ${node.failureSummary}`))
}"""
# Elements that reach out of the panel, and parts of the panel that scroll sideways. Code and tables may.
# A message out of view has no size of its own, so all are drawn.
_CUT = """() => [...document.querySelectorAll("tenuto-chat")].flatMap((chat) => {
  const name = chat.getAttribute("channel")
  const sheet = new CSSStyleSheet()
  sheet.replaceSync("* { content-visibility: visible !important }")
  chat.shadowRoot.adoptedStyleSheets.push(sheet)
  const panel = chat.shadowRoot.querySelector(".panel")
  if (!panel?.getClientRects().length) return []
  const { left, right } = panel.getBoundingClientRect()
  const all = (selector) => [...panel.querySelectorAll(selector)]
  const wide = all(".log, .composer, .row, .choices, .approval, .body, .actions, header")
    .filter((node) => node.scrollWidth > node.clientWidth + 1)
  const out = all("button, h2, p, .author, .state, textarea, summary, .source").filter((node) => {
    const box = node.getBoundingClientRect()
    return box.width > 1 && !node.closest("table, pre, .math") && (box.left < left - 1 || box.right > right + 1)
  })
  const words = ({ localName, className, textContent }) => `${localName}.${className} ${textContent.slice(0, 30)}`
  return [...wide, ...out].map((node) => `${name}: ${words(node)}`)
})"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", STATES)
async def test_axe_finds_nothing_serious(browser: Browser, address: str, name: str, theme: str) -> None:
    page = await open_gallery(browser, address, f"state={name}&theme={theme}", bypass_csp=True)
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


async def test_axe_finds_nothing_serious_where_both_themes_are_on_one_page(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, bypass_csp=True)
    await page.evaluate("""() => document.querySelectorAll("tenuto-chat:not([theme=blue])").forEach((chat, n) => {
      chat.setAttribute("theme", n % 2 ? "dark" : "light")
    })""")
    await page.evaluate(AXE.read_text())
    assert await page.evaluate(FINDINGS) == []


@pytest.mark.parametrize("width", [320, 1200])
async def test_nothing_is_cut_off(browser: Browser, address: str, width: int) -> None:
    page = await open_gallery(browser, address, viewport={"width": width, "height": 800})
    cut = await page.evaluate(_CUT)
    assert cut == [], cut
    await page.evaluate("document.querySelectorAll('tenuto-chat').forEach((chat) => chat.classList.add('large'))")
    cut = await page.evaluate(_CUT)
    assert cut == [], cut


async def test_no_state_violates_the_policy(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
    await page.reload()
    await page.wait_for_selector("body[data-ready]")
    assert errors == []
    assert await page.locator("tenuto-chat").count() == len(STATES)
