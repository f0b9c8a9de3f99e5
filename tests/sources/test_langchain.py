"""LangChain and LangGraph: chat models over OpenAI's wire, their events, and graphs around them."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_openai import ChatOpenAI
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph

from tenuto import Hub
from tenuto.core.errors import LocalError
from tests.sources.piping import broken, ended, one_by_one, pipe_all, tried_again
from tests.sources.provider import CUT, Provider
from tests.sources.wires import (
    CHAT_USAGE,
    INPUT,
    PARTS,
    RESPONSES_USAGE,
    TEXT,
    Responses,
    chat_answer,
    chat_called,
    chat_end,
    chat_said,
)


def chat_model(provider: Provider, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="gpt-test", base_url=f"{provider.url}/v1", api_key="sk-none", max_retries=0, stream_usage=True, **fields
    )


@pytest.fixture
def model(provider: Provider) -> ChatOpenAI:
    return chat_model(provider)


# LangChain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "options"), [("astream", {}), ("astream_events", {"version": "v2"})])
async def test_a_model_becomes_parts_in_order(
    hub: Hub, provider: Provider, model: ChatOpenAI, way: str, options: dict[str, Any]
) -> None:
    provider.will_say(chat_answer(halves=False, thought=False))
    stored, piped = await pipe_all(hub, getattr(model, way)("Hi", **options))
    assert (stored.status, stored.parts) == ("complete", PARTS[1:])
    assert stored.meta["usage"] == piped.usage == CHAT_USAGE
    assert (stored.meta["finish_reason"], piped.tool_calls[0].input) == ("tool_calls", INPUT)


@pytest.mark.parametrize("end", [{}, {"kind": "incomplete", "incomplete_details": {"reason": "content_filter"}}])
async def test_a_model_over_responses(hub: Hub, provider: Provider, end: dict[str, Any]) -> None:
    model = chat_model(provider, use_responses_api=True)
    wire, error = Responses(), {"code": "server_error", "message": "sk-123"}
    said = wire.said(1, ("Hello 😀", ", world"))
    failed = [wire.event("response.failed", response=wire.about(one, error=error)) for one in ("failed", "unknown")]
    failed.append(wire.event("response.completed", response=wire.about("cancelled")))  # of vLLM
    answer = [*wire.begin(), *wire.thought(), *said, *wire.called(), *wire.completed(output=[wire.call(INPUT)], **end)]
    provider.will_say([wire.event("error", **error, param=None)], *([one] for one in failed), answer)
    async with hub.message("chat:1") as message:
        await message.pipe(lambda: model.astream("Hi"), retries=4, retry_s=0)
    stored, _ = await hub.read("chat:1", message.id)
    assert (stored.parts, stored.meta["usage"]) == (PARTS, RESPONSES_USAGE)
    assert stored.meta["finish_reason"] == ("content_filter" if end else "tool_calls")


async def test_a_model_of_the_apps_own_ends_with_its_last_chunk(hub: Hub) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hello world")]))
    stored, _ = await pipe_all(hub, model.astream("Hi"))
    assert (stored.status, stored.text) == ("complete", "Hello world")


async def test_usage_after_the_finish_reason_opens_no_message(hub: Hub) -> None:
    about = {"model_provider": "other"}
    usage = UsageMetadata(input_tokens=3, output_tokens=2, total_tokens=5)
    chunks = [
        AIMessageChunk("Hello", response_metadata={**about, "finish_reason": "stop"}),
        AIMessageChunk("", response_metadata=about, usage_metadata=usage, chunk_position="last"),
    ]
    stored, piped = await pipe_all(hub, chunks)
    assert (stored.status, stored.text, piped.usage["total_tokens"]) == ("complete", "Hello", 5)


@pytest.mark.parametrize("end", [[], [CUT]])
async def test_a_model_that_breaks_off_was_a_crash(
    hub: Hub, provider: Provider, model: ChatOpenAI, end: list[bytes | str]
) -> None:
    streams = model.astream("Hi"), model.astream_events("Hi"), model.stream("Hi")
    for stream in (*streams, graph_of(model).astream(ASK, stream_mode="messages")):
        provider.will_say([*chat_said("Hello"), *end])
        assert await ended(hub, stream) == "Hello"


# LangGraph --------------------------------------------------------------------------------------------------------


def graph_of(model: BaseChatModel) -> Any:
    """A model, a tool for its calls, and the model again."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def work(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()({"progress": 1})
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        return {"messages": [ToolMessage("rain in Oslo", tool_call_id=call["id"]) for call in last.tool_calls]}

    def then(state: MessagesState) -> str:
        return "work" if getattr(state["messages"][-1], "tool_calls", None) else END

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask).add_node("work", work)
    graph.add_edge(START, "ask").add_edge("work", "ask")
    return graph.add_conditional_edges("ask", then, ["work", END]).compile()


