"""The demo's application: a chat page, the hub behind it, and two requests of its own.

You are in `demo`, in the shell: this wires `agent` to a hub. Nobody but the page calls `/ask` and `/stop`, so they
may change together. The page's files come from the hub's own `/web`.

An answer belongs to the hub, not to the request that asked for it: a reader who leaves stops nothing. Its id, seed
and fingerprint follow from the question, so asking twice is asking once, in whichever process; and a process that
finds an unfinished answer when it starts goes on with it before anyone is served.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from holdfast.app import Hub
from holdfast.core.errors import (
    Deleted,
    Draining,
    Fenced,
    Finished,
    HoldfastError,
    IdConflict,
    InvalidName,
    InvalidRequest,
    TooLarge,
)
from holdfast.core.names import check_channel
from holdfast.demo.agent import Sleep, answer, fingerprint, script
from holdfast.demo.passages import library
from holdfast.hub import MessageWriter
from holdfast.hub.patterns import matches
from holdfast.transports.app import WEB
from holdfast.transports.codec import decode
from holdfast.transports.door import check_closed_door
from holdfast.transports.http import Endpoint, read_body

__all__ = ["CHANNELS", "LONGEST_QUESTION", "Guide", "build"]

CHANNELS = "demo:*"
LONGEST_QUESTION = 2_000  # code points; the page's input box holds no more
_BODY_BYTES = 32 * 1024  # a question written in nothing but escapes has 24 KB

# The page loads nothing from elsewhere and runs nothing that stands in a message; this makes browsers insist on it.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def build(store_url: str, *, flush_ms: int = 40, sleep: Sleep = asyncio.sleep) -> Starlette:
    """The demo on the store at `store_url`; its hub starts and ends with the app's lifespan. Raises LocalError.

    `sleep` waits between the tokens of an answer.
    """
    # No time to finish at the end: the next start goes on with what runs, which is the point of the demo.
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0)
    guide = Guide(hub, sleep)
    library()  # read before anyone waits for it; an installation without its documentation fails here
    app = Starlette(
        routes=[
            Route("/", _endpoint(hub, "GET", _page)),
            Route("/demo/info", _endpoint(hub, "GET", _info)),
            Route("/ask", _endpoint(hub, "POST", guide.ask)),
            Route("/stop", _endpoint(hub, "POST", guide.stop)),
        ]
    )
    app.state.hub = hub  # whoever serves this starts it first, to tell plainly what is wrong with its store
    hub.install(app, "/holdfast")
    return app


class _Ask(msgspec.Struct):
    id: str
    channel: str
    text: str


class _Stop(msgspec.Struct):
    channel: str
    id: str


_ask = msgspec.json.Decoder(_Ask)
_stop = msgspec.json.Decoder(_Stop)


class Settled(msgspec.Struct, frozen=True):
    """What is settled about an answer before its first token. It is the answer's meta, for whoever goes on with it."""

    question: str
    seed: int
    fingerprint: str

    @classmethod
    def of(cls, question_id: str, question: str) -> Self:
        """What follows from a question: nothing here is drawn, so that asking twice is asking once."""
        seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4])
        return cls(question, seed, fingerprint(script(question, seed)))


