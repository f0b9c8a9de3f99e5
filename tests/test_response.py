"""`hub.stream_response`: the answer outlives its first request, and other requests may join or stop it."""

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.routing import Mount

from tenuto import Hub
from tenuto.core.errors import IdConflict, LocalError
from tenuto.core.requests import Caller, CreateMessage
from tenuto.core.turns import BUILT_IN_COMMANDS, CANCEL, reply_id
from tests.transports.conftest import Served, new_hub, serving
from tests.transports.test_sse import pass_seconds

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


class Source:
    """A model that waits for its gate between two words, and counts the sessions that it opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.open_sessions = 0
        self.is_closed = asyncio.Event()
        self.tenant = ""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[str]:
        self.open_sessions += 1
        try:
            yield "session"
        finally:
            self.open_sessions -= 1

    async def words(self) -> AsyncIterator[str]:
        self.tenant = TENANT.get()
        try:
            async with self.session() as session:
                yield f"with {session}: "
                await self.gate.wait()
                yield "the end"
        finally:
            self.is_closed.set()


def new_app(hub: Hub, source: Source, **options: Any) -> FastAPI:
    app = FastAPI()
    hub.install(app, "/tenuto")

    async def request_session() -> AsyncIterator[str]:
        async with source.session() as session:
            yield session

    @app.post("/chat")
    async def chat(
        session: Annotated[str, Depends(request_session, scope="function")], prompt: str, id: str = "r"
    ) -> Any:
        TENANT.set("acme")
        return hub.stream_response("chat:1", source.words, prompt=prompt, prompt_by="ann", reply_id=id, **options)

    return app


@asynccontextmanager
async def served_app(source: Source, **options: Any) -> AsyncIterator[Served]:
    hub = new_hub()
    async with serving(hub, new_app(hub, source, **options), root_path="/behind") as served:  # of a proxy
        yield served


async def first_bytes(response: httpx2.Response) -> bytes:
    return await anext(response.aiter_raw())


async def test_caller_gets_the_stream_and_its_location() -> None:
    source = Source()
    source.gate.set()
    async with served_app(source) as served:
        response = await served.http.post("/chat?prompt=hi")
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (response.headers["tenuto-channel"], response.headers["tenuto-message"]) == ("chat:1", "r")
        assert 'event: answer\ndata: "with session: ' in response.text
        assert response.text.count("event: done") == 1
        assert response.headers["location"] == "/behind/tenuto/v1/channels/chat%3A1/messages/r/events"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        again = await served.http.get(response.headers["location"].removeprefix("/behind"))
        assert "with session: the end" in again.text
        messages = (await served.hub.history("chat:1")).messages
        assert [(one.role, one.author, one.text, one.status) for one in messages[::-1]] == [
            ("user", "ann", "hi", "complete"),
            ("assistant", "assistant", "with session: the end", "complete"),
        ]
        assert source.tenant == "acme"  # the source runs in the caller's context


async def test_head_request_begins_no_answer() -> None:
    hub, called = new_hub(), 0
    headers = {"x-app": "1", "Cross-Origin-Resource-Policy": "cross-origin"}

    async def words() -> AsyncIterator[str]:
        nonlocal called
        called += 1
        yield "hello"

    app = FastAPI()

    @app.api_route("/chat", methods=["GET", "HEAD"])
    async def chat() -> Any:
        return hub.stream_response("chat:1", words, prompt="why?", headers=headers)

    async with serving(hub, app) as served:
        head = await served.http.head("/chat")
        assert (head.status_code, head.content) == (200, b"")
        assert (head.headers["content-type"], head.headers["x-app"]) == ("text/event-stream; charset=utf-8", "1")
        assert "tenuto-message" not in head.headers
        assert "location" not in head.headers
        assert (called, (await hub.history("chat:1")).messages) == (0, [])
        answer = await served.http.get("/chat")
        assert "hello" in answer.text
        assert answer.headers.get_list("cross-origin-resource-policy") == ["cross-origin"]
        assert called == 1


async def test_refusal_in_a_mounted_app_has_the_status_of_the_refusal() -> None:
    hub, app, inner = new_hub(), FastAPI(), FastAPI()
    hub.install(app, "/tenuto")
    app.mount("/outer", Starlette(routes=[Mount("/inner", inner)]))
    foreign: Any = SimpleNamespace(routes=len, exception_handlers=None)
    app.mount("/foreign", foreign)

    @inner.get("/chat")
    async def chat() -> Any:
        return hub.stream_response("chat:1", ["no"], prompt="Why?")

    async with serving(hub, app) as served:
        await hub.drain()
        response = await served.http.get("/outer/inner/chat")
        assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_second_request_for_an_answer_joins_its_stream() -> None:
    source = Source()
    async with served_app(source) as served:
        async with served.http.stream("POST", "/chat?prompt=hi") as response:
            await first_bytes(response)
            async with served.http.stream("POST", "/chat?prompt=hi") as again:
                assert b"with session" in await first_bytes(again)
        source.gate.set()
        whole = await served.http.post("/chat?prompt=hi")
        assert "the end" in whole.text
        assert len((await served.hub.history("chat:1")).messages) == 2


async def test_another_message_under_the_id_of_the_answer_is_not_joined() -> None:
    """A user may know or choose the id: of the user's own message, of another answer, or of an answer in its name."""
    hub, source = new_hub(), Source()
    source.gate.set()
    remote = Caller(id="assistant", may_write=True)  # a client with the name of the app's author
    asked = reply_id("taken", 0)
    texts = {
        "person": CreateMessage(role="user", text="secret"),
        "unasked": CreateMessage(role="assistant", text="secret"),
        "taken": CreateMessage(role="assistant", text="secret", reply_to=asked),
        "streaming": CreateMessage(
            role="assistant", text="secret", status="streaming", reply_to=reply_id("streaming", 0)
        ),
    }
    for name, create in texts.items():
        await hub.ask("chat:1", name, create, remote)
    await hub.create(
        "chat:1", text="secret", id="own", role="assistant", author="assistant", reply_to=reply_id("own", 0)
    )
    async with hub.message("chat:1", id="other", author="assistant") as other:
        await other.append("secret")
    async with hub.message("chat:1", id="author", author="guide", reply_to=reply_id("author", 0)) as author:
        await author.append("secret")
    for name in (*texts, "own", "other", "author"):
        response = hub.stream_response("chat:1", source.words, prompt="hi", reply_id=name)
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        with pytest.raises(IdConflict, match=f"message '{name}' exists and is not the answer of author 'assistant'"):
            await response({"type": "http", "headers": []}, asyncio.Event().wait, send)
        assert sent == []
    await hub.close()


