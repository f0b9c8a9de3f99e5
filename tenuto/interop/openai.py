"""The routes of OpenAI's API: the SDK `openai` works on a hub unmodified.

Layer: interop.

`OpenAI(hub).install(app, "/v1")` adds Responses, Chat Completions and the list of models to an app. A model is an
agent. A response id names a channel and a message, so each server of the same store knows it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from tenuto import Hub, Message
from tenuto.core.errors import (
    AlreadyAnswered,
    Deleted,
    Draining,
    Finished,
    Forbidden,
    IdConflict,
    InvalidName,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    StillStreaming,
    TenutoError,
    TooLarge,
    TooMany,
)
from tenuto.interop.adapter import (
    Endpoint,
    body_of,
    check_template,
    fields_in,
    hashed,
    json_response,
    output_part,
    read_messages,
    requested_in,
    stored_parts,
)
from tenuto.interop.fold import Json, Place, call_of, encode
from tenuto.interop.openai_stream import (
    CALLS,
    CONVERSATION,
    CUSTOM,
    LIMIT,
    STEERS,
    Asked,
    ChatStream,
    Reference,
    TurnEvents,
    error_of,
    input_items,
    reference,
    unknown,
)
from tenuto.routes import (
    ATTEMPT,
    PARTICIPANT,
    Access,
    RouteSocket,
    TurnDelta,
    TurnStatus,
    deltas_of,
    guarded,
    has_result,
    leading_to,
    options_in,
    own_tools,
)

logger = logging.getLogger("tenuto.transports")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MAX_NEW = 20  # items of one request, as in OpenAI's API
_MAX_PASSES = 10  # of DELETE over a conversation in which its caller goes on storing messages
_MAX_READ = 1000  # messages among which the further input of a question, or the way to one, is looked for
_GONE = "conversation.deleted"  # id of a deleted message in each conversation that was deleted
_NEWEST = 20  # newest messages of a conversation among which the turn to reply to is looked for
SHORTER = "send only what is new, with previous_response_id"
SHORTER_CHAT = "send fewer messages, or responses with previous_response_id"


class OpenAI:
    """The routes of OpenAI's API: `OpenAI(hub).install(app, "/v1")`.

    A model is the name of an agent; `models` has further names of them, for clients that fix the name of their model:
    `{"gpt-4o": "bot"}`. A request without a previous response begins a new channel: that of the agent's pattern, with
    an id in place of the star, or `channel`, where `{model}` (the agent's name), `{client}` and `{id}` are replaced.
    """

    def __init__(self, hub: Hub, *, channel: str | None = None, models: Mapping[str, str] | None = None) -> None:
        self._hub = hub
        self._channel = check_template(channel) if channel is not None else None
        self._models = dict(models or {})

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        path = path.rstrip("/")
        routes: dict[str, dict[str, Endpoint]] = {
            f"{path}/responses": {"POST": self._create},
            **{f"{path}/responses/{name}": {} for name in ("compact", "input_tokens")},  # else they would be ids
            f"{path}/responses/{{id}}": {"GET": self._retrieve, "DELETE": self._delete},
            f"{path}/responses/{{id}}/input_items": {"GET": self._input_items},
            f"{path}/responses/{{id}}/cancel": {"POST": self._cancel},
            f"{path}/conversations": {"POST": self._create_conversation},
            f"{path}/conversations/{{id}}": {"GET": self._conversation, "DELETE": self._delete_conversation},
            f"{path}/conversations/{{id}}/items": {"GET": self._list_items, "POST": self._add_items},
            f"{path}/conversations/{{id}}/items/{{item}}": {"GET": self._item, "DELETE": self._delete_item},
            f"{path}/chat/completions": {"POST": self._complete},
            f"{path}/models": {"GET": self._list_models},
            f"{path}/models/{{id:path}}": {"GET": self._model},
        }
        app.router.routes[:0] = [
            WebSocketRoute(f"{path}/responses", self),
            *(Route(path, _by_method(endpoints), methods=_METHODS) for path, endpoints in routes.items()),
        ]
        default, no_route = app.router.default, Route(f"{path}/{{rest:path}}", _by_method({}), methods=_METHODS)

        async def last(scope: Scope, receive: Receive, send: Send) -> None:
            """Answer where the app has no route, so that those that it adds later are not hidden."""
            is_own = bool(path) and scope["type"] == "http" and no_route.matches(scope)[0] is Match.FULL
            await (no_route.app if is_own else default)(scope, receive, send)

        app.router.default = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a socket of Responses, as its ASGI app."""
        await self._hub.serve_socket(scope, receive, send, lambda socket: _Socket(socket, self._begin_response).run())

    async def _create(self, request: Request) -> Response:
        """Store the question, or answer the agent, and respond as `stream` and `background` say."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER)
        asked = await self._begin_response(access, body, request.headers.get("idempotency-key"))
        is_streamed = body.get("stream") is True
        if body.get("background") is True and not is_streamed:
            return json_response(response_of(*await turn_of(access, asked.of)))
        del body  # it may be large, and the turn may take long
        return await respond(access, request, TurnEvents(asked), is_streamed=is_streamed)

    async def _complete(self, request: Request) -> Response:
        """Begin a channel with the messages, and respond with the completion."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER_CHAT)
        given = given_in_chat(body)
        body.pop("previous_response_id", None)  # this API has no such field
        asked = await self._begin(access, body, given, request.headers.get("idempotency-key"))
        is_streamed = body.get("stream") is True
        has_usage = is_streamed and (body.get("stream_options") or {}).get("include_usage") is True
        del body, given  # they may be large, and the turn may take long
        return await respond(access, request, ChatStream(asked, has_usage=has_usage), is_streamed=is_streamed)

    async def _begin_response(self, access: Access, body: Json, key: str | None = None) -> Asked:
        """Begin the response that a request asks for (`_begin`)."""
        conversation, previous = body.get("conversation"), body.get("previous_response_id")
        if conversation is not None and previous is not None:
            raise InvalidRequest("send a conversation or a previous_response_id, not both", param="conversation")
        into: Reference | None = None
        if conversation is not None:
            id = conversation.get("id") if isinstance(conversation, dict) else conversation
            into = reference(id, "conversation", kind="conversation")
        elif previous is not None:
            into = reference(previous, "previous_response_id")
        items = body.get("input")
        # a client may name no response, and send a whole conversation that ends with an approval
        new = [*takewhile(_is_new, reversed(items))][::-1] if isinstance(items, list) and into is None else []
        before = [*takewhile(lambda one: one.get("type") != "mcp_approval_response", new)]
        if len(before) < len(new) and isinstance(id := new[len(before)].get("approval_request_id"), str):
            # an approval names its turn; the items before it are in the store, but for outputs of the same turn
            into = reference(id, "input", kind="approval").at()
            items = [*(one for one in before if one.get("type") in _REPLIES), *new[len(before) :]]
        items = await with_references(access, items, into, "input")
        return await self._begin(access, body, given_in_responses(items, is_first=into is None), key, into)

    async def _begin(
        self, access: Access, body: Json, given: GivenInput, key: str | None, into: Reference | None = None
    ) -> Asked:
        """Return the response that the caller gets, with the question of its turn.

        `key` is the same for a repeated request. `into` is the response or the conversation that it continues.
        """
        id = hashed(access.identity.client_id or "", key) if key else secrets.token_hex(16)
        options = options_in(body)
        parent: str | UnsetType | None = UNSET  # that is, the newest message of the channel
        if into is None:
            needs = ("subscribe", "history", "publish")
            channel = self._new_channel(access, body.get("model"), id, needs, is_empty=not given.earlier)
        else:
            channel, is_response = into.channel, bool(into.message_id)  # else it is a conversation
            reply = ["command"] if given.approvals else [] if given.outputs else ["publish"]  # outputs: checked later
            access.check(channel, "subscribe", "history", *reply)
            may_append = access.identity.has("append", channel)  # else system messages are instructions
            if not may_append and (told := given.take_instructions()):
                body = {**body, "instructions": "\n\n".join(filter(None, [options.get("instructions"), told]))}
                options = options_in(body)
            if not may_append and any(role != "user" for role, _ in given.earlier):
                detail = f"a message of another role than user needs the capability 'append' on channel {channel!r}"
                raise Forbidden(f"{detail} in a stored conversation; send what the agent is to do as instructions")
            if not is_response:
                await _check_exists(access, channel, "conversation")
                options[CONVERSATION] = True
                into = await self._turn_in(access, channel, given)
            if into is not None:
                asked, status = await turn_of(access, into, param="previous_response_id")
                if (rest := await self._reply(access, asked, status, given)) is not None:
                    return asked._replace(of=rest)
                if is_response and asked.options.get(CONVERSATION):  # a branch would hide its messages
                    raise InvalidRequest("it is of a conversation; send `conversation`", param="previous_response_id")
                parent = (await _last_of(access, asked, status)).id if is_response else UNSET
            if not is_response or body.get("model") is not None:
                self._agent(access, body.get("model"), channel)  # raises if it is not the one that answers
        parts = [*given.outputs.values(), *given.parts]  # outputs that are no replies begin a turn
        if not parts:
            raise NotFound("the input replies to a question that has a reply; send a message")
        repeated = [await _found(access, channel, one) for one in ((f"{id}.0", id) if key else ())]
        if first := next(filter(None, repeated), None):  # its first message, or else its question
            parent = first.parent if parent is not UNSET else UNSET  # meanwhile its branch may be longer
        with _about(lambda: _refused(access, body, options), key):
            if not any(repeated[1:]):  # else the question is stored, and they would come behind it
                await _store_earlier(access, channel, id, given, parent)
            if given.earlier and parent is not UNSET:
                parent = f"{id}.{len(given.earlier) - 1}"
            question = await access.create(channel, id=id, parts=parts, parent=parent, options=options)
        of = Reference(channel, question.id)  # of a repeated request the turn may have been answered again since
        return (await turn_of(access, of))[0] if any(repeated[1:]) else Asked(of, question, options)

    async def _turn_in(self, access: Access, channel: str, given: GivenInput) -> Reference | None:
        """Return the turn to which the input replies; without replies one that asks, if any. Raises NotFound."""
        replies = [*(one.id("mcpr_") for one in given.approvals), *given.outputs]
        if own := [one.at() for one in given.approvals if one.channel == channel]:
            return own[0]  # an approval names its turn
        turns = await access.conversation(channel, limit=_NEWEST) if replies else await access.open_turns(channel)
        for status in reversed(turns):
            calls = {part["call"] for one in status.answers for part in one.parts if part["type"] == "tool"}
            if status.message is not None and (calls & given.outputs.keys() or (not replies and status.questions)):
                return Reference(channel, status.message.id)
        if replies:
            raise _no_call(replies[0])
        return None

    def _new_channel(self, access: Access, model: object, id: str, needs: Sequence[str], *, is_empty: bool) -> str:
        """Return the channel that a request begins, with messages before its question unless it `is_empty`."""
        agent, pattern = self._agent(access, model)
        names = {"model": agent, "client": access.identity.client_id or "anonymous", "id": id}
        template = self._channel or pattern.replace("*", "{id}")
        channel = re.sub(r"\{(model|client|id)\}", lambda found: names[found[1]], template)
        access.check(channel, *needs)
        if not is_empty and id not in channel:
            detail = f"the agent answers all requests in channel {channel!r}"
            raise InvalidRequest(f"{detail}: send the question without earlier messages, or a previous_response_id")
        return channel

    async def _reply(self, access: Access, asked: Asked, status: TurnStatus, given: GivenInput) -> Reference | None:
        """Send the replies that a request has, and return the response that follows them; None for a new turn."""
        of, answers = asked.of, status.answers
        open_calls = {call: one.id for one in status.questions if (call := call_of(one.data))}
        for approval in given.approvals:
            await _check_approval(access, asked, status, approval)
        replied_to = {*(one.question for one in given.approvals), *map(open_calls.get, given.outputs)}
        is_message = bool(given.parts or given.earlier)
        if is_message and any(one.id in replied_to for one in status.questions):
            detail = "the input has a reply to a call that waits for it, and a message"
            raise InvalidRequest(f"{detail}; send the message when the response to the reply has ended", param="input")
        own = own_tools(asked.options)
        calls = {  # of the caller's tools, each with its place
            part["call"]: ((a, index), part)
            for a, answer in enumerate(answers)
            for index, part in enumerate(answer.parts)
            if part["type"] == "tool" and part["name"] in own
        }
        if strange := [call for call in given.outputs if call not in calls]:
            raise _no_call(strange[0])
        left = {call: calls[call][0] for call in sorted(calls.keys() & open_calls.keys() - given.outputs.keys())}
        is_asker = asked.question.author == access.identity.client_id  # a message of another person may wait
        # calls that the request leaves open are in the new response again, which needs an id of its own
        if missing := [call for call, place in left.items() if (is_asker if is_message else place <= of.start)]:
            detail = f"No tool output found for function call {', '.join(missing)[:200]}"
            raise InvalidRequest(f"{detail}; send the outputs of all calls, or cancel the response", param="input")
        targets = [of.message_id, *(one.id for one in answers)]  # of the agent's questions in this turn
        places, is_over, known = list[Place](), status.state == "over", set[str]()  # known: calls asked about
        if any(call not in open_calls and not has_result(calls[call][1]) for call in given.outputs):
            questions = access.questions(of.channel, targets, after=asked.question.created, is_approved=is_over)
            known = {call_of(data) for data in await questions}
        for approval, reply in given.approvals.items():
            with suppress(AlreadyAnswered):  # another client may have been faster: the response has the outcome
                await access.reply(of.channel, approval.question, **reply)
            places.append(approval.start)
        for call, one in list(given.outputs.items()):
            place, part = calls[call]
            if call in open_calls:
                with suppress(AlreadyAnswered):
                    await access.reply(of.channel, open_calls[call], data=one["data"]["output"])
            elif not has_result(part) and call not in known:
                continue  # the agent has not asked for the output
            del given.outputs[call]  # sent now, or known already
            places.append((place[0], place[1] + 1))
        if not places or is_message:
            if given.outputs and not is_over:
                detail = f"the turn runs, and its agent has not asked for the output of {', '.join(given.outputs)[:99]}"
                raise StillStreaming(f"{detail}; send it again when the turn has ended", param="input")
            return None  # the agent has ended its turn, so these outputs begin a new one
        # behind the last output, or at the first approved call, which gets its result; a call left open is sent anew
        a, index = min([max(places) if not given.approvals else min(places), *left.values()])
        return of._replace(start=(a, index), attempt=sum(part["type"] == ATTEMPT for part in answers[a].parts[:index]))

    async def _retrieve(self, request: Request) -> Response:
        wanted = fields_in(request.query_params, Retrieval)
        access, asked, status = await self._response_in(request, *(["subscribe"] if wanted.stream else []), "history")
        if not wanted.stream:
            return json_response(response_of(asked, status))
        return access.stream(asked.of.channel, asked.of.message_id, TurnEvents(asked, wanted.starting_after))

    async def _delete(self, request: Request) -> Response:
        """Delete what the request of the caller brought, and the answers."""
        access, (of, question, *_), _ = await self._response_in(request, "history", "publish")
        if any(of.start):
            raise InvalidRequest(f"the response is the rest of a turn; delete the one that began it, {of.at().id()!r}")
        *earlier, _ = await _brought(access, of.channel, question)
        # the question last, and before it its first message: until then a repeated request finds the others
        for one in (*reversed(earlier), question):
            with suppress(NotFound):  # another request has removed it
                await access.delete_turn(of.channel, one.id)
        return json_response({"id": of.id(), "object": "response", "deleted": True})

    async def _input_items(self, request: Request) -> Response:
        """Return the messages that the request of the response brought; replies are not kept."""
        access, (of, question, *_), _ = await self._response_in(request, "history")
        brought = [] if any(of.start) else await _brought(access, of.channel, question)
        items = [item for one in brought for item in input_items(of.channel, one)]
        page = fields_in(request.query_params, Page)
        return page.response(page.ordered(items))

    async def _cancel(self, request: Request) -> Response:
        """Cancel the turn for all clients, and respond when it has ended."""
        access, asked, status = await self._response_in(request, "subscribe", "history", "command")
        if status.state in ("waiting", "running"):
            with suppress(Finished):
                await access.command(asked.of.channel, "cancel", target=asked.of.message_id)
        events = TurnEvents(asked)
        events.is_cancelled = True
        return await respond(access, request, events)

    async def _response_in(self, request: Request, *needs: str) -> tuple[Access, Asked, TurnStatus]:
        """Return the access of the caller, the response that the path names, and its turn."""
        of = reference(request.path_params["id"])
        access = await self._hub.authorize(request.scope, of.channel, needs)
        return access, *await turn_of(access, of)

    # -- conversations: each is a channel -------------------------------------------------------------------------

    async def _create_conversation(self, request: Request) -> Response:
        """Return a new conversation, with the messages that the request brings."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, "send fewer items")
        if body.get("metadata"):
            raise InvalidRequest("a conversation has no metadata here; keep it in your app", param="metadata")
        id, model, agents = secrets.token_hex(16), body.get("model"), access.agents()
        if model is None and len(agents) > 1 and "{model}" in (self._channel or "{model}"):
            detail = 'the hub has several agents: the conversation needs the name of one, extra_body={"model": …}'
            raise InvalidRequest(f"{detail}, or a server with OpenAI(channel=…) without {{model}}", param="model")
        model = next(iter(agents), None) if model is None else model  # the channel is clear without one
        with _about("items"):
            channel = self._new_channel(access, model, id, ("history", "publish"), is_empty=not body.get("items"))
        await self._store_items(access, channel, body)
        return await _conversation_in(access, channel)

    async def _conversation(self, request: Request) -> Response:
        return await _conversation_in(*await self._in_conversation(request))

    async def _delete_conversation(self, request: Request) -> Response:
        """Delete the messages of the caller, with their answers. Raises Forbidden if those of others are left."""
        access, channel = await self._in_conversation(request, "publish")
        seen, last = set[str | None](), 0
        for _ in range(_MAX_PASSES):
            left = [one async for one in read_messages(access, channel, after=0, limit=2) if one.id != _GONE]
            if not left:
                break
            if left[0].created <= last:  # the pass before has left it
                raise Forbidden("the messages of others are left, and to delete them needs the capability 'admin'")
            asked = list[str]()
            async for message in read_messages(access, channel, after=last):
                one = message.id if message.author == access.identity.client_id else message.reply_to
                if one is not None and one not in seen:
                    asked.append(one)
                seen |= {message.id, one}
                last = message.created
            # The newest first: its answers are sought among the messages behind it, and no turn that waits begins.
            for one in reversed(asked):
                with suppress(Forbidden, NotFound):  # perhaps an agent's of this name, or another person's question
                    await access.delete_turn(channel, one)
        with suppress(Deleted, IdConflict):  # by an earlier request, or another person's at the same moment
            await access.remember(channel, id=_GONE, role="system", parts=[])
            await access.delete_turn(channel, _GONE)
        return json_response({"id": request.path_params["id"], "object": "conversation.deleted", "deleted": True})

    async def _list_items(self, request: Request) -> Response:
        access, channel = await self._in_conversation(request)
        page, found = fields_in(request.query_params, Page), list[Json]()
        turns = page.ordered(await access.conversation(channel, limit=_MAX_READ))
        if page.after is not None:
            begin = reference(page.after, "after", kind="item").message_id
            turns = [*dropwhile(lambda one: (one.message or one.answers[0]).id != begin, turns)]
        for status in turns:
            await asyncio.sleep(0)  # an answer may have many parts
            items = input_items(channel, status.message or status.answers[0])
            if (message := status.message) is not None:
                asked = Asked(Reference(channel, message.id), message, await access.options(channel, message))
                items += response_of(asked, status)["output"]
            found += page.ordered(items)
            if len(page.rest_of(found)) > page.limit:  # one more shows that there is another page
                break
        return page.response(found)

    async def _item(self, request: Request) -> Response:
        _, _, items = await self._item_in(request)
        return json_response(next(one for one in items if one["id"] == request.path_params["item"]))

    async def _add_items(self, request: Request) -> Response:
        """Store messages, and return them as items. Messages of other roles than `user` need `append`."""
        access, channel = await self._in_conversation(request)
        body = await body_of(access, request, "send fewer items")
        return json_response(list_of(await self._store_items(access, channel, body, is_new=False)))

    async def _delete_item(self, request: Request) -> Response:
        """Delete the message of an item that is the only one of its message or turn, and return the conversation."""
        access, of, items = await self._item_in(request, "publish")
        if len(items) > 1:
            detail = f"item {request.path_params['item'][:256]!r} goes with {len(items) - 1} others"
            raise InvalidRequest(f"{detail}; delete the response or conversation")
        await access.delete_turn(of.channel, of.message_id)
        return await _conversation_in(access, of.channel)

    async def _item_in(self, request: Request, *needs: str) -> tuple[Access, Reference, list[Json]]:
        """Return the access of the caller, the item that the path names, and the items of its message or turn."""
        access, channel = await self._in_conversation(request, *needs)
        of = reference(id := request.path_params["item"], kind="item")
        items = await _items_of(access, of.at()) if of.channel == channel else []
        if all(one["id"] != id for one in items):
            raise unknown("item", id)
        return access, of, items

    async def _in_conversation(self, request: Request, *needs: str) -> tuple[Access, str]:
        of = reference(request.path_params["id"], kind="conversation")
        access = await self._hub.authorize(request.scope, of.channel, ["history", *needs])
        if request.method != "DELETE":  # a DELETE may be a repeat
            await _check_exists(access, of.channel)
        return access, of.channel

    async def _store_items(self, access: Access, channel: str, body: Json, *, is_new: bool = True) -> list[Json]:
        """Store messages; return their items. A conversation that `is_new` may have none, and needs `publish` only."""
        given = body.get("items") or []
        if not isinstance(given, list) or len(given) > _MAX_NEW or (not given and not is_new):
            raise InvalidRequest(f"items must be a list of 1 to {_MAX_NEW} items, got {given!r:.80}", param="items")
        if any(isinstance(one, dict) and one.get("type") == "mcp_approval_response" for one in given):
            raise InvalidRequest("an approval is no item; send it as the input of a response", param="items")
        given = await with_references(access, given, Reference(channel), "items")
        with _about("items"):
            found = _given(given, joins_calls=False, is_whole=is_new) if given else GivenInput()
        access.check(channel, *{"publish" if is_new or role == "user" else "append" for role, _ in found.earlier})
        stored = await _store_earlier(access, channel, secrets.token_hex(16), found)
        return [item for one in stored for item in input_items(channel, one)]

    # -- models ---------------------------------------------------------------------------------------------------

    async def _list_models(self, request: Request) -> Response:
        agents = (await self._hub.authorize(request.scope)).agents()
        names = {*agents, *(name for name, agent in self._models.items() if agent in agents)}
        return json_response({"object": "list", "data": [_model_of(name) for name in sorted(names)]})

    async def _model(self, request: Request) -> Response:
        self._agent(await self._hub.authorize(request.scope), request.path_params["id"])
        return json_response(_model_of(request.path_params["id"]))

    def _agent(self, access: Access, model: object, channel: str | None = None) -> tuple[str, str]:
        """Return the name and the pattern of the agent `model`. Raises InvalidRequest if another serves `channel`."""
        if not isinstance(model, str):
            raise InvalidRequest(f"model must be an agent that GET /models lists, got {model!r:.80}", param="model")
        name, agents = self._models.get(model, model), access.agents()
        if name not in agents:
            raise NotFound(f"model {model[:64]!r} does not exist; use one that GET /models lists", param="model")
        serving = access.agents(channel)
        if serving and name not in serving:
            detail = f"the conversation is answered by {next(iter(serving))!r}, not by {name!r}"
            raise InvalidRequest(f"{detail}; send that model, or begin a new response", param="model")
        return name, agents[name]


def response_of(asked: Asked, status: TurnStatus) -> Json:
    """Return a response as it is now."""
    events = TurnEvents(asked)
    events.receive(deltas_of(status))
    return events.response()


async def turn_of(
    access: Access, of: Reference, kind: str = "response", param: str | None = None
) -> tuple[Asked, TurnStatus]:
    """Return a response, or that of an item, and its turn. Raises NotFound, also for a place that the turn lacks."""
    try:
        status = await access.turn(of.channel, of.message_id)
    except (NotFound, Deleted):
        raise unknown(kind, of.id(), param) from None
    a, index = of.start
    types = [[part["type"] for part in one.parts] for one in status.answers[a : a + 1]]
    # a superseded attempt may have had it
    has_place = not any(of.start) or any(index <= len(one) or ATTEMPT in one for one in types)
    if status.message is None or (kind == "response" and not (status.message.role == "user" and has_place)):
        raise unknown(kind, of.id(), param)
    return Asked(of, status.message, await access.options(of.channel, status.message)), status


async def _items_of(access: Access, of: Reference, param: str | None = None) -> list[Json]:
    """Return the items of a message: its own, and those of its answers. Raises NotFound."""
    asked, status = await turn_of(access, of, "item", param)
    return [*input_items(of.channel, asked.question), *response_of(asked, status)["output"]]


async def respond(access: Access, request: Request, events: TurnEvents, *, is_streamed: bool = False) -> Response:
    """Return the stream of a response whose question is stored, else the response when the turn has ended."""
    if is_streamed:
        stream = access.stream(events.of.channel, events.of.message_id, events)
        stream.problem_form = lambda problem: {"error": error_of({**problem, "response_id": events.of.id()})}
        return stream
    events.after = LIMIT  # no event before the last one is made
    headers = {"cache-control": "no-cache, no-transform", "x-should-retry": "false"}  # else the SDK asks again
    try:
        await access.follow(events.of.channel, events.of.message_id, events, request.receive)
    except (Draining, TooMany) as error:  # the question is stored
        with suppress(TenutoError):  # a `regenerate` may have broken it off: no byte was sent, so it begins anew
            if isinstance(error, Draining) and events.round:
                asked, turn = await turn_of(access, events.of)
                if turn.round != events.round:
                    return await respond(access, request, type(events)(asked))
        if events.is_cancelled and isinstance(error, TooMany):
            raise  # a client may cancel again
        problem = {**error.problem(), "response_id": events.of.id()}
        return JSONResponse({"error": error_of(problem)}, error.status, headers)
    status, body = events.whole()
    return Response(encode(body), status, headers, "application/json")


async def _found(access: Access, channel: str, id: str) -> Message | None:
    with suppress(NotFound, Deleted):
        return (await access.turn(channel, id)).message
    return None


async def _last_of(access: Access, asked: Asked, status: TurnStatus) -> Message:
    """Return the last message of a turn: an answer, or input behind it that the agent has taken in, or the question."""
    channel, question = asked.of.channel, asked.question
    last = max([question, *status.answers], key=lambda one: one.created)
    for one in (await access.history(channel, after=question.created, limit=_NEWEST)).messages:
        if one.role == "user" and one.parent in (question.id, last.id):
            await _found(access, channel, one.id)  # which loads it
            is_taken = access.taken_by(channel, one.id) == question.id
            if not is_taken and one.parent == question.id:
                return question  # another branch, from before the answer; a history has the answer to a question, too
            last = one if is_taken and one.created > last.created else last
    return last


async def _brought(access: Access, channel: str, question: Message) -> list[Message]:
    """Return the messages that one request brought, oldest first; `question` is the last of them."""
    ids = {f"{question.id}.{number}" for number in range(MAX_EARLIER)}  # another person may have taken one
    first = await _found(access, channel, f"{question.id}.0")
    brought = [question]
    limit = MAX_EARLIER if first is None else _MAX_READ  # None: perhaps deleted; else people may have written between
    async for one in read_messages(access, channel, before=question.created, limit=limit):
        if one.id in ids and one.author == question.author:
            brought.append(one)
        if first is not None and one.created <= first.created:
            break
    return brought[::-1]


async def _store_earlier(
    access: Access, channel: str, id: str, given: GivenInput, parent: str | UnsetType | None = UNSET
) -> list[Message]:
    """Store the earlier messages, whose ids begin with `id`, one behind the other, and return them."""
    stored: list[Message] = []
    for number, (role, parts) in enumerate(given.earlier):
        custom = sorted({one["name"] for one in parts if one.get(CUSTOM)})
        about: Any = {"role": role, "parts": parts, "parent": parent, "options": {CUSTOM: custom} if custom else {}}
        stored.append(await access.remember(channel, id=f"{id}.{number}", **about))
        parent = stored[-1].id if parent is not UNSET else UNSET
    return stored


async def _conversation_in(access: Access, channel: str) -> Response:
    first = (await access.history(channel, after=0, limit=1)).messages
    created_at = first[0].created_at // 1000 if first else int(time.time())  # it begins with its first message
    head = {"id": Reference(channel).id("conv_"), "object": "conversation"}
    return json_response({**head, "created_at": created_at, "metadata": {}})


async def _check_exists(access: Access, channel: str, param: str | None = None) -> None:
    """Raise NotFound for a conversation that was deleted, unless a message was stored since."""
    try:
        await access.turn(channel, _GONE)
    except (NotFound, Deleted) as error:
        if isinstance(error, Deleted) and not (await access.history(channel, after=0, limit=1)).messages:
            raise unknown("conversation", Reference(channel).id("conv_"), param) from None


def _no_call(id: str) -> NotFound:
    """Return the error about an output or an approval of a call that the response or the conversation does not have."""
    detail = f"the response has no call {id[:256]!r}; send the call_id of its function_call"
    return NotFound(f"{detail}, or the id of its mcp_approval_request", param="input")


async def with_references(access: Access, items: object, into: Reference | None, param: str) -> object:
    """Return the items of a request, from its field `param`, with stored items in place of the references to them.

    Those of `into`, the conversation or the branch that the request continues, are left out, as the store has them; so
    are approval requests. Raises NotFound for an item that does not exist, or that the caller may not read.
    """
    if not isinstance(items, list):
        return items
    named: dict[Reference, set[str]] = {}  # ids of items by their messages
    for one in items:
        if (id := _referred(one)) is not None and not (of := reference(id, param, kind="item")).question:
            named.setdefault(of.at(), set()).add(id)
    if len(named) > MAX_EARLIER:
        raise InvalidRequest(f"{param} refers to more than {MAX_EARLIER} messages; send fewer", param=param)
    channel = into.channel if into is not None else None
    path: set[str] | None = None  # only some messages of the channel lead to a response; a conversation has all
    if into is not None and into.message_id and any(of.channel == channel for of in named):
        last = await _last_of(access, *await turn_of(access, into, param="previous_response_id"))
        older = read_messages(access, into.channel, before=last.created + 1, limit=2 * MAX_EARLIER)
        path = leading_to([replace(one, parts=[]) async for one in older], last.id) | {into.message_id, last.id}
    found, size = dict[str, Json](), 0
    for of, ids in named.items():
        stored: list[Json] = []
        with suppress(Forbidden, InvalidName, NotFound):  # another person's item is unknown
            stored = [item for item in await _items_of(access, of, param) if item["id"] in ids]
        if strange := ids - {item["id"] for item in stored}:
            raise unknown("item", min(strange), param)
        if of.channel == channel and (path is None or of.message_id in path):
            continue  # `into` has them
        found |= {item["id"]: item for item in stored}
        size += sum(len(encode(item)) for item in stored)  # a reference is short, but its item is stored anew
        if size > (limit := access.limits.message_bytes):
            detail = f"the items that {param} refers to have more than {limit} bytes (Limits.message_bytes)"
            raise TooLarge(f"{detail}; {SHORTER}", limit=limit, param=param)
    pairs = [(one, _referred(one)) for one in items]  # each item once: each copy would be stored
    return [found.pop(id) if id else one for one, id in pairs if id is None or id in found]


def _is_new(item: Any) -> bool:
    """Return whether an item is of a kind that a client adds behind a response: a message of the user, or a reply."""
    return isinstance(item, dict) and (item.get("role") == "user" or item.get("type") in _REPLIES)


def _referred(item: Any) -> str | None:
    """Return the id in a reference to a stored item; None for other items."""
    if not isinstance(item, dict):
        return None
    kind, names = item.get("type"), item.keys() - {"type"}
    return _text(item, "id", param="input") if kind == "item_reference" or (kind is None and names == {"id"}) else None


class Retrieval(Struct, frozen=True):
    """The query of a request for a response; after -1 are all events."""

    stream: Annotated[bool, Meta(description="true or false")] = False
    starting_after: Annotated[int, Meta(ge=0, lt=LIMIT, description="the sequence_number of an event")] = -1


class Page(Struct, frozen=True):
    """The page of a list for which a request asks."""

    order: Annotated[Literal["asc", "desc"], Meta(description="asc or desc")] = "desc"
    limit: Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")] = 20
    after: str | None = None

    def ordered(self, oldest_first: list[Any]) -> list[Any]:
        """Return a list in the order of the page."""
        return oldest_first if self.order == "asc" else oldest_first[::-1]

    def rest_of(self, ordered: list[Json]) -> list[Json]:
        """Return the items behind `after`; without it, all."""
        return ordered if self.after is None else [*dropwhile(lambda one: one["id"] != self.after, ordered)][1:]

    def response(self, ordered: list[Json]) -> Response:
        """Return the page of items, which are in its order. Raises NotFound if `after` is none of them."""
        if self.after is not None and all(one["id"] != self.after for one in ordered):
            raise unknown("item", self.after, "after")
        rest = self.rest_of(ordered)
        return json_response(list_of(rest[: self.limit], has_more=len(rest) > self.limit))


def list_of(items: list[Json], *, has_more: bool = False) -> Json:
    """Return a list of OpenAI's API."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": items, "has_more": has_more, **ends}


def _model_of(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tenuto"}


async def _check_approval(access: Access, asked: Asked, status: TurnStatus, approval: Reference) -> None:
    """Raise NotFound unless this turn asks, or has asked, for an approval of the server's call at its place."""
    (a, index), command = approval.start, approval.question
    answers = status.answers if approval.at() == asked.of.at() else []
    part = answers[a].parts[index] if a < len(answers) and index < len(answers[a].parts) else {}
    is_call = part.get("type") == "tool" and part["name"] not in own_tools(asked.options)
    question = next((one for one in status.questions if one.id == command), None)
    if question is not None:
        is_call = is_call and question.name == "approve" and call_of(question.data) == part["call"]
    elif is_call:  # a reply to it has no effect, unless it is an open question of another turn
        is_call = all(one.id != command for one in await access.pending_commands(asked.of.channel))
    if not is_call:
        raise _no_call(approval.id("mcpr_"))


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    """Return the endpoint of a path. Its problem responses have the form of OpenAI's errors."""

    async def chosen(request: Request) -> Response:
        if not endpoints:
            raise NotFound(f"there is no route {request.url.path[:200]!r}; docs/openai.md lists them")
        endpoint = endpoints.get("GET" if request.method == "HEAD" else request.method)
        if endpoint is None:
            detail = f"method {request.method} is not supported at this path; use {', '.join(endpoints)}"
            raise MethodNotAllowed(detail, allow=[*endpoints])
        return await endpoint(request)

    return guarded(chosen, lambda problem: {"error": error_of(problem)})


# -- requests: messages, and replies to the agent ------------------------------------------------------------------

Role = Literal["user", "assistant", "system", "tool"]
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Items of earlier responses that a client may send again. Histories lack them, or the store has them (such as calls).
_RESENT = ("reasoning", *CALLS, "mcp_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response")
_REPLIES = ("function_call_output", "custom_tool_call_output", "mcp_approval_response")
MAX_EARLIER = 200  # messages before the question


@dataclass
class GivenInput:
    """The input of a request: earlier messages, the question, and replies to the agent."""

    earlier: list[tuple[Role, list[Json]]] = field(default_factory=list)  # role and parts
    parts: list[Json] = field(default_factory=list)  # of the question
    outputs: dict[str, Json] = field(default_factory=dict)  # parts with outputs of the caller's tools, by call
    approvals: dict[Reference, Json] = field(default_factory=dict)  # replies to the agent, by the approval's id
    calls: set[str] = field(default_factory=set)  # calls that the request brings
    beside: set[str] = field(default_factory=set)  # those in the last earlier message
    joins_calls: bool = True  # False: each item is a message of its own, so that it can be deleted

    def add(self, role: Role, parts: list[Json]) -> None:
        """Add a message. The last one of the user is the question; without `joins_calls` each item stays a message."""
        if not parts and role != "assistant":
            return
        if self.parts:
            self.earlier.append(("user", self.parts))
        self.parts = parts if role == "user" else []
        if role == "assistant" or not self.joins_calls:  # outputs that an answer follows reply to no open call
            self.earlier += [("user", [one]) for one in self.outputs.values()]
            self.outputs.clear()
        if role != "user":
            self.earlier.append((role, parts))  # without parts it may get calls
            self.beside.clear()

    def take_instructions(self) -> str:
        """Remove the messages of role system, but for those with files, and return their texts."""
        told = [one for one in self.earlier if one[0] == "system" and all(part["type"] != "file" for part in one[1])]
        self.earlier = [one for one in self.earlier if one not in told]
        return "\n\n".join(part["text"] for _, parts in told for part in parts if part["type"] == "text")

    def add_call(self, item: Json, call: str, **result: object) -> None:
        """Add a call, with its `result`: to the answer before, if no message of the user or output is between."""
        name, is_custom = _text(item, "name"), item["type"] == "custom_tool_call"
        given = _text(item, "input" if is_custom else "arguments")
        part = {"type": "tool", "call": call, "name": name, "input": given, CUSTOM: is_custom, **result}
        self.calls.add(call)
        is_next = bool(self.earlier) and self.earlier[-1][0] == "assistant" and not self.parts and not self.outputs
        if is_next and self.joins_calls:
            _check_single(call, self.beside)
            self.earlier[-1][1].append(part)
        else:
            self.add("assistant", [part])
        self.beside.add(call)

    def add_result(self, item: Json) -> None:
        """Add the call of a tool of the server with its result, once. A call without a result is in no history."""
        output, error, call = item.get("output"), item.get("error"), hashed(_text(item, "id"))
        if call in self.calls or (output is None and error is None):
            return
        match error:
            case {"content": [{"text": str(text)}]}:
                error = text
        state, result = ("done", output) if error is None else ("error", error)
        self.add_call(item, call, state=state, output=result)


@contextmanager
def _about(name: str | Callable[[], str], key: str | None = None) -> Iterator[None]:
    """Let an error about a value name the field `name` of the request, unless it names another one, or the `key`."""
    try:
        yield
    except (InvalidRequest, TooLarge) as error:
        error.details.setdefault("param", name if isinstance(name, str) else name())
        raise
    except IdConflict:  # an id is random, or that of a key
        raise IdConflict(f"the Idempotency-Key {str(key)[:64]!r} is that of another request; send a new one") from None


def _refused(access: Access, body: Json, options: Json) -> str:
    """Return the field that was refused: an option that cannot be stored, the largest one of too many, or the input."""
    fields = {name: options_in({name: body[name]}) for name in body}
    wrong = [name for name, found in fields.items() if _is_wrong(found, access.limits.depth)]
    if wrong or len(encode(options)) <= access.limits.options_bytes:
        return [*wrong, "messages" if "messages" in body else "input"][0]
    return max(fields, key=lambda name: len(encode(fields[name])))


def _is_wrong(value: Any, depth: int) -> bool:
    """Return whether `value` has an integer of more than 64 bits, or more than `depth` levels below it."""
    if isinstance(value, dict | list) and depth >= 0:
        return any(_is_wrong(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))
    return depth < 0 or (isinstance(value, int) and not -(2**63) <= value < 2**63)


@_about("input")
def given_in_responses(items: Any, *, is_first: bool) -> GivenInput:
    """Return the input of `POST /responses`, which begins a channel if `is_first`. Raises InvalidRequest."""
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    return _given(items, is_first=is_first, is_whole=is_first)


def further_input(items: object) -> list[Json]:
    """Return the parts of the input for a running response, with blank lines between its messages."""
    given = given_in_responses(items, is_first=False)
    if given.outputs or given.approvals or any(role != "user" for role, _ in given.earlier):
        raise InvalidRequest("the input of response.steer must be messages of the user; leave out other items")
    blank = {"type": "text", "text": "\n\n"}  # between two messages of the user that steer a response as one
    return [one for _, parts in given.earlier for one in (*parts, blank)] + given.parts


@_about("messages")
def given_in_chat(body: Json) -> GivenInput:
    """Return the messages of `POST /chat/completions`. Raises InvalidRequest."""
    items: list[Json] = []
    for message in _objects(body.get("messages"), "messages must be"):
        role, content = message.get("role"), message.get("content")
        if role == "function" or message.get("function_call"):
            raise InvalidRequest("role function and function_call are not supported; send role tool and tool_calls")
        calls = message.get("tool_calls") if role == "assistant" else None
        if role == "tool":
            items.append({"type": "function_call_output", "call_id": _text(message, "tool_call_id"), "output": content})
            continue
        if role == "assistant" and (refusal := message.get("refusal")):  # as the SDKs return one
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            content = [*content, {"refusal": refusal}]
        content = content or [] if calls else content
        items.append({"type": "message", "role": role, "content": content, "name": message.get("name")})
        for one in _objects(calls, "tool_calls must be") if calls else ():
            match one:
                case {"id": id, "function": dict(called)} | {"id": id, "custom": dict(called)}:
                    items.append({**called, "type": CALLS[0 if "function" in one else 1], "call_id": id})
                case _:
                    raise InvalidRequest(f"a tool call must have an id and a function, got {one!r:.80}")
    return _given(items)


def _given(items: Any, *, is_first: bool = True, joins_calls: bool = True, is_whole: bool = True) -> GivenInput:
    """Return items as input: with calls and without approvals if `is_first`; an output needs its call if `is_whole`."""
    given = GivenInput(joins_calls=joins_calls)
    messages = [one for one in _objects(items, "input must be a text or") if one.get("type", "message") == "message"]
    is_named = any(_text(one, "name") for one in messages if one.get("name") is not None)  # then each says its own
    for item in items:
        match item.get("type", "message"):
            case "message":
                role, parts = item.get("role"), stored_parts(item.get("content"), is_strict=True)
                if not isinstance(role, str) or role not in _ROLES:
                    raise InvalidRequest(f"role must be one of {', '.join(_ROLES)}, got {role!r:.80}")
                if is_named and (parts or role == "assistant"):  # calls may follow
                    parts.insert(0, {"type": "data", "name": PARTICIPANT, "data": item.get("name")})
                given.add(_ROLES[role], parts)
            case "function_call_output" | "custom_tool_call_output" as kind:
                output, call = item.get("output"), _text(item, "call_id")
                if output is None or isinstance(output, list):
                    output = [one for one in stored_parts(output or [], is_strict=True) if one["type"] != "data"] or ""
                _check_single(call, given.outputs)
                given.outputs[call] = output_part(call, output, **{CUSTOM: True} if kind.startswith("custom") else {})
                if is_whole and call not in given.calls:
                    detail = f"the input replies to {call[:64]!r}, but no call before it has this id; send the call too"
                    raise InvalidRequest(f"{detail}, or the previous_response_id of the response that has it")
            case "mcp_approval_response" if not is_first:
                of = reference(_text(item, "approval_request_id"), "input", kind="approval")
                approve, reason = item.get("approve"), item.get("reason")
                if not isinstance(approve, bool):
                    raise InvalidRequest(f"approve must be true or false, got {approve!r:.80}")
                data = {"reason": reason} if reason and isinstance(reason, str) else None
                given.approvals[of] = {"ok": approve, "data": data}
            case "function_call" | "custom_tool_call" if is_first:
                given.add_call(item, _text(item, "call_id"), state="called")
            case "mcp_call" if is_first:
                given.add_result(item)
            case "item_reference":
                id = str(item.get("id"))
                raise InvalidRequest(f"the input has a reference to item {id[:256]!r}; send the message itself here")
            case kind if kind not in _RESENT:  # which are left out
                raise InvalidRequest(f"an item of input has the type {kind!r:.80}; send messages, outputs or approvals")
    if not joins_calls:
        given.add("assistant", [])  # the end, so that messages of the user and outputs are earlier ones
    elif not (given.parts or given.outputs or given.approvals):
        last = max((at for at, (role, _) in enumerate(given.earlier) if role != "system"), default=-1)
        if last < 0 or given.earlier[last][0] != "user":
            raise InvalidRequest("the input must end with a text or a file of the user, or with an output; add one")
        given.parts = given.earlier.pop(last)[1]  # instructions behind the question come before it
    given.earlier = [(role, parts) for role, parts in given.earlier if parts]
    if len(given.earlier) > MAX_EARLIER:
        detail = f"the input has {len(given.earlier)} earlier messages; send at most {MAX_EARLIER}"
        raise InvalidRequest(f"{detail}, or responses with previous_response_id or conversation and only what is new")
    return given


def _check_single(call: str, others: Collection[object]) -> None:
    """Raise InvalidRequest if one of the calls, or results, beside a call has its id."""
    if call in others:
        detail = f"two calls of one message, or two results of one call, have the id {call[:64]!r}"
        raise InvalidRequest(f"{detail}; give each call an id of its own, and send its result once")


def _objects(value: Any, expected: str) -> list[Json]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise InvalidRequest(f"{expected} a list of at least one object, got {value!r:.80}")
    return value


def _text(item: Json, name: str, **about: str) -> str:
    if not isinstance(item.get(name), str):
        raise InvalidRequest(f"{name} must be a text, got {item.get(name)!r:.80}", **about)
    return str(item[name])


# -- responses over a WebSocket: several on one socket, further input for a running one, and resuming ----------------
# Requests with the same `stream_id` are carried out one after the other, others at the same time. Input for a running
# response (`response.steer`) is a user message in its channel, so it outlives the socket: the agent takes it
# in (`Turn.steered`), or it gets a turn of its own. In both cases a successor response follows.

_MAX_LANES = 8
_MAX_WAITING = 16  # requests that wait on one socket, and inputs that wait for one turn


@dataclass(eq=False)
class _Steer:
    """Further input for a turn."""

    id: str  # of the message that it becomes
    previous: str  # id of the response that it steers
    input: object  # as the client has sent it
    asked: Asked | None = None  # its own response, which it has if no other one takes it in; None until it is stored
    is_taken: bool = False  # the agent has taken it in


@dataclass(eq=False)
class _Lane:
    """The requests with one `stream_id`, and the response that is being sent."""

    stream_id: str | None = None
    task: asyncio.Task[None] = field(init=False)
    waiting: deque[tuple[Json, int]] = field(default_factory=deque)  # requests, and their bytes
    sending: Asked | None = None  # the response that is being sent
    previous: Reference | None = None  # the response before it in its turn, which input has ended
    events: TurnEvents | None = None  # of its newest response, until the request ends
    steers: list[_Steer] = field(default_factory=list)  # for the response

    def frame(self, event: Json) -> bytes:
        """Return an event as a frame, with the `stream_id`."""
        return encode(event if self.stream_id is None else {**event, "stream_id": self.stream_id})


class _Frames(TurnEvents):
    """The events of a response, one in a line (`TurnFormat`)."""

    heartbeat = b""
    late = b""  # the last event, for a reader that has it

    def __init__(self, access: Access, lane: _Lane, asked: Asked, after: int) -> None:
        super().__init__(asked, after, lane.previous)
        self._access = access
        self._lane = lane

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`), up to where further input was taken in or interrupts."""
        # asked with each batch, also one of text alone: the messages of a turn that is over leave memory
        for one in self._lane.steers:
            one.is_taken = one.is_taken or self._access.taken_by(self.of.channel, one.id) == self.of.message_id
        count = sum(one.is_taken for one in self._lane.steers)
        self.steers = self.of.steers + count if count else 0
        events = self.receive(deltas)
        for event in events:
            is_end = event["type"] == "response.incomplete"
            if is_end and self._lane.steers and self._access.is_interrupted(self.of.channel, self.of.message_id):
                event["response"] |= {"status": "incomplete", "incomplete_details": {"reason": "steered"}}
        frames = b"".join([self._lane.frame(event) + b"\n" for event in events])
        self.late = frames if self.is_repeated else b""
        return b"" if self.is_repeated else frames


class _Socket:
    """One socket."""

    def __init__(self, socket: RouteSocket, begin: Callable[[Access, Json], Awaitable[Asked]]) -> None:
        self._socket = socket
        self._begin = begin
        self._lanes: dict[object, _Lane] = {}
        self._steering = asyncio.Lock()  # held while an input is stored and reported
        self._reported: set[str] = set()  # ids of inputs of which `response.steer.pending` was sent

    async def run(self) -> None:
        """Carry out the client's events until it disconnects."""
        try:
            async with asyncio.TaskGroup() as tasks:
                async for event in self._socket.frames():
                    stream_id = event.get("stream_id") if isinstance(event, dict) else None
                    try:
                        if isinstance(event, TenutoError):
                            raise event
                        if event.get("type") == "response.steer":
                            async with self._steering:
                                await self._steer(event)
                            continue
                        lane = self._lane_for(event)
                        lane.waiting.append((event, self._socket.frame_bytes))
                        if lane.stream_id not in self._lanes:
                            self._lanes[lane.stream_id] = lane
                            lane.task = tasks.create_task(self._work(lane))
                    except TenutoError as error:
                        lane = _Lane(stream_id if isinstance(stream_id, str) else None)
                        await self._fail(lane, self._socket.problem(error))
                    finally:
                        del event  # it may be large, and the next one may come late
                for lane in self._lanes.values():
                    lane.task.cancel()
        except* (OSError, RuntimeError) as errors:  # the peer is gone
            logger.debug("a socket ends: %r", errors)

    def _lane_for(self, event: Json) -> _Lane:
        """Return the lane of a request, perhaps a new one. Raises InvalidRequest, and TooMany if the socket is full."""
        kind, stream_id = event.get("type"), event.get("stream_id")
        if kind not in ("response.create", "response.retrieve"):
            raise InvalidRequest(f"type must be response.create, .steer or .retrieve, got {kind!r:.80}", param="type")
        if stream_id is not None and not (isinstance(stream_id, str) and len(stream_id) <= 256):
            raise InvalidRequest(f"stream_id must be at most 256 characters, got {stream_id!r:.80}", param="stream_id")
        if event.get("background") or event.get("generate") is False:
            raise InvalidRequest("background and generate are not supported on a socket; leave them out")
        lane = self._lanes.get(stream_id)
        waiting = [size for one in self._lanes.values() for _, size in one.waiting]
        limit_bytes = self._socket.access.limits.message_bytes
        is_full = len(waiting) >= _MAX_WAITING or (waiting and sum(waiting) + self._socket.frame_bytes > limit_bytes)
        if is_full or (lane is None and len(self._lanes) >= _MAX_LANES):
            limits = f"{_MAX_LANES} stream_ids at once, and {_MAX_WAITING} requests of {limit_bytes} bytes that wait"
            raise TooMany(f"a socket has at most {limits}; wait until a response has ended", limit=_MAX_WAITING)
        return lane or _Lane(stream_id)

    async def _work(self, lane: _Lane) -> None:
        """Send the responses that wait in a lane, one after the other, until none waits."""
        try:
            while lane.waiting:
                event, _ = lane.waiting.popleft()
                after = -1  # the position behind which a known response is resumed
                try:
                    access = self._socket.access
                    if is_new := event["type"] == "response.create":
                        asked = await self._begin(access, event)
                    else:
                        of = reference(event.get("response_id"), "response_id")
                        after = fields_in(event, Retrieval).starting_after
                        access.check(of.channel, "subscribe", "history")
                        asked, _ = await turn_of(access, of)
                    del event
                    await self._respond(lane, asked, after, is_new=is_new and not any(asked.of.start))
                except TenutoError as error:
                    await self._fail(lane, self._socket.problem(error))
                except OSError:
                    raise  # the peer is gone
                except Exception:
                    logger.exception("a request of a socket failed; please report this bug")
                    await self._fail(lane, {"status": 500, "code": "internal", "detail": "internal error", "title": ""})
                finally:
                    lane.sending = lane.previous = lane.events = None
        finally:
            del self._lanes[lane.stream_id]

    async def _respond(self, lane: _Lane, asked: Asked, after: int, *, is_new: bool) -> None:
        """Send a response, and its successors: for input that comes now and, unless it `is_new`, for stored input."""
        steer: _Steer | None = None  # the input whose turn is sent
        while True:
            lane.steers = [] if is_new else await self._read_steers(lane, asked)
            lane.sending = asked
            lane.events = events = _Frames(self._socket.access, lane, asked, after)
            problem = await self._socket.stream(asked.of.channel, asked.of.message_id, events)
            lane.sending = None
            if problem is not None:
                if steer is not None:
                    await self._refuse(lane, steer, "successor_creation_failed", problem["detail"])
                else:
                    await self._fail(lane, {**problem, "response_id": asked.of.id()})
                return
            async with self._steering:  # input that arrived before the end of the response is stored
                is_new, after = is_new and not lane.steers, -1  # a successor is sent from its beginning
            if events.rest is not None:  # the agent has taken input in: the rest is its successor
                lane.previous, asked = asked.of, asked._replace(of=events.rest)
                continue
            steers = [] if is_new else await self._read_steers(lane, asked)
            if not asked.of.steers:  # this response to a call's output is the successor of earlier input
                steers = [one for one in steers if not one.is_taken or reference(one.previous).start >= asked.of.start]
            if not steers:
                for frame in events.late.splitlines():
                    await self._socket.send(frame)
                return
            if required := events.required_input():
                for one in (one for one in steers if one.id not in self._reported):
                    self._reported.add(one.id)
                    about = {"reason": "waiting_for_required_input", "required_input": required}
                    await self._report(lane, "pending", one, **about)
                return
            steer, asked = steers[0], steers[0].asked or asked

    async def _read_steers(self, lane: _Lane, asked: Asked) -> list[_Steer]:
        """Return the stored inputs of this person that a response or its successor is for; set `lane.previous`."""
        of, question, *_ = asked
        access, before = self._socket.access, lane.previous
        later = read_messages(access, of.channel, after=question.created, limit=_MAX_READ)
        root, author = _root(asked), access.identity.client_id
        own = [one async for one in later if requested_in(one).get(STEERS) == root and one.author == author]
        found, taken, hosts = list[_Steer](), 0, {root, *(one.id for one in own)}  # whose turns may take input in
        for id in (one.id for one in own):
            with suppress(NotFound):
                steered, _ = await turn_of(access, Reference(of.channel, id))
                named = reference(steered.options.get("previous_response_id"))  # the response that it steers
                is_taken = (host := access.taken_by(of.channel, id)) == question.id  # by this turn
                # a later response of this turn has its answer, or the turn of an earlier input
                if (named.at() == of.at() and named.steers > of.steers) if is_taken else host in hosts:
                    continue
                taken += is_taken
                if is_taken and taken <= of.steers:  # this response begins after it
                    lane.previous = before or named
                else:
                    found.append(_Steer(id, named.id(), input_items(of.channel, steered.question), steered, is_taken))
        return found

    async def _steer(self, event: Json) -> None:
        """Store further input for a response of this socket and report it, or return it refused. Needs `_steering`."""
        previous = _text(event, "previous_response_id", param="previous_response_id")
        steer = _Steer(secrets.token_hex(16), previous[:1000], event.get("input"))
        lane, access = _Lane(), self._socket.access
        try:
            of = reference(previous)
            access.check(of.channel, "history", "publish")
            asked, status = await turn_of(access, of)
            found = next((one for one in self._lanes.values() if one.sending and one.sending.of == of), None)
            if found is None:
                code = "response_already_completed" if status.state == "over" else "response_not_active"
                running = "waits for a reply; send it first" if status.questions else "does not run on this socket"
                detail = f"response {of.id()!r} {'is over' if status.state == 'over' else running}"
                await self._refuse(lane, steer, code, detail)
                return
            lane = found
            options = {**asked.options, "previous_response_id": of.id(), STEERS: _root(asked)}
            parts = further_input(steer.input)
            if len(lane.steers) >= _MAX_WAITING:
                raise TooMany(f"{_MAX_WAITING} inputs wait for this response already; send them later")
            lane.steers.append(steer)  # before it is stored: the agent may take it in at once (`_Frames.frame`)
            stored = [one.asked.question for one in lane.steers if one.asked is not None]
            last = max([await _last_of(access, asked, status), *stored], key=lambda one: one.created)
            parent = UNSET if options.get(CONVERSATION) else last.id  # UNSET is the newest message
            message = await access.create(of.channel, id=steer.id, parts=parts, parent=parent, options=options)
            steer.asked = Asked(Reference(of.channel, steer.id), message, options)
            await self._report(lane, "accepted", steer)
        except TenutoError as error:
            with suppress(ValueError):
                lane.steers.remove(steer)
            code = "too_many_pending_steers" if isinstance(error, TooMany) else "invalid_input"
            if isinstance(error, NotFound | Forbidden | InvalidName):  # or another person's
                code, error = "response_not_found", unknown("response", previous)
            await self._refuse(lane, steer, code, self._socket.problem(error)["detail"])

    async def _report(self, lane: _Lane, name: str, steer: _Steer, **about: object) -> None:
        """Send the event `response.steer.{name}`, with the fields `about`. Failed input is returned in it."""
        named: Json = {"previous_response_id": steer.previous} | ({"id": steer.id} if steer.asked is not None else {})
        named |= {"input": steer.input} if name == "failed" else {}
        last = lane.events.base + max(0, lane.events.position - 1) if lane.events is not None else 0  # to resume after
        event = {"type": f"response.steer.{name}", "sequence_number": last, "steer": named, **about}
        await self._socket.send(lane.frame(event))

    async def _refuse(self, lane: _Lane, steer: _Steer, code: str, detail: str) -> None:
        """Return input that has no successor response to the client."""
        error = {"type": "invalid_request_error", "code": code, "message": detail}
        await self._report(lane, "failed", steer, error=error)

    async def _fail(self, lane: _Lane, problem: Json) -> None:
        await self._socket.send(lane.frame({"type": "error", "status": problem["status"], "error": error_of(problem)}))


def _root(asked: Asked) -> str:
    root = asked.options.get(STEERS)  # a client may have written another value
    return root if isinstance(root, str) else asked.question.id
