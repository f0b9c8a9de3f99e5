"""Lease writers: they stop without a word, return too late, and take over messages of other writers.

Layer: simulation.

The text of each attempt encodes its generation and its offset (`proof.oracle.log.marks`), so the log shows at once
whose text was stored. A writer that is not refused after a takeover has found a bug.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from proof.oracle.log import GENERATION, marks
from proof.oracle.responses import check_serial, is_correct_refusal
from proof.oracle.violation import Violation
from proof.simulation.actors import RETRY_STATUS, DecodedResponse, summary
from proof.simulation.network import ConnectionLost
from proof.simulation.sockets import ClientSocket
from proof.simulation.writers import Author

if TYPE_CHECKING:
    from proof.simulation.node import Node
    from proof.simulation.world import World

TERMS_S = (5.0, 6.0, 15.0)


class Refused(Exception):
    """The message belongs to another writer; `code` is that of the refusal."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class LeaseWriter(Author):
    """Writes messages with leases. Often it stops in the middle, and a successor continues."""

    label = "leaser"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.others = [f"{name}~{number}" for number in range(2)]

    async def run(self) -> None:
        await super().run()
        await self.world.until_healthy()
        await self.write(self.draw.choice(self.world.channels))

    async def write(self, channel: str) -> None:
        attempt = WriteAttempt(self, channel, self.new_id(), self.name, 1)
        try:
            await attempt.begin()
            await attempt.write(self.draw.randrange(1, 8))
            await self._end(attempt)
        except Refused as refused:
            self.world.trace.add(f"{self.name} loses {attempt.message_id}: {refused.code}")
        finally:
            attempt.close()

    async def _end(self, attempt: WriteAttempt) -> None:
        match self.draw.choice(("finish", "vanish", "vanish", "hole", "silent", "fenced", "fenced")):
            case "finish":
                await attempt.finish(self.draw.choice(("complete", "failed")))
                return
            case "vanish":
                attempt.close()
            case "hole":
                attempt.vanish()
            case "silent":
                await attempt.rest(attempt.term_s * 1.5)
            case "fenced":
                await self._fence(attempt)
                return
        if self.draw.random() < 0.6:
            await self._succeed(attempt)

    async def _succeed(self, before: WriteAttempt) -> WriteAttempt:
        """Wait until the message is interrupted, and let a successor continue it."""
        begun_s = self.world.loop.time()
        path = f"/v1/channels/{before.channel}/messages/{before.message_id}"
        while True:
            reply = await self.ask("GET", path)
            if reply.status >= 400 or reply.message().status not in ("streaming", "interrupted"):
                raise Refused(reply.code or reply.message().status)
            if reply.message().status == "interrupted":
                break
            if (before.channel, before.message_id) in self.world.abandoned:
                raise Refused("abandoned")  # its writer belongs to a running hub, and no code uses that writer
            self.check_patience(begun_s, f"an end of {before.message_id}")
            await self.pause(0.5, 2.0)
        return await self._take_over(before)

    async def _take_over(self, before: WriteAttempt) -> WriteAttempt:
        attempt = WriteAttempt(
            self, before.channel, before.message_id, self.draw.choice(self.others), before.generation + 1
        )
        attempt.begun = before.begun
        try:
            await attempt.take_over()
            await attempt.rest(self.draw.choice((0.0, attempt.term_s / 2)))
            await attempt.write(self.draw.randrange(4))
            if self.draw.random() < 0.7:
                await attempt.finish("complete")
        finally:
            attempt.close()
        return attempt

    async def _fence(self, attempt: WriteAttempt) -> None:
        """Let a successor take over while the first writer continues: the first one must be refused."""
        await attempt.rest(self.draw.choice((0.0, 0.0, attempt.term_s + 1.0)))
        # possible while the message streams, because each client of the simulation is `admin`
        successor = await self._take_over(attempt)
        if self.is_excused(attempt.channel, attempt.begun):
            return
        for deed in (partial(attempt.append, 1), attempt.renew, partial(attempt.finish, "complete")):
            try:
                await deed()
            except Refused:
                continue
            if not self.is_excused(attempt.channel, attempt.begun):
                raise Violation(
                    f"{self.name} of generation {attempt.generation} wrote to {attempt.message_id} after a takeover by "
                    f"generation {successor.generation}"
                )


class StrandedWriter(LeaseWriter):
    """Writes to one hub only, in a channel that no other hub has in memory, and falls silent."""

    label = "stranded"

    async def write_to(self, node: Node) -> None:
        """Begin a message at `node`, and leave it without an end."""
        self._node = node
        attempt = WriteAttempt(self, "alone", self.new_id(), self.name, 1)
        await attempt.begin()
        await attempt.append(3)
        attempt.vanish()

    async def some_node(self) -> Node:
        return self._node


