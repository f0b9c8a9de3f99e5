"""The acceptance tests of Open Responses, as far as a hub has their features (https://www.openresponses.org/compliance).

Layer: tests.

No registry has the suite itself, so these are its published cases under their ids (`src/lib/compliance-tests.ts` in
https://github.com/openresponses/openresponses), in words of our own. Each response and each event has the published
schema, from the package `openresponses-types`. Left out: the cases of `/responses/compact`, which a hub does not have,
and those in which `store: false` makes a response vanish, because a hub stores each one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openresponses_types
import pytest
import websockets
from pydantic import BaseModel

from tests.interop.test_options import PNG, TOOL, Stub, stub_at

EVENTS: dict[str, type[BaseModel]] = {
    next(iter(one.model_fields["type"].annotation)): one
    for name, one in vars(openresponses_types).items()
    if name.endswith("StreamingEvent")
}
LAST = ("response.completed", "response.failed", "response.incomplete", "error")


def message(content: Any, role: str = "user", **fields: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **fields}


PHOTO = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PNG}]
HTTP: dict[str, dict[str, Any]] = {
    "basic-response": {"input": [message("Hello.")]},
    "streaming-response": {"input": [message("Count to 5.")], "stream": True},
    "system-prompt": {"input": [message("Talk as a pirate.", "system"), message("Hello.")]},
    "assistant-phase": {
        "input": [
            message("It was saved.", "assistant", phase="commentary"),
            message("It is 4.", "assistant", phase="final_answer"),
            message("Again?"),
        ]
    },
    "tool-calling": {"input": [message("How is Ulm?")], "tools": [TOOL]},
    "tool-calling-streaming": {"input": [message("How is Ulm?")], "tools": [TOOL], "stream": True},
    "image-input": {"input": [message(PHOTO)]},
    "multi-turn": {"input": [message("I am Alice."), message("Hello Alice!", "assistant"), message("Who am I?")]},
}


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_at() as stub:
        stub.text = "One two three."
        yield stub


def checked(event: Any) -> Any:
    """Return an event that has its published schema."""
    EVENTS[event["type"]].model_validate(event)
    return event


@pytest.mark.parametrize("name", HTTP)
async def test_case_of_open_responses_passes(stub: Stub, name: str) -> None:
    body = HTTP[name]
    got = await stub.served.http.post("/v1/responses", json={"model": "bot", **body})
    assert got.status_code == 200, got.text
    if "stream" in body:
        blocks = [one.removeprefix("data: ") for one in got.text.splitlines() if one.startswith("data: {")]
        events = [checked(json.loads(one)) for one in blocks]
        response, types = events[-1]["response"], [one["type"] for one in events]
        if "tools" in body:
            assert {f"response.function_call_arguments.{end}" for end in ("delta", "done")} < set(types)
            items = [one["item"]["type"] for one in events if one["type"].startswith("response.output_item.")]
            assert items == ["function_call"] * 2
    else:
        response = got.json()
    openresponses_types.ResponseResource.model_validate(response)
    assert (response["status"], [one["type"] for one in response["output"]]) == (
        "completed",
        ["function_call" if "tools" in body else "message"],
    )


async def test_cases_of_open_responses_over_a_socket_pass(stub: Stub) -> None:
    """`websocket-response`, `-sequential-responses`, `-continuation`, `-previous-response-not-found`, and the failed
    continuation of `-failed-continuation-evicts-cache`."""

    async def turn(**body: Any) -> Any:
        await socket.send(json.dumps({"type": "response.create", "model": "bot", "store": False, **body}))
        while (event := json.loads(await socket.recv()))["type"] not in LAST:
            checked(event)
        return event

    async with websockets.connect(f"{stub.url.replace('http', 'ws')}/v1/responses") as socket:
        done = [await turn(input=[message("Count to 3.")]), await turn(input="second")]
        done.append(await turn(input="Which word?", previous_response_id=done[0]["response"]["id"]))
        assert [checked(one)["response"]["status"] for one in done] == ["completed"] * 3
        output = {"type": "function_call_output", "call_id": "call_orphan", "output": "7"}
        for body, code in (
            ({"input": "lost", "previous_response_id": "resp_missing_1"}, "previous_response_not_found"),
            ({"input": [output], "previous_response_id": done[2]["response"]["id"]}, "not_found"),
        ):
            refused = await turn(**body)
            openresponses_types.WebSocketErrorEvent.model_validate(refused)
            assert refused["error"]["code"] == code
