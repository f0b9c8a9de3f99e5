"""The routes, the stream and the messages of the AI SDK (npm `ai`): `useChat` and `Chat` work on a hub unmodified.

Layer: interop.

`AISDK(hub, channel="chat:{id}").install(app, "/api/chat")` adds five routes to an app. The history that a page sends is
ignored: a request adds its last message, or answers the questions of the agent, and the store has all earlier messages.

One turn is one assistant message of the page, with all answers of the turn. Clients refuse unknown data: a chunk type
or (`strict`) a field of a later release, and a delta for a part that has ended. After the result of a tool comes a step
boundary, because pages that continue by themselves look at the last step only. For the same reason a call that the page
may be asked about stays in that step, where alone pages look for its input. `docs/ai-sdk.md` has the mapping.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tenuto import Hub, Message
from tenuto.core.errors import AlreadyAnswered, IdConflict, InvalidRequest, LocalError, NotFound, TenutoError
from tenuto.interop.adapter import (
    ChatRoutes,
    begin_unsent,
    body_of,
    hashed,
    json_response,
    messages_in,
    outputs_in,
    read_messages,
    regenerate,
    store_unsent,
    stored_id,
    stored_parts,
)
from tenuto.interop.fold import Answer, EventStream, Json, Part, call_of, encode, parsed, text_of
from tenuto.routes import Access, TurnDelta, TurnStatus, app_meta, deltas_of, has_result, options_in, versions_of

VERSION_MESSAGES = 2_000  # newest messages among which the versions of an edited question are looked for
JUST_ENDED_S = 10.0  # a page that resumes loaded its messages at most so long before
LATEST_TURN = 20  # newest messages of a channel among which the turn that has just ended is looked for
SHORTER = "send the last message alone: let prepareSendMessagesRequest return id, trigger, messageId and message"


class AISDK(ChatRoutes):
    """The routes of one chat of the AI SDK: `AISDK(hub, channel="chat:{id}").install(app, "/api/chat")`.

    `{id}` in `channel` is the id of the page's chat. `version` is the major release of `ai` in the page; 6 serves
    pages of 7 too. `strict` leaves out optional fields, for early releases of 5 and 6. The page runs `browser_tools`.
    """

    def __init__(
        self, hub: Hub, *, channel: str, version: int = 6, strict: bool = False, browser_tools: Sequence[str] = ()
    ) -> None:
        if version not in (5, 6, 7):
            raise LocalError(f"version must be 5, 6 or 7, the major release of the package ai, got {version!r}")
        self._release = Release(version, strict, frozenset(browser_tools))
        super().__init__(hub, channel, chat="chat", field="id", shown=lambda turns: ui_messages(turns, self._release))

    def install(self, app: Any, path: str) -> None:
        """Add the routes to a Starlette or FastAPI app, before its other routes."""
        self._install(app, path, self._post, self._list, stream=self._resume)

    async def _post(self, request: Request) -> Response:
        """Add the last message of the page, or answer the agent's questions, and stream the turn."""
        access = await self._hub.authorize(request.scope)
        body = await body_of(access, request, SHORTER)
        channel = self._channel_of(body.get("id"))
        *earlier, last = _messages_in(body)
        is_again = body.get("trigger") == "regenerate-message"
        if is_again and last["role"] == "assistant":
            raise InvalidRequest("regenerate-message needs a list that ends with a message of role user, got assistant")
        needs = ["command"] if last["role"] == "assistant" else ["publish", "command"] if is_again else ["publish"]
        access.check(channel, "subscribe", "history", *needs)
        if last["role"] == "assistant":  # with the page's replies
            question, has_replied = await self._reply(access, channel, last)
            return access.stream(channel, question, UIStream(question, self._release, last, is_late=not has_replied))
        options = options_in(body, is_strict=False)
        is_edit = body.get("messageId") is not None and not is_again  # of a regenerate it names the answer
        question = await self._stored_question(access, channel, earlier, last, options, is_edit=is_edit)
        if question != stored_id(last["id"]):  # another version
            with suppress(TenutoError):  # refused: it waits for the answers that it hides
                await access.cancel_turns(channel, hidden_by=question)
        if is_again and (turn := await access.turn(channel, question)).state in ("over", "none"):  # else it is a repeat
            await regenerate(access, channel, turn, options)
        return access.stream(channel, question, UIStream(question, self._release))

    async def _stored_question(
        self, access: Access, channel: str, earlier: list[Json], last: Json, options: Json, *, is_edit: bool
    ) -> str:
        """Return the id of the page's last message, or of its version with this content, either stored if it is new."""
        content, given_id = {**_content_of(last), "options": options}, stored_id(last["id"])
        try:
            turn = await access.turn(channel, given_id)
        except NotFound:
            await store_unsent(access, channel, earlier, options, _content_of)
            with suppress(IdConflict):  # another request has stored the same message at the same moment
                return (await access.create(channel, id=given_id, **content)).id
            turn = await access.turn(channel, given_id)
        if (known := turn.message) is None or known.role != "user":
            raise IdConflict(f"message {given_id!r} is an answer; send a question with another id")
        newest = ""  # id of the newest version
        async for version in _versions(access, channel, known):
            if content["parts"] in (version.parts, _as_loaded(version.parts)):
                if version is known:  # which a later request may have stored, without a turn
                    await begin_unsent(access, channel, turn, options)
                return version.id
            newest = newest or version.id
            if is_edit:
                break  # the newest may be this edit, repeated; an edit back to earlier content is another version
        id = hashed(newest, json.dumps(content["parts"]))  # the same for a repeated request
        return (await access.create(channel, id=id, **content, parent=known.parent)).id

    async def _reply(self, access: Access, channel: str, last: Json) -> tuple[str, bool]:
        """Reply to the agent's questions that the page's last message answers.

        Return the id of the message that its turn is about, and whether a question got a reply.
        """
        turn = next((one for one in await access.conversation(channel) if last["id"] in _ids_of(one)), None)
        if turn is None or turn.message is None:
            raise NotFound(f"message {last['id'][:64]!r} is no answer in channel {channel!r}; load the messages again")
        open_ids = {one.id for one in turn.questions}
        calls = {call: one.id for one in turn.questions if (call := call_of(one.data))}  # questions by call
        has_replied = False
        for part in {one["toolCallId"]: one for one in last["parts"] if is_tool(one)}.values():  # the last of each id
            is_own = part["type"].removeprefix("tool-") in self._release.browser_tools
            asked = calls.get(part["toolCallId"]) if is_own else None
            match part:
                case {"state": "approval-responded", "approval": {"id": str(id), **given}} if id in open_ids:
                    reason = {"reason": given["reason"]} if isinstance(given.get("reason"), str) else None
                    reply: Json = {"command_id": id, "ok": given.get("approved") is True, "data": reason}
                case {"state": "output-available"} if asked:
                    reply = {"command_id": asked, "data": part.get("output")}
                case {"state": "output-error"} if asked:
                    error = {"code": "tool_failed", "detail": str(part.get("errorText"))}
                    reply = {"command_id": asked, "ok": False, "error": error}
                case _:
                    continue
            with suppress(AlreadyAnswered, NotFound):  # another tab has replied, or the question has expired
                await access.reply(channel, **reply)
                has_replied = True
        return turn.message.id, has_replied

    async def _resume(self, request: Request) -> Response:
        """Replay the running turn, or one that has just ended: the page may lack its answer. 204 if there is none.

        Strict releases add a replay to the answer that the page has: only with `last` they get an ended turn.
        """
        last = request.query_params.get("last")
        access, channel = await self._enter(request, request.path_params["id"], "subscribe", "history")
        turns = await access.open_turns(channel)
        if turns and turns[-1].state == "waiting":  # it has no answer to show: one that asks is last
            turns.sort(key=lambda one: bool(one.questions))
        if not turns and (last is not None or not self._release.strict):
            newest = (await access.conversation(channel, limit=LATEST_TURN))[-1:]
            turns = [one for one in newest if last not in _ids_of(one) and self._has_just_ended(one)]
        if not (questions := [one.message.id for one in turns if one.message is not None]):
            return Response(status_code=204)
        return access.stream(channel, questions[-1], UIStream(questions[-1], self._release))

    def _has_just_ended(self, turn: TurnStatus) -> bool:
        """Return whether an answer ended just now, and each call of the page's tools has its result."""
        parts = [part for answer in turn.answers for part in answer.parts if part["type"] == "tool"]
        if any(one["name"] in self._release.browser_tools and not has_result(one) for one in parts):
            return False  # a replay would make the page run the call again, in vain
        return max((one.updated_at for one in turn.answers), default=0) > (time.time() - JUST_ENDED_S) * 1_000

    async def _list(self, request: Request) -> Response:
        """Return the chats that the caller may read, newest first."""
        access = await self._hub.authorize(request.scope)
        prefix, _, suffix = self._channel.partition("{id}")
        chats = [
            {"id": id, "title": one.title, "updated": one.updated_ms, "running": one.is_running}
            for one in await access.conversations(prefix)
            if (id := one.channel.removeprefix(prefix).removesuffix(suffix)) and self._channel_of(id) == one.channel
        ]
        return json_response(chats)