async def test_cancel_command_stops_the_answer_and_closes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN_COMMANDS, "cancel", CANCEL._replace(after_s=3600.0))  # the writer does it, not the hub
    source = Source()
    async with served_app(source) as served:
        async with served.http.stream("POST", "/chat?prompt=hi") as response:
            pieces = response.aiter_raw()
            await anext(pieces)
            sent = await served.http.post("/tenuto/v1/channels/chat:1/commands", json={"name": "cancel", "target": "r"})
            assert sent.status_code == 201
            async with asyncio.timeout(60):
                await source.is_closed.wait()
            rest = b"".join([piece async for piece in pieces])
        assert b'{"status":"cancelled"}' in rest
        message, _ = await served.hub.read("chat:1", "r")
        assert (message.status, message.text) == ("cancelled", "with session: ")


async def test_answer_is_cancelled_after_its_last_viewer() -> None:
    source = Source()
    async with served_app(source, cancel_after_s=0.2) as served:
        async with served.http.stream("POST", "/chat?prompt=hi") as response:
            await first_bytes(response)
            watching = served.hub.subscribe("chat:1")
            batches = watching.batches()
            await anext(batches)
        await served.until(lambda: len(served.hub.channel("chat:1").feeds) == 1)
        # the answer goes on, because it has a viewer
        assert (await served.hub.read("chat:1", "r"))[0].status == "streaming"
        await batches.aclose()
        async with asyncio.timeout(60):
            await source.is_closed.wait()
        await served.until(lambda: not served.hub.channel("chat:1").state.messages["r"].is_streaming)
        assert (await served.hub.read("chat:1", "r"))[0].status == "cancelled"


def ids(text: str) -> list[str]:
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


def json_frame(text: str) -> str:
    return f"data: {json.dumps({'token': text})}\n\n"


async def response_of(stream: object, accept: str = "*/*", **options: Any) -> tuple[str, Any]:
    """Return the body of the response with `stream`, and the stored answer."""
    hub = new_hub()
    app = FastAPI()
    hub.install(app, "/tenuto")
    app.add_api_route("/chat", lambda: hub.stream_response("chat:1", stream, reply_id="r", **options))
    async with serving(hub, app) as served:
        body = (await served.http.get("/chat", headers={"accept": accept})).text
        return body, (await hub.read("chat:1", "r"))[0]


