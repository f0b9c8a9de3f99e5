"""Stores keep the logs: the interface (`base`), and implementations in memory, in an SQLite file and in PostgreSQL.

Layer: stores.

The rest of the product creates stores with `open_url`, and the buses that carry the notices between the nodes of a
shared store with `open_bus`. The URLs are a public setting.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_to_bytes, urlencode, urlsplit

from tenuto.core.errors import LocalError, shown, shown_url
from tenuto.stores.base import Bus, Store

__all__ = ["open_bus", "open_url"]

_POSTGRES_FORM = "postgresql://role@host:5432/database"
_FORMS = f"memory://, sqlite:///relative/path.db, sqlite:////absolute/path.db?synchronous=full or {_POSTGRES_FORM}"
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
        raise _refusal(url, f"holds a control character; use {_FORMS}")
    try:
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError:  # for example for a single bracket
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}") from None
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    for name, times in Counter(name for name, _ in given).items():
        if times > 1:
            raise _refusal(url, f"has the option {shown(name)} {times} times; give it once")
    if scheme in _POSTGRES:
        _check_ports(url, host)
        return _postgres(url, options, has_database=bool(path.strip("/")) and not fragment)
    if scheme == "memory":
        if host or path or options or fragment:
            raise _refusal(url, "has a name or options, but a memory store has neither; use memory://")
        from tenuto.stores.memory import MemoryStore

        return MemoryStore()
    if scheme != "sqlite":
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}")
    if host:
        place = shown(f"sqlite:///{host.rpartition('@')[2]}{path}").strip("'")
        raise _refusal(url, f"names a host, but an SQLite file is on this machine; use {place}")
    file = os.fsdecode(unquote_to_bytes(path.removeprefix("/")))
    if not path.strip("/") or path.endswith("/") or fragment or "\0" in file:
        raise _refusal(url, f"does not name a file; use {_FORMS}")
    if not url[len("sqlite:") :].startswith("///"):
        raise _refusal(url, f"lacks slashes; use sqlite:///{path.lstrip('/')} or {_FORMS}")
    _check_known(url, options, ("synchronous",), "an SQLite store has synchronous only")
    from tenuto.stores.sqlite.store import SqliteStore

    return SqliteStore(file, synchronous=options.get("synchronous", "full"))


def _refusal(url: str, text: str) -> LocalError:
    return LocalError(f"store URL {shown_url(url)} {text}")


def _check_known(url: str, options: Iterable[str], known: Iterable[str], has: str) -> None:
    for option in sorted(set(options).difference(known)):
        raise _refusal(url, f"has the unknown option {shown(option)}; {has}")


def _check_ports(url: str, hosts: str) -> None:
    """Raise LocalError for a port that is no number from 1 to 65535; the driver's error would not name the URL.

    The error does not show the port: behind a password that contains `/`, it is the beginning of the password.
    """
    for host in hosts.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]  # an IPv6 address is in brackets
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            text = f"has a port that is not a number from 1 to 65535; use {_POSTGRES_FORM}"
            raise _refusal(url, f"{text}, with the special characters of a password percent-encoded")


def _postgres(url: str, options: dict[str, str], *, has_database: bool) -> Store:
    if not has_database:
        raise _refusal(url, f"does not name a database; use {_POSTGRES_FORM}")
    if "@" in urlsplit(url).netloc.partition("@")[2] + urlsplit(url).path:  # the driver ends the password at the first
        raise _refusal(url, "has an @ in its password or behind its host; percent-encode special characters")
    has = f"a PostgreSQL store has schema, durability, prepare, {', '.join(_TO_DRIVER)}"
    _check_known(url, options, ("schema", *_CHOICES, *_TO_DRIVER), has)
    if "," in urlsplit(url).netloc.rpartition("@")[2] and "PGTARGETSESSIONATTRS" not in os.environ:  # several hosts
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
        raise LocalError("a PostgreSQL store needs asyncpg; install tenuto[postgres], as its README shows") from None

    address = url.partition("?")[0] + (f"?{urlencode(options)}" if options else "")
    return PostgresStore(address, schema=schema, is_async=is_async, is_pooled=is_pooled)


_BUS_FORMS = (
    "redis://host:6379, rediss://user:password@host:6379 (TLS) or redis+sentinel://host1:26379,host2:26379/name"
)
_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "rediss+sentinel": 26379}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # options that name files
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


def open_bus(url: str) -> Bus:
    """Return the bus that `url` names, not yet opened. Raises LocalError if it names none.

    `redis://` with user, password, host and port; `rediss://` for TLS, with `ssl_ca_certs`, `ssl_certfile` and
    `ssl_keyfile`; `redis+sentinel://` and `rediss+sentinel://` with the Sentinels and the name of the server. Each may
    have `?prefix=`, by default `tenuto`, with which the names of all Redis channels begin.
    """
    try:
        parts = urlsplit(url) if url.isprintable() else SplitResult("", "", "", "", "")
        hosts = tuple(_host(one, _PORTS[parts.scheme]) for one in parts.netloc.rpartition("@")[2].split(","))
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except (ValueError, KeyError):
        raise LocalError(f"bus URL must be {_BUS_FORMS}, got {shown_url(url)}") from None
    is_sentinel, is_tls = parts.scheme.endswith("+sentinel"), parts.scheme.startswith("rediss")
    path = parts.path.strip("/")
    is_cut = "@" in parts.path + parts.query  # a password with an unescaped "/" or "?" would show in other messages
    if is_cut or parts.fragment or (is_sentinel and not path) or (not is_sentinel and len(hosts) > 1):
        raise LocalError(f"bus URL must be {_BUS_FORMS}, got {shown_url(url)}")
    if not is_sentinel and path and not path.isdecimal():  # a database, which has no effect on notices
        raise LocalError(f"bus URL {shown_url(url)} has a path; use {_BUS_FORMS}")
    prefix = options.pop("prefix", "tenuto")
    if not _PREFIX.match(prefix):
        raise LocalError(f"prefix of a bus must be 1-64 characters of A-Z a-z 0-9 _ . : -, got {shown(prefix)}")
    unknown = sorted(set(options) - set(_FILES if is_tls else ()))
    if unknown:
        known = ", ".join(("prefix", *_FILES)) if is_tls else "prefix, and with rediss:// those of TLS"
        raise LocalError(f"bus URL {shown_url(url)} has the unknown option {shown(unknown[0])}; a bus has {known}")
    try:
        from tenuto.stores.redis.bus import BusServer, RedisBus
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise LocalError("a bus needs redis; install Tenuto with [redis], as its README shows") from None

    server = BusServer(
        shown=shown_url(url),
        hosts=hosts,
        service=unquote(path) if is_sentinel else None,
        credentials=_credentials(parts),
        options=dict[str, Any](options) if is_tls else None,
    )
    return RedisBus(server, prefix=prefix)


def _host(text: str, port: int) -> tuple[str, int]:
    """Return host and port. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, port if parts.port is None else parts.port


def _credentials(parts: SplitResult) -> dict[str, str]:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    given = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in given.items() if value}
