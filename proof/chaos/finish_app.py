"""The app of the scenario `finish`: an agent with steps, two tool calls, a question, a wait and a streamed answer.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `FinishOrders`). The agent is written as an
application would write it, with the `openai` package; it prints a report when a step has returned.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import httpx2
import openai
from starlette.applications import Starlette

from proof.chaos.producer import say
from tenuto import Hub
from tenuto.agents.turn import OnCrash, Turn
from tenuto.interop import AGUI, AISDK, OpenAI
from tenuto.portal import Writer
from tenuto.sources import Piped, ToolCall

TRIES = 30
PAUSE_S = 0.01  # before the first further try
SILENCE_S = 2.0  # without an event for this time, a model counts as broken; a loaded machine stays below it


OnBreak = Literal["restart", "continue", "attach"]  # "attach": the response of the model runs in the background


@dataclass(frozen=True)
class FinishOrders:
    """The settings of a node."""

    store: str
    outside: str  # URL of the model and the tools
    on_crash: OnCrash
    on_break: OnBreak
    drain_s: float


app: Starlette  # built on first access: an import of this module opens no store


def _build(orders: FinishOrders) -> Starlette:
    hub = Hub(orders.store, drain_s=orders.drain_s)
    model = openai.AsyncOpenAI(base_url=f"{orders.outside}/v1", api_key="none", max_retries=0, timeout=10.0)
    tools = httpx2.AsyncClient(base_url=orders.outside, timeout=10.0)

    trying: dict[str, Any] = {"retry_s": PAUSE_S, "stall_s": SILENCE_S, "retries": TRIES}
    if orders.on_break == "attach":
        trying["attach"] = model.responses
    else:
        trying["on_break"] = orders.on_break

    def answered(question: str, results: list[str], prefix: str) -> Any:
        messages = _messages(question, results, prefix)
        if orders.on_break == "attach":
            return model.responses.create(
                model="m", input=messages[0]["content"], background=True, store=True, stream=True
            )
        return model.chat.completions.create(model="m", messages=messages, stream=True)

    async def planned(question: str) -> list[str]:
        response = await model.chat.completions.create(model="m", messages=_messages(question))
        return [call.id for call in response.choices[0].message.tool_calls or ()]

    async def called(turn: Turn, step: str) -> dict[str, Any]:
        name = turn.steps.open_name
        body = {"question": turn.message.id, "step": step, "key": turn.step_key(name)}
        answer: dict[str, Any] = (await tools.post("/step", json=body)).json()
        assert answer["number"] == 1 or turn.was_interrupted(name)
        return answer

    async def tool_calls(turn: Turn, message: Writer, calls: list[str]) -> AsyncIterator[ToolCall]:
        """Yield the tool calls, each with its part, which the message has already if it is continued."""
        before = turn.previous.parts if turn.previous is not None and orders.on_crash == "continue" else []
        places = {part.get("call"): index for index, part in enumerate(before)}
        for call in calls:
            tool = {"type": "tool", "call": call, "name": "find", "input": json.dumps({"step": call})}
            place = places[call] if call in places else await message.part({**tool, "state": "called"})
            yield ToolCall(call, "find", tool["input"], place)

    @hub.agent("finish:*", name="bot", on_crash=orders.on_crash)
    async def respond(turn: Turn) -> None:
        results: list[str] = []

        def returned(step: str, answer: Any) -> None:
            say("returned", question=turn.message.id, step=step, call=answer["number"])
            results.append(answer["value"])

        calls = await turn.step("plan", planned, turn.message.id, retries=TRIES, retry_s=PAUSE_S)
        async with turn.reply() as message:
            piped = Piped("", tool_calls=[call async for call in tool_calls(turn, message, calls)])
            for call, answer in (await turn.run_tools(piped, {"find": partial(called, turn)})).items():
                returned(call, answer)
            assert (await turn.ask("approve", {"of": "pay"}, timeout_s=600)).ok
            returned("pay", await turn.step("pay", called, turn, "pay", show=True))
            await turn.sleep("rest", 0.1)
            await message.pipe(lambda so_far: answered(turn.message.id, results, so_far.text), **trying)

    app = Starlette()
    hub.install(app, "/tenuto")
    AISDK(hub, channel="finish:{id}", version=7).install(app, "/ai")
    AGUI(hub, channel="finish:{id}").install(app, "/agui")
    OpenAI(hub).install(app, "/v1")
    return app


def _messages(question: str, results: list[str] | None = None, prefix: str = "") -> Any:  # typed by role in `openai`
    asked = {"role": "user", "content": json.dumps({"question": question, "results": results})}
    return [asked, {"role": "assistant", "content": prefix}] if prefix else [asked]


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        return _build(FinishOrders(**json.loads(os.environ["TENUTO_CHAOS"])))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
