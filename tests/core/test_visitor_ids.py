"""The ids of visitors, and the retention of their channels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.names import is_id
from tenuto.core.visitor_ids import RANDOM_BYTES, is_visitor, new_visitor_id, owner_of
from tenuto.hub.keep.policies import DAY_MS, Policies

ME = new_visitor_id(bytes(RANDOM_BYTES))


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_new_id_is_that_of_a_visitor(random: bytes) -> None:
    visitor = new_visitor_id(random)
    assert is_visitor(visitor)
    assert is_id(visitor)
    assert len(visitor) == 26
    assert visitor.isalnum()
    assert visitor.islower()


@given(st.integers(1, 25), st.sampled_from("0123456789abcdefghjkmnpqrstvwxyz"))
def test_id_with_another_digit_is_no_visitor_s(place: int, digit: str) -> None:
    changed = f"{ME[:place]}{digit}{ME[place + 1 :]}"
    assert is_visitor(changed) is (changed == ME)


def test_other_ids_are_those_of_persons() -> None:
    for text in (None, "", "ann", "01hzy3v4q5r6s7t8v9wxyzabcd", ME.upper(), f"{ME}0", f"{ME}\n", ME[:-1], f"x{ME[1:]}"):
        assert not is_visitor(text)


def test_channels_of_a_visitor_are_those_under_its_id() -> None:
    assert [owner_of(f"chat:{name}") for name in (ME, f"{ME}.k1", f"{ME}.a.b")] == [ME] * 3
    for channel in (ME, f"chat:{ME}x", f"chat:{ME}:x", f"chat:{ME[:-1]}", f"support:{ME}", "chat:ann", "chat:"):
        assert owner_of(channel) is None


def test_messages_of_visitors_go_after_their_days_unless_the_app_has_a_rule() -> None:
    mine, theirs = f"chat:{ME}.k1", "chat:ann"
    policies = Policies({}, visitors_days=30)
    assert bool(policies)
    found = policies.find(mine)
    assert found is not None
    assert found.age_ms == 30 * DAY_MS
    assert policies.find(theirs) is None
    assert policies.within() == ["chat:*"]
    for pattern in ("*", "chat:*", f"chat:{ME}.*", mine):
        policies = Policies({pattern: "1h"}, visitors_days=30)
        own = policies.find(mine)
        assert own is not None
        assert own.age_ms == 3_600_000
    assert Policies({"chat:a:*": "1h", "other": "1h"}, visitors_days=30).within() == ["chat:*", "other"]
    assert not Policies({}, visitors_days=None)
