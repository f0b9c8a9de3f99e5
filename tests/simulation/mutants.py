"""Mutants: mistakes that were made, or nearly made, in such systems; the simulator must find each.

Layer: tests.

Each function breaks the product in one place, by a monkeypatch or by an edit of its source. Its docstring is the
reasoning behind the mistake, its decorator has the violation that finds it and the world in which it does harm
(`directed`). A mutant that became impossible goes; a new kind of mistake that passed all tests comes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from proof.simulation import watchdog
from proof.simulation.agents import LocalPlan
from proof.simulation.hooks import HookPlan
from proof.simulation.members import Commander
from proof.simulation.store import SimStore
from proof.simulation.viewers import LocalViewer, PollViewer, SocketViewer, StreamViewer
from proof.simulation.writers import (
    BlindWriter,
    Editor,
    HttpWriter,
    LeaseWriter,
    LocalWriter,
    PipelinedWriter,
    SteadyWriter,
)
from tenuto.agents import history
from tenuto.agents import turn as turns
from tenuto.agents.backend import Sent
from tenuto.agents.steps import Steps
from tenuto.core import decide as decisions
from tenuto.core.draft import Draft
from tenuto.core.errors import TenutoError
from tenuto.core.events import kept_serial
from tenuto.core.model import Message
from tenuto.core.requests import DeleteMessage
from tenuto.core.state import MessageState
from tenuto.core.text import Text
from tenuto.hub import channel as channels
from tenuto.hub import committer, writer
from tenuto.hub import hub as hubs
from tenuto.hub.channel import BatchCache, Channel, EncodedBatch, Feed, Group
from tenuto.hub.clock import StoreClock
from tenuto.hub.committer import Committer
from tenuto.hub.hooks import KINDS, HookRunner
from tenuto.hub.hub import HubCore
from tenuto.hub.leases import LeaseMonitor
from tenuto.hub.lifecycle import Lifecycle
from tenuto.hub.nodes import Follower, NodeLease
from tenuto.hub.pending import Waiting
from tenuto.hub.people.presence import SharedPresence
from tenuto.hub.people.presence_state import PresenceState
from tenuto.hub.turns import scheduler as shared_turns
from tenuto.hub.turns.scheduler import AssignedTurn, OpenTurn, SharedTurns, TurnScheduler, Worker, WorkerPool
from tenuto.stores.memory import MemoryStore
from tenuto.transports import codec, streams
from tenuto.transports.session import Session
from tests.simulation.directed import edit, mutant

HOOK = HookPlan(name="hook0", kinds=KINDS, pattern="*", pause_s=0.01, fail_chance=0.0, hang_chance=0.0, late_chance=0.0)
SLOW_HOOK = dataclasses.replace(HOOK, pause_s=0.5)
AGENT = LocalPlan(when_busy="queue", on_crash="restart", slots=1, has_questions=False)
SLOW_STORE = {"store_s": (0.0001, 0.2)}


@mutant("was never stored|before it was stored", authors=[LocalWriter])
def deliver_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Viewers get the text sooner, and it is almost always stored a moment later."""
    written = (
        "for channel, write in writes:\n        channel.committed(write.epoch, write.entries, ())\n    return writes"
    )
    edit(patch, Committer, "_writes", {"return writes": written})


@mutant(
    "resumed: true from",
    authors=[HttpWriter, Editor, Editor, Editor],
    edits=["delete channel", "say"],
    cut_rate=1.0,
    viewers=[SocketViewer, StreamViewer, PollViewer],
)
def a_cursor_is_valid_in_every_epoch(patch: pytest.MonkeyPatch) -> None:
    """A serial up to the head belongs to this log."""
    edit(patch, Feed, "_is_continued", {"self._epoch == state.epoch and state.floor <= self._serial": "self._serial"})


@mutant("stored is", authors=[LocalWriter])
def a_mark_counts_for_the_serial_before(patch: pytest.MonkeyPatch) -> None:
    """A viewer at a serial has the text of the next serial, too."""
    length_at = Text.length_at
    patch.setattr(Text, "length_at", lambda self, serial: length_at(self, serial + 1))


