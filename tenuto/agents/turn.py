"""A turn: an agent's work on one user message, as its handler gets it.

Layer: agents.

A handler gets a `Turn` and writes its `reply()`. The same in the hub's process and in another one.
Names without an underscore are public.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Mapping
from functools import partial
from itertools import count
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from tenuto.agents.backend import Backend, Sent, Watch, find, patiently
from tenuto.agents.history import Shape, as_turns, begin_of, chain_to, parents_in, path_to, system_texts
from tenuto.agents.request import TurnRequest
from tenuto.agents.steps import UNSTORABLE, Allowance, Steps, check_function, input_of
from tenuto.core.errors import AlreadyAnswered, Forbidden, LocalError, TenutoError, TooLarge, public_reason, shown
from tenuto.core.model import Json, Message, check_json, plain
from tenuto.core.names import base32
from tenuto.core.ops import digest
from tenuto.core.outgoing import PartIndex
from tenuto.core.state import part_bytes
from tenuto.core.turns import STEER, WITHDRAWN, attempt_of, question_id, reply_id
from tenuto.portal import Piped, ToolCall, Try, Writer, current_try
from tenuto.sources.reading import CALLED, DONE, ERROR

logger = logging.getLogger("tenuto.agents")

CANCELLED_BY_HANDLER = ("failed", "error")  # how an answer ends whose block its handler has cancelled
GRACE_S = 5.0  # time to wait, beyond that of the question, for the server's report that it has expired

OnCrash = Literal["interrupt", "restart", "continue"]


class Steer(NamedTuple):
    """Input that arrived while the turn ran: the data of a `steer` command, or a further user message."""

    text: str
    data: Json = None  # data of the `steer` command
    message: Message | None = None  # the further user message
    by: str | None = None
    id: str = ""  # of the command or message; input that comes again after a crash has the same


class AskReply(NamedTuple):
    """The result of `Turn.ask`."""

    ok: bool
    data: Json
    error: Json  # `{"code": "expired"}` if no reply arrived in time
    by: str | None


class LeftAnswer(NamedTuple):
    """The answer of an earlier attempt: unfinished, with a writer that has taken it over, or complete."""

    answer: Message
    writer: Writer


TakenUp = dict[int, LeftAnswer]  # by the number of the answer in the turn, from 0
InputKey = tuple[str, bool]  # id of a command (True) or of a message (False)


class Turn:
    """The work on one user message, as its handler gets it."""

    def __init__(
        self,
        backend: Backend,
        watch: Watch,
        channel: str,
        message: Message,
        generation: int,
        *,
        name: str,
        previous: Message | None,
        taken_up: TakenUp,
        on_crash: OnCrash = "interrupt",
        request: TurnRequest | None = None,
        rests: Callable[[], None] = lambda: None,
    ) -> None:
        self.channel = channel
        self.message = message  # the user message that the turn answers
        self.request = request or TurnRequest()  # the client's options beside the message
        self.attempt = attempt_of(generation)  # number of the attempt: 1, or higher after a crash
        self.previous = previous  # the unfinished answer of an attempt that crashed
        self.name = name  # the agent's name: author of the answers, and member that people see
        self.is_cancelled = False  # True: a client has stopped the turn
        # number of the attempt over all rounds (each `regenerate` begins a round); part of the answers' ids
        self.generation = generation
        self._backend = backend
        self._watch = watch
        self._taken_up = taken_up
        self._on_crash = on_crash
        # the parts of the shown steps, by the ids of their answers and their keys
        self._shown_at: dict[tuple[str, Json], int] = {
            (one.answer.id, part.get("call")): PartIndex(index, 0)
            for one in taken_up.values()
            for index, part in enumerate(one.answer.parts)
        }
        self._shown_names: list[str] = []  # shown steps that run
        self.steps = Steps(backend, channel, message.id, generation)
        self.allowance: Allowance | None = None  # the time that this attempt may take; None before its handler begins
        self.has_budget = False  # True: the agent has a `budget_s`
        self._inputs: set[InputKey] = set()  # each was looked at, and is due if it is for this turn
        self._due: dict[InputKey, Steer] = {}  # what `steered` has to accept, in the order in which it came
        self._noted: dict[InputKey, set[str | None]] = {}  # what an attempt may have accepted, with who would reply
        self._arrived: list[Steer] = []  # what was accepted for the next call of `steered`
        self._steering = asyncio.Lock()
        self._conversation: set[str] = set()  # ids of its own messages, and of those that follow them
        self.replies: list[Writer] = []
        self._rests = rests  # called when the turn may be at rest
        self._cancelled_ends_s: dict[str, float] = {}  # ends of questions whose `ask` was cancelled, by their ids
        # ids of questions that have no reply yet, also of earlier attempts: this one may ask them again
        self.open_questions: set[str] = set()

    @property
    def text(self) -> str:
        """Return the text of the user message."""
        return self.message.text

    async def history(self, shape: Shape = "text", *, limit: int = 200) -> list[Any]:
        """Return the conversation up to this message, oldest first, in the shape that a model's API takes.

        `text`: `{"role", "content"}`, for OpenAI's Chat Completions and Responses and most others. `openai`: for Chat
        Completions, with tool calls and their results. `responses`: items of OpenAI's Responses. `anthropic`: for
        Anthropic's Messages, with alternating turns and without system messages: from then on
        `request.options("anthropic")` has those in `system`. At most `limit` messages before this one count, and as
        many of them as have eight times `Limits.message_bytes`; of a conversation with branches, those on the path to
        this message. Each item is a dict; a type checker accepts it for the type that the SDK declares.
        """
        created = self.message.created
        wanted, room_bytes = max(1, min(limit, 200)), 8 * self._backend.limits.message_bytes
        page = await self._backend.page(self.channel, before=None, limit=min(wanted + 1, 200))
        if page.more and page.messages[-1].created > created:  # an old message is being answered again
            page = await self._backend.page(self.channel, before=created, limit=wanted)
        messages = list(page.messages)
        while page.more:  # the page may be small, as its size in bytes is limited
            before = messages[-1].created
            first = begin_of(self.message, messages)
            if first.parent is not None and first.created > before:  # the others are of other branches
                parent = await find(self._backend, self.channel, first.parent)
                if parent is not None and parent.created < first.created:
                    before = min(before, parent.created + 1)
                    messages = [one for one in messages if one.created >= first.created]
            room_bytes -= sum(part_bytes(part) for one in page.messages for part in one.parts)
            if (left := wanted - sum(one.created < created for one in messages)) <= 0 or room_bytes <= 0:
                break
            page = await self._backend.page(self.channel, before=before, limit=left)
            messages += page.messages
        messages = [*path_to(self.message, messages), self.message]
        self.request = replace(self.request, system=system_texts(messages))
        return as_turns(messages, shape, self.request.tools)

    def reply(self, *, meta: dict[str, Json] | None = None) -> Writer:
        """Return the writer of an answer: `async with turn.reply() as message: …`. A second call begins another answer.

        After a crash the first call returns the first unfinished answer (`previous`), and so on: the first content
        supersedes what it holds, or with `on_crash="continue"` the answer continues at its `length`. An answer that is
        complete stays: what is written has no effect, and `pipe` returns what it returned. Its block raises Fenced if
        the turn has a later attempt by now.
        """
        left = self._taken_up.get(len(self.replies))
        if left is not None:
            writer = left.writer
            steps = [part.get("call") for part in left.answer.parts if self.steps.is_shown_as(part)]
            writer.begin_again(meta or {}, supersedes=self._on_crash == "restart", steps=steps)
            del self._taken_up[len(self.replies)]  # only now: an answer whose meta is refused is ended with the turn
        else:
            message_id = reply_id(self.message.id, self.generation, len(self.replies))
            parent, asked = self.begun[-1].id if self.begun else None, self.message.id
            writer = self._backend.write(self.channel, message_id, reply_to=asked, parent=parent, meta=meta or {})
            writer.spare_id = lambda: base32(secrets.randbits(90), 18)  # a client can compute, and take, the first id
        if not self.is_cancelled:  # then a cancellation of the block is the handler's own
            writer.cancelled_as = CANCELLED_BY_HANDLER
        writer.on_retry = lambda waits: self.progress("trying again" if waits else "answering")
        writer.on_attach = lambda is_attached: self._rests()
        writer.is_answer, writer.is_continued = True, self._on_crash == "continue"
        writer.rested_s = lambda: max(self.steps.ran_s, self.allowance.rested_s if self.allowance is not None else 0.0)
        writer.is_stopped = lambda: writer.cancelled_as != CANCELLED_BY_HANDLER
        writer.open_step = lambda: self.steps.open_key
        self.replies.append(writer)
        self.progress("answering")
        return writer

    def progress(self, state: str, **data: Json) -> None:
        """Show people the state of the agent, such as `thinking`, `answering` or `using a tool`. It is never stored."""
        self._backend.progress(self.channel, {"state": state, "message": self.message.id, **data})

    async def steered(self, *, messages: bool = True) -> list[Steer]:
        """Return the input that arrived for this turn since the last call. Its messages get no turns of their own.

        First come the `steer` commands that name this message or its answer (this call replies to them), then further
        user messages whose conversation has led through this one; both are sorted, oldest first. With `messages=False`
        further user messages wait for their turns, as they do behind an answer that an earlier attempt has completed.
        What an earlier attempt got comes first, again, unless it has completed the answer for which it got this.
        """
        answers = [reply for reply in self.begun[-1:] if not reply.is_over]
        if (left := self._taken_up.get(len(self.replies))) is not None:
            answers.append(left.writer)
        if any(one.had_ended for one in answers):  # the handler cannot answer input there any more
            return []
        async with self._steering:
            await self._look_for_input(messages)
            for key, steer in tuple(self._due.items()):
                if messages or steer.message is None:
                    if await self._accept(key, steer):
                        self._arrived.append(steer)
                    del self._due[key]
            arrived, self._arrived = self._arrived, []
            return arrived

    async def _look_for_input(self, messages: bool) -> None:
        """Add to `_due` what is new in the channel and meant for this turn."""
        waiting = [one for one in self._watch.waiting() if (one.id, False) not in self._inputs] if messages else []
        self._conversation |= self.targets
        parents: dict[str, str] = {}
        known = {*self._conversation, *(one.id for one in waiting)}
        if any(one.parent not in known for one in waiting):  # messages between may lead to this turn
            with contextlib.suppress(Forbidden):
                page = await patiently(lambda: self._backend.page(self.channel, before=None, limit=200))
                parents = parents_in(page.messages)
        for command in self._watch.commands():
            key = command.id, True
            if command.name == STEER.name and command.target in self.targets and key not in self._inputs:
                self._inputs.add(key)
                self._due[key] = Steer(_text_in(command.data), command.data, None, command.from_, command.id)
        for message in waiting:
            key = message.id, False
            self._inputs.add(key)  # try each message once, because in another process a try costs a request
            if not self._conversation.isdisjoint([message.parent, *chain_to(parents, message.id)]):
                self._conversation.add(message.id)
                self._due[key] = Steer(message.text, None, message, message.author, message.id)

    async def _accept(self, key: InputKey, steer: Steer) -> bool:
        """Note an input for later attempts, and then take its message in, or reply to its command.

        Return False if a message has a turn of its own, or a command another reply, for example because it expired.
        """
        id, is_command = key
        is_again = key in self._noted
        repliers = self._noted.setdefault(key, {self.name})
        answer = len(self.replies) - any(not one.is_over for one in self.replies[-1:])  # its number
        try:
            note: dict[str, Json] = {"of": id, "is_command": is_command, "answer": answer, "by": steer.by}
            *_, stored = await self.steps.note_input(note, steer.data)
            repliers.add(stored.command.from_)
        except (Forbidden, TooLarge) as error:
            logger.warning("input of a turn in %s was not noted, and a crash may lose it: %s", self.channel, error)
        try:
            if is_command:
                await self._backend.reply(self.channel, id, ok=True, data=None, error=None)
        except AlreadyAnswered:
            return is_again and await self._was_accepted(id, steer.data, repliers)
        except TenutoError as error:
            logger.warning("a steer in %s has arrived, but stays open until it expires: %s", self.channel, error)
        return is_command or await self._take_in(id)

    async def _take_in(self, id: str) -> bool:
        return await patiently(partial(self._backend.take_waiting, self.channel, id, turn=self.message.id))

    async def _was_accepted(self, id: str, data: Json, repliers: Container[str | None]) -> bool:
        """Return whether the reply to a `steer` is that of this turn: the command is read by sending it again."""
        again = partial(self._backend.command, self.channel, STEER.name, id=id, target=self.message.id, data=data)
        sent = await patiently(lambda: again(expires_s=1.0))
        return sent.reply is not None and sent.reply.ok and sent.reply.from_ in repliers

    async def recall(self, complete: Collection[int]) -> None:
        """Read the input that earlier attempts got: it is due again, unless the answer that it was for is complete.

        Each attempt first notes the numbers of the `complete` answers. Such an answer has the input of the last attempt
        before that note, which stays in the turn.
        """
        notes: dict[InputKey, Any] = {}  # the last note about each input
        closed: set[InputKey] = set()  # input of complete answers
        last_attempt = 0  # generation of the attempt that stored the note before
        try:
            for command, reply in await self.steps.note_input({"of": None, "complete": sorted(complete)}):
                if not isinstance(note := command.data, dict):
                    continue  # it is older than 30 days
                if note["of"] is None:
                    answered = {key for key, one in notes.items() if one["answer"] in note["complete"]}
                    closed |= {key for key in answered if notes[key]["attempt"] == last_attempt}
                elif reply is not None:  # else its attempt died before it accepted this
                    notes[key := (note["of"], note["is_command"])] = {**note, "data": reply.data}
                    self._noted.setdefault(key, {self.name}).add(command.from_)
                last_attempt = note["attempt"]
        except Forbidden as error:
            logger.warning("the agent of %s may not read what it got before a crash: %s", self.channel, error)
        for key, note in notes.items():
            try:
                await self._recall_input(key, note, is_closed=key in closed)
            except Forbidden as error:  # the message gets a turn of its own
                logger.warning("the agent of %s may not read what it got before a crash: %s", self.channel, error)

    async def _recall_input(self, key: InputKey, note: dict[str, Any], *, is_closed: bool) -> None:
        """Make an input due again; with `is_closed`, as that of a complete answer, keep its message in the turn."""
        id, is_command = key
        steer = Steer(_text_in(note["data"]), note["data"], None, note["by"], id)
        if not is_command:
            message = await patiently(partial(find, self._backend, self.channel, id))
            if message is None:
                return
            self._conversation.add(id)  # messages that follow it are for this turn, too
            steer = Steer(message.text, None, message, message.author, id)
            if is_closed:
                await self._take_in(id)  # so that it gets no turn of its own
        self._inputs.add(key)
        if not is_closed:
            self._due[key] = steer

    async def ask(self, name: str, data: Json = None, *, timeout_s: float = 300.0, key: str | None = None) -> AskReply:
        """Ask the people in the channel, for example to `approve`, and return the first reply.

        The question is a command: it is stored, all devices show it, and the first reply counts. Without a reply within
        `timeout_s` seconds the result is `ok=False` with the error `expired`. A question that is open at the end of the
        turn is withdrawn. After a crash the same question, which is one with the same `name` and `data`, goes on: it
        stays open for the rest of its time, and a reply that has arrived meanwhile is returned. The same holds if this
        call was cancelled and is made again. Of equal questions give each a `key`, else their order counts. Raises
        InvalidRequest or TooLarge for `data`, LocalError if `name` is that of a step, Fenced, TooMany.
        """
        if not 1 <= timeout_s <= 24 * 3600:
            raise LocalError(f"timeout_s must be from 1 to 86,400 seconds, got {timeout_s!r}")
        check_json(data, self._backend.limits.data_bytes, "data", depth=self._backend.limits.depth)
        begun = self.begun
        target = begun[-1].id if begun else self.message.id
        await self.steps.ask(name)
        if begun:
            begun[-1].close_text()
            await begun[-1].flush()  # store the text first, so that people see it above the question
        stored = plain({"data": data})["data"]  # a later attempt finds the question by it
        content = f"{name}\n{key}\n{await self._question_hash(stored, target)}"
        now_s = asyncio.get_running_loop().time()
        has_call = isinstance(stored, dict) and "call" in stored  # equal calls may be asked about with the same key
        id, content = self._numbered_question(content, None if has_call else key, now_s)
        try:
            command, reply = await self._send_question(content, name, target, stored, timeout_s)
            if reply is None:
                self.progress("waiting", command=command.id)
                with contextlib.suppress(TimeoutError):  # this process was disconnected, for example
                    async with self._standing_still(), asyncio.timeout(timeout_s + GRACE_S):
                        reply = await self._watch.reply_to(command)
                self.progress("answering" if begun else "thinking")
        except asyncio.CancelledError:
            self._cancelled_ends_s.setdefault(id, now_s + timeout_s)
            self.steps.release(id)
            raise
        self._cancelled_ends_s.pop(id, None)
        self.open_questions.discard(command.id)
        if reply is None:
            return AskReply(False, None, {"code": "expired", "detail": "no reply arrived in time"}, None)
        return AskReply(reply.ok, reply.data, reply.error, reply.from_)

    @contextlib.asynccontextmanager
    async def _standing_still(self) -> AsyncIterator[None]:
        """Let the time of the turn stand still."""
        allowance, here = self.allowance, current_try.get() or Try()
        assert allowance is not None  # the handler has begun
        here.wait(1)  # counts in the tries that lead here, whose streams only wait now (`going_on`)
        try:
            if allowance.pause() and self.has_budget:
                await self.steps.time_used_ms(now_is_used=False)
            self._rests()
            yield
        finally:
            here.wait(-1)
            noting = None
            if allowance.resume() and self.has_budget:  # stored also if this wait was cancelled
                noting = asyncio.gather(self.steps.time_used_ms(), return_exceptions=True)
        if noting is not None:
            await asyncio.shield(noting)

    async def _question_hash(self, data: Json, target: str) -> str:
        """Return a hash of the data of a question, in which a call of the answer stands by its tool and arguments.

        A later attempt that asks the model again gets the same call under another id. An agent that may not read its
        answers knows calls by their ids only.
        """
        if isinstance(data, dict) and "call" in data:
            answer = None
            with contextlib.suppress(Forbidden):
                answer = await patiently(partial(find, self._backend, self.channel, target))
            for part in answer.parts if answer is not None else ():
                if part["type"] == "tool" and part["call"] == data["call"]:
                    with contextlib.suppress(ValueError, OverflowError, RecursionError):
                        return digest({**data, "call": [part["name"], json.loads(part["input"] or "{}")]}).hex()
        return digest(data).hex()

    async def _send_question(self, content: str, name: str, target: str, data: Json, timeout_s: float) -> Sent:
        """Send a question, or return it as an earlier attempt has sent it, with its reply.

        One that is open and names a call that was superseded is replaced: people would reply to it where no call waits.
        """
        while True:
            id = question_id(self.channel, self.message.id, self.generation, content)
            self.open_questions.add(id)  # before it is sent: a stop may end this while the question is being stored
            sent = await self._backend.command(self.channel, name, id=id, target=target, data=data, expires_s=timeout_s)
            if sent.reply is not None and sent.reply.error == WITHDRAWN:
                self.open_questions.discard(id)
                content += "\nreplaced"
            elif sent.reply is not None or sent.command.data == data:
                return sent
            else:
                timeout_s = min(timeout_s, max(1.0, sent.command.expires_at / 1000 - self._backend.now_ms() / 1000))
                with contextlib.suppress(AlreadyAnswered):
                    await self._backend.reply(self.channel, id, ok=False, data=None, error=WITHDRAWN)

    def _numbered_question(self, content: str, key: str | None, now_s: float) -> tuple[str, str]:
        """Return an id for a question, and the numbered content that it is the hash of.

        Equal questions get a number each. But one takes the number, and with it the reply, of an earlier one that no
        `ask` waits for: its `ask` was cancelled while it is still open, or its try has failed.
        """
        for number in count(1):
            if key is not None and number > 1:
                raise LocalError(f"key {key!r} was used before for the same question; give each one a key of its own")
            numbered = f"{content}\n{number}"
            id = question_id(self.channel, self.message.id, self.generation, numbered)
            if self.steps.is_free(id) and self._cancelled_ends_s.get(id, float("inf")) > now_s:
                break
        self.steps.use(id)
        return id, numbered

    async def step(
        self,
        name: str,
        function: Callable[..., object],
        /,
        *args: Any,
        retries: int = 0,
        retry_s: float = 1.0,
        show: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the result of `function(*args, **kwargs)`, which is called once in this turn, also after a crash.

        The result (JSON, at most `Limits.step_bytes`) is stored before this returns, and a later attempt gets the
        stored one without a call; the first one, too, gets it as it is stored. `function` may be async. If it raises,
        it is called again up to `retries` times, first after `retry_s` seconds, then after twice as many, and so on.
        An exception is no result: the next attempt calls the function again, as it does if the process died
        (`was_interrupted`). With `show` the step is a tool part of the answer, which must have begun. Raises LocalError
        if the name was used before in this attempt, or inside of a step; InvalidRequest or TooLarge if the result
        cannot be stored; Fenced if a later attempt has the turn.
        """
        check_function(name, function)
        call = partial(function, *args, **kwargs)
        run = partial(self.steps.run, name, call, function, retries=retries, retry_s=retry_s)
        return await (self._run_shown(name, call, run) if show else run())

    async def _run_shown(self, name: str, call: partial[object], run: Callable[[], Awaitable[Json]]) -> Json:
        """Carry out a step as a tool part, which it shares with the earlier attempts."""
        key, message = self.step_key(name), self._answer(f"step {name!r} is shown")
        part = {"type": "tool", "call": key, "name": name, "input": input_of(call)}
        index = await message.part({**part, "state": CALLED}, index=self._shown_at.get((message.id, key)))
        self._shown_at[message.id, key] = index
        self._shown_names.append(name)
        self._show_tool()
        try:
            output = await run()
        except (Exception, asyncio.CancelledError) as error:
            if not self._is_left_by(error):
                with contextlib.suppress(LocalError):  # the step has outlived the attempt that shows it
                    await message.part({**part, "state": ERROR}, index=index)
            raise
        finally:
            self._shown_names.remove(name)
            if not self._is_ending:
                self._show_tool()
        await message.part({**part, "state": DONE, "output": output}, index=index)
        return output

    def _show_tool(self) -> None:
        """Show people the shown step that runs, the newest of several."""
        if self._shown_names:
            self.progress("using a tool", tool=self._shown_names[-1])
        else:
            self.progress("answering")

    def step_progress(self, fraction: float, text: str = "") -> None:
        """Show people how far the step is whose function calls this: from 0 to 1. It is never stored.

        Raises LocalError if `fraction` is no such number, or outside of a step; TooLarge for a long text.
        """
        if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
            raise LocalError(f"fraction must be a number from 0 to 1, got {shown(fraction)}")
        self.progress("using a tool", tool=self.steps.open_name, fraction=fraction, text=text)

    async def run_tools(self, piped: Piped, tools: Mapping[str, Callable[..., object]]) -> dict[str, Json]:
        """Run the calls of `tools` in a model's stream as steps, all at once; return the outputs by the calls' ids.

        The arguments of a call are those of its function, and its output is written into its part. A step is its tool
        and its arguments: a later attempt that asks the model again, and gets the same call under another id, does not
        run it again. If a function raises, or its result cannot be stored, the output is `{"error": reason}`, for the
        model. Calls that people have denied run, too: leave them out of `piped.tool_calls`. Raises LocalError without
        an answer, TooMany, Fenced, Draining if a function does; then all calls end.
        """
        asked = {*map(id, piped.tool_calls)}  # by identity: several answers may have equal calls
        own = (one for one in self.begun if not asked.isdisjoint(map(id, one.tool_calls)))
        message = next(own, None) or self._answer("the output of a tool is written")
        calls = [call for call in piped.tool_calls if call.name in tools]
        tasks = [asyncio.ensure_future(self._run_tool(message, call, tools[call.name])) for call in calls]
        try:
            outputs = await asyncio.gather(*tasks)
        except (Exception, asyncio.CancelledError) as error:
            # The turn or its handler failed, not a tool: cancel all calls, so that no call waits for an output.
            for task in tasks if not self._backend.drains(error) else ():  # the next attempt calls again what is cut
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # cancels them if it is cancelled
            if self._is_left_by(error):
                raise
            reason = "the tool was cancelled" if isinstance(error, asyncio.CancelledError) else "the turn failed"
            for call, task in zip(calls, tasks, strict=True):
                if task.cancelled() or task.exception():
                    with contextlib.suppress(TenutoError):
                        await _write_output(message, call, {"error": reason}, ERROR)
            raise
        return {call.call: output for call, output in zip(calls, outputs, strict=True)}

    async def _run_tool(self, message: Writer, call: ToolCall, function: Callable[..., object]) -> Json:
        """Run a call as a step, and return its output, which is written into its part; a failure is an output, too."""

        async def run(arguments: dict[str, Any]) -> object:
            try:
                result = function(**arguments)
                return await result if inspect.isawaitable(result) else result
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # that of `argparse` would end the process
                if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
                    raise
                if self._backend.drains(error):
                    raise  # the next attempt runs the tool again
                raise _ToolFailed from error  # also if the tool has cancelled a task of its own

        try:
            arguments = call.arguments
            content = f"{call.name[:100]}:{digest([call.name, arguments]).hex()}"
            # before the first wait: equal calls count in the order of the stream
            name = next(name for number in count(1) if self.steps.is_free(name := f"{content}:{number}"))
            output, state = await self.steps.run(name, partial(run, arguments), function, retries=0, retry_s=1.0), DONE
        except (_ToolFailed, *UNSTORABLE, ValueError, TypeError, RecursionError) as failure:
            error = failure.__cause__ if isinstance(failure, _ToolFailed) and failure.__cause__ else failure
            logger.warning("tool %r of %s failed", call.name, self.channel, exc_info=error)
            code = error.code if isinstance(error, TenutoError) else None
            reason = public_reason(error) or self._backend.reason_of(error) or code or "the tool failed"
            output, state = {"error": reason}, ERROR
        await _write_output(message, call, output, state)
        return output

    @property
    def _is_ending(self) -> bool:
        """Return whether a cancellation comes from a stop or a shutdown, and not from the handler itself."""
        return self.is_cancelled or self._backend.is_shutting_down

    def _is_left_by(self, error: BaseException) -> bool:
        """Return whether `error` ends the handler because of a stop or a shutdown; then tool parts stay as they are."""
        return self._backend.drains(error) or (isinstance(error, asyncio.CancelledError) and self._is_ending)

    def _answer(self, purpose: str) -> Writer:
        """Return the answer that is being written. Raises LocalError if none has begun."""
        if not self.begun:
            raise LocalError(f"{purpose} in an answer; call this in the block of `turn.reply()`")
        return self.begun[-1]

    def step_key(self, name: str) -> str:
        """Return a key for the step `name`, the same in each attempt: for idempotency keys of other services."""
        return self.steps.key(name)

    def was_interrupted(self, name: str) -> bool:
        """Return whether an earlier attempt has called the function of step `name` and its result is not stored.

        Call it inside of the function: before the step has begun the result is False.
        """
        return name in self.steps.interrupted

    async def sleep(self, name: str, seconds: float) -> None:
        """Wait `seconds`, counted from the first attempt on: after a crash only for the rest. Raises as `step`."""
        until_ms = await self.steps.begin_sleep(name, seconds)
        if until_ms > self._backend.now_ms():  # a wait that is over costs no notes of the time used
            async with self._standing_still():
                await asyncio.sleep(max(0, until_ms - self._backend.now_ms()) / 1000)

    def take_unused(self) -> list[Writer]:
        """Return, and remove, the answers of earlier attempts that `reply` has not returned."""
        writers = [one.writer for one in self._taken_up.values()]
        self._taken_up.clear()
        return writers

    @property
    def begun(self) -> list[Writer]:
        """Return the answers whose beginning is stored."""
        return [reply for reply in self.replies if reply.is_begun]

    @property
    def unheard(self) -> tuple[str, ...]:
        """Return the ids of messages that the turn may have taken in, and that `steered` has not returned."""
        return tuple(one.id for one in (*self._due.values(), *self._arrived) if one.message is not None)

    @property
    def targets(self) -> set[str]:
        """Return the ids that a command to this turn may name: those of the user message and of its answers."""
        return {self.message.id, *(reply.id for reply in self.replies)}


class _ToolFailed(Exception):
    """The function of a tool raised the cause."""


async def _write_output(message: Writer, call: ToolCall, output: Json, state: str) -> None:
    part = {"type": "tool", "call": call.call, "name": call.name, "input": call.input}
    await message.part({**part, "output": output, "state": state}, index=call.part)


def _text_in(data: Json) -> str:
    """Return the text of a `steer` command: its data, or the field `text` of its data."""
    if isinstance(data, dict):
        data = data.get("text")
    return data if isinstance(data, str) else ""
