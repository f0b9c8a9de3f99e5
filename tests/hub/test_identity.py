"""Identities: the capabilities that an identity grants on each channel, and the time when it expires."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.errors import Forbidden, InvalidName, LocalError
from tenuto.core.names import matches
from tenuto.hub.access.identity import Identity, fill_pattern

READER = frozenset({"subscribe", "history"})
names = st.text(alphabet="ab:./-~*{}", min_size=1, max_size=8)


def test_capabilities_without_patterns_hold_on_every_channel() -> None:
    identity = Identity(client_id=type("Name", (str,), {})("ada"), capabilities=READER)
    assert type(identity.client_id) is str  # stores encode no subclass
    identity.check("history", "c")
    with pytest.raises(Forbidden, match="'publish'"):
        identity.check("publish", "c")


def test_grants_of_several_matching_patterns_add_up() -> None:
    identity = Identity(grants={"*": READER, "chat:*": frozenset({"publish"}), "chat:1": frozenset({"append"})})
    asked = ("history", "publish", "append", "admin")
    assert [one for one in asked if identity.has(one, "chat:1")] == ["history", "publish", "append"]
    assert [one for one in asked if identity.has(one, "chat:2")] == ["history", "publish"]
    assert identity.has("history", "*")
    assert not identity.has("publish", "*")


@pytest.mark.parametrize("client_id", [None, "", "a b", "a/b", "a*", "{sub}", "é", "a" * 65, "..", "a\n"])
def test_invalid_client_id_is_refused_for_a_pattern_with_a_placeholder(client_id: str | None) -> None:
    with pytest.raises(InvalidName):
        Identity(client_id=client_id, grants={"user:{sub}": READER})


# `{sub}*` would be everything below "x:" for a client called "x:".
@pytest.mark.parametrize("client_id", ["ada", "x:"])
@pytest.mark.parametrize("pattern", ["chat*", "*:1", "a:**", "{sub}*", "{name}:x", "}{", "user:{sub"])
def test_invalid_pattern_is_refused(pattern: str, client_id: str) -> None:
    with pytest.raises(LocalError, match="pattern"):
        Identity(client_id=client_id, grants={pattern: READER})


def test_unknown_capability_is_refused_and_named() -> None:
    with pytest.raises(LocalError, match="names the unknown capabilities 'writ'"):
        Identity(grants={"chat:*": frozenset({"subscribe", "writ"})})
    with pytest.raises(LocalError, match="'root'"):
        Identity(capabilities=frozenset({"root"}))


patterns = st.builds(
    str.__add__, st.text("ab", max_size=3), st.sampled_from(["", "*", ":*", "/*", ".*", ":{sub}", ":{sub}:*"])
)


@given(names | patterns, st.data())
def test_grant_of_a_pattern_holds_on_exactly_its_channels(pattern: str, data: st.DataObject) -> None:
    try:
        identity = Identity(client_id="ada", grants={pattern: READER})
    except LocalError:
        return
    filled = pattern.replace("{sub}", "ada")
    begin = filled.removesuffix("*")
    channel = data.draw(names | names.map(lambda rest: begin + rest) | st.just(begin) | st.just(begin[:-1]))
    rule = re.compile(re.escape(begin) + (".*" if begin != filled else ""))
    assert identity.has("history", channel) == (rule.fullmatch(channel) is not None)


@given(names, names, names)
def test_capability_on_a_pattern_holds_on_each_of_its_channels(granted: str, pattern: str, channel: str) -> None:
    try:
        identity = Identity(client_id="ada", grants={granted: READER})
        fill_pattern(pattern, "ada")
    except LocalError:
        return
    if identity.has("history", pattern) and matches(pattern, channel):
        assert identity.has("history", channel)
