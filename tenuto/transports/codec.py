"""The codec of HTTP and WebSocket: JSON and queries of a peer into requests, results and errors into fields.

Layer: transports.

Both share this, so that the same mistake gets the same code on both. The code of a mistake is part of the protocol
(`docs/protocol.md`, "Errors"); the wording is not. `refusals` logs why peers are refused, each reason seldom.
"""

from __future__ import annotations

import json
import logging
import random
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from tenuto.core.errors import (
    Deleted,
    Forbidden,
    InvalidName,
    InvalidRequest,
    InvalidText,
    LocalError,
    MethodNotAllowed,
    NoVerifier,
    StoreInUse,
    StoreUnavailable,
    StoreUnusable,
    TenutoError,
    Unauthenticated,
)
from tenuto.core.events import NO_EPOCH, CommandReply, Cursor, parse_cursor
from tenuto.core.model import Json, Message, lowered
from tenuto.core.requests import (
    AppendText,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    ExpireLease,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    Request,
    SendCommand,
    SettleCommand,
    TakeOver,
    UpdateMessage,
)
from tenuto.hub.access.identity import Scope
from tenuto.hub.keep.control import CONTROL
from tenuto.hub.pending import Result
from tenuto.hub.tasks import PERIOD_S, LineLimit
from tenuto.stores.base import CommitUnknown

DRAINED = 1012
FAILED = 4000
SILENT = 4001
CROWDED = 4002
NARROWED = 4003
EXPIRED = 4200
UNAUTHENTICATED = 4201
MISUSED = 4300
FRAME_TOO_LARGE = 4301


class _Ref(Struct):
    ref: Json = None


_ref = msgspec.json.Decoder(_Ref)


def ref_in(data: bytes) -> Json:
    """Return the `ref` of an invalid frame; None if it has none that can be sent back."""
    ref: Json = None
    try:
        ref = _ref.decode(data).ref
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        with suppress(ValueError, RecursionError):  # strict JSON refuses half a surrogate pair, which browsers send
            frame = None if _has_too_many_values(data) else json.loads(data)
            ref = frame.get("ref") if isinstance(frame, dict) else None
    if isinstance(ref, int) and not isinstance(ref, bool):
        return ref if abs(ref) <= 2**53 else None
    return ref if isinstance(ref, str) and len(ref) <= 64 and _is_text(ref) else None


def _is_text(text: str) -> bool:
    """Return whether `text` can be sent: half a surrogate pair cannot."""
    return text.encode(errors="ignore").decode() == text


logger = logging.getLogger("tenuto.transports")

REPEAT_S = 3600.0  # least time between two lines with the same reason
MAX_TEXT = 1000  # limit of characters of an exception's text in its reason
NO_ADDRESS = "a peer without an address"  # in a log line


class Refusals(LineLimit):
    """Logs each reason at most once an hour."""

    def log(self, peer: str, error: TenutoError) -> None:
        """Log that `peer` was refused with `error`, unless this reason was logged recently or too many lines were."""
        more = self.more({error.detail: REPEAT_S})
        if more is not None:
            logger.warning("refused %s with %s: %s%s", peer or NO_ADDRESS, error.code, error.detail, more)

    def log_failure(self, peer: str, error: Exception) -> None:
        """Log that the app's verifier raised `error`, with its traceback, within the same limits.

        The reason is the exception with its text and the line that raised it. The text may differ for each token, so a
        line with another text is logged again only after a minute.
        """
        frames = traceback.extract_tb(error.__traceback__)
        kind = f"{type(error).__qualname__} at {frames[-1].filename}:{frames[-1].lineno}"
        text = "".join(traceback.format_exception_only(error))[:MAX_TEXT]
        more = self.more({f"{kind}: {text}": REPEAT_S, kind: PERIOD_S})
        if more is not None:
            logger.error("the verifier failed for a request of %s%s", peer or NO_ADDRESS, more, exc_info=error)

    @contextmanager
    def logged(self, scope: Scope) -> Iterator[None]:
        """Log that the block refuses the caller of `scope`, and why."""
        try:
            yield
        except (NoVerifier, Unauthenticated, Forbidden, InvalidName) as error:
            self.log(peer_of(scope), error)
            raise


refusals = Refusals()
failures = LineLimit()  # of requests, by code: peers leave the lines of `store_failures` to the hub

T = TypeVar("T")


