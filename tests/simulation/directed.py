"""Worlds that are directed at one mutant: their features are given and not drawn.

Layer: tests.

A directed world starts plain: one hub, one channel, one writer, one viewer and no fault. It gets only the features that
let its mutant do harm. Most seeds show the mutant then, so a change of the hub that moves the draws does not hide it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proof.simulation.agents import LocalPlan
from proof.simulation.faults import FaultModel
from proof.simulation.hooks import HookPlan
from proof.simulation.members import Commander
from proof.simulation.plan import SIZES, Plan
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
from tenuto.core.limits import Limits
from tenuto.hub.hooks import KINDS
from tests.simulation import mutants
from tests.simulation.mutants import Mutant

HOOK = HookPlan(name="hook0", kinds=KINDS, pattern="*", pause_s=0.01, fail_chance=0.0, hang_chance=0.0, late_chance=0.0)
SLOW_HOOK = replace(HOOK, pause_s=0.5)
AGENT = LocalPlan(when_busy="queue", on_crash="restart", slots=1, has_questions=False)
SLOW_STORE = {"store_s": (0.0001, 0.2)}

# The features without which a mutant can do no harm, or only rarely.
WORLDS: dict[Mutant, dict[str, Any]] = {
    mutants.deliver_before_the_commit: {"authors": [LocalWriter]},
    mutants.a_cursor_is_valid_in_every_epoch: {
        "authors": [HttpWriter, Editor, Editor, Editor],
        "edits": ["delete channel", "say"],
        "cut_rate": 1.0,
        "viewers": [SocketViewer, StreamViewer, PollViewer],
    },
    mutants.a_mark_counts_for_the_serial_before: {"authors": [LocalWriter]},
    mutants.viewers_miss_a_mark: {"cut_rate": 1.0, "viewers": [SocketViewer, StreamViewer]},
    mutants.catch_up_skips_an_entry: {"cut_rate": 1.0, "viewers": [SocketViewer, StreamViewer]},
    mutants.a_kept_append_outlives_its_state: {
        "hubs": 2,
        "authors": [HttpWriter, HttpWriter],
        "viewers": [SocketViewer, StreamViewer],
    },
    mutants.appends_join_across_an_edit: {"authors": [BlindWriter] * 2, "latency_s": (0.0002, 0.05), "viewers": []},
    mutants.appends_are_acknowledged_before_the_commit: {"authors": [PipelinedWriter]},
    mutants.each_event_moves_the_cursor: {
        "authors": [HttpWriter, PipelinedWriter],
        "cut_rate": 0.3,
        "split_chance": 0.5,
        "viewers": [StreamViewer, StreamViewer],
        "store_s": (0.0001, 0.05),
    },
    mutants.a_reload_runs_beside_a_commit: dict(
        hubs=2,
        authors=[HttpWriter, LocalWriter, BlindWriter],
        **SLOW_STORE,
        unknown_chance=0.3,
        viewers=[SocketViewer, StreamViewer, PollViewer],
        channel_bytes=1,
        cut_rate=0.5,
    ),
    mutants.requests_are_decided_on_arrival: dict(authors=[PipelinedWriter], **SLOW_STORE),
    mutants.the_wake_up_is_trusted: {
        "hubs": 3,
        "authors": [LocalWriter, LocalWriter],
        "viewers": [LocalViewer, LocalViewer, StreamViewer],
        "channel_idle_s": 20.0,
        "notice_loss": 1.0,
        "down_chance": 0.2,
        "unknown_chance": 0.2,
        "faults": ["pause", "kill"],
        "cut_rate": 0.3,
    },
    mutants.a_notice_is_applied_across_a_hole: {
        "hubs": 2,
        "authors": [LocalWriter, LocalWriter],
        "viewers": [SocketViewer, StreamViewer],
        "notice_loss": 0.3,
    },
    mutants.a_conflict_of_a_deletion_is_lost: {
        "hubs": 2,
        "authors": [HttpWriter, LocalWriter, Editor, Editor, Editor],
        "edits": ["delete channel"],
    },
    mutants.an_unknown_outcome_is_never_resolved: {"authors": [BlindWriter, BlindWriter], "unknown_chance": 0.3},
    mutants.an_append_gets_a_new_offset_after_an_unknown_outcome: {
        "hubs": 2,
        "authors": [BlindWriter] * 4,
        "unknown_chance": 0.1,
        "store_s": (0.0001, 0.05),
        "token_s": 0.1,
    },
    mutants.an_offset_counts_the_last_text_part: {"authors": [HttpWriter, BlindWriter], "unknown_chance": 0.3},
    mutants.requests_change_their_order_after_an_unknown_outcome: {
        "authors": [BlindWriter, PipelinedWriter],
        "unknown_chance": 0.3,
    },
    mutants.a_conflict_is_ignored: {"hubs": 3, "authors": [HttpWriter, LocalWriter, PipelinedWriter]},
    mutants.a_result_is_sent_twice: {"authors": [Commander] * 2, "workers": 1},
    mutants.messages_of_a_dead_process_are_not_recovered: {
        "authors": [LocalWriter, LocalWriter],
        "faults": ["kill"],
        "fault_s": 1.0,
    },
    mutants.messages_of_an_ended_node_wait: {"hubs": 2, "loss": "kill"},
    mutants.a_renewal_reaches_one_hub: {"hubs": 2, "authors": [LeaseWriter, LeaseWriter]},
    mutants.a_late_read_begins_another_term: {"hubs": 2, "loss": "kill"},
    mutants.a_lease_ends_without_a_read_of_the_store: {"hubs": 2, "authors": [LeaseWriter, LeaseWriter]},
    mutants.a_turn_renewal_reaches_one_hub: {"hubs": 2, "authors": [Commander, Commander], "workers": 2, "bad_s": 16.0},
    mutants.a_waiting_turn_is_known_at_one_node: {
        "hubs": 2,
        "channels": 3,
        "viewers": [],
        "channel_idle_s": 0.0,
        "agents": [AGENT],
        "agents_at": "A",
        "authors": [Commander],
    },
    mutants.members_of_other_nodes_are_unknown: {"hubs": 2, "members": 2, "viewers": [SocketViewer] * 2},
    mutants.members_of_an_ended_node_stay: {
        "hubs": 2,
        "members": 6,
        "faults": ["kill"],
        "fault_s": 3.0,
        "viewers": [SocketViewer] * 4,
    },
    mutants.notices_of_members_are_trusted: {
        "hubs": 2,
        "members": 6,
        "notice_loss": 1.0,
        "viewers": [SocketViewer] * 4,
    },
    mutants.signals_stay_at_their_node: {"hubs": 2, "members": 2, "bad_s": 16.0, "viewers": [SocketViewer] * 2},
    mutants.agents_of_other_nodes_are_unknown: {
        "hubs": 2,
        "agents": [AGENT],
        "agents_at": "A",
        "authors": [Commander],
    },
    mutants.a_claim_is_judged_by_an_older_renewal: {
        "hubs": 2,
        "loss": "pause",
        "agents": [AGENT],
        "authors": [Commander, Commander, Commander],
    },
    mutants.a_node_uses_its_own_clock: {"hubs": 2, "faults": ["clock"]},
    mutants.a_living_node_is_recovered: {"hubs": 2, "loss": "pause"},
    mutants.a_store_that_lost_its_leases_is_believed_at_once: {
        "hubs": 2,
        "authors": [LocalWriter, LocalWriter],
        "faults": ["store restart"],
    },
    mutants.an_epoch_is_kept_after_a_failover: {
        "hubs": 2,
        "failovers": 1,
        "authors": [LocalWriter, HttpWriter],
        "viewers": [SocketViewer, StreamViewer],
    },
    mutants.a_cursor_of_what_is_left_resumes_after_a_failover: {
        "hubs": 2,
        "failovers": 1,
        "authors": [LocalWriter, HttpWriter],
        "viewers": [SocketViewer, StreamViewer],
    },
    mutants.a_message_that_left_memory_does_not_exist: {
        "authors": [HttpWriter, Editor],
        "edits": ["edit", "delete", "read"],
        "TAIL_ENTRIES": 2,
        "channel_bytes": 1,
        "faults": ["free memory"],
    },
    mutants.an_absent_id_stays_absent: {
        "hubs": 2,
        "authors": [HttpWriter, HttpWriter, HttpWriter],
        "cut_rate": 0.5,
        "channel_bytes": 1,
    },
    mutants.a_new_start_holds_the_page_alone: {"authors": [LocalWriter, LocalWriter, Editor], "default_history": 1},
    mutants.messages_in_memory_are_a_page: {
        "hubs": 2,
        "authors": [BlindWriter, LocalWriter, SteadyWriter],
        "viewers": [SocketViewer] * 4,
        "unknown_chance": 0.1,
        "channel_idle_s": 0.0,
        "channel_bytes": 1,
        "memory_bytes": 1,
        "catch_up_messages": 2,
    },
    mutants.a_local_append_has_no_offset_check: {
        "hubs": 2,
        "authors": [LocalWriter, LocalWriter, Editor],
        "edits": ["edit"],
        "unknown_chance": 0.3,
        "slow_chance": 0.03,
    },
    mutants.a_takeover_fences_no_writer: {"authors": [LeaseWriter, LeaseWriter]},
    mutants.a_renewal_after_a_broken_socket_does_not_count: {"authors": [LeaseWriter, LeaseWriter], "cut_rate": 0.3},
    mutants.a_second_reply_is_accepted: {"authors": [Commander, Commander, Commander]},
    mutants.a_cancel_ends_the_newest_answer: {
        "authors": [Commander, HttpWriter, HttpWriter, HttpWriter],
        "token_s": 0.4,
    },
    mutants.a_turn_renewal_has_no_effect: {"authors": [Commander, Commander], "workers": 1},
    mutants.a_message_that_was_taken_in_goes_on: {
        "asks_by_socket": True,
        "authors": [Commander] * 3,
        "hubs": 2,
        "workers": 1,
    },
    mutants.a_turn_begins_before_its_claim_is_stored: {"authors": [Commander], "workers": 1},
    mutants.a_superseded_part_counts_in_a_history: {
        "authors": [LocalWriter, LocalWriter, Commander, Commander],
        "agents": [AGENT],
    },
    mutants.an_attempt_is_superseded_twice: {"authors": [LocalWriter]},
    mutants.a_step_is_stored_after_it_has_returned: {
        "authors": [Commander, Commander],
        "agents": [replace(AGENT, has_questions=True)],
        "faults": ["kill", "kill"],
    },
    mutants.a_drain_counts_as_a_death: {"authors": [Commander], "agents": [AGENT], "faults": ["restart"]},
    mutants.a_restart_forgets_waiting_messages: {"authors": [Commander, Commander], "workers": 1, "faults": ["kill"]},
    mutants.a_member_leaves_without_grace: {"members": 2, "cut_rate": 0.5},
    mutants.a_member_that_moved_to_another_node_leaves: {
        "hubs": 2,
        "members": 4,
        "viewers": [SocketViewer] * 2,
        "cut_rate": 0.3,
        "bad_s": 16.0,
    },
    mutants.presence_carries_a_cursor: {"members": 2},
    mutants.presence_waits_for_a_pause_of_the_text: {
        "members": 2,
        "authors": [SteadyWriter] * 2,
        "viewers": [StreamViewer, StreamViewer, SocketViewer],
        "room_bytes": 1_000,
        "SLICE_FEEDS": 1,
        "latency_s": (0.0002, 0.05),
    },
    mutants.signals_are_not_sent: {"members": 2},
    mutants.a_page_has_a_later_cursor: {"viewers": [SocketViewer, PollViewer]},
    mutants.a_message_has_a_later_cursor: {"authors": [HttpWriter, Editor], "edits": ["read"]},
    mutants.a_create_has_a_later_cursor: {},
    mutants.a_detach_has_no_effect: {"asks_by_socket": True, "viewers": [SocketViewer, SocketViewer]},
    mutants.a_page_over_a_socket_is_the_last: {
        "asks_by_socket": True,
        "authors": [HttpWriter, Editor, Editor],
        "default_history": 1,
        "viewers": [SocketViewer] * 5,
        "bad_s": 12.0,
    },
    mutants.a_delete_is_acknowledged_at_once: dict(
        asks_by_socket=True, authors=[HttpWriter, Editor, Editor], edits=["delete"], **SLOW_STORE
    ),
    mutants.every_agent_takes_waiting_messages: {"asks_by_socket": True, "workers": 2, "authors": [Commander] * 3},
    mutants.an_agent_that_stops_still_gets_turns: {"asks_by_socket": True, "workers": 2, "authors": [Commander] * 3},
    mutants.an_agent_has_more_turns_than_slots: {
        "channels": 3,
        "agents": [AGENT],
        "authors": [Commander] * 3,
    },
    mutants.a_hook_registered_in_a_recovery_begins_at_once: dict(
        hooks=[HOOK], registers_late=True, authors=[LocalWriter], faults=["kill"], **SLOW_STORE
    ),
    mutants.each_node_calls_a_hook: {"hubs": 2, "hooks": [SLOW_HOOK]},
    mutants.a_node_that_was_away_goes_on_with_its_hook: {
        "hubs": 2,
        "hooks": [SLOW_HOOK],
        "authors": [HttpWriter] * 4,
        "loss": "pause",
    },
    mutants.a_hook_keeps_its_position_before_the_call: {"hooks": [HOOK]},
    mutants.a_hook_is_called_message_by_message: {
        "hooks": [SLOW_HOOK],
        "authors": [HttpWriter, PipelinedWriter, LocalWriter],
    },
    mutants.a_late_hook_begins_at_the_head: {"hooks": [SLOW_HOOK], "faults": ["kill"], "authors": [Commander, Editor]},
    mutants.a_hook_position_ignores_the_epoch: {
        "is_weak": True,
        "faults": ["sync", "power"],
        "hooks": [HOOK, replace(SLOW_HOOK, name="hook1")],
        "authors": [HttpWriter, Commander],
    },
    mutants.an_end_drops_the_last_text: {"readers": 3, "authors": [LocalWriter, SteadyWriter]},
    mutants.a_message_stream_has_no_end: {"readers": 2},
    mutants.commands_do_not_expire: {"authors": [Commander]},
    mutants.a_feed_keeps_its_batches: {},
    mutants.a_socket_is_read_without_bound: dict(authors=[PipelinedWriter], socket_requests=2, **SLOW_STORE),
    mutants.an_idle_channel_stays: {},
    mutants.finished_messages_stay: {
        "channels": 3,
        "channel_bytes": 5_000,
        "channel_idle_s": 0.0,
        "bad_s": 12.0,
        "store_s": (0.0001, 0.2),
        "authors": [HttpWriter, LeaseWriter],
        "viewers": [SocketViewer, StreamViewer],
    },
    mutants.every_batch_is_kept: {
        "MAX_CACHED_BATCHES": 2,
        "cut_rate": 1.0,
        "viewers": [SocketViewer, StreamViewer, StreamViewer],
    },
    mutants.signals_pile_up: {"members": 2, "KEPT_SIGNALS": 2, "bad_s": 12.0},
    mutants.part_operations_pile_up: {"TAIL_ENTRIES": 2, "authors": [LocalWriter]},
    mutants.block_until_a_load: {"authors": [LocalWriter, HttpWriter]},
    mutants.feeds_behind_are_woken_without_end: {
        "authors": [LocalWriter, LocalWriter],
        "viewers": [StreamViewer, StreamViewer],
        "SLICE_FEEDS": 1,
        "room_bytes": 200,
        "latency_s": (0.0002, 0.3),
        "stall_chance": 0.3,
    },
}


def directed(seed: int, features: dict[str, Any]) -> Plan:
    """Return a plain plan with `features`: fields of `Plan`, `FaultModel` and `Limits`, and names of `SIZES`."""
    rest = dict(features)

    def take(names: Any) -> dict[str, Any]:
        return {name: rest.pop(name) for name in names if name in rest and name not in Plan.__dataclass_fields__}

    faults, limits = take(FaultModel.__dataclass_fields__), take(Limits.__dataclass_fields__)
    sizes = [rest.pop(name, values[-1]) for _, name, values in SIZES]
    plain = Plan(
        seed=seed,
        hubs=1,
        is_weak=False,
        channels=1,
        bad_s=8.0,
        token_s=0.02,
        authors=[HttpWriter],
        viewers=[SocketViewer],
        readers=0,
        edits=["say"],
        faults=[],
        fault_s=1.0,
        adopts=False,
        by_hand=False,
        flush_ms=40,
        limits=Limits(**{"channel_idle_s": 2.0, **limits}),
        fault_model=FaultModel(**faults),
        sizes=sizes,
    )
    return replace(plain, **rest)
