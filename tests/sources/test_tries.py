"""`pipe(make, retries=…)`: another try after a failure that may pass, and never a text twice.

Layer: tests.

The SDKs are real, and their HTTP clients have a transport that answers from a script, so that minutes pass in virtual
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import httpx
import httpx2
import pytest
import requests  # type: ignore[import-untyped]
from anthropic import AsyncAnthropic
from google import genai
from google.genai import types
from google.genai.errors import ClientError, ServerError
from hypothesis import example, given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from pydantic_ai.exceptions import ModelHTTPError
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from tenuto import Hub, Turn
from tenuto.core.errors import Finished, LocalError
from tenuto.core.model import Message
from tenuto.core.view import View
from tenuto.sources import OnBreak, Piped, SoFar, ToolCall, UpstreamEnded, UpstreamError, pipe, tries
from tenuto.sources.writing import SHORTEST_OVERLAP, Join, Kept
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import answers_of, lives, messages
from tests.client.wire import Wire, client_of, memory_hub
from tests.sources.piping import broken
from tests.sources.provider import CUT, HOLD
from tests.sources.wires import (
    TEXT,
    Responses,
    chat,
    chat_end,
    claude,
    claude_begin,
    claude_block,
    claude_end,
    claude_said,
    gemini,
    sse,
)
from tests.virtual import closed_later, virtual_clock, virtually

Body = Sequence[bytes | str]
HI: Any = [{"role": "user", "content": "Hi"}]
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
LONG = "The answer has more than thirty-two characters, so that it can be continued. "


class Model(httpx2.AsyncBaseTransport):
    """Answers each request with the next script: a body, or a status with headers and a JSON body."""

    def __init__(self, *scripts: Body | tuple[int, dict[str, str], str]) -> None:
        self.scripts = list(scripts)
        self.asked_s: list[float] = []  # the times of the requests
        self.asked: list[str] = []  # their methods and paths

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked_s.append(asyncio.get_running_loop().time())
        path = re.sub(r"^/(v1/responses|v1/interactions)", "", request.url.raw_path.decode())
        self.asked.append(f"{request.method} {path}".rstrip())
        script = self.scripts.pop(0)
        if isinstance(script, tuple):
            status, headers, body = script
            return httpx2.Response(status, headers=headers | {"content-type": "application/json"}, text=body)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=_steps(script))

    def openai(self) -> AsyncOpenAI:
        http = httpx2.AsyncClient(transport=self)
        client = AsyncOpenAI(base_url="http://model/v1", api_key="sk-none", max_retries=0, http_client=http)
        client._platform = "Linux"  # found in a thread otherwise, for which virtual time does not wait
        return client

    def google(self) -> genai.Client:
        http = httpx2.AsyncClient(transport=self)
        once = types.HttpRetryOptions(attempts=1)
        options = types.HttpOptions(base_url="http://model", retry_options=once, httpx_async_client=http)
        return genai.Client(api_key="none", http_options=options)

    @property
    def waits_s(self) -> list[float]:
        return [round(after - before, 1) for before, after in zip(self.asked_s, self.asked_s[1:], strict=False)]


async def _steps(script: Body) -> AsyncIterator[bytes]:
    for step in script:
        await asyncio.sleep(0.01)
        if step == CUT:
            raise httpx2.ReadError("the connection broke")
        if step == HOLD:
            await asyncio.sleep(1e6)
        assert isinstance(step, bytes)
        yield step


def said(*pieces: str) -> list[bytes]:
    return [chat({"content": piece}) for piece in pieces]


def ask_chat(client: AsyncOpenAI) -> Callable[[], Any]:
    return lambda: client.chat.completions.create(model="gpt-test", messages=HI, stream=True)


def new_hub(store: MemoryStore | None = None, *, drain_s: float = 0.2) -> Hub:
    return closed_later(Hub(store or "memory://", clock=virtual_clock(), hooks_signals=False, drain_s=drain_s))


def refused(status: int) -> httpx2.HTTPStatusError:
    request = httpx2.Request("GET", "http://model")
    return httpx2.HTTPStatusError("refused", request=request, response=httpx2.Response(status, request=request))


async def texts_shown(hub: Hub, texts: list[str]) -> None:
    """Add each text of the answers that a viewer is shown, if it is another one than the last of `texts`."""
    view = View()
    async for batch in hub.subscribe("chat:1", history=9).batches():
        view.receive(batch)
        text = "".join(one.text for one in view.messages() if one.role == "assistant")
        if texts[-1:] != [text]:
            texts.append(text)


async def piped(make: object, **options: Any) -> tuple[Message, list[str]]:
    """Return the message into which `make` was piped, and each text that a viewer was shown of it."""
    hub, shown = new_hub(), [""]
    await hub.start()
    watching = asyncio.create_task(texts_shown(hub, shown))
    try:
        with contextlib.suppress(UpstreamEnded, UpstreamError):
            async with hub.message("chat:1", id="m") as message:
                await pipe(message, make, **options)
        await asyncio.sleep(1)
        return (await hub.read("chat:1", "m"))[0], shown[1:]
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await hub.close()


def counted(message: Message) -> list[str]:
    return [part["type"] for part in message.parts]


@virtually
async def test_stream_of_google_that_ends_in_the_middle_of_an_event_is_tried_again() -> None:
    half = gemini({"text": "Hello"})[:-20]
    model = Model([gemini({"text": "Hel"}), half], [gemini({"text": "Hello"}), gemini({"text": "."}, finish="STOP")])
    client = model.google()  # its streams need the client
    message, _ = await piped(lambda: client.aio.models.generate_content_stream(model="gemini-test", contents="Hi"))
    assert (message.status, message.text) == ("complete", "Hello.")


@pytest.mark.parametrize("source", ["openai-responses", "anthropic"])
@virtually
async def test_text_of_a_failed_try_stays_in_view_until_the_next_one_has_text(source: str) -> None:
    wire, said = Responses(), claude_said(TEXT[:6], TEXT[6:])
    events = [*wire.begin(), *wire.said(), *wire.completed()]
    if source == "anthropic":  # with a thought that is left out
        thought = claude_block(0, {"type": "thinking", "thinking": "", "signature": ""})
        events = [*claude_begin(), *thought, *said, *claude_end()]
    delta, tries = next(event for event in events if b"text_delta" in event or b"text.delta" in event), list[int]()

    async def model() -> AsyncIterator[dict[str, Any]]:
        tries.append(1)
        for event in events:
            await asyncio.sleep(1)  # also between the beginning of a part and its text
            yield json.loads(event.split(b"data: ")[1])
            if event is delta and len(tries) == 1:
                raise ConnectionError

    message, shown = await piped(lambda: model(), source=source)
    assert (message.status, message.text) == ("complete", TEXT)
    assert shown == [TEXT[:6], TEXT]


# -- the scripts of others ---------------------------------------------------------------------------------------------


@virtually
async def test_stream_that_others_repeat_on_a_retry_is_shown_once() -> None:
    """The script of temporalio/samples-python#301 and dbos-transact-py#770: "Hello", " wor", a failure, all again."""
    model = Model([*said("Hello", " wor"), CUT], [*said("Hello", " wor", "ld"), *chat_end()])
    message, shown = await piped(ask_chat(model.openai()))
    assert (message.status, message.text, counted(message)) == ("complete", "Hello world", ["attempt", "text"])
    assert all("Hello world".startswith(text) for text in shown)
    assert (model.waits_s, message.meta["usage"]["output_tokens"]) == ([1.0], 7)


