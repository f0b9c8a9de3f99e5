"""`POST /v1/visitor`: who the caller is, the channel to begin with, and the chats that it has.

Layer: transports.

A page asks this before it connects. The response sets the cookie of a new visitor. Where a page of another origin asks,
it also carries a token, because browsers block the cookies of other sites.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tenuto.core.document import restore
from tenuto.core.errors import NoVisitors
from tenuto.core.model import ChannelSummary, Message
from tenuto.core.visitor_ids import STEM, is_visitor
from tenuto.hub.archive import MAX_LISTED
from tenuto.hub.hub import HubCore
from tenuto.hub.identity import Identity, Scope
from tenuto.hub.visitors import VisitorVerifier, visit_in
from tenuto.transports.access import check_serving, identify
from tenuto.transports.calls import json_response
from tenuto.transports.headers import headers_of
from tenuto.transports.origin import is_own_origin
from tenuto.transports.traffic import EXPECTED_BYTES, charge

MAX_CHATS = 50  # chats in a response
MAX_PAGES = 4  # pages of channels that are read; a visitor with more chats gets the newest of these
TITLE_CHARACTERS = 60
_TITLE_MESSAGES, _TITLE_BYTES = 4, 16 * 1024  # the beginning of a chat, in which its first question is looked for


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
            about["chats"] = await _chats(hub, identity, channel)
    if is_visitor(identity.client_id) and _is_foreign(hub, scope):
        assert identity.client_id is not None
        about["token"] = guests.token_of(identity.client_id)
    return json_response(about)


def _is_foreign(hub: HubCore, scope: Scope) -> bool:
    """Return whether a page of another origin than the hub's sent the request."""
    return any(not is_own_origin(hub, scope, origin) for origin in headers_of(scope, b"origin"))


async def _chats(hub: HubCore, identity: Identity, channel: str) -> list[dict[str, Any]]:
    """Return the caller's chats, newest first."""
    found: list[ChannelSummary] = []
    for _ in range(MAX_PAGES):
        after = found[-1].channel if found else None
        page = await hub.store.summaries([channel, f"{channel}.*"], after=after, limit=MAX_LISTED)
        found += page
        if len(page) < MAX_LISTED:
            break
    readable = [one for one in found if identity.has("history", one.channel)]
    newest = sorted(readable, key=lambda one: (one.updated_ms, one.channel), reverse=True)[:MAX_CHATS]
    return [
        {"channel": one.channel, "title": await _title(hub, one.channel), "updated_ms": one.updated_ms}
        for one in newest
    ]


async def _title(hub: HubCore, channel: str) -> str:
    """Return the first words of the first question of a chat; empty if it has none."""
    page = await hub.store.page(channel, before=None, after=0, limit=_TITLE_MESSAGES, limit_bytes=_TITLE_BYTES)
    messages: list[Message] = [restore(stored).message() for stored in page.messages]
    for message in messages:
        if message.role == "user":
            texts = [str(part["text"]) for part in message.parts if part.get("type") == "text"]
            return _beginning(" ".join(" ".join(texts)[: 8 * TITLE_CHARACTERS].split()))
    return ""


def _beginning(text: str) -> str:
    """Return the first words of `text`, at most `TITLE_CHARACTERS` characters."""
    if len(text) <= TITLE_CHARACTERS:
        return text
    words, _, _ = text[:TITLE_CHARACTERS].rpartition(" ")
    return f"{words or text[: TITLE_CHARACTERS - 1]}…"
