"""The ids and items of OpenAI's API, and the input of a request: messages, and replies to the agent.

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
from tenuto.interop.adapter import hashed, output_part, packed, stored_parts, unpacked
from tenuto.interop.fold import Json, Place, has_result, text_of
from tenuto.routes import OUTPUT, PARTICIPANT

CONVERSATION = "conversation"  # field of a question's `meta`: True if its request names a conversation
STEERS = "steers"  # field of a question's `meta` if it is further input: the id of the question with the first response
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_ID = re.compile(r"(resp_|chatcmpl-|conv_|msg_|rs_|fc_|mcp_|in_)([A-Za-z0-9_-]{1,600})\Z")
ITEMS = ("msg_", "rs_", "fc_", "mcp_", "in_")  # prefixes of ids of items; those of input begin with `in_`
_RESPONSES = ("resp_", "chatcmpl-")
SERVER = "tenuto"  # `server_label` of tools that the server runs
_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "mcp_call": "mcp_"}


class Reference(NamedTuple):
    """The meaning of an id: a turn, and a part. A response begins with it, an item is it.

    In the id of an input item it is a message, and the number of the item. A conversation is a channel alone.
    `attempt` is the number of superseded attempts before the part, which may have had a part at its place, `steers`
    that of the inputs which the agent has taken in before a response that steering began.
    """

    channel: str
    message_id: str
    start: Place = (0, 0)
    attempt: int = 0
    steers: int = 0

    def at(self, start: Place = (0, 0), attempt: int = 0) -> Reference:
        """Return the same turn from another part on; by default from its beginning."""
        return Reference(self.channel, self.message_id, start, attempt)

    def id(self, prefix: str = "resp_") -> str:
        """Return the id. Chat completions have the ids of their responses with another prefix."""
        numbers = (*self.start, self.attempt, self.steers)[: 4 if self.steers else 3 if self.attempt else 2]
        start = [".".join(map(str, numbers))] if any(numbers) else []
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
            of = Reference(channel, message_id, (answer, index), *more[:2])
    if of is None or of.id(found[1] if found else "") != id or min(*of.start, of.attempt, of.steers) < 0:
        raise unknown(kind, id, param)
    return of


def unknown(kind: str, id: object, param: str | None = None) -> NotFound:
    """Return the error about an id that this server, or this caller, does not have."""
    detail = f"{kind} {str(id)[:64]!r} does not exist; use an id that this server has returned"
    return NotFound(detail, **({"param": param} if param else {}))


def input_items(channel: str, message: Message) -> list[Json]:
    """Return a message of a client, such as the question of a turn, as items."""
    items: list[Json] = []
    for part in message.parts:
        match part:
            case {"type": "data", "name": name, "data": {"call_id": call, "output": output}} if name == OUTPUT:
                blocks = _blocks(output) if isinstance(output, list) else []
                shown = output if isinstance(output, str) else blocks or json.dumps(output, ensure_ascii=False)
                items.append({"type": "function_call_output", "call_id": call, "output": shown})
            case {"type": "tool"}:
                kind = "mcp_call" if has_result(part) else "function_call"
                items.append(item_of(kind, part, text_of(part), Reference(channel, message.id)))
            case _ if blocks := _blocks([part], is_answer=message.role == "assistant"):
                if not items or items[-1]["type"] != "message":
                    items.append({"type": "message", "role": message.role, "content": []})
                items[-1]["content"] += blocks
    ids = (Reference(channel, message.id, (0, number)).id("in_") for number in range(len(items)))
    return [{"status": "completed", **item, "id": id} for id, item in zip(ids, items, strict=True)]


def _blocks(parts: list[Json], *, is_answer: bool = False) -> list[Json]:
    """Return the texts and files among `parts` as content."""
    content: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": text}:
                content.append(text_block("message", text) if is_answer else {"type": "input_text", "text": text})
            case {"type": "file", "url": url} if str(part.get("mediaType")).startswith("image/"):
                content.append({"type": "input_image", "image_url": url, "detail": part.get("detail", "auto")})
            case {"type": "file", "url": url}:
                named: Json = {name: part[name] for name in ("filename", "detail") if name in part}
                content.append({"type": "input_file", "file_url": url, **named})
    return content


def kind_of(part: Json, own_tools: Collection[str]) -> str:
    """Return the type of the output item of a part; empty for a part that has none."""
    if part["type"] == "tool":
        return "function_call" if part["name"] in own_tools else "mcp_call"
    return {"text": "message", "reasoning": "reasoning"}.get(part["type"], "")


def item_of(kind: str, part: Json, text: str, of: Reference, *, state: str = "completed") -> Json:
    """Return the item of the part at `of`; `state` is `empty`, `in_progress`, `completed` or `incomplete`."""
    status = "in_progress" if state == "empty" else state
    head = {"id": of.id(_PREFIXES[kind]), "type": kind}
    match kind:
        case "message":
            content = [] if state == "empty" else [text_block(kind, text)]
            return {**head, "role": "assistant", "content": content, "status": status}
        case "reasoning":
            return {**head, "summary": [] if state == "empty" else [text_block(kind, text)], "status": status}
        case "function_call":
            return {**head, "call_id": part["call"], "name": part["name"], "arguments": text, "status": status}
    call: Json = {"server_label": SERVER, "name": part["name"], "arguments": text, "output": None, "error": None}
    if state != "empty" and has_result(part):
        output = part.get("output")
        shown = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
        if part.get("state") in ("error", "denied"):
            text = "denied" if part["state"] == "denied" else shown
            call["error"] = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
        else:
            call["output"] = shown
        status = "failed" if call["error"] is not None else "completed"
    return {**head, **call, "status": status}


def text_block(kind: str, text: str) -> Json:
    """Return the content of a message item, or the summary of a reasoning item."""
    if kind == "reasoning":
        return {"type": "summary_text", "text": text}
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
# Items of earlier responses that a client may send again and that no history has. The store has the calls of a response
# that the request continues.
_RESENT = ("reasoning", "function_call", "mcp_call", "mcp_list_tools", "mcp_approval_request")
MAX_EARLIER = 200  # messages before the question


@dataclass
class GivenInput:
    """The input of a request: earlier messages, the question, and replies to the agent."""

    earlier: list[tuple[Role, list[Json]]] = field(default_factory=list)  # role and parts
    parts: list[Json] = field(default_factory=list)  # of the question
    outputs: dict[str, Any] = field(default_factory=dict)  # outputs of the caller's tools, by call
    approvals: dict[str, tuple[bool, str | None]] = field(default_factory=dict)  # by request id: approved?, reason
    calls: set[str] = field(default_factory=set)  # calls that the request brings
    unknown: list[str] = field(default_factory=list)  # outputs and approvals of other calls
    joins_calls: bool = True  # False: each item is a message of its own, so that it can be deleted

    def add(self, role: Role, parts: list[Json]) -> None:
        """Add a message. The last one of the user is the question."""
        if not parts and role != "assistant":
            return
        if self.parts:
            self.earlier.append(("user", self.parts))
            self.parts = []
        if role == "user":
            self.parts = parts
            return
        if role == "assistant":
            self.earlier += [("user", [output_part(*one)]) for one in self.outputs.items()]
            self.outputs.clear()
        if parts:
            self.earlier.append((role, parts))

    def add_call(self, item: Json, call: str, **result: object) -> None:
        """Add a call: to the answer before, if no message of the user or output is between."""
        part = {"type": "tool", "call": call, "name": _text(item, "name"), "input": _text(item, "arguments"), **result}
        self.calls.add(call)
        is_next = bool(self.earlier) and self.earlier[-1][0] == "assistant" and not self.parts and not self.outputs
        if is_next and self.joins_calls:
            _check_single(call, [one.get("call") for one in self.earlier[-1][1]])
            self.earlier[-1][1].append(part)
        else:
            self.add("assistant", [part])

    def add_result(self, item: Json) -> None:
        """Add the call of a tool of the server with its result, once. A call without a result is in no history."""
        output, error, call = item.get("output"), item.get("error"), hashed(_text(item, "id"))
        if call in self.calls or (output is None and error is None):
            return
        match error:
            case {"content": [{"text": str(text)}]}:
                error = text
        state, result = ("done", output) if error is None else ("error", error)
        self.add_call(item, call, state=state, output=result)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Let an InvalidRequest name the field `name` of the request, unless it names another one."""
    try:
        yield
    except InvalidRequest as error:
        error.details.setdefault("param", name)
        raise


