"""Attempts of a continued answer whose process dies in them: what they wrote is superseded by the next one.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.agents.turn import Turn
from tenuto.core.model import Message
from tenuto.sources import SoFar
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import Handler, answers_of, hub_asked, messages
from tests.virtual import virtually

REMOTE = pytest.mark.parametrize("is_remote", [False, True])


def shown(answer: Any) -> list[str | list[str]]:
    """Return the texts of the parts, those of a superseded attempt in a list."""
    return [
        [one.get("text", "") for one in part["parts"]] if part["type"] == "attempt" else part.get("text", part["type"])
        for part in answer.parts
    ]


@REMOTE
@virtually
async def test_an_attempt_in_which_the_process_dies_is_superseded_and_text_before_it_stays(is_remote: bool) -> None:
    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            if turn.previous is None:
                await message.append("Intro. ")
                async with message.attempt():
                    await message.append("First. ")
            async with message.attempt():
                await message.append(f"Second {turn.attempt}")
                await message.flush()
                await asyncio.sleep(1e6 if turn.attempt < 3 else 0)
                await message.append(" end. ")
            await message.append("Signed.")

    (answer,) = await answers_of(respond, "continue", 5, 60, 60, 60, is_remote=is_remote)
    assert (answer.text, answer.status) == ("Intro. First. Second 3 end. Signed.", "complete")
    assert shown(answer) == ["Intro. ", "First. ", ["Second 1"], ["Second 2"], "Second 3 end. Signed."]
    assert answer.meta == {}


async def killed(handler: Handler, known: list[set[str]], *lives_s: float) -> list[Message]:
    """Return the answers of an agent whose processes are killed after these times: the next one has what was stored.

    `known` gets what is known at these times.
    """
    store = MemoryStore()
    for life_s in lives_s:
        hub = await hub_asked(handler, life_s, store=store, on_crash="continue")
        store = copy.deepcopy(store)
        known.append({*known[-1]})
        answers = [one for one in await messages(hub) if one.role == "assistant"]
        await hub.close()
    return answers


@example(["attempt", "attempt"], [2, 2], True)
@example(["attempt", "both"], [5], True)
@example(["text", "fails"], [3], False)
@given(
    st.lists(st.sampled_from(["text", "attempt", "both", "nested", "fails", "step"]), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), max_size=3),
    st.booleans(),
)
def test_each_attempt_of_a_continued_answer_stands_once_wherever_its_processes_die(
    script: list[str], lives_s: list[int], is_killed: bool
) -> None:
    known = [set[str]()]  # what the handler need not write again

    async def write(turn: Turn, ended: set[str], name: str, kind: str, pause_s: float = 1.0) -> None:
        message = turn.begun[0]
        if name in ended:
            return
        if kind == "text":
            await message.append(f"({name}) ")
        else:
            with suppress(ValueError):
                async with message.attempt():
                    await message.append(f"({name} begins")
                    await message.flush()
                    await asyncio.sleep(pause_s)
                    if kind == "nested":
                        async with message.attempt():
                            await message.append(", inside")
                            await message.flush()
                            await asyncio.sleep(pause_s)
                    if kind == "step":
                        await turn.step(name, asyncio.sleep, 1, show=True)
                    await message.append(", ends) ")
                    await message.flush()
                    if kind == "fails":
                        raise ValueError
            if kind == "fails":
                await asyncio.sleep(1)
                await write(turn, ended, name, "attempt", pause_s)
                return
        await message.flush()
        ended.add(name)
        await asyncio.sleep(0.5)

    async def respond(turn: Turn) -> None:
        write_one = partial(write, turn, known[-1])
        async with turn.reply() as message:
            for number, kind in enumerate(script):
                if kind == "both":
                    await asyncio.gather(write_one(f"{number}a", "attempt"), write_one(f"{number}b", "attempt", 2.2))
                else:
                    await write_one(str(number), kind)
            await message.flush()

    @virtually
    async def run() -> None:
        known[:] = [set()]
        lives = [*lives_s, 100]
        (answer,) = await (killed(respond, known, *lives) if is_killed else answers_of(respond, "continue", *lives))
        expected = [
            text
            for number, kind in enumerate(script)
            for text in {
                "text": [f"({number}) "],
                "both": [f"({number}a begins, ends) ", f"({number}b begins, ends) "],
                "nested": [f"({number} begins, inside, ends) "],
            }.get(kind, [f"({number} begins, ends) "])
        ]
        assert sorted(f"({one}" for one in answer.text.split("(")[1:]) == sorted(expected), answer.parts
        assert (answer.status, answer.meta) == ("complete", {}), answer.parts
        steps = [part for part in answer.parts if part["type"] == "tool"]
        assert [one["state"] for one in steps] == ["done"] * script.count("step")

    run()


@REMOTE
@virtually
async def test_a_stream_in_an_attempt_in_which_the_process_dies_is_continued(is_remote: bool) -> None:
    seen, begun = list[str](), "The answer has more than 32 characters, so that it can be continued. "

    async def model(so_far: SoFar) -> AsyncIterator[str]:
        seen.append(so_far.text)
        yield begun if not so_far.text else "It goes on."
        await asyncio.sleep(1e6 if not so_far.text else 0)

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message, message.attempt():
            await message.pipe(model, source="text", on_break="continue")

    (answer,) = await answers_of(respond, "continue", 5, 60, is_remote=is_remote)
    assert (shown(answer), answer.status, seen) == ([f"{begun}It goes on."], "complete", ["", begun])


@pytest.mark.parametrize("mark", [True, 1, "x", {"1": 1}, [None, "x", [1], 1e300, -1, 2**62], [1], [0, 1, 2, 3]])
@virtually
async def test_a_mark_of_another_form_or_of_superseded_parts_does_no_harm(mark: Any) -> None:
    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            with suppress(ValueError):
                async with message.attempt():
                    await message.append(f"Old {turn.attempt}. ")
                    raise ValueError
            await message.append(f"New {turn.attempt}. ")
            await message.update(meta={"$attempt": mark})
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt < 3 else 0)

    (answer,) = await answers_of(respond, "continue", 5, 60, 60)
    texts = [text for part in shown(answer) for text in ([part] if isinstance(part, str) else part)]
    assert texts == [f"{name} {attempt}. " for attempt in (1, 2, 3) for name in ("Old", "New")]
    assert (shown(answer)[-2:], answer.status, answer.meta) == ([["Old 3. "], "New 3. "], "complete", {})
