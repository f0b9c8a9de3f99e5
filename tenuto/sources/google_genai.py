"""The streams of Google (`google-genai`): `generate_content_stream`, and the Interactions API. Layer: sources."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator

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
    "input_tokens": "prompt_token_count",
    "output_tokens": "candidates_token_count+thoughts_token_count",
    "total_tokens": "total_token_count",
    "cached_tokens": "cached_content_token_count",
    "reasoning_tokens": "thoughts_token_count",
}
FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length", "MALFORMED_FUNCTION_CALL": "error"}
FINISH |= dict.fromkeys(("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"), "content_filter")
FINISH |= dict.fromkeys(("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"), "content_filter")


class GoogleGenAI(Source):
    """The chunks of `generate_content_stream`, async or blocking.

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

    name = "google-genai"

    def __init__(self) -> None:
        self._response: str | None = None  # id of the response
        self._kind = ""  # kind of the text that is streaming: text or reasoning
        self._number = 0  # number of that text: neighbouring pieces of the same kind make up one part
        self._calls: list[tuple[str, str]] = []  # name and call id of each tool call without a response
        self._made = 0  # number of calls and files so far, for those without an id

    def take(self, event: object) -> Iterator[Edit]:
        usage, id = counts(get(event, "usage_metadata"), USAGE), word(event, "response_id") or self._response
        history = [*items(event, "automatic_function_calling_history")]
        if history and id != self._response:  # the response after an automatic function call begins
            yield from self.end()
            self._is_ended = False
        self._response = id
        yield Meta(model=word(event, "model_version"), usage=usage, of=id)
        for content in history:
            for part in items(content, "parts"):
                if response := get(part, "function_response"):
                    yield from self._output(response)
        for candidate in list(items(event, "candidates"))[:1]:  # others are alternatives
            for part in items(get(candidate, "content"), "parts"):
                self._is_ended = False  # another response has begun, as after an automatic function call
                yield from self._part(part)
            for chunk in items(get(candidate, "grounding_metadata"), "grounding_chunks"):
                web = get(chunk, "web")
                if url := word(web, "uri", LINE_CHARACTERS):
                    yield Open(("source", url), free("source", url=url, title=word(web, "title")))
            if reason := word(candidate, "finish_reason"):
                yield from self._end(reason)
        if blocked := word(get(event, "prompt_feedback"), "block_reason"):
            yield from self._end(blocked)

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
            yield Open(("call", given), tool(given, name, input=as_json(get(call, "args") or {}), state=CALLED))
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
            media_type = word(blob, "mime_type")
            yield self._file(media_type, _data_url(media_type, get(blob, "data")))
        elif file := get(part, "file_data"):
            yield self._file(word(file, "mime_type"), word(file, "file_uri", LINE_CHARACTERS))
        else:
            return  # an unknown part does not end the text that is streaming
        self._kind = ""  # further text is another part

    def _output(self, response: object) -> Iterator[Edit]:
        key = self._take_call(word(response, "name") or "", word(response, "id"))
        if key is not None:
            output = plain(get(response, "response"))
            failed = isinstance(output, dict) and "error" in output and "result" not in output
            yield Set(("call", key), {"output": output, "state": ERROR if failed else DONE})

    def _take_call(self, name: str, given: str | None) -> str | None:
        for called, key in self._calls:
            if given == key or (given is None and called == name):  # without an id: the oldest call of the name
                self._calls.remove((called, key))
                return key
        return None

    def _file(self, media_type: str | None, url: str | None) -> Edit:
        if url is None:
            raise malformed("a file has neither data nor URI")
        self._made += 1
        return Open(("file", self._made), free("file", media_type=media_type, url=url))


def _data_url(media_type: str | None, data: object) -> str:
    if isinstance(data, bytes):
        data = base64.b64encode(data).decode()
    if not isinstance(data, str):
        raise malformed(f"field 'data' of a file must be bytes or text, got {type(data).__name__}")
    return f"data:{media_type or ''};base64,{data}"


INTERACTION_USAGE = {
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens+total_thought_tokens",
    "total_tokens": "total_tokens",
    "cached_tokens": "total_cached_tokens",
    "reasoning_tokens": "total_thought_tokens",
}
INTERACTION_FINISH = {"requires_action": "tool_calls", "incomplete": "length", "budget_exceeded": "length"}
_FILES = ("image", "audio", "video", "document")


