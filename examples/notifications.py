"""Notifications: a page shows the messages that arrived while it was closed, and marks them as new once.

Run `python examples/notifications.py` and open http://127.0.0.1:8000. Send yourself a message; then close the page,
send more with the `curl` command that it shows, and open it again: the new messages are marked. The page remembers the
time of the newest message that it has shown; the server needs no table of unread messages.
"""

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tenuto import Hub

hub = Hub("sqlite:///notifications-example.db")
app = FastAPI()
hub.install(app, "/tenuto")  # starts the hub on the app's event loop, before a thread calls it


@app.post("/notify", status_code=201)
def notify(text: str) -> dict[str, str]:
    """Store a notification. FastAPI runs this ordinary function in a thread; a Celery task would do the same."""
    return {"id": hub.sync.create("inbox:you", role="system", author="shop", text=text).id}


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Notifications</title>
<style>
  :root { --line: #e2e2dc; --muted: #5f6b68; --accent: #0f6b57; --tint: #e4f2ee }
  body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #14201d }
  h1 { margin: 0; font-size: 1.4rem }
  p { color: var(--muted) }
  button { padding: 0.4rem 1.1rem; border: 1px solid var(--accent); border-radius: 2rem; font: inherit }
  button { color: #fff; background: var(--accent); cursor: pointer }
  button:disabled { opacity: 0.4; cursor: default }
  form { display: flex; gap: 0.6rem }
  input { flex: 1; padding: 0.4rem 0.9rem; border: 1px solid var(--line); border-radius: 2rem; font: inherit }
  ul { padding: 0; list-style: none }
  li { margin: 0.5rem 0; padding: 0.7rem 1rem; border: 1px solid var(--line); border-radius: 1rem }
  li.new { border-color: var(--accent); background: var(--tint); font-weight: 600 }
  time { float: right; color: var(--muted); font-weight: 400 }
  code { overflow-wrap: anywhere }
</style>
<h1>Notifications</h1>
<p>Close this page and run <code id="command"></code></p>
<form id="form"><input id="text" required value="Your parcel is on its way"> <button>Send</button></form>
<ul id="list"></ul>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto" }).channel("inbox:you", { history: 20 })
  const seen = Number(localStorage.getItem("seen")) // when the newest message was sent that this browser has shown

  function line({ text, created_at }) {
    const li = document.createElement("li")
    const time = document.createElement("time")
    time.textContent = new Date(created_at).toLocaleTimeString()
    li.append(text, time)
    li.classList.toggle("new", created_at > seen)
    return li
  }
  channel.subscribe(() => {
    const { messages } = channel.getSnapshot()
    list.replaceChildren(...messages.map(line).reverse())
    localStorage.setItem("seen", Math.max(seen, ...messages.map(({ created_at }) => created_at)))
    const count = list.querySelectorAll(".new").length
    document.title = count ? `(${count}) Notifications` : "Notifications"
  })

  command.textContent = `curl -X POST '${new URL("notify?text=Hello", location.href)}'`
  form.onsubmit = (event) => {
    event.preventDefault()
    fetch(`notify?text=${encodeURIComponent(text.value)}`, { method: "POST" })
  }
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
