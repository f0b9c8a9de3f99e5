"""The streams of OpenAI: Responses, Chat Completions (of every server that speaks it), and Agents. Layer: sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Iterator

from tenuto.core.model import Json
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
    as_json,
    codes_of,
    counts,
    free,
    get,
    index,
    items,
    malformed,
    needed,
    plain,
    reported,
    text,
    tool,
    word,
)

USAGE = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "total_tokens": "total_tokens",
    "cached_tokens": "input_tokens_details.cached_tokens",
    "cache_write_tokens": "input_tokens_details.cache_write_tokens",
    "reasoning_tokens": "output_tokens_details.reasoning_tokens",
}
FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}
KEEPALIVE = "keepalive"  # type of the events by which OpenAI keeps a silent stream open
_CONTENTS = {"output_text": "text", "refusal": "text", "reasoning_text": "reasoning"}  # types of parts, by content
_IDLE = (KEEPALIVE, "response.queued")  # types of the events that it sends while nothing is generated
_CALLS = ("function_call", "custom_tool_call")  # calls of the app's tools
# types of all calls that the app carries out; a `shell_call` has its output in another item if the provider does
_RUN_BY_APP = (*_CALLS, "computer_call", "local_shell_call", "shell_call", "apply_patch_call")
_DELTAS = ("function_call_arguments", "custom_tool_call_input", "mcp_call_arguments", "code_interpreter_call_code")
_WHOLE, _ACTIONS = ("arguments", "input", "code"), ("action", "actions", "operation", "queries")
_OUTPUTS = ("output", "results", "outputs")


class OpenAIResponses(Source):
    """OpenAI Responses (`openai`): events of `responses.create(stream=True)` and of the helper `responses.stream()`.

    | event `response.…` | becomes |
    |---|---|
    | `created`, `in_progress` | `meta.model` |
    | `output_item.added` of a `function_call`, `custom_tool_call`, `mcp_call` | tool: call, name |
    | `output_item.added` of another `…_call` (`web_search_call`, `computer_call`, …) | tool of that name |
    | `content_part.added`, `output_text.delta`, `refusal.delta` | text |
    | `reasoning_summary_part.added`, `reasoning_summary_text.delta`, `reasoning_text.delta` | reasoning |
    | `function_call_arguments.delta`, `custom_tool_call_input.delta` | a tool's input |
    | `mcp_call_arguments.delta`, `code_interpreter_call_code.delta` | the input of a tool that the provider runs |
    | `.done` of these inputs, `output_text.done`, `refusal.done` | the whole, if no delta came before |
    | `output_text.annotation.added` | source |
    | `output_item.done` of a call | the tool is `called`; or, if the provider ran it, `done` or `error` |
    | `output_item.done` of an `image_generation_call` | file |
    | `completed`, `incomplete` | `meta.usage`, `meta.finish_reason`; the end |
    | `failed`, also as the status of another, and `error` | UpstreamError |
    """

    name = "openai-responses"
    last = "the event response.completed"

    def __init__(self) -> None:
        self._response = 0  # number of the response in an agent's run; the next one has the same indexes again
        self._calls: dict[Hashable, str] = {}  # tool calls, by the id of their item
        self._streamed: set[Hashable] = set()  # keys of parts that received a delta
        self._waiting: set[Hashable] = set()  # keys of the calls of the response that the app carries out

    def take(self, event: object) -> Iterator[Edit]:
        kind = get(event, "type")
        what = kind.removeprefix("response.") if isinstance(kind, str) else ""
        self.is_alive = kind not in _IDLE
        if kind == "error":
            raise reported(get(event, "code"), get(get(event, "error"), "code"), get(get(event, "error"), "type"))
        match what:
            case "created" | "in_progress" | "queued":
                self._is_ended, response = False, get(event, "response")  # in a run, several follow each other
                yield Meta(model=word(response, "model"), response_id=word(response, "id"))
            case "output_item.added":
                yield from self._item_added(event, get(event, "item"))
            case "output_item.done":
                yield from self._item_done(event, get(event, "item"))
            case "content_part.added":
                if part_type := _CONTENTS.get(word(get(event, "part"), "type") or ""):
                    yield Open(self._content(event), {"type": part_type})
            case "output_text.delta" | "refusal.delta":
                yield self._delta(self._content(event), text(event, "delta"))
            case "output_text.done" | "refusal.done":
                yield from self._rest(self._content(event), text(event, "text") or text(event, "refusal"))
            case "output_text.annotation.added":
                yield from self._annotation(get(event, "annotation"))
            case "reasoning_text.delta":
                yield self._delta(self._content(event), text(event, "delta"), "reasoning")
            case "reasoning_summary_part.added":
                yield Open(self._summary(event), {"type": "reasoning"})
            case "reasoning_summary_text.delta":
                yield self._delta(self._summary(event), text(event, "delta"), "reasoning")
            case "completed" | "incomplete" | "failed":
                response = get(event, "response")
                ends = {what, word(response, "status")}  # vLLM calls each end `completed`, but its status is right
                if "failed" in ends:
                    raise reported(get(get(response, "error"), "code"))
                if "cancelled" not in ends:  # else it has broken off
                    yield from self._end(response, is_complete="incomplete" not in ends)
            case _:
                yield from self._input(event, what)

    def _item(self, event: object) -> Hashable:
        item = (self._response, index(event, "output_index"))
        return ("call", self._calls[item]) if item in self._calls else item

    def _content(self, event: object) -> Hashable:
        return (self._response, index(event, "output_index"), index(event, "content_index"))

    def _summary(self, event: object) -> Hashable:
        return (self._response, index(event, "output_index"), "summary", index(event, "summary_index"))

    def _delta(self, key: Hashable, more: str, kind: str = "text") -> Add:
        self._streamed.add(key)
        return Add(key, more, kind)

    def _rest(self, key: Hashable, whole: str) -> Iterator[Edit]:
        if key not in self._streamed:
            yield self._delta(key, whole)

    def _input(self, event: object, what: str) -> Iterator[Edit]:
        name, _, end = what.rpartition(".")
        if name not in _DELTAS:
            return
        if end == "delta":
            yield self._delta(self._item(event), text(event, "delta"), "tool")
        elif end == "done":
            yield from self._rest(self._item(event), next(filter(None, (text(event, one) for one in _WHOLE)), ""))

    def _item_added(self, event: object, item: object) -> Iterator[Edit]:
        kind = word(item, "type") or ""
        if kind in _CALLS:
            call, name = needed(item, "call_id"), needed(item, "name")
        elif kind.endswith("_call"):
            name = word(item, "name") or kind.removesuffix("_call")
            call = word(item, "call_id") or word(item, "id") or name
        else:
            return
        self._waiting |= {("call", call)} if kind in _RUN_BY_APP or get(item, "execution") == "client" else set()
        self._calls[self._response, index(event, "output_index")] = call
        yield Open(("call", call), tool(call, name))

    def _item_done(self, event: object, item: object) -> Iterator[Edit]:
        kind = word(item, "type") or ""
        if kind.endswith("_call_output"):
            self._waiting.discard(of := ("call", word(item, "call_id")))
            yield Set(of, _output(item))
        if not kind.endswith("_call"):
            return
        yield from self._item_added(event, item)  # some items come without an `added` event
        key = self._item(event)
        given = next(filter(None, (get(item, name) for name in _WHOLE)), None)  # its input: text, or an object
        action = given or next(filter(None, (get(item, name) for name in _ACTIONS)), None)  # for example of a search
        yield from self._rest(key, given if isinstance(given, str) else as_json(action) if action else "")
        if key not in self._waiting:
            yield Set(key, _output(item))
        elif get(item, "status") != "incomplete":
            yield Set(key, {"state": CALLED})
        if kind == "image_generation_call" and (image := text(item, "result")):
            media_type = f"image/{word(item, 'output_format') or 'png'}"
            yield Open((key, "file"), free("file", media_type=media_type, url=f"data:{media_type};base64,{image}"))

    def _annotation(self, note: object) -> Iterator[Edit]:
        match get(note, "type"):
            case "url_citation":
                if url := word(note, "url", LINE_CHARACTERS):
                    yield Open(("source", url), free("source", url=url, title=word(note, "title")))
            case "file_citation" | "container_file_citation" | "file_path":
                if file := word(note, "file_id"):
                    yield Open(("source", file), free("source", file_id=file, title=word(note, "filename")))

    def _end(self, response: object, *, is_complete: bool) -> Iterator[Edit]:
        self._is_ended = True
        cause = word(get(response, "incomplete_details"), "reason") or "other"
        reason = ("tool_calls" if self._waiting else "stop") if is_complete else FINISH.get(cause, cause)
        usage = counts(get(response, "usage"), USAGE)
        yield Meta(model=word(response, "model"), finish_reason=reason, usage=usage, of=self._response)
        self._response, self._waiting = self._response + 1, set()


async def events_of(response: object) -> AsyncIterator[dict[str, object]]:
    """Yield the events of an OpenAI response that has ended and was read whole."""
    for place, item in enumerate(items(response, "output")):
        at = {"output_index": place, "item": item}
        yield {"type": "response.output_item.added", **at}
        for number, part in enumerate(items(item, "summary")):
            where = {**at, "summary_index": number}
            yield {"type": "response.reasoning_summary_part.added", **where}
            yield {"type": "response.reasoning_summary_text.delta", **where, "delta": get(part, "text")}
        for number, part in enumerate(items(item, "content")):
            where = {**at, "content_index": number}
            kind = "reasoning_text" if get(part, "type") == "reasoning_text" else "output_text"
            yield {"type": "response.content_part.added", **where, "part": part}
            yield {"type": f"response.{kind}.delta", **where, "delta": get(part, "text") or get(part, "refusal")}
            for note in items(part, "annotations"):
                yield {"type": "response.output_text.annotation.added", "annotation": note}
        yield {"type": "response.output_item.done", **at}
    status = word(response, "status")
    yield {"type": f"response.{status if status in ('completed', 'incomplete') else 'failed'}", "response": response}


def _output(item: object) -> dict[str, Json]:
    """Return the fields of the part for the outcome of a call that the provider has carried out."""
    if get(item, "error") is not None or get(item, "status") == "failed":
        return {"state": ERROR, "output": plain(get(item, "error"))}
    output = next((found for name in _OUTPUTS if (found := get(item, name)) is not None), None)
    return {"state": DONE} if output is None else {"state": DONE, "output": plain(output)}


CHAT_USAGE = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "total_tokens": "total_tokens",
    "cached_tokens": "prompt_tokens_details.cached_tokens",
    "cache_write_tokens": "prompt_tokens_details.cache_write_tokens",
    "reasoning_tokens": "completion_tokens_details.reasoning_tokens",
}


class OpenAIChat(Source):
    """OpenAI Chat Completions (`openai`, and every server that speaks the same): chunks, and the helper's events.

    | event | becomes |
    |---|---|
    | `choices[0].delta.content`, `.refusal`; `choices[0].text` without delta | text; of `thinking` blocks reasoning |
    | `.reasoning_content`, `.reasoning` (of compatible servers) | reasoning |
    | `.tool_calls[]` | tool: call, name, streaming input |
    | `.annotations[].url_citation` | source |
    | `choices[0].finish_reason` | `meta.finish_reason`; tools are `called`; the end |
    | `usage`, `model` | `meta.usage`, `meta.model` |
    | helper event `chunk` | as for its chunk; the other helper events repeat it |
    | an `error` in place of a chunk | UpstreamError |
    """

    name = "openai-chat"

    def __init__(self) -> None:
        self._calls: dict[Hashable, str] = {}  # id of the newest tool call at each index that the provider uses

    def take(self, event: object) -> Iterator[Edit]:
        if get(event, "type") == "chunk":
            event = get(event, "chunk")
        if get(event, "error") is not None:
            raise reported(*codes_of(event))
        if get(event, "choices") is None and get(event, "usage") is None:
            return  # another event of the helper
        usage = counts(get(event, "usage"), CHAT_USAGE)
        yield Meta(model=word(event, "model"), usage=usage, response_id=word(event, "id"))
        for choice in items(event, "choices"):
            if index(choice, "index") == 0:
                yield from self._choice(choice)

    def _choice(self, choice: object) -> Iterator[Edit]:
        delta = get(choice, "delta")
        yield Add("reasoning", text(delta, "reasoning_content") or text(delta, "reasoning"), "reasoning")
        for block in _blocks(delta, "content"):  # Mistral sends lists of them while a model thinks
            for one in _blocks(block, "thinking"):
                yield Add("reasoning", text(one, "text"), "reasoning")
            yield Add("text", text(block, "text"))
        yield Add("text", text(delta, "refusal") if delta is not None else text(choice, "text"))
        for call in items(delta, "tool_calls"):
            yield from self._call(call)
        for note in items(delta, "annotations"):
            cited = get(note, "url_citation")
            if url := word(cited, "url", LINE_CHARACTERS):
                yield Open(("source", url), free("source", url=url, title=word(cited, "title")))
        if reason := word(choice, "finish_reason"):
            self._is_ended = True
            if reason != "length":  # the input of a call may be cut off there
                for call_id in self._calls.values():
                    yield Set(("call", call_id), {"state": CALLED})
            yield Meta(finish_reason="tool_calls" if reason == "function_call" else reason)

    def _call(self, call: object) -> Iterator[Edit]:
        position = index(call, "index")
        called = get(call, "function") or get(call, "custom")
        given = word(call, "id")
        # Some servers give every call the index 0, so that only the ids distinguish calls.
        if position not in self._calls or (given is not None and given != self._calls[position]):
            if position in self._calls:
                yield Set(("call", self._calls[position]), {"state": CALLED})  # the call before it is complete
            self._calls[position] = given or f"call_{position}"
        key, name = ("call", self._calls[position]), word(called, "name") or ""
        more = text(called, "arguments") or text(called, "input")
        if name or more:  # some servers send the name behind the id
            yield Open(key, tool(self._calls[position], name))
        yield Add(key, more)


def _blocks(thing: object, name: str) -> Iterator[object]:
    """Yield the blocks of a field that is a list of them, or a text. Raises UpstreamError for another value."""
    value = get(thing, name)
    for block in value if isinstance(value, list | tuple) else [text(thing, name)]:
        if block is None or isinstance(block, list | tuple | int | float):
            raise malformed(f"field {name!r} must have blocks or texts, got {type(block).__name__}")
        yield {"text": block} if isinstance(block, str) else block


_AGENT_OUTPUTS = ("tool_output", "handoff_occured", "handoff_occurred")


class OpenAIAgents(Source):
    """OpenAI Agents (`openai-agents`): the result of `Runner.run_streamed(...)`, or its `stream_events()`.

    | event | becomes |
    |---|---|
    | `raw_response_event` | as for its event in `openai-responses`, for all responses of the run |
    | `run_item_stream_event` `tool_output`, `handoff_occured` | the output of that tool, `done` |
    | `agent_updated_stream_event`, other items | ignored: they repeat others |
    | the end of the run, with every response ended | the end |

    Pipe the result itself: an early end then cancels the run through it, so the run ends at once.
    """

    name = "openai-agents"

    def __init__(self) -> None:
        self._responses = OpenAIResponses()

    def events(self, stream: object) -> object:
        events = getattr(stream, "stream_events", None)
        return events() if callable(events) else stream

    def take(self, event: object) -> Iterator[Edit]:
        self.is_alive = get(get(event, "data"), "type") not in _IDLE
        match get(event, "type"):
            case "raw_response_event":
                yield from self._responses.take(get(event, "data"))
            case "run_item_stream_event" if get(event, "name") in _AGENT_OUTPUTS:
                raw, output = (get(get(event, "item"), name) for name in ("raw_item", "output"))
                if call := word(raw, "call_id"):
                    value = plain(output if output is not None else get(raw, "output"))
                    # pictures of a screen would soon be too large for a message
                    shown = {} if word(raw, "type") == "computer_call_output" else {"output": value}
                    yield Set(("call", call), {**shown, "state": DONE})

    def end(self) -> Iterator[Edit]:
        return self._responses.end()

    async def stop(self, stream: object) -> None:
        cancel = getattr(stream, "cancel", None)
        if callable(cancel):
            cancel()
