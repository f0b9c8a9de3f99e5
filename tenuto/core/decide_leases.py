"""Decisions about the leases of remote writers.

Layer: core. A part of `decide` (`tenuto.core.decide`), which is the only caller of the decisions.
"""

from __future__ import annotations

from tenuto.core.decision import Decision
from tenuto.core.message_state import MessageState
from tenuto.core.ops import Lease
from tenuto.core.ownership import check_generation, check_streaming
from tenuto.core.requests import ExpireLease, RenewLease


def renew_lease(message: MessageState, request: RenewLease, now_ms: int) -> Decision:
    """Return the decision on a renewal: it stores a new term only. Raises Fenced, Finished."""
    check_generation(message, request.generation)
    check_streaming(message)
    lease_ms = int(request.lease_s * 1000)
    if message.writer is None or message.writer.lease_ms in (0, lease_ms):
        return Decision(serial=message.version)
    return Decision(ops=(Lease(id=message.id, lease_ms=lease_ms, at_ms=now_ms),))


def stored_renewal(message: MessageState | None, now_ms: int) -> tuple[Lease, ...]:
    """Return the entry by which the hubs of a shared store learn that the writer of `message` has sent a request.

    Only for a request without an entry of its own, and none if the message has no lease.
    """
    writer = message.writer if message is not None and message.is_streaming else None
    if message is None or writer is None or not writer.lease_ms:
        return ()
    return (Lease(id=message.id, lease_ms=writer.lease_ms, at_ms=now_ms),)


def check_silent(message: MessageState, request: ExpireLease) -> Decision | None:
    """Return a decision without effect if the writer's lease must not expire, because the message has new entries."""
    return Decision(serial=message.version) if message.last > request.last else None
