"""A workflow of Temporal whose activity writes the answer: each retry of it supersedes what the last one wrote.

Run `pip install temporalio`, `temporal server start-dev`, `uvicorn temporal_answer:app` in this folder, and open
http://127.0.0.1:8000. The worker runs in the process of the hub, so that the activity has the writer of the turn.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.worker import Worker

from tenuto import Hub, MessageWriter, Turn

SERVER = "127.0.0.1:7233"
hub = Hub("sqlite:///temporal-example.db")
temporal: Client
answers: dict[str, asyncio.Future[MessageWriter]] = {}  # by the workflow that writes it


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    global temporal
    temporal = await Client.connect(SERVER)
    async with Worker(temporal, task_queue="answers", workflows=[Answered], activities=[write]):
        yield


app = FastAPI(lifespan=running)
hub.install(app, "/tenuto")


@hub.agent("chat:*", on_crash="continue")
async def assistant(turn: Turn) -> None:
    """Begin the workflow of this question, or wait for the one that an earlier attempt has begun."""
    id = turn.step_key("workflow")  # `regenerate` begins another workflow
    async with turn.reply() as message:
        answer_of(id).set_result(message)
        once = WorkflowIDReusePolicy.REJECT_DUPLICATE  # also after it has ended
        with suppress(WorkflowAlreadyStartedError):
            await temporal.start_workflow(Answered.run, turn.text, id=id, task_queue="answers", id_reuse_policy=once)
        await temporal.get_workflow_handle(id).result()
    del answers[id]


@workflow.defn(sandboxed=False)
class Answered:
    @workflow.run
    async def run(self, question: str) -> int:
        return await workflow.execute_activity(
            write,
            question,
            start_to_close_timeout=timedelta(minutes=10),
            heartbeat_timeout=timedelta(seconds=2),  # so long after the death of a process another one begins
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=0.1), maximum_attempts=5),
        )


@activity.defn
async def write(question: str) -> int:
    """Write the answer; return its length. Temporal stores the result after the text is stored."""
    message = await asyncio.shield(answer_of(activity.info().workflow_id))  # an activity may be earlier than its turn
    await message.pipe(lambda: beating(model(question)), retries=0)  # supersedes what an earlier one wrote
    await message.flush()
    return message.length


async def beating(stream: AsyncIterator[str]) -> AsyncIterator[str]:
    async for text in stream:
        activity.heartbeat()
        yield text


def answer_of(workflow_id: str) -> asyncio.Future[MessageWriter]:
    return answers.setdefault(workflow_id, asyncio.get_running_loop().create_future())


async def model(question: str) -> AsyncIterator[str]:
    """Stand in for your model."""
    for word in f"You asked: {question}".split(" "):
        await asyncio.sleep(0.05)
        yield f"{word} "


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return '<script type="module" src="tenuto/web/chat.js"></script><tenuto-chat channel="chat:1"></tenuto-chat>'
