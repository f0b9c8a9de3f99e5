"""A watchdog: a step of the code under test that never returns ends the run instead of hanging it.

Layer: simulation.

Virtual time stands still while a step runs, so only real time can tell that one will not come
to its end. Ticks of two timers are counted, and a step that returns begins the count anew: a few seconds of this
process's own processor time catch a loop, however busy the machine is; many more seconds of the wall's catch somebody
who waits for a lock. Counting ticks and not seconds, a machine that was asleep in between is no hang.

The timers are signals, so only the main thread is watched, and only Python code is interrupted: for what hangs in C,
and for what catches every `BaseException` and goes on, `python -m simulation` has a last resort.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

BUSY_TICKS, BUSY_TICK_S = 5, 1.0  # of processor time; the longest step of whole runs takes some milliseconds
IDLE_TICKS, IDLE_TICK_S = 12, 5.0  # of real time
SHOWN_FRAMES = 12


class Hung(BaseException):
    """Raised in a step that does not end. No `Exception`: it must get through whatever handles errors."""


@contextmanager
def watching(steps: Callable[[], int], hangs: Callable[[str], None]) -> Iterator[None]:
    """Inside, `steps()` counts what comes to its end. If it stands still `hangs` is told where, and Hung is raised."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    seen = steps()
    is_deaf = False
    patience = {signal.SIGPROF: BUSY_TICKS, signal.SIGALRM: IDLE_TICKS}
    left = dict(patience)

    def tick(number: int, frame: FrameType | None) -> None:
        nonlocal seen, is_deaf
        if is_deaf:  # a tick while we tell of another one, or make an end
            return
        if steps() != seen:
            seen = steps()
            left.update(patience)
        left[signal.Signals(number)] -= 1
        if left[signal.Signals(number)] <= 0:
            is_deaf = True
            hangs("".join(traceback.format_stack(frame)[-SHOWN_FRAMES:]))
            left.update(patience)  # the other timer may have run out as well
            is_deaf = False  # whoever swallows what comes now is told again
            raise Hung

    before = {number: signal.signal(number, tick) for number in left}
    timers = {signal.ITIMER_PROF: BUSY_TICK_S, signal.ITIMER_REAL: IDLE_TICK_S}
    timers_before = {timer: signal.setitimer(timer, every_s, every_s) for timer, every_s in timers.items()}
    try:
        yield
    finally:
        is_deaf = True
        for timer, former in timers_before.items():
            signal.setitimer(timer, *former)
        for number, handler in before.items():
            signal.signal(number, handler)
