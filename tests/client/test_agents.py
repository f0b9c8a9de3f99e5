"""Agents in another process: the same handlers, over connections that come and go, also after a sleep."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from proof.simulation.clock import START_MS
from tenuto import Hub, allow_everyone
from tenuto.agents.turn import AskReply, Turn
from tenuto.client import ClaimedTurn, Client, Timing
from tenuto.client.writer import SHORTEST_LEASE_S
from tenuto.core.errors import Forbidden, NotFound, Unauthenticated
from tenuto.core.model import STEP_NAME, Message
from tenuto.core.requests import SERVER, Caller, CreateMessage, FinishMessage
from tenuto.core.turns import BUILT_IN_COMMANDS, CANCEL, reply_id, step_id
from tenuto.hub.access.identity import Identity
from tests.agents.test_endings import Slow
from tests.client.wire import QUICK, Wire, becomes, client_of
from tests.virtual import virtual_clock, virtually


@contextlib.asynccontextmanager
async def working(client: Client, hub: Hub | None = None) -> AsyncIterator[None]:
    """Run the agents of `client`, whose first one is known to `hub`."""
    task = asyncio.ensure_future(client.run())
    try:
        if hub is not None:
            await becomes(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def answers(hub: Hub, channel: str = "chat:1") -> list[Message]:
    page = await hub.history(channel)
    return [one for one in page.messages[::-1] if one.role == "assistant"]


async def until_answered(hub: Hub, count: int = 1, channel: str = "chat:1") -> list[Message]:
    """Return the answers once `count` have ended."""
    async with asyncio.timeout(60):
        async for _ in hub.subscribe(channel):
            found = [one for one in await answers(hub, channel) if one.status != "streaming"]
            if len(found) >= count:
                return found
    raise AssertionError


async def test_handler_in_another_process_answers_as_one_in_the_hub(hub: Hub, wire: Wire) -> None:
    tools = [{"type": "function", "name": "f", "description": "x" * 2_000}]
    seen, client = list[Any](), client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        seen.append((turn.attempt, await turn.history(), turn.request.tools, turn.request.temperature))
        turn.progress("using a tool")
        async with turn.reply(meta={"model": "m"}) as message:
            await message.append("you said ")
            await message.append(turn.text)

    async with working(client, hub):
        asked = "question"
        options = {"tools": tools, "temperature": 0.5, "seed": "of another type"}
        await hub.ask("chat:1", asked, CreateMessage(text="hello", options=options), Caller(id="ann"))
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.author, answer.status) == ("you said hello", "bot", "complete")
        assert (answer.id, answer.reply_to, answer.meta) == (reply_id(asked, 1), asked, {"model": "m"})
        assert seen == [(1, [{"role": "user", "content": "hello"}], tools, 0.5)]
        await becomes(lambda: hub.runtime.scheduler.stats()["turns_running"] == 0)


async def test_commands_reach_a_handler_in_a_process(hub: Hub, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN_COMMANDS, "cancel", CANCEL._replace(after_s=3600.0))  # the agent does it, not the hub
    seen, begun, client = list[Any](), asyncio.Event(), client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("May I? ")
            seen.append(await turn.ask("approve", {"tool": "rm"}))
            seen.append([steer.text for steer in await turn.steered()])
            await message.append("Yes. ")
            await message.flush()
            begun.set()
            await asyncio.Event().wait()

    async with working(client, hub):
        asked = await hub.create("chat:1", text="?", author="ann")
        state = hub.channel("chat:1").state
        await becomes(lambda: bool(state.pending_commands()))
        (question,) = state.pending_commands()
        await hub.command("chat:1", "steer", target=asked.id, data={"text": "quickly"})
        await hub.create("chat:1", text="and short")
        await hub.reply("chat:1", question.id[1:], ok=True, data="go", by="ann")
        async with asyncio.timeout(60):
            await begun.wait()
        assert (seen[0].ok, seen[0].data, seen[0].by) == (True, "go", "ann")
        assert seen[1] == ["quickly", "and short"]
        await hub.command("chat:1", "cancel", target=asked.id, by="ann")
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.status) == ("May I? Yes. ", "cancelled")
        assert len((await hub.history("chat:1")).messages) == 3


@pytest.mark.parametrize("code", ["already_answered", "forbidden"])
async def test_steer_without_a_possible_reply_harms_no_turn(hub: Hub, wire: Wire, code: str) -> None:
    """The command has expired, for example, or the agent may not reply to commands."""
    got: list[str] = []
    begun, steered = asyncio.Event(), asyncio.Event()
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("on")
            begun.set()
            await steered.wait()
            for _ in range(2):
                got.extend(steer.text for steer in await turn.steered())

    async with working(client, hub), asyncio.timeout(60):
        asked = await hub.create("chat:1", text="?")
        await begun.wait()
        wire.refuse = lambda frame: code if frame["type"] == "reply" else None
        await hub.command("chat:1", "steer", target=asked.id, data="shorter")
        await becomes(lambda: bool(client.channel("chat:1").commands))
        steered.set()
        (answer,) = await until_answered(hub)
    assert (answer.status, got) == ("complete", ["shorter"] if code == "forbidden" else [])


async def test_turns_of_two_agents_survive_their_socket(hub: Hub, wire: Wire) -> None:
    """On a new socket each agent renews its own turns, which the server has not assigned there."""
    begun, release = list[str](), asyncio.Event()
    client = client_of(wire, client_id="bot")

    async def bot(name: str, turn: Turn) -> None:
        begun.append(name)
        async with turn.reply() as message:
            await release.wait()
            await message.append("whole")

    for name in ("bot~a", "bot~b"):
        client.agent("chat:*", name=name, slots=1)(partial(bot, name))
    async with working(client), asyncio.timeout(60):
        await becomes(lambda: hub.runtime.scheduler.stats()["agents"] == 2)
        for channel in ("chat:1", "chat:2"):
            await hub.create(channel, text="?")
        await becomes(lambda: len(begun) == 2)
        before = len(wire.sent)
        wire.cut()
        await becomes(lambda: len({one["channel"] for one in wire.sent[before:] if one["type"] == "turn.renew"}) == 2)
        release.set()
        for channel in ("chat:1", "chat:2"):
            await until_answered(hub, 1, channel)
            assert [one.status for one in await answers(hub, channel)] == ["complete"]
        await becomes(lambda: hub.runtime.scheduler.stats()["turns_running"] == 0)
    assert sorted(begun) == ["bot~a", "bot~b"]


@contextlib.asynccontextmanager
async def virtual_hub(store: Any = "memory://", **options: Any) -> AsyncIterator[tuple[Hub, Wire]]:
    """Yield a hub and a wire on a virtual clock, on which long leases end at once."""
    options = {"authenticate": allow_everyone, **options}
    hub = Hub(store, hooks_signals=False, clock=virtual_clock(), drain_s=0.0, **options)
    await hub.start()
    wire = Wire(hub)
    yield hub, wire
    await wire.end()
    await hub.close()


@contextlib.asynccontextmanager
async def questioned(hub: Hub, client: Client) -> AsyncIterator[str]:
    """Run the agents of `client`, ask them a question, and yield its id."""
    async with working(client):
        await asyncio.sleep(1)
        yield (await hub.create("chat:1", text="?")).id


def agent(wire: Wire, name: str, answer: Callable[[str, Turn], Awaitable[None]]) -> Client:
    """Return a client with one agent, whose handler gets the name of the client, too."""
    client = client_of(wire, client_id=name)
    client.agent("chat:*")(partial(answer, name))
    return client


async def endings(hub: Hub) -> list[tuple[str | None, str, str, str | None]]:
    return [(one.author, one.text, one.status, one.reason) for one in await answers(hub)]


@pytest.mark.parametrize("is_stop", [True, False])
@virtually
async def test_answer_cancelled_while_it_opens_does_not_stream_on(is_stop: bool) -> None:
    """After a cancel it ends as `cancelled`; after a shutdown as `interrupted`, once its lease has ended."""
    async with virtual_hub(Slow()) as (hub, wire), client_of(wire) as client:
        writer = client.message("chat:1", id="r")
        if not is_stop:
            writer.cancelled_as = ("interrupted", None)
        opening = asyncio.ensure_future(writer.open())
        await becomes(lambda: any(frame["type"] == "create" for frame in wire.sent))
        opening.cancel()  # the create is being stored at this moment
        await asyncio.wait([opening])
        assert opening.cancelled()
        message, _ = await hub.read("chat:1", "r")
        assert message.status == ("cancelled" if is_stop else "streaming")
        assert [(frame["type"], frame.get("lease_s")) for frame in wire.sent[1:]] == [
            ("finish", None) if is_stop else ("lease", SHORTEST_LEASE_S)
        ]


@virtually
async def test_claim_is_renewed_although_the_server_refuses_the_state_with_it() -> None:
    begun: list[int] = []
    async with virtual_hub() as (hub, wire):
        wire.refuse = lambda frame: "invalid_request" if "tool" in frame.get("state", ()) else None
        client = client_of(wire, client_id="bot")

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            begun.append(turn.attempt)
            turn.progress("using a tool", tool="search")
            await asyncio.sleep(60)

        async with questioned(hub, client):
            await asyncio.sleep(100)
        assert begun == [1]


@virtually
async def test_turn_whose_answer_the_hub_interrupts_gets_its_next_attempt() -> None:
    """A lease had ended, although the process and its handler run on."""
    is_interrupted = asyncio.Event()
    async with virtual_hub() as (hub, wire):
        client = client_of(wire, client_id="bot")

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            async with turn.reply() as message:
                await message.append(f"attempt {turn.attempt}")
                await message.flush()
                if turn.attempt == 1:
                    await is_interrupted.wait()
                    await message.append("not stored")

        async with questioned(hub, client) as asked:
            await asyncio.sleep(1)
            end = FinishMessage(status="interrupted", reason="writer_gone", generation=1)
            await hub.ask("chat:1", reply_id(asked, 1), end, SERVER)
            is_interrupted.set()
            await asyncio.sleep(1)
        assert await endings(hub) == [("bot", "attempt 2", "complete", None)]


@pytest.mark.parametrize(("at", "away_s"), [("attach", 2.0), ("create", 2.0), ("approve", 1.5), ("finish", 2.0)])
@virtually
async def test_turn_whose_hub_is_away_for_longer_than_the_timeout_is_not_over(at: str, away_s: float) -> None:
    """The connection is lost just after the turn has arrived, or as its answer begins, asks a question or ends."""
    begun: list[int] = []
    async with virtual_hub() as (hub, wire):
        client = client_of(wire, client_id="bot", timing=replace(QUICK, request_s=1.0))

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            begun.append(turn.attempt)
            async with turn.reply() as message:
                await turn.ask("approve", timeout_s=1)
                await message.append("an answer")

        def refuse(frame: dict[str, Any]) -> None:
            if at in (frame["type"], frame.get("name")) and wire.dials == 1:
                wire.is_away = True
                wire.cut()

        wire.refuse = refuse
        async with questioned(hub, client):
            await asyncio.sleep(away_s)
            assert (wire.is_away, begun) == (True, [1] * (at != "attach"))
            wire.is_away = False
            await asyncio.sleep(120)
        assert begun == [1] * (at != "attach") + [2]
        assert await endings(hub) == [("bot", "an answer", "complete", None)]


async def test_a_turn_function_that_raises_has_not_ended_the_turn(hub: Hub, wire: Wire, client: Client) -> None:
    """The claim lapses, and the turn is tried again."""
    turns: list[ClaimedTurn] = []

    async def on_turn(turn: ClaimedTurn) -> None:
        turns.append(turn)
        raise RuntimeError

    work = asyncio.ensure_future(client.work("chat:*", on_turn=on_turn))
    await becomes(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
    await hub.create("chat:1", text="?")
    await becomes(lambda: bool(turns) and turns[0].task is not None and turns[0].task.done())
    await client.history("chat:1")  # earlier requests have been carried out
    assert [frame["type"] for frame in wire.sent if frame["type"] == "turn.done"] == []
    assert hub.runtime.scheduler.stats()["turns_running"] == 1
    work.cancel()
    await asyncio.wait([work])


@virtually
async def test_an_agent_that_may_not_read_answers_again_after_a_crash() -> None:
    """It has the capabilities for `work` but not `history`, so it cannot read the answer of the previous attempt."""
    begun: list[tuple[str, int, Message | None]] = []

    async def authenticate(scope: Any) -> Identity:
        name = scope["query_string"].decode().split("client=")[1].split("&")[0]
        return Identity(client_id=name, capabilities=frozenset({"agent", "subscribe", "append", "publish", "command"}))

    async with virtual_hub(authenticate=authenticate) as (hub, wire):

        async def bot(name: str, turn: Turn) -> None:
            begun.append((name, turn.attempt, turn.previous))
            async with turn.reply() as message:
                await message.append("half ")
                await message.flush()
                await asyncio.sleep(1000 if name == "one" else 0)

        async with questioned(hub, agent(wire, "one", bot)):
            await asyncio.sleep(1)
        async with working(agent(wire, "two", bot)):
            await asyncio.sleep(60)
        assert begun == [("one", 1, None), ("two", 2, None)]
        assert await endings(hub) == [("one", "half ", "interrupted", None), ("two", "half ", "complete", None)]


@virtually
async def test_steps_and_questions_of_a_client_that_died_go_on_at_another_one() -> None:
    async with virtual_hub() as (hub, wire):
        found: list[object] = []

        async def bot(name: str, turn: Turn) -> None:
            found.append(await turn.step("who", lambda: name))
            await turn.sleep("nap", 5)
            found.append(await turn.ask("approve", timeout_s=3600))

        async with questioned(hub, agent(wire, "one", bot)) as message_id:
            await asyncio.sleep(10)
            (question,) = await hub.pending_commands("chat:1")
        assert (question.from_, question.target) == ("one", message_id)
        async with working(two := agent(wire, "two", bot)):
            await asyncio.sleep(30)
            for name in ("eve", "one"):  # a stranger, and the agent of the earlier attempt
                async with client_of(wire, client_id=name) as other:
                    id = step_id("chat:1", message_id, 1, "who")
                    for generation in (1, 2):
                        with pytest.raises(Forbidden):
                            await other._send("chat:1", id, name=STEP_NAME, target=message_id, generation=generation)
                        with pytest.raises(NotFound):
                            await other._reply("chat:1", id, ok=True, data={"result": "forged"}, generation=generation)
            assert [one.id for one in await hub.pending_commands("chat:1")] == [question.id]
            view = two.channel("chat:1")
            wire.cut()
            view.cursor = None  # a new start has no replies, so that the agent requests that to the question
            await hub.reply("chat:1", question.id, data="go", by="ann")
            await asyncio.sleep(60)
        assert found == ["one", "one", AskReply(True, "go", None, "ann")]


@virtually
async def test_answer_whose_handler_raises_because_its_process_ends_goes_on_at_another_one() -> None:
    """Libraries turn a cancellation into an error of theirs."""
    async with virtual_hub() as (hub, wire):

        async def bot(name: str, turn: Turn) -> None:
            async with turn.reply() as message:
                await message.append(f"by {name}")
                try:
                    await asyncio.sleep(1000 if name == "one" else 0)
                except asyncio.CancelledError:
                    raise ConnectionError("the stream was closed") from None

        async with questioned(hub, agent(wire, "one", bot)):
            await asyncio.sleep(1)
        async with working(agent(wire, "two", bot)):
            await asyncio.sleep(60)
        assert [one[1:3] for one in await endings(hub)] == [("by two", "complete")]


@virtually
async def test_agent_whose_token_expires_in_a_turn_ends_with_the_remedy() -> None:
    async def until_a_minute(scope: Any) -> Identity:
        return Identity(client_id="bot", expires_at_ms=START_MS + 60_000)

    async with virtual_hub(authenticate=until_a_minute) as (hub, wire):
        client = client_of(wire, token="of a minute")

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            await asyncio.Event().wait()

        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(1)
        await hub.create("chat:1", text="?")
        await asyncio.sleep(1)
        assert hub.runtime.scheduler.stats()["turns_running"] == 1
        with pytest.raises(Unauthenticated, match="token_provider"):
            await asyncio.wait_for(running, 120)


@virtually
async def test_turn_requests_a_message_that_it_may_not_take_only_once() -> None:
    async with virtual_hub() as (hub, wire):
        client = client_of(wire, client_id="bot")

        @client.agent("chat:*", when_busy="parallel")
        async def bot(turn: Turn) -> None:
            if turn.text == "first":
                await asyncio.sleep(3)
                for _ in range(20):
                    assert await turn.steered() == []

        async with working(client):
            await asyncio.sleep(1)
            await hub.create("chat:1", text="first")
            await asyncio.sleep(1)
            for number in range(5):
                await hub.create("chat:1", text=f"other {number}")
            await asyncio.sleep(30)
        assert sum(frame["type"] == "turn.take" for frame in wire.sent) == 5


# Agents that did not run for a while, or had no connection -----------------------------------------------------------


# a client that sleeps: no time limit of its own ends a connection
SLEEPY = Timing(silence_s=1000.0, response_s=1000.0, send_s=1000.0)


def drowsy(wire: Wire, awake: asyncio.Event) -> Any:
    """Dials as `wire` does, but reads and sends only while `awake`."""

    async def dial(url: str, headers: dict[str, str]) -> Any:
        line = await wire(url, headers)
        receive, send = line.receive, line.send

        async def late_receive() -> str:
            frame = await receive()
            await awake.wait()
            return frame

        async def late_send(text: str) -> None:
            await awake.wait()
            await send(text)

        line.receive, line.send = late_receive, late_send  # type: ignore[method-assign]
        return line

    return dial


@virtually
async def test_agent_that_slept_begins_no_turn_of_another_worker() -> None:
    awake = asyncio.Event()
    awake.set()
    async with virtual_hub() as (hub, wire):
        sleeper = client_of(wire, client_id="sleeper", dial=drowsy(wire, awake), timing=SLEEPY)
        other = client_of(wire, client_id="other")

        async def bot(words: int, turn: Turn) -> None:
            async with turn.reply() as message:
                for _ in range(words):
                    await message.append(".")
                    await asyncio.sleep(1)

        for client, words in ((sleeper, 1000), (other, 20)):
            client.agent("chat:*", slots=words)(partial(bot, words))
        async with working(sleeper), working(other):
            await asyncio.sleep(1)
            await hub.create("chat:1", text="?")
            await asyncio.sleep(4.9)  # its last frame was long ago, and its next is due
            awake.clear()
            for _ in range(60):
                await asyncio.sleep(1)
                if [len(one.text) for one in await answers(hub)] == [10]:  # the other one writes the answer anew
                    break
            awake.set()
            await asyncio.sleep(60)
        found = [(one.author, len(one.text), one.status) for one in await answers(hub)]
        assert found == [("sleeper", 20, "complete")]


@pytest.mark.parametrize("seed", range(20))
@virtually
async def test_a_cut_soon_after_an_outage_costs_no_turn(seed: int) -> None:
    attempts: list[int] = []
    async with virtual_hub() as (hub, wire):
        client = client_of(wire, client_id="bot", timing=Timing(), random=Random(seed))

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            attempts.append(turn.attempt)
            async with turn.reply() as message:
                for _ in range(12):
                    await message.append(".")
                    await asyncio.sleep(1)

        async with working(client):
            await asyncio.sleep(6)
            wire.is_away = True
            wire.cut()
            await asyncio.sleep(4)
            wire.is_away = False
            await becomes(lambda: hub.runtime.scheduler.stats()["agents"] == 1)
            await hub.create("chat:1", text="?")
            await asyncio.sleep(2)
            wire.cut()
            await asyncio.sleep(60)
        assert [one.status for one in await answers(hub)] == ["complete"]
        assert attempts == [1]
