"""The demo's pages in a real browser, on the real server: the scoreboard, the plain stream, people, and invitations.

Layer: tests. `tests/browser` covers the client and the chat element.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser.tab import TIMEOUT_MS, chromium
from tests.processes import Server, serving, text_of

LAN = "127.0.0.2"  # stands for an address in a network; no test listens on a real one
ANSWER = ".assistant"
STORY_S = 20  # time from opening the page until the visitor has seen an answer survive and a plain stream end
# The messages as the chat element has them: their text as stored, not as drawn. Unsent ones count too.
_MESSAGES = """(() => {
  const chat = document.querySelector("tenuto-chat")
  return chat?.client?.channel(chat.getAttribute("channel")).getSnapshot().messages ?? []
})()"""
_ANSWER = f"""() => {_MESSAGES}.filter(({{ role }}) => role === "assistant").at(-1)?.text ?? "" """

# Press a button, and return the seconds until the text of a running answer moves again after its connection was lost.
_PAUSE_OF = f"""async (button) => {{
  const length = () => {_MESSAGES}.filter(({{ role }}) => role === "assistant").at(-1).text.length
  const until = async (isTrue) => {{ while (!isTrue()) await new Promise((done) => setTimeout(done, 5)) }}
  const begun = performance.now()
  document.getElementById(button).click()
  await until(() => document.getElementById("connection").dataset.state !== "live")
  const stood = length()
  await until(() => length() > stood)
  return (performance.now() - begun) / 1_000
}}"""

# Playwright's clock hides how the page was loaded; this gives it back.
_NAVIGATION = """performance.getEntriesByType = name =>
  name === "navigation" ? [{ type: navigation.activation.navigationType }] : []"""

expect.set_options(timeout=TIMEOUT_MS)

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests of this module: their windows have profiles of their own."""
    async with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not kill it: each has a conversation of its own."""
    with serving("demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    return f"demo:{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@asynccontextmanager
async def visiting(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """Open a browser profile. A script error, or a violation of the policy, in one of its pages fails the test."""
    context = await browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    context.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
    yield context
    await context.close()
    assert errors == []


async def open_page(context: BrowserContext, server: Server, channel: str, path: str = "/") -> Page:
    page = await context.new_page()
    await page.goto(f"http://{server.host}:{server.port}{path}?channel={channel}")
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    return page


async def ask(page: Page, length: int = 80, question: int = 0) -> str:
    """Ask a suggested question; return the answer's text once it has `length` characters."""
    await page.locator("#suggestions button").nth(question).click()
    return await until_length(page, length)


async def until_length(page: Page, length: int) -> str:
    await page.wait_for_function(f"length => ({_ANSWER})().length >= length", arg=length)
    text: str = await page.evaluate(_ANSWER)
    return text


def box(page: Page, name: str) -> Any:
    return expect(page.locator(f"#box-{name}"))


async def total(page: Page, name: str) -> int:
    return int(await page.inner_text(f"#{name} b"))


# The argument of the demo


