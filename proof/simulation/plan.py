"""The plan of a run, drawn from a seed: hubs, actors, faults and limits.

Layer: simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from proof.simulation.agents import LocalPlan
from proof.simulation.faults import FaultModel
from proof.simulation.hooks import HookPlan
from proof.simulation.members import Commander
from proof.simulation.viewers import LocalViewer, PollViewer, SocketViewer, StreamViewer, Viewer
from proof.simulation.writers import (
    Author,
    BlindWriter,
    Editor,
    HttpWriter,
    LeaseWriter,
    LocalWriter,
    PipelinedWriter,
    SteadyWriter,
)
from tenuto.core.limits import Limits

# Bounds of the product that change no behaviour but its frequency: small ones make rare cases frequent.
# Module, name and values.
SIZES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("tenuto.core.document", "LONG_FIELD", (16, 4_096)),
    ("tenuto.stores.memory", "MAX_ENTRY_BYTES", (100, 64 * 1024 * 1024)),
    ("tenuto.core.text", "MAX_MARKS", (8, 65_536)),
    ("tenuto.core.text", "JOIN_PIECES", (2, 64)),
    ("tenuto.core.document", "MARK_BYTES", (1, 16, 256)),
    ("tenuto.hub.committer", "DOCUMENT_BYTES", (30, 300, 64 * 1024)),
    ("tenuto.hub.committer", "MAX_ROWS", (1, 3, 128)),
    ("tenuto.hub.committer", "MAX_ITEMS", (2, 1_024)),
    ("tenuto.hub.channel", "FRAME_BYTES", (100, 1_000, 256 * 1024)),
    ("tenuto.hub.channel", "SLICE_FEEDS", (1, 100)),
    ("tenuto.hub.people.presence_state", "KEPT_SIGNALS", (2, 256)),
    ("tenuto.hub.people.presence_state", "KEPT_LEFT", (1, 1_000)),
    ("tenuto.hub.channel", "MAX_CACHED_BATCHES", (2, 64)),
    ("tenuto.core.state", "KEPT_COMMANDS", (1, 1_000)),
    ("tenuto.hub.channel", "FOLLOW_BYTES", (40, 256 * 1024)),
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
    "forget first values",
    "clock",
    "sync",
    "power",
)
HUB_COUNTS = (1, 1, 2, 2, 3, 4)
# With all actors in each seed, faults that need few of them would hide: a sparse world repeats one deed more often.
FULL_CHANCE = 0.4
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
    is_full: bool = False  # whether it has every kind of actor that changes a shared store, and a skewed clock

    @property
    def is_exclusive(self) -> bool:
        return self.hubs == 1 and not self.is_server

    @classmethod
    def drawn(cls, seed: int, hub_counts: Sequence[int] = HUB_COUNTS, *, full_chance: float = FULL_CHANCE) -> Plan:
        """Return the plan of `seed`: some actors and faults of each kind, and on a shared store sometimes all actors.

        `hub_counts` are the numbers of hubs to draw from, `full_chance` is the chance of all actors at once.
        """
        draw = Random(f"{seed}/plan")
        hubs = draw.choice(hub_counts)
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
        plan.fault_model.silent_chance = Random(f"{seed}/silence").choice((0.0, 0.0, 0.03, 0.2))
        if not plan.is_exclusive:
            _draw_loss(plan, Random(f"{seed}/loss"))
            plan.fault_model.draw_notices(Random(f"{seed}/notices"))
            _draw_failovers(plan, Random(f"{seed}/failovers"))
            plan.workers = Random(f"{seed}/remote agents").choice((0, 0, 1, 2))
            if plan.hubs > 1:
                _draw_hooks(plan, Random(f"{seed}/hooks of several hubs"))
            full = Random(f"{seed}/full")
            if full.random() < full_chance:
                _fill(plan, full)
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
    plan.agents = [_local_agent(draw) for _ in range(kinds)]
    if not plan.is_exclusive and draw.random() < 0.5:
        plan.agents_at = "A"


def _local_agent(draw: Random) -> LocalPlan:
    return LocalPlan(
        when_busy=draw.choice(("queue", "queue", "interrupt", "parallel")),
        on_crash=draw.choice(("restart", "continue", "interrupt")),
        slots=draw.choice((1, 2, 1_000)),
        has_questions=draw.random() < 0.5,
    )


def _draw_hooks(plan: Plan, draw: Random) -> None:
    plan.hooks = [HookPlan.drawn(draw, number) for number in range(draw.choice((0, 1, 1, 2)))]


def _fill(plan: Plan, draw: Random) -> None:
    """Let the plan have an actor of each kind, all edits and a skewed clock, and fewer others for that."""
    plan.is_full = True
    others = [author for author in plan.authors if author not in (LeaseWriter, Commander, Editor, SteadyWriter)]
    plan.authors = [LeaseWriter, Commander, Editor, *others[:1]]
    del plan.viewers[3:]
    plan.members, plan.workers = max(1, plan.members), 1
    plan.agents = plan.agents[:1] or [_local_agent(draw)]
    plan.hooks = plan.hooks[:1] or [HookPlan.drawn(draw, 0)]
    plan.edits = [*EDITS]
    plan.faults = [*dict.fromkeys((*plan.faults, "clock"))]


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
