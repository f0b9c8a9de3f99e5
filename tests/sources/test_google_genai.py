"""`google-genai`: `generate_content_stream`, async and blocking."""

from __future__ import annotations

from typing import Any

import pytest
from google import genai
from google.genai import types

from tenuto import Hub
from tenuto.sources import ToolCall
from tests.sources.piping import ended, failed, pipe_all
from tests.sources.provider import CUT, Provider
from tests.sources.wires import GEMINI_USAGE, PARTS, TEXT, gemini, gemini_answer, sse

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

    call = gemini({"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}, finish="STOP", usage=True)
    provider.will_say([call], [gemini({"text": "Rain."}, finish="STOP", usage=True)])
    config = types.GenerateContentConfig(tools=[weather])
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK, config=config))
    tool, text = stored.parts
    assert (tool["name"], tool["state"], tool["output"]) == ("weather", "done", {"result": "rain in Oslo"})
    assert (text, piped.finish_reason, piped.tool_calls) == ({"type": "text", "text": "Rain."}, "stop", [])


async def test_code_files_and_sources_have_their_parts(hub: Hub, provider: Provider, client: genai.Client) -> None:
    web = {"groundingChunks": [{"web": {"uri": "https://example.org/", "title": "Oslo"}}]}
    provider.will_say(
        [
            gemini({"executableCode": {"language": "PYTHON", "code": "1+1"}}),
            gemini({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}}),
            gemini({"inlineData": {"mimeType": "image/png", "data": "aGk="}}),
            gemini({"text": "Two"}, finish="MAX_TOKENS", groundingMetadata=web),
        ]
    )
    stored, piped = await pipe_all(hub, await client.aio.models.generate_content_stream(**ASK))
    code, file, text, source = stored.parts
    assert (code["name"], code["input"], code["output"], code["state"]) == ("code_execution", "1+1", "2", "done")
    assert file == {"type": "file", "media_type": "image/png", "url": "data:image/png;base64,aGk="}
    assert (text["text"], source["url"], piped.finish_reason) == ("Two", "https://example.org/", "length")


async def test_a_prompt_that_is_blocked_ends_with_its_reason(
    hub: Hub, provider: Provider, client: genai.Client
) -> None:
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


async def test_an_error_among_chunks_fails_with_public_words(
    hub: Hub, provider: Provider, client: genai.Client
) -> None:
    error = {"error": {"code": 503, "message": "key sk-123", "status": "UNAVAILABLE"}}
    provider.will_say([gemini({"text": "Hello"}), sse(error)])
    text, words = await failed(hub, await client.aio.models.generate_content_stream(**ASK))
    assert (text, words) == ("Hello", "the model's provider reported an error: UNAVAILABLE")
