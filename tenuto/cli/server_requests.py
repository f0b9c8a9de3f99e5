"""A hub that serves, as the commands of `tenuto` use it: its HTTP API, at a URL or on the control socket of its store.

Layer: beside `tail`, below `store_commands`, which imports it when a command runs: the imports are slow.
`tenuto.transports` is the other side. Every error is a LocalError.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar
from urllib import error as failed
from urllib import request
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tenuto.core.errors import InvalidName, InvalidRequest, LocalError, shown, shown_url
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_channel
from tenuto.core.records import HEADER_BYTES, End, decode_header, decode_line
from tenuto.hub.keep.archive import MAX_LISTED, ChannelPage
from tenuto.server.serving import is_local
from tenuto.stores.sqlite.file import control_of

READ_TIMEOUT_S = 60.0  # time without a byte after which a server counts as gone; long calls send signs of life
LINE_BYTES = 1024 * 1024  # far above the longest line, but for messages, which are read in pieces
PROBLEM_BYTES = 64 * 1024
PAGE_BYTES = 16 * 1024 * 1024  # far above the largest page of channels
_INVALID = (msgspec.MsgspecError, ValueError, RecursionError)  # raised by decoders
_LAST = re.compile(rb'\{"type":"(end|error)"')  # begins the last line of an export

_CUT = "its response has no end"

T = TypeVar("T")


def at_url(url: str, token: str | None) -> Server:
    """Return the server at `url`. Raises LocalError for an address or a token that cannot be right."""
    try:
        parts = urlsplit(url)
        is_valid = (
            url.isascii()
            and url.isprintable()
            and not any(mark in url for mark in " ?#")
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
            f"goes in TENUTO_TOKEN), got {shown_url(url)}"
        )
    if token is not None and not (token.isascii() and token.isprintable()):
        raise LocalError(
            f"--token must be one line of printable ASCII text, got {len(token)} characters; check TENUTO_TOKEN for "
            "a line end"
        )
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    proxies = [request.ProxyHandler({})] if is_local(parts.hostname or "") else []  # http_proxy is for other machines
    opener = request.build_opener(_NoRedirect, *proxies)
    return Server(shown_url(url), url.rstrip("/"), headers, opener, "check that --url names a server of Tenuto")


def beside(store: Path) -> Server | None:
    """Return the server of the file `store`; None if no process listens on its control socket. Raises LocalError."""
    path = control_of(store)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(READ_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            if not path.exists():  # for example: the path is too long for a socket
                return None
            reason = error.strerror or error
            raise LocalError(
                f"control socket {path} cannot be used ({reason}); run the command as the user of the server"
            ) from None
    opener = request.build_opener(_NoRedirect, request.ProxyHandler({}), _OnSocket(path))
    return Server(f"control socket {path}", "http://localhost", {}, opener, "check which program listens there")


class _NoRedirect(request.HTTPRedirectHandler):
    """Follows no redirect, because the token is for the named server only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise failed.HTTPError(req.full_url, code, f"redirect to {shown_url(newurl)}", headers, fp)


