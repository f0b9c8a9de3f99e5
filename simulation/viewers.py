"""Those who watch: over a socket, an event stream, long polls, in the hub's process; and those who read one answer.

Layer: simulation.

A viewer goes from connection to connection, comes back with its cursor, sometimes loads its
page anew, sometimes reads nothing for a while, and asks for older pages. What it sees is for its `Eye` to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from holdfast.core.cursor import EMPTY, parse_cursor
from holdfast.core.errors import HoldfastError
from holdfast.core.events import Batch, Page, decode_event
from holdfast.core.model import Message
from holdfast.core.view import View
from holdfast.hub.hub import HubCore
from simulation.actors import AWAY_STATUS, Person, gist
from simulation.checks import (
    Eye,
    check_deleted,
    check_message,
    check_refusal,
    check_serial,
    decoded_events,
    members_of,
)
from simulation.clock import Process
from simulation.line import ANSWER_S, SILENCE_S, Frame
from simulation.network import Connection, Lost, Stream, within
from simulation.trace import Violation
from simulation.truth import Life, Truth, text_of

if TYPE_CHECKING:
    from simulation.world import Node, World

PING_S = 5
SILENT_STREAM_S = 3 * PING_S


class Viewer(Person):
    """Watches one channel, or several."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.node: Node | None = None  # where it is
        self.eyes: dict[str, Eye] = {}
        self._pages: set[asyncio.Task[None]] = set()
        self._tabs: dict[str, tuple[View, str]] = {}  # pages that were put away, by channel
        self._process: Process | None = None  # that it is connected to
        self._connection: Connection | None = None  # and how; None: it is in that process
        self._busy_s = 0.0  # until then it was busy elsewhere, and read nothing

    def look_at(self, channel: str) -> None:
        """Watch `channel` from now on."""
        world = self.world
        self.eyes[channel] = Eye(
            self.name, channel, world.truth, world.trace, world.plan.limits, ledger=world.ledger, now_s=world.loop.time
        )

    @property
    def is_settled(self) -> bool:
        """Does it see all there is?"""
        return all(eye.is_settled for eye in self.eyes.values())

    @property
    def sees_who_is_here(self) -> bool:
        """Does it show those who are in its channels, as the hub that it is at knows it?"""
        return self.node is not None and self._shows_who_is_at(self.node)

    def _shows_who_is_at(self, node: Node) -> bool:
        for channel, eye in self.eyes.items():
            here = members_of(node.hub, channel)
            members = sorted(eye.view.members(), key=lambda one: one.id)
            if members != sorted(here.members, key=lambda one: one.id) or eye.view.count != here.count:
                return False
        return True

    def listens(self, channel: str, process: Process, since_s: float) -> bool:
        """Has it been told all the time since then what is said in `channel` of `process`, and read it at once?"""
        eye, connection = self.eyes.get(channel), self._connection
        if eye is None or self._process is not process or self._busy_s >= since_s:
            return False
        return eye.follows_s < since_s and not (connection is not None and connection.down.is_hole)

    async def run(self) -> None:
        """For ever."""
        while True:
            node = self.node = await self.some_node()
            self._process, self._connection = node.process, None
            with contextlib.suppress(Lost):
                await self.visit(node)
            self.node = self._process = None
            for eye in self.eyes.values():
                eye.cut()
                if not self.world.is_quiet:
                    self._handle(eye)
            await self.pause(0.0, 1.0)

    async def visit(self, node: Node) -> None:
        """One connection, until it is lost."""
        raise NotImplementedError

    def _handle(self, eye: Eye) -> None:
        """PresenceTracker load pages anew, and come back to tabs that slept."""
        deed = self.draw.random()
        if deed < 0.15:
            eye.reload()
        elif deed < 0.25:
            self._tabs[eye.channel] = eye.put_away()
        elif deed < 0.35 and eye.channel in self._tabs:
            eye.take_out(self._tabs[eye.channel])

    def receive(self, channel: str, batch: Batch, stamp: int) -> None:
        """Show what came; now and then ask for what was before."""
        eye = self.eyes[channel]
        eye.receive(batch, stamp)
        if batch.cursor is not None and eye.view.more and self.draw.random() < 0.1 and not self._pages:
            self.fetch_older(eye)

    def fetch_older(self, eye: Eye) -> None:
        """Ask for what was before."""
        page = self.world.start(self._page(eye))
        self._pages.add(page)
        page.add_done_callback(self._pages.discard)

    async def read_on(self) -> None:
        """A reader who is busy elsewhere reads nothing for a while."""
        if self.draw.random() < self.world.fault_model.stall_chance:
            self._busy_s = float("inf")
            try:
                await self.pause(0.1, 10.0)
            finally:
                self._busy_s = self.world.loop.time()

    def history(self) -> int | None:
        """How many messages to ask for."""
        return self.draw.choice((None, 0, 1, 2, 5, 50))

    def flush_ms(self) -> int | None:
        """How often to be told."""
        return self.draw.choice((None, 0, 20, 100, 1000))

    def pause_in(self) -> float:
        """After how long to leave by itself."""
        return self.draw.choice((0.5, 3.0, 1e9)) if not self.world.is_calm else 1e9

    async def _page(self, eye: Eye) -> None:
        for _ in range(3):
            starts, before = eye.starts, eye.view.before
            path = f"/v1/channels/{eye.channel}/messages"
            try:
                answer = await self.call("GET", path, query=f"limit={self.draw.choice((1, 3, 50))}&before={before}")
            except Lost:
                return
            if answer.status != 200:
                return
            page = msgspec.json.decode(answer.body, type=Page)
            if starts != eye.starts or eye.receive_page(page, answer.stamp, starts):
                return


