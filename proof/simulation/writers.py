"""Writers: actors that write and change messages over HTTP, over a socket, and in the hub's process.

Layer: simulation.

The text of each attempt of a `LeaseWriter` encodes its generation and its offset (`proof.oracle.log.marks`), so the log
shows at once whose text was stored. A writer that is not refused after a takeover has found a bug.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from proof.oracle import Violation
from proof.oracle.log import GENERATION, marks, text_of
from proof.oracle.responses import (
    check_cursor,
    check_deleted,
    check_fresh,
    check_message,
    check_serial,
    check_text,
    is_correct_refusal,
)
from proof.simulation.actors import RETRY_ERRORS, RETRY_STATUS, STUCK_S, Actor, DecodedResponse, asks_by_socket, summary
from proof.simulation.network import RESPONSE_S, SILENCE_S, ClientSocket, ConnectionLost, Stream, within
from tenuto.core.errors import Busy, Deleted, Fenced, Finished, IdConflict, NotFound, StillStreaming, StoreUnavailable
from tenuto.core.model import Part
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, TakeOver
from tenuto.hub.hub import HubCore
from tenuto.hub.writer import MessageWriter

if TYPE_CHECKING:
    from proof.simulation.world import Node, World


ODD = ("🙂", "中文", "e\u0301", "\r\n", "\u2028", " data: x", "\n\n", "𝒳", "שלום", "\x00")


class Author(Actor):
    """An actor that writes one message after another."""

    writes_in_calm = False  # whether it writes one more message when no fault is active

    async def run(self) -> None:
        """Write until the calm; then end the last message."""
        while not self.world.is_calm:
            await self.write(self.draw.choice(self.world.channels))
            await self.pause(0.0, 2.0)
        if self.writes_in_calm:
            await self.world.until_healthy()
            await self.write(self.draw.choice(self.world.channels))

    async def write(self, channel: str) -> None:
        """Write one message."""
        raise NotImplementedError

    def piece(self, message_id: str, count: int) -> str:
        """Return text that occurs at no other place."""
        odd = self.draw.choice(ODD) if self.draw.random() < 0.2 else ""
        filler = "x" * self.draw.choice((0, 0, 0, 3, 40))
        return f"{self.name[0]}{self.name[-1]}.{message_id.rpartition('.')[2]}w{count}{filler}{odd} "

    def is_excused(self, channel: str, since: int) -> bool:
        """Return whether acknowledged data may be gone: the channel was deleted, or the store lost entries of it."""
        return self.world.stored.has_changed_epoch(channel, since)

    def check_refused(self, channel: str, message_id: str, code: str, since: int, stamp: int) -> None:
        """Check that another client had ended the message before a refusal, or that it is excused. Raises Violation."""
        is_end = code in ("finished", "deleted", "fenced")
        if is_end and is_correct_refusal(self.world.stored, channel, message_id, code, 1, since=since, stamp=stamp):
            return
        lost = self.is_excused(channel, since) if is_end else self.world.stored.has_lost(channel, message_id, since)
        if not lost:
            raise Violation(f"{self.name} was refused with {code} for {message_id} on {channel}")

    def check_whole(self, channel: str, message_id: str, parts: list[Part], since: int, *, status: str | None) -> None:
        """Check that exactly the accepted parts are stored, unless another client changed them. Raises Violation."""
        stored = self.world.stored
        log = stored.head(channel)
        message = log.now(message_id)
        if stored.has_lost(channel, message_id, since) or log.is_deleted(message_id) or log.takeovers.get(message_id):
            return
        if message is None:
            raise Violation(f"{self.name}: {message_id} is not stored")
        if message.parts != parts and (channel, message_id) not in self.world.edited:
            raise Violation(f"{self.name} wrote to {message_id}\n  {parts}, stored is\n  {message.parts}")
        if status is not None and message.status != status:
            raise Violation(f"{self.name}: {message_id} is {message.status}, not {status}")


class HttpWriter(Author):
    """Writes over HTTP, one request at a time."""

    label = "remote"

    async def write(self, channel: str) -> None:
        await _HttpMessage(self, channel).write()


class _HttpMessage:
    """One message that is written over HTTP.

    The server may carry out a request that the client gave up. So this writer does not replace text that may be in
    transit, nor any text before it if it is sent without an index.
    """

    def __init__(self, writer: HttpWriter, channel: str) -> None:
        self._writer = writer
        self._draw = writer.draw
        self._stored = writer.world.stored
        self._trace = writer.world.trace
        self._channel = channel
        self._id = writer.new_id()
        self._begun = self._stored.stamp
        self._parts: list[Part] = []  # the parts as they will be once all requests are stored
        self._acked: list[int] = []  # the stored length of each
        self._unclear: set[int] = set()  # parts with text in transit

    async def write(self) -> None:
        """Write from the beginning to the end, or until another client ends the message."""
        draw = self._draw
        body: dict[str, Any] = {"id": self._id, "role": "assistant", "status": "streaming", "meta": {"n": 1}}
        if draw.random() < 0.3:
            self._open({"type": "text", "text": "begin "})
            body["parts"] = list(self._parts)
        is_ours = await self._send("POST", "", body)
        for count in range(draw.randrange(1, 25)):
            if is_ours:
                is_ours = await self._continue(count)
                await self._writer.pause(0.0, self._writer.world.plan.token_s)
        status = draw.choice(("complete", "complete", "failed"))
        end = {"status": status, "request": self._writer.new_id()}
        if is_ours and await self._send("POST", f"/{self._id}/finish", end):
            self._writer.check_whole(self._channel, self._id, self._parts, self._begun, status=status)

    async def _continue(self, count: int) -> bool:
        """Take one step. Return False if another client has ended the message."""
        kind = self._draw.choice(("append",) * 6 + ("end", "end", "open", "replace"))
        if kind == "end" or (not self._parts and kind == "append"):
            if not self._parts or self._parts[-1]["type"] != "text":
                self._open({"type": "text", "text": ""})
            return await self._append(len(self._parts) - 1, count, is_at_end=True)
        growing = [index for index, part in enumerate(self._parts) if part["type"] != "data"]
        if kind == "append" and growing:
            return await self._append(self._draw.choice(growing), count)
        clear = [index for index in range(len(self._parts)) if index not in self._unclear]
        return await self._put(self._draw.choice(clear) if kind == "replace" and clear else len(self._parts), count)

    def _open(self, part: Part) -> None:
        self._parts.append(part)
        self._acked.append(len(text_of(part)))

    async def _send(self, method: str, path: str, body: object, *, query: str = "") -> bool:
        """Send a request and check its response. Return False if another client has ended the message."""
        self._writer.world.promises.note_request((self._channel, self._id))
        response = await self._writer.ask(method, f"/v1/channels/{self._channel}/messages{path}", body, query=query)
        if response.status >= 400:
            self._writer.check_refused(self._channel, self._id, response.code, self._begun, response.stamp)
            return False
        serial, stamp = response.fields["serial"], response.stamp
        check_serial(self._stored, self._channel, self._id, serial, since=self._begun, stamp=stamp)
        if "message" in response.fields:
            check_message(self._stored, self._channel, response.message(), stamp)
            if "cursor" in response.fields:
                check_cursor(self._stored, self._channel, [response.message()], response.fields["cursor"], stamp)
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

    async def _append(self, index: int, count: int, *, is_at_end: bool = False) -> bool:
        """Append to a part until its text is stored; new text joins while requests fail.

        With `is_at_end` no index is sent: the text goes to the last part, which it opens if that is not stored.
        """
        begun_s = self._writer.world.loop.time()
        self._grow(index, count)
        for tries in itertools.count():
            if self._acked[index] >= len(text_of(self._parts[index])):
                return True
            response = await self._append_once(index, is_at_end=is_at_end)
            if response is None:
                self._writer.check_patience(begun_s, f"append to {self._id}")
                await self._writer.pause(0.02, 0.5)
                if tries < 5:
                    self._grow(index, 1_000 + count * 100 + tries)
            elif response.status >= 400 and (response.code != "gap" or is_at_end):
                return False
            elif response.status < 400 and is_at_end and self._stored.has_lost(self._channel, self._id, self._begun):
                return False  # this text is in an earlier part, or lost text of earlier parts before it in this one
            else:
                self._acked[index] = response.fields["length"] - (len(self._text_before(index)) if is_at_end else 0)
        raise AssertionError("unreachable")

    def _text_before(self, index: int) -> str:
        """Return the text of the text parts before a part."""
        return "".join(part["text"] for part in self._parts[:index] if part["type"] == "text")

    async def _append_once(self, index: int, *, is_at_end: bool) -> DecodedResponse | None:
        """Send the text that is not stored, sometimes with stored text before it. Return None to try again."""
        before = self._text_before(index) if is_at_end else ""
        stored = len(before) + self._acked[index]
        at = max(0, stored - (self._draw.randrange(20) if self._draw.random() < 0.2 else 0))
        # at four bytes per character, below the smallest limit
        text = (before + text_of(self._parts[index]))[at : at + 45]
        body: dict[str, Any] = {"text": text, "at": at}
        if not is_at_end:
            body["part"] = index
        path = f"/v1/channels/{self._channel}/messages/{self._id}/append"
        self._writer.world.promises.note_request((self._channel, self._id))
        try:
            response = DecodedResponse(await self._writer.call("POST", path, body))
        except ConnectionLost:
            self._unclear |= set(range(index + 1)) if is_at_end else {index}
            return None
        if response.status in (429, 503):
            return None
        self._trace.add(f"{self._writer.name} append {self._id}.{index} {at}+{len(text)}: {response.summary}")
        if response.status >= 400:
            self._writer.check_refused(self._channel, self._id, response.code, self._begun, response.stamp)
            return response
        fields, stamp = response.fields, response.stamp
        has_lost = is_at_end and self._stored.has_lost(self._channel, self._id, self._begun)
        if fields["length"] < at + len(text) or (fields["part"] != index and not has_lost):
            raise Violation(f"{self._writer.name} appended {at}+{len(text)} to {self._id}.{index}: {fields}")
        if has_lost:
            return response
        place = at - len(before)
        text, place = text[max(0, -place) :], max(0, place)
        check_text(
            self._stored, self._channel, self._id, index, place, text, fields["serial"], since=self._begun, stamp=stamp
        )
        return response

    def _grow(self, index: int, count: int) -> None:
        grow(self._parts, index, self._writer.piece(self._id, count))


class PipelinedWriter(Author):
    """Writes over a socket without waiting for responses; it resends unacknowledged frames after a break."""

    label = "piper"
    resends = True

    async def write(self, channel: str) -> None:
        begun = self.world.stored.stamp
        message_id = self.new_id()
        frames, parts = self.script(channel, message_id)
        position = 0
        begun_s = self.world.loop.time()
        while position < len(frames):
            node = await self.some_node()
            try:
                stream = await self.http.socket(node.process, node.hub, patience_s=RESPONSE_S)
            except ConnectionLost:
                if not self.resends:
                    return
                self.check_patience(begun_s, f"a socket to write {message_id}")
                await self.pause(0.05, 1.0)
                continue
            pipe = _Pipeline(self, channel, message_id, frames, position, begun)
            try:
                while not pipe.is_over:
                    await pipe.send(stream)
                    data = await within(SILENCE_S, stream.take)
                    if not data.data:
                        raise ConnectionLost("closed")
                    pipe.receive(json.loads(data.data), data.stamp, stream)
                    self.check_patience(begun_s, f"to write {message_id}")
            except ConnectionLost:
                if not self.resends:
                    return
                await self.pause(0.05, 1.0)
            finally:
                stream.close()
            if pipe.is_refused:
                return
            position = pipe.position
        self.check_whole(channel, message_id, parts, begun, status="complete")

    def script(self, channel: str, message_id: str) -> tuple[list[dict[str, Any]], list[Part]]:
        """Return the frames of one message, and the parts that it will have."""
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
    """The frames in transit on one socket."""

    def __init__(
        self,
        writer: PipelinedWriter,
        channel: str,
        message_id: str,
        frames: list[dict[str, Any]],
        position: int,
        begun: int,
    ) -> None:
        self.position = position  # the first frame that is not acknowledged
        self.is_refused = False  # another client has ended the message
        self._writer = writer
        self._world = writer.world
        self._channel = channel
        self._message_id = message_id
        self._frames = frames
        self._next = position
        self._begun = begun
        self._window = writer.draw.choice((1, 4, 20)) if writer.resends else len(frames)
        self._under_way: dict[int, None] = {}
        self._acked: set[int] = set()
        self._goes_back = False

    @property
    def is_over(self) -> bool:
        """Return whether all frames are acknowledged, or refused for good."""
        return self.is_refused or self.position == len(self._frames)

    async def send(self, stream: Stream) -> None:
        """Send the frames that fit the window."""
        writer = self._writer
        if self._goes_back and not self._under_way:
            await writer.pause(0.1, 1.0)
            self._goes_back, self._next = False, self.position
            self._acked.clear()
        while not self._goes_back and self._next < len(self._frames) and len(self._under_way) < self._window:
            stream.send(json.dumps({**self._frames[self._next], "ref": self._next}))
            stream.connection.sent_s = self._world.loop.time()
            self._world.promises.note_request((self._channel, self._message_id), stream.connection)
            self._under_way[self._next] = None
            self._next += 1
            if writer.draw.random() < 0.4:
                await writer.pause(0.0, self._world.plan.token_s)

    def receive(self, frame: dict[str, Any], stamp: int, stream: Stream) -> None:
        """Take a frame of the server."""
        match frame["type"]:
            case "ok":
                self._world.promises.note_response((self._channel, self._message_id), stream.connection)
                self._ok(frame, stamp)
            case "error":
                self._error(frame, stamp)
            case "bye":
                raise ConnectionLost("the server sent bye")

    def _ok(self, frame: dict[str, Any], stamp: int) -> None:
        ref = frame["ref"]
        sent = self._frames[ref]
        self._world.trace.add(f"{self._writer.name} {sent['type']} {self._message_id} #{ref}: {summary(frame)}")
        self._under_way.pop(ref)
        self._acked.add(ref)
        while self.position in self._acked:
            self.position += 1
        stored, channel = self._world.stored, self._channel
        if sent["type"] == "append":
            at, text, part, serial = sent.get("at"), sent["text"], frame["part"], frame["serial"]
            check_text(stored, channel, self._message_id, part, at, text, serial, since=self._begun, stamp=stamp)
        else:
            request = sent.get("request")
            check_serial(
                stored, channel, self._message_id, frame["serial"], since=self._begun, stamp=stamp, request=request
            )

    def _error(self, frame: dict[str, Any], stamp: int) -> None:
        ref, code = frame["ref"], frame["code"]
        self._world.trace.add(f"{self._writer.name} #{ref} {self._message_id}: {code}")
        self._under_way.pop(ref)
        if frame["status"] in (429, 503):
            self._goes_back, self.is_refused = self._writer.resends, not self._writer.resends
        elif not self._writer.resends and code in ("gap", "mismatch") and not self._world.plan.is_exclusive:
            self.is_refused = True  # of several hubs, a read can show that all was stored, but not in which order
        elif not (self._goes_back and code in ("gap", "not_found", "no_part")):
            # Only a frame behind a refused one may miss it.
            self._writer.check_refused(self._channel, self._message_id, code, self._begun, stamp)
            self.is_refused = True


class BlindWriter(PipelinedWriter):
    """Writes over a socket without offsets and indexes, replaces its last text in transit, and never resends.

    Acknowledged data is stored. If all frames are acknowledged, the message is the fold of the frames, in order.
    """

    label = "careless"
    resends = False

    def script(self, channel: str, message_id: str) -> tuple[list[dict[str, Any]], list[Part]]:
        about = {"channel": channel, "id": message_id}
        frames: list[dict[str, Any]] = [{"type": "create", **about, "role": "assistant", "status": "streaming"}]
        parts: list[Part] = []
        for count in range(self.draw.randrange(1, 20)):
            piece, chance = self.piece(message_id, count), self.draw.random()
            is_text = bool(parts) and parts[-1]["type"] == "text"
            if parts and chance >= 0.3:
                frames.append({"type": "append", **about, "text": piece})
                part: Part = {"type": "text", "text": parts.pop()["text"] + piece if is_text else piece}
            else:
                if is_text and chance < 0.2:
                    parts.pop()
                    part = {"type": "text", "text": piece}
                else:
                    part = {"type": "data", "name": "n", "data": count} if parts else {"type": "text", "text": piece}
                frames.append({"type": "part", **about, "part": len(parts), "value": part})
            parts.append(part)
        frames.append({"type": "finish", **about})
        return frames, parts


def grow(parts: list[Part], index: int, text: str) -> None:
    """Append `text` to the part at `index`."""
    key = "input" if parts[index]["type"] == "tool" else "text"
    parts[index] = {**parts[index], key: parts[index][key] + text}


class Editor(Author):
    """Creates messages, changes and deletes messages of other actors, stops them and takes them over."""

    label = "editor"

    async def run(self) -> None:
        self.has_socket = asks_by_socket(self)
        try:
            while not self.world.is_calm:
                await self.do(self.draw.choice(self.world.channels), self.draw.choice(self.world.plan.edits))
                await self.pause(0.0, 1.5)
        finally:
            self.disconnect()

    async def do(self, channel: str, what: str) -> None:
        """Carry out one change."""
        log = self.world.stored.head(channel)
        messages = sorted(log.messages(log.serial), key=lambda message: message.created)
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
        begun = self.world.stored.stamp
        message_id = self.new_id()
        body = {"id": message_id, "text": self.piece(message_id, 0) * self.draw.randrange(1, 30)}
        response = await self.ask("POST", f"/v1/channels/{channel}/messages", body)
        if response.status >= 400:
            self.check_refused(channel, message_id, response.code, begun, response.stamp)
            return
        check_serial(
            self.world.stored, channel, message_id, response.fields["serial"], since=begun, stamp=response.stamp
        )
        check_message(self.world.stored, channel, response.message(), response.stamp)
        check_cursor(self.world.stored, channel, [response.message()], response.fields["cursor"], response.stamp)

    async def _edit(self, channel: str, message_id: str) -> None:
        body: dict[str, Any] = {"request": self.new_id(), "meta": {"by": self.name, "n": self._count}}
        if self.draw.random() < 0.7:
            body["text"] = self.piece(message_id, self._count) * self.draw.randrange(0, 5)
        self.world.edited.add((channel, message_id))
        stored, since = self.world.stored, self.world.stored.stamp
        response = await self._ask(channel, "PATCH", message_id, body)
        if response is not None:
            check_message(stored, channel, response.message(), response.stamp)
            serial, request = response.fields["serial"], body["request"]
            check_serial(stored, channel, message_id, serial, since=since, stamp=response.stamp, request=request)

    async def _delete(self, channel: str, message_id: str) -> None:
        since = self.world.stored.stamp
        response = await self._ask(channel, "DELETE", message_id)
        if response is not None:
            check_deleted(self.world.stored, channel, message_id, since=since, stamp=response.stamp)

    async def _read(self, channel: str, message_id: str) -> None:
        stored, log = self.world.stored, self.world.stored.head(channel)
        sent = log.sent
        response = await self._ask(channel, "GET", message_id)
        if response is not None:
            message = response.message()
            check_cursor(stored, channel, [message], response.fields["cursor"], response.stamp)
            if check_message(stored, channel, message, response.stamp) is log:
                check_fresh(log, message, sent)

    async def _ask(self, channel: str, method: str, message_id: str, body: object = None) -> DecodedResponse | None:
        """Send a request about a stored message. Return None if another client ended the message first."""
        begun, log = self.world.stored.stamp, self.world.stored.head(channel)
        was_known = log.at(message_id, log.sent) is not None
        response = await self.ask(method, f"/v1/channels/{channel}/messages/{message_id}", body)
        if response.status < 400:
            return response
        if response.code == "not_found" and not was_known:
            return None
        if not is_correct_refusal(
            self.world.stored, channel, message_id, response.code, 1, since=begun, stamp=response.stamp
        ) and not self.is_excused(channel, begun):
            raise Violation(f"{self.name} {method} {message_id} of {channel} was refused: {response.fields}")
        return None

    async def _inside(self, job: Coroutine[Any, Any, None]) -> None:
        node = await self.some_node()
        self._hub = node.hub
        await node.inside(job)

    async def _stop(self, channel: str, message_id: str) -> None:
        try:
            await self._hub.finish(channel, message_id, status="cancelled")
        except (Finished, Deleted, Fenced, NotFound, *RETRY_ERRORS) as error:
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
        except (Finished, Deleted, Fenced, NotFound, StillStreaming, *RETRY_ERRORS) as error:
            if is_forced:
                self.world.abandoned.add((channel, message_id))
            self.world.trace.add(f"{self.name} could not take {message_id} over: {error.code}")
        except IdConflict:
            # Two writers in one process may not write one message; the app prevents it, as `hub.take_over` does.
            self.world.abandoned.add((channel, message_id))

    async def _force(self, channel: str, message_id: str) -> MessageWriter:
        """Take over a message that still has a writer, which only the hub itself may do."""
        hub = self._hub
        await hub.start()  # each start is another node
        caller = Caller(id=self.name, writer=WriterIdentity(by=self.name, node=hub.node), is_server=True)
        result = await hub.ask(channel, message_id, TakeOver(request=self.new_id()), caller)
        message, _ = await hub.read(channel, message_id)
        writer = MessageWriter(hub, channel, message_id, create=None, author=self.name)
        writer.take_up(message, result.generation or 0)
        return writer


class LocalWriter(Author):
    """Writes in the hub's process, with the Python API, and dies with it."""

    label = "insider"

    async def write(self, channel: str) -> None:
        node = await self.some_node()
        await node.inside(self._write_message(node.hub, channel))

    async def _write_message(self, hub: HubCore, channel: str) -> None:
        begun = self.world.stored.stamp
        message_id = self.new_id()
        parts: list[Part] = []
        status: str | None = "complete"
        try:
            async with hub.message(channel, id=message_id, author=self.name, meta={"n": 0}) as message:
                await self._write_to(message, parts, begun)
        except _OnPurpose:
            # The hub stores the end if it can; a failing store, or a hub that shuts down, may not take it.
            self.world.trace.add(f"{self.name} failed on purpose at {message_id}")
            if hub.is_draining or not self.world.is_calm_for(STUCK_S):
                return
            status = "failed"
        except (Finished, Deleted, Fenced, NotFound) as error:
            self.check_refused(channel, message_id, error.code, begun, self.world.stored.stamp)
            return
        except IdConflict:
            # Another client took the message over before this writer had its acknowledgement.
            if not self.world.stored.head(channel).takeovers.get(message_id):
                raise
            return
        except RETRY_ERRORS as error:
            self.world.trace.add(f"{self.name} gives up {message_id}: {error.code}")
            if isinstance(error, StoreUnavailable | Busy) and self.world.is_calm_for(STUCK_S):
                raise Violation(f"{self.name} could not write {message_id} without faults: {error!r}") from None
            return
        self.check_whole(channel, message_id, parts, begun, status=status)

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        draw, tries = self.draw, _Tries(message, parts)
        for count in range(draw.randrange(1, 40)):
            kind = draw.choice((*("append",) * 10, "into", "open", "replace", "meta", "flush", "try", "fail"))
            known = [index for index in range(tries.count) if parts[index]["type"] != "attempt"]
            growing = [index for index in known if parts[index]["type"] != "data"]
            text = self.piece(message.id, count)
            if kind == "append" or (kind == "into" and not growing) or (kind == "replace" and not known):
                last = len(parts) - 1
                texts = [last] if last in known and last >= tries.text_from and parts[last]["type"] == "text" else []
                if not texts:
                    tries.supersede()
                    parts.append({"type": "text", "text": ""})
                    texts = [len(parts) - 1]
                grow(parts, texts[-1], text)
                await message.append(text)
            elif kind == "into":
                index = draw.choice(growing)
                grow(parts, index, text)
                await message.append(text, part=index)
            elif kind == "try":
                await tries.begin()
            elif kind == "fail":
                await tries.fail()
            elif kind in ("open", "replace"):
                if kind == "open":
                    tries.supersede()
                index = len(parts) if kind == "open" else draw.choice(known)
                part: Part = draw.choice(
                    (
                        {"type": "data", "name": "bar", "data": count},
                        {"type": "text", "text": text},
                        {"type": "tool", "call": "c", "name": "t", "input": text},
                    )
                )
                parts[index : index + 1] = [part]
                await message.part(part, index=index if kind == "replace" else None)
            elif kind == "meta":
                await message.update(meta={"n": count})
            else:
                await message.flush()
                self.check_whole(message.channel, message.id, parts, begun, status=None)
            if draw.random() < 0.5:
                await self.pause(0.0, self.world.plan.token_s)
        if draw.random() < 0.1:
            raise _OnPurpose
        tries.supersede()  # the end of the message does