@mutant("wrote to", authors=[BlindWriter] * 2, latency_s=(0.0002, 0.05), viewers=[])
def appends_join_across_an_edit(patch: pytest.MonkeyPatch) -> None:
    """Appends to one part are one text, in spite of the edits between them."""
    edit(patch, Draft, "add", {"joinable.pop(op.index, None)": "pass", "joinable.clear()": "pass"})


@mutant(
    "it shows|it does not show|back to|at the end of a batch with serial",
    hubs=2,
    authors=[HttpWriter, LocalWriter, BlindWriter],
    **SLOW_STORE,
    unknown_chance=0.3,
    viewers=[SocketViewer, StreamViewer, PollViewer],
    channel_bytes=1,
    cut_rate=0.5,
)
def a_reload_runs_beside_a_commit(patch: pytest.MonkeyPatch) -> None:
    """A read of the store does no harm, and its result is current."""
    free = {"self._loaders += 1": "pass", "self._loaders -= 1": "pass", "self.commit_over is not None": "False"}
    edit(patch, Channel, "_exclusive", free)
    edit(patch, Channel, "_has_passed", {"self.is_at(head)": "True"})


@mutant(
    "still behind",
    hubs=3,
    authors=[LocalWriter, LocalWriter],
    viewers=[LocalViewer, LocalViewer, StreamViewer],
    channel_idle_s=20.0,
    notice_loss=1.0,
    down_chance=0.2,
    unknown_chance=0.2,
    faults=["pause", "kill"],
    cut_rate=0.3,
)
def the_wake_up_is_trusted(patch: pytest.MonkeyPatch) -> None:
    """A wake-up always reports the writes of another hub."""
    is_due = "one.is_stale or one.batches.unreadable is not None or head.serial < serial or not one.is_past(head)"
    edit(patch, Follower, "behind", {is_due: "False"})


@mutant(
    "hole|a gap|it shows|it does not show|before it was stored",
    hubs=2,
    authors=[LocalWriter, LocalWriter],
    viewers=[SocketViewer, StreamViewer],
    notice_loss=0.3,
)
def a_notice_is_applied_across_a_hole(patch: pytest.MonkeyPatch) -> None:
    """A notice carries the newest entries of its channel."""
    edit(patch, Channel, "take_entries", {"new[0].serial == state.serial + 1 and ": ""})


@mutant(
    "ids that streamed were not used up",
    hubs=2,
    authors=[HttpWriter, LocalWriter, Editor, Editor, Editor],
    edits=["delete channel"],
)
def a_conflict_of_a_deletion_is_lost(patch: pytest.MonkeyPatch) -> None:
    """The hub has read the channel just before it deletes it."""
    edit(patch, MemoryStore, "delete_channel", {"head != expected": "False"})


# -- commits whose outcome is unknown, recovery and memory -----------------------------------------------------------


@mutant("was refused with (mismatch|gap)", authors=[BlindWriter, BlindWriter], unknown_chance=0.3)
def an_unknown_outcome_is_never_resolved(patch: pytest.MonkeyPatch) -> None:
    """The requests of the commit are decided again; the store shows which of them it holds."""
    patch.setattr(Committer, "_unclear", lambda self, batch, writes: {})


@mutant("wrote to", hubs=2, authors=[BlindWriter] * 4, unknown_chance=0.1, store_s=(0.0001, 0.05), token_s=0.1)
def an_append_gets_a_new_offset_after_an_unknown_outcome(patch: pytest.MonkeyPatch) -> None:
    """A request is immutable, so its offset is decided each time."""
    patch.setattr(committer, "replace", lambda request, **about: request)


@mutant("was refused with (mismatch|gap|not_found|no_part)", authors=[BlindWriter, PipelinedWriter], unknown_chance=0.3)
def requests_change_their_order_after_an_unknown_outcome(patch: pytest.MonkeyPatch) -> None:
    """Each request of the commit is decided again; their order is a detail."""
    edit(patch, Committer, "_return_all", {"extendleft(reversed(items))": "extendleft(items)"})


@mutant("offered a second time|received .*'ref'", authors=[Commander] * 2, workers=1)
def a_result_is_sent_twice(patch: pytest.MonkeyPatch) -> None:
    """A second copy of a result does no harm."""
    edit(patch, Waiting, "decided", {"self._done(": "self._done(decided.result()), self._done("})


