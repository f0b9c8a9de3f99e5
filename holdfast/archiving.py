"""`holdfast export` and `holdfast import`: a channel as a file.

Layer: archiving, beside `cli`.

Without a hub that serves it (`control_client`), the commands open the store themselves. With `--url`, the server of the
store exports the channel.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote

from holdfast.core.errors import LocalError, StoreInUse, shown, shown_url
from holdfast.core.limits import Limits
from holdfast.core.names import check_channel
from holdfast.hub.clock import Clock
from holdfast.hub.exporting import export_lines
from holdfast.hub.importing import Imported, check_file, undo_imports, write_file
from holdfast.stores import open_url
from holdfast.stores.base import Store
from holdfast.stores.sqlite import SqliteStore

READ_TIMEOUT_S = 60.0  # time without a byte after which a server counts as gone
PROBLEM_BYTES = 64 * 1024


@asynccontextmanager
async def opened(url: str, *, is_new: bool = False) -> AsyncIterator[Store]:
    """Open the store that `url` names; its file must exist unless `is_new`. Raises LocalError and StoreUnusable."""
    store = open_url(url)
    if isinstance(store, SqliteStore) and not is_new and not store.path.exists():
        raise LocalError(f"store file {store.path} does not exist; name the store with --store")
    try:
        await store.open()
    except StoreInUse as error:
        raise LocalError(f"{error}. While it is served, use --url, or hub.archive in the serving process") from None
    try:
        await undo_imports(store)
        yield store
    finally:
        await store.close()


async def export_channel(url: str, channel: str, out: BinaryIO) -> None:
    """Write the export of a channel into `out`. Raises NotFound, LocalError and the store's errors."""
    check_channel(channel)
    async with opened(url) as store:
        async for line in export_lines(store, channel):
            out.write(line)
        out.flush()


async def import_channel(url: str, path: Path, channel: str | None) -> Imported:
    """Import a file into an empty channel, by default that of its header. Raises the errors of `write_file`."""
    if channel is not None:
        check_channel(channel)
    limits, clock = Limits(), Clock()
    checked = await check_file(path, limits, clock.now_ms())
    async with opened(url, is_new=True) as store:
        return await write_file(store, channel or checked.channel, checked, limits, clock)


def fetch_export(server: str, channel: str, token: str | None, out: BinaryIO) -> None:
    """Write the export of a channel of a served hub into `out`. Raises LocalError."""
    url = f"{server.rstrip('/')}/v1/channels/{quote(check_channel(channel), safe='')}/export"
    if not url.startswith(("http://", "https://")):
        raise LocalError(f"--url must be like http://host:8000, got {shown(server)}")
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=READ_TIMEOUT_S) as response:
            shutil.copyfileobj(response, out)
        out.flush()
    except urllib.error.HTTPError as error:
        with error:
            raise LocalError(f"{shown_url(server)} refused the export: {_problem(error)}") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise LocalError(f"{shown_url(server)} did not send the whole export: {reason}; try again") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because the token is for the named server only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise urllib.error.HTTPError(req.full_url, code, f"redirect to {shown_url(newurl)}", headers, fp)


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.loads(error.read(PROBLEM_BYTES))["detail"]
    except (ValueError, LookupError, TypeError, OSError):
        detail = None
    return str(detail)[:1000] if isinstance(detail, str) else f"status {error.code} {error.reason}"
