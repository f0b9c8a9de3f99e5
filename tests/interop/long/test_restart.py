"""A server that is killed or ends in mid-answer: the page has an error, and after the restart the whole answer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.interop.long.restarts import served
from tests.interop.pages import pages_at, text_of


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_page_of_a_server_that_ends_has_an_error_and_later_the_whole_answer(
    number: signal.Signals, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with pages_at(f"http://127.0.0.1:{unused_tcp_port}/api/chat") as pages:
        async with served(tmp_path, unused_tcp_port) as server:
            await pages("a", "open", id="1")
            await pages("a", "send", text="you")
            await pages("a", "saw", wanted="Hello ")
            server.send_signal(number)
            state = await pages("a", "is", status="error")
            assert (state["status"], text_of(state)) == ("error", "Hello ")
            await server.wait()
        async with served(tmp_path, unused_tcp_port):
            await pages("b", "open", id="1", load=True, resume=True)
            await pages("b", "saw", wanted="Hello ")
            (tmp_path / "go").touch()
            await pages("b", "saw", wanted="to you")
            state = await pages("b", "is", status="ready")
            assert (state["status"], text_of(state)) == ("ready", "Hello to you")
            state = await pages("c", "open", id="1", load=True)
            assert text_of(state) == "Hello to you"
