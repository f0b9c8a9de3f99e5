"""One HTTP request for one operation: its names, its body, and its response.

Layer: transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from tenuto.core.errors import InvalidRequest, TooLarge, UnsupportedMediaType
from tenuto.core.names import check_channel, check_id
from tenuto.core.requests import Request as HubRequest
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.rates import UNCOUNTED
from tenuto.hub.access.tickets import START_S
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.transports.access import caller_of, check_operation, count_new_channel, open_body, start_hub
from tenuto.transports.codec import decode, result_fields
from tenuto.transports.headers import Query, peer_of
from tenuto.transports.operations import OPERATIONS, Operation


class CreateTicket(Struct, frozen=True, kw_only=True):
    """A request for a ticket that opens one stream of `channel`."""

    channel: str


class TicketIssued(Struct, frozen=True, kw_only=True):
    """A ticket, and the time within which it must be used."""

    ticket: str
    expires_s: int = START_S


BODY_TIMEOUT_S = 60.0  # time in which the whole body, at most a megabyte, must arrive
NO_STORE = {"cache-control": "no-store"}


class ForgetClient(Struct, frozen=True, kw_only=True):
    """The body of the removal of a person; with `channels` also of the channels in which no other person wrote."""

    client_id: str
    channels: bool = False


class BackupFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a backup into the new file `path`, at most `mb_per_s` MB in a second."""

    path: str
    mb_per_s: float = 50


class ImportFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an import of the file `path` (`Archive.import_file`)."""

    path: str
    channel: str | None = None
    damaged: bool = False


class NoFields(Struct, frozen=True):
    """A body without fields."""


# Operations whose body is the request itself. The body of a part is only a part of the request, which the core checks.
_BODIES: dict[str, msgspec.json.Decoder[Any]] = {
    one.name: msgspec.json.Decoder(one.request) for one in OPERATIONS if one.request is not None
}
_BODIES |= {"part": msgspec.json.Decoder(dict[str, Any]), "ticket": msgspec.json.Decoder(CreateTicket)}
_BODIES |= {"forget": msgspec.json.Decoder(ForgetClient), "verify": msgspec.json.Decoder(NoFields)}
_BODIES |= {"backup": msgspec.json.Decoder(BackupFile), "import": msgspec.json.Decoder(ImportFile)}


class Call:
    """One request for one operation, with its caller's identity and the names in its path."""

    opened = UNCOUNTED  # the body, with the bytes that have arrived
    result: Result | None = None  # result of the submitted request

    def __init__(self, hub: HubCore, operation: Operation, request: Request, identity: Identity) -> None:
        """Read the names in the path; `channel` and `id` are empty if it has none. Raises InvalidName, Forbidden."""
        self.hub = hub
        self.operation = operation
        self.request = request
        self.identity = identity
        self.channel = check_channel(request.path_params["channel"]) if "channel" in request.path_params else ""
        message_id = request.path_params.get("id")  # id of a message, command or member
        self.id = check_id(message_id) if message_id is not None else ""
        if self.channel or operation.is_for_all:
            check_operation(identity, operation, self.channel)

    def query(self) -> Query:
        """Return the query parameters of the request. Raises InvalidRequest."""
        return Query(self.request.scope)

    async def body(self) -> Any:
        """Return the decoded body. Raises TooLarge or TooMany as soon as it exceeds a limit, Draining, …"""
        limit_bytes = self.hub.limits.request_bytes
        self.opened = open_body(self.hub, self.identity, dict(self.request.scope), limit_bytes)
        with self.opened:
            data = await read_body(self.request, limit_bytes, self.opened.grow)
        await start_hub(self.hub)  # the app may have closed it while the body arrived
        return decode(data, _BODIES[self.operation.name])

    async def submit(self, key: str, request: HubRequest) -> Response:
        """Submit a request to the hub and return its result as a response."""
        peer = peer_of(dict(self.request.scope))
        caller = caller_of(self.hub, self.identity, self.channel, peer)
        result = await self.hub.ask(self.channel, key, request, caller)
        count_new_channel(self.hub, self.identity, peer, result)
        status = self.operation.status if self.operation.status != 201 or result.created else 200
        self.result = result
        return json_response(result_fields(request, result), status=status)

    def empty(self) -> Response:
        """Return a response without a body, with the operation's status."""
        return Response(status_code=self.operation.status, headers=NO_STORE)


async def read_body(request: Request, limit_bytes: int, arrived: Callable[[int], None] = UNCOUNTED.grow) -> bytes:
    """Return the body. While it arrives, `arrived` is called with the size of each piece, and may raise.

    Raises UnsupportedMediaType, TooLarge, and InvalidRequest for a body that does not end in time. The server discards
    the bytes that a refused peer still sends.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"the body must be JSON, with Content-Type: application/json, not {media_type[:100]!r}"
        )
    length = request.headers.get("content-length", "")
    declared = int(length[:18]) if length.isascii() and length.isdigit() else 0
    if declared > limit_bytes:
        raise _too_large(declared, limit_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                size += len(piece)
                arrived(len(piece))
                if size > limit_bytes:
                    raise _too_large(size, limit_bytes)
                pieces.append(piece)
    except TimeoutError:
        raise InvalidRequest(
            f"the body of the request did not end within {BODY_TIMEOUT_S:.0f} s; send it without pauses"
        ) from None
    if not size and "upgrade" in request.headers and (declared or "transfer-encoding" in request.headers):
        offered = request.headers["upgrade"][:40]
        raise InvalidRequest(
            f"the server (uvicorn does so) has lost the body of a request with the header Upgrade: {offered!r}; let "
            "the client send none, as with HttpClient.Version.HTTP_1_1 in Java, or use `tenuto serve`"
        )
    return b"".join(pieces)


def _too_large(size: int, limit_bytes: int) -> TooLarge:
    text = f"the body of the request has {size} bytes or more, the limit is {limit_bytes} (Limits.request_bytes)"
    return TooLarge(f"{text}; send it in several requests", limit=limit_bytes)


def json_response(value: object, *, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json", headers=NO_STORE)
