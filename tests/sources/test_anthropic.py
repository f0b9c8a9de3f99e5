"""`anthropic`: the raw events and the helper."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import AsyncAnthropic
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

from tenuto import Hub
from tenuto.core.errors import TenutoError
from tenuto.sources import ToolCall
from tests.sources.piping import broken, ended, left, pipe_all
from tests.sources.provider import CUT, HOLD, Provider
from tests.sources.wires import (
    CLAUDE_USAGE,
    INPUT,
    PARTS,
    TEXT,
    claude,
    claude_answer,
    claude_begin,
    claude_block,
    claude_end,
    claude_said,
    claude_thought,
)

ASK: dict[str, Any] = {"model": "claude-test", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def client(provider: Provider) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=provider.url, api_key="sk-none", max_retries=0)


@pytest.fixture(params=["raw", "helper"])
def stream(client: AsyncAnthropic, request: pytest.FixtureRequest) -> Any:
    """A stream of each kind, which begins when it is read."""
    return client.messages.stream(**ASK) if request.param == "helper" else client.messages.create(**ASK, stream=True)


async def test_a_message_becomes_parts_in_order(hub: Hub, provider: Provider, stream: Any) -> None:
    """Also the events of the helper, which come beside those of the stream."""
    provider.will_say(claude_answer())
    stored, piped = await pipe_all(hub, stream)
    assert (stored.status, stored.parts) == ("complete", PARTS)
    assert stored.meta == {"model": "claude-test", "finish_reason": "tool_calls", "usage": CLAUDE_USAGE}
    assert (piped.text, piped.tool_calls) == (TEXT, [ToolCall("call_1", "weather", INPUT, 2)])


@pytest.mark.parametrize("order", ["AaBbDE", "ABabDE", "ABTabtDE", "AaBDbE", "AaBbE"])
@pytest.mark.parametrize("reason", ["max_tokens", "tool_use"])
async def test_call_at_which_the_limit_ended_a_message_is_not_called(
    hub: Hub, provider: Provider, stream: Any, reason: str, order: str
) -> None:
    """A and B: calls; T: a text; small letters: their stops; D and E: `message_delta` and `message_stop`."""
    uses = [claude_block(n, {"type": "tool_use", "id": "AB"[n], "name": "do", "input": {}}) for n in (0, 1)]
    wire = [*uses[0], *uses[1], *claude_block(2, {"type": "text", "text": ""}), *claude_end(reason)]
    provider.will_say([*claude_begin(), *(wire["AaBbTtDE".index(one)] for one in order)])
    _, piped = await pipe_all(hub, stream)
    is_cut = reason == "max_tokens" and "D" in order and "T" not in order
    assert [call.call for call in piped.tool_calls] == (["A"] if is_cut else ["A", "B"])


async def test_a_search_of_the_providers_is_done_with_its_results_and_sources(
    hub: Hub, provider: Provider, client: AsyncAnthropic
) -> None:
    use = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}}
    page = {"type": "web_search_result", "url": "https://example.org/", "title": "Oslo", "page_age": None}
    content = [{**page, "encrypted_content": "x" * 1000}]
    result = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": content}
    cited = {**page, "type": "web_search_result_location", "cited_text": "Rain", "encrypted_index": "x"}
    said = ({"type": "text_delta", "text": "Rain"}, {"type": "citations_delta", "citation": cited})
    blocks = [*claude_block(0, use, {"type": "input_json_delta", "partial_json": '{"query": "Oslo"}'})]
    blocks += [*claude_block(1, result), *claude_block(2, {"type": "text", "text": ""}, *said)]
    provider.will_say([*claude_begin(), *blocks, *claude_end()])
    stored, piped = await pipe_all(hub, await client.messages.create(**ASK, stream=True))
    search, text, source = stored.parts
    assert (search["name"], search["input"], search["state"]) == ("web_search", '{"query": "Oslo"}', "done")
    assert [(one["url"], one["title"]) for one in search["output"]] == [("https://example.org/", "Oslo")]
    assert "encrypted_content" not in search["output"][0]
    assert (text["text"], piped.tool_calls) == ("Rain", [])
    assert source == {"type": "source", "url": "https://example.org/", "title": "Oslo"}


@pytest.mark.parametrize("end", [[], [CUT]])
async def test_a_message_without_its_stop_was_a_crash(
    hub: Hub, provider: Provider, stream: Any, end: list[bytes | str]
) -> None:
    provider.will_say([*claude_begin(), *claude_thought(), *claude_said("Hello"), *end])
    assert await ended(hub, stream) == "Hello"


async def test_pydantic_ai_needs_the_end_of_each_piece(hub: Hub, provider: Provider, client: AsyncAnthropic) -> None:
    agent = Agent(AnthropicModel("claude-test", provider=AnthropicProvider(anthropic_client=client)))
    first = [*claude_begin(), *claude_said("Hello", place=0), *claude_end("pause_turn")]
    provider.will_say(first, [*claude_begin(), *claude_said(" world", place=0)])
    assert await ended(hub, agent.run_stream_events("Hi")) == "Hello world"


async def test_provider_sees_the_early_end(hub: Hub, provider: Provider, stream: Any) -> None:
    provider.will_say([*claude_begin(), *claude_said("Hello", place=0), HOLD])
    assert (await left(hub, provider, stream)).text == "Hello"


GARBAGE = [
    b"event: message_start\ndata: {broken\n\n",
    claude("content_block_delta", index=0, delta={"type": "text_delta", "text": 5}),
    claude("content_block_delta", index=7, delta={"type": "input_json_delta", "partial_json": "{"}),
    claude("content_block_delta", index="x", delta={"type": "text_delta", "text": "x"}),
    claude("content_block_start", index=0, content_block={"type": "tool_use", "id": 5}),
    claude("content_block_start", index=0, content_block=[1, 2]),
    claude("message_delta", delta=5, usage="none"),
    claude("tomorrow", index=0),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_malformed_events_fail_or_are_ignored(hub: Hub, provider: Provider, stream: Any, garbage: bytes) -> None:
    provider.will_say([*claude_begin(), garbage])
    stored, error = await broken(hub, stream, TenutoError)
    assert error.code in ("upstream_error", "upstream_ended")
    assert stored.text == ""
