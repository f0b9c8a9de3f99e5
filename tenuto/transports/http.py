"""HTTP requests that get one response: a result at once, or the lines of longer work (`LinesResponse`).

Layer: transports.

The router is built from the table of operations (`operations`); this module has one handler for each operation. A
handler runs after the identity and the capabilities were checked: it decodes the body, submits a request to the hub,
and encodes the result. `transports.app` routes streams and long polls before this module, because they outlive their
request objects.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from anyio import CancelScope
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tenuto._version import __version__
from tenuto.core.errors import (
    Draining,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NoVerifier,
    NoVisitors,
    StoreUnavailable,
    TenutoError,
    TooLarge,
    UnsupportedMediaType,
    shown,
)
from tenuto.core.model import Part
from tenuto.core.names import check_channel, check_id
from tenuto.core.requests import DeleteMessage, EnterChannel, PutPart, SendSignal
from tenuto.core.requests import Request as HubRequest
from tenuto.core.visitor_ids import STEM, is_visitor
from tenuto.hub.access.identity import Scope as HubScope
from tenuto.hub.access.identity import headers_of
from tenuto.hub.access.rates import UNCOUNTED
from tenuto.hub.access.tickets import START_S
from tenuto.hub.access.visitors import VisitorVerifier, visit_in
from tenuto.hub.hub import HubCore
from tenuto.hub.keep.archive import DEFAULT_LISTED, MAX_LISTED, read_conversations
from tenuto.hub.lifecycle import Viewing
from tenuto.hub.pending import Result
from tenuto.stores.sqlite.backup import receipt_of
from tenuto.transports.access import (
    EXPECTED_BYTES,
    Credentials,
    check_operation,
    check_serving,
    declared_bytes,
    event_bytes,
    expected_bytes,
    identify,
    key_of,
    member_of,
    start_hub,
)
from tenuto.transports.codec import (
    Query,
    decode,
    for_peers,
    is_operator,
    known_error,
    problem_headers,
    result_fields,
    whole,
)
from tenuto.transports.operations import (
    BY_NAME,
    OF_FILES,
    OPERATIONS,
    SOCKET_PATH,
    BackupFile,
    CreateTicket,
    ForgetClient,
    ImportFile,
    NoFields,
    Operation,
)
from tenuto.transports.origin import check_peer, is_own_origin
from tenuto.transports.sender import SEND_TIMEOUT_S, abort_if_unread, break_off

BODY_TIMEOUT_S = 60.0  # time in which the whole body, at most a megabyte, must arrive
NO_STORE = {"cache-control": "no-store"}


# The body of a part is only a part of the request, which the core checks. All others are the request itself.
_BODIES: dict[str, msgspec.json.Decoder[Any]] = {
    one.name: msgspec.json.Decoder(one.request if one.name != "part" else dict[str, Any])
    for one in (*OPERATIONS, *OF_FILES)
    if one.request is not None
}


class Call:
    """One request for one operation, with its caller's identity and the names in its path."""

    opened = UNCOUNTED  # the body, with the bytes that have arrived
    result: Result | None = None  # result of the submitted request

    def __init__(self, hub: HubCore, operation: Operation, request: Request, credentials: Credentials) -> None:
        """Read the names in the path; `channel` and `id` are empty if it has none. Raises InvalidName, Forbidden."""
        self.hub = hub
        self.operation = operation
        self.request = request
        self.credentials = credentials
        self.identity = credentials.identity
        self.channel = check_channel(request.path_params["channel"]) if "channel" in request.path_params else ""
        message_id = request.path_params.get("id")  # id of a message, command or member
        self.id = check_id(message_id) if message_id is not None else ""
        if self.channel or operation.is_for_all:  # else the handler checks: no channel is in the path
            check_operation(self.identity, operation, self.channel)

    async def body(self) -> Any:
        """Return the decoded body. Raises TooLarge or TooMany as soon as it exceeds a limit, Draining, …"""
        limit_bytes = self.hub.limits.request_bytes
        self.opened = self.credentials.open_body(limit_bytes)
        with self.opened:
            data = await read_body(self.request, limit_bytes, self.opened.grow)
        await start_hub(self.hub)  # the app may have closed it while the body arrived
        return decode(data, _BODIES[self.operation.name])

    async def submit(self, request: HubRequest) -> Response:
        """Submit a request to the hub and return its result as a response."""
        key = key_of(self.hub, self.identity, self.channel, request, self.id or getattr(request, "id", None))
        result = await self.hub.ask(self.channel, key, request, self.credentials.caller(self.channel))
        self.credentials.count_new_channel(result)
        status = 200 if self.operation.status == 201 and not result.created else self.operation.status  # 200: a repeat
        self.result = result
        return json_response(result_fields(request, result), status=status)

    def empty(self) -> Response:
        """Return a response without a body, with the operation's status."""
        return Response(status_code=self.operation.status, headers=NO_STORE)


