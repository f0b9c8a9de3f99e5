"""The demo's application: its pages, the hub behind them with an agent, and a few routes of its own.

Layer: demo.

This module connects the guide to a hub. Only the page calls the routes below `/demo`, so they may change together with
it. The hub's own `/web` serves the page's files, and the page sends messages to the hub like any client.

The guide continues answers of an earlier process: `on_crash="continue"`. A model cannot continue in the middle of a
sentence, so with a model the interrupted answer stays and another answer follows.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tenuto.agents.turn import OnCrash
from tenuto.app import Hub
from tenuto.core.answer_ids import reply_ids
from tenuto.core.deltas import MessageProgress, PartOpened, TextAdded
from tenuto.core.errors import InvalidName, InvalidRequest, shown
from tenuto.core.model import Message
from tenuto.core.names import check_channel, check_id
from tenuto.demo.agent import Settled, plan
from tenuto.demo.answers import ready_answers
from tenuto.demo.control import AGENTS, CHANNELS, IN_SERVER
from tenuto.demo.guests import COOKIE, INVITE_S, STAY_S, Guests
from tenuto.demo.guide import LONGEST_QUESTION, Guide, Sleep
from tenuto.demo.model import model_in
from tenuto.demo.passages import library
from tenuto.demo.refusals import NoAnswer, NoLan, NoSupervisor, NotAnAgent
from tenuto.hub.patterns import matches
from tenuto.hub.workers import AssignedTurn
from tenuto.transports.access import identify
from tenuto.transports.app import WEB
from tenuto.transports.calls import read_body
from tenuto.transports.codec import decode
from tenuto.transports.headers import peer_of
from tenuto.transports.http import Endpoint
from tenuto.transports.origin import check_peer
from tenuto.transports.query import Query

__all__ = ["Supervision", "build"]

# far fewer slots than an agent in a process of its own has, because the scheduler prefers the worker with the most free
# slots
SLOTS = 100
_BODY_BYTES = 1024
_NO_STORE = {"cache-control": "no-store"}

# The page loads no file of another site and runs no code of a message; this header makes browsers enforce both.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Supervision(Protocol):
    """The process that starts this server again after a crash, and runs the agents."""

    starts: int  # number of servers that it has started, including this one

    @property
    def down_s(self) -> float | None:
        """Return how long no server served before this one; None for the first."""

    def kill_server(self) -> None:
        """Kill this process with SIGKILL, once its response has been sent."""

    async def kill_agent(self, agent: str) -> int | None:
        """Kill an agent with SIGKILL; return its process id when it is dead, or None if it does not run."""


def build(
    store_url: str,
    *,
    flush_ms: int = 40,
    sleep: Sleep = asyncio.sleep,
    environ: Mapping[str, str] = os.environ,
    supervision: Supervision | None = None,
    guests: Guests | None = None,
) -> Starlette:
    """Return the demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    `sleep` waits between the tokens of an answer. If `environ` has the key of a model, the model answers instead of the
    documentation. With `guests` other machines reach the demo, and a verifier decides who may do anything.
    """
    # Shutdown gives answers no time to finish: the next start continues them, which the demo exists to show.
    address = guests.address if guests is not None else None
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0, authenticate=guests, public_origin=address)
    model = model_in(environ)
    library()  # read at start-up; an installation without its documentation fails here
    guide = Guide(hub, model, sleep)
    on_crash: OnCrash = "continue" if model is None else "restart"
    hub.agent(CHANNELS, name=IN_SERVER, on_crash=on_crash, slots=SLOTS)(guide.answer)
    if supervision is None or supervision.starts == 1:
        hub.on_start(
            lambda: guide.ended_with_server(_lose_agents(hub, *AGENTS))
        )  # agents of an earlier run ended with their supervisor, so they no longer work on their turns
    name = None if model is None else model.name or "the model of OPENAI_BASE_URL"
    routes = _Routes(hub, name, sleep, supervision, guests)
    app = Starlette(
        routes=[
            Route("/", _endpoint(hub, "GET", _page("index.html"), is_public=True)),
            Route("/one-tag", _endpoint(hub, "GET", _page("one_tag.html"), is_public=True)),
            Route("/demo/info", _endpoint(hub, "GET", routes.info, is_public=True)),
            Route("/demo/join", _endpoint(hub, "POST", routes.join, is_public=True)),
            Route("/demo/kill", _endpoint(hub, "POST", routes.kill)),
            Route("/demo/crash", _endpoint(hub, "POST", routes.crash)),
            Route("/demo/plain", _endpoint(hub, "GET", routes.plain)),
            Route("/demo/invites", _endpoint(hub, "POST", routes.invite)),
        ]
    )
    app.state.hub = hub  # `tenuto demo` starts it first, to report errors of the store plainly
    hub.install(app, "/tenuto")
    app.router.routes.insert(
        0, Mount("/tenuto/web/demo", _Files(directory=WEB / "demo"))
    )  # the hub serves these files beside the client's modules
    return app


def _lose_agents(hub: Hub, *names: str) -> list[AssignedTurn]:
    """Let other agents take the turns of agents whose processes are gone, and end the leases of their answers."""
    turns = [turn for name in names for turn in hub.runtime.scheduler.abandon(name)]
    for turn in turns:
        for answer in reply_ids(turn.message_id, turn.generation):
            hub.runtime.leases.end(turn.channel, answer)
    return turns


class _Files(StaticFiles):
    """The page's files, with the page's headers, because a browser may open a picture as a page, too.

    Only the demo has pictures.
    """

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


def _no_lan() -> NoLan:
    return NoLan(
        "This demo runs on this machine only; to let other people in, end it and start it with: make demo LAN=1 "
        "(tenuto demo --lan)"
    )


def _no_supervisor() -> NoSupervisor:
    return NoSupervisor("This server has no supervisor to start it again; start the demo with: make demo (tenuto demo)")


class _InChannel(msgspec.Struct):
    channel: str | None = None


class _Join(msgspec.Struct):
    secret: str


_in_channel = msgspec.json.Decoder(_InChannel)
_join = msgspec.json.Decoder(_Join)


class _Routes:
    """The routes that the page calls beside those of the hub."""

    def __init__(
        self, hub: Hub, model: str | None, sleep: Sleep, supervision: Supervision | None, guests: Guests | None
    ) -> None:
        self._hub = hub
        self._model = model
        self._sleep = sleep
        self._supervision = supervision
        self._guests = guests

    async def info(self, request: Request) -> Response:
        """Handle `GET /demo/info`: return data about this server and about the caller, for the page."""
        pid = os.getpid()
        person = self._guests.person(dict(request.scope)) if self._guests is not None else None
        body = {
            "pid": pid,
            "kill": f"kill -9 {pid}",
            "model": self._model,
            "questions": [one.question for one in ready_answers()],
            "canKill": self._supervision is not None,
            "starts": self._supervision.starts if self._supervision is not None else 1,
            "downSeconds": self._supervision.down_s if self._supervision is not None else None,
            "lan": self._guests is not None,
            "person": {"id": person.id, "name": person.name} if person is not None else None,
        }
        return JSONResponse(body, headers=_NO_STORE)

    async def kill(self, request: Request) -> Response:
        """Handle `POST /demo/kill`: kill this process after the response."""
        if self._supervision is None:
            raise _no_supervisor()
        self._supervision.kill_server()
        return JSONResponse({"pid": os.getpid()}, 202, _NO_STORE)

    async def crash(self, request: Request) -> Response:
        """Handle `POST /demo/crash {channel}`: kill the agent that answers there; another one continues the answer."""
        if self._supervision is None:
            raise _no_supervisor()
        channel = _checked((await _body(request)).channel)
        agent = await self._answering(channel)
        if agent is None:
            raise NoAnswer(f"Channel {channel} has no running answer; ask a question, and try again.")
        if agent == IN_SERVER:
            raise NotAnAgent(
                "The server itself writes this answer, since its agents were not ready. Kill the server, or ask again."
            )
        pid = await self._supervision.kill_agent(agent)
        if pid is None:
            raise NoAnswer(f"The agent {agent} has ended already; another agent continues the answer.")
        _lose_agents(self._hub, agent)
        return JSONResponse({"pid": pid, "agent": agent}, headers=_NO_STORE)

    async def plain(self, request: Request) -> Response:
        """Handle `GET /demo/plain?channel=&message=`: the text and pace of that answer, as a bare endpoint has them."""
        query = Query(request.scope)
        channel = _checked(query.text("channel"))
        answer, cursor = await self._hub.read(channel, check_id(query.text("message"), "message"))
        if answer.reply_to is None:
            raise InvalidRequest(
                f"message must be the id of an answer, got {shown(answer.id)}, which answers no message"
            )
        if self._model is None:
            question, _ = await self._hub.read(channel, answer.reply_to)
            stream = self._repeat(question.id, question.text[:LONGEST_QUESTION])
        else:
            stream = self._relay(channel, answer, cursor)  # a call of its own would pay the model twice
        return StreamingResponse(stream, headers=_NO_STORE, media_type="text/plain; charset=utf-8")

    async def _repeat(self, question_id: str, question: str) -> AsyncIterator[str]:
        """Yield the guide's answer to a question at its pace, without the hub."""
        for text, delay_s in plan(question, Settled.of(question_id, question)):
            await self._sleep(delay_s)
            yield text

    async def _relay(self, channel: str, answer: Message, cursor: str) -> AsyncIterator[str]:
        """Yield the text of a model's answer while the agent writes it."""
        progress = MessageProgress(answer.id)
        deltas = progress.begin(answer)
        async with aclosing(self._hub.subscribe(channel, since=cursor).batches()) as batches:
            while True:
                for delta in deltas:
                    if isinstance(delta, TextAdded) and delta.kind == "text":
                        yield delta.text
                    elif isinstance(delta, PartOpened) and delta.part["type"] == "text":
                        yield delta.part["text"]
                if progress.status is not None:
                    return
                deltas = progress.receive((await anext(batches)).events)

    async def invite(self, request: Request) -> Response:
        """Handle `POST /demo/invites {channel}`: return a link that lets one person in, and its QR code."""
        if self._guests is None:
            raise _no_lan()
        channel = (await _body(request)).channel
        url = self._guests.invite(_checked(channel) if channel is not None else None)
        return JSONResponse({"url": url, "expiresInSeconds": int(INVITE_S), "qr": qr_rows(url)}, 201, _NO_STORE)

    async def join(self, request: Request) -> Response:
        """Handle `POST /demo/join {secret}`: let a person in who has an invitation, and set their cookie."""
        if self._guests is None:
            raise _no_lan()
        secret = decode(await read_body(request, _BODY_BYTES), _join).secret
        person = self._guests.person(dict(request.scope))
        if person is None:
            person = self._guests.join(secret, peer_of(dict(request.scope)))
        response = JSONResponse({"person": {"id": person.id, "name": person.name}}, headers=_NO_STORE)
        cookie = self._guests.cookie_of(person)
        response.set_cookie(COOKIE, cookie, max_age=int(STAY_S), path="/", httponly=True, samesite="strict")
        return response

    async def _answering(self, channel: str) -> str | None:
        """Return the agent that writes an answer in `channel` now."""
        page = await self._hub.history(channel)
        for message in page.messages:
            if message.status == "streaming" and message.reply_to is not None:
                return self._hub.runtime.scheduler.claimed_by(channel, message.reply_to)
        return None


