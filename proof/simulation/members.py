"""Members and commanders: clients that enter, leave and send signals; clients that send commands and replies.

Layer: simulation.

Each knows the server's responses, so it can check later ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from proof.oracle import Violation
from proof.oracle.views import ViewOracle
from proof.simulation.actors import RETRY_STATUS, Actor, DecodedResponse, asks_by_socket
from proof.simulation.bounds import members_of
from proof.simulation.clock import Process
from proof.simulation.network import RESPONSE_S, ClientSocket, ConnectionLost
from proof.simulation.writers import Author
from tenuto.core.names import command_key
from tenuto.hub.people import presence_state
from tenuto.hub.people.presence_state import GRACE_S

if TYPE_CHECKING:
    from proof.simulation.world import Node, World

EPHEMERAL_S = 2.0  # time within which a viewer must receive a presence change or a signal
SLOW_S = 0.1  # a network with a higher latency can delay these events further
FAST_S = 0.05  # a store or notices with a higher latency can delay events of another hub further
ACQUAINTED_S = 8.0  # time without a fault in which all hubs have noticed one another
HERE_S = (5.0, 8.0)  # lengths of the leases of members over HTTP


class Member(Actor):
    """A client that is present in one channel from time to time, over a socket or by a lease over HTTP."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.channel = self.draw.choice(world.channels)
        self.node: Node | None = None  # the node where the member is present, if the server has acknowledged that
        self.present_s = float("inf")  # since when it is, without a pause
        self.away_s = float("inf")  # since when it is surely nowhere, but for the grace
        self._stays = self.draw.random() < 0.5  # True: it is in the channel at the end of the run
        self._changes = 0  # number of changes of its data

    async def run(self) -> None:
        """Enter and leave until the end of the run."""
        while True:
            node = await self.some_node()
            if self.world.is_quiet and not self._stays:
                await self.pause(5.0, 5.0)
                continue
            try:
                if self.draw.random() < 0.7:
                    await self._by_socket(node)
                else:
                    await self._by_lease(node)
            except ConnectionLost:
                self.node = None
            self.present_s = float("inf")
            await self.pause(0.0, self.draw.choice((0.3, 1.5, 8.0)))

    async def _by_socket(self, node: Node) -> None:
        self.away_s = float("inf")
        socket = await ClientSocket.open(self, node)
        place = (self.channel, self.name)
        try:
            await self._enter(socket)
            self.world.promises.members.note_entered(place, socket.connection)
            self.world.trace.add(f"{self.name} is in {self.channel}")
            self.node, self.present_s = node, self.world.loop.time()
            for _ in range(self.draw.randrange(1, 6)):
                await socket.rest(self.draw.choice((0.2, 1.0, 5.0)))
                if self.draw.random() < 0.4:
                    await self._signal(socket)
                if self.draw.random() < 0.2:
                    await self._enter(socket)
            while self.world.is_quiet and self._stays:
                await socket.rest(5.0)
            if self.draw.random() < 0.2:
                self.world.promises.members.note_left(place, connection=socket.connection)
                self.node, self.present_s = None, float("inf")
                await self.ask_accepted(socket, {"type": "presence", "channel": self.channel, "leave": True})
        finally:
            self.world.trace.add(f"{self.name} closes its socket")
            self.node, self.present_s = None, float("inf")
            self.away_s = self.world.loop.time()
            socket.close()

    async def _enter(self, socket: ClientSocket) -> None:
        """Enter the channel, or change the data there."""
        self._changes += 1
        data, change = {"n": self.draw.randrange(3)}, self._changes
        sent_s = self.world.loop.time()
        await self.ask_accepted(socket, {"type": "presence", "channel": self.channel, "data": data})

        def is_shown(oracle: ViewOracle, process: Process) -> bool:
            node = next(node for node in self.world.nodes if node.process is process)
            here = [one for one in members_of(node.hub, self.channel).members if one.id == self.name]
            is_latest = self._changes == change and any(one.data == data for one in here)
            return not is_latest or any(one.data == data for one in oracle.view.members() if one.id == self.name)

        what = f"the presence of {self.name} with {data}"
        self.world.start(self._check_received(socket.connection.process, sent_s, is_shown, what))

    async def _signal(self, socket: ClientSocket) -> None:
        data, sent_s = f"signal {self.new_id()}", self.world.loop.time()
        signals = self.world.promises.signals
        signals[data] = sent_s
        await self.ask_accepted(socket, {"type": "signal", "channel": self.channel, "name": "typing", "data": data})

        def is_received(oracle: ViewOracle, process: Process) -> bool:
            """Return whether the viewer received the signal, or the hub may have dropped it."""
            near = sum(abs(one_s - sent_s) < 2 * EPHEMERAL_S for one_s in signals.values())
            return data in oracle.signals or near > presence_state.KEPT_SIGNALS

        self.world.start(self._check_received(socket.connection.process, sent_s, is_received, data))

    async def _check_received(
        self, process: Process, sent_s: float, is_received: Callable[[ViewOracle, Process], bool], what: str
    ) -> None:
        """Check that each viewer of the channel receives an ephemeral event within `EPHEMERAL_S`. Raises Violation."""
        world = self.world
        await asyncio.sleep(EPHEMERAL_S)
        if not process.is_alive or process.is_held or not world.promises.was_healthy(sent_s):
            return
        if world.plan.fault_model.latency_s[1] > SLOW_S or any(
            node.hub.is_draining for node in world.nodes if node.is_up
        ):
            return
        for viewer in world.viewers:
            other = viewer.process
            if other is None or (other is not process and not self._is_connected(other, sent_s)):
                continue
            if not viewer.follows(self.channel, other, sent_s):
                continue
            if not is_received(viewer.oracles[self.channel], process):
                raise Violation(f"{viewer.name} did not receive in {self.channel} within {EPHEMERAL_S} s: {what}")

    def _is_connected(self, process: Process, sent_s: float) -> bool:
        """Return whether notices reach a hub in `process` in time: all hubs have known one another for a while."""
        fault_model, promises = self.world.plan.fault_model, self.world.promises
        is_fast = max(fault_model.notice_s[1], fault_model.store_s[1]) <= FAST_S and not fault_model.notice_loss
        since_s = sent_s - ACQUAINTED_S
        is_steady = promises.booted_s < since_s and promises.was_healthy(since_s)
        is_awake = not process.is_held and all(node.process.thawed_s < since_s for node in self.world.nodes)
        return is_fast and is_steady and is_awake and process.is_alive

    async def _by_lease(self, node: Node) -> None:
        lease_s = self.draw.choice(HERE_S)
        self.away_s = float("inf")
        try:
            await self._hold_lease(node, lease_s)
        finally:
            self.node, self.present_s = None, float("inf")
            self.away_s = self.world.loop.time() + lease_s

    async def _hold_lease(self, node: Node, lease_s: float) -> None:
        path = f"/v1/channels/{self.channel}/presence/{self.name}"
        place = (self.channel, self.name)
        self.world.promises.members.note_left(place, lease_s + RESPONSE_S)
        for _ in range(self.draw.randrange(1, 4)):
            await self._put(node, path, lease_s)
            self.present_s = min(self.present_s, self.world.loop.time())
            # the presence may end at any time, without a grace period
            self.world.promises.members.note_left(place, lease_s + RESPONSE_S)
            await self.pause(lease_s / 3, lease_s / 3)
        while self.world.is_quiet and self._stays:
            await self._put(node, path, lease_s)
            await self.pause(lease_s / 3, lease_s / 3)
        self.node, self.present_s = None, float("inf")
        if self.draw.random() < 0.5:
            query = f"client={self.name}"
            await self.http.request(node.process, node.hub, "DELETE", path, query=query, patience_s=GRACE_S)
        self.world.promises.members.note_left(place)

    async def _put(self, node: Node, path: str, lease_s: float) -> None:
        query = f"client={self.name}"
        response = await self.http.request(
            node.process, node.hub, "PUT", path, json.dumps({"lease_s": lease_s}), query=query, patience_s=GRACE_S
        )
        if response.status in RETRY_STATUS:
            raise ConnectionLost("the server is busy")
        if response.status != 204:
            raise Violation(f"{self.name} got status {response.status}: {response.body!r}")
        self.node = node


