"""Where logs are kept: the interface (`base`), and stores in memory and in an SQLite file.

Layer: stores.

`open_url` is how the rest of the product comes to a store; the URLs are a public setting.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from holdfast.core.errors import LocalError
from holdfast.stores.base import Store

__all__ = ["open_url"]

_KNOWN = "known are memory://, sqlite:///relative/path.db and sqlite:////absolute/path.db?synchronous=full"


def open_url(url: str) -> Store:
    """The store that `url` names, not yet opened. Raises LocalError for what names none.

    `memory://`, or `sqlite:///` and a path (relative; with one more slash absolute; special characters may be
    percent-encoded), with `?synchronous=full` (the default), `normal` or `extra`.
    """
    scheme, host, path, query, fragment = urlsplit(url)
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme == "memory":
        if host or path or options or fragment:
            raise LocalError(f"{url!r}: a store in memory has no name and no options; write memory://")
        from holdfast.stores.memory import MemoryStore

        return MemoryStore()
    if scheme != "sqlite":
        raise LocalError(f"{url!r} names no store; {_KNOWN}")
    if host:
        raise LocalError(f"{url!r}: an SQLite file is on this machine; write sqlite:///{host}{path}")
    if not path.strip("/") or path.endswith("/") or fragment:
        raise LocalError(f"{url!r} names no file; {_KNOWN}")
    unknown = set(options) - {"synchronous"}
    if unknown:
        raise LocalError(f"{url!r}: an SQLite store has no option {sorted(unknown)[0]!r}, only synchronous")
    from holdfast.stores.sqlite import SqliteStore

    return SqliteStore(unquote(path.removeprefix("/")), synchronous=options.get("synchronous", "full"))
