"""Mistakes that were made, or nearly made, while such systems were built; the simulator must find each.

Layer: tests.

Each function breaks the product in one place, by a monkeypatch, as somebody might who changes that
place without knowing why it is as it is. A mistake that becomes impossible goes; a new kind of mistake that slipped
through everything comes in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from holdfast.core import catch_up, decide_work
from holdfast.core import decide as decisions
from holdfast.core.decide import Decision, decide
from holdfast.core.deltas import Delta
from holdfast.core.draft import Draft
from holdfast.core.errors import StoreUnavailable
from holdfast.core.events import (
    ChannelAttached,
    EphemeralEvent,
    MessageAppend,
    MessageEvent,
    MessageUpdate,
    PresenceEnter,
    Signal,
    StoredEvent,
    encode_json,
)
from holdfast.core.limits import Limits
from holdfast.core.model import Message
from holdfast.core.ops import Append, Op, Reply, SetPart
from holdfast.core.requests import AppendText
from holdfast.core.state import ChannelState, MessageState, Tail
from holdfast.core.text import Text
from holdfast.hub import channel as channels
from holdfast.hub import committer, hooks, presence
from holdfast.hub import hub as hubs
from holdfast.hub.batches import BatchCache, EncodedBatch
from holdfast.hub.channel import Channel
from holdfast.hub.committer import Committer
from holdfast.hub.feed import Feed
from holdfast.hub.hooks import HookEvent, HookRunner
from holdfast.hub.hub import HubCore
from holdfast.hub.leases import LeaseMonitor
from holdfast.hub.loading import Loader
from holdfast.hub.pending import Decided, Waiting
from holdfast.hub.presence_state import PresenceState
from holdfast.hub.ticks import Group
from holdfast.hub.turns import LEASE_S, TurnOffer, TurnScheduler, Worker
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Head, Moved, Write
from holdfast.transports import codec, framing
from holdfast.transports.access import caller_of
from holdfast.transports.frames import DeleteFrame
from holdfast.transports.session import Session
from simulation import watchdog
from simulation.actors import BlindWriter, LocalWriter, HttpWriter, SteadyWriter
from simulation.leases import LeaseWriter
from simulation.people import Commander
from simulation.store import StoreClient
from simulation.viewers import SocketViewer
from simulation.world import Plan

Mutant = Callable[[pytest.MonkeyPatch], None]


def deliver_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Viewers get it faster so, and nearly always it is stored a moment later."""
    store_all = Committer._store_all

    async def eager(self: Committer, writes: list[Write]) -> list[Committed | Conflict]:
        for write in writes:
            self._channel(write.channel).committed(write.epoch, write.entries, ())
        return await store_all(self, writes)

    patch.setattr(Committer, "_store_all", eager)


def forget_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """A serial that is not above the head must be one of ours."""

    def is_continued(self: Feed) -> bool:
        return self._epoch is not None and self._serial <= self.channel.state.serial

    patch.setattr(Feed, "_is_continued", is_continued)


def count_one_mark_too_many(patch: pytest.MonkeyPatch) -> None:
    """Whoever has seen a serial has the text that came with the next one too."""
    length_at = Text.length_at
    patch.setattr(Text, "length_at", lambda self, serial: length_at(self, serial + 1))


def count_one_mark_too_many_for_viewers(patch: pytest.MonkeyPatch) -> None:
    """The same where only those who come back are told of it: what is stored is whole."""
    appends = catch_up._appends

    def ahead(message_id: str, index: int, text: Text, since: int, ends: list[int]) -> Iterator[MessageAppend]:
        start = text.length_at(since + 1)
        for event in appends(message_id, index, text, since, ends):
            at = max(event.at, start)
            if rest := event.text[at - event.at :]:
                yield replace(event, at=at, text=rest)

    patch.setattr(catch_up, "_appends", ahead)


def begin_one_past_the_cursor(patch: pytest.MonkeyPatch) -> None:
    """A cursor names what comes next."""

    def off_by_one(state: ChannelState, since: int, *, limit: int) -> list[StoredEvent] | None:
        return catch_up.events_since(state, min(since + 1, state.serial), limit=limit)

    patch.setattr(channels, "events_since", off_by_one)


def join_across_an_edit(patch: pytest.MonkeyPatch) -> None:
    """Appends of one part become one, whatever happened to the part in between."""

    def add_or_join(self: Draft, op: Op) -> int:
        joinable = self._joinable.setdefault(op.id, {})
        if isinstance(op, Append):
            known = joinable.setdefault(op.part, len(self.ops))
            if known < len(self.ops):
                earlier = self.ops[known]
                assert isinstance(earlier, Append)
                self.ops[known] = replace(earlier, text=earlier.text + op.text)
                return known
        elif not isinstance(op, SetPart):
            self.reshaped[op.id] = None
        self.ops.append(op)
        return len(self.ops) - 1

    patch.setattr(Draft, "_add_or_join", add_or_join)


