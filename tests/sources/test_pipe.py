"""`pipe` itself: plain text, recognition, early ends, and bad input."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model
from starlette.responses import StreamingResponse

from tenuto import Hub, MessageWriter
from tenuto.core.errors import Finished, LocalError, TenutoError
from tenuto.core.limits import Limits
from tenuto.sources import SOURCES, UpstreamEnded, UpstreamError, pipe
from tenuto.sources.reading import reported
from tests.sources.piping import PATIENCE_S, broken, one_by_one, pipe_all

ROOT = Path(__file__).parents[2]
WHOLE = create_model("Whole", text=(str, "x"))()  # an answer that an SDK has read to its end
IMPORTS = """
import sys
import tenuto.sources
sdks = {"openai", "anthropic", "google", "agents", "pydantic_ai", "langchain_core", "langgraph"}
print(sorted(sdks & set(sys.modules)))
"""


async def words(*pieces: str, error: Exception | None = None) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


# Plain text -------------------------------------------------------------------------------------------------------


async def test_empty_stream_becomes_an_empty_message(hub: Hub) -> None:
    stored, piped = await pipe_all(hub, words())
    assert (stored.status, stored.parts, piped.text) == ("complete", [], "")
    spoken = [await pipe_all(hub, one_by_one([None, "Hel", None, "lo", None]), source=one) for one in (None, "text")]
    assert [(one.status, piped.text) for one, piped in spoken] == [("complete", "Hello")] * 2


async def test_the_apps_own_error_passes_unchanged(hub: Hub) -> None:
    for error in (ZeroDivisionError(), ConnectionError(), TimeoutError()):
        stored, met = await broken(hub, words("Hello", error=error), type(error))
        assert (met, stored.text) == (error, "Hello")


@pytest.mark.parametrize(
    ("stream", "remedy"),
    [
        (StreamingResponse(words("x")), "pass the generator that the response wraps"),
        *((one, "") for one in (5, None, object(), [5], [{}], [object()], [b"x"])),
        *((one, "stream=True") for one in ({"content": "x"}, WHOLE, lambda: WHOLE)),
    ],
    ids=range(11),
)
async def test_value_that_is_not_a_stream_is_misuse(hub: Hub, stream: object, remedy: str) -> None:
    _, error = await broken(hub, stream, LocalError)
    assert remedy in error.detail


async def test_usage_of_several_streams_of_one_message_adds_up_beside_a_full_meta_of_the_app(hub: Hub) -> None:
    own = {"own": "x" * (Limits().meta_bytes - len('{"own":""}'))}
    chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    stream = [{**chunk, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}]
    async with hub.message("chat:1", meta={"usage": {"input_tokens": 1}, **own}) as message:
        first = await pipe(message, stream)
        await pipe(message, stream)
    stored, _ = await hub.read("chat:1", message.id)
    usage = {"input_tokens": 7, "output_tokens": 4}
    assert (stored.status, stored.meta) == ("complete", {**own, "finish_reason": "stop", "usage": usage})
    assert first.usage == {"input_tokens": 3, "output_tokens": 2}


# Blocking iterators -----------------------------------------------------------------------------------------------

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_a_blocking_iterator_runs_in_a_thread_with_our_context(hub: Hub) -> None:
    seen: list[object] = []

    def items() -> Iterator[str]:
        seen.extend([threading.current_thread() is threading.main_thread(), who.get()])
        yield "Hello"

    who.set("ada")
    stored, _ = await pipe_all(hub, items())
    assert (stored.text, seen) == ("Hello", [False, "ada"])


async def test_a_blocking_iterator_is_one_item_ahead_at_most(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    made, most, taken = list[int](), 0, 0

    def items() -> Iterator[str]:
        nonlocal most
        for number in range(200):
            made.append(number)
            most = max(most, len(made) - taken)
            yield "x" * 10

    append = MessageWriter.append

    async def slowly(message: MessageWriter, text: str, *, part: int | None = None) -> None:
        nonlocal taken
        await append(message, text, part=part)
        await asyncio.sleep(0)
        taken += 1

    monkeypatch.setattr(MessageWriter, "append", slowly)
    await pipe_all(hub, items())
    assert len(made) == 200
    assert most <= 3  # one being written, one waiting, one being produced


async def test_blocking_iterator_is_closed_early_in_its_thread(hub: Hub) -> None:
    gate, closed = threading.Event(), threading.Event()
    loop, waiting = asyncio.get_running_loop(), asyncio.Event()

    def items() -> Iterator[str]:
        try:
            yield "Hello"
            loop.call_soon_threadsafe(waiting.set)
            gate.wait(PATIENCE_S)
            yield "more"
        finally:
            closed.set()

    task = asyncio.create_task(pipe_all(hub, items()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await asyncio.to_thread(closed.wait, PATIENCE_S)


# Leaving ----------------------------------------------------------------------------------------------------------


class Endless:
    """Text without end, which records whether it was closed."""

    is_closed = False

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> str:
        await asyncio.sleep(0)
        return "x" * 100

    async def aclose(self) -> None:
        self.is_closed = True


async def test_message_finished_elsewhere_closes_the_stream(hub: Hub) -> None:
    stream = Endless()
    with pytest.raises(Finished):
        async with hub.message("chat:1") as message, asyncio.timeout(PATIENCE_S):
            piping = asyncio.ensure_future(pipe(message, stream))
            await message.flush()
            await hub.finish("chat:1", message.id, status="cancelled")
            await piping
    assert stream.is_closed


@pytest.mark.parametrize("is_blocking", [False, True])
@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
async def test_context_manager_is_entered_and_exited_with_the_outcome(
    hub: Hub, is_blocking: bool, error: Exception | None
) -> None:
    seen: list[object] = []

    @contextmanager
    def open_words_blocking() -> Iterator[AsyncIterator[str]]:
        try:
            yield words("Hello", error=error)
            seen.append(None)
        except Exception as met:
            seen.append(met)
            raise

    @asynccontextmanager
    async def open_words() -> AsyncIterator[AsyncIterator[str]]:
        with open_words_blocking() as stream:
            yield stream

    stream = open_words_blocking() if is_blocking else open_words()
    stored, _ = await (pipe_all(hub, stream) if error is None else broken(hub, stream, ZeroDivisionError))
    assert (stored.text, seen) == ("Hello", [error])


class Stubborn(Endless):
    """A stream that yields no item and does not close when asked."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()

    async def __anext__(self) -> str:
        self.is_asked.set()
        await asyncio.Event().wait()
        return ""

    async def aclose(self) -> None:
        self.is_closed = True
        await asyncio.Event().wait()


