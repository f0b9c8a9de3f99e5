"""`hub.stream_response`: the answer outlives its first request, and other requests may join or stop it."""

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.routing import Mount

from tenuto.core.errors import IdConflict, LocalError
from tenuto.core.requests import Caller, CreateMessage
from tenuto.core.turns import BUILT_IN_COMMANDS, CANCEL, reply_id
from tests.test_resuming import Endpoint, Reader, on_memory
from tests.transports.conftest import new_hub, serving

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


async def test_caller_gets_the_stream_and_its_location() -> None:
    hub, app, tenants = new_hub(), FastAPI(), list[str]()
    hub.install(app, "/tenuto")

    async def words() -> AsyncIterator[str]:
        tenants.append(TENANT.get())
        yield "half of it, "
        yield "the end"

    @app.post("/chat")
    async def chat(prompt: str) -> Any:
        TENANT.set("acme")
        return hub.stream_response("chat:1", words, prompt=prompt, prompt_by="ann", reply_id="r")

    outer = Starlette(routes=[Mount("/of", Starlette()), Mount("/api", app)])
    async with serving(hub, outer, root_path="/behind") as served:  # of a proxy
        response = await served.http.post("/api/chat?prompt=hi")
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (response.headers["tenuto-channel"], response.headers["tenuto-message"]) == ("chat:1", "r")
        assert 'event: answer\ndata: "half of it, ' in response.text
        assert response.text.count("event: done") == 1
        assert response.headers["location"] == "/behind/api/tenuto/v1/channels/chat%3A1/messages/r/events"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        again = await served.http.get(response.headers["location"].removeprefix("/behind"))
        assert "half of it, the end" in again.text
        messages = (await hub.history("chat:1")).messages
        assert [(one.role, one.author, one.text, one.status) for one in messages[::-1]] == [
            ("user", "ann", "hi", "complete"),
            ("assistant", "assistant", "half of it, the end", "complete"),
        ]
        assert tenants == ["acme"]  # the source runs in the caller's context


@on_memory
async def test_head_request_begins_no_answer(endpoint: Endpoint) -> None:
    headers = {"x-app": "1", "Cross-Origin-Resource-Policy": "cross-origin"}
    head = await endpoint.get("why?", method="HEAD", headers=headers).whole()
    assert (head.status, head.body) == (200, "")
    assert (head.headers["content-type"], head.headers["x-app"]) == ("text/event-stream; charset=utf-8", "1")
    assert "tenuto-message" not in head.headers
    assert "location" not in head.headers
    assert (endpoint.asked, await endpoint.stored()) == ([], [])
    endpoint.gate.set()
    answer = await endpoint.get("why?", headers=headers).whole()
    assert answer.text == "why?: one two"
    assert answer.headers.getlist("cross-origin-resource-policy") == ["cross-origin"]
    assert endpoint.asked == ["why?"]


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


@on_memory
async def test_second_request_for_an_answer_joins_its_stream(endpoint: Endpoint) -> None:
    first = await endpoint.get("hi", reply_id="r").until("one ")
    again = await endpoint.get("hi", reply_id="r").until("one ")
    endpoint.gate.set()
    for reader in (first, again, endpoint.get("hi", reply_id="r")):
        assert (await reader.whole()).text == "hi: one two"
    assert await endpoint.stored() == [("user", "hi", "complete"), ("assistant", "hi: one two", "complete")]


@on_memory
async def test_another_message_under_the_id_of_the_answer_is_not_joined(endpoint: Endpoint) -> None:
    """A user may know or choose the id: of the user's own message, of another answer, or of an answer in its name."""
    hub = endpoint.hub
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
        refused = endpoint.get("hi", reply_id=name)
        with pytest.raises(IdConflict, match=f"message '{name}' exists and is not the answer of author 'assistant'"):
            await refused.whole()
        assert refused.status == 0  # the app has sent no response


def test_cancel_command_stops_the_answer_and_closes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN_COMMANDS, "cancel", CANCEL._replace(after_s=3600.0))  # the writer does it, not the hub
    is_closed = asyncio.Event()

    async def words() -> AsyncIterator[str]:
        try:
            yield "half"
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    @on_memory
    async def run(endpoint: Endpoint) -> None:
        response = endpoint.hub.stream_response("chat:1", words, prompt="hi", reply_id="r")
        response.background = BackgroundTask(endpoint.hub.create, "chat:2", text="after")
        reader = await Reader(response, {}).until("half")
        await endpoint.hub.command("chat:1", "cancel", target="r")
        assert '{"status":"cancelled"}' in (await reader.whole()).body
        assert is_closed.is_set()
        assert (await endpoint.stored())[1] == ("assistant", "half", "cancelled")
        assert [one.text for one in (await endpoint.hub.history("chat:2")).messages] == ["after"]

    run()


