"""`holdfast export` and `holdfast import`: on a file that no process serves, and `--url` for a served one.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from click.testing import CliRunner, Result

from holdfast.app import Hub
from holdfast.cli import main
from tests.transports.conftest import asking, new_hub, serving


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Hub]:
    hub = new_hub(f"sqlite:///{path}")
    yield hub
    await hub.close()


async def export(hub: Hub, channel: str) -> bytes:
    return b"".join([line async for line in hub.archive.export(channel)])


def test_a_channel_moves_from_one_store_to_another(tmp_path: Path) -> None:
    old, new, file = f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db", tmp_path / "chat.jsonl"

    async def fill() -> bytes:
        async with opened(tmp_path / "old.db") as hub:
            await asyncio.gather(*(hub.create("chat:1", text=f"message {number}") for number in range(450)))
            return await export(hub, "chat:1")

    data = asyncio.run(fill())
    exported = run("export", "chat:1", "--store", old)
    assert (exported.exit_code, exported.stdout_bytes) == (0, data)
    file.write_bytes(exported.stdout_bytes)
    done = run("import", str(file), "--store", new)
    assert (done.exit_code, done.output) == (0, f"chat:1 has 450 messages and 0 commands of {file}.\n")
    assert run("export", "chat:1", "--store", new).stdout_bytes == data
    again = run("import", str(file), "--store", new)
    assert (again.exit_code, again.output.split(";")[0]) == (1, "Error: channel 'chat:1' is not empty")
    assert run("import", str(file), "--store", new, "--channel", "copy").exit_code == 0
    assert len(run("export", "copy", "--store", new).stdout_bytes) == len(data) - len("chat:1") + len("copy")

    missing = run("export", "none", "--store", new)
    assert (missing.exit_code, missing.stdout_bytes) == (1, b"")
    assert "channel 'none' has no messages" in missing.stderr
    unknown = run("export", "chat:1", "--store", f"sqlite:///{tmp_path}/none.db")
    assert "none.db does not exist; name the store with --store" in unknown.stderr


async def test_a_served_channel_is_exported_by_its_server(tmp_path: Path) -> None:
    async with serving(new_hub(f"sqlite:///{tmp_path}/hub.db")) as served:
        await served.hub.create("chat:1", text="x" * 100_000)
        url = f"http://{served.host}:{served.port}"
        exported = await asyncio.to_thread(run, "export", "chat:1", "--url", url)
        assert (exported.exit_code, exported.stdout_bytes) == (0, await export(served.hub, "chat:1"))
        refused = await asyncio.to_thread(run, "export", "none", "--url", url)
        assert "refused the export: channel 'none' has no messages" in refused.stderr
    closed = await asyncio.to_thread(run, "export", "chat:1", "--url", url)
    assert closed.exit_code == 1
    assert "did not send the whole export" in closed.stderr


async def test_a_route_sends_the_lines_of_an_export() -> None:
    hub = new_hub()
    for text in ("one", "two"):
        await hub.create("chat:1", text=text)
    async with asking(hub) as client:
        response = await client.get("/v1/channels/chat:1/export")
        assert (response.status_code, response.content) == (200, await export(hub, "chat:1"))
        assert response.headers["content-type"] == "application/x-ndjson"
        head = await client.head("/v1/channels/chat:1/export")
        assert (head.status_code, head.content) == (200, b"")
        missing = await client.get("/v1/channels/none/export")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    await hub.close()
