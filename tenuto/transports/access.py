"""Access control: the one place that decides, for all transports, whether a request may proceed.

Layer: transports.

Two questions are decided here. First, the identity of the caller: the app's verifier returns it or, without a verifier,
the request must plainly come from this machine (`origin`); the caller on the control socket is the operator. Second,
whether this caller may send the request: by its origin, ticket, capabilities (`operations`) and rates, and by rules
about the content of requests, such as roles. `core.decide` later checks whose message a request concerns.

Closed by default: any web page can reach a loopback port, and any proxy makes the whole world look like loopback. So
without a verifier only programs and pages of this machine and user are accepted, and no request that came through a
proxy. Every rule is part of `docs/protocol.md`, section 10; loosening one needs a decision record.

`Credentials` are the identity behind one request or connection, with its rates. During a stream or a socket, unlike
during a plain request, the identity can expire or be renewed, and the connection takes a slot: call `leave` at its end.

Which bytes of a client count, and when, is decided here, too (decision 0037); `hub.access.rates` keeps the counts. A
request counts its own bytes (also those of a body that is refused or does not end), those of its response or of the
batch with which its stream begins, and those of its event for each viewer of the channel. Later events of a stream
count for the clients whose requests caused them, and not for the viewer. The bytes of some requests are known only when
they are done. Until then each counts as `EXPECTED_BYTES`, so that a client can run only a few at once. Bodies that have
not ended are bounded, too, because a slow body holds memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, InitVar, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace
from starlette.exceptions import HTTPException

from tenuto.core.deltas import TurnStatus
from tenuto.core.errors import Busy, Draining, Forbidden, InvalidName, TenutoError, TooMany, Unauthenticated, shown
from tenuto.core.events import Cursor, parse_cursor
from tenuto.core.model import Message
from tenuto.core.names import check_channel, check_id, command_key
from tenuto.core.requests import Caller, CreateMessage, ReplyCommand, Request, SendCommand, UpdateMessage
from tenuto.core.state import part_bytes
from tenuto.hub.access.identity import EVERYWHERE, Expired, Identity, Scope, claimed_identity, header
from tenuto.hub.access.rates import FREE_BYTES, OPEN_BODIES, UNCOUNTED, ConnectionSlot, OpenBody
from tenuto.hub.access.tickets import Ticket, Tickets
from tenuto.hub.access.visitors import VisitorVerifier, check_person, visit_in
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.hub.people.presence import check_member, check_signal
from tenuto.transports.codec import Query, is_operator, peer_of, refusals, unexpected
from tenuto.transports.operations import Operation
from tenuto.transports.origin import check_origin, connection_of, mark_known

# longest time that the app's verifier may take, which may query a database while the caller waits
VERIFY_TIMEOUT_S = 10.0
_CREDENTIAL_HEADERS = (b"authorization", b"cookie")
# Types of parts that only writers create: a tool call or a source from a user would look like the agent's.
_WRITER_PARTS = ("tool", "source")

OPERATOR = Identity()  # the caller on the control socket: all capabilities on all channels


# The identity of the caller


async def identify(hub: HubCore, scope: Scope) -> Identity:
    """Return the identity behind a request that has passed `check_peer`.

    Raises Unauthenticated, Forbidden, InvalidName, TooMany, Busy.
    """
    identity = await known_identity(hub, scope)
    if identity is None:
        with refusals.logged(scope):
            raise Unauthenticated("the request carries no credentials that this hub accepts; send a valid token")
    return identity


async def known_identity(hub: HubCore, scope: Scope) -> Identity | None:
    """Return the identity as `identify` does, but None without credentials or with credentials unknown to the app."""
    if is_operator(scope):
        return OPERATOR
    verify = hub.authenticate
    if verify is None:
        claimed = claimed_identity(scope)  # taken as it is: `check_peer` has admitted only this machine
        check_id(claimed.client_id, "a client id")
        mark_known(scope)
        return claimed
    check_origin(hub, scope)
    if isinstance(verify, VisitorVerifier):
        await start_hub(hub)  # the store has the key of visitors
    with refusals.logged(scope):
        identity = await _verified(scope, partial(verify, scope))
        if identity is not None:
            check_identity(hub, identity)
    if identity is not None and isinstance(verify, VisitorVerifier) and visit_in(scope, verify).is_new:
        hub.rates.new_visitor(peer_of(scope))  # the peer stays unknown: each request without a proof gets a new id
    elif identity is not None:
        hub.rates.request(identity, peer_of(scope))
        mark_known(scope)  # only now, because a refused request must not lift the bounds on its connection
    return identity


async def identity_by_token(hub: HubCore, scope: Scope, token: str) -> Identity:
    """Return the identity that `token` proves, which the socket with `scope` has sent.

    A verifier with a method `verify_token` is called with the token. Any other verifier is called with the socket's
    scope, the token as its `Authorization`, and without the cookies: only the token counts. Raises Unauthenticated,
    Busy, InvalidName.
    """
    verify = hub.authenticate
    assert verify is not None  # else `Credentials.renew` ignores the token
    if not token.isascii() or not token.isprintable():
        raise Unauthenticated(f"token must be printable ASCII text, got other text of {len(token)} characters")
    if isinstance(verify, VisitorVerifier):
        visitor = verify.identity_by_token(token)
        if visitor is not None:
            return visitor
        verify = verify.verify  # the verifier of persons, if the app has one
        if verify is None:
            raise Unauthenticated("token is of no visitor of this hub; get one with POST /v1/visitor")
    by_token: Callable[[str], Awaitable[Identity | None]] | None = getattr(verify, "verify_token", None)
    if by_token is not None:
        identity = await _verified(scope, partial(by_token, token))
    else:
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in _CREDENTIAL_HEADERS]
        headers = [*kept, (b"authorization", b"Bearer " + token.encode())]
        identity = await _verified(scope, partial(verify, {**scope, "headers": headers}))
    if identity is None:
        raise Unauthenticated("the hub's verifier does not accept this token; send another one")
    if isinstance(hub.authenticate, VisitorVerifier):
        check_person(identity)  # a person must not have a visitor's id
    return identity


def check_identity(hub: HubCore, identity: Identity) -> None:
    """Raise InvalidName for an invalid client id, and Expired for an identity that has expired already."""
    if identity.client_id is not None and "~" in check_id(identity.client_id, "a client id"):
        raise InvalidName(
            f"client id {identity.client_id!r} contains ~, which separates a client id from the suffix of a member; "
            "choose another id"
        )
    if identity.is_expired(hub.clock.now_ms()):
        client = "this client" if identity.client_id is None else f"client {shown(identity.client_id)}"
        raise Expired(f"the identity of {client} has expired; send a new token")


async def _verified(scope: Scope, verify: Callable[[], Awaitable[Identity | None]]) -> Identity | None:
    """Return the result of the app's verifier.

    A TenutoError passes. A 401 or 403 of Starlette refuses; any other exception is logged and not sent to the peer.
    """
    connection = connection_of(scope)
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S) as limit:
            if connection is not None:
                connection.verifier_began(limit)  # it ends `limit` if the peer is gone
            try:
                return await _identity_from(verify)
            finally:
                if connection is not None:
                    connection.verifier_ended()
    except TenutoError:
        raise
    except TimeoutError:
        raise Busy(f"authentication timed out after {VERIFY_TIMEOUT_S:.0f} s; try again") from None
    except Exception as error:
        status = error.status_code if isinstance(error, HTTPException) else None  # of a dependency of the app's routes
        if status == 401:
            return None
        if status == 403:
            raise Forbidden("the verifier of this hub refuses the caller") from None
        refusals.log_failure(peer_of(scope), error)
        raise unexpected() from None


async def _identity_from(verify: Callable[[], object]) -> Identity | None:
    """Return the identity that `verify` returns. Raises TypeError if it is not as `Authenticate` demands."""
    result = verify()
    if not isinstance(result, Awaitable):
        raise TypeError(f"authenticate must be an async function, it returned a value of type {type(result).__name__}")
    identity = await result
    if identity is not None and not isinstance(identity, Identity):
        raise TypeError(f"authenticate must return an Identity or None, got a value of type {type(identity).__name__}")
    return identity


# The rights of the caller


def check_operation(identity: Identity, operation: Operation, channel: str) -> None:
    """Raise Forbidden unless `identity` holds every capability that `operation` needs, on `channel` or on all."""
    for capability in operation.needs:
        identity.check(capability, EVERYWHERE if operation.is_for_all else channel)


def check_content(request: Request, identity: Identity, channel: str) -> None:
    """Raise Forbidden if the content of a request needs `append` or `publish` besides, and `identity` lacks it."""
    if isinstance(request, SendCommand) and request.options:  # they are stored as messages
        identity.check("publish", channel)
    if not isinstance(request, CreateMessage | UpdateMessage):
        return
    is_by_writer = isinstance(request, CreateMessage) and (request.role != "user" or request.status == "streaming")
    # the parts are not validated yet, so any type may appear
    if is_by_writer or any(part.get("type") in _WRITER_PARTS for part in request.parts or ()):
        identity.check("append", channel)


def key_of(hub: HubCore, identity: Identity, channel: str, request: Request, id: str | None) -> str:
    """Return the key under which `request` is decided, with a new id for None. Raises Forbidden, InvalidName."""
    check_content(request, identity, channel)
    key = hub.clock.id_or_new(id)
    return command_key(key) if isinstance(request, SendCommand | ReplyCommand) else key  # a command's id with a mark


def member_of(identity: Identity, member: str | None) -> str:
    """Return the member id `member`, by default the client id, else `anonymous`. Raises Forbidden, InvalidName."""
    return check_member(member or identity.client_id or "anonymous", identity.client_id)


# Admission to the streams of a channel


async def start_hub(hub: HubCore) -> None:
    """Start the hub on first use. Raises Draining if the app has closed it: a late request must not open its store."""
    if hub.is_draining and not hub.is_running:
        raise Draining("the hub of this server is closed; connect to another server, or to this one after its restart")
    await hub.start()


async def check_serving(hub: HubCore) -> None:
    """Start the hub. Raises Draining and StoreUnavailable if it serves no viewers, before any other check."""
    await start_hub(hub)
    if hub.is_draining:
        raise Draining("this server is shutting down; connect to another server, or to this one after its restart")
    hub.viewing.check()  # raises if the hub is cut off from its store


async def admit_stream(
    hub: HubCore, scope: Scope, query: Query | None, channel: str, operation: Operation
) -> Credentials:
    """Return the credentials for a stream of `channel`: from a ticket, or as for any request.

    Without `query` a ticket does not count: a client that polls can send a header.
    Raises Draining, StoreUnavailable, InvalidName, Unauthenticated, Expired, Forbidden and the errors of `identify`.
    """
    await check_serving(hub)
    text = query.text("ticket") if query is not None else None
    ticket: Ticket | None = None
    if text is None:
        identity = await identify(hub, scope)
        check_channel(channel)
    else:
        last = parse_cursor(header(scope, b"last-event-id"))  # its seal lets a stream reconnect with an old ticket
        check_channel(channel)
        with refusals.logged(scope):
            ticket = hub.tickets.read(text, channel, last)
        identity = ticket.identity()
        if hub.authenticate is not None:  # else no traffic is limited
            hub.rates.request(identity, peer_of(scope))
        mark_known(scope)
    check_operation(identity, operation, channel)
    return Credentials(hub, scope, identity, ticket=ticket)


class ResumeLimits(NamedTuple):
    """Signs and checks the cursors of one client on one channel, if the client lacks the capability `history`.

    Such a client may resume only from cursors that the server gave to it.
    """

    tickets: Tickets
    client_id: str | None
    channel: str

    def known(self, cursor: Cursor | None) -> Cursor | None:
        """Return `cursor` if the server gave it to this client, else None."""
        is_ours = cursor is not None and self.tickets.is_marked(cursor, self.client_id, self.channel)
        return cursor if is_ours else None

    def mark(self, text: str) -> str:
        """Return the signature to add to the cursor `text` before it is sent to the client."""
        cursor = parse_cursor(text)
        assert cursor is not None  # cannot be None, because the server itself wrote the cursor
        return self.tickets.mark(cursor, self.client_id, self.channel)


def allowed_start(
    hub: HubCore, identity: Identity, channel: str, cursor: Cursor | None, history: int | None
) -> tuple[ResumeLimits | None, Cursor | None, int | None]:
    """Return the resume limits of a viewer that asks for `cursor` and `history`, and which of the two it may have.

    A caller with the capability `history` has no limits. To others a new start shows no finished messages.
    """
    if identity.has("history", channel):
        return None, cursor, history
    limits = ResumeLimits(hub.tickets, identity.client_id, channel)
    return limits, limits.known(cursor), 0


# Low enough for twenty pages at once: each counts as four requests until it is done.
EXPECTED_BYTES = 512 * 1024
# Operations with responses that are much larger than the requests: pages, and whole messages.
_READS = ("history", "read", "update", "channels")


def expected_bytes(hub: HubCore, operation: Operation, scope: Scope) -> int:
    """Return the bytes that an HTTP request counts for while it is carried out."""
    may_be_large = operation.name in _READS or header(scope, b"transfer-encoding") is not None  # no declared length
    return max(declared_bytes(scope, hub.limits.request_bytes), EXPECTED_BYTES if may_be_large else 0)


def declared_bytes(scope: Scope, limit_bytes: int) -> int:
    """Return the declared length of an HTTP request's body, at most the `limit_bytes` that are read; 0 without one."""
    length = header(scope, b"content-length")
    if length is None or not (length.isascii() and length.isdigit()):
        return 0
    return min(int(length[:18]), limit_bytes)  # 18 digits exceed any limit; `int` refuses thousands