@virtually
async def test_stream_that_the_app_wraps_is_not_empty_behind_a_break() -> None:
    model = Model([*said("Hello"), CUT], [], [*said("Hello"), *chat_end()])
    ask = ask_chat(model.openai())

    async def wrapped() -> AsyncIterator[object]:
        async for event in await ask():
            yield event

    message, _ = await piped(wrapped)
    assert (message.status, message.text, len(model.asked)) == ("complete", "Hello", 3)


@virtually
async def test_claude_that_is_overloaded_in_its_stream_is_asked_again() -> None:
    overloaded = claude("error", error={"type": "overloaded_error", "message": "Overloaded"})
    half = [*claude_begin(), *claude_said("Half", place=0)[:2], overloaded]
    model = Model(half, [*claude_begin(), *claude_said("Whole", place=0), *claude_end()])
    http = httpx2.AsyncClient(transport=model)
    client = AsyncAnthropic(base_url="http://model", api_key="sk-none", max_retries=0, http_client=http)
    client._platform = "Linux"  # as that of `Model.openai`
    make = functools.partial(client.messages.create, model="claude-test", max_tokens=9, messages=HI, stream=True)
    message, _ = await piped(make)
    assert (message.status, message.text) == ("complete", "Whole")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        ({"message": "", "code": 502}, True),  # OpenRouter
        ({"message": "", "type": "InternalServerError", "param": None, "code": 500}, True),  # vLLM
        ({"message": "", "type": "BadRequestError", "param": None, "code": 400}, False),
        ({"message": "", "code": "429"}, True),
        ({"message": "", "type": "InternalServerError"}, True),
        ({"message": "", "type": "invalid_request_error", "code": "content_filter"}, False),
        ({"message": "", "type": "insufficient_quota", "code": 429}, False),
        ("overloaded", True),
    ],
)
@virtually
async def test_error_inside_a_stream_passes_by_its_status_or_code(error: object, passes: bool) -> None:
    async def read(body: Body) -> AsyncIterator[object]:  # as an app does without the SDK
        for event in body:
            assert isinstance(event, bytes)
            yield json.loads(event.partition(b"data: ")[2])

    bodies: list[Body] = [[*said("Half"), sse({"error": error})], [*said("Whole"), *chat_end()[:-1]]]
    for ask in (ask_chat(Model(*bodies).openai()), functools.partial(map(read, bodies).__next__)):
        message, _ = await piped(ask)
        assert (message.status, message.text) == (("complete", "Whole") if passes else ("failed", "Half"))


@pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded", "vector_store_timeout"])
@virtually
async def test_response_that_fails_is_made_again(code: str) -> None:
    wire, again = Responses(), Responses()
    failed = wire.event("response.failed", response={"id": "resp_1", "error": {"code": code, "message": ""}})
    first = [*wire.begin(), *wire.said(0, ("Half",)), failed]
    model = Model(first, [*again.begin(), *again.said(0, ("Whole",)), *again.completed()])
    known: list[SoFar] = []

    def make(model: str = "gpt-test", *, so_far: SoFar) -> Any:
        known.append(so_far)
        return client.responses.create(model=model, input="Hi", stream=True)

    client = model.openai()
    message, _ = await piped(make)
    assert message.text == "Whole"
    assert [(one.text, one.attempt, one.response_id) for one in known] == [("", 1, None), ("", 2, "resp_1")]


# -- waiting and giving up ---------------------------------------------------------------------------------------------


@virtually
async def test_wait_grows_and_is_as_long_as_the_provider_asks_for() -> None:
    busy = (429, {"retry-after": "7"}, "{}")
    model = Model((503, {}, "{}"), busy, (500, {"retry-after-ms": "100"}, "{}"), [*said("Whole"), *chat_end()])
    message, _ = await piped(ask_chat(model.openai()))
    assert (message.text, counted(message)) == ("Whole", ["text"])
    assert model.waits_s == [1.0, 7.0, 4.0]


@virtually
async def test_wait_is_as_long_as_google_asks_for_in_the_body() -> None:
    def busy(delay: str) -> tuple[int, dict[str, str], str]:
        details = [{"@type": "type.googleapis.com/google.rpc.Help"}, {"@type": RETRY_INFO, "retryDelay": delay}]
        error = {"code": 429, "message": "", "status": "RESOURCE_EXHAUSTED", "details": details}
        return 429, {}, json.dumps({"error": error})

    model = Model(busy("37s"), busy("7.5s"), [gemini({"text": "Whole"}, finish="STOP")], busy("3600s"))
    client = model.google()
    for text in ("Whole", ""):
        message, _ = await piped(lambda: client.aio.models.generate_content_stream(model="gemini-test", contents="Hi"))
        assert message.text == text
    assert model.waits_s[:2] == [37.0, 7.5]


@virtually
async def test_stalled_stream_has_broken_although_its_connection_lives() -> None:
    model = Model([*said("Half"), *[b": keep-alive\n\n"] * 3, HOLD], [HOLD], [*said("Whole"), *chat_end()])
    message, _ = await piped(ask_chat(model.openai()), retries=2, stall_s=60)
    assert (message.text, model.waits_s) == ("Whole", [61.0, 62.0])


KEEPALIVE = {"type": "keepalive", "sequence_number": 1}  # of OpenAI's Responses


@pytest.mark.parametrize(
    ("begin", "ping"),
    [
        ('data: "Half"\n\n', ": ping\n\n"),
        ('data: "Half"\n\n', "event: ping\ndata: 1\n\n"),
        ({"data": '"Half"'}, {"event": "heartbeat", "data": ""}),
        ('data: {"type":"start"}\n\n', ": ping\n\n"),
        ({"type": "message_start", "message": {}}, {"type": "ping"}),
        ({"type": "response.created", "response": {}}, KEEPALIVE),
        ({"type": "agent_updated_stream_event"}, {"type": "raw_response_event", "data": KEEPALIVE}),
        (KEEPALIVE, KEEPALIVE),
    ],
    ids=["comments", "pings", "dicts", "the AI SDK", "Claude", "OpenAI", "OpenAI Agents", "nothing else"],
)
@virtually
async def test_plain_stream_that_is_silent_for_two_minutes_has_broken(begin: object, ping: object) -> None:
    """Keep-alives are no events."""

    async def stream() -> AsyncIterator[object]:
        yield begin
        for _ in range(5):
            await asyncio.sleep(50)
            yield ping

    began = asyncio.get_running_loop().time()
    message, _ = await piped(stream())
    assert message.status == "interrupted"
    assert asyncio.get_running_loop().time() - began == pytest.approx(121, abs=0.5)  # with the pause of `piped`


@virtually
async def test_items_of_text_and_of_half_a_frame_are_signs_of_life() -> None:
    async def stream(items: list[str]) -> AsyncIterator[str]:
        for item in items:
            await asyncio.sleep(100)
            yield item

    for items in (["data: the first ", "words", ": not a frame\n"], ['data: "the first ', 'words"\n\n', "data: 1\n\n"]):
        message, _ = await piped(stream(items))
        assert message.text.startswith(("data: the first words", "the first words"))


