"""Decisions about the leases of remote writers.

Layer: core. A part of `decide` (`holdfast.core.decide`), which is the only caller of the decisions.
"""

from __future__ import annotations

from holdfast.core.decision import Decision
from holdfast.core.message_state import MessageState
from holdfast.core.ops import Lease
from holdfast.core.ownership import check_generation, check_streaming
from holdfast.core.requests import ExpireLease, RenewLease


def renew_lease(message: MessageState, request: RenewLease) -> Decision:
    """Return the decision on a renewal: it stores a new term only. Raises Fenced, Finished."""
    check_generation(message, request.generation)
    check_streaming(message)
    lease_ms = int(request.lease_s * 1000)
    if message.writer is None or message.writer.lease_ms in (0, lease_ms):
        return Decision(serial=message.version)
    return Decision(ops=(Lease(id=message.id, lease_ms=lease_ms),))


def stored_renewal(message: MessageState | None, decision: Decision) -> Decision:
    """Return the decision on a renewal with an entry, by which the hubs of a shared store learn of it."""
    if decision.ops or message is None or message.writer is None or not message.writer.lease_ms:
        return decision
    return Decision(ops=(Lease(id=message.id, lease_ms=message.writer.lease_ms),))


def check_silent(message: MessageState, request: ExpireLease) -> Decision | None:
    """Return a decision without effect if the writer's lease must not expire, because the message has new entries."""
    return Decision(serial=message.version) if message.last > request.last else None
