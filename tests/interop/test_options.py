"""Fields that real clients send beside and inside their questions reach the agent's model: `turn.request`, files, and
the calls of the client's own tools."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import openai
import pydantic
import pytest
from fastapi import FastAPI
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai.lib._pydantic import to_strict_json_schema
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tenuto import Hub, Turn
from tenuto.agents.request import _EXTRA, _NAMES, TurnRequest, options_in, turn_request
from tenuto.interop import AGUI, AISDK, OpenAI
from tests.interop.pages import IS_STRICT, MAJOR, ROOT, pages_at
from tests.transports.conftest import Served, new_hub, serving

PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "weather", "description": "The weather.", "parameters": SCHEMA}
SHAPES = ("text", "openai", "responses", "anthropic")
CHAT_TOOL: Any = {"type": "function", "function": {name: TOOL[name] for name in ("name", "description", "parameters")}}


class Stub:
    """An agent with a stub of a model. It calls the first tool that the client offers, and answers with the result."""

    def __init__(self, hub: Hub, served: Served) -> None:
        self.hub = hub
        self.served = served
        self.url = f"http://127.0.0.1:{served.port}"
        self.client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="key", max_retries=0)
        self.received: list[dict[str, Any]] = []  # per turn: the view, the arguments and the histories of all shapes
        self.text = ""  # the answer; empty: the last result of a tool
        self.turns: list[Turn] = []

    async def answer(self, turn: Turn) -> None:
        self.turns.append(turn)
        histories: dict[str, Any] = {shape: await turn.history(shape) for shape in SHAPES}  # type: ignore[arg-type]
        options = {api: turn.request.options(api) for api in ("openai", "responses", "anthropic")}  # type: ignore[arg-type]
        self.received.append({**histories, "options": options})
        last = histories["openai"][-1]
        async with turn.reply() as message:
            if turn.request.tools and last["role"] != "tool":
                tool: Any = turn.request.tools[0]
                name = str(tool.get("tools", [tool])[0]["name"])  # a namespace has its tools in a list
                part = {"type": "tool", "call": f"c{len(self.received)}", "name": name}
                await message.part({**part, "input": "{}", "state": "input"})
                await message.part({**part, "input": '{"city": "Ulm"}', "state": "called"}, index=0)
                return
            await message.append(self.text or f"It is {last['content']}.")
            names = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
            await message.update(meta={"usage": dict(zip(names, (9, 5, 4, 2, 3), strict=True))})

    async def ask(self, given: Any, **options: Any) -> Any:
        """Return the response to an input."""
        return await self.client.responses.create(model="bot", input=given, **options)

    async def chat(self, messages: Any, **options: Any) -> Any:
        """Return the chat completion that follows messages."""
        return await self.client.chat.completions.create(model="bot", messages=messages, **options)


@asynccontextmanager
async def stub_at(url: str = "memory://", **options: Any) -> AsyncIterator[Stub]:
    hub, app = new_hub(url, **options), FastAPI()
    OpenAI(hub, channel="chat:{id}").install(app, "/v1")  # a conversation needs no model then
    AGUI(hub, channel="agui:{id}").install(app, "/agui")
    AISDK(hub, channel="page:{id}", version=MAJOR, strict=IS_STRICT).install(app, "/page")

    async def agent(turn: Turn) -> None:
        await stub.answer(turn)

    app.mount("/tenuto", hub)
    for pattern, name in (("chat:*", "bot"), ("agui:*", "agui"), ("page:*", "page")):
        hub.agent(pattern, name=name)(agent)
    async with serving(hub, app) as served:
        stub = Stub(hub, served)
        async with stub.client:
            yield stub


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_at() as stub:
        yield stub


@pytest.fixture
def agents() -> Any:
    """The Agents SDK. To import it or `anthropic` takes a second, and runs with other releases of `ai` need neither."""
    import agents

    agents.set_tracing_disabled(True)
    return agents


def weather(city: str) -> str:
    """The weather."""
    return f"7 degrees in {city}"


def said(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def function_call(name: str) -> dict[str, Any]:
    """Return a call as a chat completion has it."""
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}


QUESTION = [said("user", "q")]


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "responses"])
async def test_instructions_behind_the_question_reach_the_model_with_it(stub: Stub, is_chat: bool) -> None:
    first, answer, question = said("user", "one"), said("assistant", "two"), said("user", "three")
    brief, kind = said("system", "Be brief."), said("system", "Be kind.")
    stub.text = "four"
    await (stub.chat if is_chat else stub.ask)([first, answer, question, {**brief, "role": "developer"}, kind])
    assert stub.received[0]["openai"] == [first, answer, brief, kind, question]
    assert stub.received[0]["options"]["anthropic"]["system"] == "Be brief.\n\nBe kind."


# -- tools of the client ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["responses", "namespace", "chat"])
async def test_agents_sdk_runs_its_function_tool_and_gets_an_answer(stub: Stub, agents: Any, api: str) -> None:
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    tools: Any = [agents.function_tool(weather)]
    if api == "namespace":
        tools = agents.tool_namespace(name="crm", description="About customers.", tools=tools)
    model = kind(model="bot", openai_client=stub.client)
    agent = agents.Agent(name="a", instructions="Be kind.", tools=tools, model=model)
    assert (await agents.Runner.run(agent, "How is Ulm?", max_turns=3)).final_output == "It is 7 degrees in Ulm."
    assert [one["role"] for one in stub.received[1]["openai"]][-3:] == ["user", "assistant", "tool"]
    named = {"namespace": "crm"} if api == "namespace" else {}
    called = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}', **named}
    assert called in stub.received[1]["responses"]


async def pays(turn: Turn, before: str = "") -> None:
    """Ask before a payment, if the question is "pay"."""
    async with turn.reply() as message:
        if turn.text == "pay":
            if before:
                await message.append(before)
            part = {"type": "tool", "call": "c1", "name": "pay", "input": "{}"}
            index = await message.part({**part, "state": "called"})
            reply = await turn.ask("approve", {"call": "c1"})
            await message.part({**part, "state": "done", "output": reply.ok}, index=index)
        await message.append(f"Done: {turn.text}.")


async def test_hosted_tool_of_the_agents_sdk_runs_after_its_approval_without_a_previous_response(
    stub: Stub, agents: Any
) -> None:
    histories: list[Any] = []

    async def answer(turn: Turn) -> None:
        histories.append([(one["role"], one["content"]) for one in await turn.history("openai")])
        await pays(turn)

    stub.answer = answer  # type: ignore[method-assign]
    config: Any = {"type": "mcp", "server_label": "tenuto", "server_url": "https://a.example"}
    model = agents.OpenAIResponsesModel(model="bot", openai_client=stub.client)
    agent = agents.Agent(name="a", tools=[agents.HostedMCPTool(config)], model=model)
    result = await agents.Runner.run(agent, "pay")
    while result.interruptions:
        state = result.to_state()
        for one in result.interruptions:
            state.approve(one)
        result = await agents.Runner.run(agent, state)
    assert result.final_output == "Done: pay."
    result = await agents.Runner.run(agent, [*result.to_input_list(), {"role": "user", "content": "again"}])
    asked, called = [("user", "pay")], [("assistant", None), ("tool", "true")]
    assert histories == [asked, [*asked, *called, ("assistant", "Done: pay."), ("user", "again")]]


async def test_session_of_the_agents_sdk_keeps_its_items_and_removes_the_last_or_all(stub: Stub, agents: Any) -> None:
    session = agents.OpenAIConversationsSession(openai_client=stub.client)
    model = agents.OpenAIResponsesModel(model="bot", openai_client=stub.client)
    agent = agents.Agent(name="a", tools=[agents.function_tool(weather)], model=model)
    await agents.Runner.run(agent, "How is Ulm?", session=session)
    call: Any = {"type": "function_call", "name": "weather", "arguments": "{}"}
    await session.add_items([{**call, "call_id": id} for id in ("x0", "x1")])
    items: Any = await session.get_items()
    kinds = ["message", "function_call", "function_call_output", "message", "function_call", "function_call"]
    assert [one["type"] for one in items] == kinds
    for number in (5, 4):
        assert await session.pop_item() == items[number]
    assert await session.get_items() == items[:4]
    await agents.Runner.run(agent, "And now?", session=session)
    assert [one["role"] for one in stub.received[2]["openai"]] == ["user", "assistant", "tool", "assistant", "user"]
    conversation = session.session_id
    await session.clear_session()
    with pytest.raises(openai.NotFoundError):
        await stub.client.conversations.retrieve(conversation)
    assert await session.get_items() == []
    assert session.session_id != conversation


@pytest.mark.parametrize("is_responses", [True, False], ids=["responses", "chat"])
async def test_tool_that_langchain_binds_is_called_and_has_its_result(stub: Stub, is_responses: bool) -> None:
    bound = tool(weather)
    chat = ChatOpenAI(model="bot", base_url=f"{stub.url}/v1", api_key="key", use_responses_api=is_responses)
    messages: list[Any] = [HumanMessage("How is Ulm?")]
    for _ in range(2):  # the client sends all earlier messages again
        messages.append(await chat.bind_tools([bound]).ainvoke(messages))
        messages += [bound.invoke(call) for call in messages[-1].tool_calls]
    assert messages[-1].text == "It is 7 degrees in Ulm."
    assert [one["role"] for one in stub.received[1]["openai"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("way", ["chat", "responses", "previous"])
async def test_pydantic_ai_runs_its_tool_and_streams(stub: Stub, way: str) -> None:
    from pydantic_ai import Agent  # see `agents`
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIChatModel if way == "chat" else OpenAIResponsesModel
    settings: Any = {"openai_previous_response_id": "auto"} if way == "previous" else {}
    model = kind("bot", provider=OpenAIProvider(openai_client=stub.client), settings=settings)
    agent = Agent(model, instructions="Be kind.", tools=[weather])
    first = await agent.run("How is Ulm?")
    assert (first.output, first.usage.cache_read_tokens) == ("It is 7 degrees in Ulm.", 4)
    async with agent.run_stream("And now?", message_history=first.all_messages()) as second:
        assert [one async for one in second.stream_text(delta=True)] == ["It is 7 degrees in Ulm."]
    roles = [one["role"] for one in stub.received[3]["openai"] if one["role"] != "system"]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant", "tool"]


async def test_name_of_each_message_of_a_chat_completion_is_in_the_history(stub: Stub) -> None:
    asked, host = said("user", "Hello!", name="ann"), said("assistant", "Hi Ann.", name="host")
    messages = [said("system", "Be kind.", name="rules"), asked, host, said("user", "I am in Ulm.")]
    messages += [said("user", "And I in Bonn.", name="bob"), said("user", "Where am I?", name="ann")]
    await stub.chat(messages)
    assert stub.received[0]["openai"] == messages
    texts = [said(one["role"], one["content"]) for one in messages]
    assert stub.received[0]["responses"] == stub.received[0]["text"] == texts
    given = texts[3:]  # each message of the user is one, also without a name
    await stub.ask(given)
    assert stub.received[1]["openai"] == stub.received[1]["text"] == given
    await stub.chat([{**asked, "name": "Ann Ives"}])  # the API of the model refuses it
    assert stub.received[2]["openai"] == [said("user", "Hello!")]
    with pytest.raises(openai.BadRequestError, match="name must be a text, got 7"):
        await stub.chat([{**asked, "name": 7}])
    calls, result = [function_call("weather")], said("tool", "7", tool_call_id="c")
    for named in ({"name": "guide"}, {}):
        told = [asked, host, said("assistant", None, tool_calls=calls, **named), result, asked]
        await stub.chat(told)
        assert stub.received[-1]["openai"] == told


async def test_only_calls_of_two_messages_may_have_the_same_id(stub: Stub) -> None:
    calls = [function_call(name) for name in ("a", "b")]
    first, second, both = (said("assistant", None, tool_calls=one) for one in (calls[:1], calls[1:], calls))
    results = [said("tool", output, tool_call_id="c") for output in ("1", "2")]
    for wrong in ([both, *results], [first, *results], [first, second, *results]):
        with pytest.raises(openai.BadRequestError, match="have the id 'c'; give each call an id of its own"):
            await stub.chat([*QUESTION, *wrong, *QUESTION])
    assert stub.received == []
    # the first call may have no result, as after a cancel
    for told in ([first, results[0], second, results[1]], [first, second, results[1]]):
        await stub.chat([*QUESTION, *told, *QUESTION])
    found = [[one["tool_call_id"] for one in turn["openai"] if one["role"] == "tool"] for turn in stub.received]
    assert found == [["c", "c_"], ["c"]]


async def test_requests_of_open_webui_reach_the_agent_with_all_tools_and_a_result(stub: Stub) -> None:
    """`open_webui.json` has both requests that Open WebUI 0.12.4 sent to a hub for one question, with its own tools."""
    recorded = json.loads(Path(__file__).with_name("open_webui.json").read_text())
    for messages in recorded["messages"]:
        body = {name: recorded[name] for name in ("stream", "model", "tools")} | {"messages": messages}
        response = await stub.served.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.text[-14:]) == (200, "data: [DONE]\n\n")
    assert [one["options"]["openai"]["tools"] for one in stub.received] == [recorded["tools"]] * 2
    instructions, question, call, result = recorded["messages"][1]
    assert stub.received[0]["openai"] == [instructions, question]
    assert stub.received[1]["openai"] == [instructions, question, {**call, "content": None}, result]


async def test_texts_and_images_of_a_result_reach_each_api_that_takes_them(stub: Stub) -> None:
    call = {"type": "function_call", "call_id": "x", "name": "shot", "arguments": "{}"}
    shown = [{"type": "input_text", "text": "See:"}, FILES["image"][1]]
    told = await stub.ask([*QUESTION, call, {"type": "function_call_output", "call_id": "x", "output": shown}])
    (received,) = stub.received
    assert received["responses"][-1]["output"] == shown
    assert received["openai"][-1]["content"] == [{"type": "text", "text": t} for t in ("See:", "[image: image/png]")]
    text, picture = received["anthropic"][-1]["content"][0]["content"]
    assert (text, picture["type"]) == ({"type": "text", "text": "See:"}, "image")
    assert received["text"][-1]["content"] == "[result of shot({}): See:[image: image/png]]"
    assert (await stub.client.responses.input_items.list(told.id)).data[0].output[1].image_url == PNG


# -- files -----------------------------------------------------------------------------------------------------


async def test_photo_without_a_word_reaches_the_model(stub: Stub) -> None:
    stub.text = "A cat."
    photo = [said("user", [FILES["image"][1]])]
    assert (await stub.ask(photo)).output_text == "A cat."
    assert stub.received[0]["responses"] == photo
    assert stub.received[0]["text"] == [said("user", "[image: image/png]")]
    completion = await stub.chat([said("user", [FILES[name][0] for name in ("image", "pdf", "sound")])])
    # the type of each file is that of its own address
    assert [one["mediaType"] for one in stub.turns[1].message.parts] == ["image/png", "application/pdf", "audio/wav"]
    usage = completion.usage
    assert usage.prompt_tokens_details.model_dump(exclude_none=True) == {"cached_tokens": 4, "cache_write_tokens": 2}
    assert usage.completion_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize("path", ["agui", "page", "v1/responses", "v1/chat/completions"])
async def test_question_may_have_a_photo_of_4_mb_but_not_300_photos_or_600_kb_of_tools(stub: Stub, path: str) -> None:
    stub.text = "A cat."
    statuses, params = list[int](), list[Any]()
    tools = 100 * [{**TOOL, "description": "x" * 6_000}]
    for count, data, asked in ((1, "A" * 4_000_000, []), (300, "AAAA", []), (2, "AAAA", tools)):
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}  # each adapter takes it
        question = {"id": f"u{count}", "role": "user", "parts" if path == "page" else "content": count * [image]}
        given = {"input" if path == "v1/responses" else "messages": [question], "tools": asked}
        body = {"model": "bot", "threadId": "1", "runId": "r", "id": "1", **given}
        response = await stub.served.http.post(f"/{path}", json=body)
        statuses.append(response.status_code)
        params.append(response.json()["error"]["param"] if response.status_code == 413 and "v1" in path else None)
    assert statuses == [200, 413, 413]
    assert params == [None, *(["messages" if "chat" in path else "input", "tools"] if "v1" in path else [None, None])]
    assert "the limit is 524288 (Limits.options_bytes); make 'tools' smaller, the largest" in response.text
    assert '"too_large"' in response.text
    assert len(await stub.hub.store.channels(after=None, limit=9)) == 1
    ((question,),) = [one["openai"] for one in stub.received]
    assert len(question["content"][0]["image_url"]["url"]) == len("data:image/jpeg;base64,") + 4_000_000


async def run_agui(stub: Stub, content: Any, **fields: Any) -> None:
    known = {"tools": [], "context": [], "state": {}, "forwardedProps": {}}
    body = {"threadId": "1", "runId": "r", "messages": [{"id": "u", "role": "user", "content": content}]}
    response = await stub.served.http.post("/agui", json={**known, **body, **fields})
    assert response.status_code == 200, response.text


# -- the matrix of sent fields, and of those that the stub of a model receives --------------------------------------

FORM = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
CHOICE = {"type": "function", "name": "weather"}
CHAT_CHOICE = {"type": "function", "function": {"name": "weather"}}
CHAT_FORM = {"type": "json_schema", "json_schema": {n: FORM[n] for n in ("name", "schema", "strict")}}
EXTRA: dict[str, Any] = {
    **dict.fromkeys(("frequency_penalty", "frequencyPenalty", "min_p"), 0.1),
    **dict.fromkeys(("presence_penalty", "presencePenalty"), 0.2),
    **dict.fromkeys(("top_k", "topK"), 3),
    **dict.fromkeys(("top_logprobs", "max_tool_calls"), 2),
    "logit_bias": {"1": 2},
    "logprobs": True,
    "n": 1,
    "modalities": ["text"],
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": "none",
    "prediction": {"type": "content", "content": "x"},
    "functions": [{"name": "weather"}],
    **{key: f"{key} of ann" for key in ("user", "safety_identifier", "prompt_cache_key", "service_tier", "truncation")},
    "store": False,
    "prompt": {"id": "p"},
    "prompt_cache_retention": "24h",
    "include": ["reasoning.encrypted_content"],
    "web_search_options": {"search_context_size": "low"},
    **{key: {"k": "v"} for key in ("moderation", "prompt_cache_options", "context_management", "image")},
    **{key: {"k": "v"} for key in ("access_programs", "background_options")},
}
PROTOCOLS = ("chat", "responses", "ag-ui", "ai-sdk")
_LIMITS = [{name: 99} for name in ("max_output_tokens", "max_completion_tokens", "max_tokens")]
_LIMITS += [{name: 99} for name in ("maxOutputTokens", "maxTokens")]
_FORMS = [{"text": {"format": FORM}}, {"response_format": CHAT_FORM}, {"responseFormat": FORM}]
_CHOICES = [{"toolChoice": {"type": "tool", "toolName": "weather"}}, {"tool_choice": CHAT_CHOICE}]
_EFFORTS = [{"reasoning": {"effort": "low", "summary": "auto"}}]
_EFFORTS += [{"reasoning": {"summary": "auto"}, "reasoning_effort": "low"}]
_CONTEXT = [{"context": [{"description": "place", "value": "Ulm"}]}]
_BY_NAME = {"weather": {"description": "The weather.", "inputSchema": SCHEMA}}


def settings(**values: Any) -> list[dict[str, Any]]:
    """Return values under their own names, and as assistant-ui sends those of the AI SDK."""
    return [values, {"callSettings": values}]


# For each field of `TurnRequest` its value, and for each of `PROTOCOLS` the bodies that ask for it
FIELDS: dict[str, tuple[Any, list[Any], list[Any], list[Any], list[Any]]] = {
    "instructions": ("Be kind.", [], [{"instructions": "Be kind."}], *[[{"system": "Be kind."}]] * 2),
    "tools": (
        [TOOL],
        [{"tools": [CHAT_TOOL]}],
        [{"tools": [TOOL]}],
        [{"tools": [{name: TOOL[name] for name in ("name", "description", "parameters")}]}],
        [{"tools": _BY_NAME}, {"tools": [TOOL]}],
    ),
    "tool_choice": (CHOICE, [{"tool_choice": CHAT_CHOICE}], [{"tool_choice": CHOICE}], _CHOICES, _CHOICES),
    "parallel_tool_calls": (False, *[[{"parallel_tool_calls": False}]] * 4),
    "response_format": (FORM, [{"response_format": CHAT_FORM}], [{"text": {"format": FORM}}], _FORMS, _FORMS),
    "verbosity": ("low", [{"verbosity": "low"}], [{"text": {"verbosity": "low"}}], *[[{"verbosity": "low"}]] * 2),
    "max_output_tokens": (99, _LIMITS[1:3], _LIMITS[:1], _LIMITS, [*_LIMITS, *settings(maxTokens=99)]),
    "reasoning": (_EFFORTS[0]["reasoning"], [{"reasoning_effort": "low"}], _EFFORTS[:1], _EFFORTS, _EFFORTS),
    "temperature": (0.5, *[settings(temperature=0.5)[:1]] * 3, settings(temperature=0.5)),
    "top_p": (0.9, *[[{"top_p": 0.9}]] * 2, [{"top_p": 0.9}, {"topP": 0.9}], settings(topP=0.9)),
    "seed": (7, [{"seed": 7}], [], [{"seed": 7}], settings(seed=7)),
    "stop": (["END"], [{"stop": "END"}, {"stop": ["END"]}], [], *[settings(stopSequences=["END"])] * 2),
    "metadata": ({"k": "v"}, *[[{"metadata": {"k": "v"}}]] * 4),
    "context": (_CONTEXT[0]["context"], [], [], _CONTEXT, _CONTEXT),
    "state": ({"n": 1}, [], [], *[[{"state": {"n": 1}}]] * 2),
    "model": ("bot", *[[{"model": "bot"}]] * 3, [{"model": "bot"}, {"config": {"modelName": "bot"}}]),
    "previous_response_id": ("resp_x", [], [], *[[{"previous_response_id": "resp_x"}]] * 2),
    "background": (False, [], [{"background": False}], *[[{"background": False}]] * 2),
    "extra": (EXTRA, *[[EXTRA]] * 3, [EXTRA, {"callSettings": EXTRA}]),
}
_SAME = {"temperature": 0.5, "top_p": 0.9, "parallel_tool_calls": False}
OPTIONS = {
    "openai": {
        **_SAME,
        "seed": 7,
        "stop": ["END"],
        "max_completion_tokens": 99,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": CHAT_FORM,
        "tools": [CHAT_TOOL],
        "tool_choice": CHAT_CHOICE,
    },
    "responses": {
        **_SAME,
        "instructions": "Be kind.",
        "max_output_tokens": 99,
        "reasoning": _EFFORTS[0]["reasoning"],
        "text": {"format": FORM, "verbosity": "low"},
        "tools": [TOOL],
        "tool_choice": CHOICE,
    },
    "anthropic": {
        "stop_sequences": ["END"],
        "system": "Be kind.",
        "max_tokens": 99,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "tools": [{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    },
}


def test_each_option_is_a_parameter_of_the_sdk() -> None:
    import anthropic

    claude, gpt = anthropic.AsyncAnthropic(api_key="k"), openai.AsyncOpenAI(api_key="k")
    calls: dict[str, list[Any]] = {
        "openai": [gpt.chat.completions.create, gpt.chat.completions.stream],
        "responses": [gpt.responses.create, gpt.responses.stream],
        "anthropic": [claude.messages.create, claude.messages.stream, claude.beta.messages.create],
    }
    for api, call in ((api, call) for api, each in calls.items() for call in each):
        assert OPTIONS[api].keys() - inspect.signature(call).parameters == set(), call


def merged(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one body with the fields of all, also of their objects."""
    body: dict[str, Any] = {}
    for one in bodies:
        for name, value in one.items():
            is_both = isinstance(value, dict) and isinstance(body.get(name), dict)
            body[name] = {**body[name], **value} if is_both else value
    return body