@mutant("though its writer died", authors=[LocalWriter, LocalWriter], faults=["kill"], fault_s=1.0)
def messages_of_a_dead_process_are_not_recovered(patch: pytest.MonkeyPatch) -> None:
    """Another writer takes the message over when it is needed."""

    async def skip(*about: Any) -> None:
        pass

    patch.setattr(writer, "_end_or_adopt", skip)


@mutant("though the lease of", hubs=2, loss="kill")
def messages_of_an_ended_node_wait(patch: pytest.MonkeyPatch) -> None:
    """A hub recovers its own messages when it starts again."""
    patch.setattr(NodeLease, "is_recovery_due", False)


@mutant(
    "or turns wait",
    hubs=2,
    channels=3,
    viewers=[],
    channel_idle_s=0.0,
    agents=[AGENT],
    agents_at="A",
    authors=[Commander],
)
def a_waiting_turn_is_known_at_one_node(patch: pytest.MonkeyPatch) -> None:
    """The node that stores a message finds an agent for it."""
    patch.setattr(SharedTurns, "_waiting", lambda self: [])


@mutant("are members of|did not receive in .*presence", hubs=2, members=2, viewers=[SocketViewer] * 2)
def members_of_other_nodes_are_unknown(patch: pytest.MonkeyPatch) -> None:
    """Each node knows its own members."""

    async def read(self: SharedPresence, channels: Sequence[str]) -> None: ...

    patch.setattr(SharedPresence, "_read", read)


@mutant("waits for no agent", hubs=2, agents=[AGENT], agents_at="A", authors=[Commander])
def agents_of_other_nodes_are_unknown(patch: pytest.MonkeyPatch) -> None:
    """A message waits for the agents of its node."""

    async def skip(*about: Any) -> None:
        pass

    patch.setattr(WorkerPool, "note_elsewhere", lambda self, patterns: None)
    patch.setattr(WorkerPool, "recall", skip)


@mutant("two agents work on", hubs=2, loss="pause", agents=[AGENT], authors=[Commander, Commander, Commander])
def a_claim_is_judged_by_an_older_renewal(patch: pytest.MonkeyPatch) -> None:
    """The last renewal shows which nodes live."""
    for module in (shared_turns, writer):
        edit(patch, module, "lose_turns", {"await nodes.renew()": "pass"})


@mutant("was alive", hubs=2, authors=[LocalWriter, LocalWriter], faults=["store restart"])
def a_store_that_lost_its_leases_is_believed_at_once(patch: pytest.MonkeyPatch) -> None:
    """A node whose lease runs is in each answer of the store."""
    at_once = {"_own_due_s = now_s + term_s": "_own_due_s = now_s", "self._certain_s + term_s": "now_s + 2 * term_s"}
    edit(patch, NodeLease, "_note", at_once)


@mutant("by the store's clock", hubs=2, faults=["clock"])
def a_node_uses_its_own_clock(patch: pytest.MonkeyPatch) -> None:
    """The machines of all nodes have the right time."""
    patch.setattr(StoreClock, "measure", lambda self, store_ms, sent_s, now_s: None)


@mutant(
    "it shows|before it was stored|a gap|hole|back to",
    hubs=2,
    failovers=1,
    authors=[LocalWriter, HttpWriter],
    viewers=[SocketViewer, StreamViewer],
)
def an_epoch_is_kept_after_a_failover(patch: pytest.MonkeyPatch) -> None:
    """The log goes on with the entries that are left.

    The store names the next epoch, PostgreSQL's in its SQL, so here the store of the simulator has the bug.
    """
    patch.setattr(SimStore, "_following_epoch", lambda self, head: head.epoch)


@mutant(
    "resumed: true from", hubs=2, failovers=1, authors=[LocalWriter, HttpWriter], viewers=[SocketViewer, StreamViewer]
)
def a_cursor_of_what_is_left_resumes_after_a_failover(patch: pytest.MonkeyPatch) -> None:
    """The text up to the last serial that is left is the same in both epochs."""
    is_continued = Feed._is_continued

    def is_left(self: Feed) -> bool:
        epoch = self.channel.state.epoch
        if self._epoch is not None and self._serial <= kept_serial(self._epoch, epoch):
            self._epoch = epoch
        return is_continued(self)

    patch.setattr(Feed, "_is_continued", is_left)


