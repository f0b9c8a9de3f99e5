"""Sources: `await pipe(message, stream)` writes a model's stream into a message, whatever SDK it is of.

Layer: agents.sources.

A stream is recognised by its shape (`recognise`), each module below understands one kind
of it and says what it means in five words (`vocabulary`), and `writing` writes them. No SDK is ever imported here.
What others rely on is `pipe`, `Piped`, `ToolCall`, the two errors and the names of the sources; `docs/sources.md`
says which events become what.
"""

from __future__ import annotations

from holdfast.agents.backend import Writer
from holdfast.agents.sources.errors import UpstreamEnded, UpstreamError, malformed
from holdfast.agents.sources.recognise import SOURCES, by_first_event, by_stream
from holdfast.agents.sources.text import PlainText
from holdfast.agents.sources.upstream import Upstream
from holdfast.agents.sources.vocabulary import Source
from holdfast.agents.sources.writing import Piped, ToolCall, Writing
from holdfast.core.errors import HoldfastError, LocalError

__all__ = ["SOURCES", "Piped", "ToolCall", "UpstreamEnded", "UpstreamError", "pipe"]


async def pipe(writer: Writer, stream: object, *, source: str | None = None) -> Piped:
    """Write all of `stream` into the message of `writer`; returns what it came to.

    `stream` is what an SDK gives for a streamed call, awaited or not, entered or not, async or blocking; or an
    iterator of text. `source` names its kind where its shape does not (`SOURCES`). The message is not finished.
    Raises UpstreamEnded when the stream ended before the provider said so, UpstreamError when the provider reported
    an error or sent nonsense, LocalError for what is no stream, and what the writer raises. However it ends, the
    stream is closed before this returns; the app's own exceptions (of its tools, its generators) pass unchanged.
    """
    if source is not None and source not in SOURCES:
        raise LocalError(f"{source!r} is no source; there are {', '.join(SOURCES)}")
    writing = Writing(writer)
    upstream = Upstream(stream)
    chosen = SOURCES[source]() if source is not None else by_stream(stream)
    try:
        await upstream.open()
        chosen = chosen or by_stream(upstream.stream)
        events = upstream.events(chosen.events(upstream.stream) if chosen is not None else upstream.stream)
        async for event in events:
            if chosen is None:
                chosen = by_first_event(event)
            await _write(writing, chosen, event)
        if chosen is not None:
            for said in chosen.end():
                await writing.write(said)
        await upstream.finish()
    except BaseException as error:
        await upstream.leave(error, chosen.stop if chosen is not None else None)
        await writing.leave()
        ours = (chosen or PlainText()).translate(error)
        if ours is not None:
            raise ours from error
        raise
    await writing.write_meta()
    return writing.piped()


async def _write(writing: Writing, source: Source, event: object) -> None:
    try:
        for said in source.take(event):
            await writing.write(said)
    except HoldfastError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as error:
        # What nobody foresaw of what providers send is their error, not the end of this process's patience.
        raise malformed("an event of another shape") from error
