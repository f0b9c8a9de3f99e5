"""The commands of operators: about the file of a store, its channels, and the records of one channel or person.

Layer: cli, below `main`.

A command works in one of three places (`server_of`): at the server of `--url`, on the control socket of the hub that
serves the store's file, or, while no process has the store open, in this process, on the store itself and without a
hub. `restore` and `compact` work on a file that no process has open; `verify` and `retention` read the file, also while
it is served, and `retention` also a database. A `Server` is a hub that serves, by its HTTP API; each of its errors is a
LocalError.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar
from urllib import error as failed
from urllib import request
from urllib.parse import quote, urlencode

import click
import msgspec
from click.core import ParameterSource

from tenuto.core.errors import InvalidName, InvalidRequest, LocalError, StoreInUse, StoreUnusable, shown, shown_url
from tenuto.core.limits import Limits
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_channel, check_id, check_prefix
from tenuto.hub.clock import Clock
from tenuto.hub.keep.archive import MAX_LISTED, ChannelPage
from tenuto.hub.keep.exports import (
    HEADER_BYTES,
    End,
    Import,
    Imported,
    check_file,
    decode_header,
    decode_line,
    export_lines,
    undo_imports,
)
from tenuto.hub.keep.exports import NOTE as IMPORT
from tenuto.hub.keep.forgetting import Forgetting, Forgotten
from tenuto.hub.keep.policies import Due, Policies, Sweep, rules_of
from tenuto.server.serving import hubs_in, is_local, load_app
from tenuto.stores import open_url
from tenuto.stores.base import Store
from tenuto.stores.sqlite.backup import give_owner_of
from tenuto.stores.sqlite.file import control_of
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.stores.sqlite.verify import FileReader

READ_TIMEOUT_S = 60.0  # time without a byte after which a server counts as gone; long calls send signs of life
LINE_BYTES = 1024 * 1024  # far above the longest line, but for messages, which are read in pieces
PROBLEM_BYTES = 64 * 1024
PAGE_BYTES = 16 * 1024 * 1024  # far above the largest page of channels
_INVALID = (msgspec.MsgspecError, ValueError, RecursionError)  # raised by decoders
_LAST = re.compile(rb'\{"type":"(end|error)"')  # begins the last line of an export

_CUT = "its response has no end"

T = TypeVar("T")


def at_url(url: str, token: str | None) -> Server:
    """Return the server at `url`. Raises LocalError for an address or a token that cannot be right."""
    from tenuto.client.connection import check_address  # imported here, because the import is slow

    parts = check_address(url, name="--url", example="http://host:8000/path")
    is_plain = url.isascii() and url.isprintable() and not any(mark in url for mark in " ?#")
    if not is_plain or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise LocalError(
            "--url must be like http://host:8000/path, in ASCII and without a user, a query or a fragment (the token "
            f"goes in TENUTO_TOKEN), got {shown_url(url)}"
        )
    if token is not None and not (token.isascii() and token.isprintable()):
        raise LocalError(
            f"--token must be one line of printable ASCII text, got {len(token)} characters; check TENUTO_TOKEN for "
            "a line end"
        )
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    proxies = [request.ProxyHandler({})] if is_local(parts.hostname or "") else []  # http_proxy is for other machines
    opener = request.build_opener(_NoRedirect, *proxies)
    return Server(shown_url(url), url.rstrip("/"), headers, opener, "check that --url names a server of Tenuto")


def beside(store: Path) -> Server | None:
    """Return the server of the file `store`; None if no process listens on its control socket. Raises LocalError."""
    path = control_of(store)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(READ_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            if not path.exists():  # for example: the path is too long for a socket
                return None
            reason = error.strerror or error
            raise LocalError(
                f"control socket {path} cannot be used ({reason}); run the command as the user of the server"
            ) from None
    opener = request.build_opener(_NoRedirect, request.ProxyHandler({}), _OnSocket(path))
    return Server(f"control socket {path}", "http://localhost", {}, opener, "check which program listens there")


class _NoRedirect(request.HTTPRedirectHandler):
    """Follows no redirect, because the token is for the named server only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise failed.HTTPError(req.full_url, code, f"redirect to {shown_url(newurl)}", headers, fp)