async def test_a_visitor_who_only_presses_reload_sees_an_answer_survive_and_a_plain_stream_lose_its_answer(
    browser: Browser, shared: Server
) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        await page.clock.install()
        await page.add_init_script(_NAVIGATION)
        began_s = time.monotonic()
        await page.goto(f"http://127.0.0.1:{shared.port}/")
        await expect(page.locator("#welcome")).to_be_visible()
        loading_s = time.monotonic() - began_s
        await expect(page.get_by_text("not a model")).to_have_count(1)
        await page.clock.fast_forward(8_000)
        before = await until_length(page, 80)
        await expect(page.locator(".user")).to_contain_text("What happens when I press F5?")
        await expect(page.locator("#plain-words")).to_contain_text(re.compile(r"^\d\d+ characters so far"))
        await page.clock.fast_forward(5_000)
        await expect(page.locator("#do-reload")).to_have_class(re.compile("pulse"))
        plain = int((await page.inner_text("#plain-words")).split()[0].replace(",", ""))
        pressed_s = time.monotonic()
        await page.click("#do-reload")

        await box(page, "reload").to_have_attribute("data-state", "ok")
        await expect(page.locator("#plain-loss")).to_be_visible()
        seen_s = loading_s + 8 + 5 + time.monotonic() - pressed_s
        print(f"a visitor who presses the button when it pulses has seen both after {seen_s:.1f} s")
        assert seen_s <= STORY_S
        words = await page.inner_text("#box-reload p")
        assert re.fullmatch(r"[\d,]+ characters came back in 1 event, \d+ ms", words), words
        marks = await page.evaluate("document.querySelector('tenuto-chat').marks")
        assert [one["text"].split(".")[0] for one in marks] == ["You reloaded here"]
        assert marks[0]["at"] >= 80
        assert (await until_length(page, len(before) + 40)).startswith(before)
        await expect(page.locator("#plain-loss")).to_contain_text("Asking again would pay the model twice")
        lost = int((await page.inner_text("#plain-lost")).split()[0].replace(",", ""))
        assert lost >= plain >= 10
        assert [await total(page, name) for name in ("reloads", "deaths", "lost")] == [1, 0, 0]
        await expect(page.locator("#do-reload")).not_to_have_class(re.compile("pulse"))


async def test_a_reload_that_loses_text_is_counted_and_ticks_no_box(
    browser: Browser, shared: Server, channel: str
) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, channel)
        path = f"{shared.hub}/v1/channels/{channel}/messages"
        await asyncio.to_thread(shared.post, path, {"id": "m", "role": "assistant", "text": "abc"})
        await until_length(page, 3)
        kept = "sessionStorage['tenuto-demo.score']"  # the page has kept that it showed "abc"
        await page.add_init_script(f"if ({kept}) {kept} = {kept}.replace('\"abc\"', '\"abX and more\"')")
        await page.reload()
        await box(page, "reload").to_have_attribute("data-state", "lost")
        await box(page, "reload").to_contain_text("10 characters lost")
        assert await total(page, "lost") == 10


async def test_another_window_sees_the_same_text_word_for_word(browser: Browser, shared: Server, channel: str) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, channel)
        await ask(page, question=1)
        async with context.expect_page() as opened:
            await page.click("#do-join")
        other = await opened.value
        await box(page, "join").to_have_attribute("data-state", "ok")
        name = await other.locator("#people li").first.get_attribute("title")
        await box(page, "join").to_contain_text(f"{name} sees the same text, word for word")
        await expect(page.locator("#people li")).to_have_count(2)
        await expect(page.locator("#chat-list [aria-current]")).to_contain_text(re.compile(r"answering · \w+ is here"))
        await other.click(".stop")
        await expect(page.locator(f"{ANSWER} .state")).to_have_text("Stopped")
        await expect(other.locator("#chat-list [aria-current]")).to_contain_text("stopped by you")


async def test_a_killed_server_and_a_crashed_agent_lose_nothing(browser: Browser, demo: Server) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, demo, "demo:test")
        before = await ask(page, question=2)
        _, killed = await asyncio.to_thread(demo.get, "/demo/info")
        pause_s = await page.evaluate(_PAUSE_OF, "do-kill")
        print(f"from the kill to moving text: {pause_s:.2f} s")
        assert pause_s < 6, pause_s  # three times what is promised, for busy machines
        await box(page, "kill").to_have_attribute("data-state", "ok")
        words = await page.inner_text("#box-kill p")
        assert re.fullmatch(rf"kill -9 {killed['pid']} · down \d+\.\d s, nothing lost", words), words
        await expect(page.locator("#plain-words")).to_contain_text(re.compile(r"^Cut off after [\d,]+ characters"))
        after = await until_length(page, len(before) + 40)
        assert after.startswith(before)

        await page.click("#do-crash")
        await box(page, "crash").to_have_attribute("data-state", "ok")
        await box(page, "crash").to_contain_text(
            re.compile(r"guide\S* went on after [\d,]+ characters, \d+\.\d s later")
        )
        assert (await until_length(page, len(after) + 40)).startswith(after)
        assert [await total(page, name) for name in ("reloads", "deaths", "lost")] == [0, 1, 0]
        await page.click(".stop")
        await expect(page.locator(f"{ANSWER} .state")).to_have_text("Stopped")
        stored = await asyncio.to_thread(
            demo.message, "demo:test", str(await page.get_attribute(ANSWER, "data-message-id"))
        )
        assert await page.evaluate(_ANSWER) == text_of(stored)


