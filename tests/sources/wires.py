"""The bytes of each provider for the same answer.

Layer: tests.

Every script is the answer that `ANSWER` describes: reasoning, text with an emoji whose halves come
in two events, a tool call whose input comes in three, and its usage.
"""

from __future__ import annotations

import json
from typing import Any

THOUGHT = "Let me think."
TEXT = "Hello 😀, world"
INPUT = '{"city": "Oslo"}'
FIRST, SECOND = "Hello \ud83d", "\ude00, world"  # JSON carries halves as escapes, which is how they arrive

TOOL = {"type": "tool", "call": "call_1", "name": "weather", "input": INPUT, "state": "called"}
PARTS = [{"type": "reasoning", "text": THOUGHT}, {"type": "text", "text": TEXT}, TOOL]


def sse(data: object, event: str | None = None) -> bytes:
    """Return one server-sent event; escapes keep halves of surrogate pairs unchanged."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


# OpenAI, Responses ------------------------------------------------------------------------------------------------


class Responses:
    """Numbers the events of one response, as OpenAI does."""

    def __init__(self, response: str = "resp_1") -> None:
        self.number = -1
        self.response = response

    def event(self, kind: str, **fields: Any) -> bytes:
        self.number += 1
        return sse({"type": kind, "sequence_number": self.number, **fields}, kind)

    def about(self, status: str, **fields: Any) -> dict[str, Any]:
        about: dict[str, Any] = {"id": self.response, "object": "response", "created_at": 1, "status": status}
        about |= {"model": "gpt-test", "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        about |= {"error": None, "incomplete_details": None, "instructions": None, "metadata": {}}
        return about | fields

    def begin(self) -> list[bytes]:
        return [self.event(f"response.{one}", response=self.about("in_progress")) for one in ("created", "in_progress")]

    def thought(self, place: int = 0) -> list[bytes]:
        item = {"id": "rs_1", "type": "reasoning", "summary": []}
        where: dict[str, Any] = {"item_id": "rs_1", "output_index": place, "summary_index": 0}
        part = {"type": "summary_text", "text": THOUGHT}
        return [
            self.event("response.output_item.added", output_index=place, item=item),
            self.event("response.reasoning_summary_part.added", **where, part={"type": "summary_text", "text": ""}),
            self.event("response.reasoning_summary_text.delta", **where, delta="Let me "),
            self.event("response.reasoning_summary_text.delta", **where, delta="think."),
            self.event("response.reasoning_summary_text.done", **where, text=THOUGHT),
            self.event("response.reasoning_summary_part.done", **where, part=part),
            self.event("response.output_item.done", output_index=place, item={**item, "summary": [part]}),
        ]

    def said(self, place: int = 1, pieces: tuple[str, ...] = (FIRST, SECOND)) -> list[bytes]:
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        where: dict[str, Any] = {"item_id": "msg_1", "output_index": place, "content_index": 0}
        whole = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16")
        part = {"type": "output_text", "text": whole, "annotations": []}
        done = {**item, "status": "completed", "content": [part]}
        return [
            self.event("response.output_item.added", output_index=place, item=item),
            self.event("response.content_part.added", **where, part={**part, "text": ""}),
            *(self.event("response.output_text.delta", **where, delta=piece, logprobs=[]) for piece in pieces),
            self.event("response.output_text.done", **where, text=whole, logprobs=[]),
            self.event("response.content_part.done", **where, part=part),
            self.event("response.output_item.done", output_index=place, item=done),
        ]

    def called(self, place: int = 2) -> list[bytes]:
        where: dict[str, Any] = {"item_id": "fc_1", "output_index": place}
        item, pieces = self.call(""), ('{"ci', 'ty": ', '"Oslo"}')
        return [
            self.event("response.output_item.added", output_index=place, item={**item, "status": "in_progress"}),
            *(self.event("response.function_call_arguments.delta", **where, delta=piece) for piece in pieces),
            self.event("response.function_call_arguments.done", **where, arguments=INPUT, name="weather"),
            self.event("response.output_item.done", output_index=place, item=self.call(INPUT)),
        ]

    def call(self, given: str) -> dict[str, Any]:
        item = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather"}
        return {**item, "arguments": given, "status": "completed"}

    def completed(self, kind: str = "completed", output: list[Any] | None = None, **fields: Any) -> list[bytes]:
        usage: dict[str, Any] = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
        usage["input_tokens_details"] = {"cached_tokens": 3, "cache_write_tokens": 4}
        usage["output_tokens_details"] = {"reasoning_tokens": 2}
        about = self.about(kind, usage=usage, output=output or [], **fields)
        return [self.event(f"response.{kind}", response=about)]


def responses_answer() -> list[bytes]:
    wire = Responses()
    return [*wire.begin(), *wire.thought(), *wire.said(), *wire.called(), *wire.completed(output=[wire.call(INPUT)])]


# OpenAI, Chat Completions -----------------------------------------------------------------------------------------


def chat(delta: dict[str, Any] | None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test"}
    return sse({**about, "choices": choices, **fields})


def chat_call(piece: str, **fields: Any) -> bytes:
    name = {"name": "weather"} if fields else {}
    return chat({"tool_calls": [{"index": 0, **fields, "function": {**name, "arguments": piece}}]})


_COUNTS = {"input": 11, "output": 7, "total": 18, "cached": 3, "cache_write": 4, "reasoning": 2}
RESPONSES_USAGE = {f"{name}_tokens": count for name, count in _COUNTS.items()}
CHAT_USAGE = RESPONSES_USAGE
_CHAT_USAGE: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
_CHAT_USAGE["prompt_tokens_details"] = {"cached_tokens": 3, "cache_write_tokens": 4}
_CHAT_USAGE["completion_tokens_details"] = {"reasoning_tokens": 2}
DONE = sse("[DONE]")


def chat_said(*pieces: str) -> list[bytes]:
    return [chat({"role": "assistant", "content": ""}), *(chat({"content": piece}) for piece in pieces)]


def chat_called() -> list[bytes]:
    return [chat_call("", id="call_1", type="function"), *(chat_call(one) for one in ('{"ci', 'ty": ', '"Oslo"}'))]


def chat_end(finish: str = "stop") -> list[bytes]:
    return [chat({}, finish), chat(None, usage=_CHAT_USAGE), DONE]


def chat_answer(*, halves: bool = True, thought: bool = True) -> list[bytes]:
    pieces = (FIRST, SECOND) if halves else ("Hello 😀", ", world")
    thoughts = [chat({"reasoning_content": one}) for one in ("Let me ", "think.")] if thought else []
    return [*thoughts, *chat_said(*pieces), *chat_called(), *chat_end("tool_calls")]


# Anthropic --------------------------------------------------------------------------------------------------------


def claude(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def claude_begin() -> list[bytes]:
    usage = {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    message: Any = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    return [claude("message_start", message=message), claude("ping")]


def claude_block(place: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        claude("content_block_start", index=place, content_block=block),
        *(claude("content_block_delta", index=place, delta=delta) for delta in deltas),
        claude("content_block_stop", index=place),
    ]


def claude_thought(place: int = 0) -> list[bytes]:
    deltas = ({"type": "thinking_delta", "thinking": one} for one in ("Let me ", "think."))
    signature = {"type": "signature_delta", "signature": "c2ln"}
    return claude_block(place, {"type": "thinking", "thinking": "", "signature": ""}, *deltas, signature)


def claude_said(*pieces: str, place: int = 1) -> list[bytes]:
    return claude_block(place, {"type": "text", "text": ""}, *({"type": "text_delta", "text": one} for one in pieces))


def claude_called(place: int = 2) -> list[bytes]:
    deltas = ({"type": "input_json_delta", "partial_json": one} for one in ("", '{"ci', 'ty": ', '"Oslo"}'))
    return claude_block(place, {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}, *deltas)


def claude_end(reason: str = "end_turn") -> list[bytes]:
    delta, usage = {"stop_reason": reason, "stop_sequence": None}, {"input_tokens": 11, "output_tokens": 7}
    return [claude("message_delta", delta=delta, usage=usage), claude("message_stop")]


CLAUDE_USAGE = {"input_tokens": 16, "output_tokens": 7, "cached_tokens": 3, "cache_write_tokens": 2}


def claude_answer() -> list[bytes]:
    said = claude_said(FIRST, SECOND)
    return [*claude_begin(), *claude_thought(), *said, *claude_called(), *claude_end("tool_use")]


# Google -----------------------------------------------------------------------------------------------------------


def gemini(*parts: dict[str, Any], finish: str | None = None, usage: bool = False, **fields: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **fields}
    if finish is not None:
        candidate["finishReason"] = finish
    chunk: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-test", "responseId": "r1"}
    if usage:
        counts = {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 20}
        chunk["usageMetadata"] = {**counts, "thoughtsTokenCount": 2, "cachedContentTokenCount": 3}
    return sse(chunk)


GEMINI_USAGE = {"input_tokens": 11, "output_tokens": 9, "total_tokens": 20, "cached_tokens": 3, "reasoning_tokens": 2}


def gemini_answer() -> list[bytes]:
    return [
        *(gemini({"text": one, "thought": True}) for one in ("Let me ", "think.")),
        *(gemini({"text": one}) for one in ("Hello 😀", ", world")),
        gemini({"functionCall": {"id": "call_1", "name": "weather", "args": {"city": "Oslo"}}}),
        gemini({"text": ""}, finish="STOP", usage=True),
    ]


def interaction(*events: tuple[str, dict[str, Any]], ids: bool = True) -> list[bytes]:
    """Return the events of the Interactions API, each with an id or without."""
    numbered = enumerate(events)
    return [
        sse({"event_type": kind, **fields, **({"event_id": f"e{n}"} if ids else {})}) for n, (kind, fields) in numbered
    ]


def interaction_step(place: int, step: dict[str, Any], *deltas: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("step.start", {"index": place, "step": step}),
        *(("step.delta", {"index": place, "delta": delta}) for delta in deltas),
        ("step.stop", {"index": place}),
    ]


def interaction_state(status: str, **fields: Any) -> dict[str, Any]:
    """Return an interaction as its server describes it."""
    return {"id": "int_1", "object": "interaction", "status": status, "model": "gemini-test", **fields}


_INTERACTION_COUNTS = {"input": 11, "output": 7, "cached": 3, "thought": 2}
INTERACTION_USAGE = {"total_tokens": 20, **{f"total_{name}_tokens": n for name, n in _INTERACTION_COUNTS.items()}}


def interaction_answer(*, ids: bool = True) -> list[bytes]:
    thought = [{"type": "thought_summary", "content": {"type": "text", "text": text}} for text in ("Let me ", "think.")]
    said = [{"type": "text", "text": text} for text in ("Hello 😀", ", world")]
    call = {"type": "function_call", "id": "call_1", "name": "weather", "arguments": {}}
    given = [{"type": "arguments_delta", "arguments": text} for text in ('{"city"', ': "Oslo"}')]
    return interaction(
        ("interaction.created", {"interaction": interaction_state("in_progress")}),
        ("interaction.status_update", {"interaction_id": "int_1", "status": "in_progress"}),
        *interaction_step(0, {"type": "thought"}, *thought, {"type": "thought_signature", "signature": "c2ln"}),
        *interaction_step(1, {"type": "model_output"}, *said),
        *interaction_step(2, call, *given),
        ("interaction.completed", {"interaction": interaction_state("requires_action", usage=INTERACTION_USAGE)}),
        ids=ids,
    )