@virtually
async def test_stream_may_be_silent_for_as_long_as_its_caller_says() -> None:
    async def stream() -> AsyncIterator[str]:
        await asyncio.sleep(10_000)
        yield "words"

    await asyncio.sleep(30_000)  # the clock of a machine is beyond the limit
    for stall_s in (20_000, math.inf):
        assert (await piped(stream(), stall_s=stall_s))[0].text == "words"


async def fail_step(turn: Turn) -> None:
    async def fail() -> None:
        await asyncio.sleep(300)
        raise ConnectionError

    with contextlib.suppress(ConnectionError):
        await turn.step("work", fail)


@pytest.mark.parametrize(("silent_s", "status"), [(110, "complete"), (130, "interrupted")])
@pytest.mark.parametrize(
    "work",
    [
        lambda turn: turn.ask("approve", timeout_s=300),
        lambda turn: turn.sleep("nap", 300),
        lambda turn: turn.step("work", asyncio.sleep, 300),
        fail_step,
    ],
    ids=["question", "sleep", "step", "step that fails"],
)
@virtually
async def test_stream_of_a_turn_that_waits_or_runs_a_step_is_not_silent(
    work: Callable[[Turn], Awaitable[Any]], silent_s: float, status: str
) -> None:
    async def run(turn: Turn) -> AsyncIterator[str]:
        yield "Asked. "
        await asyncio.sleep(110)
        await work(turn)
        await asyncio.sleep(silent_s)
        yield "Done."

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(run(turn))

    (answer,) = await answers_of(respond, "restart", 600)
    assert answer.status == status


LASTING: list[tuple[int, dict[str, str], str]] = [
    *((status, {}, "{}") for status in (400, 401, 403, 404, 413)),
    (429, {}, '{"error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": ""}}'),
    (429, {"retry-after": "121"}, "{}"),
    (503, {"x-should-retry": "false"}, "{}"),
]


@pytest.mark.parametrize("refusal", LASTING, ids=lambda one: f"{one[0]} {one[1] or one[2]}")
@virtually
async def test_error_that_lasts_is_raised_at_once(refusal: tuple[int, dict[str, str], str]) -> None:
    model = Model(refusal)
    await broken(new_hub(), ask_chat(model.openai()), UpstreamError)
    assert len(model.asked_s) == 1


def bug(**fields: str) -> Exception:
    """Return an error of the app, whose code, cause and fields have a meaning only in an error of an SDK."""
    bases, own = (Exception,), {"code": 4001, "__cause__": ConnectionError(), **fields}
    return type("Bug", bases, own)("charged, but not saved")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((bug(**{name: "timeout"}), False) for name in ("own", "error", "body", "details")),
        (bug(code="503"), False),
        (type("Timeout", (Exception,), {})(), False),
        *((error("broke"), True) for error in (httpx.ReadError, httpx2.ReadTimeout, httpx2.RemoteProtocolError)),
        *((error("wrong"), False) for error in (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, KeyError)),
        *((error(429, {"error": {"code": 429}}), True) for error in (ClientError, ServerError)),
        (ClientError(400, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}), False),
        *((ModelHTTPError(status, "gpt-test"), status == 503) for status in (400, 503)),
        *((refused(status), status == 503) for status in (404, 503)),
        *((error(), True) for error in (ConnectionError, ConnectionResetError, TimeoutError)),
        *((getattr(requests, name)(), True) for name in ("ConnectionError", "ReadTimeout")),
        *((error(None, None), True) for error in (ConnectionClosedError, ConnectionClosedOK)),
        (requests.exceptions.ChunkedEncodingError(), True),
        (ModelHTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "gpt-test"), True),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:ConnectionClosed.code is deprecated")
def test_errors_of_other_packages_are_told_apart(error: Exception, passes: bool) -> None:
    assert tries.may_pass(error) is passes


@virtually
async def test_function_that_returns_the_stream_of_an_earlier_try_is_an_error() -> None:
    async def words() -> AsyncIterator[str]:
        yield "Hello "
        raise ConnectionError

    stream = words()
    stored, error = await broken(new_hub(), lambda: stream, LocalError, source="text")
    assert (stored.status, "returned the stream of an earlier try" in str(error)) == ("failed", True)


@pytest.mark.parametrize(
    ("first", "options", "parts"),
    [(said("One"), {"retries": 1}, ["attempt", "text"]), ([], {"on_break": "fail"}, ["text"])],  # only with content
)
@virtually
async def test_text_of_the_last_try_stays(first: list[bytes], options: dict[str, Any], parts: list[str]) -> None:
    model = Model([*first, CUT], [*said("Last"), CUT])
    message, _ = await piped(ask_chat(model.openai()), **options)
    assert (message.status, message.reason, message.text) == ("interrupted", "upstream_ended", "Last")
    assert (counted(message), len(model.asked)) == (parts, 2)


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"retries": -1}, "retries must be an integer from 0 on, got -1"),
        ({"retry_s": "1"}, "retry_s must be a number of seconds from 0 on"),
        ({"on_break": "again"}, "on_break must be one of restart, continue, prefix, fail, got 'again'"),
        ({"stall_s": 0}, "stall_s must be a number of seconds above 0, got 0"),
        ({"source": "telepathy"}, "source must be one of text, openai-responses, openai-chat, "),
    ],
)
@virtually
async def test_setting_that_is_not_valid_is_refused(options: dict[str, Any], detail: str) -> None:
    _, error = await broken(new_hub(), lambda: None, LocalError, **options)
    assert detail in str(error)
    _, error = await broken(new_hub(), iter(["a"]), LocalError, retries=1)
    assert "need a function that makes the stream" in str(error)


