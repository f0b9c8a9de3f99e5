"""Messages being written in this process, and the recovery of those that ended nodes left open.

Layer: hub.

`core.outgoing` holds the rules: which content is accepted, and the requests for it. This module connects them to the
committer, which collects the requests of a writer for its next commit, and to timers: text that only viewers wait for
is stored shortly before their flush, and a failed commit is tried again. Only documented names of `MessageWriter` are
public.

A writer is registered with its run of the hub while it writes. A message whose writer has gone without storing an end
is ended later, because no other component would.

A message whose writer ended with its node is continued by an adopter of the app, or becomes `interrupted`. A remote
writer gets one full lease to reconnect. Commands and turns continue to wait. On an exclusive store a hub recovers
before it serves; on a shared store, when the lease of a node has expired (`tenuto.hub.nodes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from tenuto.core.document import restore, restore_command
from tenuto.core.errors import (
    Busy,
    Deleted,
    Draining,
    Fenced,
    Finished,
    IdConflict,
    LocalError,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
    TenutoError,
    is_of_drain,
)
from tenuto.core.model import Message
from tenuto.core.names import COMMAND_MARK, matches
from tenuto.core.ops import WriterIdentity
from tenuto.core.outgoing import NEW, OPEN, Outgoing, WriterRequest
from tenuto.core.requests import SERVER, Caller, CreateMessage, FinishMessage, TakeOver
from tenuto.core.state import MessageState
from tenuto.hub.channel import Channel
from tenuto.hub.committer import Begin, in_time, sent_again
from tenuto.hub.lifecycle import Lifecycle
from tenuto.hub.nodes import IsMine
from tenuto.hub.pending import Ask, Decided, Result, own_copy, result_later
from tenuto.hub.runtime import Runtime
from tenuto.hub.turns.scheduler import lose_turns
from tenuto.portal import Writer, ended_as, owner_in, retrieve_exception
from tenuto.stores.base import Store

logger = logging.getLogger("tenuto.hub")


RETRY_S = 0.25  # wait before the next try after the store failed; a full disk is not emptied faster
NOT_ENDED = "message %r of %s was not ended as %s, and is interrupted once the store responds: %s"
PATIENCE_S = 10.0  # how long `append`, `flush` and the end of the block wait while the store fails
# The same for the end of a block while the hub drains. After two seconds (`lifecycle.SHUTDOWN_S`) it waits for handlers
# no more, and one that still runs would work beside those of the next run.
LEAVING_S = 1.5


class MessageWriter(Writer):
    """Writes one streaming message. Made by `Hub.message`; used by one task at a time."""

    made_by = "hub"
    is_beginning = False  # its beginning is a request of its own
    size_bytes = 0  # counted as 0 in the committer's queue: the writer bounds its accepted text itself

    def __init__(
        self, hub: Lifecycle, channel: str, message_id: str, *, create: CreateMessage | None, author: str | None
    ) -> None:
        super().__init__(channel, Outgoing(message_id, hub.limits))
        self.ids: tuple[str, ...] = (message_id,)  # messages that the committer needs in memory (`Item`)
        # the attempt at a turn that this message answers; its creation is refused if the attempt has lost the turn
        self.turn_attempt: int | None = None
        self._hub = hub
        self._create = create  # None: the message exists, and is continued
        self._caller: Caller = hub.caller(author)
        self._outgoing.meta = dict(create.meta) if create is not None else {}
        self._max_bytes = hub.limits.writer_bytes
        # None: not queued at the committer; else whether the commit of the queued text may keep its gap to the last one
        self._has_gap: bool | None = None
        self._is_delayed = False  # True: will be queued shortly before the next flush
        self._run: Runtime | None = None  # the run of the hub in which the message was opened
        # the channel of the last commit, to find its viewers; None or outdated: no viewers
        self._live: Channel | None = None
        self._trouble: TenutoError | None = None  # the error while the store fails, else None
        self._waiters: list[asyncio.Future[None]] = []  # those of `_waiter` that are not done
        self._retry: asyncio.TimerHandle | None = None  # calls `_try_again`; None: no retry is scheduled

    # -- public ------------------------------------------------------------------------------------------------

    async def _append(self, text: str, part: int | None) -> None:
        self._appends -= 1  # this call is awaited
        outgoing = self._outgoing
        outgoing.accept_text(text, part, owner_in(outgoing))
        if self._has_gap is None:  # not queued yet
            self._schedule_submit()
        if outgoing.unstored_bytes > self._max_bytes:
            await self._until_unstored(self._max_bytes)

    async def _accepted(self) -> None:
        self._submit()
        await self._until_unstored(self._max_bytes)

    async def flush(self) -> None:
        """Wait until all accepted requests are stored. Raises as `append`."""
        if self._outgoing.state is not NEW:
            await self._until_unstored(0)

    async def _stored_whole(self) -> None:
        self._submit()
        await self.flush()

    async def open(self) -> Self:
        """Store the beginning of the message, so that its `id` can be sent before a task enters `async with message`.

        `async with` calls this too. Only the end of that block ends the message, so an opened message needs one.
        """
        if self._outgoing.state is not NEW:
            return self
        if self._create is None:
            self._register()
        else:
            while not self.is_begun:
                try:
                    await self._begin(self._create)
                except (IdConflict, Deleted):
                    if self.spare_id is None:
                        raise
                    self._outgoing.id = self.spare_id()
                    self.ids = (self.id,)
        self._outgoing.open()
        self._submit()  # meta of a message that is continued
        return self

    async def _begin(self, create: CreateMessage) -> None:
        """Register this writer, and store the beginning of the message. Raises the refusal."""
        await self._hub.start()
        self._caller = self._hub.caller(self._caller.id)  # it names the node, which each start of the hub changes
        self._register()
        try:
            result = await self._created(create)
            if not result.created:
                raise IdConflict(f"message {self.id!r} exists already; use another id")
            if result.message is None:  # the message was created, and deleted before the result arrived
                raise Deleted(f"message {self.id!r} was deleted; create another one")
        except BaseException:
            self._close()
            raise
        self.take_up(result.message, result.generation or 1)

    def _register(self) -> None:
        """Note the run of the hub in which this writes. Raises IdConflict if the message has another writer here."""
        self._run = self._hub.runtime
        if self._run.writers.setdefault((self.channel, self.id), self) is not self:
            raise IdConflict(f"message {self.id!r} has a writer in this process already; use another id")

    def _close(self) -> None:
        """Note that this has ended, and see to the end of its message."""
        # the next run of the hub, which may be in another thread, recovers the message
        if self._hub.is_running and (run := self._hub.runtime) is self._run:
            if run.writers.get((self.channel, self.id)) is self:
                del run.writers[self.channel, self.id]
                run.tasks.quieter.set()
            interrupt_abandoned(self._hub, self.channel, self.id, self.generation)

    async def _created(self, create: CreateMessage) -> Result:
        """Store the beginning, and try again while the store fails. Raises the refusal; StoreUnavailable, Busy."""
        until_s, is_repeat = asyncio.get_running_loop().time() + PATIENCE_S, False
        while True:
            try:
                return await self._created_or_ended(create, is_repeat=is_repeat)
            except TenutoError as error:
                is_over = asyncio.get_running_loop().time() + RETRY_S >= until_s
                if is_over or not error.retry or isinstance(error, Draining):
                    raise
                is_repeat = True
                await asyncio.sleep(RETRY_S)
                if self._hub.caller(self._caller.id) != self._caller:  # the hub has begun another run
                    raise

    async def _created_or_ended(self, create: CreateMessage, *, is_repeat: bool) -> Result:
        """Store the beginning. If cancelled meanwhile, end the message if it was created."""
        creating, done = result_later()
        caller = replace(self._caller, attempt=self.turn_attempt)
        self._hub.runtime.submit(self.channel, self.id, create, caller, done, is_repeat=is_repeat)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating], timeout=PATIENCE_S)
            if creating.done() and creating.exception() is None and creating.result().created:
                status, reason = self.cancelled_as
                end = self._ask(FinishMessage(status=status, reason=reason, generation=1))  # type: ignore[arg-type]
                # on an error the message stays open: the hub is shutting down, and its next start recovers the message
                with contextlib.suppress(TenutoError):
                    await self._hub.ask(self.channel, self.id, end.request, end.caller)
            raise

    async def _end(self, error: BaseException | None, misuse: LocalError | None) -> None:
        if self._outgoing.is_over:
            return  # its end was accepted in the block, or a request was refused
        if (early := error or misuse) is not None:
            await self._finish_early(early)
        else:
            await self.finish()

    # -- for the committer -------------------------------------------------------------------------------------

    def asks(self) -> Sequence[Ask]:
        """Put all requests in flight that can be sent now, and return all that are in flight."""
        outgoing = self._outgoing
        sent = outgoing.requests_to_send(self._max_bytes)
        if len(sent) == 1 and outgoing.state is OPEN:  # the common case: one request, and no end
            return (Ask(outgoing.id, sent[0].request, self._caller),)
        return [self._ask(one.request) for one in sent]

    def decided(self, decided: Decided) -> None:
        """Note what is stored or refused, and queue the text that was accepted meanwhile."""
        self._live = decided.channel
        self._trouble = None
        self._has_gap = None
        outgoing = self._outgoing
        if decided.refusal is None:
            outgoing.stored(len(decided.granted))
        else:
            outgoing.refuse(decided.refusal)
        if outgoing.unstored_bytes:
            if self._waiters or outgoing.has_requests:  # no delay, as for text that only viewers wait for
                self._submit()
            else:
                self._schedule_submit()
        if self._waiters:
            self._wake_waiters()

    def failed(self, error: TenutoError) -> None:
        """Keep all requests and retry later; refuse them if the hub has stopped, or if `error` allows no retry."""
        self._has_gap = None
        if isinstance(error, Draining) or not error.retry:
            self._outgoing.refuse(error)
        if self._outgoing.error is None:
            self._trouble = error
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        self._wake_waiters()

    # -- for the hub -------------------------------------------------------------------------------------------

    def take_up(self, message: Message, generation: int) -> None:
        """Continue at the end of `message`, which may contain text of another writer."""
        # the prefix of the request ids is set only now: the name of the hub's run is known once the hub has started
        self._outgoing.nonce = self._hub.node[-5:]
        self._outgoing.load(message, generation)
        self.is_begun = True

    # -- queueing ----------------------------------------------------------------------------------------------

    def _ask(self, request: WriterRequest) -> Ask:
        caller = self._caller
        if type(request) is FinishMessage and request.status == "interrupted":
            caller = replace(caller, is_server=True)
        return Ask(self._outgoing.id, request, caller)

    def _schedule_submit(self) -> None:
        """Submit text that only viewers wait for, early enough to be stored by the end of their flush window."""
        if self._is_delayed:
            return
        live, run = self._live, self._run
        if live is None or run is None or not live.watchers:
            self._submit()
            return
        begin = run.committer.pace.begin(live, self._delay_ended)
        if begin is Begin.LATER:
            self._is_delayed = True
        else:
            self._submit(is_urgent=begin is Begin.NOW)

    def _delay_ended(self) -> None:
        self._is_delayed = False
        self._submit()

    def _try_again(self) -> None:
        """Submit again, because the store failed or the committer's queue was full."""
        self._retry = None
        self._submit()

    def _submit(self, *, is_urgent: bool = True) -> None:
        """Queue this writer at the committer if it has requests; while the store fails, `_try_again` does so later.

        With `is_urgent` the next commit keeps no gap to the last one.
        """
        run = self._run
        if run is None:  # the message had ended before
            return
        if self._has_gap is not None:
            if is_urgent and self._has_gap:
                self._has_gap = False
                run.committer.pace.hurry()
        elif self._retry is None and self._outgoing.unstored_bytes:
            self._has_gap = not is_urgent
            try:
                run.committer.submit(self, is_urgent=is_urgent)
            except TenutoError as refusal:
                error = refusal
                if self._hub.is_running and self._hub.runtime is not run:
                    # the store may have lost text of this writer; in the new run an adopter continues it, or it ends
                    again = "the hub has begun another run since the message was opened; open another message"
                    error = Fenced(again)
                self.failed(error)

    # -- waiting -----------------------------------------------------------------------------------------------

    async def _until_unstored(self, left_bytes: int) -> None:
        """Wait until at most `left_bytes` of the content are not stored. Raises the refusal.

        While the store fails, wait for `PATIENCE_S`, then raise StoreUnavailable.
        """
        outgoing, until_s = self._outgoing, None
        while outgoing.unstored_bytes > left_bytes:
            waiter = self._waiter()
            if self._trouble is None:  # a timeout would cost more than the rest of a flush
                until_s = None
                await waiter
                continue
            until_s = until_s or asyncio.get_running_loop().time() + PATIENCE_S
            try:
                async with asyncio.timeout_at(until_s):
                    await waiter
            except TimeoutError:
                detail = self._trouble.detail if self._trouble is not None else "store did not respond"
                raise StoreUnavailable(detail) from None
        outgoing.raise_error()

    def _waiter(self) -> asyncio.Future[None]:
        """Return a future that is done after the next commit or failure."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        # do not wait for the flush; but while the store fails, a retry is already scheduled
        if self._has_gap or (self._is_delayed and self._trouble is None):
            self._submit()
        return waiter

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- the end of the block ----------------------------------------------------------------------------------

    async def _finish_after_refusal(self) -> None:
        """If a request was refused while the message streams, finish the message as failed, with the text so far."""
        error = self._outgoing.error
        if error is None or isinstance(error, Finished | Fenced | Deleted | NotFound | Draining | LocalError):
            return
        end = FinishMessage(status="failed", reason=error.code, generation=self.generation)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._hub.ask(self.channel, self.id, end, self._caller)
        except (TenutoError, TimeoutError) as trouble:
            logger.warning(NOT_ENDED, self.id, self.channel, "failed", str(trouble) or "timed out")

    async def _finish_early(self, error: BaseException) -> None:
        """Store the accepted requests and finish the message, because `error` ended its block early.

        A draining hub leaves the message open, unless its turn was stopped or `error` is a failure of the block itself:
        the next start adopts or interrupts it. An error of a task that was cancelled is no such failure.
        """
        status, reason = ended_as(error, self.cancelled_as, self._hub.reason_of)
        try:
            task = asyncio.current_task()
            is_cancelled = not isinstance(error, Exception) or (task is not None and task.cancelling() > 0)
            is_ended = self.is_stopped() or not (is_cancelled or is_of_drain(error))
            self.is_left = self._hub.viewing.is_draining and (status == "interrupted" or not is_ended)
            if not self.is_left:
                self._outgoing.accept_end(status, reason=reason, is_server=True)
                self._submit()
            ending = asyncio.ensure_future(self.flush())
            ending.add_done_callback(retrieve_exception)
            async with asyncio.timeout(LEAVING_S if self._hub.viewing.is_draining else PATIENCE_S):
                await asyncio.shield(ending)
        except (TenutoError, TimeoutError) as trouble:
            if status == "interrupted" and isinstance(trouble, Finished | Fenced):
                return  # another node has interrupted the message, or continues it
            logger.warning(NOT_ENDED, self.id, self.channel, status, str(trouble) or "timed out")


ABANDONED_S = 1.0  # wait before the check that an abandoned message has ended, and between two tries to end it
DAMAGED_S = 300.0  # the same if the channel is damaged: it leaves memory meanwhile, and an operator may mend it


async def continue_after(hub: Lifecycle, channel: str, known: MessageState, caller: Caller) -> MessageWriter:
    """Return a writer by `caller` that continues `known`, unless another takeover came first. Raises the refusal.

    The takeover has a request id, so that a repeat after an unknown outcome is recognised instead of fenced.
    """
    runtime, message_id, generation = hub.runtime, known.id, known.generation + 1
    request, is_stored = TakeOver(generation=known.generation, request=runtime.clock.new_id()), False
    try:
        await runtime.ask(channel, message_id, request, caller)
        is_stored = True
        # read now: the text may have grown before the takeover
        stored = own_copy((await in_time(runtime.message(channel, message_id), runtime.store.name)).message())
    except BaseException as error:
        # Unless it was refused, the takeover may be stored, and no writer continues the message: interrupt it later.
        if is_stored or not isinstance(error, TenutoError) or error.retry:
            interrupt_abandoned(hub, channel, message_id, generation, takeover=request.request)
        raise
    writer = MessageWriter(hub, channel, message_id, create=None, author=caller.id)
    writer.take_up(stored, generation)
    return writer


def interrupt_abandoned(
    hub: Lifecycle, channel: str, message_id: str, generation: int, *, takeover: str | None = None
) -> None:
    """Interrupt the message, which has no writer here any more, after a while, unless it has an end by then.

    The channel in memory need not have the takeover with this generation yet. With `takeover`, its request id, a later
    takeover that has got the same generation, because this one was not stored, keeps the message.
    """
    if not hub.is_running or hub.viewing.is_draining:  # the next start recovers the message
        return
    runtime = hub.runtime
    live = runtime.channels.get(channel)
    known = live.state.messages.get(message_id) if live is not None else None
    if known is None or known.generation < generation or _is_abandoned(runtime, known, channel, generation, takeover):
        with contextlib.suppress(RuntimeError):  # RuntimeError: the hub is ending
            runtime.tasks.start_background(_interrupt(hub, channel, message_id, generation, takeover))


async def _interrupt(hub: Lifecycle, channel: str, message_id: str, generation: int, takeover: str | None) -> None:
    """Retry until the abandoned message is stored as interrupted; no other component will finish it.

    Its create or takeover may still wait at the committer, because the caller was cancelled: `settled` waits for it.
    """
    end, wait_s = FinishMessage(status="interrupted", reason="writer_gone", generation=generation), ABANDONED_S
    while True:
        await asyncio.sleep(wait_s)
        try:
            runtime = hub.runtime
            known = await runtime.settled(channel, message_id)
            if _is_abandoned(runtime, known, channel, generation, takeover):
                await runtime.ask(channel, message_id, end, SERVER)
            return
        except TenutoError as error:
            wait_s = DAMAGED_S if isinstance(error, StoreUnusable) else ABANDONED_S
            if isinstance(error, Draining) or not (error.retry or isinstance(error, StoreUnusable)):
                return
        except Exception:
            logger.exception("message %r of %s could not be interrupted; the hub tries again", message_id, channel)


def _is_abandoned(runtime: Runtime, message: MessageState, channel: str, generation: int, takeover: str | None) -> bool:
    """Return whether the message still streams although its writer in this process has gone."""
    taker = [request for request, serial, _ in message.requests if serial == message.taken_over]  # empty: forgotten
    if takeover is not None and taker not in ([], [takeover]):
        return False
    is_ours = message.writer is not None and message.writer.node == runtime.node
    is_written = (channel, message.id) in runtime.writers
    return message.is_streaming and is_ours and message.generation == generation and not is_written


T = TypeVar("T")

READS = 3  # channels that are recovered at the same time: together they may be larger than memory
SLOW_S = 1.0  # time after which a channel no longer holds up a recovery, and after which a read is sent again

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]


class Recovery:
    """Recovers channels, several at a time: one whose read hangs, or that is damaged, delays no other one."""

    def __init__(self, hub: Lifecycle, adopters: Sequence[tuple[str, Adopter]]) -> None:
        """Let `adopters`, the app's functions with their channel patterns, continue messages."""
        self._hub = hub
        self._adopters = adopters
        self._runtime: Runtime | None = None  # that of the last call of `run`
        self._running: dict[str, asyncio.Task[None]] = {}  # by channel
        self._late: set[str] = set()  # the channels that a call of `run` has left behind

    async def run(self, runtime: Runtime, is_mine: IsMine) -> None:
        """Recover the open messages and commands of the channels for which `is_mine` returns True.

        On a shared store a channel that fails does not stop the recovery of the others, and one that takes long goes on
        beside and after this call; if it fails later, the recovery is due again. On an exclusive store only a damaged
        channel does not stop the others. Raises StoreUnavailable, StoreUnusable and Busy; the part that was done by
        then needs no repetition, and suffers none.
        """
        store, failures = runtime.store, list[tuple[str, Exception]]()
        if runtime is not self._runtime:  # the hub has started again, perhaps in another event loop
            self._runtime, self._running = runtime, {}
        self._late = set(self._running)
        names = await _read(store, store.open_channels)
        current = await _current(runtime, [name for name in names if is_mine(name)])
        known = 0  # number of failures at the last check of the store
        for channel in names:
            while len(self._running) >= READS:
                await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
            if runtime.nodes.is_leaving:
                return
            if len(failures) > known:
                known = len(failures)
                _check_exclusive(store, failures)
                await runtime.nodes.renew()  # raises if the store fails for all channels
            if is_mine(channel) and channel not in self._running:
                adopter = next((one for pattern, one in self._adopters if matches(pattern, channel)), None)
                work = partial(_recover_channel, self._hub, runtime, channel, adopter)
                if channel in current and _has_living_writers(runtime, channel):  # no read is needed
                    work = partial(_offer_lost_turns, runtime, channel)
                self._start(runtime, channel, work, failures)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=None if store.is_exclusive else SLOW_S)
        self._late = set(self._running)
        _check_exclusive(store, failures)
        for channel, error in failures[:1]:
            failed = f"channel {channel!r} was not recovered: {error!r}"
            if not store.is_exclusive:
                is_transient = any(isinstance(one, StoreUnavailable | Busy) for _, one in failures)
                raise (StoreUnavailable if is_transient else StoreUnusable)(failed)
            count = len(failures)
            logger.error("%d channels are damaged; restore a backup, or delete them; the first: %s", count, failed)

    def _start(
        self, runtime: Runtime, channel: str, work: Callable[[], Awaitable[None]], failures: list[tuple[str, Exception]]
    ) -> None:
        """Do `work` for `channel` in a task, which adds its error to `failures`."""

        async def recover() -> None:
            try:
                await work()
            except Exception as error:
                failures.append((channel, error))
                is_late = channel in self._late  # so no call reports it
                if not isinstance(error, TenutoError):
                    logger.exception("channel %s was not recovered, because of a bug; please report it", channel)
                elif is_late:
                    logger.warning("channel %s was not recovered; the hub tries again: %s", channel, error)
                if is_late:
                    runtime.nodes.recover_soon()

        running = self._running
        task = running[channel] = runtime.tasks.start_background(recover())
        task.add_done_callback(lambda _: running.pop(channel))


