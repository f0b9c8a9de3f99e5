"""Recognises the source of a stream by the module of its class, else by the shape of its first event.

Layer: sources.

This needs no import of an SDK: a stream of an SDK proves that the SDK is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from tenuto.core.errors import LocalError, TenutoError
from tenuto.sources.ai_sdk import STARTS, AISDKSource, chunk_of
from tenuto.sources.anthropic import Anthropic
from tenuto.sources.google_genai import GoogleGenAI, GoogleInteractions
from tenuto.sources.langchain import AI, LangChain, LangGraph
from tenuto.sources.openai import KEEPALIVE, OpenAIAgents, OpenAIChat, OpenAIResponses
from tenuto.sources.pydantic_ai import PydanticAI
from tenuto.sources.reading import Source, get
from tenuto.sources.text import PlainText, SSEText, begins_frames, is_frame_object

_KINDS: tuple[type[Source], ...] = (
    *(PlainText, OpenAIResponses, OpenAIChat, Anthropic, GoogleGenAI, GoogleInteractions),
    *(OpenAIAgents, PydanticAI, LangChain, LangGraph, AISDKSource),
    SSEText,
)
SOURCES: dict[str, type[Source]] = {kind.name: kind for kind in _KINDS}

# Sources by the package that defines the class of a stream, or the function of a generator. The first match counts.
_BY_MODULE: tuple[tuple[str, type[Source]], ...] = (
    ("openai.lib.streaming.responses", OpenAIResponses),
    ("openai.lib.streaming.chat", OpenAIChat),
    ("anthropic", Anthropic),
    ("google.genai._gaos", GoogleInteractions),
    ("google.genai", GoogleGenAI),
    ("agents", OpenAIAgents),
    ("pydantic_ai", PydanticAI),
    ("langgraph", LangGraph),
    ("langchain_core", LangChain),
)
_ANTHROPIC = ("message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "ping")
_AGENTS = ("raw_response_event", "run_item_stream_event", "agent_updated_stream_event")


def by_stream(stream: object) -> Source | None:
    """Return the source of `stream` if its class, or the function behind a generator, is of a known package."""
    for module in _modules(stream):
        for package, kind in _BY_MODULE:
            if module == package or module.startswith(f"{package}."):
                return kind()
    return None


def by_first_event(event: object, option: str = "source") -> Source | None:
    """Return the source whose events have the form of `event`; None: it is a keep-alive.

    Raises LocalError for another form. The errors of a source name `option`, the caller's option for it.
    """
    if get(event, "type") == KEEPALIVE:
        return None
    kind = _kind_of(event)
    if kind is SSEText:
        return SSEText(is_certain=not isinstance(event, str), option=option)  # a `str` may be plain text after all
    if kind is PlainText:
        return PlainText(unnamed=option)
    if kind is None:
        raise LocalError(
            f"stream of {type(event).__name__} items is not of a known source; name it: {option} is one of "
            f"{', '.join(SOURCES)}"
        )
    return kind()


def _modules(stream: object) -> Iterator[str]:
    """Yield the names of the modules that define the classes of `stream`, or the function of a generator."""
    if inspect.isasyncgen(stream):
        code, frame = stream.ag_code, stream.ag_frame
    elif inspect.isgenerator(stream):
        code, frame = stream.gi_code, stream.gi_frame
    else:
        yield from (kind.__module__ for kind in type(stream).__mro__)
        return
    # those of SDKs with `text` in their names (`text_stream`, `stream_text`) yield plain text instead of events
    if frame is not None and "text" not in code.co_name:
        yield str(frame.f_globals.get("__name__", ""))


def _kind_of(event: object) -> type[Source] | None:
    """Return the kind of source whose events look like `event`. The order counts: many SDKs' events have a `type`."""
    if isinstance(event, str | bytes | bytearray | memoryview):
        return _kind_of_line(event)
    if isinstance(event, tuple):
        return LangGraph
    if is_frame_object(event):
        return SSEText
    if get(event, "event_kind") is not None or get(event, "kind") == "response":
        return PydanticAI
    name = get(event, "type")
    if isinstance(event, Mapping) and isinstance(event.get("event"), str) and "run_id" in event:
        return LangChain
    if get(event, "choices") is not None or name == "chunk":  # the latter from the helper `stream()` of openai
        return OpenAIChat
    if isinstance(get(event, "event_type"), str):
        return GoogleInteractions
    if not isinstance(name, str):
        return GoogleGenAI if hasattr(event, "candidates") and hasattr(event, "usage_metadata") else None
    if name.startswith("response."):
        return OpenAIResponses
    if name in _AGENTS:
        return OpenAIAgents
    if name in AI:
        return LangChain
    if name in _ANTHROPIC:
        return Anthropic
    return AISDKSource if isinstance(event, Mapping) and (name in STARTS or name.startswith("data-")) else None


def _kind_of_line(event: str | bytes | bytearray | memoryview) -> type[Source] | None:
    """Return the kind of a stream of lines by its first event; else PlainText for text, and None for bytes."""
    line = (event if isinstance(event, str) else bytes(event).decode("utf-8", "replace")).lstrip("\r\n")
    try:
        chunk = chunk_of(line.partition("\n")[0])
    except TenutoError:
        chunk = None
    if isinstance(chunk, Mapping) and chunk.get("type") in STARTS:
        return AISDKSource
    if begins_frames(line):
        return SSEText
    return PlainText if isinstance(event, str) else None
