"""Anthropic Messages (`anthropic`): `messages.create(stream=True)`, and the helper `messages.stream()`. Layer: sources.

| event | becomes |
|---|---|
| `message_start` | `meta.model`, `meta.usage` |
| `content_block_start` of `text`, `thinking` | text, reasoning |
| `content_block_start` of `tool_use`, `server_tool_use`, `mcp_tool_use` | tool: call, name |
| `content_block_start` of `…_tool_result` | the output of its tool: `done`, or `error` |
| `content_block_delta`: `text_delta`, `thinking_delta`, `input_json_delta` | text, reasoning, a tool's input |
| `content_block_delta`: `citations_delta` | source |
| the start or stop of a later block, or `message_stop` but for `max_tokens` | the tool is `called` |
| `message_delta` | `meta.finish_reason`, `meta.usage` |
| `message_stop` | the end |
| `error` | UpstreamError |
| the helper's own events (`text`, `thinking`, `input_json`, …) | ignored: they repeat others |
| `signature_delta`, `redacted_thinking`, `ping` | ignored: they are for the provider alone |
"""

from __future__ import annotations

from collections.abc import Iterator

from tenuto.core.errors import shown
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
    counts,
    free,
    get,
    index,
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
    "cached_tokens": "cache_read_input_tokens",
    "cache_write_tokens": "cache_creation_input_tokens",
}
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
FINISH |= {"model_context_window_exceeded": "length", "refusal": "content_filter"}
_TEXTS = {"text": "text", "thinking": "reasoning"}  # types of parts, by that of the block and its field
_TOOLS = ("tool_use", "server_tool_use", "mcp_tool_use")


class Anthropic(Source):
    name = "anthropic"
    last = "the event message_stop"

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str]] = {}  # call and block type, by the index of the block
        self._ended: list[Edit] = []  # for the call of the last block, once that has ended
        self._is_cut = False  # True: a limit ended the message, maybe within the input of the last call
        self._counts: dict[str, int] = {}  # the newest counts of the provider, under Tenuto's names

    def take(self, event: object) -> Iterator[Edit]:
        self.is_alive = get(event, "type") != "ping"
        match get(event, "type"):
            case "message_start":
                message = get(event, "message")
                yield Meta(model=word(message, "model"), usage=self._usage(message), response_id=word(message, "id"))
            case "content_block_start":
                yield from self._ended
                yield from self._start(index(event, "index"), get(event, "content_block"))
            case "content_block_delta":
                yield from self._delta(index(event, "index"), get(event, "delta"))
            case "content_block_stop":
                yield from self._ended
                call, kind = self._calls.get(index(event, "index"), ("", ""))
                self._ended = [Set(("call", call), {"state": CALLED})] if kind == "tool_use" else []
            case "message_delta":
                reason = word(get(event, "delta"), "stop_reason") or ""
                finish = FINISH.get(reason, reason)
                self._is_cut |= finish == "length"
                yield Meta(finish_reason=finish or None, usage=self._usage(event))
            case "message_stop":
                self._is_ended = True
                yield from self._ended if not self._is_cut else ()
            case "error":
                raise reported(get(get(event, "error"), "type"))

    def _usage(self, event: object) -> dict[str, int]:
        """Return the usage so far. Unlike the provider's, its `input_tokens` include those of the cache."""
        self._counts |= counts(get(event, "usage"), USAGE) or {}
        cached = sum(self._counts.get(name, 0) for name in ("cached_tokens", "cache_write_tokens"))
        return {name: count + (cached if name == "input_tokens" else 0) for name, count in self._counts.items()}

    def _start(self, position: int, block: object) -> Iterator[Edit]:
        kind = word(block, "type") or ""
        if name := _TEXTS.get(kind):
            yield Open(position, {"type": name})
            yield Add(position, text(block, kind), name)
        elif kind in _TOOLS:
            call = needed(block, "id")
            self._calls[position] = (call, kind)
            yield Open(("call", call), tool(call, needed(block, "name")))
            if given := get(block, "input"):  # the input came at once instead of in deltas
                yield Add(("call", call), as_json(given), "tool")
        elif kind.endswith("_tool_result"):
            content = get(block, "content")
            failed = get(block, "is_error") is True or (word(content, "type") or "").endswith("_error")
            output = _without_encrypted(plain(content))
            yield Set(("call", needed(block, "tool_use_id")), {"output": output, "state": ERROR if failed else DONE})

    def _delta(self, position: int, delta: object) -> Iterator[Edit]:
        match get(delta, "type"):
            case "text_delta":
                yield Add(position, text(delta, "text"))
            case "thinking_delta":
                yield Add(position, text(delta, "thinking"), "reasoning")
            case "input_json_delta":
                if position not in self._calls:
                    raise malformed(f"block {shown(position)} has tool input, but is not a tool call")
                yield Add(("call", self._calls[position][0]), text(delta, "partial_json"), "tool")
            case "citations_delta":
                cited = get(delta, "citation")
                title = word(cited, "title") or word(cited, "document_title")
                url = word(cited, "url", LINE_CHARACTERS) or word(cited, "source", LINE_CHARACTERS)
                if name := url or title:
                    yield Open(("source", name), free("source", url=url, title=title))


def _without_encrypted(output: Json) -> Json:
    """Return `output` without the fields that only the provider can read."""
    if isinstance(output, list):
        return [_without_encrypted(one) for one in output]
    if isinstance(output, dict):
        return {name: _without_encrypted(value) for name, value in output.items() if not name.startswith("encrypted_")}
    return output
