"""Tickets: what opens a stream, for how long, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.cursor import Cursor, parse_cursor
from holdfast.core.errors import Forbidden, LocalError, Unauthenticated
from holdfast.hub.identity import Expired, Identity
from holdfast.hub.tickets import MAX_CHARACTERS, Tickets, split_seal

KEY, OTHER = b"k" * 32, b"o" * 32
ADA = Identity(
    client_id="ada", grants={"chat:*": frozenset({"subscribe", "history", "publish"})}, expires_at_ms=10_000_000
)
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


def back(tickets: Tickets, text: str) -> Cursor:
    """The cursor that the ticket's stream gave out."""
    return SEEN._replace(extra=tickets.seal(tickets.read(text, "chat:1", None)))


def test_a_ticket_opens_a_stream_of_its_channel_and_may_only_read(tickets: Tickets) -> None:
    identity = tickets.read(tickets.issue(ADA, "chat:1"), "chat:1", None).identity()
    assert (identity.client_id, identity.expires_at_ms) == ("ada", 10_000_000)
    assert identity.grants == {"chat:1": frozenset({"subscribe", "history"})}


def test_what_the_owner_may_not_see_the_ticket_does_not_show(tickets: Tickets) -> None:
    owner = Identity(client_id="ada", capabilities=frozenset({"subscribe", "admin"}))
    assert tickets.read(tickets.issue(owner, "c"), "c", None).capabilities == ["subscribe"]


def test_who_may_not_subscribe_gets_no_ticket(tickets: Tickets) -> None:
    with pytest.raises(Forbidden):
        tickets.issue(ADA, "other")


def test_it_is_of_no_use_on_another_channel(tickets: Tickets) -> None:
    with pytest.raises(Forbidden):
        tickets.read(tickets.issue(ADA, "chat:1"), "chat:2", None)


def test_after_a_minute_only_the_stream_itself_comes_back(tickets: Tickets, time: Time) -> None:
    text = tickets.issue(ADA, "chat:1")
    seen = back(tickets, text)
    time.now_ms += 59_999
    tickets.read(text, "chat:1", None)
    time.now_ms += 1
    for last in (None, SEEN, SEEN._replace(extra="k"), SEEN._replace(extra="k" + "A" * 22)):
        with pytest.raises(Expired):
            tickets.read(text, "chat:1", last)
    assert tickets.read(text, "chat:1", seen).client_id == "ada"
    # The seal stands before what another stream keeps in its cursors.
    assert tickets.read(text, "chat:1", seen._replace(extra=seen.extra + "m0.12")).client_id == "ada"


def test_the_seal_of_one_ticket_is_none_of_another(tickets: Tickets, time: Time) -> None:
    seen = back(tickets, tickets.issue(ADA, "chat:1"))
    other = tickets.issue(ADA, "chat:1")
    time.now_ms += 60_000
    with pytest.raises(Expired):
        tickets.read(other, "chat:1", seen)


def test_it_ends_with_the_identity(tickets: Tickets, time: Time) -> None:
    text = tickets.issue(ADA, "chat:1")
    seen = back(tickets, text)
    time.now_ms = 9_999_999
    tickets.read(text, "chat:1", seen)
    time.now_ms = 10_000_000
    with pytest.raises(Expired):
        tickets.read(text, "chat:1", seen)


def test_it_ends_where_the_identity_has_no_end(tickets: Tickets, time: Time) -> None:
    text = tickets.issue(Identity(client_id="ada"), "chat:1")
    seen = back(tickets, text)
    time.now_ms += 12 * 3_600_000 - 1
    tickets.read(text, "chat:1", seen)
    time.now_ms += 1
    with pytest.raises(Expired):
        tickets.read(text, "chat:1", seen)


def test_another_life_of_the_server_knows_it_by_the_key_and_by_nothing_else(time: Time) -> None:
    before = Tickets([KEY], now_ms=time)
    text = before.issue(ADA, "chat:1")
    seen = back(before, text)
    time.now_ms += 60_000
    assert Tickets([KEY], now_ms=time).read(text, "chat:1", seen).client_id == "ada"
    for after in (Tickets([OTHER], now_ms=time), Tickets(now_ms=time)):
        with pytest.raises(Unauthenticated):
            after.read(text, "chat:1", seen)


def test_a_key_that_comes_first_signs_and_the_others_still_verify(time: Time) -> None:
    old = Tickets([KEY], now_ms=time)
    text = old.issue(ADA, "chat:1")
    seen = back(old, text)
    time.now_ms += 60_000
    rotated = Tickets([OTHER, KEY], now_ms=time)
    assert rotated.read(text, "chat:1", seen).client_id == "ada"
    with pytest.raises(Unauthenticated):
        old.read(rotated.issue(ADA, "chat:1"), "chat:1", None)


@given(st.data())
def test_a_ticket_that_was_touched_is_none(data: st.DataObject) -> None:
    tickets = Tickets([KEY], now_ms=Time())
    text = tickets.issue(ADA, "chat:1")
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.=% é"))
    touched = text[:place] + letter + text[place + 1 :]
    if touched != text:
        with pytest.raises(Unauthenticated):
            tickets.read(touched, "chat:1", None)


@pytest.mark.parametrize("text", ["", ".", "a.b", "é", "\udc80", "x" * 100_000, "e30.AAAAAAAAAAAAAAAAAAAAAA"])
def test_garbage_is_no_ticket(tickets: Tickets, text: str) -> None:
    with pytest.raises(Unauthenticated):
        tickets.read(text, "chat:1", None)


def test_the_longest_names_fit(tickets: Tickets) -> None:
    channel = "c" * 200
    text = tickets.issue(Identity(client_id="i" * 64), channel)
    assert len(text) <= MAX_CHARACTERS
    assert tickets.read(text, channel, None).client_id == "i" * 64


def test_a_cursor_with_a_seal_and_the_longest_place_is_a_cursor(tickets: Tickets) -> None:
    from holdfast.transports.framing import sent_field

    seal = tickets.seal(tickets.read(tickets.issue(ADA, "chat:1"), "chat:1", None))
    told = sent_field([10**7] * 256, is_finished=False)
    cursor = parse_cursor(f"e:5:{seal}{told}")
    assert cursor is not None
    assert split_seal(cursor.extra) == (seal, told)


def test_what_is_no_seal_is_left_where_it_is() -> None:
    assert split_seal("m0.12") == ("", "m0.12")
    assert split_seal("") == ("", "")


class Stream:
    is_replaced = False

    def replace(self) -> None:
        self.is_replaced = True


def test_the_newer_of_two_streams_replaces_the_older(tickets: Tickets) -> None:
    ticket = tickets.read(tickets.issue(ADA, "chat:1"), "chat:1", None)
    other = tickets.read(tickets.issue(ADA, "chat:1"), "chat:1", None)
    older, newer, apart = Stream(), Stream(), Stream()
    tickets.opened(ticket, older)
    tickets.opened(other, apart)
    tickets.opened(ticket, newer)
    tickets.closed(ticket, older)
    assert (older.is_replaced, newer.is_replaced, apart.is_replaced) == (True, False, False)
    tickets.closed(ticket, newer)
    tickets.closed(other, apart)
    assert repr(tickets) == "Tickets(1 keys, 0 open)"


def test_a_short_key_is_refused() -> None:
    with pytest.raises(LocalError, match="32 bytes"):
        Tickets([b"short"])
