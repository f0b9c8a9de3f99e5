"""Streams of one message and of one turn, in several wire formats, and the cursor that lets a reader resume.

Layer: transports.

`core.deltas` computes the news for a reader; a framer determines how it looks on the wire. A new wire format is a new
class with the method of `Framer`. The bytes of the two formats here are public (`docs/protocol.md`, 5.3;
`docs/agents.md`).

The id of an event is a cursor of the channel with a field of ours: how much of each part the reader was sent
(`7m0.12.340`: of the message created at serial 7 it has 12 code points of part 0 and 340 of part 1; with `d` instead of
`m` it was sent the end, too). In `7m0a1.0.340` one of the parts is a superseded attempt.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from starlette.types import Receive, Send

from tenuto.core.deltas import (
    ALL_SENT,
    COUNTED,
    Delta,
    MessageProgress,
    MessageReplaced,
    PartOpened,
    PartReplaced,
    Sent,
    TextAdded,
    TurnDelta,
    TurnProgress,
    TurnStatus,
)
from tenuto.core.errors import LocalError, shown
from tenuto.core.events import Cursor, encode_json, parse_cursor
from tenuto.core.model import Message, Part
from tenuto.core.names import check_id
from tenuto.core.state import MessageState
from tenuto.hub.access.identity import Scope
from tenuto.hub.access.tickets import split_seal
from tenuto.hub.channel import EncodedBatch, Feed
from tenuto.hub.turns.status import read_turn
from tenuto.transports.access import Credentials, admit_stream, message_bytes, turn_bytes
from tenuto.transports.codec import Query
from tenuto.transports.operations import BY_NAME
from tenuto.transports.sender import SEND_TIMEOUT_S, Sender, TaskSender
from tenuto.transports.sse import (
    HEARTBEAT_S,
    EventStream,
    StreamApp,
    is_own_client,
    send_empty_stream,
    send_head,
    since_of,
    start_stream,
)

_SENT = re.compile(r"([0-9]{1,16})([md])([0-9]{1,3})(?:a([0-9]{1,3}))?((?:\.[0-9]{1,8})*)\Z")
# limit of the field about the sent text: a cursor's extra field has 300 characters, and a ticket's seal or an answer's
# name may need some of them
_SENT_CHARACTERS = 255


class Position(NamedTuple):
    """A reader's position after a frame; `seal` is that of a ticket, or a name, and `created` the message's serial."""

    cursor: str
    seal: str
    created: int
    sent: Sent

    def id(self, *, is_finished: bool) -> str:
        """Return an event's id: a cursor from which `sent_by` reads `sent`. `is_finished`: the event is the last."""
        return f"{self.cursor}:{self.seal}{sent_field(self.created, self.sent, is_finished=is_finished)}"


class Framer(Protocol):
    """Turns deltas into the bytes of one wire format. An instance belongs to one reader."""

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas`; they may be empty. `status` is the final status once the message has ended."""


class NamedEvents:
    """The format of Server-Sent Events named `thinking`, `answer` and `done` (`docs/protocol.md`, 5.3)."""

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas` (`Framer.frame`). The id of a text covers it and those before, not the end."""
        left = texts_left(deltas)
        if left is not None:  # a reset has all texts
            body = b"event: reset\ndata: " + encode_json({_EVENTS[kind].decode(): left[kind] for kind in left})
            body += f"\nid: {position.id(is_finished=False)}\n\n".encode()
        else:
            body, lengths = b"", list(position.sent.lengths)
            for one in reversed([*added_texts(deltas)]):
                at = position._replace(sent=position.sent._replace(lengths=lengths)).id(is_finished=False).encode()
                body = b"event: %b\ndata: %b\nid: %b\n\n" % (_EVENTS[one.kind], encode_json(one.text), at) + body
                lengths[one.index] = one.at
        if status is not None:
            body += b"event: done\ndata: " + encode_json({"status": status})
            body += f"\nid: {position.id(is_finished=True)}\n\n".encode()
        return body


class OwnFrames:
    """The format of an app's existing endpoint: `make_frame(text)` for the answer's text, `end_frame` at its end."""

    def __init__(self, make_frame: Callable[[str], str | bytes], end_frame: EndFrame | None, *, has_ids: bool) -> None:
        self._make_frame = make_frame
        self._end_frame = end_frame
        self._lines = _Lines()
        self._has_ids = has_ids  # False: leave out the ids, which only an EventSource uses

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas` (`Framer.frame`).

        If the reader is slower than the model, several pieces of text come as one.
        """
        frames: list[bytes] = []
        left = texts_left(deltas)
        text = "".join(one.text for one in added_texts(deltas) if one.kind == "text")
        if left is not None:
            self._lines.ends_in_cr = False
            reset = f"event: reset\n{self._lines.data(left['text'])}\n".encode()
            frames.append(self._with_id(reset, position, is_finished=False))
        elif text:
            frames.append(self._with_id(_bytes_of(self._make_frame(text), "style"), position, is_finished=False))
        if status is not None:
            frames.append(self._with_id(self._end(status), position, is_finished=True))
        return b"".join(frames)

    def _end(self, status: str) -> bytes:
        """Return the frame of the end; an `end_frame` that is no function stands for `complete` alone."""
        if callable(self._end_frame):
            return _bytes_of(self._end_frame(status), "end_frame")
        return _bytes_of(self._end_frame, "end_frame") if self._end_frame is not None and status == "complete" else b""

    def _with_id(self, frame: bytes, position: Position, *, is_finished: bool) -> bytes:
        """Return `frame`, if it is an event or an empty end, with an id from which an EventSource can resume.

        The field `id` alone does not make an event; it changes the position only.
        """
        if not self._has_ids or not (frame.endswith(b"\n\n") or (is_finished and not frame)):
            return frame
        return frame.removesuffix(b"\n") + b"id: " + position.id(is_finished=is_finished).encode() + b"\n\n"


