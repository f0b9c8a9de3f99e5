"""Rates and counts of clients: one that does not serve others may ask so much, and no more.

Layer: hub.

Somebody with `append`, `agent` or `admin` writes tokens all day and is bounded in bytes alone
(`core.limits`); people and their pages are counted here, by client id, over all of a client's connections. Time is an
argument of the constructor. What is remembered is bounded: a client that has done nothing for a while is as one that
was never seen, so forgetting it changes nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.core.errors import TooMany
from holdfast.hub.identity import Identity

MAX_CLIENTS = 100_000  # remembered at once; about 500 bytes each
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What one client with neither `append`, `agent` nor `admin` may do."""

    client_connections: int = 20  # streams, polls and sockets, open at once
    client_requests: int = 50  # a second; twice as many at once, which is what a socket's channels need to come back
    client_signals: int = 20  # a second
    client_channels: int = 1_000  # begun in an hour


class _Bucket:
    """So many at once, and so many a second again."""

    __slots__ = ("_at_s", "_level")

    def __init__(self, size: float, now_s: float) -> None:
        self._level = size
        self._at_s = now_s

    def level(self, size: float, per_s: float, now_s: float) -> float:
        """How many may be taken now."""
        self._level = min(size, self._level + max(0.0, now_s - self._at_s) * per_s)
        self._at_s = now_s
        return self._level

    def take(self) -> None:
        """Take one; `level` was asked before."""
        self._level -= 1


class _Client:
    """What one client has done of late."""

    __slots__ = ("channels", "connections", "requests", "signals")

    def __init__(self, limits: ClientLimits, now_s: float) -> None:
        self.connections = 0
        self.requests = _Bucket(2 * limits.client_requests, now_s)
        self.signals: _Bucket | None = None  # most clients never need these two
        self.channels: _Bucket | None = None


class ConnectionSlot:
    """One connection among those that a client may have; `leave` gives it back."""

    __slots__ = ("_client",)

    def __init__(self, client: _Client | None) -> None:
        self._client = client

    def leave(self) -> None:
        """Give the slot back. A second call does nothing."""
        if self._client is not None:
            self._client.connections -= 1
            self._client = None


class Rates:
    """Counts what clients do. `request`, `signal` and `connect` raise TooMany, and count nothing then."""

    def __init__(self, limits: ClientLimits | None = None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or ClientLimits()
        self._now_s = now_s
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # whoever was seen last stands last

    def __len__(self) -> int:
        return len(self._clients)

    def request(self, identity: Identity, peer: str = "") -> None:
        """A request, or a frame of a socket, came. `peer` is the address, by which those without an id are known."""
        client = self._client(identity, peer)
        if client is None:
            return
        limit = self.limits.client_requests
        if client.requests.level(2 * limit, limit, self._now_s()) < 1:
            raise TooMany(f"a client may ask {limit} times a second", limit=limit)
        client.requests.take()

    def signal(self, identity: Identity, peer: str = "") -> None:
        """A signal is to be told."""
        client = self._client(identity, peer)
        if client is None:
            return
        limit, now_s = self.limits.client_signals, self._now_s()
        if client.signals is None:
            client.signals = _Bucket(limit, now_s)
        if client.signals.level(limit, limit, now_s) < 1:
            raise TooMany(f"a client may signal {limit} times a second", limit=limit)
        client.signals.take()

    def may_begin(self, identity: Identity, peer: str = "") -> bool:
        """May a channel begin with what is asked? Counts nothing: it may not come to that. Never raises."""
        client = self._client(identity, peer)
        if client is None or client.channels is None:
            return True
        limit = self.limits.client_channels
        return client.channels.level(limit, limit / HOUR_S, self._now_s()) >= 1

    def began(self, identity: Identity, peer: str = "") -> None:
        """A channel has begun: the first entry of its life is stored. Never raises: it is fact."""
        client = self._client(identity, peer)
        if client is None:
            return
        limit, now_s = self.limits.client_channels, self._now_s()
        if client.channels is None:
            client.channels = _Bucket(limit, now_s)
        client.channels.level(limit, limit / HOUR_S, now_s)
        client.channels.take()

    def connect(self, identity: Identity, peer: str = "") -> ConnectionSlot:
        """A stream, a poll or a socket begins; it must leave its slot at its end."""
        client = self._client(identity, peer)
        if client is None:
            return ConnectionSlot(None)
        limit = self.limits.client_connections
        if client.connections >= limit:
            raise TooMany(f"a client has at most {limit} connections", limit=limit)
        client.connections += 1
        return ConnectionSlot(client)

    def _client(self, identity: Identity, peer: str) -> _Client | None:
        """The client behind `identity`; None if it is not counted."""
        if identity.is_trusted:
            return None
        # An id has no slash, so no client can take an address for its name.
        name = identity.client_id if identity.client_id is not None else f"/{peer}"
        client = self._clients.get(name)
        if client is None:
            self._make_room()
            client = self._clients[name] = _Client(self.limits, self._now_s())
        else:
            self._clients.move_to_end(name)
        return client

    def _make_room(self) -> None:
        """Forget whoever was not seen for longest. One that is connected is not forgotten: its slots are counted."""
        for _ in range(len(self._clients) - MAX_CLIENTS + 1):
            name, client = self._clients.popitem(last=False)
            if client.connections:
                self._clients[name] = client
