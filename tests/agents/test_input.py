"""What a turn has got while it ran, when its process dies: it comes again, or its answer is complete."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tenuto.agents.backend import find
from tenuto.agents.local import LocalBackend
from tenuto.agents.steps import Steps
from tenuto.agents.turn import Turn
from tenuto.client.agents import RemoteBackend
from tenuto.core.errors import Forbidden
from tenuto.core.turns import STEP_MARK
from tests.agents import test_turns as turns
from tests.agents.test_turns import messages, remote_lives
from tests.virtual import virtually

WAYS = pytest.mark.parametrize("way", [{}, {"hands_over": True}, {"is_remote": True}])


async def lived(
    handler: Any, *inputs: str, lives: int, is_remote: bool = False, hands_over: bool = False, **options: Any
) -> list[tuple[str, str]]:
    """Return the messages and their states when the handler's processes have died: hubs, or clients of one hub.

    The first one gets these inputs: `steer` and `late` (of 20 s) are commands, others messages (`gone` is deleted). The
    handler begins ten seconds later.
    """

    async def late(turn: Turn) -> None:
        await asyncio.sleep(10)
        await handler(turn)

    processes = remote_lives if is_remote else turns.lives
    found = list[tuple[str, str]]()
    async for hub in processes(late, *[1] * lives, hub={"drain_s": 0.01}, **options):
        for input in inputs if not found else ():
            if input in ("steer", "late"):
                id, expires_s = ("late", 20) if input == "late" else ("q2", 3600)
                await hub.command("chat:1", "steer", id=id, target="m1", data=input, by="ann", expires_s=expires_s)
            else:
                await hub.create("chat:1", id=input, text=f"m {input}", author="cem")
        await asyncio.sleep(200)
        if "gone" in inputs and not found:
            await hub.delete("chat:1", "gone")
        found = [(one.text, one.status) for one in await messages(hub)]
        pending = hub.channel("chat:1").state.pending_commands()
        if not hands_over and not is_remote:
            hub.runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]
    assert not pending
    return found


@WAYS
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_what_a_dead_attempt_got_comes_again(on_crash: Any, way: dict[str, Any]) -> None:
    got: list[list[tuple[str, str | None]]] = []

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            got.append([(one.text, one.by) for one in await turn.steered()])
            if turn.attempt == 3:
                await message.append("To all.")
            assert await turn.steered() == []
            await asyncio.sleep(1e6 if turn.attempt < 3 else 0)

    found = await lived(respond, "steer", "gone", "q2", lives=3, on_crash=on_crash, **way)
    assert got == [[("steer", "ann"), *gone, ("m q2", "cem")] for gone in ([("m gone", "cem")], [], [])]
    assert [text for text, _ in found] == ["?", "m q2", "To all."]


@WAYS
@pytest.mark.parametrize("on_crash", ["restart", "continue", "interrupt"])
@virtually
async def test_what_a_complete_answer_contains_does_not_come_again(on_crash: Any, way: dict[str, Any]) -> None:
    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(" ".join([f"To {turn.text}", *(one.text for one in await turn.steered())]))
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt < 3 else 0)
        assert turn.attempt == 1 or not await turn.steered()

    found = await lived(respond, "steer", "q2", lives=3, on_crash=on_crash, **way)
    assert [text for text, _ in found] == ["?", "m q2", "To ? steer m q2"]


@virtually
async def test_a_message_that_a_later_attempt_left_out_of_its_answer_gets_one() -> None:
    """Its note names an answer that is complete, but the attempt that completed it did not ask for its input."""

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            got = [one.text for one in await turn.steered()] if turn.attempt == 1 else []
            await message.append(" ".join([f"To {turn.text}", *got]))
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 and turn.text == "?" else 0)
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt < 3 and turn.text == "?" else 0)

    assert [text for text, _ in await lived(respond, "q2", lives=3)] == ["?", "m q2", "To ?", "To m q2"]


@pytest.mark.parametrize("moment", ["before the note", "after the note", "before the reply", "after the reply"])
@pytest.mark.parametrize(("dies", "is_remote"), [(True, False), (False, False), (False, True)])
@virtually
async def test_input_stays_at_each_moment(
    moment: str, dies: bool, is_remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies, or the call is cancelled while others wait."""
    got, is_held = list[list[str]](), True

    async def at(now: str, args: Any) -> None:
        nonlocal is_held
        if is_held and now == moment and STEP_MARK not in str(args):
            is_held = False
            await asyncio.sleep(1e6)

    def held(what: str, call: Any) -> Any:
        async def run(self: Any, *args: Any, **fields: Any) -> Any:
            await at(f"before the {what}", args)
            result = await call(self, *args, **fields)
            await at(f"after the {what}", args)
            return result

        return run

    monkeypatch.setattr(Steps, "note_input", held("note", Steps.note_input))
    for backend in (LocalBackend, RemoteBackend):
        monkeypatch.setattr(backend, "reply", held("reply", backend.reply))

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            if not dies:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await turn.steered()
            first, second = await asyncio.gather(turn.steered(), turn.steered())
            got.append([one.text for one in (*first, *second)])
            await message.append(" ".join(got[-1]))

    found = await lived(respond, "late", "steer", "q2", lives=2 if dies else 1, is_remote=is_remote)
    is_late = dies and moment != "after the reply"  # it has expired before the next life
    assert got == [[*([] if is_late else ["late"]), "steer", "m q2"]]
    assert [text for text, _ in found] == ["?", "m q2", " ".join(got[0])]


