"""A response of OpenAI's API in one piece, when its turn has ended or waits for the caller.

Layer: interop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tenuto import Message as Stored
from tenuto.core.errors import Draining
from tenuto.interop.fold import Json
from tenuto.interop.openai_items import Reference
from tenuto.interop.openai_stream import TurnEvents
from tenuto.routes import Access, TurnDelta, TurnResponse

Shape = Callable[[Json], tuple[int, Json]]  # gives the status and the body for a `Response`


class _Whole:
    """The format of such a response (`TurnFormat`)."""

    heartbeat = b""

    def __init__(self, question: Stored, of: Reference, shape: Shape, *, is_cancelled: bool) -> None:
        # the SDK would send the question again
        self.headers = {"content-type": "application/json", "x-should-retry": "false"}
        self.status = 200
        self.is_over = False  # also True if the turn waits for the caller
        self._shape = shape
        self._events = TurnEvents(question, of, is_cancelled=is_cancelled)

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the body at the end; no bytes before (`TurnFormat.frame`)."""
        self._events.receive(deltas)
        self.is_over = self._events.is_over
        if not self.is_over:
            return b""
        self.status, body = self._shape(self._events.response())
        return msgspec.json.encode(body)


class WholeResponse(Response):
    """The response in one piece. Its status is known only at the end, so its head is sent then."""

    format: _Whole
    inner: TurnResponse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: Message | None = None

        async def held(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                if not message.get("body") and message.get("more_body"):
                    return  # a heartbeat
                status = self.format.status if head["status"] == 200 else head["status"]
                await send({**head, "status": status})
                head = None
            await send(message)

        await self.inner(scope, receive, held)
        if head is not None:  # the hub drains, the identity has expired, or the store is away
            why = "the hub ended the request before the turn was over; the turn goes on, so retrieve its response later"
            problem = JSONResponse(
                Draining(why).problem(), 503, {"x-should-retry": "false"}, "application/problem+json"
            )
            await problem(scope, receive, send)


def whole_response(
    access: Access,
    question: Stored,
    of: Reference,
    shape: Shape = lambda response: (200, response),
    *,
    is_cancelled: bool = False,
) -> WholeResponse:
    """Return the response for the turn of `question`, in the `shape` of its route.

    If the caller has just cancelled the turn (`is_cancelled`), it comes at the end, also while a question is open.
    """
    response = WholeResponse()
    response.format = _Whole(question, of, shape, is_cancelled=is_cancelled)
    response.inner = access.stream(of.channel, of.message_id, response.format)
    return response
