"""A cluster: nodes that share one PostgreSQL, behind nginx.

Layer: chaos.

Between each node and PostgreSQL is a proxy that can break the connection. nginx knows more ports than there are nodes,
so that a node can be added.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from typing import Any

from proof.chaos.agent import AgentOrders
from proof.chaos.cluster_app import NodeOrders
from proof.chaos.conversation import PATTERN, Conversation
from proof.chaos.engines import PostgresPair, Redis, check_programs
from proof.chaos.nginx import configuration
from proof.chaos.processes import Server, ask
from proof.chaos.proxies import Proxy
from proof.chaos.report import Failure
from proof.chaos.world import World

__all__ = ["Cluster", "Node"]

NODES = 3
SPARE = 1  # number of nodes that can be added
READY_S = 60.0
ASK_AGAIN_S = 40.0
NODE_DRAIN_S = 2.0


class Node(Server):
    """A server process, and the proxy between it and PostgreSQL."""

    def __init__(self, world: World, conversation: Conversation, name: str, network: Proxy, bus: str | None) -> None:
        arguments = ["-m", "tenuto", "serve", "--app", "proof.chaos.cluster_app:app", "--trust-proxy", "127.0.0.1"]
        report = world.checked(name, conversation.take_report)
        super().__init__(name, world.folder, world.store, arguments=arguments, prefix="/tenuto", report=report)
        self.network = network
        orders = AgentOrders(
            url="", name=name, pattern=PATTERN, seed=world.seed, steps=world.scale.steps,
            per_second=world.scale.per_second, on_crash=world.random.choice(("restart", "continue")), drain_s=0.0,
            asks_users=False,
        )  # fmt: skip
        store = f"postgresql://app@127.0.0.1:{network.port}/app"
        self.environment = NodeOrders(store, bus, NODE_DRAIN_S, world.begun_s, orders).environment
        self.is_stopped = False  # by SIGSTOP

    async def is_ready(self) -> bool:
        """Return whether it serves viewers."""
        with contextlib.suppress(OSError):
            return (await self.get("/readyz"))[0] == 200
        return False


class Cluster(Server):
    """All nodes as one server, whose port is that of nginx."""

    def __init__(self, world: World, conversation: Conversation, *, has_bus: bool) -> None:
        super().__init__("nginx", world.folder, world.store, arguments=[], prefix="/tenuto")
        self._program = "nginx"
        self.world = world
        self.database = PostgresPair(world.folder, world.proxy)
        self.bus = Redis(world.folder) if has_bus else None
        self.all: list[Node] = []
        self._conversation = conversation
        self._stack = contextlib.AsyncExitStack()
        # Separate from the world's, which determines the faults: the number of requests depends on real time.
        self._random = random.Random(f"cluster:{world.seed}")

    @property
    def nodes(self) -> list[Server]:
        """Return the nodes that run and are not stopped."""
        return [one for one in self.all if one.is_running and not one.is_stopped]

    @property
    def running(self) -> list[Node]:
        """Return the nodes that run, in the order of their names."""
        return [one for one in self.all if one.is_running]

    async def open(self) -> None:
        """Start the engines, three nodes, and nginx."""
        check_programs()
        self._stack.push_async_callback(self.database.close)
        await self.database.open()
        if self.bus is not None:
            self._stack.push_async_callback(self.bus.clean_up)
            await self.bus.start()
        for number in range(NODES + SPARE):
            network = await self.world.proxy(self.database.primary.port)
            url = self.bus.url if self.bus is not None else None
            node = Node(self.world, self._conversation, f"node-{number + 1}", network, url)
            self.all.append(node)
            self.world.adds(node, serves=False)
        await self.start()

    async def start(self) -> None:
        """Start the nodes and nginx, as far as they do not run."""
        for node in self.all[:NODES]:
            if not node.is_running:
                await node.spawn()
        for node in self.running:
            await node.serves()
        await self.until_ready()
        if not self.is_running:
            await self.start_proxy(*(node.port for node in self.all))
            await self.serves()

    async def start_proxy(self, *ports: int) -> None:
        """Start nginx before the nodes at `ports`."""
        folder = self.world.folder / "proxy"
        folder.mkdir()
        path = folder / "nginx.conf"
        text = configuration(folder, self.port, *ports)
        text = text.replace("limit_conn peers 96;", "limit_conn peers 9600;")  # all viewers have one address
        path.write_text(text)
        self._arguments = ["-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]
        await self.spawn()

    async def kill(self) -> None:
        """End all nodes as `kill -9` does."""
        for node in self.running:
            await node.kill()

    async def clean_up(self) -> None:
        """End nginx, the nodes and the engines."""
        if self.is_running:
            self.signal(signal.SIGTERM)  # a killed nginx would leave its worker process
            with contextlib.suppress(TimeoutError):
                await self.ended()
        await super().clean_up()
        for node in self.all:
            await node.clean_up()
        await self._stack.aclose()

    async def until_ready(self) -> None:
        """Wait until each node that runs serves viewers. Raises Failure."""
        deadline_s = time.monotonic() + READY_S
        while late := [one.name for one in self.running if not await one.is_ready()]:
            if time.monotonic() > deadline_s:
                raise Failure(f"{', '.join(late)} do not serve after {READY_S:.0f} s")
            self.world.check()
            await asyncio.sleep(0.05)  # poll, because a node gives no event for it

    async def get(self, path: str) -> tuple[int, Any]:
        """Send a GET to any node, and to another one after each refusal."""
        deadline_s = time.monotonic() + ASK_AGAIN_S
        while time.monotonic() < deadline_s:
            node = self._random.choice(self.nodes or [self])
            with contextlib.suppress(OSError):
                status, response = await ask(node.port, "GET", self.prefix + path)
                if status < 500:
                    return status, response
            await asyncio.sleep(0.05)  # before the next node is asked
        raise Failure(f"GET {path} had no response of any node in {ASK_AGAIN_S:.0f} s")

    async def point_to(self, port: int) -> None:
        """Let the nodes connect to the PostgreSQL server at `port`."""
        for node in self.all:
            await node.network.point_to(port)
