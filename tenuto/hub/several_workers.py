"""Notices that a server runs several workers, and this process is one of them.

Layer: hub.

A store for one process does not fit there: each worker has a memory of its own, and an SQLite file has one hub. A
memory store cannot tell, and a file only refuses the second worker. So the server's own settings are read, from the
stack of this process: uvicorn, gunicorn and `tenuto serve` keep them there. No part of a server is imported. Another
server is not known, and neither are processes that a supervisor starts, such as several containers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

logger = logging.getLogger("tenuto.hub")

# The number of workers in the local variables of a function of these modules, which runs below all others.
_COUNTS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "uvicorn._subprocess": lambda here: 1 if here["config"].should_reload else here["config"].workers,
    "gunicorn.workers.base": lambda here: here["self"].cfg.workers,
    "tenuto.cli.main": lambda here: here["workers"],
}


def warn_of_several_workers(store: str) -> None:
    """Log a warning if the server runs several workers, each with a hub on a `store` for one process."""
    workers = count_workers()
    if workers > 1:
        logger.warning(
            "this server runs %d workers, and a %s store serves one process: a viewer does not see the messages of "
            "another worker; run one worker (--workers 1), or use a postgresql:// store",
            *(workers, store),
        )


def count_workers() -> int:
    """Return how many workers the server runs that started this process; 1 if that is not known."""
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            count = _COUNTS.get(str(frame.f_globals.get("__name__")))
            if count is not None:
                try:
                    workers = count(frame.f_locals)
                except (KeyError, AttributeError):  # another function of the module, or another version of the server
                    workers = None
                if isinstance(workers, int):
                    return workers
            frame = frame.f_back
    return 1
