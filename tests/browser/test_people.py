"""Several people and agents in one conversation, each in a browser window: each may watch, stop, steer and approve.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import Browser, expect

from holdfast.testing.proxy import FaultProxy
from tests.browser.tab import TIMEOUT_MS, Tab
from tests.processes import Server, text_of

ANSWER = '[data-role="assistant"]'

expect.set_options(timeout=TIMEOUT_MS)

pytestmark = pytest.mark.asyncio(loop_scope="module")  # as the browser


async def two_people(browser: Browser, demo: Server, transports: str = "ws sse") -> tuple[Tab, Tab]:
    """Return the tabs of Ada and Bob, each present in the other."""
    ada_by, bob_by = transports.split()
    ada = await Tab.open(browser, demo.port, "demo:test", ada_by, "Ada")
    bob = await Tab.open(browser, demo.port, "demo:test", bob_by, "Bob")
    for tab in (ada, bob):
        for member in ("@ada", "@bob", "guide"):
            await expect(tab.page.locator(f'[data-member-id="{member}"]')).to_be_visible()
    return ada, bob


async def send(tab: Tab, text: str) -> None:
    await tab.page.fill("#question", text)
    await tab.page.press("#question", "Enter")


async def test_people_see_each_other_and_the_agent_and_each_may_stop_it(browser: Browser, demo: Server) -> None:
    ada, bob = await two_people(browser, demo)
    guide = '[data-member-id="guide"]'
    await expect(ada.page.locator(guide)).to_have_attribute("data-state", "listening")

    await bob.page.locator("#question").press_sequentially("Hm")
    await expect(ada.page.locator("#typing")).to_have_text("Bob is typing…")
    await expect(bob.page.locator("#typing")).to_have_text("")
    await bob.page.fill("#question", "")
    await expect(ada.page.locator("#typing")).to_have_text("")

    await send(ada, "What is a cursor?")
    question = bob.page.locator('[data-role="user"]')
    await expect(question.locator(".author")).to_have_text("Ada")
    await expect(bob.page.locator(f"{ANSWER} .text")).not_to_be_empty()
    await expect(bob.page.locator('[data-member-id^="guide"][data-state="answering"]')).to_have_count(1)

    await bob.page.fill("#question", "And what is an epoch?")
    await bob.page.click("#steer")
    await expect(ada.page.locator(f"{ANSWER} .text")).to_contain_text(
        "Bob says: And what is an epoch?\n\nSo I turn to that."
    )

    await bob.page.click("#stop")
    for tab in (ada, bob):
        await expect(tab.page.locator(ANSWER)).to_have_attribute("data-status", "cancelled")
        await expect(tab.page.locator("#stop")).to_be_hidden()
        await expect(tab.page.locator(guide)).to_have_attribute("data-state", "listening")
    answer = await ada.page.get_attribute(ANSWER, "data-message-id")
    assert answer is not None
    assert await ada.text(answer) == await bob.text(answer) == text_of(demo.message("demo:test", answer))
    assert ada.errors + bob.errors == []


async def test_a_stop_reaches_a_window_that_reconnects(browser: Browser, demo: Server) -> None:
    async with FaultProxy("127.0.0.1", demo.port) as proxy:
        ada, bob = await two_people(browser, demo)
        cyd = await Tab.open(browser, proxy.port, "demo:test", "ws", "Cyd")
        await send(ada, "What is a cursor?")
        answer = await cyd.page.locator(ANSWER).get_attribute("data-message-id")
        assert answer is not None
        shown = await cyd.until_length(answer, 40)
        proxy.refuse()
        await proxy.cut()
        await bob.page.click("#stop")
        await ada.until_status(answer, "cancelled")
        proxy.accept()
        for tab in (bob, cyd):
            await tab.until_status(answer, "cancelled")
        stored = text_of(demo.message("demo:test", answer))
        assert stored.startswith(shown)
        assert [await tab.text(answer) for tab in (ada, bob, cyd)] == [stored] * 3
        assert ada.errors + bob.errors + cyd.errors == []


async def test_one_person_approves_the_request_of_another(browser: Browser, demo: Server) -> None:
    ada, bob = await two_people(browser, demo)
    body = {"id": "old", "role": "assistant", "text": "Old."}
    await asyncio.to_thread(demo.post, f"{demo.hub}/v1/channels/demo:test/messages", body)
    await expect(ada.page.locator('[data-message-id="old"]')).to_be_visible()
    await send(ada, "Delete the messages")
    for tab in (ada, bob):
        await expect(tab.page.locator(".approval p")).to_have_text("Delete the message above?")
        await expect(
            tab.page.locator('[data-member-id^="guide"] .work', has_text="waiting for approval")
        ).to_have_count(1)
    await ada.page.reload()  # an approval is stored like every command
    await expect(ada.page.locator(".approval p")).to_have_text("Delete the message above?")
    await bob.page.get_by_role("button", name="Yes").click()
    for tab in (ada, bob):
        await expect(tab.page.locator(f"{ANSWER} .text").last).to_contain_text("Bob said yes. 1 message deleted")
        await expect(tab.page.locator(".approval")).to_have_count(0)
        await expect(tab.page.locator('[data-message-id="old"]')).to_have_count(0)
    await expect(ada.page.locator("#journal")).to_contain_text("Bob said yes")
    assert ada.errors + bob.errors == []


async def test_another_agent_continues_visibly_after_a_crash(browser: Browser, demo: Server) -> None:
    ada, bob = await two_people(browser, demo)
    for number in (1, 2):
        await expect(ada.page.locator(f'[data-member-id="guide~{number}"]')).to_be_visible()
    await send(ada, "What is a lease?")
    await expect(ada.page.locator(f"{ANSWER} .text")).not_to_be_empty()
    await ada.page.click("#crash")
    for tab in (ada, bob):
        await expect(tab.page.locator("#journal")).to_contain_text(re.compile(r"interrupted here: guide~\d crashed"))
        await expect(tab.page.locator(f"{ANSWER} .break")).to_be_attached()
    answer = await ada.page.get_attribute(ANSWER, "data-message-id")
    assert answer is not None
    at = demo.message("demo:test", answer)["meta"]["continued"][0]["at"]
    await bob.until_length(answer, at + 40)
    await bob.page.click("#stop")
    for tab in (ada, bob):
        await tab.until_status(answer, "cancelled")
        stored = text_of(demo.message("demo:test", answer))
        assert await tab.text(answer) == stored
    await expect(ada.page.locator(ANSWER)).to_have_count(1)
    await ada.reload()
    await expect(ada.page.locator(f"{ANSWER} .break")).to_be_visible()
    assert await ada.text(answer) == stored
    assert ada.errors + bob.errors == []


async def test_a_member_does_not_flicker_on_refresh(browser: Browser, demo: Server) -> None:
    ada, bob = await two_people(browser, demo, "ws ws")
    await bob.page.evaluate("""() => {
      window.gone = 0
      new MutationObserver(() => { if (!document.querySelector('[data-member-id="@ada"]')) window.gone++ })
        .observe(document.getElementById("people"), { childList: true, subtree: true })
    }""")
    for _ in range(5):
        await ada.reload()
        await expect(ada.page.locator('[data-member-id="@bob"]')).to_be_visible()
    # A signal arrives after all earlier events about Ada.
    await ada.page.locator("#question").press_sequentially("Hm")
    await expect(bob.page.locator("#typing")).to_have_text("Ada is typing…")
    assert await bob.page.evaluate("window.gone") == 0
    about_ada = [one["type"] for one in bob.events if one.get("id", one.get("member", {}).get("id")) == "@ada"]
    assert about_ada.count("presence.leave") == 0
    assert about_ada.count("presence.enter") <= 1  # the first one, unless the attach included it
    assert "has left" not in (await bob.page.inner_text("#journal"))
    assert ada.errors + bob.errors == []
