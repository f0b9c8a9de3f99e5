"""The book of open connections: it limits the connections whose peers keep the server waiting, and their time.

Layer: server, below `bounded_http` and `bounded_websocket`.

A connection is *waiting* while its peer has to act before any work is done for it: until the head of its first request
is complete, until a socket is authenticated, between two requests of a client that no verifier has identified, and
while a peer does not read its response. It is also waiting while the verifier runs for an unknown peer. Only waiting
connections are bounded, first by address, then in total. If there is no room, the book ends the oldest waiting
connection, so that a new one gets its chance: its peer may be known.

A connection is *idle* while a known peer has to act: between two of its requests, and while its body is to come. Idle
connections are not bounded, and the book ends the oldest one only if no descriptor is left and no connection waits.

The protocols of those modules call the book, and every method runs on the server's event loop. The constants may be
changed freely; `docs/security.md` and `docs/python.md` name them. `TrustedProxies`, `ParseQueue`,
`raise_descriptor_limit` and `give_memory_back` are here because the same server uses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Protocol

from tenuto.core.errors import LocalError
from tenuto.hub.access.hosts import address_group

logger = logging.getLogger("tenuto.serving")

# Preallocated: the memory of many small objects would not be given back, because a few that live on keep whole arenas
# of Python's allocator (measured).
MAX_WAITING = 144
# Limit per address. A browser opens at most six connections for a page, and hundreds of people may share the address of
# an office.
MAX_WAITING_OF_ADDRESS = 96
# Limit of waiting connections for which the server holds more than `LARGE_BYTES`, such as a large head or response.
MAX_LARGE = 50
LARGE_BYTES = 8 * 1024
OWN_DESCRIPTORS = 64  # descriptors for the store, the listening socket, the event loop and the application
MAX_DESCRIPTORS = 1_048_576  # a higher soft limit has no use, and some systems allow a billion
# After a restart a thousand viewers reconnect at once, and their requests lie in the kernel until the loop has read
# them. Therefore a connection may exceed the limits for this time, up to a number of connections that is always
# enforced.
CHANCE_S = 2.0
MAX_BURST = 1_200
# Time for the verifier of an unknown peer. It is above the time limit of `transports.access`, which ends the verifier.
VERIFY_S = 20.0
SWEEP_S = 1.0
NOTICE_S = 10.0  # least time between two log lines about connections that were ended
# After this many waiting connections have ended, free memory is returned to the system, at most once in `TRIM_S`
# seconds.
TRIM_AFTER = 200
TRIM_S = 5.0
TRIM_PAUSE = 50  # pause after a return of memory, as a multiple of its duration, which grows with the objects in memory
MAX_COLLECTED = 1_000  # with more open connections, a garbage collection would hold the event loop for too long
READ_BYTES = 16 * 1024  # limit of bytes read from one connection at once, after which the loop serves the others
PARSE_S = 0.001  # time to parse large input, in one iteration of the loop
MOST_AT_ONCE = 4  # connections that go on in one iteration: to begin a request takes longer than to parse it


def _loop_s() -> float:
    return asyncio.get_running_loop().time()


class ConnectionOwner(Protocol):
    """The protocol object of a connection."""

    transport: asyncio.Transport

    def expire(self) -> None:
        """End the connection, or give its peer more time, because the deadline of a waiting connection has passed."""


@dataclass(slots=True, eq=False)
class Connection:
    """One open connection. It belongs to the book until `close`, which its owner calls when the transport is gone."""

    _book: Connections
    address: str
    owner: ConnectionOwner | None  # None after `close`, because the two objects refer to each other
    is_from_proxy: bool
    is_waiting: bool = False
    is_idle: bool = False
    may_burst: bool = True  # that of the last `wait`
    is_evicted: bool = False  # True: the book has ended it
    since_s: float = field(default_factory=_loop_s)  # when the peer's `CHANCE_S` begins
    deadline_s: float = 0.0  # when its owner's `expire` is called, if it still waits
    verification: asyncio.Timeout | None = None  # time limit of the verifier that runs for an unknown peer

    def wait(self, timeout_s: float, *, may_burst: bool) -> None:
        """Count the connection as waiting, for at most `timeout_s` seconds. Call it again for a new deadline.

        With `may_burst` it may exceed the limits for `CHANCE_S`, as one of many that reconnect at once. Without it, it
        counts at once, from the time when it was opened: otherwise each completed request would give it that time
        again.
        """
        now_s = _loop_s()
        self.deadline_s = now_s + timeout_s
        if self.is_waiting and self.may_burst == may_burst:
            return
        self.proceed()
        self.may_burst = may_burst
        if may_burst:
            self.since_s = now_s
        self._book.make_room(self, now_s)
        self.is_waiting = True
        self._book.waiting += 1
        self._book.by_address.setdefault(self.address, {})[self] = None
        self._book.sweep_later()

    def count_as_large(self) -> None:
        """Note that the server holds more than `LARGE_BYTES` for this waiting connection."""
        large = self._book.large
        if self.is_waiting and self not in large:
            if len(large) >= MAX_LARGE:
                reason = f"{MAX_LARGE} waiting connections held more than {LARGE_BYTES} bytes"
                self._book.evict(next(iter(large)), reason)
            large[self] = None

    def wait_for_verifier(self) -> None:
        """Count the connection as waiting while `verification` runs."""
        if not self.is_waiting:  # else its peer has to act, too, and has less time for that
            # in its first request the peer may belong to a burst, as for the head
            self.wait(VERIFY_S, may_burst=self.may_burst)
        verifying, most = self._book.verifying, self._book.max_waiting
        if self not in verifying:
            # No more in a burst: a request in progress takes some 25 KiB in small objects (measured).
            if len(verifying) >= most:
                self._book.evict(next(iter(verifying)), f"the verifier ran for {most} unknown peers")
            verifying[self] = None

    def count_as_idle(self) -> None:
        """Count the connection as idle: its peer is known, and has to act."""
        self.proceed()
        self.is_idle = True
        self._book.idle[self] = None

    def proceed(self) -> None:
        """Stop counting the connection as waiting or idle."""
        book = self._book
        if self.is_idle:
            self.is_idle = False
            del book.idle[self]
        elif self.is_waiting:
            self.is_waiting = False
            book.waiting -= 1
            of_address = book.by_address[self.address]
            del of_address[self]
            if not of_address:
                del book.by_address[self.address]
            book.large.pop(self, None)
            book.verifying.pop(self, None)

    def move(self, address: str) -> None:
        """Count the connection for `address` from now on, because a trusted proxy has named its client."""
        self.proceed()
        self.address = address_group(address)
        self.since_s = _loop_s()

    def close(self) -> None:
        """Remove the connection from the book, because its transport is closed.

        A verifier that runs for the peer ends, as if its time were over.
        """
        # An evicted connection no longer counts as waiting, but nearly always waited until then.
        self._book.closed += self.is_waiting or self.is_evicted
        self.proceed()
        self.owner = None
        self._book.open -= 1
        self._book.sweep_later()
        limit, self.verification = self.verification, None
        if limit is not None and not limit.expired():
            limit.reschedule(_loop_s())


class Connections:
    """All connections of one server. `input_view` is the buffer into which all of them read, one at a time."""

    def __init__(self, *, max_open: int, proxies: TrustedProxies | None = None) -> None:
        self.max_open = max_open
        # At most a quarter of the descriptors: the others are reserved for known clients.
        self.max_waiting = max(1, min(MAX_WAITING, max_open // 4))
        self.max_waiting_of_address = max(1, min(MAX_WAITING_OF_ADDRESS, self.max_waiting))
        self.proxies = proxies or TrustedProxies(())
        self.input_view = memoryview(bytearray(READ_BYTES))
        self.parsing = ParseQueue()
        self.open = self.waiting = 0  # numbers of connections; below are the connections, the oldest first
        # waiting ones by address, and those of them that are large or wait for a verifier; idle ones
        self.by_address: dict[str, dict[Connection, None]] = {}
        self.large: dict[Connection, None] = {}
        self.verifying: dict[Connection, None] = {}
        self.idle: dict[Connection, None] = {}
        self.closed = 0  # connections closed while they waited, since memory was given back
        self._timer: asyncio.TimerHandle | None = None
        self._ended = 0  # connections ended since the last log line
        self._reason = ""  # why the last of them ended
        self._notice_due_s = 0.0  # earliest time of the next log line
        self._is_after_wave = False  # True: memory was last given back after `TRIM_AFTER` ends or more
        self._trim_due_s = 0.0  # earliest time to give memory back again
        _malloc_trim()  # loaded now, because objects made during a wave would keep memory of that wave

    def opened(self, peer: str, owner: ConnectionOwner) -> Connection | None:
        """Return the entry for a new connection of `peer`; None if no descriptor is left for it."""
        if self.open >= self.max_open:
            if self.waiting:
                self._evict_oldest("no descriptor was left")
            elif self.idle:
                self.evict(next(iter(self.idle)), "no descriptor was left, and a known client did not use this one")
            else:
                self.note("a known client uses each descriptor")
                return None
        self.open += 1
        return Connection(self, address_group(peer), owner, self.proxies.includes(peer))

    def make_room(self, one: Connection, now_s: float) -> None:
        """End a connection if there is no room for `one`, which begins to wait."""
        of_address = self.by_address.get(one.address, {})
        oldest = next(iter(of_address), None)
        had_chance = oldest is not None and oldest.since_s <= now_s - CHANCE_S
        is_burst_over = not one.may_burst or self.waiting >= min(MAX_BURST, self.max_open // 2)
        if oldest is not None and len(of_address) >= self.max_waiting_of_address and (had_chance or is_burst_over):
            self.evict(oldest, f"{one.address} kept {len(of_address)} connections waiting")
        elif self.waiting >= self.max_waiting:
            self._evict_oldest(f"{self.waiting} connections were waiting", is_forced=is_burst_over)

    def evict(self, one: Connection, reason: str) -> None:
        """End a connection at once because of `reason`, such as to make room for another one."""
        one.proceed()
        one.is_evicted = True
        self.note(reason)
        if one.owner is not None:
            one.owner.transport.abort()

    def note(self, reason: str) -> None:
        """Count a connection that ends because of `reason`, for the next log line."""
        self._ended += 1
        self._reason = reason
        self.sweep_later()

    def sweep_later(self) -> None:
        """Let the book look after its connections once a second, as long as it has something to do."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _evict_oldest(self, reason: str, *, is_forced: bool = True) -> bool:
        """End the oldest waiting connection of the address that has most of them. Return whether it found one.

        Many clients of one address may connect in one moment. Therefore only addresses count whose oldest connection is
        older than `CHANCE_S`. Without such an address, the oldest connection of all is ended if `is_forced`. With a
        thousand addresses the search takes 50 µs, less than accepting a connection.
        """
        before_s = _loop_s() - CHANCE_S
        oldest = [(next(iter(group)), len(group)) for group in self.by_address.values()]
        had_chance = [(count, one) for one, count in oldest if one.since_s <= before_s]
        if had_chance:
            victim = max(had_chance, key=lambda found: found[0])[1]
        elif not is_forced:
            return False
        else:
            victim = min((one for one, _ in oldest), key=lambda one: one.since_s)
        self.evict(victim, reason)
        return True

    def _end_burst(self, before_s: float) -> None:
        """End the connections beyond the limits whose chance began at `before_s` or earlier, the oldest first."""
        for address, group in list(self.by_address.items()):
            for one in list(group)[: max(0, len(group) - self.max_waiting_of_address)]:
                if one.since_s <= before_s:
                    self.evict(one, f"{address} kept more than {self.max_waiting_of_address} connections waiting")
        reason = f"more than {self.max_waiting} connections were waiting"
        while self.waiting > self.max_waiting and self._evict_oldest(reason, is_forced=False):
            pass

    def _sweep(self) -> None:
        """End the connections whose deadline has passed, log a line about ended connections, and give memory back."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SWEEP_S, self._sweep)  # now, so that no error in this call ends the sweeps
        now_s = loop.time()
        overdue = [one for group in self.by_address.values() for one in group if one.deadline_s <= now_s]
        for one in overdue:
            if one.owner is not None:
                one.owner.expire()
        self._end_burst(now_s - CHANCE_S)
        if self._ended and now_s >= self._notice_due_s:
            logger.warning("ended %d connections; the last one because %s", self._ended, self._reason)
            self._ended, self._notice_due_s = 0, now_s + NOTICE_S
        # Also after the end of a wave of connections, however few the last ones are.
        is_trim_due = self.closed >= (1 if self._is_after_wave else TRIM_AFTER)
        if is_trim_due and now_s >= self._trim_due_s:
            self._is_after_wave = self.closed >= TRIM_AFTER
            took_s = give_memory_back(collects=self.open <= MAX_COLLECTED)
            self.closed, self._trim_due_s, is_trim_due = 0, now_s + max(TRIM_S, TRIM_PAUSE * took_s), False
        if not (self.waiting or self._ended or is_trim_due):
            self._timer.cancel()
            self._timer = None


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` header is trusted to name the client."""

    def __init__(self, addresses: Iterable[str]) -> None:
        """Trust `addresses`, each an address or a network. Raises LocalError for any other text."""
        self._networks = [_network(text) for text in addresses]
        self.includes: Callable[[str], bool] = lru_cache(maxsize=1024)(self._includes)

    def forward(self, scope: Any) -> str:
        """Put what a trusted proxy names, client and scheme, into the scope of its request. Return the client.

        The caller has looked whether the peer is trusted.
        """
        proxy = scope["client"][0] if scope["client"] else ""
        client = self.client_of(proxy, scope["headers"])
        if client != proxy:
            scope["client"] = (client, 0)  # its port is unknown, or of no use
        scope["scheme"] = self.scheme_of(scope["headers"], scope["scheme"])
        return client

    def client_of(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address of the client behind the trusted proxy `peer`: the last one that no trusted proxy has.

        A client can write any header, but only in front of the addresses that the proxies append.
        """
        named = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
        client = peer
        for hop in reversed(named.split(",")):
            host = _host_of(hop.strip())
            if host is None:
                break
            client = host
            if not self.includes(host):
                break
        return client

    def scheme_of(self, headers: Iterable[tuple[bytes, bytes]], scheme: str) -> str:
        """Return the scheme of a request from a trusted proxy: the last that it names, else `scheme`."""
        named = [value for name, value in headers if name == b"x-forwarded-proto"]
        last = named[-1].decode("latin-1").rpartition(",")[2].strip().lower() if named else ""
        if not last:
            return scheme
        plain = "ws" if scheme in ("ws", "wss") else "http"
        return f"{plain}s" if last in ("https", "wss") else plain

    def _includes(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        plain = getattr(ip, "ipv4_mapped", None) or ip
        return any(plain in network for network in self._networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise LocalError(
            f"--trust-proxy must be an address or a network such as 127.0.0.1 or 10.0.0.0/8, got {text[:100]!r}"
        ) from None


def _host_of(hop: str) -> str | None:
    """Return the address in an entry of `X-Forwarded-For`, which may have a port; None if it holds no address."""
    host = hop
    if hop.startswith("["):
        host = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        host = hop.partition(":")[0]
    with contextlib.suppress(ValueError):
        return str(ip_address(host.partition("%")[0]))  # a zone is of no use here, and could have control characters
    return None


class ParseQueue:
    """The connections whose input was set aside, in the order in which they go on, a few in each iteration of the loop.

    They share one limit of time in an iteration, but for sockets that are not authenticated, whose input has a limit in
    bytes. So a hundred floods delay the other connections no longer than one. A request needs about seven iterations
    (measured).
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._began_s = 0.0  # when parsing began in this iteration, in the loop's time; 0 before
        self._is_called = False

    def began_s(self) -> float:
        """Return when, in the time of the running loop, parsing began in this iteration: now, if it had not."""
        if not self._began_s:
            loop = asyncio.get_running_loop()
            self._began_s = loop.time()
            self._call_soon(loop)  # also without a waiting connection: `_next` ends the iteration
        return self._began_s

    def add(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in one of the next iterations."""
        self._waiting.append(go_on)
        self._call_soon(asyncio.get_running_loop())

    def _call_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin an iteration: let the connections go on that have waited for longest."""
        self._is_called = False
        self._began_s = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._waiting), MOST_AT_ONCE)):
            self._waiting.popleft()()
            if self._began_s and loop.time() > self._began_s + PARSE_S:
                break
        if self._waiting:
            self._call_soon(loop)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as the system allows, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MAX_DESCRIPTORS)


def give_memory_back(*, collects: bool) -> float:
    """Free the remains of closed connections, and return free memory to the system if the C library can do so.

    Return the seconds that it took.
    """
    began_s = time.perf_counter()
    if collects:
        gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
    return time.perf_counter() - began_s


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # the C library is not GNU's
        return None
    return trim
