"""A message being written in this process.

Layer: hub.

`MessageWriter.append` accepts text at once, and the committer collects it: text that gathered while a commit ran goes
into the next one as one append. The writer keeps accepted requests until they are stored, also while the store fails.
Only documented names of `MessageWriter` are public.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

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
from holdfast.hub.pending import Ask, Decided
from holdfast.hub.results import Result, result_later

if TYPE_CHECKING:
    from holdfast.hub.channel import Channel
    from holdfast.hub.hub import HubCore

logger = logging.getLogger("holdfast.hub")

RETRY_S = 0.25  # after the store failed: a full disk is not emptied faster
PATIENCE_S = 10.0  # how long `append`, `flush` and the end of the block wait for a failing store


class MessageWriter:
    """Writes one streaming message. Made by `Hub.message`; used by one task at a time."""

    __slots__ = (  # with this many attributes, slots are faster than a dictionary
        "_author",
        "_awaited",
        "_called",
        "_caller",
        "_create",
        "_error",
        "_furthest",
        "_hub",
        "_in_flight",
        "_in_flight_bytes",
        "_is_delayed",
        "_is_interrupting",
        "_is_open",
        "_is_over",
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

    size_bytes = 0  # in the committer's queue: the writer bounds its accepted text itself

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
        self._longest = hub.limits.append_bytes // 4  # of an append in characters of at most four bytes
        self._furthest = hub.limits.writer_bytes
        self._lengths: dict[int, int] = {}  # accepted code points by part
        self._text_parts: set[int] = set()  # an append without a part goes to the last one, …
        self._last_text = -1  # … which is this; -1 without a text part
        self._is_unopened = False  # the text part opens with the first text that is stored
        self._parts = 0
        self._surrogates = SurrogateJoiner()
        self._surrogates_part = 0  # the part that a held half of a surrogate pair belongs to
        self._queue: deque[Request] = deque()  # accepted and not yet in flight
        self._texts: list[str] = []  # text that gathers for the last append of the queue
        self._texts_part = 0
        self._in_flight: list[Ask] = []  # decided or about to be; kept until their results
        self.unstored_bytes = 0  # accepted, without a result yet …
        self._in_flight_bytes = 0  # … of which the committer has these
        self._is_waiting = False  # queued at the committer
        self._is_delayed = False  # to be queued in time for the next flush of viewers
        self._live: Channel | None = None  # the channel of the last batch; one that left memory has no viewers
        self._error: HoldfastError | None = None  # a refusal, which the next call raises
        self._trouble: HoldfastError | None = None  # of a store that fails at present
        self._waiters: list[asyncio.Future[None]] = []
        self._called = 0  # calls of `append` …
        self._awaited = 0  # … and how many of them were awaited
        self._requests = 0
        self._is_open = False
        self._is_over = False
        self._is_interrupting = False  # the coming finish is the server's, after an upstream crash
        self.cancelled_as: tuple[str, str | None] = ("cancelled", None)  # status and reason, when the task is cancelled
        self._retry: asyncio.TimerHandle | None = None

    # -- public ------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Return whether the message has ended."""
        return self._is_over

    @property
    def length(self) -> int:
        """Return the accepted code points of the text part that `append` goes to; 0 without one."""
        gathered = sum(map(len, self._texts)) if self._texts_part == self._last_text else 0
        return self._lengths.get(self._last_text, 0) + gathered

    def append(self, text: str, *, part: int | None = None) -> Coroutine[Any, Any, None]:
        """Add `text` to the message's last text part, or to part `part`; a first text part opens by itself.

        Returns when the text is accepted: at once, unless the writer is ahead of its store by more than
        `Limits.writer_bytes`. Raises the refusal of an earlier append: Finished (a client stopped the message), Fenced,
        Deleted, TooLarge, StoreUnavailable; LocalError after the end. Half a surrogate pair at the end of `text` is
        held back and joined to the next piece. The block fails if a call was not awaited: its text would be missing.
        """
        self._called += 1
        return self._append(text, part)

    async def _append(self, text: str, part: int | None) -> None:
        self._awaited += 1
        if self._is_over or not self._is_open or self._error is not None:
            self._check_open()
        if not isinstance(text, str):
            raise InvalidRequest(f"text must be a str, got {type(text).__name__}")
        index = self._last_text if part is None and self._last_text >= 0 else self._part_for_text(part)
        whole = text if text.isascii() and not self._surrogates.held else self._join_halves(text, index)
        if len(whole) <= self._longest:  # the common case
            if whole:
                self._accept(whole, index)
            if self.unstored_bytes > self._furthest:
                await self._not_too_far_ahead()
            return
        for piece in _pieces(whole, self._longest):
            self._accept(piece, index)
            if self.unstored_bytes > self._furthest:
                await self._not_too_far_ahead()

    async def part(self, part: Part, *, index: int | None = None) -> int:
        """Open a part (without `index`) or replace one. Return its index. It is accepted as `append` is."""
        self._check_open()
        part = check_part(part, self._hub.limits)
        self._accept_held()
        position = self._parts if index is None else index
        size = part_bytes(part)
        self._put(PutPart(index=position, part=part, generation=self.generation, request=self._new_request()), size)
        self._parts = max(self._parts, position + 1)
        text = part.get("text", part.get("input"))
        self._lengths[position] = len(text) if isinstance(text, str) else 0
        if part.get("type") == "text":
            self._text_parts.add(position)
        else:
            self._text_parts.discard(position)
        self._last_text = max(self._text_parts, default=-1)
        await self._not_too_far_ahead()
        return position

    async def update(self, *, meta: dict[str, Json]) -> None:
        """Merge `meta` into the message's meta; None removes a key. It is accepted as `append` is."""
        self._check_open()
        size = check_json(meta, self._hub.limits.meta_bytes, "meta", depth=self._hub.limits.depth)
        self._put(UpdateMessage(meta=meta, generation=self.generation, request=self._new_request()), size)
        await self._not_too_far_ahead()

    async def flush(self) -> None:
        """Wait until all accepted requests are stored. Raises as `append`."""
        until_s: float | None = None
        while self._texts or self._in_flight or self._queue:
            waiter = self._waiter()
            if self._trouble is None and until_s is None:  # the common case, without another coroutine
                await waiter
            else:
                until_s = await self._wait_for_store(waiter, until_s)
        if self._error is not None:
            raise self._error

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None:
        """End the message (`complete`, `cancelled` or `failed`) and wait until it is stored whole."""
        self._check_open()
        if (misuse := self._not_awaited()) is not None:
            raise misuse
        end = FinishMessage(
            status=status,  # type: ignore[arg-type]
            reason=reason,
            meta=meta or {},
            generation=self.generation,
            request=self._new_request(),
        )
        check_finish(end, self._hub.limits)
        self._accept_held()
        self._put(end, 0)
        self._is_over = True
        await self.flush()

    async def open(self) -> Self:
        """Store the beginning of the message, so that its `id` can be sent before a task enters `async with message`.

        Entering the block calls this. A message that is opened must be entered, or it streams for ever.
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
            if answer.message is None:  # created, and deleted before its result arrived
                raise Deleted(f"message {self.id!r} was deleted")
        except BaseException:
            self._hub.unregister_writer(self)
            raise
        self.take_up(answer.message, answer.generation or 1)
        return self

    async def _created(self, create: CreateMessage) -> Result:
        """Store the beginning. If cancelled meanwhile, end the message as cancelled if it was created."""
        creating, done = result_later()
        self._hub.submit(self.channel, self.id, create, self._caller, done)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating], timeout=PATIENCE_S)
            if creating.done() and creating.exception() is None and creating.result().created:
                end = FinishMessage(status="cancelled", generation=1)
                with contextlib.suppress(
                    HoldfastError
                ):  # the hub is shutting down: its next start recovers the message
                    await self._hub.ask(self.channel, self.id, end, self._caller)
            raise

    async def __aenter__(self) -> Self:
        return await self.open()

    if not TYPE_CHECKING:  # a type checker reports the missing methods by itself

        def __enter__(self):
            raise LocalError(
                "hub.message needs `async with hub.message(...) as message`; in a thread, use "
                "`with hub.sync.message(...) as message`"
            )

        def __exit__(self, *error):
            raise AssertionError("the block was never entered")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        misuse: LocalError | None = None
        try:
            if kind is None and not self._is_over and self._error is None:
                misuse = self._not_awaited()
                await (self.finish() if misuse is None else self._finish_early("failed", misuse.code))
            elif error is not None and not self._is_over and self._error is None:
                await self._finish_early(*self._end_for(error))
        finally:
            self._is_over = True
            await self._finish_after_refusal()
            self._hub.unregister_writer(self)
        if misuse is not None:
            raise misuse
        if kind is None:
            self._raise_error()

    # -- for the committer -------------------------------------------------------------------------------------

    def asks(self) -> Sequence[Ask]:
        """Return the requests in flight and all accepted ones; the gathered text becomes one append.

        A request that replaces a part waits until earlier text of that part is stored. After a commit with an unknown
        outcome all of them are decided again, and text for a part that was replaced would be refused.
        """
        self._gather()
        if len(self._queue) == 1 and not self._in_flight and not self._is_interrupting:  # the common case
            ask = Ask(self.id, self._queue.popleft(), self._caller)
            self._in_flight.append(ask)
            self._in_flight_bytes = self.unstored_bytes
            return (ask,)
        grown = {ask.request.part for ask in self._in_flight if isinstance(ask.request, AppendText)}
        # A message remembers this many requests by their ids.
        while self._queue and len(self._in_flight) < KEPT_REQUESTS:
            request = self._queue[0]
            if isinstance(request, AppendText):
                grown.add(request.part)
            elif isinstance(request, PutPart) and not grown.isdisjoint((request.index, None)):
                break
            self._take_first()
        self._in_flight_bytes = 0 if self._queue else self.unstored_bytes
        return tuple(self._in_flight)

    def _take_first(self) -> None:
        """Move the first queued request to those in flight."""
        request, caller = self._queue.popleft(), self._caller
        if self._is_interrupting and isinstance(request, FinishMessage):
            caller = replace(caller, is_server=True)
        self._in_flight.append(Ask(self.id, request, caller))

    def answered(self, decided: Decided) -> None:
        self._live = decided.channel
        in_flight = self._in_flight
        del in_flight[: len(decided.asks)]
        self.unstored_bytes -= self._in_flight_bytes
        self._in_flight_bytes = 0
        self._trouble = None
        self._is_waiting = False
        if decided.refusal is not None:
            self._refuse(decided.refusal)
        if self._queue or in_flight or (self._texts and self._waiters):
            self._submit()
        elif self._texts:
            self._submit_in_time()
        if self._waiters:
            self._wake_waiters()

    def failed(self, error: HoldfastError) -> None:
        """Keep all requests and retry later, since the store failed. If the hub has stopped, refuse them."""
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
        """Set the id of the message to write."""
        self.id = message_id
        self.ids: tuple[str, ...] = (message_id,)

    def take_up(self, message: Message, generation: int) -> None:
        """Continue at the end of `message`, which may hold text of another writer. For the hub."""
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
                raise LocalError(
                    f"message {self.id!r} has {self._parts} parts, got the index {part}; open that part first"
                )
            return part
        if self._last_text < 0:
            self._text_parts.add(self._parts)
            self._last_text = self._parts
            self._parts += 1
            self._is_unopened = True
        return self._last_text

    def _join_halves(self, text: str, index: int) -> str:
        """Return `text` after the held half of a pair, and hold back half a pair at its end."""
        if self._surrogates_part != index:
            self._accept_held()
            self._surrogates_part = index
        return self._surrogates.write(text)

    def _accept_held(self) -> None:
        """Accept the held half of a surrogate pair, whose other half never came."""
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
        """Return a request id, unique to this writer, by which the message recognises a repeat."""
        self._requests += 1
        return f"{self._hub.node[-5:]}{self.generation}.{self._requests}"

    def _put(self, request: Request, size: int) -> None:
        """Accept a request other than an append."""
        self._gather()
        self._queue.append(request)
        self.unstored_bytes += size
        self._submit()

    async def _not_too_far_ahead(self) -> None:
        until_s: float | None = None
        while self.unstored_bytes > self._furthest:
            until_s = await self._wait_for_store(self._waiter(), until_s)
            self._raise_error()

    def _gather(self) -> None:
        """Queue the gathered text as one append."""
        texts = self._texts
        if not texts:
            return
        text = texts[0] if len(texts) == 1 else "".join(texts)
        texts.clear()
        at = self._lengths.get(self._texts_part, 0)
        self._lengths[self._texts_part] = at + len(text)
        if len(text) <= self._longest and not self._is_unopened:  # the common case
            request = AppendText(text=text, at=at, part=self._texts_part, generation=self.generation)
            self._queue.append(request)
            return
        for piece in _pieces(text, self._longest):
            part = None if self._is_unopened and self._texts_part in self._text_parts else self._texts_part
            self._is_unopened = self._is_unopened and part is not None
            self._queue.append(AppendText(text=piece, at=at, part=part, generation=self.generation))
            at += len(piece)

    def _submit_in_time(self) -> None:
        """Submit text that only viewers wait for, so that it is stored by the end of their flush window."""
        if self._is_delayed:
            return
        live = self._live
        if live is not None and live.watchers and self._hub.call_in_time(live, self._delay_ended):
            self._is_delayed = True
        else:
            self._submit()

    def _delay_ended(self) -> None:
        self._is_delayed = False
        if self._texts or self._in_flight or self._queue:
            self._submit()

    def _submit(self) -> None:
        """Queue this writer at the committer."""
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
        self._in_flight.clear()

    def _waiter(self) -> asyncio.Future[None]:
        """Return a future that is done after the next commit or failure. Raises a refusal."""
        if self._error is not None:
            raise self._error
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._is_delayed and self._trouble is None:  # otherwise a retry is scheduled
            self._submit()
        return waiter

    async def _wait_for_store(self, waiter: asyncio.Future[None], until_s: float | None) -> float | None:
        """Wait for `waiter`. While the store fails, wait until `until_s` at most, then raise StoreUnavailable.

        Return the deadline for further waits while the store fails.
        """
        if self._trouble is None:  # a timeout costs more than the rest of a flush
            await waiter
            return None
        until_s = until_s or asyncio.get_running_loop().time() + PATIENCE_S
        try:
            async with asyncio.timeout_at(until_s):
                await waiter
        except TimeoutError:
            detail = self._trouble.detail if self._trouble is not None else "store did not respond"
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

    def _not_awaited(self) -> LocalError | None:
        """Return an error if the text of a call of `append` is missing, because the call was not awaited."""
        missing = self._called - self._awaited
        if missing <= 0:
            return None
        self._awaited = self._called
        times = "once" if missing == 1 else f"{missing} times"
        return LocalError(
            f"append to message {self.id!r} was called {times} without await, so its text is missing; "
            "write `await message.append(text)`"
        )

    def _check_open(self) -> None:
        if self._is_over:
            raise LocalError(f"message {self.id!r} has ended; no text can be added")
        if not self._is_open:
            raise LocalError(f"message {self.id!r} is not begun: use `async with`")
        self._raise_error()

    async def _finish_after_refusal(self) -> None:
        """Finish a message as failed, with the text so far, if a request was refused while it streams."""
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
        """Return status and public reason of a message whose block `error` ended. The traceback goes to the log."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return self.cancelled_as
        if isinstance(error, HoldfastError):
            self._is_interrupting = error.ends_as == "interrupted"
            return error.ends_as, error.code
        return "failed", public_reason(error)

    async def _finish_early(self, status: str, reason: str | None) -> None:
        """Store the accepted requests and finish the message: its block ended early.

        A draining hub leaves the message open: the next start adopts or interrupts it.
        """
        ending = asyncio.ensure_future(self.flush() if self._hub.is_draining else self.finish(status, reason=reason))
        ending.add_done_callback(_retrieve_exception)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(ending)
        except (HoldfastError, TimeoutError) as error:
            logger.warning("message %r of %s could not be ended as %s: %r", self.id, self.channel, status, error)


def _pieces(text: str, limit: int) -> Iterable[str]:
    """Return `text` in pieces of at most `limit` characters."""
    if len(text) <= limit:
        return (text,) if text else ()
    return [text[start : start + limit] for start in range(0, len(text), limit)]


def _retrieve_exception(ending: asyncio.Future[None]) -> None:
    """Retrieve the exception of `ending`, also if its waiter gave up."""
    if not ending.cancelled():
        ending.exception()
