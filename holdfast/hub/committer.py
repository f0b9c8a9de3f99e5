"""The committer: decide, store, then tell. The only place where a channel's state moves.

Layer: hub.

Requests wait while a commit runs; then a batch of them, over all channels, is decided on drafts and
stored in one go, so batches grow with the load and an idle hub adds no latency. Every answer of a batch, also *no* and
*already done*, is given after its commit, since it may rest on what the commit holds. A failed batch leaves nothing to
undo: its drafts are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from holdfast.core.catch_up import reply_to
from holdfast.core.cursor import NO_EPOCH
from holdfast.core.decide import decide, needs, plain_append
from holdfast.core.decision import Decision
from holdfast.core.document import Document, document
from holdfast.core.draft import Draft
from holdfast.core.errors import Busy, Draining, HoldfastError, StoreUnavailable
from holdfast.core.events import CommandReply
from holdfast.core.limits import Limits
from holdfast.core.model import Command, Message
from holdfast.core.ops import Append, Entry
from holdfast.core.requests import AppendText, Caller, CreateMessage, Request, SendCommand, UpdateMessage
from holdfast.hub.channel import Channel
from holdfast.hub.clock import Clock
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Store, Write

logger = logging.getLogger("holdfast.hub")

# Small batches give the best tail: at 500 conversations of 50 tokens a second with two viewers each the p99 was 75 ms
# with 64 rows, 84 with 128 and 106 with 256 (two runs each of `bench.micro`, 1 to 8 ms apart).
MAX_ROWS = 64
# Where nobody looks on there is no tail, and larger commits are cheaper: a token that is awaited takes 12.3 µs of CPU
# with 64 rows, 10.4 with 128 and 8.9 with 512. Who comes meanwhile, and is looked at, waits some 4 ms at the most.
UNSEEN_TIMES = 8
MAX_ITEMS = 1_024  # joined appends make few rows of many requests; this bounds the work between two commits
# Text since the last document; beyond it the message gets one, so that a restart reads little.
DOCUMENT_BYTES = 64 * 1024
SPARE_S = 0.001  # what has to be stored by then is begun twice as long before as it took lately, and this
STORE_TIMEOUT_S = 30.0  # a store that says nothing for so long may or may not have stored
MAX_CONFLICTS = 100


class Result(Struct, frozen=True, kw_only=True):
    """What a request got; durable when it is given."""

    serial: int
    cursor: str
    created: bool  # False: it stood already, nothing was stored for this request
    message: Message | None = None  # of a create or update
    command: Command | None = None  # of a command sent
    reply: CommandReply | None = None  # to one that was sent before
    generation: int | None = None
    part: int | None = None
    length: int | None = None  # of the part, in code points
    lengths: list[int] | None = None  # of all parts
    is_blind: bool = False  # whoever asked may not read the channel, and is told so much less


Done = Callable[[Result | HoldfastError], None]


def answered_later() -> tuple[asyncio.Future[Result], Done]:
    """A future, and what settles it if somebody still waits for it."""
    answered: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(answer: Result | HoldfastError) -> None:
        if answered.done():
            return
        if isinstance(answer, HoldfastError):
            answered.set_exception(answer)
        else:
            answered.set_result(answer)

    return answered, done


class Ask(Struct, gc=False):
    """One request about one message or command. `request` gains the `at` of its first decision, and keeps it."""

    key: str
    request: Request
    caller: Caller
    is_unclear: bool = False  # was it granted before, and nobody knows whether that was stored?


class Item(Protocol):
    """Something that waits for the committer: requests of one channel that are answered together."""

    channel: str
    size_bytes: int
    ids: tuple[str, ...]  # of the messages and commands that must be in memory before this can be decided

    def asks(self) -> Sequence[Ask]:
        """The requests, in order; asked once for each time the item is decided."""

    def answered(self, decided: Decided) -> None:
        """What became of the last `asks`, after their commit."""

    def failed(self, error: HoldfastError) -> None:
        """Nothing was stored."""


class Waiting:
    """One request with a callback."""

    __slots__ = ("_ask", "_done", "channel", "ids", "size_bytes")

    def __init__(self, channel: str, ask: Ask, done: Done, size_bytes: int) -> None:
        self.channel = channel
        self.size_bytes = size_bytes
        self.ids = needs(ask.key, ask.request)
        self._ask = ask
        self._done = done

    def asks(self) -> Sequence[Ask]:
        return (self._ask,)

    def answered(self, decided: Decided) -> None:
        self._done(decided.answer())

    def failed(self, error: HoldfastError) -> None:
        self._done(error)


class DocumentDue:
    """Wish for a document of a message whose entries the store would like to let go."""

    __slots__ = ("channel", "ids", "message_id", "size_bytes")

    def __init__(self, channel: str, message_id: str) -> None:
        self.channel = channel
        self.message_id = message_id
        self.ids: tuple[str, ...] = (message_id,)
        self.size_bytes = 0

    def asks(self) -> Sequence[Ask]:
        return ()

    def answered(self, decided: Decided) -> None:
        pass

    def failed(self, error: HoldfastError) -> None:
        pass  # the store will say so again


Outcome = tuple[Decision, int] | HoldfastError  # with the serial of the last operation


class Decided(Struct, gc=False):
    """What was decided of an item: an outcome for each request, up to the first refusal."""

    channel: Channel
    item: Item
    asks: Sequence[Ask]
    outcomes: Sequence[Outcome] = ()
    refusal: HoldfastError | None = None  # the last outcome, if it is one: what came after it was not decided
    grown: Entry | None = None  # in place of outcomes, where it was decided by `plain_append`: the entry

    @property
    def granted(self) -> Sequence[Ask]:
        """Those that were not refused."""
        return self.asks if self.refusal is None else self.asks[:-1]

    def answer(self) -> Result | HoldfastError:
        """The answer to the first request, to be asked for once it is stored. Who needs none is not made one."""
        if self.grown is not None:
            op = self.grown.op
            assert type(op) is Append
            decision = Decision(ops=(op,), part=op.part, length=op.at + len(op.text))
            return _answer(self.channel, self.asks[0], decision, self.grown.serial)
        outcome = self.outcomes[0]
        return outcome if isinstance(outcome, HoldfastError) else _answer(self.channel, self.asks[0], *outcome)


class _Unclear(NamedTuple):
    """A write of which nobody knows whether it was stored: where the channel stands if it was, and what was decided."""

    epoch: str
    serial: int
    decided: list[Decided]


class _Cut(Struct):
    """A batch: what was decided, on one draft per channel."""

    drafts: dict[Channel, Draft]
    alone: dict[Channel, Entry]  # in place of a draft where the one thing to store is some text
    decided: list[Decided]
    due: dict[Channel, list[str]]  # documents wished for
    since_s: float | None  # when the oldest of it began to wait, or earlier

    def channels(self) -> list[Channel]:
        """Those that it is about."""
        return [*self.drafts, *self.alone]

    def draft(self, channel: Channel) -> Draft:
        """The draft of `channel`, with what it gets already."""
        draft = self.drafts.get(channel)
        if draft is None:
            draft = self.drafts[channel] = Draft(channel.state)
            entry = self.alone.pop(channel, None)
            if entry is not None:
                draft.add(entry.op)
        return draft


class Committer:
    """Takes requests one batch at a time from waiting to stored."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        clock: Clock,
        channels: Mapping[str, Channel],
        channel: Callable[[str], Channel],
        spawn: Callable[[Coroutine[None, None, None]], object],
        *,
        is_served: Callable[[str], bool],
        accepted: Callable[[Channel, str], None],
    ) -> None:
        """`channels` are in memory, and `channel` brings another one there.

        `is_served`: do agents answer in this channel? `accepted` is told of what remote writers had accepted.
        """
        self._is_served = is_served
        self._accepted = accepted
        self._store = store
        self._limits = limits
        self._clock = clock
        self._channels = channels
        self._channel = channel
        self._spawn = spawn
        self._queue: deque[Item] = deque()
        self.waiting = 0  # items in the queue or parked
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._since_s: float | None = None  # when the oldest in the queue came, or earlier
        self._took_s = 0.0  # from waiting to stored, on average of late
        self._parking: set[Channel] = set()  # those with parked items
        self._unclear: dict[Channel, _Unclear] = {}
        self._cut_now: _Cut | None = None
        self._is_over = False
        self.commits = 0
        self.entries = 0

    def submit(self, item: Item) -> None:
        """Let `item` wait for the next batch. Raises Busy when too much waits already, Draining after the end."""
        if self._is_over:
            raise Draining("the hub has stopped")
        limits = self._limits
        if self.waiting >= limits.waiting_requests or self._waiting_bytes + item.size_bytes > limits.waiting_bytes:
            raise Busy("too much is waiting to be stored", limit=limits.waiting_requests)
        self.waiting += 1
        self._waiting_bytes += item.size_bytes
        self._queue.append(item)
        if self._since_s is None:
            self._since_s = asyncio.get_running_loop().time()
        self._wake.set()

    def call_in_time(self, channel: Channel, callback: Callable[[], None]) -> bool:
        """Call `callback` when it is time to submit what only viewers of `channel` wait for; False: it is now.

        Storing more often than they are shown something is of use to nobody; and who is slow has to begin early.
        """
        return channel.call_in_time(callback, lead_s=2 * self._took_s + SPARE_S)

    async def run(self) -> None:
        """Store what waits, until cancelled at the hub's end; what waits then is told so."""
        try:
            while True:
                await self._wake.wait()
                while self._queue:
                    self._cut_now = self._cut()
                    await self._commit(self._cut_now)
                    self._cut_now = None
                self._wake.clear()
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody waits for an answer that will not come."""
        self._is_over = True
        items = [decided.item for decided in self._cut_now.decided] if self._cut_now is not None else []
        items += _drained(self._queue)
        for channel in self._parking:
            items += _drained(channel.parked)
        for item in items:
            item.failed(Draining("the hub has stopped; it is not known whether this was stored"))

    # -- deciding ----------------------------------------------------------------------------------------------

    def _cut(self) -> _Cut:
        """Decide a batch of what waits. No await: what is decided sees one moment."""
        cut = _Cut({}, {}, [], {}, self._since_s)
        rows, limit = 0, UNSEEN_TIMES * MAX_ROWS
        now_ms, now_s = self._clock.now_ms(), asyncio.get_running_loop().time()
        while self._queue and rows < limit and len(cut.decided) < MAX_ITEMS:
            item = self._queue.popleft()
            channel = self._channels.get(item.channel) or self._channel(item.channel)
            channel.used_s = now_s
            is_first = channel not in cut.drafts and channel not in cut.alone
            if is_first and channel.trim_bytes is not None:
                channel.trim(channel.trim_bytes)
            if not channel.is_ready_for(item.ids):
                self._park(channel, item)
                continue
            asks = self._asks(item)
            if asks is None:
                continue
            if channel.watchers:
                limit = MAX_ROWS
            entry = self._grow(channel, asks) if is_first and len(asks) == 1 else None
            if entry is not None:
                cut.alone[channel] = entry
                cut.decided.append(Decided(channel, item, asks, grown=entry))
                rows += 1
                continue
            draft = cut.draft(channel)
            before = len(draft.ops)
            cut.decided.append(self._decide_item(channel, draft, item, asks, now_ms))
            if type(item) is DocumentDue:
                cut.due.setdefault(channel, []).append(item.message_id)
            rows += len(draft.ops) - before
        if not self._queue:
            self._since_s = None
        return cut

    def _asks(self, item: Item) -> Sequence[Ask] | None:
        """What `item` asks; None: it asks nonsense, and was told so."""
        try:
            return item.asks()
        except Exception:  # a mistake in one writer must not take everybody else down
            logger.exception("what waits for channel %s cannot be asked", item.channel)
            self._let_go(item)
            item.failed(HoldfastError("the request could not be made"))
            return None

    def _grow(self, channel: Channel, asks: Sequence[Ask]) -> Entry | None:
        """The entry for what is asked first of `channel`, if that is text for a message that grows and no more."""
        (ask,) = asks
        request, state = ask.request, channel.state
        if type(request) is not AppendText or not ask.caller.is_app:
            return None
        op = plain_append(state, ask.key, request, self._limits)
        if op is None or state.messages[op.id].undocumented_bytes + len(op.text) > DOCUMENT_BYTES:
            return None
        return Entry(state.serial + 1, op)

    def _decide_item(self, channel: Channel, draft: Draft, item: Item, asks: Sequence[Ask], now_ms: int) -> Decided:
        """Decide what `item` asks, up to the first refusal: what comes after it rests on it."""
        outcomes: list[Outcome] = []
        for ask in asks:
            outcomes.append(self._decide(channel, draft, ask, now_ms))
            if isinstance(outcomes[-1], HoldfastError):
                break
        last = outcomes[-1] if outcomes else None
        refusal = last if isinstance(last, HoldfastError) else None
        return Decided(channel, item, asks[: len(outcomes)], outcomes, refusal)

    def _decide(self, channel: Channel, draft: Draft, ask: Ask, now_ms: int) -> Outcome:
        request = ask.request
        is_served = isinstance(request, CreateMessage) and self._is_served(channel.name)
        try:
            decision = decide(
                draft, ask.key, request, caller=ask.caller, now_ms=now_ms, limits=self._limits, is_served=is_served
            )
        except HoldfastError as error:
            return error
        except Exception:  # a mistake of ours must not take everybody else's requests down
            logger.exception("a request about %r could not be decided", ask.key)
            return HoldfastError("the request could not be decided")
        serials = [draft.add(op) for op in decision.ops]
        serial = serials[decision.result_op] if serials else decision.serial
        if isinstance(request, AppendText) and request.at is None and decision.length is not None:
            # Decided once, kept for ever: after an unclear commit the same text must not be added again.
            ask.request = replace(request, at=decision.length - len(request.text))
        return decision, serial

    def _park(self, channel: Channel, item: Item) -> None:
        """Let `item`, and what comes after it for its channel, wait until the store was asked."""
        channel.parked.append(item)
        self._parking.add(channel)
        if len(channel.parked) == 1:
            self._spawn(self._load_for(channel))

    async def _load_for(self, channel: Channel) -> None:
        """Bring into memory what the parked items need, then let them queue again, first and in order."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await channel.load()
                is_read = False
                while not is_read:
                    if channel.is_stale:
                        await channel.refresh()
                    await channel.load_messages([one for item in channel.parked for one in item.ids])
                    # More may have been parked meanwhile, of an unclear commit that is answered below.
                    ids = [one for item in channel.parked for one in item.ids]
                    is_read = not channel.is_stale and not channel.missing(ids)
                self._answer_unclear(channel)  # with the messages in memory: an answer may hold one
        except Exception as error:  # whatever it is: who waits here is asked by nobody else
            logger.warning("channel %s could not be read: %r", channel.name, error)
            refused = error if isinstance(error, HoldfastError) else StoreUnavailable("the store did not answer")
            if self._unclear.pop(channel, None) is not None:
                refused = CommitUnknown("it is not known whether this was stored")
            self._parking.discard(channel)
            for item in _drained(channel.parked):
                self._let_go(item)
                item.failed(refused)
            return
        self._parking.discard(channel)
        self._queue.extendleft(reversed(_drained(channel.parked)))
        self._wake.set()

    # -- storing -----------------------------------------------------------------------------------------------

    async def _commit(self, cut: _Cut) -> None:
        writes = self._writes(cut)
        over = asyncio.get_running_loop().create_future()
        channels = cut.channels()
        for channel in channels:
            channel.commit_over = over
        try:
            if not writes:
                await asyncio.sleep(0)  # nothing to wait for, but others want the loop
            results = await self._store_all([write for _, write in writes]) if writes else []
        except CommitUnknown as error:
            logger.warning("it is not known whether a commit was stored: %s", error)
            self._note_unclear(cut, writes)
            self._answer(cut, unclear=[decided.channel for decided in cut.decided])
            return
        except StoreUnavailable as error:
            self._fail(cut, error)
            return
        finally:
            for channel in channels:
                channel.commit_over = None
            over.set_result(None)
            self._note_took(cut)
        conflicted = []
        for (channel, write), result in zip(writes, results, strict=True):
            if isinstance(result, Committed):
                channel.committed(write.epoch, write.entries, write.documents)
            else:
                conflicted.append(channel)
        self.commits += bool(writes)
        self.entries += sum(len(write.entries) for _, write in writes)
        self._answer(cut, unclear=conflicted)

    def _note_took(self, cut: _Cut) -> None:
        """Learn how long it takes from waiting to stored: quickly where it takes longer, slowly where it does not."""
        if cut.since_s is not None:
            more_s = asyncio.get_running_loop().time() - cut.since_s - self._took_s
            self._took_s += more_s * (0.5 if more_s > 0 else 0.1)

    def _note_unclear(self, cut: _Cut, writes: Sequence[tuple[Channel, Write]]) -> None:
        """Remember where the channels will stand if the writes were stored. Where only we write, that tells."""
        if self._store.is_exclusive:
            for channel, write in writes:
                decided = [one for one in cut.decided if one.channel is channel]
                self._unclear[channel] = _Unclear(write.epoch, write.expected + len(write.entries), decided)

    def _answer_unclear(self, channel: Channel) -> None:
        """After the channel was read anew: if the unclear write had been stored, its requests are carried out."""
        unclear = self._unclear.pop(channel, None)
        if unclear is None or (channel.state.epoch, channel.state.serial) != (unclear.epoch, unclear.serial):
            return
        for decided in unclear.decided:
            if decided.item in channel.parked:
                channel.parked.remove(decided.item)
                self._answer_item(decided)

    async def _store_all(self, writes: list[Write]) -> list[Committed | Conflict]:
        """Store `writes`. Raises StoreUnavailable if nothing was stored, CommitUnknown if nobody knows."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await self._store.commit(writes)
        except StoreUnavailable:
            raise
        except TimeoutError:
            raise CommitUnknown("the store did not answer in time") from None
        except Exception as error:
            logger.exception("the store failed in a way it should not")
            raise CommitUnknown("the store failed") from error

    def _writes(self, cut: _Cut) -> list[tuple[Channel, Write]]:
        writes = [
            (
                channel,
                Write(channel=channel.name, epoch=channel.state.epoch, expected=entry.serial - 1, entries=(entry,)),
            )
            for channel, entry in cut.alone.items()
        ]
        for channel, draft in cut.drafts.items():
            documents = _documents(draft, cut.due.get(channel, ()))
            # Where others write too, an answer without an entry rests on a state that may be old: an empty write asks.
            if draft.ops or documents or not self._store.is_exclusive:
                state = channel.state
                epoch = self._clock.new_epoch() if state.epoch == NO_EPOCH else state.epoch
                write = Write(
                    channel=channel.name,
                    epoch=epoch,
                    expected=state.serial,
                    entries=draft.entries(),
                    documents=documents,
                )
                writes.append((channel, write))
        return writes

    def _answer(self, cut: _Cut, *, unclear: Iterable[Channel]) -> None:
        """Result what was decided; the requests of `unclear` channels are decided again once those were read anew."""
        again = dict.fromkeys(unclear)
        for channel in again:
            channel.is_stale = True
            channel.conflicts += 1
        first: dict[Channel, list[Item]] = {channel: [] for channel in again}
        for decided in cut.decided:
            if decided.channel not in again:
                decided.channel.conflicts = 0
                self._answer_item(decided)
            elif decided.channel.conflicts <= MAX_CONFLICTS:
                for ask in decided.granted:
                    ask.is_unclear = True
                first[decided.channel].append(decided.item)
            else:
                self._let_go(decided.item)
                decided.item.failed(Busy("others write to this channel faster than it can be read"))
        for channel, items in first.items():
            channel.parked.extendleft(reversed(items))  # before what was parked while they were decided
            self._parking.add(channel)
        for channel in again:
            self._spawn(self._load_for(channel))

    def _answer_item(self, decided: Decided) -> None:
        item = decided.item
        self._let_go(item)
        if decided.grown is None:  # else a writer of this process
            for ask in decided.granted:
                caller = ask.caller
                if caller.writer is None and not caller.is_server:
                    self._accepted(decided.channel, ask.key)
        item.answered(decided)

    def _fail(self, cut: _Cut, error: StoreUnavailable) -> None:
        logger.warning("a commit failed, nothing of it is stored: %s", error)
        for decided in cut.decided:
            self._let_go(decided.item)
            decided.item.failed(error)

    def _let_go(self, item: Item) -> None:
        self.waiting -= 1
        self._waiting_bytes -= item.size_bytes


def _documents(draft: Draft, due: Iterable[str]) -> Sequence[Document]:
    """The documents that go with a batch: of what more than grew, of what grew much, and of those wished for."""
    messages = draft.base.messages
    grown = []
    for message_id, length in draft.grown.items():
        known = messages.get(message_id)
        if known is not None and known.undocumented_bytes + length > DOCUMENT_BYTES:
            grown.append(message_id)
    if not (draft.reshaped or grown or due):  # as nearly always
        return ()
    things = [draft.thing(key) for key in dict.fromkeys((*draft.reshaped, *grown, *due))]
    return [document(thing) for thing in things if thing is not None]


def _answer(channel: Channel, ask: Ask, decision: Decision, serial: int) -> Result:
    message, command, reply = None, None, None
    is_new = bool(decision.ops)
    if isinstance(ask.request, SendCommand):
        sent = channel.state.command(ask.key)
        command = sent.command() if sent is not None else None
        reply = reply_to(sent) if sent is not None else None
    elif isinstance(ask.request, CreateMessage | UpdateMessage):
        known = channel.state.message(ask.key)
        message = known.message() if known is not None and not known.deleted else None
        # Not new, and ours all the same: an unclear commit had stored it in truth.
        is_new = is_new or (ask.is_unclear and known is not None and known.writer == ask.caller.writer)
    return Result(
        serial=serial,
        cursor=str(channel.state.cursor),
        created=is_new,
        message=message,
        command=command,
        reply=reply,
        generation=decision.generation,
        part=decision.part,
        length=decision.length,
        lengths=decision.lengths,
        is_blind=not ask.caller.may_read,
    )


def _drained(items: deque[Item]) -> list[Item]:
    drained = list(items)
    items.clear()
    return drained
