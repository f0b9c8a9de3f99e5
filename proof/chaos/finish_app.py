"""The app of the scenario `finish`: an agent with four steps, two tool calls, a question and a streamed answer.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `FinishOrders`). The agent is written as an
application would write it, with the `openai` package; it prints a report when a step has returned.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx2
import openai
from starlette.applications import Starlette

from proof.chaos.producer import say
from tenuto import Hub
from tenuto.agents.turn import OnCrash, Turn
from tenuto.interop import AGUI, AISDK, OpenAI

TRIES = 30
PAUSE_S = 0.01  # before the first further try
SILENCE_S = 0.5  # without an event for this time, a model counts as broken


OnBreak = Literal["restart", "continue", "attach"]  # "attach": the response of the model runs in the background


@dataclass(frozen=True)
class FinishOrders:
    """The settings of a node."""

    store: str
    outside: str  # URL of the model and the tools
    on_crash: OnCrash
    on_break: OnBreak
    drain_s: float

    @property
    def environment(self) -> dict[str, str]:
        return {"TENUTO_CHAOS": json.dumps(asdict(self))}


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
        body = {"question": turn.message.id, "step": step, "key": turn.step_key(step)}
        answer: dict[str, Any] = (await tools.post("/step", json=body)).json()
        assert answer["number"] == 1 or turn.was_interrupted(step)
        return answer

    async def result(turn: Turn, step: str) -> str:
        answer = await turn.step(step, called, turn, step)
        say("returned", question=turn.message.id, step=step, call=answer["number"])
        return str(answer["value"])

    @hub.agent("finish:*", name="bot", on_crash=orders.on_crash)
    async def respond(turn: Turn) -> None:
        calls = await turn.step("plan", planned, turn.message.id, retries=TRIES, retry_s=PAUSE_S)
        results = await asyncio.gather(*(result(turn, call) for call in calls))
        assert (await turn.ask("approve", {"of": "pay"}, timeout_s=600)).ok
        results.append(await result(turn, "pay"))
        async with turn.reply() as message:
            await message.pipe(lambda so_far: answered(turn.message.id, results, so_far.text), **trying)
            for call, output in zip(calls, results, strict=False):
                part = {"type": "tool", "call": call, "name": "find", "input": "{}", "state": "done"}
                await message.part({**part, "output": output})

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
