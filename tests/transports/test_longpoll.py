"""Long poll (docs/protocol.md, 6)."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from holdfast.core.events import Batch, decode_event
from holdfast.core.view import View
from tests.transports.conftest import PATIENCE_S, Served
from tests.transports.watching import NASTY, write

POLL = "/v1/channels/c/poll"


async def poll(served: Served, since: str | None = None, **query: Any) -> dict[str, Any]:
    if since is not None:
        query["since"] = since
    answer = await served.http.get(POLL, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    got: dict[str, Any] = answer.json()
    assert set(got) == {"cursor", "events"}
    return got


def kinds(answer: dict[str, Any]) -> list[str]:
    return [event["type"] for event in answer["events"]]


async def waiting(served: Served, since: str, wait_s: int = 60) -> asyncio.Task[dict[str, Any]]:
    """A poll that the server is known to wait with."""
    task = asyncio.create_task(poll(served, since, wait_s=wait_s))
    await served.until(lambda: served.hub.stats()["feeds"] == 1)
    return task


async def test_without_a_cursor_it_answers_at_once_with_a_new_start(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    answer = await poll(served)
    assert kinds(answer) == ["channel.attached", "message.update"]
    assert answer["events"][0]["resumed"] is False
    assert answer["cursor"] == (await served.hub.info("c")).cursor


async def test_behind_it_answers_at_once_with_what_was_missed_and_nothing_else(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    await served.hub.create("c", id="m2", text="two")
    answer = await poll(served, cursor)
    assert kinds(answer) == ["message.create"]


async def test_at_the_tail_it_waits_until_something_comes(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    task = await waiting(served, cursor)
    await served.hub.create("c", id="m2", text="two")
    answer = await task
    assert kinds(answer) == ["message.create"]
    assert answer["cursor"] == (await served.hub.info("c")).cursor
    assert served.hub.stats()["feeds"] == 0


async def test_a_flush_window_gathers_more_than_the_first_token(served: Served) -> None:
    served.hub.flush_ms = 200
    async with served.hub.message("c", id="m1") as message:
        await message.append("first")
        await message.flush()
        task = await waiting(served, (await poll(served))["cursor"])
        for _ in range(5):
            await message.append(" more")
            await message.flush()
        answer = await task
    assert [event["text"] for event in answer["events"]] == [" more" * 5]


async def test_at_the_time_out_there_is_nothing_and_the_cursor_stays(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    for wait_s in (0, 1):
        assert await poll(served, cursor, wait_s=wait_s) == {"cursor": cursor, "events": []}


async def test_an_empty_channel_is_told_its_epoch_when_it_has_one(served: Served) -> None:
    first = await poll(served)
    assert (first["cursor"], kinds(first)) == ("-:0", ["channel.attached"])
    assert await poll(served, "-:0", wait_s=0) == {"cursor": "-:0", "events": []}
    task = await waiting(served, "-:0")
    await served.hub.create("c", id="m1", text="one")
    answer = await task
    assert kinds(answer) == ["channel.attached", "message.create"]
    assert answer["events"][0]["resumed"] is True
    assert answer["events"][0]["epoch"] == (await served.hub.info("c")).epoch
    late = await poll(served, "-:0")
    assert kinds(late) == ["channel.attached", "message.create"]


async def test_a_foreign_epoch_is_a_new_start(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    answer = await poll(served, "foreign:1", wait_s=60)
    assert answer["events"][0]["resumed"] is False


async def test_a_deleted_channel_begins_anew(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    task = await waiting(served, (await poll(served))["cursor"])
    await served.hub.delete_channel("c")
    answer = await task
    assert (kinds(answer), answer["events"][0]["resumed"], answer["cursor"]) == (["channel.attached"], False, "-:0")


async def test_history_bounds_a_new_start(served: Served) -> None:
    for number in range(5):
        await served.hub.create("c", id=f"m{number}", text=str(number))
    answer = await poll(served, history=2)
    assert [event["message"]["id"] for event in answer["events"][1:]] == ["m3", "m4"]


async def test_a_view_fed_by_polls_shows_text_that_breaks_naive_code_as_it_is(served: Served) -> None:
    served.hub.flush_ms = 0
    view = View()

    async def write_all() -> dict[str, str]:
        return {id: await write(served.hub, "c", pieces, id=id) for id, pieces in NASTY}

    writing = asyncio.create_task(write_all())
    async with asyncio.timeout(PATIENCE_S):
        while [message.status for message in view.messages()] != ["complete"] * len(NASTY):
            answer = await served.http.get(POLL, params={"since": view.cursor} if view.cursor else {})
            raw = answer.json()
            # decoded again from its own bytes: what is compared is the wire, not a test's JSON
            events = [decode_event(httpx2.Response(200, json=event).content) for event in raw["events"]]
            view.receive(Batch(events=events, cursor=raw["cursor"]))
    texts = await writing
    assert {id: view.text(id) for id in texts} == texts


async def test_a_peer_that_leaves_while_it_waits_leaves_nothing_behind(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    _, writer = await served.connect()
    writer.write(f"GET {POLL}?since={cursor} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await served.until(lambda: served.hub.stats()["feeds"] == 1)
    writer.close()
    await served.until(lambda: served.hub.stats()["feeds"] == 0)


async def test_a_hub_that_leaves_answers_those_who_wait_and_refuses_the_next(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    task = await waiting(served, cursor)
    async with asyncio.timeout(2):
        await served.hub.drain()
        assert await task == {"cursor": cursor, "events": []}
    answer = await served.http.get(POLL, params={"since": cursor})
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["retry-after"] in ("1", "2", "3")
