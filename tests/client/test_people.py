"""Plain calls, presence, commands, signals and turns, on a real hub, over connections that come and go.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto import Hub
from tenuto.client import ChannelView, ClaimedTurn, Client
from tenuto.core import errors
from tests.client.script import Script, message_of
from tests.client.script import client_of as scripted
from tests.client.wire import Wire, becomes, client_of, until
from tests.virtual import virtually


def data_of(view: ChannelView) -> dict[str, dict[str, Any]]:
    return {member.id: member.data for member in view.members}


# Plain calls ------------------------------------------------------------------------------------------------------


async def test_a_message_is_changed_and_deleted(client: Client) -> None:
    made = await client.create("c", parts=[{"type": "text", "text": "Hi"}], meta={"a": 1, "b": 2})
    changed = await client.update("c", made.id, text="Ho", meta={"a": None}, if_version=made.version)
    assert (changed.text, changed.meta) == ("Ho", {"b": 2})
    with pytest.raises(errors.VersionConflict) as conflict:
        await client.update("c", made.id, text="He", if_version=made.version)
    assert conflict.value.details == {"version": changed.version}
    await client.delete("c", made.id)
    await client.delete("c", made.id)
    with pytest.raises(errors.Deleted):
        await client.read("c", made.id)


async def test_response_of_a_wrong_form_names_the_field() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"message": 5, "cursor": ""}'})

    async with client_of(Wire(app)) as client:
        with pytest.raises(errors.TenutoError, match=r"`int`.*\$\.message"):
            await client.read("c", "m")


# Presence ---------------------------------------------------------------------------------------------------------


async def test_presence_is_kept_over_connections(hub: Hub, client: Client) -> None:
    wire = Wire(hub)
    async with client_of(wire, client_id="ada") as ada, client.channel("c") as view:
        async with ada.presence("c", {"tab": 1}) as here:
            await until(view, lambda: data_of(view) == {"ada": {"tab": 1}})
            assert [member.id for member in await client.members("c")] == ["ada"]
            for number in range(2, 5):
                dials = wire.dials
                wire.cut()
                await here.update({"tab": number})
                assert wire.dials > dials
                await until(view, lambda number=number: data_of(view) == {"ada": {"tab": number}})  # type: ignore[misc]
        await until(view, lambda: view.member_count == 0)
    await wire.end()


async def test_member_of_another_client_is_refused(wire: Wire) -> None:
    async with client_of(wire, client_id="ada") as ada:
        async with ada.presence("c", {}, member="ada~phone"):
            pass
        with pytest.raises(errors.InvalidName):
            ada.presence("c", {}, member="no name")
        with pytest.raises(errors.TooLarge):
            ada.presence("c", {"x": "y" * 5000})
        with pytest.raises(errors.LocalError):
            await ada.presence("c").update({})


# Signals and commands ---------------------------------------------------------------------------------------------


async def test_signal_reaches_present_clients(wire: Wire, client: Client) -> None:
    async with client_of(wire, client_id="ada") as ada, client.channel("c") as view, asyncio.timeout(60):
        changes = aiter(view)
        await anext(changes)
        await ada.signal("c", "typing", {"on": True})
        (signal,) = (await anext(changes)).signals
        assert (signal.name, signal.data, signal.from_) == ("typing", {"on": True}, "ada")


async def test_command_is_visible_and_gets_one_reply(wire: Wire, client: Client) -> None:
    async with client_of(wire, client_id="ada") as ada, client.channel("c") as view:
        command = await ada.command("c", "approve", data={"amount": 3}, expires_s=60)
        assert (command.name, command.data, command.from_) == ("approve", {"amount": 3}, "ada")
        await until(view, lambda: view.commands == [command])
        changes = aiter(view)
        await anext(changes)
        await client.reply("c", command.id, ok=False, error={"code": "too_much"})
        async with asyncio.timeout(60):
            (reply,) = (await anext(changes)).replies
        assert (reply.id, reply.ok, reply.error) == (command.id, False, {"code": "too_much"})
        assert view.commands == []
        with pytest.raises(errors.AlreadyAnswered):
            await ada.reply("c", command.id)
        with pytest.raises(errors.NotFound):
            await ada.reply("c", "other")


# Turns ------------------------------------------------------------------------------------------------------------


@virtually
async def test_lost_turn_cancels_its_handler() -> None:
    script = Script()
    turns: asyncio.Queue[ClaimedTurn] = asyncio.Queue()

    async def on_turn(turn: ClaimedTurn) -> None:
        turns.put_nowait(turn)
        await asyncio.Event().wait()

    async with scripted(script) as client, asyncio.timeout(60):
        options: Any = {"slots": 3, "name": "bot~1", "when_busy": "parallel"}
        task = asyncio.create_task(client.work("chat:*", on_turn=on_turn, **options))
        socket = await script.socket()
        work = await socket.frame()
        assert work == {"type": "work", "ref": work["ref"], "pattern": "chat:*", **options}
        socket.say(type="ok", ref=work["ref"])
        message = message_of("q", role="user", status="complete")
        socket.say(type="turn", channel="chat:1", message=message, generation=2, lease_s=0.03)
        turn = await turns.get()
        for _ in range(2):
            renewal = await socket.frame()
            assert (renewal["type"], renewal["message"], renewal["generation"]) == ("turn.renew", "q", 2)
        socket.say(type="error", ref=renewal["ref"], code="fenced", generation=3)
        await becomes(lambda: turn.is_lost)
        assert turn.task is not None
        await asyncio.wait([turn.task])
        task.cancel()
        assert (await socket.frame("work"))["slots"] == 0


async def test_refused_request_for_work_is_raised(client: Client) -> None:
    async def never(turn: ClaimedTurn) -> None:
        raise AssertionError

    with pytest.raises(errors.LocalError, match="star only at the end"):
        await client.work("chat*", on_turn=never)
    with pytest.raises(errors.LocalError):
        await client.work("chat:*", slots=0, on_turn=never)
    with pytest.raises(errors.InvalidRequest):
        await client.work("chat:*", when_busy="sleep", on_turn=never)
