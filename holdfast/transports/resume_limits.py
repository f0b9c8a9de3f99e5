"""How far back a viewer may look: a cursor is a wish to be told all that came since, and anybody can write one.

Layer: transports.

Whoever holds `history` may come with any cursor. Whoever may only subscribe is owed what comes
from the moment they attached: their cursors are marked, for the client and the channel, and one that is not marked is
no cursor. How a mark looks may change freely, since cursors are opaque; that nobody else can make one may not.
"""

from __future__ import annotations

from holdfast.core.cursor import Cursor, parse_cursor
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity
from holdfast.hub.tickets import Tickets


class ResumeLimits:
    """What a viewer of one channel may come back to, who may not look at what was before."""

    __slots__ = ("_channel", "_client_id", "_tickets")

    def __init__(self, tickets: Tickets, client_id: str | None, channel: str) -> None:
        self._tickets = tickets
        self._client_id = client_id
        self._channel = channel

    def known(self, cursor: Cursor | None) -> Cursor | None:
        """`cursor` if it was given to this client, else none."""
        if cursor is None or not self._tickets.is_marked(cursor, self._client_id, self._channel):
            return None
        return cursor

    def mark(self, text: str) -> str:
        """What the cursor `text` carries when it is given out."""
        cursor = parse_cursor(text)
        assert cursor is not None  # it is one of ours
        return self._tickets.mark(cursor, self._client_id, self._channel)


def resume_limits_of(hub: HubCore, identity: Identity, channel: str) -> ResumeLimits | None:
    """What `identity` may come back to; None where it may look at everything."""
    if identity.has("history", channel):
        return None
    return ResumeLimits(hub.tickets, identity.client_id, channel)


def known_since(resume_limits: ResumeLimits | None, cursor: Cursor | None) -> Cursor | None:
    """The cursor that a viewer may continue after, of the one that it came with."""
    return cursor if resume_limits is None else resume_limits.known(cursor)