async def send(stub: Stub, protocol: str, body: dict[str, Any], content: Any) -> None:
    """Send a question with a client of the protocol."""
    match protocol:
        case "chat":
            await stub.chat([said("system", "Be kind."), said("user", content)], extra_body=body)
        case "responses":
            await stub.ask([said("developer", "Be brief."), said("user", content)], extra_body=body)
        case "ag-ui":
            own = {name: body.pop(name) for name in ("tools", "context", "state") if name in body}
            await run_agui(stub, content, **own, forwardedProps=body)
        case "ai-sdk":
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            async with pages_at(f"{stub.url}/page") as pages:
                await pages("a", "open", id="1")
                await pages("a", "send", parts=parts, metadata={"own": 1}, options={"body": body})
                await pages("a", "asks", requests=1)
                await pages("a", "is", status="ready")
                loaded = await pages("b", "open", id="1", load=True)
                assert (loaded["messages"][0]["metadata"], loaded["messages"][0]["parts"]) == ({"own": 1}, parts)


@pytest.mark.parametrize(
    ("protocol", "variant"),
    [(one, at) for n, one in enumerate(PROTOCOLS, 1) for at in range(max(len(row[n]) for row in FIELDS.values()))],
)
async def test_each_option_of_a_client_reaches_the_model_in_the_form_of_its_api(
    stub: Stub, protocol: str, variant: int
) -> None:
    rows = {name: (row[0], row[1 + PROTOCOLS.index(protocol)]) for name, row in FIELDS.items()}
    bodies = [bodies[min(variant, len(bodies) - 1)] for _, bodies in rows.values() if bodies]
    await send(stub, protocol, merged([*bodies, {"theme": "dark"}]), "hi")
    request = msgspec.to_builtins(stub.turns[0].request)
    asked = {name: value for name, (value, bodies) in rows.items() if bodies}
    expected = {api: dict(options) for api, options in OPTIONS.items()}
    if protocol == "chat":
        asked |= {"system": ["Be kind."], "reasoning": {"effort": "low"}}
        expected["responses"]["reasoning"] = asked["reasoning"]
        del expected["responses"]["instructions"]
    elif protocol == "responses":
        asked["system"] = ["Be brief."]
        expected["anthropic"]["system"] = "Be kind.\n\nBe brief."
        for api, names in (("openai", ("seed", "stop")), ("anthropic", ("stop_sequences",))):
            expected[api] = {name: value for name, value in expected[api].items() if name not in names}
    assert (request, stub.received[0]["options"]) == (asked, expected)


