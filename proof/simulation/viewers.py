"""Viewers: over a socket, an event stream, long polls, and in the hub's process; and readers of one message's stream.

Layer: simulation.

A viewer goes from connection to connection and resumes with its cursor. Sometimes it loads its page again, reads no
bytes for a while, or requests older pages. A `ViewOracle` judges all that it receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from proof.oracle import Violation
from proof.oracle.responses import MessageStreamOracle, check_deleted, check_message, check_serial, is_correct_refusal
from proof.oracle.views import ViewOracle
from proof.simulation.actors import RETRY_STATUS, Actor, summary
from proof.simulation.bounds import members_of
from proof.simulation.clock import Process
from proof.simulation.network import RESPONSE_S, SILENCE_S, Connection, ConnectionLost, Frame, Stream, within
from proof.wirecheck import SseParser
from tenuto.core.errors import TenutoError
from tenuto.core.events import EMPTY, Page
from tenuto.core.model import Message
from tenuto.hub.hub import HubCore

if TYPE_CHECKING:
    from proof.simulation.world import Node, World

Json = dict[str, Any]
PING_S = 5
SILENT_STREAM_S = 3 * PING_S
UNSTORED = ("bye", "ping", "you")  # events of a stream without a channel event


class Viewer(Actor):
    """Watches one channel, or several."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.node: Node | None = None  # that it is connected to
        self.oracles: dict[str, ViewOracle] = {}
        self._pages: set[asyncio.Task[None]] = set()
        self._tabs: dict[str, bytes] = {}  # saved pages of a channel, as in the tabs of a browser
        self.process: Process | None = None  # that it is connected to
        self._connection: Connection | None = None  # connection to the process; None: it watches inside the process
        self._busy_s = 0.0  # time until which it reads no bytes

    def look_at(self, channel: str) -> None:
        """Watch `channel` from now on."""
        world = self.world
        self.oracles[channel] = ViewOracle(
            self.name,
            channel,
            world.stored,
            world.trace.add,
            world.plan.limits,
            promises=world.promises,
            now_s=world.loop.time,
        )

    @property
    def is_busy(self) -> bool:
        """Return whether it reads no bytes at present."""
        return self._busy_s == float("inf")

    @property
    def is_settled(self) -> bool:
        """Return whether its views are at the end of their logs."""
        return all(oracle.is_settled for oracle in self.oracles.values())

    @property
    def shows_members(self) -> bool:
        """Return whether its views show the members that its hub has."""
        return self.node is not None and self._shows_members_of(self.node)

    def _shows_members_of(self, node: Node) -> bool:
        for channel, oracle in self.oracles.items():
            here = members_of(node.hub, channel)
            members = sorted(oracle.view.members(), key=lambda one: one.id)
            if members != sorted(here.members, key=lambda one: one.id) or oracle.view.count != here.count:
                return False
        return True

    def follows(self, channel: str, process: Process, since_s: float) -> bool:
        """Return whether it has received all notices of `channel` in `process` since then, without a pause."""
        oracle, connection = self.oracles.get(channel), self._connection
        if oracle is None or self.process is not process or self._busy_s >= since_s:
            return False
        return oracle.follows_s < since_s and not (connection is not None and connection.down.is_hole)

    async def run(self) -> None:
        """Watch until the end of the run."""
        while True:
            node = self.node = await self.some_node()
            self.process, self._connection = node.process, None
            with contextlib.suppress(ConnectionLost):
                await self.visit(node)
            self.node = self.process = None
            for oracle in self.oracles.values():
                oracle.cut()
                if not self.world.is_quiet:
                    self._use_page(oracle)
            await self.pause(0.0, 1.0)

    async def visit(self, node: Node) -> None:
        """Open one connection, and watch until it is lost."""
        raise NotImplementedError

    def _use_page(self, oracle: ViewOracle) -> None:
        """Load the page again, save it, or restore a saved one, as a person does with tabs."""
        deed = self.draw.random()
        if deed < 0.15:
            oracle.reload()
        elif deed < 0.25:
            self._tabs[oracle.channel] = oracle.save()
        elif deed < 0.35 and oracle.channel in self._tabs:
            oracle.restore(self._tabs[oracle.channel])

    def receive(self, channel: str, events: list[Json], cursor: str | None, stamp: int) -> None:
        """Show the received events; sometimes request older messages."""
        oracle = self.oracles[channel]
        oracle.receive(events, cursor, stamp)
        if cursor is not None and oracle.view.more and self.draw.random() < 0.1 and not self._pages:
            self.fetch_older(oracle)

    def fetch_older(self, oracle: ViewOracle) -> None:
        """Request older messages."""
        page = self.world.start(self._page(oracle))
        self._pages.add(page)
        page.add_done_callback(self._pages.discard)

    async def read_on(self) -> None:
        """Read no bytes for a while, now and then."""
        if self.draw.random() < self.world.plan.fault_model.stall_chance:
            self._busy_s = float("inf")
            try:
                await self.pause(0.1, 10.0)
            finally:
                self._busy_s = self.world.loop.time()

    def history(self) -> int | None:
        """Return how many messages to request."""
        return self.draw.choice((None, 0, 1, 2, 5, 50))

    def flush_ms(self) -> int | None:
        """Return the flush window to request."""
        return self.draw.choice((None, 0, 20, 100, 1000))

    def pause_in(self) -> float:
        """Return after which time to leave."""
        return self.draw.choice((0.5, 3.0, 1e9)) if not self.world.is_calm else 1e9

    async def _page(self, oracle: ViewOracle) -> None:
        for _ in range(3):
            starts, before = oracle.starts, oracle.view.before
            path = f"/v1/channels/{oracle.channel}/messages"
            try:
                response = await self.call("GET", path, query=f"limit={self.draw.choice((1, 3, 50))}&before={before}")
            except ConnectionLost:
                return
            if response.status != 200:
                return
            page = msgspec.json.decode(response.body, type=Page)
            if starts != oracle.starts or oracle.receive_page(page, response.stamp, starts):
                return


