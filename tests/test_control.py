"""The control socket of a served hub, and the commands that use it."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proof.chaos.processes import free_port
from tenuto import Hub
from tenuto.cli.main import main
from tenuto.cli.server_requests import NotServed, call
from tenuto.core.errors import LocalError
from tenuto.hub.keep import control
from tenuto.hub.keep.control import MAX_OPEN, REQUEST_BYTES, path_of
from tests.processes import PATIENCE_S, Process, Server, request, serving
from tests.stores.files import run_from_outside


def command(*arguments: str, store: Path) -> list[str]:
    return [sys.executable, "-m", "tenuto", *arguments, "--store", f"sqlite:///{store}"]


def run(*arguments: str, store: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of `tenuto` in this process, beside the server's."""
    done = CliRunner().invoke(main, command(*arguments, store=store)[3:])
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


async def export_of_another_store(path: Path) -> bytes:
    hub = Hub(f"sqlite:///{path}", hooks_signals=False)
    await hub.create("c", text="kept")
    lines = [line async for line in hub.archive.export("c")]
    await hub.close()
    return b"".join(lines)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving("serve", tmp_path, "--jwt-secret-file", str(secret(tmp_path)), "--jwt-audience", "chat") as running:
        yield running


def secret(folder: Path) -> Path:
    file = folder / "secret"
    file.write_bytes(b"s" * 32)
    return file


def test_commands_reach_a_served_hub_without_a_token(server: Server, tmp_path: Path) -> None:
    made = run("backup", str(tmp_path / "one.db"), store=server.store)
    assert made.stdout.startswith(f"{tmp_path / 'one.db'} is a backup of {server.store}"), made
    assert run_from_outside(tmp_path / "one.db", "SELECT inode LIKE 'backup %' FROM life") == [(1,)]
    again = run("backup", str(tmp_path / "one.db"), store=server.store)
    assert (again.returncode, "exists already; name a new file" in again.stderr) == (1, True)
    inspected = json.loads(run("inspect", store=server.store).stdout)
    assert (inspected["pid"], inspected["counters"]["waiting"]) == (server.running.pid, 0)

    exported = tmp_path / "chat.jsonl"
    exported.write_bytes(asyncio.run(export_of_another_store(tmp_path / "other.db")))
    done = run("import", str(exported), store=server.store)
    assert done.stdout == f"c has 1 messages and 0 commands of {exported}.\n", done
    assert run("export", "c", store=server.store).stdout == exported.read_text()
    assert "channel 'd' has no messages" in run("export", "d", store=server.store).stderr

    (listed,) = call(server.store, "channels", prefix="c")
    assert [json.loads(line) for line in run("channels", "c", "--json", store=server.store).stdout.splitlines()] == [
        listed
    ]
    assert (listed["channel"], listed["messages"], list(call(server.store, "channels", prefix="d"))) == ("c", 1, [])

    path = path_of(server.store)
    assert path.stat().st_mode & 0o777 == 0o600
    server.end()
    assert not path.exists()
    assert "has no control socket; start its server" in run("inspect", store=server.store).stderr
    assert run("backup", str(tmp_path / "two.db"), store=server.store).returncode == 0