async def test_options_under_names_that_a_client_of_ag_ui_sends_empty_reach_the_model(stub: Stub) -> None:
    """TanStack AI always sends an empty `state` and `context`, and an app's own values in `forwardedProps`."""
    options: Any = {"state": {"n": 1}, **_CONTEXT[0]}
    await run_agui(stub, "hi", forwardedProps=options | {"tools": [CHAT_TOOL]})
    found = msgspec.to_builtins(stub.turns[0].request)
    assert [one["name"] for one in found.pop("tools")] == ["weather"]
    assert found == options


async def test_form_that_a_client_parses_reaches_the_model_as_the_client_sent_it(stub: Stub) -> None:
    class Place(pydantic.BaseModel):
        """A town."""

        city: str
        inhabitants: Annotated[int, pydantic.Field(ge=0)] = 0

    stub.text = '{"city": "Ulm", "inhabitants": 129000}'
    question: Any = [{"role": "user", "content": "Where are you?"}]
    completion = await stub.client.chat.completions.parse(model="bot", messages=question, response_format=Place)
    response = await stub.client.responses.parse(model="bot", input=question, text_format=Place)
    assert completion.choices[0].message.parsed == response.output_parsed == Place(city="Ulm", inhabitants=129000)
    async with stub.client.chat.completions.stream(model="bot", messages=question, response_format=Place) as chunks:
        parsed = (await chunks.get_final_completion()).choices[0].message.parsed
    async with stub.client.responses.stream(model="bot", input=question, text_format=Place) as events:
        assert (await events.get_final_response()).output_parsed == parsed == Place(city="Ulm", inhabitants=129000)
    sent = to_strict_json_schema(Place)
    assert sent["required"] == ["city", "inhabitants"]
    form = {"type": "json_schema", "name": "Place", "schema": sent, "strict": True}
    for turn, one in zip(stub.turns, stub.received, strict=True):
        assert turn.request.response_format == form
        assert one["options"]["responses"]["text"] == {"format": form}
        nested = {name: value for name, value in form.items() if name != "type"}
        assert one["options"]["openai"]["response_format"] == {"type": "json_schema", "json_schema": nested}


