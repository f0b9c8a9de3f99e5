"""The demo's application: a chat page, the hub behind it with an agent, and two requests of its own.

You are in `demo`, in the shell: this wires the guide to a hub. Nobody but the page calls `/demo/info` and
`/demo/diver`, so they may change together. The page's files come from the hub's own `/web`; what people say goes to the
hub as any client's requests do.

The guide goes on with what a process before this one began: `on_crash="continue"`. A model cannot go on in the middle
of a sentence, so with one the answer that was begun stays as it is, and another follows.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from holdfast.agents.turn import OnCrash
from holdfast.app import Hub
from holdfast.core.errors import InvalidName
from holdfast.core.names import check_channel
from holdfast.demo.diver import Divers
from holdfast.demo.guide import Guide, Sleep
from holdfast.demo.model import model_in
from holdfast.demo.passages import library
from holdfast.hub.patterns import matches
from holdfast.transports.access import check_local_only
from holdfast.transports.app import WEB
from holdfast.transports.codec import decode
from holdfast.transports.http import Endpoint, read_body

__all__ = ["CHANNELS", "build"]

CHANNELS = "demo:*"
SLOTS = 100  # far fewer than a diver has: messages go to the agent with the most room
_BODY_BYTES = 1024

# The page loads nothing from elsewhere and runs nothing that stands in a message; this makes browsers insist on it.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def build(
    store_url: str,
    *,
    flush_ms: int = 40,
    sleep: Sleep = asyncio.sleep,
    environ: Mapping[str, str] = os.environ,
) -> Starlette:
    """The demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    `sleep` waits between the tokens of an answer; a model whose key is in `environ` answers instead of the
    documentation.
    """
    # No time to finish at the end: the next start goes on with what runs, which is the point of the demo.
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0)
    model = model_in(environ)
    library()  # read before anyone waits for it; an installation without its documentation fails here
    guide = Guide(hub, model, sleep)
    on_crash: OnCrash = "continue" if model is None else "restart"
    hub.agent(CHANNELS, name="guide", when_busy="parallel", on_crash=on_crash, slots=SLOTS)(guide.answer)
    scheduler = _FrontDesk(Divers(hub), None if model is None else model.name or "the model of OPENAI_BASE_URL")
    app = Starlette(
        routes=[
            Route("/", _endpoint(hub, "GET", _page)),
            Route("/demo/info", _endpoint(hub, "GET", scheduler.info)),
            Route("/demo/diver", _endpoint(hub, "POST", scheduler.call_diver)),
        ]
    )
    app.state.hub = hub  # whoever serves this starts it first, to tell plainly what is wrong with its store
    hub.install(app, "/holdfast")
    return app


class _CallDiver(msgspec.Struct):
    channel: str


_call_diver = msgspec.json.Decoder(_CallDiver)


class _FrontDesk:
    """What the page asks beside the hub."""

    def __init__(self, divers: Divers, model: str | None) -> None:
        self._divers = divers
        self._model = model

    async def info(self, request: Request) -> Response:
        """`GET /demo/info`: how to kill the server that answers, and who is behind the guide."""
        pid = os.getpid()
        body = {"pid": pid, "kill": f"kill -9 {pid}", "model": self._model}
        return JSONResponse(body, headers={"cache-control": "no-store"})

    async def call_diver(self, request: Request) -> Response:
        """`POST /demo/diver {channel}`: an agent in a process of its own is listening there once this is answered."""
        channel = check_channel(decode(await read_body(request, _BODY_BYTES), _call_diver).channel)
        if not matches(CHANNELS, channel):
            raise InvalidName(f"divers go to channels like {CHANNELS} only")
        # Our own address as the server knows it: what the Host header says is the client's.
        host, port = request.scope["server"]
        address = f"[{host}]" if ":" in host else host
        pid = await self._divers.start(f"http://{address}:{port}/holdfast", channel)
        return JSONResponse({"pid": pid, "kill": f"kill -9 {pid}"}, headers={"cache-control": "no-store"})


# The page


async def _page(request: Request) -> Response:
    return FileResponse(WEB / "demo" / "index.html", headers=_PAGE_HEADERS)


def _endpoint(hub: Hub, method: str, handler: Callable[[Request], Awaitable[Response]]) -> Endpoint:
    """`handler` behind the hub's own door: any web page can reach a loopback port, and may not ask here either."""

    async def guarded(request: Request) -> Response:
        check_local_only(hub, dict(request.scope))
        return await handler(request)

    return Endpoint([method], guarded)
