"""Passports: who is at the other end of a connection that stays, until when, and how that is prolonged.

Layer: transports.

A request is over before anything about its sender changes; a stream or a socket is not. So it
holds a credentials: the identity, the moment of its end, and the slot that it takes among the client's connections.
`leave` must be called when the connection is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.core.errors import Forbidden, Unauthenticated
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity, Scope
from holdfast.hub.rates import ConnectionSlot
from holdfast.hub.tickets import Ticket
from holdfast.transports.access import identity_by_token, peer_of

# Beyond this a timer is wound again: loops count in floats, and none sleeps for longer than a day.
_MAX_TIMER_S = 12 * 3600.0


class Credentials:
    """Who is at the other end. Used from the hub's event loop; only `renew` waits."""

    __slots__ = ("_hub", "_identity", "_over", "_scope", "_slot", "_timer", "ticket")

    def __init__(self, hub: HubCore, scope: Scope, identity: Identity | None, *, ticket: Ticket | None = None) -> None:
        self._hub = hub
        self._scope = scope
        self._identity = identity
        self._slot: ConnectionSlot | None = None
        self._over: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.ticket = ticket

    @property
    def identity(self) -> Identity:
        """Who it is. Raises Unauthenticated where nobody has said so yet."""
        if self._identity is None:
            raise Unauthenticated("nobody is known at the other end; the first frame is `auth`")
        return self._identity

    @property
    def is_known(self) -> bool:
        """Is it known who this is?"""
        return self._identity is not None

    @property
    def is_expired(self) -> bool:
        """Is the identity over?"""
        identity = self._identity
        # Every frame of a socket asks this, and most identities of servers have no end.
        return identity is not None and identity.expires_at_ms is not None and identity.is_expired(self._now_ms())

    @property
    def is_renewable(self) -> bool:
        """Is there a verifier that a token could be shown to?"""
        return self._hub.authenticate is not None

    def left_s(self) -> float:
        """For how many seconds it is still good."""
        return float("inf") if self._identity is None else left_s(self._hub, self._identity)

    def _now_ms(self) -> int:
        return self._hub.clock.now_ms()

    async def renew(self, token: str) -> Identity:
        """Show a token: the first one says who this is, later ones must be of the same client.

        Raises Unauthenticated, Expired, Forbidden, Busy, and TooMany where the client has no slot left; then all is as
        it was before.
        """
        identity = await identity_by_token(self._hub, self._scope, token)
        if self._identity is not None and identity.client_id != self._identity.client_id:
            raise Forbidden("a connection is renewed by the client that opened it; for another one, open another")
        if self._identity is None:
            self._slot = self._slot or self._take_slot(identity)
        self._identity = identity
        self._wind()
        return identity

    # What it takes

    def sit(self) -> None:
        """Take a slot among the client's connections. Raises TooMany."""
        self._slot = self._take_slot(self.identity)

    def count_request(self) -> None:
        """A frame came. Raises TooMany."""
        if self._hub.authenticate is not None and self._identity is not None:
            self._hub.rates.request(self._identity, peer_of(self._scope))

    def leave(self) -> None:
        """The connection is over. A second call does nothing."""
        self._over = None
        self._wind()
        if self._slot is not None:
            self._slot.leave()
            self._slot = None

    def _take_slot(self, identity: Identity) -> ConnectionSlot:
        # Without a verifier everybody is this machine's own, and what a ticket says of them bounds nobody.
        return self._hub.rates.connect(identity, peer_of(self._scope)) if self.is_renewable else ConnectionSlot(None)

    # Its end

    def watch(self, over: Callable[[], None]) -> None:
        """Call `over` when the identity has expired, unless it was renewed before."""
        self._over = over
        self._wind()

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._over is None or self._identity is None or self._identity.expires_at_ms is None:
            return
        self._timer = asyncio.get_running_loop().call_later(min(self.left_s(), _MAX_TIMER_S), self._ring)

    def _ring(self) -> None:
        if self._over is not None and self.is_expired:
            self._over()
        else:
            self._wind()  # a little early, or wound for as long as it goes


def left_s(hub: HubCore, identity: Identity) -> float:
    """For how many seconds `identity` is still good."""
    if identity.expires_at_ms is None:
        return float("inf")
    return max(0.0, (identity.expires_at_ms - hub.clock.now_ms()) / 1000)
