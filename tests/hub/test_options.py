"""The options of clients beside their messages: stored once, never sent to a viewer, exported and forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from msgspec import ValidationError, convert
from msgspec.structs import replace

from tenuto.core.errors import IdConflict, InvalidRequest, NotFound, TooLarge
from tenuto.core.model import OPTIONS_KEY, Message
from tenuto.core.requests import Caller, CreateMessage, DeleteMessage, UpdateMessage, references, stored_options
from tenuto.hub import HubCore
from tests.core.harness import nested
from tests.hub.hubs import new_hub
from tests.hub.test_export import exported, lines_of
from tests.virtual import virtually

CHANNEL = "chat:1"
ANN = Caller(id="ann")
TOOLS = [{"type": "function", "name": "weather", "description": "x" * 2_000}]
OPTIONS = {"tools": TOOLS, "temperature": 0.5}


async def ask(hub: HubCore, id: str, options: dict[str, Any], caller: Caller = ANN) -> Message:
    await hub.start()
    result = await hub.ask(CHANNEL, id, CreateMessage(text=id, options=options), caller)
    assert result.message is not None
    return result.message


async def read_back(hub: HubCore, id: str) -> dict[str, Any]:
    question, _ = await hub.read(CHANNEL, id)
    kept = [(await hub.read(CHANNEL, one))[0] for one in references(question.meta).values()]
    return stored_options(question.meta, kept)


async def stored(hub: HubCore) -> list[str]:
    facts = (await hub.store.facts(CHANNEL, after=0, limit=99)).facts
    return [one.id for one in facts if one.id.startswith("options-")]


async def test_value_is_part_of_an_export_and_goes_with_its_person(hub: HubCore, tmp_path: Path) -> None:
    await ask(hub, "q1", OPTIONS)
    await ask(hub, "q2", OPTIONS)
    data = await exported(hub)
    assert [one.get("role") for one in lines_of(data)[1:-1]] == ["options", "user", "user"]
    path = tmp_path / "chat.jsonl"
    path.write_bytes(data)
    await hub.delete_channel(CHANNEL)
    await hub.archive.import_file(path)
    assert (await exported(hub), await read_back(hub, "q2")) == (data, OPTIONS)
    await hub.create(CHANNEL, id="other", text="by bob", author="bob")
    await hub.archive.forget("ann")
    assert await stored(hub) == []
    await ask(hub, "q4", OPTIONS)  # the id of the value is free again
    assert await read_back(hub, "q4") == OPTIONS


@virtually
async def test_values_go_with_retention_after_their_author_has_deleted_the_last_question_with_them() -> None:
    hub = new_hub(retention={"*": "1d"})
    for number in range(20):
        await ask(hub, f"q{number}", OPTIONS)
        await asyncio.sleep(3600)
    for number in range(19):
        await hub.ask(CHANNEL, f"q{number}", DeleteMessage(), ANN)
    await asyncio.sleep(12 * 3600)
    assert await read_back(hub, "q19") == OPTIONS
    await hub.ask(CHANNEL, "q19", DeleteMessage(), ANN)
    await asyncio.sleep(600)
    assert await stored(hub) == []


@virtually
async def test_a_round_reads_the_messages_once_to_remove_many_values_and_removes_none_that_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = new_hub(retention={"*": "1d"})
    page, prune = AsyncMock(wraps=hub.store.page), AsyncMock(wraps=hub.store.prune)
    monkeypatch.setattr(hub.store, "page", page)
    monkeypatch.setattr(hub.store, "prune", prune)
    for number in range(200):
        await ask(hub, f"q{number}", {"instructions": f"{number} " * 300})
    await asyncio.sleep(12 * 3600)
    for number in range(100):
        await ask(hub, f"r{number}", OPTIONS)
    await asyncio.sleep(12 * 3600 + 3000)
    assert (len(await stored(hub)), page.await_count < 40) == (1, True)
    await asyncio.sleep(12 * 3600 - 6000)
    await ask(hub, "last", OPTIONS)
    await asyncio.sleep(8000)
    page.reset_mock()
    prune.reset_mock()
    await asyncio.sleep(3000)
    assert (len(await stored(hub)), page.await_count, prune.await_count) == (1, 10, 0)


async def test_values_of_deleted_questions_go_with_their_person(hub: HubCore) -> None:
    await ask(hub, "q1", OPTIONS)
    await hub.create(CHANNEL, id="other", text="by bob", author="bob")
    await hub.ask(CHANNEL, "q1", DeleteMessage(), ANN)
    assert len(await stored(hub)) == 1
    await hub.archive.forget("ann")
    assert await stored(hub) == []


async def test_value_is_read_after_a_restart_and_is_not_stored_again(tmp_path: Path) -> None:
    for number in range(2):
        hub = HubCore(f"sqlite:///{tmp_path}/hub.db", hooks_signals=False, drain_s=0.2)
        await asyncio.gather(*(ask(hub, f"q{number}.{one}", OPTIONS) for one in range(3)))
        assert await read_back(hub, "q0.0") == OPTIONS
        assert len(await stored(hub)) == 1
        await hub.close()


async def test_value_cannot_be_written_or_removed_by_clients(hub: HubCore) -> None:
    (kept,) = references((await ask(hub, "q1", OPTIONS)).meta).values()
    with pytest.raises(NotFound):
        await hub.ask(CHANNEL, kept, DeleteMessage(), ANN)
    with pytest.raises(IdConflict):
        await hub.ask(CHANNEL, kept, CreateMessage(text="mine"), ANN)
    with pytest.raises(InvalidRequest, match="role must be"):
        await hub.create(CHANNEL, role="options", text="x")
    with pytest.raises(ValidationError):
        convert({"role": "options"}, CreateMessage)


async def test_key_of_meta_with_the_values_is_the_servers_alone(hub: HubCore) -> None:
    asked = await ask(hub, "q1", {**OPTIONS, "seed": 7})
    forged = {OPTIONS_KEY: {"temperature": 2, "kept": {"tools": "bad id!"}}, "a": 1}
    result = await hub.ask(CHANNEL, "q2", CreateMessage(text="q2", meta=forged), ANN)
    assert result.message is not None
    assert (result.message.meta, await read_back(hub, "q2")) == ({"a": 1}, {})
    await hub.ask(CHANNEL, "q3", CreateMessage(text="q3", meta=forged, options=OPTIONS), ANN)
    assert await read_back(hub, "q3") == OPTIONS
    for changed in (forged, {OPTIONS_KEY: None}):
        await hub.ask(CHANNEL, "q1", UpdateMessage(meta=changed), ANN)
    assert (await hub.read(CHANNEL, "q1"))[0].meta == {**asked.meta, "a": 1}
    assert await read_back(hub, "q1") == {**OPTIONS, "seed": 7}


async def test_edit_repeats_the_values_of_its_author_alone(hub: HubCore) -> None:
    asked = await ask(hub, "q1", OPTIONS)
    for id, caller, found in (("q2", ANN, OPTIONS), ("q3", replace(ANN, id="bob"), {})):
        hub.runtime.forget(CHANNEL)  # the values are in the store alone
        await hub.ask(CHANNEL, id, CreateMessage(text=id, meta=asked.meta, parent=asked.parent), caller)
        assert await read_back(hub, id) == found


@pytest.mark.parametrize("damaged", [{"kept": {"tools": "bad id!"}}, {"kept": ["x"]}, [1], "x", 1])
def test_damaged_values_count_as_none(damaged: object) -> None:
    meta = {OPTIONS_KEY: damaged}
    assert (references(meta), stored_options(meta, [])) == ({}, {})


async def test_values_above_the_limit_are_refused_before_anything_is_stored(hub: HubCore) -> None:
    with pytest.raises(TooLarge, match=r"options of the request have 60\d{4} bytes.*Limits.options_bytes") as refused:
        await ask(hub, "q1", {"tools": [{"name": "x" * 600_000}]})
    assert refused.value.details["limit"] == 512 * 1024
    for wrong in ({"kept": {}}, {"": 1}, {"x": nested(70)}, {"x": float("nan")}):
        with pytest.raises(InvalidRequest):
            await ask(hub, "q1", wrong)
    assert await hub.store.channels(after=None, limit=1) == []
