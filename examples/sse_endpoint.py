"""An existing SSE endpoint with one changed line: its answers outlive the request that started them.

Run `python examples/sse_endpoint.py`, open http://127.0.0.1:8000 and ask a question. Reload during the answer, or
open the same address in a second window: the page calls its endpoint without a question, and gets the newest answer.
"Stop" works in each window.
`curl -N "http://127.0.0.1:8000/chat?prompt=why"` prints the stream, and `/chat/events` the one with named events.

Before, each endpoint ended with

    return StreamingResponse(answer(prompt), media_type="text/event-stream")

and a reload discarded the answer.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from tenuto import Hub, TenutoError

hub = Hub("sqlite:///sse-example.db")
app = FastAPI()
hub.install(app, "/tenuto")

PACE_S = 0.05


@contextmanager
def session() -> Iterator[sqlite3.Connection]:
    """Stand in for your database session."""
    with closing(sqlite3.connect("sse-app.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS prompts (prompt)")
        yield db


async def answer(prompt: str) -> AsyncIterator[str]:
    """Stream an answer with a database session of its own. A session of `Depends` would end with the response."""
    with session() as db:
        db.execute("INSERT INTO prompts VALUES (?)", [prompt])
        db.commit()
        (times,) = db.execute("SELECT count(*) FROM prompts WHERE prompt = ?", [prompt]).fetchone()
        yield f"You asked: {prompt} (asked {times} times so far)\n"
        for count in range(2, 121):  # stands in for your model
            await asyncio.sleep(PACE_S)
            yield f"{count} "


@app.get("/chat")
async def chat(prompt: str = "", id: str | None = None) -> Response:
    """Return plain `data:` lines, and `[DONE]`. Pass the function itself: the hub calls it once for each question.

    A request with the `id` of an earlier one gets the answer of that one.
    """
    return hub.stream_response("chat:1", partial(answer, prompt), prompt=prompt, reply_id=id, style="data")


@app.post("/stop")
async def stop() -> None:
    """Stop the answers that run, from any window and after a reload. A closed connection stops nothing."""
    for message in (await hub.history("chat:1", limit=10)).messages:
        if message.status == "streaming":
            await hub.command("chat:1", "cancel", target=message.id)


@app.get("/chat/events")
async def chat_events(prompt: str = "", id: str | None = None) -> Response:
    """Return the same with named events: `thinking`, `answer`, `done`."""
    return hub.stream_response("chat:1", partial(answer, prompt), prompt=prompt, reply_id=id)


@app.exception_handler(TenutoError)
async def refused(request: Request, error: TenutoError) -> Response:
    """Report a refusal, such as an invalid id, in the hub's own form instead of as a 500."""
    return JSONResponse(error.problem(), error.status, media_type="application/problem+json")


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>An SSE endpoint and Tenuto</title>
<style>body { max-width: 40rem; margin: auto; padding: 1em; font: 1rem system-ui } pre { white-space: pre-wrap }</style>
<form onsubmit="ask(question.value); return false">
  <input id="question" required autofocus placeholder="Ask something"> <button>Ask</button>
  <button type="button" onclick="fetch('stop', { method: 'POST' })">Stop</button>
</form>
<pre id="text"></pre>
<p id="state"></p>
<script>
  let source

  function ask(prompt) {
    source?.close()
    text.textContent = state.textContent = ""
    source = new EventSource(`chat?prompt=${encodeURIComponent(prompt)}`)
    source.onmessage = ({ data }) => {
      if (data !== "[DONE]") return (text.textContent += data)
      state.textContent ||= "complete"
      source.close()
    }
    for (const status of ["cancelled", "failed", "interrupted"]) {
      source.addEventListener(status, () => (state.textContent = status))
    }
  }

  ask("") // no question: the newest answer
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