async def _body(request: Request) -> _InChannel:
    """Return the JSON object in the body of a request; an empty object if there is no body."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return _InChannel()
    return decode(await read_body(request, _BODY_BYTES), _in_channel)


def _checked(channel: str | None) -> str:
    if channel is None or not matches(CHANNELS, check_channel(channel)):
        raise InvalidName(f"the channel must match {CHANNELS}, got {shown(channel)}")
    return channel


def qr_rows(text: str) -> list[str] | None:
    """Return the QR code of `text` as rows of 0 and 1, without its quiet zone; None if the package is missing."""
    try:
        import segno
    except ImportError:
        return None
    return ["".join(map(str, row)) for row in segno.make_qr(text, error="m").matrix]


# The pages


_IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


def _page(file: str) -> Callable[[Request], Awaitable[Response]]:
    path = WEB / "demo" / file
    policy = _PAGE_HEADERS["content-security-policy"]
    for imports in _IMPORT_MAP.findall(
        path.read_text(encoding="utf-8")
    ):  # browsers know import maps within pages alone
        digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
        policy += f"; script-src 'self' 'sha256-{digest}'"

    async def page(request: Request) -> Response:
        return FileResponse(path, headers={**_PAGE_HEADERS, "content-security-policy": policy})

    return page


def _endpoint(
    hub: Hub, method: str, handler: Callable[[Request], Awaitable[Response]], *, is_public: bool = False
) -> Endpoint:
    """Return `handler` behind the hub's access control: any web page can reach a loopback port.

    Where other machines are let in, a stranger gets the page with `is_public`, and the reason instead of a chat.
    """

    async def guarded(request: Request) -> Response:
        scope = dict(request.scope)
        await check_peer(hub, scope)
        if not is_public:
            await identify(hub, scope)
        response = await handler(request)
        response.headers["x-content-type-options"] = "nosniff"
        return response

    return Endpoint([method], guarded)
