"""The bodies of `POST /v1/tickets`, which exchanges a token in a header for a ticket in a stream's URL.

Layer: transports.

`hub.tickets` makes and verifies tickets, `http` issues them, and `access.admit_stream` accepts them.
"""

from __future__ import annotations

from msgspec import Struct

from tenuto.hub.access.tickets import START_S


class CreateTicket(Struct, frozen=True, kw_only=True):
    """A request for a ticket that opens one stream of `channel`."""

    channel: str


class TicketIssued(Struct, frozen=True, kw_only=True):
    """A ticket, and the time within which it must be used."""

    ticket: str
    expires_s: int = START_S
