"""The control socket of a served hub, and the commands that use it."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tenuto import Hub
from tenuto.cli.store_commands import beside
from tenuto.hub.keep import control
from tenuto.hub.keep.control import MAX_OPEN, REQUEST_BYTES
from tenuto.stores.sqlite.file import control_of
from tenuto.transports import http
from tests.processes import PATIENCE_S, Server, serving
from tests.stores.files import cli, run_from_outside


def new_hub(path: Path) -> Hub:
    return Hub(f"sqlite:///{path}", hooks_signals=False)


def state_of(store: Path) -> dict[str, Any]:
    server = beside(store)
    assert server is not None
    return server.state()


def head(method: str, path: str, length: int = 0) -> bytes:
    return f"{method} {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    return head("POST", path, len(data)) + data


@contextlib.asynccontextmanager
async def another_program(store: Path, response: bytes) -> AsyncIterator[None]:
    """Respond on the control socket in place of a hub."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(65_536):
            writer.write(response)
        writer.close()

    async with await asyncio.start_unix_server(respond, control_of(store)):
        yield


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving("serve", tmp_path, "--jwt-secret-file", str(secret(tmp_path)), "--jwt-audience", "chat") as running:
        yield running


def secret(folder: Path) -> Path:
    file = folder / "secret"
    file.write_bytes(b"s" * 32)
    return file


def test_commands_reach_a_served_hub_without_a_token(server: Server, tmp_path: Path) -> None:
    made = cli("backup", str(tmp_path / "one.db"), store=server.store)
    assert made.stdout.startswith(f"{tmp_path / 'one.db'} is a backup of {server.store}"), made
    assert run_from_outside(tmp_path / "one.db", "SELECT mark LIKE 'backup-%' FROM life") == [(1,)]
    again = cli("backup", str(tmp_path / "one.db"), store=server.store)
    assert (again.exit_code, "exists already; name a new file" in again.stderr) == (1, True)
    inspected = json.loads(cli("inspect", store=server.store).stdout)
    assert (inspected["pid"], inspected["counters"]["waiting"]) == (server.running.pid, 0)

    exported, other = tmp_path / "chat.jsonl", new_hub(tmp_path / "other.db")
    other.sync.create("c", text='one \u2028 "two"')
    other.sync.close()
    exported.write_bytes(cli("export", "c", store=tmp_path / "other.db").stdout_bytes)
    done = cli("import", str(exported), store=server.store)
    assert done.stdout == f"c has 1 messages and 0 commands of {exported}.\n", done
    assert cli("export", "c", store=server.store).stdout == exported.read_text()
    again = cli("import", str(exported), store=server.store)
    assert (again.exit_code, "channel 'c' is not empty" in again.stderr) == (1, True)
    done = cli("import", str(exported), "--channel", "copy", store=server.store)
    assert done.stdout == f"copy has 1 messages and 0 commands of {exported}.\n", done

    listed = map(json.loads, cli("channels", "c", "--json", store=server.store).stdout.splitlines())
    assert [(one["channel"], one["messages"]) for one in listed] == [("c", 1), ("copy", 1)]

    path = control_of(server.store)
    assert path.stat().st_mode & 0o777 == 0o600
    server.end()
    assert not path.exists()
    assert "has no control socket; start its server" in cli("inspect", store=server.store).stderr
    assert cli("backup", str(tmp_path / "two.db"), store=server.store).exit_code == 0


async def test_a_backup_that_the_server_wrote_elsewhere_is_not_taken_for_a_file_here(tmp_path: Path) -> None:
    """A server in a container has other files under the same names."""
    place, target = tmp_path / "elsewhere.db", tmp_path / "new.db"
    place.touch()
    receipt = json.dumps({"type": "end", "size_bytes": 0, "mark": "0123456789abcdef"}).encode()
    async with another_program(place, b"HTTP/1.1 200 OK\r\n\r\n{}\n" + receipt + b"\n"):
        gone = await asyncio.to_thread(cli, "backup", str(target), store=place)
        assert (gone.exit_code, "and is not here: that process has other disks" in gone.stderr) == (1, True), gone


