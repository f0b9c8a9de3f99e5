"""Turns: each user message gets one handler, also after crashes, stops and failures of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from tenuto import Hub
from tenuto.agents.local import LocalBackend
from tenuto.agents.turn import Turn
from tenuto.client import Client
from tenuto.core.errors import Draining, LocalError, StoreUnavailable, TenutoError
from tenuto.core.model import Message
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, CreateMessage, SendCommand, regenerate_options_id
from tenuto.core.turns import ATTEMPTS, reply_id
from tenuto.sources.reading import UpstreamEnded
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.client.wire import Wire, client_of
from tests.hub.test_export import exported
from tests.virtual import closed_later, virtual_clock, virtually

Handler = Callable[[Turn], Awaitable[None]]


def new_hub(store: Any = "memory://", **options: Any) -> Hub:
    return closed_later(Hub(store, hooks_signals=False, clock=virtual_clock(), **{"drain_s": 0.0, **options}))


async def hub_asked(
    handler: Handler, life_s: float = 0.0, *, store: Any = "memory://", hub: Any = None, **options: Any
) -> Hub:
    """Return a hub whose agent has got the question `m1` so many seconds ago."""
    process = new_hub(store, **(hub or {}))
    process.agent("chat:*", **{"name": "bot", **options})(handler)
    await process.create("chat:1", id="m1", text="?")
    await asyncio.sleep(life_s)
    return process


async def lives(
    handler: Handler, *lives_s: float, store: MemoryStore | None = None, **options: Any
) -> AsyncIterator[Hub]:
    """Yield the hub of each of an agent's processes after these times; then it dies. The first one gets a question."""
    store = store or MemoryStore()
    for life_s in lives_s:
        process = await hub_asked(handler, life_s, store=store, **options)
        yield process
        await process.close()


async def remote_lives(handler: Handler, *lives_s: float, hub: Any = None, **options: Any) -> AsyncIterator[Hub]:
    """Yield the one hub of each of an agent's processes, which are clients, after these times; then the client ends."""
    process = new_hub(**(hub or {}))
    await process.start()
    for number, life_s in enumerate(lives_s):
        client = client_of(Wire(process), client_id=f"bot{number}")
        client.agent("chat:*", **options)(handler)
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(1)  # a message in a channel without agents would get no turn
        await process.create("chat:1", id="m1", text="?")
        await asyncio.sleep(life_s)
        yield process
        running.cancel()
        await asyncio.wait([running])
    await process.close()


async def messages(hub: Hub, channel: str = "chat:1") -> list[Message]:
    """Return the messages of the channel, oldest first."""
    return (await hub.history(channel)).messages[::-1]


async def answers_of(handler: Handler, on_crash: Any, *lives_s: float, is_remote: bool = False) -> list[Message]:
    """Return the answers to a question whose processes die after these times: hubs, or clients of one hub."""
    processes = (remote_lives if is_remote else lives)(handler, *lives_s, hub={"drain_s": 0.01}, on_crash=on_crash)
    async for hub in processes:
        found = [one for one in await messages(hub) if one.role == "assistant"]
    return found


async def until_over(hub: Hub, count: int, channel: str = "chat:1") -> list[Message]:
    """Return the messages of the channel when `count` answers have ended."""
    async with asyncio.timeout(120):
        async for _ in hub.subscribe(channel):
            found = await messages(hub, channel)
            if sum(one.role == "assistant" and one.status != "streaming" for one in found) >= count:
                return found
    raise AssertionError


@virtually
async def test_a_user_message_is_answered_once() -> None:
    hub = new_hub()

    @hub.agent("chat:*", name=type("Name", (str,), {})("bot"))
    async def bot(turn: Turn) -> None:
        async with turn.reply(meta={"model": "none"}) as message:
            await message.append(f"you said {turn.text}")

    asked = await hub.create("chat:1", text="hello", author="ann")
    await hub.create("other:1", text="nobody answers here")
    found = await until_over(hub, 1)
    assert [(one.role, one.author, one.status, one.text) for one in found] == [
        ("user", "ann", "complete", "hello"),
        ("assistant", "bot", "complete", "you said hello"),
    ]
    assert found[1].reply_to == found[1].parent == asked.id
    assert (found[1].id, found[1].meta) == (reply_id(asked.id, 1), {"model": "none"})
    await asyncio.sleep(60)
    assert [len(await messages(hub, channel)) for channel in ("chat:1", "other:1")] == [2, 1]


