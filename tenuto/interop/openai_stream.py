"""A turn in OpenAI's API: ids and items, events whose numbers let a reader continue at each character, and chunks.

Layer: interop.

`sequence_number` is a position in the answers: an event of the structure counts 1, a delta its code points, and parts
come in the order of their index. So it depends on the stored answers alone. A part ends when the next one begins. Later
text for it is in the last event only, which each stream has. The parts after the n-th superseded attempt begin at n
times `ATTEMPT_ROOM`. So their numbers are the same whether or not a reader saw it, and so is `output_index`, which
counts its items. They are taken back in the last numbers before that, newest first: a number there depends on no text,
and says that the reader has lost the items behind it. A reader with a number from before a `regenerate` begins anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec.structs import replace

from tenuto import Message
from tenuto.core.errors import NotFound
from tenuto.interop.adapter import packed, requested_in, unpacked
from tenuto.interop.fold import (
    Answer,
    EventStream,
    Json,
    Part,
    Place,
    SentText,
    call_of,
    earlier_parts,
    encode,
    parsed,
    text_of,
)
from tenuto.routes import OUTPUT, InAnswer, MessageReplaced, TurnChanged, TurnDelta, has_result, own_tools, tools_in

# options of messages beside those of their requests (`requested_in`)
CONVERSATION = "conversation"  # True if the request of this question names a conversation
CUSTOM = "custom"  # the names of the custom tools that the message calls; in the data of an output of one: True
STEERS = "steers"  # of further input: the id of the question with the first response
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_ID = re.compile(r"([a-z]+[_-])([A-Za-z0-9_-]{1,700})\Z")
_ITEMS = ("msg_", "rs_", "fc_", "ctc_", "mcp_", "mcpr_", "in_")  # prefixes of ids; items of input have `in_`
_KINDS = {"response": ("resp_", "chatcmpl-"), "conversation": ("conv_",), "item": _ITEMS, "approval": ("mcpr_",)}
SERVER = "tenuto"  # `server_label` of tools that the server runs
CALLS = ("function_call", "custom_tool_call")  # of tools that the caller runs
_PREFIXES = dict(zip(("message", "reasoning", *CALLS, "mcp_call"), _ITEMS, strict=False))


class Reference(NamedTuple):
    """The meaning of an id: a turn, and a part. A response begins with it, an item is it.

    In the id of an input item it is a message, and the number of the item. A conversation is a channel alone.
    `attempt` is the number of superseded attempts before the part, which may have had a part at its place, `steers`
    that of the inputs taken in before a response that steering began. An approval request also names its `question`.
    """

    channel: str
    message_id: str = ""
    start: Place = (0, 0)
    attempt: int = 0
    steers: int = 0
    question: str = ""

    def at(self, start: Place = (0, 0), attempt: int = 0) -> Reference:
        """Return the same turn from another part on; by default from its beginning."""
        return Reference(self.channel, self.message_id, start, attempt)

    def id(self, prefix: str = "resp_") -> str:
        """Return the id. Chat completions have the ids of their responses with another prefix."""
        numbers = (*self.start, self.attempt, self.steers)[: 4 if self.steers else 3 if self.attempt else 2]
        start = [".".join(map(str, numbers))] if any(numbers) or self.question else []
        return prefix + packed(self.channel, self.message_id, *start, *filter(None, [self.question]))


class Asked(NamedTuple):
    """A response that a request asks for: the question of its turn, and all options beside it."""

    of: Reference
    question: Message
    options: Json


def reference(id: object, param: str | None = None, *, kind: str = "response") -> Reference:
    """Return the meaning of an id, from the field `param` of a body. Raises NotFound, also for other texts."""
    if isinstance(id, str) and (found := _ID.match(id)) is not None and found[1] in _KINDS[kind]:
        with suppress(ValueError):
            channel, message_id, *rest = unpacked(found[2])
            a, index, attempt, steers = [*map(int, rest[0].split(".") if rest else (0, 0)), 0, 0][:4]
            of = Reference(channel, message_id, (a, index), attempt, steers, "".join(rest[1:2]))
            is_approval = found[1] == "mcpr_"
            if of.id(found[1]) == id and bool(of.question) == is_approval and min(a, index, attempt, steers) >= 0:
                return of
    raise unknown(kind, id, param)


def unknown(kind: str, id: object, param: str | None = None) -> NotFound:
    """Return the error about an id that this server, or this caller, does not have."""
    detail = f"{kind} {str(id)[:256]!r} does not exist; use an id that this server has returned"
    return NotFound(detail, **({"param": param} if param else {}))


def input_items(channel: str, message: Message) -> list[Json]:
    """Return a message of a client, such as the question of a turn, as items."""
    items: list[Json] = []
    custom = names if isinstance(names := requested_in(message).get(CUSTOM), list) else []
    for part in message.parts:
        match part:
            case {"type": "data", "name": name, "data": {"call_id": call, "output": output, **about}} if name == OUTPUT:
                kind = CALLS[1 if about.get(CUSTOM) else 0]
                blocks = _blocks(output) if isinstance(output, list) else []
                shown = output if isinstance(output, str) else blocks or json.dumps(output, ensure_ascii=False)
                items.append({"type": f"{kind}_output", "call_id": call, "output": shown})
            case {"type": "tool"}:
                kind = "mcp_call" if has_result(part) else CALLS[1 if part["name"] in custom else 0]
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
                where = "file_data" if url[:5].lower() == "data:" else "file_url"
                content.append({"type": "input_file", where: url, **named})
    return content


def kind_of(part: Json, own_tools: Mapping[str, Json]) -> str:
    """Return the type of the output item of a part; empty for a part that has none."""
    if part["type"] == "tool":
        if part["name"] not in own_tools:
            return "mcp_call"
        return "custom_tool_call" if own_tools[part["name"]]["type"] == "custom" else "function_call"
    return {"text": "message", "reasoning": "reasoning"}.get(part["type"], "")


def item_of(kind: str, part: Json, text: str, of: Reference, *, state: str = "completed") -> Json:
    """Return the item of the part at `of`; `state` is `empty` at its beginning, later its `status`."""
    status = "in_progress" if state == "empty" else state
    head = {"id": of.id(_PREFIXES[kind]), "type": kind}
    match kind:
        case "message":
            content = [] if state == "empty" else [text_block(kind, text)]
            return {**head, "role": "assistant", "content": content, "status": status}
        case "reasoning":
            return {**head, "summary": [] if state == "empty" else [text_block(kind, text)], "status": status}
        case "function_call" | "custom_tool_call":
            return {**head, "call_id": part["call"], "name": part["name"], _EVENTS[kind][1]: text, "status": status}
    call: Json = {"server_label": SERVER, "name": part["name"], "arguments": text, "output": None, "error": None}
    if state != "empty" and has_result(part):
        output = "denied" if (ended := part.get("state")) == "denied" else part.get("output")
        shown = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
        error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": shown}]}
        call |= {"error": error} if ended in ("error", "denied") else {"output": shown}
        status = "failed" if call["error"] is not None else "completed"
    return {**head, **call, "status": status}


def text_block(kind: str, text: str) -> Json:
    """Return the content of a message item, or the summary of a reasoning item."""
    if kind == "reasoning":
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def error_of(problem: Json) -> Json:
    """Return a problem as an error of OpenAI's API. It names the `response_id` of a question that is stored."""
    status, id = problem["status"], problem.get("response_id")
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message, code, param = problem["detail"] or problem["title"], problem["code"], problem.get("param")
    if code == NotFound.code and param == "previous_response_id":
        code = "previous_response_not_found"  # clients begin a new chain after it
    message, named = (f"{message}; retrieve the response {id}", {"response_id": id}) if id else (message, {})
    return {"message": message, "type": kind, "code": code, "param": param, **named}