def answer_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """An append was decided, so it will be stored: why let its writer wait?"""
    commit = Committer._commit

    async def hasty(self: Committer, cut: Any) -> None:
        appends = [one for one in cut.decided if all(isinstance(ask.request, AppendText) for ask in one.asks)]
        rest = [one for one in cut.decided if one not in appends]
        cut.decided = appends
        self._return_all(cut, (), {})
        cut.decided = rest
        await commit(self, cut)

    patch.setattr(Committer, "_commit", hasty)


def move_the_cursor_with_every_event(patch: pytest.MonkeyPatch) -> None:
    """Whoever is cut off in the middle of a batch then has less to catch up with."""

    def cursors(self: EncodedBatch) -> Iterator[str | None]:
        epoch = self.cursor.partition(":")[0]
        for event in self.events[:-1]:
            is_of_the_log = self.cursor and not isinstance(event, ChannelAttached)
            yield f"{epoch}:{event.serial}" if is_of_the_log else None
        yield self.cursor or None

    def frames(self: EncodedBatch) -> tuple[str, ...]:
        named = zip(self.raw, cursors(self), strict=True)
        return tuple(
            f'{{"type":"events","channel":"{self.channel}",'
            + (f'"cursor":"{cursor}",' if cursor is not None else "")
            + f'"events":[{raw.decode()}]}}'
            for raw, cursor in named
        )

    def sse(self: EncodedBatch) -> bytes:
        events = zip(self.events, cursors(self), strict=True)
        return b"".join(
            b"event: %b\ndata: %b\n" % (str(event.__struct_config__.tag).encode(), encode_json(event))
            + (b"id: %b\n\n" % cursor.encode() if cursor is not None else b"\n")
            for event, cursor in events
        )

    patch.setattr(EncodedBatch, "frames", property(frames))
    patch.setattr(EncodedBatch, "sse", property(sse))


def reload_beside_a_commit(patch: pytest.MonkeyPatch) -> None:
    """MessageStreamOracle the store does no harm, whatever else goes on; what was read is what there is."""

    @asynccontextmanager
    async def exclusive(self: Channel) -> AsyncIterator[None]:
        async with self._loading:
            yield

    async def is_at(self: Channel, head: Head) -> bool:
        return True

    patch.setattr(Channel, "_exclusive", exclusive)
    patch.setattr(Channel, "_is_at", is_at)


def decide_on_arrival(patch: pytest.MonkeyPatch) -> None:
    """The durable state is the stored, so it is what requests are decided on, each as it comes."""

    def early(state: Any, message_id: str, request: Any, **about: Any) -> Decision:
        base = state.base if isinstance(state, Draft) else state
        return decide(base, message_id, request, **about)

    patch.setattr(committer, "decide", early)


def label_an_update_with_its_own_serial(patch: pytest.MonkeyPatch) -> None:
    """An update is the update's entry, and that has a serial."""
    message_since = catch_up._message_since

    def labelled(message: MessageState, tail: Tail, since: int) -> Iterator[MessageEvent]:
        for event in message_since(message, tail, since):
            yield replace(event, serial=message.edited) if isinstance(event, MessageUpdate) else event

    patch.setattr(catch_up, "_message_since", labelled)


def trust_the_wake_up(patch: pytest.MonkeyPatch) -> None:
    """Somebody will say so if another hub has written."""

    async def moved(self: StoreClient, token: str | None) -> Moved:
        return Moved("nothing", {})

    patch.setattr(StoreClient, "moved", moved)


# -- commits whose outcome is unknown, recovery and memory -----------------------------------------------------------


def an_unknown_outcome_is_never_resolved(patch: pytest.MonkeyPatch) -> None:
    """The requests of the commit are decided again; the store shows which of them it holds."""
    patch.setattr(Committer, "_unclear", lambda self, batch, writes: {})


def an_append_gets_a_new_offset_after_an_unknown_outcome(patch: pytest.MonkeyPatch) -> None:
    """A request is immutable, so its offset is decided each time."""
    patch.setattr(committer, "replace", lambda request, **about: request)


def requests_change_their_order_after_an_unknown_outcome(patch: pytest.MonkeyPatch) -> None:
    """Each request of the commit is decided again; their order is a detail."""
    return_all = Committer._return_all

    def reversed_order(self: Committer, batch: Any, again: Iterable[Channel], unclear: Any) -> None:
        if again:
            batch.decided.reverse()
        return_all(self, batch, again, unclear)

    patch.setattr(Committer, "_return_all", reversed_order)


def a_silent_store_has_stored_no_entry(patch: pytest.MonkeyPatch) -> None:
    """A commit without a result has failed."""
    store_all = Committer._store_all

    async def refused(self: Committer, writes: list[Write]) -> list[Committed | Conflict]:
        try:
            return await store_all(self, writes)
        except CommitUnknown as error:
            raise StoreUnavailable("the store stored no entry") from error

    patch.setattr(Committer, "_store_all", refused)


