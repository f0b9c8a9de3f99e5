"""Stored items of OpenAI's API: conversations, the input of a response, and references to items.

Layer: interop.

A conversation is a channel. The ids of conversations and items name what they mean, so there is no table of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenuto import Hub
from tenuto import Message as Stored
from tenuto.core.errors import Deleted, Forbidden, InvalidName, InvalidRequest, NotFound
from tenuto.interop.adapter import body_of
from tenuto.interop.fold import Json
from tenuto.interop.openai_input import MAX_EARLIER, given_in_items
from tenuto.interop.openai_items import ITEMS, Reference, conversation_id, input_items, reference, unknown, with_options
from tenuto.interop.openai_stream import events_of
from tenuto.routes import Access, TurnStatus

MAX_NEW = 20  # items of one request, as in OpenAI's API
_LARGEST_PAGE = 100


async def turn_of(access: Access, of: Reference, kind: str = "response", param: str | None = None) -> TurnStatus:
    """Return the turn of a response or an item. Raises NotFound, also for a place that the turn does not have."""
    try:
        status = await access.turn(of.channel, of.message_id)
    except (NotFound, Deleted):
        raise unknown(kind, of.id(), param) from None
    a, index = of.start
    has_place = not any(of.start) or (a < len(status.answers) and index <= len(status.answers[a].parts))
    if status.message is None or (kind == "response" and not (status.message.role == "user" and has_place)):
        raise unknown(kind, of.id(), param)
    return await _asked(access, of.channel, status)


async def _asked(access: Access, channel: str, status: TurnStatus) -> TurnStatus:
    """Return the status with all that the request of its question asks for."""
    assert status.message is not None
    return replace(status, message=with_options(status.message, await access.options(channel, status.message)))


def output_of(status: TurnStatus, channel: str) -> list[Json]:
    """Return the output items of a turn."""
    assert status.message is not None
    return list(events_of(status, Reference(channel, status.message.id)).response()["output"])


async def with_references(access: Access, body: Json) -> Json:
    """Return a request without a previous response with the items in place of the references to them.

    Raises NotFound for an item that does not exist, or that the caller may not read.
    """
    given = body.get("input")
    if not isinstance(given, list) or body.get("previous_response_id") or body.get("conversation"):
        return body
    items: dict[str, Json] = {}
    turns: set[Reference] = set()
    for id in (one.get("id") for one in given if isinstance(one, dict) and one.get("type") == "item_reference"):
        of = reference(id, "input", prefixes=ITEMS, kind="item")
        if (turn := of.at()) not in turns:
            turns.add(turn)
            if len(turns) > MAX_EARLIER:
                raise InvalidRequest(
                    f"the input has references to more than {MAX_EARLIER} messages; send fewer", param="input"
                )
            with suppress(Forbidden, InvalidName, NotFound):  # another person's item is unknown
                access.check(of.channel, "history")
                status = await turn_of(access, turn, "item", "input")
                assert status.message is not None
                found = [*input_items(of.channel, status.message), *output_of(status, of.channel)]
                items |= {one["id"]: one for one in found}
        if id not in items:
            raise unknown("item", id, "input")
    is_reference = [isinstance(one, dict) and one.get("type") == "item_reference" for one in given]
    return {
        **body,
        "input": [items[one["id"]] if is_one else one for one, is_one in zip(given, is_reference, strict=True)],
    }


def page_of(items: list[Json], request: Request) -> Response:
    """Return the page of `items`, oldest first, for which a request asks with `order`, `after` and `limit`."""
    query = request.query_params
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be asc or desc, got {order!r:.80}", param="order")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= _LARGEST_PAGE):
        raise InvalidRequest(f"limit must be from 1 to {_LARGEST_PAGE}, got {limit!r:.80}", param="limit")
    ordered = items if order == "asc" else items[::-1]
    if (after := query.get("after")) is not None:
        place = next((number for number, one in enumerate(ordered) if one["id"] == after), None)
        if place is None:
            raise unknown("item", after, "after")
        ordered = ordered[place + 1 :]
    return JSONResponse(list_of(ordered[: int(limit)], has_more=len(ordered) > int(limit)))


def list_of(items: list[Json], *, has_more: bool = False) -> Json:
    """Return a list of OpenAI's API."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": items, "has_more": has_more, **ends}


class Conversations:
    """The routes of conversations. `begin` returns the channel of a new one."""

    def __init__(self, hub: Hub, begin: Callable[[Access, Json, str], str]) -> None:
        self._hub = hub
        self._begin = begin

    async def create(self, request: Request) -> Response:
        """Return a new conversation, with the messages that the request brings."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, "send fewer items")
        if body.get("metadata"):
            raise InvalidRequest("a conversation has no metadata here; keep it in your app", param="metadata")
        id = secrets.token_hex(16)
        channel = self._begin(access, body, id)
        access.check(channel, "history", "publish")
        if body.get("items") and id not in channel:
            raise InvalidRequest(
                f"channel {channel!r} must not get items, because all requests share it; send none", param="items"
            )
        await self._store(access, channel, body)
        return JSONResponse(_conversation(channel, []))

    async def retrieve(self, request: Request) -> Response:
        """Return a conversation."""
        access, channel = await self._access(request)
        return JSONResponse(_conversation(channel, (await access.history(channel, after=0, limit=1)).messages))

    async def items(self, request: Request) -> Response:
        """Return a page of the items."""
        access, channel = await self._access(request)
        return page_of(await self._items(access, channel), request)

    async def item(self, request: Request) -> Response:
        """Return one item."""
        access, channel = await self._access(request)
        id = request.path_params["item"]
        found = next((one for one in await self._items(access, channel) if one["id"] == id), None)
        if found is None:
            raise unknown("item", id)
        return JSONResponse(found)

    async def add(self, request: Request) -> Response:
        """Store messages, and return them as items. Messages of other roles than `user` need `append`."""
        access, channel = await self._access(request)
        body = await body_of(access, request, "send fewer items")
        return JSONResponse(list_of(await self._store(access, channel, body, is_new=False)))

    async def _access(self, request: Request) -> tuple[Access, str]:
        of = reference(request.path_params["id"], prefixes=("conv_",), kind="conversation")
        return await self._hub.authorize(request.scope, of.channel, ["history"]), of.channel

    async def _items(self, access: Access, channel: str) -> list[Json]:
        items: list[Json] = []
        for status in await access.conversation(channel):
            items += input_items(channel, status.message or status.answers[0])
            if status.message is not None:
                items += output_of(await _asked(access, channel, status), channel)
        return items

    async def _store(self, access: Access, channel: str, body: Json, *, is_new: bool = True) -> list[Json]:
        given = body.get("items") or []
        if not isinstance(given, list) or len(given) > MAX_NEW or (not given and not is_new):
            raise InvalidRequest(f"items must be a list of 1 to {MAX_NEW} items, got {given!r:.80}", param="items")
        messages = given_in_items(given) if given else []
        access.check(channel, *{"publish" if is_new or role == "user" else "append" for role, _ in messages})
        items: list[Json] = []
        for role, parts in messages:
            id = secrets.token_hex(16)
            items += input_items(channel, await access.remember(channel, id=id, role=role, parts=parts))
        return items


def _conversation(channel: str, first: list[Stored]) -> Json:
    created_at = first[0].created_at // 1000 if first else 0
    return {"id": conversation_id(channel), "object": "conversation", "created_at": created_at, "metadata": {}}
