"""The control socket of a hub: its ASGI app for the operator on the same machine, without a port and without a token.

Layer: transports.

A hub whose store is a file listens on the Unix socket `FILE.ctl` while it runs. Only the user of the process connects
(mode 0600 before the socket listens). A connection carries one HTTP request to the hub's app, and ends with its client.
Its caller has all capabilities (`access.OPERATOR`). Only here there are `POST /v1/backup` and `POST /v1/import`, which
name files of this machine. `tenuto.cli.server_requests` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Send

from tenuto.core.errors import Busy, InvalidRequest, TenutoError, TooLarge, shown
from tenuto.hub.access.identity import Scope
from tenuto.hub.hub import HubCore
from tenuto.stores.sqlite.backup import receipt_of
from tenuto.stores.sqlite.file import control_of
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.transports.calls import read_body
from tenuto.transports.codec import decode, problem_messages
from tenuto.transports.headers import CONTROL
from tenuto.transports.http import Endpoint, lines_response

logger = logging.getLogger("tenuto.hub")

MODE = 0o600
REQUEST_BYTES = 64 * 1024  # of the head of a request, and of its body
REQUEST_S = 5.0  # time for a client to send its request
WRITE_S = 10.0  # time for a client to read what was sent
PROBE_S = 1.0
MAX_OPEN = 8  # requests at once


# -- operations that name files ------------------------------------------------------------------------------------


class BackupFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a backup into the new file `path`, at most `mb_per_s` MB in a second."""

    path: str
    mb_per_s: float = 50


class ImportFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for an import of the file `path` (`Archive.import_file`)."""

    path: str
    channel: str | None = None
    damaged: bool = False


async def _backup(hub: HubCore, wanted: BackupFile) -> AsyncGenerator[object]:
    target = _absolute(wanted.path)
    await hub.backup(target, mb_per_s=wanted.mb_per_s)
    yield {"type": "end", **await asyncio.to_thread(receipt_of, target)}


async def _import(hub: HubCore, wanted: ImportFile) -> AsyncGenerator[object]:
    done = await hub.archive.import_file(_absolute(wanted.path), channel=wanted.channel, damaged=wanted.damaged)
    yield {"type": "end", **msgspec.to_builtins(done)}


def _absolute(path: str) -> Path:
    """Return a path that a client sent. Raises InvalidRequest for a relative one: the server has another directory."""
    if not os.path.isabs(path):
        raise InvalidRequest(f"path on the control socket must be absolute, got {shown(path)}")
    return Path(path)


def _app(hub: HubCore, app: ASGIApp) -> ASGIApp:
    """Return `app`, the hub's, with the operations that name files."""

    def endpoint(work: Callable[[HubCore, Any], AsyncGenerator[object]], body: type[Struct]) -> ASGIApp:
        decoder = msgspec.json.Decoder(body)

        async def respond(request: Request) -> Response:
            return await lines_response(hub, work(hub, decode(await read_body(request, REQUEST_BYTES), decoder)))

        return Endpoint(["POST"], respond)

    only_here = {"/v1/backup": endpoint(_backup, BackupFile), "/v1/import": endpoint(_import, ImportFile)}

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        await only_here.get(scope["path"], app)(scope, receive, send)

    return routed


# -- the socket ----------------------------------------------------------------------------------------------------


def open_control(hub: HubCore, app: ASGIApp) -> None:
    """Serve `app`, the hub's, on the control socket until the hub ends, if its store is a file and the system can.

    The caller holds the lock of the store's file. If the hub cannot listen, it logs the cause and works without.
    """
    if not isinstance(hub.store, SqliteStore) or not hasattr(socket, "AF_UNIX"):
        return
    path = control_of(hub.store.path)
    try:
        listening = _listen(path)
    except OSError as error:
        logger.warning(
            "control socket %s cannot be opened (%s); commands such as `tenuto backup` cannot reach this hub",
            *(path, error.strerror or error),
        )
        return
    hub.start_background(_serve(hub, _app(hub, app), listening, path))


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in place of one that a dead process left. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("a file that is not a socket has this name; remove it")
        if _is_alive(path):
            raise OSError("another program listens there; end it")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(MODE)  # no client can connect before `listen`
        listening.listen(MAX_OPEN)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


