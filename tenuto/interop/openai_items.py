"""The answers of a turn as output items of OpenAI's Responses.

Layer: interop.

One part of an answer is one output item. `docs/interop.md` has the mapping.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace

from tenuto import Message
from tenuto.core.errors import NotFound

Json = dict[str, Any]
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


@dataclass
class Part:
    """A part of an answer, with its text in the pieces in which it arrived."""

    value: Json
    texts: list[str] = field(default_factory=list)
    length: int = 0  # code points of `texts`
    sent: int = 0  # number of `texts` that the walk has sent

    def text(self) -> str:
        """Return the text of a text or a reasoning, or the input of a tool."""
        if len(self.texts) > 1:
            self.texts[: self.sent] = ["".join(self.texts[: self.sent])] if self.sent else []
            self.sent = min(self.sent, 1)
        return "".join(self.texts)

    def add(self, text: str) -> None:
        """Add text at the end."""
        self.texts.append(text)
        self.length += len(text)

    def replace(self, value: Json) -> None:
        """Take a new value. Text already sent cannot be withdrawn if the new value does not begin with it."""
        before, after = self.text(), text_of(value)
        self.value, self.length = value, len(after)
        sent_chars = len("".join(self.texts[: self.sent]))
        if after.startswith(before):
            self.texts = [before[:sent_chars], after[sent_chars:]]
            self.sent = 1
        else:
            self.texts, self.sent = [after], 1 if sent_chars else 0


@dataclass
class Answer:
    """One answer of the turn."""

    id: str
    parts: list[Part] = field(default_factory=list)
    status: str = "streaming"
    reason: str | None = None
    meta: Json = field(default_factory=dict)


def text_of(part: Json) -> str:
    """Return the text of a part that grows; empty for other parts."""
    return str(part.get("input" if part["type"] == "tool" else "text", ""))


def part_of(value: Json) -> Part:
    """Return a part of which no text was sent."""
    text = text_of(value)
    return Part(value, [text] if text else [], len(text))


def has_result(part: Json) -> bool:
    """Return whether a tool part has its result."""
    return "output" in part or part.get("state") in ("done", "error", "denied")


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


def item_of(kind: str, answer: Answer, index: int, *, state: str = "completed") -> Json:
    """Return the output item of a part; `state` is `in_progress`, `completed` or `incomplete`."""
    part = answer.parts[index]
    value = part.value
    text = part.text() if state != "empty" else ""
    status = "in_progress" if state == "empty" else state
    match kind:
        case "message":
            content = [] if state == "empty" else [text_content(text)]
            item: Json = {"id": f"msg_{answer.id}_{index}", "type": kind, "role": "assistant", "content": content}
            return {**item, "status": status}
        case "reasoning":
            summary = [] if state == "empty" else [{"type": "summary_text", "text": text}]
            return {"id": f"rs_{answer.id}_{index}", "type": kind, "summary": summary, "status": status}
        case "function_call":
            function = {"call_id": value["call"], "name": value["name"], "arguments": text, "status": status}
            return {"id": f"fc_{answer.id}_{index}", "type": kind, **function}
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
    return {"id": f"mcp_{answer.id}_{index}", "type": "mcp_call", **call, "status": status}


def text_content(text: str) -> Json:
    """Return the content of a message item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response(
    question: Message, of: Reference, *, status: str, output: list[Json], answers: list[Answer], error: Json | None
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
        "incomplete_details": None,
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
