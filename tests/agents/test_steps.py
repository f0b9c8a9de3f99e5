"""Steps: a function runs once per turn, whatever dies, and no other client sees or changes its result."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from unittest.mock import Mock

import msgspec
import pydantic
import pytest

from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.core.errors import (
    Draining,
    Fenced,
    Forbidden,
    InvalidName,
    InvalidRequest,
    InvalidText,
    LocalError,
    NotFound,
    TooLarge,
    TooMany,
)
from tenuto.core.limits import Limits
from tenuto.core.model import STEP_NAME, Json
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, ReplyCommand, SendCommand
from tenuto.core.turns import step_id
from tenuto.portal import Try
from tenuto.sources import Piped, SoFar, ToolCall
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import answers_of, hub_asked, lives, new_hub
from tests.client.wire import Wire, client_of
from tests.hub.test_commit_outcomes import ScriptedStore
from tests.virtual import virtually

Script = Callable[[Turn], Awaitable[None]]


async def attempts(
    *scripts: Script, store: MemoryStore | None = None, seconds: float = 1.0, **options: Any
) -> list[Any]:
    """Run one turn: each script is an attempt in a process of its own, which dies at its end. Return their errors."""
    errors, left = list[Any](), iter(scripts)

    async def bot(turn: Turn) -> None:
        try:
            await next(left)(turn)
            errors.append(None)
        except Exception as error:
            errors.append(error)
        await asyncio.sleep(10_000)

    async for _ in lives(bot, *[seconds] * len(scripts), hub=options, store=store):
        pass
    return errors


class Counted:
    """Functions that count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def of(self, name: str, result: Any = None) -> Callable[[], Any]:
        def call() -> Any:
            self.calls.append(name)
            return name.upper() if result is None else result

        return call


@virtually
async def test_a_later_attempt_gets_the_stored_results() -> None:
    counted, found = Counted(), list[Any]()

    async def script(turn: Turn) -> None:
        pair = await turn.step("pair", counted.of("pair", {"pair": (type("Text", (str,), {})("a"), 1)}))
        found.append([await turn.step("a", counted.of("a")), pair, await turn.step("none", lambda: None)])

    assert await attempts(script, script, script) == [None] * 3
    assert found == [["A", {"pair": ["a", 1]}, None]] * 3  # the first attempt, too, gets a result as it is stored
    assert counted.calls == ["pair", "a"]


@virtually
async def test_a_step_that_died_is_called_again_and_says_so() -> None:
    seen: list[tuple[int, bool, str]] = []

    async def pay(turn: Turn) -> str:
        seen.append((turn.attempt, turn.was_interrupted("pay"), turn.step_key("pay")))
        if turn.attempt == 1:
            await asyncio.sleep(10_000)
        return "paid"

    async def script(turn: Turn) -> None:
        assert await turn.step("pay", pay, turn) == "paid"

    await attempts(script, script, script)
    assert seen == [(1, False, key := seen[0][2]), (2, True, key)]


@virtually
async def test_only_a_later_attempt_looks_for_its_steps_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store, reads = MemoryStore(), list[int]()
    monkeypatch.setattr(store, "messages", read := Mock(side_effect=store.messages))

    async def script(turn: Turn) -> None:
        await turn.step("a", int)
        await turn.step("b", int)
        reads.append(sum(STEP_NAME in id for call in read.call_args_list for id in call.args[1]))

    assert await attempts(script, script, store=store) == [None] * 2
    assert reads == [0, 3]  # one is for what the first attempt got


@virtually
async def test_a_step_wakes_no_listener_of_its_channel() -> None:
    woken: list[int] = []

    async def script(turn: Turn) -> None:
        wake = Mock()
        channel = turn._backend._hub.channel(turn.channel)  # type: ignore[attr-defined]
        channel.listeners[wake] = None
        await turn.step("a", int)
        woken.append(wake.call_count)
        async with turn.reply() as message:
            await message.append("Hi")
        woken.append(wake.call_count)

    assert (await attempts(script), woken) == ([None], [0, 2])  # the answer begins and ends


@pytest.mark.parametrize("fails", [["no"], ["lost"], ["kept"], ["ok", "lost"], ["ok", "kept"], ["kept", "no", "kept"]])
@virtually
async def test_a_step_runs_once_though_the_outcome_of_its_commits_is_unknown(fails: list[str]) -> None:
    counted, store = Counted(), ScriptedStore()

    async def script(turn: Turn) -> None:
        if turn.attempt == 1:
            store.script = list(fails)
        assert await turn.step("a", counted.of("a")) == "A"
        assert await turn.step("b", counted.of("b")) == "B"

    assert await attempts(script, script, store=store, seconds=60) == [None] * 2
    assert counted.calls == ["a", "b"]


@virtually
async def test_a_step_with_retries_calls_again_after_growing_waits() -> None:
    times: list[float] = []

    async def script(turn: Turn) -> None:
        def third() -> int:
            times.append(asyncio.get_running_loop().time())
            if len(times) < 3:
                raise OSError
            return len(times)

        if turn.attempt == 1:  # an exception is no result
            await turn.step("third", third)
        assert await turn.step("third", third, retries=1, retry_s=1.5) == 3

    first, second = await attempts(script, script, seconds=10)
    assert (type(first), second) == (OSError, None)
    assert times[2] - times[1] == pytest.approx(1.5)


@virtually
async def test_a_step_that_the_handler_cancels_has_no_result() -> None:
    begun: list[int] = []

    async def slow(turn: Turn) -> int:
        begun.append(turn.attempt)
        await asyncio.sleep(10 if turn.attempt == 1 else 0)
        return turn.attempt

    async def script(turn: Turn) -> None:
        async with asyncio.timeout(5):
            assert await turn.step("slow", slow, turn) == 2

    first, *later = await attempts(script, script, script, seconds=20)
    assert (type(first), later, begun) == (TimeoutError, [None, None], [1, 2])


