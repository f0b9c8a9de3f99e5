"""Following: bring the channels in memory up to their heads in the store.

Layer: hub.

On a store that several hubs share, a hub reads the heads of all its channels once in a second, in one query, and then
the entries of those that have moved. On an exclusive store it reads the channels that a failed read or a commit with an
unknown outcome has left stale.
"""

from __future__ import annotations

import asyncio
import logging

from holdfast.core.errors import HoldfastError, StoreUnavailable
from holdfast.hub.channel import Channel
from holdfast.hub.loading import in_time
from holdfast.hub.runtime import Runtime

logger = logging.getLogger("holdfast.hub")

FOLLOW_S = 1.0  # time between two reads of the heads


async def follow(runtime: Runtime) -> None:
    """Follow the store every second, until this task is cancelled."""
    while True:
        await asyncio.sleep(FOLLOW_S)
        try:
            for channel in await _behind(runtime):
                await _refresh(runtime, channel)
        except HoldfastError as error:
            logger.warning("channels were not read; the hub tries again: %s", error)
        except Exception:  # an error of a third-party store must not end the hub
            logger.exception("channels were not read; the hub tries again")


async def _behind(runtime: Runtime) -> list[Channel]:
    """Return the channels in memory that are behind the store."""
    channels = list(runtime.channels.values())
    if runtime.store.is_exclusive:
        return [channel for channel in channels if channel.is_stale]
    channels = [channel for channel in channels if channel.is_loaded]
    heads = await in_time(runtime.store.heads([channel.name for channel in channels]), runtime.store.name)
    return [one for one, head in zip(channels, heads, strict=True) if one.is_stale or not one.is_at(head)]


async def _refresh(runtime: Runtime, channel: Channel) -> None:
    """Read the entries of `channel`. Raises StoreUnavailable: the other channels would wait for the store, too."""
    try:
        await in_time(channel.refresh(), runtime.store.name)
    except StoreUnavailable:
        raise
    except Exception:
        logger.exception("channel %r could not be read; the hub tries again", channel.name)
