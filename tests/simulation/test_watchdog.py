"""A run ends, even if a step or a loop of the code under test does not.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable

import pytest

from proof.simulation import watchdog
from proof.simulation.clock import Stuck, VirtualLoop
from proof.simulation.watchdog import Hung, watching


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "BUSY_TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "IDLE_TICK_S", 0.01)


def spin() -> None:
    while True:
        pass


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


@pytest.mark.usefixtures("quick")
def test_steps_that_end_may_take_any_time_together() -> None:
    steps = 0
    places: list[str] = []
    begun_s = signal.getitimer(signal.ITIMER_PROF)
    with watching(lambda: steps, places.append):
        while steps < 300:
            sum(range(20_000))  # together they take several times the limit of one step
            steps += 1
    assert places == []
    assert signal.getitimer(signal.ITIMER_PROF) == begun_s == (0.0, 0.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("hang", [spin, wait_for_a_lock])
def test_step_that_catches_every_error_is_interrupted(hang: Callable[[], None]) -> None:
    def swallow() -> None:
        while True:
            try:
                hang()
            except Exception:
                continue

    with pytest.raises(Hung), watching(lambda: 1, lambda where: None):
        swallow()


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)
    with watching(lambda: 1, lambda where: None):
        assert signal.getsignal(signal.SIGPROF) != before[0]
    assert (signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)) == before


@pytest.mark.parametrize(
    ("wait_s", "expected", "place"),
    [(1e-6, "time creeps", "_Timer when="), (0, "time stands still", f"<locals>.poll in {__file__}")],
)
def test_loop_whose_time_does_not_pass_is_reported_with_its_place(wait_s: float, expected: str, place: str) -> None:
    async def poll() -> None:
        for _ in itertools.count():
            await asyncio.sleep(wait_s)

    loop = VirtualLoop()
    with pytest.raises(Stuck, match=expected) as stuck:
        loop.run_until_complete(poll())
    assert place in stuck.value.where
    loop.close()
