"""A socket's session: it carries out client frames and decides which frames are sent, without any I/O.

Layer: transports.

The owner of a connection, a real one (`websocket`) or a simulator's, drives a `Session`:

- it calls `receive(text, now_s=)` for each received frame, while not `is_full`;
- after each `wake` or `released`, and after each written frame, it calls `frame_to_send()` until there is none, only
  when the frame can be written: no event is taken from a feed before there is room for it;
- when there is no frame and `closing` is set, it closes with that code;
- it calls `keep_alive(now_s=, has_read=)` every `PING_S` seconds, also while the peer does not read;
- it calls `close()` when the connection is gone.

Requests go to the hub in order and get their responses as they commit. `Attachments` has the followed channels.
`docs/protocol.md`, 7, is the contract.

The agents of a socket (`SocketWorker`) are workers of the turn scheduler. A turn of a socket is leased: its agent
renews it. When the socket breaks, the scheduler soon gives the turn to another worker.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tenuto.core.errors import Fenced, InvalidRequest, NotWriter, StoreUnusable, TenutoError, TooMany
from tenuto.core.events import encode_json, parse_cursor
from tenuto.core.limits import KIB
from tenuto.core.model import Json, check_json
from tenuto.core.names import check_channel, check_id, invalid_pattern, is_pattern, matches
from tenuto.core.requests import AppendText, CreateMessage, PutPart, RenewLease, Request, TakeOver, UpdateMessage
from tenuto.core.turns import WhenBusy
from tenuto.development import names_exceptions
from tenuto.hub.access.identity import Identity
from tenuto.hub.channel import Behind, Feed
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.hub.turns.scheduler import LEASE_S, AssignedTurn
from tenuto.transports.access import (
    EXPECTED_BYTES,
    Credentials,
    ResumeLimits,
    allowed_start,
    check_operation,
    event_bytes,
    key_of,
    member_of,
)
from tenuto.transports.codec import (
    DRAINED,
    FAILED,
    FRAME_TOO_LARGE,
    MISUSED,
    SILENT,
    decode,
    for_peers,
    known_error,
    ref_in,
    result_fields,
)
from tenuto.transports.operations import (
    BY_FRAME,
    AttachFrame,
    DetachFrame,
    HistoryFrame,
    PartFrame,
    PongFrame,
    PresenceFrame,
    Ref,
    SignalFrame,
    TurnDoneFrame,
    TurnRenewFrame,
    TurnTakeFrame,
    WorkFrame,
    frame_decoder,
)
from tenuto.transports.sse import RETRY_MS

Fields = dict[str, Json] | None  # of a response; None: there is none, or it comes later
Respond = Callable[[dict[str, Json] | TenutoError], None]  # gets the fields of a response, or the refusal

MAX_PATTERNS = 20
MAX_PATTERN_CHARACTERS = 201  # length of a channel's name, and a star


@dataclass(eq=False)
class SocketWorker:
    """One agent of a socket, which takes the turns of one pattern."""

    is_local = False

    session: Session
    name: str
    pattern: str
    slots: int = 0  # turns that it may have at the same time
    free: int = 0  # below 0 while it has more
    when_busy: WhenBusy = "queue"
    turns: set[AssignedTurn] = field(default_factory=set)
    is_listed: bool = True  # True: the scheduler may give this worker turns

    def has(self, channel: str, message_id: str | None) -> bool:
        """Return whether this worker has this turn or, with None, any turn in the channel."""
        return any(turn.channel == channel and message_id in (None, turn.message_id) for turn in self.turns)

    def begin(self, turn: AssignedTurn) -> None:
        self.turns.add(turn)
        self.session.give_turn(self, turn)

    def ended(self, turn: AssignedTurn, state: str) -> None:
        """Free the slot of a turn that ended elsewhere (`Worker.ended`)."""
        self._free(turn)

    def renew(self, frame: TurnRenewFrame) -> None:
        """Renew the lease of a turn. Raises Fenced if the turn is over or another worker has it."""
        turn = self.turn_of(frame)
        if not self.session.hub.runtime.scheduler.renew(self, turn):
            raise _not_its_turn()
        if not self.has(turn.channel, turn.message_id):  # a turn of the previous socket takes a slot here
            self.turns.add(turn)
            self.free -= 1
        if frame.state is not None:
            check_json(frame.state, self.session.hub.limits.data_bytes, "a state", depth=self.session.hub.limits.depth)
            self.session.hub.runtime.scheduler.set_state(frame.channel, self.name, frame.state)

    def end(self, turn: AssignedTurn, state: Literal["done", "cancelled", "pending"], done: Respond) -> None:
        """End a turn, or hand it over."""

        def stored(result: Result | TenutoError) -> None:
            if not isinstance(result, TenutoError):
                done({"serial": result.serial})
            else:  # the response must not show which turns other workers have
                done(result if result.retry else _not_its_turn())

        self.session.hub.runtime.scheduler.end(self, turn, state, stored)
        self._free(turn)

    def given_back(self, turn: AssignedTurn, done: Respond, result: Result | TenutoError | None) -> None:
        """Let a turn that its agent has lost wait again, unless `result` (None on an exclusive store) is a refusal."""
        scheduler = self.session.hub.runtime.scheduler
        if isinstance(result, TenutoError):
            done(result if result.retry else _not_its_turn())
        else:
            scheduler.renew(self, turn)  # it may be a turn of the previous socket
            done({} if scheduler.left(self, turn) else _not_its_turn())
        self._free(turn)

    def turn_of(self, frame: TurnRenewFrame | TurnDoneFrame) -> AssignedTurn:
        """Return the turn that `frame` names. Raises InvalidName."""
        return AssignedTurn(check_channel(frame.channel), check_id(frame.message), frame.generation)

    def _free(self, turn: AssignedTurn) -> None:
        """Give the slot of a turn back, if the turn is one of this worker's."""
        known = next((one for one in self.turns if one[:3] == turn[:3]), None)  # without `tries` and `unheard`
        if known is not None:
            self.turns.discard(known)
            self.session.hub.runtime.scheduler.freed(self)
            if not self.has(turn.channel, None):  # it works on no other turn there
                self.session.hub.runtime.scheduler.set_state(turn.channel, self.name, {"state": "listening"})