class _OnSocket(request.HTTPHandler):
    """Sends requests on the Unix socket at `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(partial(_SocketConnection, self._path), req)


class _SocketConnection(HTTPConnection):
    def __init__(self, path: Path, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def send(self, data: Any) -> None:
        with contextlib.suppress(ConnectionError):  # a hub that is busy responds before it has read the request
            super().send(data)


@dataclass(frozen=True)
class Server:
    """A hub that serves, and the operations that it carries out for a command."""

    name: str  # in messages
    address: str
    headers: dict[str, str]
    opener: request.OpenerDirector
    remedy: str  # for a response that is not that of a hub

    def channels(self, prefix: str) -> Iterator[ChannelSummary]:
        """Yield the channels whose names begin with `prefix`, in order."""
        what, query = "list of channels", {"prefix": prefix, "limit": str(MAX_LISTED)}
        while True:
            page = self._get(what, f"/v1/channels?{urlencode(query)}", ChannelPage)
            for one in page.channels:
                try:
                    is_next = check_channel(one.channel) > query.get("after", "")
                except InvalidName as error:
                    raise self._invalid(what, error) from None
                if not is_next:
                    raise self._invalid(what, f"channel {one.channel!r} is not in order")
                query["after"] = one.channel
            yield from page.channels
            if not page.more or not page.channels:
                return

    def export(self, channel: str, out: BinaryIO) -> int:
        """Write the export of a channel into `out`, and return how many of its messages are damaged.

        The last line is written once its checksum is right, so `tenuto import` refuses what is written of any other
        response. Memory holds a piece of a line.
        """
        path = f"/v1/channels/{quote(check_channel(channel), safe='')}/export"
        with self._response("export", path) as response:
            line = response.readline(HEADER_BYTES)
            try:
                header = decode_header(line)
            except InvalidRequest as error:
                raise self._invalid("export", error) from None
            if header.channel != channel or not line.endswith(b"\n"):
                raise self._invalid("export", f"channel {shown(header.channel)} instead of {channel!r}")
            digest, kind = hashlib.sha256(), None
            while kind is None:
                digest.update(line)
                out.write(line)
                is_begin, line = line.endswith(b"\n"), response.readline(LINE_BYTES)
                if not line:
                    raise HTTPException(_CUT)
                kind = _LAST.match(line) if is_begin else None
            if kind[1] == b"error":
                raise self._ended("export", self._decoded("export", line, dict[str, Any]))
            try:
                end = decode_line(line)
            except InvalidRequest as error:
                raise self._invalid("export", error) from None
            assert isinstance(end, End)
            if end.sha256 != digest.hexdigest() or not line.endswith(b"\n") or response.read(1):
                raise self._invalid("export", "its last line has another checksum than the rest")
            out.write(line)
        return end.damaged

    def health(self) -> str:
        """Return the state of a hub that reads and writes its store. Raises LocalError for a hub that cannot."""
        return _printable(self._get("health report", "/readyz", dict[str, Any]).get("status"))

    def state(self) -> dict[str, Any]:
        """Return the state of the hub."""
        return self._get("state", "/v1/inspect", dict[str, Any])

    def damage(self) -> Iterator[str]:
        """Yield a line for each damaged part of the hub's store."""
        for line in self._lines("check", "/v1/verify", {}):
            if line.get("type") == "damage":
                yield _printable(line.get("detail"))

    def result(self, what: str, path: str, wanted: Mapping[str, object], kind: type[T]) -> T:
        """Return the result of a long operation; `what` names it."""
        *_, end = self._lines(what, path, wanted)
        del end["type"]
        try:
            return msgspec.convert(end, kind)
        except msgspec.ValidationError as error:
            raise self._invalid(what, error) from None

    def _get(self, what: str, path: str, kind: type[T]) -> T:
        with self._response(what, path) as response:
            body = response.read(PAGE_BYTES)
            if response.length and len(body) < PAGE_BYTES:  # a read with a bound does not raise it
                raise HTTPException(_CUT)
        return self._decoded(what, body, kind)

    def _lines(self, what: str, path: str, wanted: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Yield the lines of a response up to its end. Raises the error of a line."""
        with self._response(what, path, wanted) as response:
            while text := response.readline(LINE_BYTES):
                line = self._decoded(what, text, dict[str, Any])
                if line.get("type") == "error":
                    raise self._ended(what, line)
                yield line
                if line.get("type") == "end":
                    return
            raise HTTPException(_CUT)

    @contextlib.contextmanager
    def _response(self, what: str, path: str, wanted: object = None) -> Iterator[Any]:
        """Yield the response to a request, for reading in the block; `wanted` is the body of a POST."""
        headers, data = self.headers, None
        if wanted is not None:
            headers, data = {**headers, "content-type": "application/json"}, msgspec.json.encode(wanted)
        asked = request.Request(self.address + path, data, headers)
        try:
            with self.opener.open(asked, timeout=READ_TIMEOUT_S) as response:
                yield response
        except failed.HTTPError as error:
            with error:
                raise LocalError(f"{self.name} refused the {what}: {_problem(error)}") from None
        except BrokenPipeError:  # no program reads the output of the block
            raise
        except (failed.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = error.reason if isinstance(error, failed.URLError) else error
            raise LocalError(
                f"{self.name} did not send the whole {what}: {_printable(reason)}; repeat the command"
            ) from None

    def _decoded(self, what: str, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except _INVALID as error:
            raise self._invalid(what, error) from None

    def _ended(self, what: str, line: dict[str, Any]) -> LocalError:
        reason = _detail(line.get("error")) or "it sent no reason; see its log"
        return LocalError(f"{self.name} did not end the {what}: {reason}")

    def _invalid(self, what: str, reason: object) -> LocalError:
        return LocalError(f"{self.name} sent no valid {what} ({reason}); {self.remedy}")


def _problem(error: failed.HTTPError) -> str:
    try:
        problem = msgspec.json.decode(error.read(PROBLEM_BYTES))
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
