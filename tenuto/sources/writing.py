"""Writes the sources' edits through the public methods of a `MessageWriter`. Layer: sources."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from tenuto.core.errors import InvalidRequest, InvalidText, LocalError
from tenuto.core.model import APPENDABLE, PIPED, Json, Part
from tenuto.core.ops import digest
from tenuto.core.outgoing import content_of, text_of
from tenuto.core.text import SurrogateJoiner
from tenuto.portal import Attempt, Piped, ToolCall, Try, Writer, current_try, has_failed, record_bytes
from tenuto.sources.reading import CALLED, Add, Drop, Edit, Meta, NotKept, Open, Set, Source, UpstreamEnded, malformed

SHORTEST_OVERLAP = 32  # characters of a continuation that must equal the end of the text, to be dropped as an overlap
_CHANGING = ("text", "state", "input", "output")  # fields of a part that its later events may change
HELD_CHARACTERS = 200  # the beginning of a continuation is held back, because an overlap must not be shown
MISSING = 1_000  # streams that a complete message may not know, before its handler is taken for one that never ends


@dataclass
class Streams:
    """What this process knows of the streams of one message, and of the calls of `pipe` for it."""

    reading: dict[Try, Writing] = field(default_factory=dict)  # those that are read, by the block that reads them
    # token usage of earlier ones, added up: a handler pipes several, between tool calls; None: it is in the message
    used: dict[str, int] | None = None
    tries: defaultdict[str, list[Try | None]] = field(default_factory=lambda: defaultdict(list))  # calls, by the step
    running: int = 0  # number of calls that run
    missing: int = 0  # number of those that a complete message does not know
    # the first three fields of the `Record` of the call that runs; None: it is of no turn, or beside another one
    place: tuple[str, int, int] | None = None
    attached: Counter[str] = field(default_factory=Counter)  # number of calls with `attach` in each step
    attaching: set[str] = field(default_factory=set)  # the steps of those that run


_streams: WeakKeyDictionary[Writer, Streams] = WeakKeyDictionary()


def streams_of(writer: Writer) -> Streams:
    """Return what is known of the streams of the message of `writer`."""
    return _streams.setdefault(writer, Streams())


@contextmanager
def reading(writer: Writer, writing: Writing) -> Iterator[None]:
    """Enclose the reading of one stream, or of a response from one stream to the next: a try, which counts waits."""
    block, read = Try(), streams_of(writer).reading
    read[block] = writing
    try:
        with block:
            yield
    finally:
        del read[block]
        if writing.is_attached:
            writer.on_attach(False)


def going_on(writer: Writer, *, is_continued: bool) -> list[bool]:
    """Return for each stream of the message that is read whether the next process could go on with it.

    It waits for a question or sleep, outlives its reader, or is a text whose prefix a continued answer continues.
    """
    return [
        block.waits > 0 or writing.is_attached or (is_continued and writing.can_go_on())
        for block, writing in streams_of(writer).reading.items()
    ]


class Record(NamedTuple):
    """What a message keeps of a stream that has ended. It is found by its step, because a later attempt skips steps."""

    step: str  # a hash of the key of the step that called `pipe`; "": none did
    number: int  # of the call in the step, from 0; calls of tries that have failed do not count
    calls: int  # the same with those
    lengths: dict[int, int]  # of the texts of its parts, by their indexes
    content: str  # a hash of them
    waiting: list[int]  # the indexes of the tool calls that waited for their output
    finish_reason: str | None
    usage: dict[str, int]
    model: str | None


_decoder = msgspec.json.Decoder(list[Record])


def _records(writer: Writer) -> list[Record]:
    """Return what the message keeps of its streams."""
    with suppress(msgspec.DecodeError, TypeError):
        return _decoder.decode(writer.meta.get(PIPED, "[]"))
    return []


def lengths_known(writer: Writer) -> list[int]:
    """Return the lengths of the texts of all parts of streams that have ended."""
    return [length for one in _records(writer) for length in one.lengths.values()]


@contextmanager
def calling(writer: Writer) -> Iterator[None]:
    """Enclose one call of `pipe`, so that it has a place: its step, and its number among the calls in that step.

    A later attempt repeats the calls in the same order, and finds by the place the record that this one stores. A call
    beside another one has no place, since their order may change.
    """
    calls, key = streams_of(writer), writer.open_step()
    step = digest([key]).hex()[:16] if key else ""  # a hash: viewers see it, but the key may be a secret of a service
    tries = calls.tries[step]
    number = sum(one is None or not one.has_failed for one in tries)
    calls.place = (step, number, len(tries)) if writer.is_answer and not calls.running else None
    tries.append(current_try.get())
    calls.running += 1
    try:
        yield
    finally:
        calls.running -= 1


def record_of(writer: Writer) -> Record | None:
    """Return what an earlier attempt has stored of the stream of the call that runs.

    The call had the same place: its step, its number in it, and that number with failed tries. A try that failed then
    need not fail again, so in a complete message one of both numbers is enough.
    """
    if (place := streams_of(writer).place) is None:
        return None
    step, number, before = place
    records = [one for one in _records(writer) if one.step == step]
    found = [one for one in records if (one.number, one.calls) == (number, before)]
    if not found and writer.had_ended:
        found = [one for one in records if one.number == number] or [one for one in records if one.calls == before]
    return found[0] if found else None


def not_kept(writer: Writer) -> NotKept | asyncio.CancelledError:
    """Return the error for a stream that a complete message does not know: after `MISSING` one that ends the turn."""
    streams = streams_of(writer)
    streams.missing += 1  # limited: a handler may try for ever, and people have the whole answer
    detail = f"message {writer.id!r} is complete without this stream, as one that broke off; call pipe in turn.step"
    return NotKept(detail) if streams.missing <= MISSING else asyncio.CancelledError(detail)


@dataclass(slots=True)
class _Slot:
    """A part that this stream has opened."""

    index: int
    part: Part
    pieces: list[str] = field(default_factory=list)
    left: Part | None = None  # the part as the message holds it, while the stream repeats what led to it
    length: int = 0  # characters of the text of `left` that were repeated

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def unrepeated(self) -> str:
        """Return the rest of the text of `left`."""
        return text_of(self.left)[self.length :] if self.left is not None else ""

    def repeats(self, fields: dict[str, Json]) -> bool:
        """Return whether the message holds `fields` already, or what followed the call."""
        left = self.left or {}
        is_called = fields.get("state") == CALLED and ("output" in left or "approval" in left)
        return is_called or (self.left is not None and all(left.get(name) == value for name, value in fields.items()))

    def value(self) -> Part:
        """Return the part with its text, as the message holds it."""
        return self.left if self.left is not None else self.now()

    def now(self) -> Part:
        """Return the part with its text, as the stream has brought it."""
        name = APPENDABLE.get(self.part["type"])
        return {**self.part, name: self.text} if name else self.part


@dataclass(frozen=True, slots=True)
class Kept:
    """A text that broke off, and that a stream continues: the last one of `parts`, which have their indexes."""

    parts: list[tuple[int, Part]]
    is_exact: bool = False  # True: the model goes on at the last character, and repeats nothing, or the whole text
    length: int | None = None  # of the text, where an earlier process has begun to continue it; None: nothing follows

    @property
    def index(self) -> int:
        """Return the index of its part."""
        return self.parts[-1][0]

    @property
    def part(self) -> Part:
        """Return its part."""
        return self.parts[-1][1]

    @property
    def text(self) -> str:
        """Return the text so far."""
        return str(self.part["text"][: self.length])

    @property
    def is_continued(self) -> bool:
        """Return whether the message holds a part of the continuation."""
        return len(self.part["text"]) > len(self.text)


class Join:
    """The beginning of a continuation, held back until it is known which of it repeats the text that is there."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._pieces: list[str] = []
        self._bare = 0  # number of characters in them, without white space at their beginning
        # where the text has them; -1: nowhere
        self._at = len(kept.text) - len(kept.text.lstrip()) if kept.is_exact else 0

    @property
    def held(self) -> str:
        return "".join(self._pieces)

    def take(self, new: str) -> str | None:
        """Take a further piece; return the text to add once it is known, and None until then."""
        self._pieces.append(new)
        bare, text = new if self._bare else new.lstrip(), self._kept.text
        # an overlap may be longer than `held`; only the new piece is compared, since a repetition may be long
        if self._at >= 0 and not text.startswith(bare, self._at + self._bare):
            self._at = -1 if self._kept.is_exact else text.find(self.held.lstrip(), self._at)
        self._bare += len(bare)
        is_short = not self._kept.is_exact and self._bare < HELD_CHARACTERS and len(self.held) < HELD_CHARACTERS
        return None if is_short or self._at >= 0 else self.end()

    def end(self, *, is_broken: bool = False) -> str | None:
        """Return the text to add: what was held back, without the overlap.

        Of a continuation that broke off, the result is None if it is so far only a repetition. One that only begins as
        the whole text does is new: a verse or a table has the beginning of another one.
        """
        text, held, is_exact = self._kept.text, self.held, self._kept.is_exact
        start, bare = text.lstrip(), held.lstrip()  # a model may put white space before what it repeats
        if is_broken and bare in text:
            return None
        overlap = len(start) * bare.startswith(start) if is_exact else _overlap(text, bare)
        # where what follows the white space is too short to be sure, both may repeat the text
        return bare[overlap:] if overlap else held[0 if is_exact else _overlap(text, held) :]


