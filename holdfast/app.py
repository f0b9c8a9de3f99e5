"""The hub as an ASGI application: what users import as `holdfast.Hub`.

You are at the top, beside `cli`: here the hub meets its transports. `Hub(...)` can be mounted anywhere ASGI apps can;
`install` and `wrap` also tie its life to the host's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from holdfast.hub import HubCore
from holdfast.transports.app import asgi

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Hub(HubCore):
    """Durable channels, over HTTP, SSE, WebSocket and long poll: `app.mount("/holdfast", Hub("sqlite:///chat.db"))`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    @cached_property
    def _asgi(self) -> AsgiApp:
        return asgi(self)

    def install(self, app: Any, path: str) -> None:
        """Mount the hub in a Starlette or FastAPI app at `path`, and start and close it with the app's lifespan."""
        app.mount(path, self)
        before = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(host: Any) -> AsyncIterator[Any]:
            await self.start()
            try:
                async with before(host) as state:
                    yield state
            finally:
                await self.close()

        app.router.lifespan_context = lifespan

    def wrap(self, app: AsgiApp, path: str) -> AsgiApp:
        """An ASGI app that serves the hub under `path`, and `app` elsewhere. For Django: `get_asgi_application()`.

        The lifespan is the hub's: Django has none.
        """
        prefix = path.rstrip("/")

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self(scope, receive, send)
                return
            root = scope.get("root_path", "")
            inner = scope["path"].removeprefix(root)
            if inner == prefix or inner.startswith(prefix + "/"):
                await self({**scope, "root_path": root + prefix}, receive, send)
            else:
                await app(scope, receive, send)

        return wrapped
