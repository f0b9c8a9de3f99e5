"""PresenceTracker: who enters and leaves channels, by sockets and by leases.

Layer: hub.

the presence state knows who is here; this knows how long: a member whose last connection is gone leaves after
a grace, so that a page refresh does not flicker, and one without a socket is here for as long as a lease says.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial

from holdfast.core.errors import Forbidden, TooMany
from holdfast.core.events import Presence, Signal
from holdfast.core.limits import Limits
from holdfast.core.model import Json, check_json, plain
from holdfast.core.names import check_id, client_of, is_own_name
from holdfast.hub.channel import Channel
from holdfast.hub.deadlines import Deadlines

GRACE_S = 3.0  # between a member's last connection and their leaving
SERVERS_SIGNALS = frozenset(("nobody_listening",))  # which people believe, so nobody else says them


class PresenceTracker:
    """Presence and signals of all channels."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        limits: Limits,
        channel: Callable[[str], Channel],
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._limits = limits
        self._channel = channel
        self._leases: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)  # channels and members, by client

    def enter(self, channel: str, member_id: str, connection: Hashable, data: dict[str, Json] | None) -> None:
        """`member_id` is here by `connection`, until `leave`. Raises InvalidRequest, TooLarge, TooMany, Forbidden."""
        if data is not None:
            check_json(data, self._limits.data_bytes, "a member's data", depth=self._limits.depth)
            data = plain(data)
        self._channel(channel).presence_state.enter(member_id, "user", connection, data)
        self._deadlines.drop(("grace", channel, member_id))

    def leave(self, channel: str, member_id: str, connection: Hashable, *, is_final: bool = False) -> None:
        """The connection is gone; with `is_final` because they said so, without a grace."""
        presence_state = self._channel(channel).presence_state
        if not presence_state.disconnect(member_id, connection):
            return
        if is_final:
            presence_state.remove(member_id)
        else:
            self._deadlines.set(
                ("grace", channel, member_id), self._loop.time() + GRACE_S, partial(self._gone, channel, member_id)
            )

    def lease(self, channel: str, member_id: str, data: dict[str, Json] | None, lease_s: float) -> None:
        """`member_id` is here without a socket, for `lease_s` seconds more. Raises as `enter`.

        Each keeps a channel in memory, so one client holds as many at once as one of its sockets may be present by.
        """
        leases = self._leases.get(client_of(member_id), ())
        limit = self._limits.socket_channels
        if len(leases) >= limit and (channel, member_id) not in leases:
            raise TooMany(f"a client is present as at most {limit} members without a socket", limit=limit)
        self.enter(channel, member_id, "lease", data)
        self._leases[client_of(member_id)].add((channel, member_id))
        self._deadlines.set(
            ("here", channel, member_id), self._loop.time() + lease_s, partial(self.end_lease, channel, member_id)
        )

    def end_lease(self, channel: str, member_id: str) -> None:
        """`member_id` says that they leave, or has said nothing for too long."""
        self._deadlines.drop(("here", channel, member_id))
        leases = self._leases.get(client_of(member_id))
        if leases is not None:
            leases.discard((channel, member_id))
            if not leases:
                del self._leases[client_of(member_id)]
        self.leave(channel, member_id, "lease", is_final=True)

    def present(self, channel: str) -> Presence:
        """Who is here."""
        return self._channel(channel).presence_state.presence()

    def signal(self, channel: str, name: str, data: Json, by: str | None) -> None:
        """Tell those who are here now; never stored. Raises InvalidRequest, TooLarge."""
        check_id(name, "a signal's name")
        if data is not None:
            check_json(data, self._limits.data_bytes, "a signal's data", depth=self._limits.depth)
        self._channel(channel).presence_state.signal(Signal(name=name, data=plain({"data": data})["data"], from_=by))

    def _gone(self, channel: str, member_id: str) -> None:
        self._channel(channel).presence_state.remove(member_id)


def check_member(member_id: str, client_id: str | None) -> str:
    """Return `member_id`; raises Forbidden unless it is the client's own id, or that with `~` and a suffix."""
    check_id(member_id, "a member's id")
    if is_own_name(member_id, client_id):
        return member_id
    raise Forbidden("a member's id is the client's own, or that with ~ and a suffix")


def check_signal(name: str) -> None:
    """Raises Forbidden where a signal of that name is the server's alone."""
    if name in SERVERS_SIGNALS:
        raise Forbidden(f"{name!r} is a signal of the server's own")
