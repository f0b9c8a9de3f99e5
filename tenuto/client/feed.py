"""A channel that is followed over any number of sockets: attach, resume, pause.

Layer: client.

A `Feed` delivers every batch to its consumer, which folds it into a view or returns its events. A link has one feed for
each channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from tenuto.client.link import Link
from tenuto.client.pending import Outcome
from tenuto.client.problems import Unreachable
from tenuto.core.errors import TenutoError
from tenuto.core.events import ServerEvent, known_events

logger = logging.getLogger("tenuto.client")


class EventConsumer(Protocol):
    """The receiver of a feed's batches."""

    cursor: str | None  # cursor of the last complete batch, from which the next attach resumes

    def receive(self, events: list[ServerEvent], cursor: str | None, size: int) -> None:
        """Receive a batch or a piece of one. Only the last piece of a batch has the cursor."""

    def cut(self) -> None:
        """Forget the pieces of an incomplete batch, which will come again."""

    def failed(self, error: TenutoError) -> None:
        """Receive the error after which no more batches come."""


class Feed:
    """Keeps one channel attached for its consumer, from `open` to `close`."""

    def __init__(
        self,
        link: Link,
        channel: str,
        consumer: EventConsumer,
        *,
        history: int | None,
        flush_ms: int | None,
        when_closed: Callable[[], None],
    ) -> None:
        self.link = link
        self.channel = channel
        self._consumer = consumer
        self._when_closed = when_closed
        self._fields = {"history": history, "flush_ms": flush_ms}
        self._is_attached = False  # True: the batches that arrive belong to the newest attach
        self._is_requested = False  # True: this connection has sent an attach, and no detach since
        self._is_paused = False
        self._attaches = 0  # number of attaches, so that responses to earlier ones are ignored
        self._failures = 0
        self._again: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Follow the channel from now on."""
        assert self.channel not in self.link.receivers
        self.link.receivers[self.channel] = self
        self.link.add_listener(self)

    def close(self) -> None:
        """Detach from the channel."""
        self._leave()
        self.link.remove_listener(self)
        if self.link.receivers.get(self.channel) is self:
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
            if self.link.is_live:
                self._attach()

    def begin_anew(self) -> None:
        """Attach again after a delay, because events were lost. The consumer has cleared its cursor."""
        self._leave()
        self._attach_later()

    # Calls of the link

    def opened(self) -> None:
        if not self._is_paused:
            self._attach()

    def broken(self) -> None:
        self._is_attached = self._is_requested = False
        self._attaches += 1
        self._cancel_again()
        self._consumer.cut()

    def received(self, events: list[Any], cursor: str | None, size: int) -> None:
        if not self._is_attached:
            return  # the response belongs to an earlier attach
        if cursor is not None:
            self._failures = 0
        self._consumer.receive(known_events(events), cursor, size)

    def detached(self, error: TenutoError) -> None:
        if self._is_attached:  # otherwise the error belongs to an earlier attach
            self._is_attached = self._is_requested = False
            self._consumer.cut()
            self._refused(error)

    def forget_cursor(self) -> None:
        self._consumer.cursor = None

    def stopped(self, error: TenutoError) -> None:
        self._cancel_again()
        self._consumer.failed(error)

    # Internal

    def _attach(self) -> None:
        self._cancel_again()
        self._attaches += 1
        self._is_attached, self._is_requested = False, True
        attach = self._attaches
        fields: dict[str, Any] = {name: value for name, value in self._fields.items() if value is not None}
        if self._consumer.cursor is not None:
            fields["since"] = self._consumer.cursor
        self.link.begin(
            "attach",
            {"channel": self.channel, **fields},
            lambda result: self._on_result(attach, result),
            is_repeatable=False,  # not repeated by the link, because `opened` sends it again
        )

    def _on_result(self, attach: int, result: Outcome) -> None:
        if attach != self._attaches or isinstance(result, Unreachable):
            return
        self._is_requested = not isinstance(result, TenutoError)
        if isinstance(result, TenutoError):
            self._refused(result)
        else:
            self._is_attached = True

    def _refused(self, error: TenutoError) -> None:
        if error.retry or error.status >= 500:
            logger.info("channel %s cannot be attached now: %s", self.channel, error.code)
            self._attach_later()
        else:
            self.close()
            self._consumer.failed(error)

    def _attach_later(self) -> None:
        self._cancel_again()
        self._failures += 1
        delay_s = self.link.timing.retry(self._failures, self.link.random)
        self._again = asyncio.get_running_loop().call_later(delay_s, self._attach_again)

    def _attach_again(self) -> None:
        self._again = None
        if self.link.is_live and not self._is_paused:
            self._attach()

    def _leave(self) -> None:
        self._cancel_again()
        self._attaches += 1
        if self._is_requested:
            self._is_attached = self._is_requested = False
            self.link.begin("detach", {"channel": self.channel}, _take, is_repeatable=False)

    def _cancel_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None


def _take(result: Outcome) -> None:
    """Ignore the response to a detach; if the socket closed instead, that detaches, too."""
