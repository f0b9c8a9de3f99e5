"""The commands export, import, hold and release for one channel of a store, and forget for one person.

Layer: archiving, below `cli`.

A hub that serves the store's file carries the commands out, on its control socket. While no process has the store open,
the commands open it themselves. With `--url`, a server exports a channel over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote

import click
import msgspec

from holdfast.control_client import NotServed, call_at
from holdfast.core.errors import LocalError, StoreInUse, shown, shown_url
from holdfast.core.limits import Limits
from holdfast.core.names import check_channel, check_id
from holdfast.hub.clock import Clock
from holdfast.hub.exporting import export_lines
from holdfast.hub.forgetting import Forgetting, Receipt, direct
from holdfast.hub.importing import Imported, check_file, undo_imports, write_file
from holdfast.hub.legal_holds import LegalHolds
from holdfast.stores import open_url
from holdfast.stores.base import Store
from holdfast.stores.sqlite import SqliteStore

READ_TIMEOUT_S = 60.0  # time without a byte after which a server counts as gone
PROBLEM_BYTES = 64 * 1024


@asynccontextmanager
async def opened(url: str, *, is_new: bool = False, when_served: str = "") -> AsyncIterator[Store]:
    """Open the store that `url` names; its file must exist unless `is_new`. Raises LocalError and StoreUnusable.

    `when_served`: begins the remedy if another process has the store open.
    """
    store = open_url(url)
    if isinstance(store, SqliteStore) and not is_new and not store.path.exists():
        raise LocalError(f"store file {store.path} does not exist; name the store with --store")
    try:
        await store.open()
    except StoreInUse as error:
        raise LocalError(f"{error}. While it is served, use {when_served}hub.archive in the serving process") from None
    try:
        await undo_imports(store)
        yield store
    finally:
        await store.close()


async def export_channel(url: str, channel: str, out: BinaryIO) -> None:
    """Write the export of a channel into `out`. Raises NotFound, LocalError and the store's errors."""
    check_channel(channel)
    async with opened(url, when_served="--url, or ") as store:
        async for line in export_lines(store, channel):
            out.write(line)
        out.flush()


async def import_channel(url: str, path: Path, channel: str | None) -> Imported:
    """Import a file into an empty channel, by default that of its header. Raises the errors of `write_file`."""
    if channel is not None:
        check_channel(channel)
    limits, clock = Limits(), Clock()
    checked = await check_file(path, limits, clock.now_ms())
    async with opened(url, is_new=True) as store:
        return await write_file(store, channel or checked.channel, checked, limits, clock)


async def hold_channel(url: str, channel: str, reason: str) -> None:
    """Hold a channel of a store that no process serves. Raises the errors of `LegalHolds.hold`."""
    check_channel(channel)
    async with _holds_of(url) as holds:
        await holds.hold(channel, reason, Clock().now_ms())


async def release_channel(url: str, channel: str) -> None:
    """End the hold of a channel of a store that no process serves. Raises NotFound."""
    check_channel(channel)
    async with _holds_of(url) as holds:
        await holds.release(channel)


async def forget_client(url: str, client_id: str, *, channels: bool) -> Receipt:
    """Remove what a person wrote from a store that no process serves. Raises the errors of `Forgetting.run`."""
    check_id(client_id, "a client id")
    async with opened(url) as store:
        return await Forgetting(store, client_id, Clock(), direct, tidies=True).run(channels=channels)


@asynccontextmanager
async def _holds_of(url: str) -> AsyncIterator[LegalHolds]:
    async with opened(url) as store:
        holds = LegalHolds(store)
        await holds.load()
        yield holds