def _content_of(message: Json) -> Json:
    """Return the parts and the meta of a page's message as they are stored. Raises InvalidRequest."""
    known = message["metadata"] if isinstance(message.get("metadata"), dict) else {}
    return {"parts": stored_parts(message["parts"], has_data=True), "meta": app_meta(known)}


def _as_loaded(parts: list[Json]) -> list[Json]:
    """Return the parts of a question as a page sends them that has loaded it, perhaps one of another client."""
    with suppress(InvalidRequest):  # the page has no such part
        return stored_parts([*map(_question_part, parts)], has_data=True)
    return []


async def _versions(access: Access, channel: str, known: Message) -> AsyncIterator[Message]:
    """Yield the later versions of the question `known` among the newest 2,000 messages, newest first, and then it."""
    async for one in read_messages(access, channel, limit=VERSION_MESSAGES):
        if one.created <= known.created:
            break
        if len(versions_of(known, [one])) > 1:  # `known`, and `one` if it is a version of it
            yield one
    yield known


def _messages_in(body: Json) -> list[Json]:
    """Return the page's messages. Raises InvalidRequest unless they have the form that this module reads."""
    given = body.get("messages", [body["message"]] if "message" in body else None)
    messages = messages_in(given, "id, role and parts", _has_parts)
    last = messages[-1]
    if body.get("trigger", "submit-message") not in ("submit-message", "regenerate-message"):
        raise InvalidRequest(f"trigger must be submit-message or regenerate-message, got {body['trigger']!r:.80}")
    if last["role"] not in ("user", "assistant"):
        raise InvalidRequest(f"the last message must be of role user or assistant, got {last['role']!r:.80}")
    return messages


