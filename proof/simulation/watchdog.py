"""The watchdog ends a run if one step of the code under test never returns.

Layer: simulation.

Virtual time stands still during a step, so only real time shows that a step hangs. The watchdog counts the ticks of two
timers, and each step that returns resets the counts. A few ticks of processor time catch an endless loop on a machine
of any load; more ticks of real time catch a wait for a lock. Ticks, unlike seconds, do not pass while the machine
sleeps.

The timers are signals. So the watchdog watches the main thread only, and interrupts only Python code. For a hang in C,
and for code that catches every `BaseException`, `python -m proof.simulation` has a time limit of its own.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

BUSY_TICKS, BUSY_TICK_S = 5, 1.0  # limits of processor time; the longest step of a run takes some milliseconds
IDLE_TICKS, IDLE_TICK_S = 12, 5.0  # limits of real time
SHOWN_FRAMES = 12


class Hung(BaseException):
    """Raised in a step that does not end. Not an `Exception`, so error handlers do not catch it."""


@contextmanager
def watching(steps: Callable[[], int], hangs: Callable[[str], None]) -> Iterator[None]:
    """Watch the block. `steps()` counts ended steps; if it stands still, call `hangs` with the place and raise Hung."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    seen = steps()
    is_reporting = False
    patience = {signal.SIGPROF: BUSY_TICKS, signal.SIGALRM: IDLE_TICKS}
    left = dict(patience)

    def tick(number: int, frame: FrameType | None) -> None:
        nonlocal seen, is_reporting
        if is_reporting:  # a tick during the report of another tick, or at the end
            return
        if steps() != seen:
            seen = steps()
            left.update(patience)
        left[signal.Signals(number)] -= 1
        if left[signal.Signals(number)] <= 0:
            is_reporting = True
            hangs("".join(traceback.format_stack(frame)[-SHOWN_FRAMES:]))
            left.update(patience)  # the other timer may have run out as well
            is_reporting = False  # a step that catches Hung is reported again
            raise Hung

    before = {number: signal.signal(number, tick) for number in left}
    timers = {signal.ITIMER_PROF: BUSY_TICK_S, signal.ITIMER_REAL: IDLE_TICK_S}
    timers_before = {timer: signal.setitimer(timer, every_s, every_s) for timer, every_s in timers.items()}
    try:
        yield
    finally:
        is_reporting = True
        for timer, former in timers_before.items():
            signal.setitimer(timer, *former)
        for number, handler in before.items():
            signal.signal(number, handler)
