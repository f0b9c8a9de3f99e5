"""The waits of a WebSocket under `tenuto serve` behave as those of asyncio, in whatever order they are used."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto.server.bounded_websocket import Gate, Inbox

Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["wait", "wait", "cancel", "give", "give", "clear", "pass"]), st.integers(0, 3))
)


async def results(queue: Any, event: Any, plan: list[Step]) -> list[object]:
    """Carry out `plan` on both, and return in order who got which message, and who passed the event."""
    log: list[object] = []
    waiting: list[asyncio.Task[None]] = []

    async def take(number: int) -> None:
        log.append((number, await queue.get(), queue.empty()))

    async def go_through(number: int) -> None:
        log.append((number, await event.wait(), event.is_set()))

    for number, (do, which) in enumerate([*plan, ("pass", 0), ("pass", 0)]):
        match do:
            case "wait":
                waiting += [asyncio.ensure_future(take(number)), asyncio.ensure_future(go_through(number))]
            case "cancel" if waiting:
                waiting[which % len(waiting)].cancel()
            case "give":
                queue.put_nowait(number)
                event.set()
            case "clear":
                event.clear()
            case _:
                for _ in range(3):
                    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    left = []
    while not queue.empty():
        left.append(await queue.get())
    return [*log, left, event.is_set()]


@settings(max_examples=100, deadline=None)
@given(steps)
def test_waits_equal_those_of_asyncio(plan: list[Step]) -> None:
    async def both() -> tuple[list[object], list[object]]:
        return await results(Inbox(), Gate(is_open=False), plan), await results(asyncio.Queue(), asyncio.Event(), plan)

    ours, known = asyncio.run(both())
    assert ours == known
