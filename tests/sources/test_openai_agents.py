"""`openai-agents`: a streamed run, over Responses and over Chat Completions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from agents.exceptions import ModelBehaviorError
from openai import AsyncOpenAI

from tenuto import Hub
from tenuto.core.errors import TenutoError
from tenuto.sources.reading import UpstreamError, translated
from tests.sources.piping import SEEN_WITHIN_S, broken, ended, pipe_all, tried_again
from tests.sources.provider import CUT, HOLD, Provider
from tests.sources.wires import INPUT, PARTS, RESPONSES_USAGE, TEXT, Responses, chat_called, chat_end, chat_said


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


@pytest.fixture
def agent(client: AsyncOpenAI) -> Agent[Any]:
    return Agent(name="test", model=OpenAIResponsesModel("gpt-test", client), tools=[weather])


def called() -> list[bytes]:
    wire = Responses()
    return [*wire.begin(), *wire.thought(), *wire.called(1), *wire.completed(output=[wire.call(INPUT)])]


def answered(*pieces: str) -> list[bytes]:
    wire = Responses("resp_2")
    said = wire.said(0, pieces or ("Rain in ", "Oslo"))
    content = [{"type": "output_text", "text": "Rain in Oslo", "annotations": []}]
    output = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return [*wire.begin(), *said, *wire.completed(output=[output])]


async def test_a_run_with_a_tool_becomes_parts_in_order(hub: Hub, provider: Provider, agent: Agent[Any]) -> None:
    provider.will_say(called(), answered())
    stored, piped = await pipe_all(hub, Runner.run_streamed(agent, "Hi"))
    assert stored.status == "complete"
    tool = {**PARTS[2], "state": "done", "output": "rain in Oslo"}
    assert stored.parts == [PARTS[0], tool, {"type": "text", "text": "Rain in Oslo"}]
    assert stored.meta["usage"] == {name: 2 * count for name, count in RESPONSES_USAGE.items()}
    assert (piped.finish_reason, piped.tool_calls) == ("stop", [])


async def test_events_of_a_run_become_the_same_parts(hub: Hub, provider: Provider, agent: Agent[Any]) -> None:
    provider.will_say(answered("Hello \ud83d", "\ude00, world"))
    stored, _ = await pipe_all(hub, Runner.run_streamed(agent, "Hi").stream_events())
    assert stored.text == TEXT


async def test_a_run_over_chat_completions(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    model, with_usage = OpenAIChatCompletionsModel("gpt-test", client), ModelSettings(include_usage=True)
    agent = Agent(name="test", model=model, model_settings=with_usage, tools=[weather])
    provider.will_say([*chat_called(), *chat_end("tool_calls")], [*chat_said("Rain in ", "Oslo"), *chat_end()])
    stored, piped = await pipe_all(hub, Runner.run_streamed(agent, "Hi"))
    tool, text = stored.parts
    assert (tool["input"], tool["state"], tool["output"]) == (INPUT, "done", "rain in Oslo")
    assert (text["text"], piped.usage["output_tokens"]) == ("Rain in Oslo", 14)


@pytest.mark.parametrize("end", [[], [CUT]])
async def test_a_run_whose_response_breaks_off_was_a_crash(
    hub: Hub, provider: Provider, agent: Agent[Any], end: list[bytes | str]
) -> None:
    wire = Responses()
    provider.will_say([*wire.begin(), *wire.said(0, ("Hello",)), *end])
    assert await ended(hub, Runner.run_streamed(agent, "Hi")) == "Hello"


async def test_cancelled_run_ends_at_the_provider(hub: Hub, provider: Provider, agent: Agent[Any]) -> None:
    wire = Responses()
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    odd = wire.event("response.output_text.delta", **where, delta=5, logprobs=[])
    provider.will_say([*wire.begin(), *wire.said(0, ("Hello",)), odd, HOLD])
    stored, error = await broken(hub, Runner.run_streamed(agent, "Hi"), TenutoError)
    assert (stored.text, error.code) == ("Hello", "upstream_error")
    async with asyncio.timeout(SEEN_WITHIN_S):
        await provider.is_left.wait()


async def test_a_response_that_ends_before_its_first_event_is_made_again(
    hub: Hub, provider: Provider, agent: Agent[Any]
) -> None:
    await tried_again(hub, provider, lambda: Runner.run_streamed(agent, "Hi"), answered(TEXT))
    mistake = ModelBehaviorError("Tool weather not found in agent test")
    assert isinstance(translated(mistake, is_of_sdk=True), UpstreamError)