# -- continuing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_break", "continuation", "whole"),
    [
        ("continue", "It goes on.", LONG + "It goes on."),
        ("continue", LONG[-40:] + "It goes on.", LONG + "It goes on."),  # an overlap
        ("continue", LONG + "It goes on.", LONG + "It goes on."),  # the whole answer again
        ("continue", LONG[:40] + "other words", LONG + LONG[:40] + "other words"),  # a verse with the same beginning
        ("prefix", LONG[-40:] + "It goes on.", LONG + LONG[-40:] + "It goes on."),  # this repetition is meant
        ("prefix", LONG + "It goes on.", LONG + "It goes on."),  # a model that begins with what it was given
    ],
)
@virtually
async def test_text_that_broke_off_is_continued_without_a_repetition(
    on_break: OnBreak, continuation: str, whole: str
) -> None:
    pieces = [continuation[at : at + 5] for at in range(0, len(continuation), 5)]
    model = Model([*said(LONG), CUT], [*said(*pieces), *chat_end()])
    known: list[SoFar] = []

    def make(so_far: SoFar) -> Any:
        known.append(so_far)
        return ask_chat(client)()

    client, wrapped = model.openai(), functools.wraps(make)(lambda *given: make(*given))
    message, shown = await piped(wrapped, on_break=on_break)
    assert (message.status, message.text) == ("complete", whole)
    assert [one.text for one in known] == ["", LONG]
    assert known[1].parts == [{"type": "text", "text": LONG}]
    assert message.parts == [{"type": "text", "text": whole, "joins": [len(LONG)]}]
    assert all(whole.startswith(text) or text == LONG for text in shown)


@pytest.mark.parametrize(
    "broken",
    [
        [chat({"reasoning_content": "Let me think about this for more than thirty-two characters."})],
        [*said(LONG), chat({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]})],
        said('{"structured": "output of more than thirty-two characters'),
        said("short"),
        said(" " * 40 + "short"),
    ],
    ids=["reasoning", "a call", "structured output", "a short text", "white space and a short text"],
)
@pytest.mark.parametrize("on_break", ["continue", "prefix"])
@virtually
async def test_content_that_cannot_be_continued_is_made_again(broken: list[bytes], on_break: OnBreak) -> None:
    model = Model([*broken, CUT], [*said("Whole"), *chat_end()])
    ask = ask_chat(model.openai())
    message, _ = await piped(lambda so_far: ask(), on_break=on_break)
    assert (message.text, counted(message)[-2:]) == ("Whole", ["attempt", "text"])


white = st.text(" \n\t", max_size=3)
fences = st.just("") | st.builds(str.__mul__, st.sampled_from("`~"), st.integers(3, 6))
names = st.sampled_from(["", "json", "JSON", "json5", "python", "js"])


@given(white, fences, st.text(" \t", max_size=2), names, white, st.sampled_from(["{", "[", "json = {", "<{"]))
def test_json_is_not_continued_in_whatever_fence_but_code_is(
    space: str, fence: str, gap: str, name: str, inner: str, begin: str
) -> None:
    opened = f"{fence}{gap}{name}\n" if fence else ""
    is_json = name.startswith(("json", "JSON")) if fence and name else begin in ("{", "[")
    text = {"type": "text", "text": f"{space}{opened}{inner}{begin}{'x' * 40}"}
    assert (tries.continuable([(0, text)]) is None) == is_json


WORDS = "".join(f"{number} word " for number in range(150))


@pytest.mark.parametrize("end", [CUT, HOLD])
@pytest.mark.parametrize(
    ("on_break", "text", "held", "added"),
    [
        ("continue", LONG, LONG[:20], ""),  # the whole text again
        ("continue", LONG, LONG[-40:-20], ""),  # an overlap
        ("continue", WORDS, WORDS[:300], ""),
        ("continue", WORDS, WORDS[:100] + "other words", WORDS[:100] + "other words"),
        ("continue", WORDS, WORDS[-100:] + "It goes on.", "It goes on."),
        ("continue", LONG, LONG + "It goes on.", "It goes on."),
        ("continue", LONG, "It goes on.", "It goes on."),
        ("prefix", LONG, LONG[:50], ""),
        ("prefix", LONG, LONG, ""),
    ],
)
@virtually
async def test_last_try_that_breaks_off_repeats_nothing_and_takes_nothing_back(
    on_break: OnBreak, text: str, held: str, added: str, end: str
) -> None:
    ask = ask_chat(Model([*said(text), CUT], [*said(held), end]).openai())
    message, shown = await piped(lambda so_far: ask(), on_break=on_break, retries=1)
    assert (message.status, message.text, counted(message)) == ("interrupted", text + added, ["text"])
    assert message.parts[0].get("joins") == ([len(text)] if added else None)
    assert all((text + added).startswith(one) for one in shown)


