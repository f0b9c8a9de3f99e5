"""The answers of a turn as output items of OpenAI's Responses.

Layer: interop.

One part of an answer is one output item. `docs/interop.md` has the mapping.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection
from typing import NamedTuple

from msgspec.structs import replace

from tenuto import Message
from tenuto.core.errors import NotFound
from tenuto.interop.fold import Answer, Json, Part, has_result

Place = tuple[int, int]  # the number of an answer in its turn, and the index of a part
REQUEST = "asked"  # field of a question's `meta`: what the request that brought it asks for (`with_asked`)
SERVER = "tenuto"  # `server_label` of tools that the server runs
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")


class Reference(NamedTuple):
    """The meaning of a response id: a turn, and the part with which the response begins."""

    channel: str
    message_id: str
    start: Place = (0, 0)

    def id(self, prefix: str = "resp_") -> str:
        """Return the response id. Chat completions have the same ids with another prefix."""
        start = f"\n{self.start[0]}.{self.start[1]}" if any(self.start) else ""
        text = f"{self.channel}\n{self.message_id}{start}"
        return prefix + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def reference(response_id: object, param: str | None = None) -> Reference:
    """Return the meaning of a response id, from the field `param` of a body. Raises NotFound, also for other texts."""
    given = str(response_id)[:600]
    encoded = given.removeprefix("resp_").removeprefix("chatcmpl-")
    try:
        text = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True).decode()
        channel, message_id, *rest = text.split("\n")
        answer, _, index = rest[0].partition(".") if rest else ("0", "", "0")
        found = Reference(channel, message_id, (int(answer), int(index)))
    except (binascii.Error, ValueError):
        found = Reference("", "")
    if encoded == given or found.id("") != encoded or min(found.start) < 0:
        detail = f"response {given[:64]!r} does not exist; use the id of a response of this server"
        raise NotFound(detail, **({"param": param} if param else {}))
    return found


def kind_of(part: Json, own_tools: Collection[str]) -> str:
    """Return the type of the output item of a part; empty for a part that has none."""
    match part["type"]:
        case "text":
            return "message"
        case "reasoning":
            return "reasoning"
        case "tool":
            return "function_call" if part["name"] in own_tools else "mcp_call"
    return ""


_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "mcp_call": "mcp_"}


def item_of(kind: str, part: Part, of: Reference, *, state: str = "completed") -> Json:
    """Return the output item of the part at `of`; `state` is `empty`, `in_progress`, `completed` or `incomplete`."""
    value = part.value
    text = part.text() if state != "empty" else ""
    status = "in_progress" if state == "empty" else state
    head = {"id": of.id(_PREFIXES[kind]), "type": kind}
    match kind:
        case "message":
            content = [] if state == "empty" else [text_content(text)]
            return {**head, "role": "assistant", "content": content, "status": status}
        case "reasoning":
            return {**head, "summary": [] if state == "empty" else [summary(text)], "status": status}
        case "function_call":
            return {**head, "call_id": value["call"], "name": value["name"], "arguments": text, "status": status}
    call: Json = {"server_label": SERVER, "name": value["name"], "arguments": text, "output": None, "error": None}
    if state != "empty" and has_result(value):
        output = value.get("output")
        shown = output if isinstance(output, str) else json.dumps(output)
        if value.get("state") in ("error", "denied"):
            text = "denied" if value["state"] == "denied" else shown
            call["error"] = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
        else:
            call["output"] = shown
        status = "failed" if call["error"] is not None else "completed"
    return {**head, **call, "status": status}


def summary(text: str) -> Json:
    """Return the summary of a reasoning item."""
    return {"type": "summary_text", "text": text}


def text_content(text: str) -> Json:
    """Return the content of a message item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response(
    question: Message,
    of: Reference,
    *,
    status: str,
    output: list[Json],
    answers: list[Answer],
    error: Json | None,
    is_steered: bool = False,
) -> Json:
    """Return the `Response`."""
    requested = question.meta.get(REQUEST)
    requested = requested if isinstance(requested, dict) else {}
    author = next((one.meta["model"] for one in answers if "model" in one.meta), None)
    return {
        "id": of.id(),
        "object": "response",
        "created_at": question.created_at // 1000,
        "status": status,
        "background": requested.get("background", False),
        "max_output_tokens": requested.get("max_output_tokens"),
        "reasoning": requested.get("reasoning"),
        "text": {"format": requested.get("response_format") or {"type": "text"}},
        "error": error,
        "incomplete_details": {"reason": "steered"} if is_steered else None,
        "instructions": requested.get("instructions"),
        "metadata": requested.get("metadata") or {},
        "model": requested.get("model") or (author if isinstance(author, str) else ""),
        "output": output,
        "parallel_tool_calls": requested.get("parallel_tool_calls", True),
        "previous_response_id": requested.get("previous_response_id"),
        "temperature": requested.get("temperature"),
        "tool_choice": requested.get("tool_choice") or "auto",
        "tools": requested.get("tools") or [],
        "top_p": requested.get("top_p"),
        "usage": usage(answers),
    }


def usage(answers: list[Answer]) -> Json | None:
    """Return the tokens that the answers name in `meta.usage`; None if they name none."""
    found = [one.meta["usage"] for one in answers if isinstance(one.meta.get("usage"), dict)]

    def total(name: str) -> int:
        return sum(one[name] for one in found if isinstance(one.get(name), int))

    if not found:
        return None
    counts = {name: total(name) for name in _COUNTS}
    return {
        **counts,
        "total_tokens": counts["total_tokens"] or counts["input_tokens"] + counts["output_tokens"],
        "input_tokens_details": {"cached_tokens": total("cached_tokens")},
        "output_tokens_details": {"reasoning_tokens": total("reasoning_tokens")},
    }


def with_asked(question: Message, asked: Json) -> Message:
    """Return `question` with all that its request asks for in its `meta`, in which the store has the small values."""
    return replace(question, meta={**question.meta, REQUEST: asked})


def own_tools(question: Message) -> frozenset[str]:
    """Return the names of the tools that the caller runs."""
    requested = question.meta.get(REQUEST)
    tools = requested.get("tools") if isinstance(requested, dict) else None
    named = [one.get("name") for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []
    return frozenset(name for name in named if isinstance(name, str))
