"""The list of channels: pages, prefixes, patterns and counts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.core.errors import InvalidName, InvalidRequest
from tenuto.core.names import matches
from tenuto.hub import HubCore
from tenuto.hub.keep.policies import narrowed

NAMES = st.text("ab:", max_size=4)
PATTERNS = st.one_of(NAMES.filter(bool), NAMES.map(lambda stem: f"{stem}*"))


async def test_invalid_arguments_are_refused(hub: HubCore) -> None:
    for prefix in ("chat:*", "a\nb", "'; --"):
        with pytest.raises(InvalidName, match="without a star"):
            await hub.archive.channels(prefix)
    for limit in (0, 501):
        with pytest.raises(InvalidRequest, match="from 1 to 500"):
            await hub.archive.channels(limit=limit)


@example(["a:*", "a:b"], "", "", "a:b")
@given(st.lists(PATTERNS, max_size=5), NAMES, NAMES, NAMES.filter(bool))
def test_exactly_the_wanted_names_match_once(patterns: list[str], prefix: str, after: str, name: str) -> None:
    is_wanted = any(matches(one, name) for one in patterns) and name.startswith(prefix)
    within = narrowed(prefix, after, patterns)
    found = sum(matches(one, name) for one in within)
    assert found <= 1
    if name > after:
        assert found == is_wanted
    assert [one.removesuffix("*") for one in within] == sorted(one.removesuffix("*") for one in within)
