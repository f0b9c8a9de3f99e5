"""Routes of an app's own that serve turns in a wire format of its own.

Layer: routes, below `app`.

`await hub.authorize(…)` returns the `Access` of the caller of such a route: it checks, counts and stores as the hub's
own routes do. `Access.stream` returns a response that streams a turn through a `TurnFormat`. The names in `__all__` are
public (`docs/python.md`); the adapters of `tenuto.interop` use no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tenuto.agents.history import CACHED, OUTPUT, PARTICIPANT, has_result, leading_to
from tenuto.agents.request import options_in, own_tools, tools_in
from tenuto.core.decide import check_may_change
from tenuto.core.deltas import (
    Delta,
    InAnswer,
    MessageContinued,
    MessageDeleted,
    MessageFinished,
    MessageOpened,
    MessageReplaced,
    PartFinished,
    PartOpened,
    PartReplaced,
    QuestionAsked,
    QuestionReplied,
    Sent,
    TextAdded,
    TurnChanged,
    TurnDelta,
    TurnState,
    TurnStatus,
    deltas_of,
)
from tenuto.core.errors import Deleted, Draining, Finished, InvalidRequest, NotFound, TenutoError, TooMany
from tenuto.core.events import Page
from tenuto.core.model import ATTEMPT, OPTIONS_KEY, OPTIONS_MARK, Command, Json, Message, Part, Role, app_meta
from tenuto.core.names import check_channel, check_id, check_prefix, command_key, is_id
from tenuto.core.requests import CreateMessage, DeleteMessage, ReplyCommand, SendCommand, references, stored_options
from tenuto.core.requests import Request as HubRequest
from tenuto.core.turns import INTERRUPTED, newest_branch, versions_of
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.identity import Scope as HubScope
from tenuto.hub.access.visitors import cookie_headers
from tenuto.hub.keep.archive import MAX_CONVERSATIONS, Conversation, read_conversations
from tenuto.hub.keep.policies import narrowed
from tenuto.hub.pending import Result, message_of
from tenuto.hub.turns.status import answers_left, read_conversation, read_open_turns, read_pending, read_turn
from tenuto.transports.access import (
    EXPECTED_BYTES,
    Credentials,
    check_serving,
    declared_bytes,
    event_bytes,
    identify,
    key_of,
    message_bytes,
    turn_bytes,
)
from tenuto.transports.codec import DRAINED, EXPIRED, FRAME_TOO_LARGE, GUARDS, MISUSED, decode, for_peers, known_error
from tenuto.transports.http import ProblemForm, problem_response, read_body
from tenuto.transports.origin import check_peer, refusal_of_get
from tenuto.transports.sender import FAREWELL_S, SEND_TIMEOUT_S
from tenuto.transports.sse import StreamApp
from tenuto.transports.streams import TurnFormat, TurnStream
from tenuto.transports.websocket import REFUSED_PAUSE_S

__all__ = [
    "ATTEMPT",
    "CACHED",
    "OPTIONS_KEY",
    "OPTIONS_MARK",
    "OUTPUT",
    "PARTICIPANT",
    "Access",
    "Conversation",
    "Delta",
    "InAnswer",
    "MessageContinued",
    "MessageDeleted",
    "MessageFinished",
    "MessageOpened",
    "MessageReplaced",
    "PartFinished",
    "PartOpened",
    "PartReplaced",
    "QuestionAsked",
    "QuestionReplied",
    "RouteSocket",
    "Sent",
    "TextAdded",
    "TurnChanged",
    "TurnDelta",
    "TurnFormat",
    "TurnResponse",
    "TurnState",
    "TurnStatus",
    "app_meta",
    "deltas_of",
    "guarded",
    "has_result",
    "is_id",
    "leading_to",
    "newest_branch",
    "options_in",
    "own_tools",
    "tools_in",
    "versions_of",
]

_JSON_OBJECT = msgspec.json.Decoder(dict[str, Any])
BROUGHT = "brought"  # option of messages that `Access.remember` stored: no agent wrote them, in any role
LARGE_BODY_BYTES = 256 * 1024  # size from which bodies are decoded one at a time

Endpoint = Callable[[Request], Awaitable[Response]]


class Access:
    """The access of one request to the hub: the caller, and its rights. See `Hub.authorize`."""

    def __init__(self, app: StreamApp, scope: HubScope, identity: Identity) -> None:
        self._app = app
        self._hub = app.hub
        self._scope = scope
        self._credentials = Credentials(app.hub, scope, identity)
        self.limits = app.hub.limits

    @property
    def identity(self) -> Identity:
        """Return the caller."""
        return self._credentials.identity

    def check(self, channel: str, *capabilities: str) -> None:
        """Raise Forbidden unless the caller holds all `capabilities` on `channel`, InvalidName for an invalid name."""
        check_channel(channel)
        for capability in capabilities:
            self.identity.check(capability, channel)

    async def body(self, request: Request, *, limit_bytes: int | None = None) -> dict[str, Json]:
        """Return the request's body, a JSON object of at most `limit_bytes`, by default `Limits.request_bytes`.

        Raises InvalidRequest, InvalidText, TooLarge, TooMany, …
        """
        limit_bytes = limit_bytes or self._hub.limits.request_bytes
        declared = declared_bytes(self._scope, limit_bytes)
        count = self._credentials.open_body(limit_bytes)
        try:
            with count:
                data = await read_body(request, limit_bytes, count.grow)
        except ClientDisconnect:
            declared = 0  # no more of it came
            raise
        finally:
            self.charge(max(declared, count.size))  # the server reads and discards the rest of a refused body
        if len(data) < LARGE_BODY_BYTES:
            return decode(data, _JSON_OBJECT)
        async with self._hub.runtime.large_bodies:
            await asyncio.sleep(0)  # streams go on between two large bodies
            return decode(data, _JSON_OBJECT)

    async def create(
        self,
        channel: str,
        *,
        id: str | None = None,
        text: str | None = None,
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        reply_to: str | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> Message:
        """Store a user message of the caller, and return it. With an `id` it is safe to repeat.

        `options` has what the caller asks beside the message (`options_in`); the agent has it as
        `turn.request`. Large values are stored once for each person in the channel, and no viewer gets them.

        Raises IdConflict, and Deleted if the message was deleted at once.
        """
        self.check(channel, "publish")
        request = CreateMessage(
            text=text, parts=parts, meta=meta or {}, parent=parent, reply_to=reply_to, options=dict(options or {})
        )
        message_id = key_of(self._hub, self.identity, channel, request, id)
        return message_of(await self._ask(channel, message_id, request), message_id)

    async def options(self, channel: str, message: Message) -> dict[str, Json]:
        """Return the options of a client beside `message`, under the names of `create`. Removed values are left out."""
        self.check(channel, "history")
        kept = []
        for id in references(message.meta).values():
            with suppress(NotFound, Deleted):
                kept.append((await self._hub.read(channel, id))[0])
        self.charge(message_bytes(kept))
        return stored_options(message.meta, kept)

    async def remember(
        self,
        channel: str,
        *,
        id: str,
        role: Role,
        parts: list[Part],
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        options: Mapping[str, Json] | None = None,
    ) -> Message:
        """Store a message of a conversation that the caller brings, and return it. It starts no turn.

        The caller says what its role is, so use it only for a channel that the request begins. Safe to repeat. Raises
        IdConflict, Deleted.
        """
        self.check(channel, "publish")
        options = {**(options or {}), BROUGHT: True}
        request = CreateMessage(role=role, parts=parts, meta=meta or {}, parent=parent, options=options)
        return message_of(await self._ask(channel, check_id(id), request, starts_turn=False), id)

    async def delete_turn(self, channel: str, message_id: str) -> None:
        """Delete a user message of the caller, or one that it has brought, and its answers, without further capability.

        A running turn is cancelled. A repeat deletes what is left. Raises NotFound, Forbidden for another author's.
        """
        self.check(channel, "history", "publish")
        async with self._hub.viewing.reading():
            _, known = await self._hub.runtime.found(channel, message_id, may_be_gone=True)
        is_brought = BROUGHT in known.meta.get(OPTIONS_KEY, {})  # then `publish` is enough, also for an answer
        result = await self._ask(channel, message_id, DeleteMessage(), is_brought=is_brought)
        if not result.created:  # any caller may repeat the deletion of a message
            if known.role != "user":
                return
            check_may_change(known, self._credentials.caller(channel))
        async with self._hub.viewing.reading():  # only now, because an answer may have begun meanwhile
            answers = await answers_left(self._hub.runtime, channel, message_id)
        for answer_id in answers:
            with suppress(NotFound):
                await self._hub.delete(channel, answer_id)

    async def command(
        self,
        channel: str,
        name: str,
        *,
        target: str | None = None,
        data: Json = None,
        id: str | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> Command:
        """Send a command of the caller, such as `cancel` or `regenerate`. Raises NotFound, Finished, TooMany, …

        `options` of a `regenerate` replace those of the question, by their names, for the new answers.
        """
        self.check(channel, "command", *(["publish"] if options else []))
        key = command_key(self._hub.clock.id_or_new(id))
        request = SendCommand(name=name, target=target, data=data, options=dict(options or {}))
        result = await self._ask(channel, key, request)
        assert result.command is not None
        return result.command

    async def cancel_turns(self, channel: str, *, hidden_by: str | None = None) -> None:
        """Cancel the turns of `open_turns`, as the command `cancel` does. Turns that end meanwhile are left alone.

        With `hidden_by`, the id of a question with such a turn, only the caller's earlier versions of it, and messages
        behind one of them (among the newest 200).
        """
        self.check(channel, "command")
        # an answer to no message is cancelled itself
        targets = [turn.message or turn.answers[0] for turn in await self.open_turns(channel)]
        if hidden_by is not None:
            new = next((one for one in targets if one.id == hidden_by), None)
            author = self.identity.client_id
            own = [one for one in targets if new is not None and one.author == author and one.created < new.created]
            known: list[Message] = []
            with suppress(TenutoError):  # without them only the versions that wait or run are known
                known = (await self.history(channel, limit=200)).messages if own else []
            versions = versions_of(new, [*own, *known]) if new is not None else []
            old = {one.id for one in versions if one.author == author}
            targets = [one for one in own if not old.isdisjoint({one.id, *leading_to(known, one.id)})]
        for target in targets:
            with suppress(Finished, NotFound):
                await self.command(channel, "cancel", target=target.id)

    async def reply(
        self, channel: str, command_id: str, *, ok: bool = True, data: Json = None, error: Json = None
    ) -> None:
        """Reply to a command as the caller. Raises AlreadyAnswered, NotFound, Forbidden."""
        self.check(channel, "command")
        await self._ask(channel, command_key(check_id(command_id)), ReplyCommand(ok=ok, data=data, error=error))

    def taken_by(self, channel: str, message_id: str) -> str | None:
        """Return the id of the message whose turn has taken this user message in, as far as this server has it."""
        known = self._hub.channel(channel).state.messages.get(message_id)
        return known.claim.within if known is not None and known.claim is not None else None

    def is_interrupted(self, channel: str, message_id: str) -> bool:
        """Return whether a newer message has cancelled the turn of this one, as far as this server has it."""
        commands = self._hub.channel(channel).state.commands.values()
        return any(one.sent.target == message_id and one.sent.data == INTERRUPTED for one in commands)

    async def questions(self, channel: str, targets: Container[object], *, after: int, is_approved: bool) -> list[Json]:
        """Return data of the (approved) questions about `targets`: all since `after`, unless too many changed."""
        live = self._hub.channel(channel)
        async with self._hub.viewing.reading():
            await live.load_since(after)
        known = [one for one in live.state.commands.values() if one.sent.target in targets]
        return [one.sent.data for one in known if not is_approved or (one.reply is not None and one.reply.ok)]

    def agents(self, channel: str | None = None) -> dict[str, str]:
        """Return the names of the agents that serve `channel` or any, with their patterns (`WorkerPool.agents`)."""
        return self._hub.runtime.scheduler.workers.agents(channel)

    async def turn(self, channel: str, message_id: str) -> TurnStatus:
        """Return the turn of a user message, as `Hub.turn` does. Raises NotFound, Deleted."""
        self.check(channel, "history")
        async with self._hub.viewing.reading():
            return self._charged([await read_turn(self._hub.runtime, channel, check_id(message_id))])[0]

    async def conversation(self, channel: str, *, limit: int = 200, before: int | None = None) -> list[TurnStatus]:
        """Return the turns of the newest branch, oldest first, of the newest `limit` messages (at most 24 MiB).

        With `before` they are those created before this serial (`Message.created`).
        """
        self.check(channel, "history")
        async with self._hub.viewing.reading():
            return self._charged(await read_conversation(self._hub.runtime, channel, limit, before=before))

    async def conversations(self, prefix: str, *, limit: int = MAX_CONVERSATIONS) -> list[Conversation]:
        """Return at most `limit` (50) conversations that the caller may read, newest first.

        Their channels begin with `prefix`. Of more than 2,000 channels only the first in the order of names count.
        """
        within = narrowed(check_prefix(prefix), "", self.identity.patterns("history"))
        self.charge(EXPECTED_BYTES // 4)  # it reads the beginnings of many channels
        limit = max(1, min(limit, MAX_CONVERSATIONS))
        async with self._hub.viewing.reading():
            return await read_conversations(self._hub.store, self.identity, within, limit=limit)

    async def open_turns(self, channel: str) -> list[TurnStatus]:
        """Return the turns that wait or run, oldest first, and answers that stream without a user message.

        The answers of a turn are those that stream.
        """
        self.check(channel, "history")
        async with self._hub.viewing.reading():
            return self._charged(await read_open_turns(self._hub.runtime, channel))

    async def pending_commands(self, channel: str) -> list[Command]:
        """Return the commands of a channel without a reply, oldest first, as `Hub.pending_commands` does."""
        self.check(channel, "history")
        async with self._hub.viewing.reading():
            commands = await read_pending(self._hub.runtime, channel)
        self.charge(len(msgspec.json.encode(commands)))
        return commands

    async def history(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> Page:
        """Return a page of the channel's messages, as `Hub.history` does."""
        self.check(channel, "history")
        async with self._hub.viewing.reading():
            page = await self._hub.history(channel, before=before, after=after, limit=limit)
        self.charge(message_bytes(page.messages))
        return page

    def stream(
        self, channel: str, message_id: str, turn_format: TurnFormat, *, sent: Mapping[str, Sent] | None = None
    ) -> TurnResponse:
        """Return the response that streams a turn, and ends with it. It needs `subscribe` too.

        `sent` has the caller's position in each answer that it has, by the answers' ids; other answers are whole.
        Raises InvalidRequest for a negative length.
        """
        self.check(channel, "subscribe", "history")
        for id, position in (sent or {}).items():
            if any(length < 0 for length in position.lengths):
                raise InvalidRequest(
                    f"each length in sent[{id[:64]!r}] must be at least 0, the number of code points that the caller "
                    f"has of a part, got {min(position.lengths)}"
                )
        return TurnResponse(self, channel, message_id, turn_format, sent or {})

    async def follow(
        self,
        channel: str,
        message_id: str,
        turn_format: TurnFormat,
        receive: Receive,
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """Run a turn through its format to its end, with `write` for its bytes, in place of a response.

        It takes a connection slot. Raises Draining if the hub, or a `http.disconnect` of `receive`, cut it, and the
        errors with which the response of `stream` would refuse.
        """
        is_complete = False

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal is_complete
            is_complete = message["type"] == "http.response.body" and not message.get("more_body")
            if write is not None and (body := message.get("body")):
                await write(body)

        await self.stream(channel, message_id, turn_format).run(receive, send)
        if not is_complete:
            raise Draining("the hub broke the stream off; the turn goes on, so read it later, or after the last event")

    async def _ask(
        self, channel: str, key: str, request: HubRequest, *, starts_turn: bool = True, is_brought: bool = False
    ) -> Result:
        """Submit a request of the caller, and count its bytes. If its message `is_brought`, it needs no `append`."""
        hub = self._hub
        if (refusal := refusal_of_get(hub, self._scope)) is not None:
            raise refusal
        caller = self._credentials.caller(channel)
        caller = replace(caller, brings_answer=not starts_turn, may_write=caller.may_write or is_brought)
        result = await hub.ask(channel, key, request, caller)
        self._credentials.count_new_channel(result)
        if result.created and hub.channel(channel).watchers:  # else no viewer gets the event
            self.charge(event_bytes(hub, channel, result, len(msgspec.json.encode(request))))
        return result

    def _charged(self, turns: list[TurnStatus]) -> list[TurnStatus]:
        """Count the bytes of `turns`, which a response will have, and return them."""
        self.charge(turn_bytes(turns))
        return turns

    def charge(self, size: int) -> None:
        """Count bytes that a response has beside the read turns and messages. Later requests may be refused for it."""
        self._credentials.charge(size)


class TurnResponse(Response):
    """The stream of a turn as a response. An error before the first byte becomes a problem response."""

    problem_form: ProblemForm | None = None  # by default that of its endpoint (`guarded`)

    def __init__(
        self, access: Access, channel: str, message_id: str, turn_format: TurnFormat, sent: Mapping[str, Sent]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache, no-transform", **turn_format.headers})
        del self.headers["content-length"]
        self._access = access
        self._channel = channel
        self._message_id = message_id
        self._format = turn_format
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.run(receive, send, is_head=scope["method"] == "HEAD")
        except TenutoError as error:
            response = problem_response(error, form=self.problem_form)
            if scope["method"] == "POST":  # its question is stored, and SDKs of OpenAI would ask it again
                response.headers["x-should-retry"] = "false"
            await response(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def run(self, receive: Receive, send: Send, *, is_head: bool = False) -> None:
        """Send the stream. Raises the error of a refusal, before the first byte."""
        access, hub = self._access, self._access._hub
        credentials = Credentials(hub, access._scope, access.identity)
        stream = TurnStream(access._app, send, credentials, self._message_id, self._format, self._sent)
        try:
            credentials.take_slot()
            async with hub.viewing.reading():
                # no variable, which would keep the text of the turn until the stream ends
                await stream.attach(self._channel, await read_turn(hub.runtime, self._channel, self._message_id))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if is_head:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await stream.run(receive)
        finally:
            stream.close()


class RouteSocket:
    """A WebSocket of a route of an app's own, under the rules of the hub's sockets (`Hub.serve_socket`)."""

    def __init__(self, access: Access, credentials: Credentials, receive: Receive, send: Send) -> None:
        self.access = access
        self.frame_bytes = 0  # size of the frame that `frames` has yielded last
        self._credentials = credentials
        self._receive = receive
        self._send = send
        self._sending = asyncio.Lock()
        self._limit = asyncio.timeout(None)  # `run` sets another
        self._closing: tuple[int, str] | None = None  # code and reason, once it closes

    async def run(self, handle: Callable[[RouteSocket], Awaitable[None]], *, max_s: float) -> None:
        """Accept the socket, and close it when `handle` returns, after `max_s`, on expiry, and when the hub drains."""
        hub = self.access._hub
        unhook = hub.on_drain(drain := partial(self.close, DRAINED, "draining"))
        self._credentials.watch(lambda: self.close(EXPIRED, "unauthenticated"))
        try:
            headers = cookie_headers(self.access._scope)
            await self._send({"type": "websocket.accept", "headers": headers})
            async with asyncio.timeout(max_s) as self._limit:
                if self._closing is None and not hub.viewing.is_over:
                    await handle(self)
                else:
                    drain()  # it may have begun before the hook
        except TimeoutError:
            if not self._limit.expired():
                raise  # that of `handle` itself
        finally:
            unhook()
            code, reason = self._closing or (1000, "")
            with suppress(OSError, RuntimeError, TimeoutError):  # servers raise them if the peer has disconnected
                async with asyncio.timeout(FAREWELL_S):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def frames(self) -> AsyncIterator[dict[str, Json] | TenutoError]:
        """Yield the received JSON objects, of at most `Limits.message_bytes`, or an error in place of a refused one."""
        limit_bytes = self.access.limits.message_bytes
        while self._closing is None:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")  # None in a binary frame
            data = (text or "").encode(errors="surrogatepass")
            if text is None or len(data) > limit_bytes:
                self.close(*((MISUSED, "invalid_request") if text is None else (FRAME_TOO_LARGE, "too_large")))
                return
            self.frame_bytes = len(data)
            try:
                self._credentials.count_request(len(data))
                yield decode(data, _JSON_OBJECT)
            except TenutoError as error:
                yield error
                if isinstance(error, TooMany):
                    await asyncio.sleep(REFUSED_PAUSE_S)  # read the next frames of such a peer slowly
            del message, text, data  # the next one may come late

    async def send(self, frame: bytes) -> None:
        """Send a frame. Calls of several tasks wait for each other. Raises OSError for a peer that does not read."""
        async with self._sending, asyncio.timeout(SEND_TIMEOUT_S):
            await self._send({"type": "websocket.send", "text": frame.decode()})

    async def stream(self, channel: str, message_id: str, turn_format: TurnFormat) -> dict[str, Json] | None:
        """Send each line of a turn in its format as a frame, and return None at its end, else the problem that cut it.

        The stream takes a connection slot, besides that of the socket.
        """

        async def write(body: bytes) -> None:
            for line in filter(None, body.split(b"\n")):
                await self.send(line)

        async def receive() -> MutableMapping[str, Any]:
            await asyncio.get_running_loop().create_future()  # for ever: the peer's frames are not for the stream
            raise AssertionError

        try:
            await self.access.follow(channel, message_id, turn_format, receive, write)
        except TenutoError as error:
            return self.problem(error)
        return None

    def problem(self, error: TenutoError) -> dict[str, Json]:
        """Return `error` as a problem object for the peer; paths of a store stay in the log."""
        return for_peers(error).problem()

    def close(self, code: int, reason: str) -> None:
        """Close the socket; the wait of `handle` is cancelled. A second call has no effect."""
        if self._closing is None:
            self._closing = code, reason
            if self._limit.when() is not None and not self._limit.expired():
                self._limit.reschedule(asyncio.get_running_loop().time())


async def authorize(app: StreamApp, scope: HubScope, channel: str | None, capabilities: Iterable[str]) -> Access:
    """Return the access of a caller (`Hub.authorize`)."""
    check_peer(app.hub, scope)
    await check_serving(app.hub)
    access = Access(app, scope, await identify(app.hub, scope))
    if channel is not None:
        access.check(channel, *capabilities)
    return access


def guarded(endpoint: Endpoint, form: ProblemForm | None = None) -> Endpoint:
    """Return `endpoint` with its errors as problem responses: a TenutoError as it is, any other one as `internal`.

    With `form` their bodies are `form(problem)` as JSON. Its responses get the headers of the hub's own, unless they
    have others.
    """

    async def wrapped(request: Request) -> Response:
        try:
            response = await endpoint(request)
            if isinstance(response, TurnResponse):
                response.problem_form = response.problem_form or form
            for name, value in GUARDS:
                response.headers.setdefault(name.decode(), value.decode())
            return response
        except ClientDisconnect:
            return Response(status_code=499)  # the peer is gone, so no client receives it
        except Exception as error:
            return problem_response(known_error(error, "a route failed"), form=form)

    return wrapped
