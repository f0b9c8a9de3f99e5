"""Stores keep the logs: the interface (`base`), and implementations in memory and in an SQLite file.

Layer: stores.

The rest of the product creates stores with `open_url`; the URLs are a public setting.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from holdfast.core.errors import LocalError, shown, shown_url
from holdfast.stores.base import Store

__all__ = ["open_url"]

_FORMS = "memory://, sqlite:///relative/path.db or sqlite:////absolute/path.db?synchronous=full"


def open_url(url: str) -> Store:
    """Return the store that `url` names, not yet opened. Raises LocalError if it names none.

    `memory://`, or `sqlite:///` and a path (relative; with one more slash absolute; special characters may be
    percent-encoded), with `?synchronous=full` (the default), `normal` or `extra`.
    """
    if not url.isprintable():  # a URL parser drops line ends silently
        raise LocalError(f"store URL {shown_url(url)} holds a control character; use {_FORMS}")
    try:
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError:  # for example for a single bracket
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}") from None
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    if scheme == "memory":
        if host or path or options or fragment:
            raise LocalError(
                f"store URL {shown_url(url)} has a name or options, a memory store has neither; use memory://"
            )
        from holdfast.stores.memory import MemoryStore

        return MemoryStore()
    if scheme != "sqlite":
        raise LocalError(f"store URL must be {_FORMS}, got {shown_url(url)}")
    if host:
        place = shown(f"sqlite:///{host.rpartition('@')[2]}{path}").strip("'")
        raise LocalError(f"store URL {shown_url(url)} names a host, an SQLite file is on this machine; use {place}")
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
    if len(given) > len(options):
        raise LocalError(f"store URL {shown_url(url)} has the option 'synchronous' {len(given)} times; give it once")
    from holdfast.stores.sqlite import SqliteStore

    return SqliteStore(file, synchronous=options.get("synchronous", "full"))
