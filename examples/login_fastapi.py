"""Authorisation by the login that your app already has: a session cookie, and channels for each user.

Run `python examples/login_fastapi.py`, open http://127.0.0.1:8000 and log in as ann; in a private window, as bob. Each
has notes that the other cannot see, and both share the lobby. The button tries to read the notes of another user:
403. After "Log out" the hub refuses all requests; a stream that is still open, for example in another window, ends
within a minute.

The page watches the lobby with the browser's own EventSource and a ticket. The cookie alone would suffice here; tickets
are for pages that have a token instead, since EventSource can send no header.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any

from fastapi import Cookie, FastAPI, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from tenuto import Hub, Identity

READER = frozenset({"subscribe", "history"})
WRITER = READER | {"publish", "presence", "command"}

LASTS_S = 3600.0
RECHECK_S = 60.0  # an open stream or socket ends after this, and reconnects if its user is still logged in


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Stand in for your database, which all processes of the app share."""
    with closing(sqlite3.connect("login-sessions.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS sessions (id PRIMARY KEY, user, ends_s)")
        yield db


def user_of(session: str | None) -> tuple[str, float] | None:
    """Return the user of a session, and its end."""
    with database() as db:
        query = "SELECT user, ends_s FROM sessions WHERE id = ? AND ends_s > ?"
        found: tuple[str, float] | None = db.execute(query, [session, time.time()]).fetchone()
        return found


async def authenticate(scope: dict[str, Any]) -> Identity | None:
    """Identify the user of a request or socket. It returns before a stream begins, so its session may close then."""
    known = await asyncio.to_thread(user_of, HTTPConnection(scope).cookies.get("session"))
    if known is None:
        return None
    user, ends_s = known
    grants = {"user:{sub}:*": WRITER, "lobby": READER | {"publish"}}  # `{sub}` is the client id
    ends_s = min(ends_s, time.time() + RECHECK_S)
    return Identity(client_id=user, grants=grants, expires_at_ms=int(ends_s * 1000))


hub = Hub("sqlite:///login-example.db", authenticate=authenticate)
app = FastAPI()
hub.install(app, "/tenuto")


class Login(BaseModel):
    name: str = Field(pattern="^[a-z]{1,20}$")  # limited, because channel names contain the name


@app.post("/login", status_code=204)
def login(who: Login, response: Response) -> None:
    """Log in without a password; your own login checks one."""
    session = secrets.token_urlsafe(32)
    with database() as db:
        db.execute("INSERT INTO sessions VALUES (?, ?, ?)", [session, who.name, time.time() + LASTS_S])
    response.set_cookie("session", session, httponly=True, samesite="lax")  # add secure=True on a site with https


@app.post("/logout", status_code=204)
def logout(response: Response, session: Annotated[str | None, Cookie()] = None) -> None:
    with database() as db:
        db.execute("DELETE FROM sessions WHERE id = ?", [session])
    response.delete_cookie("session")


@app.get("/", response_class=HTMLResponse)
def page(session: Annotated[str | None, Cookie()] = None) -> str:
    known = user_of(session)
    return HEAD + (LOGIN if known is None else PAGE.replace("USER", known[0]))


HEAD = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Logins and Tenuto</title>
<style>body { max-width: 40rem; margin: auto; padding: 1rem; font: 1rem system-ui }</style>
<script type="module">
  async function post(path, body = {}) {
    const headers = { "Content-Type": "application/json" }
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) })
    if (response.ok) location.reload()
  }
  document.querySelector("#login")?.addEventListener("submit", (event) => {
    event.preventDefault()
    post("login", { name: event.target.name.value })
  })
  document.querySelector("#logout")?.addEventListener("click", () => post("logout"))
</script>
"""

LOGIN = """
<form id="login">
  <input name="name" required autofocus pattern="[a-z]{1,20}" placeholder="Your name"> <button>Log in</button>
</form>
"""

PAGE = """
You are <b id="me">USER</b>. <button id="logout">Log out</button>
<h2>Your notes</h2>
<ul id="notes"></ul>
<form id="note"><input name="text" required> <button>Note</button></form>
<h2>The lobby</h2>
<ul id="lobby"></ul>
<form id="say"><input name="text" required> <button>Say</button></form>
<button id="pry">Read another user's notes</button> <code id="answer"></code>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const user = me.textContent
  const client = connect({ url: "tenuto" }) // the browser sends the cookie by itself

  const own = client.channel(`user:${user}:notes`)
  own.subscribe(() => notes.replaceChildren(...own.getSnapshot().messages.map(line)))
  note.onsubmit = (event) => send(event, own)
  say.onsubmit = (event) => send(event, client.channel("lobby"))

  function send(event, channel) {
    event.preventDefault()
    channel.create({ text: event.target.text.value })
    event.target.reset()
  }

  function line({ author, parts }) {
    const li = document.createElement("li")
    li.textContent = `${author}: ${parts[0].text}`
    return li
  }

  async function watchLobby() {
    const headers = { "Content-Type": "application/json" }
    const asked = fetch("tenuto/v1/tickets", { method: "POST", headers, body: '{"channel":"lobby"}' })
    const response = await asked.catch(() => null)
    if (!response || response.status >= 500) return setTimeout(watchLobby, 1000) // the server starts again
    if (!response.ok) return // logged out
    const { ticket } = await response.json()
    const source = new EventSource(`tenuto/v1/channels/lobby/events?history=20&ticket=${ticket}`)
    source.addEventListener("channel.attached", ({ data }) => JSON.parse(data).resumed || lobby.replaceChildren())
    for (const type of ["message.create", "message.update"]) {
      source.addEventListener(type, ({ data }) => lobby.append(line(JSON.parse(data).message)))
    }
    const again = () => {
      source.close() // its minute is over, or a new server refuses its ticket: request another one
      setTimeout(watchLobby, 1000)
    }
    source.addEventListener("bye", again)
    source.onerror = () => source.readyState === EventSource.CLOSED && again()
  }
  watchLobby()

  pry.onclick = async () => {
    const response = await fetch(`tenuto/v1/channels/user:${user === "ann" ? "bob" : "ann"}:notes/messages`)
    answer.textContent = `${response.status} ${(await response.json()).code}`
  }
</script>
"""

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8000)