@pytest.mark.parametrize(("settings", "most"), [({}, 1), ({"when_busy": "parallel", "slots": 3}, 3)])
@virtually
async def test_a_channel_has_one_turn_at_a_time_in_order_or_as_many_as_are_allowed(
    settings: dict[str, Any], most: int
) -> None:
    hub, running = new_hub(), list[str]()
    counts, order = set[int](), list[str]()

    @hub.agent("chat:*", **settings)
    async def bot(turn: Turn) -> None:
        running.append(turn.text)
        order.append(turn.text)
        counts.add(len(running))
        async with turn.reply():
            await asyncio.sleep(1)
        running.remove(turn.text)

    for number in range(7):
        await hub.create("chat:1", text=str(number))
    await until_over(hub, 7)
    assert (max(counts), order) == (most, [*"0123456"])


@virtually
async def test_a_newer_message_interrupts_the_running_turn() -> None:
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(f"to {turn.text}")
            await asyncio.sleep(10)

    hub = await hub_asked(bot, 1, when_busy="interrupt")
    await hub.create("chat:1", text="second")
    answers = [(one.text, one.status) for one in await until_over(hub, 2) if one.role == "assistant"]
    assert answers == [("to ?", "cancelled"), ("to second", "complete")]


class OverQuota(Exception):
    public_reason = "over_quota"


async def fail(error: Exception) -> None:
    raise error


async def fail_in_a_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail(UpstreamEnded("no more")))


async def be_cancelled() -> None:
    """Await a task that other code cancels."""
    task = asyncio.ensure_future(asyncio.sleep(100))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


FAILURES: dict[str, tuple[Callable[[Turn], Awaitable[Any]], str, str]] = {
    "an error": (lambda turn: fail(RuntimeError("secret 1")), "failed", "RuntimeError in test_turns.py"),
    "a public reason": (lambda turn: fail(OverQuota()), "failed", "over_quota"),
    "misuse": (lambda turn: turn.history("gpt"), "failed", "misuse"),  # type: ignore[arg-type]
    "the first failure of a group": (lambda turn: fail_in_a_group(), "interrupted", "upstream_ended"),
    "cancelled by its own code": (lambda turn: be_cancelled(), "failed", "error"),
}


