"""A turn as the UI message stream of the AI SDK.

Layer: interop.

One turn is one assistant message of the page, with all answers of the turn. Clients refuse unknown data: a chunk type
or (`strict`) a field of a later release, and a delta for a part that has ended. After the result of a tool comes a step
boundary, because pages that continue by themselves look at the last step only. For the same reason a call that the page
may be asked about stays in the last step, and pages look for the input of a call only there. `docs/interop.md` has the
mapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tenuto.interop.ai_sdk_parts import (
    DEFAULT,
    PageCall,
    PageParts,
    Release,
    approval_of,
    involves_page,
    parsed,
    result_of,
    silent_id,
    ui_part,
)
from tenuto.interop.fold import (
    DELETED,
    REPLACED,
    End,
    Json,
    Part,
    TurnFold,
    call_of,
    has_result,
    question_value,
    text_of,
)
from tenuto.routes import InAnswer, MessageOpened, QuestionAsked, QuestionReplied, TextAdded, TurnDelta

_encode = msgspec.json.Encoder().encode
FINISH_REASONS = {"content_filter": "content-filter", "tool_calls": "tool-calls", "stop": "stop", "length": "length"}
STARTED, AVAILABLE, OVER = 1, 2, 3  # stages of a tool call on the page
# When the next part needs a new step: after a result of the server, unless it joins the step; always.
IN_STEP, ALWAYS = "result", "always"
LATE = "the question has expired or was answered; the reply had no effect"
SHARED_CHARS = 16_384  # maximal length of a text whose frame is kept for the next viewer
_REPLIED = ("approval-responded", "output-available", "output-error")  # states of calls to which a page has replied
_STAGES = dict.fromkeys(("input-available", "approval-requested", "approval-responded"), AVAILABLE)
_STAGES |= dict.fromkeys(("output-available", "output-error", "output-denied"), OVER) | {"input-streaming": STARTED}


class UIStream:
    """The UI message stream of one turn.

    With `page`, the page's own message, it has only the parts that are missing there. With `is_late` the page's replies
    had no effect; the stream then ends with an error, unless the page gets another outcome of each call.
    """

    heartbeat = b":\n\n"

    def __init__(
        self, message_id: str, release: Release = DEFAULT, page: Json | None = None, *, is_late: bool = False
    ) -> None:
        self.headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "x-accel-buffering": "no",
            "x-vercel-ai-ui-message-stream": "v1",
        }
        self.is_over = False
        self._release = release
        self._message_id = message_id
        self._page = PageParts(page, is_late=is_late)
        self._chunks: list[Json] = []
        self._turn = TurnFold()
        self._hidden: set[str] | None = None  # attempts that were replaced when the stream began
        self._begun_id = ""  # id of the page's message after its beginning
        self._step = 0
        self._step_due = ""  # why the next part needs a new step, or ""
        self._is_step_empty = True
        self._is_silent = True  # the page got no more than the beginning
        self._open: dict[Part, tuple[str, str]] = {}  # kinds and ids of the texts that the page waits for
        self._values: dict[Part, Json | None] = {}  # the last value of each other part
        self._ended: set[str] = set()  # ids of texts that have ended: the page takes no more text for them
        self._tools: dict[Part, PageCall] = {}
        self._shown_questions: set[str] = set()  # ids of the questions that are sent as `data-question`
        self._end: End | None = None  # the stream ends at once, whatever the turn does

    def frame(self, deltas: Sequence[TurnDelta]) -> bytes:
        """Return the chunks for `deltas` (`TurnFormat.frame`)."""
        if (found := self._turn.sole_text(deltas)) is not None and (opened := self._open.get(found[0])) is not None:
            part, text = found
            part.sent.add(text)
            return _shared_frame(*opened, text) if len(text) <= SHARED_CHARS else _frame(*opened, text)
        body = b"".join([b"data: %b\n\n" % _encode(one) for one in self.receive(deltas)])
        return body + b"data: [DONE]\n\n" if self.is_over else body

    def receive(self, deltas: Sequence[TurnDelta]) -> list[Json]:
        """Return the chunks for `deltas`."""
        is_first = self._hidden is None  # the deltas are the turn as it is, whose calls may have their replies already
        if self._hidden is None:
            self._hidden = TurnFold(deltas).replaced()
        if self._page.id is not None:
            self._begin(self._page.id)
        for delta in deltas:
            changed = self._turn.receive(delta)
            match delta:
                case InAnswer(message_id, MessageOpened()):
                    self._step_due = ALWAYS if self._begun_id else self._step_due
                    self._begin(message_id)
                case InAnswer(message_id, inner) if message_id not in self._hidden:
                    for part in changed:
                        self._change(part, is_first=is_first, is_text=type(inner) is TextAdded)
                case QuestionAsked(command):
                    self._ask(command.id)
                case QuestionReplied():
                    self._reply(delta)
            if self._end is not None:
                break
        if self._turn.is_gone(self._hidden):
            self._end = DELETED
        if is_first and self._page.has_other_text():
            self._end, self._step_due = REPLACED, ALWAYS if self._replied() else ""
            self._open.clear()
            del self._chunks[1:]  # behind `start`: a page shows no mixture of two texts
        if self._end is not None or self._turn.is_over:
            self._finish()
        elif any(one.question for one in self._tools.values()):
            self._release_calls()
            if not self._has_running_call():
                self._end_with_question()
        chunks, self._chunks = self._chunks, []
        return chunks

    def _put(self, **chunk: Any) -> None:
        self._is_silent = self._is_silent and chunk["type"] == "start"
        self._chunks.append(chunk)

    def _begin(self, message_id: str) -> None:
        if not self._begun_id:
            self._begun_id, meta = message_id, self._turn.meta()
            self._put(type="start", messageId=message_id, **({"messageMetadata": meta} if meta else {}))
            if self._page.id is None:
                self._put(type="start-step")
            else:  # a question about an earlier call stays in the step of the call; new parts have a step of their own
                self._step_due, self._is_step_empty = ALWAYS, False

    def _content(self, tool: PageCall | None = None) -> None:
        """Begin a new step if one is due, before the chunk that makes a part: `tool`, or one of another type."""
        stages = {one.stage for one in self._calls_of_step() if one is not tool}
        is_joined = self._step_due == IN_STEP and (
            AVAILABLE in stages or (tool is not None and tool.name not in self._release.browser_tools)
        )
        if self._step_due and not self._is_step_empty and not is_joined and STARTED not in stages:
            self._begin_step()
        elif self._is_step_empty:
            self._step_due = ""
        self._is_step_empty = False

    def _calls_of_step(self) -> list[PageCall]:
        """Return the calls of the last step that may get more input or a result."""
        return [
            tool for part, tool in self._tools.items() if tool.step == self._step and part.answer.status == "streaming"
        ]

    def _begin_step(self) -> None:
        self._close()
        self._put(type="finish-step")
        self._put(type="start-step")
        self._step, self._step_due = self._step + 1, ""

    def _close(self) -> None:
        for kind, id in self._open.values():
            self._ended.add(id)
            self._put(type=f"{kind}-end", id=id)
        self._open.clear()

    def _change(self, part: Part, *, is_first: bool, is_text: bool) -> None:
        """Send what has changed in a part: text alone (`is_text`), or its value."""
        match part.value["type"]:
            case "text" | "reasoning" if part.is_replaced:
                self._end = REPLACED
            case "text" | "reasoning" as kind:
                self._grow(part, kind)
            case "tool" if is_text:
                self._grow_input(part, self._tools[part])
            case "tool":
                self._tool(part, is_first=is_first)
            case _:
                chunk = ui_part(part.name, part.value)
                if chunk is not None and self._values.get(part) != chunk and not self._page.has(chunk):
                    if not chunk["type"].startswith("data-") or part not in self._values:
                        self._content()
                    self._put(**chunk)
                self._values[part] = chunk

    def _grow(self, part: Part, kind: str) -> None:
        has = 0 if part.sent.length else self._page.length_of(kind, part.text())
        text = part.take()[has:]
        if not text:
            return
        if part not in self._open:
            self._content()
            id = part.name
            while id in self._ended:
                id += ".more"
            self._open[part] = kind, id
            self._put(type=f"{kind}-start", id=id)
        self._put(type=f"{kind}-delta", id=self._open[part][1], delta=text)

    def _grow_input(self, part: Part, tool: PageCall) -> None:
        text = part.take()
        if text and tool.stage == STARTED and tool.has_deltas:
            self._put(type="tool-input-delta", toolCallId=tool.call, inputTextDelta=text)

    def _tool(self, part: Part, *, is_first: bool) -> None:
        value, tool = part.value, self._tools.get(part)
        text, state = text_of(value), value.get("state")
        if tool is None:
            stage = _STAGES.get(self._page.tools.get(value["call"], ""), 0)
            tool = self._tools[part] = PageCall(value["call"], value["name"], stage, has_deltas=not stage)
            if stage:
                part.take()
        tool.has_outcome = self._page.is_outcome(value)
        is_new = tool.stage == 0
        if is_new:
            self._content(tool)
            tool.stage, tool.step = STARTED, self._step
            self._put(type="tool-input-start", toolCallId=tool.call, toolName=tool.name, **self._executed(tool))
        self._grow_input(part, tool)
        is_over = has_result(value)
        if state == "called" or is_over:
            is_own = tool.name in self._release.browser_tools
            if not is_over and (tool.held is not None or (is_first and is_own)):
                tool.held = text
            else:
                # without this chunk the page does not run a finished call again
                self._make_available(tool, text, is_silent=is_over and (is_new or tool.held is not None))
            self._approve(tool, value)
        if is_over and tool.stage < OVER:
            tool.stage = OVER
            is_certain = involves_page(value, self._release) or self._step_due == ALWAYS
            self._step_due = ALWAYS if is_certain else IN_STEP
            self._is_step_empty = self._is_step_empty and not is_new
            self._put(
                **result_of(value, self._release), **({} if state == "denied" else self._executed(tool, is_output=True))
            )

    def _approve(self, tool: PageCall, part: Json) -> None:
        """Give the page the reply to an approval, which it lacks if it loads or resumes after the reply."""
        approval = approval_of(part, self._release)
        if approval is None or tool.stage == OVER or self._page.has_approval(tool.call, approval):
            return
        knows_replies = self._release.version >= 7 and not self._release.strict
        if (knows_replies or part.get("state") == "denied") and not tool.is_approved:
            tool.is_approved = True
            if tool.call not in self._page.approvals:
                self._put(type="tool-approval-request", approvalId=approval["id"], toolCallId=tool.call)
            if knows_replies:
                reply = {name: value for name, value in approval.items() if name != "id"}
                self._put(type="tool-approval-response", approvalId=approval["id"], **reply)
                self._step_due, self._is_step_empty = ALWAYS, False

    def _make_available(self, tool: PageCall, text: str, *, is_silent: bool = False) -> None:
        if tool.stage != STARTED:
            return
        tool.stage, tool.held = AVAILABLE, None
        value, is_json = parsed(text)
        if not (is_silent and is_json):
            chunk = {"toolCallId": tool.call, "toolName": tool.name, "input": value}
            self._put(type="tool-input-available", **chunk, **self._executed(tool))

    def _release_calls(self) -> None:
        """Ask the page to run the calls beside an open question: it sends no reply before it has their outputs."""
        for tool in self._calls_of_step():
            if tool.held is not None:
                self._make_available(tool, tool.held)

    def _executed(self, tool: PageCall, *, is_output: bool = False) -> Json:
        is_here = tool.name not in self._release.browser_tools
        return {"providerExecuted": True} if is_here and (is_output or not self._release.strict) else {}

    def _ask(self, id: str) -> None:
        question = self._turn.questions[id].command
        call, is_approval = call_of(question.data), question.name == "approve" and self._release.version >= 6
        tool = next((one for one in self._tools.values() if one.call == call), None)
        if tool is None or not (is_approval or tool.name in self._release.browser_tools):
            self._shown_questions.add(id)
            self._begin(silent_id(self._message_id))
            self._content()
            self._put(type="data-question", id=id, data=question_value(self._turn.questions[id]))
            return
        tool.question = id
        self._make_available(tool, tool.held or "")
        if is_approval and self._page.tools.get(tool.call) != "approval-requested":
            self._put(type="tool-approval-request", approvalId=id, toolCallId=tool.call)

    def _reply(self, reply: QuestionReplied) -> None:
        for tool in self._tools.values():
            tool.question = "" if tool.question == reply.id else tool.question
        if reply.id in self._shown_questions:
            self._put(type="data-question", id=reply.id, data=question_value(self._turn.questions[reply.id], reply))

    def _has_running_call(self) -> bool:
        """Return whether a call without a question runs in the last step: before its end the page sends no reply."""
        return any(
            one.stage == STARTED
            or (
                one.stage == AVAILABLE
                and one.name not in self._release.browser_tools
                and not one.is_approved
                and self._page.tools.get(one.call) not in _REPLIED
            )
            for one in self._calls_of_step()
            if not one.question
        )

    def _end_with_question(self) -> None:
        """End the response, as a page can reply only then. A page that repeats a reply would repeat it for ever."""
        if self._page.is_late and self._is_silent and self._replied():
            self._put(type="error", errorText=LATE)
        else:
            self._close()
            self._put(type="finish-step")
            self._put(type="finish", **self._reason("tool-calls"))
        self.is_over = True

    def _replied(self) -> list[PageCall]:
        """Return the calls to which the page has replied."""
        return [one for one in self._tools.values() if self._page.tools.get(one.call) in _REPLIED]

    def _reason(self, reason: str) -> Json:
        return {} if self._release.strict and self._release.version < 6 else {"finishReason": reason}

    def _finish(self) -> None:
        self._begin(silent_id(self._message_id))
        self._close()
        if self._step_due and not self._is_step_empty:
            self._begin_step()
            self._put(type="start", messageId=self._begun_id)  # a page stores an empty step only with a later chunk
        hidden, meta = self._hidden or (), self._turn.meta()
        status, reason = self._end or self._turn.end(hidden)
        is_clean = status in ("complete", "cancelled")
        if self._page.is_late and is_clean and not all(one.has_outcome for one in self._replied()):
            status, reason = "late", LATE
        if status in ("complete", "cancelled"):
            self._put(type="finish-step")
        if status == "complete":
            finish: Json = {"messageMetadata": meta} if meta else {}
            if self._turn.left(hidden):
                known = meta.get("finish_reason", "stop")  # of any JSON type
                finish |= self._reason(FINISH_REASONS.get(known, "other") if isinstance(known, str) else "other")
            self._put(type="finish", **finish)
        elif status == "cancelled":
            self._put(type="abort")
        else:
            self._put(
                type="error",
                errorText=reason or ("no agent serves this chat" if self._turn.state == "none" else status),
            )
        self.is_over = True


def _frame(kind: str, id: str, text: str) -> bytes:
    return b"data: %b\n\n" % _encode({"type": f"{kind}-delta", "id": id, "delta": text})


_shared_frame = lru_cache(maxsize=1)(_frame)  # the viewers of a turn get the same text in a row: it is encoded once
