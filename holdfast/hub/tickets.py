"""Tickets: a short, signed leave to open one stream, for EventSource, which can send no token.

Layer: hub.

A ticket stands in a URL, and URLs end up in logs, so a ticket alone opens a stream for a minute only.
The stream it opened gives out cursors with a seal; whoever comes back with one is that stream, for as long as the
identity behind it lives. Tickets are not stored: any process with the key knows them. Safe to change: the fields, since
a ticket lives as long as a page. Not safe: believing anything of a ticket before its signature.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from holdfast.core.cursor import Cursor
from holdfast.core.errors import Forbidden, LocalError, Unauthenticated
from holdfast.core.events import encode_json
from holdfast.hub.clock import Clock
from holdfast.hub.identity import Expired, Identity

START_S = 60  # to open the stream
# For identities without an end of their own. Nobody is asked again while a stream comes back by itself.
MAX_LIFE_S = 12 * 3600
READING = ("subscribe", "history")  # all that a ticket may pass on
MAX_CHARACTERS = 1024
MIN_KEY_BYTES = 32
_MAC_BYTES = 16
_SEAL = "k"  # begins the seal in a cursor's extra field; other fields begin with other letters
_SEAL_CHARACTERS = 23
_MARK = "h"  # begins the mark of a cursor that was given to one who may not look at what was before
_MARK_CHARACTERS = 23


class Ticket(Struct, frozen=True, kw_only=True, array_like=True):
    """Who may read which channel, by a stream that begins soon. In this order it is signed."""

    id: str
    channel: str
    client_id: str | None
    capabilities: list[str]
    start_by_ms: int
    expires_at_ms: int

    def identity(self) -> Identity:
        """Its owner, as far as the ticket goes."""
        return Identity(
            client_id=self.client_id,
            grants={self.channel: frozenset(self.capabilities)},
            expires_at_ms=self.expires_at_ms,
        )


_ticket = Decoder(Ticket)


class Replaceable(Protocol):
    """A stream that a ticket opened."""

    def replace(self) -> None:
        """The same stream was opened again: end."""


class Tickets:
    """Gives tickets out, and knows them again. `keys` sign and verify: the first signs, all verify.

    Without keys there is one of this process's own: after a restart pages ask for new tickets.
    """

    def __init__(self, keys: Sequence[bytes] = (), *, now_ms: Callable[[], int] | None = None) -> None:
        if any(len(key) < MIN_KEY_BYTES for key in keys):
            raise LocalError(f"a key for tickets has at least {MIN_KEY_BYTES} bytes")
        self._keys = list(keys) or [secrets.token_bytes(MIN_KEY_BYTES)]
        self._now_ms = now_ms or Clock().now_ms
        self._open: dict[str, Replaceable] = {}

    def __repr__(self) -> str:
        return f"Tickets({len(self._keys)} keys, {len(self._open)} open)"

    def issue(self, identity: Identity, channel: str) -> str:
        """A ticket for one stream of `channel`. Raises Forbidden unless `identity` may subscribe to it."""
        identity.check("subscribe", channel)
        now_ms = self._now_ms()
        ends_ms = now_ms + MAX_LIFE_S * 1000
        ticket = Ticket(
            id=secrets.token_urlsafe(9),
            channel=channel,
            client_id=identity.client_id,
            capabilities=[one for one in READING if identity.has(one, channel)],
            start_by_ms=now_ms + START_S * 1000,
            expires_at_ms=ends_ms if identity.expires_at_ms is None else min(ends_ms, identity.expires_at_ms),
        )
        body = _text(encode_json(ticket))
        return f"{body}.{_mac(self._keys[0], 'ticket', body)}"

    def read(self, text: str, channel: str, last: Cursor | None) -> Ticket:
        """The ticket in `text`, for a stream of `channel` that begins, or comes back with the cursor `last`.

        Raises Unauthenticated, Expired, and Forbidden where it is for another channel.
        """
        ticket = self._believed(text)
        now_ms = self._now_ms()
        if now_ms >= ticket.expires_at_ms:
            raise Expired("the identity behind this ticket has expired")
        if ticket.channel != channel:
            raise Forbidden("this ticket is for another channel")
        if now_ms >= ticket.start_by_ms and not self._is_sealed(ticket, last):
            raise Expired(f"a ticket opens a stream within {START_S} s; ask for another one")
        return ticket

    def seal(self, ticket: Ticket) -> str:
        """What the cursors of the ticket's stream carry in their extra field."""
        return _SEAL + _mac(self._keys[0], "stream", ticket.id)

    def mark(self, cursor: Cursor, client_id: str | None, channel: str) -> str:
        """What says of `cursor` that it was given to this client, and not made up by them."""
        return _MARK + _mac(self._keys[0], "seen", _seen(cursor, client_id, channel))

    def is_marked(self, cursor: Cursor, client_id: str | None, channel: str) -> bool:
        """Was `cursor` given to this client?"""
        mark = split_seal(cursor.extra)[1][:_MARK_CHARACTERS]
        seen = _seen(cursor, client_id, channel)
        return mark.startswith(_MARK) and self._is_signed("seen", seen, mark[len(_MARK) :])

    def opened(self, ticket: Ticket, stream: Replaceable) -> None:
        """`stream` is the ticket's now: one open at a time, the newer replaces the older."""
        older = self._open.get(ticket.id)
        self._open[ticket.id] = stream
        if older is not None and older is not stream:
            older.replace()

    def closed(self, ticket: Ticket, stream: Replaceable) -> None:
        """`stream` is over."""
        if self._open.get(ticket.id) is stream:
            del self._open[ticket.id]

    def _believed(self, text: str) -> Ticket:
        body, _, mac = text.partition(".")
        if len(text) > MAX_CHARACTERS or not text.isascii() or not self._is_signed("ticket", body, mac):
            raise Unauthenticated("this is no ticket of this server, or of an earlier life of it; ask for another one")
        try:
            return _ticket.decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (DecodeError, ValueError):  # signed by us: of another version
            raise Unauthenticated("this ticket is of another version; ask for another one") from None

    def _is_sealed(self, ticket: Ticket, last: Cursor | None) -> bool:
        if last is None:
            return False
        seal = last.extra[:_SEAL_CHARACTERS]
        return seal.startswith(_SEAL) and self._is_signed("stream", ticket.id, seal[len(_SEAL) :])

    def _is_signed(self, purpose: str, text: str, mac: str) -> bool:
        given = mac.encode()
        return any(hmac.compare_digest(_mac(key, purpose, text).encode(), given) for key in self._keys)


def split_seal(extra: str) -> tuple[str, str]:
    """A cursor's extra field: the seal, if there is one, and what a stream put there besides."""
    if extra.startswith(_SEAL):
        return extra[:_SEAL_CHARACTERS], extra[_SEAL_CHARACTERS:]
    return "", extra


def _seen(cursor: Cursor, client_id: str | None, channel: str) -> str:
    return f"{client_id or ''}/{channel}/{cursor.epoch}:{cursor.serial}"  # no name has a slash


def _mac(key: bytes, purpose: str, text: str) -> str:
    digest = hmac.digest(key, f"{purpose}:{text}".encode(), "sha256")
    return _text(digest[:_MAC_BYTES])


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
