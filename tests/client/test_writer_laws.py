"""The law of writing over a network: the stored message is exactly the accepted content, after any failure.

Layer: tests.

`tests/core/test_outgoing.py` checks the law on the state machine alone. Here the writer, the link and the hub are real.
Connections end after a drawn number of frames, the last frame may be lost, and the server refuses drawn requests as a
busy one does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tenuto import Hub
from tenuto.client import RemoteWriter
from tenuto.portal import Attempt
from tests.client.wire import PATIENCE_S, Wire, client_of, memory_hub
from tests.core.writing import Action, Expected, Made, contents
from tests.virtual import virtually

REFUSALS = ["busy", "store_unavailable", "too_many"]

rests = st.tuples(st.sampled_from(["flush", "yield"]), st.none())
actions = st.lists(st.one_of(contents, rests), max_size=25)
lives = st.lists(st.integers(1, 12), max_size=12)
refusals = st.lists(st.booleans(), max_size=20)


async def write(writer: RemoteWriter, attempt: Attempt, expected: Expected, todo: list[Action]) -> None:
    for action in todo:
        if action[0] == "flush":
            await writer.flush()
        elif action[0] == "yield":
            await asyncio.sleep(0)
        else:
            for method, given, made in expected.accept(action):
                arguments = [one.index if isinstance(one, Made) else one for one in given]
                match method:
                    case "append":
                        await writer.append(arguments[0], part=arguments[1])
                    case "part":
                        index = await writer.part(arguments[0], index=arguments[1])
                        if made is not None:
                            made.index = index
                    case "update":
                        await writer.update(meta=arguments[0])
                    case "begin":
                        await attempt.__aenter__()
                    case "end":
                        await attempt.__aexit__(None, None, None)
                    case "fail":
                        await attempt.__aexit__(ValueError, ValueError("the model broke"), None)


def refusing(refused: list[bool]) -> Any:
    """Return a function that refuses the requests whose numbers are in `refused`."""
    numbers = iter(range(1_000_000))

    def refuse(frame: dict[str, Any]) -> str | None:
        if frame["type"] in ("pong", "attach", "detach"):
            return None
        number = next(numbers)
        return REFUSALS[number % 3] if number < len(refused) and refused[number] else None

    return refuse


async def write_and_view(hub: Hub, todo: list[Action], cuts: list[int], refused: list[bool]) -> None:
    wire, viewers = Wire(hub, cuts), Wire(hub, reversed(cuts))
    wire.refuse = refusing(refused)
    async with asyncio.timeout(PATIENCE_S), client_of(wire) as client, client_of(viewers) as other:
        view = other.channel("c")
        expected = Expected()
        async with client.message("c") as message:
            await write(message, message.attempt(), expected, todo)
        stored, _ = await hub.read("c", message.id)
        expected.check(stored)
        async for _ in view:
            if view.messages == [stored]:
                break
        assert view.gaps == 0
    await wire.end()
    await viewers.end()


# A refused request goes again behind those that were in flight with it: the last value must stay the last.
@example([("bar", 1), ("bar", 2), ("bar", 3)], [], [False, True])
@example([("meta", {"a": 1}), ("meta", {"a": 2})], [], [True])
@given(actions, lives, refusals)
def test_accepted_content_survives_cuts_and_refusals(todo: list[Action], cuts: list[int], refused: list[bool]) -> None:
    @virtually
    async def run() -> None:
        hub = memory_hub(flush_ms=0)
        await write_and_view(hub, todo, cuts, refused)
        await hub.close()

    run()


# All accepted content may be there already, with no request left.
@example([], [("meta", {"a": None}), ("flush", None)], [])
# An attempt that failed begins once more.
@example([("begin", None), ("fail", None), ("begin", None), ("append", "")], [], [])
# No text goes to the part that stands for an attempt of the lost log.
@example(
    [("begin", None), ("bar", 0), ("fail", None), ("think", "the ")], [("flush", None), ("append", "x"), ("bar", 1)], []
)
@given(actions, actions, lives)
def test_lost_log_is_written_again(before: list[Action], after: list[Action], cuts: list[int]) -> None:
    @virtually
    async def run() -> None:
        first, second = memory_hub(), memory_hub()
        wire = Wire(first, cuts)
        expected = Expected({"kept": 1})
        async with asyncio.timeout(PATIENCE_S), client_of(wire) as client:
            async with client.message("c", meta={"kept": 1}) as message:
                attempt = message.attempt()
                await write(message, attempt, expected, before)
                wire.app = second
                wire.cut()
                await write(message, attempt, expected, after)
            stored, _ = await second.read("c", message.id)
            expected.check(stored, may_lose=True)
        await wire.end()
        await first.close()
        await second.close()

    run()