@virtually
async def test_continuation_that_breaks_off_is_continued_too() -> None:
    model = Model([*said(LONG), CUT], [*said("x" * 250), CUT], [CUT], [*said("end"), *chat_end()])
    ask = ask_chat(model.openai())
    message, _ = await piped(lambda so_far: ask(), on_break="continue")
    assert message.parts == [{"type": "text", "text": LONG + "x" * 250 + "end", "joins": [len(LONG), len(LONG) + 250]}]


@pytest.mark.parametrize(
    ("left", "scripts", "whole"),
    [
        (LONG, [said("It goes on.")], LONG + "It goes on."),
        ("short", [said("It goes on.")], "It goes on."),
        (LONG, [[*said("x" * 300), CUT], said("Whole")], "Whole"),  # the text of the dead process is superseded, too
        (LONG, [said(LONG[:40] + "other words")], LONG + LONG[:40] + "other words"),
        (f"The text of a stream beside it.|{LONG}", [said("Whole")], "Whole"),
    ],
)
@virtually
async def test_next_process_continues_the_text_that_it_can_continue(
    left: str, scripts: list[list[bytes]], whole: str
) -> None:
    hub, model, known = new_hub(), Model(*scripts[:-1], [*scripts[-1], *chat_end()]), list[str]()

    def make(so_far: SoFar) -> Any:
        known.append(so_far.text)
        return ask_chat(client)()

    client = model.openai()
    with contextlib.suppress(asyncio.CancelledError):
        async with hub.message("chat:1", id="m") as message:
            message.cancelled_as = ("interrupted", None)
            for text in left.split("|"):
                await message.part({"type": "text", "text": text})
            raise asyncio.CancelledError
    async with await hub.take_over("chat:1", "m") as message:
        await pipe(message, make)
    stored, _ = await hub.read("chat:1", "m")
    assert (stored.text, known[0]) == (whole, left if left == LONG else "")


texts = st.text("ab", max_size=120) | st.text("ab \n", min_size=100, max_size=300)
spaces = st.sampled_from(["", "", "\n", " ", "\n\n", " \r\n\t", "\u00a0"])


def overlap_of(text: str, new: str) -> int:
    lengths = range(min(len(text), len(new)), SHORTEST_OVERLAP - 1, -1)
    return next((length for length in lengths if text.endswith(new[:length])), 0)


@example("a" * 40, None, "", "a" * 250, [1], False)
@example("  " + "a" * 30, None, "", "  " + "a" * 30 + "b", [1], False)
@example("Hello", 0, "\n", " world", [2], True)
@given(texts, st.none() | st.integers(0, 200), spaces, texts, st.lists(st.integers(1, 90)), st.booleans())
def test_what_is_added_is_the_continuation_without_its_longest_overlap(
    text: str, at: int | None, space: str, added: str, cuts: list[int], is_exact: bool
) -> None:
    """The model repeats the text from `at` on, or nothing; the continuation may be cut anywhere."""
    new = space + (text[0 if is_exact else at :].lstrip() if at is not None else "") + added
    start, bare = text.lstrip(), new.lstrip()
    if is_exact:
        expected = bare.removeprefix(start) if start and bare.startswith(start) else new
    else:
        overlap = overlap_of(text, bare)
        expected = bare[overlap:] if overlap else new[overlap_of(text, new) :]
    join, found, rest = Join(Kept([(0, {"type": "text", "text": text})], is_exact)), None, new
    for cut in [*cuts, len(new)]:
        piece, rest = rest[:cut], rest[cut:]
        found = found + piece if found is not None else join.take(piece)
    assert (join.end() if found is None else found) == expected


@example(36, 5, 0)
@given(st.integers(33, 80), st.integers(1, 9), st.integers(0, 80))
def test_text_that_is_cut_within_a_character_stands_once(cut: int, size: int, at: int) -> None:
    """The first stream has so many UTF-16 units of the text; the next one begins at `at`, as far as it may."""
    truth = "A text with emoji, which JSON cuts 😀😀 anywhere: 👩‍👩‍👧 zwölf 中文 and its end."

    async def make(so_far: SoFar) -> AsyncIterator[str]:
        assert truth.startswith(so_far.text)
        length = len(so_far.text)
        units = truth[length if at > length else min(at, max(0, length - SHORTEST_OVERLAP)) :].encode("utf-16-le")
        for start in range(0, len(units) if length else 2 * cut, 2 * size):
            yield units[start : start + 2 * size].decode("utf-16-le", "surrogatepass")
        if not length:
            raise ConnectionError

    @virtually
    async def run() -> None:
        for on_break in ("continue", *(["prefix"] if at == 0 or at > cut else [])):
            message, shown = await piped(make, on_break=on_break, source="text")
            assert message.text == truth
            assert all(truth.startswith(text) for text in shown)

    run()


