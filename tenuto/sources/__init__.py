"""Sources: `await pipe(message, stream)` writes a model's stream, of any known SDK, into a message.

Layer: sources.

`pipe` recognises the kind of a stream by the module of its class, else by the shape of its first event. Each module
below understands one kind and translates its events into five edits (`reading`), and `writing` writes them. No SDK is
ever imported here: a stream of an SDK proves that the SDK is installed. Public are `pipe`, `Piped`, `ToolCall`, the two
errors and the names of the sources; `docs/sources.md` lists the result of each event.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import TypeVar, cast

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.core.outgoing import text_of
from tenuto.portal import Attempt, OnBreak, Piped, Piping, ToolCall, Writer
from tenuto.sources.ai_sdk import STARTS, AISDKSource, chunk_of
from tenuto.sources.anthropic import Anthropic
from tenuto.sources.attaching import attaching, count_call
from tenuto.sources.google_genai import GoogleGenAI, GoogleInteractions
from tenuto.sources.langchain import AI, LangChain, LangGraph
from tenuto.sources.openai import KEEPALIVE, OpenAIAgents, OpenAIChat, OpenAIResponses
from tenuto.sources.pydantic_ai import PydanticAI
from tenuto.sources.reading import (
    LINE_CHARACTERS,
    Source,
    UpstreamEnded,
    UpstreamError,
    get,
    is_from_sdk,
    malformed,
    translated,
    unfinished,
    word,
)
from tenuto.sources.text import PlainText, SSEText, begins_frames, is_frame_object
from tenuto.sources.tries import STALL_S, SoFar, Tries, is_maker
from tenuto.sources.upstream import Upstream
from tenuto.sources.writing import Writing, calling, not_kept, reading, record_of
from tenuto.watchdog import Watchdog

T = TypeVar("T")

LONGEST_TIMER_S = 3600.0  # no event loop sleeps for ever

_KINDS: tuple[type[Source], ...] = (
    *(PlainText, OpenAIResponses, OpenAIChat, Anthropic, GoogleGenAI, GoogleInteractions),
    *(OpenAIAgents, PydanticAI, LangChain, LangGraph, AISDKSource),
    SSEText,
)
SOURCES: dict[str, type[Source]] = {kind.name: kind for kind in _KINDS}

# Sources by the package that defines the class of a stream, or the function of a generator. The first match counts.
_BY_MODULE: tuple[tuple[str, type[Source]], ...] = (
    ("openai.lib.streaming.responses", OpenAIResponses),
    ("openai.lib.streaming.chat", OpenAIChat),
    ("anthropic", Anthropic),
    ("google.genai._gaos", GoogleInteractions),
    ("google.genai", GoogleGenAI),
    ("agents", OpenAIAgents),
    ("pydantic_ai", PydanticAI),
    ("langgraph", LangGraph),
    ("langchain_core", LangChain),
)
_ANTHROPIC = ("message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "ping")
_BY_TYPE: dict[str, type[Source]] = {
    **dict.fromkeys(("raw_response_event", "run_item_stream_event", "agent_updated_stream_event"), OpenAIAgents),
    **dict.fromkeys(AI, LangChain),
    **dict.fromkeys(_ANTHROPIC, Anthropic),
}

__all__ = ["SOURCES", "OnBreak", "Piped", "Piping", "SoFar", "ToolCall", "UpstreamEnded", "UpstreamError", "pipe"]


async def pipe(
    writer: Writer,
    stream: object,
    *,
    source: str | None = None,
    text_field: str | None = None,
    retries: int | None = None,
    retry_s: float | None = None,
    stall_s: float | None = None,
    on_break: OnBreak = "restart",
    attach: object = None,
    option: str = "source",
) -> Piped:
    """Write all of `stream` into the message of `writer`; returns a summary of the written content.

    `stream` is the result of an SDK's streamed call, awaited or not, entered or not, async or blocking; or an iterator
    of text. `source` names its kind if its shape does not (`SOURCES`); `text_field` names the field with the text in
    the JSON objects of server-sent events (`a.0.b` is a field of an item of a field). Error messages call the argument
    `source` by the name of the caller's own, `option`. The message is not finished. Raises UpstreamEnded if the stream
    ended before the provider's own end, UpstreamError if the provider reported an error or sent malformed data,
    LocalError if `stream` is not a stream, and the writer's errors. In each case the stream is closed before this
    returns; the app's own exceptions (of its tools, its generators) pass unchanged.

    `stream` may also be a function that makes one, async or not. It may have a parameter for what the message holds so
    far (`SoFar`). Then a failure that may pass (a broken or refused connection, a time-out, 429, 5xx, an overload, a
    stream that ends early) is followed by another try, at most `retries` (3): after `retry_s` (1) seconds, twice as
    long each time, or as long as the provider asks for, up to two minutes. The text of a failed try is superseded, or
    with `on_break="continue"` continued; `"fail"` tries again only before the first content. A stream without an event
    for `stall_s` (120), also a plain one, has broken, unless the turn waits or runs a step.

    With `attach` a background response is read on after a break or a crash, without another try (`docs/retries.md`).
    """
    named = named_source(source, text_field, option=option)
    if stall_s is not None and not (isinstance(stall_s, int | float) and stall_s > 0):
        raise LocalError(f"stall_s must be a number of seconds above 0, got {shown(stall_s)}")
    silent_s = STALL_S if stall_s is None else stall_s
    with calling(writer):
        if (known := await _restored(writer, stream)) is not None:
            if attach is not None:
                count_call(writer)  # a later call keeps its number
            return known
        if is_maker(stream):
            make = cast("Callable[..., object]", stream)

            async def write(made: Callable[[], object], writing: Writing) -> Piped:
                # a stream that goes on needs the state of its translator; any other one begins with a new one
                translator = writing.source or named_source(source, text_field, option=option)
                return await _pipe_one(writing, made(), translator, silent_s, option)

            tries = Tries(writer, make, write, retries=retries, retry_s=retry_s, on_break=on_break)
            with attaching(writer, tries, attach) if attach is not None else nullcontext():
                return await tries.run()
        if retries or retry_s is not None or on_break != "restart" or attach is not None:
            raise LocalError(
                "retries, retry_s, on_break and attach need a function that makes the stream; pass a lambda around the "
                "call"
            )
        if writer.is_answer:
            async with Attempt(writer) as attempt:  # a stream cannot continue what an earlier attempt has left
                if attempt.outgoing.reopen_left(attempt.owner):
                    attempt.supersede()
        writing = Writing(writer, Attempt(writer))
        with reading(writer, writing):
            return await _pipe_one(writing, stream, named, silent_s, option)


async def _restored(writer: Writer, stream: object) -> Piped | None:
    """Return the summary of this stream if an earlier attempt has written all of it; the stream is closed then.

    None if its parts are not left to be continued. Raises `not_kept` if the message is complete without it.
    """
    record, parts = record_of(writer), None
    # a stream without content is asked for again
    if not writer.had_ended and (record is None or not record.lengths):
        return None
    if record is not None:
        async with Attempt(writer) as attempt:
            parts = attempt.outgoing.restore(record.lengths, record.content, attempt.owner)
    if parts is not None or writer.had_ended:
        await Upstream(stream).close(None, None)
    if record is None or parts is None:
        if writer.had_ended:
            raise not_kept(writer)
        return None
    calls = [
        ToolCall(parts[at]["call"], parts[at]["name"], text_of(parts[at]), at) for at in parts if at in record.waiting
    ]
    text = "".join(part["text"] for part in parts.values() if part["type"] == "text")
    return Piped(text, record.finish_reason, record.usage, calls, record.model)


async def _pipe_one(writing: Writing, stream: object, chosen: Source | None, stall_s: float, option: str) -> Piped:
    """Write one stream, as `pipe` does. `chosen`: its source if that is known; else the stream shows it."""
    upstream, silence = Upstream(stream), _Silence(stall_s, writing.rested_s)
    chosen = chosen or by_stream(stream)
    try:
        await silence.ended_by(upstream.open())
        chosen = chosen or by_stream(upstream.stream)
        events = upstream.events(chosen.events(upstream.stream) if chosen is not None else upstream.stream)
        is_alive = True
        while True:
            try:
                event = await silence.ended_by(anext(events), after_keepalive=not is_alive)
            except StopAsyncIteration:
                break
            if event is None and not (chosen is not None and chosen.is_of_sdk):
                continue  # an app yields a delta without text
            chosen = chosen or by_first_event(event, option)
            if chosen is not None:
                await _write(writing, chosen, event)
            is_alive = chosen is not None and chosen.is_alive
        if chosen is not None:
            for edit in chosen.end():
                await writing.write(edit)
        elif not writing.may_be_empty or writing.note_response is not None or is_from_sdk(upstream.stream):
            raise unfinished()  # not even a first event came; only the stream of an app may be empty
        await writing.complete()
        await upstream.finish()
    except BaseException as error:
        await upstream.close(error, chosen.stop if chosen is not None else None)
        with suppress(TenutoError):  # a message that has ended stays as it is
            await writing.write_meta()
        if (ours := translated(error, is_of_sdk=chosen is not None and chosen.is_of_sdk)) is not None:
            raise ours from error
        raise
    finally:
        silence.close()
    await writing.write_meta(has_ended=True)
    return writing.piped()


LEAST_S = 1.0  # time that an event has at least


class _Silence(Watchdog):
    """The time in which a stream must bring its next event. It stands still while the turn waits, or runs a step."""

    def __init__(self, stall_s: float, rested_s: Callable[[], float]) -> None:
        super().__init__(stall_s)
        self._stall_s, self._rested_s = stall_s, rested_s
        self._now_s = asyncio.get_running_loop().time
        self._since_s = self._until_s = self._now_s()

    async def ended_by(self, call: Awaitable[T], *, after_keepalive: bool = False) -> T:
        """Return the result of `call`. Raises UpstreamEnded if it takes too long, counted from before a keep-alive."""
        now_s = self._now_s()
        if not after_keepalive:
            self._since_s = now_s
        # a keep-alive may have waited longer for the store: the event behind it is perhaps there, and has a moment
        self._until_s = max(self._since_s + self._stall_s, now_s + LEAST_S)
        try:
            with self:
                return await call
        except TimeoutError:
            if not self.is_late:
                raise  # of the stream
            detail = f"the model sent nothing for {self._stall_s:g} s, so the answer may be incomplete"
            raise UpstreamEnded(detail) from None

    def due_s(self) -> float:
        until_s = max(self._rested_s() + self._stall_s, self._until_s)
        return min(until_s, self._now_s() + LONGEST_TIMER_S)


def named_source(source: str | None, text_field: str | None, *, option: str = "source") -> Source | None:
    """Return the source that the caller has named with `option`, or None. Raises LocalError for a wrong value."""
    if source is not None and (not isinstance(source, str) or source not in SOURCES):
        raise LocalError(f"{option} must be one of {', '.join(SOURCES)}, got {shown(source)}")
    if text_field is None and source != SSEText.name:
        return SOURCES[source]() if source is not None else None
    if source not in (None, SSEText.name):
        raise LocalError(f"text_field is for server-sent events; with {option}={source!r} leave it out")
    if text_field is not None and (not isinstance(text_field, str) or not text_field):
        raise LocalError(f'text_field must be the name of a field, such as "text", got {shown(text_field)}')
    return SSEText(text_field, option=option)


async def _write(writing: Writing, source: Source, event: object) -> None:
    place = _place(event) if writing.note_response is not None else None
    if place in writing.written_before:
        return  # the provider has begun before the place where the stream is to go on
    writing.source = source
    try:
        for edit in source.take(event):
            await writing.write(edit)
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as error:
        # Errors about unexpected provider data become errors of the upstream.
        raise malformed(f"an event of type {type(event).__name__} has an unexpected shape") from error
    if source.is_alive:  # a keep-alive is no event behind which a response goes on
        writing.move(place)


def _place(event: object) -> int | str | None:
    """Return the place of an event in its response: OpenAI's number, or Google's id."""
    number, id = get(event, "sequence_number"), word(event, "event_id", LINE_CHARACTERS)
    return number if isinstance(number, int) else id


def by_stream(stream: object) -> Source | None:
    """Return the source of `stream` if its class, or the function behind a generator, is of a known package."""
    for module in _modules(stream):
        for package, kind in _BY_MODULE:
            if module == package or module.startswith(f"{package}."):
                return kind()
    return None


def by_first_event(event: object, option: str = "source") -> Source | None:
    """Return the source whose events have the form of `event`; None: it is a keep-alive.

    Raises LocalError for another form. The errors of a source name `option`, the caller's option for it.
    """
    if get(event, "type") == KEEPALIVE:
        return None
    kind = _kind_of(event)
    if kind is SSEText:
        return SSEText(is_certain=not isinstance(event, str), option=option)  # a `str` may be plain text after all
    if kind is PlainText:
        return PlainText(unnamed=option)
    if kind is None:
        raise LocalError(
            f"stream of {type(event).__name__} items is not of a known source; name it: {option} is one of "
            f"{', '.join(SOURCES)}"
        )
    return kind()


def _modules(stream: object) -> Iterator[str]:
    """Yield the names of the modules that define the classes of `stream`, or the function of a generator."""
    if inspect.isasyncgen(stream):
        code, frame = stream.ag_code, stream.ag_frame
    elif inspect.isgenerator(stream):
        code, frame = stream.gi_code, stream.gi_frame
    else:
        yield from (kind.__module__ for kind in type(stream).__mro__)
        return
    # those of SDKs with `text` in their names (`text_stream`, `stream_text`) yield plain text instead of events
    if frame is not None and "text" not in code.co_name:
        yield str(frame.f_globals.get("__name__", ""))


def _kind_of(event: object) -> type[Source] | None:
    """Return the kind of source whose events look like `event`. The order counts: many SDKs' events have a `type`."""
    if isinstance(event, str | bytes | bytearray | memoryview):
        return _kind_of_line(event)
    if isinstance(event, tuple):
        return LangGraph
    if is_frame_object(event):
        return SSEText
    if get(event, "event_kind") is not None or get(event, "kind") == "response":
        return PydanticAI
    name = get(event, "type")
    if isinstance(event, Mapping) and isinstance(event.get("event"), str) and "run_id" in event:
        return LangChain
    if get(event, "choices") is not None or name == "chunk":  # the latter from the helper `stream()` of openai
        return OpenAIChat
    if isinstance(get(event, "event_type"), str):
        return GoogleInteractions
    if not isinstance(name, str):
        return GoogleGenAI if hasattr(event, "candidates") and hasattr(event, "usage_metadata") else None
    if name.startswith("response."):
        return OpenAIResponses
    if name in _BY_TYPE:
        return _BY_TYPE[name]
    return AISDKSource if isinstance(event, Mapping) and (name in STARTS or name.startswith("data-")) else None


def _kind_of_line(event: str | bytes | bytearray | memoryview) -> type[Source] | None:
    """Return the kind of a stream of lines by its first event; else PlainText for text, and None for bytes."""
    line = (event if isinstance(event, str) else bytes(event).decode("utf-8", "replace")).lstrip("\r\n")
    chunk: object = None
    with suppress(TenutoError):
        chunk = chunk_of(line.partition("\n")[0])
    if isinstance(chunk, Mapping) and chunk.get("type") in STARTS:
        return AISDKSource
    if begins_frames(line):
        return SSEText
    return PlainText if isinstance(event, str) else None
