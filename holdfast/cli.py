"""The `holdfast` command: serve, demo, tail.

You are at the very top: everything may be imported here, and nothing imports this. Errors that people can do
something about are one line and exit 1; a traceback means a mistake of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from holdfast._version import __version__
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.hub import identity
from holdfast.hub.feed import FLUSH_CLASSES_MS
from holdfast.hub.identity import Authenticate
from holdfast.serving import PORT_TRIES, address_of, check_guarded, check_loopback, hubs_in, is_loopback, listen, run

DEFAULT_PORT = 8000
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


class _Group(click.Group):
    """Commands whose own errors are told plainly."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HoldfastError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="holdfast")
def main() -> None:
    """Holdfast: a durable realtime transport for AI conversations."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a verifier.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", default=None, help="memory:// or sqlite:////absolute/path  [default: sqlite:///holdfast.db]")
@click.option(
    "--flush-ms",
    default=None,
    type=click.IntRange(0, FLUSH_CLASSES_MS[-1]),
    help="Default flush window of viewers, in ms.  [default: 40]",
)
@click.option("--drain-s", default=None, type=click.FloatRange(0, 3600), help="Time for running answers at the end.")
@click.option("--app", "target", default=None, metavar="MODULE:NAME", help="Serve a hub, or an ASGI app, of your own.")
@click.option(
    "--jwt-secret-file",
    "secret_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Believe tokens signed with the secret in this file; several for rotation.",
)
@click.option("--jwks", default=None, metavar="URL", help="Believe tokens signed with a key that is published there.")
@click.option("--jwt-audience", "audiences", multiple=True, metavar="NAME", help="Whom tokens must be for.")
@click.option("--jwt-issuer", "issuers", multiple=True, metavar="NAME", help="Whom tokens must be from.")
@click.option("--allowed-origin", "origins", multiple=True, metavar="ORIGIN", help="Whose pages may ask; repeatable.")
@click.option("--allow-everyone", is_flag=True, help="Let everybody in, with every capability, unverified.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
def serve(
    host: str,
    port: int,
    store: str | None,
    flush_ms: int | None,
    drain_s: float | None,
    target: str | None,
    secret_files: tuple[Path, ...],
    jwks: str | None,
    audiences: tuple[str, ...],
    issuers: tuple[str, ...],
    origins: tuple[str, ...],
    allow_everyone: bool,
    log_level: str,
) -> None:
    """Serve a hub: on this machine, or, with a verifier, to others."""
    from holdfast.app import Hub

    verifier = _verifier(secret_files, jwks, audiences, issuers, allow_everyone=allow_everyone)
    if target is not None:
        is_ours = (store, flush_ms, drain_s) != (None, None, None) or origins or secret_files or jwks
        if is_ours:
            raise LocalError(
                "--app brings its own hub: --store, --flush-ms, --drain-s, --allowed-origin and what verifies tokens "
                "belong there"
            )
        app = _load(target)
        if not allow_everyone:
            check_guarded(host, app)
        for one in hubs_in(app):
            one.authenticate = one.authenticate or verifier
    else:
        settings: dict[str, Any] = {"flush_ms": flush_ms, "drain_s": drain_s, "authenticate": verifier}
        known = {name: value for name, value in settings.items() if value is not None}
        app = Hub(_checked(store or "sqlite:///holdfast.db"), allowed_origins=_origins(origins), **known)
        check_guarded(host, app)
    if allow_everyone and not is_loopback(host):
        click.echo(f"Everybody who reaches {host} may read, write and delete everything.", err=True)
    hub = app if isinstance(app, Hub) else None
    if hub is not None:
        hub.drive_by_hand = True  # no middleware of anybody's stands between us and the server
    listening = _listen(host, port)
    _run(app, hub, listening, log_level, lambda: click.echo(f"Holdfast {__version__} serves {address_of(listening)}"))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", default="sqlite:///holdfast-demo.db", show_default=True, help="Where the chat is kept.")
def demo(host: str, port: int, store: str) -> None:
    """A chat page that survives whatever you do to it."""
    from holdfast.demo.app import build
    from holdfast.demo.model import who_answers

    check_loopback(host)
    listening = _listen(host, port, tries=PORT_TRIES)

    def tell() -> None:
        address = address_of(listening)
        if listening.getsockname()[1] != port:
            click.echo(f"Port {port} is taken; this is the next free one.")
        click.echo(f"\n  Open  {click.style(address, bold=True)}  and ask something.")
        click.echo(f"  A second person:  {address}/?as=Bea  (any name; a private window is not needed)\n")
        click.echo(f"  {who_answers(os.environ)}\n")
        click.echo(
            "  While it answers: press F5, or stop it from the other window. A message with /crash in it goes to an"
        )
        click.echo("  agent in a process of its own, which dies in mid-answer. Or end the server the hard way:\n")
        click.echo(f"      kill -9 {os.getpid()}\n")
        click.echo("  Then run the same command again. (Ctrl-C does as well.)\n")

    app = build(_checked(store))
    _run(app, app.state.hub, listening, "warning", tell)


@main.command()
@click.argument("channel")
@click.option("--url", default=f"http://127.0.0.1:{DEFAULT_PORT}", show_default=True, help="Where the hub is served.")
@click.option("--history", default=10, show_default=True, type=click.IntRange(0, 200), help="Messages to begin with.")
@click.option("--since", default=None, help="A cursor to go on from.")
def tail(channel: str, url: str, history: int, since: str | None) -> None:
    """Follow CHANNEL in the terminal; comes back by itself."""
    from holdfast.tail import follow

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LocalError(f"{url} is no http address")
    try:
        follow(url, channel, since=since, history=history, out=sys.stdout, notices=sys.stderr)
    except KeyboardInterrupt:
        click.echo()


def _verifier(
    secret_files: tuple[Path, ...],
    jwks: str | None,
    audiences: tuple[str, ...],
    issuers: tuple[str, ...],
    *,
    allow_everyone: bool,
) -> Authenticate | None:
    """Who says who asks, if anything was said about it. Raises LocalError where that does not fit together."""
    if allow_everyone:
        if secret_files or jwks or audiences or issuers:
            raise LocalError("--allow-everyone looks at no token: leave it out, or the options about tokens")
        return identity.allow_everyone
    if not secret_files and jwks is None:
        if audiences or issuers:
            raise LocalError("--jwt-audience and --jwt-issuer need --jwt-secret-file or --jwks")
        return None
    if not audiences:
        raise LocalError("tokens are for somebody: name whom with --jwt-audience")
    from holdfast.hub.tokens import jwt_verifier  # takes a while to import

    secrets = [_secret(path) for path in secret_files]
    return jwt_verifier(secret=secrets, jwks_url=jwks, audience=audiences, issuer=issuers or None)


def _secret(path: Path) -> bytes:
    """The secret in a file, without the line end that editors leave there."""
    try:
        return path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise LocalError(f"--jwt-secret-file {path}: {error.strerror}") from None


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """The origins as browsers write them. Raises LocalError where one would never match."""
    for origin in origins:
        parts = urlsplit(origin)
        is_origin = parts.scheme in ("http", "https") and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"
        if origin != "*" and not is_origin:
            raise LocalError(
                f"--allowed-origin {origin}: an origin is https://host, with a port if it has one, no path"
            )
    return origins


def _listen(host: str, port: int, *, tries: int = 1) -> Any:
    try:
        return listen(host, port, tries=tries)
    except OSError as error:
        raise LocalError(f"cannot listen on {host} port {port}: {error.strerror}; try --port") from None


def _run(app: Any, hub: Any, listening: Any, log_level: str, started: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # the signal has done its work
        if not run(app, hub, listening, started=started, log_level=log_level):
            sys.exit(1)


def _checked(store: str) -> str:
    """`store`, in the form that messages and files agree on."""
    if not store.startswith(("memory:", "sqlite:")):
        raise LocalError(f"{store} is no store: use memory:// or sqlite:////absolute/path")
    return store


def _load(target: str) -> Any:
    """The object that MODULE:NAME names. Raises LocalError, also for what goes wrong inside of the module."""
    module, _, name = target.partition(":")
    if not module:
        raise LocalError(f"--app {target}: write MODULE:NAME, for example --app chat:hub")
    sys.path.insert(0, "")
    try:
        app = getattr(importlib.import_module(module), name or "hub")
    except Exception as error:
        raise LocalError(f"--app {target}: {type(error).__name__}: {error}") from error
    if not callable(app):
        raise LocalError(f"--app {target}: that is no ASGI app but a {type(app).__name__}")
    return app
