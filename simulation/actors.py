"""Those who write: over HTTP, over a socket, in the hub's process; and those who edit, stop, take over and delete.

Layer: simulation.

Each behaves as the protocol asks of a good client: it keeps its text until it is stored,
resends what was not answered, goes back where it was refused for now. So every refusal that is not due to
the conditions or to another writer's doing is a violation, and so is every answer that was not stored
when it was given.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.core.errors import (
    Busy,
    Deleted,
    Draining,
    Fenced,
    Finished,
    IdConflict,
    LocalError,
    NotFound,
    StillStreaming,
    StoreUnavailable,
)
from holdfast.core.model import Message, Part
from holdfast.core.ops import Writer
from holdfast.core.requests import Caller, TakeOver
from holdfast.hub.hub import HubCore
from holdfast.hub.writer import MessageWriter
from simulation.checks import (
    check_cursor,
    check_deleted,
    check_fresh,
    check_message,
    check_refusal,
    check_serial,
    check_text,
)
from simulation.line import ANSWER_S, SILENCE_S, Line, frame_of
from simulation.network import HttpClient, Lost, Response, Stream, within
from simulation.trace import Violation
from simulation.truth import text_of

if TYPE_CHECKING:
    from simulation.world import Node, World

STUCK_S = 120.0  # when all is well, nobody is refused for so long
ODD = ("🙂", "中文", "e\u0301", "\r\n", "\u2028", " data: x", "\n\n", "𝒳", "שלום", "\x00")
AWAY_STATUS = (429, 503)  # come again
AWAY = (Draining, LocalError, StoreUnavailable, Busy)  # refusals of a hub that leaves, or whose store fails


class Person:
    """Somebody with a name, a mind of their own, and a connection."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.draw = Random(f"{world.plan.seed}/{name}")
        self.http = HttpClient(world.net, self.draw)
        self.has_socket = False  # does it ask over one, where it can?
        self._own_line: Line | None = None
        self._count = 0

    async def run(self) -> None:
        """This one's life."""
        raise NotImplementedError

    def new_id(self) -> str:
        """An id that nobody else uses."""
        self._count += 1
        return f"{self.name}.{self._count}"

    async def pause(self, low_s: float, high_s: float) -> None:
        """Wait for some time."""
        await asyncio.sleep(self.draw.uniform(low_s, high_s))

    async def some_node(self) -> Node:
        """A place where a hub runs; waits for one. In calm conditions they are all there."""
        while True:
            nodes = [node for node in self.world.nodes if node.is_up]
            if nodes:
                return self.draw.choice(nodes)
            await self.pause(0.05, 0.5)

    async def call(self, method: str, path: str, body: object = None, *, query: str = "", client: str = "") -> Response:
        """Ask once, by another name if there is a `client`. Raises Lost."""
        node = await self.some_node()
        process, hub = node.process, node.hub
        text = json.dumps(body) if body is not None else ""
        query = f"client={client or self.name}&{query}"
        return await self.http.request(process, hub, method, path, text, query=query, patience_s=ANSWER_S)

    async def ask(self, method: str, path: str, body: object = None, *, query: str = "") -> Reply:
        """Ask until there is an answer that is not "come again"."""
        since = self.world.truth.stamp
        begun_s = self.world.loop.time()
        while True:
            try:
                answer = await self._ask_once(method, path, body, query)
            except Lost:
                answer = None
            if answer is not None:
                reply = Reply(answer, since)
                if reply.status not in AWAY_STATUS:
                    self.world.trace.add(f"{self.name} {method} {path}: {reply.status} {reply.gist}")
                    return reply
            self.check_patience(begun_s, f"{method} {path}")
            await self.pause(0.05, 1.0)

    async def _ask_once(self, method: str, path: str, body: object, query: str) -> Response:
        frame = frame_of(method, path, body) if self.has_socket and not query else None
        if frame is None:
            return await self.call(method, path, body, query=query)
        if self._own_line is None or self._own_line.is_lost:
            self._own_line = await Line.open(self, await self.some_node())
        answer, stamp = await self._own_line.ask(frame)
        status = answer["status"] if answer["type"] == "error" else 200
        return Response(status, json.dumps(answer).encode(), stamp)

    def hang_up(self) -> None:
        """Close the socket, if it has one."""
        if self._own_line is not None:
            self._own_line.leave()

    def check_patience(self, begun_s: float, what: str) -> None:
        """Raises Violation if nobody answers for long although all is well."""
        if self.world.loop.time() - max(begun_s, self.world.calm_s) > STUCK_S:
            raise Violation(f"{self.name} asks in vain, though all is well: {what}")