Answered = Callable[[Frame, int], None]


class SocketViewer(Viewer):
    """Watches several channels over one WebSocket, asks for history on it, leaves channels, edits and deletes."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._moods = Random(f"{world.plan.seed}/{name}/moods")  # of its own, so that the rest stays as it is without
        self._stream: Stream | None = None
        self._asked: dict[int, Answered] = {}
        self._refs = 0
        self._leaving: set[str] = set()  # channels that it asked to leave, …
        self._left: dict[str, int] = {}  # … and those that it has left, by which request

    async def visit(self, node: Node) -> None:
        stream = await self.http.socket(node.process, node.hub, client=self.name, patience_s=ANSWER_S)
        self._stream, self._connection = stream, stream.connection
        self._asked.clear()
        self._leaving.clear()
        self._left.clear()
        leaves_s = self.world.loop.time() + self.pause_in()
        try:
            for channel in self.eyes:
                self._attach(channel)
            while self.world.loop.time() < leaves_s:
                data = await within(SILENCE_S, stream.take)
                if not data.data:
                    return
                self._receive(stream, json.loads(data.data), data.stamp)
                if self.draw.random() < 0.01:
                    self._attach_again(self.draw.choice(list(self.eyes)))
                if self.world.plan.asks_by_socket and self._moods.random() < 0.05:
                    self._do_something(self._moods.choice(list(self.eyes)))
                await self.read_on()
        finally:
            self._stream = None
            stream.leave()

    def fetch_older(self, eye: Eye) -> None:
        if self._stream is None or not self.world.plan.asks_by_socket or self._moods.random() < 0.3:
            super().fetch_older(eye)
            return
        starts, before, limit = eye.starts, eye.view.before, self._moods.choice((1, 3, 50))

        def answered(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} asked for history before {before} of {eye.channel}: {frame}")
            page = msgspec.convert({name: frame[name] for name in ("messages", "more", "cursor")}, Page)
            if starts == eye.starts and not eye.receive_page(page, stamp, starts) and eye.view.before == before:
                self.fetch_older(eye)

        self._ask({"type": "history", "channel": eye.channel, "before": before, "limit": limit}, answered)

    def _ask(self, frame: Frame, answered: Answered) -> None:
        if self._stream is not None:
            self._refs += 1
            self._asked[self._refs] = answered
            self._stream.send(json.dumps({**frame, "ref": self._refs}))

    def _attach_again(self, channel: str) -> None:
        """Attach once more on the same socket.

        The cursor is that of now; batches that are under way come before the answer. That of an empty channel resumes
        in any life of it, so with that one a client waits until it has left the channel.
        """
        if self.eyes[channel].view.cursor != str(EMPTY) and channel not in self._leaving:
            self._attach(channel)

    def _attach(self, channel: str) -> None:
        cursor, ref = self.eyes[channel].view.cursor, self._refs + 1

        def answered(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} could not attach to {channel}: {frame}")
            if ref < self._left.get(channel, 0):
                return  # it was left since, and that was answered sooner
            self._left.pop(channel, None)
            self.eyes[channel].begin(cursor)

        frame = {"type": "attach", "channel": channel, "since": cursor}
        self._ask({**frame, "history": self.history(), "flush_ms": self.flush_ms()}, answered)

    def _do_something(self, channel: str) -> None:
        """Leave a channel and come back to it; or change something that is in view."""
        deed = self._moods.choice(("detach", "update", "delete"))
        if deed == "detach":
            if channel not in self._leaving:
                self._detach(channel)
            return
        shown = [one.id for one in self.eyes[channel].view.messages() if one.status != "streaming"]
        is_wanted = deed == "update" or "delete" in self.world.plan.edits
        if shown and is_wanted and not self.world.is_calm:
            self._change(channel, deed, self._moods.choice(shown))

    def _detach(self, channel: str) -> None:
        self._leaving.add(channel)
        ref = self._refs + 1

        def answered(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} could not leave {channel}: {frame}")
            self._leaving.discard(channel)
            self._left[channel] = ref
            self.eyes[channel].cut()
            self.world.start(self._come_back(channel, self._stream))

        self._ask({"type": "detach", "channel": channel}, answered)

    async def _come_back(self, channel: str, stream: Stream | None) -> None:
        await asyncio.sleep(self._moods.choice((0.0, 0.1, 1.0)))
        if self._stream is stream and channel in self._left:
            self._attach(channel)

    def _change(self, channel: str, deed: str, message_id: str) -> None:
        truth, since, request = self.world.truth, self.world.truth.stamp, self.new_id()

        def answered(frame: Frame, stamp: int) -> None:
            self.world.trace.add(f"{self.name} {deed} {message_id}: {gist(frame)}")
            if frame["type"] == "ok" and deed == "update":
                check_serial(truth, channel, message_id, frame["serial"], since=since, stamp=stamp, request=request)
                check_message(truth, channel, msgspec.convert(frame["message"], Message), stamp)
            elif frame["type"] == "ok":
                check_deleted(truth, channel, message_id, since=since, stamp=stamp)
            elif not truth.was_disturbed(channel, 0) and not check_refusal(
                truth, channel, message_id, frame["code"], 1, since=since, stamp=stamp
            ):
                raise Violation(f"{self.name} could not {deed} {message_id} of {channel}: {frame}")

        fields = {"meta": {"seen": self.name}, "request": request} if deed == "update" else {}
        self._ask({"type": deed, "channel": channel, "id": message_id, **fields}, answered)

    def _receive(self, stream: Stream, frame: Frame, stamp: int) -> None:
        match frame:
            case {"type": "events", "channel": str(channel), "events": list(events)}:
                if channel in self._left:
                    raise Violation(f"{self.name} is told of {channel}, which it has left: {frame}")
                cursor = frame.get("cursor")
                batch = Batch(events=decoded_events(events), cursor=str(cursor) if cursor is not None else None)
                self.receive(channel, batch, stamp)
            case {"type": "ping", "n": n}:
                stream.send(json.dumps({"type": "pong", "n": n}))
            case {"type": "error", "status": 429 | 503} | {"type": "bye"}:
                raise Lost("sent away")
            case {"type": "ok" | "error", "ref": int(ref)} if ref in self._asked:
                self._asked.pop(ref)(frame, stamp)
            case _:
                raise Violation(f"{self.name} was told {frame}")


class StreamViewer(Viewer):
    """Watches one channel over Server-Sent Events; as an EventSource, or as one of our own clients."""

    async def visit(self, node: Node) -> None:
        [(channel, eye)] = self.eyes.items()
        query, headers = self._asks(eye.view.cursor)
        path = f"/v1/channels/{channel}/events"
        stream = await self.http.stream(
            node.process, node.hub, "GET", path, query=query, headers=headers, patience_s=ANSWER_S
        )
        self._connection = stream.connection
        leaves_s = self.world.loop.time() + self.pause_in()
        parser = EventParser()
        try:
            if stream.status != 200:
                if stream.status not in (429, 503):
                    raise Violation(f"{self.name} was answered {stream.status}")
                raise Lost("sent away")
            eye.begin(eye.view.cursor)
            while self.world.loop.time() < leaves_s:
                data = await within(SILENT_STREAM_S, stream.take)
                if not data.data:
                    if not parser.is_farewell:
                        raise Violation(f"{self.name}: the stream ended as if it were complete")
                    return
                for batch in parser.feed(data.data):
                    self.receive(channel, batch, data.stamp)
                await self.read_on()
        finally:
            stream.leave()

    def _asks(self, cursor: str | None) -> tuple[str, list[tuple[bytes, bytes]]]:
        query = f"ping_s={PING_S}"
        headers: list[tuple[bytes, bytes]] = []
        if (history := self.history()) is not None:
            query += f"&history={history}"
        if (flush_ms := self.flush_ms()) is not None:
            query += f"&flush_ms={flush_ms}"
        if self.draw.random() < 0.5:
            query += "&sdk=sim"
        if cursor is not None and self.draw.random() < 0.5:
            headers.append((b"last-event-id", cursor.encode()))
            query += "&since=nonsense:7"  # the URL of long ago: the header is newer
        elif cursor is not None:
            query += f"&since={quote(cursor)}"
        return query, headers


class EventParser:
    """Server-Sent Events out of bytes that are cut anywhere."""

    def __init__(self) -> None:
        self.is_farewell = False
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Batch]:
        """Each event of a channel as a batch of its own; it has a cursor where it has an id."""
        for fields in self.blocks(data):
            yield Batch(events=[decode_event(fields["data"])], cursor=fields.get("id"))

    def blocks(self, data: bytes) -> Iterator[dict[str, str]]:
        """The fields of each complete event of the channel: without pings, the farewell, and the client's identity."""
        self._rest += data
        while b"\n\n" in self._rest:
            block, _, self._rest = self._rest.partition(b"\n\n")
            fields = dict(self._field(line) for line in block.split(b"\n") if line and not line.startswith(b":"))
            kind = fields.get("event")
            if kind == "bye":
                self.is_farewell = True
            elif kind not in (None, "ping", "you"):
                yield fields

    @staticmethod
    def _field(line: bytes) -> tuple[str, str]:
        name, _, value = line.partition(b": ")
        return name.decode(), value.decode()