@pytest.mark.parametrize(
    ("options", "accept", "has_heartbeats"),
    [
        ({"style": "data"}, "text/event-stream", True),
        ({"style": json_frame}, "text/event-stream", True),
        ({"style": "events"}, "*/*", True),
        ({"style": "ai-sdk"}, "*/*", True),
        # the parser of a page's own that reads each block as `JSON.parse(block.slice(6))`
        ({"style": "data"}, "*/*", False),
        ({"style": json_frame}, "*/*", False),
        # not an event stream, whatever the client accepts
        ({"style": str, "headers": {"content-type": "text/plain"}}, "text/event-stream", False),
    ],
)
async def test_only_a_reader_that_knows_comments_gets_heartbeats(
    options: dict[str, Any], accept: str, has_heartbeats: bool
) -> None:
    source = Source()
    async with served_app(source, **options) as served:
        async with served.http.stream("POST", "/chat?prompt=hi", headers={"accept": accept}) as response:
            pieces = response.aiter_text()
            body = ""
            while "session" not in body:
                body += await anext(pieces)
            await pass_seconds(served, 60)
            source.gate.set()
            body += "".join([piece async for piece in pieces])
        assert "the end" in body
        assert (":\n\n" in body) is has_heartbeats


async def framed() -> AsyncIterator[str]:
    for word in ("You ", "asked"):
        yield f"data: {json.dumps(word)}\n\n"


async def test_plain_text_may_begin_like_a_frame() -> None:
    text = "data: hello\n\nThis is a server-sent event."

    async def prose() -> AsyncIterator[str]:
        yield text

    _, message = await response_of(prose, source_kind="text")
    assert (message.text, message.status) == (text, "complete")
    _, message = await response_of(prose)
    assert (message.status, message.reason) == ("failed", "upstream_error")


@pytest.mark.parametrize(
    ("beginning", "frame"),
    [("Thinking. ", 'data: "You "\n\n'), ("", "data: You\r\n\r\n"), ("\n", ": ping\nevent: token\ndata: You\n\n")],
)
async def test_frames_after_text_fail_with_the_remedy(
    beginning: str, frame: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def mixed() -> AsyncIterator[str]:
        yield beginning
        yield frame

    _, message = await response_of(mixed)
    assert (message.text, message.status, message.reason) == (beginning, "failed", "misuse")
    assert "a later item is a whole server-sent event; yield the text itself, and let style= of" in caplog.text
    assert "or pass source_kind='text'" in caplog.text
    _, message = await response_of(mixed, source_kind="text")
    assert (message.text, message.status) == (beginning + frame, "complete")


async def test_style_of_another_format_is_sent_as_it_is() -> None:
    body, _ = await response_of(
        framed,
        "text/event-stream",
        style=lambda text: text.encode(),
        headers={"content-type": "text/plain"},
        end_frame=lambda status: f"({status})",
    )
    assert body == "You asked(complete)"


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, 'data: {"status":"failed"}\n'),
        ({"style": "data"}, "data: half\n\nevent: failed\ndata: \n\ndata: [DONE]\n\n"),
        ({"style": json_frame, "end_frame": "data: [DONE]\n\n"}, json_frame("half")),  # it follows complete answers
        (
            {"style": json_frame, "end_frame": lambda status: f"event: {status}\ndata:\n\n"},
            json_frame("half") + "event: failed\ndata:\n\n",
        ),
    ],
)
async def test_source_that_raises_ends_the_answer_as_failed(options: dict[str, Any], end: str) -> None:
    async def broken() -> AsyncIterator[str]:
        yield "half"
        raise RuntimeError("secret")

    body, message = await response_of(broken, **options)
    assert end in body
    assert body.endswith(end) or not options
    assert "secret" not in body
    assert message.status == "failed"


async def test_reading_caller_counts_as_a_viewer() -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(3):
            await asyncio.sleep(0.02)
            yield f"{number} "

    body, _ = await response_of(source, cancel_after_s=0, style="data")
    assert "2 " in body
    assert body.endswith("data: [DONE]\n\n")
    assert "cancelled" not in body


async def async_style(text: str) -> str:
    return text


def words_of(text: str) -> Iterator[str]:
    yield from text.split()