class Reply:
    """An answer over HTTP, decoded."""

    def __init__(self, answer: Response, since: int) -> None:
        self.status = answer.status
        self.stamp = answer.stamp
        self.since = since
        self.fields: dict[str, Any] = json.loads(answer.body) if answer.body else {}
        self.code: str = self.fields.get("code", "") if answer.status >= 400 else ""

    @property
    def gist(self) -> str:
        """The answer in a few words."""
        return gist(self.fields)

    def message(self) -> Message:
        """The message in it."""
        return msgspec.convert(self.fields["message"], Message)


def gist(fields: dict[str, Any]) -> str:
    """An answer in a few words."""
    names = ("code", "serial", "part", "length", "generation")
    return " ".join(f"{name}={fields[name]}" for name in names if name in fields)


def asks_by_socket(person: Person) -> bool:
    """Is this one of those who ask over a socket?"""
    plan = person.world.plan
    return plan.asks_by_socket and Random(f"{plan.seed}/{person.name}/socket").random() < 0.7


class Author(Person):
    """Writes one message after another."""

    async def run(self) -> None:
        """Until the conditions calms down; what was begun is brought to its end."""
        while not self.world.is_calm:
            await self.write(self.draw.choice(self.world.channels))
            await self.pause(0.0, 2.0)

    async def write(self, channel: str) -> None:
        """One message."""
        raise NotImplementedError

    def piece(self, message_id: str, count: int) -> str:
        """Some text that stands in no other place."""
        odd = self.draw.choice(ODD) if self.draw.random() < 0.2 else ""
        filler = "x" * self.draw.choice((0, 0, 0, 3, 40))
        return f"{self.name[0]}{self.name[-1]}.{message_id.rpartition('.')[2]}w{count}{filler}{odd} "

    def is_excused(self, channel: str, since: int) -> bool:
        """May what was acknowledged since be gone? When somebody deleted the channel, or a gambling store lost it."""
        return self.world.truth.was_disturbed(channel, since)

    def check_refused(self, channel: str, message_id: str, code: str, since: int, stamp: int) -> None:
        """Raises Violation unless somebody else had ended the message, or it is excused."""
        is_end = code in ("finished", "deleted", "fenced")
        if is_end and check_refusal(self.world.truth, channel, message_id, code, 1, since=since, stamp=stamp):
            return
        if not self.is_excused(channel, since):
            raise Violation(f"{self.name} was refused with {code} for {message_id} on {channel}")

    def check_whole(self, channel: str, message_id: str, parts: list[Part], since: int, *, status: str | None) -> None:
        """All that was accepted is stored, and nothing else, unless somebody else had a hand in it."""
        truth = self.world.truth
        life = truth.head(channel)
        message = life.now(message_id)
        if self.is_excused(channel, since) or life.is_deleted(message_id) or life.takeovers.get(message_id):
            return
        if message is None:
            raise Violation(f"{self.name}: {message_id} is not stored")
        if message.parts != parts and (channel, message_id) not in self.world.edited:
            raise Violation(f"{self.name} wrote to {message_id}\n  {parts}, stored is\n  {message.parts}")
        if status is not None and message.status != status:
            raise Violation(f"{self.name}: {message_id} is {message.status}, not {status}")


class Remote(Author):
    """Writes over HTTP, one request at a time."""

    async def write(self, channel: str) -> None:
        await _OverHttp(self, channel).write()


