"""HTTP: everything that a client asks and is answered at once.

Layer: transports.

The table at the end is the one of `docs/protocol.md`, "HTTP"; each handler checks the
identity, decodes, asks the hub, and says what the answer says. Streams and long polls are routed before this
(`transports.app`): they outlive their request objects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from holdfast.core.errors import (
    Draining,
    Forbidden,
    HoldfastError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
    TooLarge,
    UnsupportedMediaType,
)
from holdfast.core.model import Part
from holdfast.core.names import check_channel, check_id, command_key
from holdfast.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    DeleteMessage,
    EnterChannel,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    SendCommand,
    SendSignal,
    TakeOver,
    UpdateMessage,
)
from holdfast.core.requests import Request as Asked
from holdfast.hub.committer import Result
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity
from holdfast.hub.presence import check_member, check_signal
from holdfast.transports.access import identify, not_local
from holdfast.transports.codec import answer_fields, decode, for_peers, unexpected
from holdfast.transports.credentials import left_s
from holdfast.transports.problem import problem_body, problem_headers
from holdfast.transports.query import Query, whole
from holdfast.transports.tickets import create_ticket

logger = logging.getLogger("holdfast.transports")

BODY_TIMEOUT_S = 60.0  # for a whole body of at most a megabyte
READY_TIMEOUT_S = 5.0  # probes give up after seconds, too
MAX_NUMBER = 2**53  # what a browser's numbers hold
_NO_STORE = {"cache-control": "no-store"}
T = TypeVar("T")

_create = msgspec.json.Decoder(CreateMessage)
_append = msgspec.json.Decoder(AppendText)
_part = msgspec.json.Decoder(dict[str, Any])  # a part; the core checks it
_update = msgspec.json.Decoder(UpdateMessage)
_finish = msgspec.json.Decoder(FinishMessage)
_lease = msgspec.json.Decoder(RenewLease)
_take_over = msgspec.json.Decoder(TakeOver)
_command = msgspec.json.Decoder(SendCommand)
_reply = msgspec.json.Decoder(ReplyCommand)
_presence = msgspec.json.Decoder(EnterChannel)
_signal = msgspec.json.Decoder(SendSignal)


class Call:
    """One request, with who asks and what its path names."""

    def __init__(self, hub: HubCore, request: Request, identity: Identity) -> None:
        """Raises InvalidName. `channel` and `id` are empty where the path names none."""
        self.hub = hub
        self.request = request
        self.identity = identity
        self.channel = check_channel(request.path_params["channel"]) if "channel" in request.path_params else ""
        message_id = request.path_params.get("id")  # of a message, or of a command
        self.id = check_id(message_id) if message_id is not None else ""

    def check(self, capability: str) -> None:
        """Raises Forbidden unless the identity may do this on the channel."""
        self.identity.check(capability, self.channel)

    def query(self) -> Query:
        """The query of the request. Raises InvalidRequest."""
        return Query(self.request.scope)

    async def body(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The decoded body. Raises TooLarge as soon as it passes the limit, InvalidRequest, InvalidText."""
        return decode(await read_body(self.request, self.hub.limits.request_bytes), decoder)

    async def ask(self, message_id: str, asked: Asked, *, status: int = 200) -> Response:
        """Ask the hub and say what it answered."""
        answer = await self.hub.ask(self.channel, message_id, asked, caller_of(self.hub, self.identity, self.channel))
        note_answer(self.hub, self.identity, answer)
        return _json(answer_fields(asked, answer), status=_status(asked, answer, status))


def caller_of(hub: HubCore, identity: Identity, channel: str) -> Caller:
    """`identity` as the one who asks something of `channel`."""
    caller = identity.caller(channel)
    return caller if hub.rates.may_begin(identity) else replace(caller, may_begin=False)


def note_answer(hub: HubCore, identity: Identity, answer: Result) -> None:
    """Count the channel that began with what was stored, if one did."""
    if answer.created and answer.serial == 1:
        hub.rates.began(identity)


def _status(asked: Asked, answer: Result, status: int) -> int:
    return 201 if isinstance(asked, CreateMessage | SendCommand) and answer.created else status


Handler = Callable[[Call], Awaitable[Response]]


async def create(call: Call) -> Response:
    """`POST …/messages`."""
    call.check("publish")
    asked = await call.body(_create)
    check_create(asked, call.identity, call.channel)
    return await call.ask(call.hub.new_id() if asked.id is None else check_id(asked.id), asked)


def check_create(asked: CreateMessage, identity: Identity, channel: str) -> None:
    """Raises Forbidden where creating this message takes more than `publish`."""
    if asked.role != "user" or asked.status == "streaming" or _is_of_writers(asked.parts):
        identity.check("append", channel)


def check_update(asked: UpdateMessage, identity: Identity, channel: str) -> None:
    """Raises Forbidden where what the message is to hold takes more than `publish`."""
    if _is_of_writers(asked.parts):
        identity.check("append", channel)


