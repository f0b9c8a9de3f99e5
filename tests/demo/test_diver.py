"""The diver: a process that works over the network, may be killed at any moment, and never outlives its server."""

from __future__ import annotations

import os
import select
import signal
from typing import Any

import pytest

from tests.processes import Server, text_of

CHANNEL = "demo:test"
PATIENCE_S = 20.0


def call_diver(demo: Server) -> int:
    """Return the process id of the diver in CHANNEL."""
    status, response = demo.post("/demo/diver", {"channel": CHANNEL})
    assert status == 200, response
    pid: int = response["pid"]
    return pid


def has_ended(pid: int) -> bool:
    """Wait until a process has ended, also one that is not a child of this process."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(PATIENCE_S * 1000))
    finally:
        os.close(handle)


def follow(demo: Server, is_wanted: Any) -> dict[str, Any]:
    """Wait like a viewer until the answer in CHANNEL `is_wanted`, and return it."""
    cursor = ""
    for _ in range(2_000):
        _, page = demo.get(f"{demo.hub}/v1/channels/{CHANNEL}/messages")
        for message in page["messages"]:
            if message["role"] == "assistant" and is_wanted(message):
                found: dict[str, Any] = message
                return found
        cursor = cursor or page["cursor"]
        _, polled = demo.get(f"{demo.hub}/v1/channels/{CHANNEL}/poll?since={cursor}&wait_s=10")
        cursor = polled["cursor"]
    raise AssertionError(page)


def ask(demo: Server, text: str) -> None:
    status, _ = demo.post(f"{demo.hub}/v1/channels/{CHANNEL}/messages", {"id": "q1", "text": text})
    assert status == 201


def test_the_guide_continues_the_answer_of_a_killed_diver(demo: Server) -> None:
    pid = call_diver(demo)
    assert call_diver(demo) == pid
    _, here = demo.get(f"{demo.hub}/v1/channels/{CHANNEL}/presence")
    assert {(one["id"], one["kind"]) for one in here["members"]} == {("guide", "agent"), ("diver", "agent")}
    ask(demo, "What is a lease?")
    begun = follow(demo, lambda message: len(text_of(message)) > 30 if message.get("parts") else False)
    assert begun["author"] == "diver"
    os.kill(pid, signal.SIGKILL)
    later = follow(
        demo, lambda message: len(text_of(message)) > message["meta"].get("continued", [{"at": 9e9}])[0]["at"] + 20
    )
    (one,) = later["meta"]["continued"]
    assert (one["by"], one["successor"]) == ("diver", "guide")
    assert later["id"] == begun["id"]
    assert text_of(later).startswith(text_of(begun))
    assert "Traceback" not in demo.output


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_diver_ends_with_its_server(demo: Server, ending: signal.Signals) -> None:
    pid = call_diver(demo)
    demo.end(ending)
    assert has_ended(pid)
    assert "Traceback" not in demo.output
