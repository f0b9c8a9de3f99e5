"""A connection and its way back: one WebSocket after another, and the requests that survive them.

Layer: client.

A `Link` keeps one socket open for as long as it runs. Requests go out in the order they were
asked in; those unanswered when a socket breaks are sent again on the next one, in the same order, where that is safe.
Whoever has to be there on every socket (a feed, a presence, a writer) is *standing*: told of each one that opens, and
of its end. Everything happens on one event loop, and answers are told by callbacks, in the order in which they came:
an answer to `attach` is known before the events behind it are looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from random import Random
from typing import Any, Protocol

import msgspec

from holdfast.client.access import ServerAccess
from holdfast.client.dial import Closed, Dial, Refusal, Socket
from holdfast.client.problems import NotHoldfast, Unreachable, error_of
from holdfast.client.timing import Timing
from holdfast.core.errors import (
    Draining,
    HoldfastError,
    InvalidRequest,
    InvalidText,
    LocalError,
    TooLarge,
    Unauthenticated,
)
from holdfast.core.limits import Limits

logger = logging.getLogger("holdfast.client")

Result = dict[str, Any] | HoldfastError
WhenAnswered = Callable[[Result], None]

# The server stops reading at 1,000 requests or 4 MiB; a call waits for room before that. One may go beyond it.
UNANSWERED = 500
UNANSWERED_BYTES = 1024 * 1024
TOKENS_TRIED = 3  # in a row, before an identity that is refused is taken for refused
RENEW_AT = 0.8  # of a token's life

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class LinkState(Enum):
    """Where a link is on its way."""

    CONNECTING = auto()
    LIVE = auto()
    AWAY = auto()  # between two sockets
    STOPPED = auto()  # for good


class Standing(Protocol):
    """What has to be said anew on every socket."""

    def opened(self) -> None:
        """A socket is open: say it."""

    def broken(self) -> None:
        """The socket is gone, with all that it had not completed."""

    def stopped(self, error: HoldfastError) -> None:
        """There will be no other socket: that is why."""


class Receiver(Protocol):
    """Who takes the events of a channel."""

    def received(self, events: list[Any], cursor: str | None, size: int) -> None:
        """A frame of events came, of `size` characters."""

    def forget_cursor(self) -> None:
        """What we have cannot be continued."""


class _Asked:
    """A request and who waits for its answer."""

    __slots__ = ("is_repeatable", "ref", "sent_at_s", "text", "when_answered")

    def __init__(self, ref: int, text: str, when_answered: WhenAnswered, is_repeatable: bool) -> None:
        self.ref = ref
        self.text = text
        self.when_answered = when_answered
        self.is_repeatable = is_repeatable
        self.sent_at_s: float | None = None


class _Broken(Exception):
    """This socket is over. `error` is set when there is to be no other one."""

    def __init__(self, why: str, *, error: HoldfastError | None = None, stay_away_s: float = 0.0) -> None:
        super().__init__(why)
        self.error = error
        self.stay_away_s = stay_away_s


class Link:
    """One socket after another to the same server."""

    def __init__(self, access: ServerAccess, dial: Dial, *, timing: Timing, random: Random, limits: Limits) -> None:
        self.state = LinkState.CONNECTING
        self.error: HoldfastError | None = None  # why it has stopped
        self.sockets = 0  # opened so far
        self.timing = timing
        self.random = random
        self.limits = limits
        self.when_turn: Callable[[dict[str, Any]], None] | None = None
        self.receivers: dict[str, Receiver] = {}  # by channel
        self._access = access
        self._dial = dial
        self._standing: dict[Standing, None] = {}
        self._asked: dict[int, _Asked] = {}
        self._asked_bytes = 0
        self._refs = 0
        self._out: deque[str] = deque()
        self._has_out = asyncio.Event()
        self._first = asyncio.Event()  # the first socket has opened, or there will be none
        self._room = asyncio.Event()
        self._heard_at_s = 0.0
        self._bye: dict[str, Any] = {}
        self._refused_tokens = 0
        self._why = ""  # the last socket ended, or none opened

    # -- asking ------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Is a socket open?"""
        return self.state is LinkState.LIVE

    async def request(
        self, kind: str, fields: dict[str, Any], *, is_repeatable: bool = True, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The answer to a request, over as many sockets as it takes. Raises what the server refused; Unreachable."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        asked: _Asked | None = None
        patience_s = self.timing.request_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._until_room()
                asked = self.begin(kind, fields, partial(_settle, answer), is_repeatable=is_repeatable)
                await self._until_connected(answer)
                return await answer
        except TimeoutError:
            raise self.unreachable(f"{kind!r} was not answered within {patience_s:.0f} s") from None
        finally:
            if asked is not None:
                self._forget(asked)

    def begin(
        self, kind: str, fields: dict[str, Any], when_answered: WhenAnswered, *, is_repeatable: bool = True
    ) -> _Asked:
        """Ask, and be told the answer, or why there is none. Does not wait for room: the caller bounds itself.

        With `is_repeatable` it is sent again on the next socket, until it is answered; else its end is Unreachable.
        """
        self._refs += 1
        try:
            text = encode({"type": kind, "ref": self._refs, **fields}, self.limits)
        except HoldfastError as error:
            when_answered(error)
            return _Asked(self._refs, "", when_answered, is_repeatable)
        asked = _Asked(self._refs, text, when_answered, is_repeatable)
        if self.state is LinkState.STOPPED or not (is_repeatable or self.is_live):
            when_answered(self.error or Unreachable("there is no connection"))
            return asked
        self._asked[asked.ref] = asked
        self._asked_bytes += len(text)
        if self.is_live:
            self._send(asked)
        return asked

    async def until_connected(self) -> None:
        """Wait for the first connection. Raises Unreachable after `connect_s`; returns if the link has stopped."""
        await self._until_connected()

    async def _until_connected(self, answer: asyncio.Future[dict[str, Any]] | None = None) -> None:
        if self.sockets or self.state is LinkState.STOPPED:
            return
        first = asyncio.ensure_future(self._first.wait())
        waiting: list[asyncio.Future[Any]] = [first, *([answer] if answer is not None else [])]
        try:
            done, _ = await asyncio.wait(waiting, timeout=self.timing.connect_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
        if not done:
            raise Unreachable(
                f"no connection to {self._access.address} within {self.timing.connect_s:g} s "
                f"({self._why or 'no response'}): is the server running there, and is the port right?"
            )

    def unreachable(self, what: str) -> Unreachable:
        """The error of something that took too long, with what is known of the reason."""
        if self.is_live:
            return Unreachable(what)
        return Unreachable(f"{what}; there is no connection to {self._access.address} ({self._why or 'not yet'})")

    # -- standing ----------------------------------------------------------------------------------------------

    def stand(self, one: Standing, *, since: int = 0) -> None:
        """Tell `one` of each socket after number `since`: of the open one, if it is such a one, at once."""
        self._standing[one] = None
        if self.error is not None:  # soon: whoever stands up now may not be ready to hear it
            asyncio.get_running_loop().call_soon(self._tell_stopped, one, self.error)
        elif self.is_live and self.sockets > since:
            one.opened()

    def step_down(self, one: Standing) -> None:
        """Tell `one` no more."""
        self._standing.pop(one, None)

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a socket open, until it is stopped or the server says never again."""
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while self.error is None:
                opened_at_s = loop.time()
                over = await self._one_socket()
                if over.error is not None:
                    self._stop(over.error)
                    return
                self._why = str(over)
                failures = 1 if loop.time() - opened_at_s > self.timing.stable_s else failures + 1
                delay_s = over.stay_away_s + self.timing.backoff(failures, self.random)
                # One line tells of an outage; what follows is the same again.
                level = logging.WARNING if failures == 1 else logging.INFO
                logger.log(level, "no connection to %s (%s); trying again", self._access.address, over)
                await asyncio.sleep(delay_s)
        finally:
            self._stop(LocalError("the client is closed"))

    async def _one_socket(self) -> _Broken:
        """Open a socket and carry it to its end; says how it ended."""
        try:
            headers = await self._access.headers()
            async with asyncio.timeout(self.timing.open_s):
                socket = await self._dial(self._access.socket_url(), headers)
        except Refusal as refusal:
            return self._refused(refusal)
        except Unreachable as error:
            return _Broken(error.detail)
        except HoldfastError as error:
            return _Broken(error.detail, error=error)
        except (OSError, TimeoutError, Closed) as error:
            return _Broken(str(error) or "no answer")
        try:
            return await self._carry(socket)
        finally:
            await socket.close()

    async def _carry(self, socket: Socket) -> _Broken:
        over: _Broken | None = None
        try:
            self._opened()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(socket))
                tasks.create_task(self._write(socket))
                tasks.create_task(self._watch())
                if self._access.can_renew:
                    tasks.create_task(self._renew())
        except* _Broken as group:
            over = next(one for one in group.exceptions if isinstance(one, _Broken))
        finally:
            self._lost()
        assert over is not None
        return over

    async def _read(self, socket: Socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                text = await socket.receive()
            except Closed as closed:
                raise self._ended(closed) from None
            self._heard_at_s = loop.time()
            try:
                self._receive(_decode(text), len(text))
            except (msgspec.DecodeError, TypeError, KeyError, AttributeError) as error:
                raise _Broken(f"a frame that is not understood: {type(error).__name__}") from None

    async def _write(self, socket: Socket) -> None:
        try:
            while True:
                await self._has_out.wait()
                async with asyncio.timeout(self.timing.send_s) as patience:
                    while self._out:
                        await socket.send(self._out.popleft())
                        patience.reschedule(asyncio.get_running_loop().time() + self.timing.send_s)
                self._has_out.clear()
        except TimeoutError:
            raise _Broken("the server takes nothing") from None
        except Closed:
            await asyncio.Event().wait()  # the reader knows better how it ended

    async def _watch(self) -> None:
        """Break a connection that has gone silent, or brings everything but answers."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = self._heard_at_s + self.timing.silence_s
            oldest = next(iter(self._asked.values()), None)
            if oldest is not None and oldest.sent_at_s is not None:
                due_s = min(due_s, oldest.sent_at_s + self.timing.answer_s)
            left_s = due_s - loop.time()
            if left_s <= 0:
                raise _Broken("silence")
            await asyncio.sleep(min(left_s, self.timing.silence_s / 4))  # a request may be asked meanwhile

    async def _renew(self) -> None:
        """Say a new token before the old one ends."""
        while (left_s := self._access.token_left_s()) is not None:
            await asyncio.sleep(max(left_s * RENEW_AT, 1.0))
            self._access.forget_token()
            try:
                token = await self._access.token()
                await self.request("auth", {"token": token}, is_repeatable=False)
            except HoldfastError as error:
                raise _Broken(f"the token could not be renewed: {error.code}") from None

    # -- inside ------------------------------------------------------------------------------------------------

    def _opened(self) -> None:
        self.state = LinkState.LIVE
        self.sockets += 1
        self._first.set()
        self._heard_at_s = asyncio.get_running_loop().time()
        self._bye = {}
        self._refused_tokens = 0
        self._out.clear()
        unanswered = tuple(self._asked.values())
        for one in tuple(self._standing):
            one.opened()  # first: the end of a turn counts only where the work was asked for
        for asked in unanswered:
            self._send(asked)

    def _lost(self) -> None:
        if self.state is LinkState.LIVE:
            self.state = LinkState.AWAY
        for asked in tuple(self._asked.values()):
            asked.sent_at_s = None
            if not asked.is_repeatable:
                self._settle(asked, Unreachable("the connection broke before there was an answer"))
        for one in tuple(self._standing):
            one.broken()

    def _stop(self, error: HoldfastError) -> None:
        if self.state is LinkState.STOPPED:
            return
        self.state, self.error = LinkState.STOPPED, error
        for asked in tuple(self._asked.values()):
            self._settle(asked, error)
        for one in tuple(self._standing):
            self._tell_stopped(one, error)
        self._room.set()
        self._first.set()

    def _tell_stopped(self, one: Standing, error: HoldfastError) -> None:
        if one in self._standing:
            one.stopped(error)

    def _send(self, asked: _Asked) -> None:
        asked.sent_at_s = asyncio.get_running_loop().time()
        self._say(asked.text)

    def _say(self, text: str) -> None:
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
                    raise _Broken("no token", error=self._unknown())
                if frame.get("ref") is None:
                    logger.error("the server did not understand a frame: %s", error)
                self._settle_ref(frame.get("ref"), error)
            case "ping":
                self._say(f'{{"type":"pong","n":{_encode(frame.get("n")).decode()}}}')
            case "bye":
                self._bye = frame
            case "turn" if self.when_turn is not None:
                self.when_turn(frame)

    def _settle_ref(self, ref: Any, answer: Result) -> None:
        asked = self._asked.get(ref) if isinstance(ref, int) else None
        if asked is None:
            return
        if isinstance(answer, Draining) and asked.is_repeatable:
            return  # nothing was done: it is sent again, to whoever comes after this server
        self._settle(asked, answer)

    def _settle(self, asked: _Asked, answer: Result) -> None:
        self._forget(asked)
        asked.when_answered(answer)

    def _forget(self, asked: _Asked) -> None:
        if self._asked.pop(asked.ref, None) is not None:
            self._asked_bytes -= len(asked.text)
            self._room.set()

    async def _until_room(self) -> None:
        while self._asked and (len(self._asked) >= UNANSWERED or self._asked_bytes >= UNANSWERED_BYTES):
            self._room.clear()
            await self._room.wait()

    def _ended(self, closed: Closed) -> _Broken:
        """What the number of a close says about coming back (`docs/protocol.md`, 7.5)."""
        code = closed.code or 1006
        why = f"{code} {closed.reason or self._bye.get('reason', '')}".strip()
        if code == 1009:
            return _Broken(why, error=TooLarge("a frame was larger than the other side takes"))
        if code >= 4300:
            reason = str(self._bye.get("reason") or closed.reason or "refused")
            return _Broken(why, error=error_of({"code": reason, "detail": f"the server ended it: {why}"}))
        if 4200 <= code < 4300 and not self._access.forget_token():
            return _Broken(why, error=self._unknown())
        if 4100 <= code < 4200:
            for receiver in self.receivers.values():
                receiver.forget_cursor()
        retry_ms = self._bye.get("retry_ms")
        return _Broken(why, stay_away_s=retry_ms / 1000 if isinstance(retry_ms, int | float) else 0.0)

    def _unknown(self) -> Unauthenticated:
        """Nobody knows us there (any more), and we have nothing else to say."""
        if not self._access.has_token:
            return Unauthenticated("the server asks for a token, and this client has none: Client(…, token=…)")
        return Unauthenticated("the token has ended, and no other can be had: give a token_provider")

    def _refused(self, refusal: Refusal) -> _Broken:
        """What the answer to an upgrade says about coming back.

        One with a code is the server's own. One without may be that of a proxy whose server is away for a moment: where
        it has worked before it is asked again, else the address is wrong, which nobody should have to find in a log.
        """
        status, problem = refusal.status, refusal.problem
        if status == 401 and self._access.forget_token() and self._refused_tokens < TOKENS_TRIED:
            self._refused_tokens += 1
            return _Broken("the token was refused")
        error = error_of(problem) if problem and status != 404 else self._plain_refusal(status)
        may_pass = error.retry or status >= 500 or status in (408, 425, 429)
        if may_pass or (not problem and self.sockets and status != 401):
            return _Broken(str(refusal), stay_away_s=refusal.retry_after_s)
        return _Broken(str(refusal), error=error)

    def _plain_refusal(self, status: int) -> HoldfastError:
        if status == 401:
            return error_of({"code": "unauthenticated", "detail": f"{self._access.address} requires a login"})
        return NotHoldfast(
            f"{self._access.address} answered {status} to a WebSocket, and not as a Holdfast server does: is the hub "
            "at another port or path, such as /holdfast, or served without WebSockets (uvicorn needs the package "
            "websockets)?"
        )


def encode(frame: dict[str, Any], limits: Limits) -> str:
    """`frame` as text. Raises InvalidRequest, InvalidText, TooLarge."""
    try:
        data = _encode(frame)
    except UnicodeEncodeError:
        raise InvalidText("text holds a lone surrogate") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"this is not JSON: {error}") from None
    if len(data) > limits.request_bytes:
        # The server would close the connection for it, which is everybody's.
        raise TooLarge(f"a request has at most {limits.request_bytes} bytes", limit=limits.request_bytes)
    return data.decode()


def _settle(future: asyncio.Future[dict[str, Any]], answer: Result) -> None:
    if future.done():
        return
    if isinstance(answer, HoldfastError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
