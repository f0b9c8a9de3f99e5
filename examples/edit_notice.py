"""An edit notice for a shared document: two people edit one text, and neither overwrites the other by accident.

Run `python examples/edit_notice.py`, open http://127.0.0.1:8000/?me=ann and http://127.0.0.1:8000/?me=bob. While Ann
types, Bob's page says so: that is a signal, which is not stored. When she saves, Bob's page shows a notice at once and
keeps his text. If he saves without her text, the hub refuses the update with `version_conflict`, because his page names
the version that it began from.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import Hub

hub = Hub("sqlite:///edit-example.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # A create with an explicit id may be repeated: the second call has no effect.
    await hub.create("page:home", id="text", role="system", text="Welcome. Change me.")
    yield


app = FastAPI(lifespan=lifespan)
hub.install(app, "/tenuto")


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Edit notice</title>
<style>
  :root { --line: #e2e2dc; --muted: #5f6b68; --accent: #0f6b57; --tint: #e4f2ee }
  body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #14201d }
  h1 { margin: 0; font-size: 1.4rem }
  p { color: var(--muted) }
  button { padding: 0.4rem 1.1rem; border: 1px solid var(--accent); border-radius: 2rem; font: inherit }
  button { color: #fff; background: var(--accent); cursor: pointer }
  button:disabled { opacity: 0.4; cursor: default }
  #editing { float: right; margin: 0; font-size: 0.9rem }
  textarea { box-sizing: border-box; width: 100%; height: 12rem; margin: 1rem 0; padding: 0.9rem 1.1rem }
  textarea { border: 1px solid var(--line); border-radius: 1rem; font: inherit; color: inherit }
  #take { color: inherit; background: none; border-color: var(--line) }
  #notice:not(:empty) { padding: 0.6rem 1.1rem; border-radius: 1rem; background: var(--tint); color: inherit }
</style>
<p id="editing"></p>
<h1>Shared text</h1>
<textarea id="text" aria-label="Shared text"></textarea>
<button id="save" disabled>Save</button> <button id="take" hidden>Load the other text</button>
<p id="notice" role="status"></p>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const me = new URLSearchParams(location.search).get("me") ?? "guest"
  const channel = connect({ url: "tenuto", client: me }).channel("page:home")
  const SIGNAL_MS = 2_000
  let begun // the message that the text on screen began from
  let signalled = -SIGNAL_MS
  let timer

  function load(message) {
    begun = message
    text.value = message.text
    take.hidden = true
    save.disabled = false
  }
  const latest = () => channel.getSnapshot().messages[0]

  channel.subscribe(() => {
    const message = latest()
    if (!message || message.version === begun?.version) return
    const isTouched = begun && text.value !== begun.text
    if (!isTouched) load(message)
    take.hidden = !isTouched
    notice.textContent = message.meta.by ? `${message.meta.by} saved version ${message.version}.` : ""
  })

  text.oninput = ({ timeStamp }) => {
    if (timeStamp - signalled < SIGNAL_MS) return
    signalled = timeStamp
    channel.signal("editing")
  }
  channel.listen(({ type, name, from }) => {
    if (type !== "signal" || name !== "editing" || from === me) return
    editing.textContent = `${from} is typing …`
    clearTimeout(timer)
    timer = setTimeout(() => (editing.textContent = ""), 2 * SIGNAL_MS)
  })

  take.onclick = () => load(latest())
  save.onclick = async () => {
    const saved = text.value
    try {
      const { message } = await channel.update("text", { text: saved, meta: { by: me }, if_version: begun.version })
      begun = { ...message, text: saved }
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

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
