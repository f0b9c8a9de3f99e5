"""Responses over a WebSocket: several responses on one socket, further input for a running one, and resuming.

Layer: interop.

Requests with the same `stream_id` are carried out one after the other, others at the same time. Input for a running
response (`response.steer`) is a user message in its channel, so nothing is lost with the socket: the agent takes it in
(`Turn.steered`), or it gets a turn of its own. In both cases a successor response follows.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from tenuto import Hub, Message
from tenuto.core.errors import Forbidden, InvalidName, InvalidRequest, NotFound, TenutoError, TooMany
from tenuto.interop.adapter import requested_in
from tenuto.interop.fold import Json, encode
from tenuto.interop.openai_stream import (
    STEERS,
    Reference,
    TurnEvents,
    after_of,
    error_of,
    input_items,
    reference,
    turn_of,
)
from tenuto.routes import Access, RouteSocket, TurnDelta

logger = logging.getLogger("tenuto.transports")
MAX_LANES = 8
PAGES = 5  # of the messages after a question among which its further input is looked for
MAX_WAITING = 16  # requests that wait on one socket, and inputs that wait for one turn


@dataclass(eq=False)
class _Steer:
    """Further input for a turn, which has no successor response yet."""

    id: str  # of the message that it becomes
    previous: str
    input: object
    message: Message | None = None  # None until it is stored
    is_taken: bool = False  # the agent has taken it in


@dataclass(eq=False)
class _Lane:
    """The requests with one `stream_id`, and the response that is being sent."""

    stream_id: str | None = None
    task: asyncio.Task[None] = field(init=False)
    waiting: deque[tuple[Json, int]] = field(default_factory=deque)  # requests, and their bytes
    question: Message | None = None
    of: Reference | None = None  # None while no response is being sent
    previous: Reference | None = None  # the response before it in its turn, which input has ended
    events: TurnEvents | None = None
    steers: list[_Steer] = field(default_factory=list)  # for the response


class _Frames(TurnEvents):
    """The events of a response, one in a line (`TurnFormat`)."""

    heartbeat = b""
    late = b""  # the last event, for a reader that has it

    def __init__(self, access: Access, lane: _Lane, of: Reference, after: int) -> None:
        assert lane.question is not None
        super().__init__(lane.question, of, after, previous=lane.previous)
        self._access = access
        self._lane = lane

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        events = self.receive(deltas)
        for event in events:
            is_end = event["type"] == "response.incomplete"
            if is_end and self._lane.steers and self._access.is_interrupted(self._of.channel, self._of.message_id):
                event["response"] |= {"status": "incomplete", "incomplete_details": {"reason": "steered"}}
        frames = b"".join([encode(_marked(self._lane, event)) + b"\n" for event in events])
        self.late = frames if self.is_repeated else b""
        return b"" if self.is_repeated else frames

    def _steers(self) -> int:
        for one in self._lane.steers:
            one.is_taken = one.is_taken or self._access.taken_by(self._of.channel, one.id) == self._of.message_id
        count = sum(one.is_taken for one in self._lane.steers)
        return self._of.steers + count if count else 0


@dataclass
class ResponsesSockets:
    """The ASGI app of the sockets. `begin` stores the question of a request, `further_input` reads that of a steer."""

    hub: Hub
    begin: Callable[[Access, Json], Awaitable[tuple[Message, Reference]]]
    further_input: Callable[[object], list[Json]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.hub.serve_socket(scope, receive, send, lambda socket: ResponsesSocket(self, socket).run())


class ResponsesSocket:
    """One socket."""

    def __init__(self, sockets: ResponsesSockets, socket: RouteSocket) -> None:
        self._sockets = sockets
        self._socket = socket
        self._lanes: dict[object, _Lane] = {}
        self._steering = asyncio.Lock()  # held while an input is stored and reported
        self._reported: set[str] = set()  # ids of inputs of which `response.steer.pending` was sent

    async def run(self) -> None:
        """Carry out the client's events until it disconnects."""
        async with asyncio.TaskGroup() as tasks:
            async for event in self._socket.frames():
                stream_id = event.get("stream_id") if isinstance(event, dict) else None
                try:
                    if isinstance(event, TenutoError):
                        raise event
                    if event.get("type") == "response.steer":
                        async with self._steering:
                            await self._steer(event)
                        continue
                    lane = self._lane_for(event)
                except TenutoError as error:
                    await self._fail(_Lane(stream_id if isinstance(stream_id, str) else None), error.problem())
                    continue
                lane.waiting.append((event, self._socket.frame_bytes))
                if lane.stream_id not in self._lanes:
                    self._lanes[lane.stream_id] = lane
                    lane.task = tasks.create_task(self._work(lane))
            for lane in self._lanes.values():
                lane.task.cancel()

    def _lane_for(self, event: Json) -> _Lane:
        kind, stream_id = event.get("type"), event.get("stream_id")
        if kind not in ("response.create", "response.retrieve"):
            raise InvalidRequest(f"type must be response.create, .steer or .retrieve, got {kind!r:.80}", param="type")
        if stream_id is not None and not (isinstance(stream_id, str) and len(stream_id) <= 64):
            detail = f"stream_id must be a text of at most 64 characters, got {stream_id!r:.80}"
            raise InvalidRequest(detail, param="stream_id")
        if event.get("background") or event.get("generate") is False:
            raise InvalidRequest("background and generate are not supported on a socket; leave them out")
        lane = self._lanes.get(stream_id)
        waiting = [size for one in self._lanes.values() for _, size in one.waiting]
        limit_bytes = self._socket.access.limits.message_bytes
        is_full = len(waiting) >= MAX_WAITING or (waiting and sum(waiting) + self._socket.frame_bytes > limit_bytes)
        if is_full or (lane is None and len(self._lanes) >= MAX_LANES):
            limits = f"{MAX_LANES} stream_ids at once, and {MAX_WAITING} requests of {limit_bytes} bytes that wait"
            raise TooMany(f"a socket has at most {limits}; wait until a response has ended", limit=MAX_WAITING)
        return lane or _Lane(stream_id)

    async def _work(self, lane: _Lane) -> None:
        try:
            while lane.waiting:
                (event, _), after = lane.waiting.popleft(), -1
                try:
                    access = self._socket.access
                    if is_new := event["type"] == "response.create":
                        lane.question, of = await self._sockets.begin(access, event)
                    else:
                        of, after = reference(event.get("response_id"), "response_id"), after_of(event)
                        access.check(of.channel, "subscribe", "history")
                        lane.question = (await turn_of(access, of)).question
                    await self._respond(lane, of, after, is_new=is_new and not any(of.start))
                except TenutoError as error:
                    await self._fail(lane, error.problem())
                except (OSError, TimeoutError):
                    raise  # the peer is gone
                except Exception:
                    logger.exception("a request of a socket failed")
                    await self._fail(lane, {"status": 500, "code": "internal", "detail": "internal error", "title": ""})
                finally:
                    lane.question = lane.of = lane.previous = lane.events = None
        except (OSError, TimeoutError, RuntimeError) as error:
            logger.debug("a socket ends: %r", error)
        finally:
            del self._lanes[lane.stream_id]

    async def _respond(self, lane: _Lane, of: Reference, after: int, *, is_new: bool) -> None:
        """Send a response, and the successors that further input gives it: unless it `is_new`, also stored input."""
        steer: _Steer | None = None  # the input whose turn is sent
        while True:
            lane.steers = [] if is_new else await self._read_steers(lane, of)
            lane.of = of
            lane.events = events = _Frames(self._socket.access, lane, of, after)
            problem = await self._socket.stream(of.channel, of.message_id, events)
            lane.of = None
            if problem is not None:
                if steer is not None:
                    await self._refuse(lane, steer, "successor_creation_failed", problem["detail"])
                else:
                    await self._fail(lane, problem)
                return
            async with self._steering:  # input that arrived before the end of the response is stored
                is_new, after = is_new and not lane.steers, -1
            if events.rest is not None:
                lane.previous, of = of, events.rest
                continue
            steers = [] if is_new else await self._read_steers(lane, of)
            if not steers:
                for frame in events.late.splitlines():
                    await self._socket.send(frame)
                return
            if required := events.required_input():
                for one in (one for one in steers if one.id not in self._reported):
                    self._reported.add(one.id)
                    about = {"reason": "waiting_for_required_input", "required_input": required}
                    await self._report(lane, "pending", one, **about)
                return
            steer = steers[0]
            lane.question, of = steer.message, Reference(of.channel, steer.id)

    async def _read_steers(self, lane: _Lane, of: Reference) -> list[_Steer]:
        """Return the stored inputs of this person that a response or its successor is for."""
        assert lane.question is not None
        question, access, later, before = lane.question, self._socket.access, list[Message](), lane.previous
        for _ in range(PAGES):
            page = await access.history(of.channel, after=(later or [question])[-1].created, limit=200)
            later += page.messages
            if not page.more:
                break
        root = question.meta.get(STEERS, question.id)
        own = [one for one in later if one.meta.get(STEERS) == root and one.author == access.identity.client_id]
        found, taken, hosts = list[_Steer](), 0, {root, *(one.id for one in own)}
        for id in (one.id for one in own):
            with suppress(NotFound):
                message = (await turn_of(access, Reference(of.channel, id))).question
                named = reference(requested_in(message).get("previous_response_id"))
                is_taken = (host := access.taken_by(of.channel, id)) == question.id
                is_later = named.at() == of.at() and named.steers > of.steers
                if is_later if is_taken else host in hosts:
                    continue  # another response has the answer
                taken += is_taken
                if is_taken and taken <= of.steers:
                    lane.previous = before or named
                else:
                    found.append(_Steer(id, named.id(), input_items(of.channel, message), message, is_taken))
        return found

    async def _steer(self, event: Json) -> None:
        """Store further input for a response of this socket, and report it."""
        steer = _Steer(secrets.token_hex(16), str(event.get("previous_response_id"))[:1000], event.get("input"))
        lane, access = _Lane(), self._socket.access
        try:
            of = reference(event.get("previous_response_id"))
            access.check(of.channel, "history", "publish")
            status = (await turn_of(access, of)).status
            found = next((one for one in self._lanes.values() if one.of == of), None)
            if found is None or found.question is None:
                code = "response_already_completed" if status.state == "over" else "response_not_active"
                await self._refuse(lane, steer, code, f"response {of.id()[:64]!r} does not run on this socket")
                return
            lane = found
            options = {**requested_in(found.question), "previous_response_id": of.id()}
            parts = self._sockets.further_input(steer.input)
            if len(lane.steers) >= MAX_WAITING:
                raise TooMany(f"{MAX_WAITING} inputs wait for this response already; send them later")
            lane.steers.append(steer)
            meta = {STEERS: found.question.meta.get(STEERS, found.question.id)}
            steer.message = await access.create(of.channel, id=steer.id, parts=parts, meta=meta, options=options)
            await self._report(lane, "accepted", steer)
        except TenutoError as error:
            with suppress(ValueError):
                lane.steers.remove(steer)
            is_unknown = isinstance(error, NotFound | Forbidden | InvalidName)  # or another person's
            code = "too_many_pending_steers" if isinstance(error, TooMany) else "invalid_input"
            await self._refuse(lane, steer, "response_not_found" if is_unknown else code, error.detail)

    async def _report(self, lane: _Lane, name: str, steer: _Steer, **about: object) -> None:
        named: Json = {"previous_response_id": steer.previous} | ({"id": steer.id} if steer.message is not None else {})
        named |= {"input": steer.input} if name == "failed" else {}
        last = max(0, lane.events.position - 1) if lane.events is not None else 0  # after it the client may resume
        event = {"type": f"response.steer.{name}", "sequence_number": last, "steer": named, **about}
        await self._socket.send(encode(_marked(lane, event)))

    async def _refuse(self, lane: _Lane, steer: _Steer, code: str, detail: str) -> None:
        """Return input that has no successor response to the client."""
        error = {"type": "invalid_request_error", "code": code, "message": detail}
        await self._report(lane, "failed", steer, error=error)

    async def _fail(self, lane: _Lane, problem: Json) -> None:
        event = {"type": "error", "status": problem["status"], "error": error_of(problem)}
        await self._socket.send(encode(_marked(lane, event)))


def _marked(lane: _Lane, event: Json) -> Json:
    return event if lane.stream_id is None else {**event, "stream_id": lane.stream_id}
