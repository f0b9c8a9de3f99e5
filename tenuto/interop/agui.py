"""The routes of AG-UI (npm `@ag-ui/client`): its `HttpAgent` works on a hub unmodified.

Layer: interop.

`AGUI(hub, channel="chat:{id}").install(app, "/api/agent")` adds five routes to an app. Of the messages of a run only
the last one of the user is stored; its id is the id of the stored message, so a repeated run joins the turn. The
messages after it say which parts of the turn the client shows already, or the position of its last event does.
Snapshots hold stored messages in AG-UI's form. Two of the routes are those that the client of TanStack AI (npm
`@tanstack/ai-client`) asks at the path itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tenuto import Hub
from tenuto.core.errors import IdConflict, InvalidRequest, NotFound
from tenuto.interop.adapter import ChatRoutes, body_of, file_part, json_response, packed, stored_id, unpacked
from tenuto.interop.agui_stream import AGUIStream, Shown, TurnPosition, position_of
from tenuto.interop.fold import Json, deltas_of
from tenuto.routes import Access, TurnStatus, guarded, is_id, options_in


def messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the messages of a client that has run `turns`, without the answers of turns that wait or run."""
    messages: list[Json] = []
    for turn in turns:
        if turn.message is not None:
            messages.append({"id": turn.message.id, "role": "user", "content": _question_content(turn.message.parts)})
        if turn.state == "over":
            messages += _folded(event for _, event in AGUIStream("", "", "").receive(deltas_of(turn)))
    return messages


def _question_content(parts: Sequence[Json]) -> str | list[Json]:
    """Return the content of the user's message in the client."""
    if all(one["type"] == "text" for one in parts):
        return "\n".join(one["text"] for one in parts)
    content: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": text}:
                content.append({"type": "text", "text": text})
            case {"type": "file", "url": str(url)}:
                media_type = str(part.get("mediaType", ""))
                kind = media_type.partition("/")[0]
                source = {
                    "type": "url",
                    "value": url,
                    **({"mimeType": media_type} if media_type[-2:] not in ("", "/*") else {}),
                }
                content.append({"type": kind if kind in ("image", "audio", "video") else "document", "source": source})
    return content


