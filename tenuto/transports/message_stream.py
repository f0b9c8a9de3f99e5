"""One message as a stream of the events `thinking`, `answer` and `done`, for small clients and for `curl -N`.

Layer: transports.

A `MessageStream` is a channel's event stream that sends the deltas of one message (`core.deltas`) through a framer
(`framing`). The endpoint `GET …/messages/{id}/events` and `hub.stream_response` both use it. A reader of these formats
only appends text, so no character may be sent twice: the id of an event says how much of each part was sent. Text that
is replaced after it was sent is not sent again; the channel's own stream does that.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Receive, Send

from tenuto.core.deltas import Delta, MessageProgress, Sent
from tenuto.core.events import Cursor, parse_cursor
from tenuto.core.model import Message
from tenuto.core.names import check_id
from tenuto.hub.access.identity import Scope
from tenuto.hub.batches import EncodedBatch
from tenuto.transports.access import admit_stream
from tenuto.transports.credentials import Credentials
from tenuto.transports.delta_stream import DeltaStream
from tenuto.transports.framing import Framer, NamedEvents, Position, sent_by
from tenuto.transports.operations import BY_NAME
from tenuto.transports.problem import GUARDS, Headers
from tenuto.transports.query import Query
from tenuto.transports.sender import Sender
from tenuto.transports.sse import (
    HEARTBEAT_S,
    StreamApp,
    is_own_client,
    send_empty_stream,
    send_refusal,
    since_of,
    start_stream,
)
from tenuto.transports.traffic import message_bytes


class MessageStream(DeltaStream):
    """One reader's stream of one message. `attach` comes before `run`."""

    __slots__ = ("_first", "_framer", "_progress")

    def __init__(
        self,
        app: StreamApp,
        send: Send,
        credentials: Credentials,
        message_id: str,
        sent: Sent,
        framer: Framer,
        *,
        is_own_client: bool,
        ping_s: int | None = None,
        sender_class: type[Sender] | None = None,
        name: str = "",
    ) -> None:
        """Serve one reader. Its cursors carry `name` (from `hub.tickets.name`) if given, else a ticket's seal."""
        super().__init__(app, send, credentials, is_own_client=is_own_client, ping_s=ping_s, sender_class=sender_class)
        self._seal = name or self._seal
        self._progress = MessageProgress(message_id, sent)
        self._framer = framer
        self._first: tuple[list[Delta], str] | None = None

    async def attach(self, channel: str, message: Message, cursor: str, *, flush_ms: int | None = None) -> None:
        """Prepare to send `message`, whose state is that at `cursor`.

        Follow the channel from there unless it has ended.
        """
        self._first = self._progress.begin(message), cursor
        if self._progress.status is None:
            await self.follow(channel, cursor, flush_ms=flush_ms)

    def send_first(self) -> None:
        """Send the message as it was at `attach`."""
        assert self._first is not None
        (deltas, cursor), self._first = self._first, None
        self._send_deltas(deltas, cursor)

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send the changes that the batch makes to this message. Ephemeral batches, which have no cursor, make none."""
        if batch.cursor:
            self._send_deltas(self._progress.receive(batch.events), batch.cursor)

    def _send_deltas(self, deltas: Sequence[Delta], cursor: str) -> None:
        """Write `deltas`. The end of the message completes the response."""
        progress = self._progress
        if progress.is_broken:
            self.sender.end()
            return
        status = progress.status
        body = self._framer.frame(deltas, status, Position(cursor, self._seal, progress.sent()))
        self.write(body, is_last=status is not None)


def resume_point(since: Cursor | None, cursor: str) -> Sent:
    """Return the text that a reader with the cursor `since` was already sent of a message that was read at `cursor`."""
    return sent_by(since if _is_of(since, parse_cursor(cursor)) else None)


def _is_of(since: Cursor | None, known: Cursor | None) -> bool:
    """Return whether the log whose head is `known` can have issued `since`.

    A cursor above the head is treated as none.
    """
    return since is not None and known is not None and since.epoch == known.epoch and since.serial <= known.serial


async def message_events(
    app: StreamApp, scope: Scope, receive: Receive, send: Send, channel: str, message_id: str
) -> None:
    """Serve `GET …/messages/{id}/events`. Raises the error of the HTTP response, before the response has started."""
    stream = await _message_stream(app, scope, send, channel, message_id)
    if stream is None:
        return
    try:
        await start_stream(app, scope, send)
        await stream.run(receive)
    finally:
        stream.close()


async def _message_stream(
    app: StreamApp, scope: Scope, send: Send, channel: str, message_id: str
) -> MessageStream | None:
    """Return an attached stream; None if the response has been sent already."""
    hub = app.hub
    query = Query(scope)
    is_own = is_own_client(scope, query)
    credentials: Credentials | None = None
    try:
        identity, ticket = await admit_stream(hub, scope, query, channel, BY_NAME["message_events"])
        credentials = Credentials(hub, scope, identity, ticket=ticket)
        flush_ms = query.whole("flush_ms", 0, 1000)
        ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
        since = since_of(scope, query)
        async with hub.viewing.reading():
            message, cursor = await hub.read(channel, check_id(message_id))
        credentials.charge(message_bytes([message]))
        sent = resume_point(since, cursor)
        if sent.is_finished and message.status != "streaming":
            await send_no_content(app, scope, send)
            return None
        if scope["method"] == "HEAD":
            await send_empty_stream(app, scope, send)
            return None
        credentials.take_slot()
        stream = MessageStream(
            app, send, credentials, message_id, sent, NamedEvents(), is_own_client=is_own, ping_s=ping_s
        )
        await stream.attach(channel, message, cursor, flush_ms=flush_ms)
    except BaseException as error:
        if credentials is not None:
            credentials.leave()
        await send_refusal(app, scope, send, error, is_own_client=is_own)
        return None
    return stream


async def send_no_content(app: StreamApp, scope: Scope, send: Send) -> None:
    """Send status 204, which stops an EventSource that reconnects after `done` for good."""
    headers: Headers = [(b"cache-control", b"no-store"), *GUARDS, *app.added_headers(scope)]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