@_about("input")
def given_in_responses(items: Any, *, is_first: bool) -> GivenInput:
    """Return the input of `POST /responses`, which begins a channel if `is_first`. Raises InvalidRequest."""
    given = _given([{"role": "user", "content": items}] if isinstance(items, str) else items, is_first=is_first)
    return _checked(given, is_first=is_first)


@_about("items")
def given_in_items(items: Any, *, is_new: bool) -> list[tuple[Role, list[Json]]]:
    """Return the items of a conversation, which begins with them if it `is_new`, as messages. Raises InvalidRequest."""
    given = _given(items, is_first=True, joins_calls=False)
    if is_new:
        _check_known(given)
    if given.approvals:
        raise InvalidRequest("an approval is no item of a conversation; send it as the input of a response")
    given.add("assistant", [])  # the end, so that messages of the user and outputs are earlier ones
    return given.earlier


@_about("messages")
def given_in_chat(body: Json) -> GivenInput:
    """Return the messages of `POST /chat/completions`. Raises InvalidRequest."""
    if body.get("n") not in (None, 1):
        raise InvalidRequest(f"n must be 1, as an agent gives one answer, got {body['n']}", param="n")
    items: list[Json] = []
    for message in _objects(body.get("messages"), "messages must be"):
        role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
        if role == "tool":
            call = _text(message, "tool_call_id")
            items.append({"type": "function_call_output", "call_id": call, "output": content})
            continue
        if role == "assistant" and (refusal := message.get("refusal")):  # as the SDKs return one
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            content = [*content, {"refusal": refusal}]
        if role == "assistant" and calls:
            content = content or []
        items.append({"type": "message", "role": role, "content": content, "name": message.get("name")})
        if role == "assistant" and calls:
            items += [_item_of_call(one) for one in _objects(calls, "tool_calls must be")]
    return _checked(_given(items, is_first=True), is_first=True)


