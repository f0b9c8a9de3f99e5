"""Which hub of this process has a store file open, and when another hub may take it over.

Layer: hub.

A notebook's user may run a cell that makes a hub twice: the first hub is then out of reach, but still has the file
open. The second hub closes it if that is safe:

- its event loop is closed, so it can do no more work; or
- it was made in an interactive namespace that has no name for it any more, it has no viewer, no writer and no task, and
  it runs on the same event loop or on the one of its own `sync` calls.

In all other cases the store refuses the new hub, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tenuto.stores.base import Store

logger = logging.getLogger("tenuto.hub")

_owners: dict[str, StoreOwner] = {}  # owners by the path of the file, until their store is closed


class StoreOwner:
    """A hub as the owner of its store."""

    def __init__(
        self,
        store: Store,
        close: Callable[[], Awaitable[None]],
        release_loop: Callable[[asyncio.AbstractEventLoop], Awaitable[bool]],
        is_out_of_reach: Callable[[], bool],
    ) -> None:
        """Own `store`. `close` closes the hub, and `release_loop` does so if its loop is the one of its `sync` calls.

        `is_out_of_reach` returns whether it is safe to close the hub.
        """
        self._store = store
        self._close = close
        self._release_loop = release_loop
        self._is_out_of_reach = is_out_of_reach
        self._loop: asyncio.AbstractEventLoop | None = None  # the event loop on which the store was opened last

    async def open_store(self) -> None:
        """Open the store, after closing a finished hub on the same file. Raises as `Store.open`."""
        path = _path_of(self._store)
        before = _owners.get(path) if path is not None else None
        if before is not None and before._store is not self._store:
            await before._close_if_finished()
        await self._store.open()
        self._loop = asyncio.get_running_loop()
        if path is not None:
            _owners[path] = self

    async def close_store(self) -> None:
        """Close the store."""
        await self._store.close()
        path = _path_of(self._store)
        if path is not None and (known := _owners.get(path)) is not None and known._store is self._store:
            del _owners[path]

    async def _close_if_finished(self) -> None:
        if self._loop is not None and self._loop.is_closed():
            logger.info("a hub whose event loop is closed had the store open; it is closed for another hub")
            await self.close_store()
        elif self._loop is not None and self._is_out_of_reach():
            if self._loop is asyncio.get_running_loop():
                await self._close()
            elif not await self._release_loop(self._loop):
                return
            logger.info("a hub of an earlier cell had the store open; it was closed for another hub")


def names_of_cell() -> dict[str, Any] | None:
    """Return the namespace of the notebook cell, or of the interactive interpreter, that is making a hub; else None."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        if frame.f_back is None:
            return None
        frame = frame.f_back
    names = frame.f_globals
    is_interactive = names.get("__name__") == "__main__" and ("get_ipython" in names or hasattr(sys, "ps1"))
    return names if is_interactive and frame.f_code.co_name == "<module>" else None


def is_named(names: dict[str, Any], *objects: object) -> bool:
    """Return whether a variable of a cell refers to one of `objects`, other than a value that IPython shows."""
    found = (name for name, value in list(names.items()) if any(value is one for one in objects))
    return any(name.strip("_0123456789") for name in found)


def _path_of(store: Store) -> str | None:
    path = getattr(store, "path", None)
    return os.path.realpath(path) if isinstance(path, Path) and store.is_exclusive else None
