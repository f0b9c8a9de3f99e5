"""The page in a real browser: what people type, scroll, hear and see. That nothing is lost is `tests/browser`'s."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.processes import Server, text_of

CHANNEL = "demo:test"
ANSWER = '[data-role="assistant"]'
QUESTION = '[data-role="user"]'


@pytest.fixture
async def page(browser: Browser, demo: Server) -> AsyncIterator[Page]:
    """The page of an empty conversation; a script that fails there fails the test."""
    page = await open_page(browser, demo)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []


async def open_page(browser: Browser, demo: Server, *, width: int = 1280, height: int = 800) -> Page:
    page = await browser.new_page(viewport={"width": width, "height": height})
    await page.goto(f"http://127.0.0.1:{demo.port}/?channel={CHANNEL}")
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    return page


async def begin_an_answer(page: Page) -> None:
    await page.click("#suggestions button >> nth=0")
    await expect(page.locator(f"{ANSWER} .text")).to_contain_text("I am not a model.")
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "streaming")


async def put(demo: Server, message_id: str, text: str, role: str = "assistant") -> None:
    body = {"id": message_id, "role": role, "text": text}
    status, _ = await asyncio.to_thread(demo.post, f"{demo.hub}/v1/channels/{CHANNEL}/messages", body)
    assert status == 201


async def test_text_is_text_whatever_it_looks_like(page: Page, demo: Server) -> None:
    text = (
        '<img src="x" onerror="alert(1)"><script>alert(2)</script> <b>&amp;</b>\r\n  \r \u2028 data: **x** 🧜🏽\u200d♀️'
    )
    await put(demo, "m", text)
    await expect(page.locator('[data-message-id="m"]')).to_have_attribute("data-status", "complete")
    assert await page.locator('[data-message-id="m"] .text').evaluate("node => node.textContent") == text
    assert await page.locator("#messages :is(img, script, b)").count() == 0


async def test_enter_sends_and_shift_enter_begins_a_new_line(page: Page, demo: Server) -> None:
    await page.locator("#question").press_sequentially("first")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("second")
    await page.keyboard.press("Enter")
    await expect(page.locator(f"{QUESTION} .text")).to_have_text("first\nsecond", use_inner_text=False)
    await expect(page.locator("#question")).to_have_value("")


@pytest.mark.parametrize("as_told_by", ["isComposing: true", "keyCode: 229"])
async def test_the_enter_of_an_input_method_sends_nothing(page: Page, as_told_by: str) -> None:
    question = page.locator("#question")
    await question.fill("付着器")
    press = f"new KeyboardEvent('keydown', {{ key: 'Enter', {as_told_by}, bubbles: true }})"
    await question.evaluate(f"node => node.dispatchEvent({press})")
    assert await page.locator(QUESTION).count() == 0
    await expect(question).to_have_value("付着器")
    await question.press("Enter")
    await expect(page.locator(f"{QUESTION} .text")).to_have_text("付着器")


async def test_blank_questions_are_not_sent(page: Page) -> None:
    await page.fill("#question", "  \n ")
    await page.locator("#question").press("Enter")
    assert await page.locator(QUESTION).count() == 0


async def test_it_follows_the_end_until_the_reader_scrolls_up_and_again_when_asked_to(page: Page, demo: Server) -> None:
    transcript, newest = page.locator("#transcript"), page.locator("#newest")
    await page.fill("#question", "line\n" * 60)
    await page.locator("#question").press("Enter")
    await expect(page.locator(f"{ANSWER} .text")).to_contain_text("I am not a model.")
    left = "node => node.scrollHeight - node.clientHeight - node.scrollTop"
    assert await transcript.evaluate(left) <= 1
    await expect(newest).to_be_hidden()
    await transcript.hover()
    await page.mouse.wheel(0, -30)  # less than what counts as being near the end: it is a wish all the same
    await expect(newest).to_be_visible()
    await put(demo, "later", "later\n" * 3, role="user")
    await expect(page.locator('[data-message-id="later"]')).to_be_attached()
    assert await transcript.evaluate(left) > 30
    await newest.click()
    await expect(page.locator('[data-message-id="later"]')).to_be_in_viewport()
    await expect(newest).to_be_hidden()


async def test_a_move_up_counts_even_when_text_comes_before_the_browser_tells_of_it(page: Page) -> None:
    await page.fill("#question", "line\n" * 60)
    await page.locator("#question").press("Enter")
    await expect(page.locator(f"{ANSWER} .text")).to_contain_text("I am not a model.")
    # The stop button shows the transcript anew at once; the event of scrolling comes with the next frame.
    up_and_stop = "node => { node.scrollTop -= 200; document.querySelector('#stop').click() }"
    await page.locator("#transcript").evaluate(up_and_stop)
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator("#newest")).to_be_visible()


async def test_an_answer_can_be_stopped_from_another_window(page: Page, browser: Browser, demo: Server) -> None:
    await begin_an_answer(page)
    other = await open_page(browser, demo)
    await other.click("#stop")
    await expect(other.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator("#stop")).to_be_hidden()
    await expect(page.locator(".proof")).to_have_attribute("data-equal", "true")
    answer_id = await page.locator(ANSWER).get_attribute("data-message-id")
    assert answer_id is not None
    assert await page.locator(f"{ANSWER} .text").text_content() == text_of(demo.message(CHANNEL, answer_id))


async def test_a_question_asked_while_the_server_is_away_survives_a_reload_and_is_answered(
    page: Page, demo: Server
) -> None:
    await begin_an_answer(page)
    await asyncio.to_thread(demo.end, signal.SIGKILL)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "reconnecting")
    await page.fill("#question", "Are you there?")
    await page.locator("#question").press("Enter")
    await expect(page.locator('[data-status="sending"] .text')).to_have_text("Are you there?")
    await asyncio.to_thread(demo.start)
    await page.reload()
    await expect(page.locator(ANSWER)).to_have_count(2)
    await expect(page.locator(f"{QUESTION} .text").nth(1)).to_have_text("Are you there?")
    await expect(page.locator('[data-status="sending"]')).to_have_count(0)
    await expect(page.locator("#count-reloads")).to_have_text("1")


async def test_what_was_caught_up_is_told_and_kept_through_reloads(page: Page, demo: Server) -> None:
    await put(demo, "m", "x" * 2_060)
    await page.reload()
    await expect(page.locator("#status")).to_have_text("caught up: 2,060 characters in one event")
    await page.reload()
    await expect(page.locator("#journal li")).to_have_count(2)
    await expect(page.locator("#count-reloads")).to_have_text("2")
    await expect(page.locator("#kill")).to_have_text(f"kill -9 {demo.running.pid}")


async def test_screen_readers_hear_of_answers_and_not_of_tokens(page: Page) -> None:
    await begin_an_answer(page)
    heard = page.locator(":is([aria-live=polite], [aria-live=assertive], [role=status], [role=alert])")
    assert await heard.evaluate_all("nodes => nodes.map(node => node.id)") == ["status"]
    assert await page.locator("#messages").get_attribute("aria-live") == "off"
    await expect(page.locator("#status")).to_have_text("answering…")
    await expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "true")
    await page.click("#stop")
    await expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "false")
    await expect(page.locator("#status")).to_contain_text("answer cancelled:")


async def test_it_fits_a_phone(browser: Browser, demo: Server) -> None:
    await put(demo, "m", "unbroken" * 100)
    page = await open_page(browser, demo, width=320, height=560)
    await page.click("#panel summary")
    spare = "node => node.clientWidth - node.scrollWidth"
    assert await page.locator("html").evaluate(spare) == 0
    assert await page.locator("#transcript").evaluate(spare) == 0
    await expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    await expect(page.locator("#kill")).to_be_visible()
