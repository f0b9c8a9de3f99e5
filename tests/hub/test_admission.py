"""Creation bursts: hundreds of new answers at once do not hold up text that streams.

Layer: tests.

Time is virtual. A commit takes 0.2 ms (on a slow disk 40 ms), and 0.2 ms for each channel that it creates, so large
commits delay text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tenuto.core.requests import AppendText, Caller, CreateMessage, Request
from tenuto.hub import HubCore, pending
from tenuto.hub.committer import LARGE_BYTES
from tenuto.stores.base import Committed, Conflict, Write
from tests.hub.hubs import new_hub
from tests.hub.test_pacing import Stage, Timed, now_s
from tests.virtual import virtually

ANN = Caller(id="ann")
ANSWERS = 700
TOKEN_S = 0.02


class Creating(Timed):
    """A store whose commits take longer for each created channel. It notes how many each commit creates."""

    def __init__(self, commit_s: float = 0.0002) -> None:
        super().__init__()
        self._commit_s = commit_s
        self.created: list[int] = []

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self.created.append(sum(write.expected == 0 for write in writes))
        self.takes_s = self._commit_s + 0.0002 * self.created[-1]
        return await super().commit(writes)


async def burst(hub: HubCore) -> None:
    await asyncio.gather(*(hub.create(f"new{number}", text="?") for number in range(ANSWERS)))


async def delays_beside_burst(store: Creating) -> tuple[list[float], list[float], float]:
    """Return the delays of a streaming answer before and during a burst, and the time that the burst took."""
    stage = Stage(new_hub(store))
    await stage.open(1)
    await stage.stream(50, TOKEN_S)
    await asyncio.sleep(1)
    before = stage.delays_s()[1:]
    store.created.clear()
    begun_s, streaming = now_s(), asyncio.create_task(stage.stream(50, TOKEN_S))
    await asyncio.sleep(TOKEN_S * 2.5)
    await burst(stage.hub)
    took_s = now_s() - begun_s
    await streaming
    await asyncio.sleep(1)
    during = stage.delays_s()[-50:]
    await stage.close()
    return before, during, took_s


@virtually
async def test_running_text_is_not_held_up_by_a_burst_of_creates() -> None:
    store = Creating()
    before, during, took_s = await delays_beside_burst(store)
    assert (max(store.created), sum(store.created)) == (pending.SLICE, ANSWERS)
    assert max(during) <= 1.5 * max(before)
    # The creates are not starved: each commit has a full slice, and no commit waits for another.
    assert took_s <= TOKEN_S * 2.5 + (ANSWERS / pending.SLICE + 4) * (0.0002 + 0.0002 * pending.SLICE + 0.001)


@virtually
async def test_slices_are_larger_on_a_slow_disk() -> None:
    store = Creating(commit_s=0.04)
    _, _, took_s = await delays_beside_burst(store)
    assert max(store.created) == pending.LARGEST_SLICE
    assert took_s <= TOKEN_S * 2.5 + (ANSWERS / pending.LARGEST_SLICE + 8) * (0.04 + 0.0002 * pending.LARGEST_SLICE)


@virtually
async def test_large_request_has_a_commit_of_its_own_and_smaller_ones_go_before_the_next() -> None:
    hub = new_hub(store := Creating())
    await hub.create("d", id="first", text="?")
    asked = [("a", "x" * LARGE_BYTES), ("b", "x" * LARGE_BYTES), ("b", "after"), ("d", "?"), ("a", "after")]
    asks = [hub.ask(name, f"{number}", CreateMessage(text=text), ANN) for number, (name, text) in enumerate(asked)]
    serials = [result.serial for result in await asyncio.gather(*asks)]
    assert (store.created, serials) == ([1, 0, 1, 0, 1, 0], [1, 1, 2, 2, 2])


@virtually
async def test_large_request_does_not_wait_for_ever_behind_channels_that_are_read() -> None:
    earlier = new_hub(store := Creating(commit_s=0.005))
    await asyncio.gather(*(earlier.create(f"c{number}", id="first", text="?") for number in range(500)))
    await earlier.close()
    hub = new_hub(store)
    await hub.create("large", id="first", text="?")

    async def come() -> None:
        for number in range(500):
            hub.runtime.submit(f"c{number}", "second", CreateMessage(text="?"), ANN, lambda result: None)
            await asyncio.sleep(0.001)

    coming = asyncio.create_task(come())
    await asyncio.sleep(0.05)
    begun_s = now_s()
    await hub.ask("large", "second", CreateMessage(text="x" * LARGE_BYTES), ANN)
    assert now_s() - begun_s < 0.1
    await coming


@virtually
async def test_requests_of_a_channel_keep_their_order_beside_a_burst() -> None:
    stage = Stage(hub := new_hub(Creating()))
    await stage.open(1)
    streaming = asyncio.create_task(stage.stream(30, TOKEN_S))
    await asyncio.sleep(TOKEN_S)
    bursting = asyncio.create_task(burst(hub))
    await asyncio.sleep(0)  # the creates of the burst are sent before these requests
    create = CreateMessage(role="assistant", status="streaming")
    requests: list[Request] = [create, AppendText(text="a", generation=1), AppendText(text="b", generation=1)]
    asks = [hub.ask("last", f"m{number}", request, ANN) for number in range(3) for request in requests]
    serials = [result.serial for result in await asyncio.gather(*asks)]
    await asyncio.gather(streaming, bursting)
    assert serials == sorted(serials)
    assert [(await hub.read("last", f"m{number}"))[0].text for number in range(3)] == ["ab"] * 3
