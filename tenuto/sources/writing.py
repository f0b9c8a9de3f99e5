"""Writes the sources' edits through the public methods of a `MessageWriter`.

Layer: sources.

`Piped` and `ToolCall` are public.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

from tenuto.core.errors import InvalidRequest, InvalidText, TenutoError
from tenuto.core.model import Json, Part
from tenuto.sources.reading import CALLED, Add, Drop, Edit, Meta, Open, Set, malformed, whole

logger = logging.getLogger("tenuto.agents")


class Writer(Protocol):
    """A message that is being written; `MessageWriter` has these methods."""

    cancelled_as: tuple[str, str | None]
    # returns another id if the id of the message is taken; None: the writer raises the error
    spare_id: Callable[[], str] | None

    @property
    def id(self) -> str: ...

    @property
    def meta(self) -> dict[str, Json]: ...

    @property
    def is_begun(self) -> bool: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def length(self) -> int: ...

    async def append(self, text: str, *, part: int | None = None) -> None: ...

    async def part(self, part: Part, *, index: int | None = None) -> int: ...

    async def update(self, *, meta: dict[str, Json]) -> None: ...

    async def flush(self) -> None: ...

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None: ...

    async def pipe(self, stream: object, *, source: str | None = None, text_field: str | None = None) -> Any: ...

    def attempt(self) -> AbstractAsyncContextManager[None]: ...

    def begin_again(self, meta: dict[str, Json], *, supersedes: bool) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


# Token usage of the earlier streams of each message: a handler that continues after tool calls pipes several streams
# into one message, and their usage is added up.
_used: WeakKeyDictionary[Writer, dict[str, int]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that waits for the handler, which writes the output with `message.part({...}, index=call.part)`."""

    call: str
    name: str
    input: str
    part: int  # index of the tool part in the message

    @property
    def arguments(self) -> Json:
        """Return the input, decoded from JSON; an empty input is an empty object.

        Raises ValueError if it is invalid.
        """
        return json.loads(self.input) if self.input.strip() else {}


@dataclass(frozen=True, slots=True)
class Piped:
    """The summary of a stream. `tool_calls` are the calls that wait for their output."""

    text: str
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)
    model: str | None = None


Piping = Coroutine[Any, Any, Piped]


@dataclass(slots=True)
class _Slot:
    """A part that this stream has opened."""

    index: int
    part: Part
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return whole("".join(self.pieces))

    def now(self) -> Part:
        return {**self.part, "input": self.text} if self.part["type"] == "tool" else self.part


class Writing:
    """The writing of one stream into one message, and the stream's summary so far."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._slots: dict[Hashable, _Slot] = {}
        self._model: str | None = None
        self._finish_reason: str | None = None
        self._usage: dict[Hashable, dict[str, int]] = {}

    async def write(self, edit: Edit) -> None:
        """Write one edit. Raises the writer's errors; UpstreamError for a part that the writer refuses as invalid."""
        try:
            match edit:
                case Add():
                    await self._text(edit)
                case Open():
                    await self._open(edit.key, edit.part)
                case Set():
                    await self._change(edit.key, edit.fields)
                case Drop():
                    await self._drop(edit.key)
                case Meta():
                    self._keep(edit)
        except (InvalidRequest, InvalidText) as error:
            raise malformed(f"a part is not valid ({error.code})") from error

    async def write_meta(self) -> None:
        """Write the known model, finish reason and usage to the message's meta."""
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

    async def write_meta_after_error(self) -> None:
        """Write the known meta after a failed stream; a message that has ended stays as it is."""
        try:
            await self.write_meta()
        except TenutoError as error:
            logger.debug("usage of message %r could not be stored: %s", self._writer.id, error.code)

    def piped(self) -> Piped:
        """Return the summary of the stream so far."""
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

    async def _text(self, edit: Add) -> None:
        slot = self._slots.get(edit.key)
        if not edit.text:
            return
        if slot is None:
            slot = await self._open(edit.key, {"type": edit.kind})
        slot.pieces.append(edit.text)
        await self._writer.append(edit.text, part=slot.index)

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

    def _keep(self, meta: Meta) -> None:
        self._model = meta.model or self._model
        self._finish_reason = meta.finish_reason or self._finish_reason
        if meta.usage:
            self._usage[meta.of] = {**self._usage.get(meta.of, {}), **meta.usage}

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