class _OverHttp:
    """One message that is written over HTTP.

    A request that was given up may still be carried out later. So text that may be under way is not replaced, and a
    part that was opened by an append stays a text.
    """

    def __init__(self, writer: Remote, channel: str) -> None:
        self._writer = writer
        self._draw = writer.draw
        self._truth = writer.world.truth
        self._trace = writer.world.trace
        self._channel = channel
        self._id = writer.new_id()
        self._begun = self._truth.stamp
        self._parts: list[Part] = []  # as they are to be
        self._acked: list[int] = []  # how much of the text of each is stored; -1: it opens with its first text
        self._unclear: set[int] = set()  # parts that text may be under way to

    async def write(self) -> None:
        """From the beginning to the end, or until somebody else ends it."""
        draw = self._draw
        body: dict[str, Any] = {"id": self._id, "role": "assistant", "status": "streaming", "meta": {"n": 1}}
        if draw.random() < 0.3:
            self._open({"type": "text", "text": "begin "})
            body["parts"] = list(self._parts)
        is_ours = await self._send("POST", "", body)
        for count in range(draw.randrange(1, 25)):
            if is_ours:
                is_ours = await self._go_on(count)
                await self._writer.pause(0.0, self._writer.world.plan.token_s)
        status = draw.choice(("complete", "complete", "failed"))
        end = {"status": status, "request": self._writer.new_id()}
        if is_ours and await self._send("POST", f"/{self._id}/finish", end):
            self._writer.check_whole(self._channel, self._id, self._parts, self._begun, status=status)

    async def _go_on(self, count: int) -> bool:
        """One step; False: the message is no longer ours."""
        kind = self._draw.choice(("append",) * 8 + ("open", "replace"))
        if not self._parts and kind == "append":
            self._open({"type": "text", "text": ""})
            self._acked[0] = -1
            self._unclear.add(0)
        growing = [index for index, part in enumerate(self._parts) if part["type"] != "data"]
        if kind == "append" and growing:
            return await self._append(self._draw.choice(growing), count)
        clear = [index for index in range(len(self._parts)) if index not in self._unclear]
        return await self._put(self._draw.choice(clear) if kind == "replace" and clear else len(self._parts), count)

    def _open(self, part: Part) -> None:
        self._parts.append(part)
        self._acked.append(len(text_of(part)))

    async def _send(self, method: str, path: str, body: object, *, query: str = "") -> bool:
        """Ask and check the answer; False: the message is no longer ours."""
        self._writer.world.ledger.tried((self._channel, self._id))
        reply = await self._writer.ask(method, f"/v1/channels/{self._channel}/messages{path}", body, query=query)
        if reply.status >= 400:
            self._writer.check_refused(self._channel, self._id, reply.code, self._begun, reply.stamp)
            return False
        serial, stamp = reply.fields["serial"], reply.stamp
        check_serial(self._truth, self._channel, self._id, serial, since=self._begun, stamp=stamp)
        if "message" in reply.fields:
            check_message(self._truth, self._channel, reply.message(), stamp)
            if "cursor" in reply.fields:
                check_cursor(self._truth, self._channel, [reply.message()], reply.fields["cursor"], stamp)
        return True

    async def _put(self, index: int, count: int) -> bool:
        part: Part = self._draw.choice(
            (
                {"type": "data", "name": "bar", "data": count},
                {"type": "reasoning", "text": self._writer.piece(self._id, count)},
                {"type": "tool", "call": f"c{count}", "name": "t", "input": ""},
                {"type": "text", "text": self._writer.piece(self._id, count)},
            )
        )
        query = f"request={self._writer.new_id()}"
        if not await self._send("PUT", f"/{self._id}/parts/{index}", part, query=query):
            return False
        self._parts[index : index + 1] = [part]
        self._acked[index : index + 1] = [len(text_of(part))]
        return True

    async def _append(self, index: int, count: int) -> bool:
        """Append to a part until all it should have is stored; what comes meanwhile is sent along."""
        begun_s = self._writer.world.loop.time()
        self._grow(index, count)
        for tries in itertools.count():
            if self._acked[index] >= len(text_of(self._parts[index])):
                return True
            reply = await self._append_once(index)
            if reply is None:
                self._writer.check_patience(begun_s, f"append to {self._id}")
                await self._writer.pause(0.02, 0.5)
                if tries < 5:
                    self._grow(index, 1_000 + count * 100 + tries)
            elif reply.status >= 400 and reply.code != "gap":
                return False
            else:
                self._acked[index] = reply.fields["length"]
        raise AssertionError("that was for ever")

    async def _append_once(self, index: int) -> Reply | None:
        """Send what is not stored yet, and now and then some of what is; None: come again."""
        acked = self._acked[index]
        at = max(0, acked - (self._draw.randrange(20) if self._draw.random() < 0.2 else 0))
        text = text_of(self._parts[index])[at : at + 45]  # four bytes each stay below the smallest limit
        body: dict[str, Any] = {"text": text, "at": at}
        if acked >= 0:
            body["part"] = index
        path = f"/v1/channels/{self._channel}/messages/{self._id}/append"
        self._writer.world.ledger.tried((self._channel, self._id))
        try:
            reply = Reply(await self._writer.call("POST", path, body), self._begun)
        except Lost:
            self._unclear.add(index)
            return None
        if reply.status in (429, 503):
            return None
        self._trace.add(f"{self._writer.name} append {self._id}.{index} {at}+{len(text)}: {reply.gist}")
        if reply.status >= 400:
            self._writer.check_refused(self._channel, self._id, reply.code, self._begun, reply.stamp)
            return reply
        fields, stamp = reply.fields, reply.stamp
        if fields["part"] != index or fields["length"] < at + len(text):
            raise Violation(f"{self._writer.name} appended {at}+{len(text)} to {self._id}.{index}: {fields}")
        check_text(
            self._truth, self._channel, self._id, index, at, text, fields["serial"], since=self._begun, stamp=stamp
        )
        return reply

    def _grow(self, index: int, count: int) -> None:
        _grow(self._parts, index, self._writer.piece(self._id, count))