def _has_parts(message: Json) -> bool:  # with the fields that this module reads
    parts = message.get("parts")
    return isinstance(parts, list) and all(
        isinstance(part, dict)
        and isinstance(part.get("type"), str)
        and (part["type"] not in ("text", "reasoning") or isinstance(part.get("text"), str))
        and (not part["type"].startswith("tool-") or isinstance(part.get("state"), str))
        for part in parts
    )


def _ids_of(turn: TurnStatus) -> set[str]:
    """Return the ids that the assistant message of a turn may have on a page."""
    return {one.id for one in turn.answers} | ({silent_id(turn.message.id)} if turn.message is not None else set())


# -- the stream, and what a page makes of it --------------------------------------------------------------------------

FINISH_REASONS = {"content_filter": "content-filter", "tool_calls": "tool-calls", "stop": "stop", "length": "length"}
STARTED, AVAILABLE, OVER = 1, 2, 3  # stages of a call on the page: input begins, is whole, result is there
# Why the next part needs a new step: AFTER_RESULT of a tool of the server, unless it may join that step; or ALWAYS.
AFTER_RESULT, ALWAYS = "result", "always"
LATE = 'the agent did not ask, with turn.ask(…, {"call": …}), or the question has expired or was answered: no effect'
_STAGES = dict.fromkeys(("input-available", "approval-requested", "approval-responded"), AVAILABLE)
_STAGES |= dict.fromkeys(("output-available", "output-error", "output-denied"), OVER) | {"input-streaming": STARTED}
SKIPPED = 100  # pieces of other texts among which the rest of a text is looked for on a page


@dataclass
class PageCall:
    """A call of a tool as a page knows it from a stream."""

    call: str
    name: str
    is_own: bool  # the page runs it
    shown: Json  # the page's part of it from earlier responses; empty without one
    stage: int = 0  # 0: the page does not have the call
    is_approved: bool = False  # the page has the reply to an approval from this stream
    question: str = ""  # id of the open question about it: the next request of the page has the reply
    input: list[str] = field(default_factory=list)  # in pieces, until the page has the whole
    is_held: bool = False  # the page, which runs it, gets the whole input only when a question about it is open

    @property
    def has_reply(self) -> bool:
        """Return whether the page has replied to it."""
        return self.shown.get("state") in ("approval-responded", "output-available", "output-error")

    @property
    def is_running(self) -> bool:
        """Return whether the page sends no reply yet, as it lacks the rest of the input, or the server's result."""
        is_settled = self.is_own or self.is_approved or self.has_reply  # to the page it needs no result of the server
        return not self.question and (self.stage == STARTED or (self.stage == AVAILABLE and not is_settled))

    def has_approval(self, approval: Json | None) -> bool:
        """Return whether the page's part has this reply to the approval."""
        shown = self.shown.get("approval")
        if approval is None or not isinstance(shown, dict):
            return False
        return all(shown.get(key) == approval[key] for key in ("id", "approved"))


@dataclass(frozen=True)
class Release:
    """The release of `ai` in the page, and the tools that the page runs."""

    version: int = 6  # pages of 7 take all chunks of 6, and those of 6 refuse a chunk of 7
    strict: bool = False  # the page refuses optional fields
    browser_tools: frozenset[str] = frozenset()


DEFAULT = Release()  # of `Hub.stream_response`


