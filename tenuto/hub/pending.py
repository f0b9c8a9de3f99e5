"""Items that wait for the committer: requests, with the component that receives their results.

Layer: hub.

An item holds requests of one channel that the committer decides in order and stores together. `Waiting` is one request
with a callback, `MessageWriter` all accepted text of one writer. `Decided` holds the decisions on an item until their
commit. `Admission` lets bursts of creates and claims into commits in slices.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.catch_up import reply_to
from tenuto.core.draft import Decision
from tenuto.core.errors import Deleted, TenutoError
from tenuto.core.events import CommandReply, encode_json
from tenuto.core.model import Command, Message, plain
from tenuto.core.ops import Append, Entry
from tenuto.core.requests import Caller, ClaimTurn, CreateMessage, Request, SendCommand, UpdateMessage, needs
from tenuto.core.state import part_bytes, utf8_len
from tenuto.hub.channel import Channel


class ChannelInfo(Struct, frozen=True, kw_only=True):
    """The head of a channel: its epoch and last serial."""

    channel: str
    epoch: str
    serial: int
    cursor: str


class Result(Struct, frozen=True, kw_only=True):
    """The outcome of a request; durable when it is returned."""

    serial: int
    cursor: str
    created: bool  # False: the request was a repeat, and stored no entry
    message: Message | None = None  # the message, after a create or update
    command: Command | None = None  # the stored command, after a `SendCommand`
    reply: CommandReply | None = None  # the stored reply, if the command already has one
    generation: int | None = None  # that of the writer, or of the attempt at the turn
    part: int | None = None  # index of the part that the request is about
    length: int | None = None  # length of the part in code points, after an append
    lengths: list[int] | None = None  # lengths of all parts in code points
    is_blind: bool = False  # the caller may not read the channel, so the result has fewer fields


Done = Callable[[Result | TenutoError], None]


def result_later() -> tuple[asyncio.Future[Result], Done]:
    """Return a future, and a callback that settles it (unless it was cancelled)."""
    outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(result: Result | TenutoError) -> None:
        if outcome.done():
            return
        if isinstance(result, TenutoError):
            outcome.set_exception(result)
            # mark the exception as retrieved: asyncio would log it if the caller were cancelled at the same moment
            outcome.exception()
        else:
            outcome.set_result(result)

    return outcome, done


def message_of(result: Result, message_id: str) -> Message:
    """Return the message of a create or update, for the app. Raises Deleted if it was deleted in the same batch."""
    if result.message is None:
        raise Deleted(f"message {message_id!r} was deleted before the hub could return it; create another one")
    return own_copy(result.message)


def own_copy(message: Message) -> Message:
    """Return a copy of `message` for the app, which may change the copy without changing the state."""
    return replace(message, meta=plain(message.meta), parts=[plain(part) for part in message.parts])


class Ask(Struct, gc=False):
    """One request about one message or command. `request` gets the offset `at` of its first decision, and keeps it."""

    key: str
    request: Request
    caller: Caller
    is_unclear: bool = False  # True: it may be stored, because an earlier commit with it has an unknown outcome


class Item(Protocol):
    """Requests of one channel that the committer decides and returns together."""

    channel: str
    size_bytes: int
    ids: tuple[str, ...]  # ids of the messages and commands that the decision needs in memory
    is_beginning: bool  # True: a message or an attempt at a turn begins with it

    def asks(self) -> Sequence[Ask]:
        """Return the requests in order. The committer calls this once per decision."""

    def decided(self, decided: Decided) -> None:
        """Receive the outcomes of the last `asks`, after their commit."""

    def failed(self, error: TenutoError) -> None:
        """Receive the error of a commit that stored none of these requests."""


class Waiting:
    """One request; `done` is called with its result or error."""

    __slots__ = ("_ask", "_done", "_is_repeat", "channel", "ids", "is_beginning", "size_bytes")

    def __init__(
        self, channel: str, key: str, request: Request, caller: Caller, done: Done, *, is_repeat: bool = False
    ) -> None:
        self.channel = channel
        self.size_bytes = _size_of(request)
        self.ids = needs(key, request, caller)
        is_claim = isinstance(request, ClaimTurn) and not request.renews  # a renewal is no beginning
        self.is_beginning = is_claim or isinstance(request, CreateMessage)
        self._is_repeat = is_repeat  # True: the same request was submitted before, and may have been stored
        self._ask = Ask(key, request, caller, is_unclear=is_repeat)
        self._done = done

    @property
    def became_unclear(self) -> bool:
        """Return whether a commit with this request had an unknown outcome, so that it may be stored."""
        return self._ask.is_unclear and not self._is_repeat

    def asks(self) -> Sequence[Ask]:
        return (self._ask,)

    def decided(self, decided: Decided) -> None:
        self._done(decided.result())

    def failed(self, error: TenutoError) -> None:
        self._done(error)


class DocumentDue(Struct, eq=False):
    """A request of the store: write the documents of messages, so that the store can release the messages' entries."""

    channel: str
    ids: tuple[str, ...]
    size_bytes: int = 0
    is_beginning: bool = False

    def asks(self) -> Sequence[Ask]:
        return ()

    def decided(self, decided: Decided) -> None:
        pass

    def failed(self, error: TenutoError) -> None:
        pass  # no retry needed: the store will request the document again


