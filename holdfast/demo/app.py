"""The demo's application: a chat page, the hub behind it with an agent, and two routes of its own.

Layer: demo.

This module connects the guide to a hub. Only the page calls `/demo/info` and `/demo/diver`, so they may change together
with it. The hub's own `/web` serves the page's files, and the page sends messages to the hub like any client.

The guide continues answers of an earlier process: `on_crash="continue"`. A model cannot continue in the middle of a
sentence, so with a model the interrupted answer stays and another answer follows.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from holdfast.agents.turn import OnCrash
from holdfast.app import Hub
from holdfast.core.errors import InvalidName
from holdfast.core.names import check_channel
from holdfast.demo.diver import Divers
from holdfast.demo.guide import Guide, Sleep
from holdfast.demo.model import model_in
from holdfast.demo.passages import library
from holdfast.hub.patterns import matches
from holdfast.transports.app import WEB
from holdfast.transports.codec import decode
from holdfast.transports.http import Endpoint, read_body
from holdfast.transports.origin import check_peer

__all__ = ["CHANNELS", "build"]

CHANNELS = "demo:*"
SLOTS = 100  # far fewer than a diver has: the scheduler prefers the agent with the most free slots
_BODY_BYTES = 1024

# The page loads no file of another site and runs no code of a message; this header makes browsers enforce both.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def build(
    store_url: str,
    *,
    flush_ms: int = 40,
    sleep: Sleep = asyncio.sleep,
    environ: Mapping[str, str] = os.environ,
) -> Starlette:
    """Return the demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    `sleep` waits between the tokens of an answer. If `environ` has the key of a model, the model answers instead of the
    documentation.
    """
    # Shutdown gives answers no time to finish: the next start continues them, which the demo exists to show.
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0)
    model = model_in(environ)
    library()  # read at start-up; an installation without its documentation fails here
    guide = Guide(hub, model, sleep)
    on_crash: OnCrash = "continue" if model is None else "restart"
    hub.agent(CHANNELS, name="guide", when_busy="parallel", on_crash=on_crash, slots=SLOTS)(guide.answer)
    routes = _Routes(Divers(hub), None if model is None else model.name or "the model of OPENAI_BASE_URL")
    app = Starlette(
        routes=[
            Route("/", _endpoint(hub, "GET", _page)),
            Route("/demo/info", _endpoint(hub, "GET", routes.info)),
            Route("/demo/diver", _endpoint(hub, "POST", routes.call_diver)),
        ]
    )
    app.state.hub = hub  # `holdfast demo` starts it first, to report errors of the store plainly
    hub.install(app, "/holdfast")
    app.router.routes.insert(
        0, Mount("/holdfast/web/demo", _Files(directory=WEB / "demo"))
    )  # beside the client's modules
    return app


class _Files(StaticFiles):
    """The page's files, with its headers: a browser may open a picture as a page, too. Other hubs serve no picture."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


class _CallDiver(msgspec.Struct):
    channel: str


_call_diver = msgspec.json.Decoder(_CallDiver)


class _Routes:
    """The two routes that the page calls beside those of the hub."""

    def __init__(self, divers: Divers, model: str | None) -> None:
        self._divers = divers
        self._model = model

    async def info(self, request: Request) -> Response:
        """Handle `GET /demo/info`: return the command that kills this server, and the model behind the guide."""
        pid = os.getpid()
        body = {"pid": pid, "kill": f"kill -9 {pid}", "model": self._model}
        return JSONResponse(body, headers={"cache-control": "no-store"})

    async def call_diver(self, request: Request) -> Response:
        """Handle `POST /demo/diver {channel}`: respond when an agent in its own process listens in the channel."""
        channel = check_channel(decode(await read_body(request, _BODY_BYTES), _call_diver).channel)
        if not matches(CHANNELS, channel):
            raise InvalidName(f"the channel of a diver must match {CHANNELS}, got {channel!r}")
        # The server's own address: the client controls the Host header.
        host, port = request.scope["server"]
        address = f"[{host}]" if ":" in host else host
        pid = await self._divers.start(f"http://{address}:{port}/holdfast", channel)
        return JSONResponse({"pid": pid, "kill": f"kill -9 {pid}"}, headers={"cache-control": "no-store"})


# The page


async def _page(request: Request) -> Response:
    return FileResponse(WEB / "demo" / "index.html", headers=_PAGE_HEADERS)


def _endpoint(hub: Hub, method: str, handler: Callable[[Request], Awaitable[Response]]) -> Endpoint:
    """Return `handler` behind the hub's access control: any web page can reach a loopback port."""

    async def guarded(request: Request) -> Response:
        await check_peer(hub, dict(request.scope))
        response = await handler(request)
        response.headers["x-content-type-options"] = "nosniff"
        return response

    return Endpoint([method], guarded)