class UIStream(EventStream):
    """The UI message stream of one turn.

    With `page`, the page's own message, it has only the parts that are missing there. With `is_late` the page's replies
    had no effect; the stream then ends with an error, unless the page gets another outcome of each call.
    """

    def __init__(
        self, message_id: str, release: Release = DEFAULT, page: Json | None = None, *, is_late: bool = False
    ) -> None:
        super().__init__()
        self.headers["x-vercel-ai-ui-message-stream"] = "v1"
        self._release = release
        self._message_id = message_id
        self._page = PageParts(page)  # those parts that the turn has are taken from it
        self._is_late = is_late
        self._is_first = True  # in the first batch: the turn as it is, whose calls may have their replies already
        self.begun_id = ""  # id of the page's message after its beginning
        self._answer = 0  # number of the last answer of which the page has parts
        self._ended_answers: list[Answer] = []  # those that had ended before this batch of deltas
        self._step = 0  # number of the last step
        self._steps: dict[Part, int] = {}  # the newest step with a piece of each part; 0 for those that the page had
        self._has_spread_part = False  # a part has pieces in two steps, such as a text that goes on behind a result
        self._step_due = ""  # why the next part needs a new step: AFTER_RESULT or ALWAYS; "" if it needs none
        self._is_step_empty = True  # the last step has no part, and is the one that is due, if any
        self._is_silent = True  # the page got no more than the beginning
        self._open: dict[Part, tuple[str, str]] = {}  # kinds and ids of the texts that the page waits for
        self._values: dict[Part, Json] = {}  # the last value of each other part
        self._tools: dict[Part, PageCall] = {}  # the calls that the page has
        self._shown_questions: set[str] = set()  # ids of the questions that are sent as `data-question`

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the chunks for `deltas` (`TurnFormat.frame`)."""
        if (found := self._turn.sole_text(deltas)) is not None and (opened := self._open.get(found[0])) is not None:
            part, text = found
            part.sent.add(text)
            return _frame(*opened, text)
        body = b"".join([b"data: %b\n\n" % encode(one) for one in self.receive(deltas)])
        return body + b"data: [DONE]\n\n" if self.is_over else body

    def receive(self, deltas: Sequence[TurnDelta]) -> list[Json]:
        """Return the chunks for `deltas`."""
        parts, questions = self._turn.receive_all(deltas)
        if id := self._page.id or next((one.id for one in self._turn.answers), ""):
            self._begin(id)
        self._take_back()
        if self._turn.is_rewritten:
            self.ended = self.REPLACED
        for part in parts:
            if self.ended is None and not part.is_superseded:
                self._change(part)
        for id in questions if self.ended is None else ():
            self._question(id)
        self._ended_answers = [one for one in self._turn.answers if one.status != "streaming"]
        # the first batch is the whole turn: a text of the page that it lacks was replaced, a call perhaps by an attempt
        has_text, has_call = self._page.untaken() if self._is_first else (False, False)
        if has_text or (has_call and self._turn.attempts()):
            # with ALWAYS `_finish` begins an empty step, so that the page repeats no reply to a call of its last step
            self.ended, self._step_due = self.REPLACED, ALWAYS if has_call or self._has_replied() else ""
            self._open.clear()
            del self._events[1:]  # behind `start`: a page shows no mixture of two texts
        self._is_first = False
        if self.ended is not None or self._turn.is_over or self._turn.is_gone:
            self._finish()
        elif any(one.question for one in self._tools.values()):
            for tool in self._calls_of_step():  # the page sends no reply before it has the outputs of these, too
                if tool.is_held:
                    self._make_available(tool)
            if not any(one.is_running for one in self._calls_of_step()):  # before their end the page sends no reply
                self._end_for_reply()
        return self._taken()

    def _put(self, **chunk: Any) -> None:
        self._is_silent = self._is_silent and chunk["type"] == "start"
        self._events.append(chunk)

    def _begin(self, message_id: str) -> None:
        """Send `start` once, and the first step unless the page continues a message of its own."""
        if not self.begun_id:
            self.begun_id, meta = message_id, self._turn.meta()
            self._put(type="start", messageId=message_id, **({"messageMetadata": meta} if meta else {}))
            if self._page.id is None:
                self._put(type="start-step")
            else:  # a question about an earlier call stays in the step of the call; new parts have a step of their own
                self._step_due, self._is_step_empty = ALWAYS, False

    def _take_back(self) -> None:
        """Let the page drop parts that count no longer: with its last step, the rest of which is sent again."""
        gone = [part for part in self._steps if part.is_superseded]
        is_in_earlier_step = self._has_spread_part or any(self._steps[part] < self._step for part in gone)
        # the page would also drop questions, or parts of earlier responses, which are not sent again
        drops_more = bool(self._shown_questions) or (self._page.id is not None and not self._step)
        if gone and (self._release.version < 7 or is_in_earlier_step or drops_more):
            self.ended = self.RESTARTED  # the page resumes: one before 7 drops no step, one of 7 only its last
        elif gone:
            for part in [one for one, step in self._steps.items() if step == self._step]:
                part.restart()
                for known in (self._open, self._values, self._tools, self._steps):
                    known.pop(part, None)
            self._is_step_empty = True
            self._put(type="reset-step")

    def _enter_step(self, part: Part | None = None, tool: PageCall | None = None) -> None:
        """Begin a step if one is due, before a chunk of `part`, by default of a question. `tool` is the part's call."""
        # A call that gets more input (STARTED) must stay in the last step. So must one of which the page may be asked
        # (AVAILABLE), but for ALWAYS. Calls of the server share a step; a call of the page does not join theirs.
        stages = {one.stage for one in self._calls_of_step()}
        is_joined = self._step_due == AFTER_RESULT and (AVAILABLE in stages or (tool is not None and not tool.is_own))
        if self._step_due and not self._is_step_empty and not is_joined and STARTED not in stages:
            self._begin_step()
        elif self._is_step_empty:
            self._step_due = ""  # the empty step is the new one
        self._is_step_empty = False
        if part is not None:
            self._has_spread_part = self._has_spread_part or self._steps.get(part, self._step) != self._step
            self._steps[part] = self._step

    def _calls_of_step(self) -> list[PageCall]:
        """Return the calls of the last step whose answers had not ended before this batch: they may get a result."""
        last = [one for one in self._tools if self._steps.get(one) == self._step]
        ended = [*self._ended_answers, *self._turn.answers[: self._answer]]  # the latter: a later one has begun
        return [self._tools[one] for one in last if one.answer.status == "streaming" or one.answer not in ended]

    def _begin_step(self) -> None:
        self._close()
        self._put(type="finish-step")
        self._put(type="start-step")
        self._step, self._step_due = self._step + 1, ""

    def _close(self) -> None:
        for kind, id in self._open.values():
            self._put(type=f"{kind}-end", id=id)
        self._open.clear()

    def _change(self, part: Part) -> None:
        """Send what has changed in a part: its text alone, or its value."""
        if part.place[0] > self._answer:
            self._answer, self._step_due = part.place[0], ALWAYS  # a further answer begins a step
        match part.value["type"]:
            case "text" | "reasoning" if part.is_replaced:
                self.ended = self.REPLACED
            case "text" | "reasoning" as kind:
                self._grow(part, kind)
            case "tool" if not part.is_put:
                self._grow_input(part, self._tools[part])
            case "tool":
                self._change_call(part)
            case _ if (chunk := ui_part(part.name, part.value)) is not None:
                known = self._values.get(part) or self._page.known(chunk)
                if known != chunk:
                    if not chunk["type"].startswith("data-") or known.get("type") != chunk["type"]:
                        self._enter_step(part)  # else the page changes the part where it is
                    self._put(**chunk)
                self._steps.setdefault(part, 0)  # of a part that the page had
                self._values[part] = chunk

    def _grow(self, part: Part, kind: str) -> None:
        """Send the new text of a part, without the beginning that the page has of it."""
        begins = part.sent.length
        if has := 0 if begins else self._page.take_length(kind, part.text()):  # only before its first text
            self._steps[part] = 0
        text = part.take()[has:]
        if not text:
            return
        if part not in self._open:
            self._enter_step(part)
            id = f"{part.name}+{begins}" if begins else part.name  # one that has ended takes no more text
            self._open[part] = kind, id
            self._put(type=f"{kind}-start", id=id)
        self._put(type=f"{kind}-delta", id=self._open[part][1], delta=text)

    def _grow_input(self, part: Part, tool: PageCall) -> None:
        text = part.take()
        if text and tool.stage == STARTED:  # else the page has the whole input
            tool.input.append(text)
            if not tool.shown:  # a part of an earlier response gets the whole input alone
                self._put(type="tool-input-delta", toolCallId=tool.call, inputTextDelta=text)

    def _change_call(self, part: Part) -> None:
        """Send what the stored call has and the page lacks: beginning, input, approval, question and result."""
        value, tool = part.value, self._tools.get(part)
        text, state = text_of(value), value.get("state")
        if tool is None:
            known, is_own = self._page.calls.get(value["call"]), value["name"] in self._release.browser_tools
            shown = known.popleft() if known else {}
            if stage := _STAGES.get(shown.get("state", ""), 0):
                self._steps[part] = 0  # of a part that the page had
            tool = self._tools[part] = PageCall(value["call"], value["name"], is_own, shown, stage)
        if is_new := tool.stage == 0:
            self._enter_step(part, tool)
            tool.stage = STARTED
            self._put(type="tool-input-start", toolCallId=tool.call, toolName=tool.name, **self._executed(tool))
        self._grow_input(part, tool)
        if tool.stage == STARTED:
            tool.input = [text]  # the stored input counts, also if it has replaced what was sent
        is_over = has_result(value)
        if state == "called" or is_over:
            tool.is_held = tool.is_held or (self._is_first and tool.is_own)
            if is_over or not tool.is_held:
                # without this chunk the page does not run a finished call again
                self._make_available(tool, is_silent=is_over and (is_new or tool.is_held))
            self._approve(tool, value)
            for id in self._turn.open if not (tool.question or is_over) else ():
                if call_of(self._turn.questions[id].command.data) == tool.call:
                    self._question(id)  # an earlier attempt has asked, and the question stays open
        if is_over and tool.stage < OVER:
            tool.stage = OVER
            # a page would send its output or reply again while the call is in the last step
            needs_step = tool.is_own or self._approval_of(value) is not None or self._step_due == ALWAYS
            self._step_due = ALWAYS if needs_step else AFTER_RESULT
            executed = self._executed(tool, is_output=True) if state != "denied" else {}
            self._put(**result_of(value, self._release), **executed)

    def _approval_of(self, part: Json) -> Json | None:
        """Return the reply to the approval of a call, if the release shows it. A denied call always has a reply."""
        if self._release.version < 6:
            return None
        denied = {"id": part["call"], "approved": False} if part.get("state") == "denied" else None
        return part.get("approval", denied)  # no request and no writer sets this field: the core has made or checked it

    def _approve(self, tool: PageCall, part: Json) -> None:
        """Give the page the reply to an approval, which it lacks if it loads or resumes after the reply."""
        approval = self._approval_of(part)
        if approval is None or tool.stage == OVER or tool.has_approval(approval):
            return
        knows_replies = self._release.version >= 7 and not self._release.strict  # other pages may refuse these chunks
        if (knows_replies or part.get("state") == "denied") and not tool.is_approved:
            tool.is_approved = True
            if "approval" not in tool.shown:
                self._put(type="tool-approval-request", approvalId=approval["id"], toolCallId=tool.call)
            if knows_replies:
                reply = {name: value for name, value in approval.items() if name != "id"}
                self._put(type="tool-approval-response", approvalId=approval["id"], **reply)
                self._step_due, self._is_step_empty = ALWAYS, False  # a page would repeat the reply of its last step

    def _make_available(self, tool: PageCall, *, is_silent: bool = False) -> None:
        """End the input of a call. If it `is_silent`, the page gets a chunk only of input that is no JSON."""
        if tool.stage != STARTED:
            return
        value, is_json = parsed("".join(tool.input))
        tool.stage, tool.input, tool.is_held = AVAILABLE, [], False
        if not (is_silent and is_json):
            chunk = {"toolCallId": tool.call, "toolName": tool.name, "input": value}
            self._put(type="tool-input-available", **chunk, **self._executed(tool))

    def _executed(self, tool: PageCall, *, is_output: bool = False) -> Json:
        return {"providerExecuted": True} if not tool.is_own and (is_output or not self._release.strict) else {}

    def _question(self, id: str) -> None:
        """Send a question or its reply: as data, unless it is for an approval of a call, or for a tool of the page."""
        question = self._turn.questions[id].command
        call, is_approval = call_of(question.data), question.name == "approve" and self._release.version >= 6
        part, tool = next((one for one in reversed(self._tools.items()) if one[1].call == call), (None, None))
        is_shown = id in self._shown_questions
        if part is None or tool is None or not (is_approval or tool.is_own) or (is_shown and id not in self._turn.open):
            if not is_shown:
                self._shown_questions.add(id)
                self._begin(silent_id(self._message_id))  # no answer may have begun
                self._enter_step()
            self._put(type="data-question", id=id, data=self._turn.question(id))
        elif id not in self._turn.open:  # it has its reply, so the call goes on
            tool.question = "" if tool.question == id else tool.question
        elif tool.question != id and not self._is_growing(part, tool):  # else sent, or `_change_call` sends it
            tool.question = id
            self._make_available(tool)
            if is_approval and tool.shown.get("state") != "approval-requested":
                self._put(type="tool-approval-request", approvalId=id, toolCallId=tool.call)

    def _is_growing(self, part: Part, tool: PageCall) -> bool:
        """Return whether the input of a call is not whole, as far as it can be known. Empty input counts as whole."""
        has_more = part.value.get("state") == "input" and part.answer.status == "streaming"
        return tool.stage == STARTED and has_more and not parsed("".join(tool.input))[1]

    def _end_for_reply(self) -> None:
        """End the response, as a page can reply only then. One that repeats a reply gets an error, and stops."""
        if self._is_late and self._is_silent and self._has_replied():
            self._put(type="error", errorText=LATE)
        else:
            self._close()
            self._put(type="finish-step")
            self._put(type="finish", **self._reason("tool-calls"))
        self.is_over = True

    def _has_replied(self) -> bool:
        return any(tool.has_reply for tool in self._tools.values())

    def _reason(self, reason: str) -> Json:
        return {} if self._release.strict and self._release.version < 6 else {"finishReason": reason}

    def _finish(self) -> None:
        self._begin(silent_id(self._message_id))  # if the turn has no answer
        self._close()
        if self._step_due and not self._is_step_empty:  # else a page may send its last step again
            self._begin_step()
            self._put(type="start", messageId=self.begun_id)  # a page stores an empty step only with a later chunk
        meta = self._turn.meta()
        status, reason = self.ended or self._turn.end()  # `ended` counts, also while the turn goes on
        if status in ("complete", "cancelled"):
            replied = [(part.value, tool) for part, tool in self._tools.items() if tool.has_reply]
            has_outcomes = all(has_result(one) or tool.has_approval(self._approval_of(one)) for one, tool in replied)
            if self._is_late and not has_outcomes:
                status, reason = "late", LATE
            else:
                self._put(type="finish-step")
        if status == "complete":
            finish: Json = {"messageMetadata": meta} if meta else {}
            if self._turn.counted():  # an answer, whose reason may be of any JSON type
                finish |= self._reason(FINISH_REASONS.get(str(meta.get("finish_reason", "stop")), "other"))
            self._put(type="finish", **finish)
        elif status == "cancelled":
            self._put(type="abort")
        else:
            self._put(type="error", errorText=reason or status)
        self.is_over = True


