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
                grow(parts, texts[-1], text)
                await message.append(text)
            elif kind == "into":
                index = draw.choice(growing)
                grow(parts, index, text)
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
            raise _OnPurpose


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
