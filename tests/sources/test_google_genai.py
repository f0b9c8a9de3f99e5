"""`google-genai`: `generate_content_stream`, async and blocking, and the events of the Interactions API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google import genai
from google.genai import types

from tenuto import Hub
from tenuto.sources import ToolCall
from tests.sources.piping import ended, failed, pipe_all
from tests.sources.provider import CUT, Provider
from tests.sources.wires import (
    GEMINI_USAGE,
    PARTS,
    TEXT,
    gemini,
    gemini_answer,
    interaction,
    interaction_answer,
    interaction_state,
    interaction_step,
    sse,
)

ASK: dict[str, Any] = {"model": "gemini-test", "contents": "Hi"}
CALLED = {**PARTS[2], "input": '{"city":"Oslo"}'}  # Google sends an object, which is written as compact JSON


@pytest.fixture
def client(provider: Provider) -> genai.Client:
    return genai.Client(api_key="none", http_options=types.HttpOptions(base_url=provider.url))


async def test_an_answer_becomes_parts_in_order(hub: Hub, provider: Provider, client: genai.Client) -> None:
    provider.will_say(gemini_answer())
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK))
    assert (stored.status, stored.parts) == ("complete", [*PARTS[:2], CALLED])
    assert stored.meta == {"model": "gemini-test", "finish_reason": "tool_calls", "usage": GEMINI_USAGE}
    assert (piped.text, piped.tool_calls) == (TEXT, [ToolCall("call_1", "weather", '{"city":"Oslo"}', 2)])


async def test_a_function_that_the_sdk_calls_itself_is_done(hub: Hub, provider: Provider, client: genai.Client) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    call = {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}
    said = [gemini({"text": "Rain."}, finish="STOP", usage=True).replace(b'"r1"', b'"r2"')]
    provider.will_say([gemini(call, finish="STOP", usage=True)], said, [gemini(call)], said)  # the second call is cut
    config = types.GenerateContentConfig(tools=[weather])
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK, config=config))
    tool, text = stored.parts
    assert (tool["name"], tool["state"], tool["output"]) == ("weather", "done", {"result": "rain in Oslo"})
    assert (text, piped.finish_reason, piped.tool_calls) == ({"type": "text", "text": "Rain."}, "stop", [])
    assert await ended(hub, await client.aio.models.generate_content_stream(**ASK, config=config)) == ""


async def test_code_files_and_sources_have_their_parts(hub: Hub, provider: Provider, client: genai.Client) -> None:
    web = {"groundingChunks": [{"web": {"uri": "https://example.org/", "title": "Oslo"}}]}
    ran = [gemini({"executableCode": {"language": "PYTHON", "code": "1+1"}})]
    ran += [gemini({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}})]
    drawn = gemini({"inlineData": {"mimeType": "image/png", "data": "aGk="}})
    provider.will_say([*ran, drawn, gemini({"text": "Two"}, finish="MAX_TOKENS", groundingMetadata=web)])
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK))
    code, file, text, source = stored.parts
    assert (code["name"], code["input"], code["output"], code["state"]) == ("code_execution", "1+1", "2", "done")
    assert file == {"type": "file", "media_type": "image/png", "url": "data:image/png;base64,aGk="}
    assert (text["text"], source["url"], piped.finish_reason) == ("Two", "https://example.org/", "length")


async def test_prompt_that_is_blocked_ends_with_its_reason(hub: Hub, provider: Provider, client: genai.Client) -> None:
    provider.will_say([sse({"promptFeedback": {"blockReason": "SAFETY"}})])
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK))
    assert (stored.status, stored.text, piped.finish_reason) == ("complete", "", "content_filter")


@pytest.mark.parametrize("end", [[], [CUT]])
@pytest.mark.parametrize("is_blocking", [False, True])
async def test_an_answer_without_a_finish_reason_was_a_crash(
    hub: Hub, provider: Provider, client: genai.Client, end: list[bytes | str], is_blocking: bool
) -> None:
    provider.will_say([gemini({"text": "Hello"}), *end])
    models = client.models if is_blocking else client.aio.models
    assert await ended(hub, models.generate_content_stream(**ASK)) == "Hello"


async def test_an_error_among_chunks_has_public_words(hub: Hub, provider: Provider, client: genai.Client) -> None:
    error = {"error": {"code": 503, "message": "key sk-123", "status": "UNAVAILABLE"}}
    provider.will_say([gemini({"text": "Hello"}), sse(error)])
    text, words = await failed(hub, await client.aio.models.generate_content_stream(**ASK))
    assert (text, words) == ("Hello", "the model's provider reported an error: UNAVAILABLE")


# -- the Interactions API ----------------------------------------------------------------------------------------------

INTERACT: dict[str, Any] = {"model": "gemini-test", "input": "Hi", "stream": True}


async def test_interaction_becomes_parts_in_order(hub: Hub, provider: Provider, client: genai.Client) -> None:
    provider.will_say(interaction_answer())
    stored, piped = await pipe_all(hub, client.aio.interactions.create(**INTERACT))
    assert (stored.status, stored.parts) == ("complete", PARTS)
    assert stored.meta == {"model": "gemini-test", "finish_reason": "tool_calls", "usage": GEMINI_USAGE}
    assert (piped.text, [call.arguments for call in piped.tool_calls]) == (TEXT, [{"city": "Oslo"}])


async def test_tools_of_google_files_and_sources_of_an_interaction(
    hub: Hub, provider: Provider, client: genai.Client
) -> None:
    search = {"type": "google_search_call", "id": "s1", "arguments": {}}
    found = {"type": "google_search_result", "call_id": "s1", "result": []}
    tool = {"type": "mcp_server_tool_call", "id": "m1", "name": "look", "server_name": "b", "arguments": {"a": 1}}
    cited = {"type": "url_citation", "url": "https://a.example", "title": "A"}
    said: list[dict[str, Any]] = [
        {"type": "text", "text": "See "},
        {"type": "image", "mime_type": "image/png", "data": "aGk="},
        {"type": "audio", "mime_type": "audio/wav", "data": "aGk="},
        {"type": "audio", "data": "aA=="},
        {"type": "document", "uri": "https://b.example/d.pdf", "mime_type": "application/pdf"},
        {"type": "text", "text": "the"},
        {"type": "text", "text": " picture."},
        {"type": "text_annotation_delta", "annotations": [cited]},
        {"type": "of the future", "text": "?"},
    ]
    whole = interaction(
        ("interaction.created", {"interaction": interaction_state("in_progress")}),
        *interaction_step(0, {"type": "user_input", "content": [{"type": "text", "text": "Hi"}]}),
        *interaction_step(1, search, {"type": "google_search_call", "arguments": {"queries": ["q"]}}),
        *interaction_step(2, found, {"type": "google_search_result", "result": [{"search_suggestions": "x"}]}),
        *interaction_step(3, tool),
        *interaction_step(4, {"type": "mcp_server_tool_result", "call_id": "m1", "result": "no", "is_error": True}),
        *interaction_step(5, {"type": "model_output"}, *said),
        ("interaction.completed", {"interaction": interaction_state("incomplete")}),
    )
    provider.will_say(whole)
    stored, piped = await pipe_all(hub, client.aio.interactions.create(**INTERACT))
    looked, worked, *rest = stored.parts
    assert (looked["name"], looked["input"], looked["state"]) == ("google_search", '{"queries":["q"]}', "done")
    assert looked["output"] == [{"search_suggestions": "x"}]
    assert (worked["name"], worked["input"], worked["state"], worked["output"]) == ("look", '{"a":1}', "error", "no")
    assert rest == [
        {"type": "text", "text": "See "},
        {"type": "file", "media_type": "image/png", "url": "data:image/png;base64,aGk="},
        {"type": "file", "media_type": "audio/wav", "url": "data:audio/wav;base64,aGlo"},
        {"type": "file", "media_type": "application/pdf", "url": "https://b.example/d.pdf"},
        {"type": "text", "text": "the picture."},
        {"type": "source", "url": "https://a.example", "title": "A"},
    ]
    assert (piped.finish_reason, piped.tool_calls) == ("length", [])


@pytest.mark.parametrize("is_blocking", [False, True])
@pytest.mark.parametrize("end", [[], [CUT], ["cancelled"]])
async def test_interaction_without_its_end_was_a_crash(
    hub: Hub, provider: Provider, client: genai.Client, end: list[bytes | str], is_blocking: bool
) -> None:
    if end == ["cancelled"]:
        end = list(interaction(("interaction.completed", {"interaction": interaction_state("cancelled")})))
    provider.will_say([*interaction_answer()[:9], *end])
    blocking = lambda: client.interactions.create(**INTERACT)  # noqa: E731
    stream = asyncio.to_thread(blocking) if is_blocking else client.aio.interactions.create(**INTERACT)
    assert await ended(hub, stream) == TEXT[:7]


@pytest.mark.parametrize(
    "event",
    [
        ("error", {"error": {"code": "overloaded", "message": "key sk-123"}}),
        ("interaction.completed", {"interaction": interaction_state("failed", errors=[{"code": "overloaded"}])}),
    ],
)
async def test_interaction_that_failed_has_public_words(
    hub: Hub, provider: Provider, client: genai.Client, event: tuple[str, dict[str, Any]]
) -> None:
    provider.will_say([*interaction_answer()[:9], *interaction(event)])
    text, words = await failed(hub, client.aio.interactions.create(**INTERACT))
    assert (text, words) == (TEXT[:7], "the model's provider reported an error: overloaded")
