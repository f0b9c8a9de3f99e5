"""Deadlines: each action runs once at its time, unless it is postponed or dropped before."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from tenuto.hub import deadlines
from tenuto.hub.deadlines import Deadlines
from tests.virtual import virtually


def new() -> tuple[Deadlines, list[str]]:
    return Deadlines(asyncio.get_running_loop()), []


@virtually
async def test_each_action_is_called_once_in_order_of_time() -> None:
    known, called = new()
    for name, due_s in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        known.set(name, due_s, lambda name=name: called.append(name))
    await asyncio.sleep(2.5)
    assert (called, len(known)) == (["a", "b"], 1)
    await asyncio.sleep(60)
    assert called == ["a", "b", "c"]


@virtually
async def test_postponed_action_is_called_at_its_new_time_only() -> None:
    known, called = new()
    known.set("a", 1.0, lambda: called.append("first"))
    for step in range(100):
        await asyncio.sleep(0.5)
        known.set("a", 1.5 + step * 0.5, lambda: called.append(f"{asyncio.get_running_loop().time():.1f}"))
    await asyncio.sleep(10)
    assert called == ["51.0"]
    assert len(known._heap) == 0


@virtually
async def test_heap_does_not_grow_with_the_number_of_renewals() -> None:
    known, called = new()
    loop = asyncio.get_running_loop()
    for number in range(20):
        known.set(number, loop.time() + 3600, lambda number=number: called.append(number))
    for number in range(20_000):  # leases that are begun, renewed, cut short and dropped
        known.set(("lease", number), loop.time() + 15, lambda: called.append("lapsed"))
        known.set(("lease", number), loop.time() + 60, lambda: called.append("lapsed"))
        known.set(("lease", number), loop.time() + 3, lambda: called.append("lapsed"))
        known.drop(("lease", number))
    assert len(known) == 20
    assert len(known._heap) <= 2 * 20 + 1_001
    await asyncio.sleep(3601)
    assert called == list(range(20))  # the remaining deadlines are all called


@virtually
async def test_deadline_that_is_always_postponed_has_one_heap_item() -> None:
    known, called = new()
    loop = asyncio.get_running_loop()
    for _ in range(20_000):
        known.set("lease", loop.time() + 15, lambda: called.append("lapsed"))
        await asyncio.sleep(0.001)
    assert len(known._heap) == 1
    assert called == []


@virtually
async def test_deadline_may_be_moved_earlier_or_dropped() -> None:
    known, called = new()
    known.set("a", 10.0, lambda: called.append("a"))
    known.set("b", 10.0, lambda: called.append("b"))
    known.set("a", 1.0, lambda: called.append("soon"))
    known.drop("b")
    known.drop("nothing")
    await asyncio.sleep(60)
    assert called == ["soon"]


@virtually
async def test_deadline_may_be_hastened_but_not_delayed() -> None:
    known, called = new()
    loop = asyncio.get_running_loop()
    for key in ("a", "b"):
        known.set(key, 10.0, lambda key=key: called.append(f"{key} at {loop.time():g}"))  # type: ignore[misc]
    known.hasten("a", 3.0)
    known.hasten("b", 13.0)
    known.hasten("nothing", 3.0)
    await asyncio.sleep(60)
    assert called == ["a at 3", "b at 10"]


@virtually
async def test_failing_action_does_not_prevent_the_next(caplog: pytest.LogCaptureFixture) -> None:
    known, called = new()

    def fail() -> None:
        raise RuntimeError("no")

    known.set("a", 1.0, fail)
    known.set("b", 1.0, lambda: called.append("b"))
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(2)
    assert called == ["b"]
    assert "a deadline's action failed" in caplog.text


@virtually
async def test_action_may_set_the_next_deadline() -> None:
    known, called = new()

    def again() -> None:
        called.append("x")
        if len(called) < 5:
            known.set("a", asyncio.get_running_loop().time() + 1.0, again)

    known.set("a", 1.0, again)
    await asyncio.sleep(60)
    assert len(called) == 5


@virtually
async def test_closed_deadlines_call_no_action() -> None:
    known, called = new()
    known.set("a", 1.0, lambda: called.append("a"))
    known.close()
    known.set("b", 2.0, lambda: called.append("b"))
    await asyncio.sleep(10)
    assert called == []


async def test_resumed_process_reads_its_sockets_before_it_expires_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGSTOP, or a machine's sleep, the deadline has passed and the renewal waits in a socket."""
    monkeypatch.setattr(deadlines, "AWAY_S", 0.2)
    loop = asyncio.get_running_loop()
    known, called = new()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    received = asyncio.Event()

    def receive() -> None:
        reader.recv(1)
        loop.call_soon(known.set, "lease", loop.time() + 60, lambda: called.append("lapsed"))
        received.set()

    loop.add_reader(reader, receive)
    try:
        known.set("lease", loop.time() + 0.05, lambda: called.append("lapsed"))
        known.set("other", loop.time() + 0.05, lambda: called.append("other"))
        writer.send(b"x")
        time.sleep(0.3)  # noqa: ASYNC251 - the whole process stands still
        async with asyncio.timeout(60):
            await received.wait()
            while "other" not in called:  # noqa: ASYNC110 - a deadline sets no event
                await asyncio.sleep(0.01)
        assert called == ["other"]
    finally:
        loop.remove_reader(reader)
        known.close()
        reader.close()
        writer.close()