class PlainData(OwnFrames):
    """The format of unnamed Server-Sent Events with the text of the answer, and `[DONE]` at the end."""

    def __init__(self, *, has_ids: bool) -> None:
        lines = _Lines()
        super().__init__(lambda text: f"{lines.data(text)}\n", _done, has_ids=has_ids)
        self._lines = lines


def _done(status: str) -> str:
    # An extra event for clients that listen for it; to other clients it is an empty piece of text.
    other = "" if status == "complete" else f"event: {status}\ndata: \n\n"
    return f"{other}data: [DONE]\n\n"


EndFrame = str | bytes | Callable[[str], str | bytes]


def _bytes_of(frame: object, option: str) -> bytes:
    if isinstance(frame, str | bytes):
        return frame.encode() if isinstance(frame, str) else frame
    raise LocalError(
        f"{option} of stream_response must return a frame as str or bytes, got {shown(frame)}; return a str from the "
        "function, with `return`"
    )


_EVENTS = {"text": b"answer", "reasoning": b"thinking"}


def texts_left(deltas: Sequence[Delta]) -> dict[str, str] | None:
    """Return the texts that count after `deltas`, by part type; None unless sent text was superseded or lost meanwhile.

    A reader that only appends text must begin anew with them.
    """
    for number in reversed(range(len(deltas))):
        if isinstance(delta := deltas[number], MessageReplaced) and delta.is_superseded:
            texts = dict.fromkeys(_EVENTS, "")
            for one in added_texts(deltas[number:]):
                texts[one.kind] += one.text
            return texts
    return None


def added_texts(deltas: Sequence[Delta]) -> Iterator[TextAdded]:
    """Yield each new text, for formats whose readers only append text.

    Of a replaced text only the end is sent, from the length that the reader has, because the reader cannot remove text.
    """
    for delta in deltas:
        match delta:
            case TextAdded(kind=kind) if kind in COUNTED:
                yield delta
            case PartOpened(index=index, part=part, sent=sent) | PartReplaced(index=index, part=part, sent=sent):
                yield from _rest(index, part, sent)
            case MessageReplaced(message=message, sent=lengths):
                for index, part in enumerate(message.parts):
                    yield from _rest(index, part, lengths[index] if index < len(lengths) else 0)


def _rest(index: int, part: Part, sent: int) -> Iterator[TextAdded]:
    kind = part["type"]
    if kind in COUNTED and (rest := part["text"][sent:]):
        yield TextAdded(index, kind, sent, rest)


class _Lines:
    """The pieces of one text as data of events. A line end may be cut: `\\r` is one, and so is `\\r\\n`."""

    ends_in_cr = False  # of the last piece

    def data(self, text: str) -> str:
        """Return the next piece as the data of one event: SSE requires one `data` field per line."""
        rest = text.removeprefix("\n") if self.ends_in_cr else text
        self.ends_in_cr = text.endswith("\r")
        lines = rest.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "".join(f"data: {line}\n" for line in lines)


def sent_field(created: int, sent: Sent, *, is_finished: bool) -> str:
    """Return the cursor's extra field for `sent`; if there is not enough room, only for the last parts."""
    pieces: list[str] = []
    kind, attempts = f"{created}{'d' if is_finished else 'm'}", f"a{sent.attempts}" if sent.attempts else ""
    room = _SENT_CHARACTERS - len(kind) - len(attempts)
    for length in reversed(sent.lengths):
        piece = f".{length}"
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    first = len(sent.lengths) - len(pieces)
    return f"{kind}{first}{attempts}" + "".join(reversed(pieces))


