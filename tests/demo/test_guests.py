"""Guests: an invitation works once and for ten minutes, guesses are bounded, and a cookie cannot be made up.

Layer: tests.
"""

from __future__ import annotations

import pytest

from tenuto.core.errors import TooMany, Unauthenticated
from tenuto.demo.guests import (
    COOKIE,
    GUESSES_S,
    INVITE_S,
    MOST_GUESSERS,
    MOST_GUESSES,
    MOST_INVITES,
    Guests,
    NoInvite,
    agent_token,
)
from tenuto.hub.access.identity import Scope
from tests.virtual import Time

PEER = "127.0.0.3"
KEY = "a key of the demo, of at least thirty-two bytes"


@pytest.fixture
def clock() -> Time:
    return Time(1_000_000.0)


@pytest.fixture
def guests(clock: Time) -> Guests:
    return Guests("http://127.0.0.2:8000", key=KEY, now_s=clock)


def invited(guests: Guests) -> str:
    """Return the secret of a new invitation."""
    return guests.invite().partition("#join=")[2]


def scope(**headers: str) -> Scope:
    return {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


def with_cookie(value: str) -> Scope:
    return scope(cookie=f"other=1; {COOKIE}={value}")


def test_an_invitation_is_open_for_ten_minutes(guests: Guests, clock: Time) -> None:
    secret, other = invited(guests), invited(guests)
    clock.now_s += INVITE_S - 1
    assert guests.join(secret, PEER)
    clock.now_s += 1
    with pytest.raises(NoInvite):
        guests.join(other, PEER)


def test_the_number_of_open_invitations_is_bounded(guests: Guests) -> None:
    secrets = [invited(guests) for _ in range(MOST_INVITES + 1)]
    with pytest.raises(NoInvite):
        guests.join(secrets[0], PEER)
    for secret in secrets[1:]:
        guests.join(secret, PEER)


def test_guesses_of_one_address_are_bounded_and_others_get_in(guests: Guests, clock: Time) -> None:
    secret = invited(guests)
    for _ in range(MOST_GUESSES):
        with pytest.raises(NoInvite):
            guests.join("wrong ü🌊", PEER)
    with pytest.raises(TooMany):
        guests.join(secret, PEER)
    assert guests.join(invited(guests), "127.0.0.4")
    clock.now_s += GUESSES_S
    assert guests.join(secret, PEER)


def test_the_number_of_counted_addresses_is_bounded(guests: Guests) -> None:
    for number in range(MOST_GUESSERS + 10):
        with pytest.raises(NoInvite):
            guests.join("wrong", f"peer {number}")
    assert len(guests._guesses) <= MOST_GUESSERS + 1


async def test_a_cookie_names_its_person_until_it_ends(guests: Guests, clock: Time) -> None:
    person = guests.join(invited(guests), PEER)
    cookie = guests.cookie_of(person)
    identity = await guests.verify(with_cookie(cookie))
    assert identity is not None
    assert (identity.client_id, identity.expires_at_ms) == (person, int((clock.now_s + 12 * 3600) * 1000))
    assert not identity.is_trusted
    assert identity.capabilities_on("demo:1") == ["command", "history", "presence", "publish", "subscribe"]
    assert identity.capabilities_on("chat:1") == []
    # The server that follows a killed one has the same key.
    assert await Guests("http://x", key=KEY, now_s=clock).person(with_cookie(cookie)) == person
    assert await Guests("http://x", key=KEY[::-1], now_s=clock).person(with_cookie(cookie)) is None
    clock.now_s += 12 * 3600
    assert await guests.person(with_cookie(cookie)) is None


async def test_an_agent_is_known_by_its_token(guests: Guests) -> None:
    identity = await guests.verify(scope(authorization=f"Bearer {agent_token(KEY)}"))
    assert identity is not None
    assert (identity.client_id, identity.is_trusted) == ("guide", True)
    cookie = guests.cookie_of(guests.join(invited(guests), PEER))
    for given in ("Bearer other", "Bearer ", "", "token", "Bearer é"):
        with pytest.raises(Unauthenticated):
            await guests.verify(scope(authorization=given, cookie=f"{COOKIE}={cookie}"))