def a_conflict_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """The channel is read again, so its next request is decided on the new state."""
    return_all = Committer._return_all

    def as_decided(self: Committer, batch: Any, again: Iterable[Channel], unclear: Any) -> None:
        for channel in again:
            channel.is_stale = True
        return_all(self, batch, (), {})

    patch.setattr(Committer, "_return_all", as_decided)


def a_result_is_sent_twice(patch: pytest.MonkeyPatch) -> None:
    """A second copy of a result does no harm."""

    def twice(self: Waiting, decided: Decided) -> None:
        self._done(decided.result())
        self._done(decided.result())

    patch.setattr(Waiting, "answered", twice)


def messages_of_a_dead_process_are_not_recovered(patch: pytest.MonkeyPatch) -> None:
    """Another writer takes the message over when it is needed."""

    async def skip(self: HubCore, channel: str, message: MessageState) -> None:
        pass

    patch.setattr(HubCore, "_recover_message", skip)


def a_recovery_that_failed_is_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """A hub recovers once, at its first start."""
    recover = HubCore._recover
    begun: set[HubCore] = set()

    async def once(self: HubCore) -> None:
        if self not in begun:
            begun.add(self)
            await recover(self)

    patch.setattr(HubCore, "_recover", once)


def a_message_that_left_memory_does_not_exist(patch: pytest.MonkeyPatch) -> None:
    """The state in memory is complete."""
    patch.setattr(Channel, "is_ready_for", lambda self, ids: self.is_ready)


def an_absent_id_stays_absent(patch: pytest.MonkeyPatch) -> None:
    """The store was asked for this id before."""

    class Sticky(set[str]):
        def clear(self) -> None:
            pass

        def discard(self, element: str) -> None:
            pass

    load = Channel.load

    async def load_sticky(self: Channel) -> None:
        if not isinstance(self._absent, Sticky):
            self._absent = Sticky(self._absent)
        await load(self)

    patch.setattr(Channel, "load", load_sticky)


def a_channel_leaves_memory_during_a_commit(patch: pytest.MonkeyPatch) -> None:
    """A channel without subscribers and members is idle."""
    patch.setattr(
        Channel,
        "is_idle",
        property(lambda self: not (self.listeners or self.presence_state.has_people or self.watchers)),
    )


def a_new_start_holds_the_page_alone(patch: pytest.MonkeyPatch) -> None:
    """A viewer that wants an older streaming message asks for history."""
    new_start = catch_up.new_start

    def page_alone(
        state: ChannelState, page: list[MessageState], more: bool
    ) -> tuple[ChannelAttached, list[MessageUpdate]]:
        attached, updates = new_start(state, page, more)
        ids = {message.id for message in page}
        return attached, [event for event in updates if event.message.id in ids]

    patch.setattr(channels, "new_start", page_alone)


def messages_in_memory_are_a_page(patch: pytest.MonkeyPatch) -> None:
    """The newest messages in memory are the newest messages."""
    newest_messages = catch_up.newest_messages

    def without_holes(state: ChannelState, history: int, limits: Limits) -> tuple[list[MessageState], bool] | None:
        known, state.history_from = state.history_from, 0
        try:
            return newest_messages(state, history, limits)
        finally:
            state.history_from = known

    patch.setattr(channels, "newest_messages", without_holes)


# -- leases, presence, commands and turns ----------------------------------------------------------------------------


def a_lapse_ignores_the_generation(patch: pytest.MonkeyPatch) -> None:
    """A message has a lease; who holds it makes no difference to when it ends."""
    inspect_writer = LeaseMonitor.inspect_writer

    def look(self: LeaseMonitor, channel: str, key: str, message: MessageState | None) -> None:
        known = self._leases.get((channel, key))
        if known is not None and message is not None and message.is_streaming:
            self._leases[channel, key] = (message.generation, known[1])
        else:
            inspect_writer(self, channel, key, message)

    patch.setattr(LeaseMonitor, "inspect_writer", look)


def the_short_way_looks_at_no_length(patch: pytest.MonkeyPatch) -> None:
    """Who writes in this process knows where its text goes."""
    plain_append = committer.plain_append

    def anywhere(state: ChannelState, key: str, request: AppendText, limits: Limits) -> Append | None:
        message = state.messages.get(key)
        if message is not None and request.part is not None and request.part < len(message.parts):
            request = replace(request, at=message.parts[request.part].length)
        return plain_append(state, key, request, limits)

    patch.setattr(committer, "plain_append", anywhere)


def a_takeover_fences_nobody(patch: pytest.MonkeyPatch) -> None:
    """Whoever wrote before will have stopped by now."""
    patch.setattr(decisions, "_check_generation", lambda message, generation: None)