def test_effort_of_the_ai_sdk_and_of_assistant_ui_is_a_text() -> None:
    bodies: Any = ({"reasoning": "high"}, {"reasoning": "provider-default"}, {"config": {"reasoningEffort": "high"}})
    high = {"reasoning": {"effort": "high"}}
    assert [options_in(one, is_strict=False) for one in bodies] == [high, {}, high]


@pytest.mark.parametrize(
    ("sent", "form"),
    [
        ({"type": "json", "name": "x", "schema": SCHEMA}, {"type": "json_schema", "name": "x", "schema": SCHEMA}),
        ({"type": "json", "schema": SCHEMA}, {"type": "json_schema", "name": "response", "schema": SCHEMA}),
        ({"type": "json"}, {"type": "json_object"}),
    ],
)
def test_form_and_choice_of_a_model_of_the_ai_sdk_are_those_of_responses(sent: Any, form: Any) -> None:
    stored = options_in({"responseFormat": sent, "toolChoice": {"type": "required"}}, is_strict=False)
    assert stored == {"response_format": form, "tool_choice": "required"}


def test_the_matrix_and_the_page_have_each_name_of_an_option() -> None:
    assert {*FIELDS, "system"} == {one.name for one in msgspec.structs.fields(TurnRequest)}
    assert EXTRA.keys() == set(_EXTRA)
    sent = {
        ".".join(path)
        for row in FIELDS.values()
        for body in itertools.chain(*row[1:])
        for name, value in body.items()
        for path in ([(name,)] + [(name, inner) for inner in value] if isinstance(value, dict) else [(name,)])
    }
    names = {name for _, given in _NAMES.values() for name in given}
    assert names <= sent
    known = {name.partition(".")[0] for name in (*names, *_EXTRA, "reasoning_effort", "input", "messages")}
    fields = ResponseCreateParamsBase.__annotations__ | CompletionCreateParamsBase.__annotations__
    assert fields.keys() - known == {"conversation", "stream_options"}
    page = (ROOT / "docs" / "interop.md").read_text().partition("## What a client asks")[2].partition("\n## ")[0]
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


