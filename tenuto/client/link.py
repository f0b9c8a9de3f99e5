"""The connection to a server: one WebSocket after another, and requests that may outlive a WebSocket.

Layer: client.

A `Link` keeps one socket open as long as it runs, and sends requests in order. When a socket breaks, requests without a
response are sent again on the next one, in the same order, if they are repeatable. A feed, a presence or a writer needs
every socket: it is a listener, which the link notifies when a socket opens and when it ends. All of this runs on one
event loop. Responses are passed to callbacks in the order of their arrival, so that the response to `attach` is handled
before the events behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Protocol

import msgspec

from tenuto.client.connection import (
    Closed,
    Dial,
    FrameSocket,
    NotTenuto,
    Refusal,
    ServerAccess,
    Timing,
    Unreachable,
    error_of,
)
from tenuto.core.errors import Draining, InvalidRequest, InvalidText, LocalError, TenutoError, TooLarge, Unauthenticated
from tenuto.core.limits import Limits
from tenuto.core.model import lone_surrogate

logger = logging.getLogger("tenuto.client")

Outcome = dict[str, Any] | TenutoError
OnResult = Callable[[Outcome], None]


def ignore(result: Outcome) -> None:
    """Ignore a response, or the error in its place, because no further step depends on it."""


# Calls wait at this size, which one call may exceed. The server stops reading at 1,000 requests or 4 MiB.
PENDING_REQUESTS = 500
PENDING_BYTES = 1024 * 1024


class Pending(msgspec.Struct, eq=False):
    """A request without a response."""

    ref: int
    text: str
    on_result: OnResult
    is_repeatable: bool
    sent_at_s: float | None = None  # None: not sent on the present socket


TOKENS_TRIED = 3  # tokens in a row that the server may refuse before the client gives up
RENEW_AT = 0.8  # share of a token's life after which the client renews it

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Listener(Protocol):
    """A component that uses every socket of the link."""

    def opened(self) -> None:
        """Send the requests for a new socket, which has just opened."""

    def broken(self) -> None:
        """Note that the socket has ended, with all incomplete requests."""

    def stopped(self, error: TenutoError) -> None:
        """Note that the link has stopped with `error` and opens no other socket."""


class Receiver(Protocol):
    """The receiver of a channel's events."""

    def received(self, events: list[Any], cursor: str | None, size: int) -> None:
        """Receive a frame of events, of `size` characters."""

    def detached(self, error: TenutoError) -> None:
        """Note that the server has detached the channel, because of `error`."""

    def forget_cursor(self) -> None:
        """Forget the cursor, from which the server cannot resume."""


class _Broken(Exception):
    """A socket has ended. With an `error` the link opens no other one, else it waits `stay_away_s` longer."""

    def __init__(self, why: str, *, error: TenutoError | None = None, stay_away_s: float = 0.0) -> None:
        super().__init__(why)
        self.error = error
        self.stay_away_s = stay_away_s


