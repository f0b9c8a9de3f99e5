"""A message that is written over the network: `async with client.message("chat:1") as message`.

Layer: client.

`core.outgoing_remote` holds the rules: which content is accepted, which requests can be sent together, and the content
that is sent again after a failure. This module connects them to the connection (`link`), the timers and the lease: the
right to write the message until a time. Each request renews it, and a timer does while none are sent. On each new
connection the writer first reads its message: it sends the create again, which returns an existing message and does not
change it. A message that was taken over is read from the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

from msgspec import Struct

from tenuto.client.connection import Unreachable, decode_response, given
from tenuto.client.link import Link, Outcome, Retry
from tenuto.client.work import RENEWALS
from tenuto.core.errors import (
    Deleted,
    Fenced,
    Finished,
    IdConflict,
    InvalidRequest,
    LocalError,
    NotFound,
    NotWriter,
    TenutoError,
    failures_in,
)
from tenuto.core.events import Page, parse_cursor
from tenuto.core.model import Message
from tenuto.core.outgoing import ENDED, NEW, OPEN, OutgoingRequest, WriterRequest, end_for
from tenuto.core.outgoing_remote import RemoteOutgoing
from tenuto.core.requests import AppendText, FinishMessage, PutPart, UpdateMessage
from tenuto.portal import Writer, ended_as, retrieve_exception

logger = logging.getLogger("tenuto.client")

SHORTEST_LEASE_S = 5.0  # shortest lease that a server accepts
_NOT_ENDED = "message %r of %s was not ended as %s, so it becomes interrupted when its lease ends: %s"


def _now_s() -> float:
    return asyncio.get_running_loop().time()


# After these errors the server accepts no further request for the message, not even its end.
_OVER = (Finished, Fenced, Deleted, NotFound, NotWriter, LocalError)


class Created(Struct, frozen=True, kw_only=True):
    """The response to a create."""

    message: Message
    generation: int
    cursor: str


class TakenOver(Struct, frozen=True, kw_only=True):
    """The response to a takeover."""

    generation: int


class RemoteWriter(Writer):
    """Writes one streaming message. Made by `Client.message` and `Client.take_over`; used by one task at a time."""

    made_by = "client"
    _outgoing: RemoteOutgoing

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
        """Create the message with the fields `create`, or take it over if they are None; then `read` returns it."""
        outgoing = RemoteOutgoing(message_id, link.limits, f"{link.random.getrandbits(40):010x}")
        super().__init__(channel, outgoing)
        # returns the reason to store for a message whose block that exception ended; None: without a reason
        self.reason_of: Callable[[BaseException], str | None] = lambda _: None
        self._link = link
        self._create = create
        self._read = read
        self._lease_s = lease_s
        self._has_lease = True  # False: the server has no leases, or the writer lets its lease end
        self._used_at_s = 0.0  # when the last request was sent: each one renews the lease
        self._renewal: asyncio.TimerHandle | None = None  # timer of the next renewal
        self._created = 0  # serial of the message's create
        self._reads = 0  # number of the latest read of the message, so that results of earlier ones are ignored
        self._again = Retry(link)  # of requests, or of a read of the message
        self._stored_at_s = 0.0  # when content was stored last
        self._changed = asyncio.Event()  # set when `_until` must check again

    # -- public ------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """Return the accepted text of all text parts."""
        return self._outgoing.text

    async def flush(self) -> None:
        """Wait until all accepted content is stored. Raises as `append`."""
        self._pump()
        await self._until(lambda: not self._outgoing.unstored_bytes)

    async def _stored_whole(self) -> None:
        self._pump()
        await self._until(lambda: self._outgoing.state is ENDED)

    async def open(self) -> Self:
        """Store the beginning of the message, so that its `id` can be sent before a task enters `async with message`.

        Entering the block calls this. A message that is opened must be entered, or it streams until its lease ends.
        While the server refuses it for now, the request is repeated for the client's `timeout_s`. Raises IdConflict if
        another message has its id; of a takeover Finished, StillStreaming, NotFound; Unreachable as `append`.
        """
        while self._outgoing.state is NEW:
            try:
                await (self._take_over() if self._create is None else self._begin(self._create))
            except (IdConflict, Deleted):
                if self.spare_id is None:
                    raise
                self._outgoing.id = self.spare_id()
        return self

    async def _begin(self, create: dict[str, Any]) -> None:
        """Create the message. If cancelled meanwhile, end it in case it was created."""
        try:
            response = await self._link.insist("create", self._frame(create))
        except asyncio.CancelledError:
            status, reason = self.cancelled_as
            kind, fields = "finish", {"generation": 1, "status": status, "reason": reason}
            if status == "interrupted":  # the server alone sets `interrupted`, when the lease ends
                kind, fields = "lease", {"generation": 1, "lease_s": SHORTEST_LEASE_S}
            # the message was not created, or there is no connection, in which case its lease will end
            with contextlib.suppress(TenutoError):
                await self._link.request(kind, self._frame(fields), timeout_s=self._link.timing.leave_s)
            raise
        created = decode_response(response, Created)
        message = created.message
        if message.version != message.created or message.status != "streaming":
            raise IdConflict(f"message {self.id!r} exists already; use another id")
        self._accept_after(message, created.generation, created.cursor, sockets=self._link.sockets)

    async def _take_over(self) -> None:
        """Take the message over, and read it."""
        sockets = self._link.sockets
        request = f"{self._outgoing.nonce}.{self._link.random.getrandbits(40)}"
        fields = {"lease_s": self._lease_s, "request": request}
        taken = decode_response(await self._link.insist("takeover", self._frame(fields)), TakenOver)
        message, cursor = await self._read()
        self._accept_after(message, taken.generation, cursor, sockets=sockets)

    def _accept_after(self, message: Message, generation: int, cursor: str, *, sockets: int) -> None:
        """Accept content after that of `message`; a socket after number `sockets` of the link reads it again."""
        self.is_begun = True
        self._created = message.created
        self._stored_at_s = _now_s()
        self._outgoing.load(message, generation)
        self._outgoing.epoch = _epoch_of(cursor)
        self._outgoing.open()
        self._used_at_s = _now_s()
        self._renew_later()
        self._link.add_listener(self, since=sockets)

    async def _end(self, error: BaseException | None, misuse: LocalError | None) -> None:
        """End the message whole, or as the block's `error` or its `misuse` says."""
        try:
            if misuse is not None:  # a call was not awaited
                await self._end_early(*end_for(misuse))
            elif error is None and self._outgoing.error is None:
                await self._end_as("complete", None)
        except Unreachable:
            raise  # the writer has already waited for a connection, so it does not retry
        except BaseException:  # such as a cancellation meanwhile
            await self._end_early(*self.cancelled_as)
            raise
        else:
            if error is not None:
                # a message that the outage of its server has cut is for the next writer, also if the outage ends now
                is_cut = any(isinstance(one, Unreachable) for one in failures_in(error))
                cut_as = ("interrupted", None) if is_cut else self.cancelled_as
                await self._end_early(*ended_as(error, cut_as, self.reason_of))

    # -- for the link ------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Renew the lease, which the end of the old connection has shortened, and read the message before writing."""
        if self._outgoing.is_settled:
            return
        broken = f"the connection broke before message {self.id!r} was stored whole; the client repeats its requests"
        self._outgoing.disconnected(Unreachable(broken))
        self._renew()
        self._read_message()

    def broken(self) -> None:
        """Wait for the next connection."""
        self._reads += 1
        self._again.cancel()

    def stopped(self, error: TenutoError) -> None:
        """Refuse all content, because there will be no other connection."""
        if not self._outgoing.is_settled:
            self._refuse(error)

    # -- sending -----------------------------------------------------------------------------------------------

    async def _accepted(self) -> None:
        """Send what was accepted, and wait while too much of it is not stored."""
        self._pump()
        limit = self._link.limits.writer_bytes
        if self._outgoing.unstored_bytes > limit:
            await self._until(lambda: self._outgoing.unstored_bytes <= limit)

    def _pump(self) -> None:
        """Send the requests that can be sent now."""
        outgoing = self._outgoing
        if outgoing.state is NEW or not self._link.is_live:
            return
        for one in outgoing.requests_to_send(self._link.limits.writer_bytes):
            if outgoing.is_settled:
                return  # the link refused one of these before it was sent
            self._used_at_s = _now_s()
            kind, fields = _frame_of(one.request)
            fields = {**self._frame(fields), "generation": outgoing.generation}
            self._link.begin(kind, fields, partial(self._request_done, one))

    def _request_done(self, one: OutgoingRequest, result: Outcome) -> None:
        outgoing = self._outgoing
        if outgoing.is_settled:
            return
        if isinstance(result, TenutoError):
            outgoing.request_failed(one, result)
        else:
            outgoing.request_stored(one)
            self._again.succeeded()
            self._stored_at_s = _now_s()
        if outgoing.trouble is None:
            self._pump()
        elif not outgoing.in_flight and self._link.is_live:  # without a connection, `opened` continues later
            self._again.later(self._retry)
        self._changed.set()

    # -- the lease ---------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Renew the lease, unless a request has done so recently. In trouble none counts: it may be refused."""
        is_idle = _now_s() - self._used_at_s >= self._lease_s / RENEWALS * 0.9
        if self._has_lease and self._link.is_live and (is_idle or self._outgoing.trouble is not None):
            self._used_at_s = _now_s()
            self._link.begin("lease", self._lease(self._lease_s), self._renewed)
        self._renew_later()

    def _renew_later(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        interval_s = self._lease_s / RENEWALS
        due_s = max(self._used_at_s + interval_s, _now_s() + interval_s / 10)
        self._renewal = asyncio.get_running_loop().call_at(due_s, self._renew)

    def _renewed(self, result: Outcome) -> None:
        if isinstance(result, InvalidRequest):
            self._has_lease = False
        elif isinstance(result, Finished | Fenced | Deleted | NotWriter) and self._outgoing.state is OPEN:
            self._refuse(result)

    def _lease(self, lease_s: float) -> dict[str, Any]:
        return self._frame({"generation": self.generation, "lease_s": lease_s})

    # -- after a failure ---------------------------------------------------------------------------------------

    def _retry(self) -> None:
        if self._outgoing.is_lost:  # the server has less than it has acknowledged
            self._read_message()
        else:
            self._outgoing.resume()
            self._pump()

    def _read_message(self) -> None:
        """Request the present state of the message from the server.

        A repeated create with the same fields returns the message and does not change it.
        """
        self._again.cancel()
        self._reads += 1
        when_done = partial(self._message_read, self._reads)
        if self._create is not None:
            self._link.begin("create", self._frame(self._create), when_done)
        else:
            fields = {"channel": self.channel, "before": self._created + 1, "limit": 1}
            self._link.begin("history", fields, when_done)

    def _message_read(self, number: int, result: Outcome) -> None:
        """Go on from the message as the server has it, unless a later read than `number` has begun."""
        outgoing = self._outgoing
        if number != self._reads or outgoing.is_settled:
            return
        try:
            if isinstance(result, TenutoError):
                raise result
            message, epoch = self._message_of(result)
        except TenutoError as error:
            if not error.retry:
                self._refuse(error)
            elif self._link.is_live:
                self._again.later(self._read_message)
            return
        if outgoing.seen(message, epoch):
            logger.warning("message %r of %s may lack stored content, which is written again", self.id, self.channel)
        self._pump()
        self._changed.set()  # a waiting call must check again, since no content may be left to store

    def _message_of(self, response: dict[str, Any]) -> tuple[Message, str]:
        """Return the message in `response`, and the epoch of the log. Raises NotFound."""
        if self._create is not None:
            created = decode_response(response, Created)
            return created.message, _epoch_of(created.cursor)
        page = decode_response(response, Page)
        if not page.messages or page.messages[0].id != self.id:
            raise NotFound(f"message {self.id!r} is not in channel {self.channel!r} any more; write another message")
        return page.messages[0], _epoch_of(page.cursor)

    def _refuse(self, error: TenutoError) -> None:
        self._outgoing.refuse(error)
        self._again.cancel()
        self._changed.set()

    # -- waiting and ending ------------------------------------------------------------------------------------

    async def _until(self, is_true: Callable[[], bool]) -> None:
        """Wait for `is_true`. Raises a refusal; if no request is stored in time, the present failure or Unreachable."""
        patience_s = self._link.timing.request_s
        began_s = _now_s()
        self._outgoing.raise_error()
        while not is_true():
            left_s = max(began_s, self._stored_at_s) + patience_s - _now_s()
            self._changed.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                if _now_s() - max(began_s, self._stored_at_s) < patience_s:  # a request was stored meanwhile
                    continue
                trouble = self._outgoing.trouble
                if trouble is not None and not isinstance(trouble, Unreachable):
                    raise trouble from None
                what = f"message {self.id!r} made no progress for {patience_s:g} s"
                raise self._link.unreachable(what) from None
            self._outgoing.raise_error()

    async def _end_early(self, status: str, reason: str | None) -> None:
        """Store the accepted content and end the message as `status`, because its block ended early."""
        if self._outgoing.is_settled:
            return
        ending = asyncio.ensure_future(self._end_as(status, reason))
        ending.add_done_callback(retrieve_exception)
        try:
            async with asyncio.timeout(self._link.timing.leave_s):
                await asyncio.shield(ending)
        except (TenutoError, TimeoutError) as error:
            ending.cancel()
            logger.warning(_NOT_ENDED, self.id, self.channel, status, str(error) or "the server did not respond")

    async def _end_as(self, status: str, reason: str | None) -> None:
        """End the message as `status` unless it has an end, and wait until that is stored, except for `interrupted`."""
        if self._outgoing.state is OPEN:
            # the server alone sets `interrupted`, when the lease ends, which is soon
            if status == "interrupted" and not self.had_ended:
                await self.flush()
                self._has_lease = False
                await self._link.request("lease", self._lease(SHORTEST_LEASE_S), is_repeatable=False)
                return
            self._outgoing.accept_end(status, reason=reason)
        await self._stored_whole()

    async def _finish_after_refusal(self) -> None:
        """If a request was refused while the message streams, finish the message as failed, with the text so far."""
        error = self._outgoing.error
        if error is None or isinstance(error, _OVER) or self._link.error is not None:
            return
        fields = {"status": "failed", "reason": error.code, "generation": self.generation}
        try:
            await self._link.request("finish", self._frame(fields), timeout_s=self._link.timing.leave_s)
        except TenutoError as trouble:
            logger.warning(_NOT_ENDED, self.id, self.channel, "failed", trouble)

    def _close(self) -> None:
        self._link.remove_listener(self)
        self._reads += 1
        self._again.cancel()
        if self._renewal is not None:
            self._renewal.cancel()

    def _frame(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return `fields` with the names of the channel and the message."""
        return {"channel": self.channel, "id": self.id, **fields}


def _frame_of(request: WriterRequest) -> tuple[str, dict[str, Any]]:
    """Return the type and the fields of the frame for `request`, without names and generation."""
    match request:
        case AppendText():
            return "append", {"part": request.part, "at": request.at, "text": request.text}
        case PutPart():
            return "part", {"part": request.index, "value": request.part, "request": request.request}
        case UpdateMessage():
            superseding = given(supersede=request.supersede, beside=request.beside or None, parts=request.parts)
            return "update", {**superseding, "meta": request.meta, "request": request.request}
        case FinishMessage():
            fields = given(status=request.status, reason=request.reason, meta=request.meta or None)
            return "finish", {**fields, "request": request.request}


def _epoch_of(cursor: str) -> str:
    return "" if (known := parse_cursor(cursor)) is None else known.epoch
