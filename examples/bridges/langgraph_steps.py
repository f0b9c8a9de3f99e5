"""A graph of LangGraph with its checkpointer, whose work runs once: its nodes do it as steps of the turn.

Run `pip install langgraph-checkpoint-sqlite`, `uvicorn langgraph_steps:app` in this folder, and open
http://127.0.0.1:8000. The checkpointer keeps the state of the graph, in a thread for each attempt at the turn: an
attempt writes its whole answer, so its graph begins anew, and the work itself is a step.
"""

from typing import TypedDict

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from tenuto import Hub, Turn

hub = Hub("sqlite:///langgraph-example.db")
CHECKPOINTS = "langgraph-checkpoints.db"
app = FastAPI()
hub.install(app, "/tenuto")


class State(TypedDict, total=False):
    question: str
    found: str


async def search(state: State, runtime: Runtime[Turn]) -> State:
    return {"found": await runtime.context.step("search", look_up, state["question"])}


async def answer(state: State) -> State:
    await model(state["found"]).ainvoke(state["question"])  # `stream_mode="messages"` has its tokens
    return {}


async def remember(state: State, runtime: Runtime[Turn]) -> State:
    await runtime.context.step("remember", note, state["question"])
    return {}


async def note(question: str) -> None:
    """Stand in for another such call, behind the answer."""


async def look_up(question: str) -> str:
    """Stand in for a call that must not happen twice."""
    return f"3 pages about {question}"


def model(found: str) -> GenericFakeChatModel:
    """Stand in for your model."""
    return GenericFakeChatModel(messages=iter([AIMessage(f"I found {found}.")]))


graph = StateGraph(State, context_schema=Turn)
graph.add_node("search", search)
graph.add_node("answer", answer)
graph.add_node("remember", remember)
graph.add_edge(START, "search")
graph.add_edge("search", "answer")
graph.add_edge("answer", "remember")
graph.add_edge("remember", END)


@hub.agent("chat:*")
async def assistant(turn: Turn) -> None:
    async with AsyncSqliteSaver.from_conn_string(CHECKPOINTS) as checkpoints, turn.reply() as message:
        runnable = graph.compile(checkpointer=checkpoints)
        thread = {"configurable": {"thread_id": f"{turn.message.id}:{turn.attempt}"}}
        given = State(question=turn.text)
        await message.pipe(runnable.astream(given, thread, context=turn, stream_mode="messages", durability="sync"))


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return '<script type="module" src="tenuto/web/chat.js"></script><tenuto-chat channel="chat:1"></tenuto-chat>'
