"""The other end of `bench.proc.Child`, for children with an event loop."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

__all__ = ["reply", "serve_requests"]

Handlers = Mapping[str, Callable[..., Awaitable[dict[str, Any]]]]


def reply(**fields: Any) -> None:
    """Write one reply."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def serve_requests(handlers: Handlers) -> None:
    """Carry out requests from standard input, one after the other, until it ends."""
    reader = asyncio.StreamReader(limit=1 << 26)  # a recording is one line
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        try:
            fields = await handlers[request.pop("do")](**request)
        except Exception as error:  # the outer edge: the benchmark prints it and reports the row as failed
            reply(error=_error_text(error))
        else:
            reply(**fields)


def _error_text(error: Exception) -> str:
    """Return the error's text. Of a group, return the first: errors that occur together mostly have the same cause."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
