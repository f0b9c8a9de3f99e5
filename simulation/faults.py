"""The fault_model: how likely everything is that can go wrong, for one run.

Layer: simulation.

Each seed has a climate of its own, in which most things are fine and a few are bad: faults of
one kind in quick succession find what a little of everything never does. `calm` ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass
class FaultModel:
    """Rates are per second, chances from 0 to 1, the rest is seconds."""

    latency_s: tuple[float, float] = (0.001, 0.02)
    cut_rate: float = 0.0  # of a connection: it breaks
    hole_chance: float = 0.0  # of a cut: nobody is told, and everything is swallowed
    stall_chance: float = 0.0  # of a viewer at each batch: it reads nothing for a while
    split_chance: float = 0.0  # of a piece of a stream: it arrives in pieces
    room_bytes: int = 100_000  # in flight on a connection before the sender has to wait
    store_s: tuple[float, float] = (0.0005, 0.005)
    slow_chance: float = 0.0  # of a store's answer: it takes very long
    down_chance: float = 0.0  # of a call of the store: it is refused, nothing was done
    unknown_chance: float = 0.0  # of a commit: nobody is told whether it was stored

    def calm(self) -> None:
        """From now on nothing fails, and little is slow."""
        self.latency_s = self.store_s = (0.0005, 0.005)
        self.cut_rate = self.hole_chance = self.stall_chance = 0.0
        self.slow_chance = self.down_chance = self.unknown_chance = 0.0
        self.room_bytes = 100_000

    @classmethod
    def drawn(cls, draw: Random) -> FaultModel:
        """A climate."""

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
