"""Notices: a node tells the other nodes of a shared store which entries it has stored, and which members have changed.

Layer: hub.

A `moved` notice is sent after its commit is durable, in a call of its own, so no commit waits for it. It carries the
new entries of its channel if they are small. Notices may be lost, doubled, late or out of order: the receiver
(`following`) applies only entries that continue its state.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
from msgspec import Struct

from tenuto.core.document import DAMAGE
from tenuto.core.errors import TenutoError
from tenuto.core.ops import Entry
from tenuto.hub.nodes.nodes import NodeLease
from tenuto.stores.base import Notice, Notices, Write

logger = logging.getLogger("tenuto.hub")

WINDOW_S = 0.005  # time between two calls of `Notices.notify`
MOVED_BYTES = 4_096  # limit of the entries in the notice of one channel
WAITING_NOTICES = 1_000  # limit of the other notices that wait to be sent; further ones are dropped
WAITING_BYTES = 256 * 1024  # limit of their size
NOTIFY_TIMEOUT_S = 2.0  # a call without a response for this long is given up: its notices are lost


class Moved(Struct, frozen=True, array_like=True):
    """The body of a `moved` notice: `entries` are the last ones up to `serial`; none if they are too large.

    If they are the first ones of their epoch, the empty channel had these `lives` before.
    """

    epoch: str
    floor: int
    serial: int
    entries: list[Entry]
    lives: int


class _Unsent(Struct):
    """The entries of one channel that no notice has carried yet, each encoded."""

    epoch: str
    floor: int
    serial: int
    lives: int
    entries: list[msgspec.Raw]
    size_bytes: int = 0

    def add(self, write: Write) -> None:
        """Add the entries of `write`; drop all entries once they exceed the limit."""
        self.serial = write.expected + len(write.entries)
        if self.size_bytes <= MOVED_BYTES:
            added = [msgspec.Raw(_encode(entry)) for entry in write.entries]
            self.entries += added
            self.size_bytes += sum(map(len, added))
        if self.size_bytes > MOVED_BYTES:
            self.entries.clear()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Moved).decode


class Notifier:
    """Sends a notice of each channel in which this node has stored entries, as long as other nodes live."""

    def __init__(self, way: Notices, nodes: NodeLease) -> None:
        """Send notices by `way`: the store, or a bus."""
        self._way = way
        self._nodes = nodes
        self._unsent: dict[str, _Unsent] = {}
        self._others: list[Notice] = []  # notices about members, and signals
        self._others_bytes = 0
        self._wake = asyncio.Event()

    def stored(self, write: Write) -> None:
        """Send a notice of `write`, which is stored and has entries, soon."""
        if not self._nodes.has_others:
            return
        unsent = self._unsent.get(write.channel)
        if unsent is None or (unsent.epoch, unsent.floor, unsent.serial) != (write.epoch, write.floor, write.expected):
            unsent = _Unsent(write.epoch, write.floor, write.expected, write.lives, [])
            self._unsent[write.channel] = unsent
        unsent.add(write)
        self._wake.set()

    def send(self, notice: Notice) -> None:
        """Send `notice` soon. It is dropped if too many wait."""
        size = len(notice.channel) + len(notice.body)
        if not self._nodes.has_others or len(self._others) >= WAITING_NOTICES:
            return
        if self._others_bytes + size <= WAITING_BYTES:
            self._others.append(notice)
            self._others_bytes += size
            self._wake.set()

    async def run(self) -> None:
        """Send the notices, at most once in a window, until this task is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send(
                [
                    Notice("moved", channel, _encode((one.epoch, one.floor, one.serial, one.entries, one.lives)))
                    for channel, one in self._unsent.items()
                ]
                + self._others
            )
            await asyncio.sleep(WINDOW_S)

    async def _send(self, notices: list[Notice]) -> None:
        self._unsent.clear()
        self._others, self._others_bytes = [], 0
        try:
            async with asyncio.timeout(NOTIFY_TIMEOUT_S):
                await self._way.notify(notices)
        except (TenutoError, TimeoutError) as error:
            logger.debug("%d notices were not sent; other nodes read the heads: %r", len(notices), error)
        except Exception:  # an error of a third-party store or bus must not end the notices
            logger.exception("%d notices were not sent; other nodes read the heads", len(notices))


def moved_in(notice: Notice) -> Moved | None:
    """Return the body of a `moved` notice; None if this Tenuto cannot read it."""
    try:
        return _decode(notice.body)
    except DAMAGE:
        return None
