"""A channel that is followed over any number of sockets: attach, resume, pause.

Layer: client.

A `Feed` delivers every batch to its consumer, which folds it into a view or returns its events. A link has one feed for
each channel. A `Subscription` is such a consumer: `async for event in client.subscribe("chat:1")`. Its reader may be
slow: the client keeps a bounded number of bytes, and the server joins the events that it has not sent.

A `ChannelView` is the current state of a channel: `client.channel("chat:1")`. `core.view.View` folds the events, and
`ChannelView` adds the connection, the watchers and older pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from msgspec import Struct

from tenuto.client.connection import Unreachable, decode_response, given
from tenuto.client.link import Link, Outcome, Retry, ignore
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.events import (
    Batch,
    ChannelAttached,
    CommandEvent,
    CommandReply,
    EphemeralEvent,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    Page,
    PresenceEvent,
    ServerEvent,
    Signal,
    known_events,
)
from tenuto.core.model import Command, Member, Message
from tenuto.core.names import check_channel
from tenuto.core.view import View, ViewGap

logger = logging.getLogger("tenuto.client")


class EventConsumer(Protocol):
    """The receiver of a feed's batches."""

    cursor: str | None  # cursor of the last complete batch, from which the next attach resumes

    def receive(self, events: list[ServerEvent], cursor: str | None, size: int) -> None:
        """Receive a batch or a piece of one, of `size` characters. Only the last piece of a batch has the cursor."""

    def cut(self) -> None:
        """Forget the pieces of an incomplete batch, which will come again."""

    def failed(self, error: TenutoError) -> None:
        """Receive the error after which no more batches come."""


@dataclass(eq=False)
class Feed:
    """Keeps one channel attached for its consumer, from `open` to `close`."""

    link: Link
    channel: str
    _consumer: EventConsumer
    _fields: dict[str, int]  # further ones of the frame `attach`
    _when_closed: Callable[[], None]
    _attach_request: object = None  # stands for the newest attach on this socket; None: no attach, or it has ended
    _is_attached: bool = False  # True: the batches that arrive belong to it
    _is_paused: bool = False  # True: the consumer accepts no more for now

    def __post_init__(self) -> None:
        self._retry = Retry(self.link)

    def open(self) -> None:
        """Follow the channel from now on."""
        assert self.channel not in self.link.receivers
        self.link.receivers[self.channel] = self
        self.link.add_listener(self)

    def close(self) -> None:
        """Detach from the channel."""
        self._leave()
        self.link.remove_listener(self)
        if self.link.receivers.get(self.channel) is self:  # otherwise it was closed before
            del self.link.receivers[self.channel]
            self._when_closed()

    def pause(self) -> None:
        """Detach while the consumer accepts no more. Later the server sends the missed events joined."""
        self._is_paused = True
        self._leave()

    def go_on(self) -> None:
        """Attach again after a pause."""
        if self._is_paused:
            self._is_paused = False
            self._attach()

    def begin_anew(self) -> None:
        """Attach again after a delay, because events were lost. The consumer has cleared its cursor."""
        self._leave()
        self._retry.later(self._attach)

    # Calls of the link

    def opened(self) -> None:
        if not self._is_paused:
            self._attach()

    def broken(self) -> None:
        self._is_attached, self._attach_request = False, None
        self._retry.cancel()
        self._consumer.cut()

    def received(self, events: list[Any], cursor: str | None, size: int) -> None:
        if not self._is_attached:
            return  # the events belong to an earlier attach
        if cursor is not None:
            self._retry.succeeded()
        self._consumer.receive(known_events(events), cursor, size)

    def detached(self, error: TenutoError) -> None:
        if self._is_attached:  # otherwise the error belongs to an earlier attach
            self._is_attached, self._attach_request = False, None
            self._consumer.cut()
            self._retry_or_fail(error)

    def forget_cursor(self) -> None:
        self._consumer.cursor = None

    def stopped(self, error: TenutoError) -> None:
        self._consumer.failed(error)

    # Internal

    def _attach(self) -> None:
        """Attach on the present socket. Without one the request has no effect, and `opened` sends it."""
        self._is_attached, self._attach_request = False, (attach := object())
        self.link.begin(
            "attach",
            {"channel": self.channel, **self._fields, **given(since=self._consumer.cursor)},
            lambda result: self._on_result(attach, result),
        )

    def _on_result(self, attach: object, result: Outcome) -> None:
        if attach is not self._attach_request or isinstance(result, Unreachable):
            return  # another attach has followed, or will on the next socket
        if isinstance(result, TenutoError):
            self._attach_request = None
            self._retry_or_fail(result)
        else:
            self._is_attached = True

    def _retry_or_fail(self, error: TenutoError) -> None:
        if error.retry or error.status >= 500:
            logger.info("channel %s cannot be attached now: %s", self.channel, error.code)
            self._retry.later(self._attach)
        else:
            self.close()
            self._consumer.failed(error)

    def _leave(self) -> None:
        self._retry.cancel()
        if self._attach_request is not None:
            self._is_attached, self._attach_request = False, None
            self.link.begin("detach", {"channel": self.channel}, ignore)


