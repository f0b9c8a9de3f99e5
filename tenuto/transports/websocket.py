"""WebSocket: carries frames between an ASGI connection and its session.

Layer: transports.

`session` carries out frames. This module has the handshake, the authentication by `auth` frames, the sender and the
end of a socket. It uses as few tasks as possible: the ASGI call receives, and the component that has data to send
drives the writing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any

import msgspec
from starlette.types import Message, Receive, Send

from tenuto.core.errors import Busy, InvalidRequest, TenutoError, TooMany, Unauthenticated
from tenuto.hub.access.identity import Scope, header
from tenuto.hub.access.visitors import cookie_headers, visit_in
from tenuto.hub.hub import HubCore
from tenuto.transports.access import Credentials, check_serving, identify, known_identity
from tenuto.transports.codec import (
    CROWDED,
    DRAINED,
    EXPIRED,
    FAILED,
    FRAME_TOO_LARGE,
    MISUSED,
    NARROWED,
    UNAUTHENTICATED,
    ref_in,
)
from tenuto.transports.operations import AuthFrame
from tenuto.transports.origin import expect_introduction, is_by_cookie, is_by_star
from tenuto.transports.sender import FAREWELL_S, DirectSender, Heartbeats, Sender, TaskSender
from tenuto.transports.session import PING_S, Session

SUBPROTOCOL = "tenuto.v1"

AUTH_TIMEOUT_S = 5.0  # time in which a socket without credentials in its upgrade request must send `auth`
AUTH_BYTES = 8 * 1024  # limit of a frame with a token
REFUSED_PAUSE_S = 0.05  # pause before the next frame of a client beyond its rate, because a refusal costs time, too
# Sockets that wait for their `auth` frame. They cost little, and only for seconds; `tenuto serve` limits them by
# address.
MAX_UNAUTHENTICATED = 1_000

_auth = msgspec.json.Decoder(AuthFrame)


class Sockets:
    """All sockets of a hub: admits them, and closes them when viewers must leave."""

    def __init__(self, hub: HubCore, heartbeats: Heartbeats) -> None:
        self._hub = hub
        self._heartbeats = heartbeats
        self._open: set[Socket] = set()
        self._unauthenticated: set[Socket] = set()  # those that wait for their `auth` frames

    async def admit(self, scope: Scope) -> Credentials:
        """Return the credentials of a new socket, which may still have to send `auth`.

        Raises Draining, StoreUnavailable, InvalidRequest, Unauthenticated, Forbidden, TooMany, Busy.
        """
        await check_serving(self._hub)
        offered = scope.get("subprotocols", ())
        if offered and SUBPROTOCOL not in offered:
            raise InvalidRequest(f"the subprotocol must be {SUBPROTOCOL}, got {', '.join(offered)[:100]!r}")
        credentials = await self._credentials(scope)
        is_bounded = credentials.is_known or expect_introduction(scope, 2 * AUTH_TIMEOUT_S)  # so that ours ends first
        if not is_bounded and len(self._unauthenticated) >= MAX_UNAUTHENTICATED:
            raise Busy(
                f"server has {MAX_UNAUTHENTICATED} sockets that are not authenticated yet, which is the limit; try "
                "again"
            )
        return credentials

    async def _credentials(self, scope: Scope) -> Credentials:
        """Return the credentials of an upgrade. A cookie refuses no page, which may have a token for its `auth` frame:
        none counts whose session has ended, whose person is beyond a limit, or whose page only `*` allows.
        """
        unknown = Credentials(self._hub, scope, None)
        if is_by_star(self._hub, scope):
            return unknown
        is_by_header = header(scope, b"authorization") is not None
        try:
            identity = await (identify if is_by_header else known_identity)(self._hub, scope)
            if identity is not None:
                credentials = Credentials(self._hub, scope, identity)
                credentials.is_ambient = (
                    is_by_cookie(self._hub, scope) or visit_in(scope, self._hub.authenticate).is_ambient
                )
                credentials.take_slot()
                return credentials
        except (Unauthenticated, TooMany) as error:
            if is_by_header:
                raise
            unknown.refusal = error if isinstance(error, TooMany) else None
        return unknown

    async def serve(self, credentials: Credentials, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the socket, and run it until its end."""
        try:
            subprotocol = SUBPROTOCOL if scope.get("subprotocols") else None
            headers = cookie_headers(scope)
            await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
            socket = Socket(self._hub, credentials, send, self._unauthenticated)
            self._open.add(socket)
            slot = self._heartbeats.add(socket, int(PING_S))
            try:
                if self._hub.viewing.is_over:  # from the time of the accept
                    socket.session.drain()
                await socket.sender.carry(receive)
            finally:
                self._open.discard(socket)
                await socket.close()
                self._heartbeats.remove(socket, slot)
        finally:
            credentials.leave()

    def drain(self) -> None:
        """Close all sockets because the hub drains, or is cut off from its store.

        A socket without a channel has no feed that would notify it.
        """
        for socket in tuple(self._open):
            socket.session.drain()


