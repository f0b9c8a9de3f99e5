"""AI SDK (`ai`): the chunks of its UI message stream, as dicts, or as the lines or bytes of server-sent events.

| chunk | becomes |
|---|---|
| `text-start`, `text-delta` | text: a new part with each start |
| `reasoning-start`, `reasoning-delta` | reasoning, likewise |
| `tool-input-start`, `tool-input-delta` | tool: call, name, streaming input |
| `tool-input-available`, `tool-input-error` | the tool is `called` (with its input), or in `error` |
| `tool-output-available`, `tool-output-error` | its output: `done`, or `error` |
| `tool-output-denied` | `error`, with the output `denied` |
| `tool-output-available` that is preliminary | the output so far |
| `source-url`, `source-document` | source |
| `file`, `reasoning-file` | file |
| `data-<name>` | data, replaced by a later one of the same name and `id`; ignored if it is `transient` |
| `message-metadata`, and `messageMetadata` of `start` and `finish` | `meta.usage`, `meta.model` if present |
| `reset-step` | the parts since the last `start-step` are withdrawn: each becomes an empty text |
| `finish` | `meta.finish_reason`; the end |
| `abort` | UpstreamEnded |
| `error` | UpstreamError |
| `tool-approval-request`, `tool-approval-response` | ignored: the tool stays `called` until its output comes |
| `steering-message`, `custom` | ignored: a user's message to the model, and a provider's own chunk |
| `start-step`, `finish-step`, `text-end`, `reasoning-end`, `[DONE]` and others | ignored |

Layer: sources. A model's stream that breaks off inside the AI SDK without an error has the finish reason `other`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Hashable, Iterator
from contextlib import suppress

from tenuto.sources.reading import (
    CALLED,
    DONE,
    ERROR,
    LINE_CHARACTERS,
    Add,
    Drop,
    Edit,
    Meta,
    Open,
    Set,
    Source,
    UpstreamEnded,
    UpstreamError,
    as_json,
    counts,
    free,
    get,
    malformed,
    needed,
    plain,
    reported,
    text,
    tool,
    word,
)

USAGE = {
    "input_tokens": "inputTokens",
    "output_tokens": "outputTokens",
    "total_tokens": "totalTokens",
    "cached_tokens": "inputTokenDetails.cacheReadTokens",
    "cache_write_tokens": "inputTokenDetails.cacheWriteTokens",
    "reasoning_tokens": "outputTokenDetails.reasoningTokens",
}
OLDER_USAGE = {"cached_tokens": "cachedInputTokens", "reasoning_tokens": "reasoningTokens"}  # names up to version 6
FINISH = {"content-filter": "content_filter", "tool-calls": "tool_calls"}
# Types of chunks; a stream of this SDK begins with one of them.
STARTS = ("start", "start-step", "text-start", "reasoning-start", "tool-input-start", "message-metadata", "error")
_LINE_LIMIT = 8 * 1024 * 1024  # limit of one event in characters: the limit of a message


class AISDKSource(Source):
    name = "ai-sdk"
    last = "a finish chunk"

    def __init__(self) -> None:
        self._line = ""  # the beginning of a line that is not complete yet
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._streamed: set[str] = set()  # tool calls whose input was streamed
        self._made = 0  # the last number given to a part whose id is missing, or is used again
        self._last: dict[Hashable, int] = {}  # for each id the number of its latest text: steps use an id again
        self._opened: dict[Hashable, int] = {}  # the steps that have opened parts, by the keys of these
        self._step = 0  # number of the model's step

    def take(self, event: object) -> Iterator[Edit]:
        if isinstance(event, bytes | bytearray | memoryview):
            event = self._decode(bytes(event))
        chunks = self._chunks(event) if isinstance(event, str) else [event]
        self.is_alive = False
        for chunk in chunks:
            if chunk is not None:  # None: a line without one, such as a keep-alive
                self.is_alive = True
                yield from self._edits(chunk)

    def end(self) -> Iterator[Edit]:
        if self._line and (chunk := chunk_of(self._line)) is not None:
            yield from self._edits(chunk)
        yield from super().end()

    def _chunks(self, piece: str) -> Iterator[object]:
        """Yield the chunks of whole lines, and None for a line without one.

        The items may be lines without their line ends, or bytes that are cut anywhere. If an item is a line with
        complete JSON, the items are lines.
        """
        *whole, line = (self._line + piece).split("\n")
        yield from map(chunk_of, whole)
        self._line = line
        if len(line) > _LINE_LIMIT:
            raise malformed(f"an event is longer than {_LINE_LIMIT} characters")
        chunk, is_whole = None, False
        if line.endswith(("}", "[DONE]")):
            with suppress(UpstreamError):  # the line goes on
                chunk = chunk_of(line)
                is_whole = chunk is not None or line.endswith("[DONE]")
        # a comment, or a field other than `data`, is a complete line without a chunk
        is_other = "\n" not in piece and not "data:".startswith(line[:5])
        if is_whole or is_other:
            self._line = ""
            yield chunk

    def _edits(self, chunk: object) -> Iterator[Edit]:
        """Yield the edits for `chunk`, and record which parts its step has opened."""
        for edit in self._chunk(chunk):
            match edit:
                case Open(key) | Set(key, {"type": _}):
                    self._opened.setdefault(key, self._step)
                case Add(key, more) if more:
                    self._opened.setdefault(key, self._step)
            yield edit

    def _chunk(self, chunk: object) -> Iterator[Edit]:
        kind = word(chunk, "type") or ""
        match kind:
            case "text-start" | "reasoning-start":
                self._made += 1
                self._last[kind[0], word(chunk, "id")] = self._made  # `kind[0]`: t of text, r of reasoning
                yield Open((kind[0], self._made), {"type": kind.removesuffix("-start")})
            case "text-delta" | "reasoning-delta":
                name = word(chunk, "id")
                key = (kind[0], self._last.get((kind[0], name), name))
                yield Add(key, text(chunk, "delta"), kind.removesuffix("-delta"))
            case "source-url":
                url = word(chunk, "url", LINE_CHARACTERS)
                yield Open(("source", url), free("source", url=url, title=word(chunk, "title")))
            case "source-document":
                names = {"title": "title", "filename": "filename", "media_type": "mediaType"}
                fields = {ours: word(chunk, theirs) for ours, theirs in names.items()}
                yield Open(("source", word(chunk, "sourceId")), free("source", **fields))
            case "file" | "reasoning-file":
                self._made += 1
                url = text(chunk, "url")
                yield Open(("file", self._made), free("file", media_type=word(chunk, "mediaType"), url=url))
            case "start" | "message-metadata" | "finish":
                about = get(chunk, "messageMetadata")
                usage = get(about, "usage") or get(about, "totalUsage")
                found = {**(counts(usage, OLDER_USAGE) or {}), **(counts(usage, USAGE) or {})}
                yield Meta(model=word(about, "model") or word(about, "modelId"), usage=found or None)
                if kind == "finish":
                    self._is_ended = True
                    reason = word(chunk, "finishReason")
                    yield Meta(finish_reason=FINISH.get(reason, reason) if reason else None)
            case "start-step":
                self._step += 1
            case "reset-step":
                for part in [part for part, step in self._opened.items() if step == self._step]:
                    del self._opened[part]
                    yield Drop(part)
                self._streamed.clear()  # the calls of earlier steps already have their input
            case "abort":
                raise UpstreamEnded("the model's stream was aborted by its sender (chunk `abort`)")
            case "error":
                raise reported(get(chunk, "code"))
            case _ if kind.startswith("tool-"):
                yield from self._tool(kind, chunk)
            case _ if kind.startswith("data-") and get(chunk, "transient") is not True:
                name, known, data = kind.removeprefix("data-"), word(chunk, "id"), plain(get(chunk, "data"))
                self._made += 1
                yield Set((kind, known or self._made), {"type": "data", "name": name, "data": data})

    def _tool(self, kind: str, chunk: object) -> Iterator[Edit]:
        call = word(chunk, "toolCallId")
        if call is None:
            return
        key, failed = ("call", call), {"state": ERROR, "output": word(chunk, "errorText", LINE_CHARACTERS)}
        match kind:
            case "tool-input-start":
                yield Open(key, tool(call, needed(chunk, "toolName")))
            case "tool-input-delta":
                self._streamed.add(call)
                yield Add(key, text(chunk, "inputTextDelta"), "tool")
            case "tool-input-available" | "tool-input-error":
                yield Open(key, tool(call, needed(chunk, "toolName")))
                if call not in self._streamed and (given := get(chunk, "input")) is not None:
                    yield Add(key, as_json(given), "tool")
                yield Set(key, {"state": CALLED} if kind == "tool-input-available" else failed)
            case "tool-output-available":
                state = {} if get(chunk, "preliminary") is True else {"state": DONE}
                yield Set(key, {**state, "output": plain(get(chunk, "output"))})
            case "tool-output-error":
                yield Set(key, failed)
            case "tool-output-denied":
                yield Set(key, {"state": ERROR, "output": "denied"})


def chunk_of(line: str) -> object | None:
    """Return the chunk in a line of server-sent events; None if it holds none.

    Raises UpstreamError for invalid JSON.
    """
    name, colon, value = line.rstrip("\r").partition(":")
    value = value.removeprefix(" ")
    if not colon or name != "data" or not value or value == "[DONE]":
        return None
    try:
        chunk: object = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise malformed("an event is not valid JSON") from error
    return chunk
