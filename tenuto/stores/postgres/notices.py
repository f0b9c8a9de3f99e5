"""The notices of a PostgreSQL store, by LISTEN and NOTIFY on a connection of their own.

Layer: stores.

PostgreSQL holds a lock of the whole server while it commits a NOTIFY, so no transaction that writes sends one. A
payload takes less than 8,000 bytes; it carries as many notices as fit. The connection sends a notice to itself every
few seconds. If that does not arrive, the connection is broken, or a pooler such as PgBouncer in transaction mode is in
between. Then hubs find one another's entries when they read the heads, once in a second.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from tenuto.core.errors import TenutoError
from tenuto.stores.base import Notice

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

logger = logging.getLogger("tenuto.stores")

PAYLOAD_BYTES = 7_900  # PostgreSQL refuses a payload of 8,000 bytes
_RAW_BYTES = PAYLOAD_BYTES // 4 * 3 - 5  # in base64, and less the length of the list
CHECK_S = 10.0  # time between two notices of the connection to itself
CHECK_TIMEOUT_S = 5.0
RETRY_S = (0.5, 30.0)  # shortest and longest wait before the connection is opened again

# The commit of a notice waits for no disk. The setting ends with the statement, so a pooler passes it on to no commit.
_NOTIFY = """
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, p) FROM unnest($2::text[]) AS p
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Notice]).decode

OnNotice = Callable[[Notice | None], None]
_FAILURES = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, TimeoutError, TenutoError),
)


def payloads_of(notices: Sequence[Notice]) -> Iterator[str]:
    """Yield the payloads that carry `notices`, in order. A notice that is too large for a payload is left out."""
    batch: list[msgspec.Raw] = []
    size_bytes = 0
    for notice in notices:
        raw = msgspec.Raw(_encode(notice))
        if len(raw) > _RAW_BYTES:
            continue
        if size_bytes + len(raw) > _RAW_BYTES:
            yield base64.b64encode(_encode(batch)).decode()
            batch, size_bytes = [], 0
        batch.append(raw)
        size_bytes += len(raw)
    if batch:
        yield base64.b64encode(_encode(batch)).decode()


class PostgresNotices:
    """The connection for notices of one open store. The first `listen` opens it; it is opened again if it breaks."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], name: str) -> None:
        """Make the notices of the instances that know `name`; `connect` opens a connection."""
        self._connect = connect
        self._name = name
        self._listeners: list[OnNotice] = []
        self._task: asyncio.Task[None] | None = None
        self._db: Connection | None = None  # the connection while it listens
        self._busy = asyncio.Lock()  # a connection carries out one statement at a time
        self._is_delivered = asyncio.Event()  # set by the notice of the connection to itself

    def listen(self, on_notice: OnNotice) -> None:
        """Call `on_notice` with each notice of other instances (`Store.listen`)."""
        self._listeners.append(on_notice)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._db is not None:
            on_notice(None)

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send `notices` (`Store.notify`). They are lost while the connection is broken, or was not asked for."""
        payloads = list(payloads_of(notices))
        if payloads and self._db is not None:
            await self._send(self._db, self._name, payloads)

    async def close(self) -> None:
        """Close the connection, and call the listeners no more."""
        task, self._task = self._task, None
        self._listeners.clear()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _send(self, db: Connection, name: str, payloads: Sequence[str]) -> None:
        try:
            async with self._busy:
                await db.execute(_NOTIFY, name, payloads)
        except BaseException as error:
            db.terminate()  # `_run` opens another one
            if not isinstance(error, _FAILURES):
                raise

    async def _run(self) -> None:
        """Keep a connection that listens, until this task is cancelled."""
        wait_s, longest_s = RETRY_S
        while True:
            try:
                db = await self._connect()
                try:
                    await self._serve(db)
                    wait_s = RETRY_S[0]
                finally:
                    self._db = None
                    db.terminate()
                logger.info("the connection to PostgreSQL for notices ended; it is opened again")
            except _FAILURES as error:
                logger.warning(
                    "notices of other nodes do not arrive, and text of other nodes is a second late; "
                    "the store tries again in %g s: %s",
                    *(wait_s, error or type(error).__name__),
                )
            except Exception:
                logger.exception("the connection to PostgreSQL for notices failed; it is opened again")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    async def _serve(self, db: Connection) -> None:
        """Listen until the connection ends. Raises ConnectionError if notices do not arrive on it."""
        ended = asyncio.Event()
        db.add_termination_listener(lambda _: ended.set())
        pid = db.get_server_pid()  # kept: an ended connection does not know it any more
        own = f"{self._name}_{pid}"
        await db.add_listener(self._name, partial(self._receive, pid))
        await db.add_listener(own, lambda *_: self._is_delivered.set())
        self._db = db
        self._notify(None)
        while not ended.is_set():
            self._is_delivered.clear()
            await self._send(db, own, [""])
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await self._is_delivered.wait()
            except TimeoutError:
                if db.is_closed():
                    return
                raise ConnectionError(
                    "PostgreSQL does not deliver a notice on this connection; if a pooler in transaction mode is in "
                    "between, name the server itself in the store URL"
                ) from None
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await ended.wait()

    def _receive(self, own_pid: int, db: object, pid: int, name: str, payload: object) -> None:
        if pid == own_pid:
            return
        try:
            notices = _decode(base64.b64decode(str(payload)))
        except (binascii.Error, ValueError, msgspec.MsgspecError):  # of another version of Tenuto
            self._notify(None)
            return
        for notice in notices:
            self._notify(notice)

    def _notify(self, notice: Notice | None) -> None:
        for on_notice in list(self._listeners):
            on_notice(notice)
