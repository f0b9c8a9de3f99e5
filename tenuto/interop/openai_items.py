"""The ids of OpenAI's API, and the input of a request: messages, and replies to the agent.

Layer: interop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tenuto import Message
from tenuto.core.errors import InvalidRequest, NotFound
from tenuto.interop.adapter import output_part, packed, stored_parts, unpacked
from tenuto.interop.fold import Json, Place
from tenuto.routes import OUTPUT, PARTICIPANT

CONVERSATION = "conversation"  # field of a question's `meta`: True if its request names a conversation
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_ID = re.compile(r"(resp_|chatcmpl-|conv_|msg_|rs_|fc_|mcp_|in_)([A-Za-z0-9_-]{1,600})\Z")
ITEMS = ("msg_", "rs_", "fc_", "mcp_", "in_")  # prefixes of ids of items; those of input begin with `in_`
_RESPONSES = ("resp_", "chatcmpl-")


class Reference(NamedTuple):
    """The meaning of an id: a turn, and a part. A response begins with it, an item is it.

    In the id of an input item it is a message, and the number of the item. A conversation is a channel alone.
    `attempt` is the number of superseded attempts before the part, which may have had a part at its place.
    """

    channel: str
    message_id: str
    start: Place = (0, 0)
    attempt: int = 0

    def at(self, start: Place = (0, 0), attempt: int = 0) -> Reference:
        """Return the same turn from another part on; by default from its beginning."""
        return Reference(self.channel, self.message_id, start, attempt)

    def id(self, prefix: str = "resp_") -> str:
        """Return the id. Chat completions have the ids of their responses with another prefix."""
        start = [".".join(map(str, (*self.start, self.attempt)[: 3 if self.attempt else 2]))] if any(self.start) else []
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
            answer, index, *more = map(int, rest[0].split(".") if rest else (0, 0))
            of = Reference(channel, message_id, (answer, index), *more[:1])
    if of is None or of.id(found[1] if found else "") != id or min(*of.start, of.attempt) < 0:
        raise unknown(kind, id, param)
    return of


def unknown(kind: str, id: object, param: str | None = None) -> NotFound:
    """Return the error about an id that this server, or this caller, does not have."""
    detail = f"{kind} {str(id)[:64]!r} does not exist; use an id that this server has returned"
    return NotFound(detail, **({"param": param} if param else {}))


def input_items(channel: str, message: Message) -> list[Json]:
    """Return a message of a client, such as the question of a turn, as items."""
    content, others = _blocks(message.parts, is_answer=message.role == "assistant"), []
    for part in message.parts:
        match part:
            case {"type": "data", "name": name, "data": {"call_id": call, "output": output}} if name == OUTPUT:
                blocks = _blocks(output) if isinstance(output, list) else []
                shown = output if isinstance(output, str) else blocks or json.dumps(output)
                others.append({"type": "function_call_output", "call_id": call, "output": shown})
            case {"type": "tool", "call": call, "name": name}:
                arguments = part.get("input", "")
                others.append({"type": "function_call", "call_id": call, "name": name, "arguments": arguments})
    items = [{"type": "message", "role": message.role, "content": content}] if content else []
    ids = (Reference(channel, message.id, (0, number)).id("in_") for number in range(len(message.parts)))
    return [{"id": id, "status": "completed", **item} for id, item in zip(ids, [*items, *others], strict=False)]


def _blocks(parts: list[Json], *, is_answer: bool = False) -> list[Json]:
    """Return the texts and files among `parts` as content."""
    content: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": text}:
                content.append(text_content(text) if is_answer else {"type": "input_text", "text": text})
            case {"type": "file", "url": url} if str(part.get("mediaType")).startswith("image/"):
                content.append({"type": "input_image", "image_url": url, "detail": part.get("detail", "auto")})
            case {"type": "file", "url": url}:
                content.append({"type": "input_file", "file_url": url, "filename": part.get("filename")})
    return content


def text_content(text: str) -> Json:
    """Return the content of a message item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def error_of(problem: Json) -> Json:
    """Return a problem as an error of OpenAI's API."""
    status = problem["status"]
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message, code, param = problem["detail"] or problem["title"], problem["code"], problem.get("param")
    if code == NotFound.code and param == "previous_response_id":
        code = "previous_response_not_found"  # clients begin a new chain after it
    return {"message": message, "type": kind, "code": code, "param": param}