@lru_cache(maxsize=1)  # the viewers of a turn get the same text in a row: it is encoded once
def _frame(kind: str, id: str, text: str) -> bytes:
    return b"data: %b\n\n" % encode({"type": f"{kind}-delta", "id": id, "delta": text})


class PageParts:
    """The parts of the message that a page has and continues; none without `page`."""

    def __init__(self, page: Json | None) -> None:
        self.id: str | None = page["id"] if page is not None else None
        parts = page["parts"] if page is not None else []
        self.calls: dict[str, deque[Json]] = {}  # those that were not taken, by id, which later calls may have again
        for one in filter(is_tool, parts):
            self.calls.setdefault(one["toolCallId"], deque()).append(one)
        self._texts = {
            kind: deque(one["text"] for one in parts if one["type"] == kind and one["text"])
            for kind in ("text", "reasoning")
        }
        self._data = {str(one.get("id")): one.get("data") for one in parts if one["type"].startswith("data-")}
        self._sources = {str(one.get("sourceId") or one.get("url")) for one in parts}  # and files

    def take_length(self, kind: str, text: str) -> int:
        """Take the pieces that the page has of a text, and return how many code points they are in all."""
        length, pieces, passed = 0, self._texts[kind], list[str]()
        while pieces and length < len(text) and len(passed) < SKIPPED:
            piece = pieces.popleft()
            if text.startswith(piece, length):
                length += len(piece)
            else:
                passed.append(piece)  # of another text: pieces of texts that grew at the same time alternate
        pieces.extendleft(reversed(passed))
        return length

    def untaken(self) -> tuple[bool, bool]:
        """Return whether the page has a text that was not taken, and whether it has such a call."""
        return any(self._texts.values()), any(self.calls.values())

    def known(self, chunk: Json) -> Json:
        """Return `chunk` with the value that the page has of its part; an empty one without it."""
        if chunk["type"].startswith("data-"):
            return {**chunk, "data": self._data[chunk["id"]]} if chunk["id"] in self._data else {}
        return chunk if (chunk.get("sourceId") or chunk.get("url")) in self._sources else {}


