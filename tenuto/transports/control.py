"""The control socket of a hub: calls by its operator on the same machine, without a port and without a token.

Layer: hub.

A hub whose store is a file listens on the Unix socket `FILE.ctl` while it runs. Only the user of the process connects
(mode 0600 before the socket listens). A connection carries one call: a line with the name and the arguments, then lines
with values, and a last line with `end` or with the problem object of an `error`. While a call works, an empty object
every few seconds shows that the server is alive. A call ends when its client closes the connection.

To add a call, add a function to `_CALLS`. `tenuto.cli.server_requests` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from tenuto._version import __version__
from tenuto.core.errors import Busy, InvalidRequest, LocalError, TenutoError, shown
from tenuto.hub.keep.archive import MAX_LISTED, Archive
from tenuto.hub.runtime import Runtime
from tenuto.stores.base import Store
from tenuto.stores.sqlite.backup import receipt_of
from tenuto.stores.sqlite.store import SqliteStore

logger = logging.getLogger("tenuto.hub")

MODE = 0o600
REQUEST_BYTES = 64 * 1024
REQUEST_S = 5.0  # time for a client to send its request
WRITE_S = 10.0  # time for a client to read what was sent
HEARTBEAT_S = 5.0  # time between two signs of life during a call
PROBE_S = 1.0
MAX_OPEN = 8  # calls at once


class Controlled(Protocol):
    """The parts of a hub that the calls of the control socket use."""

    store: Store
    archive: Archive

    @property
    def runtime(self) -> Runtime: ...

    def stats(self) -> dict[str, int]: ...

    def start_background(self, job: Coroutine[Any, Any, Any]) -> None: ...


Call = Callable[[Controlled, Any], AsyncGenerator[object, None]]


class ControlRequest(Struct, forbid_unknown_fields=True):
    """The request of a client: the name of a call, and its arguments as JSON."""

    call: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class BackupArguments(Struct, forbid_unknown_fields=True):
    path: str
    mb_per_s: float = 50


class ChannelArguments(Struct, forbid_unknown_fields=True):
    channel: str


class ChannelsArguments(Struct, forbid_unknown_fields=True):
    prefix: str = ""


class ForgetArguments(Struct, forbid_unknown_fields=True):
    client_id: str
    channels: bool = False


class ImportArguments(Struct, forbid_unknown_fields=True):
    path: str
    channel: str | None = None
    damaged: bool = False


class NoArguments(Struct, forbid_unknown_fields=True):
    pass


async def _backup(hub: Controlled, wanted: BackupArguments) -> AsyncGenerator[object, None]:
    target = _absolute(wanted.path)
    assert isinstance(hub.store, SqliteStore)
    await hub.store.backup(target, mb_per_s=check_speed(wanted.mb_per_s))
    yield await asyncio.to_thread(receipt_of, target)


async def _channels(hub: Controlled, wanted: ChannelsArguments) -> AsyncGenerator[object, None]:
    after: str | None = None
    while (page := await hub.archive.channels(prefix=wanted.prefix, after=after, limit=MAX_LISTED)).channels:
        for one in page.channels:
            yield one
        if not page.more:
            return
        after = page.channels[-1].channel


async def _export(hub: Controlled, wanted: ChannelArguments) -> AsyncGenerator[object, None]:
    async with contextlib.aclosing(hub.archive.export(wanted.channel)) as lines:
        async for line in lines:
            yield line.decode()


async def _import(hub: Controlled, wanted: ImportArguments) -> AsyncGenerator[object, None]:
    yield await hub.archive.import_file(_absolute(wanted.path), channel=wanted.channel, damaged=wanted.damaged)


async def _forget(hub: Controlled, wanted: ForgetArguments) -> AsyncGenerator[object, None]:
    yield await hub.archive.forget(wanted.client_id, channels=wanted.channels)


async def _inspect(hub: Controlled, _: NoArguments) -> AsyncGenerator[object, None]:
    yield state_of(hub)


_CALLS: dict[str, tuple[type[Struct], Call]] = {
    "backup": (BackupArguments, _backup),
    "channels": (ChannelsArguments, _channels),
    "export": (ChannelArguments, _export),
    "forget": (ForgetArguments, _forget),
    "import": (ImportArguments, _import),
    "inspect": (NoArguments, _inspect),
}


def state_of(hub: Controlled) -> dict[str, object]:
    """Return the version of Tenuto, the id of the process, and the counters of the hub."""
    return {"version": __version__, "pid": os.getpid(), "counters": hub.stats()}


def _absolute(path: str) -> Path:
    """Return a path that a client sent. Raises LocalError for a relative one: the server has another directory."""
    if not os.path.isabs(path):
        raise LocalError(f"path on the control socket must be absolute, got {shown(path)}")
    return Path(path)


def check_speed(mb_per_s: object) -> float:
    """Return the speed of a backup in MB per second. Raises LocalError for a value that is none."""
    if not isinstance(mb_per_s, int | float) or not 0 < mb_per_s <= 100_000:
        raise LocalError(f"mb_per_s must be a number above 0, at most 100000, got {shown(mb_per_s)}")
    return mb_per_s


def path_of(store: Path) -> Path:
    """Return the path of the control socket of the store's file, beside the real file."""
    return Path(f"{os.path.realpath(store)}.ctl")


