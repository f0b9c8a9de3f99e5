"""Sources: `await pipe(message, stream)` writes a model's stream, of any known SDK, into a message.

Layer: sources.

`recognise` finds the kind of a stream by its shape. Each module below understands one kind and translates its events
into five edits (`vocabulary`), and `writing` writes them. No SDK is ever imported here.
Public are `pipe`, `Piped`, `ToolCall`, the two errors and the names of the sources; `docs/sources.md`
lists the result of each event.
"""

from __future__ import annotations

from typing import Protocol

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.sources.reading import Source, UpstreamEnded, UpstreamError, malformed
from tenuto.sources.recognise import SOURCES, by_first_event, by_stream
from tenuto.sources.text import PlainText, SSEText
from tenuto.sources.upstream import Upstream
from tenuto.sources.writing import Piped, Piping, ToolCall, Writer, Writing

__all__ = ["SOURCES", "Piped", "Piping", "ToolCall", "UpstreamEnded", "UpstreamError", "pipe"]


async def pipe(
    writer: Writer,
    stream: object,
    *,
    source: str | None = None,
    text_field: str | None = None,
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
    """
    writing = Writing(writer)
    upstream = Upstream(stream)
    chosen = named_source(source, text_field, option=option) or by_stream(stream)
    try:
        await upstream.open()
        chosen = chosen or by_stream(upstream.stream)
        events = upstream.events(chosen.events(upstream.stream) if chosen is not None else upstream.stream)
        async for event in events:
            if chosen is None:
                chosen = by_first_event(event, option)
            await _write(writing, chosen, event)
        if chosen is not None:
            for edit in chosen.end():
                await writing.write(edit)
        await upstream.finish()
    except BaseException as error:
        await upstream.close(error, chosen.stop if chosen is not None else None)
        await writing.write_meta_after_error()
        ours = (chosen or PlainText()).translate(error)
        if ours is not None:
            raise ours from error
        raise
    await writing.write_meta()
    return writing.piped()


class KeepingWriter(Writer, Protocol):
    """A writer that reports the calls that were not awaited."""

    def keep(self, call: str, coroutine: Piping) -> Piping:
        """Return `coroutine`, whose `call` is reported if it was not awaited."""


def begin_pipe(writer: KeepingWriter, stream: object, *, source: str | None, text_field: str | None) -> Piping:
    """Return the coroutine of `pipe`, which `writer` keeps until it is awaited."""
    return writer.keep("pipe(stream)", pipe(writer, stream, source=source, text_field=text_field))


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
    try:
        for edit in source.take(event):
            await writing.write(edit)
    except TenutoError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as error:
        # Errors about unexpected provider data become errors of the upstream.
        raise malformed(f"an event of type {type(event).__name__} has an unexpected shape") from error
