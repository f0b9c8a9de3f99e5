"""A server that is killed or ends in mid-answer: the page has an error, and after the restart the whole answer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.examples.nodes import Node
from tests.interop.pages import MAJOR, pages_at, text_of
from tests.processes import listening


def server_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Return the server of `tests.interop.long.server` as a process, with its store in `folder`."""
    monkeypatch.setenv("TENUTO_FOLDER", str(folder))
    monkeypatch.setenv("TENUTO_AI_MAJOR", str(MAJOR))
    return Node(["tenuto", "serve", "--app", "tests.interop.long.server:app"], folder / "server.log")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_page_of_a_server_that_ends_has_an_error_and_later_the_whole_answer(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_in(tmp_path, monkeypatch)
    async with pages_at(f"{server.url}/api/chat") as pages:
        with listening(server, server.port):
            await pages("a", "open", id="1")
            await pages("a", "send", text="you")
            await pages("a", "saw", wanted="Hello ")
            server.running.send_signal(number)
            state = await pages("a", "is", status="error")
            assert (state["status"], text_of(state)) == ("error", "Hello ")
        with listening(server, server.port):
            await pages("b", "open", id="1", load=True, resume=True)
            await pages("b", "saw", wanted="Hello ")
            (tmp_path / "go").touch()
            await pages("b", "saw", wanted="to you")
            state = await pages("b", "is", status="ready")
            assert (state["status"], text_of(state)) == ("ready", "Hello to you")
            assert text_of(await pages("c", "open", id="1", load=True)) == "Hello to you"
