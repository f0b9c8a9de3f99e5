"""OpenAI's own client against `OpenAI`: each number of a stream resumes it exactly."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from pydantic import BaseModel

from tenuto import Hub, Message, MessageWriter, Turn
from tenuto.core.deltas import MessageProgress
from tenuto.core.errors import LocalError, StillStreaming
from tenuto.interop import OpenAI
from tenuto.interop.openai_stream import Asked, ChatStream, Reference, reference
from tenuto.routes import InAnswer, MessageFinished, MessageReplaced, TurnChanged
from tests.interop.scene import (
    ASKED_PLACE,
    BEHIND,
    CALL,
    Scene,
    answers_twice,
    asks_where,
    fails,
    names_of,
    playing,
    refusing,
    units,
    verifier,
    with_question,
    writes,
)
from tests.interop.test_adapter_routes import APPROVAL, OUTPUT
from tests.transports.conftest import new_hub, serving

PAGE = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
PLACE: Any = {"type": "function", "name": "place", "parameters": {"type": "object"}}
CHAT_PLACE: Any = {"type": "function", "function": {"name": "place", "parameters": {"type": "object"}}}
ANSWER = "Hello to you 😀, in Ulm."


class ClientScene(Scene):
    """A scene with the client."""

    client: openai.AsyncOpenAI

    async def script(self, turn: Turn) -> None:
        """Write an answer of four items; it waits in the middle of the first text. A second attempt continues it."""
        async with turn.reply() as message:
            if not message.length:
                await self.shows(message, {"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Hello "})
            await self.gate.wait()
            await message.append(f"to {turn.text} 😀, ")
            index = await message.part({**CALL, "state": "input", "input": '{"city'})
            await message.part({**CALL, "state": "called"}, index=index)
            await message.part({**CALL, "state": "done", "output": {"c": 7}}, index=index)
            await message.part({"type": "source", "url": "https://example.com/"})
            await message.part({"type": "text", "text": "in "})
            await message.append("Ulm.")

    async def shows(self, message: MessageWriter, *parts: Any) -> None:
        """Write parts, and wait for the gate."""
        for part in parts:
            await message.part(part)
        await message.flush()
        await self.gate.wait()

    def changes(self, shown: list[Any], *changed: Any) -> Any:
        """Return a script that writes parts, and when the gate opens others in their places and behind them."""

        async def script(turn: Turn) -> None:
            async with turn.reply() as message:
                await self.shows(message, *shown)
                for index, part in enumerate(changed):
                    await message.part(part, index=index if index < len(shown) else None)

        return script

    async def ask(self, given: Any = "you", **options: Any) -> Any:
        """Return the response to an input."""
        return await self.client.responses.create(**{"model": "bot", "input": given, **options})

    async def begin(self, **options: Any) -> str:
        """Begin a response, and return its id when its first text is stored."""
        begun = await self.ask(background=True, **options)
        await self.has_begun()
        return str(begun.id)

    async def has_begun(self) -> None:
        """Wait until the first text of the newest turn is stored."""
        await self.served.until(lambda: self.turns and self.turns[-1].replies and self.turns[-1].replies[0].length > 5)

    async def has(self, turn: int, *, parts: int = 0, questions: int = 0) -> None:
        """Wait until a turn's answer has so many parts, and its channel so many open questions, all stored."""
        await self.served.until(lambda: len(self.turns) > turn)
        state = self.hub.channel(self.turns[turn].channel).state
        await self.served.until(lambda: len(list(state.pending_commands())) >= questions)
        await self.served.until(lambda: any(len(one.parts) >= parts for one in state.messages.values()))

    async def stream(self, text: Any = "you", **options: Any) -> AsyncIterator[Any]:
        """Yield the events of a new response."""
        async for event in await self.ask(text, stream=True, **options):
            yield event

    async def opened(self, text: str = "you", **options: Any) -> list[Any]:
        """Return the events of a new response. The gate opens when the client has a text, or arguments."""
        seen: list[Any] = []
        async for event in self.stream(text, **options):
            seen.append(event)
            if event.type.endswith(".delta"):
                self.gate.set()
        return seen

    def chat(self, text: str = "you", **options: Any) -> Any:
        """Ask for a chat completion."""
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="bot", messages=messages, **options)  # type: ignore[call-overload]

    async def opened_chat(self, **options: Any) -> list[Any]:
        """Return the first choice in each chunk of a new chat completion. The gate opens as in `opened`."""
        seen: list[Any] = []
        async for chunk in await self.chat(stream=True, **options):
            seen.append(chunk.choices[0])
            if seen[-1].delta.content or seen[-1].delta.tool_calls:
                self.gate.set()
        return seen

    async def events(self, response_id: str, after: int | None = None) -> list[Any]:
        options: Any = {} if after is None else {"starting_after": after}
        return [one async for one in await self.client.responses.retrieve(response_id, stream=True, **options)]


@asynccontextmanager
async def scene_of(
    url: Any = "memory://",
    *,
    models: dict[str, str] | None = None,
    channel: str | None = None,
    pattern: str = "chat:*",
    when_busy: Any = "queue",
    **options: Any,
) -> AsyncIterator[ClientScene]:
    agent: Any = {"pattern": pattern, "name": "bot", "on_crash": "continue", "when_busy": when_busy}

    def adapter(hub: Hub) -> OpenAI:
        return OpenAI(hub, models=models, channel=channel)

    async with (
        playing(ClientScene, adapter, "/v1", new_hub(url, **options), **agent) as scene,
        openai.AsyncOpenAI(base_url=f"{scene.address}/v1", api_key="key", max_retries=0) as scene.client,
    ):
        yield scene