def a_renewal_after_a_broken_socket_does_not_count(patch: pytest.MonkeyPatch) -> None:
    """The socket broke, so the writer has three seconds."""
    renew, broken = LeaseMonitor.renew, LeaseMonitor.broken
    is_broken: set[tuple[LeaseMonitor, str, str]] = set()

    def note(self: LeaseMonitor, channel: str, key: str, *about: Any, **more: Any) -> None:
        is_broken.add((self, channel, key))
        broken(self, channel, key, *about, **more)

    def renew_unless_broken(self: LeaseMonitor, channel: str, key: str) -> None:
        if (self, channel, key) not in is_broken:
            renew(self, channel, key)

    patch.setattr(LeaseMonitor, "broken", note)
    patch.setattr(LeaseMonitor, "renew", renew_unless_broken)


def a_second_reply_is_let_in(patch: pytest.MonkeyPatch) -> None:
    """The newest answer is the best."""

    def reply(state: Any, key: str, request: Any, caller: Any, limits: Any) -> Decision:
        op = Reply(id=key, ok=request.ok, data=request.data, error=None, by=caller.id, request=request.request)
        return Decision(ops=(op,))

    patch.setattr(decisions, "reply_command", reply)


def a_cancel_ends_the_newest_answer(patch: pytest.MonkeyPatch) -> None:
    """Nobody would stop anything but what was begun last."""
    carry_out = decide_work._carry_out

    def newest(state: Any, target: str, now_ms: int) -> list[Op]:
        streaming = [message.id for message in state.streaming()]
        return carry_out(state, streaming[-1] if streaming else target, now_ms)

    patch.setattr(decide_work, "_carry_out", newest)


def a_turn_is_renewed_in_vain(patch: pytest.MonkeyPatch) -> None:
    """A turn has fifteen seconds; who needs more says so, and is told that this is fine."""

    def renew(self: TurnScheduler, worker: Worker, turn: TurnOffer) -> bool:
        work = self._work.get(turn.channel)
        return work is not None and turn.message_id in work.running

    patch.setattr(TurnScheduler, "renew", renew)


def a_turn_begins_before_its_claim_is_stored(patch: pytest.MonkeyPatch) -> None:
    """It will be ours, so why wait?"""
    claim = TurnScheduler._claim

    def eager(self: TurnScheduler, channel: str, message_id: str, place: Any, worker: Worker) -> None:
        attempts = place if isinstance(place, int) else place[1]
        if not worker.is_local:
            worker.begin(TurnOffer(channel, message_id, attempts + 1, LEASE_S))
        claim(self, channel, message_id, place, worker)

    patch.setattr(TurnScheduler, "_claim", eager)


def what_waits_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Agents are told of what comes; what came before them somebody else will have answered."""
    look, look_at = TurnScheduler.inspect, TurnScheduler.inspect_message

    def look_at_what_is_new(self: TurnScheduler, channel: Channel, keys: Any) -> None:
        if keys is not None:
            look(self, channel, keys)

    def look_at_nothing_yet(self: TurnScheduler, channel: str, key: str, message: MessageState | None) -> bool:
        return bool(self._workers) and look_at(self, channel, key, message)

    patch.setattr(TurnScheduler, "inspect", look_at_what_is_new)
    patch.setattr(TurnScheduler, "inspect_message", look_at_nothing_yet)


def the_grace_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Whose last connection is gone has left."""
    patch.setattr(presence, "GRACE_S", 0.0)


def presence_carries_a_cursor(patch: pytest.MonkeyPatch) -> None:
    """Every batch has a cursor: that of the channel."""

    def ephemeral_since(self: Channel, position: int) -> EncodedBatch:
        return EncodedBatch(self.name, str(self.state.cursor), self.presence_state.since(position))

    patch.setattr(Channel, "ephemeral_since", ephemeral_since)


def a_leave_is_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """Whoever looks on will see it when they come again."""

    def event(self: PresenceState, member_id: str, position: int) -> EphemeralEvent | None:
        member = self.member(member_id)
        return PresenceEnter(member=member) if member is not None else None

    patch.setattr(PresenceState, "_event", event)


def nobody_looks_at_the_clock_for_commands(patch: pytest.MonkeyPatch) -> None:
    """Who asks will see for themselves that nobody answers."""
    patch.setattr(LeaseMonitor, "inspect_command", lambda self, channel, key, command: None)


# -- one answer as a stream, cursors, and what is said in passing -----------------------------------------------------


def an_end_comes_without_the_rest(patch: pytest.MonkeyPatch) -> None:
    """Whoever is told that it is over looks at the message anyway."""
    frame = framing.NamedEvents.frame

    def without_text(
        self: framing.NamedEvents, deltas: Sequence[Delta], status: str | None, position: framing.Position
    ) -> bytes:
        return frame(self, deltas if status is None else [], status, position)

    patch.setattr(framing.NamedEvents, "frame", without_text)


def a_stream_says_nothing_of_the_end(patch: pytest.MonkeyPatch) -> None:
    """Nothing more comes, and that is what an end is."""
    frame = framing.NamedEvents.frame
    patch.setattr(
        framing.NamedEvents,
        "frame",
        lambda self, deltas, status, position: frame(self, deltas, None, position),
    )