OnResponse = Callable[[Frame, int], None]


class SocketViewer(Viewer):
    """Watches several channels over one WebSocket: it requests history, detaches, updates and deletes."""

    label = "socketviewer"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._choices = Random(f"{world.plan.seed}/{name}/moods")  # separate from `draw`, whose order must not change
        self._stream: Stream | None = None
        self._waiting: dict[int, OnResponse] = {}
        self._refs = 0
        self._leaving: set[str] = set()  # channels with a detach request
        self._left: dict[str, int] = {}  # channels that it has detached from, by the `ref` of the request

    async def visit(self, node: Node) -> None:
        stream = await self.http.socket(node.process, node.hub, client=self.name, patience_s=RESPONSE_S)
        self._stream, self._connection = stream, stream.connection
        self._waiting.clear()
        self._leaving.clear()
        self._left.clear()
        leaves_s = self.world.loop.time() + self.pause_in()
        try:
            for channel in self.oracles:
                self._attach(channel)
            while self.world.loop.time() < leaves_s:
                data = await within(SILENCE_S, stream.take)
                if not data.data:
                    return
                self._receive(stream, json.loads(data.data), data.stamp)
                if self.draw.random() < 0.01:
                    self._attach_again(self.draw.choice(list(self.oracles)))
                if self.world.plan.asks_by_socket and self._choices.random() < 0.05:
                    self._do_something(self._choices.choice(list(self.oracles)))
                await self.read_on()
        finally:
            self._stream = None
            stream.close()

    def fetch_older(self, oracle: ViewOracle) -> None:
        if self._stream is None or not self.world.plan.asks_by_socket or self._choices.random() < 0.3:
            super().fetch_older(oracle)
            return
        starts, before, limit = oracle.starts, oracle.view.before, self._choices.choice((1, 3, 50))

        def on_response(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} requested history before {before} of {oracle.channel}: {frame}")
            page = msgspec.convert({name: frame[name] for name in ("messages", "more", "cursor")}, Page)
            if (
                starts == oracle.starts
                and not oracle.receive_page(page, stamp, starts)
                and oracle.view.before == before
            ):
                self.fetch_older(oracle)

        self._ask({"type": "history", "channel": oracle.channel, "before": before, "limit": limit}, on_response)

    def _ask(self, frame: Frame, on_response: OnResponse) -> None:
        if self._stream is not None:
            self._refs += 1
            self._waiting[self._refs] = on_response
            self._stream.send(json.dumps({**frame, "ref": self._refs}))

    def _attach_again(self, channel: str) -> None:
        """Attach again on the same socket.

        Batches that the server sent before its response still belong to the earlier attachment. The cursor of an empty
        channel resumes in any epoch, so with that cursor a client detaches first.
        """
        if self.oracles[channel].view.cursor != str(EMPTY) and channel not in self._leaving:
            self._attach(channel)

    def _attach(self, channel: str) -> None:
        cursor, ref, asked_s = self.oracles[channel].view.cursor, self._refs + 1, self.world.loop.time()

        def on_response(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} could not attach to {channel}: {frame}")
            if ref < self._left.get(channel, 0):
                return  # a later detach had its response first
            self._left.pop(channel, None)
            self.oracles[channel].begin(cursor, asked_s=asked_s)

        frame = {"type": "attach", "channel": channel, "since": cursor}
        self._ask({**frame, "history": self.history(), "flush_ms": self.flush_ms()}, on_response)

    def _do_something(self, channel: str) -> None:
        """Detach from a channel and attach again, or change a shown message."""
        deed = self._choices.choice(("detach", "update", "delete"))
        if deed == "detach":
            if channel not in self._leaving:
                self._detach(channel)
            return
        shown = [one.id for one in self.oracles[channel].view.messages() if one.status != "streaming"]
        is_wanted = deed == "update" or "delete" in self.world.plan.edits
        if shown and is_wanted and not self.world.is_calm:
            self._change(channel, deed, self._choices.choice(shown))

    def _detach(self, channel: str) -> None:
        self._leaving.add(channel)
        ref = self._refs + 1

        def on_response(frame: Frame, stamp: int) -> None:
            if frame["type"] == "error":
                raise Violation(f"{self.name} could not detach from {channel}: {frame}")
            self._leaving.discard(channel)
            self._left[channel] = ref
            self.oracles[channel].cut()
            self.world.start(self._attach_later(channel, self._stream))

        self._ask({"type": "detach", "channel": channel}, on_response)

    async def _attach_later(self, channel: str, stream: Stream | None) -> None:
        await asyncio.sleep(self._choices.choice((0.0, 0.1, 1.0)))
        if self._stream is stream and channel in self._left:
            self._attach(channel)

    def _change(self, channel: str, deed: str, message_id: str) -> None:
        stored, since, request = self.world.stored, self.world.stored.stamp, self.new_id()

        def on_response(frame: Frame, stamp: int) -> None:
            self.world.trace.add(f"{self.name} {deed} {message_id}: {summary(frame)}")
            if frame["type"] == "ok" and deed == "update":
                check_serial(stored, channel, message_id, frame["serial"], since=since, stamp=stamp, request=request)
                check_message(stored, channel, msgspec.convert(frame["message"], Message), stamp)
            elif frame["type"] == "ok":
                check_deleted(stored, channel, message_id, since=since, stamp=stamp)
            elif not stored.has_changed_epoch(channel, 0) and not is_correct_refusal(
                stored, channel, message_id, frame["code"], 1, since=since, stamp=stamp
            ):
                raise Violation(f"{self.name} could not {deed} {message_id} of {channel}: {frame}")

        fields = {"meta": {"seen": self.name}, "request": request} if deed == "update" else {}
        self._ask({"type": deed, "channel": channel, "id": message_id, **fields}, on_response)

    def _receive(self, stream: Stream, frame: Frame, stamp: int) -> None:
        match frame:
            case {"type": "events", "channel": str(channel), "events": list(events)}:
                if channel in self._left:
                    raise Violation(f"{self.name} receives events of {channel}, which it has left: {frame}")
                cursor = frame.get("cursor")
                self.receive(channel, events, str(cursor) if cursor is not None else None, stamp)
            case {"type": "ping", "n": n}:
                stream.send(json.dumps({"type": "pong", "n": n}))
            case {"type": "error", "status": 429 | 503} | {"type": "bye"}:
                raise ConnectionLost("the server sent bye")
            case {"type": "ok" | "error", "ref": int(ref)} if ref in self._waiting:
                self._waiting.pop(ref)(frame, stamp)
            case _:
                raise Violation(f"{self.name} received {frame}")


