"""A channel's event stream for a reader of one message or of one turn, who is sent its deltas.

Layer: transports. `message_stream` and `turn_stream` have the two kinds.
"""

from __future__ import annotations

from starlette.types import Receive, Send

from tenuto.core.events import parse_cursor
from tenuto.hub.feed import Feed
from tenuto.transports.credentials import Credentials
from tenuto.transports.sender import SEND_TIMEOUT_S, Sender
from tenuto.transports.sse import EventStream, StreamApp


class DeltaStream(EventStream):
    """One reader's stream of deltas: first what it reads now, then the changes of the channel from there."""

    __slots__ = ("_later_feed",)

    def __init__(
        self,
        app: StreamApp,
        send: Send,
        credentials: Credentials,
        *,
        is_own_client: bool,
        ping_s: int | None,
        sender_class: type[Sender] | None = None,
    ) -> None:
        super().__init__(app, send, credentials, is_own_client=is_own_client, ping_s=ping_s, sender_class=sender_class)
        self._later_feed: Feed | None = None  # None until `follow`, and again from `run` on

    async def follow(self, channel: str, cursor: str, *, flush_ms: int | None = None) -> None:
        """Attach to the channel at `cursor`. The changes from there are sent after the first deltas."""
        self._later_feed = await self._app.hub.attach(
            channel, parse_cursor(cursor), history=0, flush_ms=flush_ms, wake=self.wake
        )

    async def run(self, receive: Receive) -> None:
        """Send the first deltas, then the changes until the last one or until the peer disconnects."""
        self.send_first()  # in a method of its own, so that no variable keeps the text until the stream ends
        self.feed, self._later_feed = self._later_feed, None
        await super().run(receive)

    def send_first(self) -> None:
        """Send the deltas that bring a new reader up to date, and keep none of them."""
        raise NotImplementedError

    def close(self) -> None:
        """Detach from the channel, and give back the connection slot. A second call has no effect."""
        if self._later_feed is not None:
            self._later_feed.close()
            self._later_feed = None
        super().close()

    def write(self, body: bytes, *, is_last: bool) -> None:
        """Write `body`. With `is_last` the response is complete, as that of no other stream is."""
        if is_last:
            last = {"type": "http.response.body", "body": body, "more_body": False}
            self.sender.end(last, patience_s=SEND_TIMEOUT_S)
        elif body:
            self.sender.write({"type": "http.response.body", "body": body, "more_body": True})
