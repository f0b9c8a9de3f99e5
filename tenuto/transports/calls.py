"""One HTTP request for one operation: its names, its body, and its response, which may be JSON lines.

Layer: transports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from tenuto.core.errors import Draining, InvalidRequest, TenutoError, TooLarge, UnsupportedMediaType
from tenuto.core.names import check_channel, check_id
from tenuto.core.requests import Request as HubRequest
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.tickets import START_S
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.hub.viewing import Viewing
from tenuto.transports.access import caller_of, check_operation, count_new_channel, start_hub
from tenuto.transports.codec import decode, for_peers, result_fields, unexpected
from tenuto.transports.operations import OPERATIONS, Operation
from tenuto.transports.origin import Query, peer_of
from tenuto.transports.sender import SEND_TIMEOUT_S, abort_if_unread, break_off
from tenuto.transports.traffic import open_body


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


class NoFields(Struct, frozen=True):
    """A body without fields."""


# Operations whose body is the request itself. The body of a part is only a part of the request, which the core checks.
_BODIES: dict[str, msgspec.json.Decoder[Any]] = {
    one.name: msgspec.json.Decoder(one.request) for one in OPERATIONS if one.request is not None
}
_BODIES |= {"part": msgspec.json.Decoder(dict[str, Any]), "ticket": msgspec.json.Decoder(CreateTicket)}
_BODIES |= {"forget": msgspec.json.Decoder(ForgetClient), "verify": msgspec.json.Decoder(NoFields)}


class Call:
    """One request for one operation, with its caller's identity and the names in its path."""

    body_bytes = 0  # bytes of the body that have arrived
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
        with open_body(self.hub, self.identity, dict(self.request.scope), limit_bytes) as count:

            def arrived(size: int) -> None:
                self.body_bytes += size
                count.grow(size)

            data = await read_body(self.request, limit_bytes, arrived)
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


async def read_body(request: Request, limit_bytes: int, arrived: Callable[[int], None] | None = None) -> bytes:
    """Return the body. While it arrives, `arrived` is called with the size of each piece, and may raise.

    Raises UnsupportedMediaType, TooLarge, and InvalidRequest for a body that does not end in time. The server discards
    the bytes that a refused peer still sends.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"the body must be JSON, with Content-Type: application/json, not {media_type[:100]!r}"
        )
    if int(_digits(request.headers.get("content-length"))) > limit_bytes:
        raise _too_large(int(_digits(request.headers.get("content-length"))), limit_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                size += len(piece)
                if arrived is not None:
                    arrived(len(piece))
                if size > limit_bytes:
                    raise _too_large(size, limit_bytes)
                pieces.append(piece)
    except TimeoutError:
        raise InvalidRequest(
            f"the body of the request did not end within {BODY_TIMEOUT_S:.0f} s; send it without pauses"
        ) from None
    if not size and "upgrade" in request.headers and _announces_body(request):
        offered = request.headers["upgrade"][:40]
        raise InvalidRequest(
            f"the server (uvicorn does so) has lost the body of a request with the header Upgrade: {offered!r}; let "
            "the client send none, as with HttpClient.Version.HTTP_1_1 in Java, or use `tenuto serve`"
        )
    return b"".join(pieces)


def _announces_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or int(_digits(request.headers.get("content-length"))) > 0


def _digits(text: str | None) -> str:
    return text[:18] if text is not None and text.isascii() and text.isdigit() else "0"


def _too_large(size: int, limit_bytes: int) -> TooLarge:
    text = f"the body of the request has {size} bytes or more, the limit is {limit_bytes} (Limits.request_bytes)"
    return TooLarge(f"{text}; send it in several requests", limit=limit_bytes)


def json_response(value: object, *, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json", headers=NO_STORE)


logger = logging.getLogger("tenuto.transports")

SIGN_S = 5.0  # time between two signs of life; proxies end a response that is silent for a minute
_SIGN = b"{}\n"


class LinesResponse(StreamingResponse):
    """Sends `first` and then the lines `rest`; for HEAD only the headers. A peer that stops reading is disconnected.

    An error of `rest` is the last line, of type `error`. A response that has not ended soon after the drain is cut.
    """

    def __init__(
        self,
        viewing: Viewing,
        first: bytes,
        rest: AsyncGenerator[bytes],
        *,
        headers: dict[str, str],
        is_head: bool = False,
    ) -> None:
        self._viewing = viewing
        self._rest = rest
        lines = _lines(first, rest, is_head=is_head)
        super().__init__(lines, headers=headers, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            async with aclosing(self._rest), self._viewing.responding():
                await super().__call__(scope, receive, send_in_time)
        except Draining:
            break_off(receive)
            abort_if_unread(receive, is_draining=True)


async def _lines(first: bytes, rest: AsyncGenerator[bytes], *, is_head: bool) -> AsyncGenerator[bytes]:
    if is_head:
        return
    yield first
    try:
        async for line in rest:
            yield line
    except TenutoError as error:
        yield _error(error)


async def with_signs(values: AsyncGenerator[object]) -> AsyncGenerator[bytes]:
    """Yield `values` as lines of JSON, and an empty object when none has come for five seconds.

    An error before the first line is raised. A later one is the last line, of type `error`.
    """
    is_first = True
    step = asyncio.ensure_future(_next(values))
    try:
        while True:
            done, _ = await asyncio.wait({step}, timeout=SIGN_S)
            if not done:
                is_first = False
                yield _SIGN
                continue
            try:
                line = step.result()
            except Exception as error:
                if is_first:
                    raise
                yield _error(error)
                return
            if line is None:
                return
            is_first = False
            yield line
            step = asyncio.ensure_future(_next(values))
    finally:
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        await values.aclose()


async def _next(values: AsyncGenerator[object]) -> bytes | None:
    async for value in values:
        return _line(value)
    return None


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _error(error: Exception) -> bytes:
    """Return the last line of a response whose work has failed."""
    if not isinstance(error, TenutoError):
        logger.error("an HTTP request failed", exc_info=error)
        error = unexpected()
    return _line({"type": "error", "error": for_peers(error).problem()})
