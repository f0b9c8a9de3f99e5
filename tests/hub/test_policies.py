"""Retention: the forms of its rules, the most specific pattern, the messages that go, and the trust in a clock."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.core.errors import LocalError
from tenuto.core.model import ChannelSummary
from tenuto.core.names import matches
from tenuto.hub.keep.policies import (
    DAY_MS,
    LEAST_MS,
    TOMBSTONE_MS,
    ClockTrust,
    Fact,
    Policies,
    Policy,
    Retention,
    Sweep,
    rules_of,
)

HOUR_MS = DAY_MS // 24
YEAR_MS = 365 * DAY_MS
NOW_MS = 50 * YEAR_MS
STEMS = ("", "a:", "a:b:", "a.", "a:b", "a", "ab", "b/")
PATTERNS = st.sampled_from([*(f"{one}*" for one in STEMS if not one or one[-1] in ":/."), *filter(None, STEMS)])


def test_rules_are_parsed() -> None:
    policies = Policies({"a": "90d", "b:*": Retention(idle="2w", messages=10_000, bytes="50MB"), "*": "10m"})
    assert policies.find("a") == Policy(90 * DAY_MS, None, None, None)
    assert policies.find("b:1") == Policy(None, 14 * DAY_MS, 10_000, 50_000_000)
    assert policies.find("b") == Policy(LEAST_MS, None, None, None)
    assert Policies({"a": Retention(bytes=5)}).find("a") == Policy(None, None, None, 5)
    assert Policies({"a": Retention(messages=2**53, bytes="9007TB")}).find("a") == Policy(
        None, None, 2**53, 9_007 * 10**12
    )
    assert not Policies({})
    assert Policies({}).find("a") is None


@pytest.mark.parametrize(
    ("given_rules", "text"),
    [
        (
            {"chat:*": "90 days"},
            "age in the retention of 'chat:*' must be a number and s, m, h, d or w, such as \"90d\", got '90 days'",
        ),
        ({"a": "599s"}, "must be \"10m\" or more, got '599s'"),
        ({"a": "1y"}, "s, m, h, d or w"),
        ({"a": "9999999999d"}, "s, m, h, d or w"),
        ({"a": 90}, 'must be an age such as "90d", or a Retention(...), got 90'),
        ({"a": Retention()}, "retention of 'a' must have a rule: give age, idle, messages or bytes"),
        (
            {"a": Retention(messages=0)},
            "the number of messages in the retention of 'a' must be a whole number from 1 to 9007199254740992, got 0",
        ),
        ({"a": Retention(messages=True)}, "from 1 to 9007199254740992, got True"),
        ({"a": Retention(messages=10**30)}, "got 1000000000000000000000000000000; leave it out to keep them all"),
        (
            {"a": Retention(bytes="9008TB")},
            "bytes in the retention of 'a' must be at most 9007199254740992 bytes, got '9008TB'; leave it out",
        ),
        ({"a": Retention(idle=7)}, "idle in the retention of 'a' must be a number and s, m, h, d or w"),  # type: ignore[arg-type]
        ({"chat*": "90d"}, "retention has a wrong pattern: pattern must have its star only at the end"),
        ({"": "90d"}, "retention has the pattern '', and no channel can have such a name: names have 1-200"),
        ({"chat\n1": "90d"}, "the pattern 'chat\\n1', and no channel can have such a name"),
        ([("a", "90d")], 'retention must be a dict such as {"chat:*": "90d"}'),
    ],
)
def test_wrong_rules_are_refused_with_the_remedy(given_rules: dict[str, str], text: str) -> None:
    with pytest.raises(LocalError) as refused:
        Policies(given_rules)
    assert text in str(refused.value)


def test_rules_of_an_option_are_parsed_and_a_repeated_pattern_is_refused() -> None:
    assert rules_of("--retention", ["chat:*=90d", "chat:a=b=2h"]) == {"chat:*": "90d", "chat:a=b": "2h"}
    with pytest.raises(LocalError, match=r"--retention must be PATTERN=AGE, such as chat:\*=90d, got 'chat'"):
        rules_of("--retention", ["chat"])
    with pytest.raises(LocalError, match=r"--retention has two ages for the pattern 'a\*'; give each pattern once"):
        rules_of("--retention", ["a*=1d", "b=1d", "a*=1d"])


@example({"*", "a:*", "a:b:*"}, "a:b:c")
@example({"a:*", "a:b"}, "a:b")
@given(st.sets(PATTERNS), st.text("ab:./", min_size=1, max_size=6))
def test_the_most_specific_pattern_holds(patterns: set[str], channel: str) -> None:
    ages = {pattern: f"{number}d" for number, pattern in enumerate(sorted(patterns), 1)}
    policies = Policies(ages)
    fitting = [one for one in patterns if matches(one, channel)]
    best = max(fitting, key=lambda one: (not one.endswith("*"), len(one)), default=None)
    found = policies.find(channel)
    assert (found.age_ms if found else None) == (int(ages[best][:-1]) * DAY_MS if best is not None else None)
    assert sum(matches(one, channel) for one in policies.within()) == bool(fitting)


def test_matching_costs_the_same_with_20_000_patterns() -> None:
    policies = Policies({f"{number}:*": "90d" for number in range(20_000)})
    began_s = time.process_time()
    for _ in range(1_000):
        assert policies.find("19999:" + "x:" * 90) is not None
    assert time.process_time() - began_s < 1.0  # a comparison with each pattern takes 4 s
    assert policies.within() == ["*"]


# -- which messages go -----------------------------------------------------------------------------------------------

FACTS = st.lists(
    st.builds(
        Fact,
        id=st.just(""),
        version=st.just(0),
        is_counted=st.booleans(),
        size_bytes=st.integers(0, 100),
        at_ms=st.none() | st.integers(-3 * DAY_MS, DAY_MS).map(lambda ms: NOW_MS + ms),
        is_busy=st.booleans(),
    ),
    max_size=12,
).map(lambda facts: [one._replace(id=f"m{n}", version=n) for n, one in enumerate(facts, 1)])
POLICIES = st.builds(
    Policy,
    age_ms=st.none() | st.integers(LEAST_MS, 2 * DAY_MS),
    idle_ms=st.none() | st.integers(LEAST_MS, 2 * DAY_MS),
    messages=st.none() | st.integers(1, 5),
    size_bytes=st.none() | st.integers(1, 300),
)


def summary_of(facts: list[Fact]) -> ChannelSummary:
    counted = [one.size_bytes for one in facts if one.is_counted]
    times = [one.at_ms for one in facts if one.at_ms is not None]
    return ChannelSummary(
        channel="c",
        created_ms=min(times, default=0),
        updated_ms=max(times, default=0),
        messages=len(counted),
        size_bytes=sum(counted),
    )


def swept(policy: Policy, facts: list[Fact], page: int = 3) -> tuple[list[Fact], Sweep]:
    """Return the facts that go, and the sweep at its end."""
    sweep, due = Sweep(policy, summary_of(facts), NOW_MS), list[Fact]()
    while sweep.is_needed and not sweep.is_over:
        found = [one for one in facts if one.version > sweep.after][:page]
        due += sweep.take(found, is_last=len(found) < page)
    return due, sweep


@given(POLICIES, FACTS)
def test_only_messages_go_that_a_rule_names(policy: Policy, facts: list[Fact]) -> None:
    due, sweep = swept(policy, facts)
    summary = summary_of(facts)
    is_idle = policy.idle_ms is not None and summary.updated_ms + policy.idle_ms <= NOW_MS
    is_empty = not summary.messages and summary.updated_ms + TOMBSTONE_MS <= NOW_MS
    for one in due:
        assert not one.is_busy
        if is_idle or is_empty:
            continue
        assert one.at_ms is not None
        is_old = policy.age_ms is not None and one.at_ms + policy.age_ms <= NOW_MS
        assert is_old or ((policy.messages or policy.size_bytes) and one.at_ms + LEAST_MS <= NOW_MS)
    left = [one for one in facts if one not in due]
    if not is_idle and policy.age_ms is None:
        counted = [one for one in left if one.is_counted]
        assert len(counted) >= min(summary.messages, 1)
        if any(one.is_counted for one in due):  # no more went than had to
            last = next(one for one in reversed(due) if one.is_counted)
            is_above = policy.messages is not None and len(counted) + 1 > policy.messages
            size = sum(one.size_bytes for one in counted) + last.size_bytes
            assert is_above or (policy.size_bytes is not None and size > policy.size_bytes)
    assert sweep.is_emptied == (sweep.is_over and not left)


@given(st.integers(LEAST_MS, 2 * DAY_MS), FACTS)
def test_age_lets_all_old_messages_go_in_order_of_time(age_ms: int, facts: list[Fact]) -> None:
    times = sorted(one.at_ms for one in facts if one.at_ms is not None and one.at_ms <= NOW_MS)
    facts = [one._replace(at_ms=at_ms) for one, at_ms in zip(facts, times, strict=False)]
    due, _ = swept(Policy(age_ms, None, None, None), facts)
    old = [one for one in facts if not one.is_busy and one.at_ms is not None and one.at_ms + age_ms <= NOW_MS]
    if any(one.is_counted for one in facts):
        assert due == old


def test_times_in_the_future_do_not_end_a_sweep() -> None:
    ahead = [Fact(f"m{n}", n, True, 1, NOW_MS + YEAR_MS, False) for n in range(1, 8)]
    old = Fact("old", 9, True, 1, NOW_MS - 2 * DAY_MS, False)
    sweep = Sweep(Policy(DAY_MS, None, None, None), summary_of([old]), NOW_MS)
    assert sweep.take(ahead, is_last=False) == []
    assert not sweep.is_over
    assert sweep.take([old], is_last=True) == [old]


# -- the clock -------------------------------------------------------------------------------------------------------


@given(st.integers(-2 * YEAR_MS, 2 * YEAR_MS).filter(lambda jump: abs(jump) > ClockTrust.JUMP_MS), st.data())
def test_a_clock_that_jumps_is_not_trusted_for_a_day(jump_ms: int, data: st.DataObject) -> None:
    trust = ClockTrust()
    assert trust.trusts(NOW_MS, steady_ms=0, newest_ms=NOW_MS - HOUR_MS)
    steady_ms = 0
    while (steady_ms := steady_ms + data.draw(st.integers(1, 6 * HOUR_MS))) < DAY_MS:
        assert not trust.trusts(NOW_MS + jump_ms + steady_ms, steady_ms=steady_ms, newest_ms=0)
    if data.draw(st.booleans()):
        assert trust.trusts(NOW_MS + steady_ms, steady_ms=steady_ms, newest_ms=0)  # set right again
    else:
        steady_ms += DAY_MS
        assert trust.trusts(NOW_MS + jump_ms + steady_ms, steady_ms=steady_ms, newest_ms=0)  # it was wrong before
        assert trust.trusts(NOW_MS + jump_ms + steady_ms + 1, steady_ms=steady_ms, newest_ms=0)


def test_a_clock_is_compared_with_the_newest_stored_time_at_the_start() -> None:
    for offset_ms, is_trusted in (
        (0, True),
        (-25 * HOUR_MS, True),
        (-26 * HOUR_MS, False),
        (-YEAR_MS, False),
        (6 * DAY_MS, True),
        (8 * DAY_MS, False),
    ):
        trust = ClockTrust()
        assert trust.trusts(NOW_MS + offset_ms, steady_ms=0, newest_ms=NOW_MS) == is_trusted
        assert trust.is_new != is_trusted
        assert trust.trusts(NOW_MS + offset_ms + DAY_MS, steady_ms=DAY_MS, newest_ms=NOW_MS)
