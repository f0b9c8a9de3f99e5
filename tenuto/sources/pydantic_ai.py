"""Pydantic AI (`pydantic-ai`): `agent.run_stream_events()`, `agent.run_stream()`, `agent.iter()`, a node's `stream()`.

| event | becomes |
|---|---|
| `part_start`, `part_delta` of a text, a thinking part | text, reasoning |
| `part_start`, `part_delta` of a tool call, also one that the provider runs | tool: call, name, streaming input |
| `part_end` of a tool call, `function_tool_call` | the tool is `called` |
| `function_tool_result`, `output_tool_result`, a native tool's return | its output: `done`, or `error` |
| `part_start` of a file part | file |
| `agent_run_result`, or the result of a run | `meta.usage`, `meta.finish_reason`, `meta.model`; the end |
| a whole response (`run_stream()` has only these: each longer than the last) | its new content |
| a response of a provider without a finish reason, also one before a tool | UpstreamEnded |

Layer: sources. `run_stream()` yields the answer and the tools that ran before it; `run_stream_events()` all events.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import suppress
from typing import Any

from tenuto.sources.reading import (
    CALLED,
    DONE,
    ERROR,
    LINE_CHARACTERS,
    Add,
    Edit,
    Meta,
    Open,
    Set,
    Source,
    UpstreamEnded,
    as_json,
    counts,
    free,
    get,
    index,
    items,
    needed,
    plain,
    text,
    tool,
    word,
)

USAGE = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "details.reasoning_tokens",
}
_FINISH = {"tool_call": "tool_calls"}
_WITHOUT_DETAILS = ("xai",)  # providers whose responses get no `provider_details` from the SDK
_KINDS = {"text": "text", "thinking": "reasoning"}
_CALLS = ("tool-call", "builtin-tool-call", "native-tool-call")
_RETURNS = ("tool-return", "builtin-tool-return", "native-tool-return", "retry-prompt")
_RESULTS = ("function_tool_result", "output_tool_result", "builtin_tool_result")


class PydanticAI(Source):
    name = "pydantic-ai"
    last = "the result of the agent's run"

    def __init__(self) -> None:
        self._is_counted = False  # True: usage came with each response, so the total of the run must not be added
        self._response = 0  # number of the response in the run; the parts of each have indexes from 0
        self._started: set[int] = set()  # indexes of the parts of the current response
        self._calls: dict[Hashable, Hashable] = {}  # keys of tool calls, by response and part; of each id the latest
        self._lengths: dict[Hashable, int] = {}  # for each key the length of the text written so far
        self._messages: Callable[[], list[object]] = list  # returns those of the run so far

    def events(self, stream: object) -> object:
        self._messages = getattr(stream, "new_messages", list)
        readers = {"AgentRun": _of_run, "StreamedRunResult": _of_result, "AgentStream": _of_node}
        read = readers.get(type(stream).__name__)
        return stream if read is None else read(stream)

    def take(self, event: object) -> Iterator[Edit]:
        match get(event, "event_kind"):
            case "part_start":
                yield from self._start(index(event, "index"), get(event, "part"))
            case "part_delta":
                yield from self._delta((self._response, index(event, "index")), get(event, "delta"))
            case "part_end":
                yield from self._called((self._response, index(event, "index")))
            case "function_tool_call" | "output_tool_call":
                with suppress(RuntimeError):  # a run of the app's own class has them at its end only
                    _check(*self._messages())
                yield from self._call(get(event, "part"))
            case kind if kind in _RESULTS:
                yield from self._return(get(event, "part") or get(event, "result"))
            case "agent_run_result":
                yield from self._result(get(event, "result"))
            case None if get(event, "kind") == "response":
                yield from self._whole(event)
            case None if get(event, "kind") == "request":
                for part in items(event, "parts"):
                    yield from self._return(part)
            case None if type(event).__name__ == "AgentRunResult":
                yield from self._result(event)

    def _start(self, position: int, part: object) -> Iterator[Edit]:
        if position == 0 and 0 in self._started:  # the first part of the next response
            self._next_response()
        self._started.add(position)
        yield from self._part((self._response, position), part)

    def _part(self, key: Hashable, part: object) -> Iterator[Edit]:
        """Yield the edits that bring a part up to date; of its text only the new end is sent."""
        kind = word(part, "part_kind") or ""
        if kind in _KINDS:
            yield Open(key, {"type": _KINDS[kind]})
            yield from self._more(key, text(part, "content"))
        elif kind in _CALLS:
            call = needed(part, "tool_call_id")
            self._calls[key] = self._calls[call] = ("call", call, self._response)
            yield from self._input(call, part)
        elif kind in _RETURNS:
            yield from self._return(part)
        elif kind == "file":
            content = get(part, "content")
            if url := get(content, "data_uri"):
                yield Open(key, free("file", media_type=word(content, "media_type"), url=plain(url)))

    def _more(self, key: Hashable, whole: str) -> Iterator[Edit]:
        written = self._lengths.get(key, 0)
        if len(whole) > written:
            self._lengths[key] = len(whole)
            yield Add(key, whole[written:])

    def _delta(self, key: Hashable, delta: object) -> Iterator[Edit]:
        kind = word(delta, "part_delta_kind")
        if kind == "tool_call":
            more = _arguments(get(delta, "args_delta"))
            key = self._calls.get(key, key)
        else:
            more = text(delta, "content_delta")
        self._lengths[key] = self._lengths.get(key, 0) + len(more)
        yield Add(key, more, "reasoning" if kind == "thinking" else "tool" if kind == "tool_call" else "text")

    def _called(self, key: Hashable) -> Iterator[Edit]:
        if key in self._calls:
            yield Set(self._calls[key], {"state": CALLED})

    def _call(self, part: object) -> Iterator[Edit]:
        call = needed(part, "tool_call_id")
        self._calls.setdefault(call, ("call", call))  # one of an earlier run, to be carried out now
        yield from self._input(call, part)
        yield from self._called(call)

    def _input(self, call: str, part: object) -> Iterator[Edit]:
        yield Open(self._calls[call], tool(call, word(part, "tool_name") or ""))
        yield from self._more(self._calls[call], _arguments(get(part, "args")))

    def _return(self, part: object) -> Iterator[Edit]:
        call, kind = word(part, "tool_call_id"), word(part, "part_kind")
        if call is not None and kind in _RETURNS:
            has_failed = kind == "retry-prompt" or get(part, "retry") is not None
            state = ERROR if has_failed or get(part, "outcome") in ("failed", "denied") else DONE
            yield Set(self._calls.get(call), {"output": plain(get(part, "content")), "state": state})

    def _whole(self, response: object) -> Iterator[Edit]:
        """Yield the edits for a response that grows: each item repeats the earlier ones and adds to them."""
        for position, part in enumerate(items(response, "parts")):
            self._started.add(position)
            yield from self._part((self._response, position), part)
        state = get(response, "state")
        if state in ("complete", "interrupted", "suspended"):
            for position in self._started:
                yield from self._called((self._response, position))
            usage = counts(get(response, "usage"), USAGE)
            self._is_counted = self._is_counted or usage is not None
            yield from self._finish(response, usage)
            self._next_response()

    def _result(self, result: object) -> Iterator[Edit]:
        _check(*getattr(result, "new_messages", list)())
        usage = get(result, "usage")
        usage = usage() if inspect.ismethod(usage) else usage  # a method in older versions of the SDK, a property now
        if not self._is_counted:
            yield Meta(usage=counts(usage, USAGE), of="run")
        yield from self._finish(get(result, "response"), None)

    def _finish(self, response: object, usage: dict[str, int] | None) -> Iterator[Edit]:
        _check(response)
        self._is_ended = True
        reason = word(response, "finish_reason") or word(get(response, "provider_details"), "finish_reason")
        reason = _FINISH.get(reason, reason) if reason else None
        model, of = word(response, "model_name"), ("response", self._response)
        yield Meta(model=model, finish_reason=reason, usage=usage, of=of)

    def _next_response(self) -> None:
        self._response += 1
        self._started.clear()


def _check(*messages: object) -> None:
    """Raise UpstreamEnded if a response among `messages` broke off: its provider sent no finish reason.

    A model without a provider need not send one. For Chat Completions the SDK invents a missing reason; the provider's
    own is in `provider_details`. Anthropic's `pause_turn` ends only a piece of a response.
    """
    for response in messages:
        own = word(get(response, "provider_details"), "finish_reason")
        invented = (None,) if word(response, "provider_name") in _WITHOUT_DETAILS else (None, "stop", "tool_call")
        is_missing = word(response, "finish_reason") in invented and own in (None, "pause_turn")
        has_provider = word(response, "provider_url", LINE_CHARACTERS) is not None
        if get(response, "state") == "interrupted" or (has_provider and is_missing):
            raise UpstreamEnded("the model's response ended without a finish reason, so it may be incomplete")


def _arguments(args: object) -> str:
    return args if isinstance(args, str) else "" if args is None else as_json(args)


# Functions for the classes of Pydantic AI whose streams hold more than events. `Any`: the package of these objects need
# not be installed.


async def _of_node(stream: Any) -> AsyncIterator[object]:
    """Yield the events of a model request, then its whole response, which has the finish reason."""
    async for event in stream:
        yield event
    yield stream.response


async def _of_run(run: Any) -> AsyncIterator[object]:
    """Yield all events of `agent.iter()`: those of each model request, and of each round of tools."""
    async for node in run:
        stream = getattr(node, "stream", None)
        if not callable(stream):
            continue
        async with stream(run.ctx) as found:
            events = _of_node(found) if type(found).__name__ == "AgentStream" else found
            async for event in events:
                yield event
    if run.result is not None:
        yield run.result


async def _of_result(result: Any) -> AsyncIterator[object]:
    """Yield the tools that ran before the answer, then the answer as it grows."""
    for message in result.new_messages():
        yield message
    async for response in result.stream_response(debounce_by=None):
        yield response