class Link:
    """Keeps a socket to one server open, one after another, from `start` until it is stopped."""

    def __init__(self, access: ServerAccess, dial: Dial, *, timing: Timing, random: Random, limits: Limits) -> None:
        self.is_live = False  # True: a socket is open
        self.error: TenutoError | None = None  # the error with which the link has stopped for good
        self.sockets = 0  # number of sockets opened so far
        self.timing = timing
        self.random = random
        self.limits = limits
        self.when_turn: Callable[[dict[str, Any]], None] | None = None  # gets the frames that assign turns
        self.receivers: dict[str, Receiver] = {}  # receivers of events, by channel
        self._access = access
        self._dial = dial
        self._listeners: dict[Listener, None] = {}  # in their order
        self._pending: dict[int, Pending] = {}  # by reference, the oldest first
        self._has_room = asyncio.Event()  # set when a request has left `_pending`
        self._refs = 0  # number of requests so far
        self._out: deque[str] = deque()  # frames to send on the present socket
        self._has_out = asyncio.Event()
        self._run: asyncio.Task[None] | None = None  # that of `_keep_open`
        self._is_ending = False  # True: the owner has ended the link, which opens no other socket
        self._first = asyncio.Event()  # set when the first socket has opened, or when none will open
        self._received_at_s = 0.0  # when the last frame arrived, or the socket opened
        self._bye: dict[str, Any] = {}  # the server's last frame before it closes the socket
        self._refused_tokens = 0  # number of them since a socket opened
        self._why = ""  # why the last socket ended or did not open

    # -- requests ----------------------------------------------------------------------------------------------

    async def request(
        self, kind: str, fields: dict[str, Any], *, is_repeatable: bool = True, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Send a request over any number of sockets, and return the response. Raises the refusal, Unreachable."""
        response: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        ref = 0  # that of no request
        patience_s = self.timing.request_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._until_room()
                ref = self.begin(kind, fields, partial(_resolve, response), is_repeatable=is_repeatable)
                if not response.done():  # else the request could not be sent
                    await self.until_connected()
                return await response
        except TimeoutError:
            raise self.unreachable(f"request {kind!r} had no response within {patience_s:.0f} s") from None
        finally:
            self._forget(ref)

    async def insist(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a request as `request` does, and repeat it while the server refuses it for now."""
        loop, failures = asyncio.get_running_loop(), 0
        until_s = loop.time() + self.timing.request_s
        while True:
            try:
                return await self.request(kind, fields, timeout_s=until_s - loop.time())
            except TenutoError as error:
                failures += 1
                delay_s = self.timing.retry(failures, self.random)
                is_refused = error.retry and not isinstance(error, Unreachable)
                if not is_refused or loop.time() + delay_s >= until_s:
                    raise
            await asyncio.sleep(delay_s)

    def begin(self, kind: str, fields: dict[str, Any], on_result: OnResult, *, is_repeatable: bool = False) -> int:
        """Send a request, and return its reference; `on_result` gets the response or an error.

        It ends as Unreachable with its socket. One that `is_repeatable` is sent again on each new socket until it has a
        response. The caller bounds the number of requests.
        """
        self._refs += 1
        ref = self._refs
        try:
            text = encode({"type": kind, "ref": ref, **fields}, self.limits)
        except TenutoError as error:
            on_result(error)
            return ref
        if self.error is not None or not (is_repeatable or self.is_live):
            on_result(self.error or self.unreachable(f"request {kind!r} was not sent"))
            return ref
        request = Pending(ref, text, on_result, is_repeatable)
        self._pending[ref] = request
        if self.is_live:
            self._send(request)
        return ref

    async def _until_room(self) -> None:
        """Wait until one more request may be sent."""
        pending = self._pending.values()
        while len(pending) >= PENDING_REQUESTS or sum(len(one.text) for one in pending) >= PENDING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()

    def _forget(self, ref: int) -> None:
        """Remove a request, if it has no response yet, and let calls that wait for room proceed."""
        if self._pending.pop(ref, None) is not None:
            self._has_room.set()

    def _settle(self, request: Pending, result: Outcome) -> None:
        """Remove a request, and pass its response or error to its callback."""
        self._forget(request.ref)
        request.on_result(result)

    async def until_connected(self) -> None:
        """Wait for the first connection. Raises Unreachable after `connect_s`, not if stopped."""
        if self._first.is_set():
            return
        connect_s = self.timing.connect_s
        try:
            async with asyncio.timeout(connect_s):
                await self._first.wait()
        except TimeoutError:
            raise Unreachable(
                f"Client could not connect to {self._access.address} within {connect_s:g} s "
                f"({self._why or 'no response'}); check that the server runs there, and that port and path are right"
            ) from None

    def unreachable(self, what: str) -> Unreachable:
        """Return the error whose text is `what`, with the reason for the missing connection."""
        if not self.is_live:
            why = self._why or "none was opened yet"
            what += f"; there is no connection to {self._access.address} ({why}), check that the server runs there"
        return Unreachable(what)

    # -- listeners ---------------------------------------------------------------------------------------------

    def add_listener(self, one: Listener, *, since: int = 0) -> None:
        """Notify `one` of each socket after number `since`; at once if such a socket is open."""
        self._listeners[one] = None
        if self.error is not None:  # call it later: the listener may not be ready yet
            asyncio.get_running_loop().call_soon(self._notify_stopped, one, self.error)
        elif self.is_live and self.sockets > since:
            one.opened()

    def remove_listener(self, one: Listener) -> None:
        """Stop notifying `one`."""
        self._listeners.pop(one, None)

    # -- opening and closing ---------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        """Keep a socket open until `end`, or until the server refuses the client for good. Return the task of it."""
        self._run = asyncio.get_running_loop().create_task(self._keep_open(), name="tenuto-link")
        return self._run

    def end(self) -> None:
        """End the link. The mark is needed too: a task group drops a cancellation while it handles a broken socket."""
        self._is_ending, self.is_live = True, False
        if self._run is not None:
            self._run.cancel()

    async def _keep_open(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        error: TenutoError = LocalError(f"the client of {self._access.address} is closed; open another one")
        try:
            while True:
                began_at_s = loop.time()
                broken = await self._one_socket()
                if broken.error is not None or self._is_ending:
                    error = broken.error or error
                    return
                self._why = str(broken)
                failures = 1 if loop.time() - began_at_s > self.timing.stable_s else failures + 1
                delay_s = broken.stay_away_s + self.timing.backoff(failures, self.random)
                # Log one warning per outage; further attempts are less important.
                level = logging.WARNING if failures == 1 else logging.INFO
                logger.log(level, "no connection to %s (%s); trying again", self._access.address, broken)
                await asyncio.sleep(delay_s)
        except Exception:
            logger.exception("the client has ended; please report this bug, and open another client")
        finally:
            self._stop(error)

    async def _one_socket(self) -> _Broken:
        """Open a socket and use it until it ends. Return how it ended."""
        try:
            headers = await self._access.headers()
            async with asyncio.timeout(self.timing.open_s):
                socket = await self._dial(self._access.socket_url, headers)
        except Refusal as refusal:
            return self._refused(refusal)
        except Unreachable as error:  # the app's provider returned no token
            return _Broken(error.detail)
        except TenutoError as error:  # such as a token that is not valid
            return _Broken(error.detail, error=error)
        except (OSError, TimeoutError, Closed) as error:
            return _Broken(str(error) or "no response")
        try:
            return await self._use(socket)
        finally:
            await socket.close()

    async def _use(self, socket: FrameSocket) -> _Broken:
        """Use an open socket until it ends. Return how it ended."""
        broken: _Broken | None = None
        try:
            self._opened()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(socket))
                tasks.create_task(self._write(socket))
                tasks.create_task(self._watch())
                tasks.create_task(self._renew())
        except* _Broken as group:
            broken = next(one for one in group.exceptions if isinstance(one, _Broken))
        finally:
            self._lost()
        assert broken is not None  # the reader ends only with one
        return broken

    async def _read(self, socket: FrameSocket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                text = await socket.receive()
            except Closed as closed:
                raise self._ended(closed) from None
            self._received_at_s = loop.time()
            try:
                self._receive(_decode(text), len(text))
            except (msgspec.DecodeError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise _Broken(f"the server sent an invalid frame: {type(error).__name__}") from None

    async def _write(self, socket: FrameSocket) -> None:
        try:
            while True:
                await self._has_out.wait()
                async with asyncio.timeout(self.timing.send_s) as patience:
                    while self._out:
                        await socket.send(self._out.popleft())
                        patience.reschedule(asyncio.get_running_loop().time() + self.timing.send_s)
                self._has_out.clear()
        except TimeoutError:
            raise _Broken(f"send timed out after {self.timing.send_s:g} s") from None
        except Closed:
            await asyncio.Event().wait()  # wait: the reader finds the reason, and ends this task

    async def _watch(self) -> None:
        """Break the connection if no frame, or no response, arrives in time."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = self._received_at_s + self.timing.silence_s
            oldest = next(iter(self._pending.values()), None)
            if oldest is not None and oldest.sent_at_s is not None:
                due_s = min(due_s, oldest.sent_at_s + self.timing.response_s)
            left_s = due_s - loop.time()
            if left_s <= 0:
                raise _Broken("the server was silent for too long")
            # wake up earlier than needed, because a request may be sent meanwhile
            await asyncio.sleep(min(left_s, self.timing.silence_s / 4))

    async def _renew(self) -> None:
        """Send a new token before the old one expires, if there is a provider of tokens."""
        while (left_s := self._access.token_left_s()) is not None:
            await asyncio.sleep(max(left_s * RENEW_AT, 1.0))  # at most one token a second
            self._access.forget_token()
            try:
                await self.request("auth", {"token": await self._access.token()}, is_repeatable=False)
            except TenutoError as error:
                raise _Broken(f"the token could not be renewed: {error.code}") from None

    # -- inside ------------------------------------------------------------------------------------------------

    def _opened(self) -> None:
        """Notify the listeners of a new socket, and then send the requests without a response again."""
        self.is_live = True
        self.sockets += 1
        self._first.set()
        self._received_at_s = asyncio.get_running_loop().time()
        self._bye = {}
        self._refused_tokens = 0
        self._out.clear()
        pending = tuple(self._pending.values())  # without those that the listeners begin, which are sent at once
        for one in tuple(self._listeners):
            # call this first: the server accepts the end of a turn only on a socket that has requested work
            one.opened()
        for request in pending:
            self._send(request)

    def _lost(self) -> None:
        """Notify the listeners of the end of a socket. Requests that may not be sent again end as Unreachable."""
        self.is_live = False
        for request in tuple(self._pending.values()):
            request.sent_at_s = None
            if not request.is_repeatable:
                broken = f"the connection to {self._access.address} broke before the response arrived; send it again"
                self._settle(request, Unreachable(broken))
        for one in tuple(self._listeners):
            one.broken()

    def _stop(self, error: TenutoError) -> None:
        self.error = error
        for request in tuple(self._pending.values()):
            self._settle(request, error)
        for one in tuple(self._listeners):
            self._notify_stopped(one, error)
        self._first.set()

    def _notify_stopped(self, one: Listener, error: TenutoError) -> None:
        if one in self._listeners:
            one.stopped(error)

    def _send(self, request: Pending) -> None:
        request.sent_at_s = asyncio.get_running_loop().time()
        self._send_text(request.text)

    def _send_text(self, text: str) -> None:
        self._out.append(text)
        self._has_out.set()

    def _receive(self, frame: dict[str, Any], size: int) -> None:
        match frame.get("type"):
            case "events":
                receiver = self.receivers.get(frame["channel"])
                if receiver is not None:
                    receiver.received(frame["events"], frame.get("cursor"), size)
            case "ok":
                self._settle_ref(frame.get("ref"), frame)
            case "error":
                error = error_of(frame)
                if isinstance(error, Unauthenticated) and not self._access.has_token:
                    raise _Broken("no token", error=self._unauthenticated())
                if (receiver := self.receivers.get(frame.get("channel", ""))) is not None:
                    receiver.detached(error)
                elif frame.get("ref") is None and "channel" not in frame:
                    logger.error("the server refused a frame as invalid: %s", error)
                self._settle_ref(frame.get("ref"), error)
            case "ping":
                self._send_text(f'{{"type":"pong","n":{_encode(frame.get("n")).decode()}}}')
            case "bye":
                self._bye = frame
            case "turn" if self.when_turn is not None:
                self.when_turn(frame)

    def _settle_ref(self, ref: Any, result: Outcome) -> None:
        request = self._pending.get(ref) if isinstance(ref, int) else None
        # one that a draining server has not carried out is sent again on the next socket
        if request is not None and not (isinstance(result, Draining) and request.is_repeatable):
            self._settle(request, result)

    def _ended(self, closed: Closed) -> _Broken:
        """Return whether and when to reconnect after this close code (`docs/protocol.md`, 7.5)."""
        code = closed.code or 1006
        why = f"{code} {closed.reason or self._bye.get('reason', '')}".strip()
        if code == 1009:
            what = f"a frame exceeded the size that its receiver accepts ({why}); send smaller requests"
            return _Broken(why, error=TooLarge(what))
        if code >= 4300:  # for good
            reason = str(self._bye.get("reason") or closed.reason or "refused")
            what = f"the server has closed the connection for good: {why}"
            return _Broken(why, error=error_of({"code": reason, "detail": what}))
        if 4200 <= code < 4300 and not self._access.forget_token():  # the token, which only a provider can renew
            return _Broken(why, error=self._unauthenticated())
        if 4100 <= code < 4200:  # the cursors: attach without them
            for receiver in self.receivers.values():
                receiver.forget_cursor()
        retry_ms = self._bye.get("retry_ms")
        return _Broken(why, stay_away_s=retry_ms / 1000 if isinstance(retry_ms, int | float) else 0.0)

    def _unauthenticated(self) -> Unauthenticated:
        """Return the error for missing or expired credentials that the client cannot renew."""
        if not self._access.has_token:
            return Unauthenticated("the server requires a token, and this client has none; give Client(..., token=...)")
        return Unauthenticated("the token has expired and cannot be renewed; give Client(..., token_provider=...)")

    def _refused(self, refusal: Refusal) -> _Broken:
        """Return whether and when to reconnect after a refused upgrade.

        A refusal with a code comes from the server. A refusal without a code may come from a proxy whose server
        restarts: if this link was connected before, it tries again. Otherwise the address is probably wrong, and the
        caller gets an error.
        """
        status, problem = refusal.status, refusal.problem
        if status == 401 and self._access.forget_token() and self._refused_tokens < TOKENS_TRIED:
            self._refused_tokens += 1
            return _Broken("the token was refused")
        error = error_of(problem) if problem and status != 404 else self._not_tenuto(status)  # no hub responds 404
        may_pass = error.retry or status >= 500 or status in (408, 425, 429)
        if may_pass or (not problem and self.sockets and status != 401):
            return _Broken(str(refusal), stay_away_s=refusal.retry_after_s)
        return _Broken(str(refusal), error=error)

    def _not_tenuto(self, status: int) -> TenutoError:
        detail = self._access.unlike_ours(status, " to a WebSocket")
        detail += ", or served without WebSockets (uvicorn needs the package websockets)"
        return Unauthenticated(detail) if status == 401 else NotTenuto(detail)  # 401: a proxy may need a login


class Retry:
    """The next try of what has failed on a link, after a delay that grows with each failure in a row."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None

    def later(self, step: Callable[[], None]) -> None:
        """Call `step` after the delay, in place of an earlier step."""
        self.cancel()
        self._failures += 1
        delay_s = self._link.timing.retry(self._failures, self._link.random)
        self._timer = asyncio.get_running_loop().call_later(delay_s, step)

    def cancel(self) -> None:
        """Do not call the step."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def succeeded(self) -> None:
        """Begin with a short delay again."""
        self._failures = 0


def encode(frame: dict[str, Any], limits: Limits) -> str:
    """Return `frame` as text. Raises InvalidRequest, InvalidText, TooLarge."""
    try:
        data = _encode(frame)
    except UnicodeEncodeError as error:
        raise InvalidText(f"the request holds {lone_surrogate(error)}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be sent as JSON ({error}); send JSON values only") from None
    if len(data) > limits.request_bytes:
        # Refused here, because the server would close the connection, which other requests share.
        raise TooLarge(
            f"the request has {len(data)} bytes, the limit is {limits.request_bytes} (Limits.request_bytes); "
            "send less text in one request",
            limit=limits.request_bytes,
        )
    return data.decode()


def _resolve(future: asyncio.Future[dict[str, Any]], result: Outcome) -> None:
    if future.done():
        return  # its caller waits no more
    if isinstance(result, TenutoError):
        future.set_exception(result)
    else:
        future.set_result(result)
