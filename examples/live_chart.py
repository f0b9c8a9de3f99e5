"""A chart that a page draws from a log, so that a reload shows all of it at once.

Run `python examples/live_chart.py`, open http://127.0.0.1:8000, watch the line grow, and press F5. The values of a
minute are one message, whose text gets a line four times a second. Storing a value costs only that value. A page that
attaches late gets the text so far as one event, and attached pages get only the new lines.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from holdfast import Hub

hub = Hub("sqlite:///chart-example.db")

PACE_S = 0.25
VALUES = 240  # in one message


async def measure() -> None:
    value = 50.0
    while True:
        async with hub.message("chart", role="tool", author="sensor") as message:
            for _ in range(VALUES):
                value += random.uniform(-3, 3)
                await message.append(f"{time.time():.2f} {value:.2f}\n")
                await asyncio.sleep(PACE_S)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    job = hub.start_task(measure())
    yield
    job.cancel()  # it has no end of its own to wait for


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Live chart</title>
<style>
  body { max-width: 50rem; margin: 2rem auto; font: 1rem system-ui }
  svg { width: 100%; border: 1px solid #ccc }
  polyline { fill: none; stroke: teal; stroke-width: 2 }
</style>
<svg viewBox="0 0 1000 300"><polyline id="line" /></svg>
<p><span id="count">0</span> values</p>
<script type="module">
  import { connect } from "./holdfast/web/client.js"

  const channel = connect({ url: "holdfast" }).channel("chart", { history: 5 })

  channel.subscribe(() => {
    const text = channel.getSnapshot().messages.map(({ parts = [] }) => parts[0]?.text ?? "").join("")
    const values = text.split("\\n").slice(0, -1).map((row) => row.split(" ").map(Number))
    count.textContent = values.length
    if (!values.length) return
    const first = values[0][0]
    const width = values.at(-1)[0] - first || 1
    const heights = values.map(([, value]) => value)
    const low = Math.min(...heights)
    const span = Math.max(...heights) - low || 1
    const points = values.map(([at, value]) => [((at - first) / width) * 1000, 290 - ((value - low) / span) * 280])
    line.setAttribute("points", points.join(" "))
  })
</script>
"""

app = Starlette(routes=[Route("/", page)], lifespan=lifespan)
hub.install(app, "/holdfast")  # starts the hub before the app's own lifespan begins

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
