"""Which hub of this process has a store file open, and when another hub may take it over.

Layer: hub.

A cell of a notebook that makes a hub runs again: the old hub is out of reach, and yet has the file open. It is closed
for the new one if that is safe:

- its event loop is closed, so it can do no more work; or
- it was made in an interactive namespace that has no name for it any more, it runs on the same event loop, and it has
  no viewer, no writer and no task.

In all other cases the store refuses the new hub, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from holdfast.hub.hub import HubCore
    from holdfast.stores.base import Store

logger = logging.getLogger("holdfast.hub")


class _Open(NamedTuple):
    hub: HubCore
    store: Store
    loop: asyncio.AbstractEventLoop


_open: dict[str, _Open] = {}  # by the path of the file; until the store is closed


def interactive_namespace() -> dict[str, Any] | None:
    """Return the namespace of the notebook's cell, or the interpreter's input, that is making a hub; else None."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        if frame.f_back is None:
            return None
        frame = frame.f_back
    names = frame.f_globals
    is_interactive = names.get("__name__") == "__main__" and ("get_ipython" in names or hasattr(sys, "ps1"))
    return names if is_interactive and frame.f_code.co_name == "<module>" else None


async def open_store(hub: HubCore) -> None:
    """Open the store of `hub`, after closing a finished hub on the same file. Raises as `Store.open`."""
    place = _place_of(hub.store)
    before = _open.get(place) if place is not None else None
    if before is not None and before.store is not hub.store:
        await _close_if_finished(before)
    await hub.store.open()
    if place is not None:
        _open[place] = _Open(hub, hub.store, asyncio.get_running_loop())


async def close_store(hub: HubCore) -> None:
    """Close the store of `hub`."""
    await hub.store.close()
    place = _place_of(hub.store)
    if place is not None and (known := _open.get(place)) is not None and known.store is hub.store:
        del _open[place]


async def _close_if_finished(before: _Open) -> None:
    if before.loop.is_closed():
        logger.info("a hub whose event loop is closed had the store open; it is closed for another hub")
        await close_store(before.hub)
    elif before.loop is asyncio.get_running_loop() and before.hub.is_out_of_reach():
        logger.info("a hub of an earlier cell had the store open; it is closed for another hub")
        await before.hub.close()


def _place_of(store: Store) -> str | None:
    path = getattr(store, "path", None)
    return os.path.realpath(path) if isinstance(path, Path) and store.is_exclusive else None