def open_control(hub: Controlled) -> None:
    """Listen on the control socket until the hub ends, if its store is a file and the system allows it.

    The caller holds the lock of the store's file. If the hub cannot listen, it logs the cause and works without.
    """
    if not isinstance(hub.store, SqliteStore) or not hasattr(socket, "AF_UNIX"):
        return
    path = path_of(hub.store.path)
    try:
        listening = _listen(path)
    except OSError as error:
        logger.warning(
            "control socket %s cannot be opened (%s); commands such as `tenuto backup` cannot reach this hub",
            *(path, error.strerror or error),
        )
        return
    hub.start_background(_serve(hub, listening, path))


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


async def _serve(hub: Controlled, listening: socket.socket, path: Path) -> None:
    """Serve connections until the hub has drained or this task is cancelled, and remove the socket.

    After a drain the process may end at any moment: a server without a lifespan never closes the hub of a mounted app.
    """
    async with asyncio.TaskGroup() as group:
        with contextlib.ExitStack() as end:
            end.callback(_remove, path, path.lstat())  # noqa: ASYNC240
            end.callback(listening.close)
            open_now: set[asyncio.Task[None]] = set()

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = group.create_task(_serve_one(hub, reader, writer, is_full=len(open_now) >= MAX_OPEN))
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
    hub: Controlled, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_full: bool
) -> None:
    """Serve one connection. No error leaves this function but a cancellation."""
    try:
        if is_full:
            await _send(writer, {"error": Busy(f"control socket serves {MAX_OPEN} calls already; retry").problem()})
        else:
            await _serve_call(hub, reader, writer)
        writer.close()
        async with asyncio.timeout(WRITE_S):
            await writer.wait_closed()
    except (TimeoutError, ValueError, OSError) as error:  # ValueError: the line is longer than REQUEST_BYTES
        logger.debug("a connection to the control socket was closed: %r", error)
    finally:
        writer.transport.abort()


async def _serve_call(hub: Controlled, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(REQUEST_S):
        line = await reader.readline()
    working = asyncio.ensure_future(_work(hub, line, writer))
    gone = asyncio.ensure_future(_until_gone(reader))
    try:
        while not (working.done() or gone.done()):
            await asyncio.wait({working, gone}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if not (working.done() or gone.done() or writer.transport.get_write_buffer_size()):
                writer.write(b"{}\n")
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """Wait until the client closes the connection, or sends more than its request."""
    with contextlib.suppress(OSError):
        await reader.read(1)


async def _work(hub: Controlled, line: bytes, writer: asyncio.StreamWriter) -> None:
    """Run the call that `line` requests, and send its values, then its end or its error."""
    try:
        try:
            call, arguments = _decode(line)
            async with contextlib.aclosing(call(hub, arguments)) as values:
                async for value in values:
                    await _send(writer, {"value": value})
            last: dict[str, object] = {"end": True}
        except TenutoError as error:
            last = {"error": error.problem()}
        except ConnectionError:
            raise
        except Exception:
            logger.exception("a call on the control socket failed")
            last = {
                "error": TenutoError("control socket could not serve the call; check the log of the server").problem()
            }
        await _send(writer, last)
    except ConnectionError as error:
        logger.debug("a client of the control socket went away: %r", error)


def _decode(line: bytes) -> tuple[Call, Struct]:
    """Return the requested call and its arguments. Raises InvalidRequest."""
    try:
        request = msgspec.json.decode(line, type=ControlRequest)
        if request.call not in _CALLS:
            raise InvalidRequest(f"control socket has no call {shown(request.call)}; use one of {', '.join(_CALLS)}")
        arguments, call = _CALLS[request.call]
        return call, msgspec.json.decode(request.arguments, type=arguments)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"request on the control socket is not valid: {error}") from None


async def _send(writer: asyncio.StreamWriter, value: object) -> None:
    """Send a line. Raises ConnectionError if the client does not read."""
    writer.write(msgspec.json.encode(value) + b"\n")
    try:
        async with asyncio.timeout(WRITE_S):
            await writer.drain()
    except TimeoutError:
        raise ConnectionAbortedError(f"client did not read for {WRITE_S:.0f} s") from None