def event_bytes(hub: HubCore, channel: str, result: Result, size: int) -> int:
    """Return the bytes of a stored request's event for all viewers of its channel; `size` is that of one event."""
    if size <= FREE_BYTES or not result.created:  # included in each request; a repeat makes no event
        return 0
    return (size - FREE_BYTES) * hub.channel(channel).watchers


def turn_bytes(turns: Iterable[TurnStatus]) -> int:
    """Return the bytes of the messages of turns that a route of an app reads."""
    return message_bytes(message for one in turns for message in (one.message, *one.answers) if message is not None)


def message_bytes(messages: Iterable[Message]) -> int:
    return sum(part_bytes(part) for message in messages for part in message.parts)


# A longer timer is set in steps: event loops count time in floats, and none sleeps for longer than a day.
_MAX_TIMER_S = 12 * 3600.0
_NO_SLOT = ConnectionSlot()  # that of a connection that no client holds: to leave it has no effect
_UNKNOWN = Identity(capabilities=frozenset())  # the identity of a socket before its `auth` frame


@dataclass(slots=True, eq=False, repr=False)  # the scope has secrets, which a log of values would show
class Credentials:
    """The identity behind one request or connection. It is used on the hub's loop, and only `renew` waits."""

    _hub: HubCore
    _scope: Scope
    known: InitVar[Identity | None]  # None: not known, or an `auth` frame will bring it
    _: KW_ONLY
    ticket: Ticket | None = None
    # True: a browser chose the credentials of a socket, or had none; the first frame may be another client's `auth`
    is_ambient: bool = False
    refusal: TooMany | None = None  # why a cookie does not count, unless an `auth` frame comes
    peer: str = field(init=False)  # the address of the connection
    identity: Identity = field(init=False)
    # whether requests and bytes of the client are counted (`hub.rates`); kept, as each frame of a socket needs it
    is_counted: bool = field(init=False)
    _slot: ConnectionSlot = _NO_SLOT  # of a stream, poll or socket
    _on_expiry: Callable[[], None] | None = None  # that of `watch`
    _timer: asyncio.TimerHandle | None = None  # of the next check of the expiry

    def __post_init__(self, known: Identity | None) -> None:
        self.peer = peer_of(self._scope)
        self.identity = _UNKNOWN if known is None else known
        self.is_counted = known is not None and self._is_counted(known)

    @property
    def is_known(self) -> bool:
        return self.identity is not _UNKNOWN

    @property
    def is_expired(self) -> bool:
        # Checked inline: this runs for every frame of a socket, and most identities of servers never expire.
        return self.identity.expires_at_ms is not None and self.identity.is_expired(self._hub.clock.now_ms())

    def left_s(self) -> float:
        """Return the seconds until the identity expires."""
        if self.identity.expires_at_ms is None:
            return float("inf")
        return max(0.0, (self.identity.expires_at_ms - self._hub.clock.now_ms()) / 1000)

    async def renew(self, token: str) -> Identity:
        """Verify a token. The first one sets the identity or replaces an ambient one; later ones must be of its client.

        Without a verifier a token is ignored, as in the header of a request.
        Raises Unauthenticated, Expired, Forbidden, Busy, and TooMany if the client has no connection slot left. After
        an error the identity is as before.
        """
        if self._hub.authenticate is None:
            return self.identity
        with refusals.logged(self._scope):
            identity = await identity_by_token(self._hub, self._scope, token)
            check_identity(self._hub, identity)
        is_other = not self.is_known or identity.client_id != self.identity.client_id
        if is_other and self.is_known:
            if not self.is_ambient:
                raise Forbidden(
                    f"the token is of client {identity.client_id!r}, but client {self.identity.client_id!r} opened "
                    "this connection; open another connection for another client"
                )
            self._slot.leave()
        if is_other:
            self._slot = self._hub.rates.connect(identity, self.peer)
            mark_known(self._scope)
        self.identity = identity
        self.is_counted = self._is_counted(identity)
        self._set_timer()
        return identity

    def describe(self, channel: str | None = None) -> dict[str, Any]:
        """Return data about the caller, for itself: its id, its capabilities on `channel`, and when it expires.

        `expires_s` counts from now, because the clocks of clients are often wrong.
        """
        identity = self.identity
        about: dict[str, Any] = {} if identity.client_id is None else {"id": identity.client_id}
        if channel is not None:
            about["can"] = identity.capabilities_on(channel)
        if identity.expires_at_ms is not None:
            about["expires_s"] = self.left_s()
        return about

    def caller(self, channel: str) -> Caller:
        """Return the caller of a request for `channel`, with the limit of new channels applied."""
        caller, rates = self.identity.caller(channel), self._hub.rates
        if self._hub.questions is not None:
            caller = replace(caller, peer=self.peer)  # a visitor's questions count for its address, too
        return caller if rates.may_begin(self.identity, self.peer) else replace(caller, may_begin=False)

    # Rates

    def take_slot(self) -> None:
        """Take a connection slot of the client. Raises TooMany."""
        # Without a verifier every caller is on this machine, so its rates are not limited, even if it has a ticket.
        if self._hub.authenticate is not None:
            self._slot = self._hub.rates.connect(self.identity, self.peer)

    def count_request(self, size: int) -> None:
        """Count a frame of `size` bytes from the client. Raises TooMany."""
        if self.is_counted:
            self._hub.rates.request(self.identity, self.peer, size=size)

    def charge(self, size: int) -> None:
        """Count `size` bytes that a request has caused; a negative number gives them back. Never raises."""
        if self.is_counted:
            self._hub.rates.charge(self.identity, self.peer, size=size)

    def count_signal(self, name: str) -> None:
        """Count a signal. Raises TooMany; Forbidden for a name that only the server may use."""
        self._hub.rates.signal(self.identity, self.peer)
        check_signal(name)

    def count_new_channel(self, result: Result) -> None:
        """Count a new channel if the stored request was its first entry."""
        if result.created and result.serial == 1:
            self._hub.rates.began(self.identity, self.peer)

    def open_body(self, limit_bytes: int) -> OpenBody:
        """Return the open body of a request, of at most `limit_bytes`, which counts its bytes."""
        if not self.is_counted:
            return UNCOUNTED
        # a client may send two of the largest bodies of an adapter at once, which are those of a message
        max_bytes = max(OPEN_BODIES * self._hub.limits.request_bytes, 2 * limit_bytes)
        return self._hub.rates.body(self.identity, self.peer, largest_bytes=limit_bytes, max_bytes=max_bytes)

    def leave(self) -> None:
        """Give back the connection slot and stop the timer. A second call has no effect."""
        self._on_expiry = None
        self._set_timer()  # only stops it now
        self._slot.leave()

    def _is_counted(self, identity: Identity) -> bool:
        # without a verifier every caller is on this machine, and its traffic is not limited
        return self._hub.authenticate is not None and not identity.is_trusted

    # Expiry

    def watch(self, on_expiry: Callable[[], None]) -> None:
        """Call `on_expiry` when the identity has expired, unless a token renews it before."""
        self._on_expiry = on_expiry
        self._set_timer()

    def _set_timer(self) -> None:
        """Set the timer of the next check, in place of an earlier one; none without `watch` or without an expiry."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_expiry is None or self.identity.expires_at_ms is None:
            return
        self._timer = asyncio.get_running_loop().call_later(min(self.left_s(), _MAX_TIMER_S), self._check_expiry)

    def _check_expiry(self) -> None:
        if self._on_expiry is not None and self.is_expired:
            self._on_expiry()
        else:
            self._set_timer()  # the timer fired a little early, or it was only one step
