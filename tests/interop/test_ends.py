"""Answers that are deleted, cancelled or given up: each reader of a turn gets the same end, whenever it joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from tenuto import Hub, Turn
from tenuto.core.errors import Deleted
from tenuto.core.requests import SERVER, CreateMessage, EndTurn, FinishMessage
from tenuto.routes import OPTIONS_KEY
from tests.hub.test_shared_turns import Remote
from tests.interop.scene import answers_twice
from tests.interop.test_streams import STREAMS as OF_ALL
from tests.interop.test_streams import install_routes
from tests.transports.conftest import Served, new_hub, serving

RESPONSE = OF_ALL[4][1].partition("?")[0]
STREAMS = [OF_ALL[0], OF_ALL[2], OF_ALL[4]]
DELETED = ['{"type":"error","errorText":"the answer was deleted"}', '"code":"deleted"', "response.failed"]
CANCELLED = ['{"type":"abort"}', '"code":"cancelled"', '"status":"cancelled"']


@asynccontextmanager
async def adapters(url: str = "memory://") -> AsyncIterator[tuple[Hub, Served]]:
    hub, app = new_hub(url), FastAPI()
    install_routes(hub, app)
    async with serving(hub, app) as served:
        yield hub, served


class Readers:
    """Streams of one turn."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._texts: list[asyncio.Task[str]] = []

    async def join(self, hub: Hub) -> None:
        """Open a stream of each adapter, and wait until it follows the channel."""
        for method, path, body in STREAMS:
            known = len(hub.channel("chat:1").feeds)
            self._texts.append(asyncio.ensure_future(self._read(method, path, body)))
            await self._served.until(lambda known=known: len(hub.channel("chat:1").feeds) > known)

    async def _read(self, method: str, path: str, body: Any) -> str:
        return (await self._served.http.request(method, path, json=body)).text

    async def check(self, ends: list[str]) -> list[str]:
        """Check that each stream, and one of each adapter that opens now, has the text of `ends`. Return them."""
        self._texts += [asyncio.ensure_future(self._read(*one)) for one in STREAMS]
        return await self.check_joined(ends)

    async def check_joined(self, ends: list[str]) -> list[str]:
        """Check it for the streams that were opened before."""
        async with asyncio.timeout(60):
            texts = await asyncio.gather(*self._texts)
        for number, text in enumerate(texts):
            assert ends[number % 3] in text, text
        return texts


async def test_turn_whose_answer_was_deleted_has_failed_for_each_reader_also_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hub.db"
    async with adapters(url) as (hub, served):
        begun, is_deleted, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @hub.agent("chat:*", name="bot")
        async def answers(turn: Turn) -> None:
            with suppress(Deleted):
                async with turn.reply() as message:
                    await message.append("Hello")
                    await message.flush()
                    begun.set()
                    await is_deleted.wait()
                    await message.append(" to you")
                    await message.flush()
            await gate.wait()

        await hub.create("chat:1", id="u", text="you")
        readers = Readers(served)
        await readers.join(hub)
        await begun.wait()
        (answer,) = (await hub.turn("chat:1", "u")).answers
        await hub.delete("chat:1", answer.id)
        is_deleted.set()
        # the clients of the AI SDK and AG-UI show text that is gone, and a stream can take none back
        await served.until(lambda: len(hub.channel("chat:1").feeds) == 1)
        status = await hub.turn("chat:1", "u")
        assert (status.state, status.answers, status.is_deleted) == ("running", [], True)
        await readers.join(hub)
        gate.set()
        await readers.check(DELETED)
    async with adapters(url) as (hub, served):
        await hub.start()
        await Readers(served).check(DELETED)
        status = await hub.turn("chat:1", "u")
        assert (status.state, status.answers, status.is_deleted) == ("over", [], True)
        response = (await served.http.get(RESPONSE)).json()
        assert (response["status"], response["error"]["message"]) == ("failed", "the answer was deleted")


