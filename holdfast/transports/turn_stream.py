"""A turn as the stream of a response, in a wire format of the app's own.

Layer: transports.

A `TurnStream` is a channel's event stream that sends the deltas of one turn (`core.turn_deltas`) through a format.
`holdfast.routes` makes responses of it. The heartbeat, the connection slot, the expiry of the identity, backpressure
and the drain are those of the hub's own streams. The stream ends as complete only when the format or the turn is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from starlette.types import Receive, Send

from holdfast.core.cursor import parse_cursor
from holdfast.core.message_state import MessageState
from holdfast.core.turn_deltas import TurnDelta, TurnProgress, TurnStatus
from holdfast.hub.batches import EncodedBatch
from holdfast.hub.feed import Feed
from holdfast.transports.credentials import Credentials
from holdfast.transports.sender import SEND_TIMEOUT_S, TaskSender
from holdfast.transports.sse import EventStream, StreamApp
from holdfast.transports.traffic import turn_bytes


class TurnFormat(Protocol):
    """Turns the deltas of a turn into the bytes of a wire format. An instance belongs to one response."""

    headers: dict[str, str]  # headers of the response, with its `content-type`
    heartbeat: bytes  # sent when the turn is silent for 15 seconds; readers of the format ignore it
    is_over: bool  # True: the response is complete with the bytes of the last call, although the turn may go on

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the bytes for `deltas`; they may be empty. A change to the state `over` is the last delta."""


class TurnStream(EventStream):
    """One reader's stream of one turn. `attach` comes before `run`."""

    __slots__ = ("_first", "_format", "_later_feed", "_message_id", "_progress")

    def __init__(
        self, app: StreamApp, send: Send, credentials: Credentials, message_id: str, turn_format: TurnFormat
    ) -> None:
        # middleware of the app may need a current task, so another sender would not do
        super().__init__(app, send, credentials, is_own_client=True, ping_s=None, sender_class=TaskSender)
        self._ping = {"type": "http.response.body", "body": turn_format.heartbeat, "more_body": True}
        self._message_id = message_id
        self._format = turn_format
        self._progress = TurnProgress(message_id)
        self._first: list[TurnDelta] = []
        self._later_feed: Feed | None = None  # None until `run` has sent the turn as it is

    async def attach(self, channel: str, status: TurnStatus) -> None:
        """Prepare to send the turn as it is in `status`, and follow it from there unless it is over."""
        self.credentials.charge(turn_bytes([status]))
        self._first = self._progress.begin(status)
        if not self._progress.is_over:
            self._later_feed = await self._app.hub.attach(
                channel, parse_cursor(status.cursor), history=0, wake=self.wake
            )

    async def run(self, receive: Receive) -> None:
        """Send the turn as it is, then its changes until it is over or the peer disconnects."""
        self._send_deltas(self._take_first())
        self.feed, self._later_feed = self._later_feed, None
        await super().run(receive)

    def close(self) -> None:
        """Detach from the channel, and give back the connection slot. A second call has no effect."""
        if self._later_feed is not None:
            self._later_feed.close()
            self._later_feed = None
        super().close()

    def wake(self) -> None:
        """Send what is new. A turn's claim and its end make no event, so the state of the turn is read each time."""
        super().wake()
        feed = self.feed
        is_ready = not (self.sender.is_over or self.sender.is_busy or self._catching_up is not None)
        if is_ready and feed is not None and not feed.is_behind:
            try:
                self._send_deltas(self._progress.receive((), self._message()))
            except Exception:
                self._fail()

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send the changes that the batch makes to this turn, whose state is as new: the feed has taken all entries."""
        self._send_deltas(self._progress.receive(batch.events, self._message()))

    def _take_first(self) -> list[TurnDelta]:
        first, self._first = self._first, []  # a stream lasts long, so it does not keep the text of its beginning
        return first

    def _message(self) -> MessageState | None:
        assert self.feed is not None
        known = self.feed.channel.state.message(self._message_id)
        return known if known is not None and not known.deleted else None

    def _send_deltas(self, deltas: Sequence[TurnDelta]) -> None:
        if self._progress.is_broken:
            self.sender.end()
            return
        if not deltas:
            return
        body = self._format.frame(deltas)
        if self._format.is_over or self._progress.is_over:
            last = {"type": "http.response.body", "body": body, "more_body": False}
            self.sender.end(last, patience_s=SEND_TIMEOUT_S)
        elif body:
            self.sender.write({"type": "http.response.body", "body": body, "more_body": True})
