"""The routes and the events of AG-UI (npm `@ag-ui/client`): its `HttpAgent` works on a hub unmodified.

Layer: interop.

`AGUI(hub, channel="chat:{id}").install(app, "/api/agent")` adds five routes to an app. Of the messages of a run only
the last one of the user is stored, or the results of the page's own tools after it; its id is the id of the stored
message, so a repeated run joins the turn. The route at the path itself also serves npm's `@tanstack/ai-client`.

One run of the client is one turn. A text, a reasoning and the result of a tool are messages of their own in the client.
A run with a position gets the events after it, at each character. A repeated run whose client shows a part of the turn
gets a snapshot of the thread before the answer, and then the whole answer. So does each reader when an attempt is
superseded, and the positions begin anew. Parts come in the order of their index, and one ends when the next begins;
results of tools come between parts. Clients refuse an end of a run while a message or a call is open, and content
of one that is not open. `docs/agui.md` has the mapping, `TurnPosition` the form of the positions.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Annotated, Any
from zlib import crc32

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from tenuto import Hub, Message
from tenuto.core.errors import Deleted, IdConflict, InvalidRequest, NotFound
from tenuto.interop.adapter import (
    ChatRoutes,
    begin_unsent,
    body_of,
    fields_in,
    hashed,
    json_response,
    messages_in,
    output_part,
    outputs_in,
    packed,
    store_unsent,
    stored_id,
    stored_parts,
    unpacked,
)
from tenuto.interop.fold import EventStream, Json, Part, encode
from tenuto.routes import ATTEMPT, Access, TurnDelta, TurnStatus, deltas_of, has_result, is_id, options_in, own_tools


def messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the messages of a client that has run `turns`, without the answers of turns that wait or run."""
    messages: list[Json] = []
    for turn in turns:
        if turn.message is not None:
            messages += _asked(turn.message)
        if turn.state == "over":
            stream = AGUIStream("", "", "")  # messages have no ids of its thread, run or question
            messages += _folded(event for _, event in stream.receive(deltas_of(turn)))
    return messages


def _asked(question: Message) -> list[Json]:
    """Return the client's messages of a question: the results of its own tools, and what the user wrote."""
    outputs, parts = outputs_in(question), [part for part in question.parts if part["type"] != "data"]
    messages: list[Json] = []
    for number, (call, data) in enumerate(outputs.items(), 1):
        output = content = data.get("output")
        if isinstance(output, list) and all(map(_block, output)):
            content = _content(output)
        elif not isinstance(output, str):
            content = json.dumps(output, ensure_ascii=False, separators=(",", ":"))
        id = str(data.get("id", f"{question.id}.{number}"))
        error = {"error": data["error"]} if "error" in data else {}
        messages.append({"id": id, "role": "tool", "toolCallId": call, "content": content, **error})
    if parts or not outputs:
        messages.append({"id": question.id, "role": "user", "content": _content(parts)})
    return messages


def _content(parts: Sequence[object]) -> str | list[Json]:
    """Return the texts and files of a message in the client."""
    blocks = list(filter(None, map(_block, parts)))
    return "\n".join(one["text"] for one in blocks) if all(one["type"] == "text" for one in blocks) else blocks


def _block(part: object) -> Json | None:  # None: it is neither a text nor a file with a URL
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "file", "url": str(url), **about}:
            media_type = str(about.get("mediaType", ""))
            kind, _, subtype = media_type.partition("/")
            known = {"mimeType": media_type} if subtype not in ("", "*") else {}
            named = {name: about[name] for name in ("filename", "detail") if name in about}
            file = {"source": {"type": "url", "value": url, **known}, **({"metadata": named} if named else {})}
            return {"type": kind if kind in ("image", "audio", "video") else "document", **file}
    return None