class Piper(Author):
    """Writes over a socket without waiting for answers; after a break it sends again from the first unanswered."""

    async def write(self, channel: str) -> None:
        begun = self.world.truth.stamp
        message_id = self.new_id()
        frames, parts = self._script(channel, message_id)
        position = 0
        begun_s = self.world.loop.time()
        while position < len(frames):
            node = await self.some_node()
            try:
                stream = await self.http.socket(node.process, node.hub, patience_s=ANSWER_S)
            except Lost:
                self.check_patience(begun_s, f"a socket to write {message_id}")
                await self.pause(0.05, 1.0)
                continue
            pipe = _Pipeline(self, channel, message_id, frames, position, begun)
            try:
                while not pipe.is_over:
                    await pipe.send(stream)
                    data = await within(SILENCE_S, stream.take)
                    if not data.data:
                        raise Lost("closed")
                    pipe.receive(json.loads(data.data), data.stamp, stream)
                    self.check_patience(begun_s, f"to write {message_id}")
            except Lost:
                await self.pause(0.05, 1.0)
            finally:
                stream.leave()
            if pipe.is_refused:
                return
            position = pipe.position
        self.check_whole(channel, message_id, parts, begun, status="complete")

    def _script(self, channel: str, message_id: str) -> tuple[list[dict[str, Any]], list[Part]]:
        """The frames of one message, and the parts it will have."""
        about = {"channel": channel, "id": message_id}
        frames: list[dict[str, Any]] = [{"type": "create", **about, "role": "assistant", "status": "streaming"}]
        parts: list[Part] = []
        for count in range(self.draw.randrange(1, 30)):
            if not parts or self.draw.random() < 0.1:
                part: Part = {"type": self.draw.choice(("text", "reasoning")), "text": ""}
                frames.append({"type": "part", **about, "part": len(parts), "value": part, "request": self.new_id()})
                parts.append(part)
            index = self.draw.randrange(len(parts))
            text, before = self.piece(message_id, count), parts[index]["text"]
            frames.append({"type": "append", **about, "part": index, "at": len(before), "text": text})
            parts[index] = {**parts[index], "text": before + text}
        frames.append({"type": "finish", **about, "request": self.new_id()})
        return frames, parts


