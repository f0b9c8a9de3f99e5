"""One answer as a stream: `thinking`, `answer`, `done`, for twenty lines of JavaScript or `curl -N`.

Layer: transports.

Whoever reads this stream only adds up text, so no character may come twice: the id of an
event is a cursor that also says how much of each part was sent (`d0.12.340`: parts 0 and 1 have 12 and 340 characters
there, and `done` was sent; `m…`: it was not). Text that is replaced after it was sent is not told here: the channel's
own stream does that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from starlette.types import Receive, Send

from holdfast.core.cursor import Cursor, parse_cursor
from holdfast.core.errors import HoldfastError
from holdfast.core.events import (
    ChannelAttached,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    ServerEvent,
    encode_json,
)
from holdfast.core.model import Message, Part
from holdfast.core.names import check_id
from holdfast.hub.feed import EncodedBatch
from holdfast.hub.identity import Scope
from holdfast.hub.tickets import split_seal
from holdfast.transports import problem
from holdfast.transports.credentials import Credentials
from holdfast.transports.query import Query
from holdfast.transports.sender import SEND_TIMEOUT_S
from holdfast.transports.sse import (
    HEARTBEAT_S,
    EventStream,
    Open,
    admit_stream,
    farewell,
    may_come_back,
    says_who_it_is,
    send_empty_stream,
    since_of,
    start_stream,
)

# What a part's text is called here; other parts are not told.
_SHOWN = {"text": "answer", "reasoning": "thinking"}
_PLACE = re.compile(r"([md])([0-9]{1,3})((?:\.[0-9]{1,8})*)\Z")
_PLACE_CHARACTERS = 270  # a cursor's extra field may have 300, and a ticket's stream puts its seal there, too


class Told(NamedTuple):
    """How much of a message a viewer was told: code points by part, and whether it knows of the end."""

    lengths: Sequence[int] = ()
    is_done: bool = False


def told_by(cursor: Cursor | None) -> Told:
    """What the viewer who comes with `cursor` was told; nothing, if the cursor is not of such a stream."""
    found = _PLACE.match(split_seal(cursor.extra)[1]) if cursor is not None else None
    if found is None:
        return Told()
    kind, first, lengths = found.groups()
    # Parts before `first` were left out because there are too many to name; they do not grow any more.
    whole = [2**53] * int(first)
    return Told([*whole, *(int(length) for length in lengths.split(".")[1:])], kind == "d")


def place(lengths: Sequence[int], *, is_done: bool) -> str:
    """The cursor's extra field that `told_by` reads back; where not all lengths fit, the last ones."""
    pieces: list[str] = []
    room = _PLACE_CHARACTERS
    for length in reversed(lengths):
        piece = f".{length}"
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    first = len(lengths) - len(pieces)
    return f"{'d' if is_done else 'm'}{first}" + "".join(reversed(pieces))


class Progress:
    """What was told of one message so far; turns events into what is to be told next. No I/O."""

    __slots__ = ("_id", "_kinds", "_lengths", "is_broken", "status")

    def __init__(self, message_id: str, told: Sequence[int]) -> None:
        self._id = message_id
        self._lengths = list(told)
        self._kinds: list[str | None] = []
        self.status: str | None = None  # once the message has ended
        self.is_broken = False  # then there is no way on but to begin anew

    def message(self, message: Message) -> list[tuple[str, str]]:
        """What is new in the whole message: kind and text."""
        told = [one for index, part in enumerate(message.parts) for one in self._part(index, part)]
        self.status = message.status if message.status != "streaming" else None
        return told

    def events(self, events: Sequence[ServerEvent]) -> list[tuple[str, str]]:
        """What is new in a batch of the channel's events: kind and text."""
        told: list[tuple[str, str]] = []
        for event in events:
            match event:
                case ChannelAttached():
                    self.is_broken = self.is_broken or not event.resumed
                case MessageCreate() | MessageUpdate() if event.message.id == self._id:
                    told += self.message(event.message)
                case MessageAppend() if event.id == self._id:
                    told += self._append(event)
                case MessagePart() if event.id == self._id:
                    told += self._part(event.index, event.part)
                case MessageFinish() if event.id == self._id:
                    self.status = event.status
                case MessageTakeover() if event.id == self._id:
                    self.status = None  # it streams again
                case MessageDelete() if event.id == self._id:
                    self.status = "deleted"
        return told

    def cursor(self, text: str, seal: str = "") -> str:
        """The cursor `text` of the channel, the seal of a ticket's stream, and what was told."""
        return f"{text}:{seal}{place(self._lengths, is_done=self.status is not None)}"

    def _part(self, index: int, part: Part) -> list[tuple[str, str]]:
        kind = _SHOWN.get(part["type"])
        while len(self._kinds) <= index:
            self._kinds.append(None)
        while len(self._lengths) <= index:
            self._lengths.append(0)
        self._kinds[index] = kind
        text: str = part["text"] if kind is not None else ""
        new, self._lengths[index] = text[self._lengths[index] :], len(text)
        return [(kind, new)] if kind is not None and new else []

    def _append(self, event: MessageAppend) -> list[tuple[str, str]]:
        kind = self._kinds[event.part] if event.part < len(self._kinds) else None
        if kind is None:
            return []
        known = self._lengths[event.part]
        if event.at > known:
            self.is_broken = True
            return []
        new = event.text[known - event.at :]
        self._lengths[event.part] = known + len(new)
        return [(kind, new)] if new else []


