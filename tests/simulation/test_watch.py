"""What keeps an oracle on a run: nothing in it may go on for ever, or grow for ever."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from typing import Any

import pytest

from holdfast.app import Hub
from holdfast.hub.deadlines import Deadlines
from simulation import World, watchdog
from simulation.bounds import HELD, SPARE, Bounds
from simulation.clock import Stuck, VirtualLoop
from simulation.trace import Violation
from simulation.watchdog import Hung, watching
from tests.simulation.mutants import wait_on_the_spot_for_a_load

# What never ends


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
@pytest.mark.parametrize("hang", [spin, wait_for_a_lock])
def test_a_step_that_does_not_end_is_left_and_it_is_told_where(hang: Any) -> None:
    told: list[str] = []
    others = itertools.count()
    is_hanging = False
    with pytest.raises(Hung), watching(lambda: 0 if is_hanging else next(others), told.append):
        is_hanging = True  # a busy machine may have taken any time to come here
        hang()
    assert len(told) == 1
    assert hang.__name__ in told[0]


@pytest.mark.usefixtures("quick")
def test_many_steps_that_end_may_take_as_long_as_they_like() -> None:
    steps = 0
    told: list[str] = []
    begun_s = signal.getitimer(signal.ITIMER_PROF)
    with watching(lambda: steps, told.append):
        while steps < 300:
            sum(range(20_000))  # in all they take several times as long as one may
            steps += 1
    assert told == []
    assert signal.getitimer(signal.ITIMER_PROF) == begun_s == (0.0, 0.0)


@pytest.mark.usefixtures("quick")
def test_whoever_handles_errors_does_not_keep_the_run_from_ending() -> None:
    def swallow() -> None:
        while True:
            try:
                spin()
            except Exception:
                continue

    with pytest.raises(Hung), watching(lambda: 1, lambda where: None):
        swallow()


def test_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)
    with watching(lambda: 1, lambda where: None):
        assert signal.getsignal(signal.SIGPROF) != before[0]
    assert (signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)) == before


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_hangs_tells_its_story_and_hangs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_on_the_spot_for_a_load(monkeypatch)
    monkeypatch.setattr(watchdog, "BUSY_TICK_S", 0.1)  # no step of a whole hub takes half a second
    first, second = World(0).run(), World(0).run()
    assert "does not come to its end" in str(first.violation)
    assert any("mutants.py" in line and "while not channel.is_ready" in line for line in first.lines)
    assert (str(first.violation), first.digest) == (str(second.violation), second.digest)


def test_time_that_creeps_is_noticed() -> None:
    async def poll() -> None:
        for _ in itertools.count():
            await asyncio.sleep(1e-6)

    loop = VirtualLoop()
    with pytest.raises(Stuck, match="time creeps") as stuck:
        loop.run_until_complete(poll())
    assert stuck.value.where
    loop.close()


def test_it_is_told_who_makes_time_stand_still() -> None:
    async def poll() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    loop = VirtualLoop()
    with pytest.raises(Stuck, match="time stands still") as stuck:
        loop.run_until_complete(poll())
    assert f"{poll.__qualname__} in {__file__}" in stuck.value.where
    loop.close()


# What grows


@pytest.fixture
async def hub() -> Any:
    hub = Hub("memory://", hooks_signals=False)
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
def bounds(hub: Hub) -> Bounds:
    return Bounds(hub, "A1", lambda: 0.0, lambda: 0.0)


def look(bounds: Bounds) -> None:
    """All that is looked at after one step or another."""
    for _ in range(20):
        bounds.stepped()


async def test_a_hub_at_rest_holds_nothing_unbounded(hub: Hub, bounds: Bounds) -> None:
    async with hub.message("c") as message:
        await message.append("text")
        look(bounds)


async def test_deadlines_that_were_dropped_leave_the_heap(
    hub: Hub, bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub._runtime is not None
    deadlines = hub._runtime.deadlines

    def come_and_go() -> None:
        for number in range(3_000):
            deadlines.set(number, hub.clock.now_ms() + number, lambda: None)
            deadlines.drop(number)

    come_and_go()
    look(bounds)
    monkeypatch.setattr(Deadlines, "_push", keep_in_the_heap)
    come_and_go()
    with pytest.raises(Violation, match="deadlines are in the heap"):
        bounds.stepped()


def keep_in_the_heap(self: Deadlines, due_s: float, key: Any) -> None:
    self._heap.append((due_s, self._next(), key))


async def test_a_container_that_nobody_has_named_is_bounded(hub: Hub, bounds: Bounds) -> None:
    hub.__dict__["_new_cache"] = dict.fromkeys(range(SPARE))
    look(bounds)
    hub.__dict__["_new_cache"][SPARE] = None
    with pytest.raises(Violation, match=rf"{SPARE + 1} things are in Hub._new_cache, {SPARE} at most"):
        look(bounds)


async def test_a_feed_has_no_queue(hub: Hub, bounds: Bounds, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = await hub.attach("c", None, wake=lambda: None)
    look(bounds)
    monkeypatch.setattr(feed, "wake", [1])
    with pytest.raises(Violation, match=r"1 things are in Feed.wake, 0 at most"):
        look(bounds)
    assert HELD > 1
    feed.close()
