"""A progress bar for all viewers, also for those that attach in the middle.

Run `python examples/progress_bar.py`, open http://127.0.0.1:8000 and press the button; then press F5, or open the page
twice. A job is a message with one `data` part, which is replaced twenty times a second. The hub sends no outdated
value: a viewer that was disconnected, or is slow, gets the latest one.
"""

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from holdfast import Hub

hub = Hub("memory://")

STEPS = 200
PACE_S = 0.05


async def job() -> None:
    async with hub.message("jobs", role="tool", author="importer") as message:
        for done in range(STEPS + 1):
            # The first call opens part 0, the others replace it.
            await message.part({"type": "data", "name": "progress", "data": {"done": done, "of": STEPS}}, index=0)
            await asyncio.sleep(PACE_S)


async def begin(request: Request) -> Response:
    await hub.start()
    hub.start_task(job())
    return Response(status_code=202)


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Progress</title>
<style>body { max-width: 40rem; margin: 2rem auto; font: 1rem system-ui } progress { width: 100% }</style>
<button id="begin">Import data</button>
<div id="jobs"></div>
<script type="module">
  import { connect } from "./holdfast/web/client.js"

  const channel = connect({ url: "holdfast" }).channel("jobs")

  function bar({ status, parts = [] }) {
    const { done = 0, of = 1 } = parts[0]?.data ?? {}
    const bar = Object.assign(document.createElement("progress"), { value: done, max: of })
    const label = document.createElement("label")
    label.append(`${done} of ${of}, ${status}`, bar)
    return label
  }
  channel.subscribe(() => jobs.replaceChildren(...channel.getSnapshot().messages.map(bar)))

  begin.onclick = () => fetch("jobs", { method: "POST" })
</script>
"""

app = Starlette(routes=[Route("/", page), Route("/jobs", begin, methods=["POST"])])
hub.install(app, "/holdfast")

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