# Limits of one request: decoding and checking 8 MiB of empty lists held up all clients for seconds.
MOST_LISTS = 100_000  # lists and objects
MOST_VALUES = 600_000  # more than 1 MiB can have


def decode(data: bytes | bytearray, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded `data`. Raises InvalidRequest, and InvalidText for text that is not valid Unicode."""
    if _has_too_many_values(data):
        most = f"{MOST_LISTS} lists and objects, or more than {MOST_VALUES} values"
        raise InvalidRequest(f"the JSON has more than {most}; send fewer, or some of them as one text")
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"request does not follow the protocol (docs/protocol.md, 8): {lowered(error)}") from None
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deeply to be decoded; send fewer levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(data, error)


def _has_too_many_values(data: bytes | bytearray) -> bool:
    """Return whether the JSON has more lists and objects, or more values, than a request may have."""
    if len(data) <= MOST_LISTS or not _is_above(data):
        return False
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if data.count(b'"') > 4 * MOST_VALUES:  # each value has up to two strings
        return True
    return _is_above(re.sub(b'"[^"]*"', b"", data))


def _is_above(data: bytes | bytearray) -> bool:
    lists = _count(data, b"[", MOST_LISTS) + _count(data, b"{", MOST_LISTS)
    return lists > MOST_LISTS or lists + _count(data, b",", MOST_VALUES) > MOST_VALUES


def _count(data: bytes | bytearray, mark: bytes, most: int) -> int:
    """Return how often `mark` is in `data`, at most `most + 1`. In a photo, `count` would take four times as long."""
    return len(data) - len(data.replace(mark, b"", most + 1))


def _refuse(data: bytes | bytearray, error: Exception) -> NoReturn:
    """Raise the error that names why `data` is not accepted. The decoder's own error hides half a surrogate pair."""
    if not data.strip():
        raise InvalidRequest("the body is empty: send {} for a request without fields") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidText("the JSON is not encoded in UTF-8; send UTF-8") from None
    if "\\ud" in text.lower() and (field := _field_with_lone_surrogate(text)) is not None:
        detail = f"{field!r} holds a lone surrogate, half a character: remove it, or send its other half with it"
        raise InvalidText(f"{detail}; in an append, hold it back and join it to the next piece", param=field) from None
    raise InvalidRequest(f"the request cannot be decoded: {lowered(error)}") from None


def _field_with_lone_surrogate(text: str) -> str | None:
    """Return the field of an object that is valid but for lone surrogates, and that holds one; None for other texts."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text)  # this decoder accepts them
        for name, one in value.items() if isinstance(value, dict) else [("the body", value)]:
            try:
                msgspec.json.encode((name, one))  # `json.dumps` takes 2 s for 8 MiB of short fields
            except UnicodeEncodeError:
                return str(name[:80].encode(errors="replace").decode())
    return None


def result_fields(request: Request, result: Result) -> dict[str, Any]:
    """Return the fields of the response to `request`; they are the same on HTTP and WebSocket. Raises Deleted."""
    fields = _fields(request, result)
    return _hide_channel(request, fields) if result.is_blind else fields


def _fields(request: Request, result: Result) -> dict[str, Any]:
    match request:
        case CreateMessage():
            return {
                "message": _message(result),
                "serial": result.serial,
                "generation": result.generation,
                "cursor": result.cursor,
            }
        case AppendText():
            return {"serial": result.serial, "part": result.part, "length": result.length}
        case UpdateMessage():
            return {"message": _message(result), "serial": result.serial}
        case PutPart() | FinishMessage() | ExpireLease() | ReplyCommand() | SettleCommand() | ClaimTurn() | EndTurn():
            return {"serial": result.serial}
        case TakeOver():
            return {"serial": result.serial, "generation": result.generation, "lengths": result.lengths}
        case RenewLease():
            return {"serial": result.serial, "lease_s": request.lease_s}
        case SendCommand():
            reply = {"reply": result.reply} if result.reply is not None else {}
            return {"command": result.command, "serial": result.serial, **reply}
        case DeleteMessage():
            return {}


def _hide_channel(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields` for a caller that may not read the channel: nothing in them depends on its other content.

    Serials are 0. A `version` beside a `created` still shows whether the message has changed, and a cursor still shows
    its epoch: a caller that may write but not read needs both.
    """
    shown = {name: 0 if name == "serial" else value for name, value in fields.items()}
    message, reply = fields.get("message"), fields.get("reply")
    if isinstance(message, Message):
        parent = request.parent if isinstance(request, CreateMessage) else None
        if parent is UNSET:  # the caller sent no parent, so it follows from `reply_to`
            parent = message.reply_to
        version = int(message.version != message.created)
        shown["message"] = replace(message, parent=parent, created=0, version=version)
    if isinstance(reply, CommandReply):
        shown["reply"] = replace(reply, serial=0)
    if "cursor" in fields:
        cursor = parse_cursor(fields["cursor"])
        shown["cursor"] = str(Cursor(cursor.epoch if cursor is not None else NO_EPOCH, 0))
    return shown


def _message(result: Result) -> object:
    if result.message is None:
        raise Deleted("the message was deleted while the request was carried out; create another one")
    return result.message


def unexpected() -> TenutoError:
    """Return the error that a peer gets for a bug of the server; the log has the details."""
    return TenutoError("the server failed to carry out the request; its log has the reason")


def known_error(error: Exception, failed: str) -> TenutoError:
    """Return `error` if it is one of Tenuto; log any other one with the text `failed`, and return `unexpected`."""
    if isinstance(error, TenutoError):
        return error
    logger.error(failed, exc_info=error)
    return unexpected()


def for_peers(error: TenutoError, scope: Mapping[str, Any] | None = None) -> TenutoError:
    """Return `error` in the form that a peer may see; the log has the details. The operator sees it as it is.

    A mistake of the app in this process keeps its text, as an internal error. Paths of a store stay in the log.
    """
    if scope is not None and is_operator(scope):
        return error
    if isinstance(error, LocalError):
        logger.error("a request failed because of a mistake in this process: %s", error)
        return TenutoError(error.detail)
    if isinstance(error, StoreUnavailable | StoreInUse | StoreUnusable):
        failures.log_failed("a request failed because of the store", error, reason=error.code, to=logger)
        if isinstance(error, CommitUnknown):
            return StoreUnavailable("server does not know whether the request was stored; send it again to find out")
        if isinstance(error, StoreInUse) and "holder" in error.details:
            return StoreInUse(f"the store is in use by {error.details['holder']}: {error.details['remedy']}")
        if "reason" in error.details:
            return type(error)(f"nothing of the request was stored, and the store fails: {error.details['reason']}")
        if error.retry:
            return type(error)("the store is not available now; nothing of the request was stored")
        return type(error)("the store cannot be used; the server's log has the reason")
    return error


Headers = list[tuple[bytes, bytes]]
# Sent with every response: a browser takes no data for a page, and a page of another origin cannot embed it without
# CORS. Browsers fetch modules and EventSource with CORS, which decides alone.
GUARDS: Headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]


