"""Google (`google-genai`): the chunks of `generate_content_stream`, async or blocking. Layer: sources.

| event | becomes |
|---|---|
| a part with `text` | text, or reasoning when it is a `thought` |
| `function_call` | tool: call, name, complete input, `called` |
| `function_response`, also in the history of automatic function calls | the output of that tool, `done` |
| `executable_code`, `code_execution_result` | tool `code_execution`: input, output |
| `inline_data`, `file_data` | file |
| `grounding_metadata.grounding_chunks[].web` | source |
| `finish_reason`, or `prompt_feedback.block_reason` | `meta.finish_reason`; the end |
| `usage_metadata`, `model_version` | `meta.usage`, `meta.model` |
| an `error` in place of a chunk | UpstreamError |
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

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
    items,
    malformed,
    plain,
    text,
    tool,
    unfinished,
    word,
)

USAGE = {
    "input_tokens": "prompt_token_count",
    "output_tokens": "candidates_token_count",
    "total_tokens": "total_token_count",
    "cached_tokens": "cached_content_token_count",
    "reasoning_tokens": "thoughts_token_count",
}
FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "MALFORMED_FUNCTION_CALL": "error"}
_FILTERED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
_FILTERED_IMAGES = ("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION")
FINISH |= dict.fromkeys((*_FILTERED, *_FILTERED_IMAGES), "content_filter")


class GoogleGenAI(Source):
    name = "google-genai"

    def __init__(self) -> None:
        self._is_ended = False
        self._kind = ""  # kind of the text that is streaming: text or reasoning
        self._number = 0  # number of that text: neighbouring pieces of the same kind make up one part
        self._calls: list[tuple[str, str]] = []  # name and call id of each tool call without a response
        self._made = 0

    def take(self, event: object) -> Iterator[Edit]:
        usage = counts(get(event, "usage_metadata"), USAGE)
        yield Meta(model=word(event, "model_version"), usage=usage, of=word(event, "response_id"))
        for content in items(event, "automatic_function_calling_history"):
            for part in items(content, "parts"):
                if response := get(part, "function_response"):
                    yield from self._output(response)
        for candidate in list(items(event, "candidates"))[:1]:
            for part in items(get(candidate, "content"), "parts"):
                self._is_ended = False
                yield from self._part(part)
            yield from self._sources(get(candidate, "grounding_metadata"))
            if reason := word(candidate, "finish_reason"):
                yield from self._end(reason)
        if blocked := word(get(event, "prompt_feedback"), "block_reason"):
            yield from self._end(blocked)

    def end(self) -> Iterator[Edit]:
        if not self._is_ended:
            raise unfinished()
        return iter(())

    def _end(self, reason: str) -> Iterator[Edit]:
        self._is_ended = True
        finish = FINISH.get(reason, reason.lower())
        yield Meta(finish_reason="tool_calls" if finish == "stop" and self._calls else finish)

    def _part(self, part: object) -> Iterator[Edit]:
        if more := text(part, "text"):
            kind = "reasoning" if get(part, "thought") is True else "text"
            if kind != self._kind:
                self._kind, self._number = kind, self._number + 1
            yield Add(self._number, more, kind)
            return
        if call := get(part, "function_call"):
            name = word(call, "name") or ""
            self._made += 1
            given = word(call, "id") or f"call_{self._made}"
            self._calls.append((name, given))
            arguments = as_json(get(call, "args") or {})
            yield Open(("call", given), tool(given, name, input=arguments, state=CALLED))
        elif response := get(part, "function_response"):
            yield from self._output(response)
        elif code := get(part, "executable_code"):
            self._made += 1
            run = f"code_{self._made}"
            self._calls.append(("code_execution", run))
            yield Open(("call", run), tool(run, "code_execution", input=text(code, "code")))
        elif result := get(part, "code_execution_result"):
            state = DONE if word(result, "outcome") in (None, "OUTCOME_OK") else ERROR
            if key := self._take_call("code_execution", None):
                yield Set(("call", key), {"output": text(result, "output"), "state": state})
        elif blob := get(part, "inline_data"):
            yield self._file(word(blob, "mime_type"), _data_url(blob))
        elif file := get(part, "file_data"):
            yield self._file(word(file, "mime_type"), word(file, "file_uri", LINE_CHARACTERS))
        else:
            return
        self._kind = ""

    def _output(self, response: object) -> Iterator[Edit]:
        key = self._take_call(word(response, "name") or "", word(response, "id"))
        if key is not None:
            output = plain(get(response, "response"))
            failed = isinstance(output, dict) and "error" in output and "result" not in output
            yield Set(("call", key), {"output": output, "state": ERROR if failed else DONE})

    def _take_call(self, name: str, given: str | None) -> str | None:
        for called, key in self._calls:
            if given == key or (given is None and called == name):
                self._calls.remove((called, key))
                return key
        return None

    def _file(self, media_type: str | None, url: str | None) -> Edit:
        if url is None:
            raise malformed("a file has neither data nor URI")
        self._made += 1
        return Open(("file", self._made), free("file", media_type=media_type, url=url))

    def _sources(self, grounding: object) -> Iterator[Edit]:
        for chunk in items(grounding, "grounding_chunks"):
            web = get(chunk, "web")
            if url := word(web, "uri", LINE_CHARACTERS):
                yield Open(("source", url), free("source", url=url, title=word(web, "title")))


def _data_url(blob: object) -> str:
    data = get(blob, "data")
    if isinstance(data, bytes):
        data = base64.b64encode(data).decode()
    if not isinstance(data, str):
        raise malformed(f"field 'data' of a file must be bytes or text, got {type(data).__name__}")
    return f"data:{word(blob, 'mime_type') or ''};base64,{data}"
