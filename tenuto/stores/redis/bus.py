"""The bus on Redis or Valkey: notices between nodes by PUBLISH and SUBSCRIBE, a Redis channel for each channel.

Layer: stores.

A link is two connections to one server: one publishes, and one is subscribed to the Redis channels of those in memory.
The link sends itself a message every few seconds, because a server that is gone may leave its connections open. A link
that fails is replaced, after a pause that grows. Until then notices are lost, and hubs find one another's entries when
they read the heads, once in a second.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.asyncio
from msgspec import Struct
from redis import exceptions

from tenuto.core.errors import StoreUnusable, failures_in, shown
from tenuto.stores.base import Notice, unreadable

logger = logging.getLogger("tenuto.stores")

CONNECT_TIMEOUT_S = 5.0  # of a link, with all that it requests at its beginning
RESPONSE_TIMEOUT_S = 1.5  # of one command; the hub gives a call of `notify` up a little later
CHECK_S = 5.0  # time between two messages of a link to itself
RETRY_S = (0.5, 30.0)  # shortest and longest pause before another link
NOTICE_BYTES = 64 * 1024  # limit of one notice; larger ones are left out
SEND_BYTES = 4 * 1024 * 1024  # limit of the notices of one call; further ones are left out
NAMES_AT_ONCE = 500  # Redis channels that one SUBSCRIBE names
FEW_CHANNELS = 8  # up to so many new channels are read one by one; of more, the heads are read
HEADS_PAUSE_S = 0.2  # after such a reading; channels that are followed meanwhile share the next one
MESSAGES_AT_ONCE = 100  # messages that are taken in one iteration of the event loop

_KINDS = ("moved", "here", "signal")  # the first byte of a message is the index
_ID_BYTES = 8
_FAILURES = (exceptions.RedisError, OSError, TimeoutError, StoreUnusable)

OnNotice = Callable[[Notice | None], None]


class BusServer(Struct, frozen=True, kw_only=True):
    """The server that a URL names, or the Sentinels that know it. `options` are those of the driver's connections."""

    shown: str  # the URL without its secrets
    hosts: tuple[tuple[str, int], ...]
    service: str | None = None  # the name of the server at its Sentinels; None if `hosts` has the server itself
    credentials: dict[str, str] = {}
    options: dict[str, Any] | None = None  # of TLS, all of them files; None: without TLS

    def __repr__(self) -> str:
        return f"BusServer({self.shown})"


