"""The page in a real browser: typing, scrolling, screen readers and layout. `tests/browser` covers lost data.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.tab import chromium
from tests.processes import Server, serving, text_of

ANSWER = '[data-role="assistant"]'
QUESTION = '[data-role="user"]'


class Conversation:
    """A conversation on a server that belongs to one test."""

    def __init__(self, server: Server, channel: str) -> None:
        self.server = server
        self.channel = channel

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server.port}/?channel={self.channel}"

    def message(self, message_id: str) -> dict[str, Any]:
        """Return the stored message."""
        return self.server.message(self.channel, message_id)

    async def put(self, message_id: str, text: str | None = None, **fields: object) -> None:
        """Store an answer."""
        body = {"id": message_id, "role": "assistant", **({"text": text} if text is not None else {}), **fields}
        path = f"{self.server.hub}/v1/channels/{self.channel}/messages"
        status, _ = await asyncio.to_thread(self.server.post, path, body)
        assert status == 201


pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests of this module: their windows have profiles of their own."""
    async with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not restart it: each has a conversation of its own."""
    with serving("demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture
def conversation(shared: Server, request: pytest.FixtureRequest) -> Conversation:
    return Conversation(shared, f"demo:{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}")


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, conversation: Conversation) -> AsyncIterator[Page]:
    """The page of an empty conversation; a script error in it fails the test."""
    page = await open_page(browser, conversation)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []


async def open_page(
    browser: Browser, conversation: Conversation, *, width: int = 1280, height: int = 800, name: str = ""
) -> Page:
    page = await browser.new_page(viewport={"width": width, "height": height})
    await page.goto(conversation.url + (f"&as={name}" if name else ""))
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    return page


async def begin_an_answer(page: Page) -> None:
    await page.click("#suggestions button >> nth=0")
    await expect(page.locator(f"{ANSWER} .text")).not_to_be_empty()
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "streaming")


async def test_markup_in_a_message_is_shown_as_text(page: Page, conversation: Conversation) -> None:
    text = (
        '<img src="x" onerror="alert(1)"><script>alert(2)</script> <b>&amp;</b>\r\n  \r \u2028 data: **x** 🧜🏽\u200d♀️'
    )
    await conversation.put("m", text)
    await expect(page.locator('[data-message-id="m"]')).to_have_attribute("data-status", "complete")
    assert await page.locator('[data-message-id="m"] .text').evaluate("node => node.textContent") == text
    assert await page.locator("#messages :is(img, script, b)").count() == 0


async def test_enter_sends_and_shift_enter_begins_a_new_line(page: Page, conversation: Conversation) -> None:
    await page.locator("#question").press_sequentially("first")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("second")
    await page.keyboard.press("Enter")
    await expect(page.locator(f"{QUESTION} .text")).to_have_text("first\nsecond", use_inner_text=False)
    await expect(page.locator("#question")).to_have_value("")


@pytest.mark.parametrize("composing", ["isComposing: true", "keyCode: 229"])
async def test_the_enter_of_an_input_method_sends_no_message(page: Page, composing: str) -> None:
    question = page.locator("#question")
    await question.fill("付着器")
    press = f"new KeyboardEvent('keydown', {{ key: 'Enter', {composing}, bubbles: true }})"
    await question.evaluate(f"node => node.dispatchEvent({press})")
    assert await page.locator(QUESTION).count() == 0
    await expect(question).to_have_value("付着器")
    await question.press("Enter")
    await expect(page.locator(f"{QUESTION} .text")).to_have_text("付着器")


async def test_blank_questions_are_not_sent(page: Page) -> None:
    await page.fill("#question", "  \n ")
    await page.locator("#question").press("Enter")
    assert await page.locator(QUESTION).count() == 0


async def test_the_transcript_follows_the_end_until_the_reader_scrolls_up_and_again_on_request(
    page: Page, conversation: Conversation
) -> None:
    transcript, newest = page.locator("#transcript"), page.locator("#newest")
    await page.fill("#question", "line\n" * 60)
    await page.locator("#question").press("Enter")
    await expect(page.locator(f"{ANSWER} .text")).not_to_be_empty()
    left = "node => node.scrollHeight - node.clientHeight - node.scrollTop"
    # The answer grows: the page follows in the next frame.
    await page.wait_for_function(f"() => ({left})(document.getElementById('transcript')) <= 1")
    await expect(newest).to_be_hidden()
    await transcript.hover()
    await page.mouse.wheel(0, -30)  # less than the distance that counts as near the end; it still stops the following
    await expect(newest).to_be_visible()
    await conversation.put("later", "later\n" * 3)
    await expect(page.locator('[data-message-id="later"]')).to_be_attached()
    assert await transcript.evaluate(left) > 30
    await newest.click()
    await expect(page.locator('[data-message-id="later"]')).to_be_in_viewport()
    await expect(newest).to_be_hidden()


async def test_scrolling_up_stops_the_following_even_if_text_arrives_before_the_scroll_event(page: Page) -> None:
    await page.fill("#question", "line\n" * 60)
    await page.locator("#question").press("Enter")
    await expect(page.locator(f"{ANSWER} .text")).not_to_be_empty()
    # The stop button renders the transcript anew at once; the scroll event comes with the next frame.
    up_and_stop = "node => { node.scrollTop -= 200; document.querySelector('#stop').click() }"
    await page.locator("#transcript").evaluate(up_and_stop)
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator("#newest")).to_be_visible()


async def test_an_answer_can_be_stopped_from_another_window(
    page: Page, browser: Browser, conversation: Conversation
) -> None:
    await begin_an_answer(page)
    other = await open_page(browser, conversation)
    await other.click("#stop")
    await expect(other.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
    await expect(page.locator("#stop")).to_be_hidden()
    await expect(page.locator(".proof")).to_have_attribute("data-equal", "true")
    answer_id = await page.locator(ANSWER).get_attribute("data-message-id")
    assert answer_id is not None
    assert await page.locator(f"{ANSWER} .text").text_content() == text_of(conversation.message(answer_id))


async def test_a_question_sent_while_the_server_is_down_survives_a_reload_and_is_answered(
    browser: Browser, demo: Server
) -> None:
    page = await open_page(browser, Conversation(demo, "demo:test"))
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


async def test_the_journal_lists_catch_ups_and_survives_reloads(page: Page, conversation: Conversation) -> None:
    await conversation.put("m", "x" * 2_060)
    await page.reload()
    await expect(page.locator("#status")).to_have_text("caught up: 2,060 characters in one event")
    await page.reload()
    await expect(page.locator("#journal li")).to_have_count(2)
    await expect(page.locator("#count-reloads")).to_have_text("2")
    await expect(page.locator("#kill")).to_have_text(f"kill -9 {conversation.server.get('/demo/info')[1]['pid']}")


async def test_screen_readers_announce_answers_and_not_tokens(page: Page) -> None:
    await begin_an_answer(page)
    live = page.locator(":is([aria-live=polite], [aria-live=assertive], [role=status], [role=alert])")
    assert await live.evaluate_all("nodes => nodes.map(node => node.id)") == ["status"]
    assert await page.locator("#messages").get_attribute("aria-live") == "off"
    await expect(page.locator("#status")).to_have_text("answering…")
    await expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "true")
    await page.click("#stop")
    await expect(page.locator(ANSWER)).to_have_attribute("aria-busy", "false")
    await expect(page.locator("#status")).to_contain_text("answer cancelled:")


async def test_the_page_fits_a_phone(browser: Browser, conversation: Conversation) -> None:
    await conversation.put("m", "unbroken" * 100)
    page = await open_page(browser, conversation, width=320, height=560)
    await page.click("#panel summary")
    spare = "node => node.clientWidth - node.scrollWidth"
    assert await page.locator("html").evaluate(spare) == 0
    assert await page.locator("#transcript").evaluate(spare) == 0
    await expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    await expect(page.locator("#kill")).to_be_visible()


async def test_a_name_is_text_and_can_be_changed(browser: Browser, conversation: Conversation) -> None:
    page = await open_page(browser, conversation, name="%3Cimg src=x onerror=alert(1)%3E 付")
    me = page.locator(".member").first
    await expect(me.locator(".name")).to_have_text("<img src=x onerror=alert(1)> 付 (you)")
    assert await page.locator("#people img").count() == 0
    await page.fill("#name", "Ada")
    await page.press("#name", "Enter")
    await expect(me.locator(".name")).to_have_text("Ada (you)")
    await page.reload()
    await expect(me.locator(".name")).to_have_text("Ada (you)")
    await expect(page.locator('.member:not([data-member-id*="~"])')).to_have_count(2)


async def test_the_page_reports_a_missing_agent(browser: Browser, conversation: Conversation) -> None:
    page = await open_page(browser, Conversation(conversation.server, "lobby:1"))
    await expect(page.locator("#no-agent")).to_be_visible()
    await page.goto(conversation.url)
    await expect(page.locator('[data-member-id="guide"]')).to_have_attribute("data-state", "listening")
    await expect(page.locator("#no-agent")).to_be_hidden()


async def test_reasoning_and_tools_are_shown_apart_from_the_text(page: Page, conversation: Conversation) -> None:
    parts = [
        {"type": "reasoning", "text": "Hm <b>"},
        {"type": "tool", "call": "c", "name": "search", "input": "{}", "state": "done"},
        {"type": "text", "text": "So."},
        {"type": "data", "name": "d", "data": None},
    ]
    await conversation.put("m", parts=parts)
    message = page.locator('[data-message-id="m"]')
    await expect(message.locator(".text")).to_have_text("So.")
    await expect(message.locator(".tool")).to_have_text("search done")
    await expect(message.locator(".thought")).to_be_hidden()
    await message.locator("summary").click()
    await expect(message.locator(".thought")).to_have_text("Hm <b>")


async def test_the_page_works_with_the_keyboard_alone(page: Page, conversation: Conversation) -> None:
    await conversation.put("old", "Old.")
    await expect(page.locator('[data-message-id="old"]')).to_be_visible()
    await page.keyboard.type("Delete the messages")  # the box has the focus from the start
    await page.keyboard.press("Enter")
    card = page.locator(".approval")
    await expect(card).to_have_attribute("aria-label", "Delete the message above?")
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Shift+Tab")
    await expect(card.locator("button").first).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator(f"{ANSWER} .text").last).to_contain_text("said no, so all messages stay.")
    await expect(card).to_have_count(0)
