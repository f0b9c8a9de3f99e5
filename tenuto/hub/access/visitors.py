"""Visitors: callers without an account, each with an id that the hub gives and signs.

Layer: hub, above `identity`. `tenuto.app` adds the part for the routes of an app.

The proof of an id is a cookie, or a token where the page is of another origin. Both are the id, the time of issue and a
signature, and the store keeps no list of visitors. Safe to change: ages and limits. Not safe: reading a field before
its signature is verified, or accepting a token as a cookie, which a foreign page could then plant.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from starlette.exceptions import HTTPException

from tenuto.core.errors import InvalidName, LocalError, TenutoError, shown
from tenuto.core.visitor_ids import RANDOM_BYTES, STEM, is_visitor, new_visitor_id
from tenuto.hub.access.identity import Authenticate, Identity, Scope, cookies_of, header
from tenuto.hub.access.rates import QuestionLimits, Route, enter_route
from tenuto.hub.access.tickets import Keyed, signature
from tenuto.hub.clock import Clock

# A cookie holds for all ports and paths of its host, so its name ends in a digest of the key: hubs with different keys
# do not replace each other's cookies.
COOKIE = "tenuto_visitor_"
DIGEST_CHARACTERS = 6
# Most cookies of other keys are of keys that are gone. A new cookie leaves this many, and removes some of the others.
MAX_OTHERS = 8
REMOVED_AT_ONCE = 50
# Under https the name has this prefix: a browser accepts such a cookie from this very host alone, so that no page of a
# neighbouring subdomain can plant one of its own.
HOST_PREFIX = "__Host-"
DAY_MS = 24 * 3_600_000
MAX_AGE_MS = 400 * DAY_MS  # the longest that browsers keep a cookie (Chromium)
RENEWED_MS = 7 * DAY_MS  # age from which a cookie or token is issued anew
MAX_CHARACTERS = 200  # of a cookie or token; ours have 60
RIGHTS = frozenset(("subscribe", "history", "publish", "presence", "command"))
_GRANTS = {f"{STEM}{{sub}}": RIGHTS, f"{STEM}{{sub}}.*": RIGHTS}
_NAME = re.compile(rf"(?:{HOST_PREFIX})?{COOKIE}[A-Za-z0-9_-]{{{DIGEST_CHARACTERS}}}")
_IN_COOKIE, _AS_TOKEN = "visitor cookie", "visitor token"  # purposes of signatures
_VISITS = "tenuto.visits"  # key of the visits in the scope of a request: one for each hub that has looked at it


class Visit(Struct, eq=False):
    """What a request or socket has shown of its visitor. It is shared by all copies of the request's scope."""

    _route: Route  # that of the app which has asked for the visit; all visits of a request share it
    client_id: str | None = None  # id of the visitor; None: a person, or not verified yet
    is_new: bool = False  # the id was made for this request
    # the browser sent the proof by itself, or none, so an `auth` frame may still name another client
    is_ambient: bool = False
    set_cookies: list[bytes] = []  # values of the headers that the response must have

    def enter_route(self, peer: str, refusal: TenutoError | None) -> None:
        """Note that the code which runs now, and its tasks, serve this request, which is from the address `peer`.

        `refusal` is the error for a question that it stores, if it may store none.
        """
        self._route.peer = peer
        self._route.refusals[self.client_id] = refusal
        enter_route(self._route)


def visit_in(scope: MutableMapping[str, Any], verify: object) -> Visit:
    """Return the visit of a request to the hub of the verifier `verify`; one is put into `scope` if it has none."""
    visits: dict[int, Visit] = scope.setdefault(_VISITS, {})
    route = next((one._route for one in visits.values()), Route())
    return visits.setdefault(id(verify), Visit(route))


class Served(Protocol):
    """The parts of a hub that its verifier needs."""

    clock: Clock
    public_origin: str | None


