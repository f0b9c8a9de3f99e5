"""Requests of operators: the removal of a person, the check of the store, the state of the hub.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tenuto.app import Hub
from tenuto.core.errors import Busy, StoreUnusable
from tenuto.hub.access.identity import CAPABILITIES, Identity
from tenuto.hub.keep.archive import MAX_REMOVALS
from tenuto.hub.keep.exports import End, encode_line
from tenuto.hub.lifecycle import Viewing
from tenuto.transports import http
from tenuto.transports.http import LinesResponse, with_signs
from tests.stores.files import cli
from tests.transports.conftest import PATIENCE_S, Served, asking, new_hub, serving
from tests.virtual import virtually

GRANTS = {"operator": {"*": frozenset({"admin"})}, "owner": {"chat:*": CAPABILITIES}}


async def authenticate(scope: dict[str, Any]) -> Identity | None:
    """Return the identity behind a token; only that of the operator has `admin` on all channels."""
    token = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
    return Identity(client_id=token, grants=GRANTS[token]) if token in GRANTS else None


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Hub]:
    """Yield a hub with a file."""
    hub = new_hub(f"sqlite:///{tmp_path}/hub.db", authenticate=authenticate)
    yield hub
    await hub.close()


def as_(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_damage_is_listed_and_one_check_runs_at_a_time(stored: Hub, tmp_path: Path) -> None:
    before = new_hub(f"sqlite:///{tmp_path}/hub.db")
    for number in range(2):
        await before.create("chat:1", id=f"m{number}", text="kept")
    await before.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.db")) as db, db:
        db.execute("UPDATE documents SET version = 7")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET rootpage = 2 WHERE name = 'documents_until'")
    checking = stored.archive.verify()
    async with contextlib.aclosing(checking), asking(stored) as http:
        assert (await anext(checking)).startswith("store file hub.db is damaged (")
        busy = await http.post("/v1/verify", json={}, headers=as_("operator"))
        assert (busy.status_code, busy.json()["code"]) == (503, "busy")
    async with serving(stored) as served:
        server = ("--url", f"http://{served.host}:{served.port}", "--token", "operator")
        checked = await asyncio.to_thread(cli, "verify", *server)
    file, *damage, last = checked.output.splitlines()
    assert (checked.exit_code, last) == (1, f"'{server[1]}': 3 damaged")
    assert [line.split(": ")[1] for line in damage] == ["message 'm0'", "message 'm1'"]
    assert file.startswith("store file hub.db is damaged (")


async def test_removals_beyond_a_number_are_refused_at_once(stored: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    await stored.create("chat:1", text="by ann", author="ann")
    gate, wipe = asyncio.Event(), stored.store.wipe

    async def waiting(**options: bool) -> bool | None:
        await gate.wait()
        return await wipe(**options)

    monkeypatch.setattr(stored.store, "wipe", waiting)
    async with asking(stored) as http, asyncio.timeout(PATIENCE_S):
        many = [
            asyncio.create_task(http.post("/v1/forget", json={"client_id": f"c{number}"}, headers=as_("operator")))
            for number in range(MAX_REMOVALS + 2)
        ]
        done, _ = await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        refused = await done.pop()
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        gate.set()
        responses = await asyncio.gather(*many)
    assert sorted(one.status_code for one in responses) == [200] * MAX_REMOVALS + [503] * 2


async def test_a_check_that_fails_names_no_folder(stored: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = tmp_path / "ending"
    ending.write_text("#!/bin/sh\nexit 3\n")
    ending.chmod(0o700)
    async with asking(stored) as http:
        for program, expected in (
            (tmp_path / "none", "process that verifies hub.db cannot be started"),
            (ending, "the store cannot be used; the server's log has the reason"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "executable", str(program))
                failed = await http.post("/v1/verify", json={}, headers=as_("operator"))
            assert (failed.status_code, str(tmp_path) in failed.text) == (500, False), failed.text
            assert failed.json()["detail"].startswith(expected), failed.text


async def at_work(served: Served, path: str, body: bytes) -> asyncio.StreamWriter:
    """Send a request, and return its connection after the first sign of life."""
    reader, writer = await served.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer operator\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b"{}\n")
    return writer


async def test_a_removal_ends_with_its_connection_and_the_same_request_goes_on(
    stored: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SIGN_S", 0.01)
    for channel in ("chat:1", "chat:2", "chat:3"):
        await stored.create(channel, id="m", text="by ann", author="ann")
    reached, ended, prune = asyncio.Event(), asyncio.Event(), stored.store.prune
    steps: list[str] = []

    async def stuck(channel: str, **wanted: Any) -> list[str]:
        steps.append(channel)
        if len(steps) == 2:
            reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        return await prune(channel, **wanted)

    async with serving(stored) as served, asyncio.timeout(PATIENCE_S):
        with monkeypatch.context() as patched:
            patched.setattr(stored.store, "prune", stuck)
            connection = await at_work(served, "/v1/forget", b'{"client_id": "ann"}')
            await reached.wait()
            assert not ended.is_set()
            connection.close()
            await ended.wait()
        response = await served.http.post("/v1/forget", json={"client_id": "ann"}, headers=as_("operator"))
    done = json.loads(response.text.splitlines()[-1])
    assert (steps, done["type"], done["messages"]) == (["chat:1", "chat:2"], "end", 2)


async def test_the_process_of_a_check_ends_with_its_connection(
    stored: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SIGN_S", 0.01)
    os.mkfifo(tmp_path / "alive")
    program = tmp_path / "waiting"
    program.write_text(f"#!/bin/sh\nexec 3> '{tmp_path}/alive'\necho started >&3\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    alive = asyncio.StreamReader()
    with os.fdopen(os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK), "rb") as fifo:
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(alive), fifo)
        async with serving(stored) as served, asyncio.timeout(PATIENCE_S):
            connection = await at_work(served, "/v1/verify", b"{}")
            assert await alive.readline() == b"started\n"
            connection.close()
            assert await alive.read() == b""  # the process that held the other end has exited
        pipe.close()


# Lines with signs of life


async def slow(release: asyncio.Event, error: Exception | None) -> AsyncGenerator[object]:
    await release.wait()
    if error is not None:
        raise error
    yield {"type": "end"}


async def all_after_a_sign(error: Exception | None) -> list[Any]:
    """Return the lines after the first sign of life, without further signs."""
    release = asyncio.Event()
    found = with_signs(slow(release, error))
    response = LinesResponse(Viewing("memory"), await anext(found), found)
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        release.set()

    await response({"type": "http", "method": "POST", "asgi": {"spec_version": "2.4"}}, never, send)
    _, sign, *rest = sent
    assert sign == b"{}\n"
    return [line for one in rest if one and (line := json.loads(one))]


async def test_work_of_a_client_that_left_has_ended_with_its_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SIGN_S", 0.01)
    leaves, ends = asyncio.Event(), list[str]()

    async def work() -> AsyncGenerator[object]:
        try:
            yield await never()
        finally:
            for _ in range(5):  # as the end of a process does, it takes several turns of the loop
                await asyncio.sleep(0)
            ends.append("ended")

    async def left() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            leaves.set()

    found = with_signs(work())
    response = LinesResponse(Viewing("memory"), await anext(found), found)
    await response({"type": "http", "method": "POST", "asgi": {"spec_version": "2.3"}}, left, send)
    assert ends == ["ended"]


async def never() -> Message:
    return await asyncio.get_running_loop().create_future()


async def test_lines_have_signs_of_life_and_end_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SIGN_S", 0)
    assert await all_after_a_sign(None) == [{"type": "end"}]
    (last,) = await all_after_a_sign(Busy("it runs"))
    assert (last["type"], last["error"]["code"], last["error"]["detail"]) == ("error", "busy", "it runs")
    for failure, code in ((RuntimeError("/var/lib/secret"), "internal"), (StoreUnusable("/secret"), "store_unusable")):
        (last,) = await all_after_a_sign(failure)
        assert (last["error"]["code"], "secret" in str(last)) == (code, False)
        assert last["error"]["detail"].endswith("log has the reason")
    monkeypatch.setattr(http, "SIGN_S", 60)
    release = asyncio.Event()
    release.set()
    with pytest.raises(Busy):  # the status of the response can still say so
        await anext(with_signs(slow(release, Busy("c"))))


@pytest.mark.parametrize("version", ["2.3", "2.4"])
@virtually
async def test_reader_of_lines_that_reads_no_bytes_is_gone_after_five_minutes(version: str) -> None:
    rest = with_signs(slow(asyncio.Event(), None))
    response = LinesResponse(Viewing("memory"), await anext(rest), rest)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    begun_s = asyncio.get_running_loop().time()
    with contextlib.suppress(ClientDisconnect):
        await response({"type": "http", "method": "POST", "asgi": {"spec_version": version}}, never, send)
    assert asyncio.get_running_loop().time() - begun_s == 300.0
    assert await anext(rest, None) is None  # the work has ended with its response


async def responding(*body: bytes) -> tuple[asyncio.Server, str]:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
        await reader.readexactly(int(length or 0))  # a socket that is closed with unread bytes resets the connection
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"".join(body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1")
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def listing(*names: str, more: bool = False) -> bytes:
    """Return a page of a list of channels."""
    counts = {"created_ms": 1, "updated_ms": 1, "messages": 1, "size_bytes": 1}
    return json.dumps({"channels": [{"channel": name, **counts} for name in names], "more": more}).encode()


@pytest.mark.parametrize(
    ("command", "body", "expected"),
    [
        (("forget", "ann"), b"{}\n{}\n", "did not send the whole removal: its response has no end; repeat the command"),
        (("forget", "ann"), b'{}\n{"type": "error", "error": {"detail": "it is\\u001bbusy"}}\n', "it is busy"),
        (("forget", "ann"), b"<html>\n", "check that --url names a server of Tenuto"),
        (("inspect",), b'{"a":' * 100_000, "check that --url names a server of Tenuto"),
        (("verify",), b'{"type": "error", "error": {"detail": "", "title": "Busy"}}\n', "did not end the check: Busy"),
        (("verify",), b'{"type": "error", "error": {}}\n', "did not end the check: it sent no reason"),
        (("channels",), listing("a\x1b[2Jb"), "no valid list of channels (channel name must be 1-200 characters"),
        (("channels",), listing("b", "a"), "no valid list of channels (channel 'a' is not in order); check that --url"),
        (("channels",), listing("a", more=True), "no valid list of channels (channel 'a' is not in order)"),
    ],
)
async def test_a_response_that_breaks_off_is_named(command: tuple[str, ...], body: bytes, expected: str) -> None:
    server, url = await responding(body)
    async with server:
        done = await asyncio.to_thread(cli, *command, "--url", url)
    assert (done.exit_code, expected in done.stderr) == (1, True), done.stderr


HEADER = b'{"type":"tenuto.export","format":1,"channel":"c"}\n'
LINE = b'{"type":"message","id":"m1"}\n'


LOST = (
    b'{"type":"message","id":"m1","role":"assistant","status":"failed","reason":"damaged","created_at":0,'
    b'"updated_at":0}\n'
)


def end(*lines: bytes, damaged: int = 0) -> bytes:
    """Return the last line of an export of `lines`."""
    digest = sha256(b"".join(lines)).hexdigest()
    return encode_line(End(messages=1, commands=0, sha256=digest, damaged=damaged))


@pytest.mark.parametrize(
    ("lines", "written", "expected"),
    [
        ([b"<html>\n"], 0, "sent no valid export (the line is not the header of a Tenuto export"),
        ([HEADER.replace(b"1", b"2")], 0, "the file has format 2, this version reads format 1"),
        ([HEADER.replace(b'"c"', b'"d"')], 0, "channel 'd' instead of 'c'"),
        ([HEADER, LINE], 2, "did not send the whole export: its response has no end"),
        ([HEADER, LINE, end(HEADER, LINE)[:-1]], 2, "another checksum than the rest"),
        ([HEADER, LINE, end(HEADER, LINE), b"\n"], 2, "another checksum than the rest"),
        ([HEADER, LINE, b'{"type":"end"}\n'], 2, "sent no valid export (the line is not a message, a command or an"),
        ([HEADER, LINE, end(HEADER, LINE)], 3, ""),
        ([HEADER, LOST, end(HEADER, LOST, damaged=1)], 4, "c: 1 damaged, all else is whole"),
        ([HEADER, b'{"type":"error","error":{"detail":"why"}}\n'], 1, "did not end the export: why"),
        ([HEADER, b'{"type":"error",'], 1, "sent no valid export"),
        ([HEADER, LINE[:-2] + b'"' * 2_000_000 + b"\n", end(HEADER)], 2, "another checksum than the rest"),
    ],
)
async def test_only_a_whole_export_is_written_with_its_end(lines: list[bytes], written: int, expected: str) -> None:
    server, url = await responding(*lines)
    async with server:
        done = await asyncio.to_thread(cli, "export", "c", "--url", url)
    assert (done.exit_code, expected in done.stderr) == (int(written != 3), True), done.stderr
    assert done.stdout_bytes == b"".join(lines[:written])


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:geheim@127.0.0.1",
        "http://ann:geheim@[",
        "http://127.0.0.1?geheim",
        "http://127.0.0.1/#geheim",
        "http://127.0.0.1/ä",
        f"http://{'a' * 64}.example",
        "http://:8000",
    ],
)
def test_a_wrong_url_is_refused_and_its_secrets_are_not_shown(url: str) -> None:
    done = cli("inspect", "--url", url)
    assert (done.exit_code, done.stderr.startswith("Error: --url must be like http://host:8000")) == (1, True), done
    assert "ann:" not in url or "@" not in url or "geheim" not in done.stderr
    assert "geheim" not in done.output