async def test_offline_for_ten_seconds_a_question_waits_and_is_sent(
    browser: Browser, shared: Server, channel: str
) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        await page.clock.install()
        await page.goto(f"http://127.0.0.1:{shared.port}/?channel={channel}")
        await ask(page, question=3)
        await page.click("#do-offline")
        await expect(page.locator("#connection-text")).to_have_text("Offline")
        await expect(page.locator("tenuto-chat .status")).to_have_text("Offline. Messages are sent later.")
        await expect(page.locator("#plain-words")).to_contain_text("Cut off after")
        await page.fill("textarea", "Are you still there?")
        await page.press("textarea", "Enter")
        await expect(page.locator('.user[data-status="sending"]')).to_contain_text("Are you still there?")
        await page.clock.fast_forward(10_000)
        await box(page, "offline").to_have_attribute("data-state", "ok")
        await box(page, "offline").to_contain_text(re.compile(r"[\d,]+ characters? followed in \d+ events?, \d+ ms"))
        await expect(page.locator('.user[data-status="complete"]')).to_have_count(2)
        await expect(page.locator("tenuto-chat .hairline")).to_contain_text("You were offline here.")
        assert await total(page, "lost") == 0


async def test_a_question_sent_while_no_server_runs_survives_a_reload_and_is_answered(
    browser: Browser, demo: Server
) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, demo, "demo:test")
        await ask(page)
        await asyncio.to_thread(demo.end, signal.SIGKILL)
        await expect(page.locator("#connection-text")).to_have_text("Reconnecting…")
        await page.fill("textarea", "Are you there?")
        await page.press("textarea", "Enter")
        await expect(page.locator('.user[data-status="sending"]')).to_contain_text("Are you there?")
        await asyncio.to_thread(demo.start)
        await page.reload()
        await expect(page.locator('.user[data-status="complete"]')).to_have_count(2)
        await page.click(".stop")
        await expect(page.locator(ANSWER)).to_have_count(2)
        assert await total(page, "lost") == 0


# Autoplay


async def test_any_input_ends_autoplay_and_with_reduced_motion_there_is_none(browser: Browser, shared: Server) -> None:
    cases: list[tuple[dict[str, Any], str]] = [({}, "keydown"), ({}, "wheel"), ({"reduced_motion": "reduce"}, "")]
    for options, kind in cases:
        async with visiting(browser, **options) as context:
            page = await context.new_page()
            await page.clock.install()
            await page.goto(f"http://127.0.0.1:{shared.port}/")
            await expect(page.locator("#welcome")).to_be_visible()
            if kind:
                await page.wait_for_function(
                    "sessionStorage.getItem('tenuto-demo.visited')"
                )  # the page listens for input
                await page.evaluate(
                    """type => {
                      window.heard = new Promise((done) => addEventListener(type, () => done(type), { capture: true }))
                    }""",
                    kind,
                )
                if kind == "keydown":
                    await page.keyboard.press("Shift")
                else:
                    await page.mouse.move(600, 400)
                    await page.mouse.wheel(0, 100)
                assert await page.evaluate("heard") == kind
            await page.clock.fast_forward(8_000)  # a longer jump would end the connection, and with it autoplay
            assert await page.evaluate(_MESSAGES) == []


