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
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from math import ceil, inf
from typing import Self, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import LocalError, TenutoError, TooMany, shown
from tenuto.core.limits import KIB, MIB
from tenuto.core.requests import Caller, Request
from tenuto.core.visitor_ids import is_question, is_visitor, visitor_of
from tenuto.hub.access.hosts import address_group
from tenuto.hub.access.identity import Identity
from tenuto.hub.pending import Result

T = TypeVar("T")

MAX_CLIENTS = 100_000  # limit of clients that are counted at the same time; each needs about 600 bytes
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
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


class Bucket(Struct, eq=False):
    """A token bucket that fills up in `fill_s`. Below zero it is in debt, and refills from there."""

    size: float  # number of tokens at most
    fill_s: float
    _at_s: float  # time of the last call of `refilled`
    level: float = inf  # the first call of `refilled` makes it full

    def refilled(self, now_s: float) -> float:
        """Refill the bucket for the time since the last call and return how many tokens it holds."""
        self.level = min(self.size, self.level + max(0.0, now_s - self._at_s) * self.size / self.fill_s)
        self._at_s = now_s
        return self.level

    def wait_s(self) -> int:
        """Return in how many whole seconds the bucket will hold a token again. Call `refilled` first."""
        return max(1, ceil(min(DAY_S, (1 - self.level) * self.fill_s / self.size if self.size else DAY_S)))


class _Client(Struct, eq=False):
    """The counters of one client, or of all visitors of one address, which have `factor` times the limits of one."""

    name: str  # for error messages
    factor: int
    max_connections: int
    requests: Bucket
    bytes: Bucket
    signals: Bucket
    channels: Bucket
    connections: int = 0  # number of open slots
    body_bytes: int = 0  # size of the request bodies that are still open

    def is_new(self, now_s: float) -> bool:
        """Return whether nothing is counted: the counters are as those of a client that never came."""
        buckets = (self.requests, self.bytes, self.signals, self.channels)
        is_idle = not (self.connections or self.body_bytes)
        return is_idle and all(one.refilled(now_s) >= one.size for one in buckets)


class ConnectionSlot(Struct, eq=False):
    """One of the connections that a client may hold; `leave` gives it back.

    Each of `clients` holds it: the client, and its address if that is counted, too.
    """

    clients: Sequence[_Client] = ()

    def leave(self) -> None:
        """Give the slot back. A second call has no effect."""
        for client in self.clients:
            client.connections -= 1
        self.clients = ()


class OpenBody(Struct, eq=False):
    """A request body that has not ended: a context manager that counts its bytes for its client, and its address.

    A step that raises TooMany leaves the counts as they are. Without clients nothing is counted at all.
    """

    clients: Sequence[_Client] = ()
    max_bytes: int = 0  # limit of all open bodies of a client
    held_bytes: int = 0  # bytes that count, at least those that count for any body
    size: int = 0  # bytes that have arrived, if they are counted

    def __enter__(self) -> Self:
        """Count the body as open. Raises TooMany."""
        self._count(self.held_bytes)
        return self

    def __exit__(self, *raised: object) -> None:
        for client in self.clients:
            client.body_bytes -= self.held_bytes

    def grow(self, size: int) -> None:
        """Count `size` more bytes, which have arrived. Raises TooMany."""
        if not self.clients:
            return
        self.size += size
        if self.size > self.held_bytes:
            self._count(self.size - self.held_bytes)
            self.held_bytes = self.size

    def _count(self, size: int) -> None:
        """Count `size` more bytes for each of the clients, or raise TooMany and count none."""
        for client in self.clients:
            max_bytes = client.factor * self.max_bytes
            if client.body_bytes + size > max_bytes:
                raise TooMany(
                    f"the unfinished request bodies of client {client.name} have {client.body_bytes} bytes together, "
                    f"the limit is {max_bytes}; send fewer at a time",
                    limit=max_bytes,
                )
        for client in self.clients:
            client.body_bytes += size


UNCOUNTED = OpenBody()  # the open body of a client whose traffic is not limited