def test_a_backup_that_the_server_wrote_elsewhere_is_not_taken_for_a_file_here(server: Server, tmp_path: Path) -> None:
    """A server in a container has other files under the same names."""
    old, target = tmp_path / "old.db", tmp_path / "new.db"
    assert run("backup", str(old), store=server.store).returncode == 0
    place = tmp_path / "elsewhere.db"
    place.write_bytes(old.read_bytes())
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
        listening.bind(str(path_of(place)))
        listening.listen()
        for is_here in (False, True):
            with subprocess.Popen(
                command("backup", str(target), store=place), stderr=subprocess.PIPE, text=True
            ) as made:
                connection, _ = listening.accept()
                if is_here:
                    target.write_bytes(old.read_bytes())
                receipt = {"size_bytes": old.stat().st_size, "mark": "0123456789abcdef"}
                connection.sendall(json.dumps({"value": receipt}).encode() + b'\n{"end":true}\n')
                _, stderr = made.communicate(timeout=PATIENCE_S)
                connection.close()
            assert (made.returncode, "and is not here: that process has other disks" in stderr) == (1, True), stderr
        listening.setblocking(False)
        again = run("backup", str(target), store=place)
        assert (again.returncode, "exists already; name a new file" in again.stderr) == (1, True)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize(
    "response",
    [
        *(b"hello\n", b"[1]\n", b'{"error":5}\n', b'{"value":5}\n{"end":true}\n', b"[" * 100_000 + b"\n"),
        b'{"value":{"x":1}}\n{"value":[]}\n{"end":true}\n',
    ],
)
def test_response_of_another_program_is_named(response: bytes, tmp_path: Path) -> None:
    place = tmp_path / "test.db"
    place.touch()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
        listening.bind(str(path_of(place)))
        listening.listen()
        listening.settimeout(PATIENCE_S)
        for arguments in (
            *(("inspect",), ("channels",), ("export", "c"), ("forget", "ann")),
            ("backup", str(tmp_path / "new.db")),
        ):
            with ThreadPoolExecutor(1) as pool:
                done = pool.submit(CliRunner().invoke, main, [*arguments, "--store", f"sqlite:///{place}"])
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(response)
                    result = done.result(PATIENCE_S)
            assert (result.exit_code, result.stderr[:6]) == (1, "Error:"), (arguments, result)
            assert "response on control socket" in result.stderr


def test_socket_of_a_killed_process_is_replaced(server: Server, tmp_path: Path) -> None:
    server.end(9)
    assert path_of(server.store).is_socket()
    with pytest.raises(NotServed):
        next(call(server.store, "inspect"))
    server.start()
    assert next(call(server.store, "inspect"))["pid"] == server.running.pid


MOUNTED = """
import sys
import uvicorn
from starlette.applications import Starlette
from tenuto import Hub

app = Starlette()
app.mount("/tenuto", Hub(sys.argv[1]))
uvicorn.run(app, port=int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hub_that_is_only_mounted_removes_its_socket_before_a_signal_ends_the_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    store, port = tmp_path / "chat.db", free_port()
    server = Process(["-c", MOUNTED, f"sqlite:///{store}", str(port)], tmp_path / "server.log")
    server.start()
    try:
        server.until(lambda: request(port, "GET", "/tenuto/readyz")[0] == 200)
        assert next(call(store, "inspect"))["pid"] == server.running.pid
        server.end(number)
    finally:
        server.clean_up()
    assert not path_of(store).exists(), server.output
    assert "Traceback" not in server.output


def lines_of(connection: socket.socket, request: bytes) -> list[Any]:
    """Send `request` and return the lines until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(request)
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return [json.loads(line) for line in received.splitlines()]


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    return connection


