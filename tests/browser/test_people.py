"""Several people and agents in one conversation, each in a browser window: each may watch, stop, steer and approve.

Layer: tests.
"""

from __future__ import annotations

import re

from playwright.async_api import Browser, expect

from tests.browser.tab import TIMEOUT_MS, Tab, script
from tests.processes import Server, text_of

ANSWER = ".assistant"
_HAS_AGENTS = script("chat_page", "hasAgents")
AGENTS = ("guide~1", "guide~2")

expect.set_options(timeout=TIMEOUT_MS)


async def test_people_see_each_other_and_each_may_steer_and_stop_the_agent(
    browser: Browser, shared: Server, channel: str
) -> None:
    ada = await Tab.open(browser, shared.port, channel, "ws", "Ada")
    bob = await Tab.open(browser, shared.port, channel, "sse", "Bob")
    await expect(ada.page.locator("#people li")).to_have_text(["A", "B"])
    await expect(bob.page.locator("#people li")).to_have_text(["B", "A"])
    for tab in (ada, bob):
        await tab.page.wait_for_function(_HAS_AGENTS, arg=AGENTS)

    await bob.page.locator("textarea").press_sequentially("Hm")
    await expect(ada.page.locator(".status")).to_have_text(re.compile("@?bob is typing…", re.IGNORECASE))
    await expect(bob.page.locator(".status")).to_be_hidden()
    await bob.page.fill("textarea", "")
    await expect(ada.page.locator(".status")).to_be_hidden()

    await ada.send("What is a cursor?")
    await expect(bob.page.locator(".user .author")).to_have_text(re.compile("@?ada", re.IGNORECASE))
    answer = await bob.page.get_attribute(ANSWER, "data-message-id") or ""
    await bob.until_length(answer, 20)
    await bob.page.get_by_role("button", name="Steer this answer").click()
    await bob.send("And what is an epoch?")
    await expect(ada.page.locator(ANSWER)).to_contain_text("says: And what is an epoch?")
    assert await ada.page.locator(".user").count() == 1

    await bob.page.click(".stop")
    for tab in (ada, bob):
        await tab.until_status(answer, "cancelled")
        await expect(tab.page.locator(".stop")).to_be_hidden()
        await expect(tab.page.locator(f"{ANSWER} .state")).to_have_text("Stopped")
    assert await ada.text(answer) == await bob.text(answer) == text_of(shared.message(channel, answer))
    assert ada.errors + bob.errors == []
