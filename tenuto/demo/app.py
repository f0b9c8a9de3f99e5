"""The demo's application: its pages, the hub behind them, and a few routes of its own.

Layer: demo.

Only the page calls the routes below `/demo`. The plain stream is a `StreamingResponse` of text that no log keeps: it
gets the tokens of the answer that the hub stores, and ends where its agent, its server or its connection does.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tenuto.app import Hub, visitors
from tenuto.core.deltas import MessageProgress
from tenuto.core.errors import InvalidName, TooMany, shown
from tenuto.core.model import Message
from tenuto.core.names import check_channel, check_id, matches
from tenuto.core.turns import reply_ids
from tenuto.demo.guests import COOKIE, INVITE_S, STAY_S, Guests, shown_person
from tenuto.demo.guide import (
    AGENTS,
    CHANNELS,
    LONGEST_QUESTION,
    Guide,
    Model,
    Settled,
    Sleep,
    model_in,
    paced,
    whole,
    written_answers,
)
from tenuto.transports.access import identify
from tenuto.transports.app import WEB
from tenuto.transports.codec import Query, decode, peer_of
from tenuto.transports.http import Endpoint, read_body
from tenuto.transports.origin import check_peer
from tenuto.transports.streams import added_texts

MOST_PLAIN, WAIT_S = 50, 300.0  # limits of the plain streams at a time, and of the wait of one for its next token
CLAIM_TRIES, CLAIM_S = 20, 0.05  # looks for the agent of a question, and the time between two of them
_BODY_BYTES = 1024
_NO_STORE = {"cache-control": "no-store"}

# The pages load no file of another site and run no code of a message; this header makes browsers enforce both.
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE_HEADERS = {"cache-control": "no-cache", "content-security-policy": _POLICY, "referrer-policy": "no-referrer"}


class Controls(NamedTuple):
    """The switches of a supervisor: it starts the server and the agents again."""

    kill: Callable[[], object]  # kills this process with SIGKILL, once its response has been sent
    crash: Callable[[str], object]  # kills the agent of that name with SIGKILL


def build(
    store_url: str,
    *,
    sleep: Sleep = asyncio.sleep,
    environ: Mapping[str, str] = os.environ,
    controls: Controls | None = None,
    guests: Guests | None = None,
) -> Starlette:
    """Return the demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    Without `controls` the agent runs in this process, and `sleep` waits between its tokens. If `environ` has the key of
    a model, the model answers. With `guests` other machines reach the demo, and a verifier decides who may do anything.
    """
    address, verify, invited = (guests.address, guests.verify, guests.invited) if guests is not None else (None,) * 3
    hub = Hub(store_url, flush_ms=40, drain_s=0.0, authenticate=verify, public_origin=address)
    model = model_in(environ)
    # The chat of the post "One tag", as the README has it: a hub with visitors, whose agent is in this process.
    url = f"{store_url.removesuffix('.db')}-post.db" if store_url.startswith("sqlite:") else store_url
    post = Hub(url, flush_ms=40, drain_s=0.0, authenticate=visitors(invited), public_origin=address)
    post.requires_own_host = guests is None  # as for the other hub, the name of any web page may point at this machine
    served = [(post, "chat:*"), *([(hub, CHANNELS)] if controls is None else [])]
    for one, channels in served:
        serve = one.agent(channels, name="guide", on_crash="continue" if model is None else "restart")
        serve(Guide(one, model, sleep).answer)
    if controls is not None:  # the agents start beside the server, and a question may come before they connect
        hub.on_start(lambda: hub.runtime.scheduler.workers.remember(CHANNELS))
    routes = _Routes(hub, model, sleep, controls, guests)
    app = Starlette(routes=[Route(path, _endpoint(hub, *one)) for path, *one in routes.table()])
    app.state.hub = hub
    hub.install(app, "/tenuto")
    post.install(app, "/post/tenuto")
    return app


def lose_agent(hub: Hub, name: str) -> None:
    """Let another agent take the turns of an agent whose process is gone, and end the leases of its answers."""
    for turn in hub.runtime.scheduler.abandon(name):
        for answer in reply_ids(turn.message_id, turn.generation):
            hub.runtime.leases.end(turn.channel, answer)


class _Body(msgspec.Struct):
    channel: str | None = None
    question: str | None = None
    secret: str = ""


class _Routes:
    """The routes that the page calls beside those of the hub."""

    def __init__(
        self, hub: Hub, model: Model | None, sleep: Sleep, controls: Controls | None, guests: Guests | None
    ) -> None:
        self._hub, self._model, self._sleep, self._controls, self._guests = hub, model, sleep, controls, guests
        self._plain = 0  # number of running plain streams
        self._crashed: deque[str] = deque(maxlen=MOST_PLAIN)  # the last questions whose agents were killed

    def table(self) -> Iterator[tuple[Any, ...]]:
        """Yield for each route its path, its method, its handler, and whether strangers may use it."""
        files = WEB / "demo"
        paths = {"/": "index.html", "/one-tag": "one_tag.html"}
        paths |= {f"/tenuto/web/demo/{path.name}": path.name for path in files.iterdir()}  # beside those of the hub
        for path, name in paths.items():
            yield path, "GET", functools.partial(self._file, files / name), True
        yield "/demo/info", "GET", self.info, True
        yield "/demo/plain", "GET", self.plain, False
        if self._controls is not None:
            yield "/demo/kill", "POST", self.kill, False
            yield "/demo/crash", "POST", self.crash, False
        if self._guests is not None:
            yield "/demo/join", "POST", self.join, True
            yield "/demo/invites", "POST", self.invite, False

    async def _body(self, request: Request) -> _Body:
        return decode(await read_body(request, _BODY_BYTES), msgspec.json.Decoder(_Body))

    async def _file(self, path: Path, request: Request) -> Response:
        return FileResponse(path, headers=_PAGE_HEADERS)

    async def info(self, request: Request) -> Response:
        """Handle `GET /demo/info`: return data about this server and about the caller, for the page."""
        person = await self._guests.person(dict(request.scope)) if self._guests is not None else None
        model = None if self._model is None else self._model.name or "the model of OPENAI_BASE_URL"
        about: dict[str, Any] = {"pid": os.getpid(), "model": model}
        about["questions"] = [one.question for one in written_answers()]
        about |= {"lan": self._guests is not None, "person": shown_person(person)}
        return JSONResponse(about, headers=_NO_STORE)

    async def kill(self, request: Request) -> Response:
        """Handle `POST /demo/kill`."""
        assert self._controls is not None
        self._controls.kill()
        return JSONResponse({"pid": os.getpid()}, 202, _NO_STORE)

    async def crash(self, request: Request) -> Response:
        """Handle `POST /demo/crash {channel, question}`: kill the agent of the question, or one that is idle."""
        assert self._controls is not None
        body = await self._body(request)
        channel, question = _checked(body.channel), check_id(body.question, "question")
        await self._hub.read(channel, question)
        for _ in range(CLAIM_TRIES):
            if agent := self._agent_of(channel, question):
                break
            await asyncio.sleep(CLAIM_S)
        self._crashed.append(question)
        self._controls.crash(agent := agent or AGENTS[0])
        return JSONResponse({"agent": agent}, 202, _NO_STORE)

    def _agent_of(self, channel: str, question: str) -> str | None:
        return self._hub.runtime.scheduler.claimed_by(channel, question)

    async def plain(self, request: Request) -> Response:
        """Handle `GET /demo/plain?channel=&question=`: a plain stream of the answer; with `again=1` of a call anew."""
        query = Query(request.scope)
        channel = _checked(query.text("channel"))
        question, _ = await self._hub.read(channel, check_id(query.text("question"), "question"))
        if self._plain >= MOST_PLAIN:
            limit = f"the demo serves at most {MOST_PLAIN} plain streams at a time; try again later"
            raise TooMany(limit, limit=MOST_PLAIN)
        texts = self._call_again(question) if query.text("again") else self._relay(channel, question.id)
        return StreamingResponse(self._frames(texts), headers=_NO_STORE, media_type="text/event-stream")

    async def _frames(self, texts: AsyncIterator[str]) -> AsyncIterator[bytes]:
        """Yield `texts` as events. A stream whose source is gone ends without the last one, `[DONE]`."""
        self._plain += 1
        try:
            with suppress(EOFError, TimeoutError):
                async for text in texts:
                    yield f"data: {json.dumps(text)}\n\n".encode()  # a model may send half a surrogate pair
                yield b"data: [DONE]\n\n"
        finally:
            self._plain -= 1

    async def _relay(self, channel: str, question: str) -> AsyncIterator[str]:
        """Yield the text of the answer to `question` while its agent writes it. Raises EOFError when it dies."""
        answer, cursor = await asyncio.wait_for(self._answer_to(channel, question), WAIT_S)
        if question in self._crashed:
            raise EOFError  # before its answer began: this one is another agent's
        agent = self._agent_of(channel, question)
        progress = MessageProgress(answer.id)
        deltas = progress.begin(answer)
        async with aclosing(self._hub.subscribe(channel, since=cursor).batches()) as batches:
            while True:
                for added in added_texts(deltas):
                    if added.kind == "text":
                        yield added.text
                if progress.status in ("complete", "cancelled"):
                    return
                if progress.status is not None or self._agent_of(channel, question) != agent:
                    raise EOFError
                deltas = progress.receive((await asyncio.wait_for(anext(batches), WAIT_S)).events)

    async def _answer_to(self, channel: str, question: str) -> tuple[Message, str]:
        """Wait for the answer to `question`, and return it with the cursor from which to follow it."""
        async with aclosing(self._hub.subscribe(channel).batches()) as batches:
            async for _ in batches:
                for message in (await self._hub.history(channel, limit=20)).messages:
                    if message.reply_to == question:
                        return await self._hub.read(channel, message.id)
        raise EOFError

    async def _call_again(self, question: Message) -> AsyncIterator[str]:
        """Yield another answer to `question`: from a call of the model, or the written one from its beginning."""
        text = question.text[:LONGEST_QUESTION]
        if self._model is not None:
            async for item in await self._model.stream([{"role": "user", "content": text}]):
                yield self._model.text_in(item)
            return
        for token, delay_s in paced(whole(text, Settled()), 0, random.Random(question.id)):
            await self._sleep(delay_s)
            yield token

    async def invite(self, request: Request) -> Response:
        """Handle `POST /demo/invites {channel}`: return a link that lets one person in, and its QR code."""
        assert self._guests is not None
        url = self._guests.invite(_checked((await self._body(request)).channel))
        return JSONResponse({"url": url, "expiresInSeconds": int(INVITE_S), "qr": qr_rows(url)}, 201, _NO_STORE)

    async def join(self, request: Request) -> Response:
        """Handle `POST /demo/join {secret}`: let a person with an invitation in, and set their cookie."""
        assert self._guests is not None
        secret, scope = (await self._body(request)).secret, dict(request.scope)
        known = await self._guests.person(scope)
        person = known or self._guests.join(secret, peer_of(scope))
        response = JSONResponse({"person": shown_person(person)}, headers=_NO_STORE)
        if known is None:
            cookie = self._guests.cookie_of(person)
            response.set_cookie(COOKIE, cookie, max_age=int(STAY_S), path="/", httponly=True, samesite="strict")
        return response


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


def _endpoint(hub: Hub, method: str, handler: Callable[[Request], Awaitable[Response]], is_public: bool) -> Endpoint:
    """Return `handler` behind the hub's access control. With `is_public` it also serves strangers of the network."""

    async def guarded(request: Request) -> Response:
        scope = dict(request.scope)
        check_peer(hub, scope)
        if not is_public:
            await identify(hub, scope)
        response = await handler(request)
        response.headers["x-content-type-options"] = "nosniff"
        return response

    return Endpoint([method], guarded)
