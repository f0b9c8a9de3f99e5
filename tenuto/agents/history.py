"""The conversation that leads to a message, in the shapes of the providers' APIs.

Layer: agents.

Pure functions. The shapes are those of the providers' documentation; `docs/agents.md` shows them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from mimetypes import guess_type
from typing import Literal, NamedTuple, get_args
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from msgspec.structs import replace

from tenuto.agents.request import own_tools
from tenuto.core.errors import LocalError
from tenuto.core.model import Json, Message, Part
from tenuto.core.turns import newest_branch, reply_ids, versions_of

Shape = Literal["text", "openai", "responses", "anthropic"]
# names of data parts: with the result of a call that the client has run, and with the name of a participant in the
# conversation who has written the parts after it, or null
OUTPUT = "function_call_output"
PARTICIPANT = "participant"
CACHED = "prompt_cache_breakpoint"  # field of a part in OpenAI's API, and name of the data part behind it that has it
_BLANK = {"type": "text", "text": "[blank message]"}  # in place of a text that Anthropic refuses, or that is missing
_TOOL = "_tool"  # field of a call of the caller's tool, in a history alone: its type and namespace
_ANTHROPIC_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_GUESSED = (*_ANTHROPIC_IMAGES, "application/json", "application/pdf", "audio/", "text/")  # types that a name may tell
_ANTHROPIC_ID = re.compile("[a-zA-Z0-9_-]+")
_OPENAI_ID = re.compile(r".{,40}|.{65,}|functions\..+:\d+", re.DOTALL)  # 40: its limit; other servers read their ids
_PARTICIPANT = re.compile(r"[^\s<|\\/>]{1,64}\Z")  # other names are refused by OpenAI's API


def path_to(message: Message, older: Iterable[Message]) -> list[Message]:
    """Return the messages that lead to `message`, oldest first; each question is followed by its answers.

    The path follows the parents (`_followed`). Of several versions of an answer it has the one that the path follows,
    else the newest one, even if it was written after the next question. A parent that is not among `older` (deleted, or
    too far back) is skipped. If the conversation has branches and it is unknown which of them the missing parent was
    on, the path begins after it: a missing message does less harm than one from another branch.
    """
    everything = sorted(older, key=lambda one: one.created)
    earlier = [one for one in everything if one.created < message.created]
    leading = leading_to([*earlier, message], message.id)
    chain = {one.id: one for one in earlier if one.id in leading}
    asked = {one.id for one in chain.values() if one.role == "user"}
    path: list[Message] = []
    for one in chain.values():
        if one.id in asked:
            replies = [reply for reply in everything if reply.reply_to == one.id and reply.role != "user"]
            ended = [reply for reply in replies if reply.status != "streaming" or reply.id in chain]
            path += [one, *newest_branch(ended, chain)]
        elif one.reply_to not in asked:
            path.append(one)
    return path


def begin_of(message: Message, older: Iterable[Message]) -> Message:
    """Return the first known message of the path to `message`: its parent is not among `older`, or not older."""
    known = {one.id: one for one in older}
    while (parent := known.get(message.parent or "")) is not None and parent.created < message.created:
        message = parent
    return message


def has_result(part: Part) -> bool:
    """Return whether a tool part has its result. One that is null has no field `output`."""
    return "output" in part or part.get("state") in ("done", "error", "denied")


def leading_to(messages: Iterable[Message], message_id: str) -> set[str]:
    """Return the ids of those of `messages` that lead to one of them."""
    return chain_to(parents_in(messages), message_id)


def chain_to(parents: Mapping[str, str], message_id: str) -> set[str]:
    """Return the ids that `parents` has before a message: its parent, the parent of that, and so on."""
    chain: set[str] = set()
    while message_id in parents:
        chain.add(message_id := parents[message_id])
    return chain


def parents_in(messages: Iterable[Message]) -> dict[str, str]:
    """Return the ids of the parents that `messages` have among themselves."""
    ordered = sorted(messages, key=lambda one: one.created)
    places = {one.id: number for number, one in enumerate(ordered)}
    parents: dict[str, str] = {}
    for number, (one, parent) in enumerate(zip(ordered, _parents(ordered), strict=True)):
        # a client that names no parent gets the newest message as such, also if that is a late answer
        if parent is not None and one.reply_to is None and parent is ordered[number - 1]:
            parent = _followed(parent, ordered, places, parents)
        if parent is not None:
            parents[one.id] = parent.id
    return parents


def _followed(parent: Message, ordered: list[Message], places: dict[str, int], parents: dict[str, str]) -> Message:
    """Return the message that the next one after `parent` follows, whose parent is that one.

    By default a message follows the newest one. If that is the first answer to an older question, the message follows
    the later messages of its conversation, too.
    """
    while parent.role != "user" and (asked := parent.reply_to or "") in places:
        since = ordered[places[asked] + 1 : places[parent.id]]
        answers = [one for one in since if one.reply_to == asked and one.status != "interrupted"]
        if len(versions_of(parent, answers)) > 1:
            break  # another answer begins a branch
        led = {asked}
        for one in since:
            if parents.get(one.id) in led:
                led.add(one.id)
        later = next((one for one in reversed(since) if one.reply_to != asked and one.id in led), None)
        if later is None:
            break
        parent = later
    return parent


def _parents(messages: Sequence[Message]) -> Iterator[Message | None]:
    """Yield the parent of each of `messages`, oldest first; until they branch, a missing one is the message before."""
    known: dict[str, Message] = {}
    answered: dict[str, Message] = {}  # questions by the ids of their answers, which cost time and are rarely needed
    unhashed: list[Message] = []  # questions that are not among them yet
    split_at: int | None = None  # number of the message with which the first branch begins, once it was looked for
    for number, one in enumerate(messages):
        parent = known.get(one.parent or "")
        if number and parent is None and one.parent is not None:
            answered.update((id, question) for question in unhashed for id in reply_ids(question.id))
            unhashed.clear()
            parent = answered.get(one.parent)
            if split_at is None:
                counts = range(1, len(messages) + 1)
                split_at = bisect_left(counts, True, key=lambda count: has_branches(messages[:count]))
            if parent is None and number < split_at:
                parent = messages[number - 1]
        yield parent
        known[one.id] = one
        if one.role == "user":
            unhashed.append(one)


def has_branches(messages: Sequence[Message]) -> bool:
    """Return whether a question was asked twice, or two answers were continued.

    Several answers to the last question do not count.
    """
    parents = {one.parent for one in messages}
    followed = [(one.parent, one.role) for one in messages if one.role == "user" or one.id in parents]
    return len(set(followed)) < len(followed)


def as_turns(messages: Sequence[Message], shape: Shape, tools: Sequence[dict[str, Json]] = ()) -> list[dict[str, Json]]:
    """Return `messages` in the form that a provider's API accepts. Raises LocalError for an unknown form.

    `tools` are those of the request: a custom tool takes a text in place of arguments, and a call names its namespace.
    """
    if shape not in get_args(Shape):
        raise LocalError(f"shape must be one of {', '.join(get_args(Shape))}, got {shape!r}")
    messages = _joined(messages, own_tools({"tools": [*tools]}), with_calls=shape != "text")
    shaped = {"text": _text, "openai": _openai, "responses": _responses, "anthropic": _anthropic}[shape]
    turns = [turn for one in messages for turn in shaped(one)]
    return _alternating(turns) if shape == "anthropic" else turns


def system_texts(messages: Iterable[Message]) -> list[str]:
    """Return the texts of the system messages, which the shape `anthropic` has no place for."""
    return [turn["content"] for one in messages if one.role == "system" for turn in _text(one)]


def _joined(messages: Sequence[Message], own: Mapping[str, dict[str, Json]], *, with_calls: bool) -> list[Message]:
    """Return `messages` with each result that a client has sent at its call, whose answer had ended without it.

    An id may repeat: its call is the latest one before the result that has none. If another answer is between, both
    stand where the result came, as a conversation must not end with an answer. A result without such a call becomes a
    text. Without `with_calls`, for a shape without calls, each one does. Of the calls with one id, the later ones get
    others, as the APIs refuse two with the same id. `own`: `own_tools`.
    """
    found: list[Message] = []
    answer: list[Part] = []  # parts of the last answer
    called: dict[str, Part] = {}  # the last call of each id
    open_calls: dict[str, list[tuple[list[Part], int]]] = {}  # their places, by id
    for one in messages:
        # calls behind an answer may be messages of their own, as items of a conversation are; no agent has written them
        before = found[-1].role if found and one.reply_to is None else ""
        is_more = one.role == before == "assistant" and {part["type"] for part in one.parts} == {"tool"}
        parts, late = answer if is_more else list[Part](), list[Part]()  # `late`: calls whose results stand here
        for part in one.parts:
            data = part.get("data") if part["type"] == "data" and part["name"] == OUTPUT else None
            if part["type"] == "tool":
                is_open, state = "output" not in part, part.get("state")
                if is_open and has_result(part):  # a result that is null, or a state alone
                    part = {**part, "output": None if state == "done" else state}
                part = {**part, _TOOL: own[part["name"]]} if part["name"] in own else part
                called[part["call"]] = part
                if is_open:
                    open_calls.setdefault(part["call"], []).append((parts, len(parts)))
            if not isinstance(data, dict):
                parts.append(part)
            elif with_calls and open_calls.get(call := str(data.get("call_id"))):
                place, number = open_calls[call].pop()
                joined = {**place[number], "output": data.get("output")}
                if place is answer:
                    place[number] = joined
                else:
                    late.append(joined)
            else:
                known = called.get(call := str(data.get("call_id")))
                name = f"{known['name']}({known['input'] or '{}'})" if known is not None else f"call {call}"
                parts.append({"type": "text", "text": f"[result of {name}: {_output(data)}]"})
        if late:
            found.append(replace(one, role="assistant", parts=late))
        if not is_more:
            found.append(replace(one, parts=parts))
        answer = parts if one.role == "assistant" else answer
    ids: set[str] = set()
    for parts in (one.parts for one in found):
        for number, part in enumerate(parts):
            if part["type"] == "tool" and "output" in part:
                id = part["call"]
                while id in ids:
                    id += "_"
                ids.add(id)
                parts[number] = {**part, "call": id}
    return found


class _ModelStep(NamedTuple):
    """Texts and files, and the tool calls after them.

    An answer of a model that called tools several times has one step for each time.
    """

    content: list[str | Part]
    calls: list[Part]


def _model_steps(message: Message, *, with_breakpoints: bool = False) -> Iterator[_ModelStep]:
    """Yield the content and tool calls of `message`, in order, except calls without a result: the APIs refuse those.

    Files of other messages than those of the user are placeholders: no API accepts them there. `with_breakpoints` the
    content has those of cached prompts, too.
    """
    content, calls = list[str | Part](), list[Part]()
    for part in message.parts:
        if part["type"] == "tool" and "output" in part:
            # models write line ends around calls, and Anthropic refuses text of line ends only
            content = [one for one in content if not isinstance(one, str) or one.strip()]
            calls.append(part)
            continue
        if part["type"] == "text":
            shown: str | Part = part["text"]
        elif part["type"] == "file":
            shown = part if message.role == "user" else _placeholder(part)
        elif with_breakpoints and not calls and _is_breakpoint(part):
            shown = part
        else:
            continue
        if message.role == "tool":
            continue  # only its calls count
        if calls and (not isinstance(shown, str) or shown.strip()):
            yield _ModelStep(content, calls)
            content, calls = [], []
        if not calls and isinstance(shown, str) and content and isinstance(content[-1], str):
            content[-1] += "\n" + shown if message.role == "user" else shown
        elif not calls and shown:
            content.append(shown)
    if content or calls:
        yield _ModelStep(content, calls)


def _is_breakpoint(part: Part) -> bool:
    """Return whether a part ends a cached prompt. Of another one, the provider would refuse each later turn."""
    data = part.get("data") if part["type"] == "data" and part["name"] == CACHED else None
    return isinstance(data, dict) and data.get("mode") == "explicit" and data.keys() <= {"mode", "ttl"}


class _File(NamedTuple):
    """A file part as the APIs need it."""

    url: str  # empty if it is malformed
    media_type: str  # empty if it is unknown
    name: str
    data: str | None  # content in base64; None if `url` is an address

    @property
    def is_image(self) -> bool:
        return self.media_type.startswith("image/")


def _file(part: Part) -> _File:
    """Return the file of a part, whose fields are an app's or a client's own."""
    url = part["url"] if isinstance(part.get("url"), str) else ""
    media_type, data = str(part.get("mediaType") or part.get("media_type") or ""), None
    if url[:5].lower() == "data:":
        about, _, data = url[5:].partition(",")
        media_type = about.split(";")[0] or media_type or "text/plain"
        if not about.lower().endswith(";base64"):
            data = base64.b64encode(unquote_to_bytes(data)).decode()
        if not data or not data.isascii():
            url, data = "", None  # malformed
    try:
        path = urlsplit(url).path if data is None else ""
    except ValueError:
        url = path = ""
    name = part.get("filename") or part.get("name")
    if not isinstance(name, str):
        name = unquote(path.rsplit("/", 1)[-1])
    if media_type in ("", "application/octet-stream"):
        kind, packed = guess_type(name.rpartition("/")[2])  # it refuses some names as malformed addresses
        media_type = kind if kind and packed is None and kind.startswith(_GUESSED) else media_type
    if data is not None and not url.startswith(about := f"data:{media_type};base64,"):  # no API knows other parameters
        url = about + data
    return _File(url, media_type.lower(), name, data)


def _placeholder(part: Part) -> str:
    """Return the text in place of a file that a shape or an API does not take."""
    file = _file(part)
    name = file.name or file.media_type
    return f"[{'image' if file.is_image else 'file'}{f': {name}' if name else ''}]"


def _text_of(content: Iterable[str | Part], between: str = "") -> str:
    return between.join(one if isinstance(one, str) else _placeholder(one) for one in content)


def _content_of(output: Json) -> list[str | Part] | None:
    """Return the texts and files of a result that is a list of such parts; None for another value."""
    if not isinstance(output, list) or not output:
        return None
    for one in output:
        match one:
            case {"type": "text", "text": str(), **more} if not more:
                continue
            case {"type": "file", "url": str(), **more} if more.keys() <= {"mediaType", "filename", "detail"}:
                continue
        return None
    return [one["text"] if one["type"] == "text" else one for one in output]


def _output(part: Part, block: Callable[[str | Part], Json] | None = None) -> Json:
    """Return a result as a text, or with `block`, if it is a list of texts and files, as the list of its blocks."""
    output = part.get("output")
    if (content := _content_of(output)) is not None:
        return _text_of(content) if block is None else [one for one in map(block, content) if one is not None]
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def _text(message: Message) -> Iterator[dict[str, Json]]:
    shown = [one["text"] if one["type"] == "text" else one for one in message.parts if one["type"] in ("text", "file")]
    if message.role != "tool" and (text := _text_of(shown, "\n" if message.role == "user" else "")):
        yield {"role": message.role, "content": text}


def _by_participant(message: Message) -> list[tuple[dict[str, Json], Message]]:
    """Return the parts of each participant, with the field that names them."""
    groups: list[tuple[dict[str, Json], list[Part]]] = [({}, [])]
    for part in message.parts:
        if part["type"] == "data" and part["name"] == PARTICIPANT:
            name = part.get("data")
            groups.append(({"name": name} if isinstance(name, str) and _PARTICIPANT.match(name) else {}, []))
        else:
            groups[-1][1].append(part)
    return [(named, replace(message, parts=parts)) for named, parts in groups]


def _openai(message: Message) -> Iterator[dict[str, Json]]:
    steps = [(named, *step) for named, one in _by_participant(message) for step in _model_steps(one)]
    for named, content, calls in steps:
        is_one_message = bool(calls) and message.role == "assistant"  # no other role has calls there
        is_text = all(isinstance(one, str) for one in content)
        shown: Json = _text_of(content) if is_text else [_openai_content(one) for one in content]
        if shown and not is_one_message:
            yield {"role": message.role, "content": shown, **named}
        if calls:
            text = shown if shown and is_one_message else None
            yield {"role": "assistant", "content": text, "tool_calls": [_tool_call(part) for part in calls], **named}
        for part in calls:  # a result is of no participant
            output = _output(part, lambda one: {"type": "text", "text": _text_of([one])})  # it takes only texts here
            yield {"role": "tool", "tool_call_id": _id(part, _OPENAI_ID), "content": output}


def _openai_content(one: str | Part) -> dict[str, Json]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    file = _file(one)
    if file.is_image and file.url:
        return {"type": "image_url", "image_url": {"url": file.url, **_detail(one)}}
    sound = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}.get(file.media_type)
    if file.data is not None and sound is not None:
        return {"type": "input_audio", "input_audio": {"data": file.data, "format": sound}}
    if file.data is not None:
        return {"type": "file", "file": {"filename": file.name or "file", "file_data": file.url}}
    return {"type": "text", "text": _placeholder(one)}  # this API takes no address of a file


def _detail(part: Part) -> dict[str, Json]:
    return {"detail": part["detail"]} if isinstance(part.get("detail"), str) else {}


def _name(part: Part) -> str:
    """Return the name of a tool in the form that the APIs accept: a shown step may have any name."""
    return re.sub("[^a-zA-Z0-9_-]", "_", part["name"])[:64]


def _is_custom(part: Part) -> bool:
    return _TOOL in part and part[_TOOL]["type"] == "custom"


def _tool_call(part: Part) -> dict[str, Json]:
    if _is_custom(part):
        return {"id": _id(part, _OPENAI_ID), "type": "custom", "custom": {"name": _name(part), "input": part["input"]}}
    function = {"name": _name(part), "arguments": part["input"] or "{}"}
    return {"id": _id(part, _OPENAI_ID), "type": "function", "function": function}


def _responses(message: Message) -> Iterator[dict[str, Json]]:
    for content, calls in _model_steps(message, with_breakpoints=message.role != "assistant"):
        blocks: list[Json] = []
        for one in content:
            if isinstance(one, str) or one["type"] != "data":
                blocks.append(_responses_content(one))
            elif blocks:  # a breakpoint marks the block before it
                blocks[-1] = {**blocks[-1], CACHED: one["data"]}
        if shown := _text_of(content) if all(isinstance(one, str) for one in content) else blocks:
            yield {"role": message.role, "content": shown}
        for part in calls:
            given = {"input": part["input"]} if _is_custom(part) else {"arguments": part["input"] or "{}"}
            if _TOOL in part and part[_TOOL]["namespace"] is not None:
                given["namespace"] = part[_TOOL]["namespace"]
            yield {"type": _call_type(part), "call_id": part["call"], "name": _name(part), **given}
        for part in calls:
            output = _output(part, _responses_content)
            yield {"type": f"{_call_type(part)}_output", "call_id": part["call"], "output": output}


def _call_type(part: Part) -> str:
    return "custom_tool_call" if _is_custom(part) else "function_call"


def _responses_content(one: str | Part) -> dict[str, Json]:
    if isinstance(one, str):
        return {"type": "input_text", "text": one}
    file = _file(one)
    if not file.url:
        return {"type": "input_text", "text": _placeholder(one)}
    if file.is_image:
        return {"type": "input_image", "image_url": file.url, "detail": "auto", **_detail(one)}
    if file.data is not None:
        return {"type": "input_file", "filename": file.name or "file", "file_data": file.url, **_detail(one)}
    return {"type": "input_file", "file_url": file.url, **_detail(one)}


def _anthropic(message: Message) -> Iterator[dict[str, Json]]:
    steps = [*_model_steps(message)] if message.role != "system" else []  # `system_texts` has those
    for content, calls in steps or [_ModelStep([], [])]:
        shown = [block for one in content if (block := _anthropic_content(one)) is not None]
        if message.role == "user" and not (shown or calls) and any(part["type"] == "text" for part in message.parts):
            shown = [{**_BLANK}]  # without it the history would end with an answer
        if shown:
            yield {"role": message.role, "content": shown}
        if calls:
            yield {"role": "assistant", "content": [_tool_use(part) for part in calls]}
            yield {"role": "user", "content": [_tool_result(part) for part in calls]}


def _anthropic_content(one: str | Part) -> dict[str, Json] | None:
    """Return a block; None for a text without letters, which Anthropic refuses."""
    if isinstance(one, str):
        return {"type": "text", "text": one} if one.strip() else None
    file = _file(one)
    source: dict[str, Json] = {"type": "url", "url": file.url}
    kind = "image/jpeg" if file.media_type == "image/jpg" else file.media_type
    if file.data is not None:
        source = {"type": "base64", "media_type": kind, "data": file.data}
    if file.url and (kind in _ANTHROPIC_IMAGES or (kind == "image/*" and file.data is None)):
        return {"type": "image", "source": source}
    title = {"title": file.name} if file.name else {}
    if file.url and file.media_type == "application/pdf":
        return {"type": "document", "source": source, **title}
    if file.media_type.startswith(("text/", "application/json")) and file.data and (text := _decoded(file.data)):
        return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, **title}
    return {"type": "text", "text": _placeholder(one)}


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4)).decode("utf-8", "replace")
    except ValueError:
        return ""


def _id(call: Part, accepted: re.Pattern[str]) -> str:
    """Return the id of a call, or a hash of one that the API does not accept."""
    id = call["call"]
    return id if accepted.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:32]


def _tool_use(part: Part) -> dict[str, Json]:
    try:
        arguments = {"input": part["input"]} if _is_custom(part) else json.loads(part["input"] or "{}")
    except (ValueError, RecursionError):
        arguments = {}
    arguments = arguments if isinstance(arguments, dict) else {}  # Anthropic takes no other values
    return {"type": "tool_use", "id": _id(part, _ANTHROPIC_ID), "name": _name(part), "input": arguments}


def _tool_result(part: Part) -> dict[str, Json]:
    content = _output(part, _anthropic_content)
    return {"type": "tool_result", "tool_use_id": _id(part, _ANTHROPIC_ID), "content": content}


def _alternating(turns: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return `turns` with neighbours of the same role joined, behind a blank one of the user if an answer begins."""
    if turns and turns[0]["role"] == "assistant":
        turns = [{"role": "user", "content": [{**_BLANK}]}, *turns]
    groups = groupby(turns, key=lambda turn: turn["role"])
    return [{"role": role, "content": [block for turn in same for block in turn["content"]]} for role, same in groups]