class RedisBus:
    """A bus (`tenuto.stores.base.Bus`) on a Redis or Valkey server. Names of Redis channels begin with `prefix`."""

    name = "redis"

    def __init__(self, server: BusServer, *, prefix: str = "tenuto") -> None:
        """Make a bus that is not yet open."""
        self.server = server
        self.prefix = prefix
        self._base = b""  # begins the name of each Redis channel; set by `open`
        self._id = b""  # begins each message, so that this instance ignores its own; another one with each `open`
        self._listeners: list[OnNotice] = []
        self._wanted = {""}  # channels whose notices this node needs; "" stands for those about a node
        self._changed = asyncio.Event()  # set when `_wanted` has changed
        self._link: _BusLink | None = None  # the current link, once it is subscribed
        self._first: _BusLink | None = None  # the link of `open`, until the task takes it
        self._task: asyncio.Task[None] | None = None  # keeps a link
        self._stats = dict.fromkeys(("bus_sent", "bus_received", "bus_dropped", "bus_losses"), 0)

    async def open(self, name: str) -> None:
        """Begin to carry notices (`Bus.open`)."""
        self._base = f"{self.prefix}:{name}:".encode()
        self._id = secrets.token_bytes(_ID_BYTES)  # here, because a server may fork after it has made the bus
        self._changed = asyncio.Event()
        self._listeners, self._wanted = [], {""}  # an event loop may have ended without `close`
        self._first = self._link = self._task = None
        try:
            self._first = await self._connect()
        except _FAILURES as error:
            if isinstance(error, StoreUnusable):
                raise
            logger.warning("the hub starts without the bus: %s", self._unreachable(error))
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Close the connections, and call the listeners no more (`Bus.close`)."""
        task, self._task = self._task, None
        self._listeners.clear()
        self._wanted = {""}
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        first, self._first = self._first, None
        if first is not None:  # the task was cancelled before it took this link
            await first.close()

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send `notices` (`Notices.notify`). They are lost while there is no link."""
        messages: list[tuple[str, bytes, bytes]] = []
        size_bytes = 0
        for notice in notices:
            size_bytes += len(notice.body)
            if len(notice.body) <= NOTICE_BYTES and size_bytes <= SEND_BYTES:
                message = self._id + bytes([_KINDS.index(notice.kind)]) + notice.body
                messages.append(("PUBLISH", self._base + notice.channel.encode(), message))
        link, sent = self._link, 0
        if link is not None and messages and await link.publish(messages):
            sent = len(messages)
        self._stats["bus_sent"] += sent
        self._stats["bus_dropped"] += len(notices) - sent

    def listen(self, on_notice: OnNotice) -> None:
        """Call `on_notice` with each notice of other instances (`Notices.listen`)."""
        self._listeners.append(on_notice)
        if self._link is not None:
            on_notice(None)

    def follow(self, channel: str) -> None:
        """Subscribe to the notices of `channel` (`Bus.follow`)."""
        self._wanted.add(channel)
        self._changed.set()

    def unfollow(self, channel: str) -> None:
        """End the subscription to `channel` (`Bus.unfollow`)."""
        self._wanted.discard(channel)
        self._changed.set()

    def stats(self) -> dict[str, int]:
        """Return counters since the bus was made (`Bus.stats`)."""
        return {"bus_connected": int(self._link is not None), "bus_channels": len(self._wanted) - 1, **self._stats}

    # -- links ---------------------------------------------------------------------------------------------------

    async def _connect(self) -> _BusLink:
        """Return a link to the server. Raises StoreUnusable with the remedy for a mistake in the setting."""
        _check_files(self.server)
        async with _translated(self.server, f"&{self.prefix}:*"), asyncio.timeout(CONNECT_TIMEOUT_S):
            link = _BusLink(await _address(self.server), self.server, self._base + b"!" + self._id.hex().encode())
            try:
                await link.connect()
            except BaseException:
                await link.close()
                raise
        return link

    async def _run(self) -> None:
        """Keep a link until this task is cancelled."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        link, self._first = self._first, None
        shortest_s, longest_s = RETRY_S
        wait_s = shortest_s
        while True:
            begun_s = loop.time()
            try:
                link = link or await self._connect()
                try:
                    await self._serve(link)
                finally:
                    if self._link is link:
                        self._stats["bus_losses"] += 1
                        self._link = None
                    await link.close()
            except* _FAILURES as group:
                if loop.time() - begun_s > longest_s:  # a link that breaks at once does not shorten the pause
                    wait_s = shortest_s
                error = failures_in(group)[0]
                reason = str(error) if isinstance(error, StoreUnusable) else self._unreachable(error)
                logger.warning(
                    "notices of other nodes do not arrive, and text of other nodes is up to a second late; the bus is "
                    "tried again in %g s: %s",
                    *(wait_s, reason),
                )
            except* Exception:
                logger.exception("the bus failed; it is tried again")
            if task.cancelling():  # until Python 3.13, a task group that has failed swallows the cancellation
                return
            link = None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    async def _serve(self, link: _BusLink) -> None:
        """Carry notices on `link` until it fails. Raises the failure."""
        async with asyncio.TaskGroup() as group:
            group.create_task(link.read(self._receive))
            group.create_task(link.keep())
            followed: set[str] = set()
            while True:
                self._changed.clear()
                wanted = set(self._wanted)
                are_many = self._link is not None and len(wanted - followed) > FEW_CHANNELS
                await link.change("UNSUBSCRIBE", [self._base + one.encode() for one in followed - wanted])
                await link.change("SUBSCRIBE", [self._base + one.encode() for one in wanted - followed])
                if self._link is None:
                    self._link = link
                    logger.info("the bus %s carries the notices of this node", self.server.shown)
                    self._pass_on(None)
                elif are_many:
                    self._pass_on(None)
                else:
                    for channel in wanted - followed:  # an entry may have been stored just before
                        self._pass_on(Notice("moved", channel, b""))
                followed = wanted
                if are_many:
                    await asyncio.sleep(HEADS_PAUSE_S)
                await self._changed.wait()

    def _receive(self, name: bytes, message: bytes) -> None:
        """Take a message. Those of this instance, and those of another form, are ignored."""
        kind = message[_ID_BYTES : _ID_BYTES + 1]
        if message.startswith(self._id) or not kind or len(message) > NOTICE_BYTES + _ID_BYTES + 1:
            return
        channel = name.removeprefix(self._base).decode()
        if kind[0] < len(_KINDS) and channel in self._wanted:
            self._stats["bus_received"] += 1
            self._pass_on(Notice(_KINDS[kind[0]], channel, message[_ID_BYTES + 1 :]))

    def _pass_on(self, notice: Notice | None) -> None:
        for on_notice in list(self._listeners):
            on_notice(notice)

    def _unreachable(self, error: BaseException) -> str:
        files = "" if self.server.options is None else ", ssl_certfile and ssl_keyfile"  # refused late by TLS 1.3
        return (
            f"bus {self.server.shown} cannot be reached ({error or type(error).__name__}); check scheme, host "
            f"and port{files} in the bus URL, and the server"
        )


class _BusLink:
    """Two connections to one server. Each failure ends both."""

    def __init__(self, address: tuple[str, int], server: BusServer, own: bytes) -> None:
        """Make a link, not yet connected. `own` is the Redis channel of its messages to itself."""
        self._own = own
        self._server = server
        self._publisher = _connection(address, server)
        self._subscriber = _connection(address, server)
        self._publishing = asyncio.Lock()  # held until the responses to the commands of one caller have come
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # gets a failure of `publish`
        self._is_delivered = asyncio.Event()  # set by the message of the link to itself
        self._unconfirmed = 0  # Redis channels of the last command whose confirmation has not arrived
        self._is_confirmed = asyncio.Event()  # set when none is left

    async def connect(self) -> None:
        """Connect, and check that the server accepts what the bus needs. Raises StoreUnusable with the remedy."""
        await self._publisher.connect()
        await self._check_role()
        await self._subscriber.connect()
        await _ask(self._subscriber, "SUBSCRIBE", self._own)
        await _ask(self._publisher, "PUBLISH", self._own, b"")
        await self._subscriber.read_response()  # that message

    async def _check_role(self) -> None:
        """Raise StoreUnusable, or ConnectionError, for a server whose messages do not reach all nodes."""
        hello = await _ask(self._publisher, "HELLO")
        about = dict(zip(hello[::2], hello[1::2], strict=True))
        if about.get(b"mode") == b"sentinel":
            raise StoreUnusable(
                f"bus {self._server.shown} is a Sentinel; write redis+sentinel://host:26379/name-of-the-server"
            )
        if about.get(b"role") != b"master":
            if self._server.service is not None:  # its Sentinel learns of a failover a little later
                raise exceptions.ConnectionError("its Sentinel names a replica, as during a failover")
            raise StoreUnusable(
                f"bus {self._server.shown} is a replica, whose messages do not reach the others; name the primary"
            )

    async def read(self, receive: Callable[[bytes, bytes], None]) -> None:
        """Pass the messages to `receive`. Raises the failure of the connection."""
        messages = 0
        while True:
            kind, name, message = await self._subscriber.read_response()
            if kind != b"message":  # a confirmation for `change`
                self._unconfirmed -= 1
                if self._unconfirmed <= 0:
                    self._is_confirmed.set()
            elif name == self._own:
                self._is_delivered.set()
            else:
                receive(name, message)
            messages += 1
            if messages % MESSAGES_AT_ONCE == 0:  # while messages wait, a read does not pause
                await asyncio.sleep(0)

    async def keep(self) -> None:
        """Check every few seconds that messages arrive, and reach all nodes. Raises the failure, or TimeoutError."""
        while True:
            await asyncio.wait([self._failed], timeout=CHECK_S)
            self._is_delivered.clear()
            await self.publish([("PUBLISH", self._own, b"")])
            if self._failed.done():
                self._failed.result()
            async with _responding():
                await self._is_delivered.wait()
                async with self._publishing:
                    await self._check_role()

    async def change(self, command: str, names: Sequence[bytes]) -> None:
        """Send SUBSCRIBE or UNSUBSCRIBE, and wait until the server has confirmed it."""
        for start in range(0, len(names), NAMES_AT_ONCE):
            some = names[start : start + NAMES_AT_ONCE]
            self._unconfirmed = len(some)
            self._is_confirmed.clear()
            async with _responding():
                await self._subscriber.send_command(command, *some, check_health=False)
                await self._is_confirmed.wait()

    async def publish(self, messages: Sequence[tuple[str, bytes, bytes]]) -> bool:
        """Send PUBLISH commands; return whether the server has carried them out. A failure ends the link."""
        if self._failed.done():
            return False
        try:
            async with _responding(), self._publishing:
                await self._publisher.send_packed_command(self._publisher.pack_commands(messages), check_health=False)
                for _ in messages:
                    await self._publisher.read_response()
        except BaseException as error:
            failure = error if isinstance(error, _FAILURES) else exceptions.ConnectionError("a call was given up")
            if not self._failed.done():
                self._failed.set_exception(failure)
                self._failed.exception()  # marked as retrieved
            if not isinstance(error, _FAILURES):
                raise
            return False
        return True

    async def close(self) -> None:
        """Close both connections without waiting for the server."""
        for connection in (self._publisher, self._subscriber):
            with suppress(*_FAILURES):
                await connection.disconnect(nowait=True)


@asynccontextmanager
async def _responding() -> AsyncIterator[None]:
    """Bound the time of a command. Raises TimeoutError with a message."""
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S):
            yield
    except TimeoutError:
        raise TimeoutError(f"no response within {RESPONSE_TIMEOUT_S:g} s") from None


@asynccontextmanager
async def _translated(server: BusServer, pattern: str) -> AsyncIterator[None]:
    """Translate errors that another attempt would meet again into StoreUnusable with the remedy."""
    try:
        yield
    except exceptions.AuthenticationError as error:
        raise StoreUnusable(
            f"bus {server.shown} refused the user ({error}); check user and password in the bus URL"
        ) from error
    except exceptions.InvalidResponse as error:
        raise StoreUnusable(
            f"bus {server.shown} is no Redis or Valkey server ({error}); check host and port in the bus URL"
        ) from error
    except exceptions.ResponseError as error:
        raise StoreUnusable(
            f"bus {server.shown} refused a command ({error}); it must be Redis 6 or newer, or Valkey, and its user "
            f"needs: ACL SETUSER name {pattern} +publish +subscribe +unsubscribe"
        ) from error
    except exceptions.ConnectionError as error:
        if not isinstance(error.__context__, ssl.SSLError):
            raise
        raise StoreUnusable(
            f"bus {server.shown} failed the TLS handshake ({error.__context__}); check the certificate of the server, "
            "that the port takes TLS, and ssl_ca_certs, ssl_certfile and ssl_keyfile in the bus URL"
        ) from error
    except TimeoutError:
        raise TimeoutError(f"no response within {CONNECT_TIMEOUT_S:g} s") from None


def _check_files(server: BusServer) -> None:
    """Raise StoreUnusable for a file of TLS that cannot be read."""
    for option, path in (server.options or {}).items():
        if (reason := unreadable(path)) is not None:
            raise StoreUnusable(
                f"bus {server.shown} needs the file {shown(path)}, which cannot be read ({reason}); check {option} in "
                "the bus URL"
            )


async def _address(server: BusServer) -> tuple[str, int]:
    """Return the host and port of the server; a Sentinel, if any, knows them. Raises the last failure of one."""
    if server.service is None:
        return server.hosts[0]
    failure: Exception = StoreUnusable(f"bus {server.shown} has no server of this name; check the name in the bus URL")
    for host in server.hosts:
        connection = _connection(host, server, is_sentinel=True)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S / (len(server.hosts) + 1)):  # the server needs a part, too
                await connection.connect()
                found = await _ask(connection, "SENTINEL", "get-master-addr-by-name", server.service)
            if found:
                return found[0].decode(), int(found[1])
        except exceptions.ResponseError:
            failure = StoreUnusable(
                f"bus {server.shown} names {host[0]}:{host[1]}, which is no Sentinel; write redis:// for a server"
            )
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            failure = error
        finally:
            await connection.disconnect(nowait=True)
    raise failure


def _connection(address: tuple[str, int], server: BusServer, *, is_sentinel: bool = False) -> Any:
    tls = None if server.options is None else {"ssl_check_hostname": True, **server.options}
    return (redis.asyncio.Connection if tls is None else redis.asyncio.SSLConnection)(
        host=address[0],
        port=address[1],
        protocol=2,  # with the third version, messages and responses would come mixed
        socket_timeout=None,  # each call has a timeout of its own
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        **({} if is_sentinel else server.credentials),
        **(tls or {}),
    )


async def _ask(connection: Any, *words: str | bytes) -> Any:
    await connection.send_command(*words, check_health=False)
    return await connection.read_response()