def problem_headers(error: TenutoError) -> dict[str, str]:
    headers = {
        "content-type": "application/problem+json",
        "cache-control": "no-store",
        **{name.decode(): value.decode() for name, value in GUARDS},
    }
    if error.status in (429, 503):
        # random, so that clients that were refused together do not all return together
        headers["retry-after"] = str(error.details.get("retry_after_s", 1) + random.randint(0, 2))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        headers["allow"] = ", ".join(error.details["allow"])
    return headers


def is_operator(scope: Mapping[str, Any]) -> bool:
    """Return whether the request came on the control socket, a file that only the user of this server can open."""
    return CONTROL in (scope.get("extensions") or ())


def peer_of(scope: Scope) -> str:
    """Return the address of the peer as the server sees it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


_WHOLE = re.compile(r"[0-9]{1,16}\Z")
_MAX_FIELDS = 50  # limit of query parameters; the protocol defines seven


class Query:
    """The query parameters of a request. If a name is repeated, its last value counts."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        """Parse the query. Raises InvalidRequest if it has too many parameters."""
        text = scope.get("query_string", b"").decode("latin-1")
        try:
            self._fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)) if text else {}
        except ValueError as error:
            raise InvalidRequest(f"the query has more than {_MAX_FIELDS} fields: {error}") from None

    def text(self, name: str) -> str | None:
        """Return the parameter `name` as text, or None."""
        return self._fields.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return the parameter `name` as a whole number; None if missing.

        Raises InvalidRequest outside `low` to `high`.
        """
        text = self._fields.get(name)
        return None if text is None else whole(text, name, low, high)


def whole(text: str, name: str, low: int, high: int) -> int:
    """Return `text` as a whole number. Raises InvalidRequest unless it is one from `low` to `high`."""
    if not _WHOLE.match(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, got {text[:50]!r}")
    return int(text)