@virtually
async def test_handler_that_has_changed_gets_the_results_that_it_still_names(caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted()

    async def before(turn: Turn) -> None:
        await turn.step("dropped", counted.of("dropped"))
        await turn.step("kept", counted.of("kept"))

    async def after(turn: Turn) -> None:
        assert await turn.step("added", int) == 0
        assert await turn.step("kept", str.upper, "other") == "KEPT"

    assert await attempts(before, after) == [None, None]
    assert counted.calls == ["dropped", "kept"]
    assert "'kept' of chat:1 called tests.agents.test_steps.Counted.of.<locals>.call" in caplog.text


@virtually
async def test_a_sleep_goes_on_for_the_rest_of_its_time() -> None:
    woken, began = list[tuple[int, float]](), asyncio.get_running_loop().time()

    async def script(turn: Turn) -> None:
        await turn.sleep("nap", 60)
        woken.append((turn.attempt, round(asyncio.get_running_loop().time() - began)))

    await attempts(script, script, script, seconds=40)
    assert woken == [(2, 60), (3, 80)]  # the third attempt finds that the time is over


async def both(*calls: Awaitable[Any]) -> None:
    for call in calls:
        await call


async def show(turn: Turn, tool: object) -> None:
    turn.progress("using a tool", tool=tool)


@virtually
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda turn: both(turn.step("page", int), turn.step("page", str)), 'f"page:{i}"'),
        (lambda turn: turn.step("x", int) if turn.attempt == 1 else turn.sleep("x", 1), "'x' is used for `sleep` now"),
        (lambda turn: turn.step("x", int) if turn.attempt == 1 else turn.ask("x"), "'x' is used for `ask` now"),
        (lambda turn: turn.ask("x") if turn.attempt == 1 else turn.step("x", int), "'x' is used for `step` now"),
        (lambda turn: both(turn.step("x", int), turn.ask("x")), "this attempt has used it for `step`"),
        (lambda turn: turn.step("outer", turn.step, "inner", int), "'inner' was begun inside of step 'outer'"),
    ],
)
async def test_a_name_that_cannot_be_used_is_refused(script: Script, words: str) -> None:
    *_, error = await attempts(script, script)
    assert isinstance(error, LocalError)
    assert words in error.detail


@virtually
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda turn: turn.step("\ud800", int), InvalidText, "lone surrogate"),
        (lambda turn: turn.step("", int), LocalError, "1 to 200 characters"),
        (lambda turn: turn.step("a", int, retry_s="1"), LocalError, "retry_s"),
        (lambda turn: turn.step("a", int, retries="1"), LocalError, "retries"),
        (lambda turn: turn.step("a", asyncio.sleep(1)), LocalError, "a function and its arguments, got a coroutine"),
        (lambda turn: turn.step("a", 7), LocalError, "got a int"),
        (lambda turn: turn.step("a", int, show=True), LocalError, "in the block of `turn.reply()`"),
        (lambda turn: turn.run_tools(Piped(""), {}), LocalError, "in the block of `turn.reply()`"),
        (lambda turn: turn.sleep("a", 30 * 86_400 + 1), LocalError, "30 days"),
        (lambda turn: turn.sleep("a", float("nan")), LocalError, "30 days"),
        (lambda turn: turn.ask("approve", timeout_s=2, key="\ud800"), None, "None"),
        (lambda turn: turn.step("a", turn.step_progress, 2.0, retries=1), LocalError, "from 0 to 1, got 2.0"),
        (lambda turn: turn.step("a", turn.step_progress, "half"), LocalError, "from 0 to 1, got 'half'"),
        (lambda turn: show(turn, "half an emoji \ud83d"), InvalidText, "an agent's state"),
        (lambda turn: show(turn, object()), InvalidRequest, "an agent's state"),
        (lambda turn: show(turn, "x" * 20_000_000), TooLarge, "an agent's state"),
    ],
)
async def test_a_wrong_argument_is_named(call: Any, error: Any, words: str) -> None:
    (found,) = await attempts(call, seconds=3)
    assert type(found) is (error or type(None))
    assert words in str(found)


@virtually
@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (object(), InvalidRequest, "is no JSON: Object of type object is not JSON serializable; return JSON, such as"),
        ([{"a": {1}}], InvalidRequest, "Object of type set"),
        (msgspec.defstruct("Sent", [("a", int, 1)])(), InvalidRequest, "msgspec.to_builtins(result)"),
        (pydantic.create_model("Dumped", a=(int, 1))(), InvalidRequest, 'result.model_dump(mode="json")'),
        (float("nan"), InvalidRequest, "has the number nan, but numbers must be finite"),
        (10**400, InvalidRequest, "has an integer of 1329 bits, the limit is 64 bits with the sign; send it as text"),
        ({1: 2}, InvalidRequest, "has the key 1, but keys must be text"),
        (msgspec.json.decode("[" * 65 + "]" * 65), InvalidRequest, "64 levels, which is the limit; flatten"),
        ("x" * 262_144, TooLarge, "; shorten it, or return a reference to it (Limits.step_bytes)"),
        ("\ud800", InvalidText, "holds the lone surrogate '\\ud800' at offset 0"),
    ],
)
async def test_a_result_that_cannot_be_stored_is_refused(result: Any, error: type[Exception], words: str) -> None:
    async def script(turn: Turn) -> None:
        await turn.step("bad", lambda: result)

    (found,) = await attempts(script)
    assert type(found) is error
    assert str(found).startswith("the result of step 'bad' ")
    assert words in str(found)
    assert ("Limits" in words) == ("Limits" in str(found))
    assert ("to_builtins" in str(found)) == ("is no JSON" in str(found))


