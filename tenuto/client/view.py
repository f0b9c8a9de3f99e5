"""The current state of a channel, kept up to date: `client.channel("chat:1")`.

Layer: client.

`core.view.View` folds the events. `ChannelView` adds the connection, the watchers and older pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Literal

from msgspec import Struct

from tenuto.client.connection import decode_response
from tenuto.client.feed import EventConsumer, Feed, is_new_start
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.events import (
    Batch,
    ChannelAttached,
    CommandEvent,
    CommandReply,
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
)
from tenuto.core.model import Command, Member, Message
from tenuto.core.names import check_channel
from tenuto.core.view import View, ViewGap

State = Literal["connecting", "live", "reconnecting", "closed"]

KEPT = 100  # replies and signals kept for one watcher that has not read them; beyond this the oldest are dropped
PAGE_TRIES = 3


class Change(Struct, frozen=True, kw_only=True):
    """The changes of a view since its watcher last read them, joined."""

    messages: frozenset[str] = frozenset()  # ids of messages that were created, changed or deleted
    is_new_start: bool = False  # True: each message, member and command may differ
    members: bool = False
    commands: bool = False
    state: bool = False
    replies: tuple[CommandReply, ...] = ()
    signals: tuple[Signal, ...] = ()


class ChannelView:
    """One channel, live. Use `async with`, or `close` it; its properties never wait."""

    def __init__(
        self, channel: str, *, open_feed: Callable[[EventConsumer], Feed], when_closed: Callable[[], None]
    ) -> None:
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
        fields = {"channel": self.channel, **({} if limit is None else {"limit": limit})}
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
        try:
            self._view.receive(Batch(events=events, cursor=cursor))
        except ViewGap:
            self._is_starting = False
            self._feed.begin_anew()
            if self.state == "live":
                self._become("reconnecting")
        self._starting(events)
        if self._is_starting and cursor is None:
            return  # the change is part of an incomplete new start, so it is not shown yet
        self._notify(self._change(events))
        if cursor is not None:
            self._starts += self._is_starting
            self._is_starting = False
            if self._view.cursor is not None:
                self._become("live")

    def cut(self) -> None:
        self._view.cut()
        self._is_starting = False
        if self.state == "live":
            self._become("reconnecting")

    def failed(self, error: TenutoError) -> None:
        self._end(error)

    # -- inside ------------------------------------------------------------------------------------------------

    def _starting(self, events: list[ServerEvent]) -> None:
        self._is_starting = self._is_starting or is_new_start(events)

    def _change(self, events: list[ServerEvent]) -> Change:
        is_attach = any(isinstance(event, ChannelAttached) for event in events)
        passed = self._view.passed
        return Change(
            messages=frozenset(one for event in events if (one := _message_of(event)) is not None),
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


def _message_of(event: ServerEvent) -> str | None:
    match event:
        case MessageCreate() | MessageUpdate():
            return event.message.id
        case MessageAppend() | MessagePart() | MessageFinish() | MessageTakeover() | MessageDelete():
            return event.id
    return None
