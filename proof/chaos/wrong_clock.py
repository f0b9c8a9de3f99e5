"""Start `tenuto` with a wrong wall clock. A file holds the offset, which can change at any moment.

    python -P wrong_clock.py OFFSET_FILE serve …

Layer: chaos.

The program is started by its path, so the clock is replaced before the first import of the product. The file holds
eight bytes, the offset in nanoseconds, and is mapped into memory: a write to it sets the clock. The monotonic clock
stays right, as it does when the clock of a machine is set.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

_LAYOUT = struct.Struct("<q")


def set_offset(path: Path, seconds: float) -> None:
    """Set the clock of the program that was started with `path` ahead by `seconds`."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(_LAYOUT.pack(int(seconds * 1e9)))  # one write of eight bytes is never read in part


def install(path: Path) -> None:
    """Offset the wall clock of this process by the value in `path`."""
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
    from tenuto.cli.main import main

    main(prog_name="tenuto")