def sent_by(cursor: Cursor | None, message: Message | None = None) -> Sent:
    """Return how much text the reader with `cursor` was sent; none unless its stream was one of `message`, if given."""
    found = _SENT.match(split_seal(cursor.extra)[1]) if cursor is not None else None
    if found is None or (message is not None and int(found[1]) != message.created):
        return Sent()
    _, kind, first, attempts, lengths = found.groups()
    # The parts before `first` did not fit into the cursor. They no longer grow.
    whole = [ALL_SENT] * int(first)
    return Sent([*whole, *(int(length) for length in lengths.split(".")[1:])], kind == "d", int(attempts or 0))


class DeltaStream(EventStream):
    """One reader's stream of deltas: first what it reads now, then the changes of the channel from there."""

    __slots__ = ("_first",)
    _first: Callable[[], object] | None  # sends the deltas that bring a new reader up to date; None: they were sent

    async def follow(self, channel: str, cursor: str, *, flush_ms: int | None = None) -> None:
        """Attach to the channel at `cursor`. The changes from there are sent after the first deltas."""
        self.feed = await self._app.hub.attach(
            channel, parse_cursor(cursor), history=0, flush_ms=flush_ms, wake=lambda: None
        )

    async def run(self, receive: Receive) -> None:
        """Send the first deltas, then the changes until the last one or until the peer disconnects."""
        self.send_first()  # in a method of its own, so that no variable keeps the text until the stream ends
        await super().run(receive)

    def send_first(self) -> None:
        """Send the deltas that bring a new reader up to date, and keep none of them."""
        first, self._first = self._first, None
        if first is not None:
            first()

    @property
    def is_ready(self) -> bool:
        """Return whether deltas can be sent now."""
        return not (self.sender.is_over or self.sender.is_busy or self._catching_up is not None)

    def look(self, send_news: Callable[[Feed], object]) -> None:
        """Call `send_news` for what has changed without an event, such as the claim of a turn and its end."""
        feed = self.feed
        if self.is_ready and feed is not None and not feed.is_behind:  # else the state is ahead of the sent entries
            try:
                send_news(feed)
            except Exception:
                self._fail()

    def write(self, body: bytes, *, is_last: bool) -> None:
        """Write `body`. With `is_last` the response is complete, as that of no other stream is."""
        if is_last:
            last = {"type": "http.response.body", "body": body, "more_body": False}
            self.sender.end(last, patience_s=SEND_TIMEOUT_S)
        elif body:
            self.sender.write({"type": "http.response.body", "body": body, "more_body": True})


