"""What each source needs: the edits that it yields, its errors, and reads of a provider's data without trust in it.

Layer: sources.

SDKs build their objects without validation, so a field may be missing, of another type, or huge.
"""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import ClassVar

import msgspec

from tenuto.core.errors import TenutoError, causes_of
from tenuto.core.model import Json, Part
from tenuto.core.text import whole_text

# The states of a tool part. A handler that runs tools itself writes the output of parts in the state `called`.
INPUT, CALLED, DONE, ERROR = "input", "called", "done", "error"


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a part. `key` names the part within its source from now on; for a known key there is no effect."""

    key: Hashable
    part: Part


@dataclass(frozen=True, slots=True)
class Add:
    """Add text to a part, or to a tool's input; for an unknown key first open a part of type `kind`."""

    key: Hashable
    text: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Set:
    """Set fields of an open part. An unknown key has no effect, unless `fields` is a whole part."""

    key: Hashable
    fields: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Drop:
    """Withdraw a part, and free its key. A message cannot lose parts, so the part becomes an empty text."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Meta:
    """Set values in the message's meta.

    Usage of the same response (`of`) replaces the earlier one; that of several responses is added.
    """

    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    of: Hashable = None
    response_id: str | None = None  # the provider's id of the response


Edit = Open | Add | Set | Drop | Meta


def tool(call: str, name: str, **fields: Json) -> Part:
    """Return a tool part. Its input is still to come, unless `fields` contain it."""
    return {"type": "tool", "call": call, "name": name, "state": INPUT, **fields}


def free(kind: str, **fields: Json) -> Part:
    """Return a source or file part without the fields that are None."""
    return {"type": kind, **{name: value for name, value in fields.items() if value is not None}}


class Source:
    """The translator of one provider's stream. A subclass maps the provider's events to edits."""

    name: ClassVar[str]
    last: ClassVar[str] = "a finish reason"  # what the provider sends at the end
    is_of_sdk: ClassVar[bool] = True  # False: the stream is the app's own
    is_alive = True  # False: the last event was a keep-alive (a comment, a ping)
    _is_ended = False  # True: the provider has sent its end

    def events(self, stream: object) -> object:
        """Return the (async) iterator of events behind `stream`."""
        return stream

    def take(self, event: object) -> Iterator[Edit]:
        """Yield the edits for `event`; none if it is unknown. Raises UpstreamError for a reported error or bad data."""
        raise NotImplementedError

    def end(self) -> Iterator[Edit]:
        """Yield the edits for the end of the stream. Raises UpstreamEnded if the provider's own end is missing."""
        if not self._is_ended:
            raise unfinished(self.last)
        return iter(())

    async def stop(self, stream: object) -> None:
        """Do the steps that the SDK needs, besides closing, to end the stream early."""


# Form of an HTTP status, or of a provider's error code, such as `overloaded_error` or `RESOURCE_EXHAUSTED`. It has no
# other digits, so that no key or id can pass.
_CODE = re.compile(r"[A-Za-z]+(?:[_.-][A-Za-z]+)*|[345]\d\d")
_CODE_CHARACTERS = 64

# Packages whose exceptions count as the upstream's. `json` is one, because SDKs decode server-sent events with it.
UPSTREAM_PACKAGES = (
    *("openai", "anthropic", "google", "agents", "pydantic_ai", "pydantic_graph", "pydantic", "pydantic_core", "jiter"),
    *("langchain", "langchain_core", "langchain_openai", "langchain_anthropic", "langchain_google_genai", "langgraph"),
    *("httpx", "httpx2", "httpcore", "httpcore2", "h11", "h2", "aiohttp", "requests", "urllib3", "websockets", "json"),
)
# Names of the exceptions of SDKs and HTTP clients for a broken connection. TransportError is the base class in httpx
# and httpx2.
LOST = (
    *("APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError", "ProtocolError"),
    *("ConnectionError", "ChunkedEncodingError", "Timeout"),  # of requests
    "ConnectionClosed",  # of websockets
    "UnknownApiResponseError",  # of google-genai: a stream that ends in the middle of an event
)
# Messages of SDKs for a stream that ended before its first event, or without its last one; their classes stand for the
# model's own mistakes, too.
_UNFINISHED = (
    "Streamed response ended without",  # content or tool calls, or a finish reason: of pydantic-ai
    *("No generation chunks were returned", "No generations found in stream"),  # of langchain
    # of openai-agents
    *("Model did not produce a final response", "Chat Completions stream ended before"),
    "Buffered Chat Completions tool call stream ended",
)
# What langchain-openai raises for the events `response.failed` and `error`: a ValueError that begins with the code.
_CODE_FIRST = re.compile(r"(?:(?:ResponseError\()?code='|\{'code': ')?([a-z]+(?:_[a-z]+)+)(?:'|: )")