@virtually
@pytest.mark.parametrize("limits", [Limits(steps=3), Limits(turn_bytes=60)])
async def test_the_steps_of_a_turn_have_limits(limits: Limits) -> None:
    async def script(turn: Turn) -> None:
        for number in range(4):
            await turn.step(f"s{number}", lambda: "ten bytes")

    errors = await attempts(script, script, limits=limits)
    assert [type(one) for one in errors] == [TooMany if limits.steps == 3 else TooLarge] * 2


@virtually
async def test_results_that_an_attempt_has_read_count_in_the_memory_of_the_channel() -> None:
    costs: list[int] = []

    async def script(turn: Turn) -> None:
        await turn.step("large", lambda: "x" * 200_000)
        costs.append(turn._backend._hub.channel("chat:1").state.cost_bytes())  # type: ignore[attr-defined]

    await attempts(script, script)
    assert costs[0] < 100_000 < 200_000 < costs[1]


@virtually
async def test_a_regenerate_runs_the_steps_again() -> None:
    counted, store = Counted(), MemoryStore()

    async def bot(turn: Turn) -> None:
        counted.calls.append(turn.step_key("a"))
        await turn.step("a", counted.of("a"))

    await (await hub_asked(bot, 1, store=store)).command("chat:1", "regenerate", target="m1")
    await asyncio.sleep(1)
    first, a, second, again = counted.calls
    assert (a, again, first != second) == ("a", "a", True)


EVE = Caller(id="eve")
BOT = Caller(id="bot")  # the name of the agent, which a client may have, too


@virtually
@pytest.mark.parametrize("caller", [EVE, BOT, Caller(id="root", is_admin=True), Caller()])
async def test_another_client_cannot_send_answer_or_read_a_step(caller: Caller) -> None:
    hub = new_hub(MemoryStore())

    @hub.agent("chat:*", name="bot")
    async def bot(turn: Turn) -> None:
        await turn.step("secret", lambda: "hunter2")
        await turn.step("open", lambda: asyncio.sleep(10_000))

    events: list[Any] = []

    async def watch() -> None:
        async for event in hub.subscribe("chat:1"):
            events.append(event)

    watching = asyncio.ensure_future(watch())
    await hub.create("chat:1", id="m1", text="?", author="eve")
    await asyncio.sleep(1)
    opened, secret = (command_key(step_id("chat:1", "m1", 1, name)) for name in ("open", "secret"))
    for generation in (None, 1):
        with pytest.raises(NotFound):
            await hub.ask("chat:1", opened, ReplyCommand(data={"result": "forged"}, generation=generation), caller)
        for key in (opened, secret, command_key(step_id("chat:1", "m1", 1, "new"))):
            request = SendCommand(name=STEP_NAME, target="m1", generation=generation)
            with pytest.raises(Forbidden):
                await hub.ask("chat:1", key, request, caller)
    with pytest.raises(InvalidName):
        await hub.ask("chat:1", command_key(step_id("chat:1", "m1", 1, "new")), SendCommand(name="mine"), caller)
    assert await hub.pending_commands("chat:1") == []
    assert "hunter2" not in repr(events)
    assert STEP_NAME not in repr(events)
    watching.cancel()