class MessageStream(DeltaStream):
    """One reader's stream of one message. `attach` comes before `run`."""

    __slots__ = ("_created", "_framer", "_progress", "_reply_to")

    def __init__(
        self,
        app: StreamApp,
        send: Send,
        credentials: Credentials,
        message: Message,
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
        self._created, self._reply_to = message.created, message.reply_to or ""
        self._progress = MessageProgress(message.id, sent)
        self._framer = framer
        self._first = None

    async def attach(self, channel: str, message: Message, cursor: str, *, flush_ms: int | None = None) -> None:
        """Prepare to send `message`, whose state is that at `cursor`.

        Follow the channel from there unless it has ended for good.
        """
        self._first = partial(self._send_deltas, self._progress.begin(message), cursor)
        if self._progress.status in (None, "interrupted"):
            await self.follow(channel, cursor, flush_ms=flush_ms)

    def wake(self) -> None:
        """Send what is new, also the end of an interrupted message once its turn is over."""
        super().wake()
        if self._progress.status is not None:
            self.look(lambda feed: self._send_deltas((), str(feed.cursor)))

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send the changes that the batch makes to this message. Ephemeral batches, which have no cursor, make none."""
        if batch.cursor:
            self._send_deltas(self._progress.receive(batch.events), batch.cursor)

    def _send_deltas(self, deltas: Sequence[Delta], cursor: str) -> None:
        """Write `deltas`. The end of the message completes the response, unless another attempt may continue it."""
        progress = self._progress
        if progress.is_broken:  # events are missing, so the reader has to connect again
            self.sender.end()
            return
        status = progress.status
        if status == "interrupted" and self.feed is not None:
            asked = self.feed.channel.state.messages.get(self._reply_to)
            status = None if asked is not None and asked.claim is not None and asked.claim.is_open else status
        body = self._framer.frame(deltas, status, Position(cursor, self._seal, self._created, progress.sent()))
        self.write(body, is_last=status is not None)


def resume_point(since: Cursor | None, message: Message, cursor: str) -> Sent:
    """Return the text that a reader with the cursor `since` was already sent of `message`, which was read at `cursor`.

    A cursor of another message is treated as none. With one of another epoch, or above the head of the log, the reader
    has text that may be lost.
    """
    head = parse_cursor(cursor)
    if since is None or (head is not None and since.epoch == head.epoch and since.serial <= head.serial):
        return sent_by(since, message)
    return Sent(attempts=-1) if any(sent_by(since).lengths) else Sent()


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
    credentials = await admit_stream(hub, scope, query, channel, BY_NAME["message_events"])
    flush_ms = query.whole("flush_ms", 0, 1000)
    ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
    async with hub.viewing.reading():
        message, cursor = await hub.read(channel, check_id(message_id))
    credentials.charge(message_bytes([message]))
    sent = resume_point(since_of(scope, query), message, cursor)
    if sent.is_finished and message.status != "streaming":
        # 204 stops an EventSource that reconnects after `done` for good
        await send_head(app, scope, send, 204, [(b"cache-control", b"no-store")])
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None
    if scope["method"] == "HEAD":
        await send_empty_stream(app, scope, send)
        return None
    credentials.take_slot()
    is_own = is_own_client(scope, query)
    stream = MessageStream(app, send, credentials, message, sent, NamedEvents(), is_own_client=is_own, ping_s=ping_s)
    try:
        await stream.attach(channel, message, cursor, flush_ms=flush_ms)
    except BaseException:
        stream.close()
        raise
    return stream


class TurnFormat(Protocol):
    """Turns the deltas of a turn into the bytes of a wire format. An instance belongs to one response.

    It may have an attribute `following`: a function whose result, a format, begins anew with the turn as it is.
    """

    headers: dict[str, str]  # headers of the response, with its `content-type`
    heartbeat: bytes  # sent when the turn is silent for 15 seconds; readers of the format ignore it
    is_over: bool  # True: the response is complete with the bytes of the last call, although the turn may go on

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the bytes for `deltas`; they may be empty. A change to the state `over` is the last delta."""


class TurnStream(DeltaStream):
    """One reader's stream of one turn. `attach` comes before `run`."""

    __slots__ = ("_channel", "_format", "_message_id", "_progress")

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
        self.heartbeat = {"type": "http.response.body", "body": turn_format.heartbeat, "more_body": True}
        self._channel = ""  # set by `attach`
        self._message_id = message_id
        self._format = turn_format
        self._progress = TurnProgress(message_id, sent)
        self._first = None  # set by `attach`

    async def attach(self, channel: str, status: TurnStatus) -> None:
        """Prepare to send the turn as it is in `status`, and follow it from there unless it is over."""
        size = turn_bytes([status])
        self.credentials.charge(size)
        deltas, self._channel = self._progress.begin(status), channel
        # the bytes of the messages are counted already, but a format may repeat the request
        self._first = lambda: self.credentials.charge(max(0, self._send_deltas(deltas) - size))
        if not self._progress.is_over:
            await self.follow(channel, status.cursor)

    def freed(self) -> None:
        """Go on with the turn as it is, if it begins anew; else as each stream."""
        super().freed()
        if self._first:
            self.wake()

    def wake(self) -> None:
        """Send what is new."""
        if self._first and self.is_ready:
            self.send_first()
        super().wake()
        self.look(lambda _: self._send_deltas(self._progress.receive((), self._message())))

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send the changes that the batch makes to this turn, whose state is as new: the feed has taken all entries."""
        self._send_deltas(self._progress.receive(batch.events, self._message()))

    def _message(self) -> MessageState | None:
        assert self.feed is not None
        known = self.feed.channel.state.messages.get(self._message_id)
        return known if known is not None and not known.deleted else None

    def _send_deltas(self, deltas: Sequence[TurnDelta]) -> int:
        """Send what the format makes of `deltas`, and return its size in bytes."""
        if self._progress.is_broken:  # events are missing, so the reader has to connect again
            self.sender.end()
            return 0
        if not deltas:
            return 0
        body = self._format.frame(deltas)
        following = getattr(self._format, "following", None)  # the formats of apps need not have it
        is_over = self._format.is_over or self._progress.is_over
        self.write(body, is_last=is_over and following is None)
        if following is not None:
            self._catch_up(partial(self._begin_anew, following))
        return len(body)

    async def _begin_anew(self, following: Callable[[], Awaitable[TurnFormat]]) -> None:
        """Go on in the format that `following` returns, from the turn as it is now."""
        hub = self._app.hub
        async with hub.viewing.reading():
            self._format = await following()
            status = await read_turn(hub.runtime, self._channel, self._message_id)
        self._progress = TurnProgress(self._message_id)
        if self.feed is not None:
            self.feed.close()
            self.feed = None
        await self.attach(self._channel, status)
        self.listen()
