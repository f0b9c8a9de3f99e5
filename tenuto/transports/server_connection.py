"""What a transport and its server say to each other about a connection: is its peer known, and who owns the socket?

Layer: transports.

`tenuto serve` bounds connections whose peers are unknown (`tenuto.server.connections`). It puts an object into the ASGI
scope, which travels through middleware, and the transports call it when a verifier has identified the peer. Under any
other server the scope has no such object, and each call here has no effect.

On a machine with several users a loopback connection may come from another user's process. The system names the owner
of a socket (`foreign_owner`): by netlink, or by its table where netlink is missing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from tenuto.core.errors import Busy
from tenuto.hub.access.identity import Scope

EXTENSION = "tenuto.server"


class ServerConnection(Protocol):
    """The interface of a connection in `tenuto serve`."""

    def known(self) -> None:
        """Lift the bounds on unknown peers, because a verifier has identified this one."""

    def verify(self, limit: asyncio.Timeout) -> None:
        """Count an unknown peer until `verified`, because a verifier runs for it. End `limit` if the peer is gone."""

    def verified(self) -> None:
        """Note that the verifier has ended, whatever its result."""


class ServerSocket(ServerConnection, Protocol):
    """The interface of a WebSocket in `tenuto serve`."""

    def expect_introduction(self, timeout_s: float) -> None:
        """Keep the bounds for unknown peers until the peer authenticates, at most `timeout_s` seconds."""


def mark_known(scope: Mapping[str, Any]) -> None:
    """Inform the server that a verifier has identified the peer of this request or socket."""
    server = _server_of(scope)
    if server is not None:
        server["connection"].known()


def expect_introduction(scope: Mapping[str, Any], timeout_s: float) -> bool:
    """Inform the server that the peer of this socket is unknown and has `timeout_s` seconds to authenticate.

    Call it before the socket is accepted. Return whether the server limits the number of such sockets.
    """
    server = _server_of(scope)
    if server is None:
        return False
    server["connection"].expect_introduction(timeout_s)
    return True


def connection_of(scope: Mapping[str, Any]) -> ServerConnection | None:
    """Return the connection of this request or socket, one object as long as it is open; None under another server."""
    server = _server_of(scope)
    return server["connection"] if server is not None else None


def _server_of(scope: Mapping[str, Any]) -> Any:
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None


Address = IPv4Address | IPv6Address

_SOCK_DIAG = 4  # the netlink family NETLINK_SOCK_DIAG, for which the module `socket` has no name
_BY_FAMILY, _ERROR, _REQUEST = 20, 2, 1  # message types SOCK_DIAG_BY_FAMILY and NLMSG_ERROR, and flag NLM_F_REQUEST
_HEADER = struct.Struct("=IHHII")  # header of each message: length, type, flags, sequence number, port
_FILTER = struct.Struct("=BBBBI")  # filter of the request: family, protocol, extensions, padding, states
_STATE = struct.Struct("=BBBB")  # beginning of the response: family, state, timer, retransmits
# ends of the connection in request and response: source port, destination port, source, destination
_PAIR = struct.Struct(">HH16s16s")
_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # end of the request: any interface, no cookie
_OWNER = struct.Struct("=IIIII")  # end of the response: timer, bytes to read, bytes to write, user, inode
_OWNER_AT = _HEADER.size + _STATE.size + _PAIR.size + len(_COOKIE)
_EVERY_STATE = 0xFFFFFFFF
_ROOT = 0
TABLES = {4: "/proc/net/tcp", 6: "/proc/net/tcp6"}
_SCANS = 3  # times to read /proc/net/tcp, which may leave out a row while other sockets open and close
# Errors that mean a shortage, which a peer may cause. They must not look like a system that does not provide the owner.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class SocketOwner(NamedTuple):
    """The user that owns a socket, and its inode. The inode is 0 once no process has the socket open."""

    uid: int
    inode: int


class Pair(NamedTuple):
    """The two ends of a connection. The peer's end comes first, as in the entry of the peer's socket."""

    address: Address
    port: int
    remote: Address
    remote_port: int


Source = Callable[[Pair], SocketOwner | None]


async def foreign_owner(scope: Scope) -> str | None:
    """Return why the peer's socket does not belong to this process's user or to root; None if it does.

    Also returns None if the system or the server does not provide this. Raises Busy if descriptors or memory are short.
    """
    if not sys.platform.startswith("linux"):
        return None
    connection = connection_of(scope)
    if connection is not None and connection in _owned:
        return None
    reason = await _look_up(scope)
    if reason is None and connection is not None:
        _owned.add(connection)
    return reason


# Connections to whose peers there is no objection; only if the server shows which request came over which connection.
_owned: WeakSet[Any] = WeakSet()
# The sources that work on this system, once they are known.
_sources: dict[Source, bool] = {}


async def _look_up(scope: Scope) -> str | None:
    pair = pair_of(scope)
    if pair is None:
        return None
    try:
        if _is_usable(by_netlink):
            owner = by_netlink(pair)
        elif await asyncio.to_thread(_is_usable, by_table):
            owner = await asyncio.to_thread(by_table, pair)
        else:
            return None
    except OSError as error:
        raise Busy(f"the owner of the peer's socket cannot be looked up: {error.strerror}; try again") from None
    return objection(owner, os.geteuid())


def objection(owner: SocketOwner | None, uid: int) -> str | None:
    """Return why a socket of `owner` does not belong to the user `uid` or to root; None if it does."""
    if owner is None or (owner.uid == _ROOT and not owner.inode):
        return "the peer's socket is closed already, or not of this machine, so its user is unknown"
    if owner.uid in (_ROOT, uid):
        return None
    return f"the peer's socket belongs to the user {_name(owner.uid)}, expected {_name(uid)}, which runs this server"


def pair_of(scope: Scope) -> Pair | None:
    """Return the ends of the connection behind a request; None if the server does not provide addresses and ports."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or not isinstance(server[1], int) or not isinstance(client[1], int):
        return None
    try:
        address, remote = _plain(ip_address(client[0])), _plain(ip_address(server[0]))
    except ValueError:
        return None
    if remote.is_unspecified:  # the server gives the address that it listens on instead of the connection's
        remote = address
    if address.version != remote.version:
        return None
    return Pair(address, client[1], remote, server[1])


