"""The app of the scenario `finish`: an agent with steps, two tool calls, a question, a wait and a streamed answer.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `FinishOrders`). The agent is written as an
application would write it, with the `openai` package; it prints a report when a step has returned. It runs in the
app for some chats; `python -m proof.chaos.finish_app` serves the others over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import openai
from starlette.applications import Starlette

from proof.chaos.producer import say
from tenuto import Hub
from tenuto.agents.turn import OnCrash, Turn
from tenuto.client import Client
from tenuto.interop import AGUI, AISDK, OpenAI

TRIES = 30
PAUSE_S = 0.01  # before the first further try
SILENCE_S = 5.0  # without an event for this time, a model counts as broken; a loaded machine stays below it


ON_BREAK = ("restart", "continue", "prefix", "attach")  # the last: the model answers in the background
PLANS = ("step", "stream")  # what the tool calls come from: a step that calls the model, or a stream in the answer


@dataclass(frozen=True)
class FinishOrders:
    """The settings of a node, and of the remote agent beside it."""

    store: str
    outside: str  # URL of the model and the tools
    on_crash: dict[str, OnCrash]  # by the chat
    drain_s: float
    remote: list[str]  # chats of the remote agent
    url: str = ""  # URL of the node


app: Starlette  # built on first access: an import of this module opens no store


def _serve(host: Hub | Client, orders: FinishOrders, chats: list[str]) -> None:
    """Run the agent for `chats`."""
    model = openai.AsyncOpenAI(base_url=f"{orders.outside}/v1", api_key="none", max_retries=0, timeout=10.0)
    tools = httpx2.AsyncClient(base_url=orders.outside, timeout=10.0)

    trying: dict[str, Any] = {"retry_s": PAUSE_S, "stall_s": SILENCE_S, "retries": TRIES}

    def answered(question: str, results: list[str] | None, on_break: str, prefix: str) -> Any:
        messages = _messages(question, results, prefix)
        if on_break == "prefix":
            messages[-1] |= {"prefix": True}
        if on_break == "attach":
            asked = messages[0]["content"]
            return model.responses.create(model="m", input=asked, background=True, store=True, stream=True)
        return model.chat.completions.create(model="m", messages=messages, stream=True)

    async def planned(question: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(SILENCE_S):
            chunks = [one.model_dump() async for one in await answered(question, None, "restart", "")]
        assert chunks[-1]["usage"], "the response was cut"
        return chunks

    async def called(turn: Turn, step: str) -> dict[str, Any]:
        name = turn.steps.open_name
        body = {"question": turn.message.id, "step": step, "key": turn.step_key(name)}
        answer: dict[str, Any] = (await tools.post("/step", json=body)).json()
        assert answer["number"] == 1 or turn.was_interrupted(name)
        return answer

    async def bot(turn: Turn) -> None:
        id, results = turn.message.id, list[str]()
        on_break, plan = turn.text.split()

        def returned(step: str, answer: Any) -> None:
            say("returned", question=id, step=step, call=answer["number"])
            results.append(answer["value"])

        chunks = await turn.step("plan", planned, id, retries=TRIES, retry_s=PAUSE_S) if plan == "step" else []
        async with turn.reply() as message:
            calling = partial(answered, id, None, "restart", "")
            piped = await (message.pipe(iter(chunks)) if chunks else message.pipe(calling, **trying))
            outputs = await turn.run_tools(piped, {"find": partial(called, turn)})
            for call in piped.tool_calls:
                returned(call.arguments["step"], outputs[call.call])
            assert (await turn.ask("approve", {"of": "pay"}, timeout_s=600)).ok
            returned("pay", await turn.step("pay", called, turn, "pay", show=True))
            await turn.sleep("rest", 0.1)
            after = {"attach": model.responses} if on_break == "attach" else {"on_break": on_break}
            await message.pipe(lambda so_far: answered(id, results, on_break, so_far.text), **trying, **after)

    for chat in chats:
        host.agent(f"finish:{chat}", on_crash=orders.on_crash[chat])(bot)


def _build(orders: FinishOrders) -> Starlette:
    hub = Hub(orders.store, drain_s=orders.drain_s)
    _serve(hub, orders, [chat for chat in orders.on_crash if chat not in orders.remote])
    app = Starlette()
    hub.install(app, "/tenuto")
    AISDK(hub, channel="finish:{id}", version=7).install(app, "/ai")
    AGUI(hub, channel="finish:{id}").install(app, "/agui")
    OpenAI(hub).install(app, "/v1")
    return app


def _messages(question: str, results: list[str] | None = None, prefix: str = "") -> Any:  # typed by role in `openai`
    asked = {"role": "user", "content": json.dumps({"question": question, "results": results})}
    return [asked, {"role": "assistant", "content": prefix}] if prefix else [asked]


def _orders() -> FinishOrders:
    return FinishOrders(**json.loads(os.environ["TENUTO_CHAOS"]))


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        return _build(_orders())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    orders = _orders()
    client = Client(orders.url, client_id="bot")
    _serve(client, orders, orders.remote)
    asyncio.run(client.run(drain_s=orders.drain_s))