# The files that clients send, and the forms in which the shapes have them: openai, responses, anthropic and text
UNKNOWN = "application/octet-stream"  # the type that a browser gives to a file whose type it does not know
WAV, TXT, URL = "data:audio/wav;base64,AAA=", "data:text/plain;base64,SGk=", "https://e.x/b.png"
_AT, _PDF = {"type": "url", "url": URL}, {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
_PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
FILES: dict[str, tuple[Any, Any, Any, str]] = {
    "image": (
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {"type": "input_image", "image_url": PNG, "detail": "low"},
        _PNG,
        "[image: image/png]",
    ),
    "named image": (
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "input_image", "image_url": PNG, "detail": "auto"},
        _PNG,
        "[image: a.png]",
    ),
    "image at": (
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "input_image", "image_url": URL, "detail": "auto"},
        {"type": "image", "source": _AT},
        "[image: b.png]",
    ),
    "pdf": (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
        {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
        {"type": "document", "source": _PDF, "title": "a.pdf"},
        "[file: a.pdf]",
    ),
    "pdf at": (
        {"type": "text", "text": "[file: b.pdf]"},
        {"type": "input_file", "file_url": "https://e.x/b.pdf"},
        {"type": "document", "source": {"type": "url", "url": "https://e.x/b.pdf"}, "title": "b.pdf"},
        "[file: b.pdf]",
    ),
    "sheet at": (
        {"type": "text", "text": "[file: b c.xlsx]"},
        {"type": "input_file", "file_url": "https://e.x/b%20c.xlsx"},
        {"type": "text", "text": "[file: b c.xlsx]"},
        "[file: b c.xlsx]",
    ),
    "sound": (
        {"type": "input_audio", "input_audio": {"data": "AAA=", "format": "wav"}},
        {"type": "input_file", "filename": "file", "file_data": WAV},
        {"type": "text", "text": "[file: audio/wav]"},
        "[file: audio/wav]",
    ),
    "plain text": (
        {"type": "file", "file": {"filename": "a.txt", "file_data": TXT}},
        {"type": "input_file", "filename": "a.txt", "file_data": TXT},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}, "title": "a.txt"},
        "[file: a.txt]",
    ),
}


def agui_file(kind: str, url: str, media_type: str, **metadata: str) -> dict[str, Any]:
    """Return a file of AG-UI's, as data if `url` has data."""
    is_data = url.startswith("data:")
    value = url.partition(",")[2] if is_data else url
    source = {"type": "data" if is_data else "url", "value": value, "mimeType": media_type}
    return {"type": kind, "source": source, **({"metadata": metadata} if metadata else {})}


def ui_file(url: str, media_type: str, **fields: str) -> dict[str, Any]:
    return {"type": "file", "mediaType": media_type, **fields, "url": url}


