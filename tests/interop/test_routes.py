"""Routes of an app's own: the program of `docs/python.md`, joined turns, reads, and how streams end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from starlette.responses import Response

from tenuto import Hub, Identity, Turn, routes
from tenuto.core.errors import Deleted, Draining, Forbidden
from tenuto.core.limits import Limits
from tenuto.hub.access.rates import Rates
from tenuto.hub.turns import status as turn_status
from tenuto.interop.ai_sdk import UIStream
from tenuto.routes import Sent, TurnChanged, TurnDelta, guarded
from tenuto.stores.base import StoredPage
from tests.interop.scene import names_of, verifier
from tests.transports.conftest import Served, new_hub, serving

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
(PROGRAM,) = (one for one in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Lines" in one)


async def text_until(lines: AsyncIterator[str], last: dict[str, str]) -> str:
    """Return the text of the lines of a stream up to `last`."""
    found = ""
    async for line in lines:
        one = json.loads(line or "{}")
        found += one.get("text", "")
        if one == last:
            break
    return found


async def test_program_of_the_page_joins_a_repeated_request_to_the_running_turn() -> None:
    hub, gate, turns = new_hub(), asyncio.Event(), list[Turn]()

    @hub.agent("*", name="agent")
    async def answer(turn: Turn) -> None:
        turns.append(turn)
        async with turn.reply() as message:
            await message.append("first")
            await gate.wait()
            await message.append(" second")

    async with serving(hub, names_of(PROGRAM, hub)["app"]) as served:
        asked = {"text": "Why?", "id": "q"}
        async with (
            served.http.stream("POST", "/ask/chat:1", json=asked) as one,
            served.http.stream("POST", "/ask/chat:1", json=asked) as other,
        ):
            assert one.headers["content-type"] == "application/x-ndjson"
            assert one.headers["cross-origin-resource-policy"] == "same-origin"
            lines = one.aiter_lines()
            assert await text_until(lines, {"text": "first"}) == "first"
            gate.set()
            assert await text_until(lines, {"state": "over"}) == " second"
            assert await text_until(other.aiter_lines(), {"state": "over"}) == "first second"
        assert len(turns) == 1
        later = await served.http.post("/ask/chat:1", json=asked)
        assert await text_until(later.aiter_lines(), {"state": "over"}) == "first second"
        assert len(turns) == 1


async def test_turn_that_changes_no_more_is_waited_for_until_the_hub_drains() -> None:
    hub = new_hub()
    await hub.create("chat:1", text="Why?", id="q", starts_turn=False)
    begun = await hub.turn("chat:1", "q")
    for count in (1, 2):  # the second answer changes no state
        await hub.create("chat:1", text="Because", role="assistant", reply_to="q")
        async with asyncio.timeout(30):
            begun = await hub.turn("chat:1", "q", after=begun)
        assert len(begun.answers) == count
    waits = asyncio.ensure_future(hub.turn("chat:1", "q", after=begun))
    await hub.create("chat:1", text="How?", starts_turn=False)  # of another turn
    await hub.drain()
    with pytest.raises(Draining):
        await waits
    await hub.close()


async def test_stream_begins_at_the_position_of_its_caller() -> None:
    hub, app = new_hub(), FastAPI()
    lines_format = names_of(PROGRAM, new_hub())["Lines"]

    @app.get("/{sent}")
    @guarded
    async def follow(request: Request) -> Response:
        sent = int(request.path_params["sent"])
        access = await hub.authorize(request.scope)
        return access.stream("chat:1", "q", lines_format(), sent={"a": Sent([sent]), "unknown": Sent([9])})

    await hub.create("chat:1", text="Why?", id="q", starts_turn=False)
    await hub.create("chat:1", text="Because", id="a", role="assistant", reply_to="q")
    async with serving(hub, app) as served:
        for sent, rest in ((0, ["Because"]), (2, ["cause"]), (7, [])):
            lines = [json.loads(line) for line in (await served.http.get(f"/{sent}")).text.splitlines()]
            assert lines == [*({"text": text} for text in rest), {"state": "over"}]
        refused = await served.http.get("/-3")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
        assert "sent['a']" in refused.json()["detail"]


class Broken:
    """A format that fails at the end of the turn."""

    headers: ClassVar = {"content-type": "text/plain"}
    heartbeat = b"\n"
    is_over = False

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        if TurnChanged("over") in deltas:
            raise RuntimeError("on purpose")
        return b"begun\n"


async def test_stream_whose_format_fails_is_cut_and_its_neighbours_go_on() -> None:
    hub, app, gate = new_hub(), FastAPI(), asyncio.Event()

    @hub.agent("*")
    async def waits(turn: Turn) -> None:
        await gate.wait()

    @app.get("/{kind}")
    async def follow(kind: str, request: Request, tasks: BackgroundTasks) -> Response:
        tasks.add_task(hub.create, "chat:2", text=kind)
        access = await hub.authorize(request.scope)
        return access.stream("chat:1", "q", Broken() if kind == "broken" else UIStream("q"))

    await hub.create("chat:1", text="Why?", id="q")
    async with (
        serving(hub, app) as served,
        served.http.stream("GET", "/broken") as broken,
        served.http.stream("GET", "/whole") as whole,
    ):
        await served.until(lambda: len(hub.channel("chat:1").feeds) == 2)
        gate.set()  # the end of a turn without an answer makes no event
        with pytest.raises(httpx2.RemoteProtocolError):
            [line async for line in broken.aiter_lines()]
        assert [line async for line in whole.aiter_lines()][-2] == "data: [DONE]"
        await served.until(lambda: not hub.channel("chat:1").feeds)
        await served.until(lambda: hub.channel("chat:2").state.messages)


async def test_pending_commands_are_listed_until_their_reply_and_count_for_their_reader() -> None:
    async with counted_app() as (served, charged_bytes):
        hub = served.hub
        sent = [await hub.command("chat:1", name, data="x" * 4_000) for name in ("choose", "own")]
        assert [one.id for one in await hub.pending_commands("chat:1")] == [one.id for one in sent]
        before = charged_bytes()
        assert (await served.http.get("/pending_commands")).status_code == 200
        assert 8_000 <= charged_bytes() - before < 9_000
        await hub.reply("chat:1", sent[0].id)
        assert [one.id for one in await hub.pending_commands("chat:1")] == [sent[1].id]


@pytest.mark.parametrize("read", ["history", "pending_commands", "conversation", "open_turns"])
async def test_reads_of_a_route_need_the_capability_history(read: str) -> None:
    async def verify(scope: dict[str, Any]) -> Identity:
        return Identity(client_id="ann", grants={"chat:*": frozenset({"publish", "subscribe", "command"})})

    hub = new_hub(authenticate=verify)
    access = await hub.authorize({"type": "http", "headers": [], "client": ("127.0.0.1", 1)})
    with pytest.raises(Forbidden, match="history"):
        await getattr(access, read)("chat:1")
    await hub.close()


@pytest.mark.parametrize("size", [100_000, Limits().request_bytes + 1, None], ids=["text", "too large", "of no type"])
async def test_refused_body_of_a_route_counts(size: int | None) -> None:
    async with counted_app() as (served, charged_bytes):
        body = b"x" * (size or 100_000)

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        headers = {"content-type": "application/json"} if size else {}
        response = await served.http.post("/body", content=chunks() if size else body, headers=headers)
        assert response.status_code in (400, 413, 415)
        assert len(body) <= charged_bytes() < len(body) + 1_000


async def test_loop_goes_on_between_two_large_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, steps = new_hub(), list[str]()

    def decode(data: bytes, decoder: object) -> int:
        steps.append("body")
        asyncio.get_running_loop().call_soon(steps.append, "loop")
        return 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * routes.LARGE_BODY_BYTES}

    monkeypatch.setattr(routes, "decode", decode)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    request = Request({"type": "http", "headers": headers, "client": ("127.0.0.1", 1)}, receive)
    access = await hub.authorize(request.scope)
    await asyncio.gather(*(access.body(Request(request.scope, receive)) for _ in range(3)))
    assert steps[:5] == ["body", "loop", "body", "loop", "body"]
    await hub.close()


@asynccontextmanager
async def counted_app() -> AsyncIterator[tuple[Served, Callable[[], float]]]:
    """Routes with an identity whose bytes are counted in an hour that does not pass, and the function that counts."""
    hub, app = new_hub(authenticate=verifier("ann")), FastAPI()
    hub.rates = Rates(now_s=lambda: 0.0)
    most = hub.rates.limits.client_bytes

    def charged_bytes() -> float:
        client = hub.rates._clients.get("ann")
        return most - client.bytes.level if client is not None else 0

    @app.get("/pending_commands")
    async def pending(request: Request) -> Response:
        await (await hub.authorize(request.scope)).pending_commands("chat:1")
        return Response()

    @app.post("/body")
    @guarded
    async def body(request: Request) -> Response:
        await (await hub.authorize(request.scope)).body(request)
        return Response()

    async with serving(hub, app) as served:
        yield served, charged_bytes


@pytest.fixture
async def long_channel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Hub, list[int | None]]]:
    """A hub whose agent never answers, with a channel that is not in memory, and the pages read from the store."""
    hub, read = new_hub(limits=Limits(catch_up_messages=50)), list[int | None]()

    @hub.agent("*")
    async def waits(turn: Turn) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(turn_status, "PAGES", (2, 5))
    for number in range(100):
        role: Any = "assistant" if number % 2 else "user"
        reply_to = "m0" if number == 1 else None
        await hub.create("chat:1", text="text", id=f"m{number}", role=role, starts_turn=False, reply_to=reply_to)
    store = hub.runtime.store
    page = store.page

    async def noted(channel: str, **about: Any) -> StoredPage:
        read.append(about["before"])
        return await page(channel, **about)

    monkeypatch.setattr(store, "page", noted)
    hub.channel("chat:1").trim(0)
    yield hub, read
    await hub.close()


async def test_turn_of_an_old_message_reads_few_pages(long_channel: tuple[Hub, list[int | None]]) -> None:
    hub, read = long_channel
    assert [one.id for one in (await hub.turn("chat:1", "m0")).answers] == ["m1"]
    assert len(read) == 2 + turn_status.MAX_PAGES
    hub.channel("chat:1").trim(0)
    read.clear()
    await hub.command("chat:1", "regenerate", target="m0")
    assert (await hub.turn("chat:1", "m0")).state in ("waiting", "running")
    assert read == []


async def test_answer_to_an_old_message_leaves_with_its_turn(long_channel: tuple[Hub, list[int | None]]) -> None:
    hub, _ = long_channel
    access = await hub.authorize({"type": "http", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)})
    await access.delete_turn("chat:1", "m0")
    assert [one.id for one in (await hub.history("chat:1", after=0, limit=1)).messages] == ["m2"]


async def test_message_that_is_deleted_while_a_route_creates_it_and_answer_that_is_begun_then_leave() -> None:
    hub = new_hub()
    access = await hub.authorize({"type": "http", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)})
    await hub.create("chat:1", text="Why?", id="q", starts_turn=False)
    creating = asyncio.ensure_future(access.create("chat:1", id="p", text="How?"))
    await asyncio.gather(asyncio.sleep(0), hub.delete("chat:1", "p"))  # in the same batch
    with pytest.raises(Deleted, match="'p' was deleted"):
        await creating
    begun = hub.create("chat:1", role="assistant", id="a", text="Hm.", reply_to="q")
    await asyncio.gather(begun, access.delete_turn("chat:1", "q"))  # in the same batch
    assert (await hub.history("chat:1")).messages == []
    await hub.close()


async def test_answer_to_a_deleted_message_is_deleted_by_the_author_of_that_message_alone() -> None:
    hub = new_hub(authenticate=verifier())
    scope: Any = {"type": "http", "path": "/", "client": ("127.0.0.1", 1)}
    ann, ben = [
        await hub.authorize({**scope, "headers": [(b"host", b"localhost"), (b"authorization", name)]})
        for name in (b"Bearer ann", b"Bearer ben")
    ]
    for channel in ("chat:1", "chat:2"):
        await ann.create(channel, text="Why?", id="q")
        await hub.create(channel, role="assistant", id="a", text="Hm.", reply_to="q")
        both = hub.delete(channel, "q"), ben.delete_turn(channel, "q")  # in the same batch
        _, refusal = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(refusal, Forbidden)
        hub.channel("chat:2").trim(0)
        with pytest.raises(Forbidden, match="'q' belongs to another author than caller 'ben'"):
            await ben.delete_turn(channel, "q")
        assert [one.id for one in (await hub.history(channel)).messages] == ["a"]
        await ann.delete_turn(channel, "q")
        assert (await hub.history(channel)).messages == []
    await hub.close()
