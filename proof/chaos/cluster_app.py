"""The app of one node of a cluster: a hub on a shared store, with an agent in its process.

Layer: chaos.

The environment variable `TENUTO_CHAOS` holds the settings (JSON: `NodeOrders`). The agent prints its reports as a
remote one does, so they outlive the process. Each line of the log has the time of the run's report, and a line says
when the event loop was late, because the machine or the node was busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from starlette.applications import Starlette

from proof.chaos.agent import AgentOrders, answer
from proof.chaos.app import verify
from proof.chaos.report import say_when_late
from tenuto import Hub
from tenuto.agents.turn import Turn

__all__ = ["NodeOrders", "app"]

SLOTS = 100  # as many as a remote agent has, so both get turns

logger = logging.getLogger("chaos")


@dataclass(frozen=True)
class NodeOrders:
    """The settings of a node."""

    store: str
    bus: str | None
    drain_s: float
    begun_s: float  # begin of the run, by the clock that all processes of the machine share
    agent: AgentOrders  # its URL is unused

    @property
    def environment(self) -> dict[str, str]:
        return {"TENUTO_CHAOS": json.dumps(asdict(self))}


app: Starlette  # built on first access: an import of this module opens no store


class _Timed(logging.Formatter):
    """Lines with the time since the begin of the run."""

    def __init__(self, begun_s: float) -> None:
        super().__init__()
        self._begun_s = begun_s

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.monotonic() - self._begun_s:8.3f} {super().format(record)}"


@contextlib.asynccontextmanager
async def _logging_lateness(app: Starlette) -> AsyncIterator[None]:
    """Log each long wait of the event loop while the app runs."""
    watching = asyncio.create_task(say_when_late(logger.info))
    yield
    watching.cancel()


def _build(wanted: NodeOrders) -> Starlette:
    handler = logging.StreamHandler()
    handler.setFormatter(_Timed(wanted.begun_s))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    hub = Hub(wanted.store, bus=wanted.bus, drain_s=wanted.drain_s, authenticate=verify)

    @hub.agent(wanted.agent.pattern, name=wanted.agent.name, on_crash=wanted.agent.on_crash, slots=SLOTS)
    async def respond(turn: Turn) -> None:
        await answer(turn, wanted.agent)

    hub.on_drain(lambda: logger.info("the hub drains"))
    app = Starlette(lifespan=_logging_lateness)
    hub.install(app, "/tenuto")
    return app


def __getattr__(name: str) -> Starlette:
    """`app`."""
    if name == "app":
        settings = json.loads(os.environ["TENUTO_CHAOS"])
        return _build(NodeOrders(**{**settings, "agent": AgentOrders(**settings["agent"])}))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
