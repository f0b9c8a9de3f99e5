"""Starts `holdfast` with a wall clock that is wrong by as much as a file says, at every moment anew.

    python -P wrong_clock.py OFFSET_FILE serve …

Layer: chaos.

Run by its path, so that the clock is in place before anything of the product is imported.
The file holds eight bytes, the offset in nanoseconds, and is mapped: whoever writes it sets the clock. Only the wall
clock is wrong; the monotonic one goes on, as it does when a machine's clock is set.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

__all__ = ["install", "set_offset"]

_LAYOUT = struct.Struct("<q")


def set_offset(path: Path, seconds: float) -> None:
    """Set the clock of whoever was started with `path` to so many seconds ahead."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(_LAYOUT.pack(int(seconds * 1e9)))  # one write of eight bytes: never seen half done


def install(path: Path) -> None:
    """Make this process's wall clock wrong by what stands in `path`."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), _LAYOUT.size, access=mmap.ACCESS_READ)
    right_ns = time.time_ns

    def time_ns() -> int:
        offset_ns: int = _LAYOUT.unpack_from(mapped)[0]
        return right_ns() + offset_ns

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    from holdfast.cli import main

    main(prog_name="holdfast")
