"""PresenceTracker: who come, go, and come back at once, and say things in passing; and who ask, stop, steer and answer.

Layer: simulation.

Each knows what it was told, so that what the server says of it can be checked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.core.names import command_key
from holdfast.hub import presence_state
from holdfast.hub.presence import GRACE_S
from simulation.actors import AWAY_STATUS, Author, Person, Reply, asks_by_socket
from simulation.checks import Eye, members_of
from simulation.clock import Process
from simulation.line import ANSWER_S, Line
from simulation.network import Lost
from simulation.trace import Violation

if TYPE_CHECKING:
    from simulation.world import Node, World

EPHEMERAL_S = 2.0  # within which a viewer who follows is told what is said in passing
SLOW_S = 0.1  # a network that takes longer may hold that up
HERE_S = (5.0, 8.0)  # leases of those who are here over HTTP


class Member(Person):
    """Somebody who is in one channel, now and then; over a socket, or over HTTP by a lease."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.channel = self.draw.choice(world.channels)
        self.node: Node | None = None  # where they are, if they were told so
        self._stays = self.draw.random() < 0.5  # at the end
        self._changes = 0  # of what is known of them

    async def run(self) -> None:
        """For ever."""
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
            except Lost:
                self.node = None
            await self.pause(0.0, self.draw.choice((0.3, 1.5, 8.0)))

    async def _by_socket(self, node: Node) -> None:
        line = await Line.open(self, node)
        place = (self.channel, self.name)
        try:
            await self._enter(line)
            self.world.ledger.entered(place, line.connection)
            self.world.trace.add(f"{self.name} is in {self.channel}")
            self.node = node
            for _ in range(self.draw.randrange(1, 6)):
                await line.rest(self.draw.choice((0.2, 1.0, 5.0)))
                if self.draw.random() < 0.4:
                    await self._whisper(line)
                if self.draw.random() < 0.2:
                    await self._enter(line)
            while self.world.is_quiet and self._stays:
                await line.rest(5.0)
            if self.draw.random() < 0.2:
                self.world.ledger.left(place, line=line.connection)
                self.node = None
                await self._tell(line, {"type": "presence", "channel": self.channel, "leave": True})
        finally:
            self.world.trace.add(f"{self.name} hangs up")
            self.node = None
            line.leave()

    async def _tell(self, line: Line, frame: dict[str, Any]) -> None:
        answer, _ = await line.ask(frame)
        if answer["type"] == "error":
            if answer["status"] not in AWAY_STATUS:
                raise Violation(f"{self.name} was refused: {answer}")
            raise Lost("sent away")

    async def _enter(self, line: Line) -> None:
        """Be here, or be here as somebody else."""
        self._changes += 1
        data, change = {"n": self.draw.randrange(3)}, self._changes
        asked_s = self.world.loop.time()
        await self._tell(line, {"type": "presence", "channel": self.channel, "data": data})

        def is_shown(eye: Eye, process: Process) -> bool:
            node = next(node for node in self.world.nodes if node.process is process)
            here = [one for one in members_of(node.hub, self.channel).members if one.id == self.name]
            is_latest = self._changes == change and any(one.data == data for one in here)
            return not is_latest or any(one.data == data for one in eye.view.members() if one.id == self.name)

        self.world.start(self._told(line.connection.process, asked_s, is_shown, f"that {self.name} is here as {data}"))

    async def _whisper(self, line: Line) -> None:
        data, asked_s = f"whisper {self.new_id()}", self.world.loop.time()
        whispers = self.world.ledger.whispers
        whispers[data] = asked_s
        await self._tell(line, {"type": "signal", "channel": self.channel, "name": "typing", "data": data})

        def is_heard(eye: Eye, process: Process) -> bool:
            """Or are there more than a hub keeps?"""
            near = sum(abs(one_s - asked_s) < 2 * EPHEMERAL_S for one_s in whispers.values())
            return data in eye.heard or near > presence_state.KEPT_SIGNALS

        self.world.start(self._told(line.connection.process, asked_s, is_heard, data))

    async def _told(self, process: Process, asked_s: float, is_told: Callable[[Eye, Process], bool], what: str) -> None:
        """Whoever follows the channel is told of it within `EPHEMERAL_S`, whatever text streams. Raises Violation."""
        world = self.world
        await asyncio.sleep(EPHEMERAL_S)
        if not process.is_alive or process.is_held or not world.ledger.was_well(asked_s):
            return
        if world.fault_model.latency_s[1] > SLOW_S or any(node.hub.is_draining for node in world.nodes if node.is_up):
            return
        for viewer in world.viewers:
            if viewer.listens(self.channel, process, asked_s) and not is_told(viewer.eyes[self.channel], process):
                raise Violation(f"{viewer.name} was not told in {self.channel} within {EPHEMERAL_S} s: {what}")

    async def _by_lease(self, node: Node) -> None:
        lease_s = self.draw.choice(HERE_S)
        path = f"/v1/channels/{self.channel}/presence/{self.name}"
        place = (self.channel, self.name)
        self.world.ledger.left(place, lease_s + ANSWER_S)
        for _ in range(self.draw.randrange(1, 4)):
            await self._put(node, path, lease_s)
            self.world.ledger.left(place, lease_s + ANSWER_S)  # it may end at any time, without a grace
            await self.pause(lease_s / 3, lease_s / 3)
        while self.world.is_quiet and self._stays:
            await self._put(node, path, lease_s)
            await self.pause(lease_s / 3, lease_s / 3)
        self.node = None
        if self.draw.random() < 0.5:
            query = f"client={self.name}"
            await self.http.request(node.process, node.hub, "DELETE", path, query=query, patience_s=GRACE_S)
        self.world.ledger.left(place)

    async def _put(self, node: Node, path: str, lease_s: float) -> None:
        query = f"client={self.name}"
        answer = await self.http.request(
            node.process, node.hub, "PUT", path, json.dumps({"lease_s": lease_s}), query=query, patience_s=GRACE_S
        )
        if answer.status in AWAY_STATUS:
            raise Lost("sent away")
        if answer.status != 204:
            raise Violation(f"{self.name} was answered {answer.status}: {answer.body!r}")
        self.node = node


