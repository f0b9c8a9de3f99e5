"""`POST /v1/visitor`: who the caller is, the channel to begin with, and the chats that it has.

Layer: transports.

A page asks this before it connects. The response sets the cookie of a new visitor. It also carries a token: for a page
of another origin, because browsers block the cookies of other sites, and for a new visitor with `?token=1`, whose
browser keeps no cookies.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tenuto.core.errors import NoVisitors
from tenuto.core.visitor_ids import STEM, is_visitor
from tenuto.hub.access.identity import Scope
from tenuto.hub.access.visitors import VisitorVerifier, visit_in
from tenuto.hub.hub import HubCore
from tenuto.hub.keep.conversations import read_conversations
from tenuto.transports.access import check_serving, identify
from tenuto.transports.calls import json_response
from tenuto.transports.headers import headers_of
from tenuto.transports.origin import is_own_origin
from tenuto.transports.traffic import EXPECTED_BYTES, charge


async def visitor(hub: HubCore, request: Request) -> Response:
    """Return the caller's id, channel and chats. Raises NoVisitors, and the errors of `identify`."""
    guests = hub.authenticate
    if not isinstance(guests, VisitorVerifier):
        raise NoVisitors(
            "this hub has no chats of a visitor's own: set Hub(authenticate=visitors()), or name the chat with "
            "the attribute channel of <tenuto-chat>"
        )
    scope = dict(request.scope)
    identity = await identify(hub, scope)
    await check_serving(hub)
    charge(hub, identity, scope, EXPECTED_BYTES // 4)  # it reads the beginnings of many chats
    about: dict[str, Any] = {"id": identity.client_id, "channel": None, "chats": []}
    channel = f"{STEM}{identity.client_id}"
    if identity.client_id is not None:
        if identity.has("publish", channel) and identity.has("subscribe", channel):
            about["channel"] = channel
        if not visit_in(scope).is_new:  # a new visitor has none
            about["chats"] = [
                {"channel": one.channel, "title": one.title, "updated_ms": one.updated_ms}
                for one in await read_conversations(hub, identity, [channel, f"{channel}.*"])
            ]
    # a page that may keep no cookie says so; a visitor that has one gets no token, which a script could carry away
    needs_token = _is_foreign(hub, scope) or (visit_in(scope).is_new and "token" in request.query_params)
    if is_visitor(identity.client_id) and needs_token:
        assert identity.client_id is not None
        about["token"] = guests.token_of(identity.client_id)
    return json_response(about)


def _is_foreign(hub: HubCore, scope: Scope) -> bool:
    """Return whether a page of another origin than the hub's sent the request."""
    return any(not is_own_origin(hub, scope, origin) for origin in headers_of(scope, b"origin"))