# Limit, in characters, of unread frames; above it the feed pauses after the current batch.
MAX_UNREAD = 256 * 1024

OpenFeed = Callable[[EventConsumer], Feed]


class Subscription:
    """The events of a channel from a cursor on, over any number of connections. It ends only with an error.

    Events come as soon as their batch is complete; presence and signals at once. Raises the server's refusal.
    """

    def __init__(self, channel: str, since: str | None, open_feed: OpenFeed) -> None:
        self.channel = channel
        self.cursor: str | None = since  # that of the last batch that the app has read, to resume from
        self._open_feed = open_feed

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the events in batches, in the form that `core.view.View` accepts. Ephemeral batches have no cursor."""
        inbox = _Inbox(self.cursor, self._open_feed)
        inbox.feed.open()
        try:
            await inbox.feed.link.until_connected()
            while True:
                batch = await inbox.next_batch()
                yield batch
                self.cursor = batch.cursor or self.cursor
        finally:
            inbox.feed.close()


class _Inbox:
    """Complete batches that the app has not read yet."""

    def __init__(self, cursor: str | None, open_feed: OpenFeed) -> None:
        self.cursor = cursor
        self.feed = open_feed(self)
        self._batches: deque[tuple[Batch, int]] = deque()  # with the size of each, in characters
        self._size = 0  # that of all `_batches`
        self._pieces: list[ServerEvent] = []  # pieces of an incomplete batch
        self._pieces_size = 0
        self._error: TenutoError | None = None
        self._woken = asyncio.Event()

    async def next_batch(self) -> Batch:
        """Return the next batch. After the last batch, raise the error that ended the feed."""
        while not self._batches:
            if self._error is not None:
                raise self._error
            self._woken.clear()
            self.feed.go_on()  # may fail at once: `failed` then sets `_woken`
            await self._woken.wait()
        batch, size = self._batches.popleft()
        self._size -= size
        return batch

    def receive(self, events: list[ServerEvent], cursor: str | None, size: int) -> None:
        is_ephemeral = bool(events) and all(isinstance(event, EphemeralEvent) for event in events)
        if cursor is None and not self._pieces and is_ephemeral:
            self._add(Batch(events=events), size)  # a batch of its own, without a cursor
            return
        self._pieces += events
        self._pieces_size += size
        if cursor is None:
            return
        self.cursor = cursor
        batch, size = Batch(events=self._pieces, cursor=cursor), self._pieces_size
        self._pieces, self._pieces_size = [], 0
        self._add(batch, size)

    def cut(self) -> None:
        self._pieces, self._pieces_size = [], 0

    def failed(self, error: TenutoError) -> None:
        self._error = error
        self._woken.set()

    def _add(self, batch: Batch, size: int) -> None:
        self._batches.append((batch, size))
        self._size += size
        self._woken.set()
        if self._size > MAX_UNREAD:
            self.feed.pause()


State = Literal["connecting", "live", "reconnecting", "closed"]

KEPT = 100  # replies and signals kept for one watcher that has not read them; beyond this the oldest are dropped
PAGE_TRIES = 3  # most reads of one older page: a new start or a change meanwhile makes a read useless


class Change(Struct, frozen=True, kw_only=True):
    """The changes of a view since its watcher last read them, joined."""

    messages: frozenset[str] = frozenset()  # ids of messages that were created, changed or deleted
    is_new_start: bool = False  # True: each message, member and command may differ
    members: bool = False  # True: the members may differ
    commands: bool = False  # True: the pending commands may differ
    state: bool = False  # True: `ChannelView.state` has changed
    replies: tuple[CommandReply, ...] = ()
    signals: tuple[Signal, ...] = ()


class ChannelView:
    """One channel, live. Use `async with`, or `close` it; its properties never wait."""

    def __init__(self, channel: str, *, open_feed: OpenFeed, when_closed: Callable[[], None]) -> None:
        self.channel = check_channel(channel)
        self.state: State = "connecting"
        self.error: TenutoError | None = None  # the error with which the view was closed
        self._view = View()
        self._when_closed = when_closed
        self._watchers: set[_Watcher] = set()
        self._is_starting = False  # True: a new start is arriving, which is not shown before it is complete
        self._starts = 0  # number of completed new starts
        self._feed = open_feed(self)
        self._feed.open()

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[Message]:
        """Return the messages in view, in order."""
        return self._view.messages()

    def message(self, message_id: str) -> Message | None:
        """Return the message with this id, or None."""
        return next((message for message in self.messages if message.id == message_id), None)

    @property
    def members(self) -> list[Member]:
        """Return the present members, at most the first hundred."""
        return self._view.members()

    @property
    def member_count(self) -> int:
        """Return the number of present members."""
        return self._view.count

    @property
    def commands(self) -> list[Command]:
        """Return the commands that wait for a reply."""
        return self._view.commands()

    @property
    def more(self) -> bool:
        """Return whether there are older messages."""
        return self._view.more

    @property
    def gaps(self) -> int:
        """Return how often events were lost, so that the view had to begin anew. Each time is a bug."""
        return self._view.gaps

    @property
    def cursor(self) -> str | None:
        """Return the cursor of the last complete batch."""
        return self._view.cursor

    @cursor.setter
    def cursor(self, value: str | None) -> None:  # the feed sets the cursor
        self._view.cursor = value

    # -- changes -----------------------------------------------------------------------------------------------

    async def live(self, *, timeout_s: float | None = None) -> None:
        """Wait until the view is complete and connected. Raises the error that closed it, LocalError, Unreachable."""
        link = self._feed.link
        watcher = self._watch()
        try:
            await link.until_connected()
            async with asyncio.timeout(link.timing.request_s if timeout_s is None else timeout_s):
                while self.state != "live":
                    if self.state == "closed":
                        raise self.error or LocalError(
                            f"the view of channel {self.channel!r} is closed; open another one"
                        )
                    await watcher.next_change()
        except TimeoutError:
            raise link.unreachable(f"the view of channel {self.channel!r} was not complete in time") from None
        finally:
            self._watchers.discard(watcher)

    async def __aiter__(self) -> AsyncIterator[Change]:
        """Yield the changes, beginning with the present state.

        Ends with the view, or raises the error that closed it.
        """
        watcher = self._watch()
        watcher.add(Change(is_new_start=True, members=True, commands=True, state=True))
        try:
            while True:
                change = await watcher.next_change()
                yield change
                if self.state == "closed":
                    if self.error is not None:
                        raise self.error
                    return
        finally:
            self._watchers.discard(watcher)

    async def older(self, *, limit: int | None = None) -> bool:
        """Load the next older page into the view. Return whether there are more. Raises Unreachable, or the refusal."""
        fields = {"channel": self.channel, **given(limit=limit)}
        for _ in range(PAGE_TRIES):
            if not self._view.more:
                return False
            before, start = self._view.before, self._starts
            response = await self._feed.link.request("history", {**fields, "before": before})
            page = decode_response(response, Page)
            if self._starts == start and self._view.receive_page(page):
                self._notify(Change(messages=frozenset(message.id for message in page.messages)))
                break
        return self._view.more

    def close(self) -> None:
        """Follow the channel no longer."""
        self._end(None)

    async def __aenter__(self) -> ChannelView:
        await self.live()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- for the feed ------------------------------------------------------------------------------------------

    def receive(self, events: list[ServerEvent], cursor: str | None, size: int) -> None:
        """Fold events into the view (`EventConsumer.receive`), and notify its watchers unless it is incomplete."""
        try:
            self._view.receive(Batch(events=events, cursor=cursor))
        except ViewGap:
            self._is_starting = False
            self._feed.begin_anew()
            if self.state == "live":
                self._become("reconnecting")
        self._is_starting |= any(isinstance(event, ChannelAttached) and not event.resumed for event in events)
        if self._is_starting and cursor is None:
            return  # the change is part of an incomplete new start, so it is not shown yet
        self._notify(self._change(events))
        if cursor is not None:
            self._starts += self._is_starting
            self._is_starting = False
            if self._view.cursor is not None:  # None after a gap
                self._become("live")

    def cut(self) -> None:
        self._view.cut()
        self._is_starting = False
        if self.state == "live":
            self._become("reconnecting")

    def failed(self, error: TenutoError) -> None:
        self._end(error)

    # -- inside ------------------------------------------------------------------------------------------------

    def _change(self, events: list[ServerEvent]) -> Change:
        is_attach = any(isinstance(event, ChannelAttached) for event in events)
        passed = self._view.passed  # the replies and signals among the events
        return Change(
            messages=frozenset(one for event in events if (one := _message_id_of(event)) is not None),
            is_new_start=self._is_starting,
            members=is_attach or any(isinstance(event, PresenceEvent) for event in events),
            commands=is_attach or any(isinstance(event, CommandEvent) for event in events),
            replies=tuple(one for one in passed if isinstance(one, CommandReply)),
            signals=tuple(one for one in passed if isinstance(one, Signal)),
        )

    def _watch(self) -> _Watcher:
        watcher = _Watcher()
        self._watchers.add(watcher)
        return watcher

    def _notify(self, change: Change) -> None:
        for watcher in self._watchers:
            watcher.add(change)

    def _become(self, state: State) -> None:
        if self.state != state and self.state != "closed":
            self.state = state
            self._notify(Change(state=True))

    def _end(self, error: TenutoError | None) -> None:
        if self.state == "closed":
            return
        self.error = error
        self._become("closed")
        self._feed.close()
        self._when_closed()


class _Watcher:
    """The changes that one watcher has not read yet."""

    def __init__(self) -> None:
        self._change: Change | None = None
        self._woken = asyncio.Event()

    def add(self, change: Change) -> None:
        self._change = change if self._change is None else _joined(self._change, change)
        self._woken.set()

    async def next_change(self) -> Change:
        while self._change is None:
            self._woken.clear()
            await self._woken.wait()
        change, self._change = self._change, None
        return change


def _joined(one: Change, other: Change) -> Change:
    return Change(
        messages=one.messages | other.messages,
        is_new_start=one.is_new_start or other.is_new_start,
        members=one.members or other.members,
        commands=one.commands or other.commands,
        state=one.state or other.state,
        replies=(one.replies + other.replies)[-KEPT:],
        signals=(one.signals + other.signals)[-KEPT:],
    )


def _message_id_of(event: ServerEvent) -> str | None:
    match event:
        case MessageCreate() | MessageUpdate():
            return event.message.id
        case MessageAppend() | MessagePart() | MessageFinish() | MessageTakeover() | MessageDelete():
            return event.id
    return None