class _OnSocket(request.HTTPHandler):
    """Sends requests on the Unix socket at `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(partial(_SocketConnection, self._path), req)


class _SocketConnection(HTTPConnection):
    def __init__(self, path: Path, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def send(self, data: Any) -> None:
        with contextlib.suppress(ConnectionError):  # a hub that is busy responds before it has read the request
            super().send(data)


@dataclass(frozen=True)
class Server:
    """A hub that serves, and the operations that it carries out for a command."""

    name: str  # in messages
    address: str
    headers: dict[str, str]
    opener: request.OpenerDirector
    remedy: str  # for a response that is not that of a hub

    def channels(self, prefix: str) -> Iterator[ChannelSummary]:
        """Yield the channels whose names begin with `prefix`, in order."""
        what, query = "list of channels", {"prefix": prefix, "limit": str(MAX_LISTED)}
        while True:
            page = self._get(what, f"/v1/channels?{urlencode(query)}", ChannelPage)
            for one in page.channels:
                with self._valid(what):
                    is_next = check_channel(one.channel) > query.get("after", "")
                if not is_next:
                    raise self._invalid(what, f"channel {one.channel!r} is not in order")
                query["after"] = one.channel
            yield from page.channels
            if not page.more or not page.channels:
                return

    def export(self, channel: str, out: BinaryIO) -> int:
        """Write the export of a channel into `out`, and return how many of its messages are damaged.

        The last line is written once its checksum is right, so `tenuto import` refuses what is written of any other
        response. Memory holds a piece of a line.
        """
        path = f"/v1/channels/{quote(check_channel(channel), safe='')}/export"
        with self._response("export", path) as response:
            line = response.readline(HEADER_BYTES)
            with self._valid("export"):
                header = decode_header(line)
            if header.channel != channel or not line.endswith(b"\n"):
                raise self._invalid("export", f"channel {shown(header.channel)} instead of {channel!r}")
            digest, kind = hashlib.sha256(), None
            while kind is None:
                digest.update(line)
                out.write(line)
                is_begin, line = line.endswith(b"\n"), response.readline(LINE_BYTES)
                if not line:
                    raise HTTPException(_CUT)
                kind = _LAST.match(line) if is_begin else None  # else a further piece of a long line
            if kind[1] == b"error":
                raise self._ended("export", self._decoded("export", line, dict[str, Any]))
            with self._valid("export"):
                end = decode_line(line)
            assert isinstance(end, End)
            if end.sha256 != digest.hexdigest() or not line.endswith(b"\n") or response.read(1):
                raise self._invalid("export", "its last line has another checksum than the rest")
            out.write(line)
        return end.damaged

    def health(self) -> str:
        """Return the state of a hub that reads and writes its store. Raises LocalError for a hub that cannot."""
        return _printable(self._get("health report", "/readyz", dict[str, Any]).get("status"))

    def state(self) -> dict[str, Any]:
        """Return the state of the hub."""
        return self._get("state", "/v1/inspect", dict[str, Any])

    def damage(self) -> Iterator[str]:
        """Yield a line for each damaged part of the hub's store."""
        for line in self._lines("check", "/v1/verify", {}):
            if line.get("type") == "damage":
                yield _printable(line.get("detail"))

    def result(self, what: str, path: str, wanted: Mapping[str, object], kind: type[T]) -> T:
        """Return the result of a long operation; `what` names it."""
        *_, end = self._lines(what, path, wanted)
        del end["type"]
        with self._valid(what):
            return msgspec.convert(end, kind)

    def _get(self, what: str, path: str, kind: type[T]) -> T:
        with self._response(what, path) as response:
            body = response.read(PAGE_BYTES)
            if response.length and len(body) < PAGE_BYTES:  # a read with a bound raises no error for a cut body
                raise HTTPException(_CUT)
        return self._decoded(what, body, kind)

    def _lines(self, what: str, path: str, wanted: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Yield the lines of a response up to its end. Raises the error of a line."""
        with self._response(what, path, wanted) as response:
            while text := response.readline(LINE_BYTES):
                line = self._decoded(what, text, dict[str, Any])
                if line.get("type") == "error":
                    raise self._ended(what, line)
                yield line
                if line.get("type") == "end":
                    return
            raise HTTPException(_CUT)  # `_response` turns it into a LocalError

    @contextlib.contextmanager
    def _response(self, what: str, path: str, wanted: object = None) -> Iterator[Any]:
        """Yield the response to a request, for reading in the block; `wanted` is the body of a POST."""
        headers, data = self.headers, None
        if wanted is not None:
            headers, data = {**headers, "content-type": "application/json"}, msgspec.json.encode(wanted)
        asked = request.Request(self.address + path, data, headers)
        try:
            with self.opener.open(asked, timeout=READ_TIMEOUT_S) as response:
                yield response
        except failed.HTTPError as error:
            with error:
                raise LocalError(f"{self.name} refused the {what}: {_problem_text(error)}") from None
        except BrokenPipeError:  # no program reads the output of the block
            raise
        except (failed.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = error.reason if isinstance(error, failed.URLError) else error
            if isinstance(reason, ConnectionRefusedError):
                raise LocalError(f"no server responds at {self.name}; start it, or name its address") from None
            raise LocalError(
                f"{self.name} did not send the whole {what}: {_printable(reason)}; repeat the command"
            ) from None

    def _decoded(self, what: str, data: bytes, kind: type[T]) -> T:
        with self._valid(what):
            return msgspec.json.decode(data, type=kind)

    @contextlib.contextmanager
    def _valid(self, what: str) -> Iterator[None]:
        """Raise LocalError if the block cannot decode a part of the response."""
        try:
            yield
        except (*_INVALID, InvalidName, InvalidRequest) as error:
            raise self._invalid(what, error) from None

    def _ended(self, what: str, line: dict[str, Any]) -> LocalError:
        reason = _detail(line.get("error")) or "it sent no reason; see its log"
        return LocalError(f"{self.name} did not end the {what}: {reason}")

    def _invalid(self, what: str, reason: object) -> LocalError:
        return LocalError(f"{self.name} sent no valid {what} ({reason}); {self.remedy}")


def _problem_text(error: failed.HTTPError) -> str:
    try:
        problem = msgspec.json.decode(error.read(PROBLEM_BYTES))
    except (*_INVALID, OSError, HTTPException):
        problem = None
    return _detail(problem) or f"status {error.code} {_printable(error.reason)}"


def _detail(problem: object) -> str:
    """Return the text of a problem object: its detail, or else its title or code."""
    texts = [problem.get(name) for name in ("detail", "title", "code")] if isinstance(problem, dict) else []
    return next((_printable(one)[:1000] for one in texts if isinstance(one, str) and one), "")


def _printable(text: object) -> str:
    """Return `text` without control characters, which a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


PAGE = 200  # channels or messages in one read of a database
_ASK = "for another store ask its server with --url http://host:8000"


def server_of(store: str, url: str | None = None, token: str | None = None) -> Server | None:
    """Return the server that carries out a command: at `url`, or of the file `store`; None: this process does it."""
    if url is not None:
        return at_url(url, token)
    known = open_url(store)
    return beside(known.path) if isinstance(known, SqliteStore) else None


@asynccontextmanager
async def opened(url: str, *, is_new: bool = False) -> AsyncIterator[Store]:
    """Open the store that `url` names; its file must exist unless `is_new`. Raises LocalError and StoreUnusable."""
    store, made = open_url(url), None
    if isinstance(store, SqliteStore) and not store.path.exists():
        if not is_new:
            raise LocalError(f"store file {store.path} does not exist; name the store with --store")
        made = Path(os.path.realpath(store.path))  # noqa: ASYNC240
    try:
        await store.open()
    except StoreInUse as error:
        raise LocalError(
            f"{error}. The hub there has no control socket (its log has the cause): use hub.archive or hub.backup in "
            "its process, or, for export and forget, --url"
        ) from None
    try:
        yield store
    finally:
        await store.close()
        if made is not None:  # perhaps by root, in the folder of the user that will serve it
            with contextlib.suppress(OSError):
                give_owner_of(made, made)


async def export_channel(url: str, channel: str, out: BinaryIO) -> int:
    """Write the export of a channel into `out`, and return how many messages and commands of it are damaged.

    Raises NotFound, Damaged, LocalError and the store's errors.
    """
    async with opened(url) as store:
        async for line in export_lines(store, channel):
            out.write(line)
        end = decode_line(line)
        assert isinstance(end, End)
        return end.damaged


async def import_channel(url: str, path: Path, channel: str | None, *, damaged: bool) -> Imported:
    """Import a file into an empty channel, by default that of its header. Raises the errors of `Import.run`."""
    if channel is not None:
        check_channel(channel)
    limits, clock = Limits(), Clock()
    checked = await check_file(path, limits, clock.now_ms(), damaged=damaged)
    async with opened(url, is_new=True) as store:
        return await Import(store, channel or checked.channel, checked, clock).run()


async def forget_client(url: str, client_id: str, *, channels: bool) -> Forgotten:
    """Remove what a person wrote from a store that no process serves. Raises the errors of `Forgetting.run`."""
    async with opened(url) as store:
        if store.is_exclusive:  # no other process may import into it now
            await undo_imports(store)
        return await Forgetting(store, client_id, Clock()).run(channels=channels)


async def back_up(url: str, file: Path, mb_per_s: float) -> None:
    """Write a backup of a store that no process serves. Raises the errors of `SqliteStore.backup`."""
    async with opened(url) as store:
        assert isinstance(store, SqliteStore)
        await store.backup(file, mb_per_s=mb_per_s)


def _one_place(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return the value of --url or --store. Raises LocalError if a command has both: it works in one place.

    Also for --token without --url. Click calls this for an option that is not given after those that are.
    """
    url, store, token = (
        context.get_parameter_source(one) is ParameterSource.COMMANDLINE for one in ("url", "store", "token")
    )
    if token and option.name == "url" and not url:
        raise LocalError(
            "--token has no effect without --url; give --url for a hub that a server serves, or leave the token out: a "
            "command beside the file needs none"
        )
    if url and store:
        given = {**context.params, option.name: value}
        raise LocalError(
            f"command names two places, --url {shown_url(given['url'])} and --store {shown_url(given['store'])}; give "
            "--url for a hub that a server serves, or --store for a file"
        )
    return value


STORE = click.option(
    "--store",
    default="sqlite:///tenuto.db",
    envvar="TENUTO_STORE",
    show_default=True,
    callback=_one_place,
    help="The store, sqlite:///path.",
)
URL = click.option(
    "--url", default=None, callback=_one_place, help="Where the hub is served: its server is asked over HTTP."
)
TOKEN = click.option("--token", default=None, envvar="TENUTO_TOKEN", help="With --url: the token, or $TENUTO_TOKEN.")


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name its place."""
    return STORE(URL(TOKEN(command)))


@click.command()
@click.argument("channel")
@_place
def export(channel: str, store: str, url: str | None, token: str | None) -> None:
    """Write the messages of CHANNEL to the output, as JSON lines with a checksum.

    The exit status is 1 if messages are damaged.
    """
    if sys.stdout is None:  # closed by the caller
        raise LocalError("export has no output; give it one, such as > file.jsonl")
    out = sys.stdout.buffer
    check_channel(channel)
    server = server_of(store, url, token)
    damaged = server.export(channel, out) if server else asyncio.run(export_channel(store, channel, out))
    out.flush()
    if damaged:
        click.echo(
            f"{channel}: {damaged} damaged, all else is whole; an earlier backup may have them whole, and tenuto "
            "import takes this file only with --damaged",
            err=True,
        )
        sys.exit(1)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@STORE
@click.option("--channel", default=None, help="The empty channel to fill.  [default: the exported one]")
@click.option("--damaged", is_flag=True, help="Also import a file in which messages are damaged.")
def import_file(file: Path, store: str, channel: str | None, damaged: bool) -> None:
    """Write the messages of FILE, an export, into an empty channel, also while the store is served."""
    if server := server_of(store):
        wanted = {"path": os.path.abspath(file), "channel": channel, "damaged": damaged}
        done = server.result("import", "/v1/import", wanted, Imported)
    else:
        done = asyncio.run(import_channel(store, file, channel, damaged=damaged))
    click.echo(f"{done.channel} has {done.messages:,} messages and {done.commands:,} commands of {file}.")


@click.command()
@click.argument("client")
@_place
@click.option("--channels", is_flag=True, help="Also remove the channels in which no other person wrote.")
def forget(client: str, store: str, url: str | None, token: str | None, channels: bool) -> None:
    """Remove all messages and commands of CLIENT, a client id, and print their numbers as JSON."""
    check_id(client, "a client id")
    if server := server_of(store, url, token):
        wanted = {"client_id": client, "channels": channels}
        done = server.result("removal", "/v1/forget", wanted, dict[str, Any])
    else:
        done = msgspec.to_builtins(asyncio.run(forget_client(store, client, channels=channels)))
    _print_json(done)


def _print_json(value: object) -> None:
    """Print JSON in ASCII, because a terminal obeys some characters."""
    click.echo(json.dumps(value, indent=2))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@STORE
@click.option(
    "--mb-per-s", default=None, type=click.FloatRange(0, 100_000, min_open=True), help="Limit.  [default: 50 if served]"
)
def backup(file: Path, store: str, mb_per_s: float | None) -> None:
    """Write a backup of a store into FILE, also while it is served."""
    from tenuto.stores.sqlite.backup import check_target, receipt_of

    path = sqlite_store(store).path
    check_target(file, path)
    server = server_of(store)
    if server is None:
        asyncio.run(back_up(store, file, mb_per_s or 100_000))
    else:
        wanted = {"path": os.path.abspath(file), "mb_per_s": mb_per_s or 50}
        written = server.result("backup", "/v1/backup", wanted, dict[str, Any])
        if not file.exists() or any(written.get(name) != value for name, value in receipt_of(file).items()):
            raise LocalError(
                f"backup {os.path.abspath(file)} was written by the process that serves {path}, and is not "
                "here: that process has other disks, as in a container; name a folder that both have"
            )
    click.echo(f"{file} is a backup of {path}, {file.stat().st_size:,} bytes.")


@click.command()
@_place
def inspect(store: str, url: str | None, token: str | None) -> None:
    """Show the state of the hub that serves a store, as JSON: version, process id and counters."""
    path = sqlite_store(store, remedy=_ASK).path if url is None else None
    server = server_of(store, url, token)
    if server is None:
        raise LocalError(f"store file {path} has no control socket; start its server, or check its log")
    _print_json(server.state())


@click.command()
@click.argument("backup", required=False, type=click.Path(path_type=Path))
@STORE
@click.option("--keep-wal", is_flag=True, help="No backup: the -wal beside the file is its own.")
def restore(backup: Path | None, store: str, keep_wal: bool) -> None:
    """Put BACKUP in the place of a store's file, which is kept under another name."""
    from tenuto.stores.sqlite import backup as sqlite_backup

    path = sqlite_store(store).path
    if (backup is None) != keep_wal:
        raise LocalError("restore needs either a BACKUP or --keep-wal; give one of them")
    if backup is None:
        sqlite_backup.keep_wal(path)
        click.echo(f"The next start of {path} uses its -wal, and begins new epochs.")
        return
    kept, damage = sqlite_backup.restore(backup, path)
    click.echo(f"{path} is now the content of {backup}; its next start begins new epochs.")
    if kept is not None:
        click.echo(f"The replaced file is {kept}.")
    for line in damage:
        click.echo(line, err=True)
    if damage:
        found = len(damage)
        click.echo(f"{backup}: {found} damaged, all else is whole; an earlier backup may have them whole", err=True)


@click.command()
@STORE
def compact(store: str) -> None:
    """Make the file of a store smaller: without its free space. No process may have it open."""
    from tenuto.stores.sqlite import compact as sqlite_compact

    path = sqlite_store(store).path
    try:
        before, after = sqlite_compact.compact(path)
    except StoreInUse as error:
        raise LocalError(f"{error}. A store cannot be compacted while a process has it open") from None
    click.echo(f"{path} had {before:,} bytes, and has {after:,} now.")


@click.command()
@_place
def verify(store: str, url: str | None, token: str | None) -> None:
    """Check each message of a store, also while it is served; the exit status is 1 if one is damaged."""
    from tenuto.stores.sqlite import verify as sqlite_verify

    if url is not None:
        server = at_url(url, token)
        found = _print_damage(server.name, server.damage())
    else:
        path = sqlite_store(store).path
        found = _print_damage(str(path), sqlite_verify.verify(path))
        size_bytes, free_bytes = sqlite_verify.free_space(path)
        if free_bytes * 2 > size_bytes:
            click.echo(f"{path}: {free_bytes:,} of {size_bytes:,} bytes are free; tenuto compact gives them back")
    if found:
        sys.exit(1)


def _print_damage(place: str, lines: Iterator[str]) -> int:
    """Print the lines and their number, and return this number."""
    found = 0
    for line in lines:
        click.echo(line)
        found += 1
    click.echo(f"{place}: {found} damaged" if found else f"{place}: no damage found")
    return found


@click.command()
@click.argument("prefix", default="")
@_place
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object for each channel.")
def channels(prefix: str, store: str, url: str | None, token: str | None, is_json: bool) -> None:
    """List the channels of a store whose names begin with PREFIX, also while it is served."""
    check_prefix(prefix)
    server = server_of(store, url, token)
    found = server.channels(prefix) if server else _found(store, lambda reads: _listed(reads, [f"{prefix}*"]))
    if is_json:
        for one in found:  # in ASCII, because a terminal obeys some characters
            click.echo(json.dumps(msgspec.to_builtins(one), separators=(",", ":")))
        return
    first = list(islice(found, 1))  # an error of the first page comes before the table
    click.echo(f"{'messages':>10} {'bytes':>14}  {'updated (UTC)':<19}  channel")
    for one in chain(first, found):
        name = one.channel if one.channel.isprintable() else shown(one.channel)
        click.echo(f"{one.messages:>10,} {one.size_bytes:>14,}  {_utc(one.updated_ms):<19}  {name}")


def _utc(at_ms: int) -> str:
    """Return a time of a list. A changed bit in the file can make it one that no calendar has."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "damaged"


@click.command()
@STORE
@click.option("--dry-run", is_flag=True, required=True, help="Required: messages go only in a hub that serves.")
@click.option("--app", "target", default=None, metavar="MODULE:NAME", help="Use the rules of this hub.")
@click.option("--keep", "ages", multiple=True, metavar="PATTERN=AGE", help="A rule, such as chat:*=90d; repeatable.")
def retention(store: str, dry_run: bool, target: str | None, ages: tuple[str, ...]) -> None:
    """Say which messages retention would remove now, also while the store is served."""
    if (target is None) == (not ages):
        raise LocalError("retention needs rules: give either --app MODULE:NAME or --keep PATTERN=AGE")
    rules = rules_of("--keep", ages)
    hubs = hubs_in(load_app(target)) if target is not None else []
    if target is not None and not any(one.retainer.policies for one in hubs):
        raise LocalError(f"--app {target} has no hub with the setting retention; give rules with --keep")
    policies = [one.retainer.policies for one in hubs] or [Policies(rules)]
    total = size_bytes = damaged = 0
    for policy in policies:
        for due in _found(store, partial(due_in, policies=policy, now_ms=time.time_ns() // 1_000_000)):
            if due.damage is not None:
                click.echo(f"retention leaves out a channel that cannot be read: {due.damage}", err=True)
                damaged += 1
                continue
            gone = "  (the whole channel)" if due.is_gone else ""
            click.echo(f"{due.messages:>10,} {due.size_bytes:>14,}  {due.channel}{gone}")
            total, size_bytes = total + due.messages, size_bytes + due.size_bytes
    click.echo(f"{total:,} messages with {size_bytes:,} bytes would go.")
    if damaged:
        sys.exit(1)


def _found(url: str, read: Callable[[Store | FileReader], AsyncIterator[T]]) -> Iterator[T]:
    """Yield what `read` finds in a file, which may be served meanwhile, or in a database."""

    async def values() -> AsyncIterator[T]:
        if open_url(url).is_exclusive:
            async for one in read(FileReader(sqlite_store(url).path)):
                yield one
        else:
            async with opened(url) as store:
                async for one in read(store):
                    yield one

    found = values()

    async def following() -> T | None:
        return await anext(found, None)

    with asyncio.Runner() as runner:
        while (one := runner.run(following())) is not None:
            yield one


async def _listed(store: Store | FileReader, within: Sequence[str]) -> AsyncIterator[ChannelSummary]:
    """Yield the channels of a store, without those into which an import runs (`Store.summaries`)."""
    importing = await store.notes(IMPORT)
    after = None
    while page := await store.summaries(within, after=after, limit=PAGE):
        for one in page:
            if IMPORT + one.channel not in importing:
                yield one
        after = page[-1].channel


async def due_in(store: Store | FileReader, *, policies: Policies, now_ms: int) -> AsyncIterator[Due]:
    """Yield what retention would remove of each channel of a store at `now_ms`; of a damaged one, its damage."""
    async for summary in _listed(store, policies.within()):
        policy = policies.find(summary.channel)
        if policy is None or not Sweep(policy, summary, now_ms).is_needed:  # without a read, as for most channels
            continue
        try:
            sweep = Sweep(policy, summary, now_ms, is_busy=bool(await store.open_documents(summary.channel)))
            while sweep.is_needed and not sweep.is_over:
                facts = (await store.facts(summary.channel, after=sweep.after, limit=PAGE)).facts
                sweep.take(facts, is_last=len(facts) < PAGE)
            due = sweep.due
        except StoreUnusable as error:
            due = Due(summary.channel, 0, 0, False, str(error))
        if due.messages or due.is_gone or due.damage is not None:
            yield due


def sqlite_store(url: str, *, remedy: str = "PostgreSQL has its own tools for this") -> SqliteStore:
    """Return the store in a file that `url` names. Raises LocalError with the remedy for another store."""
    store = open_url(url)
    if not isinstance(store, SqliteStore):
        raise LocalError(f"--store must name a file, sqlite:///path, got {shown_url(url)}; {remedy}")
    return store


COMMANDS = (backup, inspect, restore, compact, verify, channels, retention, export, import_file, forget)