def _not_its_turn() -> Fenced:
    return Fenced("the turn of this message is over or another worker has it; stop working on it")


class SocketWorkers:
    """All workers of one socket, by pattern and name."""

    __slots__ = ("_hub", "_session", "_workers")

    def __init__(self, session: Session) -> None:
        self._hub = session.hub
        self._session = session
        self._workers: dict[tuple[str, str], SocketWorker] = {}

    def __bool__(self) -> bool:
        return any(one.is_listed or one.turns for one in self._workers.values())

    def work(self, frame: WorkFrame, identity: Identity) -> None:
        """Register a worker, change it or, with `slots=0`, end it. Raises Forbidden, InvalidRequest, TooMany."""
        name, pattern = member_of(identity, frame.name), frame.pattern
        worker = self._workers.get((pattern, name))
        if worker is not None:
            self._hub.runtime.scheduler.unregister(worker)  # registered again below, unless it ends
        # With no slots, the worker takes no more turns. It keeps those that it has, and those of its previous socket,
        # which it may have yet to renew here.
        if not frame.slots:
            if worker is not None:
                worker.is_listed = False
            return
        if not is_pattern(pattern) or len(pattern) > MAX_PATTERN_CHARACTERS:
            raise InvalidRequest(invalid_pattern(pattern))
        check_operation(identity, BY_FRAME[WorkFrame], pattern)  # in all channels that it covers
        if worker is None:
            if len(self._workers) >= MAX_PATTERNS:  # first forget those that have ended
                self._workers = {key: one for key, one in self._workers.items() if one.is_listed or one.turns}
            if len(self._workers) >= MAX_PATTERNS:
                raise TooMany(
                    f"this socket works on {MAX_PATTERNS} patterns, which is the limit; open another one",
                    limit=MAX_PATTERNS,
                )
            worker = self._workers[pattern, name] = SocketWorker(self._session, name, pattern)
        worker.free += frame.slots - worker.slots  # the turns that it has keep their slots
        worker.slots, worker.when_busy, worker.is_listed = frame.slots, frame.when_busy, True
        self._session.start_task(self._register(worker))

    async def _register(self, worker: SocketWorker) -> None:
        """Register in a separate task, so that the response is sent before the first turn."""
        if self._workers.get((worker.pattern, worker.name)) is worker and worker.is_listed:  # else it has ended
            self._hub.runtime.scheduler.register(worker)

    def find(self, frame: TurnRenewFrame | TurnTakeFrame | TurnDoneFrame) -> SocketWorker:
        """Return the worker that a frame about a turn is meant for. Raises InvalidRequest if no worker fits."""
        fitting = [one for one in self._workers.values() if matches(one.pattern, frame.channel)]
        for worker in fitting:  # to take a message in, a worker needs any turn in the channel
            if worker.has(frame.channel, None if isinstance(frame, TurnTakeFrame) else frame.message):
                return worker
        if fitting:  # for a turn of the previous socket: the claim in the log names the worker
            by = self._hub.runtime.scheduler.claimed_by(frame.channel, frame.message)
            return next((worker for worker in fitting if worker.name == by), fitting[0])
        # The same text for every channel, since it must not show whether the channel exists.
        raise InvalidRequest("this socket takes no turns in that channel: send `work` with a pattern for it first")

    def renew(self, frame: TurnRenewFrame, done: Respond) -> None:
        """Renew the lease of a turn, once the renewal is stored where other hubs need it."""
        worker = self.find(frame)
        turn = worker.turn_of(frame)

        def stored(result: Result | TenutoError | None) -> None:
            try:
                if isinstance(result, NotWriter) and self.find(frame) is not worker:  # the channel is loaded by now
                    self.renew(frame, done)
                    return
                if isinstance(result, TenutoError):
                    raise result if result.retry else _not_its_turn()
                keeps_leases = self._session.keeps_leases
                if keeps_leases is not None:  # the socket has closed meanwhile, as in `release`
                    self._hub.runtime.scheduler.renew(worker, turn)
                    self._hub.runtime.scheduler.unregister(worker, is_broken=True, keeps_leases=keeps_leases)
                else:
                    worker.renew(frame)
            except TenutoError as refusal:
                done(refusal)
            else:
                done({"lease_s": LEASE_S})

        self._hub.runtime.scheduler.store_renewal(worker, turn, stored, gives_back=False)

    def end(self, frame: TurnDoneFrame, done: Respond) -> None:
        """End a turn, or let it wait for its next attempt if the agent has lost this one."""
        worker = self.find(frame)
        turn = worker.turn_of(frame)._replace(unheard=tuple(map(check_id, frame.unheard)))

        if frame.state == "lost":
            given_back = partial(worker.given_back, turn, done)
            self._hub.runtime.scheduler.store_renewal(worker, turn, given_back, gives_back=True)
        else:
            worker.end(turn, "pending" if frame.state == "handed_over" else frame.state, done)

    async def take(self, frame: TurnTakeFrame) -> dict[str, Json]:
        """Take a waiting message into a running turn, and return the fields of the response."""
        worker = self.find(frame)
        channel, message_id = check_channel(frame.channel), check_id(frame.message)
        turn = check_id(frame.turn) if frame.turn is not None else None
        is_at_work = worker.has(channel, None)
        return {"taken": is_at_work and await self._hub.take_waiting(channel, message_id, worker.name, turn=turn)}

    def release(self, *, keeps_leases: bool) -> None:
        """Unregister all workers, because the socket has closed; their turns end as `Session.close` ends leases."""
        workers, self._workers = self._workers, {}
        if self._hub.is_running:
            for worker in workers.values():
                self._hub.runtime.scheduler.unregister(worker, is_broken=True, keeps_leases=keeps_leases)