@pytest.mark.parametrize(
    ("request_line", "why"),
    [
        (
            b'{"call":"fly"}\n',
            "has no call 'fly'; use one of backup, channels, export, forget, import, inspect",
        ),
        (b'{"call":"backup","arguments":{"path":7}}\n', "Expected `str`, got `int` - at `$.path`"),
        (
            b'{"call":"backup","arguments":{"path":"one.db"}}\n',
            "path on the control socket must be absolute, got 'one.db'",
        ),
        (b'{"call":"backup","arguments":{"path":"/one.db","mb_per_s":0}}\n', "mb_per_s must be a number above 0"),
        (b'{"call":"inspect","arguments":{"path":1}}\n', "unknown field `path`"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not valid"),
        (b"\xff\n", "is not valid"),
        (b"", None),
        (b"x" * (3 * REQUEST_BYTES), None),
    ],
)
async def test_invalid_requests_are_refused_and_the_socket_works_on(
    tmp_path: Path, request_line: bytes, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 3600.0 if request_line else 0.05)
    hub = Hub(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False)
    await hub.start()
    with connected(path_of(tmp_path / "chat.db")) as connection:
        lines = await asyncio.to_thread(lines_of, connection, request_line)
    if why is None:
        assert lines == []
    else:
        assert why in lines[-1]["error"]["detail"]
    monkeypatch.setattr(control, "REQUEST_S", 3600.0)
    assert await asyncio.to_thread(lambda: next(call(tmp_path / "chat.db", "inspect"))["pid"]) == os.getpid()
    await hub.close()


async def test_calls_at_once_are_bounded_and_silent_clients_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 3600.0)
    hub = Hub(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False)
    await hub.start()
    path = path_of(tmp_path / "chat.db")
    silent = [connected(path) for _ in range(MAX_OPEN)]
    with connected(path) as connection:
        (line,) = await asyncio.to_thread(lines_of, connection, b"")
    assert line["error"]["code"] == "busy"
    await hub.close()  # ends the silent ones
    assert [one.recv(1) for one in silent] == [b""] * MAX_OPEN
    for one in silent:
        one.close()


async def test_call_shows_life_and_ends_with_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HEARTBEAT_S", 0.01)
    hub = Hub(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False)
    await hub.create("c", text="x" * 500_000)
    target = tmp_path / "one.db"
    reader, writer = await asyncio.open_unix_connection(path_of(tmp_path / "chat.db"))
    writer.write(json.dumps({"call": "backup", "arguments": {"path": str(target), "mb_per_s": 0.1}}).encode() + b"\n")
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readline() == b"{}\n"
        while not (tmp_path / "one.db.partial").exists():
            await hub.info("c")
        writer.close()
        while (tmp_path / "one.db.partial").exists():
            await hub.info("c")
    await hub.close()
    assert not target.exists()


@pytest.mark.parametrize("kind", ["file", "program", "long"])
async def test_hub_without_its_socket_works_and_logs_the_cause_once(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ("x" * 120 if kind == "long" else "x")
    folder.mkdir()
    path = path_of(folder / "chat.db")
    with contextlib.ExitStack() as stack:
        if kind == "file":
            path.write_text("mine")
        elif kind == "program":
            other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            other.bind(str(path))
            other.listen()
        hub = Hub(f"sqlite:///{folder / 'chat.db'}", hooks_signals=False)
        await hub.create("c", text="served")
        await hub.close()
        assert path.exists() is (kind != "long")
    cause = {"file": "not a socket has this name", "program": "another program listens", "long": "path too long"}[kind]
    logged = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(logged) == 1
    assert f"control socket {path} cannot be opened" in logged[0]
    assert cause in logged[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_cannot_connect(server: Server) -> None:
    server.store.parent.chmod(0o755)
    for folder in server.store.parents[:2]:
        folder.chmod(0o755)
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); "
        "s.connect(sys.argv[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path_of(server.store))], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in ran.stderr


def test_server_that_is_silent_or_sends_other_lines_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.cli.server_requests.SILENT_S", 0.05)
    path = path_of(tmp_path / "chat.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(LocalError, match=r"is not valid \(timed out\); check the server"):
            next(call(tmp_path / "chat.db", "inspect"))


def test_a_server_that_ends_during_a_call_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = path_of(tmp_path / "chat.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, ThreadPoolExecutor(1) as pool:
        other.bind(str(path))
        other.listen()
        other.settimeout(PATIENCE_S)
        asked = pool.submit(lambda: next(call(tmp_path / "chat.db", "inspect")))
        connection, _ = other.accept()
        with connection:
            assert connection.recv(65536)
        with pytest.raises(LocalError, match=r"chat\.db\.ctl ended during the call; start it, and repeat the call"):
            asked.result(PATIENCE_S)
