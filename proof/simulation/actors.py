"""Actors: the clients of a simulation.

Layer: simulation.

An actor behaves as the protocol requires of a client: it keeps its text until it is stored, repeats requests without a
response, and tries again after "try again". So each other refusal must have a reason in the log, and each acknowledged
request must be stored when its response is sent.
"""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from proof.oracle import Violation
from proof.simulation.network import RESPONSE_S, ClientSocket, ConnectionLost, HttpClient, Response, request_frame
from tenuto.core.errors import Busy, Draining, LocalError, StoreUnavailable
from tenuto.core.model import Message

if TYPE_CHECKING:
    from proof.simulation.world import Node, World

STUCK_S = 120.0  # without faults, no request may be refused for longer than this
RETRY_STATUS = (429, 503)  # the server asks the client to try again
RETRY_ERRORS = (Draining, LocalError, StoreUnavailable, Busy)  # the hub shuts down, or its store fails


class Actor:
    """A client with a name, its own random choices, and its own connections. `label` is the prefix of its name."""

    label: ClassVar[str] = "actor"

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.draw = Random(f"{world.plan.seed}/{name}")
        self.http = HttpClient(world.net, self.draw)
        self.has_socket = False  # whether it uses a socket where the protocol allows it
        self._socket: ClientSocket | None = None
        self._count = 0

    async def run(self) -> None:
        """Act until the end of the run."""
        raise NotImplementedError

    def new_id(self) -> str:
        """Return an id that no other actor uses."""
        self._count += 1
        return f"{self.name}.{self._count}"

    async def pause(self, low_s: float, high_s: float) -> None:
        """Wait for a random time."""
        await asyncio.sleep(self.draw.uniform(low_s, high_s))

    async def some_node(self) -> Node:
        """Return a node that runs a hub; wait for one if needed. In the calm all nodes run."""
        while True:
            nodes = [node for node in self.world.nodes if node.is_up]
            if nodes:
                return self.draw.choice(nodes)
            await self.pause(0.05, 0.5)

    async def call(self, method: str, path: str, body: object = None, *, query: str = "", client: str = "") -> Response:
        """Send a request once, with the client id `client` if given. Raises ConnectionLost."""
        node = await self.some_node()
        process, hub = node.process, node.hub
        text = json.dumps(body) if body is not None else ""
        query = f"client={client or self.name}&{query}"
        return await self.http.request(process, hub, method, path, text, query=query, patience_s=RESPONSE_S)

    async def ask(self, method: str, path: str, body: object = None, *, query: str = "") -> DecodedResponse:
        """Send a request until the response is not "try again"."""
        begun_s = self.world.loop.time()
        while True:
            try:
                received = await self._ask_once(method, path, body, query)
            except ConnectionLost:
                received = None
            if received is not None:
                response = DecodedResponse(received)
                if response.status not in RETRY_STATUS:
                    self.world.trace.add(f"{self.name} {method} {path}: {response.status} {response.summary}")
                    return response
            self.check_patience(begun_s, f"{method} {path}")
            await self.pause(0.05, 1.0)

    async def _ask_once(self, method: str, path: str, body: object, query: str) -> Response:
        frame = request_frame(method, path, body) if self.has_socket and not query else None
        if frame is None:
            return await self.call(method, path, body, query=query)
        if self._socket is None or self._socket.is_lost:
            self._socket = await ClientSocket.open(self, await self.some_node())
        response, stamp = await self._socket.ask(frame)
        status = response["status"] if response["type"] == "error" else 200
        return Response(status, json.dumps(response).encode(), stamp)

    async def ask_accepted(self, socket: ClientSocket, frame: dict[str, Any]) -> None:
        """Send a frame that may not be refused. Raises Violation, or ConnectionLost if the server is busy."""
        response, _ = await socket.ask(frame)
        if response["type"] == "error":
            if response["status"] not in RETRY_STATUS:
                raise Violation(f"{self.name} was refused: {response}")
            raise ConnectionLost("the server is busy")

    def disconnect(self) -> None:
        """Close the socket, if there is one."""
        if self._socket is not None:
            self._socket.close()

    def check_patience(self, begun_s: float, what: str) -> None:
        """Check that a request is not refused for too long without faults. Raises Violation."""
        if self.world.loop.time() - max(begun_s, self.world.calm_s) > STUCK_S:
            raise Violation(f"{self.name} gets no response, though no fault is active: {what}")


class DecodedResponse:
    """A decoded response."""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.stamp = response.stamp
        self.fields: dict[str, Any] = json.loads(response.body) if response.body else {}
        self.code: str = self.fields.get("code", "") if response.status >= 400 else ""

    @property
    def summary(self) -> str:
        """Return the response in a few words."""
        return summary(self.fields)

    def message(self) -> Message:
        """Return the message in the response."""
        return msgspec.convert(self.fields["message"], Message)


def summary(fields: dict[str, Any]) -> str:
    """Return a response in a few words."""
    names = ("code", "serial", "part", "length", "generation")
    return " ".join(f"{name}={fields[name]}" for name in names if name in fields)


def asks_by_socket(actor: Actor) -> bool:
    """Return whether this actor sends its requests over a socket."""
    plan = actor.world.plan
    return plan.asks_by_socket and Random(f"{plan.seed}/{actor.name}/socket").random() < 0.7
