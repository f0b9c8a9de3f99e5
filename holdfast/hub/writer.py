"""A message being written in this process.

Layer: hub.

`MessageWriter.append` accepts text at once and lets the committer come for it: whatever gathered
while a commit ran goes into the next one as one append. What was accepted is kept until it is stored, through a
store that fails for a while. Only documented names of `MessageWriter` are public.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from holdfast.core.decide import check_finish
from holdfast.core.errors import (
    Deleted,
    Draining,
    Fenced,
    Finished,
    HoldfastError,
    IdConflict,
    InvalidRequest,
    LocalError,
    NotFound,
    StoreUnavailable,
    public_reason,
)
from holdfast.core.model import Json, Message, Part, check_json, check_part, plain
from holdfast.core.requests import AppendText, Caller, CreateMessage, FinishMessage, PutPart, Request, UpdateMessage
from holdfast.core.state import KEPT_REQUESTS, part_bytes, utf8_len
from holdfast.core.surrogates import SurrogateJoiner
from holdfast.hub.committer import Ask, Decided, Result, answered_later

if TYPE_CHECKING:
    from holdfast.hub.channel import Channel
    from holdfast.hub.hub import HubCore

logger = logging.getLogger("holdfast.hub")

RETRY_S = 0.25  # after a store failed: a full disk is not emptied faster
PATIENCE_S = 10.0  # how long `append`, `flush` and the end of the block bear a store that fails


class MessageWriter:
    """Writes one streaming message. Made by `Hub.message`; used by one task at a time."""

    __slots__ = (  # it has more attributes than Python finds fast in a dictionary
        "_author",
        "_caller",
        "_create",
        "_error",
        "_flying",
        "_flying_bytes",
        "_furthest",
        "_hub",
        "_is_interrupting",
        "_is_open",
        "_is_over",
        "_is_resting",
        "_is_unopened",
        "_is_waiting",
        "_last_text",
        "_lengths",
        "_live",
        "_longest",
        "_parts",
        "_queue",
        "_requests",
        "_retry",
        "_surrogates",
        "_surrogates_part",
        "_text_parts",
        "_texts",
        "_texts_part",
        "_trouble",
        "_waiters",
        "cancelled_as",
        "channel",
        "generation",
        "id",
        "ids",
        "meta",
        "unstored_bytes",
    )

    size_bytes = 0  # of an item waiting in the hub: what is accepted here is bounded here

    def __init__(
        self, hub: HubCore, channel: str, message_id: str, *, create: CreateMessage | None, author: str | None
    ) -> None:
        self.channel = channel
        self.name(message_id)
        self.meta: dict[str, Json] = dict(create.meta) if create is not None else {}
        self.generation = 1
        self._hub = hub
        self._create = create
        self._author = author
        self._caller: Caller = hub.caller(author)
        self._longest = hub.limits.append_bytes // 4  # of an append, in characters, which have at most four bytes
        self._furthest = hub.limits.writer_bytes
        self._lengths: dict[int, int] = {}  # accepted code points, by part
        self._text_parts: set[int] = set()  # an append without a part goes to the last of them …
        self._last_text = -1  # … which is this one; -1: there is none
        self._is_unopened = False  # the text part opens with the first text that is stored
        self._parts = 0
        self._surrogates = SurrogateJoiner()
        self._surrogates_part = 0  # the part whose text the surrogates holds half a character of
        self._queue: deque[Request] = deque()  # accepted and not yet in flight
        self._texts: list[str] = []  # text that gathers for the queue's last append
        self._texts_part = 0
        self._flying: list[Ask] = []  # decided or about to be; kept until answered
        self.unstored_bytes = 0  # accepted and not answered …
        self._flying_bytes = 0  # … of which the committer has so many
        self._is_waiting = False  # does the committer have us?
        self._is_resting = False  # shall we go to it when viewers can be shown more?
        self._live: Channel | None = None  # the channel that our last batch was for; nobody watches one that is gone
        self._error: HoldfastError | None = None  # of the store's no: the next call raises it
        self._trouble: HoldfastError | None = None  # of a store that fails for now
        self._waiters: list[asyncio.Future[None]] = []
        self._requests = 0
        self._is_open = False
        self._is_over = False
        self._is_interrupting = False  # is the finish to come the server's, after a crash upstream?
        self.cancelled_as: tuple[str, str | None] = ("cancelled", None)  # status and reason, when the task is cancelled
        self._retry: asyncio.TimerHandle | None = None

    # -- public ------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Has it ended?"""
        return self._is_over

    @property
    def length(self) -> int:
        """Code points accepted in the text part that `append` goes to; 0 while there is none."""
        gathered = sum(map(len, self._texts)) if self._texts_part == self._last_text else 0
        return self._lengths.get(self._last_text, 0) + gathered

    async def append(self, text: str, *, part: int | None = None) -> None:
        """Add `text` to the message's last text part, or to part `part`; a first text part opens by itself.

        Returns when the text is accepted: at once, but for a writer that is ahead of its store by more than
        `Limits.writer_bytes`. Raises what an earlier append met: Finished (somebody stopped the message), Fenced,
        Deleted, TooLarge, StoreUnavailable; LocalError after the end. Half a surrogate pair at the end of `text`
        is held back and joined to the next piece.
        """
        if self._is_over or not self._is_open or self._error is not None:
            self._check_open()
        if not isinstance(text, str):
            raise InvalidRequest(f"text is a str, this is {type(text).__name__}")
        index = self._last_text if part is None and self._last_text >= 0 else self._part_for_text(part)
        whole = text if text.isascii() and not self._surrogates.held else self._join_halves(text, index)
        for piece in (whole,) if len(whole) <= self._longest else _pieces(whole, self._longest):
            if piece:
                self._accept(piece, index)
            if self.unstored_bytes > self._furthest:
                await self._not_too_far_ahead()

    async def part(self, part: Part, *, index: int | None = None) -> int:
        """Open a part (without `index`) or replace one; returns its index. Accepted as `append` is."""
        self._check_open()
        part = check_part(part, self._hub.limits)
        self._let_go_of_held()
        place = self._parts if index is None else index
        size = part_bytes(part)
        self._put(PutPart(index=place, part=part, generation=self.generation, request=self._new_request()), size)
        self._parts = max(self._parts, place + 1)
        text = part.get("text", part.get("input"))
        self._lengths[place] = len(text) if isinstance(text, str) else 0
        if part.get("type") == "text":
            self._text_parts.add(place)
        else:
            self._text_parts.discard(place)
        self._last_text = max(self._text_parts, default=-1)
        await self._not_too_far_ahead()
        return place

    async def update(self, *, meta: dict[str, Json]) -> None:
        """Merge `meta` into the message's meta; null removes a key. Accepted as `append` is."""
        self._check_open()
        size = check_json(meta, self._hub.limits.meta_bytes, "meta", depth=self._hub.limits.depth)
        self._put(UpdateMessage(meta=meta, generation=self.generation, request=self._new_request()), size)
        await self._not_too_far_ahead()

    async def flush(self) -> None:
        """Wait until all that was accepted is stored. Raises as `append`."""
        until_s: float | None = None
        while self._texts or self._flying or self._queue:
            waiter = self._waiter()
            if self._trouble is None and until_s is None:  # as nearly always, and so without one more coroutine
                await waiter
            else:
                until_s = await self._bear(waiter, until_s)
        if self._error is not None:
            raise self._error

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None:
        """End the message (`complete`, `cancelled` or `failed`) and wait until all of it is stored."""
        self._check_open()
        end = FinishMessage(
            status=status,  # type: ignore[arg-type]
            reason=reason,
            meta=meta or {},
            generation=self.generation,
            request=self._new_request(),
        )
        check_finish(end, self._hub.limits)
        self._let_go_of_held()
        self._put(end, 0)
        self._is_over = True
        await self.flush()

    async def open(self) -> Self:
        """Store the message's beginning, so that its `id` can be told before a task goes on with `async with message`.

        Entering the block does it by itself. A message that is opened must be entered, or it streams for ever.
        """
        if self._is_open:
            return self
        self._is_open = True
        if self._create is None:
            self._hub.register_writer(self)
            return self
        await self._hub.start()
        self._caller = self._hub.caller(self._author)
        self._hub.register_writer(self)
        try:
            answer = await self._created(self._create)
            if not answer.created:
                raise IdConflict(f"message {self.id!r} exists already")
            if answer.message is None:  # created, but before that was known somebody was faster
                raise Deleted(f"message {self.id!r} was deleted")
        except BaseException:
            self._hub.unregister_writer(self)
            raise
        self.take_up(answer.message, answer.generation or 1)
        return self

    async def _created(self, create: CreateMessage) -> Result:
        """Store the beginning. Cancelled in the middle of it, the message is ended as cancelled, if it was begun."""
        creating, done = answered_later()
        self._hub.submit(self.channel, self.id, create, self._caller, done)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating], timeout=PATIENCE_S)
            if creating.done() and creating.exception() is None and creating.result().created:
                end = FinishMessage(status="cancelled", generation=1)
                with contextlib.suppress(HoldfastError):  # a hub that leaves: the next start sees to it
                    await self._hub.ask(self.channel, self.id, end, self._caller)
            raise

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._is_over and self._error is None:
                await self.finish()
            elif error is not None and not self._is_over and self._error is None:
                await self._leave(*self._end_for(error))
        finally:
            self._is_over = True
            await self._end_what_was_refused()
            self._hub.unregister_writer(self)
        if kind is None:
            self._raise_error()

    # -- for the committer -------------------------------------------------------------------------------------

    def asks(self) -> Sequence[Ask]:
        """All that is accepted; the text that gathered becomes one append.

        What replaces a part waits until the text before it is stored: these are asked again as a whole when nobody
        knows whether they were, and text for a part that is another by now would be refused.
        """
        self._gather()
        if len(self._queue) == 1 and not self._flying and not self._is_interrupting:  # as nearly always
            ask = Ask(self.id, self._queue.popleft(), self._caller)
            self._flying.append(ask)
            self._flying_bytes = self.unstored_bytes
            return (ask,)
        grown = {ask.request.part for ask in self._flying if isinstance(ask.request, AppendText)}
        # A message remembers so many requests by their ids.
        while self._queue and len(self._flying) < KEPT_REQUESTS:
            request = self._queue[0]
            if isinstance(request, AppendText):
                grown.add(request.part)
            elif isinstance(request, PutPart) and not grown.isdisjoint((request.index, None)):
                break
            self._take_off()
        self._flying_bytes = 0 if self._queue else self.unstored_bytes
        return tuple(self._flying)

    def _take_off(self) -> None:
        """The first request that is accepted is about to be decided."""
        request, caller = self._queue.popleft(), self._caller
        if self._is_interrupting and isinstance(request, FinishMessage):
            caller = replace(caller, is_server=True)
        self._flying.append(Ask(self.id, request, caller))

    def answered(self, decided: Decided) -> None:
        self._live = decided.channel
        flying = self._flying
        del flying[: len(decided.asks)]
        self.unstored_bytes -= self._flying_bytes
        self._flying_bytes = 0
        self._trouble = None
        self._is_waiting = False
        if decided.refusal is not None:
            self._refuse(decided.refusal)
        if self._queue or flying or (self._texts and self._waiters):
            self._submit()
        elif self._texts:
            self._submit_in_time()
        if self._waiters:
            self._wake_waiters()

    def failed(self, error: HoldfastError) -> None:
        """The store is in trouble: keep everything and come again. A hub that has stopped is the end."""
        self._is_waiting = False
        if isinstance(error, Draining) or not error.retry:
            self._refuse(error)
            self._wake_waiters()
            return
        self._trouble = error
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._submit)
        self._wake_waiters()

    # -- inside ------------------------------------------------------------------------------------------------

    def name(self, message_id: str) -> None:
        """Give the message that is to be written its id."""
        self.id = message_id
        self.ids: tuple[str, ...] = (message_id,)

    def take_up(self, message: Message, generation: int) -> None:
        """Begin where the message stands: at its start, or where another writer ended. For the hub."""
        self.meta = plain(message.meta)
        self.generation = generation
        self._parts = len(message.parts)
        parts = message.parts
        for index, part in enumerate(parts):
            text = part.get("input" if part["type"] == "tool" else "text")
            self._lengths[index] = len(text) if isinstance(text, str) else 0
            if part["type"] == "text":
                self._text_parts.add(index)
        self._last_text = max(self._text_parts, default=-1)

    def _part_for_text(self, part: int | None) -> int:
        if part is not None:
            if part >= self._parts:
                raise LocalError(f"message {self.id!r} has {self._parts} parts; open part {part} first")
            return part
        if self._last_text < 0:
            self._text_parts.add(self._parts)
            self._last_text = self._parts
            self._parts += 1
            self._is_unopened = True
        return self._last_text

    def _join_halves(self, text: str, index: int) -> str:
        """`text` with what was held back before it, less half a surrogate pair at its end."""
        if self._surrogates_part != index:
            self._let_go_of_held()
            self._surrogates_part = index
        return self._surrogates.write(text)

    def _let_go_of_held(self) -> None:
        """The other half never came."""
        if rest := self._surrogates.end():
            self._accept(rest, self._surrogates_part)

    def _accept(self, text: str, index: int) -> None:
        if self._texts and self._texts_part != index:
            self._gather()
        self._texts.append(text)
        self._texts_part = index
        self.unstored_bytes += len(text) if text.isascii() else utf8_len(text)
        if not self._is_waiting:
            self._submit_in_time()

    def _new_request(self) -> str:
        """An id by which the message knows a request again that is decided twice; no other writer's."""
        self._requests += 1
        return f"{self._hub.node[-5:]}{self.generation}.{self._requests}"

    def _put(self, request: Request, size: int) -> None:
        """Accept a request that is no append."""
        self._gather()
        self._queue.append(request)
        self.unstored_bytes += size
        self._submit()

    async def _not_too_far_ahead(self) -> None:
        until_s: float | None = None
        while self.unstored_bytes > self._furthest:
            until_s = await self._bear(self._waiter(), until_s)
            self._raise_error()

    def _gather(self) -> None:
        """Make one append of the text that gathered."""
        texts = self._texts
        if not texts:
            return
        text = texts[0] if len(texts) == 1 else "".join(texts)
        texts.clear()
        at = self._lengths.get(self._texts_part, 0)
        self._lengths[self._texts_part] = at + len(text)
        if len(text) <= self._longest and not self._is_unopened:  # as nearly always
            request = AppendText(text=text, at=at, part=self._texts_part, generation=self.generation)
            self._queue.append(request)
            return
        for piece in _pieces(text, self._longest):
            part = None if self._is_unopened and self._texts_part in self._text_parts else self._texts_part
            self._is_unopened = self._is_unopened and part is not None
            self._queue.append(AppendText(text=piece, at=at, part=part, generation=self.generation))
            at += len(piece)

    def _submit_in_time(self) -> None:
        """There is more text, and nobody waits for it but viewers: let it be stored by the end of their window."""
        if self._is_resting:
            return
        live = self._live
        if live is not None and live.watchers and self._hub.call_in_time(live, self._rested):
            self._is_resting = True
        else:
            self._submit()

    def _rested(self) -> None:
        self._is_resting = False
        if self._texts or self._flying or self._queue:
            self._submit()

    def _submit(self) -> None:
        """Tell the committer that something waits here."""
        self._retry = None
        if not self._is_waiting and self._error is None:
            self._is_waiting = True
            try:
                self._hub.queue(self)
            except HoldfastError as error:
                self.failed(error)

    def _refuse(self, error: HoldfastError) -> None:
        self._error = error
        self._queue.clear()
        self._texts.clear()
        self._flying.clear()

    def _waiter(self) -> asyncio.Future[None]:
        """A future that is done when something was stored or has failed. Raises a refusal."""
        if self._error is not None:
            raise self._error
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._is_resting and self._trouble is None:  # else it comes again by itself, a little later
            self._submit()
        return waiter

    async def _bear(self, waiter: asyncio.Future[None], until_s: float | None) -> float | None:
        """Wait for `waiter`; while the store fails until `until_s` at the most, then raises StoreUnavailable.

        Returns until when to bear it if it goes on so.
        """
        if self._trouble is None:  # a timeout costs more than all the rest of a flush
            await waiter
            return None
        until_s = until_s or asyncio.get_running_loop().time() + PATIENCE_S
        try:
            async with asyncio.timeout_at(until_s):
                await waiter
        except TimeoutError:
            detail = self._trouble.detail if self._trouble is not None else "the store did not answer"
            raise StoreUnavailable(detail) from None
        return until_s

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _check_open(self) -> None:
        if self._is_over:
            raise LocalError(f"message {self.id!r} has ended; nothing can be added")
        if not self._is_open:
            raise LocalError(f"message {self.id!r} is not begun: use `async with`")
        self._raise_error()

    async def _end_what_was_refused(self) -> None:
        """Something of this message was refused and it streams still: it has failed, with the text so far."""
        error = self._error
        if error is None or isinstance(error, Finished | Fenced | Deleted | NotFound | Draining | LocalError):
            return
        end = FinishMessage(status="failed", reason=error.code, generation=self.generation)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._hub.ask(self.channel, self.id, end, self._caller)
        except (HoldfastError, TimeoutError) as trouble:
            logger.warning("message %r of %s could not be ended as failed: %r", self.id, self.channel, trouble)

    def _end_for(self, error: BaseException) -> tuple[str, str | None]:
        """Status and public reason of a message whose block `error` ended. The traceback is for the log."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return self.cancelled_as
        if isinstance(error, HoldfastError):
            self._is_interrupting = error.ends_as == "interrupted"
            return error.ends_as, error.code
        return "failed", public_reason(error)

    async def _leave(self, status: str, reason: str | None) -> None:
        """The block ended early: store what was accepted, and say how it ended.

        A hub that drains leaves the message as it is: whoever comes next goes on with it or interrupts it.
        """
        ending = asyncio.ensure_future(self.flush() if self._hub.is_draining else self.finish(status, reason=reason))
        ending.add_done_callback(_heard)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(ending)
        except (HoldfastError, TimeoutError) as error:
            logger.warning("message %r of %s could not be ended as %s: %r", self.id, self.channel, status, error)


def _pieces(text: str, limit: int) -> Iterable[str]:
    """`text` in pieces of at most `limit` characters."""
    if len(text) <= limit:
        return (text,) if text else ()
    return [text[start : start + limit] for start in range(0, len(text), limit)]


def _heard(ending: asyncio.Future[None]) -> None:
    """Take what `ending` met, also when nobody waited so long."""
    if not ending.cancelled():
        ending.exception()
