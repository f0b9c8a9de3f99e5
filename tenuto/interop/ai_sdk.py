"""The routes of the AI SDK (npm `ai`): `useChat` and `Chat` work on a hub unmodified.

Layer: interop.

`AISDK(hub, channel="chat:{id}").install(app, "/api/chat")` adds five routes to an app. The history that a page sends is
ignored: a request adds its last message, or answers the questions of the agent, and the store has all earlier messages.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tenuto import Hub, Message
from tenuto.core.errors import (
    AlreadyAnswered,
    IdConflict,
    InvalidRequest,
    LocalError,
    NotFound,
    StillStreaming,
)
from tenuto.interop.adapter import ChatRoutes, body_of, file_part, hashed, json_response, stored_id
from tenuto.interop.ai_sdk_stream import Release, UIStream, is_tool, silent_id, ui_messages
from tenuto.interop.fold import Json, call_of, has_result
from tenuto.routes import Access, TurnStatus, guarded, options_in, versions_of

VERSION_PAGES = 10  # pages of 200 messages among which the versions of an edited question are looked for
JUST_ENDED_S = 10.0  # a page that resumes loaded its messages at most so long before
LATEST_TURN = 20  # newest messages of a channel among which the turn that has just ended is looked for
SHORTER = "send the last message alone: let prepareSendMessagesRequest return id, trigger, messageId and message"
NEWEST = 50  # newest messages of a channel among which the parent of a new one is looked for


class AISDK(ChatRoutes):
    """The routes of one chat of the AI SDK: `AISDK(hub, channel="chat:{id}").install(app, "/api/chat")`.

    `{id}` in `channel` is the id of the page's chat. `version` is the major release of `ai` in the page; 6 serves
    pages of 7 too. `strict` leaves out optional fields, for early releases of 5 and 6. Tools in `browser_tools` run in
    the page.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        channel: str,
        version: int = 6,
        strict: bool = False,
        browser_tools: Sequence[str] = (),
    ) -> None:
        if version not in (5, 6, 7):
            raise LocalError(f"version must be 5, 6 or 7, the major release of the package ai, got {version!r}")
        super().__init__(hub, channel, chat="chat", field="id")
        self._release = Release(version, strict, frozenset(browser_tools))

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        path = path.rstrip("/")
        app.router.routes[:0] = [
            Route(path, guarded(self._post), methods=["POST"]),
            Route(path, guarded(self._list), methods=["GET"]),
            Route(f"{path}/{{id}}/stream", guarded(self._resume), methods=["GET"]),
            Route(f"{path}/{{id}}/messages", guarded(self._messages), methods=["GET"]),
            Route(f"{path}/{{id}}/stop", guarded(self._stop), methods=["POST"]),
        ]

    async def _post(self, request: Request) -> Response:
        """Add the last message of the page, or answer the agent's questions, and stream the turn."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER)
        channel = self._channel_of(body.get("id"))
        earlier, last = _messages_in(body)
        is_again = body.get("trigger") == "regenerate-message"
        if is_again and last["role"] == "assistant":
            raise InvalidRequest("regenerate-message needs a list that ends with a message of role user, got assistant")
        needs = ["command"] if last["role"] == "assistant" else ["publish", "command"] if is_again else ["publish"]
        access.check(channel, "subscribe", "history", *needs)
        if last["role"] == "assistant":
            turn, has_replied = await self._answer(access, channel, last)
            message_id = turn.message.id if turn.message is not None else ""
            stream = UIStream(message_id, self._release, last, is_late=not has_replied)
            return access.stream(channel, message_id, stream)
        options, is_edit = options_in(body, is_strict=False), body.get("messageId") is not None
        question = await self._question(access, channel, earlier, last, options, is_edit=is_edit)
        if is_again:
            await self._regenerate(access, channel, question)
        return access.stream(channel, question, UIStream(question, self._release))

    async def _question(
        self, access: Access, channel: str, earlier: list[Json], last: Json, options: Json, *, is_edit: bool
    ) -> str:
        """Return the id of the page's last message, which is stored if it is new or an edit."""
        meta = last.get("metadata")
        content: Json = {"parts": _stored_parts(last["parts"]), "meta": meta if isinstance(meta, dict) else None}
        content["options"] = options
        given = stored_id(last["id"])
        with suppress(NotFound):
            return await self._version(access, channel, given, content, is_edit=is_edit)
        parent = _parent(earlier, await access.conversation(channel, limit=NEWEST))
        try:
            created = await access.create(channel, id=given, **content, parent=UNSET if parent is None else parent)
            return created.id
        except IdConflict:  # a repeat of this request has created the same message at the same moment
            return await self._version(access, channel, given, content, is_edit=is_edit)

    async def _version(self, access: Access, channel: str, given: str, content: Json, *, is_edit: bool) -> str:
        """Return the id of the version with these parts of a known question. A new version is stored."""
        parts = content["parts"]
        known = (await access.turn(channel, given)).message
        if known is None or known.role != "user":
            raise IdConflict(f"message {given!r} is an answer; send a question with another id")
        newest: Message | None = None
        async for version in _versions(access, channel, known):
            if version.parts == parts:
                return version.id
            newest = newest or version
            if is_edit:
                break  # an edit back to an earlier content is another version
        assert newest is not None
        id = hashed(newest.id, json.dumps(parts))
        return (await access.create(channel, id=id, **content, parent=known.parent)).id

    async def _regenerate(self, access: Access, channel: str, question: str) -> None:
        turn = await access.turn(channel, question)
        if turn.state not in ("over", "none"):
            return  # the request is a repeat
        newest = turn.answers[-1].id if turn.answers else ""
        with suppress(StillStreaming):
            await access.command(channel, "regenerate", target=question, id=hashed("regenerate", question, newest))

    async def _answer(self, access: Access, channel: str, last: Json) -> tuple[TurnStatus, bool]:
        """Reply to the questions that the page's last message answers.

        Return its turn, and whether a question got a reply.
        """
        turns = await access.conversation(channel)
        turn = next((one for one in turns if one.message is not None and last["id"] in _ids_of(one)), None)
        if turn is None:
            raise NotFound(
                f"message {last['id'][:64]!r} is not an answer in channel {channel!r}; load the messages again"
            )
        open_ids = {one.id for one in turn.questions}
        calls = {call: one.id for one in turn.questions if (call := call_of(one.data))}
        replies: list[dict[str, Any]] = []  # arguments of `Access.reply`
        for part in filter(is_tool, last["parts"]):
            state, approval = part.get("state"), part.get("approval")
            if state == "approval-responded" and isinstance(approval, dict) and str(approval.get("id")) in open_ids:
                reason = {"reason": approval["reason"]} if isinstance(approval.get("reason"), str) else None
                replies.append({"command_id": approval["id"], "ok": approval.get("approved") is True, "data": reason})
            elif part["toolCallId"] in calls and part["type"].removeprefix("tool-") in self._release.browser_tools:
                id = calls[part["toolCallId"]]
                if state == "output-available":
                    replies.append({"command_id": id, "data": part.get("output")})
                elif state == "output-error":
                    error = {"code": "tool_failed", "detail": str(part.get("errorText"))}
                    replies.append({"command_id": id, "ok": False, "error": error})
        has_replied = False
        for reply in replies:
            # another tab may have been faster, or the question may have expired meanwhile
            with suppress(AlreadyAnswered, NotFound):
                await access.reply(channel, **reply)
                has_replied = True
        return turn, has_replied

    async def _resume(self, request: Request) -> Response:
        """Replay the running turn, or one that has just ended: the page may lack its answer. 204 if there is none.

        Strict releases add a replay to the answer that the page has, so they get a turn that has ended only if the page
        names its last message in the parameter `last`.
        """
        last = request.query_params.get("last")
        access, channel = await self._enter(request, request.path_params["id"], "subscribe", "history")
        turns = await access.open_turns(channel)
        if not turns and (last is not None or not self._release.strict):
            turns = [one for one in (await access.conversation(channel, limit=LATEST_TURN))[-1:] if one.answers]
            turns = [one for one in turns if _age_s(one) < JUST_ENDED_S and not self._asks_page(one)]
            turns = [one for one in turns if last not in _ids_of(one)]
        for turn in reversed(turns):
            if turn.message is not None:
                return access.stream(channel, turn.message.id, UIStream(turn.message.id, self._release))
        return Response(status_code=204)

    def _asks_page(self, turn: TurnStatus) -> bool:
        """Return whether a call of the page's has no result. A replay would make the page run it again, in vain."""
        parts = [part for answer in turn.answers for part in answer.parts if part["type"] == "tool"]
        return any(one["name"] in self._release.browser_tools and not has_result(one) for one in parts)

    async def _messages(self, request: Request) -> Response:
        access, channel = await self._enter(request, request.path_params["id"], "history")
        return json_response(ui_messages(await access.conversation(channel), self._release))

    async def _list(self, request: Request) -> Response:
        """Return the chats that the caller may read, newest first."""
        access = await self._hub.authorize(request.scope)
        before, _, after = self._channel.partition("{id}")
        chats = [
            {"id": id, "title": one.title, "updated": one.updated_ms, "running": one.is_running}
            for one in await access.conversations(before)
            if self._channel_of(id := one.channel.removeprefix(before).removesuffix(after) or "-") == one.channel
        ]
        return json_response(chats)


