"""Tickets: a ticket opens a stream of its channel for a limited time. Any other text is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.errors import LocalError, Unauthenticated
from tenuto.core.events import Cursor, parse_cursor
from tenuto.hub.access.identity import Expired, Identity
from tenuto.hub.access.tickets import MAX_CHARACTERS, Tickets, split_seal

KEY, OTHER = b"k" * 32, b"o" * 32
ADA = Identity(client_id="ada", grants={"chat:*": frozenset({"subscribe", "history", "publish"})}, expires_at_ms=10**7)
SEEN = Cursor("e", 5)


class Time:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def tickets(time: Time) -> Tickets:
    return Tickets([KEY], now_ms=time)


def sealed_cursor(tickets: Tickets, text: str) -> Cursor:
    """Return a cursor with the seal of the ticket's stream."""
    return SEEN._replace(extra=tickets.seal(tickets.read(text, "chat:1", None)))


def test_ticket_older_than_a_minute_only_resumes_its_own_stream(tickets: Tickets, time: Time) -> None:
    text = tickets.issue(ADA, "chat:1")
    seen = sealed_cursor(tickets, text)
    time.now_ms += 59_999
    tickets.read(text, "chat:1", None)
    time.now_ms += 1
    for last in (None, SEEN, SEEN._replace(extra="k"), SEEN._replace(extra="k" + "A" * 22)):
        with pytest.raises(Expired):
            tickets.read(text, "chat:1", last)
    assert tickets.read(text, "chat:1", seen).client_id == "ada"
    # The seal comes before the data that other stream formats keep in their cursors.
    assert tickets.read(text, "chat:1", seen._replace(extra=seen.extra + "7m0.12")).client_id == "ada"


def test_seal_of_one_ticket_is_refused_for_another(tickets: Tickets, time: Time) -> None:
    seen = sealed_cursor(tickets, tickets.issue(ADA, "chat:1"))
    other = tickets.issue(ADA, "chat:1")
    time.now_ms += 60_000
    with pytest.raises(Expired):
        tickets.read(other, "chat:1", seen)


@pytest.mark.parametrize(
    ("identity", "left_ms"),
    [(ADA, 9_000_000), (Identity(client_id="ada"), 12 * 3_600_000)],
    ids=["its own", "12 hours"],
)
def test_ticket_expires_with_the_identity_and_after_twelve_hours_at_the_latest(
    tickets: Tickets, time: Time, identity: Identity, left_ms: int
) -> None:
    text = tickets.issue(identity, "chat:1")
    seen = sealed_cursor(tickets, text)
    time.now_ms += left_ms - 1
    tickets.read(text, "chat:1", seen)
    time.now_ms += 1
    with pytest.raises(Expired):
        tickets.read(text, "chat:1", seen)


def test_first_key_signs_and_the_others_verify(time: Time) -> None:
    old = Tickets([KEY], now_ms=time)
    text = old.issue(ADA, "chat:1")
    seen = sealed_cursor(old, text)
    time.now_ms += 60_000
    rotated = Tickets([OTHER, KEY], now_ms=time)
    assert rotated.read(text, "chat:1", seen).client_id == "ada"
    with pytest.raises(Unauthenticated):
        old.read(rotated.issue(ADA, "chat:1"), "chat:1", None)


@given(st.data())
def test_changed_ticket_is_refused(data: st.DataObject) -> None:
    tickets = Tickets([KEY], now_ms=Time())
    text = tickets.issue(ADA, "chat:1")
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.=% é"))
    changed = text[:place] + letter + text[place + 1 :]
    if changed != text:
        with pytest.raises(Unauthenticated):
            tickets.read(changed, "chat:1", None)


def test_ticket_with_the_longest_names_fits_its_limit(tickets: Tickets) -> None:
    channel = "c" * 200
    text = tickets.issue(Identity(client_id="i" * 64), channel)
    assert len(text) <= MAX_CHARACTERS
    assert tickets.read(text, channel, None).client_id == "i" * 64


def test_cursor_with_a_seal_and_the_longest_sent_field_is_parsed(tickets: Tickets) -> None:
    from tenuto.core.deltas import Sent
    from tenuto.transports.streams import sent_field

    sent = sent_field(10**16 - 1, Sent([10**7] * 256, attempts=255), is_finished=False)
    for seal in (sealed_cursor(tickets, tickets.issue(ADA, "chat:1")).extra, tickets.name("chat:1", "m" * 18)):
        cursor = parse_cursor(f"e:5:{seal}{sent}")
        assert cursor is not None
        assert split_seal(cursor.extra) == (seal, sent)


def test_key_shorter_than_32_bytes_is_refused() -> None:
    with pytest.raises(LocalError, match="32 bytes"):
        Tickets([b"short"])