# -- requests: messages, and replies to the agent ------------------------------------------------------------------

Role = Literal["user", "assistant", "system", "tool"]
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# Items of earlier responses, which a client may send again. The store has them.
_RESENT = ("reasoning", "function_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "item_reference")
MAX_EARLIER = 200  # messages before the question


@dataclass
class GivenInput:
    """The input of a request: earlier messages, the question, and replies to the agent."""

    earlier: list[tuple[Role, list[Json]]] = field(default_factory=list)  # role and parts
    parts: list[Json] = field(default_factory=list)  # of the question
    outputs: dict[str, Any] = field(default_factory=dict)  # outputs of the caller's tools, by call
    approvals: dict[str, tuple[bool, str | None]] = field(default_factory=dict)  # by request id: approved?, reason

    def add(self, role: Role, parts: list[Json]) -> None:
        """Add a message. The last messages of the user are the question."""
        if role == "user":
            self.parts += parts
            return
        if self.parts:
            self.earlier.append(("user", self.parts))
            self.parts = []
        if role == "assistant":
            self.earlier += [("user", [output_part(*one)]) for one in self.outputs.items()]
            self.outputs.clear()
        if parts:
            self.earlier.append((role, parts))

    def add_calls(self, parts: list[Json]) -> None:
        """Add calls of the caller's tools: to the answer before, if no message of the user or output is between."""
        if self.earlier and self.earlier[-1][0] == "assistant" and not self.parts and not self.outputs:
            self.earlier[-1][1].extend(parts)
        else:
            self.add("assistant", parts)


def check_fields(body: Json) -> None:
    """Raise InvalidRequest unless the fields that `options_in` does not check have their types."""
    for name, kind, expected in (("stream", bool, "true or false"), ("stream_options", dict, "an object")):
        if not isinstance(value := body.get(name), kind | None):
            raise InvalidRequest(f"{name} must be {expected}, got {value!r:.80}", param=name)
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        detail = f"metadata must be an object whose values are texts, got {metadata!r:.80}"
        raise InvalidRequest(detail, param="metadata")


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Let an InvalidRequest name the field `name` of the request, unless it names another one."""
    try:
        yield
    except InvalidRequest as error:
        error.details.setdefault("param", name)
        raise


@_about("input")
def given_in_responses(body: Json) -> GivenInput:
    """Return the input of `POST /responses`. Raises InvalidRequest."""
    check_fields(body)
    value = body.get("input")
    items: Any = [{"role": "user", "content": value}] if isinstance(value, str) else value
    # the store has the calls of earlier responses
    is_first = body.get("previous_response_id") is None and body.get("conversation") is None
    given = _given(items, is_first=is_first)
    if is_first:
        calls = [item.get("call_id") for item in items if item.get("type") == "function_call"]
        unknown = [*given.approvals, *(call for call in given.outputs if call not in calls)]
        if unknown:
            detail = f"the input replies to {unknown[0][:64]!r}, but the request names no response that has it"
            raise InvalidRequest(f"{detail}; send the previous_response_id of that response")
    return _checked(given)


@_about("items")
def given_in_items(items: list[Json]) -> list[tuple[Role, list[Json]]]:
    """Return the items of a conversation as messages. Raises InvalidRequest."""
    given = _given(items, is_first=True)
    if given.approvals:
        raise InvalidRequest("an approval is no item of a conversation; send it as the input of a response")
    given.add("assistant", [])  # the end, so that messages of the user and outputs are earlier ones
    return given.earlier


def _given(items: Any, *, is_first: bool) -> GivenInput:
    if not isinstance(items, list) or not items or not all(isinstance(one, dict) for one in items):
        raise InvalidRequest(f"input must be a text or a list of at least one item, got {items!r:.80}")
    given = GivenInput()
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            given.add(_role(item.get("role")), stored_parts(item.get("content"), is_strict=True))
        elif kind == "function_call_output":
            given.outputs[_text(item, "call_id")] = _output(item.get("output"))
        elif kind == "mcp_approval_response":
            approve, reason = item.get("approve"), item.get("reason")
            if not isinstance(approve, bool):
                raise InvalidRequest(f"approve must be true or false, got {approve!r:.80}")
            approved = approve, reason if isinstance(reason, str) else None
            given.approvals[_text(item, "approval_request_id")] = approved
        elif kind == "function_call" and is_first:
            given.add_calls([_call({"id": _text(item, "call_id"), "function": item})])
        elif kind not in _RESENT:
            raise InvalidRequest(f"an item of input has the type {kind!r:.80}; send messages, outputs and approvals")
    return given


@_about("messages")
def given_in_chat(body: Json) -> GivenInput:
    """Return the messages of `POST /chat/completions`. Raises InvalidRequest."""
    check_fields(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InvalidRequest(f"messages must be a list of at least one message, got {messages!r:.80}")
    given = GivenInput()
    called: set[str] = set()  # ids of the calls in earlier messages
    is_named = any(_text(one, "name") for one in messages if one.get("name") is not None)
    for message in messages:
        if message.get("role") == "tool":
            call = _text(message, "tool_call_id")
            if call not in called:
                detail = f"a tool message has the tool_call_id {call[:64]!r}, but no message before it has this call"
                raise InvalidRequest(f"{detail}; send the assistant message with its tool_calls first")
            given.outputs[call] = _output(message.get("content"))
            continue
        role = _role(message.get("role"))
        calls = message.get("tool_calls") if role == "assistant" else None
        if calls is not None and not isinstance(calls, list):
            raise InvalidRequest(f"tool_calls must be a list of calls, got {calls!r:.80}")
        content = message.get("content")
        parts = stored_parts(content, is_strict=True) if content is not None or not calls else []
        tools = [_call(one) for one in calls or ()]
        called |= {one["call"] for one in tools}
        if is_named and (parts or tools):
            parts.insert(0, {"type": "data", "name": PARTICIPANT, "data": message.get("name")})
        given.add(role, [*parts, *tools])
    return _checked(given)


def _checked(given: GivenInput) -> GivenInput:
    if not (given.parts or given.outputs or given.approvals):
        raise InvalidRequest("the input must end with a text or a file of the user, or with an output; add one")
    if len(given.earlier) > MAX_EARLIER:
        raise InvalidRequest(f"the input has {len(given.earlier)} earlier messages; send at most {MAX_EARLIER}")
    return given


def _role(role: object) -> Role:
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"role must be one of {', '.join(_ROLES)}, got {role!r:.80}")
    return _ROLES[role]


def _output(output: object) -> object:
    """Return the output of a tool: a list of content as parts, another value as it is."""
    return stored_parts(output, is_strict=True) if isinstance(output, list) else output


def _call(call: object) -> Json:
    match call:
        case {"id": str(id), "function": {"name": str(name), "arguments": str(arguments)}}:
            return {"type": "tool", "call": id, "name": name, "input": arguments, "state": "called"}
    raise InvalidRequest(f"a tool call must have an id and a function with name and arguments, got {call!r:.80}")


def _text(item: Json, name: str) -> str:
    if not isinstance(item.get(name), str):
        raise InvalidRequest(f"{name} must be a text, got {item.get(name)!r:.80}")
    return str(item[name])