# -- the events -----------------------------------------------------------------------------------------------------

# Numbers from here on are those of last events that exist only while the caller has a question to answer.
ASKING = 2**40
STEERED = 2 * ASKING  # a response that further input ends has this and the number of its next item as its last number
ATTEMPT_ROOM = 2**28  # more than a message has characters
ROUND_ROOM = 2 * STEERED  # for one answer: each `regenerate` adds it to all numbers
LIMIT = 2**53  # of numbers: JavaScript counts no further
_REPEATED: Json = {  # fields of a request that its response repeats as they are, and their defaults
    **dict.fromkeys(("max_output_tokens", "max_tool_calls", "reasoning", "instructions", "previous_response_id")),
    **dict.fromkeys(("prompt", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user")),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), 0),
    **dict.fromkeys(("temperature", "top_p"), 1),
    "background": False,
    "parallel_tool_calls": True,
    "service_tier": "default",
    "truncation": "disabled",
}
_CUTS = {"length": "max_output_tokens", "content_filter": "content_filter"}  # reasons by `meta.finish_reason`
_FUNCTION: Json = dict.fromkeys(("description", "parameters", "strict"))  # optional fields of the caller's tool


def usage(answers: list[Answer]) -> Json | None:
    """Return the tokens that the answers name in `meta.usage` at their ends; None if they name none."""
    found = [got for one in answers if one.status != "streaming" and isinstance(got := one.meta.get("usage"), dict)]
    if not found:
        return None
    names = ("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
    counts = [{name: one[name] if isinstance(one.get(name), int) else 0 for name in names} for one in found]
    total = {name: sum(one[name] for one in counts) for name in names}
    return {
        **{name: total[name] for name in ("input_tokens", "output_tokens")},
        "total_tokens": sum(max(one["total_tokens"], one["input_tokens"] + one["output_tokens"]) for one in counts),
        "input_tokens_details": {name: total[name] for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens_details": {"reasoning_tokens": total["reasoning_tokens"]},
    }


def _server_error(code: str, message: str) -> Json:
    return {"type": "server_error", "code": code, "message": message, "param": None}


# for each kind of item: the events of its text, the field that has the whole, and the events of its content with fields
_EVENTS: dict[str, tuple[str, str, str, Json, Json]] = {
    "message": ("output_text", "text", "content_part", {"content_index": 0}, {"logprobs": []}),
    "reasoning": ("reasoning_summary_text", "text", "reasoning_summary_part", {"summary_index": 0}, {}),
    "function_call": ("function_call_arguments", "arguments", "", {}, {}),
    "custom_tool_call": ("custom_tool_call_input", "input", "", {}, {}),
    "mcp_call": ("mcp_call_arguments", "arguments", "", {}, {}),
}


class TurnEvents(EventStream):
    """The events of one turn for one reader (`TurnFormat`). The reader has the events with numbers up to `after`.

    They end when the turn waits for the caller, unless `is_cancelled`. They also end before an item that would be the
    second or a later one once the agent has taken in further input (`steers`); then `rest` is its place.
    """

    def __init__(self, asked: Asked, after: int = -1, previous: Reference | None = None) -> None:
        """`previous` is the response that this one continues within its turn; by default the first of the turn."""
        super().__init__(keeps_text=True)
        self.of, self._question, self._options = asked
        self.rest: Reference | None = None
        self.steers = 0  # number of inputs that the agent has taken in, if the rest of the turn is another response
        self.is_cancelled = False  # the caller has just cancelled the turn: its end counts, also with an open question
        self.is_repeated = False  # the reader has the last event, which was sent again
        self.round = ""  # that of the turn (`TurnStatus.round`), once the first deltas have named it
        self.base = 0  # what all numbers of a later answer to the question have in addition
        self.position = 0  # number of the next event, above `base`
        if any(self.of.start) and not self._options.get(CONVERSATION):  # one in a conversation names no other response
            self._options = {**self._options, "previous_response_id": (previous or self.of.at()).id()}
        self.after = after  # with `base`, until the round is known; LIMIT: the caller needs no events
        self._own_tools = own_tools(self._options)
        self._turn.place = self.of.start[0], 0
        self._part: Part | None = None  # the part whose item is open
        self._where = Json()  # fields of the events of this item
        self._kind = ""
        self._begins = 0  # number of the event that opened the item
        self._items = 0  # number of items before the next one, also of those that the reader does not get
        self._indexes: dict[Part, int] = {}  # `output_index` of the items that are taken back if they count no longer
        self._lost: Place | None = None  # from it on the parts of this walk count no longer

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        events = self.receive(deltas)
        return b"".join([b"event: %b\ndata: %b\n\n" % (one["type"].encode(), encode(one)) for one in events])

    def receive(self, deltas: Sequence[TurnDelta]) -> list[Json]:
        """Return the events for `deltas`."""
        if (found := self._turn.sole_text(deltas)) is not None and found[0] is self._part:  # hot path: more text
            found[0].new.append(found[1])
            self._grow(found[0])
        else:
            if not self.position:  # the round may be later than that of the turn which the request read
                self.round = next((one.round for one in deltas if isinstance(one, TurnChanged)), "")
                self.base = min(int(self.round.rpartition(":")[2] or 0), LIMIT // ROUND_ROOM - 1) * ROUND_ROOM
                if self.after != LIMIT:
                    self.after = self.after - self.base if self.base <= self.after < self.base + ROUND_ROOM else -1
                for name in ("created", "in_progress"):
                    self._put(f"response.{name}", response=self._response("in_progress", []))
            self._fold(deltas)
            self._walk(is_split=self.steers > 0)
            self._end()
        return self._taken()

    def _fold(self, deltas: Sequence[TurnDelta]) -> None:
        """Apply `deltas`. The items of each attempt that they supersede are counted, and then taken back."""
        for delta in deltas:
            if isinstance(delta, InAnswer) and isinstance(whole := delta.delta, MessageReplaced):
                a, answer = next(one for one in enumerate(self._turn.answers) if one[1].id == delta.message_id)
                known = answer.attempts_in(len(answer.parts))  # attempts that this fold has superseded before
                for since, parts in earlier_parts(whole.message.parts)[known:]:
                    earlier = MessageReplaced(replace(whole.message, parts=parts), ())
                    self._turn.receive(InAnswer(delta.message_id, earlier))
                    self._take_back()
                    self._walk(lost=(a, since))
            before = {one for one in self._turn.answers if one.is_replaced}
            self._turn.receive(delta)
            for a, answer in enumerate(self._turn.answers):
                if answer.is_replaced and answer not in before:
                    answer.is_replaced = False  # else the walk leaves its parts out
                    self._walk(lost=(a, 0))
                    answer.is_replaced = True
            self._take_back()

    def _is_lost(self, part: Part) -> bool:
        """Return whether `part` counts no longer: the walk only counts its events, without sending them."""
        return self._lost is not None and part.place >= self._lost

    def _take_back(self) -> None:
        """End the items again that count no longer, without their text, if the reader has them."""
        for part, index in [one for one in reversed(self._indexes.items()) if one[0].is_superseded]:
            del self._indexes[part]
            kind, text = kind_of(part.value, self._own_tools), part.text()
            item = {**self._item(kind, part, "", "empty"), "status": "incomplete"}
            if kind in CALLS:  # an empty text would be a call to some clients
                item[_EVENTS[kind][1]] = text
            self.position = self._turn.attempts(part.place[0] + 1) * ATTEMPT_ROOM - 1 - index
            self._put("response.output_item.done", output_index=index, item=item)

    def response(self) -> Json:
        """Return the `Response` as it is now."""
        status, error = self._outcome()
        output: list[Json] = []
        asked = self._open_calls()  # those with an approval are in the output as requests for it
        for part in (part for answer in self._turn.counted() for part in answer.parts):
            kind = kind_of(part.value, self._own_tools)
            if kind and self._has(part) and not asked.get(part) and (self.rest is None or part.place < self.rest.start):
                output.append(self._whole_item(part, is_ended=status == "completed"))
        return self._response(status, output + self._asked_items(), error)

    def whole(self) -> tuple[int, Json]:
        """Return the status and the body of the response in one piece."""
        return 200, self.response()

    def _response(self, status: str, output: list[Json], error: Json | None = None) -> Json:
        """Return a `Response` with these fields. A setting that the client left to the model has OpenAI's default."""
        options, answers = self._options, self._turn.answers
        repeated = {**_REPEATED, **(extra if isinstance(extra := options.get("extra"), dict) else {}), **options}
        form, cut = options.get("response_format") or {"type": "text"}, _CUTS.get(self.finish_reason(), "steered")
        ended_at = max([self._question.created_at, *(one.ended_at for one in answers)])
        model = next((one.meta["model"] for one in answers if "model" in one.meta), None)
        return {
            "id": self.of.id(),
            "object": "response",
            "created_at": self._question.created_at // 1000,
            "completed_at": ended_at // 1000 if status == "completed" and self._turn.is_over else None,
            "status": status,
            "text": {"format": form, "verbosity": options.get("verbosity") or "medium"},
            "error": error,
            "incomplete_details": {"reason": cut} if status == "incomplete" else None,
            "metadata": options.get("metadata") or {},
            "model": options.get("model") or (model if isinstance(model, str) else ""),
            "output": output,
            "tool_choice": options.get("tool_choice") or "auto",
            "tools": [{**_FUNCTION, **one} if one.get("type") == "function" else one for one in tools_in(options)],
            "usage": usage(answers[self.of.start[0] : None if self.rest is None else self.rest.start[0]]),
            **{name: repeated[name] for name in _REPEATED},
            "store": True,
            **({"conversation": {"id": Reference(self.of.channel).id("conv_")}} if options.get(CONVERSATION) else {}),
        }

    def _outcome(self) -> tuple[str, Json | None]:  # status and error of the response
        if self.rest is not None:
            return "incomplete", None  # further input has ended it
        if not self._turn.is_over:
            return ("completed" if self._open_calls() else "in_progress" if self._turn.answers else "queued"), None
        ended, reason = self._turn.end()
        if ended == "complete":
            return "incomplete" if self.finish_reason() in _CUTS else "completed", None
        return (ended, None) if ended == "cancelled" else ("failed", _server_error("server_error", reason or ended))

    def finish_reason(self) -> str:
        """Return why the response ends, in the words of chat completions."""
        counted = self._turn.counted()
        has_ended = bool(counted) and self._turn.is_over and self.rest is None
        if has_ended and (reason := str(counted[-1].meta.get("finish_reason"))) in _CUTS:
            return reason
        parts = (part.value for answer in counted for part in answer.parts)
        is_asking = any(kind_of(one, self._own_tools) in CALLS and not has_result(one) for one in parts)
        return "tool_calls" if is_asking else "stop"

    # -- the events ----------------------------------------------------------------------------------------------

    def _walk(self, *, is_last: bool = False, is_split: bool = False, lost: Place | None = None) -> None:
        """Send all parts as far as they are known. With `is_last` each part ends where it is.

        With `is_split` the response ends before its next item. Its items from `lost` on are counted, not sent.
        """
        self._lost, asked = lost, self._open_calls()
        seen = self.after - (STEERED + 1 if self.after >= STEERED else 0)  # without what a steered end adds
        for part in self._turn.walk(is_last=is_last):
            if lost is not None and part.place[0] > lost[0]:
                return
            kind = kind_of(part.value, self._own_tools)
            if not kind or not self._has(part):
                continue  # it has no item, or belongs to an earlier response
            waits = asked.get(part) and not self._has_ended(part)  # the request for its approval is in its place
            if self._part is None and not waits:
                if self._items and is_split and self.position > seen:  # the reader does not have the item
                    self.rest = self.of.at(part.place, part.attempt)._replace(steers=self.steers)
                    return
                self.position = max(self.position, (self._turn.attempts(part.place[0]) + part.attempt) * ATTEMPT_ROOM)
                self._open(kind, part)
            if self._part is not None:
                self._grow(part)
            if not (is_last or self._is_lost(part) or self._has_ended(part)):
                return
            if waits and self._part is None:
                self._items += 1  # an earlier reader has its item: further indexes are the same for both
                continue
            self._close(part)

    def _has_ended(self, part: Part) -> bool:
        """Return whether the item of a part may end. Those of calls that run at the same time follow one another."""
        is_whole, state = has_result(part.value), part.value.get("state")
        if kind_of(part.value, self._own_tools) in CALLS:  # whole with its input: without a state, when a part follows
            is_whole = part is not part.answer.parts[-1] if state is None else state != "input"
        return self._turn.has_ended(part, is_whole=is_whole)

    def _open(self, kind: str, part: Part) -> None:
        item = self._item(kind, part, "", "empty")
        self._part, self._kind, self._begins = part, kind, self.position
        self._where = {"item_id": item["id"], "output_index": self._items}
        if self.position <= self.after or not self._is_lost(part):
            self._indexes[part] = self._items  # the reader has the item, or gets it
        self._put("response.output_item.added", output_index=self._items, item=item)
        _, _, content, place, _ = _EVENTS[kind]
        if content:
            self._put(f"response.{content}.added", **self._where, **place, part=text_block(kind, ""))

    def _has(self, part: Part) -> bool:
        """Return whether a part belongs to the response, or to a later attempt than the place where it begins."""
        return part.place >= self.of.start or (part.place[0] == self.of.start[0] and part.attempt > self.of.attempt)

    def _item(self, kind: str, part: Part, text: str, state: str) -> Json:
        item = item_of(kind, part.value, text, self.of.at(part.place, part.attempt), state=state)
        group = self._own_tools[part.value["name"]]["namespace"] if kind in CALLS else None
        return item if group is None else {**item, "namespace": group}

    def _grow(self, part: Part) -> None:
        """Send the new text that the reader lacks, except a superseded part's; each character counts as one event."""
        text = part.take()
        begins, self.position = self.position, self.position + len(text)
        missing = text[max(0, self.after + 1 - begins) :]
        if missing and not self._is_lost(part):
            name, _, _, place, more = _EVENTS[self._kind]
            event = {"type": f"response.{name}.delta", "sequence_number": self.base + self.position - 1, **self._where}
            self._events.append({**event, **place, **more, "delta": missing})

    def _close(self, part: Part) -> None:
        text = part.text()
        name, field, content, place, more = _EVENTS[self._kind]
        # behind the events before the text, and the text: one that was replaced counts as it is stored
        self.position = max(self.position, self._begins + (2 if content else 1) + part.sent.length)
        named = {"name": part.value["name"]} if self._kind == "function_call" else {}
        self._put(f"response.{name}.done", **self._where, **place, **named, **{field: text}, **more)
        if content:
            self._put(f"response.{content}.done", **self._where, **place, part=text_block(self._kind, text))
        item = self._whole_item(part, is_ended=True)
        # not taken back: a second end would run a call again in some clients, and the AI SDK raises for a reasoning
        if self._kind in (*CALLS, "reasoning") and (self.position <= self.after or not self._is_lost(part)):
            del self._indexes[part]
        self._put("response.output_item.done", output_index=self._items, item=item)
        self._part = None
        self._items += 1

    def _whole_item(self, part: Part, *, is_ended: bool) -> Json:
        is_cut = part.answer.status not in ("streaming", "complete") and part is part.answer.parts[-1]
        kind, text = kind_of(part.value, self._own_tools), part.text()
        has_ended = is_ended or self._has_ended(part)
        if has_ended and kind == "function_call" and part.value.get("state") == "input":
            is_cut = is_cut or not (text and parsed(text)[1])  # an attempt cut it off, and a later one went on
        state = "incomplete" if is_cut or self._open_calls().get(part) else "completed" if has_ended else "in_progress"
        return self._item(kind, part, text, state)

    # -- questions for the caller --------------------------------------------------------------------------------

    def _open_calls(self) -> dict[Part, str]:
        """Return the calls that wait for the caller: each with the id of its approval, or "" if the caller runs it."""
        if not self._turn.open or self._turn.state == "over":
            return {}
        found: dict[Part, str] = {}
        parts = [part for answer in self._turn.counted() for part in answer.parts if part.value["type"] == "tool"]
        calls = {part.value["call"]: part for part in parts}
        for id in self._turn.open:
            question = self._turn.questions[id].command
            part = calls.get(call_of(question.data))
            is_own = part is not None and part.value["name"] in self._own_tools
            if part is not None and (is_own or question.name == "approve"):
                found[part] = "" if is_own else id
        return found

    def required_input(self) -> list[Json]:
        """Return what the turn waits for from the caller, as input without its results."""
        required: list[Json] = []
        for part, id in self._open_calls().items():
            approval = {"type": "mcp_approval_response", "approval_request_id": self._approval(part, id)["id"]}
            output = {"type": f"{kind_of(part.value, self._own_tools)}_output", "call_id": part.value["call"]}
            required.append(approval if id else {**output, "name": part.value["name"]})
        return required

    def _asked_items(self) -> list[Json]:
        """Return an approval request for each call that needs one, and the open calls that an earlier response has."""
        return [
            self._approval(part, id) if id else self._whole_item(part, is_ended=True)
            for part, id in self._open_calls().items()
            if id or not self._has(part)
        ]

    def _approval(self, part: Part, id: str) -> Json:
        of = self.of.at(part.place, part.attempt)._replace(question=id)
        about = {"arguments": part.text(), "name": part.value["name"], "server_label": SERVER}
        return {"id": of.id("mcpr_"), "type": "mcp_approval_request", **about}

    def _end(self) -> None:
        """End the response if its turn has ended, waits for the caller's next request, or goes on in another response.

        The last event is above the number that the reader has, so that it gets it also if text was removed.
        """
        asked = self._open_calls() if not (self.is_cancelled or self._turn.is_over) else {}
        if self.rest is not None:
            self.position += STEERED
        elif self._turn.is_over or asked:
            self.position = max(self.position, ASKING) if asked else self.position
            self._walk(is_last=True)
            for item in self._asked_items() if asked else ():
                self._put("response.output_item.added", output_index=self._items, item=item)
                self._put("response.output_item.done", output_index=self._items, item=item)
                self._items += 1
        else:
            return
        has_error = self.position == self.after  # the reader has the event `error`, but not the last one
        self.is_repeated = self.position <= self.after
        self.position = max(self.position, self.after + 1)
        whole, self.is_over = self.response(), True
        name = "incomplete" if whole["status"] == "cancelled" else whole["status"]
        if (error := whole["error"]) is not None and not has_error:  # first, as in OpenAI's API: clients report one
            self._put("error", code=error["code"], message=error["message"], param=None, error=error)
        self._put(f"response.{name}", response=whole)

    def _put(self, event_type: str, **fields: Any) -> None:
        number, self.position = self.position, self.position + 1
        if number > self.after and not (self._part is not None and self._is_lost(self._part)):
            self._events.append({"type": event_type, "sequence_number": self.base + number, **fields})


CHAT_ID = "chatcmpl-"  # prefix of a chat completion's id; the rest is that of the response's id
_APPROVAL = _server_error("approval_required", "a chat completion cannot approve a call; use the responses API")
_CANCELLED = _server_error("cancelled", "the answer was cancelled; retrieve the completion's id as a response")
_REPLACED = _server_error("replaced", "the text that was sent was changed; retrieve the completion's id as a response")


class ChatStream(TurnEvents):
    """The chunks of a chat completion (`TurnFormat`), each made of an event of the `Response`."""

    def __init__(self, asked: Asked, *, has_usage: bool = False) -> None:
        super().__init__(asked)
        self._has_usage = has_usage  # a last chunk has the usage
        self._head: Json = {"id": self.of.id(CHAT_ID), "object": "chat.completion.chunk"}
        self._sent = [SentText()]  # the text, and the arguments of each call

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the chunks for `deltas` (`TurnFormat.frame`)."""
        attempts, has_sent = self._turn.attempts(), self._sent[0].length or self._sent[1:]
        chunks = [chunk for event in self.receive(deltas) for chunk in self._chunks(event)]
        if has_sent and self._turn.attempts() > attempts and not self.is_over:
            chunks, self.is_over = [{"error": _REPLACED}], True  # a client adds each chunk to those before
        body = b"".join([b"data: %b\n\n" % encode(chunk) for chunk in chunks])
        return body + b"data: [DONE]\n\n" if self.is_over and not (chunks and "error" in chunks[-1]) else body

    def whole(self) -> tuple[int, Json]:
        """Return the status and the body of the completion in one piece."""
        response = self.response()
        error, text = _end_of(response)
        if error is not None:
            return 500, {"error": error}
        calls = [_chat_call(one) for one in response["output"] if one["type"] in CALLS]
        message: Json = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        message |= {"annotations": []} | ({"tool_calls": calls} if calls else {})
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason()}
        head = {"id": self.of.id(CHAT_ID), "object": "chat.completion", "created": response["created_at"]}
        used = {"usage": usage} if (usage := _usage(response)) is not None else {}
        return 200, {**head, "model": response["model"], "choices": [choice], **used}

    def _chunks(self, event: Json) -> Iterator[Json]:
        match event["type"]:
            case "response.created":
                self._head |= {"created": event["response"]["created_at"], "model": event["response"]["model"]}
                yield self._chunk({"role": "assistant", "content": ""})
            case "response.output_text.delta":
                self._sent[0].add(event["delta"])
                yield self._chunk({"content": event["delta"]})
            case "response.reasoning_summary_text.delta":
                yield self._chunk({"reasoning_content": event["delta"]})
            case "response.output_item.added" if event["item"]["type"] in CALLS:
                self._sent.append(SentText(_input_of(event["item"])))
                yield self._more(_chat_call(event["item"]))
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" as name:
                self._sent[-1].add(delta := event["delta"])
                is_function = name == "response.function_call_arguments.delta"
                yield self._more({"function": {"arguments": delta}} if is_function else {"custom": {"input": delta}})
            case "response.completed" | "response.incomplete":
                error, text = _end_of(event["response"])
                texts = [text, *(_input_of(one) for one in event["response"]["output"] if one["type"] in CALLS)]
                has_all = [one.length for one in self._sent] == [*map(len, texts)]
                if error is None and not (has_all and all(map(SentText.begins, self._sent, texts))):
                    error = _REPLACED  # the client has added up other texts
                yield {"error": error} if error is not None else self._chunk({}, finish_reason=self.finish_reason())
                if self._has_usage and error is None:
                    yield {**self._head, "choices": [], "usage": _usage(event["response"])}
            case "error":
                yield {"error": event["error"]}

    def _more(self, call: Json) -> Json:
        """Return the chunk with more of the last call."""
        return self._chunk({"tool_calls": [{"index": len(self._sent) - 2, **call}]})

    def _chunk(self, delta: Json, *, finish_reason: str | None = None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def _chat_call(item: Json) -> Json:
    """Return a call of a response as a chat completion has it."""
    kind, field = ("function", "arguments") if item["type"] == "function_call" else ("custom", "input")
    return {"id": item["call_id"], "type": kind, kind: {"name": item["name"], field: _input_of(item)}}


def _input_of(item: Json) -> str:
    """Return the arguments of a call."""
    return str(item[_EVENTS[item["type"]][1]])


def _end_of(response: Json) -> tuple[Json | None, str]:
    """Return the error that ends a chat completion, None without one, and the whole text."""
    output = response["output"]
    asks = any(one["type"] == "mcp_approval_request" for one in output)
    error = response["error"] or (_CANCELLED if response["status"] == "cancelled" else _APPROVAL if asks else None)
    return error, "".join(content["text"] for one in output if one["type"] == "message" for content in one["content"])


def _usage(response: Json) -> Json | None:
    usage = (response["usage"] or {}).items()
    return {name.replace("input", "prompt").replace("output", "completion"): count for name, count in usage} or None