class Mortal(MemoryStore):
    """A store that is copied before one of its commits, as a process leaves it that is killed then; with a journal."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[tuple[str, ...]] = []
        self.commits = 0  # number of the commit before which the process is killed; 0: it lives on
        self.left: Mortal | None = None

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self.commits -= 1
        if not self.commits:
            self.left = copy.deepcopy(self)
        return await super().commit(writes)


@virtually
async def test_a_process_killed_before_any_commit_repeats_no_finished_step() -> None:
    """The next process is killed before the commit of that number, too, and a third one lives on."""

    async def work(name: str, *words: str) -> list[str]:
        store.journal.append(("begins", name, *words))
        await asyncio.sleep(0)
        return [name]

    async def step(turn: Turn, name: str, *words: str) -> Any:
        result = await turn.step(name, work, name, *words)
        store.journal.append(("has", name))
        return result

    async def bot(turn: Turn) -> None:
        search = await step(turn, "search")
        left, right = await asyncio.gather(step(turn, "left"), step(turn, "right"))
        await turn.sleep("nap", 0.01)
        paid = await step(turn, "pay", turn.step_key("pay"))
        async with turn.reply() as message:
            await message.append(" ".join(search + left + right + paid))
        await step(turn, "bill")

    for number in itertools.count(1):
        store, kills = Mortal(), 0
        while True:
            store.commits = number if kills < 2 else 0
            hub = await hub_asked(bot, 20, store=store)
            answers = (await hub.history("chat:1")).messages[:-1]
            await hub.close()
            if store.left is None:
                break
            store, kills = store.left, kills + 1
        assert [(one.text, one.status) for one in answers] == [("search left right pay", "complete")]
        for name in ("search", "left", "right", "pay", "bill"):
            about = [line[0] for line in store.journal if line[1] == name]
            assert "begins" not in about[about.index("has") :], (number, store.journal)
        assert len({line[2] for line in store.journal if line[:2] == ("begins", "pay")}) == 1
        if not kills:
            break
    assert number > 10  # the process was killed before each commit of the handler


@virtually
@pytest.mark.parametrize("replied", ["in the first attempt", "between attempts", "in the second attempt"])
async def test_a_call_is_approved_once_though_the_model_asks_again_under_another_id(replied: str) -> None:
    store, found, questions = MemoryStore(), list[Any](), list[Any]()

    async def bot(turn: Turn) -> None:
        arguments = ['{"eur": 5}', '{ "eur":5 }', '{"eur": 6}']
        async with turn.reply() as message:
            for number, text in enumerate(arguments):
                call = {"type": "tool", "call": f"{turn.attempt}-{number}", "name": "pay", "input": text}
                await message.part({**call, "state": "called"})
            asked = ({"call": f"{turn.attempt}-{number}", "why": "rent"} for number in range(3))
            replies = await asyncio.gather(*(turn.ask("approve", one, timeout_s=900) for one in asked))
            found.append([one.data for one in replies])
            await asyncio.sleep(1000)

    async def reply(hub: Hub) -> None:
        questions.extend(sorted(await hub.pending_commands("chat:1"), key=lambda one: one.data["call"]))
        for number, question in enumerate(questions):
            await hub.reply("chat:1", question.id, ok=number != 1, data=number, by="ann")
        await asyncio.sleep(1)

    moments = iter(["in the first attempt", "in the second attempt", ""])
    async for hub in lives(bot, 1, 1, 1, store=store):
        assert len(await hub.pending_commands("chat:1")) == (0 if questions else 3)
        if replied == next(moments):
            await reply(hub)
        answer = (await hub.history("chat:1")).messages[0]
        await hub.close()
        if not questions and replied == "between attempts":
            await reply(hub := new_hub(store))  # has no agent
            await hub.close()
    asked_in = 2 if replied == "in the second attempt" else 1
    assert [one.data["call"] for one in questions] == [f"{asked_in}-{number}" for number in range(3)]
    assert found
    assert all(one == [0, 1, 2] for one in found)
    noted = [(part["approval"], part["state"]) for part in answer.parts if part["type"] == "tool"]
    states = ["called", "denied", "called"]
    assert noted == [({"id": questions[n].id, "approved": state == "called"}, state) for n, state in enumerate(states)]


@virtually
async def test_questions_asked_in_another_order_keep_their_replies() -> None:
    store, found = MemoryStore(), list[Any]()

    async def script(turn: Turn) -> None:
        tools = ["read", "write", "write"][:: 1 if turn.attempt == 1 else -1]
        replies = await asyncio.gather(*(turn.ask("approve", {"tool": tool}, timeout_s=3600) for tool in tools))
        found.extend(zip(tools, (one.ok for one in replies), strict=True))

    await attempts(script, store=store)
    hub = new_hub(store)
    await hub.start()
    for question in await hub.pending_commands("chat:1"):
        await hub.reply("chat:1", question.id, ok=question.data["tool"] == "read")
    hub.agent("chat:*", name="bot")(script)
    await asyncio.sleep(1)
    assert found == [("write", False), ("write", False), ("read", True)]


@virtually
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_question_that_was_cancelled_goes_on_when_it_is_asked_again(key: str | None) -> None:
    found: list[bool] = []

    async def bot(turn: Turn) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await turn.ask("approve", timeout_s=60, key=key)
        found.append((await turn.ask("approve", timeout_s=60, key=key)).ok)

    hub = await hub_asked(bot, 10)
    (question,) = await hub.pending_commands("chat:1")
    await hub.reply("chat:1", question.id)
    await asyncio.sleep(1)
    assert found == [True]


@virtually
async def test_equal_calls_have_a_question_each_although_the_key_is_one() -> None:
    found: list[bool] = []

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            for call in ("a", "b"):
                await message.part({"type": "tool", "call": call, "name": "pay", "input": "{}", "state": "called"})
                found.append((await turn.ask("approve", {"call": call}, key="pay")).ok)

    hub = await hub_asked(bot)
    for call in ("a", "b"):
        await asyncio.sleep(1)
        (question,) = await hub.pending_commands("chat:1")
        assert question.data == {"call": call}
        await hub.reply("chat:1", question.id)
    await asyncio.sleep(1)
    assert found == [True, True]


async def drained(turn: Turn) -> None:
    async for _ in turn._backend._hub.subscribe("chat:2"):  # type: ignore[attr-defined]
        pass  # raises Draining, as `hub.turn` does


async def drained_in_tool(turn: Turn, **tools: Callable[[], Any]) -> None:
    calls = [ToolCall(name, name, "", index) for index, name in enumerate([*tools, "other"])]
    await turn.run_tools(Piped("", tool_calls=calls), {**tools, "other": lambda: drained(turn)})


@virtually
@pytest.mark.parametrize(
    ("wait", "drain_s"),
    [
        (lambda turn: turn.ask("approve", timeout_s=900), 60.0),
        (lambda turn: turn.sleep("nap", 900), 60.0),
        (lambda turn: asyncio.sleep(900), 0.5),  # it does not only wait
        *((wait, 60.0) for wait in (drained, drained_in_tool, lambda turn: turn.step("a", drained, turn))),
    ],
)
async def test_a_turn_is_handed_over_ten_times_and_at_once_if_it_only_waits(wait: Any, drain_s: float) -> None:
    now_s, seen = asyncio.get_running_loop().time, list[int]()

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            seen.append(message.length)
            await message.append("x")
            await wait(turn)

    # more often than a turn may die
    async for hub in lives(bot, *[1] * 10, hub={"drain_s": drain_s}, on_crash="continue"):
        began_s = now_s()
        await hub.close()
        assert now_s() - began_s < 1
    assert seen == [*range(10)]


@virtually
@pytest.mark.parametrize("is_tool", [True, False])
async def test_a_step_beside_what_drains_ends_before_the_turn_is_handed_over(is_tool: bool, caplog: Any) -> None:
    seen, now_s = list[Any](), asyncio.get_running_loop().time

    async def charge() -> str:
        seen.append("charge")
        await asyncio.sleep(9)
        return "charged"

    async def bot(turn: Turn) -> None:
        if turn.previous is not None:
            seen.extend(part["state"] for part in turn.previous.parts)
        async with turn.reply():
            if is_tool:
                await drained_in_tool(turn, charge=charge)
            try:
                await asyncio.gather(turn.step("charge", charge), turn.step("other", drained, turn, show=True))
            except Draining as error:
                raise ValueError("a mistake") from ExceptionGroup("as of a TaskGroup", [KeyError(), error])

    async for hub in lives(bot, 1, 1, hub={"drain_s": 60.0}, on_crash="continue"):
        began_s = now_s()
        await hub.close()
        seen.append(round(now_s() - began_s))
    assert seen == ["charge", 8, "done" if is_tool else "called", 0]
    assert ("ValueError: a mistake" in caplog.text) != is_tool


@virtually
async def test_a_client_whose_handler_raises_what_another_hub_does_ends_the_turn() -> None:
    client = client_of(Wire(hub := new_hub()), client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        await asyncio.sleep(5)
        raise Draining("a hub in the process of the client shuts down")

    running = asyncio.ensure_future(client.run())
    await asyncio.sleep(1)
    await hub.create("chat:1", id="m1", text="?", role="user")
    await asyncio.sleep(1)
    client._drain_within(60.0)
    await running
    turn = await hub.turn("chat:1", "m1")
    assert (turn.state, [one.status for one in turn.answers]) == ("over", ["failed"])


async def in_turn(turn: Turn, wait: Awaitable[Any], stream: AsyncIterator[str]) -> None:
    async with turn.reply() as message:
        await asyncio.gather(wait, message.pipe(stream))


async def in_stream(turn: Turn, wait: Awaitable[Any], stream: AsyncIterator[str]) -> None:
    async def run() -> AsyncIterator[str]:
        yield "0"
        await asyncio.create_task(asyncio.wait_for(wait, None))  # as a tool of a framework does
        async for text in stream:
            yield text

    async with turn.reply() as message:
        await message.pipe(run())


@pytest.mark.parametrize(("handle", "seconds", "text"), [(in_turn, 60, "012345"), (in_stream, 0, "0")])
@pytest.mark.parametrize("wait", [lambda turn: turn.ask("approve", timeout_s=900), lambda turn: turn.sleep("nap", 900)])
@virtually
async def test_turn_that_reads_a_stream_does_not_only_wait(wait: Any, handle: Any, seconds: int, text: str) -> None:
    store, now_s = MemoryStore(), asyncio.get_running_loop().time

    async def model() -> AsyncIterator[str]:
        for number in range(6):
            yield str(number)
            await asyncio.sleep(5)

    async def bot(turn: Turn) -> None:
        await handle(turn, wait(turn), model())

    hub = await hub_asked(bot, 1, store=store, hub={"drain_s": 60.0})
    began_s = now_s()
    await hub.close()
    assert now_s() - began_s == pytest.approx(seconds, abs=1)
    (answer, _) = (await new_hub(store).history("chat:1")).messages
    assert answer.text == text


@pytest.mark.parametrize("on_crash", ["restart", "continue", "interrupt"])
@pytest.mark.parametrize(
    ("work_s", "limit_s", "timeout_s", "status"),
    [(99, 99, 90, "cancelled"), (99, 99, 5, "failed"), (3, 99, 9, "failed"), (99, 3, 9, "failed")],
)
@virtually
async def test_a_turn_that_is_stopped_or_fails_during_a_drain_ends(
    on_crash: Any, work_s: float, limit_s: float, timeout_s: float, status: str
) -> None:
    begun, ended = list[int](), list[None]()

    async def bot(turn: Turn) -> None:
        begun.append(turn.attempt)
        async with asyncio.timeout(limit_s), turn.reply() as message:
            await message.append("The text.")
            await turn.step("slow", asyncio.sleep, work_s)
            raise ValueError("a mistake")

    async for hub in lives(bot, 1, 1, hub={"drain_s": 10}, on_crash=on_crash, timeout_s=timeout_s):
        if not ended:
            closing = asyncio.ensure_future(hub.close())
            await asyncio.sleep(1)
            if status == "cancelled":
                await hub.command("chat:1", "cancel", target="m1")
            ended.append(await closing)
        (answer, question) = (await hub.history("chat:1")).messages
    assert (begun, answer.status, answer.text, question.id) == ([1], status, "The text.", "m1")


@virtually
async def test_a_turn_that_begins_to_wait_during_a_drain_is_handed_over_then() -> None:
    now_s, results = asyncio.get_running_loop().time, list[str]()

    async def bot(turn: Turn) -> None:
        await turn.step("work", asyncio.sleep, 5)
        results.extend(await run_tools(turn, {"work": lambda: None}, {}))
        await turn.ask("approve", timeout_s=900)

    hub = await hub_asked(bot, 1, hub={"drain_s": 60.0})
    began_s = now_s()
    await hub.close()
    assert (round(now_s() - began_s), results) == (4, ["work"])


@virtually
async def test_a_task_that_outlives_its_step_may_begin_another_one() -> None:
    results, kept = list[Any](), list[asyncio.Future[None]]()

    async def script(turn: Turn) -> None:
        begun = asyncio.Event()

        async def later() -> None:
            await begun.wait()
            results.append(await turn.step("later", lambda: 7))

        await turn.step("first", lambda: kept.append(asyncio.ensure_future(later())))
        begun.set()
        await kept[0]

    assert await attempts(script) == [None]
    assert results == [7]


@virtually
async def test_a_budget_is_for_all_attempts_and_stands_still_while_a_person_decides() -> None:
    began, ended = asyncio.get_running_loop().time(), list[float]()

    async def script(turn: Turn) -> None:
        await turn.step(f"work {turn.attempt}", asyncio.sleep, 30)
        await turn.ask("approve", timeout_s=7200)
        try:
            await asyncio.sleep(10_000)
        finally:
            ended.append(asyncio.get_running_loop().time() - began)

    # the second attempt works for 30 s, before and after the wait of the first for a person
    async for hub in lives(script, 40, 3635, timeout_s=70, budget_s=100):
        (question,) = await hub.pending_commands("chat:1")
        if began + 3600 < asyncio.get_running_loop().time():
            await hub.reply("chat:1", question.id)
            replied = asyncio.get_running_loop().time() - began
            await asyncio.sleep(100)
        (answer,) = (await hub.history("chat:1")).messages[:1]
    assert ended == [pytest.approx(replied + 40, abs=0.1)]  # of 100 s each attempt had used 30
    assert (answer.status, answer.reason) == ("failed", "timeout")


@pytest.mark.parametrize("wait", [lambda turn: turn.ask("approve"), lambda turn: turn.sleep("nap", 900)])
@virtually
async def test_a_budget_goes_on_after_a_wait_that_the_handler_cancelled(wait: Any, caplog: Any) -> None:
    worked: list[float] = []

    async def script(turn: Turn) -> None:
        began_s = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(turn), 1)
        try:
            await asyncio.sleep(10_000)
        finally:
            worked.append(asyncio.get_running_loop().time() - began_s)

    async for _ in lives(script, 90, 90, 90, budget_s=100):
        pass
    assert sum(worked) == pytest.approx(100, abs=3)
    assert "took more than 100 s" in caplog.text


@virtually
async def test_a_wait_that_is_over_stores_nothing_in_a_later_attempt() -> None:
    entries: list[int] = []

    async def bot(turn: Turn) -> None:
        channel = turn._backend._hub.channel("chat:1")  # type: ignore[attr-defined]
        before = channel.state.serial
        for page in range(5):
            await turn.sleep(f"page:{page}", 1)
        entries.append(channel.state.serial - before)
        await asyncio.sleep(10_000)

    async for _ in lives(bot, 20, 20, budget_s=100):
        pass
    assert entries == [15, 0]  # the waits, and that the time used stands still and goes on


@virtually
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
async def test_a_shown_step_is_one_tool_part_of_the_answer(on_crash: Any) -> None:
    states: list[Any] = []

    async def look(place: str, turn: Turn) -> str:
        turn.step_progress(0.5, "half")
        await asyncio.sleep(100 if turn.attempt == 1 else 0)
        return f"seen {place}"

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await turn.step("first", lambda place: place.upper(), "here", show=True)
            await turn.step("look", look, "there", turn, show=True)
            await message.append("end")
            await message.flush()
            await asyncio.sleep(2)

    async for hub in lives(bot, 1, 1, on_crash=on_crash):
        states += [one.data for one in (await hub.members("chat:1")).members if one.id == "bot"]
        await asyncio.sleep(3)
        answer = (await hub.history("chat:1")).messages[0]
    assert states[0] == {"state": "using a tool", "message": "m1", "tool": "look", "fraction": 0.5, "text": "half"}
    assert states[1] == {"state": "answering", "message": "m1"}
    shown = [(one["name"], one["input"], one["state"], one["output"]) for one in answer.parts if one["type"] == "tool"]
    assert shown == [("first", '{"place":"here"}', "done", "HERE"), ("look", "", "done", "seen there")]
    assert (answer.text, answer.status) == ("end", "complete")


@virtually
async def test_a_tool_call_runs_once_though_the_model_asks_again_under_another_id() -> None:
    calls, found = list[Any](), list[dict[str, Any]]()

    def add(left: int, right: int = 0) -> int:
        calls.append((left, right))
        return left + right

    async def script(turn: Turn) -> None:
        async with turn.reply() as message:
            asked = [("add", '{"left":1}'), ("add", '{"left":1}'), ("fail", "{}"), ("add", '{"no":1}'), ("page", "{}")]
            tools = []
            for number, (name, text) in enumerate(asked):
                id = f"{turn.attempt}-{number}"
                part = await message.part({"type": "tool", "call": id, "name": name, "input": text, "state": "called"})
                tools.append(ToolCall(id, name, text, part))
            found.append(await turn.run_tools(Piped("", tool_calls=tools), {"add": add, "fail": lambda: 1 / 0}))
            await message.flush()
            parts = (await turn._backend.read("chat:1", message.id))[0].parts
            found.append({one["call"]: one["state"] for one in parts if one["type"] == "tool"})
            if turn.attempt == 1:
                await asyncio.sleep(10_000)

    assert await attempts(script, script) == [None]
    first, _, outputs, states = found
    assert calls == [(1, 0), (1, 0)]  # two equal calls, and none in the second attempt
    assert list(outputs) == ["2-0", "2-1", "2-2", "2-3"]  # the last call is for the page
    assert list(outputs.values()) == list(first.values())
    assert (outputs["2-0"], outputs["2-1"]) == (1, 1)
    assert "ZeroDivisionError" in outputs["2-2"]["error"]
    assert list(states.values()) == ["done", "done", "error", "error", "called"]


async def tried(turn: Turn, *tries: Script) -> list[Any]:
    """Make one answer, each of whose `tries` is an attempt of the message that fails. Return their errors."""
    errors: list[Any] = []
    async with turn.reply() as message:
        for one in tries:
            try:
                async with message.attempt():
                    await one(turn)
                    raise ConnectionError
            except Exception as error:
                errors.append(error)
    return errors


async def called(turn: Turn, id: str, function: Callable[..., Any]) -> Json:
    """Run `function` as the tool `f` of a model, without arguments."""
    part = {"type": "tool", "call": id, "name": "f", "input": "", "state": "called"}
    call = ToolCall(id, "f", "", await turn.begun[-1].part(part))
    return (await turn.run_tools(Piped("", tool_calls=[call]), {"f": function}))[id]


@virtually
async def test_a_further_try_of_a_message_repeats_no_step_tool_question_or_sleep() -> None:
    counted, found = Counted(), list[Any]()

    async def one(turn: Turn) -> None:
        before_s = asyncio.get_running_loop().time()
        results = [await called(turn, f"{len(found)}-{number}", counted.of("tool", "paid")) for number in range(2)]
        async with turn.begun[-1].attempt():  # one that does not fail belongs to the try around it
            results.append(await turn.step("a", counted.of("a"), show=True))
        await turn.sleep("nap", 50)
        results.append((await turn.ask("approve", key="k", timeout_s=10)).error["code"])
        with pytest.raises(LocalError, match="used before"):
            await turn.step("a", counted.of("a"))
        found.append([*results, asyncio.get_running_loop().time() - before_s > 50])

    async def script(turn: Turn) -> None:
        assert [type(error) for error in await tried(turn, one, one, one)] == [ConnectionError] * 3

    assert await attempts(script, seconds=200) == [None]
    assert found == [["paid", "paid", "A", "expired", is_first] for is_first in (True, False, False)]
    assert counted.calls == ["tool", "tool", "a"]  # equal calls of one try run once each


@virtually
@pytest.mark.parametrize("on_break", ["restart", "continue"])
async def test_a_step_of_a_function_that_calls_the_model_again_is_not_repeated(on_break: Any) -> None:
    counted, made = Counted(), list[str]()

    async def model(turn: Turn, so_far: SoFar) -> AsyncIterator[str]:
        made.append(await turn.step("search", counted.of("search"), show=True))
        yield "A text that is long enough to be continued. "
        if len(made) < 3:
            raise ConnectionError
        assert await called(turn, "c", counted.of("tool", 1)) == 1

    async def script(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(lambda so_far: model(turn, so_far), source="text", on_break=on_break, retries=3)
            await message.flush()
            parts = (await turn._backend.read("chat:1", message.id))[0].parts
            assert [one["call"] for one in parts if one["type"] == "tool"] == [turn.step_key("search"), "c"]
            await turn.step("search", counted.of("search"))

    assert "used before" in str(*await attempts(script, seconds=60))
    assert (made, counted.calls) == (["SEARCH"] * 3, ["search", "tool"])


@virtually
async def test_a_stored_step_that_is_shown_again_lets_the_text_of_the_earlier_attempt_stay_in_view() -> None:
    counted, views = Counted(), list[list[Json]]()

    async def script(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Before. ") if turn.attempt == 3 else None
            await turn.step("search", counted.of("search"), show=True)
            await message.flush()
            for text in ("", f"Text {turn.attempt}."):
                await message.append(text)
                await message.flush()
                parts = (await turn._backend.read("chat:1", message.id))[0].parts
                views.append([part.get("text", part.get("output", part["type"])) for part in parts])
            if turn.attempt < 3:
                await asyncio.sleep(1e6)

    async for _ in lives(script, 10, 10, 10):
        pass
    assert counted.calls == ["search"]
    assert views == [
        ["SEARCH"],
        ["SEARCH", "Text 1."],
        ["SEARCH", "Text 1."],
        ["SEARCH", "attempt", "Text 2."],
        ["attempt", "attempt", "Before. ", "SEARCH"],
        ["attempt", "attempt", "Before. ", "SEARCH", "Text 3."],
    ]


@virtually
async def test_a_further_try_waits_for_a_step_that_the_failed_one_has_left_running() -> None:
    counted, found = Counted(), list[Any]()

    async def slow() -> str:
        await asyncio.sleep(10)
        return str(counted.of("slow")())

    async def one(turn: Turn) -> None:
        other = turn.step("other", lambda: 1 / 0 if not found else 1)
        found.append(await asyncio.gather(turn.step("slow", slow), other, return_exceptions=bool(found)))

    async def first(turn: Turn) -> None:
        try:
            await one(turn)
        finally:
            found.append(None)

    async def script(turn: Turn) -> None:
        assert [type(error) for error in await tried(turn, first, one)] == [ZeroDivisionError, ConnectionError]

    assert await attempts(script, seconds=60) == [None]
    assert (found, counted.calls) == ([None, ["SLOW", 1]], ["slow"])


@virtually
async def test_a_try_that_fails_leaves_the_equal_calls_beside_it_as_they_are() -> None:
    found: list[tuple[str, Json]] = []

    async def call(turn: Turn, id: str) -> None:
        found.append((id, await called(turn, f"{id}{len(found)}", lambda: len(found))))

    async def one(turn: Turn) -> None:
        await call(turn, "try")
        await asyncio.sleep(1)

    async def script(turn: Turn) -> None:
        trying = asyncio.ensure_future(tried(turn, one, one))
        await asyncio.sleep(0.5)
        await call(turn, "x")
        await asyncio.sleep(1)
        await call(turn, "y")
        await trying

    assert await attempts(script, seconds=60) == [None]
    assert found == [("try", 0), ("x", 1), ("try", 0), ("y", 3)]


@virtually
async def test_a_try_in_which_a_hub_was_started_has_no_part_in_its_turns() -> None:
    errors = list[Any]()

    async def bot(turn: Turn) -> None:
        for _ in range(2):
            try:
                await turn.step("a", asyncio.sleep, 1)
            except LocalError as error:
                errors.append(error)

    with pytest.raises(ConnectionError), Try():
        await hub_asked(bot)
        raise ConnectionError
    await asyncio.sleep(5)
    assert len(errors) == 1


async def run_tools(turn: Turn, tools: dict[str, Callable[..., Any]], states: dict[str, str]) -> dict[str, Any]:
    """Run all `tools` at once in an answer, without arguments. Put the states of their parts into `states`."""
    async with turn.reply() as message:
        calls = []
        for name in tools:
            part = {"type": "tool", "call": name, "name": name, "input": "", "state": "called"}
            calls.append(ToolCall(name, name, "", await message.part(part)))
        try:
            return await turn.run_tools(Piped("", tool_calls=calls), tools)
        finally:
            await message.flush()
            parts = (await turn._backend.read("chat:1", message.id))[0].parts
            states.update({one["call"]: one["state"] for one in parts})


def refuse(error: BaseException) -> Any:
    raise error


@virtually
async def test_whatever_a_tool_raises_is_its_output() -> None:
    states, outputs = dict[str, str](), list[Any]()

    async def cancels() -> None:
        task = asyncio.ensure_future(asyncio.sleep(1000))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async def script(turn: Turn) -> None:
        tools: dict[str, Callable[..., Any]] = {
            "missing": lambda: refuse(NotFound("no such row")),
            "local": lambda: refuse(LocalError("wrong use")),
            "large": lambda: "x" * 300_000,
            "bytes": lambda: b"x",
            "cancels": cancels,
            "exits": lambda: refuse(SystemExit(2)),
            "good": lambda: 7,
        }
        outputs.append(await run_tools(turn, tools, states))

    assert await attempts(script, debug=False) == [None]
    reasons = {name: one["error"] for name, one in outputs[0].items() if name != "good"}
    named = {"missing": "not_found", "local": "misuse", "large": "too_large", "bytes": "invalid_request"}
    assert reasons == named | dict.fromkeys(("cancels", "exits"), "the tool failed")
    assert (states, outputs[0]["good"]) == (dict.fromkeys(reasons, "error") | {"good": "done"}, 7)


@virtually
async def test_a_step_whose_function_exits_raises_an_error_and_the_process_lives() -> None:
    calls: list[str] = []

    def exits() -> None:
        calls.append("exits")
        raise SystemExit(2)

    (error,) = await attempts(lambda turn: turn.step("cli", exits, retries=1), seconds=2)
    assert (repr(error), calls) == ("""RuntimeError("step 'cli' raised SystemExit(2)")""", ["exits"] * 2)


@virtually
async def test_a_group_of_tools_that_cannot_go_on_leaves_no_call_open() -> None:
    states, ended = dict[str, str](), list[str]()

    async def slow() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("slow")

    async def script(turn: Turn) -> None:
        async def refused(*_: object) -> Any:
            raise Fenced("a later attempt has the turn")

        turn.steps._store = refused  # type: ignore[method-assign]
        await run_tools(turn, {"slow": slow, "quick": lambda: 1}, states)

    (error,) = await attempts(script)
    assert isinstance(error, Fenced)
    assert (states, ended) == ({"slow": "error", "quick": "error"}, ["slow"])


@virtually
async def test_calls_that_the_handler_cancels_do_not_stay_open() -> None:
    states: dict[str, str] = {}

    async def slow() -> None:
        await asyncio.sleep(1000)

    async def script(turn: Turn) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await run_tools(turn, {"slow" * 45: slow, "slow": slow}, states)
        async with turn.reply() as message:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await turn.step("slow", slow, show=True)
            await message.flush()
            (part,) = (await turn._backend.read("chat:1", message.id))[0].parts
            states["step"] = part["state"]

    assert await attempts(script, seconds=5.0) == [None]
    assert states == dict.fromkeys(("slow" * 45, "slow", "step"), "error")
    await attempts(lambda turn: run_tools(turn, {"slow": slow}, states), drain_s=0.01)
    assert states["slow"] == "called"  # the next attempt calls it again


@virtually
async def test_time_in_which_no_process_ran_counts_for_no_budget() -> None:
    left: list[float] = []

    async def bot(turn: Turn) -> None:
        assert turn.allowance is not None
        assert turn.allowance._timer is not None
        left.append(round(turn.allowance._timer.when() - asyncio.get_running_loop().time()))
        await (turn.ask("approve", timeout_s=9000) if turn.attempt == 3 else asyncio.sleep(10_000))

    async for hub in lives(bot, 100, 5, 100, budget_s=1000):
        if len(left) == 3:
            await asyncio.sleep(7200)
            notes = hub.channel("chat:1").state.commands
            assert len(notes) < 15  # each 15 s, none while the turn waits for a person, and one about its input
        await hub.close()
        await asyncio.sleep(7200)  # the server is down for two hours
    # of the time after the last note at most that to the next one counts
    assert left == [1000, 895, 880]


@virtually
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
async def test_a_complete_answer_is_not_written_again_after_a_crash_in_the_next_one(on_crash: Any) -> None:
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("First.")
        async with turn.reply() as message:
            await message.append("Second."[message.length :])
            await asyncio.sleep(10_000 if turn.attempt == 1 else 0)

    answers = await answers_of(bot, on_crash, 1, 1)
    assert [(one.text, one.status) for one in answers] == [("First.", "complete"), ("Second.", "complete")]


@virtually
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
async def test_answers_that_are_written_at_once_are_taken_up_by_their_numbers(on_crash: Any) -> None:
    async def bot(turn: Turn) -> None:
        life = turn.attempt - 1
        async with turn.reply() as first:
            await first.append(f"a{life}")
            if life:  # the second answer begins in the second life, and goes on in the third
                async with turn.reply() as second:
                    await second.append(f"b{life}")
                    await asyncio.sleep(10_000 if life == 1 else 0)
            await asyncio.sleep(0 if life else 10_000)

    answers = await answers_of(bot, on_crash, 1, 1, 1)
    texts = ["a2", "b2"] if on_crash == "restart" else ["a0a1a2", "b1b2"]
    assert [(one.text, one.status) for one in answers] == [(text, "complete") for text in texts]


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_each_of_many_answers_stands_once_after_a_death(on_crash: str) -> None:
    async def bot(turn: Turn) -> None:
        for number in range(6):
            async with turn.reply() as message:
                await message.append(f"Answer {number}."[message.length :])
                await message.flush()
                await asyncio.sleep(10_000 if (number, turn.attempt) == (5, 1) else 0)

    answers = await answers_of(bot, on_crash, 1, 10, is_remote=on_crash == "continue")
    assert [(one.text, one.status) for one in answers] == [(f"Answer {number}.", "complete") for number in range(6)]
