"""The list of channels: pages, prefixes, patterns and counts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.core.errors import InvalidName, InvalidRequest
from tenuto.core.names import matches
from tenuto.hub import HubCore
from tenuto.hub.keep.archive import narrowed

NAMES = st.text("ab:", max_size=4)
PATTERNS = st.one_of(NAMES.filter(bool), NAMES.map(lambda stem: f"{stem}*"))


async def test_channels_are_listed_page_by_page_with_their_counts(hub: HubCore) -> None:
    for name in ("chat:2", "log:1", "chat:1"):
        await hub.create(name, text="hello")
    async with hub.message("chat:1") as message:
        await message.append("four")
    gone = await hub.create("chat:1", text="not counted")
    await hub.delete("chat:1", gone.id)
    await hub.create("empty", text="x")
    await hub.delete_channel("empty")

    page = await hub.archive.channels(limit=2)
    assert ([one.channel for one in page.channels], page.more) == (["chat:1", "chat:2"], True)
    first, second = page.channels
    assert (first.messages, second.messages) == (2, 1)
    assert first.size_bytes == 2 * second.size_bytes - len("hello") + len("four")
    assert 0 < first.created_ms <= first.updated_ms <= hub.clock.now_ms()
    rest = await hub.archive.channels(after="chat:2")
    assert ([one.channel for one in rest.channels], rest.more) == (["log:1"], False)
    chats = await hub.archive.channels("chat:", patterns=["*:1", "chat:2", "log:*"])
    assert [one.channel for one in chats.channels] == ["chat:2"]


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