class StreamViewer(Viewer):
    """Watches one channel over Server-Sent Events, as an EventSource or as one of our clients."""

    label = "streamviewer"

    async def visit(self, node: Node) -> None:
        [(channel, oracle)] = self.oracles.items()
        query, headers = self._request_of(oracle.view.cursor)
        path, asked_s = f"/v1/channels/{channel}/events", self.world.loop.time()
        stream = await self.http.stream(
            node.process, node.hub, "GET", path, query=query, headers=headers, patience_s=RESPONSE_S
        )
        self._connection = stream.connection
        leaves_s = self.world.loop.time() + self.pause_in()
        parser = SseParser()
        try:
            if stream.status != 200:
                if stream.status not in RETRY_STATUS:
                    raise Violation(f"{self.name} got status {stream.status}")
                raise ConnectionLost("the server is busy")
            oracle.begin(oracle.view.cursor, asked_s=asked_s)
            has_bye = False
            while self.world.loop.time() < leaves_s:
                data = await within(SILENT_STREAM_S, stream.take)
                if not data.data:
                    if not has_bye:
                        raise Violation(f"{self.name}: the stream ended without a bye")
                    return
                for event in parser.receive(data.data):
                    has_bye = has_bye or event.event == "bye"
                    if event.event not in UNSTORED:
                        self.receive(channel, [json.loads(event.data)], event.id, data.stamp)
                await self.read_on()
        finally:
            stream.close()

    def _request_of(self, cursor: str | None) -> tuple[str, list[tuple[bytes, bytes]]]:
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
            query += "&since=nonsense:7"  # the cursor in the URL is old; that in the header counts
        elif cursor is not None:
            query += f"&since={quote(cursor)}"
        return query, headers