@virtually
async def test_a_steer_that_the_app_has_answered_does_not_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    got, note = list[list[str]](), Steps.note_input

    async def noted(self: Any, fields: Any, *content: Any) -> Any:
        result = await note(self, fields, *content)
        if fields["of"] == "q2" and len(got) == 0:
            await self._backend._hub.reply("chat:1", "q2", by="ann")
        return result

    monkeypatch.setattr(Steps, "note_input", noted)

    async def respond(turn: Turn) -> None:
        got.append([one.text for one in await turn.steered()])
        await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    await lived(respond, "steer", lives=2)
    assert got == [[], []]


@pytest.mark.parametrize("ids", [["q2"], ["q2", "q3"]])
@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_messages_that_a_cancelled_call_took_in_or_had_taken_in_get_turns_of_their_own(
    is_remote: bool, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was cancelled while it took in the last one, and no further call returns them."""
    note = Steps.note_input

    async def slow(self: Steps, fields: Any, *content: Any) -> Any:
        await asyncio.sleep(10 if fields["of"] == ids[-1] else 0)
        return await note(self, fields, *content)

    monkeypatch.setattr(Steps, "note_input", slow)

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await turn.steered()
            await message.append(f"To {turn.text}")

    found = await lived(respond, *ids, lives=1, is_remote=is_remote)
    assert [text for text, _ in found] == ["?", *(f"m {id}" for id in ids), "To ?", *(f"To m {id}" for id in ids)]


@virtually
async def test_a_message_that_the_agent_may_not_read_hides_no_other_input(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []

    async def found(backend: Any, channel: str, id: str) -> Any:
        if id == "q2":
            raise Forbidden("no history")
        return await find(backend, channel, id)

    monkeypatch.setattr("tenuto.agents.turn.find", found)

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            got.append([one.text for one in await turn.steered()])
            await message.append("To all.")
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 and turn.text == "?" else 0)

    await lived(respond, "q2", "q3", lives=2)
    assert got[:2] == [["m q2", "m q3"], ["m q3"]]


@pytest.mark.parametrize("is_whole", [False, True])
@virtually
async def test_a_turn_that_is_given_up_keeps_the_messages_of_its_complete_answer(is_whole: bool) -> None:
    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(" ".join([turn.text, *(one.text for one in await turn.steered())]))
            await asyncio.sleep(1e6 if turn.text == "?" and not is_whole else 0)
        await asyncio.sleep(1e6 if turn.text == "?" else 0)

    found = await lived(respond, "q2", lives=3, max_tries=2)  # of which the message loses one, as taken in
    assert found[2:] == [("? m q2", "complete")] if is_whole else [("? m q2", "failed"), ("m q2", "complete")]