def _folded(events: Iterable[Json]) -> list[Json]:
    """Return the messages that a client builds from `events`."""
    messages: dict[str, Json] = {}
    for event in events:
        match event:
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": id, "role": role}:
                messages.setdefault(id, {"id": id, "role": role})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": id, "delta": text}:
                messages[id]["content"] = messages[id].get("content", "") + text
            case {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": parent}:
                call = {"name": name, "arguments": ""}
                owner = messages.setdefault(parent, {"id": parent, "role": "assistant"})
                owner.setdefault("toolCalls", []).append({"id": id, "type": "function", "function": call})
            case {"type": "TOOL_CALL_ARGS", "delta": text}:  # of the call that began last
                call["arguments"] += text
            case {"type": "TOOL_CALL_RESULT", "messageId": id, **result}:
                messages[id] = {"id": id, **result}
    return list(messages.values())


def ui_messages_of(turns: Iterable[TurnStatus]) -> list[Json]:
    """Return the conversation as the `UIMessage`s that the client of TanStack AI builds from the events.

    It shows reasonings and calls in the answer's message before them, else in that of the first text after them.
    """
    messages: list[Json] = []
    calls: dict[str, tuple[list[Json], Json]] = {}  # for each call the parts of its message, and its own part
    for turn in turns:
        awaits_text = False  # the last message has no text yet; it gets the id of its first text
        for one in messages_of([turn]):
            role, content = one["role"], one.get("content", "")
            if role == "tool":
                if (id := one["toolCallId"]) in calls:  # else the call is in an earlier page, or was deleted
                    (parts, call), state = calls[id], "error" if one.keys() & {"metadata", "error"} else "complete"
                    call |= {"output": content, "state": state}
                    result = {"type": "tool-result", "toolCallId": id, "content": content, "state": state}
                    parts.insert(parts.index(call) + 1, result)
                continue
            is_text = role != "reasoning" and "content" in one
            if role == "user" or not messages or messages[-1]["role"] == "user" or (is_text and not awaits_text):
                messages.append({"id": one["id"], "role": "user" if role == "user" else "assistant", "parts": []})
                awaits_text = not is_text
            elif is_text:
                messages[-1]["id"], awaits_text = one["id"], False
            parts = messages[-1]["parts"]
            if role == "reasoning":
                if all(part["type"] != "thinking" for part in parts):
                    parts.append({"type": "thinking", "content": "", "stepId": one["id"]})
                next(part for part in parts if part["type"] == "thinking")["content"] += content
                continue
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part.get("text") != "":
                    parts.append({"type": "text", "content": part["text"]} if part["type"] == "text" else part)
            for call in one.get("toolCalls", ()):
                part = {"type": "tool-call", "id": call["id"], **call["function"], "state": "input-complete"}
                calls[call["id"]] = parts, part
                parts.append(part)
    return messages


ROLES = ("developer", "system", "assistant", "user", "tool", "activity", "reasoning")
SHORTER = "send the messages from the last one of the user on: requestInit of a class of your own leaves out the others"
NEWEST = 20  # newest messages of a thread among which the turn to connect to is looked for
SERVER_RESULT = ".result"  # end of the ids of the results that the client has from the server
RUN_CHARS = 256  # maximal length of a run's id, which each response repeats


class _Page(Struct, frozen=True):
    """The messages that a client loads: the newest ones, or those before a serial."""

    limit: Annotated[int, Meta(ge=1, description="a whole number from 1")] = 200
    before: Annotated[Annotated[int, Meta(ge=1, lt=10**16)] | None, Meta(description="the cursor of a page")] = None


class AGUI(ChatRoutes):
    """The routes of one agent of AG-UI: `AGUI(hub, channel="chat:{id}").install(app, "/api/agent")`.

    `{id}` in `channel` is the id of the client's thread.
    """

    def __init__(self, hub: Hub, *, channel: str) -> None:
        super().__init__(hub, channel, chat="thread", field="threadId", shown=messages_of)

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        self._install(app, path, self._run, self._hydrate, connect=self._follow)

    async def _run(self, request: Request) -> Response:
        """Add the last message of the user, or join its turn, and stream what the client lacks of the turn."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER)
        channel = self._channel_of(body.get("threadId"))
        run = body.get("runId")
        if not isinstance(run, str) or not 0 < len(run) <= RUN_CHARS:
            raise InvalidRequest(f"runId must be a text of 1 to {RUN_CHARS} characters, got {run!r:.80}")
        last, later, before, earlier = _messages_in(body)
        access.check(channel, "subscribe", "history", "publish")
        forwarded = body.get("forwardedProps")
        # clients always send a state, a context and tools, empty ones too; then an app's own are in `forwardedProps`
        filled = {name: value for name, value in body.items() if name not in ("state", "context", "tools") or value}
        options = options_in({**(forwarded if isinstance(forwarded, dict) else {}), **filled}, is_strict=False)
        question, has_results = stored_id(last["id"]), any(one["role"] == "tool" for one in later)
        # checked before a message is stored; with results it is a position in the turn that these have begun
        after = None if has_results else position_of(request, question)
        await _store_message(access, channel, last, before, earlier, options)
        if has_results:
            question, later = await _add_results(access, channel, question, later, options)
            after = position_of(request, question)
        if request.headers.get("x-run-id"):  # TanStack AI joins a run by the id that the run has named, and no thread
            run = _run_id(body["threadId"], question)
        stream = AGUIStream(body["threadId"], run, question, after)
        if after is None or after.units == 1:  # before all content: what it shows of the turn is of an earlier run
            stream.known = {one["id"]: one["role"] for one in later}
        return _stream(access, channel, stream)

    async def _hydrate(self, request: Request) -> Response:
        """Return a thread as TanStack AI loads it (`threadId`), or stream a run that it joins (`runId`)."""
        given = request.query_params
        if (run := given.get("runId")) is not None:
            match unpacked(run.removeprefix("run_")):
                case thread, question if run.startswith("run_") and is_id(question):
                    return await self._follow(request, thread, question)
            raise NotFound(f"run {run[:64]!r} does not exist; use an id that this server has returned")
        access, channel = await self._enter(request, given.get("threadId"), "history")
        wanted = fields_in(given, _Page)
        turns = await access.conversation(channel, limit=min(wanted.limit, 200), before=wanted.before)
        running = [one.message.id for one in turns if one.state in ("waiting", "running") and one.message is not None]
        active = {"runId": _run_id(given["threadId"], running[-1])} if running and wanted.before is None else None
        first = min((one.created for turn in turns for one in (turn.message, *turn.answers) if one), default=None)
        is_cut = first is not None and (await access.history(channel, before=first, limit=1)).messages
        page = {"truncated": True, "cursor": str(first)} if is_cut else {"truncated": False}
        return json_response({"messages": ui_messages_of(turns), "interrupts": None, "activeRun": active, "page": page})

    async def _follow(self, request: Request, thread: str = "", question: str = "") -> Response:  # of a joined run
        """Stream a turn after `Last-Event-ID` or `cursor`, by default the newest one whole; 204 if there is none."""
        thread = thread or request.path_params["id"]
        access, channel = await self._enter(request, thread, "subscribe", "history")
        after = position_of(request, question)
        question = question or (after.question if after is not None else "")
        if not question:
            asked = [one.message for one in await access.conversation(channel, limit=NEWEST) if one.message is not None]
            if not asked:
                return Response(status_code=204)
            question = asked[-1].id
        stream = AGUIStream(thread, _run_id(thread, question), question, after)
        if "runId" in request.query_params:  # a page of TanStack AI; results of tools alone are no question to show
            with suppress(NotFound, Deleted):  # the stream reports these
                turn = await access.turn(channel, question)
                stream.shows_question = any(one["role"] == "user" for one in messages_of([turn]))
        return _stream(access, channel, stream)


def _stream(access: Access, channel: str, stream: AGUIStream) -> Response:
    """Return the response of a run. When text is taken back, it goes on with a snapshot of the thread."""

    async def snapshot() -> list[Json] | None:
        turns = await access.conversation(channel)
        for number, turn in enumerate(turns):
            if turn.message is not None and turn.message.id == stream.question:
                return messages_of(turns[:number]) + _asked(turn.message)
        return None  # the question is in another branch

    stream.read_snapshot = snapshot
    return access.stream(channel, stream.question, stream)


def _run_id(thread: str, question: str) -> str:
    """Return the id by which a run can be joined. A run of a client has the client's id besides."""
    return "run_" + packed(thread, question)


async def _store_message(
    access: Access, channel: str, last: Json, before: list[Json], earlier: list[Json], options: Json
) -> None:
    """Store the user's message if it is new. Raises IdConflict for other content.

    With it come the results that the user has sent just before it, and messages that never arrived.
    """
    id, parts = stored_id(last["id"]), stored_parts(last.get("content"))
    try:
        turn = await access.turn(channel, id)
    except NotFound:
        turns = await access.conversation(channel, limit=NEWEST) if before else []
        outputs = await _outputs(access, channel, before, turns)
        await store_unsent(access, channel, earlier, options, lambda one: {"parts": stored_parts(one.get("content"))})
        with suppress(IdConflict):  # another request has stored it at the same moment
            await access.create(channel, id=id, parts=[*outputs.values(), *parts], options=options)
            return
        turn = await access.turn(channel, id)
    known = turn.message
    # compared as clients show them: this one may have loaded the question of another one
    if known is None or known.role != "user" or _content(known.parts[len(outputs_in(known)) :]) != _content(parts):
        raise IdConflict(f"message {last['id'][:64]!r} exists with other content; send changed content with a new id")
    await begin_unsent(access, channel, turn, options)


async def _add_results(
    access: Access, channel: str, question: str, later: list[Json], options: Json
) -> tuple[str, list[Json]]:
    """Return the question of the turn that a run joins, and its client's messages of this turn.

    Results of calls to the client's own tools, whose turns have ended without them, are stored as a new question, with
    the same id for each tab. Other results are ignored, because the store has them, perhaps from another tab.
    """
    turns = await access.conversation(channel, limit=NEWEST)
    stored = [(turn.message.id, outputs_in(turn.message)) for turn in turns if turn.message is not None]
    stored = stored[next((at for at, (id, _) in enumerate(stored) if id == question), 0) :]
    by_call = {call: id for id, outputs in stored for call in outputs}
    by_id = {str(data.get("id", "")): id for id, outputs in stored for data in outputs.values()}
    # Results behind the last stored one are new. Another tab's is found by its call, whose id an earlier call may have.
    for name, known in (("id", by_id), ("toolCallId", by_call)):
        for at in reversed(range(len(later))):
            is_own = later[at]["role"] == "tool" and not later[at]["id"].endswith(SERVER_RESULT)
            if is_own and (sent := str(later[at].get(name))) in known:
                question, later = known[sent], later[at + 1 :]
                break
        if found := await _outputs(access, channel, [one for one in later if one["role"] == "tool"], turns):
            id, parts = min(found), list(found.values())
            try:
                await access.create(channel, id=id, parts=parts, options=options)
            except IdConflict:  # another tab has sent results of the same calls
                other = (await access.turn(channel, id)).message
                if other is None or any(one["data"]["call_id"] not in outputs_in(other) for one in parts):
                    raise
            return id, []
    return question, later


async def _outputs(access: Access, channel: str, results: list[Json], turns: list[TurnStatus]) -> dict[str, Json]:
    """Return the parts of the `results` of open calls to the client's own tools, each by an id of the call."""
    given = {str(one.get("toolCallId")): one for one in results}
    open_calls: dict[str, str] = {}  # the answer of each
    for turn, asked in [(one, one.message) for one in turns if one.message is not None]:
        for call in outputs_in(asked):  # later calls may repeat these ids
            open_calls.pop(call, None)
        calls = [(one.id, part) for one in turn.answers for part in one.parts if part["type"] == "tool"]
        left = {part["call"]: (answer, part["name"]) for answer, part in calls if not has_result(part)}
        if turn.state == "over" and given.keys() & left:
            tools = own_tools(await access.options(channel, asked))
            open_calls |= {call: answer for call, (answer, name) in left.items() if name in tools}
    found: dict[str, Json] = {}
    for call, one in given.items():
        if call in open_calls:
            about = {name: one[name] for name in ("id", "error") if isinstance(one.get(name), str)}
            found[hashed(open_calls[call], call)] = output_part(call, _output(one), **about)
    return found


def _output(result: Json) -> object:
    """Return the result of a tool in the page: parts in place of a list. An error follows the partial content."""
    content, error = result.get("content"), result.get("error")
    if content and isinstance(content, str | list) and isinstance(error, str) and error not in str(content):
        content = f"{content}\n{error}" if isinstance(content, str) else [*content, {"type": "text", "text": error}]
    return stored_parts(content) if content and isinstance(content, list) else content or result.get("error", content)


def _messages_in(body: Json) -> tuple[Json, list[Json], list[Json], list[Json]]:
    """Return the last message of the user, those after it, the results just before it, and those before these."""
    form = f"id and a role of {', '.join(ROLES)}"
    messages = messages_in(body.get("messages"), form, lambda one: one["role"] in ROLES)
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            before = list(takewhile(lambda one: one["role"] == "tool", reversed(messages[:index])))
            return messages[index], messages[index + 1 :], before[::-1], messages[: index - len(before)]
    raise InvalidRequest("messages has no message of role user; add the one that the agent shall answer")


# -- the events -------------------------------------------------------------------------------------------------------

# for each type of part that grows: the events before its text with their fields, for and after it; the field of its id
_EVENTS: dict[str, tuple[dict[str, Json], str, list[str], str]] = {
    "text": ({"TEXT_MESSAGE_START": {"role": "assistant"}}, "TEXT_MESSAGE_CONTENT", ["TEXT_MESSAGE_END"], "messageId"),
    "reasoning": (
        {"REASONING_START": {}, "REASONING_MESSAGE_START": {"role": "reasoning"}},
        "REASONING_MESSAGE_CONTENT",
        ["REASONING_MESSAGE_END", "REASONING_END"],
        "messageId",
    ),
    "tool": ({"TOOL_CALL_START": {}}, "TOOL_CALL_ARGS", ["TOOL_CALL_END"], "toolCallId"),
}
_CURSOR = re.compile(r"([0-9]{1,16})/([0-9a-f]{1,1024})/([0-9a-f]{8})/([0-9a-z]{0,24})/(.{1,64})\Z", re.ASCII)
LOST = ("invalid_cursor", "the events of this run have no such position; load the messages again")


class TurnPosition(Struct, frozen=True):
    """A position in the events of a turn, which are the same for each reader. As text it is the id of an event."""

    question: str  # id of the message that the turn answers
    units: int = 0  # `RUN_STARTED`, first and last events of texts, reasonings and calls, code points of texts
    results: int = 0  # bit n is set: the result of the n-th call was sent
    sum: int = 0  # CRC-32 of the number of attempts, the texts up to here, and before each part its name (`Part.name`)

    def text(self, unique: str = "") -> str:
        """Return the id of an event. `unique` tells apart events that do not move the position."""
        return f"{self.units}/{self.results:x}/{self.sum:08x}/{unique}/{self.question}"


def position_of(request: Request, question: str) -> TurnPosition | None:
    """Return the position after which a client continues: `Last-Event-ID`, which moves on, else the parameter.

    None if it has none (also `-1`). Raises InvalidRequest for one of another run than that of a `question`.
    """
    given = request.query_params
    text = request.headers.get("last-event-id") or given.get("cursor") or given.get("offset")
    if not text or text == "-1":
        return None
    found = _CURSOR.match(text)
    if found is None or not is_id(found[5]):
        raise InvalidRequest(f"Last-Event-ID and cursor must be the id of an event of this run, got {text!r:.80}")
    after = TurnPosition(found[5], int(found[1]), int(found[2], 16), int(found[3], 16))
    if question not in ("", after.question):
        text = f"Last-Event-ID is a position in the answer to message {after.question!r}, and this run answers"
        raise InvalidRequest(f"{text} {question!r}; leave the header out to get the run from its beginning")
    return after


class AGUIStream(EventStream):
    """The events of the turn of `question`, after a position."""

    heartbeat = b":\n"  # a blank line behind an id would be an event for some clients (`transports.sse`)

    def __init__(self, thread: str, run: str, question: str, after: TurnPosition | None = None) -> None:
        super().__init__()
        self.question = question
        self.read_snapshot: Callable[[], Awaitable[list[Json] | None]] | None = None  # returns the thread
        self.following: Callable[[], Awaitable[AGUIStream]] | None = None  # goes on once text must be taken back
        self._run: Json = {"threadId": thread, "runId": run}
        self._attempts = 0  # number of those superseded before the reader came
        self.snapshot: list[Json] | None = None  # the thread before the answer; the stream begins with it
        self.known: dict[str, str] = {}  # roles of the messages of the turn that the client shows, by id
        self.shows_question = False  # the reader is a page of TanStack AI that joins the run, and shows its question
        self._at = TurnPosition(question)  # the position of the walk
        self._after = self._last = after or self._at  # those of the reader at first, and of the last event sent to it
        self._parts: dict[Part, Json] = {}  # for each part that grows the field with its id in the client
        self._calls: dict[Part, int] = {}  # their numbers in the turn
        self._values: dict[str, tuple[str, Any]] = {}  # last names and values of other parts and questions, by id
        self._growing: Part | None = None  # the open part at the end of the walk
        self._parents: dict[str, str] = {}  # for each answer the message in the client that its next call belongs to

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the events for `deltas` (`TurnFormat.frame`)."""
        return b"".join([b"id: %b\ndata: %b\n\n" % (id.encode(), encode(one)) for id, one in self.receive(deltas)])

    def receive(self, deltas: Sequence[TurnDelta]) -> list[tuple[str, Json]]:
        """Return the events for `deltas`, each with its id."""
        if (found := self._turn.sole_text(deltas)) is not None and found[0] is self._growing:
            part, text = found
            part.sent.add(text)
            self._advance(len(text), text)
            self._put(_EVENTS[part.value["type"]][1], **self._parts[part], delta=text)
            return self._taken()
        changed, questions = self._turn.receive_all(deltas)
        is_first, attempts = not self._at.units, self._turn.attempts()
        if is_first:
            self._begin_run(attempts)
        if attempts > self._attempts or (is_first and self.known and self.snapshot is None):
            return self._take_back()  # the client shows text of that attempt, or of an earlier run
        if self._turn.is_rewritten:
            self.ended = self.REPLACED
        for part in changed:
            is_missing = part.value["type"] in _EVENTS and part not in self._parts
            is_late = part.place < self._turn.place and (bool(part.new) or is_missing)
            if not part.is_superseded and (part.is_replaced or is_late):
                self.ended = self.REPLACED  # text that was sent is gone, or text came too late
            elif part.name in self._values and self.ended is None:
                self._value(part)
        self._results()
        self._walk()
        ahead = self._after.units - self._at.units
        if is_first and ahead > 0 and not (self._turn.is_over and ahead == 1 and self._after.sum == self._at.sum):
            self.ended = LOST  # it is not the last event either, which may come again
        if is_first and attempts and self.ended is LOST:  # the position is one of an earlier attempt
            self._growing = None
            return self._take_back()
        for id in questions:
            self._custom("tenuto.question", id, {"id": id, **self._turn.question(id)})
        if self._turn.is_over or self.ended or self._turn.is_gone:
            self._finish()
        return self._taken()

    def _begin_run(self, attempts: int) -> None:
        """Send `RUN_STARTED`, or the snapshot of a stream that goes on after another one of the same run."""
        self._attempts, self._at = attempts, replace(self._at, sum=attempts)
        self._advance(1)
        if self.snapshot is None or self.ended is not None:  # an ended run sends only its end
            self._put("RUN_STARTED", **self._run)
            return
        # A client keeps reasonings that a snapshot lacks, so events before it make them empty, and then other messages.
        # Releases before 1.0 keep them as empty ones.
        thoughts = [id for id, role in self.known.items() if role == "reasoning"]
        if thoughts and all(one["role"] != "reasoning" for one in self.snapshot):
            self._last = replace(self._at, sum=attempts + 1)  # a reader that has no more than these begins anew
            for role in ("reasoning", "assistant"):
                gone = [{"id": id, "role": role, "content": ""} for id in thoughts]
                self._unplaced("MESSAGES_SNAPSHOT", messages=self.snapshot + gone)
        self._last = self._at
        self._unplaced("MESSAGES_SNAPSHOT", messages=self.snapshot)

    def _take_back(self) -> list[tuple[str, Json]]:
        """Let `following` go on with a snapshot. This batch has only `RUN_STARTED`, and the end of an open part."""
        self._events = [one for one in self._events if one[1]["type"] == "RUN_STARTED"]
        if self._growing is not None:
            for type in _EVENTS[self._growing.value["type"]][2]:
                self._unplaced(type, **self._parts[self._growing])
        self.following, self.is_over = self._begun_anew, True
        return self._taken()

    async def _begun_anew(self) -> AGUIStream:
        """Return the stream that goes on with a snapshot. Without one the run ends with an error."""
        stream = AGUIStream(self._run["threadId"], self._run["runId"], self.question)
        snapshot = await self.read_snapshot() if self.read_snapshot is not None else None
        stream.read_snapshot, stream.snapshot = self.read_snapshot, snapshot or []
        stream.ended = self.REPLACED if snapshot is None else None
        begun = [one["messageId"] for part, one in self._parts.items() if part.value["type"] == "reasoning"]
        stream.known = self.known | dict.fromkeys(begun, "reasoning")  # a snapshot alone does not remove them
        return stream

    # -- the walk over the parts ---------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Send all parts as far as they are known."""
        self._growing = None
        for part in self._turn.walk():
            if self.ended is not None:
                return
            if part.value["type"] not in _EVENTS:
                self._parents.pop(part.answer.id, None)  # a call behind it is in another message
                self._value(part)
                continue
            if part not in self._parts:
                self._begin(part)
            id = self._parts[part]
            text, has = part.take(), max(self._after.units - self._at.units, 0)  # units that the reader has ahead
            self._advance(len(text), text)
            if text[has:]:
                self._put(_EVENTS[part.value["type"]][1], **id, delta=text[has:])
            is_whole = part.value.get("state") == "called" or has_result(part.value)
            if not self._turn.has_ended(part, is_whole=is_whole) or self.ended is not None:
                self._growing = part
                later = part.answer.parts[part.place[1] + 1 :] if self.ended is None else []
                for one in takewhile(lambda one: one.value["type"] not in _EVENTS, later):  # they need not wait
                    if one.value["type"] != ATTEMPT:
                        self._value(one)
                return
            for type in _EVENTS[part.value["type"]][2]:
                self._advance(1)
                self._put(type, **id)
            self._results()

    def _begin(self, part: Part) -> None:
        """Send the events before the text of a part, and note its id in the client."""
        value, answer, start = part.value, part.answer.id, Json()
        types, _, _, field = _EVENTS[value["type"]]
        if value["type"] == "tool":
            id, parent = value["call"], self._parents.setdefault(answer, part.name)
            start = {"toolCallName": value["name"], "parentMessageId": parent}
            self._calls[part] = call = len(self._calls)
            self._at = replace(self._at, results=self._at.results | self._after.results & 1 << call)  # sent before?
        elif value["type"] == "text":  # the first one of an answer has the answer's id
            self._parents[answer] = id = part.name if {field: answer} in self._parts.values() else answer
        else:
            id = part.name
            self._parents.pop(answer, None)
            if self.shows_question and self._at.units == 1 >= self._after.units:
                # the first start of a text or call drops the message before it: let it not be that of the reasonings
                self._unplaced("TEXT_MESSAGE_START", messageId=self.question, role="user")
                self._unplaced("TEXT_MESSAGE_END", messageId=self.question)
        self._at = replace(self._at, sum=crc32(part.name.encode(), self._at.sum))  # as `TurnPosition.sum` says
        self._parts[part] = {field: id}
        for type, role in types.items():
            self._advance(1)
            self._put(type, **self._parts[part], **start, **role)

    def _results(self) -> None:
        """Send the results that the reader lacks, behind its position. Within a text, TanStack AI repeats the text."""
        if self._growing is not None or self.ended is not None or self._at.units < self._after.units:
            return
        for part, call in self._calls.items():
            if self._at.results >> call & 1 or not has_result(part.value):
                continue
            self._at = replace(self._at, results=self._at.results | 1 << call)
            state = part.value.get("state")
            output = part.value.get("output", state)
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            fields = {"messageId": f"{part.name}{SERVER_RESULT}", **self._parts[part], "content": text, "role": "tool"}
            if state in ("error", "denied"):
                fields["metadata"] = {"state": state, "tanstack": {"state": "output-error"}}
            self._put("TOOL_CALL_RESULT", is_due=True, **fields)

    def _value(self, part: Part) -> None:
        kind, fields = part.value["type"], {name: value for name, value in part.value.items() if name != "type"}
        name, value = (fields["name"], fields.get("data")) if kind == "data" else (f"tenuto.{kind}", fields)
        self._custom(name, part.name, value)

    # -- the events and their positions --------------------------------------------------------------------------

    def _advance(self, units: int, text: str = "") -> None:
        """Move the walk on. At the reader's position its checksum must be that of the reader, else the run ends."""
        has = self._after.units - self._at.units
        if 0 < has <= units and crc32(text[:has].encode(), self._at.sum) != self._after.sum:
            self.ended = LOST
        self._at = replace(self._at, units=self._at.units + units, sum=crc32(text.encode(), self._at.sum))

    def _put(self, type: str, *, is_due: bool = False, **fields: Any) -> None:
        """Send an event, unless it is before the reader's position, which results that are due follow."""
        if is_due or (self._at.units > self._after.units and self.ended is None):
            self._last = self._at
            self._events.append((self._at.text(), {"type": type, **fields}))

    def _custom(self, name: str, id: str, value: Any) -> None:
        """Send a value, unless it was sent last. Each run sends it again."""
        if self._values.get(id) != (name, value):
            self._values[id] = name, value
            self._unplaced("CUSTOM", name=name, value=value, metadata={"id": id})

    def _unplaced(self, type: str, **fields: Any) -> None:
        """Send an event that does not move the position."""
        self._events.append((self._last.text(secrets.token_hex(8)), {"type": type, **fields}))

    def _finish(self) -> None:
        """Send the last event, which a reader that has it already gets again, with the same id.

        A stream that ends because it cannot continue after the reader's position leaves it where it is.
        """
        status, reason = self._turn.end()
        if self.ended is not None and status != "deleted":
            status, reason = self.ended
        event: Json = {"type": "RUN_ERROR", "message": reason or status, "code": status}
        if status == "complete":
            event = {"type": "RUN_FINISHED", **self._run, **({"result": meta} if (meta := self._turn.meta()) else {})}
        id = replace(self._at, units=self._at.units + 1).text() if self.ended is None else self._last.text("end")
        self._events.append((id, event))
        self.is_over = True
