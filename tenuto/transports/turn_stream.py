"""A turn as the stream of a response, in a wire format of the app's own.

Layer: transports.

A `TurnStream` is a channel's event stream that sends the deltas of one turn (`core.turn_deltas`) through a format.
`tenuto.routes` makes responses of it. The heartbeat, the connection slot, the expiry of the identity, backpressure
and the drain are those of the hub's own streams. The stream ends as complete only when the format or the turn is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from starlette.types import Send

from tenuto.core.deltas import Sent, TurnDelta, TurnProgress, TurnStatus
from tenuto.core.message_state import MessageState
from tenuto.hub.batches import EncodedBatch
from tenuto.transports.credentials import Credentials
from tenuto.transports.delta_stream import DeltaStream
from tenuto.transports.sender import TaskSender
from tenuto.transports.sse import StreamApp
from tenuto.transports.traffic import turn_bytes


class TurnFormat(Protocol):
    """Turns the deltas of a turn into the bytes of a wire format. An instance belongs to one response."""

    headers: dict[str, str]  # headers of the response, with its `content-type`
    heartbeat: bytes  # sent when the turn is silent for 15 seconds; readers of the format ignore it
    is_over: bool  # True: the response is complete with the bytes of the last call, although the turn may go on

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the bytes for `deltas`; they may be empty. A change to the state `over` is the last delta."""


class TurnStream(DeltaStream):
    """One reader's stream of one turn. `attach` comes before `run`."""

    __slots__ = ("_first", "_format", "_message_id", "_progress")

    def __init__(
        self,
        app: StreamApp,
        send: Send,
        credentials: Credentials,
        message_id: str,
        turn_format: TurnFormat,
        sent: Mapping[str, Sent],
    ) -> None:
        # middleware of the app may need a current task, so another sender would not do
        super().__init__(app, send, credentials, is_own_client=True, ping_s=None, sender_class=TaskSender)
        self._ping = {"type": "http.response.body", "body": turn_format.heartbeat, "more_body": True}
        self._message_id = message_id
        self._format = turn_format
        self._progress = TurnProgress(message_id, sent)
        self._first: list[TurnDelta] = []

    async def attach(self, channel: str, status: TurnStatus) -> None:
        """Prepare to send the turn as it is in `status`, and follow it from there unless it is over."""
        self.credentials.charge(turn_bytes([status]))
        self._first = self._progress.begin(status)
        if not self._progress.is_over:
            await self.follow(channel, status.cursor)

    def send_first(self) -> None:
        """Send the turn as it was at `attach`."""
        first, self._first = self._first, []
        self._send_deltas(first)

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
        self.write(body, is_last=self._format.is_over or self._progress.is_over)
