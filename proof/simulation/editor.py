"""The editor: an actor that changes, deletes, stops and takes over messages of other actors.

Layer: simulation.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from proof.oracle.responses import (
    check_cursor,
    check_deleted,
    check_fresh,
    check_message,
    check_serial,
    is_correct_refusal,
)
from proof.oracle.violation import Violation
from proof.simulation.actors import RETRY_ERRORS, DecodedResponse, asks_by_socket
from proof.simulation.writers import Author
from tenuto.core.errors import Deleted, Fenced, Finished, IdConflict, NotFound, StillStreaming
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, TakeOver
from tenuto.hub.writer import MessageWriter


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
        writer = hub._writers.new(channel, message_id, self.name, None)
        writer.take_up(message, result.generation or 0)
        return writer