# The files of each protocol in its forms, with their names in `FILES`
CONTENT: dict[str, list[tuple[str, Any]]] = {
    "chat": [(name, FILES[name][0]) for name in ("image", "image at", "pdf", "sound", "plain text")],
    "responses": [
        ("image at", {"type": "input_image", "image_url": URL}),
        *((name, FILES[name][1]) for name in ("image", "pdf", "pdf at", "plain text")),
    ],
    "ag-ui": [
        ("image", agui_file("image", PNG, "image/png", detail="low")),
        ("image at", agui_file("image", URL, "image/png")),
        ("image at", {"type": "image", "source": {"type": "url", "value": URL}}),
        ("image at", {"type": "binary", "mimeType": "image/png", "url": URL}),
        ("pdf", agui_file("document", PDF, "application/pdf", filename="a.pdf")),
        ("pdf", {"type": "binary", "mimeType": "application/pdf", "data": "JVBERi0=", "filename": "a.pdf"}),
        ("pdf at", agui_file("document", "https://e.x/b.pdf", "application/pdf")),
        ("sheet at", agui_file("document", "https://e.x/b%20c.xlsx", "application/vnd.ms-excel")),
        ("sound", agui_file("audio", WAV, "audio/wav")),
        ("plain text", agui_file("document", TXT, "text/plain", filename="a.txt")),
    ],
    "ai-sdk": [
        ("named image", ui_file(PNG, "image/png", filename="a.png")),
        ("image at", ui_file(URL, "image/png")),
        ("pdf", ui_file(PDF, "application/pdf", filename="a.pdf")),
        ("pdf at", ui_file("https://e.x/b.pdf", "application/pdf")),
        ("pdf at", ui_file("https://e.x/b.pdf", UNKNOWN)),
        ("pdf", ui_file(PDF.replace("application/pdf", UNKNOWN), UNKNOWN, filename="a.pdf")),
        ("plain text", ui_file(TXT.replace(";", ";charset=utf-8;"), "text/plain", filename="a.txt")),
        ("sound", ui_file(WAV, "audio/wav")),
        ("plain text", ui_file(TXT, "text/plain", filename="a.txt")),
    ],
}


async def test_file_whose_type_is_its_kind_alone_reaches_the_model_as_an_image(stub: Stub) -> None:
    parts = [ui_file(URL, "image"), ui_file(PNG, "image")]  # as the AI SDK 7 allows
    await stub.served.http.post("/page", json={"id": "1", "messages": [{"id": "u", "role": "user", "parts": parts}]})
    content = [{"type": "image_url", "image_url": {"url": url}} for url in (URL, PNG)]
    assert stub.received[0]["openai"] == [{"role": "user", "content": content}]
    loaded = (await stub.served.http.get("/page/1/messages")).json()[0]["parts"]
    assert [one["mediaType"] for one in loaded] == ["image/*", "image/png"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_each_file_of_a_question_reaches_the_model_in_the_form_of_each_shape(stub: Stub, protocol: str) -> None:
    stub.text = "Yes."
    sent, kind = CONTENT[protocol], "input_text" if protocol == "responses" else "text"
    await send(stub, protocol, {}, [{"type": kind, "text": "What?"}, *(part for _, part in sent)])
    received = stub.received[0]
    for at, shape in enumerate(("openai", "responses", "anthropic")):
        text = {"type": "input_text" if shape == "responses" else "text", "text": "What?"}
        assert received[shape][-1] == {"role": "user", "content": [text, *(FILES[name][at] for name, _ in sent)]}
    assert received["text"][-1]["content"] == "\n".join(["What?", *(FILES[name][3] for name, _ in sent)])


# -- large options ---------------------------------------------------------------------------------------------

MANY: Any = [{**TOOL, "name": f"tool{n}", "description": "x" * 700} for n in range(30)]  # 25 KB, as of Open WebUI


async def test_large_tools_are_stored_once_for_a_conversation_and_no_viewer_gets_them(stub: Stub) -> None:
    stub.text = "Yes."
    told, output = "y" * 2000, {"type": "function_call_output", "call_id": "c1", "output": "7"}
    first = await stub.ask("a", tools=MANY, instructions=told)
    channel = stub.turns[0].channel
    second = await stub.ask([output], previous_response_id=first.id, tools=MANY, instructions=told)
    third = await stub.ask("b", previous_response_id=second.id, tools=MANY[:1], instructions=told)
    assert [len(one.request.tools) for one in stub.turns] == [30, 30, 1]
    assert [one.request.instructions for one in stub.turns] == [told] * 3
    facts = (await stub.hub.store.facts(channel, after=0, limit=99)).facts
    assert sum(one.id.startswith("options-") for one in facts) == 3
    # the client itself gets them back
    assert [len(one.tools) for one in (first, second, third)] == [30, 30, 1]
    assert (await stub.client.responses.retrieve(second.id)).instructions == told
    base = f"/tenuto/v1/channels/{channel}"
    page = await stub.served.http.get(f"{base}/messages?limit=200")
    events = await stub.served.http.get(f"{base}/poll?history=200&wait=0")
    assert events.status_code == 200, events.text
    for seen in (page.text, events.text):
        assert "tool3" not in seen
        assert "yyyy" not in seen
    assert len(page.json()["messages"]) == 6
    assert (await stub.served.http.delete(f"{base}/messages/{facts[0].id}")).status_code == 404


# -- large photos: a page of the store has no message beside one ------------------------------------------------

PHOTO = "data:image/jpeg;base64," + "A" * 4_000_000


async def test_large_photo_leaves_no_message_of_a_conversation_out(stub: Stub) -> None:
    look = [{"type": "input_text", "text": "Look"}, {"type": "input_image", "image_url": PHOTO}]
    stub.text, conversation = "Yes.", await stub.client.conversations.create(extra_body={"model": "bot"})
    for content in ("My name is Ann.", look, "What is my name?"):
        await stub.ask([said("user", content)], conversation=conversation.id)
    roles = ["user", "assistant", "user", "assistant", "user"]
    assert [one["role"] for one in stub.received[-1]["openai"]] == roles
    assert len([one async for one in stub.client.conversations.items.list(conversation.id)]) == 6
    # a request brings the photo by reference, but not as often as it likes
    items: Any = [one async for one in stub.client.conversations.items.list(conversation.id, order="asc")]
    refs: Any = [{"type": "item_reference", "id": one.id} for one in items]
    copied = await stub.ask([*refs, *QUESTION])
    assert [one["role"] for one in stub.received[-1]["openai"]] == [*roles, "assistant", "user"]
    assert len([one async for one in stub.client.responses.input_items.list(copied.id)]) == 7
    for _ in range(2):
        last = await stub.ask([said("user", look)], conversation=conversation.id)
        found = stub.client.responses.input_items.list(last.id)
        refs += [{"type": "item_reference", "id": one.id} async for one in found]
    with pytest.raises(openai.APIStatusError, match=r"more than 8388608 bytes \(Limits\.message_bytes\)") as refused:
        await stub.ask([*refs, *QUESTION])
    assert (refused.value.status_code, refused.value.param) == (413, "input")


async def test_as_many_messages_as_a_request_may_bring_reach_the_agent(stub: Stub) -> None:
    await stub.chat([said("system", "first"), *(200 * QUESTION)])
    assert len(stub.received[-1]["openai"]) == 201


async def test_result_that_a_message_of_the_user_follows_is_joined_to_its_call(stub: Stub) -> None:
    await run_agui(stub, "q", tools=[{name: TOOL[name] for name in ("name", "description", "parameters")}])
    result = {"id": "t1", "role": "tool", "toolCallId": "c1", "content": "7 degrees"}
    run = {"threadId": "1", "runId": "r", "messages": [result, said("user", "And now?", id="u2")]}
    stub.text = "Yes."
    for _ in range(2):  # a repeated run joins the turn
        assert (await stub.served.http.post("/agui", json=run)).status_code == 200
    assert [one["role"] for one in stub.received[-1]["openai"]] == ["user", "assistant", "tool", "user"]
    assert len(stub.received) == 2


@pytest.mark.parametrize("content", ["7 degrees", [{"type": "text", "text": "7 degrees"}], "Error: of yesterday", ""])
async def test_error_of_a_result_reaches_the_model_behind_its_content(stub: Stub, content: Any) -> None:
    await run_agui(stub, "q", tools=[{name: TOOL[name] for name in ("name", "description", "parameters")}])
    result = {"id": "t1", "role": "tool", "toolCallId": "c1", "content": content, "error": "of yesterday"}
    run = {"threadId": "1", "runId": "r", "messages": [said("user", "q", id="u"), result]}
    assert (await stub.served.http.post("/agui", json=run)).status_code == 200
    blocks = [{"type": "text", "text": text} for text in ("7 degrees", "of yesterday")]
    texts = {"": "of yesterday", "7 degrees": "7 degrees\nof yesterday", "Error: of yesterday": "Error: of yesterday"}
    assert stub.received[1]["openai"][-1]["content"] == (blocks if isinstance(content, list) else texts[content])
    loaded = (await stub.served.http.get("/agui/1/messages")).json()
    assert [(one["toolCallId"], one["error"]) for one in loaded if one["role"] == "tool"] == [("c1", "of yesterday")]
    page = (await stub.served.http.get("/agui?threadId=1")).json()["messages"]
    assert [part["state"] for one in page for part in one["parts"] if part["type"] == "tool-result"] == ["error"]


async def test_tools_that_a_choice_allows_have_the_form_of_each_api(stub: Stub) -> None:
    stub.text, tools = "Yes.", [{**TOOL, "name": "other"}, TOOL]
    of_chat = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CHAT_CHOICE]}}
    of_responses = {"type": "allowed_tools", "mode": "required", "tools": [CHOICE]}
    nested = [{"type": "function", "function": {"name": one["name"]}} for one in tools]
    await stub.chat(QUESTION, tools=nested, tool_choice=of_chat)
    await stub.ask("q", tools=tools, tool_choice=of_responses)
    for one in stub.received:
        assert one["options"]["openai"]["tool_choice"] == of_chat
        assert one["options"]["responses"]["tool_choice"] == of_responses
        assert one["options"]["anthropic"]["tool_choice"] == {"type": "any"}
        assert [tool["name"] for tool in one["options"]["anthropic"]["tools"]] == ["weather"]


