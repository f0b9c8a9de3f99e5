"""A chat in FastAPI whose answers survive refresh.

Run `python examples/fastapi_app.py` (or `uvicorn examples.fastapi_app:app`), open http://127.0.0.1:8000 and ask
a question. During the answer press F5, open the page a second time, or close it and open it again: the answer
continues, since it belongs to the hub and not to the request. After `kill -9` and a new start the text so far is still
there, marked `interrupted`.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from tenuto import Hub

hub = Hub("sqlite:///fastapi-example.db")
app = FastAPI()
hub.install(app, "/tenuto")

PACE_S = 0.05


class Question(BaseModel):
    text: str


@app.post("/chats/{chat}/questions", status_code=201)
async def ask(chat: str, question: Question) -> dict[str, str]:
    prompt = await hub.create(f"chat:{chat}", role="user", author="you", text=question.text)
    hub.start_task(answer(f"chat:{chat}", prompt.id, question.text))
    return {"id": prompt.id}


async def answer(channel: str, prompt_id: str, question: str) -> None:
    async with hub.message(channel, role="assistant", author="bot", reply_to=prompt_id) as message:
        async for token in model(question):
            await message.append(token)


async def model(question: str) -> AsyncIterator[str]:
    """Stand in for your model: replace it with the stream of a real one."""
    for count in range(1, 121):
        await asyncio.sleep(PACE_S)
        yield f"You asked: {question}\n" if count == 1 else f"{count} "


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>FastAPI and Tenuto</title>
<style>body { max-width: 40rem; margin: auto; padding: 1rem; font: 1rem system-ui } p { white-space: pre-wrap }</style>
<div id="messages"></div>
<form id="form"><input id="question" required autofocus placeholder="Ask something"> <button>Ask</button></form>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto" }).channel("chat:1")

  function line({ author, status, parts = [] }) {
    const p = document.createElement("p")
    const note = status === "complete" ? "" : ` (${status})`
    p.textContent = `${author}${note}: ${parts.map((part) => part.text).join("")}`
    return p
  }
  channel.subscribe(() => messages.replaceChildren(...channel.getSnapshot().messages.map(line)))

  form.onsubmit = (event) => {
    event.preventDefault()
    const body = JSON.stringify({ text: question.value })
    fetch("chats/1/questions", { method: "POST", headers: { "Content-Type": "application/json" }, body })
    form.reset()
  }
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
