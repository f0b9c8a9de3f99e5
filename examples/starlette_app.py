"""One answer on a page without any client library: Starlette, and the browser's own EventSource.

Run `python examples/starlette_app.py`, open http://127.0.0.1:8000 and press the button. The answer's id is behind
the `#` of the address, so press F5 while it runs, or open the link in a second window: each page gets the text so far
at once and then the live text. `curl -N` on the address that the page shows prints the raw stream.

The app only mounts the hub: the hub starts by itself on the first request.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from tenuto import Hub, MessageWriter

hub = Hub("sqlite:///starlette-example.db")

PACE_S = 0.05


async def begin(request: Request) -> Response:
    message = hub.message("answers", role="assistant", author="bot")
    await hub.start()
    begun = asyncio.Event()
    hub.start_task(answer(message, begun))
    await begun.wait()  # the message can be watched now
    return JSONResponse({"id": message.id}, status_code=201)


async def answer(message: MessageWriter, begun: asyncio.Event) -> None:
    try:
        async with message:
            begun.set()
            async for token in model():
                await message.append(token)
    finally:
        begun.set()


async def model() -> AsyncIterator[str]:
    """Stand in for your model."""
    for count in range(1, 121):
        await asyncio.sleep(PACE_S)
        yield f"{count} "


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Starlette and Tenuto</title>
<style>body { max-width: 40rem; margin: 2rem auto; font: 1rem system-ui } pre { white-space: pre-wrap }</style>
<button id="ask">Ask</button> <code id="address"></code>
<pre id="text"></pre>
<p id="state"></p>
<script>
  let source

  function watch() {
    source?.close()
    text.textContent = state.textContent = ""
    if (!location.hash) return
    const url = new URL(`tenuto/v1/channels/answers/messages/${location.hash.slice(1)}/events`, location.href)
    address.textContent = `curl -N ${url.href.split("#")[0]}`
    source = new EventSource(url)
    source.addEventListener("answer", ({ data }) => (text.textContent += JSON.parse(data)))
    source.addEventListener("done", ({ data }) => {
      state.textContent = JSON.parse(data).status
      source.close()
    })
  }

  ask.onclick = async () => {
    const response = await fetch("answers", { method: "POST" })
    location.hash = (await response.json()).id
  }
  onhashchange = watch
  watch()
</script>
"""

app = Starlette(
    routes=[Route("/", page), Route("/answers", begin, methods=["POST"]), Mount("/tenuto", hub)],
)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
