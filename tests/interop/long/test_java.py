"""Java's `HttpClient`, which offers HTTP/2 with the first request to each server, under uvicorn and `tenuto serve`."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.interop.long.test_restart import server_in
from tests.processes import listening
from tests.transports.conftest import new_hub, serving

PROGRAM = Path(__file__).parents[1] / "Post.java"
PATIENCE_S = 120.0


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on the path (Debian: default-jre-headless)")
async def test_client_of_java_gets_the_cause_and_the_cure_under_uvicorn_and_none_is_needed_under_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, server = "v1/channels/c/messages", server_in(tmp_path, monkeypatch)
    async with serving(new_hub()) as plain:
        urls = [f"http://127.0.0.1:{plain.port}/{path}", f"{server.hub}/{path}"]
        command = ["java", str(PROGRAM), urls[0], f"{urls[0]}!HTTP_1_1", urls[1]]
        with listening(server, server.port):
            java = partial(subprocess.run, command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
            lost, cured, whole = (await asyncio.to_thread(java)).stdout.splitlines()
    assert lost.startswith("400 ")
    assert "has lost the body of a request with the header Upgrade: 'h2c'" in lost
    assert "HttpClient.Version.HTTP_1_1 in Java, or use `tenuto serve`" in lost
    assert [one[:4] for one in (cured, whole)] == ["201 ", "201 "]
