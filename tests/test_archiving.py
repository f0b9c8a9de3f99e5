"""The commands export, import and forget, on a file that no process serves and on a served one.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tenuto.app import Hub
from tenuto.cli import store_commands
from tenuto.stores.sqlite.store import SqliteStore
from tests.hub.test_export import exported
from tests.stores.files import cli, run_from_outside
from tests.transports.conftest import new_hub, serving


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Hub]:
    hub = new_hub(f"sqlite:///{path}")
    yield hub
    await hub.close()


def test_a_channel_moves_from_one_store_to_another(tmp_path: Path) -> None:
    old, new, file = f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db", tmp_path / "chat.jsonl"

    async def fill() -> bytes:
        async with opened(tmp_path / "old.db") as hub:
            await asyncio.gather(*(hub.create("chat:1", text=f"message {number}") for number in range(450)))
            return await exported(hub, "chat:1")

    data = asyncio.run(fill())
    file.write_bytes(cli("export", "chat:1", TENUTO_STORE=old).stdout_bytes)
    user = 4_711 if os.geteuid() == 0 else os.geteuid()
    os.chown(tmp_path, user, -1)
    (tmp_path / "link.db").symlink_to("new.db")
    done = cli("import", file, "--store", f"sqlite:///{tmp_path}/link.db")
    assert {one.lstat().st_uid for one in tmp_path.glob("new.db*")} == {user}
    assert (done.exit_code, done.output) == (0, f"chat:1 has 450 messages and 0 commands of {file}.\n")
    assert cli("export", "chat:1", "--store", new).stdout_bytes == data
    missing = cli("export", "none", "--store", new)
    assert (missing.exit_code, missing.stdout_bytes) == (1, b"")
    assert "channel 'none' has no messages" in missing.stderr


async def test_each_command_on_a_store_without_a_control_socket_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "hub.db", tmp_path / "chat.jsonl"
    async with opened(tmp_path / "old.db") as hub:
        await hub.create("chat:1", text="one")
        await asyncio.to_thread(file.write_bytes, await exported(hub, "chat:1"))
    monkeypatch.setattr(store_commands, "open_url", lambda url: SqliteStore(str(path), lock_wait_s=0))
    store = SqliteStore(str(path))
    await store.open()
    backup = ("backup", str(tmp_path / "one.db"))
    for command in (("export", "chat:1"), ("import", str(file)), ("forget", "ann"), backup):
        refused = await asyncio.to_thread(cli, *command, "--store", f"sqlite:///{path}")
        assert "The hub there has no control socket (its log has the cause): use hub.archive or" in refused.stderr
    await store.close()


async def test_a_server_exports_a_channel_and_lists_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(new_hub(f"sqlite:///{tmp_path}/hub.db")) as served:
        await served.hub.create("chat:1", text="x" * 100_000)
        url = f"http://{served.host}:{served.port}"
        done = await asyncio.to_thread(cli, "export", "chat:1", "--url", url)
        assert (done.exit_code, done.stdout_bytes) == (0, await exported(served.hub, "chat:1"))
        refused = await asyncio.to_thread(cli, "export", "none", "--url", url)
        assert "refused the export: channel 'none' has no messages" in refused.stderr

        await served.hub.create("chat:2", text="x")
        await served.hub.create("log:1", text="x")
        monkeypatch.setattr(store_commands, "MAX_LISTED", 1)  # two pages
        listed = await asyncio.to_thread(cli, "channels", "chat:", "--json", "--url", url)
        page = await served.hub.archive.channels(prefix="chat:")
        assert [json.loads(line) for line in listed.output.splitlines()] == msgspec.to_builtins(page.channels)
        refused = await asyncio.to_thread(cli, "channels", "--url", f"{url}/elsewhere")
        assert "refused the list of channels: " in refused.stderr
    closed = await asyncio.to_thread(cli, "export", "chat:1", "--url", url)
    assert closed.exit_code == 1
    assert "no server responds at" in closed.stderr


COMMANDS = (("export", "chat:1"), ("channels",), ("inspect",), ("verify",), ("forget", "ann"))
FULL = "Error: output or a file cannot be written: No space left on device; check its disk, and repeat the command\n"

URL, FILE = ("--url", "http://ann:secret@127.0.0.1:1"), ("--store", "sqlite:////none/hub.db")
TOKEN = ("--token", "secret")
TWO = "Error: command names two places, --url 'http://127.0.0.1:1' and --store 'sqlite:////none/hub.db'; give --url "
UNUSED = "Error: --token has no effect without --url; give --url for a hub that a server serves, or leave the token out"
PLACES = [((*URL, *FILE), TWO), ((*FILE, *URL), TWO), (TOKEN, UNUSED), ((*FILE, *TOKEN), UNUSED)]


@pytest.mark.parametrize(("place", "expected"), PLACES)
def test_place_that_makes_no_sense_is_refused_by_each_command(place: tuple[str, ...], expected: str) -> None:
    for command in COMMANDS:
        refused = cli(*command, *place)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert refused.stderr.startswith(expected)
        assert "secret" not in refused.stderr
    assert "--token" not in cli(*COMMANDS[0], *FILE, TENUTO_TOKEN="secret").stderr


def test_a_command_for_a_file_names_what_a_database_needs_instead(tmp_path: Path) -> None:
    ask, own = "for another store ask its server with --url http://host:8000", "PostgreSQL has its own tools for this"
    remedies = {("inspect",): ask, ("verify",): own, ("backup", "a"): own, ("restore", "a"): own, ("compact",): own}
    for command, remedy in remedies.items():
        refused = cli(*command, "--store", "postgresql://app:secret@127.0.0.1:1/chat")
        assert (refused.exit_code, refused.stdout) == (1, "")
        got = "--store must name a file, sqlite:///path, got 'postgresql://127.0.0.1:1/chat'"
        assert refused.stderr == f"Error: {got}; {remedy}\n"
    for host, option in (("192.0.2.1", "--host"), ("nosuch.invalid", "--host"), ("127.0.0.1", "--port")):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            refused = cli("serve", "--host", host, "--port", taken.getsockname()[1], "--visitors", store=tmp_path / "a")
        assert refused.stderr.endswith(f"; try another {option}\n")


async def test_a_command_whose_output_cannot_be_written_ends_with_an_error(tmp_path: Path) -> None:
    """The disk of the output is full, or the program that reads it has ended; the latter gets no line, as `head`."""

    def check(*where: str) -> None:
        arguments = [sys.executable, "-m", "tenuto", *COMMANDS[0], *where]
        reader, closed = os.pipe()
        os.close(reader)
        with open("/dev/full", "wb") as full, open(closed, "wb") as pipe:
            for out, unbuffered, error in ((full, "", FULL), (pipe, "1", "")):
                environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
                ran = subprocess.run(
                    arguments, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, env=environ, check=False
                )
                assert (ran.returncode, ran.stderr) == (1, error)

    url = f"sqlite:///{tmp_path}/hub.db"
    async with serving(new_hub(url)) as served:
        for number in range(20):
            await served.hub.create("chat:1", text=f"{number} " * 1000, author="bob")
        await asyncio.to_thread(check, "--url", f"http://{served.host}:{served.port}")
    await asyncio.to_thread(check, "--store", url)


async def test_an_export_names_damage_in_every_way_and_its_import_needs_an_option(tmp_path: Path) -> None:
    path, file = tmp_path / "hub.db", tmp_path / "chat.jsonl"
    store = ("--store", f"sqlite:///{path}")
    async with opened(path) as hub:
        await hub.create("chat:1", id="m1", text="one")
        await hub.create("chat:1", id="m2", text='says "damaged"')
        await hub.command("chat:1", "ask", id="c1")
        assert b'"damaged"' not in (await exported(hub, "chat:1")).splitlines()[-1]
        await hub.create("chat:2", id="m1", text="one")
        await hub.create("chat:2", id="m2", text="two")
    run_from_outside(path, "UPDATE documents SET crc = 0 WHERE message IN ('m1', '!c1') AND channel = 1")
    run_from_outside(path, "DELETE FROM documents WHERE message = 'm1' AND channel = 2")

    def check(*where: str) -> bytes:
        done, short = cli("export", "chat:1", *where), cli("export", "chat:2", *where)
        assert (done.exit_code, done.stderr.split(";")[0]) == (1, "chat:1: 2 damaged, all else is whole")
        assert short.exit_code == 1
        assert "channel 'chat:2' has 2 messages, but 1 of them can be read" in short.stderr
        assert b'"end"' not in short.stdout_bytes
        return done.stdout_bytes

    data = await asyncio.to_thread(check, *store)
    lines = data.splitlines()
    lost = {"type": "message", "id": "m1", "role": "assistant", "status": "failed", "reason": "damaged"}
    assert json.loads(lines[1]) == lost | {"created_at": 0, "updated_at": 0}
    assert json.loads(lines[-1]).items() >= {"messages": 2, "commands": 1, "damaged": 2}.items()
    async with serving(new_hub(store[1])) as served:
        assert await asyncio.to_thread(check, *store) == data
        assert await asyncio.to_thread(check, "--url", f"http://{served.host}:{served.port}") == data
        await asyncio.to_thread(file.write_bytes, data)
        for name in ("a", "b"):
            refused = await asyncio.to_thread(cli, "import", file, "--channel", name, *store)
            assert "has 2 damaged messages or commands, whose content is lost" in refused.stderr
            done = await asyncio.to_thread(cli, "import", file, "--channel", name, "--damaged", *store)
            assert done.exit_code == 0
            copy = await asyncio.to_thread(cli, "export", name, *store)
            assert copy.stdout_bytes.splitlines()[1:-1] == lines[1:-1]
            await served.hub.close()  # the second one works on the file


async def test_a_person_is_forgotten_by_the_command_on_a_served_file_and_on_one_that_is_not(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/hub.db")
    async with opened(tmp_path / "hub.db") as hub:
        for author in ("ann", "bob"):
            await hub.create("chat:1", text=f"by {author}", author=author)
        await hub.create("own", text="by bob", author="bob")
        served = await asyncio.to_thread(cli, "forget", "ann", *store)
        assert (served.exit_code, json.loads(served.output)["messages"]) == (0, 1)
    done = json.loads((await asyncio.to_thread(cli, "forget", "bob", "--channels", *store)).output)
    assert (done["messages"], done["channels"], done["is_clean"]) == (2, 2, True)
    assert json.loads((await asyncio.to_thread(cli, "forget", "ann", *store)).output)["messages"] == 0
    for name in ("*", "a b"):
        wrong = await asyncio.to_thread(cli, "forget", name, *store)
        assert (wrong.exit_code, "a client id must be 1-64 characters" in wrong.stderr) == (1, True)
