"""Guests: people of the local network with an invitation that works once.

Layer: demo.

With `--lan` the hub needs a verifier: `Guests`. An invitation is a secret in the fragment of a link, which a browser
sends to no server by itself. The page trades it for a cookie, signed with a key that the supervisor keeps: it outlives
a killed server; open invitations do not.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlencode

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import TenutoError, TooMany, Unauthenticated
from tenuto.demo.guide import CHANNELS
from tenuto.hub.access.identity import Identity, Scope, header
from tenuto.hub.access.tickets import has_signature, signature

INVITE_S, STAY_S = 600.0, 12 * 3600.0
MOST_INVITES = 20  # limit of open invitations; beyond it the oldest one ends
MOST_GUESSES, GUESSES_S = 10, 60.0  # limit of wrong secrets from one address within a time
MOST_GUESSERS = 1_000  # limit of addresses whose wrong secrets are counted
COOKIE = "tenuto_demo"

_RIGHTS = frozenset({"subscribe", "history", "publish", "presence", "command"})
_HOW = ("Calm", "Quick", "Kind", "Bold", "Quiet", "Bright", "Lucky", "Gentle", "Merry", "Clever", "Sunny", "Brave")
_WHO = ("Otter", "Seal", "Heron", "Whale", "Crab", "Puffin", "Urchin", "Limpet", "Dolphin", "Turtle", "Gull", "Squid")


class NoInvite(TenutoError):
    """The secret is not that of an open invitation."""

    code, status, title = "no_invite", 403, "No invitation"


class Person(Struct, frozen=True, kw_only=True):
    """A guest, as the cookie names them until `until_s`, in seconds since 1970."""

    id: str
    name: str
    until_s: float


class Guests:
    """The verifier of a demo that other machines reach: it knows its agents by a token, and people by a cookie."""

    reads_cookies = True

    def __init__(self, address: str, *, key: str, agent_token: str, now_s: Callable[[], float] = time.time) -> None:
        self.address = address
        self._key = key.encode()
        self._agent = f"Bearer {agent_token}".encode()
        self._now_s = now_s
        self._open: dict[str, float] = {}  # for each secret of an open invitation the time of its end, oldest first
        self._guesses: OrderedDict[str, list[float]] = OrderedDict()  # for each address the times of its wrong secrets

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return the identity of an agent or of a person; None for a stranger."""
        given = header(scope, b"authorization")
        if given is not None:
            return Identity(client_id="guide") if hmac.compare_digest(given.encode("latin-1"), self._agent) else None
        person = self.person(scope)
        ends_ms = int(person.until_s * 1000) if person is not None else 0
        return Identity(client_id=person.id, grants={CHANNELS: _RIGHTS}, expires_at_ms=ends_ms) if person else None

    async def invited(self, scope: Scope) -> Identity:
        """Return the identity for chats of one's own. Raises Unauthenticated for a stranger, who is no visitor here."""
        if (known := await self(scope)) is None:
            raise Unauthenticated("this chat needs an invitation; open the link of one in this browser")
        return replace(known, grants={"chat:{sub}": _RIGHTS, "chat:{sub}.*": _RIGHTS})

    def person(self, scope: Scope) -> Person | None:
        """Return the person that the cookie of a request names; None without a cookie that this demo has signed."""
        try:
            found = SimpleCookie(header(scope, b"cookie") or "").get(COOKIE)
        except CookieError:
            return None
        body, _, given = (found.value if found is not None else "").partition(".")
        if not body or not has_signature([self._key], COOKIE, body, given):
            return None
        person = msgspec.json.decode(base64.urlsafe_b64decode(body), type=Person)
        return person if person.until_s > self._now_s() else None

    def cookie_of(self, person: Person) -> str:
        """Return the value of the cookie."""
        body = base64.urlsafe_b64encode(msgspec.json.encode(person)).decode()
        return f"{body}.{signature(self._key, COOKIE, body)}"

    def invite(self, channel: str | None = None) -> str:
        """Return a link that lets one person in within INVITE_S, to `channel` if it is given."""
        now_s = self._now_s()
        self._open = {secret: end_s for secret, end_s in self._open.items() if end_s > now_s}
        while len(self._open) >= MOST_INVITES:
            del self._open[next(iter(self._open))]
        secret = secrets.token_urlsafe(18)
        self._open[secret] = now_s + INVITE_S
        query = f"?{urlencode({'channel': channel}, safe=':')}" if channel is not None else ""
        return f"{self.address}/{query}#join={secret}"

    def join(self, secret: str, peer: str) -> Person:
        """Return a new person for the secret of an open invitation, which ends. Raises NoInvite, TooMany."""
        now_s = self._now_s()
        self._check_guesses(peer, now_s)
        # all secrets, each in constant time, so that the duration shows neither which one fits nor how much of it
        fitting = [known for known in self._open if hmac.compare_digest(known.encode(), secret.encode())]
        if not fitting or self._open.pop(fitting[0]) <= now_s:
            self._guesses.setdefault(peer, []).append(now_s)
            raise NoInvite(f"This invitation was used, or is older than {INVITE_S / 60:.0f} minutes. Ask for another.")
        name = f"{secrets.choice(_HOW)} {secrets.choice(_WHO)}"
        person_id = f"{name.lower().replace(' ', '-')}-{secrets.token_hex(4)}"
        return Person(id=person_id, name=name, until_s=now_s + STAY_S)

    def _check_guesses(self, peer: str, now_s: float) -> None:
        if guesses := [at_s for at_s in self._guesses.pop(peer, ()) if now_s - at_s < GUESSES_S]:
            self._guesses[peer] = guesses
        while len(self._guesses) > MOST_GUESSERS:
            self._guesses.popitem(last=False)
        if len(guesses) >= MOST_GUESSES:
            wrong = f"{MOST_GUESSES} secrets from this address were wrong within {GUESSES_S:.0f} s"
            raise TooMany(f"{wrong}; wait a minute, and ask for a new invitation", limit=MOST_GUESSES)