async def _versions(access: Access, channel: str, known: Message) -> AsyncIterator[Message]:
    """Yield the versions of a question, the newest first and `known` last, of the newest 2,000 messages."""
    before = None
    for _ in range(VERSION_PAGES):
        page = await access.history(channel, before=before, limit=200)
        for version in reversed(versions_of(known, page.messages)):
            if version.created > known.created:
                yield version
        if not page.messages or not page.more or page.messages[-1].created <= known.created:
            break
        before = page.messages[-1].created
    yield known


def _age_s(turn: TurnStatus) -> float:
    """Return the seconds since the last change of the turn's answers."""
    return time.time() - max(one.updated_at for one in turn.answers) / 1_000


def _messages_in(body: Json) -> tuple[list[Json], Json]:
    """Return the page's messages before the last, and the last one, in the form that is relied on."""
    messages = body["messages"] if "messages" in body else [body.get("message")]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise InvalidRequest(
            f"messages must be a list of at least one message, each with id, role and parts, got {messages!r:.80}"
        )
    last = messages[-1]
    if body.get("trigger", "submit-message") not in ("submit-message", "regenerate-message"):
        raise InvalidRequest(f"trigger must be submit-message or regenerate-message, got {body['trigger']!r:.80}")
    if last["role"] not in ("user", "assistant"):
        raise InvalidRequest(f"the last message must be of role user or assistant, got {last['role']!r:.80}")
    return messages[:-1], last


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return False
    if not all(isinstance(message.get(name), str) and message[name] for name in ("id", "role")):
        return False
    return all(
        isinstance(part, dict)
        and isinstance(part.get("type"), str)
        and (part["type"] not in ("text", "reasoning") or isinstance(part.get("text"), str))
        and (not part["type"].startswith("tool-") or isinstance(part.get("state"), str))
        for part in message["parts"]
    )


