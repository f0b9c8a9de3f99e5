"""Requests of the commands of `tenuto` to a hub that serves: on the control socket of its store's file, or over HTTP.

Layer: beside `tail`, below `store_commands`. `tenuto.hub.keep.control` and `tenuto.transports` are the other sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tenuto.core.errors import InvalidName, InvalidRequest, LocalError, shown, shown_url
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_channel
from tenuto.core.records import FORMAT, HEADER_BYTES, End, Header, damaged_in, encode_line
from tenuto.hub.keep.archive import MAX_LISTED, ChannelPage
from tenuto.hub.keep.control import HEARTBEAT_S, path_of
from tenuto.hub.keep.exports import Imported
from tenuto.hub.keep.forgetting import Forgotten
from tenuto.stores import open_url
from tenuto.stores.sqlite.store import SqliteStore

READ_TIMEOUT_S = 60.0  # time without a byte after which a server counts as gone; long calls send signs of life
LINE_BYTES = 1024 * 1024  # far above the longest line
PROBLEM_BYTES = 64 * 1024
PAGE_BYTES = 16 * 1024 * 1024  # far above the largest page of channels
MESSAGE_BYTES = 64 * 1024 * 1024  # of a line on the control socket: far above the largest message
SILENT_S = 6 * HEARTBEAT_S  # a living server sends a line on the control socket each HEARTBEAT_S
_INVALID = (msgspec.MsgspecError, ValueError, RecursionError)  # raised by decoders
_KIND = re.compile(rb'\{"type":"(message|command|end|error)",')  # the type of a line of an export


@contextlib.contextmanager
def response_to(
    server: str, path: str, token: str | None, what: str, *, method: str = "GET", body: object = None
) -> Iterator[Any]:
    """Yield the response of `server`, for reading in the block. Raises LocalError, which names `what`."""
    from http.client import HTTPException
    from urllib import error as failed
    from urllib import request

    class NoRedirect(request.HTTPRedirectHandler):
        """Follows no redirect, because the token is for the named server only."""

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
            raise failed.HTTPError(req.full_url, code, f"redirect to {shown_url(newurl)}", headers, fp)

    _check_address(server)
    headers = {"authorization": f"Bearer {_checked_token(token)}"} if token is not None else {}
    data = None
    if body is not None:
        headers["content-type"], data = "application/json", msgspec.json.encode(body)
    opener = request.build_opener(NoRedirect)
    try:
        url = f"{server.rstrip('/')}{path}"
        with opener.open(request.Request(url, data, headers, method=method), timeout=READ_TIMEOUT_S) as response:
            yield response
    except failed.HTTPError as error:
        with error:
            raise LocalError(f"{shown_url(server)} refused the {what}: {_problem(error)}") from None
    except BrokenPipeError:  # no program reads the output of the block
        raise
    except (failed.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, failed.URLError) else error
        raise LocalError(f"{shown_url(server)} did not send the whole {what}: {reason}; try again") from None


def _check_address(server: str) -> None:
    """Raise LocalError unless `server` names a host, and at most a port and a path besides."""
    try:
        parts = urlsplit(server)
        is_valid = (
            server.isascii()
            and server.isprintable()
            and not any(mark in server for mark in " ?#")
            and parts.scheme in ("http", "https")
            and "@" not in parts.netloc
            and parts.port != 0  # raises ValueError for a port that is no number
            and len((parts.hostname or "").encode("idna")) > 0  # raises ValueError for a label that DNS cannot hold
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        raise LocalError(
            "--url must be like http://host:8000/path, in ASCII and without a user, a query or a fragment (the token "
            f"goes in TENUTO_TOKEN), got {shown_url(server)}"
        )


def _checked_token(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise LocalError(
            f"--token must be one line of printable ASCII text, got {len(token)} characters; check TENUTO_TOKEN for "
            "a line end"
        )
    return token


def channels_of(server: str, prefix: str, token: str | None) -> Iterator[ChannelSummary]:
    """Yield the channels of a served hub whose names begin with `prefix`, in order. Raises LocalError."""
    from http.client import IncompleteRead

    query = {"prefix": prefix, "limit": str(MAX_LISTED)}
    while True:
        with response_to(server, f"/v1/channels?{urlencode(query)}", token, "list of channels") as response:
            body = response.read(PAGE_BYTES)
            if response.length and len(body) < PAGE_BYTES:  # a read with a bound does not raise it
                raise IncompleteRead(body, response.length)
        try:
            page = msgspec.json.decode(body, type=ChannelPage)
            for one in page.channels:
                if check_channel(one.channel) <= query.get("after", ""):
                    raise ValueError(f"channel {one.channel!r} is not in order")
                query["after"] = one.channel
        except (*_INVALID, InvalidName) as error:
            raise _not_tenuto(server, "list of channels", error) from None
        yield from page.channels
        if not page.more or not page.channels:
            return


def export_at(server: str, channel: str, token: str | None, out: BinaryIO) -> int:
    """Write the export of a channel of a served hub into `out`, and return how many of its messages are damaged.

    Raises LocalError, also for the error of a line.

    The last line is written once its counts and its checksum are right, so `tenuto import` refuses what is written of
    any other response. Memory holds a piece of a line.
    """
    path = f"/v1/channels/{quote(check_channel(channel), safe='')}/export"
    with response_to(server, path, token, "export") as response:
        line = response.readline(HEADER_BYTES)
        _check_header(server, channel, line)
        digest, counts = hashlib.sha256(), {"message": 0, "command": 0}
        while True:
            digest.update(line)
            out.write(line)
            is_begin, line = line.endswith(b"\n"), response.readline(LINE_BYTES)
            if not line:
                raise _cut(server, "whole export")
            if not is_begin:
                continue
            kind = _KIND.match(line)
            if kind is None:
                raise _not_tenuto(server, "export", f"a line begins with {_begin(line)}")
            if kind[1] == b"end":
                break
            if kind[1] == b"error":
                raise _ended(server, "export", _decoded(server, "export", line))
            counts[kind[1].decode()] += 1
        damaged = _damaged_in(server, line)
        end = End(messages=counts["message"], commands=counts["command"], sha256=digest.hexdigest(), damaged=damaged)
        if line + response.read(1) != encode_line(end):
            raise _not_tenuto(server, "export", "its last line has another checksum or other counts than the rest")
        out.write(line)
    return damaged


def _damaged_in(server: str, line: bytes) -> int:
    try:
        return damaged_in(line)
    except InvalidRequest as error:
        raise _not_tenuto(server, "export", error) from None


def _check_header(server: str, channel: str, line: bytes) -> None:
    """Check the first line of an export. Raises LocalError."""
    try:
        header = msgspec.json.decode(line, type=Header)
    except _INVALID:
        raise _not_tenuto(server, "export", f"it begins with {_begin(line)}") from None
    if header.format != FORMAT:
        raise LocalError(
            f"{shown_url(server)} sent an export of format {header.format}, this version reads format {FORMAT}; export "
            "it with the version of the server"
        )
    if header.channel != channel or not line.endswith(b"\n"):
        raise _not_tenuto(server, "export", f"channel {shown(header.channel)} instead of {channel!r}")


def _begin(line: bytes) -> str:
    return shown(line[:20].decode(errors="replace"))


def forget_at(server: str, client_id: str, token: str | None, *, channels: bool) -> str:
    """Remove what a person wrote from a served hub, and return the result as JSON. Raises LocalError."""
    wanted = {"client_id": client_id, "channels": channels}
    with _lines_of(server, "/v1/forget", token, "removal", wanted) as lines:
        for line in lines:
            if line.pop("type", None) == "end":
                return _json(server, "removal", line)
    raise _cut(server, "end of the removal; the same command goes on with it")


def damage_at(server: str, token: str | None) -> Iterator[str]:
    """Yield a line for each damaged part of the store of a served hub. Raises LocalError."""
    with _lines_of(server, "/v1/verify", token, "check", {}) as lines:
        for line in lines:
            if line.get("type") == "end":
                return
            if line.get("type") == "damage":
                yield _printable(line.get("detail"))
    raise _cut(server, "whole check")


def state_at(server: str, token: str | None) -> str:
    """Return the state of a served hub as JSON. Raises LocalError."""
    with response_to(server, "/v1/inspect", token, "state") as response:
        try:
            state = msgspec.json.decode(response.read(PAGE_BYTES), type=dict[str, Any])
        except _INVALID as error:
            raise _not_tenuto(server, "state", error) from None
    return _json(server, "state", state)


@contextlib.contextmanager
def _lines_of(
    server: str, path: str, token: str | None, what: str, body: object
) -> Iterator[Iterator[dict[str, object]]]:
    """Yield the lines of a response, for reading in the block. Raises LocalError, also for the error of a line."""

    def lines() -> Iterator[dict[str, object]]:
        while text := response.readline(LINE_BYTES):
            line = _decoded(server, what, text)
            if line.get("type") == "error":
                raise _ended(server, what, line)
            yield line

    with response_to(server, path, token, what, method="POST", body=body) as response:
        yield lines()


def _decoded(server: str, what: str, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except _INVALID as error:
        raise _not_tenuto(server, what, error) from None


def _ended(server: str, what: str, line: dict[str, object]) -> LocalError:
    reason = _detail(line.get("error")) or "it sent no reason; see its log"
    return LocalError(f"{shown_url(server)} did not end the {what}: {reason}")


def _cut(server: str, what: str) -> LocalError:
    return LocalError(f"{shown_url(server)} did not send the {what}; try again")


def _not_tenuto(server: str, what: str, reason: object) -> LocalError:
    return LocalError(f"{shown_url(server)} sent no valid {what} ({reason}); check that --url names a server of Tenuto")


def _json(server: str, what: str, value: object) -> str:
    """Return `value` as JSON in ASCII, because a terminal obeys some characters. Raises LocalError."""
    try:
        return json.dumps(value, indent=2)
    except _INVALID as error:
        raise _not_tenuto(server, what, error) from None


def _problem(error: Any) -> str:
    from http.client import HTTPException

    try:
        problem = json.loads(error.read(PROBLEM_BYTES))
    except (*_INVALID, OSError, HTTPException):
        problem = None
    return _detail(problem) or f"status {error.code} {_printable(error.reason)}"


def _detail(problem: object) -> str:
    """Return the text of a problem object: its detail, or else its title or code."""
    texts = [problem.get(name) for name in ("detail", "title", "code")] if isinstance(problem, dict) else []
    return next((_printable(one)[:1000] for one in texts if isinstance(one, str) and one), "")


def _printable(text: object) -> str:
    """Return `text` without control characters, which a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


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
    from tenuto.client.connection import error_of  # imported here, because the import is slow

    found = 0
    with contextlib.closing(connection.makefile("rb")) as lines:
        while True:
            if not (received := lines.readline(MESSAGE_BYTES)):
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
