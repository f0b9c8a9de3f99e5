"""The chat element for people who use a keyboard, a screen reader, a touch screen, large text or another direction.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.gallery import gallery_server, open_gallery
from tests.browser.test_chat import scene

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses

_FLOATING = '<button>Before</button><holdfast-chat channel="chat:1" heading="Ask the docs" launcher></holdfast-chat>'
# Define `focused()`: the focused element, and whether a person sees it.
_FOCUSED = """() => { window.focused = () => {
  const node = document.activeElement.shadowRoot?.activeElement ?? document.activeElement
  const ring = getComputedStyle((node.localName === "textarea" && node.closest(".composer")) || node)
  const hasRing = ring.outlineStyle !== "none" && parseFloat(ring.outlineWidth) >= 1
  const isSeen = hasRing && node.checkVisibility({ opacityProperty: true })
  return { name: node.ariaLabel ?? node.textContent.trim() ?? "", tag: node.localName, isSeen }
} }"""
_SMALL = """() => [...document.querySelector("holdfast-chat").shadowRoot.querySelectorAll("button, summary, a.source")]
  .filter((node) => node.getClientRects().length && (node.offsetWidth < 44 || node.offsetHeight < 44))
  .map((node) => `${node.className || node.localName} ${node.offsetWidth} x ${node.offsetHeight}`)"""
_MOVING = """() => [...document.querySelector("holdfast-chat").shadowRoot.querySelectorAll("*")].flatMap((node) => {
  const { transitionDuration, animationName } = getComputedStyle(node)
  return parseFloat(transitionDuration) > 0 || animationName !== "none" ? [node.className] : []
})"""
# Record each text of the live region with its time.
_LISTEN = """() => {
  const root = document.querySelector("holdfast-chat").shadowRoot
  const region = root.querySelector("[role=status]")
  window.spoken = []
  new MutationObserver(() => window.spoken.push({ text: region.textContent, at: performance.now() }))
    .observe(region, { childList: true, characterData: true, subtree: true })
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[str]:
    async with gallery_server() as address:
        yield address


async def _tab_until(page: Page, name: str, *, key: str = "Tab") -> None:
    """Press Tab until the element `name` has the focus. On the way the focus is always seen."""
    seen: list[str] = []
    while not seen or seen[-1] != name:
        await page.keyboard.press(key)
        seen.append((await page.evaluate("focused()"))["name"])
        await page.wait_for_function(
            "() => focused().isSeen", timeout=5_000
        )  # buttons of messages appear within some frames
        assert len(seen) < 30, seen


async def test_the_keyboard_alone_is_enough_and_the_focus_is_always_seen(browser: Browser) -> None:
    async with scene(browser, _FLOATING) as here:
        page = here.page
        await page.locator(".launcher").wait_for()
        await page.evaluate(_FOCUSED)
        await _tab_until(page, "Open chat")
        await page.keyboard.press("Enter")
        await page.wait_for_function("() => focused().tag === 'textarea'")
        await page.keyboard.type("Delete the drafts")
        await page.keyboard.press("Enter")
        here.pieces.put_nowait("ask")
        await here.until("Delete 3 files?")
        await _tab_until(page, "Allow", key="Shift+Tab")
        await page.keyboard.press("Enter")
        await here.until("Deleted.")
        assert (await page.evaluate("focused()"))["tag"] != "body"  # the focused button is gone, the focus is not
        await page.keyboard.press("Escape")  # stops the answer
        await here.until("Stopped")
        await page.locator(".stop").wait_for(state="hidden")  # until then Escape stops the agent
        await _tab_until(page, "New answer", key="Shift+Tab")
        await page.keyboard.press("Escape")  # closes the chat
        await page.wait_for_function("() => focused().name === 'Open chat'")


async def test_an_editor_gives_the_focus_back(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("First version")
        here.pieces.put_nowait(None)
        await here.page.locator(".assistant[data-status=complete]").wait_for()
        await here.page.evaluate(_FOCUSED)
        await _tab_until(here.page, "Edit", key="Shift+Tab")
        await here.page.keyboard.press("Enter")
        assert (await here.page.evaluate("focused()"))["tag"] == "textarea"
        await _tab_until(here.page, "Cancel")
        await here.page.keyboard.press("Enter")
        await here.page.wait_for_function("() => focused().name === 'Edit'")


async def test_one_live_region_speaks_a_finished_answer_once_and_no_piece_of_it(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Count")
        assert await here.page.locator("[role=log][aria-live=off]").count() == 1
        assert await here.page.locator("[role=status]").count() == 1
        assert await here.page.locator("[aria-live]:not([aria-live=off])").count() == 0
        await here.page.evaluate(_LISTEN)
        for piece in ("one ", "two ", "three"):
            here.pieces.put_nowait(piece)
            await here.until(piece.strip())
        here.pieces.put_nowait(None)
        await here.page.wait_for_function("() => spoken.some(({ text }) => text.includes('one two three'))")
        await here.ask("Stop")  # its answer ends within two seconds, and is spoken later
        await here.page.locator("article").nth(3).wait_for()
        await here.page.keyboard.press("Escape")
        await here.page.wait_for_function("() => spoken.some(({ text }) => text.includes('Stopped'))")
        spoken = await here.page.evaluate("spoken")
        assert [text.count("three") for text in (one["text"] for one in spoken) if "one" in text] == [1]
        # Timers are rounded.
        assert all(later["at"] - earlier["at"] > 1_990 for earlier, later in pairwise(spoken)), spoken


async def test_each_block_has_its_own_direction(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, "state=right-to-left")
    directions = (
        await page.locator(".assistant")
        .first.locator(".markdown :is(p, li, pre, p code)")
        .evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).direction)")
    )
    assert directions == ["rtl", "ltr", "rtl", "rtl", "ltr", "ltr"]  # code reads from the left everywhere


@pytest.mark.parametrize("name", ["approval", "steering", "branches", "not-sent", "tool-failed", "formats", "floating"])
async def test_targets_have_44_pixels_on_touch(browser: Browser, address: str, name: str) -> None:
    page = await open_gallery(browser, address, f"state={name}", has_touch=True, is_mobile=True)
    assert await page.evaluate("matchMedia('(pointer: coarse)').matches")
    assert await page.evaluate(_SMALL) == []


async def test_nothing_moves_where_the_person_wants_less_motion(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, "state=streaming", reduced_motion="reduce")
    assert await page.evaluate(_MOVING) == []


async def test_text_grows_with_the_size_that_the_person_chose(browser: Browser, address: str) -> None:
    sizes = """() => [...document.querySelector("holdfast-chat").shadowRoot.querySelectorAll("*")]
      .filter((node) => node.innerText && !node.matches(".code *"))
      .map((node) => parseFloat(getComputedStyle(node).fontSize))"""
    page = await open_gallery(browser, address, "state=streaming")
    usual = await page.evaluate(sizes)
    await page.evaluate("document.querySelector('holdfast-chat').classList.add('large')")
    assert await page.evaluate(sizes) == pytest.approx([size * 2 for size in usual], rel=0.01)
