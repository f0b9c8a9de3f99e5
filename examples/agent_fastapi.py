"""An agent in a FastAPI app: it answers people, and each of them may stop it. The app needs no endpoint for that.

Run `python examples/agent_fastapi.py`, open http://127.0.0.1:8000 in two windows and ask a question. Both show that
the agent listens, thinks and answers. Press Stop in the other window, or F5 in either. Kill the process in the middle
of an answer and start it again: that answer is `interrupted`, and the agent begins another by itself.

A hook copies finished messages to a table of the app: http://127.0.0.1:8000/archive shows it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import HookEvent, Hub, Turn

hub = Hub("sqlite:///agent-example.db")
app = FastAPI()
hub.install(app, "/tenuto")

ARCHIVE = "agent-archive.db"
PACE_S = 0.05


@hub.agent("chat:*", name="bot")
async def answer(turn: Turn) -> None:
    """Answer one new user message. A stop cancels this function and the model's stream."""
    history = await turn.history()
    async with turn.reply() as message:
        await message.pipe(model(history))


async def model(history: list[dict[str, str]]) -> AsyncIterator[str]:
    """Stand in for your model: pipe the stream of a real one instead."""
    yield f"You asked: {history[-1]['content']}\n"
    for count in range(2, 121):
        await asyncio.sleep(PACE_S)
        yield f"{count} "


@hub.on(("message.create", "message.update", "message.finish", "message.delete"), "chat:*", name="archive")
async def archive(event: HookEvent) -> None:
    """Copy a finished message. A streamed answer ends with a finish; a user message is created whole."""
    if event.message is None or event.message.status != "streaming":
        await asyncio.to_thread(copy, event)


def copy(event: HookEvent) -> None:
    """Write the message to the table. A hook is called at least once, so a repeat must have no effect."""
    with closing(sqlite3.connect(ARCHIVE)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS messages (id PRIMARY KEY, channel, author, status, text)")
        if (message := event.message) is None:
            db.execute("DELETE FROM messages WHERE id = ?", [event.id])
        else:
            row = [message.id, event.channel, message.author, message.status, message.text]
            db.execute("INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?)", row)


@app.get("/archive")
def archived() -> list[dict[str, str]]:
    with closing(sqlite3.connect(ARCHIVE)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM messages ORDER BY rowid")]


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>An agent and Tenuto</title>
<style>body { max-width: 40rem; margin: auto; padding: 1rem; font: 1rem system-ui } p { white-space: pre-wrap }</style>
<div id="messages"></div>
<form id="form"><input id="question" required autofocus placeholder="Ask something"> <button>Ask</button></form>
<button id="cancel" disabled>Stop</button> <span id="agents"></span>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto", client: "you" }).channel("chat:1")
  let running

  channel.subscribe(() => {
    const { messages: shown, presence } = channel.getSnapshot()
    messages.replaceChildren(...shown.map(line))
    const members = presence.members.filter(({ kind }) => kind === "agent")
    agents.textContent = members.map(({ id, data }) => `${id}: ${data?.state}`).join(", ") || "no agent is listening"
    running = shown.find(({ status }) => status === "streaming")
    cancel.disabled = !running
  })

  function line({ author, status, parts = [] }) {
    const p = document.createElement("p")
    const note = status === "complete" ? "" : ` (${status})`
    p.textContent = `${author}${note}: ${parts.map((part) => part.text).join("")}`
    return p
  }

  form.onsubmit = (event) => {
    event.preventDefault()
    channel.create({ text: question.value })
    form.reset()
  }
  cancel.onclick = () => channel.command("cancel", { target: running.id })
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
