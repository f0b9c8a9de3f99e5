"""WebSocket: carries frames between an ASGI connection and its session.

Layer: transports.

What frames mean is `session`'s; here are only the handshake, who is at the other end (`auth`),
the sender, and the end. As few tasks as possible: the ASGI call receives, and writing is driven by the component
that has data to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from starlette.types import Message, Receive, Send

from holdfast.core.errors import Busy, HoldfastError, InvalidRequest, TooMany, Unauthenticated
from holdfast.core.events import encode_json
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Scope
from holdfast.transports.access import header, known_identity
from holdfast.transports.chunks import Frames
from holdfast.transports.codec import for_peers
from holdfast.transports.credentials import Credentials
from holdfast.transports.frames import Ref
from holdfast.transports.heartbeats import Heartbeats
from holdfast.transports.sender import LAST_WORDS_S, DirectSender, Sender, TaskSender
from holdfast.transports.session import (
    DRAINED,
    FAILED,
    FRAME_TOO_LARGE,
    MISUSED,
    PING_S,
    Session,
    ref_in,
)
from holdfast.transports.sse import RETRY_MS, check_serving

SUBPROTOCOL = "holdfast.v1"

INTRODUCTION_S = 5.0  # for the first frame, where nothing at the upgrade said who asks
AUTH_BYTES = 8 * 1024  # of a frame with a token
MAX_UNKNOWN = 1_000  # sockets whose peers have not said who they are; they cost little, and for seconds only

# Close codes (`docs/protocol.md`, "Close codes"): from 4200 on, a client gets a new token first.
CROWDED = 4002
NARROWED = 4003
EXPIRED = 4200
UNKNOWN = 4201


class _Auth(Struct, frozen=True, kw_only=True, tag_field="type", tag="auth"):
    ref: Ref
    token: str


_auth = msgspec.json.Decoder(_Auth)


class Sockets:
    """All sockets of a hub: lets them in, and sends them away when the hub leaves."""

    def __init__(self, hub: HubCore, heartbeats: Heartbeats) -> None:
        self._hub = hub
        self._heartbeats = heartbeats
        self._frames = Frames()
        self._open: set[Socket] = set()
        self._unknown: set[Introduction] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def admit(self, scope: Scope) -> Credentials:
        """Who asks for a socket; it may yet have to say so. Raises Draining, Unauthenticated, Forbidden, TooMany, …"""
        await check_serving(self._hub)
        offered = scope.get("subprotocols", ())
        if offered and SUBPROTOCOL not in offered:
            raise InvalidRequest(f"the subprotocol is {SUBPROTOCOL}")
        identity = await known_identity(self._hub, scope)
        credentials = Credentials(self._hub, scope, identity)
        if identity is not None:
            credentials.sit()
        elif header(scope, b"authorization") is not None:
            raise Unauthenticated("nobody is known behind this request")
        elif len(self._unknown) >= MAX_UNKNOWN:
            raise Busy("too many sockets have not said yet who is there")
        return credentials

    async def serve(self, credentials: Credentials, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the socket and carry it to its end."""
        try:
            await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if scope.get("subprotocols") else None})
            if credentials.is_known or await self._is_introduced(credentials, receive, send):
                await self._carry(credentials, receive, send)
        finally:
            credentials.leave()

    async def _is_introduced(self, credentials: Credentials, receive: Receive, send: Send) -> bool:
        introduction = Introduction(self._hub, credentials, receive, send)
        self._unknown.add(introduction)
        try:
            return await introduction.is_made()
        finally:
            self._unknown.discard(introduction)

    async def _carry(self, credentials: Credentials, receive: Receive, send: Send) -> None:
        socket = Socket(self._hub, credentials, send, self._frames)
        self._open.add(socket)
        slot = self._heartbeats.add(socket, int(PING_S))
        try:
            if self._hub.is_draining:  # it began while we accepted
                socket.session.drain()
            await socket.sender.carry(receive)
        finally:
            self._open.discard(socket)
            await socket.close()
            self._heartbeats.remove(socket, slot)

    def drain(self) -> None:
        """Send all away: the hub leaves. (A socket without a channel has no feed that would tell it.)"""
        for socket in tuple(self._open):
            socket.session.drain()
        for introduction in tuple(self._unknown):
            introduction.give_up()


class Introduction:
    """A socket whose peer has yet to say who is there, with its first frame."""

    def __init__(self, hub: HubCore, credentials: Credentials, receive: Receive, send: Send) -> None:
        self._hub = hub
        self._credentials = credentials
        self._receive = receive
        self._send = send
        self._patience: asyncio.Timeout | None = None

    async def is_made(self) -> bool:
        """Wait for `auth`, and say whether it was good; if it was not, the socket is closed."""
        with contextlib.suppress(OSError):  # the peer has left
            try:
                async with asyncio.timeout(INTRODUCTION_S) as self._patience:
                    message = await self._receive()
            except TimeoutError:
                await self._close(DRAINED if self._hub.is_draining else UNKNOWN)
                return False
            finally:
                self._patience = None
            return message["type"] == "websocket.receive" and await self._is_good(message.get("text"))
        return False

    def give_up(self) -> None:
        """The hub leaves: wait no longer."""
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def _is_good(self, text: str | None) -> bool:
        if text is None:
            await self._close(MISUSED)
            return False
        if len(text) > AUTH_BYTES:
            await self._close(FRAME_TOO_LARGE)
            return False
        auth = _auth_in(text)
        try:
            if auth is None:
                raise Unauthenticated("nobody is known here yet: the first frame is `auth`, with a token")
            await self._credentials.renew(auth.token)
        except HoldfastError as error:
            refusal = {**for_peers(error).problem(), "type": "error", "ref": ref_in(text.encode(errors="replace"))}
            await self._tell(refusal)
            await self._close(_CODES.get(type(error), UNKNOWN), error.code)
            return False
        await self._tell({"type": "ok", "ref": auth.ref})
        return True

    async def _tell(self, frame: dict[str, Any]) -> None:
        await self._send({"type": "websocket.send", "text": encode_json(frame).decode()})

    async def _close(self, code: int, reason: str | None = None) -> None:
        reason = reason or _REASONS[code]
        retry = {"retry_ms": random.randint(*RETRY_MS)} if code == DRAINED else {}
        await self._tell({"type": "bye", "reason": reason, **retry})
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