class VisitorVerifier(Keyed):
    """An `authenticate` that makes each browser without another identity a visitor (`tenuto.app.visitors`)."""

    reads_cookies = True
    key_note = "visitor-key/0"
    keeps_key_always = True

    def __init__(
        self, verify: Authenticate | None, *, keys: Sequence[bytes], limits: QuestionLimits, keep_days: int | None
    ) -> None:
        super().__init__(keys, "key of visitors")
        self.verify = verify
        self.limits = limits
        self.keep_days = keep_days
        self.ticket_keys: Sequence[bytes] = getattr(verify, "ticket_keys", ())
        self._hub: Served | None = None

    def __repr__(self) -> str:
        return f"visitors(verify={self.verify!r})"

    @property
    def hub(self) -> Served:
        """Return the hub whose callers this verifies. Raises LocalError before there is one."""
        if self._hub is None:
            raise LocalError("verifier visitors() has no hub yet; pass it to one: Hub(authenticate=guests)")
        return self._hub

    def serve(self, hub: Served) -> None:
        """Verify the callers of `hub`. Raises LocalError if it is a second one: its store may have another key."""
        if self._hub is not None:
            raise LocalError("verifier visitors() belongs to another hub already; call visitors() once for each hub")
        self._hub = hub

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return the identity of a person, else of a visitor, who gets an id if the request proves none.

        Return None for a bearer token that proves nothing. Raises InvalidName for a person with the id of a visitor,
        and the errors of the second verifier. The hub must have started, which reads the key.
        """
        token = _bearer(scope)
        # first, because a verifier of persons may raise for a token that is not its own
        if token is not None and (known := self.identity_by_token(token)) is not None:
            visit_in(scope, self).client_id = known.client_id
            return known
        try:
            person = await self.verify(scope) if self.verify is not None else None
        except HTTPException as error:
            if error.status_code != 401:  # of a dependency of the app's routes: no person
                raise
            person = None
        if person is not None or token is not None:
            check_person(person)
            return person
        return self._visitor(scope)

    def identity_by_token(self, token: str) -> Identity | None:
        """Return the identity of the visitor that `token` proves; None if it proves none."""
        found = self._proven(_AS_TOKEN, token)
        return None if found is None else _identity(found[0])

    def token_of(self, visitor: str) -> str:
        """Return a token that proves the id `visitor`."""
        return self._proof(_AS_TOKEN, visitor)

    def _visitor(self, scope: Scope) -> Identity:
        """Return the visitor that the cookie proves, or a new one; the `Visit` gets its id and the cookies to set."""
        visit = visit_in(scope, self)
        if visit.client_id is not None:  # verified before in this request
            return _identity(visit.client_id)
        is_encrypted = scope.get("scheme") in ("https", "wss") or (self.hub.public_origin or "").startswith("https:")
        stem = HOST_PREFIX + COOKIE if is_encrypted else COOKIE
        names = [stem + signature(key, "visitor cookie's name", "")[:DIGEST_CHARACTERS] for key in self._keys]
        cookies = [one for one in cookies_of(scope) if one[0].startswith(stem) and _NAME.fullmatch(one[0])]
        # that of the newest key for which the browser has one
        name = next((one for one in names if any(one == known for known, _ in cookies)), names[0])
        given = [value for known, value in cookies if known == name]
        found = self._proven(_IN_COOKIE, given[0]) if len(given) == 1 else None  # one of two may be planted
        visitor, age_ms = found or (new_visitor_id(secrets.token_bytes(RANDOM_BYTES)), 0)
        visit.client_id, visit.is_new, visit.is_ambient = visitor, found is None, True
        if (found is None or age_ms >= RENEWED_MS or name != names[0]) and not _is_embedded(scope):
            end = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if is_encrypted else "")
            new = f"{names[0]}={self._proof(_IN_COOKIE, visitor)}; Max-Age={MAX_AGE_MS // 1000}{end}"
            others = [known for known, _ in cookies if known not in names]  # the oldest first
            gone = [f"{one}=; Max-Age=0{end}" for one in others[:-MAX_OTHERS][:REMOVED_AT_ONCE]]
            visit.set_cookies = [one.encode() for one in (new, *gone)]
        return _identity(visitor)

    def _proof(self, purpose: str, visitor: str) -> str:
        """Return the text that proves the id `visitor` from now on, as `_IN_COOKIE` or `_AS_TOKEN` (`purpose`)."""
        body = f"{visitor}.{self.hub.clock.now_ms() // 1000}"
        return f"{body}.{signature(self._keys[0], purpose, body)}"

    def _proven(self, purpose: str, text: str) -> tuple[str, int] | None:
        """Return the visitor that `text` proves, and the age of the proof in ms; None for any other text."""
        if len(text) > MAX_CHARACTERS or not text.isascii():
            return None
        body, _, mac = text.rpartition(".")
        if not self.has_signed(purpose, body, mac):
            return None
        visitor, _, issued_s = body.partition(".")
        age_ms = self.hub.clock.now_ms() - int(issued_s) * 1000
        return (visitor, age_ms) if is_visitor(visitor) and age_ms < MAX_AGE_MS else None


def check_person(identity: object) -> None:
    """Raise InvalidName if an identity of the second verifier has the id of a visitor, whose chats it would open."""
    if isinstance(identity, Identity) and is_visitor(identity.client_id):
        raise InvalidName(
            f"client id {shown(identity.client_id)} of a person has the form of a visitor's id; let the verifier "
            "return another one, such as with a prefix"
        )


def cookie_headers(scope: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers that the response of the request must have: they set the cookies of a new visitor."""
    return [(b"set-cookie", value) for visit in scope.get(_VISITS, {}).values() for value in visit.set_cookies]


def _identity(visitor: str) -> Identity:
    return Identity(client_id=visitor, grants=_GRANTS)


def _bearer(scope: Scope) -> str | None:
    """Return the token of the header `Authorization`; None without one, or with another scheme."""
    scheme, _, token = (header(scope, b"authorization") or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_embedded(scope: Scope) -> bool:
    """Return whether a page of another site sent the request by itself.

    The browser sends no cookie of ours with it, so a new one could only replace that of a visitor.
    """
    return header(scope, b"sec-fetch-site") == "cross-site" and header(scope, b"sec-fetch-dest") != "document"
