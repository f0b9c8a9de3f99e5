"""A server that is killed or ends in mid-answer: the page has an error, and after the restart the whole answer."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.interop.pages import MAJOR, pages_at, text_of
from tests.processes import python

START_S = 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_page_of_a_server_that_ends_has_an_error_and_later_the_whole_answer(
    number: signal.Signals, tmp_path: Path, unused_tcp_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}/api/chat"
    serve = ("-m", "holdfast", "serve", "--app", "tests.interop.long.server:app", "--port", str(unused_tcp_port))
    environ = {"HOLDFAST_FOLDER": str(tmp_path), "HOLDFAST_AI_MAJOR": str(MAJOR)}
    async with pages_at(address) as pages:
        async with python(*serve, **environ) as server:
            await until_open(unused_tcp_port)
            await pages("a", "open", id="1")
            await pages("a", "send", text="you")
            await pages("a", "saw", wanted="Hello ")
            server.send_signal(number)
            state = await pages("a", "is", status="error")
            assert (state["status"], text_of(state)) == ("error", "Hello ")
            await server.wait()
        async with python(*serve, **environ):
            await until_open(unused_tcp_port)
            await pages("b", "open", id="1", load=True, resume=True)
            await pages("b", "saw", wanted="Hello ")
            (tmp_path / "go").touch()
            await pages("b", "saw", wanted="to you")
            state = await pages("b", "is", status="ready")
            assert (state["status"], text_of(state)) == ("ready", "Hello to you")
            state = await pages("c", "open", id="1", load=True)
            assert text_of(state) == "Hello to you"


async def until_open(port: int) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return
            except OSError:
                await asyncio.sleep(0.05)  # between two tries to connect to a process that is starting