async def read_body(request: Request, limit_bytes: int, arrived: Callable[[int], None] = UNCOUNTED.grow) -> bytearray:
    """Return the body. While it arrives, `arrived` is called with the size of each piece, and may raise.

    Raises UnsupportedMediaType, TooLarge, and InvalidRequest for a body that does not end in time. The server discards
    the bytes that a refused peer still sends.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"a body must be JSON: send Content-Type: application/json, not {media_type[:99]!r}")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "utf-8"):  # the last is a charset: a common mistake, but harmless
        raise UnsupportedMediaType(f"the body must be plain JSON: send it without Content-Encoding: {encoding[:100]}")
    length = request.headers.get("content-length", "")
    declared = int(length[:18]) if length.isascii() and length.isdigit() else 0
    if declared > limit_bytes:
        raise _too_large(declared, limit_bytes)
    body = bytearray()  # it grows in place: a list of the pieces would need the memory of a large body twice
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                arrived(len(piece))
                if len(body) + len(piece) > limit_bytes:
                    raise _too_large(len(body) + len(piece), limit_bytes)
                body += piece
    except TimeoutError:
        raise InvalidRequest(
            f"the body of the request did not end within {BODY_TIMEOUT_S:.0f} s; send it without pauses"
        ) from None
    if not body and "upgrade" in request.headers and (declared or "transfer-encoding" in request.headers):
        offered = request.headers["upgrade"][:40]
        raise InvalidRequest(
            f"the server (uvicorn does so) has lost the body of a request with the header Upgrade: {offered!r}; let "
            "the client send none, as with HttpClient.Version.HTTP_1_1 in Java, or use `tenuto serve`"
        )
    return body


def _too_large(size: int, limit_bytes: int) -> TooLarge:
    text = f"the body of the request has {size} bytes or more, the limit is {limit_bytes} (Limits.request_bytes)"
    return TooLarge(f"{text}; send it in several requests", limit=limit_bytes)


def json_response(value: object, *, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json", headers=NO_STORE)


async def inspect(call: Call) -> Response:
    """Return the version, the process id and the counters."""
    return json_response({"version": __version__, "pid": os.getpid(), "counters": call.hub.stats()})


async def _forgotten(hub: HubCore, wanted: ForgetClient) -> AsyncGenerator[object]:
    """Remove what a person wrote; the last line has the counts."""
    found = await hub.archive.forget(wanted.client_id, channels=wanted.channels)
    yield {"type": "end", **msgspec.to_builtins(found)}


async def _damage(hub: HubCore, _: NoFields) -> AsyncGenerator[object]:
    """Check the store, with a line for each damaged part of it."""
    found = 0
    async with aclosing(hub.archive.verify()) as lines:
        async for damage in lines:
            found += 1
            yield {"type": "damage", "detail": damage}
    yield {"type": "end", "damaged": found}


async def _backed_up(hub: HubCore, wanted: BackupFile) -> AsyncGenerator[object]:
    """Write a backup; the last line has its size and its mark."""
    target = _absolute(wanted.path)
    await hub.backup(target, mb_per_s=wanted.mb_per_s)
    yield {"type": "end", **await asyncio.to_thread(receipt_of, target)}


async def _imported(hub: HubCore, wanted: ImportFile) -> AsyncGenerator[object]:
    """Import a file; the last line has the counts."""
    done = await hub.archive.import_file(_absolute(wanted.path), channel=wanted.channel, damaged=wanted.damaged)
    yield {"type": "end", **msgspec.to_builtins(done)}


def _absolute(path: str) -> Path:
    """Return a path that an operator sent. Raises InvalidRequest for a relative one: the server has another folder."""
    if not os.path.isabs(path):
        raise InvalidRequest(f"path on the control socket must be absolute, got {shown(path)}")
    return Path(path)


async def _respond_in_lines(work: Callable[[HubCore, Any], AsyncGenerator[object]], call: Call) -> Response:
    """Return the values of `work` as lines of JSON, with signs of life. Raises an error before the first line."""
    lines = with_signs(work(call.hub, await call.body()))
    first = await anext(lines)  # raises the errors that a response can still show
    return LinesResponse(call.hub.viewing, first, lines)


SIGN_S = 5.0  # time between two signs of life; proxies end a response that is silent for a minute
_SIGN = b"{}\n"


class LinesResponse(StreamingResponse):
    """Sends `first` and then the lines `rest`; for HEAD only the headers. A peer that stops reading is disconnected.

    An error of `rest` is the last line, of type `error`. A response that has not ended soon after the drain is cut.
    """

    def __init__(self, viewing: Viewing, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._viewing = viewing
        self._first = first
        self._rest = rest
        super().__init__(rest, headers=NO_STORE, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        self.body_iterator = self._lines(scope)  # in place of `rest`: HEAD has no lines
        try:
            async with aclosing(self._rest), self._viewing.responding():  # to the end: `begin` is not called
                await super().__call__(scope, receive, send_in_time)
        except (Draining, TimeoutError):  # the second is that of `send_in_time`
            break_off(receive)
            abort_if_unread(receive, lambda: True)  # soon, as while the hub drains

    async def _lines(self, scope: Scope) -> AsyncGenerator[bytes]:
        if scope["method"] == "HEAD":
            return
        yield self._first
        try:
            async for line in self._rest:
                yield line
        except Exception as error:
            refusal = for_peers(known_error(error, "an HTTP request failed"), scope)
            yield _line({"type": "error", "error": refusal.problem()})


async def with_signs(values: AsyncGenerator[object]) -> AsyncGenerator[bytes]:
    """Yield `values` as lines of JSON, and an empty object when none has come for five seconds."""
    step = asyncio.ensure_future(anext(values, None))  # of the next value; None at the end
    try:
        while True:
            done, _ = await asyncio.wait({step}, timeout=SIGN_S)
            if not done:
                yield _SIGN
                continue
            value = step.result()
            if value is None:
                return
            yield _line(value)
            step = asyncio.ensure_future(anext(values, None))
    finally:
        with CancelScope(shield=True):  # Starlette cancels again and again when a client has left
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            await values.aclose()


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


READY_TIMEOUT_S = 5.0  # shorter than the time after which the probes of orchestrators give up
MAX_NUMBER = 2**53  # largest integer that a browser's numbers represent exactly


Handler = Callable[[Call], Awaitable[Response]]


async def store(call: Call) -> Response:
    """Carry out an operation whose body is the request itself."""
    return await call.submit(await call.body())


async def put_part(call: Call) -> Response:
    """Put a part. The body is the part itself; the other fields are query parameters."""
    index = whole(call.request.path_params["n"], "the number of a part", 0, MAX_NUMBER)
    query = Query(call.request.scope)
    generation = query.whole("generation", 1, MAX_NUMBER)
    part: Part = await call.body()
    request = PutPart(index=index, part=part, generation=generation, request=query.text("request"))
    return await call.submit(request)


async def delete(call: Call) -> Response:
    await call.hub.ask(call.channel, call.id, DeleteMessage(), call.identity.caller(call.channel))
    return call.empty()


async def enter(call: Call) -> Response:
    """Make a member present without a socket, for the length of its lease."""
    member_id = member_of(call.identity, call.id)
    request: EnterChannel = await call.body()
    await call.hub.runtime.presence.read(call.channel)  # members at other nodes count for the limits, too
    # A socket closes when its identity expires. A lease has no socket, so it must not outlast the identity.
    lease_s = min(request.lease_s, call.credentials.left_s())
    call.hub.runtime.presence.lease(call.channel, member_id, request.data, lease_s)
    return call.empty()


async def leave(call: Call) -> Response:
    """End the presence of a member that has a lease."""
    member_id = member_of(call.identity, call.id)
    call.hub.runtime.presence.withdraw(call.channel, member_id)
    return call.empty()


async def members(call: Call) -> Response:
    return json_response(await call.hub.members(call.channel))


async def signal(call: Call) -> Response:
    """Send a signal to the present viewers."""
    request: SendSignal = await call.body()
    call.credentials.count_signal(request.name)
    await call.hub.signal(call.channel, request.name, request.data, by=call.identity.client_id)
    return call.empty()


async def read(call: Call) -> Response:
    """Return a message, and the cursor from which to follow it."""
    message, cursor = await call.hub.read(call.channel, call.id)
    return json_response({"message": message, "cursor": cursor})


async def page(call: Call) -> Response:
    query = Query(call.request.scope)
    limits = call.hub.limits
    before = query.whole("before", 0, MAX_NUMBER)
    limit = query.whole("limit", 1, limits.history)
    wanted = limits.default_history if limit is None else limit
    return json_response(await call.hub.history(call.channel, before=before, limit=wanted))


async def channels(call: Call) -> Response:
    """Return a page of the channels on which the caller has `history` or `admin`."""
    query = Query(call.request.scope)
    limit = query.whole("limit", 1, MAX_LISTED)
    return json_response(
        await call.hub.archive.channels(
            prefix=query.text("prefix") or "",
            after=query.text("after"),
            limit=DEFAULT_LISTED if limit is None else limit,
            patterns=call.identity.patterns(*call.operation.needs, *call.operation.instead),
        )
    )


async def read_channel(call: Call) -> Response:
    """Return the epoch, serial and cursor of a channel."""
    return json_response(await call.hub.info(call.channel))


async def export(call: Call) -> Response:
    """Return the lines of an export, as they are read."""
    lines = call.hub.archive.export(call.channel)
    first = await anext(lines)  # raises the errors that a response can still show
    return LinesResponse(call.hub.viewing, first, lines)


async def delete_channel(call: Call) -> Response:
    await call.hub.delete_channel(call.channel)
    return call.empty()


async def create_ticket(call: Call) -> Response:
    """Issue a ticket. Raises Forbidden unless the caller may subscribe to the channel."""
    request: CreateTicket = await call.body()
    ticket = call.hub.tickets.issue(call.identity, check_channel(request.channel))
    return json_response({"ticket": ticket, "expires_s": START_S}, status=call.operation.status)


ProblemForm = Callable[[dict[str, Any]], object]  # of a problem's fields


def problem_response(
    error: TenutoError, scope: Mapping[str, Any] | None = None, form: ProblemForm | None = None
) -> Response:
    """Return the HTTP response for `error`, with all details if the request with `scope` is an operator's.

    With `form` its body is `form` of the problem, as JSON.
    """
    error = for_peers(error, scope)
    headers, body = problem_headers(error), error.problem()
    if form is not None:
        headers["content-type"] = "application/json"
    return Response(msgspec.json.encode(form(body) if form else body), status_code=error.status, headers=headers)


# Endpoints for callers whose identity need not be known

OpenHandler = Callable[[HubCore, Request], Awaitable[Response]]


async def version(hub: HubCore, request: Request) -> Response:
    """Return the name and protocol version of this server, and the reason if it refuses this peer."""
    about: dict[str, Any] = {"server": "tenuto", "protocol": 1}
    try:
        check_peer(hub, dict(request.scope))
    except (NoVerifier, Forbidden) as error:
        about["problem"] = error.problem()
    response = json_response(about)
    # The browser client of another origin finds out with `no-cors` whether a server is here (`web/client/probe.js`).
    response.headers["cross-origin-resource-policy"] = "cross-origin"
    return response


async def health(hub: HubCore, request: Request) -> Response:
    """Respond that the process is alive."""
    return json_response({"status": "ok"})


async def ready(hub: HubCore, request: Request) -> Response:
    """Respond that the store reads and writes and the hub accepts requests. Raises Draining, StoreUnavailable, …"""
    await check_serving(hub)
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await hub.info("readyz")  # any channel name will do; the channel need not exist
            await hub.runtime.committer.check_writes()
    except TimeoutError:
        raise StoreUnavailable(f"the store did not respond within {READY_TIMEOUT_S:.0f} s; check it") from None
    return json_response({"status": "ready"})


async def metrics(hub: HubCore, request: Request) -> Response:
    """Return the counters in the text format of Prometheus. Raises Forbidden."""
    if hub.authenticate is not None:  # without one `check_peer` has admitted only this machine
        check_operation(await identify(hub, dict(request.scope)), BY_NAME["metrics"], "")
    lines = [f"tenuto_{name} {value}\n" for name, value in sorted(hub.stats().items())]
    return Response("".join(lines), media_type="text/plain; version=0.0.4; charset=utf-8", headers=NO_STORE)


async def visitor(hub: HubCore, request: Request) -> Response:
    """Return the caller's id, channel and chats. Raises NoVisitors, and the errors of `identify`.

    A page asks this before it connects. The response sets the cookie of a new visitor. It also carries a token: for a
    page of another origin, because browsers block the cookies of other sites, and for a new visitor with `?token=1`,
    whose browser or frame keeps no cookies.
    """
    guests = hub.authenticate
    if not isinstance(guests, VisitorVerifier):
        raise NoVisitors(
            "this hub has no chats of a visitor's own: set Hub(authenticate=visitors()), or name the chat with "
            "the attribute channel of <tenuto-chat>"
        )
    scope = dict(request.scope)
    identity = await identify(hub, scope)
    await check_serving(hub)
    Credentials(hub, scope, identity).charge(EXPECTED_BYTES // 4)  # it reads the beginnings of many chats
    about: dict[str, Any] = {"id": identity.client_id, "channel": None, "chats": []}
    channel = f"{STEM}{identity.client_id}"
    is_foreign = any(not is_own_origin(hub, scope, origin) for origin in headers_of(scope, b"origin"))
    # a page that may keep no cookie says so; a visitor that has one gets no token, which a script could carry away
    needs_token = is_foreign or (visit_in(scope, guests).is_new and "token" in request.query_params)
    if identity.client_id is not None:
        if identity.has("publish", channel) and identity.has("subscribe", channel):
            about["channel"] = channel
        if is_visitor(identity.client_id) and needs_token:
            about["token"] = guests.token_of(identity.client_id)
        if not visit_in(scope, guests).is_new:  # a new visitor has none
            about["chats"] = [
                {"channel": one.channel, "title": one.title, "updated_ms": one.updated_ms}
                for one in await read_conversations(hub.store, identity, [channel, f"{channel}.*"])
            ]
    return json_response(about)


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("create", "append", "update", "finish", "lease", "takeover", "command", "reply"), store),
    "part": put_part,
    "delete": delete,
    "read": read,
    "history": page,
    "members": members,
    "enter": enter,
    "leave": leave,
    "signal": signal,
    "channels": channels,
    "read_channel": read_channel,
    "export": export,
    "delete_channel": delete_channel,
    "forget": partial(_respond_in_lines, _forgotten),
    "verify": partial(_respond_in_lines, _damage),
    "backup": partial(_respond_in_lines, _backed_up),
    "import": partial(_respond_in_lines, _imported),
    "inspect": inspect,
    "ticket": create_ticket,
}
_OPEN_HANDLERS: dict[str, OpenHandler] = {
    "version": version,
    "health": health,
    "ready": ready,
    "metrics": metrics,
    "visitor": visitor,
}


class Endpoint:
    """One path as an ASGI app: it gets the requests of every method. Its errors are those of the app.

    With `is_on_socket` the path exists on the control socket only.
    """

    def __init__(
        self, methods: Iterable[str], respond: Callable[[Request], Awaitable[Response]], *, is_on_socket: bool = False
    ) -> None:
        self._is_on_socket = is_on_socket
        self._methods = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_on_socket and not is_operator(scope):  # the control socket
            raise no_such_path(scope["path"])
        if scope["method"] not in self._methods:
            raise no_such_method(scope["method"], self._methods)
        if scope["method"] == "OPTIONS":
            response = Response(status_code=204, headers={**NO_STORE, "allow": ", ".join(self._methods)})
        else:
            try:
                response = await self._respond(Request(scope, receive))
            except OSError as error:  # of the operation: one of `send` would mean that the peer has gone
                raise RuntimeError("an HTTP request failed") from error
        await response(scope, receive, send)


def routes(hub: HubCore) -> list[Route]:
    """Return the routes of all paths."""
    by_path: dict[str, dict[str, Operation]] = {}
    for one in (*OPERATIONS, *OF_FILES):
        if one.path:
            by_path.setdefault(one.path, {})[one.method] = one
    return [Route(path, _endpoint(hub, operations)) for path, operations in by_path.items()]


def _endpoint(hub: HubCore, operations: dict[str, Operation]) -> Endpoint:
    """Return the endpoint of one path, whose `operations` are by method."""

    async def respond(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        if operation.kind == "open":
            return await _OPEN_HANDLERS[operation.name](hub, request)
        assert operation.kind == "call"  # `transports.app` serves GET of streams
        scope = dict(request.scope)
        credentials = Credentials(hub, scope, await identify(hub, scope))
        await start_hub(hub)
        call = Call(hub, operation, request, credentials)
        return await (_charged(call, scope) if credentials.is_counted else _HANDLERS[operation.name](call))

    return Endpoint(operations, respond, is_on_socket=any(one in OF_FILES for one in operations.values()))


async def _charged(call: Call, scope: HubScope) -> Response:
    """Carry out a call of a client whose traffic is counted."""
    hub, charge = call.hub, call.credentials.charge
    expected = expected_bytes(hub, call.operation, scope)
    charge(expected)
    # The server reads and discards the rest of a refused body.
    sent_bytes = declared_bytes(scope, hub.limits.request_bytes)
    response_bytes = events_bytes = 0
    try:
        response = await _HANDLERS[call.operation.name](call)
        response_bytes = len(response.body)  # no `LinesResponse`: those need `admin`, which is not counted
        if call.result is not None:
            events_bytes = event_bytes(hub, call.channel, call.result, max(call.opened.size, response_bytes))
        return response
    except ClientDisconnect:
        sent_bytes = call.opened.size
        raise
    finally:
        charge(-expected)
        charge(max(sent_bytes, call.opened.size) + response_bytes + events_bytes)


def no_such_path(path: str) -> NotFound:
    """Return the error for an unknown path, or for the path of sockets without an upgrade."""
    if path == SOCKET_PATH:
        return NotFound(f"path '{path}' is for WebSockets; a proxy must pass the headers Upgrade and Connection on")
    return NotFound(f"path {shown(path)} does not exist on this server; check where the hub is mounted")


def no_such_method(method: str, allow: list[str]) -> MethodNotAllowed:
    """Return the error for a method that a path does not support."""
    return MethodNotAllowed(f"method {method[:20]} is not supported at this path; use {', '.join(allow)}", allow=allow)
