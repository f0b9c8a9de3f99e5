"""`openai`: Responses and Chat Completions, raw and by the helpers."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI

from tenuto import Hub
from tenuto.core.errors import TenutoError
from tenuto.sources import ToolCall
from tests.sources.piping import broken, ended, failed, left, pipe_all
from tests.sources.provider import CUT, HOLD, Provider
from tests.sources.wires import (
    CHAT_USAGE,
    DONE,
    INPUT,
    PARTS,
    RESPONSES_USAGE,
    TEXT,
    THOUGHT,
    Responses,
    chat,
    chat_answer,
    chat_called,
    chat_end,
    chat_said,
    responses_answer,
    sse,
)

ASK = {"model": "gpt-test", "input": "Hi"}
CHAT = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hi"}]}
BLOCKS: list[list[Any]] = [
    [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": TEXT}],
    [{"type": "thinking", "thinking": THOUGHT[:3]}, {"type": "thinking", "thinking": [THOUGHT[3:]]}, TEXT],
]
META = {"model": "gpt-test", "finish_reason": "tool_calls"}
REPORTED = {"code": "server_error", "message": "key sk-123 is bad", "param": None}
ERRORS = [("error", REPORTED), ("response.failed", {"response": {"id": "resp_1", "error": REPORTED}})]
ERRORS += [("response.completed", {"response": {"id": "resp_1", "status": "failed", "error": REPORTED}})]


# Responses --------------------------------------------------------------------------------------------------------


async def test_a_response_becomes_parts_in_order(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    provider.will_say(responses_answer())
    stored, piped = await pipe_all(hub, await client.responses.create(**ASK, stream=True))
    assert (stored.status, stored.parts) == ("complete", PARTS)
    assert stored.meta == {**META, "usage": RESPONSES_USAGE}
    assert (piped.text, piped.finish_reason, piped.usage) == (TEXT, "tool_calls", RESPONSES_USAGE)
    assert piped.tool_calls == [ToolCall(call="call_1", name="weather", input=INPUT, part=2)]
    assert piped.tool_calls[0].arguments == {"city": "Oslo"}


async def test_interleaved_parts_get_their_own_text(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    wire = Responses()
    thought, said, called = wire.thought(), wire.said(1, ("Hello", " world")), wire.called()
    mixed = [thought[0], thought[1], said[0], said[1], called[0]]
    mixed += [thought[2], said[2], called[1], thought[3], said[3], called[2], called[3]]
    provider.will_say([*wire.begin(), *mixed, called[-1], *wire.completed()])
    stored, _ = await pipe_all(hub, await client.responses.create(**ASK, stream=True))
    assert stored.parts == [PARTS[0], {"type": "text", "text": "Hello world"}, PARTS[2]]


async def test_tool_that_the_provider_runs_is_done(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    wire = Responses()
    item = {"id": "ws_1", "type": "web_search_call", "status": "in_progress"}
    action = {"type": "search", "query": "Oslo", "queries": ["Oslo"]}
    note = {"type": "url_citation", "url": "https://example.org/", "title": "Oslo", "start_index": 0, "end_index": 4}
    where = {"item_id": "msg_1", "output_index": 1, "content_index": 0, "annotation_index": 0}
    events = [*wire.begin(), wire.event("response.output_item.added", output_index=0, item=item)]
    events += [wire.event("response.web_search_call.searching", output_index=0, item_id="ws_1")]
    done = {**item, "status": "completed", "action": action}
    events += [wire.event("response.output_item.done", output_index=0, item=done), *wire.said(1, ("Rain",))]
    events += [wire.event("response.output_text.annotation.added", **where, annotation=note)]
    provider.will_say([*events, *wire.completed()])
    stored, piped = await pipe_all(hub, await client.responses.create(**ASK, stream=True))
    search, said, source = stored.parts
    assert (search["name"], search["state"], piped.tool_calls) == ("web_search", "done", [])
    assert said["text"] == "Rain"
    assert source == {"type": "source", "url": "https://example.org/", "title": "Oslo"}


async def test_other_calls_of_a_response(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    search, own, given = {"type": "tool_search_call", "arguments": {"a": 1}}, {"call_id": "c"}, '{"a":1}'
    calls: list[tuple[list[dict[str, Any]], tuple[str, str, str]]] = [
        ([{**search, "execution": "server"}], ("i", given, "done")),
        ([{**search, "execution": "client", **own}], ("c", given, "called")),
        ([{"type": "image_generation_call", "status": "failed"}], ("i", "", "error")),
        ([{"type": "apply_patch_call", "operation": {"a": 1}, **own}], ("c", given, "called")),
    ]
    for kind in ("computer_call", "local_shell_call", "shell_call"):
        calls.append(([{"type": kind, "action": {"a": 1}, **own}], ("c", given, "called")))
    calls.append(([*calls[-1][0], {"type": "shell_call_output", "output": [], **own}], ("c", given, "done")))
    for items, part in calls:
        wire, base = Responses(), {"id": "i", "status": "completed"}
        done = [wire.event("response.output_item.done", output_index=n, item=base | one) for n, one in enumerate(items)]
        provider.will_say([*wire.begin(), *done, *wire.completed()])
        stored, piped = await pipe_all(hub, client.responses.create(**ASK, stream=True))
        assert [(one["call"], one["input"], one["state"]) for one in stored.parts] == [part]
        assert (len(piped.tool_calls), piped.finish_reason) == {"called": (1, "tool_calls")}.get(part[2], (0, "stop"))


@pytest.mark.parametrize("kind", ["incomplete", "completed"])  # the second of vLLM
async def test_a_response_cut_short_by_its_limit_is_complete(
    hub: Hub, provider: Provider, client: AsyncOpenAI, kind: str
) -> None:
    wire = Responses()
    (end,) = wire.completed("incomplete", incomplete_details={"reason": "max_output_tokens"})
    end = end.replace(b"response.incomplete", f"response.{kind}".encode())
    provider.will_say([*wire.begin(), *wire.said(0, ("Hello",)), end])
    stored, piped = await pipe_all(hub, await client.responses.create(**ASK, stream=True))
    assert (stored.status, piped.finish_reason, piped.usage) == ("complete", "length", RESPONSES_USAGE)


@pytest.mark.parametrize(("kind", "fields"), ERRORS)
async def test_an_error_event_fails_with_public_words(
    hub: Hub, provider: Provider, client: AsyncOpenAI, kind: str, fields: dict[str, object]
) -> None:
    wire = Responses()
    provider.will_say([*wire.begin(), *wire.said(0, ("Hello",)), wire.event(kind, **fields)])
    text, words = await failed(hub, await client.responses.create(**ASK, stream=True))
    assert (text, words) == ("Hello", "the model's provider reported an error: server_error")


async def test_a_request_that_is_refused_is_an_upstream_error(
    hub: Hub, provider: Provider, client: AsyncOpenAI
) -> None:
    provider.status = 401
    provider.will_say([b'{"error": {"message": "Incorrect API key: sk-123", "code": "invalid_api_key"}}'])
    text, words = await failed(hub, client.responses.stream(**ASK))
    assert (text, words) == ("", "the model's provider reported an error: invalid_api_key")


@pytest.mark.parametrize("is_helper", [False, True])
async def test_provider_sees_the_early_end_of_a_response(
    hub: Hub, provider: Provider, client: AsyncOpenAI, is_helper: bool
) -> None:
    wire = Responses()
    provider.will_say([*wire.begin(), *wire.said(0, ("Hello",)), HOLD])
    stream = client.responses.stream(**ASK) if is_helper else client.responses.create(**ASK, stream=True)
    assert (await left(hub, provider, stream)).text == "Hello"


# Chat Completions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, *BLOCKS])
async def test_a_completion_becomes_parts_in_order(
    hub: Hub, provider: Provider, client: AsyncOpenAI, blocks: list[Any] | None
) -> None:
    in_blocks = [chat({"content": blocks}), *chat_called(), *chat_end("tool_calls")]
    provider.will_say(in_blocks if blocks else chat_answer())
    stored, piped = await pipe_all(hub, await client.chat.completions.create(**CHAT, stream=True))
    assert (stored.status, stored.parts) == ("complete", PARTS)
    assert stored.meta == {**META, "usage": CHAT_USAGE}
    assert piped.tool_calls == [ToolCall(call="call_1", name="weather", input=INPUT, part=2)]


async def test_helper_events_of_completions_are_not_written_twice(
    hub: Hub, provider: Provider, client: AsyncOpenAI
) -> None:
    provider.will_say([*chat_said("Hello ", "world"), *chat_end()])
    stored, piped = await pipe_all(hub, client.chat.completions.stream(**CHAT))
    assert (stored.text, piped.finish_reason, piped.usage) == ("Hello world", "stop", CHAT_USAGE)
    provider.will_say([sse({"choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}]}), DONE])
    old, _ = await pipe_all(hub, client.completions.create(model="gpt-test", prompt="Hi", stream=True))  # without chat
    assert (old.status, old.text) == ("complete", "Hello")


async def test_calls_with_one_index_and_two_ids_are_two(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    def call(id: str | None, **function: str) -> bytes:
        return chat({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}]})

    late = [call("call_b", arguments=""), call(None, name="b"), call(None, arguments="{}")]  # the name behind the id
    provider.will_say([call("call_a", name="a", arguments="{}"), *late, *chat_end("tool_calls")])
    _, piped = await pipe_all(hub, await client.chat.completions.create(**CHAT, stream=True))
    assert [(one.call, one.name, one.input) for one in piped.tool_calls] == [(f"call_{n}", n, "{}") for n in "ab"]


@pytest.mark.parametrize("end", [[], [DONE], [CUT]])
async def test_a_completion_without_a_finish_reason_was_a_crash(
    hub: Hub, provider: Provider, client: AsyncOpenAI, end: list[bytes | str]
) -> None:
    provider.will_say([*chat_said("Hello"), *end])
    assert await ended(hub, await client.chat.completions.create(**CHAT, stream=True)) == "Hello"


async def test_an_error_among_chunks_fails_with_public_words(hub: Hub, provider: Provider, client: AsyncOpenAI) -> None:
    provider.will_say([*chat_said("Hello"), sse({"error": {"message": "sk-123", "type": "server_error"}})])
    text, words = await failed(hub, await client.chat.completions.create(**CHAT, stream=True))
    assert (text, words) == ("Hello", "the model's provider reported an error: server_error")


# Both -------------------------------------------------------------------------------------------------------------

GARBAGE = [
    *(chat({"content": one}, "stop") for one in ([None], [5], [["x"]], [{"thinking": [5]}], [{"thinking": {}}], {})),
    b"data: {broken\n\n",
    b"data: \xff\xfe\n\n",
    sse({"type": "response.output_text.delta", "delta": 5, "choices": [{"index": 0, "delta": {"content": 5}}]}),
    sse({"type": "response.output_text.delta", "delta": {}, "choices": [{"index": "x", "delta": {}}]}),
    sse({"type": "response.output_item.added", "item": {"type": "function_call"}, "choices": [5, {"delta": [5]}]}),
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("source", ["openai-chat", "openai-responses"])
async def test_malformed_events_fail_or_are_ignored(
    hub: Hub, provider: Provider, client: AsyncOpenAI, garbage: bytes, source: str
) -> None:
    provider.will_say([garbage])
    asked = {**CHAT, "stream": True} if source == "openai-chat" else {**ASK, "stream": True}
    create: Any = client.chat.completions.create if source == "openai-chat" else client.responses.create
    stored, error = await broken(hub, create(**asked), TenutoError, source=source)
    assert error.code in ("upstream_error", "upstream_ended")
    assert stored.text == ""
