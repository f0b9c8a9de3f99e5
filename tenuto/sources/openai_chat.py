"""OpenAI Chat Completions (`openai`, and every server that speaks the same): chunks, and the helper's events.

| event | becomes |
|---|---|
| `choices[0].delta.content`, `.refusal` | text |
| `.reasoning_content`, `.reasoning` (of compatible servers) | reasoning |
| `.tool_calls[]` | tool: call, name, streaming input |
| `.annotations[].url_citation` | source |
| `choices[0].finish_reason` | `meta.finish_reason`; tools are `called`; the end |
| `usage`, `model` | `meta.usage`, `meta.model` |
| helper event `chunk` | as for its chunk; the other helper events repeat it |
| an `error` in place of a chunk | UpstreamError |
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from tenuto.sources.reading import (
    CALLED,
    LINE_CHARACTERS,
    Add,
    Edit,
    Meta,
    Open,
    Set,
    Source,
    counts,
    free,
    get,
    index,
    items,
    reported,
    text,
    tool,
    unfinished,
    word,
)

USAGE = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "total_tokens": "total_tokens",
    "cached_tokens": "prompt_tokens_details.cached_tokens",
    "reasoning_tokens": "completion_tokens_details.reasoning_tokens",
}


class OpenAIChat(Source):
    name = "openai-chat"

    def __init__(self) -> None:
        self._is_ended = False
        self._calls: dict[Hashable, str] = {}  # id of the newest tool call at each index that the provider uses

    def take(self, event: object) -> Iterator[Edit]:
        if get(event, "type") == "chunk":
            event = get(event, "chunk")
        if (error := get(event, "error")) is not None:
            raise reported(get(error, "type"), get(error, "code"), error)
        if get(event, "choices") is None and get(event, "usage") is None:
            return
        yield Meta(model=word(event, "model"), usage=counts(get(event, "usage"), USAGE))
        for choice in items(event, "choices"):
            if index(choice, "index") == 0:
                yield from self._choice(choice)

    def end(self) -> Iterator[Edit]:
        if not self._is_ended:
            raise unfinished()
        return iter(())

    def _choice(self, choice: object) -> Iterator[Edit]:
        delta = get(choice, "delta")
        yield Add("reasoning", text(delta, "reasoning_content") or text(delta, "reasoning"), "reasoning")
        yield Add("text", text(delta, "content"))
        yield Add("text", text(delta, "refusal"))
        for call in items(delta, "tool_calls"):
            yield from self._call(call)
        for note in items(delta, "annotations"):
            cited = get(note, "url_citation")
            if url := word(cited, "url", LINE_CHARACTERS):
                yield Open(("source", url), free("source", url=url, title=word(cited, "title")))
        if reason := word(choice, "finish_reason"):
            self._is_ended = True
            if reason != "length":
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
                yield Set(("call", self._calls[position]), {"state": CALLED})
            self._calls[position] = given or f"call_{position}"
            yield Open(("call", self._calls[position]), tool(self._calls[position], word(called, "name") or ""))
        yield Add(("call", self._calls[position]), text(called, "arguments") or text(called, "input"))