def fetch_export(server: str, channel: str, token: str | None, out: BinaryIO) -> None:
    """Write the export of a channel of a served hub into `out`. Raises LocalError."""
    from http.client import HTTPException
    from urllib import error as failed
    from urllib import request

    class NoRedirect(request.HTTPRedirectHandler):
        """Follows no redirect, because the token is for the named server only."""

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
            raise failed.HTTPError(req.full_url, code, f"redirect to {shown_url(newurl)}", headers, fp)

    url = f"{server.rstrip('/')}/v1/channels/{quote(check_channel(channel), safe='')}/export"
    if not url.startswith(("http://", "https://")):
        raise LocalError(f"--url must be like http://host:8000, got {shown(server)}")
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    opener = request.build_opener(NoRedirect)
    try:
        with opener.open(request.Request(url, headers=headers), timeout=READ_TIMEOUT_S) as response:
            shutil.copyfileobj(response, out)
        out.flush()
    except failed.HTTPError as error:
        with error:
            raise LocalError(f"{shown_url(server)} refused the export: {_problem(error)}") from None
    except (failed.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, failed.URLError) else error
        raise LocalError(f"{shown_url(server)} did not send the whole export: {reason}; try again") from None


def _problem(error: Any) -> str:
    try:
        detail = json.loads(error.read(PROBLEM_BYTES))["detail"]
    except (ValueError, LookupError, TypeError, OSError):
        detail = None
    return str(detail)[:1000] if isinstance(detail, str) else f"status {error.code} {error.reason}"


STORE = click.option("--store", default="sqlite:///holdfast.db", show_default=True, help="The store, sqlite:///path.")


@click.command()
@click.argument("channel")
@STORE
@click.option("--url", default=None, help="Where the hub is served: its server exports the channel.")
@click.option("--token", default=None, envvar="HOLDFAST_TOKEN", help="With --url: the token, or $HOLDFAST_TOKEN.")
def export(channel: str, store: str, url: str | None, token: str | None) -> None:
    """Write the messages of CHANNEL to the output, as JSON lines with a checksum."""
    out = sys.stdout.buffer
    if url is not None:
        fetch_export(url, channel, token, out)
        return
    try:
        for line in call_at(store, "export", channel=channel):
            out.write(line.encode())
        out.flush()
    except NotServed:
        asyncio.run(export_channel(store, channel, out))


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@STORE
@click.option("--channel", default=None, help="The empty channel to fill.  [default: the exported one]")
def import_file(file: Path, store: str, channel: str | None) -> None:
    """Write the messages of FILE, an export, into an empty channel, also while the store is served."""
    try:
        (value,) = call_at(store, "import", path=os.path.abspath(file), channel=channel)
        done = msgspec.convert(value, Imported)
    except NotServed:
        done = asyncio.run(import_channel(store, file, channel))
    click.echo(f"{done.channel} has {done.messages:,} messages and {done.commands:,} commands of {file}.")


@click.command()
@click.argument("channel")
@STORE
@click.option("--reason", required=True, help="Why nothing in the channel may be deleted.")
def hold(channel: str, store: str, reason: str) -> None:
    """Refuse all deletions in CHANNEL until it is released, also while the store is served."""
    try:
        list(call_at(store, "hold", channel=channel, reason=reason))
    except NotServed:
        asyncio.run(hold_channel(store, channel, reason))
    click.echo(f"{channel} is held; holdfast release ends that.")


@click.command()
@click.argument("channel")
@STORE
def release(channel: str, store: str) -> None:
    """End the hold of CHANNEL, also while the store is served."""
    try:
        list(call_at(store, "release", channel=channel))
    except NotServed:
        asyncio.run(release_channel(store, channel))
    click.echo(f"{channel} is released.")


@click.command()
@click.argument("client")
@STORE
@click.option("--channels", is_flag=True, help="Also remove the channels in which no other person wrote.")
def forget(client: str, store: str, channels: bool) -> None:
    """Remove all messages and commands of CLIENT, a client id, and print a receipt as JSON."""
    check_id(client, "a client id")
    try:
        (found,) = call_at(store, "forget", client_id=client, channels=channels)
        receipt = msgspec.convert(found, Receipt)
    except NotServed:
        receipt = asyncio.run(forget_client(store, client, channels=channels))
    click.echo(msgspec.json.format(msgspec.json.encode(receipt)))


COMMANDS = (export, import_file, hold, release, forget)
