"""The routes of AG-UI (npm `@ag-ui/client`): its `HttpAgent` works on a hub unmodified.

Layer: interop.

`AGUI(hub, channel="chat:{id}").install(app, "/api/agent")` adds three routes to an app. Of the messages of a run only
the last one of the user is stored; its id is the id of the stored message, so a repeated run joins the turn. The
messages after it say which parts of the turn the client shows already.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tenuto import Hub
from tenuto.core.errors import IdConflict, InvalidRequest, LocalError, NotFound
from tenuto.interop.agui_stream import AGUIStream, Json, Shown, messages_of
from tenuto.interop.bodies import body_of
from tenuto.interop.ids import stored_id
from tenuto.interop.tool_json import file_part
from tenuto.routes import Access, asked_in, guarded

ROLES = ("developer", "system", "assistant", "user", "tool", "activity", "reasoning")
SHORTER = "send the messages from the last one of the user on: requestInit of a class of your own leaves out the others"
RUN_CHARS = 256  # maximal length of a run's id, which each response repeats


class AGUI:
    """The routes of one agent of AG-UI: `AGUI(hub, channel="chat:{id}").install(app, "/api/agent")`.

    `{id}` in `channel` is the id of the client's thread.
    """

    def __init__(self, hub: Hub, *, channel: str) -> None:
        if "{id}" not in channel:
            raise LocalError(f'channel must hold {{id}}, the id of the thread, as in "chat:{{id}}", got {channel!r}')
        self._hub = hub
        self._channel = channel

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        path = path.rstrip("/")
        app.router.routes[:0] = [
            Route(path, guarded(self._run), methods=["POST"]),
            Route(f"{path}/{{id}}/messages", guarded(self._messages), methods=["GET"]),
            Route(f"{path}/{{id}}/stop", guarded(self._stop), methods=["POST"]),
        ]

    async def _run(self, request: Request) -> Response:
        """Add the last message of the user, or join its turn, and stream what the client lacks of the turn."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER)
        channel = self._channel_of(body.get("threadId"))
        run = body.get("runId")
        if not isinstance(run, str) or not 0 < len(run) <= RUN_CHARS:
            raise InvalidRequest(f"runId must be a text of 1 to {RUN_CHARS} characters, got {run!r:.80}")
        last, later = _messages_in(body)
        access.check(channel, "subscribe", "history", "publish")
        forwarded = body.get("forwardedProps")
        asked = asked_in({**(forwarded if isinstance(forwarded, dict) else {}), **body}, is_strict=False)
        question = await _question(access, channel, last, asked)
        return access.stream(channel, question, AGUIStream(body["threadId"], run, question, _shown(later)))

    async def _messages(self, request: Request) -> Response:
        channel = self._channel_of(request.path_params["id"])
        access = await self._hub.authorize(request.scope, channel, ["history"])
        messages = messages_of(await access.conversation(channel))
        return JSONResponse(messages, headers={"cache-control": "no-store"})

    async def _stop(self, request: Request) -> Response:
        """Cancel the running turns, for all clients. Closing a connection cancels nothing."""
        channel = self._channel_of(request.path_params["id"])
        access = await self._hub.authorize(request.scope, channel, ["history", "command"])
        await access.cancel_turns(channel)
        return Response(status_code=204)

    def _channel_of(self, thread: object) -> str:
        if not isinstance(thread, str) or not thread:
            raise InvalidRequest("the body needs the field threadId, the id of the thread as text")
        return self._channel.replace("{id}", thread)


async def _question(access: Access, channel: str, last: Json, asked: Json) -> str:
    """Return the id of the user's message, which is stored if it is new. Raises IdConflict for other content."""
    id, parts = stored_id(last["id"]), _stored_parts(last.get("content"))
    with suppress(NotFound):
        known = (await access.turn(channel, id)).message
        if known is not None and known.role == "user" and known.parts == parts:
            return id
        raise IdConflict(f"message {last['id'][:64]!r} exists with other content; send changed content with a new id")
    return (await access.create(channel, id=id, parts=parts, asked=asked)).id


def _messages_in(body: Json) -> tuple[Json, list[Json]]:
    """Return the last message of the user, and the messages after it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        known = ", ".join(ROLES)
        raise InvalidRequest(
            f"messages must be a list of messages, each with id as text and a role of {known}, got {messages!r:.80}"
        )
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            return messages[index], messages[index + 1 :]
    raise InvalidRequest("messages has no message of role user; add the one that the agent shall answer")


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("id"), str)
        and bool(message["id"])
        and message.get("role") in ROLES
    )


def _stored_parts(content: object) -> list[Json]:
    """Return the content of the user's message as it is stored. Raises InvalidRequest if no part is left."""
    stored: list[Json] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else _list_of(content):
        match part:
            case {"type": "text", "text": str(text)} if text:
                stored.append({"type": "text", "text": text})
            case {"type": "image" | "audio" | "video" | "document" as kind, "source": dict(source)}:
                stored += _file(source, f"{kind}/*" if kind != "document" else None)
            case {"type": "binary", "mimeType": str(kind)} if isinstance(url := part.get("url"), str):
                stored.append(file_part(url, kind, filename=part.get("filename")))
            case {"type": "binary", "mimeType": str(kind), "data": str(data)}:
                stored.append(file_part(f"data:{kind};base64,{data}", filename=part.get("filename")))
    if not stored:
        raise InvalidRequest("the last message of the user has no text and no file; send content with one at least")
    return stored


def _file(source: Json, kind: str | None) -> list[Json]:
    """Return the file part of a source with a URL or data; no part for other sources, such as the id of a file."""
    match source:
        case {"type": "url", "value": str(url)}:
            return [file_part(url, source.get("mimeType") or kind)]
        case {"type": "data", "value": str(data), "mimeType": str(kind)}:
            return [file_part(f"data:{kind};base64,{data}")]
    return []


def _shown(messages: list[Json]) -> Shown:
    """Return the parts of the turn that the client shows. Values of other types than the client sends are ignored."""
    texts, inputs, results = {}, {}, set()
    for one in messages:
        if one["role"] in ("assistant", "reasoning") and isinstance(one.get("content"), str):
            texts[one["id"]] = one["content"]
        for call in _list_of(one.get("toolCalls")):
            match call:
                case {"id": str(id), "function": {"arguments": str(arguments)}}:
                    inputs[id] = arguments
        if one["role"] == "tool" and isinstance(one.get("toolCallId"), str):
            results.add(one["toolCallId"])
    return Shown(texts, inputs, frozenset(results))


def _list_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
