"""Long poll (docs/protocol.md, 6)."""

from __future__ import annotations

import asyncio
from typing import Any

from tenuto.core.events import Cursor, parse_cursor
from tenuto.hub.access.identity import Identity, Scope, header
from tests.transports.conftest import PATIENCE_S, Served

POLL = "/v1/channels/c/poll"


async def poll(served: Served, since: str | None = None, name: str = "", **query: Any) -> dict[str, Any]:
    if since is not None:
        query["since"] = since
    response = await served.http.get(POLL, params=query, headers={"x-name": name})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/json"
    got: dict[str, Any] = response.json()
    assert set(got) == {"cursor", "events"}
    return got


def kinds(response: dict[str, Any]) -> list[str]:
    return [event["type"] for event in response["events"]]


def of_presence(cursor: str) -> Cursor:
    """Return the part of a poll's cursor with the position in the channel's presence."""
    known = parse_cursor(cursor)
    assert known is not None
    assert known.presence is not None
    return known.presence


async def waiting(served: Served) -> tuple[asyncio.Task[dict[str, Any]], str]:
    """Create a message, and return a poll behind it, once the server waits with it, and the cursor of the poll."""
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    task = asyncio.create_task(poll(served, cursor, wait_s=60))
    await served.until(lambda: served.hub.stats()["feeds"] == 1)
    return task, cursor


async def test_poll_at_the_tail_waits_for_an_event(served: Served) -> None:
    task, _ = await waiting(served)
    await served.hub.create("c", id="m2", text="two")
    response = await task
    assert kinds(response) == ["message.create"]
    assert response["cursor"].partition(":@")[0] == (await served.hub.info("c")).cursor
    assert served.hub.stats()["feeds"] == 0


async def test_disconnected_waiting_poll_leaves_no_feed(served: Served) -> None:
    await served.hub.create("c", id="m1", text="one")
    cursor = (await poll(served))["cursor"]
    _, writer = await served.connect()
    writer.write(f"GET {POLL}?since={cursor} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await served.until(lambda: served.hub.stats()["feeds"] == 1)
    writer.close()
    await served.until(lambda: served.hub.stats()["feeds"] == 0)


async def test_draining_hub_ends_waiting_polls_and_refuses_new_ones(served: Served) -> None:
    task, cursor = await waiting(served)
    async with asyncio.timeout(PATIENCE_S / 2):
        await served.hub.drain()
        assert await task == {"cursor": cursor, "events": []}
    response = await served.http.get(POLL, params={"since": cursor})
    assert (response.status_code, response.json()["code"]) == (503, "draining")
    assert response.headers["retry-after"] in ("1", "2", "3")


# Presence


async def subscriber(scope: Scope) -> Identity:
    """Return the client that the request names, with the capability `subscribe` alone."""
    name = header(scope, b"x-name") or "nobody"
    return Identity(client_id=name, capabilities=frozenset({"subscribe"}))


async def test_presence_position_counts_only_for_its_client_without_history(served: Served) -> None:
    served.hub.authenticate = subscriber
    await served.hub.create("c", id="m1", text="one")
    people = served.hub.runtime.presence
    people.enter("c", "early", "tab", {})
    people.enter("c", "ann", "tab", {})
    people.leave("c", "early", "tab", is_final=True)
    cursor = (await poll(served, name="ada"))["cursor"]
    assert await poll(served, cursor, "ada", wait_s=0) == {"cursor": cursor, "events": []}
    people.enter("c", "bob", "tab", {})
    await served.hub.create("c", id="m2", text="two")
    response = await poll(served, cursor, "ada")
    assert kinds(response) == ["message.create", "presence.enter"]
    assert await poll(served, response["cursor"], "ada", wait_s=0) == {"cursor": response["cursor"], "events": []}

    place, log = of_presence(cursor), cursor.partition("@")[0]
    earlier = place._replace(serial=2)  # a position before `early` left
    for forged in (earlier, earlier._replace(extra=""), place._replace(extra=""), place._replace(extra="h" * 23)):
        response = await poll(served, f"{log}@{forged}", "ada")
        assert kinds(response) == ["message.create", "presence.sync"]
    theirs = of_presence((await poll(served, name="eve"))["cursor"])
    assert kinds(await poll(served, f"{log}@{theirs}", "ada")) == ["message.create", "presence.sync"]
    attached = (await poll(served, cursor, "eve"))["events"][0]  # the whole cursor is invalid for another client
    assert (attached["type"], attached["resumed"]) == ("channel.attached", False)
