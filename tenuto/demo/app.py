"""The demo's application: its pages, the hub behind them, and a few routes of its own.

Layer: demo.

Only the page calls the routes below `/demo`, so they may change together with it. The plain stream of `/demo/plain` is
a `StreamingResponse` of text that no log keeps: it gets the tokens of the answer that the hub stores, from the same
call of the model, and it ends where its agent, its server or its connection does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tenuto.app import Hub
from tenuto.core.answer_ids import reply_ids
from tenuto.core.deltas import MessageProgress, PartOpened, TextAdded
from tenuto.core.errors import InvalidName, TooMany, shown
from tenuto.core.model import Message
from tenuto.core.names import check_channel, check_id
from tenuto.demo.answers import Settled, paced, whole, written_answers
from tenuto.demo.child import AGENTS
from tenuto.demo.guests import COOKIE, INVITE_S, STAY_S, Guests
from tenuto.demo.guide import CHANNELS, LONGEST_QUESTION, Guide, Sleep
from tenuto.demo.model import Model, model_in
from tenuto.hub.patterns import matches
from tenuto.transports.access import identify
from tenuto.transports.app import WEB
from tenuto.transports.calls import read_body
from tenuto.transports.codec import decode
from tenuto.transports.headers import peer_of
from tenuto.transports.http import Endpoint
from tenuto.transports.origin import check_peer
from tenuto.transports.query import Query

__all__ = ["Controls", "build"]

MOST_PLAIN = 50  # limit of plain streams at a time
WAIT_S = 300.0  # longest wait of a plain stream for its next token; the question may wait for its turn
CLAIM_TRIES = 20  # looks for the agent of a question, CLAIM_S apart
CLAIM_S = 0.05
_BODY_BYTES = 1024
T = TypeVar("T")
_NO_STORE = {"cache-control": "no-store"}

# The pages load no file of another site and run no code of a message; this header makes browsers enforce both.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Controls(NamedTuple):
    """The switches of the supervisor, which starts the server and the agents again."""

    kill: Callable[[], object]  # kills this process with SIGKILL, once its response has been sent
    crash: Callable[[str], object]  # kills the agent of that name with SIGKILL


def build(
    store_url: str,
    *,
    flush_ms: int = 40,
    sleep: Sleep = asyncio.sleep,
    environ: Mapping[str, str] = os.environ,
    controls: Controls | None = None,
    guests: Guests | None = None,
) -> Starlette:
    """Return the demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    Without `controls` the agent runs in this process, and `sleep` waits between its tokens. If `environ` has the key of
    a model, the model answers. With `guests` other machines reach the demo, and a verifier decides who may do anything.
    """
    # Shutdown gives answers no time to finish: the next start continues them, which the demo exists to show.
    address = guests.address if guests is not None else None
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0, authenticate=guests, public_origin=address)
    model = model_in(environ)
    if controls is None:
        guide = Guide(hub, model, sleep)
        hub.agent(CHANNELS, name="guide", on_crash="continue" if model is None else "restart")(guide.answer)
    routes = _Routes(hub, model, sleep, controls, guests)
    served = [
        Mount("/tenuto/web/demo", _Files(directory=WEB / "demo")),  # beside the client's modules of the hub
        Route("/", _endpoint(hub, "GET", _page("index.html"), is_public=True)),
        Route("/one-tag", _endpoint(hub, "GET", _page("one_tag.html"), is_public=True)),
        Route("/demo/info", _endpoint(hub, "GET", routes.info, is_public=True)),
        Route("/demo/plain", _endpoint(hub, "GET", routes.plain)),
    ]
    if controls is not None:
        served += [
            Route("/demo/kill", _endpoint(hub, "POST", routes.kill)),
            Route("/demo/crash", _endpoint(hub, "POST", routes.crash)),
        ]
    if guests is not None:
        served += [
            Route("/demo/join", _endpoint(hub, "POST", routes.join, is_public=True)),
            Route("/demo/invites", _endpoint(hub, "POST", routes.invite)),
        ]
    app = Starlette(routes=served)
    app.state.hub = hub
    app.state.lose_agent = lambda name: _lose_agent(hub, name)
    hub.install(app, "/tenuto")
    return app


def _lose_agent(hub: Hub, name: str) -> None:
    """Let another agent take the turns of an agent whose process is gone, and end the leases of its answers."""
    for turn in hub.runtime.scheduler.abandon(name):
        for answer in reply_ids(turn.message_id, turn.generation):
            hub.runtime.leases.end(turn.channel, answer)


class _Files(StaticFiles):
    """The page's files, with the page's headers, because a browser may open a picture as a page, too."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


class _Crash(msgspec.Struct):
    channel: str
    question: str


class _Invite(msgspec.Struct):
    channel: str


class _Join(msgspec.Struct):
    secret: str


