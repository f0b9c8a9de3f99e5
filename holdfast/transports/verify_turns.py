"""Turns of the verifier: a flood of invalid tokens waits, and delays the other work of the event loop only a little.

Layer: transports, below `access`.

To refuse a token takes up to a millisecond. So after a refusal the verifier runs at most once in a turn of the event
loop for unknown peers, and not at all in some turns after a long run. Without refusals no peer waits: after a restart a
thousand clients connect at once. Under `holdfast serve`, a request does not wait here if the last one on its connection
was verified. Under another server the hub does not know the connections, so any request may have to wait.

Safe to change: the constants. Not safe: a turn of the loop in which a peer waits without need.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

TURN_S = 0.0005  # time for refusals in a turn of the loop, on average; a refusal counts as this time and its own
MAX_DEBT_S = 0.005  # limit of the time to make up for, because the verifier may also wait, for a database


class VerifyTurns:
    """The peers of one event loop for which the verifier is to run, by address.

    The addresses take turns, so that a flood of one address does not delay the clients of another one.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._debt_s = 0.0  # time of refusals that the last turns had no room for
        self._is_limited = False  # True from a refusal until no peer waits

    async def wait(self, address: str) -> None:
        """Wait until the verifier may run for a peer of `address`."""
        if self._is_limited:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(address, deque()).append(turn)
            await turn

    def used(self, took_s: float) -> None:
        """Note that the verifier took `took_s` seconds and identified no client."""
        self._debt_s = min(MAX_DEBT_S, self._debt_s + took_s)
        if self._debt_s >= TURN_S and not self._is_limited:
            self._is_limited = True
            asyncio.get_running_loop().call_soon(self._next)

    def refused(self, took_s: float) -> None:
        """Note that the verifier took `took_s` seconds and refused a token."""
        self.used(TURN_S + took_s)

    def _next(self) -> None:
        """Begin a turn of the loop: let the next peer go on, unless refusals have taken too long."""
        self._debt_s = max(0.0, self._debt_s - TURN_S)
        if self._debt_s < TURN_S and not self._let_one_go_on():
            self._is_limited = False
        else:
            asyncio.get_running_loop().call_soon(self._next)

    def _let_one_go_on(self) -> bool:
        """End the wait of one peer, of the address that has waited for longest. Return False if no peer waits."""
        while self._waiting:
            address = next(iter(self._waiting))
            of_address = self._waiting.pop(address)
            turn = of_address.popleft()
            if of_address:
                self._waiting[address] = of_address
            if not turn.done():  # else its peer has left
                turn.set_result(None)
                return True
        return False


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, VerifyTurns] = WeakKeyDictionary()


def verify_turns() -> VerifyTurns:
    """Return the turns of the running event loop."""
    loop = asyncio.get_running_loop()
    turns = _of_loops.get(loop)
    if turns is None:
        turns = _of_loops[loop] = VerifyTurns()
    return turns
