"""`hub.stream_response` without a question: a reloaded page gets the newest answer, and no model is called.

Layer: tests.

`Endpoint` and `Reader` are an endpoint and its readers without a server, in virtual time.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from tenuto import Hub
from tenuto.core.errors import Draining
from tenuto.response import BEGINNING_S, StreamResponse
from tests.transports.conftest import new_hub
from tests.virtual import closed_later, virtual_clock, virtually

EVENT_SOURCE = {"accept": "text/event-stream"}


class Reader:
    """A reader of one response: the bytes that it has received, and a way to leave."""

    def __init__(self, response: StreamResponse, headers: dict[str, str], method: str = "GET") -> None:
        self.status = 0
        self.body = ""
        self.headers = Headers()
        self._left = asyncio.Event()
        self._received = asyncio.Event()
        scope = {
            "type": "http",
            "method": method,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
        }
        self.over = asyncio.ensure_future(response(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = Headers(raw=message["headers"])
        self.body += message.get("body", b"").decode()
        self._received.set()

    async def until(self, text: str) -> "Reader":
        """Wait until the body contains `text`."""
        async with asyncio.timeout(60):
            while text not in self.body:
                self._received.clear()
                await self._received.wait()
        return self

    async def whole(self) -> "Reader":
        """Wait for the end of the response."""
        async with asyncio.timeout(60):
            await self.over
        return self

    async def leave(self) -> None:
        """Disconnect, as a page does that reloads."""
        self._left.set()
        await self.whole()

    @property
    def last_id(self) -> str:
        """Return the id that an EventSource would send with its next request."""
        return [line.removeprefix("id: ") for line in self.body.splitlines() if line.startswith("id: ")][-1]

    @property
    def text(self) -> str:
        """Return the text of the frames of `frame`."""
        lines = self.body.splitlines()
        return "".join(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith('data: "'))


def frame(text: str) -> str:
    return f"data: {json.dumps(text)}\n\n"


class Endpoint:
    """An endpoint of `stream_response` whose model waits for its gate between two words."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.gate = asyncio.Event()
        self.asked: list[str] = []

    def get(
        self,
        question: str = "",
        since: str | None = None,
        *,
        channel: str = "chat:1",
        accept: str = "text/event-stream",
        method: str = "GET",
        **options: Any,
    ) -> Reader:
        """Send one request, by default that of an EventSource."""

        async def model() -> AsyncIterator[str]:
            self.asked.append(question)
            yield f"{question}: one "
            await self.gate.wait()
            yield "two"

        response = self.hub.stream_response(channel, model, prompt=question, **{"style": frame, **options})
        headers = {"accept": accept} if since is None else {"accept": accept, "last-event-id": since}
        return Reader(response, headers, method)

    async def stored(self) -> list[tuple[str, str, str]]:
        """Return role, text and status of all messages, oldest first."""
        messages = (await self.hub.history("chat:1")).messages[::-1]
        return [(one.role, one.text, one.status) for one in messages]


Test = Callable[[Endpoint], Awaitable[None]]


def on_memory(test: Test) -> Callable[[], None]:
    """Run a test of an endpoint in virtual time, so that waits of the product take no time."""

    @virtually
    async def run() -> None:
        await test(Endpoint(closed_later(new_hub("memory://", clock=virtual_clock()))))

    run.__name__ = test.__name__
    return run


@on_memory
async def test_channel_without_an_answer_is_no_content(endpoint: Endpoint) -> None:
    nothing = await endpoint.get(headers={"set-cookie": "a=b"}).whole()
    assert (nothing.status, nothing.body, nothing.headers["set-cookie"]) == (204, "", "a=b")
    assert "location" not in nothing.headers
    assert "content-type" not in nothing.headers
    assert (endpoint.asked, await endpoint.stored()) == ([], [])


@on_memory
async def test_reloaded_page_gets_the_running_answer_and_later_the_whole_one(endpoint: Endpoint) -> None:
    first = await endpoint.get("why").until("one ")
    await first.leave()
    windows = [endpoint.get() for _ in range(3)]
    for window in windows:
        assert (await window.until("one ")).text == "why: one "
        assert window.headers["tenuto-message"] == first.headers["tenuto-message"]
    endpoint.gate.set()
    for window in (*windows, endpoint.get()):
        assert (await window.whole()).text == "why: one two"
    assert endpoint.asked == ["why"]
    assert await endpoint.stored() == [("user", "why", "complete"), ("assistant", "why: one two", "complete")]


@on_memory
async def test_reload_while_the_question_is_being_stored_waits_for_its_answer(endpoint: Endpoint) -> None:
    endpoint.gate.set()
    await endpoint.get("first").whole()
    asking, resumed = endpoint.get("second"), endpoint.get()
    assert (await resumed.whole()).text == "second: one two"
    await asking.whole()
    assert endpoint.asked == ["first", "second"]