class WriteAttempt:
    """The requests of one generation for a message, over a socket or over HTTP, each repeated until it has a
    response."""

    def __init__(self, author: LeaseWriter, channel: str, message_id: str, name: str, generation: int) -> None:
        self.channel = channel
        self.message_id = message_id
        self.generation = generation
        self.term_s = author.draw.choice(TERMS_S)
        self.begun = author.world.stored.stamp
        self._author = author
        self._world = author.world
        self._name = name
        self._has_socket = author.draw.random() < 0.6
        self._socket: ClientSocket | None = None
        self._length = 0

    async def begin(self) -> None:
        """Create the message. Raises Refused, as all methods here."""
        parts = [{"type": "text", "text": ""}]
        fields = {"role": "assistant", "status": "streaming", "lease_s": self.term_s, "parts": parts}
        await self._ask("create", **fields)

    async def take_over(self) -> None:
        """Take the message over."""
        request = f"{self._author.new_id()}{GENERATION}{self.generation}"
        response = await self._ask("takeover", lease_s=self.term_s, generation=self.generation - 1, request=request)
        if response["generation"] != self.generation:
            raise Violation(f"{self._name} took {self.message_id} over as generation {response['generation']}")
        self._length = response["lengths"][0] if response["lengths"] else 0

    async def write(self, steps: int) -> None:
        """Append text, and renew the lease in time."""
        for _ in range(steps):
            if self._author.draw.random() < 0.75:
                await self.append(self._author.draw.randrange(1, 9))
            else:
                await self.renew()
            await self.rest(self._author.draw.choice((0.0, 0.05, self.term_s / 3, self.term_s / 2)))

    async def append(self, count: int) -> None:
        """Append text."""
        at = self._length
        response = await self._ask("append", at=at, part=0, text=marks(self.generation, at, count))
        if response["length"] < at + count:
            raise Violation(f"{self._name} appended {at}+{count} to {self.message_id}: {response}")
        self._length = response["length"]

    async def renew(self) -> None:
        """Renew the lease."""
        await self._ask("lease", lease_s=self.term_s)

    async def finish(self, status: str) -> None:
        """Finish the message."""
        await self._ask("finish", status=status, request=f"{self._author.new_id()}{GENERATION}{self.generation}")

    async def rest(self, seconds: float) -> None:
        """Wait. If the socket is lost meanwhile, open another one and renew the lease, as clients do."""
        until_s = self._world.loop.time() + seconds
        while (left_s := until_s - self._world.loop.time()) > 0:
            if self._socket is None:
                await self._author.pause(left_s, left_s)
                return
            try:
                await self._socket.rest(left_s)
            except ConnectionLost:
                self.close()
                await self.renew()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def vanish(self) -> None:
        """Turn the connection into a hole."""
        if self._socket is not None:
            self._socket.connection.swallow()
            self._socket = None

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request until it has a response. Raises Refused; Violation if the log does not justify that."""
        world, begun_s, since = self._world, self._world.loop.time(), self._world.stored.stamp
        if kind not in ("create", "takeover") and (self.generation > 1 or self._author.draw.random() < 0.5):
            fields["generation"] = self.generation
        send = self._over_socket if self._has_socket else self._over_http
        while True:
            sent_s = world.loop.time()
            try:
                response, status, stamp = await send(kind, fields)
            except ConnectionLost:
                response, status, stamp = {}, 503, 0
            if status not in RETRY_STATUS:
                break
            self._author.check_patience(begun_s, f"{kind} {self.message_id}")
            await self._author.pause(0.02, 0.5)
        about = "" if self._name == self._author.name else f" as {self._name}"
        world.trace.add(f"{self._author.name}{about} {kind} {self.message_id} g{self.generation}: {summary(response)}")
        if status >= 400:
            # A takeover names the generation before its own.
            self._check_refused(response["code"], self.generation - (kind == "takeover"), since, stamp)
            raise Refused(response["code"])
        connection = self._socket.connection if self._socket is not None else None
        if kind in ("append", "lease"):
            place = (self.channel, self.message_id)
            world.promises.note_accepted(place, sent_s, connection, generation=self.generation)
        check_serial(world.stored, self.channel, self.message_id, response["serial"], since=self.begun, stamp=stamp)
        return response

    async def _over_socket(self, kind: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        author = self._author
        if self._socket is None or self._socket.is_lost:
            node = await author.some_node()
            self._socket = await ClientSocket.open(author, node, client=self._name)
        place = (self.channel, self.message_id)
        self._world.promises.note_request(place, self._socket.connection, generation=self.generation)
        frame, stamp = await self._socket.ask({"type": kind, "channel": self.channel, "id": self.message_id, **fields})
        return frame, frame.get("status", 200) if frame["type"] == "error" else 200, stamp

    async def _over_http(self, kind: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        path = f"/v1/channels/{self.channel}/messages"
        self._world.promises.note_request((self.channel, self.message_id), generation=self.generation)
        if kind == "create":
            response = await self._author.call("POST", path, {**fields, "id": self.message_id}, client=self._name)
        else:
            response = await self._author.call("POST", f"{path}/{self.message_id}/{kind}", fields, client=self._name)
        reply = DecodedResponse(response)
        return reply.fields, reply.status, reply.stamp

    def _check_refused(self, code: str, generation: int, since: int, stamp: int) -> None:
        stored, author = self._world.stored, self._author
        if author.is_excused(self.channel, self.begun):
            return
        if is_correct_refusal(stored, self.channel, self.message_id, code, generation, since=self.begun, stamp=stamp):
            return
        if code == "not_writer" and generation <= len(stored.head(self.channel).takeovers.get(self.message_id, [])):
            return  # another generation has the message
        raise Violation(f"{self._name} was refused with {code} for {self.message_id} on {self.channel}, since {since}")
