"""Tickets: short-lived signed permissions to open one stream, for EventSource, which cannot send a token.

Layer: hub.

A ticket is part of a URL, and URLs end up in logs, so a ticket alone opens a stream for a minute only. The cursors of
that stream carry a seal (a signature made from the ticket); a client that reconnects with such a cursor continues the
stream until the identity ends. Tickets are not stored: each process with the key verifies them. Safe to change: the
fields, since a page whose ticket is refused requests a new one. Not safe: reading a field before the signature is
verified.

The keys of tickets and of visitors come from the app. A hub that got none generates one, and keeps it as a note in the
store unless the store has one already (`share_key`), so the hubs that share a store, and later starts, use the same
key. Tickets live for hours, so an exclusive store gets no key of them: it stays in its process.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from msgspec import Struct
from msgspec.json import Decoder

from tenuto.core.errors import Forbidden, LocalError, Unauthenticated, shown
from tenuto.core.events import Cursor, encode_json
from tenuto.hub.access.identity import Expired, Identity
from tenuto.hub.clock import Clock
from tenuto.hub.committer import in_time
from tenuto.stores.base import Store

MIN_KEY_BYTES = 32


class Keyed:
    """A component that signs with the first of its keys, and verifies with all of them."""

    key_note: ClassVar[str]  # name of the note that keeps its key
    keeps_key_always: ClassVar[bool] = False  # True: an exclusive store keeps the key, too

    def __init__(self, keys: Sequence[bytes], what: str) -> None:
        """Raise LocalError for a key that is too short; `what` names it. Without keys one is generated."""
        if any(len(key) < MIN_KEY_BYTES for key in keys):
            raise LocalError(
                f"{what} has {min(map(len, keys))} bytes, expected at least {MIN_KEY_BYTES} bytes; make one with: "
                "openssl rand -base64 48"
            )
        self.generated = None if keys else secrets.token_bytes(MIN_KEY_BYTES)  # the key, if the app has given none
        self._keys = list(keys) if self.generated is None else [self.generated]

    async def share_key(self, store: Store) -> None:
        """Use the key in `store`, and keep the generated one there if it has no key. Raises StoreUnavailable."""
        if self.generated is None or (store.is_exclusive and not self.keeps_key_always):
            return
        # of two hubs that start on a new store at the same moment, one keeps its key
        await in_time(store.note({self.key_note: self.generated}, expected={self.key_note: None}), store.name)
        self._keys = [(await in_time(store.notes(self.key_note), store.name))[self.key_note]]

    def has_signed(self, purpose: str, text: str, given: str) -> bool:
        """Return whether `given` is the signature of `text` for `purpose` by one of the keys."""
        return any(hmac.compare_digest(signature(key, purpose, text).encode(), given.encode()) for key in self._keys)


START_S = 60  # seconds in which the stream must be opened
# For an identity without an expiry, the time after which its stream must get a new ticket: the verifier is not called
# while a stream reconnects by itself.
MAX_LIFE_S = 12 * 3600
READING = ("subscribe", "history")  # the only capabilities that a ticket may carry
MAX_CHARACTERS = 1024  # of a ticket; one with the longest names has some 500
_MAC_BYTES = 16  # of the 32 of SHA-256: enough against guessing, and short in URLs and cursors
_SIGNED_CHARACTERS = 23  # a letter and a signature
_SEAL = "k"  # first letter of a seal in a cursor's extra field; other fields begin with other letters
_MARK = "h"  # first letter of the signature in a cursor that was given to a client without the capability `history`
_NAME = "n"  # first letter of the name of an answer, in cursors of the response that created the answer
_NAMED_CHARACTERS = 18  # length of the ids that the hub makes


class Ticket(Struct, frozen=True, kw_only=True, array_like=True):
    """The right of a client to read one channel by a stream that begins soon. The fields are signed in this order."""

    id: str
    channel: str
    client_id: str | None
    capabilities: list[str]
    start_by_ms: int
    expires_at_ms: int

    def identity(self) -> Identity:
        """Return the identity of the ticket's owner, limited to the rights of the ticket."""
        grants = {self.channel: frozenset(self.capabilities)}
        return Identity(client_id=self.client_id, grants=grants, expires_at_ms=self.expires_at_ms)


_ticket = Decoder(Ticket)


class Replaceable(Protocol):
    """A stream that was opened with a ticket."""

    def replace(self) -> None:
        """End this stream, because the client has opened the same stream again."""


