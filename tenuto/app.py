"""The hub as an ASGI application, which users import as `tenuto.Hub`.

Layer: app.

This module joins the hub and its transports. `Hub(...)` can be mounted like any ASGI app; `install` and `wrap` also tie
its lifespan to that of the host. `Hub(authenticate=visitors())` gives each browser without an account chats of its own:
`hub.access.visitors` has the ids and their proofs, `hub.access.rates` the limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property, partial
from typing import Any
from weakref import WeakValueDictionary

from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from tenuto.agents.local import LocalAgent
from tenuto.agents.running import Agent, Handler, check_agent
from tenuto.agents.turn import OnCrash
from tenuto.core.deltas import TurnStatus
from tenuto.core.errors import Deleted, Draining, IdConflict, LocalError, NotFound, TenutoError, TooMany, shown
from tenuto.core.events import Cursor
from tenuto.core.model import Command, Json
from tenuto.core.names import check_channel, check_pattern
from tenuto.core.requests import CreateMessage
from tenuto.core.turns import ATTEMPTS, WhenBusy
from tenuto.core.turns import reply_id as derived_id
from tenuto.core.visitor_ids import visitor_of
from tenuto.hub import HubCore
from tenuto.hub.access.identity import Authenticate
from tenuto.hub.access.rates import Asked, QuestionLimits, Route, current_route
from tenuto.hub.access.visitors import VisitorVerifier, cookie_headers, visit_in
from tenuto.hub.checks import check_authenticate
from tenuto.hub.keep.control import open_control
from tenuto.hub.turns.status import next_status, read_pending, read_turn
from tenuto.response import Answering, Opened, StreamResponse, Style, check_source, check_style, find_newest
from tenuto.routes import Access, RouteSocket, authorize
from tenuto.transports.access import Credentials, identify
from tenuto.transports.app import App, check_asgi, check_path, mount, refuse_socket, respond_to_refusals
from tenuto.transports.codec import peer_of, problem_headers
from tenuto.transports.origin import check_peer, refusal_of_get, refusal_of_page
from tenuto.transports.sender import abort_if_unread
from tenuto.transports.streams import EndFrame

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Hub(HubCore):
    """Durable channels over HTTP, SSE, WebSocket and long poll: `app.mount("/tenuto", Hub("sqlite:///chat.db"))`."""

    path = ""  # path under which the hub is mounted; `install` and `wrap` set it

    def agent(
        self,
        pattern: str,
        *,
        name: str | None = None,
        when_busy: WhenBusy = "queue",
        on_crash: OnCrash = "restart",
        timeout_s: float = 3600.0,
        budget_s: float | None = None,
        max_tries: int = ATTEMPTS,
        slots: int = 1_000,
    ) -> Callable[[Handler], Handler]:
        """Run a handler for each new user message in channels that match `pattern`: `@hub.agent("chat:*")`.

        `name` (by default the function's) is the author of its answers, and the member that people see. `when_busy`
        decides about a message that arrives while the channel has a turn: `queue` waits for the turn's end, `interrupt`
        cancels it, `parallel` runs beside it. `on_crash` decides about a turn whose process died: `restart` runs the
        handler again, whose first text supersedes what the answer holds, `continue` runs it to continue the answer at
        its end, `interrupt` ends the turn. An attempt at a turn takes at most `timeout_s` seconds, all attempts
        together `budget_s`, without the time in which the turn waits for a person. After `max_tries` (1 to 5) attempts
        whose process died the turn fails. At most `slots` turns run at once.
        """
        check_pattern(pattern)

        def register(handler: Handler) -> Handler:
            own = getattr(handler.func if isinstance(handler, partial) else handler, "__name__", "agent")
            agent = check_agent(Agent(handler, name or own, on_crash, timeout_s, budget_s, max_tries))
            local = LocalAgent(self, agent, pattern, when_busy=when_busy, slots=slots)
            self.on_start(local.start)
            return handler

        return register

    def stream_response(
        self,
        channel: str,
        source: object,
        *,
        prompt: str | None = None,
        prompt_by: str | None = None,
        reply_id: str | None = None,
        author: str | None = "assistant",
        style: Style = "events",
        end_frame: EndFrame | None = None,
        source_kind: str | None = None,
        text_field: str | None = None,
        meta: dict[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        cancel_after_s: float | None = None,
    ) -> StreamResponse:
        """Return the response of an endpoint that streams an answer; the answer outlives the request.

        `source` is the stream, of text, of server-sent events with text, or of a model's SDK as `pipe` accepts it, or a
        function that returns one. A function is better: the resources it opens then live as long as the stream, not as
        long as the request. `source_kind` names its kind if its first item does not, as `source` of `pipe` does: "text"
        for prose that may begin with `data:`. `text_field` names the field with the text in JSON objects of server-sent
        events. A task of the hub, with the caller's context variables, writes the stream to message `reply_id` of
        `channel`, after the user's `prompt` if given.

        `style` is `events` (named events `thinking`, `answer`, `done`), `data` (plain `data:` and `[DONE]`), `ai-sdk`
        (the stream of the AI SDK), or a function that returns the frame of a text; `end_frame` then follows a complete
        answer, or is a function of the answer's status. The headers `Tenuto-Channel`, `Tenuto-Message` and
        `Location` tell a reloaded page where to find the answer. A disconnected reader does not stop the answer; with
        `cancel_after_s` it is cancelled after that time without any reader, of this response or of the channel. A
        repeat with the same `reply_id` joins the existing answer, if this application began it as `author` for the same
        prompt; any other message under that id is an IdConflict. Without a `reply_id`, an EventSource that reconnects
        joins the answer that it was reading.

        With the empty prompt `""` the request asks nothing, and `source` is not called: a reloaded page gets the answer
        to the newest question of the channel, or the answer `reply_id`, in the same style, from its beginning and then
        live. Without an answer it gets status 204, and an EventSource stops. A HEAD request begins no answer.
        """
        check_source(source, source_kind, text_field)
        check_style(style, end_frame)
        resumes = prompt == ""  # True: the request begins no answer
        route = current_route()  # here: the response of a blocking route is sent in another context
        new_id = None if resumes else self.clock.id_or_new(reply_id)
        check_channel(channel)

        async def ask(message_id: str, scope: Scope) -> str | None:
            """Store the prompt of the answer `message_id`, and return its id; None without a prompt.

            A repeated call adds no second prompt, because it computes the same id.
            """
            if not prompt:
                return None
            request = CreateMessage(role="user", text=prompt)
            visitor = visit_in(dict(scope), self.authenticate).client_id if self.questions is not None else None
            caller = replace(self.caller(prompt_by or visitor), brings_answer=True)  # no agent answers the prompt
            prompt_id = derived_id(message_id, 0)
            await self.ask(channel, prompt_id, request, caller)
            return prompt_id

        async def join(message_id: str, scope: Scope) -> Opened | None:
            """Return the answer `message_id` if this request may read it: its id may come from the page."""
            try:
                if reply_id is not None or not resumes:  # else the hub has found it
                    prompt_id = derived_id(message_id, 0) if prompt is not None else None
                    await _check_own_answer(self, channel, message_id, author=author, reply_to=prompt_id)
                    await ask(message_id, scope)  # raises IdConflict if the prompt is another one
                await self.read(channel, message_id)
            except (NotFound, Deleted, IdConflict):
                return None
            return Opened(message_id, None)

        async def begin(message_id: str, scope: Scope) -> Opened:
            """Begin the answer `message_id`, or join it if an earlier request has begun it."""
            async with self._openings.setdefault(channel, asyncio.Lock()):
                await self.start()
                try:
                    asked = _count_answer(self, route, channel, prompt, prompt_by, scope)
                except TooMany:
                    joined = await join(message_id, scope)
                    if joined is not None:
                        return joined  # a repeat begins no answer
                    raise
                answering: Answering | None = None
                try:
                    prompt_id = await ask(message_id, scope)
                    writer = self.message(channel, id=message_id, author=author, meta=meta, reply_to=prompt_id)
                    try:
                        await writer.open()
                        answering = Answering(self, writer, source, source_kind, text_field, prompt_id, cancel_after_s)
                        answering.start()
                    except IdConflict:
                        await _check_own_answer(self, channel, message_id, author=author, reply_to=prompt_id)
                finally:
                    if answering is None:  # it failed, or the answer was counted when it began
                        asked.give_back()
                return Opened(message_id, answering)

        async def open_answer(since: Cursor | None, scope: Scope) -> Opened | None:
            """Begin the answer, or join the one that the reader with the cursor `since` was reading.

            None: the request asks nothing, and there is no answer.
            """
            if new_id is not None and (reply_id is not None or since is None):
                return await begin(new_id, scope)
            async with self._openings.setdefault(channel, asyncio.Lock()):  # behind answers that begin now
                await self.start()
            known = reply_id or (self.tickets.named(since, channel) if since is not None else None)
            known = known or await find_newest(self, channel, since)
            joined = await join(known, scope) if known is not None else None
            return joined or (await begin(new_id, scope) if new_id is not None else None)

        return StreamResponse(
            open_answer,
            self._asgi,
            channel,
            new_id,
            is_repeatable=reply_id is not None,
            style=style,
            end_frame=end_frame,
            path=self.path,
            headers=headers,
        )

    @cached_property
    def _openings(self) -> WeakValueDictionary[str, asyncio.Lock]:
        """Return the locks under which questions to a channel are stored and their answers begin, one after the other.

        A request that looks for the newest answer waits for those before it. A lock lives as long as it is held.
        """
        return WeakValueDictionary()

    async def authorize(
        self, scope: MutableMapping[str, Any], channel: str | None = None, capabilities: Iterable[str] = ()
    ) -> Access:
        """Return the access of the caller of a route of your own, under the rules of the hub's own routes.

        The verifier identifies the caller, by the rules about origins, cookies and rates. With `channel`, the caller
        needs all `capabilities` on it. Raises Unauthenticated, Forbidden, NoVerifier, InvalidName, TooMany, Draining.
        """
        visit = visit_in(scope, self.authenticate) if self.questions is not None else None  # the copy shares it
        access = await authorize(self._asgi, dict(scope), channel, capabilities)
        if visit is not None:  # a question that the route stores counts for this visitor
            visit.enter_route(peer_of(dict(scope)), refusal_of_get(self, dict(scope)))
        return access

    async def serve_socket(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        handle: Callable[[RouteSocket], Awaitable[None]],
        *,
        max_s: float = 3600.0,
    ) -> None:
        """Serve a WebSocket of your own, for at most `max_s`, with `handle(socket)`.

        The rules of the hub's own sockets hold. The verifier identifies the caller by the headers of the upgrade; there
        is no `auth` frame. A refused caller gets a problem response. The socket closes, and `handle` is cancelled, when
        the identity expires or the hub drains.
        """
        scope = dict(scope)
        await receive()  # the first ASGI message: websocket.connect
        try:
            access = await authorize(self._asgi, scope, None, ())
            credentials = Credentials(self, scope, access.identity)
            credentials.take_slot()
        except TenutoError as error:
            await refuse_socket(scope, error, receive, send)
            return
        try:
            await RouteSocket(access, credentials, receive, send).run(handle, max_s=max_s)
        finally:
            credentials.leave()
            abort_if_unread(receive, lambda: self.viewing.is_over)  # the peer may not read on

    async def turn(self, channel: str, message_id: str, *, after: TurnStatus | None = None) -> TurnStatus:
        """Return the turn of a user message: its state, its answers, and the agent's questions without a reply.

        With `after`, an earlier status, wait until the state, an answer's status or the questions are others. Raises
        NotFound, Deleted, and Draining while it waits.
        """
        await self.start()
        if after is None:
            return await read_turn(self.runtime, check_channel(channel), message_id)
        woken = asyncio.Event()
        unhook = self.on_drain(woken.set)
        try:
            while True:
                if self.is_draining:
                    raise Draining("hub is shutting down; ask for the turn again after its restart")
                now = await next_status(self.runtime, check_channel(channel), after, woken)
                if now is not None:  # otherwise it was woken without a change
                    return now
        finally:
            unhook()

    async def pending_commands(self, channel: str) -> list[Command]:
        """Return the commands of `channel` without a reply, oldest first: cancels, questions of agents, your own."""
        await self.start()
        return await read_pending(self.runtime, check_channel(channel))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    @cached_property
    def _asgi(self) -> App:
        return App(self)

    def _open_control(self) -> None:
        open_control(self, self)

    def install(self, app: Any, path: str) -> None:
        """Mount the hub in a Starlette or FastAPI app at `path`; it starts and closes with the app's lifespan.

        The hub is placed before earlier routes that would hide it, such as static files at `/`. If the hub refuses a
        request that a route of the app makes, the response has the status of the refusal, such as 429, unless the app
        has a handler of its own for `TenutoError`.
        """
        self.path = check_path(path)
        mount(app, self.path, self)
        respond_to_refusals(app)
        before = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(host: Any) -> AsyncIterator[Any]:
            respond_to_refusals(app)  # again, for apps mounted since
            await self.start()
            try:
                async with before(host) as state:
                    yield state
            finally:
                await self.close()

        app.router.lifespan_context = lifespan

    def wrap(self, app: AsgiApp, path: str) -> AsgiApp:
        """Return an ASGI app that serves the hub under `path`, and `app` elsewhere, such as Django's.

        The hub handles the lifespan protocol, which Django does not support. The responses of `app` get the cookies of
        new visitors that it meets by `visitors().of(request)`.
        """
        check_asgi(app)
        prefix = self.path = check_path(path)

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self(scope, receive, send)
                return
            root = scope.get("root_path", "")
            inner = scope["path"].removeprefix(root)
            if inner == prefix or inner.startswith(prefix + "/"):
                await self({**scope, "root_path": root + prefix}, receive, send)
                return
            if self._run is None:  # no lifespan came, and a thread of `app` would begin the run on another loop
                with suppress(LocalError):  # the hub's own calls raise it
                    self._begin_run(asyncio.get_running_loop(), None)
            if self.questions is not None and scope["type"] == "http":
                visit_in(scope, self.authenticate)  # now, so that copies of the scope share it
                send = _with_cookies(scope, send)
            await app(scope, receive, send)

        return wrapped


def _with_cookies(scope: Scope, send: Send) -> Send:
    """Return `send` with the cookies that the response to `scope` must have."""

    async def send_marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            known = [tuple(one) for one in message.get("headers", ())]
            message = {**message, "headers": known + [one for one in cookie_headers(scope) if one not in known]}
        await send(message)

    return send_marked


def _count_answer(
    hub: Hub, route: Route, channel: str, prompt: str | None, prompt_by: str | None, scope: Scope
) -> Asked:
    """Count an answer that the app begins for a visitor, unless the app has stored its question, which counts.

    Raises TooMany, and Forbidden for a page of another site.
    """
    if hub.questions is None:
        return Asked([])
    visitor = visit_in(dict(scope), hub.authenticate).client_id or visitor_of(channel, hub.caller(prompt_by))
    if visitor is None:
        return Asked([])  # only answers to visitors are counted
    if (refusal := refusal_of_page(hub, dict(scope))) is not None:
        raise refusal
    if route.answer(channel) and not prompt:  # a `prompt` is one more question
        return Asked([])
    return hub.questions.ask(visitor, peer_of(dict(scope)))


async def _check_own_answer(
    hub: Hub, channel: str, message_id: str, *, author: str | None, reply_to: str | None
) -> None:
    """Raise IdConflict unless the message is an answer to `reply_to` that this application began as `author`.

    An id may come from the page. Another message under it, of a person or for another prompt, is not the answer.
    """
    known = await hub.runtime.message(channel, message_id)
    writer = known.writer
    # only a writer in a hub's process has a `node`, so the message is this application's, not a client's
    is_by_app = writer is not None and writer.node is not None and writer.by == author
    if not (is_by_app and (known.role, known.author, known.reply_to) == ("assistant", author, reply_to)):
        raise IdConflict(
            f"message {shown(message_id)} exists and is not the answer of author {shown(author)} that this "
            "application began for the same prompt; choose another reply_id"
        )


def visitors(
    verify: Authenticate | None = None,
    *,
    key: str | bytes | Sequence[str | bytes] = (),
    questions_per_minute: int = 10,
    questions_per_day: int = 100,
    address_factor: int = 10,
    keep_days: int | None = 30,
) -> Visitors:
    """Return an `authenticate` for `Hub` that gives each browser a random id, in a signed cookie.

    A visitor may use only the channels `chat:{id}` and `chat:{id}.…`. `verify` is a second verifier, which is called
    for callers without a token that this hub gave a visitor: its identities are persons, whose ids may not have the
    form of a visitor's, and all others are visitors. `key` (at least 32 bytes; several to rotate) signs the ids;
    without one the hub keeps a key in its store. The limits count requests that cost a call of the model: the questions
    of each visitor, and `address_factor` times as many of all visitors of one address. Messages in visitors' channels
    are removed after `keep_days`, unless `retention` has a rule for the channel; None keeps them. Raises LocalError.
    """
    check_authenticate(verify)
    if isinstance(verify, VisitorVerifier):
        raise LocalError("verify must be a verifier of persons, got visitors(); call visitors() once")
    if keep_days is not None and (not isinstance(keep_days, int) or isinstance(keep_days, bool) or keep_days < 1):
        raise LocalError(f"keep_days must be a whole number from 1 on, or None to keep all, got {shown(keep_days)}")
    given = [key] if isinstance(key, str | bytes) else key
    keys = [one.encode() if isinstance(one, str) else one for one in given]
    limits = QuestionLimits(per_minute=questions_per_minute, per_day=questions_per_day, address_factor=address_factor)
    return Visitors(verify, keys=keys, limits=limits, keep_days=keep_days)


class Visitors(VisitorVerifier):
    """An `authenticate` that makes each browser without another identity a visitor; made by `visitors`."""

    # The annotations are those that FastAPI needs to call this as a dependency: `Depends(guests.of)`.
    async def of(self, request: HTTPConnection, response: Response = None) -> str:  # type: ignore[assignment]
        """Return the id of the caller of a route of your own: a visitor's, or that of a signed-in person.

        The cookie of a new visitor is set on `response` if it is given, and on the response of `hub.stream_response`
        and of an app within `hub.wrap` in any case. Raises starlette's HTTPException (401, 403, 429, 503) for a caller
        that the hub would refuse; for a request of Django, which has a `scope`, too, the TenutoError itself.
        """
        visit = visit_in(request.scope, self)  # now, so that the copy of the scope shares it
        scope, hub = dict(request.scope), self.hub
        assert isinstance(hub, HubCore)
        try:
            check_peer(hub, scope)
            identity = await identify(hub, scope)
        except TenutoError as error:
            if not isinstance(request, HTTPConnection):
                raise
            headers = {name: value for name, value in problem_headers(error).items() if name != "content-type"}
            raise HTTPException(error.status, error.detail, headers) from None
        visit.enter_route(peer_of(scope), refusal_of_get(hub, scope))  # what the route asks counts for the caller
        if identity.client_id is None:
            raise LocalError("the identity of the second verifier of visitors() has no client_id; give it one")
        for value in visit.set_cookies if response is not None else ():
            response.headers.append("set-cookie", value.decode())
        return identity.client_id
