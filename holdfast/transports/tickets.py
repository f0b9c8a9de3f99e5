"""The bodies of `POST /v1/tickets`: a token is sent once in a header, for a stream that can send no header.

Layer: transports.

`hub.tickets` makes and verifies tickets, `http` issues them, and `access.admit_stream` accepts them.
"""

from __future__ import annotations

from msgspec import Struct

from holdfast.hub.tickets import START_S


class CreateTicket(Struct, frozen=True, kw_only=True):
    """A request for a ticket that opens one stream of `channel`."""

    channel: str


class TicketIssued(Struct, frozen=True, kw_only=True):
    """A ticket, and how soon it must be used."""

    ticket: str
    expires_s: int = START_S
