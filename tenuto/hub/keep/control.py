"""The control socket of a hub: its ASGI app for the operator on the same machine, without a port and without a token.

Layer: hub.

A hub whose store is a file listens on the Unix socket `FILE.ctl` while it runs. Only the user of the process connects
(mode 0600 before the socket listens). A connection carries one HTTP request into the app, and ends with its client. The
mark `CONTROL` in the scope tells the app that an operator asks (`transports.access`). `tenuto.cli.store_commands` is
the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from tenuto.core.errors import Busy, InvalidRequest, TenutoError, TooLarge
from tenuto.hub.access.identity import Scope
from tenuto.hub.hub import HubCore
from tenuto.stores.sqlite.file import control_of
from tenuto.stores.sqlite.store import SqliteStore

logger = logging.getLogger("tenuto.hub")

CONTROL = "tenuto.control"  # extension in the scope of a request on the control socket; no peer can add one
MODE = 0o600
REQUEST_BYTES = 64 * 1024  # of the head of a request, and of its body
REQUEST_S = 5.0  # time for a client to send its request
WRITE_S = 10.0  # time for a client to read what was sent
PROBE_S = 1.0
MAX_OPEN = 8  # requests at once

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]  # a type: the ASGI app of a hub


def open_control(hub: HubCore, app: App) -> None:
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
    hub.start_background(_serve(hub, app, listening, path))


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in place of one that a dead process left. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("a file that is not a socket has this name; remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_S)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError("another program listens there; end it")
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


async def _serve(hub: HubCore, app: App, listening: socket.socket, path: Path) -> None:
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


async def _serve_one(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_full: bool) -> None:
    """Serve one connection. No error leaves this function but a cancellation."""
    send = partial(_send, writer)
    try:
        try:
            if is_full:
                raise Busy(f"control socket serves {MAX_OPEN} requests already; retry")
            async with asyncio.timeout(REQUEST_S):
                scope, body = await _read_request(reader)
        except TenutoError as error:
            await send({"type": "http.response.start", "status": error.status})
            await send({"type": "http.response.body", "body": msgspec.json.encode(error.problem())})
        else:
            await _respond(app, scope, body, reader, send)
        writer.close()
        async with asyncio.timeout(WRITE_S):
            await writer.wait_closed()
    except (TimeoutError, EOFError, OSError) as error:
        logger.debug("a connection to the control socket was closed: %r", error)
    except Exception:
        logger.exception("a request on the control socket failed; please report this bug")
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


async def _respond(app: App, scope: Scope, body: bytes, reader: asyncio.StreamReader, send: Send) -> None:
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
