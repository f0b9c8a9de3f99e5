"""Streams as the program curl receives them, with the command of the documentation.

Layer: tests. Without `-N` curl gathers its output, and a server that holds back a piece would make each test time out.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount

from tests.transports.conftest import Served, new_hub, serving

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
PATIENCE_S = 60.0


class Curl:
    """A running curl, and the events of its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self.process = process
        self._lines = process.stdout
        self.last_id = ""

    async def until(self, *types: str) -> object:
        """Return the data of the next event of one of these types."""
        kind = ""
        while line := (await self._lines.readline()).decode().rstrip("\n"):  # an event
            field, _, value = line.partition(": ")
            if field == "event":
                kind = value
            elif field == "id":
                self.last_id = value
            elif field == "data" and kind in types:
                data: object = json.loads(value)
                await self._end_of_event()
                return data
        assert not self._lines.at_eof(), f"curl ended before an event {types}"
        return await self.until(*types)

    async def _end_of_event(self) -> None:
        while line := (await self._lines.readline()).decode().rstrip("\n"):
            if line.startswith("id: "):
                self.last_id = line.removeprefix("id: ")


@asynccontextmanager
async def curl(*arguments: str) -> AsyncIterator[Curl]:
    program = shutil.which("curl")
    assert program is not None, "this test needs the program curl and found none: install the package curl"
    process = await asyncio.create_subprocess_exec(
        program, "--silent", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Curl(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def documented(served: Served, message: str) -> list[str]:
    """Return the arguments of the documented command, for this server and message."""
    found = re.search(r"```sh\ncurl (.*)\n```", PAGE.read_text())
    assert found is not None
    return shlex.split(found[1].replace("127.0.0.1:8000", f"{served.host}:{served.port}").replace("ID", message))


async def test_documented_command_shows_an_answer_piece_by_piece_to_its_end() -> None:
    hub = new_hub()
    async with serving(hub, Starlette(routes=[Mount("/tenuto", hub)])) as served:
        async with hub.message("chat:1", id="a1") as message:
            await message.append("One, ")
            async with curl(*documented(served, "a1")) as first:
                assert await first.until("answer") == "One, "
                await message.append("two, ")
                assert await first.until("answer") == "two, "
            await message.append("thrée ")  # the first curl has ended, without this piece
            async with curl("-H", f"Last-Event-ID: {first.last_id}", *documented(served, "a1")) as second:
                assert await second.until("answer") == "thrée "
                await message.append("😀.")
                assert await second.until("answer") == "😀."
                await message.finish()
                assert await second.until("done") == {"status": "complete"}
                assert await second.process.wait() == 0
        async with curl(
            "-w", "%{http_code}", "-H", f"Last-Event-ID: {second.last_id}", *documented(served, "a1")
        ) as end:
            output, _ = await end.process.communicate()
            assert (output, end.process.returncode) == (b"204", 0)


async def test_curl_shows_the_events_of_a_channel_as_they_happen() -> None:
    hub = new_hub()
    async with serving(hub) as served, curl("-N", f"http://{served.host}:{served.port}/v1/channels/c/events") as one:
        assert await one.until("channel.attached")
        async with hub.message("c", id="m1") as message:
            await message.append("One, ")
            assert await one.until("message.create", "message.append")
            await message.append("two.")
            appended = await one.until("message.append")
            assert isinstance(appended, dict)
            assert appended["text"].endswith("two.")