ASK = {"messages": [HumanMessage("Hi")]}
MODES: list[dict[str, Any]] = [
    {"stream_mode": "messages"},
    {"stream_mode": ["messages", "updates", "custom", "values"]},
    {"stream_mode": "messages", "subgraphs": True},
    {"stream_mode": ["updates", "messages"], "subgraphs": True},
    {"stream_mode": ["custom", "messages"], "version": "v2"},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
async def test_a_graph_with_a_tool_becomes_parts_in_order(
    hub: Hub, provider: Provider, model: ChatOpenAI, mode: dict[str, Any]
) -> None:
    said = [*chat_said("Rain in ", "Oslo"), *chat_end()]
    provider.will_say(*[[*chat_called(), *chat_end("tool_calls")]] * 2, said)  # it calls twice by the same id
    stored, piped = await pipe_all(hub, graph_of(model).astream(ASK, **mode))
    tool, again, text = stored.parts
    assert (tool["input"], tool["state"], tool["output"], again) == (INPUT, "done", "rain in Oslo", tool)
    assert (text, stored.status) == ({"type": "text", "text": "Rain in Oslo"}, "complete")
    assert piped.usage == {name: 3 * count for name, count in CHAT_USAGE.items()}


async def test_events_of_a_graph_become_the_same_parts(hub: Hub, provider: Provider, model: ChatOpenAI) -> None:
    provider.will_say([*chat_called(), *chat_end("tool_calls")], [*chat_said("Rain in ", "Oslo"), *chat_end()])
    stored, _ = await pipe_all(hub, graph_of(model).astream_events(ASK, version="v2"))
    assert (stored.parts[0]["input"], stored.text) == (INPUT, "Rain in Oslo")


async def test_stream_of_a_graph_without_messages_is_refused(hub: Hub, model: ChatOpenAI) -> None:
    wrong = [graph_of(model).astream(ASK, stream_mode="values", subgraphs=is_deep) for is_deep in (False, True)]
    for stream in (*wrong, one_by_one([{"type": "event", "method": "messages", "params": {}}])):  # the last: "v3"
        _, error = await broken(hub, stream, LocalError, source="langgraph")
        assert 'stream_mode="messages"' in error.detail


async def test_a_text_of_two_messages_is_two_parts(hub: Hub, provider: Provider, model: ChatOpenAI) -> None:
    async def twice(state: MessagesState) -> dict[str, Any]:
        await model.ainvoke("one")
        return {"messages": [await model.ainvoke("two")]}

    graph = StateGraph(MessagesState).add_node("twice", twice).add_edge(START, "twice")
    provider.will_say([*chat_said("One"), *chat_end()], [*chat_said(TEXT), *chat_end()])
    stored, _ = await pipe_all(hub, graph.compile().astream(ASK, stream_mode="messages"))
    assert [part["text"] for part in stored.parts] == ["One", TEXT]


async def test_a_response_that_ends_before_its_first_event_is_made_again(
    hub: Hub, provider: Provider, model: ChatOpenAI
) -> None:
    script = [*chat_said(TEXT), *chat_end()]
    await tried_again(hub, provider, lambda: graph_of(model).astream(ASK, stream_mode="messages"), script)
    await tried_again(hub, provider, lambda: model.astream("Hi"), script)
    await tried_again(hub, provider, lambda: model.stream("Hi"), script)
