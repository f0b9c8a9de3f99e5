"""The bytes that a client's requests cause: which bytes count, and when (decision 0037).

Layer: transports.

`hub.rates` keeps the counts. A request counts its own bytes (also those of a body that is refused or does not end),
those of its response or of the batch with which its stream begins, and those of its event for each viewer of the
channel. Later events of a stream count for the clients whose requests caused them, and not for the viewer. The bytes of
some requests are known only when they are done. Until then each counts as `EXPECTED_BYTES`, so that a client can run
only a few at once. Bodies that have not ended are bounded, too, because a slow body holds memory.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenuto.core.deltas import TurnStatus
from tenuto.core.message_state import part_bytes
from tenuto.core.model import Message
from tenuto.hub.access.identity import Identity, Scope
from tenuto.hub.access.rates import FREE_BYTES, OPEN_BODIES, UNCOUNTED, OpenBody
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.transports.headers import header, peer_of
from tenuto.transports.operations import Operation

# Low enough for twenty pages at once: each counts as four requests until it is done.
EXPECTED_BYTES = 512 * 1024
# Operations with responses that are much larger than the requests: pages, and whole messages.
_READS = ("history", "read", "update", "channels")


def charge(hub: HubCore, identity: Identity, scope: Scope, size: int) -> None:
    """Count `size` bytes that a request of this client has caused; a negative number gives them back. Never raises."""
    # without a verifier every caller is on this machine, and its traffic is not limited
    if hub.authenticate is not None:
        hub.rates.charge(identity, peer_of(scope), size=size)


def expected_bytes(hub: HubCore, operation: Operation, scope: Scope) -> int:
    """Return the bytes that an HTTP request counts for while it is carried out."""
    is_large = operation.name in _READS or header(scope, b"transfer-encoding") is not None
    return max(declared_bytes(scope, hub.limits.request_bytes), EXPECTED_BYTES if is_large else 0)


def declared_bytes(scope: Scope, limit_bytes: int) -> int:
    """Return the declared length of an HTTP request's body, at most the `limit_bytes` that are read; 0 without one."""
    length = header(scope, b"content-length")
    if length is None or not (length.isascii() and length.isdigit()):
        return 0
    return min(int(length[:18]), limit_bytes)


def open_body(hub: HubCore, identity: Identity, scope: Scope, limit_bytes: int) -> OpenBody:
    """Return the open body of a request, of at most `limit_bytes`, which counts its bytes."""
    if hub.authenticate is None or identity.is_trusted:
        return UNCOUNTED
    # a client may send two of the largest bodies of an adapter at once, which are those of a message
    max_bytes = max(OPEN_BODIES * hub.limits.request_bytes, 2 * limit_bytes)
    return hub.rates.body(identity, peer_of(scope), largest_bytes=limit_bytes, max_bytes=max_bytes)


def event_bytes(hub: HubCore, channel: str, result: Result, size: int) -> int:
    """Return the bytes of a stored request's event for all viewers of its channel; `size` is that of one event."""
    if size <= FREE_BYTES or not result.created:
        return 0
    return (size - FREE_BYTES) * hub.channel(channel).watchers


def turn_bytes(turns: Iterable[TurnStatus]) -> int:
    """Return the bytes of the messages of turns that a route of an app reads."""
    return message_bytes(message for one in turns for message in (one.message, *one.answers) if message is not None)


def message_bytes(messages: Iterable[Message]) -> int:
    """Return the bytes of the parts of messages."""
    return sum(part_bytes(part) for message in messages for part in message.parts)
