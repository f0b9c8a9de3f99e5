"""The chat element in Chromium: a real hub with an agent, under a strict policy.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, Page, WebSocketRoute, expect

from proof.chaos.processes import free_port
from tenuto import Hub, Limits
from tenuto.hub.access.tokens import jwt_verifier
from tests.browser.tab import script
from tests.browser.test_client import FIRST_WORDS_S, SECRET, app_with, page_app, page_at, token, verified
from tests.browser.test_markdown import POLICY, WITH_ELEMENT
from tests.conftest import in_long
from tests.transports.conftest import new_hub, serving

_INLINE = '<tenuto-chat channel="chat:1" heading="Ask the docs"></tenuto-chat>'


_FRAMES = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Scene:
    """A page with the element, and the hub behind it. The agent's answer grows when the test says so."""

    def __init__(self, page: Page, hub: Hub, pieces: asyncio.Queue[str | None]) -> None:
        self.page = page
        self.hub = hub
        self.pieces = pieces
        self.violations: list[str] = []

    async def ask(self, text: str) -> None:
        await self.page.fill("textarea", text)
        await self.page.press("textarea", "Enter")

    async def until(self, text: str) -> None:
        await self.page.get_by_text(text).first.wait_for()

    async def mount(self, pages: int = 0, attributes: dict[str, str] | None = None, **options: Any) -> None:
        """Put an element with a client of the page's own into the page, perhaps after older messages were loaded."""
        await self.page.evaluate(script("chat_page", "mount"), [options, attributes or {}, pages])

    async def answer(self, *pieces: str) -> None:
        """Let the agent write the pieces, and wait for the last one."""
        for piece in pieces:
            self.pieces.put_nowait(piece)
        last = pieces[-1].split("\n")[-1].strip("- ")
        await self.page.wait_for_function("last => root.textContent.includes(last)", arg=last)

    async def end(self) -> None:
        """Let the agent end its answer."""
        self.pieces.put_nowait(None)
        await self.page.wait_for_function("() => channel.getSnapshot().messages.at(-1).status === 'complete'")

    async def at_end(self) -> None:
        """Wait until the view is at the end of the conversation, and its layout is settled."""
        left = "(log => log.scrollHeight - log.clientHeight - log.scrollTop)(root.querySelector('.log'))"
        await self.page.wait_for_function(f"async () => {left} <= 1 && ({_FRAMES}, {left} <= 1)")

    async def frames(self) -> None:
        """Wait until the element has drawn."""
        await self.page.evaluate(f"async () => {{ {_FRAMES} }}")


@asynccontextmanager
async def scene(
    browser: Browser, tag: str = _INLINE, hub: Hub | None = None, *, has_agent: bool = True
) -> AsyncIterator[Scene]:
    hub = hub or new_hub()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    @hub.agent("chat:*" if has_agent else "none", name="Guide")
    async def guide(turn: Any) -> None:
        async with turn.reply() as message:
            while (piece := await pieces.get()) is not None:
                if piece.startswith("state "):
                    turn.progress(piece.removeprefix("state "))
                    continue
                if piece == "fail":
                    raise ValueError(piece)
                if piece == "ask":
                    reply = await turn.ask("approve", {"question": "Delete 3 files?", "arguments": "drafts/*"})
                    piece = "Deleted." if reply.ok else "Kept."
                await message.append(piece)
                await message.flush()

    async with serving(hub, page_app(WITH_ELEMENT + tag, hub, policy=POLICY)) as served:
        page = await page_at(browser, served.port)
        here = Scene(page, hub, pieces)
        page.on("console", lambda message: here.violations.append(message.text) if "Policy" in message.text else None)
        yield here
        assert here.violations == []
        pieces.put_nowait(None)
        await page.goto("about:blank")


@asynccontextmanager
async def mounted(browser: Browser, **options: Any) -> AsyncIterator[Scene]:
    """A scene with an element whose client is the page's own."""
    async with scene(browser, "") as here:
        await here.mount(**options)
        yield here


