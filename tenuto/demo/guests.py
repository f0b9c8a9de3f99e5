"""Guests: people of the local network with an invitation that works once.

Layer: demo.

With `--lan` the hub needs a verifier: `Guests`. An invitation is a secret in the fragment of a link, which a browser
sends to no server by itself. The page trades it for a cookie with a token, signed with a key that the supervisor keeps:
it outlives a killed server; open invitations do not.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import urlencode

import jwt
from msgspec.structs import replace

from tenuto.core.errors import TenutoError, TooMany, Unauthenticated
from tenuto.demo.guide import CHANNELS
from tenuto.hub.access.identity import CAPABILITIES, Identity, Scope
from tenuto.hub.access.tokens import jwt_verifier

INVITE_S, STAY_S = 600.0, 12 * 3600.0
MOST_INVITES = 20  # limit of open invitations; beyond it the oldest one ends
MOST_GUESSES, GUESSES_S = 10, 60.0  # limit of wrong secrets from one address within a time
MOST_GUESSERS = 1_000  # limit of addresses whose wrong secrets are counted
COOKIE = "tenuto_demo"  # also the audience of the tokens
AGENT_S = 365 * 24 * 3600.0  # an agent's token outlives each demo

_RIGHTS = frozenset({"subscribe", "history", "publish", "presence", "command"})
_HOW = ("Calm", "Quick", "Kind", "Bold", "Quiet", "Bright", "Lucky", "Gentle", "Merry", "Clever", "Sunny", "Brave")
_WHO = ("Otter", "Seal", "Heron", "Whale", "Crab", "Puffin", "Urchin", "Limpet", "Dolphin", "Turtle", "Gull", "Squid")


class NoInvite(TenutoError):
    """The secret is not that of an open invitation."""

    code, status, title = "no_invite", 403, "No invitation"


class Guests:
    """The people and agents of a demo that other machines reach: `verify` knows them by the tokens that it signs."""

    def __init__(self, address: str, *, key: str, now_s: Callable[[], float] = time.time) -> None:
        self.address = address
        self._key = key
        self._now_s = now_s
        self.verify = jwt_verifier(secret=key, audience=COOKIE, cookie=COOKIE, leeway_s=0, now_s=now_s)
        self._open: dict[str, float] = {}  # for each secret of an open invitation the time of its end, oldest first
        self._guesses: OrderedDict[str, list[float]] = OrderedDict()  # for each address the times of its wrong secrets

    async def invited(self, scope: Scope) -> Identity:
        """Return a guest's identity, for its own chats. Raises Unauthenticated without one: None means a visitor."""
        if (known := await self.verify(scope)) is None:
            raise Unauthenticated("this chat needs an invitation; open the link of one in this browser")
        return replace(known, grants={"chat:{sub}": _RIGHTS, "chat:{sub}.*": _RIGHTS})

    async def person(self, scope: Scope) -> str | None:
        """Return the id of the person that the cookie of a request names, if it does."""
        with suppress(Unauthenticated):
            if (known := await self.verify(scope)) is not None:
                return known.client_id
        return None

    def cookie_of(self, person: str) -> str:
        """Return the value of the cookie of a new person."""
        return _token(self._key, person, CHANNELS, _RIGHTS, self._now_s() + STAY_S)

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

    def join(self, secret: str, peer: str) -> str:
        """Return the id of a new person for the secret of an invitation, which ends. Raises NoInvite, TooMany."""
        now_s = self._now_s()
        self._check_guesses(peer, now_s)
        # all secrets, each in constant time, so that the duration shows neither which one fits nor how much of it
        fitting = [known for known in self._open if hmac.compare_digest(known.encode(), secret.encode())]
        if not fitting or self._open.pop(fitting[0]) <= now_s:
            self._guesses.setdefault(peer, []).append(now_s)
            raise NoInvite(f"This invitation was used, or is older than {INVITE_S / 60:.0f} minutes. Ask for another.")
        return f"{secrets.choice(_HOW)}-{secrets.choice(_WHO)}-{secrets.token_hex(4)}".lower()

    def _check_guesses(self, peer: str, now_s: float) -> None:
        """Raise TooMany if too many secrets from the address `peer` were wrong. Forget old guesses."""
        if guesses := [at_s for at_s in self._guesses.pop(peer, ()) if now_s - at_s < GUESSES_S]:
            self._guesses[peer] = guesses
        while len(self._guesses) > MOST_GUESSERS:
            self._guesses.popitem(last=False)
        if len(guesses) >= MOST_GUESSES:
            wrong = f"{MOST_GUESSES} secrets from this address were wrong within {GUESSES_S:.0f} s"
            raise TooMany(f"{wrong}; wait a minute, and ask for a new invitation", limit=MOST_GUESSES)


def shown_person(person: str | None) -> dict[str, str] | None:
    """Return a person as the page shows it. The name is the words of the id."""
    return {"id": person, "name": " ".join(person.split("-")[:2]).title()} if person is not None else None


def agent_token(key: str) -> str:
    """Return the token of the agents."""
    return _token(key, "guide", "*", CAPABILITIES, time.time() + AGENT_S)


def _token(key: str, client_id: str, pattern: str, capabilities: Iterable[str], until_s: float) -> str:
    claims = {"sub": client_id, "aud": COOKIE, "exp": until_s, "tenuto": {pattern: sorted(capabilities)}}
    return jwt.encode(claims, key)
