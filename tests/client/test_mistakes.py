"""Mistakes of programs that use the client: each fails with the remedy, and an agent's failure names its exception.

Layer: tests.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest

from tenuto import Hub, Turn, allow_everyone
from tenuto.client import Client
from tenuto.core.errors import LocalError
from tests.client.test_agents import until_answered, working
from tests.client.wire import Wire, client_of

# Writers in a plain `with` ---------------------------------------------------------------------------------------


async def test_writer_in_a_plain_with_is_refused_with_the_remedy(client: Client) -> None:
    writer: Any = client.message("c")
    with pytest.raises(LocalError) as raised, writer:
        pass
    assert raised.value.detail == (
        "client.message needs `async with client.message(...) as message`; without async use "
        "`with hub.sync.message(...) as message`, or SyncClient"
    )


# `append` without await ------------------------------------------------------------------------------------------


async def test_message_that_was_cancelled_with_a_forgotten_append_fails_its_block(hub: Hub, client: Client) -> None:
    for one in (client.message("c", id="m"), hub.message("c", id="n")):
        with pytest.raises(LocalError, match="without await"):
            async with one as message:
                message.append("one").close()
                await message.finish("cancelled")
        assert (await hub.read("c", message.id))[0].status == "cancelled"


@pytest.mark.parametrize("is_local", [True, False])
async def test_open_answer_with_a_forgotten_append_ends_with_its_turn(hub: Hub, wire: Wire, is_local: bool) -> None:
    client = client_of(wire, client_id="bot")
    hub.drain_s = 0.0  # no block ends the answer, so its end would wait for all of it

    @(hub if is_local else client).agent("chat:*")
    async def bot(turn: Turn) -> None:
        message: Any = turn.reply()
        await message.__aenter__()  # entered without an `async with` block
        message.append("forgotten").close()

    async with nullcontext() if is_local else working(client, hub):
        await hub.create("chat:1", text="hi")
        (answer,) = await until_answered(hub)
    assert answer.status == "failed"


# The reason of an agent's failure --------------------------------------------------------------------------------


class CardRefused(Exception):
    """An exception of the app."""


async def reasons(of_agent: bool | None, **settings: Any) -> list[str | None]:
    """Return the reasons of two answers of an agent that raises: before it begins one, and within its block."""
    hub = Hub("memory://", hooks_signals=False, **settings)
    await hub.start()
    wire = Wire(hub)
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*", debug=of_agent)
    async def bot(turn: Turn) -> None:
        if turn.text == "before":
            raise CardRefused("of customer 4711")
        async with turn.reply():
            raise CardRefused("of customer 4711")

    async with working(client, hub):
        for count, text in enumerate(("before", "within"), 1):
            await hub.create("chat:1", text=text)
            answers = await until_answered(hub, count)
    await wire.end()
    await hub.close()
    return [one.reason for one in answers]


NAMED = r"tests\.CardRefused in test_mistakes\.py, line \d+"
PRODUCTION: dict[str, Any] = {"authenticate": allow_everyone}


@pytest.mark.parametrize(
    ("debug", "settings", "before", "within"),
    [
        (None, {}, NAMED, NAMED),
        (True, PRODUCTION, NAMED + ": of customer 4711", NAMED + ": of customer 4711"),
        (None, PRODUCTION, "error", ""),
        (None, {"debug": False}, "error", ""),
        (False, {}, "error", ""),
    ],
)
async def test_agent_of_a_hub_in_production_does_not_name_the_exception(
    debug: bool | None, settings: dict[str, Any], before: str, within: str
) -> None:
    for expected, reason in zip((before, within), await reasons(debug, **settings), strict=True):
        assert re.fullmatch(expected, reason or "")


def test_debug_of_an_agent_is_a_bool_or_none() -> None:
    client: Any = Client("http://localhost")
    with pytest.raises(LocalError, match="debug must be True, False or None, got 'yes'"):
        client.agent("chat:*", debug="yes")(None)
