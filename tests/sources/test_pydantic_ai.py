"""`pydantic-ai`: its ways to stream a run, over OpenAI's wire, and a model of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from tenuto import Hub
from tests.sources.piping import ended, pipe_all, tried_again
from tests.sources.provider import CUT, Provider
from tests.sources.wires import INPUT, PARTS, TEXT, chat, chat_call, chat_called, chat_end, chat_said

WAYS = ["events", "stream", "iter"]
ALL_WAYS = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(params=[None, {"openai_chat_streaming_requires_finish_reason": True}])
def agent(client: AsyncOpenAI, request: pytest.FixtureRequest) -> Agent[None, str]:
    provider = OpenAIProvider(openai_client=client)
    agent = Agent(OpenAIChatModel("gpt-test", provider=provider, profile=request.param))

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        if city == "?":
            raise ModelRetry("which city?")
        return f"rain in {city}"

    return agent


def run(agent: Agent[None, str], way: str) -> Any:
    ways: dict[str, Any] = {"events": agent.run_stream_events, "stream": agent.run_stream, "iter": agent.iter}
    return wrapped(agent) if way == "wrapped" else ways[way]("Hi")


async def wrapped(agent: Agent[None, str]) -> AsyncIterator[object]:
    async with agent.run_stream_events("Hi") as events:
        async for event in events:
            yield event


@ALL_WAYS
async def test_a_run_with_a_tool_becomes_parts_in_order(
    hub: Hub, provider: Provider, agent: Agent[None, str], way: str
) -> None:
    said = [*map(chat, ({"reasoning_content": "Let me "}, {"reasoning_content": "think."}))]
    said += [*chat_said("Rain in ", "Oslo"), *chat_end()]
    provider.will_say(*[[*chat_called(), *chat_end("tool_calls")]] * 2, said)  # it calls twice by the same id
    stored, piped = await pipe_all(hub, run(agent, way))
    tool, again, thought, text = stored.parts
    assert (tool["call"], tool["input"], tool["state"], again) == ("call_1", INPUT, "done", tool)
    assert (tool["output"], text["text"], stored.status) == ("rain in Oslo", "Rain in Oslo", "complete")
    assert (thought, piped.finish_reason, piped.tool_calls) == (PARTS[0], "stop", [])
    assert (stored.meta["model"], piped.usage["output_tokens"]) == ("gpt-test", 21)


async def test_a_tool_that_asks_to_be_called_again_is_in_error(
    hub: Hub, provider: Provider, agent: Agent[None, str]
) -> None:
    called = [chat_call('{"city": "?"}', id="call_1", type="function"), *chat_end("tool_calls")]
    provider.will_say(called, [*chat_said("No"), *chat_end("a server's own")])
    stored, piped = await pipe_all(hub, run(agent, "events"))
    assert (stored.parts[0]["state"], stored.text, piped.finish_reason) == ("error", "No", "a server's own")


@ALL_WAYS
async def test_a_model_without_a_provider_needs_no_finish_reason(hub: Hub, way: str) -> None:
    agent = Agent(TestModel(custom_output_text="Hello world"))
    stored, _ = await pipe_all(hub, run(agent, way))
    assert (stored.status, stored.text) == ("complete", "Hello world")


@pytest.mark.parametrize(
    ("way", "end"), [*((way, end) for way in (*WAYS, "wrapped") for end in ([], chat_called())), ("events", [CUT])]
)
async def test_a_run_whose_response_breaks_off_was_a_crash(
    hub: Hub, provider: Provider, agent: Agent[None, str], way: str, end: list[bytes | str]
) -> None:
    """Also if the SDK carries out the call in that response: a generator around the events shows it at the end."""
    provider.will_say([*chat_said("Hello"), *end], [*chat_said(" world"), *chat_end()])
    assert await ended(hub, run(agent, way)) in ("Hello", "Hello world" if way == "wrapped" else "Hello")


@ALL_WAYS
async def test_a_response_that_ends_before_its_first_event_is_made_again(
    hub: Hub, provider: Provider, agent: Agent[None, str], way: str
) -> None:
    await tried_again(hub, provider, lambda: run(agent, way), [*chat_said(TEXT), *chat_end()])