class Tickets(Keyed):
    """Issues and verifies tickets."""

    key_note = "ticket-key/0"

    def __init__(self, keys: Sequence[bytes] = (), *, now_ms: Callable[[], int] | None = None) -> None:
        super().__init__(keys, "ticket key")
        self._now_ms = now_ms or Clock().now_ms
        self._open: dict[str, Replaceable] = {}  # the open streams by the ids of their tickets

    def __repr__(self) -> str:
        return f"Tickets({len(self._keys)} keys, {len(self._open)} open)"

    def issue(self, identity: Identity, channel: str) -> str:
        """Return a ticket for one stream of `channel`. Raises Forbidden unless `identity` may subscribe to it."""
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
        body = _base64(encode_json(ticket))
        return f"{body}.{signature(self._keys[0], 'ticket', body)}"

    def read(self, text: str, channel: str, last: Cursor | None) -> Ticket:
        """Return the ticket in `text` for a stream of `channel` that begins, or reconnects with the cursor `last`.

        Raises Unauthenticated, Expired, and Forbidden if the ticket is for another channel.
        """
        ticket = self._verified(text)
        now_ms = self._now_ms()
        if now_ms >= ticket.expires_at_ms:
            raise Expired("identity behind the ticket has expired; request another ticket with a new token")
        if ticket.channel != channel:
            raise Forbidden(f"ticket is for another channel than {shown(channel)}; request one for this channel")
        if now_ms >= ticket.start_by_ms and not self._is_sealed(ticket, last):
            raise Expired(f"ticket was issued more than {START_S} s ago; request another one")
        return ticket

    def seal(self, ticket: Ticket) -> str:
        """Return the seal that cursors of the ticket's stream carry in their extra field."""
        return _SEAL + signature(self._keys[0], "stream", ticket.id)

    def mark(self, cursor: Cursor, client_id: str | None, channel: str) -> str:
        """Return the signature by which the server later recognises that it gave `cursor` to this client."""
        return _MARK + signature(self._keys[0], "seen", _seen(cursor, client_id, channel))

    def is_marked(self, cursor: Cursor, client_id: str | None, channel: str) -> bool:
        """Return whether the signature in `cursor` proves that it was given to this client."""
        mark = split_seal(cursor.extra)[1][:_SIGNED_CHARACTERS]
        seen = _seen(cursor, client_id, channel)
        return mark.startswith(_MARK) and self.has_signed("seen", seen, mark[len(_MARK) :])

    def name(self, channel: str, message_id: str) -> str:
        """Return the signed name of an answer, which cursors of the answer's reader carry in their extra field.

        An EventSource that reconnects sends it back, and joins the answer instead of beginning another one. The name is
        empty if the app has chosen the id.
        """
        if len(message_id) != _NAMED_CHARACTERS:
            return ""
        return _NAME + signature(self._keys[0], "answer", f"{channel}/{message_id}") + message_id

    def named(self, cursor: Cursor, channel: str) -> str | None:
        """Return the id of the answer that `cursor` names; None if it names none or the signature is wrong."""
        name = split_seal(cursor.extra)[0]
        mac, message_id = name[1:-_NAMED_CHARACTERS], name[-_NAMED_CHARACTERS:]
        is_ours = name.startswith(_NAME) and self.has_signed("answer", f"{channel}/{message_id}", mac)
        return message_id if is_ours else None

    def opened(self, ticket: Ticket, stream: Replaceable) -> None:
        """Record `stream` as the open stream of the ticket, in place of an older one."""
        older = self._open.get(ticket.id)
        self._open[ticket.id] = stream
        if older is not None and older is not stream:
            older.replace()

    def closed(self, ticket: Ticket, stream: Replaceable) -> None:
        """Forget `stream`, which has ended."""
        if self._open.get(ticket.id) is stream:
            del self._open[ticket.id]

    def _verified(self, text: str) -> Ticket:
        """Return the ticket in `text` after its signature was verified. Raises Unauthenticated."""
        body, _, mac = text.partition(".")
        if len(text) > MAX_CHARACTERS or not text.isascii() or not self.has_signed("ticket", body, mac):
            raise Unauthenticated("ticket was not signed with a key of this server; request another one")
        try:
            return _ticket.decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except ValueError:  # signed by this server, but by another version of it
            raise Unauthenticated("ticket was issued by another version of the server; request another one") from None

    def _is_sealed(self, ticket: Ticket, last: Cursor | None) -> bool:
        """Return whether `last` is a cursor of the ticket's stream."""
        seal = last.extra[:_SIGNED_CHARACTERS] if last is not None else ""
        return seal.startswith(_SEAL) and self.has_signed("stream", ticket.id, seal[len(_SEAL) :])


def split_seal(extra: str) -> tuple[str, str]:
    """Split a cursor's extra field into the seal or name (may be empty) and the rest."""
    length = _SIGNED_CHARACTERS if extra.startswith((_SEAL, _NAME)) else 0
    length += _NAMED_CHARACTERS if extra.startswith(_NAME) else 0
    return extra[:length], extra[length:]


def _seen(cursor: Cursor, client_id: str | None, channel: str) -> str:
    # a client id contains no slash, so different clients have different texts
    return f"{client_id or ''}/{channel}/{cursor.epoch}:{cursor.serial}"


def signature(key: bytes, purpose: str, text: str) -> str:
    """Return the signature of `text` for `purpose`: 22 characters of letters, digits, - and _."""
    digest = hmac.digest(key, f"{purpose}:{text}".encode(), "sha256")
    return _base64(digest[:_MAC_BYTES])


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
