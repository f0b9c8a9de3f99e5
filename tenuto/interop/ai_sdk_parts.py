"""The parts and messages of a page with the AI SDK (`UIMessage`).

Layer: interop.

The stream (`ai_sdk_stream`) and the stored conversation give a page the same parts.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tenuto.interop.bodies import value_of
from tenuto.interop.fold import Json, has_result, shown_answers
from tenuto.routes import TurnStatus

NEXT_PIECES = 16  # texts of a page among which the next piece of a stored text is looked for
COMPARED_CHARS = 4 * 1024 * 1024  # code points that are compared in all texts of a page: at most 20 ms
HEAD_CHARS = 256  # code points of a piece that are compared first; a comparison costs at least as much as these


@dataclass
class PageCall:
    """A call of a tool as a page knows it from a stream."""

    call: str
    name: str
    stage: int = 0
    step: int = 0  # the step of the page that has the call
    has_deltas: bool = True  # False: the page has the beginning of the input from an earlier response
    is_approved: bool = False  # the page has the reply to an approval from this stream
    question: str = ""  # id of the open question about it: the next request of the page has the reply
    has_outcome: bool = False  # the page's reply to a question about the call had an effect
    held: str | None = None  # input of a call of the page's, which runs it only when a question about it is open


@dataclass(frozen=True)
class Release:
    """The release of `ai` in the page, and the tools that the page runs."""

    version: int = 6  # pages of 7 take all chunks of 6, and those of 6 refuse a chunk of 7
    strict: bool = False
    browser_tools: frozenset[str] = frozenset()


DEFAULT = Release()


def is_tool(part: Json) -> bool:
    """Return whether a part of a page's message is a call of a tool."""
    return str(part["type"]).startswith("tool-") and isinstance(part.get("toolCallId"), str)


def approval_of(part: Json, release: Release) -> Json | None:
    """Return the reply to the approval of a stored call, if it has one that the release shows."""
    if release.version < 6:
        return None
    stored = part.get("approval")
    if isinstance(stored, dict) and isinstance(stored.get("id"), str) and isinstance(stored.get("approved"), bool):
        reason = {"reason": stored["reason"]} if isinstance(stored.get("reason"), str) else {}
        return {"id": stored["id"], "approved": stored["approved"], **reason}
    return {"id": part["call"], "approved": False} if part.get("state") == "denied" else None


def involves_page(part: Json, release: Release) -> bool:
    """Return whether a page runs the stored call, or has approved or denied it."""
    return part["name"] in release.browser_tools or approval_of(part, release) is not None


def parsed(text: str) -> tuple[Any, bool]:
    """Return the value of a tool's input, and whether the input is JSON. Other input is the text itself.

    Input that no response can carry, such as half a surrogate pair, is no JSON either.
    """
    try:
        return value_of(text), True
    except ValueError:
        return text or {}, not text


def result_of(part: Json, release: Release) -> Json:
    """Return the chunk with the result of a call."""
    known = {"toolCallId": part["call"]}
    if part.get("state") == "denied":
        if release.version < 6:
            return {"type": "tool-output-error", **known, "errorText": "denied"}
        return {"type": "tool-output-denied", **known}
    output = part.get("output")
    if part.get("state") == "error":
        text = output if isinstance(output, str) else json.dumps(output)
        return {"type": "tool-output-error", **known, "errorText": text}
    return {"type": "tool-output-available", **known, "output": output}


def ui_part(id: str, part: Json) -> Json | None:
    """Return a source, file or data part, which is the same as a chunk and in a message; None for other parts."""
    match part:
        case {"type": "data", "name": str(name)}:
            return {"type": f"data-{name}", "id": id, "data": part.get("data")}
        case {"type": "file", "url": str(url)}:
            media_type = part.get("mediaType") or part.get("media_type") or "application/octet-stream"
            return {"type": "file", "url": url, "mediaType": media_type}
        case {"type": "source", "url": str(url)}:
            title = {"title": part["title"]} if isinstance(part.get("title"), str) else {}
            return {"type": "source-url", "sourceId": id, "url": url, **title}
        case {"type": "source"}:
            name = str(part.get("title") or part.get("filename") or "source")
            media_type = str(part.get("mediaType") or part.get("media_type") or "text/plain")
            return {"type": "source-document", "sourceId": id, "mediaType": media_type, "title": name}
    return None


def ui_messages(turns: Iterable[TurnStatus], release: Release) -> list[Json]:
    """Return the conversation as `UIMessage`s, without the answers of turns that wait or run."""
    messages: list[Json] = []
    for turn in turns:
        if turn.message is not None:
            question = turn.message
            own = {name: value for name, value in question.meta.items() if name != "options"}
            meta = {"metadata": own} if own else {}
            messages.append(
                {"id": question.id, "role": "user", "parts": [_question_part(one) for one in question.parts], **meta}
            )
        if turn.state == "over":
            metas: Json = {}
            for answer in turn.answers:
                metas |= answer.meta
            id = turn.answers[0].id if turn.message is None or turn.answers else silent_id(turn.message.id)
            message: Json = {"id": id, "role": "assistant", "parts": _parts(turn, release)}
            messages.append({**message, **({"metadata": metas} if metas else {})})
    return messages


def silent_id(question: str) -> str:
    """Return the id of the page's message for a turn without an answer."""
    return f"{question}.none"


def _question_part(part: Json) -> Json:
    match part:
        case {"type": "data", "name": name}:
            return {"type": f"data-{name}", "data": part.get("data")}
        case {"type": "file"}:
            return {"mediaType": "application/octet-stream", **part}
    return part


