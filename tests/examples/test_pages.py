"""The examples' pages in Chromium: each shows the behaviour that its docstring describes.

Layer: tests.

The server runs in the test's own process, so that a test sets the pace of an example's model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType

from playwright.async_api import Browser, Page, expect

from tests.browser.tab import picture
from tests.examples import programs

Load = Callable[[str], ModuleType]

NUMBERS = "".join(f"{count} " for count in range(1, 121))
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@asynccontextmanager
async def served(program: ModuleType, browser: Browser, pace_s: float = 0.01) -> AsyncIterator[Page]:
    """Serve a program and open its page; a script error in the page fails the test."""
    async with programs.served(program, pace_s) as address, opened(browser, address) as page:
        yield page


@asynccontextmanager
async def opened(browser: Browser, address: str) -> AsyncIterator[Page]:
    """Open a page in a profile of its own, with cookies of its own."""
    context = await browser.new_context(base_url=address)
    context.set_default_timeout(PATIENCE_MS)
    page, errors = await context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        await page.goto(address)
        yield page
    finally:
        await context.close()
    assert errors == []


async def text_of(page: Page, selector: str) -> str:
    return await page.locator(selector).inner_text()


async def test_the_fastapi_answer_survives_a_reload(program: Load, browser: Browser) -> None:
    async with served(program("fastapi_app"), browser) as page:
        await page.fill("#question", "why?")
        await page.click("button")
        await expect(page.locator("#messages")).to_contain_text(" 20 ")
        before = await text_of(page, "#messages")
        await picture(page, "fastapi_app")
        await page.reload()
        await page.wait_for_selector("#messages p")
        assert len(await text_of(page, "#messages")) >= len(before)
        await expect(page.locator("#messages p").nth(1)).to_have_text(
            "bot: You asked: why?\n" + NUMBERS.removeprefix("1 "), use_inner_text=False
        )


async def test_a_django_answer_survives_a_reload(program: Load, browser: Browser) -> None:
    async with served(program("django_app"), browser) as page:
        await page.fill("input", "Good morning.")
        await page.click("text=Remark")
        await expect(page.locator("#messages p")).to_have_text(["you: Good morning."])
        await page.fill("input", "Why?")
        await page.click("text=Ask")
        await page.wait_for_selector("text=bot (streaming)")
        await picture(page, "django_app")
        await page.reload()
        await expect(page.locator("#messages p")).to_have_text(
            ["you: Good morning.", "you: Why?", f"bot: {NUMBERS.strip()}"]
        )


async def test_an_agent_is_shown_and_can_be_stopped_from_another_window(program: Load, browser: Browser) -> None:
    async with served(program("agent_fastapi"), browser, pace_s=0.2) as page:
        await expect(page.locator("#agents")).to_have_text("bot: listening")
        await page.fill("#question", "why?")
        await page.click("text=Ask")
        await expect(page.locator("#agents")).to_have_text("bot: answering")
        other = await page.context.new_page()
        await other.goto("/")
        await expect(other.locator("#messages")).to_contain_text(" 10 ")
        await picture(other, "agent_fastapi")
        await other.click("#cancel")
        for one in (page, other):
            await expect(one.locator("#messages p").nth(1)).to_contain_text("bot (cancelled): You asked: why?")
            await expect(one.locator("#cancel")).to_be_disabled()
        await expect(page.locator("#agents")).to_have_text("bot: listening")
        assert await text_of(page, "#messages") == await text_of(other, "#messages")


async def test_an_existing_endpoint_gives_a_reloaded_page_the_same_answer(program: Load, browser: Browser) -> None:
    async with served(program("sse_endpoint"), browser, pace_s=0.02) as page:
        await page.fill("#question", "why?")
        await page.click("button")
        await expect(page.locator("#text")).to_contain_text(" 20 ")
        await picture(page, "sse_endpoint")
        await page.reload()
        await expect(page.locator("#state")).to_have_text("complete")
        answer = "You asked: why? (asked 1 times so far)\n" + NUMBERS.removeprefix("1 ")
        assert await page.text_content("#text") == answer
        await page.fill("#question", "how?")
        await page.click("text=Ask")
        await expect(page.locator("#text")).to_contain_text("You asked: how?")
        await page.reload()
        await expect(page.locator("#text")).to_contain_text("You asked: how?")
        await page.click("text=Stop")
        await expect(page.locator("#state")).to_have_text("cancelled")


async def test_each_user_sees_their_own_notes_and_the_lobby(program: Load, browser: Browser) -> None:
    async with (
        programs.served(program("login_fastapi")) as address,
        opened(browser, address) as ann,
        opened(browser, address) as bob,
    ):
        for page, name in ((ann, "ann"), (bob, "bob")):
            await page.fill("input", name)
            await page.click("text=Log in")
            await expect(page.locator("#me")).to_have_text(name)
            await page.wait_for_load_state()  # the script of the page that the login has loaded again
            await page.fill("#note input", f"a note of {name}'s")
            await page.click("#note button")
            await expect(page.locator("#notes li")).to_have_text([f"{name}: a note of {name}'s"])
        await ann.fill("#say input", "Hello")
        await ann.click("#say button")
        for page in (ann, bob):
            await expect(page.locator("#lobby li")).to_have_text(["ann: Hello"])
        await bob.click("#pry")
        await expect(bob.locator("#answer")).to_have_text("403 forbidden")
        await picture(bob, "login_fastapi")
        await ann.route("**/lobby/events?*", lambda route: route.fulfill(status=401), times=1)  # by a restarted server
        await ann.reload()
        await expect(ann.locator("#lobby li")).to_have_text(["ann: Hello"])
        await bob.click("text=Log out")
        await expect(bob.locator("#login")).to_be_visible()
