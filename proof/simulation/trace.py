"""The trace: the last events as text, and a digest of all events.

Layer: simulation.

Two runs of one seed have the same digest. Text that can differ between two processes (addresses, the wording of a
warning) does not enter the digest: it goes to `note`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable

from proof.oracle import Violation
from proof.simulation.clock import VirtualLoop

KEPT = 2_000  # events that are kept for the report


class Trace:
    """The events of one run."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.count = 0
        self.violation: Violation | None = None  # the first one
        self.violated: asyncio.Future[None] = loop.create_future()  # done when the run has failed
        self._loop = loop
        self._last: deque[tuple[float, str]] = deque(maxlen=KEPT)
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, text: str) -> None:
        """Add an event."""
        now_s = self._loop.time()
        self.count += 1
        self._last.append((now_s, text))
        self._digest.update(f"{now_s:.6f} {text}\n".encode(errors="surrogatepass"))

    def note(self, text: str) -> None:
        """Add text that is worth reading and can differ in the next run."""
        self._last.append((self._loop.time(), text))

    def violate(self, violation: Violation) -> None:
        """Fail the run."""
        if self.violation is None:
            self.violation = violation
            self.add(f"VIOLATION: {violation}")
            self.violated.set_result(None)

    def guarded(self, call: Callable[[], None]) -> None:
        """Call `call`; a violation that it raises fails the run."""
        try:
            call()
        except Violation as violation:
            self.violate(violation)

    @property
    def digest(self) -> str:
        """Return a fingerprint of all added events."""
        return self._digest.hexdigest()

    def lines(self, last: int = KEPT) -> list[str]:
        """Return the last events, oldest first."""
        return [f"{now_s:10.4f}  {text}" for now_s, text in list(self._last)[-last:]]