def _parts(turn: TurnStatus, release: Release) -> list[Json]:
    """Return the parts of a turn's answers as the page builds them from the stream (`UIStream._content`)."""
    step = {"type": "step-start"}
    parts: list[Json] = [step]
    is_due = is_joined = False  # joined: the step is due only because of results of the server
    open_states: set[Any] = set()  # of the calls in the current step
    for answer in shown_answers(turn.answers):
        is_due, is_joined = is_due or len(parts) > 1, False
        open_states.clear()  # of an earlier answer, whose calls get no more input and no results
        for index, part in enumerate(answer.parts):
            one = _part(f"{answer.id}.{index}", part, release)
            if one is None:
                continue
            is_call = part["type"] == "tool"
            is_next = is_call and part["name"] not in release.browser_tools
            if is_due and "input-streaming" not in open_states and not (is_joined and (is_next or open_states)):
                is_due = False
                open_states.clear()
                if parts[-1] is not step:
                    parts.append(step)
            parts.append(one)
            if is_call and (has_result(part) or "approval" in one):
                is_joined = not involves_page(part, release) and (is_joined or not is_due)
                is_due = True
            elif is_call:
                open_states.add(one["state"])
    if parts == [step]:
        return []  # the page drops a step without parts
    return [*parts, step] if is_due and parts[-1] is not step else parts


def _part(id: str, part: Json, release: Release) -> Json | None:
    match part["type"]:
        case "text" | "reasoning" as kind:
            # pages keep the id of a reasoning, but for early releases
            kept = {"id": id} if kind == "reasoning" and not release.strict else {}
            return {"type": kind, **kept, "text": part["text"], "state": "done"} if part["text"] else None
        case "tool":
            return _tool_part(part, release)
    return ui_part(id, part)


def _tool_part(part: Json, release: Release) -> Json:
    value, _ = parsed(part.get("input", ""))
    known: Json = {"type": f"tool-{part['name']}", "toolCallId": part["call"], "input": value}
    if part["name"] not in release.browser_tools:
        known["providerExecuted"] = True
    if (approval := approval_of(part, release)) is not None:
        known["approval"] = approval
    if not has_result(part):
        if approval is not None:
            return {**known, "state": "approval-responded"}
        return {**known, "state": "input-available" if part.get("state") == "called" else "input-streaming"}
    result = result_of(part, release)
    shown = {name: value for name, value in result.items() if name in ("output", "errorText")}
    return {**known, "state": result["type"].removeprefix("tool-"), **shown}


class PageParts:
    """The parts of the message that a page has and continues; none without `page`.

    `is_late`: the page's replies had no effect.
    """

    def __init__(self, page: Json | None, *, is_late: bool = False) -> None:
        self.is_late = is_late
        parts = page["parts"] if page is not None else []
        self.id: str | None = page["id"] if page is not None else None
        calls = {one["toolCallId"]: one for one in parts if is_tool(one)}
        self.tools = {id: one["state"] for id, one in calls.items()}  # states by the ids of the calls
        self.approvals = {id: one["approval"] for id, one in calls.items() if isinstance(one.get("approval"), dict)}
        self._texts = {
            kind: deque(one["text"] for one in parts if one["type"] == kind and one["text"])
            for kind in ("text", "reasoning")
        }
        self._compared = 0  # code points, of `COMPARED_CHARS`
        self._data = {str(one.get("id")): one.get("data") for one in parts if one["type"].startswith("data-")}
        self._others = {str(one.get("sourceId") or one.get("url")) for one in parts}

    def length_of(self, kind: str, text: str) -> int:
        """Return how many code points of a text the page has, in one or more pieces. Each piece counts for one call.

        Later pieces may be behind pieces of other texts. After `COMPARED_CHARS` no piece is found.
        """
        sent, known = 0, self._texts[kind]
        while sent < len(text):
            found = next((at for at, one in enumerate(islice(known, NEXT_PIECES)) if self._has(text, sent, one)), None)
            if found is None:
                break
            sent += len(known[found])
            del known[found]
        return sent

    def _has(self, text: str, at: int, piece: str) -> bool:
        """Return whether `text` has `piece` at `at`; False when the comparisons of this page are used up."""
        self._compared += HEAD_CHARS
        if self._compared > COMPARED_CHARS or not text.startswith(piece[:HEAD_CHARS], at):
            return False
        self._compared += len(piece)
        return self._compared <= COMPARED_CHARS and text.startswith(piece, at)

    def has_other_text(self) -> bool:
        """Return whether the page has a text that none of the stored texts has had (`length_of`)."""
        return any(self._texts.values())

    def has_approval(self, call: str, approval: Json) -> bool:
        """Return whether the page has this reply to the approval of a call."""
        shown = self.approvals.get(call, {})
        return all(shown.get(key) == approval[key] for key in ("id", "approved"))

    def is_outcome(self, part: Json) -> bool:
        """Return whether a stored call has an outcome for the page's reply: its result, or the page's own approval."""
        if has_result(part):
            return True
        approval = approval_of(part, DEFAULT)
        return approval is not None and self.has_approval(part["call"], approval)

    def has(self, chunk: Json) -> bool:
        """Return whether the page has the part of `chunk`, with this value."""
        if chunk["type"].startswith("data-"):
            return bool(self._data.get(chunk["id"], ...) == chunk["data"])
        return (chunk.get("sourceId") or chunk.get("url")) in self._others