def _folded(events: Iterable[Json]) -> list[Json]:
    """Return the messages that a client builds from `events`."""
    messages: dict[str, Json] = {}
    calls: dict[str, Json] = {}
    for event in events:
        match event:
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": id, "role": role}:
                messages.setdefault(id, {"id": id, "role": role})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": id, "delta": text}:
                messages[id]["content"] = messages[id].get("content", "") + text
            case {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": parent}:
                calls[id] = {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
                owner = messages.setdefault(parent, {"id": parent, "role": "assistant"})
                owner.setdefault("toolCalls", []).append(calls[id])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": text}:
                calls[id]["function"]["arguments"] += text
            case {"type": "TOOL_CALL_RESULT", "messageId": id}:
                names = ("toolCallId", "role", "content", "metadata")
                messages[id] = {"id": id, **{name: event[name] for name in names if name in event}}
    return list(messages.values())


def ui_messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the conversation as the `UIMessage`s that the client of TanStack AI builds from the events."""
    messages: list[Json] = []
    calls: dict[str, list[Json]] = {}  # for each call the parts of its message
    thoughts: list[Json] = []  # of the next answer
    for one in messages_of(turns):
        content = one.get("content", "")
        if one["role"] == "reasoning":
            thoughts.append({"type": "thinking", "content": content, "stepId": one["id"]})
        elif one["role"] == "tool":
            parts, id = calls[one["toolCallId"]], one["toolCallId"]
            at = next(at for at, part in enumerate(parts) if part.get("id") == id)
            parts[at] |= {"output": content, "state": "error" if "metadata" in one else "complete"}
            result = {"type": "tool-result", "toolCallId": id, "content": content, "state": parts[at]["state"]}
            parts.insert(at + 1, result)
        else:
            known = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [{"type": "text", "content": part["text"]} if part["type"] == "text" else part for part in known]
            # calls before a text are shown in the message before them
            if "content" in one or messages[-1]["role"] == "user":
                own = [*thoughts, *(part for part in parts if part.get("content") != "")]
                messages.append({"id": one["id"], "role": one["role"], "parts": own})
                thoughts = []
            for call in one.get("toolCalls", ()):
                calls[call["id"]] = messages[-1]["parts"]
                part = {"type": "tool-call", "id": call["id"], **call["function"], "state": "input-complete"}
                messages[-1]["parts"].append(part)
    return messages


ROLES = ("developer", "system", "assistant", "user", "tool", "activity", "reasoning")
SHORTER = "send the messages from the last one of the user on: requestInit of a class of your own leaves out the others"
NEWEST = 20  # newest messages of a thread among which the turn to connect to is looked for
RUN_CHARS = 256  # maximal length of a run's id, which each response repeats


class AGUI(ChatRoutes):
    """The routes of one agent of AG-UI: `AGUI(hub, channel="chat:{id}").install(app, "/api/agent")`.

    `{id}` in `channel` is the id of the client's thread.
    """

    def __init__(self, hub: Hub, *, channel: str) -> None:
        super().__init__(hub, channel, chat="thread", field="threadId")

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        path = path.rstrip("/")
        app.router.routes[:0] = [
            Route(path, guarded(self._run), methods=["POST"]),
            Route(path, guarded(self._hydrate), methods=["GET"]),
            Route(f"{path}/{{id}}/connect", guarded(self._connect), methods=["GET"]),
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
        options = options_in({**(forwarded if isinstance(forwarded, dict) else {}), **body}, is_strict=False)
        after = _after(request, stored_id(last["id"]))
        question = await _question(access, channel, last, options)
        if request.headers.get("x-run-id"):  # TanStack AI joins a run by the id that the run has named, and no thread
            run = _run_id(body["threadId"], question)
        return access.stream(channel, question, AGUIStream(body["threadId"], run, question, _shown(later), after))

    async def _hydrate(self, request: Request) -> Response:
        """Return a thread as TanStack AI loads it (`threadId`), or stream a run that it joins (`runId`)."""
        given = request.query_params
        if "runId" in given:
            thread, question = _run_of(given["runId"])
            return await self._follow(request, thread, question, _after(request, question))
        access, channel = await self._enter(request, given.get("threadId"), "history")
        limit, before = (_whole(given, name) for name in ("limit", "before"))
        turns = await access.conversation(channel, limit=limit or 200, before=before)
        kept = [one for turn in turns for one in (turn.message, *turn.answers) if one is not None]
        running = [one.message.id for one in turns if one.state in ("waiting", "running") and one.message is not None]
        first, page = min((one.created for one in kept), default=0), dict[str, Any](truncated=False)
        if len(kept) >= min(limit or 200, 200) and (await access.history(channel, before=first, limit=1)).messages:
            page = {"truncated": True, "cursor": str(first)}
        return json_response(
            {
                "messages": ui_messages_of(turns),
                "activeRun": {"runId": _run_id(given["threadId"], running[-1])} if running and not before else None,
                "interrupts": None,
                "page": page,
            }
        )

    async def _connect(self, request: Request) -> Response:
        """Stream a turn after the position `cursor`, or the newest one from its beginning. 204 if there is none."""
        thread, after = request.path_params["id"], position_of(request.query_params.get("cursor"))
        if after is not None:
            return await self._follow(request, thread, after.question, after)
        access, channel = await self._enter(request, thread, "subscribe", "history")
        turns = [one.message.id for one in await access.conversation(channel, limit=NEWEST) if one.message is not None]
        if not turns:
            return Response(status_code=204)
        return access.stream(channel, turns[-1], AGUIStream(thread, _run_id(thread, turns[-1]), turns[-1]))

    async def _follow(self, request: Request, thread: str, question: str, after: TurnPosition | None) -> Response:
        access, channel = await self._enter(request, thread, "subscribe", "history")
        stream = AGUIStream(thread, _run_id(thread, question), question, after=after)
        return access.stream(channel, question, stream)

    async def _messages(self, request: Request) -> Response:
        access, channel = await self._enter(request, request.path_params["id"], "history")
        return json_response(messages_of(await access.conversation(channel)))


def _after(request: Request, question: str) -> TurnPosition | None:
    """Return the position after which the client of a run continues. Raises InvalidRequest for one of another run."""
    after = position_of(request.headers.get("last-event-id") or request.query_params.get("offset"))
    if after is not None and after.question != question:
        text = f"Last-Event-ID is a position in the answer to message {after.question!r}, and this run answers"
        raise InvalidRequest(f"{text} {question!r}; leave the header out to get the run from its beginning")
    return after


def _run_id(thread: str, question: str) -> str:
    """Return the id by which a run can be joined. A run of a client has the client's id besides."""
    return "run_" + packed(thread, question)


def _run_of(run: str) -> tuple[str, str]:
    """Return the thread and the question of a run. Raises NotFound for an id of another form."""
    match unpacked(run.removeprefix("run_")):
        case thread, question if run.startswith("run_") and is_id(question):
            return thread, question
    raise NotFound(f"run {run[:64]!r} does not exist; use an id that this server has returned")


def _whole(given: Mapping[str, str], name: str) -> int | None:
    """Return a number of the query. Raises InvalidRequest."""
    value = given.get(name)
    if value is None or (value.isascii() and value.isdigit() and 0 < len(value) < 17 and int(value)):
        return int(value) if value is not None else None
    raise InvalidRequest(f"{name} must be a whole number above 0, got {value!r:.80}")


async def _question(access: Access, channel: str, last: Json, options: Json) -> str:
    """Return the id of the user's message, which is stored if it is new. Raises IdConflict for other content."""
    id, parts = stored_id(last["id"]), _stored_parts(last.get("content"))
    with suppress(NotFound):
        known = (await access.turn(channel, id)).message
        if known is not None and known.role == "user" and known.parts == parts:
            return id
        raise IdConflict(f"message {last['id'][:64]!r} exists with other content; send changed content with a new id")
    return (await access.create(channel, id=id, parts=parts, options=options)).id


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