class PollViewer(Viewer):
    """Watches one channel by long polls."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._polled: Node | None = None  # where it was answered last; between two polls it is nowhere

    @property
    def sees_who_is_here(self) -> bool:
        """As of every viewer, of the hub that answered last."""
        return self._polled is not None and self._shows_who_is_at(self._polled)

    async def visit(self, node: Node) -> None:
        [(channel, eye)] = self.eyes.items()
        query = f"wait_s={self.draw.choice((0, 1, 4))}"
        if eye.view.cursor is not None:
            query += f"&since={quote(eye.view.cursor)}"
        if (history := self.history()) is not None:
            query += f"&history={history}"
        path = f"/v1/channels/{channel}/poll"
        eye.begin(eye.view.cursor, is_told=False)
        answer = await self.http.request(node.process, node.hub, "GET", path, query=query, patience_s=ANSWER_S + 4)
        if answer.status in (429, 503):
            raise Lost("sent away")
        if answer.status != 200:
            raise Violation(f"{self.name} was answered {answer.status}: {answer.body!r}")
        fields = json.loads(answer.body)
        self.receive(channel, Batch(events=decoded_events(fields["events"]), cursor=fields["cursor"]), answer.stamp)
        self._polled = node
        await self.read_on()


class InsideViewer(Viewer):
    """Watches one channel in the hub's process; the page it draws outlives the process."""

    async def visit(self, node: Node) -> None:
        await node.inside(self._watch(node.hub))

    async def _watch(self, hub: HubCore) -> None:
        [(channel, eye)] = self.eyes.items()
        subscription = hub.subscribe(channel, since=eye.view.cursor, history=self.history(), flush_ms=self.flush_ms())
        eye.begin(eye.view.cursor)
        leaves_s = self.pause_in()
        try:
            async with asyncio.timeout(leaves_s), contextlib.aclosing(subscription.batches()) as batches:
                async for batch in batches:
                    self.receive(channel, batch, self.world.truth.stamp)
                    await self.read_on()
        except (HoldfastError, TimeoutError) as error:
            self.world.trace.note(f"{self.name} leaves: {error!r}")


