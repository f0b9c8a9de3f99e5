"""Tickets over HTTP: a token, shown once in a header, for a stream that can send none.

Layer: transports.

What a ticket is stands in `hub.tickets`; `sse.admit_stream` takes it at the door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from starlette.responses import Response

from holdfast.core.names import check_channel
from holdfast.hub.tickets import START_S

if TYPE_CHECKING:
    from holdfast.transports.http import Call


class AskTicket(Struct, frozen=True, kw_only=True):
    """`POST /v1/tickets`."""

    channel: str


class TicketIssued(Struct, frozen=True, kw_only=True):
    """A ticket, and how soon it must be used."""

    ticket: str
    expires_s: int = START_S


_ask = msgspec.json.Decoder(AskTicket)


async def create_ticket(call: Call) -> Response:
    """`POST /v1/tickets`. Raises Forbidden unless the caller may subscribe to the channel."""
    asked = await call.body(_ask)
    ticket = call.hub.tickets.issue(call.identity, check_channel(asked.channel))
    body = msgspec.json.encode(TicketIssued(ticket=ticket))
    return Response(body, status_code=201, media_type="application/json", headers={"cache-control": "no-store"})
