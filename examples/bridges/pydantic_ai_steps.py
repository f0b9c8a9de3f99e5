"""An agent of Pydantic AI whose tools run once: after a crash its run begins again, and the tools do not.

Run `pip install pydantic-ai-slim`, `uvicorn pydantic_ai_steps:app` in this folder, and open http://127.0.0.1:8000.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from tenuto import Hub, Turn

hub = Hub("sqlite:///pydantic-ai-example.db")
app = FastAPI()
hub.install(app, "/tenuto")


@dataclass
class Once:
    """The steps of a turn: a model that repeats a call, in the same run or in a further try, gets the same result."""

    turn: Turn
    calls: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    async def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self.calls:
            self.calls[name] = asyncio.ensure_future(self.turn.step(name, function, *arguments))
        return await self.calls[name]


async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """Stand in for your model: `Agent("anthropic:…", deps_type=Once)` has a real one."""
    last = messages[-1]
    known = [part.content for part in last.parts if isinstance(part, ToolReturnPart)]
    if not known:
        yield {0: DeltaToolCall(name="weather", json_args=json.dumps({"city": "Oslo"}), tool_call_id="call-1")}
    elif isinstance(last, ModelRequest):
        for word in f"It is {known[0]} in Oslo.".split(" "):
            await asyncio.sleep(0.05)
            yield f"{word} "


agent = Agent(FunctionModel(stream_function=model), deps_type=Once)


@agent.tool
async def weather(run: RunContext[Once], city: str) -> str:
    """Return the weather in a city."""
    return str(await run.deps(f"weather:{city}", look_up, city))


async def look_up(city: str) -> str:
    """Stand in for a call that must not happen twice."""
    return "4 degrees"


@hub.agent("chat:*")
async def assistant(turn: Turn) -> None:
    once = Once(turn)
    async with turn.reply() as message:
        await message.pipe(lambda: agent.run_stream_events(turn.text, deps=once), retries=3)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return '<script type="module" src="tenuto/web/chat.js"></script><tenuto-chat channel="chat:1"></tenuto-chat>'
