"""The limits of visitors' questions, which bound the cost of the model. Time is virtual.

Layer: tests.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest

from tenuto import Hub, Identity, Turn, visitors
from tenuto.app import Visitors
from tenuto.core.errors import StoreUnavailable, TooMany
from tenuto.core.visitor_ids import new_visitor_id
from tenuto.hub.access.rates import DAY_S, FORGET_AT_ONCE, MAX_COUNTED, ClientLimits, QuestionLimits, Questions, Rates
from tenuto.stores.base import CommitUnknown
from tests.hub.test_commit_outcomes import ScriptedStore
from tests.transports.conftest import Served, asking, new_hub, serving
from tests.transports.test_websocket import dialled
from tests.virtual import Time

ADDRESS = "192.0.2.1"


def visitor(number: int = 0) -> str:
    return new_visitor_id(number.to_bytes(13))


def asked(questions: Questions, count: int, *, by: str | None = None, peer: str | None = ADDRESS) -> int:
    """Ask `count` questions, by visitors who differ unless `by` names one; return how many were accepted."""
    accepted = 0
    for number in range(count):
        try:
            questions.ask(by or f"v{number}", peer)
            accepted += 1
        except TooMany:
            continue
    return accepted


def test_visitor_asks_ten_questions_a_minute_and_a_hundred_a_day() -> None:
    time = Time()
    questions = Questions(QuestionLimits(), now_s=time)
    assert asked(questions, 12, by=visitor()) == 10
    with pytest.raises(
        TooMany, match=r"has sent 10 questions within a minute.* Wait 6 s.*questions_per_minute"
    ) as error:
        questions.ask(visitor(), ADDRESS)
    assert error.value.details == {"limit": 10, "retry_after_s": 6}
    time.now_s = 6
    assert asked(questions, 2, by=visitor()) == 1
    total = 11
    for minute in range(1, 60):
        time.now_s = 60.0 * minute
        total += asked(questions, 12, by=visitor())
    assert total == 100 + 60 * 60 // 864
    with pytest.raises(TooMany, match=r"100 questions within a day.*questions_per_day"):
        questions.ask(visitor(), ADDRESS)


def test_all_visitors_of_an_address_ask_ten_times_as_many(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    questions = Questions(QuestionLimits(), now_s=time)
    with caplog.at_level(logging.WARNING):
        assert asked(questions, 1000) == 100
    assert len(caplog.records) == 1
    assert "behind its proxy" in caplog.text
    assert asked(questions, 1, by="other", peer="192.0.2.2") == 1
    with pytest.raises(TooMany, match=rf"visitors of the address '{ADDRESS}' have sent 100 questions.*address_factor"):
        questions.ask(visitor(1000), ADDRESS)
    assert asked(questions, 200, peer="2001:db8::1") == 100
    assert asked(questions, 1, by="other", peer="2001:db8::2") == 0  # the same network
    assert asked(questions, 1, by="other", peer="2001:db8:0:1::1") == 1


def test_visitors_who_are_gone_cost_no_memory() -> None:
    time = Time()
    questions = Questions(QuestionLimits(address_factor=1000), now_s=time)
    assert (asked(questions, 10_000), len(questions._buckets)) == (10_000, 10_001)
    time.now_s = DAY_S
    for _ in range(10_001 // FORGET_AT_ONCE + 1):
        questions.forget_full()
    assert len(questions._buckets) == 0


def test_number_of_counted_visitors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.hub.access.rates.MAX_COUNTED", 100)
    assert MAX_COUNTED > 10_000
    questions = Questions(QuestionLimits(), now_s=Time())
    assert (asked(questions, 1000, peer=None), len(questions._buckets)) == (1000, 100)


@pytest.mark.parametrize("others", [1, 300])
def test_bodies_of_visitors_count_for_their_address_too(others: int) -> None:
    """Of one visitor `ClientLimits` hold, of all others together ten times as many."""
    rates = Rates(address_factor=10, now_s=Time())
    crowd = [Identity(client_id=visitor(number), grants={}) for number in range(others)]
    bodies = 0
    with ExitStack() as stack:
        for _ in range(200 // others + 10):
            for one in crowd:
                with suppress(TooMany):
                    stack.enter_context(rates.body(one, ADDRESS, largest_bytes=16, max_bytes=100))
                    bodies += 1
        assert bodies == 100 * min(10, others)
        stranger = Identity(client_id=visitor(others), grants={})
        with rates.body(stranger, "192.0.2.2", largest_bytes=16, max_bytes=100) as body:
            body.grow(100)
    rates.forget_new()
    assert len(rates._clients) == 0


# In a hub


class Page:
    """A visitor of `hub`, over HTTP and a socket."""

    def __init__(self, hub: Hub, served: Served) -> None:
        assert isinstance(hub.authenticate, Visitors)
        self.id = visitor()
        self.channel = f"chat:{self.id}"
        self.token = {"authorization": f"Bearer {hub.authenticate.token_of(self.id)}"}
        self._http = served.http

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self._http.post(f"/v1/channels/{self.channel}/{path}", json=body, headers=self.token)


@asynccontextmanager
async def visited(**limits: Any) -> AsyncIterator[tuple[Hub, Served, Page]]:
    hub = new_hub(authenticate=visitors(**limits))

    @hub.agent("chat:*")
    async def answer(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("yes")

    async with serving(hub) as served:
        yield hub, served, Page(hub, served)


async def test_all_that_calls_the_model_counts_and_nothing_else() -> None:
    async with visited(questions_per_minute=5) as (hub, served, page):
        assert (await page.post("messages", id="q1", text="first")).status_code == 201
        assert (await page.post("messages", id="q1", text="first")).status_code == 200  # a repeat
        assert (await page.post("messages", parts=[{"type": "text"}, 1])).status_code == 400
        turn = await hub.turn(page.channel, "q1")
        while turn.state != "over":
            turn = await hub.turn(page.channel, "q1", after=turn)
        assert (await page.post("commands", name="regenerate", target="q1")).status_code == 201
        assert (await page.post("commands", name="steer", data={"text": "be brief"})).status_code == 201
        assert (await page.post("commands", name="vote")).status_code == 201  # of the app, which calls no model
        async with dialled(served, additional_headers=page.token) as peer:
            assert (await peer.ask("create", channel=page.channel, text="another"))["type"] == "ok"
            edited = await peer.ask("create", channel=page.channel, text="the first, edited", parent=None)
            assert edited["type"] == "ok"
            refused = await peer.ask("create", channel=page.channel, text="too many")
        assert (refused["code"], refused["limit"]) == ("too_many", 5)
        assert 0 < refused["retry_after_s"] <= 12
        for kind in ({"name": "regenerate", "target": "q1"}, {"name": "steer"}):
            assert (await page.post("commands", **kind)).status_code == 429
        for author in (page.id, None, "you"):
            with pytest.raises(TooMany):
                await hub.create(page.channel, text="by a route of the app", author=author)
        with pytest.raises(TooMany):
            await hub.command(page.channel, "regenerate", target="q1")
        assert (await page.post("messages", id="q1", text="first")).status_code == 200
        path = f"/v1/channels/{page.channel}/messages/q1"
        change = await served.http.patch(path, json={"text": "x"}, headers=page.token)
        assert change.status_code == 200
        await hub.create(page.channel, text="of an imported conversation", starts_turn=False)
        await hub.create(page.channel, text="by the app", role="assistant")
        await hub.create("chat:1", text="in another channel")


async def test_questions_that_a_socket_sends_at_once_are_bounded() -> None:
    async with visited(questions_per_minute=5) as (_, served, page):
        async with dialled(served, additional_headers=page.token) as peer:
            refs = [await peer.send("create", channel=page.channel, text="x") for _ in range(20)]
            replies = [(await peer.reply(ref))["type"] for ref in refs]
        assert replies.count("ok") == 5


async def test_question_counts_unless_the_store_has_refused_it() -> None:
    store = ScriptedStore()
    hub = new_hub(store, authenticate=visitors(questions_per_minute=2))
    channel = f"chat:{visitor()}"
    await hub.create(channel, id="q1", text="stored")
    store.script = ["no"] * 5
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await hub.create(channel, id="q2", text="x")
    store.script, store.is_readable = ["kept"], False
    with pytest.raises(CommitUnknown):  # it is stored, and the hub cannot read it
        await hub.create(channel, id="q2", text="x")
    store.is_readable = True
    with pytest.raises(TooMany):
        await hub.create(channel, id="q3", text="too many")
    assert (await hub.create(channel, id="q2", text="x")).id == "q2"
    await hub.close()


async def test_question_through_an_adapter_counts_once_and_its_history_does_not() -> None:
    async with visited(questions_per_minute=1) as (hub, _, page):
        headers = [(name.encode(), value.encode()) for name, value in page.token.items()]
        scope = {"type": "http", "method": "POST", "headers": headers, "client": (ADDRESS, 1), "query_string": b""}
        access = await hub.authorize(scope, page.channel, ["publish"])
        for number in range(4):
            await access.remember(page.channel, id=f"m{number}", role="user", parts=[{"type": "text", "text": "old"}])
        await access.create(page.channel, text="now")
        with pytest.raises(TooMany):
            await access.create(page.channel, text="and again")


async def test_visitors_of_one_address_begin_channels_and_send_signals_within_its_limits() -> None:
    limits = ClientLimits(client_requests=1000, client_channels=1, client_signals=1)
    hub = new_hub(authenticate=visitors(questions_per_minute=1000), client_limits=limits)
    assert isinstance(hub.authenticate, Visitors)
    hub.rates.now_s = Time()
    await hub.start()
    for address, count in (("192.0.2.9", 15), ("192.0.2.10", 1)):
        statuses = []
        async with asking(hub, client=address) as crowd:
            for number in range(count):
                one = visitor(number + count)
                token = {"authorization": f"Bearer {hub.authenticate.token_of(one)}"}
                for path, body in (("signals", {"name": "typing"}), ("messages", {"text": "x"})):
                    response = await crowd.post(f"/v1/channels/chat:{one}/{path}", json=body, headers=token)
                    statuses.append((path, response.status_code))
        assert statuses.count(("signals", 202)) == statuses.count(("messages", 201)) == min(count, 10)
        assert statuses.count(("signals", 429)) == statuses.count(("messages", 429)) == max(0, count - 10)
    await hub.close()