async def test_autoplay_is_for_the_first_visit_of_a_tab(browser: Browser, shared: Server) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        await page.clock.install()
        for _ in range(2):
            await page.goto(f"http://127.0.0.1:{shared.port}/")
            await expect(page.locator("#welcome")).to_be_visible()
        await page.clock.fast_forward(8_000)  # a longer jump would end the connection, and with it autoplay
        assert await page.evaluate(_MESSAGES) == []


# Around the conversation


async def test_chats_are_listed_and_can_be_changed(browser: Browser, shared: Server, channel: str) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, channel)
        await ask(page)
        await page.press("textarea", "Escape")
        current = page.locator("#chat-list [aria-current]")
        await expect(current).to_have_text("What happens when I press F5?stopped by you", use_inner_text=False)
        await page.click("#new-chat")
        await expect(page.locator("#welcome")).to_be_visible()
        assert await page.locator(ANSWER).count() == 0
        await ask(page, question=1)
        await expect(page.locator("#chat-list li")).to_have_count(2)
        await page.locator("#chat-list button").nth(1).click()
        await expect(page.locator(".user")).to_have_text(re.compile("F5"))
        await page.reload()
        await expect(page.locator(".user")).to_have_text(re.compile("F5"))
        assert channel in page.url


async def test_chats_of_earlier_days_stand_under_a_heading_of_their_own(
    browser: Browser, shared: Server, channel: str
) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, channel)
        await ask(page)
        await expect(page.locator("#chat-list li")).to_have_count(1)
        await expect(page.get_by_role("heading", name="Earlier")).to_be_hidden()
        await page.evaluate("""() => {
          const key = "tenuto-demo.chats"
          const newest_ms = Date.parse("2026-01-05")
          const chat = { channel: "demo:earlier", title: "A question", state: "0 messages", newest_ms }
          localStorage[key] = JSON.stringify([...JSON.parse(localStorage[key]), chat])
        }""")
        await page.reload()
        await expect(page.get_by_role("heading", name="Earlier")).to_be_visible()
        await expect(page.locator("#earlier-list")).to_have_text("A question0 messages")
        await expect(page.locator("#chat-list li")).to_have_count(1)
        await page.locator("#earlier-list button").click()
        await expect(page).to_have_url(re.compile("channel=demo:earlier"))
        await expect(page.locator("#earlier-list [aria-current]")).to_be_focused()
        await page.locator("#suggestions button").first.dispatch_event("click")
        await expect(page.locator("#chat-list [aria-current]")).to_contain_text("answering")
        await expect(page.locator("#chat-list [aria-current]")).to_be_focused()
        await page.locator(".stop").dispatch_event("click")
        await expect(page.locator("#chat-list [aria-current]")).to_contain_text("stopped by you")
        await expect(page.locator("#chat-list [aria-current]")).to_be_focused()


async def test_a_name_is_text(browser: Browser, shared: Server, channel: str) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, f"{channel}&as=%3Cimg src=x onerror=alert(1)%3E 付")
        await expect(page.locator("#people li")).to_have_attribute("title", "<img src=x onerror=alert(1)> 付")
        assert await page.locator("#people img").count() == 0


async def test_on_a_phone_the_scoreboard_is_a_sheet_and_the_chats_a_drawer(
    browser: Browser, shared: Server, channel: str
) -> None:
    async with visiting(browser, viewport={"width": 320, "height": 640}, has_touch=True) as context:
        page = await open_page(context, shared, channel)
        await ask(page)
        score, chats = page.locator("#score"), page.locator("#chats")
        await expect(score).to_be_hidden()
        await expect(chats).to_be_hidden()
        await expect(page.locator(".send")).to_be_in_viewport(ratio=1)
        await page.click("#show-score")
        await expect(page.locator("#do-reload")).to_be_in_viewport(ratio=1)
        await page.keyboard.press("Escape")
        await expect(score).to_be_hidden()
        await page.click("#show-chats")
        await page.click("#new-chat")
        await expect(chats).to_be_hidden()
        await expect(page.locator("#welcome")).to_be_visible()
        assert await page.locator("html").evaluate("node => node.scrollWidth - node.clientWidth") == 0


