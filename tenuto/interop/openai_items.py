"""The answers of a turn as output items of OpenAI's Responses.

Layer: interop.

One part of an answer is one output item. `docs/interop.md` has the mapping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from msgspec.structs import replace

from tenuto import Message
from tenuto.core.errors import NotFound
from tenuto.interop.adapter import packed, unpacked
from tenuto.interop.fold import Answer, Json, Part, Place, has_result

REQUEST = "options"  # field of a question's `meta` with the wishes of its request (`with_options`)
CONVERSATION = "conversation"  # field of a question's `meta`: True if its request names a conversation
SERVER = "tenuto"  # `server_label` of tools that the server runs
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")


_ID = re.compile(r"(resp_|chatcmpl-|conv_|msg_|rs_|fc_|mcp_|in_)([A-Za-z0-9_-]{1,600})\Z")
ITEMS = ("msg_", "rs_", "fc_", "mcp_", "in_")  # prefixes of ids of items; those of input begin with `in_`
_RESPONSES = ("resp_", "chatcmpl-")


class Reference(NamedTuple):
    """The meaning of an id: a turn, and a part. A response begins with it, an item is it.

    In the id of an input item it is a message, and the number of the item. A conversation is a channel alone.
    """

    channel: str
    message_id: str
    start: Place = (0, 0)

    def at(self, start: Place = (0, 0)) -> Reference:
        """Return the same turn from another part on; by default from its beginning."""
        return Reference(self.channel, self.message_id, start)

    def id(self, prefix: str = "resp_") -> str:
        """Return the id. Chat completions have the ids of their responses with another prefix."""
        start = [f"{self.start[0]}.{self.start[1]}"] if any(self.start) else []
        return prefix + packed(self.channel, self.message_id, *start)


def conversation_id(channel: str) -> str:
    """Return the id of the conversation that a channel is."""
    return Reference(channel, "").id("conv_")


def reference(
    id: object, param: str | None = None, *, prefixes: Collection[str] = _RESPONSES, kind: str = "response"
) -> Reference:
    """Return the meaning of an id, from the field `param` of a body. Raises NotFound, also for other texts."""
    found, of = _ID.match(id) if isinstance(id, str) else None, None
    if found is not None and found[1] in prefixes:
        with suppress(ValueError):
            channel, message_id, *rest = unpacked(found[2])
            answer, _, index = rest[0].partition(".") if rest else ("0", "", "0")
            of = Reference(channel, message_id, (int(answer), int(index)))
    if of is None or of.id(found[1] if found else "") != id or min(of.start) < 0:
        raise unknown(kind, id, param)
    return of


def unknown(kind: str, id: object, param: str | None = None) -> NotFound:
    """Return the error about an id that this server, or this caller, does not have."""
    detail = f"{kind} {str(id)[:64]!r} does not exist; use an id that this server has returned"
    return NotFound(detail, **({"param": param} if param else {}))


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


def input_items(channel: str, message: Message) -> list[Json]:
    """Return a message of a client, such as the question of a turn, as items."""
    is_answer, content, others = message.role == "assistant", [], []
    for part in message.parts:
        match part:
            case {"type": "text", "text": text}:
                content.append(text_content(text) if is_answer else {"type": "input_text", "text": text})
            case {"type": "file", "url": url} if str(part.get("mediaType")).startswith("image/"):
                content.append({"type": "input_image", "image_url": url, "detail": part.get("detail", "auto")})
            case {"type": "file", "url": url}:
                content.append({"type": "input_file", "file_url": url, "filename": part.get("filename")})
            case {"type": "data", "name": "function_call_output", "data": {"call_id": call, "output": output}}:
                text = output if isinstance(output, str) else json.dumps(output)
                others.append({"type": "function_call_output", "call_id": call, "output": text})
            case {"type": "tool", "call": call, "name": name}:
                others.append(
                    {"type": "function_call", "call_id": call, "name": name, "arguments": part.get("input", "")}
                )
    items = [{"type": "message", "role": message.role, "content": content}] if content else []
    ids = (Reference(channel, message.id, (0, number)).id("in_") for number in range(len(message.parts)))
    return [{"id": id, "status": "completed", **item} for id, item in zip(ids, [*items, *others], strict=False)]


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
        **({"conversation": {"id": conversation_id(of.channel)}} if question.meta.get(CONVERSATION) else {}),
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


def with_options(question: Message, options: Json) -> Message:
    """Return `question` with all that its request asks for in its `meta`, in which the store has the small values."""
    return replace(question, meta={**question.meta, REQUEST: options})


def own_tools(question: Message) -> frozenset[str]:
    """Return the names of the tools that the caller runs."""
    requested = question.meta.get(REQUEST)
    tools = requested.get("tools") if isinstance(requested, dict) else None
    named = [one.get("name") for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []
    return frozenset(name for name in named if isinstance(name, str))
