"""`max_bytes`: a full store refuses new messages, and running answers still end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tenuto import Hub, Turn
from tenuto.core.errors import LocalError, StillStreaming, StoreFull
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, SendCommand
from tenuto.hub import HubCore
from tests.agents.test_turns import until_over

MB = 10**6


async def _fill(hub: HubCore) -> list[str]:
    """Create messages until the store is full, and return their ids."""
    ids: list[str] = []
    with pytest.raises(StoreFull):
        while len(ids) < 40:
            ids.append((await hub.create("log:1", text="x" * (MB // 2), id=f"m{len(ids)}")).id)
    return ids


async def test_full_store_refuses_new_messages_and_lets_a_turn_end_with_its_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(f"sqlite:///{tmp_path}/chat.db", max_bytes="10MB", hooks_signals=False)
    asked, may_answer = asyncio.Event(), asyncio.Event()

    @hub.agent("chat:*")
    async def answer(turn: Turn) -> None:
        asked.set()
        await may_answer.wait()
        async with turn.reply() as reply:
            await reply.append("the answer")

    again = SendCommand(name="regenerate", target="q", options={"tools": []})
    try:
        question = await hub.create("chat:1", id="q", text="a question")
        await asked.wait()
        ids = await _fill(hub)
        with pytest.raises(
            StoreFull,
            match=r"^store has [\d,]+ bytes of data, max_bytes is 10,000,000, and the last 5% are kept for running "
            r"answers; delete messages, set retention, or raise max_bytes$",
        ) as refused:
            await hub.create("chat:2", text="another question")
        assert refused.value.details == {"limit": 10 * MB}
        assert (await hub.create("chat:1", id="q", text="a question")).id == "q"  # a repeat stores nothing
        with pytest.raises(StoreFull):
            await hub.create("log:1", role="assistant", text="of no turn", reply_to="m0")
        may_answer.set()
        *_, answered = await until_over(hub, 1)
        assert (answered.reply_to, answered.status, answered.text) == (question.id, "complete", "the answer")

        with pytest.raises(StoreFull):
            while True:  # the turn ends after its answer
                with suppress(StillStreaming):
                    await hub.ask("chat:1", command_key("c"), again, Caller())

        assert len(ids) in (18, 19)
        counts = hub.stats()
        assert 0.95 * 10 * MB <= counts["used_bytes"] <= counts["max_bytes"] == 10 * MB
        assert counts["store_full_refusals"] == 4
        (record,) = caplog.records  # of the first refusal
        assert "max_bytes is 10000000; above 9500000 new messages are refused" in record.getMessage()
    finally:
        may_answer.set()
        await hub.close()


async def test_housekeeping_warns_once_before_a_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = HubCore(f"sqlite:///{tmp_path}/chat.db", max_bytes="10MB", hooks_signals=False)
    for _ in range(18):
        await hub.create("log:1", text="x" * (MB // 2))
        hub.runtime.capacity.watch()
    (record,) = caplog.records
    assert ("above 9500000 new messages" in record.getMessage(), hub.stats()["store_full_refusals"]) == (True, 0)
    await hub.close()


async def test_an_import_that_does_not_fit_is_refused_and_leaves_no_part(tmp_path: Path) -> None:
    source = HubCore("memory://", hooks_signals=False)
    for _ in range(24):
        await source.create("chat:1", text="x" * (MB // 2))
    data = b"".join([line async for line in source.archive.export("chat:1")])
    await source.close()
    file = tmp_path / "chat.jsonl"
    await asyncio.to_thread(file.write_bytes, data)
    hub = HubCore(f"sqlite:///{tmp_path}/chat.db", max_bytes="10MB", hooks_signals=False)
    with pytest.raises(StoreFull, match=r"max_bytes is 10,000,000"):
        await hub.archive.import_file(file)
    assert (await hub.info("chat:1")).serial == 0
    assert await hub.store.notes("import:") == {}
    while not await hub.store.wipe():
        pass
    await hub.store.tidy(hub.clock.now_ms())
    await hub.create("chat:1", text="fits")
    await hub.close()


@pytest.mark.parametrize(
    ("store", "size", "said"),
    [
        ("memory://", "10GB", "max_bytes needs a store in a file"),
        ("sqlite:///unused.db", "9MB", "max_bytes must be \"10MB\" or more, got '9MB'"),
        ("sqlite:///unused.db", "10 GB", "a number and kB, MB, GB or TB, such as \"50MB\", got '10 GB'"),
        ("sqlite:///unused.db", True, "got True"),
        ("sqlite:///unused.db", -1, "got -1"),
    ],
)
def test_wrong_bounds_are_refused(store: str, size: str | int, said: str) -> None:
    with pytest.raises(LocalError, match=said):
        HubCore(store, max_bytes=size)