def is_tool(part: Json) -> bool:
    """Return whether a part of a page's message is a call of a tool."""
    return str(part["type"]).startswith("tool-") and isinstance(part.get("toolCallId"), str)


def result_of(part: Json, release: Release) -> Json:
    """Return the chunk with the result of a call."""
    call, state, output = {"toolCallId": part["call"]}, part.get("state"), part.get("output")
    if state == "denied" and release.version >= 6:
        return {"type": "tool-output-denied", **call}
    if state in ("denied", "error"):  # version 5 shows a denial as an error
        text = state if state == "denied" else output if isinstance(output, str) else json.dumps(output)
        return {"type": "tool-output-error", **call, "errorText": text}
    return {"type": "tool-output-available", **call, "output": output}


def _media_type(part: Json, default: str = "application/octet-stream") -> str:
    return str(part.get("mediaType") or part.get("media_type") or default)


def ui_part(id: str, part: Json) -> Json | None:
    """Return a source, file or data part, which is the same as a chunk and in a message; None for other parts."""
    match part:
        case {"type": "data", "name": str(name)}:
            return {"type": f"data-{name}", "id": id, "data": part.get("data")}
        case {"type": "file", "url": str(url)}:
            return {"type": "file", "url": url, "mediaType": _media_type(part)}
        case {"type": "source", "url": str(url)}:
            title = {"title": part["title"]} if isinstance(part.get("title"), str) else {}
            return {"type": "source-url", "sourceId": id, "url": url, **title}
        case {"type": "source"}:
            name = str(part.get("title") or part.get("filename") or "source")
            return {
                "type": "source-document",
                "sourceId": id,
                "mediaType": _media_type(part, "text/plain"),
                "title": name,
            }
    return None


