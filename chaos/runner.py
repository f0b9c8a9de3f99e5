"""Running a scenario by its name: the one entry that the command line and the tests share.

Layer: chaos.

"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chaos.scenarios import SCENARIOS
from chaos.world import Scale, World

__all__ = ["NAMES", "ROUNDS", "run"]

ROUNDS = {
    "kill": 100, "producer": 30, "agent": 30, "disk": 10, "lock": 4, "stop": 3, "network": 6, "clock": 3, "agents": 12,
}  # fmt: skip
"""How often each strikes when nobody says otherwise."""

NAMES = tuple(SCENARIOS)
LIMIT_S = 120.0  # of a run, beyond …
ROUND_LIMIT_S = 120.0  # … this for each round; every wait has its own, shorter limit


async def run(name: str, seed: int, scale: Scale, *, tell: Callable[[str], None] | None = None) -> dict[str, int]:
    """Play the scenario; returns figures. Raises Failure, whose `account` tells the story; `tell` hears it at once."""
    async with World(name, seed, scale, tell=tell) as world:
        limit_s = LIMIT_S + scale.rounds * ROUND_LIMIT_S
        async with asyncio.timeout(limit_s):
            await SCENARIOS[name](world)
    return world.figures