@pytest.mark.parametrize(
    ("style", "end_frame", "option"),
    [(lambda text: None, None, "style"), (json_frame, lambda status: {"status": status}, "end_frame")],
)
async def test_function_that_returns_no_frame_is_named_in_the_log(
    style: Any, end_frame: Any, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await response_of(framed, style=style, end_frame=end_frame)
    assert f"{option} of stream_response must return a frame as str or bytes, got" in caplog.text


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"style": "sse"}, "style must be 'events', 'data', 'ai-sdk', or a function"),
        ({"style": async_style}, "style must be an ordinary function of the text, got an async one; write `def frame"),
        ({"style": words_of}, "style must be an ordinary function of the text, got a generator; write `def frame"),
        (
            {"style": lambda: "x"},
            r"style must be a function of the text alone, got .*\(\) \(too many .*write `def frame",
        ),
        ({"style": lambda text, status: "x"}, r"\(text, status\) \(missing a required argument: 'status'\); write"),
        ({"style": json_frame, "end_frame": lambda: "x"}, "end_frame must be a function of the status alone"),
        ({"source_kind": "txt"}, "source_kind must be one of text, .*, got 'txt'"),
        ({"source_kind": "text", "text_field": "a"}, "with source_kind='text' leave it out"),
        ({"end_frame": "x"}, "end_frame belongs to a style that is a function"),
        ({"style": json_frame, "end_frame": 5}, "end_frame must be a str"),
    ],
)
def test_unusable_option_is_refused_before_the_stream_starts(options: dict[str, Any], detail: str) -> None:
    with pytest.raises(LocalError, match=detail):
        new_hub().stream_response("chat:1", framed, **options)


def wrapped() -> StreamingResponse:
    return StreamingResponse(framed())


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (StreamingResponse(framed()), "got a StreamingResponse; pass the generator that the response wraps"),
        (None, "got None; pass an async generator or its function"),
        (5, "got 5; pass an async generator"),
        (StreamingResponse, "got the class StreamingResponse; pass the generator that the response wraps"),
        (wrapped, "got the function 'wrapped' that returns a StreamingResponse; pass the generator that the response"),
    ],
)
def test_source_other_than_a_stream_is_refused_at_the_call(source: object, detail: str) -> None:
    with pytest.raises(LocalError, match="source must be a stream") as refused:
        new_hub().stream_response("chat:1", source)
    assert detail in refused.value.detail


@pytest.mark.parametrize("style", ["events", "data"])
async def test_eventsource_that_reconnects_without_a_reply_id_joins_its_answer(style: Any) -> None:
    hub, gate = new_hub(), asyncio.Event()
    begun: list[str] = []

    async def chat(q: str, channel: str = "chat:1") -> Any:
        async def source() -> AsyncIterator[str]:
            begun.append(q)
            yield "one two "
            await gate.wait()
            yield "three"

        return hub.stream_response(channel, source, prompt=q, style=style)

    app = FastAPI()
    hub.install(app, "/tenuto")
    app.add_api_route("/chat", chat)
    async with serving(hub, app) as served:
        event_source = {"accept": "text/event-stream"}
        async with served.http.stream("GET", "/chat?q=hi", headers=event_source) as response:
            first = ""
            async for piece in response.aiter_text():
                first += piece
                if "one two" in first:
                    break
            named = [response.headers[name] for name in ("tenuto-message", "location")]
        last = ids(first)[-1]
        async with served.http.stream("GET", "/chat?q=hi", headers={**event_source, "last-event-id": last}) as response:
            assert [response.headers[name] for name in ("tenuto-message", "location")] == named
            gate.set()
            rest = (await response.aread()).decode()
        assert "three" in rest
        assert "one two" not in rest
        over = {**event_source, "last-event-id": ids(rest)[-1]}
        assert (await served.http.get("/chat?q=hi", headers=over)).status_code == 204
        assert begun == ["hi"]
        assert [one.role for one in (await hub.history("chat:1")).messages] == ["assistant", "user"]
        epoch, serial, extra = last.split(":")
        forged = f"{epoch}:{serial}:{extra[0]}{'A' * 22}{extra[23:]}"
        for query, cursor in (("q=other", last), ("q=hi&channel=chat:2", last), ("q=hi", forged)):
            whole = await served.http.get(f"/chat?{query}", headers={**event_source, "last-event-id": cursor})
            assert "one two" in whole.text
            assert whole.headers["tenuto-message"] != named[0]
        assert begun == ["hi", "other", "hi", "hi"]