def ui_messages(turns: Iterable[TurnStatus], release: Release) -> list[Json]:
    """Return the conversation as `UIMessage`s, without the answers of turns that wait or run."""
    messages: list[Json] = []
    calls = dict[str, Json]()  # those that have no result, by id
    for turn in turns:
        if (question := turn.message) is not None:
            for call, one in outputs_in(question).items():
                if part := calls.pop(call, None):  # a client of another adapter has sent its result with this question
                    ended = {"call": call, "state": "error" if "error" in one else "done", "output": one.get("output")}
                    result = result_of(ended, release)
                    part |= {**result, "type": part["type"], "state": result["type"].removeprefix("tool-")}
            meta = {"metadata": own} if (own := app_meta(question.meta)) else {}
            parts = [_question_part(one) for one in question.parts]
            messages.append({"id": question.id, "role": "user", "parts": parts, **meta})
        if turn.state == "over":
            messages.append(_answer_of(turn, release))
            calls |= {one["toolCallId"]: one for one in messages[-1]["parts"] if one.get("state") == "input-available"}
    return messages


def silent_id(question: str) -> str:
    """Return the id of the page's message for a turn without an answer."""
    return f"{question}.none"


def _question_part(part: Json) -> Json:
    match part:
        case {"type": "data", "name": name}:
            return {"type": f"data-{name}", "data": part.get("data")}
        case {"type": "file"}:
            return {**part, "mediaType": _media_type(part)}
    return part