class _Tries:
    """The attempts of one message, and its parts once all requests are stored."""

    def __init__(self, message: MessageWriter, parts: list[Part]) -> None:
        self.text_from = 0  # text without an index goes to no part before this one
        self._message, self._attempt = message, message.attempt()
        self._since: int | None = None
        self._failed_from: int | None = None
        self._parts = parts

    @property
    def count(self) -> int:
        """Return the number of parts that may be written."""
        return len(self._parts) if self._failed_from is None else self._failed_from

    async def begin(self) -> None:
        """Begin an attempt; the one before has succeeded."""
        if self._since is not None:
            await self._attempt.__aexit__(None, None, None)
        self._attempt = self._message.attempt()
        await self._attempt.__aenter__()
        self._since, self.text_from = self.count, len(self._parts)

    async def fail(self) -> None:
        """Let the attempt fail, if there is one."""
        if self._since is None:
            return
        await self._attempt.__aexit__(ValueError, ValueError("on purpose"), None)
        if any(part["type"] != "attempt" for part in self._parts[self._since :]):
            self._failed_from = self._since
        self._since, self.text_from = None, len(self._parts)

    def supersede(self) -> None:
        """Note that content follows a failed attempt."""
        if self._failed_from is None:
            return
        taken = self._parts[self._failed_from :]
        texts = [part for part in taken if part["type"] != "attempt"]
        characters = sum(len(part["text"]) for part in texts if part["type"] == "text")
        attempt = {"type": "attempt", "parts": texts, "characters": characters}
        self._parts[self._failed_from :] = [*(part for part in taken if part["type"] == "attempt"), attempt]
        self._failed_from, self.text_from = None, len(self._parts)


class SteadyWriter(LocalWriter):
    """Writes for seconds without a pause, so that viewers always have text to receive."""

    label = "steady"
    tokens, token_s = 150, 0.03
    writes_in_calm = True

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        parts.append({"type": "text", "text": ""})
        for count in range(self.tokens):
            text = self.piece(message.id, count)
            grow(parts, 0, text)
            await message.append(text)
            await asyncio.sleep(self.token_s)


class LongWriter(SteadyWriter):
    """Writes one message in the hub of a given node, for longer than the lease of a node."""

    label = "long"
    tokens, token_s = 60, 0.3

    async def write_in(self, node: Node, channel: str) -> None:
        await node.inside(self._write_message(node.hub, channel))


class _OnPurpose(Exception):
    pass


TERMS_S = (5.0, 6.0, 15.0)


class Refused(Exception):
    """The message belongs to another writer; `code` is that of the refusal."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class LeaseWriter(Author):
    """Writes messages with leases. Often it stops in the middle, and a successor continues."""

    label = "leaser"
    writes_in_calm = True

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.others = [f"{name}~{number}" for number in range(2)]

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