async def test_turn_with_another_answer_has_not_failed_for_those_that_join_later() -> None:
    async with adapters() as (hub, served):
        gate = asyncio.Event()

        @hub.agent("chat:*", name="bot")
        async def answers(turn: Turn) -> None:
            await answers_twice(turn)
            await gate.wait()

        await hub.create("chat:1", id="u", text="you")
        await served.until(lambda: len(hub.channel("chat:1").state.messages) == 3)
        follower = asyncio.ensure_future(served.http.get(STREAMS[2][1]))
        await served.until(lambda: hub.channel("chat:1").feeds)
        await hub.delete("chat:1", (await hub.turn("chat:1", "u")).answers[0].id)
        gate.set()
        ends = [line for line in (await follower).text.splitlines() if "response.completed" in line and "data" in line]
        assert len(ends) == 1
        assert "One." not in ends[0]
        await Readers(served).check(['"finish"', "RUN_FINISHED", "response.completed"])
        assert not (await hub.turn("chat:1", "u")).is_deleted


@pytest.mark.parametrize("is_asking", [False, True], ids=["silent", "asks"])
async def test_turn_that_is_cancelled_before_its_first_text_is_cancelled_for_each_reader(is_asking: bool) -> None:
    async with adapters() as (hub, served):
        gate, begun = asyncio.Event(), asyncio.Event()

        @hub.agent("chat:*", name="bot")
        async def asks(turn: Turn) -> None:
            try:
                if is_asking:
                    async with turn.reply() as message:
                        await message.part({"type": "tool", "call": "c", "name": "f", "input": "{}", "state": "called"})
                        begun.set()
                        await turn.ask("approve", {"call": "c"})
                begun.set()
                await asyncio.Event().wait()
            finally:
                with suppress(asyncio.CancelledError):
                    await gate.wait()

        await hub.create("chat:1", id="u", text="you", meta={OPTIONS_KEY: {}})
        await begun.wait()
        if is_asking:
            await served.until(
                lambda: any(one.sent.name == "approve" for one in hub.channel("chat:1").state.pending_commands())
            )
        readers = Readers(served)
        if not is_asking:
            await readers.join(hub)
        await hub.command("chat:1", "cancel", target="u")
        await readers.join(hub)  # between the cancel and the end
        gate.set()
        await readers.check(CANCELLED)


async def test_turn_whose_question_is_deleted_before_its_first_text_is_cancelled_for_its_readers() -> None:
    async with adapters() as (hub, served):

        @hub.agent("chat:*", name="bot")
        async def waits(turn: Turn) -> None:
            await asyncio.Event().wait()

        await hub.create("chat:1", id="u", text="you", meta={OPTIONS_KEY: {}})
        readers = Readers(served)
        await readers.join(hub)
        await hub.delete("chat:1", "u")
        await readers.check_joined(CANCELLED)
        for method, path, body in STREAMS:
            response = await served.http.request(method, path, json=body)
            is_openai = path.startswith("/v1/")  # whose API has 404 for a response that was deleted
            assert (response.status_code, "deleted" in response.text) == ((404, False) if is_openai else (410, True))


@pytest.mark.parametrize("has_answer", [False, True], ids=["silent", "interrupted"])
async def test_answer_of_a_turn_that_is_given_up_fails_once_for_each_reader(has_answer: bool) -> None:
    async with adapters() as (hub, served):
        await hub.start()
        hub.runtime.scheduler.register(Remote())
        await hub.create("chat:1", id="u", text="you", meta={OPTIONS_KEY: {}})
        await served.until(lambda: hub.channel("chat:1").state.messages["u"].is_taken)
        if has_answer:
            answer = CreateMessage(role="assistant", status="streaming", text="Hello", reply_to="u")
            await hub.ask("chat:1", "a", answer, SERVER)
            await hub.ask("chat:1", "a", FinishMessage(status="interrupted"), SERVER)
        readers = Readers(served)
        await readers.join(hub)
        await hub.ask("chat:1", "u", EndTurn(generation=1, confirmed=0, failure="f"), SERVER)
        ends = ['{"type":"error","errorText":"crashed"}', '"message":"crashed"', "response.failed"]
        for text in await readers.check(ends):
            assert sum(text.count(end) for end in ("errorText", "RUN_ERROR", "event: response.failed")) == 1, text
            assert text.count('"delta":"Hello"') == has_answer