async def test_stream_that_does_not_close_is_abandoned(hub: Hub) -> None:
    stream = Stubborn()
    task = asyncio.create_task(pipe_all(hub, stream))
    async with asyncio.timeout(PATIENCE_S):
        await stream.is_asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert stream.is_closed


# Bad input --------------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAME_WORDS = """
type delta item part index content_index output_index response usage choices content tool_calls id name call_id
content_block message candidates function_call event_kind part_kind kind parts tool_call_id args data event run_id chunk
toolCallId toolName inputTextDelta input output error finish_reason response_metadata annotations content_blocks
tool_call_chunks url arguments code action result status function citation
"""
_TYPE_WORDS = """
response.created response.output_item.added response.output_item.done response.output_text.delta response.completed
response.function_call_arguments.delta response.output_text.annotation.added message_start content_block_start
content_block_delta content_block_stop message_delta text_delta input_json_delta tool_use text thinking
web_search_tool_result function_call web_search_call image_generation_call raw_response_event run_item_stream_event
tool_output AIMessageChunk ai tool part_start part_delta part_end tool-call function_tool_result agent_run_result
on_chat_model_stream on_chat_model_end on_tool_end start text-delta tool-input-start tool-output-available file
source-url data-x finish messages citations_delta url_citation server_tool_result chunk
"""
_NAMES = st.sampled_from(_NAME_WORDS.split())
_TYPES = st.sampled_from(_TYPE_WORDS.split())


def _things(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(_NAMES, inner, max_size=5)
    typed = st.builds(lambda kind, rest: {"type": kind, "event_kind": kind, "event": kind, **rest}, _TYPES, fields)
    objects = typed.map(lambda found: SimpleNamespace(**found))
    return typed | objects | fields | st.lists(inner, max_size=2) | st.tuples(inner, inner)


EXAMPLES = settings().max_examples // 8  # examples of each source: a hub is made for each example
EVENTS = st.recursive(_VALUES | _TYPES, _things, max_leaves=12)


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=EXAMPLES)
@given(events=st.lists(EVENTS, min_size=1, max_size=6))
def test_random_events_raise_only_our_errors(name: str, events: list[Any]) -> None:
    async def run() -> None:
        hub = Hub("memory://", hooks_signals=False, drain_s=0.2)
        try:
            async with hub.message("chat:1") as message:
                await pipe(message, one_by_one(events), source=name)
        except TenutoError:
            pass
        finally:
            await hub.close()

    asyncio.run(run())


async def test_huge_fields_are_cut_or_refused(hub: Hub) -> None:
    chunk: dict[str, Any] = {"model": "m" * 100_000, "choices": [{"index": 0, "delta": {"content": "x"}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "r" * 100_000}], "usage": {"prompt_tokens": 10**30}}
    stored, _ = await pipe_all(hub, [chunk, end])
    assert stored.meta == {"model": "m" * 512, "finish_reason": "r" * 512}


@pytest.mark.parametrize("code", ["sk-proj-123", "Bearer abc", "x" * 65, "a b", "", 5, None, {"a": 1}])
def test_only_a_short_code_of_the_provider_is_public(code: object) -> None:
    assert reported(code).detail == "the model's provider reported an error; the log has its message"


@pytest.mark.parametrize(("error", "code"), [(UpstreamEnded, "upstream_ended"), (UpstreamError, "upstream_error")])
def test_the_errors_have_stable_codes(error: type[TenutoError], code: str) -> None:
    assert (error.code, error.status, error.retry) == (code, 502, False)


# The documentation ------------------------------------------------------------------------------------------------


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_page_names_each_source_and_its_docstring_has_the_table() -> None:
    page = (ROOT / "docs" / "sources.md").read_text()
    for name, source in SOURCES.items():
        documented = source.__doc__ or sys.modules[source.__module__].__doc__
        assert documented, name
        table = rows(inspect.cleandoc(documented))
        assert table, name
        assert re.search(rf"^\| .*`{name}`.* \| `{source.__module__.rpartition('.')[2]}` \|", page, re.MULTILINE), name
        assert name != "sse" or set(table) <= set(page.splitlines())


def test_no_sdk_is_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"
