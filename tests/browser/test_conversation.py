"""The verbs of a conversation in Chromium, against a hub with an agent: stop, edit, regenerate, select, typing.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import jwt
import pytest
from playwright.async_api import Browser, Page

from tenuto.agents.turn import Turn
from tenuto.app import Hub
from tenuto.hub.clock import Clock
from tests.browser.tab import transports
from tests.browser.test_client import SECRET, app_with, page_at, verified

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses

_FOLLOW = """async ([options, name]) => {
  const { connect } = await import("/tenuto/web/client.js")
  window.client = connect(options)
  window.channel = client.channel(name)
  window.path = () => channel.getSnapshot().messages.map(({ text }) => text).join("|")
  window.shows = (id) => channel.branches(id).map(({ text }) => text).join("|")
}"""


async def follow(window: Page, person: str = "ada", transport: str = "websocket") -> None:
    """Connect the page as `person`, and wait until its view is complete."""
    claims = {
        "sub": person,
        "aud": "chat",
        "exp": Clock().now_ms() / 1000 + 600,
        "tenuto": {"chat:*": ["subscribe", "history", "publish", "command", "presence"]},
    }
    token = jwt.encode(claims, SECRET, algorithm="HS256")
    await window.evaluate(_FOLLOW, [{"url": "/tenuto", "token": token, "transport": transport}, "chat:1"])
    await window.wait_for_function("() => channel.state === 'live'")


async def until_path(window: Page, *texts: str) -> None:
    """Wait until the page shows these texts, and no message is unsent or streams."""
    await window.wait_for_function(
        """text => path() === text && channel.getSnapshot().messages.every(
          ({ local, status }) => !local && status !== "streaming")""",
        arg="|".join(texts),
    )


def with_agent(hub: Hub) -> list[list[Any]]:
    """Let an agent count its answers; return the conversations that it was given."""
    given: list[list[Any]] = []

    @hub.agent("chat:*", name="bot")
    async def bot(turn: Turn) -> None:
        given.append([one["content"] for one in await turn.history()])
        async with turn.reply() as message:
            await message.append(f"answer {len(given)}")

    return given


@pytest.mark.parametrize("transport", transports("poll"))
async def test_answer_is_stopped_from_another_tab_after_a_reload(browser: Browser, transport: str) -> None:
    hub = verified()
    stopped = asyncio.Event()

    @hub.agent("chat:*", name="bot")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("a long answer ")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.set()
                raise

    async with app_with(hub) as port:
        asking, other = await page_at(browser, port), await page_at(browser, port)
        await follow(asking, transport=transport)
        await asking.evaluate("void channel.send('tell me')")
        await asking.wait_for_function("() => path() === 'tell me|a long answer '")
        await asking.reload()
        await follow(other, "bob", transport)
        await other.evaluate("channel.cancel()")
        await asyncio.wait_for(stopped.wait(), 60)
        await follow(asking, transport=transport)
        for window in (asking, other):
            await until_path(window, "tell me", "a long answer ")
            assert await window.evaluate("channel.getSnapshot().messages[1].status") == "cancelled"
            assert await window.evaluate("channel.getSnapshot().streaming") == []
            await window.evaluate("channel.cancel()")
            await window.evaluate("client.close()")


async def test_edited_and_regenerated_messages_are_branches_on_every_page(browser: Browser) -> None:
    hub = verified()
    given = with_agent(hub)
    async with app_with(hub) as port:
        ada, bob = await page_at(browser, port), await page_at(browser, port)
        await follow(ada)
        await follow(bob, "bob", "sse")
        for text in ("one", "two"):
            await ada.evaluate("text => void channel.send({ id: text, text })", text)
            await ada.wait_for_function(
                """id => {
                  const { reply_to, status } = channel.getSnapshot().messages.at(-1)
                  return reply_to === id && status === "complete"
                }""",
                arg=text,
            )
        await ada.evaluate("void channel.edit('two', { id: 'three', text: 'three' })")
        for window in (ada, bob):
            await until_path(window, "one", "answer 1", "three", "answer 3")
            assert await window.evaluate("shows('three')") == "two|three"
        assert given[-1] == ["one", "answer 1", "three"]

        await ada.evaluate("channel.select('two')")
        assert await ada.evaluate("path()") == "one|answer 1|two|answer 2"
        assert await bob.evaluate("path()") == "one|answer 1|three|answer 3"
        assert await ada.evaluate("channel.getSnapshot().all.length") == 6
        await ada.evaluate("void channel.send({ id: 'four', text: 'four' })")
        await until_path(ada, "one", "answer 1", "two", "answer 2", "four", "answer 4")
        assert given[-1] == ["one", "answer 1", "two", "answer 2", "four"]

        await ada.evaluate("channel.regenerate('four')")
        await until_path(ada, "one", "answer 1", "two", "answer 2", "four", "answer 5")
        await ada.reload()
        await follow(ada)
        for window in (ada, bob):
            await until_path(window, "one", "answer 1", "two", "answer 2", "four", "answer 5")
        answer = await ada.evaluate("channel.getSnapshot().messages.at(-1).id")
        assert await ada.evaluate("id => shows(id)", answer) == "answer 4|answer 5"
        assert given[-1] == ["one", "answer 1", "two", "answer 2", "four"]

        await bob.evaluate("void channel.edit('one', { id: 'five', text: 'five' })")
        for window in (ada, bob):
            await until_path(window, "five", "answer 6")
        assert given[-1] == ["five"]
        for window in (ada, bob):
            await window.evaluate("client.close()")


async def test_edit_of_a_question_that_another_person_deleted_keeps_the_draft_over_a_reload(browser: Browser) -> None:
    hub = verified()
    async with app_with(hub) as port:
        window = await page_at(browser, port)
        await follow(window)
        await window.evaluate("channel.send({ id: 'one', text: 'one' })")
        await hub.delete("chat:1", "one")
        await window.wait_for_function("() => path() === ''")
        code = await window.evaluate("channel.edit('one', 'my long text').catch((error) => error.code)")
        assert code == "deleted"
        await window.reload()
        await follow(window)
        assert await window.evaluate("path()") == "my long text"
        [kept] = await window.evaluate("channel.getSnapshot().messages")
        assert (kept["local"]["state"], kept["local"]["error"]["code"]) == ("refused", "deleted")
        await window.evaluate("id => channel.retry(id)", kept["id"])
        assert [one.text for one in (await hub.history("chat:1")).messages] == ["my long text"]
        await window.evaluate("client.close()")


async def show(window: Page, is_hidden: bool) -> None:
    """Hide the page or show it again. Headless Chromium keeps every page visible, so the page is told."""
    await window.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { configurable: true, value: hidden })
          document.dispatchEvent(new Event("visibilitychange", { bubbles: true }))
        }""",
        is_hidden,
    )


