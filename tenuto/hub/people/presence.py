"""Members enter and leave channels, by connections and by leases.

Layer: hub.

`presence_state` holds the members of one channel; this module holds how long they stay. A member leaves some seconds
after its last connection closed, so that a page refresh does not flicker. A member without a connection stays until its
lease ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial

from tenuto.core.errors import Forbidden, TooMany, shown
from tenuto.core.events import Presence, Signal
from tenuto.core.limits import Limits
from tenuto.core.model import Json, check_json, plain
from tenuto.core.names import check_id, client_of, is_own_name
from tenuto.hub.channel import Channel
from tenuto.hub.clock import Deadlines
from tenuto.hub.people.presence_state import GRACE_S
from tenuto.hub.people.shared import SharedPresence

SERVERS_SIGNALS = frozenset(("nobody_listening",))  # only the server may send these, since clients trust them


class PresenceTracker:
    """Enters members into channels, and removes them when their connections or leases end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        limits: Limits,
        channel: Callable[[str], Channel],
        shared: SharedPresence | None = None,
    ) -> None:
        """Make the tracker. `channel` returns a live channel; `shared` is None on an exclusive store."""
        self.shared = shared
        self._loop = loop
        self._deadlines = deadlines
        self._limits = limits
        self._channel = channel
        # for each client: the channels and member ids of its leases, with the times of their renewals (`now_ms`)
        self._leases: defaultdict[str, dict[tuple[str, str], int]] = defaultdict(dict)
        if shared is not None:
            shared.on_withdrawn = self._withdrawn

    def enter(self, channel: str, member_id: str, connection: Hashable, data: dict[str, Json] | None) -> None:
        """Enter `member_id` over `connection`, until `leave`. Raises InvalidRequest, TooLarge, TooMany, Forbidden."""
        if data is not None:
            check_json(data, self._limits.data_bytes, "a member's data", depth=self._limits.depth)
            data = plain(data)
        ended = self.shared.ended if self.shared is not None else ()
        self._channel(channel).presence_state.enter(member_id, "user", connection, data, ended)
        self._deadlines.drop(("grace", channel, member_id))

    def leave(self, channel: str, member_id: str, connection: Hashable, *, is_final: bool = False) -> None:
        """End one connection of a member. With `is_final` the member leaves at once, else after the grace period."""
        is_last = self._channel(channel).presence_state.disconnect(member_id, connection)
        grace = ("grace", channel, member_id)
        remove = partial(self._remove, channel, member_id)
        if is_final:
            if is_last and grace not in self._deadlines:
                remove()
        elif is_last or (channel, member_id) in self._leases.get(client_of(member_id), ()):
            # With a lease, too, because the lease may end within the grace period.
            self._deadlines.set(grace, self._loop.time() + GRACE_S, remove)

    def lease(self, channel: str, member_id: str, data: dict[str, Json] | None, lease_s: float) -> None:
        """Enter `member_id` without a connection, for `lease_s` seconds from now. Raises as `enter`.

        Each lease keeps a channel in memory, so a client may hold as many as a socket may hold channels.
        """
        leases = self._leases.get(client_of(member_id), ())
        limit = self._limits.socket_channels
        if len(leases) >= limit and (channel, member_id) not in leases:
            raise TooMany(
                f"client {shown(client_of(member_id))} has {len(leases)} presence leases, the limit is {limit}; end "
                "one of them first",
                limit=limit,
            )
        self.enter(channel, member_id, "lease", data)
        self._leases[client_of(member_id)][channel, member_id] = self.shared.now_ms if self.shared is not None else 0
        self._deadlines.set(
            ("here", channel, member_id), self._loop.time() + lease_s, partial(self.end_lease, channel, member_id)
        )

    def withdraw(self, channel: str, member_id: str) -> None:
        """End the leases of `member_id` at all nodes."""
        self.end_lease(channel, member_id)
        if self.shared is not None:
            self.shared.send_withdrawn(channel, member_id)

    def _withdrawn(self, channel: str, member_id: str, at_ms: int) -> None:
        """End the lease of `member_id`, which was withdrawn at another node, unless it was renewed since."""
        renewed_ms = self._leases.get(client_of(member_id), {}).get((channel, member_id))
        if renewed_ms is not None and renewed_ms < at_ms:
            self.end_lease(channel, member_id)

    def end_lease(self, channel: str, member_id: str) -> None:
        """End the lease of `member_id` at this node, because it was withdrawn or was not renewed in time."""
        self._deadlines.drop(("here", channel, member_id))
        leases = self._leases.get(client_of(member_id))
        if leases is not None:
            leases.pop((channel, member_id), None)
            if not leases:
                del self._leases[client_of(member_id)]
        self.leave(channel, member_id, "lease", is_final=True)

    async def read(self, channel: str) -> Channel:
        """Return `channel` with its members at all nodes, which its limits count."""
        live = self._channel(channel)
        if self.shared is not None:
            await self.shared.read(live)
        return live

    async def present(self, channel: str) -> Presence:
        """Return the present members of `channel`, at all nodes."""
        return (await self.read(channel)).presence_state.presence()

    def signal(self, channel: str, name: str, data: Json, by: str | None) -> None:
        """Send a signal to the current subscribers; it is never stored. Raises InvalidRequest, TooLarge."""
        check_id(name, "a signal's name")
        if data is not None:
            check_json(data, self._limits.data_bytes, "a signal's data", depth=self._limits.depth)
        signal = Signal(name=name, data=plain({"data": data})["data"], from_=by)
        self._channel(channel).presence_state.signal(signal)
        if self.shared is not None:
            self.shared.send_signal(channel, signal)

    def _remove(self, channel: str, member_id: str) -> None:
        self._channel(channel).presence_state.remove(member_id)


def check_member(member_id: str, client_id: str | None) -> str:
    """Return `member_id`. Raises Forbidden unless it is the client's own id, or that id with `~` and a suffix."""
    check_id(member_id, "a member's id")
    if is_own_name(member_id, client_id):
        return member_id
    raise Forbidden(
        f"member id {shown(member_id)} belongs to another client; use {shown(client_id)}, or that with ~ and a suffix"
    )


def check_signal(name: str) -> None:
    """Raise Forbidden if only the server may send a signal called `name`."""
    if name in SERVERS_SIGNALS:
        raise Forbidden(f"signal {name!r} is reserved for the server; use another name")
