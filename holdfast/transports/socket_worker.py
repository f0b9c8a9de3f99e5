"""A socket's agent, as the turn scheduler knows it: the frames `work`, `turn`, `turn.renew` and `turn.done`.

Layer: transports.

A turn that a socket has is leased: its agent renews it, and when the socket breaks it is
another's soon.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.errors import Fenced, HoldfastError
from holdfast.core.model import check_json
from holdfast.core.names import check_channel, check_id
from holdfast.hub.committer import Done, Result
from holdfast.hub.hub import HubCore
from holdfast.hub.turns import LEASE_S, TurnOffer, WhenBusy
from holdfast.transports.frames import TurnDoneFrame, TurnRenewFrame


class SocketWorker:
    """A socket's agent, as the turn scheduler knows it."""

    is_local = False

    def __init__(
        self,
        give: Callable[[SocketWorker, TurnOffer], None],
        hub: HubCore,
        name: str,
        pattern: str,
        slots: int,
        when_busy: WhenBusy,
    ) -> None:
        self.name = name
        self.pattern = pattern
        self.when_busy = when_busy
        self.free = slots
        self._give = give
        self._hub = hub
        self.turns: set[TurnOffer] = set()
        self.is_listed = True  # may turns be given to it?

    def take_over(self, other: SocketWorker) -> None:
        """Go on with the turns of the worker that this one replaces."""
        self.turns |= other.turns
        self.free -= len(other.turns)

    def has(self, channel: str, message_id: str | None) -> bool:
        """Has it this turn, or with None one in that channel?"""
        return any(turn.channel == channel and message_id in (None, turn.message_id) for turn in self.turns)

    def begin(self, turn: TurnOffer) -> None:
        self.turns.add(turn)
        self._give(self, turn)

    def ended(self, turn: TurnOffer, state: str) -> None:
        self._over(turn)

    def renew(self, frame: TurnRenewFrame) -> None:
        """The agent is still at it. Raises Fenced where the turn is over or another's."""
        turn = self._turn(frame)
        if not self._hub.scheduler.renew(self, turn):
            raise _not_ours()
        if not self.has(turn.channel, turn.message_id):  # of the socket before: it takes a slot here
            self.turns.add(turn)
            self.free -= 1
        if frame.state is not None:
            check_json(frame.state, self._hub.limits.data_bytes, "a state", depth=self._hub.limits.depth)
            self._hub.scheduler.said(frame.channel, self.name, frame.state)

    def end(self, frame: TurnDoneFrame, done: Done) -> None:
        """The agent is done."""
        turn = self._turn(frame)

        def answered(answer: Result | HoldfastError) -> None:
            if isinstance(answer, HoldfastError) and not answer.retry:
                answer = _not_ours()  # whose it is instead, or that there is none, is nobody's business
            done(answer)

        self._hub.scheduler.end(self, turn, frame.state, answered)
        self._over(turn)

    def works_in(self, channel: str) -> bool:
        """Has it a turn there?"""
        return any(turn.channel == channel for turn in self.turns)

    def _turn(self, frame: TurnRenewFrame | TurnDoneFrame) -> TurnOffer:
        return TurnOffer(check_channel(frame.channel), check_id(frame.message), frame.generation, LEASE_S)

    def _over(self, turn: TurnOffer) -> None:
        known = next((one for one in self.turns if one[:3] == turn[:3]), None)
        if known is not None:
            self.turns.discard(known)
            self._hub.scheduler.freed(self)
            if not any(one.channel == turn.channel for one in self.turns):
                self._hub.scheduler.said(turn.channel, self.name, {"state": "listening"})


def _not_ours() -> Fenced:
    return Fenced("this turn is over, or another's")
