"""The `tenuto` command: serve, demo, tail, and the commands of `store_commands`.

Layer: cli, the highest: this module may import all others. An error that a user can act on is one line and exit
status 1; a traceback means a bug of Tenuto. The files of the app that `tenuto new` writes are in `starter`, as text, so
that no tool takes them for modules of Tenuto.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from tenuto._version import __version__
from tenuto.cli import store_commands
from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.hub import HubCore
from tenuto.hub.access import identity
from tenuto.hub.access.identity import Authenticate
from tenuto.hub.channel import FLUSH_CLASSES_MS
from tenuto.hub.keep.backups import BackupSchedule
from tenuto.hub.keep.policies import rules_of
from tenuto.server.serving import (
    PORT_TRIES,
    address_of,
    check_guarded,
    check_loopback,
    hubs_in,
    is_local,
    listen,
    load_app,
    longest_drain_s,
    run,
)
from tenuto.server.workers import SOCKET, beat, check_shared, inherited_socket, run_workers

DEFAULT_PORT = 8000
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors that a user can act on
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


class _Group(click.Group):
    """Commands whose TenutoErrors are printed as one line, and so are the system's errors about a file or the output.

    A command whose output is a pipe that no program reads any more ends without a line.
    """

    def make_context(self, *arguments: Any, **fields: Any) -> click.Context:
        with _as_one_line():  # the output of --version and --help
            return super().make_context(*arguments, **fields)

    def invoke(self, ctx: click.Context) -> Any:
        with _as_one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _as_one_line() -> Iterator[None]:
    """Raise errors of the block that a user can act on as those of click, which prints them as one line."""
    try:
        yield
    except TenutoError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        if error.filename is None:  # of a write, not of the opening of a file
            if error.errno not in _OF_DISK:
                raise  # such as that of a closed pipe, at which click ends the command
            _drop_output()
            raise click.ClickException(
                f"output or a file cannot be written: {error.strerror}; check its disk, and repeat the command"
            ) from None
        path = shown(str(error.filename))
        raise click.ClickException(
            f"file {path} cannot be used: {error.strerror}; check its name, its owner and its disk"
        ) from None


def _drop_output() -> None:
    """Drop output that cannot be written. Otherwise the end of the process would try it again, and fail."""
    try:
        sys.stdout.flush()
    except OSError as error:
        out, kept = sys.stdout.fileno(), os.dup(sys.stdout.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
        if error.errno != errno.EPIPE:  # a disk may have space again, for output of the app
            sys.stdout.flush()
            os.dup2(kept, out)


def _print(text: str, *, err: bool = False) -> None:
    """Print a line of a server that starts: it also serves with a full disk, on which it can still read."""
    try:
        click.echo(text, err=err)
    except OSError:
        _drop_output()


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="tenuto")
def main() -> None:
    """Tenuto: a durable realtime transport for AI conversations."""


@main.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback need a verifier."
)
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", help="memory://, sqlite:////full/path or postgresql://host/db  [default: sqlite:///tenuto.db]")
@click.option("--bus", metavar="URL", help="redis://host:6379, a Redis or Valkey server for notices between processes.")
@click.option(
    "--flush-ms",
    type=click.IntRange(0, FLUSH_CLASSES_MS[-1]),
    help="Default flush window of viewers, in ms.  [default: 40]",
)
@click.option("--drain-s", type=click.FloatRange(0, 3600), help="Time for running answers at the end.")
@click.option(
    "--backup-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for backups of the store at regular times.",
)
@click.option("--backup-every", metavar="TIME", help="Time between two backups, such as 30m.  [default: 1h]")
@click.option("--backup-keep", type=click.IntRange(1), help="Number of backups; older ones are removed.  [default: 24]")
@click.option(
    "--retention",
    "ages",
    multiple=True,
    metavar="PATTERN=AGE",
    help="How long messages of these channels stay, such as chat:*=90d; repeatable.",
)
@click.option("--max-bytes", metavar="SIZE", help="Refuse new messages when the store nears this size, such as 10GB.")
@click.option("--app", "target", metavar="MODULE:NAME", help="Serve a hub, or an ASGI app, of your own.")
@click.option(
    "--jwt-secret-file",
    "secret_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Accept tokens signed with the secret in this file; repeatable, for rotation.",
)
@click.option("--jwks", metavar="URL", help="Accept tokens signed with a key published at this URL.")
@click.option(
    "--jwt-audience", "audiences", multiple=True, metavar="NAME", help="Audience that tokens must name; repeatable."
)
@click.option(
    "--jwt-issuer", "issuers", multiple=True, metavar="NAME", help="Issuer that tokens must name; repeatable."
)
@click.option(
    "--allowed-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pages may send requests; repeatable.",
)
@click.option("--public-origin", metavar="ORIGIN", help="Origin of this server's own pages, behind a proxy with TLS.")
@click.option(
    "--visitors", "has_visitors", is_flag=True, help="Give each browser without a token an id, and chats of its own."
)
@click.option("--allow-everyone", is_flag=True, help="Let every caller, unverified, read and write every channel.")
@click.option(
    "--trust-proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESSES",
    help="Address or network of a proxy whose X-Forwarded-For names the client; repeatable, or separated by commas.",
)
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that serve; more than one need a PostgreSQL store.",
)
def serve(
    host: str, port: int, target: str | None, proxies: tuple[str, ...], log_level: str, workers: int, **given: Any
) -> None:
    """Serve a hub: on this machine or, with a verifier, to other machines.

    Each option is also a variable of the environment: TENUTO_STORE for --store, TENUTO_VISITORS=1 for --visitors.
    Repeated values are separated by spaces, those of --jwt-secret-file by colons.
    """
    from tenuto.app import Hub

    for name in ("stdout", "stderr", "__stderr__"):  # perhaps closed; uvicorn and a forced end need them
        setattr(sys, name, getattr(sys, name) or Path(os.devnull).open("w"))  # noqa: SIM115
    if target is None and SOCKET not in os.environ:  # an app may read them itself, and a parent has warned
        _warn_of_misspelt()
    verifier = _verifier(given)
    if target is not None:
        if any(given[name] not in (None, ()) and given[name] is not False for name in _OF_HUB):
            raise LocalError(
                "--app brings its own hub: set --store, --bus, --flush-ms, --drain-s, --allowed-origin, "
                "--public-origin, --visitors, --retention, --max-bytes and the options for tokens there"
            )
        app = load_app(target)
        if not given["allow_everyone"]:
            check_guarded(host, app)
        for one in hubs_in(app):
            one.authenticate = one.authenticate or verifier  # only --allow-everyone gives one here
    else:
        settings = {name: given[name] for name in _SETTINGS if given[name] is not None}
        size = given["max_bytes"] or ""
        # a number without a unit, of at most 63 bits, is a number of bytes
        settings["max_bytes"] = int(size) if size.isdecimal() and len(size) < 19 else given["max_bytes"]
        settings |= {"authenticate": verifier, "retention": rules_of("--retention", given["ages"])}
        app = Hub("sqlite:///tenuto.db" if given["store"] is None else given["store"], **settings)
        check_guarded(host, app)
    _schedule_backups(hubs_in(app), given["backup_dir"], given["backup_every"], given["backup_keep"])
    if given["allow_everyone"] and not is_local(host):
        _print(f"Every machine that reaches {host} may read and write every channel.", err=True)
    elif given["allow_everyone"]:
        for one in hubs_in(app):  # otherwise the DNS name of any web page could point at this machine
            one.requires_own_host = True
    hub = app if isinstance(app, Hub) else None
    if hub is not None:
        hub.drive_by_hand = True  # no middleware, which could need a task, stands between the hub and the server
    inherited = None  # in a worker of `--workers`: the socket of its parent process
    if workers > 1:
        check_shared(hubs_in(app), workers)
        inherited = inherited_socket(longest_drain_s(app))
    listening = inherited or _listen(host, port)
    start = f"Tenuto {__version__} serves {address_of(listening)}"
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else `nohup` lets the server outlive its terminal
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    if inherited is None:  # the parent process of workers prints this, once
        _warn_of_readable(given["secret_files"])
        if workers > 1:
            _print(f"{start} with {workers} workers")
            _end_as(run_workers(workers, listening, longest_drain_s(app)))
            return

    addresses = [one for text in proxies for one in text.split(",")]
    options: dict[str, Any] = {"log_level": log_level, "proxies": addresses, "on_startup": beat if inherited else None}
    logger = logging.getLogger("tenuto")
    if not logger.hasHandlers():  # otherwise the app has its own way to print logs
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(log_level.upper())  # by itself Python prints warnings only
    with contextlib.suppress(KeyboardInterrupt):  # the server has already handled the signal
        if not run(app, hub, listening, started=lambda: None if inherited else _print(start), **options):
            sys.exit(1)


# the options that become settings of the hub, and all that an app of one's own has in its code
_SETTINGS = ("bus", "flush_ms", "drain_s", "allowed_origins", "public_origin")
_OF_HUB = (*_SETTINGS, "store", "secret_files", "jwks", "ages", "has_visitors", "max_bytes")
for _option in serve.params:
    _option.envvar = "TENUTO_" + _option.opts[0].removeprefix("--").upper().replace("-", "_")


@main.command()
@click.option(
    "--url",
    default=None,
    help=f"Where the hub is served, with the path it is mounted at.  [default: http://127.0.0.1:{DEFAULT_PORT}]",
)
def health(url: str | None) -> None:
    """Ask a server whether it can serve: it reads and writes its store. The exit status is 1 if it cannot.

    Without --url the port is that of TENUTO_PORT, as for `tenuto serve`.
    """
    address = url or f"http://127.0.0.1:{os.environ.get('TENUTO_PORT', DEFAULT_PORT)}"
    click.echo(store_commands.at_url(address, None).health())


@main.command()
@click.option("--host", default=None, help="Address to listen on.  [default: 127.0.0.1, or with --lan the network's]")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", default="sqlite:///tenuto-demo.db", show_default=True, help="Where the chat is kept.")
@click.option("--lan", "is_lan", is_flag=True, help="Let people in the local network in, by invitation.")
def demo(host: str | None, port: int, store: str, is_lan: bool) -> None:
    """A chat page that survives reloads, crashes and a killed server."""
    from tenuto.demo.guide import who_answers
    from tenuto.demo.supervisor import network_address, supervise

    host = (host or network_address()) if is_lan else check_loopback(host or "127.0.0.1")
    listening = _listen(host, port, tries=PORT_TRIES)

    def print_start(invite: str | None) -> None:
        address = address_of(listening)
        if port and listening.getsockname()[1] != port:
            click.echo(f"Port {port} is taken; this is the next free one.")
        click.echo(f"\n  Open  {click.style(invite or address, bold=True)}  and ask something.\n")
        if invite is not None:
            click.echo("  The link works once, within ten minutes. The page makes links and QR codes for others.\n")
        click.echo(f"  {who_answers(os.environ)}")
        click.echo("  The page has buttons that reload it, kill the server or crash the agent. Ctrl-C ends the demo.\n")

    _end_as(supervise(listening, store, is_lan=is_lan, started=print_start, echo=click.echo))


@main.command()
@click.argument("name", type=click.Path(path_type=Path))
def new(name: Path) -> None:
    """Write a small app with a chat into the new folder NAME: a FastAPI app, its page, a test and a Dockerfile."""
    title = name.resolve().name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", title):  # it also names the image
        raise LocalError(f"NAME must be made of lower-case letters, digits, - and _, got {shown(title)}; try my-chat")
    name.mkdir(parents=True, exist_ok=True)
    if any(name.iterdir()):
        raise LocalError(f"folder {name} is not empty; give the name of a new one")
    for path in Path(__file__).with_name("starter").iterdir():
        text = path.read_text(encoding="utf-8").replace("{name}", title)
        (name / path.stem.replace("dot-", ".")).write_text(text, encoding="utf-8")  # from `dot-gitignore.txt`
    click.echo(f"cd {shlex.quote(str(name))}\n\n{(name / 'README.md').read_text(encoding='utf-8')}")


@main.command()
@click.argument("url")
@click.option("--question", default="Explain in ten short paragraphs why the sky is blue.", help="What to ask.")
@click.option("--input", "field", default=None, metavar="SELECTOR", help="The field for the question.")
@click.option("--send", default=None, metavar="SELECTOR", help="The button that sends it, if Enter does not.")
@click.option("--answer", default=None, metavar="SELECTOR", help="The element with the answers.")
@click.option("--cookie", "cookies", multiple=True, metavar="NAME=VALUE", help="A cookie of a sign-in; repeatable.")
@click.option("--patience-s", default=30.0, show_default=True, type=click.FloatRange(0.1), help="Longest wait.")
@click.option("--screenshots", default="f5", show_default=True, type=click.Path(path_type=Path), help="Their folder.")
def f5(**options: Any) -> None:
    """Ask the chat page of any program, and print what survives a reload, a lost network and a second window.

    The exit status is 1 if anything was lost.
    """
    from tenuto.cli.f5 import Chat, survey

    results = asyncio.run(survey(Chat(**options)))
    click.echo("               question  text so far  goes on")
    for one in results:
        click.echo(f"{one.fault:<15}{'yes' if one.has_question else 'no':<10}{one.kept:<13.0%}{one.goes_on}")
    click.echo(f"Screenshots are in {options['screenshots']}.")
    sys.exit(not all(one.has_question and one.goes_on == "yes" for one in results))


for _command in store_commands.COMMANDS:
    main.add_command(_command)


def _schedule_backups(hubs: list[HubCore], folder: Path | None, every: str | None, keep: int | None) -> None:
    """Let the hubs make backups into `folder`, if one is given. Raises LocalError for options that do not fit."""
    if folder is None:
        if (every, keep) != (None, None):
            raise LocalError("--backup-every and --backup-keep need --backup-dir; name the folder")
        return
    if not folder.exists():
        raise LocalError(f"--backup-dir {folder} does not exist; create it, or mount its disk before the server starts")
    if not hubs:
        raise LocalError("--backup-dir found no hub in this app; make a BackupSchedule(hub, folder) in its code")
    for hub in hubs:
        BackupSchedule(hub, folder, every=every or "1h", keep=keep or 24)


@main.command()
@click.argument("channel")
@click.option("--url", default=f"http://127.0.0.1:{DEFAULT_PORT}", show_default=True, help="Where the hub is served.")
@click.option("--history", default=10, show_default=True, type=click.IntRange(0, 200), help="Messages to begin with.")
@click.option("--since", default=None, help="A cursor: show what begins or is edited after it.")
@store_commands.TOKEN
def tail(channel: str, url: str, **options: Any) -> None:
    """Follow CHANNEL in the terminal; reconnects by itself."""
    from tenuto.cli.tail import follow
    from tenuto.client.connection import check_address

    check_address(url, name="--url", example="http://host:8000")
    try:
        follow(url, channel, **options, out=sys.stdout, notices=sys.stderr)
    except KeyboardInterrupt:
        click.echo()


def _verifier(given: Mapping[str, Any]) -> Authenticate | None:
    """Build the authenticator from the options of `serve`, if any were given. Raises LocalError if they conflict."""
    jwks, issuers, has_visitors = given["jwks"], given["issuers"], given["has_visitors"]
    has_keys = bool(given["secret_files"]) or jwks is not None
    has_names = bool(given["audiences"] or issuers)
    verifier: Authenticate | None = None
    if given["allow_everyone"]:
        if has_keys or has_names:
            raise LocalError("--allow-everyone verifies no token: leave it out, or leave out the options for tokens")
        if has_visitors:
            raise LocalError("--visitors cannot be used with --allow-everyone, which verifies no caller; leave one out")
        return identity.allow_everyone
    if has_keys:
        if not given["audiences"]:
            raise LocalError("verifying tokens needs an audience: name it with --jwt-audience")
        from tenuto.hub.access.tokens import jwt_verifier  # imported here, because the import is slow

        # without the line ends that editors add
        secrets = [path.read_bytes().rstrip(b"\r\n") for path in given["secret_files"]]
        verifier = jwt_verifier(secret=secrets, jwks_url=jwks, audience=given["audiences"], issuer=issuers or None)
    elif has_names:
        raise LocalError("--jwt-audience and --jwt-issuer need --jwt-secret-file or --jwks")
    if has_visitors:
        from tenuto.app import visitors

        return visitors(verifier)
    return verifier


def _warn_of_misspelt() -> None:
    """Warn of variables whose names are nearly those of options."""
    known = {str(one.envvar).removeprefix("TENUTO_") for one in serve.params}
    for name in sorted(one.removeprefix("TENUTO_") for one in os.environ if one.startswith("TENUTO_")):
        near = [f"{name}_FILE"] if f"{name}_FILE" in known else get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known:
            is_file = near[0].endswith("_FILE") and "_FILE" not in name  # its value is no name of a file
            remedy = "write its value to a file, and name that file in" if is_file else "rename it to"
            _print(f"TENUTO_{name} is no option and has no effect: {remedy} TENUTO_{near[0]}", err=True)


def _warn_of_readable(secret_files: tuple[Path, ...]) -> None:
    for path in secret_files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & stat.S_IROTH:
            _print(
                f"Every user of this machine can read --jwt-secret-file {path} (mode {mode:04o}), and sign tokens with "
                f"it: chmod {mode & ~0o007:04o} {path}",
                err=True,
            )


def _end_as(received: int) -> None:
    """End as other programs do if the `received` signal is SIGTERM, so that the caller sees the signal."""
    if received == signal.SIGTERM:
        signal.signal(received, signal.SIG_DFL)
        signal.raise_signal(received)


def _listen(host: str, port: int, *, tries: int = 1) -> Any:
    try:
        return listen(host, port, tries=tries)
    except OSError as error:
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise LocalError(f"server cannot listen on {host} port {port}: {error.strerror}; try another {other}") from None
