"""The plan of a run, drawn from a seed: hubs, actors, faults and limits.

Layer: simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from holdfast.core.limits import Limits
from simulation.agents import LocalPlan
from simulation.editor import Editor
from simulation.faults import FaultModel
from simulation.hooks import HookPlan
from simulation.lease_writers import LeaseWriter
from simulation.local_writers import LocalWriter, SteadyWriter
from simulation.members import Commander
from simulation.viewers import LocalViewer, PollViewer, SocketViewer, StreamViewer, Viewer
from simulation.writers import Author, BlindWriter, HttpWriter, PipelinedWriter

# Bounds of the product that change no behaviour but its frequency: small ones make rare cases frequent.
# Module, name and values.
SIZES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("holdfast.core.state", "TAIL_ENTRIES", (2, 1_000)),
    ("holdfast.core.state", "TAIL_BYTES", (500, 1024 * 1024)),
    ("holdfast.core.text", "MAX_MARKS", (8, 65_536)),
    ("holdfast.core.text", "JOIN_PIECES", (2, 64)),
    ("holdfast.core.document", "MARK_BYTES", (1, 16, 256)),
    ("holdfast.hub.committer", "DOCUMENT_BYTES", (30, 300, 64 * 1024)),
    ("holdfast.hub.committer", "MAX_ROWS", (1, 3, 128)),
    ("holdfast.hub.committer", "MAX_ITEMS", (2, 1_024)),
    ("holdfast.hub.batches", "FRAME_BYTES", (100, 1_000, 256 * 1024)),
    ("holdfast.hub.ticks", "SLICE_FEEDS", (1, 100)),
    ("holdfast.hub.presence_state", "KEPT_SIGNALS", (2, 256)),
    ("holdfast.hub.presence_state", "KEPT_LEFT", (1, 1_000)),
    ("holdfast.hub.batches", "MAX_CACHED_BATCHES", (2, 64)),
    ("holdfast.core.state", "KEPT_COMMANDS", (1, 1_000)),
    ("holdfast.hub.channel", "FOLLOW_BYTES", (40, 256 * 1024)),
)
FAULTS = (
    "kill",
    "kill at a step",
    "restart",
    "pause",
    "cut",
    "store down",
    "free memory",
    "crowd",
    "truncate tails",
    "clock",
    "sync",
    "power",
)
EDITS = ("say", "say", "edit", "delete", "read", "stop", "take over", "delete channel")


@dataclass
class Plan:
    """All that a seed determines."""

    seed: int
    hubs: int
    is_weak: bool  # the store acknowledges writes before they survive a power cut
    channels: int
    bad_s: float
    token_s: float
    authors: list[type[Author]]
    viewers: list[type[Viewer]]
    readers: int
    edits: list[str]
    faults: list[str]
    fault_s: float  # time between two faults
    adopts: bool
    by_hand: bool
    flush_ms: int
    limits: Limits
    fault_model: FaultModel
    sizes: list[int] = field(default_factory=list)
    members: int = 0
    workers: int = 0
    agents: list[LocalPlan] = field(default_factory=list)
    agents_at: str = "ABCD"  # names of the hubs that have the agents
    hooks: list[HookPlan] = field(default_factory=list)
    registers_late: bool = False  # whether hubs start before their agents and hooks are registered
    loss: str | None = None  # how a hub leaves the others for longer than its lease, or its store, after the faults
    failovers: int = 0  # how often the store loses its last changes and goes on in another life
    is_server: bool = False  # whether a single hub has a store as several hubs have, and not an embedded one
    asks_by_socket: bool = False  # whether actors send over sockets the requests that the protocol allows there

    @property
    def is_exclusive(self) -> bool:
        return self.hubs == 1 and not self.is_server

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """Return the plan of `seed`: some actors and faults of each kind, but not all at once."""
        draw = Random(f"{seed}/plan")
        hubs = draw.choice((1, 1, 2, 3))
        is_weak = hubs == 1 and draw.random() < 0.2
        authors: list[type[Author]] = [HttpWriter, PipelinedWriter, BlindWriter, LocalWriter, Editor]
        viewers: list[type[Viewer]] = [SocketViewer, StreamViewer, PollViewer, LocalViewer]
        edits = [edit for edit in EDITS if draw.random() < 0.5]
        if draw.random() < 0.6 and "delete channel" in edits:
            edits.remove("delete channel")
        faults = [fault for fault in FAULTS if draw.random() < 0.5 and fault not in ("sync", "power")]
        if is_weak:
            faults += ["sync", "sync", "power"]
        plan = cls(
            seed=seed,
            hubs=hubs,
            is_weak=is_weak,
            channels=draw.choice((1, 1, 2, 3)),
            bad_s=draw.uniform(3.0, 18.0),
            token_s=draw.choice((0.02, 0.1, 0.4)),
            authors=[draw.choice(authors) for _ in range(draw.randrange(1, 5))],
            viewers=[draw.choice(viewers) for _ in range(draw.randrange(1, 6))],
            readers=draw.choice((0, 0, 1)),
            edits=edits or ["say"],
            faults=faults,
            fault_s=draw.choice((0.3, 1.0, 4.0)),
            adopts=draw.random() < 0.5,
            by_hand=draw.random() < 0.5,
            flush_ms=draw.choice((0, 40, 40, 250)),
            limits=_limits(draw),
            fault_model=FaultModel.drawn(draw),
            sizes=[draw.choice(values) if draw.random() < 0.5 else values[-1] for _, _, values in SIZES],
        )
        _draw_members(plan, Random(f"{seed}/society"))
        if plan.members and Random(f"{seed}/steady").random() < 0.3:
            plan.authors.append(SteadyWriter)
        requests = Random(f"{seed}/room").choice((2, 1_000, 1_000))
        plan.limits = replace(plan.limits, socket_requests=requests)
        if plan.hubs == 1:
            _draw_hooks(plan, Random(f"{seed}/hooks"))
        # a shared store is recovered later, and until then messages would not wait for agents
        plan.registers_late = Random(f"{seed}/hasty").random() < 0.3 and plan.is_exclusive
        plan.asks_by_socket = Random(f"{seed}/sockets").random() < 0.5
        if not plan.is_exclusive:
            _draw_loss(plan, Random(f"{seed}/loss"))
            plan.fault_model.draw_notices(Random(f"{seed}/notices"))
            _draw_failovers(plan, Random(f"{seed}/failovers"))
            plan.workers = Random(f"{seed}/remote agents").choice((0, 0, 1, 2))
            if plan.hubs > 1:
                _draw_hooks(plan, Random(f"{seed}/hooks of several hubs"))
        return plan


def _draw_loss(plan: Plan, draw: Random) -> None:
    plan.hubs += plan.hubs == 3 and draw.random() < 0.3
    plan.loss = draw.choice((None, None, "kill", "pause", "drain"))
    if draw.random() < 0.5:
        plan.faults.append("store restart")
    if plan.loss is None and Random(f"{plan.seed}/cut off").random() < 0.4:
        plan.loss = "cut off"


def _draw_failovers(plan: Plan, draw: Random) -> None:
    if draw.random() < 0.3:
        plan.failovers = draw.choice((1, 1, 2))
        if draw.random() < 0.3:
            plan.hubs, plan.is_server, plan.loss = 1, True, None
            _draw_hooks(plan, draw)


def _draw_members(plan: Plan, draw: Random) -> None:
    """Draw leases, members, commands and agents: some worlds have many, others none."""
    if draw.random() < 0.35:
        return
    del plan.authors[draw.choice((1, 2, 4)) :]
    plan.authors += [LeaseWriter] * draw.choice((0, 1, 1, 2)) + [Commander] * draw.choice((0, 1, 2))
    plan.members = draw.choice((0, 1, 2))
    if plan.is_exclusive:  # for several hubs they are drawn later
        plan.workers = draw.choice((0, 0, 1, 2))
    kinds = draw.choice((0, 0, 1)) if plan.workers else draw.choice((0, 1, 1, 2))
    plan.agents = [
        LocalPlan(
            when_busy=draw.choice(("queue", "queue", "interrupt", "parallel")),
            on_crash=draw.choice(("restart", "continue", "interrupt")),
            slots=draw.choice((1, 2, 1_000)),
            has_questions=draw.random() < 0.5,
        )
        for _ in range(kinds)
    ]
    if not plan.is_exclusive and draw.random() < 0.5:
        plan.agents_at = "A"


def _draw_hooks(plan: Plan, draw: Random) -> None:
    plan.hooks = [HookPlan.drawn(draw, number) for number in range(draw.choice((0, 1, 1, 2)))]


def _limits(draw: Random) -> Limits:
    return Limits(
        append_bytes=draw.choice((200, 256 * 1024)),
        writer_bytes=draw.choice((50, 1024 * 1024)),
        waiting_requests=draw.choice((6, 10_000, 10_000)),
        history_bytes=draw.choice((300, 2 * 1024 * 1024)),
        default_history=draw.choice((1, 3, 50)),
        catch_up_messages=draw.choice((2, 5, 200)),
        channel_idle_s=draw.choice((0.0, 2.0, 20.0)),
        channel_bytes=draw.choice((1, 5_000, 16 * 1024 * 1024)),
        memory_bytes=draw.choice((1, 256 * 1024 * 1024)),
    )