def _is_of_writers(parts: list[Part] | None) -> bool:
    """Are there parts that nobody may put into a message by hand?"""
    return any(part.get("type") in ("tool", "source") for part in parts or ())  # of any type: it is not checked yet


async def append(call: Call) -> Response:
    """`POST …/append`."""
    call.check("append")
    asked = await call.body(_append)
    return await call.ask(call.id, asked)


async def put_part(call: Call) -> Response:
    """`PUT …/parts/{n}`: the body is the part itself, the rest stands in the query."""
    call.check("append")
    index = whole(call.request.path_params["n"], "the number of a part", 0, MAX_NUMBER)
    query = call.query()
    generation = query.whole("generation", 1, MAX_NUMBER)
    part: Part = await call.body(_part)
    asked = PutPart(index=index, part=part, generation=generation, request=query.text("request"))
    return await call.ask(call.id, asked)


async def update(call: Call) -> Response:
    """`PATCH …/messages/{id}`."""
    call.check("publish")
    asked = await call.body(_update)
    check_update(asked, call.identity, call.channel)
    return await call.ask(call.id, asked)


async def finish(call: Call) -> Response:
    """`POST …/finish`."""
    call.check("append")
    asked = await call.body(_finish)
    return await call.ask(call.id, asked)


async def lease(call: Call) -> Response:
    """`POST …/lease`."""
    call.check("append")
    asked = await call.body(_lease)
    return await call.ask(call.id, asked)


async def take_over(call: Call) -> Response:
    """`POST …/takeover`."""
    call.check("append")
    asked = await call.body(_take_over)
    return await call.ask(call.id, asked)


async def send_command(call: Call) -> Response:
    """`POST …/commands`."""
    call.check("command")
    asked = await call.body(_command)
    command_id = call.hub.new_id() if asked.id is None else check_id(asked.id)
    return await call.ask(command_key(command_id), asked)


async def reply_command(call: Call) -> Response:
    """`POST …/commands/{id}/reply`."""
    call.check("command")
    asked = await call.body(_reply)
    return await call.ask(command_key(call.id), asked)


async def enter(call: Call) -> Response:
    """`PUT …/presence/{id}`: here without a socket, for as long as the lease."""
    call.check("presence")
    member_id = check_member(call.id, call.identity.client_id)
    asked = await call.body(_presence)
    await call.hub.start()
    # A socket is closed when its identity ends; a lease has nobody else to end it.
    lease_s = min(asked.lease_s, left_s(call.hub, call.identity))
    call.hub.presence.lease(call.channel, member_id, asked.data, lease_s)
    return Response(status_code=204, headers=_NO_STORE)


async def leave(call: Call) -> Response:
    """`DELETE …/presence/{id}`."""
    call.check("presence")
    member_id = check_member(call.id, call.identity.client_id)
    await call.hub.start()
    call.hub.presence.end_lease(call.channel, member_id)
    return Response(status_code=204, headers=_NO_STORE)


async def members(call: Call) -> Response:
    """`GET …/presence`."""
    call.check("subscribe")
    return _json(await call.hub.members(call.channel))


async def signal(call: Call) -> Response:
    """`POST …/signals`."""
    call.check("presence")
    asked = await call.body(_signal)
    call.hub.rates.signal(call.identity)
    check_signal(asked.name)
    await call.hub.signal(call.channel, asked.name, asked.data, by=call.identity.client_id)
    return Response(status_code=202, headers=_NO_STORE)


async def delete(call: Call) -> Response:
    """`DELETE …/messages/{id}`."""
    call.check("publish")
    await call.hub.ask(call.channel, call.id, DeleteMessage(), call.identity.caller(call.channel))
    return Response(status_code=204, headers=_NO_STORE)


async def read(call: Call) -> Response:
    """`GET …/messages/{id}`."""
    call.check("history")
    message, cursor = await call.hub.read(call.channel, call.id)
    return _json({"message": message, "cursor": cursor})


async def page(call: Call) -> Response:
    """`GET …/messages`."""
    call.check("history")
    query = call.query()
    limits = call.hub.limits
    before = query.whole("before", 0, MAX_NUMBER)
    limit = query.whole("limit", 1, limits.history)
    wanted = limits.default_history if limit is None else limit
    return _json(await call.hub.page(call.channel, before=before, limit=wanted))


async def read_channel(call: Call) -> Response:
    """`GET /v1/channels/{channel}`."""
    call.check("history")
    return _json(await call.hub.info(call.channel))


async def delete_channel(call: Call) -> Response:
    """`DELETE /v1/channels/{channel}`."""
    call.check("admin")
    await call.hub.delete_channel(call.channel)
    return Response(status_code=204, headers=_NO_STORE)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body, counted while it comes. Raises UnsupportedMediaType, TooLarge, InvalidRequest when it never ends.

    What a refused peer still sends is left to the server, which throws it away.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the body must be JSON, with Content-Type: application/json")
    if int(_digits(request.headers.get("content-length"))) > limit_bytes:
        raise _too_large(limit_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                size += len(piece)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                pieces.append(piece)
    except TimeoutError:
        raise InvalidRequest(f"the body did not come within {BODY_TIMEOUT_S:.0f} s") from None
    return b"".join(pieces)


def _digits(text: str | None) -> str:
    return text[:18] if text is not None and text.isascii() and text.isdigit() else "0"


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"a request has at most {limit_bytes} bytes", limit=limit_bytes)