_CODES: dict[type[TenutoError], int] = {TooMany: CROWDED, Busy: FAILED, TenutoError: FAILED}  # else UNAUTHENTICATED


def _auth_in(text: str) -> AuthFrame | None:
    """Return the `auth` frame in `text`, or None for any other frame."""
    if '"auth"' not in text or len(text) > AUTH_BYTES:
        return None
    try:
        return _auth.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


@dataclass(slots=True, eq=False)
class Socket:
    """One connection: a session, and the sender of its frames."""

    hub: InitVar[HubCore]
    credentials: Credentials
    send: InitVar[Send]
    _unauthenticated: set[Socket]  # has this one until its `auth` frame was verified
    sender: Sender = field(init=False)
    session: Session = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _room: asyncio.Future[None] | None = None  # done when another frame may be received; None: no wait for that
    _pause_s: float = 0.0  # pause before the next frame is received
    _is_renewing: bool = False  # an `auth` frame is being verified
    _is_due: bool = False  # `_pump` is scheduled
    _is_closing: bool = False  # a timer ends the sender, whose peer does not read the last frames
    _is_restart: bool = False  # the server has closed the connection, because it restarts
    _auth_timer: asyncio.TimerHandle | None = None  # ends the wait for the first frame, `auth`; None: no such wait

    def __post_init__(self, hub: HubCore, send: Send) -> None:
        credentials = self.credentials
        sender_class = DirectSender if hub.drive_by_hand else TaskSender
        self.sender = sender_class(send, self)
        self.session = Session(
            hub,
            credentials,
            last_received_s=self._loop.time(),
            wake=self._wake,
            released=self._pump,
            start_task=self._start_task,
        )
        credentials.watch(self._expire)
        if not credentials.is_known:
            self._unauthenticated.add(self)
            late = (UNAUTHENTICATED, "unauthenticated") if credentials.refusal is None else (CROWDED, "too_many")
            self._auth_timer = self._loop.call_later(AUTH_TIMEOUT_S, self._expire, *late)

    # Calls of the sender

    async def received(self, message: Message) -> bool:
        """Pass a frame to the session, and wait until it can take another one; return False if the peer has left."""
        if message["type"] != "websocket.receive":
            self._is_restart = message.get("code") == DRAINED  # uvicorn may stop before the hub knows of it
            return False
        text = message.get("text")
        if self._auth_timer is not None:
            await self._introduce(text)
        elif self.session.closing is None and (text is None or self._is_for_session(text)):
            self.session.receive(text, now_s=self._loop.time())
        del message, text  # the wait may be long
        if self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            await asyncio.sleep(pause_s)
        # until enough requests have been carried out and their responses sent, and a first `auth` is verified
        while not self.sender.is_over and (self.session.is_full or (self._is_renewing and self.credentials.is_ambient)):
            self._room = self._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        return True

    # Calls of the heartbeats

    def send_heartbeat(self) -> None:
        """Send a ping, and close the socket of a peer that has been silent, or has read nothing, for too long."""
        has_read = self.sender.check_reader()
        if self.credentials.is_known:
            self.session.keep_alive(now_s=self._loop.time(), has_read=has_read)
        if self.credentials.is_expired:  # check here, too: the timers of a suspended machine do not run
            self._expire()
        self._pump()

    # Authentication

    async def _introduce(self, text: str | None) -> None:
        """Authenticate the peer by its first frame, which must be `auth`, or close the socket."""
        session = self.session
        if session.closing is not None:
            return
        self._end_auth_timer()
        if text is None:
            session.end(MISUSED, "invalid_request")
        elif len(text) > AUTH_BYTES:
            session.end(FRAME_TOO_LARGE, "too_large")
        elif (auth := _auth_in(text)) is not None:
            await self._renew(auth)
        else:
            error = self.credentials.refusal or Unauthenticated(
                "this hub accepts no cookie of this client, if it has one, and got no token: sign in, or pass a token "
                "to the client (the option or attribute `token`); a socket sends it in its first frame, `auth`"
            )
            session.refuse(ref_in(text.encode(errors="replace")), error)
            session.end(_CODES.get(type(error), UNAUTHENTICATED), error.code)
        self._unauthenticated.discard(self)

    def _end_auth_timer(self) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
            self._auth_timer = None

    def _is_for_session(self, text: str) -> bool:
        """Return whether the session handles this frame. `auth` frames and refused ones are handled here."""
        credentials, session = self.credentials, self.session
        auth = _auth_in(text)
        if auth is None and credentials.is_expired:  # an `auth` frame may renew it
            self._expire()
            return False
        try:
            if credentials.is_counted:
                credentials.count_request(len(text) if text.isascii() else len(text.encode(errors="surrogatepass")))
            if auth is not None and self._is_renewing:
                raise TooMany("the previous `auth` frame of this socket is still being verified; wait for its response")
        except TooMany as error:
            self._pause_s = REFUSED_PAUSE_S
            session.refuse(auth.ref if auth is not None else ref_in(text.encode(errors="replace")), error)
            return False
        if auth is None:
            credentials.is_ambient = False
            return True
        self._is_renewing = True
        self._start_task(self._renew(auth))
        return False

    async def _renew(self, auth: AuthFrame) -> None:
        """Verify a token and respond; close the socket if no identity counts then, or the new one grants less."""
        session, credentials = self.session, self.credentials
        before = credentials.identity if credentials.is_known and not credentials.is_ambient else None
        try:
            identity = await credentials.renew(auth.token)  # from now on also that of the session
        except TenutoError as error:
            session.refuse(auth.ref, error)
            if before is None:  # also if the page means another client than its browser shows
                session.end(_CODES.get(type(error), UNAUTHENTICATED), error.code)
            return
        finally:
            self._is_renewing = credentials.is_ambient = False
            self._wake()
        session.respond({"type": "ok", "ref": auth.ref, "you": credentials.describe()})
        if session.closing is None and before is not None and not identity.includes(before):
            # The client reconnects and requests its attachments, presence and work again: each is checked against the
            # new identity, which lacks a capability of the old one.
            session.end(NARROWED, "forbidden")

    def _expire(self, code: int = EXPIRED, reason: str = "unauthenticated") -> None:
        """Close the socket because its identity has expired: later events need a new token; or it has had none."""
        if self.session.closing is None:
            self.session.end(code, reason)

    # Calls of the session

    def _wake(self) -> None:
        """Send soon. Responses come in bursts, so they are sent together after the burst."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._pump)

    def _start_task(self, job: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pump(self) -> None:
        """Write frames as long as there are some and the peer reads them."""
        self._is_due = False
        sender, session = self.sender, self.session
        while not (sender.is_busy or sender.is_over) and (frame := session.frame_to_send()) is not None:
            sender.write_frame(frame)
        if session.closing is not None and not sender.is_over:
            if not sender.is_busy:
                code, reason = session.closing
                sender.end({"type": "websocket.close", "code": code, "reason": reason})
            elif not self._is_closing:
                self._is_closing = True  # set before the close: do not wait for a peer that does not read
                self._loop.call_later(FAREWELL_S, partial(sender.end, patience_s=0))
        if self._room is not None and not self._room.done() and (not session.is_full or sender.is_over):
            self._room.set_result(None)

    freed = _pump  # for the sender, when it is free again

    async def close(self) -> None:
        """Close the session, and wait for the tasks of the socket, because the connection has ended."""
        self._end_auth_timer()
        self._unauthenticated.discard(self)
        self.session.close(keeps_leases=self._is_restart)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