@pytest.mark.parametrize("failure", FAILURES)
@virtually
async def test_answer_of_a_handler_that_fails_has_the_reason_and_the_next_turn_runs(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, status, reason = FAILURES[failure]

    async def bot(turn: Turn) -> None:
        if turn.text == "early":
            await run(turn)
        async with turn.reply() as message:
            await message.append("half")
            if turn.text == "late":
                await run(turn)

    hub = await hub_asked(bot)
    for text in ("early", "late", "fine"):
        await hub.create("chat:1", text=text)
    _, *found = [one for one in await until_over(hub, 4) if one.role == "assistant"]
    assert [(one.text, one.status) for one in found] == [("", "failed"), ("half", status), ("half", "complete")]
    assert [(one.reason or "").partition(",")[0] for one in found] == [reason, reason, ""]
    assert "secret" not in str(found)
    assert failure != "an error" or "secret 1" in caplog.text
    assert (hub.runtime.scheduler.stats()["turns_running"], hub.runtime.scheduler.stats()["turns_waiting"]) == (0, 0)


@pytest.mark.parametrize("target", ["question", "answer"])
@virtually
async def test_cancel_stops_the_handler_at_once_and_gets_a_reply(target: str) -> None:
    stopped, loop = list[float](), asyncio.get_running_loop()

    async def bot(turn: Turn) -> None:
        try:
            async with turn.reply() as message:
                await message.append("half")
                await asyncio.sleep(100)
        finally:
            stopped.append(loop.time())
            async with turn.reply() as late:
                await late.append("late")
                raise asyncio.CancelledError

    hub = await hub_asked(bot, 1)
    sent_s = loop.time()
    target_id = "m1" if target == "question" else reply_id("m1", 1)
    command = await hub.command("chat:1", "cancel", target=target_id, by="ann")
    await until_over(hub, 1)
    await asyncio.sleep(1)
    found = await messages(hub)
    assert [(one.text, one.status) for one in found[1:]] == [("half", "cancelled"), ("late", "cancelled")]
    assert found[2].parent == found[1].id
    assert stopped[0] - sent_s < 0.5
    state = hub.channel("chat:1").state.commands.get(f"!{command.id}")
    assert state is not None
    assert state.reply is not None
    assert (state.reply.ok, state.reply.by) == (True, "bot")
    await hub.create("chat:1", text="again")
    await asyncio.sleep(1)
    assert len(await messages(hub)) == 5


@virtually
async def test_agent_is_present_with_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.sources.tries.jitter", lambda: 0.5)
    hub, states = new_hub(), list[Any]()

    @hub.agent("chat:*", name="helper")
    async def bot(turn: Turn) -> None:
        await asyncio.sleep(1)
        turn.progress("using a tool", tool="search")
        await asyncio.sleep(1)
        async with turn.reply() as message:
            await message.pipe(model, stall_s=1, retry_s=2)

    calls = iter(range(9))

    async def model() -> AsyncIterator[str]:
        await asyncio.sleep(60 if next(calls) == 0 else 0.9)
        yield "x"

    def look() -> None:
        member = hub.channel("chat:1").presence_state.member("helper")
        states.append(member.data["state"] if member is not None else None)

    await hub.members("chat:1")
    look()
    await hub.create("chat:1", text="?")
    for _ in range(6):
        await asyncio.sleep(0.9)
        look()
    assert states == ["listening", "thinking", "using a tool", "answering", "trying again", "answering", "listening"]


def signals_of(hub: Hub, channel: str) -> tuple[list[Any], asyncio.Future[None]]:
    """Return the signals that a viewer of `channel` gets from now on, and the task of that viewer."""
    signals: list[Any] = []

    async def watch() -> None:
        with pytest.raises(Draining):
            async for event in hub.subscribe(channel):
                if event.__struct_config__.tag == "signal":
                    signals.append(event)

    return signals, asyncio.ensure_future(watch())


@virtually
async def test_viewers_get_a_signal_for_a_message_that_no_agent_takes() -> None:
    store = MemoryStore()
    hub = new_hub(store)

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None: ...

    await hub.start()
    await asyncio.sleep(1)
    await hub.close()
    away = new_hub(store)
    signals, watching = signals_of(away, "chat:1")
    asked = await away.create("chat:1", text="anybody?")
    await asyncio.sleep(4)
    assert signals == []
    await asyncio.sleep(2)
    assert [(one.name, one.data) for one in signals] == [("nobody_listening", {"message": asked.id})]
    begun: list[str] = []

    @away.agent("chat:*")
    async def late(turn: Turn) -> None:
        begun.append(turn.text)

    await asyncio.sleep(1)
    assert begun == ["anybody?"]
    await away.close()
    await watching


@virtually
async def test_a_channel_that_no_pattern_of_an_agent_matches_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    hub = new_hub()

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None: ...

    signals, watching = signals_of(hub, "chats:1")
    await hub.create("chats:1", text="an app's route answers this", starts_turn=False)
    await hub.create("chats:1", role="assistant", text="Here you are.")
    await asyncio.sleep(6)
    assert signals == []
    asked = await hub.create("chats:1", text="anybody?")
    await hub.create("chats:2", text="and here?")
    await asyncio.sleep(6)
    assert [(one.name, one.data) for one in signals] == [("nobody_listening", {"message": asked.id})]
    named = [record.getMessage() for record in caplog.records if "no agent serves" in record.getMessage()]
    assert named == ['no agent serves "chats:1"; agents serve "chat:*"']
    await hub.close()
    await watching


ANN, BOB = Caller(id="ann"), Caller(id="bob")


def tools(name: str) -> list[dict[str, Any]]:
    return [{"type": "function", "name": name, "description": "x" * 2_000}]


def asks_again(hub: Hub, id: str, caller: Caller, **options: Any) -> Awaitable[object]:
    return hub.ask("chat:1", command_key(id), SendCommand(name="regenerate", target="q", options=options), caller)


@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_a_new_answer_has_the_options_of_its_regenerate_before_those_of_the_question(is_remote: bool) -> None:
    seen: list[tuple[Any, ...]] = []
    histories, events = list[list[str]](), list[str]()

    async def bot(turn: Turn) -> None:
        one = turn.request
        if turn.message.id == "q":
            names = [tool["name"] for tool in one.tools]
            seen.append((turn.attempt, one.model, one.temperature, one.instructions, names))
            histories.append([item["content"] for item in await turn.history()])
        async with turn.reply() as message:
            await message.append("whole")

    async def watch(hub: Hub) -> None:
        async for event in hub.subscribe("chat:1"):
            events.append(repr(event))

    changed = {"tools": tools("second"), "model": "m2", "instructions": "y" * 2_000}
    again: list[tuple[Caller, dict[str, Any]]] = [(BOB, {}), (BOB, changed), (ANN, {"temperature": 0.7})]
    again += [(ANN, {})] * ATTEMPTS  # more often than a turn is tried
    async for hub in (remote_lives if is_remote else lives)(bot, 1):
        watching = asyncio.ensure_future(watch(hub))
        options = {"tools": tools("first"), "model": "m1", "temperature": 0.5}
        await hub.ask("chat:1", "q", CreateMessage(text="?", options=options), ANN)
        await asyncio.sleep(1)
        for number, (caller, others) in enumerate(again):
            await asks_again(hub, str(number), caller, **others)
            await asyncio.sleep(1)
        answers = [one for one in await messages(hub) if one.reply_to == "q"]
        watching.cancel()
    own = (1, "m1", 0.5, None, ["first"])
    second, third = (1, "m2", 0.5, "y" * 2_000, ["second"]), (1, "m1", 0.7, None, ["first"])
    assert seen == [own, own, second, third, *[own] * ATTEMPTS]
    assert histories == [["?", "whole", "?"]] * len(seen)  # without the answers that are made again
    assert [(one.text, one.status, one.parent) for one in answers] == [("whole", "complete", "q")] * len(seen)
    assert not [one for one in events if "m2" in one or "0.7" in one or "second" in one]


@virtually
async def test_options_of_a_regenerate_outlive_the_process_that_had_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = MemoryStore(), LocalBackend.read
    seen: list[tuple[int, int, str | None]] = []

    async def hanging(self: LocalBackend, channel: str, message_id: str) -> tuple[Message, str]:
        if life == 1 and message_id == regenerate_options_id("q"):
            await asyncio.sleep(1000)  # the turn is claimed, and the process dies before the handler begins
        return await read(self, channel, message_id)

    async def bot(turn: Turn) -> None:
        seen.append((life, turn.attempt, turn.request.model))
        if life == 2 and turn.attempt == 2:
            await asyncio.sleep(1000)

    monkeypatch.setattr(LocalBackend, "read", hanging)
    for life in (1, 2, 3):
        hub = new_hub(store)
        hub.agent("chat:*", name="bot")(bot)
        await hub.start()
        if life == 1:
            await hub.ask("chat:1", "q", CreateMessage(text="?", options={"model": "m1"}), ANN)
            await asyncio.sleep(1)
            await asks_again(hub, "1", ANN, model="m2")
        await asyncio.sleep(1)
        hub.runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]  # it hands nothing over
        await hub.close()
    assert seen == [(1, 1, "m1"), (2, 2, "m2"), (3, 3, "m2")]


