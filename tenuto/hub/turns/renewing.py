"""Renewals of the turns that agents in other processes have.

Layer: hub.

On a store that several hubs share, each of them has a deadline for such a turn. So a renewal is stored before it is
answered, as a confirmation of the attempt: each hub that reads it gives the turn another term, and a hub that has not
read it cannot claim the turn, because its claim names the confirmation before. An attempt that its agent has lost is
given back by a confirmation with a lease that ends at once: then each hub offers the turn to its own agents.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenuto.core.errors import TenutoError
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.core.turns import TurnState
from tenuto.hub.leases import Submit
from tenuto.hub.nodes.nodes import NodeLease
from tenuto.hub.pending import Result
from tenuto.hub.turns.workers import AssignedTurn, Worker

logger = logging.getLogger("tenuto.hub")


def store_renewal(
    submit: Submit,
    nodes: NodeLease,
    name: str,
    turn: AssignedTurn,
    done: Callable[[TenutoError | None], None],
    *,
    gives_back: bool = False,
) -> None:
    """Store that the agent `name` renews `turn`, or `gives_back` the lost attempt, on a shared store.

    `done` is called with None, or with the refusal.
    """

    def stored(result: Result | TenutoError) -> None:
        done(result if isinstance(result, TenutoError) else None)

    if nodes.is_exclusive:
        done(None)
        return
    request = ClaimTurn(generation=turn.generation, renews=True, gives_back=gives_back)
    try:
        submit(turn.channel, turn.message_id, request, Caller(id=name), stored)
    except TenutoError as error:
        done(error)


def share_loss(submit: Submit, channel: str, turn: TurnState[Worker]) -> None:
    """Give back, on a shared store, the attempt of a remote worker whose connection is broken, unless it was renewed.

    This hub ends such an attempt before its lease ends, and the other hubs would wait for that.
    """
    claim = turn.claim
    if claim is None or claim.node is not None or claim.within is not None:
        return

    def stored(result: Result | TenutoError) -> None:
        if isinstance(result, TenutoError):
            logger.debug("the turn of %s in %s was not given back: %s", turn.message_id, channel, result)

    request = ClaimTurn(generation=turn.attempt, confirmed=turn.confirmed, renews=True, gives_back=True)
    try:
        submit(channel, turn.message_id, request, Caller(id=claim.by, is_server=True), stored)
    except TenutoError as error:
        stored(error)