MCP = {"type": "mcp", "server_label": "s"}
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
CHAT_ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CHAT_CHOICE]}}


@pytest.mark.parametrize(
    ("choice", "of_chat", "of_anthropic"),
    [
        *((one, None, None) for one in ({"type": "web_search"}, {**MCP, "name": "weather"}, {**CHOICE, "name": "x"})),
        ({**ALLOWED, "tools": [{**MCP, "name": "weather"}, CHOICE]}, CHAT_ALLOWED, {"type": "auto"}),
        ({**ALLOWED, "tools": [MCP]}, "none", None),
    ],
)
def test_choice_of_a_tool_that_the_api_lacks_is_left_out(choice: Any, of_chat: Any, of_anthropic: Any) -> None:
    request = turn_request({"tools": [TOOL, {"type": "web_search"}, MCP], "tool_choice": choice})
    assert request.options("responses")["tool_choice"] == choice
    assert request.options("openai").get("tool_choice") == of_chat
    options = request.options("anthropic")
    assert (options.get("tool_choice"), "tools" in options) == (of_anthropic, of_chat != "none")


async def test_custom_tool_is_called_with_a_text_in_the_form_of_each_api(stub: Stub) -> None:
    grammar = {"syntax": "regex", "definition": "[A-Z].*"}
    custom = {"type": "custom", "name": "weather", "format": {"type": "grammar", **grammar}}
    nested = {"type": "custom", "custom": {"name": "weather", "format": {"type": "grammar", "grammar": grammar}}}
    text = '{"city": "Ulm"}'
    first = await stub.ask("q", tools=[custom])
    (call,) = first.output
    assert (call.type, call.name, call.call_id, call.input) == ("custom_tool_call", "weather", "c1", text)
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "7 degrees"}
    joined = await stub.ask([output], previous_response_id=first.id, tools=[custom])
    whole = await stub.ask([*QUESTION, call.to_dict(), output], tools=[custom])
    assert (joined.output_text, whole.output_text) == ("It is 7 degrees.", "It is 7 degrees.")
    (choice,) = (await stub.chat(QUESTION, tools=[nested])).choices
    (chat_call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, chat_call.type) == ("tool_calls", None, "custom")
    assert chat_call.custom.input == text
    result = said("tool", "7 degrees", tool_call_id=chat_call.id)
    await stub.chat([*QUESTION, choice.message.to_dict(), result], tools=[nested])
    for one in stub.received:
        assert one["options"]["responses"]["tools"] == [custom]
        assert one["options"]["openai"]["tools"] == [nested]
    for one, id in zip((stub.received[number] for number in (1, 2, 4)), ("c1", "c1", "c4"), strict=True):
        called = {"id": id, "type": "custom", "custom": {"name": "weather", "input": text}}
        assert one["openai"][1] == {"role": "assistant", "content": None, "tool_calls": [called]}
        assert one["responses"][1:] == [
            {"type": "custom_tool_call", "call_id": id, "name": "weather", "input": text},
            {"type": "custom_tool_call_output", "call_id": id, "output": "7 degrees"},
        ]
        assert one["anthropic"][1]["content"][0]["input"] == {"input": text}


