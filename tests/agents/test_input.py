"""What a turn has got while it ran, when its process dies: it comes again, or its answer is complete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tenuto.agents.local import LocalBackend
from tenuto.agents.steps import Steps
from tenuto.agents.turn import Turn
from tenuto.client import Client
from tenuto.core.turns import STEP_MARK
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import new_hub
from tests.client.wire import Wire, client_of
from tests.virtual import virtually


async def lived(
    handler: Any, on_crash: Any, *inputs: str, lives: int, is_remote: bool = False
) -> list[tuple[str, str]]:
    """Return the messages and their states when the handler's processes have died: hubs, or clients of one hub.

    The first one gets these inputs: `steer` is a command, any other a message.
    """
    store = MemoryStore()
    for number in range(lives):
        if not number or not is_remote:
            hub = new_hub(store, drain_s=0.01)
        worker: Any = client_of(Wire(hub), client_id=f"bot{number}") if is_remote else hub
        worker.agent("chat:*", on_crash=on_crash)(handler)
        await hub.start()
        running = asyncio.ensure_future(worker.run()) if isinstance(worker, Client) else None
        if not number:
            await asyncio.sleep(1)
            await hub.create("chat:1", id="q", text="?")
            await asyncio.sleep(1)
            for input in inputs:
                if input == "steer":
                    await hub.command("chat:1", "steer", target="q", data={"text": "steer"}, by="ann", expires_s=3600)
                else:
                    await hub.create("chat:1", id=input, text=input)
        await asyncio.sleep(200)
        found = [(one.text, one.status) for one in (await hub.history("chat:1")).messages[::-1]]
        assert number < lives - 1 or not hub.channel("chat:1").state.pending_commands()
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        else:
            hub.runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]  # it dies without a hand-over
            await hub.close()
    return found


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_what_a_dead_attempt_got_comes_again(on_crash: Any, is_remote: bool) -> None:
    got: list[list[tuple[str, str | None]]] = []

    async def model(text: str) -> AsyncIterator[str]:
        yield text

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        async with turn.reply() as message:
            await message.pipe(lambda so_far: model("First. "), source="text")
            got.append([(one.text, one.by) for one in await turn.steered()])
            for text, _ in got[-1]:
                await message.pipe(lambda so_far, text=text: model(f"To {text}. "), source="text")
            assert await turn.steered() == []
            await asyncio.sleep(1e6 if turn.attempt < 3 else 0)

    found = await lived(respond, on_crash, "steer", "q2", lives=3, is_remote=is_remote)
    assert got == [[("steer", "ann"), ("q2", None)]] * 3
    assert found == [("?", "complete"), ("q2", "complete"), ("First. To steer. To q2. ", "complete")]


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("on_crash", ["restart", "continue", "interrupt"])
@virtually
async def test_a_message_that_a_complete_answer_contains_gets_no_second_answer(on_crash: Any, is_remote: bool) -> None:
    got: list[list[str]] = []

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        async with turn.reply() as message:
            got.append([one.text for one in await turn.steered()])
            await message.append(f"To {turn.text} {' '.join(got[-1])}.")
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt < 3 else 0)

    found = await lived(respond, on_crash, "steer", "q2", lives=3, is_remote=is_remote)
    assert got[0] == ["steer", "q2"]
    assert not any(got[1:])
    assert found == [("?", "complete"), ("q2", "complete"), ("To ? steer q2.", "complete")]


@virtually
async def test_a_message_that_a_later_attempt_left_out_of_its_answer_gets_one() -> None:
    """Its note names an answer that is complete, but the attempt that completed it did not ask for its input."""

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        async with turn.reply() as message:
            got = [one.text for one in await turn.steered()] if turn.attempt == 1 else []
            await message.append(f"To {turn.text} {' '.join(got)}.")
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 and turn.text == "?" else 0)
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt < 3 and turn.text == "?" else 0)

    found = await lived(respond, "restart", "q2", lives=3)
    assert [text for text, _ in found] == ["?", "q2", "To ? .", "To q2 ."]


@pytest.mark.parametrize("moment", ["before the note", "after the note", "before the reply", "after the reply"])
@virtually
async def test_input_is_kept_whenever_the_process_dies(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    note, accept = Steps.note_input, LocalBackend.reply

    async def dies(*_: Any) -> None:
        await asyncio.sleep(1e6)

    async def noting(self: Steps, about: Any, *args: Any) -> Any:
        is_steer = about["of"] is not None and len(got) == 0
        if is_steer and moment == "before the note":
            await dies()
        found = await note(self, about, *args)
        if is_steer and moment == "after the note":
            await dies()
        return found

    async def replying(self: LocalBackend, channel: str, id: str, **fields: Any) -> None:
        is_steer = not id.startswith(STEP_MARK) and len(got) == 0
        if is_steer and moment == "before the reply":
            await dies()
        await accept(self, channel, id, **fields)
        if is_steer and moment == "after the reply":
            await dies()

    monkeypatch.setattr(Steps, "note_input", noting)
    monkeypatch.setattr(LocalBackend, "reply", replying)

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        async with turn.reply() as message:
            if turn.attempt > 1:
                got.append([])  # the first attempt gets nothing
            steered = [one.text for one in await turn.steered()]
            got[-1].extend(steered)
            await message.append(f"To {turn.text} {' '.join(steered)}.")
            await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt < 3 else 0)

    found = await lived(respond, "restart", "steer", "q2", lives=3)
    assert got == [["steer", "q2"]] * 2
    assert [text for text, _ in found] == ["?", "q2", "To ? steer q2."]


@virtually
async def test_an_input_comes_once_to_concurrent_calls_and_again_after_one_that_was_cancelled() -> None:
    hub, store = new_hub(), MemoryStore()
    got: list[list[str]] = []

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        note = turn.steps.note_input

        async def slow(about: Any, *content: Any) -> Any:
            await asyncio.sleep(1)
            found = await note(about, *content)
            await asyncio.sleep(1)
            return found

        turn.steps.note_input = slow  # type: ignore[method-assign]
        for cut_s in (0.5, 1.5, 2.5, 3.5):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(cut_s):
                    got.append([one.text for one in await turn.steered()])
        got.extend([one.text for one in found] for found in await asyncio.gather(turn.steered(), turn.steered()))
        await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    for number in range(2):
        hub = new_hub(store, drain_s=0.01)
        hub.agent("chat:*")(respond)
        await hub.start()
        if not number:
            await hub.create("chat:1", id="q", text="?")
            await asyncio.sleep(1)
            for name in ("a", "b"):  # a command and a message may have the same id
                await hub.command("chat:1", "steer", id=name, target="q", data=name, by="ann", expires_s=3600)
                await hub.create("chat:1", id=name, text=f"message {name}")
        await asyncio.sleep(60)
        assert got == [["a", "b", "message a", "message b"], []]
        got.clear()
        await hub.close()  # a hand-over


@pytest.mark.parametrize("is_handed_over", [False, True])
@virtually
async def test_what_has_expired_or_was_deleted_does_not_come_again(is_handed_over: bool) -> None:
    hub, store = new_hub(), MemoryStore()
    got: list[list[str]] = []

    async def respond(turn: Turn) -> None:
        await asyncio.sleep(10)
        if turn.attempt == 1:
            reply = turn._backend.reply

            async def late(channel: str, id: str, **fields: Any) -> None:
                if id == "late":
                    await asyncio.sleep(20)  # the server replies that it has expired
                await reply(channel, id, **fields)

            turn._backend.reply = late  # type: ignore[method-assign]
        got.append([one.text for one in await turn.steered()])
        await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    for number in range(2):
        hub = new_hub(store, drain_s=0.01)
        hub.agent("chat:*")(respond)
        await hub.start()
        if not number:
            await hub.create("chat:1", id="q", text="?")
            await asyncio.sleep(1)
            await hub.command("chat:1", "steer", id="late", target="q", data="late", by="ann", expires_s=20)
            await hub.command("chat:1", "steer", id="kept", target="q", data="kept", by="ann", expires_s=3600)
            await hub.create("chat:1", id="q2", text="gone")
        await asyncio.sleep(60)
        if not number:
            await hub.delete("chat:1", "q2")
            if not is_handed_over:
                hub.runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]
            await hub.close()
    assert got == [["kept", "gone"], ["kept"]]


@pytest.mark.parametrize("is_in_answer", [False, True])
@virtually
async def test_a_turn_that_is_given_up_keeps_the_messages_of_its_complete_answers(is_in_answer: bool) -> None:
    store = MemoryStore()
    for number in range(3):
        hub = new_hub(store, drain_s=0.01)

        @hub.agent("chat:*", max_tries=2)
        async def respond(turn: Turn) -> None:
            await asyncio.sleep(10)
            async with turn.reply() as message:
                got = [one.text for one in await turn.steered()] if turn.text == "?" else []
                await message.append(" ".join([turn.text, *got]))
                await asyncio.sleep(0 if is_in_answer or turn.text != "?" else 1e6)
            await asyncio.sleep(1e6 if turn.text == "?" else 0)

        await hub.start()
        if not number:
            await hub.create("chat:1", id="q", text="?")
            await asyncio.sleep(1)
            await hub.create("chat:1", id="q2", text="q2")
        await asyncio.sleep(100)
        found = [(one.text, one.status) for one in (await hub.history("chat:1")).messages[::-1]]
        hub.runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]
        await hub.close()
    answers = [("? q2", "complete")] if is_in_answer else [("? q2", "failed"), ("q2", "complete")]
    assert found == [("?", "complete"), ("q2", "complete"), *answers]