_REASONS = {
    DRAINED: "draining",
    UNKNOWN: "unauthenticated",
    MISUSED: "invalid_request",
    FRAME_TOO_LARGE: "too_large",
}
_CODES: dict[type[HoldfastError], int] = {TooMany: CROWDED, Busy: FAILED, HoldfastError: FAILED}


def _auth_in(text: str) -> _Auth | None:
    """The `auth` frame in `text`, if it is one."""
    if '"auth"' not in text or len(text) > AUTH_BYTES:
        return None
    try:
        return _auth.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


class Socket:
    """One connection: a session and the sender its frames go to."""

    __slots__ = (
        "_frames",
        "_is_closing",
        "_is_due",
        "_is_renewing",
        "_loop",
        "_room",
        "_tasks",
        "credentials",
        "sender",
        "session",
    )

    def __init__(self, hub: HubCore, credentials: Credentials, send: Send, frames: Frames) -> None:
        self.credentials = credentials
        self._frames = frames
        self._is_renewing = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_due = False
        self._is_closing = False
        self.sender: Sender = DirectSender(send, self) if hub.drive_by_hand else TaskSender(send, self)
        self.session = Session(
            hub,
            credentials.identity,
            now_s=self._loop.time(),
            wake=self._wake,
            released=self._released,
            start_task=self._start_task,
        )
        credentials.watch(self._expire)

    # For the sender

    def received(self, message: Message) -> bool:
        """A frame came, or the peer has left."""
        if message["type"] != "websocket.receive":
            return False
        text = message.get("text")
        if text is None:
            self.session.receive_binary()
        elif self.session.closing is None and self._is_welcome(text):
            self.session.receive(text, now_s=self._loop.time())
        return True

    async def until_room(self) -> None:
        """Wait until enough has been answered, and the answers have been taken."""
        while self.session.is_full and not self.sender.is_over:
            self._room = self._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None

    def freed(self) -> None:
        """The sender is free again."""
        self._pump()

    # For the heartbeats

    def send_heartbeat(self) -> None:
        """Every few seconds: a ping may be due, or the peer is silent for too long."""
        self.session.check_silence(now_s=self._loop.time())
        if self.credentials.is_expired:  # a machine that slept has slept through its timers, too
            self._expire()
        self._pump()

    # Who is there

    def _is_welcome(self, text: str) -> bool:
        """Is this frame the session's to answer? One too many is refused here, and `auth` is about the credentials."""
        credentials, session = self.credentials, self.session
        auth = _auth_in(text) if credentials.is_renewable else None
        if auth is None and credentials.is_expired:
            self._expire()
            return False
        try:
            credentials.count_request()
            if auth is not None and self._is_renewing:
                raise TooMany("a token is being verified already")
        except TooMany as error:
            session.refuse(auth.ref if auth is not None else ref_in(text.encode(errors="replace")), error)
            return False
        if auth is None:
            return True
        self._is_renewing = True
        self._start_task(self._renew(auth))
        return False

    async def _renew(self, auth: _Auth) -> None:
        session = self.session
        before = self.credentials.identity
        try:
            identity = await self.credentials.renew(auth.token)
        except HoldfastError as error:
            session.refuse(auth.ref, error)
            return
        finally:
            self._is_renewing = False
        session.identity = identity
        session.reply({"type": "ok", "ref": auth.ref})
        if session.closing is None and not identity.includes(before):
            # It watches, is present, or works, by what it may do no more: each is asked for and judged anew.
            session.end(NARROWED, "forbidden")

    def _expire(self) -> None:
        """The identity is over: what comes now is for somebody who shows a new token."""
        if self.session.closing is None:
            self.session.end(EXPIRED, "unauthenticated")

    # For the session

    def _wake(self) -> None:
        """There is something to send. Answers come in bursts, so they are sent together, after the burst."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._pump)

    def _released(self) -> None:
        """A channel moved: its tick has waited for what belongs together, so nothing more is waited for."""
        if not self._is_due:
            self._pump()

    def _start_task(self, job: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = self._loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            if not self._tasks:
                self._tasks = None  # an idle socket has nothing that it does not need

    def _pump(self) -> None:
        """Write while there is something to write and the peer takes it."""
        self._is_due = False
        sender, session = self.sender, self.session
        now_s = self._loop.time()
        while not sender.is_busy and not sender.is_over:
            frame = session.frame_to_send(now_s=now_s)
            if frame is not None:
                sender.write_frame(frame, self._frames)
            elif session.closing is not None:
                code, reason = session.closing
                sender.end({"type": "websocket.close", "code": code, "reason": reason})
            else:
                break
        if session.closing is not None and not sender.is_over and not self._is_closing:
            self._is_closing = True  # a peer that does not read is not waited for
            self._loop.call_later(LAST_WORDS_S, partial(sender.end, patience_s=0))
        if self._room is not None and not self._room.done() and (not session.is_full or sender.is_over):
            self._room.set_result(None)

    async def close(self) -> None:
        """The connection is over: leave the channels, and wait for what still runs."""
        self.session.close()
        tasks = tuple(self._tasks or ())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
