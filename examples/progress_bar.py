"""The progress bar of a long job, for all viewers, also for those that attach in the middle.

Run `python examples/progress_bar.py`, open http://127.0.0.1:8000 and press the button; then press F5, or open the page
twice. A job is a message with one `data` part, which is replaced twenty times a second. The hub sends no outdated
value: a viewer that was disconnected, or is slow, gets the latest one.
"""

import asyncio

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import Hub

hub = Hub("memory://")
app = FastAPI()
hub.install(app, "/tenuto")

STEPS = 200
PACE_S = 0.05


async def job() -> None:
    async with hub.message("jobs", role="tool", author="importer") as message:
        for done in range(STEPS + 1):
            # The first call opens part 0, the others replace it.
            await message.part({"type": "data", "name": "progress", "data": {"done": done, "of": STEPS}}, index=0)
            await asyncio.sleep(PACE_S)


@app.post("/jobs", status_code=202)
async def begin() -> None:
    """Start a job that outlives this request."""
    await hub.start()
    hub.start_task(job())


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Progress</title>
<style>
  :root { --line: #e2e2dc; --muted: #5f6b68; --accent: #0f6b57; --tint: #e4f2ee }
  body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #14201d }
  h1 { margin: 0; font-size: 1.4rem }
  p { color: var(--muted) }
  button { padding: 0.4rem 1.1rem; border: 1px solid var(--accent); border-radius: 2rem; font: inherit }
  button { color: #fff; background: var(--accent); cursor: pointer }
  button:disabled { opacity: 0.4; cursor: default }
  label { display: block; margin: 1rem 0; padding: 0.9rem 1.1rem; border: 1px solid var(--line); border-radius: 1rem }
  progress { display: block; width: 100%; height: 0.7rem; margin-top: 0.5rem; accent-color: var(--accent) }
</style>
<h1>Import</h1>
<p>Reload the page, or open it in a second window, while a job runs.</p>
<button id="begin">Import data</button>
<div id="jobs"></div>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto" }).channel("jobs")

  function bar({ status, parts }) {
    const { done = 0, of = 1 } = parts[0]?.data ?? {}
    const label = document.createElement("label")
    const bar = Object.assign(document.createElement("progress"), { value: done, max: of })
    label.append(`${done} of ${of}, ${status}`, bar)
    return label
  }
  channel.subscribe(() => jobs.replaceChildren(...channel.getSnapshot().messages.map(bar).reverse()))

  begin.onclick = () => fetch("jobs", { method: "POST" })
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