@mutant("gave a sign of life", hubs=2, authors=[LeaseWriter, LeaseWriter])
def a_renewal_reaches_one_hub(patch: pytest.MonkeyPatch) -> None:
    """A renewal changes no message, so there is no entry to store."""
    patch.setattr(committer, "stored_renewal", lambda message, now_ms: ())


@mutant("its writer sent the last request at", hubs=2, loss="kill")
def a_late_read_begins_another_term(patch: pytest.MonkeyPatch) -> None:
    """This hub has not seen the writer before, so its lease begins now."""
    patch.setattr(NodeLease, "left_s", lambda self, term_s, alive_ms: term_s)


@mutant(
    "refused.* with not_found|refused: .*not_found|could not .*not_found",
    authors=[HttpWriter, Editor],
    edits=["edit", "delete", "read"],
    channel_bytes=1,
    faults=["free memory"],
)
def a_message_that_left_memory_does_not_exist(patch: pytest.MonkeyPatch) -> None:
    """The state in memory is complete."""
    is_ready_for = Channel.is_ready_for
    patch.setattr(Channel, "is_ready_for", lambda self, ids: is_ready_for(self, ()))


@mutant(
    "created twice|was refused with not_found|got status 404",
    hubs=2,
    authors=[HttpWriter, HttpWriter, HttpWriter],
    cut_rate=0.5,
    channel_bytes=1,
)
def an_absent_id_stays_absent(patch: pytest.MonkeyPatch) -> None:
    """The store was asked for this id before."""
    edit(patch, Channel, "committed", {"self._absent.discard(entry.op.id)": "pass"})
    for name in ("_catch_up", "_reload"):
        edit(patch, Channel, name, {"self._absent.clear()": "pass"})


@mutant("lacks the streaming", authors=[LocalWriter, LocalWriter, Editor], default_history=1)
def a_new_start_holds_the_page_alone(patch: pytest.MonkeyPatch) -> None:
    """A viewer that wants an older streaming message asks for history."""
    edit(patch, channels, "new_start", {"if message.is_streaming": "if False"})


@mutant(
    "it does not show",
    hubs=2,
    authors=[BlindWriter, LocalWriter, SteadyWriter],
    viewers=[SocketViewer] * 4,
    unknown_chance=0.1,
    channel_idle_s=0.0,
    channel_bytes=1,
    memory_bytes=1,
    catch_up_messages=2,
)
def messages_in_memory_are_a_page(patch: pytest.MonkeyPatch) -> None:
    """The newest messages in memory are the newest messages."""
    edit(patch, channels, "newest_messages", {"message.created < state.history_from": "False"})


# -- leases, presence, commands and turns ----------------------------------------------------------------------------


@mutant(
    "wrote to", hubs=2, authors=[LocalWriter, LocalWriter, Editor], edits=["edit"], unknown_chance=0.3, slow_chance=0.03
)
def a_local_append_has_no_offset_check(patch: pytest.MonkeyPatch) -> None:
    """A writer in this process knows the length of its part, and a commit decided again was not stored."""
    edit(patch, committer, "plain_append", {"known.length != request.at or ": ""})
    patch.setattr(Committer, "_unclear", lambda self, batch, writes: {})


@mutant("after a takeover", authors=[LeaseWriter, LeaseWriter])
def a_takeover_fences_no_writer(patch: pytest.MonkeyPatch) -> None:
    """The earlier writer has stopped."""
    patch.setattr(decisions, "_check_generation", lambda message, generation: None)


@mutant("a second one", authors=[Commander, Commander, Commander])
def a_second_reply_is_accepted(patch: pytest.MonkeyPatch) -> None:
    """The newest reply is the best one."""
    edit(patch, decisions, "_reply_command", {"command.reply is not None:": "False:"})


