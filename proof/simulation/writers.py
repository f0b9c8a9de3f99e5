"""Writers: actors that write messages over HTTP and over a socket.

Layer: simulation.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from proof.oracle.log import text_of
from proof.oracle.responses import check_cursor, check_message, check_serial, check_text, is_correct_refusal
from proof.oracle.violation import Violation
from proof.simulation.actors import Actor, DecodedResponse, summary
from proof.simulation.network import ConnectionLost, Stream, within
from proof.simulation.sockets import RESPONSE_S, SILENCE_S
from tenuto.core.model import Part

ODD = ("🙂", "中文", "e\u0301", "\r\n", "\u2028", " data: x", "\n\n", "𝒳", "שלום", "\x00")


class Author(Actor):
    """An actor that writes one message after another."""

    async def run(self) -> None:
        """Write until the calm; then end the last message."""
        while not self.world.is_calm:
            await self.write(self.draw.choice(self.world.channels))
            await self.pause(0.0, 2.0)

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
    transit, and a part that was opened by an append stays a text part.
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
        self._acked: list[int] = []  # the stored length of each; -1: the first append opens the part
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

    async def _append(self, index: int, count: int) -> bool:
        """Append to a part until its text is stored; new text joins while requests fail."""
        begun_s = self._writer.world.loop.time()
        self._grow(index, count)
        for tries in itertools.count():
            if self._acked[index] >= len(text_of(self._parts[index])):
                return True
            response = await self._append_once(index)
            if response is None:
                self._writer.check_patience(begun_s, f"append to {self._id}")
                await self._writer.pause(0.02, 0.5)
                if tries < 5:
                    self._grow(index, 1_000 + count * 100 + tries)
            elif response.status >= 400 and response.code != "gap":
                return False
            else:
                self._acked[index] = response.fields["length"]
        raise AssertionError("unreachable")

    async def _append_once(self, index: int) -> DecodedResponse | None:
        """Send the text that is not stored, sometimes with stored text before it. Return None to try again."""
        acked = self._acked[index]
        at = max(0, acked - (self._draw.randrange(20) if self._draw.random() < 0.2 else 0))
        text = text_of(self._parts[index])[at : at + 45]  # at four bytes per character, below the smallest limit
        body: dict[str, Any] = {"text": text, "at": at}
        if acked >= 0:
            body["part"] = index
        path = f"/v1/channels/{self._channel}/messages/{self._id}/append"
        self._writer.world.promises.note_request((self._channel, self._id))
        try:
            response = DecodedResponse(await self._writer.call("POST", path, body))
        except ConnectionLost:
            self._unclear.add(index)
            return None
        if response.status in (429, 503):
            return None
        self._trace.add(f"{self._writer.name} append {self._id}.{index} {at}+{len(text)}: {response.summary}")
        if response.status >= 400:
            self._writer.check_refused(self._channel, self._id, response.code, self._begun, response.stamp)
            return response
        fields, stamp = response.fields, response.stamp
        if fields["part"] != index or fields["length"] < at + len(text):
            raise Violation(f"{self._writer.name} appended {at}+{len(text)} to {self._id}.{index}: {fields}")
        check_text(
            self._stored, self._channel, self._id, index, at, text, fields["serial"], since=self._begun, stamp=stamp
        )
        return response

    def _grow(self, index: int, count: int) -> None:
        grow(self._parts, index, self._writer.piece(self._id, count))


class PipelinedWriter(Author):
    """Writes over a socket without waiting for responses; it resends unacknowledged frames after a break."""

    label = "piper"

    async def write(self, channel: str) -> None:
        begun = self.world.stored.stamp
        message_id = self.new_id()
        frames, parts = self._script(channel, message_id)
        position = 0
        begun_s = self.world.loop.time()
        while position < len(frames):
            node = await self.some_node()
            try:
                stream = await self.http.socket(node.process, node.hub, patience_s=RESPONSE_S)
            except ConnectionLost:
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
                await self.pause(0.05, 1.0)
            finally:
                stream.close()
            if pipe.is_refused:
                return
            position = pipe.position
        self.check_whole(channel, message_id, parts, begun, status="complete")

    def _script(self, channel: str, message_id: str) -> tuple[list[dict[str, Any]], list[Part]]:
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
        self._window = writer.draw.choice((1, 4, 20))
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
            at, text, part, serial = sent["at"], sent["text"], sent["part"], frame["serial"]
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
            self._goes_back = True
        elif not (self._goes_back and code in ("gap", "not_found", "no_part")):
            # Only a frame behind a refused one may miss it.
            self._writer.check_refused(self._channel, self._message_id, code, self._begun, stamp)
            self.is_refused = True


class BlindWriter(Author):
    """Writes over a socket without offsets, replaces parts with text in transit, and never resends.

    Acknowledged data is stored. If all frames are acknowledged, the message is the fold of the frames, in order.
    """

    label = "careless"

    async def write(self, channel: str) -> None:
        begun = self.world.stored.stamp
        message_id = self.new_id()
        frames, parts = self._script(channel, message_id)
        node = await self.some_node()
        stream = None
        try:
            stream = await self.http.socket(node.process, node.hub, patience_s=RESPONSE_S)
            for ref, frame in enumerate(frames):
                stream.send(json.dumps({**frame, "ref": ref}))
                stream.connection.sent_s = self.world.loop.time()
                self.world.promises.note_request((channel, message_id), stream.connection)
                if self.draw.random() < 0.2:
                    await self.pause(0.0, self.world.plan.token_s)
            for _ in frames:
                if not await self._is_accepted(stream, frames, channel, message_id, begun):
                    return
        except ConnectionLost:
            return
        finally:
            if stream is not None:
                stream.close()
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

    async def _is_accepted(
        self, stream: Stream, frames: list[dict[str, Any]], channel: str, message_id: str, begun: int
    ) -> bool:
        """Take the next response and check it. Return False if its frame was refused, as are all later frames."""
        while True:
            data = await within(SILENCE_S, stream.take)
            frame: dict[str, Any] = json.loads(data.data) if data.data else {"type": "bye"}
            if frame["type"] in ("ok", "error", "bye"):
                break
        if frame["type"] == "bye":
            raise ConnectionLost("the server sent bye")
        sent = frames[frame["ref"]]
        self.world.trace.add(f"{self.name} {sent['type']} {message_id} #{frame['ref']}: {summary(frame)}")
        if frame["type"] == "ok":
            self.world.promises.note_response((channel, message_id), stream.connection)
        if frame["type"] == "error":
            # With several hubs, a read can show that all frames were stored, but not in which order.
            is_unclear = frame["code"] in ("gap", "mismatch") and not self.world.plan.is_exclusive
            if frame["status"] not in (429, 503) and not is_unclear:
                self.check_refused(channel, message_id, frame["code"], begun, data.stamp)
            return False
        stored, stamp, serial = self.world.stored, data.stamp, frame["serial"]
        if sent["type"] == "append":
            check_text(stored, channel, message_id, 0, None, sent["text"], serial, since=begun, stamp=stamp)
        else:
            check_serial(stored, channel, message_id, serial, since=begun, stamp=stamp)
        return True


def grow(parts: list[Part], index: int, text: str) -> None:
    """Append `text` to the part at `index`."""
    key = "input" if parts[index]["type"] == "tool" else "text"
    parts[index] = {**parts[index], key: parts[index][key] + text}