async def test_custom_calls_are_listed_as_they_were_sent(stub: Stub) -> None:
    call = {"type": "custom_tool_call", "call_id": "c", "name": "weather", "input": "Ulm"}
    plain = {"type": "function_call", "call_id": "f", "name": "place", "arguments": "{}"}
    results = [{"type": f"{one['type']}_output", "call_id": one["call_id"], "output": "7"} for one in (call, plain)]
    given: Any = [*QUESTION, call, plain, *results]
    stub.text, client = "Yes.", stub.client.conversations
    first = await stub.ask(given, tools=[{"type": "custom", "name": "weather"}])
    listed: Any = [one async for one in stub.client.responses.input_items.list(first.id, order="asc")]
    references: Any = [{"type": "item_reference", "id": one.id} for one in listed]
    made, copied = [await client.create(items=items, extra_body={"model": "bot"}) for items in (given, references)]
    for items in (listed, *[[one async for one in client.items.list(one.id, order="asc")] for one in (made, copied)]):
        shown = [one.to_dict() for one in items[1:]]
        assert [{**one, "id": "", "status": "completed"} for one in given[1:]] == [{**one, "id": ""} for one in shown]


async def test_call_of_a_custom_tool_is_streamed(stub: Stub) -> None:
    text, tools = '{"city": "Ulm"}', list[Any]([{"type": "custom", "name": "weather"}])
    async with stub.client.responses.stream(model="bot", input="q", tools=tools) as stream:
        events: list[Any] = [event async for event in stream]
    deltas = [one for one in events if one.type == "response.custom_tool_call_input.delta"]
    assert "".join(one.delta for one in deltas) == text
    (done,) = (one for one in events if one.type == "response.custom_tool_call_input.done")
    assert done.input == events[-1].response.output[0].input == text
    assert [one.to_dict() for one in events[-1].response.output] == [events[-2].item.to_dict()]
    chunks = await stub.chat(QUESTION, tools=[{"type": "custom", "custom": {"name": "weather"}}], stream=True)
    calls = [call.to_dict() async for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(one["custom"]["input"] for one in calls) == text


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "responses"])
async def test_mark_of_a_cached_prompt_reaches_the_agent_behind_its_part(stub: Stub, is_chat: bool) -> None:
    kind, mark = "text" if is_chat else "input_text", {"mode": "explicit", "ttl": "12h"}
    content = [{"type": kind, "text": "Long", "prompt_cache_breakpoint": mark}, {"type": kind, "text": "q"}]
    call = {"type": "function_call", "call_id": "x", "name": "weather", "arguments": "{}"}
    texts = [{"type": "input_text", "text": text} for text in ("Long", "q")]
    stub.text = "Yes."
    if is_chat:
        await stub.chat([said("user", content)])
    else:
        output = {"type": "function_call_output", "call_id": "x", "output": content}
        await stub.ask([*QUESTION, call, output, said("user", content)])
        assert stub.received[0]["responses"][2]["output"] == texts
    long, short = {"type": "text", "text": "Long"}, {"type": "text", "text": "q"}
    parts = stub.turns[0].message.parts[-3:]  # behind the output
    assert parts == [long, {"type": "data", "name": "prompt_cache_breakpoint", "data": mark}, short]
    assert stub.received[0]["openai"][-1] == said("user", "Long\nq")
    assert stub.received[0]["responses"][-1] == said("user", [{**texts[0], "prompt_cache_breakpoint": mark}, texts[1]])


async def test_refusal_that_a_client_sends_again_is_a_text(stub: Stub) -> None:
    await stub.chat([*QUESTION, said("assistant", None, refusal="I can't."), *QUESTION])
    assert stub.received[-1]["text"][1] == said("assistant", "I can't.")


async def test_secrets_of_a_tool_are_not_kept_and_a_choice_without_tools_is_no_option(stub: Stub) -> None:
    stub.text = "Yes."
    known = {"type": "mcp", "server_label": "s", "server_url": "https://e.x"}
    tool = {**known, "authorization": "SECRET", "headers": {"key": "SECRET"}}
    for one in (tool, {"type": "mcp", "mcp": tool}):  # some clients nest each tool
        response = await stub.ask("q", tools=[one], tool_choice="auto")
        assert "SECRET" not in response.model_dump_json() + json.dumps(stub.received)
        assert stub.received[-1]["options"]["responses"] == {"tools": [known], "tool_choice": "auto"}
        assert stub.received[-1]["options"]["openai"] == {}


async def test_empty_result_is_an_empty_text_and_a_file_in_percents_has_its_bytes(stub: Stub) -> None:
    photo = [{"type": "image_url", "image_url": {"url": "data:image/png,%89PNG%FF"}}]
    call = {"role": "assistant", "tool_calls": [function_call("weather")]}
    await stub.chat([said("user", photo), call, said("tool", [{"type": "text", "text": ""}], tool_call_id="c")])
    asked, _, result = stub.received[-1]["openai"]
    assert asked["content"][0]["image_url"]["url"] == "data:image/png;base64,iVBOR/8="
    assert result["content"] == ""


async def test_metadata_of_a_page_is_kept_and_makes_no_options(stub: Stub) -> None:
    metadata = {"options": {"kept": {"tools": "bad id!"}, "theme": "dark", "temperature": 2}, "a": 1}
    forged = {"$options": {"kept": {"tools": "bad id!"}, "temperature": 2}}
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "q"}], "metadata": metadata | forged}
    assert '"finish"' in (await stub.served.http.post("/page", json={"id": "1", "messages": [message]})).text
    assert stub.received[0]["options"]["openai"] == {}
    assert (await stub.served.http.get("/page/1/messages")).json()[0]["metadata"] == metadata


@pytest.mark.parametrize(
    "choice",
    [
        *({"type": kind, "name": "f"} for kind in (["x"], None)),
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": ["x"]}]},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": ["x"]}]}},
        {"type": "allowed_tools", "tools": 1},
        {"type": "function", "function": {"type": ["x"], "name": "f"}},
    ],
)
async def test_malformed_choice_of_a_tool_is_refused_by_name_or_left_out(stub: Stub, choice: Any) -> None:
    chat = {"model": "bot", "messages": QUESTION, "tools": [CHAT_TOOL]}
    response = {"model": "bot", "input": "q", "tools": [TOOL]}
    for path, body in (("/v1/chat/completions", chat), ("/v1/responses", response)):
        refused = await stub.served.http.post(path, json={**body, "tool_choice": choice})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "q"}]}
    page = {"id": "1", "messages": [message], "tools": [TOOL], "toolChoice": choice}
    assert '"finish"' in (await stub.served.http.post("/page", json=page)).text
    assert [one["options"]["openai"] for one in stub.received] == [{"tools": [CHAT_TOOL]}]
    stored = turn_request({"tools": [TOOL], "tool_choice": choice})  # by a client of the hub itself
    assert stored.options("openai")["tools"] == [CHAT_TOOL]