class _Pipeline:
    """What is under way on one socket."""

    def __init__(
        self, writer: Piper, channel: str, message_id: str, frames: list[dict[str, Any]], position: int, begun: int
    ) -> None:
        self.position = position  # the first frame that is not acknowledged
        self.is_refused = False  # the message is no longer ours
        self._writer = writer
        self._world = writer.world
        self._channel = channel
        self._message_id = message_id
        self._frames = frames
        self._next = position
        self._begun = begun
        self._window = writer.draw.choice((1, 4, 20))
        self._under_way: dict[int, None] = {}
        self._acked: set[int] = set()
        self._goes_back = False

    @property
    def is_over(self) -> bool:
        """Is all of it acknowledged, or refused for good?"""
        return self.is_refused or self.position == len(self._frames)

    async def send(self, stream: Stream) -> None:
        """Send what may be sent."""
        writer = self._writer
        if self._goes_back and not self._under_way:
            await writer.pause(0.1, 1.0)
            self._goes_back, self._next = False, self.position
            self._acked.clear()
        while not self._goes_back and self._next < len(self._frames) and len(self._under_way) < self._window:
            stream.send(json.dumps({**self._frames[self._next], "ref": self._next}))
            stream.connection.sent_s = self._world.loop.time()
            self._world.ledger.tried((self._channel, self._message_id), stream.connection)
            self._under_way[self._next] = None
            self._next += 1
            if writer.draw.random() < 0.4:
                await writer.pause(0.0, self._world.plan.token_s)

    def receive(self, frame: dict[str, Any], stamp: int, stream: Stream) -> None:
        """Take a frame of the server's."""
        match frame["type"]:
            case "ok":
                self._world.ledger.answered((self._channel, self._message_id), stream.connection)
                self._ok(frame, stamp)
            case "error":
                self._error(frame, stamp)
            case "bye":
                raise Lost("sent away")

    def _ok(self, frame: dict[str, Any], stamp: int) -> None:
        ref = frame["ref"]
        asked = self._frames[ref]
        self._world.trace.add(f"{self._writer.name} {asked['type']} {self._message_id} #{ref}: {gist(frame)}")
        self._under_way.pop(ref)
        self._acked.add(ref)
        while self.position in self._acked:
            self.position += 1
        truth, channel = self._world.truth, self._channel
        if asked["type"] == "append":
            at, text, part, serial = asked["at"], asked["text"], asked["part"], frame["serial"]
            check_text(truth, channel, self._message_id, part, at, text, serial, since=self._begun, stamp=stamp)
        else:
            request = asked.get("request")
            check_serial(
                truth, channel, self._message_id, frame["serial"], since=self._begun, stamp=stamp, request=request
            )

    def _error(self, frame: dict[str, Any], stamp: int) -> None:
        ref, code = frame["ref"], frame["code"]
        self._world.trace.add(f"{self._writer.name} #{ref} {self._message_id}: {code}")
        self._under_way.pop(ref)
        if frame["status"] in (429, 503):
            self._goes_back = True
        elif not (self._goes_back and code in ("gap", "not_found", "no_part")):
            # What follows a frame that was refused for now may lack it; nothing else may.
            self._writer.check_refused(self._channel, self._message_id, code, self._begun, stamp)
            self.is_refused = True


