"""A socket's session: what client frames ask for and which frames are sent, without any I/O.

Layer: transports.

A `Session` is driven by whoever has a connection, a real one (`websocket`) or a simulator's:

- call `receive(text, now_s=)` for each frame that comes, while not `is_full`;
- whenever `wake` was called, and after each frame that could be written, ask `frame_to_send(now_s=)` for the next one,
  one at a time and only when it can be written: nothing is taken from a feed before there is room for it;
- when it has none and `closing` is set, close with that code; call `frame_to_send` again at `next_deadline_s`;
- call `close()` when the connection is gone.

Requests go to the hub in order and are answered as they commit. Feeds that have something wait in `_ready`, in order,
and each takes all it is owed when its turn comes. `docs/protocol.md`, "WebSocket", is the contract.
"""

from __future__ import annotations

import json
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from holdfast.core.cursor import parse_cursor
from holdfast.core.errors import HoldfastError, InvalidRequest, TooMany
from holdfast.core.events import encode_json
from holdfast.core.limits import KIB
from holdfast.core.model import Json
from holdfast.core.names import check_channel, check_id, command_key
from holdfast.core.patterns import RULE, is_pattern, matches
from holdfast.core.requests import (
    AppendText,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    PutPart,
    RenewLease,
    Request,
    TakeOver,
)
from holdfast.hub.committer import Result
from holdfast.hub.feed import Behind, Feed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity
from holdfast.hub.presence import check_member, check_signal
from holdfast.hub.turns import LEASE_S, TurnOffer
from holdfast.transports.codec import answer_fields, decode, for_peers, unexpected
from holdfast.transports.frames import (
    NEEDED,
    Asking,
    AttachFrame,
    CommandFrame,
    CreateFrame,
    DetachFrame,
    HistoryFrame,
    PartFrame,
    PongFrame,
    PresenceFrame,
    Ref,
    ReplyFrame,
    SignalFrame,
    TurnDoneFrame,
    TurnRenewFrame,
    TurnTakeFrame,
    UpdateFrame,
    WorkFrame,
    decoder,
)
from holdfast.transports.http import caller_of, check_create, check_update, note_answer
from holdfast.transports.resume_limits import ResumeLimits, known_since, resume_limits_of
from holdfast.transports.socket_worker import SocketWorker
from holdfast.transports.sse import RETRY_MS, allowed_history

logger = logging.getLogger("holdfast.transports")

PING_S = 5.0
# Whoever drives this by a timer of whole seconds comes a little early now and then; a ping early is better than one
# that waits for the next turn. For the same reason the first is due soon.
PING_EARLY_S = 0.5
FIRST_PING_S = 1.0
SILENCE_S = 12.0  # of a peer that holds a lease, presence or turns: it is gone. Whoever pongs is heard every 5 s
MAX_WRITTEN = 1_000  # messages whose leases end sooner when this socket breaks
MAX_PATTERNS = 20
# Whoever may take turns and neither follow nor answer them would take them from those who can.
TO_WORK = ("agent", "subscribe", "append")
MAX_PATTERN_CHARACTERS = 201  # a channel's name, and a star
# What an answer with a whole message may weigh is not known before; so many such requests may be unanswered.
_MESSAGE_BYTES = 64 * KIB

# Close codes (`docs/protocol.md`, "Close codes"): below 4300 a client comes back.
DRAINED = 1012
FAILED = 4000
SILENT = 4001
MISUSED = 4300
FRAME_TOO_LARGE = 4301


class Closing(NamedTuple):
    """How to close once all frames are sent."""

    code: int
    reason: str


class _Ref(Struct):
    ref: Json = None


_ref = msgspec.json.Decoder(_Ref)


class Attachment:
    """A channel that a session is attached to, or is attaching to."""

    __slots__ = ("_session", "channel", "feed", "is_catching_up", "resume_limits")

    def __init__(self, session: Session, channel: str) -> None:
        self._session = session
        self.channel = channel
        self.feed: Feed | None = None  # None while the hub is still asked for it, and after `close`
        self.is_catching_up = False
        self.resume_limits: ResumeLimits | None = None  # of a viewer who may not look at what was before

    def wake(self) -> None:
        """There is something to take, or the hub leaves."""
        self._session.feed_woken(self)

    def close(self) -> None:
        """Leave the channel."""
        if self.feed is not None:
            self.feed.close()
            self.feed = None


