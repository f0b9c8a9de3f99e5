"""The presence and the leases of messages that a socket holds for as long as it is open.

Layer: transports.

An open socket is a sign of life for its members and its messages. When it breaks, members leave after a grace period,
and leases end sooner than usual (`docs/protocol.md`, 8.2).
"""

from __future__ import annotations

from collections.abc import Hashable

from tenuto.core.errors import TooMany
from tenuto.core.model import Json
from tenuto.core.requests import AppendText, CreateMessage, PutPart, RenewLease, Request, TakeOver
from tenuto.hub.hub import HubCore


class Holdings:
    """The members and messages whose presence or lease depends on one socket.

    The lease monitor knows the messages, because it learns of each end of one.
    """

    __slots__ = ("_hub", "_keeps_leases", "_present", "_socket")

    def __init__(self, hub: HubCore, socket: Hashable, *, keeps_leases: bool | None) -> None:
        """`socket` identifies the connection to the hub. `keeps_leases` is that of `release` if it has ended."""
        self._hub = hub
        self._socket = socket
        self._keeps_leases = keeps_leases
        self._present: set[tuple[str, str]] | None = None  # channel and id of each member; most sockets have none

    def __bool__(self) -> bool:
        return bool(self._present) or (self._hub.is_running and self._hub.runtime.leases.is_holder(self._socket))

    def enter(self, channel: str, member: str, data: dict[str, Json] | None) -> None:
        """Make `member` present through this socket. Raises TooMany and the errors of `PresenceTracker.enter`."""
        key = (channel, member)
        if self._present is None:
            self._present = set()
        limit = self._hub.limits.socket_channels
        if key not in self._present and len(self._present) >= limit:
            raise TooMany(
                f"this socket is present as {limit} members, which is the limit (Limits.socket_channels); leave one "
                "first",
                limit=limit,
            )
        self._hub.runtime.presence.enter(channel, member, self._socket, data)
        self._present.add(key)

    def leave(self, channel: str, member: str) -> None:
        """End the presence of `member` through this socket immediately, without the grace period."""
        if self._present is not None and (channel, member) in self._present:
            self._present.discard((channel, member))
            self._hub.runtime.presence.leave(channel, member, self._socket, is_final=True)

    def note_request(self, channel: str, message_id: str, request: Request) -> None:
        """Note a stored request, which shows whether its message's writer depends on this socket from now on."""
        if isinstance(request, AppendText | PutPart | RenewLease | TakeOver) or (
            isinstance(request, CreateMessage) and request.status == "streaming"
        ):
            leases = self._hub.runtime.leases
            leases.held(channel, message_id, self._socket)
            if self._keeps_leases is False:  # the request was still running when the connection broke
                leases.broken(self._socket)

    def release(self, *, keeps_leases: bool) -> None:
        """Give up all presence, because the connection has ended. Its leases end soon, unless it `keeps_leases`."""
        self._keeps_leases = keeps_leases
        present, self._present = self._present or (), None
        if not self._hub.is_running:
            return
        for channel, member in present:
            self._hub.runtime.presence.leave(channel, member, self._socket)
        if not keeps_leases:
            self._hub.runtime.leases.broken(self._socket)
