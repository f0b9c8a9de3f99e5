"""The ASGI app: routes each request to its endpoint, and serves the lifespan protocol.

Layer: transports.

Plain requests go through Starlette (routes, CORS, static files). Streams, long polls and sockets are many and live
long, so they go from here straight to endpoints that use ASGI themselves. The app works mounted anywhere: it reads the
path below `root_path`, starts the hub on first use, and serves `lifespan` if the server sends it. `mount`, `check_asgi`
and `respond_to_refusals` put it into another app.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Router
from starlette.staticfiles import NotModifiedResponse
from starlette.types import ASGIApp, Receive, Send

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.hub.access.identity import Scope, header
from tenuto.hub.access.visitors import VisitorVerifier, cookie_headers, visit_in
from tenuto.hub.hub import HubCore
from tenuto.transports.codec import GUARDS, MISUSED, Headers, known_error
from tenuto.transports.http import Endpoint, no_such_path, problem_response, routes
from tenuto.transports.operations import BY_NAME, OPERATIONS, SOCKET_PATH
from tenuto.transports.origin import check_peer
from tenuto.transports.sender import Heartbeats, abort_if_unread, end_refusal
from tenuto.transports.sse import channel_events, is_started, poll, send_refusal
from tenuto.transports.streams import message_events
from tenuto.transports.websocket import Sockets

logger = logging.getLogger("tenuto.transports")

# time to disconnect all viewers when the hub drains; a peer that does not read gets `sender.FAREWELL_S`
SHUTDOWN_S = 1.0
WEB = Path(__file__).parent.parent / "web"
WEB_PATH = "/web/"
_METHODS = tuple(dict.fromkeys(("GET", "HEAD", *(one.method for one in OPERATIONS if one.method))))
_REQUEST_HEADERS = ("Authorization", "Cache-Control", "Content-Type", "Tenuto-Client", "Last-Event-ID")
_ENDPOINTS: dict[str, Callable[..., Awaitable[None]]] = {
    "events": channel_events,
    "poll": poll,
    "message_events": message_events,
}
# One alternative per kind of stream, as a named group; inside it an unnamed group for each name in the path.
_STREAM = re.compile(
    "|".join(
        f"(?P<{one.name}>{re.sub('{[a-z]+}', '([^/]+)', one.path)})\\Z" for one in OPERATIONS if one.kind == "stream"
    )
)


class App:
    """The hub as an ASGI app: all requests, streams and sockets of one hub, with the timers of its viewers."""

    def __init__(self, hub: HubCore) -> None:
        self.hub = hub
        self.heartbeats = Heartbeats()
        self._sockets = Sockets(hub, self.heartbeats)
        self._plain = _plain_app(hub)
        hub.on_drain(self._drain)
        hub.viewing.on_cut_off.append(self._sockets.drain)

    def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Return the work for one connection. A coroutine around it would cost time for each frame of a socket."""
        known = cast("Scope", scope)  # ASGI servers pass a dict as the scope
        if isinstance(self.hub.authenticate, VisitorVerifier):
            visit_in(known, self.hub.authenticate)  # now, so that all copies of the scope share it
        match scope["type"]:
            case "http":
                return self._http(known, receive, send)
            case "websocket":
                return self._websocket(known, receive, send)
            case "lifespan":
                return self._lifespan(receive, send)
        raise LocalError(f"hub serves HTTP, WebSockets and the lifespan, got a scope of type {shown(scope['type'])}")

    def added_headers(self, scope: Scope) -> Headers:
        """Return the headers for CORS, and for the cookie of a visitor, of a response that bypasses the middleware."""
        return [*self._cors(scope), *cookie_headers(scope)]

    def _cors(self, scope: Scope) -> Headers:
        """Return the headers of CORS for a response that Starlette's middleware does not see."""
        origin, cors = header(scope, b"origin"), self._plain
        if origin is None or not isinstance(cors, CORSMiddleware):
            return []  # not from a page, or the hub allows no other origin
        if not cors.is_allowed_origin(origin):
            return [(b"vary", b"Origin")]  # so that no cache gives this response to an allowed page
        headers = MutableHeaders(cors.simple_headers)
        if not cors.allow_all_origins:  # else `simple_headers` has `*`
            cors.allow_explicit_origin(headers, origin)
        return headers.raw

    def _drain(self) -> None:
        self._sockets.drain()
        # The hub waits for its tasks before it passes the signal on, so the last events to viewers are sent before the
        # server closes its connections.
        self.hub.start_task(self._until_all_disconnected())

    async def _until_all_disconnected(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                await self.heartbeats.until_empty()  # each stream and socket is one of their targets

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_below(scope)
        stream = _STREAM.match(path)
        try:
            # for any peer: modules of pages, and `GET /v1`, which tells a client why it is refused
            if not (path.startswith(WEB_PATH) or path == BY_NAME["version"].path):
                check_peer(self.hub, scope)
            if stream is None or scope["method"] not in ("GET", "HEAD"):
                await self._respond({**scope, "path": path, "root_path": ""}, receive, send)
                return
            assert stream.lastgroup is not None
            _, *names = [group for group in stream.groups() if group is not None]  # the path, and the names in it
            try:
                await _ENDPOINTS[stream.lastgroup](self, scope, receive, send, *names)
            except TenutoError as error:
                if stream.lastgroup == "poll":  # no EventSource sends it
                    raise
                await send_refusal(self, scope, send, error)
        except TenutoError as error:
            await self._send_problem(error, scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                return  # ASGI 2.4 servers raise OSError when the peer has left; a TimeoutError, also one, is a failure
            if is_started(scope):
                raise  # the server ends the stream and logs the error
            await self._send_problem(known_error(error, "an HTTP request failed"), scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response to a plain request. Raises Draining if the hub has drained, and its store is silent."""
        async with self.hub.viewing.responding() as begin:

            async def send_begun(message: MutableMapping[str, Any]) -> None:
                begin()  # ends the limit of time for the response to begin
                if message["type"] == "http.response.start":
                    headers = [*message.get("headers", ()), *cookie_headers(scope)]
                    known = {name for name, _ in headers}
                    message = {**message, "headers": headers + [one for one in GUARDS if one[0] not in known]}
                await send(message)

            await self._plain(scope, receive, send_begun)

    async def _send_problem(self, error: TenutoError, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(error, scope)
        response.raw_headers += self.added_headers(scope)
        with suppress(OSError):  # the peer has disconnected
            await response(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # the first ASGI message: websocket.connect
        try:
            check_peer(self.hub, scope)
            if path_below(scope) != SOCKET_PATH:
                raise no_such_path(path_below(scope))
            credentials = await self._sockets.admit(scope)
        except Exception as error:
            await refuse_socket(scope, known_error(error, "a WebSocket could not be admitted"), receive, send)
            return
        try:
            await self._sockets.serve(credentials, scope, receive, send)
        finally:
            abort_if_unread(receive, lambda: self.hub.viewing.is_over)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # the ASGI message lifespan.startup
        try:
            await self.hub.start()
        except TenutoError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # the ASGI message lifespan.shutdown
        await self.hub.close()
        await send({"type": "lifespan.shutdown.complete"})


def path_below(scope: Scope) -> str:
    """Return the path below the mount point. An encoded slash stays encoded: it must not split a name."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw.lower():
        segments = raw.partition(b"?")[0].split(b"/")
        path = "/".join(unquote_to_bytes(one).decode(errors="replace").replace("/", "%2F") for one in segments)
    # Starlette's routes end in `$`, which would also match before a newline at the end
    path = path.replace("\n", "%0A")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


def _plain_app(hub: HubCore) -> ASGIApp:
    """Return the ASGI app for plain requests, within CORS if the hub allows other origins."""
    paths = [*routes(hub), Mount("/web", Endpoint(["GET"], web_module))]
    app: ASGIApp = Router(paths, redirect_slashes=False, default=_not_found)
    origins = hub.allowed_origins
    if origins:
        return CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            allow_credentials="*" not in origins,  # with `*` any page could use a user's cookies
            expose_headers=("Retry-After",),
        )
    return app


async def _not_found(scope: Any, receive: Any, send: Any) -> None:
    raise no_such_path(scope["path"])


async def refuse_socket(scope: Scope, error: TenutoError, receive: Receive, send: Send) -> None:
    """Refuse a socket before it is accepted, with a problem response or, if the server has none, a plain 403."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await problem_response(error)(scope, receive, send)
        end_refusal(receive)
    else:
        await send({"type": "websocket.close", "code": MISUSED, "reason": error.code})


_NAME = re.compile(r"/((?:(?:chat|client|markdown|vendor)/)?[\w-]+(?:\.[\w-]+)*\.js(\.map)?)", re.ASCII)
# in a header: accepted, not with weight 0
_GZIP = re.compile(r"(gzip|^(?!.*gzip).*\*)(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)


async def web_module(request: Request) -> Response:
    """Return one of the browser's modules in `WEB`, compressed once, without those in `demo` and `gallery`.

    They may change with each release, so browsers must revalidate their copies. Raises NotFound for a missing file.
    """
    scope = request.scope
    name = _NAME.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
    if name is None:
        raise no_such_path(scope["path"])
    try:
        path = WEB / name[1]
        body, zipped, digest = _module(path, path.stat().st_mtime_ns)
    except OSError:
        raise no_such_path(scope["path"]) from None
    headers = {"cache-control": "no-cache", "etag": f'"{digest}"', "vary": "Accept-Encoding"}
    if _GZIP.search(request.headers.get("accept-encoding", "")):
        body = zipped
        headers |= {"content-encoding": "gzip", "etag": f'"{digest}-gzip"'}
    response = Response(body, headers=headers, media_type="application/json" if name[2] else "text/javascript")
    etags = request.headers.get("if-none-match", "")  # of the browser's copies
    is_known = headers["etag"] in etags or etags.strip() == "*"
    return NotModifiedResponse(response.headers) if is_known else response


@lru_cache
def _module(path: Path, changed_ns: int) -> tuple[bytes, bytes, str]:
    """Return the content of a file that was last changed at `changed_ns`, plain and compressed, and its digest."""
    plain = path.read_bytes()
    return plain, gzip.compress(plain, 9, mtime=0), hashlib.blake2b(plain, digest_size=12).hexdigest()


def check_path(path: object) -> str:
    """Return `path` without a slash at its end. Raises LocalError unless it begins with a slash."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise LocalError(f'path of the hub must begin with a slash, such as "/tenuto", got {shown(path)}')
    return path.rstrip("/")


def mount(app: Any, path: str, hub: Any) -> None:
    """Mount `hub` in a Starlette or FastAPI app, before the first route that would hide it. Raises LocalError."""
    routes = getattr(getattr(app, "router", None), "routes", None)
    if not callable(getattr(app, "mount", None)) or not isinstance(routes, list):
        raise LocalError(
            f"hub.install takes a Starlette or FastAPI app, got {shown(app)}; for Django, or any other ASGI app, use "
            "application = hub.wrap(app, path)"
        )
    app.mount(path, hub)
    if not path:
        return  # a hub at the root would hide all routes that follow it
    hiding = next((index for index, route in enumerate(routes[:-1]) if _hides(route, path)), None)
    if hiding is not None:
        logger.warning(
            "hub.install put the hub at %s before the route %s, which would have hidden it; call hub.install before "
            "you add that route",
            path,
            shown(routes[hiding]),
        )
        routes.insert(hiding, routes.pop())  # the last one is the hub's


def respond_to_refusals(app: Any) -> None:
    """Let a Starlette or FastAPI app, and apps mounted in it, respond to a refusal by the hub as the hub does.

    Handlers of an app for such errors come first. Mistakes and bugs stay exceptions.
    """

    async def respond(request: Request, error: TenutoError) -> Response:
        if error.status == 500 or request.scope["type"] != "http":  # a mistake or bug; a socket of the app
            raise error
        response = problem_response(error)
        response.raw_headers += cookie_headers(request.scope)
        return response

    handlers, routes = getattr(app, "exception_handlers", None), getattr(app, "routes", None)
    if isinstance(handlers, dict) and TenutoError not in handlers:
        handlers[TenutoError] = respond
    for route in routes if isinstance(routes, list) else ():
        if isinstance(route, Mount) and route.app is not app:
            respond_to_refusals(route.app)


def check_asgi(app: object) -> None:
    """Raise LocalError unless `app` may be an ASGI app."""
    if not callable(app) or isinstance(app, type):
        raise LocalError(f"hub.wrap takes an ASGI app, such as Django's get_asgi_application(), got {shown(app)}")
    if any(kind.__name__ in ("WSGIHandler", "Flask") for kind in type(app).__mro__):
        raise LocalError(
            f"hub.wrap takes an ASGI app, got the WSGI app {shown(app)}; for Django use get_asgi_application() and an "
            "ASGI server, for other frameworks wrap the app with a2wsgi.WSGIMiddleware first"
        )


def _hides(route: BaseRoute, path: str) -> bool:
    """Return whether `route` matches the requests or the sockets of a hub at `path`."""
    probes = (
        {"type": "http", "path": f"{path}/v1/channels", "method": "GET"},
        {"type": "websocket", "path": f"{path}{SOCKET_PATH}"},
    )
    return any(
        route.matches({"headers": [], "query_string": b"", "root_path": "", **probe})[0] is not Match.NONE
        for probe in probes
    )