class _Done(Struct):
    status: str


class MessageStream(EventStream):
    """One viewer's stream of one message."""

    __slots__ = ("_progress",)

    def __init__(
        self, app: Open, send: Send, credentials: Credentials, progress: Progress, *, is_ours: bool, ping_s: int | None
    ) -> None:
        super().__init__(app, send, credentials, is_ours=is_ours, ping_s=ping_s)
        self._progress = progress

    def write_batch(self, batch: EncodedBatch) -> None:
        """Tell what of the batch is of this message; what is not in the log is of none."""
        if batch.cursor:
            self.tell(self._progress.events(batch.events), batch.cursor)

    def tell(self, told: Sequence[tuple[str, str]], cursor: str) -> None:
        """Write what is new, and `done` when that was all: only then the stream ends as complete."""
        if self._progress.is_broken:
            self.sender.end()
            return
        status = self._progress.status
        body = framed(told, status, self._progress.cursor(cursor, self._seal))
        if status is not None:
            last = {"type": "http.response.body", "body": body, "more_body": False}
            self.sender.end(last, patience_s=SEND_TIMEOUT_S)
        elif body:
            self.sender.write({"type": "http.response.body", "body": body, "more_body": True})


def framed(told: Sequence[tuple[str, str]], status: str | None, cursor: str) -> bytes:
    """The events, with an id on the last only: it is what was told up to there."""
    events = [b"event: " + kind.encode() + b"\ndata: " + encode_json(text) for kind, text in told]
    if status is not None:
        events.append(b"event: done\ndata: " + encode_json(_Done(status)))
    if not events:
        return b""
    return b"\n\n".join(events) + b"\nid: " + cursor.encode() + b"\n\n"


async def message_events(app: Open, scope: Scope, receive: Receive, send: Send, channel: str, message_id: str) -> None:
    """`GET …/messages/{id}/events`. Raises what HTTP is to answer, before anything was sent."""
    stream = await _message_stream(app, scope, send, channel, message_id)
    if stream is None:
        return
    answer, told, cursor = stream
    feed, answer.feed = answer.feed, None  # its batches come after what the message holds already
    try:
        await start_stream(app, scope, send)
        answer.tell(told, cursor)
        answer.feed = feed
        await answer.run(receive)
    finally:
        if feed is not None:
            feed.close()
        answer.close()


async def _message_stream(
    app: Open, scope: Scope, send: Send, channel: str, message_id: str
) -> tuple[MessageStream, list[tuple[str, str]], str] | None:
    """A stream with its feed, and what it begins with; None if the request is answered already."""
    hub = app.hub
    query = Query(scope)
    is_ours = says_who_it_is(scope, query)
    credentials: Credentials | None = None
    try:
        credentials = await admit_stream(hub, scope, query, channel)
        credentials.identity.check("subscribe", channel)
        credentials.identity.check("history", channel)
        flush_ms = query.whole("flush_ms", 0, 1000)
        ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
        since = since_of(scope, query)
        message, cursor = await hub.read(channel, check_id(message_id))
        known = parse_cursor(cursor)
        told = told_by(since if _is_of(since, known) else None)
        if told.is_done and message.status != "streaming":
            await send_nothing_more(app, scope, send)
            return None
        if scope["method"] == "HEAD":
            await send_empty_stream(app, scope, send)
            return None
        credentials.sit()
        progress = Progress(message_id, told.lengths)
        stream = MessageStream(app, send, credentials, progress, is_ours=is_ours, ping_s=ping_s)
        new = progress.message(message)
        if progress.status is None:
            stream.feed = await hub.attach(channel, known, history=0, flush_ms=flush_ms, wake=stream.wake)
    except HoldfastError as error:
        if credentials is not None:
            credentials.leave()
        if is_ours or not may_come_back(error):
            raise
        await send_empty_stream(app, scope, send, farewell(error))
        return None
    except BaseException:
        if credentials is not None:
            credentials.leave()
        raise
    return stream, new, cursor


def _is_of(since: Cursor | None, known: Cursor | None) -> bool:
    """Was `since` given out by the log that stands at `known`? What is above its head is no cursor."""
    return since is not None and known is not None and since.epoch == known.epoch and since.serial <= known.serial


async def send_nothing_more(app: Open, scope: Scope, send: Send) -> None:
    """Result 204: an EventSource that comes back after `done` stops for good."""
    headers: problem.Headers = [(b"cache-control", b"no-store"), *app.cors(scope)]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
