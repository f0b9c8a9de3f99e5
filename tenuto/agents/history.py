"""The conversation that leads to a message, in the shapes of the providers' APIs.

Layer: agents.

Pure functions. The shapes are those of the providers' documentation; `docs/agents.md` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from tenuto.core.answer_ids import reply_ids
from tenuto.core.errors import LocalError
from tenuto.core.model import Json, Message, Part

Shape = Literal["text", "openai", "responses", "anthropic"]


def path_to(message: Message, older: Iterable[Message]) -> list[Message]:
    """Return the messages that lead to `message`, oldest first.

    The path follows the parents. If the parent of a user message is another user message, the newest answer to that one
    is included. A parent that is not among `older` (deleted, or too far back) is skipped. If the conversation has
    branches and it is unknown which of them the missing parent was on, the path begins after it: a missing message does
    less harm than one from another branch.
    """
    everything = sorted(older, key=lambda one: -one.created)
    newest_first = [one for one in everything if one.created < message.created]
    known = {one.id: one for one in newest_first}
    path: list[Message] = []
    at = message
    while True:
        before = _parent(at, known, newest_first)
        if before is None:
            return path[::-1]
        if at.role == "user" and before.role == "user":
            # include the answer even if it was written after the next question
            path += _newest_answer(before, everything)
        path.append(before)
        at = before


def _parent(message: Message, known: dict[str, Message], newest_first: Sequence[Message]) -> Message | None:
    if message.parent is None:
        return None
    parent = known.get(message.parent)
    if parent is not None and parent.created < message.created:
        return parent
    before = [one for one in newest_first if one.created < message.created]
    questions = (one for one in before if one.role == "user")
    answered = next((one for one in questions if message.parent in reply_ids(one.id)), None)
    if answered is not None or _has_branches([message, *before]):
        return answered
    return next(iter(before), None)


def _has_branches(messages: Iterable[Message]) -> bool:
    """Return whether a question was asked twice, or two answers were continued.

    Several answers to the last question do not count.
    """
    messages = list(messages)
    parents = {one.parent for one in messages}
    followed = [(one.parent, one.role) for one in messages if one.role == "user" or one.id in parents]
    return len(set(followed)) < len(followed)


def _newest_answer(question: Message, newest_first: Sequence[Message]) -> list[Message]:
    for one in newest_first:
        if one.reply_to == question.id and one.role != "user" and one.status != "streaming":
            return [one]
    return []


def as_turns(messages: Sequence[Message], shape: Shape) -> list[dict[str, Json]]:
    """Return `messages` in the form that a provider's API accepts. Raises LocalError for an unknown form."""
    if shape not in get_args(Shape):
        raise LocalError(f"shape must be one of {', '.join(get_args(Shape))}, got {shape!r}")
    match shape:
        case "text":
            return [{"role": one.role, "content": one.text} for one in messages if one.text and one.role != "tool"]
        case "openai":
            return [turn for one in messages for turn in _openai(one)]
        case "responses":
            return [item for one in messages for item in _responses(one)]
        case "anthropic":
            return _alternating([turn for one in messages for turn in _anthropic(one)])


class _ModelStep(NamedTuple):
    """A text and the tool calls after it.

    An answer of a model that called tools several times has one step for each round.
    """

    text: str
    calls: list[Part]


def _steps(message: Message) -> Iterator[_ModelStep]:
    """Yield the texts and tool calls of `message`, in order, except calls without a result: the APIs refuse those."""
    text, calls = "", list[Part]()
    for part in message.parts:
        if part["type"] == "tool" and "output" in part:
            text = (
                text if text.strip() else ""
            )  # models write line ends around calls, and Anthropic refuses text of line ends only
            calls.append(part)
        elif part["type"] == "text" and message.role != "tool":
            if calls and part["text"].strip():
                yield _ModelStep(text, calls)
                text, calls = "", []
            if not calls:
                text += part["text"]
    if text or calls:
        yield _ModelStep(text, calls)


def _output(part: Part) -> str:
    output = part.get("output")
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def _openai(message: Message) -> Iterator[dict[str, Json]]:
    for text, calls in _steps(message):
        is_one = bool(calls) and message.role == "assistant"
        if text and not is_one:
            yield {"role": message.role, "content": text}
        if calls:
            content = text if text and is_one else None
            yield {"role": "assistant", "content": content, "tool_calls": [_tool_call(part) for part in calls]}
        for part in calls:
            yield {"role": "tool", "tool_call_id": part["call"], "content": _output(part)}


def _tool_call(part: Part) -> dict[str, Json]:
    function = {"name": part["name"], "arguments": part["input"] or "{}"}
    return {"id": part["call"], "type": "function", "function": function}


def _responses(message: Message) -> Iterator[dict[str, Json]]:
    for text, calls in _steps(message):
        if text:
            yield {"role": message.role, "content": text}
        for part in calls:
            call = {"call_id": part["call"], "name": part["name"], "arguments": part["input"] or "{}"}
            yield {"type": "function_call", **call}
            yield {"type": "function_call_output", "call_id": part["call"], "output": _output(part)}


def _anthropic(message: Message) -> Iterator[dict[str, Json]]:
    for text, calls in _steps(message) if message.role != "system" else ():
        if text.strip():  # Anthropic refuses empty text
            yield {"role": message.role, "content": [{"type": "text", "text": text}]}
        if calls:
            yield {"role": "assistant", "content": [_tool_use(part) for part in calls]}
            results = [{"type": "tool_result", "tool_use_id": part["call"], "content": _output(part)} for part in calls]
            yield {"role": "user", "content": results}


def _tool_use(part: Part) -> dict[str, Json]:
    try:
        arguments = json.loads(part["input"] or "{}")
    except (ValueError, RecursionError):
        arguments = {}
    arguments = arguments if isinstance(arguments, dict) else {}
    return {"type": "tool_use", "id": part["call"], "name": part["name"], "input": arguments}


def _alternating(turns: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return `turns` from the first one of a user on, with neighbours of the same role joined."""
    joined: list[dict[str, Json]] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {"role": turn["role"], "content": [*joined[-1]["content"], *turn["content"]]}
        elif joined or (turn["role"] == "user" and turn["content"][0]["type"] != "tool_result"):
            joined.append(turn)
    return joined
