"""Virtual time: an event loop that jumps to the next deadline, and processes that can die between two steps.

Layer: simulation.

Time stands still while a step can run, and then jumps, so a minute costs only the time of its events. A `Process` owns
all tasks and timers that begin in its context, as an operating system does: while it is held (killed or stopped) none
of them runs, not even a `finally`. Timers of one deadline run in the order in which they were made. The loop draws no
random numbers, so a run cannot depend on the order of a set.

A `Trace` keeps the last events as text, and a digest of all: two runs of one seed have the same. Text that can differ
between two processes (addresses, the wording of a warning) does not enter the digest: it goes to `note`.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from proof.oracle import Violation
from tenuto.hub.clock import Clock

T = TypeVar("T")

START_MS = 1_750_000_000_000  # a day in 2025
MAX_STEPS_AT_ONCE = 50_000  # a loop that makes so many steps at one moment never waits
SHOWN_STEPS = 5  # number of steps of such a loop that a report shows
MAX_STEPS_A_SECOND = 200_000  # a loop that makes so many steps in one second waits too shortly (2,400 are common)


class Stuck(Exception):
    """Raised if no step can ever run, or if steps run without end at one moment. `where` names the steps."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.where = where


class Process:
    """All that one process of an operating system runs. Begin work in it with `run` or `start`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self.is_held = False
        self.pauses = 0  # number of times that it was held
        self.thawed_s = float("-inf")  # when the last of them ended
        self.held: list[_Step] = []  # steps that were due while it was held
        self.after_step: Callable[[], None] | None = None  # called after each step
        self._fuse = 0
        self._burnt: Callable[[], None] | None = None

    def run(self, call: Callable[[], T]) -> T:
        """Call `call` in the process now."""
        return self.context.copy().run(call)

    def start(self, loop: VirtualLoop, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `job` as a task of the process."""
        return loop.create_task(job, context=self.context.copy())

    def after_steps(self, steps: int, call: Callable[[], None]) -> None:
        """Call `call` after the next `steps` steps of the process."""
        self._fuse, self._burnt = steps, call

    def stepped(self) -> None:
        """Count a step of the process. The loop calls this."""
        if self._fuse:
            self._fuse -= 1
            if not self._fuse and self._burnt is not None:
                self._burnt()
        if self.after_step is not None:
            self.after_step()


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
NOWHERE = contextvars.Context()  # the context of the network and the disk, which belong to no process


class _Step(asyncio.TimerHandle):
    """A step that is due, now or later. It begins without what asyncio keeps of a step for debugging."""

    __slots__ = ("process",)

    def __init__(self, when: float, callback: Callable[..., Any], args: Any, loop: VirtualLoop, context: Any) -> None:
        self._when, self._callback, self._args, self._loop = when, callback, args, loop
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None
        self.process: Process | None = self._context.get(_process)


class _Task(asyncio.Task[Any]):
    """A task that hashes by its number, not by its address, so sets of tasks have one order in every process."""

    def __init__(self, number: int, coro: Any, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without files, threads or real time."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks_made = 0
        self.set_task_factory(self._new_task)
        self.steps = 0
        self.complaints: list[str] = []  # reports of asyncio, for example exceptions that were never retrieved
        self._now_s = 0.0
        self._due: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._made = 0
        self._moment_steps = 0  # how many steps had run before this moment
        self._second_s = 0.0  # the beginning of the second in which steps are counted
        self._second_steps = 0  # how many steps had run by then

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]  # asyncio's type of `args` is private
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        step = _Step(self._now_s, callback, args, self, context)
        self._due.append(step)
        return step

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _Step(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, timer))
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context.get('message')}: {error!r}" if error is not None else str(context["message"]))

    def thaw(self, process: Process) -> None:
        """Release a held process: it runs the steps that were due in the meantime."""
        process.is_held, process.thawed_s = False, self._now_s
        held, process.held = process.held, []
        self._due.extend(held)

    def resume(self) -> None:
        """Continue after `Stuck`, with new bounds."""
        self._moment_steps = self._second_steps = self.steps
        self._second_s = self._now_s

    def _new_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._tasks_made += 1
        return _Task(self._tasks_made, coro, loop=loop, **options)

    def _run_once(self) -> None:
        """Run the due steps; otherwise jump to the next deadline. `run_forever` repeats this."""
        due = self._due
        if not due:
            self._jump()
        for _ in range(len(due)):
            step = due.popleft()
            if step._cancelled:
                continue
            process = step.process
            if process is not None and process.is_held:
                process.held.append(step)
                continue
            step._run()
            if process is not None:
                process.stepped()
            self.steps += 1
            if self.steps - self._moment_steps > MAX_STEPS_AT_ONCE:
                due.appendleft(step)
                where = "\n".join(map(_describe, list(due)[:SHOWN_STEPS]))
                raise Stuck(f"time stands still at {self._now_s:.3f} s: a loop never waits", where)

    def _jump(self) -> None:
        timers, due = self._timers, self._due
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("no step is left: a task waits for an event that never comes")
        when = timers[0][0]
        if when > self._now_s:
            self._now_s = when
            self._moment_steps = self.steps
            self._check_pace()
        while timers and timers[0][0] <= self._now_s:
            due.append(heapq.heappop(timers)[2])

    def _check_pace(self) -> None:
        if self._now_s - self._second_s >= 1.0:
            self._second_s, self._second_steps = self._now_s, self.steps
        elif self.steps - self._second_steps > MAX_STEPS_A_SECOND:
            what = f"time creeps at {self._now_s:.3f} s: a loop waits too shortly, again and again"
            raise Stuck(what, "\n".join(_describe(timer) for _, _, timer in self._timers[:SHOWN_STEPS]))


def _describe(handle: asyncio.Handle) -> str:
    """Return the step as text; of a task, the places where it waits."""
    task = getattr(getattr(handle, "_callback", None), "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)
    awaited: Any = task.get_coro()
    places = []
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        places.append(f"{frame.f_code.co_qualname} in {frame.f_code.co_filename}:{frame.f_lineno}")
        awaited = awaited.cr_await
    return " > ".join(places)


class SimClock(Clock):
    """A hub's wall clock: virtual time, and ids from the seed. `skew_ms` sets it to another time."""

    def __init__(self, loop: VirtualLoop, draw: Random) -> None:
        super().__init__()
        self.skew_ms = 0
        self._loop = loop
        self._draw = draw

    def now_ms(self) -> int:
        return START_MS + self.skew_ms + int(self._loop.time() * 1000)

    def random_bits(self, bits: int) -> int:
        return self._draw.getrandbits(bits)


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