class PollViewer(Viewer):
    """Watches one channel by long polls."""

    label = "pollviewer"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._polled: Node | None = None  # node of the last poll

    @property
    def shows_members(self) -> bool:
        """Return whether the hub of the last poll shows its members to this viewer, as to any other."""
        return self._polled is not None and self._shows_members_of(self._polled)

    async def visit(self, node: Node) -> None:
        [(channel, oracle)] = self.oracles.items()
        query = f"wait_s={self.draw.choice((0, 1, 4))}"
        if oracle.view.cursor is not None:
            query += f"&since={quote(oracle.view.cursor)}"
        if (history := self.history()) is not None:
            query += f"&history={history}"
        path = f"/v1/channels/{channel}/poll"
        oracle.begin(oracle.view.cursor, is_poll=True)
        response = await self.http.request(node.process, node.hub, "GET", path, query=query, patience_s=RESPONSE_S + 4)
        if response.status in RETRY_STATUS:
            raise ConnectionLost("the server is busy")
        if response.status != 200:
            raise Violation(f"{self.name} got status {response.status}: {response.body!r}")
        fields = json.loads(response.body)
        self.receive(channel, fields["events"], fields["cursor"], response.stamp)
        self._polled = node
        await self.read_on()


class LocalViewer(Viewer):
    """Watches one channel in the hub's process. Its page outlives the process."""

    label = "insideviewer"

    async def visit(self, node: Node) -> None:
        await node.inside(self._watch(node.hub))

    async def _watch(self, hub: HubCore) -> None:
        [(channel, oracle)] = self.oracles.items()
        subscription = hub.subscribe(
            channel, since=oracle.view.cursor, history=self.history(), flush_ms=self.flush_ms()
        )
        oracle.begin(oracle.view.cursor)
        leaves_s = self.pause_in()
        try:
            async with asyncio.timeout(leaves_s), contextlib.aclosing(subscription.batches()) as batches:
                async for batch in batches:
                    self.receive(channel, msgspec.to_builtins(batch.events), batch.cursor, self.world.stored.stamp)
                    await self.read_on()
        except (TenutoError, TimeoutError) as error:
            self.world.trace.note(f"{self.name} leaves: {error!r}")


class MessageReader(Actor):
    """Follows the streams of messages, one after the other."""

    label = "reader"

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._reading: MessageStreamOracle | None = None

    @property
    def is_settled(self) -> bool:
        """Return whether it has received the end of its message, if the message has ended."""
        return self._reading is None or self._reading.is_over or self._reading.is_open

    async def run(self) -> None:
        """Read until the end of the run."""
        while True:
            channel = self.draw.choice(self.world.channels)
            log = self.world.stored.head(channel)
            streaming = [message.id for message in log.messages(log.serial) if message.status == "streaming"]
            if streaming:
                await self.read(channel, self.draw.choice(streaming))
            await self.pause(0.1, 2.0)

    async def read(self, channel: str, message_id: str) -> None:
        """Read one message to its end; before the calm, give up after some connections."""
        self._reading = reading = MessageStreamOracle(self.name, self.world.stored, channel, message_id)
        visits = 0
        while visits < 20 or self.world.is_calm:
            await self._visit(channel, reading)
            if reading.is_over:
                break
            await self.pause(0.0, 0.5)
            visits += 1
        self._reading = None

    async def _visit(self, channel: str, reading: MessageStreamOracle) -> None:
        node = await self.some_node()
        path = f"/v1/channels/{channel}/messages/{reading.message_id}/events"
        reading.begin()
        headers = [(b"last-event-id", reading.cursor.encode())] if reading.cursor is not None else []
        with contextlib.suppress(ConnectionLost):
            stream = await self.http.stream(
                node.process, node.hub, "GET", path, query="sdk=sim", headers=headers, patience_s=RESPONSE_S
            )
            try:
                if stream.status != 200:
                    reading.refuse(stream.status)
                    return
                parser = SseParser()
                while not reading.is_over:
                    data = await within(2 * SILENT_STREAM_S, stream.take)
                    if not data.data:
                        return
                    for event in parser.receive(data.data):
                        if event.event not in UNSTORED:
                            reading.receive(event, data.stamp)
            finally:
                stream.close()
                reading.cut()
