"""Deadlines: each action runs once at its time, unless it is postponed or dropped before."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tenuto.hub import clock
from tenuto.hub.clock import Deadlines
from tests.virtual import virtually


def new() -> tuple[Deadlines, list[str]]:
    return Deadlines(asyncio.get_running_loop()), []


@virtually
async def test_timers_do_not_grow_with_the_number_of_renewals() -> None:
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
    await asyncio.sleep(3601)
    assert called == list(range(20))  # the remaining deadlines are all called


@virtually
async def test_handles_that_do_not_know_their_time_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """`call_at` of uvloop returns such a handle for a time that has come."""
    known, called = new()
    loop = asyncio.get_running_loop()
    monkeypatch.delattr(asyncio.TimerHandle, "when")
    known.set("now", loop.time(), lambda: called.append("now"))
    known.set("later", loop.time() + 1, lambda: called.append("later"))
    known.set("later", loop.time() + 2, lambda: called.append("moved"))
    await asyncio.sleep(3)
    assert called == ["now", "moved"]


@virtually
async def test_failing_action_does_not_prevent_the_next(caplog: pytest.LogCaptureFixture) -> None:
    known, called = new()
    known.set("a", 1.0, lambda: 1 / 0)
    known.set("b", 1.0, lambda: called.append("b"))
    await asyncio.sleep(2)
    assert called == ["b"]
    assert "failed; please report this bug" in caplog.text


async def test_resumed_process_reads_its_sockets_before_it_expires_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGSTOP, or a machine's sleep, the deadline has passed and the renewal waits in a socket."""
    monkeypatch.setattr(clock, "AWAY_S", 0.2)
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
