"""The browser's modules, as files: compressed once, and revalidated by their content.

Layer: transports.

The folder `vendor` belongs to the modules. The other folders belong to applications, such as the demo, which serve
their own.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_NAME = re.compile(r"/((?:vendor/)?[\w-]+(?:\.[\w-]+)*\.js(\.map)?)", re.ASCII)
_NO_GZIP = re.compile(r"0(\.0*)?")


class _Module(NamedTuple):
    """The content of a file, plain and compressed.

    It is valid while the file has the same `stamp` (change time and size).
    """

    stamp: tuple[int, int]
    plain: bytes
    zipped: bytes
    digest: str


class Web:
    """Serves the modules in `folder`. They may change with each release, so browsers must revalidate their copies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[str, _Module] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HTTPException for methods other than GET and HEAD, and for a missing file."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405)
        await self._response(scope)(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        name = _NAME.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        module = self._module(name[1]) if name else None
        if name is None or module is None:
            raise HTTPException(404)
        request_headers = Headers(scope=scope)
        is_zipped = _accepts_gzip(request_headers.get("accept-encoding", ""))
        body, form = (module.zipped, "-gzip") if is_zipped else (module.plain, "")
        headers = {"cache-control": "no-cache", "etag": f'"{module.digest}{form}"', "vary": "Accept-Encoding"}
        known = [one.strip().removeprefix("W/") for one in request_headers.get("if-none-match", "").split(",")]
        if headers["etag"] in known:
            return Response(status_code=304, headers=headers)
        headers["content-length"] = str(len(body))
        if is_zipped:
            headers["content-encoding"] = "gzip"
        media_type = "application/json" if name[2] else "text/javascript"
        return Response(b"" if scope["method"] == "HEAD" else body, headers=headers, media_type=media_type)

    def _module(self, name: str) -> _Module | None:
        path = self._folder / name
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            module = self._modules.get(name)
            if module is None or module.stamp != stamp:
                plain = path.read_bytes()
                digest = hashlib.blake2b(plain, digest_size=12).hexdigest()
                module = self._modules[name] = _Module(stamp, plain, gzip.compress(plain, 9, mtime=0), digest)
        except OSError:
            return None
        return module


def _accepts_gzip(accepted: str) -> bool:
    """Return whether an `Accept-Encoding` header names gzip, or `*`, with a weight above 0."""
    for one in accepted.lower().split(","):
        coding, _, weight = one.partition(";")
        if coding.strip() in ("gzip", "*"):
            return _NO_GZIP.fullmatch(weight.strip().removeprefix("q=").strip() or "1") is None
    return False
