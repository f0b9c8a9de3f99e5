"""Attacks by one known person who stays within the rates of requests and moves as many bytes as the server allows.

Layer: tests.

Without a cost by bytes one person read pages of 147 MiB/s, wrote 64 MiB/s to the disk, and sent 1.5 GB of edits to ten
viewers in 8 s. Each bound here is that of `hub.rates`: the traffic of a full bucket and of its refill meanwhile,
and the requests that were under way when the bucket was empty. Afterwards the memory comes back, but for stored
messages, which stay in memory while their channel is in use.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.attacks.scene import ATTACK_S, MIB, PERSON, Scene, ask, run, token, writer_token

# A hundred requests at once and fifty a second, of 128 KiB each.
PAID_BYTES = (100 + 50 * (ATTACK_S + 1)) * MIB / 8
CHANNEL = "crowded"
MESSAGES = f"/v1/channels/{CHANNEL}/messages"
TEXT_BYTES = 1_000_000  # with its body below a MiB


async def publish(one: Scene, count: int, size: int, bearer: str) -> None:
    """Store `count` messages with a text of `size` bytes each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    for number in range(count):
        body = {"id": f"m{number}", "text": "x" * size}
        status, response = await ask(reader, writer, "POST", MESSAGES, body, bearer)
        assert status == 201, response
    writer.close()


def stored_bytes(one: Scene) -> int:
    """Return the size of the store's file and of its log."""
    return sum(path.stat().st_size for path in one.server.store.parent.glob("attacked.db*"))


def attacker() -> str:
    return token("attacker", PERSON)


async def test_large_pages_cost_the_rate_of_their_bytes(attacked: Scene) -> None:
    await publish(attacked, 200, 10_000, writer_token())
    options: dict[str, Any] = {"path": f"{MESSAGES}?limit=200", "bearer": attacker(), "connections": 4}
    # The heap keeps the room of the most pages at once, so more are at once before than in the attack.
    earlier = {**options, "bearer": token("earlier", PERSON), "seconds": 2, "connections": 8}
    await attacked.attack("within_rates", asyncio.Event(), **earlier)
    outcome = await run(attacked, "within_rates", **options)
    outcome.check(64 * MIB)
    assert outcome.report["statuses"]["200"] >= 4, outcome
    assert outcome.report["bytes"] < PAID_BYTES + 4 * 2 * MIB, outcome
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30, outcome


async def test_large_messages_cost_the_rate_of_their_bytes(attacked: Scene) -> None:
    before = stored_bytes(attacked)
    options = {"path": MESSAGES, "method": "POST", "text_bytes": TEXT_BYTES, "bearer": attacker()}
    outcome = await run(attacked, "within_rates", **options)
    outcome.check(64 * MIB)
    assert outcome.report["statuses"]["201"] >= 4, outcome
    assert 2 * outcome.report["bytes"] < PAID_BYTES + 2 * 2 * MIB, outcome
    # Half of the traffic is the responses. The log and the file hold the text once each, until the log is reset.
    assert stored_bytes(attacked) - before < 2 * (PAID_BYTES / 2 + 2 * MIB) + 8 * MIB, outcome


async def test_aborted_bodies_cost_the_rate_of_their_bytes(attacked: Scene) -> None:
    options = {"path": MESSAGES, "bearer": attacker(), "size": TEXT_BYTES}
    # The heap grows once with the first bodies of known clients, by 15 %, and keeps that room. It must not grow again.
    earlier = {**options, "bearer": token("earlier", PERSON), "seconds": 2}
    await attacked.attack("aborted_bodies", asyncio.Event(), **earlier)
    outcome = await run(attacked, "aborted_bodies", **options)
    outcome.check(64 * MIB)
    assert 4 * TEXT_BYTES < outcome.report["bytes"] < PAID_BYTES + 8 * MIB, outcome
    assert outcome.report["refused"], outcome
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30, outcome


async def test_edits_cost_the_rate_of_their_bytes_to_each_viewer(attacked: Scene) -> None:
    await publish(attacked, 1, 10, attacker())
    options = {
        "path": f"{MESSAGES}/m0",
        "method": "PATCH",
        "text_bytes": TEXT_BYTES,
        "bearer": attacker(),
        "viewers": 10,
        "viewer": token("viewer", PERSON),
        "watched": CHANNEL,
    }
    outcome = await run(attacked, "within_rates", **options)
    outcome.check_with_cpu_time(128 * MIB)
    assert outcome.report["statuses"]["200"] >= 2, outcome
    assert 10 * MIB < outcome.report["watched"] < PAID_BYTES + 2 * 10 * MIB, outcome