class Guide:
    """The one who answers on the channels of the demo."""

    def __init__(self, hub: Hub, sleep: Sleep) -> None:
        self._hub = hub
        self._sleep = sleep
        self._beginning: dict[tuple[str, str], asyncio.Future[None]] = {}  # done when the answer is stored
        hub.adopt(CHANNELS)(self.go_on)

    async def ask(self, request: Request) -> Response:
        """`POST /ask {id, channel, text}`: once this is answered, the question is stored and its answer begun."""
        asked = decode(await read_body(request, _BODY_BYTES), _ask)
        _check_question(asked)
        await self._hub.create(asked.channel, id=asked.id, role="user", author="you", text=asked.text)
        answer_id = await self._begin(asked)
        return JSONResponse({"id": answer_id})

    async def stop(self, request: Request) -> Response:
        """`POST /stop {channel, id}`: the answer ends `cancelled`, for everybody; one that has ended stays so."""
        asked = decode(await read_body(request, _BODY_BYTES), _stop)
        with suppress(Finished):
            await self._hub.finish(_check_channel(asked.channel), asked.id, status="cancelled")
        return JSONResponse({"id": asked.id})

    async def go_on(self, message: MessageWriter) -> None:
        """Write what is missing of an answer that a process before this one began."""
        await self._write(message, msgspec.convert(message.meta, Settled))

    async def _begin(self, asked: _Ask) -> str:
        """Have the question answered, unless it is already; returns the answer's id. Raises what the store says."""
        answer_id = f"answer-{hashlib.sha256(asked.id.encode()).hexdigest()[:32]}"
        key = (asked.channel, answer_id)
        if key not in self._beginning:
            self._beginning[key] = asyncio.get_running_loop().create_future()
            self._hub.start_task(self._answer(asked, answer_id, self._beginning[key]))
        # Shielded: one of those who asked may leave, while another waits for the same answer to begin.
        await asyncio.shield(self._beginning[key])
        return answer_id

    async def _answer(self, asked: _Ask, answer_id: str, begun: asyncio.Future[None]) -> None:
        settled = Settled.of(asked.id, asked.text)
        try:
            async with self._hub.message(
                asked.channel,
                id=answer_id,
                author="guide",
                meta=msgspec.to_builtins(settled),
                reply_to=asked.id,
            ) as message:
                begun.set_result(None)
                await self._write(message, settled)
        except (IdConflict, Finished, Fenced, Deleted):
            # It was begun before, or somebody ended it: either way there is nothing left to do.
            if not begun.done():
                begun.set_result(None)
        except HoldfastError as error:
            if begun.done():
                raise
            begun.set_exception(error)
        finally:
            del self._beginning[asked.channel, answer_id]
            if not begun.done():  # cancelled before anything was stored
                begun.set_exception(Draining("the server is leaving; ask again"))

    async def _write(self, message: MessageWriter, settled: Settled) -> None:
        question, seed, begun_as = settled.question, settled.seed, settled.fingerprint
        await answer(message, question, seed, begun_as=begun_as, sleep=self._sleep)


def _check_question(asked: _Ask) -> None:
    """Raises InvalidRequest, InvalidName, TooLarge."""
    _check_channel(asked.channel)
    if not asked.text.strip():
        raise InvalidRequest("the question is empty")
    if len(asked.text) > LONGEST_QUESTION:
        detail = f"the question has {len(asked.text)} characters, the limit is {LONGEST_QUESTION}"
        raise TooLarge(detail, limit=LONGEST_QUESTION)


def _check_channel(channel: str) -> str:
    """Return `channel`; raises InvalidName where the guide does not answer: nobody would go on there."""
    if not matches(CHANNELS, check_channel(channel)):
        raise InvalidName(f"the guide answers on channels like {CHANNELS} only")
    return channel


# The page


async def _page(request: Request) -> Response:
    return FileResponse(WEB / "demo" / "index.html", headers=_PAGE_HEADERS)


async def _info(request: Request) -> Response:
    """How to kill the server that answers, for the page to show."""
    pid = os.getpid()
    return JSONResponse({"pid": pid, "kill": f"kill -9 {pid}"}, headers={"cache-control": "no-store"})


def _endpoint(hub: Hub, method: str, handler: Callable[[Request], Awaitable[Response]]) -> Endpoint:
    """`handler` behind the hub's own door: any web page can reach a loopback port, and may not ask here either."""

    async def guarded(request: Request) -> Response:
        check_closed_door(hub, dict(request.scope))
        return await handler(request)

    return Endpoint([method], guarded)