@on_memory
async def test_question_of_another_node_is_waited_for_while_it_is_new(endpoint: Endpoint) -> None:
    hub = endpoint.hub
    endpoint.gate.set()
    await endpoint.get("earlier").whole()
    question = await hub.create("chat:1", text="why")
    resumed = endpoint.get()
    await asyncio.sleep(1)
    assert not resumed.over.done()
    async with hub.message("chat:1", reply_to=question.id) as answer:
        await answer.append("because")
    assert (await resumed.whole()).text == "because"
    await hub.create("chat:1", text="without an answer")
    loop = asyncio.get_running_loop()
    for longest_s in (BEGINNING_S + 0.1, 0.1):  # later there is no reason to wait
        begun_s = loop.time()
        assert (await endpoint.get().whole()).status == 204
        assert loop.time() - begun_s <= longest_s


@on_memory
async def test_answer_behind_other_messages_is_found(endpoint: Endpoint) -> None:
    async with endpoint.hub.message("chat:1") as unasked:
        await unasked.append("welcome")
    assert (await endpoint.get().whole()).text == "welcome"
    endpoint.gate.set()
    await endpoint.get("why").whole()
    for number in range(25):
        await endpoint.hub.create("chat:1", role="system", text=f"note {number}")
    assert (await endpoint.get().whole()).text == "why: one two"


@on_memory
async def test_eventsource_has_an_id_before_the_first_text(endpoint: Endpoint) -> None:
    starting, words = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        starting.set()
        await words.wait()
        yield "late"

    reader = Reader(endpoint.hub.stream_response("chat:1", slow, prompt="why", style=frame), EVENT_SOURCE)
    await starting.wait()
    await reader.until("id: ")
    await reader.leave()
    again = endpoint.get("why", since=reader.last_id)
    words.set()
    assert (await again.whole()).text == "late"
    assert endpoint.asked == []


async def test_eventsource_gets_the_rest_of_its_answer_from_a_restarted_server(tmp_path: Path) -> None:
    """The server has no key from before, so the signature in the cursor is of no use."""
    url = f"sqlite:///{tmp_path}/chat.db"
    endpoint = Endpoint(new_hub(url))
    await (await endpoint.get("earlier").until("one ")).leave()
    await endpoint.hub.finish("chat:1", (await endpoint.get().until("one ")).headers["tenuto-message"])
    asking = await endpoint.get("why").until("one ")
    window = await endpoint.get().until("one ")
    await endpoint.hub.close()
    after = Endpoint(new_hub(url))
    for reader in (after.get("why", since=asking.last_id), after.get(since=window.last_id)):
        assert (await reader.whole()).text == ""
        assert (await after.get("why", since=reader.last_id).whole()).status == 204
    assert (await after.get().whole()).text == "why: one "
    assert after.asked == []
    assert [status for _, _, status in await after.stored()] == ["complete"] * 3 + ["interrupted"]
    for reader in (asking, window):
        with suppress(Exception):
            await reader.leave()
    await after.hub.close()


@on_memory
async def test_eventsource_comes_again_while_the_hub_drains(endpoint: Endpoint) -> None:
    """Any status but 200 would stop it for good."""
    await endpoint.hub.create("chat:2", text="not answered yet")
    window = Reader(endpoint.hub.stream_response("chat:2", [], prompt="", style=frame), EVENT_SOURCE)
    asking = await endpoint.get("why").until("one ")
    draining = asyncio.ensure_future(endpoint.hub.drain())
    stored = await endpoint.stored()
    await asyncio.gather(asking.whole(), window.whole())
    for refused in (window, endpoint.get("why", since=asking.last_id), endpoint.get(), endpoint.get("next")):
        assert (await refused.whole()).status == 200
        assert refused.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "tenuto-message" not in refused.headers
        assert re.fullmatch(r"retry: [123]\d{3}\n", refused.body)
    other = Reader(endpoint.hub.stream_response("chat:1", ["no"], prompt="next", style=frame), {})
    with pytest.raises(Draining):  # 503 with `Retry-After` for a reader that knows a status
        await other.whole()
    assert (endpoint.asked, await endpoint.stored()) == (["why"], stored)
    await draining


@pytest.mark.parametrize("steps", range(12))
def test_question_is_answered_once_if_the_hub_drains_at_any_moment(steps: int) -> None:
    @on_memory
    async def run(endpoint: Endpoint) -> None:
        await endpoint.hub.start()
        reader = endpoint.get("why")
        for _ in range(steps):
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(endpoint.hub.drain())
        await reader.whole()
        assert reader.status == 200
        questions = [one for one in await endpoint.stored() if one[0] == "user"]
        # an EventSource without an id asks again
        assert len(questions) == ("id: " in reader.body)
        await draining

    run()


@on_memory
async def test_reply_id_without_a_question_names_the_answer(endpoint: Endpoint) -> None:
    endpoint.gate.set()
    for name in ("a", "b"):
        await endpoint.get(f"question {name}", reply_id=name).whole()
    assert (await endpoint.get(reply_id="a").whole()).text == "question a: one two"
    assert (await endpoint.get(reply_id="c").whole()).status == 204