def _stored_parts(parts: list[Json]) -> list[Json]:
    """Return the parts of a page's user message as they are stored. Raises InvalidRequest if none is left."""
    stored: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)} if text:
                stored.append({"type": "text", "text": text})
            case {"type": "file", "url": str()}:
                stored.append(file_part(part["url"], part.get("mediaType"), filename=part.get("filename")))
            case {"type": str(kind)} if kind.startswith("data-"):
                stored.append({"type": "data", "name": kind.removeprefix("data-"), "data": part.get("data")})
    if not stored:
        raise InvalidRequest("the message has no part of type text, file or data-…; send one at least")
    return stored


def _parent(earlier: list[Json], turns: list[TurnStatus]) -> str | None:
    """Return the message that the page's new message follows; None if the page names none that exists."""
    followed = {id: _end_of(turn) for turn in turns for id in _ids_of(turn)}
    shown = (one["id"] for one in reversed(earlier) if one["role"] == "assistant")
    return next((followed[id] for id in shown if id in followed), None)


def _end_of(turn: TurnStatus) -> str:
    last: Message | None = turn.answers[-1] if turn.answers else turn.message
    assert last is not None
    return last.id


def _ids_of(turn: TurnStatus) -> set[str]:
    """Return the ids that the assistant message of a turn may have on a page."""
    ids = {one.id for one in turn.answers}
    return ids | {silent_id(turn.message.id)} if turn.message is not None else ids