async def test_answer_grows_survives_a_reload_with_a_mark_and_is_formatted(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("What is a cursor?")
        for piece in ("It is **a po", "sition** in `chat:1`.\n\n```py\nx = 1\n"):
            here.pieces.put_nowait(piece)
        await here.until("a position")
        await here.page.reload()
        await here.until("a position")
        await here.page.get_by_role("separator", name="Welcome back. 47 characters came back.").wait_for()
        here.pieces.put_nowait("```\n\nThe end")
        here.pieces.put_nowait(None)
        await here.until("The end")
        assert await here.page.locator(".assistant p strong").all_inner_texts() == ["a position"]
        assert await here.page.locator(".assistant pre code").all_inner_texts() == ["x = 1"]
        assert await here.page.locator("article").count() == 2


async def test_an_approval_is_a_card_with_two_buttons_and_then_its_reply(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("Delete the drafts")
        here.pieces.put_nowait("ask")
        await here.until("Delete 3 files?")
        await here.page.locator(".approval").get_by_text("Don’t allow").click()
        here.pieces.put_nowait(None)
        await here.until("Kept.")
        assert await here.page.locator(".approval button").count() == 0
        await here.page.reload()
        await here.until("Kept.")
        await expect(here.page.locator("article .approval")).to_have_text("Delete 3 files?drafts/*Not allowed")


async def test_enter_of_an_input_method_does_not_send_and_a_draft_survives_a_reload(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.page.locator("textarea").focus()
        session = await here.page.context.new_cdp_session(here.page)
        await session.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
        await here.page.press("textarea", "Enter")
        await session.send("Input.insertText", {"text": "日本"})
        await here.page.press("textarea", "Shift+Enter")
        await here.page.keyboard.type("two")
        assert await here.page.locator("article").count() == 0
        written = await here.page.input_value("textarea")
        assert "日本" in written
        await here.page.reload()
        await expect(here.page.locator("textarea")).to_have_value(written)


async def test_next_person_of_a_tab_does_not_see_the_draft_without_a_sign_out(browser: Browser) -> None:
    by_cookie = jwt_verifier(secret=SECRET, audience="chat", cookie="session")
    async with scene(browser, hub=new_hub(authenticate=by_cookie)) as here:
        field = here.page.locator("textarea")

        async def open_as(sub: str) -> None:
            cookie = {"name": "session", "value": token(sub=sub), "url": here.page.url}
            await here.page.context.add_cookies([cookie])  # type: ignore[list-item]
            await here.page.reload()
            await here.page.locator(".people", has_text="Online").wait_for()

        await open_as("ada")
        await field.fill("a secret of ada")
        await open_as("bob")
        assert await field.input_value() == ""
        await open_as("ada")
        await expect(field).to_have_value("a secret of ada")

        may_connect = asyncio.Event()

        async def hold(socket: WebSocketRoute) -> None:
            await may_connect.wait()
            socket.connect_to_server()

        await here.page.route_web_socket("**/v1/ws*", hold)
        await here.page.reload()
        await field.press_sequentially("before the connection")
        may_connect.set()
        await here.page.locator(".people", has_text="Online").wait_for()
        assert await field.input_value() == "before the connection"
        await open_as("bob")
        assert await field.input_value() == ""
        await open_as("ada")
        await expect(field).to_have_value("before the connection")


async def test_a_sign_out_removes_the_draft_and_the_next_person_of_the_tab_gets_none(browser: Browser) -> None:
    stored = "JSON.stringify({ ...sessionStorage })"
    async with scene(browser, "", verified()) as here:
        page = here.page
        await here.mount(token=token())
        await page.evaluate("sessionStorage.app = 'of the app'")
        await page.locator("textarea").fill("a secret of ada")
        assert "a secret of ada" in await page.evaluate(stored)
        await page.evaluate("client.signOut()")
        await page.locator("textarea").press_sequentially("!")
        assert "a secret of ada" not in await page.evaluate(stored)
        assert "of the app" in await page.evaluate(stored)
        await here.mount(token=token(sub="bob"))
        assert await page.locator("textarea").input_value() == ""
        await page.locator("textarea").fill("a draft of bob")
        await here.mount(token=token(), identity="ada")
        assert await page.locator("textarea").input_value() == ""


MISTAKES: list[tuple[dict[str, str], str]] = [
    ({"channel": ""}, 'channel must be a name such as chat:1, got ""'),
    ({"channel": "a b/ü"}, 'channel must be a name such as chat:1, got "a b/ü"'),
    ({"channel": ".."}, 'channel must be a name such as chat:1, got ".."'),
    ({"channel": "<img src=x onerror=alert(1)>"}, 'got "<img src=x onerror=alert(1)>"'),
    ({"channel": "c" * 9_000}, f'got "{"c" * 100}"'),
    ({"channel": "chat:1", "theme": "blue"}, 'auto, light, dark, got "blue"'),
    ({"channel": "chat:1", "images": "all"}, 'same-origin or absent, got "all"'),
    ({"channel": "chat:1", "url": "http://[bad"}, 'got "http://[bad"'),
]


async def test_a_mistake_in_the_attributes_is_in_the_console_and_people_read_a_sentence(browser: Browser) -> None:
    async with scene(browser, "") as here:
        named: list[str] = []
        here.page.on("console", lambda message: named.append(message.text) if message.type == "error" else None)
        for attributes, words in MISTAKES:
            named.clear()
            await here.page.evaluate(script("chat_page", "show"), attributes)
            await here.until("This chat does not work here. Please inform the owner of this page.")
            assert await here.page.locator("textarea, img").count() == 0
            assert [words in text and text.startswith("<tenuto-chat>") for text in named] == [True], named


async def test_each_attribute_is_a_property_before_and_after_the_definition(browser: Browser) -> None:
    async with app_with(new_hub()) as port:
        page = await page_at(browser, port)
        (first, second, read, again), values, cleared = await page.evaluate(script("chat_page", "reflected"))
        assert first == second == values.replace("true", '""')
        assert read == again == values
        assert cleared == ["", True, False, False]


async def test_a_wrong_address_is_named_to_the_developer_only(browser: Browser) -> None:
    unreachable = f"http://localhost:{free_port()}/tenuto"
    async with app_with(new_hub()) as port:
        for url, code, words in (
            ("/nowhere", "not_tenuto", "This chat does not work here"),
            (unreachable, "unreachable", "cannot be reached now"),
        ):
            page = await page_at(browser, port)
            async with page.expect_console_message(lambda message: "correct its address" in message.text):
                await page.evaluate(script("chat_page", "tag"), url)
            line = page.locator("tenuto-chat [part=status]")
            await expect(line).to_contain_text(words, timeout=FIRST_WORDS_S * 1000)
            await page.wait_for_function("code => channel.getSnapshot().status.error?.code === code", arg=code)
            await page.goto("about:blank")


@in_long
async def test_a_panel_that_the_network_lost_is_loaded_again(browser: Browser) -> None:
    """The module that is lost is imported by the one that the element imports."""
    module = "**/chat/list.js"
    async with scene(browser) as here:
        errors: list[str] = []
        here.page.on("console", lambda one: errors.append(one.text) if "could not be loaded" in one.text else None)
        await here.page.clock.install()
        await here.page.route(module, lambda route: route.abort())
        await here.page.reload()
        await here.until("The chat cannot be reached now. Trying again…")
        for _ in range(2):
            async with here.page.expect_request(module):
                await here.page.clock.fast_forward(15_000)
        await here.page.unroute(module)
        await here.ask("Why?")
        assert await here.page.get_by_text("cannot be reached").count() == 0
        assert len(errors) == 1  # and none for each attempt


async def test_an_edited_question_is_a_branch_with_its_number_and_its_answer_stops(browser: Browser) -> None:
    async with scene(browser) as here:
        await here.ask("First version")
        here.pieces.put_nowait("One")
        await here.until("One")
        await here.page.locator(".user").hover()
        await here.page.locator(".user").get_by_text("Edit", exact=True).click()
        await here.page.press(".editor", "Escape")  # ends the edit, and not the answer
        here.pieces.put_nowait(".")
        await here.until("One.")
        await here.page.locator(".user").get_by_text("Edit", exact=True).click()
        assert await here.page.locator(".editor").evaluate("editor => editor.offsetWidth") == 620  # of a short question
        await here.page.fill(".editor", "Second version")
        await here.page.get_by_text("Save", exact=True).click()
        await here.until("Second version")
        await here.until("2/2")
        here.pieces.put_nowait("Two.")
        here.pieces.put_nowait(None)
        await here.until("Two.")
        await here.page.locator(".user").get_by_label("Previous version").click()
        await here.until("First version")
        await here.until("One.")
        await here.until("Stopped")


# Marks

_LINES = """[...root.querySelectorAll(".assistant .markdown :is(p, li, h3, pre, .hairline)")]
  .map((node) => (node.matches(".hairline") ? `(${node.ariaLabel})` : node.textContent))"""


@in_long
async def test_mark_stands_before_the_next_block_and_moves_no_more(browser: Browser) -> None:
    async with mounted(browser) as here:
        await here.ask("Explain")
        await here.answer("First paragraph")
        answer = await here.page.evaluate("channel.getSnapshot().messages.at(-1).id")
        await here.page.evaluate("id => { chat.marks = [{ message: id, at: 5, text: 'Reload: **1** event' }] }", answer)
        assert await here.page.evaluate(_LINES) == ["First paragraph", "(Reload: 1 event)"]
        assert await here.page.locator(".hairline strong").all_inner_texts() == ["1"]
        await here.answer(" goes on.\n\n- one")
        assert await here.page.evaluate(_LINES) == ["First paragraph goes on.", "(Reload: 1 event)", "one"]
        await here.answer("\n- two\n\nNext paragraph\n\nThe end")
        await here.page.evaluate("chat.marks = [...chat.marks, { ...chat.marks[0], at: 30, text: 'Kill' }]")
        await here.end()
        await here.frames()
        lines = ["First paragraph goes on.", "(Reload: 1 event)", "one", "two", "(Kill)", "Next paragraph", "The end"]
        assert await here.page.evaluate(_LINES) == lines
        await here.page.evaluate("chat.marks = []")
        assert "(Kill)" not in await here.page.evaluate(_LINES)


@in_long
async def test_places_of_marks_count_code_points(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        parts = [{"type": "text", "text": "🎉🎉🎉🎉🎉\n\n"}, {"type": "text", "text": "Second\n\nThird"}]
        await here.hub.create("chat:1", id="a", role="assistant", author="Guide", parts=parts)
        await here.mount()
        await here.until("Third")
        lines = {5: "before Second", 7: "before Second", 8: "before Third", 15: "before Third", 16: "end", 21: "none"}
        for at, place in lines.items():
            await here.page.evaluate("at => { chat.marks = [{ message: 'a', at, text: 'Mark' }] }", at)
            found = await here.page.evaluate(_LINES)
            after = [*found, "(end)"][found.index("(Mark)") + 1] if "(Mark)" in found else "none"
            assert after == {"end": "(end)"}.get(place, place.removeprefix("before ")), (at, found)


async def test_connection_that_is_back_within_a_second_is_not_mentioned(browser: Browser) -> None:
    async with scene(browser, "") as here:
        page, status = here.page, here.page.locator("[part=status]")
        await page.clock.install()
        await here.mount()
        await page.locator(".people", has_text="Online").wait_for()
        await page.route_web_socket("**/v1/ws*", lambda socket: None)  # no server responds
        await page.clock.pause_at(await page.evaluate("Date.now() / 1_000 + 2"))
        await page.evaluate("client.use()")  # a new connection
        await page.clock.run_for(900)
        assert await page.evaluate("channel.state") == "reconnecting"
        assert await status.text_content() == ""
        await page.clock.run_for(200)
        assert await status.text_content() == "Reconnecting…"


# Buttons, branches, and edits


@in_long
async def test_question_that_is_deleted_while_it_is_edited_keeps_its_new_text(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        await here.hub.create("chat:1", id="a", text="Old words", author="anonymous")
        await here.hub.create("chat:1", id="b", text="Other words", author="anonymous")
        await here.mount()
        await here.page.locator(".user").first.hover()
        await here.page.get_by_text("Edit", exact=True).first.click()
        await here.page.fill(".editor", "New words")
        await here.hub.delete("chat:1", "a")
        await here.until("This question was deleted")
        assert await here.page.input_value(".editor") == "New words"
        await here.page.get_by_text("Save", exact=True).click()
        await here.until("Not sent")
        assert await here.page.locator("article .markdown").all_inner_texts() == ["Other words", "New words"]
        await here.page.get_by_role("button", name="Try again").click()
        await here.page.wait_for_function("() => channel.getSnapshot().messages.every(({ local }) => !local)")
        assert await here.page.locator("article .markdown").all_inner_texts() == ["Other words", "New words"]


# Approvals


async def test_approval_says_who_answered_it_also_after_a_lost_connection(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        await here.hub.create("chat:1", id="a", text="Delete", author="anonymous")
        await here.mount(client="ada")
        for name, error in (("one", None), ("two", {"code": "expired"}), ("three", None)):
            data = {"question": f"Delete {name}?", "tool": "delete_files", "arguments": {"path": name}}
            command = await here.hub.command("chat:1", "approve", target="a", data=data)
            card = here.page.locator(".approval", has_text=f"Delete {name}?")
            await card.get_by_text("Allow", exact=True).wait_for()
            assert await card.locator("code").inner_text() == f'delete_files({{"path":"{name}"}})'
            if name == "three":
                await here.page.evaluate("client.suspend()")
            await here.hub.reply("chat:1", command.id, ok=error is None, error=error, by="Bea")
            if name == "three":
                await here.page.evaluate("client.resume()")
            await card.get_by_text("Expired" if error else "Answered by Bea: Allowed").wait_for()
            await expect(card.locator("button")).to_have_count(0)
        await here.hub.command("chat:1", "approve", target="a", data={"text": "Pay 5?"})  # no name that the card knows
        await expect(here.page.locator(".approval code").last).to_have_text('{"text":"Pay 5?"}')
        assert [name for name, _ in await here.page.evaluate("told")].count("ask") == 4


@in_long
async def test_approval_that_moves_to_its_message_can_be_answered(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        await here.hub.create("chat:1", id="old", text="Delete", author="Bea")
        for n in range(60):
            await here.hub.create("chat:1", id=f"m{n}", text="word " * 100, author="Bea")
        await here.hub.command("chat:1", "approve", target="old", data="May I?")
        await here.mount()
        await here.page.locator(".log > .approvals").get_by_text("May I?").wait_for()
        await here.page.evaluate("channel.loadOlder()")
        other = await here.hub.command("chat:1", "other")
        await here.page.evaluate("root.querySelector('.log').scrollTop = 0")
        card = here.page.locator("article .approval", has_text="May I?")
        await card.get_by_text("Allow", exact=True).wait_for()
        assert await here.page.locator(".approval").count() == 1
        await here.hub.reply("chat:1", other.id)
        await card.get_by_text("Allow", exact=True).click()
        await card.get_by_text("Allowed", exact=True).wait_for()


# Long conversations


async def test_older_messages_load_without_a_jump(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        for n in range(120):
            await here.hub.create("chat:1", id=f"m{n}", text=f"Message {n}\n\n" + "word " * 60, author="Bea")
        await here.mount(client="ada")
        await here.page.wait_for_function("() => root.querySelectorAll('article').length === 50")
        await here.at_end()
        assert await here.page.evaluate(script("chat_page", "loadOlderByScroll")) <= 2
        await here.mount(attributes={"hidden": ""}, client="ada")
        assert await here.page.evaluate(script("chat_page", "loadWhenShown")) == [50, True, 120]


# What it shows


async def test_each_part_has_its_form(browser: Browser) -> None:
    async with scene(browser, "") as here:
        parts: list[Any] = [
            {"type": "reasoning", "text": "I think."},
            {"type": "tool", "call": "1", "name": "search", "input": "{}", "state": "called"},
            {"type": "tool", "call": "2", "name": "read", "input": "{}", "state": "error", "output": "denied"},
            {"type": "text", "text": "Words"},
            {"type": "source", "title": "Protocol", "url": "https://docs.example/protocol"},
            {"type": "source", "title": "Bad", "url": "javascript:alert(1)"},
            {"type": "file", "url": "https://files.example/a/plan.pdf?x=1", "media_type": "application/pdf"},
            {"type": "file", "url": "data:image/png;base64,AAAA", "media_type": "image/png"},
            {"type": "data", "name": "progress", "data": {"done": 3}},
        ]
        async with here.hub.message("chat:1", id="a", author="Guide", parts=parts):
            await here.mount()
            await here.until("Words")
            titles = await here.page.locator("summary").all_inner_texts()
            assert titles == ["Reasoning", "search · running…", "read · Failed", "progress"]
        await here.page.wait_for_function("() => root.querySelectorAll('summary')[1].textContent === 'search'")
        links = await here.page.evaluate("[...root.querySelectorAll('a')].map((node) => [node.textContent, node.href])")
        assert links == [
            ["Protocol", "https://docs.example/protocol"],
            ["Bad", ""],
            ["plan.pdf", "https://files.example/a/plan.pdf?x=1"],
            ["image/png", ""],
        ]
        await here.hub.command("chat:1", "approve", target="a", data="May I?")
        await here.until("May I?")
        await here.page.evaluate("chat.addEventListener('tenuto-link', (event) => event.preventDefault())")
        await here.page.get_by_text("Protocol").click()
        assert await here.page.evaluate("told.at(-1)") == ["link", {"href": "https://docs.example/protocol"}]


async def test_text_of_a_person_is_shown_as_it_was_typed_but_for_code_between_fences(browser: Browser) -> None:
    typed = "# Hi\n\n  1. *Why* does `__init__` <b>fail</b>?\n\n> ```\n"
    texts = {
        "plain": typed + "[link](https://example.com)",
        "code": typed + "```python\nprint('**')\n```\n- and then?",
        "open": "```python\nprint(1)\n````",
    }
    async with scene(browser, "", has_agent=False) as here:
        for id, text in texts.items():
            await here.hub.create("chat:1", id=id, role="user", author="Bea", text=text)
        await here.mount()
        await here.until("and then?")
        children = """id => [...root.querySelectorAll(`[data-message-id=${id}] .markdown > div > *`)]
          .map((node) => node.localName === "p" ? node.innerText : node.querySelector("code").textContent)"""
        assert await here.page.evaluate(children, "plain") == [texts["plain"]]
        assert await here.page.evaluate(children, "code") == [typed.rstrip("\n"), "print('**')", "- and then?"]
        assert await here.page.evaluate(children, "open") == [texts["open"]]


async def test_app_draws_parts_of_its_own_and_its_mistake_harms_no_other(browser: Browser) -> None:
    async with scene(browser, "") as here:
        parts: list[Any] = [{"type": "data", "name": name, "data": 1} for name in ("chart", "table", "broken")]
        await here.hub.create("chat:1", id="a", role="assistant", parts=parts)
        await here.page.evaluate(script("chat_page", "drawOwnParts"))
        await here.until("a chart")
        assert await here.page.locator("summary").all_inner_texts() == ["table", "broken"]


async def test_people_agents_and_signals_are_named_in_one_line_each(browser: Browser) -> None:
    async with mounted(browser, client="ada") as here:
        await here.until("Online")
        await here.page.evaluate(script("chat_page", "enterAsBea"))
        await here.until("Bea is typing…")
        await here.until("Online · Bea here")
        await here.page.evaluate("other.send('Hello')")
        await here.page.locator(".author", has_text="Bea").wait_for()
        await here.answer("Hi")
        here.pieces.put_nowait("state searching")
        await here.until("Guide: searching…")
        await here.ask("Second question")
        await here.until("Waiting")
        here.pieces.put_nowait(None)
        await here.page.get_by_text("Waiting").first.wait_for(state="hidden")  # its answer has begun


async def test_steer_that_the_agent_did_not_read_comes_back_when_the_answer_ends(browser: Browser) -> None:
    async with mounted(browser, client="ada") as here:
        await here.ask("Begin")
        await here.page.get_by_role("button", name="Steer this answer").click()
        await here.ask("Shorter")
        await expect(here.page.locator(".status")).to_have_text("Steering…")
        await here.page.fill("textarea", "Next thought")
        await here.end()
        await expect(here.page.locator(".status")).to_have_text("Too late to steer.")
        await expect(here.page.locator("textarea")).to_have_value("Shorter\nNext thought")


async def test_sent_question_stands_at_the_top_and_the_view_follows_only_at_the_end(browser: Browser) -> None:
    async with scene(browser, "") as here:
        for n in range(10):
            await here.hub.create("chat:1", text=f"Message {n}\n\n" + "word " * 100, author="Bea", role="assistant")
        await here.mount(client="ada")
        await here.ask("My question")
        await here.until("thinking…")
        is_at_top = script("chat_page", "isAtTop")
        await here.page.wait_for_function(is_at_top)
        await here.answer("Short answer")
        await here.frames()
        await here.page.wait_for_function(is_at_top)
        await here.page.evaluate("root.querySelector('.log').scrollTop -= 300")
        await here.page.locator(".jump").wait_for()
        before = await here.page.evaluate("root.querySelector('.log').scrollTop")
        await here.answer("\n\n" + "more words " * 2_000 + "\n\nThe last line")
        await here.page.locator(".jump", has_text="(1)").wait_for()
        await here.page.evaluate("document.body.append(chat)")  # the page moves the element
        await here.frames()
        assert await here.page.evaluate("root.querySelector('.log').scrollTop") == before
        await here.page.locator(".jump").click()
        await here.page.locator(".jump").wait_for(state="hidden")
        await here.at_end()
        await here.page.evaluate("document.body.append(chat)")
        await here.answer("\n\n" + "still more words " * 200 + "\n\nand the end")
        await here.at_end()


async def test_reader_and_focus_keep_their_place_in_a_long_answer_that_grows(browser: Browser) -> None:
    link = "[a link](https://a.example/)\n\n"
    async with scene(browser, "", has_agent=False) as here, here.hub.message("chat:1", author="Guide") as answer:
        await here.mount()
        await answer.append("word\n\n" * 1_300 + link + "word\n\n" * 1_140 + "near")  # nearly 50 chunks of 50
        await here.page.get_by_text("near").wait_for()
        await here.page.evaluate("root.querySelector('.log').scrollTop -= 500")
        await here.page.locator(".jump").wait_for()
        await here.page.evaluate("root.querySelector('article a').scrollIntoView({ block: 'center' })")
        await here.frames()
        await here.page.evaluate(script("chat_page", "trackMoves"))
        await answer.append("\n\nword" * 70 + "\n\nlater")
        await here.page.get_by_text("later").wait_for(state="attached")
        await here.frames()
        await expect(here.page.locator(".group")).to_have_count(2)
        assert await here.page.evaluate("moved") <= 2
        await here.page.evaluate("root.querySelector('article a').focus({ preventScroll: true })")
        await answer.append(("\n\n" + "**bold** and `code` " * 100) * 100 + "\n\nlast")
        await here.page.get_by_text("last").wait_for(state="attached")
        await here.frames()
        assert await here.page.evaluate("[moved <= 2, root.activeElement?.textContent]") == [True, "a link"]


async def test_part_that_is_opened_at_the_end_stays_where_it_is(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        output = "\n".join(f"line {n}" for n in range(200))
        for n in range(10):
            await here.hub.create("chat:1", id=f"m{n}", text=f"message {n}\n\nmore")
        call = {"type": "tool", "call": "c", "name": "search", "input": "{}", "state": "done", "output": output}
        await here.hub.create("chat:1", id="last", role="assistant", parts=[call])
        await here.mount()
        summary = here.page.locator("summary")
        await summary.wait_for()
        await here.at_end()
        top = "node => node.getBoundingClientRect().top"
        before = await summary.evaluate(top)
        await summary.click()
        await here.page.locator(".jump").wait_for()
        await summary.click()  # closed: the reader is at the end again
        await here.page.locator(".jump").wait_for(state="hidden")
        await summary.click()
        await here.hub.create("chat:1", text="later")  # does not lead the reader away from what they opened
        await here.page.get_by_text("later").wait_for(state="attached")
        await here.frames()
        assert abs(await summary.evaluate(top) - before) <= 1


# The composer, and failures


@in_long
async def test_composer_grows_to_eight_lines_and_then_scrolls(browser: Browser) -> None:
    async with mounted(browser) as here:
        input = here.page.locator(".composer textarea")
        sizes = []
        for text in ("", "one", "a\nb\nc", "word " * 100, "\n".join("abcdefghijkl"), "one"):
            await input.fill(text)
            sizes.append(await input.evaluate("node => [node.rows, node.scrollHeight > node.clientHeight]"))
        assert [sizes[n] for n in (0, 1, 2, 4, 5)] == [[1, False], [1, False], [3, False], [8, True], [1, False]]
        assert (sizes[3][0] > 3, sizes[3][1]) == (True, False)


async def test_app_keeps_or_changes_what_is_sent(browser: Browser) -> None:
    async with mounted(browser) as here:
        await here.page.evaluate(script("chat_page", "keepOrChange"))
        await here.ask("keep")
        assert await here.page.input_value("textarea") == "keep"
        assert await here.page.locator("article").count() == 0
        await here.ask("Hello")
        await here.until("Hello!")
        await here.answer("Hi")
        await here.end()
        await here.page.wait_for_function("() => told.some(([name]) => name === 'answer')")
        assert await here.page.evaluate("told.findLast(([name]) => name === 'status')[1].status.state") == "live"


async def test_refused_message_stays_with_its_reason_and_a_text_that_no_message_keeps_comes_back(
    browser: Browser,
) -> None:
    async with scene(browser, "", new_hub(limits=Limits(message_bytes=2_000))) as here:
        await here.mount()
        await here.ask("x" * 3_000)
        await here.until("Not sent")
        assert await here.page.locator(".message .mistake").inner_text()
        assert await here.page.input_value("textarea") == ""
        await here.page.get_by_text("Discard", exact=True).click()
        await here.page.locator("article").wait_for(state="detached")
        await here.page.evaluate("client.close()")
        await here.ask("Where does this go?")
        await here.page.wait_for_function("() => told.some(([name]) => name === 'error')")
        await here.page.wait_for_function("() => root.querySelector('textarea').value === 'Where does this go?'")
        assert await here.page.locator("article").count() == 0


async def test_right_that_is_withdrawn_is_named_and_the_draft_stays(browser: Browser) -> None:
    async with scene(browser, "", verified()) as here:
        await here.mount(token=token())
        await here.until("Online")
        await here.hub.create("chat:1", text="kept", author="Bea")
        await here.page.fill("textarea", "My draft")
        lost = token(channels=["other"])
        await here.page.evaluate("lost => { client.token.source = () => lost; client.token.renew('expired') }", lost)
        await here.page.evaluate("client.suspend(), client.resume()")
        await here.until("You have no access to this chat.")
        assert await here.page.input_value("textarea") == "My draft"
        assert await here.page.locator("textarea").is_visible()
        assert await here.page.locator(".send").is_disabled()
        await here.until("kept")


_NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"


@in_long
async def test_copy_puts_a_message_or_its_code_on_the_clipboard(browser: Browser) -> None:
    async with scene(browser, "", has_agent=False) as here:
        text = "Run **this**:\n\n```sh\nmake demo\n```"
        await here.hub.create("chat:1", id="a", role="assistant", author="Guide", text=text)
        await here.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await here.mount()
        for selector, copied in ((".code .copy", "make demo"), (".actions .action", text)):
            button = here.page.locator(selector, has_text="Copy")
            await button.click()
            await here.page.locator(selector, has_text="Copied").wait_for()
            assert await here.page.evaluate("navigator.clipboard.readText()") == copied
            await here.page.evaluate(_NO_CLIPBOARD)
            await button.click()  # as on a page without https
            await here.page.evaluate("delete navigator.clipboard")
            assert await here.page.evaluate("navigator.clipboard.readText()") == copied


# Values of the twelve variables, and the computed styles that have them.
_VARIABLES = {
    "accent": ("rgb(1, 0, 0)", ".send", "backgroundColor"),
    "on-accent": ("rgb(2, 0, 0)", ".send", "color"),
    "bg": ("rgb(3, 0, 0)", ".panel", "backgroundColor"),
    "surface": ("rgb(4, 0, 0)", ".composer", "backgroundColor"),
    "text": ("rgb(5, 0, 0)", "textarea", "color"),
    "muted": ("rgb(6, 0, 0)", ".people", "color"),
    "border": ("rgb(7, 0, 0)", ".panel > header", "borderBottomColor"),
    "radius": ("9px", ".user .body", "borderTopLeftRadius"),
    "font": ("Georgia", "textarea", "fontFamily"),
    "mono": ("Courier", "code", "fontFamily"),
    "width": ("501px", ".panel", "maxWidth"),
    "height": ("502px", ".panel", "height"),
}


async def test_each_attribute_property_and_variable_of_a_tag_takes_effect(browser: Browser) -> None:
    async with scene(browser, "", verified(), has_agent=False) as here:
        image = f"{here.page.url}tenuto/icon.png"
        text = f"![Icon]({image}) ![Other](https://other.example/x.png) `x` $y^2$"
        await here.hub.create("chat:1", id="q", role="user", author="Bea", text="Why?")
        await here.hub.create("chat:1", id="a", role="assistant", author="Guide", text=text)
        await here.page.evaluate(script("chat_page", "tagWithAll"), [token(), _VARIABLES])
        await here.page.locator("textarea[placeholder='Frag uns']").wait_for()
        await here.page.get_by_role("heading", name="Hilfe").wait_for()
        await here.page.get_by_text("Abschreiben", exact=True).first.wait_for(state="attached")
        await here.page.get_by_role("button", name="Senden").wait_for()
        await here.page.locator("var", has_text="y^2").wait_for()
        assert await here.page.evaluate("[...root.querySelectorAll('.markdown img')].map(({ src }) => src)") == [image]
        links = await here.page.evaluate("[...root.querySelectorAll('.markdown a')].map((node) => node.href)")
        assert links == ["https://other.example/x.png"]
        assert await here.page.evaluate("getComputedStyle(root.host).colorScheme") == "dark"
        styles = """variables => Object.fromEntries(Object.entries(variables).map(([name, [, selector, style]]) =>
          [name, getComputedStyle(root.querySelector(selector))[style]]))"""
        wanted = {name: value for name, (value, _, _) in _VARIABLES.items()}
        wanted["radius"] = "11px"  # that of a bubble is 2 px larger
        assert await here.page.evaluate(styles, _VARIABLES) == wanted
        assert all("default-src 'none'" in text for text in here.violations)  # which has no images
        here.violations.clear()


async def test_token_and_identity_of_a_tag_are_those_of_its_client(browser: Browser) -> None:
    async with scene(browser, "", verified()) as here:
        await here.hub.create("chat:1", id="a", role="assistant", author="Guide", text="Hello")
        async with here.page.expect_console_message(lambda message: "knows this page as" in message.text) as warning:
            await here.page.evaluate(script("chat_page", "tagWithToken"), token())
        assert "as ada, not as zoe" in (await warning.value).text
        await here.page.get_by_text("Hello").wait_for()
        await here.page.get_by_text("Help", exact=True).wait_for()


async def test_failed_answer_is_requested_again(browser: Browser) -> None:
    async with mounted(browser) as here:
        await here.ask("Count")
        await here.answer("one")
        here.pieces.put_nowait("fail")
        await here.until("Failed")
        await here.until("This answer could not be finished.")
        await here.page.get_by_role("button", name="Try again").click()
        await here.answer("two")
        await here.end()
        await here.until("2/2")


@in_long
async def test_ids_that_are_names_of_objects_are_messages_like_others(browser: Browser) -> None:
    ids = ["__proto__", "constructor", "toString"]
    async with scene(browser, "") as here:
        for id in ids:
            await here.hub.create("chat:1", id=id, role="assistant", text="A message", author="__proto__")
        await here.mount()
        await here.page.evaluate("chat.marks = [{ message: '__proto__', at: 0, text: 'Marked' }]")
        await here.until("Marked")
        shown = "[...root.querySelectorAll('article')].map((node) => node.dataset.messageId)"
        assert await here.page.evaluate(shown) == ids
        await here.hub.delete("chat:1", "constructor")
        await here.page.wait_for_function("() => root.querySelectorAll('article').length === 2")
        assert await here.page.evaluate(shown) == ["__proto__", "toString"]
        assert await here.page.evaluate("Object.keys(Object.prototype).length") == 0


async def test_slots_are_those_of_the_page(browser: Browser) -> None:
    tag = (
        '<tenuto-chat channel="chat:1" heading="Docs" placeholder="Ask us">'
        "<b slot=header>H</b><b slot=empty>Nothing yet</b><b slot=composer-start>+</b><b slot=footer>Not a model</b>"
        "</tenuto-chat>"
    )
    async with scene(browser, tag) as here:
        for text in ("H", "Nothing yet", "+", "Not a model", "Docs"):
            await here.page.get_by_text(text, exact=True).wait_for()
        await here.page.locator("textarea[placeholder='Ask us']").wait_for()
        await here.page.evaluate("document.querySelector('tenuto-chat').setAttribute('readonly', '')")
        await here.until("This chat is read-only.")
        await here.page.locator("textarea[placeholder='Ask us']").wait_for(state="hidden")
