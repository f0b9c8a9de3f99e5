"""The fault model: how likely each fault is, for one run.

Layer: simulation.

Each seed draws its own model, in which most rates are zero and a few are high: many faults of one kind find bugs that a
few faults of each kind do not. `calm` ends all faults.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass
class FaultModel:
    """Rates are per second, chances from 0 to 1, all other values seconds."""

    latency_s: tuple[float, float] = (0.001, 0.02)
    cut_rate: float = 0.0  # how often a connection breaks
    hole_chance: float = 0.0  # chance that neither side notices a cut, and all later bytes are lost
    stall_chance: float = 0.0  # chance that a viewer reads no bytes for a while after a batch
    split_chance: float = 0.0  # chance that a chunk of a stream arrives in two pieces
    room_bytes: int = 100_000  # limit of bytes in flight on a connection, above which the sender has to wait
    store_s: tuple[float, float] = (0.0005, 0.005)
    slow_chance: float = 0.0  # chance that a response of the store takes very long
    down_chance: float = 0.0  # chance that the store refuses a call and does not carry it out
    unknown_chance: float = 0.0  # chance that the outcome of a commit stays unknown
    silent_chance: float = 0.0  # chance that the outcome of a deletion of a channel, a note or a hold stays unknown
    notice_s: tuple[float, float] = (0.0002, 0.005)
    notice_loss: float = 0.0  # chance that a notice does not reach another hub
    notice_repeat: float = 0.0  # chance that it arrives twice

    def draw_notices(self, draw: Random) -> None:
        """Draw the faults of notices. Without any notice, hubs must find each other's entries all the same."""
        self.notice_s = (0.0002, draw.choice((0.002, 0.05, 0.5, 3.0)))
        self.notice_loss = draw.choice((0.0, 0.0, 0.1, 0.5, 1.0))
        self.notice_repeat = draw.choice((0.0, 0.0, 0.3))

    def calm(self) -> None:
        """End all faults and long latencies. Notices may still be lost: they are hints."""
        self.latency_s = self.store_s = (0.0005, 0.005)
        self.cut_rate = self.hole_chance = self.stall_chance = 0.0
        self.slow_chance = self.down_chance = self.unknown_chance = self.silent_chance = 0.0
        self.room_bytes = 100_000

    @classmethod
    def drawn(cls, draw: Random) -> FaultModel:
        """Return a random model."""

        def maybe(chance: float, low: float, high: float) -> float:
            return draw.uniform(low, high) if draw.random() < chance else 0.0

        return cls(
            latency_s=(0.0002, draw.choice((0.001, 0.01, 0.05, 0.3))),
            cut_rate=maybe(0.7, 0.05, 1.0),
            hole_chance=maybe(0.3, 0.1, 0.5),
            stall_chance=maybe(0.4, 0.02, 0.3),
            split_chance=maybe(0.5, 0.1, 0.6),
            room_bytes=draw.choice((200, 1_000, 100_000)),
            store_s=(0.0001, draw.choice((0.0005, 0.005, 0.05, 0.2))),
            slow_chance=maybe(0.15, 0.005, 0.05),
            down_chance=maybe(0.4, 0.01, 0.2),
            unknown_chance=maybe(0.5, 0.01, 0.3),
        )
