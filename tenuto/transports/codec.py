"""The codec for JSON: it decodes a peer's bytes into requests, and turns results into fields.

Layer: transports.

HTTP and WebSocket share this, so that the same mistake gets the same code on both. The code of a mistake is part of the
protocol (`docs/protocol.md`, "Errors"); the wording is not.
"""

from __future__ import annotations

import json
import logging
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from tenuto.core.errors import (
    Deleted,
    InvalidRequest,
    InvalidText,
    LocalError,
    StoreInUse,
    StoreUnavailable,
    StoreUnusable,
    TenutoError,
)
from tenuto.core.events import NO_EPOCH, CommandReply, Cursor, parse_cursor
from tenuto.core.model import Message, lowered
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
from tenuto.hub.results import Result
from tenuto.stores.base import CommitUnknown
from tenuto.transports.refusals import Refusals

logger = logging.getLogger("tenuto.transports")
_store_failures = Refusals()  # apart from refused peers, who must not hide them

T = TypeVar("T")


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded `data`. Raises InvalidRequest, and InvalidText for text that is not valid Unicode."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"the request does not follow the protocol (docs/protocol.md, 8): {lowered(error)}"
        ) from None
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deeply to be decoded; send fewer levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(data, error)


def _refuse(data: bytes, error: Exception) -> NoReturn:
    """Raise the error that names why `data` is not accepted. The decoder's own error hides half a surrogate pair."""
    if not data.strip():
        raise InvalidRequest("the body is empty: send {} for a request without fields") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidText("the JSON is not encoded in UTF-8; send UTF-8") from None
    if "\\ud" in text.lower() and _holds_lone_surrogates(text):
        raise InvalidText("the text contains a lone surrogate: hold it back and join it to the next piece") from None
    raise InvalidRequest(f"the request cannot be decoded: {lowered(error)}") from None


def _holds_lone_surrogates(text: str) -> bool:
    """Return whether `text` is valid but for lone surrogates, which the standard library's decoder accepts."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


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
        case PutPart() | FinishMessage() | ExpireLease():
            return {"serial": result.serial}
        case TakeOver():
            return {"serial": result.serial, "generation": result.generation, "lengths": result.lengths}
        case RenewLease():
            return {"serial": result.serial, "lease_s": request.lease_s}
        case SendCommand():
            reply = {"reply": result.reply} if result.reply is not None else {}
            return {"command": result.command, "serial": result.serial, **reply}
        case ReplyCommand() | SettleCommand():
            return {"serial": result.serial}
        case ClaimTurn() | EndTurn():
            return {"serial": result.serial, "generation": result.generation}
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
        shown["message"] = replace(
            message,
            parent=message.reply_to
            if parent is UNSET
            else parent,  # the parent that the caller sent, or that follows from `reply_to`
            created=0,
            version=int(message.version != message.created),
        )
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


def for_peers(error: TenutoError) -> TenutoError:
    """Return `error` in the form that a peer may see; the log has the details.

    A mistake of the app in this process is an internal error to peers. Store paths are not exposed to clients.
    """
    if isinstance(error, LocalError):
        logger.error("a request failed because of a mistake in this process: %s", error)
        return TenutoError(error.detail)
    if isinstance(error, StoreUnavailable | StoreInUse | StoreUnusable):
        _store_failures.log_store(error)
        if isinstance(error, CommitUnknown):
            return StoreUnavailable(
                "the server does not know whether the request was stored; send it again to find out"
            )
        if isinstance(error, StoreInUse) and "holder" in error.details:
            return StoreInUse(f"the store is in use by {error.details['holder']}: {error.details['remedy']}")
        if "reason" in error.details:
            return type(error)(f"nothing of the request was stored, and the store fails: {error.details['reason']}")
        if error.retry:
            return type(error)("the store is not available now; nothing of the request was stored")
        return type(error)("the store cannot be used; the server's log has the reason")
    return error