async def _serve(hub: HubCore, app: ASGIApp, listening: socket.socket, path: Path) -> None:
    """Serve connections until the hub has drained or this task is cancelled, and remove the socket.

    After a drain the process may end at any moment: a server without a lifespan never closes the hub of a mounted app.
    """
    async with asyncio.TaskGroup() as group:
        with contextlib.ExitStack() as end:
            end.callback(_remove, path, path.lstat())  # noqa: ASYNC240
            end.callback(listening.close)
            open_now: set[asyncio.Task[None]] = set()

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = group.create_task(_serve_one(app, reader, writer, is_full=len(open_now) >= MAX_OPEN))
                open_now.add(task)
                task.add_done_callback(open_now.discard)

            server = await asyncio.start_unix_server(accept, sock=listening, limit=REQUEST_BYTES)
            end.callback(server.close)
            await hub.runtime.tasks.drained.wait()


def _remove(path: Path, mine: os.stat_result) -> None:
    """Remove the socket at `path`, unless it is that of another hub by now."""
    with contextlib.suppress(OSError):
        if os.path.samestat(path.lstat(), mine):
            path.unlink()


async def _serve_one(
    app: ASGIApp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_full: bool
) -> None:
    """Serve one connection. No error leaves this function but a cancellation."""
    send = partial(_send, writer)
    try:
        try:
            if is_full:
                raise Busy(f"control socket serves {MAX_OPEN} requests already; retry")
            async with asyncio.timeout(REQUEST_S):
                scope, body = await _read_request(reader)
        except TenutoError as error:
            for message in problem_messages(error):
                await send(message)
        else:
            await _respond(app, scope, body, reader, send)
        writer.close()
        async with asyncio.timeout(WRITE_S):
            await writer.wait_closed()
    except (TimeoutError, EOFError, OSError) as error:
        logger.debug("a connection to the control socket was closed: %r", error)
    except Exception:
        logger.exception("a request on the control socket failed")
    finally:
        writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> tuple[Scope, bytes]:
    """Return the scope and the body of a request. Raises InvalidRequest, TooLarge, EOFError, OSError."""
    try:
        first, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        method, target, _ = first.decode("ascii").split(" ")
        parts = [field.partition(b":") for field in fields]
        headers = [(name.strip().lower(), value.strip()) for name, _, value in parts]
        length = int(dict(headers).get(b"content-length", b"0"))
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise InvalidRequest(f"request on the control socket is not HTTP: {error}") from None
    if not 0 <= length <= REQUEST_BYTES:
        raise TooLarge(
            f"body of a request on the control socket has at most {REQUEST_BYTES} bytes, got {length}",
            limit=REQUEST_BYTES,
        )
    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "extensions": {CONTROL: {}},
    }
    return scope, await reader.readexactly(length)


async def _respond(app: ASGIApp, scope: Scope, body: bytes, reader: asyncio.StreamReader, send: Send) -> None:
    """Let `app` respond. It is cancelled when the client closes the connection, or sends more than its request."""
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.ensure_future(reader.read(1))

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await asyncio.wait({gone})
        return {"type": "http.disconnect"}

    working = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        gone.cancel()
        result, _ = await asyncio.gather(working, gone, return_exceptions=True)
    if isinstance(result, Exception):
        raise result


async def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Send a part of a response, whose end is that of the connection. Raises OSError if the client does not read."""
    if message["type"] == "http.response.start":
        status = HTTPStatus(message["status"])
        fields = [b"%b: %b" % (name, value) for name, value in message.get("headers", ())]
        first = f"HTTP/1.1 {status.value} {status.phrase}".encode()
        writer.write(b"\r\n".join([first, *fields, b"connection: close", b"\r\n"]))
    else:
        writer.write(message.get("body", b""))
    try:
        async with asyncio.timeout(WRITE_S):
            await writer.drain()
    except TimeoutError:
        raise ConnectionAbortedError(f"client did not read for {WRITE_S:.0f} s") from None
