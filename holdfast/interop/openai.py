"""The routes of OpenAI's API: the SDK `openai` works on a hub unmodified.

Layer: interop.

`OpenAI(hub).install(app, "/v1")` adds Responses, Chat Completions and the list of models to an app. A model is an
agent. A response id names a channel and a message, so each server of the same store knows it.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from typing import Any

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast import Hub
from holdfast import Message as Stored
from holdfast.core.errors import AlreadyAnswered, Finished, InvalidRequest, LocalError, NotFound
from holdfast.interop.ids import hashed
from holdfast.interop.openai_chat import ChatStream, completion
from holdfast.interop.openai_input import (
    Said,
    approval_place,
    output_part,
    request_meta,
    said_in_chat,
    said_in_responses,
)
from holdfast.interop.openai_items import REQUEST, Json, Place, Reference, has_result, own_tools, reference
from holdfast.interop.openai_stream import ASKING, ResponseStream, events_of
from holdfast.interop.openai_whole import whole_response
from holdfast.routes import Access, TurnStatus, guarded

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NUMBER = re.compile(r"[0-9]{1,16}\Z", re.ASCII)


class OpenAI:
    """The routes of OpenAI's API: `OpenAI(hub).install(app, "/v1")`.

    A model is the name of an agent. A request without a previous response begins a new channel: that of the agent's
    pattern, with an id in place of the star, or `channel`, where `{model}`, `{client}` and `{id}` are replaced.
    """

    def __init__(self, hub: Hub, *, channel: str | None = None) -> None:
        if channel is not None and "{id}" not in channel:
            raise LocalError(f'channel must hold {{id}}, the id of the chat, as in "chat:{{id}}", got {channel!r}')
        self._hub = hub
        self._channel = channel

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        path = path.rstrip("/")
        routes = {
            f"{path}/responses": ("POST", self._create),
            f"{path}/responses/{{id}}": ("GET", self._retrieve),
            f"{path}/responses/{{id}}/cancel": ("POST", self._cancel),
            f"{path}/chat/completions": ("POST", self._complete),
            f"{path}/models": ("GET", self._models),
        }
        app.router.routes[:0] = [
            Route(path, guarded(endpoint), methods=[method], middleware=[Middleware(_Envelope)])
            for path, (method, endpoint) in routes.items()
        ]

    async def _create(self, request: Request) -> Response:
        """Store the question, or answer the agent, and respond as `stream` and `background` say."""
        access = await self._hub.authorize(request.scope)
        body = await access.body(request)
        said = said_in_responses(body)
        question, of = await self._begin(request, access, body, said)
        if body.get("stream") is True:
            return access.stream(of.channel, of.message_id, ResponseStream(question, of))
        if body.get("background") is True:
            return _json(events_of(await access.turn(of.channel, of.message_id), of).response())
        return whole_response(access, question, of)

    async def _complete(self, request: Request) -> Response:
        """Begin a channel with the messages, and respond with the completion."""
        access = await self._hub.authorize(request.scope)
        body = await access.body(request)
        said = said_in_chat(body)
        body.pop("previous_response_id", None)
        question, of = await self._begin(request, access, body, said)
        if body.get("stream") is True:
            options = body.get("stream_options")
            has_usage = isinstance(options, dict) and options.get("include_usage") is True
            return access.stream(of.channel, of.message_id, ChatStream(question, of, has_usage=has_usage))
        return whole_response(access, question, of, completion)

    async def _begin(self, request: Request, access: Access, body: Json, said: Said) -> tuple[Stored, Reference]:
        """Return the question of the turn that answers a request, and the response that the caller gets."""
        previous, turn = body.get("previous_response_id"), None
        key = request.headers.get("idempotency-key")
        id = hashed(access.identity.client_id or "", key) if key else secrets.token_hex(16)
        meta = request_meta(body)
        if previous is not None:
            of = reference(previous, "previous_response_id")
            access.check(of.channel, "subscribe", "history")
            channel, turn = of.channel, await _turn(access, of)
            if (start := await self._answer(access, of, turn, said)) is not None:
                assert turn.message is not None
                return turn.message, Reference(channel, of.message_id, start)
        else:
            channel = self._new_channel(access, body, id)
            access.check(channel, "subscribe", "history", "publish")
            await self._remember(access, channel, id, said)
        parts = [*(output_part(*one) for one in said.outputs.items()), *said.parts]
        if not parts:
            raise NotFound("the input replies to a question that has a reply; send a message")
        question = await access.create(channel, id=id, parts=parts, meta={REQUEST: meta})
        return question, Reference(channel, question.id)

    async def _remember(self, access: Access, channel: str, id: str, said: Said) -> None:
        """Store the earlier messages of a new channel. A request that is repeated stores none behind its question."""
        if said.earlier and id not in channel:
            raise InvalidRequest(
                f"the agent answers all requests in channel {channel!r}, so a request may not bring "
                f"{len(said.earlier)} earlier messages; send the question alone, or a previous_response_id"
            )
        with suppress(NotFound):
            await access.turn(channel, id)
            return
        for number, (role, parts) in enumerate(said.earlier):
            await access.remember(channel, id=f"{id}.{number}", role=role, parts=parts)

    def _new_channel(self, access: Access, body: Json, id: str) -> str:
        model = body.get("model")
        agents = access.agents()
        if not isinstance(model, str) or model not in agents:
            raise NotFound(
                f"model {str(model)[:64]!r} does not exist; use the name of an agent, which GET /models lists",
                param="model",
            )
        if self._channel is None:
            return agents[model].replace("*", id)
        names = {"model": model, "client": access.identity.client_id or "anonymous", "id": id}
        return re.sub(r"\{(model|client|id)\}", lambda found: names[found[1]], self._channel)

    async def _answer(self, access: Access, of: Reference, turn: TurnStatus, said: Said) -> Place | None:
        """Reply to the questions that a request answers, and return where its response begins; None for a new turn."""
        assert turn.message is not None
        places: list[Place] = []
        for id, (approved, reason) in said.approvals.items():
            place, command = approval_place(id)
            with suppress(AlreadyAnswered):  # another client may have been faster: the response has the outcome
                await access.reply(of.channel, command, ok=approved, data={"reason": reason} if reason else None)
            places.append(place)
        calls = {
            part["call"]: ((a, index), part)
            for a, answer in enumerate(turn.answers)
            for index, part in enumerate(answer.parts)
            if part["type"] == "tool" and part["name"] in own_tools(turn.message)
        }
        asked = {
            one.data["call"]: one.id
            for one in turn.questions
            if isinstance(one.data, dict) and isinstance(one.data.get("call"), str)
        }
        for call, output in list(said.outputs.items()):
            if call not in calls:
                raise NotFound(
                    f"the response has no function_call with the call_id {call[:64]!r}; send one that it has"
                )
            place, part = calls.pop(call)
            if call in asked:
                access.check(of.channel, "command")
                with suppress(AlreadyAnswered):
                    await access.reply(of.channel, asked[call], data=output)
            elif turn.state == "over" and not has_result(part):
                continue  # the agent has ended its turn, so the output begins a new one
            del said.outputs[call]
            places.append((place[0], place[1] + 1))
        if not places:
            return None
        # calls that the request leaves open are in the new response again
        left = [place for place, part in calls.values() if part["call"] in asked and place > of.start]
        return min([max(places) if not said.approvals else min(places), *left])

    async def _retrieve(self, request: Request) -> Response:
        of = reference(request.path_params["id"])
        is_stream = request.query_params.get("stream", "").lower() in ("true", "1")
        needs = ["subscribe", "history"] if is_stream else ["history"]
        access = await self._hub.authorize(request.scope, of.channel, needs)
        status = await _turn(access, of)
        assert status.message is not None
        if not is_stream:
            return _json(events_of(status, of).response())
        after = -1
        if (given := request.query_params.get("starting_after")) is not None:
            end = events_of(status, of).position
            after = int(given) if _NUMBER.match(given) else -1
            if not (0 <= after < end or ASKING <= after < 2 * ASKING):
                raise InvalidRequest(
                    f"starting_after must be a sequence_number of this response, at most {end - 1}, got {given!r:.80}",
                    param="starting_after",
                )
        return access.stream(of.channel, of.message_id, ResponseStream(status.message, of, after))

    async def _cancel(self, request: Request) -> Response:
        """Cancel the turn for all clients, and respond when it has ended."""
        of = reference(request.path_params["id"])
        access = await self._hub.authorize(request.scope, of.channel, ["subscribe", "history", "command"])
        status = await _turn(access, of)
        assert status.message is not None
        if status.state in ("waiting", "running"):
            with suppress(Finished):
                await access.command(of.channel, "cancel", target=of.message_id)
        return whole_response(access, status.message, of)

    async def _models(self, request: Request) -> Response:
        access = await self._hub.authorize(request.scope)
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "holdfast"} for name in sorted(access.agents())
        ]
        return _json({"object": "list", "data": data})


async def _turn(access: Access, of: Reference) -> TurnStatus:
    """Return the turn of a response. Raises NotFound, also for an answer."""
    status = await access.turn(of.channel, of.message_id)
    if status.message is None or status.message.role != "user":
        raise NotFound(f"response {of.id()[:64]!r} does not exist; use the id of a response of this server")
    return status


class _Envelope:
    """Middleware that gives problem responses the form of OpenAI's errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem: Message | None = None
        body = b""

        async def translated(message: Message) -> None:
            nonlocal problem, body
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if headers.get(b"content-type", b"").startswith(b"application/problem+json"):
                    problem = message
                    return
            elif problem is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                about = msgspec.json.decode(body)
                body = msgspec.json.encode({"error": error_of(about)})
                kept = [one for one in problem["headers"] if one[0] not in (b"content-type", b"content-length")]
                length = (b"content-length", str(len(body)).encode())
                await send({**problem, "headers": [*kept, (b"content-type", b"application/json"), length]})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        await self._app(scope, receive, translated)


def error_of(problem: Json) -> Json:
    """Return a problem as an error of OpenAI's API."""
    status = problem["status"]
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message, param = problem["detail"] or problem["title"], problem.get("param")
    return {"message": message, "type": kind, "code": problem["code"], "param": param}


def _json(body: Json) -> Response:
    return JSONResponse(body, headers={"cache-control": "no-store"})