def _plain(address: Address) -> Address:
    """Return an IPv4 address that is written as IPv6 in its plain form."""
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _name(uid: int) -> str:
    import pwd  # imported here: the module does not exist on every system, and this code only runs on Linux

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


# The two sources of a socket's owner


def _is_usable(source: Source) -> bool:
    """Return whether `source` knows a socket of this process. Raises OSError for a shortage."""
    if source not in _sources:
        try:
            with socket.socket() as own:
                own.bind(("127.0.0.1", 0))
                own.listen(1)
                owner = source(Pair(IPv4Address("127.0.0.1"), own.getsockname()[1], IPv4Address(0), 0))
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            owner = None
        _sources[source] = owner is not None and owner.uid == os.geteuid() and owner.inode != 0
    return _sources[source]


def by_netlink(pair: Pair) -> SocketOwner | None:
    """Return the owner of the socket with these ends, from sock_diag. Raises OSError."""
    family = socket.AF_INET if pair.address.version == 4 else socket.AF_INET6
    ends = _ends(pair, pair.address.version)
    body = _FILTER.pack(family, socket.IPPROTO_TCP, 0, 0, _EVERY_STATE) + ends + _COOKIE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # no waiting: the kernel has responded when `send` returns
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 0, 0) + body)
        reply = netlink.recv(4096)
    kind = _HEADER.unpack_from(reply)[1]
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", reply, _HEADER.size)
        if -code in _SHORTAGES:
            raise OSError(-code, os.strerror(-code))
        return None  # ENOENT means that there is no such socket
    # If no connection has these ends, the kernel looks for a listening socket.
    if kind != _BY_FAMILY or reply[_HEADER.size + _STATE.size :][: _PAIR.size] not in (ends, _ends(pair, 6)):
        return None
    *_, uid, inode = _OWNER.unpack_from(reply, _OWNER_AT)
    return SocketOwner(uid, inode)


def _ends(pair: Pair, version: int) -> bytes:
    """Return the two ends in the form of sock_diag. A connection of IPv4 may have an IPv6 socket at either end."""
    return _PAIR.pack(pair.port, pair.remote_port, _packed(pair.address, version), _packed(pair.remote, version))


def by_table(pair: Pair) -> SocketOwner | None:
    """Return the owner of the socket with these ends, from `/proc/net/tcp` and `tcp6`. Raises OSError. May block."""
    for _ in range(_SCANS):
        for path, row in _rows(pair):
            with open(path, encoding="ascii") as table:
                for line in table:
                    if row in line:
                        fields = line.split()
                        if " ".join(fields[1:3]) == row:
                            return SocketOwner(int(fields[7]), int(fields[9]))
    return None


def _rows(pair: Pair) -> Iterator[tuple[str, str]]:
    """Yield the tables that may list the socket, and its ends as they are written there."""
    for version, path in TABLES.items():
        if pair.address.version <= version and os.path.exists(path):
            ends = ((pair.address, pair.port), (pair.remote, pair.remote_port))
            yield path, " ".join(f"{_in_table(address, version)}:{port:04X}" for address, port in ends)


def _in_table(address: Address, version: int) -> str:
    """Return `address` as the tables write it: words of 32 bits in the machine's byte order."""
    packed = _packed(address, version)
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))


def _packed(address: Address, version: int) -> bytes:
    """Return the bytes of `address` in the form of IPv4 or IPv6."""
    is_mapped = version == 6 and address.version == 4
    return b"\0" * 10 + b"\xff\xff" + address.packed if is_mapped else address.packed
