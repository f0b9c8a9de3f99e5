"""Credentials: the identity behind a long connection, when it expires, and how a token renews it.

Layer: transports.

During a stream or a socket, unlike during a plain request, the caller's identity can expire or be renewed. Such a
connection therefore holds credentials: the identity, the time of its expiry, and the connection slot that it takes.
Call `leave` when the connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tenuto.core.errors import Forbidden, Unauthenticated
from tenuto.hub.access.identity import Identity, Scope
from tenuto.hub.access.rates import ConnectionSlot
from tenuto.hub.access.tickets import Ticket
from tenuto.hub.channel import EncodedBatch
from tenuto.hub.hub import HubCore
from tenuto.transports.access import describe_caller, identity_by_token, is_ambient
from tenuto.transports.headers import peer_of
from tenuto.transports.origin import mark_known
from tenuto.transports.traffic import charge

# A longer timer is set in steps: event loops count time in floats, and none sleeps for longer than a day.
_MAX_TIMER_S = 12 * 3600.0


def not_authenticated() -> Unauthenticated:
    """Return the error for a socket that has not sent its `auth` frame."""
    return Unauthenticated(
        "this hub needs a token: pass one to the client (the option or attribute `token`); a socket sends it in its "
        "first frame, `auth`"
    )


class Credentials:
    """The identity behind one connection; None until an `auth` frame.

    It is used on the hub's loop, and only `renew` waits.
    """

    __slots__ = ("_hub", "_identity", "_on_expiry", "_scope", "_slot", "_timer", "is_ambient", "is_counted", "ticket")

    def __init__(self, hub: HubCore, scope: Scope, identity: Identity | None, *, ticket: Ticket | None = None) -> None:
        # True: a visitor that has not sent a frame; its first one may be an `auth` of another client
        self.is_ambient = identity is not None and is_ambient(hub, scope)
        self._hub = hub
        self._scope = scope
        self._identity = identity
        # Whether requests and bytes of the client are counted (`hub.rates`). Stored here, since each frame of a socket
        # needs it.
        self.is_counted = identity is not None and self._is_counted(identity)
        self._slot: ConnectionSlot | None = None
        self._on_expiry: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.ticket = ticket

    @property
    def identity(self) -> Identity:
        """Return the identity. Raises Unauthenticated before it is known."""
        if self._identity is None:
            raise not_authenticated()
        return self._identity

    @property
    def is_known(self) -> bool:
        """Return whether the identity is known."""
        return self._identity is not None

    @property
    def is_expired(self) -> bool:
        """Return whether the identity has expired."""
        identity = self._identity
        # Checked inline: this runs for every frame of a socket, and most identities of servers never expire.
        return identity is not None and identity.expires_at_ms is not None and identity.is_expired(self._now_ms())

    @property
    def is_renewable(self) -> bool:
        """Return whether the hub has a verifier to which a new token can be sent."""
        return self._hub.authenticate is not None

    def left_s(self) -> float:
        """Return the seconds until the identity expires."""
        return float("inf") if self._identity is None else left_s(self._hub, self._identity)

    def _now_ms(self) -> int:
        return self._hub.clock.now_ms()

    async def renew(self, token: str) -> Identity:
        """Verify a token. The first one sets the identity; later ones must be of the same client.

        Without a verifier a token is ignored, as in the header of a request.
        Raises Unauthenticated, Expired, Forbidden, Busy, and TooMany if the client has no connection slot left. After
        an error the credentials are as before.
        """
        if not self.is_renewable:
            return self.identity
        identity = await identity_by_token(self._hub, self._scope, token)
        if self._identity is not None and self.is_ambient and identity.client_id != self._identity.client_id:
            self._leave_slot()
            self._identity = None
        if self._identity is not None and identity.client_id != self._identity.client_id:
            raise Forbidden(
                f"the token is of client {identity.client_id!r}, but client {self._identity.client_id!r} opened this "
                "connection; open another connection for another client"
            )
        if self._identity is None:
            self._slot = self._slot or self._take_slot(identity)
            mark_known(self._scope)
        self._identity = identity
        self.is_counted = self._is_counted(identity)
        self._set_timer()
        return identity

    def describe(self) -> dict[str, Any]:
        """Return the client's id, if it has one, and the seconds until the identity expires."""
        return describe_caller(self._hub, self.identity)

    # Rates

    def take_slot(self) -> None:
        """Take a connection slot of the client. Raises TooMany."""
        self._slot = self._take_slot(self.identity)

    def count_request(self, size: int) -> None:
        """Count a frame of `size` bytes from the client. Raises TooMany."""
        if self.is_counted:
            self._hub.rates.request(self.identity, peer_of(self._scope), size=size)

    def charge(self, size: int) -> None:
        """Count `size` bytes that a request of the client has caused; never raises."""
        if self.is_counted:
            charge(self._hub, self.identity, self._scope, size)

    def charge_batch(self, batch: EncodedBatch) -> None:
        """Count the bytes of the first batch of a stream."""
        self.charge(batch.encoded_bytes)

    @property
    def peer(self) -> str:
        """Return the address of the connection."""
        return peer_of(self._scope)

    def leave(self) -> None:
        """Give back the connection slot and stop the timer. A second call has no effect."""
        self._on_expiry = None
        self._set_timer()
        self._leave_slot()

    def _leave_slot(self) -> None:
        if self._slot is not None:
            self._slot.leave()
            self._slot = None

    def _is_counted(self, identity: Identity) -> bool:
        return self._hub.authenticate is not None and not identity.is_trusted

    def _take_slot(self, identity: Identity) -> ConnectionSlot:
        # Without a verifier every caller is on this machine, so its rates are not limited, even if it has a ticket.
        return self._hub.rates.connect(identity, peer_of(self._scope)) if self.is_renewable else ConnectionSlot()

    # Expiry

    def watch(self, on_expiry: Callable[[], None]) -> None:
        """Call `on_expiry` when the identity has expired, unless a token renews it before."""
        self._on_expiry = on_expiry
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_expiry is None or self._identity is None or self._identity.expires_at_ms is None:
            return
        self._timer = asyncio.get_running_loop().call_later(min(self.left_s(), _MAX_TIMER_S), self._check_expiry)

    def _check_expiry(self) -> None:
        if self._on_expiry is not None and self.is_expired:
            self._on_expiry()
        else:
            self._set_timer()  # the timer fired a little early, or it was only one step


def left_s(hub: HubCore, identity: Identity) -> float:
    """Return the seconds until `identity` expires."""
    if identity.expires_at_ms is None:
        return float("inf")
    return max(0.0, (identity.expires_at_ms - hub.clock.now_ms()) / 1000)