class UpstreamError(TenutoError):
    """The model's provider reported an error or sent malformed data. The message ends as `failed`."""

    code, status, title = "upstream_error", 502, "Upstream error"


class UpstreamEnded(TenutoError):
    """The stream ended before the provider's end event, as after a crash upstream.

    The message ends as `interrupted`.
    """

    code, status, title = "upstream_ended", 502, "Upstream ended"
    ends_as = "interrupted"


class NotKept(UpstreamEnded, UpstreamError):
    """A complete message knows nothing of this stream: it broke off, another one ran beside it, or `meta` was full."""


def unfinished(last: str = Source.last) -> UpstreamEnded:
    """Return the error for a stream that ended without `last`."""
    return UpstreamEnded(f"the model's stream ended without {last}, so the answer may be incomplete")


def malformed(what: str) -> UpstreamError:
    """Return the error for an event that differs from its provider's documentation.

    `what` must contain no text of the provider.
    """
    return UpstreamError(f"the model's provider sent malformed data: {what}")


# codes of failures that no later try passes
LASTING_CODES = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"))


def reported(*codes: object) -> UpstreamError:
    """Return the error for a failure that the provider reported.

    It names one of `codes` that has the form of a code: one that lasts, else the first.
    """
    found = list(filter(None, map(code_of, codes)))
    for code in (*filter(LASTING_CODES.__contains__, found), *found):
        return UpstreamError(f"the model's provider reported an error: {code}", reason=code)
    return UpstreamError("the model's provider reported an error; the log has its message")


def translated(error: BaseException, *, is_of_sdk: bool) -> TenutoError | None:
    """Return the Tenuto error for an exception that a stream raised; None if the exception is the app's own.

    `is_of_sdk`: the stream belongs to an SDK, so exceptions that its code raises count even if they are of foreign
    classes.
    """
    if isinstance(error, TenutoError) or not isinstance(error, Exception):
        return None
    if not is_from_sdk(error) and not (is_of_sdk and _is_raised_by_sdk(error)):
        return None
    causes = causes_of(error)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if not names.isdisjoint(LOST) or any(isinstance(one, ConnectionError | EOFError | TimeoutError) for one in causes):
        return UpstreamEnded(
            "the connection to the model's provider broke before the stream ended; the log has the reason"
        )
    if any(str(cause).startswith(_UNFINISHED) for cause in causes):
        return unfinished()
    own = [one for one in causes if type(one) is ValueError and _is_raised_by_sdk(one)]  # not of a tool of the app
    said = [found[1] for one in own if (found := _CODE_FIRST.match(str(one)))]
    return reported(*(code for cause in causes for code in codes_of(cause)), *said)


