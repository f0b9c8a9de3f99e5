"""The reason of a failed message names the exception in development, and only there.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tenuto import Hub, Turn, allow_everyone
from tenuto.core.events import MessageFinish
from tenuto.development import failure_reason


class CardRefused(Exception):
    """An exception of the app."""


async def reasons(**settings: Any) -> list[str | None]:
    """Return the reasons of messages whose block failed, and of an answer whose handler failed before it began."""
    hub = Hub("memory://", hooks_signals=False, **settings)

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        raise CardRefused("of customer 4711")

    with pytest.raises(CardRefused):
        async with hub.message("other", id="m"):
            raise CardRefused("of customer 4711")
    with pytest.raises(json.JSONDecodeError):
        async with hub.message("other", id="n"):
            json.loads("{")
    await hub.create("chat:1", text="hi")
    async with asyncio.timeout(60):
        async for event in hub.subscribe("chat:1"):
            if isinstance(event, MessageFinish):
                break
    answer = next(one for one in (await hub.history("chat:1")).messages if one.role == "assistant")
    found = [(await hub.read("other", name))[0].reason for name in ("m", "n")] + [answer.reason]
    await hub.close()
    return found


async def test_hub_without_a_verifier_names_the_exception_and_the_line_of_the_app() -> None:
    found = await reasons()
    for reason, kind in zip(found, ("tests.CardRefused", "json.JSONDecodeError", "tests.CardRefused"), strict=True):
        assert re.fullmatch(rf"{kind} in test_development\.py, line \d+", reason or "")


@pytest.mark.parametrize("settings", [{"authenticate": allow_everyone}, {"debug": False}])
async def test_hub_with_a_verifier_or_without_debug_does_not_name_the_exception(settings: dict[str, Any]) -> None:
    assert await reasons(**settings) == [None, None, "error"]


async def test_debug_adds_the_text_of_the_exception() -> None:
    found = await reasons(authenticate=allow_everyone, debug=True)
    assert [(reason or "").partition(": ")[2] for reason in found] == [
        "of customer 4711",
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "of customer 4711",
    ]


class Rude(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("text", ["x" * 5_000, "a\nb\x1b[31m\ud800", ""])
def test_reason_is_one_short_line_that_can_be_stored(text: str) -> None:
    reason = failure_reason(KeyError(text), debug=True, is_development=False)
    assert reason is not None
    assert len(reason) <= 200
    assert reason.isprintable()
    assert reason.encode()
    assert failure_reason(Rude(), debug=True, is_development=False) == "tests.Rude"