def _item_of_call(call: Json) -> Json:
    match call:
        case {"id": id, "function": dict(function)}:
            return {**function, "type": "function_call", "call_id": id}
    raise InvalidRequest(f"a tool call must have an id and a function with name and arguments, got {call!r:.80}")


def _given(items: Any, *, is_first: bool, joins_calls: bool = True) -> GivenInput:
    given = GivenInput(joins_calls=joins_calls)
    messages = [one for one in _objects(items, "input must be a text or") if one.get("type", "message") == "message"]
    is_named = any(_text(one, "name") for one in messages if one.get("name") is not None)
    for item in items:
        match item.get("type", "message"):
            case "message":
                parts = stored_parts(item.get("content"), is_strict=True)
                if is_named and (parts or item.get("role") == "assistant"):  # calls may follow
                    parts.insert(0, {"type": "data", "name": PARTICIPANT, "data": item.get("name")})
                given.add(_role(item.get("role")), parts)
            case "function_call_output":
                output, call = item.get("output"), _text(item, "call_id")
                if output is None or isinstance(output, list):
                    output = stored_parts(output or [], is_strict=True) or ""
                _check_single(call, given.outputs)
                given.outputs[call] = output
                given.unknown += [call] if call not in given.calls else []
            case "mcp_approval_response":
                approve, reason = item.get("approve"), item.get("reason")
                if not isinstance(approve, bool):
                    raise InvalidRequest(f"approve must be true or false, got {approve!r:.80}")
                approved = approve, reason if isinstance(reason, str) else None
                given.approvals[id := _text(item, "approval_request_id")] = approved
                given.unknown.append(id)
            case "function_call" if is_first:
                given.add_call(item, _text(item, "call_id"), state="called")
            case "mcp_call" if is_first:
                given.add_result(item)
            case "item_reference":
                id = str(item.get("id"))
                raise InvalidRequest(f"the input has a reference to item {id[:64]!r}; send the message itself here")
            case kind if kind not in _RESENT:
                raise InvalidRequest(
                    f"an item of input has the type {kind!r:.80}; send messages, function_call_outputs and approvals"
                )
    return given


def _checked(given: GivenInput, *, is_first: bool) -> GivenInput:
    if is_first:
        _check_known(given)
    if not (given.parts or given.outputs or given.approvals):
        raise InvalidRequest("the input must end with a text or a file of the user, or with an output; add one")
    if len(given.earlier) > MAX_EARLIER:
        raise InvalidRequest(f"the input has {len(given.earlier)} earlier messages; send at most {MAX_EARLIER}")
    return given


def _check_known(given: GivenInput) -> None:
    """Raise InvalidRequest if a result or an approval is that of no call in the same input."""
    if given.unknown:
        detail = f"the input replies to {given.unknown[0][:64]!r}, but no call before it has this id"
        raise InvalidRequest(f"{detail}; send the call too, or the previous_response_id of the response that has it")


def _check_single(call: str, others: Collection[object]) -> None:
    """Raise InvalidRequest if one of the calls, or results, beside a call has its id."""
    if call in others:
        detail = f"two calls of one message, or two results of one call, have the id {call[:64]!r}"
        raise InvalidRequest(f"{detail}; give each call an id of its own, and send its result once")


def _objects(value: Any, expected: str) -> list[Json]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise InvalidRequest(f"{expected} a list of at least one object, got {value!r:.80}")
    return value


def _role(role: object) -> Role:
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"role must be one of {', '.join(_ROLES)}, got {role!r:.80}")
    return _ROLES[role]


def _text(item: Json, name: str) -> str:
    if not isinstance(item.get(name), str):
        raise InvalidRequest(f"{name} must be a text, got {item.get(name)!r:.80}")
    return str(item[name])