@mutant("still streams", authors=[Commander, HttpWriter, HttpWriter, HttpWriter], token_s=0.4)
def a_cancel_ends_the_newest_answer(patch: pytest.MonkeyPatch) -> None:
    """A user cancels the answer that began last."""
    target = "target = [target, *(one.id for one in state.streaming())][-1]"
    edit(patch, decisions, "_carry_out_cancel", {"turns = {target}": f"{target}\n    turns = {{target}}"})


@mutant("gave a sign of life", authors=[Commander, Commander], workers=1)
def a_turn_renewal_has_no_effect(patch: pytest.MonkeyPatch) -> None:
    """The agent renews a turn that runs, so the response is ok."""

    def renew(self: TurnScheduler, worker: Worker, turn: AssignedTurn) -> bool:
        known = self._turn(turn.channel, turn.message_id)
        return known is not None and known.is_taken

    patch.setattr(TurnScheduler, "renew", renew)


@mutant("which took it in, is over", asks_by_socket=True, authors=[Commander] * 3, hubs=2, workers=1)
def a_message_that_was_taken_in_goes_on(patch: pytest.MonkeyPatch) -> None:
    """The answer of a turn ends the turn; the messages that it has taken in have no answer of their own."""
    patch.setattr(decisions, "_released", lambda *_: ())


@mutant("was offered before its claim", authors=[Commander], workers=1)
def a_turn_begins_before_its_claim_is_stored(patch: pytest.MonkeyPatch) -> None:
    """The claim will be stored, so the agent can begin."""
    claim = TurnScheduler._claim

    def eager(self: TurnScheduler, channel: str, turn: OpenTurn, worker: Worker, *lost: Any) -> None:
        if not worker.is_local:
            worker.begin(AssignedTurn(channel, turn.message_id, turn.attempt + 1))
        claim(self, channel, turn, worker, *lost)

    patch.setattr(TurnScheduler, "_claim", eager)


@mutant("which is no answer's text", authors=[LocalWriter, LocalWriter, Commander, Commander], agents=[AGENT])
def a_superseded_part_counts_in_a_history(patch: pytest.MonkeyPatch) -> None:
    """The model should know all that the answer has said."""
    as_turns = history.as_turns

    def with_attempts(messages: Sequence[Message], *rest: Any) -> list[dict[str, Any]]:
        whole = []
        for one in messages:
            inner = [part["parts"] if part["type"] == "attempt" else [part] for part in one.parts]
            whole.append(replace(one, parts=[part for parts in inner for part in parts]))
        return as_turns(whole, *rest)

    patch.setattr(turns, "as_turns", with_attempts)


@mutant(
    "runs again",
    authors=[Commander, Commander],
    agents=[dataclasses.replace(AGENT, has_questions=True)],
    faults=["kill", "kill"],
)
def a_step_is_stored_after_it_has_returned(patch: pytest.MonkeyPatch) -> None:
    """The result of a step is stored a moment later, so its handler need not wait."""
    store = Steps._store
    late: set[asyncio.Task[object]] = set()

    async def eager(self: Steps, name: str, stored: Sent, result: object) -> object:
        async def later() -> None:
            await asyncio.sleep(0.5)
            with contextlib.suppress(TenutoError):
                await store(self, name, stored, result)

        late.add(asyncio.ensure_future(later()))
        return result

    patch.setattr(Steps, "_store", eager)


@mutant("its turn is taken", authors=[Commander], agents=[AGENT], faults=["restart"])
def a_drain_counts_as_a_death(patch: pytest.MonkeyPatch) -> None:
    """Each attempt has a number, and the fifth is the last."""
    patch.setattr(decisions, "MOST_SPARED", 0)


@mutant("there are still", authors=[Commander, Commander], workers=1, faults=["kill"])
def a_restart_forgets_waiting_messages(patch: pytest.MonkeyPatch) -> None:
    """Agents receive new messages; earlier ones were answered before the restart."""
    look, look_at = TurnScheduler.inspect, TurnScheduler.inspect_message

    def look_at_what_is_new(self: TurnScheduler, channel: Channel, keys: Any) -> None:
        if keys is not None:
            look(self, channel, keys)

    def look_at_nothing_yet(self: TurnScheduler, channel: str, key: str, message: MessageState | None) -> bool:
        return bool(self.workers) and look_at(self, channel, key, message)

    patch.setattr(TurnScheduler, "inspect", look_at_what_is_new)
    patch.setattr(TurnScheduler, "inspect_message", look_at_nothing_yet)


