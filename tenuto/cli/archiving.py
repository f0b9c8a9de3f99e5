"""The commands export and import for one channel of a store, and forget for one person.

Layer: archiving, below `cli`.

A hub that serves the store's file carries the commands out, on its control socket. While no process has the store open,
the commands open it themselves. With `--url` a server carries them out, all but import, which names a file.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from click.core import ParameterSource

from tenuto.cli.control_client import NotServed, call_at
from tenuto.cli.server_requests import export_at, forget_at
from tenuto.core.errors import LocalError, StoreInUse, shown_url
from tenuto.core.limits import Limits
from tenuto.core.names import check_channel, check_id
from tenuto.core.records import damaged_in
from tenuto.hub.clock import Clock
from tenuto.hub.keep.exporting import export_lines
from tenuto.hub.keep.forgetting import Forgetting, Forgotten, direct
from tenuto.hub.keep.importing import Imported, check_file, undo_imports, write_file
from tenuto.stores import open_url
from tenuto.stores.base import Store
from tenuto.stores.sqlite.store import SqliteStore

_OVER_HTTP = "--url, or "  # begins the remedy of a command that a server carries out, too


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
        if store.is_exclusive:  # no other process may import into it now
            await undo_imports(store)
        yield store
    finally:
        await store.close()


async def export_channel(url: str, channel: str, out: BinaryIO) -> int:
    """Write the export of a channel into `out`, and return how many messages and commands of it are damaged.

    Raises NotFound, Damaged, LocalError and the store's errors.
    """
    check_channel(channel)
    async with opened(url, when_served=_OVER_HTTP) as store:
        async for line in export_lines(store, channel):
            out.write(line)
        return damaged_in(line)


async def import_channel(url: str, path: Path, channel: str | None, *, damaged: bool) -> Imported:
    """Import a file into an empty channel, by default that of its header. Raises the errors of `write_file`."""
    if channel is not None:
        check_channel(channel)
    limits, clock = Limits(), Clock()
    checked = await check_file(path, limits, clock.now_ms(), damaged=damaged)
    async with opened(url, is_new=True) as store:
        return await write_file(store, channel or checked.channel, checked, limits, clock)


async def forget_client(url: str, client_id: str, *, channels: bool) -> Forgotten:
    """Remove what a person wrote from a store that no process serves. Raises the errors of `Forgetting.run`."""
    check_id(client_id, "a client id")
    async with opened(url, when_served=_OVER_HTTP) as store:
        return await Forgetting(store, client_id, Clock(), direct, tidies=True).run(channels=channels)


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
    show_default=True,
    callback=_one_place,
    help="The store, sqlite:///path.",
)
URL = click.option(
    "--url", default=None, callback=_one_place, help="Where the hub is served: its server is asked over HTTP."
)
TOKEN = click.option("--token", default=None, envvar="TENUTO_TOKEN", help="With --url: the token, or $TENUTO_TOKEN.")


@click.command()
@click.argument("channel")
@STORE
@URL
@TOKEN
def export(channel: str, store: str, url: str | None, token: str | None) -> None:
    """Write the messages of CHANNEL to the output, as JSON lines with a checksum.

    The exit status is 1 if messages are damaged.
    """
    if sys.stdout is None:  # closed by the caller
        raise LocalError("export has no output; give it one, such as > file.jsonl")
    out = sys.stdout.buffer
    if url is not None:
        damaged = export_at(url, channel, token, out)
    else:
        try:
            line = ""
            for line in call_at(store, "export", channel=channel):
                out.write(line.encode())
            damaged = damaged_in(line.encode())
        except NotServed:
            damaged = asyncio.run(export_channel(store, channel, out))
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
    try:
        (value,) = call_at(store, "import", path=os.path.abspath(file), channel=channel, damaged=damaged)
        done = msgspec.convert(value, Imported)
    except NotServed:
        done = asyncio.run(import_channel(store, file, channel, damaged=damaged))
    click.echo(f"{done.channel} has {done.messages:,} messages and {done.commands:,} commands of {file}.")


@click.command()
@click.argument("client")
@STORE
@URL
@TOKEN
@click.option("--channels", is_flag=True, help="Also remove the channels in which no other person wrote.")
def forget(client: str, store: str, url: str | None, token: str | None, channels: bool) -> None:
    """Remove all messages and commands of CLIENT, a client id, and print their numbers as JSON."""
    check_id(client, "a client id")
    if url is not None:
        click.echo(forget_at(url, client, token, channels=channels))
        return
    try:
        (found,) = call_at(store, "forget", client_id=client, channels=channels)
        done = msgspec.convert(found, Forgotten)
    except NotServed:
        done = asyncio.run(forget_client(store, client, channels=channels))
    click.echo(msgspec.json.format(msgspec.json.encode(done)))


COMMANDS = (export, import_file, forget)
