"""Restricts how far back a client without `history` may resume: cursors are client input and can be forged.

Layer: transports.

A client with `history` may resume from any cursor. A client that may only subscribe is sent the events from its first
attach on: its cursors carry a signature for the client and the channel, and a cursor without it is treated as none. The
form of the signature may change freely, since cursors are opaque. That only the server can make one must not change.
"""

from __future__ import annotations

from tenuto.core.events import Cursor, parse_cursor
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.tickets import Tickets
from tenuto.hub.hub import HubCore


class ResumeLimits:
    """Signs and checks the cursors of one client on one channel, if the client lacks the capability `history`.

    Such a client may resume only from cursors that the server gave to it.
    """

    __slots__ = ("_channel", "_client_id", "_tickets")

    def __init__(self, tickets: Tickets, client_id: str | None, channel: str) -> None:
        self._tickets = tickets
        self._client_id = client_id
        self._channel = channel

    def known(self, cursor: Cursor | None) -> Cursor | None:
        """Return `cursor` if the server gave it to this client, else None."""
        if cursor is None or not self._tickets.is_marked(cursor, self._client_id, self._channel):
            return None
        return cursor

    def mark(self, text: str) -> str:
        """Return the signature to add to the cursor `text` before it is sent to the client."""
        cursor = parse_cursor(text)
        assert cursor is not None  # cannot be None, because the server itself wrote the cursor
        return self._tickets.mark(cursor, self._client_id, self._channel)


def resume_limits_of(hub: HubCore, identity: Identity, channel: str) -> ResumeLimits | None:
    """Return the resume limits of `identity`; None if it may read the whole history."""
    if identity.has("history", channel):
        return None
    return ResumeLimits(hub.tickets, identity.client_id, channel)


def known_since(resume_limits: ResumeLimits | None, cursor: Cursor | None) -> Cursor | None:
    """Return the cursor from which a viewer may resume, given the cursor that it sent."""
    return cursor if resume_limits is None else resume_limits.known(cursor)