class _Routes:
    """The routes that the page calls beside those of the hub."""

    def __init__(
        self, hub: Hub, model: Model | None, sleep: Sleep, controls: Controls | None, guests: Guests | None
    ) -> None:
        self._hub = hub
        self._model = model
        self._sleep = sleep
        self._controls = controls
        self._guests = guests
        self._plain = 0  # number of running plain streams

    async def info(self, request: Request) -> Response:
        """Handle `GET /demo/info`: return data about this server and about the caller, for the page."""
        person = self._guests.person(dict(request.scope)) if self._guests is not None else None
        body = {
            "pid": os.getpid(),
            "model": None if self._model is None else self._model.name or "the model of OPENAI_BASE_URL",
            "questions": [one.question for one in written_answers()],
            "lan": self._guests is not None,
            "person": {"id": person.id, "name": person.name} if person is not None else None,
        }
        return JSONResponse(body, headers=_NO_STORE)

    async def kill(self, request: Request) -> Response:
        """Handle `POST /demo/kill`: kill this process after the response."""
        assert self._controls is not None
        self._controls.kill()
        return JSONResponse({"pid": os.getpid()}, 202, _NO_STORE)

    async def crash(self, request: Request) -> Response:
        """Handle `POST /demo/crash {channel, question}`: kill the agent of the question, or one that is idle."""
        assert self._controls is not None
        body = await _body(request, _Crash)
        channel, question = _checked(body.channel), check_id(body.question, "question")
        await self._hub.read(channel, question)
        agent = None
        for _ in range(CLAIM_TRIES):
            agent = agent or self._agent_of(channel, question)
            if agent is None:
                await asyncio.sleep(CLAIM_S)
        self._controls.crash(agent or AGENTS[0])
        return JSONResponse({"agent": agent or AGENTS[0]}, 202, _NO_STORE)

    def _agent_of(self, channel: str, question: str) -> str | None:
        return self._hub.runtime.scheduler.claimed_by(channel, question)

    # -- the plain stream

    async def plain(self, request: Request) -> Response:
        """Handle `GET /demo/plain?channel=&question=`: a plain stream of the answer, which no log keeps.

        It gets the tokens of the answer that the hub has. With `again=1` it calls the model itself, from the beginning.
        """
        query = Query(request.scope)
        channel = _checked(query.text("channel"))
        question, _ = await self._hub.read(channel, check_id(query.text("question"), "question"))
        if self._plain >= MOST_PLAIN:
            raise TooMany(f"{MOST_PLAIN} plain streams run already; try again when one has ended", limit=MOST_PLAIN)
        texts = self._call_again(question) if query.text("again") else self._relay(channel, question.id)
        return StreamingResponse(self._frames(texts), headers=_NO_STORE, media_type="text/event-stream")

    async def _frames(self, texts: AsyncIterator[str]) -> AsyncIterator[bytes]:
        """Yield `texts` as events. A stream whose source is gone ends without the last one, `[DONE]`."""
        self._plain += 1
        try:
            async for text in texts:
                yield f"data: {json.dumps(text)}\n\n".encode()  # a model may send half a surrogate pair
            yield b"data: [DONE]\n\n"
        except (_SourceGone, TimeoutError):
            return
        finally:
            self._plain -= 1

    async def _relay(self, channel: str, question: str) -> AsyncIterator[str]:
        """Yield the text of the answer to `question` while its agent writes it. Raises _SourceGone when it dies."""
        async with asyncio.timeout(WAIT_S):
            answer, cursor = await self._answer_to(channel, question)
        agent = self._agent_of(channel, question)
        progress = MessageProgress(answer.id)
        deltas = progress.begin(answer)
        async with aclosing(self._hub.subscribe(channel, since=cursor).batches()) as batches:
            while True:
                for delta in deltas:
                    if isinstance(delta, TextAdded) and delta.kind == "text":
                        yield delta.text
                    elif isinstance(delta, PartOpened) and delta.part["type"] == "text":
                        yield delta.part["text"]
                if progress.status in ("complete", "cancelled"):
                    return
                if progress.status is not None or self._agent_of(channel, question) != agent:
                    raise _SourceGone
                async with asyncio.timeout(WAIT_S):
                    batch = await anext(batches)
                deltas = progress.receive(batch.events)

    async def _answer_to(self, channel: str, question: str) -> tuple[Message, str]:
        """Wait for the answer to `question`, and return it with the cursor from which to follow it."""
        async with aclosing(self._hub.subscribe(channel).batches()) as batches:
            async for _ in batches:
                for message in (await self._hub.history(channel, limit=20)).messages:
                    if message.reply_to == question:
                        return await self._hub.read(channel, message.id)
        raise _SourceGone

    async def _call_again(self, question: Message) -> AsyncIterator[str]:
        """Yield another answer to `question`: from a call of the model, or the written one from its beginning."""
        text = question.text[:LONGEST_QUESTION]
        if self._model is None:
            for token, delay_s in paced(whole(text, Settled()), 0, random.Random(question.id)):
                await self._sleep(delay_s)
                yield token
        else:
            async for chunk in await self._model.stream([{"role": "user", "content": text}]):
                yield self._model.text_in(chunk)

    # -- people of the network

    async def invite(self, request: Request) -> Response:
        """Handle `POST /demo/invites {channel}`: return a link that lets one person in, and its QR code."""
        assert self._guests is not None
        url = self._guests.invite(_checked((await _body(request, _Invite)).channel))
        return JSONResponse({"url": url, "expiresInSeconds": int(INVITE_S), "qr": qr_rows(url)}, 201, _NO_STORE)

    async def join(self, request: Request) -> Response:
        """Handle `POST /demo/join {secret}`: let a person in who has an invitation, and set their cookie."""
        assert self._guests is not None
        secret = (await _body(request, _Join)).secret
        person = self._guests.person(dict(request.scope))
        if person is None:
            person = self._guests.join(secret, peer_of(dict(request.scope)))
        response = JSONResponse({"person": {"id": person.id, "name": person.name}}, headers=_NO_STORE)
        cookie = self._guests.cookie_of(person)
        response.set_cookie(COOKIE, cookie, max_age=int(STAY_S), path="/", httponly=True, samesite="strict")
        return response


class _SourceGone(Exception):
    """The agent that wrote the tokens of a plain stream has ended."""


async def _body(request: Request, kind: type[T]) -> T:
    return decode(await read_body(request, _BODY_BYTES), msgspec.json.Decoder(kind))


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


def _page(file: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return FileResponse(WEB / "demo" / file, headers=_PAGE_HEADERS)

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
