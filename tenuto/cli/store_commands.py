"""The commands of operators: about the file of a store, its channels, and the records of one channel or person.

Layer: store_commands, below `cli.main`.

A command works in one of three places (`server_of`): at the server of `--url`, on the control socket of the hub that
serves the store's file, or, while no process has the store open, in this process, on the store itself and without a
hub. `restore` and `compact` work on a file that no process has open; `verify` and `retention` read the file, also while
it is served, and `retention` also a database.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click
import msgspec
from click.core import ParameterSource

from tenuto.core.errors import LocalError, StoreInUse, shown, shown_url
from tenuto.core.limits import Limits
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_channel, check_id, check_prefix
from tenuto.core.records import damaged_in
from tenuto.core.retention import Due, Policies, Sweep, rules_of
from tenuto.hub.clock import Clock
from tenuto.hub.keep.backups import check_speed
from tenuto.hub.keep.exports import NOTE as IMPORT
from tenuto.hub.keep.exports import Imported, check_file, export_lines, undo_imports, write_file
from tenuto.hub.keep.forgetting import Forgetting, Forgotten, direct
from tenuto.server.serving import hubs_in, load_app
from tenuto.stores import open_url
from tenuto.stores.base import Store
from tenuto.stores.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from tenuto.cli.server_requests import Server

PAGE = 200  # channels or messages in one read of a database
_ASK = "for another store ask its server with --url http://host:8000"

T = TypeVar("T")


def server_of(store: str, url: str | None = None, token: str | None = None) -> Server | None:
    """Return the server that carries out a command: that at `url`, or else of the file `store`, if a hub serves it."""
    from tenuto.cli.server_requests import at_url, beside  # imported here, because the import is slow

    if url is not None:
        return at_url(url, token)
    known = open_url(store)
    return beside(known.path) if isinstance(known, SqliteStore) else None


@asynccontextmanager
async def opened(url: str, *, is_new: bool = False) -> AsyncIterator[Store]:
    """Open the store that `url` names; its file must exist unless `is_new`. Raises LocalError and StoreUnusable."""
    store = open_url(url)
    if isinstance(store, SqliteStore) and not is_new and not store.path.exists():
        raise LocalError(f"store file {store.path} does not exist; name the store with --store")
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


async def export_channel(url: str, channel: str, out: BinaryIO) -> int:
    """Write the export of a channel into `out`, and return how many messages and commands of it are damaged.

    Raises NotFound, Damaged, LocalError and the store's errors.
    """
    check_channel(channel)
    async with opened(url) as store:
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
    async with opened(url) as store:
        if store.is_exclusive:  # no other process may import into it now
            await undo_imports(store)
        return await Forgetting(store, client_id, Clock(), direct, tidies=True).run(channels=channels)


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
@STORE
@URL
@TOKEN
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
    if mb_per_s is not None:
        check_speed(mb_per_s)
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
@STORE
@URL
@TOKEN
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
    done = sqlite_backup.restore(backup, path)
    click.echo(f"{path} is now the content of {backup}; its next start begins new epochs.")
    if done.kept is not None:
        click.echo(f"The replaced file is {done.kept}.")
    for line in done.damage:
        click.echo(line, err=True)
    if done.damage:
        found = len(done.damage)
        click.echo(f"{backup}: {found} damaged, all else is whole; an earlier backup may have them whole", err=True)


@click.command()
@STORE
def compact(store: str) -> None:
    """Make the file of a store smaller: without its free space. No process may have it open."""
    from tenuto.stores.sqlite import compact as sqlite_compact

    path = sqlite_store(store).path
    try:
        sizes = sqlite_compact.compact(path)
    except StoreInUse as error:
        raise LocalError(f"{error}. A store cannot be compacted while a process has it open") from None
    click.echo(f"{path} had {sizes.before:,} bytes, and has {sizes.after:,} now.")


@click.command()
@STORE
@URL
@TOKEN
def verify(store: str, url: str | None, token: str | None) -> None:
    """Check each message of a store, also while it is served; the exit status is 1 if one is damaged."""
    from tenuto.cli.server_requests import at_url
    from tenuto.stores.sqlite import verify as sqlite_verify

    if url is not None:
        server = at_url(url, token)
        found = _print_damage(server.name, server.damage())
    else:
        path = sqlite_store(store, remedy=_ASK).path
        found = _print_damage(str(path), sqlite_verify.verify(path))
        size_bytes, free_bytes = sqlite_verify.free_space(path)
        if free_bytes * 2 > size_bytes:
            click.echo(f"{path}: {free_bytes:,} of {size_bytes:,} bytes are free; tenuto compact gives them back")
    if found:
        sys.exit(1)


def _print_damage(place: str, lines: Iterator[str]) -> int:
    """Print the lines and their number, and return it."""
    found = 0
    for line in lines:
        click.echo(line)
        found += 1
    click.echo(f"{place}: {found} damaged" if found else f"{place}: no damage found")
    return found


@click.command()
@click.argument("prefix", default="")
@STORE
@URL
@TOKEN
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object for each channel.")
def channels(prefix: str, store: str, url: str | None, token: str | None, is_json: bool) -> None:
    """List the channels of a store whose names begin with PREFIX, also while it is served."""
    check_prefix(prefix)
    server = server_of(store, url, token)
    found = server.channels(prefix) if server else _channels_in(store, prefix)
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


def _channels_in(url: str, prefix: str) -> Iterator[ChannelSummary]:
    """Yield channels from a file or from a database."""
    from tenuto.stores.sqlite.verify import list_channels

    if is_shared(url):
        yield from asyncio.run(_collected(url, lambda store: _listed(store, [f"{prefix}*"])))
    else:
        yield from list_channels(sqlite_store(url).path, prefix)


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
        for due in _due_in(store, policy, time.time_ns() // 1_000_000):
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


def _due_in(url: str, policies: Policies, now_ms: int) -> Iterator[Due]:
    """Yield what retention would remove from a file or a database."""
    from tenuto.stores.sqlite.verify import due_channels

    if is_shared(url):
        yield from asyncio.run(_collected(url, lambda store: _due(store, policies, now_ms)))
    else:
        yield from due_channels(sqlite_store(url).path, policies, now_ms)


def is_shared(url: str) -> bool:
    """Return whether `url` names a store that other processes may have open."""
    return not open_url(url).is_exclusive


async def _collected(url: str, read: Callable[[Store], AsyncIterator[T]]) -> list[T]:
    async with opened(url) as store:
        return [one async for one in read(store)]


async def _listed(store: Store, within: Sequence[str]) -> AsyncIterator[ChannelSummary]:
    """Yield the channels of an open store, without those into which an import runs (`Store.summaries`)."""
    importing = await store.notes(IMPORT)
    after = None
    while page := await store.summaries(within, after=after, limit=PAGE):
        for one in page:
            if IMPORT + one.channel not in importing:
                yield one
        after = page[-1].channel


async def _due(store: Store, policies: Policies, now_ms: int) -> AsyncIterator[Due]:
    """Yield what retention would remove of each channel of an open store at `now_ms`."""
    async for summary in _listed(store, policies.within()):
        policy = policies.find(summary.channel)
        if policy is None or not Sweep(policy, summary, now_ms).is_needed:
            continue
        sweep = Sweep(policy, summary, now_ms, is_busy=bool(await store.open_documents(summary.channel)))
        while sweep.is_needed and not sweep.is_over:
            facts = (await store.facts(summary.channel, after=sweep.after, limit=PAGE)).facts
            sweep.take(facts, is_last=len(facts) < PAGE)
        if sweep.due.messages or sweep.is_emptied:
            yield sweep.due


def sqlite_store(url: str, *, remedy: str = "PostgreSQL has its own tools for this") -> SqliteStore:
    """Return the store in a file that `url` names. Raises LocalError with the remedy for another store."""
    store = open_url(url)
    if not isinstance(store, SqliteStore):
        raise LocalError(f"--store must name a file, sqlite:///path, got {shown_url(url)}; {remedy}")
    return store


COMMANDS = (backup, inspect, restore, compact, verify, channels, retention, export, import_file, forget)
