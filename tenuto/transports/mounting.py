"""Mounting a hub in another app: its position among the app's routes, and the checks of the app.

Layer: transports.

`tenuto.Hub` uses this for `install` and `wrap`. Wording may change freely.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.hub.access.visitors import visit_in
from tenuto.transports.http import problem_response
from tenuto.transports.operations import SOCKET_PATH

logger = logging.getLogger("tenuto.transports")


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
        routes.insert(hiding, routes.pop())


def respond_to_refusals(app: Any) -> None:
    """Let a Starlette or FastAPI app respond to a refusal by the hub in a route as the hub does, such as by 429.

    Handlers of the app for such errors come first. Mistakes and bugs stay exceptions.
    """

    async def respond(request: Request, error: TenutoError) -> Response:
        if error.status == 500 or request.scope["type"] != "http":
            raise error
        response = problem_response(error)
        response.raw_headers += visit_in(request.scope).headers
        return response

    app.exception_handlers.setdefault(TenutoError, respond)


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
