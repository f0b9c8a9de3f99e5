"""One line for an SSE endpoint: `return hub.stream_response(channel, generator)`.

You are at the top, below `app`. The answer is written to a message by a task of the hub's, which outlives the request;
the caller gets it as a stream of its own, and so does anyone who joins. What the response looks like is public.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.agents.local import LocalWatch
from holdfast.agents.stops import answer_stops, until_stopped
from holdfast.agents.writer import AgentWriter
from holdfast.core.cursor import parse_cursor
from holdfast.core.errors import HoldfastError, LocalError, StoreUnavailable
from holdfast.core.events import Batch
from holdfast.core.model import Message
from holdfast.hub.hub import HubCore
from holdfast.transports.message_stream import Progress, Told, framed, told_by
from holdfast.transports.sse import HEARTBEAT_S

logger = logging.getLogger("holdfast.agents")

Style = Literal["events", "data"]
LOOK_S = 1.0  # how often it is looked whether anybody still watches


class Answering:
    """An answer on its way: the task that writes it, and who may stop it."""

    def __init__(
        self, hub: HubCore, writer: AgentWriter, source: object, asked: str | None, leave_s: float | None
    ) -> None:
        self._hub = hub
        self._writer = writer
        self._source = source
        self._targets = {writer.id} if asked is None else {writer.id, asked}
        self._leave_s = leave_s
        self._callers = 0

    def start(self) -> None:
        """Write on, whatever becomes of the caller."""
        self._hub.start_task(self._run())

    def reader_came(self) -> None:
        """Somebody reads the response."""
        self._callers += 1

    def reader_left(self) -> None:
        """And does no longer."""
        self._callers -= 1

    async def _run(self) -> None:
        watch = LocalWatch(self._hub, self._writer.channel)
        try:
            await self._write_until_stopped(watch)
            await answer_stops(watch, lambda: self._targets, self._answer_stop)
        finally:
            watch.close()

    async def _write_until_stopped(self, watch: LocalWatch) -> None:
        work = asyncio.ensure_future(self._write())
        watching = [asyncio.ensure_future(self._stop_when_asked(watch, work))]
        if self._leave_s is not None:
            watching.append(asyncio.ensure_future(self._until_left(work, self._leave_s)))
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()
            for one in watching:
                one.cancel()
            await asyncio.wait([work, *watching])

    async def _write(self) -> None:
        """All of the source, into the message. However that ends, the message says so."""
        try:
            async with self._writer as message:
                stream = self._source() if callable(self._source) else self._source
                if inspect.isawaitable(stream):
                    stream = await stream
                await message.pipe(stream)
        except HoldfastError as error:
            logger.warning("the answer %s ended early: %s", self._writer.id, error)
        except Exception:
            logger.exception("the answer %s failed", self._writer.id)

    async def _stop_when_asked(self, watch: LocalWatch, work: asyncio.Future[None]) -> None:
        await until_stopped(watch, lambda: self._targets)
        work.cancel()

    async def _answer_stop(self, command_id: str) -> None:
        await self._hub.reply(self._writer.channel, command_id, by=None)

    async def _until_left(self, work: asyncio.Future[None], leave_s: float) -> None:
        """Stop when nobody has watched for `leave_s` seconds."""
        alone_s = 0.0
        step_s = min(LOOK_S, leave_s) or LOOK_S
        while alone_s == 0.0 or alone_s < leave_s:  # with 0 it is looked too
            await asyncio.sleep(step_s)
            is_watched = self._callers > 0 or self._hub.channel(self._writer.channel).feeds
            alone_s = 0.0 if is_watched else alone_s + step_s
        logger.info("nobody watches the answer %s any more; it is cancelled", self._writer.id)
        work.cancel()


class StreamResponse(Response):
    """The answer as a response. Leaving it ends nothing but the response."""

    media_type = "text/event-stream"

    def __init__(
        self,
        begin: Callable[[], Any],
        hub: HubCore,
        channel: str,
        message_id: str,
        *,
        style: Style,
        path: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        super().__init__(status_code=200)
        self._begin = begin  # awaited when the response is sent: errors before it are the app's to see
        self._hub = hub
        self._channel = channel
        self._message_id = message_id
        self._style = style
        self._has_ids = False
        place = f"{path}/v1/channels/{quote(channel, safe='')}/messages/{quote(message_id, safe='')}/events"
        known = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            "Holdfast-Channel": channel,
            "Holdfast-Message": message_id,
            "Location": place,
            **(headers or {}),
        }
        del self.headers["content-length"]
        for name, value in known.items():
            self.headers[name] = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering: Answering | None = await self._begin()  # None: it is on its way already, this is one more who looks
        message, cursor = await self._hub.read(self._channel, self._message_id)
        asked = Headers(scope=scope)
        # An EventSource comes back by itself to where it was; for others the stream has nothing but its data, as ever.
        self._has_ids = "text/event-stream" in asked.get("accept", "")
        told = _told(asked.get("last-event-id", ""), cursor)
        if told.is_done and message.status != "streaming":
            await Response(status_code=204)(scope, receive, send)  # which stops an EventSource
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if answering is not None:
            answering.reader_came()
        gone = asyncio.ensure_future(_until_gone(receive))
        sending = asyncio.ensure_future(self._send(send, message, cursor, Progress(self._message_id, told.lengths)))
        try:
            await asyncio.wait([gone, sending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if answering is not None:
                answering.reader_left()
            for one in (gone, sending):
                one.cancel()
            await asyncio.wait([gone, sending])
        if not sending.cancelled() and sending.exception() is not None:
            raise sending.exception()  # type: ignore[misc]

    async def _send(self, send: Send, message: Message, cursor: str, progress: Progress) -> None:
        if await self._tell(send, progress.message(message), progress, cursor):
            return
        subscription = self._hub.subscribe(self._channel, since=cursor, history=0)
        async for batch in _with_heartbeats(subscription.batches()):
            if batch is None:
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
            elif batch.cursor is not None and await self._tell(
                send, progress.events(batch.events), progress, batch.cursor
            ):
                return

    async def _tell(self, send: Send, told: list[tuple[str, str]], progress: Progress, cursor: str) -> bool:
        """Send what is new; True when that was all."""
        if progress.is_broken:
            raise StoreUnavailable("the stream cannot be continued; the message can")
        body = self._framed(told, progress, cursor)
        is_over = progress.status is not None
        if body or is_over:
            await send({"type": "http.response.body", "body": body, "more_body": not is_over})
        return is_over

    def _framed(self, told: list[tuple[str, str]], progress: Progress, cursor: str) -> bytes:
        if self._style == "events":
            return framed(told, progress.status, progress.cursor(cursor))
        events: list[str] = []
        text = "".join(text for kind, text in told if kind == "answer")
        status, progress.status = progress.status, None  # the line may break between the text and its end
        if text:
            events.append(_data(text) + self._id(progress, cursor))
        progress.status = status
        if status not in ("complete", None):
            events.append(f"event: {status}\ndata: \n")  # for who listens for it; others see an empty piece
        if status is not None:
            events.append("data: [DONE]\n" + self._id(progress, cursor))
        return "".join(f"{event}\n" for event in events).encode()

    def _id(self, progress: Progress, cursor: str) -> str:
        return f"id: {progress.cursor(cursor)}\n" if self._has_ids else ""


def _told(last_event_id: str, cursor: str) -> Told:
    """What a caller who comes back was told before, where the log still is the one it was told of."""
    since, known = parse_cursor(last_event_id), parse_cursor(cursor)
    is_of_it = since is not None and known is not None and since.epoch == known.epoch and since.serial <= known.serial
    return told_by(since) if is_of_it else Told()


def _data(text: str) -> str:
    """`text` as the data of one event: each of its lines is one, by the rules of SSE."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _with_heartbeats(batches: AsyncIterator[Batch]) -> AsyncIterator[Batch | None]:
    """`batches`, and None whenever there was none for a while."""
    pending: asyncio.Future[Batch] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(batches))
            done, _ = await asyncio.wait([pending], timeout=HEARTBEAT_S)
            if not done:
                yield None
                continue
            batch, pending = pending.result(), None
            yield batch
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])


async def _next(batches: AsyncIterator[Batch]) -> Batch:
    return await anext(batches)


def check_style(style: str) -> Style:
    """Return `style`; raises LocalError."""
    if style == "events":
        return "events"
    if style == "data":
        return "data"
    raise LocalError("style is events or data")