def what_passes_waits_for_a_pause_of_the_text(patch: pytest.MonkeyPatch) -> None:
    """Text comes first; the rest comes when nothing of the log is catch_up."""
    patch.setattr(Feed, "done", lambda self: self._group.moved() if self.is_behind else None)


def signals_are_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """They are not stored, so nobody can miss them."""
    patch.setattr(PresenceState, "signal", lambda self, signal: None)


def a_page_says_to_go_on_from_later(patch: pytest.MonkeyPatch) -> None:
    """Whoever reads a page wants what comes after it."""
    page = HubCore.page

    async def ahead(self: HubCore, *about: Any, **more: Any) -> Any:
        known = await page(self, *about, **more)
        epoch, _, serial = known.cursor.partition(":")
        return replace(known, cursor=f"{epoch}:{int(serial) + 1}")

    patch.setattr(HubCore, "page", ahead)


def a_message_says_to_go_on_from_later(patch: pytest.MonkeyPatch) -> None:
    """Whoever reads a message has seen it."""
    read = HubCore.read

    async def ahead(self: HubCore, channel: str, message_id: str) -> tuple[Message, str]:
        message, cursor = await read(self, channel, message_id)
        epoch, _, serial = cursor.partition(":")
        return message, f"{epoch}:{int(serial) + 1}"

    patch.setattr(HubCore, "read", ahead)