class Reader(Person):
    """Follows one answer after another on their own streams, and only adds up the text that comes."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._reading: Reading | None = None

    @property
    def is_settled(self) -> bool:
        """Was it told of the end, if there was one?"""
        return self._reading is None or self._reading.is_over or self._reading.is_open

    async def run(self) -> None:
        """For ever."""
        while True:
            channel = self.draw.choice(self.world.channels)
            life = self.world.truth.head(channel)
            streaming = [message.id for message in life.messages(life.serial) if message.status == "streaming"]
            if streaming:
                await self.read(channel, self.draw.choice(streaming))
            await self.pause(0.1, 2.0)

    async def read(self, channel: str, message_id: str) -> None:
        """One message to its end; in bad conditions patience has one, too."""
        self._reading = reading = Reading(self.name, self.world.truth, channel, message_id)
        visits = 0
        while visits < 20 or self.world.is_calm:
            await self._visit(channel, reading)
            if reading.is_over:
                break
            await self.pause(0.0, 0.5)
            visits += 1
        self._reading = None

    async def _visit(self, channel: str, reading: Reading) -> None:
        node = await self.some_node()
        path = f"/v1/channels/{channel}/messages/{reading.message_id}/events"
        cursor = reading.cursor
        reading.begin()
        headers = [(b"last-event-id", cursor.encode())] if cursor is not None else []
        with contextlib.suppress(Lost):
            stream = await self.http.stream(
                node.process, node.hub, "GET", path, query="sdk=sim", headers=headers, patience_s=ANSWER_S
            )
            try:
                if stream.status != 200:
                    reading.refused(stream.status)
                    return
                parser = EventParser()
                while not reading.is_over:
                    data = await within(2 * SILENT_STREAM_S, stream.take)
                    if not data.data:
                        return
                    for fields in parser.blocks(data.data):
                        reading.receive(fields, data.stamp)
            finally:
                stream.leave()
                reading.cut()


class Reading:
    """What a reader has of one answer. What came after the last id comes again, so a cut takes it back."""

    def __init__(self, name: str, truth: Truth, channel: str, message_id: str) -> None:
        self.message_id = message_id
        self.cursor: str | None = None
        self.is_over = False
        self._name = name
        self._truth = truth
        self._life: Life = truth.head(channel)
        self._begun = truth.stamp
        self._told = {"answer": "", "thinking": ""}
        self._certain = dict(self._told)  # as of the last id
        self._is_known = False  # had anybody been told of the message when it was asked for?

    def begin(self) -> None:
        """It is asked for, once more."""
        self._is_known = self._life.at(self.message_id, self._life.told) is not None

    def cut(self) -> None:
        """The connection is gone."""
        self._told = dict(self._certain)

    @property
    def is_open(self) -> bool:
        """Does the message stream still, so that there is nothing to be told of its end?"""
        message = self._life.now(self.message_id)
        return message is not None and message.status == "streaming"

    def refused(self, status: int) -> None:
        """There is no stream. Raises Violation where there must be one."""
        if status in AWAY_STATUS:
            return
        is_gone = self._truth.was_disturbed(self._life.channel, self._begun)
        is_gone = is_gone or (status == 404 and not self._is_known)  # it is stored, and the hub does not know of it yet
        if not is_gone and (status not in (404, 410) or not self._life.is_deleted(self.message_id)):
            raise Violation(f"{self._name} was answered {status}, and was not told of the end of {self.message_id}")
        self.is_over = True

    def receive(self, fields: dict[str, str], stamp: int) -> None:
        """One event, of what was sent at `stamp`."""
        kind = fields.get("event")
        if kind in self._told:
            self._told[kind] += json.loads(fields["data"])
        if "id" not in fields:
            return
        self.cursor = fields["id"]
        if not self.cursor.startswith(f"{self._life.epoch}:"):
            self.is_over = True  # of another life; it was told from the beginning again
            return
        self.is_over = kind == "done"
        self._certain = dict(self._told)
        self._check("answer", "text")
        self._check("thinking", "reasoning")
        if self.is_over:
            self._check_done(json.loads(fields["data"])["status"], stamp)

    def _check(self, kind: str, part_type: str) -> None:
        life, told = self._life, self._told[kind]
        message = life.now(self.message_id)
        if message is None or self.message_id in life.replaced:
            return
        texts = [text_of(part) for part in message.parts if part["type"] == part_type]
        if len(texts) == 1 and not texts[0].startswith(told):
            raise Violation(f"{self._name} was told of {self.message_id}\n  {told!r}, true is\n  {texts[0]!r}")

    def _check_done(self, status: str, stamp: int) -> None:
        """The end: all that the message was at the cursor was told."""
        life, cursor = self._life, parse_cursor(self.cursor)
        if cursor is None or not life.is_stored(cursor.serial, stamp):
            raise Violation(f"{self._name} was told of an end at {self.cursor}, before it was stored")
        message = life.at(self.message_id, cursor.serial)
        true = "deleted" if message is None else message.status
        if status != true or status == "streaming":
            raise Violation(f"{self._name} was told that {self.message_id} is {status} at {self.cursor}, it is {true}")
        if message is None or self.message_id in life.replaced:
            return
        for kind, part_type in (("answer", "text"), ("thinking", "reasoning")):
            texts = [text_of(part) for part in message.parts if part["type"] == part_type]
            told = self._told[kind]  # of several parts, in whatever order they grew
            if len(told) != sum(map(len, texts)) or (len(texts) == 1 and told != texts[0]):
                raise Violation(
                    f"{self._name} was told that {self.message_id} is over, and of its {kind} {told!r}; true is {texts}"
                )