class Careless(Author):
    """Writes over a socket without saying where its text goes, replaces parts under way, and never sends twice.

    What is acknowledged is there; if all of it is, the message is what the frames make of it, in order.
    """

    async def write(self, channel: str) -> None:
        begun = self.world.truth.stamp
        message_id = self.new_id()
        frames, parts = self._script(channel, message_id)
        node = await self.some_node()
        stream = None
        try:
            stream = await self.http.socket(node.process, node.hub, patience_s=ANSWER_S)
            for ref, frame in enumerate(frames):
                stream.send(json.dumps({**frame, "ref": ref}))
                stream.connection.sent_s = self.world.loop.time()
                self.world.ledger.tried((channel, message_id), stream.connection)
                if self.draw.random() < 0.2:
                    await self.pause(0.0, self.world.plan.token_s)
            for _ in frames:
                if not await self._is_answered(stream, frames, channel, message_id, begun):
                    return
        except Lost:
            return
        finally:
            if stream is not None:
                stream.leave()
        self.check_whole(channel, message_id, parts, begun, status="complete")

    def _script(self, channel: str, message_id: str) -> tuple[list[dict[str, Any]], list[Part]]:
        about = {"channel": channel, "id": message_id}
        frames: list[dict[str, Any]] = [{"type": "create", **about, "role": "assistant", "status": "streaming"}]
        text = ""
        for count in range(self.draw.randrange(1, 20)):
            piece = self.piece(message_id, count)
            if not text or self.draw.random() < 0.2:
                frames.append({"type": "part", **about, "part": 0, "value": {"type": "text", "text": piece}})
                text = piece
            else:
                frames.append({"type": "append", **about, "text": piece})
                text += piece
        frames.append({"type": "finish", **about})
        return frames, [{"type": "text", "text": text}]

    async def _is_answered(
        self, stream: Stream, frames: list[dict[str, Any]], channel: str, message_id: str, begun: int
    ) -> bool:
        """Take the next answer and check it; False: a frame was refused, and so is what follows."""
        while True:
            data = await within(SILENCE_S, stream.take)
            frame: dict[str, Any] = json.loads(data.data) if data.data else {"type": "bye"}
            if frame["type"] in ("ok", "error", "bye"):
                break
        if frame["type"] == "bye":
            raise Lost("sent away")
        asked = frames[frame["ref"]]
        self.world.trace.add(f"{self.name} {asked['type']} {message_id} #{frame['ref']}: {gist(frame)}")
        if frame["type"] == "ok":
            self.world.ledger.answered((channel, message_id), stream.connection)
        if frame["type"] == "error":
            # Where several hubs write, it can come out that all this was stored, but not what came before what.
            is_unclear = frame["code"] in ("gap", "mismatch") and not self.world.plan.is_exclusive
            if frame["status"] not in (429, 503) and not is_unclear:
                self.check_refused(channel, message_id, frame["code"], begun, data.stamp)
            return False
        truth, stamp, serial = self.world.truth, data.stamp, frame["serial"]
        if asked["type"] == "append":
            check_text(truth, channel, message_id, 0, None, asked["text"], serial, since=begun, stamp=stamp)
        else:
            check_serial(truth, channel, message_id, serial, since=begun, stamp=stamp)
        return True


class Insider(Author):
    """Writes in the hub's process, with the Python API; dies with it."""

    async def write(self, channel: str) -> None:
        node = await self.some_node()
        await node.inside(self._answer(node.hub, channel))

    async def _answer(self, hub: HubCore, channel: str) -> None:
        begun = self.world.truth.stamp
        message_id = self.new_id()
        parts: list[Part] = []
        status: str | None = "complete"
        try:
            async with hub.message(channel, id=message_id, author=self.name, meta={"n": 0}) as message:
                await self._write_to(message, parts, begun)
        except _Oops:
            # How it ended is said as well as possible; a store that fails, or a hub that leaves, may hear nothing.
            self.world.trace.add(f"{self.name} failed on purpose at {message_id}")
            if hub.is_draining or not self.world.is_well_for(STUCK_S):
                return
            status = "failed"
        except (Finished, Deleted, Fenced, NotFound) as error:
            self.check_refused(channel, message_id, error.code, begun, self.world.truth.stamp)
            return
        except IdConflict:
            # Somebody took it over before we heard that it was stored.
            if not self.world.truth.head(channel).takeovers.get(message_id):
                raise
            return
        except AWAY as error:
            self.world.trace.add(f"{self.name} gives up {message_id}: {error.code}")
            if isinstance(error, StoreUnavailable | Busy) and self.world.is_well_for(STUCK_S):
                raise Violation(f"{self.name} could not write {message_id}, though all is well: {error!r}") from None
            return
        self.check_whole(channel, message_id, parts, begun, status=status)

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        draw = self.draw
        for count in range(draw.randrange(1, 40)):
            kind = draw.choice(("append",) * 10 + ("into", "open", "replace", "meta", "flush"))
            growing = [index for index, part in enumerate(parts) if part["type"] != "data"]
            text = self.piece(message.id, count)
            if kind == "append" or (kind == "into" and not growing) or (kind == "replace" and not parts):
                texts = [index for index, part in enumerate(parts) if part["type"] == "text"]
                if not texts:
                    parts.append({"type": "text", "text": ""})
                    texts = [len(parts) - 1]
                _grow(parts, texts[-1], text)
                await message.append(text)
            elif kind == "into":
                index = draw.choice(growing)
                _grow(parts, index, text)
                await message.append(text, part=index)
            elif kind in ("open", "replace"):
                index = len(parts) if kind == "open" else draw.randrange(len(parts))
                part: Part = draw.choice(
                    (
                        {"type": "data", "name": "bar", "data": count},
                        {"type": "text", "text": text},
                        {"type": "tool", "call": "c", "name": "t", "input": text},
                    )
                )
                parts[index : index + 1] = [part]
                await message.part(part, index=index)
            elif kind == "meta":
                await message.update(meta={"n": count})
            else:
                await message.flush()
                self.check_whole(message.channel, message.id, parts, begun, status=None)
            if draw.random() < 0.5:
                await self.pause(0.0, self.world.plan.token_s)
        if draw.random() < 0.1:
            raise _Oops


