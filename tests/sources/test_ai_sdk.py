"""AI SDK UI message chunks: as dicts, as lines, and as bytes that are cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tenuto import Hub
from tenuto.core.errors import TenutoError
from tests.sources.piping import broken, pipe_all
from tests.sources.wires import FIRST, PARTS, SECOND

START: list[dict[str, Any]] = [{"type": "start", "messageId": "m1"}, {"type": "start-step"}]
THOUGHT: list[dict[str, Any]] = [
    {"type": "reasoning-start", "id": "1"},
    {"type": "reasoning-delta", "id": "1", "delta": "Let me "},
    {"type": "reasoning-delta", "id": "1", "delta": "think."},
    {"type": "reasoning-end", "id": "1"},
]
SAID: list[dict[str, Any]] = [
    {"type": "text-start", "id": "1"},
    {"type": "text-delta", "id": "1", "delta": FIRST},
    {"type": "text-delta", "id": "1", "delta": SECOND},
    {"type": "text-end", "id": "1"},
]
CALLED: list[dict[str, Any]] = [
    {"type": "tool-input-start", "toolCallId": "call_1", "toolName": "weather"},
    {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": '{"ci'},
    {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": 'ty": "Oslo"}'},
    {"type": "tool-input-available", "toolCallId": "call_1", "toolName": "weather", "input": {"city": "Oslo"}},
]
META = {"usage": {"inputTokens": 11, "outputTokens": 7}, "model": "gpt-test"}
FINISH: list[dict[str, Any]] = [
    {"type": "finish-step"},
    {"type": "finish", "finishReason": "tool-calls", "messageMetadata": META},
]
ANSWER = [*START, *THOUGHT, *SAID, *CALLED, *FINISH]


def lines_of(chunks: Iterable[object]) -> list[str]:
    """Yield lines as an HTTP client does: without line ends, with the empty ones, and with a comment as heartbeat."""
    return [": ping", *(line for chunk in chunks for line in (f"data: {json.dumps(chunk)}", "")), "data: [DONE]", ""]


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_bytes_may_be_cut_anywhere(hub: Hub, size: int) -> None:
    wire = "".join(f"{line}\n" for line in lines_of([{**chunk, "x": "æ😀} [DONE]"} for chunk in ANSWER])).encode()
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    stored, _ = await pipe_all(hub, pieces, source="ai-sdk")
    assert stored.parts == PARTS


async def test_parts_that_the_package_does_not_send_are_written(hub: Hub) -> None:
    """`test_ai_sdk_package.py` has the others."""
    chunks = [
        *START,
        {"type": "data-progress", "id": "p", "data": {"done": 1}},
        {"type": "data-progress", "id": "p", "data": {"done": 2}},
        {"type": "data-toast", "data": "hi", "transient": True},
        {"type": "tomorrow", "x": 1},
        {"type": "tool-input-error", "toolCallId": "c2", "toolName": "f", "input": 5, "errorText": "no"},
        {"type": "finish"},
    ]
    stored, piped = await pipe_all(hub, chunks)
    assert stored.parts == [
        {"type": "data", "name": "progress", "data": {"done": 2}},
        {"type": "tool", "call": "c2", "name": "f", "input": "5", "state": "error", "output": "no"},
    ]
    assert piped.tool_calls == []


GARBAGE = [
    "data: {broken",
    "data: [[[[",
    'data: {"type": "text-delta", "id": 5, "delta": {"x": 1}}',
    'data: {"type": "tool-input-start", "toolCallId": "c"}',
    'data: {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "x"}',
    'data: {"type": 5}',
    "data: 5",
    "data: " + "[" * 100_000,
    b"data: \xff\xff\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_malformed_events_fail_or_are_ignored(hub: Hub, garbage: object) -> None:
    _, error = await broken(hub, [garbage], TenutoError, source="ai-sdk")
    assert error.code in ("upstream_error", "upstream_ended")


@pytest.mark.parametrize(
    "usage",
    [
        {"inputTokens": 9, "cachedInputTokens": 4, "reasoningTokens": 2},  # the names of the SDK up to version 6
        {"inputTokens": 9, "inputTokenDetails": {"cacheReadTokens": 4}, "outputTokenDetails": {"reasoningTokens": 2}},
    ],
)
async def test_usage_of_each_version_is_read(hub: Hub, usage: dict[str, Any]) -> None:
    _, piped = await pipe_all(hub, [*START, {"type": "finish", "messageMetadata": {"usage": usage}}])
    assert piped.usage == {"input_tokens": 9, "cached_tokens": 4, "reasoning_tokens": 2}