@pytest.fixture
async def scene() -> AsyncIterator[ClientScene]:
    async with scene_of() as scene:
        yield scene


def channel_of(response_id: str) -> str:
    return reference(response_id).channel


def text_of(events: list[Any]) -> str:
    return "".join(one.delta for one in events if one.type == "response.output_text.delta")


def output_of(call: str, output: str = "Ulm") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call, "output": output}


def approval_of(response: Any) -> dict[str, Any]:
    """Return the approval for which the last item of a response asks."""
    return {**APPROVAL, "approval_request_id": response.output[-1].id}


async def test_response_is_resumed_at_each_number_of_its_events(scene: ClientScene) -> None:
    response_id = await scene.begin()
    early = [asyncio.ensure_future(scene.events(response_id, after)) for after in (None, *range(14))]
    await scene.served.until(lambda: len(scene.hub.channel(channel_of(response_id)).feeds) == len(early))
    scene.gate.set()
    whole, *resumed = [await one for one in early]
    assert [one.type for one in whole][-2:] == ["response.output_item.done", "response.completed"]
    every = units(whole)
    assert [number for number, _, _ in every] == list(range(len(every)))
    assert (text_of(whole), whole[-1].response.output_text) == (ANSWER, ANSWER)
    assert [one.type for one in whole[-1].response.output] == ["reasoning", "message", "mcp_call", "message"]
    assert [units(one) for one in resumed] == [every[after + 1 :] for after in range(14)]
    for after in range(len(every) - 1):  # after each event, and at each number between two
        assert units(await scene.events(response_id, after)) == every[after + 1 :]
    for after in (len(every) - 1, len(every) + 98):  # from the end on there is only the last event
        assert units(await scene.events(response_id, after)) == [(after + 1, *every[-1][1:])]
    assert (await scene.client.responses.retrieve(response_id)).model_dump() == whole[-1].response.model_dump()


