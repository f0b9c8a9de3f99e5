"""The ASGI app: which request goes where, and what the server itself asks of us.

Layer: transports.

Plain requests go through Starlette (routes, CORS, static files); streams, long polls and
sockets go straight from here to the endpoint that speaks ASGI, since they live long and many. The app works mounted
anywhere: it looks at the path below `root_path`, starts the hub on first use, and answers `lifespan` if it is asked.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Send

from holdfast.core.errors import HoldfastError, MethodNotAllowed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Scope
from holdfast.transports.access import check_local_only, header
from holdfast.transports.chunks import Chunks, cycle_of, socket_of
from holdfast.transports.codec import unexpected
from holdfast.transports.heartbeats import Heartbeats
from holdfast.transports.http import no_such_path, problem_response, routes
from holdfast.transports.longpoll import poll
from holdfast.transports.message_stream import message_events
from holdfast.transports.problem import Headers, problem_messages
from holdfast.transports.sender import LAST_WORDS_S
from holdfast.transports.sse import channel_events, is_started
from holdfast.transports.websocket import Sockets

logger = logging.getLogger("holdfast.transports")

SHUTDOWN_S = 1.0  # for viewers, when the hub leaves; those who do not read get less (`sender.LAST_WORDS_S`)
# For a peer to take what was written before its stream or socket ended. Servers wait for that for ever.
UNREAD_S = 10.0
WEB = Path(__file__).parent.parent / "web"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = ("Authorization", "Cache-Control", "Content-Type", "Holdfast-Client", "Last-Event-ID")
_STREAM = re.compile(r"/v1/channels/([^/]+)/(?:(events)|(poll)|messages/([^/]+)/events)\Z")


def asgi(hub: HubCore) -> ASGIApp:
    """The ASGI app of `hub`. One app for each hub: it holds the timers of its viewers."""
    return App(hub)


class App:
    """Everything that the hub says over ASGI."""

    def __init__(self, hub: HubCore) -> None:
        self.hub = hub
        self.heartbeats = Heartbeats()
        self.chunks = Chunks()
        self._sockets = Sockets(hub, self.heartbeats)
        self._plain = _plain_app(hub)
        hub.on_drain(self._drain)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        known = cast("Scope", scope)  # what servers hand over is a dict
        match scope["type"]:
            case "http":
                await self._http(known, receive, send)
            case "websocket":
                await self._websocket(known, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)

    def cors(self, scope: Scope) -> Headers:
        """The CORS headers of an answer that Starlette's middleware does not see."""
        origins = self.hub.allowed_origins
        origin = header(scope, b"origin")
        if not origins or origin is None:
            return []
        if "*" in origins:
            return [(b"access-control-allow-origin", b"*")]
        if origin not in origins:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]

    def _drain(self) -> None:
        self._sockets.drain()
        # The hub waits for its tasks before it hands the signal on, so what viewers are told last is on its way before
        # the server closes what is open.
        self.hub.start_task(self._until_all_left())

    async def _until_all_left(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                await self.heartbeats.until_empty()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_below(scope)
        stream = _STREAM.match(path)
        try:
            check_local_only(self.hub, scope)
            if stream is None or scope["method"] not in ("GET", "HEAD"):
                await self._plain({**scope, "path": path, "root_path": ""}, receive, send)
                return
            channel, is_events, is_poll, message_id = stream.groups()
            if is_events:
                await channel_events(self, scope, receive, send, channel)
            elif is_poll:
                await poll(self, scope, receive, send, channel)
            else:
                await message_events(self, scope, receive, send, channel, message_id)
        except HoldfastError as error:
            await _answer(error, self.cors(scope), send)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                return  # how servers say, since ASGI 2.4, that the peer has left while it was answered
            if is_started(scope):
                raise  # the server breaks the stream off, and logs why
            logger.exception("a request failed")
            await _answer(unexpected(), self.cors(scope), send)
        finally:
            if is_started(scope):
                self._cut_unread(receive)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            check_local_only(self.hub, scope)
            if path_below(scope) != "/v1/ws":
                raise no_such_path()
            credentials = await self._sockets.admit(scope)
        except HoldfastError as error:
            await _refuse(scope, error, send)
            return
        except Exception:
            logger.exception("a socket could not be let in")
            await _refuse(scope, unexpected(), send)
            return
        try:
            await self._sockets.serve(credentials, scope, receive, send)
        finally:
            self._cut_unread(receive)

    def _cut_unread(self, receive: Any) -> None:
        """A stream or socket has ended: cut the connection of a peer that does not read the rest, where we know it.

        Servers close when all is sent. A reader who has stopped would hold its connection, and a server that leaves,
        for ever.
        """
        connection = cycle_of(receive) or socket_of(receive)  # which less middleware wraps than `send`
        if connection is None or getattr(connection, "response_complete", False):
            return  # an answer that is complete may be read for as long as it takes
        if connection.transport.get_write_buffer_size():
            patience_s = LAST_WORDS_S if self.hub.is_draining else UNREAD_S
            asyncio.get_running_loop().call_later(patience_s, _abort_unread, connection.transport)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self.hub.start()
        except HoldfastError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self.hub.close()
        await send({"type": "lifespan.shutdown.complete"})


def path_below(scope: Scope) -> str:
    """The path below where we are mounted. An encoded slash stays encoded: it must not cut a name in two."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw.lower():
        segments = raw.partition(b"?")[0].split(b"/")
        path = "/".join(unquote_to_bytes(one).decode(errors="replace").replace("/", "%2F") for one in segments)
    path = path.replace("\n", "%0A")  # or it would be lost at the end: Starlette's routes end in `$`
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


class _Web(StaticFiles):
    """The browser's files. They change with the server, so a browser asks before it uses an old one."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


def _plain_app(hub: HubCore) -> ASGIApp:
    known: list[BaseRoute] = [*routes(hub)]
    if WEB.is_dir():
        known.append(Mount("/web", _Web(directory=WEB)))
    app: ASGIApp = _problems(Router(known, redirect_slashes=False, default=_nothing))
    origins = hub.allowed_origins
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            allow_credentials="*" not in origins,
            expose_headers=("Retry-After",),
        )
    return app


def _abort_unread(transport: asyncio.WriteTransport) -> None:
    if transport.get_write_buffer_size():
        transport.abort()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    await problem_response(no_such_path())(scope, receive, send)


def _problems(app: ASGIApp) -> ASGIApp:
    """`app`, with what static files raise said as problems."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except HTTPException as error:
            known: HoldfastError = no_such_path()
            if error.status_code == 405:
                known = MethodNotAllowed("only GET and HEAD are for files", allow=["GET", "HEAD"])
            elif error.status_code != 404:
                logger.warning("a file could not be served: %s", error)
            await problem_response(known)(scope, receive, send)

    return wrapped


async def _answer(error: HoldfastError, headers: Headers, send: Send) -> None:
    with suppress(OSError):  # the peer has left
        for message in problem_messages(error, headers):
            await send(message)


async def _refuse(scope: Scope, error: HoldfastError, send: Send) -> None:
    """Refuse a socket before it is accepted: with our problem where the server can, else with a plain 403."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        for message in problem_messages(error, prefix="websocket.http.response"):
            await send(message)
    else:
        await send({"type": "websocket.close", "code": 4300, "reason": error.code})
