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
from typing import NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from holdfast.app import Hub
from holdfast.core.errors import Deleted, Fenced, Finished, IdConflict, InvalidName, InvalidRequest, TooLarge
from holdfast.core.model import Json
from holdfast.demo.agent import answer, fingerprint, script
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


def build(store_url: str, *, flush_ms: int = 40) -> Starlette:
    """The demo on the store at `store_url`. Its hub starts and ends with the app's lifespan."""
    # No time to finish at the end: the next start goes on with what runs, which is the point of the demo.
    hub = Hub(store_url, flush_ms=flush_ms, drain_s=0.0)
    guide = Guide(hub)
    app = Starlette(
        routes=[
            Route("/", _endpoint(hub, "GET", _page)),
            Route("/demo/info", _endpoint(hub, "GET", _info)),
            Route("/ask", _endpoint(hub, "POST", guide.ask)),
            Route("/stop", _endpoint(hub, "POST", guide.stop)),
        ]
    )
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


class Settled(NamedTuple):
    """What is settled about an answer before its first token; kept as its meta, so that anybody can go on with it."""

    question: str
    seed: int
    fingerprint: str

    @classmethod
    def of(cls, question_id: str, question: str) -> "Settled":
        seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4])
        return cls(question, seed, fingerprint(script(question, seed)))


class Guide:
    """The one who answers on the channels of the demo."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._beginning: dict[tuple[str, str], asyncio.Task[None]] = {}
        hub.adopt(CHANNELS)(self.go_on)

    async def ask(self, request: Request) -> Response:
        """`POST /ask {id, channel, text}`: when this is answered, question and answer are both stored."""
        asked = decode(await read_body(request, _BODY_BYTES), _ask)
        _check_question(asked)
        await self._hub.create(asked.channel, id=asked.id, role="user", author="you", text=asked.text)
        answer_id = _answer_id(asked.id)
        key = (asked.channel, answer_id)
        if key not in self._beginning:
            self._beginning[key] = self._hub.start_task(self._begin(asked, answer_id))
            self._beginning[key].add_done_callback(lambda _: self._beginning.pop(key, None))
        # Shielded: whoever asked may leave, and another request may be waiting for the same answer to begin.
        await asyncio.shield(self._beginning[key])
        return JSONResponse({"id": answer_id})

    async def stop(self, request: Request) -> Response:
        """`POST /stop {channel, id}`: the answer ends `cancelled`, for everybody. One that has ended stays as it is."""
        asked = decode(await read_body(request, _BODY_BYTES), _stop)
        try:
            await self._hub.finish(_check_channel(asked.channel), asked.id, status="cancelled")
        except Finished:
            pass
        return JSONResponse({"id": asked.id})

    async def go_on(self, message: MessageWriter) -> None:
        """Write what is still missing of an answer that another process began."""
        settled = msgspec.convert(message.meta, Settled)
        ...
