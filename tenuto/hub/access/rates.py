"""Rates and counts that bound a client without a serving capability, and the questions of visitors.

Layer: hub.

A client with `append`, `agent` or `admin` writes tokens all day and is bounded in bytes alone (`core.limits`). Other
clients, which are people and their pages, are counted here by client id over all their connections: their requests, and
the bytes that their requests cause (decision 0037). Time is an argument of the constructor. The number of counted
clients is bounded: beyond it the client that was idle longest is forgotten, and counts like a new one.

Each question of a visitor takes a token from four buckets, which bound the cost of the model: for a minute and for a
day, of the visitor and of its address. An id costs nothing, so the address bounds a peer that takes ever new ones. A
bucket that has filled up again is forgotten. A route of the app stores a question without naming a request; `route`
carries what is known of it to the count. All counts are those of one process.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from math import ceil, inf
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import LocalError, TenutoError, TooMany, shown
from tenuto.core.limits import KIB, MIB
from tenuto.core.requests import Caller, Request
from tenuto.core.visitor_ids import is_question, is_visitor, visitor_of
from tenuto.hub.access.hosts import address_group
from tenuto.hub.access.identity import Identity
from tenuto.hub.pending import Result

MAX_CLIENTS = 100_000  # limit of clients that are counted at the same time; each needs about 600 bytes
HOUR_S = 3600.0
FORGET_AT_ONCE = 1_000
# Traffic of this size counts as one request: reading and sending a large page takes about 7 ms for each MiB.
REQUEST_COST_BYTES = 128 * KIB
# Each request includes this much traffic: its own bytes, its response, and its event for each viewer.
FREE_BYTES = 4 * KIB
# limit for all open request bodies of one client: the bytes of this number of bodies of the largest size
OPEN_BODIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """The limits of one client that has none of the capabilities `append`, `agent` and `admin`."""

    client_connections: int = 20  # streams, polls and sockets that are open at the same time
    # requests per second; twice as many in a burst, so that a socket's channels can attach again
    client_requests: int = 50
    client_bytes: int = 1024 * MIB  # bytes per hour: requests, their responses, and their events for each viewer
    client_signals: int = 20  # signals per second
    client_channels: int = 1_000  # channels created per hour


# Connections of all visitors of one address, as a multiple of those of one client. An idle one takes about 17 KB, and
# hundreds of people may share the address of an office.
ADDRESS_CONNECTIONS = 50


def of_addresses(limits: ClientLimits, factor: int) -> ClientLimits:
    """Return the limits of all visitors of one address together: `factor` times those of one client."""
    return ClientLimits(
        client_connections=limits.client_connections * ADDRESS_CONNECTIONS,
        client_requests=limits.client_requests * factor,
        client_bytes=limits.client_bytes * factor,
        client_signals=limits.client_signals * factor,
        client_channels=limits.client_channels * factor,
    )


class Bucket:
    """A token bucket: `level` refills it, `take` takes tokens. Below zero it is in debt, and refills from there."""

    __slots__ = ("_at_s", "_level")

    def __init__(self, size: float, now_s: float) -> None:
        self._level = size
        self._at_s = now_s

    def level(self, size: float, per_s: float, now_s: float) -> float:
        """Refill the bucket for the time since the last call and return how many tokens it holds."""
        self._level = min(size, self._level + max(0.0, now_s - self._at_s) * per_s)
        self._at_s = now_s
        return self._level

    def take(self, tokens: float = 1) -> None:
        """Take `tokens`; a negative number gives them back. Call `level` first."""
        self._level -= tokens

    def wait_s(self, per_s: float) -> int:
        """Return in how many whole seconds the bucket will hold a token again. Call `level` first."""
        return max(1, ceil(min(HOUR_S, (1 - self._level) / per_s if per_s > 0 else HOUR_S)))

    def is_full(self, size: float, per_s: float, now_s: float) -> bool:
        """Return whether the bucket is as a new one."""
        return self.level(size, per_s, now_s) >= size


class _Client:
    """The counters of one client."""

    __slots__ = ("body_bytes", "bytes", "channels", "connections", "requests", "signals")

    def __init__(self, limits: ClientLimits, now_s: float) -> None:
        self.connections = 0
        self.body_bytes = 0  # size of the request bodies that are still open
        self.requests = Bucket(2 * limits.client_requests, now_s)
        self.bytes = Bucket(limits.client_bytes, now_s)
        self.signals: Bucket | None = None  # made on first use, since most clients never need these two
        self.channels: Bucket | None = None

    def is_new(self, limits: ClientLimits, now_s: float) -> bool:
        """Return whether nothing is counted: the counters are as those of a client that never came."""
        most, per_h = limits.client_requests, limits.client_channels
        return (
            not (self.connections or self.body_bytes)
            and self.requests.is_full(2 * most, most, now_s)
            and self.bytes.is_full(limits.client_bytes, limits.client_bytes / HOUR_S, now_s)
            and (self.signals is None or self.signals.is_full(limits.client_signals, limits.client_signals, now_s))
            and (self.channels is None or self.channels.is_full(per_h, per_h / HOUR_S, now_s))
        )


class ConnectionSlot:
    """One of the connections that a client may hold; `leave` gives it back."""

    __slots__ = ("clients",)

    def __init__(self, *clients: _Client) -> None:
        """Hold a connection of each of `clients`: of one, and of its address if that is counted, too."""
        self.clients = clients

    def leave(self) -> None:
        """Give the slot back. A second call has no effect."""
        for client in self.clients:
            client.connections -= 1
        self.clients = ()


class OpenBody:
    """A request body that has not ended: a context manager that counts its bytes for its client, and its address.

    A step that raises TooMany leaves the counts as they are.
    """

    __slots__ = ("_clients", "_held_bytes", "size")

    def __init__(self, *clients: tuple[_Client, str, int], least_bytes: int = 0) -> None:
        """Count at least `least_bytes` for each of `clients`, which are counters with a name and a limit in bytes.

        The limit is that of all open bodies of the client. Without clients nothing is counted at all.
        """
        self._clients = clients
        self._held_bytes = least_bytes
        self.size = 0  # bytes that have arrived, if they are counted

    def __enter__(self) -> Self:
        """Count the body as open. Raises TooMany."""
        self._count(self._held_bytes)
        return self

    def __exit__(self, *raised: object) -> None:
        for client, _, _ in self._clients:
            client.body_bytes -= self._held_bytes

    def grow(self, size: int) -> None:
        """Count `size` more bytes, which have arrived. Raises TooMany."""
        if not self._clients:
            return
        self.size += size
        if self.size > self._held_bytes:
            self._count(self.size - self._held_bytes)
            self._held_bytes = self.size

    def _count(self, size: int) -> None:
        for client, name, max_bytes in self._clients:
            if client.body_bytes + size > max_bytes:
                raise TooMany(
                    f"the unfinished request bodies of client {name} have {client.body_bytes} bytes together, the "
                    f"limit is {max_bytes}; send fewer at a time",
                    limit=max_bytes,
                )
        for client, _, _ in self._clients:
            client.body_bytes += size


UNCOUNTED = OpenBody()  # the open body of a client whose traffic is not limited


class Rates:
    """Counts the requests, bytes, open bodies, signals, connections and new channels of clients.

    A call that raises TooMany leaves the counts of its client as they are. Visitors have an id for nothing, so all that
    is counted for one counts for its address, too, in `of_addresses`.
    """

    of_addresses: Rates | None = None  # counts the addresses of visitors

    def __init__(
        self,
        limits: ClientLimits | None = None,
        *,
        bodies_factor: int = 1,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count by `limits`; the open bodies of a client may have `bodies_factor` times the size that `body` gets."""
        self.limits = limits or ClientLimits()
        self._bodies_factor = bodies_factor
        self._now_s = now_s
        # clients in order of their last activity, the latest last
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def request(self, identity: Identity, peer: str = "", *, size: int = 0) -> None:
        """Count a request, or a frame of a socket, of `size` bytes.

        `peer` is the address, which identifies a client without an id. Raises TooMany for a client in debt, whatever
        the size: earlier traffic decides, so that even the largest request is possible.
        """
        client = self._client(identity, peer)
        if client is None:
            return
        if (addresses := self._addresses(identity)) is not None:
            addresses.request(_ADDRESS, address_group(peer), size=size)
        now_s, limits = self._now_s(), self.limits
        limit, bytes_limit = limits.client_requests, limits.client_bytes
        level = client.requests.level(2 * limit, limit, now_s)
        bytes_level = client.bytes.level(bytes_limit, bytes_limit / HOUR_S, now_s)
        if level < 1:
            wait_s = client.requests.wait_s(limit)
            raise TooMany(
                f"client {_name(identity, peer)} has used {2 * limit - level:.0f} of {2 * limit} requests at once, "
                f"which refill by {limit} a second; {REQUEST_COST_BYTES // KIB} KiB of traffic count as one. "
                f"Wait {wait_s} s, or raise ClientLimits(client_requests=...)",
                limit=limit,
                retry_after_s=wait_s,
            )
        if bytes_level < 1:
            wait_s = client.bytes.wait_s(bytes_limit / HOUR_S)
            raise TooMany(
                f"client {_name(identity, peer)} has caused {bytes_limit - bytes_level:.0f} bytes of traffic, the "
                f"limit is {bytes_limit} in an hour. Wait {wait_s} s, or raise ClientLimits(client_bytes=...)",
                limit=bytes_limit,
                retry_after_s=wait_s,
            )
        client.requests.take(1 + _cost(size))
        client.bytes.take(size)

    def new_visitor(self, peer: str) -> None:
        """Count a request without an id, whose sender becomes a visitor, for its address alone. Raises TooMany."""
        (self.of_addresses or self).request(_ADDRESS, address_group(peer))

    def charge(self, identity: Identity, peer: str = "", *, size: int) -> None:
        """Count `size` bytes that a request has caused; a negative number gives them back.

        Never raises, since the traffic has already happened: the next requests are refused until it is made up for.
        """
        client = self._client(identity, peer)
        if client is None:
            return
        if (addresses := self._addresses(identity)) is not None:
            addresses.charge(_ADDRESS, address_group(peer), size=size)
        now_s, limits = self._now_s(), self.limits
        client.requests.level(2 * limits.client_requests, limits.client_requests, now_s)
        client.bytes.level(limits.client_bytes, limits.client_bytes / HOUR_S, now_s)
        client.requests.take(_cost(size))
        client.bytes.take(size)

    def signal(self, identity: Identity, peer: str = "") -> None:
        """Count a signal. Raises TooMany."""
        client = self._client(identity, peer)
        if client is None:
            return
        limit, now_s = self.limits.client_signals, self._now_s()
        if client.signals is None:
            client.signals = Bucket(limit, now_s)
        if client.signals.level(limit, limit, now_s) < 1:
            raise TooMany(
                f"client {_name(identity, peer)} has sent {limit} signals in a second, which is the limit; send fewer",
                limit=limit,
            )
        if (addresses := self._addresses(identity)) is not None:
            addresses.signal(_ADDRESS, address_group(peer))
        client.signals.take()

    def may_begin(self, identity: Identity, peer: str = "") -> bool:
        """Return whether the client may create one more channel.

        Does not count it yet, since the request may still fail.
        """
        addresses = self._addresses(identity)
        if addresses is not None and not addresses.may_begin(_ADDRESS, address_group(peer)):
            return False
        client = self._client(identity, peer)
        if client is None or client.channels is None:
            return True
        limit = self.limits.client_channels
        return client.channels.level(limit, limit / HOUR_S, self._now_s()) >= 1

    def began(self, identity: Identity, peer: str = "") -> None:
        """Count a new channel whose first entry is stored. Never raises, since the entry is already stored."""
        client = self._client(identity, peer)
        if client is None:
            return
        if (addresses := self._addresses(identity)) is not None:
            addresses.began(_ADDRESS, address_group(peer))
        limit, now_s = self.limits.client_channels, self._now_s()
        if client.channels is None:
            client.channels = Bucket(limit, now_s)
        client.channels.level(limit, limit / HOUR_S, now_s)
        client.channels.take()

    def connect(self, identity: Identity, peer: str = "") -> ConnectionSlot:
        """Return a slot for a stream, poll or socket; the caller must call `leave` at its end."""
        client = self._client(identity, peer)
        if client is None:
            return ConnectionSlot()
        limit = self.limits.client_connections
        if client.connections >= limit:
            raise TooMany(
                f"client {_name(identity, peer)} has {limit} open connections, which is the limit; close one of them",
                limit=limit,
            )
        clients = [client]
        if (addresses := self._addresses(identity)) is not None:
            clients += addresses.connect(_ADDRESS, address_group(peer)).clients
        client.connections += 1
        return ConnectionSlot(*clients)

    def body(self, identity: Identity, peer: str = "", *, largest_bytes: int, max_bytes: int | None = None) -> OpenBody:
        """Return the count of a request body of at most `largest_bytes`.

        The bodies of a client that have not ended hold at most `max_bytes`, by default as much as eight of the largest,
        and each holds at least a sixteenth of one, so that there are at most 128.
        """
        max_bytes = max_bytes or OPEN_BODIES * largest_bytes
        counted = self._open_body(identity, peer, max_bytes)
        if counted and (addresses := self._addresses(identity)) is not None:
            counted += addresses._open_body(_ADDRESS, address_group(peer), max_bytes)
        return OpenBody(*counted, least_bytes=largest_bytes // 16)

    def _open_body(self, identity: Identity, peer: str, max_bytes: int) -> list[tuple[_Client, str, int]]:
        """Return the counters of the client, with its name and its limit; none if its traffic is not limited."""
        client = self._client(identity, peer)
        return [] if client is None else [(client, _name(identity, peer), max_bytes * self._bodies_factor)]

    def _addresses(self, identity: Identity) -> Rates | None:
        """Return the counts of addresses if `identity` is a visitor, whose address is counted, too."""
        return self.of_addresses if self.of_addresses is not None and is_visitor(identity.client_id) else None

    def forget_new(self) -> None:
        """Look at the next `FORGET_AT_ONCE` clients, and forget those of which nothing is counted any more."""
        now_s = self._now_s()
        for name in list(islice(self._clients, FORGET_AT_ONCE)):
            if self._clients[name].is_new(self.limits, now_s):
                del self._clients[name]
            else:
                self._clients.move_to_end(name)  # so that each client is looked at in turn
        if self.of_addresses is not None:
            self.of_addresses.forget_new()

    def _client(self, identity: Identity, peer: str) -> _Client | None:
        """Return the counters of the client behind `identity`; None if its traffic is not limited."""
        if identity.is_trusted:
            return None
        # An id contains no slash, so no client can choose the key of an address as its name.
        name = identity.client_id if identity.client_id is not None else f"/{peer}"
        client = self._clients.get(name)
        if client is None:
            self._make_room()
            client = self._clients[name] = _Client(self.limits, self._now_s())
        else:
            self._clients.move_to_end(name)
        return client

    def _make_room(self) -> None:
        """Forget the client that was idle longest and has neither slots nor open bodies."""
        for _ in range(len(self._clients) - MAX_CLIENTS + 1):
            name, client = self._clients.popitem(last=False)
            if client.connections or client.body_bytes:
                self._clients[name] = client


_ADDRESS = Identity(grants={})  # a client without an id, which counts by its address


def _cost(size: int) -> float:
    """Return how many requests traffic of `size` bytes counts for."""
    return size / REQUEST_COST_BYTES if abs(size) > FREE_BYTES else 0.0


def _name(identity: Identity, peer: str) -> str:
    """Return the name of a client for error messages: its id or its address."""
    return shown(identity.client_id if identity.client_id is not None else peer)


logger = logging.getLogger("tenuto.hub")

MINUTE_S, DAY_S = 60.0, 86_400.0
MAX_COUNTED = 100_000  # limit of the visitors and addresses that are counted at the same time
LOG_S = 3600.0  # least time between two lines of the log about addresses at their limit


class QuestionLimits(Struct, frozen=True, kw_only=True):
    """How many questions a visitor may ask, and how many times as many all visitors of one address together."""

    per_minute: int = 10
    per_day: int = 100
    address_factor: int = 10

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                setting = name if name == "address_factor" else f"questions_{name}"
                raise LocalError(f"visitors({setting}=...) must be a whole number from 1 on, got {shown(value)}")


class _Allowance:
    """The buckets of one visitor or address."""

    __slots__ = ("buckets", "settings")

    def __init__(self, limits: QuestionLimits, factor: int, now_s: float) -> None:
        self.settings = [  # the size of each bucket, the time in which it fills up, and the name of the time
            (limits.per_minute * factor, MINUTE_S, "minute"),
            (limits.per_day * factor, DAY_S, "day"),
        ]
        self.buckets = [Bucket(size, now_s) for size, _, _ in self.settings]

    def refusal(self, who: str, now_s: float) -> TooMany | None:
        """Return the error for a further question; None if one is possible."""
        for bucket, (size, time_s, period) in zip(self.buckets, self.settings, strict=True):
            level = bucket.level(size, size / time_s, now_s)
            if level < 1:
                wait_s = max(1, ceil((1 - level) * time_s / size))
                return TooMany(
                    f"{who} sent {size} questions within a {period}, which is the limit. Wait {wait_s} s, or raise "
                    f"visitors(questions_per_{period}=...)",
                    limit=size,
                    retry_after_s=wait_s,
                )
        return None

    def take(self, questions: int) -> None:
        """Take tokens for `questions`; a negative number gives them back."""
        for bucket in self.buckets:
            bucket.take(questions)

    def is_full(self, now_s: float) -> bool:
        """Return whether the buckets are as those of a new visitor."""
        return all(
            bucket.level(size, size / time_s, now_s) >= size
            for bucket, (size, time_s, _) in zip(self.buckets, self.settings, strict=True)
        )


class Asked:
    """A question that was counted."""

    def __init__(self, allowances: list[_Allowance]) -> None:
        self._allowances = allowances

    @property
    def is_counted(self) -> bool:
        """Return whether the question still counts."""
        return bool(self._allowances)

    def give_back(self) -> None:
        """Count the question no more, because it was not stored, or was stored before."""
        for allowance in self._allowances:
            allowance.take(-1)
        self._allowances = []

    def settle(self, result: Result | TenutoError, *, may_be_stored: bool) -> None:
        """Give the question back if `result` shows that it was not stored, and it is not unclear either."""
        if not may_be_stored and not (isinstance(result, Result) and result.created):
            self.give_back()


class Route:
    """The route of the app in which code runs: whose request it serves, from where, and its last question."""

    __slots__ = ("asked", "channel", "peer", "refusal", "visitor")

    def __init__(self, visitor: str | None = None, peer: str | None = None, refusal: TenutoError | None = None) -> None:
        self.visitor = visitor  # None: not known
        self.peer = peer  # address of the request
        self.refusal = refusal  # why its request may store no question of the visitor
        self.channel = ""  # that of the question `asked`
        self.asked: Asked | None = None  # a question that the app has stored, and whose answer has not begun

    def answer(self, channel: str) -> bool:
        """Return whether an answer in `channel` is that to a question which counts already; such an answer is one."""
        asked, self.asked = self.asked, None
        return asked is not None and asked.is_counted and self.channel == channel


_route: ContextVar[Route | None] = ContextVar("tenuto_route", default=None)


def enter_route(route: Route) -> None:
    """Note that the code which runs now, and its tasks, are those of `route`."""
    _route.set(route)


def current_route() -> Route:
    """Return the route in which the code runs; a new one if none is known."""
    route = _route.get()
    if route is None:
        route = Route()
        _route.set(route)
    return route


class Questions:
    """Counts the questions of visitors. A call that raises leaves the counts as they are."""

    def __init__(self, limits: QuestionLimits, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now_s = now_s
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._logged_s = -inf

    def __len__(self) -> int:
        return len(self._allowances)

    def ask(self, visitor: str, peer: str | None) -> Asked:
        """Count a question of `visitor` from the address `peer`, if that is known. Raises TooMany."""
        now_s = self._now_s()
        allowances = {visitor: self._allowance(visitor, 1, now_s)}
        refusal = allowances[visitor].refusal(f"visitor {shown(visitor)} has", now_s)
        if peer is not None and refusal is None:
            group = address_group(peer)
            address = f"/{group}"  # an id contains no slash
            allowances[address] = self._allowance(address, self._limits.address_factor, now_s)
            refusal = allowances[address].refusal(f"all visitors of the address {shown(group)} have", now_s)
            if refusal is not None:
                self._log(refusal, now_s)
        if refusal is not None:
            raise refusal
        for name, allowance in allowances.items():
            allowance.take(1)
            self._allowances[name] = allowance
            self._allowances.move_to_end(name)
        while len(self._allowances) > MAX_COUNTED:
            self._allowances.popitem(last=False)
        return Asked(list(allowances.values()))

    def counted(self, channel: str, request: Request, caller: Caller) -> tuple[Caller, Asked | None]:
        """Count `request` if it is a question of a visitor, and return the caller with whom to submit it.

        The caller has a refusal beyond the limit, and in a route for a page that may store no question. A repeat of a
        stored question still gets its result.
        """
        visitor = visitor_of(channel, caller) if is_question(request, caller) else None
        if visitor is None:
            return caller, None
        route, peer = None, caller.peer
        if caller.is_app:
            route = current_route()
            is_own = route.visitor == visitor  # tasks of the app may run in the context of another request
            if is_own and route.refusal is not None:
                return replace(caller, refusal=route.refusal), None
            peer = route.peer if is_own else None
        try:
            asked = self.ask(visitor, peer)
        except TooMany as error:
            return replace(caller, refusal=error), None
        if route is not None:
            route.channel, route.asked = channel, asked
        return caller, asked

    def forget_full(self) -> None:
        """Look at the next `FORGET_AT_ONCE` visitors and addresses, and forget those whose buckets are full again."""
        now_s = self._now_s()
        for name in list(islice(self._allowances, FORGET_AT_ONCE)):
            if self._allowances[name].is_full(now_s):
                del self._allowances[name]
            else:
                self._allowances.move_to_end(name)  # so that each is looked at in turn

    def _allowance(self, name: str, factor: int, now_s: float) -> _Allowance:
        """Return the allowance of a visitor or address; a new one is kept only with its first question."""
        return self._allowances.get(name) or _Allowance(self._limits, factor, now_s)

    def _log(self, refusal: TooMany, now_s: float) -> None:
        if now_s - self._logged_s >= LOG_S:
            self._logged_s = now_s
            logger.warning(
                "%s. If all visitors seem to have one address, the server does not know the addresses behind its proxy "
                "(docs/deployment.md)",
                refusal,
            )