class Decided(Struct):
    """The decisions on an item, up to the first refusal."""

    channel: Channel
    item: Item
    granted: Sequence[Ask]  # the accepted requests
    outcomes: Sequence[tuple[Decision, int]] = ()  # the decision on each, with the serial in its result
    refusal: TenutoError | None = None  # that of the next request; later requests of the item were not decided
    single: Entry | None = None  # the entry, if `plain_append` decided the only request; it replaces `outcomes`

    def result(self) -> Result | TenutoError:
        """Return the result of the only request.

        Call it after the commit. It is built on demand, since most items need none.
        """
        if self.refusal is not None:
            return self.refusal
        if self.single is not None:
            op, serial = self.single.op, self.single.serial
            assert type(op) is Append
            decision = Decision(ops=(op,), part=op.part, length=op.at + len(op.text))
        else:
            decision, serial = self.outcomes[0]
        state, ask = self.channel.state, self.granted[0]
        message, command, reply = None, None, None
        is_new = bool(decision.ops) and not decision.serial
        if isinstance(ask.request, SendCommand):
            sent = state.commands.get(ask.key)
            command = sent.command() if sent is not None else None
            reply = reply_to(sent) if sent is not None else None
        elif isinstance(ask.request, CreateMessage | UpdateMessage):
            known = state.messages.get(ask.key)
            message = known.message() if known is not None and not known.deleted else None
            # A commit with an unknown outcome had stored the message for this same request, so its result is `created`.
            is_new = is_new or (ask.is_unclear and known is not None and known.writer == ask.caller.writer)
        return Result(
            serial=serial,
            cursor=state.cursor,
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


def _size_of(request: Request) -> int:
    """Return an estimate of the bytes that a waiting request holds."""
    size = 200  # of the request without its content
    text = getattr(request, "text", None)
    if isinstance(text, str):
        size += utf8_len(text)
    for name in ("parts", "part", "meta", "options", "data", "error"):
        value = getattr(request, name, None)
        if value and not isinstance(value, int):  # `part` may be the index of a part
            try:
                size += sum(map(part_bytes, value)) if name == "parts" else len(encode_json(value))
            except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
                continue  # the decision will refuse this request
    return size


# Limit of beginnings in one commit beside running text; a create costs some ten times as much as an append. With 300
# answers of 10 tokens a second, during a burst of 700 questions, the p99 of a token was 51 to 131 ms with slices of 16,
# 22 to 33 ms with 4, and no lower with 2.
SLICE = 4
# Limit on a slow disk. There a commit takes long in any case, and small slices would only make a burst last longer.
LARGEST_SLICE = 16
PER_BEGINNING_S = 0.001  # time that a commit takes in the store for each beginning that a slice may have
# A large create, such as a question with a photo, counts as several. The commit after one has no beginnings, so text
# that comes while a photo is stored does not wait for the next photo, too.
BEGINNING_BYTES = 64 * 1024
BESIDE_S = 1.0  # time after the last request about a watched message during which beginnings are limited


class Admission:
    """The items that wait for a commit."""

    def __init__(self) -> None:
        self._admitted: deque[Item] = deque()  # items that an earlier commit had admitted; they go before all others
        self._aside: deque[Item] = deque()  # beginnings that had to wait, and the later items of their channels
        self._behind = Counter[str]()  # for each channel the number of its items in `_aside`
        self._queue: deque[Item] = deque()  # items that no commit has looked at
        self._beside_until_s = -1.0  # loop time until which beginnings are limited
        self._took_s = 0.0  # moving average of the time that the store takes for a commit
        self._left = inf  # number of beginnings that the commit may still admit

    def __len__(self) -> int:
        return len(self._admitted) + len(self._aside) + len(self._queue)

    @property
    def has_only_beginnings(self) -> bool:
        """Return whether all waiting items wait aside, or behind one that does."""
        return not self._queue and not self._admitted

    def append(self, item: Item) -> None:
        self._queue.append(item)

    def put_first(self, items: Iterable[Item]) -> None:
        """Queue items that had been admitted before all others."""
        self._admitted.extendleft(reversed(tuple(items)))

    def begin(self, now_s: float) -> None:
        """Begin to admit items to a commit, at the loop time `now_s`."""
        is_exceeded, self._left = self._left < 0, inf
        if now_s < self._beside_until_s:
            self._left = 0 if is_exceeded else max(SLICE, min(LARGEST_SLICE, int(self._took_s / PER_BEGINNING_S)))

    def stored(self, took_s: float) -> None:
        """Note that the store took `took_s` for a commit."""
        self._took_s += (took_s - self._took_s) / 8

    def note_running(self, now_s: float) -> None:
        """Limit beginnings from the next commit on, because a viewer waits for an item that is none."""
        self._beside_until_s = now_s + BESIDE_S

    def take(self) -> Item | None:
        """Remove and return the next item of the commit; None if the rest waits for a later one."""
        if self._admitted:
            return self._admitted.popleft()
        if self._aside and self._left > 0:
            item = self._aside.popleft()
            self._left -= _weight(item)
            self._behind[item.channel] -= 1
            if not self._behind[item.channel]:
                del self._behind[item.channel]
            return item
        while self._queue:
            item = self._queue.popleft()
            if not (self._behind and item.channel in self._behind):
                if not item.is_beginning:
                    return item
                if self._left > 0:
                    self._left -= _weight(item)
                    return item
            self._aside.append(item)
            self._behind[item.channel] += 1
        return None

    def drain(self) -> Iterator[Item]:
        """Remove and yield all items."""
        for items in (self._admitted, self._aside, self._queue):
            while items:
                yield items.popleft()
        self._behind.clear()


def _weight(item: Item) -> int:
    """Return how many beginnings an item counts for."""
    return 1 + item.size_bytes // BEGINNING_BYTES