class Partner(Author):
    """Says something to agents, stops and steers them, asks things of others, and answers what others ask."""

    async def run(self) -> None:
        self.has_socket = asks_by_socket(self)
        try:
            await super().run()
            await self.world.until_well()
            for deed in ("say", "cancel", "ask"):
                await self.do(self.draw.choice(self.world.channels), deed)
        finally:
            self.hang_up()

    async def write(self, channel: str) -> None:
        await self.do(channel, self.draw.choice(("say", "say", "cancel", "cancel", "steer", "ask", "reply", "reply")))

    async def do(self, channel: str, deed: str) -> None:
        """One deed."""
        match deed:
            case "say":
                await self._say(channel)
            case "cancel" | "steer":
                targets = self._at_work(channel)
                if targets:
                    await self._send(channel, deed, self.draw.choice(targets))
            case "ask":
                await self._send(channel, "approve", None)
            case "reply":
                await self._reply(channel)

    def _at_work(self, channel: str) -> list[str]:
        """What may be stopped: messages that stream, and those that wait for an agent or have one."""
        life = self.world.truth.head(channel)
        open_turns = [one for one, turns in life.turns.items() if turns[-1][1] in ("pending", "taken")]
        return [message.id for message in life.messages(life.serial) if message.status == "streaming"] + open_turns

    async def _say(self, channel: str) -> None:
        begun, message_id = self.world.truth.stamp, self.new_id()
        reply = await self.ask("POST", f"/v1/channels/{channel}/messages", {"id": message_id, "text": "hello"})
        if reply.status >= 400:
            self.check_refused(channel, message_id, reply.code, begun, reply.stamp)

    async def _send(self, channel: str, name: str, target: str | None) -> None:
        """A command, now and then twice: then it is the same one."""
        begun, command_id = self.world.truth.stamp, self.new_id()
        body = {"id": command_id, "name": name, "data": {"text": "x"}, "expires_s": self.draw.choice((1, 3, 20))}
        body |= {"target": target} if target is not None else {}
        serials = set()
        for _ in range(self.draw.choice((1, 1, 2))):
            reply = await self.ask("POST", f"/v1/channels/{channel}/commands", body)
            if reply.status >= 400:
                self._check_refused(channel, name, target, reply, begun)
                return
            serials.add(reply.fields["serial"])
        if self.is_excused(channel, begun):
            return
        life, key = self.world.truth.head(channel), command_key(command_id)
        known = life.commands[key][0] if key in life.commands else 0
        if serials != {known}:
            raise Violation(f"{self.name} sent {command_id}, answered were {serials}, stored is {known}")

    def _check_refused(self, channel: str, name: str, target: str | None, reply: Reply, begun: int) -> None:
        life = self.world.truth.head(channel)
        if self.is_excused(channel, begun):
            return
        is_deleted = target is not None and life.is_deleted(target)
        if reply.code == "deleted" and is_deleted:
            return
        is_known = is_deleted or (target is not None and life.now(target) is not None)
        if reply.code == "finished" and name == "cancel" and is_known:
            return  # somebody was faster, and perhaps somebody else has deleted it since
        raise Violation(f"{self.name} could not send {name} {target} to {channel}: {reply.fields}")

    async def _reply(self, channel: str) -> None:
        """Response something, now and then twice, with other words: the first one counts."""
        life = self.world.truth.head(channel)
        begun = self.world.truth.stamp
        pending = [key for key, one in life.pending(life.serial).items() if one.name not in ("cancel", "steer")]
        if not pending:
            return
        command_id = self.draw.choice(pending)
        path = f"/v1/channels/{channel}/commands/{command_id}/reply"
        for _ in range(self.draw.choice((1, 2))):
            request = self.new_id()
            body = {"ok": self.draw.random() < 0.5, "data": {"by": request}, "request": request}
            reply = await self.ask("POST", path, body)
            if self.is_excused(channel, begun):
                return
            stored = life.replies.get(command_key(command_id), (0, None))[1]
            if reply.status < 400 and (stored is None or stored.request != request):
                raise Violation(f"{self.name} was told that {request} answers {command_id}: that is {stored}")
            if reply.status >= 400 and (reply.code != "already_answered" or stored is None):
                raise Violation(f"{self.name} could not answer {command_id}: {reply.fields}, stored is {stored}")
            if reply.status >= 400 and stored is not None and stored.request == request:
                raise Violation(f"{self.name} answered {command_id} by {request}, and was told: {reply.fields}")