def _json(value: object, *, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json", headers=_NO_STORE)


def problem_response(error: HoldfastError) -> Response:
    """`error` as an answer."""
    error = for_peers(error)
    return Response(problem_body(error), status_code=error.status, headers=problem_headers(error))


# What anybody may see

Plain = Callable[[HubCore, Request], Awaitable[Response]]


async def health(hub: HubCore, request: Request) -> Response:
    """`/healthz`: the process lives and answers."""
    return _json({"status": "ok"})


async def ready(hub: HubCore, request: Request) -> Response:
    """`/readyz`: the store answers and requests are welcome. Raises Draining, StoreUnavailable, …"""
    await hub.start()
    if hub.is_draining:
        raise Draining("the server is leaving")
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await hub.info("readyz")  # any channel, whether it exists or not
    except TimeoutError:
        raise StoreUnavailable("the store did not answer in time") from None
    return _json({"status": "ready"})


async def metrics(hub: HubCore, request: Request) -> Response:
    """`/metrics`, in Prometheus' text form; on loopback and not through a proxy, or for `admin` of all channels."""
    scope = dict(request.scope)
    if not_local(scope) and not (await identify(hub, scope)).has_everywhere("admin"):
        raise Forbidden("/metrics answers on loopback, and elsewhere to whoever is `admin` of all channels")
    lines = [f"holdfast_{name} {value}\n" for name, value in sorted(hub.stats().items())]
    return Response("".join(lines), media_type="text/plain; version=0.0.4; charset=utf-8", headers=_NO_STORE)


_MESSAGE = "/v1/channels/{channel}/messages/{id}"
CALLS: dict[str, dict[str, Handler]] = {
    "/v1/channels/{channel}": {"GET": read_channel, "DELETE": delete_channel},
    "/v1/channels/{channel}/messages": {"GET": page, "POST": create},
    _MESSAGE: {"GET": read, "PATCH": update, "DELETE": delete},
    f"{_MESSAGE}/append": {"POST": append},
    f"{_MESSAGE}/parts/{{n}}": {"PUT": put_part},
    f"{_MESSAGE}/finish": {"POST": finish},
    f"{_MESSAGE}/lease": {"POST": lease},
    f"{_MESSAGE}/takeover": {"POST": take_over},
    "/v1/channels/{channel}/commands": {"POST": send_command},
    "/v1/channels/{channel}/commands/{id}/reply": {"POST": reply_command},
    "/v1/channels/{channel}/presence": {"GET": members},
    "/v1/channels/{channel}/presence/{id}": {"PUT": enter, "DELETE": leave},
    "/v1/channels/{channel}/signals": {"POST": signal},
    "/v1/tickets": {"POST": create_ticket},
}
PLAIN: dict[str, Plain] = {"/healthz": health, "/readyz": ready, "/metrics": metrics}
# GET is answered before this, by `transports.app`; what comes here has another method.
STREAMS = ("/v1/channels/{channel}/events", "/v1/channels/{channel}/poll", f"{_MESSAGE}/events")


class Endpoint:
    """What answers one path: an ASGI app, so that every method comes here and every error becomes a problem."""

    def __init__(self, methods: Iterable[str], answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._methods = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return  # nobody is left to answer
        except HoldfastError as error:
            response = problem_response(error)
        except Exception:
            logger.exception("a request failed")
            response = problem_response(unexpected())
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        method = request.method
        if method not in self._methods:
            allow = self._methods
            raise MethodNotAllowed(f"{method[:20]} is not for this path, but {', '.join(allow)}", allow=allow)
        if method == "OPTIONS":
            return Response(status_code=204, headers={**_NO_STORE, "allow": ", ".join(self._methods)})
        return await self._answer(request)


def routes(hub: HubCore) -> list[Route]:
    """The routes of everything that is answered at once."""
    return [
        *(Route(path, _calls(hub, handlers)) for path, handlers in CALLS.items()),
        *(Route(path, _plain(hub, handler)) for path, handler in PLAIN.items()),
        *(Route(path, Endpoint(["GET"], _not_here)) for path in STREAMS),
    ]


def _calls(hub: HubCore, handlers: dict[str, Handler]) -> Endpoint:
    async def answer(request: Request) -> Response:
        identity = await identify(hub, dict(request.scope))
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](Call(hub, request, identity))

    return Endpoint(handlers, answer)


def _plain(hub: HubCore, handler: Plain) -> Endpoint:
    async def answer(request: Request) -> Response:
        return await handler(hub, request)

    return Endpoint(["GET"], answer)


async def _not_here(request: Request) -> Response:
    raise AssertionError("streams are answered by transports.app")


def no_such_path() -> NotFound:
    """The error of a path that is none of ours."""
    return NotFound("there is nothing at this path")
