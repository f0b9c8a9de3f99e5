"""A turn as a chat completion of OpenAI's API, in chunks or in one piece.

Layer: interop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tenuto import Message
from tenuto.interop.fold import Json, SentText
from tenuto.interop.openai_items import Reference
from tenuto.interop.openai_stream import TurnEvents
from tenuto.routes import TurnDelta

_encode = msgspec.json.Encoder().encode
ID = "chatcmpl-"  # prefix of a chat completion's id; the rest is that of the response's id
_APPROVAL = {
    "message": "the agent asks for an approval, which a chat completion cannot give; use the responses API",
    "type": "server_error",
    "code": "approval_required",
    "param": None,
}
_REPLACED = {
    "message": "the answer was changed behind the text that was sent; retrieve the id of the completion as a response",
    "type": "server_error",
    "code": "replaced",
    "param": None,
}


class ChatStream:
    """The chunks of a chat completion (`TurnFormat`)."""

    heartbeat = b":\n\n"

    def __init__(self, question: Message, of: Reference, *, has_usage: bool = False) -> None:
        self.headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        self.is_over = False  # also True if the turn waits for the caller
        self._events = TurnEvents(question, of)
        self._has_usage = has_usage
        self._head: Json = {"id": of.id(ID), "object": "chat.completion.chunk"}
        self._calls = 0
        self._sent = SentText()

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the chunks for `deltas` (`TurnFormat.frame`)."""
        chunks = [chunk for event in self._events.receive(deltas) for chunk in self._chunks(event)]
        self.is_over = self._events.is_over
        body = b"".join([b"data: %b\n\n" % _encode(chunk) for chunk in chunks])
        is_failed = bool(chunks) and "error" in chunks[-1]
        return body + b"data: [DONE]\n\n" if self.is_over and not is_failed else body

    def _chunks(self, event: Json) -> Iterator[Json]:
        match event["type"]:
            case "response.created":
                self._head |= {"created": event["response"]["created_at"], "model": event["response"]["model"]}
                yield self._chunk({"role": "assistant", "content": ""})
            case "response.output_text.delta":
                self._sent.add(event["delta"])
                yield self._chunk({"content": event["delta"]})
            case "response.reasoning_summary_text.delta":
                yield self._chunk({"reasoning_content": event["delta"]})
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                item = event["item"]
                call = {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": ""}}
                self._calls += 1
                yield self._chunk({"tool_calls": [{"index": self._calls - 1, **call}]})
            case "response.function_call_arguments.delta":
                call = {"index": self._calls - 1, "function": {"arguments": event["delta"]}}
                yield self._chunk({"tool_calls": [call]})
            case "response.completed" | "response.incomplete":
                whole = event["response"]
                if _asks_approval(whole):
                    yield {"error": _APPROVAL}
                    return
                if not self._sent.is_all_of(_text_of(whole)):
                    yield {"error": _REPLACED}
                    return
                yield self._chunk({}, finish_reason=_finish_reason(whole))
                if self._has_usage:
                    yield {**self._head, "choices": [], "usage": _usage(whole)}
            case "error":
                yield {"error": event["error"]}

    def _chunk(self, delta: Json, *, finish_reason: str | None = None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def completion(response: Json) -> tuple[int, Json]:
    """Return the status and the body of a chat completion in one piece."""
    if response["error"] is not None or _asks_approval(response):
        return 500, {"error": response["error"] or _APPROVAL}
    output = response["output"]
    calls = [
        {"id": one["call_id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
        for one in output
        if one["type"] == "function_call"
    ]
    message: Json = {"role": "assistant", "content": _text_of(response) or (None if calls else ""), "refusal": None}
    message |= {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(response)}
    return 200, {
        "id": ID + response["id"].removeprefix("resp_"),
        "object": "chat.completion",
        "created": response["created_at"],
        "model": response["model"],
        "choices": [choice],
        "usage": _usage(response),
    }


def _text_of(response: Json) -> str:
    output = response["output"]
    return "".join(content["text"] for one in output if one["type"] == "message" for content in one["content"])


def _asks_approval(response: Json) -> bool:
    return any(one["type"] == "mcp_approval_request" for one in response["output"])


def _finish_reason(response: Json) -> str:
    output = response["output"]
    return "tool_calls" if output and output[-1]["type"] == "function_call" else "stop"


def _usage(response: Json) -> Any:
    usage = response["usage"]
    if usage is None:
        return None
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": usage["input_tokens_details"],
        "completion_tokens_details": usage["output_tokens_details"],
    }
