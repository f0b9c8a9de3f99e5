"""AI SDK: the chunks of its UI message stream, as dicts, or as the lines or bytes of server-sent events.

| chunk | becomes |
|---|---|
| `text-start`, `text-delta` | text |
| `reasoning-start`, `reasoning-delta` | reasoning |
| `tool-input-start`, `tool-input-delta` | tool: call, name, streaming input |
| `tool-input-available`, `tool-input-error` | the tool is `called` (with its input), or in `error` |
| `tool-output-available`, `tool-output-error`, `tool-output-denied` | its output: `done`, or `error` |
| `source-url`, `source-document` | source |
| `file`, `reasoning-file` | file |
| `data-<name>` | data, replaced by a later one of the same name and `id`; nothing when it is `transient` |
| `message-metadata`, and `messageMetadata` of `start` and `finish` | `meta.usage`, `meta.model` where they are there |
| `finish` | `meta.finish_reason`; the end |
| `abort` | UpstreamEnded |
| `error` | UpstreamError |
| `start-step`, `finish-step`, `text-end`, `[DONE]` and others | nothing |
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from holdfast.agents.sources.errors import UpstreamEnded, malformed, reported
from holdfast.agents.sources.reading import LINE_CHARACTERS, as_json, counts, get, needed, plain, text, word
from holdfast.agents.sources.vocabulary import CALLED, DONE, ERROR, Change, Meta, Open, Said, Source, Text, free, tool

USAGE = {
    "input_tokens": "inputTokens",
    "output_tokens": "outputTokens",
    "total_tokens": "totalTokens",
    "cached_tokens": "cachedInputTokens",
    "reasoning_tokens": "reasoningTokens",
}
FINISH = {"content-filter": "content_filter", "tool-calls": "tool_calls"}
# One of these begins every stream that is recognised by its first chunk.
STARTS = ("start", "start-step", "text-start", "reasoning-start", "tool-input-start", "message-metadata", "error")
_LINE_LIMIT = 8 * 1024 * 1024  # characters of one event: what a message can hold


class AISDK(Source):
    name = "ai-sdk"

    def __init__(self) -> None:
        self._is_ended = False
        self._line = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._streamed: set[str] = set()  # calls whose input streamed
        self._made = 0

    def take(self, event: object) -> Iterator[Said]:
        if isinstance(event, bytes | bytearray | memoryview):
            event = self._decode(bytes(event))
        if not isinstance(event, str):
            yield from self._chunk(event)
            return
        for line in self._lines(event):
            if (chunk := chunk_of(line)) is not None:
                yield from self._chunk(chunk)

    def end(self) -> Iterator[Said]:
        if self._line and (chunk := chunk_of(self._line)) is not None:
            yield from self._chunk(chunk)
        if not self._is_ended:
            raise UpstreamEnded("the stream ended without a finish chunk")

    def _lines(self, piece: str) -> Iterator[str]:
        """Whole lines. An iterator of lines has no line ends, and bytes may be cut anywhere: JSON says which it is."""
        *whole, self._line = (self._line + piece).split("\n")
        yield from whole
        if len(self._line) > _LINE_LIMIT:
            raise malformed("an event without an end")
        if self._line.endswith(("}", "[DONE]")) and is_whole(self._line):
            line, self._line = self._line, ""
            yield line
        elif self._line and "\n" not in piece and not "data:".startswith(self._line[:5]):
            self._line = ""  # a comment or a field of another name, as a line of its own

    def _chunk(self, chunk: object) -> Iterator[Said]:
        kind = word(chunk, "type") or ""
        match kind:
            case "text-start" | "reasoning-start":
                yield Open((kind[0], word(chunk, "id")), {"type": kind.removesuffix("-start")})
            case "text-delta" | "reasoning-delta":
                key = (kind[0], word(chunk, "id"))
                yield Text(key, text(chunk, "delta"), kind.removesuffix("-delta"))
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
                yield from self._metadata(get(chunk, "messageMetadata"))
                if kind == "finish":
                    self._is_ended = True
                    reason = word(chunk, "finishReason")
                    yield Meta(finish_reason=FINISH.get(reason, reason) if reason else None)
            case "abort":
                raise UpstreamEnded("the stream was aborted upstream")
            case "error":
                raise reported(get(chunk, "code"))
            case _ if kind.startswith("tool-"):
                yield from self._tool(kind, chunk)
            case _ if kind.startswith("data-") and get(chunk, "transient") is not True:
                name, known = kind.removeprefix("data-"), word(chunk, "id")
                self._made += 1
                yield Change(
                    (kind, known or self._made), {"type": "data", "name": name, "data": plain(get(chunk, "data"))}
                )

    def _tool(self, kind: str, chunk: object) -> Iterator[Said]:
        call = word(chunk, "toolCallId")
        if call is None:
            return
        key = ("call", call)
        match kind:
            case "tool-input-start":
                yield Open(key, tool(call, needed(chunk, "toolName")))
            case "tool-input-delta":
                self._streamed.add(call)
                yield Text(key, text(chunk, "inputTextDelta"), "tool")
            case "tool-input-available" | "tool-input-error":
                yield Open(key, tool(call, needed(chunk, "toolName")))
                if call not in self._streamed and (given := get(chunk, "input")) is not None:
                    yield Text(key, as_json(given), "tool")
                if kind == "tool-input-available":
                    yield Change(key, {"state": CALLED})
                else:
                    yield Change(key, {"state": ERROR, "output": word(chunk, "errorText", LINE_CHARACTERS)})
            case "tool-output-available":
                yield Change(key, {"state": DONE, "output": plain(get(chunk, "output"))})
            case "tool-output-error" | "tool-output-denied":
                yield Change(key, {"state": ERROR, "output": word(chunk, "errorText", LINE_CHARACTERS)})

    def _metadata(self, about: object) -> Iterator[Said]:
        usage = get(about, "usage") or get(about, "totalUsage")
        yield Meta(model=word(about, "model") or word(about, "modelId"), usage=counts(usage, USAGE))


def is_whole(line: str) -> bool:
    """Is this a whole `data:` line?"""
    try:
        return chunk_of(line) is not None or line.endswith("[DONE]")
    except Exception:
        return False


def chunk_of(line: str) -> object | None:
    """The chunk in a line of server-sent events; None when it holds none. Raises UpstreamError when it is no JSON."""
    name, colon, value = line.rstrip("\r").partition(":")
    value = value.removeprefix(" ")
    if not colon or name != "data" or not value or value == "[DONE]":
        return None
    try:
        chunk: object = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise malformed("an event that is no JSON") from error
    return chunk
