"""Taking a waiting message into a turn that runs.

Layer: hub.

An agent that works on one message may answer a later one in the same turn. The later message then gets no turn of its
own: a stored claim ties it to the running turn, and it is over when that turn is.
"""

from __future__ import annotations

from tenuto.core.errors import Deleted, Fenced, Finished, NotFound
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.hub.runtime import Runtime


async def take_waiting(runtime: Runtime, channel: str, message_id: str, by: str, turn: str | None) -> bool:
    """Take `message_id` into the turn of the message `turn` of agent `by`, or with None into its newest turn.

    Return False if another turn has the message, if it does not wait, or if there is no such turn.
    """
    scheduler = runtime.scheduler
    try:
        known = await runtime.message(channel, message_id)
    except NotFound:
        return False
    host = scheduler.turn_of(channel, by, turn)
    if known.claim is None or known.deleted or host is None:
        return False
    claim = known.claim
    within, attempt, holder = host
    if claim.state != "pending":
        return turn is not None and scheduler.is_held(channel, message_id, within, attempt)
    writer = WriterIdentity(by=by, node=runtime.node) if holder.node is not None else None
    caller = Caller(id=by, writer=writer, is_server=True)
    request = ClaimTurn(
        generation=claim.generation,
        above=scheduler.unended.attempt(channel, message_id),
        lease_s=holder.lease_ms / 1000,
        within=within,
        within_generation=attempt,
    )
    try:
        with scheduler.taking(channel, message_id, within, attempt):
            await runtime.ask(channel, message_id, request, caller)
    except (Fenced, Finished, Deleted, NotFound):
        return False
    return True
