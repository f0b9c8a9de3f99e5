"""The one loop's hand: writes what sources say through the public methods of a `MessageWriter`.

Layer: agents.sources.

`Piped` and `ToolCall` are public.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from holdfast.agents.backend import Writer
from holdfast.agents.sources.errors import malformed
from holdfast.agents.sources.reading import whole
from holdfast.agents.sources.vocabulary import CALLED, Change, Drop, Meta, Open, Said, Text
from holdfast.core.errors import HoldfastError, InvalidRequest, InvalidText
from holdfast.core.model import Json, Part

logger = logging.getLogger("holdfast.agents")

# What earlier streams of one message used: a handler that goes on with tools pipes several into one.
_used: WeakKeyDictionary[Writer, dict[str, int]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that waits for the handler: answer it with `message.part({...}, index=call.part)`."""

    call: str
    name: str
    input: str
    part: int  # its index in the message

    @property
    def arguments(self) -> Json:
        """The input as JSON; raises ValueError when the model wrote none. An empty input is an empty object."""
        return json.loads(self.input) if self.input.strip() else {}


@dataclass(frozen=True, slots=True)
class Piped:
    """What a stream came to. `tool_calls` are those that nobody has answered yet."""

    text: str
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)
    model: str | None = None


@dataclass(slots=True)
class _Slot:
    """A part that this stream opened."""

    index: int
    part: Part
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return whole("".join(self.pieces))

    def now(self) -> Part:
        return {**self.part, "input": self.text} if self.part["type"] == "tool" else self.part


class Writing:
    """Writes one stream into one message, and knows what it came to."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._slots: dict[Hashable, _Slot] = {}
        self._model: str | None = None
        self._finish_reason: str | None = None
        self._usage: dict[Hashable, dict[str, int]] = {}

    async def write(self, said: Said) -> None:
        """Raises what the writer raises, and UpstreamError for what it refuses as no part at all."""
        try:
            match said:
                case Text():
                    await self._text(said)
                case Open():
                    await self._open(said.key, said.part)
                case Change():
                    await self._change(said.key, said.fields)
                case Drop():
                    await self._drop(said.key)
                case Meta():
                    self._keep(said)
        except (InvalidRequest, InvalidText) as error:
            raise malformed("a part that is none") from error

    async def write_meta(self) -> None:
        """Tell the message what is known: the model, why it ended, what was used."""
        usage = self._total()
        before = _used.get(self._writer)
        if before is None:
            before = _numbers(self._writer.meta.get("usage"))
        both = _added([before, usage])
        known: dict[str, Json] = {"model": self._model, "finish_reason": self._finish_reason, "usage": both or None}
        meta = {name: value for name, value in known.items() if value is not None}
        if meta:
            await self._writer.update(meta=meta)
        _used[self._writer] = both

    async def leave(self) -> None:
        """Tell what is known although the stream did not end well; a message that has ended is left as it is."""
        try:
            await self.write_meta()
        except HoldfastError as error:
            logger.debug("what message %r used could not be told: %s", self._writer.id, error.code)

    def piped(self) -> Piped:
        slots = self._slots.values()
        return Piped(
            text="".join(slot.text for slot in slots if slot.part["type"] == "text"),
            finish_reason=self._finish_reason,
            usage=self._total(),
            tool_calls=[
                ToolCall(slot.part["call"], slot.part["name"], slot.text, slot.index)
                for slot in slots
                if slot.part["type"] == "tool" and slot.part.get("state") == CALLED
            ],
            model=self._model,
        )

    async def _text(self, said: Text) -> None:
        slot = self._slots.get(said.key)
        if not said.text:
            return
        if slot is None:
            slot = await self._open(said.key, {"type": said.kind})
        slot.pieces.append(said.text)
        await self._writer.append(said.text, part=slot.index)

    async def _open(self, key: Hashable, part: Part) -> _Slot:
        slot = self._slots.get(key)
        if slot is None:
            index = await self._writer.part(part)
            slot = self._slots[key] = _Slot(index, part)
            if isinstance(given := part.get("input"), str):
                slot.pieces.append(given)
        return slot

    async def _change(self, key: Hashable, fields: dict[str, Json]) -> None:
        slot = self._slots.get(key)
        if slot is None:
            if "type" in fields:
                await self._open(key, fields)
            return
        changed = {**slot.part, **{name: value for name, value in fields.items() if name != "input"}}
        if changed != slot.part:
            slot.part = changed
            await self._writer.part(slot.now(), index=slot.index)

    async def _drop(self, key: Hashable) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            await self._writer.part({"type": "text", "text": ""}, index=slot.index)

    def _keep(self, said: Meta) -> None:
        self._model = said.model or self._model
        self._finish_reason = said.finish_reason or self._finish_reason
        if said.usage:
            self._usage[said.of] = {**self._usage.get(said.of, {}), **said.usage}

    def _total(self) -> dict[str, int]:
        return _added(list(self._usage.values()))


def _added(usages: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for usage in usages:
        for name, value in usage.items():
            total[name] = total.get(name, 0) + value
    return total


def _numbers(value: Json) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {name: number for name, number in value.items() if type(number) is int}