class GoogleInteractions(Source):
    """The Interactions API: events of `interactions.create(stream=True)` and `interactions.get(id, stream=True)`.

    | event | becomes |
    |---|---|
    | `interaction.created`, `interaction.status_update` | `meta.model`; the id to attach to |
    | `step.delta` `text`, and `content` of a step | text |
    | `step.delta` `thought_summary`, and `summary` of a step | reasoning |
    | `step.start` of a `function_call`, `arguments_delta`, `step.stop` | tool: call, name, input; `called` |
    | `step.start` of another `…_call` (`google_search_call`, …), which Google runs | tool of that name |
    | `…_result` | the output of that tool, `done` or `error` |
    | `image`, `audio`, `video`, `document` | file, with the pieces of one step joined |
    | `annotations[]` | source |
    | `interaction.completed` | `meta.usage`, `meta.finish_reason`; the end |
    | that of a failed one, and `error` | UpstreamError |
    """

    name = "google-interactions"

    def __init__(self) -> None:
        self._calls: dict[int, str] = {}  # call of the step at each index: its own, or that of which it is the result
        self._kinds: dict[int, str] = {}  # type of the step at each index
        self._given: set[str] = set()  # calls whose input came whole
        self._pieces: list[bytes] = []  # data of the file that is streaming
        self._media_type: str | None = None
        self._number = 0  # number of the part that is streaming: neighbouring pieces of the same kind make up one
        self._kind = ""  # its kind: text, reasoning, or one of `_FILES`

    def take(self, event: object) -> Iterator[Edit]:
        place = index(event, "index")
        match get(event, "event_type"):
            case "interaction.created" | "interaction.completed" as kind:
                yield from self._about(get(event, "interaction"), is_end=kind == "interaction.completed")
            case "interaction.status_update":
                yield Meta(response_id=word(event, "interaction_id"))
            case "step.start":
                yield from self._start(place, get(event, "step"))
            case "step.delta":
                yield from self._content(place, get(event, "delta"))
            case "step.stop":
                yield from self._change("")
                if self._kinds.get(place) == "function_call":
                    yield Set(("call", self._calls[place]), {"state": CALLED})
            case "error":
                raise reported(get(get(event, "error"), "code"))

    def _about(self, interaction: object, *, is_end: bool) -> Iterator[Edit]:
        id, status = word(interaction, "id"), word(interaction, "status") or "completed"
        usage = counts(get(interaction, "usage"), INTERACTION_USAGE)
        yield Meta(model=word(interaction, "model"), usage=usage, of=id, response_id=id)
        if is_end and status == "failed":
            raise reported(*(get(error, "code") for error in items(interaction, "errors")))
        if is_end and status not in ("cancelled", "in_progress", "queued"):  # else it has broken off
            self._is_ended = True
            yield Meta(finish_reason=INTERACTION_FINISH.get(status, "stop" if status == "completed" else status))

    def _start(self, place: int, step: object) -> Iterator[Edit]:
        yield from self._change("")
        kind = self._kinds[place] = word(step, "type") or ""
        if kind.endswith("_call"):
            call = self._calls[place] = needed(step, "id")
            yield Open(("call", call), tool(call, word(step, "name") or kind.removesuffix("_call")))
        elif kind.endswith("_result"):
            self._calls[place] = needed(step, "call_id")
        if kind == "user_input":  # the question
            return
        yield from self._content(place, step)
        for content in items(step, "content"):
            yield from self._content(place, content)
        for content in items(step, "summary"):
            yield from self._text("reasoning", text(content, "text"))

    def _content(self, place: int, content: object) -> Iterator[Edit]:
        """Yield the edits for a delta, or for a step or its content, which have the same form when they are whole."""
        kind, call = word(content, "type") or "", self._calls.get(place)
        if kind == "text":
            yield from self._text("text", text(content, "text"))
        elif kind == "thought_summary":
            yield from self._text("reasoning", text(get(content, "content"), "text"))
        elif kind in _FILES:
            yield from self._piece(kind, content)
        elif call is not None and kind == "arguments_delta":
            yield Add(("call", call), text(content, "arguments"))
        elif call is not None and kind.endswith("_call") and call not in self._given:
            if arguments := plain(get(content, "arguments")):
                self._given.add(call)
                yield Add(("call", call), as_json(arguments))
        elif call is not None and kind.endswith("_result") and get(content, "result") is not None:
            state = ERROR if get(content, "is_error") is True else DONE
            yield Set(("call", call), {"output": plain(get(content, "result")), "state": state})
        for note in items(content, "annotations"):
            if url := word(note, "url", LINE_CHARACTERS) or word(note, "document_uri", LINE_CHARACTERS):
                title = word(note, "title") or word(note, "file_name") or word(note, "name")
                yield Open(("source", url), free("source", url=url, title=title))

    def _text(self, kind: str, more: str) -> Iterator[Edit]:
        yield from self._change(kind)
        yield Add(self._number, more, kind)

    def _piece(self, kind: str, content: object) -> Iterator[Edit]:
        """Yield the part for a file that has an address; keep the data of another one until it has ended."""
        yield from self._change(kind)
        self._media_type = word(content, "mime_type") or self._media_type
        if url := word(content, "uri", LINE_CHARACTERS):
            yield Open(self._number, free("file", media_type=self._media_type, url=url))
        elif data := get(content, "data"):
            self._pieces.append(data if isinstance(data, bytes) else base64.b64decode(text(content, "data")))

    def _change(self, kind: str) -> Iterator[Edit]:
        """Begin a part of `kind`, unless one is streaming. Yield the file that has ended with this."""
        if kind == self._kind:
            return
        if self._pieces:
            url = _data_url(self._media_type, b"".join(self._pieces))
            yield Open(self._number, free("file", media_type=self._media_type, url=url))
        self._kind, self._number, self._media_type = kind, self._number + 1, None
        self._pieces.clear()


async def events_of_interaction(interaction: object) -> AsyncIterator[dict[str, object]]:
    """Yield the events of an interaction that has ended and was read whole."""
    yield {"event_type": "interaction.created", "interaction": interaction}
    for place, step in enumerate(items(interaction, "steps")):
        yield {"event_type": "step.start", "index": place, "step": step}
        yield {"event_type": "step.stop", "index": place}
    yield {"event_type": "interaction.completed", "interaction": interaction}