@pytest.mark.parametrize("on_break", ["fail", "continue"])
@virtually
async def test_text_of_a_last_try_stays_when_the_handler_goes_on(on_break: OnBreak) -> None:
    hub, model = new_hub(), Model([*said(LONG), CUT])
    ask = ask_chat(model.openai())
    async with hub.message("chat:1", id="m") as writer:
        with contextlib.suppress(UpstreamEnded):
            await writer.pipe(lambda so_far: ask(), on_break=on_break, retries=0)
        await writer.append(" [broke off]")
    assert (await hub.read("chat:1", "m"))[0].text == f"{LONG} [broke off]"


@virtually
async def test_model_is_not_called_again_for_a_message_that_was_stopped() -> None:
    hub, model = new_hub(), Model([*said("Hello"), CUT], [*said("Hello"), *chat_end()])
    ask = ask_chat(model.openai())

    async def stop() -> None:
        await asyncio.sleep(5)
        await hub.command("chat:1", "cancel", target="m")

    stopping = asyncio.ensure_future(stop())
    with pytest.raises(Finished):
        async with hub.message("chat:1", id="m") as writer:
            await writer.pipe(ask, retry_s=20)
    assert len(model.asked_s) == 1
    assert (await hub.read("chat:1", "m"))[0].status == "cancelled"
    await stopping


@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_try_that_fails_supersedes_nothing_that_others_have_written(is_remote: bool) -> None:
    tries = list[int]()

    async def model() -> AsyncIterator[str]:
        tries.append(1)
        yield "A text of a model "
        await asyncio.sleep(2)
        if len(tries) == 1:
            raise ConnectionError
        yield "and its end. "

    async def beside(turn: Turn) -> None:
        await asyncio.sleep(0.5)
        await turn.begun[0].append("Own ")
        part = await turn.begun[0].part({"type": "tool", "call": "c", "name": "f", "input": "", "state": "called"})
        calls = [ToolCall("c", "f", "", part)]
        await turn.run_tools(Piped("", tool_calls=calls), {"f": lambda: asyncio.sleep(5)})
        await turn.begun[0].append("text.")

    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
            await asyncio.gather(message.pipe(model, retries=2, source="text"), beside(turn))

    (answer,) = await answers_of(agent, "restart", 60, is_remote=is_remote)
    assert (answer.status, answer.text) == ("complete", "Own A text of a model and its end. text.")
    attempt, _, tool = answer.parts[:3]
    assert [one["text"] for one in attempt["parts"]] == ["A text of a model "]
    assert tool["state"] == "done"


@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_try_that_a_time_limit_of_the_handler_ends_is_superseded(is_remote: bool) -> None:
    begun = list[int]()

    async def model() -> AsyncIterator[str]:
        begun.append(1)
        yield "Hello "
        if len(begun) == 1:
            await asyncio.sleep(100)
        yield "world"

    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(message.pipe(lambda: model(), retries=3), 5)
            await message.pipe(lambda: model(), retries=3)

    (answer,) = await answers_of(agent, "restart", 60, is_remote=is_remote)
    assert (answer.status, answer.text) == ("complete", "Hello world")
    assert [part["type"] for part in answer.parts] == ["attempt", "text"]


@pytest.mark.parametrize("ended_by", ["stop", "limit", "shutdown"])
@virtually
async def test_try_that_ends_with_its_turn_is_not_superseded(ended_by: str) -> None:
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            if turn.attempt > 1:
                await message.append(" And on.")
                return
            try:
                async with message.attempt():
                    await message.append("The text.")
                    await asyncio.sleep(100)
            finally:
                await message.append(" The end.")

    async for hub in lives(bot, 2, 2, on_crash="continue", timeout_s=5):
        (answer, _) = (await hub.history("chat:1")).messages
        if answer.status == "streaming" and ended_by == "stop":
            await hub.command("chat:1", "cancel", target="m1")
        await asyncio.sleep(5 if ended_by == "limit" else 0.1)
        answer = (await hub.history("chat:1")).messages[0]
    on = " And on." if ended_by == "shutdown" else ""
    assert answer.text == "The text. The end." + on


