"""JSON in and out: how a peer's bytes become requests, and how answers become fields.

Layer: transports.

HTTP and WebSocket share this, so that the same mistake gets the same code on both. Which code
a mistake gets is part of the protocol (`docs/protocol.md`, "Errors"); the wording is not.
"""

from __future__ import annotations

import json
import logging
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from holdfast.core.cursor import NO_EPOCH, Cursor, parse_cursor
from holdfast.core.errors import (
    Deleted,
    HoldfastError,
    InvalidRequest,
    InvalidText,
    LocalError,
    StoreInUse,
    StoreUnavailable,
    StoreUnusable,
)
from holdfast.core.events import CommandReply
from holdfast.core.model import Message
from holdfast.core.requests import (
    AppendText,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
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
from holdfast.hub.committer import Result
from holdfast.stores.base import CommitUnknown

logger = logging.getLogger("holdfast.transports")

T = TypeVar("T")


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What `data` says. Raises InvalidRequest, or InvalidText where text is none."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(data, error)


def _refuse(data: bytes, error: Exception) -> NoReturn:
    """Say why `data` is no JSON that we take. Half a surrogate pair looks like anything but that to the decoder."""
    if not data.strip():
        raise InvalidRequest("the body is empty; where nothing is to be said it is {}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidText("the JSON is not UTF-8") from None
    if "\\ud" in text.lower() and _holds_lone_surrogates(text):
        raise InvalidText("text holds a lone surrogate: hold it back and join it to the next piece") from None
    raise InvalidRequest(str(error)) from None


def _holds_lone_surrogates(text: str) -> bool:
    """Is `text` JSON but for a lone surrogate? The standard library's decoder lets those through."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def answer_fields(request: Request, answer: Result) -> dict[str, Any]:
    """What the answer to `request` says, the same on HTTP and WebSocket. Raises Deleted."""
    fields = _fields(request, answer)
    return _unread(request, fields) if answer.is_blind else fields


def _fields(request: Request, answer: Result) -> dict[str, Any]:
    match request:
        case CreateMessage():
            return {
                "message": _message(answer),
                "serial": answer.serial,
                "generation": answer.generation,
                "cursor": answer.cursor,
            }
        case AppendText():
            return {"serial": answer.serial, "part": answer.part, "length": answer.length}
        case UpdateMessage():
            return {"message": _message(answer), "serial": answer.serial}
        case PutPart() | FinishMessage():
            return {"serial": answer.serial}
        case TakeOver():
            return {"serial": answer.serial, "generation": answer.generation, "lengths": answer.lengths}
        case RenewLease():
            return {"serial": answer.serial, "lease_s": request.lease_s}
        case SendCommand():
            reply = {"reply": answer.reply} if answer.reply is not None else {}
            return {"command": answer.command, "serial": answer.serial, **reply}
        case ReplyCommand() | SettleCommand():
            return {"serial": answer.serial}
        case ClaimTurn() | EndTurn():
            return {"serial": answer.serial, "generation": answer.generation}
        case DeleteMessage():
            return {}


def _unread(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` for whoever may not read the channel: they tell nothing of what else is in it, nor how much.

    Serials are 0. A `version` beside a `created` still says whether the message has changed, and a cursor its epoch:
    who writes without reading needs both.
    """
    told = {name: 0 if name == "serial" else value for name, value in fields.items()}
    message, reply = fields.get("message"), fields.get("reply")
    if isinstance(message, Message):
        parent = request.parent if isinstance(request, CreateMessage) else None
        told["message"] = replace(
            message,
            parent=message.reply_to if parent is UNSET else parent,  # as it was sent, or follows from that
            created=0,
            version=int(message.version != message.created),
        )
    if isinstance(reply, CommandReply):
        told["reply"] = replace(reply, serial=0)
    if "cursor" in fields:
        cursor = parse_cursor(fields["cursor"])
        told["cursor"] = str(Cursor(cursor.epoch if cursor is not None else NO_EPOCH, 0))
    return told


def _message(answer: Result) -> object:
    if answer.message is None:
        raise Deleted("the message was deleted meanwhile")
    return answer.message


def unexpected() -> HoldfastError:
    """What a peer is told of a mistake of ours; the log has the rest."""
    return HoldfastError("something went wrong in the server; its log says what")


def for_peers(error: HoldfastError) -> HoldfastError:
    """`error` as a peer may see it; the log has the rest.

    What our own caller did wrong is an internal error to everybody else, and where a store lies is nobody's business.
    """
    if isinstance(error, LocalError):
        logger.error("a request could not be carried out: %s", error)
        return HoldfastError(error.detail)
    if isinstance(error, StoreUnavailable | StoreInUse | StoreUnusable):
        logger.warning("the store: %s", error)
        if isinstance(error, CommitUnknown):
            return StoreUnavailable("it is not known whether this was stored; asking again tells")
        return type(error)("the store cannot be used for now; nothing was stored" if error.retry else "")
    return error
