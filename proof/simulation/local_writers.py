"""Local writers: actors that write messages in the hub's process, with the Python API.

Layer: simulation.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proof.oracle.violation import Violation
from proof.simulation.actors import RETRY_ERRORS, STUCK_S
from proof.simulation.writers import Author, grow
from tenuto.core.errors import Busy, Deleted, Fenced, Finished, IdConflict, NotFound, StoreUnavailable
from tenuto.core.model import Part
from tenuto.hub.hub import HubCore
from tenuto.hub.writer import MessageWriter

if TYPE_CHECKING:
    from proof.simulation.node import Node


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
                texts = [index for index in known if parts[index]["type"] == "text" and index >= tries.text_from]
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
        self._attempt = message.attempt()
        self._since: int | None = None
        self._failed_from: int | None = None
        self._parts = parts

    @property
    def count(self) -> int:
        """Return the number of parts that may be written."""
        return len(self._parts) if self._failed_from is None else self._failed_from

    async def begin(self) -> None:
        """Begin an attempt; the one before has succeeded."""
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

    async def run(self) -> None:
        await super().run()
        await self.world.until_healthy()
        await self.write(self.draw.choice(self.world.channels))

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        parts.append({"type": "text", "text": ""})
        for count in range(150):
            text = self.piece(message.id, count)
            grow(parts, 0, text)
            await message.append(text)
            await asyncio.sleep(0.03)


class LongWriter(LocalWriter):
    """Writes one message in the hub of a given node, for longer than the lease of a node."""

    label = "long"

    async def write_in(self, node: Node, channel: str) -> None:
        await node.inside(self._write_message(node.hub, channel))

    async def _write_to(self, message: MessageWriter, parts: list[Part], begun: int) -> None:
        parts.append({"type": "text", "text": ""})
        for count in range(60):
            text = self.piece(message.id, count)
            grow(parts, 0, text)
            await message.append(text)
            await asyncio.sleep(0.3)


class _OnPurpose(Exception):
    pass
