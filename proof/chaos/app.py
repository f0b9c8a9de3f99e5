"""The apps that `tenuto serve --app` serves in a run: a mounted hub, and one node of a cluster.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON): the URL of a store, or `NodeOrders`. A node has an
agent in its process, which prints its reports as a remote one does, so they outlive the process. Each line of its log
has its time.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.applications import Starlette

from proof.chaos.agent import AgentOrders, answer
from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.hub.access.identity import Identity, Scope

OPERATOR = "operator"  # the client that may read `/metrics`
SLOTS = 100  # as many as a remote agent has, so both get turns

logger = logging.getLogger("chaos")


@dataclass(frozen=True)
class NodeOrders:
    """The settings of a node."""

    store: str
    bus: str | None
    drain_s: float
    agent: AgentOrders  # its URL is unused


app: Starlette  # built on first access: an import of this module opens no store


def _build(store: str) -> Starlette:
    app = Starlette()
    Hub(store, authenticate=_verify).install(app, "/tenuto")
    return app


async def _verify(scope: Scope) -> Identity:
    """Make each client the one that it names."""
    query = parse_qs(scope["query_string"].decode())
    name = query.get("client", ["anonymous"])[0]
    may = {"subscribe", "history", "publish", "append", "presence", "command", "agent"}
    may |= {"admin"} if name == OPERATOR else set()
    return Identity(client_id=name, capabilities=frozenset(may))


def _build_node(wanted: NodeOrders) -> Starlette:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    hub = Hub(wanted.store, bus=wanted.bus, drain_s=wanted.drain_s, authenticate=_verify)

    @hub.agent(wanted.agent.pattern, name=wanted.agent.name, on_crash=wanted.agent.on_crash, slots=SLOTS)
    async def respond(turn: Turn) -> None:
        await answer(turn, wanted.agent)

    hub.on_drain(lambda: logger.info("the hub drains"))
    app = Starlette()
    hub.install(app, "/tenuto")
    return app


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = json.loads(os.environ["TENUTO_CHAOS"])
    if isinstance(settings, str):
        return _build(settings)
    return _build_node(NodeOrders(**{**settings, "agent": AgentOrders(**settings["agent"])}))