logger = logging.getLogger("tenuto.transports")


@dataclass(slots=True, eq=False)
class Attachment:
    """A channel that a socket is attached to, or is attaching to."""

    channel: str
    feed: Feed | None = None  # None until the hub has attached it, and after `leave`
    is_catching_up: bool = False
    # resume limits of a viewer without the capability `history`; else None
    resume_limits: ResumeLimits | None = None


class Attachments:
    """All attachments of one session, and the next frames of their events.

    Attachments whose feeds have missed events wait in `ready`, in the order they were woken. In its turn each takes
    one batch: of all its missed entries, or of all its missed ephemeral events.
    """

    __slots__ = ("_attaching", "_by_channel", "_hub", "_session", "ready", "rest")

    def __init__(self, session: Session) -> None:
        self._hub = session.hub
        self._session = session
        self._by_channel: dict[str, Attachment] = {}
        # for each channel the task of the newest `attach` that has no response yet
        self._attaching: dict[str, asyncio.Task[Any] | None] = {}
        # attachments with missed events, in the order in which they were woken (a dict as an ordered set)
        self.ready: dict[Attachment, None] = {}
        # an attachment and the remaining frames of its batch, if a batch takes several frames
        self.rest: tuple[Attachment, Iterator[bytes]] | None = None

    def begin(self, channel: str, frame: AttachFrame) -> Callable[[], Coroutine[Any, Any, dict[str, Json]]]:
        """Replace the channel's old attachment, and return the work of the new one. Raises InvalidRequest, TooMany."""
        limits = self._hub.limits
        if frame.history is not None and frame.history > limits.history:
            raise InvalidRequest(f"history must be a whole number from 0 to {limits.history}, got {frame.history}")
        if channel in self._by_channel:
            self.leave(channel)
        elif len(self._by_channel) >= limits.socket_channels:
            raise TooMany(
                f"this socket is attached to {limits.socket_channels} channels, which is the limit "
                "(Limits.socket_channels); open another one",
                limit=limits.socket_channels,
            )
        attachment = self._by_channel[channel] = Attachment(channel)
        return partial(self._attach, frame, attachment)

    async def _attach(self, frame: AttachFrame, attachment: Attachment) -> dict[str, Json]:
        """Attach to the hub's channel after earlier `attach` frames of it, and return the fields of the response."""
        session, channel, task = self._session, attachment.channel, asyncio.current_task()
        earlier, self._attaching[channel] = self._attaching.get(channel), task
        feed = None
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            since = parse_cursor(frame.since) if isinstance(frame.since, str) else None
            attachment.resume_limits, since, history = allowed_start(
                self._hub, session.credentials.identity, channel, since, frame.history
            )
            if self._by_channel.get(channel) is attachment:  # else replaced or detached meanwhile
                feed = await self._hub.attach(
                    channel,
                    since,
                    history=history,
                    flush_ms=frame.flush_ms,
                    wake=partial(self.feed_woken, attachment),
                    has_ephemeral=True,
                    is_prepared=True,  # a channel that cannot be read must not end the socket and its other channels
                )
        except Exception:
            if self._by_channel.get(channel) is attachment:
                del self._by_channel[channel]
            raise
        finally:
            if self._attaching.get(channel) is task:
                del self._attaching[channel]
        if feed is not None and self._by_channel.get(channel) is attachment:
            attachment.feed = feed
            if session.credentials.is_counted:
                feed.on_first = lambda batch: session.credentials.charge(batch.encoded_bytes)
            self.ready[attachment] = None  # the response, which goes before its events, wakes the sender
        elif feed is not None:  # the client has attached again or detached meanwhile
            feed.close()
        return {"you": session.credentials.describe(channel)}

    def leave(self, channel: str) -> None:
        """Detach from a channel, if the socket is attached to it."""
        attachment = self._by_channel.pop(channel, None)
        if attachment is None:
            return
        if attachment.feed is not None:
            attachment.feed.close()
            attachment.feed = None
        self.ready.pop(attachment, None)
        if self.rest is not None and self.rest[0] is attachment:
            self.rest = None

    def close(self) -> None:
        for channel in tuple(self._by_channel):
            self.leave(channel)

    def feed_woken(self, attachment: Attachment) -> None:
        """Queue an attachment whose channel has new events."""
        if attachment.feed is not None and not attachment.is_catching_up:
            self.ready[attachment] = None
            self._session.released()

    def next_frame(self) -> bytes | None:
        """Return the next frame of events; None if no channel has missed events."""
        while True:
            if self.rest is not None:
                frame = next(self.rest[1], None)
                if frame is not None:
                    return frame
                self.rest = None
            if not self.ready:
                return None
            attachment = next(iter(self.ready))
            del self.ready[attachment]
            frames = self._take_frames(attachment)
            if len(frames) == 1:
                return frames[0]
            self.rest = (attachment, iter(frames))

    def _take_frames(self, attachment: Attachment) -> tuple[bytes, ...]:
        """Take the next batch that a feed has missed, of entries or of ephemeral events, and return its frames.

        The feed has moved behind the taken events. If they cannot be framed, the session must end, since it would skip
        them.
        """
        feed = attachment.feed
        assert feed is not None  # one that has left is not ready
        try:
            batch = feed.take()
            if batch is None:
                return ()
            if feed.is_behind:  # the other kind is left: take again later
                self.ready[attachment] = None
            limits = attachment.resume_limits
            return batch.frames if limits is None or not batch.cursor else batch.frames_with(limits.mark(batch.cursor))
        except Behind:  # the store must be read first
            attachment.is_catching_up = True
            self._session.start_task(self._catch_up(attachment, feed))
        except Exception:
            logger.exception("a socket of channel %s is closed; please report this bug", attachment.channel)
            self._session.end(FAILED, "internal")
        return ()

    async def _catch_up(self, attachment: Attachment, feed: Feed) -> None:
        """Let `feed` read the store, and take its events later; detach, or end the session, if that fails."""
        try:
            await feed.catch_up()
        except StoreUnusable as error:  # an attach would be refused; the other channels go on
            logger.warning("channel %r cannot be read, so a socket is detached from it: %s", attachment.channel, error)
            if self._by_channel.get(attachment.channel) is attachment:
                self.leave(attachment.channel)
                self._session.refuse(None, error, channel=attachment.channel)
        except TenutoError as error:
            logger.warning("a socket is closed, as channel %s cannot be read: %s", attachment.channel, error)
            self._session.end(FAILED, error.code)
        except Exception:
            logger.exception("a socket of channel %s is closed; please report this bug", attachment.channel)
            self._session.end(FAILED, "internal")
        else:
            attachment.is_catching_up = False
            self.feed_woken(attachment)


