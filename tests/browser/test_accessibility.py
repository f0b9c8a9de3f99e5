"""The chat element for people who use a keyboard, a screen reader, a touch screen, large text or another direction.

Layer: tests.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.gallery import STATES, open_gallery
from tests.browser.tab import script
from tests.browser.test_chat import scene
from tests.browser.test_markdown import ROOT
from tests.browser.test_visitors import TAG, site
from tests.conftest import in_long

_FOCUSED = script("looks", "defineFocused")
_FLOATING = '<button>Before</button><tenuto-chat channel="chat:1" heading="Ask the docs" launcher></tenuto-chat>'


async def _tab_until(page: Page, name: str, *, key: str = "Tab") -> None:
    """Press Tab until the element `name` has the focus. On the way the focus is always seen."""
    seen: list[str] = []
    while not seen or seen[-1] != name:
        await page.keyboard.press(key)
        seen.append((await page.evaluate("focused()"))["name"])
        await page.wait_for_function("() => focused().isSeen")  # buttons of messages appear within some frames
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


_ARTICLE = "<p>A line of the page.</p>" * 50


@pytest.mark.parametrize(
    ("before", "options", "focused"),
    [
        ("", {}, "textarea"),
        ("", {"has_touch": True, "is_mobile": True}, "body"),  # whose keyboard would cover the page
        pytest.param("", {"viewport": {"width": 800, "height": 500}}, "textarea", marks=in_long),  # it scrolls a little
        pytest.param("<input autofocus>", {}, "input", marks=in_long),
        pytest.param(_ARTICLE, {}, "body", marks=in_long),  # whose keyboard scrolls the page
    ],
)
async def test_a_chat_that_is_the_whole_page_has_the_focus(
    browser: Browser, before: str, options: dict[str, Any], focused: str
) -> None:
    async with site(browser, before + TAG) as here:
        page = await here.visitor(**options)
        await expect(page.get_by_text("Online")).to_be_visible()
        await page.evaluate(_FOCUSED)
        assert await page.evaluate("focused().tag") == focused


async def test_a_floating_chat_on_a_touch_screen_opens_without_the_keyboard(browser: Browser) -> None:
    async with site(browser, "<tenuto-chat launcher></tenuto-chat>") as here:
        page = await here.visitor(has_touch=True, is_mobile=True)
        await page.locator(".launcher").tap()
        await expect(page.get_by_text("Online")).to_be_visible()
        assert await page.evaluate("document.activeElement.shadowRoot.activeElement.className") == "log"
        await page.set_viewport_size({"width": 640, "height": 200})
        await page.locator("header", has_text="Online").hover()
        await page.mouse.wheel(0, 400)
        await expect(page.locator(".send")).to_be_in_viewport(ratio=1)  # also in a low window


async def test_an_editor_gives_the_focus_back_and_escape_closes_no_dialog_around_the_chat(browser: Browser) -> None:
    async with scene(browser, '<dialog><tenuto-chat channel="chat:1"></tenuto-chat></dialog>') as here:
        await here.page.evaluate("document.querySelector('dialog').showModal()")
        await here.ask("First version")
        await here.page.locator(".stop").wait_for()
        await here.page.keyboard.press("Escape")  # stops the answer
        await here.page.locator(".assistant[data-status=cancelled]").wait_for()
        await here.page.evaluate(_FOCUSED)
        await _tab_until(here.page, "Edit", key="Shift+Tab")
        for name, key in (("Save", "Escape"), ("Cancel", "Enter")):
            await here.page.keyboard.press("Enter")
            await here.page.wait_for_function("() => focused().tag === 'textarea'")
            await _tab_until(here.page, name)
            await here.page.keyboard.press(key)
            await here.page.wait_for_function("() => focused().name === 'Edit'")
        assert await here.page.locator(".panel").evaluate("it => it.clientWidth") == 300  # in a closed dialog 0


async def test_one_live_region_speaks_a_finished_answer_once_and_no_piece_of_it(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Count")
        assert await here.page.locator("[role=log][aria-live=off]").count() == 1
        assert await here.page.locator("[role=status]").count() == 1
        assert await here.page.locator("[aria-live]:not([aria-live=off])").count() == 0
        await here.page.evaluate(script("looks", "listen"))
        for piece in ("one ", "two ", "three"):
            here.pieces.put_nowait(piece)
            await here.until(piece.strip())
        here.pieces.put_nowait(None)
        await here.page.wait_for_function("() => spoken.some(({ text }) => text.includes('one two three'))")
        await here.ask("Stop")  # its answer ends within two seconds, and is spoken later
        await (articles := here.page.locator("article")).nth(3).wait_for()
        await here.page.keyboard.press("Escape")
        await here.page.wait_for_function("() => spoken.some(({ text }) => /Stopped(?!:)/.test(text))")
        assert await articles.evaluate_all("all => all.map((one) => one.ariaLabel)") == ["You", "Guide"] * 2
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
    state = page.locator(".assistant .state", has_text="answering…")  # English words: the "…" stands behind them
    assert await state.evaluate("node => getComputedStyle(node).direction") == "ltr"


async def test_targets_have_44_pixels_on_touch(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, has_touch=True, is_mobile=True)
    assert await page.evaluate("matchMedia('(pointer: coarse)').matches")
    assert await page.evaluate(script("looks", "small")) == []


async def test_nothing_moves_where_the_person_wants_less_motion(browser: Browser, address: str) -> None:
    page = await open_gallery(browser, address, "state=streaming", reduced_motion="reduce")
    assert await page.evaluate(script("looks", "moving")) == []


# Elements of the layout, and the text for screen readers.
_LAYOUT = {"approvals", "editing", "fill", "messages", "mute", "names", "row", "spacer", "spoken", "square"}


async def test_all_states_are_seen_in_forced_colours_and_each_element_has_its_part(
    browser: Browser, address: str
) -> None:
    page = await open_gallery(browser, address, forced_colors="active")
    assert await page.evaluate("matchMedia('(forced-colors: active)').matches")
    assert await page.locator("tenuto-chat").count() == len(STATES)
    documented = (ROOT / "docs/widget.md").read_text().split("`::part`:")[1].split("\n\n")[0]
    found = await page.evaluate(script("looks", "parts"))
    assert set(found["parts"]) == set(re.findall(r"`([\w-]+)`", documented))
    assert set(found["others"]) <= _LAYOUT
    assert found["controls"] == 0

    await page.keyboard.press("Tab")  # from now on the focus is that of a keyboard
    seen = await page.evaluate(script("looks", "unseen"))
    assert seen["unseen"] == []
    assert seen["counts"]["controls"] > 5 * len(STATES), seen["counts"]
    assert seen["counts"]["texts"] > 10 * len(STATES), seen["counts"]