@dataclass(eq=False)
class Rates:
    """Counts the requests, bytes, open bodies, signals, connections and new channels of clients.

    A call that raises TooMany leaves the counts as they are. A visitor gets a new id for free, so each count of a
    visitor is one of its address, too.
    """

    limits: ClientLimits = ClientLimits()
    _: KW_ONLY
    address_factor: int = 0  # limits of all visitors of an address, as a multiple of one's; 0: no client is one
    now_s: Callable[[], float] = time.monotonic
    # clients and addresses in order of their last activity, the latest last
    _clients: OrderedDict[str, _Client] = field(default_factory=OrderedDict, init=False)

    def request(self, identity: Identity, peer: str = "", *, size: int = 0) -> None:
        """Count a request, or a frame of a socket, of `size` bytes.

        `peer` is the address, which identifies a client without an id. Raises TooMany for a client in debt, whatever
        the size: earlier traffic decides, so that even the largest request is possible.
        """
        self._request(self._counted(identity, peer), size)

    def new_visitor(self, peer: str) -> None:
        """Count the request of a peer that becomes a visitor by it, for its address alone. Raises TooMany."""
        self._request([self._address(peer)], 0)

    def _request(self, clients: Sequence[_Client], size: int) -> None:
        """Count one request of `size` bytes for each of `clients`; raises TooMany if one of them is in debt."""
        now_s = self.now_s()
        for client in clients:
            requests, traffic = client.requests, client.bytes
            if requests.refilled(now_s) < 1:
                wait_s, limit = requests.wait_s(), int(requests.size / 2)  # it fills in 2 s
                raise TooMany(
                    f"client {client.name} has used {requests.size - requests.level:.0f} of {requests.size} requests "
                    f"at once, which refill by {limit} a second; {REQUEST_COST_BYTES // KIB} KiB of traffic count as "
                    f"one. Wait {wait_s} s, or raise ClientLimits(client_requests=...)",
                    limit=limit,
                    retry_after_s=wait_s,
                )
            if traffic.refilled(now_s) < 1:
                wait_s = traffic.wait_s()
                raise TooMany(
                    f"client {client.name} has caused {traffic.size - traffic.level:.0f} bytes of traffic, the limit "
                    f"is {traffic.size} in an hour. Wait {wait_s} s, or raise ClientLimits(client_bytes=...)",
                    limit=int(traffic.size),
                    retry_after_s=wait_s,
                )
        for client in clients:
            client.requests.level -= 1 + _cost(size)
            client.bytes.level -= size

    def charge(self, identity: Identity, peer: str = "", *, size: int) -> None:
        """Count `size` bytes that a request has caused; a negative number gives them back.

        Never raises, since the traffic has already happened: the next requests are refused until it is made up for.
        """
        now_s = self.now_s()
        for client in self._counted(identity, peer):
            client.requests.level = client.requests.refilled(now_s) - _cost(size)
            client.bytes.level = client.bytes.refilled(now_s) - size

    def signal(self, identity: Identity, peer: str = "") -> None:
        """Count a signal. Raises TooMany."""
        clients, now_s = self._counted(identity, peer), self.now_s()
        for client in clients:
            if client.signals.refilled(now_s) < 1:
                limit = int(client.signals.size)
                raise TooMany(f"client {client.name} has sent {limit} signals in a second; send fewer", limit=limit)
        for client in clients:
            client.signals.level -= 1

    def may_begin(self, identity: Identity, peer: str = "") -> bool:
        """Return whether the client may create one more channel, and do not count it: its request may fail."""
        now_s = self.now_s()
        return all(client.channels.refilled(now_s) >= 1 for client in self._counted(identity, peer))

    def began(self, identity: Identity, peer: str = "") -> None:
        """Count a new channel whose first entry is stored. Never raises, since the entry is already stored."""
        for client in self._counted(identity, peer):
            client.channels.level = client.channels.refilled(self.now_s()) - 1

    def connect(self, identity: Identity, peer: str = "") -> ConnectionSlot:
        """Return a slot for a stream, poll or socket; the caller must call `leave` at its end."""
        clients = self._counted(identity, peer)
        for client in clients:
            limit = client.max_connections
            if client.connections >= limit:
                detail = f"client {client.name} has {limit} connections, which is the limit; close one of them"
                raise TooMany(detail, limit=limit)
        for client in clients:
            client.connections += 1
        return ConnectionSlot(clients)

    def body(self, identity: Identity, peer: str = "", *, largest_bytes: int, max_bytes: int | None = None) -> OpenBody:
        """Return the count of a request body of at most `largest_bytes`.

        The bodies of a client that have not ended hold at most `max_bytes`, by default as much as eight of the largest,
        and each holds at least a sixteenth of one, so that there are at most 128.
        """
        return OpenBody(self._counted(identity, peer), max_bytes or OPEN_BODIES * largest_bytes, largest_bytes // 16)

    def forget_new(self) -> None:
        """Forget the next clients of which nothing is counted any more."""
        now_s = self.now_s()
        _forget_next(self._clients, lambda client: client.is_new(now_s))

    def _counted(self, identity: Identity, peer: str) -> list[_Client]:
        """Return the counters of the client, and of its address if it is a visitor; none if it is not limited."""
        if identity.is_trusted:
            return []
        name = identity.client_id
        # An id contains no slash, so no client can choose the key of an address as its name.
        clients = [self._client(f"/{peer}" if name is None else name, peer if name is None else name)]
        if self.address_factor and is_visitor(name):
            clients.append(self._address(peer))
        return clients

    def _address(self, peer: str) -> _Client:
        """Return the counters of all visitors of the address."""
        group = address_group(peer)
        return self._client(f"//{group}", group, self.address_factor, ADDRESS_CONNECTIONS)

    def _client(self, key: str, name: str, factor: int = 1, connections_factor: int = 1) -> _Client:
        """Return the counters at `key`, which the first call makes, and note that their client is active."""
        client = self._clients.get(key)
        if client is None:
            self._make_room()
            limits, now_s = self.limits, self.now_s()
            client = self._clients[key] = _Client(
                shown(name),
                factor,
                max_connections=connections_factor * limits.client_connections,
                requests=Bucket(2 * factor * limits.client_requests, 2.0, now_s),
                bytes=Bucket(factor * limits.client_bytes, HOUR_S, now_s),
                signals=Bucket(factor * limits.client_signals, 1.0, now_s),
                channels=Bucket(factor * limits.client_channels, HOUR_S, now_s),
            )
        else:
            self._clients.move_to_end(key)
        return client

    def _make_room(self) -> None:
        """Forget the client that was idle longest and has neither slots nor open bodies."""
        for _ in range(len(self._clients) - MAX_CLIENTS + 1):
            key, client = self._clients.popitem(last=False)
            if client.connections or client.body_bytes:
                self._clients[key] = client  # it stays, as the last one


def _forget_next(counted: OrderedDict[str, T], is_new: Callable[[T], bool]) -> None:
    """Look at the next `FORGET_AT_ONCE` of `counted`, each in turn, and forget those that are as new."""
    for key in list(islice(counted, FORGET_AT_ONCE)):
        if is_new(counted[key]):
            del counted[key]
        else:
            counted.move_to_end(key)


def _cost(size: int) -> float:
    """Return how many requests traffic of `size` bytes counts for."""
    return size / REQUEST_COST_BYTES if abs(size) > FREE_BYTES else 0.0


logger = logging.getLogger("tenuto.hub")

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


class Asked(Struct, eq=False):
    """A question that counts in `buckets`, which are empty once it was given back."""

    buckets: Sequence[Bucket]

    def give_back(self) -> None:
        """Count the question no more, because it was not stored, or was stored before."""
        for bucket in self.buckets:
            bucket.level += 1
        self.buckets = ()

    def settle(self, result: Result | TenutoError, *, may_be_stored: bool) -> None:
        """Give the question back, unless `result` shows that it is new in the store, or it `may_be_stored`."""
        if not may_be_stored and not (isinstance(result, Result) and result.created):
            self.give_back()


class Route(Struct, eq=False):
    """The route of the app in which code runs: whose request it serves, from where, and its last question."""

    peer: str | None = None  # address of the request
    refusals: dict[str | None, TenutoError | None] = {}  # by visitor: why it may store no question; None if it may
    channel: str = ""  # that of the question `asked`
    asked: Asked | None = None  # a question that the app has stored, and whose answer has not begun

    def answer(self, channel: str) -> bool:
        """Return whether an answer in `channel` is the first one to `asked`, which counts already. No later one is."""
        asked, self.asked = self.asked, None
        return asked is not None and bool(asked.buckets) and self.channel == channel


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


@dataclass(eq=False)
class Questions:
    """Counts the questions of visitors. A call that raises leaves the counts as they are."""

    limits: QuestionLimits
    _: KW_ONLY
    now_s: Callable[[], float] = time.monotonic
    # the buckets for a minute and for a day of each visitor and address
    _buckets: OrderedDict[str, tuple[Bucket, Bucket]] = field(default_factory=OrderedDict, init=False)
    _logged_s: float = field(default=-inf, init=False)  # when `_log` last wrote a line

    def ask(self, visitor: str, peer: str | None) -> Asked:
        """Count a question of `visitor` from the address `peer`, if that is known. Raises TooMany."""
        now_s, limits = self.now_s(), self.limits
        askers = [(visitor, f"visitor {shown(visitor)} has", 1)]
        if peer is not None:
            group = address_group(peer)
            askers.append((f"/{group}", f"all visitors of the address {shown(group)} have", limits.address_factor))
        counted = {}
        for name, who, factor in askers:  # an id contains no slash, so none is the name of an address
            counted[name] = self._buckets.get(name) or (
                Bucket(limits.per_minute * factor, MINUTE_S, now_s),
                Bucket(limits.per_day * factor, DAY_S, now_s),
            )
            for bucket, period in zip(counted[name], ("minute", "day"), strict=True):
                if bucket.refilled(now_s) < 1:
                    wait_s = bucket.wait_s()
                    setting = f"questions_per_{period}" if name == visitor else "address_factor"
                    refusal = TooMany(
                        f"{who} sent {bucket.size} questions within a {period}, which is the limit. Wait {wait_s} s, "
                        f"or raise visitors({setting}=...)",
                        limit=int(bucket.size),
                        retry_after_s=wait_s,
                    )
                    if name != visitor:
                        self._log(refusal, now_s)
                    raise refusal
        for name, pair in counted.items():
            for bucket in pair:
                bucket.level -= 1
            self._buckets[name] = pair
            self._buckets.move_to_end(name)
        while len(self._buckets) > MAX_COUNTED:
            self._buckets.popitem(last=False)
        return Asked([bucket for pair in counted.values() for bucket in pair])

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
            if (refusal := route.refusals.get(visitor)) is not None:
                return replace(caller, refusal=refusal), None
            peer = route.peer if visitor in route.refusals else None  # a task may run in another request's context
        try:
            asked = self.ask(visitor, peer)
        except TooMany as error:
            return replace(caller, refusal=error), None
        if route is not None:  # the answer that the route begins to it is no second question (`Route.answer`)
            route.channel, route.asked = channel, asked
        return caller, asked

    def forget_full(self) -> None:
        """Forget the next visitors and addresses whose buckets are full again."""
        now_s = self.now_s()
        _forget_next(self._buckets, lambda pair: all(bucket.refilled(now_s) >= bucket.size for bucket in pair))

    def _log(self, refusal: TooMany, now_s: float) -> None:
        """Log that an address is at its limit, once in `LOG_S`: a wrong setting of a proxy looks like that."""
        if now_s - self._logged_s >= LOG_S:
            self._logged_s = now_s
            logger.warning(
                "%s. If all visitors seem to have one address, the server does not know the addresses behind its proxy "
                "(docs/deployment.md)",
                refusal,
            )
