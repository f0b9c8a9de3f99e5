"""Stores keep the logs: the interface (`base`), and implementations in memory and in an SQLite file.

Layer: stores.

The rest of the product creates stores with `open_url`; the URLs are a public setting.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode, urlsplit

from tenuto.core.errors import LocalError, shown, shown_url
from tenuto.stores.base import Store

__all__ = ["open_url"]

_FORMS = (
    "memory://, sqlite:///relative/path.db, sqlite:////absolute/path.db?synchronous=full "
    "or postgresql://role@host:5432/database"
)
_POSTGRES = ("postgresql", "postgres")
# Options that the driver reads from the URL.
_TO_DRIVER = ("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")
_CHOICES = {  # values of the other options of a PostgreSQL store, and of the driver's; the first is the default
    "durability": ("sync", "async"),
    "prepare": ("1", "0"),
    "sslmode": ("prefer", "disable", "allow", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "primary"),  # the default of several hosts is read-write
}


def open_url(url: str) -> Store:
    """Return the store that `url` names, not yet opened. Raises LocalError if it names none.

    `memory://`, or `sqlite:///` and a path (relative; with one more slash absolute; special characters may be
    percent-encoded), with `?synchronous=full` (the default), `normal` or `extra`; or `postgresql://` with role, host
    and database, with `?schema=tenuto` (the default), `durability=sync` (the default) or `async`, `prepare=1` (the
    default) or `0` for a pooler in transaction mode, and libpq's `sslmode`, `sslrootcert`, `sslcert`, `sslkey` and
    `target_session_attrs` (`any`, or `read-write`, which is the default for several hosts, or `primary`).
    """
    if not url.isprintable():  # a URL parser drops line ends silently
        raise LocalError(f"store URL {shown_url(url)} holds a control character; use {_FORMS}")
    try:
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError:  # for example for a single bracket
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}") from None
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    repeated = next((name for name, _ in given if sum(name == other for other, _ in given) > 1), None)
    if repeated is not None:
        times = sum(name == repeated for name, _ in given)
        raise LocalError(f"store URL {shown_url(url)} has the option {shown(repeated)} {times} times; give it once")
    if scheme in _POSTGRES:
        _check_ports(url, host)
        return _postgres(url, options, has_database=bool(path.strip("/")) and not fragment)
    if scheme == "memory":
        if host or path or options or fragment:
            raise LocalError(
                f"store URL {shown_url(url)} has a name or options, but a memory store has neither; use memory://"
            )
        from tenuto.stores.memory import MemoryStore

        return MemoryStore()
    if scheme != "sqlite":
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}")
    if host:
        place = shown(f"sqlite:///{host.rpartition('@')[2]}{path}").strip("'")
        raise LocalError(f"store URL {shown_url(url)} names a host, but an SQLite file is on this machine; use {place}")
    file = os.fsdecode(unquote_to_bytes(path.removeprefix("/")))
    if not path.strip("/") or path.endswith("/") or fragment or "\0" in file:
        raise LocalError(f"store URL {shown_url(url)} does not name a file; use {_FORMS}")
    if not url[len("sqlite:") :].startswith("///"):
        raise LocalError(f"store URL {shown_url(url)} lacks slashes; use sqlite:///{path.lstrip('/')} or {_FORMS}")
    unknown = set(options) - {"synchronous"}
    if unknown:
        option = shown(sorted(unknown)[0])
        raise LocalError(
            f"store URL {shown_url(url)} has the unknown option {option}; an SQLite store has synchronous only"
        )
    from tenuto.stores.sqlite.store import SqliteStore

    return SqliteStore(file, synchronous=options.get("synchronous", "full"))


def _check_ports(url: str, hosts: str) -> None:
    """Raise LocalError for a port that is no number from 1 to 65535; the driver's error would not name the URL.

    The error does not show the port: behind a password that contains `/`, it is the beginning of the password.
    """
    for host in hosts.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]  # an IPv6 address is in brackets
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise LocalError(
                f"store URL {shown_url(url)} has a port that is not a number from 1 to 65535; use "
                "postgresql://role@host:5432/database, with the special characters of a password percent-encoded"
            )


def _postgres(url: str, options: dict[str, str], *, has_database: bool) -> Store:
    if not has_database:
        raise LocalError(
            f"store URL {shown_url(url)} does not name a database; use postgresql://role@host:5432/database"
        )
    unknown = set(options) - {"schema", *_CHOICES, *_TO_DRIVER}
    if unknown:
        raise LocalError(
            f"store URL {shown_url(url)} has the unknown option {shown(sorted(unknown)[0])}; a PostgreSQL store has "
            f"schema, durability, prepare, {', '.join(_TO_DRIVER)}"
        )
    if "," in urlsplit(url).netloc.rpartition("@")[2] and "PGTARGETSESSIONATTRS" not in os.environ:
        options.setdefault("target_session_attrs", "read-write")
    schema = options.pop("schema", "tenuto")
    for name, choices in _CHOICES.items():
        if options.get(name, choices[0]) not in choices:
            raise LocalError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {shown(options[name])}")
    is_async, is_pooled = options.pop("durability", "sync") == "async", options.pop("prepare", "1") == "0"
    try:
        from tenuto.stores.postgres.store import PostgresStore
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise LocalError(
            "a PostgreSQL store needs asyncpg; install Tenuto with [postgres], as its README shows"
        ) from None

    address = url.partition("?")[0] + (f"?{urlencode(options)}" if options else "")
    return PostgresStore(address, schema=schema, is_async=is_async, is_pooled=is_pooled)
