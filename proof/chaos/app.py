"""The app that `tenuto serve --app` serves in a run: a mounted hub.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `Wanted`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.applications import Starlette

from tenuto import Hub
from tenuto.hub.access.identity import Identity, Scope
from tenuto.stores.sqlite.store import SqliteStore

__all__ = ["OPERATOR", "Wanted", "app", "verify"]

OPERATOR = "operator"  # the client that may read `/metrics`


@dataclass(frozen=True)
class Wanted:
    """The settings of the app."""

    store: str
    busy_s: float = 5.0
    lock_wait_s: float = 5.0
    is_lazy: bool = False  # mounted without a lifespan: the hub starts with the first request
    has_admins: bool = True  # otherwise a verifier makes each client the one that it names, and only the operator admin

    @property
    def environment(self) -> dict[str, str]:
        return {"TENUTO_CHAOS": json.dumps(vars(self))}


app: Starlette  # built on first access: an import of this module opens no store


def _build(wanted: Wanted) -> Starlette:
    store = SqliteStore(wanted.store, busy_s=wanted.busy_s, lock_wait_s=wanted.lock_wait_s)
    hub = Hub(store) if wanted.has_admins else Hub(store, authenticate=verify)
    app = Starlette()
    if wanted.is_lazy:
        app.mount("/tenuto", hub)
    else:
        hub.install(app, "/tenuto")
    return app


async def verify(scope: Scope) -> Identity:
    """Make each client the one that it names."""
    query = parse_qs(scope["query_string"].decode())
    name = query.get("client", ["anonymous"])[0]
    may = {"subscribe", "history", "publish", "append", "presence", "command", "agent"}
    may |= {"admin"} if name == OPERATOR else set()
    return Identity(client_id=name, capabilities=frozenset(may))


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        return _build(Wanted(**json.loads(os.environ["TENUTO_CHAOS"])))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
