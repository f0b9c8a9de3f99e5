"""Errors of an upstream: the model's provider, or its SDK.

Layer: sources.

Codes are stable. `detail` is public: of the provider's own text it contains at most a short error code. These messages
therefore show fields and types, but no values from the provider. The provider's full message is in the exception that
is the cause, for the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tenuto.core.errors import TenutoError

# Form of a provider's error code, such as `overloaded_error` or `RESOURCE_EXHAUSTED`. Digits are excluded, so that no
# key or id can pass.
_CODE = re.compile(r"[A-Za-z]+(?:[_.-][A-Za-z]+)*")
_CODE_CHARACTERS = 64
_CAUSES = 8  # limit of exceptions to read in a chain of causes

# Packages whose exceptions count as the upstream's. `json` is one, because SDKs decode server-sent events with it.
SDKS = (
    *("openai", "anthropic", "google", "agents", "pydantic_ai", "pydantic_graph", "pydantic", "pydantic_core", "jiter"),
    *("langchain", "langchain_core", "langchain_openai", "langchain_anthropic", "langchain_google_genai", "langgraph"),
    *("httpx", "httpx2", "httpcore", "httpcore2", "h11", "h2", "aiohttp", "requests", "urllib3", "json"),
)
# Names of the exceptions of SDKs and HTTP clients for a broken connection. TransportError is the base class in httpx
# and httpx2.
_LOST = ("APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError", "ProtocolError")


class UpstreamError(TenutoError):
    """The model's provider reported an error or sent malformed data. The message ends as `failed`."""

    code, status, title = "upstream_error", 502, "Upstream error"


class UpstreamEnded(TenutoError):
    """The stream ended before the provider's end event, as after a crash upstream.

    The message ends as `interrupted`.
    """

    code, status, title = "upstream_ended", 502, "Upstream ended"
    ends_as = "interrupted"


def unfinished() -> UpstreamEnded:
    """Return the error for a stream that ended without the reason of its end."""
    return UpstreamEnded("the model's stream ended without a finish reason, so the answer may be incomplete")


def malformed(what: str) -> UpstreamError:
    """Return the error for an event that differs from its provider's documentation.

    `what` must contain no text of the provider.
    """
    return UpstreamError(f"the model's provider sent malformed data: {what}")


def reported(*codes: object) -> UpstreamError:
    """Return the error for a failure that the provider reported.

    It names the first of `codes` that has the form of a code.
    """
    for code in codes:
        if isinstance(code, str) and len(code) <= _CODE_CHARACTERS and _CODE.fullmatch(code):
            return UpstreamError(f"the model's provider reported an error: {code}", reason=code)
    return UpstreamError("the model's provider reported an error; the log has its message")


def translated(error: BaseException, *, is_of_sdk: bool) -> TenutoError | None:
    """Return the Tenuto error for an exception that a stream raised; None if the exception is the app's own.

    `is_of_sdk`: the stream belongs to an SDK, so exceptions that its code raises count even if they are of foreign
    classes.
    """
    if isinstance(error, TenutoError) or not isinstance(error, Exception):
        return None
    if not _is_of_sdk(error) and not (is_of_sdk and _is_raised_by_sdk(error)):
        return None
    causes = list(_causes(error))
    if any(_is_lost(cause) for cause in causes):
        return UpstreamEnded(
            "the connection to the model's provider broke before the stream ended; the log has the reason"
        )
    return reported(*(code for cause in causes for code in _codes(cause)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _root(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def _is_of_sdk(error: BaseException) -> bool:
    return any(_root(kind.__module__) in SDKS for kind in type(error).__mro__)


def _is_raised_by_sdk(error: BaseException) -> bool:
    """Return whether the SDK, or the network code below it, raised `error`; else a tool of the app did."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and _root(frame.tb_frame.f_globals.get("__name__")) in (*SDKS, "ssl", "asyncio", "socket")


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | EOFError | TimeoutError) or any(
        kind.__name__ in _LOST for kind in type(error).__mro__
    )


def _codes(error: BaseException) -> Iterator[object]:
    """Yield the values of the fields in which SDKs keep a short code: on the exception, or in its body."""
    body = getattr(error, "body", None) or getattr(error, "details", None)
    for fields in (body.get("error") if isinstance(body, dict) else None, body):
        if isinstance(fields, dict):
            yield from (fields.get(name) for name in ("type", "code", "status"))
    yield from (getattr(error, name, None) for name in ("type", "code", "status"))