def _check_exclusive(store: Store, failures: Sequence[tuple[str, Exception]]) -> None:
    """Raise the first error that is no damage, if the store is exclusive: the hub must not serve then."""
    for _, error in failures if store.is_exclusive else ():
        if not isinstance(error, StoreUnusable):
            raise error


async def _read(store: Store, read: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `read()`. Raises StoreUnavailable if it takes too long."""
    if store.is_exclusive:  # it has no connection that may be broken
        return await in_time(read(), store.name)
    return await sent_again(read, store.name, after_s=SLOW_S)


async def _current(runtime: Runtime, names: Sequence[str]) -> frozenset[str]:
    """Return those of the channels `names` that are in memory as the store has them. Raises StoreUnavailable.

    With thousands of streaming messages, a read of each channel in each round would cost more than their text.
    """
    live = [runtime.channels[name] for name in names if name in runtime.channels]
    if not live:
        return frozenset()
    live_names = [channel.name for channel in live]
    heads = await _read(runtime.store, lambda: runtime.store.heads(live_names))
    return frozenset(channel.name for channel, head in zip(live, heads, strict=True) if channel.is_past(head))


def _has_living_writers(runtime: Runtime, name: str) -> bool:
    """Return whether channel `name` is in memory, and the nodes of the writers of all its open messages live."""
    channel = runtime.channels.get(name)
    if channel is None or not channel.is_ready_for(()):
        return False
    return not any(_is_left(runtime, message) for message in channel.state.messages.values())


async def _recover_channel(hub: Lifecycle, runtime: Runtime, channel: str, adopter: Adopter | None) -> None:
    """End or continue the messages that ended nodes have left in `channel`, and let their turns wait again."""
    store, left, asked = runtime.store, [], []
    for stored in await _read(store, lambda: store.open_documents(channel)):
        if stored.id.startswith(COMMAND_MARK):
            runtime.leases.inspect_command(channel, stored.id, restore_command(stored))
            continue
        message = restore(stored)
        runtime.leases.inspect_writer(channel, message.id, message, is_late=channel not in runtime.channels)
        if message.claim is not None and message.claim.is_open:
            asked.append(message)
        if _is_left(runtime, message):
            left.append(message)
    if left:
        await runtime.nodes.renew()  # a node that began after the last renewal may have written these messages
    for message in left:
        if _is_left(runtime, message) and not runtime.nodes.is_leaving:
            await _end_or_adopt(hub, runtime, channel, message, adopter)
    if not asked:
        return
    # after the answers of lost attempts have ended, let the turns wait again that no living node has
    if channel in runtime.channels:
        runtime.scheduler.inspect(await in_time(runtime.fresh(channel), store.name), None)
    else:
        for message in asked:
            runtime.scheduler.inspect_message(channel, message.id, message)
    await _offer_lost_turns(runtime, channel)


async def _offer_lost_turns(runtime: Runtime, channel: str) -> None:
    """Let the turns of ended nodes wait again in `channel`, and offer them to workers."""
    await lose_turns(runtime.nodes, runtime.scheduler, channel)
    if channel not in runtime.channels:  # its turns are not followed, so the store is asked for them
        runtime.scheduler.forget(channel)
    runtime.scheduler.offer(channel)


def _is_left(runtime: Runtime, message: MessageState) -> bool:
    """Return whether the node of the writer of `message` has ended, and the message has not."""
    writer = message.writer if message.is_streaming else None
    return writer is not None and writer.node is not None and runtime.nodes.is_gone(writer.node)


async def _end_or_adopt(
    hub: Lifecycle, runtime: Runtime, channel: str, message: MessageState, adopter: Adopter | None
) -> None:
    """Interrupt `message`, the node of whose writer has ended, or let an adopter continue it."""
    author = message.writer.by if message.writer is not None else None
    server = Caller(id=author, writer=WriterIdentity(by=author, node=runtime.node), is_server=True)
    # these are expected: an overdue `cancel` or another node may have ended the message
    with contextlib.suppress(Finished, Fenced, Deleted, NotFound):
        if adopter is None:
            end = FinishMessage(status="interrupted", generation=message.generation)
            await runtime.ask(channel, message.id, end, server)
            return
        successor = await continue_after(hub, channel, message, server)
        if not runtime.nodes.is_leaving:  # otherwise the message is left to the next node
            runtime.tasks.start_job(_adopt(adopter, successor))


async def _adopt(adopter: Adopter, writer: MessageWriter) -> None:
    with contextlib.suppress(Finished, Fenced, Deleted):  # these are expected: a client may have stopped the message
        async with writer:
            await adopter(writer)
