"""AI SDK UI message chunks that the package does not send: of apps, of other releases, and malformed ones."""

from __future__ import annotations

import pytest

from tenuto import Hub
from tenuto.core.errors import TenutoError
from tests.sources.piping import broken, pipe_all


async def test_parts_that_the_package_does_not_send_are_written(hub: Hub) -> None:
    """`test_ai_sdk_package.py` has the others."""
    chunks = [
        {"type": "start"},
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


async def test_usage_of_each_version_is_read(hub: Hub) -> None:
    old = {"inputTokens": 9, "cachedInputTokens": 4, "reasoningTokens": 2}  # up to version 6
    new = {"inputTokens": 9, "inputTokenDetails": {"cacheReadTokens": 4}, "outputTokenDetails": {"reasoningTokens": 2}}
    for usage in (old, new):
        _, piped = await pipe_all(hub, [{"type": "start"}, {"type": "finish", "messageMetadata": {"usage": usage}}])
        assert piped.usage == {"input_tokens": 9, "cached_tokens": 4, "reasoning_tokens": 2}
