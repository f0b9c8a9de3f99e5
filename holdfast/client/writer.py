"""A message being written over the network: `async with client.message("chat:1") as message`.

Layer: client.

The twin of the hub's `MessageWriter`: text is accepted at once, and kept until the end of the
message is stored. Three things make that safe:

- a few requests fly at once, each naming its place (`at`) or itself (`request`), so sending one again is harmless;
  what could go wrong by that waits for the ones before it (`_Op.must_wait_for`);
- after a refusal that may pass, all that flies is waited for, and what was refused is sent again, in order;
- on every new socket, and whenever the server knows less than it should, the message is created again, which changes
  nothing and tells how it stands. Only then what was not answered is sent again; and in another life of the log (an
  epoch whose history was lost) what is missing is written anew from what is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from holdfast.client.link import Link, Result
from holdfast.client.problems import Unreachable, read_answer
from holdfast.core.cursor import parse_cursor
from holdfast.core.errors import (
    Deleted,
    Fenced,
    Finished,
    Gap,
    HoldfastError,
    IdConflict,
    InvalidRequest,
    LocalError,
    Mismatch,
    NoPart,
    NotFound,
    NotText,
    NotWriter,
    public_reason,
)
from holdfast.core.events import Page
from holdfast.core.model import APPENDABLE, Json, Message, Part, check_json, check_part, plain
from holdfast.core.state import utf8_len
from holdfast.core.surrogates import SurrogateJoiner
from holdfast.core.text import Text

if TYPE_CHECKING:
    from holdfast.agents.sources import Piped

logger = logging.getLogger("holdfast.client")

# In flight at once. A message remembers its last 16 requests by their ids, so not more than those.
FLYING = 8
SHORTEST_LEASE_S = 5.0
RENEWALS = 3  # in a lease's term
REFILLS = 3  # without anything stored in between; then it is somebody's bug
FRAME_BYTES = 1024  # of a frame, besides the part in it
ENDS = ("complete", "cancelled", "failed")

# The server knows less of the message than it has acknowledged, or other things.
_LOST = (Gap, Mismatch, NoPart, NotFound)
# There is nothing more to say about the message.
_OVER = (Finished, Fenced, Deleted, NotFound, NotWriter, LocalError)


class Created(Struct, frozen=True, kw_only=True):
    """The answer to a create."""

    message: Message
    serial: int
    generation: int
    cursor: str


class TakenOver(Struct, frozen=True, kw_only=True):
    """The answer to a takeover."""

    generation: int


class _Part:
    """A part as it will be when everything accepted is stored."""

    __slots__ = ("fields", "is_open", "key", "queued", "surrogates", "text")

    def __init__(self, part: Part, *, is_open: bool = True) -> None:
        self.key = APPENDABLE.get(part["type"], "")
        self.fields = part
        self.text = Text(part.get(self.key, "") if self.key else "")
        self.queued = self.text.length  # code points that are stored or in a request
        self.surrogates = SurrogateJoiner()
        self.is_open = is_open  # or does it open with its first text?

    def value(self, length: int) -> Part:
        """The part with the first `length` code points of its text."""
        return {**self.fields, self.key: self.text.slice(0, length)} if self.key else self.fields


class _Op(Struct, eq=False):
    """A request about the message."""

    kind: str
    fields: dict[str, Any]
    size: int = 0
    part: int | None = None
    is_replacing: bool = False

    def must_wait_for(self, other: _Op) -> bool:
        """Could this one go wrong, or be undone, if `other` were refused for now and sent again after it?"""
        if self.kind == "finish":
            return True
        if self.kind == "update":
            return other.kind == "update"
        return self.part == other.part and (self.is_replacing or other.is_replacing)


class RemoteWriter:
    """Writes one streaming message. Made by `Client.message` and `Client.take_over`; used by one task at a time."""

    def __init__(
        self,
        link: Link,
        channel: str,
        message_id: str,
        *,
        lease_s: float,
        create: dict[str, Any] | None,
        read: Callable[[], Awaitable[tuple[Message, str]]],
    ) -> None:
        self.channel = channel
        self.id = message_id
        self.meta: dict[str, Json] = {}
        self.generation = 1
        self.error: HoldfastError | None = None  # what was refused: the next call raises it
        self.cancelled_as: tuple[str, str | None] = ("cancelled", None)  # status and reason, when the task is cancelled
        self.spare_id: Callable[[], str] | None = None  # makes another id where something else stands under ours
        self._link = link
        self._create = create  # the fields to create it with; None: it is taken over
        self._read = read  # the message as it stands, where it is taken over
        self._lease_s = lease_s
        self._has_leases = True
        self._created = 0
        self._epoch = ""
        self._parts: list[_Part] = []
        self._text_part: int | None = None  # an append without a part goes there
        self._growing: int | None = None  # the part with text that is in no request yet
        self._queue: deque[_Op] = deque()  # accepted and not in flight
        self._flying: list[_Op] = []
        self._again: list[_Op] = []  # refused for now; before all that is queued
        self._unstored_bytes = 0
        self._trouble: HoldfastError | None = None  # nothing is sent until it is over
        self._failures = 0
        self._refills = 0
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._sent_at_s = 0.0
        self._stored_at_s = 0.0
        self._moved = asyncio.Event()
        self._nonce = f"{link.random.getrandbits(40):010x}"
        self._requests = 0
        self._is_open = False
        self._is_ending = False  # nothing more is accepted
        self._is_finished = False  # and stored

    # -- public ------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Has it ended, or been refused?"""
        return self._is_ending or self.error is not None

    @property
    def is_begun(self) -> bool:
        """Is its beginning stored?"""
        return self._is_open

    @property
    def length(self) -> int:
        """Code points accepted in the text part that `append` goes to; 0 while there is none."""
        return 0 if self._text_part is None else self._parts[self._text_part].text.length

    @property
    def text(self) -> str:
        """The text of all text parts, as accepted."""
        return "".join(str(part.text) for part in self._parts if part.fields["type"] == "text")

    async def append(self, text: str, *, part: int | None = None) -> None:
        """Add text to the message's last text part, or to part `part`; a first text part opens by itself.

        Returns when the text is accepted: at once, but for a writer that is ahead of the server by more than
        `Limits.writer_bytes`. Raises what an earlier append met: Finished (somebody stopped the message), Fenced,
        Deleted, TooLarge …; Unreachable when nothing was stored for the client's `timeout_s`, and then what was
        accepted is kept all the same; LocalError after the end. Half a surrogate pair at the end of `text` is held
        back and joined to the next piece.
        """
        self._check_open()
        if not isinstance(text, str):
            raise InvalidRequest(f"text is a str, this is {type(text).__name__}")
        if not text:
            return
        index = self._part_for_text(part)
        whole = self._parts[index].surrogates.write(text)
        for start in range(0, len(whole), self._piece):
            self._accept(index, whole[start : start + self._piece])
            await self._not_too_far_ahead()

    async def part(self, part: Part, *, index: int | None = None) -> int:
        """Open a part (without `index`) or replace one; returns its index. Accepted as `append` is."""
        self._check_open()
        limits = self._link.limits
        part = check_part(part, limits)
        size = check_json(part, limits.request_bytes - FRAME_BYTES, "a part", depth=limits.depth)
        self._open_what_is_held()
        place = len(self._parts) if index is None else index
        if not 0 <= place <= len(self._parts):
            raise LocalError(f"message {self.id!r} has {len(self._parts)} parts; that is the next index")
        self._gather()
        is_replacing = place < len(self._parts)
        self._parts[place : place + 1] = [_Part(part)]
        self._find_text_part()
        self._put_part(place, part, size, is_replacing=is_replacing)
        self._pump()
        await self._not_too_far_ahead()
        return place

    async def pipe(self, stream: object, *, source: str | None = None, text_field: str | None = None) -> Piped:
        """Write all of a model's stream into this message; see `holdfast.agents.sources.pipe`."""
        from holdfast.agents.sources import pipe  # who only watches needs no sources

        return await pipe(self, stream, source=source, text_field=text_field)

    async def update(self, *, meta: dict[str, Json]) -> None:
        """Merge `meta` into the message's meta; None removes a key. Accepted as `append` is."""
        self._check_open()
        size = check_json(meta, self._link.limits.meta_bytes, "meta", depth=self._link.limits.depth)
        meta = plain(meta)
        self._merge(meta)
        self._gather()
        self._put_update(meta, size)
        self._pump()
        await self._not_too_far_ahead()

    async def flush(self) -> None:
        """Wait until all that was accepted is stored. Raises as `append`."""
        self._raise_error()
        await self._until(lambda: not self._is_behind)

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None:
        """End the message (`complete`, `cancelled` or `failed`) and wait until all of it is stored."""
        self._check_open()
        self._begin_end(status, reason=reason, meta=meta or {})
        await self._until(lambda: self._is_finished)

    async def open(self) -> Self:
        """Store the message's beginning, so that its `id` can be told before the block is entered, which does it too.

        A message that is opened must be entered. Raises IdConflict when something stands under its id already; of a
        takeover Finished, StillStreaming, NotFound.
        """
        while not self._is_open:
            try:
                await self._open()
            except (IdConflict, Deleted):
                if self.spare_id is None:
                    raise
                self.id = self.spare_id()
        return self

    async def _open(self) -> None:
        sockets = self._link.sockets
        if self._create is not None:
            answer = await self._begun(self._create)
            created = read_answer(answer, Created)
            message, self.generation, self._epoch = created.message, created.generation, _epoch_of(created.cursor)
            if message.version != message.created or message.status != "streaming":
                raise IdConflict(f"message {self.id!r} exists already")
            sockets = self._link.sockets
        else:
            fields = {"lease_s": self._lease_s, "request": self._new_request()}
            answer = await self._link.request("takeover", self._frame(fields))
            self.generation = read_answer(answer, TakenOver).generation
            message, cursor = await self._read()
            self._epoch = _epoch_of(cursor)
        self._take(message)
        self._is_open = True
        self._renew_later()
        self._link.stand(self, since=sockets)

    async def _begun(self, create: dict[str, Any]) -> dict[str, Any]:
        """Store the beginning. Cancelled in the middle of it, the message is ended, if it was begun."""
        try:
            return await self._link.request("create", self._frame(create))
        except asyncio.CancelledError:
            status, reason = self.cancelled_as
            kind, fields = "finish", {"generation": 1, "status": status, "reason": reason}
            if status == "interrupted":  # that is the server's to say: it does when the lease ends
                kind, fields = "lease", {"generation": 1, "lease_s": SHORTEST_LEASE_S}
            with contextlib.suppress(HoldfastError):  # nothing was begun, or we are away and its lease ends
                await self._link.request(kind, self._frame(fields), timeout_s=self._link.timing.leave_s)
            raise

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.error is None:
                if not self._is_ending:
                    self._begin_end("complete")
                await self._until(lambda: self._is_finished)
        except Unreachable:
            raise  # it was waited for already
        except BaseException:
            await self._leave(*self.cancelled_as)
            raise
        else:
            if error is not None:
                await self._leave(*self._end_for(error))
        finally:
            self._is_ending = True
            await self._end_what_was_refused()
            self._close()
        if kind is None:
            self._raise_error()

    # -- for the link ------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """A new socket: the lease is renewed at once, since the old one's end has cut it short; then look."""
        if self._is_over:
            return
        self._trouble = self._trouble or Unreachable("the connection broke")
        self._renew()
        self._look()

    def broken(self) -> None:
        self._looks += 1
        self._cancel_timer()

    def stopped(self, error: HoldfastError) -> None:
        if not self._is_over:
            self._refuse(error)

    # -- accepting ---------------------------------------------------------------------------------------------

    def _part_for_text(self, index: int | None) -> int:
        if index is None:
            if self._text_part is None:
                self._text_part = len(self._parts)
                self._parts.append(_Part({"type": "text", "text": ""}, is_open=False))
            return self._text_part
        if not 0 <= index < len(self._parts):
            raise LocalError(f"message {self.id!r} has {len(self._parts)} parts; open part {index} first")
        if not self._parts[index].key:
            raise NotText(f"part {index} of message {self.id!r} is of type {self._parts[index].fields['type']}")
        return index

    def _accept(self, index: int, text: str) -> None:
        part = self._parts[index]
        part.text.append(text, 0)
        if part.is_open:
            if self._growing != index:
                self._gather()
            self._growing = index
            self._unstored_bytes += utf8_len(text)
        else:
            part.is_open = True
            part.queued = part.text.length
            self._gather()
            self._put_part(index, part.value(part.queued), utf8_len(text), is_replacing=False)
        self._pump()

    def _open_what_is_held(self) -> None:
        """A text part that was promised, for half a character, opens before the next does."""
        if self._parts and not self._parts[-1].is_open:
            self._accept(len(self._parts) - 1, self._parts[-1].surrogates.end())

    def _let_go_of_held(self) -> None:
        """The other halves never came."""
        for index, part in enumerate(self._parts):
            if part.surrogates.held:
                self._accept(index, part.surrogates.end())

    def _begin_end(self, status: str, *, reason: str | None = None, meta: dict[str, Json] | None = None) -> None:
        if status not in ENDS:
            raise InvalidRequest("a finish is complete, cancelled or failed")
        limits = self._link.limits
        fields: dict[str, Any] = {"status": status, "request": self._new_request()}
        if reason is not None:
            check_json(reason, limits.data_bytes, "reason", depth=1)
            fields["reason"] = reason
        if meta:
            check_json(meta, limits.meta_bytes, "meta", depth=limits.depth)
            fields["meta"] = plain(meta)
            self._merge(fields["meta"])
        self._let_go_of_held()
        self._gather()
        self._queue.append(_Op("finish", fields))
        self._is_ending = True
        self._pump()

    def _gather(self) -> None:
        """Make requests of the text that gathered."""
        if self._growing is None:
            return
        index, self._growing = self._growing, None
        part = self._parts[index]
        while part.queued < part.text.length:
            text = part.text.slice(part.queued, part.queued + self._piece)
            fields = {"part": index, "at": part.queued, "text": text}
            self._queue.append(_Op("append", fields, utf8_len(text), index))
            part.queued += len(text)

    def _put_part(self, index: int, value: Part, size: int, *, is_replacing: bool) -> None:
        last = self._queue[-1] if self._queue else None
        if is_replacing and last is not None and last.is_replacing and last.part == index:
            self._queue.pop()  # a progress bar on a slow line: only its last value counts
            self._unstored_bytes -= last.size
        fields = {"part": index, "value": value, "request": self._new_request()}
        self._queue.append(_Op("part", fields, size, index, is_replacing))
        self._unstored_bytes += size

    def _put_update(self, meta: dict[str, Json], size: int) -> None:
        self._queue.append(_Op("update", {"meta": meta, "request": self._new_request()}, size))
        self._unstored_bytes += size

    def _merge(self, meta: dict[str, Json]) -> None:
        merged = {**self.meta, **meta}
        self.meta = {key: value for key, value in merged.items() if value is not None}

    def _find_text_part(self) -> None:
        texts = [index for index, part in enumerate(self._parts) if part.fields["type"] == "text"]
        self._text_part = texts[-1] if texts else None

    def _new_request(self) -> str:
        """An id by which the message knows a request again that is sent twice; no other writer's."""
        self._requests += 1
        return f"{self._nonce}.{self._requests}"

    # -- sending -----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what may be sent now."""
        while len(self._flying) < FLYING and self._may_send:
            if not self._queue:
                self._gather()
            if not self._queue or any(self._queue[0].must_wait_for(other) for other in self._flying):
                return
            op = self._queue.popleft()
            self._flying.append(op)
            self._sent_at_s = self._now_s()
            fields = {**self._frame(op.fields), "generation": self.generation}
            self._link.begin(op.kind, fields, partial(self._answered, op), is_repeatable=False)

    @property
    def _may_send(self) -> bool:
        return self._is_open and self._trouble is None and self.error is None and self._link.is_live

    def _answered(self, op: _Op, answer: Result) -> None:
        self._flying.remove(op)
        if self._is_over:
            return
        if not isinstance(answer, HoldfastError):
            self._stored(op)
        elif answer.retry or isinstance(answer, _LOST):
            self._again.append(op)
            # What comes after the first may only follow from it: text behind text that was refused is a gap.
            self._trouble = self._trouble or answer
        else:
            self._refuse(answer)
            return
        if self._trouble is None:
            self._pump()
        elif not self._flying:
            self._recover()
        self._moved.set()

    def _stored(self, op: _Op) -> None:
        self._unstored_bytes -= op.size
        self._failures = self._refills = 0
        self._stored_at_s = self._now_s()
        if op.kind == "finish":
            self._is_finished = True

    # -- recovering --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Nothing flies any more: what was refused for now goes first again, after a while."""
        self._queue.extendleft(reversed(self._again))
        self._again.clear()
        if self._link.is_live:  # else `opened` goes on
            self._later(self._go_on)

    def _go_on(self) -> None:
        if isinstance(self._trouble, _LOST):
            self._look()
            return
        self._trouble = None
        self._pump()

    def _look(self) -> None:
        """Ask how the message stands. Creating it again changes nothing, where it is known."""
        self._cancel_timer()
        self._looks += 1
        when_answered = partial(self._looked, self._looks)
        if self._create is not None:
            self._link.begin("create", self._frame(self._create), when_answered, is_repeatable=False)
        else:
            fields = {"channel": self.channel, "before": self._created + 1, "limit": 1}
            self._link.begin("history", fields, when_answered, is_repeatable=False)

    def _looked(self, look: int, answer: Result) -> None:
        if look != self._looks or self._is_over:
            return
        try:
            if isinstance(answer, HoldfastError):
                raise answer
            message, epoch = self._seen(answer)
        except HoldfastError as error:
            if not error.retry:
                self._refuse(error)
            elif self._link.is_live:
                self._later(self._look)
            return
        if epoch == self._epoch and not isinstance(self._trouble, _LOST):
            self._trouble = None
            self._pump()
        else:
            self._refill(message, epoch)
        self._moved.set()  # there may be nothing left to store

    def _seen(self, answer: dict[str, Any]) -> tuple[Message, str]:
        """The message in the answer to a look, and the log's epoch. Raises NotFound."""
        if self._create is not None:
            created = read_answer(answer, Created)
            return created.message, _epoch_of(created.cursor)
        page = read_answer(answer, Page)
        if not page.messages or page.messages[0].id != self.id:
            raise NotFound(f"message {self.id!r} is not there any more")
        return page.messages[0], _epoch_of(page.cursor)

    def _refill(self, stored: Message, epoch: str) -> None:
        """The server lost a part of what it had: write what is missing of everything that was accepted."""
        logger.warning("message %r of %s is not as it was stored: it is filled up again", self.id, self.channel)
        self._refills = self._refills + 1 if epoch == self._epoch else 0  # another life is nobody's mistake
        if self._refills > REFILLS:
            assert self._trouble is not None
            self._refuse(self._trouble)
            return
        self._epoch = epoch
        end = self._queue.pop() if self._queue and self._queue[-1].kind == "finish" else None
        self._queue.clear()
        self._growing = None
        self._unstored_bytes = 0
        for index, part in enumerate(self._parts):
            if part.is_open:
                self._refill_part(index, part, stored.parts[index] if index < len(stored.parts) else None)
        meta: dict[str, Json] = dict.fromkeys(stored.meta.keys() - self.meta.keys())
        meta |= {key: value for key, value in self.meta.items() if stored.meta.get(key) != value}
        if meta:
            self._put_update(meta, 0)
        if stored.status != "streaming" and (self._queue or end is None or end.fields["status"] != stored.status):
            self._refuse(Finished(f"message {self.id!r} is {stored.status}"))
            return
        if end is not None:
            self._queue.append(end)
        self._trouble = None
        self._pump()

    def _refill_part(self, index: int, part: _Part, stored: Part | None) -> None:
        if stored is not None and {**part.fields, part.key: ""} == {**stored, part.key: ""}:
            text = stored.get(part.key, "") if part.key else ""
            if part.text.slice(0, len(text)) != text:
                stored = {}  # another text: write it anew
            else:
                part.queued = len(text)
        elif stored is not None:
            stored = {}
        if not stored:
            part.queued = min(part.text.length, self._piece)
            value = part.value(part.queued)
            size = check_json(value, self._link.limits.request_bytes, "a part", depth=self._link.limits.depth)
            self._put_part(index, value, size, is_replacing=stored is not None)
        self._unstored_bytes += utf8_len(part.text.slice(part.queued))
        self._growing = index
        self._gather()

    def _refuse(self, error: HoldfastError) -> None:
        self.error = error
        self._queue.clear()
        self._again.clear()
        self._growing = None
        self._unstored_bytes = 0
        self._cancel_timer()
        self._moved.set()

    def _later(self, step: Callable[[], None]) -> None:
        self._cancel_timer()
        self._failures += 1
        delay_s = self._link.timing.retry(self._failures, self._link.random)
        self._timer = asyncio.get_running_loop().call_later(delay_s, step)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the lease ---------------------------------------------------------------------------------------------

    def _renew_later(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        term_s = self._lease_s / RENEWALS
        due_s = max(self._sent_at_s + term_s, self._now_s() + term_s / 10)
        self._renewal = asyncio.get_running_loop().call_at(due_s, self._renew)

    def _renew(self) -> None:
        """Every request renews the lease; where there was none for a third of its term, one that does only that."""
        is_idle = self._now_s() - self._sent_at_s >= self._lease_s / RENEWALS * 0.9
        if self._has_leases and self._link.is_live and (is_idle or self._trouble is not None):
            self._sent_at_s = self._now_s()
            fields = {"generation": self.generation, "lease_s": self._lease_s}
            self._link.begin("lease", self._frame(fields), self._renewed, is_repeatable=False)
        self._renew_later()

    def _renewed(self, answer: Result) -> None:
        if isinstance(answer, InvalidRequest):
            self._has_leases = False  # a server without them
        elif isinstance(answer, Finished | Fenced | Deleted | NotWriter) and not self._is_over and not self._is_ending:
            self._refuse(answer)

    # -- waiting and leaving -----------------------------------------------------------------------------------

    @property
    def _is_behind(self) -> bool:
        return bool(self._growing is not None or self._queue or self._flying or self._again)

    @property
    def _is_over(self) -> bool:
        return self._is_finished or self.error is not None

    @property
    def _piece(self) -> int:
        """Characters of one append; each has at most four bytes."""
        return max(1, self._link.limits.append_bytes // 4)

    async def _not_too_far_ahead(self) -> None:
        limit = self._link.limits.writer_bytes
        if self._unstored_bytes > limit:
            await self._until(lambda: self._unstored_bytes <= limit)

    async def _until(self, is_true: Callable[[], bool]) -> None:
        """Wait for `is_true`; raises a refusal, and what is in the way when nothing is stored for too long."""
        patience_s = self._link.timing.request_s
        began_s = self._now_s()
        while not is_true():
            self._raise_error()
            left_s = max(began_s, self._stored_at_s) + patience_s - self._now_s()
            self._moved.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._moved.wait()
            except TimeoutError:
                if self._now_s() - max(began_s, self._stored_at_s) < patience_s:
                    continue
                trouble = self._trouble
                if trouble is not None and not isinstance(trouble, Unreachable):
                    raise trouble from None
                raise self._link.unreachable(f"nothing of message {self.id!r} was stored in time") from None
        self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _check_open(self) -> None:
        if not self._is_open:
            raise LocalError(f"message {self.id!r} is not begun: use `async with`")
        if self._is_ending:
            raise LocalError(f"message {self.id!r} has ended; nothing can be added")
        self._raise_error()

    def _end_for(self, error: BaseException) -> tuple[str, str | None]:
        """Status and public reason of a message whose block `error` ended. The traceback is for the log."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return self.cancelled_as
        if isinstance(error, HoldfastError):
            return error.ends_as, error.code
        return "failed", public_reason(error)

    async def _leave(self, status: str, reason: str | None) -> None:
        """The block ended early: store what was accepted, and say how it ended."""
        if self._is_over:
            return
        ending = asyncio.ensure_future(self._end_as(status, reason))
        ending.add_done_callback(_heard)
        try:
            async with asyncio.timeout(self._link.timing.leave_s):
                await asyncio.shield(ending)
        except (HoldfastError, TimeoutError) as error:
            ending.cancel()
            logger.warning("message %r of %s could not be ended as %s: %r", self.id, self.channel, status, error)

    async def _end_as(self, status: str, reason: str | None) -> None:
        if status == "interrupted" and not self._is_ending:
            # That is the server's to say: it does when the lease ends, which is soon.
            await self.flush()
            self._has_leases = False
            fields = {"generation": self.generation, "lease_s": SHORTEST_LEASE_S}
            await self._link.request("lease", self._frame(fields), is_repeatable=False)
            return
        if not self._is_ending:
            self._begin_end(status, reason=reason)
        await self._until(lambda: self._is_finished)

    async def _end_what_was_refused(self) -> None:
        """Something of this message was refused and it streams still: it has failed, with the text so far."""
        error = self.error
        if error is None or isinstance(error, _OVER) or self._link.error is not None:
            return
        fields = {"status": "failed", "reason": error.code, "generation": self.generation}
        try:
            await self._link.request("finish", self._frame(fields), timeout_s=self._link.timing.leave_s)
        except HoldfastError as trouble:
            logger.warning("message %r of %s could not be ended as failed: %r", self.id, self.channel, trouble)

    def _close(self) -> None:
        self._link.step_down(self)
        self._looks += 1
        self._cancel_timer()
        if self._renewal is not None:
            self._renewal.cancel()

    # -- small things ------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        """Begin where the message stands."""
        self._created = message.created
        self.meta = plain(message.meta)
        self._parts = [_Part(plain(part)) for part in message.parts]
        self._find_text_part()
        self._sent_at_s = self._stored_at_s = self._now_s()

    def _frame(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"channel": self.channel, "id": self.id, **fields}

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _epoch_of(cursor: str) -> str:
    known = parse_cursor(cursor)
    return "" if known is None else known.epoch


def _heard(ending: asyncio.Future[None]) -> None:
    """Take what `ending` met, also when nobody waited so long."""
    if not ending.cancelled():
        ending.exception()
