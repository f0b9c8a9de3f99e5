"""`tenuto tail` prints a channel as it happens, through outages, and ends when the server refuses.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import jwt
import pytest

from proof.chaos.processes import free_port
from tenuto.cli import tail as command
from tenuto.client import Client
from tenuto.core.errors import LocalError, TenutoError
from tenuto.hub.access.tokens import jwt_verifier
from tests.stores.files import cli
from tests.transports.conftest import PATIENCE_S, Served, new_hub, serving

NO_CONNECTION = (
    r"^unreachable: Client could not connect to http://127\.0\.0\.1:{port} within 0.3 s \(.+\); check that the server "
    r"runs there, and that port and path are right$"
)


class Stopped(Exception):
    """Raised by a write after the test has stopped the screen."""


class Screen(io.StringIO):
    """Collects the printed text. A write after `stop` raises `Stopped`, which ends `follow`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stopped = threading.Event()

    def write(self, text: str) -> int:
        if self.is_stopped.is_set():
            raise Stopped
        return super().write(text)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(new_hub()) as one:
        yield one


def tail(url: str | Served, screen: Screen, notices: Any, scheme: str = "http", **options: Any) -> asyncio.Task[None]:
    """Run `follow` in a thread, because it runs an event loop of its own."""
    url = url if isinstance(url, str) else f"{scheme}://{url.host}:{url.port}"
    arguments = {"since": None, "history": 10, "token": None, **options}
    return asyncio.ensure_future(asyncio.to_thread(command.follow, url, "c", out=screen, notices=notices, **arguments))


async def stop(served: Served, screen: Screen, running: asyncio.Task[None]) -> None:
    screen.is_stopped.set()
    await served.hub.create("c", role="user", text="stop")
    with pytest.raises(Stopped):
        await asyncio.wait_for(running, PATIENCE_S)


@pytest.mark.parametrize("scheme", ["http", "ws"])
async def test_tail_prints_messages_as_they_grow(served: Served, scheme: str) -> None:
    screen, notices = Screen(), io.StringIO()
    await served.hub.create("c", role="user", author="ann", text="Why?")
    running = tail(served, screen, notices, scheme)
    async with served.hub.message("c", author="bot") as message:
        await message.append("Because ")
        await served.until(lambda: "Because " in screen.getvalue())
        await message.append("it is.")
    await served.until(lambda: screen.getvalue().endswith("it is."))
    assert screen.getvalue() == "── user ann\nWhy?\n\n── assistant bot\nBecause it is."
    assert notices.getvalue() == ""
    await stop(served, screen, running)


async def test_tail_resumes_after_a_given_cursor(served: Served) -> None:
    await served.hub.create("c", role="user", author="ann", text="old")
    since = str((await served.hub.info("c")).cursor)
    screen = Screen()
    running = tail(served, screen, io.StringIO(), since=since)
    await served.until(lambda: served.hub.channel("c").feeds)
    await served.hub.create("c", role="user", author="ann", text="new")
    await served.until(lambda: screen.getvalue().endswith("new"))
    assert screen.getvalue() == "── user ann\nnew"
    await stop(served, screen, running)


async def test_tail_prints_one_notice_for_an_outage(served: Served) -> None:
    screen, notices = Screen(), io.StringIO()
    await served.hub.create("c", role="user", author="ann", text="one")
    running = tail(served, screen, notices)
    await served.until(lambda: screen.getvalue().endswith("one"))
    for one in tuple(served.hub._asgi._sockets._open):
        one.session.end(4000, "internal")
    await served.until(lambda: notices.getvalue())
    await served.hub.create("c", role="user", author="ann", text="two")
    await served.until(lambda: screen.getvalue().endswith("two"))
    assert screen.getvalue() == "── user ann\none\n\n── user ann\ntwo"
    assert notices.getvalue() == f"(no response from http://{served.host}:{served.port}, trying again)\n"
    await stop(served, screen, running)


async def test_tail_ends_within_its_time_at_a_wrong_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Client", partial(Client, connect_s=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections and sends nothing
        for port in (free_port(), silent.getsockname()[1]):
            running = tail(f"http://127.0.0.1:{port}", Screen(), io.StringIO())
            with pytest.raises(TenutoError, match=NO_CONNECTION.format(port=port)):
                await asyncio.wait_for(running, PATIENCE_S)
    with pytest.raises(LocalError, match=r"^tail has no output; give it one"):
        command.follow("http://127.0.0.1:1", "c", out=None, notices=io.StringIO())


async def test_tail_sends_its_token_and_names_the_option_without_one() -> None:
    secret, screen = "s" * 32, Screen()
    token = jwt.encode({"sub": "op", "aud": "chat", "exp": 2**32, "tenuto": {"*": ["history", "subscribe"]}}, secret)
    async with serving(new_hub(authenticate=jwt_verifier(secret=secret, audience="chat"))) as served:
        await served.hub.create("c", role="user", text="old")
        running = tail(served, screen, io.StringIO(), token=token)
        await served.until(lambda: screen.getvalue().endswith("old"))
        await stop(served, screen, running)
        done = await asyncio.to_thread(cli, "tail", "c", "--url", f"http://{served.host}:{served.port}")
        assert done.stderr.endswith("and this client has none; give --token, or TENUTO_TOKEN\n")
        done = await asyncio.to_thread(cli, "tail", "c", "--url", "http://127.0.0.1:1", TENUTO_TOKEN="a\nb")
        assert done.stderr.startswith("Error: token must be one line of printable ASCII text")


async def test_control_characters_do_not_reach_the_terminal(served: Served) -> None:
    screen, notices = Screen(), io.StringIO()
    controls = "".join(map(chr, [*range(0x20), 0x7F, *range(0x80, 0xA0)]))
    running = tail(served, screen, notices)
    async with served.hub.message("c", author="evil\x1b]0;title\x07") as message:
        await message.append(f"begin{controls}")
        await served.until(lambda: "begin" in screen.getvalue())
        await message.append("\x1b[2Jend\t.\n")
        await message.finish("failed", reason="because\n\x9b31m")
    await served.until(lambda: "[failed" in screen.getvalue())
    await stop(served, screen, running)
    shown = screen.getvalue()
    assert [one for one in controls if one in shown] == ["\t", "\n"]
    assert "── assistant evil\ufffd]0;title\ufffd\n" in shown
    assert "\ufffd[2Jend\t.\n" in shown
    assert "[failed: because\ufffd\ufffd31m]" in shown
