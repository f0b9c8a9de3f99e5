"""Writers who hold leases, those who stop without a word, those who come back too late, and those who take over.

Layer: simulation.

What an attempt writes says which generation wrote it and where it belongs (`truth.marks`), so that
the truth sees at once whose text was stored. Whoever knows of a takeover and is not refused has found a mistake.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from simulation.actors import AWAY_STATUS, Author, Reply, gist
from simulation.checks import check_refusal, check_serial
from simulation.line import Line
from simulation.network import Lost
from simulation.trace import Violation
from simulation.truth import GENERATION, marks

if TYPE_CHECKING:
    from simulation.world import World

TERMS_S = (5.0, 6.0, 15.0)


class Refused(Exception):
    """The message is not ours any more; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Leaser(Author):
    """Writes messages by lease; often it stops in the middle, and somebody else goes on."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.others = [f"{name}~{number}" for number in range(2)]

    async def run(self) -> None:
        await super().run()
        await self.world.until_well()
        await self.write(self.draw.choice(self.world.channels))

    async def write(self, channel: str) -> None:
        attempt = WriteAttempt(self, channel, self.new_id(), self.name, 1)
        try:
            await attempt.begin()
            await attempt.write(self.draw.randrange(1, 8))
            await self._end(attempt)
        except Refused as refused:
            self.world.trace.add(f"{self.name} has to leave {attempt.message_id}: {refused.code}")
        finally:
            attempt.leave()

    async def _end(self, attempt: WriteAttempt) -> None:
        match self.draw.choice(("finish", "vanish", "vanish", "hole", "silent", "fenced", "fenced")):
            case "finish":
                await attempt.finish(self.draw.choice(("complete", "failed")))
                return
            case "vanish":
                attempt.leave()
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
        """Somebody else waits until the message is interrupted, and goes on."""
        begun_s = self.world.loop.time()
        path = f"/v1/channels/{before.channel}/messages/{before.message_id}"
        while True:
            reply = await self.ask("GET", path)
            if reply.status >= 400 or reply.message().status not in ("streaming", "interrupted"):
                raise Refused(reply.code or reply.message().status)
            if reply.message().status == "interrupted":
                break
            if (before.channel, before.message_id) in self.world.abandoned:
                raise Refused("abandoned")  # its writer is with a hub that lives on, and has nobody at it
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
            attempt.leave()
        return attempt

    async def _fence(self, attempt: WriteAttempt) -> None:
        """Somebody else takes over, and the one before goes on all the same: it must be refused."""
        await attempt.rest(self.draw.choice((0.0, 0.0, attempt.term_s + 1.0)))
        successor = await self._take_over(attempt)  # everybody is `admin` here, so it need not be interrupted
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


class WriteAttempt:
    """One generation's hand on a message. Asks until it is answered, over a socket or over HTTP."""

    def __init__(self, author: Leaser, channel: str, message_id: str, name: str, generation: int) -> None:
        self.channel = channel
        self.message_id = message_id
        self.generation = generation
        self.term_s = author.draw.choice(TERMS_S)
        self.begun = author.world.truth.stamp
        self._author = author
        self._world = author.world
        self._name = name
        self._has_socket = author.draw.random() < 0.6
        self._line: Line | None = None
        self._length = 0

    async def begin(self) -> None:
        """Create the message. Raises Refused, as all of these."""
        parts = [{"type": "text", "text": ""}]
        fields = {"role": "assistant", "status": "streaming", "lease_s": self.term_s, "parts": parts}
        await self._ask("create", **fields)

    async def take_over(self) -> None:
        """Become its writer."""
        request = f"{self._author.new_id()}{GENERATION}{self.generation}"
        answer = await self._ask("takeover", lease_s=self.term_s, generation=self.generation - 1, request=request)
        if answer["generation"] != self.generation:
            raise Violation(f"{self._name} took {self.message_id} over as generation {answer['generation']}")
        self._length = answer["lengths"][0] if answer["lengths"] else 0

    async def write(self, steps: int) -> None:
        """Append now and then, and say in time that one is still there."""
        for _ in range(steps):
            if self._author.draw.random() < 0.75:
                await self.append(self._author.draw.randrange(1, 9))
            else:
                await self.renew()
            await self.rest(self._author.draw.choice((0.0, 0.05, self.term_s / 3, self.term_s / 2)))

    async def append(self, count: int) -> None:
        """More text."""
        at = self._length
        answer = await self._ask("append", at=at, part=0, text=marks(self.generation, at, count))
        if answer["length"] < at + count:
            raise Violation(f"{self._name} appended {at}+{count} to {self.message_id}: {answer}")
        self._length = answer["length"]

    async def renew(self) -> None:
        """Still there."""
        await self._ask("lease", lease_s=self.term_s)

    async def finish(self, status: str) -> None:
        """The end."""
        await self._ask("finish", status=status, request=f"{self._author.new_id()}{GENERATION}{self.generation}")

    async def rest(self, seconds: float) -> None:
        """Think. A socket that is lost meanwhile is opened anew, as clients do, and its leases are renewed."""
        until_s = self._world.loop.time() + seconds
        while (left_s := until_s - self._world.loop.time()) > 0:
            if self._line is None:
                await self._author.pause(left_s, left_s)
                return
            try:
                await self._line.rest(left_s)
            except Lost:
                self.leave()
                await self.renew()

    def leave(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.leave()
            self._line = None

    def vanish(self) -> None:
        """The network goes away, and tells nobody."""
        if self._line is not None:
            self._line.connection.swallow()
            self._line = None

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Ask until there is an answer. Raises Refused, and Violation where the log does not say so."""
        world, begun_s, since = self._world, self._world.loop.time(), self._world.truth.stamp
        if kind not in ("create", "takeover") and (self.generation > 1 or self._author.draw.random() < 0.5):
            fields["generation"] = self.generation
        while True:
            sent_s = world.loop.time()
            try:
                answer, status, stamp = await (self._over_line if self._has_socket else self._over_http)(kind, fields)
            except Lost:
                answer, status, stamp = {}, 503, 0
            if status not in AWAY_STATUS:
                break
            self._author.check_patience(begun_s, f"{kind} {self.message_id}")
            await self._author.pause(0.02, 0.5)
        about = "" if self._name == self._author.name else f" as {self._name}"
        world.trace.add(f"{self._author.name}{about} {kind} {self.message_id} g{self.generation}: {gist(answer)}")
        if status >= 400:
            # A takeover is asked for by the generation before.
            self._check_refused(answer["code"], self.generation - (kind == "takeover"), since, stamp)
            raise Refused(answer["code"])
        connection = self._line.connection if self._line is not None else None
        if kind in ("append", "lease"):
            world.ledger.heard((self.channel, self.message_id), sent_s, connection, generation=self.generation)
        check_serial(world.truth, self.channel, self.message_id, answer["serial"], since=self.begun, stamp=stamp)
        return answer

    async def _over_line(self, kind: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        author = self._author
        if self._line is None or self._line.is_lost:
            node = await author.some_node()
            self._line = await Line.open(author, node, client=self._name)
        place = (self.channel, self.message_id)
        self._world.ledger.tried(place, self._line.connection, generation=self.generation)
        frame, stamp = await self._line.ask({"type": kind, "channel": self.channel, "id": self.message_id, **fields})
        return frame, frame.get("status", 200) if frame["type"] == "error" else 200, stamp

    async def _over_http(self, kind: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        path = f"/v1/channels/{self.channel}/messages"
        self._world.ledger.tried((self.channel, self.message_id), generation=self.generation)
        if kind == "create":
            answer = await self._author.call("POST", path, {**fields, "id": self.message_id}, client=self._name)
        else:
            answer = await self._author.call("POST", f"{path}/{self.message_id}/{kind}", fields, client=self._name)
        reply = Reply(answer, self.begun)
        return reply.fields, reply.status, reply.stamp

    def _check_refused(self, code: str, generation: int, since: int, stamp: int) -> None:
        truth, author = self._world.truth, self._author
        if author.is_excused(self.channel, self.begun):
            return
        if check_refusal(truth, self.channel, self.message_id, code, generation, since=self.begun, stamp=stamp):
            return
        if code == "not_writer" and generation <= len(truth.head(self.channel).takeovers.get(self.message_id, [])):
            return  # another one's now
        raise Violation(f"{self._name} was refused with {code} for {self.message_id} on {self.channel}, asked {since}")
