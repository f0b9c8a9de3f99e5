"""The streams of LangChain and LangGraph. Layer: sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping

from tenuto.core.errors import LocalError
from tenuto.core.model import Part
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
    plain,
    text,
    tool,
    word,
)

USAGE = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "total_tokens": "total_tokens",
    "cached_tokens": "input_token_details.cache_read",
    "cache_write_tokens": "input_token_details.cache_creation",
    "reasoning_tokens": "output_token_details.reasoning",
}
_REASONS = ("finish_reason", "stop_reason", "done_reason", "status")
_FINISH = {
    **dict.fromkeys(("completed", "end_turn", "stop_sequence", "STOP"), "stop"),
    **dict.fromkeys(("incomplete", "max_output_tokens", "max_tokens", "MAX_TOKENS"), "length"),
    **dict.fromkeys(("SAFETY", "refusal"), "content_filter"),
    "tool_use": "tool_calls",
}
AI = ("ai", "AIMessageChunk")
_TOOL = ("tool", "ToolMessageChunk")


class _OpenMessage:
    """A message of the model that has not ended yet."""

    def __init__(self, number: int) -> None:
        self.number = number  # counts the messages that follow each other under the same name
        self.has_provider = False  # True: a reason ends it, not the mark that LangChain sets
        self.kind = ""  # kind of the text that is streaming, for blocks without an index
        self.run = 0  # number of the text that is streaming
        self.calls: dict[Hashable, str] = {}  # by the index that the provider uses; by None the latest without one
        self.usage = Counter[str]()  # that of several chunks is added up


class LangChain(Source):
    """LangChain (`langchain-core` and the packages of its models): `astream` of a chat model, `astream_events` (v2).

    | event | becomes |
    |---|---|
    | `AIMessageChunk`: text and reasoning blocks | text, reasoning |
    | its tool call chunks | tool: call, name, streaming input |
    | its citations | source |
    | its image and file blocks with a URL or data | file |
    | `finish_reason`, `stop_reason`, `done_reason`, `status` | `meta.finish_reason`; tools are `called`; it ends |
    | `usage_metadata`, `model_name` | `meta.usage`, `meta.model` |
    | `ToolMessage` | the output of that tool: `done`, or `error` |
    | `on_chat_model_stream`, `on_chat_model_end` | as for the chunk or message in it |
    | `on_tool_end` | the output of its tool |
    | other events | ignored |
    | the end, with every message ended | the end |

    A model whose package sets no `model_provider` ends with the chunk that LangChain marks as the last. LangChain marks
    one also if the connection broke without an error, so a crash of such a provider looks like its end.
    """

    name = "langchain"

    def __init__(self) -> None:
        self._open: dict[Hashable, _OpenMessage] = {}  # by the names under which their chunks come (`where`)
        self._closed: dict[Hashable, _OpenMessage] = {}  # the last one of each name
        self._made = 0  # number of messages and files so far
        self._calls: dict[str, Hashable] = {}  # keys of tool calls: the latest of each id, which a model may repeat
        self._written: set[object] = set()  # ids of messages and runs that came in chunks: the whole one is skipped

    def take(self, event: object) -> Iterator[Edit]:
        if isinstance(event, Mapping):
            yield from self._event(event)
        else:
            yield from self.message(event, None)

    def message(self, message: object, where: Hashable) -> Iterator[Edit]:
        """Yield the edits for a message or a chunk of one. Chunks with the same `where` belong to one message."""
        kind = get(message, "type")
        if kind == "AIMessageChunk":
            self._written.add(get(message, "id"))
            yield from self._chunk(message, where)
        elif kind == "ai" and get(message, "id") not in self._written:
            yield from self._chunk(message, where, is_whole=True)
        elif kind in _TOOL and (call := word(message, "tool_call_id")):
            state = ERROR if get(message, "status") == "error" else DONE
            yield Set(self._calls.get(call), {"output": plain(get(message, "content")), "state": state})

    def _event(self, event: Mapping[str, object]) -> Iterator[Edit]:
        run, data = event.get("run_id"), event.get("data")
        where = run if isinstance(run, str) else None
        match event.get("event"):
            case "on_chat_model_stream":
                self._written.add(run)
                yield from self.message(get(data, "chunk"), where)
            case "on_chat_model_end":
                output = get(data, "output")
                if run not in self._written:
                    yield from self._chunk(output, where, is_whole=True)
                elif where in self._open and (reason := _reason(output)):  # its chunks had none
                    yield from self._close(where, reason)
            case "on_tool_end":
                yield from self.message(get(data, "output"), where)

    def _chunk(self, message: object, where: Hashable, *, is_whole: bool = False) -> Iterator[Edit]:
        blocks = list(items(message, "content_blocks"))
        if where not in self._open and where in self._closed and not blocks:
            # the usage arrived in a separate chunk after the finish reason
            yield from self._usage(self._closed[where], message)
            return
        if where not in self._open:
            self._made, self._is_ended = self._made + 1, False
            self._open[where] = _OpenMessage(self._made)
        state = self._open[where]
        about = get(message, "response_metadata")
        state.has_provider = state.has_provider or word(about, "model_provider") is not None
        for block in blocks:
            yield from self._block(state, block)
        yield Meta(model=word(about, "model_name") or word(about, "model"))
        yield from self._usage(state, message)
        is_last = is_whole or (get(message, "chunk_position") == "last" and not state.has_provider)
        if (reason := _reason(message)) or is_last:
            yield from self._close(where, reason)

    def _usage(self, state: _OpenMessage, message: object) -> Iterator[Edit]:
        if usage := counts(get(message, "usage_metadata"), USAGE):
            state.usage.update(usage)
            yield Meta(usage=dict(state.usage), of=state.number)

    def _close(self, where: Hashable, reason: str | None) -> Iterator[Edit]:
        state = self._closed[where] = self._open.pop(where)
        self._is_ended = not self._open
        finish = _FINISH.get(reason, reason) if reason else None
        if finish != "length":  # the input of a call may be cut off there
            for call in dict.fromkeys(state.calls.values()):
                yield Set(("call", call, state.number), {"state": CALLED})
        yield Meta(finish_reason="tool_calls" if state.calls and finish in ("stop", None) else finish)

    def _block(self, state: _OpenMessage, block: object) -> Iterator[Edit]:
        kind = word(block, "type") or ""
        match kind:
            case "text" | "reasoning":
                yield Add(self._text_key(state, kind, get(block, "index")), text(block, kind), kind)
                for note in items(block, "annotations"):
                    if url := word(note, "url", LINE_CHARACTERS):
                        yield Open(("source", url), free("source", url=url, title=word(note, "title")))
            case "tool_call_chunk" | "tool_call" | "server_tool_call_chunk" | "server_tool_call":
                state.kind = ""
                yield from self._call(state, block)
            case "server_tool_result":
                if call := word(block, "tool_call_id"):
                    result = ERROR if get(block, "status") == "error" else DONE
                    yield Set(self._calls.get(call), {"output": plain(get(block, "output")), "state": result})
            case "image" | "file" | "audio" | "video":
                state.kind = ""
                self._made += 1
                if (part := _file(block)) is not None:
                    yield Open(("file", self._made), part)

    def _text_key(self, state: _OpenMessage, kind: str, position: object) -> Hashable:
        if isinstance(position, int | str):
            return (state.number, kind, position)
        if kind != state.kind:
            state.kind, state.run = kind, state.run + 1
        return (state.number, state.run)

    def _call(self, state: _OpenMessage, block: object) -> Iterator[Edit]:
        position, given, name = get(block, "index"), word(block, "id"), word(block, "name")
        key = position if isinstance(position, int | str) else None
        call = state.calls.get(key)
        if given is not None and (call is None or (key is None and given != call)):
            call = state.calls[key] = given  # without an index the next chunks are those of the latest call
            if key is None:
                state.calls[given] = given  # stays when a later call takes the key None
            self._calls[call] = ("call", call, state.number)
            yield Open(self._calls[call], tool(call, name or ""))
        arguments = get(block, "args")
        if call is not None:
            more = arguments if isinstance(arguments, str) else as_json(arguments or {})
            yield Add(("call", call, state.number), more, "tool")


def _reason(message: object) -> str | None:
    about = get(message, "response_metadata")
    found = (word(get(about, "incomplete_details"), "reason"), *(word(about, name) for name in _REASONS))
    return next((reason for reason in found if reason not in (None, "in_progress", "cancelled")), None)


def _file(block: object) -> Part | None:
    media_type, url, data = word(block, "mime_type"), word(block, "url", LINE_CHARACTERS), text(block, "base64")
    if url is None and data:
        url = f"data:{media_type or ''};base64,{data}"
    return free("file", media_type=media_type, url=url) if url else None


_MESSAGES = "messages"


class LangGraph(LangChain):
    """LangGraph (`langgraph`): `graph.astream(...)` with `stream_mode="messages"`, alone or among others.

    | event | becomes |
    |---|---|
    | a message or a chunk with its metadata, in every form that modes and subgraphs give it | as for `langchain` |
    | `updates`, `custom`, `values` and the other modes | ignored; one alone, without its name, is a LocalError |
    | the end, with every message ended | the end |
    """

    name = "langgraph"
    _is_ended = True  # a graph need not call a model

    def take(self, event: object) -> Iterator[Edit]:
        if (found := _message_of(event)) is not None:
            message, about = found
            node = word(about, "langgraph_checkpoint_ns") or word(about, "langgraph_node")
            yield from self.message(message, (node, word(about, "ls_run_id")))  # the second is the model's call


def _message_of(event: object) -> tuple[object, Mapping[str, object]] | None:
    """Return the message and its metadata in an item of a graph's stream; None if the item is of another mode.

    Raises LocalError for an item that names no mode and is no message: the answer would be empty.
    """
    if isinstance(event, Mapping) and {"type", "ns", "data"} <= event.keys():  # version="v2"
        event = event["data"] if event["type"] == _MESSAGES else None
    for _ in range(3):  # remove up to three levels: a namespace, a mode, and the pair
        match event:
            case (str() as mode, inner) | (tuple(), str() as mode, inner):
                event = inner if mode == _MESSAGES else None
            case (tuple(), inner):
                event = inner
            case (message, Mapping() as about) if isinstance(get(message, "type"), str):
                return message, about
            case None:
                return None
            case _:
                raise LocalError('the stream of a graph has no messages; pass stream_mode="messages"')
    return None