@virtually
async def test_no_handler_begins_a_turn_that_ends_while_its_message_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read, may_read = LocalBackend.read, asyncio.Event()
    begun: list[str] = []

    async def slow(self: LocalBackend, channel: str, message_id: str) -> tuple[Message, str]:
        await may_read.wait()
        return await read(self, channel, message_id)

    async def bot(turn: Turn) -> None:
        begun.append(turn.text)
        async with turn.reply() as message:
            await message.append("whole")

    monkeypatch.setattr(LocalBackend, "read", slow)
    hub = await hub_asked(bot, 1)
    await hub.delete_channel("chat:1")
    await hub.create("chat:1", id="m1", text="again")
    await asyncio.sleep(1)
    may_read.set()
    await until_over(hub, 1)
    await asyncio.sleep(1)
    assert begun == ["again"]


@virtually
async def test_a_new_answer_has_the_options_of_the_question_if_those_of_its_regenerate_were_removed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, gate = new_hub(), asyncio.Event()
    seen: list[tuple[str, str | None, int]] = []

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        seen.append((turn.message.id, turn.request.model, len(turn.request.tools)))
        if turn.message.id == "p":
            await gate.wait()

    await hub.ask("chat:1", "q", CreateMessage(text="?", options={"model": "m1"}), BOB)
    await asyncio.sleep(1)
    await hub.create("chat:1", id="p", text="?")
    await asks_again(hub, "1", ANN, model="m2", tools=tools("second"))
    assert b"m2" not in await exported(hub)  # nothing waits after an import
    await hub.archive.forget("ann")
    found = (await hub.store.facts("chat:1", after=0, limit=99)).facts
    assert [one.id for one in found if one.id.startswith("options-")] == [regenerate_options_id("q")]
    gate.set()
    await asyncio.sleep(1)
    assert seen == [("q", "m1", 0), ("p", None, 0), ("q", "m1", 0)]
    warnings = [one.getMessage() for one in caplog.records if "removed" in one.getMessage()]
    assert warnings == [f"{one} of message q in chat:1 were removed" for one in ("options", "tools")]
    assert (await hub.archive.forget("bob")).messages == 2
    assert not [one.id for one in (await hub.store.facts("chat:1", after=0, limit=99)).facts if "options-" in one.id]