def a_create_says_to_go_on_from_later(patch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it knows of it."""
    fields = codec._fields

    def ahead(request: Any, answered: Any) -> dict[str, Any]:
        known = fields(request, answered)
        if "cursor" in known:
            epoch, _, serial = known["cursor"].partition(":")
            known["cursor"] = f"{epoch}:{int(serial) + 1}"
        return known

    patch.setattr(codec, "_fields", ahead)


def a_repeat_gets_the_newest_serial(patch: pytest.MonkeyPatch) -> None:
    """It is stored, and this is how far the message is."""
    repeated = decisions._earlier_decision

    def newest(message: MessageState, request: str | None) -> Decision | None:
        known = repeated(message, request)
        return replace(known, serial=message.version) if known is not None else None

    patch.setattr(decisions, "_earlier_decision", newest)


# -- hooks -----------------------------------------------------------------------------------------------------------


def a_hook_notes_before_it_tells(patch: pytest.MonkeyPatch) -> None:
    """Whoever is called once too often is as badly off as one who is never called."""
    tell = HookRunner._tell

    async def noted_first(self: HookRunner, channel: str) -> None:
        hear = self._hook.handler

        async def heard(event: HookEvent) -> None:
            await self._note(channel, event.epoch, event.serial)
            await hear(event)

        self._hook.handler = heard
        try:
            await tell(self, channel)
        finally:
            self._hook.handler = hear

    patch.setattr(HookRunner, "_tell", noted_first)


def a_hook_is_told_message_by_message(patch: pytest.MonkeyPatch) -> None:
    """All that happened to one message belongs together."""
    events = HookRunner._events

    def together(self: HookRunner, *about: Any) -> list[HookEvent]:
        found = events(self, *about)
        return sorted(found, key=lambda event: -event.serial)

    patch.setattr(HookRunner, "_events", together)
    patch.setattr(hooks, "sorted", lambda found, key: list(found), raising=False)


def a_hook_that_was_away_begins_where_the_channel_stands(patch: pytest.MonkeyPatch) -> None:
    """What was before its process is no business of a hook's."""

    async def scan_nothing(self: HookRunner) -> None:
        store = self._hub.store
        for channel in await store.channels(after=None, limit=hooks.SCAN_PAGE):
            head = await store.head(channel)
            await self._note(channel, head.epoch, head.serial)

    patch.setattr(HookRunner, "_scan", scan_nothing)


def what_is_registered_in_a_recovery_begins_at_once(patch: pytest.MonkeyPatch) -> None:
    """The hub is there already; and when it has recovered everything begins."""
    patch.setattr(HubCore, "has_recovered", HubCore.is_running)


def a_hook_forgets_what_moved_while_it_was_told(patch: pytest.MonkeyPatch) -> None:
    """It is at it anyway."""
    moved = HookRunner.moved

    def unless_busy(self: HookRunner, channel: str) -> None:
        if channel not in self._running:
            moved(self, channel)

    patch.setattr(HookRunner, "moved", unless_busy)


def a_hook_goes_by_the_serial_alone(patch: pytest.MonkeyPatch) -> None:
    """A position is a number."""
    tell = HookRunner._tell

    async def in_any_life(self: HookRunner, channel: str) -> None:
        head = await self._hub.store.head(channel)
        if head.serial and channel in self._positions:
            self._positions[channel] = (head.epoch, self._positions[channel][1])
        await tell(self, channel)

    patch.setattr(HookRunner, "_tell", in_any_life)


# -- what else is asked over a socket --------------------------------------------------------------------------------


def a_channel_that_was_left_is_told_of_still(patch: pytest.MonkeyPatch) -> None:
    """It will be attached to again."""
    patch.setattr(Session, "_detach", lambda self, frame: self.reply({"type": "ok", "ref": frame.ref}))


def a_page_over_a_socket_is_the_last(patch: pytest.MonkeyPatch) -> None:
    """Whoever wants more will ask for more."""
    reply = Session.reply

    def last(self: Session, frame: dict[str, Any]) -> None:
        reply(self, {**frame, "more": False} if "more" in frame else frame)

    patch.setattr(Session, "reply", last)


def a_delete_is_answered_at_once(patch: pytest.MonkeyPatch) -> None:
    """It will be gone in a moment."""
    request = Session._request

    def at_once(self: Session, frame: Any, size: int) -> None:
        if isinstance(frame, DeleteFrame):
            caller = caller_of(self._hub, self.identity, frame.channel)
            self._hub.submit(frame.channel, frame.id, frame, caller, lambda answered: None)
            self.reply({"type": "ok", "ref": frame.ref})
        else:
            request(self, frame, size)

    patch.setattr(Session, "_request", at_once)


def whoever_asks_has_what_waits(patch: pytest.MonkeyPatch) -> None:
    """An agent that has a turn may have another's message, too."""

    async def take_waiting(self: HubCore, channel: str, message_id: str, by: str, *, turn: str | None = None) -> bool:
        return True

    patch.setattr(HubCore, "take_waiting", take_waiting)


def whoever_wants_no_more_gets_what_waits(patch: pytest.MonkeyPatch) -> None:
    """It is there still."""
    unregister = TurnScheduler.unregister

    def stay(self: TurnScheduler, worker: Worker, *, is_broken: bool = False) -> None:
        if is_broken:
            unregister(self, worker, is_broken=True)

    patch.setattr(TurnScheduler, "unregister", stay)


def an_agent_takes_all_that_waits(patch: pytest.MonkeyPatch) -> None:
    """Slots are for those elsewhere."""
    claim = TurnScheduler._claim

    def uncounted(self: TurnScheduler, channel: str, message_id: str, place: tuple[int, int], worker: Worker) -> None:
        worker.free += worker.is_local
        claim(self, channel, message_id, place, worker)

    patch.setattr(TurnScheduler, "_claim", uncounted)


# -- memory ----------------------------------------------------------------------------------------------------------


def a_feed_keeps_what_it_has_told(patch: pytest.MonkeyPatch) -> None:
    """Somebody may want it again."""

    class Hoarder(Feed):
        def take(self) -> EncodedBatch | None:
            batch = super().take()
            if batch is not None:
                self.told: list[EncodedBatch] = [*getattr(self, "told", []), batch]
            return batch

    patch.setattr(hubs, "Feed", Hoarder)


def a_socket_is_read_however_far_it_is_behind(patch: pytest.MonkeyPatch) -> None:
    """What it asks will be answered soon."""
    patch.setattr(Session, "is_full", property(lambda self: False))


def an_idle_channel_stays(patch: pytest.MonkeyPatch) -> None:
    """It will be wanted again."""
    patch.setattr(Channel, "is_idle", property(lambda self: False))


def what_is_over_stays(patch: pytest.MonkeyPatch) -> None:
    """A live channel is needed as it is."""
    patch.setattr(Channel, "trim", lambda self, keep_bytes: None)


def every_batch_is_kept(patch: pytest.MonkeyPatch) -> None:
    """Another reader may come from the same cursor."""

    def make_room(self: BatchCache, batch: EncodedBatch) -> None:
        self.text_bytes += batch.text_bytes

    patch.setattr(BatchCache, "_make_room", make_room)


def signals_pile_up(patch: pytest.MonkeyPatch) -> None:
    """Each is small."""

    def signal(self: PresenceState, signal: Signal) -> None:
        self.position += 1
        self._signals.append((self.position, signal, 0))
        self._changed()

    patch.setattr(PresenceState, "signal", signal)


def part_operations_pile_up(patch: pytest.MonkeyPatch) -> None:
    """The more of them are kept, the better can a viewer catch up."""

    def add(self: Tail, serial: int, op: SetPart) -> None:
        self.ops[serial] = op
        self._sizes.append(0)

    patch.setattr(Tail, "add", add)


# -- what never ends -------------------------------------------------------------------------------------------------


def wait_on_the_spot_for_a_load(patch: pytest.MonkeyPatch) -> None:
    """It takes but a moment."""
    park = Loader.park

    def wait(self: Loader, channel: Channel, item: Any) -> None:
        park(self, channel, item)
        while not channel.is_ready:
            pass

    patch.setattr(Loader, "park", wait)
    patch.setattr(watchdog, "BUSY_TICK_S", 0.1)  # nobody wants to wait for seconds


def whoever_is_behind_is_told_again_at_once(patch: pytest.MonkeyPatch) -> None:
    """Until all have taken what they are catch_up."""
    release = Group._release

    def release_all(self: Group) -> None:
        release(self)
        if any(feed.is_behind for feed in self):
            asyncio.get_running_loop().call_soon(self._release)

    patch.setattr(Group, "_release", release_all)


# Each with what it is found by: whatever else goes wrong, in the product or in the simulator, does not count.
MUTANTS: dict[Mutant, str] = {
    deliver_before_the_commit: "was never stored|before it was stored",
    forget_the_epoch: "resumed in epoch|resumed at",
    count_one_mark_too_many: "stored is",
    count_one_mark_too_many_for_viewers: "a gap|it shows",
    begin_one_past_the_cursor: "it shows",
    join_across_an_edit: "wrote to",
    answer_before_the_commit: "was acknowledged as",
    move_the_cursor_with_every_event: "it shows|it does not show|pending are|back to",
    reload_beside_a_commit: "it shows|it does not show|back to",
    decide_on_arrival: "was refused with",
    label_an_update_with_its_own_serial: "but of version",
    trust_the_wake_up: "still do not see all",
    an_unknown_outcome_is_never_resolved: "was refused with (mismatch|gap)",
    an_append_gets_a_new_offset_after_an_unknown_outcome: "wrote to",
    requests_change_their_order_after_an_unknown_outcome: "was refused with (mismatch|gap|not_found|no_part)",
    a_silent_store_has_stored_no_entry: "streams for ever",
    a_conflict_is_ignored: "before it was stored|wrote to|was acknowledged as",
    a_result_is_sent_twice: "given a second time|was told .*'ref'",
    messages_of_a_dead_process_are_not_recovered: "though its writer died",
    a_recovery_that_failed_is_not_repeated: "though its writer died",
    a_message_that_left_memory_does_not_exist: "refused.* with not_found|refused: .*not_found|could not .*not_found",
    an_absent_id_stays_absent: "created twice|was refused with not_found|was answered 404",
    a_channel_leaves_memory_during_a_commit: "still do not see all|the first event is not",
    a_new_start_holds_the_page_alone: "lacks the streaming",
    messages_in_memory_are_a_page: "it does not show",
    a_lapse_ignores_the_generation: "though its holder was heard of|streams still",
    the_short_way_looks_at_no_length: "wrote to",
    a_takeover_fences_nobody: "after a takeover",
    a_renewal_after_a_broken_socket_does_not_count: "though its holder was heard of",
    a_second_reply_is_let_in: "a second one",
    a_cancel_ends_the_newest_answer: "streams on",
    a_turn_is_renewed_in_vain: "though its holder was heard of",
    a_turn_begins_before_its_claim_is_stored: "was given before that was stored",
    what_waits_is_forgotten_at_a_restart: "there are still",
    the_grace_is_forgotten: "is said to have left",
    presence_carries_a_cursor: "in passing moves the cursor",
    a_leave_is_told_to_nobody: "does not see who is here",
    what_passes_waits_for_a_pause_of_the_text: "was not told in",
    signals_are_told_to_nobody: "was not told in .*whisper",
    a_page_says_to_go_on_from_later: "an answer says to go on from",
    a_message_says_to_go_on_from_later: "an answer says to go on from",
    a_create_says_to_go_on_from_later: "an answer says to go on from",
    a_repeat_gets_the_newest_serial: "it is stored as",
    a_channel_that_was_left_is_told_of_still: "which it has left",
    a_page_over_a_socket_is_the_last: "nothing is said to be before",
    a_delete_is_answered_at_once: "was said to be deleted before that was stored",
    whoever_asks_has_what_waits: "in its turn of .* not stored",
    whoever_wants_no_more_gets_what_waits: "and wants none",
    an_agent_takes_all_that_waits: "slots, and is at work on",
    what_is_registered_in_a_recovery_begins_at_once: "still at work on what was|its position|were never told of",
    a_hook_notes_before_it_tells: "though its position is",
    a_hook_is_told_message_by_message: "is told of .*, after|though its position is",
    a_hook_that_was_away_begins_where_the_channel_stands: "hooks were never told of",
    a_hook_forgets_what_moved_while_it_was_told: "hooks were never told of",
    a_hook_goes_by_the_serial_alone: "hooks were never told of",
    an_end_comes_without_the_rest: "is over, and of its",
    a_stream_says_nothing_of_the_end: "was not told of the end|was not told within|still do not see all: .*reader",
    nobody_looks_at_the_clock_for_commands: "was not carried out|has expired",
    a_feed_keeps_what_it_has_told: "things are in Hoarder.told",
    a_socket_is_read_however_far_it_is_behind: "answers are owed by a socket",
    an_idle_channel_stays: "channels are left",
    what_is_over_stays: "are kept after a trim|nobody trims it",
    every_batch_is_kept: "encoded batches are kept",
    signals_pile_up: "things are in PresenceState._signals",
    part_operations_pile_up: "things are in Tail.ops",
    wait_on_the_spot_for_a_load: "does not come to its end",
    whoever_is_behind_is_told_again_at_once: "waits without waiting|next to nothing",
}

# What a world must have for a mistake to matter at all: those without it are not run.
NEEDS: dict[Mutant, Callable[[Plan], object]] = {
    an_unknown_outcome_is_never_resolved: lambda plan: plan.is_exclusive and BlindWriter in plan.authors,
    an_append_gets_a_new_offset_after_an_unknown_outcome: lambda plan: BlindWriter in plan.authors,
    a_silent_store_has_stored_no_entry: lambda plan: plan.fault_model.unknown_chance and LocalWriter in plan.authors,
    messages_of_a_dead_process_are_not_recovered: lambda plan: plan.is_exclusive,
    a_recovery_that_failed_is_not_repeated: lambda plan: plan.is_exclusive and plan.fault_model.down_chance,
    a_lapse_ignores_the_generation: lambda plan: LeaseWriter in plan.authors,
    a_renewal_after_a_broken_socket_does_not_count: lambda plan: LeaseWriter in plan.authors,
    the_short_way_looks_at_no_length: lambda plan: LocalWriter in plan.authors,
    a_takeover_fences_nobody: lambda plan: LeaseWriter in plan.authors,
    a_second_reply_is_let_in: lambda plan: Commander in plan.authors,
    a_turn_is_renewed_in_vain: lambda plan: plan.workers,
    whoever_asks_has_what_waits: lambda plan: plan.workers and plan.asks_by_socket,
    whoever_wants_no_more_gets_what_waits: lambda plan: plan.workers and plan.asks_by_socket,
    an_agent_takes_all_that_waits: lambda plan: any(agent.slots < plan.channels for agent in plan.agents),
    a_channel_that_was_left_is_told_of_still: lambda plan: plan.asks_by_socket and SocketViewer in plan.viewers,
    a_page_over_a_socket_is_the_last: lambda plan: plan.asks_by_socket and SocketViewer in plan.viewers,
    a_delete_is_answered_at_once: lambda plan: plan.asks_by_socket and "delete" in plan.edits,
    join_across_an_edit: lambda plan: LocalWriter in plan.authors,
    a_repeat_gets_the_newest_serial: lambda plan: HttpWriter in plan.authors,
    the_grace_is_forgotten: lambda plan: plan.members,
    signals_pile_up: lambda plan: plan.members,
    what_passes_waits_for_a_pause_of_the_text: lambda plan: SteadyWriter in plan.authors,
    trust_the_wake_up: lambda plan: plan.hubs > 1,
    a_hook_that_was_away_begins_where_the_channel_stands: lambda plan: plan.hooks,
    a_hook_is_told_message_by_message: lambda plan: plan.hooks,
    what_is_registered_in_a_recovery_begins_at_once: lambda plan: plan.hooks and plan.is_hasty,
    a_hook_goes_by_the_serial_alone: lambda plan: plan.hooks and (plan.is_weak or "delete channel" in plan.edits),
}

# Seeds that show what others before them do not, so that they are tried first. One that no longer does costs time only.
SHOWN_BY: dict[Mutant, int] = {
    an_unknown_outcome_is_never_resolved: 31,
    an_append_gets_a_new_offset_after_an_unknown_outcome: 62,
    requests_change_their_order_after_an_unknown_outcome: 31,
    a_silent_store_has_stored_no_entry: 174,
    a_recovery_that_failed_is_not_repeated: 262,
    a_message_that_left_memory_does_not_exist: 20,
    a_channel_leaves_memory_during_a_commit: 65,
    messages_in_memory_are_a_page: 9,
    join_across_an_edit: 31,
    reload_beside_a_commit: 23,
    decide_on_arrival: 9,
    trust_the_wake_up: 19,
    a_lapse_ignores_the_generation: 18,
    the_short_way_looks_at_no_length: 15,
    a_takeover_fences_nobody: 10,
    a_second_reply_is_let_in: 23,
    a_cancel_ends_the_newest_answer: 10,
    a_turn_is_renewed_in_vain: 25,
    the_grace_is_forgotten: 16,
    what_passes_waits_for_a_pause_of_the_text: 53,
    a_repeat_gets_the_newest_serial: 11,
    a_channel_that_was_left_is_told_of_still: 16,
    a_delete_is_answered_at_once: 11,
    whoever_asks_has_what_waits: 93,
    whoever_wants_no_more_gets_what_waits: 37,
    an_agent_takes_all_that_waits: 122,
    what_is_registered_in_a_recovery_begins_at_once: 12,
    a_hook_is_told_message_by_message: 7,
    a_hook_that_was_away_begins_where_the_channel_stands: 11,
    a_hook_forgets_what_moved_while_it_was_told: 16,
    a_hook_goes_by_the_serial_alone: 112,
    a_socket_is_read_however_far_it_is_behind: 15,
    what_is_over_stays: 8,
    signals_pile_up: 44,
}
