"""Hooks: the app receives stored entries at least once, in order per channel, and never delays the hub."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto.core.errors import LocalError
from tenuto.hub import HubCore
from tenuto.hub.hooks import SHARE_S, HookEvent
from tenuto.stores.memory import MemoryStore
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.test_shared_turns import say
from tests.virtual import virtually

ALL = ("message.create", "message.update", "message.finish", "message.delete", "command", "command.reply")


def listen(hub: HubCore, kinds: Any = ALL, pattern: str = "chat:*", name: str = "h") -> list[HookEvent]:
    """Register a hook and return the list of events that it receives."""
    received: list[HookEvent] = []

    @hub.on(kinds, pattern, name=name)
    async def receive(event: HookEvent) -> None:
        received.append(event)

    return received


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])  # a function may await a cancelled task
@virtually
async def test_failing_hook_is_retried_in_order_and_delays_no_other_channel(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    hub, received, failures = new_hub(), list[str](), 3

    @hub.on("message.create", "chat:*", name="h")
    async def receive(event: HookEvent) -> None:
        nonlocal failures
        if event.channel == "chat:bad" and failures:
            failures -= 1
            raise error("the database is away")
        received.append(f"{event.channel} {event.id}")

    for number in range(3):
        await hub.create("chat:bad", id=f"m{number}", text="x")
    await hub.create("chat:good", id="g", text="x")
    await asyncio.sleep(0.5)
    assert received == ["chat:good g"]
    await asyncio.sleep(60)
    assert received == ["chat:good g", "chat:bad m0", "chat:bad m1", "chat:bad m2"]
    assert [(one.getMessage(), one.exc_info is not None) for one in caplog.records] == [
        (f"hook 'h' failed for chat:bad ({error.__name__}); it is tried again in 1 s", True),
        (f"hook 'h' failed for chat:bad ({error.__name__}); it is tried again in 2 s", False),
        (f"hook 'h' failed for chat:bad ({error.__name__}); it is tried again in 4 s", False),
    ]


@pytest.mark.parametrize("position", [b"\xff", b"e1:x"])
@virtually
async def test_damaged_position_stops_the_hook_in_its_channel_only_until_it_is_put_right(
    position: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    hub = new_hub(store)
    listen(hub)
    for channel in ("chat:1", "chat:2", "chat:3"):
        await hub.create(channel, id="m1", text="x")
    await asyncio.sleep(1)
    await hub.close()
    known = (await store.notes("hook/h/chat:1"))["hook/h/chat:1"]
    await store.note({f"hook/h/{channel}": position for channel in ("chat:1", "chat:3")})
    hub = new_hub(store)
    received = listen(hub)
    for channel in ("chat:1", "chat:2"):
        await hub.create(channel, id="m2", text="x")
    await asyncio.sleep(200)
    assert [(one.channel, one.id) for one in received] == [("chat:2", "m2")]
    assert (
        "hook 'h' failed for chat:1 (note 'hook/h/chat:1' with the hook's position is damaged; restore a backup, or "
        "delete the note: the hook is then called again for all of the channel); it is tried again in 60 s"
    ) in caplog.text
    assert "Traceback" not in caplog.text
    await store.note({"hook/h/chat:1": known})
    await hub.delete_channel("chat:3")
    await asyncio.sleep(60)
    assert [(one.channel, one.id) for one in received] == [("chat:2", "m2"), ("chat:1", "m2")]
    assert sorted(await store.notes("hook/h/")) == ["hook/h/chat:1", "hook/h/chat:2"]


@virtually
async def test_new_hook_receives_all_entries_but_those_stored_before_it() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await hub.create("chat:1", id="m1", text="x")
    await hub.close()
    await asyncio.sleep(1)
    again = new_hub(store)
    received = listen(again)
    await again.start()
    await asyncio.sleep(1)
    await again.create("chat:1", id="m2", text="x")
    async with again.message("chat:1", id="m3") as message:
        await asyncio.sleep(1)
        await message.append("whole")
    await again.update("chat:1", "m2", text="y")
    await again.reply("chat:1", (await again.command("chat:1", "pause", id="c")).id)
    await asyncio.sleep(1)
    await again.delete("chat:1", "m2")
    await asyncio.sleep(1)
    found = [("create", "m2"), ("create", "m3"), ("finish", "m3"), ("update", "m2"), ("delete", "m2")]
    assert [(one.type.removeprefix("message."), one.id) for one in received if one.command is None] == found
    assert [one.type for one in received if one.command is not None] == ["command", "command.reply"]
    assert (received[0].serial, received[2].message and received[2].message.text) == (2, "whole")


def test_hook_with_a_used_name_or_a_wrong_kind_or_pattern_is_refused() -> None:
    hub = new_hub()
    listen(hub, name="h")
    with pytest.raises(LocalError, match="already"):
        listen(hub, name="h")
    with pytest.raises(LocalError, match="kinds must be among"):
        listen(hub, "message.append", name="i")
    with pytest.raises(LocalError, match="pattern"):
        listen(hub, pattern="a*b", name="j")


@virtually
async def test_hook_with_another_pattern_at_each_node_is_called_for_the_channels_of_both() -> None:
    store = Shared()
    hubs = [new_hub(store, number) for number in range(3)]
    calls: list[tuple[int, str]] = []
    for place, (hub, pattern) in enumerate(zip(hubs, ("chat:*", "room:*", "room:*"), strict=True)):

        @hub.on("message.create", pattern, name="billing")
        async def bill(event: HookEvent, place: int = place) -> None:
            calls.append((place, event.id))

    for hub in hubs:
        await hub.start()
        await asyncio.sleep(0.1)
    await say(hubs[0], "room:1", "q0")
    await say(hubs[1], "chat:1", "q1")
    await asyncio.sleep(SHARE_S + 0.5)
    assert sorted(calls) == [(0, "q1"), (1, "q0")]
    await hubs[1].close()
    await say(hubs[0], "room:1", "q2")
    await asyncio.sleep(SHARE_S + 0.5)
    assert calls[2:] == [(2, "q2")]