async def test_messages_of_others_are_unread_while_the_page_is_hidden(browser: Browser) -> None:
    hub = verified()
    count = "count => channel.getSnapshot().unread === count"
    async with app_with(hub) as port:
        window = await page_at(browser, port)
        await follow(window)
        await hub.create("chat:1", id="one", text="one")
        await until_path(window, "one")
        assert await window.evaluate("channel.getSnapshot().unread") == 0
        await show(window, is_hidden=True)
        await hub.create("chat:1", id="two", text="two")
        await hub.create("chat:1", id="own", text="from another device", author="ada")
        async with hub.message("chat:1", id="three") as message:
            await window.wait_for_function(count, arg=2)
            await message.append("three")
        await show(window, is_hidden=False)
        await window.wait_for_function(count, arg=0)
        await hub.create("chat:1", id="four", text="four")
        await until_path(window, "one", "two", "from another device", "three", "four")
        assert await window.evaluate("channel.getSnapshot().unread") == 0
        await window.evaluate("client.close()")


async def test_sign_out_leaves_no_unsent_text_of_this_person_in_the_browser(browser: Browser) -> None:
    hub = verified()
    async with app_with(hub) as port:
        window = await page_at(browser, port)
        await follow(window)
        await window.evaluate("client.suspend(); void channel.send('a secret of ada').catch(() => {})")
        stored = "JSON.stringify([{ ...sessionStorage }, { ...localStorage }])"
        assert "a secret of ada" in await window.evaluate(stored)
        await window.evaluate("client.signOut()")
        assert "a secret of ada" not in await window.evaluate(stored)
        await follow(window, "bob")
        assert await window.evaluate("path()") == ""
        await window.evaluate("client.close()")


async def test_ids_that_are_names_of_objects_change_no_object(browser: Browser) -> None:
    hub = verified()
    with_agent(hub)
    async with app_with(hub) as port:
        window = await page_at(browser, port)
        await follow(window)
        await window.evaluate(
            "channel.send({ id: '__proto__', text: 'one', meta: { ['__proto__']: { text: 'evil' } } })"
        )
        await until_path(window, "one", "answer 1")
        await window.evaluate("void channel.edit('__proto__', { id: 'constructor', text: 'two' })")
        await until_path(window, "two", "answer 2")
        await window.evaluate("channel.select('__proto__')")
        assert await window.evaluate("path()") == "one|answer 1"
        assert await window.evaluate("[({}).text, ({}).id, Object.prototype.text]") == [None, None, None]
        await window.evaluate("client.close()")
