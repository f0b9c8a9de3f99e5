"""Housekeeping: bound the memory of a running hub, and compact its store.

Layer: hub.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tenuto.core.errors import TenutoError
from tenuto.hub.pending import DocumentDue
from tenuto.hub.runtime import Runtime

logger = logging.getLogger("tenuto.hub")

TIDY_S = 5.0  # time between two rounds of housekeeping


async def keep_house(runtime: Runtime, forget: Callable[[], None]) -> None:
    """Run the housekeeping every few seconds, until this task is cancelled. `forget` frees counters of clients."""
    while True:
        await asyncio.sleep(TIDY_S)
        free_memory(runtime)
        forget()
        runtime.scheduler.workers.tidy()
        try:
            await _tidy_store(runtime)
        except TenutoError as error:
            logger.warning("housekeeping will try again: %s", error)
        except Exception:
            # an error of housekeeping, for example in a third-party store, must not affect running messages
            logger.exception("housekeeping failed, and will try again")


def free_memory(runtime: Runtime) -> None:
    """Drop idle channels from memory, and trim live channels to their limit."""
    channels, limits = runtime.channels, runtime.limits
    now_s = runtime.loop.time()
    total = 0
    for name, channel in sorted(channels.items(), key=lambda item: -item[1].used_s):
        is_idle = channel.is_idle and not runtime.committer.is_parked(channel)
        if is_idle and (now_s - channel.used_s > limits.channel_idle_s or total > limits.memory_bytes):
            runtime.forget(name)
            continue
        channel.batches.forget()
        cost = channel.state.cost_bytes()
        if cost > limits.channel_bytes:
            channel.trim(limits.channel_bytes)
        total += min(cost, limits.channel_bytes)


async def _tidy_store(runtime: Runtime) -> None:
    """Let the store compact itself, and write the documents that let it release old entries."""
    for channel, message_id in await runtime.store.tidy(runtime.clock.now_ms()):
        runtime.committer.submit(DocumentDue(channel, message_id))
    runtime.capacity.watch()