@mutant("presence.leave of", hubs=2, members=4, viewers=[SocketViewer] * 2, cut_rate=0.3, bad_s=16.0)
def a_member_that_moved_to_another_node_leaves(patch: pytest.MonkeyPatch) -> None:
    """The node at which the member was has let its grace pass, so the member has left."""
    edit(patch, PresenceState, "_drop", {"here.is_here or here.elsewhere": "here.is_here"})


@mutant("without a batch before it", members=2)
def presence_carries_a_cursor(patch: pytest.MonkeyPatch) -> None:
    """The cursor of each batch is that of the channel."""
    edit(patch, Channel, "ephemeral_since", {'self.name, "", ': "self.name, self.state.cursor, "})


@mutant("was not carried out|has expired", authors=[Commander])
def commands_do_not_expire(patch: pytest.MonkeyPatch) -> None:
    """The sender of a command notices that no reply comes."""
    patch.setattr(LeaseMonitor, "inspect_command", lambda self, channel, key, command: None)


# -- message streams, cursors and notices ----------------------------------------------------------------------------


@mutant("received the end of .* and of its", readers=3, authors=[LocalWriter, SteadyWriter])
def an_end_drops_the_last_text(patch: pytest.MonkeyPatch) -> None:
    """A client that receives the end reads the message again."""
    read = "left = texts_left(deltas)"
    edit(patch, streams.NamedEvents, "frame", {read: f"deltas = deltas if status is None else []\n    {read}"})


@mutant("instead of the end|did not receive the end|still behind: .*reader", readers=2)
def a_message_stream_has_no_end(patch: pytest.MonkeyPatch) -> None:
    """A stream that falls silent has ended."""
    edit(patch, streams.NamedEvents, "frame", {"status is not None": "False"})


@mutant(
    "did not receive in",
    members=2,
    authors=[SteadyWriter] * 2,
    viewers=[StreamViewer, StreamViewer, SocketViewer],
    room_bytes=1_000,
    SLICE_FEEDS=1,
    latency_s=(0.0002, 0.05),
)
def presence_waits_for_a_pause_of_the_text(patch: pytest.MonkeyPatch) -> None:
    """Text comes first; presence follows when the feed has caught up."""
    patch.setattr(Feed, "done", lambda self: self._group.moved() if self.is_behind else None)


@mutant("a response holds the cursor", viewers=[SocketViewer, PollViewer])
def a_page_has_a_later_cursor(patch: pytest.MonkeyPatch) -> None:
    """A client that reads a page wants the later entries."""
    edit(patch, HubCore, "history", {"page.head.serial)": "page.head.serial + 1)"})


@mutant("a response holds the cursor", authors=[HttpWriter, Editor], edits=["read"])
def a_message_has_a_later_cursor(patch: pytest.MonkeyPatch) -> None:
    """A client that reads a message has seen its last entry."""
    edit(patch, HubCore, "read", {"live.state.cursor": 'f"{live.state.epoch}:{live.state.serial + 1}"'})


@mutant("a response holds the cursor")
def a_create_has_a_later_cursor(patch: pytest.MonkeyPatch) -> None:
    """The author of a message has seen its entry."""
    edit(patch, codec, "_fields", {"result.cursor": 'f"{result.cursor}0"'})


# -- hooks -----------------------------------------------------------------------------------------------------------


@mutant(
    "though its position is|while .* calls it since|, after|goes back",
    hubs=2,
    hooks=[SLOW_HOOK],
    authors=[HttpWriter] * 4,
    loss="pause",
)
def a_node_that_was_away_goes_on_with_its_hook(patch: pytest.MonkeyPatch) -> None:
    """The node had the hook, and knows how far it came."""
    patch.setattr(HookRunner, "_may_call", lambda self, term: self._is_ready)


