"""Faults of a network, for one proxy: one after the other, drawn from a seed, each with an end.

Layer: chaos.

`tests.proxy` defines each fault. You can change the mixture freely.
"""

from __future__ import annotations

import asyncio
import random

from proof.chaos.proxies import Proxy
from tests.proxy import Direction

__all__ = ["FAULTS", "FaultModel"]

FAULTS = ("cut", "close", "cut_after", "stall", "throttle", "black_hole", "refuse")
LONGEST_S = 1.0  # longest fault; a black hole lasts up to three times as long


class FaultModel:
    """Faults for one proxy until `end`, with pauses of up to `calm_s` between them."""

    def __init__(self, proxy: Proxy, seed: str, *, calm_s: float) -> None:
        self._proxy = proxy
        self._random = random.Random(seed)
        self._calm_s = calm_s
        self.counts = dict.fromkeys(FAULTS, 0)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """End all faults. Swallowed bytes stay lost; delayed bytes continue."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._proxy.cut_after()
        await self._proxy.throttle(None)
        await self._proxy.resume()
        await self._proxy.accept()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.0, self._calm_s))
            await self._strike(self._random.choice(FAULTS))

    async def _strike(self, fault: str) -> None:
        """Begin and end one fault."""
        proxy, chosen = self._proxy, self._random
        self.counts[fault] += 1
        way: Direction = chosen.choice(("up", "down", "both"))
        lasts_s = chosen.uniform(0.05, LONGEST_S)
        if fault == "cut":
            await proxy.cut()
        elif fault == "close":
            await proxy.close()
        elif fault == "cut_after":
            await proxy.cut_after(*(chosen.randrange(1, 2_000) for _ in range(3)), direction=way)
            await asyncio.sleep(lasts_s)
            await proxy.cut_after(direction=way)
        elif fault == "stall":
            await proxy.stall(way)
            await asyncio.sleep(lasts_s)
            await proxy.resume(way)
        elif fault == "throttle":
            await proxy.throttle(chosen.randrange(2_000, 40_000), way)
            await asyncio.sleep(lasts_s)
            await proxy.throttle(None, way)
        elif fault == "black_hole":
            await proxy.black_hole()
            await asyncio.sleep(3 * lasts_s)
            await proxy.resume()
        else:
            await proxy.refuse()
            await proxy.cut()
            await asyncio.sleep(lasts_s)
            await proxy.accept()