@on_memory
async def test_answer_is_cancelled_after_its_last_viewer(endpoint: Endpoint) -> None:
    asking = await endpoint.get("why", cancel_after_s=5.0).until("one ")
    batches = endpoint.hub.subscribe("chat:1").batches()
    await anext(batches)
    await asking.leave()
    await asyncio.sleep(10)
    assert (await endpoint.stored())[1] == ("assistant", "why: one ", "streaming")  # it has a viewer
    await batches.aclose()
    await asyncio.sleep(10)
    assert (await endpoint.stored())[1] == ("assistant", "why: one ", "cancelled")


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
def test_only_a_reader_that_knows_comments_gets_heartbeats(
    options: dict[str, Any], accept: str, has_heartbeats: bool
) -> None:
    @on_memory
    async def run(endpoint: Endpoint) -> None:
        reader = await endpoint.get("hi", accept=accept, **options).until("one ")
        await asyncio.sleep(60)
        endpoint.gate.set()
        assert "two" in (await reader.whole()).body
        assert (":\n\n" in reader.body) is has_heartbeats

    run()


async def framed() -> AsyncIterator[str]:
    for word in ("You ", "asked"):
        yield f"data: {json.dumps(word)}\n\n"


@pytest.mark.parametrize(
    ("beginning", "frame"),
    [("Thinking. ", 'data: "You "\n\n'), ("", "data: You\r\n\r\n"), ("\n", ": ping\nevent: token\ndata: You\n\n")],
)
async def test_frames_after_text_fail_with_remedy(beginning: str, frame: str, caplog: pytest.LogCaptureFixture) -> None:
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


@on_memory
async def test_reading_caller_counts_as_a_viewer(endpoint: Endpoint) -> None:
    asking = await endpoint.get("why", cancel_after_s=0).until("one ")
    await asyncio.sleep(10)
    endpoint.gate.set()
    assert (await asking.whole()).text == "why: one two"
    assert (await endpoint.stored())[1] == ("assistant", "why: one two", "complete")


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
        ({"style": lambda: "x"}, r"style must be a function of the text alone.*\(\) \(too many .*write `def frame"),
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
    with pytest.raises(LocalError, match="return it from a route of Starlette"):
        new_hub().stream_response("chat:1", framed).render()  # as Django calls it


def wrapped() -> StreamingResponse:
    return StreamingResponse(framed())


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (StreamingResponse(framed()), "got a StreamingResponse; pass the generator that the response wraps"),
        (None, "got None; pass an async generator or its function"),
        (StreamingResponse, "got the class StreamingResponse; pass the generator that the response wraps"),
        (wrapped, "got the function 'wrapped' that returns a StreamingResponse; pass the generator that the response"),
    ],
)
def test_source_other_than_a_stream_is_refused_at_the_call(source: object, detail: str) -> None:
    with pytest.raises(LocalError, match="source must be a stream") as refused:
        new_hub().stream_response("chat:1", source)
    assert detail in refused.value.detail


@pytest.mark.parametrize("style", ["events", "data"])
def test_eventsource_that_reconnects_without_a_reply_id_joins_its_answer(style: Any) -> None:
    @on_memory
    async def run(endpoint: Endpoint) -> None:
        first = await endpoint.get("hi", style=style).until("one ")
        await first.leave()
        again = endpoint.get("hi", first.last_id, style=style)
        endpoint.gate.set()
        assert "two" in (await again.whole()).body
        assert "one " not in again.body
        for name in ("tenuto-message", "location"):
            assert again.headers[name] == first.headers[name]
        assert (await endpoint.get("hi", again.last_id, style=style).whole()).status == 204
        assert endpoint.asked == ["hi"]
        assert [role for role, _, _ in await endpoint.stored()] == ["user", "assistant"]
        epoch, serial, extra = first.last_id.split(":")
        forged = f"{epoch}:{serial}:{extra[0]}{'A' * 22}{extra[23:]}"
        for question, since, channel in (
            ("other", first.last_id, "chat:1"),
            ("hi", first.last_id, "chat:2"),
            ("hi", forged, "chat:1"),
        ):
            whole = await endpoint.get(question, since, channel=channel, style=style).whole()
            assert "one " in whole.body
            assert whole.headers["tenuto-message"] != first.headers["tenuto-message"]
        assert endpoint.asked == ["hi", "other", "hi", "hi"]

    run()