PING_S = 5.0
# after this silence a peer with a lease, presence or turns counts as gone; a live one sends a pong every 5 s
SILENCE_S = 12.0
# The size of the message in a response is not known before. This estimate bounds the number of such pending requests.
_MESSAGE_BYTES = 64 * KIB


@dataclass(slots=True, eq=False)
class Session:
    """One peer's conversation with the hub. Every method is called from the hub's event loop and does not wait."""

    hub: HubCore
    credentials: Credentials
    wake: Callable[[], None]  # called when `frame_to_send` or `closing` has changed
    # called instead of `wake` by a channel's tick, after which no further events follow soon
    released: Callable[[], None]
    start_task: Callable[[Coroutine[Any, Any, None]], object]
    last_received_s: float  # when the peer last showed that it is there
    closing: tuple[int, str] | None = None  # code and reason of the close, which follows the last frame
    keeps_leases: bool | None = None  # that of `close`; None while the connection is open
    _attachments: Attachments = field(init=False)
    # These two are made on first use, because most sockets only view: channel and id of each member that is present
    # through this socket, and the agents. The lease monitor knows the messages that depend on it.
    _present: set[tuple[str, str]] | None = None
    _workers: SocketWorkers | None = None
    # frames that go before events: responses, turns and pings; a short list, as an empty deque takes 760 B
    _replies: list[bytes] = field(default_factory=list)
    _reply_bytes: int = 0
    _pending: int = 0  # number of requests without a response
    _pending_bytes: int = 0  # what they and their responses take, as far as it is known
    _pings: int = 0  # number of pings so far
    _beats: int = 0  # number of calls of `keep_alive` since `last_received_s`

    def __post_init__(self) -> None:
        self._attachments = Attachments(self)

    # Received frames

    @property
    def is_full(self) -> bool:
        """Return whether too many requests or unsent responses are pending to receive another frame now."""
        limits = self.hub.limits
        return (
            self._pending + len(self._replies) >= limits.socket_requests
            or self._pending_bytes + self._reply_bytes >= limits.socket_request_bytes
        )

    def receive(self, text: str | None, *, now_s: float) -> None:
        """Carry out a text frame. An error is sent as the response, never raised. None is a binary frame."""
        if self.closing is not None:
            return
        if text is None:  # the protocol has no binary frames
            self.end(MISUSED, "invalid_request")
            return
        self.last_received_s, self._beats = now_s, 0
        data = text.encode(errors="surrogatepass")  # `decode` refuses half a surrogate pair
        if len(data) > self.hub.limits.request_bytes:
            self.end(FRAME_TOO_LARGE, "too_large")
            return
        try:
            frame = decode(data, frame_decoder)
        except TenutoError as error:
            self.refuse(ref_in(data), error)
            return
        handle = _HANDLERS.get(type(frame))
        if handle is None:
            self._request(frame, len(data))
            return
        try:
            fields = handle(self, frame)
            if fields is not None:
                self.respond({"type": "ok", "ref": frame.ref, **fields})
        except Exception as error:
            self.respond_error(frame.ref, error)

    def drain(self) -> None:
        """Close the session because viewers must leave."""
        if self.closing is None:
            reason = "store_unavailable" if self.hub.viewing.is_cut_off else "draining"
            self.end(DRAINED, reason, retry_ms=random.randint(*RETRY_MS))

    def close(self, *, keeps_leases: bool = False) -> None:
        """Detach from all channels, and give up presence, leases and turns: the connection has ended or will end.

        With `keeps_leases`, or if viewers must leave, the server has ended it, so its peer has not crashed: leases and
        turns last as long as they would have.
        """
        self._attachments.close()
        if self.keeps_leases is None:  # the first call decides
            self.keeps_leases = keeps_leases or self.hub.viewing.is_over
        present, self._present = self._present or (), None
        if self.hub.is_running:
            for channel, member in present:
                self.hub.runtime.presence.leave(channel, member, self)
            if not self.keeps_leases:
                self.hub.runtime.leases.broken(self)
        if self._workers is not None:
            self._workers.release(keeps_leases=self.keeps_leases)

    # Frames to send

    def frame_to_send(self) -> bytes | None:
        """Return the text of the next frame, which must be written immediately; None if there is none."""
        frame = None if self._replies else self._attachments.next_frame()
        if frame is None and self._replies:  # also the `bye` of a session that an error in `next_frame` has ended
            frame = self._replies.pop(0)
            self._reply_bytes -= len(frame)
        return frame

    def keep_alive(self, *, now_s: float, has_read: bool = False) -> None:
        """Queue a ping, or close the session of a silent peer that holds a lease, presence or a turn.

        A peer that still reads earlier bytes (`has_read`) has not come to the ping yet, and the frames of one whose
        requests fill the session are not received, so neither is silent.
        """
        if self.closing is not None:
            return
        if has_read or (self._pending and self.is_full):
            self.last_received_s, self._beats = now_s, 0
        self._beats += 1
        # only after two pings: while the event loop is blocked, the peer gets no ping to respond to
        if (
            self._beats > 2
            and now_s - self.last_received_s >= SILENCE_S
            and (self._present or self._workers or (self.hub.is_running and self.hub.runtime.leases.is_holder(self)))
        ):
            self.end(SILENT, "silent")
        elif not self._replies:  # a waiting response shows life as a ping does
            self._pings += 1
            ping = b'{"type":"ping","n":%d}' % self._pings
            self._replies.append(ping)
            self._reply_bytes += len(ping)

    def _checked(self, frame: Any) -> str:
        """Return the channel of a frame. Raises Forbidden unless the caller may send it there, InvalidName."""
        channel: str = check_channel(frame.channel)
        check_operation(self.credentials.identity, BY_FRAME[type(frame)], channel)
        return channel

    # Requests to store

    def _request(self, frame: Any, size: int) -> None:
        """Submit a request to the hub; the response is sent when the request has been stored."""
        request: Request = frame
        if isinstance(frame, PartFrame):
            request = PutPart(index=frame.part, part=frame.value, generation=frame.generation, request=frame.request)
        weight = size + (_MESSAGE_BYTES if isinstance(frame, CreateMessage | UpdateMessage) else 0)  # of the response
        try:
            channel = self._checked(frame)
            key = key_of(self.hub, self.credentials.identity, channel, request, frame.id)
            done = partial(self._request_done, frame.ref, (channel, key), request, weight)
            self.hub.runtime.submit(channel, key, request, self.credentials.caller(channel), done)
        except TenutoError as error:
            self.refuse(frame.ref, error)
            return
        self._pending += 1
        self._pending_bytes += weight
        if isinstance(frame, UpdateMessage):
            self.credentials.charge(EXPECTED_BYTES)  # until `_request_done`: the response has a whole message

    def _request_done(
        self, ref: Ref, key: tuple[str, str], request: Request, weight: int, result: Result | TenutoError
    ) -> None:
        """Respond to a request about `key` (channel and id), pending with `weight` bytes, and charge its event."""
        self._pending -= 1
        self._pending_bytes -= weight
        if isinstance(result, Result):
            self._note_request(*key, request)  # for the lease of its writer
            self.credentials.count_new_channel(result)
        try:
            if isinstance(result, TenutoError):
                raise result
            size = self.respond({"type": "ok", "ref": ref, **result_fields(request, result)})
        except TenutoError as error:
            size = self.refuse(ref, error)
        if isinstance(request, UpdateMessage):  # the charge of its receipt ends
            self.credentials.charge(-EXPECTED_BYTES)
        if isinstance(result, Result) and self.credentials.is_counted:
            # `weight` of a create or update is not its true size, but the response to it holds the whole message
            is_whole = isinstance(request, CreateMessage | UpdateMessage)
            largest = size if is_whole else max(size, weight)
            self.credentials.charge(event_bytes(self.hub, key[0], result, largest))

    def _note_request(self, channel: str, message_id: str, request: Request) -> None:
        """Note a stored request, which shows whether its message's writer depends on this socket from now on."""
        if isinstance(request, AppendText | PutPart | RenewLease | TakeOver) or (
            isinstance(request, CreateMessage) and request.status == "streaming"
        ):
            leases = self.hub.runtime.leases
            leases.held(channel, message_id, self)
            if self.keeps_leases is False:  # the request was still running when the connection broke
                leases.broken(self)

    # Requests with an immediate response

    def _presence(self, frame: PresenceFrame) -> dict[str, Json]:
        channel = self._checked(frame)
        member, present = member_of(self.credentials.identity, frame.member), self._present or set()
        if frame.leave and (channel, member) in present:
            present.discard((channel, member))
            self.hub.runtime.presence.leave(channel, member, self, is_final=True)  # without the grace period
        elif not frame.leave:
            limit = self.hub.limits.socket_channels
            if (channel, member) not in present and len(present) >= limit:
                raise TooMany(
                    f"this socket is present as {limit} members, which is the limit (Limits.socket_channels); leave "
                    "one first",
                    limit=limit,
                )
            self.hub.runtime.presence.enter(channel, member, self, frame.data)
            present.add((channel, member))
            self._present = present
        return {}

    def _signal(self, frame: SignalFrame) -> dict[str, Json]:
        channel = self._checked(frame)
        self.credentials.count_signal(frame.name)
        self.hub.runtime.presence.signal(channel, frame.name, frame.data, self.credentials.identity.client_id)
        return {}

    def _work(self, frame: WorkFrame) -> dict[str, Json]:
        self._agents().work(frame, self.credentials.identity)
        return {}

    def _agents(self) -> SocketWorkers:
        if self._workers is None:
            self._workers = SocketWorkers(self)
        return self._workers

    # Requests that read the store

    def _renew_or_end_turn(self, frame: TurnRenewFrame | TurnDoneFrame) -> None:
        """Renew or end a turn; `done` sends the response, perhaps before this method returns."""

        def done(result: dict[str, Json] | TenutoError) -> None:
            self._pending -= 1
            if isinstance(result, TenutoError):
                self.refuse(frame.ref, result)
            else:
                self.respond({"type": "ok", "ref": frame.ref, **result})

        if isinstance(frame, TurnRenewFrame):
            self._agents().renew(frame, done)
        else:
            self._agents().end(frame, done)
        self._pending += 1  # only now, as an error above is the response; `done` may have run already

    def _detach(self, frame: DetachFrame) -> dict[str, Json]:
        self._attachments.leave(frame.channel)
        return {}

    async def _history(self, frame: HistoryFrame) -> dict[str, Json]:
        limits = self.hub.limits
        channel = self._checked(frame)
        limit = limits.default_history if frame.limit is None else frame.limit
        if limit > limits.history:
            raise InvalidRequest(f"limit must be a whole number from 1 to {limits.history}, got {limit}")
        self.credentials.charge(EXPECTED_BYTES)  # until the page is read
        try:
            page = await self.hub.history(channel, before=frame.before, limit=limit)
        finally:
            self.credentials.charge(-EXPECTED_BYTES)
        return {"messages": page.messages, "more": page.more, "cursor": page.cursor}

    def _begin(self, frame: Any, job: Callable[[], Coroutine[Any, Any, dict[str, Json]]], weight: int) -> None:
        """Run a request that reads the store; it counts as pending, with `weight` bytes, until it has ended."""
        self._pending += 1
        self._pending_bytes += weight
        self.start_task(self._counted(frame, job, weight))

    async def _counted(self, frame: Any, job: Callable[[], Coroutine[Any, Any, dict[str, Json]]], weight: int) -> None:
        """Respond with the fields that `job` returns, or its error, and count the request as pending no longer."""
        try:
            self.respond({"type": "ok", "ref": frame.ref, **await job()})
        except Exception as error:
            self.respond_error(frame.ref, error)
        finally:
            self._pending -= 1
            self._pending_bytes -= weight

    # Responses

    def give_turn(self, worker: SocketWorker, turn: AssignedTurn) -> None:
        """Send a turn to an agent of this socket."""
        message = self.hub.channel(turn.channel).state.messages.get(turn.message_id)
        if message is None or self.closing is not None:
            return  # the lease of the turn will end, and another worker gets it
        frame: dict[str, Any] = {
            "type": "turn",
            "channel": turn.channel,
            "message": message.message(),
            "generation": turn.generation,
            "lease_s": LEASE_S,
            "pattern": worker.pattern,
            "name": worker.name,
            "tries": turn.tries,
        }
        if names_exceptions(self.hub.debug, self.hub.authenticate is None):
            frame["debug"] = True  # the text of a failure may name the exception
        self.respond(frame)

    def refuse(self, ref: Json, error: TenutoError, **fields: Json) -> int:
        """Respond to the request `ref` with an error, in the form that peers may see. Return the response's size."""
        return self.respond({**for_peers(error).problem(), **fields, "type": "error", "ref": ref})

    def respond_error(self, ref: Ref, error: Exception) -> None:
        """Send the response to a request that raised; log an exception that peers must not see."""
        self.refuse(ref, known_error(error, "a request of a socket failed"))

    def respond(self, frame: dict[str, Any]) -> int:
        """Send a response frame and return its size. It goes before the missed events of channels."""
        data = encode_json(frame)
        self._replies.append(data)
        self._reply_bytes += len(data)
        self.credentials.charge(len(data))
        self.wake()
        return len(data)

    def end(self, code: int, reason: str, **details: int) -> None:
        """Send `bye` and close. Events that were not sent are dropped here; the client's cursor brings them back."""
        self.respond({"type": "bye", "reason": reason, **details})
        self.closing = code, reason
        self.close()
        self.wake()


# All other frames are requests to store. Methods are looked up by name, so that tests may replace them.
_HANDLERS: dict[type, Callable[[Session, Any], Fields]] = {
    PongFrame: lambda session, frame: None,  # only its arrival matters
    AttachFrame: lambda session, frame: session._begin(
        frame, session._attachments.begin(session._checked(frame), frame), 0
    ),
    DetachFrame: lambda session, frame: session._detach(frame),
    HistoryFrame: lambda session, frame: session._begin(
        frame, partial(session._history, frame), session.hub.limits.history_bytes
    ),
    TurnTakeFrame: lambda session, frame: session._begin(frame, partial(session._agents().take, frame), 0),
    TurnDoneFrame: lambda session, frame: session._renew_or_end_turn(frame),
    TurnRenewFrame: lambda session, frame: session._renew_or_end_turn(frame),
    PresenceFrame: lambda session, frame: session._presence(frame),
    SignalFrame: lambda session, frame: session._signal(frame),
    WorkFrame: lambda session, frame: session._work(frame),
}