async def test_redirect_of_another_program_is_not_followed(tmp_path: Path) -> None:
    place = tmp_path / "test.db"
    place.touch()
    async with another_program(place, b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n"):
        done = await asyncio.to_thread(cli, "inspect", store=place)
    assert (done.exit_code, done.stdout) == (1, "")
    assert (" refused the " in done.stderr, "redirect to " in done.stderr) == (True, True)


def test_socket_of_a_killed_process_is_replaced(server: Server, tmp_path: Path) -> None:
    server.end(9)
    assert control_of(server.store).is_socket()
    assert beside(server.store) is None
    server.start()
    assert state_of(server.store)["pid"] == server.running.pid


def response_to(connection: socket.socket, request: bytes) -> bytes:
    """Send `request` and return what the hub sends until it closes the connection."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(request)
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    return connection


@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (head("POST", "/v1/fly"), 404, "path '/v1/fly' does not exist"),
        (head("GET", "/v1/backup"), 405, "method GET is not supported at this path; use POST"),
        (post("/v1/backup", {"path": 7}), 400, "expected `str`, got `int` - at `$.path`"),
        (post("/v1/backup", {"path": "one.db"}), 400, "path on the control socket must be absolute, got 'one.db'"),
        (post("/v1/backup", {"path": "/one.db", "mb_per_s": 0}), 500, "mb_per_s must be a number above 0"),
        (post("/v1/backup", {"path": "/none/one.db"}), 500, "there is no directory /none; create it"),
        (post("/v1/import", {"path": "/none", "line": 1}), 400, "unknown field `line`"),
        (b'{"call":"inspect"}\r\n\r\n', 400, "is not HTTP"),
        (head("POST", "/v1/backup", REQUEST_BYTES + 1), 413, f"at most {REQUEST_BYTES} bytes, got {REQUEST_BYTES + 1}"),
        (b"x" * (3 * REQUEST_BYTES), 400, ""),  # the connection may be reset before the response is read
        (b"", 0, ""),
        (head("POST", "/v1/backup", 1), 0, ""),
    ],
    ids=lambda value: value[:50] if isinstance(value, bytes) else str(value)[:40],
)
async def test_invalid_requests_are_refused_and_the_socket_works_on(
    tmp_path: Path, sent: bytes, status: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 3600.0 if status else 0.05)
    hub = new_hub(tmp_path / "chat.db")
    await hub.start()
    with connected(control_of(tmp_path / "chat.db")) as connection:
        received = await asyncio.to_thread(response_to, connection, sent)
    if why:
        assert received.startswith(f"HTTP/1.1 {status} ".encode()), received
        assert why in json.loads(received.partition(b"\r\n\r\n")[2])["detail"]
    else:
        assert not received or status
    monkeypatch.setattr(control, "REQUEST_S", 3600.0)
    assert await asyncio.to_thread(lambda: state_of(tmp_path / "chat.db")["pid"]) == os.getpid()
    await hub.close()


async def test_only_the_socket_has_operations_that_name_files_and_a_caller_without_a_token(tmp_path: Path) -> None:
    async def no_one(scope: object) -> None:
        return None

    hub = Hub(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False, authenticate=no_one)
    await hub.start()
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(hub), base_url="http://localhost")
    async with http, asyncio.timeout(PATIENCE_S):
        for path in ("/v1/backup", "/v1/import"):
            refused = await http.post(path, json={"path": str(tmp_path / "one.db")})
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert (await http.get("/v1/inspect", headers={"tenuto.control": "1"})).status_code == 401
        unix = httpx2.AsyncHTTPTransport(uds=str(control_of(tmp_path / "chat.db")))
        async with httpx2.AsyncClient(transport=unix, base_url="http://localhost") as operator:
            assert (await operator.get("/v1/inspect")).json()["pid"] == os.getpid()
            made = await operator.post("/v1/channels/chat%3A1/messages", json={"text": "by the operator"})
            assert made.status_code == 201, made.text
            assert [one.text for one in (await hub.history("chat:1")).messages] == ["by the operator"]
            hub.drive_by_hand = True  # as `tenuto serve` does, for its own server
            async with operator.stream("GET", "/v1/channels/chat:1/events") as events:
                shown = events.aiter_lines()
                while '"by the operator"' not in await anext(shown):
                    pass
                for text in ("at once", "in the tick after it", "in the next one"):
                    await hub.create("chat:1", text=text)
                while '"in the next one"' not in await anext(shown):
                    pass
    await hub.close()


async def test_calls_are_bounded_and_silent_clients_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 3600.0)
    hub = new_hub(tmp_path / "chat.db")
    await hub.start()
    path = control_of(tmp_path / "chat.db")
    silent = [connected(path) for _ in range(MAX_OPEN)]
    with connected(path) as connection:
        received = await asyncio.to_thread(response_to, connection, b"")
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"busy"' in received
    await hub.close()  # ends the silent ones
    assert [one.recv(1) for one in silent] == [b""] * MAX_OPEN
    for one in silent:
        one.close()


async def test_call_shows_life_and_ends_with_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub(tmp_path / "chat.db")
    await hub.create("c", text="x" * 500_000)
    target = tmp_path / "one.db"
    async with asyncio.timeout(PATIENCE_S):
        for sign_s, life in ((0.01, 1), (3600.0, 0)):
            monkeypatch.setattr(http, "SIGN_S", sign_s)
            reader, writer = await asyncio.open_unix_connection(control_of(tmp_path / "chat.db"))
            writer.write(post("/v1/backup", {"path": str(target), "mb_per_s": 0.01}))  # for most of a minute
            for _ in range(life):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
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
    path = control_of(folder / "chat.db")
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
    (logged,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert f"control socket {path} cannot be opened" in logged
    assert cause in logged


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_cannot_connect(server: Server) -> None:
    server.store.parent.chmod(0o755)
    for folder in server.store.parents[:2]:
        folder.chmod(0o755)
    program = "import os, socket, sys; os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(control_of(server.store))], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in ran.stderr
