"""Notifications: a page shows the messages that arrived while it was closed, once.

Run `python examples/notifications.py` and open http://127.0.0.1:8000. Send yourself a message; then close the page,
send more with the `curl` command that it shows, and open it again: the new messages are bold. The page keeps the shown
messages and one cursor in `localStorage`, so that the server sends only the difference. It needs no client library but
the browser's own EventSource, and the server needs no table of unread messages.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from holdfast import Hub

hub = Hub("sqlite:///notifications-example.db")


def notify(request: Request) -> Response:
    """Store a notification. Starlette runs this ordinary function in a thread; a Celery task would do the same."""
    stored = hub.sync.create("inbox:you", role="system", author="shop", text=request.query_params["text"])
    return JSONResponse({"id": stored.id}, status_code=201)


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Notifications</title>
<style>body { max-width: 40rem; margin: 2rem auto; font: 1rem system-ui } .new { font-weight: bold }</style>
<form id="form"><input id="text" required value="Your parcel is on its way"> <button>Send</button></form>
<p><code id="command"></code></p>
<ul id="list"></ul>
<script>
  const kept = new Map(JSON.parse(localStorage.getItem("messages")))
  for (const message of kept.values()) show(message)
  command.textContent = `curl -X POST '${new URL("notify?text=Hello", location.href)}'`

  const url = new URL("holdfast/v1/channels/inbox:you/events?history=20", location.href)
  url.searchParams.set("since", localStorage.getItem("cursor") ?? "")
  const source = new EventSource(url)
  source.addEventListener("channel.attached", ({ data }) => {
    if (JSON.parse(data).resumed) return
    kept.clear() // a new start: the newest 20 follow
    list.replaceChildren()
  })
  source.addEventListener("message.update", take)
  source.addEventListener("message.create", take)

  function take({ type, data, lastEventId }) {
    const { message } = JSON.parse(data)
    if (!kept.has(message.id)) show(message, type === "message.create")
    kept.set(message.id, message)
    localStorage.setItem("messages", JSON.stringify([...kept]))
    localStorage.setItem("cursor", lastEventId)
  }

  function show(message, isNew) {
    const line = document.createElement("li")
    line.textContent = `${new Date(message.created_at).toLocaleTimeString()} ${message.parts[0].text}`
    line.classList.toggle("new", Boolean(isNew))
    list.prepend(line)
  }

  form.onsubmit = (event) => {
    event.preventDefault()
    fetch(`notify?text=${encodeURIComponent(text.value)}`, { method: "POST" })
  }
</script>
"""

app = Starlette(routes=[Route("/", page), Route("/notify", notify, methods=["POST"])])
hub.install(app, "/holdfast")  # starts the hub on the app's event loop, before a thread calls it

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
