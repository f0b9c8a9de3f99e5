"""Ordinary mistakes in calls of the hub: each is refused where it is made, with the remedy.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tenuto import Hub, Identity
from tenuto.core.errors import LocalError
from tenuto.hub import HubCore

# Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        (
            {"store": None},
            "store must be a URL such as 'sqlite:///chat.db' or 'memory://', or a store object, got None",
        ),
        ({"store": Path("chat.db")}, "store must be a URL, got the path 'chat.db'; use Hub(f'sqlite:///{path}')"),
        ({"authenticate": "jwt"}, "authenticate must be an async function of the scope"),
        ({"authenticate": Identity}, "authenticate must be an async function of the scope"),
        ({"drain_s": -1}, "drain_s must be a number of seconds, 0 or more, got -1"),
        ({"drain_s": float("nan")}, "drain_s must be a number of seconds"),
        ({"drain_s": "5"}, "drain_s must be a number of seconds"),
        ({"flush_ms": -1}, "flush_ms must be a whole number of milliseconds, 0 or more, got -1"),
        ({"flush_ms": 0.5}, "flush_ms must be a whole number of milliseconds"),
        ({"limits": {"parts": 5}}, "limits must be a Limits"),
        ({"client_limits": 5}, "client_limits must be a ClientLimits"),
        ({"debug": "yes"}, "debug must be True, False or None, got 'yes'"),
    ],
)
def test_invalid_setting_is_refused_by_the_constructor_of_the_hub(settings: dict[str, Any], detail: str) -> None:
    with pytest.raises(LocalError) as raised:
        Hub(**{"store": "memory://", **settings})
    assert detail in raised.value.detail


# Tasks ------------------------------------------------------------------------------------------------------------


async def words() -> AsyncIterator[str]:
    yield "word"


@pytest.mark.parametrize("job", [words(), words, iter("a"), None], ids=range(4))
async def test_start_task_accepts_coroutines_only(hub: HubCore, job: Any) -> None:
    await hub.start()
    with pytest.raises(LocalError, match="got"):
        hub.start_task(job)


# Writers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "call", "effect"),
    [
        (lambda message: message.append("two "), "append(text)", "its text is missing"),
        (lambda message: message.pipe(words()), "pipe(stream)", "its text is missing"),
        (lambda message: message.finish("failed"), "finish()", "it had no effect"),
        (lambda message: message.update(meta={"a": 1}), "update(meta=meta)", "it had no effect"),
        (lambda message: message.part({"type": "text", "text": "x"}), "part(part)", "it had no effect"),
    ],
)
@pytest.mark.parametrize("times", ["once", "2 times"])
async def test_call_without_await_fails_the_block(hub: HubCore, begin: Any, call: str, effect: str, times: str) -> None:
    with pytest.raises(LocalError) as raised:
        async with hub.message("chat:1", id="m") as message:
            await message.append("one ")
            calls = [begin(message) for _ in range(1 if times == "once" else 2)]
    for one in calls:
        one.close()
    assert raised.value.detail == (
        f"the {call.partition('(')[0]} to message 'm' was called {times} without await, so {effect}; "
        f"write `await message.{call}`"
    )
    stored, _ = await hub.read("chat:1", "m")
    assert (stored.status, stored.reason, stored.text) == ("failed", "misuse", "one ")


async def test_finish_reports_an_append_without_await(hub: HubCore) -> None:
    with pytest.raises(LocalError, match="without await"):
        async with hub.message("chat:1", id="m") as message:
            message.append("one").close()  # without Python's own warning
            await message.finish()
    assert (await hub.read("chat:1", "m"))[0].status == "failed"


async def test_error_of_the_block_is_raised_rather_than_the_one_for_a_missing_await(hub: HubCore) -> None:
    with pytest.raises(ZeroDivisionError):
        async with hub.message("chat:1") as message:
            message.append("one").close()
            raise ZeroDivisionError