def _overlap(text: str, held: str) -> int:
    """Return the length of the longest end of `text` with which `held` begins; 0 if it is short."""
    if len(held) < SHORTEST_OVERLAP:
        return 0
    start = text.find(held[:SHORTEST_OVERLAP], max(0, len(text) - len(held)))
    while start >= 0 and not held.startswith(text[start:]):
        start = text.find(held[:SHORTEST_OVERLAP], start + 1)
    return len(text) - start if start >= 0 else 0


class Differs(UpstreamEnded):
    """The response that continues a text differs from what the message holds of it."""


class Writing:
    """The writing of one stream into one message, and the stream's summary so far."""

    def __init__(self, writer: Writer, attempt: Attempt, kept: Kept | None = None) -> None:
        """Write into `writer`, from the end of the text `kept` on, within `attempt`, which can supersede that text."""
        self.response_id: str | None = None
        self.is_attached = False  # True: the model's response goes on without its reader
        self.may_be_empty = True  # False: an earlier try has shown that the app wraps the stream of an SDK
        # returns whether another process could continue the text by its prefix
        self.can_go_on: Callable[[], bool] = lambda: False
        self.attempt = attempt
        self._writer = writer
        self.rested_s = writer.rested_s
        self._model: str | None = None
        self._finish_reason: str | None = None
        self._usage: dict[Hashable, dict[str, int]] = {}
        self.usage_before: dict[str, int] | None = None  # that of the earlier streams; None: the message has it
        self.place: int | str | None = None  # that of the last event; None: unknown, so a stream begins at the first
        self.written_before = frozenset[int | str | None]()  # places of the events that came before this stream
        # stores the id of a response to attach to, and what it continues
        self.note_response: Callable[[str, Kept | None], Awaitable[None]] | None = None
        self.replay([], kept, notes_join=False)

    def move(self, place: int | str | None) -> None:
        """Keep the place of the event that was written."""
        self.place = place
        if place is not None:
            self._passed.add(place)

    def go_on(self) -> None:
        """Expect the rest of the response, behind the last event; all of it if its place is unknown."""
        if self.place is None:
            self.rewind()
        self.written_before = frozenset(self._passed)

    def replay(self, left: list[tuple[int, Part]], kept: Kept | None, *, notes_join: bool) -> None:
        """Expect the response from its beginning: what `kept`, and then `left`, hold of it is not written again."""
        self.kept = kept
        self._join = Join(kept) if kept is not None else None  # None: no continuation, or its beginning is written
        self._join_key: Hashable = None  # key of the part that continues the kept text; None: it has not begun
        self.source: Source | None = None  # translates the events of the response
        self._left = deque(left)  # parts of it that the message holds, with their indexes, until they are repeated
        self._notes_join = notes_join  # True: the part of the first new text notes where it joins the one that was left
        self._slots: dict[Hashable, _Slot] = {}  # parts of the stream, by the keys of its source
        self._unopened: list[Open] = []  # parts that wait for their first text
        self._halves: defaultdict[Hashable, SurrogateJoiner] = defaultdict(SurrogateJoiner)  # half characters
        self._passed = set[int | str]()  # places of all events so far

    def rewind(self) -> None:
        """Expect the response from its beginning."""
        parts, kept = self._parts(), self.kept
        if kept is not None:
            (index, part), *parts = parts  # the first is the kept text, with what this stream has added to it
            kept = replace(kept, parts=[*kept.parts[:-1], (index, part)], length=len(kept.text))
        self.replay(parts, kept, notes_join=self._notes_join)

    async def write(self, edit: Edit) -> None:
        """Write one edit. Raises the writer's errors; UpstreamError for a part that the writer refuses as invalid."""
        try:
            match edit:
                case Add():
                    await self._text(edit.key, self._halves[edit.key].write(edit.text), edit.kind)
                case Open() if self._is_joined_by(edit.key, edit.part["type"]):
                    self._join_key = edit.key
                case Open() if len(edit.part) == 1 and not (self._left or self._join) and has_failed(self._writer):
                    self._unopened.append(edit)  # without text yet, it would take that of the failed try from view
                case Open():
                    await self._open_rest()
                    await self._open(edit.key, edit.part)
                case Set():
                    await self._change(edit.key, edit.fields)
                case Drop():
                    await self._drop(edit.key)
                case Meta():
                    await self._take_meta(edit)
        except (InvalidRequest, InvalidText) as error:
            raise malformed(f"a part is not valid ({error.code})") from error

    async def write_meta(self, *, has_ended: bool = False) -> None:
        """Write the known model, finish reason and usage to the message's meta, with a record of an ended stream."""
        if self.usage_before is None:
            self.usage_before = used(self._writer)
        both = _summed([self.usage_before, self._total()])
        known: dict[str, Json] = {"model": self._model, "finish_reason": self._finish_reason, "usage": both or None}
        meta = {name: value for name, value in known.items() if value is not None}
        if has_ended:
            meta.update(self._recorded())
        if meta:
            await self._writer.update(meta=meta)
        streams_of(self._writer).used = both

    def _recorded(self) -> dict[str, Json]:
        """Return the `meta` with the record of this stream, if a later attempt could find it."""
        if (place := streams_of(self._writer).place) is None:
            return {}
        piped, parts = self.piped(), {int(index): part for index, part in self.written()}
        lengths = {index: len(text_of(part)) for index, part in parts.items()}
        waiting = [int(call.part) for call in piped.tool_calls]
        content, usage, model = content_of(parts.values()), piped.usage, piped.model
        record = Record(*place, lengths, content, waiting, piped.finish_reason, usage, model)
        # those of later calls are dropped: they followed from what this call returned in an earlier attempt
        earlier = [one for one in _records(self._writer) if one.step != record.step or one.number < record.number]
        kept = msgspec.json.encode([*earlier, record]).decode()  # as one value it costs the least
        return {PIPED: kept} if len(msgspec.json.encode(kept)) <= record_bytes(self._writer) else {}

    def piped(self) -> Piped:
        """Return the summary of the stream so far."""
        text = "".join(part["text"] for _, part in self.written() if part["type"] == "text")
        calls = [
            ToolCall(slot.part["call"], slot.part["name"], slot.text, slot.index)
            for slot in self._slots.values()
            if slot.part["type"] == "tool" and slot.part.get("state") == CALLED
        ]
        return Piped(text, self._finish_reason, self._total(), calls, self._model)

    @property
    def has_content(self) -> bool:
        """Return whether the stream has written anything."""
        return bool(self._slots or self._left) or (self.kept is not None and self.kept.is_continued)

    def _parts(self) -> list[tuple[int, Part]]:
        """Return the parts that this stream has written or continues, in order, with the indexes that they had."""
        slots, kept = dict(self._slots), self.kept
        joined = slots.pop(self._join_key, None) if kept is not None else None
        begun = [(kept.index, joined.value() if joined is not None else kept.part)] if kept is not None else []
        return [*begun, *((slot.index, slot.value()) for slot in slots.values()), *self._left]

    def written(self) -> list[tuple[int, Part]]:
        """Return the parts that this stream has written or continued, in order, with their indexes."""
        return [*(self.kept.parts[:-1] if self.kept is not None else ()), *self._parts()]

    async def end(self, *, is_broken: bool = False) -> None:
        """Write the text that was held back; of a stream that broke off, not what may repeat the text before it."""
        if self._join is not None and self._join.held:
            await self._add_joined(self._join.end(is_broken=is_broken))

    async def complete(self) -> None:
        """Write what the whole stream leaves to write. If the message holds more than it brought, begin anew."""
        await self.end()
        await self._open_rest()
        for key in self._slots:
            await self._text(key, self._halves[key].end())
        if self._left or any(slot.unrepeated for slot in self._slots.values()):
            await self._begin_anew()

    def _is_joined_by(self, key: Hashable, kind: str) -> bool:
        """Return whether the text of part `key` continues the kept text: the first text part does."""
        return self._join is not None and kind == "text" and self._join_key in (None, key)

    async def _add_joined(self, text: str | None) -> None:
        """Add the part of a continuation that is new; None: it is not known yet."""
        kept, key = self.kept, self._join_key
        if text is None or kept is None:
            return
        self._join = None
        left, length, joins = kept.part, len(kept.text), kept.part.get("joins", [])
        slot = _Slot(kept.index, {"type": "text", "joins": joins}, [kept.text], left, length=length)
        if not kept.is_continued:  # else the continuation first repeats what an earlier process has written of it
            slot.left, slot.part = None, {"type": "text", "joins": [*joins, length]}
            await self._writer.part({**left, **slot.part}, index=kept.index)
        self._slots[key] = slot
        await self._text(key, text)

    async def _text(self, key: Hashable, text: str, kind: str = "text") -> None:
        """Write whole characters: to the kept text that they continue, else to their part; of a repeat only the rest.

        Half a character is written with its other half, so that no text breaks off within one.
        """
        if not text:
            return
        if self._join is not None and key not in self._slots and self._is_joined_by(key, kind):
            self._join_key = key
            await self._add_joined(self._join.take(text))
            return
        slot = self._slots.get(key)
        if slot is None:
            await self._open_rest()
            slot = await self._open(key, {"type": kind})
        slot.pieces.append(text)
        if slot.left is None:
            await self._writer.append(text, part=slot.index)
        else:
            await self._repeat(slot, slot.left, text)

    async def _repeat(self, slot: _Slot, left: Part, text: str) -> None:
        """Write what `text` adds to the part that the message holds. If it differs from that, begin anew."""
        same = text_of(left)[slot.length : slot.length + len(text)]
        if not text.startswith(same):
            await self._begin_anew()  # with the whole text
            return
        slot.length += len(same)
        if text == same:
            return
        slot.left = None
        if self._notes_join and left["type"] == "text" and slot.length:
            slot.part = {**slot.part, "joins": [*left.get("joins", []), slot.length]}
            await self._writer.part({**left, **slot.part}, index=slot.index)
        self._notes_join = False
        await self._writer.append(text[len(same) :], part=slot.index)

    async def _begin_anew(self) -> None:
        """Supersede what the message holds by what the stream has brought so far. Raises Differs for a continuation."""
        if self.kept is not None:
            raise Differs("the model's response differs from the text that it has continued")
        self.attempt.supersede()
        self._left.clear()
        for slot in self._slots.values():
            slot.left = None
            slot.index = await self._writer.part(slot.value())

    async def _open_rest(self) -> None:
        while self._unopened:
            first = self._unopened.pop(0)
            await self._open(first.key, first.part)

    async def _open(self, key: Hashable, part: Part) -> _Slot:
        """Return the slot of part `key`: open the part, or take up the next one that the message holds."""
        slot = self._slots.get(key)
        if slot is None:  # else it was opened before
            await self.end()  # what is held back stands before the new part
            left = self._left[0][1] if self._left else None
            if left and any(left.get(name) != value for name, value in part.items() if name not in _CHANGING):
                await self._begin_anew()  # the message holds another part here
                left = None
            index = await self._writer.part(part) if left is None else self._left.popleft()[0]
            slot = self._slots[key] = _Slot(index, part, left=left)
            if isinstance(given := part.get("input"), str):
                slot.pieces.append(given)
                slot.length = len(given)
        return slot

    async def _change(self, key: Hashable, fields: dict[str, Json]) -> None:
        """Write changed fields of a part, unless the message holds them. If it holds more text as well, begin anew."""
        await self._open_rest()
        slot = self._slots.get(key)
        if slot is None:
            if "type" in fields:
                await self._open(key, fields)
            return
        changed = {**slot.part, **fields}
        if changed != slot.part:
            slot.part = changed
            if slot.unrepeated:
                await self._begin_anew()
            elif not slot.repeats(fields):
                slot.left = None
                await self._writer.part(slot.now(), index=slot.index)

    async def _drop(self, key: Hashable) -> None:
        await self._open_rest()
        slot = self._slots.pop(key, None)
        self._halves.pop(key, None)
        if slot is not None:
            await self._writer.part({"type": "text", "text": ""}, index=slot.index)

    async def _take_meta(self, meta: Meta) -> None:
        """Note the facts of the stream; the message keeps the id of a new response before its first text."""
        self._model = meta.model or self._model
        if self.note_response is not None and meta.response_id not in (None, self.response_id):
            if self.response_id is not None:
                raise LocalError("attach needs the stream of one response; this one has several")
            await self.note_response(meta.response_id, self.kept)  # before the first text of the response
        self.response_id = meta.response_id or self.response_id
        self._finish_reason = meta.finish_reason or self._finish_reason
        if meta.usage:
            self._usage[meta.of] = {**self._usage.get(meta.of, {}), **meta.usage}

    def _total(self) -> dict[str, int]:
        return _summed(list(self._usage.values()))


def _summed(usages: list[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for usage in usages:
        total.update(usage)
    return dict(total)


def used(writer: Writer) -> dict[str, int]:
    """Return the token usage of the streams that were written into the message."""
    if (known := streams_of(writer).used) is not None:
        return known
    usage = writer.meta.get("usage")  # by an earlier process, or by the app
    return {name: count for name, count in usage.items() if type(count) is int} if isinstance(usage, dict) else {}