@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_task_that_outlives_a_failed_attempt_writes_no_more(is_remote: bool) -> None:
    hub = memory_hub(drain_s=0.2)
    await hub.start()

    async def late(message: Any) -> None:
        await message.append("begun ")
        await asyncio.sleep(5)
        await message.append("late")

    async def late_pipe(message: Any) -> None:
        async def stream() -> AsyncIterator[str]:
            for word in ("piped ", "late"):
                yield word
                await asyncio.sleep(5)

        await message.pipe(lambda: stream(), source="text")

    async with client_of(Wire(hub)) as client, (client if is_remote else hub).message("chat:1", id="m") as message:
        await message.append("before ")
        with contextlib.suppress(ConnectionError):
            async with message.attempt():
                tasks = [asyncio.ensure_future(one(message)) for one in (late, late_pipe)]
                await asyncio.sleep(1)
                raise ConnectionError
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        await message.append("after")
    assert [getattr(error, "code", None) for error in errors] == ["misuse", "misuse"]
    assert "an attempt at message 'm' that has failed" in str(errors[0])
    stored, _ = await hub.read("chat:1", "m")
    assert (stored.text, stored.status) == ("before after", "complete")
    await hub.close()


@virtually
async def test_shown_step_of_a_failed_attempt_is_cancelled_and_an_open_attempt_does_not_begin_again() -> None:
    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
            with contextlib.suppress(ConnectionError):
                async with message.attempt():
                    task = asyncio.ensure_future(turn.step("slow", asyncio.sleep, 100, show=True))
                    await asyncio.sleep(1)
                    raise ConnectionError
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            attempt = message.attempt()
            async with attempt:
                with pytest.raises(LocalError, match="open already"):
                    await attempt.__aenter__()
                await message.append("done")

    (answer,) = await answers_of(agent, "restart", 60)
    assert (answer.text, answer.status) == ("done", "complete")


WORDS = (LONG, "It goes ", "on and on ", "to its end.")
writes = st.lists(st.sampled_from(["step", "text", "source"]), max_size=5)
deaths = st.lists(st.integers(1, 12), max_size=3)


# The text of the handler stands behind the part of a step that the next process puts again.
@example(["step", "text"], [4], None, 1, 1)
# Two processes in a row die in a step behind that text.
@example(["text", "step"], [2, 2], None, 1, 1)
# Another task puts its part behind the text that is continued.
@example([], [3], 1, 1, 1)
# The process dies in a step that its text does not wait for.
@example([], [3], 0, 20, -1)
@given(writes, deaths, st.none() | st.integers(0, 3), st.sampled_from([1, 20]), st.sampled_from([1, -1]))
def test_a_continued_answer_has_each_text_once_wherever_its_processes_die(
    before: list[str], lives_s: list[int], beside: int | None, takes_s: int, order: int
) -> None:
    @virtually
    async def run() -> None:
        made = list[str]()

        async def model(so_far: SoFar) -> AsyncIterator[str]:
            made.append(so_far.text)
            rest = "".join(WORDS)[len(so_far.text) :]
            for word in WORDS if rest == "".join(WORDS) else (rest,) if rest else ():
                await asyncio.sleep(1)
                yield word
            await asyncio.sleep(1)

        async def write(turn: Turn, number: int, kind: str) -> None:
            if kind == "step":
                await turn.step(f"step {number}", asyncio.sleep, 1, show=True)
            elif kind == "text":
                await turn.begun[0].append(f"Text {number}. ")
            else:
                await turn.begun[0].part({"type": "source", "url": f"https://example.com/{number}"})
            await asyncio.sleep(0.5)

        async def step_beside(turn: Turn) -> None:
            if beside is not None:
                await asyncio.sleep(beside)
                await turn.step("beside", asyncio.sleep, takes_s, show=True)

        async def agent(turn: Turn) -> None:
            async with turn.reply() as message:
                for number, kind in enumerate(before):
                    await write(turn, number, kind)
                piping = message.pipe(lambda so_far: model(so_far), source="text", on_break="continue")
                await asyncio.gather(*[piping, step_beside(turn)][::order])

        async for hub in lives(agent, *lives_s, 60, hub={"drain_s": 0.01}, on_crash="continue"):
            answer = (await messages(hub))[-1]
        own = "".join(f"Text {number}. " for number, kind in enumerate(before) if kind == "text")
        assert (answer.status, answer.text) == ("complete", own + "".join(WORDS))
        assert all("".join(WORDS).startswith(text) for text in made)
        counted = [part for part in answer.parts if part["type"] != "attempt"]
        assert [part["state"] for part in counted if part["type"] == "tool"] == ["done"] * (
            before.count("step") + (beside is not None)
        )
        assert len([part for part in counted if part["type"] == "source"]) == before.count("source")

    run()


@virtually
async def test_output_of_a_tool_goes_to_the_answer_whose_stream_has_called_it() -> None:
    called = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    model = Model([chat({"tool_calls": [called]}), *chat_end("tool_calls")])

    async def bot(turn: Turn) -> None:
        async with turn.reply() as first:
            piped = await first.pipe(ask_chat(model.openai()))
            async with turn.reply() as second:
                await second.part({"type": "data", "name": "chart", "data": 1})
                assert await turn.run_tools(piped, {"add": lambda: 7}) == {"c1": 7}

    async for hub in lives(bot, 5):
        found = [(one.parts[0]["type"], one.parts[0].get("output")) for one in await messages(hub)]
    assert found[1:] == [("tool", 7), ("data", None)]
