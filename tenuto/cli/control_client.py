"""Calls on the control socket of the hub that serves a store's file, for the commands of `tenuto`.

Layer: beside `tail`. `tenuto.hub.keep.control` is the other side.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tenuto.core.errors import LocalError
from tenuto.core.model import ChannelSummary
from tenuto.hub.keep.control import HEARTBEAT_S, path_of
from tenuto.hub.keep.forgetting import Forgotten
from tenuto.hub.keep.importing import Imported
from tenuto.stores import open_url
from tenuto.stores.sqlite.store import SqliteStore

LINE_BYTES = 64 * 1024 * 1024  # far above the largest message
SILENT_S = 6 * HEARTBEAT_S  # a living server sends a line each HEARTBEAT_S


_VALUES = {"channels": ChannelSummary, "export": str, "forget": Forgotten, "import": Imported}  # of others: objects
_MANY = ("channels", "export")  # calls with any number of values


class NotServed(Exception):
    """No process listens on the control socket of the file."""


def call(store: Path, name: str, **arguments: object) -> Iterator[Any]:
    """Yield the values of a call at the hub that serves the file `store`.

    Raises NotServed if no hub listens, LocalError if it cannot be reached, and the error of the call.
    """
    path = path_of(store)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SILENT_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotServed from None
        except OSError as error:
            if not path.exists():  # for example: the path is too long for a socket
                raise NotServed from None
            reason = error.strerror or error
            raise LocalError(
                f"control socket {path} cannot be used ({reason}); run the command as the user of the server"
            ) from None
        try:
            connection.sendall(msgspec.json.encode({"call": name, "arguments": arguments}) + b"\n")
            yield from _values(connection, name, path)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise LocalError(f"response on control socket {path} is not valid ({error}); check the server") from None


def call_at(url: str, name: str, **arguments: object) -> Iterator[Any]:
    """Yield the values of a call at the hub that serves the store `url`. Raises NotServed or the error of the call."""
    store = open_url(url)
    if not isinstance(store, SqliteStore):
        raise NotServed
    yield from call(store.path, name, **arguments)


def _values(connection: socket.socket, name: str, path: Path) -> Iterator[Any]:
    """Yield the values of a response.

    Raises MsgspecError for one that no hub sends, since another program may listen, and LocalError if it breaks off.
    """
    from tenuto.client.problems import error_of  # imported here, because the import is slow

    found = 0
    with contextlib.closing(connection.makefile("rb")) as lines:
        while True:
            if not (received := lines.readline(LINE_BYTES)):
                raise LocalError(
                    f"server at control socket {path} ended during the call; start it, and repeat the call"
                )
            line = msgspec.json.decode(received, type=dict)
            if "error" in line:
                raise error_of(msgspec.convert(line["error"], dict))
            if "end" in line:
                if found != 1 and name not in _MANY:
                    raise msgspec.ValidationError(f"it has {found} values in place of one")
                return
            if "value" in line:
                msgspec.convert(line["value"], _VALUES.get(name, dict))
                found += 1
                yield line["value"]