class Session:
    """One peer's conversation with the hub. Every method is called from the hub's event loop and does not wait."""

    __slots__ = (
        "_attachments",
        "_heard_s",
        "_hub",
        "_is_gone",
        "_ping_at_s",
        "_pings",
        "_present",
        "_ready",
        "_replies",
        "_reply_bytes",
        "_rest",
        "_start_task",
        "_unanswered",
        "_unanswered_bytes",
        "_workers",
        "_written",
        "closing",
        "identity",
        "released",
        "wake",
    )

    def __init__(
        self,
        hub: HubCore,
        identity: Identity,
        *,
        now_s: float,
        wake: Callable[[], None],
        released: Callable[[], None],
        start_task: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._hub = hub
        self.identity = identity  # set anew when the peer shows a new token
        self._start_task = start_task
        self.wake = wake  # called when `frame_to_send` or `closing` has something new
        self.released = released  # the same where a channel's tick brings it, which is a burst's end already
        self.closing: Closing | None = None
        self._attachments: dict[str, Attachment] = {}
        self._ready: dict[Attachment, None] = {}  # whose feeds have something, in the order they were woken
        self._rest: tuple[Attachment, Iterator[str]] | None = None  # of a batch that takes several frames
        self._replies: deque[str] = deque()
        self._reply_bytes = 0
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._pings = 0
        self._heard_s = now_s
        self._is_gone = False
        self._present: set[tuple[str, str]] | None = None  # channel and member, where this socket is presence
        self._written: dict[tuple[str, str], None] | None = None  # messages whose leases this socket may hold
        self._workers: dict[tuple[str, str], SocketWorker] | None = None  # by pattern and name
        self._ping_at_s = now_s + FIRST_PING_S

    # In

    @property
    def is_full(self) -> bool:
        """Is so much unanswered, or answered and not taken, that nothing more may be received for now?"""
        limits = self._hub.limits
        return (
            self._unanswered + len(self._replies) >= limits.socket_requests
            or self._unanswered_bytes + self._reply_bytes >= limits.socket_request_bytes
        )

    def receive(self, text: str, *, now_s: float) -> None:
        """Take a text frame. What is wrong with it is answered, never raised."""
        if self.closing is not None:
            return
        self._heard_s = now_s
        data = text.encode(errors="surrogatepass")
        if len(data) > self._hub.limits.request_bytes:
            self.end(FRAME_TOO_LARGE, "too_large")
            return
        try:
            frame = decode(data, decoder)
        except HoldfastError as error:
            self.refuse(ref_in(data), error)
            return
        match frame:
            case PongFrame():
                pass
            case AttachFrame():
                self._begin_attach(frame)
            case DetachFrame():
                self._detach(frame)
            case HistoryFrame():
                self._begin(partial(self._history, frame), self._hub.limits.history_bytes)
            case TurnTakeFrame():
                self._begin(partial(self._take_turn, frame), 0)
            case PresenceFrame() | SignalFrame() | WorkFrame() | TurnRenewFrame() | TurnDoneFrame():
                self._at_once(frame)
            case _:
                self._ask(frame, len(data))

    def receive_binary(self) -> None:
        """Take a binary frame: there are none in this protocol."""
        if self.closing is None:
            self.end(MISUSED, "invalid_request")

    def drain(self) -> None:
        """Send the peer away: the hub leaves."""
        if self.closing is None:
            self.end(DRAINED, "draining", retry_ms=random.randint(*RETRY_MS))

    def close(self) -> None:
        """The connection is gone, or is to go: leave all channels."""
        for attachment in self._attachments.values():
            attachment.close()
        self._attachments.clear()
        self._ready.clear()
        self._rest = None
        self._let_go()

    def _let_go(self) -> None:
        """What was held by this socket is held no more: presence, leases, turns."""
        self._is_gone = True
        present, self._present = self._present or (), None
        written, self._written = self._written or (), None
        workers, self._workers = self._workers or {}, None
        if not (present or written or workers) or not self._hub.is_running:
            return
        for channel, member in present:
            self._hub.presence.leave(channel, member, self)
        for channel, message_id in written:
            self._hub.leases.broken(channel, message_id, self)
        for worker in workers.values():
            self._hub.scheduler.unregister(worker, is_broken=True)

    # Out

    def frame_to_send(self, *, now_s: float) -> str | None:
        """The next frame, to be written now; None if there is none for now."""
        if self._replies:
            reply = self._replies.popleft()
            self._reply_bytes -= len(reply)
            return reply
        if self.closing is not None:
            return None
        if now_s >= self._ping_at_s - PING_EARLY_S:
            if self.check_silence(now_s=now_s):
                return self.frame_to_send(now_s=now_s)
            self._ping_at_s = now_s + PING_S
            self._pings += 1
            return f'{{"type":"ping","n":{self._pings}}}'
        frame = self._events()
        # What was owed may have turned out not to be sendable: then the farewell is what is left to say.
        return frame if frame is not None or self.closing is None else self.frame_to_send(now_s=now_s)

    def check_silence(self, *, now_s: float) -> bool:
        """Send a peer away that holds something and is not heard of any more; True if so. It need not read for that."""
        is_silent = now_s - self._heard_s >= SILENCE_S and bool(self._present or self._written or self._workers)
        if is_silent and self.closing is None:
            self.end(SILENT, "silent")
        return is_silent

    def next_deadline_s(self) -> float:
        """When the next ping is due."""
        return self._ping_at_s

    def feed_woken(self, attachment: Attachment) -> None:
        """The channel moved, or the hub leaves."""
        if self._hub.is_draining:
            self.drain()
        elif attachment.feed is not None and not attachment.is_catching_up:
            self._ready[attachment] = None
            self.released()

    def _events(self) -> str | None:
        if self._rest is not None:
            frame = next(self._rest[1], None)
            if frame is not None:
                return frame
            self._rest = None
        while self._ready:
            attachment = next(iter(self._ready))
            del self._ready[attachment]
            frame = self._take(attachment)
            if frame is not None:
                return frame
        return None

    def _take(self, attachment: Attachment) -> str | None:
        """The first frame of all that a feed is owed.

        A feed stands behind what was taken from it, so where that cannot be framed the session ends: whoever went on
        would go on past it.
        """
        feed = attachment.feed
        if feed is None:
            return None
        try:
            return self._first_frame(attachment, feed)
        except Behind:
            attachment.is_catching_up = True
            self._start_task(self._catch_up(attachment, feed))
        except Exception:
            logger.exception("what a socket is owed of %s cannot be sent", attachment.channel)
            self.end(FAILED, "internal")
        return None

    def _first_frame(self, attachment: Attachment, feed: Feed) -> str | None:
        batch = feed.take()
        if batch is None:
            return None
        if feed.is_behind:  # what is said in passing comes after what is in the log
            self._ready[attachment] = None
        resume_limits = attachment.resume_limits
        frames = (
            batch.frames
            if resume_limits is None or not batch.cursor
            else batch.frames_with(resume_limits.mark(batch.cursor))
        )
        if len(frames) > 1:
            rest = iter(frames)
            self._rest = (attachment, rest)
            return next(rest)
        return frames[0]

    async def _catch_up(self, attachment: Attachment, feed: Feed) -> None:
        try:
            await feed.catch_up()
        except HoldfastError as error:
            logger.warning("a channel of a socket cannot be read: %s", error)
            self.end(FAILED, error.code)
        except Exception:
            logger.exception("a channel of a socket cannot be read")
            self.end(FAILED, "internal")
        else:
            attachment.is_catching_up = False
            self.feed_woken(attachment)

    # Requests

    def _ask(self, frame: Asking, size: int) -> None:
        """Let a request queue; it is answered when it has been stored."""
        request: Request = frame if not isinstance(frame, PartFrame) else _put_part(frame)
        weight = size + (_MESSAGE_BYTES if isinstance(frame, CreateFrame | UpdateFrame) else 0)
        try:
            channel = check_channel(frame.channel)
            self.identity.check(NEEDED.get(type(frame), "publish"), channel)
            if isinstance(frame, CreateFrame):
                check_create(frame, self.identity, channel)
            elif isinstance(frame, UpdateFrame):
                check_update(frame, self.identity, channel)
            key = self._hub.new_id() if frame.id is None else check_id(frame.id)
            if isinstance(frame, CommandFrame | ReplyFrame):
                key = command_key(key)
            done = partial(self._answered, frame.ref, (channel, key), request, weight)
            self._hub.submit(channel, key, request, caller_of(self._hub, self.identity, channel), done)
        except HoldfastError as error:
            self.refuse(frame.ref, error)
            return
        self._unanswered += 1
        self._unanswered_bytes += weight

    def _answered(
        self, ref: Ref, place: tuple[str, str], request: Request, weight: int, answer: Result | HoldfastError
    ) -> None:
        self._unanswered -= 1
        self._unanswered_bytes -= weight
        if isinstance(answer, Result):
            self._note_lease(place, request)
            note_answer(self._hub, self.identity, answer)
        try:
            if isinstance(answer, HoldfastError):
                raise answer
            self.reply({"type": "ok", "ref": ref, **answer_fields(request, answer)})
        except HoldfastError as error:
            self.refuse(ref, error)

    def _note_lease(self, place: tuple[str, str], request: Request) -> None:
        """A request of ours was accepted: this socket is a sign of life for the message's writer, or no longer."""
        if isinstance(request, FinishMessage | DeleteMessage):
            if self._written is not None:
                self._written.pop(place, None)
        elif isinstance(request, AppendText | PutPart | RenewLease | TakeOver) or (
            isinstance(request, CreateMessage) and request.status == "streaming"
        ):
            if self._is_gone:  # it was under way when the socket broke
                self._hub.leases.held(*place, self)
                self._hub.leases.broken(*place, self, is_late=True)
                return
            self._hub.leases.held(*place, self)
            if self._written is None:
                self._written = {}
            self._written[place] = None
            if len(self._written) > MAX_WRITTEN:
                del self._written[next(iter(self._written))]

    def _at_once(self, frame: PresenceFrame | SignalFrame | WorkFrame | TurnRenewFrame | TurnDoneFrame) -> None:
        """What is not stored is answered at once; the end of a turn when it is."""
        try:
            if isinstance(frame, TurnDoneFrame):
                self._end_turn(frame)
                return
            fields = self._work(frame) if isinstance(frame, WorkFrame | TurnRenewFrame) else self._pass_on(frame)
        except Exception as error:
            self._failed(frame.ref, error)
            return
        self.reply({"type": "ok", "ref": frame.ref, **fields})

    def _pass_on(self, frame: PresenceFrame | SignalFrame) -> dict[str, Json]:
        channel = check_channel(frame.channel)
        self.identity.check("presence", channel)
        presence = self._hub.presence
        if isinstance(frame, SignalFrame):
            self._hub.rates.signal(self.identity)
            check_signal(frame.name)
            presence.signal(channel, frame.name, frame.data, self.identity.client_id)
            return {}
        member = check_member(frame.member or self.identity.client_id or "anonymous", self.identity.client_id)
        place = (channel, member)
        if self._present is None:
            self._present = set()
        if frame.leave:
            if place in self._present:
                self._present.discard(place)
                presence.leave(channel, member, self, is_final=True)
            return {}
        if place not in self._present and len(self._present) >= self._hub.limits.socket_channels:
            limit = self._hub.limits.socket_channels
            raise TooMany(f"a socket is present as at most {limit} members", limit=limit)
        presence.enter(channel, member, self, frame.data)
        self._present.add(place)
        return {}

    # Work

    def _work(self, frame: WorkFrame | TurnRenewFrame) -> dict[str, Json]:
        if isinstance(frame, TurnRenewFrame):
            worker = self._worker_of(frame)
            worker.renew(frame)
            return {"lease_s": LEASE_S}
        if self._workers is None:
            self._workers = {}
        name = check_member(frame.name or self.identity.client_id or "anonymous", self.identity.client_id)
        known = self._workers.get((frame.pattern, name))
        if known is not None:
            self._hub.scheduler.unregister(known)
        if not frame.slots:  # no more; the turns that it has are still its own
            if known is not None:
                known.is_listed = False
                if not known.turns:
                    del self._workers[frame.pattern, name]
            return {}
        pattern = frame.pattern
        if not is_pattern(pattern) or len(pattern) > MAX_PATTERN_CHARACTERS:
            raise InvalidRequest(f"pattern: {RULE}")
        for needed in TO_WORK:
            self.identity.check_pattern(needed, pattern)
        if known is None and len(self._workers) >= MAX_PATTERNS:
            raise TooMany(f"a socket works on at most {MAX_PATTERNS} patterns", limit=MAX_PATTERNS)
        worker = SocketWorker(self.give_turn, self._hub, name, pattern, frame.slots, frame.when_busy)
        if known is not None:
            worker.take_over(known)
            self._hub.scheduler.hand_over(known, worker)
        self._workers[pattern, name] = worker
        self._start_task(self._register(worker))
        return {}

    async def _register(self, worker: SocketWorker) -> None:
        """After the answer, so that no turn comes before it."""
        if (
            self._workers is not None
            and self._workers.get((worker.pattern, worker.name)) is worker
            and worker.is_listed
        ):
            self._hub.scheduler.register(worker)

    def _worker_of(self, frame: TurnRenewFrame | TurnTakeFrame | TurnDoneFrame) -> SocketWorker:
        fitting = [one for one in (self._workers or {}).values() if matches(one.pattern, frame.channel)]
        for worker in fitting:
            if worker.has(frame.channel, None if isinstance(frame, TurnTakeFrame) else frame.message):
                return worker
        if fitting:  # a turn of the socket before: its claim says whose
            by = self._hub.scheduler.claimed_by(frame.channel, frame.message)
            return next((worker for worker in fitting if worker.name == by), fitting[0])
        raise InvalidRequest("this socket asked for no work in that channel")

    def _end_turn(self, frame: TurnDoneFrame) -> None:
        self._unanswered += 1

        def done(answer: Result | HoldfastError) -> None:
            self._unanswered -= 1
            if isinstance(answer, HoldfastError):
                self.refuse(frame.ref, answer)
            else:
                self.reply({"type": "ok", "ref": frame.ref, "serial": answer.serial})

        try:
            self._worker_of(frame).end(frame, done)
        except HoldfastError as error:
            done(error)

    async def _take_turn(self, frame: TurnTakeFrame) -> None:
        try:
            worker = self._worker_of(frame)
            channel, message_id = check_channel(frame.channel), check_id(frame.message)
            turn = check_id(frame.turn) if frame.turn is not None else None
            is_taken = worker.works_in(channel) and await self._hub.take_waiting(
                channel, message_id, worker.name, turn=turn
            )
        except Exception as error:
            self._failed(frame.ref, error)
            return
        self.reply({"type": "ok", "ref": frame.ref, "taken": is_taken})

    def give_turn(self, worker: SocketWorker, turn: TurnOffer) -> None:
        """A turn for this socket's agent."""
        message = self._hub.channel(turn.channel).state.message(turn.message_id)
        if message is None or self.closing is not None:
            return  # it lapses
        self.reply(
            {
                "type": "turn",
                "channel": turn.channel,
                "message": message.message(),
                "generation": turn.generation,
                "lease_s": turn.lease_s,
                "pattern": worker.pattern,
                "name": worker.name,
            }
        )

    def _begin_attach(self, frame: AttachFrame) -> None:
        try:
            channel = check_channel(frame.channel)
            self.identity.check("subscribe", channel)
            limits = self._hub.limits
            if frame.history is not None and frame.history > limits.history:
                raise InvalidRequest(f"history is a whole number from 0 to {limits.history}")
            if channel not in self._attachments and len(self._attachments) >= limits.socket_channels:
                raise TooMany(f"a socket has at most {limits.socket_channels} channels", limit=limits.socket_channels)
        except HoldfastError as error:
            self.refuse(frame.ref, error)
            return
        self._leave(channel)
        attachment = self._attachments[channel] = Attachment(self, channel)
        self._begin(partial(self._attach, frame, attachment), 0)

    async def _attach(self, frame: AttachFrame, attachment: Attachment) -> None:
        resume_limits = attachment.resume_limits = resume_limits_of(self._hub, self.identity, attachment.channel)
        try:
            feed = await self._hub.attach(
                attachment.channel,
                known_since(resume_limits, parse_cursor(frame.since) if isinstance(frame.since, str) else None),
                history=allowed_history(self.identity, attachment.channel, frame.history),
                flush_ms=frame.flush_ms,
                wake=attachment.wake,
                has_passing=True,
            )
        except Exception as error:
            if self._attachments.get(attachment.channel) is attachment:
                del self._attachments[attachment.channel]
            self._failed(frame.ref, error)
            return
        self.reply({"type": "ok", "ref": frame.ref})
        if self._attachments.get(attachment.channel) is attachment:
            attachment.feed = feed
            self.feed_woken(attachment)
        else:  # attached anew, or detached, meanwhile
            feed.close()

    def _detach(self, frame: DetachFrame) -> None:
        self._leave(frame.channel)
        self.reply({"type": "ok", "ref": frame.ref})

    def _leave(self, channel: str) -> None:
        attachment = self._attachments.pop(channel, None)
        if attachment is None:
            return
        attachment.close()
        self._ready.pop(attachment, None)
        if self._rest is not None and self._rest[0] is attachment:
            self._rest = None

    async def _history(self, frame: HistoryFrame) -> None:
        limits = self._hub.limits
        try:
            channel = check_channel(frame.channel)
            self.identity.check("history", channel)
            limit = limits.default_history if frame.limit is None else frame.limit
            if limit > limits.history:
                raise InvalidRequest(f"limit is a whole number from 1 to {limits.history}")
            page = await self._hub.page(channel, before=frame.before, limit=limit)
        except Exception as error:
            self._failed(frame.ref, error)
            return
        fields = {"messages": page.messages, "more": page.more, "cursor": page.cursor}
        self.reply({"type": "ok", "ref": frame.ref, **fields})

    def _begin(self, job: Callable[[], Coroutine[Any, Any, None]], weight: int) -> None:
        """Run a request that has to wait for the store; it counts as unanswered until it has ended."""
        self._unanswered += 1
        self._unanswered_bytes += weight
        self._start_task(self._counted(job, weight))

    async def _counted(self, job: Callable[[], Coroutine[Any, Any, None]], weight: int) -> None:
        try:
            await job()
        finally:
            self._unanswered -= 1
            self._unanswered_bytes -= weight
            self.wake()

    def _failed(self, ref: Ref, error: Exception) -> None:
        """Result a request that raised."""
        if not isinstance(error, HoldfastError):
            logger.error("a request of a socket failed", exc_info=error)
            error = unexpected()
        self.refuse(ref, error)

    # Replies

    def refuse(self, ref: Json, error: HoldfastError) -> None:
        """Result the request `ref` with an error, in the words that peers are told."""
        self.reply({**for_peers(error).problem(), "type": "error", "ref": ref})

    def reply(self, frame: dict[str, Any]) -> None:
        """Send a frame of ours; it goes before what is owed of channels."""
        text = encode_json(frame).decode()
        self._replies.append(text)
        self._reply_bytes += len(text)
        self.wake()

    def end(self, code: int, reason: str, **details: int) -> None:
        """Say goodbye; what is still owed is forgotten, the cursor brings it back."""
        self.reply({"type": "bye", "reason": reason, **details})
        self.closing = Closing(code, reason)
        self.close()
        self.wake()


def _put_part(frame: PartFrame) -> PutPart:
    return PutPart(index=frame.part, part=frame.value, generation=frame.generation, request=frame.request)


def ref_in(data: bytes) -> Json:
    """The `ref` of a frame that is otherwise no good, if it has one that can be given back."""
    try:
        ref = _ref.decode(data).ref
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        ref = _lenient_ref(data)
    if isinstance(ref, int) and not isinstance(ref, bool):
        return ref if abs(ref) <= 2**53 else None
    return ref if isinstance(ref, str) and len(ref) <= 64 and _is_text(ref) else None


def _is_text(ref: str) -> bool:
    """Can it be given back? Half a surrogate pair cannot."""
    return ref.isascii() or not any("\ud800" <= one <= "\udfff" for one in ref)


def _lenient_ref(data: bytes) -> Json:
    """The same where text holds half a surrogate pair, which browsers send and strict JSON refuses."""
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return frame.get("ref") if isinstance(frame, dict) else None
