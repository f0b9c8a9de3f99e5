"""The app that `tenuto serve --app` serves in a run: a mounted hub, with writers in its process.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `Wanted`). A `POST` to `/write` starts the message
of a plan, which `Hub.message` writes as an agent would. The file `acks` outlives the process: it gets one JSON object
per line for each acknowledged `flush`.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from proof.oracle.plans import Append, Plan
from tenuto import Hub
from tenuto.hub.access.identity import Identity, Scope
from tenuto.stores.sqlite.store import SqliteStore

__all__ = ["OPERATOR", "Wanted", "app", "verify"]

FLUSHED_EVERY = 5  # number of steps between two flushes
OPERATOR = "operator"  # the client that may read `/metrics`


@dataclass(frozen=True)
class Wanted:
    """The settings of the app."""

    store: str
    acks: str
    seed: int
    steps: int
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
    acks = os.open(wanted.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    async def write(request: Request) -> JSONResponse:
        order: dict[str, Any] = await request.json()
        plan = Plan(wanted.seed, order["id"], steps=wanted.steps)
        await hub.start()
        hub.start_task(_write(hub, order["channel"], plan, order["per_second"], acks))
        return JSONResponse({"id": plan.id}, status_code=202)

    app = Starlette(routes=[Route("/write", write, methods=["POST"])])
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


async def _write(hub: Hub, channel: str, plan: Plan, per_second: float, acks: int) -> None:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    lengths = [0] * len(plan.texts)
    async with hub.message(channel, id=plan.id, parts=plan.opening or None) as message:
        for number, step in enumerate(plan.steps):
            await asyncio.sleep(begun_s + number / per_second - loop.time())  # the pace of an answer
            if isinstance(step, Append):
                await message.append(step.text, part=step.part if plan.content == "thinking" else None)
                lengths[step.part] = step.end
            else:
                await message.part(plan.value(step.number), index=step.part)
            if number % FLUSHED_EVERY == 0:
                await message.flush()
                os.write(acks, json.dumps({"id": plan.id, "lengths": lengths}).encode() + b"\n")
    os.write(acks, json.dumps({"id": plan.id, "lengths": lengths, "status": "complete"}).encode() + b"\n")


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        return _build(Wanted(**json.loads(os.environ["TENUTO_CHAOS"])))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