@virtually
async def test_retention_keeps_the_options_of_a_question_that_waits() -> None:
    hub, gate = new_hub(retention={"*": "10m"}), asyncio.Event()
    seen: list[tuple[str, str | None, list[str]]] = []

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        seen.append((turn.message.id, turn.request.model, [tool["name"] for tool in turn.request.tools]))
        if turn.message.id.startswith("p"):
            await gate.wait()

    await hub.create("chat:1", id="p1", text="?")
    await hub.ask("chat:1", "q", CreateMessage(text="?", options={"tools": tools("first"), "model": "m1"}), ANN)
    for before in ("p2", None):
        await asyncio.sleep(3600)
        gate.set()
        await asyncio.sleep(1)
        gate.clear()
        if before is not None:
            await hub.create("chat:1", id=before, text="?")
            await asks_again(hub, "1", ANN, tools=tools("second"), model="m2")
    assert seen == [("p1", None, []), ("q", "m1", ["first"]), ("p2", None, []), ("q", "m2", ["second"])]
    await asyncio.sleep(3600)
    assert not (await hub.store.facts("chat:1", after=0, limit=99)).facts


@pytest.mark.parametrize("on_crash", ["interrupt", "restart", "continue"])
@virtually
async def test_a_turn_whose_process_died_is_another_attempt(on_crash: Any) -> None:
    attempts: list[tuple[int, str | None]] = []

    async def bot(turn: Turn) -> None:
        attempts.append((turn.attempt, turn.previous.text if turn.previous is not None else None))
        async with turn.reply() as message:
            await message.append("half " if turn.attempt == 1 else "whole")
            await message.flush()
            await asyncio.sleep(1000 if turn.attempt == 1 else 0)

    (answer,) = await answers_of(bot, on_crash, 1, 5, 5)
    assert attempts == [(1, None), *([] if on_crash == "interrupt" else [(2, "half ")])]  # and then the turn is over
    expected = {
        "interrupt": ("half ", "interrupted", "text"),
        "restart": ("whole", "complete", "attempt"),
        "continue": ("half whole", "complete", "text"),
    }
    assert (answer.text, answer.status, answer.parts[0]["type"]) == expected[on_crash]


@pytest.mark.parametrize(
    "settings",
    [
        *({"when_busy": "never"}, {"on_crash": "never"}, {"name": "my bot"}, {"budget_s": 0}),
        *({"slots": wrong} for wrong in (0, "5")),
        *({"max_tries": wrong} for wrong in (0, 6, 1.5)),
        *({"timeout_s": wrong} for wrong in (0, "5", None)),
    ],
)
def test_unknown_setting_is_refused(settings: dict[str, Any]) -> None:
    async def bot(turn: Turn) -> None:
        raise AssertionError

    with pytest.raises(TenutoError, match=next(iter(settings))):
        new_hub().agent("chat:*", **settings)(bot)
    with pytest.raises(TenutoError, match=next(iter(settings))):
        Client("http://127.0.0.1:1").agent("chat:*", **settings)(bot)


def test_a_handler_that_is_not_async_is_refused() -> None:
    with pytest.raises(LocalError, match="async"):
        new_hub().agent("chat:*")(print)  # type: ignore[arg-type]


@virtually
async def test_agent_without_a_given_name_has_that_of_its_function_if_it_has_one() -> None:
    async def bot(turn: Turn, *, text: str = "Hi") -> None:
        async with turn.reply() as message:
            await message.append(text)

    nameless = type("Nameless", (), {"__call__": lambda self, turn: bot(turn)})()
    for handler, name in ((partial(bot, text="Hello"), "bot"), (nameless, "agent")):
        assert [one.author for one in await messages(await hub_asked(handler, 1, name=None))] == [None, name]


class Failing(MemoryStore):
    """A store that fails while `is_down` is set."""

    is_down = False

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        if self.is_down:
            raise StoreUnavailable("not now")
        return await super().commit(writes)
