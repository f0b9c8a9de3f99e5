"""The app of one node of a cluster: a hub on a shared store, with an agent in its process.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `NodeOrders`). The agent prints its reports as a
remote one does, so they outlive the process.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from starlette.applications import Starlette

from chaos.agent import AgentOrders, answer
from chaos.app import verify
from tenuto import Hub
from tenuto.agents.turn import Turn

__all__ = ["NodeOrders", "app"]

SLOTS = 100  # as many as a remote agent has, so both get turns


@dataclass(frozen=True)
class NodeOrders:
    """The settings of a node."""

    store: str
    bus: str | None
    drain_s: float
    agent: AgentOrders  # its URL is unused

    @property
    def environment(self) -> dict[str, str]:
        return {"TENUTO_CHAOS": json.dumps(asdict(self))}


app: Starlette  # built on first access: an import of this module opens no store


def _build(wanted: NodeOrders) -> Starlette:
    hub = Hub(wanted.store, bus=wanted.bus, drain_s=wanted.drain_s, authenticate=verify)

    @hub.agent(wanted.agent.pattern, name=wanted.agent.name, on_crash=wanted.agent.on_crash, slots=SLOTS)
    async def respond(turn: Turn) -> None:
        await answer(turn, wanted.agent)

    app = Starlette()
    hub.install(app, "/tenuto")
    return app


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        settings = json.loads(os.environ["TENUTO_CHAOS"])
        return _build(NodeOrders(**{**settings, "agent": AgentOrders(**settings["agent"])}))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
