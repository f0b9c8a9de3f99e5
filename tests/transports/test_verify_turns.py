"""Turns of the verifier: their order, and the turns of the event loop that pass between them."""

from __future__ import annotations

import asyncio

from holdfast.transports.verify_turns import MAX_DEBT_S, TURN_S, VerifyTurns, verify_turns


class Turns:
    """Peers that wait in `turns`, and the turn of the event loop in which each went on."""

    def __init__(self) -> None:
        self.turns = VerifyTurns()
        self.went_on: dict[str, int] = {}
        self.count = 0

    async def run(self, *peers: str, took_s: float | None = 0.0) -> None:
        """Let `peers` wait at once, and refuse each; a peer is an address and a letter. Count the turns.

        With `took_s` None all are accepted.
        """

        async def one(peer: str) -> None:
            await self.turns.wait(peer[:-1])
            self.went_on[peer] = self.count
            if took_s is not None:
                self.turns.refused(took_s)

        tasks = [asyncio.create_task(one(peer)) for peer in peers]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            self.count += 1

    def order(self) -> list[str]:
        return sorted(self.went_on, key=self.went_on.__getitem__)


async def test_accepted_peers_do_not_wait() -> None:
    one = Turns()
    await one.run(*(f"a{number}" for number in range(10)), took_s=None)
    assert set(one.went_on.values()) == {0}


async def test_peers_without_a_token_wait_for_long_runs_alone() -> None:
    turns = VerifyTurns()
    for _ in range(100):
        async with asyncio.timeout(5):
            await turns.wait("a")
        turns.used(TURN_S / 200)
    turns.used(3 * TURN_S)
    waiting = asyncio.create_task(turns.wait("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await waiting


async def test_one_peer_is_refused_in_a_turn_of_the_loop() -> None:
    one = Turns()
    await one.run("a1", "a2", "a3")
    assert one.order() == ["a1", "a2", "a3"]
    assert len(set(one.went_on.values())) == 3


async def test_addresses_take_turns() -> None:
    one = Turns()
    await one.run("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert one.order() == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_turns_pass_after_a_long_run() -> None:
    one = Turns()
    await one.run("a1", "a2", took_s=4 * TURN_S)
    assert one.went_on["a2"] - one.went_on["a1"] >= 4


async def test_time_to_make_up_for_is_bounded() -> None:
    """A verifier may take ten seconds to wait for a database."""
    one = Turns()
    await one.run("a1", "a2", took_s=10.0)
    assert one.went_on["a2"] - one.went_on["a1"] <= MAX_DEBT_S / TURN_S + 2


async def test_peer_that_has_left_takes_no_turn() -> None:
    turns = VerifyTurns()
    turns.refused(2 * TURN_S)
    waiting = [asyncio.create_task(turns.wait("a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    async with asyncio.timeout(5):
        await waiting[2]
    assert [one.cancelled() for one in waiting] == [True, True, False]


async def test_limit_ends_when_no_peer_waits() -> None:
    turns = VerifyTurns()
    turns.refused(0.0)
    for _ in range(2):
        await asyncio.sleep(0)
    waiting = asyncio.create_task(turns.wait("a"))
    await asyncio.sleep(0)
    assert waiting.done()
    assert verify_turns() is verify_turns()
