"""The target `identities` finds forbidden grants and events, leaked resources, and tokens in errors or logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import jwt
import pytest

from proof.fuzz.engine import check
from proof.fuzz.identities import Identities
from proof.fuzz.rights import needs_of_frame, needs_of_request, rights_in, token_of
from tenuto.core.errors import Unauthenticated
from tenuto.core.events import Cursor
from tenuto.hub.access import tickets, tokens
from tenuto.hub.access.identity import Identity, Scope
from tenuto.hub.access.rates import ConnectionSlot
from tenuto.hub.hub import HubCore
from tenuto.transports import access, http, session, sse, streams
from tests.transports.permissions import LISTED, OPERATIONS, Operation


@pytest.fixture(scope="module")
def target() -> Iterator[Identities]:
    with closing(Identities()) as made:
        yield made


HERE = {"channel": "c", "id": "m1"}


def filled(fields: dict[str, Any] | None) -> dict[str, Any]:
    """Return the fields of an operation, for one channel and message."""
    listed = (fields or {}).items()
    return {name: value.format(**HERE) if isinstance(value, str) else value for name, value in listed}


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.http], ids=lambda one: one.name)
def test_needs_of_request_match_the_permission_table(one: Operation) -> None:
    method, path = (one.http or "").split(" ")
    needs = needs_of_request(method, path.format(**HERE), filled(one.body))
    assert needs is not None
    # A list of channels has those that the caller may read, so no pattern of the caller's is required.
    assert needs.capabilities == (set() if one.whose == LISTED else set(one.needs))


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.frame], ids=lambda one: one.name)
def test_needs_of_frame_match_the_permission_table(one: Operation) -> None:
    fields = filled(one.body if one.fields is None else one.fields)
    needs = needs_of_frame({**HERE, **fields, "type": one.frame})
    assert needs is not None
    assert needs.capabilities == set(one.needs)


def test_token_with_another_signature_grants_no_rights() -> None:
    good = token_of({"sub": "ada", "aud": "chat", "exp": 2**40, "tenuto": {"c:*": ["append"]}})
    rights = rights_in(good, 0.0)
    assert rights is not None
    assert (rights.has("append", "c:1"), rights.has("append", "c"), rights.has("publish", "c:1")) == (
        True,
        False,
        False,
    )
    assert rights_in(good[:-2] + "AA", 0.0) is None


def test_each_operation_for_each_capability_finds_no_bug(target: Identities) -> None:
    assert [text for given in target.matrix() if (text := check(target, given)) is not None] == []


# Mutants


logger = logging.getLogger("tenuto.hub")
has, verify_token, claims_by = Identity.has, tokens.JwtVerifier.verify_token, tokens._claims_by


def grants_publish_everywhere(self: Identity, capability: str, channel: str) -> bool:
    return capability == "publish" or has(self, capability, channel)


def accepts_any_pattern(self: Identity, capability: str, pattern: str) -> None:
    pass


def skips_the_check_of_a_create(asked: Any, identity: Identity, channel: str) -> None:
    pass


async def lets_any_client_poll(hub: HubCore, scope: Scope, channel: str) -> Identity:
    return await access.identify(hub, scope)


def accepts_every_cursor(self: Any, cursor: Cursor | None) -> Cursor | None:
    return cursor


def shows_everything(identity: Identity, channel: str, wanted: int | None) -> int | None:
    return wanted


def is_always_sealed(self: Any, ticket: Any, last: Cursor | None) -> bool:
    return True


def accepts_the_cursor_of_another_log(since: Cursor | None, known: Cursor | None) -> bool:
    return since is not None


def never_expires(self: access.Credentials, over: Any) -> None:
    pass


def includes_every_identity(self: Identity, other: Identity) -> bool:
    return True


async def renews_for_any_client(self: access.Credentials, token: str) -> Identity:
    identity = await access.identity_by_token(self._hub, self._scope, token)
    self._identity = identity
    self._set_timer()
    return identity


def skips_the_verification(keys: Any, algorithm: str, token: str) -> dict[str, Any] | None:
    try:
        return dict(jwt.decode(token, options={"verify_signature": False}))
    except jwt.PyJWTError:
        return claims_by(keys, algorithm, token)


async def repeats_the_token(self: tokens.JwtVerifier, token: str) -> Identity:
    try:
        return await verify_token(self, token)
    except Unauthenticated:
        raise Unauthenticated(f"invalid token: {token}") from None


def logs_the_ticket(self: tickets.Tickets, kind: str, text: str, mac: str) -> bool:
    logger.warning("%s of %s", kind, text)
    return any(tickets.signature(key, kind, text) == mac for key in self._keys)


def never_leaves(self: Any, *rest: Any) -> None:
    pass


def admits_two_streams(self: tickets.Tickets, ticket: tickets.Ticket, stream: Any) -> None:
    self._open.setdefault(ticket.id, stream)


def accepts_any_origin(hub: HubCore, scope: Any) -> None:
    pass


def never_runs_out(hub: HubCore, identity: Identity) -> float:
    return float("inf")


MUTANTS: list[tuple[str, object, str, object]] = [
    ("granted", tokens, "_claims_by", skips_the_verification),
    ("granted", Identity, "has", grants_publish_everywhere),
    ("granted", Identity, "check_pattern", accepts_any_pattern),
    ("granted", session, "check_create", skips_the_check_of_a_create),
    ("granted", http, "check_create", skips_the_check_of_a_create),
    ("granted", tickets.Tickets, "_is_sealed", is_always_sealed),
    ("granted", sse, "admit_poll", lets_any_client_poll),
    ("resumed", access.ResumeLimits, "known", accepts_every_cursor),
    ("shown", sse, "allowed_history", shows_everything),
    ("shown", sse, "allowed_history", shows_everything),
    ("streamed", streams, "_is_of", accepts_the_cursor_of_another_log),
    ("outlives", access.Credentials, "watch", never_expires),
    ("not narrowed", Identity, "includes", includes_every_identity),
    ("other client", access.Credentials, "renew", renews_for_any_client),
    ("secret", tokens.JwtVerifier, "verify_token", repeats_the_token),
    ("secret", tickets.Tickets, "_is_signed", logs_the_ticket),
    ("held", ConnectionSlot, "leave", never_leaves),
    ("held", tickets.Tickets, "closed", never_leaves),
    ("held", http, "left_s", never_runs_out),
    ("twice", tickets.Tickets, "opened", admits_two_streams),
    ("foreign", access, "check_origin", accepts_any_origin),
]


@pytest.mark.parametrize(("kind", "place", "name", "mistake"), MUTANTS, ids=[f"{one[0]}-{one[2]}" for one in MUTANTS])
def test_mutant_is_found(
    monkeypatch: pytest.MonkeyPatch, target: Identities, kind: str, place: object, name: str, mistake: object
) -> None:
    monkeypatch.setattr(place, name, mistake)
    found = (text for given in target.seeds() if (text := check(target, given)) is not None)
    first = next(found, "no finding")
    assert first.startswith(f"{kind}:"), first[:500]