class Steady(Insider):
    """Writes for seconds without a pause, so that there is always some text that viewers were not told of."""

    async def run(self) -> None:
        await super().run()
        await self.world.until_well()
        await self.write(self.draw.choice(self.world.channels))

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        parts.append({"type": "text", "text": ""})
        for count in range(150):
            text = self.piece(message.id, count)
            _grow(parts, 0, text)
            await message.append(text)
            await asyncio.sleep(0.03)


class _Oops(Exception):
    pass


def _grow(parts: list[Part], index: int, text: str) -> None:
    key = "input" if parts[index]["type"] == "tool" else "text"
    parts[index] = {**parts[index], key: parts[index][key] + text}


class Editor(Author):
    """Says something, changes and deletes what others said, stops and takes over what they write."""

    async def run(self) -> None:
        self.has_socket = asks_by_socket(self)
        try:
            while not self.world.is_calm:
                await self.do(self.draw.choice(self.world.channels), self.draw.choice(self.world.plan.edits))
                await self.pause(0.0, 1.5)
        finally:
            self.hang_up()

    async def do(self, channel: str, what: str) -> None:
        """One deed."""
        life = self.world.truth.head(channel)
        messages = sorted(life.messages(life.serial), key=lambda message: message.created)
        finished = [message for message in messages if message.status != "streaming"]
        streaming = [message for message in messages if message.status == "streaming"]
        match what:
            case "say":
                await self._say(channel)
            case "edit" if finished:
                await self._edit(channel, self.draw.choice(finished).id)
            case "delete" if messages:
                await self._delete(channel, self.draw.choice(messages).id)
            case "read" if messages:
                await self._read(channel, self.draw.choice(messages).id)
            case "stop" if streaming:
                await self._inside(self._stop(channel, self.draw.choice(streaming).id))
            case "take over" if messages:
                likely = [message for message in messages if message.status in ("streaming", "interrupted")]
                await self._inside(self._take_over(channel, self.draw.choice(likely or messages).id))
            case "delete channel":
                self.world.trace.add(f"{self.name} deletes {channel}")
                await self.ask("DELETE", f"/v1/channels/{channel}")

    async def _say(self, channel: str) -> None:
        begun = self.world.truth.stamp
        message_id = self.new_id()
        body = {"id": message_id, "text": self.piece(message_id, 0) * self.draw.randrange(1, 30)}
        reply = await self.ask("POST", f"/v1/channels/{channel}/messages", body)
        if reply.status >= 400:
            self.check_refused(channel, message_id, reply.code, begun, reply.stamp)
            return
        check_serial(self.world.truth, channel, message_id, reply.fields["serial"], since=begun, stamp=reply.stamp)
        check_message(self.world.truth, channel, reply.message(), reply.stamp)
        check_cursor(self.world.truth, channel, [reply.message()], reply.fields["cursor"], reply.stamp)

    async def _edit(self, channel: str, message_id: str) -> None:
        body: dict[str, Any] = {"request": self.new_id(), "meta": {"by": self.name, "n": self._count}}
        if self.draw.random() < 0.7:
            body["text"] = self.piece(message_id, self._count) * self.draw.randrange(0, 5)
        self.world.edited.add((channel, message_id))
        truth, since = self.world.truth, self.world.truth.stamp
        reply = await self._ask(channel, "PATCH", message_id, body)
        if reply is not None:
            check_message(truth, channel, reply.message(), reply.stamp)
            serial, request = reply.fields["serial"], body["request"]
            check_serial(truth, channel, message_id, serial, since=since, stamp=reply.stamp, request=request)

    async def _delete(self, channel: str, message_id: str) -> None:
        since = self.world.truth.stamp
        reply = await self._ask(channel, "DELETE", message_id)
        if reply is not None:
            check_deleted(self.world.truth, channel, message_id, since=since, stamp=reply.stamp)

    async def _read(self, channel: str, message_id: str) -> None:
        life = self.world.truth.head(channel)
        told = life.told
        reply = await self._ask(channel, "GET", message_id)
        if reply is not None:
            check_cursor(self.world.truth, channel, [reply.message()], reply.fields["cursor"], reply.stamp)
        if reply is not None and check_message(self.world.truth, channel, reply.message(), reply.stamp) is life:
            check_fresh(life, reply.message(), told)

    async def _ask(self, channel: str, method: str, message_id: str, body: object = None) -> Reply | None:
        """Ask about a message that was there; None if somebody was faster."""
        begun, life = self.world.truth.stamp, self.world.truth.head(channel)
        was_known = life.at(message_id, life.told) is not None
        reply = await self.ask(method, f"/v1/channels/{channel}/messages/{message_id}", body)
        if reply.status < 400:
            return reply
        if reply.code == "not_found" and not was_known:
            return None
        if not check_refusal(
            self.world.truth, channel, message_id, reply.code, 1, since=begun, stamp=reply.stamp
        ) and not self.is_excused(channel, begun):
            raise Violation(f"{self.name} {method} {message_id} of {channel} was refused: {reply.fields}")
        return None

    async def _inside(self, job: Coroutine[Any, Any, None]) -> None:
        node = await self.some_node()
        self._hub = node.hub
        await node.inside(job)

    async def _stop(self, channel: str, message_id: str) -> None:
        try:
            await self._hub.finish(channel, message_id, status="cancelled")
        except (Finished, Deleted, Fenced, NotFound, *AWAY) as error:
            self.world.trace.add(f"{self.name} could not stop {message_id}: {error.code}")

    async def _take_over(self, channel: str, message_id: str) -> None:
        hub, is_forced = self._hub, self.draw.random() < 0.7
        try:
            if is_forced:
                writer = await self._force(channel, message_id)
            else:
                writer = await hub.take_over(channel, message_id, author=self.name)
            async with writer:
                for count in range(self.draw.randrange(5)):
                    await writer.append(self.piece(self.name, count))
                    await self.pause(0.0, self.world.plan.token_s)
        except (Finished, Deleted, Fenced, NotFound, StillStreaming, *AWAY) as error:
            if is_forced:
                self.world.abandoned.add((channel, message_id))
            self.world.trace.add(f"{self.name} could not take {message_id} over: {error.code}")
        except IdConflict:
            # Two in one process may not write one message. It is the app's to see to it (`hub.take_over` does).
            self.world.abandoned.add((channel, message_id))

    async def _force(self, channel: str, message_id: str) -> MessageWriter:
        """Go on with a message that somebody writes still, which only the hub itself may."""
        hub = self._hub
        caller = Caller(id=self.name, writer=Writer(by=self.name, node=hub.node), is_server=True)
        await hub.start()
        answer = await hub.ask(channel, message_id, TakeOver(request=self.new_id()), caller)
        message, _ = await hub.read(channel, message_id)
        writer = hub._writers.new(channel, message_id, self.name, None)
        writer.take_up(message, answer.generation or 0)
        return writer
