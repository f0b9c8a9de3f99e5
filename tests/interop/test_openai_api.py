"""The parts of OpenAI's API beside the stream of one response, with OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tenuto import Turn
from tenuto.core.requests import SERVER, CreateMessage, FinishMessage
from tenuto.interop.openai_items import Reference
from tests.interop.test_openai import ANSWER, Scene, scene_of


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with scene_of(models={"gpt-4o": "bot", "other/name": "bot", "gone": "nobody"}) as scene:
        scene.gate.set()
        yield scene


async def test_fixed_name_of_a_model_is_an_agent(scene: Scene) -> None:
    client = scene.client
    assert [one.id async for one in client.models.list()] == ["bot", "gpt-4o", "other/name"]
    assert [(await client.models.retrieve(name)).id for name in ("gpt-4o", "other/name")] == ["gpt-4o", "other/name"]
    for name in ("gone", "unknown"):
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(name)
    response = await client.responses.create(model="gpt-4o", input="you")
    assert (response.model, response.output_text) == ("gpt-4o", ANSWER)


async def test_error_of_a_failed_response_has_a_type(scene: Scene) -> None:
    async def fails(turn: Turn) -> None:
        raise RuntimeError

    scene.script = fails  # type: ignore[method-assign]
    body = (await scene.served.http.post("/v1/responses", json={"model": "bot", "input": "you"})).json()
    assert {name: body["error"][name] for name in ("type", "code")} == {"type": "server_error", "code": "server_error"}


async def answered_twice(scene: Scene) -> str:
    """Store a turn with an attempt that a crash has interrupted, and a complete one; return the id of the response."""
    await scene.hub.create("chat:1", id="u", text="you", starts_turn=False)
    for id, status, text in (("a1", "interrupted", "Hello to"), ("a2", "complete", "Hello to you")):
        usage: Any = {"usage": {"input_tokens": 3, "output_tokens": 2}}
        request = CreateMessage(role="assistant", status="streaming", text=text, reply_to="u", parent="u", meta=usage)
        await scene.hub.ask("chat:1", id, request, SERVER)
        await scene.hub.ask("chat:1", id, FinishMessage(status=status), SERVER)  # type: ignore[arg-type]
    return Reference("chat:1", "u").id()


async def test_response_after_a_crash_has_one_answer(scene: Scene) -> None:
    response = await scene.client.responses.retrieve(id := await answered_twice(scene))
    assert (response.status, response.output_text, len(response.output)) == ("completed", "Hello to you", 1)
    assert response.usage is not None
    assert response.usage.total_tokens == 10  # those of the answer that was cut, too
    events = await scene.events(id)
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "Hello to you"
    assert events[-1].response == response
    # a reader that was cut in the first answer has it as an item that is incomplete
    events = await scene.events(id, 5)
    assert [one.delta for one in events if one.type == "response.output_text.delta"] == ["llo to", "Hello to you"]
    done = [(one.output_index, one.item.status) for one in events if one.type == "response.output_item.done"]
    assert done == [(0, "incomplete"), (1, "completed")]