async def test_the_invitation_says_how_to_listen_on_the_network(browser: Browser, shared: Server, channel: str) -> None:
    async with visiting(browser) as context:
        page = await open_page(context, shared, channel)
        logged: list[str] = []
        page.on("console", lambda message: logged.append(message.text))
        await page.click("#open-invite")
        await expect(page.locator("#invite-words")).to_contain_text("make demo LAN=1")
        link = await page.input_value("#invite-link")
        await page.click("#close-invite")
        await expect(page.locator("#invite")).to_be_hidden()
        other = await context.new_page()
        await other.goto(link)
        await expect(page.locator("#people li")).to_have_count(2)
        assert logged == []


async def test_a_guest_comes_with_a_link_that_works_once(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving("demo", tmp_path_factory.mktemp("lan"), "--lan", host=LAN) as server:
        server.until(lambda: "#join=" in server.output)
        owner_link = re.findall(r"http://\S+#join=[\w-]+", server.output)[0]
        async with visiting(browser) as owners, visiting(browser) as guests, visiting(browser) as strangers:
            owner, guest, stranger = [await context.new_page() for context in (owners, guests, strangers)]
            await owner.goto(owner_link)
            await expect(owner.locator("#connection")).to_have_attribute("data-state", "live")
            assert "join" not in owner.url
            before = await ask(owner)
            await owner.click("#open-invite")
            await expect(owner.locator("#qr path")).to_have_attribute("d", re.compile(r"^(M\d+ \d+h1v1h-1z)+$"))
            link = await owner.input_value("#invite-link")
            await guest.goto(link)
            await expect(guest.locator("#connection")).to_have_attribute("data-state", "live")
            assert "join" not in guest.url
            assert (await until_length(guest, len(before))).startswith(before)
            await box(owner, "join").to_have_attribute("data-state", "ok")
            await expect(owner.locator("#invite-link")).not_to_have_value(link)
            await stranger.goto(link)
            await expect(stranger.locator("#refused")).to_contain_text("This invitation was used")
            await guest.reload()
            await until_length(guest, len(before))
            await box(guest, "reload").to_have_attribute("data-state", "ok")


# The page "One tag"


async def test_the_page_one_tag_shows_the_code_that_runs(browser: Browser, shared: Server) -> None:
    async with visiting(browser) as context:
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{shared.port}/one-tag")
        tag = '<tenuto-chat channel="demo:one-tag" heading="Ask the docs" launcher></tenuto-chat>'
        await expect(page.locator("#code")).to_contain_text(tag)
        await expect(page.locator("textarea")).to_be_visible()
        await page.get_by_role("button", name="React").click()
        await expect(page.locator("#code")).to_contain_text("useMessages(channel)")
        await page.fill("#react input", "What is a cursor?")
        await page.press("#react input", "Enter")
        await expect(page.locator("tenuto-chat .user")).to_contain_text("What is a cursor?")
        await expect(page.locator("#react p").nth(1)).to_contain_text("A cursor says")
        await page.click(".stop")
        await page.get_by_role("button", name="One tag").click()
        await expect(page.locator("#react")).to_be_hidden()
        await page.get_by_role("button", name="Plain JS").click()
        await expect(page.locator("#code")).to_contain_text("channel.send(form.text.value)")
        await page.fill("#stage input", "What does it cost?")
        await page.press("#stage input", "Enter")
        await expect(page.locator("tenuto-chat .user").nth(1)).to_contain_text("What does it cost?")
        await expect(page.locator("#stage > div")).to_contain_text(
            re.compile("What does it cost.*guide: .+", re.DOTALL)
        )
        await page.click(".stop")
