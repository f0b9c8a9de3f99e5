"""Two people edit one text, and neither overwrites the other by accident.

Run `python examples/edit_notice.py`, open http://127.0.0.1:8000/?me=ann and http://127.0.0.1:8000/?me=bob. When Ann
saves, Bob's page shows a notice at once and keeps his text. If he saves without merging her text, the hub refuses the
update with `version_conflict`, because his page names the version that it began from.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from holdfast import Hub

hub = Hub("sqlite:///edit-example.db")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # A create with an explicit id may be repeated: the second call has no effect.
    await hub.create("page:home", id="text", role="system", text="Welcome. Change me.")
    yield


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Edit notice</title>
<style>
  body { max-width: 40rem; margin: 2rem auto; font: 1rem system-ui }
  textarea { width: 100%; height: 12rem }
</style>
<textarea id="text"></textarea>
<p><button id="save" disabled>Save</button> <button id="take" hidden>Load the other text</button></p>
<p id="notice" role="status"></p>
<script type="module">
  import { connect } from "./holdfast/web/client.js"

  const me = new URLSearchParams(location.search).get("me") ?? "guest"
  const channel = connect({ url: "holdfast", client: me }).channel("page:home")
  let begun // the message that the text on screen began from

  function load(message) {
    begun = message
    text.value = message.parts[0].text
    take.hidden = true
    save.disabled = false
  }
  const latest = () => channel.getSnapshot().messages[0]

  channel.subscribe(() => {
    const message = latest()
    if (!message || message.version === begun?.version) return
    const isTouched = begun && text.value !== begun.parts[0].text
    if (!isTouched) load(message)
    take.hidden = !isTouched
    notice.textContent = message.meta?.by ? `${message.meta.by} saved version ${message.version}.` : ""
  })

  take.onclick = () => load(latest())
  save.onclick = async () => {
    const saved = text.value
    try {
      const { message } = await channel.update("text", { text: saved, meta: { by: me }, if_version: begun.version })
      begun = message
      take.hidden = true
      notice.textContent = `You saved version ${message.version}.`
    } catch (error) {
      if (error.code !== "version_conflict") throw error
      take.hidden = false
      notice.textContent = `Not saved: ${latest().meta.by} was faster.`
    }
  }
</script>
"""

app = Starlette(routes=[Route("/", page)], lifespan=lifespan)
hub.install(app, "/holdfast")

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
