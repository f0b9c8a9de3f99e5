"""The messages of a conversation as clients of AG-UI, and those of TanStack AI, show them.

Layer: interop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tenuto.interop.agui_stream import AGUIStream
from tenuto.interop.fold import Json, deltas_of
from tenuto.routes import TurnStatus


def messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the messages of a client that has run `turns`, without the answers of turns that wait or run."""
    messages: list[Json] = []
    for turn in turns:
        if turn.message is not None:
            messages.append({"id": turn.message.id, "role": "user", "content": _question_content(turn.message.parts)})
        if turn.state == "over":
            messages += _folded(event for _, event in AGUIStream("", "", "").receive(deltas_of(turn)))
    return messages


def _question_content(parts: Sequence[Json]) -> str | list[Json]:
    """Return the content of the user's message in the client."""
    if all(one["type"] == "text" for one in parts):
        return "\n".join(one["text"] for one in parts)
    content: list[Json] = []
    for part in parts:
        match part:
            case {"type": "text", "text": text}:
                content.append({"type": "text", "text": text})
            case {"type": "file", "url": str(url)}:
                media_type = str(part.get("mediaType", ""))
                kind = media_type.partition("/")[0]
                source = {
                    "type": "url",
                    "value": url,
                    **({"mimeType": media_type} if media_type[-2:] not in ("", "/*") else {}),
                }
                content.append({"type": kind if kind in ("image", "audio", "video") else "document", "source": source})
    return content


def _folded(events: Iterable[Json]) -> list[Json]:
    """Return the messages that a client builds from `events`."""
    messages: dict[str, Json] = {}
    calls: dict[str, Json] = {}
    for event in events:
        match event:
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": id, "role": role}:
                messages.setdefault(id, {"id": id, "role": role})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": id, "delta": text}:
                messages[id]["content"] = messages[id].get("content", "") + text
            case {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": parent}:
                calls[id] = {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
                owner = messages.setdefault(parent, {"id": parent, "role": "assistant"})
                owner.setdefault("toolCalls", []).append(calls[id])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": text}:
                calls[id]["function"]["arguments"] += text
            case {"type": "TOOL_CALL_RESULT", "messageId": id}:
                names = ("toolCallId", "role", "content", "metadata")
                messages[id] = {"id": id, **{name: event[name] for name in names if name in event}}
    return list(messages.values())


def ui_messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the conversation as the `UIMessage`s that the client of TanStack AI builds from the events."""
    messages: list[Json] = []
    calls: dict[str, list[Json]] = {}  # for each call the parts of its message
    thoughts: list[Json] = []  # of the next answer
    for one in messages_of(turns):
        content = one.get("content", "")
        if one["role"] == "reasoning":
            thoughts.append({"type": "thinking", "content": content, "stepId": one["id"]})
        elif one["role"] == "tool":
            parts, id = calls[one["toolCallId"]], one["toolCallId"]
            at = next(at for at, part in enumerate(parts) if part.get("id") == id)
            parts[at] |= {"output": content, "state": "error" if "metadata" in one else "complete"}
            result = {"type": "tool-result", "toolCallId": id, "content": content, "state": parts[at]["state"]}
            parts.insert(at + 1, result)
        else:
            known = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [{"type": "text", "content": part["text"]} if part["type"] == "text" else part for part in known]
            # calls before a text are shown in the message before them
            if "content" in one or messages[-1]["role"] == "user":
                own = [*thoughts, *(part for part in parts if part.get("content") != "")]
                messages.append({"id": one["id"], "role": one["role"], "parts": own})
                thoughts = []
            for call in one.get("toolCalls", ()):
                calls[call["id"]] = messages[-1]["parts"]
                part = {"type": "tool-call", "id": call["id"], **call["function"], "state": "input-complete"}
                messages[-1]["parts"].append(part)
    return messages
