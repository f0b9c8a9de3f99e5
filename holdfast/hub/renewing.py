"""Renewals of the turns that agents in other processes have.

Layer: hub.

On a store that several hubs share, each of them has a deadline for such a turn. So a renewal is stored before it is
answered, as a confirmation of the attempt: each hub that reads it gives the turn another term, and a hub that has not
read it cannot claim the turn, because its claim names the confirmation before.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.errors import HoldfastError
from holdfast.core.requests import Caller, ClaimTurn
from holdfast.hub.results import Result
from holdfast.hub.runtime import Runtime
from holdfast.hub.workers import AssignedTurn


def store_renewal(
    runtime: Runtime, name: str, turn: AssignedTurn, done: Callable[[HoldfastError | None], None]
) -> None:
    """Store that the agent `name` renews `turn`, on a shared store. `done` is called with None, or with the refusal."""

    def stored(result: Result | HoldfastError) -> None:
        done(result if isinstance(result, HoldfastError) else None)

    if runtime.store.is_exclusive:
        done(None)
        return
    request = ClaimTurn(generation=turn.generation, renews=True)
    try:
        runtime.submit(turn.channel, turn.message_id, request, Caller(id=name), stored)
    except HoldfastError as error:
        done(error)
