"""The URLs of buses, which carry the notices between the nodes of a shared store.

Layer: stores.

The rest of the product makes buses with `open_bus`; the URLs are a public setting.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tenuto.core.errors import LocalError, shown, shown_url
from tenuto.stores.base import Bus

_FORMS = "redis://host:6379, rediss://user:password@host:6379 (TLS) or redis+sentinel://host1:26379,host2:26379/name"
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
        raise LocalError(f"bus URL must be {_FORMS}, got {shown_url(url)}") from None
    is_sentinel, is_tls = parts.scheme.endswith("+sentinel"), parts.scheme.startswith("rediss")
    path = parts.path.strip("/")
    is_cut = "@" in parts.path + parts.query  # a password with an unescaped "/" or "?" would show in other messages
    if is_cut or parts.fragment or (is_sentinel and not path) or (not is_sentinel and len(hosts) > 1):
        raise LocalError(f"bus URL must be {_FORMS}, got {shown_url(url)}")
    if not is_sentinel and path and not path.isdecimal():  # a database, which has no effect on notices
        raise LocalError(f"bus URL {shown_url(url)} has a path; use {_FORMS}")
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