@mutant(
    "is called for .*, after|though its position is",
    hooks=[SLOW_HOOK],
    authors=[HttpWriter, PipelinedWriter, LocalWriter],
)
def a_hook_is_called_message_by_message(patch: pytest.MonkeyPatch) -> None:
    """All events of one message belong together."""
    edit(patch, HookRunner, "_deliver", {"sorted(events, key=lambda event: event.serial)": "events"})


@mutant(
    "still runs|its position|have missed",
    hooks=[HOOK],
    registers_late=True,
    authors=[LocalWriter],
    faults=["kill"],
    **SLOW_STORE,
)
def a_hook_registered_in_a_recovery_begins_at_once(patch: pytest.MonkeyPatch) -> None:
    """The hub runs already when it recovers."""
    patch.setattr(Lifecycle, "has_recovered", Lifecycle.is_running)


@mutant(
    "hooks have missed",
    is_weak=True,
    faults=["sync", "power"],
    hooks=[HOOK, dataclasses.replace(SLOW_HOOK, name="hook1")],
    authors=[HttpWriter, Commander],
)
def a_hook_position_ignores_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """A position is a number."""
    edit(patch, HookRunner, "_deliver", {"kept_serial(epoch, head.epoch)": "head.serial"})


# -- requests over a socket ------------------------------------------------------------------------------------------


@mutant("which it has left", asks_by_socket=True, viewers=[SocketViewer, SocketViewer])
def a_detach_has_no_effect(patch: pytest.MonkeyPatch) -> None:
    """The client will attach again."""
    patch.setattr(Session, "_detach", lambda self, frame: {})


@mutant(
    "the view has no older message",
    asks_by_socket=True,
    authors=[HttpWriter, Editor, Editor],
    default_history=1,
    viewers=[SocketViewer] * 5,
    bad_s=12.0,
)
def a_page_over_a_socket_is_the_last(patch: pytest.MonkeyPatch) -> None:
    """A client that wants more asks for it."""
    edit(patch, Session, "respond", {"frame)\n": 'frame | {"more": False} if "more" in frame else frame)\n'})


@mutant(
    "the deletion of .* was acknowledged before",
    asks_by_socket=True,
    authors=[HttpWriter, Editor, Editor],
    edits=["delete"],
    **SLOW_STORE,
)
def a_delete_is_acknowledged_at_once(patch: pytest.MonkeyPatch) -> None:
    """The message will be deleted in a moment."""
    request = Session._request

    def at_once(self: Session, frame: Any, size: int) -> None:
        if isinstance(frame, DeleteMessage):
            caller = self.credentials.caller(frame.channel)
            self.hub.runtime.submit(frame.channel, frame.id, frame, caller, lambda result: None)
            self.respond({"type": "ok", "ref": frame.ref})
        else:
            request(self, frame, size)

    patch.setattr(Session, "_request", at_once)


@mutant("in its turn of .* not stored", asks_by_socket=True, workers=2, authors=[Commander] * 3)
def every_agent_takes_waiting_messages(patch: pytest.MonkeyPatch) -> None:
    """An agent with a turn may have the message of another agent, too."""

    async def take_waiting(self: HubCore, channel: str, message_id: str, by: str, *, turn: str | None = None) -> bool:
        return True

    patch.setattr(HubCore, "take_waiting", take_waiting)


@mutant("and wants none", asks_by_socket=True, workers=2, authors=[Commander] * 3)
def an_agent_that_stops_still_gets_turns(patch: pytest.MonkeyPatch) -> None:
    """The agent is still connected."""
    edit(patch, TurnScheduler, "unregister", {"if not self": "if not is_broken or not self"})


@mutant("slots, and works on", channels=3, agents=[AGENT], authors=[Commander] * 3)
def an_agent_has_more_turns_than_slots(patch: pytest.MonkeyPatch) -> None:
    """Slots count for remote agents only."""
    claim = TurnScheduler._claim

    def uncounted(self: TurnScheduler, channel: str, turn: OpenTurn, worker: Worker, *lost: Any) -> None:
        worker.free += worker.is_local
        claim(self, channel, turn, worker, *lost)

    patch.setattr(TurnScheduler, "_claim", uncounted)


# -- memory ----------------------------------------------------------------------------------------------------------