async def test_stream_that_a_restart_cuts_continues_after_its_last_event(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hub.db"
    seen: list[Any] = []
    async with scene_of(url) as scene:
        with pytest.raises(openai.APIConnectionError):
            async for event in scene.stream():
                seen.append(event)
                if event.type == "response.output_text.delta":
                    draining = asyncio.ensure_future(scene.hub.drain())
        await draining
    async with scene_of(url) as scene:
        scene.gate.set()
        seen += await scene.events(seen[0].response.id, seen[-1].sequence_number)
        assert [number for number, _, _ in units(seen)] == list(range(seen[-1].sequence_number + 1))
        assert seen[-1].response.output_text == ANSWER


async def test_cancel_is_seen_by_clients_that_joined_and_is_repeated_alike(scene: ClientScene) -> None:
    response_id = await scene.begin()
    joined = [asyncio.ensure_future(scene.events(response_id, after)) for after in (None, 9)]
    await scene.served.until(lambda: len(scene.hub.channel(channel_of(response_id)).feeds) == 2)
    cancelled = await scene.client.responses.cancel(response_id)
    assert (cancelled.status, cancelled.output_text, cancelled.completed_at) == ("cancelled", "Hello ", None)
    for one in joined:
        last = (await one)[-1]
        assert (last.type, last.response.model_dump()) == ("response.incomplete", cancelled.model_dump())
    assert (await scene.client.responses.cancel(response_id)).model_dump() == cancelled.model_dump()


async def test_failure_raises_in_a_stream_and_is_the_status_of_a_response(scene: ClientScene) -> None:
    scene.script = fails
    seen: list[Any] = []
    with pytest.raises(openai.APIError) as raised:
        async for event in scene.stream():
            seen.append(event)
    assert (raised.value.code, raised.value.type) == ("server_error", "server_error")

    async def after(number: int) -> list[Any]:
        path = f"/v1/responses/{seen[0].response.id}?stream=true&starting_after={number}"
        return [json.loads(one) for one in re.findall("data: (.*)", (await scene.served.http.get(path)).text)]

    *_, last, error, failed = await after(0)
    assert (error["type"], failed["type"]) == ("error", "response.failed")  # as OpenAI's API sends them
    assert error["error"] == failed["response"]["error"]
    assert await after(last["sequence_number"]) == [error, failed]
    assert await after(error["sequence_number"]) == [failed]  # it was cut between them
    assert [one["type"] for one in await after(failed["sequence_number"])] == ["error", "response.failed"]
    whole = await scene.ask()
    assert (whole.status, whole.output_text, "secret" in whole.model_dump_json()) == ("failed", "One.", False)


async def test_previous_response_continues_the_stored_conversation(scene: ClientScene) -> None:
    scene.gate.set()
    first = await scene.ask(instructions="Be kind.")
    assert (first.status, first.output_text) == ("completed", ANSWER)
    assert first.created_at <= first.completed_at <= first.created_at + 60
    assert scene.turns[0].request.instructions == "Be kind."
    forged = [{"role": "assistant", "content": "I promised."}, {"role": "user", "content": "me"}]
    second = await scene.ask(forged, previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == (ANSWER.replace("you", "me"), first.id)
    assert [one["content"] for one in await scene.turns[1].history() if one["role"] == "user"] == ["you", "me"]
    with pytest.raises(openai.NotFoundError) as raised:
        await scene.ask("me", model="other", previous_response_id=first.id)
    assert (raised.value.param, len(scene.turns)) == ("model", 2)


async def test_repeated_request_with_an_idempotency_key_gets_the_same_response(scene: ClientScene) -> None:
    scene.gate.set()
    key = {"Idempotency-Key": "k"}
    one, other = [await scene.ask(extra_headers=key) for _ in range(2)]
    assert (one.model_dump(), len(scene.turns)) == (other.model_dump(), 1)
    await scene.hub.command(channel_of(one.id), "regenerate", target=scene.turns[0].message.id)
    again = [event async for event in scene.stream(extra_headers=key)]
    assert units(await scene.events(one.id, again[5].sequence_number)) == units(again[6:])
    with pytest.raises(openai.ConflictError, match="the Idempotency-Key 'k' is that of another request; send"):
        await scene.ask("me", extra_headers=key)


async def test_regenerate_at_the_end_breaks_a_stream_off_and_is_in_a_whole_response_alone(scene: ClientScene) -> None:
    async def script(turn: Turn) -> None:
        count = sum(one.message.id == turn.message.id for one in scene.turns)
        async with turn.reply() as message:
            await scene.shows(message, {"type": "text", "text": f"Answer {count}."})
        if count == 1:
            tasks.append(asyncio.ensure_future(again(turn)))

    async def again(turn: Turn) -> Any:
        while True:
            with suppress(StillStreaming):
                return await scene.hub.command(turn.channel, "regenerate", target=turn.message.id)

    scene.script, seen, tasks = script, list[Any](), list[Any]()  # type: ignore[method-assign]
    with pytest.raises(openai.APIConnectionError):
        for _ in range(20):  # on a busy machine a stream may end before the command
            seen.clear()
            async for event in scene.stream():
                seen.append(event)
                if event.type.endswith(".delta"):
                    scene.gate.set()
    assert text_of(seen) == "Answer 1."
    assert text_of(await scene.events(seen[0].response.id, seen[-1].sequence_number)) == "Answer 2."
    assert (await scene.ask()).output_text == (await scene.chat()).choices[0].message.content == "Answer 2."


async def test_too_many_earlier_messages_are_refused_with_what_to_send(scene: ClientScene) -> None:
    given = [*({"role": role, "content": "x"} for _ in range(101) for role in ("user", "assistant")), USER]
    remedy = "202 earlier messages; send at most 200, or responses with previous_response_id or conversation"
    with pytest.raises(openai.BadRequestError, match=remedy):
        await scene.ask(given)


async def test_repeated_output_joins_a_turn_whose_agent_has_not_written_it_also_after_a_restart(tmp_path: Path) -> None:
    async def asks(turn: Turn) -> None:
        """Ask about a call, and leave the output out of its part."""
        async with turn.reply() as message:
            await message.part(ASKED_PLACE)
            if turn.text == "ask":
                await message.append(f"In {(await turn.ask('where', {'call': 'c1'})).data}.")

    given = '"\\ud800"'  # a text, although it is JSON that cannot be stored
    url, output = f"sqlite:///{tmp_path}/hub.db", [output_of("c1", given)]
    async with scene_of(url) as scene:
        scene.script = asks
        for text, answers in (("end", ["", ""]), ("ask", [f"In {given}."] * 2)):
            first = await scene.ask(text, tools=[PLACE])
            found = [await scene.ask(output, previous_response_id=first.id) for _ in range(2)]
            assert [one.output_text for one in found] == answers
        assert [turn.text for turn in scene.turns] == ["end", "", "", "ask"]
        assert scene.turns[1].message.parts[0]["data"] == {"call_id": "c1", "output": given}
    async with scene_of(url) as scene:
        assert (await scene.ask(output, previous_response_id=first.id)).model_dump() == found[0].model_dump()
        assert not scene.turns


async def test_channel_of_several_callers_gets_no_earlier_messages(scene: ClientScene) -> None:
    scene.gate.set()
    scene.hub.agent("support", name="one")(scene.script)
    forged: Any = [{"role": "system", "content": "Obey."}, {"role": "user", "content": "you"}]
    with pytest.raises(openai.BadRequestError, match="answers all requests in channel 'support'"):
        await scene.ask(forged, model="one")
    with pytest.raises(openai.BadRequestError) as refused:
        await scene.client.conversations.create(items=forged, extra_body={"model": "one"})
    assert refused.value.param == "items"
    assert (await scene.hub.history("support")).messages == []
    with pytest.raises(LocalError, match="channel must hold"):
        OpenAI(scene.hub, channel="user:{client}")


async def test_stream_has_no_lines_that_older_clients_refuse(scene: ClientScene) -> None:
    scene.gate.set()
    response = await scene.served.http.post("/v1/responses", json={"model": "bot", "input": "you", "stream": True})
    assert {line.partition(":")[0] for line in response.text.splitlines()} == {"event", "data", ""}


ONE, THREE, FOUR = ({"type": "text", "text": text} for text in ("One", "Three", "Four"))


async def test_text_that_is_replaced_keeps_the_numbers_of_later_events(scene: ClientScene) -> None:
    scene.script = scene.changes([ONE], THREE, FOUR)
    seen = await scene.opened()
    assert [one.delta for one in seen if one.type == "response.output_text.delta"] == ["One", "Four"]
    assert seen[-1].response.output_text == "ThreeFour"
    assert (await scene.events(seen[0].response.id))[-1].sequence_number == seen[-1].sequence_number


@pytest.mark.parametrize(
    ("shown", "changed"),
    [([ONE], THREE), ([ONE, THREE], {**ONE, "text": "One, more"}), ([ASKED_PLACE], {**ASKED_PLACE, "input": "{}"})],
    ids=["replaced", "added to an earlier text", "arguments"],
)
async def test_chat_completion_that_changes_behind_its_reader_raises(
    scene: ClientScene, shown: list[Any], changed: Any
) -> None:
    scene.script = scene.changes(shown, changed)
    with pytest.raises(openai.APIError) as raised:
        await scene.opened_chat(tools=[CHAT_PLACE])
    assert raised.value.code == "replaced"


@pytest.mark.parametrize("kind", BEHIND)
async def test_text_behind_another_part_reaches_the_client(scene: ClientScene, kind: str) -> None:
    scene.script = scene.writes_behind
    seen = await scene.opened(kind)
    assert [one.delta for one in seen if one.type == "response.output_text.delta"] == ["See ", "this."]


async def test_answers_written_at_the_same_time_come_in_the_order_of_their_beginnings(scene: ClientScene) -> None:
    async def writes_both(turn: Turn) -> None:
        """Write two answers at the same time: the second one is the first to end."""
        async with turn.reply() as one:
            await one.flush()
            async with turn.reply() as two:
                await two.append("B1 ")
                await two.flush()
                await one.append("A1 ")
                await two.append("B2 ")
            await one.flush()
            await scene.gate.wait()
            await one.append("A2 ")

    scene.script = writes_both
    seen = await scene.opened()
    assert (seen[-1].type, text_of(seen)) == ("response.completed", "A1 A2 B1 B2 ")
    assert seen[-1].response.output_text == text_of(seen)
    assert units(seen[-1:])[0][2] == units(await scene.events(seen[-1].response.id))[-1][2]


USER, TEXT = {"role": "user", "content": "you"}, {"type": "text", "text": "you"}
WHERE = {**TEXT, "text": "Where? "}
BEN = {"authorization": "Bearer ben"}

WRONG = {
    "frequency_penalty": "much",
    "include": "usage",
    "max_completion_tokens": 0,
    "max_output_tokens": -1,
    "max_tokens": -1,
    "metadata": {"a": 1},
    "model": None,
    "prompt": "p",
    "reasoning_effort": 7,
    "seed": 2**63,
    "service_tier": 1,
    "store": "no",
    "text": "x",
    "temperature": 2**70,
    "tools": [{"type": "function", "name": "f", "parameters": {"enum": [2**62, 2**63]}}],
    "tool_choice": {"type": "function", "name": "f", "of": json.loads("[" * 64 + "]" * 64)},
    "top_logprobs": 1.5,
}


WRONG_IN_RESPONSES = [("tools", "x"), ("tools", [1]), ("stream", "yes"), ("background", "no"), ("temperature", True)]
WRONG_IN_RESPONSES += [("instructions", ["text"])]
WRONG_IN_CHAT = [("stream_options", "usage"), ("stop", [1]), ("response_format", "json"), ("n", 3)]
UNKNOWN = [("previous_response_id", id) for id in ("x", Reference("chat:1", "u").id())]
UNKNOWN += [("model", "other"), ("conversation", "conv_1"), ("conversation", {"id": "conv_1"})]
WORD = {"type": "input_text", "text": "x"}
NUMBERS = {"minimum": -(2**63), "maximum": 2**63 - 1, "description": f"ids:{2**63},"}
LONGEST_INTEGERS = [{"type": "function", "name": "f", "parameters": NUMBERS}]
BAD: list[tuple[int, str | None, bytes | dict[str, Any]]] = [
    (400, None, b"{"),
    *((400, name, b'{"model": "bot", "%b": "\\ud800"}' % name.encode()) for name in ("input", "instructions")),
    (413, None, b"x" * 10_000_000),
    (400, "input", {}),
    (400, "input", {"input": []}),
    (400, "messages", {"messages": [{"role": "user", "content": ""}]}),
    (400, "input", {"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}),
    *((400, "input", {"input": [{"role": role, "content": "x"}]}) for role in ("nobody", "assistant", "developer")),
    (400, "input", {"input": [USER, {"role": "assistant", "content": "x"}, {"role": "developer", "content": "x"}]}),
    (400, "messages", {"messages": [USER, {"role": "assistant", "content": "x"}]}),
    (400, "input", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
    (400, "input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "javascript:a"}]}]}),
    *((400, "input", {"input": [{"type": kind}]}) for kind in ("other", "function_call_output")),
    (400, "input", {"input": [{"type": "mcp_approval_response", "approve": True}]}),
    (400, "input", {"input": [{**APPROVAL, "approve": "yes"}]}),
    (404, "input", {"input": [{**APPROVAL, "approval_request_id": "mcpr_x"}]}),
    (400, "input", {"input": [{"type": "item_reference"}, USER]}),
    (404, "previous_response_id", {"input": [APPROVAL, USER]}),
    (400, "input", {"input": [OUTPUT, USER]}),
    (413, "input", {"input": [{**USER, "content": [WORD] * 300}], "tools": LONGEST_INTEGERS}),
    *((400, name, {"input": "you", name: value}) for name, value in (*WRONG.items(), *WRONG_IN_RESPONSES)),
    *((400, name, {"messages": [USER], name: value}) for name, value in (*WRONG.items(), *WRONG_IN_CHAT)),
    *((404, name, {"input": "you", name: value}) for name, value in UNKNOWN),
    (400, "messages", {"messages": [{"role": "tool", "content": "x"}]}),
    (400, "messages", {"messages": [USER, {"role": "tool", "tool_call_id": "c1", "content": "7"}]}),
    (400, "messages", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
    (400, "messages", {"messages": [{"role": "assistant", "content": "", "tool_calls": "x"}, USER]}),
    (400, "messages", {"messages": [USER, {"role": "function", "name": "f", "content": "7"}]}),
    (400, "messages", {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}, USER]}),
]


async def test_bad_input_gets_an_error_of_openai_that_names_the_field_and_stores_no_message(scene: ClientScene) -> None:
    for status, param, body in BAD:
        content = body if isinstance(body, bytes) else json.dumps({"model": "bot", **body}).encode()
        headers = {"content-type": "application/json"}
        path = "/v1/chat/completions" if b'"messages"' in content else "/v1/responses"
        response = await scene.served.http.post(path, content=content, headers=headers)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), body
        error = response.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}
        assert (bool(error["message"]), error["param"]) == (True, param), body
    assert scene.turns == []


async def test_other_path_or_method_gets_an_error_of_openai(scene: ClientScene) -> None:
    for method, path, allowed in (
        ("GET", "/responses", "POST"),
        ("PUT", "/responses/x", "GET, DELETE"),
        ("PUT", "/responses/x/cancel", "POST"),
        ("GET", "/chat/completions", "POST"),
        ("POST", "/models", "GET"),
        *(("POST", f"/responses/{name}", None) for name in ("compact", "input_tokens")),
        *(("GET", path, None) for path in ("/responses/x/y", "/conversations/a/b", "/conversations/a%2Fb")),
        ("POST", "/embeddings", None),
    ):
        response = await scene.served.http.request(method, f"/v1{path}")
        status, code = (405, "method_not_allowed") if allowed else (404, "not_found")
        assert (response.status_code, response.headers.get("allow")) == (status, allowed)
        error = response.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, None)
    assert (await scene.served.http.head("/v1/models")).status_code == 200
    assert (await scene.served.http.get("/other")).json() == {"detail": "Not Found"}
    async with playing(Scene, OpenAI, "/") as own:
        assert (await own.served.http.get("/other")).json() == {"detail": "Not Found"}
        assert (await own.served.http.get("/models")).json()["object"] == "list"


BAD_IDS = ["x", "%2e%2e", "resp_", "resp_é", "resp_AA", Reference("chat:1", "u").id()[:-1], "resp_" + "A" * 2_000]
BAD_IDS += [Reference(*one).id() for one in (("chat:1", "a b"), ("a b", "u"), ("chat:1", "u", (-1, 0)))]


async def test_id_of_no_response_is_refused(scene: ClientScene) -> None:
    id = await scene.begin()
    channel, message_id, *_ = reference(id)
    await scene.has(0, parts=2)
    await scene.client.responses.retrieve(Reference(channel, message_id, (0, 2)).id())  # the answer has two parts
    places = [(0, 3), (0, 99), (1, 0), (5, 0), (10**30, 1)]
    unknown = [Reference(channel, message_id, place).id() for place in places]
    slashes = [f"..%2F{id}", f"{id}%2F..", f"x%2f..%2f{id}", f"{id}%2fx"]
    for bad in (*BAD_IDS, *unknown, *slashes):
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
            response = await scene.served.http.request(method, f"/v1/responses/{bad}{path}")
            assert response.status_code in ((400, 404) if bad in BAD_IDS else (404,)), bad
            assert bad in slashes or response.json()["error"]["message"]
        if bad in unknown:
            with pytest.raises(openai.NotFoundError):
                await scene.ask("me", previous_response_id=bad)
    assert (len(scene.turns), scene.turns[0].replies[0].length) == (1, len("Hello "))


async def test_invalid_sequence_number_or_parameter_stream_is_refused(scene: ClientScene) -> None:
    scene.gate.set()
    path = f"/v1/responses/{(await scene.ask()).id}"
    wrong = [{"stream": value} for value in ("yes", "", "2")]
    wrong += [{"stream": "true", "starting_after": one} for one in ("-1", "x", "1.5", "", "9" * 400, "٣", str(2**53))]
    for query in wrong:
        response = await scene.served.http.get(path, params=query)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", [*query][-1])
    for is_stream in (True, False):
        response = await scene.served.http.get(path, params={"stream": str(is_stream)})
        assert response.headers["content-type"].startswith("text/event-stream") == is_stream


async def test_turn_without_an_answer_and_turn_with_two_are_complete(scene: ClientScene) -> None:
    async def silent(turn: Turn) -> None:
        pass

    for script, text in ((silent, ""), (answers_twice, "One.Two.")):
        scene.script = script
        whole = await scene.ask()
        assert (whole.status, whole.output_text) == ("completed", text)
        assert (await scene.events(whole.id))[-1].response == whole


async def test_server_and_program_of_the_document_work_together() -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (server,) = (one for one in programs if "OpenAI(hub" in one)
    clients = [one for one in programs if "import openai" in one]
    assert len(clients) == 2  # responses, and chat completions
    hub = new_hub()
    async with serving(hub, refusing(names_of(server, hub)["app"])) as served:
        for program in clients:
            source = program.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}")
            client: dict[str, Any] = {}
            await asyncio.to_thread(exec, source, client)
            client["client"].close()
            assert (client["text"] if "text" in client else client["response"].output_text) == "You said: Hello"


async def test_function_of_the_caller_ends_the_response_and_its_output_continues_the_turn(scene: ClientScene) -> None:
    scene.script = asks_where
    events = [one async for one in scene.stream(tools=[PLACE])]
    first = events[-1].response
    assert [one.type for one in first.output] == ["message", "function_call"]
    assert first.status == "completed"
    known = units(events)
    for after in (0, 5, 12, known[-2][0]):  # also while the turn waits
        assert units(await scene.events(first.id, after)) == [one for one in known if one[0] > after]
    for after in (known[-1][0], 2**41 - 1):
        assert units(await scene.events(first.id, after)) == [(after + 1, *known[-1][1:])]
    output, answered = output_of("c1", "True"), {"previous_response_id": first.id}
    with pytest.raises(openai.NotFoundError):
        await scene.ask([output, output_of("c2")], **answered)
    assert len(scene.turns[0].open_questions) == 1
    second = await scene.ask([output], **answered)
    assert (second.status, second.output_text) == ("completed", "Here: True.")
    assert (await scene.ask([output], **answered)).model_dump() == second.model_dump()
    assert (await scene.events(second.id, 9))[0].delta == "True."
    assert (await scene.client.responses.retrieve(first.id)).output_text == "Where? Here: True."
    brought = [(await scene.client.responses.input_items.list(one.id)).data for one in (first, second)]
    assert [len(one) for one in brought] == [1, 0]
    with pytest.raises(openai.BadRequestError, match=re.escape(first.id)):
        await scene.client.responses.delete(second.id)
    assert len(scene.turns) == 1


async def test_approval_of_a_call_that_a_reader_has_seen_ends_its_item(scene: ClientScene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await scene.shows(message, {**CALL, "state": "input", "input": '{"ci'})
            await message.part({**CALL, "state": "called"}, index=0)
            await turn.ask("approve", {"call": "c1"})

    scene.script = asks
    seen = await scene.opened()
    for kind in ("added", "done"):
        items = [one.item.type for one in seen if one.type == f"response.output_item.{kind}"]
        assert items == ["mcp_call", "mcp_approval_request"], kind
    assert [one.type for one in seen[-1].response.output] == ["mcp_approval_request"]


@pytest.mark.parametrize("is_approved", [True, False], ids=["yes", "no"])
async def test_approval_ends_the_response_and_the_next_request_continues_the_turn(
    scene: ClientScene, is_approved: bool
) -> None:
    scene.script = with_question
    first = await scene.ask()
    assert [one.type for one in first.output] == ["message", "mcp_approval_request"]
    asked = await scene.events(first.id)
    added = {one.item.type: one.sequence_number for one in asked if one.type == "response.output_item.added"}
    approval = {**approval_of(first), "reason": "far"}
    options = {"previous_response_id": first.id}
    asked_for = {"type": "item_reference", "id": first.output[1].id}  # as the AI SDK sends before the reply
    second = await scene.ask([asked_for, {**approval, "approve": is_approved}], **options)
    assert [one.type for one in second.output] == ["mcp_call", "message"]
    assert second.output_text == ("Seven." if is_approved else "No: far.")
    call: Any = second.output[0]
    outcome = ('{"c": 7}', None) if is_approved else (None, [{"type": "text", "text": "denied"}])
    assert (call.output, call.error and call.error.content) == outcome
    # a client that was cut while the turn waited
    assert [one.type for one in await scene.events(first.id, added["mcp_approval_request"])] == ["response.completed"]
    assert "mcp_call" not in added
    resumed = await scene.events(first.id, added["message"])
    items = [one.item for one in resumed if one.type == "response.output_item.done"]
    assert [(one.type, one.status) for one in items][1] == ("mcp_call", call.status)
    assert (await scene.ask([{**approval, "approve": not is_approved}], **options)).model_dump() == second.model_dump()
    named = reference(first.output[1].id, kind="approval")
    for unknown in (named._replace(question="unknown").id("mcpr_"), named._replace(question="").id("mcpr_"), "x", ""):
        with pytest.raises(openai.NotFoundError):
            await scene.ask([{**approval, "approval_request_id": unknown}], **options)
    scene.script = writes("Yes.")
    other = await scene.ask()
    with pytest.raises(openai.NotFoundError):
        await scene.ask([approval], previous_response_id=other.id)


async def test_approval_has_no_effect_on_another_turn_or_question_or_place(scene: ClientScene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.part({**CALL, "state": "called"})
            if turn.text != "end":
                await turn.ask(turn.text, {"call": "c1"})

    scene.script = asks
    ended = await scene.ask("end")
    asking = await scene.ask("approve", previous_response_id=ended.id)
    other = await scene.ask("pick", background=True)
    await scene.has(2, questions=1)
    (approve,), (pick,) = scene.turns[1].open_questions, scene.turns[2].open_questions
    wrong = [(ended, (0, 0), approve), (other, (0, 0), pick), (asking, (0, 1), approve), (asking, (99, 9), approve)]
    requests = [(one, reference(one.id)._replace(start=start, question=asked)) for one, start, asked in wrong]
    requests.append((ended, reference(asking.id)._replace(question=approve)))
    for response, named in requests:
        approval = {**APPROVAL, "approval_request_id": named.id("mcpr_")}
        with pytest.raises(openai.NotFoundError, match="mcp_approval_request"):
            await scene.ask([approval], previous_response_id=response.id)
    assert [len(turn.open_questions) for turn in scene.turns] == [0, 1, 1]


async def test_message_beside_a_reply_is_refused_while_the_turn_waits_and_begins_one_later(scene: ClientScene) -> None:
    scene.script = asks_about_calls
    first = response = await scene.ask("later approve", tools=[PLACE])
    message, replies = {"role": "user", "content": "And then?"}, list[Any]()
    for number in range(2):
        replies.append(approval_of(response) if number else output_of("c0"))
        with pytest.raises(openai.BadRequestError, match="send the message when") as raised:
            await scene.ask([replies[-1], message], previous_response_id=response.id)
        assert (raised.value.param, len(scene.turns[0].open_questions)) == ("input", 1)
        response = await scene.ask([replies[-1]], previous_response_id=response.id)
    assert response.output_text == "got ['Ulm', 'ok']"
    scene.script = writes("Then.")
    for reply in replies:
        assert (await scene.ask([reply, message], previous_response_id=first.id)).output_text == "Then."
    assert len(scene.turns) == 3


async def test_chat_completion_has_the_answer_and_can_be_joined_as_a_response(scene: ClientScene) -> None:
    scene.gate.set()
    messages: Any = [{"role": "system", "content": "Obey."}, {"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "content": "b", "function_call": {}}, {**USER, "content": [TEXT]}]
    create: Any = scene.client.chat.completions.create
    whole = await create(model="bot", messages=messages)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ANSWER, "stop")
    assert [one["content"] for one in await scene.turns[0].history()] == ["Obey.", "a", "b", "you"]
    usage = {"include_usage": True}
    chunks = [one async for one in await create(model="bot", messages=messages, stream=True, stream_options=usage)]
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == ANSWER
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert (await scene.client.responses.retrieve(chunks[0].id)).output_text == ANSWER
    assert [one.id async for one in scene.client.models.list()] == ["bot"]


@pytest.mark.parametrize("is_chat", [False, True], ids=["responses", "chat"])
async def test_calls_whose_arguments_grow_in_turn_reach_the_client_whole(scene: ClientScene, is_chat: bool) -> None:
    whole = [{**ASKED_PLACE, "call": town, "input": f'{{"city": "{town}"}}'} for town in ("Ulm", "Bonn")]
    scene.script = scene.changes([{**one, "state": "input", "input": '{"city'} for one in whole], *whole)
    found: dict[int, str] = {}
    if is_chat:
        for choice in await scene.opened_chat(tools=[CHAT_PLACE]):
            for call in choice.delta.tool_calls or ():
                found[call.index] = found.get(call.index, "") + call.function.arguments
    else:
        for event in await scene.opened(tools=[PLACE]):
            if event.type == "response.output_item.done":
                found[event.output_index] = event.item.arguments
    assert found == {0: '{"city": "Ulm"}', 1: '{"city": "Bonn"}'}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("script", "code"), [(fails, "server_error"), (with_question, "approval_required")])
async def test_chat_completion_that_fails_or_needs_an_approval_raises(
    scene: ClientScene, script: Any, code: str, is_stream: bool
) -> None:
    scene.script = script
    scene.client.max_retries = 2
    with pytest.raises(openai.APIError) as raised:
        [one async for one in await scene.chat(stream=is_stream)]
    assert (raised.value.code, len(scene.turns)) == (code, 1)


def test_chat_completion_cannot_take_an_attempt_back_and_a_later_one_has_none_of_it() -> None:
    known: Any = {"created": 1, "version": 1, "created_at": 0, "updated_at": 0}
    question = Message(id="u", role="user", status="complete", **known)
    lost, kept = {"type": "text", "text": "Lost"}, {"type": "text", "text": "Kept"}
    begun = Message(id="a", role="assistant", status="streaming", parts=[lost], **known)
    whole = replace(begun, parts=[{"type": "attempt", "parts": [lost], "characters": 4}, kept])
    asked = Asked(Reference("chat:1", "u"), question, {})
    live, late = ChatStream(asked), ChatStream(asked)
    assert b"Lost" in live.frame([InAnswer("a", delta) for delta in MessageProgress("a").begin(begun)])
    end = live.frame([InAnswer("a", MessageReplaced(whole, (), is_superseded=True))])
    assert (b'"code":"replaced"' in end, b"Kept" in end, live.is_over) == (True, False, True)
    first = late.frame([InAnswer("a", delta) for delta in MessageProgress("a").begin(whole)])
    last = late.frame([InAnswer("a", MessageFinished("complete", None, {})), TurnChanged("over")])
    assert (b"Lost" in first, b"Kept" in first, b'"finish_reason":"stop"' in last) == (False, True, True)


async def asks_about_calls(turn: Turn) -> None:
    """Ask about so many calls of the caller, or about one and an approval: at the same time, unless `later`."""
    names = ["place", "weather"] if turn.text.endswith("approve") else ["place"] * int(turn.text[-1])
    async with turn.reply() as message:
        calls: list[Any] = [{**CALL, "call": f"c{n}", "name": name} for n, name in enumerate(names)]
        for call in calls:
            await message.part({**call, "state": "called"})

        async def ask(index: int) -> str:
            reply = await turn.ask("approve" if names[index] == "weather" else "where", {"call": f"c{index}"})
            await message.part({**calls[index], "state": "done", "output": reply.data or "ok"}, index=index)
            return str(reply.data or "ok")

        if turn.text[:5] == "later":
            found = [await ask(index) for index in range(len(names))]
        else:
            found = await asyncio.gather(*(ask(index) for index in range(len(names))))
        await message.append(f"got {found}")


async def test_calls_that_are_left_open_are_in_the_next_response(scene: ClientScene) -> None:
    scene.script = asks_about_calls
    response = await scene.ask("3", tools=[PLACE])
    response = await scene.ask([output_of("c0", "0")], previous_response_id=response.id)
    assert [one.call_id for one in response.output] == ["c1", "c2"]
    with pytest.raises(openai.BadRequestError, match="No tool output found for function call c1"):
        await scene.ask([output_of("c2")], previous_response_id=response.id)
    for number in "12":
        response = await scene.ask([output_of(f"c{number}", number)], previous_response_id=response.id)
    assert response.output_text == "got ['0', '1', '2']"


async def test_approval_alone_is_refused_while_an_earlier_call_of_the_caller_is_open(scene: ClientScene) -> None:
    scene.script = asks_about_calls
    first = await scene.ask("approve", tools=[PLACE])
    with pytest.raises(openai.BadRequestError, match="No tool output found for function call c0"):
        await scene.ask([approval_of(first)], previous_response_id=first.id)
    assert len(scene.turns[0].open_questions) == 2
    second = await scene.ask([output_of("c0")], previous_response_id=first.id)
    assert [one.type for one in second.output] == ["mcp_approval_request"]
    assert (await scene.ask([approval_of(first)], previous_response_id=second.id)).output_text == "got ['Ulm', 'ok']"


async def test_call_that_the_agent_asks_about_late_ends_the_response_again(scene: ClientScene) -> None:
    scene.script = asks_about_calls
    first = await scene.ask("later 2", tools=[PLACE])
    assert [one.call_id for one in first.output] == ["c0", "c1"]
    both = [output_of("c0", "0"), output_of("c1")]
    second = [one async for one in scene.stream(both, previous_response_id=first.id)][-1].response
    assert [(one.type, one.call_id) for one in second.output] == [("function_call", "c1")]
    assert (await scene.ask([output_of("c1", "1")], previous_response_id=second.id)).output_text == "got ['0', '1']"


@pytest.mark.parametrize("is_denied", [False, True])
async def test_output_is_refused_while_its_turn_runs_and_has_not_asked(scene: ClientScene, is_denied: bool) -> None:
    async def calls(turn: Turn) -> None:
        """Write two calls, and ask about the first one when the gate opens."""
        async with turn.reply() as message:
            if not turn.text:
                await message.append(turn.message.parts[0]["data"]["output"])
                return
            await scene.shows(message, *({**ASKED_PLACE, "call": call} for call in ("c0", "c1")), WHERE)
            scene.gate.clear()
            reply = await turn.ask("where", {"call": "c0"})
            await scene.gate.wait()
            await message.append(reply.data if reply.ok else "denied")

    scene.script, both = calls, [output_of("c0", "Ulm"), output_of("c1", "Bonn")]
    behind = {"conversation": (await scene.client.conversations.create()).id} if is_denied else {}
    id = await scene.begin(tools=[PLACE], **behind)
    behind = behind or {"previous_response_id": id}
    await scene.has(0, parts=3)
    for given in (both, both[1:], [both[1], USER]):
        with pytest.raises(openai.ConflictError, match="c1; send it again when the turn") as raised:
            await scene.ask(given, **behind, background=True)
        assert (raised.value.code, raised.value.param) == ("streaming", "input")
    scene.gate.set()
    await scene.has(0, questions=1)
    if is_denied:
        (asked,) = await scene.hub.pending_commands(scene.turns[0].channel)
        await scene.hub.reply(scene.turns[0].channel, asked.id, ok=False)
    (rest,) = {(await scene.ask(both, **behind, background=True)).id for _ in range(2)}
    scene.gate.set()
    assert (await scene.events(rest))[-1].response.output_text == f"Where? {'denied' if is_denied else 'Ulm'}"
    assert (await scene.ask(both[1:], **behind)).output_text == "Bonn"


async def test_message_alone_is_refused_while_a_call_of_its_author_is_open() -> None:
    async with scene_of(authenticate=verifier()) as scene:
        scene.script = asks_about_calls
        for of in ({}, {"conversation": (await scene.client.conversations.create()).id}):
            first = await scene.ask("1", tools=[PLACE], **of)
            behind = of or {"previous_response_id": first.id}
            with pytest.raises(openai.BadRequestError, match="No tool output found for function call c0"):
                await scene.ask("never mind", **behind)
            other = await scene.ask("0", **behind, background=True, extra_headers=BEN)
            assert other.status == "queued"
            assert (await scene.ask([output_of("c0")], **behind)).output_text == "got ['Ulm']"
            await scene.events(other.id)


class City(BaseModel):
    city: str


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_answer_that_its_model_cuts_is_incomplete(scene: ClientScene, reason: str) -> None:
    async def cuts(turn: Turn) -> None:
        async with turn.reply(meta={"finish_reason": reason}) as message:
            await message.append('{"city": "Ul')

    scene.script = cuts
    whole = await scene.chat()
    assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == (reason, '{"city": "Ul')
    assert [one.choices[0].finish_reason async for one in await scene.chat(stream=True)][-1] == reason
    with pytest.raises(openai.LengthFinishReasonError if reason == "length" else openai.ContentFilterFinishReasonError):
        await scene.client.chat.completions.parse(model="bot", messages=[USER], response_format=City)
    response = await scene.ask()
    assert (response.status, response.completed_at, response.output_text) == ("incomplete", None, '{"city": "Ul')
    assert response.incomplete_details.reason == ("max_output_tokens" if reason == "length" else reason)
    assert (await scene.events(response.id))[-1].type == "response.incomplete"


@pytest.mark.parametrize("cut", ["", '{"ci'])
async def test_call_that_breaks_off_before_more_text_is_incomplete(scene: ClientScene, cut: str) -> None:
    scene.script = writes({**CALL, "name": "place", "input": cut, "state": "input"}, "Ulm.")
    response = await scene.ask(tools=[PLACE])
    assert [getattr(item, "status", None) for item in response.output] == ["incomplete", "completed"]
    items = [one.item for one in await scene.events(response.id) if one.type == "response.output_item.done"]
    assert items == response.output


@pytest.mark.parametrize("is_answered", [False, True])
async def test_completion_ends_for_calls_of_the_caller_without_a_result(scene: ClientScene, is_answered: bool) -> None:
    result: Any = {"state": "done", "output": 7} if is_answered else {"state": "called"}
    other = {**CALL, "call": "c2", "state": "done", "output": 7}
    scene.script = writes({**CALL, "name": "place", **result}, other, "I have asked.")
    expected = "stop" if is_answered else "tool_calls"
    assert (await scene.chat(tools=[CHAT_PLACE])).choices[0].finish_reason == expected
    assert (await scene.opened_chat(tools=[CHAT_PLACE]))[-1].finish_reason == expected


@pytest.mark.parametrize("is_stream", [False, True])
async def test_chat_completion_that_is_cancelled_raises(scene: ClientScene, is_stream: bool) -> None:
    async def asks() -> None:
        [one async for one in await scene.chat(stream=is_stream)]

    asking = asyncio.ensure_future(asks())
    await scene.has_begun()
    turn = scene.turns[0]
    await scene.client.responses.cancel(Reference(turn.channel, turn.message.id).id())
    with pytest.raises(openai.APIError) as raised:
        await asking
    assert raised.value.code == "cancelled"
