"""What happened: the last events, readable, and a digest of all of them.

Layer: simulation.

Two runs of one seed have one digest; what may differ between two processes (addresses, the
wording of a warning) must not enter it, and goes to `note` instead.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable

from simulation.clock import VirtualLoop

KEPT = 2_000  # events that are kept to be shown


class Violation(AssertionError):
    """Something that must always hold does not."""


class Trace:
    """The story of one run."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.count = 0
        self.violation: Violation | None = None  # the first one
        self.violated: asyncio.Future[None] = loop.create_future()  # done when there is one
        self._loop = loop
        self._last: deque[tuple[float, str]] = deque(maxlen=KEPT)
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, text: str) -> None:
        """Something happened."""
        now_s = self._loop.time()
        self.count += 1
        self._last.append((now_s, text))
        self._digest.update(f"{now_s:.6f} {text}\n".encode(errors="surrogatepass"))

    def note(self, text: str) -> None:
        """Something worth reading that need not be the same the next time."""
        self._last.append((self._loop.time(), text))

    def violate(self, violation: Violation) -> None:
        """The run has failed."""
        if self.violation is None:
            self.violation = violation
            self.add(f"VIOLATION: {violation}")
            self.violated.set_result(None)

    def guarded(self, call: Callable[[], None]) -> None:
        """Call `call`, where nobody else would hear of a violation that it raises."""
        try:
            call()
        except Violation as violation:
            self.violate(violation)

    @property
    def digest(self) -> str:
        """A fingerprint of all that was added."""
        return self._digest.hexdigest()

    def lines(self, last: int = KEPT) -> list[str]:
        """The last events, oldest first."""
        return [f"{now_s:10.4f}  {text}" for now_s, text in list(self._last)[-last:]]