@mutant("things are in Hoarder.kept")
def a_feed_keeps_its_batches(patch: pytest.MonkeyPatch) -> None:
    """Another viewer may need the batch."""

    class Hoarder(Feed):
        def take(self) -> EncodedBatch | None:
            batch = super().take()
            if batch is not None:
                self.kept: list[EncodedBatch] = [*getattr(self, "kept", []), batch]
            return batch

    patch.setattr(hubs, "Feed", Hoarder)


@mutant("responses of a socket are due", authors=[PipelinedWriter], socket_requests=2, **SLOW_STORE)
def a_socket_is_read_without_bound(patch: pytest.MonkeyPatch) -> None:
    """The responses of the socket will follow soon."""
    patch.setattr(Session, "is_full", property(lambda self: False))


@mutant("channels are left")
def an_idle_channel_stays(patch: pytest.MonkeyPatch) -> None:
    """A client may attach again."""
    patch.setattr(Channel, "is_idle", property(lambda self: False))


@mutant(
    "are kept after a trim|no trim frees them",
    channels=3,
    channel_bytes=5_000,
    channel_idle_s=0.0,
    bad_s=12.0,
    store_s=(0.0001, 0.2),
    authors=[HttpWriter, LeaseWriter],
    viewers=[SocketViewer, StreamViewer],
)
def finished_messages_stay(patch: pytest.MonkeyPatch) -> None:
    """A live channel is needed as it is."""
    patch.setattr(Channel, "trim", lambda self, keep_bytes: None)


@mutant(
    "encoded batches are kept", MAX_CACHED_BATCHES=2, cut_rate=1.0, viewers=[SocketViewer, StreamViewer, StreamViewer]
)
def every_batch_is_kept(patch: pytest.MonkeyPatch) -> None:
    """Another viewer may attach with the same cursor."""
    edit(patch, BatchCache, "keep", {"is_full or self.text_bytes + size > MAX_CACHED_BYTES": "False"})


@mutant(
    "hole|a gap|it shows|it does not show",
    hubs=2,
    authors=[HttpWriter, HttpWriter],
    viewers=[SocketViewer, StreamViewer],
)
def a_kept_append_outlives_its_state(patch: pytest.MonkeyPatch) -> None:
    """A viewer at the serial before the last append misses that append."""
    own = {"serial != since + 1 or serial != state.serial or epoch != state.epoch": "serial != since + 1"}
    edit(patch, Channel, "append_since", own | {'f"{epoch}:{serial}"': "state.cursor"})
    edit(patch, BatchCache, "forget", {"self.appended = None": "pass"})


@mutant("things are in PresenceState._signals", members=2, KEPT_SIGNALS=2, bad_s=12.0)
def signals_pile_up(patch: pytest.MonkeyPatch) -> None:
    """Each signal is small."""
    bound = "> KEPT_SIGNALS or self._signal_bytes > KEPT_SIGNAL_BYTES"
    edit(patch, PresenceState, "signal", {bound: "< 0"})


# -- endless loops ---------------------------------------------------------------------------------------------------


@mutant("does not end", authors=[LocalWriter, HttpWriter])
def block_until_a_load(patch: pytest.MonkeyPatch) -> None:
    """The load takes but a moment."""
    park = Committer._park

    def wait(self: Committer, channel: Channel, item: Any) -> None:
        park(self, channel, item)
        while not channel.is_ready_for(()):
            pass

    patch.setattr(Committer, "_park", wait)
    patch.setattr(watchdog, "BUSY_TICK_S", 0.1)  # shortened, because a tick usually takes seconds


@mutant(
    "never waits|waits too shortly",
    authors=[LocalWriter, LocalWriter],
    viewers=[StreamViewer, StreamViewer],
    SLICE_FEEDS=1,
    room_bytes=200,
    latency_s=(0.0002, 0.3),
    stall_chance=0.3,
)
def feeds_behind_are_woken_without_end(patch: pytest.MonkeyPatch) -> None:
    """Wake all feeds again until each has taken its events."""
    release = Group._release

    def release_all(self: Group) -> None:
        release(self)
        if any(isinstance(feed, Feed) and feed.is_behind for feed in self.feeds):
            asyncio.get_running_loop().call_soon(self._release)

    patch.setattr(Group, "_release", release_all)