def _root(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def is_from_sdk(thing: object) -> bool:
    """Return whether the class of `thing`, or one that it has as a base, is an SDK's."""
    return any(_root(kind.__module__) in UPSTREAM_PACKAGES for kind in type(thing).__mro__)


def _is_raised_by_sdk(error: BaseException) -> bool:
    """Return whether the SDK, or the network code below it, raised `error`; else a tool of the app did."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = (*UPSTREAM_PACKAGES, "ssl", "asyncio", "socket")
    return bool(frames) and _root(frames[-1].f_globals.get("__name__")) in packages


def code_of(value: object) -> str:
    """Return `value` as text if it has the form of a code or status; else an empty text."""
    if isinstance(value, int) and value < 1000:
        value = str(int(value))
    return value if isinstance(value, str) and len(value) <= _CODE_CHARACTERS and _CODE.fullmatch(value) else ""


def codes_of(report: object) -> Iterator[object]:
    """Yield the values of fields in which providers keep a short code: of an event, or of an exception and its body."""
    body, error = get(report, "body") or get(report, "details"), get(report, "error")
    for fields in (get(body, "error"), body, error, report):
        yield from (get(fields, name) for name in ("status", "code", "type"))
    if not isinstance(report, Exception) or is_from_sdk(report):
        yield from (body, error)  # some are the code itself; in an app's own exception they may be any text


WORD_CHARACTERS = 512  # limit of a name, id, model or reason; URLs and titles may be longer
LINE_CHARACTERS = 4096
_INTEGERS = 2**63


def get(thing: object, name: str) -> object:
    """Return a field of an SDK's object or of a plain dict; None if it is missing."""
    if isinstance(thing, Mapping):
        return thing.get(name)
    return getattr(thing, name, None)


def text(thing: object, name: str) -> str:
    """Return a field of text; "" if it is missing. Raises UpstreamError for another type."""
    value = get(thing, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"field {name!r} must be text, got {type(value).__name__}")
    return value


def word(thing: object, name: str, limit: int = WORD_CHARACTERS) -> str | None:
    """Return a short field of text, cut to `limit`; None if it is missing or of another type."""
    value = get(thing, name)
    if isinstance(value, Enum):
        value = value.value
    return whole_text(value[:limit]) if isinstance(value, str) and value else None


def needed(thing: object, name: str) -> str:
    """Return a short field of text that is required. Raises UpstreamError if it is missing."""
    found = word(thing, name)
    if found is None:
        raise malformed(f"field {name!r} must be text, got {type(get(thing, name)).__name__}")
    return found


def items(thing: object, name: str) -> Iterator[object]:
    """Yield the items of a field that is a list; yield none if it has another type."""
    value = get(thing, name)
    if isinstance(value, list | tuple):
        yield from value


def index(thing: object, name: str) -> int:
    """Return a field that is an index; 0 if it is missing. Raises UpstreamError if it is not a number."""
    value = get(thing, name)
    if value is None:
        return 0
    if not isinstance(value, int):
        raise malformed(f"field {name!r} must be a number, got {type(value).__name__}")
    return value


def counts(thing: object, names: Mapping[str, str]) -> dict[str, int] | None:
    """Return the usage under Tenuto's names, read from the provider's; None if there is none.

    In a provider's name, `a.b` means the field `b` of the field `a`; `a+b` is the sum of two fields.
    """
    found: dict[str, int] = {}
    for ours, theirs in names.items():
        for path in theirs.split("+"):
            value = reduce(get, path.split("."), thing)
            # a quarter of the limit, because two fields, and then usages, are added up
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INTEGERS // 4:
                found[ours] = found.get(ours, 0) + value
    return found or None


def plain(value: object) -> Json:
    """Return `value` in JSON types: objects of SDKs and apps by their fields, else by `str`. Raises UpstreamError."""
    try:
        return _json_safe(msgspec.to_builtins(value, str_keys=True, enc_hook=_fields))
    except (RecursionError, ValueError, TypeError) as error:
        raise malformed(f"a value of type {type(value).__name__} is not JSON-serialisable") from error


def as_json(value: object) -> str:
    """Return `value` as JSON text: the input of a tool whose provider sends it as an object."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def _fields(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True, warnings=False) if callable(dump) else str(value)


def _json_safe(value: Json) -> Json:
    match value:
        case str():
            return whole_text(value)
        case dict():
            return {whole_text(str(key)): _json_safe(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json_safe(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(value)
        case int() if not -_INTEGERS <= value < _INTEGERS:
            return str(value)
    return value