class Commander(Author):
    """Sends messages and commands to agents, sends other commands, and replies to those of other clients."""

    label = "partner"

    async def run(self) -> None:
        self.has_socket = asks_by_socket(self)
        try:
            await super().run()
            await self.world.until_healthy()
            for deed in ("say", "cancel", "ask", "regenerate"):
                await self.do(self.draw.choice(self.world.channels), deed)
        finally:
            self.disconnect()

    async def write(self, channel: str) -> None:
        await self.do(
            channel,
            self.draw.choice(("say", "say", "cancel", "cancel", "steer", "ask", "reply", "reply")),
        )

    async def do(self, channel: str, deed: str) -> None:
        """Send one message, command or reply."""
        match deed:
            case "say":
                await self._say(channel)
            case "cancel" | "steer":
                targets = self._at_work(channel)
                if targets:
                    await self._send(channel, deed, self.draw.choice(targets))
            case "regenerate":
                over = self._over(channel)
                if over:
                    await self._send(channel, deed, self.draw.choice(over))
            case "ask":
                await self._send(channel, "approve", None)
            case "reply":
                await self._reply(channel)

    def _at_work(self, channel: str) -> list[str]:
        """Return the ids that a cancel may have as its target: streaming messages, and open turns."""
        log = self.world.stored.head(channel)
        open_turns = [one for one, turns in log.turns.items() if turns[-1][1] in ("pending", "taken")]
        return [message.id for message in log.messages(log.serial) if message.status == "streaming"] + open_turns

    def _over(self, channel: str) -> list[str]:
        """Return the ids of the messages whose turn is over."""
        turns = self.world.stored.head(channel).turns
        return [one for one, found in turns.items() if found[-1][1] in ("done", "cancelled")]

    async def _say(self, channel: str) -> None:
        begun, message_id = self.world.stored.stamp, self.new_id()
        response = await self.ask("POST", f"/v1/channels/{channel}/messages", {"id": message_id, "text": "hello"})
        if response.status >= 400:
            self.check_refused(channel, message_id, response.code, begun, response.stamp)

    async def _send(self, channel: str, name: str, target: str | None) -> None:
        """Send a command, sometimes twice: the second one is a repeat."""
        begun, command_id = self.world.stored.stamp, self.new_id()
        body = {"id": command_id, "name": name, "data": {"text": "x"}, "expires_s": self.draw.choice((1, 3, 20))}
        body |= {"target": target} if target is not None else {}
        serials = set()
        for _ in range(self.draw.choice((1, 1, 2))):
            response = await self.ask("POST", f"/v1/channels/{channel}/commands", body)
            if response.status >= 400:
                self._check_refused(channel, name, target, response, begun)
                return
            serials.add(response.fields["serial"])
        if self.is_excused(channel, begun):
            return
        log, key = self.world.stored.head(channel), command_key(command_id)
        known = log.commands[key][0] if key in log.commands else 0
        if serials != {known}:
            raise Violation(f"{self.name} sent {command_id}, the responses have {serials}, stored is {known}")

    def _check_refused(
        self, channel: str, name: str, target: str | None, response: DecodedResponse, begun: int
    ) -> None:
        log = self.world.stored.head(channel)
        if self.is_excused(channel, begun):
            return
        is_deleted = target is not None and log.is_deleted(target)
        if response.code == "deleted" and is_deleted:
            return
        is_known = is_deleted or (target is not None and log.now(target) is not None)
        if response.code == "streaming" and name == "regenerate" and is_known:
            return  # another reply came first
        if response.code == "finished" and name in ("cancel", "steer") and is_known:
            return  # the answer has ended, and another client may have deleted the message since
        raise Violation(f"{self.name} could not send {name} {target} to {channel}: {response.fields}")

    async def _reply(self, channel: str) -> None:
        """Reply to a command, sometimes twice with different data: the first reply counts."""
        log = self.world.stored.head(channel)
        begun = self.world.stored.stamp
        pending = [
            key for key, one in log.pending(log.serial).items() if one.name not in ("cancel", "steer", "regenerate")
        ]
        if not pending:
            return
        command_id = self.draw.choice(pending)
        path = f"/v1/channels/{channel}/commands/{command_id}/reply"
        for _ in range(self.draw.choice((1, 2))):
            request = self.new_id()
            body = {"ok": self.draw.random() < 0.5, "data": {"by": request}, "request": request}
            response = await self.ask("POST", path, body)
            if self.is_excused(channel, begun):
                return
            stored = log.replies.get(command_key(command_id), (0, None))[1]
            if response.status < 400 and (stored is None or stored.request != request):
                raise Violation(f"{self.name}: reply {request} to {command_id} was acknowledged, stored is {stored}")
            if response.status >= 400 and (response.code != "already_answered" or stored is None):
                raise Violation(f"{self.name} could not reply to {command_id}: {response.fields}, stored is {stored}")
            if response.status >= 400 and stored is not None and stored.request == request:
                raise Violation(f"{self.name} replied to {command_id} with {request}, and got: {response.fields}")
