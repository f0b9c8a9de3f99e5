"""One line for an SSE endpoint: `return hub.stream_response(channel, generator)`.

Layer: response, below `app`.

A task of the hub writes the answer to a message and outlives the request. The response streams that message to the
caller (`transports.streams`), as any other reader may follow it. The form of the response is public.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import Receive, Scope, Send

from tenuto.agents.local import LocalWatch
from tenuto.agents.running import reply_to_stops, stops
from tenuto.core.deltas import Delta, InAnswer, TurnChanged
from tenuto.core.errors import Forbidden, LocalError, TenutoError, TooMany, shown
from tenuto.core.events import Cursor, parse_cursor
from tenuto.core.model import Message
from tenuto.hub.access.visitors import cookie_headers
from tenuto.hub.hub import HubCore
from tenuto.hub.writer import MessageWriter
from tenuto.sources import named_source, pipe
from tenuto.transports.access import Credentials, check_serving
from tenuto.transports.codec import GUARDS
from tenuto.transports.http import problem_response
from tenuto.transports.sender import TaskSender, break_off
from tenuto.transports.sse import StreamApp, reconnect_delay
from tenuto.transports.streams import (
    EndFrame,
    Framer,
    MessageStream,
    NamedEvents,
    OwnFrames,
    PlainData,
    Position,
    TurnFormat,
    resume_point,
    sent_by,
)
from tenuto.watchdog import timed

logger = logging.getLogger("tenuto.agents")

Style = Literal["events", "data", "ai-sdk"] | Callable[[str], str | bytes]
AI_SDK = "ai-sdk"  # the style in the format of another client
# A block of its own: a page that looks at the first line of a block only would miss the text behind a comment.
_HEARTBEAT = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
VIEWERS_POLL_S = 1.0  # interval of the check whether an answer that ends without viewers has any
BEGINNING_S = 10.0  # longest time between a question and the beginning of its answer, for a page that looks for it
PAGE = 10  # messages of one read that looks for the newest answer


@dataclass(eq=False)
class Answering:
    """An answer in progress: the task that writes it, and the commands that stop it."""

    _hub: HubCore
    _writer: MessageWriter
    _source: object  # as `source_kind` and `text_field`, that of `Hub.stream_response`
    _source_kind: str | None
    _text_field: str | None
    _prompt_id: str | None  # the message that it answers
    _cancel_after_s: float | None  # time without a viewer after which it is cancelled; None: it never is
    _readers: int = 0  # number of readers of the response that has begun it

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count one more reader of the response."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def start(self) -> None:
        """Write the answer in a task of the hub, which does not depend on the caller."""
        self._hub.start_task(self._run())

    async def _run(self) -> None:
        with closing(LocalWatch(self._hub, self._writer.channel)) as watch:
            await self._write_until_stopped(watch)
            await reply_to_stops(watch, self._targets, partial(self._hub.reply, self._writer.channel, by=None))

    async def _write_until_stopped(self, watch: LocalWatch) -> None:
        """Write the answer until it ends, a client stops it, or it has no viewer for too long."""
        writing = asyncio.ensure_future(self._write())
        watch.follow(partial(self._stop_if_asked, watch, writing))
        tasks = [writing]
        if self._cancel_after_s is not None:
            tasks.append(asyncio.ensure_future(self._cancel_without_viewers(writing, self._cancel_after_s)))
        try:
            await asyncio.wait([writing])
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks)

    async def _write(self) -> None:
        """Write the whole source into the message. The message records how the source ended."""
        try:
            async with self._writer as message:
                name = getattr(self._source, "__name__", type(self._source).__name__)
                await timed(f'source "{name}" of stream_response', self._pipe(message), logger)
        except TenutoError as error:
            logger.warning("the answer %s ended early: %s", self._writer.id, error)
        except Exception:
            logger.exception("the answer %s failed", self._writer.id)

    async def _pipe(self, message: MessageWriter) -> None:
        stream = self._source() if callable(self._source) else self._source
        if inspect.isawaitable(stream):
            stream = await stream
        kind, field = self._source_kind, self._text_field
        # an endpoint's own stream may be silent for long: it has no setting for that
        await pipe(message, stream, source=kind, text_field=field, stall_s=math.inf, option="source_kind")

    def _stop_if_asked(self, watch: LocalWatch, writing: asyncio.Task[None]) -> None:
        if not writing.cancelling() and stops(watch, self._targets):
            writing.cancel()

    def _targets(self) -> set[str]:
        return {self._writer.id} if self._prompt_id is None else {self._writer.id, self._prompt_id}

    async def _cancel_without_viewers(self, writing: asyncio.Future[None], cancel_after_s: float) -> None:
        """Cancel the answer when it has had no viewer for `cancel_after_s` seconds."""
        alone_s = 0.0
        step_s = min(VIEWERS_POLL_S, cancel_after_s) or VIEWERS_POLL_S
        while alone_s == 0.0 or alone_s < cancel_after_s:  # check at least once, also if `cancel_after_s` is 0
            await asyncio.sleep(step_s)
            is_watched = self._readers > 0 or self._hub.channel(self._writer.channel).feeds
            alone_s = 0.0 if is_watched else alone_s + step_s
        logger.info("the answer %s has no viewer any more; it is cancelled", self._writer.id)
        writing.cancel()


class Opened(NamedTuple):
    """The answer that a response streams; with `answering` if this response has begun it."""

    message_id: str
    answering: Answering | None


class StreamResponse(Response):
    """The answer as a response. If the caller disconnects, only this response ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        open_answer: Callable[[Cursor | None, Scope], Awaitable[Opened | None]],
        app: StreamApp,
        channel: str,
        message_id: str | None,
        *,
        is_repeatable: bool,
        style: Style,
        end_frame: EndFrame | None,
        path: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Stream the answer that `open_answer` begins or finds; `message_id` is the id of one that it begins."""
        super().__init__(status_code=200)
        self._is_repeatable = is_repeatable  # True: a repeat of the same request joins the same answer
        self._end_frame = end_frame
        self._open = open_answer  # awaited only when the response is sent, so that its errors reach the app
        self._app = app
        self._channel = channel
        self._style = style
        self._path = path  # under which the hub is mounted: `Location` begins with it
        self._turn_format: TurnFormat | None = None  # of this one response, if the style names one
        # an id before the first text: an EventSource that reconnects then asks for this answer, not for another
        self._first = b""
        self._own_headers = {name.lower() for name in headers or ()}  # those that the app has set, which stay
        del self.headers["content-length"]
        known = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            **{name.decode(): value.decode() for name, value in GUARDS},
            "X-Accel-Buffering": "no",
            "Tenuto-Channel": channel,
            **(headers or {}),
        }
        self.headers.update(known)
        if message_id is not None:
            self._name(message_id)

    def render(self, *content: Any) -> bytes | memoryview:
        """Return the body before the stream. Raises LocalError in Django, which calls this without an argument."""
        if not content:
            raise LocalError("Django cannot send this response: return it from a route of Starlette (docs/django.md)")
        return super().render(*content)

    def _name(self, message_id: str) -> None:
        """Let the headers name the answer, for a reloaded page, except for those that the app has set."""
        message = f"channels/{quote(self._channel, safe='')}/messages/{quote(message_id, safe='')}"
        known = {"Tenuto-Message": message_id, "Location": f"{self._path}/v1/{message}/events"}
        if self._style == AI_SDK:
            turn_format: TurnFormat = import_module("tenuto.interop.ai_sdk").UIStream(message_id)  # in a layer above
            self._turn_format = turn_format
            known |= turn_format.headers
        for name, value in known.items():
            if name.lower() not in self._own_headers:
                self.headers[name] = value

    def _unname(self) -> None:
        for name in {"tenuto-message", "location"} - self._own_headers:
            del self.headers[name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._respond(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        hub = self._app.hub
        requested = Headers(scope=scope)
        # the path of a proxy, which the server knows as its root path; below a mount, Starlette keeps it apart
        root = scope.get("app_root_path", scope.get("root_path", ""))
        routes = getattr(scope.get("router"), "routes", ())  # of the outermost app of Starlette
        mounted_at = _path_of(hub, routes, scope.get("path", "").removeprefix(root))
        self._path = root.rstrip("/") + (mounted_at or self._path)
        # a format of another client begins with the first character, because its chunks have no ids
        since = parse_cursor(requested.get("last-event-id", "")) if self._style != AI_SDK else None
        cookie = cookie_headers(scope)
        self.raw_headers += [one for one in cookie if one not in self.raw_headers]
        if scope.get("method") == "HEAD":  # also of a link checker or a preview: it begins and finds no answer
            self._unname()
            await self._send(send, is_whole=True)
            return
        if not self._is_repeatable and sent_by(since).is_finished:
            await self._send_nothing(send)  # the EventSource would repeat the request otherwise
            return
        with ExitStack() as closing:
            try:
                await check_serving(hub)  # before an answer begins
                stream = await self._attach(scope, requested, since, send, closing)
            except TenutoError as error:
                may_reconnect = scope.get("method") == "GET" and self._is_for_event_source(requested)
                if may_reconnect and error.retry and error.status == 503:
                    # another status would stop an EventSource for good; no reader may take this for a whole answer
                    self._unname()
                    await self._send(send, reconnect_delay(error) + self._first)
                    break_off(receive)
                elif isinstance(error, TooMany | Forbidden):  # of a visitor
                    response = problem_response(error)
                    response.raw_headers += cookie
                    await response(scope, receive, send)
                else:
                    raise  # to the app
                return
            if stream is None:
                await self._send_nothing(send)
                return
            await self._send(send, self._first)
            await stream.run(receive)

    async def _attach(
        self, scope: Scope, requested: Headers, since: Cursor | None, send: Send, closing: ExitStack
    ) -> MessageStream | None:
        """Begin or find the answer, and attach to it; None if a reader has all of it. `closing` undoes this."""
        hub = self._app.hub
        opened = await self._open(since, scope)
        if opened is None:
            return None
        message_id, answering = opened
        if answering is not None:
            closing.enter_context(answering.reading())
        self._name(message_id)
        message, cursor = await hub.read(self._channel, message_id)
        # no reader has received any text of a new answer
        sent = resume_point(since if answering is None else None, message, cursor)
        if sent.is_finished and message.status != "streaming":
            return None
        name = "" if self._is_repeatable else hub.tickets.name(self._channel, message_id)
        if name and self._style != AI_SDK and since is None and self._is_for_event_source(requested):
            self._first = f"id: {Position(cursor, name, message.created, sent).id(is_finished=False)}\n\n".encode()
        stream = MessageStream(
            self._app,
            send,
            Credentials(hub, dict(scope), None),  # the app has authenticated the caller
            message,
            sent,
            self._framer(requested, message_id),
            is_own_client=True,  # without a farewell: the bytes are those of the answer only
            # not a `DirectSender`, which sends outside of a task: middleware of the app may need a current task
            sender_class=TaskSender,
            name=name,
        )
        # a page's own parser may know no comments: it gets what the app's endpoint sent
        knows_comments = self._style in ("events", AI_SDK) or self._is_for_event_source(requested)
        stream.heartbeat = _HEARTBEAT if knows_comments else None
        closing.callback(stream.close)
        await stream.attach(self._channel, message, cursor)
        return stream

    async def _send_nothing(self, send: Send) -> None:
        """Send status 204, which stops an EventSource; with the headers that the app has set, such as cookies."""
        del self.headers["content-type"]
        self.status_code = 204
        await self._send(send, is_whole=True)

    async def _send(self, send: Send, body: bytes = b"", *, is_whole: bool = False) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": not is_whole})

    def _is_for_event_source(self, requested: Headers) -> bool:
        """Return whether an EventSource reads this response: it resumes from ids, and ignores comments."""
        is_events = self.headers["content-type"].startswith("text/event-stream")
        return is_events and "text/event-stream" in requested.get("accept", "")

    def _framer(self, requested: Headers, message_id: str) -> Framer:
        if self._turn_format is not None:
            return TurnFrames(self._turn_format, message_id)
        if self._style == "events":
            return NamedEvents()
        has_ids = self._is_for_event_source(requested)  # other readers get only the data
        if self._style == "data":
            return PlainData(has_ids=has_ids)
        assert callable(self._style)
        return OwnFrames(self._style, self._end_frame, has_ids=has_ids)


async def find_newest(hub: HubCore, channel: str, since: Cursor | None) -> str | None:
    """Return the id of the newest answer of `channel`, which is that to its newest question.

    Wait for it while the question is new, because another node may be about to begin it. None if there is no answer, or
    if a reader with the cursor `since` was reading an older one. Raises Draining, StoreUnavailable.
    """
    await hub.runtime.fresh(channel)
    with suppress(TimeoutError), closing(LocalWatch(hub, channel)) as watch:
        async with hub.viewing.reading(), asyncio.timeout(BEGINNING_S):
            while True:
                answer, question, cursor = await _newest(hub, channel)
                if answer is not None:
                    is_read = since is None or (since.epoch == cursor.epoch and since.serial >= answer.created)
                    return answer.id if is_read else None  # None: the reader was reading an older one
                if question is None or hub.clock.now_ms() - question.created_at >= BEGINNING_S * 1000:
                    return None
                await watch.changed()
    return None


async def _newest(hub: HubCore, channel: str) -> tuple[Message | None, Message | None, Cursor]:
    """Return the answer to the newest question, or else the newest, that question, and the cursor of the first page."""
    answers: list[Message] = []
    before: int | None = None
    first: Cursor | None = None
    while True:
        page = await hub.history(channel, before=before, limit=PAGE)
        first = first or parse_cursor(page.cursor)
        assert first is not None
        for message in page.messages:
            if message.role == "assistant":
                answers.append(message)
            elif message.role == "user":
                ours = (one for one in answers if one.reply_to in (message.id, None))  # None: it answers by its place
                return next(ours, None), message, first
        if not page.more:
            return next(iter(answers), None), None, first
        before = page.messages[-1].created


def _path_of(app: object, routes: Iterable[BaseRoute], path: str) -> str | None:
    """Return the path at which `app` is mounted, directly or in an app on the way to `path`; None if it is not."""
    for route in routes:
        if isinstance(route, Mount) and route.app is app:
            return route.path
        if isinstance(route, Mount) and path.startswith(f"{route.path}/"):
            inner = _path_of(app, route.routes or (), path.removeprefix(route.path))
            if inner is not None:
                return route.path + inner
    return None


class TurnFrames:
    """One answer through the format of a turn."""

    def __init__(self, turn_format: TurnFormat, message_id: str) -> None:
        self._format = turn_format
        self._message_id = message_id

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        over = [TurnChanged("over")] if status is not None else []
        return self._format.frame([*(InAnswer(self._message_id, delta) for delta in deltas), *over])


def check_source(source: object, source_kind: str | None, text_field: str | None) -> None:
    """Raise LocalError unless `source` may be a stream, or a function that returns one, and its options fit."""
    named_source(source_kind, text_field, option="source_kind")
    what = _response_of(source)  # a response is an ASGI app, so it is callable too
    attributes = ("__call__", "__aiter__", "__iter__", "__await__", "__aenter__", "__enter__")
    if what or not any(hasattr(source, name) for name in attributes):
        remedy = "the generator that the response wraps" if what else "an async generator or its function"
        raise LocalError(
            f"source must be a stream, or a function that returns one, got {what or shown(source)}; pass {remedy}, as "
            "in stream_response(channel, events)"
        )


def _response_of(source: object) -> str | None:
    """Return the words for `source` if it is a response, or a function whose annotation says that it returns one."""
    if isinstance(source, Response):
        return f"a {type(source).__name__}"
    if isinstance(source, type):
        return f"the class {source.__name__}" if issubclass(source, Response) else None
    returned = getattr(source, "__annotations__", {}).get("return")
    if isinstance(returned, str):  # in modules that delay annotations
        returned = getattr(source, "__globals__", {}).get(returned)
    if not (isinstance(returned, type) and issubclass(returned, Response)):
        return None
    return f"the function {shown(getattr(source, '__name__', 'source'))} that returns a {returned.__name__}"


def check_style(style: object, end_frame: object) -> None:
    """Raise LocalError unless `style` is a known style or a function, and `end_frame` fits it."""
    if not callable(style) and style not in ("events", "data", AI_SDK):
        raise LocalError(f"style must be 'events', 'data', 'ai-sdk', or a function of a text, got {shown(style)}")
    _check_frame_function(style, "style", "text")
    if end_frame is not None and not callable(style):
        raise LocalError(f"end_frame belongs to a style that is a function; style {style!r} has its own end")
    if end_frame is not None and not callable(end_frame) and not isinstance(end_frame, str | bytes):
        raise LocalError(f"end_frame must be a str, bytes, or a function of the status, got {shown(end_frame)}")
    _check_frame_function(end_frame, "end_frame", "status")


def _check_frame_function(function: object, option: str, argument: str) -> None:
    """Raise LocalError for a function that cannot be called with `argument` alone, or that returns no frame."""
    if not callable(function):
        return
    remedy = f"write `def frame({argument})`, which returns a str or bytes"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise LocalError(f"{option} must be an ordinary function of the {argument}, got an async one; {remedy}")
    if inspect.isgeneratorfunction(function):
        raise LocalError(f"{option} must be an ordinary function of the {argument}, got a generator; {remedy}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C have no signature
        return
    try:
        signature.bind("")
    except TypeError as error:
        got = f"{shown(function)} with the parameters {signature} ({error})"
        raise LocalError(f"{option} must be a function of the {argument} alone, got {got}; {remedy}") from None
