"""A server that is killed or ends in mid-answer: the page has an error, and after the restart the whole answer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.interop.long.restarts import served
from tests.interop.pages import MAJOR, pages_at, text_of


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


@pytest.mark.skipif(MAJOR < 7, reason="the same for each release: one has this scene")
async def test_page_of_a_killed_server_with_the_default_agent_and_an_endpoint_without_one(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    """The agent runs again. The endpoint (`stream_response`) has no second attempt: its answer stays interrupted."""
    address = f"http://127.0.0.1:{unused_tcp_port}/api"
    async with pages_at(f"{address}/chat") as pages, pages_at(f"{address}/own") as own:
        async with served(tmp_path, unused_tcp_port, "restart") as server:
            for each in (pages, own):
                await each("a", "open", id="1")
                await each("a", "send", text="you")
                await each("a", "saw", wanted="Hello ")
            server.kill()
            for each in (pages, own):
                state = await each("a", "is", status="error")
                assert (state["status"], text_of(state)) == ("error", "Hello ")
            await server.wait()
        async with served(tmp_path, unused_tcp_port, "restart"):
            await pages("early", "open", id="1", load=True, resume=True)
            await pages("early", "saw", wanted="Hello ")
            (tmp_path / "again").touch()
            await pages("a", "resume")
            await pages("b", "open", id="1", load=True, resume=True)
            await pages("b", "saw", wanted="Hello ")
            (tmp_path / "go").touch()
            for name in ("early", "a", "b"):  # the next attempt takes the text of the first one back, also early on
                await pages(name, "saw", wanted="to you")
                state = await pages(name, "is", status="ready")
                assert (state["status"], text_of(state), len(state["messages"])) == ("ready", "Hello to you", 2)
            assert (await pages("c", "open", id="1", load=True))["messages"] == state["messages"]

            await own("a", "regenerate")  # repeats the request
            await own("a", "asks", requests=2)
            state = await own("a", "is", status="error")
            assert (state["requests"], state["error"], text_of(state)) == (2, "interrupted", "Hello ")