def _answer_of(turn: TurnStatus, release: Release) -> Json:
    """Return the message with a turn's answers as a page builds it that follows the turn from its beginning."""
    # the chunks of version 7 have the replies to approvals, which pages of 6 have from their users
    as_built = Release(7 if release.version > 5 else 5, browser_tools=release.browser_tools)
    stream = UIStream(turn.message.id if turn.message is not None else "", as_built)
    stream.receive(())  # the first batch, in which calls of the page's tools would be held
    message, parts = Json(role="assistant"), list[Json]()
    texts, calls = dict[str, Json](), dict[str, Json]()  # calls also by the ids of their approvals
    for chunk in stream.receive(deltas_of(turn)):
        match chunk:
            case {"type": "start", "messageId": id, **about}:
                message |= {"id": id, **({"metadata": about["messageMetadata"]} if about else {})}
            case {"type": "start-step"}:
                parts.append({"type": "step-start"})
            case {"type": "text-start" | "reasoning-start" as kind, "id": id}:
                kept = {"id": id} if kind == "reasoning-start" and not release.strict else {}  # not on early pages
                texts[id] = {"type": kind.removesuffix("-start"), **kept, "text": "", "state": "done"}
                parts.append(texts[id])
            case {"type": "text-delta" | "reasoning-delta", "id": id, "delta": text}:
                texts[id]["text"] += text
            case {"type": "tool-input-start", "toolCallId": id, "toolName": name, **about}:
                calls[id] = {"type": f"tool-{name}", "toolCallId": id, **about, "state": "input-streaming", "input": ""}
                parts.append(calls[id])
            case {"type": "tool-input-delta", "toolCallId": id, "inputTextDelta": text}:
                calls[id]["input"] += text
            case {"type": "tool-approval-request", "toolCallId": id, "approvalId": approval}:
                calls[approval] = calls[id]
            case {"type": "tool-approval-response", "approvalId": id, **reply}:
                calls[id] |= {"state": "approval-responded", "approval": {"id": id, **reply}}
            case {"type": str(kind), "toolCallId": id}:  # its input or output is available, an error, or denied
                calls[id] |= {name: chunk[name] for name in ("output", "errorText") if name in chunk}
                calls[id]["state"] = kind.removeprefix("tool-")
            case {"type": str(kind)} if kind.startswith(("data-", "file", "source-")):
                parts.append(chunk)
    for part in filter(is_tool, parts):
        part["input"] = parsed(part["input"])[0]
    return {**message, "parts": parts if len(parts) > 1 else []}  # the page drops a step without parts
