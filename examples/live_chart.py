"""A live chart that a page draws from a log, so that a reload shows all of it at once.

Run `python examples/live_chart.py`, open http://127.0.0.1:8000, watch the line grow, and press F5. The values of a
minute are one message, whose text gets a line four times a second. Storing a value costs only that value. A page that
attaches late gets the text so far as one event, and attached pages get only the new lines. The present value is a
`data` part, which is replaced: a slow page gets the latest value, and not all of them. Several processes with one store
measure at once: each has a line of its own.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import Hub

hub = Hub("sqlite:///chart-example.db")

PACE_S = 0.25
VALUES = 240  # number of values in one message


async def measure() -> None:
    value = 50.0
    while True:
        async with hub.message("chart", role="tool", author="sensor") as message:
            for _ in range(VALUES):
                value = min(max(value + random.uniform(-3, 3), 0), 100)
                await message.append(f"{time.time():.2f} {value:.2f}\n")
                await message.part({"type": "data", "name": "now", "data": round(value, 1)}, index=1)
                await asyncio.sleep(PACE_S)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    job = hub.start_task(measure())
    yield
    job.cancel()  # the job never ends by itself


app = FastAPI(lifespan=lifespan)
hub.install(app, "/tenuto")  # starts the hub before the app's own lifespan begins


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Live chart</title>
<style>
  :root { --line: #e2e2dc; --muted: #5f6b68; --accent: #0f6b57; --tint: #e4f2ee }
  body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #14201d }
  h1 { margin: 0; font-size: 1.4rem }
  p { color: var(--muted) }
  button { padding: 0.4rem 1.1rem; border: 1px solid var(--accent); border-radius: 2rem; font: inherit }
  button { color: #fff; background: var(--accent); cursor: pointer }
  button:disabled { opacity: 0.4; cursor: default }
  b { float: right; font-size: 2rem; line-height: 1; color: var(--accent); font-variant-numeric: tabular-nums }
  svg { box-sizing: border-box; width: 100%; margin-top: 1rem; border: 1px solid var(--line); border-radius: 1rem }
  path { stroke: var(--line); stroke-width: 1 }
  #line { fill: none; stroke: var(--accent); stroke-width: 2.5; stroke-linejoin: round }
</style>
<b id="now"></b>
<h1>Temperature</h1>
<svg viewBox="0 0 1000 320"><path d="M0 80H1000M0 160H1000M0 240H1000" /><path id="line" /></svg>
<p><span id="count">0</span> values</p>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto" }).channel("chart", { history: 5 })

  channel.subscribe(() => {
    const { messages } = channel.getSnapshot()
    // A line for each message: those of two processes overlap in time.
    const lines = messages.map(({ text }) => text.split("\\n").slice(0, -1).map((row) => row.split(" ").map(Number)))
    count.textContent = lines.flat().length
    now.textContent = messages.at(-1)?.parts[1]?.data.toFixed(1)
    const first = Math.min(...lines.map((values) => values[0]?.[0] ?? Infinity))
    const width = Math.max(...lines.map((values) => values.at(-1)?.[0] ?? 0)) - first || 1
    const points = (values) => values.map(([at, value]) => `${((at - first) / width) * 1000} ${310 - value * 3}`)
    line.setAttribute("d", lines.map((values) => values.length ? `M${points(values).join("L")}` : "").join(""))
  })
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
