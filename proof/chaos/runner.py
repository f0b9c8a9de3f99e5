"""Running a scenario by its name, for the command line and for the tests.

Layer: chaos.

"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proof.chaos.scenarios import SCENARIOS
from proof.chaos.world import Scale, World

__all__ = ["NAMES", "ROUNDS", "run"]

ROUNDS = {
    "kill": 100, "producer": 30, "agent": 30, "disk": 10, "lock": 4, "stop": 3, "network": 6, "clock": 3, "agents": 12,
    "backup": 40, "cluster": 100,
}  # fmt: skip
"""The usual number of rounds of each scenario."""

NAMES = tuple(SCENARIOS)
LIMIT_S = 120.0  # longest run; each round has a limit of its own
ROUND_LIMIT_S = 120.0  # each wait has its own, shorter limit


async def run(name: str, seed: int, scale: Scale, *, write_line: Callable[[str], None] | None = None) -> dict[str, int]:
    """Play the scenario; return its figures. Raises Failure, whose `account` describes the run; `write_line` receives
    events."""
    async with World(name, seed, scale, write_line=write_line) as world:
        limit_s = LIMIT_S + scale.rounds * ROUND_LIMIT_S
        async with asyncio.timeout(limit_s):
            await SCENARIOS[name](world)
    return world.figures
