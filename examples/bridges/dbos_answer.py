"""A workflow of DBOS whose step writes the answer: each retry of the step supersedes what the last one wrote.

Run `pip install dbos`, `uvicorn dbos_answer:app` in this folder, and open http://127.0.0.1:8000. DBOS runs
workflows that it recovers after a crash in a loop of its own: the step writes in the loop of the hub.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dbos import DBOS, SetWorkflowID
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import Hub, MessageWriter, Turn

hub = Hub("sqlite:///dbos-example.db")
loop: asyncio.AbstractEventLoop
answers: dict[str, asyncio.Future[MessageWriter]] = {}  # by the workflow that writes it; in the loop of the hub


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    global loop
    loop = asyncio.get_running_loop()
    url = "sqlite:///dbos-system.db"
    DBOS(config={"name": "answers", "system_database_url": url, "application_version": "1", "executor_id": "local"})
    DBOS.launch()  # goes on with the workflows that a crash has interrupted
    yield
    await asyncio.to_thread(DBOS.destroy)


app = FastAPI(lifespan=running)
hub.install(app, "/tenuto")


@hub.agent("chat:*", on_crash="continue")
async def assistant(turn: Turn) -> None:
    """Begin the workflow of this question, or wait for the one that an earlier attempt has begun."""
    id = turn.step_key("workflow")  # `regenerate` begins another workflow
    async with turn.reply() as message:
        answer_of(id).set_result(message)
        with SetWorkflowID(id):
            workflow = await DBOS.start_workflow_async(answered, turn.text)
        await workflow.get_result()
    del answers[id]


@DBOS.workflow()
async def answered(question: str) -> int:
    return await write(question)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=0.1)
async def write(question: str) -> int:
    """Write the answer; return its length. DBOS stores the result after the text is stored."""
    assert DBOS.workflow_id is not None
    writing = asyncio.run_coroutine_threadsafe(write_in_hub(DBOS.workflow_id, question), loop)
    return await asyncio.wrap_future(writing)


async def write_in_hub(workflow_id: str, question: str) -> int:
    message = await asyncio.shield(answer_of(workflow_id))  # a recovered workflow may be earlier than its turn
    await message.pipe(lambda: model(question), retries=0)  # supersedes what an earlier one wrote
    await message.flush()
    return message.length


def answer_of(workflow_id: str) -> asyncio.Future[MessageWriter]:
    return answers.setdefault(workflow_id, loop.create_future())


async def model(question: str) -> AsyncIterator[str]:
    """Stand in for your model."""
    for word in f"You asked: {question}".split(" "):
        await asyncio.sleep(0.05)
        yield f"{word} "


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return '<script type="module" src="tenuto/web/chat.js"></script><tenuto-chat channel="chat:1"></tenuto-chat>'
